// tests/support/emulate: cuDNN's backend interface over plain loops: a graph of operations on 4-D tensors is
// computed as it was described, operation by operation, when the stream runs. What the library would refuse
// (an attribute set late or not at all, a tensor read before it is made) fails here with a line.
#include "cudnn.h"
#include "emulate_stream.h"

#include <cstdio>
#include <cstring>
#include <map>
#include <memory>
#include <vector>

extern "C" {
#include "kernels/base/half.h"
}

struct emulate_dnn_handle {
    emulate::stream *stream = nullptr;
};

namespace
{

// Its proposals, in order: the bits of the first do not repeat; the second wants more than any pool.
const int64_t WORKSPACES[] = {0, int64_t(1) << 40, 4096};
const int CONFIGS = 3;

struct descriptor {
    cudnnBackendDescriptorType_t type;
    std::map<int, std::vector<unsigned char>> attr;
    bool final = false;
    int config = 0;

    template <typename T> T
    one(int name) const
    {
        T x = T();
        auto at = attr.find(name);
        if (at != attr.end()) {
            std::memcpy(&x, at->second.data(), sizeof(T));
        }
        return x;
    }
    const descriptor *
    other(int name) const
    {
        return one<const descriptor *>(name);
    }
    template <typename T> std::vector<T>
    all(int name) const
    {
        auto at = attr.find(name);
        std::vector<T> x(at == attr.end() ? 0 : at->second.size() / sizeof(T));
        if (!x.empty()) {
            std::memcpy(x.data(), at->second.data(), x.size() * sizeof(T));
        }
        return x;
    }
};

cudnnStatus_t
refuse(const char *why)
{
    std::fprintf(stderr, "emulate: cuDNN: %s\n", why);
    return CUDNN_STATUS_BAD_PARAM;
}

size_t
bytes_of(cudnnBackendAttributeType_t type)
{
    switch (type) {
    case CUDNN_TYPE_BOOLEAN: return 1;
    case CUDNN_TYPE_INT64:
    case CUDNN_TYPE_VOID_PTR:
    case CUDNN_TYPE_HANDLE:
    case CUDNN_TYPE_BACKEND_DESCRIPTOR: return 8;
    default: return 4;
    }
}

// Attributes that a descriptor must have.
std::vector<int>
needed(cudnnBackendDescriptorType_t type)
{
    switch (type) {
    case CUDNN_BACKEND_TENSOR_DESCRIPTOR:
        return {CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_ATTR_TENSOR_DIMENSIONS,
                CUDNN_ATTR_TENSOR_STRIDES, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT};
    case CUDNN_BACKEND_POINTWISE_DESCRIPTOR:
        return {CUDNN_ATTR_POINTWISE_MODE, CUDNN_ATTR_POINTWISE_MATH_PREC};
    case CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR:
        return {CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, CUDNN_ATTR_OPERATION_POINTWISE_XDESC,
                CUDNN_ATTR_OPERATION_POINTWISE_YDESC};
    case CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR:
        return {CUDNN_ATTR_OPERATION_MATMUL_ADESC, CUDNN_ATTR_OPERATION_MATMUL_BDESC,
                CUDNN_ATTR_OPERATION_MATMUL_CDESC, CUDNN_ATTR_OPERATION_MATMUL_DESC};
    case CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR:
        return {CUDNN_ATTR_OPERATION_REDUCTION_XDESC, CUDNN_ATTR_OPERATION_REDUCTION_YDESC,
                CUDNN_ATTR_OPERATION_REDUCTION_DESC};
    case CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR:
        return {CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_ATTR_OPERATIONGRAPH_OPS};
    case CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR:
        return {CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, CUDNN_ATTR_ENGINEHEUR_MODE};
    case CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR:
        return {CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG};
    case CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR:
        return {CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS};
    default: return {};
    }
}

// A tensor while a graph runs: dense numbers, read from memory once or made by an operation.
struct numbers {
    int64_t dims[4];
    std::vector<float> x;

    float &
    at(const int64_t *i)
    {
        int64_t place = 0;
        for (int d = 0; d < 4; d++) { // a dimension that is shorter is repeated, heads by groups
            place = place * dims[d] + i[d];
        }
        return x[static_cast<size_t>(place)];
    }
    // Element i of a tensor of `whole` dimensions, over which this one is spread.
    float
    spread(const int64_t *i, const int64_t *whole)
    {
        int64_t j[4];
        for (int d = 0; d < 4; d++) {
            j[d] = dims[d] == whole[d] ? i[d] : i[d] / (whole[d] / dims[d]);
        }
        return at(j);
    }
};

struct graph_run {
    std::map<int64_t, void *> memory;
    std::map<int64_t, float> value;
    std::map<int64_t, numbers> made;
    bool bad = false;

    template <typename F> static void
    each(const int64_t *dims, F f)
    {
        int64_t i[4];
        for (i[0] = 0; i[0] < dims[0]; i[0]++) {
            for (i[1] = 0; i[1] < dims[1]; i[1]++) {
                for (i[2] = 0; i[2] < dims[2]; i[2]++) {
                    for (i[3] = 0; i[3] < dims[3]; i[3]++) {
                        f(i);
                    }
                }
            }
        }
    }

    static int64_t
    offset(const descriptor *t, const int64_t *i)
    {
        std::vector<int64_t> strides = t->all<int64_t>(CUDNN_ATTR_TENSOR_STRIDES);
        return i[0] * strides[0] + i[1] * strides[1] + i[2] * strides[2] + i[3] * strides[3];
    }

    numbers
    blank(const descriptor *t)
    {
        numbers n;
        std::vector<int64_t> dims = t->all<int64_t>(CUDNN_ATTR_TENSOR_DIMENSIONS);
        std::memcpy(n.dims, dims.data(), sizeof(n.dims));
        n.x.assign(static_cast<size_t>(dims[0] * dims[1] * dims[2] * dims[3]), 0.0f);
        return n;
    }

    numbers &
    read(const descriptor *t)
    {
        int64_t uid = t->one<int64_t>(CUDNN_ATTR_TENSOR_UNIQUE_ID);
        auto known = made.find(uid);
        if (known != made.end()) {
            return known->second;
        }
        numbers n = blank(t);
        if (t->one<bool>(CUDNN_ATTR_TENSOR_IS_BY_VALUE)) {
            n.x[0] = value[uid];
        } else if (t->one<bool>(CUDNN_ATTR_TENSOR_IS_VIRTUAL) || memory.count(uid) == 0) {
            bad = true;
        } else {
            shl_dtype dtype =
                t->one<int>(CUDNN_ATTR_TENSOR_DATA_TYPE) == CUDNN_DATA_BFLOAT16 ? SHL_BF16 : SHL_F32;
            each(n.dims, [&](const int64_t *i) { n.at(i) = shl_float_at(dtype, memory[uid], offset(t, i)); });
        }
        return made[uid] = n;
    }

    // What an operation made: rounded to its type, and into memory unless it is virtual.
    void
    write(const descriptor *t, numbers n)
    {
        int64_t uid = t->one<int64_t>(CUDNN_ATTR_TENSOR_UNIQUE_ID);
        bool half = t->one<int>(CUDNN_ATTR_TENSOR_DATA_TYPE) == CUDNN_DATA_BFLOAT16;
        for (float &x : n.x) {
            x = half ? shl_float_round(SHL_BF16, x) : x;
        }
        if (!t->one<bool>(CUDNN_ATTR_TENSOR_IS_VIRTUAL)) {
            bad = bad || memory.count(uid) == 0;
            each(n.dims, [&](const int64_t *i) {
                shl_float_put(half ? SHL_BF16 : SHL_F32, memory[uid], offset(t, i), n.at(i));
            });
        }
        made[uid] = n;
    }

    void
    matmul(const descriptor *op)
    {
        numbers &a = read(op->other(CUDNN_ATTR_OPERATION_MATMUL_ADESC));
        numbers &b = read(op->other(CUDNN_ATTR_OPERATION_MATMUL_BDESC));
        numbers c = blank(op->other(CUDNN_ATTR_OPERATION_MATMUL_CDESC));
        bad = bad || a.dims[3] != b.dims[2] || a.dims[2] != c.dims[2] || b.dims[3] != c.dims[3] ||
              c.dims[1] % b.dims[1] != 0;
        if (bad) {
            return;
        }
        each(c.dims, [&](const int64_t *i) {
            float sum = 0.0f;
            for (int64_t k = 0; k < a.dims[3]; k++) {
                int64_t at_a[4] = {i[0], i[1], i[2], k};
                int64_t at_b[4] = {i[0], i[1] / (c.dims[1] / b.dims[1]), k, i[3]};
                sum += a.at(at_a) * b.at(at_b);
            }
            c.at(i) = sum;
        });
        write(op->other(CUDNN_ATTR_OPERATION_MATMUL_CDESC), c);
    }

    static float
    apply(int mode, float x, float b, float t)
    {
        switch (mode) {
        case CUDNN_POINTWISE_ADD: return x + b;
        case CUDNN_POINTWISE_MUL: return x * b;
        case CUDNN_POINTWISE_DIV: return x / b;
        case CUDNN_POINTWISE_SUB: return x - b;
        case CUDNN_POINTWISE_EXP: return expf(x);
        case CUDNN_POINTWISE_LOG: return logf(x);
        case CUDNN_POINTWISE_CMP_GE: return x >= b ? 1.0f : 0.0f;
        default: return t != 0.0f ? x : b; // BINARY_SELECT
        }
    }

    void
    pointwise(const descriptor *op)
    {
        const descriptor *how = op->other(CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR);
        const descriptor *b = op->other(CUDNN_ATTR_OPERATION_POINTWISE_BDESC);
        const descriptor *t = op->other(CUDNN_ATTR_OPERATION_POINTWISE_TDESC);
        int mode = how->one<int>(CUDNN_ATTR_POINTWISE_MODE);
        int64_t axis = how->one<int64_t>(CUDNN_ATTR_POINTWISE_AXIS);
        numbers &x = read(op->other(CUDNN_ATTR_OPERATION_POINTWISE_XDESC));
        numbers y = blank(op->other(CUDNN_ATTR_OPERATION_POINTWISE_YDESC));
        each(y.dims, [&](const int64_t *i) {
            if (mode == CUDNN_POINTWISE_GEN_INDEX) {
                y.at(i) = static_cast<float>(i[axis]);
            } else {
                y.at(i) = apply(mode, x.spread(i, y.dims), b == nullptr ? 0.0f : read(b).spread(i, y.dims),
                                t == nullptr ? 0.0f : read(t).spread(i, y.dims));
            }
        });
        write(op->other(CUDNN_ATTR_OPERATION_POINTWISE_YDESC), y);
    }

    void
    reduce(const descriptor *op)
    {
        const descriptor *how = op->other(CUDNN_ATTR_OPERATION_REDUCTION_DESC);
        bool top = how->one<int>(CUDNN_ATTR_REDUCTION_OPERATOR) == CUDNN_REDUCE_TENSOR_MAX;
        numbers &x = read(op->other(CUDNN_ATTR_OPERATION_REDUCTION_XDESC));
        numbers y = blank(op->other(CUDNN_ATTR_OPERATION_REDUCTION_YDESC));
        y.x.assign(y.x.size(), top ? -INFINITY : 0.0f);
        each(x.dims, [&](const int64_t *i) {
            int64_t j[4];
            for (int d = 0; d < 4; d++) {
                j[d] = y.dims[d] == 1 ? 0 : i[d];
            }
            y.at(j) = top ? fmaxf(y.at(j), x.at(i)) : y.at(j) + x.at(i);
        });
        write(op->other(CUDNN_ATTR_OPERATION_REDUCTION_YDESC), y);
    }

    void
    all(const std::vector<const descriptor *> &ops)
    {
        for (const descriptor *op : ops) {
            if (op->type == CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR) {
                matmul(op);
            } else if (op->type == CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR) {
                pointwise(op);
            } else {
                reduce(op);
            }
        }
        if (bad) {
            refuse("a tensor of the graph does not fit, or is read before it is made");
        }
    }
};

} // namespace

extern "C" {

size_t
cudnnGetVersion(void)
{
    return 90000;
}

cudnnStatus_t
cudnnCreate(cudnnHandle_t *handle)
{
    *handle = new emulate_dnn_handle;
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t
cudnnDestroy(cudnnHandle_t handle)
{
    delete handle;
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t
cudnnSetStream(cudnnHandle_t handle, cudaStream_t stream)
{
    handle->stream = static_cast<emulate::stream *>(stream);
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t
cudnnBackendCreateDescriptor(cudnnBackendDescriptorType_t type, cudnnBackendDescriptor_t *out)
{
    descriptor *d = new descriptor;
    d->type = type;
    *out = d;
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t
cudnnBackendDestroyDescriptor(cudnnBackendDescriptor_t d)
{
    delete static_cast<descriptor *>(d);
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t
cudnnBackendFinalize(cudnnBackendDescriptor_t at)
{
    descriptor *d = static_cast<descriptor *>(at);
    for (int name : needed(d->type)) {
        if (d->attr.count(name) == 0) {
            return refuse("a descriptor lacks an attribute");
        }
    }
    if (d->type == CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR) {
        d->config = d->other(CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG)->config;
    }
    d->final = true;
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t
cudnnBackendSetAttribute(cudnnBackendDescriptor_t at, cudnnBackendAttributeName_t name,
                         cudnnBackendAttributeType_t type, int64_t n, const void *values)
{
    descriptor *d = static_cast<descriptor *>(at);
    const unsigned char *bytes = static_cast<const unsigned char *>(values);
    if (d->final) {
        return refuse("an attribute after the end");
    }
    if (type == CUDNN_TYPE_BACKEND_DESCRIPTOR) {
        for (int64_t i = 0; i < n; i++) {
            if (!static_cast<descriptor *const *>(values)[i]->final) {
                return refuse("a descriptor that is not finalized");
            }
        }
    }
    d->attr[name].assign(bytes, bytes + static_cast<size_t>(n) * bytes_of(type));
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t
cudnnBackendGetAttribute(cudnnBackendDescriptor_t at, cudnnBackendAttributeName_t name,
                         cudnnBackendAttributeType_t, int64_t n, int64_t *got, void *values)
{
    descriptor *d = static_cast<descriptor *>(at), **others = static_cast<descriptor **>(values);
    *got = 1;
    if (name == CUDNN_ATTR_ENGINEHEUR_RESULTS) {
        *got = CONFIGS;
        for (int i = 0; i < n && i < CONFIGS; i++) {
            *others[i] = *d; // what the proposal is of
            others[i]->config = i;
            others[i]->type = CUDNN_BACKEND_ENGINECFG_DESCRIPTOR;
        }
    } else if (name == CUDNN_ATTR_ENGINECFG_ENGINE) {
        others[0]->config = d->config;
    } else if (name == CUDNN_ATTR_ENGINE_NUMERICAL_NOTE) {
        *static_cast<cudnnBackendNumericalNote_t *>(values) =
            d->config == 0 ? CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC : CUDNN_NUMERICAL_NOTE_TENSOR_CORE;
    } else if (name == CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE) {
        *static_cast<int64_t *>(values) = WORKSPACES[d->config];
    } else {
        return refuse("an attribute that nobody asks for");
    }
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t
cudnnBackendExecute(cudnnHandle_t handle, cudnnBackendDescriptor_t plan_at, cudnnBackendDescriptor_t pack_at)
{
    const descriptor *plan = static_cast<const descriptor *>(plan_at);
    const descriptor *pack = static_cast<const descriptor *>(pack_at);
    const descriptor *config = plan->other(CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG);
    const descriptor *graph = config->other(CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH);
    std::vector<const descriptor *> ops =
        graph->all<const descriptor *>(CUDNN_ATTR_OPERATIONGRAPH_OPS);
    std::vector<int64_t> uids = pack->all<int64_t>(CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS);
    std::vector<void *> data = pack->all<void *>(CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS);
    std::shared_ptr<graph_run> run(new graph_run);
    std::map<int64_t, bool> by_value;
    for (const descriptor *op : ops) {
        for (const auto &a : op->attr) {
            const descriptor *t = op->other(a.first);
            if (t->type == CUDNN_BACKEND_TENSOR_DESCRIPTOR && t->one<bool>(CUDNN_ATTR_TENSOR_IS_BY_VALUE)) {
                by_value[t->one<int64_t>(CUDNN_ATTR_TENSOR_UNIQUE_ID)] = true;
            }
        }
    }
    for (size_t i = 0; i < uids.size(); i++) {
        if (by_value.count(uids[i]) != 0) {
            run->value[uids[i]] = *static_cast<float *>(data[i]); // read now: it is the caller's
        } else {
            run->memory[uids[i]] = data[i];
        }
    }
    emulate::enqueue(handle->stream, [run, ops]() { run->all(ops); });
    return CUDNN_STATUS_SUCCESS;
}

} // extern "C"

/* kernels/cuda/object: cuDNN loaded by name, and its backend interface: descriptors are made, given attributes
 * and finalized; operations become a graph, a graph a plan. */
#include "kernels/cuda/object/cuda_dnn.h"

#include <dlfcn.h>
#include <stdint.h>

#define LIBRARY "libcudnn.so.9"
#define CONFIGS 32 /* of the library's proposals that are looked at */
#define FIRST_VIRTUAL 1000
#define ALIGNED_BYTES 16

#ifndef SHL_EMULATED
/* C names no conversion between a function and an address; POSIX says that the bits are the same. */
#define LOAD(to, name)                                                                             \
    do {                                                                                           \
        *(void **)&(to) = dlsym(library, name);                                                    \
        if ((to) == NULL) {                                                                        \
            return SHL_CUDA_STATUS_DNN_LIBRARY;                                                    \
        }                                                                                          \
    } while (0)
#endif

#ifdef SHL_EMULATED
int
shl_cuda_dnn_load(shl_cuda_dnn_calls *calls)
{
    *calls = (shl_cuda_dnn_calls){.create = cudnnCreate,
                                  .destroy = cudnnDestroy,
                                  .set_stream = cudnnSetStream,
                                  .make = cudnnBackendCreateDescriptor,
                                  .unmake = cudnnBackendDestroyDescriptor,
                                  .finalize = cudnnBackendFinalize,
                                  .set = cudnnBackendSetAttribute,
                                  .get = cudnnBackendGetAttribute,
                                  .execute = cudnnBackendExecute};
    return 0;
}

size_t
shl_cuda_dnn_version(void)
{
    return cudnnGetVersion();
}
#else
int
shl_cuda_dnn_load(shl_cuda_dnn_calls *calls)
{
    void *library =
        dlopen(LIBRARY, RTLD_NOW | RTLD_LOCAL); /* for good: it does not like to be closed */
    if (library == NULL) {
        return SHL_CUDA_STATUS_DNN_LIBRARY;
    }
    LOAD(calls->create, "cudnnCreate");
    LOAD(calls->destroy, "cudnnDestroy");
    LOAD(calls->set_stream, "cudnnSetStream");
    LOAD(calls->make, "cudnnBackendCreateDescriptor");
    LOAD(calls->unmake, "cudnnBackendDestroyDescriptor");
    LOAD(calls->finalize, "cudnnBackendFinalize");
    LOAD(calls->set, "cudnnBackendSetAttribute");
    LOAD(calls->get, "cudnnBackendGetAttribute");
    LOAD(calls->execute, "cudnnBackendExecute");
    return 0;
}

size_t
shl_cuda_dnn_version(void)
{
    void *library = dlopen(LIBRARY, RTLD_NOW | RTLD_LOCAL | RTLD_NOLOAD);
    size_t (*version)(void) = NULL;
    if (library != NULL) {
        *(void **)&version = dlsym(library, "cudnnGetVersion");
        (void)dlclose(library); /* one reference less; load's stays */
    }
    return version != NULL ? version() : 0;
}
#endif

/* Keeps the first failure. */
static bool
good(shl_cuda_dnn_graph *g, cudnnStatus_t status)
{
    if (g->status == 0 && status != CUDNN_STATUS_SUCCESS) {
        g->status = SHL_CUDA_STATUS_DNN + (int)status;
    }
    return g->status == 0;
}

static cudnnBackendDescriptor_t
make(shl_cuda_dnn_graph *g, cudnnBackendDescriptorType_t type)
{
    cudnnBackendDescriptor_t d = NULL;
    if (g->status == 0 && g->parts == SHL_CUDA_DNN_PARTS) {
        g->status = SHL_CUDA_STATUS_DNN_ENGINE;
    }
    if (g->status != 0 || !good(g, g->calls->make(type, &d))) {
        return NULL;
    }
    g->part[g->parts++] = d;
    return d;
}

static void
set(shl_cuda_dnn_graph *g, cudnnBackendDescriptor_t d, cudnnBackendAttributeName_t name,
    cudnnBackendAttributeType_t type, int64_t n, const void *values)
{
    if (g->status == 0) {
        (void)good(g, g->calls->set(d, name, type, n, values));
    }
}

/* One descriptor as an attribute of another; none where there is none. */
static void
attach(shl_cuda_dnn_graph *g, cudnnBackendDescriptor_t d, cudnnBackendAttributeName_t name,
       cudnnBackendDescriptor_t other)
{
    if (other != NULL) {
        set(g, d, name, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &other);
    }
}

static void
finalize(shl_cuda_dnn_graph *g, cudnnBackendDescriptor_t d)
{
    if (g->status == 0) {
        (void)good(g, g->calls->finalize(d));
    }
}

static void
add_op(shl_cuda_dnn_graph *g, cudnnBackendDescriptor_t op)
{
    finalize(g, op);
    if (g->status == 0 && g->ops < SHL_CUDA_DNN_OPS) {
        g->op[g->ops++] = op;
    } else if (g->status == 0) {
        g->status = SHL_CUDA_STATUS_DNN_ENGINE;
    }
}

cudnnBackendDescriptor_t
shl_cuda_dnn_tensor_new(shl_cuda_dnn_graph *g, const shl_cuda_dnn_tensor *t)
{
    const bool is_virtual = t->uid == 0;
    const int64_t uid = is_virtual ? FIRST_VIRTUAL + g->parts : t->uid;
    const int64_t alignment = t->by_value ? (int64_t)sizeof(float) : ALIGNED_BYTES;
    cudnnBackendDescriptor_t d = make(g, CUDNN_BACKEND_TENSOR_DESCRIPTOR);
    set(g, d, CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, 1, &uid);
    set(g, d, CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &t->type);
    set(g, d, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, 1, &alignment);
    set(g, d, CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, 4, t->dims);
    set(g, d, CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, 4, t->strides);
    set(g, d, CUDNN_ATTR_TENSOR_IS_VIRTUAL, CUDNN_TYPE_BOOLEAN, 1, &is_virtual);
    set(g, d, CUDNN_ATTR_TENSOR_IS_BY_VALUE, CUDNN_TYPE_BOOLEAN, 1, &t->by_value);
    finalize(g, d);
    return d;
}

void
shl_cuda_dnn_matmul(shl_cuda_dnn_graph *g, cudnnBackendDescriptor_t a, cudnnBackendDescriptor_t b,
                    cudnnBackendDescriptor_t c)
{
    const cudnnDataType_t math = CUDNN_DATA_FLOAT;
    cudnnBackendDescriptor_t how = make(g, CUDNN_BACKEND_MATMUL_DESCRIPTOR);
    set(g, how, CUDNN_ATTR_MATMUL_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &math);
    finalize(g, how);
    cudnnBackendDescriptor_t op = make(g, CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR);
    attach(g, op, CUDNN_ATTR_OPERATION_MATMUL_ADESC, a);
    attach(g, op, CUDNN_ATTR_OPERATION_MATMUL_BDESC, b);
    attach(g, op, CUDNN_ATTR_OPERATION_MATMUL_CDESC, c);
    attach(g, op, CUDNN_ATTR_OPERATION_MATMUL_DESC, how);
    add_op(g, op);
}

void
shl_cuda_dnn_pointwise(shl_cuda_dnn_graph *g, cudnnPointwiseMode_t mode, cudnnDataType_t math,
                       int64_t axis, cudnnBackendDescriptor_t x, cudnnBackendDescriptor_t b,
                       cudnnBackendDescriptor_t t, cudnnBackendDescriptor_t y)
{
    cudnnBackendDescriptor_t how = make(g, CUDNN_BACKEND_POINTWISE_DESCRIPTOR);
    set(g, how, CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, 1, &mode);
    set(g, how, CUDNN_ATTR_POINTWISE_MATH_PREC, CUDNN_TYPE_DATA_TYPE, 1, &math);
    if (mode == CUDNN_POINTWISE_GEN_INDEX) {
        set(g, how, CUDNN_ATTR_POINTWISE_AXIS, CUDNN_TYPE_INT64, 1, &axis);
    }
    finalize(g, how);
    cudnnBackendDescriptor_t op = make(g, CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR);
    attach(g, op, CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, how);
    attach(g, op, CUDNN_ATTR_OPERATION_POINTWISE_XDESC, x);
    attach(g, op, CUDNN_ATTR_OPERATION_POINTWISE_BDESC, b);
    attach(g, op, CUDNN_ATTR_OPERATION_POINTWISE_TDESC, t);
    attach(g, op, CUDNN_ATTR_OPERATION_POINTWISE_YDESC, y);
    add_op(g, op);
}

void
shl_cuda_dnn_reduce(shl_cuda_dnn_graph *g, cudnnReduceTensorOp_t mode, cudnnBackendDescriptor_t x,
                    cudnnBackendDescriptor_t y)
{
    const cudnnDataType_t math = CUDNN_DATA_FLOAT;
    cudnnBackendDescriptor_t how = make(g, CUDNN_BACKEND_REDUCTION_DESCRIPTOR);
    set(g, how, CUDNN_ATTR_REDUCTION_OPERATOR, CUDNN_TYPE_REDUCTION_OPERATOR_TYPE, 1, &mode);
    set(g, how, CUDNN_ATTR_REDUCTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &math);
    finalize(g, how);
    cudnnBackendDescriptor_t op = make(g, CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR);
    attach(g, op, CUDNN_ATTR_OPERATION_REDUCTION_XDESC, x);
    attach(g, op, CUDNN_ATTR_OPERATION_REDUCTION_YDESC, y);
    attach(g, op, CUDNN_ATTR_OPERATION_REDUCTION_DESC, how);
    add_op(g, op);
}

/* True unless the engine of a configuration says of itself that its bits do not repeat. */
static bool
repeats(shl_cuda_dnn_graph *g, cudnnBackendDescriptor_t config)
{
    cudnnBackendNumericalNote_t note[CUDNN_NUMERICAL_NOTE_TYPE_COUNT];
    cudnnBackendDescriptor_t engine = make(g, CUDNN_BACKEND_ENGINE_DESCRIPTOR);
    int64_t n = 0;
    if (engine == NULL ||
        g->calls->get(config, CUDNN_ATTR_ENGINECFG_ENGINE, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &n,
                      &engine) != CUDNN_STATUS_SUCCESS ||
        g->calls->get(engine, CUDNN_ATTR_ENGINE_NUMERICAL_NOTE, CUDNN_TYPE_NUMERICAL_NOTE,
                      CUDNN_NUMERICAL_NOTE_TYPE_COUNT, &n, note) != CUDNN_STATUS_SUCCESS) {
        return false;
    }
    for (int64_t i = 0; i < n; i++) {
        if (note[i] == CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC) {
            return false;
        }
    }
    return true;
}

/* Makes the plan of a configuration; false where the library cannot, or where the pool is too small. */
static bool
try_config(shl_cuda_dnn_graph *g, cudnnBackendDescriptor_t config, size_t pool_bytes,
           bool *too_large)
{
    cudnnBackendDescriptor_t plan = make(g, CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR);
    int64_t n = 0;
    if (plan == NULL ||
        g->calls->set(plan, CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_TYPE_HANDLE, 1, &g->handle) !=
            CUDNN_STATUS_SUCCESS ||
        g->calls->set(plan, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, CUDNN_TYPE_BACKEND_DESCRIPTOR,
                      1, &config) != CUDNN_STATUS_SUCCESS ||
        g->calls->finalize(plan) != CUDNN_STATUS_SUCCESS ||
        g->calls->get(plan, CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE, CUDNN_TYPE_INT64, 1, &n,
                      &g->workspace_bytes) != CUDNN_STATUS_SUCCESS) {
        return false;
    }
    if ((uint64_t)g->workspace_bytes > pool_bytes) {
        *too_large = true;
        return false;
    }
    g->plan = plan;
    return true;
}

int
shl_cuda_dnn_plan(shl_cuda_dnn_graph *g, size_t pool_bytes)
{
    const cudnnBackendHeurMode_t mode = CUDNN_HEUR_MODE_A;
    cudnnBackendDescriptor_t config[CONFIGS];
    int64_t n = 0;
    bool too_large = false;
    cudnnBackendDescriptor_t graph = make(g, CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);
    set(g, graph, CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE, 1, &g->handle);
    set(g, graph, CUDNN_ATTR_OPERATIONGRAPH_OPS, CUDNN_TYPE_BACKEND_DESCRIPTOR, g->ops, g->op);
    finalize(g, graph);
    cudnnBackendDescriptor_t choice = make(g, CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR);
    attach(g, choice, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, graph);
    set(g, choice, CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, 1, &mode);
    finalize(g, choice);
    if (g->status == 0) {
        (void)good(g, g->calls->get(choice, CUDNN_ATTR_ENGINEHEUR_RESULTS,
                                    CUDNN_TYPE_BACKEND_DESCRIPTOR, 0, &n, NULL));
    }
    n = n < CONFIGS ? n : CONFIGS;
    /* A refused configuration takes an engine and a plan besides: leave room for them. */
    int64_t room = (SHL_CUDA_DNN_PARTS - g->parts) / 3;
    n = n < room ? n : room;
    for (int64_t i = 0; i < n; i++) {
        config[i] = make(g, CUDNN_BACKEND_ENGINECFG_DESCRIPTOR);
    }
    if (g->status == 0 && n > 0) {
        (void)good(g, g->calls->get(choice, CUDNN_ATTR_ENGINEHEUR_RESULTS,
                                    CUDNN_TYPE_BACKEND_DESCRIPTOR, n, &n, config));
    }
    for (int64_t i = 0; g->status == 0 && i < n; i++) {
        if (repeats(g, config[i]) && try_config(g, config[i], pool_bytes, &too_large)) {
            return 0;
        }
    }
    if (g->status == 0) {
        g->status = too_large ? SHL_CUDA_STATUS_DNN_POOL : SHL_CUDA_STATUS_DNN_ENGINE;
    }
    return g->status;
}

int
shl_cuda_dnn_run(shl_cuda_dnn_graph *g, const shl_cuda_launch *l, int64_t n, const int64_t *uids,
                 void *const *data)
{
    const shl_cuda_dnn_calls *c = g->calls;
    cudnnBackendDescriptor_t pack = NULL;
    cudnnStatus_t status = c->set_stream(g->handle, (cudaStream_t)l->stream);
    if (status == CUDNN_STATUS_SUCCESS) {
        status = c->make(CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR, &pack);
    }
    if (status == CUDNN_STATUS_SUCCESS) {
        status = c->set(pack, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, n, uids);
    }
    if (status == CUDNN_STATUS_SUCCESS) {
        status = c->set(pack, CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR, n, data);
    }
    if (status == CUDNN_STATUS_SUCCESS) {
        status = c->set(pack, CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, 1, &l->pool);
    }
    if (status == CUDNN_STATUS_SUCCESS) {
        status = c->finalize(pack);
    }
    if (status == CUDNN_STATUS_SUCCESS) {
        status = c->execute(g->handle, g->plan, pack);
    }
    if (pack != NULL) {
        (void)c->unmake(pack);
    }
    return status == CUDNN_STATUS_SUCCESS ? 0 : SHL_CUDA_STATUS_DNN + (int)status;
}

void
shl_cuda_dnn_graph_close(shl_cuda_dnn_graph *g)
{
    while (g->parts > 0) {
        (void)g->calls->unmake(g->part[--g->parts]);
    }
    g->plan = NULL;
}

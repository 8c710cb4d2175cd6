/* kernels/ops: runs op cases: fills tensors, computes the reference, calls the op, compares. */
#include "kernels/ops/op_cases.h"

#include <math.h>
#include <string.h>

#include "kernels/base/half.h"
#include "kernels/base/heap.h"
#include "kernels/base/rng.h"
#include "kernels/ops/op_prepare.h"

#define BLOCK_ELEMS 65536 /* elements uploaded at once */

/* What an output holds before the op: an element left alone shows. */
#define POISON 1e30

double
shl_op_run_round(const shl_op_operand *o, double x)
{
    shl_dtype dtype = o->tensor.dtype;
    return shl_dtype_is_float(dtype) ? (double)shl_float_round(dtype, (float)x) : 0.0;
}

/* Elements that lie in memory, and the place of one among the values; -1 between rows. */
static int64_t
stored_elems(const shl_op_operand *o)
{
    return o->stride > 0 ? o->tensor.dims[0] * o->stride : shl_tensor_elems(&o->tensor);
}

static int64_t
place_of(const shl_op_operand *o, int64_t at)
{
    int64_t cols = o->tensor.dims[1];
    if (o->stride == 0) {
        return at;
    }
    return at % o->stride < cols ? at / o->stride * cols + at % o->stride : -1;
}

size_t
shl_op_operand_bytes(const shl_op_operand *o)
{
    return (size_t)stored_elems(o) * shl_dtype_bytes(o->tensor.dtype);
}

static void
fill_values(const shl_op_run *run, const shl_op_operand *o, double std, double *value)
{
    int64_t n = shl_tensor_elems(&o->tensor);
    uint64_t stream = shl_rng_stream(o->name);
    for (int64_t i = 0; i < n; i++) {
        float z = shl_rng_normal(run->seed, stream, (uint64_t)i);
        value[i] = o->role == SHL_ROLE_OUT ? POISON : (double)((float)std * z);
        value[i] = shl_op_run_round(o, value[i]);
    }
}

static shl_op_operand *
add(shl_op_run *run, shl_code *code, const char *name, shl_op_role role, shl_tensor t, double std,
    int64_t stride)
{
    SHL_ASSERT(run->n_operands < SHL_CASE_MAX_OPERANDS);
    shl_op_operand *o = &run->operands[run->n_operands++];
    o->name = name;
    o->role = role;
    o->tensor = t;
    o->stride = stride;
    o->abs_tol = 3e-6;
    if (*code != SHL_OK) {
        return o;
    }
    size_t elem = shl_dtype_bytes(t.dtype), n = (size_t)shl_tensor_elems(&t);
    size_t bytes = shl_op_operand_bytes(o) + (size_t)run->offset * elem;
    *code = shl_device_alloc(run->device, bytes, SHL_TIER_DEVICE, SHL_TAG_ACT, 0, name, &o->buf);
    o->tensor.data = *code == SHL_OK ? (char *)o->buf.data + (size_t)run->offset * elem : NULL;
    if (*code == SHL_OK && run->values) {
        *code = shl_heap_alloc(n, sizeof(double), &o->value);
    }
    if (*code == SHL_OK && run->values && role != SHL_ROLE_IN) {
        *code = shl_heap_alloc(n, sizeof(double), &o->want);
    }
    if (*code == SHL_OK && run->values) {
        fill_values(run, o, std, o->value);
        if (role == SHL_ROLE_INOUT) {
            memcpy(o->want, o->value, n * sizeof(double));
        }
    }
    return o;
}

shl_op_operand *
shl_op_run_add(shl_op_run *run, shl_code *code, const char *name, shl_op_role role, shl_tensor t,
               double std)
{
    return add(run, code, name, role, t, std, 0);
}

shl_op_operand *
shl_op_run_add_rows(shl_op_run *run, shl_code *code, const char *name, shl_op_role role,
                    shl_tensor t, double std)
{
    int64_t cols = t.dims[1], stride = 0;
    if (has(run, SHL_CASE_STRIDE)) {
        stride = shl_round_up(cols, 8) + 8; /* more than what alignment would ask for */
    } else if (has(run, SHL_CASE_SPEED)) {
        stride = shl_device_row_stride(run->device, t.dtype, cols);
    }
    return add(run, code, name, role, t, std, stride);
}

/* One block of what lies in memory of o, from its exact values; or, for timing, of cheap ones. */
static void
make_block(const shl_op_operand *o, int64_t begin, int64_t n, void *block)
{
    shl_dtype dtype = o->tensor.dtype;
    for (int64_t i = 0; i < n; i++) {
        int64_t place = place_of(o, begin + i);
        double v = place < 0 ? (double)NAN : o->value != NULL ? o->value[place] : 0.0;
        double cheap = shl_dtype_is_float(dtype) ? (double)((i * 7919) % 2003 - 1001) * 2e-3 : 0.0;
        v = o->value != NULL ? v : cheap;
        if (shl_dtype_is_float(dtype)) {
            shl_float_put(dtype, block, i, (float)v);
        } else if (dtype == SHL_F64) {
            ((double *)block)[i] = v;
        } else if (dtype == SHL_I32) {
            ((int32_t *)block)[i] = o->value != NULL ? (int32_t)v : (int32_t)(i % 1000);
        } else {
            ((int64_t *)block)[i] = (int64_t)v;
        }
    }
}

shl_code
shl_op_run_reset(shl_op_run *run)
{
    void *block = NULL;
    shl_code code = SHL_OK;
    SHL_TRY(shl_heap_alloc(BLOCK_ELEMS, sizeof(double), &block));
    for (int k = 0; k < run->n_operands; k++) {
        const shl_op_operand *o = &run->operands[k];
        int64_t n = stored_elems(o);
        for (int64_t i = 0; i < n; i += BLOCK_ELEMS) {
            int64_t m = n - i < BLOCK_ELEMS ? n - i : BLOCK_ELEMS;
            if (o->value != NULL || i == 0) { /* cheap ones are the same in every block */
                make_block(o, i, m, block);
            }
            SHL_TRY_TO(code, out,
                       shl_device_upload(run->device,
                                         shl_elem_ptr(o->tensor.data, o->tensor.dtype, i), block,
                                         (size_t)m * shl_dtype_bytes(o->tensor.dtype)));
        }
    }
out:
    shl_heap_free(&block);
    return code;
}

shl_code
shl_op_run_open(shl_device *d, const shl_op_case *c, uint64_t seed, int64_t offset,
                shl_op_run **out)
{
    shl_op_run *run = NULL;
    shl_code code = SHL_OK;
    *out = NULL;
    SHL_TRY(shl_heap_alloc(1, sizeof(*run), &run));
    run->c = c;
    run->device = d;
    run->seed = seed;
    run->offset = offset;
    run->values = d->caps.has_bytes && (c->flags & SHL_CASE_SPEED) == 0;
    SHL_TRY_TO(code, out, shl_op_run_prepare(run));
    SHL_TRY_TO(code, out, shl_op_run_reset(run));
    *out = run;
    return SHL_OK;
out:
    shl_op_run_close(&run);
    return code;
}

void
shl_op_run_close(shl_op_run **run)
{
    if (*run == NULL) {
        return;
    }
    for (int k = 0; k < (*run)->n_operands; k++) {
        shl_op_operand *o = &(*run)->operands[k];
        shl_device_free((*run)->device, &o->buf);
        shl_heap_free(&o->value);
        shl_heap_free(&o->want);
    }
    shl_heap_free(run);
}

shl_code
shl_op_run_call(shl_op_run *run)
{
    shl_stream *s = shl_device_stream(run->device, SHL_STREAM_COMPUTE);
    const shl_op_any_args *a = &run->args;
    switch (run->c->op) {
    case SHL_OP_LINEAR_FORWARD:
        return shl_op_linear_forward(s, &a->linear);
    case SHL_OP_LINEAR_BACKWARD_INPUT:
        return shl_op_linear_backward_input(s, &a->linear);
    case SHL_OP_LINEAR_BACKWARD_WEIGHT:
        return shl_op_linear_backward_weight(s, &a->linear);
    case SHL_OP_LAYERNORM_FORWARD:
        return shl_op_layernorm_forward(s, &a->layernorm);
    case SHL_OP_LAYERNORM_BACKWARD:
        return shl_op_layernorm_backward(s, &a->layernorm);
    case SHL_OP_GELU_FORWARD:
        return shl_op_gelu_forward(s, &a->gelu);
    case SHL_OP_GELU_BACKWARD:
        return shl_op_gelu_backward(s, &a->gelu);
    case SHL_OP_EMBEDDING_FORWARD:
        return shl_op_embedding_forward(s, &a->embedding);
    case SHL_OP_EMBEDDING_BACKWARD:
        return shl_op_embedding_backward(s, &a->embedding);
    case SHL_OP_ATTENTION_FORWARD:
        return shl_op_attention_forward(s, &a->attention);
    case SHL_OP_ATTENTION_BACKWARD:
        return shl_op_attention_backward(s, &a->attention);
    case SHL_OP_ADD:
        return shl_op_add(s, &a->add);
    case SHL_OP_SCALE:
        return shl_op_scale(s, &a->scale);
    case SHL_OP_CROSS_ENTROPY:
        return shl_op_cross_entropy(s, &a->loss);
    case SHL_OP_ADAMW:
        return shl_op_adamw(s, &a->adamw);
    case SHL_OP_NORM_MAX:
        return shl_op_norm_max(s, &a->norm);
    case SHL_OP_NORM_SUM:
        return shl_op_norm_sum(s, &a->norm);
    case SHL_OP_SUM_RANKS:
        return shl_op_sum_ranks(s, &a->sum);
    case SHL_OP_INIT:
        return shl_op_init(s, &a->init);
    case SHL_OP_RMSNORM_FORWARD:
        return shl_op_rmsnorm_forward(s, &a->rmsnorm);
    case SHL_OP_RMSNORM_BACKWARD:
        return shl_op_rmsnorm_backward(s, &a->rmsnorm);
    case SHL_OP_ROPE:
        return shl_op_rope(s, &a->rope);
    case SHL_OP_SILU_MUL_FORWARD:
        return shl_op_silu_mul_forward(s, &a->silu);
    case SHL_OP_SILU_MUL_BACKWARD:
        return shl_op_silu_mul_backward(s, &a->silu);
    case SHL_OP_DROPOUT:
        return shl_op_dropout(s, &a->dropout);
    case SHL_OP_CAST:
        return shl_op_cast(s, &a->cast.dst, &a->cast.src);
    case SHL_OP_OPTIM:
        return shl_op_optim(s, &a->optim);
    case SHL_OP_COUNT:
        break;
    }
    return SHL_RAISE(SHL_E_BUG, "an op case names no op");
}

static double
element(const void *data, shl_dtype dtype, int64_t i)
{
    if (shl_dtype_is_float(dtype)) {
        return (double)shl_float_at(dtype, data, i);
    }
    if (dtype == SHL_F64) {
        return ((const double *)data)[i];
    }
    return dtype == SHL_I32 ? (double)((const int32_t *)data)[i]
                            : (double)((const int64_t *)data)[i];
}

/* Half a unit in the last place of x in dtype: what its rounding may add; fp32 has it in abs_tol. */
static double
rounding_of(shl_dtype dtype, double x)
{
    if (dtype == SHL_BF16 || dtype == SHL_F16) {
        int exponent = ilogb(fmax(fabs(x), dtype == SHL_BF16 ? 0x1p-126 : 0x1p-14));
        return ldexp(0.5, exponent - (dtype == SHL_BF16 ? 7 : 10));
    }
    return 0.0;
}

/* Whether all that lies between rows is the NaN that was put there, to the bit. */
static shl_code
compare_gaps(const shl_op_run *run, const shl_op_operand *o, const char *got)
{
    size_t elem = shl_dtype_bytes(o->tensor.dtype);
    float poison = 0.0f; /* room for an element of any float type */
    if (o->stride == 0) {
        return SHL_OK;
    }
    shl_float_put(o->tensor.dtype, &poison, 0, NAN);
    for (int64_t i = 0; i < stored_elems(o); i++) {
        if (place_of(o, i) < 0 && memcmp(got + (size_t)i * elem, &poison, elem) != 0) {
            (void)SHL_RAISE(SHL_E_VERIFY, "%s: %s was written between its rows", run->c->name,
                            o->name);
            return shl_err_because("element %ld, with %ld columns and %ld between rows", (long)i,
                                   (long)o->tensor.dims[1], (long)o->stride);
        }
    }
    return SHL_OK;
}

/* Compares n downloaded elements of o; raises *worst. */
static shl_code
compare(const shl_op_run *run, const shl_op_operand *o, const void *got, double *worst)
{
    int64_t n = shl_tensor_elems(&o->tensor);
    double largest = 0.0;
    for (int64_t i = 0; i < n; i++) {
        largest = fmax(largest, fabs(o->want[i]));
    }
    for (int64_t i = 0; i < n; i++) {
        int64_t cols = o->tensor.dims[1], at = o->stride > 0 ? i / cols * o->stride + i % cols : i;
        double g = element(got, o->tensor.dtype, at), want = o->want[i];
        bool exact = o->abs_tol <= 0.0 && o->rel_tol <= 0.0;
        want = exact && shl_dtype_is_float(o->tensor.dtype) ? shl_op_run_round(o, want) : want;
        double allowed = o->abs_tol * largest + o->rel_tol * fabs(want);
        allowed += exact ? 0.0 : rounding_of(o->tensor.dtype, fmax(fabs(g), fabs(want)));
        double part = g == want ? 0.0 : fabs(g - want) / allowed;
        *worst = fmax(*worst, part);
        if (!(part <= 1.0)) {
            (void)SHL_RAISE(SHL_E_VERIFY, "%s: %s[%ld] is %.9g, not %.9g", run->c->name, o->name,
                            (long)i, g, want);
            return shl_err_because("the difference is %.3g times what is allowed", part);
        }
    }
    return SHL_OK;
}

shl_code
shl_op_run_check(const shl_op_run *run, double *worst)
{
    double most = 0.0;
    for (int k = 0; k < run->n_operands; k++) {
        const shl_op_operand *o = &run->operands[k];
        if (o->want == NULL && o->stride == 0) {
            continue;
        }
        void *got = NULL;
        size_t bytes = shl_op_operand_bytes(o);
        SHL_TRY(shl_heap_alloc(bytes, 1, &got));
        shl_code code = shl_device_download(run->device, got, o->tensor.data, bytes);
        code = code == SHL_OK ? compare_gaps(run, o, got) : code;
        code = code == SHL_OK && o->want != NULL ? compare(run, o, got, &most) : code;
        shl_heap_free(&got);
        SHL_TRY(code);
    }
    if (worst != NULL) {
        *worst = most;
    }
    return SHL_OK;
}

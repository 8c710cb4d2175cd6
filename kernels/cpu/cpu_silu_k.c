/* kernels/cpu: y = silu(gate) * up (Shazeer 2020) and its backward, row by row through strides.
 * 1 - sigmoid is formed as exp(-x) sigmoid, which has no cancellation. */
#include "kernels/cpu/cpu_simd.h"
#include "kernels/cpu/cpu_slots.h"

static inline vf
silu_mul(vf gate, vf up)
{
    return gate / (vexp(-gate) + 1.0f) * up;
}

/* silu' = s + x s (1 - s). */
static inline void
silu_mul_slopes(vf *gate, vf *up, vf dy)
{
    vf e = vexp(-*gate);
    vf s = 1.0f / (e + 1.0f);
    vf slope = s * vfma(*gate, e * s, vdup(1.0f));
    vf dup = dy * (*gate / (e + 1.0f));
    *gate = dy * *up * slope;
    *up = dup;
}

shl_code
SHL_K(shl_cpu_silu_mul_forward)(shl_stream *s, const void *args, void *work)
{
    const shl_silu_mul_args *a = args;
    SHL_UNUSED(work);
    SHL_TRY(cpu_need_f32(a->dtype, SHL_OP_SILU_MUL_FORWARD));
    int64_t n = a->cols;
    int threads = cpu_threads(s, a->rows * n);
    SHL_PARALLEL_FOR(threads)
    for (int64_t row = 0; row < a->rows; row++) {
        const float *gate = (const float *)a->gate + row * a->stride;
        const float *up = (const float *)a->up + row * a->stride;
        float *y = (float *)a->y + row * n;
        int64_t i = 0;
        for (; i + VL <= n; i += VL) {
            vstore(y + i, silu_mul(vload(gate + i), vload(up + i)));
        }
        if (i < n) {
            vstore_n(y + i, silu_mul(vload_n(gate + i, n - i), vload_n(up + i, n - i)), n - i);
        }
    }
    return SHL_OK;
}

shl_code
SHL_K(shl_cpu_silu_mul_backward)(shl_stream *s, const void *args, void *work)
{
    const shl_silu_mul_args *a = args;
    SHL_UNUSED(work);
    SHL_TRY(cpu_need_f32(a->dtype, SHL_OP_SILU_MUL_BACKWARD));
    int64_t n = a->cols;
    int threads = cpu_threads(s, a->rows * n);
    SHL_PARALLEL_FOR(threads)
    for (int64_t row = 0; row < a->rows; row++) {
        int64_t at = row * a->stride;
        const float *gate = (const float *)a->gate + at, *up = (const float *)a->up + at;
        const float *dy = (const float *)a->dy + row * n;
        float *dgate = (float *)a->dgate + at, *dup = (float *)a->dup + at;
        int64_t i = 0;
        for (; i + VL <= n; i += VL) {
            vf g = vload(gate + i), u = vload(up + i);
            silu_mul_slopes(&g, &u, vload(dy + i));
            vstore(dgate + i, g);
            vstore(dup + i, u);
        }
        if (i < n) {
            vf g = vload_n(gate + i, n - i), u = vload_n(up + i, n - i);
            silu_mul_slopes(&g, &u, vload_n(dy + i, n - i));
            vstore_n(dgate + i, g, n - i);
            vstore_n(dup + i, u, n - i);
        }
    }
    return SHL_OK;
}

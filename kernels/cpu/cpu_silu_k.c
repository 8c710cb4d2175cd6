/* kernels/cpu: y = silu(gate) * up (Shazeer 2020) and its backward, row by row through strides.
 * 1 - sigmoid is formed as exp(-x) sigmoid, which has no cancellation. */
#include "kernels/cpu/cpu_slots.h"
#include "kernels/cpu/cpu_typed.h"

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

static inline CPU_ALWAYS void
forward_row_as(shl_dtype t, const shl_silu_mul_args *a, int64_t row)
{
    int64_t n = a->cols, at = row * a->stride, i = 0;
    for (; i + VL <= n; i += VL) {
        vf y = silu_mul(vload_as(t, a->gate, at + i), vload_as(t, a->up, at + i));
        vstore_as(t, a->y, row * n + i, y);
    }
    if (i < n) {
        int64_t m = n - i;
        vf y = silu_mul(vload_as_n(t, a->gate, at + i, m), vload_as_n(t, a->up, at + i, m));
        vstore_as_n(t, a->y, row * n + i, y, m);
    }
}

static inline CPU_ALWAYS void
backward_row_as(shl_dtype t, const shl_silu_mul_args *a, int64_t row)
{
    int64_t n = a->cols, at = row * a->stride, i = 0;
    for (; i + VL <= n; i += VL) {
        vf g = vload_as(t, a->gate, at + i), u = vload_as(t, a->up, at + i);
        silu_mul_slopes(&g, &u, vload_as(t, a->dy, row * n + i));
        vstore_as(t, a->dgate, at + i, g);
        vstore_as(t, a->dup, at + i, u);
    }
    if (i < n) {
        int64_t m = n - i;
        vf g = vload_as_n(t, a->gate, at + i, m), u = vload_as_n(t, a->up, at + i, m);
        silu_mul_slopes(&g, &u, vload_as_n(t, a->dy, row * n + i, m));
        vstore_as_n(t, a->dgate, at + i, g, m);
        vstore_as_n(t, a->dup, at + i, u, m);
    }
}

static inline CPU_ALWAYS void
one_row_as(shl_dtype t, const shl_silu_mul_args *a, int64_t row, bool backward)
{
    if (backward) {
        backward_row_as(t, a, row);
    } else {
        forward_row_as(t, a, row);
    }
}

static void
all_rows(shl_stream *s, const shl_silu_mul_args *a, bool backward)
{
    int threads = cpu_threads(s, a->rows * a->cols);
    SHL_PARALLEL_FOR(threads)
    for (int64_t row = 0; row < a->rows; row++) {
        if (a->dtype == SHL_F32) {
            one_row_as(SHL_F32, a, row, backward);
        } else if (a->dtype == SHL_BF16) {
            one_row_as(SHL_BF16, a, row, backward);
        } else {
            one_row_as(SHL_F16, a, row, backward);
        }
    }
}

shl_code
SHL_K(shl_cpu_silu_mul_forward)(shl_stream *s, const void *args, void *work)
{
    SHL_UNUSED(work);
    all_rows(s, args, false);
    return SHL_OK;
}

shl_code
SHL_K(shl_cpu_silu_mul_backward)(shl_stream *s, const void *args, void *work)
{
    SHL_UNUSED(work);
    all_rows(s, args, true);
    return SHL_OK;
}

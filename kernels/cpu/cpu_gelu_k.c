/* kernels/cpu: GELU, tanh form (Hendrycks & Gimpel 2016), written as x * sigmoid(z):
 * z = 2 sqrt(2/pi) (x + 0.044715 x^3), which has no cancellation where the value is near zero. */
#include "kernels/cpu/cpu_slots.h"
#include "kernels/cpu/cpu_typed.h"

#define GELU_A 1.5957691216057308   /* 2 sqrt(2/pi) */
#define GELU_B 0.071354816272600248 /* 0.044715 GELU_A */

/* exp(-z) = 2^n exp(r): z up to 87 in float would cost the result log2(87) bits, so z and r are
 * formed in double. |x| <= 10. */
static inline void
gelu_half(vd x, vd *r, vd *n)
{
    const double magic = 6755399441055744.0; /* 1.5 * 2^52 */
    vd minus_z = x * vd_fma(x * x, vd_dup(-GELU_B), vd_dup(-GELU_A));
    vd t = vd_fma(minus_z, vd_dup(1.4426950408889634), vd_dup(magic));
    *n = t - magic;
    *r = vd_fma(*n, vd_dup(-0.69314718055994531), minus_z);
}

static inline vf
gelu_exp_neg(vf x)
{
    vd r0, r1, n0, n1;
    gelu_half(vd_low(x), &r0, &n0);
    gelu_half(vd_high(x), &r1, &n1);
    return vexp_parts(vd_join(r0, r1), vd_join(n0, n1) + EXP_MAGIC);
}

/* Beyond |x| = 10 the sigmoid is 0 or 1 to the last bit of a float's range. */
static inline vf
gelu_clamp(vf x)
{
    return vmin(vdup(10.0f), vmax(vdup(-10.0f), x));
}

static inline vf
gelu(vf x)
{
    return x / (gelu_exp_neg(gelu_clamp(x)) + 1.0f);
}

/* y' = s + x z' s (1 - s), with 1 - s = e s. */
static inline vf
gelu_slope(vf x)
{
    vf xc = gelu_clamp(x);
    vf e = gelu_exp_neg(xc);
    vf s = 1.0f / (e + 1.0f);
    vf xdz = xc * vfma(xc * xc, vdup((float)(3.0 * GELU_B)), vdup((float)GELU_A));
    return s * vfma(xdz, e * s, vdup(1.0f));
}

static inline CPU_ALWAYS void
gelu_range(shl_dtype dt, const shl_gelu_args *a, int64_t begin, int64_t end)
{
    const void *x = a->x.data;
    void *y = a->y.data;
    int64_t i = begin;
    for (; i + VL <= end; i += VL) {
        vstore_as(dt, y, i, gelu(vload_as(dt, x, i)));
    }
    if (i < end) {
        vstore_as_n(dt, y, i, gelu(vload_as_n(dt, x, i, end - i)), end - i);
    }
}

shl_code
SHL_K(shl_cpu_gelu_forward)(shl_stream *s, const void *args, void *work)
{
    const shl_gelu_args *a = args;
    SHL_UNUSED(work);
    int64_t n = shl_tensor_elems(&a->x);
    int threads = cpu_threads(s, n);
    SHL_PARALLEL_FOR(threads)
    for (int64_t begin = 0; begin < n; begin += CPU_CHUNK) {
        CPU_BY_DTYPE(a->x.dtype, gelu_range(DT, a, begin, cpu_chunk_end(begin, n)));
    }
    return SHL_OK;
}

static inline CPU_ALWAYS void
gelu_range_backward(shl_dtype dt, const shl_gelu_args *a, int64_t begin, int64_t end)
{
    const void *x = a->x.data, *dy = a->dy.data;
    void *dx = a->dx.data;
    int64_t i = begin;
    for (; i + VL <= end; i += VL) {
        vstore_as(dt, dx, i, vload_as(dt, dy, i) * gelu_slope(vload_as(dt, x, i)));
    }
    if (i < end) {
        int64_t n = end - i;
        vf g = vload_as_n(dt, dy, i, n) * gelu_slope(vload_as_n(dt, x, i, n));
        vstore_as_n(dt, dx, i, g, n);
    }
}

shl_code
SHL_K(shl_cpu_gelu_backward)(shl_stream *s, const void *args, void *work)
{
    const shl_gelu_args *a = args;
    SHL_UNUSED(work);
    int64_t n = shl_tensor_elems(&a->x);
    int threads = cpu_threads(s, n);
    SHL_PARALLEL_FOR(threads)
    for (int64_t begin = 0; begin < n; begin += CPU_CHUNK) {
        CPU_BY_DTYPE(a->x.dtype, gelu_range_backward(DT, a, begin, cpu_chunk_end(begin, n)));
    }
    return SHL_OK;
}

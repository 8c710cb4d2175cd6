/* kernels/cpu: fused softmax cross-entropy, in place. Three passes over an fp32 row that stays in
 * the cache (maximum, exponentials, scale) beat two passes with a second exponential. */
#include "kernels/cpu/cpu_slots.h"
#include "kernels/cpu/cpu_typed.h"

static inline CPU_ALWAYS float
row_max(shl_dtype dt, const void *x, int64_t n)
{
    vf best[4] = {V_DUP(-INFINITY), V_DUP(-INFINITY), V_DUP(-INFINITY), V_DUP(-INFINITY)};
    int64_t i = 0;
    for (; i + 4 * VL <= n; i += 4 * VL) {
        for (int j = 0; j < 4; j++) {
            best[j] = vmax(best[j], vload_as(dt, x, i + j * VL));
        }
    }
    for (; i + VL <= n; i += VL) {
        best[0] = vmax(best[0], vload_as(dt, x, i));
    }
    float top = vmax_lane(vmax(vmax(best[0], best[1]), vmax(best[2], best[3])));
    for (; i < n; i++) {
        float v = shl_float_at(dt, x, i);
        top = v > top ? v : top;
    }
    return top;
}

/* x = exp(x - top) where `store`; returns the sum: short runs in float, the runs in double. */
static inline CPU_ALWAYS double
row_exp(shl_dtype dt, void *x, int64_t n, float top, bool store)
{
    enum { RUN = 64 * VL };
    double total = 0.0;
    vf at = vdup(top);
    for (int64_t begin = 0; begin < n; begin += RUN) {
        int64_t end = begin + RUN < n ? begin + RUN : n;
        vf sum[2] = {{0}};
        int64_t i = begin;
        for (; i + 2 * VL <= end; i += 2 * VL) {
            vf e0 = vexp(vload_as(dt, x, i) - at), e1 = vexp(vload_as(dt, x, i + VL) - at);
            sum[0] += e0;
            sum[1] += e1;
            if (store) {
                vstore_as(dt, x, i, e0);
                vstore_as(dt, x, i + VL, e1);
            }
        }
        while (i < end) {
            int64_t m = end - i < VL ? end - i : VL;
            vf e = (vf)(vmask_n(m) & (vi)vexp(vload_as_n(dt, x, i, m) - at));
            sum[0] += e;
            if (store) {
                vstore_as_n(dt, x, i, e, m);
            }
            i += m;
        }
        total += (double)vsum(sum[0] + sum[1]);
    }
    return total;
}

static void
row_scale(float *x, int64_t n, float factor)
{
    for (int64_t i = 0; i < n; i++) {
        x[i] *= factor;
    }
}

/* x = exp(x - top) factor: in 16 bits the exponentials are formed again, because those of the sum
 * would lose their low bits in x. */
static inline CPU_ALWAYS void
row_slope(shl_dtype dt, void *x, int64_t n, float top, float factor)
{
    vf at = vdup(top), scale = vdup(factor);
    for (int64_t i = 0; i < n; i += VL) {
        int64_t m = n - i < VL ? n - i : VL;
        if (m == VL) {
            vstore_as(dt, x, i, vexp(vload_as(dt, x, i) - at) * scale);
        } else {
            vstore_as_n(dt, x, i, vexp(vload_as_n(dt, x, i, m) - at) * scale, m);
        }
    }
}

/* Loss of one row; turns it into its gradient when asked. */
static inline CPU_ALWAYS double
loss_row(shl_dtype dt, const shl_cross_entropy_args *a, int64_t row)
{
    int64_t n = a->logits.dims[1];
    void *x = shl_elem_ptr(a->logits.data, dt, row * shl_row_stride(a->stride, n));
    int32_t target = ((const int32_t *)a->targets.data)[row];
    if (target == SHL_IGNORE_INDEX) {
        if (a->want_grad) {
            memset(x, 0, (size_t)n * shl_dtype_bytes(dt));
        }
        return 0.0;
    }
    float top = row_max(dt, x, n), logit = shl_float_at(dt, x, target);
    double sum = row_exp(dt, x, n, top, a->want_grad && dt == SHL_F32);
    float factor = (float)((double)a->dloss / sum);
    if (a->want_grad && dt == SHL_F32) {
        row_scale(x, n, factor);
        ((float *)x)[target] -= a->dloss;
    } else if (a->want_grad) {
        row_slope(dt, x, n, top, factor);
        float slope = vexp(vdup(logit - top))[0] * factor - a->dloss;
        shl_float_put(dt, x, target, slope);
    }
    return log(sum) + ((double)top - (double)logit);
}

static shl_code
check_targets(const shl_cross_entropy_args *a)
{
    const int32_t *target = a->targets.data;
    for (int64_t r = 0; r < a->logits.dims[0]; r++) {
        bool inside = target[r] >= 0 && target[r] < a->logits.dims[1];
        if (!inside && target[r] != SHL_IGNORE_INDEX) {
            (void)SHL_RAISE(SHL_E_CONFIG, "target %ld is %d", (long)r, (int)target[r]);
            (void)shl_err_because("the vocabulary has %ld tokens", (long)a->logits.dims[1]);
            return shl_err_advice("use data that was made for this vocabulary");
        }
    }
    return SHL_OK;
}

shl_code
SHL_K(shl_cpu_cross_entropy)(shl_stream *s, const void *args, void *work)
{
    const shl_cross_entropy_args *a = args;
    SHL_TRY(check_targets(a));
    double *loss = work;
    int64_t rows = a->logits.dims[0];
    int threads = cpu_threads(s, shl_tensor_elems(&a->logits));
    SHL_PARALLEL_FOR(threads)
    for (int64_t row = 0; row < rows; row++) {
        CPU_BY_DTYPE(a->logits.dtype, loss[row] = loss_row(DT, a, row));
    }
    double *sum = a->loss_sum.data;
    for (int64_t row = 0; row < rows; row++) {
        *sum += loss[row];
    }
    return SHL_OK;
}

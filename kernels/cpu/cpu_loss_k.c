/* kernels/cpu: fused softmax cross-entropy, in place. Three passes over a row that stays in the
 * cache (maximum, exponentials, scale) beat two passes with a second exponential. */
#include "kernels/cpu/cpu_simd.h"
#include "kernels/cpu/cpu_slots.h"

static float
row_max(const float *x, int64_t n)
{
    vf best[4] = {V_DUP(-INFINITY), V_DUP(-INFINITY), V_DUP(-INFINITY), V_DUP(-INFINITY)};
    int64_t i = 0;
    for (; i + 4 * VL <= n; i += 4 * VL) {
        for (int j = 0; j < 4; j++) {
            best[j] = vmax(best[j], vload(x + i + j * VL));
        }
    }
    for (; i + VL <= n; i += VL) {
        best[0] = vmax(best[0], vload(x + i));
    }
    float top = vmax_lane(vmax(vmax(best[0], best[1]), vmax(best[2], best[3])));
    for (; i < n; i++) {
        top = x[i] > top ? x[i] : top;
    }
    return top;
}

/* x = exp(x - top) where `store`; returns the sum: short runs in float, the runs in double. */
static double
row_exp(float *x, int64_t n, float top, bool store)
{
    enum { RUN = 64 * VL };
    double total = 0.0;
    vf at = vdup(top);
    for (int64_t begin = 0; begin < n; begin += RUN) {
        int64_t end = begin + RUN < n ? begin + RUN : n;
        vf sum[2] = {{0}};
        int64_t i = begin;
        for (; i + 2 * VL <= end; i += 2 * VL) {
            vf e0 = vexp(vload(x + i) - at), e1 = vexp(vload(x + i + VL) - at);
            sum[0] += e0;
            sum[1] += e1;
            if (store) {
                vstore(x + i, e0);
                vstore(x + i + VL, e1);
            }
        }
        while (i < end) {
            int64_t m = end - i < VL ? end - i : VL;
            vf e = (vf)(vmask_n(m) & (vi)vexp(vload_n(x + i, m) - at));
            sum[0] += e;
            if (store) {
                vstore_n(x + i, e, m);
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

/* Loss of one row; turns it into its gradient when asked. */
static double
loss_row(const shl_cross_entropy_args *a, int64_t row)
{
    int64_t n = a->logits.dims[1];
    float *x = (float *)a->logits.data + row * n;
    int32_t target = ((const int32_t *)a->targets.data)[row];
    if (target == SHL_IGNORE_INDEX) {
        if (a->want_grad) {
            memset(x, 0, (size_t)n * sizeof(float));
        }
        return 0.0;
    }
    float top = row_max(x, n), logit = x[target];
    double sum = row_exp(x, n, top, a->want_grad);
    if (a->want_grad) {
        row_scale(x, n, (float)((double)a->dloss / sum));
        x[target] -= a->dloss;
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
    SHL_TRY(cpu_need_f32(a->logits.dtype, SHL_OP_CROSS_ENTROPY));
    SHL_TRY(check_targets(a));
    double *loss = work;
    int64_t rows = a->logits.dims[0];
    int threads = cpu_threads(s, shl_tensor_elems(&a->logits));
    SHL_PARALLEL_FOR(threads)
    for (int64_t row = 0; row < rows; row++) {
        loss[row] = loss_row(a, row);
    }
    double *sum = a->loss_sum.data;
    for (int64_t row = 0; row < rows; row++) {
        *sum += loss[row];
    }
    return SHL_OK;
}

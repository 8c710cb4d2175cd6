/* kernels/cpu: root mean square normalisation (Zhang & Sennrich 2019), rows in parallel; the weight's
 * gradient is summed over fixed runs of rows, then the runs in order, whatever the threads. */
#include "kernels/cpu/cpu_simd.h"
#include "kernels/cpu/cpu_slots.h"
#include "kernels/ops/work.h"

/* Sum of squares of a row, four chains. */
static float
row_squares(const float *x, int64_t n)
{
    vf sum[4] = {{0}};
    int64_t i = 0;
    for (; i + 4 * VL <= n; i += 4 * VL) {
        for (int j = 0; j < 4; j++) {
            vf v = vload(x + i + j * VL);
            sum[j] = vfma(v, v, sum[j]);
        }
    }
    for (; i + VL <= n; i += VL) {
        vf v = vload(x + i);
        sum[0] = vfma(v, v, sum[0]);
    }
    if (i < n) {
        vf v = vload_n(x + i, n - i);
        sum[1] = vfma(v, v, sum[1]);
    }
    return vsum((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

static void
norm_row(const shl_rmsnorm_args *a, int64_t row)
{
    int64_t n = a->x.dims[1];
    const float *x = (const float *)a->x.data + row * n;
    const float *w = a->w.data;
    float *y = (float *)a->y.data + row * n;
    float rstd = 1.0f / sqrtf(row_squares(x, n) / (float)n + a->eps);
    ((float *)a->rstd.data)[row] = rstd;
    vf scale = vdup(rstd);
    int64_t i = 0;
    for (; i + VL <= n; i += VL) {
        vstore(y + i, vload(x + i) * scale * vload(w + i));
    }
    if (i < n) {
        int64_t m = n - i;
        vstore_n(y + i, vload_n(x + i, m) * scale * vload_n(w + i, m), m);
    }
}

shl_code
SHL_K(shl_cpu_rmsnorm_forward)(shl_stream *s, const void *args, void *work)
{
    const shl_rmsnorm_args *a = args;
    SHL_UNUSED(work);
    SHL_TRY(cpu_need_f32(a->x.dtype, SHL_OP_RMSNORM_FORWARD));
    int threads = cpu_threads(s, shl_tensor_elems(&a->x));
    SHL_PARALLEL_FOR(threads)
    for (int64_t row = 0; row < a->x.dims[0]; row++) {
        norm_row(a, row);
    }
    return SHL_OK;
}

/* Sum of dy w xhat over a row; dw, unless NULL, += dy xhat. */
static float
row_slopes(const float *x, const float *dy, const float *w, vf rstd, int64_t n, float *dw)
{
    vf dot[2] = {{0}};
    int64_t i = 0;
    for (; i + VL <= n; i += VL) {
        vf xhat = vload(x + i) * rstd, g = vload(dy + i);
        int j = (i / VL) & 1;
        dot[j] = vfma(g * vload(w + i), xhat, dot[j]);
        if (dw != NULL) {
            vstore(dw + i, vfma(g, xhat, vload(dw + i)));
        }
    }
    if (i < n) {
        int64_t m = n - i;
        vf xhat = vload_n(x + i, m) * rstd, g = vload_n(dy + i, m);
        dot[0] = vfma(g * vload_n(w + i, m), xhat, dot[0]);
        if (dw != NULL) {
            vstore_n(dw + i, vfma(g, xhat, vload_n(dw + i, m)), m);
        }
    }
    return vsum(dot[0] + dot[1]);
}

/* dx = rstd (g - xhat mean(g xhat)), g = dy w. */
static void
norm_row_backward(const shl_rmsnorm_args *a, int64_t row, float *dw)
{
    int64_t n = a->x.dims[1];
    const float *x = (const float *)a->x.data + row * n;
    const float *dy = (const float *)a->dy.data + row * n;
    const float *w = a->w.data;
    float *dx = (float *)a->dx.data + row * n;
    vf rstd = vdup(((const float *)a->rstd.data)[row]);
    vf mean = vdup(row_slopes(x, dy, w, rstd, n, dw) / (float)n);
    int64_t i = 0;
    for (; i + VL <= n; i += VL) {
        vf g = rstd * (vload(dy + i) * vload(w + i) - vload(x + i) * rstd * mean);
        vstore(dx + i, a->accumulate_dx ? vload(dx + i) + g : g);
    }
    if (i < n) {
        int64_t m = n - i;
        vf g = rstd * (vload_n(dy + i, m) * vload_n(w + i, m) - vload_n(x + i, m) * rstd * mean);
        vstore_n(dx + i, a->accumulate_dx ? vload_n(dx + i, m) + g : g, m);
    }
}

static void
add_runs(const float *partial, int64_t runs, int64_t n, bool accumulate, float *dw)
{
    for (int64_t c = 0; c < n; c++) {
        float w = 0.0f;
        for (int64_t run = 0; run < runs; run++) {
            w += partial[run * n + c];
        }
        dw[c] = accumulate ? dw[c] + w : w;
    }
}

shl_code
SHL_K(shl_cpu_rmsnorm_backward)(shl_stream *s, const void *args, void *work)
{
    const shl_rmsnorm_args *a = args;
    SHL_TRY(cpu_need_f32(a->x.dtype, SHL_OP_RMSNORM_BACKWARD));
    int64_t rows = a->x.dims[0], n = a->x.dims[1];
    int64_t run_rows = shl_work_layernorm_rows(rows);
    int64_t runs = shl_ceil_div(rows, run_rows);
    float *partial = a->dw.data != NULL ? work : NULL;
    int threads = cpu_threads(s, rows * n);
    SHL_PARALLEL_FOR(threads)
    for (int64_t run = 0; run < runs; run++) {
        float *dw = partial != NULL ? partial + run * n : NULL;
        if (dw != NULL) {
            memset(dw, 0, (size_t)n * sizeof(float));
        }
        int64_t end = (run + 1) * run_rows < rows ? (run + 1) * run_rows : rows;
        for (int64_t row = run * run_rows; row < end; row++) {
            norm_row_backward(a, row, dw);
        }
    }
    if (partial != NULL) {
        add_runs(partial, runs, n, a->accumulate, a->dw.data);
    }
    return SHL_OK;
}

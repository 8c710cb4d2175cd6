/* kernels/cpu: root mean square normalisation (Zhang & Sennrich 2019), rows in parallel; the weight's
 * gradient is summed over fixed runs of rows, then the runs in order, whatever the threads. */
#include "kernels/cpu/cpu_slots.h"
#include "kernels/cpu/cpu_typed.h"
#include "kernels/ops/work.h"

/* Sum of squares of a row, four chains. */
static inline CPU_ALWAYS float
row_squares(shl_dtype t, const void *x, int64_t n)
{
    vf sum[4] = {{0}};
    int64_t i = 0;
    for (; i + 4 * VL <= n; i += 4 * VL) {
        for (int j = 0; j < 4; j++) {
            vf v = vload_as(t, x, i + j * VL);
            sum[j] = vfma(v, v, sum[j]);
        }
    }
    for (; i + VL <= n; i += VL) {
        vf v = vload_as(t, x, i);
        sum[0] = vfma(v, v, sum[0]);
    }
    if (i < n) {
        vf v = vload_as_n(t, x, i, n - i);
        sum[1] = vfma(v, v, sum[1]);
    }
    return vsum((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

static inline CPU_ALWAYS void
norm_row_as(shl_dtype t, const shl_rmsnorm_args *a, int64_t row)
{
    int64_t n = a->x.dims[1];
    const void *x = shl_elem_ptr(a->x.data, t, row * n), *w = a->w.data;
    void *y = shl_elem_ptr(a->y.data, t, row * n);
    float rstd = 1.0f / sqrtf(row_squares(t, x, n) / (float)n + a->eps);
    ((float *)a->rstd.data)[row] = rstd;
    vf scale = vdup(rstd);
    int64_t i = 0;
    for (; i + VL <= n; i += VL) {
        vstore_as(t, y, i, vload_as(t, x, i) * scale * vload_as(t, w, i));
    }
    if (i < n) {
        int64_t m = n - i;
        vstore_as_n(t, y, i, vload_as_n(t, x, i, m) * scale * vload_as_n(t, w, i, m), m);
    }
}

static void
norm_row(const shl_rmsnorm_args *a, int64_t row)
{
    if (a->x.dtype == SHL_F32) {
        norm_row_as(SHL_F32, a, row);
    } else if (a->x.dtype == SHL_BF16) {
        norm_row_as(SHL_BF16, a, row);
    } else {
        norm_row_as(SHL_F16, a, row);
    }
}

shl_code
SHL_K(shl_cpu_rmsnorm_forward)(shl_stream *s, const void *args, void *work)
{
    const shl_rmsnorm_args *a = args;
    SHL_UNUSED(work);
    int threads = cpu_threads(s, shl_tensor_elems(&a->x));
    SHL_PARALLEL_FOR(threads)
    for (int64_t row = 0; row < a->x.dims[0]; row++) {
        norm_row(a, row);
    }
    return SHL_OK;
}

/* Sum of dy w xhat over a row; dw, unless NULL, += dy xhat. */
static inline CPU_ALWAYS float
row_slopes(shl_dtype t, const void *x, const void *dy, const void *w, vf rstd, int64_t n, float *dw)
{
    vf dot[2] = {{0}};
    int64_t i = 0;
    for (; i + VL <= n; i += VL) {
        vf xhat = vload_as(t, x, i) * rstd, g = vload_as(t, dy, i);
        int j = (i / VL) & 1;
        dot[j] = vfma(g * vload_as(t, w, i), xhat, dot[j]);
        if (dw != NULL) {
            vstore(dw + i, vfma(g, xhat, vload(dw + i)));
        }
    }
    if (i < n) {
        int64_t m = n - i;
        vf xhat = vload_as_n(t, x, i, m) * rstd, g = vload_as_n(t, dy, i, m);
        dot[0] = vfma(g * vload_as_n(t, w, i, m), xhat, dot[0]);
        if (dw != NULL) {
            vstore_n(dw + i, vfma(g, xhat, vload_n(dw + i, m)), m);
        }
    }
    return vsum(dot[0] + dot[1]);
}

/* dx = rstd (g - xhat mean(g xhat)), g = dy w. */
static inline CPU_ALWAYS void
norm_row_backward_as(shl_dtype t, const shl_rmsnorm_args *a, int64_t row, float *dw)
{
    int64_t n = a->x.dims[1];
    const void *x = shl_elem_ptr(a->x.data, t, row * n), *w = a->w.data;
    const void *dy = shl_elem_ptr(a->dy.data, t, row * n);
    void *dx = shl_elem_ptr(a->dx.data, t, row * n);
    vf rstd = vdup(((const float *)a->rstd.data)[row]);
    vf mean = vdup(row_slopes(t, x, dy, w, rstd, n, dw) / (float)n);
    int64_t i = 0;
    for (; i + VL <= n; i += VL) {
        vf g = vload_as(t, dy, i) * vload_as(t, w, i);
        g = rstd * (g - vload_as(t, x, i) * rstd * mean);
        vstore_as(t, dx, i, a->accumulate_dx ? vload_as(t, dx, i) + g : g);
    }
    if (i < n) {
        int64_t m = n - i;
        vf g = vload_as_n(t, dy, i, m) * vload_as_n(t, w, i, m);
        g = rstd * (g - vload_as_n(t, x, i, m) * rstd * mean);
        vstore_as_n(t, dx, i, a->accumulate_dx ? vload_as_n(t, dx, i, m) + g : g, m);
    }
}

static void
norm_row_backward(const shl_rmsnorm_args *a, int64_t row, float *dw)
{
    if (a->x.dtype == SHL_F32) {
        norm_row_backward_as(SHL_F32, a, row, dw);
    } else if (a->x.dtype == SHL_BF16) {
        norm_row_backward_as(SHL_BF16, a, row, dw);
    } else {
        norm_row_backward_as(SHL_F16, a, row, dw);
    }
}

static void
add_runs(const float *partial, int64_t runs, int64_t n, bool accumulate, const shl_tensor *dw)
{
    for (int64_t c = 0; c < n; c++) {
        float w = 0.0f;
        for (int64_t run = 0; run < runs; run++) {
            w += partial[run * n + c];
        }
        w = accumulate ? shl_float_at(dw->dtype, dw->data, c) + w : w;
        shl_float_put(dw->dtype, dw->data, c, w);
    }
}

shl_code
SHL_K(shl_cpu_rmsnorm_backward)(shl_stream *s, const void *args, void *work)
{
    const shl_rmsnorm_args *a = args;
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
        add_runs(partial, runs, n, a->accumulate, &a->dw);
    }
    return SHL_OK;
}

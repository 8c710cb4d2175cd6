/* kernels/cpu: layer normalisation (Ba et al. 2016), rows in parallel; weight gradients are summed
 * over fixed runs of rows, then the runs in order, whatever the threads. */
#include "kernels/cpu/cpu_slots.h"
#include "kernels/cpu/cpu_typed.h"
#include "kernels/ops/work.h"

/* Sum of (x - shift) over a row, four chains. */
static inline CPU_ALWAYS float
row_sum(shl_dtype dt, const void *x, int64_t n, float shift)
{
    vf sum[4] = {{0}};
    vf at = vdup(shift);
    int64_t i = 0;
    for (; i + 4 * VL <= n; i += 4 * VL) {
        for (int j = 0; j < 4; j++) {
            sum[j] += vload_as(dt, x, i + j * VL) - at;
        }
    }
    for (; i + VL <= n; i += VL) {
        sum[0] += vload_as(dt, x, i) - at;
    }
    if (i < n) {
        sum[1] += (vf)(vmask_n(n - i) & (vi)(vload_as_n(dt, x, i, n - i) - at));
    }
    return vsum((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

static inline CPU_ALWAYS float
row_square_sum(shl_dtype dt, const void *x, int64_t n, float mean)
{
    vf sum[4] = {{0}};
    vf at = vdup(mean);
    int64_t i = 0;
    for (; i + 4 * VL <= n; i += 4 * VL) {
        for (int j = 0; j < 4; j++) {
            vf d = vload_as(dt, x, i + j * VL) - at;
            sum[j] = vfma(d, d, sum[j]);
        }
    }
    for (; i + VL <= n; i += VL) {
        vf d = vload_as(dt, x, i) - at;
        sum[0] = vfma(d, d, sum[0]);
    }
    if (i < n) {
        vf d = (vf)(vmask_n(n - i) & (vi)(vload_as_n(dt, x, i, n - i) - at));
        sum[1] = vfma(d, d, sum[1]);
    }
    return vsum((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

/* y = (x - mean) rstd w + b. The second sum takes the rounding of the first out of the mean, which
 * matters where the mean is large against the spread. */
static inline CPU_ALWAYS void
norm_row(shl_dtype dt, const shl_layernorm_args *a, int64_t row)
{
    int64_t n = a->x.dims[1];
    const void *x = shl_elem_ptr(a->x.data, dt, row * n), *w = a->w.data, *b = a->b.data;
    void *y = shl_elem_ptr(a->y.data, dt, row * n);
    float mean = row_sum(dt, x, n, 0.0f) / (float)n;
    mean += row_sum(dt, x, n, mean) / (float)n;
    float rstd = 1.0f / sqrtf(row_square_sum(dt, x, n, mean) / (float)n + a->eps);
    ((float *)a->mean.data)[row] = mean;
    ((float *)a->rstd.data)[row] = rstd;
    vf vmean = vdup(mean), vrstd = vdup(rstd);
    int64_t i = 0;
    for (; i + VL <= n; i += VL) {
        vstore_as(
            dt, y, i,
            vfma((vload_as(dt, x, i) - vmean) * vrstd, vload_as(dt, w, i), vload_as(dt, b, i)));
    }
    if (i < n) {
        int64_t m = n - i;
        vf xhat = (vload_as_n(dt, x, i, m) - vmean) * vrstd;
        vstore_as_n(dt, y, i, vfma(xhat, vload_as_n(dt, w, i, m), vload_as_n(dt, b, i, m)), m);
    }
}

shl_code
SHL_K(shl_cpu_layernorm_forward)(shl_stream *s, const void *args, void *work)
{
    const shl_layernorm_args *a = args;
    SHL_UNUSED(work);
    int threads = cpu_threads(s, shl_tensor_elems(&a->x));
    SHL_PARALLEL_FOR(threads)
    for (int64_t row = 0; row < a->x.dims[0]; row++) {
        CPU_BY_DTYPE(a->x.dtype, norm_row(DT, a, row));
    }
    return SHL_OK;
}

/* One lane group of backward's first pass: dw, db of this run and the two row sums. */
static inline void
slope_lanes(vf x, vf dy, vf w, vf mean, vf rstd, vf *dw, vf *db, vf *sum, vf *dot)
{
    vf xhat = (x - mean) * rstd;
    vf g = dy * w;
    *dw = vfma(dy, xhat, *dw);
    *db += dy;
    *sum += g;
    *dot = vfma(g, xhat, *dot);
}

/* dx = rstd (g - mean(g) - xhat mean(g xhat)), g = dy w. */
static inline vf
dx_lanes(vf x, vf dy, vf w, vf mean, vf rstd, vf g_mean, vf gx_mean)
{
    vf xhat = (x - mean) * rstd;
    return rstd * (dy * w - g_mean - xhat * gx_mean);
}

static inline CPU_ALWAYS void
norm_row_backward(shl_dtype dt, const shl_layernorm_args *a, int64_t row, float *dw, float *db)
{
    int64_t n = a->x.dims[1];
    const void *x = shl_elem_ptr(a->x.data, dt, row * n), *w = a->w.data;
    const void *dy = shl_elem_ptr(a->dy.data, dt, row * n);
    void *dx = shl_elem_ptr(a->dx.data, dt, row * n);
    vf mean = vdup(((const float *)a->mean.data)[row]);
    vf rstd = vdup(((const float *)a->rstd.data)[row]);
    vf sum[2] = {{0}}, dot[2] = {{0}};
    int64_t i = 0;
    for (; i + VL <= n; i += VL) {
        int j = (i / VL) & 1;
        vf vw = vload(dw + i), vb = vload(db + i);
        slope_lanes(vload_as(dt, x, i), vload_as(dt, dy, i), vload_as(dt, w, i), mean, rstd, &vw,
                    &vb, &sum[j], &dot[j]);
        vstore(dw + i, vw);
        vstore(db + i, vb);
    }
    int64_t m = n - i;
    if (m > 0) {
        vf vw = vload_n(dw + i, m), vb = vload_n(db + i, m);
        slope_lanes(vload_as_n(dt, x, i, m), vload_as_n(dt, dy, i, m), vload_as_n(dt, w, i, m),
                    mean, rstd, &vw, &vb, &sum[0], &dot[0]);
        vstore_n(dw + i, vw, m);
        vstore_n(db + i, vb, m);
    }
    vf g_mean = vdup(vsum(sum[0] + sum[1]) / (float)n);
    vf gx_mean = vdup(vsum(dot[0] + dot[1]) / (float)n);
    for (i = 0; i + VL <= n; i += VL) {
        vf g = dx_lanes(vload_as(dt, x, i), vload_as(dt, dy, i), vload_as(dt, w, i), mean, rstd,
                        g_mean, gx_mean);
        vstore_as(dt, dx, i, a->accumulate_dx ? vload_as(dt, dx, i) + g : g);
    }
    if (m > 0) {
        vf g = dx_lanes(vload_as_n(dt, x, i, m), vload_as_n(dt, dy, i, m), vload_as_n(dt, w, i, m),
                        mean, rstd, g_mean, gx_mean);
        vstore_as_n(dt, dx, i, a->accumulate_dx ? vload_as_n(dt, dx, i, m) + g : g, m);
    }
}

static inline CPU_ALWAYS void
add_runs(shl_dtype dt, const float *partial, int64_t runs, int64_t n, bool accumulate, void *dw,
         void *db)
{
    for (int64_t c = 0; c < n; c++) {
        float w = 0.0f, b = 0.0f;
        for (int64_t run = 0; run < runs; run++) {
            w += partial[run * 2 * n + c];
            b += partial[run * 2 * n + n + c];
        }
        shl_float_put(dt, dw, c, accumulate ? shl_float_at(dt, dw, c) + w : w);
        shl_float_put(dt, db, c, accumulate ? shl_float_at(dt, db, c) + b : b);
    }
}

shl_code
SHL_K(shl_cpu_layernorm_backward)(shl_stream *s, const void *args, void *work)
{
    const shl_layernorm_args *a = args;
    int64_t rows = a->x.dims[0], n = a->x.dims[1];
    int64_t run_rows = shl_work_layernorm_rows(rows);
    int64_t runs = shl_ceil_div(rows, run_rows);
    float *partial = work;
    int threads = cpu_threads(s, rows * n);
    SHL_PARALLEL_FOR(threads)
    for (int64_t run = 0; run < runs; run++) {
        float *dw = partial + run * 2 * n, *db = dw + n;
        memset(dw, 0, (size_t)(2 * n) * sizeof(float));
        int64_t end = (run + 1) * run_rows < rows ? (run + 1) * run_rows : rows;
        for (int64_t row = run * run_rows; row < end; row++) {
            CPU_BY_DTYPE(a->x.dtype, norm_row_backward(DT, a, row, dw, db));
        }
    }
    CPU_BY_DTYPE(a->dw.dtype,
                 add_runs(DT, partial, runs, n, a->accumulate, a->dw.data, a->db.data));
    return SHL_OK;
}

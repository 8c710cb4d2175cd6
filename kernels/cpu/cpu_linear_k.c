/* kernels/cpu: linear layers over oneDNN's row-major sgemm; bias and its gradient are ours.
 * y = x W + b, dx = dy W^T, dW = x^T dy, db = column sums of dy. */
#include "kernels/cpu/cpu_simd.h"
#include "kernels/cpu/cpu_slots.h"

#include <dnnl.h>

/* C[m,n] = (add ? C : 0) + op(A)[m,k] op(B)[k,n]; the library takes its threads from OpenMP. */
static shl_code
gemm(const shl_stream *s, char ta, char tb, int64_t m, int64_t n, int64_t k, const float *a,
     int64_t lda, const float *b, int64_t ldb, bool add, float *c, int64_t ldc)
{
#if defined(_OPENMP)
    if (omp_get_max_threads() != s->device->config.threads) {
        omp_set_num_threads(s->device->config.threads);
    }
#else
    SHL_UNUSED(s);
#endif
    dnnl_status_t st = dnnl_sgemm(ta, tb, m, n, k, 1.0f, a, lda, b, ldb, add ? 1.0f : 0.0f, c, ldc);
    if (st != dnnl_success) {
        return SHL_RAISE(SHL_E_SYSTEM, "dnnl_sgemm failed with status %d", (int)st);
    }
    return SHL_OK;
}

static void
add_bias(const shl_stream *s, float *y, const float *b, int64_t rows, int64_t cols)
{
    int threads = cpu_threads(s, rows * cols);
    SHL_PARALLEL_FOR(threads)
    for (int64_t r = 0; r < rows; r++) {
        float *row = y + r * cols;
        for (int64_t c = 0; c < cols; c++) {
            row[c] += b[c];
        }
    }
}

enum { SUM_VECS = 4, SUM_WIDTH = SUM_VECS * VL, SUM_RUN = 64 };

/* total[c] = sum over rows of SUM_WIDTH or (n) fewer columns: runs of 64 rows, then the runs in
 * order. Both shapes add the same numbers in the same order. */
static void
sum_wide(const float *dy, int64_t rows, int64_t cols, float *total)
{
    vf sum[SUM_VECS] = {{0}};
    for (int64_t r0 = 0; r0 < rows; r0 += SUM_RUN) {
        int64_t r1 = r0 + SUM_RUN < rows ? r0 + SUM_RUN : rows;
        vf run[SUM_VECS] = {{0}};
        for (int64_t r = r0; r < r1; r++) {
            for (int j = 0; j < SUM_VECS; j++) {
                run[j] += vload(dy + r * cols + j * VL);
            }
        }
        for (int j = 0; j < SUM_VECS; j++) {
            sum[j] += run[j];
        }
    }
    for (int j = 0; j < SUM_VECS; j++) {
        vstore(total + j * VL, sum[j]);
    }
}

static void
sum_narrow(const float *dy, int64_t rows, int64_t cols, int64_t n, float *total)
{
    for (int64_t c = 0; c < n; c++) {
        total[c] = 0.0f;
        for (int64_t r0 = 0; r0 < rows; r0 += SUM_RUN) {
            int64_t r1 = r0 + SUM_RUN < rows ? r0 + SUM_RUN : rows;
            float run = 0.0f;
            for (int64_t r = r0; r < r1; r++) {
                run += dy[r * cols + c];
            }
            total[c] += run;
        }
    }
}

/* db (+)= column sums of dy; a thread owns columns. */
static void
sum_columns(const shl_stream *s, const float *dy, float *db, int64_t rows, int64_t cols, bool add)
{
    int threads = cpu_threads(s, rows * cols);
    SHL_PARALLEL_FOR(threads)
    for (int64_t c0 = 0; c0 < cols; c0 += SUM_WIDTH) {
        int64_t n = cols - c0 < SUM_WIDTH ? cols - c0 : SUM_WIDTH;
        float total[SUM_WIDTH];
        if (n == SUM_WIDTH) {
            sum_wide(dy + c0, rows, cols, total);
        } else {
            sum_narrow(dy + c0, rows, cols, n, total);
        }
        for (int64_t c = 0; c < n; c++) {
            db[c0 + c] = add ? db[c0 + c] + total[c] : total[c];
        }
    }
}

shl_code
SHL_K(shl_cpu_linear_forward)(shl_stream *s, const void *args, void *work)
{
    const shl_linear_args *a = args;
    SHL_UNUSED(work);
    SHL_TRY(cpu_need_f32(a->x.dtype, SHL_OP_LINEAR_FORWARD));
    int64_t rows = a->x.dims[0], in = a->x.dims[1], out = a->y.dims[1];
    bool io = a->order == SHL_WEIGHT_IO;
    SHL_TRY(gemm(s, 'N', io ? 'N' : 'T', rows, out, in, a->x.data, in, a->w.data, io ? out : in,
                 false, a->y.data, out));
    if (a->b.data != NULL) {
        add_bias(s, a->y.data, a->b.data, rows, out);
    }
    return SHL_OK;
}

shl_code
SHL_K(shl_cpu_linear_backward_input)(shl_stream *s, const void *args, void *work)
{
    const shl_linear_args *a = args;
    SHL_UNUSED(work);
    SHL_TRY(cpu_need_f32(a->dy.dtype, SHL_OP_LINEAR_BACKWARD_INPUT));
    int64_t rows = a->dy.dims[0], out = a->dy.dims[1], in = a->dx.dims[1];
    bool io = a->order == SHL_WEIGHT_IO;
    return gemm(s, 'N', io ? 'T' : 'N', rows, in, out, a->dy.data, out, a->w.data, io ? out : in,
                a->accumulate_dx, a->dx.data, in);
}

shl_code
SHL_K(shl_cpu_linear_backward_weight)(shl_stream *s, const void *args, void *work)
{
    const shl_linear_args *a = args;
    SHL_UNUSED(work);
    SHL_TRY(cpu_need_f32(a->dy.dtype, SHL_OP_LINEAR_BACKWARD_WEIGHT));
    int64_t rows = a->dy.dims[0], out = a->dy.dims[1], in = a->x.dims[1];
    if (a->dw.data != NULL) {
        bool io = a->order == SHL_WEIGHT_IO;
        const float *left = io ? a->x.data : a->dy.data;
        const float *right = io ? a->dy.data : a->x.data;
        int64_t m = io ? in : out, n = io ? out : in;
        SHL_TRY(gemm(s, 'T', 'N', m, n, rows, left, m, right, n, a->accumulate, a->dw.data, n));
    }
    if (a->db.data != NULL) {
        sum_columns(s, a->dy.data, a->db.data, rows, out, a->accumulate);
    }
    return SHL_OK;
}

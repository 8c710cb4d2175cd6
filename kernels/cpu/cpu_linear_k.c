/* kernels/cpu: linear layers over oneDNN's row-major sgemm; bias and its gradient are ours.
 * y = x W + b, dx = dy W^T, dW = x^T dy, db = column sums of dy. */
#include "kernels/cpu/cpu_gemm.h"
#include "kernels/cpu/cpu_matmul.h"
#include "kernels/cpu/cpu_slots.h"
#include "kernels/cpu/cpu_typed.h"
#include "kernels/ops/work.h"

static void
add_bias(const shl_stream *s, float *y, const float *b, int64_t rows, int64_t cols, int64_t ld)
{
    int threads = cpu_threads(s, rows * cols);
    SHL_PARALLEL_FOR(threads)
    for (int64_t r = 0; r < rows; r++) {
        float *row = y + r * ld;
        for (int64_t c = 0; c < cols; c++) {
            row[c] += b[c];
        }
    }
}

enum { SUM_VECS = 4, SUM_WIDTH = SUM_VECS * VL, SUM_RUN = 64 };

/* total[c] = sum over rows of SUM_WIDTH or (n) fewer columns: runs of 64 rows, then the runs in
 * order. Both shapes add the same numbers in the same order. */
static inline CPU_ALWAYS void
sum_wide(shl_dtype dt, const void *dy, int64_t c0, int64_t rows, int64_t ld, float *total)
{
    vf sum[SUM_VECS] = {{0}};
    for (int64_t r0 = 0; r0 < rows; r0 += SUM_RUN) {
        int64_t r1 = r0 + SUM_RUN < rows ? r0 + SUM_RUN : rows;
        vf run[SUM_VECS] = {{0}};
        for (int64_t r = r0; r < r1; r++) {
            for (int j = 0; j < SUM_VECS; j++) {
                run[j] += vload_as(dt, dy, r * ld + c0 + j * VL);
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
sum_narrow(const shl_tensor *dy, int64_t c0, int64_t rows, int64_t ld, int64_t n, float *total)
{
    for (int64_t c = 0; c < n; c++) {
        total[c] = 0.0f;
        for (int64_t r0 = 0; r0 < rows; r0 += SUM_RUN) {
            int64_t r1 = r0 + SUM_RUN < rows ? r0 + SUM_RUN : rows;
            float run = 0.0f;
            for (int64_t r = r0; r < r1; r++) {
                run += shl_float_at(dy->dtype, dy->data, r * ld + c0 + c);
            }
            total[c] += run;
        }
    }
}

/* db (+)= column sums of dy, ld elements between rows; a thread owns columns. */
static void
sum_columns(const shl_stream *s, const shl_tensor *dy, int64_t ld, const shl_tensor *db, bool add)
{
    int64_t rows = dy->dims[0], cols = dy->dims[1];
    int threads = cpu_threads(s, rows * cols);
    SHL_PARALLEL_FOR(threads)
    for (int64_t c0 = 0; c0 < cols; c0 += SUM_WIDTH) {
        int64_t n = cols - c0 < SUM_WIDTH ? cols - c0 : SUM_WIDTH;
        float total[SUM_WIDTH];
        if (n == SUM_WIDTH) {
            CPU_BY_DTYPE(dy->dtype, sum_wide(DT, dy->data, c0, rows, ld, total));
        } else {
            sum_narrow(dy, c0, rows, ld, n, total);
        }
        for (int64_t c = 0; c < n; c++) {
            float old = add ? shl_float_at(db->dtype, db->data, c0 + c) : 0.0f;
            shl_float_put(db->dtype, db->data, c0 + c, add ? old + total[c] : total[c]);
        }
    }
}

shl_code
SHL_K(shl_cpu_linear_forward)(shl_stream *s, const void *args, void *work)
{
    const shl_linear_args *a = args;
    int64_t rows = a->x.dims[0], in = a->x.dims[1], out = a->y.dims[1];
    int64_t ld = shl_row_stride(a->stride, out);
    bool io = a->order == SHL_WEIGHT_IO;
    if (a->x.dtype != SHL_F32) {
        shl_work_panels z = shl_work_linear(SHL_OP_LINEAR_FORWARD, a);
        shl_cpu_matmul p = {.dtype = a->x.dtype,
                            .c_dtype = a->y.dtype,
                            .m = rows,
                            .n = out,
                            .k = in,
                            .a = a->x.data,
                            .b = a->w.data,
                            .bias = a->b.data,
                            .c = a->y.data,
                            .lda = in,
                            .ldb = io ? out : in,
                            .ldc = ld,
                            .tb = !io};
        return SHL_K(shl_cpu_linear_half)(s, &p, &z, work);
    }
    SHL_TRY(gemm(s, 'N', io ? 'N' : 'T', rows, out, in, a->x.data, in, a->w.data, io ? out : in,
                 false, a->y.data, ld));
    if (a->b.data != NULL) {
        add_bias(s, a->y.data, a->b.data, rows, out, ld);
    }
    return SHL_OK;
}

shl_code
SHL_K(shl_cpu_linear_backward_input)(shl_stream *s, const void *args, void *work)
{
    const shl_linear_args *a = args;
    int64_t rows = a->dy.dims[0], out = a->dy.dims[1], in = a->dx.dims[1];
    int64_t ld = shl_row_stride(a->stride, out);
    bool io = a->order == SHL_WEIGHT_IO;
    if (a->dy.dtype != SHL_F32) {
        shl_work_panels z = shl_work_linear(SHL_OP_LINEAR_BACKWARD_INPUT, a);
        shl_cpu_matmul p = {.dtype = a->dy.dtype,
                            .c_dtype = a->dx.dtype,
                            .m = rows,
                            .n = in,
                            .k = out,
                            .a = a->dy.data,
                            .b = a->w.data,
                            .c = a->dx.data,
                            .lda = ld,
                            .ldb = io ? out : in,
                            .ldc = in,
                            .tb = io,
                            .add = a->accumulate_dx};
        return SHL_K(shl_cpu_linear_half)(s, &p, &z, work);
    }
    return gemm(s, 'N', io ? 'T' : 'N', rows, in, out, a->dy.data, ld, a->w.data, io ? out : in,
                a->accumulate_dx, a->dx.data, in);
}

static shl_code
weight_product(shl_stream *s, const shl_linear_args *a, void *work)
{
    int64_t rows = a->dy.dims[0], out = a->dy.dims[1], in = a->x.dims[1];
    bool io = a->order == SHL_WEIGHT_IO;
    const void *left = io ? a->x.data : a->dy.data;
    const void *right = io ? a->dy.data : a->x.data;
    int64_t m = io ? in : out, n = io ? out : in, ld = shl_row_stride(a->stride, out);
    int64_t lda = io ? in : ld, ldb = io ? ld : in;
    if (a->dy.dtype != SHL_F32) {
        shl_work_panels z = shl_work_linear(SHL_OP_LINEAR_BACKWARD_WEIGHT, a);
        shl_cpu_matmul p = {.dtype = a->dy.dtype,
                            .c_dtype = a->dw.dtype,
                            .m = m,
                            .n = n,
                            .k = rows,
                            .a = left,
                            .b = right,
                            .c = a->dw.data,
                            .lda = lda,
                            .ldb = ldb,
                            .ldc = n,
                            .ta = true,
                            .add = a->accumulate};
        return SHL_K(shl_cpu_linear_half)(s, &p, &z, work);
    }
    return gemm(s, 'T', 'N', m, n, rows, left, lda, right, ldb, a->accumulate, a->dw.data, n);
}

shl_code
SHL_K(shl_cpu_linear_backward_weight)(shl_stream *s, const void *args, void *work)
{
    const shl_linear_args *a = args;
    if (a->dw.data != NULL) {
        SHL_TRY(weight_product(s, a, work));
    }
    if (a->db.data != NULL) {
        sum_columns(s, &a->dy, shl_row_stride(a->stride, a->dy.dims[1]), &a->db, a->accumulate);
    }
    return SHL_OK;
}

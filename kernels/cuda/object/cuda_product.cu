/* kernels/cuda/object: column sums for the gradients of biases. */
#include "kernels/cuda/object/cuda_pack.cuh"

extern "C" {
#include "kernels/cuda/object/cuda_product.h"
}

#define SUM_WARPS 8
#define SUM_BLOCK (SUM_WARPS * SHL_WARP)

/* Sums of the columns of x, rows `stride` apart, over a run of rows: a lane owns N columns, a warp every eighth row of
 * the run; then the eight sums of a column are added in order. The order does not depend on N. */
template <typename T, typename G, int N>
static __global__ void
__launch_bounds__(SUM_BLOCK) column_kernel(const T *x, int64_t rows, int64_t cols, int64_t stride,
                                           int64_t run, G *out, bool accumulate)
{
    __shared__ float room[SUM_WARPS][SHL_WARP * N];
    int lane = static_cast<int>(threadIdx.x) % SHL_WARP,
        warp = static_cast<int>(threadIdx.x) / SHL_WARP;
    int64_t strip = static_cast<int64_t>(blockIdx.x) * SHL_WARP * N, c = strip + lane * N;
    int64_t begin = blockIdx.y * run, end = begin + run < rows ? begin + run : rows;
    float sum[N];
    for (int j = 0; j < N; j++) {
        sum[j] = 0.0f;
    }
    SHL_UNROLL_BY(8) /* the second pass has few blocks: it waits for rounds of loads */
    for (int64_t r = begin + warp; r < (c < cols ? end : begin); r += SUM_WARPS) {
        pack<T, N> p = load_pack<N>(x + r * stride + c);
        for (int j = 0; j < N; j++) {
            sum[j] += widen(p.at[j]);
        }
    }
    for (int j = 0; j < N; j++) {
        room[warp][lane * N + j] = sum[j];
    }
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < SHL_WARP * N && strip + i < cols;
         i += SUM_BLOCK) {
        G *to = out + blockIdx.y * cols + strip + i;
        float total = accumulate ? widen(*to) : 0.0f;
        float here = room[0][i];
        for (int w = 1; w < SUM_WARPS; w++) {
            here += room[w][i];
        }
        narrow(total + here, to);
    }
}

template <typename T, typename G>
static void
sum_columns(const shl_cuda_launch *l, const T *x, int64_t rows, int64_t cols, int64_t stride,
            int64_t run, G *out, bool accumulate)
{
    const int per = SHL_PACK_BYTES / sizeof(T);
    bool packs = cols % per == 0 && stride % per == 0 && is_aligned(x, SHL_PACK_BYTES);
    dim3 grid(static_cast<unsigned>(shl_ceil_div(cols, SHL_WARP * (packs ? per : 1))),
              static_cast<unsigned>(shl_ceil_div(rows, run)));
    if (packs) {
        SHL_LAUNCH((column_kernel<T, G, per>), grid, SUM_BLOCK, 0, l->stream, x, rows, cols, stride,
                   run, out, accumulate);
    } else {
        SHL_LAUNCH((column_kernel<T, G, 1>), grid, SUM_BLOCK, 0, l->stream, x, rows, cols, stride,
                   run, out, accumulate);
    }
}

/* Floor: dy read once over the read rate; two launches. The first leaves one row of fp32 sums
 * per run, the second adds those rows and the old value. */
extern "C" int
shl_cuda_column_sums(const shl_cuda_launch *l, const shl_tensor *dy, int64_t stride,
                     const shl_tensor *db, bool accumulate, void *work)
{
    int64_t rows = dy->dims[0], cols = dy->dims[1], run = shl_work_column_rows(rows);
    int64_t runs = shl_ceil_div(rows, run);
    float *partial = static_cast<float *>(work);
    SHL_FOR_FLOAT(
        dy->dtype, T,
        sum_columns(l, static_cast<const T *>(dy->data), rows, cols, stride, run, partial, false));
    SHL_FOR_FLOAT(db->dtype, G,
                  sum_columns(l, static_cast<const float *>(partial), runs, cols, cols, runs,
                              static_cast<G *>(db->data), accumulate));
    return launch_status();
}

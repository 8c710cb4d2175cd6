/* kernels/cuda/object: column sums for the gradients of biases, and a plain product for what the
 * library does not take. */
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

#define TILE 16

/* A block owns a tile of D, a thread an element of it. Floor: 2 m n k operations in fp32; this
 * kernel is made to be right, not fast; one launch. */
template <typename T, typename G>
static __global__ void
product_kernel(shl_cuda_product p)
{
    __shared__ float ta[TILE][TILE + 1], tb[TILE][TILE + 1];
    const T *a = static_cast<const T *>(p.a), *b = static_cast<const T *>(p.b);
    const G *bias = static_cast<const G *>(p.bias);
    int64_t tiles = (p.m + TILE - 1) / TILE;
    int u = static_cast<int>(threadIdx.x) % TILE, w = static_cast<int>(threadIdx.x) / TILE;
    int64_t row0 = blockIdx.x % tiles * TILE, col0 = blockIdx.x / tiles * TILE;
    float sum = 0.0f;
    for (int64_t k0 = 0; k0 < p.k; k0 += TILE) {
        /* ta[k][row], tb[k][col]; neighbours in memory by neighbouring threads. */
        int64_t row = row0 + (p.turn_a ? w : u), ka = k0 + (p.turn_a ? u : w);
        int64_t col = col0 + (p.turn_b ? u : w), kb = k0 + (p.turn_b ? w : u);
        float va = 0.0f, vb = 0.0f;
        if (row < p.m && ka < p.k) {
            va = widen(a[p.turn_a ? row * p.lda + ka : ka * p.lda + row]);
        }
        if (col < p.n && kb < p.k) {
            vb = widen(b[p.turn_b ? kb * p.ldb + col : col * p.ldb + kb]);
        }
        __syncthreads();
        ta[ka - k0][row - row0] = va;
        tb[kb - k0][col - col0] = vb;
        __syncthreads();
        for (int k = 0; k < TILE; k++) {
            sum = fmaf(ta[k][u], tb[k][w], sum);
        }
    }
    if (row0 + u < p.m && col0 + w < p.n) {
        G *to = static_cast<G *>(p.d) + (col0 + w) * p.ldd + row0 + u;
        sum += p.add ? widen(*to) : 0.0f;
        narrow(bias != nullptr ? sum + widen(bias[row0 + u]) : sum, to);
    }
}

extern "C" int
shl_cuda_plain_product(const shl_cuda_launch *l, const shl_cuda_product *p)
{
    int64_t tiles = shl_ceil_div(p->m, TILE) * shl_ceil_div(p->n, TILE);
    SHL_FOR_FLOAT(p->in, T,
                  SHL_FOR_FLOAT(p->out, G,
                                SHL_LAUNCH((product_kernel<T, G>), static_cast<unsigned>(tiles),
                                           TILE * TILE, 0, l->stream, *p)));
    return launch_status();
}

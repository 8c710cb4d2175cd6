/* kernels/cuda/object: causal attention forward by tiles with an online softmax and saved log-sum-exp
 * (Dao et al. 2022, 2023), in fp32 on CUDA cores for any type and head; bf16 with whole vectors goes to
 * cuda_attention_half.cu. */
#include "kernels/cuda/object/cuda_attention.cuh"

#include <cstdio>

extern "C" {
#include "kernels/cuda/object/cuda_libs.h"
}

#define THREADS 128
#define QUERIES 64
#define ROWS (QUERIES / 8) /* of a thread: 16 lanes share 8 rows */

/* Keys of a tile: what 160 KiB of shared memory hold beside the queries. */
template <int DP> struct tile {
    static const int KEYS = DP > 128 ? 32 : 64, COLUMNS = KEYS / 16, WIDTH = KEYS + 4;
    static const size_t BYTES = (static_cast<size_t>(QUERIES + 2 * KEYS) * (DP + 4) +
                                 static_cast<size_t>(QUERIES) * WIDTH) *
                                sizeof(float);
};

/* A thread's rows: running maximum (base 2), own part of the sum, unnormalised output. */
template <int DP> struct state {
    float top[ROWS], sum[ROWS], y[ROWS][DP / 16];
};

/* Scores become weights against the running maximum; what was summed before is brought to the new one. */
template <int DP>
static __device__ __forceinline__ void
softmax_tile(const attention &a, float s[ROWS][tile<DP>::COLUMNS], int i0, int j0, state<DP> *at)
{
    SHL_UNROLL
    for (int r = 0; r < ROWS; r++) {
        float top = at->top[r];
        SHL_UNROLL
        for (int c = 0; c < tile<DP>::COLUMNS; c++) {
            s[r][c] = j0 + 16 * c <= i0 + r ? s[r][c] * a.scale2 : -INFINITY;
            top = fmaxf(top, s[r][c]);
        }
        for (int step = 8; step > 0; step /= 2) {
            top = fmaxf(top, __shfl_xor_sync(SHL_FULL_MASK, top, step));
        }
        float keep = exp2f(at->top[r] - top);
        at->top[r] = top;
        at->sum[r] *= keep;
        SHL_UNROLL
        for (int c = 0; c < DP / 16; c++) {
            at->y[r][c] *= keep;
        }
        SHL_UNROLL
        for (int c = 0; c < tile<DP>::COLUMNS; c++) {
            s[r][c] = exp2f(s[r][c] - top);
            at->sum[r] += s[r][c];
        }
    }
}

/* y += weights[rows][KEYS] v[KEYS][DP] */
template <int DP>
static __device__ __forceinline__ void
add_values(const float *weights, const float *v, int x, float y[ROWS][DP / 16])
{
    SHL_UNROLL_FEW
    for (int j = 0; j < tile<DP>::KEYS; j += 4) {
        float p[ROWS][4];
        SHL_UNROLL
        for (int r = 0; r < ROWS; r++) {
            float4 w = attention_quad(weights + r * tile<DP>::WIDTH + j);
            p[r][0] = w.x;
            p[r][1] = w.y;
            p[r][2] = w.z;
            p[r][3] = w.w;
        }
        SHL_UNROLL
        for (int e = 0; e < 4; e++) {
            float row[DP / 16];
            attention_own<DP>(v + (j + e) * (DP + 4), x, row);
            SHL_UNROLL
            for (int r = 0; r < ROWS; r++) {
                SHL_UNROLL
                for (int c = 0; c < DP / 16; c++) {
                    y[r][c] = fmaf(p[r][e], row[c], y[r][c]);
                }
            }
        }
    }
}

template <int DP>
static __device__ __forceinline__ void
finish(const attention &a, const attention_head &head, int i0, int x, const state<DP> &at)
{
    SHL_UNROLL
    for (int r = 0; r < ROWS; r++) {
        float sum = at.sum[r];
        for (int step = 8; step > 0; step /= 2) {
            sum += __shfl_xor_sync(SHL_FULL_MASK, sum, step);
        }
        if (i0 + r < a.seq) {
            int64_t y = head.y + (i0 + r) * a.y_stride;
            float scale = 1.0f / sum;
            SHL_UNROLL
            for (int c = 0; c < DP / 16; c++) {
                int d = attention_columns<DP>::at(x, c);
                if (d < a.dim) {
                    attention_put(a, a.y, y + d, at.y[r][c] * scale);
                }
            }
            if (x == 0) {
                a.lse[head.row + i0 + r] = at.top[r] * ATTENTION_LN2 + logf(sum);
            }
        }
    }
}

/* Floor: 2 B NH T^2 D FLOPs (half of the 4 B NH T^2 D of the full square) of fp32; reads q, k, v, writes y
 * and lse; one launch. A block owns 64 queries of one head and walks the keys up to them; a thread
 * owns 8 rows, so that a pair of fp32 tiles in shared memory feeds 32 products per 12 loads. */
template <int DP>
static __global__ void
__launch_bounds__(THREADS, DP > 128 ? 1 : 2) forward_kernel(attention a)
{
    SHL_DYNAMIC_SHARED(float, shared);
    float *q = shared, *k = q + QUERIES * (DP + 4), *v = k + tile<DP>::KEYS * (DP + 4);
    float *weights = v + tile<DP>::KEYS * (DP + 4);
    int t = static_cast<int>(threadIdx.x), x = t % 16, row0 = t / 16 * ROWS;
    int bh = attention_head_here();
    if (bh >= a.batch * a.heads) {
        return;
    }
    int i0 = static_cast<int>(gridDim.y - 1 - blockIdx.y) * QUERIES;
    attention_head head = attention_head_of(a, bh / a.heads, bh % a.heads);
    weights += row0 * tile<DP>::WIDTH;
    attention_load<QUERIES, DP, THREADS>(a, q, a.q, head.q + i0 * a.q_stride, a.q_stride,
                                         a.seq - i0);
    state<DP> at;
    for (int r = 0; r < ROWS; r++) {
        at.top[r] = -INFINITY;
        at.sum[r] = 0.0f;
        for (int c = 0; c < DP / 16; c++) {
            at.y[r][c] = 0.0f;
        }
    }
    int end = min(i0 + QUERIES, a.seq);
    for (int j0 = 0; j0 < end; j0 += tile<DP>::KEYS) {
        int64_t from = head.kv + j0 * a.kv_stride;
        __syncthreads();
        attention_load<tile<DP>::KEYS, DP, THREADS>(a, k, a.k, from, a.kv_stride, a.seq - j0);
        attention_load<tile<DP>::KEYS, DP, THREADS>(a, v, a.v, from, a.kv_stride, a.seq - j0);
        __syncthreads();
        float s[ROWS][tile<DP>::COLUMNS];
        attention_products<DP, ROWS, tile<DP>::COLUMNS>(q, row0, 1, k, x, s);
        softmax_tile<DP>(a, s, i0 + row0, j0 + x, &at);
        SHL_UNROLL
        for (int r = 0; r < ROWS; r++) {
            SHL_UNROLL
            for (int c = 0; c < tile<DP>::COLUMNS; c++) {
                int i = i0 + row0 + r, j = j0 + x + 16 * c;
                float factor = a.keep > 0.0f && j <= i ? attention_factor(a, head, i, j) : 1.0f;
                weights[r * tile<DP>::WIDTH + x + 16 * c] = s[r][c] * factor;
            }
        }
        __syncwarp();
        add_values<DP>(weights, v, x, at.y);
    }
    finish<DP>(a, head, i0 + row0, x, at);
}

template <int DP>
static int
forward(const shl_cuda_launch *l, const shl_attention_args *a)
{
    static_assert(tile<DP>::BYTES <= ATTENTION_SHARED_BYTES, "a block has no more");
    attention args = attention_from(a, nullptr, 4);
    int status = allow_shared(l, forward_kernel<DP>, tile<DP>::BYTES);
    if (status != 0) {
        return status;
    }
    SHL_LAUNCH((forward_kernel<DP>), attention_grid(l, a, a->heads, QUERIES), THREADS,
               tile<DP>::BYTES, l->stream, args);
    return launch_status();
}

extern "C" int
shl_cuda_attention_forward(const shl_cuda_launch *l, const void *args, void *work)
{
    const shl_attention_args *a = static_cast<const shl_attention_args *>(args);
    SHL_UNUSED(work);
    if (a->head_dim > ATTENTION_MAX_DIM) {
        return SHL_CUDA_UNSUPPORTED;
    }
    if (l->choice.fused_attention && (a->dtype != SHL_BF16 || a->dropout_p > 0.0)) {
        snprintf(l->why, SHL_CUDA_WHY_BYTES, "cuDNN is asked for bf16 without dropout only");
        return SHL_CUDA_UNSUPPORTED;
    }
    if (l->choice.fused_attention) {
        return shl_cuda_sdpa_forward(l, a);
    }
    *l->ran = attention_kernel(a);
    if (attention_on_tensor_cores(a)) {
        return shl_cuda_attention_half_forward(l, a);
    }
    ATTENTION_FOR_WIDTH(a->head_dim, DP, return forward<DP>(l, a));
}

/* kernels/cuda/object: causal attention forward in bf16 on tensor cores (FlashAttention-2's order of work,
 * Dao 2023): scores and weights stay in registers, keys and values arrive a tile ahead. The weights
 * are rounded to bf16 before they meet v; their sum is not. */
#include "kernels/cuda/object/cuda_attention_half.cuh"

/* Tiles of a width: 16 MT rows a warp, as many as its registers hold: each load of keys serves them all. */
template <int DP> struct tile {
    static const int MT = DP > 128 ? 1 : 2, QUERIES = HALF_WARPS * 16 * MT;
    static const int KEYS = DP > 64 ? 32 : 64, TILE = KEYS * HALF_PITCH(DP);
    static const size_t BYTES =
        static_cast<size_t>(QUERIES * HALF_PITCH(DP) + 4 * TILE) * sizeof(bf16);
};

/* A lane's rows g and g + 8 of each 16: running maximum of the scores, own part of the sum, y. */
template <int DP> struct state {
    float top[tile<DP>::MT][2], sum[tile<DP>::MT][2], y[tile<DP>::MT][DP / 8][4];
};

/* The larger of a row's four lanes. */
static __device__ __forceinline__ float
row_max(float x)
{
    x = fmaxf(x, __shfl_xor_sync(SHL_FULL_MASK, x, 1));
    return fmaxf(x, __shfl_xor_sync(SHL_FULL_MASK, x, 2));
}

static __device__ __forceinline__ float
row_sum(float x)
{
    x += __shfl_xor_sync(SHL_FULL_MASK, x, 1);
    return x + __shfl_xor_sync(SHL_FULL_MASK, x, 2);
}

/* Scores become weights against the running maximum. */
template <int DP>
static __device__ __forceinline__ void
soften(const attention &a, float s[tile<DP>::MT][tile<DP>::KEYS / 8][4], state<DP> *at)
{
    typedef tile<DP> t;
    SHL_UNROLL
    for (int m = 0; m < t::MT; m++) {
        SHL_UNROLL
        for (int half = 0; half < 2; half++) {
            float top = at->top[m][half];
            SHL_UNROLL
            for (int n = 0; n < t::KEYS / 8; n++) {
                top = fmaxf(top, fmaxf(s[m][n][2 * half], s[m][n][2 * half + 1]));
            }
            top = row_max(top);
            float keep = fast_exp2((at->top[m][half] - top) * a.scale2), less = -top * a.scale2;
            float sum = at->sum[m][half] * keep;
            at->top[m][half] = top;
            SHL_UNROLL
            for (int n = 0; n < t::KEYS / 8; n++) {
                SHL_UNROLL
                for (int e = 2 * half; e < 2 * half + 2; e++) {
                    s[m][n][e] = fast_exp2(fmaf(s[m][n][e], a.scale2, less));
                    sum += s[m][n][e];
                }
            }
            at->sum[m][half] = sum;
            SHL_UNROLL
            for (int n = 0; n < DP / 8; n++) {
                at->y[m][n][2 * half] *= keep;
                at->y[m][n][2 * half + 1] *= keep;
            }
        }
    }
}

template <int DP>
static __device__ __forceinline__ void
drop(const attention &a, const attention_head &head, float s[tile<DP>::MT][tile<DP>::KEYS / 8][4],
     int i, int j)
{
    SHL_UNROLL
    for (int m = 0; m < tile<DP>::MT; m++) {
        SHL_UNROLL
        for (int n = 0; n < tile<DP>::KEYS / 8; n++) {
            SHL_UNROLL
            for (int half = 0; half < 2; half++) {
                uint64_t row = static_cast<uint64_t>(i + 16 * m + 8 * half);
                uint64_t index = head.word + row * a.seq + j + 8 * n;
                unsigned kept = half_kept(a.seed, a.stream, index, 1, a.bound);
                s[m][n][2 * half] *= (kept & 1u) != 0 ? a.keep : 0.0f;
                s[m][n][2 * half + 1] *= (kept & 2u) != 0 ? a.keep : 0.0f;
            }
        }
    }
}

template <int DP, bool ANY>
static __device__ __forceinline__ void
finish(const attention &a, const attention_head &head, const state<DP> &at, bf16 *tile_rows,
       int row0)
{
    int lane = static_cast<int>(threadIdx.x) % SHL_WARP;
    float scale[tile<DP>::MT][2];
    SHL_UNROLL
    for (int m = 0; m < tile<DP>::MT; m++) {
        SHL_UNROLL
        for (int half = 0; half < 2; half++) {
            float sum = row_sum(at.sum[m][half]);
            int i = row0 + 16 * m + lane / 4 + 8 * half;
            scale[m][half] = 1.0f / sum;
            if (lane % 4 == 0 && i < a.seq) {
                a.lse[head.row + i] = fmaf(at.top[m][half], a.scale, logf(sum));
            }
        }
    }
    half_store<DP, tile<DP>::MT, ANY>(a, at.y, scale, tile_rows, a.y, head.y, a.y_stride, row0);
}

/* Floor: 2 B NH T^2 D FLOPs of bf16 (the lower half of 4 B NH T^2 D) on tensor cores, and B NH T^2 / 2
 * exponentials, 16 a clock of a multiprocessor: for D = 64 on sm_90 they take as long as the products
 * at their peak. q, k, v in, y and lse out; one launch. A tile of keys feeds 2 MT products per load of
 * its fragment. Estimate for D = 64 and T = 1024 on an H200, not measured: of some 640 instructions per 32 x
 * 64 scores of a warp 128 are products, which take it 780 clocks at mma.sync's rate (0.62 of wgmma's);
 * with two warps on a scheduler 200 to 300 TFLOP/s. */
template <int DP, bool ANY>
static __global__ void
__launch_bounds__(HALF_THREADS, 2) half_forward_kernel(attention a)
{
    typedef tile<DP> t;
    SHL_DYNAMIC_SHARED(bf16, shared);
    int lane = static_cast<int>(threadIdx.x) % SHL_WARP;
    int warp_row = static_cast<int>(threadIdx.x) / SHL_WARP * 16 * t::MT;
    int i0 = static_cast<int>(gridDim.y - 1 - blockIdx.y) * t::QUERIES, row0 = i0 + warp_row;
    int b = attention_head_here() / a.heads, h = attention_head_here() % a.heads;
    if (b >= a.batch) {
        return;
    }
    attention_head head = attention_head_of(a, b, h);
    half_rows k = half_rows_of(a.k, head.kv, a.kv_stride),
              v = half_rows_of(a.v, head.kv, a.kv_stride);
    bf16 *own = shared + warp_row * HALF_PITCH(DP), *stream = shared + t::QUERIES * HALF_PITCH(DP);
    async_copies copies;
    half_load<t::QUERIES, DP, ANY>(a, &copies, shared, half_rows_of(a.q, head.q, a.q_stride), i0);
    half_load<t::KEYS, DP, ANY>(a, &copies, stream, k, 0);
    half_load<t::KEYS, DP, ANY>(a, &copies, stream + t::TILE, v, 0);
    copies.commit();
    state<DP> at;
    SHL_UNROLL
    for (int m = 0; m < t::MT; m++) {
        SHL_UNROLL
        for (int e = 0; e < DP / 2; e++) {
            at.y[m][e / 4][e % 4] = 0.0f;
        }
        at.top[m][0] = at.top[m][1] = -INFINITY;
        at.sum[m][0] = at.sum[m][1] = 0.0f;
    }
    int end = min(i0 + t::QUERIES, a.seq);
    for (int j0 = 0, stage = 0; j0 < end; j0 += t::KEYS, stage ^= 1) {
        const bf16 *keys = stream + stage * 2 * t::TILE;
        bf16 *next = stream + (stage ^ 1) * 2 * t::TILE;
        copies.wait();
        __syncthreads();
        if (j0 + t::KEYS < end) {
            half_load<t::KEYS, DP, ANY>(a, &copies, next, k, j0 + t::KEYS);
            half_load<t::KEYS, DP, ANY>(a, &copies, next + t::TILE, v, j0 + t::KEYS);
            copies.commit();
        }
        if (j0 >= row0 + 16 * t::MT) { /* behind all of the warp's queries */
            continue;
        }
        float s[t::MT][t::KEYS / 8][4];
        int i = row0 + lane / 4, j = j0 + lane % 4 * 2;
        half_scores<DP, t::MT, t::KEYS, DP / 16>(own, keys, lane, s);
        if (j0 + t::KEYS - 1 > row0) {
            half_mask<false, t::MT, t::KEYS>(s, i, j);
        }
        soften<DP>(a, s, &at);
        if (ANY && a.keep > 0.0f) {
            drop<DP>(a, head, s, i, j);
        }
        half_add<DP, t::MT, t::KEYS>(s, keys + t::TILE, lane, at.y);
    }
    finish<DP, ANY>(a, head, at, own, row0);
}

template <int DP, bool ANY>
static int
half_forward(const shl_cuda_launch *l, const shl_attention_args *a)
{
    static_assert(tile<DP>::BYTES <= ATTENTION_SHARED_BYTES, "a block has no more");
    attention args = attention_from(a, nullptr, 8);
    int status = allow_shared(l, half_forward_kernel<DP, ANY>, tile<DP>::BYTES);
    if (status != 0) {
        return status;
    }
    SHL_LAUNCH((half_forward_kernel<DP, ANY>), attention_grid(l, a, a->heads, tile<DP>::QUERIES),
               HALF_THREADS, tile<DP>::BYTES, l->stream, args);
    return launch_status();
}

int
shl_cuda_attention_half_forward(const shl_cuda_launch *l, const shl_attention_args *a)
{
    HALF_FOR_SHAPE(a, DP, ANY, return (half_forward<DP, ANY>(l, a)));
}

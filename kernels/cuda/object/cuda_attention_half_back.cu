/* kernels/cuda/object: backward of causal attention in bf16 on tensor cores, deterministic: a block owns
 * the rows whose gradients it sums (keys for dk and dv, queries for dq) and streams the others past. */
#include "kernels/cuda/object/cuda_attention_half.cuh"

/* Tiles of a width: 16 MT own rows a warp, as many as its registers hold; STREAM rows at a time. dq has
 * one sum of rows where dk and dv are two. */
template <int DP, bool KEYS> struct tile {
    static const int MT = DP > 128 ? 1 : DP > 64 && KEYS ? 1 : 2, OWN = HALF_WARPS * 16 * MT;
    static const int STREAM = DP > 128 ? 16 : 32, TILE = STREAM * HALF_PITCH(DP);
    static const size_t BYTES =
        static_cast<size_t>(2 * OWN * HALF_PITCH(DP) + 4 * TILE) * sizeof(bf16) +
        4 * STREAM * sizeof(float);
};

template <int DP, bool KEYS> struct rows_of_scores {
    float s[tile<DP, KEYS>::MT][tile<DP, KEYS>::STREAM / 8][4];
};

/* lse (base 2) and delta of query i; behind the last query a weight is 0. */
static __device__ __forceinline__ float
weight_base(const attention &a, const attention_head &head, int i)
{
    return i < a.seq ? a.lse[head.row + i] * ATTENTION_LOG2E : INFINITY;
}

static __device__ __forceinline__ float
delta_of(const attention &a, const attention_head &head, int i)
{
    return i < a.seq ? a.delta[head.row + i] : 0.0f;
}

/* What turns one element of scores and dy v^T into a weight and the slope of its score. */
struct slope_at {
    float scale2;
    bool masked;
};

static __device__ __forceinline__ void
slope(const slope_at &at, bool seen, float base, float delta, float factor, float *s, float *dp)
{
    float p = exp2_fast(fmaf(*s, at.scale2, -base));
    p = at.masked && !seen ? 0.0f : p;
    *dp = p * fmaf(*dp, factor, -delta);
    *s = p * factor;
}

/* Factors of the pair of elements (m, n, half): they are keys j, j + 1 of one query, or queries i, i + 1
 * of one key. */
template <bool KEYS, bool DROP>
static __device__ __forceinline__ float2
pair_factors(const attention &a, const attention_head &head, int row, int column)
{
    if (!DROP) {
        return make_float2(1.0f, 1.0f);
    }
    uint64_t i = static_cast<uint64_t>(KEYS ? column : row),
             j = static_cast<uint64_t>(KEYS ? row : column);
    uint64_t step = KEYS ? static_cast<uint64_t>(a.seq) : 1;
    unsigned kept = half_kept(a.seed, a.stream, head.word + i * a.seq + j, step, a.bound);
    return make_float2((kept & 1u) != 0 ? a.keep : 0.0f, (kept & 2u) != 0 ? a.keep : 0.0f);
}

/* dk, dv: rows are keys, columns are queries, whose lse and delta lie in `base` and `delta`. */
template <int DP, bool DROP>
static __device__ __forceinline__ void
slopes_of_keys(const attention &a, const attention_head &head, const float *base,
               const float *delta, int j, int i, bool masked, rows_of_scores<DP, true> *p,
               rows_of_scores<DP, true> *ds)
{
    typedef tile<DP, true> t;
    slope_at at = {a.scale2, masked};
    int c = static_cast<int>(threadIdx.x) % 4 * 2;
    SHL_UNROLL
    for (int n = 0; n < t::STREAM / 8; n++) {
        float2 lse = *reinterpret_cast<const float2 *>(base + 8 * n + c);
        float2 less = *reinterpret_cast<const float2 *>(delta + 8 * n + c);
        SHL_UNROLL
        for (int k = 0; k < 2 * t::MT; k++) {
            int row = j + 8 * k, column = i + 8 * n;
            float *s = p->s[k / 2][n] + k % 2 * 2, *dp = ds->s[k / 2][n] + k % 2 * 2;
            float2 factor = pair_factors<true, DROP>(a, head, row, column);
            slope(at, row <= column, lse.x, less.x, factor.x, s, dp);
            slope(at, row <= column + 1, lse.y, less.y, factor.y, s + 1, dp + 1);
        }
    }
}

/* dq: rows are queries, columns are keys. */
template <int DP, bool DROP>
static __device__ __forceinline__ void
slopes_of_queries(const attention &a, const attention_head &head, const float *base,
                  const float *delta, int i, int j, bool masked, rows_of_scores<DP, false> *p,
                  rows_of_scores<DP, false> *ds)
{
    typedef tile<DP, false> t;
    slope_at at = {a.scale2, masked};
    SHL_UNROLL
    for (int n = 0; n < t::STREAM / 8; n++) {
        SHL_UNROLL
        for (int k = 0; k < 2 * t::MT; k++) {
            int row = i + 8 * k, column = j + 8 * n;
            float *s = p->s[k / 2][n] + k % 2 * 2, *dp = ds->s[k / 2][n] + k % 2 * 2;
            float2 factor = pair_factors<false, DROP>(a, head, row, column);
            slope(at, column <= row, base[k], delta[k], factor.x, s, dp);
            slope(at, column + 1 <= row, base[k], delta[k], factor.y, s + 1, dp + 1);
        }
    }
}

/* Starts the copies of streamed rows, and of their lse and delta when they are queries. */
template <int DP, bool KEYS>
static __device__ __forceinline__ void
stream_in(const attention &a, const attention_head &head, async_copies *copies, bf16 *to,
          float *stats, int row0)
{
    typedef tile<DP, KEYS> t;
    half_load<t::STREAM, DP>(a, copies, to,
                             KEYS ? half_rows_of(a.q, head.q, a.q_stride)
                                  : half_rows_of(a.k, head.kv, a.kv_stride),
                             row0);
    half_load<t::STREAM, DP>(a, copies, to + t::TILE,
                             KEYS ? half_rows_of(a.dy, head.y, a.y_stride)
                                  : half_rows_of(a.v, head.kv, a.kv_stride),
                             row0);
    int r = static_cast<int>(threadIdx.x);
    if (KEYS && r < t::STREAM) {
        stats[r] = weight_base(a, head, row0 + r);
        stats[t::STREAM + r] = delta_of(a, head, row0 + r);
    }
    copies->commit();
}

template <int DP, int MT>
static __device__ __forceinline__ void
put(const attention &a, const float sum[MT][DP / 8][4], float scale, bf16 *rows, void *to,
    int64_t first, int64_t stride, int row0)
{
    float scales[MT][2];
    SHL_UNROLL
    for (int m = 0; m < MT; m++) {
        scales[m][0] = scales[m][1] = scale;
    }
    half_store<DP, MT>(a, sum, scales, rows, to, first, stride, row0);
}

/* Floor of bf16 FLOPs on tensor cores: 4 B NH T^2 D for KEYS (scores, dy v^T, dv, dk over the lower half)
 * and 3 B NH T^2 D for dq; one pass with atomics would have 5 where these have 7. q, k, v, dy, lse, delta in,
 * the gradients out; one launch each. */
template <int DP, bool KEYS, bool DROP>
static __global__ void
__launch_bounds__(HALF_THREADS) half_backward_kernel(attention a)
{
    typedef tile<DP, KEYS> t;
    SHL_DYNAMIC_SHARED(bf16, shared);
    bf16 *stream = shared + 2 * t::OWN * HALF_PITCH(DP);
    float *stats = reinterpret_cast<float *>(stream + 4 * t::TILE);
    int lane = static_cast<int>(threadIdx.x) % SHL_WARP;
    int warp_row = static_cast<int>(threadIdx.x) / SHL_WARP * 16 * t::MT;
    int own0 = static_cast<int>(KEYS ? blockIdx.y : gridDim.y - 1 - blockIdx.y) * t::OWN;
    int row0 = own0 + warp_row, heads = KEYS ? a.kv_heads : a.heads;
    int b = static_cast<int>(blockIdx.x) / heads;
    int h = static_cast<int>(blockIdx.x) % heads * (KEYS ? a.group : 1);
    int last_head = KEYS ? h + a.group - 1 : h;
    int begin = KEYS ? own0 : 0, end = KEYS ? a.seq : min(own0 + t::OWN, a.seq);
    attention_head head = attention_head_of(a, b, h), next_head = head;
    bf16 *own = shared + warp_row * HALF_PITCH(DP), *own2 = own + t::OWN * HALF_PITCH(DP);
    async_copies copies;
    half_load<t::OWN, DP>(a, &copies, shared,
                          KEYS ? half_rows_of(a.k, head.kv, a.kv_stride)
                               : half_rows_of(a.q, head.q, a.q_stride),
                          own0);
    half_load<t::OWN, DP>(a, &copies, shared + t::OWN * HALF_PITCH(DP),
                          KEYS ? half_rows_of(a.v, head.kv, a.kv_stride)
                               : half_rows_of(a.dy, head.y, a.y_stride),
                          own0);
    stream_in<DP, KEYS>(a, head, &copies, stream, stats, begin);
    float dx[t::MT][DP / 8][4], dv[KEYS ? t::MT : 1][DP / 8][4], base[2 * t::MT], delta[2 * t::MT];
    SHL_UNROLL
    for (int e = 0; e < t::MT * DP / 2; e++) {
        dx[e / (DP / 2)][e / 4 % (DP / 8)][e % 4] = 0.0f;
        if (KEYS) {
            dv[e / (DP / 2)][e / 4 % (DP / 8)][e % 4] = 0.0f;
        }
    }
    SHL_UNROLL
    for (int k = 0; k < 2 * t::MT; k++) {
        base[k] = KEYS ? 0.0f : weight_base(a, head, row0 + lane / 4 + 8 * k);
        delta[k] = KEYS ? 0.0f : delta_of(a, head, row0 + lane / 4 + 8 * k);
    }
    int s0 = begin, stage = 0;
    while (h <= last_head) {
        int next_h = s0 + t::STREAM < end ? h : h + 1, next0 = next_h == h ? s0 + t::STREAM : begin;
        const bf16 *rows = stream + stage * 2 * t::TILE;
        const float *stat = stats + stage * 2 * t::STREAM;
        copies.wait();
        __syncthreads();
        if (next_h <= last_head) {
            next_head = attention_head_of(a, b, next_h);
            stream_in<DP, KEYS>(a, next_head, &copies, stream + (stage ^ 1) * 2 * t::TILE,
                                stats + (stage ^ 1) * 2 * t::STREAM, next0);
        }
        /* A warp whose queries all come before the keys has nothing here. */
        if (KEYS ? s0 + t::STREAM > row0 : s0 < row0 + 16 * t::MT) {
            rows_of_scores<DP, KEYS> p, ds;
            half_scores<DP, t::MT, t::STREAM>(own, rows, lane, p.s);
            half_scores<DP, t::MT, t::STREAM>(own2, rows + t::TILE, lane, ds.s);
            int row = row0 + lane / 4, column = s0 + lane % 4 * 2;
            if constexpr (KEYS) {
                slopes_of_keys<DP, DROP>(a, head, stat, stat + t::STREAM, row, column,
                                         s0 < row0 + 16 * t::MT - 1, &p, &ds);
                half_add<DP, t::MT, t::STREAM>(p.s, rows + t::TILE, lane, dv);
            } else {
                slopes_of_queries<DP, DROP>(a, head, base, delta, row, column,
                                            s0 + t::STREAM - 1 > row0, &p, &ds);
            }
            half_add<DP, t::MT, t::STREAM>(ds.s, rows, lane, dx);
        }
        head = next_head;
        h = next_h;
        s0 = next0;
        stage ^= 1;
    }
    if constexpr (KEYS) {
        put<DP, t::MT>(a, dx, a.scale, own, a.dk, head.kv, a.kv_stride, row0);
        put<DP, t::MT>(a, dv, 1.0f, own2, a.dv, head.kv, a.kv_stride, row0);
    } else {
        put<DP, t::MT>(a, dx, a.scale, own, a.dq, head.q, a.q_stride, row0);
    }
}

template <int DP, bool KEYS, bool DROP>
static int
half_pass(const shl_cuda_launch *l, const shl_attention_args *a, const attention &args)
{
    typedef tile<DP, KEYS> t;
    int status = attention_allow(half_backward_kernel<DP, KEYS, DROP>, t::BYTES);
    if (status != 0) {
        return status;
    }
    SHL_LAUNCH((half_backward_kernel<DP, KEYS, DROP>),
               attention_grid(a, KEYS ? a->kv_heads : a->heads, t::OWN), HALF_THREADS, t::BYTES,
               l->stream, args);
    return launch_status();
}

template <int DP, bool DROP>
static int
half_backward(const shl_cuda_launch *l, const shl_attention_args *a, void *work)
{
    attention args = attention_from(a, work, 8);
    int status = half_pass<DP, true, DROP>(l, a, args);
    return status != 0 ? status : half_pass<DP, false, DROP>(l, a, args);
}

int
shl_cuda_attention_half_backward(const shl_cuda_launch *l, const shl_attention_args *a, void *work)
{
    HALF_FOR_SHAPE(a, DP, DROP, return (half_backward<DP, DROP>(l, a, work)));
}

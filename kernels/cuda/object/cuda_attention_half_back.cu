/* kernels/cuda/object: backward of causal attention in bf16 on tensor cores, deterministic: a block owns
 * the rows whose gradients it sums (keys for dk and dv, queries for dq) and streams the others past. */
#include "kernels/cuda/object/cuda_attention_half.cuh"

/* What a pass sums: dk and dv together where the registers hold both. */
#define PASS_DQ 1
#define PASS_DK 2
#define PASS_DV 4
#define PASS_ANY 8 /* tensors lie anywhere, weights may be dropped */

/* Tiles of a width: 16 MT own rows a warp, as many as its registers hold; STREAM rows at a time. dq has
 * one sum of rows where dk and dv are two; the call that draws words takes registers too. lse and delta
 * lie behind the rows: of the two stages of streamed queries, or of own ones. */
template <int DP, int PASS> struct tile {
    static const bool KEYS = (PASS & PASS_DQ) == 0, ANY = (PASS & PASS_ANY) != 0;
    static const int MT = DP > 128 || (DP > 64) + KEYS + ANY > 1 ? 1 : 2;
    static const int OWN = HALF_WARPS * 16 * MT;
    static const int BLOCKS = DP == 64 && !KEYS && !ANY ? 3 : 2; /* at once, what registers allow */
    static const int STREAM = DP > 128 ? 16 : 32, TILE = STREAM * HALF_PITCH(DP);
    static const size_t BYTES =
        static_cast<size_t>(2 * OWN * HALF_PITCH(DP) + 4 * TILE) * sizeof(bf16) +
        (KEYS ? 4 * STREAM : 2 * OWN) * sizeof(float);
};

template <int DP, int PASS> struct rows_of_scores {
    float s[tile<DP, PASS>::MT][tile<DP, PASS>::STREAM / 8][4];
};

/* Turns one element of scores and dy v^T into a weight and the slope of its score. */
static __device__ __forceinline__ void
slope(float scale2, float lse, float delta, float factor, float *s, float *dp)
{
    float p = fast_exp2(fmaf(*s, scale2, -lse * ATTENTION_LOG2E));
    *dp = p * fmaf(*dp, factor, -delta);
    *s = p * factor;
}

/* Factors of the pair of elements (m, n, half): they are keys j, j + 1 of one query, or queries i, i + 1
 * of one key. */
template <bool KEYS, bool ANY>
static __device__ __forceinline__ float2
pair_factors(const attention &a, int b, int h, int row, int column)
{
    if (!ANY || !(a.keep > 0.0f)) {
        return make_float2(1.0f, 1.0f);
    }
    uint64_t i = static_cast<uint64_t>(KEYS ? column : row),
             j = static_cast<uint64_t>(KEYS ? row : column);
    uint64_t step = KEYS ? static_cast<uint64_t>(a.seq) : 1;
    uint64_t word = attention_head_of(a, b, h).word + i * a.seq + j;
    unsigned kept = half_kept(a.seed, a.stream, word, step, a.bound);
    return make_float2((kept & 1u) != 0 ? a.keep : 0.0f, (kept & 2u) != 0 ? a.keep : 0.0f);
}

/* dk, dv: rows are keys, columns are queries, whose lse and delta lie in `base` and `delta`. */
template <int DP, int PASS>
static __device__ __forceinline__ void
slopes_of_keys(const attention &a, int b, int h, const float *base, const float *delta, int j,
               int i, rows_of_scores<DP, PASS> *p, rows_of_scores<DP, PASS> *ds)
{
    typedef tile<DP, PASS> t;
    int c = static_cast<int>(threadIdx.x) % 4 * 2;
    SHL_UNROLL
    for (int n = 0; n < t::STREAM / 8; n++) {
        float2 lse = *reinterpret_cast<const float2 *>(base + 8 * n + c);
        float2 less = *reinterpret_cast<const float2 *>(delta + 8 * n + c);
        SHL_UNROLL
        for (int k = 0; k < 2 * t::MT; k++) {
            int row = j + 8 * k, column = i + 8 * n;
            float *s = p->s[k / 2][n] + k % 2 * 2, *dp = ds->s[k / 2][n] + k % 2 * 2;
            float2 factor = pair_factors<true, t::ANY>(a, b, h, row, column);
            slope(a.scale2, lse.x, less.x, factor.x, s, dp);
            slope(a.scale2, lse.y, less.y, factor.y, s + 1, dp + 1);
        }
    }
}

/* dq: rows are queries, whose lse and delta lie in `base` and `delta`; columns are keys. */
template <int DP, int PASS>
static __device__ __forceinline__ void
slopes_of_queries(const attention &a, int b, int h, const float *base, const float *delta, int i,
                  int j, rows_of_scores<DP, PASS> *p, rows_of_scores<DP, PASS> *ds)
{
    typedef tile<DP, PASS> t;
    SHL_UNROLL
    for (int k = 0; k < 2 * t::MT; k++) {
        float lse = base[8 * k], less = delta[8 * k];
        SHL_UNROLL
        for (int n = 0; n < t::STREAM / 8; n++) {
            int row = i + 8 * k, column = j + 8 * n;
            float *s = p->s[k / 2][n] + k % 2 * 2, *dp = ds->s[k / 2][n] + k % 2 * 2;
            float2 factor = pair_factors<false, t::ANY>(a, b, h, row, column);
            slope(a.scale2, lse, less, factor.x, s, dp);
            slope(a.scale2, lse, less, factor.y, s + 1, dp + 1);
        }
    }
}

/* The rows of head h that a block of this pass streams past, of queries or of keys: of the scores' other
 * side, and of the other side of dy v^T. */
template <bool KEYS>
static __device__ __forceinline__ half_rows
score_rows(const attention &a, int b, int h)
{
    int64_t token = static_cast<int64_t>(b) * a.seq, column = static_cast<int64_t>(h) * a.dim;
    return KEYS ? half_rows_of(a.q, token * a.q_stride + column, a.q_stride)
                : half_rows_of(a.k, token * a.kv_stride + column, a.kv_stride);
}

template <bool KEYS>
static __device__ __forceinline__ half_rows
slope_rows(const attention &a, int b, int h)
{
    int64_t token = static_cast<int64_t>(b) * a.seq, column = static_cast<int64_t>(h) * a.dim;
    return KEYS ? half_rows_of(a.dy, token * a.y_stride + column, a.y_stride)
                : half_rows_of(a.v, token * a.kv_stride + column, a.kv_stride);
}

/* Starts the copies of lse and delta of queries [row0, row0 + ROWS) of head h. Behind the last query both
 * are 0: what a weight of 1 then meets are rows of zeros. */
template <int ROWS>
static __device__ __forceinline__ void
load_stats(const attention &a, int b, int h, async_copies *copies, float *stats, int row0)
{
    const float *lse = a.lse + attention_head_of(a, b, h).row + row0;
    const float *delta = a.delta + (lse - a.lse);
    SHL_UNROLL
    for (int r0 = 0; r0 < ROWS; r0 += HALF_THREADS) {
        int r = r0 + static_cast<int>(threadIdx.x);
        if (r < ROWS) {
            copies->copy_word(stats + r, lse + r, row0 + r < a.seq);
            copies->copy_word(stats + ROWS + r, delta + r, row0 + r < a.seq);
        }
    }
}

/* Starts the copies of streamed rows, and of their lse and delta when they are queries. */
template <int DP, int PASS>
static __device__ __forceinline__ void
stream_in(const attention &a, int b, int h, async_copies *copies, bf16 *to, float *stats, int row0)
{
    typedef tile<DP, PASS> t;
    half_load<t::STREAM, DP, t::ANY>(a, copies, to, score_rows<t::KEYS>(a, b, h), row0);
    half_load<t::STREAM, DP, t::ANY>(a, copies, to + t::TILE, slope_rows<t::KEYS>(a, b, h), row0);
    if (t::KEYS) {
        load_stats<t::STREAM>(a, b, h, copies, stats, row0);
    }
    copies->commit();
}

/* One tile of streamed rows: scores, weights, slopes, and their part of the sums. */
template <int DP, int PASS>
static __device__ __forceinline__ void
add_tile(const attention &a, int b, int h, const bf16 *own, const bf16 *rows, const float *stat,
         int row0, int s0, float dx[tile<DP, PASS>::MT][DP / 8][4],
         float dv[tile<DP, PASS>::MT][DP / 8][4])
{
    typedef tile<DP, PASS> t;
    rows_of_scores<DP, PASS> p, ds;
    int lane = static_cast<int>(threadIdx.x) % SHL_WARP;
    int row = row0 + lane / 4, column = s0 + lane % 4 * 2;
    half_scores<DP, t::MT, t::STREAM, 2>(own, rows, lane, p.s);
    if (t::KEYS ? s0 < row0 + 16 * t::MT - 1 : s0 + t::STREAM - 1 > row0) {
        half_mask<t::KEYS, t::MT, t::STREAM>(p.s, row, column);
    }
    if constexpr ((PASS & PASS_DK) == 0 && t::KEYS) {
        ds = p; /* nobody asks for slopes */
    } else {
        half_scores<DP, t::MT, t::STREAM, 2>(own + t::OWN * HALF_PITCH(DP), rows + t::TILE, lane,
                                             ds.s);
    }
    if constexpr (t::KEYS) {
        slopes_of_keys<DP, PASS>(a, b, h, stat, stat + t::STREAM, row, column, &p, &ds);
    } else {
        slopes_of_queries<DP, PASS>(a, b, h, stat, stat + t::OWN, row, column, &p, &ds);
    }
    if constexpr ((PASS & PASS_DV) != 0) {
        half_add<DP, t::MT, t::STREAM>(p.s, rows + t::TILE, lane, dv);
    }
    if constexpr ((PASS & (PASS_DK | PASS_DQ)) != 0) {
        half_add<DP, t::MT, t::STREAM>(ds.s, rows, lane, dx);
    }
}

template <int DP, int MT, bool ANY>
static __device__ __forceinline__ void
put(const attention &a, const float sum[MT][DP / 8][4], float scale, bf16 *rows, void *to,
    int64_t first, int64_t stride, int row0)
{
    float scales[MT][2];
    SHL_UNROLL
    for (int m = 0; m < MT; m++) {
        scales[m][0] = scales[m][1] = scale;
    }
    half_store<DP, MT, ANY>(a, sum, scales, rows, to, first, stride, row0);
}

template <int DP, int PASS>
static __device__ __forceinline__ void
put_all(const attention &a, int b, int h, const float dx[tile<DP, PASS>::MT][DP / 8][4],
        const float dv[tile<DP, PASS>::MT][DP / 8][4], bf16 *rows, int row0)
{
    const int MT = tile<DP, PASS>::MT;
    const bool ANY = tile<DP, PASS>::ANY;
    attention_head head = attention_head_of(a, b, h);
    if constexpr ((PASS & PASS_DK) != 0) {
        put<DP, MT, ANY>(a, dx, a.scale, rows, a.dk, head.kv, a.kv_stride, row0);
    }
    if constexpr ((PASS & PASS_DV) != 0) {
        put<DP, MT, ANY>(a, dv, 1.0f, rows, a.dv, head.kv, a.kv_stride, row0);
    }
    if constexpr ((PASS & PASS_DQ) != 0) {
        put<DP, MT, ANY>(a, dx, a.scale, rows, a.dq, head.q, a.q_stride, row0);
    }
}

/* Floor of bf16 FLOPs on tensor cores: 4 B NH T^2 D for keys (scores, dy v^T, dv, dk over the lower half;
 * heads wider than 128 take the scores twice) and 3 B NH T^2 D for dq; one pass with atomics would have 5
 * where these have 7. q, k, v, dy, lse, delta in, the gradients out; one launch each. Estimate for D = 64
 * and T = 1024 on an H200, not measured: 128 of some 480 instructions per 32 x 32 scores of a warp are
 * products for keys (96 of 400 for queries), and the loads of their fragments keep shared memory as busy
 * as these keep the tensor cores: 170 to 230 TFLOP/s, counted as 5. */
template <int DP, int PASS>
static __global__ void
__launch_bounds__(HALF_THREADS, tile<DP, PASS>::BLOCKS) half_backward_kernel(attention a)
{
    typedef tile<DP, PASS> t;
    SHL_DYNAMIC_SHARED(bf16, shared);
    bf16 *stream = shared + 2 * t::OWN * HALF_PITCH(DP);
    float *stats = reinterpret_cast<float *>(stream + 4 * t::TILE);
    int warp_row = static_cast<int>(threadIdx.x) / SHL_WARP * 16 * t::MT;
    int own0 = static_cast<int>(t::KEYS ? blockIdx.y : gridDim.y - 1 - blockIdx.y) * t::OWN;
    int row0 = own0 + warp_row, heads = t::KEYS ? a.kv_heads : a.heads;
    int b = attention_head_here() / heads;
    int h = attention_head_here() % heads * (t::KEYS ? a.group : 1);
    if (b >= a.batch) {
        return;
    }
    int begin = t::KEYS ? own0 : 0, end = t::KEYS ? a.seq : min(own0 + t::OWN, a.seq);
    bf16 *own = shared + warp_row * HALF_PITCH(DP);
    async_copies copies;
    attention_head head = attention_head_of(a, b, h);
    half_load<t::OWN, DP, t::ANY>(a, &copies, shared,
                                  t::KEYS ? half_rows_of(a.k, head.kv, a.kv_stride)
                                          : half_rows_of(a.q, head.q, a.q_stride),
                                  own0);
    half_load<t::OWN, DP, t::ANY>(a, &copies, shared + t::OWN * HALF_PITCH(DP),
                                  t::KEYS ? half_rows_of(a.v, head.kv, a.kv_stride)
                                          : half_rows_of(a.dy, head.y, a.y_stride),
                                  own0);
    if (!t::KEYS) {
        load_stats<t::OWN>(a, b, h, &copies, stats, own0);
    }
    const int kv = h / a.group;
    stream_in<DP, PASS>(a, b, t::KEYS ? h : kv, &copies, stream, stats, begin);
    const float *own_stats = stats + warp_row + static_cast<int>(threadIdx.x) % SHL_WARP / 4;
    float dx[t::MT][DP / 8][4], dv[t::MT][DP / 8][4];
    SHL_UNROLL
    for (int e = 0; e < t::MT * DP / 2; e++) {
        dx[e / (DP / 2)][e / 4 % (DP / 8)][e % 4] = 0.0f;
        dv[e / (DP / 2)][e / 4 % (DP / 8)][e % 4] = 0.0f;
    }
    bool more = true;
    for (int s0 = begin, at = h, stage = 0; more; stage ^= 1) {
        int next0 = s0 + t::STREAM, next = at;
        if (t::KEYS && next0 >= end && at + 1 < h + a.group) { /* the group's heads in order */
            next0 = begin;
            next++;
        }
        more = next0 < end;
        copies.wait();
        __syncthreads();
        if (more) {
            stream_in<DP, PASS>(a, b, t::KEYS ? next : kv, &copies,
                                stream + (stage ^ 1) * 2 * t::TILE,
                                stats + (stage ^ 1) * 2 * t::STREAM, next0);
        }
        /* A warp whose queries all come before the keys has nothing here. */
        if (t::KEYS ? s0 + t::STREAM > row0 : s0 < row0 + 16 * t::MT) {
            add_tile<DP, PASS>(a, b, at, own, stream + stage * 2 * t::TILE,
                               t::KEYS ? stats + stage * 2 * t::STREAM : own_stats, row0, s0, dx,
                               dv);
        }
        s0 = next0;
        at = next;
    }
    put_all<DP, PASS>(a, b, h, dx, dv, own, row0);
}

template <int DP, int PASS>
static int
half_pass(const shl_cuda_launch *l, const shl_attention_args *a, const attention &args)
{
    typedef tile<DP, PASS> t;
    static_assert(t::BYTES <= ATTENTION_SHARED_BYTES, "a block has no more");
    int status = allow_shared(l, half_backward_kernel<DP, PASS>, t::BYTES);
    if (status != 0) {
        return status;
    }
    SHL_LAUNCH((half_backward_kernel<DP, PASS>),
               attention_grid(l, a, t::KEYS ? a->kv_heads : a->heads, t::OWN), HALF_THREADS,
               t::BYTES, l->stream, args);
    return launch_status();
}

template <int DP, bool ANY>
static int
half_backward(const shl_cuda_launch *l, const shl_attention_args *a, void *work)
{
    const int any = ANY ? PASS_ANY : 0;
    attention args = attention_from(a, work, 8);
    int status;
    if constexpr (DP > 128) {
        status = half_pass<DP, PASS_DK | any>(l, a, args);
        status = status != 0 ? status : half_pass<DP, PASS_DV | any>(l, a, args);
    } else {
        status = half_pass<DP, PASS_DK | PASS_DV | any>(l, a, args);
    }
    return status != 0 ? status : half_pass<DP, PASS_DQ | any>(l, a, args);
}

int
shl_cuda_attention_half_backward(const shl_cuda_launch *l, const shl_attention_args *a, void *work)
{
    HALF_FOR_SHAPE(a, DP, ANY, return (half_backward<DP, ANY>(l, a, work)));
}

/* kernels/cuda/object: backward of causal attention (Dao et al. 2022, 2023), deterministic: delta first,
 * then dk and dv by blocks of keys, then dq by blocks of queries. In fp32 on CUDA cores for any type and
 * head; bf16 with whole vectors goes to cuda_attention_half_back.cu. */
#include "kernels/cuda/object/cuda_attention.cuh"

#define THREADS 256
#define STREAM 32 /* rows that stream past a block's own */

/* Own rows of a block: what 160 KiB of shared memory hold. */
template <int DP> struct tile {
    static const int OWN = DP > 128 ? 32 : 64, ROWS = OWN / 16, COLUMNS = STREAM / 16,
                     WIDTH = OWN + 4;
    static const size_t BYTES = (2 * static_cast<size_t>(OWN + STREAM) * (DP + 4) +
                                 2 * static_cast<size_t>(STREAM) * WIDTH) *
                                sizeof(float);
};

/* delta[b,h,i] = dy_i . y_i. Floor: reads y and dy once, one launch. 2^k lanes share a row of a head, 16
 * bytes of either tensor each, so that a warp of 64-wide bf16 heads has 1 KiB on its way. */
template <typename T>
static __global__ void
__launch_bounds__(THREADS) delta_kernel(attention a, int64_t rows, int lanes_log2, bool chunks)
{
    constexpr int N = chunk_of<T>::N;
    const int lanes = 1 << lanes_log2;
    int64_t at = (static_cast<int64_t>(blockIdx.x) * THREADS + threadIdx.x) >> lanes_log2;
    int lane = static_cast<int>(threadIdx.x) & (lanes - 1);
    int64_t n = at < rows ? at : rows - 1; /* all lanes stay for the sums */
    const T *y = static_cast<const T *>(a.y) + n * a.dim,
            *dy = static_cast<const T *>(a.dy) + n * a.dim;
    float sum = 0.0f;
    for (int d = N * lane; d < a.dim; d += N * lanes) {
        float u[N], v[N];
        if (chunks) {
            chunk<T, N> of_y, of_dy;
            load_chunk(&of_y, y + d);
            load_chunk(&of_dy, dy + d);
            widen(of_y, u);
            widen(of_dy, v);
        } else {
            SHL_UNROLL
            for (int e = 0; e < N; e++) {
                u[e] = d + e < a.dim ? widen(y[d + e]) : 0.0f;
                v[e] = d + e < a.dim ? widen(dy[d + e]) : 0.0f;
            }
        }
        SHL_UNROLL
        for (int e = 0; e < N; e++) {
            sum = fmaf(u[e], v[e], sum);
        }
    }
    for (int step = lanes / 2; step > 0; step /= 2) {
        sum += __shfl_xor_sync(SHL_FULL_MASK, sum, step);
    }
    if (lane == 0 && at < rows) {
        int64_t token = quotient(n, a.heads), h = n - token * a.heads;
        int64_t b = quotient(token, a.seq);
        a.delta[(b * a.heads + h) * a.seq + token - b * a.seq] = sum;
    }
}

/* The rows of one head: token t at first + t * stride. */
struct rows_of {
    const void *data;
    int64_t first, stride;
};

template <int ROWS, int DP>
static __device__ __forceinline__ void
load(const attention &a, float *to, const rows_of &from, int row0)
{
    attention_load<ROWS, DP, THREADS>(a, to, from.data, from.first + row0 * from.stride,
                                      from.stride, a.seq - row0);
}

/* sum[r][c] += weights[s][own row r] from[s][column c] over the rows s that streamed in. */
template <int DP>
static __device__ __forceinline__ void
add_products(const float *weights, const float *from, int x, float sum[tile<DP>::ROWS][DP / 16])
{
    SHL_UNROLL_FEW
    for (int s = 0; s < STREAM; s++) {
        float w[tile<DP>::ROWS], row[DP / 16];
        if constexpr (tile<DP>::ROWS == 4) {
            float4 quad = attention_quad(weights + s * tile<DP>::WIDTH);
            w[0] = quad.x;
            w[1] = quad.y;
            w[2] = quad.z;
            w[3] = quad.w;
        } else {
            float2 pair = *reinterpret_cast<const float2 *>(weights + s * tile<DP>::WIDTH);
            w[0] = pair.x;
            w[1] = pair.y;
        }
        attention_own<DP>(from + s * (DP + 4), x, row);
        SHL_UNROLL
        for (int r = 0; r < tile<DP>::ROWS; r++) {
            SHL_UNROLL
            for (int c = 0; c < DP / 16; c++) {
                sum[r][c] = fmaf(w[r], row[c], sum[r][c]);
            }
        }
    }
}

/* Weights and score gradients of own rows against streamed ones, laid down as [streamed][own]. */
template <int DP, bool KEYS>
static __device__ __forceinline__ void
slopes(const attention &a, const attention_head &head, const float *own, const float *stream,
       int own0, int stream0, float *weights, float *ds)
{
    typedef tile<DP> t;
    int x = static_cast<int>(threadIdx.x) % 16, y = static_cast<int>(threadIdx.x) / 16;
    float s[t::ROWS][t::COLUMNS], dp[t::ROWS][t::COLUMNS];
    attention_products<DP, t::ROWS, t::COLUMNS>(own, y, 16, stream, x, s);
    attention_products<DP, t::ROWS, t::COLUMNS>(own + t::OWN * (DP + 4), y, 16,
                                                stream + STREAM * (DP + 4), x, dp);
    SHL_UNROLL
    for (int r = 0; r < t::ROWS; r++) {
        SHL_UNROLL
        for (int c = 0; c < t::COLUMNS; c++) {
            int mine = own0 + y + 16 * r, other = stream0 + x + 16 * c;
            int i = KEYS ? other : mine, j = KEYS ? mine : other;
            float p = 0.0f, slope = 0.0f;
            if (j <= i && i < a.seq) {
                float factor = a.keep > 0.0f ? attention_factor(a, head, i, j) : 1.0f;
                p = exp2f(fmaf(s[r][c], a.scale2, -a.lse[head.row + i] * ATTENTION_LOG2E));
                slope = p * fmaf(dp[r][c], factor, -a.delta[head.row + i]);
                p *= factor;
            }
            int at = (x + 16 * c) * t::WIDTH + y + 16 * r;
            ds[at] = slope;
            if (KEYS) {
                weights[at] = p;
            }
        }
    }
}

/* Own rows of a sum, times scale, to where they belong. */
template <int DP>
static __device__ __forceinline__ void
put(const attention &a, void *to, int64_t first, int64_t stride, int row0, float scale,
    const float sum[tile<DP>::ROWS][DP / 16])
{
    int x = static_cast<int>(threadIdx.x) % 16;
    SHL_UNROLL
    for (int r = 0; r < tile<DP>::ROWS; r++) {
        SHL_UNROLL
        for (int c = 0; c < DP / 16; c++) {
            int d = attention_columns<DP>::at(x, c);
            if (row0 + r < a.seq && d < a.dim) {
                attention_put(a, to, first + (row0 + r) * stride + d, sum[r][c] * scale);
            }
        }
    }
}

/* KEYS: dk and dv of a block of keys, over the queries that see them, of all heads of the group in
 * order. Else dq of a block of queries, over the keys that they see. Scores are computed in both, so
 * that each sum has one owner and one order. Floor: 4 B NH T^2 D FLOPs of fp32 for keys and 3 B NH T^2 D
 * for queries (a pass that added dq by atomics would have 5 in all); reads q, k, v, dy. One launch each. */
template <int DP, bool KEYS>
static __global__ void
__launch_bounds__(THREADS, DP > 64 ? 1 : 2) backward_kernel(attention a)
{
    typedef tile<DP> t;
    SHL_DYNAMIC_SHARED(float, shared);
    float *own = shared, *stream = own + 2 * t::OWN * (DP + 4);
    float *ds = stream + 2 * STREAM * (DP + 4), *weights = ds + STREAM * t::WIDTH;
    int x = static_cast<int>(threadIdx.x) % 16, row0 = static_cast<int>(threadIdx.x) / 16 * t::ROWS;
    int own0 = static_cast<int>(KEYS ? blockIdx.y : gridDim.y - 1 - blockIdx.y) * t::OWN;
    int heads = KEYS ? a.kv_heads : a.heads, group = KEYS ? a.group : 1;
    int bh = attention_head_here(), b = bh / heads, h0 = bh % heads * group;
    if (b >= a.batch) {
        return;
    }
    int begin = KEYS ? own0 : 0, end = KEYS ? a.seq : min(own0 + t::OWN, a.seq);
    attention_head head = attention_head_of(a, b, h0);
    const rows_of q = {a.q, head.q, a.q_stride}, dy = {a.dy, head.y, a.y_stride};
    const rows_of k = {a.k, head.kv, a.kv_stride}, v = {a.v, head.kv, a.kv_stride};
    load<t::OWN, DP>(a, own, KEYS ? k : q, own0);
    load<t::OWN, DP>(a, own + t::OWN * (DP + 4), KEYS ? v : dy, own0);
    float dx[t::ROWS][DP / 16], dv[t::ROWS][DP / 16];
    for (int r = 0; r < t::ROWS; r++) {
        for (int c = 0; c < DP / 16; c++) {
            dx[r][c] = 0.0f;
            dv[r][c] = 0.0f;
        }
    }
    for (int h = h0; h < h0 + group; h++) {
        head = attention_head_of(a, b, h);
        for (int s0 = begin; s0 < end; s0 += STREAM) {
            __syncthreads();
            load<STREAM, DP>(a, stream, KEYS ? rows_of{a.q, head.q, a.q_stride} : k, s0);
            load<STREAM, DP>(a, stream + STREAM * (DP + 4),
                             KEYS ? rows_of{a.dy, head.y, a.y_stride} : v, s0);
            __syncthreads();
            slopes<DP, KEYS>(a, head, own, stream, own0, s0, weights, ds);
            __syncthreads();
            add_products<DP>(ds + row0, stream, x, dx);
            if (KEYS) {
                add_products<DP>(weights + row0, stream + STREAM * (DP + 4), x, dv);
            }
        }
    }
    row0 += own0;
    if (KEYS) {
        put<DP>(a, a.dk, head.kv, a.kv_stride, row0, a.scale, dx);
        put<DP>(a, a.dv, head.kv, a.kv_stride, row0, 1.0f, dv);
    } else {
        put<DP>(a, a.dq, head.q, a.q_stride, row0, a.scale, dx);
    }
}

template <typename T>
static int
delta_as(const shl_cuda_launch *l, const shl_attention_args *a, void *work)
{
    constexpr int N = chunk_of<T>::N;
    attention args = attention_from(a, work, N);
    int64_t rows = a->batch * a->seq * a->heads;
    int lanes_log2 = 0;
    while (1 << lanes_log2 < SHL_WARP && (N << lanes_log2) < a->head_dim) {
        lanes_log2++;
    }
    SHL_LAUNCH(delta_kernel<T>, static_cast<unsigned>(shl_ceil_div(rows << lanes_log2, THREADS)),
               THREADS, 0, l->stream, args, rows, lanes_log2, args.vectors);
    return launch_status();
}

int
shl_cuda_attention_delta(const shl_cuda_launch *l, const shl_attention_args *a, void *work)
{
    SHL_FOR_FLOAT(a->dtype, T, return (delta_as<T>(l, a, work)));
}

template <int DP>
static int
backward(const shl_cuda_launch *l, const shl_attention_args *a, void *work)
{
    static_assert(tile<DP>::BYTES <= ATTENTION_SHARED_BYTES, "a block has no more");
    attention args = attention_from(a, work, 4);
    int status = allow_shared(l, backward_kernel<DP, true>, tile<DP>::BYTES);
    if (status == 0) {
        status = allow_shared(l, backward_kernel<DP, false>, tile<DP>::BYTES);
    }
    if (status != 0) {
        return status;
    }
    SHL_LAUNCH((backward_kernel<DP, true>), attention_grid(l, a, a->kv_heads, tile<DP>::OWN),
               THREADS, tile<DP>::BYTES, l->stream, args);
    SHL_LAUNCH((backward_kernel<DP, false>), attention_grid(l, a, a->heads, tile<DP>::OWN), THREADS,
               tile<DP>::BYTES, l->stream, args);
    return launch_status();
}

extern "C" int
shl_cuda_attention_backward(const shl_cuda_launch *l, const void *args, void *work)
{
    const shl_attention_args *a = static_cast<const shl_attention_args *>(args);
    if (a->head_dim > ATTENTION_MAX_DIM) {
        return SHL_CUDA_UNSUPPORTED;
    }
    int status = shl_cuda_attention_delta(l, a, work);
    if (status != 0) {
        return status;
    }
    *l->ran = attention_kernel(a);
    if (attention_on_tensor_cores(a)) {
        return shl_cuda_attention_half_backward(l, a, work);
    }
    ATTENTION_FOR_WIDTH(a->head_dim, DP, return backward<DP>(l, a, work));
}

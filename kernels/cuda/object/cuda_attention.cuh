/* kernels/cuda/object: what the attention kernels share: their arguments by value, the dropped weights,
 * tiles in fp32 shared memory, and which kernel serves which shape. */
#ifndef SHL_CUDA_ATTENTION_CUH
#define SHL_CUDA_ATTENTION_CUH

#include "kernels/cuda/object/cuda_random.cuh"
#include "kernels/cuda/object/cuda_vector.cuh"

#ifdef SHL_EMULATED
#define SHL_UNROLL_FEW
#define SHL_UNROLL_STEPS
#define SHL_OUT_OF_LINE
#else
#define SHL_OUT_OF_LINE __noinline__
#define SHL_UNROLL_FEW _Pragma("unroll 4")
#define SHL_UNROLL_STEPS _Pragma("unroll STEPS") /* a constant of that name */
#endif

#define ATTENTION_LOG2E 1.4426950408889634f
#define ATTENTION_LN2 0.6931471805599453f
#define ATTENTION_MAX_DIM 256
/* What a block of sm_80 may have; sm_90 has 227 KiB. */
#define ATTENTION_SHARED_BYTES ((163u << 10) - SHL_SHARED_STATIC)

/* shl_attention_args in what a kernel wants. */
struct attention {
    const void *q, *k, *v, *dy;
    void *y, *dq, *dk, *dv;
    float *lse, *delta;
    int64_t q_stride, kv_stride, y_stride;
    int batch, seq, heads, kv_heads, group, dim;
    float scale, scale2; /* scale2: times log2(e), for weights by exp2 */
    shl_dtype dtype;
    bool vectors; /* every row of every tensor starts where a vector load may */
    uint64_t seed, stream, first_head;
    uint32_t bound; /* words below it drop a weight */
    float keep;     /* 1 / (1 - p), 0: no dropout */
};

/* One row block of one head of one sequence. */
struct attention_head {
    int b, h;         /* sequence; head, of queries or of keys */
    int64_t q, kv, y; /* first elements of token 0 */
    int64_t row;      /* of lse and delta */
    uint64_t word;    /* of query 0, key 0 */
};

static __device__ __forceinline__ attention_head
attention_head_of(const attention &a, int b, int h)
{
    attention_head at;
    at.b = b;
    at.h = h;
    at.q = static_cast<int64_t>(b) * a.seq * a.q_stride + static_cast<int64_t>(h) * a.dim;
    at.kv =
        static_cast<int64_t>(b) * a.seq * a.kv_stride + static_cast<int64_t>(h / a.group) * a.dim;
    at.y = static_cast<int64_t>(b) * a.seq * a.y_stride + static_cast<int64_t>(h) * a.dim;
    at.row = (static_cast<int64_t>(b) * a.heads + h) * a.seq;
    at.word = (a.first_head + static_cast<uint64_t>(b) * a.heads + h) * a.seq * a.seq;
    return at;
}

/* What dropout makes of the weight of query i and key j: times this (word index as shl_op_dropout_word). */
static __device__ __forceinline__ float
attention_factor(const attention &a, const attention_head &at, int i, int j)
{
    uint64_t index = at.word + static_cast<uint64_t>(i) * a.seq + j;
    uint32_t word[4];
    philox_block(a.seed, a.stream, index / 4, word);
    uint32_t low = index % 2 == 0 ? word[0] : word[1], high = index % 2 == 0 ? word[2] : word[3];
    return (index % 4 < 2 ? low : high) >= a.bound ? a.keep : 0.0f;
}

static __device__ __forceinline__ float4
attention_quad(const float *from)
{
    return *reinterpret_cast<const float4 *>(from);
}

/* Four 16-bit elements from memory that is aligned to four. */
template <typename T>
static __device__ __forceinline__ float4
attention_quad(const T *from)
{
    uint32_t w[2];
    load_wide<8>(w, from);
    T x[4];
    x[0].bits = static_cast<uint16_t>(w[0]);
    x[1].bits = static_cast<uint16_t>(w[0] >> 16);
    x[2].bits = static_cast<uint16_t>(w[1]);
    x[3].bits = static_cast<uint16_t>(w[1] >> 16);
    return make_float4(widen(x[0]), widen(x[1]), widen(x[2]), widen(x[3]));
}

/* Four elements of a row, zeros from `left` on. */
template <typename T>
static __device__ __forceinline__ float4
attention_some(const T *from, int left, bool vectors)
{
    if (vectors) {
        return attention_quad(from);
    }
    return make_float4(widen(from[0]), left > 1 ? widen(from[1]) : 0.0f,
                       left > 2 ? widen(from[2]) : 0.0f, left > 3 ? widen(from[3]) : 0.0f);
}

/* Element types are a matter of loads and stores; the kernels between them compute in fp32. */
static __device__ __forceinline__ float4
attention_get(const attention &a, const void *from, int64_t at, int left)
{
    if (a.dtype == SHL_F32) {
        return attention_some(static_cast<const float *>(from) + at, left, a.vectors);
    }
    return a.dtype == SHL_BF16
               ? attention_some(static_cast<const bf16 *>(from) + at, left, a.vectors)
               : attention_some(static_cast<const f16 *>(from) + at, left, a.vectors);
}

static __device__ __forceinline__ void
attention_put(const attention &a, void *to, int64_t at, float x)
{
    if (a.dtype == SHL_F32) {
        static_cast<float *>(to)[at] = x;
    } else if (a.dtype == SHL_BF16) {
        narrow(x, static_cast<bf16 *>(to) + at);
    } else {
        narrow(x, static_cast<f16 *>(to) + at);
    }
}

/* Rows of a tile in shared memory are DP + 4 floats apart: four floats of eight rows side by side lie
 * in 32 banks. to[ROWS][DP + 4] = `rows` rows of from, zeros behind them and behind dim. */
template <int ROWS, int DP, int THREADS>
static __device__ __forceinline__ void
attention_load(const attention &a, float *to, const void *from, int64_t first, int64_t stride,
               int rows)
{
    const int quads = DP / 4;
    SHL_UNROLL_FEW
    for (int e = static_cast<int>(threadIdx.x); e < ROWS * quads; e += THREADS) {
        int r = e / quads, d = e % quads * 4;
        float4 x = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (r < rows && d < a.dim) {
            x = attention_get(a, from, first + r * stride + d, a.dim - d);
        }
        *reinterpret_cast<float4 *>(to + r * (DP + 4) + d) = x;
    }
}

static __device__ __forceinline__ float
attention_dot(float sum, float4 x, float4 y)
{
    sum = fmaf(x.x, y.x, sum);
    sum = fmaf(x.y, y.y, sum);
    sum = fmaf(x.z, y.z, sum);
    return fmaf(x.w, y.w, sum);
}

/* out[r][c] = x[row0 + r * row_step] . y[column0 + 16 c], all DP elements in order. */
template <int DP, int ROWS, int COLUMNS>
static __device__ __forceinline__ void
attention_products(const float *x, int row0, int row_step, const float *y, int column0,
                   float out[ROWS][COLUMNS])
{
    SHL_UNROLL
    for (int r = 0; r < ROWS; r++) {
        SHL_UNROLL
        for (int c = 0; c < COLUMNS; c++) {
            out[r][c] = 0.0f;
        }
    }
    SHL_UNROLL_FEW
    for (int d = 0; d < DP; d += 4) {
        float4 column[COLUMNS];
        SHL_UNROLL
        for (int c = 0; c < COLUMNS; c++) {
            column[c] = attention_quad(y + (column0 + 16 * c) * (DP + 4) + d);
        }
        SHL_UNROLL
        for (int r = 0; r < ROWS; r++) {
            float4 row = attention_quad(x + (row0 + r * row_step) * (DP + 4) + d);
            SHL_UNROLL
            for (int c = 0; c < COLUMNS; c++) {
                out[r][c] = attention_dot(out[r][c], row, column[c]);
            }
        }
    }
}

/* Columns of a DP-wide row that lane x of 16 owns: VEC side by side, 16 VEC apart. */
template <int DP> struct attention_columns {
    static const int COUNT = DP / 16, VEC = COUNT < 4 ? COUNT : 4;
    static __device__ __forceinline__ int
    at(int x, int c)
    {
        return c / VEC * 16 * VEC + x * VEC + c % VEC;
    }
};

/* row[c] = the columns of lane x. */
template <int DP>
static __device__ __forceinline__ void
attention_own(const float *from, int x, float row[DP / 16])
{
    typedef attention_columns<DP> own;
    SHL_UNROLL
    for (int c = 0; c < own::COUNT; c += own::VEC) {
        const float *at = from + own::at(x, c);
        if constexpr (own::VEC == 4) {
            float4 v = attention_quad(at);
            row[c] = v.x;
            row[c + 1] = v.y;
            row[c + 2] = v.z;
            row[c + 3] = v.w;
        } else {
            float2 v = *reinterpret_cast<const float2 *>(at);
            row[c] = v.x;
            row[c + 1] = v.y;
        }
    }
}

static inline bool
attention_aligned(const void *data, int64_t stride, int elem, int vector)
{
    return reinterpret_cast<uintptr_t>(data) % static_cast<uintptr_t>(vector * elem) == 0 &&
           stride % vector == 0;
}

/* The arguments as kernels take them; loads are of `vector` elements where they may be. */
static inline attention
attention_from(const shl_attention_args *a, void *work, int vector)
{
    attention o = attention();
    int elem = a->dtype == SHL_F32 ? 4 : 2;
    o.q = a->q;
    o.k = a->k;
    o.v = a->v;
    o.dy = a->dy;
    o.y = a->y;
    o.dq = a->dq;
    o.dk = a->dk;
    o.dv = a->dv;
    o.lse = a->lse;
    o.delta = static_cast<float *>(work);
    o.q_stride = a->q_stride;
    o.kv_stride = a->kv_stride;
    o.y_stride = a->heads * a->head_dim;
    o.batch = static_cast<int>(a->batch);
    o.seq = static_cast<int>(a->seq);
    o.heads = static_cast<int>(a->heads);
    o.kv_heads = static_cast<int>(a->kv_heads);
    o.group = o.heads / o.kv_heads;
    o.dim = static_cast<int>(a->head_dim);
    o.scale = a->scale;
    o.scale2 = a->scale * ATTENTION_LOG2E;
    o.vectors = a->head_dim % vector == 0 && attention_aligned(a->q, a->q_stride, elem, vector) &&
                attention_aligned(a->k, a->kv_stride, elem, vector) &&
                attention_aligned(a->v, a->kv_stride, elem, vector) &&
                attention_aligned(a->y, o.y_stride, elem, vector) &&
                attention_aligned(a->dy, o.y_stride, elem, vector) &&
                attention_aligned(a->dq, a->q_stride, elem, vector) &&
                attention_aligned(a->dk, a->kv_stride, elem, vector) &&
                attention_aligned(a->dv, a->kv_stride, elem, vector);
    o.dtype = a->dtype;
    o.seed = a->dropout_seed;
    o.stream = a->dropout_stream;
    o.first_head = static_cast<uint64_t>(a->first_sequence) * static_cast<uint64_t>(a->heads);
    o.bound = static_cast<uint32_t>(a->dropout_p * 4294967296.0);
    o.keep = a->dropout_p > 0.0 ? static_cast<float>(1.0 / (1.0 - a->dropout_p)) : 0.0f;
    return o;
}

/* Blocks of a launch in the order in which the device starts them: some heads (x), as many as have what
 * streams past them in half of the L2, their row blocks (y) from the longest to the shortest, then the
 * next heads (z). `heads` of a sequence; the last heads of the last z may be none. */
static inline dim3
attention_grid(const shl_cuda_launch *l, const shl_attention_args *a, int64_t heads, int rows)
{
    int64_t elem = a->dtype == SHL_F32 ? 4 : 2, all = a->batch * heads;
    int64_t streamed = 2 * a->seq * a->head_dim * elem * (a->heads / heads);
    int64_t most = static_cast<int64_t>(l->info->l2_bytes / 2) / streamed;
    most = most < 1 ? 1 : most;
    int64_t turns = shl_ceil_div(all, most);
    turns = turns < 65535 ? turns : 65535;
    int64_t x = shl_ceil_div(all, turns);
    return dim3(static_cast<unsigned>(x), static_cast<unsigned>(shl_ceil_div(a->seq, rows)),
                static_cast<unsigned>(shl_ceil_div(all, x)));
}

/* The head of this block, of all sequences' heads. */
static __device__ __forceinline__ int
attention_head_here()
{
    return static_cast<int>(blockIdx.z * gridDim.x + blockIdx.x);
}

/* Calls with DP a constant: head_dim rounded up to a width that has kernels. */
#define ATTENTION_FOR_WIDTH(dim, DP, ...)                                                          \
    do {                                                                                           \
        if ((dim) <= 32) {                                                                         \
            constexpr int DP = 32;                                                                 \
            __VA_ARGS__;                                                                           \
        } else if ((dim) <= 64) {                                                                  \
            constexpr int DP = 64;                                                                 \
            __VA_ARGS__;                                                                           \
        } else if ((dim) <= 128) {                                                                 \
            constexpr int DP = 128;                                                                \
            __VA_ARGS__;                                                                           \
        } else {                                                                                   \
            constexpr int DP = 256;                                                                \
            __VA_ARGS__;                                                                           \
        }                                                                                          \
    } while (0)

/* bf16 with heads of whole 16-byte vectors goes to tensor cores; a matter of type and shape only. */
static inline bool
attention_on_tensor_cores(const shl_attention_args *a)
{
    return a->dtype == SHL_BF16 && a->head_dim % 8 == 0 && a->scale > 0.0f;
}

static inline const char *
attention_kernel(const shl_attention_args *a)
{
    return attention_on_tensor_cores(a) ? "own (tensor cores)" : "own (CUDA cores)";
}

/* cuda_attention_half.cu, cuda_attention_half_back.cu: what such shapes take. */
int shl_cuda_attention_half_forward(const shl_cuda_launch *l, const shl_attention_args *a);
int shl_cuda_attention_half_backward(const shl_cuda_launch *l, const shl_attention_args *a,
                                     void *work);
/* cuda_attention_back.cu: delta [B, NH, T], the first part of every backward. */
int shl_cuda_attention_delta(const shl_cuda_launch *l, const shl_attention_args *a, void *work);

#endif

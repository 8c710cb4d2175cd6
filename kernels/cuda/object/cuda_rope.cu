/* kernels/cuda/object: rotary embedding (Su et al. 2021) in place. A table of cosines and sines per
 * position is made for each call, angles in double: a float's would be off by 6e-5 at position 1000. */
#include "kernels/cuda/object/cuda_vector.cuh"

#define ROPE_BLOCK 256
#define ROPE_WAVES 64
#define ROPE_PAIRS 32 /* of a block of the table: one warp's lanes */
#define ROPE_HEADS 4  /* that a thread turns by the angles it holds */

/* Radians per position of pair i, as shl_rope_inv_freq. Llama 3.1: waves shorter than original / high are
 * left, those longer than original / low are divided by factor, between them the two are mixed. */
static __device__ double
rope_freq(double theta, const shl_rope_scaling &f, int64_t head_dim, int64_t i)
{
    const double two_pi = 6.283185307179586476925;
    double freq = pow(theta, -2.0 * static_cast<double>(i) / static_cast<double>(head_dim));
    if (f.kind == SHL_ROPE_LINEAR) {
        return freq / f.factor;
    }
    if (f.kind != SHL_ROPE_LLAMA3) {
        return freq;
    }
    double turns = static_cast<double>(f.original_context) * freq / two_pi;
    double share = (turns - f.low_freq_factor) / (f.high_freq_factor - f.low_freq_factor);
    share = fmin(fmax(share, 0.0), 1.0);
    return (1.0 - share) * freq / f.factor + share * freq;
}

/* table[t]: D/2 cosines, D/2 sines; lanes are pairs, warps go through positions. A power per pair and
 * thread and a sine with its cosine per entry, in double; 4 bytes written per position and D. */
static __global__ void
__launch_bounds__(ROPE_BLOCK)
    rope_table_kernel(float *table, double theta, shl_rope_scaling scaling, int64_t head_dim,
                      int64_t seq, int64_t first_position, bool inverse)
{
    int64_t half = head_dim / 2, warps = ROPE_BLOCK / SHL_WARP;
    int64_t i = blockIdx.x * static_cast<int64_t>(ROPE_PAIRS) + threadIdx.x % SHL_WARP;
    if (i >= half) {
        return;
    }
    double freq = rope_freq(theta, scaling, head_dim, i);
    for (int64_t t = blockIdx.y * warps + threadIdx.x / SHL_WARP; t < seq; t += gridDim.y * warps) {
        double s, c;
        sincos(static_cast<double>(first_position + t) * freq, &s, &c);
        table[t * head_dim + i] = static_cast<float>(c);
        table[t * head_dim + half + i] = static_cast<float>(inverse ? -s : s);
    }
}

template <typename T> struct rope_heads {
    T *q, *k;
    const float *table;
    int64_t q_stride, kv_stride, rows, seq;
    int heads, all; /* of q; of q and k */
    int half;
};

/* Turns N pairs of head h of a row: elements i and i + half. */
template <typename T, int N>
static __device__ __forceinline__ void
turn(const chunk<T, N> &first, const chunk<T, N> &second, const float *c, const float *s, T *at,
     int half)
{
    float a[N], b[N], x[N], y[N];
    chunk<T, N> out;
    widen(first, a);
    widen(second, b);
    SHL_UNROLL
    for (int i = 0; i < N; i++) {
        x[i] = a[i] * c[i] - b[i] * s[i];
        y[i] = b[i] * c[i] + a[i] * s[i];
    }
    narrow(x, &out);
    store_chunk(at, out);
    narrow(y, &out);
    store_chunk(at + half, out);
}

/* A thread takes N neighbouring pairs of up to ROPE_HEADS heads of a row, the loads of all in flight;
 * neighbouring threads take neighbouring chunks, then neighbouring heads. Reads and writes q and k: 8
 * bytes per element in fp32, 4 in 16 bits; the table stays in the cache. Two launches with the table. */
template <typename T, int N>
static __global__ void
__launch_bounds__(ROPE_BLOCK) rope_kernel(rope_heads<T> a)
{
    const int chunks = a.half / N, groups = (a.all + ROPE_HEADS - 1) / ROPE_HEADS;
    const int64_t per_row = static_cast<int64_t>(chunks) * groups;
    SHL_GRID_LOOP(item, a.rows * per_row)
    {
        int64_t row = quotient(item, per_row);
        int in_row = static_cast<int>(item - row * per_row);
        int group = in_row / chunks, i = (in_row - group * chunks) * N;
        int64_t position = row - quotient(row, a.seq) * a.seq;
        const float *angle = a.table + position * (2 * a.half) + i;
        chunk<float, N> of_c, of_s;
        chunk<T, N> first[ROPE_HEADS], second[ROPE_HEADS];
        T *at[ROPE_HEADS];
        float c[N], s[N];
        SHL_UNROLL
        for (int u = 0; u < ROPE_HEADS; u++) {
            int h = group + u * groups;
            T *q = a.q + row * a.q_stride + static_cast<int64_t>(h) * 2 * a.half;
            T *k = a.k + row * a.kv_stride + static_cast<int64_t>(h - a.heads) * 2 * a.half;
            at[u] = (h < a.heads ? q : k) + i;
            if (h < a.all) {
                load_chunk(&first[u], at[u]);
                load_chunk(&second[u], at[u] + a.half);
            }
        }
        load_chunk(&of_c, angle);
        load_chunk(&of_s, angle + a.half);
        widen(of_c, c);
        widen(of_s, s);
        SHL_UNROLL
        for (int u = 0; u < ROPE_HEADS; u++) {
            if (group + u * groups < a.all) {
                turn(first[u], second[u], c, s, at[u], a.half);
            }
        }
    }
}

/* Chunks stay whole and aligned: half a head, both strides and all addresses are multiples of them. */
template <typename T>
static bool
rope_by_chunks(const rope_heads<T> &a)
{
    constexpr int N = chunk_of<T>::N;
    uintptr_t at = reinterpret_cast<uintptr_t>(a.q) | reinterpret_cast<uintptr_t>(a.k) |
                   reinterpret_cast<uintptr_t>(a.table);
    return a.half % N == 0 && a.q_stride % N == 0 && (a.k == nullptr || a.kv_stride % N == 0) &&
           at % 16 == 0;
}

template <typename T>
static int
rope_as(const shl_cuda_launch *l, const shl_rope_args *a, float *table)
{
    constexpr int N = chunk_of<T>::N;
    int64_t heads = a->heads + (a->k != nullptr ? a->kv_heads : 0);
    rope_heads<T> f = {static_cast<T *>(a->q),
                       static_cast<T *>(a->k),
                       table,
                       a->q_stride,
                       a->kv_stride,
                       a->rows,
                       a->seq,
                       static_cast<int>(a->heads),
                       static_cast<int>(heads),
                       static_cast<int>(a->head_dim / 2)};
    int64_t threads = a->rows * ((heads + ROPE_HEADS - 1) / ROPE_HEADS) * f.half;
    if (rope_by_chunks(f)) {
        SHL_LAUNCH((rope_kernel<T, N>), grid_for(l, threads / N, ROPE_BLOCK, ROPE_WAVES),
                   ROPE_BLOCK, 0, l->stream, f);
    } else {
        SHL_LAUNCH((rope_kernel<T, 1>), grid_for(l, threads, ROPE_BLOCK, ROPE_WAVES), ROPE_BLOCK, 0,
                   l->stream, f);
    }
    return launch_status();
}

extern "C" int
shl_cuda_rope(const shl_cuda_launch *l, const void *args, void *work)
{
    const shl_rope_args *a = static_cast<const shl_rope_args *>(args);
    float *table = static_cast<float *>(work);
    int64_t pairs = (a->head_dim / 2 + ROPE_PAIRS - 1) / ROPE_PAIRS;
    int64_t positions = (a->seq + 63) / 64; /* eight of a warp */
    dim3 grid(static_cast<unsigned>(pairs),
              static_cast<unsigned>(positions < 4096 ? positions : 4096));
    SHL_LAUNCH(rope_table_kernel, grid, ROPE_BLOCK, 0, l->stream, table, a->theta, a->scaling,
               a->head_dim, a->seq, a->first_position, a->inverse);
    int status = launch_status();
    SHL_FOR_FLOAT(a->dtype, T, return (status != 0 ? status : rope_as<T>(l, a, table)));
}

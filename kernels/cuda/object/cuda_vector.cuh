/* kernels/cuda/object: chunks of neighbouring elements that move by loads and stores of 16 bytes (8
 * where a 16-bit tensor goes beside one of fp32), and the loop of all ops that touch every element once.
 * An element is computed by the same function alone or in a chunk, so its bits do not tell which. */
#ifndef SHL_CUDA_VECTOR_CUH
#define SHL_CUDA_VECTOR_CUH

#include "kernels/cuda/object/cuda_common.cuh"

/* BYTES (8 or 16) at once; `p` is a multiple of them. */
template <int BYTES>
static __device__ __forceinline__ void
load_wide(uint32_t *to, const void *p)
{
#ifdef SHL_EMULATED
    emulate_wide_copy<BYTES>(to, p, p);
#else
    if constexpr (BYTES == 16) {
        uint4 v = *static_cast<const uint4 *>(p);
        to[0] = v.x;
        to[1] = v.y;
        to[2] = v.z;
        to[3] = v.w;
    } else {
        uint2 v = *static_cast<const uint2 *>(p);
        to[0] = v.x;
        to[1] = v.y;
    }
#endif
}

/* To global memory: the compiler would split some plain stores of an unrolled loop into words. */
template <int BYTES>
static __device__ __forceinline__ void
store_wide(void *p, const uint32_t *from)
{
#ifdef SHL_EMULATED
    emulate_wide_copy<BYTES>(p, from, p);
#else
    if constexpr (BYTES == 16) {
        __stwb(static_cast<uint4 *>(p), make_uint4(from[0], from[1], from[2], from[3]));
    } else {
        __stwb(static_cast<uint2 *>(p), make_uint2(from[0], from[1]));
    }
#endif
}

/* Four floats to any memory. */
static __device__ __forceinline__ void
store_quad(float *p, const float *from)
{
#ifdef SHL_EMULATED
    emulate_wide_copy<16>(p, from, p);
#else
    *reinterpret_cast<float4 *>(p) = make_float4(from[0], from[1], from[2], from[3]);
#endif
}

/* A word to any memory. */
static __device__ __forceinline__ void
store_word(void *p, uint32_t word)
{
#ifdef SHL_EMULATED
    emulate_wide_copy<4>(p, &word, p);
#else
    *static_cast<uint32_t *>(p) = word;
#endif
}

/* N elements as they lie in memory: 8, 16 or 32 bytes, or one element. */
template <typename T, int N> struct chunk {
    uint32_t word[N * sizeof(T) / 4];
};
template <typename T> struct chunk<T, 1> {
    T one;
};

#define SHL_CHUNK_STEP(T, N) (N * static_cast<int>(sizeof(T)) < 16 ? 8 : 16)

template <typename T, int N>
static __device__ __forceinline__ void
load_chunk(chunk<T, N> *c, const T *p)
{
    constexpr int STEP = SHL_CHUNK_STEP(T, N);
    SHL_UNROLL
    for (int i = 0; i < N * static_cast<int>(sizeof(T)) / STEP; i++) {
        load_wide<STEP>(c->word + i * STEP / 4, reinterpret_cast<const char *>(p) + i * STEP);
    }
}

template <typename T>
static __device__ __forceinline__ void
load_chunk(chunk<T, 1> *c, const T *p)
{
    c->one = *p;
}

template <typename T, int N>
static __device__ __forceinline__ void
store_chunk(T *p, const chunk<T, N> &c)
{
    constexpr int STEP = SHL_CHUNK_STEP(T, N);
    SHL_UNROLL
    for (int i = 0; i < N * static_cast<int>(sizeof(T)) / STEP; i++) {
        store_wide<STEP>(reinterpret_cast<char *>(p) + i * STEP, c.word + i * STEP / 4);
    }
}

template <typename T>
static __device__ __forceinline__ void
store_chunk(T *p, const chunk<T, 1> &c)
{
    *p = c.one;
}

/* A chunk whose address need not be a multiple of anything but its element. */
template <typename T, int N>
static __device__ __forceinline__ void
load_chunk_at(chunk<T, N> *c, const T *p, bool aligned)
{
    if (aligned) {
        load_chunk(c, p);
    } else if constexpr (sizeof(T) == 4) {
        SHL_UNROLL
        for (int i = 0; i < N; i++) {
            c->word[i] = bits_of(p[i]);
        }
    } else {
        SHL_UNROLL
        for (int i = 0; i < N / 2; i++) {
            c->word[i] = static_cast<uint32_t>(p[2 * i + 1].bits) << 16 | p[2 * i].bits;
        }
    }
}

template <typename T>
static __device__ __forceinline__ void
load_chunk_at(chunk<T, 1> *c, const T *p, bool)
{
    c->one = *p;
}

template <typename T, int N>
static __device__ __forceinline__ void
store_chunk_at(T *p, const chunk<T, N> &c, bool aligned)
{
    if (aligned) {
        store_chunk(p, c);
    } else if constexpr (sizeof(T) == 4) {
        SHL_UNROLL
        for (int i = 0; i < N; i++) {
            p[i] = float_of(c.word[i]);
        }
    } else {
        SHL_UNROLL
        for (int i = 0; i < N / 2; i++) {
            p[2 * i].bits = static_cast<uint16_t>(c.word[i]);
            p[2 * i + 1].bits = static_cast<uint16_t>(c.word[i] >> 16);
        }
    }
}

template <typename T>
static __device__ __forceinline__ void
store_chunk_at(T *p, const chunk<T, 1> &c, bool)
{
    *p = c.one;
}

/* A chunk in fp32, and the way back. */
template <int N>
static __device__ __forceinline__ void
widen(const chunk<float, N> &c, float *x)
{
    SHL_UNROLL
    for (int i = 0; i < N; i++) {
        x[i] = float_of(c.word[i]);
    }
}

template <typename T, int N>
static __device__ __forceinline__ void
widen(const chunk<T, N> &c, float *x)
{
    SHL_UNROLL
    for (int i = 0; i < N / 2; i++) {
        T low = {static_cast<uint16_t>(c.word[i])}, high = {static_cast<uint16_t>(c.word[i] >> 16)};
        x[2 * i] = widen(low);
        x[2 * i + 1] = widen(high);
    }
}

static __device__ __forceinline__ void
widen(const chunk<float, 1> &c, float *x)
{
    *x = c.one;
}

template <typename T>
static __device__ __forceinline__ void
widen(const chunk<T, 1> &c, float *x)
{
    *x = widen(c.one);
}

template <int N>
static __device__ __forceinline__ void
narrow(const float *x, chunk<float, N> *c)
{
    SHL_UNROLL
    for (int i = 0; i < N; i++) {
        c->word[i] = bits_of(x[i]);
    }
}

template <typename T, int N>
static __device__ __forceinline__ void
narrow(const float *x, chunk<T, N> *c)
{
    SHL_UNROLL
    for (int i = 0; i < N / 2; i++) {
        c->word[i] = narrow_two(x[2 * i], x[2 * i + 1], T());
    }
}

static __device__ __forceinline__ void
narrow(const float *x, chunk<float, 1> *c)
{
    c->one = *x;
}

template <typename T>
static __device__ __forceinline__ void
narrow(const float *x, chunk<T, 1> *c)
{
    narrow(*x, &c->one);
}

/* Elements of a chunk for tensors of these types: 16 bytes of the widest. */
template <typename... T> struct chunk_of {
    static constexpr int N = ((sizeof(T) == 4) || ...) ? 4 : 8;
};

/* How n elements split: `head` single ones, `chunks` whole ones, the remainder single again. */
struct map_span {
    int64_t n, head, chunks;
};

struct map_tensor {
    const void *data;
    size_t elem_bytes;
};

/* The split in which every tensor's chunks are aligned; no chunks where there is none. */
template <int N>
static inline map_span
span_of(int64_t n, const map_tensor *t, int count)
{
    for (int head = 0; head < N; head++) {
        bool fits = true;
        for (int i = 0; i < count; i++) {
            size_t bytes = N * t[i].elem_bytes < 16 ? N * t[i].elem_bytes : 16;
            uintptr_t at = reinterpret_cast<uintptr_t>(t[i].data);
            fits = fits && (at + static_cast<size_t>(head) * t[i].elem_bytes) % bytes == 0;
        }
        if (fits) {
            return map_span{n, head, n > head ? (n - head) / N : 0};
        }
    }
    return map_span{n, 0, 0};
}

#define SHL_MAP_BLOCK 256
#define SHL_MAP_WAVES 64 /* blocks per multiprocessor: eight waves, so that the last costs little */

/* Calls f on every element once. F: N elements per chunk, U chunks of a thread in flight; load<M> fills
 * an `in<M>` from element `at` on, store<M> computes and writes. Outputs may be inputs: an element is
 * read before the same thread writes it. */
template <typename F>
static __global__ void
__launch_bounds__(SHL_MAP_BLOCK) map_kernel(F f, map_span s)
{
    constexpr int N = F::N, U = F::U;
    const int64_t tile = SHL_MAP_BLOCK * U;
    for (int64_t base = blockIdx.x * tile; base < s.chunks; base += gridDim.x * tile) {
        typename F::template in<N> v[U];
        int64_t first = base + threadIdx.x;
        SHL_UNROLL
        for (int u = 0; u < U; u++) {
            int64_t c = first + u * SHL_MAP_BLOCK;
            if (c < s.chunks) {
                f.load(&v[u], s.head + c * N);
            }
        }
        SHL_UNROLL
        for (int u = 0; u < U; u++) {
            int64_t c = first + u * SHL_MAP_BLOCK;
            if (c < s.chunks) {
                f.store(v[u], s.head + c * N);
            }
        }
    }
    SHL_GRID_LOOP(i, s.n - s.chunks * N)
    {
        int64_t at = i < s.head ? i : i + s.chunks * N;
        typename F::template in<1> v;
        f.load(&v, at);
        f.store(v, at);
    }
}

template <typename F>
static inline int
map_launch(const shl_cuda_launch *l, const F &f, const map_span &s)
{
    int64_t threads = (s.chunks + F::U - 1) / F::U, rest = s.n - s.chunks * F::N;
    if (s.n <= 0) {
        return 0;
    }
    SHL_LAUNCH((map_kernel<F>),
               grid_for(l, threads > rest ? threads : rest, SHL_MAP_BLOCK, SHL_MAP_WAVES),
               SHL_MAP_BLOCK, 0, l->stream, f, s);
    return launch_status();
}

#endif

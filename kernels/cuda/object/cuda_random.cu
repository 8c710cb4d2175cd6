/* kernels/cuda/object: initial values and dropout: pure functions of an element's place in the whole, so
 * that any partition draws what the CPU draws. */
#include "kernels/cuda/object/cuda_random.cuh"
#include "kernels/cuda/object/cuda_vector.cuh"

#define INIT_BLOCK 256
#define INIT_WAVES 16
#define TWO_PI 6.283185307179586476925
#define TWO_TO_MINUS_53 (1.0 / 9007199254740992.0)

/* The upper 53 bits of two words as a multiple of 2^-53 in [0, 1). */
static __device__ __forceinline__ double
unit_of(uint32_t low, uint32_t high)
{
    uint64_t word = static_cast<uint64_t>(high) << 32 | low;
    return static_cast<double>(word >> 11) * TWO_TO_MINUS_53;
}

/* Box-Muller in double, step by step as shl_rng_normal. Where the device's log, sin or cos differs from
 * the host's in the last bit of a double, the float differs only if that bit decides its rounding (about
 * one in 10^8), and then by one ulp. */
static __device__ __forceinline__ void
normal_pair(uint64_t seed, uint64_t stream, uint64_t pair, float *out)
{
    uint32_t w[4];
    double s, c;
    philox_block(seed, stream, pair, w);
    double radius = sqrt(-2.0 * log(1.0 - unit_of(w[0], w[1])));
    sincos(TWO_PI * unit_of(w[2], w[3]), &s, &c);
    out[0] = static_cast<float>(radius * c);
    out[1] = static_cast<float>(radius * s);
}

/* dst[i] = std times normal begin + i; a thread draws a pair. Bound by arithmetic in double (a logarithm
 * and a sine with its cosine per pair), not by its 2 or 4 bytes per element; once per parameter. */
template <typename T>
static __global__ void
__launch_bounds__(INIT_BLOCK)
    normal_kernel(T *dst, uint64_t seed, uint64_t stream, float std, int64_t begin, int64_t n)
{
    int64_t first = begin / 2, pairs = n > 0 ? (begin + n - 1) / 2 - first + 1 : 0;
    SHL_GRID_LOOP(p, pairs)
    {
        float z[2];
        normal_pair(seed, stream, static_cast<uint64_t>(first + p), z);
        int64_t at = 2 * (first + p) - begin;
        if (at >= 0) {
            narrow(std * z[0], &dst[at]);
        }
        if (at + 1 < n) {
            narrow(std * z[1], &dst[at + 1]);
        }
    }
}

/* dst[i] = value: writes 4 or 2 bytes per element. */
template <typename T> struct const_map {
    static constexpr int N = chunk_of<T>::N, U = 4;
    T *dst;
    float value;

    template <int M> struct in {
    };

    template <int M>
    __device__ __forceinline__ void
    load(in<M> *, int64_t) const
    {
    }

    template <int M>
    __device__ __forceinline__ void
    store(const in<M> &, int64_t at) const
    {
        float x[M];
        chunk<T, M> out;
        SHL_UNROLL
        for (int i = 0; i < M; i++) {
            x[i] = value;
        }
        narrow(x, &out);
        store_chunk(dst + at, out);
    }
};

template <typename T>
static int
init_as(const shl_cuda_launch *l, const shl_init_args *a)
{
    T *dst = static_cast<T *>(a->dst.data);
    int64_t n = elems_of(&a->dst);
    if (a->kind == SHL_INIT_CONST) {
        map_tensor t = {dst, sizeof(T)};
        const_map<T> f = {dst, static_cast<float>(a->value)};
        return map_launch(l, f, span_of<const_map<T>::N>(n, &t, 1));
    }
    SHL_LAUNCH(normal_kernel<T>, grid_for(l, n / 2 + 1, INIT_BLOCK, INIT_WAVES), INIT_BLOCK, 0,
               l->stream, dst, a->seed, a->stream, static_cast<float>(a->std), a->begin, n);
    return launch_status();
}

extern "C" int
shl_cuda_init(const shl_cuda_launch *l, const void *args, void *work)
{
    const shl_init_args *a = static_cast<const shl_init_args *>(args);
    SHL_UNUSED(work);
    SHL_FOR_FLOAT(a->dst.dtype, T, return (init_as<T>(l, a)));
}

/* y = x / (1 - p) where word first + e is at least the bound, else 0. Reads x, writes y: 8 bytes per
 * element in fp32, 4 in 16 bits; beside that some twenty integer instructions per element for the words
 * (half as much again where `first` is no multiple of 4), which the 16-bit form waits for. */
template <typename T> struct dropout_map {
    static constexpr int N = chunk_of<T>::N, U = 2;
    const T *x;
    T *y;
    uint64_t seed, stream, first;
    uint32_t bound;
    float scale;

    template <int M> struct in {
        chunk<T, M> x;
    };

    template <int M>
    __device__ __forceinline__ void
    load(in<M> *v, int64_t at) const
    {
        load_chunk(&v->x, x + at);
    }

    /* Words [index, index + M). */
    template <int M>
    __device__ __forceinline__ void
    words(uint64_t index, uint32_t *word) const
    {
        unsigned skip = static_cast<unsigned>(index % 4);
        uint32_t block[M + 4];
        SHL_UNROLL
        for (int i = 0; i < M; i += 4) {
            philox_block(seed, stream, index / 4 + static_cast<uint64_t>(i / 4), block + i);
        }
        if (M > 1 && skip != 0) {
            philox_block(seed, stream, index / 4 + M / 4, block + M);
        }
        SHL_UNROLL
        for (int i = 0; i < M; i++) {
            uint32_t even = skip & 1 ? block[i + 1] : block[i];
            uint32_t odd = skip & 1 ? block[i + 3] : block[i + 2];
            word[i] = skip & 2 ? odd : even;
        }
    }

    template <int M>
    __device__ __forceinline__ void
    store(const in<M> &v, int64_t at) const
    {
        float a[M];
        uint32_t word[M];
        chunk<T, M> out;
        widen(v.x, a);
        words<M>(first + static_cast<uint64_t>(at), word);
        SHL_UNROLL
        for (int i = 0; i < M; i++) {
            a[i] = word[i] >= bound ? a[i] * scale : 0.0f;
        }
        narrow(a, &out);
        store_chunk(y + at, out);
    }
};

template <typename T>
static int
dropout_as(const shl_cuda_launch *l, const shl_dropout_args *a)
{
    using F = dropout_map<T>;
    F f = {static_cast<const T *>(a->x.data),
           static_cast<T *>(a->y.data),
           a->seed,
           a->stream,
           static_cast<uint64_t>(a->first),
           static_cast<uint32_t>(a->p * 4294967296.0), /* shl_op_dropout_bound */
           static_cast<float>(1.0 / (1.0 - a->p))};
    map_tensor t[] = {{f.x, sizeof(T)}, {f.y, sizeof(T)}};
    return map_launch(l, f, span_of<F::N>(elems_of(&a->x), t, 2));
}

extern "C" int
shl_cuda_dropout(const shl_cuda_launch *l, const void *args, void *work)
{
    const shl_dropout_args *a = static_cast<const shl_dropout_args *>(args);
    SHL_UNUSED(work);
    SHL_FOR_FLOAT(a->x.dtype, T, return (dropout_as<T>(l, a)));
}

/* kernels/cuda/object: ops that touch every element once: add, scale, cast, sums over ranks, GELU.
 * Floor of each: the bytes named at its kernel over the copy rate; one launch. */
#include "kernels/cuda/object/cuda_vector.cuh"

#include <type_traits>

/* y = x1 + x2. Reads both, writes y: 12 bytes per element in fp32, 6 in 16 bits. */
template <typename T1, typename T2, typename T3> struct add_map {
    static constexpr int N = chunk_of<T1, T2, T3>::N, U = 2;
    const T1 *x1;
    const T2 *x2;
    T3 *y;

    template <int M> struct in {
        chunk<T1, M> x1;
        chunk<T2, M> x2;
    };

    template <int M>
    __device__ __forceinline__ void
    load(in<M> *v, int64_t at) const
    {
        load_chunk(&v->x1, x1 + at);
        load_chunk(&v->x2, x2 + at);
    }

    template <int M>
    __device__ __forceinline__ void
    store(const in<M> &v, int64_t at) const
    {
        float a[M], b[M];
        chunk<T3, M> out;
        widen(v.x1, a);
        widen(v.x2, b);
        SHL_UNROLL
        for (int i = 0; i < M; i++) {
            a[i] += b[i];
        }
        narrow(a, &out);
        store_chunk(y + at, out);
    }
};

template <typename T1, typename T2, typename T3>
static int
add_as(const shl_cuda_launch *l, const shl_add_args *a)
{
    using F = add_map<T1, T2, T3>;
    F f = {static_cast<const T1 *>(a->x1.data), static_cast<const T2 *>(a->x2.data),
           static_cast<T3 *>(a->y.data)};
    map_tensor t[] = {{f.x1, sizeof(T1)}, {f.x2, sizeof(T2)}, {f.y, sizeof(T3)}};
    return map_launch(l, f, span_of<F::N>(elems_of(&a->x1), t, 3));
}

extern "C" int
shl_cuda_add(const shl_cuda_launch *l, const void *args, void *work)
{
    const shl_add_args *a = static_cast<const shl_add_args *>(args);
    SHL_UNUSED(work);
    SHL_FOR_FLOAT(a->x1.dtype, T1,
                  SHL_FOR_FLOAT(a->x2.dtype, T2,
                                SHL_FOR_FLOAT(a->y.dtype, T3, return (add_as<T1, T2, T3>(l, a)))));
}

/* Ops from one tensor of T to one of TO, element by element: F::of(x). */
template <typename T, typename TO, typename F> struct unary_map {
    static constexpr int N = chunk_of<T, TO>::N, U = 4;
    const T *x;
    TO *y;
    F fn;

    template <int M> struct in {
        chunk<T, M> x;
    };

    template <int M>
    __device__ __forceinline__ void
    load(in<M> *v, int64_t at) const
    {
        load_chunk(&v->x, x + at);
    }

    template <int M>
    __device__ __forceinline__ void
    store(const in<M> &v, int64_t at) const
    {
        float a[M];
        chunk<TO, M> out;
        widen(v.x, a);
        SHL_UNROLL
        for (int i = 0; i < M; i++) {
            a[i] = fn.of(a[i]);
        }
        narrow(a, &out);
        store_chunk(y + at, out);
    }
};

template <typename T, typename TO, typename F>
static int
unary(const shl_cuda_launch *l, const shl_tensor *x, const shl_tensor *y, F fn)
{
    using map = unary_map<T, TO, F>;
    map f = {static_cast<const T *>(x->data), static_cast<TO *>(y->data), fn};
    map_tensor t[] = {{f.x, sizeof(T)}, {f.y, sizeof(TO)}};
    return map_launch(l, f, span_of<map::N>(elems_of(x), t, 2));
}

/* x *= factor. Reads and writes x: 8 bytes per element in fp32, 4 in 16 bits. */
struct scale_of {
    float factor;
    __device__ __forceinline__ float
    of(float x) const
    {
        return x * factor;
    }
};

extern "C" int
shl_cuda_scale(const shl_cuda_launch *l, const void *args, void *work)
{
    const shl_scale_args *a = static_cast<const shl_scale_args *>(args);
    SHL_UNUSED(work);
    SHL_FOR_FLOAT(a->x.dtype, T, return (unary<T, T>(l, &a->x, &a->x, scale_of{a->factor})));
}

/* dst = src in its type. Reads one, writes the other: 6 bytes per element between fp32 and 16 bits. */
struct cast_of {
    __device__ __forceinline__ float
    of(float x) const
    {
        return x;
    }
};

extern "C" int
shl_cuda_cast(const shl_cuda_launch *l, const void *args, void *work)
{
    const shl_cast_args *a = static_cast<const shl_cast_args *>(args);
    SHL_UNUSED(work);
    SHL_FOR_FLOAT(
        a->src.dtype, T,
        SHL_FOR_FLOAT(a->dst.dtype, TO, return (unary<T, TO>(l, &a->src, &a->dst, cast_of()))));
}

/* GELU, tanh form (Hendrycks & Gimpel 2016), as x sigmoid(z), z = 2 sqrt(2/pi) (x + 0.044715 x^3), which
 * has no cancellation where the value is near zero. exp(-z) = 2^(A x + B x^3): the two powers are taken
 * apart, and what rounding takes from each exponent (a whole ulp of it would cost the result up to seven
 * bits) comes back as one factor. The square and cube of a bf16 are exact in fp32, and so is its product
 * with the upper 16 bits of A. What an H200 has per element of bf16 at 0.85 of its copy rate (estimate, not
 * measured): 32 instructions forward, 48 backward, and 4 calls of its special functions. */
#define GELU_A (-2.302208198144325)     /* -2 sqrt(2/pi) log2(e) */
#define GELU_A_HIGH (-2.30218505859375) /* its upper 16 bits */
#define GELU_B (-0.1029432395800235)    /* 0.044715 GELU_A */

/* exp(-z), |x| <= 10, x of type T: a relative error below 2^-20. */
template <typename T>
static __device__ __forceinline__ float
gelu_exp_neg(float x)
{
    constexpr bool exact = std::is_same<T, bf16>::value;
    const float a = static_cast<float>(exact ? GELU_A_HIGH : GELU_A);
    const float b = static_cast<float>(GELU_B);
    const float a_low = static_cast<float>(GELU_A - static_cast<double>(a));
    const float b_low = static_cast<float>(GELU_B - static_cast<double>(b));
    float s = x * x, c = x * s;
    float m = a * x, n = b * c;
    float low = fmaf(b, c, -n);
    if (!exact) {
        float c_low = fmaf(x, fmaf(x, x, -s), fmaf(x, s, -c));
        low = fmaf(b, c_low, fmaf(a, x, -m) + low);
    }
    low = fmaf(a_low, x, fmaf(b_low, c, low));
    float e = fast_exp2(m) * fast_exp2(n);
    return fmaf(e, low * 0.693147181f, e);
}

/* Beyond |x| = 10 the sigmoid is 0 or 1 to the last bit of a float's range; 1 + exp(-z(-10)) < 2^126. */
template <typename T> struct gelu_of {
    __device__ __forceinline__ float
    of(float x) const
    {
        return x * fast_reciprocal(1.0f + gelu_exp_neg<T>(fminf(fmaxf(x, -10.0f), 10.0f)));
    }
};

/* Reads x, writes y: 8 bytes per element in fp32, 4 in 16 bits. */
extern "C" int
shl_cuda_gelu_forward(const shl_cuda_launch *l, const void *args, void *work)
{
    const shl_gelu_args *a = static_cast<const shl_gelu_args *>(args);
    SHL_UNUSED(work);
    SHL_FOR_FLOAT(a->x.dtype, T, return (unary<T, T>(l, &a->x, &a->y, gelu_of<T>())));
}

/* y' = s + x z' s (1 - s), with 1 - s = e s. A NaN stays one. */
template <typename T>
static __device__ __forceinline__ float
gelu_slope(float x)
{
    const float a = 1.59576912f, b3 = 0.214064449f; /* z' = a + b3 x^2 */
    float xc = x > 10.0f ? 10.0f : x < -10.0f ? -10.0f : x;
    float e = gelu_exp_neg<T>(xc);
    float s = fast_reciprocal(1.0f + e);
    return s * fmaf(xc * fmaf(xc * xc, b3, a), e * s, 1.0f);
}

/* dx = dy y'(x). Reads x and dy, writes dx: 12 bytes per element in fp32, 6 in 16 bits. */
template <typename T> struct gelu_back_map {
    static constexpr int N = chunk_of<T>::N, U = 2;
    const T *x, *dy;
    T *dx;

    template <int M> struct in {
        chunk<T, M> x, dy;
    };

    template <int M>
    __device__ __forceinline__ void
    load(in<M> *v, int64_t at) const
    {
        load_chunk(&v->x, x + at);
        load_chunk(&v->dy, dy + at);
    }

    template <int M>
    __device__ __forceinline__ void
    store(const in<M> &v, int64_t at) const
    {
        float a[M], g[M];
        chunk<T, M> out;
        widen(v.x, a);
        widen(v.dy, g);
        SHL_UNROLL
        for (int i = 0; i < M; i++) {
            g[i] *= gelu_slope<T>(a[i]);
        }
        narrow(g, &out);
        store_chunk(dx + at, out);
    }
};

template <typename T>
static int
gelu_back_as(const shl_cuda_launch *l, const shl_gelu_args *a)
{
    using F = gelu_back_map<T>;
    F f = {static_cast<const T *>(a->x.data), static_cast<const T *>(a->dy.data),
           static_cast<T *>(a->dx.data)};
    map_tensor t[] = {{f.x, sizeof(T)}, {f.dy, sizeof(T)}, {f.dx, sizeof(T)}};
    return map_launch(l, f, span_of<F::N>(elems_of(&a->x), t, 3));
}

extern "C" int
shl_cuda_gelu_backward(const shl_cuda_launch *l, const void *args, void *work)
{
    const shl_gelu_args *a = static_cast<const shl_gelu_args *>(args);
    SHL_UNUSED(work);
    SHL_FOR_FLOAT(a->x.dtype, T, return (gelu_back_as<T>(l, a)));
}

/* A launch carries the sources by value; the parameters of a kernel end at 4 KiB. */
#define SUM_SOURCES 256

template <typename T> struct sum_sources {
    const T *src[SUM_SOURCES];
};

/* U chunks of a thread, rank by rank: U loads in flight, and the compiler takes some ranks at once. */
template <typename T, int M, int U>
static __device__ __forceinline__ void
sum_chunks(const sum_sources<T> &from, int ranks, T *dst, bool add, const int64_t *at,
           const bool *in)
{
    float sum[U][M], x[M];
    chunk<T, M> c[U];
    SHL_UNROLL
    for (int u = 0; u < U; u++) {
        if (in[u]) {
            load_chunk(&c[u], from.src[0] + at[u]);
            widen(c[u], sum[u]);
        }
    }
    for (int k = 1; k < ranks; k++) {
        const T *src = from.src[k];
        SHL_UNROLL
        for (int u = 0; u < U; u++) {
            if (in[u]) {
                load_chunk(&c[u], src + at[u]);
            }
        }
        SHL_UNROLL
        for (int u = 0; u < U; u++) {
            if (in[u]) {
                widen(c[u], x);
                SHL_UNROLL
                for (int i = 0; i < M; i++) {
                    sum[u][i] += x[i];
                }
            }
        }
    }
    SHL_UNROLL
    for (int u = 0; u < U; u++) {
        if (in[u]) {
            if (add) {
                load_chunk(&c[u], dst + at[u]);
                widen(c[u], x);
                SHL_UNROLL
                for (int i = 0; i < M; i++) {
                    sum[u][i] = x[i] + sum[u][i];
                }
            }
            narrow(sum[u], &c[u]);
            store_chunk(dst + at[u], c[u]);
        }
    }
}

/* dst = src[0] + src[1] + ..., in that order in fp32. Reads each source (and dst, if added to), writes
 * dst: (n + 1) elements for each, one more if added to. dst may be a source: an element is read before
 * the same thread writes it. */
template <typename T>
static __global__ void
__launch_bounds__(SHL_MAP_BLOCK)
    sum_ranks_kernel(sum_sources<T> from, int ranks, T *dst, bool add, map_span s)
{
    constexpr int N = chunk_of<T>::N, U = 2;
    const int64_t tile = SHL_MAP_BLOCK * U;
    for (int64_t base = blockIdx.x * tile; base < s.chunks; base += gridDim.x * tile) {
        int64_t first = base + threadIdx.x;
        int64_t at[U] = {s.head + first * N, s.head + (first + SHL_MAP_BLOCK) * N};
        bool in[U] = {first < s.chunks, first + SHL_MAP_BLOCK < s.chunks};
        sum_chunks<T, N, U>(from, ranks, dst, add, at, in);
    }
    SHL_GRID_LOOP(i, s.n - s.chunks * N)
    {
        int64_t at = i < s.head ? i : i + s.chunks * N;
        bool in = true;
        sum_chunks<T, 1, 1>(from, ranks, dst, add, &at, &in);
    }
}

template <typename T>
static int
sum_ranks_as(const shl_cuda_launch *l, const shl_sum_ranks_args *a)
{
    constexpr int N = chunk_of<T>::N;
    sum_sources<T> from = {};
    map_tensor t[SUM_SOURCES + 1];
    int64_t n = elems_of(&a->dst);
    if (a->n > SUM_SOURCES) {
        return SHL_CUDA_UNSUPPORTED;
    }
    for (int k = 0; k < a->n; k++) {
        from.src[k] = static_cast<const T *>(a->srcs[k]);
        t[k] = map_tensor{a->srcs[k], sizeof(T)};
    }
    t[a->n] = map_tensor{a->dst.data, sizeof(T)};
    map_span s = span_of<N>(n, t, a->n + 1);
    int64_t threads = (s.chunks + 1) / 2, rest = n - s.chunks * N;
    if (n <= 0) {
        return 0;
    }
    SHL_LAUNCH(sum_ranks_kernel<T>,
               grid_for(l, threads > rest ? threads : rest, SHL_MAP_BLOCK, SHL_MAP_WAVES),
               SHL_MAP_BLOCK, 0, l->stream, from, a->n, static_cast<T *>(a->dst.data),
               a->add_to_dst, s);
    return launch_status();
}

extern "C" int
shl_cuda_sum_ranks(const shl_cuda_launch *l, const void *args, void *work)
{
    const shl_sum_ranks_args *a = static_cast<const shl_sum_ranks_args *>(args);
    SHL_UNUSED(work);
    SHL_FOR_FLOAT(a->dst.dtype, T, return (sum_ranks_as<T>(l, a)));
}

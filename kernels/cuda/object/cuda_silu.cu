/* kernels/cuda/object: y = silu(gate) * up (Shazeer 2020) and its backward, through strides. */
#include "kernels/cuda/object/cuda_vector.cuh"

/* Where element `at` of a dense [rows, cols] lies in one with `stride` elements between rows. */
struct strided {
    int64_t cols, stride;
    __device__ __forceinline__ int64_t
    of(int64_t at) const
    {
        if (cols == stride) {
            return at;
        }
        return at + quotient(at, cols) * (stride - cols);
    }
};

/* The split of a [rows, cols] whose chunks end with their row; all single elements where they would not. */
template <int N>
static map_span
rows_span(const shl_silu_mul_args *a, const map_tensor *t, int count)
{
    int64_t n = a->rows * a->cols;
    map_span s = span_of<N>(n, t, count);
    bool fits = a->cols == a->stride || (s.head == 0 && a->cols % N == 0 && a->stride % N == 0);
    return fits ? s : map_span{n, 0, 0};
}

/* Reads gate and up, writes y: 12 bytes per element in fp32, 6 in 16 bits; one launch. */
template <typename T> struct silu_map {
    static constexpr int N = chunk_of<T>::N, U = 2;
    const T *gate, *up;
    T *y;
    strided place;

    template <int M> struct in {
        chunk<T, M> gate, up;
    };

    template <int M>
    __device__ __forceinline__ void
    load(in<M> *v, int64_t at) const
    {
        int64_t from = place.of(at);
        load_chunk(&v->gate, gate + from);
        load_chunk(&v->up, up + from);
    }

    template <int M>
    __device__ __forceinline__ void
    store(const in<M> &v, int64_t at) const
    {
        float g[M], u[M];
        chunk<T, M> out;
        widen(v.gate, g);
        widen(v.up, u);
        SHL_UNROLL
        for (int i = 0; i < M; i++) {
            g[i] = g[i] / (expf(-g[i]) + 1.0f) * u[i];
        }
        narrow(g, &out);
        store_chunk(y + at, out);
    }
};

template <typename T>
static int
silu_as(const shl_cuda_launch *l, const shl_silu_mul_args *a)
{
    using F = silu_map<T>;
    F f = {static_cast<const T *>(a->gate),
           static_cast<const T *>(a->up),
           static_cast<T *>(a->y),
           {a->cols, a->stride}};
    map_tensor t[] = {{f.gate, sizeof(T)}, {f.up, sizeof(T)}, {f.y, sizeof(T)}};
    return map_launch(l, f, rows_span<F::N>(a, t, 3));
}

extern "C" int
shl_cuda_silu_mul_forward(const shl_cuda_launch *l, const void *args, void *work)
{
    const shl_silu_mul_args *a = static_cast<const shl_silu_mul_args *>(args);
    SHL_UNUSED(work);
    SHL_FOR_FLOAT(a->dtype, T, return (silu_as<T>(l, a)));
}

/* silu' = s + x s (1 - s), with 1 - s = exp(-x) s. exp stays finite for x from -87 on; below, silu and
 * silu' are 0 to 1e-36. A NaN stays one. */
static __device__ __forceinline__ void
silu_slopes(float *gate, float *up, float dy)
{
    float x = *gate;
    float xc = x < -87.0f ? -87.0f : x > 100.0f ? 100.0f : x;
    float e = expf(-xc);
    float s = 1.0f / (e + 1.0f);
    float silu = x < -87.0f ? -0.0f : x / (e + 1.0f);
    *gate = dy * *up * (s * fmaf(xc, e * s, 1.0f));
    *up = dy * silu;
}

/* Reads gate, up and dy, writes dgate and dup: 20 bytes per element in fp32, 10 in 16 bits; one launch. */
template <typename T> struct silu_back_map {
    static constexpr int N = chunk_of<T>::N, U = 2;
    const T *gate, *up, *dy;
    T *dgate, *dup;
    strided place;

    template <int M> struct in {
        chunk<T, M> gate, up, dy;
    };

    template <int M>
    __device__ __forceinline__ void
    load(in<M> *v, int64_t at) const
    {
        int64_t from = place.of(at);
        load_chunk(&v->gate, gate + from);
        load_chunk(&v->up, up + from);
        load_chunk(&v->dy, dy + at);
    }

    template <int M>
    __device__ __forceinline__ void
    store(const in<M> &v, int64_t at) const
    {
        int64_t to = place.of(at);
        float g[M], u[M], d[M];
        chunk<T, M> out;
        widen(v.gate, g);
        widen(v.up, u);
        widen(v.dy, d);
        SHL_UNROLL
        for (int i = 0; i < M; i++) {
            silu_slopes(&g[i], &u[i], d[i]);
        }
        narrow(g, &out);
        store_chunk(dgate + to, out);
        narrow(u, &out);
        store_chunk(dup + to, out);
    }
};

template <typename T>
static int
silu_back_as(const shl_cuda_launch *l, const shl_silu_mul_args *a)
{
    using F = silu_back_map<T>;
    F f = {static_cast<const T *>(a->gate), static_cast<const T *>(a->up),
           static_cast<const T *>(a->dy),   static_cast<T *>(a->dgate),
           static_cast<T *>(a->dup),        {a->cols, a->stride}};
    map_tensor t[] = {{f.gate, sizeof(T)},
                      {f.up, sizeof(T)},
                      {f.dy, sizeof(T)},
                      {f.dgate, sizeof(T)},
                      {f.dup, sizeof(T)}};
    return map_launch(l, f, rows_span<F::N>(a, t, 5));
}

extern "C" int
shl_cuda_silu_mul_backward(const shl_cuda_launch *l, const void *args, void *work)
{
    const shl_silu_mul_args *a = static_cast<const shl_silu_mul_args *>(args);
    SHL_UNUSED(work);
    SHL_FOR_FLOAT(a->dtype, T, return (silu_back_as<T>(l, a)));
}

/* kernels/cuda/object: layernorm (Ba et al. 2016) and rmsnorm (Zhang & Sennrich 2019) are one pair of
 * kernels: CENTRED takes the mean out and has a bias. What a thread sums, and in which order, follows
 * from type and width alone, so that alignment changes no bit.
 *
 * A row is cut into chunks of 16 bytes; thread t of a row's THREADS holds chunks t, t + THREADS, ...: up
 * to K of them in registers, so that x (and dy) is read once. K = 0 keeps nothing and reads again: rows
 * too wide for registers, unaligned tensors, and, by single elements, widths that are no multiple of a
 * chunk. */
#ifndef SHL_CUDA_NORM_CUH
#define SHL_CUDA_NORM_CUH

#include "kernels/cuda/object/cuda_vector.cuh"

#define NORM_ROWS SHL_WORK_NORM_ROWS /* of a block at once where a warp takes a row */
#define NORM_FORWARD_ROWS 4
#define NORM_WIDE 256   /* threads of a row that is too wide for a warp */
#define NORM_WIDEST 512 /* and of one that is too wide for those */

template <typename T> struct norm_forward {
    const T *x, *w, *b;
    T *y;
    float *mean, *rstd;
    int64_t rows;
    int cols;
    float eps;
    bool aligned;
};

/* Where a thread stands: its row of the block's, its place among the row's threads. */
template <int THREADS> struct norm_place {
    int thread, row, rows;
    __device__ __forceinline__
    norm_place()
        : thread(static_cast<int>(threadIdx.x) % THREADS),
          row(static_cast<int>(threadIdx.x) / THREADS), rows(static_cast<int>(blockDim.x) / THREADS)
    {
    }
};

/* One or two (b is not NULL) sums over the threads of a row, on each of them. */
template <int THREADS>
static __device__ __forceinline__ void
row_sums(float *a, float *b, float *room)
{
    *a = warp_sum(*a);
    if (b != nullptr) {
        *b = warp_sum(*b);
    }
    if constexpr (THREADS > SHL_WARP) {
        int lane = static_cast<int>(threadIdx.x) % SHL_WARP;
        int warp = static_cast<int>(threadIdx.x) / SHL_WARP;
        const int warps = THREADS / SHL_WARP;
        __syncthreads();
        if (lane == 0) {
            room[warp] = *a;
            room[SHL_WARP + warp] = b != nullptr ? *b : 0.0f;
        }
        __syncthreads();
        *a = warp_sum(lane < warps ? room[lane] : 0.0f);
        if (b != nullptr) {
            *b = warp_sum(lane < warps ? room[SHL_WARP + lane] : 0.0f);
        }
    }
}

/* N elements in fp32; K > 0 has aligned ones only. */
template <int N, int K, typename T>
static __device__ __forceinline__ void
load_widened(const T *p, bool aligned, float *to)
{
    chunk<T, N> c;
    if constexpr (K > 0) {
        load_chunk(&c, p);
    } else {
        load_chunk_at(&c, p, aligned);
    }
    widen(c, to);
}

template <int N, int K, typename T>
static __device__ __forceinline__ void
store_narrowed(T *p, bool aligned, const float *from)
{
    chunk<T, N> c;
    narrow(from, &c);
    if constexpr (K > 0) {
        store_chunk(p, c);
    } else {
        store_chunk_at(p, c, aligned);
    }
}

#ifdef __CUDACC__
#define NORM_UNROLL _Pragma("unroll (K > 0 ? K : 1)")
#else
#define NORM_UNROLL
#endif

/* For this thread's chunks of the row: the k-th of them is chunk c. */
#define NORM_CHUNKS(k, c)                                                                          \
    NORM_UNROLL                                                                                    \
    for (int k = 0; k < (K > 0 ? K : (chunks + THREADS - 1) / THREADS); k++)                       \
        if (int c = p.thread + k * THREADS; c < chunks)

/* Chunk k of a row: kept, or read now. */
template <int K, typename T, int N>
static __device__ __forceinline__ void
row_chunk(const chunk<T, N> *kept, int k, const T *row, int c, bool aligned, float *to)
{
    if constexpr (K > 0) {
        widen(kept[k], to);
    } else {
        load_widened<N, K>(row + c * N, aligned, to);
    }
}

/* Mean and 1/sqrt(variance) of a row. The second sum takes the rounding of the first out of the mean,
 * which matters where the mean is large against the spread. */
template <typename T, int N, int K, int THREADS, bool CENTRED>
static __device__ __forceinline__ void
row_moments(const norm_forward<T> &a, const T *x, const chunk<T, N> *kept, float *room, float *mean,
            float *rstd)
{
    norm_place<THREADS> p;
    const int chunks = a.cols / N;
    const float n = static_cast<float>(a.cols);
    float v[N], sum = 0.0f, square = 0.0f;
    *mean = 0.0f;
    if (CENTRED) {
        NORM_CHUNKS(k, c)
        {
            row_chunk<K>(kept, k, x, c, a.aligned, v);
            SHL_UNROLL
            for (int i = 0; i < N; i++) {
                *mean += v[i];
            }
        }
        row_sums<THREADS>(mean, nullptr, room);
        *mean /= n;
    }
    NORM_CHUNKS(k, c)
    {
        row_chunk<K>(kept, k, x, c, a.aligned, v);
        SHL_UNROLL
        for (int i = 0; i < N; i++) {
            float d = CENTRED ? v[i] - *mean : v[i];
            sum += CENTRED ? d : 0.0f;
            square = fmaf(d, d, square);
        }
    }
    row_sums<THREADS>(&square, CENTRED ? &sum : nullptr, room);
    float variance = square / n;
    if (CENTRED) {
        float off = sum / n; /* small against the spread: its square cancels nothing */
        *mean += off;
        variance = fmaxf(fmaf(-off, off, variance), 0.0f);
    }
    *rstd = 1.0f / sqrtf(variance + a.eps);
}

/* Reads x, writes y, mean and rstd: 8 bytes per element in fp32, 4 in 16 bits (w and b stay in the
 * cache); one launch. */
template <typename T, int N, int K, int THREADS, bool CENTRED>
static __global__ void
__launch_bounds__(THREADS == SHL_WARP ? NORM_FORWARD_ROWS * SHL_WARP : THREADS)
    norm_forward_kernel(norm_forward<T> a)
{
    __shared__ float room[2 * SHL_WARP];
    norm_place<THREADS> p;
    const int chunks = a.cols / N;
    for (int64_t row = blockIdx.x * static_cast<int64_t>(p.rows) + p.row; row < a.rows;
         row += gridDim.x * static_cast<int64_t>(p.rows)) {
        const T *x = a.x + row * a.cols;
        chunk<T, N> kept[K > 0 ? K : 1];
        float v[N], w[N], b[N], mean, rstd;
        if (K > 0) {
            NORM_CHUNKS(k, c)
            {
                load_chunk(&kept[k], x + c * N);
            }
        }
        row_moments<T, N, K, THREADS, CENTRED>(a, x, kept, room, &mean, &rstd);
        if (p.thread == 0) {
            a.rstd[row] = rstd;
            if (CENTRED) {
                a.mean[row] = mean;
            }
        }
        NORM_CHUNKS(k, c)
        {
            row_chunk<K>(kept, k, x, c, a.aligned, v);
            load_widened<N, K>(a.w + c * N, a.aligned, w);
            if (CENTRED) {
                load_widened<N, K>(a.b + c * N, a.aligned, b);
            }
            SHL_UNROLL
            for (int i = 0; i < N; i++) {
                v[i] = CENTRED ? fmaf((v[i] - mean) * rstd, w[i], b[i]) : v[i] * rstd * w[i];
            }
            store_narrowed<N, K>(a.y + row * a.cols + c * N, a.aligned, v);
        }
    }
}

template <typename T> struct norm_backward {
    const T *x, *w, *dy;
    const float *mean, *rstd;
    T *dx;
    float *partial; /* [runs][1 or 2][cols]; NULL (rmsnorm may): dx only */
    int64_t rows;
    int cols;
    bool accumulate_dx, aligned;
};

/* Where several rows share a block, or registers hold a row, the block's sums lie in shared memory; else
 * in its part of the scratch. */
template <int K, int THREADS> struct norm_sums {
    static constexpr bool in_shared = K > 0 || THREADS == SHL_WARP;
};

/* A block's sums of dw (and db behind it) lie so that neighbouring threads touch neighbouring quads:
 * quad q of chunk c is the four floats at (q chunks + c) 4; single elements lie in order. */
template <int N>
static __device__ __forceinline__ int
sum_place(int c, int i, int chunks)
{
    return N == 1 ? c : ((i / 4) * chunks + c) * 4 + i % 4;
}

template <int N>
static __device__ __forceinline__ void
load_sums(const float *from, int c, int chunks, float *to)
{
    if constexpr (N == 1) {
        *to = from[c];
    } else {
        SHL_UNROLL
        for (int q = 0; q < N; q += 4) {
            chunk<float, 4> four;
            load_chunk(&four, from + sum_place<N>(c, q, chunks));
            widen(four, to + q);
        }
    }
}

template <int N>
static __device__ __forceinline__ void
store_sums(float *to, int c, int chunks, const float *from)
{
    if constexpr (N == 1) {
        to[c] = *from;
    } else {
        SHL_UNROLL
        for (int q = 0; q < N; q += 4) {
            store_quad(to + sum_place<N>(c, q, chunks), from + q);
        }
    }
}

/* sums[chunk c] += g v (v NULL: += g). */
template <int N>
static __device__ __forceinline__ void
add_sums(float *sums, int c, int chunks, const float *g, const float *v)
{
    float s[N];
    load_sums<N>(sums, c, chunks, s);
    SHL_UNROLL
    for (int i = 0; i < N; i++) {
        s[i] = v != nullptr ? fmaf(g[i], v[i], s[i]) : s[i] + g[i];
    }
    store_sums<N>(sums, c, chunks, s);
}

/* A row as a thread holds it in backward. */
template <typename T, int N, int K> struct norm_row {
    int64_t at; /* its first element */
    float mean, rstd;
    chunk<T, N> kept_x[K > 0 ? K : 1], kept_dy[K > 0 ? K : 1];
};

/* Between the passes a row is kept as it lies in memory: what the first has made of it would take twice
 * the registers. */
template <typename T, int N>
static __device__ __forceinline__ void
keep_packed(chunk<T, N> *c)
{
#ifdef __CUDA_ARCH__
    SHL_UNROLL
    for (int i = 0; i < N * static_cast<int>(sizeof(T)) / 4; i++) {
        asm volatile("" : "+r"(c->word[i]));
    }
#else
    SHL_UNUSED(c);
#endif
}

/* First pass: this thread's part of sum(g) and sum(g xhat); dw and db of the block's rows. */
template <typename T, int N, int K, int THREADS, bool CENTRED>
static __device__ __forceinline__ void
row_slopes(const norm_backward<T> &a, const norm_row<T, N, K> &r, float *sums, float *sum,
           float *dot)
{
    norm_place<THREADS> p;
    const int chunks = a.cols / N;
    float v[N], g[N], w[N];
    NORM_CHUNKS(k, c)
    {
        row_chunk<K>(r.kept_x, k, a.x + r.at, c, a.aligned, v);
        row_chunk<K>(r.kept_dy, k, a.dy + r.at, c, a.aligned, g);
        load_widened<N, K>(a.w + c * N, a.aligned, w);
        SHL_UNROLL
        for (int i = 0; i < N; i++) {
            v[i] = (CENTRED ? v[i] - r.mean : v[i]) * r.rstd;
            float gw = g[i] * w[i];
            *sum += CENTRED ? gw : 0.0f;
            *dot = fmaf(gw, v[i], *dot);
        }
        if (CENTRED || a.partial != nullptr) {
            add_sums<N>(sums, c, chunks, g, v);
        }
        if (CENTRED) {
            add_sums<N>(sums + a.cols, c, chunks, g, nullptr);
        }
    }
}

/* Second pass: dx = rstd (g - mean(g) - xhat mean(g xhat)), g = dy w. */
template <typename T, int N, int K, int THREADS, bool CENTRED>
static __device__ __forceinline__ void
row_dx(const norm_backward<T> &a, const norm_row<T, N, K> &r, float g_mean, float gx_mean)
{
    norm_place<THREADS> p;
    const int chunks = a.cols / N;
    float v[N], g[N], w[N];
    NORM_CHUNKS(k, c)
    {
        row_chunk<K>(r.kept_x, k, a.x + r.at, c, a.aligned, v);
        row_chunk<K>(r.kept_dy, k, a.dy + r.at, c, a.aligned, g);
        load_widened<N, K>(a.w + c * N, a.aligned, w);
        SHL_UNROLL
        for (int i = 0; i < N; i++) {
            float xhat = (CENTRED ? v[i] - r.mean : v[i]) * r.rstd, gw = g[i] * w[i];
            v[i] = r.rstd * ((CENTRED ? gw - g_mean : gw) - xhat * gx_mean);
        }
        if (a.accumulate_dx) {
            load_widened<N, K>(a.dx + r.at + c * N, a.aligned, w);
            SHL_UNROLL
            for (int i = 0; i < N; i++) {
                v[i] += w[i];
            }
        }
        store_narrowed<N, K>(a.dx + r.at + c * N, a.aligned, v);
    }
}

/* dx, and this block's part of dw = sum dy xhat and db = sum dy. Of r rows at once, block B takes rows
 * B r ... B r + r - 1, then those gridDim r further on; each warp (or the block) adds its own rows in
 * order, then the warps are added in order.
 * Reads x and dy (and dx, if added to), writes dx: 12 (16) bytes per element in fp32, 6 (8) in 16 bits;
 * and the partial sums, a few percent of that. The sums of r rows lie in shared memory, 8 bytes per
 * column and row, read and written once per element. Two launches with the sum over blocks. */
template <typename T, int N, int K, int THREADS, bool CENTRED>
static __global__ void
__launch_bounds__(THREADS == SHL_WARP ? NORM_ROWS * SHL_WARP : THREADS,
                  THREADS == NORM_WIDEST || K == 8 ? 1
                  : K == 7 || THREADS > SHL_WARP
                      ? 2
                      : 3) /* blocks at once: what registers allow without a spill */
    norm_backward_kernel(norm_backward<T> a)
{
    SHL_DYNAMIC_SHARED(float, shared);
    __shared__ float room[2 * SHL_WARP];
    norm_place<THREADS> p;
    const int chunks = a.cols / N, width = (CENTRED ? 2 : 1) * a.cols;
    const float n = static_cast<float>(a.cols);
    constexpr bool in_shared = norm_sums<K, THREADS>::in_shared;
    float *own =
        a.partial == nullptr ? nullptr : a.partial + blockIdx.x * static_cast<int64_t>(width);
    float *sums = in_shared ? shared + p.row * width : own;
    if (CENTRED || own != nullptr) { /* this thread alone touches its chunks of them */
        float zero[N] = {};
        NORM_CHUNKS(k, c)
        {
            store_sums<N>(sums, c, chunks, zero);
            if (CENTRED) {
                store_sums<N>(sums + a.cols, c, chunks, zero);
            }
        }
    }
    for (int64_t row = blockIdx.x * static_cast<int64_t>(p.rows) + p.row; row < a.rows;
         row += gridDim.x * static_cast<int64_t>(p.rows)) {
        norm_row<T, N, K> r;
        r.at = row * a.cols;
        r.mean = CENTRED ? a.mean[row] : 0.0f;
        r.rstd = a.rstd[row];
        if (K > 0) {
            NORM_CHUNKS(k, c)
            {
                load_chunk(&r.kept_x[k], a.x + r.at + c * N);
                load_chunk(&r.kept_dy[k], a.dy + r.at + c * N);
            }
        }
        float sum = 0.0f, dot = 0.0f;
        row_slopes<T, N, K, THREADS, CENTRED>(a, r, sums, &sum, &dot);
        row_sums<THREADS>(&dot, CENTRED ? &sum : nullptr, room);
        if constexpr (K > 0) {
            SHL_UNROLL
            for (int k = 0; k < K; k++) {
                keep_packed(&r.kept_x[k]);
                keep_packed(&r.kept_dy[k]);
            }
        }
        row_dx<T, N, K, THREADS, CENTRED>(a, r, sum / n, dot / n);
    }
    if (in_shared && own != nullptr) {
        __syncthreads();
        for (int i = static_cast<int>(threadIdx.x); i < width; i += static_cast<int>(blockDim.x)) {
            float total = shared[i];
            for (int r = 1; r < p.rows; r++) {
                total += shared[r * width + i];
            }
            own[i] = total;
        }
    }
}

#define NORM_SUM_COLS 32
#define NORM_SUM_SLICES 16

/* dw (and db): the partial sums of all blocks: slice S adds blocks S, S + 16, ... in order, then the
 * slices are added in order. Reads the partial sums once. */
template <typename G, int N>
static __global__ void
__launch_bounds__(NORM_SUM_COLS *NORM_SUM_SLICES)
    norm_sum_kernel(const float *partial, int runs, int cols, int width, bool accumulate, G *dw,
                    G *db)
{
    __shared__ float part[NORM_SUM_SLICES][NORM_SUM_COLS];
    int lane = static_cast<int>(threadIdx.x) % NORM_SUM_COLS;
    int slice = static_cast<int>(threadIdx.x) / NORM_SUM_COLS;
    int i = static_cast<int>(blockIdx.x) * NORM_SUM_COLS + lane;
    float sum = 0.0f;
    if (i < width) {
        SHL_UNROLL_8
        for (int run = slice; run < runs; run += NORM_SUM_SLICES) {
            sum += partial[static_cast<int64_t>(run) * width + i];
        }
    }
    part[slice][lane] = sum;
    __syncthreads();
    if (slice == 0 && i < width) {
        for (int s = 1; s < NORM_SUM_SLICES; s++) {
            sum += part[s][lane];
        }
        int at = i % cols, chunks = cols / N;
        int col = N == 1 ? at : at / 4 % chunks * N + at / 4 / chunks * 4 + at % 4;
        G *to = (i < cols ? dw : db) + col;
        narrow(accumulate ? widen(*to) + sum : sum, to);
    }
}

/* The launches. */

static inline bool
norm_aligned(const void *const *p, int count)
{
    uintptr_t all = 0;
    for (int i = 0; i < count; i++) {
        all |= reinterpret_cast<uintptr_t>(p[i]);
    }
    return all % 16 == 0;
}

template <typename T, int N, int K, int THREADS, bool CENTRED>
static inline int
norm_forward_launch(const shl_cuda_launch *l, const norm_forward<T> &a)
{
    int rows = THREADS == SHL_WARP ? NORM_FORWARD_ROWS : 1;
    SHL_LAUNCH((norm_forward_kernel<T, N, K, THREADS, CENTRED>), grid_for(l, a.rows, rows, 64),
               static_cast<unsigned>(rows * THREADS), 0, l->stream, a);
    return launch_status();
}

/* Calls launch<N, K, THREADS>: a warp per row of up to WORK_NORM_WARP_BYTES, else a block; registers hold
 * eight chunks of a warp's row, four of a wider one. */
#define NORM_CHOOSE(launch, T, a, ...)                                                             \
    do {                                                                                           \
        constexpr int N = chunk_of<T>::N;                                                          \
        int chunks = (a).cols / N;                                                                 \
        bool narrow_row = (a).cols * static_cast<int>(sizeof(T)) <= SHL_WORK_NORM_WARP_BYTES;      \
        if ((a).cols % N != 0) {                                                                   \
            return narrow_row ? launch<T, 1, 0, SHL_WARP, CENTRED>(__VA_ARGS__)                    \
                              : launch<T, 1, 0, NORM_WIDE, CENTRED>(__VA_ARGS__);                  \
        }                                                                                          \
        if (chunks > 4 * NORM_WIDE) {                                                              \
            return launch<T, N, 0, NORM_WIDEST, CENTRED>(__VA_ARGS__);                             \
        }                                                                                          \
        if (!(a).aligned) {                                                                        \
            return narrow_row ? launch<T, N, 0, SHL_WARP, CENTRED>(__VA_ARGS__)                    \
                              : launch<T, N, 0, NORM_WIDE, CENTRED>(__VA_ARGS__);                  \
        }                                                                                          \
        if (!narrow_row) {                                                                         \
            return launch<T, N, 4, NORM_WIDE, CENTRED>(__VA_ARGS__);                               \
        }                                                                                          \
        if (chunks > 7 * SHL_WARP) {                                                               \
            return launch<T, N, 8, SHL_WARP, CENTRED>(__VA_ARGS__);                                \
        }                                                                                          \
        return chunks <= 4 * SHL_WARP ? launch<T, N, 4, SHL_WARP, CENTRED>(__VA_ARGS__)            \
                                      : launch<T, N, 7, SHL_WARP, CENTRED>(__VA_ARGS__);           \
    } while (0)

template <typename T, bool CENTRED>
static inline int
norm_forward_start(const shl_cuda_launch *l, const norm_forward<T> &a)
{
    NORM_CHOOSE(norm_forward_launch, T, a, l, a);
}

template <typename T, int N, int K, int THREADS, bool CENTRED>
static inline int
norm_backward_launch(const shl_cuda_launch *l, const norm_backward<T> &a, int runs)
{
    int rows = THREADS == SHL_WARP ? NORM_ROWS : 1;
    bool in_shared = norm_sums<K, THREADS>::in_shared && a.partial != nullptr;
    int bytes = in_shared ? rows * (CENTRED ? 2 : 1) * a.cols * 4 : 0;
    int status = allow_shared(l, norm_backward_kernel<T, N, K, THREADS, CENTRED>,
                              static_cast<size_t>(bytes));
    if (status != 0) {
        return status;
    }
    SHL_LAUNCH((norm_backward_kernel<T, N, K, THREADS, CENTRED>), static_cast<unsigned>(runs),
               static_cast<unsigned>(rows * THREADS), static_cast<size_t>(bytes), l->stream, a);
    return launch_status();
}

template <typename T, bool CENTRED>
static inline int
norm_backward_start(const shl_cuda_launch *l, const norm_backward<T> &a, int runs)
{
    NORM_CHOOSE(norm_backward_launch, T, a, l, a, runs);
}

template <typename G>
static inline int
norm_sum_launch(const shl_cuda_launch *l, const float *partial, int runs, int cols, int width,
                int n, bool accumulate, void *dw, void *db)
{
    unsigned grid = static_cast<unsigned>((width + NORM_SUM_COLS - 1) / NORM_SUM_COLS);
    const unsigned block = NORM_SUM_COLS * NORM_SUM_SLICES;
    G *w = static_cast<G *>(dw), *b = static_cast<G *>(db);
    if (n == 1) {
        SHL_LAUNCH((norm_sum_kernel<G, 1>), grid, block, 0, l->stream, partial, runs, cols, width,
                   accumulate, w, b);
    } else if (n == 4) {
        SHL_LAUNCH((norm_sum_kernel<G, 4>), grid, block, 0, l->stream, partial, runs, cols, width,
                   accumulate, w, b);
    } else {
        SHL_LAUNCH((norm_sum_kernel<G, 8>), grid, block, 0, l->stream, partial, runs, cols, width,
                   accumulate, w, b);
    }
    return launch_status();
}

#endif

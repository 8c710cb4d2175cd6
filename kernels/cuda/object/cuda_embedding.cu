/* kernels/cuda/object: embedding rows forward, and their gradients in row order: rows are sorted
 * by token with a stable radix sort of our own, then every token's rows are added one after the
 * other. No atomics on floats: the bits are the CPU's. */
#include "kernels/cuda/object/cuda_embedding.cuh"

#define PACK 4

/* Threads for a row of `packs` packs. */
static unsigned
threads_for(int64_t packs)
{
    int64_t threads = shl_round_up(packs, SHL_WARP);
    return static_cast<unsigned>(threads < 256 ? threads : 256);
}

/* One block per row. Floor: bytes; a row of wte read (wpe stays in the cache), a row of y
 * written; one launch. A token outside the vocabulary sets the fault and leaves its row of y
 * alone. */
template <typename T, int N>
static __global__ void
embed_kernel(const int32_t *token, const T *wte, const T *wpe, T *y, int64_t width, int64_t vocab,
             int64_t seq, uint32_t *faults)
{
    int64_t row = blockIdx.x, index = token[row];
    if (index < 0 || index >= vocab) {
        if (threadIdx.x == 0) {
            faults[SHL_CUDA_FAULT_TOKEN] = 1;
        }
        return;
    }
    const T *from = wte + index * width;
    const T *place = wpe == nullptr ? nullptr : wpe + row % seq * width;
    for (int64_t c = threadIdx.x * N; c < width; c += static_cast<int64_t>(blockDim.x) * N) {
        pack<T, N> x = load_pack<N>(from + c);
        if (place != nullptr) {
            pack<T, N> p = load_pack<N>(place + c);
            for (int j = 0; j < N; j++) {
                narrow(widen(x.at[j]) + widen(p.at[j]), &x.at[j]);
            }
        }
        store_pack<N>(y + row * width + c, x);
    }
}

extern "C" int
shl_cuda_embedding_forward(const shl_cuda_launch *l, const void *args, void *work)
{
    const shl_embedding_args *a = static_cast<const shl_embedding_args *>(args);
    const int32_t *token = static_cast<const int32_t *>(a->tokens.data);
    int64_t rows = elems_of(&a->tokens), vocab = a->wte.dims[0], width = a->wte.dims[1];
    bool packs = width % PACK == 0 && packs_fit(a->wte.data, a->wte.dtype, PACK) &&
                 packs_fit(a->wpe.data, a->wte.dtype, PACK) &&
                 packs_fit(a->y.data, a->wte.dtype, PACK);
    SHL_UNUSED(work);
    SHL_FOR_FLOAT(
        a->wte.dtype, T, const T *wte = static_cast<const T *>(a->wte.data);
        const T *wpe = static_cast<const T *>(a->wpe.data); T *y = static_cast<T *>(a->y.data);
        if (packs) {
            SHL_LAUNCH((embed_kernel<T, PACK>), static_cast<unsigned>(rows),
                       threads_for(width / PACK), 0, l->stream, token, wte, wpe, y, width, vocab,
                       a->seq, l->faults);
        } else {
            SHL_LAUNCH((embed_kernel<T, 1>), static_cast<unsigned>(rows), threads_for(width), 0,
                       l->stream, token, wte, wpe, y, width, vocab, a->seq, l->faults);
        });
    return launch_status();
}

/* Rows under way at once; they are added in their order. A frequent token is a chain of its rows, each a
 * latency of memory divided by these. */
#define AHEAD 8

template <int N, typename G>
static __device__ __forceinline__ void
begin_sum(bool accumulate, const G *dw, float *sum)
{
    pack<G, N> old = {};
    if (accumulate) {
        old = load_pack<N>(dw);
    }
    for (int j = 0; j < N; j++) {
        sum[j] = widen(old.at[j]);
    }
}

template <int N, typename G>
static __device__ __forceinline__ void
end_sum(const float *sum, G *dw)
{
    pack<G, N> out;
    for (int j = 0; j < N; j++) {
        narrow(sum[j], &out.at[j]);
    }
    store_pack<N>(dw, out);
}

template <int N, typename T>
static __device__ __forceinline__ void
add_packs(const pack<T, N> *x, int n, float *sum)
{
    for (int k = 0; k < AHEAD; k++) {
        for (int j = 0; k < n && j < N; j++) {
            sum[j] += widen(x[k].at[j]);
        }
    }
}

/* A block of x per place and of y per strip of columns: rows place, place + seq, ... of dy.
 * Floor: bytes; dy read, dwpe written; one launch. */
template <typename T, typename G, int N>
static __global__ void
places_kernel(const T *dy, G *dw, int64_t rows, int64_t seq, int64_t width, bool accumulate)
{
    int64_t place = blockIdx.x;
    int64_t c = (static_cast<int64_t>(blockIdx.y) * blockDim.x + threadIdx.x) * N;
    if (c >= width || (place >= seq && accumulate)) {
        return;
    }
    float sum[N];
    begin_sum<N>(accumulate, dw + place * width + c, sum);
    for (int64_t row = place < seq ? place : rows; row < rows; row += AHEAD * seq) {
        pack<T, N> x[AHEAD];
        int n = 0;
        for (int k = 0; k < AHEAD; k++) {
            if (row + k * seq < rows) {
                x[k] = load_pack<N>(dy + (row + k * seq) * width + c);
                n = k + 1;
            }
        }
        add_packs(x, n, sum);
    }
    end_sum<N>(sum, dw + place * width + c);
}

/* A block of x per sorted row, of which the first of each token adds all of them. Floor: bytes;
 * dy read, touched rows of dwte written (read too where they accumulate). A token that fills the
 * batch is a chain of `rows` additions. */
template <typename T, typename G, int N>
static __global__ void
tokens_kernel(const token_row *sorted, const T *dy, G *dw, int64_t rows, int64_t width,
              int64_t vocab, bool accumulate)
{
    int64_t first = blockIdx.x;
    uint32_t token = sorted[first].token;
    int64_t c = (static_cast<int64_t>(blockIdx.y) * blockDim.x + threadIdx.x) * N;
    bool head = first == 0 || sorted[first - 1].token != token;
    if (!head || token >= vocab || c >= width) {
        return;
    }
    float sum[N];
    begin_sum<N>(accumulate, dw + token * width + c, sum);
    int n = AHEAD;
    for (int64_t r = first; n == AHEAD; r += AHEAD) {
        pack<T, N> x[AHEAD];
        n = 0;
        for (int k = 0; k < AHEAD; k++) {
            if (n == k && r + k < rows && sorted[r + k].token == token) {
                x[k] = load_pack<N>(dy + sorted[r + k].row * width + c);
                n = k + 1;
            }
        }
        add_packs(x, n, sum);
    }
    end_sum<N>(sum, dw + token * width + c);
}

/* Floor: bytes written; one launch. */
template <typename T, int N>
static __global__ void
zero_kernel(T *x, int64_t packs)
{
    SHL_GRID_LOOP(i, packs)
    {
        pack<T, N> zero = {};
        store_pack<N>(x + i * N, zero);
    }
}

template <typename T, typename G, int N>
static void
add_places(const shl_cuda_launch *l, const shl_embedding_args *a)
{
    int64_t width = a->dy.dims[1];
    unsigned block = threads_for(width / N);
    dim3 grid(static_cast<unsigned>(a->dwpe.dims[0]),
              static_cast<unsigned>(shl_ceil_div(width / N, block)));
    SHL_LAUNCH((places_kernel<T, G, N>), grid, block, 0, l->stream,
               static_cast<const T *>(a->dy.data), static_cast<G *>(a->dwpe.data), a->dy.dims[0],
               a->seq, width, a->accumulate_wpe);
}

template <typename T, typename G, int N>
static void
add_tokens(const shl_cuda_launch *l, const shl_embedding_args *a, const token_row *sorted)
{
    int64_t rows = a->dy.dims[0], width = a->dy.dims[1], vocab = a->dwte.dims[0];
    G *dw = static_cast<G *>(a->dwte.data);
    if (!a->accumulate_wte) {
        int64_t packs = vocab * width / N;
        SHL_LAUNCH((zero_kernel<G, N>), grid_for(l, packs, 256, 8), 256, 0, l->stream, dw, packs);
    }
    unsigned block = threads_for(width / N);
    dim3 grid(static_cast<unsigned>(rows), static_cast<unsigned>(shl_ceil_div(width / N, block)));
    SHL_LAUNCH((tokens_kernel<T, G, N>), grid, block, 0, l->stream, sorted,
               static_cast<const T *>(a->dy.data), dw, rows, width, vocab, a->accumulate_wte);
}

/* Fn(T, G, N) for the types of dy and of a gradient, in packs where both allow. */
#define FOR_GRADIENT(a, dw, fn, ...)                                                               \
    SHL_FOR_FLOAT((a)->dy.dtype, T,                                                                \
                  SHL_FOR_FLOAT((dw).dtype, G,                                                     \
                                if (packs_in((a), (dw))) { fn<T, G, PACK>(__VA_ARGS__); } else {   \
                                    fn<T, G, 1>(__VA_ARGS__);                                      \
                                }))

static bool
packs_in(const shl_embedding_args *a, const shl_tensor &dw)
{
    return a->dy.dims[1] % PACK == 0 && packs_fit(a->dy.data, a->dy.dtype, PACK) &&
           packs_fit(dw.data, dw.dtype, PACK);
}

extern "C" int
shl_cuda_embedding_backward(const shl_cuda_launch *l, const void *args, void *work)
{
    const shl_embedding_args *a = static_cast<const shl_embedding_args *>(args);
    if (a->dwte.data != nullptr) {
        const token_row *sorted = sort_tokens(l, static_cast<const int32_t *>(a->tokens.data),
                                              elems_of(&a->tokens), a->dwte.dims[0], work);
        FOR_GRADIENT(a, a->dwte, add_tokens, l, a, sorted);
    }
    if (a->dwpe.data != nullptr) {
        FOR_GRADIENT(a, a->dwpe, add_places, l, a);
    }
    return launch_status();
}

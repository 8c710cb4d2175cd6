/* kernels/cuda/object: fused softmax cross-entropy, in place. A block takes a row into shared
 * memory, as much of it as fits, so that the logits are read once and their gradients written
 * once; a longer row's rest is read again, from the cache by then. Which thread takes an element
 * depends on its column only. */
#include "kernels/cuda/object/cuda_pack.cuh"

#define WIDE_BLOCK 512
#define NARROW_BLOCK 128
#define NARROW_VOCAB 4096
#define ORDER_BLOCK 256
#define STATIC_BYTES 1024 /* of shared memory, left for what is not the row */

/* One row in memory and the part of it, [0, cached), whose image lies in shared memory, both at
 * the same place within 16 bytes. */
template <typename T> struct loss_row {
    T *x, *image;
    int64_t n;
    int cached, head, packs; /* head: columns before the first aligned address */
};

template <typename T>
static __device__ __forceinline__ loss_row<T>
row_of(T *x, int64_t n, int cached, T *shared)
{
    const int per = SHL_PACK_BYTES / sizeof(T);
    loss_row<T> r;
    int past = static_cast<int>(reinterpret_cast<uintptr_t>(x) % SHL_PACK_BYTES / sizeof(T));
    r.x = x;
    r.image = shared + past;
    r.n = n;
    r.cached = cached;
    r.head = past == 0 ? 0 : per - past;
    r.head = r.head < cached ? r.head : cached;
    r.packs = (cached - r.head) / per;
    return r;
}

/* Brings the row in; the largest logit of those that this thread saw. */
template <typename T>
static __device__ __forceinline__ float
take_row(const loss_row<T> &r)
{
    const int per = SHL_PACK_BYTES / sizeof(T);
    int thread = static_cast<int>(threadIdx.x), block = static_cast<int>(blockDim.x);
    float top = -INFINITY;
    SHL_UNROLL_BY(4)
    for (int k = thread; k < r.packs; k += block) {
        pack<T, per> p = load_pack<per>(r.x + r.head + k * per);
        store_pack<per>(r.image + r.head + k * per, p);
        for (int j = 0; j < per; j++) {
            top = fmaxf(top, widen(p.at[j]));
        }
    }
    for (int i = thread; i < r.cached - r.packs * per; i += block) {
        int at = i < r.head ? i : i + r.packs * per;
        r.image[at] = r.x[at];
        top = fmaxf(top, widen(r.image[at]));
    }
    for (int64_t i = r.cached + thread; i < r.n; i += block) {
        top = fmaxf(top, widen(r.x[i]));
    }
    return top;
}

/* Writes the image back. */
template <typename T>
static __device__ __forceinline__ void
give_row(const loss_row<T> &r)
{
    const int per = SHL_PACK_BYTES / sizeof(T);
    int thread = static_cast<int>(threadIdx.x), block = static_cast<int>(blockDim.x);
    for (int k = thread; k < r.packs; k += block) {
        int at = r.head + k * per;
        store_pack<per>(r.x + at, load_pack<per>(r.image + at));
    }
    for (int i = thread; i < r.cached - r.packs * per; i += block) {
        int at = i < r.head ? i : i + r.packs * per;
        r.x[at] = r.image[at];
    }
}

/* Gradient of one logit: (softmax - onehot) dloss. */
template <typename T>
static __device__ __forceinline__ T
slope_of(T x, float top, float factor, float minus)
{
    return narrowed<T>(__expf(widen(x) - top) * factor - minus);
}

/* Sum of this thread's exponentials; a thread takes columns thread, thread + block, ... */
template <typename T>
static __device__ __forceinline__ float
sum_row(const loss_row<T> &r, float top)
{
    int thread = static_cast<int>(threadIdx.x), block = static_cast<int>(blockDim.x);
    float sum = 0.0f;
    int64_t i = thread;
    SHL_UNROLL_BY(4)
    for (; i < r.cached; i += block) {
        sum += __expf(widen(r.image[i]) - top);
    }
    SHL_UNROLL_BY(4)
    for (; i < r.n; i += block) {
        sum += __expf(widen(r.x[i]) - top);
    }
    return sum;
}

template <typename T>
static __device__ __forceinline__ void
slope_row(const loss_row<T> &r, int64_t target, float top, float factor, float dloss)
{
    int thread = static_cast<int>(threadIdx.x), block = static_cast<int>(blockDim.x);
    int64_t i = thread;
    SHL_UNROLL_BY(4)
    for (; i < r.cached; i += block) {
        r.image[i] = slope_of(r.image[i], top, factor, i == target ? dloss : 0.0f);
    }
    SHL_UNROLL_BY(4)
    for (; i < r.n; i += block) {
        r.x[i] = slope_of(r.x[i], top, factor, i == target ? dloss : 0.0f);
    }
}

/* A row without a target has no loss and no gradient. */
template <typename T>
static __device__ __forceinline__ void
zero_row(const loss_row<T> &r)
{
    for (int64_t i = threadIdx.x; i < r.n; i += blockDim.x) {
        r.x[i] = narrowed<T>(0.0f);
    }
}

/* One block per row. Floor: bytes; the logits read once and, where gradients are wanted, written
 * once, two exponentials for each; one launch. */
template <typename T>
static __global__ void
__launch_bounds__(WIDE_BLOCK, 2)
    loss_kernel(T *logits, const int32_t *targets, int64_t vocab, int cached, float dloss,
                bool want_grad, double *losses, uint32_t *faults)
{
    SHL_DYNAMIC_SHARED(T, shared);
    __shared__ float max_room[SHL_WARP];
    __shared__ double sum_room[SHL_WARP];
    int64_t row = blockIdx.x, target = targets[row];
    loss_row<T> r = row_of(logits + row * vocab, vocab, cached, shared);
    bool inside = target >= 0 && target < vocab;
    if (!inside) {
        if (threadIdx.x == 0) {
            losses[row] = 0.0;
        }
        if (threadIdx.x == 0 && target != SHL_IGNORE_INDEX) {
            faults[SHL_CUDA_FAULT_TARGET] = 1;
        }
        if (want_grad) {
            zero_row(r);
        }
        return;
    }
    float logit = widen(r.x[target]);
    float top = block_max(take_row(r), max_room); /* its barriers stand behind the image too */
    double sum = block_sum(static_cast<double>(sum_row(r, top)), sum_room);
    if (threadIdx.x == 0) {
        losses[row] = log(sum) + (static_cast<double>(top) - static_cast<double>(logit));
    }
    if (want_grad) {
        slope_row(r, target, top, static_cast<float>(static_cast<double>(dloss) / sum), dloss);
        __syncthreads();
        give_row(r);
    }
}

/* Adds the losses of rows one after the other: a chain of R additions in double, by one thread,
 * from tiles that the block fetches. Floor: the chain; one launch. */
static __global__ void
loss_order_kernel(const double *losses, int64_t rows, double *loss_sum)
{
    __shared__ double tile[ORDER_BLOCK];
    double sum = 0.0;
    if (threadIdx.x == 0) {
        sum = *loss_sum;
    }
    for (int64_t begin = 0; begin < rows; begin += ORDER_BLOCK) {
        int64_t n = rows - begin < ORDER_BLOCK ? rows - begin : ORDER_BLOCK;
        if (static_cast<int64_t>(threadIdx.x) < n) {
            tile[threadIdx.x] = losses[begin + threadIdx.x];
        }
        __syncthreads();
        for (int i = 0; threadIdx.x == 0 && i < n; i++) {
            sum += tile[i];
        }
        __syncthreads();
    }
    if (threadIdx.x == 0) {
        *loss_sum = sum;
    }
}

template <typename T>
static int
run_loss(const shl_cuda_launch *l, const shl_cross_entropy_args *a, double *losses)
{
    const int64_t per = SHL_PACK_BYTES / sizeof(T);
    int64_t rows = a->logits.dims[0], vocab = a->logits.dims[1];
    int64_t room =
        static_cast<int64_t>((l->info->block_shared_bytes - STATIC_BYTES) / sizeof(T)) - per;
    int64_t cached = vocab < room ? vocab : room;
    size_t bytes = static_cast<size_t>(shl_round_up(cached + per, per)) * sizeof(T);
    int block = vocab <= NARROW_VOCAB ? NARROW_BLOCK : WIDE_BLOCK;
    int status = cudaFuncSetAttribute(loss_kernel<T>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      static_cast<int>(bytes));
    if (status != 0) {
        return status;
    }
    SHL_LAUNCH(loss_kernel<T>, static_cast<unsigned>(rows), block, bytes, l->stream,
               static_cast<T *>(a->logits.data), static_cast<const int32_t *>(a->targets.data),
               vocab, static_cast<int>(cached), a->dloss, a->want_grad, losses, l->faults);
    return launch_status();
}

extern "C" int
shl_cuda_cross_entropy(const shl_cuda_launch *l, const void *args, void *work)
{
    const shl_cross_entropy_args *a = static_cast<const shl_cross_entropy_args *>(args);
    double *losses = static_cast<double *>(work),
           *loss_sum = static_cast<double *>(a->loss_sum.data);
    int status = 0;
    SHL_FOR_FLOAT(a->logits.dtype, T, status = run_loss<T>(l, a, losses));
    if (status != 0) {
        return status;
    }
    SHL_LAUNCH(loss_order_kernel, 1, ORDER_BLOCK, 0, l->stream, losses, a->logits.dims[0],
               loss_sum);
    return launch_status();
}

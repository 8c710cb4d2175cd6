/* kernels/cuda/object: fused softmax cross-entropy, in place. A row is read once, for its maximum and
 * the sum of its exponentials together (Milakov & Gimelshein 2018), and written once: what fits of it
 * stays in shared memory meanwhile, the rest of a longer row is read again, from the cache by then. */
#include "kernels/cuda/object/cuda_pack.cuh"

#include <cfloat>

#define WIDE_BLOCK 512
#define NARROW_BLOCK 128
#define NARROW_VOCAB 4096
#define ORDER_BLOCK 256
#define STATIC_BYTES 1024 /* of shared memory, left for what is not the row */
#define AT_ONCE 4         /* packs that a thread has under way */

/* Elements of a pack. */
template <typename T> struct loss_pack {
    static const int per = SHL_PACK_BYTES / sizeof(T);
    pack<T, per> p;
};

/* One row in packs: pack k is columns [k per, (k + 1) per), the last one perhaps shorter. It is the
 * affair of thread k mod block alone, so its image is too, and no bit depends on where the row lies. */
template <typename T> struct loss_row {
    T *x, *image;
    int64_t n;
    int packs, kept; /* kept: how many, from the first on, have an image in shared memory */
    bool aligned;
};

/* What a thread knows of its packs: the largest logit, and the sum of exp(logit - top). */
struct loss_sum {
    float top, sum;
};

/* Pack k from memory; columns behind the row are -inf, which adds nothing. */
template <typename T>
static __device__ __forceinline__ loss_pack<T>
take(const loss_row<T> &r, int k)
{
    const int per = loss_pack<T>::per;
    int64_t at = static_cast<int64_t>(k) * per;
    loss_pack<T> out;
    if (r.aligned && at + per <= r.n) {
        out.p = load_pack<per>(r.x + at);
        return out;
    }
    for (int j = 0; j < per; j++) {
        out.p.at[j] = at + j < r.n ? r.x[at + j] : narrowed<T>(-INFINITY);
    }
    return out;
}

template <typename T>
static __device__ __forceinline__ void
give(const loss_row<T> &r, int k, const loss_pack<T> &in)
{
    const int per = loss_pack<T>::per;
    int64_t at = static_cast<int64_t>(k) * per;
    if (r.aligned && at + per <= r.n) {
        store_pack<per>(r.x + at, in.p);
        return;
    }
    for (int j = 0; j < per && at + j < r.n; j++) {
        r.x[at + j] = in.p.at[j];
    }
}

/* A larger top than before shrinks what was added so far; few packs bring one. */
template <typename T>
static __device__ __forceinline__ void
add_pack(const loss_pack<T> &in, loss_sum *s)
{
    float top = s->top;
    for (int j = 0; j < in.per; j++) {
        top = fmaxf(top, widen(in.p.at[j]));
    }
    if (top > s->top) {
        s->sum *= __expf(s->top - top);
        s->top = top;
    }
    for (int j = 0; j < in.per; j++) {
        s->sum += __expf(widen(in.p.at[j]) - top);
    }
}

template <typename T>
static __device__ __forceinline__ void
keep_and_add(const loss_row<T> &r, int k, const loss_pack<T> &in, loss_sum *s)
{
    if (k < r.kept) {
        store_pack<loss_pack<T>::per>(r.image + k * loss_pack<T>::per, in.p);
    }
    add_pack(in, s);
}

/* Reads this thread's packs in order, several at once while they are whole. -FLT_MAX, not -inf, is
 * below every logit: exp(-inf + FLT_MAX) is 0. */
template <typename T>
static __device__ __forceinline__ loss_sum
read_row(const loss_row<T> &r)
{
    const int per = loss_pack<T>::per;
    int block = static_cast<int>(blockDim.x), k = static_cast<int>(threadIdx.x);
    int whole = r.aligned ? static_cast<int>(r.n / per) : 0;
    loss_sum s = {-FLT_MAX, 0.0f};
    for (; k + (AT_ONCE - 1) * block < whole; k += AT_ONCE * block) {
        loss_pack<T> in[AT_ONCE];
        SHL_UNROLL
        for (int q = 0; q < AT_ONCE; q++) {
            in[q].p = load_pack<per>(r.x + static_cast<int64_t>(k + q * block) * per);
        }
        SHL_UNROLL
        for (int q = 0; q < AT_ONCE; q++) {
            keep_and_add(r, k + q * block, in[q], &s);
        }
    }
    for (; k < r.packs; k += block) {
        keep_and_add(r, k, take(r, k), &s);
    }
    return s;
}

/* Gradients: (softmax - onehot) dloss. */
template <typename T>
static __device__ __forceinline__ void
write_row(const loss_row<T> &r, int64_t target, float top, float factor, float dloss)
{
    const int per = loss_pack<T>::per;
    SHL_UNROLL_BY(2)
    for (int k = static_cast<int>(threadIdx.x); k < r.packs; k += static_cast<int>(blockDim.x)) {
        int hit = static_cast<int>(target - static_cast<int64_t>(k) * per);
        loss_pack<T> out;
        if (k < r.kept) {
            out.p = load_pack<per>(r.image + k * per);
        } else {
            out = take(r, k);
        }
        for (int j = 0; j < per; j++) {
            float slope = __expf(widen(out.p.at[j]) - top) * factor;
            out.p.at[j] = narrowed<T>(slope - (j == hit ? dloss : 0.0f));
        }
        give(r, k, out);
    }
}

/* A row without a target has no loss and no gradient. */
template <typename T>
static __device__ __forceinline__ void
zero_row(const loss_row<T> &r)
{
    loss_pack<T> zero;
    for (int j = 0; j < zero.per; j++) {
        zero.p.at[j] = narrowed<T>(0.0f);
    }
    for (int k = static_cast<int>(threadIdx.x); k < r.packs; k += static_cast<int>(blockDim.x)) {
        give(r, k, zero);
    }
}

/* One block per row. Floor: bytes; the logits read once and, where gradients are wanted, written
 * once, two exponentials for each; one launch. A row that fits in shared memory (50257 columns in 16
 * bits: 98 KiB, two blocks on a multiprocessor that has 228) moves just that; of a longer one the rest
 * comes twice, the second time from the second-level cache unless that is smaller than the rests of
 * all rows under way: at worst, all of it from memory, 3 / 2 of the floor. */
template <typename T>
static __global__ void
__launch_bounds__(WIDE_BLOCK, 2)
    loss_kernel(T *logits, const int32_t *targets, int64_t vocab, int64_t stride, int kept,
                float dloss, bool want_grad, double *losses, uint32_t *faults)
{
    SHL_DYNAMIC_SHARED(T, image);
    __shared__ float max_room[SHL_WARP];
    __shared__ double sum_room[SHL_WARP];
    const int per = loss_pack<T>::per;
    int64_t row = blockIdx.x, target = targets[row];
    T *x = logits + row * stride;
    loss_row<T> r = {x,     image,
                     vocab, static_cast<int>((vocab + per - 1) / per),
                     kept,  is_aligned(x, SHL_PACK_BYTES)};
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
    float logit = widen(x[target]); /* of old: barriers stand before it is overwritten */
    loss_sum s = read_row(r);
    float top = block_max(s.top, max_room);
    double sum = block_sum(static_cast<double>(s.sum * __expf(s.top - top)), sum_room);
    if (threadIdx.x == 0) {
        losses[row] = log(sum) + (static_cast<double>(top) - static_cast<double>(logit));
    }
    if (want_grad) {
        write_row(r, target, top, static_cast<float>(static_cast<double>(dloss) / sum), dloss);
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
    int64_t rows = a->logits.dims[0], vocab = a->logits.dims[1];
    int64_t packs = shl_ceil_div(vocab, loss_pack<T>::per), room = 0;
    if (a->want_grad) {
        room = static_cast<int64_t>(l->info->block_shared_bytes - STATIC_BYTES) / SHL_PACK_BYTES;
    }
    int64_t kept = packs < room ? packs : room;
    size_t bytes = static_cast<size_t>(kept) * SHL_PACK_BYTES;
    int block = vocab <= NARROW_VOCAB ? NARROW_BLOCK : WIDE_BLOCK;
    int status = cudaFuncSetAttribute(loss_kernel<T>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      static_cast<int>(bytes));
    if (status != 0) {
        return status;
    }
    SHL_LAUNCH(loss_kernel<T>, static_cast<unsigned>(rows), block, bytes, l->stream,
               static_cast<T *>(a->logits.data), static_cast<const int32_t *>(a->targets.data),
               vocab, shl_row_stride(a->stride, vocab), static_cast<int>(kept), a->dloss,
               a->want_grad, losses, l->faults);
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

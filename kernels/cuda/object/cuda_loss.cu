/* kernels/cuda/object: fused softmax cross-entropy, in place. A row is read once, for a maximum and the
 * sum of its exponentials together (Milakov & Gimelshein 2018), and written once: what fits of it
 * lies in shared memory meanwhile, the rest of a longer row is read again, from the cache by then. */
#include "kernels/cuda/object/cuda_mma.cuh"
#include "kernels/cuda/object/cuda_vector.cuh"

#include <cfloat>

#define NARROW_BLOCK 128 /* a power of two, as all blocks here */
#define NARROW_VOCAB 4096
#define ORDER_BLOCK 256
#define PACK_BYTES 16
#define BATCHES 4 /* of copies into shared memory, waited for one after the other */
#define AT_ONCE 4 /* packs without an image that a thread has under way */
#define LOG2E 1.4426950408889634f
#define LOSS_QUANTUM 0x1p-26 /* what a row's loss is a multiple of: finer than fp32 knows it */
#define EXACT_BELOW 0x1p26   /* sums of multiples of it have no rounding, in any order */
#define TOO_LARGE 256.0f     /* a pack's sum that asks for a new top */

/* Threads of a wide row's block, and blocks of a multiprocessor; elements of a pack. A row of fp32 may
 * fill shared memory alone, so it has all the threads. */
template <typename T> struct loss_shape {
    static constexpr int BLOCK = sizeof(T) == 4 ? 1024 : 512, BLOCKS = sizeof(T) == 4 ? 1 : 2;
    static constexpr int PER = PACK_BYTES / static_cast<int>(sizeof(T));
};
template <typename T> using loss_pack = chunk<T, loss_shape<T>::PER>;

/* One row in packs: pack k is columns [k PER, (k + 1) PER), the last one perhaps shorter. It is the
 * affair of thread k mod block alone, so its image is too, and no bit depends on where the row lies. */
template <typename T> struct loss_row {
    T *x, *image;
    int64_t n;
    int packs;
    int kept;  /* how many, from the first on, have an image in shared memory */
    int whole; /* how many, from the first on, move at once */
};

/* What a thread knows of its packs: a logit that is the largest or not far below it, and the sum of
 * exp(logit - top). */
struct loss_sum {
    float top, sum;
};

/* exp(x - top). The difference comes first: it is exact where it matters, whatever the logits' size. */
static __device__ __forceinline__ float
exp_below(float x, float top)
{
    return fast_exp2((x - top) * LOG2E);
}

/* Pack k from memory; columns behind the row are -inf, which adds nothing. */
template <typename T>
static __device__ __forceinline__ void
take(const loss_row<T> &r, int k, loss_pack<T> *out)
{
    const int PER = loss_shape<T>::PER;
    int64_t at = static_cast<int64_t>(k) * PER;
    if (k < r.whole) {
        load_chunk(out, r.x + at);
        return;
    }
    float v[PER];
    SHL_UNROLL
    for (int j = 0; j < PER; j++) {
        v[j] = at + j < r.n ? widen(r.x[at + j]) : -INFINITY;
    }
    narrow(v, out);
}

template <typename T>
static __device__ __forceinline__ void
give(const loss_row<T> &r, int k, const float *v)
{
    const int PER = loss_shape<T>::PER;
    int64_t at = static_cast<int64_t>(k) * PER;
    if (k < r.whole) {
        loss_pack<T> out;
        narrow(v, &out);
        store_chunk(r.x + at, out);
        return;
    }
    SHL_UNROLL
    for (int j = 0; j < PER; j++) {
        if (at + j < r.n) {
            r.x[at + j] = narrowed<T>(v[j]);
        }
    }
}

/* Where this thread's batch q of packs with an image ends: whole turns of the block. */
template <typename T>
static __device__ __forceinline__ int
batch_end(const loss_row<T> &r, int q)
{
    int block = static_cast<int>(blockDim.x), turns = (r.kept + block - 1) / block;
    int end = (q + 1) * ((turns + BATCHES - 1) / BATCHES) * block;
    return end < r.kept ? end : r.kept;
}

/* Sends for images of the packs from *k to the end of batch q: all of them are on their way, in no
 * registers, before the first one is looked at. */
template <typename T>
static __device__ __forceinline__ void
send_for(const loss_row<T> &r, int q, int *k, async_copies *copies)
{
    const int PER = loss_shape<T>::PER;
    int block = static_cast<int>(blockDim.x), end = batch_end(r, q);
    int plain = end < r.whole ? end : r.whole;
    for (; *k < plain; *k += block) {
        copies->copy(r.image + *k * PER, r.x + static_cast<int64_t>(*k) * PER, true);
    }
    for (; *k < end; *k += block) {
        loss_pack<T> odd;
        take(r, *k, &odd);
        for (int w = 0; w < PACK_BYTES / 4; w++) {
            store_word(reinterpret_cast<uint32_t *>(r.image + *k * PER) + w, odd.word[w]);
        }
    }
    copies->commit();
}

template <typename T>
static __device__ __forceinline__ float
pack_sum(const loss_pack<T> &in, float top)
{
    const int PER = loss_shape<T>::PER;
    float e[PER];
    widen(in, e);
    SHL_UNROLL
    for (int j = 0; j < PER; j++) {
        e[j] = exp_below(e[j], top);
    }
    SHL_UNROLL
    for (int half = PER / 2; half > 0; half /= 2) {
        SHL_UNROLL
        for (int j = 0; j < half; j++) {
            e[j] += e[j + half];
        }
    }
    return e[0];
}

/* The largest of top and the pack's. */
template <typename T>
static __device__ __forceinline__ float
pack_top(const loss_pack<T> &in, float top)
{
    const int PER = loss_shape<T>::PER;
    float x[PER];
    widen(in, x);
    SHL_UNROLL
    for (int j = 0; j < PER; j++) {
        top = fmaxf(top, x[j]);
    }
    return top;
}

/* A top somewhat below the largest logit does no harm, so no maximum is looked for before a sum grows
 * large. */
template <typename T>
static __device__ __forceinline__ void
add_pack(const loss_pack<T> &in, loss_sum *s)
{
    float sum = pack_sum<T>(in, s->top);
    if (sum > TOO_LARGE) {
        float top = pack_top<T>(in, s->top);
        s->sum *= exp_below(s->top, top);
        s->top = top;
        sum = pack_sum<T>(in, top);
    }
    s->sum += sum;
}

/* Adds the packs from *k to the end of a batch that has arrived. */
template <typename T>
static __device__ __forceinline__ void
add_batch(const loss_row<T> &r, int q, int *k, loss_sum *s)
{
    for (int end = batch_end(r, q); *k < end; *k += static_cast<int>(blockDim.x)) {
        loss_pack<T> in;
        load_chunk(&in, r.image + *k * loss_shape<T>::PER);
        add_pack<T>(in, s);
    }
}

/* Adds this thread's packs in order, from the top of the first one on. -FLT_MAX, not -inf, is below every
 * logit: exp(-inf + FLT_MAX) is 0. */
template <typename T>
static __device__ __forceinline__ loss_sum
add_row(const loss_row<T> &r, async_copies *copies)
{
    int block = static_cast<int>(blockDim.x), k = static_cast<int>(threadIdx.x);
    loss_sum s = {-FLT_MAX, 0.0f};
    copies->wait_but<3>();
    if (k < r.kept) {
        loss_pack<T> first;
        load_chunk(&first, r.image + k * loss_shape<T>::PER);
        s.top = pack_top<T>(first, s.top);
    }
    add_batch(r, 0, &k, &s);
    copies->wait_but<2>();
    add_batch(r, 1, &k, &s);
    copies->wait_but<1>();
    add_batch(r, 2, &k, &s);
    copies->wait_but<0>();
    add_batch(r, 3, &k, &s);
    for (; k + (AT_ONCE - 1) * block < r.whole; k += AT_ONCE * block) {
        loss_pack<T> in[AT_ONCE];
        SHL_UNROLL
        for (int q = 0; q < AT_ONCE; q++) {
            load_chunk(&in[q], r.x + static_cast<int64_t>(k + q * block) * loss_shape<T>::PER);
        }
        SHL_UNROLL
        for (int q = 0; q < AT_ONCE; q++) {
            add_pack<T>(in[q], &s);
        }
    }
    for (; k < r.packs; k += block) {
        loss_pack<T> in;
        take(r, k, &in);
        add_pack<T>(in, &s);
    }
    return s;
}

/* All threads' sums as one, over the largest of their tops, on every thread. */
static __device__ __forceinline__ double
block_total(const loss_sum &s, float *top, float *top_room, double *sum_room)
{
    int lane = static_cast<int>(threadIdx.x) % SHL_WARP,
        warp = static_cast<int>(threadIdx.x) / SHL_WARP;
    bool real = lane < static_cast<int>(blockDim.x) / SHL_WARP;
    float of_warp = warp_max(s.top);
    double sum = warp_sum(static_cast<double>(s.sum * exp_below(s.top, of_warp)));
    if (lane == 0) {
        top_room[warp] = of_warp;
        sum_room[warp] = sum;
    }
    __syncthreads();
    of_warp = real ? top_room[lane] : -FLT_MAX;
    *top = warp_max(of_warp);
    return warp_sum(real ? sum_room[lane] * static_cast<double>(exp_below(of_warp, *top)) : 0.0);
}

/* The gradients of a pack, all as if none were the target. */
template <typename T>
static __device__ __forceinline__ void
slopes(const loss_pack<T> &in, float top, float factor, float *out)
{
    widen(in, out);
    SHL_UNROLL
    for (int j = 0; j < loss_shape<T>::PER; j++) {
        out[j] = exp_below(out[j], top) * factor;
    }
}

/* Gradients: (softmax - onehot) dloss. The target's is written once more, by its pack's thread. */
template <typename T>
static __device__ __forceinline__ void
write_row(const loss_row<T> &r, int64_t target, float logit, float top, float factor, float dloss)
{
    const int PER = loss_shape<T>::PER;
    int block = static_cast<int>(blockDim.x), k = static_cast<int>(threadIdx.x);
    int plain = r.kept < r.whole ? r.kept : r.whole;
    bool mine = (static_cast<int>(target / PER) & (block - 1)) == k;
    loss_pack<T> pack;
    float v[PER];
    for (; k < plain; k += block) {
        load_chunk(&pack, r.image + k * PER);
        slopes<T>(pack, top, factor, v);
        narrow(v, &pack);
        store_chunk(r.x + static_cast<int64_t>(k) * PER, pack);
    }
    for (; k < r.packs; k += block) {
        if (k < r.kept) {
            load_chunk(&pack, r.image + k * PER);
        } else {
            take(r, k, &pack);
        }
        slopes<T>(pack, top, factor, v);
        give(r, k, v);
    }
    if (mine) {
        r.x[target] = narrowed<T>(exp_below(logit, top) * factor - dloss);
    }
}

/* A row without a target has no loss and no gradient. */
template <typename T>
static __device__ __forceinline__ void
zero_row(const loss_row<T> &r)
{
    const float zero[loss_shape<T>::PER] = {};
    for (int k = static_cast<int>(threadIdx.x); k < r.packs; k += static_cast<int>(blockDim.x)) {
        give(r, k, zero);
    }
}

/* One block per row; one launch. Floor: bytes; the logits read once and, where gradients are wanted,
 * written once. A row of 50257 columns in 16 bits is 98 KiB, of which a multiprocessor of sm_90 holds
 * two: one is read while the other is written, so what counts is each unit's sum over a row. On an
 * H200 at 1.75 GHz: 5.5 us of memory (201 KB, 132 rows side by side), 3.6 us of special functions (two
 * exponentials an element, 16 a clock), 3.1 us of instructions (14 an element, 128 a clock). One
 * exponential an element would have to be kept in fp32: 196 KiB, one block, nobody reading while it
 * writes. Estimate: 0.85 to 0.9 of what a copy reaches; not measured. A row of fp32 has the
 * multiprocessor for itself; of one beyond shared memory the rest comes twice, the second time from the
 * second-level cache unless that is smaller than the rests of all rows under way: at worst, all of it
 * from memory, 3 / 2 of the floor. */
template <typename T>
static __global__ void
__launch_bounds__(loss_shape<T>::BLOCK, loss_shape<T>::BLOCKS)
    loss_kernel(T *logits, const int32_t *targets, int64_t vocab, int64_t stride, int kept,
                float dloss, bool want_grad, double *losses, uint32_t *faults)
{
    SHL_DYNAMIC_SHARED(T, image);
    __shared__ float top_room[SHL_WARP];
    __shared__ double sum_room[SHL_WARP];
    const int PER = loss_shape<T>::PER;
    int64_t row = blockIdx.x, target = targets[row];
    T *x = logits + row * stride;
    bool aligned = reinterpret_cast<uintptr_t>(x) % PACK_BYTES == 0;
    loss_row<T> r = {x,     image,
                     vocab, static_cast<int>((vocab + PER - 1) / PER),
                     kept,  aligned ? static_cast<int>(vocab / PER) : 0};
    async_copies copies;
    int k = static_cast<int>(threadIdx.x);
    send_for(r, 0, &k, &copies); /* while the target is on its way */
    if (target < 0 || target >= vocab) {
        if (threadIdx.x == 0) {
            losses[row] = 0.0;
        }
        if (threadIdx.x == 0 && target != SHL_IGNORE_INDEX) {
            faults[SHL_CUDA_FAULT_TARGET] = 1;
        }
        copies.wait_but<0>();
        if (want_grad) {
            zero_row(r);
        }
        return;
    }
    for (int q = 1; q < BATCHES; q++) {
        send_for(r, q, &k, &copies);
    }
    float logit = widen(x[target]), top; /* of old: a barrier stands before it is overwritten */
    loss_sum s = add_row(r, &copies);
    double sum = block_total(s, &top, top_room, sum_room);
    if (threadIdx.x == 0) {
        double loss = log(sum) + (static_cast<double>(top) - static_cast<double>(logit));
        losses[row] = rint(loss / LOSS_QUANTUM) * LOSS_QUANTUM;
    }
    if (want_grad) {
        write_row(r, target, logit, top, dloss / static_cast<float>(sum), dloss);
    }
}

/* Adds the losses of rows one after the other, by one thread, from tiles that the block fetches. */
static __device__ void
add_in_order(const double *losses, int64_t rows, double *loss_sum)
{
    __shared__ double tile[ORDER_BLOCK];
    double sum = *loss_sum;
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

/* loss_sum += the rows' losses, with the bits that adding one after the other gives: where no partial
 * sum is rounded, as with all but absurd losses, every order gives them, and all threads add. (One
 * thread's chain of 8192 additions, at 8 clocks each or more, is a tenth of the rows' time.) Floor: one
 * launch. */
static __global__ void
loss_order_kernel(const double *losses, int64_t rows, double *loss_sum)
{
    __shared__ double room[SHL_WARP];
    double sum = 0.0, size = 0.0, start = *loss_sum;
    for (int64_t r = threadIdx.x; r < rows; r += ORDER_BLOCK) {
        double loss = losses[r];
        sum += loss;
        size += fabs(loss);
    }
    size = block_sum(size, room) + fabs(start);
    sum = block_sum(sum, room);
    bool exact = size < EXACT_BELOW && rint(start / LOSS_QUANTUM) * LOSS_QUANTUM == start;
    __syncthreads(); /* all have read loss_sum */
    if (!exact) {
        add_in_order(losses, rows, loss_sum);
    } else if (threadIdx.x == 0) {
        *loss_sum = start + sum;
    }
}

template <typename T>
static int
run_loss(const shl_cuda_launch *l, const shl_cross_entropy_args *a, double *losses)
{
    int64_t rows = a->logits.dims[0], vocab = a->logits.dims[1];
    int64_t packs = shl_ceil_div(vocab, loss_shape<T>::PER);
    int64_t room =
        static_cast<int64_t>(l->info->block_shared_bytes - SHL_SHARED_STATIC) / PACK_BYTES;
    int64_t kept = packs < room ? packs : room;
    size_t bytes = static_cast<size_t>(kept) * PACK_BYTES;
    int block = vocab <= NARROW_VOCAB ? NARROW_BLOCK : loss_shape<T>::BLOCK;
    int status = allow_shared(l, loss_kernel<T>, bytes);
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

/* kernels/cuda/object: the order-independent squared norm. Everything that blocks hand to each
 * other is an integer, so that any grid, in any order, gives the number that the CPU gives. */
#include "kernels/cuda/object/cuda_pack.cuh"

#define BLOCK 256
#define WAVES 8
#define TURNS 16 /* packs that a thread takes before it folds its sums */

/* A 128-bit integer, modulo 2^128. */
struct wide_sum {
    uint64_t low, high;
};

static __device__ __forceinline__ wide_sum
wide_add(wide_sum a, wide_sum b)
{
    wide_sum c;
    c.low = a.low + b.low;
    c.high = a.high + b.high + (c.low < a.low ? 1u : 0u);
    return c;
}

static __device__ __forceinline__ wide_sum
warp_wide_sum(wide_sum x)
{
    for (int step = SHL_WARP / 2; step > 0; step /= 2) {
        wide_sum other;
        other.low = __shfl_xor_sync(SHL_FULL_MASK, x.low, step);
        other.high = __shfl_xor_sync(SHL_FULL_MASK, x.high, step);
        x = wide_add(x, other);
    }
    return x;
}

/* The elements of a flat array in packs of 16 bytes, with what lies before the first aligned
 * address and behind the last one taken singly. */
template <typename T> struct norm_range {
    const T *x;
    int64_t n, head, packs;
};

template <typename T>
static norm_range<T>
range_of(const shl_tensor *t)
{
    const int64_t per = SHL_PACK_BYTES / static_cast<int64_t>(sizeof(T));
    norm_range<T> r;
    r.x = static_cast<const T *>(t->data);
    r.n = elems_of(t);
    int64_t past = static_cast<int64_t>(reinterpret_cast<uintptr_t>(t->data) % SHL_PACK_BYTES);
    r.head = past == 0 ? 0 : (SHL_PACK_BYTES - past) / static_cast<int64_t>(sizeof(T));
    r.head = r.head < r.n ? r.head : r.n;
    r.packs = (r.n - r.head) / per;
    return r;
}

/* Element i of those outside the packs, of which there are n - packs * per. */
template <typename T>
static __device__ __forceinline__ T
single(const norm_range<T> &r, int64_t i)
{
    const int64_t per = SHL_PACK_BYTES / static_cast<int64_t>(sizeof(T));
    return r.x[i < r.head ? i : i + r.packs * per];
}

/* Floor: n elements read over the read rate, one launch. */
template <typename T>
static __global__ void
__launch_bounds__(BLOCK) norm_max_kernel(norm_range<T> r, unsigned *out)
{
    const int per = SHL_PACK_BYTES / sizeof(T);
    __shared__ unsigned room[BLOCK / SHL_WARP];
    unsigned best = 0;
    SHL_UNROLL_BY(4)
    SHL_GRID_LOOP(i, r.packs)
    {
        pack<T, per> p = load_pack<per>(r.x + r.head + i * per);
        for (int j = 0; j < per; j++) {
            unsigned bits = bits_of(widen(p.at[j])) & 0x7fffffffu;
            best = bits > best ? bits : best;
        }
    }
    SHL_GRID_LOOP(i, r.n - r.packs * per)
    {
        unsigned bits = bits_of(widen(single(r, i))) & 0x7fffffffu;
        best = bits > best ? bits : best;
    }
    for (int step = SHL_WARP / 2; step > 0; step /= 2) {
        unsigned other = __shfl_xor_sync(SHL_FULL_MASK, best, step);
        best = other > best ? other : best;
    }
    if (threadIdx.x % SHL_WARP == 0) {
        room[threadIdx.x / SHL_WARP] = best;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        for (int w = 1; w < BLOCK / SHL_WARP; w++) {
            best = room[w] > best ? room[w] : best;
        }
        atomicMax(out, best);
    }
}

/* Rounding by adding a magic number, as the CPU does: 1.5 * 2^84 leaves multiples of 2^32 in the
 * low bits, 1.5 * 2^52 whole numbers; ties go to even in both, and together. */
#define MAGIC_HIGH 2.9014219670751100192391e25
#define MAGIC_LOW 6755399441055744.0
#define MAGIC_LIMIT 9.671406556917033e24 /* 2^83: above, the slow way */
#define MOST_QUANTA 8.507059173023462e37 /* 2^126 */

/* Integers of the elements that a thread has seen since it folded: units of 2^32 and of 1,
 * modulo 2^64. A term is below 2^51 in the one and 2^32 in the other, and there are at most 8 *
 * TURNS + 1. */
struct norm_lanes {
    uint64_t high, low;
    wide_sum total;
};

static __device__ __forceinline__ uint64_t
double_bits(double x)
{
    return static_cast<uint64_t>(__double_as_longlong(x));
}

/* t >= 2^83: a whole number already, t = m 2^shift. */
static __device__ wide_sum
whole_of(double t)
{
    uint64_t bits = double_bits(t < MOST_QUANTA ? t : MOST_QUANTA);
    uint64_t m = (bits & 0xfffffffffffffull) | 0x10000000000000ull;
    int shift = static_cast<int>(bits >> 52) - 1023 - 52;
    wide_sum out;
    out.low = shift < 64 ? m << shift : 0;
    out.high = shift < 64 ? m >> (64 - shift) : m << (shift - 64);
    return out;
}

static __device__ __forceinline__ void
add_square(norm_lanes *s, float x, double scale)
{
    double t = static_cast<double>(x) * scale * static_cast<double>(x);
    if (t < MAGIC_LIMIT) {
        double h = t + MAGIC_HIGH;
        double rest = t - (h - MAGIC_HIGH);
        s->high += double_bits(h) - double_bits(MAGIC_HIGH);
        s->low += double_bits(rest + MAGIC_LOW) - double_bits(MAGIC_LOW);
    } else if (t > 0.0) { /* not NaN */
        s->total = wide_add(s->total, whole_of(t));
    }
}

static __device__ __forceinline__ void
fold(norm_lanes *s)
{
    wide_sum high, low;
    high.low = s->high << 32;
    high.high = s->high >> 32;
    low.low = s->low;
    low.high = static_cast<uint64_t>(static_cast<int64_t>(s->low) >> 63);
    s->total = wide_add(s->total, wide_add(high, low));
    s->high = s->low = 0;
}

/* Floor: n elements read over the read rate, one launch; six operations in double for each. */
template <typename T>
static __global__ void
__launch_bounds__(BLOCK) norm_sum_kernel(norm_range<T> r, double scale, unsigned long long *out)
{
    const int per = SHL_PACK_BYTES / sizeof(T);
    __shared__ wide_sum room[BLOCK / SHL_WARP];
    norm_lanes s = {0, 0, {0, 0}};
    int turn = 0;
    SHL_UNROLL_BY(2)
    SHL_GRID_LOOP(i, r.packs)
    {
        pack<T, per> p = load_pack<per>(r.x + r.head + i * per);
        for (int j = 0; j < per; j++) {
            add_square(&s, widen(p.at[j]), scale);
        }
        if (++turn == TURNS) {
            fold(&s);
            turn = 0;
        }
    }
    SHL_GRID_LOOP(i, r.n - r.packs * per)
    {
        add_square(&s, widen(single(r, i)), scale);
    }
    fold(&s);
    wide_sum sum = warp_wide_sum(s.total);
    if (threadIdx.x % SHL_WARP == 0) {
        room[threadIdx.x / SHL_WARP] = sum;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        for (int w = 1; w < BLOCK / SHL_WARP; w++) {
            sum = wide_add(sum, room[w]);
        }
        /* Each add to the low word knows from the old value whether it carried; all carries
         * together are the right ones, in whatever order the blocks come. */
        unsigned long long old = atomicAdd(&out[0], sum.low);
        unsigned long long high = sum.high + (old + sum.low < old ? 1u : 0u);
        if (high != 0) {
            atomicAdd(&out[1], high);
        }
    }
}

extern "C" int
shl_cuda_norm_max(const shl_cuda_launch *l, const void *args, void *work)
{
    const shl_norm_args *a = static_cast<const shl_norm_args *>(args);
    unsigned *out = static_cast<unsigned *>(a->out_max.data);
    unsigned grid = grid_for(l, elems_of(&a->x), BLOCK * 4, WAVES);
    SHL_UNUSED(work);
    SHL_FOR_FLOAT(
        a->x.dtype, T,
        SHL_LAUNCH(norm_max_kernel<T>, grid, BLOCK, 0, l->stream, range_of<T>(&a->x), out));
    return launch_status();
}

extern "C" int
shl_cuda_norm_sum(const shl_cuda_launch *l, const void *args, void *work)
{
    const shl_norm_args *a = static_cast<const shl_norm_args *>(args);
    unsigned long long *out = static_cast<unsigned long long *>(a->out_sum.data);
    unsigned grid = grid_for(l, elems_of(&a->x), BLOCK * 4, WAVES);
    double scale = ldexp(1.0, -a->quantum_log2);
    SHL_UNUSED(work);
    SHL_FOR_FLOAT(
        a->x.dtype, T,
        SHL_LAUNCH(norm_sum_kernel<T>, grid, BLOCK, 0, l->stream, range_of<T>(&a->x), scale, out));
    return launch_status();
}

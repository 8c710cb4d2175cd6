/* kernels/cuda/object: what every kernel starts from: launches, types, and reductions in a fixed order. The
 * same text compiles for a GPU by nvcc and for the tests' emulation by g++, so a kernel is launched
 * by SHL_LAUNCH, takes dynamic shared memory by SHL_DYNAMIC_SHARED, and talks to its warp and block
 * through the usual intrinsics with full masks. Nothing is contracted (-fmad=false): a kernel that
 * wants a fused multiply-add writes fmaf. */
#ifndef SHL_CUDA_COMMON_CUH
#define SHL_CUDA_COMMON_CUH

#include <cuda_runtime.h>

extern "C" {
#include "kernels/cuda/object/cuda_launchers.h"
#include "kernels/ops/work.h"
}

#ifndef SHL_EMULATED
#define SHL_LAUNCH(kernel, grid, block, shared_bytes, stream, ...)                                 \
    kernel<<<(grid), (block), (shared_bytes), static_cast<cudaStream_t>(stream)>>>(__VA_ARGS__)
#define SHL_DYNAMIC_SHARED(type, name)                                                             \
    extern __shared__ __align__(16) unsigned char shl_dynamic_shared[];                            \
    type *name = reinterpret_cast<type *>(shl_dynamic_shared)
#endif

/* Unrolls the loop behind it: what it indexes stays in registers; or eight turns of it: their loads are
 * in flight together. */
#ifdef __CUDACC__
#define SHL_UNROLL _Pragma("unroll")
#define SHL_UNROLL_8 _Pragma("unroll 8")
#else
#define SHL_UNROLL
#define SHL_UNROLL_8
#endif

#define SHL_WARP 32
#define SHL_FULL_MASK 0xffffffffu

/* The status of a launch: what the runtime says of the last one. */
static inline int
launch_status(void)
{
    return static_cast<int>(cudaGetLastError());
}

/* Bit patterns. */
static __device__ __forceinline__ uint32_t
bits_of(float x)
{
    return __float_as_uint(x);
}

static __device__ __forceinline__ float
float_of(uint32_t bits)
{
    return __uint_as_float(bits);
}

/* 16-bit floats from their bits and back, to nearest even, as kernels/base/half.h: the same bits, but
 * that the device's own instructions (one where integers take eight) make every NaN the canonical one. */
struct bf16 {
    uint16_t bits;
};
struct f16 {
    uint16_t bits;
};

static __device__ __forceinline__ float
widen(float x)
{
    return x;
}

static __device__ __forceinline__ float
widen(bf16 h)
{
    return float_of(static_cast<uint32_t>(h.bits) << 16);
}

static __device__ __forceinline__ void
narrow(float x, float *out)
{
    *out = x;
}

#ifdef __CUDA_ARCH__
static __device__ __forceinline__ float
widen(f16 h)
{
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(h.bits));
    return x;
}

static __device__ __forceinline__ void
narrow(float x, bf16 *out)
{
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(out->bits) : "f"(x));
}

static __device__ __forceinline__ void
narrow(float x, f16 *out)
{
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out->bits) : "f"(x));
}

/* Two at once, the first in the lower half. */
static __device__ __forceinline__ uint32_t
narrow_two(float low, float high, bf16)
{
    uint32_t out;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(high), "f"(low));
    return out;
}

static __device__ __forceinline__ uint32_t
narrow_two(float low, float high, f16)
{
    uint32_t out;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(high), "f"(low));
    return out;
}
#else
static __device__ __forceinline__ float
widen(f16 h)
{
    uint32_t sign = (h.bits & 0x8000u) << 16, low = h.bits & 0x7fffu;
    if (low < 0x400u) { /* subnormal: whole multiples of 2^-24 */
        return float_of(sign | bits_of(static_cast<float>(low) * 0x1p-24f));
    }
    if (low < 0x7c00u) {
        return float_of(sign | ((low << 13) + 0x38000000u));
    }
    return float_of(sign | 0x7f800000u | low << 13 | (low > 0x7c00u ? 0x400000u : 0u));
}

static __device__ __forceinline__ void
narrow(float x, bf16 *out)
{
    uint32_t u = bits_of(x);
    out->bits = static_cast<uint16_t>(
        (u & 0x7fffffffu) > 0x7f800000u ? (u >> 16 | 0x40u) : (u + 0x7fffu + (u >> 16 & 1u)) >> 16);
}

static __device__ __forceinline__ void
narrow(float x, f16 *out)
{
    uint32_t u = bits_of(x), sign = u >> 16 & 0x8000u;
    u &= 0x7fffffffu;
    if (u > 0x7f800000u) {
        out->bits = static_cast<uint16_t>(sign | 0x7e00u | (u >> 13 & 0x3ffu));
    } else if (u >= 0x477ff000u) { /* 65520 rounds to 65536, which is beyond the largest */
        out->bits = static_cast<uint16_t>(sign | 0x7c00u);
    } else if (u < 0x38800000u) { /* below 2^-14: an ulp of 0.5 is the quantum 2^-24 */
        out->bits = static_cast<uint16_t>(sign | (bits_of(float_of(u) + 0.5f) - 0x3f000000u));
    } else {
        out->bits = static_cast<uint16_t>(sign | (u + 0xfffu + (u >> 13 & 1u) - 0x38000000u) >> 13);
    }
}

template <typename T>
static __device__ __forceinline__ uint32_t
narrow_two(float low, float high, T)
{
    T first, second;
    narrow(low, &first);
    narrow(high, &second);
    return static_cast<uint32_t>(second.bits) << 16 | first.bits;
}
#endif

template <typename T>
static __device__ __forceinline__ T
narrowed(float x)
{
    T out;
    narrow(x, &out);
    return out;
}

/* 2^x by the device's own instruction: two ulp, results below 2^-126 are 0. */
static __device__ __forceinline__ float
fast_exp2(float x)
{
#ifdef __CUDA_ARCH__
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#elif defined SHL_EMULATED
    return emulate_ex2(x, true);
#else
    return exp2f(x);
#endif
}

/* 1 / x by the device's own instruction: one ulp, for |x| from 2^-126 to 2^126. */
static __device__ __forceinline__ float
fast_reciprocal(float x)
{
#ifdef __CUDA_ARCH__
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#elif defined SHL_EMULATED
    return emulate_reciprocal(x);
#else
    return 1.0f / x;
#endif
}

/* n / d of what is not negative: in 32 bits, a third of the instructions, where both fit. */
static __device__ __forceinline__ int64_t
quotient(int64_t n, int64_t d)
{
    return n <= 0xffffffff && d <= 0xffffffff
               ? static_cast<int64_t>(static_cast<uint32_t>(n) / static_cast<uint32_t>(d))
               : n / d;
}

/* Calls fn.template operator()<T>() for the C++ type of a float dtype. */
#define SHL_FOR_FLOAT(dtype, T, ...)                                                               \
    do {                                                                                           \
        if ((dtype) == SHL_F32) {                                                                  \
            using T = float;                                                                       \
            __VA_ARGS__;                                                                           \
        } else if ((dtype) == SHL_BF16) {                                                          \
            using T = bf16;                                                                        \
            __VA_ARGS__;                                                                           \
        } else {                                                                                   \
            using T = f16;                                                                         \
            __VA_ARGS__;                                                                           \
        }                                                                                          \
    } while (0)

/* Sum and maximum over a warp, on every lane, always in the same order. */
template <typename T>
static __device__ __forceinline__ T
warp_sum(T x)
{
    for (int step = SHL_WARP / 2; step > 0; step /= 2) {
        x += __shfl_xor_sync(SHL_FULL_MASK, x, step);
    }
    return x;
}

static __device__ __forceinline__ float
warp_max(float x)
{
    for (int step = SHL_WARP / 2; step > 0; step /= 2) {
        x = fmaxf(x, __shfl_xor_sync(SHL_FULL_MASK, x, step));
    }
    return x;
}

/* Sum over a block of whole warps (one dimension), on every thread; `room` is shared memory of one T per
 * warp, free again behind the next barrier of the caller. */
template <typename T>
static __device__ __forceinline__ T
block_sum(T x, T *room)
{
    int lane = static_cast<int>(threadIdx.x) % SHL_WARP,
        warp = static_cast<int>(threadIdx.x) / SHL_WARP;
    int warps = static_cast<int>(blockDim.x) / SHL_WARP;
    x = warp_sum(x);
    __syncthreads();
    if (lane == 0) {
        room[warp] = x;
    }
    __syncthreads();
    return warp_sum(lane < warps ? room[lane] : T(0));
}

static __device__ __forceinline__ float
block_max(float x, float *room)
{
    int lane = static_cast<int>(threadIdx.x) % SHL_WARP,
        warp = static_cast<int>(threadIdx.x) / SHL_WARP;
    int warps = static_cast<int>(blockDim.x) / SHL_WARP;
    x = warp_max(x);
    __syncthreads();
    if (lane == 0) {
        room[warp] = x;
    }
    __syncthreads();
    return warp_max(lane < warps ? room[lane] : -INFINITY);
}

/* Shared memory that a block gets unasked, and what is left for a kernel's own static arrays. */
#define SHL_SHARED_UNASKED (48u << 10)
#define SHL_SHARED_STATIC 1024u

/* Before each launch with `bytes` of dynamic shared memory. All who ask for more than the rest ask for the
 * most that the device has: ranks that are threads share a kernel's limit, and a lower one would fail
 * another's launch. A device that has less (sm_86 has 99 KiB) is SHL_CUDA_UNSUPPORTED. */
template <typename F>
static inline int
allow_shared(const shl_cuda_launch *l, F *kernel, size_t bytes)
{
    size_t most = l->info->block_shared_bytes - SHL_SHARED_STATIC;
    if (bytes + SHL_SHARED_STATIC <= SHL_SHARED_UNASKED) {
        return 0;
    }
    if (bytes > most) {
        return SHL_CUDA_UNSUPPORTED;
    }
    return static_cast<int>(cudaFuncSetAttribute(
        kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(most)));
}

/* Elements of a view, as shl_tensor_elems. */
static inline int64_t
elems_of(const shl_tensor *t)
{
    int64_t n = 1;
    for (int i = 0; i < t->n_dims; i++) {
        n *= t->dims[i];
    }
    return n;
}

/* First element and stride of a thread in a loop over n that any grid covers. */
#define SHL_GRID_LOOP(i, n)                                                                        \
    for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x,                  \
                 shl_stride = static_cast<int64_t>(gridDim.x) * blockDim.x;                        \
         i < (n); i += shl_stride)

/* Blocks of a grid loop: enough for n, at most `waves` blocks per multiprocessor. */
static inline unsigned
grid_for(const shl_cuda_launch *l, int64_t n, int block, int waves)
{
    int64_t blocks = (n + block - 1) / block;
    int64_t most = static_cast<int64_t>(l->info->multiprocessors) * waves;
    return static_cast<unsigned>(blocks < 1 ? 1 : blocks < most ? blocks : most);
}

#endif

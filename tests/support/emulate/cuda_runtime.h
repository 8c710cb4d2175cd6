// tests/support/emulate: CUDA's kernel language on the CPU, as much of it as kernels/cuda uses. Each
// thread of a block is a fiber; barriers, shuffles and matrix products are rendezvous of fibers. The
// blocks of a grid run one after the other, in a different order of threads each time, so that a
// missing barrier shows as other values.
#ifndef SHL_EMULATE_CUDA_RUNTIME_H
#define SHL_EMULATE_CUDA_RUNTIME_H

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <tuple>
#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __restrict__ __restrict
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __shared__ static thread_local
#define __constant__ static const

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};
struct uint3 {
    unsigned x, y, z;
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(16) double2 {
    double x, y;
};
static inline float2 make_float2(float x, float y) { return {x, y}; }
static inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
static inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
static inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w)
{
    return {x, y, z, w};
}

typedef void *cudaStream_t;
typedef int cudaError_t;
static inline int cudaGetLastError() { return 0; }
#define cudaFuncAttributeMaxDynamicSharedMemorySize 8
namespace emulate {
// What a block of an H100 may have, static memory in it, and what it has unasked.
const size_t SHARED_MOST = 227 << 10, SHARED_UNASKED = 48 << 10;
int allow_shared(const void *kernel, int bytes);
// Ends the program where the kernel was not allowed so much.
void check_shared(const void *kernel, size_t bytes);
}
template <typename F>
static inline int cudaFuncSetAttribute(F *kernel, int, int bytes)
{
    return emulate::allow_shared(reinterpret_cast<const void *>(kernel), bytes);
}

namespace emulate {
struct lane_words {
    uint32_t word[16];
};
// The place of the running fiber.
struct place {
    uint3 thread, block;
    dim3 block_dim, grid_dim;
    int lane;
};
extern thread_local place now;
void launch(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()> &kernel);
// Queues it (arguments by value).
void launch_on(void *stream, dim3 grid, dim3 block, size_t shared_bytes,
               std::function<void()> kernel);
// Arguments are evaluated and kept by value at the launch, as a GPU does.
template <typename... P, typename... A>
inline void
launch_with(void (*kernel)(P...), void *stream, dim3 grid, dim3 block, size_t shared_bytes,
            A... args)
{
    std::tuple<typename std::decay<P>::type...> held(args...);
    static_assert(sizeof(held) <= 4096, "a kernel's arguments end at 4 KiB");
    check_shared(reinterpret_cast<const void *>(kernel), shared_bytes);
    launch_on(stream, grid, block, shared_bytes, [=]() { std::apply(kernel, held); });
}
void *dynamic_shared();
void block_barrier();
void warp_barrier();
// Hands this lane's words to its warp and gives those of all lanes, valid until the lane's next
// rendezvous but one.
const lane_words *warp_exchange(const lane_words &mine);
} // namespace emulate

#define threadIdx (emulate::now.thread)
#define blockIdx (emulate::now.block)
#define blockDim (emulate::now.block_dim)
#define gridDim (emulate::now.grid_dim)
#define warpSize 32

#define SHL_LAUNCH(kernel, grid, block, shared_bytes, stream, ...)                                 \
    emulate::launch_with(kernel, (stream), (grid), (block), (shared_bytes), __VA_ARGS__)
#define SHL_DYNAMIC_SHARED(type, name) type *name = static_cast<type *>(emulate::dynamic_shared())

static inline void __syncthreads() { emulate::block_barrier(); }
static inline void __syncwarp(unsigned = 0xffffffffu) { emulate::warp_barrier(); }
static inline void __threadfence() {}

template <typename T>
static inline T emulate_pick(T x, int from)
{
    static_assert(sizeof(T) <= sizeof(emulate::lane_words), "a lane hands over 64 bytes at most");
    emulate::lane_words mine;
    std::memcpy(&mine, &x, sizeof(T));
    const emulate::lane_words *all = emulate::warp_exchange(mine);
    T out;
    std::memcpy(&out, &all[from], sizeof(T));
    return out;
}
template <typename T>
static inline T __shfl_sync(unsigned, T x, int from, int width = 32)
{
    int lane = emulate::now.lane;
    return emulate_pick(x, lane / width * width + from % width);
}
template <typename T>
static inline T __shfl_xor_sync(unsigned, T x, int mask, int = 32)
{
    return emulate_pick(x, emulate::now.lane ^ mask);
}
template <typename T>
static inline T __shfl_down_sync(unsigned, T x, unsigned by, int width = 32)
{
    int lane = emulate::now.lane, to = lane + static_cast<int>(by);
    return emulate_pick(x, to / width == lane / width ? to : lane);
}
template <typename T>
static inline T __shfl_up_sync(unsigned, T x, unsigned by, int width = 32)
{
    int lane = emulate::now.lane, to = lane - static_cast<int>(by);
    return emulate_pick(x, to >= lane / width * width ? to : lane);
}
static inline unsigned __ballot_sync(unsigned, int yes)
{
    emulate::lane_words mine = {{yes != 0 ? 1u : 0u}};
    const emulate::lane_words *all = emulate::warp_exchange(mine);
    unsigned out = 0;
    for (int i = 0; i < 32; i++) {
        out |= all[i].word[0] << i;
    }
    return out;
}
static inline int __any_sync(unsigned m, int yes) { return __ballot_sync(m, yes) != 0; }
static inline int __all_sync(unsigned m, int yes) { return __ballot_sync(m, yes) == 0xffffffffu; }

static inline uint32_t __float_as_uint(float x)
{
    uint32_t u;
    std::memcpy(&u, &x, 4);
    return u;
}
static inline float __uint_as_float(uint32_t u)
{
    float x;
    std::memcpy(&x, &u, 4);
    return x;
}
static inline int __float_as_int(float x) { return static_cast<int>(__float_as_uint(x)); }
static inline float __int_as_float(int u) { return __uint_as_float(static_cast<uint32_t>(u)); }
static inline long long __double_as_longlong(double x)
{
    long long u;
    std::memcpy(&u, &x, 8);
    return u;
}
static inline double __longlong_as_double(long long u)
{
    double x;
    std::memcpy(&x, &u, 8);
    return x;
}
static inline unsigned __umulhi(unsigned a, unsigned b)
{
    return static_cast<unsigned>(static_cast<uint64_t>(a) * b >> 32);
}
static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
static inline int __clzll(long long x)
{
    return x == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(x));
}
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
// x as far off as an instruction may be that is within two units in the last place, by a hash of `of`.
static inline float
emulate_off(float x, float of)
{
    uint32_t u = __float_as_uint(x), e = u >> 23 & 0xff;
    uint32_t hash = __float_as_uint(of) * 0x9e3779b1u >> 16;
    return e > 1 && e < 254 ? __uint_as_float(u + hash % 5 - 2) : x;
}
// ex2.approx: 2^x, exact for whole x.
static inline float
emulate_ex2(float x, bool flush)
{
    float y = exp2f(x);
    y = flush && y < 0x1p-126f ? 0.0f : y;
    return x == rintf(x) ? y : emulate_off(y, x);
}
static inline float emulate_expf(float x) { return emulate_ex2(x * 1.44269504f, false); }
#define __expf emulate_expf
#define __logf logf
// rcp.approx.ftz: results below 2^-126 are 0.
static inline float
emulate_reciprocal(float x)
{
    float y = emulate_off(1.0f / x, x);
    return fabsf(y) < 0x1p-126f ? 0.0f : y;
}
static inline float __frcp_rn(float x) { return 1.0f / x; }
template <typename T>
static inline T __ldg(const T *p)
{
    return *p;
}
template <typename T>
static inline T __ldcs(const T *p)
{
    return *p;
}
template <typename T>
static inline void __stcs(T *p, T x)
{
    *p = x;
}
// A load or store of `bytes` at once: `at` must be a multiple of them, as on the device.
template <int bytes>
static inline void emulate_wide_copy(void *to, const void *from, const void *at)
{
    if (reinterpret_cast<uintptr_t>(at) % bytes != 0) {
        std::fprintf(stderr, "emulate: %d bytes at once at %p\n", bytes, at);
        std::abort();
    }
    std::memcpy(to, from, bytes);
}
static inline int min(int a, int b) { return a < b ? a : b; }
static inline int max(int a, int b) { return a > b ? a : b; }
static inline int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }

// Ranks may be threads of one process: atomic between them too.
static inline unsigned atomicMax(unsigned *p, unsigned x)
{
    unsigned old = __atomic_load_n(p, __ATOMIC_SEQ_CST);
    while (old < x && !__atomic_compare_exchange_n(p, &old, x, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {
    }
    return old;
}
static inline unsigned atomicAdd(unsigned *p, unsigned x)
{
    return __atomic_fetch_add(p, x, __ATOMIC_SEQ_CST);
}
static inline unsigned long long atomicAdd(unsigned long long *p, unsigned long long x)
{
    return __atomic_fetch_add(p, x, __ATOMIC_SEQ_CST);
}
static inline unsigned atomicOr(unsigned *p, unsigned x)
{
    return __atomic_fetch_or(p, x, __ATOMIC_SEQ_CST);
}
static inline unsigned atomicExch(unsigned *p, unsigned x)
{
    return __atomic_exchange_n(p, x, __ATOMIC_SEQ_CST);
}

#endif

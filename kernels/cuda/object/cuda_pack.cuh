/* kernels/cuda/object: neighbours in memory that one thread moves at once, where an address
 * allows it. What a kernel computes from an element does not depend on whether it came in a
 * pack. */
#ifndef SHL_CUDA_PACK_CUH
#define SHL_CUDA_PACK_CUH

#include "kernels/cuda/object/cuda_common.cuh"

#define SHL_PACK_BYTES 16 /* the widest load of a thread */

/* Unrolls the loop behind it by n, so that several loads are under way. */
#ifdef __CUDACC__
#define SHL_PRAGMA(text) _Pragma(#text)
#define SHL_UNROLL_BY(n) SHL_PRAGMA(unroll n)
#else
#define SHL_UNROLL_BY(n)
#endif

template <typename T, int N> struct alignas(sizeof(T) * N) pack {
    T at[N];
};

template <int N, typename T>
static __device__ __forceinline__ pack<T, N>
load_pack(const T *from)
{
    return *reinterpret_cast<const pack<T, N> *>(from);
}

template <int N, typename T>
static __device__ __forceinline__ void
store_pack(T *to, const pack<T, N> &p)
{
    *reinterpret_cast<pack<T, N> *>(to) = p;
}

/* True for an address that is a multiple of `bytes`, NULL too. */
static __host__ __device__ __forceinline__ bool
is_aligned(const void *p, size_t bytes)
{
    return reinterpret_cast<uintptr_t>(p) % bytes == 0;
}

/* True where n elements of a dtype may be moved at once. */
static inline bool
packs_fit(const void *data, shl_dtype dtype, int n)
{
    return is_aligned(data, (dtype == SHL_F32 ? 4u : 2u) * static_cast<size_t>(n));
}

#endif

/* kernels/cuda/object: counter-based random words on the device: Philox-4x32-10 (Salmon et al., SC'11),
 * the words of kernels/base/rng.h bit by bit. */
#ifndef SHL_CUDA_RANDOM_CUH
#define SHL_CUDA_RANDOM_CUH

#include "kernels/cuda/object/cuda_common.cuh"

extern "C" {
#include "kernels/base/rng.h"
}

/* Four words of block `counter`, as shl_rng_block: ten rounds, some seventy instructions. */
static __device__ __forceinline__ void
philox_block(uint64_t seed, uint64_t stream, uint64_t counter, uint32_t *out)
{
    uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
    uint32_t c0 = static_cast<uint32_t>(counter), c1 = static_cast<uint32_t>(counter >> 32);
    uint32_t c2 = static_cast<uint32_t>(stream), c3 = static_cast<uint32_t>(stream >> 32);
    SHL_UNROLL
    for (int round = 0; round < SHL_PHILOX_ROUNDS; round++) {
        uint64_t p0 = static_cast<uint64_t>(SHL_PHILOX_M0) * c0;
        uint64_t p1 = static_cast<uint64_t>(SHL_PHILOX_M1) * c2;
        c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
        c1 = static_cast<uint32_t>(p1);
        c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
        c3 = static_cast<uint32_t>(p0);
        k0 += SHL_PHILOX_W0;
        k1 += SHL_PHILOX_W1;
    }
    out[0] = c0;
    out[1] = c1;
    out[2] = c2;
    out[3] = c3;
}

#endif

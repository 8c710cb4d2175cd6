/* kernels/base: counter-based random numbers (Philox-4x32-10; Salmon et al., SC'11): the value at
 * (seed, stream, index) is a pure function, so any partition of a tensor draws the same bits. */
#ifndef SHL_BASE_RNG_H
#define SHL_BASE_RNG_H

#include <stdint.h>

/* Constants of Philox-4x32-10, for kernels that draw many blocks at once. */
#define SHL_PHILOX_M0 UINT32_C(0xD2511F53)
#define SHL_PHILOX_M1 UINT32_C(0xCD9E8D57)
#define SHL_PHILOX_W0 UINT32_C(0x9E3779B9) /* golden ratio */
#define SHL_PHILOX_W1 UINT32_C(0xBB67AE85) /* sqrt(3) - 1 */
#define SHL_PHILOX_ROUNDS 10

/* Four 32-bit words of block `counter` in `stream` under `seed`. */
void shl_rng_block(uint64_t seed, uint64_t stream, uint64_t counter, uint32_t out[4]);

/* Uniform 64-bit word / uniform double in [0, 1) / standard normal at position `index`.
 * Element index of a normal: pair index/2 by Box-Muller in double, rounded once to float. */
uint64_t shl_rng_u64(uint64_t seed, uint64_t stream, uint64_t index);
double shl_rng_uniform(uint64_t seed, uint64_t stream, uint64_t index);
float shl_rng_normal(uint64_t seed, uint64_t stream, uint64_t index);

/* The normals at [begin, begin + n): the same bits as one by one, each pair drawn once. */
void shl_rng_normal_fill(uint64_t seed, uint64_t stream, uint64_t begin, float *dst, int64_t n);

/* A stable 64-bit stream id of a name (XXH3). */
uint64_t shl_rng_stream(const char *name);

#endif

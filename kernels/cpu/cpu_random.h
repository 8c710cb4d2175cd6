/* kernels/cpu: runs of random words, the same ones as shl_rng_block gives, many blocks at a time so
 * that the compiler's vectors hold one block per lane. Included only by *_k.c files. */
#ifndef SHL_CPU_CPU_RANDOM_H
#define SHL_CPU_CPU_RANDOM_H

#include <stdint.h>

#include "kernels/base/rng.h"

#define CPU_RANDOM_LANES 16
/* Words that cpu_random_words may write beyond the n that were asked for, before and behind. */
#define CPU_RANDOM_SLACK (4 * CPU_RANDOM_LANES + 4)

/* CPU_RANDOM_LANES blocks from `block` on, four words each (Philox-4x32-10, Salmon et al. 2011). */
static inline void
cpu_random_blocks(uint64_t seed, uint64_t stream, uint64_t block, uint32_t *out)
{
    uint32_t c[4][CPU_RANDOM_LANES];
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    for (int i = 0; i < CPU_RANDOM_LANES; i++) {
        uint64_t counter = block + (uint64_t)i;
        c[0][i] = (uint32_t)counter;
        c[1][i] = (uint32_t)(counter >> 32);
        c[2][i] = (uint32_t)stream;
        c[3][i] = (uint32_t)(stream >> 32);
    }
    for (int round = 0; round < SHL_PHILOX_ROUNDS; round++) {
        for (int i = 0; i < CPU_RANDOM_LANES; i++) {
            uint64_t p0 = (uint64_t)SHL_PHILOX_M0 * c[0][i];
            uint64_t p1 = (uint64_t)SHL_PHILOX_M1 * c[2][i];
            c[0][i] = (uint32_t)(p1 >> 32) ^ c[1][i] ^ k0;
            c[1][i] = (uint32_t)p1;
            c[2][i] = (uint32_t)(p0 >> 32) ^ c[3][i] ^ k1;
            c[3][i] = (uint32_t)p0;
        }
        k0 += SHL_PHILOX_W0;
        k1 += SHL_PHILOX_W1;
    }
    for (int i = 0; i < CPU_RANDOM_LANES; i++) {
        for (int j = 0; j < 4; j++) {
            out[4 * i + j] = c[j][i];
        }
    }
}

/* Words [index, index + n) of a stream in room for n + CPU_RANDOM_SLACK; returns the first. */
static inline const uint32_t *
cpu_random_words(uint64_t seed, uint64_t stream, uint64_t index, int64_t n, uint32_t *room)
{
    int64_t skip = (int64_t)(index % 4);
    for (int64_t i = 0; i < skip + n; i += 4 * CPU_RANDOM_LANES) {
        cpu_random_blocks(seed, stream, (index + (uint64_t)i) / 4, room + i);
    }
    return room + skip;
}

#endif

/* kernels/base: Philox-4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1,
 * 2, 3", SC'11) and the draws made from its blocks. */
#include "kernels/base/rng.h"

#include <math.h>
#include <string.h>
#include <xxhash.h>

#define TWO_PI 6.283185307179586476925
#define TWO_TO_MINUS_53 (1.0 / 9007199254740992.0)

void
shl_rng_block(uint64_t seed, uint64_t stream, uint64_t counter, uint32_t out[4])
{
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    uint32_t c0 = (uint32_t)counter, c1 = (uint32_t)(counter >> 32);
    uint32_t c2 = (uint32_t)stream, c3 = (uint32_t)(stream >> 32);
    for (int round = 0; round < SHL_PHILOX_ROUNDS; round++) {
        uint64_t p0 = (uint64_t)SHL_PHILOX_M0 * c0;
        uint64_t p1 = (uint64_t)SHL_PHILOX_M1 * c2;
        c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
        c1 = (uint32_t)p1;
        c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c3 = (uint32_t)p0;
        k0 += SHL_PHILOX_W0;
        k1 += SHL_PHILOX_W1;
    }
    out[0] = c0;
    out[1] = c1;
    out[2] = c2;
    out[3] = c3;
}

static uint64_t
join(uint32_t low, uint32_t high)
{
    return (uint64_t)high << 32 | low;
}

/* The upper 53 bits as a multiple of 2^-53 in [0, 1). */
static double
unit(uint64_t word)
{
    return (double)(word >> 11) * TWO_TO_MINUS_53;
}

uint64_t
shl_rng_u64(uint64_t seed, uint64_t stream, uint64_t index)
{
    uint32_t w[4];
    shl_rng_block(seed, stream, index / 2, w);
    return index % 2 == 0 ? join(w[0], w[1]) : join(w[2], w[3]);
}

double
shl_rng_uniform(uint64_t seed, uint64_t stream, uint64_t index)
{
    return unit(shl_rng_u64(seed, stream, index));
}

/* Box-Muller: the two normals of block `pair`. */
static void
normal_pair(uint64_t seed, uint64_t stream, uint64_t pair, float out[2])
{
    uint32_t w[4];
    shl_rng_block(seed, stream, pair, w);
    /* 1 - u lies in (0, 1], where the logarithm is finite. */
    double radius = sqrt(-2.0 * log(1.0 - unit(join(w[0], w[1]))));
    double angle = TWO_PI * unit(join(w[2], w[3]));
    out[0] = (float)(radius * cos(angle));
    out[1] = (float)(radius * sin(angle));
}

float
shl_rng_normal(uint64_t seed, uint64_t stream, uint64_t index)
{
    float pair[2];
    normal_pair(seed, stream, index / 2, pair);
    return pair[index % 2];
}

void
shl_rng_normal_fill(uint64_t seed, uint64_t stream, uint64_t begin, float *dst, int64_t n)
{
    float pair[2];
    int64_t i = 0;
    if (begin % 2 == 1 && n > 0) {
        dst[i++] = shl_rng_normal(seed, stream, begin);
    }
    for (; i < n; i += 2) {
        normal_pair(seed, stream, (begin + (uint64_t)i) / 2, pair);
        dst[i] = pair[0];
        if (i + 1 < n) {
            dst[i + 1] = pair[1];
        }
    }
}

uint64_t
shl_rng_stream(const char *name)
{
    return XXH3_64bits(name, strlen(name));
}

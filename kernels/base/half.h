/* kernels/base: bf16 and fp16 one number at a time, from their bits: nearest, ties to even,
 * subnormals kept, overflow to infinity, a NaN stays a (quiet) NaN. What vector code must equal. */
#ifndef SHL_BASE_HALF_H
#define SHL_BASE_HALF_H

#include <string.h>

#include "kernels/base/types.h"

static inline uint32_t
shl_f32_bits(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof(bits));
    return bits;
}

static inline float
shl_f32_of_bits(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof(x));
    return x;
}

static inline float
shl_f32_from_bf16(uint16_t h)
{
    return shl_f32_of_bits((uint32_t)h << 16);
}

static inline uint16_t
shl_bf16_from_f32(float x)
{
    uint32_t u = shl_f32_bits(x);
    if ((u & 0x7fffffffu) > 0x7f800000u) {
        return (uint16_t)(u >> 16 | 0x40u);
    }
    return (uint16_t)((u + 0x7fffu + (u >> 16 & 1u)) >> 16);
}

static inline float
shl_f32_from_f16(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, low = h & 0x7fffu;
    if (low < 0x400u) { /* subnormal: whole multiples of 2^-24 */
        return shl_f32_of_bits(sign | shl_f32_bits((float)low * 0x1p-24f));
    }
    if (low < 0x7c00u) {
        return shl_f32_of_bits(sign | ((low << 13) + 0x38000000u));
    }
    uint32_t quiet = low > 0x7c00u ? 0x400000u : 0u;
    return shl_f32_of_bits(sign | 0x7f800000u | low << 13 | quiet);
}

static inline uint16_t
shl_f16_from_f32(float x)
{
    uint32_t u = shl_f32_bits(x), sign = u >> 16 & 0x8000u;
    u &= 0x7fffffffu;
    if (u > 0x7f800000u) {
        return (uint16_t)(sign | 0x7e00u | (u >> 13 & 0x3ffu));
    }
    if (u >= 0x477ff000u) { /* 65520 rounds to 65536, which is beyond the largest */
        return (uint16_t)(sign | 0x7c00u);
    }
    if (u < 0x38800000u) { /* below 2^-14: an ulp of 0.5 is the quantum 2^-24, so the sum rounds */
        uint32_t sum = shl_f32_bits(shl_f32_of_bits(u) + 0.5f);
        return (uint16_t)(sign | (sum - 0x3f000000u));
    }
    return (uint16_t)(sign | (u + 0xfffu + (u >> 13 & 1u) - 0x38000000u) >> 13);
}

/* True for the types that a kernel computes in fp32 from: fp32, bf16, fp16. */
static inline bool
shl_dtype_is_float(shl_dtype dtype)
{
    return dtype == SHL_F32 || dtype == SHL_BF16 || dtype == SHL_F16;
}

/* Element i of an array of fp32, bf16 or fp16, and the way back (rounded). */
static inline float
shl_float_at(shl_dtype dtype, const void *base, int64_t i)
{
    if (dtype == SHL_F32) {
        return ((const float *)base)[i];
    }
    uint16_t h = ((const uint16_t *)base)[i];
    return dtype == SHL_BF16 ? shl_f32_from_bf16(h) : shl_f32_from_f16(h);
}

static inline void
shl_float_put(shl_dtype dtype, void *base, int64_t i, float x)
{
    if (dtype == SHL_F32) {
        ((float *)base)[i] = x;
        return;
    }
    ((uint16_t *)base)[i] = dtype == SHL_BF16 ? shl_bf16_from_f32(x) : shl_f16_from_f32(x);
}

/* x rounded to dtype. */
static inline float
shl_float_round(shl_dtype dtype, float x)
{
    if (dtype == SHL_BF16) {
        return shl_f32_from_bf16(shl_bf16_from_f32(x));
    }
    return dtype == SHL_F16 ? shl_f32_from_f16(shl_f16_from_f32(x)) : x;
}

#endif

/* kernels/cpu: loads and stores of fp32, bf16 and fp16 as fp32 vectors, bits equal to
 * kernels/base/half.h. `dtype` should be a constant of the caller, so that one always-inline body
 * becomes one loop per type. Included only by the *_k.c files. */
#ifndef SHL_CPU_CPU_TYPED_H
#define SHL_CPU_CPU_TYPED_H

#include "kernels/base/half.h"
#include "kernels/cpu/cpu_simd.h"

#define CPU_ALWAYS __attribute__((always_inline)) /* constants of the caller reach the body */

typedef uint16_t vh_any __attribute__((vector_size(2 * VL), aligned(2), may_alias));

static inline CPU_ALWAYS vf
vload_bf16(const uint16_t *p)
{
#if defined(__AVX512F__)
    __m256i h = _mm256_loadu_si256((const __m256i_u *)(const void *)p);
    return (vf)_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16);
#elif defined(__AVX2__)
    __m128i h = _mm_loadu_si128((const __m128i_u *)(const void *)p);
    return (vf)_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16);
#else
    vh_any h = *(const vh_any *)p;
    return (vf)(__builtin_convertvector(h, vi) << 16);
#endif
}

static inline CPU_ALWAYS void
vstore_bf16(uint16_t *p, vf v)
{
    vi u = (vi)v;
#if defined(__AVX512F__)
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32((__m512i)u, 16), _mm512_set1_epi32(1));
    __m512i up = _mm512_add_epi32((__m512i)u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    __mmask16 nan = _mm512_cmp_ps_mask((__m512)v, (__m512)v, _CMP_UNORD_Q);
    up = _mm512_mask_or_epi32(up, nan, (__m512i)u, _mm512_set1_epi32(0x400000));
    __m256i h = _mm512_cvtepi32_epi16(_mm512_srli_epi32(up, 16));
    _mm256_storeu_si256((__m256i_u *)(void *)p, h);
#elif defined(__AVX2__)
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32((__m256i)u, 16), _mm256_set1_epi32(1));
    __m256i up = _mm256_add_epi32((__m256i)u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    __m256i quiet = _mm256_or_si256((__m256i)u, _mm256_set1_epi32(0x400000));
    __m256 nan = _mm256_cmp_ps((__m256)v, (__m256)v, _CMP_UNORD_Q);
    up = _mm256_srli_epi32(_mm256_blendv_epi8(up, quiet, (__m256i)nan), 16);
    __m128i h = _mm_packus_epi32(_mm256_castsi256_si128(up), _mm256_extracti128_si256(up, 1));
    _mm_storeu_si128((__m128i_u *)(void *)p, h);
#else
    vword w = (vword)v; /* wraps for a NaN, which is replaced */
    w += 0x7fffu + ((w >> 16) & 1u);
    w = (vword)vsel(v != v, (vf)(u | 0x400000), (vf)w);
    *(vh_any *)p = __builtin_convertvector(w >> 16, vh_any);
#endif
}

static inline CPU_ALWAYS vf
vload_f16(const uint16_t *p)
{
#if defined(__AVX512F__)
    return (vf)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i_u *)(const void *)p));
#elif defined(__F16C__) && defined(__AVX2__)
    return (vf)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i_u *)(const void *)p));
#else
    float lanes[VL];
    for (int i = 0; i < VL; i++) {
        lanes[i] = shl_f32_from_f16(p[i]);
    }
    return vload(lanes);
#endif
}

static inline CPU_ALWAYS void
vstore_f16(uint16_t *p, vf v)
{
#if defined(__AVX512F__)
    __m256i h = _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    _mm256_storeu_si256((__m256i_u *)(void *)p, h);
#elif defined(__F16C__) && defined(__AVX2__)
    __m128i h = _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT);
    _mm_storeu_si128((__m128i_u *)(void *)p, h);
#else
    float lanes[VL];
    vstore(lanes, v);
    for (int i = 0; i < VL; i++) {
        p[i] = shl_f16_from_f32(lanes[i]);
    }
#endif
}

/* Runs a statement with DT a constant of `dtype`. */
#define CPU_BY_DTYPE(dtype, statement)                                                             \
    do {                                                                                           \
        if ((dtype) == SHL_F32) {                                                                  \
            const shl_dtype DT = SHL_F32;                                                          \
            statement;                                                                             \
        } else if ((dtype) == SHL_BF16) {                                                          \
            const shl_dtype DT = SHL_BF16;                                                         \
            statement;                                                                             \
        } else {                                                                                   \
            const shl_dtype DT = SHL_F16;                                                          \
            statement;                                                                             \
        }                                                                                          \
    } while (0)

/* VL elements from element i on. */
static inline CPU_ALWAYS vf
vload_as(shl_dtype dtype, const void *base, int64_t i)
{
    if (dtype == SHL_F32) {
        return vload((const float *)base + i);
    }
    const uint16_t *p = (const uint16_t *)base + i;
    return dtype == SHL_BF16 ? vload_bf16(p) : vload_f16(p);
}

static inline CPU_ALWAYS void
vstore_as(shl_dtype dtype, void *base, int64_t i, vf v)
{
    if (dtype == SHL_F32) {
        vstore((float *)base + i, v);
    } else if (dtype == SHL_BF16) {
        vstore_bf16((uint16_t *)base + i, v);
    } else {
        vstore_f16((uint16_t *)base + i, v);
    }
}

/* The first n (< VL) of them, zeros behind. */
static inline CPU_ALWAYS vf
vload_as_n(shl_dtype dtype, const void *base, int64_t i, int64_t n)
{
    if (dtype == SHL_F32) {
        return vload_n((const float *)base + i, n);
    }
    uint16_t lanes[VL] = {0};
    memcpy(lanes, (const uint16_t *)base + i, (size_t)n * sizeof(lanes[0]));
    return vload_as(dtype, lanes, 0);
}

static inline CPU_ALWAYS void
vstore_as_n(shl_dtype dtype, void *base, int64_t i, vf v, int64_t n)
{
    if (dtype == SHL_F32) {
        vstore_n((float *)base + i, v, n);
        return;
    }
    uint16_t lanes[VL];
    vstore_as(dtype, lanes, 0, v);
    memcpy((uint16_t *)base + i, lanes, (size_t)n * sizeof(lanes[0]));
}

static inline CPU_ALWAYS void
convert_as(shl_dtype to, shl_dtype from, void *dst, int64_t dst_i, const void *src, int64_t src_i,
           int64_t n)
{
    int64_t k = 0;
    for (; k + 2 * VL <= n; k += 2 * VL) {
        vf v0 = vload_as(from, src, src_i + k), v1 = vload_as(from, src, src_i + k + VL);
        vstore_as(to, dst, dst_i + k, v0);
        vstore_as(to, dst, dst_i + k + VL, v1);
    }
    while (k < n) {
        int64_t m = n - k < VL ? n - k : VL;
        vstore_as_n(to, dst, dst_i + k, vload_as_n(from, src, src_i + k, m), m);
        k += m;
    }
}

/* to[0..n) = elements [i, i + n) of src; and the way back, rounded. */
static inline void
cpu_widen(shl_dtype dtype, const void *src, int64_t i, int64_t n, float *to)
{
    if (dtype == SHL_F32) {
        memcpy(to, (const float *)src + i, (size_t)n * sizeof(float));
    } else if (dtype == SHL_BF16) {
        convert_as(SHL_F32, SHL_BF16, to, 0, src, i, n);
    } else {
        convert_as(SHL_F32, SHL_F16, to, 0, src, i, n);
    }
}

static inline void
cpu_narrow(shl_dtype dtype, const float *from, void *dst, int64_t i, int64_t n)
{
    if (dtype == SHL_F32) {
        memcpy((float *)dst + i, from, (size_t)n * sizeof(float));
    } else if (dtype == SHL_BF16) {
        convert_as(SHL_BF16, SHL_F32, dst, i, from, 0, n);
    } else {
        convert_as(SHL_F16, SHL_F32, dst, i, from, 0, n);
    }
}

/* Elements [i, i + n) of src as fp32: where they lie, or widened into room. */
static inline const float *
cpu_floats(shl_dtype dtype, const void *src, int64_t i, int64_t n, float *room)
{
    if (dtype == SHL_F32) {
        return (const float *)src + i;
    }
    cpu_widen(dtype, src, i, n, room);
    return room;
}

#endif

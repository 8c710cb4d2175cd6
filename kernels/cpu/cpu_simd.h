/* kernels/cpu: one vector type per instruction set: 4, 8 or 16 floats by compiler flags (base,
 * avx2, avx512). Included only by the *_k.c files, which are compiled once per instruction set. */
#ifndef SHL_CPU_CPU_SIMD_H
#define SHL_CPU_CPU_SIMD_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

/* A contracted a*b+c would change bits from one loop shape to another: fuse only by vfma. */
#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#endif

#if defined(__AVX512F__)
#define VL 16
#define V_DUP(x)                                                                                   \
    {                                                                                              \
        x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x                                             \
    }
#define VD_DUP(x)                                                                                  \
    {                                                                                              \
        x, x, x, x, x, x, x, x                                                                     \
    }
#elif defined(__AVX2__)
#define VL 8
#define V_DUP(x)                                                                                   \
    {                                                                                              \
        x, x, x, x, x, x, x, x                                                                     \
    }
#define VD_DUP(x)                                                                                  \
    {                                                                                              \
        x, x, x, x                                                                                 \
    }
#else
#define VL 4
#define V_DUP(x)                                                                                   \
    {                                                                                              \
        x, x, x, x                                                                                 \
    }
#define VD_DUP(x)                                                                                  \
    {                                                                                              \
        x, x                                                                                       \
    }
#define V_LOW 0, 1
#define V_HIGH 2, 3
#endif

typedef float vf __attribute__((vector_size(4 * VL)));
typedef int32_t vi __attribute__((vector_size(4 * VL)));
typedef uint32_t vword __attribute__((vector_size(4 * VL)));
typedef double vd __attribute__((vector_size(4 * VL))); /* half as many lanes */
typedef uint64_t vl __attribute__((vector_size(4 * VL)));
typedef float vfh __attribute__((vector_size(2 * VL)));
typedef float vf_any __attribute__((vector_size(4 * VL), aligned(4), may_alias));

static inline vf
vload(const float *p)
{
    return *(const vf_any *)p;
}

static inline void
vstore(float *p, vf v)
{
    *(vf_any *)p = v;
}

static inline vf
vdup(float x)
{
    vf v = V_DUP(x);
    return v;
}

static inline vd
vd_dup(double x)
{
    vd v = VD_DUP(x);
    return v;
}

/* The first n (< VL) elements, zeros behind; tails go through the same vector code as the rest. */
static inline vf
vload_n(const float *p, int64_t n)
{
    float lanes[VL] = {0};
    memcpy(lanes, p, (size_t)n * sizeof(float));
    return vload(lanes);
}

static inline void
vstore_n(float *p, vf v, int64_t n)
{
    float lanes[VL];
    vstore(lanes, v);
    memcpy(p, lanes, (size_t)n * sizeof(float));
}

/* All ones in the first n lanes. */
static inline vi
vmask_n(int64_t n)
{
    vi m;
    for (int i = 0; i < VL; i++) {
        m[i] = i < n ? -1 : 0;
    }
    return m;
}

static inline vf
vsel(vi mask, vf yes, vf no)
{
    return (vf)((mask & (vi)yes) | (~mask & (vi)no));
}

/* a * b + c, fused where the instruction set has it. */
static inline vf
vfma(vf a, vf b, vf c)
{
#if defined(__AVX512F__)
    return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
    return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    return a * b + c;
#endif
}

static inline vd
vd_fma(vd a, vd b, vd c)
{
#if defined(__AVX512F__)
    return (vd)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
#elif defined(__FMA__)
    return (vd)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
#else
    return a * b + c;
#endif
}

/* max, min: where either is NaN the second argument. */
static inline vf
vmax(vf a, vf b)
{
#if defined(__AVX512F__)
    return (vf)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
    return (vf)_mm256_max_ps((__m256)a, (__m256)b);
#elif defined(__SSE2__)
    return (vf)_mm_max_ps((__m128)a, (__m128)b);
#else
    return vsel(a > b, a, b);
#endif
}

static inline vf
vmin(vf a, vf b)
{
#if defined(__AVX512F__)
    return (vf)_mm512_min_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
    return (vf)_mm256_min_ps((__m256)a, (__m256)b);
#elif defined(__SSE2__)
    return (vf)_mm_min_ps((__m128)a, (__m128)b);
#else
    return vsel(a < b, a, b);
#endif
}

static inline vf
vsqrt(vf a)
{
#if defined(__AVX512F__)
    return (vf)_mm512_sqrt_ps((__m512)a);
#elif defined(__AVX2__)
    return (vf)_mm256_sqrt_ps((__m256)a);
#elif defined(__SSE2__)
    return (vf)_mm_sqrt_ps((__m128)a);
#else
    vf r;
    for (int i = 0; i < VL; i++) {
        r[i] = sqrtf(a[i]);
    }
    return r;
#endif
}

/* Sum and maximum of the lanes, halves folded: one fixed order. */
static inline float
vsum(vf v)
{
    float lanes[VL];
    vstore(lanes, v);
    for (int half = VL / 2; half > 0; half /= 2) {
        for (int i = 0; i < half; i++) {
            lanes[i] += lanes[i + half];
        }
    }
    return lanes[0];
}

static inline float
vmax_lane(vf v)
{
    float best = v[0];
    for (int i = 1; i < VL; i++) {
        best = v[i] > best ? v[i] : best;
    }
    return best;
}

/* Lower and upper half as doubles, and back; gcc 12 turns the generic conversions of AVX vectors into
 * twice the instructions. */
static inline vd
vd_low(vf v)
{
#if defined(__AVX512F__)
    return (vd)_mm512_cvtps_pd(_mm512_castps512_ps256((__m512)v));
#elif defined(__AVX2__)
    return (vd)_mm256_cvtps_pd(_mm256_castps256_ps128((__m256)v));
#else
    vfh h = __builtin_shufflevector(v, v, V_LOW);
    return __builtin_convertvector(h, vd);
#endif
}

static inline vd
vd_high(vf v)
{
#if defined(__AVX512F__)
    return (vd)_mm512_cvtps_pd(_mm512_extractf32x8_ps((__m512)v, 1));
#elif defined(__AVX2__)
    return (vd)_mm256_cvtps_pd(_mm256_extractf128_ps((__m256)v, 1));
#else
    vfh h = __builtin_shufflevector(v, v, V_HIGH);
    return __builtin_convertvector(h, vd);
#endif
}

static inline vf
vd_join(vd low, vd high)
{
#if defined(__AVX512F__)
    __m512 first = _mm512_castps256_ps512(_mm512_cvtpd_ps((__m512d)low));
    return (vf)_mm512_insertf32x8(first, _mm512_cvtpd_ps((__m512d)high), 1);
#elif defined(__AVX2__)
    return (vf)_mm256_set_m128(_mm256_cvtpd_ps((__m256d)high), _mm256_cvtpd_ps((__m256d)low));
#else
    vfh a = __builtin_convertvector(low, vfh);
    vfh b = __builtin_convertvector(high, vfh);
    return __builtin_shufflevector(a, b, V_LOW, V_HIGH);
#endif
}

#define EXP_MAGIC 12582912.0f /* 1.5 * 2^23: its low mantissa bits hold a rounded integer */

/* exp(r) * 2^n for |r| <= 0.35 and whole n in [-126, 127], n given as EXP_MAGIC + n; Cephes' expf
 * polynomial. NaN in r stays NaN. */
static inline vf
vexp_parts(vf r, vf magic_n)
{
    const int32_t magic_bits = 0x4B400000;
    vf p = vdup(1.9875691500e-4f);
    p = vfma(p, r, vdup(1.3981999507e-3f));
    p = vfma(p, r, vdup(8.3334519073e-3f));
    p = vfma(p, r, vdup(4.1665795894e-2f));
    p = vfma(p, r, vdup(1.6666665459e-1f));
    p = vfma(p, r, vdup(5.0000001201e-1f));
    p = vfma(p * r, r, r) + 1.0f;
    vi bits = ((vi)magic_n - (magic_bits - 127)) << 23;
    return p * (vf)bits;
}

/* exp(x); x below -87.3 gives the smallest normal number, above 88.3 about 2e38. */
static inline vf
vexp(vf x)
{
    x = vmin(vdup(88.3f), vmax(vdup(-87.3f), x));
    vf t = vfma(x, vdup(1.44269504088896341f), vdup(EXP_MAGIC));
    vf n = t - EXP_MAGIC;
    vf r = vfma(n, vdup(-0.693359375f), x);
    r = vfma(n, vdup(2.12194440e-4f), r);
    return vexp_parts(r, t);
}

#endif

/* bench: probes of the machine. Hand-written vector loops per instruction set, chosen at run time, so
 * that the limit does not depend on what a compiler makes of plain C. */
#include "bench/probes.h"

#include <omp.h>

#include "kernels/base/clock.h"
#include "kernels/base/err.h"
#include "kernels/base/types.h"

#if defined(SHL_HAVE_X86_ISA)
#include <immintrin.h>
#endif

#define FMA_ROUNDS 80000000
#define FMA_CHAINS 12 /* at least latency 4 x 2 units; 16 registers hold them and two constants */

typedef double (*fma_fn)(int64_t rounds, float start);
typedef void (*traffic_fn)(float *p, float *m, float *v, const float *g, int64_t n);

/* x -> 0.9 x + 0.1 stays near 1, so no operand is ever denormal or infinite. */
#define EACH_CHAIN(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11)

/* Blocks of one array after the other: arrays that start at the same place of a page would otherwise
 * make every load wait for the stores of its neighbours, at half the speed. */
#define BLOCK 64

static inline void
prefetch_block(const float *p, const float *m, const float *v, const float *g)
{
    for (int i = 512; i < 512 + BLOCK; i += 16) {
        __builtin_prefetch(p + i, 1);
        __builtin_prefetch(m + i, 1);
        __builtin_prefetch(v + i, 1);
        __builtin_prefetch(g + i, 0);
    }
}

#if defined(SHL_HAVE_X86_ISA)
__attribute__((target("avx2,fma"))) static double
fma_avx2(int64_t rounds, float start)
{
    __m256 a = _mm256_set1_ps(0.9f), b = _mm256_set1_ps(0.1f), sum = _mm256_setzero_ps();
#define X(i) __m256 x##i = _mm256_set1_ps(start + (float)(i));
    EACH_CHAIN(X)
#undef X
    for (int64_t r = 0; r < rounds; r++) {
#define X(i) x##i = _mm256_fmadd_ps(x##i, a, b);
        EACH_CHAIN(X)
#undef X
    }
#define X(i) sum = _mm256_add_ps(sum, x##i);
    EACH_CHAIN(X)
#undef X
    return (double)_mm256_cvtss_f32(sum);
}

__attribute__((target("avx2,fma"))) static void
decay_avx2(float *x, const float *g)
{
    __m256 keep = _mm256_set1_ps(0.9f), add = _mm256_set1_ps(0.1f);
    for (int i = 0; i < BLOCK; i += 8) {
        __m256 step = _mm256_mul_ps(_mm256_loadu_ps(g + i), add);
        _mm256_storeu_ps(x + i, _mm256_fmadd_ps(_mm256_loadu_ps(x + i), keep, step));
    }
}

static void
traffic_avx2(float *p, float *m, float *v, const float *g, int64_t n)
{
    for (int64_t i = 0; i + BLOCK <= n; i += BLOCK) {
        prefetch_block(p + i, m + i, v + i, g + i);
        decay_avx2(p + i, g + i);
        decay_avx2(m + i, g + i);
        decay_avx2(v + i, g + i);
    }
}

__attribute__((target("avx512f"))) static double
fma_avx512(int64_t rounds, float start)
{
    __m512 a = _mm512_set1_ps(0.9f), b = _mm512_set1_ps(0.1f), sum = _mm512_setzero_ps();
#define X(i) __m512 x##i = _mm512_set1_ps(start + (float)(i));
    EACH_CHAIN(X)
#undef X
    for (int64_t r = 0; r < rounds; r++) {
#define X(i) x##i = _mm512_fmadd_ps(x##i, a, b);
        EACH_CHAIN(X)
#undef X
    }
#define X(i) sum = _mm512_add_ps(sum, x##i);
    EACH_CHAIN(X)
#undef X
    return (double)_mm512_cvtss_f32(sum);
}

__attribute__((target("avx512f"))) static void
decay_avx512(float *x, const float *g)
{
    __m512 keep = _mm512_set1_ps(0.9f), add = _mm512_set1_ps(0.1f);
    for (int i = 0; i < BLOCK; i += 16) {
        __m512 step = _mm512_mul_ps(_mm512_loadu_ps(g + i), add);
        _mm512_storeu_ps(x + i, _mm512_fmadd_ps(_mm512_loadu_ps(x + i), keep, step));
    }
}

static void
traffic_avx512(float *p, float *m, float *v, const float *g, int64_t n)
{
    for (int64_t i = 0; i + BLOCK <= n; i += BLOCK) {
        prefetch_block(p + i, m + i, v + i, g + i);
        decay_avx512(p + i, g + i);
        decay_avx512(m + i, g + i);
        decay_avx512(v + i, g + i);
    }
}
#endif

/* Plain C for other machines: lanes of four, as the narrowest vector units have. */
static double
fma_base(int64_t rounds, float start)
{
    float x[FMA_CHAINS][4];
    double sum = 0;
    for (int c = 0; c < FMA_CHAINS; c++) {
        for (int k = 0; k < 4; k++) {
            x[c][k] = start + (float)(c + k);
        }
    }
    for (int64_t r = 0; r < rounds; r++) {
        for (int c = 0; c < FMA_CHAINS; c++) {
            for (int k = 0; k < 4; k++) {
                x[c][k] = x[c][k] * 0.9f + 0.1f;
            }
        }
    }
    for (int c = 0; c < FMA_CHAINS; c++) {
        for (int k = 0; k < 4; k++) {
            sum += (double)x[c][k];
        }
    }
    return sum;
}

static void
decay_base(float *x, const float *g)
{
    for (int i = 0; i < BLOCK; i++) {
        x[i] = x[i] * 0.9f + g[i] * 0.1f;
    }
}

static void
traffic_base(float *p, float *m, float *v, const float *g, int64_t n)
{
    for (int64_t i = 0; i + BLOCK <= n; i += BLOCK) {
        prefetch_block(p + i, m + i, v + i, g + i);
        decay_base(p + i, g + i);
        decay_base(m + i, g + i);
        decay_base(v + i, g + i);
    }
}

typedef struct probe_isa {
    const char *name;
    int lanes;
    fma_fn fma;
    traffic_fn traffic;
} probe_isa;

static const probe_isa *
best_isa(void)
{
#if defined(SHL_HAVE_X86_ISA)
    static const probe_isa wide = {"avx512", 16, fma_avx512, traffic_avx512};
    static const probe_isa middle = {"avx2", 8, fma_avx2, traffic_avx2};
    if (__builtin_cpu_supports("avx512f")) {
        return &wide;
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        return &middle;
    }
#endif
    static const probe_isa base = {"base", 4, fma_base, traffic_base};
    return &base;
}

const char *
shl_probe_isa(void)
{
    return best_isa()->name;
}

double
shl_probe_fma_flops_per_s(int threads)
{
    const probe_isa *isa = best_isa();
    int64_t rounds = FMA_ROUNDS / isa->lanes;
    double rate = 0, sum = 0;
#pragma omp parallel num_threads(threads) reduction(+ : sum, rate)
    {
        int64_t begin = shl_clock_thread_ns();
        sum += isa->fma(rounds, (float)omp_get_thread_num());
        int64_t took = shl_clock_thread_ns() - begin;
        rate += 2e9 * FMA_CHAINS * isa->lanes * (double)rounds / (double)(took > 0 ? took : 1);
    }
    /* sum is finite and positive: using it keeps the loops alive. */
    return sum > 0 ? rate : 0;
}

int64_t
shl_probe_traffic_ns(float *p, float *m, float *v, const float *g, int64_t n, int threads)
{
    traffic_fn traffic = best_isa()->traffic;
    int64_t piece = shl_round_up(shl_ceil_div(n, threads), BLOCK);
    SHL_ASSERT(n % BLOCK == 0);
    int64_t began = shl_clock_ns();
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t from = 0; from < n; from += piece) {
        int64_t to = from + piece < n ? from + piece : n;
        traffic(p + from, m + from, v + from, g + from, to - from);
    }
    return shl_clock_ns() - began;
}

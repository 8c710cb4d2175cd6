/* kernels/cpu: the library's fp32 product for the linear layers. Included only by *_k.c files. */
#ifndef SHL_CPU_CPU_GEMM_H
#define SHL_CPU_CPU_GEMM_H

#include <dnnl.h>

#include "kernels/cpu/cpu_slots.h"

/* C[m,n] = (add ? C : 0) + op(A)[m,k] op(B)[k,n]; the library takes its threads from OpenMP. */
static inline shl_code
gemm(const shl_stream *s, char ta, char tb, int64_t m, int64_t n, int64_t k, const float *a,
     int64_t lda, const float *b, int64_t ldb, bool add, float *c, int64_t ldc)
{
#if defined(_OPENMP)
    if (omp_get_max_threads() != s->device->config.threads) {
        omp_set_num_threads(s->device->config.threads);
    }
#else
    SHL_UNUSED(s);
#endif
    dnnl_status_t st = dnnl_sgemm(ta, tb, m, n, k, 1.0f, a, lda, b, ldb, add ? 1.0f : 0.0f, c, ldc);
    if (st != dnnl_success) {
        return SHL_RAISE(SHL_E_SYSTEM, "dnnl_sgemm failed with status %d", (int)st);
    }
    return SHL_OK;
}

/* linear layers in 16 bits, cpu_linear_half_k.c: p's product, in panels of `sizes` widened to fp32 in
 * `work` unless the library multiplies the type itself. */
struct shl_cpu_matmul;
struct shl_work_panels;
shl_code SHL_K(shl_cpu_linear_half)(shl_stream *s, const struct shl_cpu_matmul *p,
                                    const struct shl_work_panels *sizes, void *work) SHL_MUST_USE;

#endif

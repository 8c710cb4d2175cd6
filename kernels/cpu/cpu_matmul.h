/* kernels/cpu: one matrix product over row-major views, and what the library can do with 16-bit ones
 * by itself. */
#ifndef SHL_CPU_CPU_MATMUL_H
#define SHL_CPU_CPU_MATMUL_H

#include "kernels/device/device.h"

/* C[m,n] = op(A)[m,k] op(B)[k,n] + bias[n] (NULL data: none) + C (add). A and B of `dtype`, as the
 * bias; A lies [m,k] with lda between rows, [k,m] when ta; B likewise [k,n] or [n,k]. */
typedef struct shl_cpu_matmul {
    shl_dtype dtype, c_dtype;
    int64_t m, n, k;
    const void *a, *b, *bias;
    void *c;
    int64_t lda, ldb, ldc;
    bool ta, tb, add;
} shl_cpu_matmul;

/* True where the library multiplies this type by the CPU's own instructions (bf16 with AVX512_BF16
 * or AMX), accumulating in fp32. */
bool shl_cpu_matmul_is_native(shl_dtype dtype);

/* Runs p through the library with `threads`. Local, any thread. Errors: SHL_E_SYSTEM with the
 * library's status, which also says of a type that this CPU lacks. */
shl_code shl_cpu_matmul_run(const shl_cpu_matmul *p, int threads) SHL_MUST_USE;

#endif

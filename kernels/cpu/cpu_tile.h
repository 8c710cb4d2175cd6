/* kernels/cpu: the register tile of attention: TILE_M rows by two vectors, an outer product per
 * step. Included only by *_k.c files. */
#ifndef SHL_CPU_CPU_TILE_H
#define SHL_CPU_CPU_TILE_H

#include "kernels/cpu/cpu_simd.h"
#include "kernels/ops/ops.h"

#if defined(__AVX512F__)
#define TILE_M 12
#else
#define TILE_M 6
#endif
#define TILE_N (2 * VL)

/* C[rows, TILE_N] = (add ? C : 0) + A[rows, k] B[k, TILE_N]. A element (i, p) at a[i a_row + p a_k];
 * B row p at b + p b_k. An element's sum runs over p in order whatever `rows` is. */
static inline __attribute__((always_inline)) void
tile_fixed(const int rows, int64_t k, const float *a, int64_t a_row, int64_t a_k, const float *b,
           int64_t b_k, float *c, int64_t c_row, bool add)
{
    vf left[TILE_M], right[TILE_M];
    for (int i = 0; i < rows; i++) {
        left[i] = vdup(0.0f);
        right[i] = vdup(0.0f);
    }
    for (int64_t p = 0; p < k; p++) {
        vf b0 = vload(b + p * b_k), b1 = vload(b + p * b_k + VL);
        for (int i = 0; i < rows; i++) {
            vf x = vdup(a[i * a_row + p * a_k]);
            left[i] = vfma(x, b0, left[i]);
            right[i] = vfma(x, b1, right[i]);
        }
    }
    for (int i = 0; i < rows; i++) {
        float *to = c + i * c_row;
        vstore(to, add ? vload(to) + left[i] : left[i]);
        vstore(to + VL, add ? vload(to + VL) + right[i] : right[i]);
    }
}

/* The same for any rows <= TILE_M: full tiles in one go, the last rows one by one. */
static inline __attribute__((always_inline)) void
tile_rows(int64_t rows, int64_t k, const float *a, int64_t a_row, int64_t a_k, const float *b,
          int64_t b_k, float *c, int64_t c_row, bool add)
{
    if (rows == TILE_M) {
        tile_fixed(TILE_M, k, a, a_row, a_k, b, b_k, c, c_row, add);
        return;
    }
    for (int64_t i = 0; i < rows; i++) {
        tile_fixed(1, k, a + i * a_row, a_row, a_k, b, b_k, c + i * c_row, c_row, add);
    }
}

#endif

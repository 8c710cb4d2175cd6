/* kernels/cuda/object: the matrix products behind the linear ops, and the column sums that the
 * library is not asked for. */
#ifndef SHL_CUDA_PRODUCT_H
#define SHL_CUDA_PRODUCT_H

#include "kernels/cuda/cuda_backend.h"

#ifdef __cplusplus
extern "C" {
#endif

/* D[m,n] = op(A)[m,k] op(B)[k,n] (+ D) (+ bias[m] on every column), all by columns, a column ld elements
 * behind the one before; what lies between two is not touched. A and B of `in`, D and bias of
 * `out`; sums in fp32, rounded once. */
typedef struct shl_cuda_product {
    int64_t m, n, k;
    int64_t lda, ldb, ldd;
    const void *a, *b, *bias; /* bias may be NULL */
    void *d;
    shl_dtype in, out;
    bool turn_a, turn_b; /* op is the transpose: A is stored [k,m], B [n,k] */
    bool add;            /* to what D holds */
} shl_cuda_product;

/* db (+)= sums of the columns of dy, whose rows lie `stride` elements apart, in a fixed order; work:
 * shl_work_column_bytes. */
int shl_cuda_column_sums(const shl_cuda_launch *l, const shl_tensor *dy, int64_t stride,
                         const shl_tensor *db, bool accumulate, void *work);

#ifdef __cplusplus
}
#endif

#endif

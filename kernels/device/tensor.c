/* kernels/device: sizes of tensor views. */
#include "kernels/device/tensor.h"

int64_t
shl_tensor_elems(const shl_tensor *t)
{
    int64_t n = 1;
    SHL_ASSERT(t->n_dims >= 0 && t->n_dims <= SHL_MAX_DIMS);
    for (int i = 0; i < t->n_dims; i++) {
        bool fits = t->dims[i] >= 0 && shl_mul_elems(n, t->dims[i], &n);
        SHL_ASSERT(fits);
    }
    return n;
}

size_t
shl_tensor_bytes(const shl_tensor *t)
{
    return (size_t)shl_tensor_elems(t) * shl_dtype_bytes(t->dtype);
}

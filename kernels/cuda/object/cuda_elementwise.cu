/* kernels/cuda/object: ops that touch every element once. Floor of each: its bytes over the copy rate;
 * one launch. */
#include "kernels/cuda/object/cuda_common.cuh"

#define BLOCK 256
#define WAVES 8

template <typename T>
static __global__ void
scale_kernel(T *x, float factor, int64_t n)
{
    SHL_GRID_LOOP(i, n)
    {
        narrow(widen(x[i]) * factor, &x[i]);
    }
}

extern "C" int
shl_cuda_scale(const shl_cuda_launch *l, const void *args, void *work)
{
    const shl_scale_args *a = static_cast<const shl_scale_args *>(args);
    int64_t n = a->x.dims[0];
    for (int i = 1; i < a->x.n_dims; i++) {
        n *= a->x.dims[i];
    }
    SHL_UNUSED(work);
    SHL_FOR_FLOAT(a->x.dtype, T,
                  SHL_LAUNCH(scale_kernel<T>, grid_for(l, n, BLOCK, WAVES), BLOCK, 0, l->stream,
                             static_cast<T *>(a->x.data), a->factor, n));
    return launch_status();
}

/* kernels/cuda/object: layer normalisation (Ba et al. 2016): the launchers; kernels in cuda_norm.cuh. */
#include "kernels/cuda/object/cuda_norm.cuh"

template <typename T>
static int
forward_as(const shl_cuda_launch *l, const shl_layernorm_args *a)
{
    const void *all[] = {a->x.data, a->w.data, a->b.data, a->y.data};
    norm_forward<T> f = {static_cast<const T *>(a->x.data),
                         static_cast<const T *>(a->w.data),
                         static_cast<const T *>(a->b.data),
                         static_cast<T *>(a->y.data),
                         static_cast<float *>(a->mean.data),
                         static_cast<float *>(a->rstd.data),
                         a->x.dims[0],
                         static_cast<int>(a->x.dims[1]),
                         a->eps,
                         norm_aligned(all, 4)};
    return norm_forward_start<T, true>(l, f);
}

extern "C" int
shl_cuda_layernorm_forward(const shl_cuda_launch *l, const void *args, void *work)
{
    const shl_layernorm_args *a = static_cast<const shl_layernorm_args *>(args);
    SHL_UNUSED(work);
    SHL_FOR_FLOAT(a->x.dtype, T, return (forward_as<T>(l, a)));
}

template <typename T>
static int
backward_as(const shl_cuda_launch *l, const shl_layernorm_args *a, float *partial, int runs)
{
    const void *all[] = {a->x.data, a->w.data, a->dy.data, a->dx.data};
    int cols = static_cast<int>(a->x.dims[1]);
    norm_backward<T> f = {static_cast<const T *>(a->x.data),
                          static_cast<const T *>(a->w.data),
                          static_cast<const T *>(a->dy.data),
                          static_cast<const float *>(a->mean.data),
                          static_cast<const float *>(a->rstd.data),
                          static_cast<T *>(a->dx.data),
                          partial,
                          a->x.dims[0],
                          cols,
                          a->accumulate_dx,
                          norm_aligned(all, 4)};
    int status = norm_backward_start<T, true>(l, f, runs);
    int n = cols % chunk_of<T>::N == 0 ? chunk_of<T>::N : 1;
    SHL_FOR_FLOAT(a->dw.dtype, G,
                  return (status != 0 ? status
                                      : norm_sum_launch<G>(l, partial, runs, cols, 2 * cols, n,
                                                           a->accumulate, a->dw.data, a->db.data)));
}

extern "C" int
shl_cuda_layernorm_backward(const shl_cuda_launch *l, const void *args, void *work)
{
    const shl_layernorm_args *a = static_cast<const shl_layernorm_args *>(args);
    int runs = static_cast<int>(shl_work_norm_runs(a->x.dims[0], a->x.dims[1], a->x.dtype, 2));
    SHL_FOR_FLOAT(a->x.dtype, T, return (backward_as<T>(l, a, static_cast<float *>(work), runs)));
}

/* kernels/cuda/object: the launchers of the shared object, one for each op, each at the end of its
 * kernel's file; cuda_launchers.c is the table. Contracts as in kernels/ops/ops.h. */
#ifndef SHL_CUDA_LAUNCHERS_H
#define SHL_CUDA_LAUNCHERS_H

#include "kernels/cuda/cuda_backend.h"

#ifdef __cplusplus
extern "C" {
#endif

#define SHL_CUDA_LAUNCHER(op, name)                                                                \
    int shl_cuda_##name(const shl_cuda_launch *l, const void *args, void *work);
SHL_OPS(SHL_CUDA_LAUNCHER)
#undef SHL_CUDA_LAUNCHER

/* By op; every op has one. */
extern const shl_cuda_op_fn shl_cuda_launcher_table[SHL_OP_COUNT];

#ifdef __cplusplus
}
#endif

#endif

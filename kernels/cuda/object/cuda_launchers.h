/* kernels/cuda/object: the launchers of the shared object, one for each op, each at the end of its
 * kernel's file; cuda_launchers.c is the table. Contracts as in kernels/ops/ops.h. */
#ifndef SHL_CUDA_LAUNCHERS_H
#define SHL_CUDA_LAUNCHERS_H

#include "kernels/cuda/cuda_backend.h"

#ifdef __cplusplus
extern "C" {
#endif

#define SHL_CUDA_LAUNCHER(name)                                                                    \
    __attribute__((weak)) int name(const shl_cuda_launch *l, const void *args, void *work)

/* cuda_linear.c (emulated: emulate_linear.cpp) */
SHL_CUDA_LAUNCHER(shl_cuda_linear_forward);
SHL_CUDA_LAUNCHER(shl_cuda_linear_backward_input);
SHL_CUDA_LAUNCHER(shl_cuda_linear_backward_weight);
/* cuda_layernorm.cu, cuda_rmsnorm.cu */
SHL_CUDA_LAUNCHER(shl_cuda_layernorm_forward);
SHL_CUDA_LAUNCHER(shl_cuda_layernorm_backward);
SHL_CUDA_LAUNCHER(shl_cuda_rmsnorm_forward);
SHL_CUDA_LAUNCHER(shl_cuda_rmsnorm_backward);
/* cuda_elementwise.cu */
SHL_CUDA_LAUNCHER(shl_cuda_gelu_forward);
SHL_CUDA_LAUNCHER(shl_cuda_gelu_backward);
SHL_CUDA_LAUNCHER(shl_cuda_add);
SHL_CUDA_LAUNCHER(shl_cuda_scale);
SHL_CUDA_LAUNCHER(shl_cuda_cast);
SHL_CUDA_LAUNCHER(shl_cuda_sum_ranks);
/* cuda_silu.cu */
SHL_CUDA_LAUNCHER(shl_cuda_silu_mul_forward);
SHL_CUDA_LAUNCHER(shl_cuda_silu_mul_backward);
/* cuda_random.cu */
SHL_CUDA_LAUNCHER(shl_cuda_init);
SHL_CUDA_LAUNCHER(shl_cuda_dropout);
/* cuda_rope.cu */
SHL_CUDA_LAUNCHER(shl_cuda_rope);
/* cuda_embedding.cu */
SHL_CUDA_LAUNCHER(shl_cuda_embedding_forward);
SHL_CUDA_LAUNCHER(shl_cuda_embedding_backward);
/* cuda_loss.cu */
SHL_CUDA_LAUNCHER(shl_cuda_cross_entropy);
/* cuda_optim.cu */
SHL_CUDA_LAUNCHER(shl_cuda_adamw);
SHL_CUDA_LAUNCHER(shl_cuda_optim);
/* cuda_norm_sum.cu */
SHL_CUDA_LAUNCHER(shl_cuda_norm_max);
SHL_CUDA_LAUNCHER(shl_cuda_norm_sum);
/* cuda_attention.cu, cuda_attention_back.cu */
SHL_CUDA_LAUNCHER(shl_cuda_attention_forward);
SHL_CUDA_LAUNCHER(shl_cuda_attention_backward);

/* By op; an op that this object does not have is NULL. */
extern const shl_cuda_op_fn shl_cuda_launcher_table[SHL_OP_COUNT];

#ifdef __cplusplus
}
#endif

#endif

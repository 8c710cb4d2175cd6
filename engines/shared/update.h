/* engines/shared: the end of a step over a rank's fragments: order-independent global norm,
 * clipping coefficient, the optimizer. */
#ifndef SHL_SHARED_UPDATE_H
#define SHL_SHARED_UPDATE_H

#include "engines/shared/state.h"

/* Global L2 norm of the gradient store over the shard group, the same bits for any partition: the
 * squares are rounded to multiples of a quantum that the global maximum decides and added as
 * integers. inf or NaN when a gradient is. 0 on a device without data. COLLECTIVE over the shard
 * group, blocking. */
shl_code shl_update_norm(shl_state *st, double *out) SHL_MUST_USE;

/* min(1, clip / (norm + eps)) as torch.nn.utils.clip_grad_norm_; 1 when clip is 0. */
double shl_update_clip_coef(const shl_optim_config *c, double norm);

/* The quantum (a power of two) of a norm whose largest element has these bits, and the norm from the sum
 * of squares in it; inf or NaN when the largest element is. */
int shl_update_norm_quantum(uint32_t max_bits);
double shl_update_norm_root(uint32_t max_bits, const int64_t sum[2]);

/* The optimizer on all fragments with gradients times `coef`, for the update that the engine is at, at rate
 * lr; behind shl_update_prepare. The parameters are then where they are held, whole ones gathered.
 * COLLECTIVE over the shard group for whole parameters. */
shl_code shl_update_apply(shl_state *st, double coef, double lr) SHL_MUST_USE;

/* LAMB's first half on all fragments: moments, and its update in the place of the gradients. */
shl_code shl_update_lamb_moments(shl_state *st, double coef) SHL_MUST_USE;

/* Norm, coefficient, rate and whether the step is skipped, into the report; *coef is what the gradients
 * as they lie are multiplied with: clipping, and the loss scale that they carry undone. LAMB's moments
 * and ratios are made here too. COLLECTIVE over the shard group. */
shl_code shl_update_prepare(shl_state *st, shl_step_report *r, double *coef) SHL_MUST_USE;

#endif

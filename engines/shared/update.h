/* engines/shared: the end of a step over a rank's fragments: order-independent global norm,
 * clipping coefficient, AdamW. */
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

/* AdamW on the fragments of flat `flat` (-1: all) with gradients times `coef`, for the update that the
 * engine is at, at rate lr. Enqueues on compute. */
shl_code shl_update_adamw(shl_state *st, int flat, double coef, double lr) SHL_MUST_USE;

/* Norm, coefficient, rate and whether the step is skipped, into the report; *coef is what the gradients
 * as they lie are multiplied with: clipping, and the loss scale that they carry undone. COLLECTIVE over
 * the shard group. */
shl_code shl_update_prepare(shl_state *st, shl_step_report *r, double *coef) SHL_MUST_USE;

#endif

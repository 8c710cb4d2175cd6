/* engines/zero: DeepSpeed style: ddp and ZeRO stages 1 and 2 over flat buckets in backward order, stage 3
 * with every parameter split over the ranks and fetched around the module that uses it
 * (Rajbhandari et al., SC'20; reference semantics: DeepSpeed's). Floor 4. */
#ifndef SHL_ZERO_ZERO_H
#define SHL_ZERO_ZERO_H

#include "engines/engine.h"
#include "engines/shared/sharded.h"

extern const shl_engine_ops shl_zero_bucketed_engine; /* ddp, zero1, zero2 */
extern const shl_engine_ops shl_zero_stage3_engine;   /* zero3 */

/* Bucket items: parameters in the order in which backward finishes them; a bucket closes before the
 * tensor that would take it beyond bucket_elems, so a larger tensor stands alone. items has room
 * for model->n_params; returns the number of buckets. Pure integers. */
int shl_zero_plan_buckets(const shl_model *model, int64_t bucket_elems, shl_layout_item *items);

/* Stage 3: each parameter is a flat; parameters with the same users are gathered together. */
shl_code shl_zero_plan_stage3(const shl_engine_config *cfg, const shl_model *model,
                              shl_shard_plan *plan) SHL_MUST_USE;

#endif

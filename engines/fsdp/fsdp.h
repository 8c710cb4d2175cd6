/* engines/fsdp: PyTorch-FSDP style: a unit is gathered, computed, freed, its gradients
 * reduce-scattered. FULL_SHARD (fsdp) and SHARD_GRAD_OP (fsdp-grad-op). Floor 4. */
#ifndef SHL_FSDP_FSDP_H
#define SHL_FSDP_FSDP_H

#include "engines/engine.h"
#include "engines/shared/sharded.h"

extern const shl_engine_ops shl_fsdp_engine;

/* Wrap policy: each block is a unit. Untied: embeddings, blocks, [final norm, head], of which the last
 * is kept between forward and backward. Tied: one root unit of everything outside the blocks, around
 * the whole model, kept (the FSDP paper, arXiv 2304.11277; torchtitan's policy). Fills *plan
 * (shl_shard_plan_fini by the caller, also on failure). */
shl_code shl_fsdp_plan_units(const shl_engine_config *cfg, const shl_model *model,
                             shl_shard_plan *plan) SHL_MUST_USE;

#endif

/* engines/zero: stage 3's units (DeepSpeed's leaf modules) and the static trace of their uses. */
#ifndef SHL_ZERO_ZERO_UNITS_H
#define SHL_ZERO_ZERO_UNITS_H

#include "engines/shared/sharded.h"

/* unit_of[id]: the first of the modules whose parameters are gathered together with those of module `id`:
 * itself, unless the configuration makes a module above it, or a part of its path, a leaf. unit_of has
 * room for model->n_modules. Errors: SHL_E_USAGE for a leaf that is not in the model. */
shl_code shl_zero_units(const shl_engine_config *cfg, const shl_model *model,
                        int *unit_of) SHL_MUST_USE;

/* Marks the groups of the plan to keep after forward: those whose backward comes within max_reuse_distance
 * elements of modules, counted as DeepSpeed does from the module after the last use. */
shl_code shl_zero_keep_reused(const shl_engine_config *cfg, const shl_model *model,
                              shl_shard_plan *plan) SHL_MUST_USE;

#endif

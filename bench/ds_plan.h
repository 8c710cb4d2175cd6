/* bench: DeepSpeed's view of a plan: its own estimates beside ours, and a ds_config.json of a row. */
#ifndef SHL_BENCH_DS_PLAN_H
#define SHL_BENCH_DS_PLAN_H

#include "bench/output.h"

/* Appends, for each row of zero2 and zero3, what DeepSpeed's estimator says of it and which bytes
 * make the difference, and for each row of its stages the collectives on both sides. Ranks are taken as nodes of eight where that divides. Errors: of the model. */
shl_code shl_ds_plan_estimates(const shl_output *output, shl_str *out) SHL_MUST_USE;

/* Appends the ds_config.json of the one row. Errors: SHL_E_USAGE for several, or what it cannot say. */
shl_code shl_ds_plan_emit(const shl_run_points *points, shl_str *out) SHL_MUST_USE;

#endif

/* engines/config: the block "optimizer" of a ds_config.json; for ds_resolve.c. */
#ifndef SHL_CONFIG_DS_OPTIMIZER_H
#define SHL_CONFIG_DS_OPTIMIZER_H

#include "engines/config/config.h"
#include "engines/config/ds_config.h"

struct json_t;

/* Errors: SHL_E_CONFIG for params without a type, and for a type that is unknown or not in this build. */
shl_code shl_ds_optimizer_check(const shl_ds_config *c) SHL_MUST_USE;

/* Kind and parameters over *o, which stay the command line's when the file names no optimizer. What the file
 * does not give has DeepSpeed's default. Errors: SHL_E_CONFIG for a parameter that the type has not. */
shl_code shl_ds_optimizer_resolve(shl_ds_config *c, shl_optim_config *o) SHL_MUST_USE;

/* The block that says *o. Owner: caller; NULL: out of host memory. */
struct json_t *shl_ds_optimizer_json(const shl_optim_config *o);

/* Where the file says nothing, the chosen optimizer's own defaults; null for what it has not. of_line: what
 * holds without an optimizer in the file. For showing. Errors: SHL_E_HEAP. */
shl_code shl_ds_optimizer_defaults(shl_ds_config *c, const shl_optim_config *of_line) SHL_MUST_USE;

#endif

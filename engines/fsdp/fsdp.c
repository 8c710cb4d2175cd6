/* engines/fsdp: the engine table. All behaviour is engines/shared/sharded under the unit plan. */
#include "engines/fsdp/fsdp.h"

static bool
runs(shl_strategy s)
{
    return s == SHL_FSDP || s == SHL_FSDP_GRAD_OP;
}

static shl_code
attach(shl_engine *e)
{
    shl_shard_plan plan;
    shl_code code = shl_fsdp_plan_units(&e->config, e->model, &plan);
    if (code == SHL_OK) {
        code = shl_sharded_attach(e, &plan);
    }
    shl_shard_plan_fini(&plan);
    return code;
}

const shl_engine_ops shl_fsdp_engine = {.name = "fsdp",
                                        .runs = runs,
                                        .attach = attach,
                                        .detach = shl_sharded_detach,
                                        .begin_micro = shl_sharded_begin_micro,
                                        .begin_backward = shl_sharded_begin_backward,
                                        .end_micro = shl_sharded_end_micro,
                                        .end_eval = shl_sharded_end_eval,
                                        .end_step = shl_sharded_end_step,
                                        .visit_state = shl_sharded_visit,
                                        .param_hash = shl_sharded_param_hash,
                                        .info = shl_sharded_info,
                                        .hooks = &shl_sharded_hooks};

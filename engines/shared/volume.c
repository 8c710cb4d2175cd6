/* engines/shared: closed forms of model-state bytes (Rajbhandari et al., SC'20, section 5, in fp32: 4
 * bytes of parameter, 4 of gradient, 8 of AdamW moments) and of collective payloads. */
#include "engines/shared/volume.h"

double
shl_formula_state_bytes(shl_strategy s, double params, int ranks)
{
    double shard = params / (double)ranks;
    switch (s) {
    case SHL_DDP:
        return 16.0 * params;
    case SHL_ZERO1:
        return 8.0 * params + 8.0 * shard;
    case SHL_ZERO2:
        return 4.0 * params + 12.0 * shard;
    case SHL_ZERO3:
    case SHL_FSDP:
    case SHL_FSDP_GRAD_OP:
        return 16.0 * shard;
    case SHL_STRATEGY_COUNT:
        break;
    }
    SHL_ASSERT(!"a strategy");
    return 0.0;
}

void
shl_formula_comm_elems(shl_strategy s, shl_reduce_every every, double params, double root,
                       int64_t micro_steps, shl_formula_comm *out)
{
    double k = (double)micro_steps;
    double reductions = every == SHL_REDUCE_MICRO ? k : 1.0;
    *out = (shl_formula_comm){0.0, 0.0, 0.0};
    switch (s) {
    case SHL_DDP:
        out->all_reduce_elems = reductions * params;
        break;
    case SHL_ZERO1:
    case SHL_ZERO2:
        out->reduce_scatter_elems = reductions * params;
        out->all_gather_elems = params;
        break;
    case SHL_ZERO3:
        out->reduce_scatter_elems = reductions * params;
        out->all_gather_elems = 2.0 * k * params;
        break;
    case SHL_FSDP:
        out->reduce_scatter_elems = reductions * params;
        out->all_gather_elems = k * (2.0 * params - root);
        break;
    case SHL_FSDP_GRAD_OP:
        out->reduce_scatter_elems = reductions * params;
        out->all_gather_elems = k * params;
        break;
    case SHL_STRATEGY_COUNT:
        SHL_ASSERT(!"a strategy");
        break;
    }
}

/* engines/shared: closed forms of DESIGN 4: model-state bytes and collective payloads per strategy,
 * written from the definitions and never from a layout: the independent oracle that the engines are
 * tested against, and what `plan` prints beside the run. fp32; padding is not included. */
#ifndef SHL_SHARED_VOLUME_H
#define SHL_SHARED_VOLUME_H

#include "engines/config/config.h"

/* P elements over N ranks, as exact rationals rounded to the nearest byte: param + grad + optim. */
double shl_formula_state_bytes(shl_strategy s, double params, int ranks);

typedef struct shl_formula_comm {
    double all_gather_elems, reduce_scatter_elems, all_reduce_elems; /* payload per rank and step */
} shl_formula_comm;

/* k micro-steps per step; root: elements of the unit fsdp keeps between forward and backward. */
void shl_formula_comm_elems(shl_strategy s, shl_reduce_every every, double params, double root,
                            int64_t micro_steps, shl_formula_comm *out);

#endif

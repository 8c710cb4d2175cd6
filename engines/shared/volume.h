/* engines/shared: closed forms of DESIGN 4: model-state bytes and collective bytes per strategy and dtype
 * policy, written from the definitions and never from a layout: the independent oracle that the engines
 * are tested against, and what `plan` prints beside the run. Padding is not included. */
#ifndef SHL_SHARED_VOLUME_H
#define SHL_SHARED_VOLUME_H

#include "engines/config/config.h"
#include "models/module.h"

/* Elements of a model over `ranks`: frozen ones have neither gradient nor state. */
typedef struct shl_formula_size {
    double train, frozen;
    double again; /* of both: what zero3 and fsdp gather once more for backward */
    int ranks;
    double host; /* trainable elements of a rank whose updates run in host memory; 0: none */
    /* Offloaded activations: blocks whose input goes to host memory, and its elements per token. The tree
     * does not tell the latter: it is the model's width, and the caller's to set. */
    double away_blocks, stream;
} shl_formula_size;

/* Counted from the tree. Backward does not come to what lies before every trainable parameter, so that is
 * not gathered again; nor is what fsdp keeps: the last norm and the head, or the root unit that they
 * form with the embeddings when one tensor is shared. */
void shl_formula_size_of(shl_strategy s, const shl_model *model, int ranks, shl_formula_size *out);

/* Bytes that stay from step to step on a rank: param + grad + master + optim, as an exact rational
 * rounded to double: in device memory, in host memory. */
double shl_formula_host_bytes(const shl_engine_config *c, const shl_formula_size *n);
double shl_formula_state_bytes(const shl_engine_config *c, const shl_formula_size *n);

/* Whole gradients that live until the boundary beside the shards: fsdp without synchronisation; else 0.
 * With accumulation they are the peak of the tag bucket. */
double shl_formula_held_bytes(const shl_engine_config *c, const shl_formula_size *n);

/* The papers' convention for 16-bit training (Rajbhandari et al., SC'20, section 3.1): 2 bytes of
 * parameter, 2 of gradient, 4 of master weights and 4 of each moment (Adam: 12), sharded as the strategy does. NaN for
 * fp32, where it says nothing. */
double shl_formula_paper_bytes(const shl_engine_config *c, const shl_formula_size *n);

typedef struct shl_formula_comm {
    double all_gather_bytes, reduce_scatter_bytes, all_reduce_bytes; /* payload per rank and step */
} shl_formula_comm;

/* Gathers carry both kinds of parameters in the compute dtype (zero1 and zero2 only what was updated),
 * reductions gradients of trainable ones. A skipped step of zero1 and zero2 gathers nothing. */
void shl_formula_comm_bytes(const shl_engine_config *c, const shl_formula_size *n,
                            shl_formula_comm *out);

typedef struct shl_formula_move {
    double to_host_bytes,
        to_device_bytes; /* between tiers, per rank and step that is not skipped */
} shl_formula_move;

/* Reduced gradients go to host memory and parameters come back; offloaded parameters are fetched by each
 * gather; offloaded activations go and come back in each micro-step. */
void shl_formula_move_bytes(const shl_engine_config *c, const shl_formula_size *n,
                            shl_formula_move *out);

#endif

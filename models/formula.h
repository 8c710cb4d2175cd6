/* models: the closed forms of one family each, called by the ones of models/family.h only. They know
 * no module, no layout and no other family. */
#ifndef SHL_MODELS_FORMULA_H
#define SHL_MODELS_FORMULA_H

#include "models/family.h"

/* Activations of a pre-norm block of two residual branches, in bytes per token. */
typedef struct shl_act_terms {
    size_t stream;         /* x, and its gradient */
    size_t attention, mlp; /* what each branch keeps, its input with it */
    size_t refilled;       /* of attention's: what selective recomputation drops */
    size_t forward;        /* largest moment of a block's forward that keeps nothing but x */
    size_t backward;       /* gradients beside attention's bytes when most of them are there */
    size_t mlp_backward;   /* MLP's backward at its largest, beyond its start */
    size_t end;            /* what the last norm and the head keep */
    size_t end_backward;   /* the last norm's input and all gradients during its backward */
} shl_act_terms;

/* models/formula.c: bytes of one token's logits. */
size_t shl_formula_logits_bytes(const shl_model_config *cfg, const shl_act_spec *spec);

/* models/formula_llama.c */
int64_t shl_llama_formula_params(const shl_model_config *cfg);
double shl_llama_formula_step_flops(const shl_model_config *cfg, int64_t batch, int64_t seq);
shl_act_terms shl_llama_formula_act(const shl_model_config *cfg, const shl_act_spec *spec);

#endif

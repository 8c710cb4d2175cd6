/* models: the GPT-2 family (Radford et al. 2019): pre-norm blocks, learned positions, GELU (tanh),
 * head tied to the token embedding. Tree: root > embed {wte, wpe} (INPUT), h.i (BLOCK) > {ln_1,
 * attn.c_attn, attn, attn.c_proj, ln_2, mlp.c_fc, gelu, mlp.c_proj}, final (OUTPUT) > {ln_f, head}.
 * Weights are [in, out] as in Hugging Face; c_attn holds q, k, v side by side. */
#ifndef SHL_MODELS_GPT_H
#define SHL_MODELS_GPT_H

#include "models/module.h"

typedef struct shl_gpt_config {
    int64_t vocab, context, layers, width, heads;
    int64_t inner; /* 0: 4 * width */
    double ln_eps; /* 0: 1e-5 */
    bool tied;     /* head shares wte */
} shl_gpt_config;

typedef struct shl_preset {
    const char *name; /* "gpt2-124m" */
    const char *note;
    shl_gpt_config config;
} shl_preset;

/* All presets / one by name (NULL when unknown; shl_nearest over names for the message). */
const shl_preset *shl_preset_table(size_t *n);
const shl_preset *shl_preset_find(const char *name);

/* Builds tree and parameters; no tensor memory is touched. Initial values as HF: normal 0.02,
 * c_proj 0.02 / sqrt(2 L), norms 1 and 0, biases 0. Errors: SHL_E_USAGE on sizes that make no
 * model (heads do not divide width, a product overflows int64), SHL_E_HEAP. */
shl_code shl_gpt_new(const shl_gpt_config *cfg, shl_model **out) SHL_MUST_USE;

/* Closed forms, written from the definition of the model and never from layout or module code: the
 * independent oracle (models/formula.c). */
int64_t shl_gpt_formula_params(const shl_gpt_config *cfg);
/* Useful FLOPs of one training step over B x T: 6 * (matrix parameters incl. head) per token and
 * causal attention, forward and backward (no recomputation). */
double shl_gpt_formula_step_flops(const shl_gpt_config *cfg, int64_t batch, int64_t seq);
/* Activation bytes (tag act) held at the end of forward, and the largest moment of forward +
 * backward, for one rank's micro-batch in fp32. */
size_t shl_gpt_formula_saved_act_bytes(const shl_gpt_config *cfg, int64_t batch, int64_t seq);
size_t shl_gpt_formula_peak_act_bytes(const shl_gpt_config *cfg, int64_t batch, int64_t seq);

#endif

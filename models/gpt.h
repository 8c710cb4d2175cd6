/* models: the GPT-2 family (Radford et al. 2019): pre-norm blocks, learned positions, GELU (tanh),
 * head tied to the token embedding. Tree: root > embed {wte, wpe} (INPUT), h.i (BLOCK) > {ln_1,
 * attn.c_attn, attn, attn.c_proj, ln_2, mlp.c_fc, gelu, mlp.c_proj}, final (OUTPUT) > {ln_f, head}.
 * Weights are [in, out] as in Hugging Face; c_attn holds q, k, v side by side. */
#ifndef SHL_MODELS_GPT_H
#define SHL_MODELS_GPT_H

#include "models/family.h"

/* shl_model_new of this family. Initial values as HF: normal 0.02, c_proj 0.02 / sqrt(2 L), norms 1
 * and 0, biases 0. */
shl_code shl_gpt_new(const shl_model_config *cfg, shl_model **out) SHL_MUST_USE;

#endif

/* models: the LLaMA family (Touvron et al. 2023): pre-norm blocks with RMSNorm, rotary positions,
 * grouped-query attention (Ainslie et al. 2023), SwiGLU; Mistral's shapes, Qwen2 with biases of q, k
 * and v. Tree: root > embed (INPUT), model.layers.i (BLOCK) > {input_layernorm, self_attn.qkv >
 * {q_proj, k_proj, v_proj}, self_attn, o_proj, post_attention_layernorm, mlp.gate_up > {gate_proj,
 * up_proj}, mlp.act_fn, down_proj}, final (OUTPUT) > {model.norm, head}. Weights are [out, in] and
 * named as in Hugging Face. */
#ifndef SHL_MODELS_LLAMA_H
#define SHL_MODELS_LLAMA_H

#include "models/family.h"

/* shl_model_new of this family. Initial values as HF: normal 0.02, norms 1, biases 0. The model's
 * context is longer than the configured one when scaled angles reach further: LINEAR multiplies it by
 * the factor, LLAMA3 takes the original context times the factor if that is more. */
shl_code shl_llama_new(const shl_model_config *cfg, shl_model **out) SHL_MUST_USE;

#endif

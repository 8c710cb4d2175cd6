/* models: what a model is made from: one flat configuration with the family as its tag, and the
 * closed forms that every family answers. Everything above this room builds models through here and
 * names no family. */
#ifndef SHL_MODELS_FAMILY_H
#define SHL_MODELS_FAMILY_H

#include "models/tune.h"

typedef enum shl_family {
    SHL_FAMILY_GPT = 0, /* GPT-2 (models/gpt.h) */
    SHL_FAMILY_LLAMA,   /* LLaMA, Mistral, Qwen2 (models/llama.h) */
    SHL_FAMILY_COUNT
} shl_family;

typedef struct shl_model_config {
    int64_t vocab, context, layers, width, heads;
    int64_t inner;   /* 0: 4 * width; a LLaMA names it */
    double norm_eps; /* 0: 1e-5 */
    bool tied;       /* head shares the token embedding */
    shl_family family;
    /* LLaMA only; at 0 in a GPT. */
    int64_t kv_heads;  /* 0: heads */
    int64_t head_dim;  /* 0: width / heads */
    double rope_theta; /* 0: 1e4 */
    shl_rope_scaling rope;
    bool qkv_bias; /* q, k and v have biases (Qwen2), the output projection has none */
} shl_model_config;

/* Builds tree and parameters; no tensor memory is touched. Errors: SHL_E_USAGE on sizes that make no
 * model (heads do not divide width, a product overflows int64), SHL_E_HEAP. */
shl_code shl_model_new(const shl_model_config *cfg, shl_model **out) SHL_MUST_USE;

/* Closed forms, written from the definition of the model and never from layout or module code: the
 * independent oracle (models/formula.c). */
int64_t shl_model_formula_params(const shl_model_config *cfg);
/* Useful FLOPs of one training step over B x T: 6 * (matrix parameters incl. head) per token and
 * causal attention, forward and backward (no recomputation). */
double shl_model_formula_step_flops(const shl_model_config *cfg, int64_t batch, int64_t seq);
/* What decides the activations of one rank's micro-batch. */
typedef struct shl_act_spec {
    int64_t batch, seq;
    shl_dtype dtype;
    shl_recompute recompute;
    int64_t recompute_every; /* full: blocks 0, k, 2k, ...; 0: 1 */
    size_t row_align_bytes;  /* rows of the logits start at multiples; 0: lie close together */
    bool offload;            /* inputs of recomputed blocks, but for the last one, in host memory */
} shl_act_spec;
/* Activation bytes (tag act) on the device held at the end of forward, and the largest moment of forward +
 * backward. Everything is trained, without adapters and dropout. */
size_t shl_model_formula_saved_act_bytes(const shl_model_config *cfg, const shl_act_spec *spec);
size_t shl_model_formula_peak_act_bytes(const shl_model_config *cfg, const shl_act_spec *spec);
/* Those in host memory at the end of forward, the most there is: what crosses the link each way. */
size_t shl_model_formula_host_act_bytes(const shl_model_config *cfg, const shl_act_spec *spec);

#endif

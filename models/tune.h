/* models: how a model is trained, apart from its shape: what is kept for backward, what is frozen,
 * low-rank adapters, dropout. Applied once to a model that was just built, before an engine opens;
 * engines see the result only (shl_param.trainable, shl_module.in_backward and .recompute). */
#ifndef SHL_MODELS_TUNE_H
#define SHL_MODELS_TUNE_H

#include "models/module.h"

/* What backward makes again instead of keeping it (Chen et al. 2016). Bits do not depend on it. */
typedef enum shl_recompute {
    SHL_RECOMPUTE_NONE = 0,
    SHL_RECOMPUTE_SELECTIVE, /* the output of attention, from q, k and v (Korthikanti et al. 2022) */
    SHL_RECOMPUTE_FULL,      /* whole blocks, from their inputs */
    SHL_RECOMPUTE_COUNT
} shl_recompute;

const char *shl_recompute_name(shl_recompute r); /* "none", "selective", "full" */
/* Errors: SHL_E_USAGE with the nearest name and the list. */
shl_code shl_recompute_parse(const char *text, shl_recompute *out) SHL_MUST_USE;

#define SHL_TUNE_TEXT 256

/* Plain data; all zero changes nothing. Lists are separated by commas.
 *
 * A pattern of `freeze` stands for every parameter whose name it is, or begins, up to a dot: "wte", "h.0",
 * "h.1.mlp.c_fc.weight"; a * stands for any run of characters: "*.bias". */
typedef struct shl_tune_config {
    shl_recompute recompute;
    int64_t recompute_every;    /* full: blocks 0, k, 2k, ... only; 0: 1 */
    char freeze[SHL_TUNE_TEXT]; /* patterns of parameters that stay as they are */
    int64_t train_last; /* > 0: only what is used in the last k blocks and behind them alone; a head
                           that shares the embedding stays frozen with it */
    /* LoRA (Hu et al. 2021): y = x W + b + (alpha / rank) (x A^T) B^T in linear modules. A [rank, in]
     * and B [out, rank] are named as PEFT stores them, "<module>.lora_A.weight" and
     * "<module>.lora_B.weight". B starts as 0, A as a normal of the standard deviation of PEFT's
     * kaiming_uniform_(a = sqrt 5), 1 / sqrt(3 in). With train_last, in the last k blocks only. */
    int64_t lora_rank;                /* 0: none */
    double lora_alpha;                /* 0: the rank */
    char lora_targets[SHL_TUNE_TEXT]; /* ends of module paths: "c_attn", "mlp.c_proj"; "" or "all":
                                         every linear module (never the head) */
    bool lora_base;                   /* what the adapters stand on is trained too; else frozen */
    double dropout;           /* p behind the embedding and at the end of each residual branch */
    double attention_dropout; /* p of the attention weights */
} shl_tune_config;

/* Checks and applies. Changes parameters (LoRA adds some, in the order of first use), so addresses
 * that were taken of model->params go stale. Errors: SHL_E_USAGE for a value out of range, settings
 * that need another one, a pattern or a target that nothing answers to (nearest name), nothing left
 * to train; SHL_E_HEAP. The model is only good for shl_model_free then. Local. */
shl_code shl_model_tune(shl_model *model, const shl_tune_config *cfg) SHL_MUST_USE;

/* Elements of trainable parameters. */
int64_t shl_model_trainable_elems(const shl_model *model);

#endif

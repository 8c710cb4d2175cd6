/* engines/config: one plain run configuration, whatever it was spelled in (command line now; real
 * ds_config.json and fsdp_config files fill the same struct), its cross-field checks, and the
 * learning-rate schedules. No device, no rank. */
#ifndef SHL_CONFIG_CONFIG_H
#define SHL_CONFIG_CONFIG_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/base/err.h"
#include "kernels/base/types.h"

/* Strategies by name. FULL_SHARD, NO_SHARD, SHARD_GRAD_OP are accepted aliases. */
typedef enum shl_strategy {
    SHL_DDP = 0,
    SHL_ZERO1,
    SHL_ZERO2,
    SHL_ZERO3,
    SHL_FSDP,
    SHL_FSDP_GRAD_OP,
    SHL_STRATEGY_COUNT
} shl_strategy;

const char *shl_strategy_name(shl_strategy s); /* "ddp", ..., "fsdp-grad-op" */
/* Errors: SHL_E_USAGE with the nearest name and the list. */
shl_code shl_strategy_parse(const char *text, shl_strategy *out) SHL_MUST_USE;

/* When gradients are reduced: at the boundary of the accumulation, at each micro-step, or as the
 * strategy does by nature (ddp, zero1: boundary; zero2, zero3, fsdp, fsdp-grad-op: micro). */
typedef enum shl_reduce_every {
    SHL_REDUCE_AUTO = 0,
    SHL_REDUCE_MICRO,
    SHL_REDUCE_BOUNDARY
} shl_reduce_every;
/* AUTO resolved. Errors: SHL_E_USAGE for zero2 / zero3 at the boundary (says which can). */
shl_code shl_reduce_every_resolve(shl_strategy s, shl_reduce_every asked,
                                  shl_reduce_every *out) SHL_MUST_USE;

typedef enum shl_schedule {
    SHL_SCHEDULE_CONSTANT = 0,
    SHL_SCHEDULE_LINEAR,
    SHL_SCHEDULE_COSINE
} shl_schedule;

typedef struct shl_optim_config {
    double lr, beta1, beta2, eps, weight_decay;
    double clip;     /* global L2 norm; 0: none */
    double clip_eps; /* 1e-6, as torch.nn.utils.clip_grad_norm_ */
    shl_schedule schedule;
    int64_t warmup_steps, schedule_steps; /* schedule_steps: total; needed by linear, cosine */
    double min_lr_ratio;
} shl_optim_config;

/* Learning rate of update `step` (from 0): linear warm-up lr (step + 1) / warmup, then constant,
 * linear or cosine from lr to lr * min_lr_ratio, reached at step schedule_steps - 1 and kept
 * (p = (step + 1 - warmup) / (schedule_steps - warmup)). */
double shl_lr_at(const shl_optim_config *c, int64_t step);

/* Gather groups issued ahead: a unit of FSDP is a block, so 1 (PyTorch's implicit prefetch); ZeRO-3
 * fetches module by module, some six groups a block, so 8 (DeepSpeed's prefetch bucket of 5e7
 * elements reaches further). asked >= 0 is kept. */
#define SHL_PREFETCH_AUTO (-1)
int shl_prefetch_resolve(shl_strategy s, int asked);

/* What an engine is told. Dtypes are explicit; this build accepts fp32 everywhere. */
typedef struct shl_engine_config {
    shl_strategy strategy;
    shl_reduce_every reduce_every; /* resolved: MICRO or BOUNDARY */
    int64_t bucket_elems;          /* ddp, zero*: elements per reduction bucket, >= 1 */
    int prefetch;       /* zero3, fsdp*: gather groups issued ahead; 0 = none, SHL_PREFETCH_AUTO */
    int64_t accum;      /* micro-steps per step, >= 1 */
    int64_t batch, seq; /* micro-batch per rank B, positions T */
    uint64_t seed;      /* initial parameters */
    shl_optim_config optim;
    bool no_optimizer;       /* all parameters frozen, no gradients, no state: evaluation only */
    shl_dtype master_dtype;  /* what updates are made on: fp32, or the compute dtype */
    shl_dtype compute_dtype; /* parameters in use, activations, what gathers carry */
    shl_dtype reduce_dtype;  /* gradients while they are reduced */
    shl_dtype grad_dtype;    /* gradients while they are accumulated */
    shl_dtype moment_dtype;
} shl_engine_config;

/* Defaults of every field as DESIGN 4 names them (fp32, AdamW 1e-3 / 0.9 / 0.95 / 1e-8 / 0.1, no
 * clipping, bucket 16 Mi elements, prefetch auto, accum 1). */
void shl_engine_config_init(shl_engine_config *c);

/* Cross-field checks. Errors: SHL_E_USAGE with the field, its value and its limit. */
shl_code shl_engine_config_check(const shl_engine_config *c) SHL_MUST_USE;

#endif

/* engines/config: one plain run configuration, whatever it was spelled in (command line now; real
 * ds_config.json and fsdp_config files fill the same struct), its cross-field checks, and the
 * learning-rate schedules. No device, no rank. */
#ifndef SHL_CONFIG_CONFIG_H
#define SHL_CONFIG_CONFIG_H

#include <stdbool.h>
#include <stdint.h>

#include "engines/config/ds_schedules.h"
#include "engines/config/optim_kinds.h"
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
    SHL_SCHEDULE_COSINE,
    SHL_SCHEDULE_NAMED /* DeepSpeed's or the Trainer's, in `named` */
} shl_schedule;

/* What an optimizer does not have is 0 (optim_kinds.h). */
typedef struct shl_optim_config {
    shl_optim_kind kind;
    double lr, beta1, beta2, eps, weight_decay;
    double momentum, dampening;  /* sgd */
    double nesterov;             /* sgd: 1 or 0 */
    double bias_correction;      /* adamw, adam, lamb: 1 or 0 */
    double min_coeff, max_coeff; /* lamb: bounds of its trust ratio */
    double clip;                 /* global L2 norm; 0: none */
    double clip_eps;             /* 1e-6, as torch.nn.utils.clip_grad_norm_ */
    shl_schedule schedule;
    int64_t warmup_steps, schedule_steps; /* schedule_steps: total; needed by linear, cosine */
    double min_lr_ratio;
    shl_ds_schedule named; /* NAMED only; it has its own warm-up and end */
} shl_optim_config;

/* Learning rate of update `step` (from 0): linear warm-up lr (step + 1) / warmup, then constant,
 * linear or cosine from lr to lr * min_lr_ratio, reached at step schedule_steps - 1 and kept
 * (p = (step + 1 - warmup) / (schedule_steps - warmup)). */
double shl_lr_at(const shl_optim_config *c, int64_t step);
/* The betas of update `step`: the optimizer's own, unless the schedule moves them. */
void shl_betas_at(const shl_optim_config *c, int64_t step, double *beta1, double *beta2);

/* Gather groups issued ahead: a unit of FSDP is a block, so 1 (PyTorch's implicit prefetch); ZeRO-3
 * fetches module by module, some six groups a block, so 8 (DeepSpeed's prefetch bucket of 5e7
 * elements reaches further). asked >= 0 is kept. */
#define SHL_PREFETCH_AUTO (-1)
int shl_prefetch_resolve(shl_strategy s, int asked);

/* The factor on the loss that keeps small 16-bit gradients above zero (Micikevicius et al., ICLR 2018).
 * A step whose gradients are not finite is skipped, also by STATIC. DYNAMIC is DeepSpeed's
 * DynamicLossScaler, factor 2. */
typedef enum shl_scale_kind {
    SHL_SCALE_NONE = 0,
    SHL_SCALE_STATIC,
    SHL_SCALE_DYNAMIC
} shl_scale_kind;

typedef struct shl_scale_config {
    shl_scale_kind kind;
    double scale;                /* STATIC: always; DYNAMIC: at first. Finite, > 0 */
    int64_t window;              /* clean steps to a doubling (the first takes one more), >= 1 */
    int64_t hysteresis;          /* overflows to the first halving, >= 1 */
    bool consecutive_hysteresis; /* every clean step refills the hysteresis, not only a doubling */
    double min_scale;            /* > 0 */
    bool raise_at_min;           /* a halving that is due at min_scale ends the run */
} shl_scale_config;

/* What only DeepSpeed's keys say (ds_config.h); lengths in elements. Zero unless a ds_config was given,
 * then that file's values or DeepSpeed's defaults. `given` false: the strategies' own defaults hold. */
#define SHL_ZERO_LEAF_BYTES 256
typedef struct shl_zero_options {
    bool given;
    int64_t prefetch_elems, persistence_elems, model_persistence_elems; /* stage 3 */
    int64_t max_live_elems, max_reuse_elems, granularity_elems;         /* stage 3 */
    bool gather_sequential, gather_on_save;                             /* stage 3 */
    char leaf_names[SHL_ZERO_LEAF_BYTES];    /* stage 3: modules gathered as a whole: paths */
    char leaf_suffixes[SHL_ZERO_LEAF_BYTES]; /* and ends of paths; commas between */
    char leaf_classes[SHL_ZERO_LEAF_BYTES];  /* and classes of Hugging Face's models */
    bool serial_reduce;                      /* each reduction is waited for at once */
    bool single_cut; /* stages 1, 2: DeepSpeed's layout, one cut of the flat space */
    /* Where the mean over ranks is formed (shl_zero_grad_factor); a sum is not divided at all. */
    bool prescale, sum_gradients;
    double predivide;  /* 1: none */
    bool whole_reduce; /* reduce_scatter is false: divided as beside DeepSpeed's all-reduce */
} shl_zero_options;

/* Where states live that are not on the device. NVMe is known and refused. */
typedef enum shl_offload_device {
    SHL_OFFLOAD_NONE = 0,
    SHL_OFFLOAD_HOST,
    SHL_OFFLOAD_DEVICE_COUNT
} shl_offload_device;

/* States in host memory (Ren et al., USENIX ATC 2021; ratio: Twin-Flow). */
typedef struct shl_offload_config {
    shl_offload_device optimizer;   /* master weights, moments and reduced gradients: zero1, 2,
                                     3, fsdp* */
    shl_offload_device param;       /* parameter shards: zero3, fsdp* (with the optimizer) */
    shl_offload_device activations; /* inputs of recomputed blocks: every strategy */
    double ratio;                   /* of the optimizer's sub-groups that are offloaded, 0 to 1 */
    bool pin;                       /* in locked pages */
    int64_t sub_group_elems;        /* updated while the ones before are copied back, >= 1 */
} shl_offload_config;

/* "none", "cpu". Errors: SHL_E_USAGE with the option's name and the list; says of "nvme" that it is
 * refused. */
shl_code shl_offload_parse(const char *field, const char *text,
                           shl_offload_device *out) SHL_MUST_USE;
const char *shl_offload_name(shl_offload_device d);

/* What an engine is told. Dtypes are explicit, one per role (shl_dtype_policy_set has the defaults). */
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
    shl_dtype moment_dtype;  /* fp32 or bf16 */
    shl_scale_config scale;
    bool check_overflow; /* skips steps without a scaler too */
    shl_zero_options zero;
    shl_offload_config offload;
} shl_engine_config;

/* Defaults of every field (fp32, AdamW 1e-3 / 0.9 / 0.95 / 1e-8 / 0.1, no clipping, bucket 16 Mi
 * elements, prefetch auto, accum 1; no loss scaling, DeepSpeed's numbers for one that is asked for). */
void shl_engine_config_init(shl_engine_config *c);

/* The default policy of a compute dtype: everything else in fp32. */
void shl_dtype_policy_set(shl_engine_config *c, shl_dtype compute);

/* "bf16 compute, fp32 master, fp32 reduce, fp32 grad, fp32 moments": what is told beside a loss. */
#define SHL_DTYPE_POLICY_TEXT_BYTES 96
void shl_dtype_policy_text(const shl_engine_config *c, char *dst, size_t cap);

/* "fp32", "bf16", "fp16". Errors: SHL_E_USAGE with `role` and the list. */
shl_code shl_dtype_parse(const char *role, const char *text, shl_dtype *out) SHL_MUST_USE;

/* Whether gradients are summed over ranks where they are accumulated, or held until a boundary and
 * summed there: then reduction and accumulation have one dtype, but for the whole stores of ddp and
 * zero1, which go through buckets when it is another. */
bool shl_reduces_in_grad_dtype(const shl_engine_config *c);

/* Whether steps with gradients that are not finite are skipped. */
bool shl_checks_overflow(const shl_engine_config *c);

/* Whether anything is in host memory: states or activations. */
bool shl_offload_any(const shl_offload_config *o);

/* Whether the offload is one that the strategy has. Errors: SHL_E_USAGE, says which have it. */
shl_code shl_offload_check(const shl_engine_config *c) SHL_MUST_USE;

/* Cross-field checks. Errors: SHL_E_USAGE with the field, its value and its limit. */
shl_code shl_engine_config_check(const shl_engine_config *c) SHL_MUST_USE;

#endif

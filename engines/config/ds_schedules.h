/* engines/config: learning-rate schedules as others define them: DeepSpeed's five classes and the three
 * of a transformers Trainer, with their own parameters, so that a run that moves here keeps its rates. */
#ifndef SHL_CONFIG_DS_SCHEDULES_H
#define SHL_CONFIG_DS_SCHEDULES_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/base/err.h"

typedef enum shl_ds_schedule_kind {
    SHL_DS_LR_RANGE_TEST = 0,
    SHL_DS_ONE_CYCLE,
    SHL_DS_WARMUP_LR,
    SHL_DS_WARMUP_DECAY_LR,
    SHL_DS_WARMUP_COSINE_LR,
    SHL_HF_CONSTANT, /* transformers: constant_with_warmup (warm-up 0: constant) */
    SHL_HF_LINEAR,
    SHL_HF_COSINE,
    SHL_DS_SCHEDULE_COUNT
} shl_ds_schedule_kind;

#define SHL_DS_SCHEDULE_PARAMS 13

/* Parameter i of a kind is row i of its table; warmup_type is 0 (log) or 1 (linear), switches are 0 or
 * 1, counts are whole. NaN: not given, where DeepSpeed has None. */
typedef struct shl_ds_schedule {
    shl_ds_schedule_kind kind;
    double p[SHL_DS_SCHEDULE_PARAMS];
} shl_ds_schedule;

typedef struct shl_ds_schedule_param {
    const char *name;
    double fallback; /* DeepSpeed's; NaN: None */
    bool required, whole;
} shl_ds_schedule_param;

/* "WarmupLR", ... The transformers' ones are "hf-constant", "hf-linear", "hf-cosine". */
const char *shl_ds_schedule_name(shl_ds_schedule_kind kind);
/* Whether `name` is one; *out on true. */
bool shl_ds_schedule_find(const char *name, shl_ds_schedule_kind *out);
/* The parameters of a kind, *n of them. */
const shl_ds_schedule_param *shl_ds_schedule_params(shl_ds_schedule_kind kind, int *n);
/* Index of a parameter of a kind, -1 when it has none of that name. */
int shl_ds_schedule_param_index(shl_ds_schedule_kind kind, const char *name);

/* The kind with every parameter at its default. */
void shl_ds_schedule_init(shl_ds_schedule_kind kind, shl_ds_schedule *out);

/* Errors: SHL_E_USAGE with the parameter, its value and its limit (what DeepSpeed raises, and values
 * under which it divides by zero later). */
shl_code shl_ds_schedule_check(const shl_ds_schedule *s) SHL_MUST_USE;

/* The rate of update `step` (from 0) with an optimizer of rate optimizer_lr: golden traces' lr[step].
 * DeepSpeed steps its scheduler after the update, so the warm-up classes use the starting rate twice. */
double shl_ds_schedule_lr(const shl_ds_schedule *s, double optimizer_lr, int64_t step);

/* Whether the schedule moves the betas (OneCycle with cycle_momentum); then those of update `step`. As in
 * DeepSpeed beta2 becomes 0.99. */
bool shl_ds_schedule_betas(const shl_ds_schedule *s, int64_t step, double *beta1, double *beta2);

/* One text and back: "WarmupLR(warmup_min_lr=0,warmup_num_steps=100)", for records and handles. What is
 * not named keeps its default; numbers go round exactly. Errors of parse: SHL_E_USAGE. */
#define SHL_DS_SCHEDULE_TEXT_BYTES 640
void shl_ds_schedule_format(const shl_ds_schedule *s, char *dst, size_t cap);
shl_code shl_ds_schedule_parse(const char *text, shl_ds_schedule *out) SHL_MUST_USE;

#endif

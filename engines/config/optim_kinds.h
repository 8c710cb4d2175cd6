/* engines/config: the optimizers: names, which parameters and moments each has, and its own defaults. No
 * device, no rank. */
#ifndef SHL_CONFIG_OPTIM_KINDS_H
#define SHL_CONFIG_OPTIM_KINDS_H

#include <stdbool.h>

#include "kernels/base/err.h"

struct shl_optim_config;

typedef enum shl_optim_kind {
    SHL_OPTIM_ADAMW = 0, /* decay on the parameter (Loshchilov & Hutter 2019) */
    SHL_OPTIM_ADAM,      /* decay in the gradient: DeepSpeed's adam_w_mode false */
    SHL_OPTIM_LION,
    SHL_OPTIM_ADAGRAD,
    SHL_OPTIM_SGD,
    SHL_OPTIM_LAMB,
    SHL_OPTIM_KIND_COUNT
} shl_optim_kind;

const char *shl_optim_name(shl_optim_kind kind); /* "adamw", ... */
/* The same for choosing from: NULL-terminated, by kind. */
extern const char *const shl_optim_names[];

/* What somebody asked for; SHL_OPTIM_UNSET: the optimizer's own default. */
#define SHL_OPTIM_UNSET (-1.0)
typedef struct shl_optim_asked {
    double lr, beta1, beta2, eps, weight_decay;
    double momentum, dampening;  /* sgd */
    double nesterov;             /* sgd: 1 or 0 */
    double bias_correction;      /* adamw, adam, lamb: 1 or 0 */
    double min_coeff, max_coeff; /* lamb: bounds of its trust ratio */
} shl_optim_asked;
void shl_optim_asked_init(shl_optim_asked *a); /* all unset */
/* What a configuration has, the rest unset. */
void shl_optim_asked_of(const struct shl_optim_config *c, shl_optim_asked *a);

/* Sets kind and its parameters, those that the kind has not to 0; clipping and schedule stay. Errors:
 * SHL_E_USAGE for one that the kind has not, naming both. */
shl_code shl_optim_resolve(shl_optim_kind kind, const shl_optim_asked *a,
                           struct shl_optim_config *c) SHL_MUST_USE;

/* Moments that a rank holds; SGD's only with momentum. Owners in the ledger: "adamw.m", "adamw.v". */
bool shl_optim_has_m(const struct shl_optim_config *c);
bool shl_optim_has_v(const struct shl_optim_config *c);
const char *shl_optim_owner_m(shl_optim_kind kind);
const char *shl_optim_owner_v(shl_optim_kind kind);

/* Ranges of what the kind has. Errors: SHL_E_USAGE with the field, its value and its limit. */
shl_code shl_optim_check(const struct shl_optim_config *c) SHL_MUST_USE;

/* lo <= value <= hi, or value < hi when hi is excluded; NaN never passes. */
shl_code shl_config_check_real(const char *field, double value, double lo, double hi,
                               bool hi_excluded) SHL_MUST_USE;

#endif

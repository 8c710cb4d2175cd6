/* engines/shared: loss scaling: the scale of a step, and what an overflow does to the next one. Pure
 * numbers: ranks that are told the same flags hold the same state. */
#ifndef SHL_SHARED_SCALER_H
#define SHL_SHARED_SCALER_H

#include "engines/config/config.h"

/* DeepSpeed's names: cur_scale, cur_hysteresis, cur_iter, last_overflow_iter. */
typedef struct shl_scaler {
    double scale; /* of the next step; 1 without a scaler */
    int64_t hysteresis_left;
    int64_t steps;         /* flags seen */
    int64_t last_overflow; /* -1: none */
} shl_scaler;

/* Before the first step. */
void shl_scaler_init(shl_scaler *s, const shl_scale_config *c);

/* After a step: overflow tells whether its gradients were not finite. Only DYNAMIC changes the scale.
 * Errors: SHL_E_CONFIG when a halving is due at the least scale and the configuration asks for an end;
 * *s is unchanged then. */
shl_code shl_scaler_update(shl_scaler *s, const shl_scale_config *c, bool overflow) SHL_MUST_USE;

#endif

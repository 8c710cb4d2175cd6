/* engines/config: DeepSpeed's keys that engines honour, as one text: "param_persistence_threshold=100000;
 * overlap_comm=false". It is what --zero takes, what a handle of the library is given, and what records
 * keep. */
#ifndef SHL_CONFIG_ZERO_TEXT_H
#define SHL_CONFIG_ZERO_TEXT_H

#include "engines/config/config.h"

#define SHL_ZERO_TEXT_BYTES 1792

/* DeepSpeed's own defaults of every key, given. */
void shl_zero_options_init(shl_zero_options *z);

/* Keys that the text names over DeepSpeed's defaults; "" or NULL: no options are given. Errors:
 * SHL_E_USAGE with the key, and the nearest name of an unknown one. */
shl_code shl_zero_options_parse(const char *text, shl_zero_options *out) SHL_MUST_USE;

/* Every key; "" when none are given. cap: SHL_ZERO_TEXT_BYTES. */
void shl_zero_options_format(const shl_zero_options *z, char *dst, size_t cap);

/* Ranges and words. Errors: SHL_E_USAGE with the key, its value and its limits. */
shl_code shl_zero_options_check(const shl_engine_config *c) SHL_MUST_USE;

/* What reduced gradients are too large by: DeepSpeed's stage 0, and stages 1 and 2 without reduce_scatter,
 * sum the ranks' own means, predivided, and divide afterwards; elsewhere, with prescale_gradients and
 * without its keys they are divided before the sum, and this is 1. The update takes it back. */
double shl_zero_grad_factor(const shl_engine_config *c, int ranks);

#endif

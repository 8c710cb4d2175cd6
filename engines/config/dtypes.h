/* engines/config: the checks of dtypes and loss scaling, for config.c. No device, no rank. */
#ifndef SHL_CONFIG_DTYPES_H
#define SHL_CONFIG_DTYPES_H

#include "engines/config/config.h"

/* Dtypes of every role against each other and the strategy, and the loss scaling that they need. Errors:
 * SHL_E_USAGE with the role, and which strategy or policy can. */
shl_code shl_dtype_policy_check(const shl_engine_config *c) SHL_MUST_USE;

#endif

/* bench: the presets, or one model of the user, with their counts: what `shardlab info models` prints. */
#ifndef SHL_BENCH_INFO_MODELS_H
#define SHL_BENCH_INFO_MODELS_H

#include "bench/output.h"

/* Appends the table in one form (JSON lines too). model: as behind --model; NULL: all presets. */
shl_code shl_info_models(const char *model, shl_form form, shl_str *out) SHL_MUST_USE;

#endif

/* models: typed reading of one config.json, for models/hf_config.c. Missing and null keys take the
 * default; errors name key, value, line and column. */
#ifndef SHL_MODELS_HF_KEYS_H
#define SHL_MODELS_HF_KEYS_H

#include "kernels/base/err.h"
#include "models/family.h"

struct json_t;

typedef struct shl_hf_reader {
    struct json_t *root; /* borrowed */
    const char *text, *name;
    char *note; /* sentences for the user */
    size_t note_bytes;
} shl_hf_reader;

/* A size from 1, a positive number, a flag. Errors: SHL_E_CONFIG. */
shl_code shl_hf_size(const shl_hf_reader *r, const char *key, int64_t fallback,
                     int64_t *out) SHL_MUST_USE;
shl_code shl_hf_real(const shl_hf_reader *r, const char *key, double fallback,
                     double *out) SHL_MUST_USE;
shl_code shl_hf_flag(const shl_hf_reader *r, const char *key, bool fallback,
                     bool *out) SHL_MUST_USE;

/* A setting that must be one of a list, as given, or 1; any other is refused by name. */
shl_code shl_hf_only_text(const shl_hf_reader *r, const char *key,
                          const char *const *good) SHL_MUST_USE;
shl_code shl_hf_only_flag(const shl_hf_reader *r, const char *key, bool good) SHL_MUST_USE;
shl_code shl_hf_only_one(const shl_hf_reader *r, const char *key) SHL_MUST_USE;

/* layer_types: full attention in every layer, or also a sliding one where a window is known. */
shl_code shl_hf_layer_types(const shl_hf_reader *r, bool sliding) SHL_MUST_USE;

/* rope_theta, rope_scaling, rope_parameters. */
shl_code shl_hf_rope(const shl_hf_reader *r, shl_model_config *out) SHL_MUST_USE;

/* Notes: a rate of dropout, which is the run's to say; keys that nobody here knows; any sentence. */
void shl_hf_rate(shl_hf_reader *r, const char *key, double fallback);
void shl_hf_note_unknown(shl_hf_reader *r);
void shl_hf_note(shl_hf_reader *r, const char *fmt, ...) SHL_PRINTF(2, 3);

#endif

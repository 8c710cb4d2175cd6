/* models: from the text behind --model to a shape: a preset, a size alone, or a path to a folder or
 * file with a Hugging Face config.json. */
#ifndef SHL_MODELS_NAMED_H
#define SHL_MODELS_NAMED_H

#include "models/presets.h"
#include "models/shape.h"

typedef struct shl_named_model {
    char name[64]; /* for records, messages and checkpoints */
    shl_model_config config;
    char approximated[192];   /* what the original computes and ours does not; "": exact */
    int64_t window;           /* attention of the original sees this far; 0: everything */
    char note[512];           /* what a user should be told about how the text was taken; or "" */
    const shl_preset *preset; /* or NULL */
} shl_named_model;

/* Errors: SHL_E_USAGE for a name, SHL_E_IO and SHL_E_CONFIG for a file. */
shl_code shl_model_find(const char *text, shl_named_model *out) SHL_MUST_USE;

/* shl_shape_apply to it; another shape gets a name that says so. Errors: also SHL_E_USAGE for a context
 * beyond a sliding window, which ours has not. */
shl_code shl_named_apply(shl_named_model *m, const shl_shape_asked *asked) SHL_MUST_USE;

/* Errors: SHL_E_USAGE when a model is approximated and nobody said that this may be. */
shl_code shl_named_check_exact(const shl_named_model *m) SHL_MUST_USE;

#endif

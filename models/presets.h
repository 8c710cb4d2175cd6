/* models: published shapes by name, each with what its authors say it counts and with every element that
 * ours differs by. A shape whose mathematics this program does not have is marked: it may be planned
 * with, and trained only by a user who was told (models/named.h). */
#ifndef SHL_MODELS_PRESETS_H
#define SHL_MODELS_PRESETS_H

#include "models/family.h"

/* Elements that ours has more (or fewer: below 0) than the published model, and what they are. */
typedef struct shl_preset_gap {
    const char *what;
    int64_t elems;
} shl_preset_gap;
#define SHL_PRESET_GAPS 3

typedef struct shl_preset {
    const char *name;   /* "gpt2-124m" */
    const char *series; /* "GPT-2": heading of the table */
    const char *note;   /* where the shape is from, and what was decided; never NULL */
    shl_model_config config;
    int64_t published;      /* parameters; 0: nobody published it */
    int64_t published_unit; /* 1: an exact count; else the figure is rounded to this */
    shl_preset_gap gaps[SHL_PRESET_GAPS]; /* sum: ours - published, exactly when the unit is 1 */
    const char *approximated; /* what the original computes and ours does not; NULL: exact */
    int64_t window;           /* attention of the original sees this far, ours everything; 0: all */
} shl_preset;

/* One by one: NULL behind the last. One by name, NULL when unknown. */
const shl_preset *shl_preset_at(size_t i);
const shl_preset *shl_preset_find(const char *name);

/* Sum of the gaps. */
int64_t shl_preset_gap_elems(const shl_preset *p);

/* A size alone ("7b", any case) is a documented shape: the name of its preset, or NULL. */
const char *shl_preset_of_size(const char *size);
/* All sizes, in order: size and name; false behind the last. */
bool shl_preset_size_at(size_t i, const char **size, const char **name);

/* "unknown model", the nearest preset, and where the list is. Returns SHL_E_USAGE. */
shl_code shl_preset_raise_unknown(const char *name);

/* The tables of models/presets_<family>.c. */
extern const shl_preset shl_presets_gpt[], shl_presets_llama[];
extern const size_t shl_presets_gpt_len, shl_presets_llama_len;

#endif

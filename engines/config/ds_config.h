/* engines/config: DeepSpeed's ds_config.json: read, checked key by key, completed ("auto", the batch
 * triangle, dated defaults), and turned into what an engine is told. Lengths are in elements, as there. */
#ifndef SHL_CONFIG_DS_CONFIG_H
#define SHL_CONFIG_DS_CONFIG_H

#include <stdbool.h>
#include <stdint.h>

#include "engines/config/config.h"
#include "engines/config/ds_table.h"
#include "kernels/base/str.h"

struct json_t;

typedef enum shl_ds_origin {
    SHL_DS_DEFAULT = 0,
    SHL_DS_USER,
    SHL_DS_AUTO,   /* "auto", resolved from the model or the Trainer's arguments */
    SHL_DS_DERIVED /* from other keys and the world */
} shl_ds_origin;
const char *shl_ds_origin_name(shl_ds_origin o); /* "default", ... */

typedef struct shl_ds_value {
    struct json_t *json; /* owned; never NULL after a load */
    shl_ds_origin origin;
    int line, column; /* of the key in the file; 0: not in it */
    bool is_auto;     /* "auto" that nobody has resolved yet */
} shl_ds_value;

typedef struct shl_ds_config {
    char *text;         /* owned */
    char name[256];     /* of the file, for messages */
    int dated;          /* 2023 or 2026 */
    shl_ds_value *rows; /* parallel to shl_ds_keys; owned */
    size_t n_rows;
    shl_str notes;         /* one line each: deprecated names, what the Trainer said, ... */
    bool has_trainer;      /* Trainer's arguments were given */
    int64_t trainer_steps; /* its max_steps; 0: not said */
    uint64_t trainer_seed;
    shl_ds_schedule trainer_schedule; /* without a scheduler block */
} shl_ds_config;

/* What "auto" and the checks need to know of the run. */
typedef struct shl_ds_facts {
    int ranks;
    int64_t hidden;  /* the model's width; 0: unknown */
    int64_t params;  /* trainable elements; 0: unknown */
    int64_t steps;   /* updates of the run when the Trainer does not say */
    bool recomputes; /* blocks whole: what the model's own calls of checkpoint() are in DeepSpeed */
} shl_ds_facts;

/* Reads a configuration: a path, JSON itself (begins with a brace), or URL-safe base64 of JSON, as
 * DeepSpeed's --deepspeed_config; every value is checked against its row, defaults are those of `dated`.
 * Owner: caller, shl_ds_config_fini (also after a failure). Errors: SHL_E_CONFIG with line and column,
 * the key, its limit and the nearest name; SHL_E_IO, SHL_E_USAGE for another date. */
shl_code shl_ds_config_load(const char *source, int dated, shl_ds_config *out) SHL_MUST_USE;
void shl_ds_config_fini(shl_ds_config *c);

/* Replaces every "auto" as transformers' Trainer does and compares what is not auto with the arguments.
 * trainer: path or JSON of TrainingArguments, or NULL. Errors: SHL_E_CONFIG listing all mismatches, or
 * the key whose "auto" has no rule. */
shl_code shl_ds_config_auto(shl_ds_config *c, const char *trainer,
                            const shl_ds_facts *facts) SHL_MUST_USE;

/* The path of a ds_config in the Trainer's arguments ("deepspeed"). Owner: caller; NULL: none there. */
shl_code shl_ds_trainer_config_path(const char *trainer, char **out) SHL_MUST_USE;

/* train_batch_size = micro x accumulation x ranks, with DeepSpeed's cases. Errors: SHL_E_CONFIG with the
 * numbers and a batch that fits. */
shl_code shl_ds_config_batch(shl_ds_config *c, int ranks) SHL_MUST_USE;

/* Values that this build cannot honour, and combinations that DeepSpeed refuses or that would do nothing.
 * Errors: SHL_E_CONFIG naming the key. */
shl_code shl_ds_config_check(const shl_ds_config *c) SHL_MUST_USE;

/* auto, batch, check, and the engine's configuration; *e keeps seq and what the file does not say (the
 * optimizer of the command line when there is none in the file). Errors: theirs, and those of
 * shl_engine_config_check. */
shl_code shl_ds_resolve(shl_ds_config *c, const char *trainer, const shl_ds_facts *facts,
                        shl_engine_config *e) SHL_MUST_USE;

/* Values by path; the path is a row (a bug otherwise). int: of INT rows, and `none` for null. text: NULL
 * for null. */
const shl_ds_value *shl_ds_get(const shl_ds_config *c, const char *path);
bool shl_ds_bool(const shl_ds_config *c, const char *path);
int64_t shl_ds_int(const shl_ds_config *c, const char *path, int64_t none);
double shl_ds_real(const shl_ds_config *c, const char *path, double none);
const char *shl_ds_text(const shl_ds_config *c, const char *path);
/* Whether a key inside the block was in the file. */
bool shl_ds_block_given(const shl_ds_config *c, const char *block);

/* Sets a value; takes json over (NULL: out of memory). Errors: SHL_E_HEAP. */
shl_code shl_ds_set(shl_ds_config *c, const char *path, struct json_t *json,
                    shl_ds_origin origin) SHL_MUST_USE;

/* Starts an error that begins with "file:line:column: path". */
shl_code shl_ds_raise(const shl_ds_config *c, const char *path, const char *what);

/* Whether the value of row i is the dated default or one of the row's inert ones. */
bool shl_ds_passes(const shl_ds_config *c, size_t i);

/* Appends all values with their origins: lines, or a JSON array. changed: only what is not a default. */
void shl_ds_show(const shl_ds_config *c, bool changed, shl_str *out);
shl_code shl_ds_show_json(const shl_ds_config *c, shl_str *out) SHL_MUST_USE;

/* A ds_config.json with DeepSpeed's own keys only that reads back as the same engine configuration, in
 * an empty text.
 * Errors: SHL_E_USAGE naming what DeepSpeed has no key for (FSDP, a linear schedule, ...). */
shl_code shl_ds_emit(const shl_engine_config *e, int ranks, shl_str *out) SHL_MUST_USE;

#endif

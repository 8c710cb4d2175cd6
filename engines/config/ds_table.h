/* engines/config: every key of DeepSpeed's configuration file that this program knows, one row each:
 * the parser, --show-config, `check`, the key table of engines/zero/README.md and the tests read it. */
#ifndef SHL_CONFIG_DS_TABLE_H
#define SHL_CONFIG_DS_TABLE_H

#include <stdbool.h>
#include <stddef.h>

typedef enum shl_ds_type {
    SHL_DS_BOOL,
    SHL_DS_INT, /* a whole number; 5e8 is one */
    SHL_DS_REAL,
    SHL_DS_TEXT,
    SHL_DS_ENUM,  /* a text of `words` */
    SHL_DS_REALS, /* [0.9, 0.999] */
    SHL_DS_INTS,
    SHL_DS_TEXTS,
    SHL_DS_TREE /* a block of a feature that is not here; its inside is not read */
} shl_ds_type;

typedef enum shl_ds_status {
    SHL_DS_WORKS,  /* does what DeepSpeed documents */
    SHL_DS_INERT,  /* nothing to switch here: passes at its default and at `inert` */
    SHL_DS_REFUSED /* a feature that is not in this build: passes at its default and at `inert` */
} shl_ds_status;

typedef struct shl_ds_key {
    const char *path;     /* "zero_optimization.reduce_bucket_size" */
    const char *alias;    /* another name of the last component; or NULL */
    const char *fallback; /* DeepSpeed's default of 2026, as JSON; "null" makes null a value */
    double min, max;      /* of numbers, both included */
    const char *words;    /* of texts, blanks between; or NULL */
    const char *inert;    /* further values that pass, as JSON, blanks between; "any" */
    const char *why;      /* what it does here, or why it does not */
    shl_ds_type type;
    shl_ds_status status;
    int stage;          /* 3: read in stage 3 only */
    const char *effect; /* WORKS: the count, peak, time or result that changes with it; else NULL */
} shl_ds_key;

/* All rows, *n of them, in the order of the documentation. */
const shl_ds_key *shl_ds_keys(size_t *n);

/* Index of a path (or of its alias), -1: unknown. */
int shl_ds_key_find(const char *path);

/* Whether `path` is a block that holds keys. */
bool shl_ds_is_block(const char *path);

/* The default of a row in a dated set (2023 or 2026), as JSON. */
const char *shl_ds_fallback(const shl_ds_key *key, int dated);

/* Names that moved: a value at `from` is read as `to`. A switch turns true into `value` there. */
typedef struct shl_ds_moved {
    const char *from, *to;
    const char *value; /* NULL: the value itself; "": read by nobody */
} shl_ds_moved;
const shl_ds_moved *shl_ds_moved_keys(size_t *n);

struct shl_str;
/* Appends the table in Markdown: what stands in engines/zero/README.md. */
void shl_ds_keys_markdown(struct shl_str *out);

#endif

/* kernels/base: one row per option feeds the parser, --help, defaults, man page, completion and the
 * dump into a record. Rows are const tables; values live in a struct of the caller. */
#ifndef SHL_BASE_OPTION_H
#define SHL_BASE_OPTION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/base/err.h"

typedef enum shl_option_type {
    SHL_OPT_BOOL,   /* bool; --flag or --flag=true|false */
    SHL_OPT_INT,    /* int64_t; min..max */
    SHL_OPT_COUNT,  /* int64_t spelled "5e8", "124M" */
    SHL_OPT_BYTES,  /* size_t spelled "2GiB" */
    SHL_OPT_DOUBLE, /* double; finite, min..max */
    SHL_OPT_ASKED,  /* the same from 0; -1 as long as nobody gives one */
    SHL_OPT_STRING, /* const char *, borrowed from argv */
    SHL_OPT_ENUM,   /* int: index in `choices` */
    SHL_OPT_LIST    /* const char *, comma list or range, split later by a sweep */
} shl_option_type;

typedef struct shl_option {
    const char *name;  /* "--micro-batch" without dashes */
    const char *alias; /* another accepted name, or NULL */
    shl_option_type type;
    size_t offset;              /* offsetof the field in the caller's struct */
    double min, max;            /* of numbers, both included; min >= max: no range */
    const char *fallback;       /* default, spelled as a user would; NULL = zero value, unset */
    const char *const *choices; /* ENUM: NULL-terminated names; else NULL */
    const char *unit;           /* "sequences per rank", "elements", ... or NULL */
    const char *group;          /* heading in --help */
    const char *help;           /* one sentence */
} shl_option;

/* Where a value came from. */
typedef enum shl_origin { SHL_ORIGIN_DEFAULT = 0, SHL_ORIGIN_USER, SHL_ORIGIN_AUTO } shl_origin;

/* Fills every field from its fallback; origins[i] = DEFAULT. origins has n entries or is NULL. */
shl_code shl_option_defaults(const shl_option *table, size_t n, void *values,
                             shl_origin *origins) SHL_MUST_USE;

/* Parses argv[0..argc) ("--name value" or "--name=value"); positional words go to
 * positionals[0..*n_positionals), at most max_positionals. Errors: SHL_E_USAGE with the nearest
 * name, the bad value and its range; values keep what was set before the failure. */
shl_code shl_option_parse(const shl_option *table, size_t n, int argc, const char *const *argv,
                          void *values, shl_origin *origins, const char **positionals,
                          int *n_positionals, int max_positionals) SHL_MUST_USE;

/* Sets one option by name from text, as the parser does. */
shl_code shl_option_set(const shl_option *table, size_t n, const char *name, const char *text,
                        void *values, shl_origin *origins) SHL_MUST_USE;

/* Spells the current value of a row into dst. */
void shl_option_spell(const shl_option *row, const void *values, char *dst, size_t dst_bytes);

struct shl_str;
/* Appends the grouped help text (name, unit, default, choices, help) to out. */
void shl_option_help(const shl_option *table, size_t n, struct shl_str *out);

/* What stands for a value ("N", "SIZE"; "" for a switch), and the sentence with choices, unit and
 * default, for other renderings of the same table. */
const char *shl_option_value_word(const shl_option *row);
void shl_option_describe(const shl_option *row, struct shl_str *out);

/* The environment, read only here. The name must be one of the documented SHL_* or launcher
 * variables; NULL when unset or empty. */
const char *shl_env(const char *name);

#endif

/* bench: private to bench/figure*.c: what the figures share: the records that one shows, its series, and
 * how a data file and its words are written. */
#ifndef SHL_BENCH_FIGURES_IMPL_H
#define SHL_BENCH_FIGURES_IMPL_H

#include <stdbool.h>

#include "bench/figures.h"
#include "kernels/base/str.h"

#define SHL_FIGURE_MAX_SERIES 32

/* Strategies in order of first appearance. */
typedef struct shl_series {
    const char *name[SHL_FIGURE_MAX_SERIES];
    int n;
} shl_series;

/* The number of a strategy in s, added when new; -1 when there is no room. */
int shl_series_of(shl_series *s, const char *strategy);

/* The run records that a figure shows, in file order. Owner: caller, shl_heap_free(&rows). */
typedef struct shl_picked {
    const shl_run_row **rows;
    size_t n;
} shl_picked;

/* Errors: SHL_E_USAGE when there are none, or several models to choose from. */
shl_code shl_figure_pick(const shl_figure_data *d, shl_figure f, const shl_figure_choice *choice,
                         shl_picked *out) SHL_MUST_USE;

/* Narrows *p to one rank count: the one asked for, else the one that most strategies share; among equals
 * the smallest above one, because nothing is sharded over one rank. Errors: SHL_E_USAGE. */
shl_code shl_figure_pick_ranks(shl_picked *p, int64_t asked) SHL_MUST_USE;

/* The rank count for n pairs of strategy and ranks, chosen as above. */
typedef struct shl_figure_key {
    const char *strategy;
    int64_t ranks;
} shl_figure_key;
shl_code shl_figure_ranks(const shl_figure_key *keys, size_t n, int64_t asked,
                          int64_t *out) SHL_MUST_USE;

/* The last record of each strategy into rows[series]; all of *p at one rank count. */
void shl_figure_latest(const shl_picked *p, shl_series *s, const shl_run_row **rows);

/* Raises what a figure needs and which command makes it. */
shl_code shl_figure_raise_no_data(shl_figure f);
/* Raises that no record is of this model or strategy. */
shl_code shl_figure_raise_no_match(const char *what, const char *asked, const char *first);

/* ---- writing ---- */

/* Appends name = "text"; gnuplot reads it inside double quotes: keeps what cannot end or escape it. */
void shl_figure_add_quoted(shl_str *out, const char *name, const char *text);
/* Appends text as one word: gnuplot splits lists at spaces. */
void shl_figure_add_word(shl_str *out, const char *text);
void shl_figure_add_series(shl_str *vars, const shl_series *s);
/* The unit in which `bytes` is at least 1, and the limit line. */
void shl_figure_add_units(shl_str *vars, int64_t bytes, size_t limit_bytes);
/* heading = "model, batch B x T per rank<rest>". */
void shl_figure_add_heading(shl_str *vars, const char *model, int64_t batch, int64_t seq,
                            const char *rest);
/* used = the columns (from 1) whose mark is set. */
void shl_figure_add_used(shl_str *vars, const bool *used, int n);
/* " name" of every tag, for the comment on top of a data file. */
void shl_figure_add_tags(shl_str *data);

/* Writes <dir>/<name>.dat and .vars and releases both. */
shl_code shl_figure_write_pair(const char *dir, shl_figure f, shl_str *data,
                               shl_str *vars) SHL_MUST_USE;

/* ---- one function per figure ---- */
shl_code shl_figure_write_by_tag(const shl_figure_data *d, const shl_figure_choice *choice);
shl_code shl_figure_write_vs_ranks(const shl_figure_data *d, const shl_figure_choice *choice);
shl_code shl_figure_write_loss(const shl_figure_data *d, const shl_figure_choice *choice);
shl_code shl_figure_write_timeline(const shl_figure_data *d, const shl_figure_choice *choice);
shl_code shl_figure_write_wire(const shl_figure_data *d, const shl_figure_choice *choice);
shl_code shl_figure_write_throughput(const shl_figure_data *d, const shl_figure_choice *choice);
shl_code shl_figure_write_split(const shl_figure_data *d, const shl_figure_choice *choice);
shl_code shl_figure_write_checkpoint(const shl_figure_data *d, const shl_figure_choice *choice);

#endif

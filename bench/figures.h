/* bench: figures: reads run and step records, writes the data files that the scripts of plots/ draw,
 * and has gnuplot draw them. */
#ifndef SHL_BENCH_FIGURES_H
#define SHL_BENCH_FIGURES_H

#include <stddef.h>
#include <stdint.h>

#include "kernels/base/err.h"
#include "kernels/device/ledger.h"

typedef enum shl_figure {
    SHL_FIGURE_MEMORY_BY_TAG = 0, /* stacked peak per strategy, from run records */
    SHL_FIGURE_MEMORY_VS_RANKS,   /* peak against ranks, log-log, from run records */
    SHL_FIGURE_LOSS,              /* loss of all strategies and the difference, from step records */
    SHL_FIGURE_COUNT
} shl_figure;

const char *shl_figure_name(shl_figure f); /* "memory_by_tag", ... */

/* What a figure needs of a run record: the device tier of its worst rank. */
typedef struct shl_run_row {
    char model[64];
    char strategy[24];
    int64_t ranks, batch, seq;
    int64_t peak_bytes;                   /* total */
    int64_t at_peak_bytes[SHL_TAG_COUNT]; /* sum to the total */
} shl_run_row;

/* And of a step record. */
typedef struct shl_step_row {
    char strategy[24];
    int64_t ranks, step;
    double loss;
} shl_step_row;

typedef struct shl_figure_data {
    shl_run_row *runs;
    size_t n_runs, cap_runs;
    shl_step_row *steps;
    size_t n_steps, cap_steps;
} shl_figure_data;

/* Appends the records of a JSON Lines file; *d is zero-initialised before the first. Kinds other than
 * run and step are skipped. Errors: SHL_E_IO, SHL_E_CONFIG (line number and reason). d keeps what
 * it had and is released by shl_figure_data_fini in any case. */
shl_code shl_figure_data_read(shl_figure_data *d, const char *path) SHL_MUST_USE;
void shl_figure_data_fini(shl_figure_data *d);

/* What is drawn. */
typedef struct shl_figure_choice {
    const char *model;   /* NULL: the only one (an error when there are several) */
    int64_t ranks;       /* memory_by_tag, loss; 0: the count that most strategies share */
    size_t limit_bytes;  /* a line at the device's memory; 0: none */
    const char *out_dir; /* made when missing */
} shl_figure_choice;

/* Whether the records hold what the figure shows. */
bool shl_figure_has_data(const shl_figure_data *d, shl_figure f);

/* Writes <name>.dat and <name>.vars into choice->out_dir. Errors: SHL_E_USAGE when the records do not
 * hold what the figure shows, or the choice picks nothing; SHL_E_IO. */
shl_code shl_figure_write(const shl_figure_data *d, shl_figure f,
                          const shl_figure_choice *choice) SHL_MUST_USE;

/* Copies <name>.gp and style.gp beside the data and runs gnuplot there, once for svg and once for png,
 * so that the folder redraws by itself: `gnuplot <name>.gp`. Errors: SHL_E_SYSTEM when gnuplot is
 * missing (names the package) or failed (its message); the picture is removed then. */
shl_code shl_figure_draw(shl_figure f, const char *out_dir) SHL_MUST_USE;

#endif

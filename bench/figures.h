/* bench: figures: reads run, step and event records, writes the data files that the scripts of plots/
 * draw, and has gnuplot draw them. */
#ifndef SHL_BENCH_FIGURES_H
#define SHL_BENCH_FIGURES_H

#include <stddef.h>
#include <stdint.h>

#include "engines/comm/comm.h"
#include "kernels/base/err.h"
#include "kernels/device/ledger.h"

typedef enum shl_figure {
    SHL_FIGURE_MEMORY_BY_TAG = 0, /* stacked peak per strategy, from run records */
    SHL_FIGURE_MEMORY_VS_RANKS,   /* peak against ranks, log-log, from run records */
    SHL_FIGURE_LOSS,              /* loss of all strategies and the difference, from step records */
    SHL_FIGURE_TIMELINE,          /* memory over one step by tag, from event records */
    SHL_FIGURE_WIRE,              /* bytes sent per strategy by collective, from run records */
    SHL_FIGURE_THROUGHPUT,        /* tokens/s against ranks, from measured run records */
    SHL_FIGURE_SPLIT,             /* state and activations over sequence and batch, run records */
    SHL_FIGURE_CHECKPOINT,        /* seconds against bytes of a save, from run records */
    SHL_FIGURE_COUNT
} shl_figure;

const char *shl_figure_name(shl_figure f); /* "memory_by_tag", ... */

/* What figures need of a run record: the device tier of its worst rank, and what it did. A value that the
 * record does not have is 0. */
typedef struct shl_run_row {
    char model[64];
    char strategy[24];
    int64_t ranks, batch, seq, accum, threads, cores;
    int64_t peak_bytes;                   /* total */
    int64_t at_peak_bytes[SHL_TAG_COUNT]; /* sum to the total */
    int64_t wire_bytes[SHL_COLL_COUNT];   /* sent per rank and step */
    double tokens_per_s;                  /* measured; 0 when predicted */
    int64_t save_ns, save_bytes;
} shl_run_row;

/* And of a step record, or an eval record. */
typedef struct shl_step_row {
    char strategy[24];
    int64_t ranks, step;
    double loss;
} shl_step_row;

/* And of an event record of the device tier. */
typedef struct shl_event_row {
    char model[64];
    char strategy[24];
    char owner[48];
    char phase[16];
    int64_t ranks, batch, seq, step;
    int64_t at, delta_bytes, total_bytes; /* at 0 begins a time line */
    int64_t tag_bytes[SHL_TAG_COUNT];     /* sum to the total */
} shl_event_row;

typedef struct shl_figure_data {
    shl_run_row *runs;
    size_t n_runs, cap_runs;
    shl_step_row *steps;
    size_t n_steps, cap_steps;
    shl_step_row *evals;
    size_t n_evals, cap_evals;
    shl_event_row *events;
    size_t n_events, cap_events;
} shl_figure_data;

/* Appends the records of a JSON Lines file; *d is zero-initialised before the first. Records of other
 * kinds are skipped. Errors: SHL_E_IO, SHL_E_CONFIG (line number and reason). d keeps what it had and is
 * released by shl_figure_data_fini in any case. */
shl_code shl_figure_data_read(shl_figure_data *d, const char *path) SHL_MUST_USE;
void shl_figure_data_fini(shl_figure_data *d);

/* What is drawn. A figure with one batch and sequence length shows those of the last record. */
typedef struct shl_figure_choice {
    const char *model;    /* NULL: the only one (an error when there are several) */
    int64_t ranks;        /* of figures at one rank count; 0: the one that most strategies share */
    size_t limit_bytes;   /* a line at the device's memory; 0: none */
    const char *out_dir;  /* made when missing */
    const char *strategy; /* NULL: all; split shows one, without a choice the first */
} shl_figure_choice;

/* Writes <name>.dat and <name>.vars into choice->out_dir. Errors: SHL_E_USAGE when the records do not
 * hold what the figure shows (the advice makes such records), or the choice picks nothing; SHL_E_IO. */
shl_code shl_figure_write(const shl_figure_data *d, shl_figure f,
                          const shl_figure_choice *choice) SHL_MUST_USE;

/* Copies <name>.gp and style.gp beside the data and runs gnuplot there, once for svg and once for png,
 * so that the folder redraws by itself: `gnuplot <name>.gp`. Errors: SHL_E_SYSTEM when gnuplot is
 * missing (names the package) or failed (its message); the picture is removed then. */
shl_code shl_figure_draw(shl_figure f, const char *out_dir) SHL_MUST_USE;

#endif

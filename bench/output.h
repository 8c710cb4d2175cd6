/* bench: where records go: stdout in one form, and a file of JSON lines. JSON lines and CSV appear row
 * by row, tables and JSON arrays at the end; nothing appears before the first good row. */
#ifndef SHL_BENCH_OUTPUT_H
#define SHL_BENCH_OUTPUT_H

#include <stdio.h>

#include "bench/cli.h"
#include "bench/options.h"
#include "bench/record.h"

typedef enum shl_form {
    SHL_FORM_TABLE = 0,
    SHL_FORM_JSON,
    SHL_FORM_JSONL,
    SHL_FORM_CSV,
    SHL_FORM_MD
} shl_form;

/* A run that is shown at the end. */
typedef struct shl_output_row {
    const shl_session_config *cfg;  /* borrowed */
    shl_session_result result;      /* owned */
    struct json_t *config, *dtypes; /* owned */
    shl_run_record record;          /* points into the others */
} shl_output_row;

typedef struct shl_output {
    shl_form form;
    bool steps; /* step records are written too */
    FILE *file; /* --out; NULL: none */
    const char *path;
    bool file_is_new;
    struct json_t *fingerprint, *argv; /* owned, in every run record */
    struct json_t *all;                /* --json: the array so far */
    shl_output_row **rows;
    size_t n_rows;
    bool csv_begun;
} shl_output;

/* The form that the options ask for. Errors: SHL_E_USAGE when there is more than one. */
shl_code shl_output_form(const shl_run_options *o, shl_form *out) SHL_MUST_USE;

/* Opens --out for appending. Owner: caller, shl_output_close (also after a failure). */
shl_code shl_output_open(const shl_run_options *o, const shl_cli *cli,
                         shl_output *out) SHL_MUST_USE;

/* One step, one evaluation, one run. run takes *result over (it is zeroed), whatever happens. */
shl_code shl_output_step(shl_output *out, const shl_session_config *cfg,
                         const shl_step_report *report, bool predicted) SHL_MUST_USE;
shl_code shl_output_eval(shl_output *out, const shl_session_config *cfg,
                         const shl_eval_report *report, bool predicted) SHL_MUST_USE;
shl_code shl_output_run(shl_output *out, const shl_session_config *cfg, shl_session_result *result,
                        size_t limit_bytes) SHL_MUST_USE;

/* Prints what waits for the end. */
shl_code shl_output_finish(shl_output *out) SHL_MUST_USE;
void shl_output_close(shl_output *out);

#endif

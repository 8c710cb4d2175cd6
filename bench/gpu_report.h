/* bench: what gpu-check tells: one line a check as soon as it is known, on stdout and as a JSON line in a
 * file, so that a run that is cut off leaves what it found. */
#ifndef SHL_BENCH_GPU_REPORT_H
#define SHL_BENCH_GPU_REPORT_H

#include <stdatomic.h>
#include <stdio.h>

#include "kernels/base/str.h"

typedef enum shl_gpu_verdict {
    SHL_GPU_PASSED = 0,
    SHL_GPU_FAILED,
    SHL_GPU_NOT_POSSIBLE, /* this machine has not what the check needs; the line says what */
    SHL_GPU_NOT_REACHED,  /* the time was over */
    SHL_GPU_VERDICT_COUNT
} shl_gpu_verdict;
const char *shl_gpu_verdict_name(shl_gpu_verdict v);

typedef struct shl_gpu_report {
    FILE *file; /* NULL: stdout only */
    char path[4096];
    const char *part; /* of the checks that follow */
    int count[SHL_GPU_VERDICT_COUNT];
    char first_failure[256];
    int64_t begin_ns, check_ns; /* of the run; of the check that is running */
    double budget_s;
    atomic_int *stop;
} shl_gpu_report;

/* Opens NAME.jsonl for appending in folder (made when it is not there; "none": no file). Owner: caller. */
shl_code shl_gpu_report_open(const char *folder, const char *name, double budget_s,
                             shl_gpu_report *out) SHL_MUST_USE;
void shl_gpu_report_close(shl_gpu_report *r);

/* The clock of the next check starts. Errors: SHL_E_INTERRUPTED when the run was asked to stop. */
shl_code shl_gpu_begin(shl_gpu_report *r) SHL_MUST_USE;

/* One check: its name within the part, what came of it, and one line of detail. Errors: SHL_E_IO,
 * SHL_E_INTERRUPTED. */
shl_code shl_gpu_tell(shl_gpu_report *r, const char *name, shl_gpu_verdict v, const char *fmt,
                      ...) SHL_MUST_USE SHL_PRINTF(4, 5);

/* The line of a check that another process told on its stdout is counted as if it was told here. Result: whether
 * it is one; label is then "part.name" of it. */
bool shl_gpu_adopt(shl_gpu_report *r, const char *line, char *label, size_t label_bytes);

/* What a child wrote goes to the end of NAME.log beside the file, so that a failure can be read later. */
void shl_gpu_keep_output(shl_gpu_report *r, const char *title, const char *text);

/* A check that ended with the thread's error: not possible when the error says that the machine lacks
 * something (SHL_E_USAGE names what), else failed. Clears the error. SHL_E_INTERRUPTED goes through. */
shl_code shl_gpu_tell_error(shl_gpu_report *r, const char *name) SHL_MUST_USE;

/* A JSON object as a line of the file, as it is. Steals row. */
struct json_t;
shl_code shl_gpu_write(shl_gpu_report *r, struct json_t *row) SHL_MUST_USE;

/* Seconds left of the time of the run, 1 at least. */
double shl_gpu_left_s(const shl_gpu_report *r);

/* Whether the time of the run is over. */
bool shl_gpu_is_late(const shl_gpu_report *r);

#endif

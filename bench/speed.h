/* bench: the speed of the parts against their limits, each measured beside its limit in the same run:
 * rounds alternate between the two, and medians are compared. */
#ifndef SHL_BENCH_SPEED_H
#define SHL_BENCH_SPEED_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/base/err.h"

#define SHL_SPEED_MAX_ROWS 16

/* One line of the table. ratio = how much of the limit is reached; PASS when ratio >= bound. */
typedef struct shl_speed_row {
    const char *kind; /* "bench" */
    int64_t schema;
    const char *name, *what, *unit;
    double value;     /* ours, in unit */
    double reference; /* the limit, in unit */
    double ratio, bound;
    double spread; /* MAD of the ratio over rounds; of the worst case for gemm: its ratio */
    double
        share; /* CPU time / (threads x wall time) of ours: low when other work ran; 0: unknown */
    int64_t rounds;
    const char *verdict; /* "PASS", "below"; NULL for a probe */
    struct json_t *fingerprint;
} shl_speed_row;

typedef struct shl_speed_list {
    shl_speed_row rows[SHL_SPEED_MAX_ROWS];
    int n;
} shl_speed_list;

typedef struct shl_speed_config {
    int threads;
    int rounds;
    bool quick; /* smaller arrays */
} shl_speed_config;

/* GPT-2 124M's matrix products (B 4, T 64) through our op against bare dnnl_sgemm. */
shl_code shl_speed_gemm(const shl_speed_config *c, shl_speed_list *out) SHL_MUST_USE;

/* Our AdamW against a kernel of the same traffic. */
shl_code shl_speed_adamw(const shl_speed_config *c, shl_speed_list *out) SHL_MUST_USE;

/* A whole step of GPT-2 124M, fp32, B 4, T 64, one rank, against useful FLOPs at the measured peak plus
 * AdamW's bytes at the same-traffic rate. Also adds the probes themselves. */
shl_code shl_speed_step(const shl_speed_config *c, shl_speed_list *out) SHL_MUST_USE;

/* `plan` of gpt-7b at 1024 ranks under every strategy, in a process of its own: seconds and largest
 * resident set. */
shl_code shl_speed_plan(const shl_speed_config *c, shl_speed_list *out) SHL_MUST_USE;

/* Appends a row: sets the verdict from ratio and bound (bound 0: a probe, no verdict). */
void shl_speed_add(shl_speed_list *list, shl_speed_row row);

#endif

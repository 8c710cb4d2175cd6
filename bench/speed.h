/* bench: the speed of the parts against their limits, each measured beside its limit in the same run:
 * rounds alternate between the two, ratios are formed round by round, and medians are compared. Every
 * round also takes the two probes of the machine (bench/probes.h). */
#ifndef SHL_BENCH_SPEED_H
#define SHL_BENCH_SPEED_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/device/device.h"

#define SHL_SPEED_MAX_ROWS 40
#define SHL_SPEED_MAX_ROUNDS 64

/* One line of the table. ratio = how much of the limit is reached; PASS when ratio >= bound. */
typedef struct shl_speed_row {
    const char *kind; /* "bench" */
    int64_t schema;
    const char *part, *name, *what, *unit;
    double value;     /* ours, in unit */
    double reference; /* the limit, in unit */
    double ratio, bound;
    double spread;     /* MAD of the ratio over rounds; gemm: distance of the worst shape */
    double share;      /* CPU time / (threads x wall time) of ours; 0: not known */
    double fma_gflops; /* probes beside the rounds; NaN where none was taken */
    double traffic_gb_per_s;
    int64_t threads; /* of ours and of the limit together */
    int64_t rounds;
    const char *verdict; /* "PASS", "below" */
    struct json_t *fingerprint;
} shl_speed_row;

typedef struct shl_speed_list {
    const char *part; /* whose rows are being added */
    shl_speed_row rows[SHL_SPEED_MAX_ROWS];
    int n;
} shl_speed_list;

typedef struct shl_speed_config {
    int threads;
    int rounds;
    bool quick;      /* smaller arrays */
    const char *dir; /* where `save` writes */
} shl_speed_config;

/* The machine's probes: their own device and 256 MiB of arrays. */
typedef struct shl_speed_probes {
    shl_device *device;
    shl_buf arrays[4];
    int threads;
} shl_speed_probes;
shl_code shl_speed_probes_open(int threads, shl_speed_probes *out) SHL_MUST_USE;
shl_code shl_speed_probes_close(shl_speed_probes *p) SHL_MUST_USE;

/* What the rounds of one row gave. Rates or times, as the row's unit says. */
typedef struct shl_speed_rounds {
    double value[SHL_SPEED_MAX_ROUNDS], reference[SHL_SPEED_MAX_ROUNDS];
    double ratio[SHL_SPEED_MAX_ROUNDS];
    double share[SHL_SPEED_MAX_ROUNDS];
    double flops_per_s[SHL_SPEED_MAX_ROUNDS], bytes_per_s[SHL_SPEED_MAX_ROUNDS];
    int n;
} shl_speed_rounds;

/* Takes both probes into round `at`. */
void shl_speed_probe(const shl_speed_probes *p, shl_speed_rounds *r, int at);

/* Appends `row` with the medians of r (sorts them); name, what, unit, bound, threads are the row's. */
void shl_speed_add(shl_speed_list *list, shl_speed_row row, shl_speed_rounds *r);

/* A cpu device, and n fp32 elements of it with the values of a new weight, so that nothing is
 * denormal. */
shl_code shl_speed_open_device(int threads, shl_device **out) SHL_MUST_USE;
shl_code shl_speed_new_array(shl_device *d, int64_t n, shl_buf *out) SHL_MUST_USE;

/* One part of the table; names are those of --part. */
typedef struct shl_speed_part {
    const char *name, *summary;
    shl_code (*run)(const shl_speed_config *, shl_speed_list *);
} shl_speed_part;

/* All parts in the order of the table. */
const shl_speed_part *shl_speed_parts(int *n);

/* GPT-2 124M's matrix products (B 4, T 64) through our op against bare dnnl_sgemm. */
shl_code shl_speed_gemm(const shl_speed_config *c, shl_speed_list *out) SHL_MUST_USE;

/* One layer's products in bf16 against the same in fp32; casts against a copy of the same bytes. */
shl_code shl_speed_gemm_bf16(const shl_speed_config *c, shl_speed_list *out) SHL_MUST_USE;
shl_code shl_speed_cast(const shl_speed_config *c, shl_speed_list *out) SHL_MUST_USE;

/* Our AdamW against a kernel of the same traffic. */
shl_code shl_speed_adamw(const shl_speed_config *c, shl_speed_list *out) SHL_MUST_USE;

/* Causal attention (B 4, 12 heads of 64, T 1024), useful FLOPs against the multiply-add peak. */
shl_code shl_speed_attention(const shl_speed_config *c, shl_speed_list *out) SHL_MUST_USE;

/* Cross-entropy with gradient over 256 x 50257 against a scaling of the logits in place. */
shl_code shl_speed_cross_entropy(const shl_speed_config *c, shl_speed_list *out) SHL_MUST_USE;

/* Whole steps of GPT-2 124M in fp32 against useful FLOPs at the measured peak plus AdamW's 28 bytes
 * per parameter at the same-traffic rate, for the threads used: one rank; two ranks of one thread. */
shl_code shl_speed_step(const shl_speed_config *c, shl_speed_list *out) SHL_MUST_USE;
shl_code shl_speed_ranks(const shl_speed_config *c, shl_speed_list *out) SHL_MUST_USE;

/* Steps of GPT-2 124M against the same step done plainly: every block recomputed; in bf16. */
shl_code shl_speed_recompute(const shl_speed_config *c, shl_speed_list *out) SHL_MUST_USE;
shl_code shl_speed_step_bf16(const shl_speed_config *c, shl_speed_list *out) SHL_MUST_USE;

/* True where products run on the CPU's own bf16 instructions. */
bool shl_speed_has_bf16(void);

/* Resident set of a rank under full sharding, above that of a run of a tiny model and without the
 * ledger's activations, per parameter. Ranks are processes of this program. */
shl_code shl_speed_memory(const shl_speed_config *c, shl_speed_list *out) SHL_MUST_USE;

/* Collectives of two ranks over shared memory against one thread's memcpy. */
shl_code shl_speed_comm(const shl_speed_config *c, shl_speed_list *out) SHL_MUST_USE;

/* A checkpoint of GPT-2 124M with moments by two ranks, from call to commit, against direct writes
 * of as many bytes. */
shl_code shl_speed_offload(const shl_speed_config *c, shl_speed_list *out) SHL_MUST_USE;
shl_code shl_speed_save(const shl_speed_config *c, shl_speed_list *out) SHL_MUST_USE;

/* `plan` of gpt-7b at 1024 ranks under every strategy, in a process of its own: seconds and largest
 * resident set. */
shl_code shl_speed_plan(const shl_speed_config *c, shl_speed_list *out) SHL_MUST_USE;

#endif

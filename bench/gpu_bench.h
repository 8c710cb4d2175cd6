/* bench: the measurements of `shardlab gpu-bench`: kernels against the limits that this card shows by a large
 * product and a large copy; whole steps against the product; what the engines cost at one rank; the largest
 * model that fits. */
#ifndef SHL_BENCH_GPU_BENCH_H
#define SHL_BENCH_GPU_BENCH_H

#include "bench/gpu_report.h"
#include "bench/session.h"

typedef struct shl_gpu_bench {
    const char *device;
    bool quick;                      /* smaller sizes, for a device that is emulated */
    const char *attention;           /* as the option of train */
    double flops_per_s, bytes_per_s; /* limits; 0: not measured yet */
    size_t card_bytes;               /* 0: not a card */
    int64_t threads;
    const char *model; /* of the part models: one of shl_gpu_bench_names */
    /* Not NULL: why nothing can be measured; rows with goals are told without a value. */
    const char *absent;
    shl_str goals; /* lines of rows with a goal, for the end */
    int met, below, open;
    int broken; /* processes that did not end well */
    shl_gpu_report report;
} shl_gpu_bench;

/* One line. ratio is ours as a part of the limit (or whatever the name says), wanted the least that is asked
 * for: 0 asks for nothing. */
typedef struct shl_gpu_row {
    const char *name, *what, *unit;
    double value, limit, ratio, wanted;
} shl_gpu_row;

/* The models of that part, "all", NULL. */
extern const char *const shl_gpu_bench_names[];

/* Prints and writes the row; more (may be NULL) are further keys of the JSON line and is stolen. */
shl_code shl_gpu_bench_tell(shl_gpu_bench *b, const shl_gpu_row *row,
                            struct json_t *more) SHL_MUST_USE;
/* A row that there is not, and why: the thread's error when why is NULL, which is cleared.
 * SHL_E_INTERRUPTED goes through. */
shl_code shl_gpu_bench_miss(shl_gpu_bench *b, const char *name, double wanted,
                            const char *why) SHL_MUST_USE;

/* The parts; each heeds b->absent.
 * bench/gpu_bench_ops.c */
shl_code shl_gpu_bench_limits(shl_gpu_bench *b) SHL_MUST_USE;
shl_code shl_gpu_bench_kernels(shl_gpu_bench *b) SHL_MUST_USE;

/* bench/gpu_bench_steps.c */
shl_code shl_gpu_bench_models(shl_gpu_bench *b) SHL_MUST_USE;
shl_code shl_gpu_bench_strategies(shl_gpu_bench *b) SHL_MUST_USE;
shl_code shl_gpu_bench_largest(shl_gpu_bench *b) SHL_MUST_USE;

#endif

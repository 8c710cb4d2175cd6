/* bench: the checks of `shardlab gpu-check`: what must hold on a machine with a GPU before anything that is
 * trained there is believed. Every part runs on any device that computes, so the checks themselves are
 * tried where there is no GPU. */
#ifndef SHL_BENCH_GPU_CHECK_H
#define SHL_BENCH_GPU_CHECK_H

#include "bench/gpu_report.h"
#include "bench/session.h"

typedef struct shl_gpu_check {
    const char *device; /* that is checked */
    bool quick;         /* smaller sizes, for a device that is emulated */
    const char *tests;  /* folder of the test programs; NULL: none was found */
    int first_step;     /* of the part that is run; those before it are left out */
    shl_gpu_report report;
} shl_gpu_check;

/* One part; names are those of --part. A failure of a check is told, not returned: a part returns an
 * error only when it cannot go on telling. */
typedef struct shl_gpu_part {
    const char *name, *summary;
    shl_code (*run)(shl_gpu_check *);
    double limit_s; /* of its process */
    /* Names of its checks in order, NULL behind the last, where it can begin at any (first_step); or NULL. */
    const char *(*step)(int step);
} shl_gpu_part;

/* All parts in their order. */
const shl_gpu_part *shl_gpu_parts(int *n);

/* bench/gpu_check_ops.c: every op case against its double reference, fp32, bf16, fp16, each at two
 * alignments, and twice for the same bits. quick: one case of each op and type. Errors besides: SHL_E_SYSTEM, told
 * already, when the device is lost to this process. */
shl_code shl_gpu_check_ops(shl_gpu_check *k) SHL_MUST_USE;
const char *shl_gpu_check_ops_step(int step);

/* bench/gpu_check_runs.c: whole runs. gradients: a step of plain descent lowers the loss by lr |g|^2.
 * follow: the losses of many steps against those of the cpu. strategies: six of them bit-equal over 2 and
 * 4 ranks on one device. twin: peaks of the virtual device equal the ledger's. */
shl_code shl_gpu_check_gradients(shl_gpu_check *k) SHL_MUST_USE;
shl_code shl_gpu_check_follow(shl_gpu_check *k) SHL_MUST_USE;
shl_code shl_gpu_check_strategies(shl_gpu_check *k) SHL_MUST_USE;
shl_code shl_gpu_check_twin(shl_gpu_check *k) SHL_MUST_USE;

/* bench/gpu_check_memory.c: what the driver says against the ledger; out of memory is an error. */
shl_code shl_gpu_check_memory(shl_gpu_check *k) SHL_MUST_USE;

/* bench/gpu_check_programs.c: checks in processes of their own, each with a deadline. golden: the test
 * programs that compare with golden values. ranks: NCCL with one rank, and two on one card. sanitizer:
 * compute-sanitizer over the op cases. */
shl_code shl_gpu_check_golden(shl_gpu_check *k) SHL_MUST_USE;
shl_code shl_gpu_check_ranks(shl_gpu_check *k) SHL_MUST_USE;
shl_code shl_gpu_check_sanitizer(shl_gpu_check *k) SHL_MUST_USE;

/* A small run on the device of k: gpt2-tiny's shape (smaller with quick), synthetic data, one rank. */
void shl_gpu_small_run(const shl_gpu_check *k, shl_session_config *out);

#endif

/* bench: parts of gpu-check and gpu-bench in processes of their own: a kernel that hangs, a crash, or an address
 * that a card forgives to no later call of the same process costs one part and not the whole. */
#ifndef SHL_BENCH_GPU_PROCESS_H
#define SHL_BENCH_GPU_PROCESS_H

#include "bench/gpu_report.h"

#define SHL_GPU_MAX_WORDS 40

typedef struct shl_gpu_process {
    const char *const *words; /* of this program, without its name; NULL at the end */
    double limit_s;           /* then it is ended by force */
    /* Every line that it writes, without its end, as it comes; the result says whether to print it. */
    bool (*take)(void *ctx, const char *line);
    void *ctx;
    int status; /* exit code; 128 + signal */
    bool timed_out;
    char last_words[400]; /* what it wrote last, but for lines that take printed */
} shl_gpu_process;

/* Runs p to its end or its limit. Errors: SHL_E_SYSTEM when it cannot be started, SHL_E_IO of stdout,
 * SHL_E_INTERRUPTED. */
shl_code shl_gpu_process_run(shl_gpu_report *r, shl_gpu_process *p) SHL_MUST_USE;

/* How a process ended that did not end well, in words. */
void shl_gpu_process_end(const shl_gpu_process *p, char *dst, size_t dst_bytes);

#endif

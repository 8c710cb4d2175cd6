/* bench: another program, run to its end or to a deadline: what it wrote is kept, and nothing of it is
 * left behind. */
#ifndef SHL_BENCH_CHILD_H
#define SHL_BENCH_CHILD_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "kernels/base/str.h"

typedef struct shl_child {
    const char *const *argv; /* path first (looked for in PATH without a slash), NULL at the end */
    const char *const *env;  /* NAME=VALUE over the caller's own, NULL at the end; or NULL */
    int64_t timeout_ms;      /* then its process group is asked to end, and killed after grace_ms */
    int64_t grace_ms;        /* 0: two seconds; more for one that has such children itself */
    atomic_int *stop;        /* the same when it is set; or NULL */
    void (*on_data)(void *ctx, const char *data, size_t len); /* as it is written; or NULL */
    void *ctx;                                                /* of on_data */
    shl_str output; /* the last of stdout and stderr together; owned: shl_child_fini */
    int status;     /* exit code; 128 + signal */
    bool timed_out, stopped;
} shl_child;

/* Runs c to its end. Errors: SHL_E_SYSTEM when it cannot be started. How it ended is in c. */
shl_code shl_child_run(shl_child *c) SHL_MUST_USE;
void shl_child_fini(shl_child *c);

/* The last line that is not empty, "" without one; borrowed from c. */
const char *shl_child_last_line(const shl_child *c);

/* What a failed child says of itself: an error's lines, else its last one. Without line ends. */
void shl_child_last_words(const shl_child *c, char *dst, size_t dst_bytes);

#endif

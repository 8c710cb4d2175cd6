/* kernels/cpu: a worker stream: one thread that runs queued closures in order. The thread starts at
 * the first submit and sleeps when it has nothing to do. */
#ifndef SHL_CPU_STREAM_H
#define SHL_CPU_STREAM_H

#include <stddef.h>
#include <stdint.h>

#include "kernels/device/device.h"

typedef struct shl_cpu_worker shl_cpu_worker;

/* rank: shown in the log lines of the thread. Owner: caller. */
shl_code shl_cpu_worker_open(int rank, shl_cpu_worker **out) SHL_MUST_USE;

/* Runs what is queued (or skips it, after a failure), then joins the thread. Raises no error. */
void shl_cpu_worker_close(shl_cpu_worker **w);

/* Queues fn(copy of arg); blocks while the ring is full. Errors: SHL_E_SYSTEM when the thread cannot
 * be started. One submitting thread. */
shl_code shl_cpu_worker_submit(shl_cpu_worker *w, shl_stream_fn fn, const void *arg,
                               size_t arg_bytes) SHL_MUST_USE;

/* Number of closures submitted so far. */
uint64_t shl_cpu_worker_seq(shl_cpu_worker *w);

/* Blocks until the first `seq` closures are done or skipped. Errors: the failure of the stream when
 * it was among them, with its text put on the calling thread. Any thread but the worker's own. */
shl_code shl_cpu_worker_wait(shl_cpu_worker *w, uint64_t seq) SHL_MUST_USE;

#endif

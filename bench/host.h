/* bench: the program in its machine: cores, signals, and the environment that OpenMP reads once. */
#ifndef SHL_BENCH_HOST_H
#define SHL_BENCH_HOST_H

#include <stdatomic.h>
#include <stdbool.h>

#include "kernels/base/err.h"

/* SIGINT: the first sets the flag, the second ends the process (in a rank process it is left to the
 * parent). SIGPIPE is ignored: a closed pipe is an error of the write. */
shl_code shl_host_catch_signals(bool is_rank) SHL_MUST_USE;
atomic_int *shl_host_stop_flag(void);

/* libgomp reads its environment when it is loaded, so the program starts itself once more with
 * OMP_NUM_THREADS and its waiting policy set: passive when ranks * threads exceed the cores, a short
 * spin otherwise. What the user has set stays. Returns when nothing is to be done. argv: the whole
 * command line. Not for rank processes: theirs comes from their parent. Call before any output. */
shl_code shl_host_fit_openmp(const char *const *argv, int ranks, int threads) SHL_MUST_USE;

/* Cores that this process may use. */
int shl_host_cores(void);

#endif

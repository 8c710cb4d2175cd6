/* engines/comm: a world: the ranks of one run on one machine, as threads of this process or as
 * processes started by fork + exec of the same program (never a bare fork after a library was
 * used), with a shared control block, shared communication memory (one memfd per rank) and a
 * supervisor that notices a rank that dies. */
#ifndef SHL_COMM_WORLD_H
#define SHL_COMM_WORLD_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/base/err.h"
#include "kernels/device/arena.h"

typedef struct shl_world shl_world; /* one rank's handle */

#define SHL_WORLD_MAX_RANKS 64

typedef struct shl_world_config {
    int ranks;            /* 1..SHL_WORLD_MAX_RANKS */
    int threads_per_rank; /* exported as OMP_NUM_THREADS to processes */
    int64_t timeout_ms;   /* 0: 30000 */
    bool share_gpu;       /* processes: NCCL's environment for several ranks on one card */
} shl_world_config;

/* What one rank does. Runs on the rank's own thread; its error text is collected. */
typedef shl_code (*shl_rank_main)(shl_world *w, void *arg);

/* Runs fn(w, arg) as cfg->ranks threads of this process and waits for all. Returns SHL_OK, or the
 * first failing rank's own code and message (a rank that merely reports another's failure is not
 * preferred); when it is not the user's doing, the message names the rank, its phase, its last call
 * and where the others missed it. Nothing is left behind. */
shl_code shl_world_run_threads(const shl_world_config *cfg, shl_rank_main fn,
                               void *arg) SHL_MUST_USE;

/* Starts cfg->ranks processes of argv (argv[0] = path of this program; NULL-terminated) with the
 * world in inherited descriptors and environment (SHL_WORLD, OMP_* set before exec; passive
 * waiting when oversubscribed), waits for all, forwards the first SIGINT or SIGTERM and kills at the
 * second, marks a rank that dies so that the others return, kills what is left one timeout after a
 * failure, or after the first rank has ended. Ranks die with the caller's thread. stdin is /dev/null for ranks; stdout and
 * stderr are inherited. Returns as shl_world_run_threads; the failing rank's message was printed by
 * the rank itself when it could (then *printed is true). */
shl_code shl_world_run_processes(const shl_world_config *cfg, const char *const *argv,
                                 bool *printed) SHL_MUST_USE;

/* In a process started so: joins the world described by the environment. *out NULL (and SHL_OK)
 * when this process is not a rank of a world. Owner: caller, shl_world_leave. */
shl_code shl_world_join(shl_world **out) SHL_MUST_USE;

/* Leaves: posts this rank's final code (with its thread's error text) and unmaps. */
void shl_world_leave(shl_world **w, shl_code code);

/* The place of this rank in its world. Local, constant for the life of w. */
int shl_world_rank(const shl_world *w);
int shl_world_size(const shl_world *w);
int shl_world_local_rank(const shl_world *w); /* among the ranks of this machine */
int shl_world_threads_per_rank(const shl_world *w);
bool shl_world_is_processes(const shl_world *w);
bool shl_world_is_launched(const shl_world *w); /* each by a launcher, by itself */

/* Whether this thread's current error began on this rank; false when it tells of another rank's (so
 * that a rank process prints its own failure only). */
bool shl_world_error_is_own(const shl_world *w);

/* This rank's communication memory: give it to shl_device_config.comm_arena. Borrowed, lives as long
 * as w. */
shl_arena *shl_world_comm_arena(shl_world *w);

#endif

/* bench: private to bench/session*.c: one rank of a session while it runs. */
#ifndef SHL_BENCH_SESSION_IMPL_H
#define SHL_BENCH_SESSION_IMPL_H

#include "bench/session.h"
#include "bench/tokens.h"

typedef struct shl_session_rank {
    const shl_session_config *cfg;
    const shl_session_sink *sink; /* NULL: nobody listens */
    shl_session_result *out;      /* rank 0: filled; other ranks: their own scratch */
    shl_world *world;             /* NULL: this rank is alone (one rank, or virtual) */
    int rank;
    bool agreed; /* the failure at hand is known to every rank */
    shl_device *device;
    shl_comm *comm;
    shl_model *model;
    shl_tokens *tokens;
    shl_mesh mesh;
    shl_engine *engine;
    int32_t *ids, *targets; /* one micro-batch each */
    int64_t data_sample;    /* global sample of the next step's first row */
    int64_t steps_cap;
    int64_t cpu_ns;
    char run_id[33];
} shl_session_rank;

/* Runs one rank from device to close; r has its first five fields set, *r->out is zeroed. */
shl_code shl_session_rank_run(shl_session_rank *r) SHL_MUST_USE;

/* One code on every rank; afterwards r->agreed tells that a failure is known to all. */
shl_code shl_session_agree(shl_session_rank *r, shl_code mine, const char *where) SHL_MUST_USE;

/* Sums words over the ranks, in pieces that fit a control call. With one rank's words and zeros from
 * all others this hands those words to everybody. */
shl_code shl_session_sum_words(shl_session_rank *r, int64_t *words, int64_t n) SHL_MUST_USE;

/* Checkpoints (bench/session_state.c). save: at r->engine->step. resume: fills
 * the engine, its step and r->data_sample. COLLECTIVE. */
shl_code shl_session_save(shl_session_rank *r) SHL_MUST_USE;
shl_code shl_session_resume(shl_session_rank *r) SHL_MUST_USE;

/* What rank 0 tells about the whole world (bench/session_result.c). COLLECTIVE. peaks: before
 * anything else touches the ledger; cpu and hash after. */
shl_code shl_session_collect(shl_session_rank *r) SHL_MUST_USE;

/* A finished step goes into out->steps. */
shl_code shl_session_keep_step(shl_session_result *out, int64_t *cap,
                               const shl_step_report *report) SHL_MUST_USE;

/* Ranks as processes (bench/session_process.c). */
shl_code shl_session_run_processes(const shl_session_config *cfg, const shl_session_sink *sink,
                                   shl_session_result *out) SHL_MUST_USE;

#endif

/* bench: private to bench/session*.c: one rank of a session while it runs. */
#ifndef SHL_BENCH_SESSION_IMPL_H
#define SHL_BENCH_SESSION_IMPL_H

#include "bench/session.h"
#include "bench/tokens.h"
#include "engines/api/lab.h"

typedef struct shl_session_rank {
    const shl_session_config *cfg;
    const shl_session_sink *sink; /* NULL: nobody listens */
    shl_session_result *out;      /* rank 0: filled; other ranks: their own scratch */
    shl_world *world;             /* NULL: this rank is alone (one rank, or virtual) */
    int rank;
    shl_lab *lab;
    shl_device *device; /* the parts of lab, for what a session tells; NULL before it is open */
    shl_comm *comm;
    shl_model *model;
    shl_engine *engine;
    shl_tokens *tokens;
    shl_tokens *val_tokens; /* NULL: what tokens holds out */
    int32_t *ids, *targets; /* one micro-batch each */
    int64_t data_sample;    /* global sample of the next step's first row */
    int64_t steps_cap, evals_cap;
    int64_t cpu_ns;
} shl_session_rank;

/* Runs one rank from device to close; r has its first five fields set, *r->out is zeroed. */
shl_code shl_session_rank_run(shl_session_rank *r) SHL_MUST_USE;

/* What a rank of a session asks the API for. Strings borrowed from c and from rope, which is filled and
 * has SHL_ROPE_TEXT_BYTES. */
shl_code shl_session_lab_options(const shl_session_config *c, int rank, char *rope,
                                 shl_lab_options *out) SHL_MUST_USE;

/* Validation (bench/session_eval.c). open: the data, after r->tokens. run: an evaluation, when one is due
 * behind this step; COLLECTIVE. */
shl_code shl_session_eval_open(shl_session_rank *r) SHL_MUST_USE;
shl_code shl_session_eval_run(shl_session_rank *r) SHL_MUST_USE;

/* Checkpoints (bench/session_state.c). save: at r->engine->step. resume: fills
 * the engine, its step and r->data_sample. COLLECTIVE. */
shl_code shl_session_save(shl_session_rank *r) SHL_MUST_USE;
shl_code shl_session_resume(shl_session_rank *r) SHL_MUST_USE;

/* What rank 0 tells about the whole world (bench/session_result.c). COLLECTIVE. peaks: before
 * anything else touches the ledger; cpu and hash after. */
shl_code shl_session_collect(shl_session_rank *r) SHL_MUST_USE;

/* The time line of one step (bench/session_timeline.c): begin before every step, end after it; both do
 * nothing but in the step that is recorded. */
shl_code shl_session_timeline_begin(shl_session_rank *r) SHL_MUST_USE;
shl_code shl_session_timeline_end(shl_session_rank *r) SHL_MUST_USE;

/* A finished step goes into out->steps, an evaluation into out->evals. */
shl_code shl_session_keep_step(shl_session_result *out, int64_t *cap,
                               const shl_step_report *report) SHL_MUST_USE;

shl_code shl_session_keep_eval(shl_session_result *out, int64_t *cap,
                               const shl_eval_report *report) SHL_MUST_USE;

/* Ranks as processes (bench/session_process.c). */
shl_code shl_session_run_processes(const shl_session_config *cfg, const shl_session_sink *sink,
                                   shl_session_result *out) SHL_MUST_USE;

#endif

/* tests/engines/api: one small run through shardlab.h, over threads or alone, with everything a property is
 * stated about: losses, norms, fingerprints, reports. Rank threads never assert: codes tell. */
#ifndef SHL_TESTS_API_RUNS_H
#define SHL_TESTS_API_RUNS_H

#include <stdio.h>
#include <string.h>

#include "engines/api/shardlab.h"
#include "kernels/base/rng.h"
#include "kernels/base/types.h"

#define RUN_MAX_STEPS 16
#define RUN_MAX_POSITIONS 256

typedef struct api_run {
    shl_lab_options o;
    int ranks, steps;
    const char *json;     /* instead of o */
    bool eval_in_between; /* after each step */
    const char *load_dir, *save_dir;
    /* results, of rank 0 */
    double losses[RUN_MAX_STEPS], norms[RUN_MAX_STEPS], first_loss[RUN_MAX_STEPS];
    double evals[RUN_MAX_STEPS];
    int64_t first_step, cursor;
    uint64_t hash_at_start, hash;
    shl_lab_report report;
} api_run;

/* The model of tests/support/engine_world. */
static inline void
api_run_init(api_run *r, const char *strategy, int ranks)
{
    memset(r, 0, sizeof(*r));
    (void)shl_lab_options_init(&r->o, sizeof(r->o));
    r->o.model = "small";
    r->o.vocab = 67;
    r->o.context = 16;
    r->o.layers = 3;
    r->o.width = 20;
    r->o.heads = 5;
    r->o.strategy = strategy;
    r->o.bucket_elems = 4000;
    r->o.batch = 1;
    r->o.seq = 16;
    r->o.seed = 1234;
    r->ranks = ranks;
    r->steps = 3;
}

/* Rows [row, row + n) of a step's global batch, as tests/support/engine_world fills them. */
static inline void
api_run_rows(const api_run *r, int64_t step, int64_t row, int32_t *tokens, int32_t *targets)
{
    int64_t rows = r->o.batch * r->o.accum * r->ranks;
    int64_t at = (step * rows + row) * r->o.seq;
    for (int64_t i = 0; i < r->o.batch * r->o.seq; i++) {
        tokens[i] = (int32_t)(shl_rng_u64(7, 1, (uint64_t)(at + i)) % (uint64_t)r->o.vocab);
        targets[i] = (int32_t)(shl_rng_u64(7, 2, (uint64_t)(at + i)) % (uint64_t)r->o.vocab);
    }
}

/* One step of a handle. */
static inline int
api_run_step(api_run *r, shl_lab *lab, int rank, int step, bool keep)
{
    int32_t tokens[RUN_MAX_POSITIONS], targets[RUN_MAX_POSITIONS];
    shl_lab_step_report report = {.struct_bytes = sizeof(report)};
    int code = SHL_LAB_OK;
    for (int64_t m = 0; m < r->o.accum && code == SHL_LAB_OK; m++) {
        double loss = 0.0;
        api_run_rows(r, r->first_step + step, (rank * r->o.accum + m) * r->o.batch, tokens,
                     targets);
        code = shl_lab_forward(lab, tokens, targets, &loss);
        if (keep && m == 0) {
            r->first_loss[step] = loss;
        }
        if (code == SHL_LAB_OK) {
            code = shl_lab_backward(lab);
        }
        if (code == SHL_LAB_OK) {
            code = shl_lab_step(lab, &report);
        }
        if (code == SHL_LAB_OK && report.updated != (m + 1 == r->o.accum)) {
            code = SHL_LAB_E_VERIFY;
        }
    }
    if (keep) {
        r->losses[step] = report.loss;
        r->norms[step] = report.grad_norm;
    }
    if (r->eval_in_between && code == SHL_LAB_OK) {
        double loss = 0.0;
        api_run_rows(r, 0, rank * r->o.batch, tokens, targets);
        code = shl_lab_eval(lab, tokens, targets, &loss);
        if (keep) {
            r->evals[step] = loss;
        }
    }
    return code;
}

static inline int
api_run_body(api_run *r, shl_lab *lab, int rank)
{
    bool keep = rank == 0;
    int64_t cursor = 0;
    uint64_t hash = 0;
    int code = r->load_dir ? shl_lab_load(lab, r->load_dir, &cursor) : SHL_LAB_OK;
    if (code == SHL_LAB_OK) {
        code = shl_lab_param_hash(lab, &hash);
    }
    if (keep) {
        r->cursor = cursor;
        r->hash_at_start = hash;
    }
    for (int step = 0; step < r->steps && code == SHL_LAB_OK; step++) {
        code = api_run_step(r, lab, rank, step, keep);
    }
    if (code == SHL_LAB_OK && r->save_dir) {
        code = shl_lab_save(lab, r->save_dir, 1000 + r->steps, "{\"note\": \"of a test\"}");
    }
    if (code == SHL_LAB_OK) {
        code = shl_lab_param_hash(lab, &hash);
    }
    if (code == SHL_LAB_OK && keep) {
        r->hash = hash;
        r->report.struct_bytes = sizeof(r->report);
        code = shl_lab_report_get(lab, &r->report);
    }
    return code;
}

static inline int
api_run_rank(shl_lab_world *world, void *ctx)
{
    api_run *r = (api_run *)ctx;
    shl_lab *lab = NULL;
    int rank = world ? shl_lab_world_rank(world) : (int)r->o.rank;
    int code = r->json ? shl_lab_initialize_json(r->json, world, &lab)
                       : shl_lab_initialize(&r->o, world, &lab);
    if (code == SHL_LAB_OK) {
        code = api_run_body(r, lab, world ? rank : 0);
    }
    int closed = shl_lab_close(&lab);
    return code != SHL_LAB_OK ? code : closed;
}

/* Alone when ranks is 1 or the device is virtual, else over threads. */
static inline int
api_run_do(api_run *r)
{
    bool alone = r->ranks == 1 || strcmp(r->o.device, "virtual") == 0;
    if (alone) {
        r->o.ranks = strcmp(r->o.device, "virtual") == 0 ? r->ranks : 0;
        return api_run_rank(NULL, r);
    }
    shl_lab_world_options w = {.struct_bytes = sizeof(w), .ranks = r->ranks, .timeout_ms = 20000};
    return shl_lab_run_threads(&w, api_run_rank, r);
}

/* SHL_LAB_OK, or prints what failed. */
static inline int
api_run_told(api_run *r)
{
    int code = api_run_do(r);
    if (code != SHL_LAB_OK) {
        shl_lab_error e = {.struct_bytes = sizeof(e)};
        shl_lab_error_get(NULL, &e);
        printf("%s on %d ranks: %s (%s)\n%s\n", r->o.strategy, r->ranks, e.what, e.because,
               e.trace);
    }
    return code;
}

#endif

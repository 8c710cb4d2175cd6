/* bench: the ranks of a session: alone, as threads, or as processes. */
#include "bench/session.h"

#include <stdio.h>
#include <string.h>

#include "bench/session_impl.h"
#include "checkpoints/ckpt.h"

typedef struct thread_job {
    const shl_session_config *cfg;
    const shl_session_sink *sink;
    shl_session_result *out; /* rank 0's */
} thread_job;

static shl_code
run_thread(shl_world *world, void *arg)
{
    const thread_job *job = (const thread_job *)arg;
    shl_session_result scratch = {0};
    int rank = shl_world_rank(world);
    shl_session_rank r = {
        .cfg = job->cfg,
        .sink = job->sink,
        .out = rank == 0 ? job->out : &scratch,
        .world = world,
        .rank = rank,
    };
    shl_code code = shl_session_rank_run(&r);
    shl_session_result_fini(&scratch);
    return code;
}

static shl_code
run_here(const shl_session_config *cfg, const shl_session_sink *sink, shl_session_result *out)
{
    shl_session_rank r = {.cfg = cfg, .sink = sink, .out = out};
    return shl_session_rank_run(&r);
}

/* This process is one of the ranks; only the first has a sink and a result. */
static shl_code
run_launched(const shl_session_config *cfg, const shl_session_sink *sink, shl_session_result *out)
{
    int rank = shl_world_rank(cfg->world);
    shl_session_rank r = {
        .cfg = cfg, .sink = rank == 0 ? sink : NULL, .out = out, .world = cfg->world, .rank = rank};
    return shl_session_rank_run(&r);
}

/* A rank that was killed cannot take its unfinished save away, and the others cannot know that nobody
 * works in it: only when all have ended. A run that was refused has touched nothing. */
static void
sweep_unfinished_save(const shl_session_config *cfg, shl_code code)
{
    bool refused = code == SHL_E_USAGE || code == SHL_E_CONFIG || code == SHL_E_VERIFY;
    if (cfg->ckpt_dir && code != SHL_OK && !refused) {
        shl_ckpt_save_sweep(cfg->ckpt_dir);
    }
}

/* The largest resident set is of this run, not of what the process did before. Where the system has no
 * such file the number stays an upper bound. */
static void
restart_resident_peak(void)
{
    FILE *f = fopen("/proc/self/clear_refs", "we");
    if (f) {
        (void)fputs("5", f);
        (void)fclose(f);
    }
}

shl_code
shl_session_run(const shl_session_config *cfg, const shl_session_sink *sink,
                shl_session_result *out)
{
    memset(out, 0, sizeof(*out));
    SHL_TRY(shl_session_config_check(cfg));
    restart_resident_peak();
    shl_code code;
    if (cfg->world) {
        code = run_launched(cfg, sink, out);
    } else if (cfg->processes) {
        code = shl_session_run_processes(cfg, sink, out);
    } else if (cfg->ranks == 1 || strcmp(cfg->device, "virtual") == 0) {
        code = run_here(cfg, sink, out);
    } else {
        shl_world_config world = {
            .ranks = cfg->ranks,
            .threads_per_rank = cfg->threads,
            .timeout_ms = cfg->timeout_ms,
        };
        thread_job job = {cfg, sink, out};
        code = shl_world_run_threads(&world, run_thread, &job);
    }
    if (!cfg->world) { /* others may still be at work */
        sweep_unfinished_save(cfg, code);
    }
    out->info.layout = out->layout_name;
    if (code != SHL_OK && !(code == SHL_E_INTERRUPTED && out->n_steps > 0)) {
        shl_session_result_fini(out);
    }
    return code;
}

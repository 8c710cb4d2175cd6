/* engines/api: ranks as threads, as processes, or a place in a world that somebody else started. */
#include <string.h>

#include "engines/api/lab.h"
#include "engines/comm/launch.h"

typedef struct rank_job {
    shl_lab_rank_fn fn;
    void *ctx;
} rank_job;

static shl_code
run_rank(shl_world *world, void *arg)
{
    const rank_job *job = (const rank_job *)arg;
    int given = job->fn((shl_lab_world *)world, job->ctx);
    shl_code code = shl_lab_code_from(given);
    if (code != SHL_OK && (int)code != given) {
        return SHL_RAISE(code, "the function of rank %d returned %d", shl_world_rank(world), given);
    }
    return code;
}

static shl_code
world_config(const shl_lab_world_options *o, shl_world_config *out)
{
    shl_lab_world_options ours;
    SHL_TRY(shl_lab_take_sized(o, sizeof(ours), "shl_lab_world_options", &ours));
    *out = (shl_world_config){
        .ranks = ours.ranks,
        .threads_per_rank = ours.threads_per_rank > 0 ? ours.threads_per_rank : 1,
        .timeout_ms = ours.timeout_ms,
    };
    if (ours.threads_per_rank < 0) {
        return SHL_RAISE(SHL_E_USAGE, "%d threads per rank", ours.threads_per_rank);
    }
    return SHL_OK;
}

int
shl_lab_run_threads(const shl_lab_world_options *o, shl_lab_rank_fn fn, void *ctx)
{
    shl_world_config config;
    rank_job job = {fn, ctx};
    shl_code code = world_config(o, &config);
    if (code == SHL_OK && !fn) {
        code = SHL_RAISE(SHL_E_USAGE, "shl_lab_run_threads: the function of a rank is NULL");
    }
    if (code == SHL_OK) {
        code = shl_world_run_threads(&config, run_rank, &job);
    }
    return shl_lab_leave(NULL, code);
}

int
shl_lab_run_processes(const shl_lab_world_options *o, const char *const *argv)
{
    shl_world_config config;
    bool printed = false;
    shl_code code = world_config(o, &config);
    if (code == SHL_OK && (!argv || !argv[0])) {
        code = SHL_RAISE(SHL_E_USAGE, "shl_lab_run_processes: there is no command");
    }
    if (code == SHL_OK) {
        code = shl_world_run_processes(&config, argv, &printed);
    }
    return shl_lab_leave(NULL, code);
}

int
shl_lab_world_join(shl_lab_world **out)
{
    shl_world *world = NULL;
    if (!out) {
        return shl_lab_leave(NULL, SHL_RAISE(SHL_E_USAGE, "shl_lab_world_join: out is NULL"));
    }
    shl_code code = shl_world_join(&world);
    *out = code == SHL_OK ? (shl_lab_world *)world : NULL;
    return shl_lab_leave(NULL, code);
}

static shl_code
meet(int64_t timeout_ms, shl_world **out)
{
    shl_launch launch;
    SHL_TRY(shl_launch_find(&launch));
    return launch.launcher ? shl_world_meet(&launch, timeout_ms, out) : SHL_OK;
}

int
shl_lab_world_meet(int64_t timeout_ms, shl_lab_world **out)
{
    shl_world *world = NULL;
    if (!out) {
        return shl_lab_leave(NULL, SHL_RAISE(SHL_E_USAGE, "shl_lab_world_meet: out is NULL"));
    }
    shl_code code = meet(timeout_ms, &world);
    *out = code == SHL_OK ? (shl_lab_world *)world : NULL;
    return shl_lab_leave(NULL, code);
}

void
shl_lab_world_leave(shl_lab_world **world, int code)
{
    if (world && *world) {
        shl_world *own = (shl_world *)*world;
        shl_world_leave(&own, shl_lab_code_from(code));
        *world = NULL;
    }
}

int
shl_lab_world_rank(const shl_lab_world *world)
{
    return world ? shl_world_rank((const shl_world *)world) : 0;
}

int
shl_lab_world_size(const shl_lab_world *world)
{
    return world ? shl_world_size((const shl_world *)world) : 1;
}

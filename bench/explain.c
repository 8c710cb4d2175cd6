/* bench: listens to rank 0's gathers on the virtual device and prints what it heard. */
#include "bench/explain.h"

#include "bench/cli.h"
#include "engines/shared/gather_log.h"

static shl_code
listen(void *ctx, int rank, shl_engine *e)
{
    if (rank == 0) {
        e->gather_log = ctx;
    }
    return SHL_OK;
}

static shl_code
stop_listening(void *ctx, int rank, shl_engine *e)
{
    SHL_UNUSED(ctx);
    SHL_UNUSED(rank);
    e->gather_log = NULL;
    return SHL_OK;
}

/* Without gathers around modules there is nothing to explain: parameters are whole. */
static shl_code
print_schedule(const shl_session_config *cfg, const shl_gather_log *log)
{
    shl_str text = {0};
    shl_str_add(&text, "%s, %d ranks, %s: ", shl_strategy_name(cfg->engine.strategy), cfg->ranks,
                cfg->model);
    shl_code code = SHL_OK;
    if (log->text.len == 0) {
        shl_str_add(&text, "parameters are whole on every rank; buckets are gathered after the "
                           "update\n");
    } else {
        code = shl_gather_log_print(log, &text);
    }
    shl_str_add(&text, "\n");
    if (code == SHL_OK) {
        code = shl_cli_print(&text);
    }
    shl_str_fini(&text);
    return code;
}

shl_code
shl_explain_schedule(const shl_session_config *cfg, shl_session_result *result)
{
    shl_gather_log log;
    shl_gather_log_init(&log, 1);
    shl_session_sink sink = {.on_open = listen, .on_close = stop_listening, .ctx = &log};
    shl_code code = shl_session_run(cfg, &sink, result);
    if (code == SHL_OK) {
        code = print_schedule(cfg, &log);
    }
    shl_gather_log_fini(&log);
    return code;
}

/* bench: `shardlab plan`: the same engines on the virtual device: bytes per tag, traffic, and whether it
 * fits, for each strategy and world size. There is no second code path: a plan is a run that computes
 * nothing. */
#include <string.h>

#include "bench/cli.h"
#include "bench/ds_plan.h"
#include "bench/explain.h"
#include "bench/options.h"
#include "bench/output.h"

/* The second step shows what the first leaves behind. */
#define PLAN_STEPS 2

static const shl_option TABLE[] = {
    /* clang-format off */
    SHL_ROWS_MODEL,
    SHL_ROW_INIT_FROM,
    SHL_ROWS_WORLD("ddp,zero1,zero2,zero3,fsdp,fsdp-grad-op", "1,2,4,8"),
    SHL_ROWS_BATCH,
    SHL_ROWS_DTYPE,
    SHL_ROWS_OPTIMIZER,
    SHL_ROW_ZERO,
    SHL_ROWS_DS_FILE,
    SHL_ROWS_DS_LAUNCH,
    SHL_ROWS_PLAN,
    SHL_ROWS_TUNE,
    SHL_ROWS_EVAL,
    SHL_ROWS_DEVICE,
    SHL_ROW_COMM,
    SHL_ROWS_OFFLOAD,
    SHL_ROWS_FORMAT,
    /* clang-format on */
};

/* The best of the rows that do not fit, for the message. */
typedef struct verdict {
    int64_t n_fit;
    int64_t least_over_bytes;
    char least[128];
} verdict;

static void
judge(verdict *v, const shl_output_row *row, size_t limit_bytes)
{
    int64_t over = row->record.peak[SHL_TIER_DEVICE].total - (int64_t)limit_bytes;
    if (limit_bytes == 0 || over <= 0) {
        v->n_fit++;
        return;
    }
    if (v->least[0] == '\0' || over < v->least_over_bytes) {
        v->least_over_bytes = over;
        shl_strf(v->least, sizeof(v->least), "%s on %lld ranks", row->record.strategy,
                 (long long)row->record.ranks);
    }
}

static shl_code
raise_no_fit(const verdict *v, size_t limit_bytes)
{
    char limit[32], over[32];
    shl_format_bytes(limit_bytes, limit, sizeof(limit));
    shl_format_bytes((size_t)v->least_over_bytes, over, sizeof(over));
    SHL_RAISE(SHL_E_OOM, "nothing fits into %s per rank", limit);
    shl_err_because("the nearest, %s, is %s over the limit", v->least, over);
    return shl_err_advice("more --ranks, a smaller --batch or --seq, or a larger --device-memory");
}

/* What DeepSpeed says of the same rows, below the table. */
static shl_code
print_estimates(const shl_output *output)
{
    shl_str text = {0};
    shl_code code = shl_ds_plan_estimates(output, &text);
    if (code == SHL_OK) {
        code = shl_cli_print(&text);
    }
    shl_str_fini(&text);
    return code;
}

static shl_code
print_emitted(const shl_run_points *points)
{
    shl_str text = {0};
    shl_code code = shl_ds_plan_emit(points, &text);
    if (code == SHL_OK) {
        code = shl_cli_print(&text);
    }
    shl_str_fini(&text);
    return code;
}

static shl_code
plan_rows(const shl_run_points *points, shl_output *output, const shl_run_options *o,
          size_t limit_bytes)
{
    verdict v = {0};
    for (int64_t i = 0; i < points->n; i++) {
        const shl_session_config *cfg = &points->configs[i];
        shl_session_result result = {0};
        if (atomic_load(cfg->stop)) {
            return SHL_RAISE(SHL_E_INTERRUPTED, "interrupted");
        }
        SHL_TRY(o->explain ? shl_explain_schedule(cfg, &result)
                           : shl_session_run(cfg, NULL, &result));
        SHL_TRY(shl_output_run(output, cfg, &result, limit_bytes));
        judge(&v, output->rows[output->n_rows - 1], limit_bytes);
    }
    SHL_TRY(shl_output_finish(output));
    if (o->convention == 1) {
        SHL_TRY(print_estimates(output));
    }
    return v.n_fit == 0 ? raise_no_fit(&v, limit_bytes) : SHL_OK;
}

/* A plan runs without the limit, so that it knows how far away a row is that does not fit. */
static shl_code
plan(const shl_cli *cli, shl_run_options *o)
{
    shl_run_points points;
    shl_output output;
    size_t limit_bytes = o->device_memory_bytes;
    shl_form form;
    SHL_TRY(shl_output_form(o, &form));
    if ((o->convention == 1 || o->explain) && form != SHL_FORM_TABLE) {
        SHL_RAISE(SHL_E_USAGE, "--%s in another form than the table",
                  o->explain ? "explain-schedule" : "convention deepspeed");
        return shl_err_because("its lines stand beside the table");
    }
    o->device_memory_bytes = 0;
    o->device = 1;
    o->steps = PLAN_STEPS;
    /* A plan does not depend on this machine's cores. */
    o->threads = o->threads > 0 ? o->threads : 1;
    shl_code code = shl_run_points_resolve(o, &points);
    if (code == SHL_OK && points.notes.len > 0) {
        shl_cli_note("%s", shl_str_get(&points.notes));
    }
    if (code == SHL_OK && o->emit == 1) {
        code = print_emitted(&points);
    } else if (code == SHL_OK) {
        code = shl_output_open(o, cli, &output);
        if (code == SHL_OK) {
            code = plan_rows(&points, &output, o, limit_bytes);
        }
        shl_output_close(&output);
    }
    shl_run_points_fini(&points);
    return code;
}

static shl_code
run_plan(const shl_cli *cli)
{
    shl_run_options o;
    bool help_shown;
    shl_origin origins[SHL_ARRAY_LEN(TABLE)];
    const char *given[SHL_ARRAY_LEN(TABLE) + 1];
    char ranks[24];
    SHL_TRY(shl_run_options_init(&o));
    SHL_TRY(shl_cli_parse(&shl_command_plan, cli, &o, origins, NULL, NULL, 0, &help_shown));
    if (help_shown) {
        return SHL_OK;
    }
    shl_ds_options_given(TABLE, origins, SHL_ARRAY_LEN(TABLE), given);
    shl_code code = shl_ds_options_resolve(&o.ds, given, &o.ranks, ranks);
    if (code == SHL_OK) {
        o.strategy = o.ds.config ? "ddp" : o.strategy; /* one row a world: the file decides it */
        code = plan(cli, &o);
    }
    shl_ds_options_fini(&o.ds);
    return code;
}

const shl_command shl_command_plan = {
    .name = "plan",
    .summary = "memory and traffic of strategies and world sizes, without computing",
    .usage = "shardlab plan [options]",
    .examples = "  shardlab plan --model gpt-7b --ranks 8-1024*2 --device-memory 80GiB\n"
                "  shardlab plan --model gpt2-1.5b --strategy zero2,zero3 --batch 1-16*2 --csv\n"
                "  shardlab plan --model gpt-7b --dtype fp32,bf16 --ranks 64\n"
                "  shardlab plan --strategy zero2 --ranks 8 --dtype bf16 --emit deepspeed\n"
                "  shardlab plan --config '{\"train_batch_size\": 64}' --convention deepspeed\n",
    .common = "model strategy ranks dtype batch seq device-memory out",
    .options = TABLE,
    .n_options = SHL_ARRAY_LEN(TABLE),
    .run = run_plan,
};

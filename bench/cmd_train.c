/* bench: `shardlab train`: runs every row of a sweep and tells what each step and each run was. A row that
 * does not fit into --device-memory is a result: the sweep goes on and the exit code says it. */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "bench/cli.h"
#include "bench/gpu_facts.h"
#include "bench/options.h"
#include "bench/output.h"
#include "bench/progress.h"
#include "engines/comm/launch.h"
#include "kernels/base/heap.h"

static const shl_option TABLE[] = {
    /* clang-format off */
    SHL_ROWS_MODEL,
    SHL_ROW_INIT_FROM,
    SHL_ROWS_WORLD("ddp", "1"),
    SHL_ROW_ZERO,
    SHL_ROWS_BATCH,
    SHL_ROWS_OPTIMIZER,
    SHL_ROWS_DTYPE,
    SHL_ROWS_RUN,
    SHL_ROWS_TUNE,
    SHL_ROWS_VALIDATION,
    SHL_ROWS_DEVICE,
    SHL_ROW_COMM,
    SHL_ROWS_GPU,
    SHL_ROWS_OFFLOAD,
    SHL_ROWS_CHECKPOINT,
    SHL_ROWS_DEEPSPEED,
    SHL_ROWS_FORMAT,
    SHL_ROWS_HIDDEN,
    /* clang-format on */
};

/* What all rows of a sweep share. */
typedef struct row_run {
    const shl_cli *cli;
    const shl_launch *launch; /* launcher NULL: this process starts the ranks */
    shl_output *output;
    shl_progress progress;
} row_run;

typedef struct row_context {
    shl_output *output;
    const shl_session_config *cfg;
    shl_progress *progress;
    int64_t steps_before; /* of the rows before this one */
} row_context;

/* The progress line goes before a record appears on the same screen. */
static shl_code
tell_step(void *ctx, const shl_step_report *r)
{
    const row_context *row = (const row_context *)ctx;
    bool predicted = strcmp(row->cfg->device, "virtual") == 0;
    char label[48], detail[64] = "";
    shl_progress_clear(row->progress);
    SHL_TRY(shl_output_step(row->output, row->cfg, r, predicted));
    shl_strf(label, sizeof(label), "%s x %d", shl_strategy_name(row->cfg->engine.strategy),
             row->cfg->ranks);
    if (!predicted) {
        shl_strf(detail, sizeof(detail), "loss %.4f %s%s  %.1f ms/step", r->loss,
                 shl_dtype_name(row->cfg->engine.compute_dtype), r->skipped ? " skipped" : "",
                 (double)r->step_ns * 1e-6);
    }
    shl_progress_show(row->progress, row->steps_before + r->step, label, detail);
    return SHL_OK;
}

static shl_code
tell_eval(void *ctx, const shl_eval_report *r)
{
    const row_context *row = (const row_context *)ctx;
    shl_progress_clear(row->progress);
    return shl_output_eval(row->output, row->cfg, r, strcmp(row->cfg->device, "virtual") == 0);
}

/* The command of a rank process: this program, these words, and the row. Owner: caller. */
static shl_code
rank_command(const shl_cli *cli, char *path, size_t path_bytes, const char *row_word,
             const char ***out)
{
    ssize_t len = readlink("/proc/self/exe", path, path_bytes - 1);
    if (len < 0) {
        SHL_RAISE(SHL_E_SYSTEM, "cannot find this program's own file");
        return shl_err_because("%s", strerror(errno));
    }
    path[len] = '\0';
    const char **words = NULL;
    SHL_TRY(shl_heap_alloc((size_t)cli->full_argc + 2, sizeof(*words), &words));
    words[0] = path;
    for (int i = 1; i < cli->full_argc; i++) {
        words[i] = cli->full_argv[i];
    }
    words[cli->full_argc] = row_word;
    *out = words;
    return SHL_OK;
}

/* A row in a world of its own, which one that fails takes with it. A rank that did not fail itself tells
 * nothing: *told is false. */
static shl_code
run_launched(const shl_launch *launch, shl_session_config *cfg, int64_t index,
             const shl_session_sink *sink, shl_session_result *result, bool *told)
{
    shl_launch place = *launch;
    place.job += (uint64_t)index;
    SHL_TRY(shl_world_meet(&place, cfg->timeout_ms, &cfg->world));
    shl_code code = shl_session_run(cfg, sink, result);
    shl_err failure = *shl_err_get();
    *told = launch->rank == 0 || shl_world_error_is_own(cfg->world);
    shl_world_leave(&cfg->world, code);
    return code == SHL_OK ? SHL_OK : shl_err_put(&failure);
}

static shl_code
run_row(row_run *run, shl_session_config *cfg, int64_t index)
{
    char path[4096], row_word[32];
    const char **words = NULL;
    bool told = true;
    shl_session_result result = {0};
    row_context row = {run->output, cfg, &run->progress, index * cfg->steps};
    shl_session_sink sink = {.on_step = tell_step, .on_eval = tell_eval, .ctx = &row};
    if (cfg->processes && !run->launch->launcher) {
        shl_strf(row_word, sizeof(row_word), "--row=%lld", (long long)index);
        SHL_TRY(rank_command(run->cli, path, sizeof(path), row_word, &words));
        cfg->rank_argv = words;
    }
    shl_code code = run->launch->launcher
                        ? run_launched(run->launch, cfg, index, &sink, &result, &told)
                        : shl_session_run(cfg, &sink, &result);
    cfg->rank_argv = NULL;
    shl_heap_free(&words);
    shl_progress_clear(&run->progress);
    if (code != SHL_OK && !(code == SHL_E_INTERRUPTED && result.n_steps > 0)) {
        return code;
    }
    shl_err interruption = *shl_err_get();
    SHL_TRY(shl_output_run(run->output, cfg, &result, cfg->device_memory_bytes));
    return code == SHL_OK ? SHL_OK : shl_err_put(&interruption);
}

/* Rows until the first failure that is not a memory limit; what was done is shown in any case. In a sweep
 * a row that does not fit is reported at once, and the others go on. */
static shl_code
run_rows(row_run *run, const shl_run_points *points)
{
    shl_code worst = SHL_OK;
    shl_progress_begin(&run->progress, points->n > 0 ? points->n * points->configs[0].steps : 0);
    for (int64_t i = 0; i < points->n; i++) {
        shl_session_config *cfg = &points->configs[i];
        if (atomic_load(cfg->stop)) {
            return SHL_RAISE(SHL_E_INTERRUPTED, "interrupted");
        }
        shl_code code = run_row(run, cfg, i);
        if (code != SHL_OK && (code != SHL_E_OOM || points->n == 1)) {
            return code;
        }
        if (code == SHL_E_OOM) {
            shl_cli_note("%s, %d ranks:\n", shl_strategy_name(cfg->engine.strategy), cfg->ranks);
            shl_cli_report_error();
            shl_err_clear();
            worst = code;
        }
    }
    return worst;
}

/* The rows on a rank that a launcher started and that is not the first: the first tells what came of them, a
 * rank that fails by itself why. */
static shl_code
follow_rows(const shl_launch *launch, const shl_run_points *points)
{
    shl_code worst = SHL_OK;
    for (int64_t i = 0; i < points->n; i++) {
        shl_session_config *cfg = &points->configs[i];
        shl_session_result result = {0};
        bool told = true;
        if (atomic_load(cfg->stop)) {
            return SHL_RAISE(SHL_E_INTERRUPTED, "interrupted");
        }
        shl_code code = run_launched(launch, cfg, i, NULL, &result, &told);
        shl_session_result_fini(&result);
        bool goes_on = code == SHL_E_OOM && points->n > 1;
        if (code != SHL_OK && (goes_on || !told)) {
            shl_err_clear();
        }
        if (code != SHL_OK && !goes_on) {
            return code;
        }
        worst = code != SHL_OK ? code : worst;
    }
    return worst;
}

static int
most_ranks(const shl_run_points *points, int *threads)
{
    int ranks = 0;
    *threads = 1;
    for (int64_t i = 0; i < points->n; i++) {
        const shl_session_config *c = &points->configs[i];
        ranks = c->ranks > ranks ? c->ranks : ranks;
        *threads = c->threads > *threads ? c->threads : *threads;
    }
    return ranks;
}

static shl_code
show_rows(const shl_cli *cli, const shl_run_options *o, const shl_run_points *points,
          const shl_launch *launch)
{
    shl_output output;
    row_run run = {.cli = cli, .launch = launch, .output = &output};
    shl_code code = shl_output_open(o, cli, &output);
    if (code == SHL_OK) {
        code = run_rows(&run, points);
        shl_err failure = *shl_err_get();
        shl_code finished = shl_output_finish(&output);
        if (code != SHL_OK) {
            shl_err_put(&failure);
        } else {
            code = finished;
        }
    }
    shl_output_close(&output);
    return code;
}

/* Who started this process as a rank; launcher NULL: nobody. */
static shl_code
find_launcher(const shl_run_options *o, const shl_run_points *points, shl_launch *out)
{
    const char *launch = shl_choices_launch[o->launch];
    bool asked = strcmp(launch, "launcher") == 0;
    memset(out, 0, sizeof(*out));
    bool may = strcmp(launch, "auto") == 0 && strcmp(points->configs[0].device, "cuda") == 0;
    if (!asked && !may) {
        return SHL_OK;
    }
    SHL_TRY(shl_launch_find(out));
    if (asked && !out->launcher) {
        SHL_RAISE(SHL_E_USAGE, "no launcher has started this process as a rank of several");
        shl_err_because("the variables of torchrun, mpirun, srun and SHL_RANK are not set");
        return shl_err_advice("--launch processes, which starts the ranks itself");
    }
    for (int64_t i = 0; i < points->n && out->launcher; i++) {
        if (points->configs[i].ranks != out->ranks) {
            SHL_RAISE(SHL_E_USAGE, "%s has started %d ranks", out->launcher, out->ranks);
            shl_err_because("row %lld of the sweep is of %d", (long long)i + 1,
                            points->configs[i].ranks);
            return shl_err_advice("--ranks %d, or --launch processes", out->ranks);
        }
    }
    return SHL_OK;
}

/* The cards of this machine are enough for its ranks. */
static shl_code
check_cards(const shl_run_points *points)
{
    for (int64_t i = 0; i < points->n; i++) {
        const shl_session_config *c = &points->configs[i];
        bool one = c->share_gpu || strcmp(c->comm, "local") == 0;
        SHL_TRY(shl_gpu_facts_enough(c->device, c->ranks, one));
    }
    return SHL_OK;
}

static shl_code
run_points(const shl_cli *cli, const shl_run_options *o, const shl_run_points *points)
{
    shl_form form;
    shl_launch launch;
    int threads;
    if (cli->world) {
        if (o->row < 0 || o->row >= points->n || o->result_fd < 0) {
            return SHL_RAISE(SHL_E_USAGE, "a rank process without its row");
        }
        return shl_session_run_rank(&points->configs[o->row], cli->world, (int)o->result_fd);
    }
    SHL_TRY(shl_output_form(o, &form));
    SHL_TRY(find_launcher(o, points, &launch));
    int ranks = most_ranks(points, &threads);
    if (strcmp(points->configs[0].device, "virtual") != 0) {
        SHL_TRY(shl_cli_fit_openmp(cli, ranks, threads));
    }
    if (!launch.launcher) {
        SHL_TRY(check_cards(points));
    }
    /* Behind the new start of the program that the lines above may make. */
    if (points->notes.len > 0) {
        shl_cli_note("%s", shl_str_get(&points->notes));
    }
    return launch.launcher && launch.rank > 0 ? follow_rows(&launch, points)
                                              : show_rows(cli, o, points, &launch);
}

/* --show-config of the first row; the rest of the run is resolved without the file. */
static shl_code
show_config(shl_run_options *o)
{
    shl_run_points points;
    shl_str text = {0};
    shl_ds_options ds = o->ds;
    o->ds.config = NULL;
    shl_code code = shl_run_points_resolve(o, &points);
    if (code == SHL_OK) {
        code = shl_ds_options_show(&ds, &points.configs[0], o->json, &text);
        shl_err refusal = *shl_err_get();
        shl_code printed = shl_cli_print(&text);
        code = code == SHL_OK ? printed : shl_err_put(&refusal);
    }
    shl_str_fini(&text);
    shl_run_points_fini(&points);
    return code;
}

static shl_code
train(const shl_cli *cli, shl_run_options *o)
{
    shl_run_points points;
    if (o->ds.show) {
        return show_config(o);
    }
    shl_code code = shl_run_points_resolve(o, &points);
    if (code == SHL_OK) {
        code = run_points(cli, o, &points);
    }
    shl_run_points_fini(&points);
    return code;
}

static shl_code
run_train(const shl_cli *cli)
{
    shl_run_options o;
    bool help_shown;
    shl_origin origins[SHL_ARRAY_LEN(TABLE)];
    const char *given[SHL_ARRAY_LEN(TABLE) + 1];
    char ranks[24];
    SHL_TRY(shl_run_options_init(&o));
    SHL_TRY(shl_cli_parse(&shl_command_train, cli, &o, origins, NULL, NULL, 0, &help_shown));
    if (help_shown) {
        return SHL_OK;
    }
    shl_ds_options_given(TABLE, origins, SHL_ARRAY_LEN(TABLE), given);
    shl_code code = shl_ds_options_resolve(&o.ds, given, &o.ranks, ranks);
    if (code == SHL_OK) {
        code = train(cli, &o);
    }
    shl_ds_options_fini(&o.ds);
    return code;
}

const shl_command shl_command_train = {
    .name = "train",
    .summary = "train a GPT under one or several strategies",
    .usage = "shardlab train [options]",
    .examples = "  shardlab train --strategy zero3 --ranks 2 --steps 5\n"
                "  shardlab train --strategy ddp,zero3,fsdp --ranks 1,2 --steps 2 --jsonl\n"
                "  shardlab train --strategy fsdp --ranks 2 --steps 5 --ckpt-dir ckpt\n"
                "  shardlab train --strategy fsdp --ranks 2 --steps 8 --ckpt-dir ckpt --resume\n"
                "  shardlab train --config '{\"train_batch_size\": 8}' --ranks 2 --steps 5\n",
    .common = "model strategy ranks dtype batch seq steps out",
    .options = TABLE,
    .n_options = SHL_ARRAY_LEN(TABLE) - SHL_N_ROWS_HIDDEN,
    .n_hidden = SHL_N_ROWS_HIDDEN,
    .run = run_train,
};

/* bench: `shardlab plot`: figures from the records of runs and plans. */
#include "bench/cli.h"
#include "bench/figures.h"
#include "kernels/base/types.h"

#define MAX_FILES 32

typedef struct plot_options {
    int figure;
    const char *out;
    size_t device_memory;
    const char *model, *strategy;
    int64_t ranks;
} plot_options;

static const char *const FIGURES[] = {
    "memory_by_tag", "memory_vs_ranks", "loss",       "timeline", "wire",
    "throughput",    "split",           "checkpoint", "all",      NULL};

static const shl_option TABLE[] = {
    {"figure", NULL, SHL_OPT_ENUM, offsetof(plot_options, figure), 0, 0, "all", FIGURES, NULL,
     "Figure", "What to draw; all draws what the records hold."},
    {"out", NULL, SHL_OPT_STRING, offsetof(plot_options, out), 0, 0, "build/figures", NULL,
     "folder", "Figure", "Where data, scripts, svg and png go."},
    {"device-memory", NULL, SHL_OPT_BYTES, offsetof(plot_options, device_memory), 0, 0, NULL, NULL,
     "bytes, as 16GiB", "Figure", "Draws a line at the memory of one device."},
    {"model", NULL, SHL_OPT_STRING, offsetof(plot_options, model), 0, 0, NULL, NULL, NULL, "Choice",
     "The model to show when the records are of several."},
    {"ranks", NULL, SHL_OPT_INT, offsetof(plot_options, ranks), 1, 1e9, NULL, NULL, "ranks",
     "Choice", "For figures at one rank count; without it the one that most strategies share."},
    {"strategy", NULL, SHL_OPT_STRING, offsetof(plot_options, strategy), 0, 0, NULL, NULL, NULL,
     "Choice", "Shows only this strategy; split shows one in any case."},
};

/* A figure that the records or the choice leave out is told on stderr, with the command that makes its
 * records; among all figures that is no failure. */
static void
tell_left_out(shl_figure f)
{
    const shl_err *e = shl_err_get();
    shl_cli_note("left out %s: %s%s%s\n", shl_figure_name(f), e->because[0] ? e->because : e->what,
                 e->advice[0] ? "; try: " : "", e->advice);
    shl_err_clear();
}

/* Draws what was asked for; the paths are printed once everything is drawn. */
static shl_code
draw(const shl_figure_data *data, const plot_options *o)
{
    shl_figure_choice choice = {o->model, o->ranks, o->device_memory, o->out, o->strategy};
    bool drawn[SHL_FIGURE_COUNT] = {false};
    bool all = o->figure == SHL_FIGURE_COUNT, any = false;
    for (int f = 0; f < SHL_FIGURE_COUNT; f++) {
        if (!all && f != o->figure) {
            continue;
        }
        shl_code code = shl_figure_write(data, (shl_figure)f, &choice);
        if (all && code == SHL_E_USAGE) {
            tell_left_out((shl_figure)f);
            continue;
        }
        SHL_TRY(code);
        SHL_TRY(shl_figure_draw((shl_figure)f, o->out));
        drawn[f] = any = true;
    }
    if (!any) {
        (void)SHL_RAISE(SHL_E_USAGE, "the records hold nothing to draw");
        (void)shl_err_because("every figure was left out");
        return shl_err_advice("shardlab train --jsonl > FILE, or shardlab plan --jsonl > FILE");
    }
    shl_str paths = {0};
    for (int f = 0; f < SHL_FIGURE_COUNT; f++) {
        if (drawn[f]) {
            const char *name = shl_figure_name((shl_figure)f);
            shl_str_add(&paths, "%s/%s.svg\n%s/%s.png\n", o->out, name, o->out, name);
        }
    }
    shl_code code = shl_cli_print(&paths);
    shl_str_fini(&paths);
    return code;
}

static shl_code
run_plot(const shl_cli *cli)
{
    plot_options o;
    const char *files[MAX_FILES];
    int n_files = 0;
    bool help_shown = false;
    SHL_TRY(
        shl_cli_parse(&shl_command_plot, cli, &o, NULL, files, &n_files, MAX_FILES, &help_shown));
    if (help_shown) {
        return SHL_OK;
    }
    if (n_files == 0) {
        (void)SHL_RAISE(SHL_E_USAGE, "plot needs a file of records");
        (void)shl_err_because("no file is named");
        return shl_err_advice("shardlab plot RECORDS.jsonl, as written by train or plan --jsonl");
    }
    shl_figure_data data = {0};
    shl_code code = SHL_OK;
    for (int i = 0; i < n_files && code == SHL_OK; i++) {
        code = shl_figure_data_read(&data, files[i]);
    }
    if (code == SHL_OK) {
        code = draw(&data, &o);
    }
    shl_figure_data_fini(&data);
    return code;
}

const shl_command shl_command_plot = {
    .name = "plot",
    .summary = "draw figures (svg and png) from records",
    .usage = "shardlab plot RECORDS.jsonl... [options]",
    .examples = "  shardlab train --strategy ddp,zero3 --ranks 2 --steps 5 --out run.jsonl\n"
                "  shardlab plot run.jsonl --figure loss\n"
                "  shardlab plot run.jsonl --device-memory 80MiB --out build/figures\n",
    .common = "figure out",
    .words = SHL_WORDS_FILES,
    .options = TABLE,
    .n_options = SHL_ARRAY_LEN(TABLE),
    .run = run_plot,
};

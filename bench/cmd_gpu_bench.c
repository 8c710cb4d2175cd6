/* bench: `shardlab gpu-bench`: how near a GPU's kernels and whole steps come to what the card can do, in under
 * eight minutes. */
#include <stdio.h>
#include <string.h>

#include <jansson.h>

#include "bench/cli.h"
#include "bench/fingerprint.h"
#include "bench/gpu_bench.h"
#include "bench/gpu_facts.h"
#include "bench/gpu_process.h"
#include "bench/options.h"
#include "kernels/base/clock.h"
#include "kernels/base/types.h"

typedef struct bench_options {
    int part, device, attention, model;
    bool quick, relay;
    double budget_s;
    const char *out, *limits;
} bench_options;

typedef struct bench_part {
    const char *summary;
    shl_code (*run)(shl_gpu_bench *);
    double limit_s; /* of its process; of one model */
} bench_part;

/* In the order of PARTS. The limits come first: the others are told against them. */
static const char *const PARTS[] = {"limits",  "kernels", "models", "strategies",
                                    "largest", "all",     NULL};
static const bench_part parts[] = {
    {"a large product and a large copy", shl_gpu_bench_limits, 60},
    {"kernels against those", shl_gpu_bench_kernels, 90},
    {"GPT-2 models in bf16", shl_gpu_bench_models, 90},
    {"sharding at one rank", shl_gpu_bench_strategies, 90},
    {"the largest model that fits", shl_gpu_bench_largest, 120},
};
#define MODELS_PART 2
static const char *const DEVICES[] = {"cuda", "cpu", NULL};

static const shl_option TABLE[] = {
    {"part", NULL, SHL_OPT_ENUM, offsetof(bench_options, part), 0, 0, "all", PARTS, NULL, "Run",
     "What to measure, behind the limits."},
    {"model", NULL, SHL_OPT_ENUM, offsetof(bench_options, model), 0, 0, "all", shl_gpu_bench_names,
     NULL, "Run", "Of the part models: which."},
    {"device", NULL, SHL_OPT_ENUM, offsetof(bench_options, device), 0, 0, "cuda", DEVICES, NULL,
     "Run", "What is measured; cpu, with --quick, tries the way."},
    {"quick", NULL, SHL_OPT_BOOL, offsetof(bench_options, quick), 0, 0, NULL, NULL, NULL, "Run",
     "Smallest sizes, one round: no figure of it means anything."},
    {"attention", NULL, SHL_OPT_ENUM, offsetof(bench_options, attention), 0, 0, "own",
     shl_choices_attention, NULL, "Run", "Forward of models: the own kernel, or cuDNN's."},
    {"budget", NULL, SHL_OPT_DOUBLE, offsetof(bench_options, budget_s), 1, 86400, "440", NULL,
     "seconds", "Run", "What would begin later is left out, and told."},
    {"out", NULL, SHL_OPT_STRING, offsetof(bench_options, out), 0, 0, "build/gpu", NULL, "folder",
     "Output", "Lines are added to gpu-bench.jsonl in it as they come; none: no file."},
    /* Hidden: what the process of a part is told. */
    {"limits", NULL, SHL_OPT_STRING, offsetof(bench_options, limits), 0, 0, NULL, NULL, "two",
     "Run", "FLOP/s of the large product and bytes/s of the large copy, measured already."},
    {"relay", NULL, SHL_OPT_BOOL, offsetof(bench_options, relay), 0, 0, NULL, NULL, NULL, "Run",
     "Another process sums up."},
};
#define N_HIDDEN 2
#define END_S 8.0 /* that a process gets for what it is at when its time is over */

static const char *
verdict_of(const shl_gpu_row *row)
{
    if (!(row->wanted > 0.0)) {
        return "";
    }
    return row->ratio >= row->wanted ? "PASS" : "below";
}

#define GOAL "  wanted "

/* A line with a goal is also one of the table at the end. */
static void
keep_goal(shl_gpu_bench *b, const char *line)
{
    const char *goal = strstr(line, GOAL);
    if (goal) {
        shl_str_add(&b->goals, "%s\n", line);
        bool met = strstr(goal, "  PASS") != NULL, below = strstr(goal, "  below") != NULL;
        b->met += met;
        b->below += below;
        b->open += !met && !below;
    }
}

/* Steals line, which is without its end. */
static shl_code
say(shl_gpu_bench *b, shl_str *line)
{
    keep_goal(b, shl_str_get(line));
    shl_str_add(line, "\n");
    shl_code code = shl_cli_print(line);
    shl_str_fini(line);
    return code;
}

shl_code
shl_gpu_bench_tell(shl_gpu_bench *b, const shl_gpu_row *row, json_t *more)
{
    shl_str line = {0};
    shl_str_add(&line, "%-10s %-18s %12.4g %-11s", b->report.part, row->name, row->value,
                row->unit);
    if (row->limit > 0.0) {
        shl_str_add(&line, " of %10.4g  ratio %.3f", row->limit, row->ratio);
    }
    if (row->wanted > 0.0) {
        shl_str_add(&line, GOAL "%.2f  %s", row->wanted, verdict_of(row));
    }
    shl_str_add(&line, "  (%s)", row->what);
    shl_code code = say(b, &line);
    json_t *json = json_pack("{ss si ss ss ss ss sf sf sf sf ss}", "kind", "gpu-bench", "schema", 1,
                             "part", b->report.part, "name", row->name, "what", row->what, "unit",
                             row->unit, "value", row->value, "limit", row->limit, "ratio",
                             row->ratio, "wanted", row->wanted, "verdict", verdict_of(row));
    if (json && more && json_object_update(json, more) != 0) {
        json_decref(json);
        json = NULL;
    }
    json_decref(more);
    if (code != SHL_OK) {
        json_decref(json);
        return code;
    }
    SHL_TRY(shl_gpu_write(&b->report, json));
    return shl_gpu_begin(&b->report);
}

/* Whether a goal has its line already, of a process that came no further. */
static bool
is_told(const shl_gpu_bench *b, const char *name)
{
    char head[64];
    shl_strf(head, sizeof(head), "%-10s %-18s ", b->report.part, name);
    return strstr(shl_str_get(&b->goals), head) != NULL;
}

shl_code
shl_gpu_bench_miss(shl_gpu_bench *b, const char *name, double wanted, const char *why)
{
    char text[600];
    shl_str line = {0};
    const shl_err *e = shl_err_get();
    if (!why && e->code == SHL_E_INTERRUPTED) {
        return e->code;
    }
    if (b->absent && is_told(b, name)) {
        return SHL_OK;
    }
    shl_strf(text, sizeof(text), "%s", why ? why : e->what);
    if (!why) {
        shl_err_clear();
    }
    shl_str_add(&line, "%-10s %-18s not measured", b->report.part, name);
    if (wanted > 0.0) {
        shl_str_add(&line, GOAL "%.2f", wanted);
    }
    shl_str_add(&line, "  (%s)", text);
    SHL_TRY(say(b, &line));
    SHL_TRY(shl_gpu_write(&b->report,
                          json_pack("{ss si ss ss ss sn sf ss}", "kind", "gpu-bench", "schema", 1,
                                    "part", b->report.part, "name", name, "what", text, "value",
                                    "wanted", wanted, "verdict", "not measured")));
    return shl_gpu_begin(&b->report);
}

/* Who and what: the first line of a file. */
static shl_code
tell_machine(shl_gpu_bench *b)
{
    json_t *fingerprint = NULL;
    SHL_TRY(shl_fingerprint_gpu(b->device, &fingerprint));
    return shl_gpu_write(&b->report, json_pack("{ss si ss so}", "kind", "gpu-bench", "schema", 1,
                                               "part", "machine", "fingerprint", fingerprint));
}

/* ---- here, in this process ---- */

#define LIMITS_LINE "@limits "

static shl_code
run_here(shl_gpu_bench *b, const bench_options *o)
{
    if (o->part >= (int)SHL_ARRAY_LEN(parts)) {
        return SHL_RAISE(SHL_E_USAGE, "--relay is for one part");
    }
    b->report.part = PARTS[0];
    SHL_TRY(shl_gpu_begin(&b->report));
    if (!o->limits) {
        SHL_TRY(parts[0].run(b));
        shl_str line = {0};
        shl_str_add(&line, LIMITS_LINE "%.17g,%.17g\n", b->flops_per_s, b->bytes_per_s);
        shl_code code = shl_cli_print(&line);
        shl_str_fini(&line);
        SHL_TRY(code);
    }
    if (o->part == 0) {
        return SHL_OK;
    }
    b->report.part = PARTS[o->part];
    return parts[o->part].run(b);
}

/* "FLOP/s,bytes/s", as the line has them. */
static shl_code
take_limits(shl_gpu_bench *b, const char *text)
{
    if (text && sscanf(text, "%lg,%lg", &b->flops_per_s, &b->bytes_per_s) != 2) {
        SHL_RAISE(SHL_E_USAGE, "--limits %s", text);
        return shl_err_because("it takes FLOP/s and bytes/s with a comma between them");
    }
    return SHL_OK;
}

/* ---- a part in a process of its own ---- */

typedef struct part_lines {
    shl_gpu_bench *bench;
    char limits[80]; /* of the process that measured them */
    int rows;
} part_lines;

static bool
take_line(void *ctx, const char *line)
{
    part_lines *p = ctx;
    size_t len = strlen(p->bench->report.part);
    if (strncmp(line, LIMITS_LINE, strlen(LIMITS_LINE)) == 0) {
        shl_strf(p->limits, sizeof(p->limits), "%s", line + strlen(LIMITS_LINE));
        return false;
    }
    if (strncmp(line, p->bench->report.part, len) != 0 || line[len] != ' ') {
        return false;
    }
    keep_goal(p->bench, line);
    p->rows++;
    return true;
}

/* The rows that a part has goals for and that are not told yet, none of them measured. */
static shl_code
tell_absent(shl_gpu_bench *b, int part, const char *model, const char *why)
{
    b->absent = why;
    b->model = model ? model : "all";
    b->report.part = PARTS[part];
    shl_code code = parts[part].run(b);
    b->absent = NULL;
    return code;
}

/* model: of the part models; NULL: the part has none. */
static shl_code
run_apart(shl_gpu_bench *b, const bench_options *o, int part, const char *model)
{
    char text[600], budget[32], limits[80];
    shl_gpu_report *r = &b->report;
    double left_s = r->budget_s - (double)(shl_clock_ns() - r->begin_ns) * 1e-9;
    r->part = PARTS[part];
    SHL_TRY(shl_gpu_begin(r));
    if (left_s <= 0.0) {
        return tell_absent(b, part, model, "not reached: the time is over");
    }
    left_s = left_s < parts[part].limit_s ? left_s : parts[part].limit_s;
    shl_strf(budget, sizeof(budget), "%.3f", left_s > 1.0 ? left_s : 1.0);
    shl_strf(limits, sizeof(limits), "--limits=%.17g,%.17g", b->flops_per_s, b->bytes_per_s);
    const char *words[] = {"gpu-bench",
                           "--relay",
                           "--part",
                           PARTS[part],
                           "--device",
                           b->device,
                           "--attention",
                           b->attention,
                           "--out",
                           o->out,
                           "--budget",
                           budget,
                           "--model",
                           model ? model : "all",
                           b->quick ? "--quick=true" : "--quick=false",
                           part > 0 ? limits : NULL,
                           NULL};
    part_lines lines = {.bench = b};
    shl_gpu_process p = {
        .words = words, .limit_s = left_s + END_S, .take = take_line, .ctx = &lines};
    SHL_TRY(shl_gpu_process_run(r, &p));
    if (p.timed_out || p.status != 0) {
        shl_gpu_process_end(&p, text, sizeof(text));
        b->broken++;
        if (lines.rows > 0 && part > 0) {
            SHL_TRY(shl_gpu_bench_miss(b, "the rest", 0.0, text));
        }
        return tell_absent(b, part, model, text);
    }
    return part == 0 ? take_limits(b, lines.limits[0] ? lines.limits : NULL) : SHL_OK;
}

static shl_code
run_all(shl_gpu_bench *b, const bench_options *o)
{
    bool all = strcmp(PARTS[o->part], "all") == 0;
    for (int i = 0; i < (int)SHL_ARRAY_LEN(parts); i++) {
        if (i > 0 && !all && o->part != i) {
            continue;
        }
        if (i > 0 && !(b->flops_per_s > 0.0)) {
            SHL_TRY(tell_absent(b, i, shl_gpu_bench_names[o->model], "no limits to measure it by"));
            continue;
        }
        if (i != MODELS_PART) {
            SHL_TRY(run_apart(b, o, i, NULL));
            continue;
        }
        for (int k = 0; strcmp(shl_gpu_bench_names[k], "all") != 0; k++) {
            const char *model = shl_gpu_bench_names[k];
            bool chosen = strcmp(shl_gpu_bench_names[o->model], "all") == 0 ? !b->quick || k == 0
                                                                            : o->model == k;
            if (chosen) {
                SHL_TRY(run_apart(b, o, i, model));
            }
        }
    }
    return SHL_OK;
}

/* The goals once more, together. */
static shl_code
sum_up(shl_gpu_bench *b)
{
    shl_str text = {0};
    shl_str_add(&text,
                "goals: %d met, %d below, %d not measured; gpu-peers has the one against "
                "PyTorch\n%s",
                b->met, b->below, b->open, shl_str_get(&b->goals));
    shl_code code = shl_cli_print(&text);
    shl_str_fini(&text);
    SHL_TRY(code);
    if (b->broken > 0) {
        SHL_RAISE(SHL_E_SYSTEM, "%d part%s did not come to the end", b->broken,
                  b->broken == 1 ? "" : "s");
        return shl_err_because("the lines marked 'not measured' say how each ended");
    }
    return SHL_OK;
}

static shl_code
run_gpu_bench(const shl_cli *cli)
{
    bench_options o;
    bool help_shown = false;
    shl_device_survey survey;
    shl_device_card card = {.total_bytes = 0};
    SHL_TRY(shl_cli_parse(&shl_command_gpu_bench, cli, &o, NULL, NULL, NULL, 0, &help_shown));
    if (help_shown) {
        return SHL_OK;
    }
    shl_gpu_bench b = {.device = DEVICES[o.device],
                       .quick = o.quick,
                       .attention = shl_choices_attention[o.attention],
                       .model = shl_gpu_bench_names[o.model],
                       .threads = 1};
    SHL_TRY(take_limits(&b, o.limits));
    SHL_TRY(shl_gpu_facts_need(b.device, &survey));
    if (survey.n_cards > 0) {
        SHL_TRY(shl_device_card_get(b.device, 0, &card));
        b.card_bytes = card.total_bytes;
    }
    SHL_TRY(shl_gpu_report_open(o.out, "gpu-bench", o.budget_s, &b.report));
    shl_code code = SHL_OK;
    if (o.relay) {
        code = run_here(&b, &o);
    } else {
        code = tell_machine(&b);
        code = code == SHL_OK ? run_all(&b, &o) : code;
        code = code == SHL_OK ? sum_up(&b) : code;
    }
    shl_str_fini(&b.goals);
    shl_gpu_report_close(&b.report);
    return code;
}

const shl_command shl_command_gpu_bench = {
    .name = "gpu-bench",
    .summary = "speed of a GPU's kernels and steps against its limits",
    .usage = "shardlab gpu-bench [options]",
    .examples = "  shardlab gpu-bench --device cpu --quick --part limits --out gpu\n"
                "  shardlab gpu-bench --device cpu --quick --part kernels --out gpu\n",
    .options = TABLE,
    .n_options = SHL_ARRAY_LEN(TABLE) - N_HIDDEN,
    .n_hidden = N_HIDDEN,
    .run = run_gpu_bench,
};

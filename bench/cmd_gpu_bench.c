/* bench: `shardlab gpu-bench`: how near a GPU's kernels and whole steps come to what the card can do, in under
 * eight minutes. */
#include <string.h>

#include <jansson.h>

#include "bench/cli.h"
#include "bench/fingerprint.h"
#include "bench/gpu_bench.h"
#include "bench/gpu_facts.h"
#include "bench/options.h"
#include "kernels/base/types.h"

typedef struct bench_options {
    int part, device, attention;
    bool quick, tf32;
    double budget_s;
    const char *out;
} bench_options;

typedef struct bench_part {
    const char *summary;
    shl_code (*run)(shl_gpu_bench *);
} bench_part;

/* In the order of PARTS. The limits come first: the others are told against them. */
static const char *const PARTS[] = {"limits",  "kernels", "models", "strategies",
                                    "largest", "all",     NULL};
static const bench_part parts[] = {
    {"a large product and a large copy", shl_gpu_bench_limits},
    {"kernels against those", shl_gpu_bench_kernels},
    {"GPT-2 models in bf16", shl_gpu_bench_models},
    {"sharding at one rank", shl_gpu_bench_strategies},
    {"the largest model that fits", shl_gpu_bench_largest},
};
static const char *const DEVICES[] = {"cuda", "cpu", NULL};

static const shl_option TABLE[] = {
    {"part", NULL, SHL_OPT_ENUM, offsetof(bench_options, part), 0, 0, "all", PARTS, NULL, "Run",
     "What to measure, behind the limits."},
    {"device", NULL, SHL_OPT_ENUM, offsetof(bench_options, device), 0, 0, "cuda", DEVICES, NULL,
     "Run", "What is measured; cpu, with --quick, tries the way."},
    {"quick", NULL, SHL_OPT_BOOL, offsetof(bench_options, quick), 0, 0, NULL, NULL, NULL, "Run",
     "Smallest sizes, one round: no figure of it means anything."},
    {"tf32", NULL, SHL_OPT_BOOL, offsetof(bench_options, tf32), 0, 0, NULL, NULL, NULL, "Run",
     "Matrix products of fp32 may round their factors to TF32."},
    {"attention", NULL, SHL_OPT_ENUM, offsetof(bench_options, attention), 0, 0, "own",
     shl_choices_attention, NULL, "Run", "In 16 bits: the own kernel, or cuDNN's where it can."},
    {"budget", NULL, SHL_OPT_DOUBLE, offsetof(bench_options, budget_s), 1, 86400, "440", NULL,
     "seconds", "Run", "Parts that would begin later are left out, and told."},
    {"out", NULL, SHL_OPT_STRING, offsetof(bench_options, out), 0, 0, "build/gpu", NULL, "folder",
     "Output", "Lines are added to gpu-bench.jsonl in it as they come; none: no file."},
};

static const char *
verdict_of(const shl_gpu_row *row)
{
    if (!(row->wanted > 0.0)) {
        return "";
    }
    return row->ratio >= row->wanted ? "PASS" : "below";
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
        shl_str_add(&line, "  wanted %.2f  %s", row->wanted, verdict_of(row));
    }
    shl_str_add(&line, "  (%s)\n", row->what);
    shl_code code = shl_cli_print(&line);
    shl_str_fini(&line);
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

shl_code
shl_gpu_bench_miss(shl_gpu_bench *b, const char *name, double wanted, const char *why)
{
    char text[600];
    shl_str line = {0};
    const shl_err *e = shl_err_get();
    if (!why && e->code == SHL_E_INTERRUPTED) {
        return e->code;
    }
    shl_strf(text, sizeof(text), "%s", why ? why : e->what);
    if (!why) {
        shl_err_clear();
    }
    shl_str_add(&line, "%-10s %-18s not measured", b->report.part, name);
    if (wanted > 0.0) {
        shl_str_add(&line, "  wanted %.2f", wanted);
    }
    shl_str_add(&line, "  (%s)\n", text);
    shl_code code = shl_cli_print(&line);
    shl_str_fini(&line);
    SHL_TRY(code);
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

static shl_code
run_parts(shl_gpu_bench *b, int chosen)
{
    bool all = strcmp(PARTS[chosen], "all") == 0;
    for (int i = 0; i < (int)SHL_ARRAY_LEN(parts); i++) {
        b->report.part = PARTS[i];
        if (i > 0 && !all && chosen != i) {
            continue;
        }
        SHL_TRY(shl_gpu_begin(&b->report));
        if (shl_gpu_is_late(&b->report)) {
            SHL_TRY(shl_gpu_bench_miss(b, parts[i].summary, 0.0, "the time is over"));
        } else {
            SHL_TRY(parts[i].run(b));
        }
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
                       .tf32 = o.tf32,
                       .attention = shl_choices_attention[o.attention],
                       .threads = 1};
    SHL_TRY(shl_gpu_facts_need(b.device, &survey));
    if (survey.n_cards > 0) {
        SHL_TRY(shl_device_card_get(b.device, 0, &card));
        b.card_bytes = card.total_bytes;
    }
    SHL_TRY(shl_gpu_report_open(o.out, "gpu-bench", o.budget_s, &b.report));
    shl_code code = tell_machine(&b);
    if (code == SHL_OK) {
        code = run_parts(&b, o.part);
    }
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
    .n_options = SHL_ARRAY_LEN(TABLE),
    .run = run_gpu_bench,
};

/* bench: `shardlab bench`: the speed table of the parts, each beside its limit. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include <jansson.h>

#include "bench/cli.h"
#include "bench/fingerprint.h"
#include "bench/probes.h"
#include "bench/record.h"
#include "bench/speed.h"
#include "kernels/base/heap.h"
#include "kernels/base/types.h"

typedef struct bench_options {
    int64_t threads, rounds;
    int part;
    bool quick, json, md;
    const char *out, *dir;
} bench_options;

/* Names of shl_speed_parts, which the part of that place runs. */
static const char *const PARTS[] = {
    "plan",          "gemm",    "gemm-bf16", "cast",      "adamw",     "attention",
    "cross-entropy", "step",    "ranks",     "recompute", "step-bf16", "memory",
    "comm",          "offload", "save",      "all",       NULL};

static const shl_option TABLE[] = {
    {"part", NULL, SHL_OPT_ENUM, offsetof(bench_options, part), 0, 0, "all", PARTS, NULL, "Run",
     "What to measure."},
    {"threads", NULL, SHL_OPT_INT, offsetof(bench_options, threads), 1, 1024, "2", NULL, NULL,
     "Run", "Compute threads of every part."},
    {"rounds", NULL, SHL_OPT_INT, offsetof(bench_options, rounds), 1, 64, "7", NULL, NULL, "Run",
     "Measurements of each part; medians are compared."},
    {"quick", NULL, SHL_OPT_BOOL, offsetof(bench_options, quick), 0, 0, NULL, NULL, NULL, "Run",
     "Three rounds, smaller arrays, fewer steps."},
    {"dir", NULL, SHL_OPT_STRING, offsetof(bench_options, dir), 0, 0, ".", NULL, NULL, "Run",
     "Where `save` writes; a new folder in it, which is removed."},
    {"json", NULL, SHL_OPT_BOOL, offsetof(bench_options, json), 0, 0, NULL, NULL, NULL, "Output",
     "A JSON array instead of a table."},
    {"md", NULL, SHL_OPT_BOOL, offsetof(bench_options, md), 0, 0, NULL, NULL, NULL, "Output",
     "The table in Markdown."},
    {"out", NULL, SHL_OPT_STRING, offsetof(bench_options, out), 0, 0, NULL, NULL, NULL, "Output",
     "Appends the rows to this file as JSON lines, whatever stdout shows."},
};

#define ROW(path, type, member, heading, look, help)                                               \
    {                                                                                              \
        path, SHL_FIELD_##type, offsetof(shl_speed_row, member), heading, SHL_LOOK_##look, help    \
    }
static const shl_field FIELDS[] = {
    ROW("kind", TEXT, kind, NULL, PLAIN, "\"bench\""),
    ROW("schema", INT, schema, NULL, PLAIN, "version of this layout"),
    ROW("part", TEXT, part, NULL, PLAIN, "name of --part"),
    ROW("name", TEXT, name, "row", PLAIN, "what was measured"),
    ROW("what", TEXT, what, "measured / limit", PLAIN, "in words"),
    ROW("value", REAL, value, "value", SHORT, "ours"),
    ROW("reference", REAL, reference, "limit", SHORT, "what it is compared with"),
    ROW("unit", TEXT, unit, "unit", PLAIN, "of both"),
    ROW("ratio", REAL, ratio, "ratio", SHORT, "part of the limit that is reached"),
    ROW("bound", REAL, bound, "wanted", SHORT, "smallest ratio that passes"),
    ROW("spread", REAL, spread, "spread", SHORT, "deviation of the ratio over rounds"),
    ROW("share", REAL, share, NULL, PLAIN,
        "CPU time / (threads x wall time) of ours; 0: not known"),
    ROW("fma_gflops", REAL, fma_gflops, "FMA GF/s", SHORT,
        "multiply-add peak of the threads, beside the rounds"),
    ROW("traffic_gb_per_s", REAL, traffic_gb_per_s, "traffic GB/s", SHORT,
        "rate of AdamW's traffic, beside the rounds"),
    ROW("threads", INT, threads, NULL, PLAIN, "of all ranks"),
    ROW("rounds", INT, rounds, NULL, PLAIN, "measurements"),
    ROW("verdict", TEXT, verdict, "verdict", PLAIN, "PASS or below"),
    ROW("fingerprint", JSON, fingerprint, NULL, PLAIN, "machine, compiler, libraries, commit"),
};

static shl_code
measure(const shl_speed_config *c, int part, shl_speed_list *list)
{
    int n = 0;
    const shl_speed_part *parts = shl_speed_parts(&n);
    for (int i = 0; i < n; i++) {
        SHL_ASSERT(strcmp(parts[i].name, PARTS[i]) == 0);
        if (part == i || part == n) {
            if (shl_cli_stderr_is_terminal()) {
                shl_cli_note("measuring %s: %s\n", parts[i].name, parts[i].summary);
            }
            list->part = parts[i].name;
            SHL_TRY(parts[i].run(c, list));
        }
    }
    return SHL_OK;
}

/* A busy machine is no fault of the program, but it is in the numbers. */
static void
note_busy(const shl_speed_list *list)
{
    for (int i = 0; i < list->n; i++) {
        double share = list->rows[i].share;
        if (share > 0 && share < 0.9) {
            shl_cli_note("note: other work ran: %s had %.0f%% of the time of its cores\n",
                         list->rows[i].name, 100 * share);
        }
    }
}

/* One row in one line, behind `before`. */
static shl_code
add_json(const shl_speed_row *row, const char *before, shl_str *out)
{
    json_t *json = NULL;
    SHL_TRY(shl_record_json(FIELDS, SHL_ARRAY_LEN(FIELDS), row, &json));
    size_t len = json_dumpb(json, NULL, 0, JSON_COMPACT | JSON_ENSURE_ASCII);
    char *text = NULL;
    shl_code code = shl_heap_alloc(len + 1, 1, &text);
    if (code == SHL_OK) {
        (void)json_dumpb(json, text, len, JSON_COMPACT | JSON_ENSURE_ASCII);
        shl_str_add(out, "%s%s", before, text);
        shl_heap_free(&text);
    }
    json_decref(json);
    return code;
}

/* The rows as a table, or as a JSON array. */
static shl_code
print_rows(const bench_options *o, const shl_speed_list *list)
{
    const void *rows[SHL_SPEED_MAX_ROWS];
    shl_str text = {0};
    shl_code code = SHL_OK;
    for (int i = 0; i < list->n; i++) {
        rows[i] = &list->rows[i];
    }
    if (!o->json) {
        code = shl_record_table(FIELDS, SHL_ARRAY_LEN(FIELDS), rows, (size_t)list->n, o->md, &text);
    }
    for (int i = 0; o->json && i < list->n && code == SHL_OK; i++) {
        code = add_json(&list->rows[i], i == 0 ? "[" : ",\n ", &text);
    }
    if (o->json) {
        shl_str_add(&text, "]\n");
    }
    if (code == SHL_OK) {
        code = shl_cli_print(&text);
    }
    shl_str_fini(&text);
    return code;
}

static shl_code
append_rows(const char *path, const shl_speed_list *list)
{
    shl_str text = {0};
    shl_code code = SHL_OK;
    for (int i = 0; i < list->n && code == SHL_OK; i++) {
        code = add_json(&list->rows[i], "", &text);
        shl_str_add(&text, "\n");
    }
    FILE *f = code == SHL_OK ? fopen(path, "ae") : NULL;
    bool wrote = f && !text.failed && fputs(shl_str_get(&text), f) >= 0;
    bool closed = f && fclose(f) == 0;
    if (code == SHL_OK && !(wrote && closed)) {
        (void)SHL_RAISE(SHL_E_IO, "cannot append to '%s'", path);
        code = shl_err_because("%s", strerror(errno));
    }
    shl_str_fini(&text);
    return code;
}

static shl_code
run_bench(const shl_cli *cli)
{
    bench_options o;
    bool help_shown = false;
    SHL_TRY(shl_cli_parse(&shl_command_bench, cli, &o, NULL, NULL, NULL, 0, &help_shown));
    if (help_shown) {
        return SHL_OK;
    }
    SHL_TRY(shl_cli_fit_openmp(cli, 1, (int)o.threads));
    shl_speed_config config = {
        .threads = (int)o.threads,
        .rounds = o.quick ? 3 : (int)o.rounds,
        .quick = o.quick,
        .dir = o.dir,
    };
    shl_speed_list list = {.n = 0};
    SHL_TRY(measure(&config, o.part, &list));
    note_busy(&list);
    json_t *fingerprint = NULL;
    SHL_TRY(shl_fingerprint(&fingerprint));
    for (int i = 0; i < list.n; i++) {
        list.rows[i].fingerprint = fingerprint;
    }
    shl_code code = print_rows(&o, &list);
    if (code == SHL_OK && o.out) {
        code = append_rows(o.out, &list);
    }
    json_decref(fingerprint);
    return code;
}

const shl_command shl_command_bench = {
    .name = "bench",
    .summary = "speed of the parts against the limits of this machine",
    .usage = "shardlab bench [options]",
    .examples = "  shardlab bench --quick\n"
                "  shardlab bench --threads 2 --out build/bench.jsonl\n",
    .options = TABLE,
    .n_options = SHL_ARRAY_LEN(TABLE),
    .run = run_bench,
};

/* bench: `shardlab doctor`: whether this machine can do what is asked, each point with its value, what is
 * needed, and what to do. */
#include <string.h>
#include <unistd.h>

#include <jansson.h>

#include "bench/cli.h"
#include "bench/doctor.h"
#include "bench/terminal.h"
#include "kernels/base/types.h"
#include "models/named.h"

typedef struct doctor_options {
    int64_t ranks;
    const char *model, *out;
    bool json;
} doctor_options;

static const shl_option TABLE[] = {
    {"ranks", NULL, SHL_OPT_INT, offsetof(doctor_options, ranks), 1, 1e6, "2", NULL, "ranks", "Run",
     "Data-parallel ranks of the run to come."},
    {"model", NULL, SHL_OPT_STRING, offsetof(doctor_options, model), 0, 0, "gpt2-124m", NULL,
     "preset", "Run", "Its model; memory and disk are judged for it."},
    {"out", NULL, SHL_OPT_STRING, offsetof(doctor_options, out), 0, 0, "build", NULL, "folder",
     "Run", "Where checkpoints and results would go; it is not made."},
    {"json", NULL, SHL_OPT_BOOL, offsetof(doctor_options, json), 0, 0, NULL, NULL, NULL, "Output",
     "As a JSON object."},
};

static shl_verdict
worst(const shl_doctor *d)
{
    if (shl_doctor_count(d, SHL_VERDICT_FAIL) > 0) {
        return SHL_VERDICT_FAIL;
    }
    return shl_doctor_count(d, SHL_VERDICT_WARN) > 0 ? SHL_VERDICT_WARN : SHL_VERDICT_OK;
}

static void
add_lines(const shl_doctor *d, shl_str *out)
{
    static const shl_paint paints[] = {SHL_PAINT_GOOD, SHL_PAINT_DOUBT, SHL_PAINT_BAD};
    const char *plain = shl_terminal_paint(STDOUT_FILENO, SHL_PAINT_NONE);
    for (int i = 0; i < d->n; i++) {
        const shl_check *c = &d->checks[i];
        shl_str_add(out, "%s%-4s%s  %-13s  %s\n",
                    shl_terminal_paint(STDOUT_FILENO, paints[c->verdict]),
                    shl_verdict_name(c->verdict), plain, c->name, c->value);
        shl_str_add(out, "      %-13s  needs %s\n", "", c->needed);
        if (c->fix[0]) {
            shl_str_add(out, "      %-13s  fix: %s\n", "", c->fix);
        }
    }
    shl_str_add(out, "%d OK, %d WARN, %d FAIL\n", shl_doctor_count(d, SHL_VERDICT_OK),
                shl_doctor_count(d, SHL_VERDICT_WARN), shl_doctor_count(d, SHL_VERDICT_FAIL));
}

static shl_code
add_json(const shl_doctor_ask *ask, const shl_doctor *d, shl_str *out)
{
    json_t *checks = json_array();
    for (int i = 0; i < d->n; i++) {
        const shl_check *c = &d->checks[i];
        json_t *row =
            json_pack("{ss ss ss ss ss?}", "name", c->name, "verdict", shl_verdict_name(c->verdict),
                      "value", c->value, "needed", c->needed, "fix", c->fix[0] ? c->fix : NULL);
        if (!row || json_array_append_new(checks, row) != 0) {
            json_decref(checks);
            return SHL_RAISE(SHL_E_HEAP, "out of host memory for the report");
        }
    }
    json_t *report = json_pack("{ss si ss si ss ss so}", "kind", "doctor", "schema", 1, "verdict",
                               shl_verdict_name(worst(d)), "ranks", ask->ranks, "model", ask->model,
                               "out", ask->out, "checks", checks);
    char *dump = report ? json_dumps(report, JSON_INDENT(1)) : NULL;
    json_decref(report);
    if (!dump) {
        /* A value that is not UTF-8 (a folder's name) cannot be told in JSON. */
        return SHL_RAISE(SHL_E_USAGE, "the report cannot be written as JSON");
    }
    json_free_t release;
    json_get_alloc_funcs(NULL, &release);
    shl_str_add(out, "%s\n", dump);
    release(dump);
    return SHL_OK;
}

/* The first check that fails, as the error of the command. */
static shl_code
raise_failure(const shl_doctor *d)
{
    int i = 0;
    while (d->checks[i].verdict != SHL_VERDICT_FAIL) {
        i++;
    }
    const shl_check *c = &d->checks[i];
    SHL_RAISE(SHL_E_VERIFY, "%d of %d checks failed", shl_doctor_count(d, SHL_VERDICT_FAIL), d->n);
    shl_err_because("%s: %s; it needs %s", c->name, c->value, c->needed);
    return shl_err_advice("%s", c->fix);
}

static shl_code
run_doctor(const shl_cli *cli)
{
    doctor_options o;
    bool help_shown;
    SHL_TRY(shl_cli_parse(&shl_command_doctor, cli, &o, NULL, NULL, NULL, 0, &help_shown));
    if (help_shown) {
        return SHL_OK;
    }
    shl_named_model model;
    SHL_TRY(shl_model_find(o.model, &model));
    shl_doctor_ask ask = {(int)o.ranks, model.name, shl_model_formula_params(&model.config), o.out};
    shl_doctor_facts facts;
    shl_doctor doctor;
    shl_doctor_gather(&ask, "", &facts);
    shl_doctor_judge(&ask, &facts, &doctor);
    shl_str text = {0};
    shl_code code = SHL_OK;
    if (o.json) {
        code = add_json(&ask, &doctor, &text);
    } else {
        add_lines(&doctor, &text);
    }
    if (code == SHL_OK) {
        code = shl_cli_print(&text);
    }
    shl_str_fini(&text);
    if (code == SHL_OK && worst(&doctor) == SHL_VERDICT_FAIL) {
        code = raise_failure(&doctor);
    }
    return code;
}

const shl_command shl_command_doctor = {
    .name = "doctor",
    .summary = "whether this machine can run it: each point with its fix",
    .usage = "shardlab doctor [--ranks N] [--model NAME] [--out DIR] [--json]",
    .examples = "  shardlab doctor\n"
                "  shardlab doctor --ranks 4 --model gpt2-tiny --out build/runs\n"
                "  shardlab doctor --json > doctor.json\n",
    .common = "ranks model out",
    .options = TABLE,
    .n_options = SHL_ARRAY_LEN(TABLE),
    .run = run_doctor,
};

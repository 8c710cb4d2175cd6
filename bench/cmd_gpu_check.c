/* bench: `shardlab gpu-check`: whether a machine's GPU computes what it should, in under five minutes. */
#include <limits.h>
#include <string.h>
#include <sys/stat.h>

#include "bench/cli.h"
#include "bench/gpu_check.h"
#include "bench/gpu_facts.h"
#include "bench/gpu_process.h"
#include "bench/locate.h"
#include "kernels/base/clock.h"
#include "kernels/base/types.h"

typedef struct check_options {
    int part, device;
    int64_t first; /* of the part's steps */
    bool quick, relay;
    double budget_s;
    const char *out, *tests;
} check_options;

/* Names of shl_gpu_parts, in its order. */
static const char *const PARTS[] = {"facts",  "ops",        "gradients", "golden",
                                    "follow", "strategies", "twin",      "memory",
                                    "ranks",  "sanitizer",  "all",       NULL};
static const char *const DEVICES[] = {"cuda", "cpu", NULL};

static const shl_option TABLE[] = {
    {"part", NULL, SHL_OPT_ENUM, offsetof(check_options, part), 0, 0, "all", PARTS, NULL, "Run",
     "What to check."},
    {"device", NULL, SHL_OPT_ENUM, offsetof(check_options, device), 0, 0, "cuda", DEVICES, NULL,
     "Run", "What is checked; cpu tries the checks themselves."},
    {"quick", NULL, SHL_OPT_BOOL, offsetof(check_options, quick), 0, 0, NULL, NULL, NULL, "Run",
     "Smaller sizes, for a device that is emulated."},
    {"budget", NULL, SHL_OPT_DOUBLE, offsetof(check_options, budget_s), 1, 86400, "270", NULL,
     "seconds", "Run", "What would begin later is left out, and told."},
    {"tests", NULL, SHL_OPT_STRING, offsetof(check_options, tests), 0, 0, NULL, NULL, "folder",
     "Run", "Test programs that compare with golden values; default tests beside the program."},
    {"out", NULL, SHL_OPT_STRING, offsetof(check_options, out), 0, 0, "build/gpu", NULL, "folder",
     "Output", "Lines are added to gpu-check.jsonl in it as they come; none: no file."},
    /* Hidden: what the process of a part is told. */
    {"first", NULL, SHL_OPT_INT, offsetof(check_options, first), 0, 1000, "0", NULL, "number",
     "Run", "The step of the part that is the first."},
    {"relay", NULL, SHL_OPT_BOOL, offsetof(check_options, relay), 0, 0, NULL, NULL, NULL, "Run",
     "Another process counts the lines."},
};
#define N_HIDDEN 2
#define END_S 8.0 /* that a process gets for the check it is at when its time is over */

/* The folder of the test programs: what is asked, else the one beside the program when it is there. */
static const char *
tests_folder(const char *asked, char *dst, size_t dst_bytes)
{
    struct stat st;
    char path[PATH_MAX];
    (void)shl_locate_program(path, sizeof(path));
    char *slash = strrchr(path, '/');
    if (asked || !slash) {
        return asked;
    }
    *slash = '\0';
    shl_strf(dst, dst_bytes, "%s/tests", path);
    return stat(dst, &st) == 0 && S_ISDIR(st.st_mode) ? dst : NULL;
}

/* A part here, in this process. */
static shl_code
run_part(shl_gpu_check *k, const shl_gpu_part *part)
{
    k->report.part = part->name;
    SHL_TRY(shl_gpu_begin(&k->report));
    return part->run(k);
}

/* ---- a part in a process of its own ---- */

typedef struct part_lines {
    shl_gpu_report *report;
    char last[96]; /* label of the last check that was told; "": none */
} part_lines;

static bool
take_line(void *ctx, const char *line)
{
    part_lines *p = ctx;
    return shl_gpu_adopt(p->report, line, p->last, sizeof(p->last));
}

/* The step behind the last one that was told; -1 when the part has none, or no such one. */
static int
step_behind(const shl_gpu_part *part, const char *last, int first)
{
    const char *name = strchr(last, '.');
    if (!part->step || last[0] == '\0') {
        return part->step ? first : -1;
    }
    for (int i = first; name && part->step(i); i++) {
        if (strcmp(part->step(i), name + 1) == 0) {
            return i + 1;
        }
    }
    return -1;
}

/* A process that did not come to its end: the check that it was at has failed, unless it has told that itself.
 * *next: the step to go on with, -1 without one. */
static shl_code
tell_end(shl_gpu_report *r, const shl_gpu_part *part, const shl_gpu_process *p, int failed_before,
         int *next)
{
    char text[600];
    bool told = !p->timed_out && p->status == shl_code_exit_status(SHL_E_SYSTEM) &&
                r->count[SHL_GPU_FAILED] > failed_before;
    if (told) {
        return SHL_OK;
    }
    const char *step = *next >= 0 ? part->step(*next) : "";
    *next += *next >= 0;
    shl_gpu_process_end(p, text, sizeof(text));
    bool is_over = p->timed_out && shl_gpu_is_late(r);
    return shl_gpu_tell(r, step ? step : "end", is_over ? SHL_GPU_NOT_REACHED : SHL_GPU_FAILED,
                        "%s%s", is_over ? "the time was over: " : "", text);
}

static shl_code
run_apart(shl_gpu_check *k, const check_options *o, const shl_gpu_part *part)
{
    char budget[32], number[16];
    shl_gpu_report *r = &k->report;
    int64_t end_ns = r->begin_ns + (int64_t)(r->budget_s * 1e9);
    int64_t last_ns = shl_clock_ns() + (int64_t)(part->limit_s * 1e9);
    r->part = part->name;
    for (int first = 0; first >= 0;) {
        SHL_TRY(shl_gpu_begin(r));
        int64_t ns = (last_ns < end_ns ? last_ns : end_ns) - shl_clock_ns();
        if (ns <= 0) {
            return shl_gpu_tell(r, first > 0 ? part->step(first) : "", SHL_GPU_NOT_REACHED,
                                "the time is over");
        }
        const char *words[] = {"gpu-check",
                               "--relay",
                               "--part",
                               part->name,
                               "--device",
                               k->device,
                               "--out",
                               o->out,
                               "--budget",
                               budget,
                               "--first",
                               number,
                               k->quick ? "--quick=true" : "--quick=false",
                               o->tests ? "--tests" : NULL,
                               o->tests,
                               NULL};
        shl_strf(budget, sizeof(budget), "%.3f", (double)ns * 1e-9 + 1.0);
        shl_strf(number, sizeof(number), "%d", first);
        part_lines lines = {.report = r};
        shl_gpu_process p = {
            .words = words, .limit_s = (double)ns * 1e-9 + END_S, .take = take_line, .ctx = &lines};
        int failed = r->count[SHL_GPU_FAILED];
        SHL_TRY(shl_gpu_process_run(r, &p));
        if (!p.timed_out && p.status == 0) {
            return SHL_OK;
        }
        first = step_behind(part, lines.last, first);
        SHL_TRY(tell_end(r, part, &p, failed, &first));
        first = first >= 0 && part->step(first) ? first : -1;
    }
    return SHL_OK;
}

static shl_code
run_parts(shl_gpu_check *k, const check_options *o)
{
    int n = 0;
    const shl_gpu_part *parts = shl_gpu_parts(&n);
    for (int i = 0; i < n; i++) {
        bool chosen = o->part == i || o->part == n;
        if (chosen) {
            SHL_TRY(o->relay ? run_part(k, &parts[i]) : run_apart(k, o, &parts[i]));
        }
    }
    return SHL_OK;
}

static shl_code
sum_up(const shl_gpu_report *r)
{
    shl_str text = {0};
    int late = r->count[SHL_GPU_NOT_REACHED];
    shl_str_add(&text, "%d passed, %d failed, %d not possible here", r->count[SHL_GPU_PASSED],
                r->count[SHL_GPU_FAILED], r->count[SHL_GPU_NOT_POSSIBLE]);
    if (late > 0) {
        shl_str_add(&text, ", %d not reached", late);
    }
    shl_str_add(&text, "\n");
    shl_code code = shl_cli_print(&text);
    shl_str_fini(&text);
    SHL_TRY(code);
    if (r->count[SHL_GPU_FAILED] > 0) {
        SHL_RAISE(SHL_E_VERIFY, "%d checks failed", r->count[SHL_GPU_FAILED]);
        return shl_err_because("%s", r->first_failure);
    }
    if (late > 0) {
        SHL_RAISE(SHL_E_VERIFY, "not everything was checked");
        shl_err_because("the time of %.0f s was over before that", r->budget_s);
        return shl_err_advice("--budget SECONDS, or --part for what is left");
    }
    return SHL_OK;
}

static shl_code
run_gpu_check(const shl_cli *cli)
{
    check_options o;
    bool help_shown = false;
    char folder[PATH_MAX];
    SHL_TRY(shl_cli_parse(&shl_command_gpu_check, cli, &o, NULL, NULL, NULL, 0, &help_shown));
    if (help_shown) {
        return SHL_OK;
    }
    shl_gpu_check k = {.device = DEVICES[o.device], .quick = o.quick, .first_step = (int)o.first};
    k.tests = tests_folder(o.tests, folder, sizeof(folder));
    /* Without a card there is nothing to tell but why. */
    shl_device_survey survey;
    SHL_TRY(shl_gpu_facts_need(k.device, &survey));
    SHL_TRY(shl_gpu_report_open(o.out, "gpu-check", o.budget_s, &k.report));
    shl_code code = run_parts(&k, &o);
    if (code == SHL_OK && !o.relay) {
        code = sum_up(&k.report);
    }
    shl_gpu_report_close(&k.report);
    return code;
}

const shl_command shl_command_gpu_check = {
    .name = "gpu-check",
    .summary = "whether a GPU computes what it should",
    .usage = "shardlab gpu-check [options]",
    .examples = "  shardlab gpu-check --device cpu --quick --part gradients\n"
                "  shardlab gpu-check --device cpu --quick --part twin --out gpu\n",
    .options = TABLE,
    .n_options = SHL_ARRAY_LEN(TABLE) - N_HIDDEN,
    .n_hidden = N_HIDDEN,
    .run = run_gpu_check,
};

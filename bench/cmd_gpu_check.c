/* bench: `shardlab gpu-check`: whether a machine's GPU computes what it should, in under five minutes. */
#include <limits.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "bench/cli.h"
#include "bench/gpu_check.h"
#include "bench/gpu_facts.h"
#include "kernels/base/types.h"

typedef struct check_options {
    int part, device;
    bool quick;
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
     "seconds", "Run", "Parts that would begin later are left out, and told."},
    {"tests", NULL, SHL_OPT_STRING, offsetof(check_options, tests), 0, 0, NULL, NULL, "folder",
     "Run", "Test programs that compare with golden values; default tests beside the program."},
    {"out", NULL, SHL_OPT_STRING, offsetof(check_options, out), 0, 0, "build/gpu", NULL, "folder",
     "Output", "Lines are added to gpu-check.jsonl in it as they come; none: no file."},
};

/* The folder of the test programs: what is asked, else the one beside the program when it is there. */
static const char *
tests_folder(const char *asked, char *dst, size_t dst_bytes)
{
    struct stat st;
    char path[PATH_MAX];
    ssize_t n = readlink("/proc/self/exe", path, sizeof(path) - 1);
    path[n > 0 ? n : 0] = '\0';
    char *slash = strrchr(path, '/');
    if (asked || !slash) {
        return asked;
    }
    *slash = '\0';
    shl_strf(dst, dst_bytes, "%s/tests", path);
    return stat(dst, &st) == 0 && S_ISDIR(st.st_mode) ? dst : NULL;
}

static shl_code
run_parts(shl_gpu_check *k, int chosen)
{
    int n = 0;
    const shl_gpu_part *parts = shl_gpu_parts(&n);
    for (int i = 0; i < n; i++) {
        k->report.part = parts[i].name;
        if (strcmp(PARTS[chosen], "all") != 0 && chosen != i) {
            continue;
        }
        SHL_TRY(shl_gpu_begin(&k->report));
        if (shl_gpu_is_late(&k->report)) {
            SHL_TRY(shl_gpu_tell(&k->report, "", SHL_GPU_NOT_POSSIBLE, "the time of %.0f s is over",
                                 k->report.budget_s));
        } else {
            SHL_TRY(parts[i].run(k));
        }
    }
    return SHL_OK;
}

static shl_code
sum_up(const shl_gpu_report *r)
{
    shl_str text = {0};
    shl_str_add(&text, "%d passed, %d failed, %d not possible here\n", r->count[SHL_GPU_PASSED],
                r->count[SHL_GPU_FAILED], r->count[SHL_GPU_NOT_POSSIBLE]);
    shl_code code = shl_cli_print(&text);
    shl_str_fini(&text);
    SHL_TRY(code);
    if (r->count[SHL_GPU_FAILED] > 0) {
        SHL_RAISE(SHL_E_VERIFY, "%d checks failed", r->count[SHL_GPU_FAILED]);
        return shl_err_because("%s", r->first_failure);
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
    shl_gpu_check k = {.device = DEVICES[o.device], .quick = o.quick};
    k.tests = tests_folder(o.tests, folder, sizeof(folder));
    /* Without a card there is nothing to tell but why. */
    shl_device_survey survey;
    SHL_TRY(shl_gpu_facts_need(k.device, &survey));
    SHL_TRY(shl_gpu_report_open(o.out, "gpu-check", o.budget_s, &k.report));
    shl_code code = run_parts(&k, o.part);
    if (code == SHL_OK) {
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
    .n_options = SHL_ARRAY_LEN(TABLE),
    .run = run_gpu_check,
};

/* bench: gpu-check's processes: programs that test, ranks of the cards' own library, and the tools that watch
 * kernels. Each has a deadline, so that nothing here can hang the whole. */
#include <limits.h>
#include <string.h>
#include <unistd.h>

#include "bench/child.h"
#include "bench/gpu_check.h"
#include "bench/locate.h"
#include "kernels/base/types.h"

#define MAX_WORDS 40
#define SANITIZER_MS 75000 /* of one tool */

/* What a failed child says of itself; of a watching tool the lines of its first finding. */
static void
words_of(const shl_child *c, char *dst, size_t dst_bytes)
{
    static const char *const findings[] = {"========= Invalid", "========= Error: Race",
                                           "========= Error", "========= Program hit"};
    const char *text = shl_str_get(&c->output), *found = NULL;
    for (size_t i = 0; i < SHL_ARRAY_LEN(findings) && !found; i++) {
        found = strstr(text, findings[i]);
    }
    if (!found) {
        shl_child_last_words(c, dst, dst_bytes);
        return;
    }
    shl_strf(dst, dst_bytes, "%.300s", found);
    for (char *p = dst; *p; p++) {
        *p = *p == '\n' || *p == '=' ? ' ' : *p;
    }
}

/* What a rank's record says of communication memory; "" where it says nothing. */
static void
memory_of(const shl_child *c, char *dst, size_t dst_bytes)
{
    static const char key[] = "\"comm_memory\":\"";
    const char *at = strstr(shl_str_get(&c->output), key);
    const char *text = at ? at + strlen(key) : "";
    shl_strf(dst, dst_bytes, "%s%.*s", at ? "; memory: " : "", (int)strcspn(text, "\""), text);
}

/* Runs and tells. A child whose output holds `no` (NULL: nothing) met what the machine cannot do. */
static shl_code
tell_child(shl_gpu_check *k, const char *name, shl_child *c, const char *no, const char *good)
{
    char why[512], memory[256];
    shl_gpu_report *r = &k->report;
    c->stop = r->stop;
    /* The time of the whole run is also that of its children. */
    double left_s = shl_gpu_left_s(r);
    bool is_cut = left_s < (double)c->timeout_ms * 1e-3;
    c->timeout_ms = is_cut ? (int64_t)(left_s * 1e3) : c->timeout_ms;
    if (shl_child_run(c) != SHL_OK) {
        shl_child_fini(c);
        return shl_gpu_tell_error(r, name);
    }
    words_of(c, why, sizeof(why));
    if (!c->stopped && (c->timed_out || c->status != 0)) {
        shl_gpu_keep_output(r, name, shl_str_get(&c->output));
    }
    shl_code code;
    if (c->stopped) {
        code = SHL_RAISE(SHL_E_INTERRUPTED, "interrupted");
    } else if (c->timed_out) {
        code = shl_gpu_tell(r, name, is_cut ? SHL_GPU_NOT_REACHED : SHL_GPU_FAILED,
                            "%sended by force after %.0f s; last words: %s",
                            is_cut ? "the time was over: " : "", (double)c->timeout_ms * 1e-3, why);
    } else if (c->status == 0) {
        memory_of(c, memory, sizeof(memory));
        code = shl_gpu_tell(r, name, SHL_GPU_PASSED, "%s%s", good, memory);
    } else {
        bool cannot = no && strstr(shl_str_get(&c->output), no);
        code = shl_gpu_tell(r, name, cannot ? SHL_GPU_NOT_POSSIBLE : SHL_GPU_FAILED,
                            "exit code %d: %s", c->status, why);
    }
    shl_child_fini(c);
    return code;
}

/* ---- golden values ---- */

shl_code
shl_gpu_check_golden(shl_gpu_check *k)
{
    static const char *const programs[] = {"test_ops_golden", "test_ops_golden_llama",
                                           "test_engine_golden"};
    char path[PATH_MAX], folder[PATH_MAX], golden[PATH_MAX + 32], device[64], object[300];
    shl_device_survey survey;
    shl_err_clear();
    if (shl_locate("tests/golden/ops.h5", folder, sizeof(folder)) != SHL_OK) {
        shl_err_clear();
        return shl_gpu_tell(&k->report, "", SHL_GPU_NOT_POSSIBLE,
                            "no tests/golden in the folders above the program");
    }
    *strrchr(folder, '/') = '\0';
    shl_strf(golden, sizeof(golden), "SHL_GOLDEN_DIR=%s", folder);
    shl_strf(device, sizeof(device), "SHL_TEST_DEVICE=%s", k->device);
    /* They lie in another folder than the program that found it. */
    SHL_TRY(shl_device_survey_get(k->device, &survey));
    shl_strf(object, sizeof(object), "SHL_CUDA_OBJECT=%s", survey.path);
    for (size_t i = 0; i < SHL_ARRAY_LEN(programs); i++) {
        const char *const words[] = {path, NULL}, *const env[] = {device, golden, object, NULL};
        shl_strf(path, sizeof(path), "%s/%s", k->tests ? k->tests : "", programs[i]);
        if (k->quick && strstr(programs[i], "engine")) {
            SHL_TRY(shl_gpu_tell(&k->report, programs[i] + 5, SHL_GPU_NOT_POSSIBLE,
                                 "whole trainings take too long with --quick"));
            continue;
        }
        if (!k->tests || access(path, X_OK) != 0) {
            SHL_TRY(shl_gpu_tell(&k->report, programs[i] + 5, SHL_GPU_NOT_POSSIBLE,
                                 "no program %s (make tests builds it)", path));
            continue;
        }
        shl_child c = {.argv = words, .env = env, .timeout_ms = 90000};
        SHL_TRY(tell_child(k, programs[i] + 5, &c, NULL, "values of PyTorch in float64"));
    }
    return SHL_OK;
}

/* ---- ranks by the cards' library ---- */

/* --share-gpu gives the ranks of one card the environment that NCCL wants for it; nothing of it is fast. */
static shl_code
check_ranks(shl_gpu_check *k, const char *name, const char *ranks, const char *strategy,
            int64_t timeout_ms)
{
    char program[PATH_MAX];
    bool several = strcmp(ranks, "1") != 0;
    const char *const words[MAX_WORDS] = {shl_locate_program(program, sizeof(program)),
                                          "train",
                                          "--device",
                                          k->device,
                                          "--comm",
                                          "nccl",
                                          "--launch",
                                          "processes",
                                          "--ranks",
                                          ranks,
                                          "--strategy",
                                          strategy,
                                          "--layers",
                                          "1",
                                          "--width",
                                          "16",
                                          "--heads",
                                          "2",
                                          "--vocab",
                                          "67",
                                          "--data",
                                          "synthetic",
                                          "--batch",
                                          "1",
                                          "--seq",
                                          "8",
                                          "--steps",
                                          "2",
                                          "--timeout",
                                          "20",
                                          "--jsonl",
                                          several ? "--share-gpu" : NULL,
                                          NULL};
    shl_child c = {.argv = words, .timeout_ms = timeout_ms};
    /* Two ranks on one card are more than NCCL promises; one rank is not. */
    return tell_child(k, name, &c, several ? "NCCL" : "NCCL cannot be loaded",
                      several ? "two steps on one card" : "two steps of one rank");
}

shl_code
shl_gpu_check_ranks(shl_gpu_check *k)
{
    if (strcmp(k->device, "cpu") == 0) {
        return shl_gpu_tell(&k->report, "", SHL_GPU_NOT_POSSIBLE, "a cpu is no card");
    }
    SHL_TRY(check_ranks(k, "nccl_x1", "1", "zero3", 40000));
    if (k->quick) {
        return SHL_OK;
    }
    SHL_TRY(check_ranks(k, "nccl_x2_ddp", "2", "ddp", 45000));
    return check_ranks(k, "nccl_x2_zero3", "2", "zero3", 45000);
}

/* ---- sanitizer ---- */

/* compute-sanitizer of PATH or of the toolkit; NULL without one. */
static const char *
find_sanitizer(void)
{
    static const char *const names[] = {"compute-sanitizer",
                                        "/usr/local/cuda/bin/compute-sanitizer"};
    for (size_t i = 0; i < SHL_ARRAY_LEN(names); i++) {
        const char *const words[] = {names[i], "--version", NULL};
        shl_child c = {.argv = words, .timeout_ms = 20000};
        bool works = shl_child_run(&c) == SHL_OK && c.status == 0;
        shl_child_fini(&c);
        if (works) {
            return names[i];
        }
        shl_err_clear();
    }
    return NULL;
}

shl_code
shl_gpu_check_sanitizer(shl_gpu_check *k)
{
    static const char *const tools[] = {"memcheck", "racecheck"};
    static const char *const env[] = {"SHL_OMP_SET=1", NULL}; /* one program, no new start */
    char program[PATH_MAX];
    const char *tool = find_sanitizer();
    if (!tool) {
        return shl_gpu_tell(&k->report, "", SHL_GPU_NOT_POSSIBLE,
                            "compute-sanitizer is not in PATH nor in the toolkit");
    }
    if (strcmp(k->device, "cpu") == 0) {
        return shl_gpu_tell(&k->report, "", SHL_GPU_NOT_POSSIBLE, "a cpu is no card");
    }
    for (size_t i = 0; i < SHL_ARRAY_LEN(tools); i++) {
        const char *const words[] = {tool,        "--tool",
                                     tools[i],    "--error-exitcode",
                                     "77",        "--print-limit",
                                     "20",        shl_locate_program(program, sizeof(program)),
                                     "gpu-check", "--relay",
                                     "--part",    "ops",
                                     "--quick",   "--out",
                                     "none",      "--device",
                                     k->device,   NULL};
        shl_child c = {.argv = words, .env = env, .timeout_ms = SANITIZER_MS};
        SHL_TRY(
            tell_child(k, tools[i], &c, "Device not supported", "nothing found in small op cases"));
    }
    return SHL_OK;
}

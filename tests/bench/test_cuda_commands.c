/* tests/bench: the program on the emulated card, from outside: gpu-check and gpu-bench in their quick forms, what
 * they leave when they are interrupted, runs with their records, and each kind of machine that has not what a
 * run asks for. */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>
#include <jansson.h>

#include "bench/child.h"
#include "bench/gpu_report.h"
#include "kernels/base/clock.h"
#include "kernels/base/types.h"
#include "tests/support/program.h"
#include "tests/support/temp_folder.h"

#define MAX_WORDS 40
#define SMALL                                                                                      \
    "--layers", "1", "--width", "16", "--heads", "2", "--context", "8", "--vocab", "67", "--data", \
        "synthetic", "--batch", "1", "--steps", "2"

static shl_child last;

/* Runs the program with its words up to NULL, and one variable over the environment. */
static int
run_words(const char *variable, const char *const *words)
{
    const char *argv[MAX_WORDS + 2] = {program};
    const char *const env[] = {variable, NULL};
    for (int i = 0; i < MAX_WORDS && words[i]; i++) {
        argv[i + 1] = words[i];
    }
    shl_child_fini(&last);
    last = (shl_child){.argv = argv, .env = variable ? env : NULL, .timeout_ms = 60000};
    assert_int_equal(shl_child_run(&last), SHL_OK);
    assert_false(last.timed_out);
    return last.status;
}
#define RUN(variable, ...) run_words(variable, (const char *const[]){__VA_ARGS__, NULL})

static const char *
output(void)
{
    return shl_str_get(&last.output);
}

static void
expect(int status, const char *part)
{
    if (last.status != status || !strstr(output(), part)) {
        fail_msg("exit %d, expected %d with \"%s\": %s", last.status, status, part, output());
    }
}

/* Lines of a file of JSON; each must be one. `failed` counts verdicts of that word. */
static int
count_lines(const char *path, int *failed)
{
    char line[4096];
    int n = 0;
    FILE *f = fopen(path, "r");
    assert_non_null(f);
    *failed = 0;
    while (fgets(line, sizeof(line), f)) {
        json_t *row = json_loads(line, 0, NULL);
        assert_non_null(row);
        const char *verdict = json_string_value(json_object_get(row, "verdict"));
        *failed += verdict && strcmp(verdict, "failed") == 0;
        json_decref(row);
        n++;
    }
    (void)fclose(f);
    return n;
}

static void
test_cuda_commands_check_runs_every_part(void **state)
{
    static const char *const parts[] = {
        "facts",      "ops.gelu_forward", "gradients.gpt", "golden", "follow",
        "strategies", "twin.fsdp",        "memory.card",   "ranks",  "sanitizer"};
    char path[64];
    int failed = 0, lines = 0;
    SHL_UNUSED(state);
    int status = RUN(NULL, "gpu-check", "--quick", "--tests", "/nonexistent", "--out", folder);
    for (size_t i = 0; i < SHL_ARRAY_LEN(parts); i++) {
        expect(status, parts[i]);
    }
    for (const char *at = output(); (at = strchr(at, '\n')) != NULL; at++) {
        lines++;
    }
    (void)snprintf(path, sizeof(path), "%s/gpu-check.jsonl", folder);
    assert_int_equal(count_lines(path, &failed), lines - 1); /* the sum is no check */
    if (failed > 0) {
        fail_msg("%s", output());
    }
    assert_int_equal(status, 0);
    expect(0, " passed, 0 failed, ");
    expect(0, "passed             strategies.bf16_x4");
    expect(0, "passed             twin.fsdp_x2_bf16");
    expect(0, "passed             gradients.llama");
    expect(0, "memory.limit");
}

/* A check that fails is the exit code of the whole, and is named: here the test programs are ones that always
 * fail. */
static void
test_cuda_commands_check_tells_failures(void **state)
{
    char path[64];
    SHL_UNUSED(state);
    (void)snprintf(path, sizeof(path), "%s/test_ops_golden", folder);
    assert_int_equal(symlink("/bin/false", path), 0);
    RUN(NULL, "gpu-check", "--quick", "--part", "golden", "--tests", folder, "--out", "none");
    expect(1, "failed             golden.ops_golden");
    expect(1, "not possible here  golden.ops_golden_llama");
    expect(1, "error: 1 checks failed");
    expect(1, "because: golden.ops_golden: exit code 1");
}

/* A kernel that takes the card away, or ends the process, costs its own check: what comes behind it is begun in a
 * new process. */
static void
test_cuda_commands_check_goes_on_behind_a_lost_card(void **state)
{
    SHL_UNUSED(state);
    RUN("SHL_EMULATED_LOST=cross_entropy", "gpu-check", "--quick", "--part", "ops", "--out",
        "none");
    expect(1, "failed             ops.cross_entropy");
    expect(1, "status 700: cudaErrorIllegalAddress");
    expect(1, "27 passed, 1 failed, 0 not possible here");
    RUN("SHL_EMULATED_LOST=!cross_entropy", "gpu-check", "--quick", "--part", "ops", "--out",
        "none");
    expect(1, "failed             ops.cross_entropy");
    expect(1, "killed by signal 6");
    expect(1, "27 passed, 1 failed, 0 not possible here");
}

/* What was told before the interrupt stays, line by line. */
static void
test_cuda_commands_check_ends_cleanly(void **state)
{
    char path[64], out[128];
    int status = 0, failed = 0;
    SHL_UNUSED(state);
    (void)snprintf(path, sizeof(path), "%s/cut", folder);
    (void)snprintf(out, sizeof(out), "%s/gpu-check.jsonl", path);
    (void)fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        FILE *quiet = freopen("/dev/null", "w", stdout);
        (void)execl(program, program, "gpu-check", "--quick", "--out", path, (char *)NULL);
        _exit(quiet ? 127 : 126);
    }
    for (int i = 0; i < 2000 && access(out, F_OK) != 0; i++) {
        shl_clock_sleep_ns(2000000);
    }
    assert_int_equal(kill(pid, SIGINT), 0);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status) && (WEXITSTATUS(status) == 130 || WEXITSTATUS(status) == 0));
    assert_true(count_lines(out, &failed) >= 0);
    assert_int_equal(failed, 0);
}

static void
test_cuda_commands_bench_measures(void **state)
{
    char path[64];
    int failed = 0;
    SHL_UNUSED(state);
    assert_int_equal(RUN(NULL, "gpu-bench", "--quick", "--part", "limits", "--out", folder), 0);
    (void)snprintf(path, sizeof(path), "%s/gpu-bench.jsonl", folder);
    assert_true(count_lines(path, &failed) >= 3); /* machine, product, copy */
    expect(0, "copy");
    RUN(NULL, "gpu-bench", "--quick", "--part", "models", "--model", "gpt2-124m", "--attention",
        "cudnn", "--out", "none");
    expect(0, "attention forward cudnn 9.0.0, backward own (tensor cores))");
}

/* Without limits there is nothing to compare with; every goal is told all the same. */
static void
test_cuda_commands_bench_tells_what_it_did_not_measure(void **state)
{
    static const char *const goals[] = {"layernorm back", "residual add",   "classifier",
                                        "adamw fp32",     "gpt2-124m busy", "gpt2-1.5b",
                                        "zero3",          "fsdp",           "largest    largest"};
    SHL_UNUSED(state);
    RUN("SHL_EMULATED_LOST=!linear_forward", "gpu-bench", "--quick", "--out", "none");
    expect(5, "limits     product and copy   not measured  (its process was killed by signal 6");
    expect(5, "goals: 0 met, 0 below, 17 not measured");
    expect(5, "error: 1 part did not come to the end");
    for (size_t i = 0; i < SHL_ARRAY_LEN(goals); i++) {
        expect(5, goals[i]);
    }
    /* What a part measured before its end stays, and only the rest is missing. */
    RUN("SHL_EMULATED_LOST=!cross_entropy", "gpu-bench", "--quick", "--part", "kernels", "--out",
        "none");
    expect(5, "kernels    the rest           not measured  (its process was killed by signal 6");
    expect(5, "kernels    classifier         not measured  wanted 0.80");
    assert_null(strstr(output(), "residual add       not measured"));
}

/* A word at the beginning of a line does not make it one of a check. */
static void
test_cuda_commands_check_knows_its_lines(void **state)
{
    static const struct {
        const char *line, *label;
    } lines[] = {{"passed             ops.gelu_forward                     0.01 s  well",
                  "ops.gelu_forward"},
                 {"not possible here  ops                                  0.01 s  why", "ops"},
                 {"failed             opsy.gelu_forward                    0.01 s  no", NULL},
                 {"failed to initialize NVML: ops not there", NULL},
                 {"failed", NULL},
                 {"failed             ", NULL}};
    shl_gpu_report r = {.part = "ops"};
    SHL_UNUSED(state);
    for (size_t i = 0; i < SHL_ARRAY_LEN(lines); i++) {
        char label[96] = "";
        assert_int_equal(shl_gpu_adopt(&r, lines[i].line, label, sizeof(label)),
                         lines[i].label != NULL);
        assert_string_equal(label, lines[i].label ? lines[i].label : "");
    }
    assert_int_equal(r.count[SHL_GPU_PASSED] + r.count[SHL_GPU_NOT_POSSIBLE], 2);
    assert_int_equal(r.count[SHL_GPU_FAILED], 0);
}

/* One whose time is over has its grace to end what it started itself. */
static void
test_cuda_commands_late_children_have_their_grace(void **state)
{
    static const char *const slow[] = {
        "/bin/sh", "-c", "trap 'sleep 0.2; echo ended; exit 3' INT; sleep 30 & wait", NULL};
    static const int64_t grace_ms[] = {20000, 20};
    SHL_UNUSED(state);
    for (size_t i = 0; i < SHL_ARRAY_LEN(grace_ms); i++) {
        shl_child c = {.argv = slow, .timeout_ms = 100, .grace_ms = grace_ms[i]};
        assert_int_equal(shl_child_run(&c), SHL_OK);
        assert_true(c.timed_out);
        assert_int_equal(c.status, i == 0 ? 3 : 128 + SIGKILL);
        assert_string_equal(shl_str_get(&c.output), i == 0 ? "ended\n" : "");
        shl_child_fini(&c);
    }
}

static void
test_cuda_commands_missing_parts_are_named(void **state)
{
    SHL_UNUSED(state);
    RUN("SHL_CUDA_OBJECT=/nonexistent/half.so", "train", "--device", "cuda", SMALL);
    expect(2, "because: its shared object is not at: /nonexistent/half.so");
    RUN("SHL_CUDA_OBJECT=/etc/passwd", "train", "--device", "cuda", SMALL);
    expect(5, "the CUDA half does not load: /etc/passwd");
    RUN("SHL_EMULATED_DEVICES=0", "train", "--device", "cuda", SMALL);
    expect(2, "error: no GPU");
    RUN("SHL_EMULATED_DEVICES=0", "gpu-check", "--out", "none");
    expect(2, "error: no GPU");
    RUN("SHL_EMULATED_DEVICES=-1", "gpu-bench", "--out", "none");
    expect(5, "CUDA driver version is insufficient");
    expect(5, "this build needs emulation, and libcuda.so.1");
    RUN(NULL, "train", "--device", "cuda", "--comm", "nccl", SMALL);
    expect(2, "try: --launch processes");
    RUN("SHL_NCCL_LIBRARY=/nonexistent/nccl.so", "train", "--device", "cuda", "--comm", "nccl",
        "--launch", "processes", SMALL);
    expect(5, "error: NCCL cannot be loaded: /nonexistent/nccl.so");
    RUN(NULL, "train", "--device", "cuda", "--comm", "nccl", "--ranks", "2", SMALL);
    expect(2, "error: 2 ranks and 1 GPU");
    expect(2, "try: --ranks 1, --share-gpu");
    RUN("SHL_EMULATED_DEVICES=3", "train", "--device", "cuda", "--ranks", "4", SMALL);
    expect(2, "error: 4 ranks and 3 GPUs");
    RUN(NULL, "train", "--device", "cuda", "--comm", "local", "--launch", "processes", "--ranks",
        "2", SMALL);
    expect(2, "ranks as processes that talk by \"local\"");
    RUN("SHL_EMULATED_DEVICES=2", "train", "--device", "cuda", "--ranks", "2", "--share-gpu",
        SMALL);
    assert_null(strstr(output(), "sets the pace"));
    RUN(NULL, "train", "--device", "cuda", "--attention", "sdpa", SMALL);
    expect(2, "--attention");
}

/* Two threads on one card, one rank alone: its record names the card and leaves nothing of the driver's memory
 * unexplained. */
static void
test_cuda_commands_train_and_record(void **state)
{
    static const char *const fields[] = {"\"card\":\"emulated on the CPU\"",
                                         "\"kernel\":{\"product\":\"cuBLASLt (fp32)\","
                                         "\"attention_forward\":\"own (CUDA cores)\","
                                         "\"attention_backward\":\"own (CUDA cores)\"}",
                                         "\"rest_bytes\":0", "\"gpu\":{\"cards\":[{\"name\":"};
    SHL_UNUSED(state);
    RUN(NULL, "train", "--device", "cuda", "--strategy", "zero2", "--ranks", "2", "--comm", "local",
        "--dtype", "bf16", "--jsonl", SMALL);
    expect(0, "\"strategy\":\"zero2\"");
    RUN(NULL, "train", "--device", "cuda", "--strategy", "ddp", "--jsonl", SMALL);
    for (size_t i = 0; i < SHL_ARRAY_LEN(fields); i++) {
        expect(0, fields[i]);
    }
    RUN(NULL, "plan", "--as", "cuda", "--strategy", "zero2", "--ranks", "2", "--comm", "local",
        "--layers", "1", "--width", "16", "--heads", "2", "--vocab", "67", "--batch", "1");
    expect(0, "zero2");
}

/* What is asked for runs and is told, or is refused: nothing else runs in its place. */
static void
test_cuda_commands_choices_of_kernels(void **state)
{
    static const struct {
        const char *dtype, *scale, *dropout, *because;
    } refused[] = {{"fp32", "none", "0", "because: this run computes in fp32"},
                   {"fp16", "dynamic", "0", "because: this run computes in fp16"},
                   {"bf16", "none", "0.1", "because: attention-dropout is 0.1"}};
    SHL_UNUSED(state);
    RUN(NULL, "train", "--device", "cuda", "--dtype", "bf16", "--attention", "cudnn", SMALL);
    expect(0, "Kernels of the first row: attention forward cudnn 9.0.0, backward own (tensor "
              "cores); products cuBLASLt.\n");
    RUN(NULL, "train", "--device", "cuda", "--tf32", SMALL);
    expect(0, "backward own (CUDA cores); products cuBLASLt (TF32).\n");
    for (size_t i = 0; i < SHL_ARRAY_LEN(refused); i++) {
        RUN(NULL, "train", "--device", "cuda", "--attention", "cudnn", "--dtype", refused[i].dtype,
            "--loss-scale", refused[i].scale, "--attention-dropout", refused[i].dropout, SMALL);
        expect(2, "error: attention by cuDNN is for bf16 without dropout");
        expect(2, refused[i].because);
    }
    RUN(NULL, "train", "--attention", "cudnn", SMALL);
    expect(2, "error: attention by cuDNN on device cpu");
    RUN(NULL, "train", "--tf32", SMALL);
    expect(2, "error: tf32 on device cpu");
}

/* The slowest sets the pace, which only a warning can tell: many small units of an older type are faster than
 * few of a newer one. */
static void
test_cuda_commands_mixed_cards_are_warned_of(void **state)
{
    static const char *const others[] = {"SHL_EMULATED_OTHER=1,newer and smaller,9,0,2",
                                         "SHL_EMULATED_OTHER=1,older and larger,8,0,16"};
    static const char *const want[] = {
        "the cards are of 2 types (emulated on the CPU; newer and smaller): the slowest, "
        "newer and smaller of rank 1, sets the pace\n",
        "the cards are of 2 types (emulated on the CPU; older and larger): the slowest, "
        "emulated on the CPU of rank 0, sets the pace\n"};
    const char *argv[] = {program, "train", "--device", "cuda", "--ranks", "2", SMALL, NULL};
    SHL_UNUSED(state);
    for (size_t i = 0; i < SHL_ARRAY_LEN(others); i++) {
        const char *const env[] = {"SHL_EMULATED_DEVICES=2", others[i], NULL};
        shl_child c = {.argv = argv, .env = env, .timeout_ms = 60000};
        assert_int_equal(shl_child_run(&c), SHL_OK);
        if (c.status != 0 || !strstr(shl_str_get(&c.output), want[i])) {
            fail_msg("exit %d: %s", c.status, shl_str_get(&c.output));
        }
        shl_child_fini(&c);
    }
}

static void
test_cuda_commands_doctor_and_info_name_the_card(void **state)
{
    SHL_UNUSED(state);
    RUN(NULL, "info");
    assert_non_null(strstr(output(), "gpu        emulated on the CPU; driver 13.0, runtime 13.0"));
    RUN("SHL_EMULATED_DEVICES=0", "info", "--json");
    assert_non_null(strstr(output(), "\"gpu\": null"));
    RUN(NULL, "doctor", "--model", "gpt2-tiny", "--out", folder);
    assert_non_null(strstr(output(), "card 0: emulated on the CPU, 64.0 GiB"));
    RUN("SHL_EMULATED_DEVICES=-1", "doctor", "--model", "gpt2-tiny", "--out", folder);
    assert_non_null(strstr(output(), "WARN  GPUs"));
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cuda_commands_check_runs_every_part),
        cmocka_unit_test(test_cuda_commands_check_tells_failures),
        cmocka_unit_test(test_cuda_commands_check_goes_on_behind_a_lost_card),
        cmocka_unit_test(test_cuda_commands_check_ends_cleanly),
        cmocka_unit_test(test_cuda_commands_bench_measures),
        cmocka_unit_test(test_cuda_commands_bench_tells_what_it_did_not_measure),
        cmocka_unit_test(test_cuda_commands_check_knows_its_lines),
        cmocka_unit_test(test_cuda_commands_late_children_have_their_grace),
        cmocka_unit_test(test_cuda_commands_missing_parts_are_named),
        cmocka_unit_test(test_cuda_commands_train_and_record),
        cmocka_unit_test(test_cuda_commands_choices_of_kernels),
        cmocka_unit_test(test_cuda_commands_mixed_cards_are_warned_of),
        cmocka_unit_test(test_cuda_commands_doctor_and_info_name_the_card),
    };
    if (!find_program()) {
        print_error("no program beside the tests\n");
        return 1;
    }
    int failed = cmocka_run_group_tests(tests, make_folder, remove_folder);
    shl_child_fini(&last);
    return failed;
}

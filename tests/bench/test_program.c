/* tests/bench: the built program from outside: help, forms of output, exit codes, and every kind of bad
 * input: one message on stderr, the documented code, nothing on stdout. */
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>
#include <jansson.h>

#include "bench/cli.h"
#include "kernels/base/clock.h"
#include "kernels/base/types.h"
#include "kernels/device/sanitize.h"
#include "tests/support/program.h"
#include "tests/support/temp_folder.h"

#define MAX_WORDS 64
#define SMALL                                                                                      \
    "--layers", "1", "--width", "32", "--heads", "2", "--context", "16", "--batch", "2",           \
        "--steps", "3", "--threads", "1"

/* What a call left behind. */
typedef struct outcome {
    int status;
    char out[1 << 18], err[1 << 14];
    double seconds; /* of the processor */
    long rss_kib;
} outcome;
static outcome seen;

static const char *
in_folder(const char *name)
{
    static char paths[16][128];
    static int next;
    char *path = paths[next++ % 16];
    (void)snprintf(path, sizeof(paths[0]), "%s/%s", folder, name);
    return path;
}

static void
slurp(const char *path, char *dst, size_t dst_bytes)
{
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    size_t n = fread(dst, 1, dst_bytes - 1, f);
    dst[n] = '\0';
    (void)fclose(f);
}

/* Starts the program with its words up to NULL; stdout and stderr go to files. */
static pid_t
start(const char *stdout_path, const char *const *words)
{
    const char *argv[MAX_WORDS + 2] = {program};
    for (int i = 0; i < MAX_WORDS && words[i]; i++) {
        argv[i + 1] = words[i];
    }
    pid_t pid = fork();
    if (pid == 0) {
        union {
            const char *const *in;
            char *const *out;
        } as = {.in = argv};
        int out = open(stdout_path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
        int err = open(in_folder("stderr"), O_WRONLY | O_CREAT | O_TRUNC, 0600);
        if (dup2(out, 1) < 0 || dup2(err, 2) < 0) {
            _exit(126);
        }
        (void)execv(program, as.out);
        _exit(127);
    }
    assert_true(pid > 0);
    return pid;
}

static void
finish(pid_t pid, const char *stdout_path)
{
    int status = 0;
    struct rusage usage;
    assert_int_equal(wait4(pid, &status, 0, &usage), pid);
    seen.status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    seen.rss_kib = usage.ru_maxrss;
    seen.seconds = (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
                   (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) * 1e-6;
    seen.out[0] = '\0';
    if (strcmp(stdout_path, "/dev/full") != 0) {
        slurp(stdout_path, seen.out, sizeof(seen.out));
    }
    slurp(in_folder("stderr"), seen.err, sizeof(seen.err));
}

static int
run_words(const char *const *words)
{
    char path[128];
    (void)snprintf(path, sizeof(path), "%s", in_folder("stdout"));
    finish(start(path, words), path);
    return seen.status;
}
#define RUN(...) run_words((const char *const[]){__VA_ARGS__, NULL})

/* A call that must fail: the exit code, a part of the message, silence on stdout, one error. */
static void
expect_refusal(int status, const char *part, const char *const *words)
{
    run_words(words);
    const char *first = strstr(seen.err, "error: ");
    if (seen.status != status || seen.out[0] || !first || strstr(first + 1, "error: ") ||
        !strstr(seen.err, part)) {
        fail_msg("%s %s %s %s: exit %d, expected %d with \"%s\"; stderr: %s; stdout: %.80s",
                 words[0], words[1], words[1] ? words[2] : "", words[1] && words[2] ? words[3] : "",
                 seen.status, status, part, seen.err, seen.out);
    }
}
#define REFUSED(status, part, ...)                                                                 \
    expect_refusal(status, part, (const char *const[]){__VA_ARGS__, NULL, NULL, NULL, NULL})

static void
write_text(const char *path, const char *text, size_t n)
{
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(text, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
}

static void
test_program_help_is_the_same_everywhere(void **state)
{
    SHL_UNUSED(state);
    static char first[1 << 15];
    size_t n;
    const shl_command *const *table = shl_command_table(&n);
    for (size_t i = 0; i < n; i++) {
        assert_int_equal(RUN("help", table[i]->name), 0);
        assert_string_equal(seen.err, "");
        shl_strf(first, sizeof(first), "%s", seen.out);
        assert_int_equal(RUN(table[i]->name, "--help"), 0);
        assert_string_equal(seen.out, first);
        for (size_t k = 0; k < table[i]->n_options; k++) {
            char flag[64];
            (void)snprintf(flag, sizeof(flag), "--%s", table[i]->options[k].name);
            assert_non_null(strstr(first, flag));
        }
        assert_null(strstr(first, "--result-fd"));
    }
    static const char *const promised[] = {
        "--model",         "--strategy", "--ranks",      "--batch",        "--seq",
        "--accum",         "--steps",    "--lr",         "--schedule",     "--schedule-steps",
        "--warmup",        "--betas",    "--eps",        "--min-lr-ratio", "--weight-decay",
        "--clip",          "--seed",     "--data",       "--reduce-every", "--bucket",
        "--prefetch",      "--threads",  "--device",     "--as",           "--launch",
        "--device-memory", "--ckpt-dir", "--save-every", "--resume",       "--out",
    };
    assert_int_equal(RUN("help", "train"), 0);
    for (size_t i = 0; i < SHL_ARRAY_LEN(promised); i++) {
        assert_non_null(strstr(seen.out, promised[i]));
    }
}

static void
test_program_alone_prints_a_short_usage(void **state)
{
    SHL_UNUSED(state);
    int lines = 0;
    assert_int_equal(run_words((const char *const[]){NULL}), 2);
    assert_string_equal(seen.out, "");
    for (const char *p = seen.err; *p; p++) {
        lines += *p == '\n';
    }
    assert_true(lines > 2 && lines <= 14);
}

static void
test_program_words_that_are_unknown(void **state)
{
    SHL_UNUSED(state);
    REFUSED(2, "trian", "trian");
    REFUSED(2, "train", "help", "trian");
    REFUSED(2, "--stepz", "train", "--stepz", "3");
    REFUSED(2, "gpt2-tiny", "train", "--model", "gpt2-tine");
    REFUSED(2, "zero3", "train", "--strategy", "zero33");
    REFUSED(2, "unexpected", "train", "fast");
    REFUSED(2, "cosine", "train", "--schedule", "cosin");
    REFUSED(2, "virtual", "train", "--device", "virtuel");
    REFUSED(2, "more than one", "train", "--json", "--csv");
    REFUSED(2, "models", "info", "modules");
    REFUSED(2, "--steps", "plan", "--steps", "3");
}

static void
test_program_numbers_that_make_no_sense(void **state)
{
    SHL_UNUSED(state);
    static const struct {
        const char *flag, *value;
    } rows[] = {
        {"--ranks", "0"},
        {"--ranks", "-1"},
        {"--ranks", "65"},
        {"--ranks", "two"},
        {"--ranks", "1.5"},
        {"--ranks", ""},
        {"--batch", "0"},
        {"--batch", "-4"},
        {"--batch", "1e30"},
        {"--seq", "0"},
        {"--seq", "129"},
        {"--seq", "many"},
        {"--accum", "0"},
        {"--accum", "9999999999999"},
        {"--steps", "0"},
        {"--steps", "-3"},
        {"--steps", "1.5"},
        {"--lr", "nan"},
        {"--lr", "inf"},
        {"--lr", "-0.1"},
        {"--lr", "fast"},
        {"--betas", "0.9"},
        {"--betas", "0.9,1"},
        {"--betas", "0.9,nan"},
        {"--eps", "0"},
        {"--eps", "nan"},
        {"--clip", "-1"},
        {"--clip", "nan"},
        {"--weight-decay", "-1"},
        {"--min-lr-ratio", "2"},
        {"--warmup", "-1"},
        {"--schedule-steps", "0"},
        {"--bucket", "0"},
        {"--bucket", "-1"},
        {"--bucket", "1e40"},
        {"--prefetch", "-1"},
        {"--threads", "0"},
        {"--threads", "100000"},
        {"--device-memory", "0"},
        {"--device-memory", "-2GiB"},
        {"--device-memory", "2GB?"},
        {"--seed", "-1"},
        {"--seed", "nan"},
        {"--timeout", "0"},
        {"--save-every", "0"},
        {"--layers", "0"},
        {"--layers", "100000"},
        {"--layers", "-1"},
        {"--width", "1e30"},
        {"--vocab", "0"},
        {"--save-every", "2"},
        {"--reduce-every", "often"},
    };
    for (size_t i = 0; i < SHL_ARRAY_LEN(rows); i++) {
        REFUSED(2, "because", "train", rows[i].flag, rows[i].value);
    }
    REFUSED(2, "do not divide", "train", "--heads", "3");
    REFUSED(2, "warm-up", "train", "--schedule", "linear", "--warmup", "20", "--steps", "10");
    REFUSED(2, "boundary", "train", "--strategy", "zero2", "--reduce-every", "boundary");
    REFUSED(2, "needs a value", "train", "--ranks");
    REFUSED(2, "--ckpt-dir", "train", "--resume");
    REFUSED(2, "no data", "train", "--device", "virtual", "--ckpt-dir", in_folder("none"));
    REFUSED(2, "too large", "plan", "--layers", "10000", "--width", "10000000", "--heads", "1");
}

static void
test_program_data_that_cannot_be_used(void **state)
{
    SHL_UNUSED(state);
    const char *empty = in_folder("empty.txt"), *small = in_folder("small.txt");
    write_text(empty, "", 0);
    write_text(small, "to be or not to be, that is the question", 40);
    REFUSED(5, "missing.txt", "train", "--data", in_folder("missing.txt"), "--out",
            in_folder("unborn.jsonl"), SMALL);
    assert_int_not_equal(access(in_folder("unborn.jsonl"), F_OK), 0);
    REFUSED(2, "empty", "train", "--data", empty, SMALL);
    REFUSED(5, "error: ", "train", "--data", folder, SMALL);
    REFUSED(2, "global batch", "train", "--data", small, "--ranks", "2", SMALL);
    REFUSED(2, "vocab", "train", "--data", small, "--vocab", "64", "--ranks", "1", "--layers", "1",
            "--batch", "1", "--seq", "8");
    if (geteuid() != 0) {
        assert_int_equal(chmod(small, 0), 0);
        REFUSED(5, "small.txt", "train", "--data", small, SMALL);
    }
}

static void
test_program_full_disk_is_reported(void **state)
{
    SHL_UNUSED(state);
    REFUSED(5, "/dev/full", "train", "--out", "/dev/full", SMALL);
    REFUSED(5, "cannot append", "train", "--out", in_folder("no/such/folder"), SMALL);
    static const char *const forms[] = {"--jsonl", "--csv", "--json", "--md"};
    for (size_t i = 0; i < SHL_ARRAY_LEN(forms); i++) {
        const char *const words[] = {"train", forms[i], SMALL, NULL};
        finish(start("/dev/full", words), "/dev/full");
        assert_int_equal(seen.status, 5);
        assert_non_null(strstr(seen.err, "stdout"));
    }
}

/* The first shard file of the newest checkpoint below dir. */
static void
spoil_shard(const char *dir, off_t size, int flip_at)
{
    char path[256];
    (void)snprintf(path, sizeof(path), "%s/step-00000003/shard-00000-of-00002.h5", dir);
    if (size >= 0) {
        assert_int_equal(truncate(path, size), 0);
        return;
    }
    FILE *f = fopen(path, "r+b");
    assert_non_null(f);
    assert_int_equal(fseek(f, flip_at, SEEK_SET), 0);
    int byte = fgetc(f);
    assert_int_equal(fseek(f, flip_at, SEEK_SET), 0);
    assert_true(fputc(byte ^ 1, f) != EOF);
    assert_int_equal(fclose(f), 0);
}

static void
test_program_checkpoints_that_cannot_be_used(void **state)
{
    SHL_UNUSED(state);
    char dir[128];
    (void)snprintf(dir, sizeof(dir), "%s/ckpt", folder);
#define RESUME "train", "--strategy", "zero3", "--ranks", "2", "--ckpt-dir", dir
    REFUSED(5, "ckpt", RESUME, SMALL, "--resume");
    assert_int_equal(RUN(RESUME, SMALL), 0);
    assert_int_equal(RUN(RESUME, SMALL, "--steps", "5", "--resume"), 0);
    REFUSED(2, "step 5", RESUME, SMALL, "--resume");
    REFUSED(2, "model", RESUME, SMALL, "--steps", "9", "--resume", "--layers", "2");
    REFUSED(2, "seed", RESUME, SMALL, "--steps", "9", "--resume", "--seed", "5");
    REFUSED(2, "warmup", RESUME, SMALL, "--steps", "9", "--resume", "--warmup", "5");

    char command[512];
    (void)snprintf(command, sizeof(command), "rm -rf %s", dir);
    assert_int_equal(system(command), 0);
    assert_int_equal(RUN(RESUME, SMALL), 0);
    spoil_shard(dir, -1, 5000);
    REFUSED(1, "shard-00000", RESUME, SMALL, "--steps", "9", "--resume");
    spoil_shard(dir, 100, 0);
    REFUSED(1, "shard-00000", RESUME, SMALL, "--steps", "9", "--resume");
    /* A folder that cannot be made. */
    REFUSED(5, "/proc", "train", "--ckpt-dir", "/proc/shardlab", SMALL);
#undef RESUME
}

static int64_t
count_lines(const char *text)
{
    int64_t n = 0;
    for (; *text; text++) {
        n += *text == '\n';
    }
    return n;
}

static void
test_program_forms_tell_the_same_run(void **state)
{
    SHL_UNUSED(state);
    json_error_t error;
    const char *out = in_folder("records.jsonl");
    assert_int_equal(
        RUN("train", "--jsonl", "--strategy", "zero2,fsdp", "--ranks", "2", "--out", out, SMALL),
        0);
    assert_string_equal(seen.err, "");
    assert_int_equal(count_lines(seen.out), 2 * (3 + 1));
    static char stored[1 << 18];
    slurp(out, stored, sizeof(stored));
    assert_string_equal(stored, seen.out);
    char bits[2][32] = {"", ""};
    int run = 0;
    for (char *line = strtok(seen.out, "\n"); line; line = strtok(NULL, "\n")) {
        json_t *json = json_loads(line, JSON_REJECT_DUPLICATES, &error);
        assert_non_null(json);
        assert_int_equal(json_integer_value(json_object_get(json, "schema")), 1);
        if (strcmp(json_string_value(json_object_get(json, "kind")), "run") == 0) {
            (void)snprintf(bits[run++], 32, "%s",
                           json_string_value(json_object_get(json, "loss_bits")));
            assert_true(json_is_object(json_object_get(json, "fingerprint")));
            assert_true(json_array_size(json_object_get(json, "argv")) > 5);
        }
        json_decref(json);
    }
    assert_string_equal(bits[0], bits[1]);
    assert_int_equal(RUN("train", "--json", "--strategy", "zero2,fsdp", "--ranks", "2", SMALL), 0);
    json_t *all = json_loads(seen.out, JSON_REJECT_DUPLICATES, &error);
    assert_int_equal(json_array_size(all), 8);
    assert_string_equal(json_string_value(json_object_get(json_array_get(all, 7), "loss_bits")),
                        bits[0]);
    json_decref(all);
    assert_int_equal(RUN("train", "--csv", "--strategy", "zero2,fsdp", "--ranks", "2", SMALL), 0);
    assert_int_equal(count_lines(seen.out), 3);
    assert_non_null(strstr(seen.out, bits[0]));
    assert_int_equal(RUN("train", "--md", "--strategy", "zero2,fsdp", "--ranks", "2", SMALL), 0);
    assert_int_equal(count_lines(seen.out), 4);
    assert_int_equal(RUN("train", "--strategy", "zero2,fsdp", "--ranks", "2", SMALL), 0);
    assert_int_equal(count_lines(seen.out), 3 + 2);
    assert_null(strstr(seen.out, " accum "));
    assert_int_equal(RUN("plan", "--strategy", "zero2", "--ranks", "2", "--accum", "1,2"), 0);
    assert_non_null(strstr(seen.out, " accum "));
}

/* The last record of seen.out; owner: caller. */
static json_t *
last_record(void)
{
    char *end = strrchr(seen.out, '\n');
    assert_non_null(end);
    *end = '\0';
    const char *line = strrchr(seen.out, '\n');
    json_t *json = json_loads(line ? line + 1 : seen.out, JSON_REJECT_DUPLICATES, NULL);
    assert_non_null(json);
    return json;
}

static void
test_program_timeline_is_the_same_everywhere(void **state)
{
    SHL_UNUSED(state);
    static char first[1 << 18];
    static const char *const how[][2] = {
        {"--launch", "threads"}, {"--launch", "processes"}, {"--device", "virtual"}};
    for (size_t i = 0; i < SHL_ARRAY_LEN(how); i++) {
        assert_int_equal(RUN("train", "--jsonl", "--timeline", "--strategy", "zero3", "--ranks",
                             "2", how[i][0], how[i][1], SMALL),
                         0);
        char *events = strstr(seen.out, "{\"kind\":\"event\"");
        char *end = strstr(seen.out, "{\"kind\":\"run\"");
        assert_true(events && end > events + 1000);
        *end = '\0';
        memcpy(first, i == 0 ? events : first, i == 0 ? (size_t)(end - events) : 0);
        assert_string_equal(events, first);
    }
    REFUSED(2, "--timeline without a place", "plan", "--timeline");
}

static void
test_program_processes_equal_threads(void **state)
{
    SHL_UNUSED(state);
    static const char *const keys[] = {"loss_bits", "param_hash", "peak_bytes",
                                       "at_peak",   "comm",       "peak_owner"};
    json_t *record[2];
    for (int launch = 0; launch < 2; launch++) {
        assert_int_equal(RUN("train", "--jsonl", "--strategy", "ddp,zero3", "--ranks", "3",
                             "--launch", launch ? "processes" : "threads", SMALL),
                         0);
        assert_string_equal(seen.err, "");
        assert_int_equal(count_lines(seen.out), 8);
        record[launch] = last_record();
    }
    for (size_t k = 0; k < SHL_ARRAY_LEN(keys); k++) {
        assert_non_null(json_object_get(record[0], keys[k]));
        assert_true(
            json_equal(json_object_get(record[0], keys[k]), json_object_get(record[1], keys[k])));
    }
    json_decref(record[0]);
    json_decref(record[1]);
    REFUSED(3, "out of device memory", "train", "--ranks", "2", "--launch", "processes",
            "--device-memory", "64KiB", SMALL);
}

static void
test_program_row_that_does_not_fit_is_a_result(void **state)
{
    SHL_UNUSED(state);
    REFUSED(3, "out of device memory in", "train", "--device-memory", "14MiB", "--batch", "1",
            "--steps", "2");
    assert_int_equal(RUN("train", "--device-memory", "14MiB", "--batch", "1", "--steps", "2",
                         "--strategy", "ddp,zero3", "--ranks", "4", "--csv"),
                     3);
    assert_int_equal(count_lines(seen.out), 2);
    assert_non_null(strstr(seen.out, "zero3"));
    assert_non_null(strstr(seen.err, "ddp, 4 ranks:"));
    assert_null(strstr(strstr(seen.err, "error: ") + 1, "error: "));
}

static void
test_program_plan_is_quick_and_judges(void **state)
{
    SHL_UNUSED(state);
    assert_int_equal(RUN("plan", "--model", "gpt-7b", "--ranks", "1024", "--jsonl"), 0);
    assert_int_equal(count_lines(seen.out), 6);
    json_t *record = last_record();
    assert_string_equal(json_string_value(json_object_get(record, "time")), "predicted");
    json_decref(record);
    if (!SHL_ASAN && !SHL_TSAN) {
        assert_true(seen.seconds < 1.0);
        assert_true(seen.rss_kib < 200 * 1024);
    }
    assert_int_equal(
        RUN("plan", "--model", "gpt-7b", "--ranks", "8-1024*2", "--device-memory", "80GiB"), 0);
    assert_int_equal(count_lines(seen.out), 1 + 6 * 8 + 2);
    assert_non_null(strstr(seen.out, "yes"));
    assert_non_null(strstr(seen.out, "no"));
    assert_int_equal(RUN("plan", "--model", "gpt-7b", "--device-memory", "1GiB", "--csv"), 3);
    assert_int_equal(count_lines(seen.out), 1 + 6 * 4);
    assert_non_null(strstr(seen.err, "nothing fits"));
}

static void
interrupt_once(const char *launch)
{
    char path[128];
    const char *const words[] = {"train",   "--steps",  "1000000", "--jsonl", "--ranks",
                                 "2",       "--layers", "1",       "--width", "32",
                                 "--heads", "2",        "--batch", "1",       "--seq",
                                 "16",      "--launch", launch,    NULL};
    (void)snprintf(path, sizeof(path), "%s", in_folder("interrupted"));
    (void)unlink(path);
    pid_t pid = start(path, words);
    struct stat st = {0};
    for (int i = 0; i < 1000 && st.st_size < 200; i++) {
        shl_clock_sleep_ns(10000000);
        (void)stat(path, &st);
    }
    assert_int_equal(kill(pid, SIGINT), 0);
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 130);
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    (void)fseek(f, -8000, SEEK_END);
    size_t n = fread(seen.out, 1, sizeof(seen.out) - 1, f);
    seen.out[n] = '\0';
    (void)fclose(f);
    json_t *record = last_record();
    assert_string_equal(json_string_value(json_object_get(record, "kind")), "run");
    json_decref(record);
}

static void
test_program_interrupt_finishes_the_row(void **state)
{
    SHL_UNUSED(state);
    interrupt_once("threads");
    interrupt_once("processes");
}

static int
set_up(void **state)
{
    return find_program() ? make_folder(state) : 1;
}

/* Some tests take the right to write away. */
static int
clear(void **state)
{
    char command[128];
    (void)snprintf(command, sizeof(command), "chmod -R u+rwx %s", folder);
    return system(command) == 0 ? remove_folder(state) : 1;
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_program_help_is_the_same_everywhere),
        cmocka_unit_test(test_program_alone_prints_a_short_usage),
        cmocka_unit_test(test_program_words_that_are_unknown),
        cmocka_unit_test(test_program_numbers_that_make_no_sense),
        cmocka_unit_test(test_program_data_that_cannot_be_used),
        cmocka_unit_test(test_program_full_disk_is_reported),
        cmocka_unit_test(test_program_checkpoints_that_cannot_be_used),
        cmocka_unit_test(test_program_forms_tell_the_same_run),
        cmocka_unit_test(test_program_timeline_is_the_same_everywhere),
        cmocka_unit_test(test_program_processes_equal_threads),
        cmocka_unit_test(test_program_row_that_does_not_fit_is_a_result),
        cmocka_unit_test(test_program_plan_is_quick_and_judges),
        cmocka_unit_test(test_program_interrupt_finishes_the_row),
    };
    return cmocka_run_group_tests(tests, set_up, clear);
}

/* tests/bench: the failure programme: one rank is killed, stopped, leaves, runs out of memory or meets a
 * failing call, in each phase, as a process and as a thread. The others end in time with one message
 * that names rank, phase and collective and with the documented code; nothing is left behind. The
 * program under test is the whole of shardlab, started from this file with a planned fault. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <dirent.h>
#include <jansson.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "checkpoints/ckpt.h"
#include "engines/config/config.h"
#include "kernels/base/clock.h"
#include "tests/support/fault_run.h"

int shl_program_main(int argc, char **argv);
#define main shl_program_main
#include "bench/main.c"
#undef main

#define RANKS 3
#define SECOND INT64_C(1000000000)
#define CALM_MS 120000 /* timeout of a run whose failure is not found by waiting */
#define MAX_SHOTS FAULT_PLACE_COUNT
#define N_PHASES (FAULT_SAVE + 1)

static char folder[] = "/tmp/shl-failures-XXXXXX";
static int64_t batch_ns; /* a row of runs without a fault, side by side, on this machine now */

static const char *const kind_names[] = {"none", "kill", "stop", "exit", "oom", "io", "hang"};
static const char *const place_names[] = {"init", "forward", "backward", "step", "save", "close"};

/* --- what must hold ------------------------------------------------------------------------ */

static void
wrong(const shot *s, const char *what)
{
    fail_msg("%s in %s, rank %d, %s, %s: %s\nexit %d\nstderr: %s\nstdout: %s", kind_names[s->kind],
             place_names[s->place], s->rank, s->strategy, s->processes ? "processes" : "threads",
             what, s->status, s->err, s->out);
}

/* Whole lines of JSON: n_steps steps, and a run only when one is expected. */
static void
check_stdout(const shot *s, int n_steps, int n_runs)
{
    const char *line = s->out;
    for (const char *end; (end = strchr(line, '\n')) != NULL; line = end + 1) {
        json_t *json = json_loadb(line, (size_t)(end - line), JSON_REJECT_DUPLICATES, NULL);
        const char *kind = json_string_value(json_object_get(json, "kind"));
        if (kind == NULL) {
            wrong(s, "a line of stdout is no record");
            return;
        }
        n_steps -= strcmp(kind, "step") == 0;
        n_runs -= strcmp(kind, "run") == 0;
        json_decref(json);
    }
    if (*line != '\0' || n_steps > 0 || n_runs != 0) {
        wrong(s, "stdout has other lines than the steps that were done");
    }
}

static void
check_message(const shot *s, const char *part)
{
    const char *first = strstr(s->err, "error: ");
    bool interrupted = s->status == 130; /* says all there is in one line */
    if (first != s->err || strstr(first + 1, "error: ") ||
        (!interrupted && !strstr(s->err, "\n  because: "))) {
        wrong(s, "not one message on stderr");
    }
    if (!strstr(s->err, part)) {
        print_error("missing: %s\n", part);
        wrong(s, "the message misses a part");
    }
}

static bool
is_expected(const char *const *expected, const char *name)
{
    while (*expected && strcmp(*expected, name) != 0) {
        expected++;
    }
    return *expected != NULL || strcmp(name, ".") == 0 || strcmp(name, "..") == 0;
}

static void
check_folder(const shot *s, const char *path, const char *const *expected)
{
    DIR *d = opendir(path);
    for (struct dirent *e = d ? readdir(d) : NULL; e; e = readdir(d)) {
        if (!is_expected(expected, e->d_name)) {
            print_error("left behind: %s/%s\n", path, e->d_name);
            wrong(s, "a file is left behind");
        }
    }
    if (d) {
        (void)closedir(d);
    }
}

/* The checkpoints up to `step` and nothing else; the newest is whole. step 0: there is none. */
static void
check_files(const shot *s, int64_t step)
{
    static const char *const own[] = {"ckpt", "stdout", "stderr", "fired", NULL};
    static const char *const saved[] = {"latest", "step-00000001", "step-00000002", "step-00000003",
                                        NULL};
    const char *expected[8] = {NULL};
    char ckpt[160];
    shl_ckpt_reader *reader = NULL;
    for (int64_t i = 0; i <= step && step > 0; i++) {
        expected[i] = saved[i];
    }
    shot_path(s, "ckpt", ckpt, sizeof ckpt);
    check_folder(s, s->dir, own);
    check_folder(s, ckpt, expected);
    if (step == 0) {
        return;
    }
    if (shl_ckpt_open(ckpt, true, &reader) != SHL_OK ||
        shl_ckpt_reader_meta(reader)->step != step) {
        print_error("%s\n", shl_err_get()->what);
        wrong(s, "the checkpoint is not whole");
    }
    shl_ckpt_close(&reader);
}

static bool
names_a_call(const char *text)
{
    static const char *const calls[] = {"all_gather #", "reduce_scatter #", "all_reduce #",
                                        "agree #",      "control #",        "barrier #"};
    for (size_t i = 0; i < SHL_ARRAY_LEN(calls); i++) {
        if (strstr(text, calls[i])) {
            return true;
        }
    }
    return false;
}

static void
check_shot(const shot *s)
{
    static const int status[] = {0, 5, 5, 5, 3, 5};
    char rank[32], in_phase[32];
    int64_t struck_ns = fault_struck_ns(s->fired);
    if (struck_ns == 0) {
        wrong(s, "the fault did not strike");
    }
    if (s->status != status[s->kind]) {
        wrong(s, "not the documented exit code");
    }
    (void)snprintf(rank, sizeof rank, "rank %d ", s->rank);
    (void)snprintf(in_phase, sizeof in_phase, "in %s", place_names[s->place]);
    check_message(s, rank);
    check_message(s, in_phase);
    if (!names_a_call(s->err)) {
        wrong(s, "the message names no collective");
    }
    if (s->kind == FAULT_KILL || s->kind == FAULT_STOP || s->kind == FAULT_EXIT) {
        check_message(s, "missed it in");
    }
    int done = s->place == FAULT_INIT ? 0 : s->place == FAULT_SAVE ? 2 : 1;
    check_stdout(s, done, 0);
    check_files(s, s->place == FAULT_INIT ? 0 : 1);
    int64_t grace_ns = 5 * SECOND + 4 * batch_ns;
    int64_t timeout_ns = s->kind == FAULT_STOP ? s->timeout_ms * 1000000 : 0;
    if (s->end_ns - struck_ns > timeout_ns + grace_ns) {
        wrong(s, "the others took too long to end");
    }
}

/* --- rows of the table ----------------------------------------------------------------------- */

/* The same fault in the first n places, side by side; the victim and the strategy change from cell to
 * cell. */
static void
fire_row(shot *row, int n, fault_kind kind, bool processes, int64_t timeout_ms)
{
    for (int i = 0; i < n; i++) {
        shot *s = &row[i];
        memset(s, 0, sizeof *s);
        s->kind = kind;
        s->place = (fault_place)i;
        s->rank = (i + (int)kind + (processes ? 1 : 0)) % RANKS;
        s->processes = processes;
        s->strategy = shl_strategy_name((shl_strategy)((i + (int)kind) % SHL_STRATEGY_COUNT));
        s->timeout_ms = timeout_ms;
        shot_start(s, folder);
    }
    assert_int_equal(shot_finish(row, n), 0);
}

static void
check_row(fault_kind kind, bool processes)
{
    static shot row[MAX_SHOTS];
    fire_row(row, N_PHASES, kind, processes, CALM_MS);
    for (int i = 0; i < N_PHASES; i++) {
        check_shot(&row[i]);
    }
}

static void
test_failures_killed_rank(void **state)
{
    (void)state;
    check_row(FAULT_KILL, true);
}

static void
test_failures_rank_that_exits_silently(void **state)
{
    (void)state;
    check_row(FAULT_EXIT, true);
}

static void
test_failures_rank_out_of_memory(void **state)
{
    (void)state;
    check_row(FAULT_OOM, true);
    check_row(FAULT_OOM, false);
}

static void
test_failures_rank_with_a_failing_call(void **state)
{
    (void)state;
    check_row(FAULT_IO, true);
    check_row(FAULT_IO, false);
}

static bool
all_struck(const shot *row, int n)
{
    int struck = 0;
    for (int i = 0; i < n; i++) {
        struck += fault_struck_ns(row[i].fired) != 0;
    }
    return struck == n;
}

/* In every phase, and behind the last agreement, when everything is done and saved: there only the
 * launcher can miss the rank. A machine that slows down meanwhile may make a rank late that is well:
 * then once more, with more patience. */
static void
test_failures_stopped_rank(void **state)
{
    static shot row[MAX_SHOTS];
    int64_t timeout_ms = 1000 + 2 * batch_ns / 1000000;
    (void)state;
    fire_row(row, N_PHASES + 1, FAULT_STOP, true, timeout_ms);
    if (!all_struck(row, N_PHASES + 1)) {
        print_message("a timeout of %lld ms was too short\n", (long long)timeout_ms);
        fire_row(row, N_PHASES + 1, FAULT_STOP, true, 4 * timeout_ms);
    }
    for (int i = 0; i < N_PHASES; i++) {
        check_shot(&row[i]);
        check_message(&row[i], "within");
    }
    const shot *closing = &row[FAULT_CLOSE];
    char text[64];
    (void)snprintf(text, sizeof text, "rank %d has not ended within", closing->rank);
    assert_int_equal(closing->status, 5);
    check_message(closing, text);
    check_stdout(closing, 3, 0);
    check_files(closing, 3);
}

/* --- signals to the launcher ------------------------------------------------------------------- */

/* A run of three ranks in which one is stopped or hangs, so that nothing can end by itself. */
static void
start_stuck(shot *s, bool processes, fault_place place)
{
    memset(s, 0, sizeof *s);
    s->kind = processes ? FAULT_STOP : FAULT_HANG;
    s->place = place;
    s->rank = 0;
    s->processes = processes;
    s->strategy = "zero3";
    s->timeout_ms = CALM_MS;
    shot_start(s, folder);
    shot_await(s);
}

static void
test_failures_killed_launcher_takes_its_ranks_along(void **state)
{
    static shot s;
    (void)state;
    start_stuck(&s, true, FAULT_BACKWARD);
    int64_t begun_ns = shl_clock_ns();
    assert_int_equal(kill(s.pid, SIGKILL), 0);
    assert_int_equal(shot_finish(&s, 1), RANKS); /* they came to this process, dead */
    assert_true(shl_clock_ns() - begun_ns < 10 * SECOND);
    assert_int_equal(s.status, 128 + SIGKILL);
    assert_string_equal(s.err, "");
    check_stdout(&s, 1, 0);
    check_files(&s, 1);
}

static bool
has_ended(const shot *s)
{
    siginfo_t info = {0};
    assert_int_equal(waitid(P_PID, (id_t)s->pid, &info, WEXITED | WNOHANG | WNOWAIT), 0);
    return info.si_pid == s->pid;
}

static void
test_failures_second_interrupt_kills_at_once(void **state)
{
    static shot s;
    (void)state;
    for (int processes = 0; processes <= 1; processes++) {
        start_stuck(&s, processes != 0, processes ? FAULT_SAVE : FAULT_FORWARD);
        int64_t begun_ns = shl_clock_ns();
        assert_int_equal(kill(s.pid, SIGINT), 0);
        shl_clock_sleep_ns(SECOND / 4);
        assert_false(has_ended(&s)); /* the step cannot be finished */
        assert_int_equal(kill(s.pid, SIGINT), 0);
        assert_int_equal(shot_finish(&s, 1), 0);
        assert_true(shl_clock_ns() - begun_ns < 10 * SECOND);
        assert_int_equal(s.status, 130);
        check_stdout(&s, processes ? 2 : 1, 0);
        check_files(&s, 1);
    }
}

/* The last step that stdout tells of. */
static int64_t
last_step(const shot *s)
{
    const char *at = s->out, *last = NULL;
    while ((at = strstr(at, "\"step\":")) != NULL) {
        last = at;
        at++;
    }
    assert_non_null(last);
    return strtoll(last + strlen("\"step\":"), NULL, 10);
}

static void
test_failures_first_interrupt_finishes_and_saves(void **state)
{
    static shot s;
    char ckpt[160];
    (void)state;
    for (int processes = 0; processes <= 1; processes++) {
        shl_ckpt_reader *reader = NULL;
        s = (shot){.processes = processes != 0, .strategy = "fsdp", .timeout_ms = CALM_MS};
        s.steps = "1000000";
        shot_start(&s, folder);
        struct stat st = {0};
        shot_path(&s, "stdout", ckpt, sizeof ckpt);
        while (st.st_size == 0) {
            shl_clock_sleep_ns(5000000);
            (void)stat(ckpt, &st);
        }
        assert_int_equal(kill(s.pid, SIGINT), 0);
        assert_int_equal(shot_finish(&s, 1), 0);
        assert_int_equal(s.status, 130);
        check_message(&s, "interrupted after step");
        check_stdout(&s, 1, 1);
        shot_path(&s, "ckpt", ckpt, sizeof ckpt);
        assert_int_equal(shl_ckpt_open(ckpt, true, &reader), SHL_OK);
        assert_int_equal(shl_ckpt_reader_meta(reader)->step, last_step(&s));
        shl_ckpt_close(&reader);
    }
}

/* Nobody can read the records: the run ends at once, not after its million steps. */
static void
test_failures_full_stdout_ends_the_run(void **state)
{
    static shot s;
    (void)state;
    for (int processes = 0; processes <= 1; processes++) {
        s = (shot){.processes = processes != 0, .strategy = "ddp", .timeout_ms = CALM_MS};
        s.steps = "1000000";
        s.stdout_path = "/dev/full";
        shot_start(&s, folder);
        assert_int_equal(shot_finish(&s, 1), 0);
        assert_int_equal(s.status, 5);
        check_message(&s, "cannot write to stdout");
    }
}

/* --- around ------------------------------------------------------------------------------------ */

static int
count_shared_memory(void)
{
    int n = 0;
    DIR *d = opendir("/dev/shm");
    for (struct dirent *e = d ? readdir(d) : NULL; e; e = readdir(d)) {
        n += strstr(e->d_name, "shardlab") != NULL;
    }
    if (d) {
        (void)closedir(d);
    }
    return n;
}

static int n_shared_before;

static void
test_failures_nothing_shared_is_left(void **state)
{
    (void)state;
    assert_int_equal(count_shared_memory(), n_shared_before);
}

/* How long a row takes here without a fault: the patience of everything else. */
static void
test_failures_none_without_a_fault(void **state)
{
    static shot row[MAX_SHOTS];
    (void)state;
    int64_t begun_ns = shl_clock_ns();
    fire_row(row, N_PHASES, FAULT_NONE, true, CALM_MS);
    batch_ns = shl_clock_ns() - begun_ns;
    print_message("a row without faults: %.2f s\n", (double)batch_ns * 1e-9);
    for (int i = 0; i < N_PHASES; i++) {
        assert_int_equal(row[i].status, 0);
        assert_string_equal(row[i].err, "");
        check_stdout(&row[i], 3, 1);
        check_files(&row[i], 3);
    }
}

static int
make_folder(void **state)
{
    (void)state;
    n_shared_before = count_shared_memory();
    /* Ranks whose parent dies become children of this process: none can be overlooked. */
    return mkdtemp(folder) && prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0 ? 0 : 1;
}

static int
remove_folder(void **state)
{
    char command[64];
    (void)state;
    (void)snprintf(command, sizeof command, "rm -rf %s", folder);
    return system(command);
}

int
main(int argc, char **argv)
{
    if (fault_load()) {
        return shl_program_main(argc, argv);
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_failures_none_without_a_fault),
        cmocka_unit_test(test_failures_killed_rank),
        cmocka_unit_test(test_failures_rank_that_exits_silently),
        cmocka_unit_test(test_failures_rank_out_of_memory),
        cmocka_unit_test(test_failures_rank_with_a_failing_call),
        cmocka_unit_test(test_failures_stopped_rank),
        cmocka_unit_test(test_failures_killed_launcher_takes_its_ranks_along),
        cmocka_unit_test(test_failures_first_interrupt_finishes_and_saves),
        cmocka_unit_test(test_failures_second_interrupt_kills_at_once),
        cmocka_unit_test(test_failures_full_stdout_ends_the_run),
        cmocka_unit_test(test_failures_nothing_shared_is_left),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}

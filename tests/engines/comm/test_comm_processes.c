/* tests/engines/comm: worlds of processes. The program starts itself as ranks: in a process that
 * joins a world, main plays the scene named on the command line and appends how it ended to a file. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "kernels/base/clock.h"
#include "kernels/base/heap.h"
#include "kernels/base/str.h"
#include "kernels/base/types.h"
#include "tests/support/comm_battery.h"

#define TIMEOUT_MS 2500 /* where a rank is to be missed */
#define CALM_MS 30000   /* where none is */
#define LONG_NS INT64_C(60000000000)

/* --- scenes: inside a rank ----------------------------------------------------------------- */

static void *
signal_self(void *arg)
{
    shl_clock_sleep_ns(60000000);
    kill(getpid(), *(const int *)arg);
    return NULL;
}

/* Collectives without end; `victim` gets a signal in the middle of one. */
static shl_code
loop_until(shl_world *w, int victim, int signal)
{
    cb_rank r;
    pthread_t thread;
    SHL_TRY(cb_open(w, TIMEOUT_MS, 0, &r));
    bool started =
        shl_world_rank(w) == victim && pthread_create(&thread, NULL, signal_self, &signal) == 0;
    const int64_t elems = 200000;
    shl_code code = SHL_OK;
    for (int i = 0; i < 1000000 && code == SHL_OK; i++) {
        code = cb_case(&r, r.comm, SHL_COLL_ALL_REDUCE, &elems, 1, true, SHL_STREAM_COMM);
    }
    if (started) {
        pthread_join(thread, NULL);
    }
    return cb_close(&r, code);
}

static shl_code
scene_batteries(shl_world *w)
{
    shl_code code = SHL_OK;
    for (int m = 0; m < CB_MEMORY_COUNT && code == SHL_OK; m++) {
        cb_memory memory = (cb_memory)m;
        code = cb_battery_main(w, &memory);
    }
    return code;
}

static shl_code
scene_environment(shl_world *w)
{
    char link[64] = "";
    const char *threads = getenv("OMP_NUM_THREADS"), *policy = getenv("OMP_WAIT_POLICY");
    ssize_t n = readlink("/proc/self/fd/0", link, sizeof link - 1);
    if (n < 0 || strcmp(link, "/dev/null") != 0) {
        return SHL_RAISE(SHL_E_VERIFY, "stdin is %s", link);
    }
    if (threads == NULL || strcmp(threads, "7") != 0 || shl_world_threads_per_rank(w) != 7) {
        return SHL_RAISE(SHL_E_VERIFY, "threads are %s", threads == NULL ? "unset" : threads);
    }
    /* 64 ranks of 7 threads: more than any machine of a test has cores. */
    if (shl_world_size(w) == 64 && (policy == NULL || strcmp(policy, "passive") != 0)) {
        return SHL_RAISE(SHL_E_VERIFY, "oversubscribed threads do not wait passively");
    }
    return shl_world_is_processes(w) ? SHL_OK : SHL_E_VERIFY;
}

static shl_code
scene_interrupt(shl_world *w, bool ignore)
{
    if (ignore) {
        signal(SIGINT, SIG_IGN);
    }
    cb_rank r;
    SHL_TRY(cb_open(w, 0, 0, &r));
    if (shl_world_rank(w) == 0) {
        kill(getppid(), SIGINT);
        shl_clock_sleep_ns(200000000);
        kill(getppid(), SIGINT);
    }
    shl_clock_sleep_ns(LONG_NS);
    return cb_close(&r, SHL_OK);
}

static shl_code
play(shl_world *w, const char *scene)
{
    int rank = shl_world_rank(w);
    if (strcmp(scene, "batteries") == 0) {
        return scene_batteries(w);
    }
    if (strcmp(scene, "environment") == 0) {
        return scene_environment(w);
    }
    if (strcmp(scene, "kill") == 0 || strcmp(scene, "stop") == 0) {
        return loop_until(w, 2, scene[0] == 'k' ? SIGKILL : SIGSTOP);
    }
    if (strcmp(scene, "exit") == 0 && rank == 1) {
        _exit(3);
    }
    if (strcmp(scene, "fail") == 0 && rank == 1) {
        return SHL_RAISE(SHL_E_IO, "disk is full");
    }
    if (strcmp(scene, "hang") == 0) {
        if (rank == 1) {
            return SHL_RAISE(SHL_E_CONFIG, "no such model");
        }
        shl_clock_sleep_ns(LONG_NS);
    }
    if (strcmp(scene, "interrupt") == 0 || strcmp(scene, "interrupt-twice") == 0) {
        return scene_interrupt(w, scene[9] != '\0');
    }
    return loop_until(w, -1, 0);
}

static int
rank_main(shl_world *w, const char *scene, const char *path)
{
    char line[768];
    int64_t start_ns = shl_clock_ns();
    int rank = shl_world_rank(w);
    shl_code code = play(w, scene);
    bool own = shl_world_error_is_own(w);
    shl_strf(line, sizeof line, "%d %d %lld %d %s\n", rank, (int)code,
             (long long)(shl_clock_ns() - start_ns), own ? 1 : 0,
             code == SHL_OK ? "" : shl_err_get()->what);
    int fd = open(path, O_WRONLY | O_APPEND);
    bool written = fd >= 0 && write(fd, line, strlen(line)) == (ssize_t)strlen(line);
    shl_world_leave(&w, written ? code : SHL_E_IO);
    return shl_heap_live_blocks() == 0 && written ? 0 : 1;
}

/* --- the tests: the supervisor ------------------------------------------------------------- */

typedef struct outcome {
    shl_code code;
    bool printed;
    int64_t ns;
    int n_lines;
    struct {
        shl_code code;
        long long ns;
        int own;
        char what[600];
    } rank[SHL_WORLD_MAX_RANKS]; /* code -1: wrote nothing */
} outcome;

static int
count_entries(const char *folder, const char *prefix)
{
    int n = 0;
    DIR *d = opendir(folder);
    for (struct dirent *e = d != NULL ? readdir(d) : NULL; e != NULL; e = readdir(d)) {
        n += strncmp(e->d_name, prefix, strlen(prefix)) == 0;
    }
    if (d != NULL) {
        closedir(d);
    }
    return n;
}

static void
read_lines(const char *path, outcome *o)
{
    FILE *f = fopen(path, "r");
    assert_non_null(f);
    char line[800];
    while (fgets(line, sizeof line, f) != NULL) {
        int rank = -1, code = -1, own = 0, at = 0;
        long long ns = 0;
        assert_int_equal(sscanf(line, "%d %d %lld %d %n", &rank, &code, &ns, &own, &at), 4);
        line[strcspn(line, "\n")] = '\0';
        o->rank[rank].code = (shl_code)code;
        o->rank[rank].ns = ns;
        o->rank[rank].own = own;
        shl_strf(o->rank[rank].what, sizeof o->rank[rank].what, "%s", line + at);
        o->n_lines++;
    }
    fclose(f);
}

static void
run(int ranks, int threads, int64_t timeout_ms, const char *scene, outcome *o)
{
    char path[] = "/tmp/shardlab-ranks-XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    close(fd);
    memset(o, 0, sizeof *o);
    for (int r = 0; r < SHL_WORLD_MAX_RANKS; r++) {
        o->rank[r].code = (shl_code)-1;
    }
    int n_shm = count_entries("/dev/shm", "shardlab"), n_fds = count_entries("/proc/self/fd", "");
    int64_t blocks = shl_heap_live_blocks(), start_ns = shl_clock_ns();
    const char *const argv[] = {"/proc/self/exe", scene, path, NULL};
    shl_world_config wc = {.ranks = ranks, .threads_per_rank = threads, .timeout_ms = timeout_ms};
    o->code = shl_world_run_processes(&wc, argv, &o->printed);
    o->ns = shl_clock_ns() - start_ns;
    read_lines(path, o);
    unlink(path);
    assert_int_equal(waitpid(-1, NULL, WNOHANG), -1);
    assert_int_equal(errno, ECHILD);
    assert_int_equal(count_entries("/dev/shm", "shardlab"), n_shm);
    assert_int_equal(count_entries("/proc/self/fd", ""), n_fds);
    assert_int_equal(shl_heap_live_blocks(), blocks);
}

static void
assert_ok(const outcome *o, int ranks)
{
    for (int r = 0; r < ranks; r++) {
        if (o->rank[r].code != SHL_OK) {
            print_error("rank %d: %s\n", r, o->rank[r].what);
        }
        assert_int_equal(o->rank[r].code, SHL_OK);
    }
    if (o->code != SHL_OK) {
        print_error("%s / %s\n", shl_err_get()->what, shl_err_get()->because);
    }
    assert_int_equal(o->code, SHL_OK);
    assert_false(o->printed);
}

static void
test_comm_processes_match_reference(void **state)
{
    (void)state;
    const int worlds[] = {1, 2, 3, 4};
    for (size_t i = 0; i < SHL_ARRAY_LEN(worlds); i++) {
        outcome o;
        run(worlds[i], 1, CALM_MS, "batteries", &o);
        assert_ok(&o, worlds[i]);
    }
}

static void
test_comm_processes_have_their_environment(void **state)
{
    (void)state;
    outcome o;
    run(2, 7, CALM_MS, "environment", &o);
    assert_ok(&o, 2);
    run(64, 7, CALM_MS, "environment", &o);
    assert_ok(&o, 64);
}

static void
test_comm_processes_name_a_killed_rank(void **state)
{
    (void)state;
    outcome o;
    run(4, 1, CALM_MS, "kill", &o);
    assert_int_equal(o.code, SHL_E_PEER);
    assert_string_equal(shl_err_get()->what, "rank 2 died in init: killed by signal 9");
    assert_false(o.printed);
    assert_int_equal(o.n_lines, 3);
    for (int r = 0; r < 4; r++) {
        if (r != 2) {
            assert_int_equal(o.rank[r].code, SHL_E_PEER);
            assert_string_equal(o.rank[r].what, "rank 2 died in init: killed by signal 9");
            assert_int_equal(o.rank[r].own, 0);
        }
    }
}

static void
test_comm_processes_name_a_stopped_rank(void **state)
{
    (void)state;
    outcome o;
    run(4, 1, TIMEOUT_MS, "stop", &o);
    assert_int_equal(o.code, SHL_E_PEER);
    assert_non_null(strstr(shl_err_get()->what, "rank 2 has not "));
    assert_false(o.printed);
    assert_int_equal(o.n_lines, 3);
    for (int r = 0; r < 4; r++) {
        if (r != 2) {
            assert_int_equal(o.rank[r].code, SHL_E_PEER);
            assert_non_null(strstr(o.rank[r].what, "rank 2 has not "));
            assert_non_null(strstr(o.rank[r].what, "all_reduce #"));
            assert_non_null(strstr(o.rank[r].what, "within 2.5 s"));
            /* Found when the time was over, not much later. */
            assert_true(o.rank[r].ns < (TIMEOUT_MS + 2500) * INT64_C(1000000));
        }
    }
}

static void
test_comm_processes_name_a_rank_that_exits(void **state)
{
    (void)state;
    outcome o;
    run(3, 1, CALM_MS, "exit", &o);
    assert_int_equal(o.code, SHL_E_PEER);
    assert_string_equal(shl_err_get()->what, "rank 1 died in init: exited with status 3");
    assert_string_equal(o.rank[0].what, "rank 1 died in init: exited with status 3");
    assert_string_equal(o.rank[2].what, "rank 1 died in init: exited with status 3");
}

static void
test_comm_processes_pass_on_an_error(void **state)
{
    (void)state;
    outcome o;
    run(3, 1, CALM_MS, "fail", &o);
    assert_int_equal(o.code, SHL_E_IO);
    assert_string_equal(shl_err_get()->what, "rank 1 failed in init: disk is full");
    assert_true(o.printed);
    assert_int_equal(o.rank[1].own, 1);
    for (int r = 0; r < 3; r += 2) {
        assert_int_equal(o.rank[r].code, SHL_E_IO);
        assert_string_equal(o.rank[r].what, "rank 1 failed in run: disk is full");
        assert_int_equal(o.rank[r].own, 0);
    }
}

static void
test_comm_processes_kill_what_does_not_end(void **state)
{
    (void)state;
    outcome o;
    run(2, 1, TIMEOUT_MS, "hang", &o);
    assert_int_equal(o.code, SHL_E_CONFIG);
    assert_string_equal(shl_err_get()->what, "no such model");
    assert_true(o.printed);
    assert_true(o.ns < LONG_NS / 4);
}

static void
test_comm_processes_forward_an_interrupt(void **state)
{
    (void)state;
    outcome o;
    run(2, 1, CALM_MS, "interrupt", &o);
    assert_int_equal(o.code, SHL_E_INTERRUPTED);
    assert_non_null(strstr(shl_err_get()->what, "interrupted by signal 2"));
    assert_true(o.ns < LONG_NS / 4);
    run(2, 1, TIMEOUT_MS, "interrupt-twice", &o);
    assert_int_not_equal(o.code, SHL_OK);
    assert_true(o.ns < LONG_NS / 4);
}

static void
test_comm_processes_refuse_what_cannot_start(void **state)
{
    (void)state;
    bool printed = true;
    int n_fds = count_entries("/proc/self/fd", "");
    const char *const argv[] = {"/nowhere/program", NULL};
    shl_world_config wc = {.ranks = 2, .threads_per_rank = 1, .timeout_ms = TIMEOUT_MS};
    assert_int_equal(shl_world_run_processes(&wc, argv, &printed), SHL_E_SYSTEM);
    assert_non_null(strstr(shl_err_get()->because, "/nowhere/program"));
    assert_false(printed);
    assert_int_equal(count_entries("/proc/self/fd", ""), n_fds);
    const char *const bad[] = {"99,2,0", "x", "0,2,5", "0,0,0", "0,2,1"};
    for (size_t i = 0; i < SHL_ARRAY_LEN(bad); i++) {
        shl_world *w = NULL;
        setenv("SHL_WORLD", bad[i], 1);
        assert_int_equal(shl_world_join(&w), SHL_E_USAGE);
        assert_null(w);
    }
    unsetenv("SHL_WORLD");
    assert_int_equal(shl_heap_live_blocks(), 0);
}

int
main(int argc, char **argv)
{
    shl_world *w = NULL;
    if (shl_world_join(&w) != SHL_OK) {
        return 2;
    }
    if (w != NULL) {
        return argc == 3 ? rank_main(w, argv[1], argv[2]) : 2;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_comm_processes_match_reference),
        cmocka_unit_test(test_comm_processes_have_their_environment),
        cmocka_unit_test(test_comm_processes_name_a_killed_rank),
        cmocka_unit_test(test_comm_processes_name_a_stopped_rank),
        cmocka_unit_test(test_comm_processes_name_a_rank_that_exits),
        cmocka_unit_test(test_comm_processes_pass_on_an_error),
        cmocka_unit_test(test_comm_processes_kill_what_does_not_end),
        cmocka_unit_test(test_comm_processes_forward_an_interrupt),
        cmocka_unit_test(test_comm_processes_refuse_what_cannot_start),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

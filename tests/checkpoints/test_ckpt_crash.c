/* tests: a save that is killed, meets a full disk or runs out of heap leaves the old checkpoint or
 * the new one, never anything else, and the next save works and cleans up. */
#include "tests/checkpoints/fake_shards.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>

#include "kernels/base/clock.h"

#define KILL_ROUNDS 20
#define SAVER_SCALE 60

static uint64_t seed;

/* The program again as a child, so that the parent's threads and libraries play no part in it. */
static pid_t
start_saver(const char *dir, int64_t step, uint64_t salt, bool traced)
{
    char step_text[32];
    char salt_text[32];
    shl_strf(step_text, sizeof step_text, "%lld", (long long)step);
    shl_strf(salt_text, sizeof salt_text, "%llu", (unsigned long long)salt);
    pid_t pid = fork();
    if (pid == 0) {
        if (traced && ptrace(PTRACE_TRACEME, 0, NULL, NULL) != 0) {
            _exit(126);
        }
        (void)execl("/proc/self/exe", "saver", dir, step_text, salt_text, (char *)NULL);
        _exit(127);
    }
    return pid;
}

static int
run_saver(char **argv)
{
    fake_model m = fake_make(SAVER_SCALE);
    shl_device *d = fake_device("cpu", NULL, 0);
    uint64_t salt = strtoull(argv[3], NULL, 10);
    if (d == NULL) {
        return 1;
    }
    shl_code code = fake_save(argv[1], strtoll(argv[2], NULL, 10), salt, 3, &m, salt, d);
    shl_code closed = shl_device_close(&d);
    return (int)(code != SHL_OK ? code : closed);
}

static int
wait_for(pid_t pid)
{
    int status = -1;
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {
    }
    return status;
}

/* After a saver of (step, salt) died: the checkpoint is that one or *have, whole. True if new. */
static bool
old_or_new(const char *dir, const fake_model *m, shl_device *d, int64_t step, uint64_t salt,
           shl_ckpt_meta *have)
{
    shl_ckpt_meta now;
    fake_ok(fake_load(dir, m, 1 + (int)(salt % 4), seed + salt, d, &now));
    bool is_old = now.step == have->step && now.seed == have->seed;
    bool is_new = now.step == step && now.seed == salt;
    assert_true(is_old || is_new);
    *have = now;
    return is_new;
}

/* The next save of any step works and leaves nothing of the dead ones. */
static void
save_again(const char *dir, const fake_model *m, shl_device *d, shl_ckpt_meta *have)
{
    fake_ok(fake_save(dir, have->step, 999, 2, m, seed, d));
    fake_ok(fake_load(dir, m, 3, seed, d, have));
    assert_true(have->seed == 999);
    assert_int_equal(fake_count(dir, "."), 0);
}

/* Every second round replaces the step that is there; the others add one. */
static void
test_ckpt_crash_killed_at_random(void **state)
{
    char dir[64];
    fake_model m = fake_make(SAVER_SCALE);
    shl_device *d = fake_device("cpu", NULL, 0);
    shl_ckpt_meta have;
    int64_t whole_ns = 0;
    int fresh = 0;
    (void)state;
    fake_folder(dir);
    for (int warm = 0; warm < 2; warm++) {
        int64_t start = shl_clock_ns();
        assert_int_equal(wait_for(start_saver(dir, 1, 1, false)), 0);
        whole_ns = shl_clock_ns() - start;
    }
    fake_ok(fake_load(dir, &m, 2, seed, d, &have));
    for (uint64_t i = 0; i < KILL_ROUNDS; i++) {
        int64_t step = have.step + (int64_t)(i % 2);
        pid_t pid = start_saver(dir, step, 2 + i, false);
        assert_true(pid > 0);
        shl_clock_sleep_ns((int64_t)(shl_rng_uniform(seed, 9, i) * 1.3 * (double)whole_ns));
        (void)kill(pid, SIGKILL);
        (void)wait_for(pid);
        fresh += old_or_new(dir, &m, d, step, 2 + i, &have) ? 1 : 0;
    }
    print_message("%d of %d killed saves had been committed\n", fresh, KILL_ROUNDS);
    save_again(dir, &m, d, &have);
    fake_ok(shl_device_close(&d));
    fake_remove_tree(dir);
}

/* Lets a traced child run to its n-th stop at a system call (entry and exit are two) and kills it
 * there. Returns the stops made: fewer than n when it ended before. */
static int
run_to_stop(pid_t pid, int n)
{
    int stops = 0;
    int status = 0;
    while (waitpid(pid, &status, 0) == pid && WIFSTOPPED(status)) {
        if (stops == n) {
            (void)kill(pid, SIGKILL);
            (void)wait_for(pid);
            return stops;
        }
        stops++;
        if (ptrace(PTRACE_SYSCALL, pid, NULL, NULL) != 0) {
            break;
        }
    }
    return stops;
}

#ifdef __SANITIZE_ADDRESS__
#define DENSE_STRIDE 3 /* a start of the program takes long there */
#else
#define DENSE_STRIDE 1
#endif

/* Killed before and after system calls: each of the last ones, where the commit is, and some of
 * the others; all with SHL_TEST_ALL. */
static void
test_ckpt_crash_killed_at_system_calls(void **state)
{
    char dir[64];
    fake_model m = fake_make(SAVER_SCALE);
    shl_device *d = fake_device("cpu", NULL, 0);
    shl_ckpt_meta have;
    int fresh = 0;
    int rounds = 0;
    (void)state;
    fake_folder(dir);
    fake_ok(fake_save(dir, 1, 1, 3, &m, 1, d));
    int total = run_to_stop(start_saver(dir, 1, 1, true), INT32_MAX);
    if (total < 100) {
        print_message("no process may be traced here\n");
        fake_ok(shl_device_close(&d));
        fake_remove_tree(dir);
        skip();
    }
    fake_ok(fake_load(dir, &m, 2, seed, d, &have));
    bool all = getenv("SHL_TEST_ALL") != NULL;
    int stride = DENSE_STRIDE;
    if (all) {
        stride = 1;
    }
    for (int n = 0; n < total; rounds++) {
        uint64_t salt = 1000 + (uint64_t)rounds;
        int64_t step = have.step + rounds % 2;
        int dense = total - 45;
        (void)run_to_stop(start_saver(dir, step, salt, true), n);
        fresh += old_or_new(dir, &m, d, step, salt, &have) ? 1 : 0;
        int jump = 1 + (int)(shl_rng_u64(seed, 8, (uint64_t)rounds) % 250);
        n = n >= dense || all ? n + stride : (n + jump < dense ? n + jump : dense);
    }
    print_message("%d of %d saves killed at %d stops had been committed\n", fresh, rounds, total);
    assert_true(fresh > 0 && fresh < rounds);
    save_again(dir, &m, d, &have);
    fake_ok(shl_device_close(&d));
    fake_remove_tree(dir);
}

/* Where folders cannot be exchanged, the old one is set aside for a moment: each state between two
 * system calls of that way, read and then saved over. */
static void
test_ckpt_crash_between_two_renames(void **state)
{
    char dir[64];
    char step[128];
    char aside[128];
    char temp[160];
    char old[SHL_CKPT_PATH_MAX];
    fake_model m = fake_make(1);
    shl_ckpt_meta meta = fake_meta(6, 1, 2);
    shl_device *d = fake_device("cpu", NULL, 0);
    (void)state;
    fake_folder(dir);
    shl_strf(step, sizeof step, "%s/step-00000006", dir);
    shl_strf(aside, sizeof aside, "%s/.old-step-00000006", dir);
    shl_strf(temp, sizeof temp, "%s/.tmp-00000006-0123456789abcdef0123456789abcdef", dir);
    fake_ok(fake_save(dir, 6, 1, 2, &m, seed, d));
    assert_int_equal(rename(step, aside), 0); /* killed after the first rename */
    fake_ok(fake_load(dir, &m, 3, seed, d, &meta));
    assert_true(meta.seed == 1);
    meta = fake_meta(7, 1, 2);
    fake_ok(shl_ckpt_save_prepare(dir, &meta)); /* the next save puts it back first */
    assert_int_equal(fake_count(dir, "step-00000006"), 1);
    assert_int_equal(fake_count(dir, ".old"), 0);
    shl_ckpt_save_discard(dir, &meta);

    assert_int_equal(mkdir(temp, 0700), 0);
    fake_ok(shl_ckpt_swap_in(dir, temp, "step-00000006", false, old, sizeof old));
    assert_string_equal(old, aside); /* killed after the second: the old one lies aside */
    assert_int_equal(fake_count(dir, "step-00000006"), 1);
    assert_int_equal(fake_count(step, ""), 0);
    assert_true(fake_count(aside, "") > 0);
    fake_ok(fake_save(dir, 6, 2, 2, &m, seed, d));
    fake_ok(fake_load(dir, &m, 3, seed, d, &meta));
    assert_true(meta.seed == 2);
    assert_int_equal(fake_count(dir, "."), 0);
    fake_ok(shl_device_close(&d));
    fake_remove_tree(dir);
}

/* Everything as before the failed save. */
static void
expect_old(const char *dir, const fake_model *m, shl_device *d, uint64_t salt)
{
    shl_ckpt_meta meta;
    fake_ok(fake_load(dir, m, 2, seed, d, &meta));
    assert_true(meta.seed == salt);
    assert_int_equal(fake_count(dir, "."), 0);
}

static void
expect_no_room(shl_code code)
{
    if (code != SHL_E_IO || strstr(shl_err_get()->because, "bytes") == NULL) {
        print_error("%s: %s (%s)\n", shl_code_name(code), shl_err_get()->what,
                    shl_err_get()->because);
    }
    assert_int_equal(code, SHL_E_IO);
    assert_non_null(strstr(shl_err_get()->what, "cannot write"));
    assert_non_null(strstr(shl_err_get()->because, "bytes more"));
    assert_true(shl_err_get()->advice[0] != '\0');
}

/* A limit on the length of a file fails writes like a full disk, at any byte that is asked for. */
static void
test_ckpt_crash_file_size_limit(void **state)
{
    char dir[64];
    fake_model m = fake_make(20);
    shl_device *d = fake_device("cpu", NULL, 0);
    struct rlimit before;
    int failed = 0;
    (void)state;
    fake_folder(dir);
    fake_ok(fake_save(dir, 1, 1, 2, &m, seed, d));
    (void)signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    for (uint64_t i = 0; i < 12; i++) {
        rlim_t limit = i == 0 ? 0 : (rlim_t)(shl_rng_u64(seed, 4, i) % ((uint64_t)600 << 10));
        struct rlimit tight = {limit, before.rlim_max};
        assert_int_equal(setrlimit(RLIMIT_FSIZE, &tight), 0);
        shl_code code = fake_save(dir, 1 + (int64_t)(i % 2), 1, 2, &m, seed, d);
        assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
        if (code != SHL_OK) {
            expect_no_room(code);
            failed++;
        }
        expect_old(dir, &m, d, 1);
    }
    assert_true(failed > 0);
    fake_ok(fake_save(dir, 2, 3, 2, &m, seed, d));
    expect_old(dir, &m, d, 3);
    fake_ok(shl_device_close(&d));
    fake_remove_tree(dir);
}

static shl_code
fill(const char *dir, size_t leave_bytes, size_t total_bytes)
{
    char path[128];
    shl_strf(path, sizeof path, "%s/filler", dir);
    int fd = open(path, O_WRONLY | O_CREAT, 0600);
    int rc = fd < 0 ? -1 : ftruncate(fd, 0);
    if (rc == 0) {
        (void)posix_fallocate(fd, 0, (off_t)(total_bytes - leave_bytes));
    }
    if (fd >= 0) {
        (void)close(fd);
    }
    return rc == 0 ? SHL_OK : SHL_E_IO;
}

/* A real file system that is full, at 64 KiB steps of what is left. */
static void
test_ckpt_crash_full_disk(void **state)
{
    char dir[64];
    char ckpt[80];
    fake_model m = fake_make(60);
    shl_device *d = fake_device("cpu", NULL, 0);
    const size_t total = (size_t)4 << 20;
    int failed = 0;
    (void)state;
    fake_folder(dir);
    if (unshare(CLONE_NEWNS) != 0 || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0 ||
        mount("tmpfs", dir, "tmpfs", 0, "size=4m") != 0) {
        print_message("no file system may be mounted here\n");
        fake_remove_tree(dir);
        fake_ok(shl_device_close(&d));
        skip();
    }
    shl_strf(ckpt, sizeof ckpt, "%s/d", dir);
    fake_ok(fake_save(ckpt, 1, 1, 2, &m, seed, d));
    int64_t used = (int64_t)(60 * 4 * 3 * 1000);
    for (size_t left = 0; left < (size_t)1300 << 10; left += (size_t)64 << 10) {
        fake_ok(fill(dir, left + (size_t)used, total));
        shl_code code = fake_save(ckpt, 2, 1, 2, &m, seed, d);
        if (code != SHL_OK) {
            assert_int_equal(code, SHL_E_IO);
            failed++;
        }
        fake_ok(fill(dir, total, total));
        expect_old(ckpt, &m, d, 1);
    }
    print_message("%d saves met a full disk\n", failed);
    assert_true(failed > 0);
    fake_ok(fake_save(ckpt, 2, 3, 2, &m, seed, d));
    expect_old(ckpt, &m, d, 3);
    assert_int_equal(umount(dir), 0);
    fake_ok(shl_device_close(&d));
    fake_remove_tree(dir);
}

/* The n-th allocation of a save and a load fails, for every n there is. */
static void
test_ckpt_crash_heap_exhausted(void **state)
{
    char dir[64];
    fake_model m = fake_make(1);
    shl_device *d = fake_device("cpu", NULL, 0);
    shl_ckpt_meta meta;
    int64_t n = 1;
    (void)state;
    fake_folder(dir);
    fake_ok(fake_save(dir, 1, 1, 2, &m, seed, d));
    int64_t before = shl_heap_live_blocks();
    for (shl_code code = SHL_E_HEAP; code != SHL_OK; n++) {
        shl_heap_fail_at(n);
        code = fake_save(dir, 1, 1, 2, &m, seed, d);
        if (code == SHL_OK) {
            code = fake_load(dir, &m, 2, seed, d, &meta);
        }
        shl_heap_fail_at(-1);
        if (code != SHL_OK) {
            assert_int_equal(code, SHL_E_HEAP);
        }
        assert_int_equal(shl_heap_live_blocks(), before);
        assert_int_equal(fake_count(dir, "."), 0);
        expect_old(dir, &m, d, 1);
    }
    print_message("%lld allocations failed in turn\n", (long long)(n - 2));
    assert_true(n > 20);
    fake_ok(shl_device_close(&d));
    fake_remove_tree(dir);
}

int
main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ckpt_crash_killed_at_random),
        cmocka_unit_test(test_ckpt_crash_killed_at_system_calls),
        cmocka_unit_test(test_ckpt_crash_between_two_renames),
        cmocka_unit_test(test_ckpt_crash_file_size_limit),
        cmocka_unit_test(test_ckpt_crash_full_disk),
        cmocka_unit_test(test_ckpt_crash_heap_exhausted),
    };
    if (argc == 4) {
        return run_saver(argv);
    }
    seed = (uint64_t)time(NULL);
    print_message("seed %llu\n", (unsigned long long)seed);
    return cmocka_run_group_tests(tests, NULL, NULL);
}

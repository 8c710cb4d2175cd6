/* tests/support: starting and waiting for runs with a planned fault. */
#include "tests/support/fault_run.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "kernels/base/clock.h"

#define SECOND INT64_C(1000000000)

void
shot_path(const shot *s, const char *name, char *dst, size_t cap)
{
    (void)snprintf(dst, cap, "%s/%s", s->dir, name);
}

static void
child(const shot *s)
{
    char timeout[32], ckpt[160], err[160], out[160];
    shot_path(s, "ckpt", ckpt, sizeof ckpt);
    shot_path(s, "stderr", err, sizeof err);
    shot_path(s, "stdout", out, sizeof out);
    (void)snprintf(timeout, sizeof timeout, "%.3f", (double)s->timeout_ms * 1e-3);
    const char *const words[] = {
        "shardlab",   "train",  "--strategy",   s->strategy,
        "--ranks",    "3",      "--launch",     s->processes ? "processes" : "threads",
        "--timeout",  timeout,  "--layers",     "1",
        "--width",    "32",     "--heads",      "2",
        "--context",  "16",     "--seq",        "16",
        "--batch",    "1",      "--threads",    "1",
        "--steps",    s->steps, "--data",       "synthetic",
        "--ckpt-dir", ckpt,     "--save-every", "1",
        "--jsonl",    NULL};
    union {
        const char *const *in;
        char *const *out;
    } argv = {.in = words};
    int out_fd = open(s->stdout_path ? s->stdout_path : out, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    int err_fd = open(err, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    fault_plan(s->kind, s->place, s->rank, s->fired);
    (void)setenv("TMPDIR", s->dir, 1);
    if (chdir(s->dir) != 0 || dup2(out_fd, 1) < 0 || dup2(err_fd, 2) < 0) {
        _exit(126);
    }
    (void)execv("/proc/self/exe", argv.out);
    _exit(127);
}

void
shot_start(shot *s, const char *folder)
{
    static int n_started;
    (void)snprintf(s->dir, sizeof s->dir, "%s/%03d", folder, n_started++);
    shot_path(s, "fired", s->fired, sizeof s->fired);
    assert_int_equal(mkdir(s->dir, 0700), 0);
    s->steps = s->steps ? s->steps : "3";
    s->pid = fork();
    assert_true(s->pid >= 0);
    if (s->pid == 0) {
        child(s);
    }
}

static void
slurp(const shot *s, const char *name, char *dst, size_t cap)
{
    char path[192];
    shot_path(s, name, path, sizeof path);
    FILE *f = fopen(path, "rb");
    size_t n = f ? fread(dst, 1, cap - 1, f) : 0;
    dst[n] = '\0';
    if (f) {
        (void)fclose(f);
    }
}

int
shot_finish(shot *shots, int n)
{
    int strangers = 0, status = 0;
    int64_t deadline_ns = shl_clock_ns() + 90 * SECOND;
    for (;;) {
        pid_t pid = waitpid(-1, &status, WNOHANG);
        if (pid < 0) {
            assert_int_equal(errno, ECHILD);
            break;
        }
        if (pid == 0) {
            if (shl_clock_ns() > deadline_ns) {
                fail_msg("a run or a rank does not end; see %s", shots[0].dir);
            }
            shl_clock_sleep_ns(5000000);
            continue;
        }
        strangers++;
        for (int i = 0; i < n; i++) {
            if (shots[i].pid == pid) {
                strangers--;
                shots[i].end_ns = shl_clock_ns();
                shots[i].status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
            }
        }
    }
    for (int i = 0; i < n; i++) {
        slurp(&shots[i], "stdout", shots[i].out, sizeof shots[i].out);
        slurp(&shots[i], "stderr", shots[i].err, sizeof shots[i].err);
    }
    return strangers;
}

void
shot_await(const shot *s)
{
    int64_t deadline_ns = shl_clock_ns() + 60 * SECOND;
    while (fault_struck_ns(s->fired) == 0) {
        assert_true(shl_clock_ns() < deadline_ns);
        shl_clock_sleep_ns(5000000);
    }
}

/* tests/bench: the ledger is honest: under a limit that the kernel keeps (private data and shared
 * memory of each process), gpt2-124m on two ranks trains as zero3 and fsdp, and as ddp it cannot. */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "kernels/base/option.h"

#define PARAMS ((size_t)124439808)

/* ddp holds 8 bytes a parameter of moments in private memory, activations too, and 8 of parameters
 * and gradients in shared memory. Sharded over two, half of each, and in shared memory the units in
 * flight. The private limit leaves room for stacks and libraries beside the ledger. */
#define PRIVATE_LIMIT (PARAMS * 5 + ((size_t)256 << 20))
#define SHARED_LIMIT (PARAMS * 9)

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED true
#else
#define SANITIZED false
#endif

typedef struct outcome {
    int status; /* exit status */
    char text[4096];
} outcome;

static void
child(const char *program, const char *strategy, int out_fd)
{
    /* Communication memory is shared memory, which RLIMIT_DATA does not count: its files are held by
     * RLIMIT_FSIZE. Both limits are per process and inherited by the ranks. */
    struct rlimit data = {PRIVATE_LIMIT, PRIVATE_LIMIT}, file = {SHARED_LIMIT, SHARED_LIMIT};
    signal(SIGXFSZ, SIG_IGN);
    dup2(out_fd, STDOUT_FILENO);
    dup2(out_fd, STDERR_FILENO);
    if (setrlimit(RLIMIT_DATA, &data) != 0 || setrlimit(RLIMIT_FSIZE, &file) != 0) {
        _exit(99);
    }
    execl(program, program, "train", "--model", "gpt2-124m", "--strategy", strategy, "--ranks", "2",
          "--launch", "processes", "--batch", "1", "--seq", "32", "--steps", "1", "--bucket", "8M",
          "--data", "synthetic", "--json", (char *)NULL);
    _exit(98);
}

static outcome
run_limited(const char *strategy)
{
    outcome o = {0};
    int fds[2];
    size_t used = 0;
    const char *program = shl_env("SHL_PROGRAM");
    assert_int_equal(pipe(fds), 0);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        close(fds[0]);
        child(program, strategy, fds[1]);
    }
    close(fds[1]);
    char chunk[1024];
    for (ssize_t n; (n = read(fds[0], chunk, sizeof(chunk))) > 0;) {
        size_t room = sizeof(o.text) - 1 - used;
        size_t take = (size_t)n < room ? (size_t)n : room;
        memcpy(o.text + used, chunk, take);
        used += take;
    }
    close(fds[0]);
    int status = 0;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    o.status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    return o;
}

static void
test_honest_memory_under_a_kernel_limit(void **state)
{
    (void)state;
    if (shl_env("SHL_PROGRAM") == NULL || SANITIZED) {
        skip(); /* a sanitizer's shadow memory does not fit any such limit */
    }
    static const char *const fit[] = {"zero3", "fsdp"};
    for (size_t i = 0; i < 2; ++i) {
        outcome o = run_limited(fit[i]);
        if (o.status != 0) {
            fail_msg("%s ended with %d:\n%s", fit[i], o.status, o.text);
        }
    }
    outcome ddp = run_limited("ddp");
    if (ddp.status != 3 || strstr(ddp.text, "out of") == NULL) {
        fail_msg("ddp ended with %d:\n%s", ddp.status, ddp.text);
    }
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_honest_memory_under_a_kernel_limit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

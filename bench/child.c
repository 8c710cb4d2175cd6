/* bench: another program with a deadline. It leads a process group of its own, so that its children end
 * with it. */
#include "bench/child.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "kernels/base/clock.h"
#include "kernels/base/heap.h"

#define KEEP_BYTES ((size_t)1 << 16)
#define POLL_MS 20
#define GRACE_MS 2000  /* between the request to end and the end by force */
#define LEAVE_MS 10000 /* between the end by force and giving it up */

/* The caller's environment with c->env over it. Owner: caller (the array, not the texts). */
static shl_code
join_environment(const shl_child *c, char ***out)
{
    size_t own = 0, more = 0, n = 0;
    while (environ[own]) {
        own++;
    }
    while (c->env && c->env[more]) {
        more++;
    }
    char **all = NULL;
    SHL_TRY(shl_heap_alloc(own + more + 1, sizeof(*all), &all));
    for (size_t i = 0; i < own; i++) {
        bool replaced = false;
        for (size_t k = 0; k < more; k++) {
            size_t len = strcspn(c->env[k], "=") + 1;
            replaced = replaced || strncmp(environ[i], c->env[k], len) == 0;
        }
        if (!replaced) {
            all[n++] = environ[i];
        }
    }
    /* posix_spawn leaves the strings alone. */
    memcpy(all + n, c->env, more * sizeof(*all));
    *out = all;
    return SHL_OK;
}

/* Both streams of the child into one pipe; *fd is its reading end. */
static shl_code
start(const shl_child *c, pid_t *pid, int *fd)
{
    int ends[2];
    char **env = NULL;
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attr;
    union {
        const char *const *in;
        char *const *out;
    } words = {.in = c->argv};
    SHL_TRY(join_environment(c, &env));
    if (pipe2(ends, O_CLOEXEC) != 0) {
        shl_heap_free(&env);
        (void)SHL_RAISE(SHL_E_SYSTEM, "cannot make a pipe for %s", c->argv[0]);
        return shl_err_because("%s", strerror(errno));
    }
    int error = posix_spawn_file_actions_init(&actions);
    error = error ? error : posix_spawnattr_init(&attr);
    if (error == 0) {
        (void)posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
        (void)posix_spawn_file_actions_adddup2(&actions, ends[1], STDOUT_FILENO);
        (void)posix_spawn_file_actions_adddup2(&actions, ends[1], STDERR_FILENO);
        (void)posix_spawnattr_setflags(&attr, POSIX_SPAWN_SETPGROUP);
        (void)posix_spawnattr_setpgroup(&attr, 0);
        error = posix_spawnp(pid, c->argv[0], &actions, &attr, words.out, env);
        (void)posix_spawn_file_actions_destroy(&actions);
        (void)posix_spawnattr_destroy(&attr);
    }
    (void)close(ends[1]);
    shl_heap_free(&env);
    if (error != 0) {
        (void)close(ends[0]);
        (void)SHL_RAISE(SHL_E_SYSTEM, "cannot start %s", c->argv[0]);
        return shl_err_because("%s", strerror(error));
    }
    *fd = ends[0];
    return SHL_OK;
}

/* Keeps the end of what was written. */
static void
keep(shl_str *output, const char *data, size_t len)
{
    if (output->len + len > KEEP_BYTES) {
        size_t rest = output->len > KEEP_BYTES / 2 ? KEEP_BYTES / 2 : output->len;
        shl_str tail = {0};
        shl_str_add_text(&tail, shl_str_get(output) + (output->len - rest), rest);
        shl_str_fini(output);
        *output = tail;
    }
    shl_str_add_text(output, data, len);
}

typedef enum found { FOUND_NOTHING = 0, FOUND_DATA, FOUND_END } found;

static found
drain(int fd, shl_child *c)
{
    char block[4096];
    struct pollfd ready = {.fd = fd, .events = POLLIN};
    if (poll(&ready, 1, POLL_MS) <= 0) {
        return FOUND_NOTHING;
    }
    ssize_t n = read(fd, block, sizeof(block));
    if (n <= 0) {
        return n < 0 && errno == EINTR ? FOUND_NOTHING : FOUND_END;
    }
    keep(&c->output, block, (size_t)n);
    if (c->on_data) {
        c->on_data(c->ctx, block, (size_t)n);
    }
    return FOUND_DATA;
}

shl_code
shl_child_run(shl_child *c)
{
    pid_t pid = 0;
    int fd = -1, status = 0;
    bool ended = false;
    found last = FOUND_NOTHING;
    c->status = -1;
    c->timed_out = c->stopped = false;
    SHL_TRY(start(c, &pid, &fd));
    int64_t deadline_ns = shl_clock_ns() + c->timeout_ms * INT64_C(1000000);
    while (!ended) {
        if (last != FOUND_END) {
            last = drain(fd, c);
        } else {
            shl_clock_sleep_ns(POLL_MS * INT64_C(1000000) / 4);
        }
        ended = waitpid(pid, &status, WNOHANG) == pid;
        bool late = shl_clock_ns() > deadline_ns;
        bool asked = c->stop && atomic_load(c->stop) && !c->stopped && !c->timed_out;
        if (ended || !(late || asked)) {
            continue;
        }
        if (c->stopped || c->timed_out) {
            (void)kill(-pid, SIGKILL);
            /* One that hangs inside a driver does not even end then: it is left behind. */
            ended = shl_clock_ns() > deadline_ns + LEAVE_MS * INT64_C(1000000);
            status = ended ? SIGKILL : status;
            continue;
        }
        /* First a word, so that it ends its own children. */
        c->stopped = asked;
        c->timed_out = !asked;
        (void)kill(-pid, SIGINT);
        int64_t grace_ms = c->grace_ms > 0 ? c->grace_ms : GRACE_MS;
        deadline_ns = shl_clock_ns() + grace_ms * INT64_C(1000000);
    }
    (void)kill(-pid, SIGKILL); /* whatever it left running */
    do {
        last = last == FOUND_END ? last : drain(fd, c);
    } while (last == FOUND_DATA);
    (void)close(fd);
    c->status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    return SHL_OK;
}

void
shl_child_last_words(const shl_child *c, char *dst, size_t dst_bytes)
{
    const char *error = strstr(shl_str_get(&c->output), "error: ");
    shl_strf(dst, dst_bytes, "%s", error ? error : shl_child_last_line(c));
    for (char *p = dst; *p; p++) {
        *p = *p == '\n' ? ' ' : *p;
    }
}

void
shl_child_fini(shl_child *c)
{
    shl_str_fini(&c->output);
}

const char *
shl_child_last_line(const shl_child *c)
{
    const char *text = shl_str_get(&c->output), *end = text + strlen(text);
    while (end > text && end[-1] == '\n') {
        end--;
    }
    const char *at = end;
    while (at > text && at[-1] != '\n') {
        at--;
    }
    return at;
}

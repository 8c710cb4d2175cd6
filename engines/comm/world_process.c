/* engines/comm: ranks as processes: fork + exec of the same program, the supervisor that waits for
 * them, and joining a world from inside one. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "engines/comm/launch.h"
#include "engines/comm/world_impl.h"
#include "engines/comm/world_wire.h"
#include "kernels/base/clock.h"
#include "kernels/base/heap.h"
#include "kernels/base/log.h"
#include "kernels/base/option.h"
#include "kernels/base/str.h"
#include "kernels/base/types.h"

#define POLL_NS 100000000

/* What the supervisor knows of its ranks. */
typedef struct party {
    shl_shm_block *block;
    size_t block_bytes;
    int block_fd;
    pid_t supervisor;
    pid_t pid[SHL_WORLD_MAX_RANKS]; /* 0: not running */
    int n_alive;
    int signal;      /* forwarded; 0: none */
    int64_t kill_ns; /* when to kill what is left; 0: not decided */
    int64_t late_ns; /* when to miss what is left, once a rank has ended; 0: not decided */
    bool killed;
    bool hurried; /* by a second signal */
    sigset_t signals, old_mask;
    char **argv, **envp;
    char env[4][96]; /* our own variables; [0] is SHL_WORLD, [3] NCCL_HOSTID */
    char profile[SHL_SHARE_SETTINGS][sizeof shl_share_settings[0]];
} party;

static const char *const env_names[] = {
    "SHL_WORLD=", "OMP_NUM_THREADS=", "OMP_WAIT_POLICY=", "GOMP_SPINCOUNT="};

/* A sealed-off file in memory above the standard descriptors. */
static shl_code
open_memfd(const char *name, int *out)
{
    int fd = memfd_create(name, MFD_CLOEXEC);
    int high = fd < 0 ? -1 : fcntl(fd, F_DUPFD_CLOEXEC, 3);
    if (high < 0) {
        (void)SHL_RAISE(SHL_E_SYSTEM, "cannot create shared memory (memfd %s)", name);
        (void)shl_err_because("%s", strerror(errno));
    }
    if (fd >= 0) {
        (void)close(fd);
    }
    *out = high;
    return high < 0 ? shl_err_get()->code : SHL_OK;
}

static shl_code
party_open_memory(party *p, const shl_world_config *cfg)
{
    size_t range_bytes = 0;
    SHL_TRY(shl_shm_range_find(cfg->ranks, &range_bytes));
    p->block_bytes = shl_shm_block_bytes(cfg->ranks);
    SHL_TRY(open_memfd("shardlab-control", &p->block_fd));
    void *m = MAP_FAILED;
    if (ftruncate(p->block_fd, (off_t)p->block_bytes) == 0) {
        m = mmap(NULL, p->block_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, p->block_fd, 0);
    }
    if (m == MAP_FAILED) {
        (void)SHL_RAISE(SHL_E_SYSTEM, "no memory for the control block of %d ranks", cfg->ranks);
        return shl_err_because("%s", strerror(errno));
    }
    p->block = (shl_shm_block *)m;
    for (int r = 0; r < SHL_WORLD_MAX_RANKS; r++) {
        p->block->memfd[r] = -1;
    }
    shl_shm_block_init(p->block, cfg, true);
    p->block->range_bytes = range_bytes;
    for (int r = 0; r < cfg->ranks; r++) {
        SHL_TRY(open_memfd("shardlab-rank", &p->block->memfd[r]));
    }
    return SHL_OK;
}

static bool
is_ours(const char *entry)
{
    for (size_t i = 0; i < SHL_ARRAY_LEN(env_names); i++) {
        if (strncmp(entry, env_names[i], strlen(env_names[i])) == 0) {
            return true;
        }
    }
    return false;
}

static bool
is_set(char *const *environment, size_t n, const char *entry)
{
    size_t name = strcspn(entry, "=") + 1;
    for (size_t i = 0; i < n; i++) {
        if (strncmp(environment[i], entry, name) == 0) {
            return true;
        }
    }
    return false;
}

/* argv and the environment of the ranks; env[0] and [3] are rewritten for each. */
static shl_code
party_open_program(party *p, const char *const *argv, bool share_gpu)
{
    size_t argc = 0;
    while (argv[argc] != NULL) {
        argc++;
    }
    SHL_TRY(shl_heap_alloc(argc + 1, sizeof *p->argv, &p->argv));
    memcpy(p->argv, argv, argc * sizeof *p->argv);

    size_t n = 0;
    while (environ[n] != NULL) {
        n++;
    }
    size_t most = n + SHL_ARRAY_LEN(env_names) + SHL_SHARE_SETTINGS + 2;
    SHL_TRY(shl_heap_alloc(most, sizeof *p->envp, &p->envp));
    size_t kept = 0;
    for (size_t i = 0; i < n; i++) {
        if (!is_ours(environ[i])) {
            p->envp[kept++] = environ[i];
        }
    }
    const shl_shm_block *b = p->block;
    shl_strf(p->env[1], sizeof p->env[1], "OMP_NUM_THREADS=%d", b->threads_per_rank);
    p->envp[kept++] = p->env[0];
    p->envp[kept++] = p->env[1];
    if (b->ranks * b->threads_per_rank > b->cores) {
        shl_strf(p->env[2], sizeof p->env[2], "OMP_WAIT_POLICY=passive");
    } else {
        shl_strf(p->env[2], sizeof p->env[2], "GOMP_SPINCOUNT=2000");
    }
    p->envp[kept++] = p->env[2];
    for (size_t i = 0; share_gpu && i < SHL_SHARE_SETTINGS; i++) {
        if (!is_set(environ, n, shl_share_settings[i])) {
            shl_strf(p->profile[i], sizeof p->profile[i], "%s", shl_share_settings[i]);
            p->envp[kept++] = p->profile[i];
        }
    }
    if (share_gpu) {
        p->envp[kept] = p->env[3];
    }
    return SHL_OK;
}

static void
party_close(party *p)
{
    if (p->block != NULL) {
        for (int r = 0; r < p->block->ranks; r++) {
            if (p->block->memfd[r] >= 0) {
                (void)close(p->block->memfd[r]);
            }
        }
        (void)munmap(p->block, p->block_bytes);
    }
    if (p->block_fd >= 0) {
        (void)close(p->block_fd);
    }
    shl_heap_free(&p->argv);
    shl_heap_free(&p->envp);
}

/* Between fork and exec: only calls that are safe after a fork of a threaded process. */
static void
child_exec(const party *p, int rank)
{
    (void)setpgid(0, 0); /* a terminal's Ctrl-C reaches ranks through the supervisor only */
    (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != p->supervisor) {
        _exit(126);
    }
    int null = open("/dev/null", O_RDONLY | O_CLOEXEC);
    if (null >= 0) {
        (void)dup2(null, STDIN_FILENO);
    }
    (void)fcntl(p->block_fd, F_SETFD, 0);
    for (int r = 0; r < p->block->ranks; r++) {
        (void)fcntl(p->block->memfd[r], F_SETFD, 0);
    }
    (void)sigprocmask(SIG_SETMASK, &p->old_mask, NULL);
    (void)execve(p->argv[0], p->argv, p->envp);
    atomic_store(&p->block->rank[rank].exec_errno, errno);
    _exit(127);
}

/* Records how a rank ended without leaving, in its slot, and tells the others. */
static void
mark_dead(party *p, int rank, const shl_err *err)
{
    shl_shm_block *b = p->block;
    shl_shm_rank *r = &b->rank[rank];
    r->code = err->code;
    r->err = *err;
    r->order = atomic_fetch_add(&b->order, 1);
    atomic_store_explicit(&r->state, SHL_SHM_DEAD, memory_order_release);
    shl_shm_note(b, b->ranks, rank, err);
}

static void
spawn_all(party *p)
{
    for (int r = 0; r < p->block->ranks; r++) {
        shl_strf(p->env[0], sizeof p->env[0], "SHL_WORLD=%d,%d,%d", p->block_fd, p->block->ranks,
                 r);
        shl_strf(p->env[3], sizeof p->env[3], "NCCL_HOSTID=t%d", r);
        pid_t pid = fork();
        if (pid == 0) {
            child_exec(p, r);
        }
        if (pid < 0) {
            shl_err err = {.code = SHL_E_SYSTEM};
            shl_strf(err.what, sizeof err.what, "rank %d cannot be started", r);
            shl_strf(err.because, sizeof err.because, "fork: %s", strerror(errno));
            mark_dead(p, r, &err);
            continue;
        }
        p->pid[r] = pid;
        p->n_alive++;
    }
}

static void
kill_all(party *p, int signal)
{
    for (int r = 0; r < p->block->ranks; r++) {
        if (p->pid[r] > 0) {
            (void)kill(p->pid[r], signal);
        }
    }
}

/* The note that says why the world was given up; NULL when it was not. */
static const shl_shm_rank *
first_note(const party *p)
{
    uint32_t first = atomic_load_explicit(&p->block->aborted, memory_order_acquire);
    return first == 0 ? NULL : &p->block->rank[first - 1];
}

static void
advise_death(int signal, shl_err *err)
{
    if (signal == SIGKILL) {
        shl_strf(err->advice, sizeof err->advice,
                 "dmesg, for the kernel's out-of-memory killer; if it was that, fewer ranks or a "
                 "smaller batch");
    } else if (signal == SIGBUS) {
        shl_strf(err->advice, sizeof err->advice,
                 "a look at the limit on shared memory of this container or session");
    }
}

static void
describe_death(const party *p, int rank, int status, shl_err *err)
{
    const shl_shm_rank *note = first_note(p);
    const char *phase = shl_shm_phase(p->block, rank);
    int exec_errno = atomic_load(&p->block->rank[rank].exec_errno);
    err->code = SHL_E_PEER;
    if (exec_errno != 0) {
        err->code = SHL_E_SYSTEM;
        shl_strf(err->what, sizeof err->what, "rank %d cannot be started", rank);
        shl_strf(err->because, sizeof err->because, "%s: %s", p->argv[0], strerror(exec_errno));
    } else if (note != NULL && note->note_rank == rank) {
        *err = note->note; /* what the others found: it stalled */
    } else if (p->hurried) {
        err->code = SHL_E_INTERRUPTED;
        shl_strf(err->what, sizeof err->what, "interrupted twice: ranks were killed");
    } else if (WIFSIGNALED(status) && WTERMSIG(status) == p->signal) {
        err->code = SHL_E_INTERRUPTED;
        shl_strf(err->what, sizeof err->what, "rank %d was interrupted by signal %d", rank,
                 p->signal);
    } else if (p->killed) {
        shl_strf(err->what, sizeof err->what, "rank %d did not end in time and was killed", rank);
    } else if (WIFSIGNALED(status)) {
        shl_strf(err->what, sizeof err->what, "rank %d died in %s: killed by signal %d", rank,
                 phase, WTERMSIG(status));
        advise_death(WTERMSIG(status), err);
    } else {
        shl_strf(err->what, sizeof err->what, "rank %d died in %s: exited with status %d", rank,
                 phase, WEXITSTATUS(status));
    }
}

static void
reap(party *p)
{
    for (int r = 0; r < p->block->ranks; r++) {
        int status = 0;
        if (p->pid[r] <= 0 || waitpid(p->pid[r], &status, WNOHANG) != p->pid[r]) {
            continue;
        }
        p->pid[r] = 0;
        p->n_alive--;
        const shl_shm_rank *slot = &p->block->rank[r];
        bool left = atomic_load_explicit(&slot->state, memory_order_acquire) == SHL_SHM_LEFT;
        if (p->late_ns == 0) {
            p->late_ns = shl_clock_ns() + p->block->timeout_ms * 1000000;
        }
        if (!left || (slot->code == SHL_OK && status != 0)) {
            shl_err err = {.code = SHL_OK};
            describe_death(p, r, status, &err);
            mark_dead(p, r, &err);
        }
    }
}

/* A rank that stalls behind its last call is missed by nobody but the supervisor. */
static void
miss_late(party *p)
{
    shl_shm_block *b = p->block;
    if (p->late_ns == 0 || first_note(p) != NULL || shl_clock_ns() < p->late_ns) {
        return;
    }
    for (int r = 0; r < b->ranks; r++) {
        if (p->pid[r] > 0) {
            shl_err err = {.code = SHL_E_PEER};
            shl_strf(err.what, sizeof err.what,
                     "rank %d has not ended within %.1f s of the first that did", r,
                     (double)b->timeout_ms / 1e3);
            shl_shm_note(b, b->ranks, r, &err);
            return;
        }
    }
}

/* Once the world is given up, ranks have one more timeout; the culprit alone has none. */
static void
kill_late(party *p)
{
    const shl_shm_rank *note = first_note(p);
    if (note == NULL || p->killed) {
        return;
    }
    int64_t now_ns = shl_clock_ns();
    if (p->kill_ns == 0) {
        p->kill_ns = now_ns + p->block->timeout_ms * 1000000;
    }
    bool culprit_alone =
        p->n_alive == 1 && p->pid[note->note_rank] > 0 && note != &p->block->rank[note->note_rank];
    if (culprit_alone || now_ns >= p->kill_ns) {
        p->killed = true;
        kill_all(p, SIGKILL);
    }
}

static void
supervise(party *p)
{
    const struct timespec poll = {0, POLL_NS};
    for (;;) {
        reap(p);
        if (p->n_alive == 0) {
            return;
        }
        miss_late(p);
        kill_late(p);
        int signal = sigtimedwait(&p->signals, NULL, &poll);
        if (signal == SIGINT || signal == SIGTERM) {
            p->hurried = p->hurried || p->signal != 0;
            p->killed = p->killed || p->hurried;
            kill_all(p, p->signal == 0 ? signal : SIGKILL);
            p->signal = signal;
        }
    }
}

shl_code
shl_world_run_processes(const shl_world_config *cfg, const char *const *argv, bool *printed)
{
    *printed = false;
    SHL_TRY(shl_shm_config_check(cfg));
    party *p = NULL;
    SHL_TRY(shl_heap_alloc(1, sizeof *p, &p));
    p->block_fd = -1;
    p->supervisor = getpid();
    shl_code code = SHL_OK;
    int failed = -1;
    SHL_TRY_TO(code, out, party_open_memory(p, cfg));
    SHL_TRY_TO(code, out, party_open_program(p, argv, cfg->share_gpu));

    (void)sigemptyset(&p->signals);
    (void)sigaddset(&p->signals, SIGINT);
    (void)sigaddset(&p->signals, SIGTERM);
    (void)sigaddset(&p->signals, SIGCHLD);
    (void)pthread_sigmask(SIG_BLOCK, &p->signals, &p->old_mask);
    spawn_all(p);
    supervise(p);
    (void)pthread_sigmask(SIG_SETMASK, &p->old_mask, NULL);

    code = shl_shm_result(p->block, &failed);
    *printed = failed >= 0 && atomic_load(&p->block->rank[failed].state) == SHL_SHM_LEFT;
out:
    party_close(p);
    shl_heap_free(&p);
    return code;
}

/* --- inside a rank ----------------------------------------------------------------------- */

static shl_code
not_a_world(const char *text)
{
    (void)SHL_RAISE(SHL_E_USAGE, "SHL_WORLD does not describe a running world");
    (void)shl_err_because("it is \"%s\"", text);
    return shl_err_advice("unset SHL_WORLD: it is set for the ranks of a world only");
}

static shl_code
map_block(shl_world *w, const char *text)
{
    int fd = -1, ranks = 0, rank = -1;
    if (sscanf(text, "%d,%d,%d", &fd, &ranks, &rank) != 3 || ranks < 1 ||
        ranks > SHL_WORLD_MAX_RANKS || rank < 0 || rank >= ranks) {
        return not_a_world(text);
    }
    struct stat st;
    if (fstat(fd, &st) != 0 || (size_t)st.st_size != shl_shm_block_bytes(ranks)) {
        return not_a_world(text);
    }
    void *m = mmap(NULL, (size_t)st.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (m == MAP_FAILED) {
        return not_a_world(text);
    }
    shl_shm_block *b = (shl_shm_block *)m;
    if (b->magic != SHL_SHM_MAGIC || b->ranks != ranks) {
        (void)munmap(m, (size_t)st.st_size);
        return not_a_world(text);
    }
    (void)close(fd);
    w->block = b;
    w->rank = rank;
    return SHL_OK;
}

/* Own memory to write, the peers' to read. The descriptors of the peers close here. */
static shl_code
map_memory(shl_world *w)
{
    const shl_shm_block *b = w->block;
    for (int r = 0; r < b->ranks; r++) {
        int prot = r == w->rank ? PROT_READ | PROT_WRITE : PROT_READ;
        void *m = mmap(NULL, b->range_bytes, prot, MAP_SHARED | MAP_NORESERVE, b->memfd[r], 0);
        if (m == MAP_FAILED) {
            (void)SHL_RAISE(SHL_E_SYSTEM, "cannot map the communication memory of rank %d", r);
            return shl_err_because("%s", strerror(errno));
        }
        w->base[r] = m;
        if (r == w->rank) {
            w->memfd = b->memfd[r];
            (void)fcntl(w->memfd, F_SETFD, FD_CLOEXEC);
        } else {
            (void)close(b->memfd[r]);
        }
    }
    return SHL_OK;
}

void
shl_shm_world_forget(shl_world *w)
{
    if (w->block == NULL) {
        return;
    }
    shl_arena_close(&w->arena);
    for (int r = 0; r < w->block->ranks; r++) {
        if (w->base[r] != NULL) {
            (void)munmap(w->base[r], w->block->range_bytes);
        }
    }
    if (w->memfd >= 0) {
        (void)close(w->memfd);
    }
    (void)munmap(w->block, shl_shm_block_bytes(w->block->ranks));
}

shl_code
shl_world_join(shl_world **out)
{
    *out = NULL;
    const char *text = shl_env("SHL_WORLD");
    if (text == NULL) {
        return SHL_OK;
    }
    shl_world *w = NULL;
    SHL_TRY(shl_heap_alloc(1, sizeof *w, &w));
    w->memfd = -1;
    shl_code code = map_block(w, text);
    if (code != SHL_OK) {
        shl_heap_free(&w);
        return code;
    }
    shl_log_set_rank(w->rank);
    code = map_memory(w);
    if (code == SHL_OK) {
        code = shl_shm_world_init(w);
    }
    if (code != SHL_OK) {
        shl_world_leave(&w, code);
        return code;
    }
    *out = w;
    return SHL_OK;
}

void
shl_world_leave(shl_world **w, shl_code code)
{
    if (*w == NULL) {
        return;
    }
    SHL_ASSERT((*w)->block->processes);
    shl_shm_rank_leave(*w, code);
    if ((*w)->wire != NULL) {
        shl_wire_leave(*w);
    }
    shl_shm_world_forget(*w);
    shl_heap_free(w);
}

/* bench: the program in its machine. One flag for the interrupt, and the one restart that gives OpenMP its
 * environment. */
#include "bench/host.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kernels/base/log.h"
#include "kernels/base/option.h"
#include "kernels/base/str.h"

/* Written by the signal handler only; nothing else can reach a handler. */
static atomic_int stop_flag; /* rank threads read it, so it is atomic and lock-free */
static volatile sig_atomic_t stop_is_final;

static void
on_interrupt(int signum)
{
    if (atomic_load(&stop_flag) && stop_is_final) {
        signal(signum, SIG_DFL);
        raise(signum);
        return;
    }
    atomic_store(&stop_flag, 1);
}

shl_code
shl_host_catch_signals(bool is_rank)
{
    struct sigaction interrupt = {0}, ignore = {0};
    interrupt.sa_handler = on_interrupt;
    interrupt.sa_flags = SA_RESTART;
    ignore.sa_handler = SIG_IGN;
    stop_is_final = !is_rank;
    /* A closed pipe and a limit on the length of files are errors of the call that meets them. */
    if (sigaction(SIGINT, &interrupt, NULL) != 0 || sigaction(SIGPIPE, &ignore, NULL) != 0 ||
        sigaction(SIGXFSZ, &ignore, NULL) != 0) {
        SHL_RAISE(SHL_E_SYSTEM, "cannot set a signal handler");
        return shl_err_because("%s", strerror(errno));
    }
    return SHL_OK;
}

atomic_int *
shl_host_stop_flag(void)
{
    return &stop_flag;
}

int
shl_host_cores(void)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    if (sched_getaffinity(0, sizeof(set), &set) == 0 && CPU_COUNT(&set) > 0) {
        return CPU_COUNT(&set);
    }
    long n = sysconf(_SC_NPROCESSORS_ONLN);
    return n > 0 ? (int)n : 1;
}

shl_code
shl_host_fit_openmp(const char *const *argv, int ranks, int threads)
{
    if (shl_env("SHL_OMP_SET")) {
        return SHL_OK;
    }
    char count[16];
    shl_strf(count, sizeof(count), "%d", threads);
    bool crowded = (int64_t)ranks * threads > shl_host_cores();
    int failed = setenv("SHL_OMP_SET", "1", 1) | setenv("OMP_NUM_THREADS", count, 0);
    failed |=
        crowded ? setenv("OMP_WAIT_POLICY", "passive", 0) : setenv("GOMP_SPINCOUNT", "2000", 0);
    if (failed) {
        return SHL_RAISE(SHL_E_SYSTEM, "cannot set the environment of OpenMP");
    }
    /* exec takes the words as they are and never writes to them. */
    union {
        const char *const *in;
        char *const *out;
    } words = {.in = argv};
    execv("/proc/self/exe", words.out);
    shl_log(SHL_LOG_WARN, "bench", "cannot start %s again with OpenMP's environment: %s", argv[0],
            strerror(errno));
    return SHL_OK;
}

/* kernels/base: monotonic and CPU time in nanoseconds.
 * One place, so that every time in a record comes from the same clocks. */
#include "kernels/base/clock.h"

#include <errno.h>
#include <time.h>

#include "kernels/base/err.h"

#define NS_PER_S INT64_C(1000000000)

static int64_t
read_ns(clockid_t id)
{
    struct timespec t;
    int rc = clock_gettime(id, &t);
    SHL_ASSERT(rc == 0);
    return (int64_t)t.tv_sec * NS_PER_S + t.tv_nsec;
}

int64_t
shl_clock_ns(void)
{
    return read_ns(CLOCK_MONOTONIC);
}

int64_t
shl_clock_process_ns(void)
{
    return read_ns(CLOCK_PROCESS_CPUTIME_ID);
}

int64_t
shl_clock_thread_ns(void)
{
    return read_ns(CLOCK_THREAD_CPUTIME_ID);
}

void
shl_clock_sleep_ns(int64_t ns)
{
    if (ns <= 0) {
        return;
    }
    /* An absolute end, so that signals do not stretch the sleep. */
    int64_t end = shl_clock_ns() + ns;
    struct timespec t = {.tv_sec = end / NS_PER_S, .tv_nsec = end % NS_PER_S};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL) == EINTR) {
    }
}

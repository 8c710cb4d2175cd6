/* tests/support: one planned fault in a running program: in a phase of its second step (or while it opens,
 * saves, closes) one rank is killed, stopped, leaves, hangs, runs out of memory, or meets a failing
 * read or write. The plan comes through the environment, so that rank processes inherit it. */
#ifndef SHL_TESTS_FAULT_H
#define SHL_TESTS_FAULT_H

#include <stdint.h>

typedef enum fault_kind {
    FAULT_NONE = 0, /* the program runs as it is */
    FAULT_KILL,     /* SIGKILL: processes only, as the next two */
    FAULT_STOP,     /* SIGSTOP */
    FAULT_EXIT,     /* exits silently with status 0 */
    FAULT_OOM,      /* a device limit on this rank only */
    FAULT_IO,       /* a system call fails: of the save where it can be made to, else of a read */
    FAULT_HANG      /* sleeps for an hour */
} fault_kind;

typedef enum fault_place {
    FAULT_INIT = 0,
    FAULT_FORWARD,
    FAULT_BACKWARD,
    FAULT_STEP,
    FAULT_SAVE,
    FAULT_CLOSE, /* behind the last agreement */
    FAULT_PLACE_COUNT
} fault_place;

/* Sets the plan in the environment of this process. path: a file that tells when it struck. */
void fault_plan(fault_kind kind, fault_place place, int rank, const char *path);

/* Whether this process has a plan; reads it. Call before any engine is opened. */
int fault_load(void);

/* When the fault of `path` struck, on the monotonic clock; 0: not yet. */
int64_t fault_struck_ns(const char *path);

#endif

/* tests/support: runs of the whole program with a planned fault, several at a time, each in a folder of its
 * own; the program is the file of the test itself. */
#ifndef SHL_TESTS_FAULT_RUN_H
#define SHL_TESTS_FAULT_RUN_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "tests/support/fault.h"

/* One run of the program. */
typedef struct shot {
    fault_kind kind;
    fault_place place;
    int rank;
    bool processes;
    const char *strategy;
    int64_t timeout_ms;
    const char *steps;
    const char *stdout_path; /* NULL: a file in the folder */
    char dir[128], fired[160];
    pid_t pid;
    int status; /* as a shell sees it */
    int64_t end_ns;
    char out[1 << 14], err[1 << 12];
} shot;

/* Starts a run of three ranks below `folder`; the caller has set what stands before dir. */
void shot_start(shot *s, const char *folder);

/* Waits for every shot, and for whatever else has become this process's child: ranks whose parent is
 * gone. Returns the number of those. */
int shot_finish(shot *shots, int n);

/* Waits until the fault of a shot has struck. */
void shot_await(const shot *s);

/* The path of a file of the run. */
void shot_path(const shot *s, const char *name, char *dst, size_t cap);

#endif

/* tests/support: the program under test: SHL_PROGRAM, or the one beside the folder of the tests. */
#ifndef SHL_TESTS_PROGRAM_H
#define SHL_TESTS_PROGRAM_H

#include <limits.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kernels/base/option.h"

static char program[PATH_MAX];

/* Puts its whole path into `program`; false when there is none that can be run. */
static inline bool
find_program(void)
{
    char self[PATH_MAX];
    const char *given = shl_env("SHL_PROGRAM");
    if (given == NULL || realpath(given, program) == NULL) {
        ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 32);
        self[n > 0 ? n : 0] = '\0';
        char *slash = strrchr(self, '/'); /* .../tests/test_name */
        if (slash == NULL) {
            return false;
        }
        (void)strcpy(slash, "/../shardlab");
        if (realpath(self, program) == NULL) {
            return false;
        }
    }
    return access(program, X_OK) == 0;
}

#endif

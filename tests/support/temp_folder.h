/* tests/support: one temporary folder for a test program: group fixtures make and remove it. */
#ifndef SHL_TESTS_TEMP_FOLDER_H
#define SHL_TESTS_TEMP_FOLDER_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static char folder[] = "/tmp/shl-test-XXXXXX";

static inline int
make_folder(void **state)
{
    (void)state;
    return mkdtemp(folder) != NULL ? 0 : -1;
}

static inline int
remove_folder(void **state)
{
    char command[64];
    (void)state;
    (void)snprintf(command, sizeof(command), "rm -rf '%s'", folder);
    return system(command);
}

#endif

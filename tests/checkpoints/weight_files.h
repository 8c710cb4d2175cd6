/* tests/checkpoints: small safetensors files of a test's making, right and wrong ones, in a folder
 * of their own. */
#ifndef SHL_TESTS_WEIGHT_FILES_H
#define SHL_TESTS_WEIGHT_FILES_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "kernels/base/heap.h"
#include "kernels/base/option.h"
#include "kernels/base/str.h"

static char weight_folder[64];

static inline int
weight_folder_make(void **state)
{
    (void)state;
    (void)snprintf(weight_folder, sizeof weight_folder, "%s/shl-weights-XXXXXX",
                   access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
    return mkdtemp(weight_folder) ? 0 : 1;
}

static inline int
weight_folder_remove(void **state)
{
    (void)state;
    char command[96];
    (void)snprintf(command, sizeof command, "rm -rf %s", weight_folder);
    return system(command);
}

/* A path below the folder; one of four texts that live side by side. */
static inline const char *
weight_path(const char *name)
{
    static char paths[4][256];
    static int at;
    char *path = paths[at++ % 4];
    (void)snprintf(path, sizeof paths[0], "%s/%s", weight_folder, name);
    return path;
}

/* A new, empty folder below it. */
static inline const char *
weight_dir(const char *name)
{
    const char *path = weight_path(name);
    assert_int_equal(mkdir(path, 0700), 0);
    return path;
}

static inline void
weight_put(const char *path, const void *bytes, size_t n)
{
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(n > 0 ? fwrite(bytes, 1, n, f) : 0, n);
    assert_int_equal(fclose(f), 0);
}

/* A file with this header, its right length, and n bytes behind it (NULL: 0, 1, 2, ...). */
static inline void
weight_put_file(const char *path, const char *header, const void *data, size_t n)
{
    size_t len = strlen(header);
    unsigned char *bytes = malloc(8 + len + n + 1);
    assert_non_null(bytes);
    for (size_t i = 0; i < 8; i++) {
        bytes[i] = (unsigned char)((uint64_t)len >> (8 * i));
    }
    memcpy(bytes + 8, header, len);
    for (size_t i = 0; i < n; i++) {
        bytes[8 + len + i] = data ? ((const unsigned char *)data)[i] : (unsigned char)i;
    }
    weight_put(path, bytes, 8 + len + n);
    free(bytes);
}

/* The folder of golden weights. */
static inline const char *
weight_golden(const char *name)
{
    static char paths[4][512];
    static int at;
    char *path = paths[at++ % 4];
    const char *dir = shl_env("SHL_GOLDEN_DIR");
    (void)snprintf(path, sizeof paths[0], "%s/safetensors/%s", dir ? dir : "tests/golden", name);
    return path;
}

/* The whole file. Owner: caller, free. */
static inline unsigned char *
weight_slurp(const char *path, size_t *n)
{
    struct stat st;
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    assert_int_equal(fstat(fileno(f), &st), 0);
    *n = (size_t)st.st_size;
    unsigned char *bytes = malloc(*n + 1);
    assert_non_null(bytes);
    assert_int_equal(fread(bytes, 1, *n, f), *n);
    assert_int_equal(fclose(f), 0);
    return bytes;
}

#endif

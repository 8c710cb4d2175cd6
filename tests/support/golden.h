/* tests/support: reads the golden HDF5 files (SHL_GOLDEN_DIR, default tests/golden). A missing
 * file, attribute or data set fails the test with its name: for the test's main thread only. */
#ifndef SHL_TESTS_GOLDEN_H
#define SHL_TESTS_GOLDEN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <hdf5.h>

/* Names of the files in the folder whose root attribute model_type is `type` (NULL: any), at most max of
 * them, sorted. When there is none the test is skipped in a set of SHL_GOLDEN_DIR that has other models, else
 * it fails. */
int shl_golden_models(const char *type, char names[][64], int max);

hid_t shl_golden_open(const char *name);
void shl_golden_close(hid_t file);

/* A scalar attribute of the object at `path` ("/" for the file's own). */
int64_t shl_golden_int(hid_t file, const char *path, const char *attr);
double shl_golden_real(hid_t file, const char *path, const char *attr);
/* A fixed-length string attribute, terminated, truncated to dst_bytes. */
void shl_golden_str(hid_t file, const char *path, const char *attr, char *dst, size_t dst_bytes);

bool shl_golden_has(hid_t file, const char *path);

/* All elements of a data set, widened or narrowed by HDF5; *n (may be NULL) is their number. Owner:
 * caller, shl_heap_free. */
double *shl_golden_f64(hid_t file, const char *path, size_t *n);
float *shl_golden_f32(hid_t file, const char *path, size_t *n);
int32_t *shl_golden_i32(hid_t file, const char *path, size_t *n);
/* Fixed-length strings as n texts of *stride bytes each, terminated. */
char *shl_golden_text(hid_t file, const char *path, size_t *n, size_t *stride);

#endif

/* tests/support: reads the golden HDF5 files. Everything in them is found by name; sizes and
 * settings are attributes, nothing is known here. */
#include "tests/support/golden.h"

#include <dirent.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/base/heap.h"
#include "kernels/base/option.h"
#include "kernels/base/str.h"

static const char *
folder(void)
{
    const char *dir = shl_env("SHL_GOLDEN_DIR");
    return dir != NULL ? dir : "tests/golden";
}

static int
by_name(const void *a, const void *b)
{
    return strcmp(a, b);
}

int
shl_golden_models(const char *type, char names[][64], int max)
{
    DIR *d = opendir(folder());
    int n = 0, n_other = 0;
    if (d == NULL) {
        fail_msg("golden folder %s cannot be opened", folder());
    }
    for (struct dirent *e; n < max && (e = readdir(d)) != NULL;) {
        char model[32] = "";
        size_t len = strlen(e->d_name);
        if (len < 4 || len >= 64 || strcmp(e->d_name + len - 3, ".h5") != 0) {
            continue;
        }
        hid_t file = shl_golden_open(e->d_name);
        if (H5Aexists(file, "model_type") > 0) {
            shl_golden_str(file, "/", "model_type", model, sizeof model);
        }
        shl_golden_close(file);
        if (type == NULL ? model[0] != '\0' : strcmp(model, type) == 0) {
            shl_strf(names[n++], 64, "%s", e->d_name);
        } else {
            n_other += model[0] != '\0';
        }
    }
    closedir(d);
    if (n == 0 && n_other > 0 && shl_env("SHL_GOLDEN_DIR") != NULL) {
        print_message("no golden model of type %s in %s\n", type, folder());
        skip();
    }
    if (n == 0) {
        fail_msg("no golden model of type %s in %s", type != NULL ? type : "any", folder());
    }
    qsort(names, (size_t)n, 64, by_name);
    return n;
}

hid_t
shl_golden_open(const char *name)
{
    char path[1024];
    shl_strf(path, sizeof path, "%s/%s", folder(), name);
    hid_t file = H5Fopen(path, H5F_ACC_RDONLY, H5P_DEFAULT);
    if (file < 0) {
        fail_msg("golden file %s cannot be opened", path);
    }
    return file;
}

void
shl_golden_close(hid_t file)
{
    assert_true(H5Fclose(file) >= 0);
}

static void
read_attr(hid_t file, const char *path, const char *attr, hid_t type, void *out)
{
    hid_t a = H5Aopen_by_name(file, path, attr, H5P_DEFAULT, H5P_DEFAULT);
    if (a < 0 || H5Aread(a, type, out) < 0) {
        fail_msg("attribute %s of %s cannot be read", attr, path);
    }
    H5Aclose(a);
}

int64_t
shl_golden_int(hid_t file, const char *path, const char *attr)
{
    int64_t value = 0;
    read_attr(file, path, attr, H5T_NATIVE_INT64, &value);
    return value;
}

double
shl_golden_real(hid_t file, const char *path, const char *attr)
{
    double value = 0.0;
    read_attr(file, path, attr, H5T_NATIVE_DOUBLE, &value);
    return value;
}

void
shl_golden_str(hid_t file, const char *path, const char *attr, char *dst, size_t dst_bytes)
{
    hid_t type = H5Tcopy(H5T_C_S1);
    assert_true(H5Tset_size(type, dst_bytes) >= 0);
    read_attr(file, path, attr, type, dst);
    H5Tclose(type);
}

bool
shl_golden_has(hid_t file, const char *path)
{
    /* A missing group on the way is an answer, not an error to print. */
    H5Eset_auto2(H5E_DEFAULT, NULL, NULL);
    return H5Lexists(file, path, H5P_DEFAULT) > 0;
}

static hid_t
open_data(hid_t file, const char *path, size_t *n)
{
    hid_t data = H5Dopen2(file, path, H5P_DEFAULT);
    if (data < 0) {
        fail_msg("data set %s is missing", path);
    }
    hid_t space = H5Dget_space(data);
    hssize_t points = H5Sget_simple_extent_npoints(space);
    H5Sclose(space);
    assert_true(points >= 0);
    *n = (size_t)points;
    return data;
}

static void *
read_data(hid_t file, const char *path, hid_t type, size_t elem_bytes, size_t *n)
{
    size_t count = 0;
    hid_t data = open_data(file, path, &count);
    void *out = NULL;
    assert_int_equal(shl_heap_alloc(count, elem_bytes, &out), SHL_OK);
    if (H5Dread(data, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, out) < 0) {
        fail_msg("data set %s cannot be read", path);
    }
    H5Dclose(data);
    if (n != NULL) {
        *n = count;
    }
    return out;
}

double *
shl_golden_f64(hid_t file, const char *path, size_t *n)
{
    return read_data(file, path, H5T_NATIVE_DOUBLE, sizeof(double), n);
}

float *
shl_golden_f32(hid_t file, const char *path, size_t *n)
{
    return read_data(file, path, H5T_NATIVE_FLOAT, sizeof(float), n);
}

int32_t *
shl_golden_i32(hid_t file, const char *path, size_t *n)
{
    return read_data(file, path, H5T_NATIVE_INT32, sizeof(int32_t), n);
}

char *
shl_golden_text(hid_t file, const char *path, size_t *n, size_t *stride)
{
    hid_t data = open_data(file, path, n);
    hid_t stored = H5Dget_type(data);
    *stride = H5Tget_size(stored) + 1;
    H5Tclose(stored);
    H5Dclose(data);
    hid_t type = H5Tcopy(H5T_C_S1);
    assert_true(H5Tset_size(type, *stride) >= 0);
    char *out = read_data(file, path, type, *stride, NULL);
    H5Tclose(type);
    return out;
}

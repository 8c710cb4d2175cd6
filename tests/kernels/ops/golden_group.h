/* tests/kernels/ops: reading groups of ops.h5 into tensors, and comparing tensors with them: every
 * size and constant is read from the file; every instruction set that this CPU has. */
#ifndef SHL_TESTS_GOLDEN_GROUP_H
#define SHL_TESTS_GOLDEN_GROUP_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "kernels/base/heap.h"
#include "kernels/base/option.h"
#include "kernels/cpu/cpu_table.h"
#include "kernels/ops/ops.h"
#include "tests/support/golden.h"

/* A group of the file with the tensors that a test made for it on the device. */
typedef struct golden {
    hid_t file;
    const char *group;
    shl_device *device;
    shl_stream *s;
    shl_buf bufs[32];
    int n_bufs;
} golden;

static inline const char *
path_of(const golden *g, const char *name)
{
    static char path[256];
    (void)snprintf(path, sizeof(path), "%s/%s", g->group, name);
    return path;
}

/* Sizes of a data set, and their number. */
static inline int
dims_of(const golden *g, const char *name, hsize_t dims[4])
{
    hid_t set = H5Dopen2(g->file, path_of(g, name), H5P_DEFAULT);
    assert_true(set >= 0);
    hid_t space = H5Dget_space(set);
    int n = H5Sget_simple_extent_dims(space, dims, NULL);
    (void)H5Sclose(space);
    (void)H5Dclose(set);
    return n;
}

static inline shl_tensor
room(golden *g, shl_dtype dtype, int64_t rows, int64_t cols)
{
    assert_true(g->n_bufs < 32);
    shl_buf *b = &g->bufs[g->n_bufs++];
    size_t bytes = (size_t)(rows * cols) * shl_dtype_bytes(dtype);
    assert_int_equal(
        shl_device_alloc(g->device, bytes, SHL_TIER_DEVICE, SHL_TAG_ACT, 0, "golden", b), SHL_OK);
    assert_int_equal(shl_device_fill(g->device, b->data, 0, bytes, NULL), SHL_OK);
    return shl_tensor_2d(b->data, dtype, rows, cols);
}

/* A data set on the device as [rows, cols]; a vector gives one row. */
static inline shl_tensor
input(golden *g, const char *name)
{
    hsize_t dims[4] = {1, 1, 1, 1};
    int n_dims = dims_of(g, name, dims);
    int64_t cols = (int64_t)dims[n_dims - 1], rows = 1;
    for (int i = 0; i < n_dims - 1; i++) {
        rows *= (int64_t)dims[i];
    }
    shl_tensor t = room(g, SHL_F32, rows, cols);
    float *x = shl_golden_f32(g->file, path_of(g, name), NULL);
    assert_int_equal(shl_device_upload(g->device, t.data, x, shl_tensor_bytes(&t)), SHL_OK);
    shl_heap_free(&x);
    return t;
}

static inline shl_tensor
input_i32(golden *g, const char *name)
{
    size_t n = 0;
    int32_t *x = shl_golden_i32(g->file, path_of(g, name), &n);
    shl_tensor t = room(g, SHL_I32, 1, (int64_t)n);
    assert_int_equal(shl_device_upload(g->device, t.data, x, n * sizeof(*x)), SHL_OK);
    shl_heap_free(&x);
    return t;
}

static inline shl_tensor
like(golden *g, const shl_tensor *t)
{
    return room(g, SHL_F32, t->dims[0], t->dims[1]);
}

/* A tensor's values in host memory. Owner: caller, shl_heap_free. */
static inline float *
host_copy(const golden *g, const shl_tensor *t)
{
    float *x = NULL;
    assert_int_equal(shl_heap_alloc((size_t)shl_tensor_elems(t), sizeof(*x), &x), SHL_OK);
    assert_int_equal(shl_device_download(g->device, x, t->data, shl_tensor_bytes(t)), SHL_OK);
    return x;
}

/* got against the data set: largest difference over the largest value, and none may be NaN. */
static inline void
expect(const golden *g, const char *name, const float *got, int64_t n, double tolerance)
{
    size_t n_want = 0;
    double *want = shl_golden_f64(g->file, path_of(g, name), &n_want);
    double largest = 0.0, worst = 0.0;
    assert_int_equal(n_want, n);
    for (int64_t i = 0; i < n; i++) {
        double difference = fabs((double)got[i] - want[i]);
        largest = fmax(largest, fabs(want[i]));
        worst = difference > worst || isnan(difference) ? difference : worst;
    }
    /* Zero by cancellation of values of order one (the scores' gradient of a single token). */
    largest = largest > 0.0 ? largest : 1.0;
    if (!(worst <= tolerance * largest)) {
        print_error("%s: off by %.3g of its largest value\n", path_of(g, name), worst / largest);
    }
    assert_true(worst <= tolerance * largest);
    shl_heap_free(&want);
}

static inline void
expect_tensor(const golden *g, const char *name, const shl_tensor *t, double tolerance)
{
    float *got = host_copy(g, t);
    expect(g, name, got, shl_tensor_elems(t), tolerance);
    shl_heap_free(&got);
}

static inline void
release(golden *g)
{
    while (g->n_bufs > 0) {
        shl_device_free(g->device, &g->bufs[--g->n_bufs]);
    }
}

typedef void (*group_fn)(golden *g);

/* Runs fn on each group: with every table of this CPU, or on the device that SHL_TEST_DEVICE names. */
static inline void
on_every_isa(const char *const *groups, size_t n, group_fn fn)
{
    golden g = {.file = shl_golden_open("ops.h5")};
    const char *device = shl_env("SHL_TEST_DEVICE");
    bool own = device == NULL || strcmp(device, "cpu") == 0;
    static const char *const one[] = {"the device's own", NULL};
    shl_device_config cfg = {.kind = own ? "cpu" : device, .threads = 1};
    assert_int_equal(shl_device_open(&cfg, &g.device), SHL_OK);
    g.s = shl_device_stream(g.device, SHL_STREAM_COMPUTE);
    for (const char *const *isa = own ? shl_cpu_isas() : one; *isa != NULL; isa++) {
        g.device->op_table = own ? shl_cpu_op_table_isa(*isa) : g.device->op_table;
        for (size_t i = 0; i < n && g.device->op_table != NULL; i++) {
            g.group = groups[i];
            fn(&g);
            release(&g);
        }
    }
    assert_int_equal(shl_device_close(&g.device), SHL_OK);
    shl_golden_close(g.file);
}

/* [B, H, T, D] of the file <-> [B, T, H, D] of the op. */
static inline void
swap_heads(const float *from, float *to, const hsize_t n[4], bool to_op)
{
    for (hsize_t b = 0; b < n[0]; b++) {
        for (hsize_t h = 0; h < n[1]; h++) {
            for (hsize_t t = 0; t < n[2]; t++) {
                hsize_t file = ((b * n[1] + h) * n[2] + t) * n[3];
                hsize_t op = ((b * n[2] + t) * n[1] + h) * n[3];
                memcpy(to + (to_op ? op : file), from + (to_op ? file : op), n[3] * sizeof(float));
            }
        }
    }
}

static inline shl_tensor
input_heads(golden *g, const char *name, hsize_t dims[4])
{
    assert_int_equal(dims_of(g, name, dims), 4);
    shl_tensor raw = input(g, name), t = like(g, &raw);
    float *file = host_copy(g, &raw), *op = host_copy(g, &t);
    swap_heads(file, op, dims, true);
    assert_int_equal(shl_device_upload(g->device, t.data, op, shl_tensor_bytes(&t)), SHL_OK);
    shl_heap_free(&file);
    shl_heap_free(&op);
    return t;
}

static inline void
expect_heads(golden *g, const char *name, const shl_tensor *t, double tolerance)
{
    hsize_t dims[4];
    assert_int_equal(dims_of(g, name, dims), 4);
    float *op = host_copy(g, t), *file = host_copy(g, t);
    swap_heads(op, file, dims, false);
    expect(g, name, file, shl_tensor_elems(t), tolerance);
    shl_heap_free(&op);
    shl_heap_free(&file);
}

#endif

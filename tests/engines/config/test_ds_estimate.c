/* tests/engines/config: the estimators against DeepSpeed's own figures, to the byte. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "engines/config/ds_estimate.h"
#include "kernels/base/heap.h"
#include "kernels/base/str.h"
#include "tests/support/golden.h"

static double *
column(hid_t file, const char *group, const char *name, size_t *n)
{
    char path[96];
    shl_strf(path, sizeof(path), "/%s/%s", group, name);
    return shl_golden_f64(file, path, n);
}

/* Columns as doubles hold every figure exactly: all lie below 2^53. */
static size_t
compare(hid_t file, const char *group, bool zero3)
{
    static const char *const names[] = {
        "total_params",
        "num_gpus_per_node",
        "num_nodes",
        "cpu_offload",
        "cpu_mem",
        "gpu_mem",
        "additional_buffer_factor",
        "largest_layer_params",
        "cpu_offload_params",
        "zero_init",
        "largest_layer_memory",
    };
    double *c[sizeof(names) / sizeof(names[0])] = {0};
    size_t n = 0;
    for (size_t i = 0; i < (zero3 ? 11U : 7U); i++) {
        c[i] = column(file, group, names[i], &n);
    }
    for (size_t i = 0; i < n; i++) {
        shl_ds_estimate_ask ask = {
            .total_params = (int64_t)c[0][i],
            .ranks_per_node = (int)c[1][i],
            .nodes = (int)c[2][i],
            .offload = c[3][i] > 0.0,
            .additional_buffer_factor = c[6][i],
        };
        if (zero3) {
            ask.largest_layer_params = (int64_t)c[7][i];
            ask.offload_params = c[8][i] > 0.0;
            ask.zero_init = c[9][i] > 0.0;
        }
        shl_ds_estimate e = zero3 ? shl_ds_estimate_zero3(&ask) : shl_ds_estimate_zero2(&ask);
        assert_true(c[4][i] < 9007199254740992.0 && c[5][i] < 9007199254740992.0);
        if (e.host_bytes != (int64_t)c[4][i] || e.device_bytes != (int64_t)c[5][i]) {
            fail_msg("%s row %zu: cpu %lld against %.0f, gpu %lld against %.0f", group, i,
                     (long long)e.host_bytes, c[4][i], (long long)e.device_bytes, c[5][i]);
        }
        assert_true(!zero3 || e.largest_layer_bytes == (int64_t)c[10][i]);
    }
    for (size_t i = 0; i < sizeof(c) / sizeof(c[0]); i++) {
        shl_heap_free(&c[i]);
    }
    return n;
}

static void
test_ds_estimate_equals_the_original(void **state)
{
    (void)state;
    hid_t file = shl_golden_open("estimators.h5");
    assert_int_equal(compare(file, "zero2", false), 300);
    assert_int_equal(compare(file, "zero3", true), 780);
    shl_golden_close(file);
}

/* The table of DeepSpeed's documentation: 2851M parameters, 32M in the largest layer, 8 GPUs. */
static void
test_ds_estimate_prints_the_documented_table(void **state)
{
    (void)state;
    const struct {
        bool zero3, opt, param, init;
        double cpu_gib, gpu_gib;
    } rows[] = {
        {false, true, false, false, 127.45, 5.31}, {false, false, false, false, 127.45, 11.28},
        {true, true, true, true, 71.69, 0.12},     {true, true, true, false, 127.45, 0.12},
        {true, true, false, true, 63.72, 0.78},    {true, true, false, false, 127.45, 0.78},
        {true, false, false, true, 1.43, 6.09},    {true, false, false, false, 127.45, 6.09},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        shl_ds_estimate_ask ask = {.total_params = 2851000000,
                                   .largest_layer_params = 32000000,
                                   .ranks_per_node = 8,
                                   .nodes = 1,
                                   .offload = rows[i].opt,
                                   .offload_params = rows[i].param,
                                   .zero_init = rows[i].init,
                                   .additional_buffer_factor = 1.5};
        shl_ds_estimate e =
            rows[i].zero3 ? shl_ds_estimate_zero3(&ask) : shl_ds_estimate_zero2(&ask);
        const double gib = 1073741824.0;
        assert_true(fabs((double)e.host_bytes / gib - rows[i].cpu_gib) <= 0.0051);
        assert_true(fabs((double)e.device_bytes / gib - rows[i].gpu_gib) <= 0.0051);
    }
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ds_estimate_equals_the_original),
        cmocka_unit_test(test_ds_estimate_prints_the_documented_table),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

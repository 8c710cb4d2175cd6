/* tests/bench: the grammar of lists and ranges, the cross product, and how options become rows. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "bench/options.h"
#include "bench/sweep.h"
#include "kernels/base/heap.h"

static void
expect_numbers(const char *text, const char *spelled)
{
    shl_sweep_axis axis;
    char all[256] = "";
    assert_int_equal(shl_sweep_numbers("ranks", text, 0, 1000000, &axis), SHL_OK);
    for (size_t i = 0; i < axis.n; i++) {
        size_t len = strlen(all);
        (void)snprintf(all + len, sizeof(all) - len, "%s%lld", i ? " " : "",
                       (long long)axis.values[i].number);
    }
    assert_string_equal(all, spelled);
    shl_sweep_axis_fini(&axis);
}

static void
test_sweep_numbers_and_ranges(void **state)
{
    SHL_UNUSED(state);
    expect_numbers("7", "7");
    expect_numbers("1,2,4", "1 2 4");
    expect_numbers("1-4", "1 2 3 4");
    expect_numbers("2-9+3", "2 5 8");
    expect_numbers("1-64*2", "1 2 4 8 16 32 64");
    expect_numbers("3-100*3,1", "3 9 27 81 1");
    expect_numbers("5-5", "5");
    expect_numbers("1k,2-3", "1000 2 3");
    expect_numbers("1k-4k*2", "1000 2000 4000");
    expect_numbers("0-2", "0 1 2");
}

static void
test_sweep_bad_numbers_are_refused(void **state)
{
    SHL_UNUSED(state);
    static const char *const bad[] = {
        "",          ",",
        "1,",        ",1",
        "1,,2",      "x",
        "-1",        "1-",
        "4-1",       "0-8*2",
        "1-8*1",     "1-8*",
        "1-8+0",     "1.5",
        "nan",       "1e-3",
        "1-2-3",     "1,1",
        "2,1-3",     "1000001",
        "1-1000000", "999999999999999999999",
        "1-4x",      "0x10",
        " 1",
    };
    for (size_t i = 0; i < SHL_ARRAY_LEN(bad); i++) {
        shl_sweep_axis axis;
        shl_err_clear();
        assert_int_equal(shl_sweep_numbers("ranks", bad[i], 0, 1000000, &axis), SHL_E_USAGE);
        assert_non_null(strstr(shl_err_get()->what, "--ranks"));
        assert_true(shl_err_get()->because[0] != '\0');
        shl_sweep_axis_fini(&axis);
    }
    assert_int_equal(shl_heap_live_blocks(), 0);
}

static void
test_sweep_names_keep_their_dashes(void **state)
{
    SHL_UNUSED(state);
    shl_sweep_axis axis;
    assert_int_equal(shl_sweep_names("strategy", "ddp,fsdp-grad-op", &axis), SHL_OK);
    assert_int_equal(axis.n, 2);
    assert_string_equal(axis.values[1].text, "fsdp-grad-op");
    shl_sweep_axis_fini(&axis);
    assert_int_equal(shl_sweep_names("strategy", "ddp,ddp", &axis), SHL_E_USAGE);
    shl_sweep_axis_fini(&axis);
}

static void
test_sweep_product_runs_the_last_axis_fastest(void **state)
{
    SHL_UNUSED(state);
    shl_sweep_axis axes[3];
    int64_t points;
    assert_int_equal(shl_sweep_numbers("a", "1,2", 0, 9, &axes[0]), SHL_OK);
    assert_int_equal(shl_sweep_numbers("b", "3,4,5", 0, 9, &axes[1]), SHL_OK);
    assert_int_equal(shl_sweep_numbers("c", "6,7", 0, 9, &axes[2]), SHL_OK);
    assert_int_equal(shl_sweep_points(axes, 3, &points), SHL_OK);
    assert_int_equal(points, 12);
    for (int64_t i = 0; i < points; i++) {
        assert_int_equal(shl_sweep_at(axes, 3, i, 0)->number, 1 + i / 6);
        assert_int_equal(shl_sweep_at(axes, 3, i, 1)->number, 3 + i / 2 % 3);
        assert_int_equal(shl_sweep_at(axes, 3, i, 2)->number, 6 + i % 2);
    }
    for (int i = 0; i < 3; i++) {
        shl_sweep_axis_fini(&axes[i]);
    }
}

static void
test_sweep_size_of_the_product_is_bounded(void **state)
{
    SHL_UNUSED(state);
    shl_sweep_axis axes[3];
    int64_t points;
    for (int i = 0; i < 3; i++) {
        assert_int_equal(shl_sweep_numbers("a", "1-1000", 0, 1000, &axes[i]), SHL_OK);
    }
    assert_int_equal(shl_sweep_points(axes, 3, &points), SHL_E_USAGE);
    for (int i = 0; i < 3; i++) {
        shl_sweep_axis_fini(&axes[i]);
    }
}

static void
test_sweep_options_become_checked_rows(void **state)
{
    SHL_UNUSED(state);
    shl_run_options o;
    shl_run_points p;
    assert_int_equal(shl_run_options_init(&o), SHL_OK);
    o.strategy = "ddp,zero3,fsdp";
    o.ranks = "1-4*2";
    assert_int_equal(shl_run_points_resolve(&o, &p), SHL_OK);
    assert_int_equal(p.n, 9);
    assert_int_equal(p.configs[0].ranks, 1);
    assert_int_equal(p.configs[8].ranks, 4);
    assert_int_equal(p.configs[4].engine.strategy, SHL_ZERO3);
    assert_int_equal(p.configs[4].engine.reduce_every, SHL_REDUCE_MICRO);
    assert_int_equal(p.configs[4].engine.prefetch, shl_prefetch_resolve(SHL_ZERO3, -1));
    assert_int_equal(p.configs[5].engine.prefetch, shl_prefetch_resolve(SHL_FSDP, -1));
    assert_int_equal(p.configs[3].engine.reduce_every, SHL_REDUCE_BOUNDARY);
    assert_int_equal(p.configs[0].engine.seq, 128);
    assert_true(p.configs[0].threads >= p.configs[8].threads && p.configs[8].threads >= 1);
    shl_run_points_fini(&p);

    o.strategy = "ddp";
    o.ranks = "1";
    o.layers = 2;
    o.context = 32;
    assert_int_equal(shl_run_points_resolve(&o, &p), SHL_OK);
    assert_string_equal(p.configs[0].model, "gpt-l2-w128-h4-v256-c32");
    assert_int_equal(p.configs[0].shape.layers, 2);
    assert_int_equal(p.configs[0].engine.seq, 32);
    shl_run_points_fini(&p);

    /* One bad row refuses the whole sweep before anything runs. */
    o.strategy = "ddp,zero3";
    o.reduce_every = "boundary";
    assert_int_equal(shl_run_points_resolve(&o, &p), SHL_E_USAGE);
    shl_run_points_fini(&p);
    assert_int_equal(shl_heap_live_blocks(), 0);
}

/* The n-th allocation fails, for every n: the error comes back and nothing is left. */
static void
test_sweep_failing_heap_is_returned(void **state)
{
    SHL_UNUSED(state);
    shl_run_options o;
    shl_run_points p;
    assert_int_equal(shl_run_options_init(&o), SHL_OK);
    o.strategy = "ddp,zero3";
    shl_code code = SHL_E_HEAP;
    int64_t n = 0;
    while (code != SHL_OK && n < 10000) {
        shl_heap_fail_at(++n);
        code = shl_run_points_resolve(&o, &p);
        shl_heap_fail_at(-1);
        assert_true(code == SHL_OK || code == SHL_E_HEAP);
        shl_run_points_fini(&p);
        assert_int_equal(shl_heap_live_blocks(), 0);
    }
    assert_true(n > 10);
    assert_int_equal(code, SHL_OK);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sweep_numbers_and_ranges),
        cmocka_unit_test(test_sweep_bad_numbers_are_refused),
        cmocka_unit_test(test_sweep_names_keep_their_dashes),
        cmocka_unit_test(test_sweep_product_runs_the_last_axis_fastest),
        cmocka_unit_test(test_sweep_size_of_the_product_is_bounded),
        cmocka_unit_test(test_sweep_options_become_checked_rows),
        cmocka_unit_test(test_sweep_failing_heap_is_returned),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

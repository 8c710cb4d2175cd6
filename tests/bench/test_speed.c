/* tests/bench: the parts of the speed table in their quick form: every row is complete, its ratio is what
 * its two sides say, and nothing is left behind. */
#include <fcntl.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "bench/speed.h"
#include "kernels/base/str.h"
#include "kernels/base/types.h"

static const shl_speed_part *
find_part(const char *name)
{
    int n = 0;
    const shl_speed_part *parts = shl_speed_parts(&n);
    for (int i = 0; i < n; i++) {
        if (strcmp(parts[i].name, name) == 0) {
            return &parts[i];
        }
    }
    fail_msg("no part %s", name);
    return NULL;
}

/* Runs one part with one round: then medians are the round itself. */
static void
run_part(const char *name, const char *dir, shl_speed_list *list)
{
    shl_speed_config config = {.threads = 1, .rounds = 1, .quick = true, .dir = dir};
    memset(list, 0, sizeof(*list));
    list->part = name;
    assert_int_equal(find_part(name)->run(&config, list), SHL_OK);
    assert_true(list->n > 0);
    for (int i = 0; i < list->n; i++) {
        const shl_speed_row *r = &list->rows[i];
        assert_string_equal(r->part, name);
        assert_true(r->value > 0 && isfinite(r->value));
        assert_true(r->reference > 0 && isfinite(r->reference));
        assert_string_equal(r->verdict, r->ratio >= r->bound ? "PASS" : "below");
        assert_int_equal(r->rounds, 1);
        for (int j = 0; j < i; j++) {
            assert_string_not_equal(r->name, list->rows[j].name);
        }
    }
}

static void
assert_ratio(double ratio, double wanted)
{
    assert_true(fabs(ratio - wanted) <= 1e-9 * wanted);
}

static void
test_speed_parts_have_distinct_names(void **state)
{
    int n = 0;
    const shl_speed_part *parts = shl_speed_parts(&n);
    SHL_UNUSED(state);
    for (int i = 0; i < n; i++) {
        assert_non_null(parts[i].run);
        assert_ptr_equal(find_part(parts[i].name), &parts[i]);
    }
}

static void
test_speed_cross_entropy_compares_times(void **state)
{
    shl_speed_list list;
    SHL_UNUSED(state);
    run_part("cross-entropy", ".", &list);
    assert_int_equal(list.n, 1);
    assert_ratio(list.rows[0].ratio, list.rows[0].reference / list.rows[0].value);
    assert_true(list.rows[0].fma_gflops > 0 && list.rows[0].traffic_gb_per_s > 0);
}

static void
test_speed_of_16_bits_compares_rates(void **state)
{
    shl_speed_list list;
    SHL_UNUSED(state);
    run_part("cast", ".", &list);
    assert_int_equal(list.n, 4);
    run_part("gemm-bf16", ".", &list);
    assert_int_equal(list.n, 1);
    assert_ratio(list.rows[0].ratio, list.rows[0].value / list.rows[0].reference);
}

static void
test_speed_of_choices_compares_steps(void **state)
{
    SHL_UNUSED(state);
    shl_speed_list list;
    run_part("recompute", ".", &list);
    assert_int_equal(list.n, 1);
    assert_true(list.rows[0].bound == 1 / 1.36);
    run_part("step-bf16", ".", &list);
    assert_int_equal(list.n, 1);
    assert_true(list.rows[0].bound == (shl_speed_has_bf16() ? 1.5 : 0.9));
    assert_true(list.rows[0].ratio == list.rows[0].reference / list.rows[0].value);
}

static void
test_speed_comm_compares_rates_of_three_collectives(void **state)
{
    shl_speed_list list;
    SHL_UNUSED(state);
    run_part("comm", ".", &list);
    assert_int_equal(list.n, 3);
    for (int i = 0; i < list.n; i++) {
        assert_ratio(list.rows[i].ratio, list.rows[i].value / list.rows[i].reference);
    }
}

/* Some file systems in memory do not. */
static bool
takes_direct_writes(const char *dir)
{
    char path[64];
    shl_strf(path, sizeof(path), "%s/probe", dir);
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_DIRECT | O_CLOEXEC, 0600);
    if (fd >= 0) {
        (void)close(fd);
    }
    (void)unlink(path);
    return fd >= 0;
}

static void
test_speed_save_leaves_nothing(void **state)
{
    char dir[] = "/tmp/shl-speed-XXXXXX";
    shl_speed_list list;
    SHL_UNUSED(state);
    assert_non_null(mkdtemp(dir));
    if (!takes_direct_writes(dir)) {
        assert_int_equal(rmdir(dir), 0);
        skip();
    }
    run_part("save", dir, &list);
    assert_int_equal(list.n, 1);
    assert_int_equal(rmdir(dir), 0); /* fails when anything is left in it */
}

static void
test_speed_save_says_where_it_cannot_write(void **state)
{
    shl_speed_config config = {.threads = 1, .rounds = 1, .quick = true, .dir = "/nonexistent"};
    shl_speed_list list = {.n = 0};
    SHL_UNUSED(state);
    assert_int_equal(shl_speed_save(&config, &list), SHL_E_IO);
    assert_non_null(strstr(shl_err_get()->what, "/nonexistent"));
    assert_int_equal(list.n, 0);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_speed_parts_have_distinct_names),
        cmocka_unit_test(test_speed_cross_entropy_compares_times),
        cmocka_unit_test(test_speed_of_16_bits_compares_rates),
        cmocka_unit_test(test_speed_of_choices_compares_steps),
        cmocka_unit_test(test_speed_comm_compares_rates_of_three_collectives),
        cmocka_unit_test(test_speed_save_leaves_nothing),
        cmocka_unit_test(test_speed_save_says_where_it_cannot_write),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

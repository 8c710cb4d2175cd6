/* tests/bench: summaries against values worked out by hand and against definitions on random data. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "bench/stats.h"
#include "kernels/base/rng.h"

static void
assert_near(double got, double want)
{
    if (!(fabs(got - want) <= 1e-12 * (1 + fabs(want)))) {
        fail_msg("%.17g is not %.17g", got, want);
    }
}

static void
test_stats_hand_values(void **state)
{
    (void)state;
    double one[] = {7};
    assert_near(shl_stats_median(one, 1), 7);
    assert_near(shl_stats_percentile(one, 1, 99), 7);
    assert_near(shl_stats_mad(one, 1), 0);
    double odd[] = {9, 1, 5};
    assert_near(shl_stats_median(odd, 3), 5);
    assert_near(shl_stats_mad(odd, 3), 1.4826 * 4);
    double even[] = {10, 2, 4, 3};
    assert_near(shl_stats_median(even, 4), 3.5);
    assert_near(shl_stats_mad(even, 4), 1.4826 * 1); /* distances 0.5, 0.5, 1.5, 6.5 */
    double five[] = {5, 4, 3, 2, 1};
    assert_near(shl_stats_percentile(five, 5, 0), 1);
    assert_near(shl_stats_percentile(five, 5, 100), 5);
    assert_near(shl_stats_percentile(five, 5, 90), 4.6);
    double powers[] = {1, 8, 64};
    assert_near(shl_stats_geomean(powers, 3), 8);
}

static void
test_stats_mad_is_the_median_distance(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 200; seed++) {
        double values[64], distances[64];
        size_t n = 1 + shl_rng_u64(seed, 1, 0) % 64;
        for (size_t i = 0; i < n; i++) {
            /* Few distinct values, so that ties are common. */
            values[i] = floor(20 * shl_rng_uniform(seed, 2, i)) - 10;
        }
        double center = shl_stats_median(values, n);
        for (size_t i = 0; i < n; i++) {
            distances[i] = fabs(values[i] - center);
        }
        assert_near(shl_stats_mad(values, n), 1.4826 * shl_stats_median(distances, n));
    }
}

static void
test_stats_one_outlier_moves_the_median_little(void **state)
{
    (void)state;
    double calm[] = {1, 2, 3, 4, 5, 6, 7}, loud[] = {1, 2, 3, 4, 5, 6, 1e9};
    assert_near(shl_stats_median(calm, 7), shl_stats_median(loud, 7));
    assert_near(shl_stats_mad(calm, 7), shl_stats_mad(loud, 7));
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_stats_hand_values),
        cmocka_unit_test(test_stats_mad_is_the_median_distance),
        cmocka_unit_test(test_stats_one_outlier_moves_the_median_little),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

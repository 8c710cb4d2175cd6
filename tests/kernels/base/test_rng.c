/* tests of kernels/base: Philox-4x32-10 against the vectors published with Salmon et al., SC'11
 * (Random123, kat_vectors), and the draws made from it. */
#include "kernels/base/rng.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <string.h>

#include "kernels/base/types.h"

static void
test_rng_block_matches_the_published_vectors(void **state)
{
    static const struct {
        uint64_t seed, stream, counter;
        uint32_t out[4];
    } known[] = {
        {0, 0, 0, {0x6627e8d5u, 0xe169c58du, 0xbc57ac4cu, 0x9b00dbd8u}},
        {UINT64_MAX, UINT64_MAX, UINT64_MAX, {0x408f276du, 0x41c83b0eu, 0xa20bc7c6u, 0x6d5451fdu}},
        /* counter 243f6a88 85a308d3 13198a2e 03707344, key a4093822 299f31d0: words of pi */
        {0x299f31d0a4093822u,
         0x0370734413198a2eu,
         0x85a308d3243f6a88u,
         {0xd16cfe09u, 0x94fdccebu, 0x5001e420u, 0x24126ea1u}},
    };
    (void)state;
    for (size_t i = 0; i < SHL_ARRAY_LEN(known); i++) {
        uint32_t out[4];
        shl_rng_block(known[i].seed, known[i].stream, known[i].counter, out);
        for (int w = 0; w < 4; w++) {
            assert_int_equal(out[w], known[i].out[w]);
        }
    }
}

static void
test_rng_values_depend_on_seed_stream_and_index(void **state)
{
    (void)state;
    uint64_t here = shl_rng_u64(1, 2, 3);
    assert_int_equal(shl_rng_u64(1, 2, 3), here);
    assert_int_not_equal(shl_rng_u64(2, 2, 3), here);
    assert_int_not_equal(shl_rng_u64(1, 3, 3), here);
    assert_int_not_equal(shl_rng_u64(1, 2, 2), here);
    assert_int_not_equal(shl_rng_u64(1, 2, 3 + (UINT64_C(1) << 40)), here);
    assert_int_equal(shl_rng_stream("h.0.ln_1.weight"), shl_rng_stream("h.0.ln_1.weight"));
    assert_int_not_equal(shl_rng_stream("h.0.ln_1.weight"), shl_rng_stream("h.1.ln_1.weight"));
    /* XXH3-64 of the empty text, as xxhsum prints it: streams must not change between versions. */
    assert_int_equal(shl_rng_stream(""), UINT64_C(0x2d06800538d394c2));
}

static void
test_rng_uniform_fills_the_unit_interval(void **state)
{
    enum { N = 100000 };
    double sum = 0.0, lowest = 1.0, highest = 0.0;
    (void)state;
    for (uint64_t i = 0; i < N; i++) {
        double u = shl_rng_uniform(7, 11, i);
        assert_true(u >= 0.0 && u < 1.0);
        sum += u;
        lowest = u < lowest ? u : lowest;
        highest = u > highest ? u : highest;
    }
    /* Five standard deviations of the mean of N draws. */
    assert_true(fabs(sum / N - 0.5) < 5.0 / sqrt(12.0 * N));
    assert_true(lowest < 20.0 / N && highest > 1.0 - 20.0 / N);
}

static void
test_rng_normals_of_a_pair_lie_on_the_circle_of_their_uniform(void **state)
{
    (void)state;
    /* Box and Muller (1958): n0^2 + n1^2 = -2 log(u). */
    for (uint64_t pair = 0; pair < 10000; pair++) {
        double n0 = (double)shl_rng_normal(3, 5, 2 * pair);
        double n1 = (double)shl_rng_normal(3, 5, 2 * pair + 1);
        double r2 = -2.0 * log(1.0 - shl_rng_uniform(3, 5, 2 * pair));
        assert_true(fabs(n0 * n0 + n1 * n1 - r2) <= 1e-6 * r2 + 1e-12);
    }
}

static void
test_rng_normals_have_the_moments_of_a_normal(void **state)
{
    enum { N = 200000 };
    double sum = 0.0, squares = 0.0, cubes = 0.0, fourths = 0.0;
    (void)state;
    for (uint64_t i = 0; i < N; i++) {
        double x = (double)shl_rng_normal(1234, shl_rng_stream("moments"), i);
        sum += x;
        squares += x * x;
        cubes += x * x * x;
        fourths += x * x * x * x;
    }
    /* Variances of the powers: 1, 2, 15, 96. */
    assert_true(fabs(sum / N) < 5.0 * sqrt(1.0 / N));
    assert_true(fabs(squares / N - 1.0) < 5.0 * sqrt(2.0 / N));
    assert_true(fabs(cubes / N) < 5.0 * sqrt(15.0 / N));
    assert_true(fabs(fourths / N - 3.0) < 5.0 * sqrt(96.0 / N));
}

static void
test_rng_normals_in_any_partition_are_the_same_bits(void **state)
{
    enum { N = 37 };
    float whole[N], parts[N];
    (void)state;
    shl_rng_normal_fill(9, 8, 5, whole, N);
    for (uint64_t i = 0; i < N; i++) {
        parts[i] = shl_rng_normal(9, 8, 5 + i);
    }
    assert_memory_equal(whole, parts, sizeof(whole));
    for (int64_t cut = 0; cut <= N; cut++) {
        memset(parts, 0, sizeof(parts));
        shl_rng_normal_fill(9, 8, 5, parts, cut);
        shl_rng_normal_fill(9, 8, 5 + (uint64_t)cut, parts + cut, N - cut);
        assert_memory_equal(whole, parts, sizeof(whole));
    }
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rng_block_matches_the_published_vectors),
        cmocka_unit_test(test_rng_values_depend_on_seed_stream_and_index),
        cmocka_unit_test(test_rng_uniform_fills_the_unit_interval),
        cmocka_unit_test(test_rng_normals_of_a_pair_lie_on_the_circle_of_their_uniform),
        cmocka_unit_test(test_rng_normals_in_any_partition_are_the_same_bits),
        cmocka_unit_test(test_rng_normals_have_the_moments_of_a_normal),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* tests/engines: one code path: peaks per tag, what stood at the peak, phase, owner, event order, calls
 * and bytes of the virtual device equal those of the cpu, exactly, for every rank. */
#include "tests/support/engine_twin.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/base/clock.h"
#include "kernels/base/option.h"
#include "kernels/base/rng.h"

static void
set_case(ew_config *c, shl_strategy s, int ranks, int variant)
{
    static const int64_t buckets[] = {700, 4000, 1000000};
    ew_config_init(c, s, ranks);
    c->steps = 2;
    c->engine.accum = variant & 1 ? 4 : 1;
    c->engine.optim.clip = variant & 2 ? 0.5 : 0.0;
    c->engine.bucket_elems = buckets[(variant >> 2) % 3];
    c->engine.prefetch = (variant >> 4) % 3;
    /* Every third case of another family. */
    if ((variant + ranks + (int)s) % 3 == 0) {
        ew_config_llama(c);
    }
    c->model.tied = (variant & 64) == 0;
    c->model.layers = 2;
}

/* Everything under SHL_TEST_ALL, else a sample whose seed is printed. */
static void
test_engine_virtual_equals_cpu(void **state)
{
    (void)state;
    static const int worlds[] = {1, 2, 3, 4, 8};
    bool all = shl_env("SHL_TEST_ALL") != NULL;
    uint64_t seed = (uint64_t)shl_clock_ns();
    int n = 0;
    print_message("seed %llu\n", (unsigned long long)seed);
    for (int s = 0; s < SHL_STRATEGY_COUNT; ++s) {
        for (size_t w = 0; w < SHL_ARRAY_LEN(worlds); ++w) {
            for (int variant = 0; variant < 128; ++variant) {
                uint64_t draw = shl_rng_u64(seed, (uint64_t)s, w * 128u + (uint64_t)variant);
                if ((!all && draw % 24 != 0) || (variant >> 4) % 4 == 3 ||
                    ((variant >> 2) & 3) == 3) {
                    continue;
                }
                ew_config c;
                set_case(&c, (shl_strategy)s, worlds[w], variant);
                et_expect_same_run(&c);
                n++;
            }
        }
    }
    print_message("%d configurations\n", n);
    assert_true(n > 0 || !all);
}

static void
test_engine_virtual_equals_cpu_for_every_strategy(void **state)
{
    (void)state;
    for (int s = 0; s < SHL_STRATEGY_COUNT; ++s) {
        ew_config c;
        set_case(&c, (shl_strategy)s, 2, 3);
        et_expect_same_run(&c);
    }
}

/* Layouts give every rank pieces of one size, so all ranks are one class: any rank of a large world
 * goes through the same events and collectives as the one that a plan runs. */
static void
test_engine_virtual_ranks_are_one_class(void **state)
{
    (void)state;
    static const int ranks[] = {1, 499, 998, 999};
    for (int s = 0; s < SHL_STRATEGY_COUNT; ++s) {
        ew_config c;
        ew_result first, other;
        set_case(&c, (shl_strategy)s, 1000, 3);
        c.device = "virtual";
        ew_run(&c, &first);
        assert_string_equal(first.what, "");
        for (size_t i = 0; i < SHL_ARRAY_LEN(ranks); ++i) {
            c.virtual_rank = ranks[i];
            ew_run(&c, &other);
            assert_int_equal(other.code, SHL_OK);
            assert_int_equal(other.trace_hash[0], first.trace_hash[0]);
            assert_memory_equal(&other.comm[0], &first.comm[0], sizeof(first.comm[0]));
        }
    }
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_engine_virtual_equals_cpu_for_every_strategy),
        cmocka_unit_test(test_engine_virtual_equals_cpu),
        cmocka_unit_test(test_engine_virtual_ranks_are_one_class),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

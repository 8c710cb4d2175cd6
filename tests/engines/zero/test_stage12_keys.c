/* tests/engines/zero: DeepSpeed's keys of stages 0 to 2: the layout and the overlap move bytes and time, never
 * bits; a sum of gradients is the mean times the ranks. */
#include "tests/support/engine_twin.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "engines/config/zero_text.h"

static void
test_stage12_keys_single_cut_is_one_bucket_with_the_same_bits(void **state)
{
    (void)state;
    for (int ranks = 1; ranks <= 4; ++ranks) {
        ew_config plain, cut;
        ew_result want, have, virt;
        ew_config_init(&plain, SHL_ZERO1, ranks);
        plain.engine.accum = 1 + ranks % 2;
        plain.engine.optim.clip = 0.5;
        cut = plain;
        shl_zero_options_init(&cut.engine.zero);
        cut.engine.zero.single_cut = true;
        et_run(&plain, &want);
        et_run(&cut, &have);
        et_expect_same_bits(&cut, &want, &have);
        et_expect_twin(&cut, &have, ranks - 1, &virt);
        assert_string_equal(have.info.layout, "single cut");
        assert_int_equal(have.info.n_units, 1);
        assert_true(want.info.n_units > 1);
        assert_int_equal(have.comm[0].kind[SHL_COLL_ALL_GATHER].calls, cut.steps);
        assert_int_equal(have.comm[0].kind[SHL_COLL_REDUCE_SCATTER].calls, cut.steps);
        assert_int_equal(have.comm[0].kind[SHL_COLL_ALL_GATHER].bytes,
                         4 * cut.steps * have.info.payload_elems);
    }
}

/* On the virtual clock a reduction that is waited for at once is time in which nothing else runs. */
static void
test_stage12_keys_no_overlap_is_exposed(void **state)
{
    static const shl_strategy strategies[] = {SHL_DDP, SHL_ZERO1, SHL_ZERO2, SHL_ZERO3};
    (void)state;
    for (size_t i = 0; i < SHL_ARRAY_LEN(strategies); ++i) {
        ew_config beside, serial;
        ew_result with, without, virt;
        ew_config_init(&beside, strategies[i], 2);
        shl_zero_options_init(&beside.engine.zero);
        beside.alpha_ns = 20000;
        serial = beside;
        serial.engine.zero.serial_reduce = true;
        et_run(&beside, &with);
        et_run(&serial, &without);
        et_expect_same_bits(&serial, &with, &without);
        et_expect_twin(&serial, &without, 0, &virt);
        int64_t exposed = virt.reports[1].exposed_comm_ns;
        et_expect_twin(&beside, &with, 0, &virt);
        if (exposed <= virt.reports[1].exposed_comm_ns) {
            fail_msg("%s: %lld ns exposed without overlap, %lld with it",
                     shl_strategy_name(strategies[i]), (long long)exposed,
                     (long long)virt.reports[1].exposed_comm_ns);
        }
    }
}

/* Powers of two scale without rounding. */
static void
test_stage12_keys_sum_is_the_mean_times_the_ranks(void **state)
{
    static const shl_strategy strategies[] = {SHL_DDP, SHL_ZERO1, SHL_ZERO2};
    (void)state;
    for (size_t i = 0; i < SHL_ARRAY_LEN(strategies); ++i) {
        ew_config mean, sum;
        ew_result a, b, virt;
        ew_config_init(&mean, strategies[i], 4);
        mean.steps = 1;
        shl_zero_options_init(&mean.engine.zero);
        sum = mean;
        sum.engine.zero.sum_gradients = true;
        et_run(&mean, &a);
        et_run(&sum, &b);
        et_expect_twin(&sum, &b, 1, &virt);
        double want = 4.0 * a.reports[0].grad_norm;
        assert_memory_equal(&b.reports[0].grad_norm, &want, sizeof(want));
        assert_memory_equal(&b.reports[0].loss, &a.reports[0].loss, sizeof(double));
        assert_true(a.param_hash != b.param_hash);
    }
}

static void
test_stage12_keys_refuse_what_is_not_here(void **state)
{
    static const struct {
        shl_strategy strategy;
        const char *keys, *part;
    } bad[] = {
        {SHL_ZERO2, "layout=single-cut", "single-cut"},
        {SHL_ZERO3, "layout=single-cut", "single-cut"},
        {SHL_ZERO1, "prescale_gradients=true", "scaled"},
        {SHL_DDP, "gradient_predivide_factor=2", "scaled"},
        {SHL_ZERO3, "gradient_allreduce_op=sum", "gradient_allreduce_op"},
    };
    (void)state;
    for (size_t i = 0; i < SHL_ARRAY_LEN(bad); ++i) {
        ew_config c;
        ew_result r;
        ew_config_init(&c, bad[i].strategy, 2);
        c.device = "virtual";
        assert_int_equal(shl_zero_options_parse(bad[i].keys, &c.engine.zero), SHL_OK);
        ew_run(&c, &r);
        assert_int_equal(r.code, SHL_E_USAGE);
        assert_non_null(strstr(r.what, bad[i].part));
    }
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_stage12_keys_single_cut_is_one_bucket_with_the_same_bits),
        cmocka_unit_test(test_stage12_keys_no_overlap_is_exposed),
        cmocka_unit_test(test_stage12_keys_sum_is_the_mean_times_the_ranks),
        cmocka_unit_test(test_stage12_keys_refuse_what_is_not_here),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

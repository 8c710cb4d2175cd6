/* tests/engines: 16 bits are the same training as fp32; the virtual device accounts for any dtype in any
 * role as the cpu does; frozen parameters stay as they are. */
#include "tests/support/engine_twin.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/base/clock.h"
#include "kernels/base/option.h"
#include "kernels/base/rng.h"

static const shl_dtype computes[] = {SHL_F32, SHL_BF16, SHL_F16};

static const shl_tune_config tunes[] = {
    {.recompute = SHL_RECOMPUTE_NONE},
    {.freeze = "wte,wpe", .recompute = SHL_RECOMPUTE_FULL},
    {.train_last = 1},
    {.freeze = "*.attn.*", .recompute = SHL_RECOMPUTE_SELECTIVE},
};

/* 16 bits are the same training as fp32, up to their rounding. */
static void
test_engine_dtypes_are_the_same_training(void **state)
{
    (void)state;
    ew_result r[3];
    for (size_t d = 0; d < SHL_ARRAY_LEN(computes); ++d) {
        ew_config c;
        ew_config_init(&c, SHL_ZERO2, 2);
        c.steps = 6;
        et_set_policy(&c, computes[d]);
        ew_run(&c, &r[d]);
        assert_string_equal(r[d].what, "");
        double rel = computes[d] == SHL_F32 ? 0.0 : computes[d] == SHL_BF16 ? 0.01 : 0.002;
        for (int i = 0; i < c.steps; ++i) {
            const shl_step_report *a = &r[0].reports[i], *b = &r[d].reports[i];
            assert_true(fabs(a->loss - b->loss) <= rel * a->loss);
            assert_true(fabs(a->grad_norm - b->grad_norm) <= 10.0 * rel * a->grad_norm);
            assert_true(b->loss_scale == (computes[d] == SHL_F16 ? 1024.0 : 1.0) && !b->skipped);
        }
    }
}

/* An update in bf16 weights of its own: coarser, and still training. */
static void
test_engine_dtypes_sixteen_bit_masters_agree(void **state)
{
    (void)state;
    for (size_t d = 1; d < SHL_ARRAY_LEN(computes); ++d) {
        ew_config c;
        ew_result ddp;
        ew_config_init(&c, SHL_DDP, 2);
        et_set_policy(&c, computes[d]);
        c.engine.master_dtype = computes[d];
        c.engine.moment_dtype = SHL_BF16;
        ew_run(&c, &ddp);
        assert_string_equal(ddp.what, "");
        for (int s = SHL_ZERO1; s < SHL_STRATEGY_COUNT; ++s) {
            ew_result other;
            c.engine.strategy = (shl_strategy)s;
            et_run(&c, &other);
            et_expect_same_bits(&c, &ddp, &other);
        }
    }
}

/* Frozen ones keep their bits and have no moments; the others move. */
static void
test_engine_dtypes_frozen_parameters_stay(void **state)
{
    (void)state;
    for (int s = 0; s < SHL_STRATEGY_COUNT; ++s) {
        ew_config c;
        ew_result before, after;
        ew_config_init(&c, (shl_strategy)s, 2);
        et_set_policy(&c, computes[(size_t)s % SHL_ARRAY_LEN(computes)]);
        c.tune = tunes[3];
        c.keep_state = true;
        ew_run(&c, &after);
        assert_string_equal(after.what, "");
        c.steps = 0;
        ew_run(&c, &before);
        assert_string_equal(before.what, "");
        for (int i = 0; i < after.n_tensors; ++i) {
            const ew_tensor *a = &before.tensors[i], *b = &after.tensors[i];
            bool same = memcmp(a->values, b->values, (size_t)a->elems * sizeof(float)) == 0;
            if (same != (strstr(a->name, ".attn.") != NULL)) {
                fail_msg("%s: %s %s is %s", shl_strategy_name((shl_strategy)s), a->kind, a->name,
                         same ? "the same" : "changed");
            }
        }
        ew_result_fini(&before);
        ew_result_fini(&after);
    }
}

/* --- accounting ------------------------------------------------------------------------------ */

/* Any dtype in any role, those that the strategy can do. */
static void
draw_policy(shl_engine_config *c, uint64_t draw)
{
    c->compute_dtype = computes[draw % 3];
    c->master_dtype = (draw >> 4) % 3 == 0 ? c->compute_dtype : SHL_F32;
    c->reduce_dtype = (draw >> 8) % 2 == 0 ? c->compute_dtype : SHL_F32;
    c->grad_dtype = (draw >> 12) % 2 == 0 ? c->compute_dtype : SHL_F32;
    c->moment_dtype = (draw >> 16) % 3 == 0 ? SHL_BF16 : SHL_F32;
    c->scale.kind = c->compute_dtype == SHL_F16 ? SHL_SCALE_DYNAMIC : SHL_SCALE_NONE;
    c->scale.scale = 64.0;
}

static void
test_engine_dtypes_virtual_equals_cpu(void **state)
{
    (void)state;
    bool all = shl_env("SHL_TEST_ALL") != NULL;
    uint64_t seed = (uint64_t)shl_clock_ns();
    int n = 0;
    print_message("seed %llu\n", (unsigned long long)seed);
    for (int i = 0; i < (all ? 600 : 36); ++i) {
        uint64_t draw = shl_rng_u64(seed, 1, (uint64_t)i);
        ew_config c;
        ew_config_init(&c, (shl_strategy)(i % SHL_STRATEGY_COUNT), 1 + (int)((draw >> 20) % 4));
        c.steps = 2;
        c.model.layers = 3;
        c.engine.accum = (draw >> 24) % 2 == 0 ? 1 : 3;
        c.engine.prefetch = (int)((draw >> 28) % 3);
        c.engine.reduce_every = (draw >> 32) % 2 == 0 ? SHL_REDUCE_MICRO : SHL_REDUCE_BOUNDARY;
        c.tune = tunes[(draw >> 36) % SHL_ARRAY_LEN(tunes)];
        draw_policy(&c.engine, draw);
        if (shl_engine_config_check(&c.engine) == SHL_OK) {
            et_expect_same_run(&c);
            n++;
        }
    }
    shl_err_clear();
    print_message("%d configurations\n", n);
    assert_true(n > 5);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_engine_dtypes_are_the_same_training),
        cmocka_unit_test(test_engine_dtypes_sixteen_bit_masters_agree),
        cmocka_unit_test(test_engine_dtypes_frozen_parameters_stay),
        cmocka_unit_test(test_engine_dtypes_virtual_equals_cpu),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

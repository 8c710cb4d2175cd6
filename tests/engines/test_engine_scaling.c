/* tests/engines: loss scaling is invisible but for what it is for: any power of two gives the same bits,
 * a step that overflows changes nothing but the scale, on every rank and under every strategy. */
#include "tests/support/engine_world.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static void
scale_by(ew_config *c, shl_scale_kind kind, double scale)
{
    c->engine.scale.kind = kind;
    c->engine.scale.scale = scale;
    c->engine.scale.hysteresis = 1;
    c->engine.scale.window = 100;
}

static void
run(ew_config *c, ew_result *r)
{
    ew_run(c, r);
    if (r->code != SHL_OK) {
        fail_msg("%s: %s", shl_strategy_name(c->engine.strategy), r->what);
    }
}

/* Losses, norms, parameters: as if there were none; with clipping, which works on unscaled ones. */
static void
test_engine_scaling_by_powers_of_two_keeps_all_bits(void **state)
{
    (void)state;
    for (int s = 0; s < SHL_STRATEGY_COUNT; ++s) {
        ew_config c;
        ew_result plain, scaled;
        ew_config_init(&c, (shl_strategy)s, 2);
        c.engine.optim.clip = 0.5;
        c.engine.accum = 2;
        run(&c, &plain);
        scale_by(&c, s % 2 == 0 ? SHL_SCALE_STATIC : SHL_SCALE_DYNAMIC, 4096.0);
        run(&c, &scaled);
        const char *why = ew_bits_differ(&plain, &scaled, c.steps);
        assert_string_equal(why, "");
        assert_true(scaled.reports[0].loss_scale == 4096.0 && plain.reports[0].loss_scale == 1.0);
        assert_true(scaled.reports[0].clip_coef == plain.reports[0].clip_coef);
        assert_int_equal(scaled.reports[2].skipped_steps, 0);
    }
}

/* The update that a doubling ends is unscaled by the scale that its gradients had. */
static void
test_engine_scaling_growth_changes_no_update(void **state)
{
    (void)state;
    ew_config c;
    ew_result plain, growing;
    ew_config_init(&c, SHL_ZERO2, 2);
    c.steps = 6;
    run(&c, &plain);
    scale_by(&c, SHL_SCALE_DYNAMIC, 16.0);
    c.engine.scale.window = 1;
    run(&c, &growing);
    const char *why = ew_bits_differ(&plain, &growing, c.steps);
    assert_string_equal(why, "");
    assert_true(growing.reports[5].loss_scale == 256.0);
}

/* So large a scale that gradients leave fp32's range: skipped, halved, until they fit; from then on the run
 * is the plain one, on batches that come later. */
static void
test_engine_scaling_overflow_skips_and_recovers(void **state)
{
    (void)state;
    ew_result first;
    for (int s = 0; s < SHL_STRATEGY_COUNT; ++s) {
        ew_config c;
        ew_result r;
        ew_config_init(&c, (shl_strategy)s, 3);
        c.steps = 12;
        c.engine.optim.schedule = SHL_SCHEDULE_LINEAR;
        c.engine.optim.schedule_steps = 12;
        scale_by(&c, SHL_SCALE_DYNAMIC, ldexp(1.0, 134));
        run(&c, &r);
        int64_t skipped = r.reports[11].skipped_steps;
        assert_true(skipped >= 2 && skipped < 11);
        for (int i = 0; i < c.steps; ++i) {
            const shl_step_report *p = &r.reports[i];
            assert_int_equal(p->step, i + 1);
            assert_int_equal(p->skipped, i < skipped);
            assert_int_equal(isfinite(p->grad_norm), i >= skipped);
            assert_true(p->loss_scale == ldexp(1.0, 134 - (int)(i < skipped ? i : skipped)));
            assert_int_equal(p->skipped_steps, i < skipped ? i + 1 : skipped);
            assert_true(p->lr == shl_lr_at(&c.engine.optim, i < skipped ? 0 : i - skipped));
        }
        if (s == SHL_DDP) {
            first = r;
        }
        const char *why = ew_bits_differ(&first, &r, 0);
        assert_string_equal(why, "");
        assert_memory_equal(&first.reports[11].loss, &r.reports[11].loss, sizeof(double));
    }
}

/* A static scale stays; its overflows are skipped all the same. */
static void
test_engine_scaling_static_scale_skips_too(void **state)
{
    (void)state;
    ew_config c;
    ew_result r;
    ew_config_init(&c, SHL_ZERO3, 2);
    c.steps = 2;
    scale_by(&c, SHL_SCALE_STATIC, ldexp(1.0, 140));
    run(&c, &r);
    assert_int_equal(r.reports[1].skipped_steps, 2);
    assert_true(r.reports[0].loss > 3.5 && r.reports[1].loss < 5.0);
    assert_true(r.reports[1].loss_scale == ldexp(1.0, 140));
}

/* A learning rate that throws the parameters out of range: without a scaler the NaNs that follow are
 * taken into the moments, with the check they are not. */
static void
test_engine_scaling_check_overflow_is_an_option(void **state)
{
    (void)state;
    ew_config c;
    ew_result r;
    ew_config_init(&c, SHL_ZERO1, 2);
    c.engine.optim.lr = 1e5;
    c.engine.optim.weight_decay = 0.0;
    c.keep_state = true;
    for (int check = 0; check < 2; ++check) {
        bool finite = true;
        c.engine.check_overflow = check != 0;
        run(&c, &r);
        for (int i = 0; i < r.n_tensors; ++i) {
            for (int64_t k = 0; k < r.tensors[i].elems; ++k) {
                finite = finite && isfinite(r.tensors[i].values[k]);
            }
        }
        assert_int_equal(r.reports[2].skipped_steps, check ? 2 : 0);
        assert_int_equal(finite, check);
        ew_result_fini(&r);
    }
}

/* At the least scale a halving that is due ends the run, on every rank with the same words. */
static void
test_engine_scaling_ends_at_the_least_scale(void **state)
{
    (void)state;
    ew_config c;
    ew_result r;
    ew_config_init(&c, SHL_FSDP, 2);
    scale_by(&c, SHL_SCALE_DYNAMIC, ldexp(1.0, 141));
    c.engine.scale.min_scale = ldexp(1.0, 140);
    ew_run(&c, &r);
    assert_int_equal(r.code, SHL_E_CONFIG);
    for (int i = 0; i < 2; ++i) {
        assert_int_equal(r.rank_code[i], SHL_E_CONFIG);
        assert_non_null(strstr(r.rank_what[i], "least loss scale"));
    }
    c.engine.scale.raise_at_min = false;
    run(&c, &r);
    assert_int_equal(r.reports[2].skipped_steps, 3);
}

/* Nothing to train: no gradient, no master, no moment; a training step is refused. */
static void
test_engine_scaling_no_optimizer_takes_no_step(void **state)
{
    (void)state;
    for (int s = 0; s < SHL_STRATEGY_COUNT; ++s) {
        ew_config c;
        ew_result r;
        ew_config_init(&c, (shl_strategy)s, 2);
        c.engine.no_optimizer = true;
        ew_run(&c, &r);
        assert_int_equal(r.code, SHL_E_USAGE);
        assert_non_null(strstr(r.what, "without optimizer"));
        c.steps = 0;
        run(&c, &r);
        const size_t *now = r.device[0].now_tag_bytes;
        assert_int_equal(now[SHL_TAG_GRAD] + now[SHL_TAG_OPTIM] + now[SHL_TAG_MASTER], 0);
        assert_true(now[SHL_TAG_PARAM] > 0);
    }
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_engine_scaling_by_powers_of_two_keeps_all_bits),
        cmocka_unit_test(test_engine_scaling_growth_changes_no_update),
        cmocka_unit_test(test_engine_scaling_overflow_skips_and_recovers),
        cmocka_unit_test(test_engine_scaling_static_scale_skips_too),
        cmocka_unit_test(test_engine_scaling_check_overflow_is_an_option),
        cmocka_unit_test(test_engine_scaling_ends_at_the_least_scale),
        cmocka_unit_test(test_engine_scaling_no_optimizer_takes_no_step),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* tests/engines: the six strategies are one training run: losses, norms and final parameters are
 * bit-identical at equal world size, whatever the bucket, the prefetch depth, the clipping. */
#include "tests/support/engine_world.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

static void
agree_with_ddp(ew_config *c, const ew_result *ddp, shl_strategy s)
{
    ew_result r;
    c->engine.strategy = s;
    ew_run(c, &r);
    const char *why = ew_bits_differ(ddp, &r, c->steps);
    if (why[0] != '\0') {
        fail_msg("%s against ddp, ranks %d, accum %lld, bucket %lld, prefetch %d, clip %g: %s",
                 shl_strategy_name(s), c->ranks, (long long)c->engine.accum,
                 (long long)c->engine.bucket_elems, c->engine.prefetch, c->engine.optim.clip, why);
    }
    ew_result_fini(&r);
}

static void
test_engine_bits_agree_at_every_world_size(void **state)
{
    (void)state;
    static const int worlds[] = {1, 2, 3, 4};
    for (size_t w = 0; w < SHL_ARRAY_LEN(worlds); ++w) {
        ew_config c;
        ew_result ddp;
        ew_config_init(&c, SHL_DDP, worlds[w]);
        c.engine.optim.clip = w % 2 == 0 ? 0.5 : 0.0;
        ew_run(&c, &ddp);
        assert_string_equal(ddp.what, "");
        /* Near ln(vocabulary) and moving: the runs that agree are runs that learn something. */
        assert_true(ddp.reports[0].loss > 3.5 && ddp.reports[0].loss < 5.0);
        assert_true(ddp.reports[0].loss != ddp.reports[1].loss && ddp.param_hash != 0);
        for (int s = SHL_ZERO1; s < SHL_STRATEGY_COUNT; ++s) {
            agree_with_ddp(&c, &ddp, (shl_strategy)s);
        }
        ew_result_fini(&ddp);
    }
}

static void
test_engine_bits_do_not_depend_on_bucket_or_prefetch(void **state)
{
    (void)state;
    static const int64_t buckets[] = {1, 700, 9001, 1000000};
    ew_config c;
    ew_result ddp;
    ew_config_init(&c, SHL_DDP, 3);
    ew_run(&c, &ddp);
    for (size_t b = 0; b < SHL_ARRAY_LEN(buckets); ++b) {
        c.engine.bucket_elems = buckets[b];
        c.engine.prefetch = (int)b;
        for (int s = SHL_DDP; s < SHL_STRATEGY_COUNT; ++s) {
            agree_with_ddp(&c, &ddp, (shl_strategy)s);
        }
    }
    ew_result_fini(&ddp);
}

static void
test_engine_bits_agree_inside_a_family_and_across_with_micro(void **state)
{
    (void)state;
    ew_config c;
    ew_result ddp;
    ew_config_init(&c, SHL_DDP, 2);
    c.engine.accum = 4;
    c.engine.optim.clip = 0.7;
    c.engine.reduce_every = SHL_REDUCE_BOUNDARY;
    ew_run(&c, &ddp);
    agree_with_ddp(&c, &ddp, SHL_ZERO1);
    agree_with_ddp(&c, &ddp, SHL_FSDP);
    agree_with_ddp(&c, &ddp, SHL_FSDP_GRAD_OP);
    ew_result_fini(&ddp);
    c.engine.strategy = SHL_DDP;
    c.engine.reduce_every = SHL_REDUCE_MICRO;
    ew_run(&c, &ddp);
    for (int s = SHL_ZERO1; s < SHL_STRATEGY_COUNT; ++s) {
        agree_with_ddp(&c, &ddp, (shl_strategy)s);
    }
    ew_result_fini(&ddp);
}

static void
test_engine_bits_agree_for_an_untied_head(void **state)
{
    (void)state;
    ew_config c;
    ew_result ddp;
    ew_config_init(&c, SHL_DDP, 2);
    c.model.tied = false;
    ew_run(&c, &ddp);
    for (int s = SHL_ZERO1; s < SHL_STRATEGY_COUNT; ++s) {
        agree_with_ddp(&c, &ddp, (shl_strategy)s);
    }
    ew_result_fini(&ddp);
}

/* The same engines, another family: worlds and buckets that cut its tensors unevenly. */
static void
test_engine_bits_agree_for_a_llama(void **state)
{
    (void)state;
    for (int ranks = 2; ranks <= 3; ++ranks) {
        ew_config c;
        ew_result ddp;
        ew_config_init(&c, SHL_DDP, ranks);
        ew_config_llama(&c);
        c.engine.bucket_elems = ranks == 2 ? 4000 : 700;
        c.engine.optim.clip = 0.5;
        c.model.tied = ranks == 3;
        ew_run(&c, &ddp);
        assert_string_equal(ddp.what, "");
        assert_true(ddp.reports[0].loss != ddp.reports[1].loss && ddp.param_hash != 0);
        for (int s = SHL_ZERO1; s < SHL_STRATEGY_COUNT; ++s) {
            agree_with_ddp(&c, &ddp, (shl_strategy)s);
        }
        ew_result_fini(&ddp);
    }
}

/* Four micro-batches of one are one of four up to the order of sums, in both families. */
static void
test_engine_bits_accumulation_is_the_same_training(void **state)
{
    (void)state;
    for (int s = SHL_DDP; s < SHL_STRATEGY_COUNT; ++s) {
        ew_config c;
        ew_result whole, split;
        ew_config_init(&c, (shl_strategy)s, 2);
        c.engine.batch = 4;
        ew_run(&c, &whole);
        c.engine.batch = 1;
        c.engine.accum = 4;
        ew_run(&c, &split);
        assert_string_equal(split.what, "");
        for (int i = 0; i < c.steps; ++i) {
            const shl_step_report *a = &whole.reports[i], *b = &split.reports[i];
            assert_true(fabs(a->loss - b->loss) < 1e-5 * a->loss);
            assert_true(fabs(a->grad_norm - b->grad_norm) < 1e-4 * a->grad_norm);
        }
        ew_result_fini(&whole);
        ew_result_fini(&split);
    }
}

static void
test_engine_bits_repeat(void **state)
{
    (void)state;
    ew_config c;
    ew_result a;
    ew_config_init(&c, SHL_ZERO3, 4);
    ew_run(&c, &a);
    agree_with_ddp(&c, &a, SHL_ZERO3);
    ew_result_fini(&a);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_engine_bits_agree_at_every_world_size),
        cmocka_unit_test(test_engine_bits_do_not_depend_on_bucket_or_prefetch),
        cmocka_unit_test(test_engine_bits_agree_inside_a_family_and_across_with_micro),
        cmocka_unit_test(test_engine_bits_agree_for_an_untied_head),
        cmocka_unit_test(test_engine_bits_agree_for_a_llama),
        cmocka_unit_test(test_engine_bits_accumulation_is_the_same_training),
        cmocka_unit_test(test_engine_bits_repeat),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

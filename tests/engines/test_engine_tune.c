/* tests/engines: recomputation, frozen parameters, adapters and dropout under every strategy: no gather
 * more than without, calls as the definitions say, masks that know nothing of the world. */
#include "tests/support/engine_twin.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

static const shl_tune_config recomputes[] = {
    {.recompute = SHL_RECOMPUTE_NONE},
    {.recompute = SHL_RECOMPUTE_SELECTIVE},
    {.recompute = SHL_RECOMPUTE_FULL},
    {.recompute = SHL_RECOMPUTE_FULL, .recompute_every = 2},
};

static const shl_tune_config trained[] = {
    {.freeze = ""},
    {.freeze = "h.1,*.bias"},
    {.freeze = "wte,wpe,h.0"},
    {.train_last = 1},
    {.lora_rank = 3, .lora_targets = "c_attn,mlp.c_proj"},
    {.lora_rank = 2, .train_last = 2, .lora_alpha = 7.0},
    {.lora_rank = 1, .lora_base = true, .freeze = "wpe"},
    {.dropout = 0.3, .attention_dropout = 0.1, .lora_rank = 2},
};

static shl_tune_config
both(size_t recompute, size_t train)
{
    shl_tune_config t = trained[train];
    t.recompute = recomputes[recompute].recompute;
    t.recompute_every = recomputes[recompute].recompute_every;
    return t;
}

/* Collectives and resident state are those of the run that recomputes nothing; its peak of activations is
 * above theirs. */
static void
test_engine_tune_recomputation_gathers_nothing(void **state)
{
    (void)state;
    for (int s = SHL_DDP; s < SHL_STRATEGY_COUNT; ++s) {
        for (size_t t = 0; t < SHL_ARRAY_LEN(trained); ++t) {
            ew_config c;
            ew_result none;
            ew_config_init(&c, (shl_strategy)s, 3);
            c.device = "virtual";
            c.tune = trained[t];
            c.engine.prefetch = (int)t % 3;
            et_run(&c, &none);
            for (size_t r = 1; r < SHL_ARRAY_LEN(recomputes); ++r) {
                ew_result other;
                c.tune = both(r, t);
                et_run(&c, &other);
                assert_memory_equal(&none.comm[0], &other.comm[0], sizeof(none.comm[0]));
                assert_memory_equal(none.device[0].now_tag_bytes, other.device[0].now_tag_bytes,
                                    sizeof(none.device[0].now_tag_bytes));
                assert_true(other.device[0].peak_tag_bytes[SHL_TAG_ACT] <
                            none.device[0].peak_tag_bytes[SHL_TAG_ACT]);
            }
        }
    }
}

/* The last k of 3 blocks behind a tied head: all four units are gathered in forward, k of them again in
 * backward (the root is kept, or everything), k and the root with the last norm are reduced. */
static void
test_engine_tune_calls_of_the_last_blocks(void **state)
{
    (void)state;
    for (int64_t k = 1; k <= 3; ++k) {
        for (int s = SHL_FSDP; s <= SHL_FSDP_GRAD_OP; ++s) {
            ew_config c;
            ew_result r;
            ew_config_init(&c, (shl_strategy)s, 2);
            c.tune.train_last = k;
            c.device = "virtual";
            et_run(&c, &r);
            int64_t again = s == SHL_FSDP ? k : 0;
            const shl_comm_counter *kind = r.comm[0].kind;
            assert_int_equal(kind[SHL_COLL_ALL_GATHER].calls, (4 + again) * c.steps);
            assert_int_equal(kind[SHL_COLL_REDUCE_SCATTER].calls, (k + 1) * c.steps);
            assert_int_equal(r.info.n_gather_backward, again);
        }
    }
}

/* ZeRO-3 with one block trained: its modules with parameters, the last norm and the tied table again. */
static void
test_engine_tune_calls_of_zero3(void **state)
{
    (void)state;
    ew_config c;
    ew_result r;
    ew_config_init(&c, SHL_ZERO3, 2);
    c.tune.train_last = 1;
    c.device = "virtual";
    et_run(&c, &r);
    const int64_t per_block = 6, forward = 2 + 3 * per_block + 1, backward = per_block + 2;
    assert_int_equal(r.info.n_gather_forward, forward);
    assert_int_equal(r.info.n_gather_backward, backward);
    assert_int_equal(r.comm[0].kind[SHL_COLL_ALL_GATHER].calls, (forward + backward) * c.steps);
}

/* Four sequences on one, two or four ranks, at once or one by one: masks belong to a sequence's place in
 * the global batch, so the runs differ by the order of sums alone. Other masks move the loss. */
static void
test_engine_tune_dropout_does_not_depend_on_the_world(void **state)
{
    (void)state;
    static const int64_t ways[][3] = {{1, 4, 1}, {1, 1, 4}, {2, 2, 1}, {2, 1, 2}, {4, 1, 1}};
    ew_result whole = {0}, plain;
    ew_config c;
    for (size_t i = 0; i < SHL_ARRAY_LEN(ways); ++i) {
        ew_result r;
        ew_config_init(&c, i % 2 == 0 ? SHL_FSDP : SHL_ZERO1, (int)ways[i][0]);
        c.engine.batch = ways[i][1];
        c.engine.accum = ways[i][2];
        c.tune.dropout = c.tune.attention_dropout = 0.3;
        et_run(&c, &r);
        whole = i == 0 ? r : whole;
        for (int step = 0; step < c.steps; ++step) {
            double a = whole.reports[step].loss, b = r.reports[step].loss;
            assert_true(fabs(a - b) < 1e-6 * a);
        }
    }
    c.tune.dropout = c.tune.attention_dropout = 0.0;
    et_run(&c, &plain);
    assert_true(fabs(plain.reports[0].loss - whole.reports[0].loss) > 1e-4);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_engine_tune_recomputation_gathers_nothing),
        cmocka_unit_test(test_engine_tune_calls_of_the_last_blocks),
        cmocka_unit_test(test_engine_tune_calls_of_zero3),
        cmocka_unit_test(test_engine_tune_dropout_does_not_depend_on_the_world),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

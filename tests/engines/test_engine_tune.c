/* tests/engines: recomputation, frozen parameters and adapters under every strategy: the same bits, the
 * same bytes on the virtual device, no gather more than without, state as the closed form says. */
#include "tests/support/engine_twin.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/base/clock.h"
#include "kernels/base/option.h"
#include "kernels/base/rng.h"

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

static void
run(ew_config *c, ew_result *r)
{
    char label[400];
    et_label(c, label, sizeof(label));
    ew_run(c, r);
    if (r->code != SHL_OK) {
        fail_msg("%s: %s", label, r->what);
    }
}

static void
expect_same_bits(const ew_config *c, const ew_result *a, const ew_result *b)
{
    char label[400];
    const char *why = ew_bits_differ(a, b, c->steps);
    if (why[0] != '\0') {
        et_label(c, label, sizeof(label));
        fail_msg("%s: %s", label, why);
    }
}

/* Every strategy trains the same, whatever is recomputed; what is trained moves, the loss with it. */
static void
test_engine_tune_bits_agree(void **state)
{
    (void)state;
    for (size_t t = 0; t < SHL_ARRAY_LEN(trained); ++t) {
        ew_config c;
        ew_result ddp;
        ew_config_init(&c, SHL_DDP, 2 + (int)t % 2);
        c.tune = trained[t];
        c.model.tied = t % 3 != 1;
        c.engine.accum = 1 + (int64_t)t % 2;
        c.engine.reduce_every = SHL_REDUCE_MICRO;
        c.engine.optim.clip = 0.5;
        run(&c, &ddp);
        assert_true(ddp.reports[0].loss != ddp.reports[2].loss && ddp.reports[0].grad_norm > 0.0);
        for (int s = SHL_DDP; s < SHL_STRATEGY_COUNT; ++s) {
            for (size_t r = (s == SHL_DDP); r < SHL_ARRAY_LEN(recomputes); ++r) {
                ew_result other;
                c.engine.strategy = (shl_strategy)s;
                c.tune = both(r, t);
                run(&c, &other);
                expect_same_bits(&c, &ddp, &other);
            }
        }
    }
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
            run(&c, &none);
            for (size_t r = 1; r < SHL_ARRAY_LEN(recomputes); ++r) {
                ew_result other;
                c.tune = both(r, t);
                run(&c, &other);
                assert_memory_equal(&none.comm[0], &other.comm[0], sizeof(none.comm[0]));
                assert_memory_equal(none.device[0].now_tag_bytes, other.device[0].now_tag_bytes,
                                    sizeof(none.device[0].now_tag_bytes));
                assert_true(other.device[0].peak_tag_bytes[SHL_TAG_ACT] <
                            none.device[0].peak_tag_bytes[SHL_TAG_ACT]);
            }
        }
    }
}

static void
test_engine_tune_virtual_equals_cpu(void **state)
{
    (void)state;
    bool all = shl_env("SHL_TEST_ALL") != NULL;
    uint64_t seed = (uint64_t)shl_clock_ns(), n = 0;
    print_message("seed %llu\n", (unsigned long long)seed);
    for (int s = SHL_DDP; s < SHL_STRATEGY_COUNT; ++s) {
        for (size_t t = 0; t < SHL_ARRAY_LEN(trained); ++t) {
            for (size_t r = 0; r < SHL_ARRAY_LEN(recomputes); ++r) {
                uint64_t draw = shl_rng_u64(seed, (uint64_t)s, n++);
                if (!all && draw % 4 != 0) {
                    continue;
                }
                ew_config c;
                ew_config_init(&c, (shl_strategy)s, 1 + (int)((draw >> 8) % 4));
                c.tune = both(r, t);
                c.steps = 2;
                c.model.tied = (draw >> 16) % 2 == 0;
                c.engine.accum = 1 + (int64_t)((draw >> 20) % 2);
                c.engine.optim.clip = (draw >> 24) % 2 == 0 ? 0.0 : 0.5;
                c.engine.prefetch = (int)((draw >> 28) % 3);
                c.engine.bucket_elems = (draw >> 32) % 2 == 0 ? 700 : 100000;
                et_expect_same_run(&c);
            }
        }
    }
}

/* Frozen parameters take 4 bytes each, whole or sharded as the parameters are; trained ones 16. */
static double
state_bytes(shl_strategy s, double train, double frozen, int ranks)
{
    double n = (double)ranks;
    double param = (train + frozen) * (s <= SHL_ZERO2 ? 1.0 : 1.0 / n);
    double grad = train * (s <= SHL_ZERO1 ? 1.0 : 1.0 / n);
    double moments = 2.0 * train * (s == SHL_DDP ? 1.0 : 1.0 / n);
    return 4.0 * (param + grad + moments);
}

static void
check_state(shl_strategy s, size_t t, int ranks)
{
    ew_config c;
    ew_result r;
    shl_model *model = NULL;
    double got = 0.0;
    ew_config_init(&c, s, ranks);
    c.tune = trained[t];
    c.steps = 1;
    c.device = "virtual";
    assert_int_equal(shl_model_new(&c.model, &model), SHL_OK);
    assert_int_equal(shl_model_tune(model, &c.tune), SHL_OK);
    double train = (double)shl_model_trainable_elems(model), all = (double)model->n_elems;
    shl_model_free(&model);
    for (c.virtual_rank = 0; c.virtual_rank < ranks; ++c.virtual_rank) {
        run(&c, &r);
        const size_t *now = r.device[0].now_tag_bytes;
        got += (double)(now[SHL_TAG_PARAM] + now[SHL_TAG_GRAD] + now[SHL_TAG_OPTIM]) -
               (double)r.info.padding_bytes;
        assert_int_equal(now[SHL_TAG_GATHER] + now[SHL_TAG_BUCKET] + now[SHL_TAG_MASTER], 0);
    }
    double want = state_bytes(s, train, all - train, ranks) * ranks;
    if (got - want > 0.5 || want - got > 0.5) {
        fail_msg("%s, %d ranks, case %zu: %.1f bytes, the formula says %.1f", shl_strategy_name(s),
                 ranks, t, got, want);
    }
}

static void
test_engine_tune_state_is_the_closed_form(void **state)
{
    (void)state;
    for (int s = SHL_DDP; s < SHL_STRATEGY_COUNT; ++s) {
        for (size_t t = 0; t < SHL_ARRAY_LEN(trained); ++t) {
            for (int ranks = 1; ranks <= 4; ++ranks) {
                check_state((shl_strategy)s, t, ranks);
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
            run(&c, &r);
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
    run(&c, &r);
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
        run(&c, &r);
        whole = i == 0 ? r : whole;
        for (int step = 0; step < c.steps; ++step) {
            double a = whole.reports[step].loss, b = r.reports[step].loss;
            assert_true(fabs(a - b) < 1e-6 * a);
        }
    }
    c.tune.dropout = c.tune.attention_dropout = 0.0;
    run(&c, &plain);
    assert_true(fabs(plain.reports[0].loss - whole.reports[0].loss) > 1e-4);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_engine_tune_bits_agree),
        cmocka_unit_test(test_engine_tune_recomputation_gathers_nothing),
        cmocka_unit_test(test_engine_tune_virtual_equals_cpu),
        cmocka_unit_test(test_engine_tune_state_is_the_closed_form),
        cmocka_unit_test(test_engine_tune_calls_of_the_last_blocks),
        cmocka_unit_test(test_engine_tune_calls_of_zero3),
        cmocka_unit_test(test_engine_tune_dropout_does_not_depend_on_the_world),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

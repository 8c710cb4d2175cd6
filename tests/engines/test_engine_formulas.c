/* tests/engines: model-state bytes and collective payloads equal the closed forms, padding apart, and
 * calls equal those of the strategies' definitions; on the virtual device, which equals the cpu. */
#include "tests/support/engine_twin.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

typedef struct sums {
    double state_less_padding; /* over all ranks */
    ew_result last;
} sums;

static void
run_all_ranks(ew_config *c, sums *out)
{
    out->state_less_padding = 0.0;
    c->device = "virtual";
    for (int rank = 0; rank < c->ranks; ++rank) {
        c->virtual_rank = rank;
        ew_run(c, &out->last);
        if (out->last.code != SHL_OK) {
            fail_msg("%s: %s", shl_strategy_name(c->engine.strategy), out->last.what);
        }
        const size_t *now = out->last.device[0].now_tag_bytes;
        size_t state =
            now[SHL_TAG_PARAM] + now[SHL_TAG_GRAD] + now[SHL_TAG_MASTER] + now[SHL_TAG_OPTIM];
        assert_int_equal(now[SHL_TAG_GATHER] + now[SHL_TAG_BUCKET], 0);
        out->state_less_padding += (double)state - (double)out->last.info.padding_bytes;
    }
}

static void
check_fsdp_calls(const ew_config *c, const ew_result *r)
{
    int64_t units = c->model.layers + (c->model.tied ? 1 : 2);
    int64_t k = c->engine.accum, reductions = k;
    if (c->engine.reduce_every == SHL_REDUCE_BOUNDARY) {
        reductions = 1;
    }
    int64_t gathers = c->engine.strategy == SHL_FSDP ? k * (2 * units - 1) : k * units;
    assert_int_equal(r->info.n_units, units);
    assert_int_equal(r->comm[0].kind[SHL_COLL_ALL_GATHER].calls, gathers * c->steps);
    assert_int_equal(r->comm[0].kind[SHL_COLL_REDUCE_SCATTER].calls, reductions * units * c->steps);
}

/* On the boundary fsdp holds the gradients of all units at once; else only what is in flight. */
static void
check_held(const ew_config *c, const ew_result *r, const shl_formula_size *n)
{
    shl_engine_config e = c->engine;
    assert_int_equal(shl_reduce_every_resolve(e.strategy, e.reduce_every, &e.reduce_every), SHL_OK);
    double held = shl_formula_held_bytes(&e, n);
    double peak = (double)r->device[0].peak_tag_bytes[SHL_TAG_BUCKET];
    double elem = (double)shl_dtype_bytes(e.grad_dtype);
    if (held > 0.0) {
        assert_true(peak == held + elem * (double)r->info.padding_elems);
    }
}

static void
check_one(const ew_config *of)
{
    ew_config c = *of;
    sums sum;
    c.steps = 2;
    shl_strategy s = c.engine.strategy;
    shl_formula_size n;
    et_size(&c, &n);
    run_all_ranks(&c, &sum);
    double want = shl_formula_state_bytes(&c.engine, &n) * c.ranks;
    if (sum.state_less_padding - want > 0.5 || want - sum.state_less_padding > 0.5) {
        char policy[SHL_DTYPE_POLICY_TEXT_BYTES];
        shl_dtype_policy_text(&c.engine, policy, sizeof(policy));
        fail_msg("%s, %d ranks, %s: state of all ranks less padding %.1f, the formula says %.1f",
                 shl_strategy_name(s), c.ranks, policy, sum.state_less_padding, want);
    }
    et_expect_volume(&c, &sum.last, &n);
    check_held(&c, &sum.last, &n);
    if (n.frozen == 0.0 && (s == SHL_FSDP || s == SHL_FSDP_GRAD_OP)) {
        check_fsdp_calls(&c, &sum.last);
    }
}

static void
check_reductions(ew_config *c, size_t world)
{
    shl_strategy s = c->engine.strategy;
    c->model.tied = true;
    c->engine.reduce_every = SHL_REDUCE_AUTO;
    check_one(c);
    if (s != SHL_ZERO2 && s != SHL_ZERO3) {
        c->engine.reduce_every = SHL_REDUCE_BOUNDARY;
        check_one(c);
    }
    c->engine.reduce_every = SHL_REDUCE_MICRO;
    c->model.tied = world % 2 == 0;
    check_one(c);
}

/* Closed forms know parameters by number only: another family, the same forms. */
static void
test_engine_formulas_of_a_llama(void **state)
{
    (void)state;
    for (int s = 0; s < SHL_STRATEGY_COUNT; ++s) {
        for (int ranks = 2; ranks <= 3; ++ranks) {
            ew_config c;
            ew_config_init(&c, (shl_strategy)s, ranks);
            ew_config_llama(&c);
            c.engine.accum = ranks;
            c.model.tied = ranks == 2;
            check_one(&c);
        }
    }
}

static void
test_engine_formulas_state_and_collectives(void **state)
{
    (void)state;
    static const int worlds[] = {1, 2, 3, 4, 8};
    for (int s = 0; s < SHL_STRATEGY_COUNT; ++s) {
        for (size_t w = 0; w < SHL_ARRAY_LEN(worlds); ++w) {
            for (int64_t accum = 1; accum <= 4; accum += 3) {
                ew_config c;
                ew_config_init(&c, (shl_strategy)s, worlds[w]);
                c.engine.accum = accum;
                check_reductions(&c, w);
            }
        }
    }
}

/* The rows of DESIGN 4 with numbers written out, for 1000 elements on 4 ranks: fp32 gradients, 16-bit
 * ones, 16-bit everything. */
static void
test_engine_formulas_of_sixteen_bits(void **state)
{
    (void)state;
    static const struct {
        shl_strategy s;
        double fp32, bf16, bf16_grads, all_bf16, paper;
    } rows[] = {
        {SHL_DDP, 16000, 18000, 16000, 8000, 16000},
        {SHL_ZERO1, 10000, 9000, 7000, 5000, 7000},
        {SHL_ZERO2, 7000, 6000, 5500, 3500, 5500},
        {SHL_ZERO3, 4000, 4500, 4000, 2000, 4000},
        {SHL_FSDP, 4000, 4000, 3500, 2000, 4000},
        {SHL_FSDP_GRAD_OP, 4000, 4000, 3500, 2000, 4000},
    };
    shl_formula_size n = {.train = 1000.0, .ranks = 4};
    for (size_t i = 0; i < SHL_ARRAY_LEN(rows); ++i) {
        shl_engine_config c;
        shl_engine_config_init(&c);
        c.strategy = rows[i].s;
        assert_true(shl_formula_state_bytes(&c, &n) == rows[i].fp32);
        assert_true(isnan(shl_formula_paper_bytes(&c, &n)));
        shl_dtype_policy_set(&c, SHL_BF16);
        assert_true(shl_formula_state_bytes(&c, &n) == rows[i].bf16);
        assert_true(shl_formula_paper_bytes(&c, &n) == rows[i].paper);
        c.grad_dtype = c.reduce_dtype = SHL_BF16;
        assert_true(shl_formula_state_bytes(&c, &n) == rows[i].bf16_grads);
        c.master_dtype = c.moment_dtype = SHL_BF16;
        assert_true(shl_formula_state_bytes(&c, &n) == rows[i].all_bf16);
    }
}

static bool
next_policy(int i, shl_engine_config *c)
{
    static const shl_dtype policies[][5] = {
        /* compute, master, reduce, grad, moments */
        {SHL_BF16, SHL_F32, SHL_F32, SHL_F32, SHL_F32},
        {SHL_BF16, SHL_F32, SHL_BF16, SHL_BF16, SHL_F32},
        {SHL_BF16, SHL_F32, SHL_BF16, SHL_F32, SHL_BF16},
        {SHL_BF16, SHL_BF16, SHL_F32, SHL_BF16, SHL_BF16},
        {SHL_F16, SHL_F32, SHL_F32, SHL_F32, SHL_BF16},
        {SHL_F16, SHL_F16, SHL_F16, SHL_F16, SHL_F32},
    };
    if (i >= (int)SHL_ARRAY_LEN(policies)) {
        return false;
    }
    c->compute_dtype = policies[i][0];
    c->master_dtype = policies[i][1];
    c->reduce_dtype = policies[i][2];
    c->grad_dtype = policies[i][3];
    c->moment_dtype = policies[i][4];
    c->scale.kind = c->compute_dtype == SHL_F16 ? SHL_SCALE_DYNAMIC : SHL_SCALE_NONE;
    return true;
}

/* Every policy that a strategy can do: the ledger and the counters say what the formulas say. */
static void
test_engine_formulas_by_policy(void **state)
{
    (void)state;
    int n = 0;
    for (int s = 0; s < SHL_STRATEGY_COUNT; ++s) {
        for (int every = SHL_REDUCE_MICRO; every <= SHL_REDUCE_BOUNDARY; ++every) {
            ew_config c;
            ew_config_init(&c, (shl_strategy)s, 3);
            c.engine.accum = 2;
            c.engine.reduce_every = (shl_reduce_every)every;
            for (int i = 0; next_policy(i, &c.engine); ++i) {
                if (shl_engine_config_check(&c.engine) == SHL_OK) {
                    check_one(&c);
                    n++;
                }
            }
        }
    }
    shl_err_clear();
    /* 6 policies of 6 strategies at each micro-step; at the boundary ddp and zero1 have all, and fsdp's two
     * those with one dtype. */
    assert_int_equal(n, 6 * 6 + 2 * 6 + 2 * 4);
}

static const shl_tune_config partly[] = {
    {.freeze = "*.attn.*"},
    {.freeze = "wte,wpe,h.0"},
    {.freeze = "ln_f,h.2"},
    {.train_last = 1},
    {.train_last = 2, .recompute = SHL_RECOMPUTE_FULL},
    {.lora_rank = 8, .train_last = 1},
    {.lora_rank = 8, .lora_base = true},
};

/* Sizes that need no padding: counters are the closed forms of the tree alone, written out below for the
 * last block of three. */
static void
test_engine_formulas_of_frozen_parts(void **state)
{
    (void)state;
    for (int s = 0; s < SHL_STRATEGY_COUNT; ++s) {
        for (size_t t = 0; t < 2 * SHL_ARRAY_LEN(partly); ++t) {
            for (int ranks = 1; ranks <= 2; ++ranks) {
                ew_config c;
                ew_config_init(&c, (shl_strategy)s, ranks);
                c.model.width = 16;
                c.model.heads = 2;
                c.model.vocab = 64;
                c.model.tied = t % 2 == 0;
                c.engine.accum = ranks;
                c.tune = partly[t / 2];
                et_set_policy(&c, t % 3 == 0 ? SHL_F32 : SHL_BF16);
                sums sum;
                c.steps = 2;
                run_all_ranks(&c, &sum);
                assert_int_equal(sum.last.info.padding_elems, 0);
                check_one(&c);
            }
        }
    }
}

/* GPT-2 of 12 C^2 + 13 C a block with only the last of three trained: forward carries everything; backward,
 * of what ZeRO-3 gives back, that block, the norm and the head; of what FSDP gives back, the block. */
static void
test_engine_formulas_of_the_last_block(void **state)
{
    (void)state;
    const double block = 12 * 16 * 16 + 13 * 16, head = 64 * 16, norm = 2 * 16;
    const double all = 3 * block + 2 * head + 16 * 16 + norm;
    shl_model_config cfg = {.vocab = 64, .context = 16, .layers = 3, .width = 16, .heads = 2};
    shl_tune_config tune = {.train_last = 1};
    shl_formula_size n;
    shl_model *model = NULL;
    assert_int_equal(shl_model_new(&cfg, &model), SHL_OK);
    assert_int_equal(shl_model_tune(model, &tune), SHL_OK);
    shl_formula_size_of(SHL_ZERO3, model, 2, &n);
    assert_true(n.train == block + norm + head && n.frozen == all - n.train);
    assert_true(n.again == block + norm + head);
    shl_formula_size_of(SHL_FSDP, model, 2, &n);
    assert_true(n.train == block + norm + head && n.again == block);
    shl_formula_size_of(SHL_FSDP_GRAD_OP, model, 2, &n);
    assert_true(n.again == 0.0 && n.ranks == 2);
    shl_model_free(&model);
}

/* FSDP gathers its root once where ZeRO-3 gathers everything twice: that is all that differs. */
static void
test_engine_formulas_explain_fsdp_against_zero3(void **state)
{
    (void)state;
    ew_config c;
    ew_result zero3, fsdp;
    ew_config_init(&c, SHL_ZERO3, 4);
    c.device = "virtual";
    ew_run(&c, &zero3);
    c.engine.strategy = SHL_FSDP;
    ew_run(&c, &fsdp);
    int64_t ag3 = zero3.comm[0].kind[SHL_COLL_ALL_GATHER].bytes / c.steps;
    int64_t agf = fsdp.comm[0].kind[SHL_COLL_ALL_GATHER].bytes / c.steps;
    int64_t padding = 2 * 4 * (zero3.info.padding_elems - fsdp.info.padding_elems);
    assert_int_equal(ag3 - agf, 4 * fsdp.info.root_elems + padding);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_engine_formulas_state_and_collectives),
        cmocka_unit_test(test_engine_formulas_of_a_llama),
        cmocka_unit_test(test_engine_formulas_of_sixteen_bits),
        cmocka_unit_test(test_engine_formulas_by_policy),
        cmocka_unit_test(test_engine_formulas_of_frozen_parts),
        cmocka_unit_test(test_engine_formulas_of_the_last_block),
        cmocka_unit_test(test_engine_formulas_explain_fsdp_against_zero3),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

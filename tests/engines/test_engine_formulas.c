/* tests/engines: model-state bytes and collective payloads equal the closed forms, padding apart, and
 * calls equal those of the strategies' definitions; on the virtual device, which equals the cpu. */
#include "tests/support/engine_world.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "engines/shared/volume.h"

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
        size_t state = now[SHL_TAG_PARAM] + now[SHL_TAG_GRAD] + now[SHL_TAG_OPTIM];
        assert_int_equal(now[SHL_TAG_GATHER] + now[SHL_TAG_BUCKET] + now[SHL_TAG_MASTER], 0);
        out->state_less_padding += (double)state - (double)out->last.info.padding_bytes;
    }
}

static void
expect_bytes(const char *what, shl_strategy s, int64_t got, double elems, int steps)
{
    int64_t want = (int64_t)(elems * 4.0 * steps);
    if (got != want) {
        fail_msg("%s %s: %lld bytes, the formula says %lld", shl_strategy_name(s), what,
                 (long long)got, (long long)want);
    }
}

static void
check_comm(const ew_config *c, const ew_result *r, double params)
{
    shl_strategy s = c->engine.strategy;
    shl_reduce_every every = SHL_REDUCE_AUTO;
    shl_formula_comm f;
    double payload = (double)r->info.payload_elems;
    const shl_comm_counter *k = r->comm[0].kind;
    assert_int_equal(shl_reduce_every_resolve(s, c->engine.reduce_every, &every), SHL_OK);
    shl_formula_comm_elems(s, every, payload, (double)r->info.root_elems, c->engine.accum, &f);
    expect_bytes("all_gather", s, k[SHL_COLL_ALL_GATHER].bytes, f.all_gather_elems, c->steps);
    expect_bytes("reduce_scatter", s, k[SHL_COLL_REDUCE_SCATTER].bytes, f.reduce_scatter_elems,
                 c->steps);
    expect_bytes("all_reduce", s, k[SHL_COLL_ALL_REDUCE].bytes, f.all_reduce_elems, c->steps);
    assert_true(payload == params + (double)r->info.padding_elems);
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

static void
check_one(shl_strategy s, int ranks, int64_t accum, shl_reduce_every every, bool tied)
{
    ew_config c;
    sums sum;
    ew_config_init(&c, s, ranks);
    c.engine.accum = accum;
    c.engine.reduce_every = every;
    c.model.tied = tied;
    c.steps = 2;
    double params = (double)shl_model_formula_params(&c.model);
    run_all_ranks(&c, &sum);
    double want = shl_formula_state_bytes(s, params, ranks) * ranks;
    if (sum.state_less_padding - want > 0.5 || want - sum.state_less_padding > 0.5) {
        fail_msg("%s, %d ranks: state of all ranks less padding %.1f, the formula says %.1f",
                 shl_strategy_name(s), ranks, sum.state_less_padding, want);
    }
    check_comm(&c, &sum.last, params);
    if (s == SHL_FSDP || s == SHL_FSDP_GRAD_OP) {
        check_fsdp_calls(&c, &sum.last);
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
                check_one((shl_strategy)s, worlds[w], accum, SHL_REDUCE_AUTO, true);
                check_one((shl_strategy)s, worlds[w], accum, SHL_REDUCE_MICRO, w % 2 == 0);
                if (s != SHL_ZERO2 && s != SHL_ZERO3) {
                    check_one((shl_strategy)s, worlds[w], accum, SHL_REDUCE_BOUNDARY, true);
                }
            }
        }
    }
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
        cmocka_unit_test(test_engine_formulas_explain_fsdp_against_zero3),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* tests/engines: every optimizer under every strategy: the same bits, the state that it needs and no more,
 * virtual equal to cpu, and updates that a double-precision reading of the gradients confirms. */
#include "tests/support/engine_world.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "engines/shared/volume.h"
#include "tests/support/engine_twin.h"

/* The optimizer's own parameters, with a decay; momentum > 0 for sgd only. */
static void
choose(ew_config *c, shl_optim_kind kind, double momentum)
{
    shl_optim_asked a;
    shl_optim_asked_init(&a);
    a.weight_decay = 0.05;
    a.momentum = kind == SHL_OPTIM_SGD ? momentum : SHL_OPTIM_UNSET;
    assert_int_equal(shl_optim_resolve(kind, &a, &c->engine.optim), SHL_OK);
}

/* What changes an optimizer's formulas and not its state. */
static void
vary(ew_config *c)
{
    shl_optim_config *o = &c->engine.optim;
    o->nesterov = o->kind == SHL_OPTIM_SGD ? 1.0 : 0.0;
    o->bias_correction = 0.0;
}

/* Nesterov, and moments without their correction, in every strategy: the same bits, and others than
 * without. */
static void
test_engine_optim_variants_agree(void **state)
{
    static const shl_optim_kind kinds[] = {SHL_OPTIM_ADAMW, SHL_OPTIM_ADAM, SHL_OPTIM_SGD,
                                           SHL_OPTIM_LAMB};
    (void)state;
    for (size_t k = 0; k < SHL_ARRAY_LEN(kinds); ++k) {
        ew_config c;
        ew_result plain, ddp, r;
        ew_config_init(&c, SHL_DDP, 2);
        choose(&c, kinds[k], 0.9);
        et_run(&c, &plain);
        vary(&c);
        assert_int_equal(shl_optim_check(&c.engine.optim), SHL_OK);
        et_run(&c, &ddp);
        assert_true(ddp.param_hash != plain.param_hash);
        for (int s = SHL_ZERO2; s < SHL_STRATEGY_COUNT; ++s) {
            c.engine.strategy = (shl_strategy)s;
            c.engine.offload.optimizer = s == SHL_ZERO3 ? SHL_OFFLOAD_HOST : SHL_OFFLOAD_NONE;
            et_run(&c, &r);
            et_expect_same_bits(&c, &ddp, &r);
        }
    }
}

static void
test_engine_optim_strategies_agree(void **state)
{
    (void)state;
    for (int kind = SHL_OPTIM_ADAM; kind < SHL_OPTIM_KIND_COUNT; ++kind) {
        ew_config c;
        ew_result ddp, r;
        ew_config_init(&c, SHL_DDP, 3);
        choose(&c, (shl_optim_kind)kind, 0.9);
        c.engine.optim.clip = kind % 2 == 0 ? 0.5 : 0.0;
        ew_run(&c, &ddp);
        assert_string_equal(ddp.what, "");
        assert_true(ddp.reports[0].loss != ddp.reports[1].loss && ddp.param_hash != 0);
        for (int s = SHL_ZERO1; s < SHL_STRATEGY_COUNT; ++s) {
            c.engine.strategy = (shl_strategy)s;
            c.engine.bucket_elems = 700 * s;
            ew_run(&c, &r);
            const char *why = ew_bits_differ(&ddp, &r, c.steps);
            if (why[0] != '\0') {
                fail_msg("%s, %s: %s", shl_optim_name((shl_optim_kind)kind),
                         shl_strategy_name((shl_strategy)s), why);
            }
            ew_result_fini(&r);
        }
        ew_result_fini(&ddp);
    }
}

/* 16 bits: what is rounded is rounded by the rank that owns it. */
static void
test_engine_optim_agree_in_bf16(void **state)
{
    (void)state;
    static const shl_optim_kind kinds[] = {SHL_OPTIM_LAMB, SHL_OPTIM_LION, SHL_OPTIM_SGD};
    for (size_t k = 0; k < SHL_ARRAY_LEN(kinds); ++k) {
        ew_config c;
        ew_result a, b;
        ew_config_init(&c, SHL_DDP, 2);
        choose(&c, kinds[k], 0.9);
        shl_dtype_policy_set(&c.engine, SHL_BF16);
        c.engine.moment_dtype = SHL_BF16;
        ew_run(&c, &a);
        c.engine.strategy = k % 2 == 0 ? SHL_FSDP : SHL_ZERO2;
        ew_run(&c, &b);
        const char *why = ew_bits_differ(&a, &b, c.steps);
        if (why[0] != '\0') {
            fail_msg("%s: %s", shl_optim_name(kinds[k]), why);
        }
        ew_result_fini(&a);
        ew_result_fini(&b);
    }
}

/* Moments and gradients in host memory, in sub-groups that cut tensors: LAMB's norms too. */
static void
test_engine_optim_offloaded_keeps_every_bit(void **state)
{
    (void)state;
    for (int kind = SHL_OPTIM_ADAM; kind < SHL_OPTIM_KIND_COUNT; ++kind) {
        ew_config c;
        ew_result plain, r;
        ew_config_init(&c, kind % 2 == 0 ? SHL_ZERO2 : SHL_ZERO3, 2);
        choose(&c, (shl_optim_kind)kind, 0.9);
        ew_run(&c, &plain);
        c.engine.offload.optimizer = SHL_OFFLOAD_HOST;
        c.engine.offload.sub_group_elems = 777;
        c.engine.offload.ratio = kind % 3 == 0 ? 0.5 : 1.0;
        ew_run(&c, &r);
        const char *why = ew_bits_differ(&plain, &r, c.steps);
        if (why[0] != '\0') {
            fail_msg("%s: %s", shl_optim_name((shl_optim_kind)kind), why);
        }
        assert_true(r.host[0].now_bytes > 0);
        et_expect_same_run(&c);
        ew_result_fini(&plain);
        ew_result_fini(&r);
    }
}

/* Bytes of the tag optim per parameter, and the closed formula. */
static void
test_engine_optim_holds_what_it_needs(void **state)
{
    (void)state;
    static const struct {
        shl_optim_kind kind;
        double momentum;
        size_t bytes;
    } rows[] = {
        {SHL_OPTIM_ADAMW, 0.0, 8},   {SHL_OPTIM_ADAM, 0.0, 8}, {SHL_OPTIM_LAMB, 0.0, 8},
        {SHL_OPTIM_LION, 0.0, 4},    {SHL_OPTIM_SGD, 0.9, 4},  {SHL_OPTIM_SGD, 0.0, 0},
        {SHL_OPTIM_ADAGRAD, 0.0, 4},
    };
    for (size_t i = 0; i < SHL_ARRAY_LEN(rows); ++i) {
        for (int s = SHL_DDP; s < SHL_STRATEGY_COUNT; ++s) {
            ew_config c;
            double state_bytes = 0.0, optim = 0.0, padding = 0.0;
            ew_config_init(&c, (shl_strategy)s, 3);
            choose(&c, rows[i].kind, rows[i].momentum);
            c.device = "virtual";
            for (c.virtual_rank = 0; c.virtual_rank < c.ranks; ++c.virtual_rank) {
                ew_result r;
                ew_run(&c, &r);
                assert_string_equal(r.what, "");
                const size_t *now = r.device[0].now_tag_bytes;
                optim += (double)now[SHL_TAG_OPTIM];
                state_bytes += (double)(now[SHL_TAG_PARAM] + now[SHL_TAG_GRAD]) +
                               (double)(now[SHL_TAG_MASTER] + now[SHL_TAG_OPTIM]);
                padding += (double)r.info.padding_bytes;
                ew_result_fini(&r);
            }
            shl_formula_size n = {.train = (double)shl_model_formula_params(&c.model),
                                  .ranks = c.ranks};
            double want = shl_formula_state_bytes(&c.engine, &n) * c.ranks;
            double held = n.train * (double)rows[i].bytes * (s == SHL_DDP ? c.ranks : 1.0);
            assert_true(fabs(state_bytes - padding - want) < 0.5);
            assert_true(optim >= held && optim <= held + padding);
        }
    }
}

static void
test_engine_optim_virtual_is_the_cpu(void **state)
{
    (void)state;
    for (int kind = SHL_OPTIM_ADAM; kind < SHL_OPTIM_KIND_COUNT; ++kind) {
        ew_config c;
        ew_config_init(&c, kind % 2 == 0 ? SHL_ZERO1 : SHL_ZERO3, 3);
        choose(&c, (shl_optim_kind)kind, 0.9);
        et_expect_same_run(&c);
    }
}

static const ew_tensor *
find(const ew_result *r, const char *kind, const char *name)
{
    for (int i = 0; i < r->n_tensors; ++i) {
        if (strcmp(r->tensors[i].kind, kind) == 0 && strcmp(r->tensors[i].name, name) == 0) {
            return &r->tensors[i];
        }
    }
    fail_msg("no %s of %s", kind, name);
    return NULL;
}

/* With a rate of 1 and nothing else, SGD's step is the gradient. */
static void
run_kept(ew_config *c, shl_optim_kind kind, double lr, double decay, int steps, ew_result *r)
{
    choose(c, kind, 0.0);
    c->engine.optim.lr = lr;
    c->engine.optim.weight_decay = decay;
    c->steps = steps;
    c->keep_state = true;
    ew_run(c, r);
    assert_string_equal(r->what, "");
}

/* First steps from p0 with gradient g, bias corrections undone: m / (1-b1) is g, v / (1-b2) is g g. */
static double
first_step(shl_optim_kind kind, double p0, double g, double decay)
{
    switch (kind) {
    case SHL_OPTIM_ADAM:
        g += decay * p0;
        return p0 - 1e-3 * g / (fabs(g) + 1e-8);
    case SHL_OPTIM_ADAMW:
        return p0 * (1.0 - 1e-3 * decay) - 1e-3 * g / (fabs(g) + 1e-8);
    case SHL_OPTIM_LION:
        return p0 * (1.0 - 1e-3 * decay) - 1e-3 * ((double)(g > 0.0) - (double)(g < 0.0));
    case SHL_OPTIM_ADAGRAD:
        g += decay * p0;
        return p0 - 1e-3 * g / (fabs(g) + 1e-10);
    case SHL_OPTIM_SGD:
        return p0 - 1e-3 * (g + decay * p0);
    case SHL_OPTIM_LAMB: /* without its ratio */
        return g / (fabs(g) + 1e-8) + decay * p0;
    case SHL_OPTIM_KIND_COUNT:
        break;
    }
    return 0.0;
}

/* Largest difference of a tensor's update from the reference, over what an element may differ by: signs
 * of gradients that rounding decides are left out. */
static double
worst_of(shl_optim_kind kind, const ew_tensor *p0, const ew_tensor *g1, const ew_tensor *p,
         double decay)
{
    double worst = 0.0, p2 = 0.0, u2 = 0.0, scale = 1.0;
    for (int64_t i = 0; i < p->elems && kind == SHL_OPTIM_LAMB; ++i) {
        double x = (double)p0->values[i];
        double u = first_step(kind, x, x - (double)g1->values[i], decay);
        p2 += x * x;
        u2 += u * u;
    }
    if (p2 > 0.0 && u2 > 0.0) {
        scale = fmin(10.0, fmax(0.01, sqrt(p2 / u2)));
    }
    for (int64_t i = 0; i < p->elems; ++i) {
        double x = (double)p0->values[i], g = x - (double)g1->values[i];
        double want = first_step(kind, x, g, decay);
        want = kind == SHL_OPTIM_LAMB ? x - 1e-3 * scale * want : want;
        if (fabs(g) > 1e-3 && fabs(g + decay * x) > 1e-3) {
            worst = fmax(worst, fabs((double)p->values[i] - want));
        }
    }
    return worst;
}

/* g is read from p0 - p1 and so exact to half a place of p0, 1e-7 of 1; its sign decides steps of 1e-3. */
static void
test_engine_optim_first_step_in_double(void **state)
{
    (void)state;
    ew_config c;
    ew_result start, sgd;
    ew_config_init(&c, SHL_ZERO2, 2);
    run_kept(&c, SHL_OPTIM_SGD, 0.0, 0.0, 1, &start);
    run_kept(&c, SHL_OPTIM_SGD, 1.0, 0.0, 1, &sgd);
    for (int kind = 0; kind < SHL_OPTIM_KIND_COUNT; ++kind) {
        ew_result r;
        run_kept(&c, (shl_optim_kind)kind, 1e-3, 0.05, 1, &r);
        for (int i = 0; i < r.n_tensors / 3; ++i) {
            const char *name = r.tensors[i].name;
            bool decays = strstr(name, "weight") != NULL && strstr(name, "ln_") == NULL;
            double worst = worst_of((shl_optim_kind)kind, find(&start, "param", name),
                                    find(&sgd, "param", name), &r.tensors[i], decays ? 0.05 : 0.0);
            if (!(worst < 2e-6)) {
                fail_msg("%s, %s: off by %g", shl_optim_name((shl_optim_kind)kind), name, worst);
            }
        }
        ew_result_fini(&r);
    }
    ew_result_fini(&start);
    ew_result_fini(&sgd);
}

/* LAMB by its definition: a tensor moves by lr times its own norm, whatever its gradient. */
static void
test_engine_optim_lamb_moves_by_the_norm(void **state)
{
    (void)state;
    ew_config c;
    ew_result start, lamb;
    int moved = 0;
    ew_config_init(&c, SHL_ZERO3, 3);
    run_kept(&c, SHL_OPTIM_SGD, 0.0, 0.0, 1, &start);
    choose(&c, SHL_OPTIM_LAMB, 0.0);
    c.engine.optim.lr = 1e-2;
    c.engine.optim.weight_decay = c.engine.optim.min_coeff = 0.0;
    ew_run(&c, &lamb);
    assert_string_equal(lamb.what, "");
    for (int i = 0; i < lamb.n_tensors / 3; ++i) {
        double p2 = 0.0, d2 = 0.0;
        for (int64_t k = 0; k < lamb.tensors[i].elems; ++k) {
            double x = (double)start.tensors[i].values[k];
            double d = (double)lamb.tensors[i].values[k] - x;
            p2 += x * x;
            d2 += d * d;
        }
        /* Elements of about 1 in an update, of 0.01 in a weight: the lower bound is out of the way. */
        if (p2 > 0.0) {
            assert_true(fabs(sqrt(d2 / p2) - 1e-2) < 1e-5);
            moved++;
        }
    }
    assert_true(moved > 10);
    ew_result_fini(&start);
    ew_result_fini(&lamb);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_engine_optim_variants_agree),
        cmocka_unit_test(test_engine_optim_strategies_agree),
        cmocka_unit_test(test_engine_optim_agree_in_bf16),
        cmocka_unit_test(test_engine_optim_offloaded_keeps_every_bit),
        cmocka_unit_test(test_engine_optim_holds_what_it_needs),
        cmocka_unit_test(test_engine_optim_virtual_is_the_cpu),
        cmocka_unit_test(test_engine_optim_first_step_in_double),
        cmocka_unit_test(test_engine_optim_lamb_moves_by_the_norm),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

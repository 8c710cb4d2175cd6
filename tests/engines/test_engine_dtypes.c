/* tests/engines: in 16 bits too, the six strategies are one training run when gradients are reduced in
 * fp32; the virtual device accounts for every policy as the cpu does; frozen parameters stay as they
 * are. */
#include "tests/support/engine_world.h"

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

static void
set_policy(ew_config *c, shl_dtype compute)
{
    shl_dtype_policy_set(&c->engine, compute);
    c->engine.scale.kind = compute == SHL_F16 ? SHL_SCALE_DYNAMIC : SHL_SCALE_NONE;
    c->engine.scale.scale = 1024.0;
}

static void
label_of(const ew_config *c, char *text, size_t cap)
{
    char policy[SHL_DTYPE_POLICY_TEXT_BYTES];
    shl_dtype_policy_text(&c->engine, policy, sizeof(policy));
    snprintf(text, cap, "%s, %d ranks, accum %lld, %s%s", shl_strategy_name(c->engine.strategy),
             c->ranks, (long long)c->engine.accum, policy,
             c->tune.freeze[0] || c->tune.train_last ? ", frozen" : "");
}

static const shl_tune_config tunes[] = {
    {.recompute = SHL_RECOMPUTE_NONE},
    {.freeze = "wte,wpe", .recompute = SHL_RECOMPUTE_FULL},
    {.train_last = 1},
    {.freeze = "*.attn.*", .recompute = SHL_RECOMPUTE_SELECTIVE},
};

static void
agree_with_ddp(ew_config *c, const ew_result *ddp, shl_strategy s)
{
    char label[200];
    ew_result r;
    c->engine.strategy = s;
    label_of(c, label, sizeof(label));
    ew_run(c, &r);
    const char *why = ew_bits_differ(ddp, &r, c->steps);
    if (why[0] != '\0') {
        fail_msg("against ddp: %s: %s", label, why);
    }
    ew_result_fini(&r);
}

static void
test_engine_dtypes_strategies_agree(void **state)
{
    (void)state;
    for (size_t d = 0; d < SHL_ARRAY_LEN(computes); ++d) {
        for (size_t f = 0; f < SHL_ARRAY_LEN(tunes); ++f) {
            ew_config c;
            ew_result ddp;
            ew_config_init(&c, SHL_DDP, 2 + (int)(d + f) % 2);
            c.engine.optim.clip = f % 2 == 0 ? 0.5 : 0.0;
            c.engine.accum = f == 1 ? 2 : 1;
            c.engine.reduce_every = SHL_REDUCE_MICRO;
            c.tune = tunes[f];
            set_policy(&c, computes[d]);
            ew_run(&c, &ddp);
            if (ddp.code != SHL_OK) {
                fail_msg("%s", ddp.what);
            }
            assert_true(ddp.reports[0].loss > 3.5 && ddp.reports[0].loss < 5.0);
            assert_true(ddp.reports[0].loss != ddp.reports[2].loss && ddp.param_hash != 0);
            for (int s = SHL_ZERO1; s < SHL_STRATEGY_COUNT; ++s) {
                agree_with_ddp(&c, &ddp, (shl_strategy)s);
            }
        }
    }
}

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
        set_policy(&c, computes[d]);
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
        set_policy(&c, computes[d]);
        c.engine.master_dtype = computes[d];
        c.engine.moment_dtype = SHL_BF16;
        ew_run(&c, &ddp);
        assert_string_equal(ddp.what, "");
        for (int s = SHL_ZERO1; s < SHL_STRATEGY_COUNT; ++s) {
            agree_with_ddp(&c, &ddp, (shl_strategy)s);
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
        set_policy(&c, computes[(size_t)s % SHL_ARRAY_LEN(computes)]);
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

static void
expect_same_run(ew_config *c)
{
    char label[200];
    ew_result cpu, virt;
    label_of(c, label, sizeof(label));
    c->device = "cpu";
    ew_run(c, &cpu);
    if (cpu.code != SHL_OK) {
        fail_msg("%s: %s", label, cpu.what);
    }
    for (int rank = 0; rank < c->ranks; ++rank) {
        c->device = "virtual";
        c->virtual_rank = rank;
        ew_run(c, &virt);
        if (virt.code != SHL_OK) {
            fail_msg("%s: virtual: %s", label, virt.what);
        }
        if (virt.trace_hash[0] != cpu.trace_hash[rank] ||
            virt.device[0].peak_bytes != cpu.device[rank].peak_bytes) {
            fail_msg("%s: virtual peak %zu in %s by %s, cpu %zu in %s by %s", label,
                     virt.device[0].peak_bytes, shl_mark_name(virt.device[0].peak_mark),
                     virt.device[0].peak_owner, cpu.device[rank].peak_bytes,
                     shl_mark_name(cpu.device[rank].peak_mark), cpu.device[rank].peak_owner);
        }
        if (memcmp(&virt.comm[0], &cpu.comm[rank], sizeof(virt.comm[0])) != 0) {
            fail_msg("%s: collectives differ", label);
        }
    }
}

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
            expect_same_run(&c);
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
        cmocka_unit_test(test_engine_dtypes_strategies_agree),
        cmocka_unit_test(test_engine_dtypes_are_the_same_training),
        cmocka_unit_test(test_engine_dtypes_sixteen_bit_masters_agree),
        cmocka_unit_test(test_engine_dtypes_frozen_parameters_stay),
        cmocka_unit_test(test_engine_dtypes_virtual_equals_cpu),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

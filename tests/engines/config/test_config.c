/* tests/engines/config: schedules against the formula of their definition and the golden values,
 * names and aliases, and every value that makes no sense is refused. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "engines/config/config.h"
#include "kernels/base/heap.h"
#include "tests/support/golden.h"

static void
test_config_defaults_pass_the_check(void **state)
{
    SHL_UNUSED(state);
    shl_engine_config c;
    shl_engine_config_init(&c);
    assert_int_equal(shl_engine_config_check(&c), SHL_OK);
    for (int s = 0; s < SHL_STRATEGY_COUNT; s++) {
        c.strategy = (shl_strategy)s;
        assert_int_equal(shl_reduce_every_resolve(c.strategy, SHL_REDUCE_AUTO, &c.reduce_every),
                         SHL_OK);
        assert_int_equal(shl_engine_config_check(&c), SHL_OK);
    }
}

static void
test_config_strategy_names_go_round(void **state)
{
    SHL_UNUSED(state);
    shl_strategy s;
    for (int i = 0; i < SHL_STRATEGY_COUNT; i++) {
        assert_int_equal(shl_strategy_parse(shl_strategy_name((shl_strategy)i), &s), SHL_OK);
        assert_int_equal(s, i);
    }
    assert_int_equal(shl_strategy_parse("FULL_SHARD", &s), SHL_OK);
    assert_int_equal(s, SHL_FSDP);
    assert_int_equal(shl_strategy_parse("SHARD_GRAD_OP", &s), SHL_OK);
    assert_int_equal(s, SHL_FSDP_GRAD_OP);
    assert_int_equal(shl_strategy_parse("NO_SHARD", &s), SHL_OK);
    assert_int_equal(s, SHL_DDP);
    assert_int_equal(shl_strategy_parse("zero4", &s), SHL_E_USAGE);
    assert_non_null(strstr(shl_err_get()->what, "zero4"));
    assert_non_null(strstr(shl_err_get()->because, "fsdp-grad-op"));
    assert_non_null(strstr(shl_err_get()->advice, "zero"));
}

static void
test_config_reduction_resolves_by_nature(void **state)
{
    SHL_UNUSED(state);
    static const struct {
        shl_strategy s;
        shl_reduce_every by_nature;
        bool boundary;
    } rows[] = {
        {SHL_DDP, SHL_REDUCE_BOUNDARY, true}, {SHL_ZERO1, SHL_REDUCE_BOUNDARY, true},
        {SHL_ZERO2, SHL_REDUCE_MICRO, false}, {SHL_ZERO3, SHL_REDUCE_MICRO, false},
        {SHL_FSDP, SHL_REDUCE_MICRO, true},   {SHL_FSDP_GRAD_OP, SHL_REDUCE_MICRO, true},
    };
    for (size_t i = 0; i < SHL_ARRAY_LEN(rows); i++) {
        shl_reduce_every out;
        assert_int_equal(shl_reduce_every_resolve(rows[i].s, SHL_REDUCE_AUTO, &out), SHL_OK);
        assert_int_equal(out, rows[i].by_nature);
        assert_int_equal(shl_reduce_every_resolve(rows[i].s, SHL_REDUCE_MICRO, &out), SHL_OK);
        assert_int_equal(out, SHL_REDUCE_MICRO);
        assert_int_equal(shl_reduce_every_resolve(rows[i].s, SHL_REDUCE_BOUNDARY, &out),
                         rows[i].boundary ? SHL_OK : SHL_E_USAGE);
    }
}

/* The text of the golden files: s < W: base (s + 1) / W, else base (r + (1 - r) / 2 (1 + cos(pi p)))
 * with p = (s + 1 - W) / (S - W). */
static void
test_config_schedule_follows_the_definition(void **state)
{
    SHL_UNUSED(state);
    const double pi = acos(-1.0);
    for (int64_t warmup = 0; warmup <= 5; warmup++) {
        for (int64_t total = warmup + 1; total <= 12; total++) {
            shl_optim_config c = {.lr = 3e-4, .min_lr_ratio = 0.1, .warmup_steps = warmup};
            c.schedule_steps = total;
            for (int64_t s = 0; s < 15; s++) {
                double p = fmin(1.0, (double)(s + 1 - warmup) / (double)(total - warmup));
                double up = 3e-4 * (double)(s + 1) / (double)(warmup > 0 ? warmup : 1);
                double cosine = 3e-4 * (0.1 + 0.9 * 0.5 * (1.0 + cos(pi * p)));
                double linear = 3e-4 * (0.1 + 0.9 * (1.0 - p));
                c.schedule = SHL_SCHEDULE_COSINE;
                assert_true(fabs(shl_lr_at(&c, s) - (s < warmup ? up : cosine)) < 1e-18);
                c.schedule = SHL_SCHEDULE_LINEAR;
                assert_true(fabs(shl_lr_at(&c, s) - (s < warmup ? up : linear)) < 1e-18);
                c.schedule = SHL_SCHEDULE_CONSTANT;
                assert_true(fabs(shl_lr_at(&c, s) - (s < warmup ? up : 3e-4)) < 1e-18);
            }
            c.schedule = SHL_SCHEDULE_COSINE;
            assert_true(fabs(shl_lr_at(&c, total - 1) - 3e-5) < 1e-18);
            assert_true(fabs(shl_lr_at(&c, total + 100) - 3e-5) < 1e-18);
        }
    }
}

static void
test_config_schedule_equals_golden_run(void **state)
{
    SHL_UNUSED(state);
    hid_t file = shl_golden_open("gpt2-tiny.h5");
    size_t n;
    double *lr = shl_golden_f64(file, "/train/C/lr", &n);
    shl_optim_config c = {
        .lr = shl_golden_real(file, "/", "lr"),
        .schedule = SHL_SCHEDULE_COSINE,
        .warmup_steps = shl_golden_int(file, "/", "warmup_steps"),
        .schedule_steps = shl_golden_int(file, "/", "steps"),
        .min_lr_ratio = shl_golden_real(file, "/", "min_lr_ratio"),
    };
    assert_int_equal(n, c.schedule_steps);
    for (size_t s = 0; s < n; s++) {
        assert_true(fabs(shl_lr_at(&c, (int64_t)s) - lr[s]) <= 1e-12 * lr[s]);
    }
    shl_heap_free(&lr);
    shl_golden_close(file);
}

typedef void (*spoil_fn)(shl_engine_config *c);
#define SPOIL(name, text)                                                                          \
    static void name(shl_engine_config *c)                                                         \
    {                                                                                              \
        text;                                                                                      \
    }
SPOIL(nan_lr, c->optim.lr = (double)NAN)
SPOIL(negative_lr, c->optim.lr = -1e-3)
SPOIL(infinite_lr, c->optim.lr = (double)INFINITY)
SPOIL(beta_one, c->optim.beta1 = 1.0)
SPOIL(beta_negative, c->optim.beta2 = -0.1)
SPOIL(eps_zero, c->optim.eps = 0.0)
SPOIL(decay_nan, c->optim.weight_decay = (double)NAN)
SPOIL(clip_negative, c->optim.clip = -1.0)
SPOIL(ratio_large, c->optim.min_lr_ratio = 1.5)
SPOIL(warmup_negative, c->optim.warmup_steps = -1)
SPOIL(no_schedule_end, c->optim.schedule = SHL_SCHEDULE_COSINE)
SPOIL(late_warmup, (c->optim.schedule = SHL_SCHEDULE_LINEAR,
                    c->optim.warmup_steps = c->optim.schedule_steps = 10))
SPOIL(bucket_zero, c->bucket_elems = 0)
SPOIL(bucket_huge, c->bucket_elems = INT64_MAX)
SPOIL(accum_zero, c->accum = 0)
SPOIL(batch_negative, c->batch = -4)
SPOIL(seq_zero, c->seq = 0)
SPOIL(prefetch_bad, c->prefetch = -7)
SPOIL(reduce_unresolved, c->reduce_every = SHL_REDUCE_AUTO)
SPOIL(reduce_wrong, (c->strategy = SHL_ZERO3, c->reduce_every = SHL_REDUCE_BOUNDARY))
SPOIL(dtype_bf16, c->compute_dtype = SHL_BF16)

static void
test_config_meaningless_values_are_refused(void **state)
{
    SHL_UNUSED(state);
    static const spoil_fn all[] = {
        nan_lr,          negative_lr, infinite_lr,   beta_one,          beta_negative,
        eps_zero,        decay_nan,   clip_negative, ratio_large,       warmup_negative,
        no_schedule_end, late_warmup, bucket_zero,   bucket_huge,       accum_zero,
        batch_negative,  seq_zero,    prefetch_bad,  reduce_unresolved, reduce_wrong,
        dtype_bf16,
    };
    for (size_t i = 0; i < SHL_ARRAY_LEN(all); i++) {
        shl_engine_config c;
        shl_engine_config_init(&c);
        all[i](&c);
        shl_err_clear();
        assert_int_equal(shl_engine_config_check(&c), SHL_E_USAGE);
        assert_true(shl_err_get()->what[0] != '\0' && shl_err_get()->because[0] != '\0');
    }
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_config_defaults_pass_the_check),
        cmocka_unit_test(test_config_strategy_names_go_round),
        cmocka_unit_test(test_config_reduction_resolves_by_nature),
        cmocka_unit_test(test_config_schedule_follows_the_definition),
        cmocka_unit_test(test_config_schedule_equals_golden_run),
        cmocka_unit_test(test_config_meaningless_values_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

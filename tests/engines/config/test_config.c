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
SPOIL(compute_fp64, c->compute_dtype = SHL_F64)
SPOIL(master_bf16, c->master_dtype = SHL_BF16)
SPOIL(master_other, (shl_dtype_policy_set(c, SHL_BF16), c->master_dtype = SHL_F16))
SPOIL(moments_fp16, c->moment_dtype = SHL_F16)
SPOIL(grad_int, c->grad_dtype = SHL_I32)
SPOIL(fp16_unscaled, shl_dtype_policy_set(c, SHL_F16))
SPOIL(scale_zero, (c->scale.kind = SHL_SCALE_STATIC, c->scale.scale = 0.0))
SPOIL(scale_nan, (c->scale.kind = SHL_SCALE_DYNAMIC, c->scale.scale = (double)NAN))
SPOIL(window_zero, (c->scale.kind = SHL_SCALE_DYNAMIC, c->scale.window = 0))
SPOIL(hysteresis_zero, (c->scale.kind = SHL_SCALE_DYNAMIC, c->scale.hysteresis = 0))
SPOIL(least_scale_high, (c->scale.kind = SHL_SCALE_DYNAMIC, c->scale.min_scale = 1e6))
SPOIL(offload_reduces_apart, (shl_dtype_policy_set(c, SHL_BF16), c->reduce_dtype = SHL_BF16,
                              c->strategy = SHL_ZERO1, c->offload.optimizer = SHL_OFFLOAD_HOST))
SPOIL(fsdp_holds_apart,
      (shl_dtype_policy_set(c, SHL_BF16), c->grad_dtype = SHL_BF16, c->strategy = SHL_FSDP))

static void
test_config_meaningless_values_are_refused(void **state)
{
    SHL_UNUSED(state);
    static const spoil_fn all[] = {
        nan_lr,           negative_lr,     infinite_lr,       beta_one,
        beta_negative,    eps_zero,        decay_nan,         clip_negative,
        ratio_large,      warmup_negative, no_schedule_end,   late_warmup,
        bucket_zero,      bucket_huge,     accum_zero,        batch_negative,
        seq_zero,         prefetch_bad,    reduce_unresolved, reduce_wrong,
        compute_fp64,     master_bf16,     master_other,      moments_fp16,
        grad_int,         fp16_unscaled,   scale_zero,        scale_nan,
        window_zero,      hysteresis_zero, least_scale_high,  offload_reduces_apart,
        fsdp_holds_apart,
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

/* Every policy that one strategy can do, and who else cannot. */
static void
test_config_dtype_policies(void **state)
{
    SHL_UNUSED(state);
    static const shl_dtype computes[] = {SHL_F32, SHL_BF16, SHL_F16};
    for (size_t i = 0; i < SHL_ARRAY_LEN(computes); i++) {
        shl_engine_config c;
        shl_engine_config_init(&c);
        shl_dtype_policy_set(&c, computes[i]);
        c.scale.kind = SHL_SCALE_DYNAMIC;
        for (int s = 0; s < SHL_STRATEGY_COUNT; s++) {
            c.strategy = (shl_strategy)s;
            assert_int_equal(shl_reduce_every_resolve(c.strategy, SHL_REDUCE_AUTO, &c.reduce_every),
                             SHL_OK);
            assert_int_equal(shl_engine_config_check(&c), SHL_OK);
            c.master_dtype = c.grad_dtype = c.reduce_dtype = computes[i];
            c.moment_dtype = SHL_BF16;
            assert_int_equal(shl_engine_config_check(&c), SHL_OK);
            c.grad_dtype = SHL_F32;
            assert_int_equal(shl_engine_config_check(&c), SHL_OK);
            if (s == SHL_ZERO1 && computes[i] != SHL_F32) {
                c.offload.optimizer = SHL_OFFLOAD_HOST;
                assert_int_equal(shl_engine_config_check(&c), SHL_E_USAGE);
                assert_non_null(strstr(shl_err_get()->because, "zero2"));
                c.offload.optimizer = SHL_OFFLOAD_NONE;
            }
            shl_dtype_policy_set(&c, computes[i]);
        }
    }
}

static void
test_config_fp16_asks_for_a_scaler(void **state)
{
    SHL_UNUSED(state);
    shl_engine_config c;
    shl_engine_config_init(&c);
    shl_dtype_policy_set(&c, SHL_F16);
    assert_int_equal(shl_engine_config_check(&c), SHL_E_USAGE);
    assert_non_null(strstr(shl_err_get()->advice, "--loss-scale dynamic"));
    c.no_optimizer = true;
    assert_int_equal(shl_engine_config_check(&c), SHL_OK);
    c.no_optimizer = false;
    c.scale.kind = SHL_SCALE_STATIC;
    assert_int_equal(shl_engine_config_check(&c), SHL_OK);
}

static void
test_config_dtype_policy_is_told_in_words(void **state)
{
    SHL_UNUSED(state);
    shl_engine_config c;
    char text[SHL_DTYPE_POLICY_TEXT_BYTES];
    shl_dtype dtype;
    shl_engine_config_init(&c);
    shl_dtype_policy_set(&c, SHL_BF16);
    shl_dtype_policy_text(&c, text, sizeof(text));
    assert_string_equal(text, "bf16 compute, fp32 master, fp32 reduce, fp32 grad, fp32 moments");
    assert_int_equal(shl_dtype_parse("dtype", "fp16", &dtype), SHL_OK);
    assert_int_equal(dtype, SHL_F16);
    assert_int_equal(shl_dtype_parse("dtype", "i32", &dtype), SHL_E_USAGE);
    assert_int_equal(shl_dtype_parse("dtype", NULL, &dtype), SHL_E_USAGE);
    assert_non_null(strstr(shl_err_get()->because, "bf16"));
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
        cmocka_unit_test(test_config_dtype_policies),
        cmocka_unit_test(test_config_fp16_asks_for_a_scaler),
        cmocka_unit_test(test_config_dtype_policy_is_told_in_words),
        cmocka_unit_test(test_config_meaningless_values_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

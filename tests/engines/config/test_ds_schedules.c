/* tests/engines/config: DeepSpeed's schedules against traces of the original, and their spelling. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "engines/config/config.h"
#include "engines/config/ds_schedules.h"
#include "kernels/base/heap.h"
#include "kernels/base/str.h"
#include "tests/support/golden.h"

/* The arguments that the trace was made with. */
static void
read_params(hid_t file, const char *path, shl_ds_schedule *s)
{
    int n;
    const shl_ds_schedule_param *rows = shl_ds_schedule_params(s->kind, &n);
    for (int i = 0; i < n; i++) {
        s->p[i] = (double)NAN;
        if (H5Aexists_by_name(file, path, rows[i].name, H5P_DEFAULT) <= 0) {
            continue;
        }
        if (strcmp(rows[i].name, "warmup_type") == 0) {
            char type[16];
            shl_golden_str(file, path, rows[i].name, type, sizeof(type));
            s->p[i] = strcmp(type, "linear") == 0 ? 1.0 : 0.0;
        } else if (rows[i].whole) {
            s->p[i] = (double)shl_golden_int(file, path, rows[i].name);
        } else {
            s->p[i] = shl_golden_real(file, path, rows[i].name);
        }
    }
}

static void
assert_close(double ours, double theirs, const char *what, size_t k)
{
    if (!(fabs(ours - theirs) <= 1e-12 * fabs(theirs))) {
        fail_msg("%s, update %zu: %.17g against %.17g", what, k, ours, theirs);
    }
}

static int
compare_kind(hid_t file, shl_ds_schedule_kind kind)
{
    char path[96], data[128], text[SHL_DS_SCHEDULE_TEXT_BYTES];
    double base = shl_golden_real(file, "/", "optimizer_lr");
    int i = 0;
    for (;; i++) {
        shl_strf(path, sizeof(path), "/%s/%d", shl_ds_schedule_name(kind), i);
        if (!shl_golden_has(file, path)) {
            return i;
        }
        shl_ds_schedule s, again;
        shl_ds_schedule_init(kind, &s);
        read_params(file, path, &s);
        assert_int_equal(shl_ds_schedule_check(&s), SHL_OK);
        /* Through the text, so that nothing is lost there. */
        shl_ds_schedule_format(&s, text, sizeof(text));
        assert_int_equal(shl_ds_schedule_parse(text, &again), SHL_OK);
        shl_strf(data, sizeof(data), "%s/lr", path);
        size_t n;
        double *lr = shl_golden_f64(file, data, &n);
        assert_int_equal(n, 61);
        shl_optim_config c = {.lr = base, .schedule = SHL_SCHEDULE_NAMED, .named = again};
        for (size_t k = 0; k < n; k++) {
            assert_close(shl_lr_at(&c, (int64_t)k), lr[k], text, k);
        }
        shl_heap_free(&lr);
        shl_strf(data, sizeof(data), "%s/beta1", path);
        double *beta1 = shl_golden_has(file, data) ? shl_golden_f64(file, data, &n) : NULL;
        for (size_t k = 0; beta1 && k < n; k++) {
            double b1 = beta1[k], b2;
            shl_betas_at(&c, (int64_t)k, &b1, &b2);
            if (s.p[shl_ds_schedule_param_index(kind, "cycle_momentum")] > 0.0) {
                assert_close(b1, beta1[k], text, k);
                assert_true(b2 == 0.99);
            }
        }
        shl_heap_free(&beta1);
    }
}

static void
test_ds_schedules_follow_the_original(void **state)
{
    (void)state;
    hid_t file = shl_golden_open("schedules.h5");
    for (int kind = 0; kind <= SHL_DS_WARMUP_COSINE_LR; kind++) {
        int n = compare_kind(file, (shl_ds_schedule_kind)kind);
        printf("%s: %d traces\n", shl_ds_schedule_name((shl_ds_schedule_kind)kind), n);
        assert_true(n >= 5);
    }
    shl_golden_close(file);
}

/* transformers.get_linear_schedule_with_warmup(opt, 3, 7) and its cosine: factors of updates 0..7. */
static void
test_ds_schedules_of_the_trainer(void **state)
{
    (void)state;
    const double linear[] = {0.0, 1.0 / 3, 2.0 / 3, 1.0, 0.75, 0.5, 0.25, 0.0};
    shl_ds_schedule s;
    assert_int_equal(
        shl_ds_schedule_parse("hf-linear(num_warmup_steps=3,num_training_steps=7)", &s), SHL_OK);
    for (size_t k = 0; k < sizeof(linear) / sizeof(linear[0]); k++) {
        assert_close(shl_ds_schedule_lr(&s, 0.5, (int64_t)k), 0.5 * linear[k], "hf-linear", k);
    }
    assert_int_equal(
        shl_ds_schedule_parse("hf-cosine(num_warmup_steps=3,num_training_steps=7)", &s), SHL_OK);
    assert_close(shl_ds_schedule_lr(&s, 1.0, 3), 1.0, "hf-cosine", 3);
    assert_close(shl_ds_schedule_lr(&s, 1.0, 5), 0.5, "hf-cosine", 5);
    assert_true(fabs(shl_ds_schedule_lr(&s, 1.0, 7)) < 1e-15);
    assert_int_equal(
        shl_ds_schedule_parse("hf-constant(num_warmup_steps=2,num_training_steps=7)", &s), SHL_OK);
    assert_close(shl_ds_schedule_lr(&s, 1.0, 1), 0.5, "hf-constant", 1);
    assert_close(shl_ds_schedule_lr(&s, 1.0, 6), 1.0, "hf-constant", 6);
}

static void
test_ds_schedules_refuse_what_divides_by_zero(void **state)
{
    (void)state;
    static const char *const bad[] = {
        "WarmupLR(warmup_num_steps=0)",
        "WarmupLR(warmup_num_steps=2.5)",
        "WarmupLR(warmup_steps=10)",
        "WarmupLR(warmup_num_steps)",
        "WarmupLR(warmup_type=2)",
        "WarmupDecayLR(warmup_num_steps=5)", /* no total */
        "WarmupCosineLR()",
        "LRRangeTest(lr_range_test_step_size=0)",
        "OneCycle(cycle_min_lr=0.1)",
        "OneCycle(cycle_min_lr=0.1,cycle_max_lr=1,cycle_first_step_size=0)",
        "OneCycle(cycle_min_lr=0.1,cycle_max_lr=1,cycle_max_mom=1)",
        "OneCycle(cycle_min_lr=-0.1,cycle_max_lr=1)",
        "Warmup(warmup_num_steps=3)",
        "WarmupLR",
        "",
    };
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        shl_ds_schedule s;
        if (shl_ds_schedule_parse(bad[i], &s) != SHL_E_USAGE) {
            fail_msg("\"%s\" passes", bad[i]);
        }
        assert_true(shl_err_get()->because[0] != '\0');
    }
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ds_schedules_follow_the_original),
        cmocka_unit_test(test_ds_schedules_of_the_trainer),
        cmocka_unit_test(test_ds_schedules_refuse_what_divides_by_zero),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

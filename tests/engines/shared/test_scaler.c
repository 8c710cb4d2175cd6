/* tests/engines/shared: loss scaling against the states that DeepSpeed's own scaler went through, for every
 * setting and script of flags in the golden file. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

#include "engines/shared/scaler.h"
#include "kernels/base/heap.h"
#include "tests/support/golden.h"

static const char *const scripts[] = {"alternating", "bursts",     "clean",
                                      "every_step",  "first_five", "one_in_window",
                                      "pairs",       "random_15",  "random_40"};

static void
read_setting(hid_t file, const char *group, shl_scale_config *c)
{
    *c = (shl_scale_config){
        .kind = SHL_SCALE_DYNAMIC,
        .scale = shl_golden_real(file, group, "init_scale"),
        .window = (int64_t)shl_golden_real(file, group, "scale_window"),
        .hysteresis = shl_golden_int(file, group, "hysteresis"),
        .consecutive_hysteresis = shl_golden_int(file, group, "consecutive_hysteresis") != 0,
        .min_scale = shl_golden_real(file, group, "min_scale"),
        .raise_at_min = shl_golden_int(file, group, "raise_at_min") != 0,
    };
}

static void
follow(hid_t file, const char *group, const char *script, const shl_scale_config *c)
{
    char path[96];
    size_t n = 0, n_flags = 0;
    snprintf(path, sizeof(path), "%s/%s", group, script);
    int64_t raised_at = shl_golden_int(file, path, "raised_at");
    snprintf(path, sizeof(path), "/flags/%s", script);
    int32_t *flags = shl_golden_i32(file, path, &n_flags);
    snprintf(path, sizeof(path), "%s/%s/scale", group, script);
    double *scale = shl_golden_f64(file, path, &n);
    snprintf(path, sizeof(path), "%s/%s/hysteresis_left", group, script);
    int32_t *left = shl_golden_i32(file, path, NULL);
    shl_scaler s;
    shl_scaler_init(&s, c);
    assert_int_equal(n, raised_at >= 0 ? (size_t)raised_at : n_flags);
    for (size_t i = 0; i < n; i++) {
        assert_int_equal(shl_scaler_update(&s, c, flags[i] != 0), SHL_OK);
        if (s.scale != scale[i] || s.hysteresis_left != left[i]) {
            fail_msg("%s/%s, step %zu: scale %g and %lld left, DeepSpeed has %g and %d", group,
                     script, i, s.scale, (long long)s.hysteresis_left, scale[i], left[i]);
        }
    }
    if (raised_at >= 0) {
        shl_scaler before = s;
        assert_int_equal(shl_scaler_update(&s, c, flags[n] != 0), SHL_E_CONFIG);
        assert_memory_equal(&s, &before, sizeof(s));
    }
    shl_heap_free(&flags);
    shl_heap_free(&scale);
    shl_heap_free(&left);
}

static void
test_scaler_follows_deepspeed(void **state)
{
    (void)state;
    hid_t file = shl_golden_open("scaler.h5");
    int settings = 0;
    for (char group[32] = "/trace/00"; shl_golden_has(file, group); settings++) {
        shl_scale_config c;
        read_setting(file, group, &c);
        for (size_t i = 0; i < SHL_ARRAY_LEN(scripts); i++) {
            follow(file, group, scripts[i], &c);
        }
        snprintf(group, sizeof(group), "/trace/%02d", settings + 1);
    }
    assert_int_equal(settings, 10);
    shl_golden_close(file);
}

static void
test_scaler_others_stay_what_they_are(void **state)
{
    (void)state;
    shl_scale_config c = {.kind = SHL_SCALE_STATIC, .scale = 1000.0, .window = 1, .hysteresis = 1};
    shl_scaler s;
    shl_scaler_init(&s, &c);
    for (int i = 0; i < 5; i++) {
        assert_int_equal(shl_scaler_update(&s, &c, i % 2 == 0), SHL_OK);
        assert_true(s.scale == 1000.0);
    }
    c.kind = SHL_SCALE_NONE;
    shl_scaler_init(&s, &c);
    assert_int_equal(shl_scaler_update(&s, &c, true), SHL_OK);
    assert_true(s.scale == 1.0);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_scaler_follows_deepspeed),
        cmocka_unit_test(test_scaler_others_stay_what_they_are),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

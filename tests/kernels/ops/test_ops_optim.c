/* tests/kernels/ops: the optimizers beside AdamW over twenty steps: PyTorch's in float64 (golden values),
 * Lion and LAMB by their papers' formulas in double; and bits that depend on an element alone. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/base/heap.h"
#include "kernels/base/rng.h"
#include "kernels/cpu/cpu_table.h"
#include "kernels/ops/op_cases.h"
#include "tests/support/golden.h"

#define STEPS 20
#define MOST 2048

static shl_device *
open_cpu(int threads)
{
    shl_device_config c = {.kind = "cpu", .threads = threads};
    shl_device *d = NULL;
    assert_int_equal(shl_device_open(&c, &d), SHL_OK);
    return d;
}

static void
expect_close(const char *what, const float *got, const double *want, size_t n, double tolerance)
{
    double largest = 0.0;
    for (size_t i = 0; i < n; i++) {
        largest = fmax(largest, fabs(want[i]));
    }
    for (size_t i = 0; i < n; i++) {
        if (!(fabs((double)got[i] - want[i]) <= tolerance * largest)) {
            fail_msg("%s[%zu] is %.9g, not %.9g", what, i, (double)got[i], want[i]);
        }
    }
}

static void
expect_golden(hid_t file, const char *group, const char *name, const float *got)
{
    char path[64];
    size_t n = 0;
    (void)snprintf(path, sizeof(path), "%s/%s", group, name);
    if (shl_golden_has(file, path)) {
        double *want = shl_golden_f64(file, path, &n);
        expect_close(path, got, want, n, 3e-6);
        shl_heap_free(&want);
    }
}

/* AdamW's own op, with the same settings. */
static shl_code
adamw(shl_stream *s, const shl_optim_args *a)
{
    shl_adamw_args w = {.param = a->param,
                        .grad = a->grad,
                        .m = a->m,
                        .v = a->v,
                        .lr = a->lr,
                        .beta1 = a->beta1,
                        .beta2 = a->beta2,
                        .eps = a->eps,
                        .weight_decay = a->weight_decay,
                        .grad_scale = a->grad_scale,
                        .step = a->step,
                        .uncorrected = a->uncorrected};
    return shl_op_adamw(s, &w);
}

/* rule SHL_RULE_COUNT: AdamW. */
static void
check_golden(const char *group, shl_optim_rule rule)
{
    hid_t file = shl_golden_open("optim.h5");
    size_t n = 0;
    float *p = shl_golden_f32(file, "param", &n), *g = shl_golden_f32(file, "grad", NULL);
    float m[MOST] = {0.0f}, v[MOST] = {0.0f};
    shl_device *d = open_cpu(1);
    assert_true(n <= MOST && shl_golden_int(file, "/", "steps") == STEPS);
    for (int step = 0; step < STEPS; step++) {
        int64_t elems = (int64_t)n;
        shl_optim_args a = {.rule = rule,
                            .param = shl_tensor_1d(p, SHL_F32, elems),
                            .grad = shl_tensor_1d(g + (size_t)step * n, SHL_F32, elems),
                            .lr = shl_golden_real(file, group, "lr"),
                            .beta1 = shl_golden_real(file, group, "beta1"),
                            .beta2 = shl_golden_real(file, group, "beta2"),
                            .eps = shl_golden_real(file, group, "eps"),
                            .weight_decay = shl_golden_real(file, group, "weight_decay"),
                            .grad_scale = 1.0,
                            .step = step + 1,
                            .uncorrected = shl_golden_real(file, group, "uncorrected") > 0.0,
                            .dampening = shl_golden_real(file, group, "dampening"),
                            .nesterov = shl_golden_real(file, group, "nesterov") > 0.0};
        if (shl_rule_has_m(rule) && (rule != SHL_RULE_SGD || a.beta1 > 0.0)) {
            a.m = shl_tensor_1d(m, SHL_F32, elems);
        }
        if (shl_rule_has_v(rule) || rule == SHL_RULE_COUNT) {
            a.v = shl_tensor_1d(v, SHL_F32, elems);
        }
        shl_stream *s = shl_device_stream(d, SHL_STREAM_COMPUTE);
        shl_code code = rule == SHL_RULE_COUNT ? adamw(s, &a) : shl_op_optim(s, &a);
        assert_int_equal(code, SHL_OK);
    }
    expect_golden(file, group, "param", p);
    expect_golden(file, group, "m", m);
    expect_golden(file, group, "v", v);
    assert_int_equal(shl_device_close(&d), SHL_OK);
    shl_heap_free(&p);
    shl_heap_free(&g);
    shl_golden_close(file);
}

static void
test_optim_twenty_steps_are_pytorchs(void **state)
{
    (void)state;
    check_golden("/adam", SHL_RULE_ADAM);
    check_golden("/adagrad", SHL_RULE_ADAGRAD);
    check_golden("/sgd", SHL_RULE_SGD);
    check_golden("/sgd_plain", SHL_RULE_SGD);
    check_golden("/sgd_nesterov", SHL_RULE_SGD);
    check_golden("/sgd_dampening", SHL_RULE_SGD);
}

/* Without bias correction, which PyTorch has not: DeepSpeed's formulas in float64. */
static void
test_optim_twenty_steps_without_correction(void **state)
{
    (void)state;
    check_golden("/adam_uncorrected", SHL_RULE_ADAM);
    check_golden("/adamw_uncorrected", SHL_RULE_COUNT);
}

/* What the formulas of Lion and LAMB see: the same numbers in both precisions. */
typedef struct twin {
    int64_t n;
    float p[300], g[300], m[300], v[300];
    double dp[300], dg[300], dm[300], dv[300];
} twin;

static void
twin_init(twin *t, int64_t n)
{
    memset(t, 0, sizeof(*t));
    t->n = n;
    shl_rng_normal_fill(3, 1, 0, t->p, n);
    for (int64_t i = 0; i < n; i++) {
        t->dp[i] = (double)t->p[i];
    }
}

static void
twin_gradient(twin *t, int step)
{
    shl_rng_normal_fill(3, (uint64_t)(10 + step), 0, t->g, t->n);
    for (int64_t i = 0; i < t->n; i++) {
        t->dg[i] = (double)t->g[i];
    }
}

static shl_optim_args
twin_args(twin *t, shl_optim_rule rule, int step)
{
    return (shl_optim_args){.rule = rule,
                            .param = shl_tensor_1d(t->p, SHL_F32, t->n),
                            .grad = shl_tensor_1d(t->g, SHL_F32, t->n),
                            .m = shl_tensor_1d(t->m, SHL_F32, t->n),
                            .lr = 1e-3,
                            .beta1 = 0.9,
                            .beta2 = 0.99,
                            .eps = 1e-6,
                            .weight_decay = 0.1,
                            .grad_scale = 0.5,
                            .step = step};
}

/* Chen et al. 2023, algorithm 2. */
static void
test_optim_lion_is_its_papers(void **state)
{
    (void)state;
    static twin t;
    shl_device *d = open_cpu(1);
    twin_init(&t, 300);
    for (int step = 1; step <= STEPS; step++) {
        twin_gradient(&t, step);
        shl_optim_args a = twin_args(&t, SHL_RULE_LION, step);
        for (int64_t i = 0; i < t.n; i++) {
            double g = 0.5 * t.dg[i], c = 0.9 * t.dm[i] + (1.0 - 0.9) * g;
            t.dp[i] -= 1e-3 * (copysign(1.0, c) + 0.1 * t.dp[i]);
            t.dm[i] = 0.99 * t.dm[i] + (1.0 - 0.99) * g;
        }
        assert_int_equal(shl_op_optim(shl_device_stream(d, SHL_STREAM_COMPUTE), &a), SHL_OK);
    }
    expect_close("lion p", t.p, t.dp, (size_t)t.n, 3e-6);
    expect_close("lion m", t.m, t.dm, (size_t)t.n, 3e-6);
    /* Nothing to learn from is no step: the sign of 0 is 0. */
    shl_optim_args a = twin_args(&t, SHL_RULE_LION, 1);
    float before = t.p[7];
    a.weight_decay = 0.0;
    memset(t.g, 0, sizeof(t.g));
    memset(t.m, 0, sizeof(t.m));
    assert_int_equal(shl_op_optim(shl_device_stream(d, SHL_STREAM_COMPUTE), &a), SHL_OK);
    assert_true(t.p[7] == before);
    assert_int_equal(shl_device_close(&d), SHL_OK);
}

/* You et al. 2020, algorithm 2, with both halves as the engines run them. */
static void
test_optim_lamb_is_its_papers(void **state)
{
    (void)state;
    static twin t;
    shl_device *d = open_cpu(1);
    shl_stream *s = shl_device_stream(d, SHL_STREAM_COMPUTE);
    twin_init(&t, 300);
    for (int step = 1; step <= STEPS; step++) {
        double p2 = 0.0, u2 = 0.0;
        twin_gradient(&t, step);
        shl_optim_args a = twin_args(&t, SHL_RULE_LAMB, step);
        a.v = shl_tensor_1d(t.v, SHL_F32, t.n);
        for (int64_t i = 0; i < t.n; i++) {
            double g = 0.5 * t.dg[i];
            t.dm[i] = 0.9 * t.dm[i] + (1.0 - 0.9) * g;
            t.dv[i] = 0.99 * t.dv[i] + (1.0 - 0.99) * g * g;
            double m = t.dm[i] / (1.0 - pow(0.9, step)), v = t.dv[i] / (1.0 - pow(0.99, step));
            t.dg[i] = m / (sqrt(v) + 1e-6) + 0.1 * t.dp[i];
            p2 += t.dp[i] * t.dp[i];
            u2 += t.dg[i] * t.dg[i];
        }
        double ratio = sqrt(p2) / sqrt(u2);
        for (int64_t i = 0; i < t.n; i++) {
            t.dp[i] -= 1e-3 * ratio * t.dg[i];
        }
        assert_int_equal(shl_op_optim(s, &a), SHL_OK);
        a.rule = SHL_RULE_SGD;
        a.m.data = a.v.data = NULL;
        a.lr *= ratio;
        a.weight_decay = 0.0;
        a.grad_scale = 1.0;
        assert_int_equal(shl_op_optim(s, &a), SHL_OK);
    }
    expect_close("lamb p", t.p, t.dp, (size_t)t.n, 3e-6);
    expect_close("lamb m", t.m, t.dm, (size_t)t.n, 3e-6);
    expect_close("lamb v", t.v, t.dv, (size_t)t.n, 3e-6);
    assert_int_equal(shl_device_close(&d), SHL_OK);
}

/* One step of a rule over [begin, begin + n) of four arrays, in the types of `kind`. */
static void
step_over(shl_device *d, shl_optim_rule rule, int kind, char arrays[5][8 * MOST], int64_t begin,
          int64_t n)
{
    static const shl_dtype types[][4] = {{SHL_F32, SHL_F32, SHL_F32, SHL_F32},
                                         {SHL_F32, SHL_BF16, SHL_F32, SHL_BF16},
                                         {SHL_BF16, SHL_BF16, SHL_BF16, SHL_F32},
                                         {SHL_F16, SHL_F16, SHL_F32, SHL_F32}};
    shl_tensor t[5];
    for (int k = 0; k < 5; k++) {
        shl_dtype type = k < 4 ? types[kind][k] : SHL_F16;
        t[k] = shl_tensor_1d(shl_elem_ptr(arrays[k], type, begin), type, n);
    }
    shl_optim_args a = {.rule = rule,
                        .param = t[0],
                        .grad = t[1],
                        .lr = 1e-2,
                        .beta1 = 0.9,
                        .beta2 = 0.99,
                        .eps = 1e-8,
                        .weight_decay = 0.1,
                        .grad_scale = 0.9,
                        .step = 2};
    a.m = shl_rule_has_m(rule) ? t[2] : a.m;
    a.v = shl_rule_has_v(rule) ? t[3] : a.v;
    a.rounded = rule != SHL_RULE_LAMB && kind == 1 ? t[4] : a.rounded;
    assert_int_equal(shl_op_optim(shl_device_stream(d, SHL_STREAM_COMPUTE), &a), SHL_OK);
}

/* Any cut into pieces leaves the same bits, in any mixture of types. */
static void
test_optim_bits_depend_on_the_element_alone(void **state)
{
    (void)state;
    enum { N = 1000 };
    static const int64_t cuts[] = {0, 1, 4, 9, 40, 41, 100, 333, 350, 351, 999, N};
    static char whole[5][8 * MOST], pieces[5][8 * MOST];
    shl_device *d = open_cpu(1);
    for (int rule = 0; rule < SHL_RULE_COUNT; rule++) {
        for (int kind = 0; kind < 4; kind++) {
            for (int k = 0; k < 5; k++) {
                /* Positive numbers in every type: all words of 16 bits below 1.0 in fp16. */
                for (int64_t i = 0; i < 4 * MOST; i++) {
                    uint64_t r = shl_rng_u64(11, (uint64_t)k, (uint64_t)i);
                    ((uint16_t *)(void *)whole[k])[i] = (uint16_t)(0x3000u + r % 0x0c00u);
                }
            }
            memcpy(pieces, whole, sizeof(pieces));
            step_over(d, (shl_optim_rule)rule, kind, whole, 0, N);
            for (size_t c = 1; c < SHL_ARRAY_LEN(cuts); c++) {
                step_over(d, (shl_optim_rule)rule, kind, pieces, cuts[c - 1],
                          cuts[c] - cuts[c - 1]);
            }
            assert_memory_equal(whole, pieces, sizeof(whole));
        }
    }
    assert_int_equal(shl_device_close(&d), SHL_OK);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_optim_twenty_steps_are_pytorchs),
        cmocka_unit_test(test_optim_twenty_steps_without_correction),
        cmocka_unit_test(test_optim_lion_is_its_papers),
        cmocka_unit_test(test_optim_lamb_is_its_papers),
        cmocka_unit_test(test_optim_bits_depend_on_the_element_alone),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

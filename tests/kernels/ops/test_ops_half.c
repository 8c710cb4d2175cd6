/* tests/kernels/ops: bf16 and fp16: the scalar conversions and the vector ones against golden
 * values and against each other, on every instruction set that this CPU has; AdamW over them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/base/half.h"
#include "kernels/base/heap.h"
#include "kernels/base/rng.h"
#include "kernels/cpu/cpu_table.h"
#include "kernels/ops/ops.h"
#include "tests/support/golden.h"

#define SEED 77u

typedef void (*isa_fn)(shl_stream *s, hid_t file);

static void
on_every_isa(isa_fn fn)
{
    hid_t file = shl_golden_open("ops.h5");
    shl_device_config cfg = {.kind = "cpu", .threads = 1};
    shl_device *d = NULL;
    assert_int_equal(shl_device_open(&cfg, &d), SHL_OK);
    for (const char *const *isa = shl_cpu_isas(); *isa != NULL; isa++) {
        d->op_table = shl_cpu_op_table_isa(*isa);
        if (d->op_table != NULL) {
            fn(shl_device_stream(d, SHL_STREAM_COMPUTE), file);
        }
    }
    assert_int_equal(shl_device_close(&d), SHL_OK);
    shl_golden_close(file);
}

/* Casts n elements of src on the device. */
static void
cast(shl_stream *s, shl_dtype to, void *dst, shl_dtype from, void *src, int64_t n)
{
    shl_tensor a = shl_tensor_1d(dst, to, n), b = shl_tensor_1d(src, from, n);
    assert_int_equal(shl_op_cast(s, &a, &b), SHL_OK);
}

static bool
is_nan_bits(shl_dtype dtype, uint16_t h)
{
    uint16_t infinity = dtype == SHL_BF16 ? 0x7f80 : 0x7c00;
    return (h & 0x7fff) > infinity;
}

/* True when a NaN is quiet and has the sign of x. */
static bool
is_quiet(shl_dtype dtype, uint16_t h, uint32_t x)
{
    uint16_t quiet = dtype == SHL_BF16 ? 0x40 : 0x200;
    return is_nan_bits(dtype, h) && (h & quiet) != 0 && (h >> 15) == (x >> 31);
}

static void
check_rounding(shl_stream *s, hid_t file)
{
    static const char *const names[] = {"/rounding/bf16_bits", "/rounding/fp16_bits"};
    static const shl_dtype types[] = {SHL_BF16, SHL_F16};
    size_t n = 0;
    double *bits = shl_golden_f64(file, "/rounding/f32_bits", &n);
    int32_t *is_nan = shl_golden_i32(file, "/rounding/is_nan", NULL);
    float x[1024];
    uint16_t got[1024];
    assert_true(n > 0 && n <= 1024);
    for (size_t i = 0; i < n; i++) {
        x[i] = shl_f32_of_bits((uint32_t)bits[i]);
    }
    for (int t = 0; t < 2; t++) {
        int32_t *want = shl_golden_i32(file, names[t], NULL);
        cast(s, types[t], got, SHL_F32, x, (int64_t)n);
        for (size_t i = 0; i < n; i++) {
            uint16_t plain =
                types[t] == SHL_BF16 ? shl_bf16_from_f32(x[i]) : shl_f16_from_f32(x[i]);
            assert_int_equal(got[i], plain);
            if (is_nan[i] != 0) {
                assert_true(is_quiet(types[t], got[i], (uint32_t)bits[i]));
            } else {
                assert_int_equal(got[i], want[i]);
            }
        }
        shl_heap_free(&want);
    }
    shl_heap_free(&bits);
    shl_heap_free(&is_nan);
}

static void
test_half_rounds_as_the_golden_values(void **state)
{
    (void)state;
    on_every_isa(check_rounding);
}

static void
check_widening(shl_stream *s, hid_t file)
{
    size_t n = 0;
    double *want = shl_golden_f64(file, "/widening/f32_bits", &n);
    int32_t *bits = shl_golden_i32(file, "/widening/fp16_bits", NULL);
    uint16_t h[256];
    float got[256];
    assert_true(n > 0 && n <= 256);
    for (size_t i = 0; i < n; i++) {
        h[i] = (uint16_t)bits[i];
    }
    cast(s, SHL_F32, got, SHL_F16, h, (int64_t)n);
    for (size_t i = 0; i < n; i++) {
        if (is_nan_bits(SHL_F16, h[i])) {
            assert_true(isnan(got[i]));
        } else {
            assert_int_equal(shl_f32_bits(got[i]), (uint32_t)want[i]);
        }
    }
    shl_heap_free(&want);
    shl_heap_free(&bits);
}

static void
test_half_widens_as_the_golden_values(void **state)
{
    (void)state;
    on_every_isa(check_widening);
}

/* Every 16-bit pattern widened and rounded back; then random fp32 patterns, ties among them. */
static void
check_all_patterns(shl_stream *s, hid_t file)
{
    enum { ALL = 65536 };
    static const shl_dtype types[] = {SHL_BF16, SHL_F16};
    uint16_t *h = NULL, *back = NULL;
    float *x = NULL;
    (void)file;
    assert_int_equal(shl_heap_alloc(ALL, sizeof(*h), &h), SHL_OK);
    assert_int_equal(shl_heap_alloc(ALL, sizeof(*back), &back), SHL_OK);
    assert_int_equal(shl_heap_alloc(ALL, sizeof(*x), &x), SHL_OK);
    for (int t = 0; t < 2; t++) {
        shl_dtype dtype = types[t];
        for (int i = 0; i < ALL; i++) {
            h[i] = (uint16_t)i;
        }
        cast(s, SHL_F32, x, dtype, h, ALL);
        cast(s, dtype, back, SHL_F32, x, ALL);
        for (int i = 0; i < ALL; i++) {
            if (is_nan_bits(dtype, h[i])) {
                assert_true(isnan(x[i]) && is_quiet(dtype, back[i], (uint32_t)i << 16));
            } else {
                assert_int_equal(shl_f32_bits(x[i]), shl_f32_bits(shl_float_at(dtype, h, i)));
                assert_int_equal(back[i], h[i]);
            }
        }
        for (int i = 0; i < ALL; i++) {
            uint32_t bits = (uint32_t)shl_rng_u64(SEED, (uint64_t)t, (uint64_t)i);
            bits = i % 3 == 0 ? (bits & 0xffff8000u) | 0x8000u : bits;
            bits = i % 3 == 1 ? (bits & 0xf1fff000u) | 0x30001000u : bits; /* in fp16's range */
            x[i] = shl_f32_of_bits(bits);
        }
        cast(s, dtype, back, SHL_F32, x + 1, ALL - 1);
        for (int i = 0; i < ALL - 1; i++) {
            shl_float_put(dtype, h, 0, x[i + 1]);
            assert_int_equal(back[i], h[0]);
        }
    }
    shl_heap_free(&h);
    shl_heap_free(&back);
    shl_heap_free(&x);
}

static void
test_half_vectors_equal_the_scalar_bits(void **state)
{
    (void)state;
    on_every_isa(check_all_patterns);
}

static const char *
path_of(const char *group, const char *name)
{
    static char path[128];
    (void)snprintf(path, sizeof(path), "%s/%s", group, name);
    return path;
}

static void
expect_near(hid_t file, const char *group, const char *name, const float *got, double tolerance)
{
    size_t n = 0;
    double *want = shl_golden_f64(file, path_of(group, name), &n);
    double largest = 0.0;
    for (size_t i = 0; i < n; i++) {
        largest = fmax(largest, fabs(want[i]));
    }
    for (size_t i = 0; i < n; i++) {
        assert_true(fabs((double)got[i] - want[i]) <= tolerance * largest);
    }
    shl_heap_free(&want);
}

/* Gradients as they came, in 16 bits and scaled; the new parameters rounded beside their master. */
static void
check_adamw(shl_stream *s, hid_t file, const char *group, shl_dtype dtype)
{
    enum { MOST = 2048 };
    const char *grad_name = dtype == SHL_BF16 ? "grad_bf16" : "grad_fp16";
    const char *rounded[] = {dtype == SHL_BF16 ? "f32/param_bf16" : "f32/param_fp16",
                             dtype == SHL_BF16 ? "f64/param_bf16" : "f64/param_fp16"};
    size_t n = 0;
    uint16_t g[MOST], out[MOST];
    float *p = shl_golden_f32(file, path_of(group, "master"), &n);
    float *m = shl_golden_f32(file, path_of(group, "exp_avg"), NULL);
    float *v = shl_golden_f32(file, path_of(group, "exp_avg_sq"), NULL);
    int32_t *bits = shl_golden_i32(file, path_of(group, grad_name), NULL);
    assert_true(n > 0 && n <= MOST);
    for (size_t i = 0; i < n; i++) {
        g[i] = (uint16_t)bits[i];
    }
    int64_t len = (int64_t)n;
    shl_adamw_args a = {.param = shl_tensor_1d(p, SHL_F32, len),
                        .grad = shl_tensor_1d(g, dtype, len),
                        .m = shl_tensor_1d(m, SHL_F32, len),
                        .v = shl_tensor_1d(v, SHL_F32, len),
                        .rounded = shl_tensor_1d(out, dtype, len),
                        .lr = shl_golden_real(file, group, "lr"),
                        .beta1 = shl_golden_real(file, group, "beta1"),
                        .beta2 = shl_golden_real(file, group, "beta2"),
                        .eps = shl_golden_real(file, group, "eps"),
                        .weight_decay = shl_golden_real(file, group, "weight_decay"),
                        .grad_scale = 1.0 / shl_golden_real(file, group, "loss_scale"),
                        .step = shl_golden_int(file, group, "step")};
    assert_int_equal(shl_op_adamw(s, &a), SHL_OK);
    expect_near(file, group, "f64/master", p, 1e-6);
    expect_near(file, group, "f64/exp_avg", m, 1e-6);
    expect_near(file, group, "f64/exp_avg_sq", v, 1e-6);
    int32_t *f32 = shl_golden_i32(file, path_of(group, rounded[0]), NULL);
    int32_t *f64 = shl_golden_i32(file, path_of(group, rounded[1]), NULL);
    int64_t neighbours = 0;
    for (size_t i = 0; i < n; i++) {
        shl_float_put(dtype, g, 0, p[i]);
        assert_int_equal(out[i], g[0]);
        neighbours += out[i] != f32[i] && out[i] != f64[i];
        assert_true(abs((int)out[i] - f64[i]) <= 1);
    }
    /* A master at a tie may round either way, which is rare. */
    assert_true(neighbours * 100 <= len);
    shl_heap_free(&p);
    shl_heap_free(&m);
    shl_heap_free(&v);
    shl_heap_free(&bits);
    shl_heap_free(&f32);
    shl_heap_free(&f64);
}

static void
check_every_adamw(shl_stream *s, hid_t file)
{
    check_adamw(s, file, "/adamw/bf16", SHL_BF16);
    check_adamw(s, file, "/adamw/bf16_no_decay", SHL_BF16);
    check_adamw(s, file, "/adamw/fp16_scaled", SHL_F16);
}

static void
test_half_adamw_as_the_golden_values(void **state)
{
    (void)state;
    on_every_isa(check_every_adamw);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_half_rounds_as_the_golden_values),
        cmocka_unit_test(test_half_widens_as_the_golden_values),
        cmocka_unit_test(test_half_vectors_equal_the_scalar_bits),
        cmocka_unit_test(test_half_adamw_as_the_golden_values),
    };
    printf("seed %u\n", SEED);
    return cmocka_run_group_tests_name("ops_half", tests, NULL, NULL);
}

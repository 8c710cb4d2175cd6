/* tests/kernels/cpu: the library's matmul primitive over our views, in fp32, which every CPU has:
 * strides, transposes, bias and sum; and in bf16 where the CPU multiplies it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>

#include "kernels/base/half.h"
#include "kernels/base/rng.h"
#include "kernels/cpu/cpu_matmul.h"

#define SEED 5u

enum { M = 7, N = 21, K = 33, MOST = 64 * 64 };

/* Values that bf16 holds, so that all types multiply the same numbers. */
static void
fill(shl_dtype dtype, void *x, uint64_t stream)
{
    for (int64_t i = 0; i < MOST; i++) {
        float v = shl_float_round(SHL_BF16, shl_rng_normal(SEED, stream, (uint64_t)i));
        shl_float_put(dtype, x, i, v);
    }
}

static void
check(shl_dtype dtype, shl_dtype c_dtype, bool ta, bool tb, bool bias, bool add)
{
    static float a[MOST], b[MOST], bias_room[MOST], c[MOST], old[MOST];
    shl_cpu_matmul p = {.dtype = dtype, .c_dtype = c_dtype, .m = M, .n = N, .k = K, .a = a, .b = b};
    p.bias = bias ? bias_room : NULL;
    p.c = c;
    p.lda = (ta ? M : K) + 3;
    p.ldb = (tb ? K : N) + 1;
    p.ldc = N + 2;
    p.ta = ta;
    p.tb = tb;
    p.add = add;
    fill(dtype, a, 1);
    fill(dtype, b, 2);
    fill(dtype, bias_room, 3);
    fill(c_dtype, c, 4);
    fill(SHL_F32, old, 4);
    assert_int_equal(shl_cpu_matmul_run(&p, 1), SHL_OK);
    for (int64_t i = 0; i < M; i++) {
        for (int64_t j = 0; j < N; j++) {
            double want = add ? (double)old[i * p.ldc + j] : 0.0;
            want += bias ? (double)shl_float_at(dtype, bias_room, j) : 0.0;
            for (int64_t k = 0; k < K; k++) {
                float x = shl_float_at(dtype, a, ta ? k * p.lda + i : i * p.lda + k);
                float y = shl_float_at(dtype, b, tb ? j * p.ldb + k : k * p.ldb + j);
                want += (double)x * (double)y;
            }
            double got = (double)shl_float_at(c_dtype, c, i * p.ldc + j);
            double part = c_dtype == SHL_F32 ? 0.0 : 0x1p-8 * fabs(want);
            assert_true(fabs(got - want) <= 2e-5 + part);
        }
        float between = shl_float_at(c_dtype, c, i * p.ldc + N); /* outside the view */
        assert_true(between == old[i * p.ldc + N]);
    }
}

static void
check_all(shl_dtype dtype, shl_dtype c_dtype)
{
    for (int bits = 0; bits < 16; bits++) {
        check(dtype, c_dtype, (bits & 1) != 0, (bits & 2) != 0, (bits & 4) != 0, (bits & 8) != 0);
    }
}

static void
test_cpu_matmul_multiplies_views(void **state)
{
    (void)state;
    check_all(SHL_F32, SHL_F32);
}

static void
test_cpu_matmul_multiplies_bf16_where_native(void **state)
{
    (void)state;
    assert_false(shl_cpu_matmul_is_native(SHL_F16));
    assert_false(shl_cpu_matmul_is_native(SHL_F32));
    if (!shl_cpu_matmul_is_native(SHL_BF16)) {
        print_message("not on this CPU: bf16 products\n");
        skip();
    }
    check_all(SHL_BF16, SHL_F32);
    check_all(SHL_BF16, SHL_BF16);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cpu_matmul_multiplies_views),
        cmocka_unit_test(test_cpu_matmul_multiplies_bf16_where_native),
    };
    printf("seed %u\n", SEED);
    return cmocka_run_group_tests_name("cpu_matmul", tests, NULL, NULL);
}

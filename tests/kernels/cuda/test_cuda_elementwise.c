/* tests/kernels/cuda: what the op cases do not reach: bits do not tell how an element was loaded, casts of
 * every pattern, sums in rank order, random words equal to the CPU's, rows too wide for registers. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <string.h>

#include "kernels/base/half.h"
#include "kernels/base/heap.h"
#include "kernels/base/rng.h"
#include "kernels/ops/op_cases.h"

#define SEED 20251121u

typedef struct fixture {
    shl_device *d;
    shl_stream *s;
    shl_buf buf[4];
} fixture;

static void
expect_ok(shl_code code)
{
    if (code != SHL_OK) {
        fail_msg("%s; %s", shl_err_get()->what, shl_err_get()->because);
    }
}

static int
open_it(void **state)
{
    shl_device_config cfg = {.kind = "cuda", .threads = 1};
    static fixture f;
    expect_ok(shl_device_open(&cfg, &f.d));
    f.s = shl_device_stream(f.d, SHL_STREAM_COMPUTE);
    for (int i = 0; i < 4; i++) {
        expect_ok(shl_device_alloc(f.d, 4 << 20, SHL_TIER_DEVICE, SHL_TAG_ACT, 0, "t", &f.buf[i]));
    }
    *state = &f;
    return 0;
}

static int
close_it(void **state)
{
    fixture *f = *state;
    for (int i = 0; i < 4; i++) {
        shl_device_free(f->d, &f->buf[i]);
    }
    expect_ok(shl_device_close(&f->d));
    return 0;
}

/* The view of n elements, `offset` behind the start of a buffer. */
static shl_tensor
view(const fixture *f, int i, shl_dtype dtype, int64_t offset, int64_t n)
{
    return shl_tensor_1d(shl_elem_ptr(f->buf[i].data, dtype, offset), dtype, n);
}

static void
put(fixture *f, const shl_tensor *t, const void *from)
{
    expect_ok(shl_device_upload(f->d, t->data, from, shl_tensor_bytes(t)));
}

static void
get(fixture *f, const shl_tensor *t, void *to)
{
    expect_ok(shl_device_download(f->d, to, t->data, shl_tensor_bytes(t)));
}

/* Both NaN, or the same bits: the payload of a NaN is the device's. */
static void
expect_float(shl_dtype dtype, uint32_t got, uint32_t want, uint32_t of)
{
    uint32_t inf = dtype == SHL_F32 ? 0x7f800000u : dtype == SHL_BF16 ? 0x7f80u : 0x7c00u;
    uint32_t low = dtype == SHL_F32 ? 0x7fffffffu : 0x7fffu;
    if (got != want && !((got & low) > inf && (want & low) > inf)) {
        fail_msg("%s of %08x is %08x, not %08x", shl_dtype_name(dtype), of, got, want);
    }
}

enum { PATTERNS = 65536 };

static void
test_cuda_elementwise_widens_every_pattern(void **state)
{
    static uint16_t half[PATTERNS];
    static uint32_t wide[PATTERNS];
    fixture *f = *state;
    for (int type = 0; type < 2; type++) {
        shl_dtype dtype = type == 0 ? SHL_BF16 : SHL_F16;
        shl_tensor src = view(f, 0, dtype, 0, PATTERNS), dst = view(f, 1, SHL_F32, 0, PATTERNS);
        for (uint32_t i = 0; i < PATTERNS; i++) {
            half[i] = (uint16_t)i;
        }
        put(f, &src, half);
        expect_ok(shl_op_cast(f->s, &dst, &src));
        get(f, &dst, wide);
        for (uint32_t i = 0; i < PATTERNS; i++) {
            uint32_t want = shl_f32_bits(shl_float_at(dtype, half, (int64_t)i));
            expect_float(SHL_F32, wide[i], want, i);
        }
    }
}

/* All upper halves, with lower halves on and beside every tie of both types. */
static void
test_cuda_elementwise_rounds_as_the_host(void **state)
{
    static const uint32_t low[] = {0x0000u, 0x0fffu, 0x1000u, 0x1001u, 0x7fffu, 0x8000u, 0x8001u};
    static uint32_t wide[PATTERNS];
    static uint16_t half[PATTERNS];
    fixture *f = *state;
    for (size_t j = 0; j < 2 * SHL_ARRAY_LEN(low); j++) {
        shl_dtype dtype = j % 2 == 0 ? SHL_BF16 : SHL_F16;
        shl_tensor src = view(f, 0, SHL_F32, 0, PATTERNS), dst = view(f, 1, dtype, 0, PATTERNS);
        for (uint32_t i = 0; i < PATTERNS; i++) {
            wide[i] = i << 16 | low[j / 2];
        }
        put(f, &src, wide);
        expect_ok(shl_op_cast(f->s, &dst, &src));
        get(f, &dst, half);
        for (uint32_t i = 0; i < PATTERNS; i++) {
            float x = shl_f32_of_bits(wide[i]);
            uint16_t want = dtype == SHL_BF16 ? shl_bf16_from_f32(x) : shl_f16_from_f32(x);
            expect_float(dtype, half[i], want, wide[i]);
        }
    }
}

enum { SOME = 603 };

static shl_code
one_op(fixture *f, int op, const shl_tensor *x, const shl_tensor *y, int64_t first)
{
    shl_gelu_args gelu = {.x = *x, .y = *y, .dy = *x, .dx = *y};
    shl_add_args add = {.x1 = *x, .x2 = *x, .y = *y};
    shl_dropout_args drop = {
        .x = *x, .y = *y, .p = 0.3, .seed = SEED, .stream = 5, .first = 1001 + first};
    const void *srcs[] = {x->data, y->data, x->data};
    shl_sum_ranks_args sum = {.dst = *y, .srcs = srcs, .n = 3, .add_to_dst = true};
    return op == 0   ? shl_op_gelu_forward(f->s, &gelu)
           : op == 1 ? shl_op_gelu_backward(f->s, &gelu)
           : op == 2 ? shl_op_add(f->s, &add)
           : op == 3 ? shl_op_dropout(f->s, &drop)
                     : shl_op_sum_ranks(f->s, &sum);
}

/* Elements [begin, begin + n) by themselves, at another alignment of each tensor. */
static void
test_cuda_elementwise_bits_do_not_tell_the_path(void **state)
{
    static const shl_dtype types[] = {SHL_F32, SHL_BF16, SHL_F16};
    static unsigned char x[SOME * 4], whole[SOME * 4], part[SOME * 4], zero[SOME * 4];
    fixture *f = *state;
    for (int k = 0; k < 15; k++) {
        shl_dtype dt = types[k % 3];
        size_t elem = shl_dtype_bytes(dt);
        for (int64_t i = 0; i < SOME; i++) {
            shl_float_put(dt, x, i, 2.0f * shl_rng_normal(SEED, 1, (uint64_t)i));
        }
        shl_tensor in = view(f, 0, dt, 0, SOME), out = view(f, 1, dt, 0, SOME);
        put(f, &in, x);
        put(f, &out, zero);
        expect_ok(one_op(f, k / 3, &in, &out, 0));
        get(f, &out, whole);
        for (int64_t begin = 1; begin < 40; begin += 3) {
            int64_t n = SOME - 2 * begin;
            in = view(f, 2, dt, begin % 9, n);
            out = view(f, 3, dt, begin % 5, n);
            put(f, &in, x + (size_t)begin * elem);
            put(f, &out, zero);
            expect_ok(one_op(f, k / 3, &in, &out, begin));
            get(f, &out, part);
            assert_memory_equal(part, whole + (size_t)begin * elem, (size_t)n * elem);
        }
    }
}

/* GELU (its slope with dy = 1) in double. Beyond |x| = 10 the sigmoid is 2^-126 and not less: `loose`. */
static double
exact_gelu(double x, bool slope, double *loose)
{
    double z = 1.5957691216057308 * x * (1.0 + 0.044715 * x * x);
    double s = 1.0 / (1.0 + exp(-z)), t = 1.0 / (1.0 + exp(z));
    *loose = slope ? 0x1p-117 : fmax(fabs(x), 1.0) * 0x1p-124;
    if (!slope) {
        return x * s;
    }
    return fabs(x) > 20.0 ? (x > 0.0 ? 1.0 : 0.0)
                          : s + x * 1.5957691216057308 * (1.0 + 3.0 * 0.044715 * x * x) * s * t;
}

static void
expect_gelu(shl_dtype dtype, bool slope, float x, float got)
{
    double loose, want = exact_gelu((double)x, slope, &loose);
    double ulp = dtype == SHL_F32 ? 0x1p-19 : dtype == SHL_BF16 ? 0x1p-8 : 0x1p-11;
    double part = slope ? 1e-6 * fmin(1.0, fabs((double)x)) : 0.0; /* of a sum that is near 0 */
    loose = dtype == SHL_F16 ? 0x1p-24 : dtype == SHL_BF16 ? loose + 0x1p-133 : loose;
    if (isinf(x) && x < 0.0f && !slope) {
        assert_true(!(got < INFINITY && got > -INFINITY)); /* what is no number stays none */
    } else if (isnan(x)) {
        assert_true(isnan(got));
    } else if (isinf(x) && !slope) {
        assert_true(got == x);
    } else if (!(fabs((double)got - want) <= ulp * fabs(want) + part + loose)) {
        fail_msg("gelu%s of %s %.9g is %.9g, not %.9g", slope ? "'" : "", shl_dtype_name(dtype),
                 (double)x, (double)got, want);
    }
}

/* Every number of 16 bits, and of fp32 one beside each: no range is left out, none gives a NaN. */
static void
test_cuda_elementwise_gelu_of_every_pattern(void **state)
{
    static const shl_dtype types[] = {SHL_F32, SHL_BF16, SHL_F16};
    static unsigned char x[PATTERNS * 4], one[PATTERNS * 4], got[PATTERNS * 4];
    fixture *f = *state;
    for (int k = 0; k < 6; k++) {
        shl_dtype dt = types[k % 3];
        bool slope = k >= 3;
        for (uint32_t i = 0; i < PATTERNS; i++) {
            uint16_t half = (uint16_t)i;
            uint32_t wide = i << 16 | (i * 0x9e3779b1u >> 16);
            memcpy(x + i * shl_dtype_bytes(dt), dt == SHL_F32 ? (void *)&wide : (void *)&half,
                   shl_dtype_bytes(dt));
            shl_float_put(dt, one, (int64_t)i, 1.0f);
        }
        shl_gelu_args a = {.x = view(f, 0, dt, 0, PATTERNS), .y = view(f, 1, dt, 0, PATTERNS)};
        a.dy = view(f, 2, dt, 0, PATTERNS);
        a.dx = a.y;
        put(f, &a.x, x);
        put(f, &a.dy, one);
        expect_ok(slope ? shl_op_gelu_backward(f->s, &a) : shl_op_gelu_forward(f->s, &a));
        get(f, &a.y, got);
        for (int64_t i = 0; i < PATTERNS; i++) {
            expect_gelu(dt, slope, shl_float_at(dt, x, i), shl_float_at(dt, got, i));
        }
    }
}

static void
test_cuda_elementwise_sums_in_the_order_of_ranks(void **state)
{
    enum { RANKS = 200, N = 77 };
    static float x[RANKS][N], got[N];
    const void *srcs[RANKS];
    fixture *f = *state;
    for (int k = 0; k < RANKS; k++) {
        for (int i = 0; i < N; i++) {
            float z = shl_rng_normal(SEED, (uint64_t)k, (uint64_t)i);
            x[k][i] = z * exp2f((float)((k * 7 + i) % 40)); /* any other order rounds otherwise */
        }
        shl_tensor t = view(f, 0, SHL_F32, k * N, N);
        put(f, &t, x[k]);
        srcs[k] = t.data;
    }
    shl_sum_ranks_args a = {.dst = view(f, 0, SHL_F32, 3 * N, N), .srcs = srcs, .n = RANKS};
    expect_ok(shl_op_sum_ranks(f->s, &a)); /* into the fourth source */
    get(f, &a.dst, got);
    for (int i = 0; i < N; i++) {
        float want = x[0][i];
        for (int k = 1; k < RANKS; k++) {
            want += x[k][i];
        }
        assert_int_equal(shl_f32_bits(got[i]), shl_f32_bits(want));
    }
}

static void
test_cuda_elementwise_draws_what_the_host_draws(void **state)
{
    enum { N = 501 };
    static float got[N], ones[N];
    fixture *f = *state;
    for (int64_t begin = 0; begin < 9; begin++) {
        shl_init_args init = {.dst = view(f, 0, SHL_F32, begin % 3, N),
                              .kind = SHL_INIT_NORMAL,
                              .std = 0.02,
                              .seed = SEED,
                              .stream = 9,
                              .begin = begin};
        expect_ok(shl_op_init(f->s, &init));
        get(f, &init.dst, got);
        for (int64_t i = 0; i < N; i++) {
            float want = 0.02f * shl_rng_normal(SEED, 9, (uint64_t)(begin + i));
            /* log, sin and cos are the device's: one ulp where their last bit decides */
            int64_t ulps = (int64_t)shl_f32_bits(got[i]) - (int64_t)shl_f32_bits(want);
            assert_in_range(ulps + 1, 0, 2);
            ones[i] = 1.0f;
        }
        shl_dropout_args drop = {.x = view(f, 1, SHL_F32, begin % 4, N),
                                 .p = 0.25,
                                 .seed = SEED,
                                 .stream = 3,
                                 .first = ((int64_t)1 << 34) + begin};
        drop.y = drop.x;
        put(f, &drop.x, ones);
        expect_ok(shl_op_dropout(f->s, &drop));
        get(f, &drop.y, got);
        for (int64_t i = 0; i < N; i++) {
            uint32_t word = shl_op_dropout_word(SEED, 3, (uint64_t)(drop.first + i));
            assert_int_equal(got[i] > 0.0f, word >= shl_op_dropout_bound(0.25));
        }
    }
}

/* One width for each way that a row goes: a warp with 4, 7, 8 chunks a thread, a block, no registers. */
static const int64_t widths[] = {256, 1608, 2048, 2056, 5000, 8200, 9001};

static void
test_cuda_elementwise_norms_take_rows_of_any_width(void **state)
{
    static const shl_op ops[] = {SHL_OP_LAYERNORM_FORWARD, SHL_OP_LAYERNORM_BACKWARD,
                                 SHL_OP_RMSNORM_FORWARD, SHL_OP_RMSNORM_BACKWARD};
    fixture *f = *state;
    for (size_t k = 0; k < 4 * SHL_ARRAY_LEN(widths); k++) {
        shl_op_case c = {"any width", ops[k % 4], {3, widths[k / 4]}, SHL_CASE_BF16};
        static unsigned char bits[2][4 << 16];
        for (int64_t offset = 0; offset < 2; offset++) {
            shl_op_run *run = NULL;
            double worst = 0.0;
            size_t at = 0;
            expect_ok(shl_op_run_open(f->d, &c, SEED, offset, &run));
            expect_ok(shl_op_run_call(run));
            if (shl_op_run_check(run, &worst) != SHL_OK) {
                fail_msg("%s of %ld: %s", shl_op_name(c.op), (long)widths[k / 4],
                         shl_err_get()->what);
            }
            for (int o = 0; o < run->n_operands; o++) {
                if (run->operands[o].role != SHL_ROLE_IN) {
                    get(f, &run->operands[o].tensor, bits[offset] + at);
                    at += shl_tensor_bytes(&run->operands[o].tensor);
                }
            }
            shl_op_run_close(&run);
        }
        assert_memory_equal(bits[0], bits[1], sizeof(bits[0]));
    }
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cuda_elementwise_widens_every_pattern),
        cmocka_unit_test(test_cuda_elementwise_rounds_as_the_host),
        cmocka_unit_test(test_cuda_elementwise_bits_do_not_tell_the_path),
        cmocka_unit_test(test_cuda_elementwise_gelu_of_every_pattern),
        cmocka_unit_test(test_cuda_elementwise_sums_in_the_order_of_ranks),
        cmocka_unit_test(test_cuda_elementwise_draws_what_the_host_draws),
        cmocka_unit_test(test_cuda_elementwise_norms_take_rows_of_any_width),
    };
    print_message("seed %u\n", SEED);
    return cmocka_run_group_tests(tests, open_it, close_it);
}

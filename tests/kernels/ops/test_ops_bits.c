/* tests/kernels/ops: equal bits: whatever the alignment of a view, the number of threads of our own
 * kernels, the place of an element, the partition of a norm; sums over ranks keep rank order. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/base/heap.h"
#include "kernels/base/rng.h"
#include "kernels/cpu/cpu_table.h"
#include "kernels/device/sanitize.h"
#include "kernels/ops/op_cases.h"

#define SEED 31u

__extension__ typedef __int128 i128;

/* One thread under ThreadSanitizer, which does not know the threads of libgomp. */
static shl_device *
open_cpu(int threads, const char *isa)
{
    shl_device_config cfg = {.kind = "cpu", .threads = SHL_TSAN ? 1 : threads};
    shl_device *d = NULL;
    assert_int_equal(shl_device_open(&cfg, &d), SHL_OK);
    d->op_table = shl_cpu_op_table_isa(isa);
    assert_non_null(d->op_table);
    return d;
}

/* Runs c and returns all its outputs one behind the other. Owner: caller, shl_heap_free. */
static char *
outputs_of(shl_device *d, const shl_op_case *c, int64_t offset, size_t *bytes)
{
    shl_op_run *run = NULL;
    char *all = NULL;
    assert_int_equal(shl_op_run_open(d, c, SEED, offset, &run), SHL_OK);
    if (strcmp(c->name, "linear db") == 0) {
        run->args.linear.dw.data = NULL;
    }
    assert_int_equal(shl_op_run_call(run), SHL_OK);
    *bytes = 0;
    for (int k = 0; k < run->n_operands; k++) {
        const shl_op_operand *o = &run->operands[k];
        size_t n = shl_op_operand_bytes(o);
        if (o->role != SHL_ROLE_IN) {
            assert_int_equal(shl_heap_grow(&all, *bytes, *bytes + n, 1), SHL_OK);
            memcpy(all + *bytes, o->tensor.data, n);
            *bytes += n;
        }
    }
    shl_op_run_close(&run);
    return all;
}

static void
test_bits_do_not_depend_on_alignment(void **state)
{
    size_t n = 0;
    const shl_op_case *c = shl_op_cases(&n);
    (void)state;
    for (const char *const *isa = shl_cpu_isas(); *isa != NULL; isa++) {
        if (shl_cpu_op_table_isa(*isa) == NULL) {
            continue;
        }
        shl_device *d = open_cpu(1, *isa);
        for (size_t i = 0; i < n; i++) {
            size_t bytes = 0, moved_bytes = 0;
            bool half = (c[i].flags & (SHL_CASE_BF16 | SHL_CASE_F16)) != 0;
            int64_t step =
                half || c[i].op == SHL_OP_ATTENTION_FORWARD || c[i].op == SHL_OP_ATTENTION_BACKWARD
                    ? 5
                    : 1;
            if ((c[i].flags & SHL_CASE_SPEED) != 0) {
                continue;
            }
            char *aligned = outputs_of(d, &c[i], 0, &bytes);
            for (int64_t offset = 1; offset < 16; offset += step) {
                char *moved = outputs_of(d, &c[i], offset, &moved_bytes);
                assert_int_equal(bytes, moved_bytes);
                assert_memory_equal(aligned, moved, bytes);
                shl_heap_free(&moved);
            }
            shl_heap_free(&aligned);
        }
        assert_int_equal(shl_device_close(&d), SHL_OK);
    }
}

/* Large enough that every kernel shares its work; flagged for timing, so no reference is needed.
 * The library's matrix products are not here: they cut K differently for some thread counts. */
static const shl_op_case shared_work[] = {
    {"linear db", SHL_OP_LINEAR_BACKWARD_WEIGHT, {300, 96, 201}, SHL_CASE_SPEED},
    {"layernorm", SHL_OP_LAYERNORM_FORWARD, {700, 101}, SHL_CASE_SPEED},
    {"layernorm back", SHL_OP_LAYERNORM_BACKWARD, {700, 101}, SHL_CASE_SPEED},
    {"gelu", SHL_OP_GELU_FORWARD, {70001}, SHL_CASE_SPEED},
    {"gelu back", SHL_OP_GELU_BACKWARD, {70001}, SHL_CASE_SPEED},
    {"embedding", SHL_OP_EMBEDDING_FORWARD, {4, 100, 130, 1000}, SHL_CASE_SPEED},
    {"embedding back", SHL_OP_EMBEDDING_BACKWARD, {4, 100, 330, 1000}, SHL_CASE_SPEED},
    {"attention", SHL_OP_ATTENTION_FORWARD, {2, 131, 3, 3, 32}, SHL_CASE_SPEED},
    {"attention back", SHL_OP_ATTENTION_BACKWARD, {2, 131, 4, 2, 32}, SHL_CASE_SPEED},
    {"add", SHL_OP_ADD, {70001}, SHL_CASE_SPEED},
    {"scale", SHL_OP_SCALE, {70001}, SHL_CASE_SPEED},
    {"cross-entropy", SHL_OP_CROSS_ENTROPY, {70, 1003}, SHL_CASE_SPEED},
    {"adamw", SHL_OP_ADAMW, {70001}, SHL_CASE_SPEED},
    {"norm max", SHL_OP_NORM_MAX, {70001}, SHL_CASE_SPEED},
    {"norm sum", SHL_OP_NORM_SUM, {70001}, SHL_CASE_SPEED},
    {"init", SHL_OP_INIT, {70001}, SHL_CASE_SPEED},
    {"rmsnorm", SHL_OP_RMSNORM_FORWARD, {700, 101}, SHL_CASE_SPEED},
    {"rmsnorm back", SHL_OP_RMSNORM_BACKWARD, {700, 101}, SHL_CASE_SPEED},
    {"rope", SHL_OP_ROPE, {3, 150, 4, 2, 32}, SHL_CASE_SPEED},
    {"silu-mul", SHL_OP_SILU_MUL_FORWARD, {300, 201}, SHL_CASE_SPEED},
    {"silu-mul back", SHL_OP_SILU_MUL_BACKWARD, {300, 201}, SHL_CASE_SPEED},
    {"dropout", SHL_OP_DROPOUT, {300, 301}, SHL_CASE_SPEED},
    {"attention, dropped",
     SHL_OP_ATTENTION_FORWARD,
     {2, 131, 3, 3, 32},
     SHL_CASE_SPEED | SHL_CASE_DROPOUT},
    {"attention back, dropped",
     SHL_OP_ATTENTION_BACKWARD,
     {2, 131, 4, 2, 32},
     SHL_CASE_SPEED | SHL_CASE_DROPOUT},
    {"cast", SHL_OP_CAST, {70001}, SHL_CASE_SPEED | SHL_CASE_BF16},
    {"add bf16", SHL_OP_ADD, {70001}, SHL_CASE_SPEED | SHL_CASE_BF16 | SHL_CASE_MIXED},
    {"scale fp16", SHL_OP_SCALE, {70001}, SHL_CASE_SPEED | SHL_CASE_F16},
    {"adamw bf16", SHL_OP_ADAMW, {70001}, SHL_CASE_SPEED | SHL_CASE_BF16},
    {"adamw in bf16", SHL_OP_ADAMW, {70001}, SHL_CASE_SPEED | SHL_CASE_BF16 | SHL_CASE_MIXED},
    {"norm sum bf16", SHL_OP_NORM_SUM, {70001}, SHL_CASE_SPEED | SHL_CASE_BF16},
    {"linear db", SHL_OP_LINEAR_BACKWARD_WEIGHT, {300, 96, 201}, SHL_CASE_SPEED | SHL_CASE_BF16},
    {"layernorm bf16", SHL_OP_LAYERNORM_FORWARD, {700, 101}, SHL_CASE_SPEED | SHL_CASE_BF16},
    {"layernorm back fp16", SHL_OP_LAYERNORM_BACKWARD, {700, 101}, SHL_CASE_SPEED | SHL_CASE_F16},
    {"gelu bf16", SHL_OP_GELU_FORWARD, {70001}, SHL_CASE_SPEED | SHL_CASE_BF16},
    {"gelu back fp16", SHL_OP_GELU_BACKWARD, {70001}, SHL_CASE_SPEED | SHL_CASE_F16},
    {"embedding bf16",
     SHL_OP_EMBEDDING_FORWARD,
     {4, 100, 130, 1000},
     SHL_CASE_SPEED | SHL_CASE_BF16},
    {"embedding back bf16",
     SHL_OP_EMBEDDING_BACKWARD,
     {4, 100, 330, 1000},
     SHL_CASE_SPEED | SHL_CASE_BF16 | SHL_CASE_MIXED},
    {"attention bf16",
     SHL_OP_ATTENTION_FORWARD,
     {2, 131, 3, 3, 32},
     SHL_CASE_SPEED | SHL_CASE_BF16},
    {"attention back bf16",
     SHL_OP_ATTENTION_BACKWARD,
     {2, 131, 4, 2, 32},
     SHL_CASE_SPEED | SHL_CASE_BF16},
    {"cross-entropy bf16", SHL_OP_CROSS_ENTROPY, {70, 1003}, SHL_CASE_SPEED | SHL_CASE_BF16},
    {"init bf16", SHL_OP_INIT, {70001}, SHL_CASE_SPEED | SHL_CASE_BF16},
};

static void
test_bits_do_not_depend_on_threads(void **state)
{
    (void)state;
    for (const char *const *isa = shl_cpu_isas(); *isa != NULL; isa++) {
        for (size_t i = 0; i < SHL_ARRAY_LEN(shared_work) && shl_cpu_op_table_isa(*isa); i++) {
            char *one = NULL;
            size_t one_bytes = 0;
            for (int threads = 1; threads <= 3; threads++) {
                size_t bytes = 0;
                shl_device *d = open_cpu(threads, *isa);
                char *all = outputs_of(d, &shared_work[i], 0, &bytes);
                if (one == NULL) {
                    one = all;
                    one_bytes = bytes;
                } else {
                    assert_int_equal(bytes, one_bytes);
                    assert_memory_equal(all, one, bytes);
                    shl_heap_free(&all);
                }
                assert_int_equal(shl_device_close(&d), SHL_OK);
            }
            shl_heap_free(&one);
        }
    }
}

static float *
random_array(int64_t n, const char *name, float std)
{
    float *x = NULL;
    assert_int_equal(shl_heap_alloc((size_t)n, sizeof(float), &x), SHL_OK);
    shl_rng_normal_fill(SEED, shl_rng_stream(name), 0, x, n);
    for (int64_t i = 0; i < n; i++) {
        x[i] *= std;
    }
    return x;
}

/* A step over a whole array against steps over its pieces, cut anywhere. */
static void
test_bits_of_adamw_do_not_depend_on_place(void **state)
{
    enum { N = 1000 };
    static const int64_t cuts[] = {0, 1, 4, 9, 40, 41, 100, 333, 350, 351, 999, N};
    (void)state;
    for (const char *const *isa = shl_cpu_isas(); *isa != NULL; isa++) {
        if (shl_cpu_op_table_isa(*isa) == NULL) {
            continue;
        }
        shl_device *d = open_cpu(1, *isa);
        float *whole[4], *pieces[4];
        for (int k = 0; k < 4; k++) {
            static const char *const names[] = {"p", "g", "m", "v"};
            whole[k] = random_array(N, names[k], 0.1f);
            for (int64_t i = 0; i < N; i++) {
                whole[k][i] = k == 3 ? fabsf(whole[k][i]) : whole[k][i];
            }
            pieces[k] = random_array(N, "", 0.0f);
            memcpy(pieces[k], whole[k], N * sizeof(float));
        }
        shl_adamw_args a = {.lr = 1e-3,
                            .beta1 = 0.9,
                            .beta2 = 0.999,
                            .eps = 1e-8,
                            .weight_decay = 0.01,
                            .grad_scale = 0.9,
                            .step = 2};
        for (size_t piece = 0; piece < SHL_ARRAY_LEN(cuts); piece++) {
            bool all = piece == 0;
            int64_t begin = all ? 0 : cuts[piece - 1], n = all ? N : cuts[piece] - begin;
            float **from = all ? whole : pieces;
            a.param = shl_tensor_1d(from[0] + begin, SHL_F32, n);
            a.grad = shl_tensor_1d(from[1] + begin, SHL_F32, n);
            a.m = shl_tensor_1d(from[2] + begin, SHL_F32, n);
            a.v = shl_tensor_1d(from[3] + begin, SHL_F32, n);
            assert_int_equal(shl_op_adamw(shl_device_stream(d, SHL_STREAM_COMPUTE), &a), SHL_OK);
        }
        for (int k = 0; k < 4; k++) {
            assert_memory_equal(whole[k], pieces[k], N * sizeof(float));
            shl_heap_free(&whole[k]);
            shl_heap_free(&pieces[k]);
        }
        assert_int_equal(shl_device_close(&d), SHL_OK);
    }
}

/* ((s0 + s1) + s2) + s3, for every place that dst can take among the sources. */
static void
test_bits_of_sums_keep_rank_order(void **state)
{
    enum { N = 9000, RANKS = 4 };
    static const char *const names[RANKS] = {"a", "b", "c", "d"};
    float *src[RANKS], *want = random_array(N, "want", 1.0f), *dst = random_array(N, "dst", 1.0f);
    int64_t reversed = 0;
    (void)state;
    shl_device *d = open_cpu(2, shl_cpu_isa());
    for (int place = -1; place < RANKS; place++) {
        for (int k = 0; k < RANKS; k++) {
            src[k] = random_array(N, names[k], 1.0f);
        }
        for (int64_t i = 0; i < N; i++) {
            want[i] = ((src[0][i] + src[1][i]) + src[2][i]) + src[3][i];
            reversed += want[i] != ((src[3][i] + src[2][i]) + src[1][i]) + src[0][i];
        }
        const void *srcs[RANKS] = {src[0], src[1], src[2], src[3]};
        float *to = place < 0 ? dst : src[place];
        shl_sum_ranks_args a = {
            .dst = shl_tensor_1d(to, SHL_F32, N), .srcs = srcs, .n = RANKS, .add_to_dst = false};
        assert_int_equal(shl_op_sum_ranks(shl_device_stream(d, SHL_STREAM_COMPUTE), &a), SHL_OK);
        assert_memory_equal(to, want, N * sizeof(float));
        for (int k = 0; k < RANKS; k++) {
            shl_heap_free(&src[k]);
        }
    }
    assert_true(reversed > 0); /* the order shows in these bits */
    shl_heap_free(&want);
    shl_heap_free(&dst);
    assert_int_equal(shl_device_close(&d), SHL_OK);
}

/* x * x / 2^quantum rounded to a whole number, ties to even, from the bits of x alone. */
static i128
square_in_quanta(float x, int quantum)
{
    uint32_t bits = 0;
    memcpy(&bits, &x, sizeof(bits));
    int exponent = (int)(bits >> 23 & 255);
    i128 mantissa = (i128)(bits & 0x7fffff) | (exponent > 0 ? 0x800000 : 0);
    int shift = 2 * ((exponent > 0 ? exponent : 1) - 150) - quantum;
    i128 square = mantissa * mantissa;
    if (shift >= 0) {
        return square << shift;
    }
    if (shift < -100) {
        return 0;
    }
    i128 half = (i128)1 << (-shift - 1), rest = square & (2 * half - 1), whole = square >> -shift;
    return whole + (rest > half || (rest == half && (whole & 1) != 0));
}

static i128
norm_sum(shl_device *d, float *x, int64_t n, int quantum, int64_t piece)
{
    int64_t out[2] = {0, 0};
    shl_norm_args a = {.out_sum = shl_tensor_1d(out, SHL_I64, 2), .quantum_log2 = quantum};
    for (int64_t i = 0; i < n; i += piece) {
        a.x = shl_tensor_1d(x + i, SHL_F32, n - i < piece ? n - i : piece);
        assert_int_equal(shl_op_norm_sum(shl_device_stream(d, SHL_STREAM_COMPUTE), &a), SHL_OK);
    }
    i128 sum = 0;
    memcpy(&sum, out, sizeof(sum));
    return sum;
}

/* Quanta from coarse (most squares round to nothing, many ties) to fine (exact, 128 bits needed). */
static void
test_bits_of_norms_do_not_depend_on_partition(void **state)
{
    enum { N = 40000 };
    static const int quanta[] = {-100, -84, -83, -82, -60, -46, -31, -20, -4, 0, 3};
    float *x = random_array(N, "x", 1.0f);
    (void)state;
    for (int64_t i = 0; i < N; i++) {
        x[i] = i % 7 == 0 ? ldexpf(rintf(8.0f * x[i]), -4) : ldexpf(x[i], (int)(i % 9) - 6);
        x[i] = i % 1000 == 999 ? 1e-42f * (float)i : x[i];
    }
    for (size_t q = 0; q < SHL_ARRAY_LEN(quanta); q++) {
        i128 want = 0;
        for (int64_t i = 0; i < N; i++) {
            want += square_in_quanta(x[i], quanta[q]);
        }
        for (const char *const *isa = shl_cpu_isas(); *isa != NULL; isa++) {
            if (shl_cpu_op_table_isa(*isa) == NULL) {
                continue;
            }
            for (int threads = 1; threads <= 2; threads++) {
                shl_device *d = open_cpu(threads, *isa);
                assert_true(norm_sum(d, x, N, quanta[q], N) == want);
                assert_true(norm_sum(d, x, N, quanta[q], 777) == want);
                assert_true(norm_sum(d, x, N, quanta[q], 32771) == want);
                assert_int_equal(shl_device_close(&d), SHL_OK);
            }
        }
    }
    shl_heap_free(&x);
}

static void
test_bits_of_norm_max_show_what_is_not_finite(void **state)
{
    float x[40] = {0.5f, -3.0f, 2.0f};
    int32_t out = 0;
    shl_device *d = open_cpu(1, shl_cpu_isa());
    shl_stream *s = shl_device_stream(d, SHL_STREAM_COMPUTE);
    shl_norm_args a = {.x = shl_tensor_1d(x, SHL_F32, 40),
                       .out_max = shl_tensor_1d(&out, SHL_I32, 1)};
    (void)state;
    assert_int_equal(shl_op_norm_max(s, &a), SHL_OK);
    assert_int_equal(out, 0x40400000); /* 3.0 */
    x[39] = -INFINITY;
    assert_int_equal(shl_op_norm_max(s, &a), SHL_OK);
    assert_int_equal(out, 0x7f800000);
    x[17] = NAN;
    assert_int_equal(shl_op_norm_max(s, &a), SHL_OK);
    assert_true(out > 0x7f800000);
    assert_int_equal(shl_device_close(&d), SHL_OK);
}

static void
test_bits_of_init_do_not_depend_on_partition(void **state)
{
    float whole[301], piece[301];
    (void)state;
    shl_rng_normal_fill(SEED, 5, 7, whole, 301);
    for (int64_t begin = 0; begin < 301; begin += 43) {
        shl_rng_normal_fill(SEED, 5, (uint64_t)(7 + begin), piece + begin, 43);
    }
    assert_memory_equal(whole, piece, sizeof(whole));
    for (int64_t i = 0; i < 301; i++) {
        float one = shl_rng_normal(SEED, 5, (uint64_t)(7 + i));
        assert_memory_equal(&whole[i], &one, sizeof(one));
    }
}

/* The same elements fall whatever piece of the batch a call sees; a tenth of them, and the rest is
 * scaled up; another seed or stream drops others. */
static void
test_bits_of_dropout_do_not_depend_on_partition(void **state)
{
    enum { N = 20011 };
    (void)state;
    for (const char *const *isa = shl_cpu_isas(); *isa != NULL; isa++) {
        if (shl_cpu_op_table_isa(*isa) == NULL) {
            continue;
        }
        shl_device *d = open_cpu(2, *isa);
        shl_stream *s = shl_device_stream(d, SHL_STREAM_COMPUTE);
        float *x = random_array(N, "x", 1.0f), *whole = random_array(N, "", 0.0f);
        float *pieces = random_array(N, "", 0.0f), *other = random_array(N, "", 0.0f);
        shl_dropout_args a = {.p = 0.1, .seed = SEED, .stream = 5, .first = 1000003};
        a.x = shl_tensor_1d(x, SHL_F32, N);
        a.y = shl_tensor_1d(whole, SHL_F32, N);
        assert_int_equal(shl_op_dropout(s, &a), SHL_OK);
        for (int64_t begin = 0, n = 1; begin < N; begin += n, n = begin % 777 + 1) {
            n = begin + n < N ? n : N - begin;
            memcpy(pieces + begin, x + begin, (size_t)n * sizeof(float));
            a.x = shl_tensor_1d(pieces + begin, SHL_F32, n);
            a.y = a.x; /* in place */
            a.first = 1000003 + begin;
            assert_int_equal(shl_op_dropout(s, &a), SHL_OK);
        }
        assert_memory_equal(whole, pieces, N * sizeof(float));
        a.x = shl_tensor_1d(x, SHL_F32, N);
        a.y = shl_tensor_1d(other, SHL_F32, N);
        a.first = 1000003;
        a.stream = 6;
        assert_int_equal(shl_op_dropout(s, &a), SHL_OK);
        int dropped = 0, both = 0;
        for (int64_t i = 0; i < N; i++) {
            dropped += whole[i] == 0.0f;
            both += whole[i] == 0.0f && other[i] == 0.0f;
        }
        /* 0.1 and 0.01 of N, five standard deviations. */
        assert_true(abs(dropped - N / 10) < 213 && abs(both - N / 100) < 71);
        shl_heap_free(&x);
        shl_heap_free(&whole);
        shl_heap_free(&pieces);
        shl_heap_free(&other);
        assert_int_equal(shl_device_close(&d), SHL_OK);
    }
}

/* NaN and infinities must not turn into numbers on the way. */
static void
test_bits_keep_what_is_not_finite(void **state)
{
    (void)state;
    for (const char *const *isa = shl_cpu_isas(); *isa != NULL; isa++) {
        if (shl_cpu_op_table_isa(*isa) == NULL) {
            continue;
        }
        shl_device *d = open_cpu(1, *isa);
        shl_stream *s = shl_device_stream(d, SHL_STREAM_COMPUTE);
        float x[21] = {0}, y[21] = {0}, logits[40] = {0};
        int32_t targets[2] = {3, 4};
        double loss = 0.0;
        x[2] = NAN;
        x[20] = INFINITY;
        shl_gelu_args gelu = {.x = shl_tensor_1d(x, SHL_F32, 21),
                              .y = shl_tensor_1d(y, SHL_F32, 21)};
        assert_int_equal(shl_op_gelu_forward(s, &gelu), SHL_OK);
        assert_true(isnan(y[2]) && isinf(y[20]) && y[0] == 0.0f);
        logits[25] = NAN;
        shl_cross_entropy_args ce = {.logits = shl_tensor_2d(logits, SHL_F32, 2, 20),
                                     .targets = shl_tensor_1d(targets, SHL_I32, 2),
                                     .loss_sum = shl_tensor_1d(&loss, SHL_F64, 1),
                                     .dloss = 1.0f,
                                     .want_grad = true};
        assert_int_equal(shl_op_cross_entropy(s, &ce), SHL_OK);
        assert_true(isnan(loss) && !isnan(logits[0]) && isnan(logits[20]));
        assert_int_equal(shl_device_close(&d), SHL_OK);
    }
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bits_do_not_depend_on_alignment),
        cmocka_unit_test(test_bits_do_not_depend_on_threads),
        cmocka_unit_test(test_bits_of_adamw_do_not_depend_on_place),
        cmocka_unit_test(test_bits_of_sums_keep_rank_order),
        cmocka_unit_test(test_bits_of_norms_do_not_depend_on_partition),
        cmocka_unit_test(test_bits_of_norm_max_show_what_is_not_finite),
        cmocka_unit_test(test_bits_of_dropout_do_not_depend_on_partition),
        cmocka_unit_test(test_bits_of_init_do_not_depend_on_partition),
        cmocka_unit_test(test_bits_keep_what_is_not_finite),
    };
    printf("seed %u\n", SEED);
    return cmocka_run_group_tests_name("ops_bits", tests, NULL, NULL);
}

/* tests/kernels/cuda: attention on the cuda device against the double reference: tiles that are not full,
 * heads of every width, groups, dropout, tensors at odd places; and that bits repeat. */
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
#include "kernels/base/rng.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/ops/op_reference.h"

#define SEED 20u
#define GUARD 64 /* elements around a tensor that no kernel may touch */
#define GUARD_BYTE 0x7f

/* One shape; q, k, v lie side by side in one tensor, as GPT-2 has them. */
typedef struct shape {
    const char *name;
    int64_t batch, seq, heads, kv_heads, dim;
    shl_dtype dtype;
    double dropout_p;
    double spread; /* standard deviation of the inputs */
    int64_t odd;   /* elements between an aligned address and the tensors */
} shape;

/* A tensor on the device, guarded on both sides, and its exact values. */
typedef struct tensor {
    double *value;
    shl_buf buf;
    void *data;
    int64_t n;
    shl_dtype dtype;
} tensor;

typedef struct run {
    const shape *c;
    tensor qkv, y, lse, dy, dqkv;
    shl_attention_args args;
} run;

static shl_device *device;

static int
open_device(void **state)
{
    shl_device_config cfg = {.kind = "cuda", .threads = 1};
    (void)state;
    print_message("seed %u\n", SEED);
    if (shl_device_open(&cfg, &device) != SHL_OK) {
        print_error("%s; %s\n", shl_err_get()->what, shl_err_get()->because);
        return -1;
    }
    return 0;
}

static int
close_device(void **state)
{
    (void)state;
    return shl_device_close(&device) == SHL_OK ? 0 : -1;
}

static void *
host_room(size_t bytes)
{
    void *room = malloc(bytes + 1);
    assert_non_null(room);
    memset(room, GUARD_BYTE, bytes);
    return room;
}

static size_t
bytes_of(const tensor *t, int64_t elems)
{
    return (size_t)elems * shl_dtype_bytes(t->dtype);
}

/* What the device holds: the tensor, or with its guards. Owner: caller, free. */
static void *
fetch(const tensor *t, bool guards)
{
    size_t bytes = guards ? bytes_of(t, t->n + 2 * GUARD) : bytes_of(t, t->n);
    void *room = host_room(bytes);
    assert_int_equal(shl_device_download(device, room, guards ? t->buf.data : t->data, bytes),
                     SHL_OK);
    return room;
}

/* The exact values, rounded to the tensor's type. */
static void
send(const tensor *t)
{
    void *room = host_room(bytes_of(t, t->n));
    for (int64_t i = 0; i < t->n; i++) {
        shl_float_put(t->dtype, room, i, (float)t->value[i]);
    }
    assert_int_equal(shl_device_upload(device, t->data, room, bytes_of(t, t->n)), SHL_OK);
    free(room);
}

static tensor
tensor_new(shl_dtype dtype, int64_t n, int64_t odd, const char *name, double spread)
{
    tensor t = {.n = n, .dtype = dtype};
    size_t bytes = bytes_of(&t, n + 2 * GUARD);
    t.value = calloc((size_t)n, sizeof(double));
    assert_non_null(t.value);
    assert_int_equal(shl_device_alloc(device, bytes, SHL_TIER_DEVICE, SHL_TAG_ACT, 0, name, &t.buf),
                     SHL_OK);
    void *room = host_room(bytes);
    assert_int_equal(shl_device_upload(device, t.buf.data, room, bytes), SHL_OK);
    free(room);
    t.data = (char *)t.buf.data + bytes_of(&t, GUARD + odd);
    for (int64_t i = 0; i < n && spread > 0.0; i++) {
        float x = (float)spread * shl_rng_normal(SEED, shl_rng_stream(name), (uint64_t)i);
        t.value[i] = (double)shl_float_round(dtype, x);
    }
    if (spread > 0.0) {
        send(&t);
    }
    return t;
}

static void
tensor_free(tensor *t)
{
    free(t->value);
    shl_device_free(device, &t->buf);
}

/* What lies around the tensor is as it was. */
static void
assert_guarded(const tensor *t)
{
    unsigned char *room = fetch(t, true);
    size_t begin = (size_t)((char *)t->data - (char *)t->buf.data);
    for (size_t i = 0; i < bytes_of(t, t->n + 2 * GUARD); i++) {
        if (i < begin || i >= begin + bytes_of(t, t->n)) {
            assert_int_equal(room[i], GUARD_BYTE);
        }
    }
    free(room);
}

static void
assert_same_bits(const tensor *x, const tensor *y)
{
    void *a = fetch(x, false), *b = fetch(y, false);
    assert_memory_equal(a, b, bytes_of(x, x->n));
    free(a);
    free(b);
}

static void
run_open(run *r, const shape *c)
{
    int64_t rows = c->batch * c->seq, stride = (c->heads + 2 * c->kv_heads) * c->dim;
    int64_t at_k = c->heads * c->dim, at_v = at_k + c->kv_heads * c->dim;
    *r = (run){.c = c};
    r->qkv = tensor_new(c->dtype, rows * stride, c->odd, "qkv", c->spread);
    r->y = tensor_new(c->dtype, rows * at_k, c->odd, "y", 0.0);
    r->lse = tensor_new(SHL_F32, rows * c->heads, 0, "lse", 0.0);
    r->dy = tensor_new(c->dtype, rows * at_k, c->odd, "dy", 1.0);
    r->dqkv = tensor_new(c->dtype, rows * stride, c->odd, "dqkv", 0.0);
    r->args = (shl_attention_args){.q = r->qkv.data,
                                   .k = shl_elem_ptr(r->qkv.data, c->dtype, at_k),
                                   .v = shl_elem_ptr(r->qkv.data, c->dtype, at_v),
                                   .y = r->y.data,
                                   .lse = r->lse.data,
                                   .dy = r->dy.data,
                                   .dq = r->dqkv.data,
                                   .dk = shl_elem_ptr(r->dqkv.data, c->dtype, at_k),
                                   .dv = shl_elem_ptr(r->dqkv.data, c->dtype, at_v),
                                   .q_stride = stride,
                                   .kv_stride = stride,
                                   .batch = c->batch,
                                   .seq = c->seq,
                                   .heads = c->heads,
                                   .kv_heads = c->kv_heads,
                                   .head_dim = c->dim,
                                   .scale = (float)(1.0 / sqrt((double)c->dim)),
                                   .dtype = c->dtype,
                                   .dropout_p = c->dropout_p,
                                   .dropout_seed = SEED,
                                   .dropout_stream = 3,
                                   .first_sequence = 1000000};
}

static void
run_close(run *r)
{
    tensor_free(&r->qkv);
    tensor_free(&r->y);
    tensor_free(&r->lse);
    tensor_free(&r->dy);
    tensor_free(&r->dqkv);
}

static void
launch(shl_op op, const shl_attention_args *a)
{
    shl_stream *s = shl_device_stream(device, SHL_STREAM_COMPUTE);
    assert_int_equal(op == SHL_OP_ATTENTION_FORWARD ? shl_op_attention_forward(s, a)
                                                    : shl_op_attention_backward(s, a),
                     SHL_OK);
}

/* Every element within tol times the largest, and half a unit in the last place of its type. */
static void
assert_close(const shape *c, const char *what, const tensor *t, const double *want, double tol)
{
    double ulp = t->dtype == SHL_BF16 ? 0x1p-9 : t->dtype == SHL_F16 ? 0x1p-12 : 0x1p-25;
    double top = 0.0, worst = 0.0;
    void *room = fetch(t, false);
    for (int64_t i = 0; i < t->n; i++) {
        top = fmax(top, fabs(want[i]));
    }
    for (int64_t i = 0; i < t->n; i++) {
        double got = (double)shl_float_at(t->dtype, room, i);
        double off = fabs(got - want[i]), may = tol * top + 2.0 * ulp * fabs(want[i]);
        if (!(off <= may)) {
            fail_msg("%s: %s[%ld] is %.9g, not %.9g (largest %g)", c->name, what, (long)i, got,
                     want[i], top);
        }
        worst = fmax(worst, off / may);
    }
    if (getenv("SHL_TEST_SHOW") != NULL) {
        print_message("%s: %s: worst %.3f of what is allowed\n", c->name, what, worst);
    }
    free(room);
    assert_guarded(t);
}

static void
check_values(const shape *c)
{
    run r;
    run_open(&r, c);
    int64_t at_k = c->heads * c->dim, at_v = at_k + c->kv_heads * c->dim;
    bool half = c->dtype != SHL_F32, large = c->spread > 5.0;
    const double *x = r.qkv.value;
    double *g = r.dqkv.value;
    double rounding = c->dtype == SHL_BF16 ? 0x1p-8 : c->dtype == SHL_F16 ? 0x1p-11 : 3e-6;
    double forward = c->dtype == SHL_BF16 && c->dim % 8 == 0 ? 0x1p-8 : large ? 5e-4 : 3e-6;
    shl_ref_attention_forward(&r.args, x, x + at_k, x + at_v, r.y.value, r.lse.value);
    launch(SHL_OP_ATTENTION_FORWARD, &r.args);
    assert_close(c, "y", &r.y, r.y.value, forward);
    assert_close(c, "lse", &r.lse, r.lse.value, large ? 5e-4 : 3e-6);
    send(&r.y);
    send(&r.lse);
    shl_ref_attention_backward(&r.args, x, x + at_k, x + at_v, r.dy.value, g, g + at_k, g + at_v);
    launch(SHL_OP_ATTENTION_BACKWARD, &r.args);
    /* The rounding of y enters by dy y, against which the scores' gradients stand: more, the larger. */
    assert_close(c, "dqkv", &r.dqkv, g,
                 half    ? rounding * (large ? 4.0 : 1.0)
                 : large ? 5e-4
                         : 3e-6);
    run_close(&r);
}

static const shape shapes[] = {
    {"one token", 2, 1, 2, 1, 7, SHL_F32, 0.0, 1.0, 0},
    {"64 wide, group of 4", 1, 131, 4, 1, 64, SHL_F32, 0.0, 1.0, 0},
    {"40 wide, odd place", 2, 66, 2, 1, 40, SHL_F32, 0.0, 1.0, 1},
    {"80 wide, dropped", 1, 70, 2, 2, 80, SHL_F32, 0.2, 1.0, 0},
    {"128 wide, large scores", 1, 97, 1, 1, 128, SHL_F32, 0.0, 20.0, 0},
    {"160 wide", 1, 65, 1, 1, 160, SHL_F32, 0.0, 1.0, 0},
    {"fp16, odd place", 1, 67, 4, 2, 24, SHL_F16, 0.2, 1.0, 3},
    {"bf16, no whole vectors", 1, 67, 2, 1, 20, SHL_BF16, 0.0, 1.0, 0},
    {"bf16, 254 wide", 1, 35, 1, 1, 254, SHL_BF16, 0.0, 1.0, 0},
    {"bf16, 64 wide, group of 4, a row more", 1, 129, 4, 1, 64, SHL_BF16, 0.0, 1.0, 0},
    {"bf16, 64 wide, large scores", 2, 67, 1, 1, 64, SHL_BF16, 0.0, 20.0, 0},
    {"bf16, 40 wide, odd place, dropped", 1, 131, 2, 1, 40, SHL_BF16, 0.2, 1.0, 3},
    {"bf16, 80 wide, dropped", 1, 99, 2, 2, 80, SHL_BF16, 0.2, 1.0, 0},
    {"bf16, 128 wide", 1, 135, 2, 1, 128, SHL_BF16, 0.0, 1.0, 0},
    {"bf16, 160 wide", 1, 66, 2, 1, 160, SHL_BF16, 0.0, 1.0, 0},
    {"bf16, one token", 2, 1, 2, 1, 8, SHL_BF16, 0.0, 1.0, 0},
    /* Tiles of 16 to 128 rows, full, and a row more or less; groups of three; heads that the turns of a
     * grid do not divide. */
    {"bf16, 64 wide, full tiles", 1, 64, 1, 1, 64, SHL_BF16, 0.0, 1.0, 0},
    {"bf16, 16 wide, a row less", 1, 127, 1, 1, 16, SHL_BF16, 0.0, 1.0, 0},
    {"bf16, 32 wide, heads left over", 5, 17, 3, 1, 32, SHL_BF16, 0.0, 1.0, 0},
    {"bf16, 96 wide, a row more", 1, 65, 2, 1, 96, SHL_BF16, 0.0, 1.0, 0},
    {"bf16, 128 wide, full tiles, odd place", 1, 64, 1, 1, 128, SHL_BF16, 0.0, 1.0, 1},
    {"bf16, 256 wide, a row more", 1, 17, 3, 1, 256, SHL_BF16, 0.0, 1.0, 0},
    {"bf16, 136 wide, a row less, dropped", 1, 31, 3, 1, 136, SHL_BF16, 0.2, 1.0, 0},
    {"fp32, heads left over", 3, 33, 3, 1, 16, SHL_F32, 0.0, 1.0, 0},
};

static void
test_cuda_attention_values(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof(shapes) / sizeof(shapes[0]); i++) {
        check_values(&shapes[i]);
    }
}

/* Two sequences at once and one after the other give the same bits, twice. */
static void
check_bits(const shape *c)
{
    run all, apart;
    run_open(&all, c);
    run_open(&apart, c);
    shl_op ops[] = {SHL_OP_ATTENTION_FORWARD, SHL_OP_ATTENTION_BACKWARD};
    for (size_t k = 0; k < 2; k++) {
        launch(ops[k], &all.args);
        for (int64_t b = 0; b < c->batch; b++) {
            int64_t rows = b * c->seq, at = rows * apart.args.q_stride;
            int64_t at_y = rows * c->heads * c->dim;
            shl_attention_args a = apart.args;
            a.batch = 1;
            a.first_sequence += b;
            a.q = shl_elem_ptr((void *)(uintptr_t)a.q, c->dtype, at);
            a.k = shl_elem_ptr((void *)(uintptr_t)a.k, c->dtype, at);
            a.v = shl_elem_ptr((void *)(uintptr_t)a.v, c->dtype, at);
            a.y = shl_elem_ptr(a.y, c->dtype, at_y);
            a.lse += rows * c->heads;
            a.dy = shl_elem_ptr((void *)(uintptr_t)a.dy, c->dtype, at_y);
            a.dq = shl_elem_ptr(a.dq, c->dtype, at);
            a.dk = shl_elem_ptr(a.dk, c->dtype, at);
            a.dv = shl_elem_ptr(a.dv, c->dtype, at);
            launch(ops[k], &a);
        }
    }
    assert_same_bits(&all.y, &apart.y);
    assert_same_bits(&all.lse, &apart.lse);
    assert_same_bits(&all.dqkv, &apart.dqkv);
    run_close(&all);
    run_close(&apart);
}

static void
test_cuda_attention_bits_of_any_batch(void **state)
{
    const shape fp32 = {"fp32", 2, 75, 2, 1, 24, SHL_F32, 0.2, 1.0, 0};
    const shape bf16 = {"bf16", 2, 75, 2, 1, 64, SHL_BF16, 0.2, 1.0, 0};
    (void)state;
    check_bits(&fp32);
    check_bits(&bf16);
}

/* An address that no vector load may use gives the bits of one that may. */
static void
check_place(const shape *c, int64_t odd)
{
    run even, other;
    shape moved = *c;
    moved.odd = odd;
    run_open(&even, c);
    run_open(&other, &moved);
    launch(SHL_OP_ATTENTION_FORWARD, &even.args);
    launch(SHL_OP_ATTENTION_BACKWARD, &even.args);
    launch(SHL_OP_ATTENTION_FORWARD, &other.args);
    launch(SHL_OP_ATTENTION_BACKWARD, &other.args);
    assert_same_bits(&even.y, &other.y);
    assert_same_bits(&even.dqkv, &other.dqkv);
    run_close(&even);
    run_close(&other);
}

static void
test_cuda_attention_bits_of_any_place(void **state)
{
    const shape fp32 = {"fp32", 1, 70, 1, 1, 32, SHL_F32, 0.0, 1.0, 0};
    const shape bf16 = {"bf16", 1, 70, 1, 1, 64, SHL_BF16, 0.0, 1.0, 0};
    (void)state;
    check_place(&fp32, 1);
    check_place(&bf16, 5);
}

static void
test_cuda_attention_refuses_wider_heads(void **state)
{
    const shape wide = {"wide", 1, 3, 1, 1, 257, SHL_F32, 0.0, 1.0, 0};
    shl_stream *stream = shl_device_stream(device, SHL_STREAM_COMPUTE);
    run r;
    (void)state;
    run_open(&r, &wide);
    assert_int_equal(shl_op_attention_forward(stream, &r.args), SHL_E_USAGE);
    assert_int_equal(shl_op_attention_backward(stream, &r.args), SHL_E_USAGE);
    run_close(&r);
}

static void
assert_ran(shl_op op, const char *want)
{
    char text[64];
    shl_op_ran(device, op, text, sizeof(text));
    assert_string_equal(text, want);
}

/* Which kernel served is told as it is launched, and both when there were two. */
static void
test_cuda_attention_says_what_ran(void **state)
{
    const shape cases[] = {{"fp32", 1, 5, 1, 1, 16, SHL_F32, 0.0, 1.0, 0},
                           {"bf16", 1, 5, 1, 1, 16, SHL_BF16, 0.0, 1.0, 0}};
    static const char *const want[] = {"own (CUDA cores)", "own (CUDA cores), own (tensor cores)"};
    shl_device_config cfg = {.kind = "cuda", .threads = 1};
    shl_device *shared = device;
    run r;
    (void)state;
    assert_int_equal(shl_device_open(&cfg, &device), SHL_OK);
    assert_ran(SHL_OP_ATTENTION_FORWARD, "");
    for (size_t i = 0; i < SHL_ARRAY_LEN(cases); i++) {
        run_open(&r, &cases[i]);
        launch(SHL_OP_ATTENTION_FORWARD, &r.args);
        launch(SHL_OP_ATTENTION_BACKWARD, &r.args);
        assert_ran(SHL_OP_ATTENTION_FORWARD, want[i]);
        assert_ran(SHL_OP_ATTENTION_BACKWARD, want[i]);
        run_close(&r);
    }
    assert_int_equal(shl_device_close(&device), SHL_OK);
    device = shared;
}

/* By the library: its graph gives the same values, and the lse that the own backward goes on from; twice, once
 * with the plan that is remembered. What it is not asked for is refused, never done by another kernel. */
static void
test_cuda_attention_by_the_library(void **state)
{
    const shape grouped = {"library, grouped", 2, 21, 4, 2, 16, SHL_BF16, 0.0, 1.0, 0};
    const shape refused[] = {{"library, dropped", 1, 21, 2, 1, 16, SHL_BF16, 0.2, 1.0, 0},
                             {"library, fp16", 1, 21, 2, 1, 16, SHL_F16, 0.0, 1.0, 0},
                             {"library, fp32", 1, 21, 2, 1, 16, SHL_F32, 0.0, 1.0, 0}};
    const shape odd = {"library, odd place", 1, 5, 1, 1, 16, SHL_BF16, 0.0, 1.0, 1};
    shl_device_config cfg = {.kind = "cuda", .threads = 1, .fused_attention = true};
    shl_device *own = device;
    run r;
    (void)state;
    assert_int_equal(shl_device_open(&cfg, &device), SHL_OK);
    check_values(&grouped);
    check_values(&grouped);
    assert_ran(SHL_OP_ATTENTION_FORWARD, "cudnn 9.0.0");
    assert_ran(SHL_OP_ATTENTION_BACKWARD, "own (tensor cores)");
    for (size_t i = 0; i < SHL_ARRAY_LEN(refused); i++) {
        run_open(&r, &refused[i]);
        shl_stream *s = shl_device_stream(device, SHL_STREAM_COMPUTE);
        assert_int_equal(shl_op_attention_forward(s, &r.args), SHL_E_USAGE);
        assert_string_equal(shl_err_get()->because, "cuDNN is asked for bf16 without dropout only");
        run_close(&r);
    }
    run_open(&r, &odd);
    assert_int_not_equal(
        shl_op_attention_forward(shl_device_stream(device, SHL_STREAM_COMPUTE), &r.args), SHL_OK);
    assert_non_null(strstr(shl_err_get()->because, "16 bytes"));
    run_close(&r);
    assert_int_equal(shl_device_close(&device), SHL_OK);
    device = own;
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cuda_attention_values),
        cmocka_unit_test(test_cuda_attention_bits_of_any_batch),
        cmocka_unit_test(test_cuda_attention_bits_of_any_place),
        cmocka_unit_test(test_cuda_attention_refuses_wider_heads),
        cmocka_unit_test(test_cuda_attention_says_what_ran),
        cmocka_unit_test(test_cuda_attention_by_the_library),
    };
    return cmocka_run_group_tests(tests, open_device, close_device);
}

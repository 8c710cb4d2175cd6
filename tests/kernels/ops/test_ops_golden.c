/* tests/kernels/ops: the ops against golden values of another implementation (ops.h5): every size
 * and constant is read from the file; every instruction set that this CPU has. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "kernels/base/heap.h"
#include "kernels/cpu/cpu_table.h"
#include "kernels/ops/ops.h"
#include "tests/support/golden.h"

/* A group of the file with the tensors that a test made for it on the device. */
typedef struct golden {
    hid_t file;
    const char *group;
    shl_device *device;
    shl_stream *s;
    shl_buf bufs[32];
    int n_bufs;
} golden;

static const char *
path_of(const golden *g, const char *name)
{
    static char path[256];
    (void)snprintf(path, sizeof(path), "%s/%s", g->group, name);
    return path;
}

/* Sizes of a data set, and their number. */
static int
dims_of(const golden *g, const char *name, hsize_t dims[4])
{
    hid_t set = H5Dopen2(g->file, path_of(g, name), H5P_DEFAULT);
    assert_true(set >= 0);
    hid_t space = H5Dget_space(set);
    int n = H5Sget_simple_extent_dims(space, dims, NULL);
    (void)H5Sclose(space);
    (void)H5Dclose(set);
    return n;
}

static shl_tensor
room(golden *g, shl_dtype dtype, int64_t rows, int64_t cols)
{
    assert_true(g->n_bufs < 32);
    shl_buf *b = &g->bufs[g->n_bufs++];
    size_t bytes = (size_t)(rows * cols) * shl_dtype_bytes(dtype);
    assert_int_equal(
        shl_device_alloc(g->device, bytes, SHL_TIER_DEVICE, SHL_TAG_ACT, 0, "golden", b), SHL_OK);
    memset(b->data, 0, bytes);
    return shl_tensor_2d(b->data, dtype, rows, cols);
}

/* A data set on the device as [rows, cols]; a vector gives one row. */
static shl_tensor
input(golden *g, const char *name)
{
    hsize_t dims[4] = {1, 1, 1, 1};
    int n_dims = dims_of(g, name, dims);
    int64_t cols = (int64_t)dims[n_dims - 1], rows = 1;
    for (int i = 0; i < n_dims - 1; i++) {
        rows *= (int64_t)dims[i];
    }
    shl_tensor t = room(g, SHL_F32, rows, cols);
    float *x = shl_golden_f32(g->file, path_of(g, name), NULL);
    memcpy(t.data, x, shl_tensor_bytes(&t));
    shl_heap_free(&x);
    return t;
}

static shl_tensor
input_i32(golden *g, const char *name)
{
    size_t n = 0;
    int32_t *x = shl_golden_i32(g->file, path_of(g, name), &n);
    shl_tensor t = room(g, SHL_I32, 1, (int64_t)n);
    memcpy(t.data, x, n * sizeof(*x));
    shl_heap_free(&x);
    return t;
}

static shl_tensor
like(golden *g, const shl_tensor *t)
{
    return room(g, SHL_F32, t->dims[0], t->dims[1]);
}

/* got against the data set: largest difference over the largest value, and none may be NaN. */
static void
expect(const golden *g, const char *name, const float *got, int64_t n, double tolerance)
{
    size_t n_want = 0;
    double *want = shl_golden_f64(g->file, path_of(g, name), &n_want);
    double largest = 0.0, worst = 0.0;
    assert_int_equal(n_want, n);
    for (int64_t i = 0; i < n; i++) {
        double difference = fabs((double)got[i] - want[i]);
        largest = fmax(largest, fabs(want[i]));
        worst = difference > worst || isnan(difference) ? difference : worst;
    }
    /* Zero by cancellation of values of order one (the scores' gradient of a single token). */
    largest = largest > 0.0 ? largest : 1.0;
    if (!(worst <= tolerance * largest)) {
        print_error("%s: off by %.3g of its largest value\n", path_of(g, name), worst / largest);
    }
    assert_true(worst <= tolerance * largest);
    shl_heap_free(&want);
}

static void
expect_tensor(const golden *g, const char *name, const shl_tensor *t, double tolerance)
{
    expect(g, name, t->data, shl_tensor_elems(t), tolerance);
}

static void
release(golden *g)
{
    while (g->n_bufs > 0) {
        shl_device_free(g->device, &g->bufs[--g->n_bufs]);
    }
}

typedef void (*group_fn)(golden *g);

/* Runs fn on each group with every table of this CPU. */
static void
on_every_isa(const char *const *groups, size_t n, group_fn fn)
{
    golden g = {.file = shl_golden_open("ops.h5")};
    shl_device_config cfg = {.kind = "cpu", .threads = 1};
    assert_int_equal(shl_device_open(&cfg, &g.device), SHL_OK);
    g.s = shl_device_stream(g.device, SHL_STREAM_COMPUTE);
    for (const char *const *isa = shl_cpu_isas(); *isa != NULL; isa++) {
        g.device->op_table = shl_cpu_op_table_isa(*isa);
        for (size_t i = 0; i < n && g.device->op_table != NULL; i++) {
            g.group = groups[i];
            fn(&g);
            release(&g);
        }
    }
    assert_int_equal(shl_device_close(&g.device), SHL_OK);
    shl_golden_close(g.file);
}

static void
check_layernorm(golden *g)
{
    shl_tensor x = input(g, "x"), w = input(g, "w"), b = input(g, "b"), dy = input(g, "dy");
    shl_tensor y = like(g, &x), dx = like(g, &x), dw = like(g, &w), db = like(g, &w);
    shl_tensor mean = room(g, SHL_F32, 1, x.dims[0]), rstd = room(g, SHL_F32, 1, x.dims[0]);
    shl_layernorm_args a = {.x = x,
                            .w = w,
                            .b = b,
                            .y = y,
                            .mean = mean,
                            .rstd = rstd,
                            .dy = dy,
                            .dx = dx,
                            .dw = dw,
                            .db = db,
                            .eps = (float)shl_golden_real(g->file, g->group, "eps")};
    /* A mean near 1000 is saved to one part in 2^24, 3e-5 of the spread. */
    double tolerance = strstr(g->group, "offset") != NULL ? 1e-4 : 3e-6;
    assert_int_equal(shl_op_layernorm_forward(g->s, &a), SHL_OK);
    assert_int_equal(shl_op_layernorm_backward(g->s, &a), SHL_OK);
    expect_tensor(g, "y", &y, tolerance);
    expect_tensor(g, "mean", &mean, 1e-6);
    expect_tensor(g, "rstd", &rstd, 2e-6);
    expect_tensor(g, "dx", &dx, tolerance);
    expect_tensor(g, "dw", &dw, tolerance);
    expect_tensor(g, "db", &db, 3e-6);
}

static void
test_ops_golden_layernorm(void **state)
{
    static const char *const groups[] = {"/layernorm/plain", "/layernorm/offset",
                                         "/layernorm/small"};
    (void)state;
    on_every_isa(groups, SHL_ARRAY_LEN(groups), check_layernorm);
}

static void
check_gelu(golden *g)
{
    shl_tensor x = input(g, "x"), dy = input(g, "dy"), y = like(g, &x), dx = like(g, &x);
    shl_gelu_args a = {.x = x, .y = y, .dy = dy, .dx = dx};
    assert_int_equal(shl_op_gelu_forward(g->s, &a), SHL_OK);
    assert_int_equal(shl_op_gelu_backward(g->s, &a), SHL_OK);
    /* The file holds values up to 1e4: compare element by element, not with the largest. */
    double *want_y = shl_golden_f64(g->file, path_of(g, "y"), NULL);
    double *want_dx = shl_golden_f64(g->file, path_of(g, "dx"), NULL);
    const float *got_y = y.data, *got_dx = dx.data, *got_dy = dy.data;
    for (int64_t i = 0; i < shl_tensor_elems(&x); i++) {
        double error_y = fabs((double)got_y[i] - want_y[i]);
        double error_dx = fabs((double)got_dx[i] - want_dx[i]);
        assert_true(error_y <= 1e-6 * fabs(want_y[i]) + 1e-15);
        assert_true(error_dx <= 1e-6 * (fabs((double)got_dy[i]) + fabs(want_dx[i])));
    }
    shl_heap_free(&want_y);
    shl_heap_free(&want_dx);
}

static void
test_ops_golden_gelu(void **state)
{
    static const char *const groups[] = {"/gelu_tanh"};
    (void)state;
    on_every_isa(groups, SHL_ARRAY_LEN(groups), check_gelu);
}

static void
check_linear(golden *g)
{
    shl_tensor x = input(g, "input"), w = input(g, "weight"), b = input(g, "bias");
    shl_tensor dy = input(g, "dy"), y = like(g, &dy), dx = like(g, &x), dw = like(g, &w),
               db = like(g, &b);
    shl_linear_args a = {.x = x,
                         .w = w,
                         .b = b,
                         .y = y,
                         .dy = dy,
                         .dx = dx,
                         .dw = dw,
                         .db = db,
                         .order = strcmp(g->group, "/linear") == 0 ? SHL_WEIGHT_OI : SHL_WEIGHT_IO};
    assert_int_equal(shl_op_linear_forward(g->s, &a), SHL_OK);
    assert_int_equal(shl_op_linear_backward_input(g->s, &a), SHL_OK);
    assert_int_equal(shl_op_linear_backward_weight(g->s, &a), SHL_OK);
    expect_tensor(g, "y", &y, 3e-6);
    expect_tensor(g, "dinput", &dx, 3e-6);
    expect_tensor(g, "dweight", &dw, 3e-6);
    expect_tensor(g, "dbias", &db, 3e-6);
}

static void
test_ops_golden_linear(void **state)
{
    static const char *const groups[] = {"/linear", "/conv1d"};
    (void)state;
    on_every_isa(groups, SHL_ARRAY_LEN(groups), check_linear);
}

/* [B, H, T, D] of the file <-> [B, T, H, D] of the op. */
static void
swap_heads(const float *from, float *to, const hsize_t n[4], bool to_op)
{
    for (hsize_t b = 0; b < n[0]; b++) {
        for (hsize_t h = 0; h < n[1]; h++) {
            for (hsize_t t = 0; t < n[2]; t++) {
                hsize_t file = ((b * n[1] + h) * n[2] + t) * n[3];
                hsize_t op = ((b * n[2] + t) * n[1] + h) * n[3];
                memcpy(to + (to_op ? op : file), from + (to_op ? file : op), n[3] * sizeof(float));
            }
        }
    }
}

static shl_tensor
input_heads(golden *g, const char *name, hsize_t dims[4])
{
    assert_int_equal(dims_of(g, name, dims), 4);
    shl_tensor raw = input(g, name), t = like(g, &raw);
    swap_heads(raw.data, t.data, dims, true);
    return t;
}

static void
expect_heads(golden *g, const char *name, const shl_tensor *t, double tolerance)
{
    hsize_t dims[4];
    assert_int_equal(dims_of(g, name, dims), 4);
    shl_tensor raw = like(g, t);
    swap_heads(t->data, raw.data, dims, false);
    expect_tensor(g, name, &raw, tolerance);
}

static void
check_attention(golden *g)
{
    hsize_t nq[4], nk[4];
    shl_tensor q = input_heads(g, "q", nq), k = input_heads(g, "k", nk),
               v = input_heads(g, "v", nk);
    shl_tensor y = like(g, &q), lse = room(g, SHL_F32, 1, (int64_t)(nq[0] * nq[1] * nq[2]));
    shl_attention_args a = {.q = q.data,
                            .k = k.data,
                            .v = v.data,
                            .y = y.data,
                            .lse = lse.data,
                            .q_stride = (int64_t)(nq[1] * nq[3]),
                            .kv_stride = (int64_t)(nk[1] * nk[3]),
                            .batch = (int64_t)nq[0],
                            .seq = (int64_t)nq[2],
                            .heads = (int64_t)nq[1],
                            .kv_heads = (int64_t)nk[1],
                            .head_dim = (int64_t)nq[3],
                            .scale = (float)shl_golden_real(g->file, g->group, "scale"),
                            .dtype = SHL_F32};
    /* Scores of hundreds carry their rounding, 3e-5 each, into the weights. */
    double tolerance = strstr(g->group, "large") != NULL ? 3e-4 : 5e-6;
    assert_int_equal(shl_op_attention_forward(g->s, &a), SHL_OK);
    expect_heads(g, "y", &y, tolerance);
    expect(g, "lse", lse.data, shl_tensor_elems(&lse), 1e-6);
    shl_tensor dy = input_heads(g, "dy", nq), dq = like(g, &q), dk = like(g, &k), dv = like(g, &v);
    a.dy = dy.data;
    a.dq = dq.data;
    a.dk = dk.data;
    a.dv = dv.data;
    assert_int_equal(shl_op_attention_backward(g->s, &a), SHL_OK);
    expect_heads(g, "dq", &dq, tolerance);
    expect_heads(g, "dk", &dk, tolerance);
    expect_heads(g, "dv", &dv, tolerance);
}

static void
test_ops_golden_attention(void **state)
{
    static const char *const groups[] = {"/attention/mha", "/attention/gqa", "/attention/mqa",
                                         "/attention/one_token", "/attention/large_scores"};
    (void)state;
    on_every_isa(groups, SHL_ARRAY_LEN(groups), check_attention);
}

static void
check_cross_entropy(golden *g)
{
    shl_tensor logits = input(g, "logits"), target = input_i32(g, "target");
    shl_tensor sum = room(g, SHL_F64, 1, 1);
    double count = (double)shl_golden_int(g->file, g->group, "count");
    assert_int_equal(shl_golden_int(g->file, g->group, "ignore_index"), SHL_IGNORE_INDEX);
    shl_cross_entropy_args a = {.logits = logits,
                                .targets = target,
                                .loss_sum = sum,
                                .dloss = (float)(1.0 / count),
                                .want_grad = true};
    assert_int_equal(shl_op_cross_entropy(g->s, &a), SHL_OK);
    float loss = (float)(*(double *)sum.data / count);
    expect(g, "loss", &loss, 1, 1e-6);
    expect_tensor(g, "dlogits", &logits, 3e-6);
}

static void
test_ops_golden_cross_entropy(void **state)
{
    static const char *const groups[] = {"/cross_entropy/plain", "/cross_entropy/ignored",
                                         "/cross_entropy/large_offset",
                                         "/cross_entropy/large_spread"};
    (void)state;
    on_every_isa(groups, SHL_ARRAY_LEN(groups), check_cross_entropy);
}

static void
check_embedding(golden *g)
{
    shl_tensor weight = input(g, "weight"), tokens = input_i32(g, "tokens"), dy = input(g, "dy");
    shl_tensor y = like(g, &dy), dweight = like(g, &weight);
    shl_embedding_args a = {.tokens = tokens,
                            .wte = weight,
                            .y = y,
                            .dy = dy,
                            .dwte = dweight,
                            .seq = shl_tensor_elems(&tokens)};
    assert_int_equal(shl_op_embedding_forward(g->s, &a), SHL_OK);
    assert_int_equal(shl_op_embedding_backward(g->s, &a), SHL_OK);
    expect_tensor(g, "y", &y, 0.0);
    expect_tensor(g, "dweight", &dweight, 3e-6);
}

static void
test_ops_golden_embedding(void **state)
{
    static const char *const groups[] = {"/embedding"};
    (void)state;
    on_every_isa(groups, SHL_ARRAY_LEN(groups), check_embedding);
}

/* `grad` is unscaled already; scaled by the loss scale it must give the same step. */
static void
check_adamw(golden *g)
{
    for (int scaled = 0; scaled < 2; scaled++) {
        double scale = scaled == 1 ? shl_golden_real(g->file, g->group, "loss_scale") : 1.0;
        shl_tensor p = input(g, "master"), grad = input(g, "grad");
        shl_tensor m = input(g, "exp_avg"), v = input(g, "exp_avg_sq");
        shl_scale_args up = {.x = grad, .factor = (float)scale};
        shl_adamw_args a = {.param = p,
                            .grad = grad,
                            .m = m,
                            .v = v,
                            .lr = shl_golden_real(g->file, g->group, "lr"),
                            .beta1 = shl_golden_real(g->file, g->group, "beta1"),
                            .beta2 = shl_golden_real(g->file, g->group, "beta2"),
                            .eps = shl_golden_real(g->file, g->group, "eps"),
                            .weight_decay = shl_golden_real(g->file, g->group, "weight_decay"),
                            .grad_scale = 1.0 / scale,
                            .step = shl_golden_int(g->file, g->group, "step")};
        assert_int_equal(shl_op_scale(g->s, &up), SHL_OK);
        assert_int_equal(shl_op_adamw(g->s, &a), SHL_OK);
        expect_tensor(g, "f64/master", &p, 5e-7);
        expect_tensor(g, "f64/exp_avg", &m, 5e-7);
        expect_tensor(g, "f64/exp_avg_sq", &v, 5e-7);
        release(g);
    }
}

static void
test_ops_golden_adamw(void **state)
{
    static const char *const groups[] = {"/adamw/first_step", "/adamw/bf16", "/adamw/bf16_no_decay",
                                         "/adamw/fp16_scaled"};
    (void)state;
    on_every_isa(groups, SHL_ARRAY_LEN(groups), check_adamw);
}

/* sqrt of the integer sum of both passes over the gradients; 60 bits below the largest square. */
static void
check_global_norm(golden *g)
{
    shl_tensor max = room(g, SHL_I32, 1, 1), sum = room(g, SHL_I64, 1, 2);
    shl_norm_args a = {.out_max = max, .out_sum = sum};
    char name[16] = "grad_0";
    assert_true(shl_golden_has(g->file, path_of(g, name)));
    for (int pass = 0; pass < 2; pass++) {
        name[5] = '0';
        for (; shl_golden_has(g->file, path_of(g, name)); name[5]++) {
            a.x = input(g, name);
            assert_int_equal(pass == 0 ? shl_op_norm_max(g->s, &a) : shl_op_norm_sum(g->s, &a),
                             SHL_OK);
        }
        int exponent = (*(int32_t *)max.data >> 23) - 126; /* |x| < 2^exponent */
        a.quantum_log2 = 2 * exponent - 60;
    }
    const uint64_t *words = sum.data;
    double total = ldexp((double)words[1], 64) + (double)words[0];
    double norm = sqrt(ldexp(total, a.quantum_log2));
    double *want = shl_golden_f64(g->file, path_of(g, "norm"), NULL);
    assert_true(fabs(norm - want[0]) <= 1e-12 * want[0]);
    shl_heap_free(&want);
}

static void
test_ops_golden_global_norm(void **state)
{
    static const char *const groups[] = {"/global_norm/plain", "/global_norm/tiny",
                                         "/global_norm/huge"};
    (void)state;
    on_every_isa(groups, SHL_ARRAY_LEN(groups), check_global_norm);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ops_golden_layernorm),
        cmocka_unit_test(test_ops_golden_gelu),
        cmocka_unit_test(test_ops_golden_linear),
        cmocka_unit_test(test_ops_golden_attention),
        cmocka_unit_test(test_ops_golden_cross_entropy),
        cmocka_unit_test(test_ops_golden_embedding),
        cmocka_unit_test(test_ops_golden_adamw),
        cmocka_unit_test(test_ops_golden_global_norm),
    };
    return cmocka_run_group_tests_name("ops_golden", tests, NULL, NULL);
}

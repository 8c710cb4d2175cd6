/* tests/kernels/ops: the ops against golden values of another implementation (ops.h5): every size
 * and constant is read from the file; every instruction set that this CPU has. */
#include "tests/kernels/ops/golden_group.h"

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
    float *got_y = host_copy(g, &y), *got_dx = host_copy(g, &dx), *got_dy = host_copy(g, &dy);
    for (int64_t i = 0; i < shl_tensor_elems(&x); i++) {
        double error_y = fabs((double)got_y[i] - want_y[i]);
        double error_dx = fabs((double)got_dx[i] - want_dx[i]);
        assert_true(error_y <= 1e-6 * fabs(want_y[i]) + 1e-15);
        assert_true(error_dx <= 1e-6 * (fabs((double)got_dy[i]) + fabs(want_dx[i])));
    }
    shl_heap_free(&want_y);
    shl_heap_free(&want_dx);
    shl_heap_free(&got_y);
    shl_heap_free(&got_dx);
    shl_heap_free(&got_dy);
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
    expect_tensor(g, "lse", &lse, 1e-6);
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
    double total = 0.0;
    assert_int_equal(shl_device_download(g->device, &total, sum.data, sizeof(total)), SHL_OK);
    float loss = (float)(total / count);
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
        int32_t bits = 0;
        assert_int_equal(shl_device_download(g->device, &bits, max.data, sizeof(bits)), SHL_OK);
        int exponent = (bits >> 23) - 126; /* |x| < 2^exponent */
        a.quantum_log2 = 2 * exponent - 60;
    }
    uint64_t words[2] = {0, 0};
    assert_int_equal(shl_device_download(g->device, words, sum.data, sizeof(words)), SHL_OK);
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

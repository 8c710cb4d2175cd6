/* tests/kernels/ops: rmsnorm, rotary embedding and the gated MLP against golden values of another
 * implementation (ops.h5): sizes and constants from the file, every instruction set of this CPU. */
#include "tests/kernels/ops/golden_group.h"

static void
check_rmsnorm(golden *g)
{
    shl_tensor x = input(g, "x"), w = input(g, "w"), dy = input(g, "dy");
    shl_tensor y = like(g, &x), dx = like(g, &x), dw = like(g, &w);
    shl_tensor rstd = room(g, SHL_F32, 1, x.dims[0]);
    shl_rmsnorm_args a = {.x = x,
                          .w = w,
                          .y = y,
                          .rstd = rstd,
                          .dy = dy,
                          .dx = dx,
                          .dw = dw,
                          .eps = (float)shl_golden_real(g->file, g->group, "eps")};
    assert_int_equal(shl_op_rmsnorm_forward(g->s, &a), SHL_OK);
    assert_int_equal(shl_op_rmsnorm_backward(g->s, &a), SHL_OK);
    expect_tensor(g, "y", &y, 3e-6);
    expect_tensor(g, "rstd", &rstd, 2e-6);
    expect_tensor(g, "dx", &dx, 3e-6);
    expect_tensor(g, "dw", &dw, 3e-6);
}

static void
test_ops_golden_rmsnorm(void **state)
{
    static const char *const groups[] = {"/rmsnorm/plain", "/rmsnorm/offset", "/rmsnorm/small"};
    (void)state;
    on_every_isa(groups, SHL_ARRAY_LEN(groups), check_rmsnorm);
}

static void
check_rope(golden *g)
{
    hsize_t n[4];
    shl_tensor x = input_heads(g, "x", n), dy = input_heads(g, "dy", n);
    shl_rope_args a = {.q = x.data,
                       .q_stride = (int64_t)(n[1] * n[3]),
                       .rows = (int64_t)(n[0] * n[2]),
                       .seq = (int64_t)n[2],
                       .first_position = shl_golden_int(g->file, g->group, "first_position"),
                       .heads = (int64_t)n[1],
                       .head_dim = (int64_t)n[3],
                       .theta = shl_golden_real(g->file, g->group, "theta"),
                       .dtype = SHL_F32};
    assert_int_equal(shl_op_rope(g->s, &a), SHL_OK);
    a.q = dy.data;
    a.inverse = true;
    assert_int_equal(shl_op_rope(g->s, &a), SHL_OK);
    expect_heads(g, "y", &x, 2e-6);
    expect_heads(g, "dx", &dy, 2e-6);
    size_t pairs = 0;
    double *freq = shl_golden_f64(g->file, path_of(g, "inv_freq"), &pairs);
    assert_int_equal(2 * pairs, n[3]);
    for (size_t i = 0; i < pairs; i++) {
        double ours = shl_rope_inv_freq(a.theta, &a.scaling, a.head_dim, (int64_t)i);
        assert_true(fabs(ours - freq[i]) <= 1e-14 * freq[i]);
    }
    shl_heap_free(&freq);
}

static void
test_ops_golden_rope(void **state)
{
    static const char *const groups[] = {"/rope/from_zero", "/rope/offset"};
    (void)state;
    on_every_isa(groups, SHL_ARRAY_LEN(groups), check_rope);
}

/* Element by element: the file holds values up to 1e4. */
static void
check_silu_mul(golden *g)
{
    shl_tensor gate = input(g, "gate"), up = input(g, "up"), dy = input(g, "dy");
    shl_tensor y = like(g, &gate), dgate = like(g, &gate), dup = like(g, &gate);
    int64_t n = shl_tensor_elems(&gate);
    shl_silu_mul_args a = {.gate = gate.data,
                           .up = up.data,
                           .y = y.data,
                           .dy = dy.data,
                           .dgate = dgate.data,
                           .dup = dup.data,
                           .rows = 1,
                           .cols = n,
                           .stride = n,
                           .dtype = SHL_F32};
    assert_int_equal(shl_op_silu_mul_forward(g->s, &a), SHL_OK);
    assert_int_equal(shl_op_silu_mul_backward(g->s, &a), SHL_OK);
    static const char *const names[] = {"y", "dgate", "dup"};
    float *got[] = {host_copy(g, &y), host_copy(g, &dgate), host_copy(g, &dup)};
    float *u = host_copy(g, &up), *d = host_copy(g, &dy);
    for (int k = 0; k < 3; k++) {
        double *want = shl_golden_f64(g->file, path_of(g, names[k]), NULL);
        for (int64_t i = 0; i < n; i++) {
            /* The slope of the gate is a sum of terms of order one. */
            double size = k == 1 ? fabs((double)d[i] * (double)u[i]) : 0.0;
            double error = fabs((double)got[k][i] - want[i]);
            assert_true(error <= 1e-6 * (fabs(want[i]) + size) + 1e-15);
        }
        shl_heap_free(&want);
        shl_heap_free(&got[k]);
    }
    shl_heap_free(&u);
    shl_heap_free(&d);
}

static void
test_ops_golden_silu_mul(void **state)
{
    static const char *const groups[] = {"/silu_mul"};
    (void)state;
    on_every_isa(groups, SHL_ARRAY_LEN(groups), check_silu_mul);
}

/* gate and up come from one product each; the gradient of x is the sum of both. */
static void
check_swiglu_mlp(golden *g)
{
    shl_tensor x = input(g, "x"), wg = input(g, "w_gate"), wu = input(g, "w_up"),
               wd = input(g, "w_down"), dy = input(g, "dy");
    int64_t rows = x.dims[0], inner = wg.dims[0];
    shl_tensor gate = room(g, SHL_F32, rows, inner), up = like(g, &gate), hidden = like(g, &gate);
    shl_tensor dhidden = like(g, &gate), y = like(g, &dy), dx = like(g, &x);
    shl_tensor dwg = like(g, &wg), dwu = like(g, &wu), dwd = like(g, &wd);
    shl_linear_args lg = {.x = x, .w = wg, .y = gate, .dx = dx, .dw = dwg, .order = SHL_WEIGHT_OI};
    shl_linear_args lu = {.x = x, .w = wu, .y = up, .dx = dx, .dw = dwu, .order = SHL_WEIGHT_OI};
    shl_linear_args ld = {
        .x = hidden, .w = wd, .y = y, .dy = dy, .dx = dhidden, .dw = dwd, .order = SHL_WEIGHT_OI};
    shl_silu_mul_args a = {.gate = gate.data,
                           .up = up.data,
                           .y = hidden.data,
                           .dy = dhidden.data,
                           .dgate = gate.data,
                           .dup = up.data,
                           .rows = rows,
                           .cols = inner,
                           .stride = inner,
                           .dtype = SHL_F32};
    assert_int_equal(shl_op_linear_forward(g->s, &lg), SHL_OK);
    assert_int_equal(shl_op_linear_forward(g->s, &lu), SHL_OK);
    assert_int_equal(shl_op_silu_mul_forward(g->s, &a), SHL_OK);
    assert_int_equal(shl_op_linear_forward(g->s, &ld), SHL_OK);
    expect_tensor(g, "gate", &gate, 3e-6);
    expect_tensor(g, "up", &up, 3e-6);
    expect_tensor(g, "hidden", &hidden, 3e-6);
    expect_tensor(g, "y", &y, 3e-6);
    assert_int_equal(shl_op_linear_backward_weight(g->s, &ld), SHL_OK);
    assert_int_equal(shl_op_linear_backward_input(g->s, &ld), SHL_OK);
    assert_int_equal(shl_op_silu_mul_backward(g->s, &a), SHL_OK);
    lg.dy = gate;
    lu.dy = up;
    lg.accumulate_dx = true;
    assert_int_equal(shl_op_linear_backward_weight(g->s, &lu), SHL_OK);
    assert_int_equal(shl_op_linear_backward_input(g->s, &lu), SHL_OK);
    assert_int_equal(shl_op_linear_backward_weight(g->s, &lg), SHL_OK);
    assert_int_equal(shl_op_linear_backward_input(g->s, &lg), SHL_OK);
    expect_tensor(g, "dx", &dx, 3e-6);
    expect_tensor(g, "dw_gate", &dwg, 3e-6);
    expect_tensor(g, "dw_up", &dwu, 3e-6);
    expect_tensor(g, "dw_down", &dwd, 3e-6);
}

static void
test_ops_golden_swiglu_mlp(void **state)
{
    static const char *const groups[] = {"/swiglu_mlp"};
    (void)state;
    on_every_isa(groups, SHL_ARRAY_LEN(groups), check_swiglu_mlp);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ops_golden_rmsnorm),
        cmocka_unit_test(test_ops_golden_rope),
        cmocka_unit_test(test_ops_golden_silu_mul),
        cmocka_unit_test(test_ops_golden_swiglu_mlp),
    };
    return cmocka_run_group_tests_name("ops_golden_llama", tests, NULL, NULL);
}

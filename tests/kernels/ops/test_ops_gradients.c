/* tests/kernels/ops: the references that the op cases compare with, against finite differences of
 * their own forward passes: d/dx sum(dy y) by central differences in double. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "kernels/base/rng.h"
#include "kernels/ops/op_reference.h"

#define SEED 7u
#define MAX 4096

static void
draw(double *x, int64_t n, const char *name)
{
    assert_true(n <= MAX);
    for (int64_t i = 0; i < n; i++) {
        x[i] = (double)shl_rng_normal(SEED, shl_rng_stream(name), (uint64_t)i);
    }
}

/* What is differentiated: a scalar of a caller's state, of which x[0..n) is a part. */
typedef double (*loss_fn)(void *state);

/* Every gradient[i] is d loss / d x[i]. Steps of 1e-5 leave an error near 1e-10 of the curvature and
 * 1e-11 of rounding. */
static void
check_gradient(loss_fn loss, void *state, double *x, const double *gradient, int64_t n,
               const char *name)
{
    const double step = 1e-5;
    for (int64_t i = 0; i < n; i++) {
        double kept = x[i];
        x[i] = kept + step;
        double up = loss(state);
        x[i] = kept - step;
        double down = loss(state);
        x[i] = kept;
        double want = (up - down) / (2.0 * step);
        double error = fabs(want - gradient[i]) / (1.0 + fabs(want));
        if (!(error < 1e-7)) {
            print_error("%s[%ld]: %.12g, finite difference %.12g\n", name, (long)i, gradient[i],
                        want);
        }
        assert_true(error < 1e-7);
    }
}

static double
weighted(const double *y, const double *dy, int64_t n)
{
    double sum = 0.0;
    for (int64_t i = 0; i < n; i++) {
        sum += y[i] * dy[i];
    }
    return sum;
}

typedef struct linear_state {
    shl_ref_linear l;
    double x[MAX], w[MAX], b[MAX], y[MAX], dy[MAX], dx[MAX], dw[MAX], db[MAX];
} linear_state;

static double
linear_loss(void *state)
{
    linear_state *t = state;
    shl_ref_linear_forward(&t->l, t->x, t->w, t->b, t->y);
    return weighted(t->y, t->dy, t->l.rows * t->l.out);
}

static void
test_gradients_linear(void **state)
{
    static linear_state t;
    (void)state;
    for (int order = 0; order < 2; order++) {
        memset(&t, 0, sizeof(t));
        t.l = (shl_ref_linear){5, 7, 6, order == 0 ? SHL_WEIGHT_IO : SHL_WEIGHT_OI};
        draw(t.x, 35, "x");
        draw(t.w, 42, "w");
        draw(t.b, 6, "b");
        draw(t.dy, 30, "dy");
        shl_ref_linear_backward(&t.l, t.x, t.w, t.dy, t.dx, t.dw, t.db);
        check_gradient(linear_loss, &t, t.x, t.dx, 35, "linear dx");
        check_gradient(linear_loss, &t, t.w, t.dw, 42, "linear dw");
        check_gradient(linear_loss, &t, t.b, t.db, 6, "linear db");
    }
}

typedef struct norm_state {
    int64_t rows, cols;
    double x[MAX], w[MAX], b[MAX], y[MAX], dy[MAX], mean[MAX], rstd[MAX], dx[MAX], dw[MAX], db[MAX];
} norm_state;

static double
norm_loss(void *state)
{
    norm_state *t = state;
    shl_ref_layernorm_forward(t->rows, t->cols, 1e-5, t->x, t->w, t->b, t->y, t->mean, t->rstd);
    return weighted(t->y, t->dy, t->rows * t->cols);
}

static void
test_gradients_layernorm(void **state)
{
    static norm_state t = {.rows = 4, .cols = 9};
    (void)state;
    draw(t.x, 36, "x");
    draw(t.w, 9, "w");
    draw(t.b, 9, "b");
    draw(t.dy, 36, "dy");
    (void)norm_loss(&t);
    shl_ref_layernorm_backward(t.rows, t.cols, t.x, t.w, t.mean, t.rstd, t.dy, t.dx, t.dw, t.db);
    check_gradient(norm_loss, &t, t.x, t.dx, 36, "layernorm dx");
    check_gradient(norm_loss, &t, t.w, t.dw, 9, "layernorm dw");
    check_gradient(norm_loss, &t, t.b, t.db, 9, "layernorm db");
}

static double
rmsnorm_loss(void *state)
{
    norm_state *t = state;
    shl_ref_rmsnorm_forward(t->rows, t->cols, 1e-5, t->x, t->w, t->y, t->rstd);
    return weighted(t->y, t->dy, t->rows * t->cols);
}

static void
test_gradients_rmsnorm(void **state)
{
    static norm_state t = {.rows = 4, .cols = 9};
    (void)state;
    draw(t.x, 36, "x");
    draw(t.w, 9, "w");
    draw(t.dy, 36, "dy");
    (void)rmsnorm_loss(&t);
    shl_ref_rmsnorm_backward(t.rows, t.cols, t.x, t.w, t.rstd, t.dy, t.dx, t.dw);
    check_gradient(rmsnorm_loss, &t, t.x, t.dx, 36, "rmsnorm dx");
    check_gradient(rmsnorm_loss, &t, t.w, t.dw, 9, "rmsnorm dw");
}

/* The gradient of a rotation is the inverse one, of dy. */
typedef struct rope_state {
    shl_rope_args a;
    double x[MAX], y[MAX], dy[MAX], dx[MAX];
} rope_state;

static double
rope_loss(void *state)
{
    rope_state *t = state;
    int64_t n = t->a.rows * t->a.q_stride;
    memcpy(t->y, t->x, (size_t)n * sizeof(double));
    shl_ref_rope(&t->a, t->a.heads, t->a.q_stride, t->y);
    return weighted(t->y, t->dy, n);
}

static void
test_gradients_rope(void **state)
{
    static const shl_rope_scaling scalings[] = {
        {0}, {SHL_ROPE_LINEAR, 4.0, 0.0, 0.0, 0}, {SHL_ROPE_LLAMA3, 8.0, 1.0, 4.0, 64}};
    static rope_state t;
    (void)state;
    for (size_t i = 0; i < SHL_ARRAY_LEN(scalings); i++) {
        t.a = (shl_rope_args){.q_stride = 14,
                              .rows = 6,
                              .seq = 3,
                              .first_position = 90,
                              .heads = 2,
                              .head_dim = 6,
                              .theta = 100.0,
                              .scaling = scalings[i]};
        draw(t.x, 84, "x");
        draw(t.dy, 84, "dy");
        memcpy(t.dx, t.dy, sizeof(t.dx));
        shl_rope_args inverse = t.a;
        inverse.inverse = true;
        shl_ref_rope(&inverse, 2, 14, t.dx);
        check_gradient(rope_loss, &t, t.x, t.dx, 84, "rope dx");
    }
}

static double
silu_loss(void *state)
{
    return shl_ref_silu(*(double *)state);
}

static void
test_gradients_silu(void **state)
{
    (void)state;
    for (double at = -30.0; at <= 30.0; at += 0.77) {
        double x = at, slope = shl_ref_silu_slope(at);
        check_gradient(silu_loss, &x, &x, &slope, 1, "silu");
    }
}

static double
gelu_loss(void *state)
{
    return shl_ref_gelu(*(double *)state);
}

static void
test_gradients_gelu(void **state)
{
    (void)state;
    for (double at = -8.0; at <= 8.0; at += 0.37) {
        double x = at, slope = shl_ref_gelu_slope(at);
        check_gradient(gelu_loss, &x, &x, &slope, 1, "gelu");
    }
}

/* q, k, v in one array, as a model passes them. */
typedef struct attention_state {
    shl_attention_args a;
    int64_t at_k, at_v, n_qkv, n_y;
    double qkv[MAX], y[MAX], lse[MAX], dy[MAX], dqkv[MAX];
} attention_state;

static double
attention_loss(void *state)
{
    attention_state *t = state;
    shl_ref_attention_forward(&t->a, t->qkv, t->qkv + t->at_k, t->qkv + t->at_v, t->y, t->lse);
    return weighted(t->y, t->dy, t->n_y);
}

static void
test_gradients_attention(void **state)
{
    static const int64_t shapes[][5] = {{2, 5, 2, 2, 3}, {1, 6, 4, 2, 4}, {2, 1, 3, 1, 5}};
    static attention_state t;
    (void)state;
    for (size_t i = 0; i < SHL_ARRAY_LEN(shapes); i++) {
        const int64_t *n = shapes[i];
        int64_t stride = (n[2] + 2 * n[3]) * n[4];
        memset(&t, 0, sizeof(t));
        t.at_k = n[2] * n[4];
        t.at_v = t.at_k + n[3] * n[4];
        t.n_qkv = n[0] * n[1] * stride;
        t.n_y = n[0] * n[1] * n[2] * n[4];
        t.a = (shl_attention_args){.q_stride = stride,
                                   .kv_stride = stride,
                                   .batch = n[0],
                                   .seq = n[1],
                                   .heads = n[2],
                                   .kv_heads = n[3],
                                   .head_dim = n[4],
                                   .scale = 0.5f,
                                   .dropout_p = i == 1 ? 0.3 : 0.0,
                                   .dropout_seed = SEED};
        draw(t.qkv, t.n_qkv, "qkv");
        draw(t.dy, t.n_y, "dy");
        shl_ref_attention_backward(&t.a, t.qkv, t.qkv + t.at_k, t.qkv + t.at_v, t.dy, t.dqkv,
                                   t.dqkv + t.at_k, t.dqkv + t.at_v);
        check_gradient(attention_loss, &t, t.qkv, t.dqkv, t.n_qkv, "attention dqkv");
    }
}

typedef struct loss_state {
    int64_t rows, vocab;
    double logits[MAX], work[MAX], targets[8];
} loss_state;

static double
cross_entropy_loss(void *state)
{
    loss_state *t = state;
    memcpy(t->work, t->logits, (size_t)(t->rows * t->vocab) * sizeof(double));
    return 0.3 * shl_ref_cross_entropy(t->rows, t->vocab, t->targets, 0.3, t->work);
}

static void
test_gradients_cross_entropy(void **state)
{
    static loss_state t = {
        .rows = 5, .vocab = 11, .targets = {3.0, (double)SHL_IGNORE_INDEX, 0.0, 10.0, 3.0}};
    static double gradient[MAX];
    (void)state;
    draw(t.logits, 55, "logits");
    (void)cross_entropy_loss(&t);
    memcpy(gradient, t.work, sizeof(gradient));
    check_gradient(cross_entropy_loss, &t, t.logits, gradient, 55, "cross-entropy");
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gradients_linear),        cmocka_unit_test(test_gradients_layernorm),
        cmocka_unit_test(test_gradients_gelu),          cmocka_unit_test(test_gradients_attention),
        cmocka_unit_test(test_gradients_cross_entropy), cmocka_unit_test(test_gradients_rmsnorm),
        cmocka_unit_test(test_gradients_rope),          cmocka_unit_test(test_gradients_silu),
    };
    printf("seed %u\n", SEED);
    return cmocka_run_group_tests_name("ops_gradients", tests, NULL, NULL);
}

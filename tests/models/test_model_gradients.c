/* tests/models: gradients of the whole stack against finite differences, and the rules of writing
 * them: overwrite or add, ties, frozen parameters, ignored targets. */
#include "models/family.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/base/heap.h"
#include "kernels/base/rng.h"
#include "tests/support/plain_model.h"

#define SEED 20240607u
#define VOCAB 11
#define BATCH 3
#define SEQ 5
#define ROWS (BATCH * SEQ)
#define MAX_ELEMS 512

static const shl_model_config config = {
    .vocab = VOCAB, .context = 6, .layers = 2, .width = 8, .heads = 2, .tied = true};

/* Grouped heads wider than the stream, biases; scaled angles. */
static const shl_model_config llama = {.family = SHL_FAMILY_LLAMA,
                                       .vocab = VOCAB,
                                       .context = 6,
                                       .layers = 2,
                                       .width = 8,
                                       .heads = 4,
                                       .kv_heads = 2,
                                       .head_dim = 6,
                                       .inner = 10,
                                       .rope = {SHL_ROPE_LLAMA3, 4.0, 1.0, 4.0, 8},
                                       .qkv_bias = true,
                                       .tied = true};

typedef struct bench {
    shl_device *device;
    shl_model *model;
    shl_plain plain;
    shl_plain_batch batch;
    int32_t tokens[ROWS], targets[ROWS];
} bench;

/* Large random parameters, so that no gradient is near zero; every third target ignored. */
static void
bench_open(bench *b, const shl_model_config *family, bool tied)
{
    shl_device_config cfg = {.kind = "cpu", .threads = 1};
    shl_model_config shape = *family;
    shape.tied = tied;
    assert_int_equal(shl_device_open(&cfg, &b->device), SHL_OK);
    assert_int_equal(shl_model_new(&shape, &b->model), SHL_OK);
    assert_int_equal(shl_plain_open(b->device, b->model, SEED, &b->plain), SHL_OK);
    for (int i = 0; i < b->model->n_params; i++) {
        const shl_param *p = b->model->params[i];
        float values[MAX_ELEMS];
        assert_true(p->elems <= MAX_ELEMS);
        for (int64_t k = 0; k < p->elems; k++) {
            float normal = shl_rng_normal(SEED, (uint64_t)i, (uint64_t)k);
            values[k] = (float)p->init_value + 0.3F * normal;
        }
        assert_int_equal(shl_plain_set(&b->plain, i, values), SHL_OK);
    }
    for (int r = 0; r < ROWS; r++) {
        b->tokens[r] = (int32_t)(shl_rng_u64(SEED, 1000, (uint64_t)r) % VOCAB);
        b->targets[r] = (int32_t)(shl_rng_u64(SEED, 1001, (uint64_t)r) % VOCAB);
        b->targets[r] = r % 3 == 2 ? SHL_IGNORE_INDEX : b->targets[r];
    }
    assert_int_equal(shl_plain_batch_open(b->device, BATCH, SEQ, b->tokens, b->targets, &b->batch),
                     SHL_OK);
}

static void
bench_close(bench *b)
{
    shl_plain_batch_close(b->device, &b->batch);
    shl_plain_close(&b->plain);
    shl_model_free(&b->model);
    assert_int_equal(shl_device_close(&b->device), SHL_OK);
}

static void
forward_backward(bench *b)
{
    b->batch.run.want_grad = true;
    assert_int_equal(shl_model_forward(b->model, &b->batch.run), SHL_OK);
    assert_int_equal(shl_model_backward(b->model, &b->batch.run), SHL_OK);
}

/* Mean loss in evaluation. */
static double
loss_of(bench *b)
{
    const double zero = 0.0;
    double loss = 0.0;
    assert_int_equal(shl_device_upload(b->device, b->batch.loss.data, &zero, sizeof zero), SHL_OK);
    b->batch.run.want_grad = false;
    assert_int_equal(shl_model_forward(b->model, &b->batch.run), SHL_OK);
    assert_int_equal(shl_plain_loss_sum(b->device, &b->batch, &loss), SHL_OK);
    return loss * (double)b->batch.run.dloss;
}

/* Loss at param i moved by `step` along the unit vector dir. */
static double
loss_moved(bench *b, int i, const float *at, const double *dir, double step)
{
    float moved[MAX_ELEMS];
    for (int64_t k = 0; k < b->model->params[i]->elems; k++) {
        moved[k] = (float)((double)at[k] + step * dir[k]);
    }
    assert_int_equal(shl_plain_set(&b->plain, i, moved), SHL_OK);
    return loss_of(b);
}

/* Along the gradient itself the slope of the loss is the gradient's norm, and along a random vector
 * their product. Two central differences cancel the cubic term (Richardson). */
static void
check_slope(bench *b, int i, const float *at, const double *dir, double expected, double scale)
{
    const double h = 2e-2;
    double d1 = loss_moved(b, i, at, dir, h) - loss_moved(b, i, at, dir, -h);
    double d2 = loss_moved(b, i, at, dir, h / 2) - loss_moved(b, i, at, dir, -h / 2);
    double slope = (8.0 * d2 - d1) / (6.0 * h);
    if (fabs(slope - expected) > 1e-3 * scale + 1e-4) {
        fail_msg("%s: slope %.8g, gradient says %.8g", b->model->params[i]->name, slope, expected);
    }
    assert_int_equal(shl_plain_set(&b->plain, i, at), SHL_OK);
}

static void
check_param(bench *b, int i)
{
    const shl_param *p = b->model->params[i];
    float at[MAX_ELEMS], grad[MAX_ELEMS];
    double dir[MAX_ELEMS], norm = 0.0, dir_norm = 0.0, product = 0.0;
    assert_int_equal(shl_plain_get(&b->plain, i, at), SHL_OK);
    assert_int_equal(shl_plain_grad(&b->plain, i, grad), SHL_OK);
    for (int64_t k = 0; k < p->elems; k++) {
        norm += (double)grad[k] * (double)grad[k];
    }
    norm = sqrt(norm);
    assert_true(norm > 1e-3);
    for (int64_t k = 0; k < p->elems; k++) {
        dir[k] = (double)grad[k] / norm;
    }
    check_slope(b, i, at, dir, norm, norm);
    for (int64_t k = 0; k < p->elems; k++) {
        dir[k] = (double)shl_rng_normal(SEED, 5000 + (uint64_t)i, (uint64_t)k);
        dir_norm += dir[k] * dir[k];
    }
    for (int64_t k = 0; k < p->elems; k++) {
        dir[k] /= sqrt(dir_norm);
        product += dir[k] * (double)grad[k];
    }
    check_slope(b, i, at, dir, product, norm);
}

static void
check_all(const shl_model_config *family, bool tied)
{
    bench b;
    bench_open(&b, family, tied);
    forward_backward(&b);
    for (int i = 0; i < b.model->n_params; i++) {
        check_param(&b, i);
    }
    bench_close(&b);
}

static void
test_model_gradients_match_finite_differences_tied(void **state)
{
    SHL_UNUSED(state);
    print_message("seed %u\n", SEED);
    check_all(&config, true);
    check_all(&llama, true);
}

static void
test_model_gradients_match_finite_differences_untied(void **state)
{
    SHL_UNUSED(state);
    check_all(&config, false);
    check_all(&llama, false);
}

/* All gradients side by side; n_elems floats. */
static float *
all_grads(bench *b)
{
    float *out = NULL;
    assert_int_equal(shl_heap_alloc((size_t)b->model->n_elems, sizeof *out, &out), SHL_OK);
    int64_t at = 0;
    for (int i = 0; i < b->model->n_params; i++) {
        assert_int_equal(shl_plain_grad(&b->plain, i, out + at), SHL_OK);
        at += b->model->params[i]->elems;
    }
    return out;
}

static void
check_overwrite_or_add(const shl_model_config *family)
{
    bench b;
    bench_open(&b, family, true);
    forward_backward(&b);
    float *once = all_grads(&b);
    shl_plain_zero_grad(&b.plain);
    forward_backward(&b);
    float *again = all_grads(&b);
    size_t n = (size_t)b.model->n_elems;
    assert_memory_equal(once, again, n * sizeof(float));
    forward_backward(&b);
    float *twice = all_grads(&b);
    for (size_t i = 0; i < n; i++) {
        assert_true(fabsf(twice[i] - 2.0F * once[i]) <= 1e-5F + 1e-5F * fabsf(once[i]));
    }
    shl_heap_free(&once);
    shl_heap_free(&again);
    shl_heap_free(&twice);
    bench_close(&b);
}

static void
test_model_gradients_overwrite_or_add(void **state)
{
    SHL_UNUSED(state);
    check_overwrite_or_add(&config);
    check_overwrite_or_add(&llama);
}

/* One of a pair adds while the other overwrites: both come out as if alone. */
static void
check_mixed_modes_in_one_module(const shl_model_config *family)
{
    bench b;
    bench_open(&b, family, true);
    forward_backward(&b);
    float *once = all_grads(&b);
    shl_plain_zero_grad(&b.plain);
    for (int i = 0; i < b.model->n_params; i++) {
        b.model->params[i]->grad_accumulate = i % 2 == 0;
    }
    forward_backward(&b);
    float *mixed = all_grads(&b);
    int64_t at = 0;
    for (int i = 0; i < b.model->n_params; i++) {
        float factor = i % 2 == 0 ? 2.0F : 1.0F;
        for (int64_t k = 0; k < b.model->params[i]->elems; k++, at++) {
            assert_true(fabsf(mixed[at] - factor * once[at]) <= 1e-5F + 1e-5F * fabsf(once[at]));
        }
    }
    shl_heap_free(&once);
    shl_heap_free(&mixed);
    bench_close(&b);
}

static void
test_model_gradients_mixed_modes_in_one_module(void **state)
{
    SHL_UNUSED(state);
    check_mixed_modes_in_one_module(&config);
    check_mixed_modes_in_one_module(&llama);
}

/* A frozen parameter keeps its bytes; the others get the gradients they had. */
static void
check_frozen_parameters_are_left_alone(const shl_model_config *family)
{
    bench b;
    bench_open(&b, family, true);
    forward_backward(&b);
    float *full = all_grads(&b);
    for (int pick = 0; pick < 3; pick++) {
        shl_plain_zero_grad(&b.plain);
        for (int i = 0; i < b.model->n_params; i++) {
            shl_param *p = b.model->params[i];
            p->trainable = i % 3 != pick;
            assert_int_equal(
                shl_device_fill(b.device, p->grad, 0x7f, (size_t)p->elems * sizeof(float), NULL),
                SHL_OK);
        }
        forward_backward(&b);
        float *part = all_grads(&b);
        int64_t at = 0;
        for (int i = 0; i < b.model->n_params; i++) {
            size_t bytes = (size_t)b.model->params[i]->elems * sizeof(float);
            if (b.model->params[i]->trainable) {
                assert_memory_equal(part + at, full + at, bytes);
            } else {
                const unsigned char *raw = (const unsigned char *)(part + at);
                assert_int_equal(raw[0], 0x7f);
                assert_memory_equal(raw, raw + 1, bytes - 1);
                assert_false(b.model->params[i]->grad_accumulate);
            }
            at += b.model->params[i]->elems;
        }
        shl_heap_free(&part);
    }
    shl_heap_free(&full);
    bench_close(&b);
}

static void
test_model_gradients_frozen_parameters_are_left_alone(void **state)
{
    SHL_UNUSED(state);
    check_frozen_parameters_are_left_alone(&config);
    check_frozen_parameters_are_left_alone(&llama);
}

/* Whole batch = two parts whose gradients add, when both divide by the same number of targets. */
static void
check_of_parts_add_up(const shl_model_config *family)
{
    bench b;
    bench_open(&b, family, true);
    forward_backward(&b);
    float *whole = all_grads(&b);
    shl_plain_zero_grad(&b.plain);
    for (int part = 0; part < BATCH; part++) {
        shl_plain_batch piece;
        assert_int_equal(shl_plain_batch_open(b.device, 1, SEQ, b.tokens + part * SEQ,
                                              b.targets + part * SEQ, &piece),
                         SHL_OK);
        piece.run.dloss = b.batch.run.dloss;
        assert_int_equal(shl_model_forward(b.model, &piece.run), SHL_OK);
        assert_int_equal(shl_model_backward(b.model, &piece.run), SHL_OK);
        shl_plain_batch_close(b.device, &piece);
    }
    float *sum = all_grads(&b);
    for (int64_t i = 0; i < b.model->n_elems; i++) {
        assert_true(fabsf(sum[i] - whole[i]) <= 1e-5F + 1e-5F * fabsf(whole[i]));
    }
    shl_heap_free(&whole);
    shl_heap_free(&sum);
    bench_close(&b);
}

static void
test_model_gradients_of_parts_add_up(void **state)
{
    SHL_UNUSED(state);
    check_of_parts_add_up(&config);
    check_of_parts_add_up(&llama);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_model_gradients_match_finite_differences_tied),
        cmocka_unit_test(test_model_gradients_match_finite_differences_untied),
        cmocka_unit_test(test_model_gradients_overwrite_or_add),
        cmocka_unit_test(test_model_gradients_mixed_modes_in_one_module),
        cmocka_unit_test(test_model_gradients_frozen_parameters_are_left_alone),
        cmocka_unit_test(test_model_gradients_of_parts_add_up),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

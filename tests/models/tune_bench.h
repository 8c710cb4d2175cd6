/* tests/models: a small tuned model with its plain engine: values by name, losses, gradients, slopes. */
#ifndef SHL_TESTS_TUNE_BENCH_H
#define SHL_TESTS_TUNE_BENCH_H

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/base/rng.h"
#include "models/family.h"
#include "tests/support/plain_model.h"

#define SEED 20250811u
#define BATCH 2
#define SEQ 5
#define ROWS (BATCH * SEQ)
#define VOCAB 13
#define MAX_ELEMS 512

static const shl_model_config shape = {
    .vocab = VOCAB, .context = 6, .layers = 3, .width = 8, .heads = 2, .tied = true};

static const shl_model_config llama_shape = {.family = SHL_FAMILY_LLAMA,
                                             .vocab = VOCAB,
                                             .context = 6,
                                             .layers = 3,
                                             .width = 8,
                                             .inner = 12,
                                             .heads = 2,
                                             .kv_heads = 1,
                                             .qkv_bias = true,
                                             .tied = true};

typedef struct bench {
    shl_device *device;
    shl_model *model;
    shl_plain plain;
    shl_plain_batch batch;
} bench;

/* Random values by name, so that models with and without adapters share those of the base. */
static inline void
set_values(bench *b, float adapters)
{
    for (int i = 0; i < b->model->n_params; i++) {
        const shl_param *p = b->model->params[i];
        float values[MAX_ELEMS];
        bool is_b = strstr(p->name, "lora_B") != NULL;
        assert_true(p->elems <= MAX_ELEMS);
        for (int64_t k = 0; k < p->elems; k++) {
            float normal = 0.3F * shl_rng_normal(SEED, p->init_stream, (uint64_t)k);
            values[k] = (float)p->init_value + (is_b ? adapters * normal : normal);
        }
        assert_int_equal(shl_plain_set(&b->plain, i, values), SHL_OK);
    }
}

static inline void
bench_open_as(bench *b, const char *kind, const shl_tune_config *tune, const shl_model_config *as)
{
    shl_device_config cfg = {.kind = kind, .stands_for = "cpu", .threads = 1};
    int32_t tokens[ROWS], targets[ROWS];
    assert_int_equal(shl_device_open(&cfg, &b->device), SHL_OK);
    assert_int_equal(shl_model_new(as, &b->model), SHL_OK);
    assert_int_equal(shl_model_tune(b->model, tune), SHL_OK);
    assert_int_equal(shl_plain_open(b->device, b->model, SEED, &b->plain), SHL_OK);
    for (int r = 0; r < ROWS; r++) {
        tokens[r] = (int32_t)(shl_rng_u64(SEED, 1, (uint64_t)r) % VOCAB);
        targets[r] = (int32_t)(shl_rng_u64(SEED, 2, (uint64_t)r) % VOCAB);
    }
    assert_int_equal(shl_plain_batch_open(b->device, BATCH, SEQ, tokens, targets, &b->batch),
                     SHL_OK);
    if (b->device->caps.has_bytes) {
        set_values(b, 1.0F);
    }
}

static inline void
bench_open(bench *b, const char *kind, const shl_tune_config *tune)
{
    bench_open_as(b, kind, tune, &shape);
}

static inline void
bench_close(bench *b)
{
    shl_plain_batch_close(b->device, &b->batch);
    shl_plain_close(&b->plain);
    shl_model_free(&b->model);
    assert_int_equal(shl_device_close(&b->device), SHL_OK);
    shl_err_clear();
}

static inline shl_code
forward_backward(bench *b)
{
    shl_run *run = &b->batch.run;
    SHL_TRY(shl_model_forward(b->model, run));
    return shl_model_backward(b->model, run);
}

static inline size_t
act_now(const bench *b)
{
    return shl_ledger_get(b->device->ledger, SHL_TIER_DEVICE)->now_tag_bytes[SHL_TAG_ACT];
}

/* Sum of losses since the last call, in training or in evaluation. */
static inline double
loss_of(bench *b, bool train)
{
    const double zero = 0.0;
    double loss = 0.0;
    assert_int_equal(shl_device_upload(b->device, b->batch.loss.data, &zero, sizeof zero), SHL_OK);
    b->batch.run.want_grad = train;
    assert_int_equal(train ? forward_backward(b) : shl_model_forward(b->model, &b->batch.run),
                     SHL_OK);
    assert_int_equal(shl_plain_loss_sum(b->device, &b->batch, &loss), SHL_OK);
    assert_int_equal(b->batch.tape.n, 0);
    assert_int_equal(act_now(b), 0);
    return loss;
}

static inline void
grad_of(const bench *b, const char *name, float *out)
{
    const shl_param *p = shl_model_param(b->model, name);
    assert_non_null(p);
    assert_int_equal(shl_plain_grad(&b->plain, p->index, out), SHL_OK);
}

/* The loss along direction dir at parameter i, moved by step. */
static inline double
moved(bench *b, int i, const float *at, const double *dir, double step, bool train)
{
    float x[MAX_ELEMS];
    for (int64_t k = 0; k < b->model->params[i]->elems; k++) {
        x[k] = (float)((double)at[k] + step * dir[k]);
    }
    assert_int_equal(shl_plain_set(&b->plain, i, x), SHL_OK);
    return loss_of(b, train) * (double)b->batch.run.dloss;
}

/* Along the gradient itself, and along a random vector (see test_model_gradients.c). */
static inline void
check_slope(bench *b, int i, bool random, bool train)
{
    const double h = 5e-3;
    int64_t n = b->model->params[i]->elems;
    float at[MAX_ELEMS], grad[MAX_ELEMS];
    double dir[MAX_ELEMS] = {0}, len = 0.0, norm = 0.0, want = 0.0;
    assert_int_equal(shl_plain_get(&b->plain, i, at), SHL_OK);
    grad_of(b, b->model->params[i]->name, grad);
    for (int64_t k = 0; k < n; k++) {
        dir[k] =
            random ? (double)shl_rng_normal(SEED, 77 + (uint64_t)i, (uint64_t)k) : (double)grad[k];
        len += dir[k] * dir[k];
        norm += (double)grad[k] * (double)grad[k];
    }
    assert_true(norm > 1e-8);
    for (int64_t k = 0; k < n; k++) {
        dir[k] /= sqrt(len);
        want += dir[k] * (double)grad[k];
    }
    double d1 = moved(b, i, at, dir, h, train) - moved(b, i, at, dir, -h, train);
    double d2 = moved(b, i, at, dir, h / 2, train) - moved(b, i, at, dir, -h / 2, train);
    double slope = (8.0 * d2 - d1) / (6.0 * h);
    if (fabs(slope - want) > 1e-3 * sqrt(norm) + 1e-4) {
        fail_msg("%s: slope %.8g, gradient says %.8g", b->model->params[i]->name, slope, want);
    }
    assert_int_equal(shl_plain_set(&b->plain, i, at), SHL_OK);
}

#endif

/* tests/models: one rank against PyTorch's numbers for step 0: logits, losses, every gradient.
 * Names, sizes, batches and settings come from the files; tolerances are those the files' notes
 * suggest for a float32 program with its own order of summation, against the float64 values. */
#include "models/family.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/base/heap.h"
#include "kernels/base/str.h"
#include "tests/support/golden_model.h"
#include "tests/support/plain_model.h"

#define LOSS_TOL 2e-6
#define LOGITS_TOL 2e-5
#define GRAD_TOL 1e-5
#define NORM_TOL 5e-6

typedef struct bench {
    hid_t file;
    shl_model_config cfg;
    int64_t sequences, seq;
    shl_device *device;
    shl_model *model;
    shl_plain plain;
    int32_t *tokens, *targets; /* all steps; step 0 is first */
    char *names;
    size_t n_names, stride;
} bench;

static void
load_params(bench *b)
{
    b->names = shl_golden_text(b->file, "/tensors/name", &b->n_names, &b->stride);
    assert_int_equal(b->n_names, b->model->n_params);
    for (size_t i = 0; i < b->n_names; i++) {
        const char *name = b->names + i * b->stride;
        char path[256];
        shl_strf(path, sizeof path, "/param/%s", name);
        const shl_param *p = shl_model_param(b->model, name);
        assert_non_null(p);
        size_t n = 0;
        float *values = shl_golden_f32(b->file, path, &n);
        assert_int_equal(n, p->elems);
        assert_int_equal(shl_plain_set(&b->plain, p->index, values), SHL_OK);
        shl_heap_free(&values);
    }
}

static void
bench_open(bench *b, const char *name)
{
    hid_t f = shl_golden_open(name);
    *b = (bench){.file = f};
    b->cfg = shl_golden_model_config(f);
    b->sequences = shl_golden_int(f, "/", "sequences");
    size_t n = 0;
    b->tokens = shl_golden_i32(f, "/batch/tokens", &n);
    b->targets = shl_golden_i32(f, "/batch/targets", NULL);
    b->seq = (int64_t)n / (b->sequences * shl_golden_int(f, "/", "steps"));
    assert_int_equal(shl_golden_int(f, "/", "ignore_index"), SHL_IGNORE_INDEX);

    shl_device_config cfg = {.kind = "cpu", .threads = 1};
    assert_int_equal(shl_device_open(&cfg, &b->device), SHL_OK);
    assert_int_equal(shl_model_new(&b->cfg, &b->model), SHL_OK);
    assert_int_equal(shl_plain_open(b->device, b->model, 1, &b->plain), SHL_OK);
    load_params(b);
}

static void
bench_close(bench *b)
{
    shl_heap_free(&b->tokens);
    shl_heap_free(&b->targets);
    shl_heap_free(&b->names);
    shl_plain_close(&b->plain);
    shl_model_free(&b->model);
    assert_int_equal(shl_device_close(&b->device), SHL_OK);
    shl_golden_close(b->file);
}

static void
check_logits(bench *b)
{
    size_t n = 0;
    double *golden = shl_golden_f64(b->file, "/step0/f64/logits", &n);
    int64_t rows = (int64_t)n / b->cfg.vocab;
    shl_plain_batch batch;
    shl_buf logits = {0};
    assert_int_equal(
        shl_plain_batch_open(b->device, rows / b->seq, b->seq, b->tokens, NULL, &batch), SHL_OK);
    batch.run.want_grad = false;
    batch.run.logits_out = &logits;
    assert_int_equal(shl_model_forward(b->model, &batch.run), SHL_OK);
    float *ours = NULL;
    assert_int_equal(shl_heap_alloc(n, sizeof *ours, &ours), SHL_OK);
    assert_int_equal(logits.bytes, n * sizeof *ours);
    assert_int_equal(shl_device_download(b->device, ours, logits.data, logits.bytes), SHL_OK);
    double worst = 0.0;
    for (size_t i = 0; i < n; i++) {
        double gap = fabs((double)ours[i] - golden[i]);
        if (!(gap <= LOGITS_TOL)) {
            fail_msg("logit %zu is %.2e away", i, gap);
        }
        worst = fmax(worst, gap);
    }
    print_message("logits: worst difference %.2e\n", worst);
    shl_heap_free(&ours);
    shl_heap_free(&golden);
    shl_device_free(b->device, &logits);
    shl_plain_batch_close(b->device, &batch);
}

static double
relative(double ours, double golden)
{
    return fabs(ours - golden) / fabs(golden);
}

/* The worst tensor's norm of difference / norm; *sumsq gets the squares of all our gradients. */
static double
worst_gradient(bench *b, double *sumsq)
{
    double worst = 0.0;
    *sumsq = 0.0;
    for (size_t i = 0; i < b->n_names; i++) {
        const char *name = b->names + i * b->stride;
        char path[256];
        shl_strf(path, sizeof path, "/step0/f64/grad/%s", name);
        size_t n = 0;
        double *golden = shl_golden_f64(b->file, path, &n), square = 0.0, miss = 0.0;
        float *ours = NULL;
        assert_int_equal(shl_heap_alloc(n, sizeof *ours, &ours), SHL_OK);
        int index = shl_model_param(b->model, name)->index;
        assert_int_equal(shl_plain_grad(&b->plain, index, ours), SHL_OK);
        for (size_t k = 0; k < n; k++) {
            double gap = (double)ours[k] - golden[k];
            miss += gap * gap;
            square += golden[k] * golden[k];
            *sumsq += (double)ours[k] * (double)ours[k];
        }
        double ratio = sqrt(miss / square);
        if (!(ratio <= GRAD_TOL)) {
            fail_msg("gradient of %s: %.2e of its norm away", name, ratio);
        }
        worst = fmax(worst, ratio);
        shl_heap_free(&ours);
        shl_heap_free(&golden);
    }
    return worst;
}

static void
check_loss_and_gradients(bench *b)
{
    shl_plain_batch batch;
    assert_int_equal(
        shl_plain_batch_open(b->device, b->sequences, b->seq, b->tokens, b->targets, &batch),
        SHL_OK);
    assert_int_equal(shl_model_forward(b->model, &batch.run), SHL_OK);
    assert_int_equal(shl_model_backward(b->model, &batch.run), SHL_OK);
    double sum = 0.0, sumsq = 0.0;
    assert_int_equal(shl_plain_loss_sum(b->device, &batch, &sum), SHL_OK);
    int32_t *valid = shl_golden_i32(b->file, "/batch/valid_tokens", NULL);
    double *loss = shl_golden_f64(b->file, "/step0/f64/loss", NULL);
    double *norm = shl_golden_f64(b->file, "/step0/f64/grad_norm", NULL);
    double worst = worst_gradient(b, &sumsq);
    double loss_gap = relative(sum / (double)valid[0], *loss);
    double norm_gap = relative(sqrt(sumsq), *norm);
    print_message("loss %.2e, gradients %.2e, norm %.2e\n", loss_gap, worst, norm_gap);
    assert_true(loss_gap <= LOSS_TOL);
    assert_true(norm_gap <= NORM_TOL);
    shl_heap_free(&valid);
    shl_heap_free(&loss);
    shl_heap_free(&norm);
    shl_plain_batch_close(b->device, &batch);
}

/* Each sequence alone: a rank may have no valid target at all. */
static void
check_sequences(bench *b)
{
    double *golden = shl_golden_f64(b->file, "/step0/f64/loss_sum_per_sequence", NULL);
    for (int64_t i = 0; i < b->sequences; i++) {
        shl_plain_batch batch;
        double sum = 0.0;
        assert_int_equal(shl_plain_batch_open(b->device, 1, b->seq, b->tokens + i * b->seq,
                                              b->targets + i * b->seq, &batch),
                         SHL_OK);
        batch.run.want_grad = false;
        assert_int_equal(shl_model_forward(b->model, &batch.run), SHL_OK);
        assert_int_equal(shl_plain_loss_sum(b->device, &batch, &sum), SHL_OK);
        assert_true(golden[i] == 0.0 ? sum == 0.0 : relative(sum, golden[i]) <= LOSS_TOL);
        shl_plain_batch_close(b->device, &batch);
    }
    shl_heap_free(&golden);
}

static void
check_file(const char *name)
{
    bench b;
    bench_open(&b, name);
    check_logits(&b);
    check_loss_and_gradients(&b);
    check_sequences(&b);
    bench_close(&b);
}

/* Whatever files of the type the folder holds. */
static void
check_type(const char *type)
{
    char names[16][64];
    int n = shl_golden_models(type, names, 16);
    for (int i = 0; i < n; i++) {
        print_message("%s\n", names[i]);
        check_file(names[i]);
    }
}

static void
test_model_golden_gpt2(void **state)
{
    SHL_UNUSED(state);
    check_type("gpt2");
}

static void
test_model_golden_llama(void **state)
{
    SHL_UNUSED(state);
    check_type("llama");
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_model_golden_gpt2),
        cmocka_unit_test(test_model_golden_llama),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

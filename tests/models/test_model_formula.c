/* tests/models: closed forms against the ledger of a virtual device, byte for byte. */
#include "models/family.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

#include "tests/support/plain_model.h"

typedef struct shape {
    shl_model_config cfg;
    int64_t batch, seq;
} shape;

/* Vocabulary wider, narrower, as wide as the stream; own inner width; untied; one token. */
static const shape shapes[] = {
    {{.vocab = 256, .context = 128, .layers = 4, .width = 128, .heads = 4, .tied = true}, 4, 128},
    {{.vocab = 11, .context = 6, .layers = 2, .width = 8, .heads = 2, .tied = false}, 3, 5},
    {{.vocab = 3, .context = 6, .layers = 1, .width = 48, .heads = 3, .tied = true}, 2, 6},
    {{.vocab = 16, .context = 9, .layers = 3, .width = 16, .heads = 1, .inner = 24, .tied = true},
     1,
     9},
    {{.vocab = 50, .context = 7, .layers = 5, .width = 12, .heads = 12, .inner = 1, .tied = false},
     7,
     1},
    {{.vocab = 50257, .context = 1024, .layers = 12, .width = 768, .heads = 12, .tied = true},
     4,
     64},
    {{.vocab = 50257, .context = 2048, .layers = 32, .width = 4096, .heads = 32, .tied = true},
     1,
     2048},
};

/* Any non-NULL address will do: a virtual device reads no data. */
static const int32_t no_tokens[2048];

typedef struct bench {
    shl_device *device;
    shl_model *model;
    shl_plain plain;
    shl_plain_batch batch;
} bench;

static void
bench_open(bench *b, const shape *s)
{
    shl_device_config cfg = {.kind = "virtual", .stands_for = "cpu", .threads = 1};
    assert_int_equal(shl_device_open(&cfg, &b->device), SHL_OK);
    assert_int_equal(shl_model_new(&s->cfg, &b->model), SHL_OK);
    assert_int_equal(shl_plain_open(b->device, b->model, 1, &b->plain), SHL_OK);
    assert_int_equal(
        shl_plain_batch_open(b->device, s->batch, s->seq, no_tokens, no_tokens, &b->batch), SHL_OK);
}

static void
bench_close(bench *b)
{
    shl_plain_batch_close(b->device, &b->batch);
    shl_plain_close(&b->plain);
    shl_model_free(&b->model);
    assert_int_equal(shl_device_close(&b->device), SHL_OK);
}

static size_t
act_now(const bench *b)
{
    return shl_ledger_get(b->device->ledger, SHL_TIER_DEVICE)->now_tag_bytes[SHL_TAG_ACT];
}

static size_t
act_peak(const bench *b)
{
    return shl_ledger_get(b->device->ledger, SHL_TIER_DEVICE)->peak_tag_bytes[SHL_TAG_ACT];
}

static void
test_model_formula_equals_the_ledger(void **state)
{
    SHL_UNUSED(state);
    for (size_t i = 0; i < SHL_ARRAY_LEN(shapes); i++) {
        const shape *s = &shapes[i];
        bench b;
        bench_open(&b, s);
        assert_int_equal(shl_model_forward(b.model, &b.batch.run), SHL_OK);
        size_t saved = shl_model_formula_saved_act_bytes(&s->cfg, s->batch, s->seq);
        assert_int_equal(act_now(&b), saved);
        assert_int_equal(shl_model_backward(b.model, &b.batch.run), SHL_OK);
        assert_int_equal(act_now(&b), 0);
        assert_int_equal(b.batch.tape.n, 0);
        assert_int_equal(act_peak(&b), shl_model_formula_peak_act_bytes(&s->cfg, s->batch, s->seq));
        bench_close(&b);
    }
}

static void
test_model_formula_equals_the_sum_over_modules(void **state)
{
    SHL_UNUSED(state);
    for (size_t i = 0; i < SHL_ARRAY_LEN(shapes); i++) {
        const shape *s = &shapes[i];
        shl_model *m = NULL;
        assert_int_equal(shl_model_new(&s->cfg, &m), SHL_OK);
        size_t sum = 0;
        for (int k = 0; k < m->n_modules; k++) {
            sum += m->modules[k]->ops->saved_bytes(m->modules[k], s->batch, s->seq);
        }
        assert_int_equal(sum, shl_model_formula_saved_act_bytes(&s->cfg, s->batch, s->seq));
        shl_model_free(&m);
    }
}

/* Evaluation keeps two activations at a time and nothing at the end but the logits asked for. */
static void
test_model_formula_evaluation_saves_nothing(void **state)
{
    SHL_UNUSED(state);
    for (size_t i = 0; i < SHL_ARRAY_LEN(shapes); i++) {
        const shape *s = &shapes[i];
        size_t row_bytes = (size_t)(s->batch * s->seq) * sizeof(float);
        bench b;
        bench_open(&b, s);
        b.batch.run.want_grad = false;
        assert_int_equal(shl_model_forward(b.model, &b.batch.run), SHL_OK);
        assert_int_equal(act_now(&b), 0);
        int64_t inner = s->cfg.inner > 0 ? s->cfg.inner : 4 * s->cfg.width;
        int64_t mlp = s->cfg.width + 2 * inner, attn = 5 * s->cfg.width + s->cfg.heads;
        int64_t head = s->cfg.width + s->cfg.vocab, wide = mlp > attn ? mlp : attn;
        int64_t norm = 2 * s->cfg.width + 2;
        wide = wide > head ? wide : head;
        assert_int_equal(act_peak(&b), row_bytes * (size_t)(wide > norm ? wide : norm));

        shl_buf logits = {0};
        b.batch.run.logits_out = &logits;
        assert_int_equal(shl_model_forward(b.model, &b.batch.run), SHL_OK);
        assert_int_equal(logits.bytes, row_bytes * (size_t)s->cfg.vocab);
        assert_int_equal(act_now(&b), logits.bytes);
        shl_device_free(b.device, &logits);
        bench_close(&b);
    }
}

/* Worked by hand for GPT-2 124M: 123,532,032 matrix elements (12 x 7,077,888 + 50257 x 768), and 12
 * layers x 512.5 keys on average x 12 x 768 FLOPs for attention at T = 1024. */
static void
test_model_formula_flops_of_gpt2_124m(void **state)
{
    SHL_UNUSED(state);
    const shl_model_config *cfg = &shl_preset_find("gpt2-124m")->config;
    double linear = 6.0 * 123532032.0, attention = 12.0 * 512.5 * 12.0 * 768.0;
    double tokens = 2.0 * 1024.0;
    double flops = shl_model_formula_step_flops(cfg, 2, 1024);
    assert_true(flops == tokens * (linear + attention));
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_model_formula_equals_the_ledger),
        cmocka_unit_test(test_model_formula_equals_the_sum_over_modules),
        cmocka_unit_test(test_model_formula_evaluation_saves_nothing),
        cmocka_unit_test(test_model_formula_flops_of_gpt2_124m),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* tests/models: closed forms against the ledger of a virtual device, byte for byte. */
#include "models/presets.h"

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
    /* LLaMA: grouped heads; heads wider and narrower than the stream; a narrow MLP; few words. */
    {{.family = SHL_FAMILY_LLAMA,
      .vocab = 256,
      .context = 128,
      .layers = 4,
      .width = 96,
      .heads = 6,
      .kv_heads = 2,
      .inner = 200},
     4,
     128},
    {{.family = SHL_FAMILY_LLAMA,
      .vocab = 11,
      .context = 6,
      .layers = 3,
      .width = 8,
      .heads = 4,
      .head_dim = 10,
      .kv_heads = 1,
      .inner = 5,
      .tied = true},
     3,
     5},
    {{.family = SHL_FAMILY_LLAMA,
      .vocab = 3,
      .context = 9,
      .layers = 2,
      .width = 48,
      .heads = 3,
      .head_dim = 2,
      .inner = 7,
      .qkv_bias = true},
     2,
     9},
    {{.family = SHL_FAMILY_LLAMA,
      .vocab = 128256,
      .context = 8192,
      .layers = 32,
      .width = 4096,
      .heads = 32,
      .kv_heads = 8,
      .inner = 14336},
     1,
     2048},
};

/* Everything that a closed form of activations depends on beside the shape. */
static const struct {
    shl_recompute recompute;
    int64_t every;
    bool offload;
} ways[] = {
    {SHL_RECOMPUTE_NONE, 0, false}, {SHL_RECOMPUTE_SELECTIVE, 0, false},
    {SHL_RECOMPUTE_FULL, 0, false}, {SHL_RECOMPUTE_FULL, 2, false},
    {SHL_RECOMPUTE_FULL, 3, false}, {SHL_RECOMPUTE_FULL, 0, true},
    {SHL_RECOMPUTE_FULL, 2, true},  {SHL_RECOMPUTE_FULL, 3, true},
};
static const shl_dtype dtypes[] = {SHL_F32, SHL_BF16, SHL_F16};

/* Any non-NULL address will do: a virtual device reads no data. */
static const int32_t no_tokens[2048];

typedef struct bench {
    shl_device *device;
    shl_model *model;
    shl_plain plain;
    shl_plain_batch batch;
} bench;

static const shl_act_spec plain_spec = {.dtype = SHL_F32};

static shl_act_spec
spec_of(const shape *s, const shl_act_spec *like)
{
    shl_act_spec spec = *like;
    spec.batch = s->batch;
    spec.seq = s->seq;
    return spec;
}

static void
model_open(const shape *s, const shl_act_spec *spec, shl_model **m)
{
    shl_tune_config tune = {.recompute = spec->recompute, .recompute_every = spec->recompute_every};
    assert_int_equal(shl_model_new(&s->cfg, m), SHL_OK);
    assert_int_equal(shl_model_tune(*m, &tune), SHL_OK);
    shl_model_set_dtype(*m, spec->dtype);
}

static void
bench_open(bench *b, const shape *s, const shl_act_spec *spec)
{
    shl_device_config cfg = {.kind = "virtual", .stands_for = "cpu", .threads = 1};
    cfg.stands_for = spec->row_align_bytes > 0 ? "cuda" : "cpu";
    assert_int_equal(shl_device_open(&cfg, &b->device), SHL_OK);
    assert_int_equal(b->device->caps.row_align_bytes, spec->row_align_bytes);
    model_open(s, spec, &b->model);
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
act_peak(const bench *b, shl_tier tier)
{
    return shl_ledger_get(b->device->ledger, tier)->peak_tag_bytes[SHL_TAG_ACT];
}

static void
expect_act(const char *what, const shape *s, const shl_act_spec *spec, size_t got, size_t want)
{
    if (got != want) {
        fail_msg("%s of C %lld V %lld I %lld L %lld in %s, recompute %s every %lld, offload %d: "
                 "%zu bytes, the "
                 "formula says %zu",
                 what, (long long)s->cfg.width, (long long)s->cfg.vocab, (long long)s->cfg.inner,
                 (long long)s->cfg.layers, shl_dtype_name(spec->dtype),
                 shl_recompute_name(spec->recompute), (long long)spec->recompute_every,
                 spec->offload, got, want);
    }
}

static void
check_ledger(const shape *s, const shl_act_spec *like)
{
    shl_act_spec spec = spec_of(s, like);
    bench b;
    bench_open(&b, s, &spec);
    b.batch.run.offload = spec.offload;
    assert_int_equal(shl_model_forward(b.model, &b.batch.run), SHL_OK);
    expect_act("saved", s, &spec, act_now(&b), shl_model_formula_saved_act_bytes(&s->cfg, &spec));
    assert_int_equal(shl_model_backward(b.model, &b.batch.run), SHL_OK);
    assert_int_equal(act_now(&b), 0);
    assert_int_equal(b.batch.tape.n, 0);
    size_t far = shl_model_formula_host_act_bytes(&s->cfg, &spec);
    expect_act("peak", s, &spec, act_peak(&b, SHL_TIER_DEVICE),
               shl_model_formula_peak_act_bytes(&s->cfg, &spec));
    expect_act("host peak", s, &spec, act_peak(&b, SHL_TIER_HOST), far);
    assert_int_equal(shl_ledger_get(b.device->ledger, SHL_TIER_HOST)->now_bytes, 0);
    assert_int_equal(b.device->moved_bytes[SHL_MOVE_TO_HOST], far);
    assert_int_equal(b.device->moved_bytes[SHL_MOVE_TO_DEVICE], far);
    bench_close(&b);
}

static void
test_model_formula_equals_the_ledger(void **state)
{
    SHL_UNUSED(state);
    for (size_t i = 0; i < SHL_ARRAY_LEN(shapes); i++) {
        for (size_t w = 0; w < SHL_ARRAY_LEN(ways); w++) {
            for (size_t d = 0; d < SHL_ARRAY_LEN(dtypes); d++) {
                shl_act_spec spec = {.dtype = dtypes[d],
                                     .recompute = ways[w].recompute,
                                     .recompute_every = ways[w].every,
                                     .offload = ways[w].offload,
                                     .row_align_bytes = (i + w + d) % 2 == 0 ? 0 : 128};
                if (ways[w].every <= shapes[i].cfg.layers) {
                    check_ledger(&shapes[i], &spec);
                }
            }
        }
    }
}

/* Of recomputed blocks only the tape of the whole says anything: their children keep nothing. */
static void
test_model_formula_equals_the_sum_over_modules(void **state)
{
    SHL_UNUSED(state);
    for (size_t i = 0; i < 2 * SHL_ARRAY_LEN(shapes); i++) {
        const shape *s = &shapes[i / 2];
        shl_act_spec spec = spec_of(s, &plain_spec);
        spec.recompute = i % 2 == 0 ? SHL_RECOMPUTE_NONE : SHL_RECOMPUTE_SELECTIVE;
        shl_model *m = NULL;
        model_open(s, &spec, &m);
        size_t sum = 0;
        for (int k = 0; k < m->n_modules; k++) {
            sum += m->modules[k]->ops->saved_bytes(m->modules[k], s->batch, s->seq);
        }
        assert_int_equal(sum, shl_model_formula_saved_act_bytes(&s->cfg, &spec));
        shl_model_free(&m);
    }
}

/* Floats per token of the largest moment of a layer's forward when nothing is kept. */
static int64_t
widest_layer(const shl_model_config *c)
{
    int64_t inner = c->inner > 0 ? c->inner : 4 * c->width, width = c->width;
    int64_t mlp = width + 2 * inner, attn = 5 * width + c->heads, norm = 2 * width + 2;
    if (c->family == SHL_FAMILY_LLAMA) {
        int64_t dim = c->head_dim > 0 ? c->head_dim : width / c->heads;
        int64_t q = c->heads * dim, kv = (c->kv_heads > 0 ? c->kv_heads : c->heads) * dim;
        int64_t fan = 2 * width + q + 2 * kv;
        mlp = width + 2 * inner + (inner > width ? inner : width);
        attn = width + q + 2 * kv + q + c->heads;
        attn = attn > fan ? attn : fan;
        norm = 2 * width + 1;
    }
    mlp = mlp > attn ? mlp : attn;
    return mlp > norm ? mlp : norm;
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
        bench_open(&b, s, &plain_spec);
        b.batch.run.want_grad = false;
        assert_int_equal(shl_model_forward(b.model, &b.batch.run), SHL_OK);
        assert_int_equal(act_now(&b), 0);
        int64_t head = s->cfg.width + s->cfg.vocab, layer = widest_layer(&s->cfg);
        assert_int_equal(act_peak(&b, SHL_TIER_DEVICE),
                         row_bytes * (size_t)(layer > head ? layer : head));

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

/* By hand for Llama-3 8B: 32 x (2 x 4096^2 + 2 x 4096 x 1024 + 3 x 4096 x 14336) + 128256 x 4096 matrix
 * elements; 4096.5 keys on average x 12 x 4096 FLOPs per layer at T = 8192. */
static void
test_model_formula_flops_of_llama3_8b(void **state)
{
    SHL_UNUSED(state);
    const shl_model_config *cfg = &shapes[SHL_ARRAY_LEN(shapes) - 1].cfg;
    double matrices = 32.0 * 218103808.0 + 525336576.0;
    double attention = 32.0 * 4096.5 * 12.0 * 4096.0;
    double flops = shl_model_formula_step_flops(cfg, 3, 8192);
    assert_true(flops == 3.0 * 8192.0 * (6.0 * matrices + attention));
    assert_int_equal(shl_model_formula_params(cfg), 8030261248);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_model_formula_equals_the_ledger),
        cmocka_unit_test(test_model_formula_equals_the_sum_over_modules),
        cmocka_unit_test(test_model_formula_evaluation_saves_nothing),
        cmocka_unit_test(test_model_formula_flops_of_gpt2_124m),
        cmocka_unit_test(test_model_formula_flops_of_llama3_8b),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

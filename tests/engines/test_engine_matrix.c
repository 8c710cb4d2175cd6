/* tests/engines: the whole matrix of what people train: dtypes, families, recomputation, what is trained,
 * strategies, worlds. In each cell the six strategies are one run to the bit, whatever is recomputed or
 * waits for backward in host memory, the virtual device says exactly what the cpu does, and bytes are
 * those of the closed forms. */
#include "tests/support/engine_twin.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>

#include <cmocka.h>

#include "kernels/base/clock.h"
#include "kernels/base/option.h"
#include "kernels/base/rng.h"

/* What is drawn where not everything is run: one cell of this many, of more under sanitizers. */
#define SAMPLE 80
#define QUICK_SAMPLE 160

static const shl_dtype computes[] = {SHL_F32, SHL_BF16, SHL_F16};

static const struct {
    shl_family family;
    bool tied, qkv_bias;
} models[] = {
    {.family = SHL_FAMILY_GPT, .tied = true},       {.family = SHL_FAMILY_GPT},
    {.family = SHL_FAMILY_LLAMA, .tied = true},     {.family = SHL_FAMILY_LLAMA},
    {.family = SHL_FAMILY_LLAMA, .qkv_bias = true},
};

static const shl_tune_config recomputes[] = {
    {.recompute = SHL_RECOMPUTE_NONE},
    {.recompute = SHL_RECOMPUTE_SELECTIVE},
    {.recompute = SHL_RECOMPUTE_FULL},
    {.recompute = SHL_RECOMPUTE_FULL, .recompute_every = 2},
};

/* Of both families; names of parameters are the one's and the other's. */
static const shl_tune_config trained[][SHL_FAMILY_COUNT] = {
    {{.freeze = ""}, {.freeze = ""}},
    {{.freeze = "h.1,*.bias"}, {.freeze = "model.layers.1,*norm.weight"}},
    {{.freeze = "wte,wpe,h.0"}, {.freeze = "model.embed_tokens,model.layers.0"}},
    {{.freeze = "*.attn.*"}, {.freeze = "*.self_attn.*"}},
    {{.train_last = 1}, {.train_last = 1}},
    {{.lora_rank = 3, .lora_targets = "c_attn,mlp.c_proj"},
     {.lora_rank = 3, .lora_targets = "q_proj,v_proj,down_proj"}},
    {{.lora_rank = 2, .train_last = 2, .lora_alpha = 7.0},
     {.lora_rank = 2, .train_last = 2, .lora_alpha = 7.0}},
    {{.lora_rank = 1, .lora_base = true, .freeze = "wpe"},
     {.lora_rank = 1, .lora_base = true, .freeze = "model.norm"}},
    {{.dropout = 0.3, .attention_dropout = 0.1}, {.dropout = 0.3, .attention_dropout = 0.1}},
    {{.dropout = 0.2, .lora_rank = 2}, {.dropout = 0.2, .lora_rank = 2}},
};

/* One cell: everything but the strategy. */
typedef struct cell {
    size_t dtype, model, recompute, trained;
    int ranks, accum;
} cell;

static void
set_cell(ew_config *c, const cell *at, uint64_t draw)
{
    shl_family family = models[at->model].family;
    ew_config_init(c, SHL_DDP, at->ranks);
    if (family == SHL_FAMILY_LLAMA) {
        ew_config_llama(c);
    }
    c->model.tied = models[at->model].tied;
    c->model.qkv_bias = models[at->model].qkv_bias;
    c->tune = trained[at->trained][family];
    c->tune.recompute = recomputes[at->recompute].recompute;
    c->tune.recompute_every = recomputes[at->recompute].recompute_every;
    c->steps = 2;
    c->engine.accum = at->accum;
    c->engine.reduce_every = SHL_REDUCE_MICRO;
    c->engine.optim.clip = draw % 2 == 0 ? 0.0 : 0.5;
    c->engine.prefetch = (int)((draw >> 8) % 3);
    c->engine.bucket_elems = (draw >> 16) % 2 == 0 ? 700 : 100000;
    bool away = recomputes[at->recompute].recompute == SHL_RECOMPUTE_FULL && (draw >> 24) % 2 == 1;
    c->engine.offload.activations = away ? SHL_OFFLOAD_HOST : SHL_OFFLOAD_NONE;
    et_set_policy(c, computes[at->dtype]);
}

/* Where everything is trained, as it stands: tokens, targets (4 bytes each) and the loss (8) beside what
 * the closed form knows. Without recomputation the end of forward is the peak. */
static void
check_activations(const ew_config *c, const ew_result *r)
{
    const shl_tune_config *t = &c->tune;
    const shl_act_spec spec = {.batch = c->engine.batch,
                               .seq = c->engine.seq,
                               .dtype = c->engine.compute_dtype,
                               .recompute = t->recompute,
                               .recompute_every = t->recompute_every,
                               .offload = c->engine.offload.activations != SHL_OFFLOAD_NONE};
    char label[ET_LABEL_BYTES];
    if (t->freeze[0] != '\0' || t->train_last > 0 || t->lora_rank > 0 || t->dropout > 0.0) {
        return;
    }
    size_t batch = (size_t)(c->engine.batch * c->engine.seq) * 8 + 8;
    size_t got = r->device[0].peak_tag_bytes[SHL_TAG_ACT] - batch;
    size_t peak = shl_model_formula_peak_act_bytes(&c->model, &spec);
    size_t saved = shl_model_formula_saved_act_bytes(&c->model, &spec);
    et_label(c, label, sizeof(label));
    assert_int_equal(r->host[0].peak_tag_bytes[SHL_TAG_ACT],
                     shl_model_formula_host_act_bytes(&c->model, &spec));
    if (got != peak || (t->recompute == SHL_RECOMPUTE_NONE && got != saved)) {
        fail_msg("%s: activations %zu bytes, closed forms: peak %zu, saved %zu", label, got, peak,
                 saved);
    }
}

/* Nothing but activations goes to host memory, and all of it comes back. */
static void
check_moves(const ew_config *c, const ew_result *r, const shl_formula_size *n)
{
    shl_formula_move want;
    shl_formula_move_bytes(&c->engine, n, &want);
    for (int m = 0; m < SHL_MOVE_COUNT; ++m) {
        assert_int_equal(r->moved[0][m], c->steps * (int64_t)want.to_host_bytes);
    }
    assert_int_equal(r->host[0].now_bytes, 0);
}

/* What stays from step to step over all ranks, padding apart, is the closed form of the strategy, and so
 * is what travels. */
static void
check_strategy(const ew_config *c, const ew_result *cpu)
{
    char label[ET_LABEL_BYTES];
    shl_formula_size n;
    et_size(c, &n);
    et_expect_volume(c, cpu, &n);
    double got = 0.0, want = shl_formula_state_bytes(&c->engine, &n) * c->ranks;
    for (int rank = 0; rank < c->ranks; ++rank) {
        ew_result r;
        et_expect_twin(c, cpu, rank, &r);
        const size_t *now = r.device[0].now_tag_bytes;
        assert_int_equal(now[SHL_TAG_GATHER] + now[SHL_TAG_BUCKET], 0);
        got += (double)(now[SHL_TAG_PARAM] + now[SHL_TAG_GRAD] + now[SHL_TAG_OPTIM] +
                        now[SHL_TAG_MASTER]) -
               (double)r.info.padding_bytes;
        if (rank == 0) {
            check_activations(c, &r);
            check_moves(c, &r, &n);
        }
    }
    if (got - want > 0.5 || want - got > 0.5) {
        et_label(c, label, sizeof(label));
        fail_msg("%s: state of all ranks less padding %.1f, the closed form says %.1f", label, got,
                 want);
    }
}

/* The reference is ddp that keeps everything. */
static void
check_cell(const cell *at, uint64_t draw)
{
    ew_config c;
    ew_result ddp, other;
    cell plain = *at;
    plain.recompute = 0;
    set_cell(&c, &plain, draw);
    et_run(&c, &ddp);
    /* A training, not zeros: about the log of the vocabulary, moving, with gradients. */
    assert_true(ddp.reports[0].loss > 3.5 && ddp.reports[0].loss < 5.0);
    assert_true(ddp.reports[0].loss != ddp.reports[1].loss && ddp.param_hash != 0);
    assert_true(ddp.reports[0].grad_norm > 0.0 && !ddp.reports[0].skipped);
    set_cell(&c, at, draw);
    for (int s = SHL_DDP; s < SHL_STRATEGY_COUNT; ++s) {
        c.engine.strategy = (shl_strategy)s;
        et_run(&c, &other);
        et_expect_same_bits(&c, &ddp, &other);
        check_strategy(&c, &other);
    }
}

static cell
cell_at(size_t i)
{
    cell at;
    at.trained = i % SHL_ARRAY_LEN(trained);
    i /= SHL_ARRAY_LEN(trained);
    at.model = i % SHL_ARRAY_LEN(models);
    i /= SHL_ARRAY_LEN(models);
    at.dtype = i % SHL_ARRAY_LEN(computes);
    i /= SHL_ARRAY_LEN(computes);
    at.recompute = i % SHL_ARRAY_LEN(recomputes);
    i /= SHL_ARRAY_LEN(recomputes);
    at.ranks = 1 + (int)(i % 4);
    at.accum = 1 + (int)(i / 4);
    return at;
}

/* Everything under SHL_TEST_ALL; else one of so many neighbours, by a seed that is printed. */
static void
test_engine_matrix_holds(void **state)
{
    (void)state;
    const size_t all = SHL_ARRAY_LEN(trained) * SHL_ARRAY_LEN(models) * SHL_ARRAY_LEN(computes) *
                       SHL_ARRAY_LEN(recomputes) * 4 * 2;
    size_t n = 0, step = shl_env("SHL_TEST_ALL") != NULL     ? 1
                         : shl_env("SHL_TEST_QUICK") != NULL ? QUICK_SAMPLE
                                                             : SAMPLE;
    uint64_t seed = (uint64_t)shl_clock_ns();
    print_message("seed %llu\n", (unsigned long long)seed);
    for (size_t i = 0; i < all; i += step) {
        uint64_t draw = shl_rng_u64(seed, 1, i);
        cell at = cell_at(i + (size_t)(draw % step));
        check_cell(&at, draw >> 8);
        n++;
    }
    print_message("%zu of %zu cells\n", n, all);
    assert_true(n == all / step);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_engine_matrix_holds)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

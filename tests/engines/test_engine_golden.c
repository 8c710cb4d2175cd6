/* tests/engines: ten AdamW steps against PyTorch in float64 (golden files), for clipping and schedule,
 * split over worlds and over accumulation, under every strategy. Every size, name and setting is
 * read from the file. On the device that SHL_TEST_DEVICE names, else the cpu. */
#include "tests/support/engine_world.h"
#include "tests/support/golden_model.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/base/heap.h"
#include "kernels/base/option.h"
#include "kernels/base/str.h"

typedef struct golden {
    hid_t file;
    ew_config c;
    int64_t sequences;
    size_t n_tensors, name_stride;
    char *names;
    char prefix[32];
    float **initial;
    int32_t *tokens, *targets, *valid32;
    int64_t valid[EW_MAX_STEPS];
    bool full;
} golden;

static const char *
tensor_name(const golden *g, size_t i)
{
    return g->names + i * g->name_stride;
}

static const char *
short_name(const golden *g, size_t i)
{
    const char *name = tensor_name(g, i);
    size_t n = strlen(g->prefix);
    return strncmp(name, g->prefix, n) == 0 ? name + n : name;
}

static const float *
initial_value(void *ctx, const char *name)
{
    const golden *g = ctx;
    for (size_t i = 0; i < g->n_tensors; ++i) {
        if (strcmp(short_name(g, i), name) == 0) {
            return g->initial[i];
        }
    }
    return NULL;
}

static void
golden_load(golden *g, const char *name)
{
    char path[256];
    memset(g, 0, sizeof(*g));
    g->file = shl_golden_open(name);
    shl_golden_str(g->file, "/", "name_prefix", g->prefix, sizeof(g->prefix));
    ew_config_init(&g->c, SHL_DDP, 1);
    const char *device = shl_env("SHL_TEST_DEVICE");
    g->c.device = device != NULL ? device : "cpu";
    g->c.model = shl_golden_model_config(g->file);
    g->c.steps = (int)shl_golden_int(g->file, "/", "steps");
    assert_true(g->c.steps <= EW_MAX_STEPS);
    g->sequences = shl_golden_int(g->file, "/", "sequences");
    g->full = shl_golden_int(g->file, "/", "full") != 0;
    size_t n_tokens = 0;
    g->tokens = shl_golden_i32(g->file, "/batch/tokens", &n_tokens);
    g->targets = shl_golden_i32(g->file, "/batch/targets", NULL);
    g->valid32 = shl_golden_i32(g->file, "/batch/valid_tokens", NULL);
    for (int i = 0; i < g->c.steps; ++i) {
        g->valid[i] = g->valid32[i];
    }
    g->c.engine.seq = (int64_t)n_tokens / (g->c.steps * g->sequences);
    g->c.tokens = g->tokens;
    g->c.targets = g->targets;
    g->c.valid = g->valid;
    g->names = shl_golden_text(g->file, "/tensors/name", &g->n_tensors, &g->name_stride);
    assert_int_equal(shl_heap_alloc(g->n_tensors, sizeof(*g->initial), &g->initial), SHL_OK);
    for (size_t i = 0; i < g->n_tensors; ++i) {
        snprintf(path, sizeof(path), "/param/%s", tensor_name(g, i));
        g->initial[i] = shl_golden_f32(g->file, path, NULL);
    }
    g->c.initial = initial_value;
    g->c.initial_ctx = g;
    shl_optim_config *o = &g->c.engine.optim;
    o->lr = shl_golden_real(g->file, "/", "lr");
    o->beta1 = shl_golden_real(g->file, "/", "beta1");
    o->beta2 = shl_golden_real(g->file, "/", "beta2");
    o->eps = shl_golden_real(g->file, "/", "eps");
    o->weight_decay = shl_golden_real(g->file, "/", "weight_decay");
    o->clip_eps = shl_golden_real(g->file, "/", "clip_eps");
}

static void
golden_free(golden *g)
{
    for (size_t i = 0; i < g->n_tensors; ++i) {
        shl_heap_free(&g->initial[i]);
    }
    shl_heap_free(&g->initial);
    shl_heap_free(&g->names);
    shl_heap_free(&g->tokens);
    shl_heap_free(&g->targets);
    shl_heap_free(&g->valid32);
    shl_golden_close(g->file);
}

static void
set_run(golden *g, char run)
{
    shl_optim_config *o = &g->c.engine.optim;
    o->clip = run == 'B' ? shl_golden_real(g->file, "/", "clip_norm") : 0.0;
    o->schedule = run == 'C' ? SHL_SCHEDULE_COSINE : SHL_SCHEDULE_CONSTANT;
    o->warmup_steps = run == 'C' ? shl_golden_int(g->file, "/", "warmup_steps") : 0;
    o->schedule_steps = g->c.steps;
    o->min_lr_ratio = run == 'C' ? shl_golden_real(g->file, "/", "min_lr_ratio") : 0.0;
}

static void
expect_near(const char *what, int step, double got, double want, double rel)
{
    double scale = fabs(want) > 1e-30 ? fabs(want) : 1e-30;
    if (!(fabs(got - want) <= rel * scale)) {
        fail_msg("%s of step %d: %.12g, golden %.12g, relative %.2e above %.0e", what, step, got,
                 want, fabs(got - want) / scale, rel);
    }
}

/* The key bias is not determined (golden README): a bias added to all keys cancels in the softmax. */
static bool
is_key_bias(const golden *g, const char *name, int64_t i)
{
    size_t n = strlen(name), m = strlen("attn.c_attn.bias");
    int64_t c = g->c.model.width;
    return n > m && strcmp(name + n - m, "attn.c_attn.bias") == 0 && i >= c && i < 2 * c;
}

static void
compare_tensor(const golden *g, char run, const ew_tensor *t, const char *name)
{
    static const char *const stored[][2] = {
        {"param", "param"}, {"opt/m", "exp_avg"}, {"opt/v", "exp_avg_sq"}};
    char path[256];
    double diff2 = 0.0, norm2 = 0.0, worst = 0.0;
    const char *what = "param";
    for (size_t k = 0; k < SHL_ARRAY_LEN(stored); ++k) {
        what = strcmp(t->kind, stored[k][0]) == 0 ? stored[k][1] : what;
    }
    snprintf(path, sizeof(path), "/train/%c/f64/%s/%s", run, what, name);
    if (!shl_golden_has(g->file, path)) {
        return;
    }
    size_t n;
    double *want = shl_golden_f64(g->file, path, &n);
    assert_int_equal(n, t->elems);
    for (int64_t i = 0; i < t->elems; ++i) {
        double d = (double)t->values[i] - want[i];
        if (!is_key_bias(g, t->name, i)) {
            diff2 += d * d;
            norm2 += want[i] * want[i];
            worst = fabs(d) > worst ? fabs(d) : worst;
        }
    }
    shl_heap_free(&want);
    bool param = strcmp(t->kind, "param") == 0;
    double limit = param ? 3e-5 : 5e-5;
    if (!(sqrt(diff2) <= limit * sqrt(norm2)) || (param && !(worst <= 2e-4))) {
        fail_msg("%s %s: relative %.2e (limit %.0e), largest %.2e", what, name, sqrt(diff2 / norm2),
                 limit, worst);
    }
}

static void
check_run(golden *g, char run, const char *label)
{
    char path[128];
    ew_result r;
    set_run(g, run);
    ew_run(&g->c, &r);
    if (r.code != SHL_OK) {
        fail_msg("%s run %c: %s", label, run, r.what);
    }
    snprintf(path, sizeof(path), "/train/%c/f64/loss", run);
    double *loss = shl_golden_f64(g->file, path, NULL);
    snprintf(path, sizeof(path), "/train/%c/f64/grad_norm", run);
    double *norm = shl_golden_f64(g->file, path, NULL);
    snprintf(path, sizeof(path), "/train/%c/lr", run);
    double *lr = shl_golden_f64(g->file, path, NULL);
    for (int i = 0; i < g->c.steps; ++i) {
        expect_near("loss", i, r.reports[i].loss, loss[i], 2e-6);
        expect_near("gradient norm", i, r.reports[i].grad_norm, norm[i], 5e-6);
        expect_near("lr", i, r.reports[i].lr, lr[i], 1e-12);
    }
    for (int i = 0; i < r.n_tensors; ++i) {
        for (size_t k = 0; k < g->n_tensors; ++k) {
            if (strcmp(short_name(g, k), r.tensors[i].name) == 0) {
                compare_tensor(g, run, &r.tensors[i], tensor_name(g, k));
            }
        }
    }
    shl_heap_free(&loss);
    shl_heap_free(&norm);
    shl_heap_free(&lr);
    ew_result_fini(&r);
}

/* Worlds and accumulations that divide the global batch; each strategy meets several of them. */
static void
check_file(const char *name)
{
    static const char runs[] = "ABC";
    golden g;
    int turn = 0;
    golden_load(&g, name);
    g.c.keep_state = g.full;
    for (int ranks = 1; ranks <= EW_MAX_RANKS; ranks *= 2) {
        for (int s = 0; s < SHL_STRATEGY_COUNT; ++s, ++turn) {
            char label[160];
            int64_t rows = g.sequences / ranks;
            int64_t accum = turn % 3 == 0 ? rows : turn % 3 == 1 ? 1 : (rows % 2 == 0 ? 2 : 1);
            if (g.sequences % ranks != 0) {
                continue;
            }
            g.c.ranks = ranks;
            g.c.engine.strategy = (shl_strategy)s;
            g.c.engine.accum = accum;
            g.c.engine.batch = rows / accum;
            snprintf(label, sizeof(label), "%.60s %s ranks %d accum %d", name,
                     shl_strategy_name((shl_strategy)s), ranks, (int)accum);
            check_run(&g, runs[turn % 3], label);
        }
    }
    golden_free(&g);
}

/* Whatever files of the type the folder holds. */
static void
check_type(const char *type)
{
    char names[16][64];
    int n = shl_golden_models(type, names, 16);
    for (int i = 0; i < n; ++i) {
        print_message("%s\n", names[i]);
        check_file(names[i]);
    }
}

static void
test_engine_golden_gpt2(void **state)
{
    (void)state;
    check_type("gpt2");
}

static void
test_engine_golden_llama(void **state)
{
    (void)state;
    check_type("llama");
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_engine_golden_gpt2),
        cmocka_unit_test(test_engine_golden_llama),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* tests/engines/api: a checkpoint of any dtype policy, strategy and world goes on under any other: fp32
 * master weights and moments come through to the bit, what is narrower there is rounded once. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "checkpoints/ckpt.h"
#include "engines/api/shardlab.h"
#include "kernels/base/clock.h"
#include "kernels/base/half.h"
#include "kernels/base/heap.h"
#include "kernels/base/option.h"
#include "kernels/base/rng.h"

#define ROWS 12 /* of a global batch: 1, 2 or 3 ranks share them */
#define SEQ 8
#define VOCAB 61
#define FIRST 2 /* steps before the checkpoint */
#define MORE 2

static const char *const strategies[] = {"ddp", "zero1", "zero2", "zero3", "fsdp", "fsdp-grad-op"};

static const struct {
    const char *json;
    shl_dtype compute, master, moment;
} policies[] = {
    {"\"dtype\": \"fp32\"", SHL_F32, SHL_F32, SHL_F32},
    {"\"dtype\": \"bf16\"", SHL_BF16, SHL_F32, SHL_F32},
    {"\"dtype\": \"fp16\", \"loss-scale\": \"dynamic\", \"initial-scale-power\": 8", SHL_F16,
     SHL_F32, SHL_F32},
    {"\"dtype\": \"bf16\", \"moment-dtype\": \"bf16\"", SHL_BF16, SHL_F32, SHL_BF16},
    {"\"dtype\": \"bf16\", \"master-dtype\": \"bf16\"", SHL_BF16, SHL_BF16, SHL_F32},
};

static const char *const shapes[] = {
    "\"shape\": {\"layers\": 2, \"width\": 12, \"heads\": 3, \"vocab\": 61, \"context\": 8}",
    "\"shape\": {\"family\": \"llama\", \"layers\": 2, \"width\": 12, \"heads\": 2, \"kv-heads\": "
    "1, "
    "\"inner\": 20, \"vocab\": 61, \"context\": 8}",
};

static const char *const tunes[][2] = {
    {"{}", "{}"},
    {"{\"freeze\": \"wte,h.0\"}", "{\"freeze\": \"model.embed_tokens,model.layers.0\"}"},
    {"{\"lora-rank\": 2}", "{\"lora-rank\": 2}"},
};

/* A half of a run: under one policy, strategy and world. */
typedef struct half {
    char json[1024];
    int ranks, from, steps;
    const char *load, *save;
    double losses[FIRST + MORE];
} half;

static int
train_step(shl_lab *lab, const half *h, int rank, int step, double *loss)
{
    int32_t tokens[ROWS * SEQ], targets[ROWS * SEQ];
    shl_lab_step_report r = {.struct_bytes = sizeof(r)};
    int n = ROWS / h->ranks * SEQ;
    for (int i = 0; i < n; i++) {
        uint64_t at = (uint64_t)((step * ROWS + rank * (ROWS / h->ranks)) * SEQ + i);
        tokens[i] = (int32_t)(shl_rng_u64(3, 1, at) % VOCAB);
        targets[i] = (int32_t)(shl_rng_u64(3, 2, at) % VOCAB);
    }
    int code = shl_lab_forward(lab, tokens, targets, NULL);
    code = code == SHL_LAB_OK ? shl_lab_backward(lab) : code;
    code = code == SHL_LAB_OK ? shl_lab_step(lab, &r) : code;
    if (rank == 0) {
        *loss = r.loss;
    }
    return code;
}

static int
run_rank(shl_lab_world *world, void *ctx)
{
    half *h = ctx;
    shl_lab *lab = NULL;
    int rank = shl_lab_world_rank(world);
    int code = shl_lab_initialize_json(h->json, world, &lab);
    code = code == SHL_LAB_OK && h->load ? shl_lab_load(lab, h->load, NULL) : code;
    for (int i = h->from; i < h->from + h->steps && code == SHL_LAB_OK; i++) {
        code = train_step(lab, h, rank, i, &h->losses[i]);
    }
    code = code == SHL_LAB_OK && h->save ? shl_lab_save(lab, h->save, 0, NULL) : code;
    int closed = shl_lab_close(&lab);
    return code != SHL_LAB_OK ? code : closed;
}

static void
run(half *h)
{
    shl_lab_world_options o = {.struct_bytes = sizeof(o), .ranks = h->ranks, .timeout_ms = 20000};
    shl_lab_error error = {.struct_bytes = sizeof(error)};
    if (shl_lab_run_threads(&o, run_rank, h) != SHL_LAB_OK) {
        shl_lab_error_get(NULL, &error);
        fail_msg("%s on %d ranks\n%s\n%s\n%s", h->json, h->ranks, error.what, error.because,
                 error.trace);
    }
}

/* One of what can be drawn, for one side. */
typedef struct side {
    size_t policy, strategy;
    int ranks;
} side;

static void
set_half(half *h, const side *s, size_t family, size_t tune)
{
    memset(h, 0, sizeof(*h));
    h->ranks = s->ranks;
    snprintf(h->json, sizeof(h->json),
             "{\"model\": \"small\", %s, \"batch\": %d, \"seq\": %d, \"strategy\": \"%s\", %s, "
             "\"tune\": %s, \"reduce-every\": \"micro\", \"bucket\": 900}",
             shapes[family], ROWS / s->ranks, SEQ, strategies[s->strategy],
             policies[s->policy].json, tunes[tune][family]);
}

/* Where b keeps what the file says; frozen parameters have no master weights. */
static shl_dtype
kept_as(const char *kind, bool frozen, size_t policy)
{
    if (strcmp(kind, "param") != 0) {
        return policies[policy].moment;
    }
    return frozen ? policies[policy].compute : policies[policy].master;
}

static bool
has_moments(const shl_ckpt_reader *r, const char *name)
{
    for (int i = 0; i < shl_ckpt_n_tensors(r); i++) {
        shl_ckpt_tensor t = shl_ckpt_tensor_at(r, i);
        if (strcmp(t.kind, "param") != 0 && strcmp(t.name, name) == 0) {
            return true;
        }
    }
    return false;
}

static int64_t
read_tensor(shl_ckpt_reader *r, int i, float **values)
{
    shl_ckpt_tensor t = shl_ckpt_tensor_at(r, i);
    int64_t elems = 1;
    for (int k = 0; k < t.n_dims; k++) {
        elems *= t.dims[k];
    }
    *values = calloc((size_t)elems, sizeof(**values));
    assert_non_null(*values);
    assert_int_equal(shl_ckpt_read(r, i, 0, elems, *values), SHL_OK);
    return elems;
}

static void
expect_same_tensor(shl_ckpt_reader *a, shl_ckpt_reader *b, int i, const half *h, size_t policy)
{
    shl_ckpt_tensor one = shl_ckpt_tensor_at(a, i), two = shl_ckpt_tensor_at(b, i);
    float *saved = NULL, *loaded = NULL;
    assert_string_equal(one.name, two.name);
    assert_string_equal(one.kind, two.kind);
    shl_dtype dtype = kept_as(one.kind, !has_moments(a, one.name), policy);
    int64_t elems = read_tensor(a, i, &saved);
    assert_true(read_tensor(b, i, &loaded) == elems);
    for (int64_t k = 0; k < elems; k++) {
        float bits = 0.0f;
        shl_float_put(dtype, &bits, 0, saved[k]);
        float want = shl_float_at(dtype, &bits, 0);
        if (memcmp(&want, &loaded[k], sizeof(want)) != 0) {
            fail_msg("%s: %s %s [%lld] is %.9g here, %.9g was saved", h->json, one.kind, one.name,
                     (long long)k, (double)loaded[k], (double)saved[k]);
        }
    }
    free(saved);
    free(loaded);
}

/* b loads and saves at once: the two checkpoints by name and bits. */
static void
check_values(half *b, const char *from, const char *to, size_t policy)
{
    shl_ckpt_reader *one = NULL, *two = NULL;
    b->load = from;
    b->save = to;
    b->steps = 0;
    run(b);
    assert_int_equal(shl_ckpt_open(from, true, &one), SHL_OK);
    assert_int_equal(shl_ckpt_open(to, true, &two), SHL_OK);
    int n = shl_ckpt_n_tensors(one);
    assert_true(n > 10 && n == shl_ckpt_n_tensors(two));
    for (int i = 0; i < n; i++) {
        expect_same_tensor(one, two, i, b, policy);
    }
    shl_ckpt_close(&one);
    shl_ckpt_close(&two);
}

/* The same numbers where policy and world are those that saved, else the same training. */
static void
check_losses(half *whole, half *b, bool same)
{
    b->save = NULL;
    b->steps = MORE;
    run(b);
    whole->save = NULL;
    whole->steps = FIRST + MORE;
    run(whole);
    for (int i = FIRST; i < FIRST + MORE; i++) {
        double want = whole->losses[i], got = b->losses[i], off = got - want;
        if ((same && off != 0.0) || !(off < 0.02 * want && off > -0.02 * want)) {
            fail_msg("%s after %s: step %d: loss %.17g, uninterrupted %.17g", b->json, whole->json,
                     i + 1, got, want);
        }
    }
}

static void
check_transfer(const side *from, const side *to, size_t family, size_t tune)
{
    char folder[] = "/tmp/shl-transfer-XXXXXX", first[64], second[64], command[64];
    half a, b;
    assert_non_null(mkdtemp(folder));
    snprintf(first, sizeof(first), "%s/first", folder);
    snprintf(second, sizeof(second), "%s/second", folder);
    set_half(&a, from, family, tune);
    set_half(&b, to, family, tune);
    a.steps = FIRST;
    a.save = first;
    run(&a);
    b.from = FIRST;
    check_values(&b, first, second, to->policy);
    check_losses(&a, &b, from->policy == to->policy && from->ranks == to->ranks);
    snprintf(command, sizeof(command), "rm -rf '%s'", folder);
    assert_int_equal(system(command), 0);
}

/* Policies to themselves and a third of the other pairs; all of them and often under SHL_TEST_ALL. Strategies,
 * worlds, family and what is frozen are drawn. */
static void
test_api_transfer_between_policies(void **state)
{
    (void)state;
    const size_t n = SHL_ARRAY_LEN(policies), n_strategies = SHL_ARRAY_LEN(strategies);
    bool all = shl_env("SHL_TEST_ALL") != NULL;
    size_t rounds = all ? 40 : 1;
    uint64_t seed = (uint64_t)shl_clock_ns();
    printf("seed %llu\n", (unsigned long long)seed);
    for (size_t i = 0; i < rounds * n * n; i++) {
        uint64_t draw = shl_rng_u64(seed, 1, i);
        if (!all && i % (n + 1) != 0 && (draw >> 48) % 3 != 0) {
            continue;
        }
        side from = {i % n, draw % n_strategies, 1 + (int)((draw >> 8) % 3)};
        side to = {i / n % n, (draw >> 16) % n_strategies, 1 + (int)((draw >> 24) % 3)};
        /* The diagonal is there for equal losses too. */
        to.ranks = from.policy == to.policy ? from.ranks : to.ranks;
        check_transfer(&from, &to, (draw >> 32) % 2, (draw >> 40) % SHL_ARRAY_LEN(tunes));
    }
    assert_int_equal(shl_heap_live_blocks(), 0);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_api_transfer_between_policies)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

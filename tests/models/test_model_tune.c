/* tests/models: settings of training: recomputation changes no bit, what is frozen is neither written
 * nor waited for, adapters have the gradients of their definition, bad settings are refused. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/base/heap.h"
#include "tests/models/tune_bench.h"

/* Losses of training and evaluation, and every gradient that b trains, are those of a. */
static void
expect_same_bits(bench *a, bench *b)
{
    double train_a = loss_of(a, true), train_b = loss_of(b, true);
    double eval_a = loss_of(a, false), eval_b = loss_of(b, false);
    assert_memory_equal(&train_a, &train_b, sizeof train_a);
    assert_memory_equal(&eval_a, &eval_b, sizeof eval_a);
    assert_true(train_a == eval_a && train_a > 1.0);
    for (int i = 0; i < b->model->n_params; i++) {
        const shl_param *p = b->model->params[i];
        float x[MAX_ELEMS], y[MAX_ELEMS];
        if (p->trainable) {
            grad_of(a, p->name, x);
            grad_of(b, p->name, y);
            assert_memory_equal(x, y, (size_t)p->elems * sizeof(float));
        }
    }
}

static const shl_tune_config nothing = {0};
static const shl_tune_config ways[] = {
    {.recompute = SHL_RECOMPUTE_SELECTIVE},
    {.recompute = SHL_RECOMPUTE_FULL},
    {.recompute = SHL_RECOMPUTE_FULL, .recompute_every = 2},
    {.recompute = SHL_RECOMPUTE_FULL, .recompute_every = 3},
};

static const shl_model_config *const families[] = {&shape, &llama_shape};

static void
test_model_tune_recomputation_changes_no_bit(void **state)
{
    SHL_UNUSED(state);
    for (size_t i = 0; i < 2 * SHL_ARRAY_LEN(ways); i++) {
        bench a, b;
        bench_open_as(&a, "cpu", &nothing, families[i % 2]);
        bench_open_as(&b, "cpu", &ways[i / 2], families[i % 2]);
        expect_same_bits(&a, &b);
        bench_close(&a);
        bench_close(&b);
    }
}

/* Adapters, frozen parts and recomputation at once: the same gradients as without the latter. */
static void
check_both(const shl_tune_config *plain, const shl_tune_config *way)
{
    for (size_t f = 0; f < SHL_ARRAY_LEN(families); f++) {
        shl_tune_config both = *plain;
        both.recompute = way->recompute;
        both.recompute_every = way->recompute_every;
        bench a, b;
        bench_open_as(&a, "cpu", plain, families[f]);
        bench_open_as(&b, "cpu", &both, families[f]);
        expect_same_bits(&a, &b);
        bench_close(&a);
        bench_close(&b);
    }
}

static void
test_model_tune_recomputation_and_adapters(void **state)
{
    SHL_UNUSED(state);
    static const shl_tune_config trained[] = {
        {.lora_rank = 3, .lora_alpha = 5.0},
        {.lora_rank = 3, .lora_base = true},
        {.lora_rank = 2, .train_last = 2},
        {.train_last = 1},
    };
    for (size_t i = 0; i < SHL_ARRAY_LEN(ways); i++) {
        for (size_t k = 0; k < SHL_ARRAY_LEN(trained); k++) {
            check_both(&trained[k], &ways[i]);
        }
    }
}

/* ---- frozen ---- */

static const char *const freezes[] = {
    "h.0",  "wte",        "wpe, h.0.*, h.1", "*.bias",          "h.*.weight",
    "ln_f", "h.*.c_proj", "*.mlp.*.weight",  "transformer.h.2", "*.c_attn.bias",
};

/* Trained gradients are those of the whole model; frozen ones are not written, and a frozen beginning
 * is not reached. */
static void
expect_frozen(const shl_tune_config *tune)
{
    const float canary = 1234.5F;
    bench a, b;
    bench_open(&a, "cpu", &nothing);
    bench_open(&b, "cpu", tune);
    int frozen = 0;
    for (int i = 0; i < b.model->n_params; i++) {
        for (int64_t k = 0; k < b.model->params[i]->elems; k++) {
            ((float *)b.model->params[i]->grad)[k] = canary;
        }
        frozen += !b.model->params[i]->trainable;
    }
    assert_true(frozen > 0 && frozen < b.model->n_params);
    expect_same_bits(&a, &b);
    for (int i = 0; i < b.model->n_params; i++) {
        const shl_param *p = b.model->params[i];
        float grad[MAX_ELEMS];
        grad_of(&b, p->name, grad);
        for (int64_t k = 0; k < p->elems && !p->trainable; k++) {
            assert_true(grad[k] == canary);
        }
    }
    bench_close(&a);
    bench_close(&b);
}

static void
test_model_tune_frozen_parameters_are_left_alone(void **state)
{
    SHL_UNUSED(state);
    shl_tune_config tune = {0};
    for (size_t i = 0; i < SHL_ARRAY_LEN(freezes); i++) {
        for (int r = 0; r < SHL_RECOMPUTE_COUNT; r++) {
            tune.recompute = (shl_recompute)r;
            snprintf(tune.freeze, sizeof tune.freeze, "%s", freezes[i]);
            expect_frozen(&tune);
        }
    }
    tune.freeze[0] = '\0';
    for (tune.train_last = 1; tune.train_last <= shape.layers; tune.train_last++) {
        expect_frozen(&tune);
    }
}

/* What is kept is what the modules say, and less than without freezing. */
static void
test_model_tune_frozen_parts_save_less(void **state)
{
    SHL_UNUSED(state);
    size_t whole = 0;
    for (size_t i = 0; i <= SHL_ARRAY_LEN(freezes); i++) {
        shl_tune_config tune = {0};
        if (i > 0) {
            snprintf(tune.freeze, sizeof tune.freeze, "%s", freezes[i - 1]);
        }
        bench b;
        bench_open(&b, "virtual", &tune);
        assert_int_equal(shl_model_forward(b.model, &b.batch.run), SHL_OK);
        size_t sum = 0;
        for (int k = 0; k < b.model->n_modules; k++) {
            const shl_module *m = b.model->modules[k];
            sum += m->in_backward ? m->ops->saved_bytes(m, BATCH, SEQ) : 0;
        }
        assert_int_equal(act_now(&b), sum);
        whole = i == 0 ? sum : whole;
        assert_true(sum <= whole);
        assert_int_equal(shl_model_backward(b.model, &b.batch.run), SHL_OK);
        bench_close(&b);
    }
}

static void
test_model_tune_last_blocks(void **state)
{
    SHL_UNUSED(state);
    bench b;
    shl_tune_config tune = {.train_last = 1};
    bench_open(&b, "virtual", &tune);
    for (int i = 0; i < b.model->n_params; i++) {
        const char *name = b.model->params[i]->name;
        bool last = strncmp(name, "h.2.", 4) == 0 || strncmp(name, "ln_f.", 5) == 0;
        assert_int_equal(b.model->params[i]->trainable, last);
    }
    for (int i = 1; i < b.model->n_modules; i++) {
        const char *path = b.model->modules[i]->path;
        bool before = strcmp(path, "embed") == 0 || strncmp(path, "h.0", 3) == 0 ||
                      strncmp(path, "h.1", 3) == 0;
        assert_int_equal(b.model->modules[i]->in_backward, !before);
    }
    assert_true(b.model->root->in_backward);
    /* One block, the last norm with its statistics, and dlogits: the tied head's input is not kept. */
    assert_int_equal(shl_model_forward(b.model, &b.batch.run), SHL_OK);
    const size_t block = 16 * 8 + 2 + 4, end = 8 + 2 + VOCAB;
    assert_int_equal(act_now(&b), ROWS * (block + end) * sizeof(float));
    bench_close(&b);
}

/* ---- adapters ---- */

static void
test_model_tune_adapters_are_named_and_ordered(void **state)
{
    SHL_UNUSED(state);
    bench b;
    shl_tune_config tune = {.lora_rank = 2, .lora_targets = "c_attn,mlp.c_proj"};
    bench_open(&b, "cpu", &tune);
    const int64_t per_block = 2 * (8 + 24) + 2 * (32 + 8);
    assert_int_equal(shl_model_trainable_elems(b.model), 3 * per_block);
    assert_int_equal(b.model->n_elems, shl_model_formula_params(&shape) + 3 * per_block);
    const shl_param *a = shl_model_param(b.model, "transformer.h.1.attn.c_attn.lora_A.weight");
    const shl_param *o = shl_model_param(b.model, "h.1.mlp.c_proj.lora_B.weight");
    assert_non_null(a);
    assert_non_null(o);
    assert_null(shl_model_param(b.model, "h.1.attn.c_proj.lora_A.weight"));
    assert_true(a->dims[0] == 2 && a->dims[1] == 8 && o->dims[0] == 8 && o->dims[1] == 2);
    assert_true(fabs(a->init_std - 1.0 / sqrt(24.0)) < 1e-15 && o->init_kind == SHL_INIT_CONST);
    int next = 0;
    for (int id = 0; id < b.model->n_modules; id++) {
        for (int i = 0; i < b.model->modules[id]->n_params; i++) {
            const shl_param *p = b.model->modules[id]->params[i];
            assert_ptr_equal(b.model->params[p->index], p);
            assert_true(p->index <= next);
            next += p->index == next;
        }
    }
    assert_int_equal(next, b.model->n_params);
    bench_close(&b);
}

/* B = 0: the model is what it stands on. */
static void
test_model_tune_adapters_begin_as_nothing(void **state)
{
    SHL_UNUSED(state);
    bench a, b;
    shl_tune_config tune = {.lora_rank = 4, .lora_base = true};
    bench_open(&a, "cpu", &nothing);
    bench_open(&b, "cpu", &tune);
    set_values(&b, 0.0F);
    assert_true(loss_of(&a, false) == loss_of(&b, false));
    set_values(&b, 1.0F);
    assert_true(loss_of(&a, false) != loss_of(&b, false));
    bench_close(&a);
    bench_close(&b);
}

static void
test_model_tune_adapters_match_finite_differences(void **state)
{
    SHL_UNUSED(state);
    print_message("seed %u\n", SEED);
    for (int k = 0; k < 4; k++) {
        bench b;
        shl_tune_config tune = {.lora_rank = 3, .lora_alpha = 4.5, .lora_base = k % 2 == 1};
        bench_open_as(&b, "cpu", &tune, families[k / 2]);
        loss_of(&b, true);
        for (int i = 0; i < b.model->n_params; i++) {
            if (b.model->params[i]->trainable) {
                check_slope(&b, i, false, false);
                check_slope(&b, i, true, false);
            }
        }
        bench_close(&b);
    }
}

static void
test_model_tune_adapters_save_their_rank(void **state)
{
    SHL_UNUSED(state);
    bench b;
    shl_tune_config tune = {.lora_rank = 2, .lora_targets = "c_attn"};
    bench_open(&b, "virtual", &tune);
    assert_int_equal(shl_model_forward(b.model, &b.batch.run), SHL_OK);
    /* x, norm's x and statistics, qkv, attention, u; the MLP's x, statistics and GELU's input. */
    const size_t attn = 8 + 8 + 2 + 24 + 8 + 2 + 2, mlp = 8 + 2 + 32, end = 8 + 2 + VOCAB;
    assert_int_equal(act_now(&b), ROWS * (3 * (attn + mlp) + end) * sizeof(float));
    assert_int_equal(shl_model_backward(b.model, &b.batch.run), SHL_OK);
    assert_int_equal(act_now(&b), 0);
    bench_close(&b);
}

/* ---- failures ---- */

static void
test_model_tune_memory_fails_at_every_allocation(void **state)
{
    SHL_UNUSED(state);
    static const shl_tune_config all[] = {
        {.recompute = SHL_RECOMPUTE_SELECTIVE},
        {.recompute = SHL_RECOMPUTE_FULL, .lora_rank = 2},
        {.recompute = SHL_RECOMPUTE_FULL, .recompute_every = 2, .freeze = "h.0,wte,wpe"},
        {.lora_rank = 2, .train_last = 2, .recompute = SHL_RECOMPUTE_SELECTIVE},
    };
    for (size_t i = 0; i < SHL_ARRAY_LEN(all); i++) {
        bench b;
        bench_open(&b, "virtual", &all[i]);
        shl_code code = SHL_E_OOM;
        int64_t n = 0;
        for (n = 1; code != SHL_OK; n++) {
            int64_t blocks = shl_heap_live_blocks();
            shl_ledger_fail_at(b.device->ledger, n);
            code = forward_backward(&b);
            shl_ledger_fail_at(b.device->ledger, -1);
            shl_tape_fini(&b.batch.tape, b.device);
            assert_int_equal(act_now(&b), 0);
            assert_int_equal(shl_heap_live_blocks(), blocks);
            assert_true(code == SHL_OK || code == SHL_E_OOM);
        }
        assert_true(n > 3 * 10);
        bench_close(&b);
    }
}

static void
test_model_tune_heap_fails_at_every_allocation(void **state)
{
    SHL_UNUSED(state);
    shl_tune_config tune = {.lora_rank = 2, .recompute = SHL_RECOMPUTE_FULL};
    shl_code code = SHL_E_HEAP;
    int64_t n = 0;
    for (n = 1; code != SHL_OK; n++) {
        int64_t blocks = shl_heap_live_blocks();
        shl_model *m = NULL;
        assert_int_equal(shl_model_new(&shape, &m), SHL_OK);
        shl_heap_fail_at(n);
        code = shl_model_tune(m, &tune);
        shl_heap_fail_at(-1);
        shl_model_free(&m);
        assert_int_equal(shl_heap_live_blocks(), blocks);
        assert_true(code == SHL_OK || code == SHL_E_HEAP);
    }
    assert_true(n > 20);
}

/* ---- refusals ---- */

typedef struct refusal {
    shl_tune_config tune;
    const char *part; /* of what is said */
} refusal;

static const refusal refusals[] = {
    {{.recompute = SHL_RECOMPUTE_COUNT}, "recompute"},
    {{.recompute_every = 2}, "recompute-every"},
    {{.recompute = SHL_RECOMPUTE_FULL, .recompute_every = 4}, "3 blocks"},
    {{.recompute = SHL_RECOMPUTE_FULL, .recompute_every = -1}, "3 blocks"},
    {{.train_last = 4}, "3 blocks"},
    {{.train_last = -1}, "3 blocks"},
    {{.freeze = "wtf"}, "wte"},
    {{.freeze = "h.3"}, "freeze"},
    {{.freeze = "h.0, h.0.atn.c_attn.weight"}, "h.0.attn.c_attn.weight"},
    {{.freeze = "*"}, "nothing is left"},
    {{.freeze = "h.2,ln_f", .train_last = 1}, "nothing is left"},
    {{.lora_rank = -1}, "rank"},
    {{.lora_alpha = 8.0}, "rank"},
    {{.lora_targets = "c_attn"}, "rank"},
    {{.lora_base = true}, "rank"},
    {{.lora_rank = 2, .lora_targets = "c_atn"}, "c_attn"},
    {{.lora_rank = 2, .lora_targets = "head"}, "c_fc"},
    {{.lora_rank = 2, .lora_alpha = -1.0}, "alpha"},
    {{.dropout = 1.0}, "dropout"},
    {{.attention_dropout = -0.1}, "dropout"},
};

static void
test_model_tune_refuses(void **state)
{
    SHL_UNUSED(state);
    for (size_t i = 0; i < SHL_ARRAY_LEN(refusals); i++) {
        shl_model *m = NULL;
        char said[2048];
        assert_int_equal(shl_model_new(&shape, &m), SHL_OK);
        shl_code code = shl_model_tune(m, &refusals[i].tune);
        const shl_err *e = shl_err_get();
        snprintf(said, sizeof said, "%s\n%s\n%s", e->what, e->because, e->advice);
        if (code != SHL_E_USAGE || strstr(said, refusals[i].part) == NULL) {
            fail_msg("refusal %zu: code %d, \"%s\" without \"%s\"", i, (int)code, said,
                     refusals[i].part);
        }
        shl_model_free(&m);
        shl_err_clear();
    }
}

static void
test_model_tune_recompute_by_name(void **state)
{
    SHL_UNUSED(state);
    for (int i = 0; i < SHL_RECOMPUTE_COUNT; i++) {
        shl_recompute r = SHL_RECOMPUTE_COUNT;
        assert_int_equal(shl_recompute_parse(shl_recompute_name((shl_recompute)i), &r), SHL_OK);
        assert_int_equal(r, i);
    }
    shl_recompute r = SHL_RECOMPUTE_NONE;
    assert_int_equal(shl_recompute_parse("selectiv", &r), SHL_E_USAGE);
    assert_non_null(strstr(shl_err_get()->advice, "selective"));
    shl_err_clear();
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_model_tune_recomputation_changes_no_bit),
        cmocka_unit_test(test_model_tune_recomputation_and_adapters),
        cmocka_unit_test(test_model_tune_frozen_parameters_are_left_alone),
        cmocka_unit_test(test_model_tune_frozen_parts_save_less),
        cmocka_unit_test(test_model_tune_last_blocks),
        cmocka_unit_test(test_model_tune_adapters_are_named_and_ordered),
        cmocka_unit_test(test_model_tune_adapters_begin_as_nothing),
        cmocka_unit_test(test_model_tune_adapters_match_finite_differences),
        cmocka_unit_test(test_model_tune_adapters_save_their_rank),
        cmocka_unit_test(test_model_tune_memory_fails_at_every_allocation),
        cmocka_unit_test(test_model_tune_heap_fails_at_every_allocation),
        cmocka_unit_test(test_model_tune_refuses),
        cmocka_unit_test(test_model_tune_recompute_by_name),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* tests/models: the GPT-2 tree, its parameters and presets, and what it refuses. */
#include "models/presets.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/base/heap.h"
#include "kernels/base/rng.h"

static const shl_model_config small = {
    .vocab = 11, .context = 6, .layers = 2, .width = 8, .heads = 2};

static shl_model *
new_model(const shl_model_config *cfg)
{
    shl_model *m = NULL;
    assert_int_equal(shl_model_new(cfg, &m), SHL_OK);
    return m;
}

static void
test_model_gpt_counts_match_published(void **state)
{
    SHL_UNUSED(state);
    const struct {
        const char *name;
        int64_t params;
    } published[] = {
        {"gpt2-124m", 124439808},
        {"gpt2-355m", 354823168},
        {"gpt2-774m", 774030080},
        {"gpt2-1.5b", 1557611200},
    };
    for (size_t i = 0; i < SHL_ARRAY_LEN(published); i++) {
        const shl_preset *p = shl_preset_find(published[i].name);
        assert_non_null(p);
        assert_int_equal(shl_model_formula_params(&p->config), published[i].params);
    }
    assert_null(shl_preset_find("gpt2"));
}

static void
test_model_gpt_counts_match_formula(void **state)
{
    SHL_UNUSED(state);
    shl_model_config shapes[64];
    size_t n = 0;
    for (; n < shl_presets_gpt_len; n++) {
        shapes[n] = shl_presets_gpt[n].config;
    }
    shapes[n++] = small;
    shapes[n++] = (shl_model_config){
        .vocab = 3, .context = 1, .layers = 1, .width = 6, .heads = 3, .inner = 7};
    shapes[n] = small;
    shapes[n].tied = true;
    n++;
    for (size_t i = 0; i < n; i++) {
        shl_model *m = new_model(&shapes[i]);
        assert_int_equal(m->n_elems, shl_model_formula_params(&shapes[i]));
        int64_t sum = 0;
        for (int k = 0; k < m->n_params; k++) {
            sum += m->params[k]->elems;
        }
        assert_int_equal(sum, m->n_elems);
        shl_model_free(&m);
    }
}

static void
test_model_gpt_tree_is_in_execution_order(void **state)
{
    SHL_UNUSED(state);
    static const char *const paths[] = {
        "model",           "embed",           "h.0",
        "h.0.ln_1",        "h.0.attn.c_attn", "h.0.attn",
        "h.0.attn.c_proj", "h.0.ln_2",        "h.0.mlp.c_fc",
        "h.0.mlp.gelu",    "h.0.mlp.c_proj",  "h.1",
    };
    shl_model *m = new_model(&small);
    assert_int_equal(m->n_modules, 2 + 2 * 9 + 3);
    for (int i = 0; i < m->n_modules; i++) {
        const shl_module *module = m->modules[i];
        assert_int_equal(module->id, i);
        assert_true(module->parent == NULL || module->parent->id < i);
        if ((size_t)i < SHL_ARRAY_LEN(paths)) {
            assert_string_equal(module->path, paths[i]);
        }
    }
    assert_int_equal(m->modules[1]->wrap, SHL_WRAP_INPUT);
    assert_int_equal(m->modules[2]->wrap, SHL_WRAP_BLOCK);
    assert_int_equal(m->modules[2]->n_children, 8);
    assert_int_equal(m->modules[3]->wrap, SHL_WRAP_NONE);
    assert_int_equal(m->modules[3]->depth, 2);
    assert_int_equal(m->modules[20]->wrap, SHL_WRAP_OUTPUT);
    assert_string_equal(m->modules[21]->path, "ln_f");
    assert_string_equal(m->modules[22]->path, "head");
    shl_model_free(&m);
}

static void
test_model_gpt_parameters_are_listed_in_order_of_use(void **state)
{
    SHL_UNUSED(state);
    for (int tied = 0; tied < 2; tied++) {
        shl_model_config cfg = small;
        cfg.tied = tied != 0;
        shl_model *m = new_model(&cfg);
        int seen = 0;
        for (int i = 0; i < m->n_modules; i++) {
            for (int k = 0; k < m->modules[i]->n_params; k++) {
                const shl_param *p = m->modules[i]->params[k];
                assert_true(p->index <= seen);
                seen += p->index == seen;
            }
        }
        assert_int_equal(seen, m->n_params);
        const shl_param *wte = shl_model_param(m, "transformer.wte.weight");
        assert_non_null(wte);
        assert_ptr_equal(wte, shl_model_param(m, "wte.weight"));
        assert_int_equal(wte->n_uses, tied ? 2 : 1);
        assert_ptr_equal(m->modules[m->n_modules - 1]->params[0],
                         tied ? wte : shl_model_param(m, "lm_head.weight"));
        assert_int_equal(shl_model_param(m, "lm_head.weight") != NULL, !tied);
        assert_null(shl_model_param(m, "h.2.ln_1.weight"));
        shl_model_free(&m);
    }
}

static void
test_model_gpt_parameters_have_shape_group_and_start(void **state)
{
    SHL_UNUSED(state);
    shl_model *m = new_model(&small);
    const shl_param *w = shl_model_param(m, "h.1.attn.c_attn.weight");
    assert_int_equal(w->dims[0], 8);
    assert_int_equal(w->dims[1], 24);
    assert_true(w->decay);
    assert_int_equal(w->full_rows, 8);
    assert_int_equal(w->row_begin, 0);
    assert_int_equal(w->init_kind, SHL_INIT_NORMAL);
    assert_true(w->init_std == 0.02);
    assert_true(w->init_stream == shl_rng_stream("h.1.attn.c_attn.weight"));
    assert_true(shl_model_param(m, "h.1.attn.c_proj.weight")->init_std == 0.01);
    assert_true(shl_model_param(m, "h.0.mlp.c_proj.weight")->init_std == 0.01);
    const shl_param *b = shl_model_param(m, "h.0.mlp.c_fc.bias");
    assert_int_equal(b->n_dims, 1);
    assert_int_equal(b->elems, 32);
    assert_false(b->decay);
    assert_int_equal(b->init_kind, SHL_INIT_CONST);
    assert_true(b->init_value == 0.0);
    assert_true(shl_model_param(m, "ln_f.weight")->init_value == 1.0);
    shl_model_free(&m);
}

static void
test_model_gpt_refuses_sizes_that_make_no_model(void **state)
{
    SHL_UNUSED(state);
    const struct {
        shl_model_config cfg;
        const char *word;
    } bad[] = {
        {{.vocab = 0, .context = 6, .layers = 2, .width = 8, .heads = 2, .tied = true},
         "vocabulary"},
        {{.vocab = 11, .context = -1, .layers = 2, .width = 8, .heads = 2, .tied = true},
         "context"},
        {{.vocab = 11, .context = 6, .layers = 0, .width = 8, .heads = 2, .tied = true}, "layers"},
        {{.vocab = 11, .context = 6, .layers = INT64_MAX, .width = 8, .heads = 2, .tied = true},
         "layers"},
        {{.vocab = 11, .context = 6, .layers = 2, .width = 0, .heads = 2, .tied = true}, "width"},
        {{.vocab = 11, .context = 6, .layers = 2, .width = 8, .heads = 3, .tied = true}, "heads"},
        {{.vocab = 11, .context = 6, .layers = 2, .width = 8, .heads = 16, .tied = true}, "heads"},
        {{.vocab = 11,
          .context = 6,
          .layers = 2,
          .width = 8,
          .heads = 2,
          .inner = -4,
          .tied = true},
         "inner"},
        {{.vocab = 11,
          .context = 6,
          .layers = 2,
          .width = 8,
          .heads = 2,
          .norm_eps = -1.0,
          .tied = true},
         "epsilon"},
        {{.vocab = INT32_MAX,
          .context = 6,
          .layers = 10000,
          .width = INT32_MAX,
          .heads = 1,
          .tied = true},
         "too large"},
    };
    for (size_t i = 0; i < SHL_ARRAY_LEN(bad); i++) {
        shl_model *m = NULL;
        assert_int_equal(shl_model_new(&bad[i].cfg, &m), SHL_E_USAGE);
        assert_null(m);
        assert_non_null(strstr(shl_err_get()->what, bad[i].word));
    }
    shl_err_clear();
}

static void
test_model_gpt_frees_all_when_the_heap_is_exhausted(void **state)
{
    SHL_UNUSED(state);
    int64_t before = shl_heap_live_blocks();
    int64_t n = 1;
    for (;; n++) {
        shl_model *m = NULL;
        shl_heap_fail_at(n);
        shl_code code = shl_model_new(&small, &m);
        shl_heap_fail_at(-1);
        shl_model_free(&m);
        assert_int_equal(shl_heap_live_blocks(), before);
        if (code == SHL_OK) {
            break;
        }
        assert_int_equal(code, SHL_E_HEAP);
    }
    assert_true(n > 50);
    shl_err_clear();
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_model_gpt_counts_match_published),
        cmocka_unit_test(test_model_gpt_counts_match_formula),
        cmocka_unit_test(test_model_gpt_tree_is_in_execution_order),
        cmocka_unit_test(test_model_gpt_parameters_are_listed_in_order_of_use),
        cmocka_unit_test(test_model_gpt_parameters_have_shape_group_and_start),
        cmocka_unit_test(test_model_gpt_refuses_sizes_that_make_no_model),
        cmocka_unit_test(test_model_gpt_frees_all_when_the_heap_is_exhausted),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

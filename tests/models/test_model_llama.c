/* tests/models: the LLaMA tree and its parameters, the context that scaled angles reach, and what is
 * refused. */
#include "models/family.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/base/heap.h"
#include "models/tune.h"

static const shl_model_config small = {.family = SHL_FAMILY_LLAMA,
                                       .vocab = 11,
                                       .context = 6,
                                       .layers = 2,
                                       .width = 8,
                                       .heads = 4,
                                       .kv_heads = 2,
                                       .inner = 12};

static shl_model *
new_model(const shl_model_config *cfg)
{
    shl_model *m = NULL;
    assert_int_equal(shl_model_new(cfg, &m), SHL_OK);
    return m;
}

static void
test_model_llama_tree_is_in_execution_order(void **state)
{
    SHL_UNUSED(state);
    static const char *const paths[] = {
        "model",
        "embed",
        "model.layers.0",
        "model.layers.0.input_layernorm",
        "model.layers.0.self_attn.qkv",
        "model.layers.0.self_attn.q_proj",
        "model.layers.0.self_attn.k_proj",
        "model.layers.0.self_attn.v_proj",
        "model.layers.0.self_attn",
        "model.layers.0.self_attn.o_proj",
        "model.layers.0.post_attention_layernorm",
        "model.layers.0.mlp.gate_up",
        "model.layers.0.mlp.gate_proj",
        "model.layers.0.mlp.up_proj",
        "model.layers.0.mlp.act_fn",
        "model.layers.0.mlp.down_proj",
        "model.layers.1",
    };
    shl_model *m = new_model(&small);
    assert_int_equal(m->n_modules, 2 + 2 * 14 + 3);
    for (int i = 0; i < m->n_modules; i++) {
        assert_int_equal(m->modules[i]->id, i);
        if ((size_t)i < SHL_ARRAY_LEN(paths)) {
            assert_string_equal(m->modules[i]->path, paths[i]);
        }
    }
    assert_int_equal(m->modules[1]->wrap, SHL_WRAP_INPUT);
    assert_int_equal(m->modules[2]->wrap, SHL_WRAP_BLOCK);
    assert_int_equal(m->modules[m->n_modules - 3]->wrap, SHL_WRAP_OUTPUT);
    shl_model_free(&m);
}

static void
expect_param(const shl_model *m, const char *name, int64_t rows, int64_t cols)
{
    const shl_param *p = shl_model_param(m, name);
    if (p == NULL) {
        fail_msg("no parameter %s", name);
        return;
    }
    assert_int_equal(p->dims[0], rows);
    assert_int_equal(p->dims[1], cols);
    assert_int_equal(p->decay, cols > 0);
    assert_true(cols > 0 ? p->init_std == 0.02 : p->init_std == 0.0);
}

static void
test_model_llama_parameters_have_names_and_shapes(void **state)
{
    SHL_UNUSED(state);
    shl_model_config cfg = small;
    cfg.head_dim = 6;
    cfg.qkv_bias = true;
    shl_model *m = new_model(&cfg);
    assert_int_equal(m->n_params, 2 * (9 + 3) + 3);
    assert_int_equal(m->n_elems, shl_model_formula_params(&cfg));
    expect_param(m, "model.embed_tokens.weight", 11, 8);
    expect_param(m, "model.layers.0.self_attn.q_proj.weight", 24, 8);
    expect_param(m, "model.layers.0.self_attn.k_proj.weight", 12, 8);
    expect_param(m, "model.layers.1.self_attn.v_proj.bias", 12, 0);
    expect_param(m, "model.layers.1.self_attn.o_proj.weight", 8, 24);
    expect_param(m, "model.layers.1.mlp.up_proj.weight", 12, 8);
    expect_param(m, "model.layers.1.mlp.down_proj.weight", 8, 12);
    expect_param(m, "model.layers.1.input_layernorm.weight", 8, 0);
    expect_param(m, "model.norm.weight", 8, 0);
    expect_param(m, "lm_head.weight", 11, 8);
    assert_true(shl_model_param(m, "model.norm.weight")->init_value == 1.0);
    assert_null(shl_model_param(m, "model.layers.0.self_attn.o_proj.bias"));
    shl_model_free(&m);
    cfg.qkv_bias = false;
    cfg.tied = true;
    m = new_model(&cfg);
    assert_int_equal(m->n_elems, shl_model_formula_params(&cfg));
    assert_null(shl_model_param(m, "model.layers.0.self_attn.q_proj.bias"));
    assert_null(shl_model_param(m, "lm_head.weight"));
    assert_int_equal(shl_model_param(m, "model.embed_tokens.weight")->n_uses, 2);
    shl_model_free(&m);
}

static void
test_model_llama_scaled_angles_reach_further(void **state)
{
    SHL_UNUSED(state);
    const struct {
        shl_rope_scaling rope;
        int64_t context, reach;
    } cases[] = {
        {{0}, 2048, 2048},
        {{SHL_ROPE_LINEAR, 4.0, 0.0, 0.0, 0}, 2048, 8192},
        {{SHL_ROPE_LLAMA3, 8.0, 1.0, 4.0, 8192}, 131072, 131072},
        {{SHL_ROPE_LLAMA3, 8.0, 1.0, 4.0, 8192}, 8192, 65536},
    };
    for (size_t i = 0; i < SHL_ARRAY_LEN(cases); i++) {
        shl_model_config cfg = small;
        cfg.rope = cases[i].rope;
        cfg.context = cases[i].context;
        shl_model *m = new_model(&cfg);
        assert_int_equal(m->context, cases[i].reach);
        shl_model_free(&m);
    }
}

/* Everything but the named field is sound. */
static void
test_model_llama_refuses_sizes_that_make_no_model(void **state)
{
    SHL_UNUSED(state);
    enum { N = 14 };
    static const char *const words[N] = {
        "vocabulary",
        "context",
        "layers",
        "do not divide the width",
        "odd",
        "key and value",
        "key and value",
        "inner",
        "theta",
        "factor",
        "low_freq_factor",
        "epsilon",
        "kind of rotary",
        "original context",
    };
    shl_model_config bad[N];
    for (int i = 0; i < N; i++) {
        bad[i] = small;
    }
    bad[0].vocab = 0;
    bad[1].context = 0;
    bad[2].layers = -1;
    bad[3].heads = 3;
    bad[4].head_dim = 5;
    bad[5].kv_heads = 3;
    bad[6].kv_heads = 8;
    bad[7].inner = -1;
    bad[8].rope_theta = -1.0;
    bad[9].rope = (shl_rope_scaling){.kind = SHL_ROPE_LINEAR};
    bad[10].rope = (shl_rope_scaling){SHL_ROPE_LLAMA3, 8.0, 4.0, 4.0, 8192};
    bad[11].norm_eps = -1e-5;
    bad[12].rope.kind = SHL_ROPE_KIND_COUNT;
    bad[13].rope = (shl_rope_scaling){SHL_ROPE_LLAMA3, 8.0, 1.0, 4.0, 0};
    for (int i = 0; i < N; i++) {
        shl_model *m = NULL;
        assert_int_equal(shl_model_new(&bad[i], &m), SHL_E_USAGE);
        assert_null(m);
        if (strstr(shl_err_get()->what, words[i]) == NULL &&
            strstr(shl_err_get()->because, words[i]) == NULL) {
            fail_msg("\"%s\" does not speak of \"%s\"", shl_err_get()->what, words[i]);
        }
    }
    shl_err_clear();
}

static void
test_model_llama_frees_all_when_the_heap_is_exhausted(void **state)
{
    SHL_UNUSED(state);
    int64_t before = shl_heap_live_blocks(), n = 1;
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
        cmocka_unit_test(test_model_llama_tree_is_in_execution_order),
        cmocka_unit_test(test_model_llama_parameters_have_names_and_shapes),
        cmocka_unit_test(test_model_llama_scaled_angles_reach_further),
        cmocka_unit_test(test_model_llama_refuses_sizes_that_make_no_model),
        cmocka_unit_test(test_model_llama_frees_all_when_the_heap_is_exhausted),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

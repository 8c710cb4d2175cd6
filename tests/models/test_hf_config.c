/* tests/models: config.json of transformers: files that it wrote itself, every setting that is refused,
 * wrong types with their place, defaults of missing keys. */
#include "models/hf_config.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "models/named.h"

#define FOLDER "tests/golden/hf/"

static void
test_hf_config_reads_files_of_transformers(void **state)
{
    SHL_UNUSED(state);
    static const struct {
        const char *file;
        int64_t params; /* counted by transformers; 0: another count, approximated */
        int64_t context, window;
        bool exact;
    } files[] = {
        {"gpt2-tiny", 16880, 16, 0, true},
        {"gpt2", 124439808, 1024, 0, true},
        {"llama-tiny", 15480, 19, 0, true},
        {"llama-3.1-8b", 8030261248, 131072, 0, true},
        {"mistral-7b", 7241732096, 4096, 4096, true},
        {"qwen2.5-0.5b", 494032768, 32768, 0, true},
        {"opt-125m", 125239296 - 2 * 768, 2048, 0, false},
        {"bloom-560m", 559214592 + 2048 * 1024 - 2 * 1024, 2048, 0, false},
        {"pythia-70m", 70426624 + 2048 * 512, 2048, 0, false},
    };
    for (size_t i = 0; i < SHL_ARRAY_LEN(files); i++) {
        char path[128];
        shl_hf_config hf;
        (void)snprintf(path, sizeof(path), FOLDER "%s.json", files[i].file);
        assert_int_equal(shl_hf_config_load(path, &hf), SHL_OK);
        int64_t params = shl_model_formula_params(&hf.config);
        if (params != files[i].params) {
            fail_msg("%s: %lld", path, (long long)params);
        }
        assert_int_equal(hf.config.context, files[i].context);
        assert_int_equal(hf.window, files[i].window);
        assert_int_equal(hf.approximated[0] == '\0', files[i].exact);
    }
}

static void
test_hf_config_keeps_what_changes_numbers(void **state)
{
    SHL_UNUSED(state);
    shl_hf_config hf;
    assert_int_equal(shl_hf_config_load(FOLDER "llama-3.1-8b.json", &hf), SHL_OK);
    const shl_model_config *c = &hf.config;
    assert_int_equal(c->family, SHL_FAMILY_LLAMA);
    assert_int_equal(c->kv_heads, 8);
    assert_int_equal(c->head_dim, 128);
    assert_true(c->rope_theta == 5e5 && c->norm_eps == 1e-5);
    assert_int_equal(c->rope.kind, SHL_ROPE_LLAMA3);
    assert_true(c->rope.factor == 8.0 && c->rope.low_freq_factor == 1.0);
    assert_true(c->rope.high_freq_factor == 4.0 && c->rope.original_context == 8192);
    assert_false(c->tied || c->qkv_bias);
    assert_string_equal(hf.note, "");
    assert_int_equal(shl_hf_config_load(FOLDER "qwen2.5-0.5b.json", &hf), SHL_OK);
    assert_true(hf.config.tied && hf.config.qkv_bias && hf.config.rope_theta == 1e6);
    assert_int_equal(shl_hf_config_load(FOLDER "mistral-7b.json", &hf), SHL_OK);
    assert_non_null(strstr(hf.note, "sliding window"));
    assert_int_equal(shl_hf_config_load(FOLDER "gpt2.json", &hf), SHL_OK);
    assert_non_null(strstr(hf.note, "resid_pdrop"));
}

static shl_code
parse(const char *text, shl_hf_config *hf)
{
    return shl_hf_config_parse(text, "here", hf);
}

static void
test_hf_config_missing_keys_are_transformers_defaults(void **state)
{
    SHL_UNUSED(state);
    shl_hf_config hf;
    assert_int_equal(parse("{\"model_type\": \"gpt2\"}", &hf), SHL_OK);
    assert_int_equal(shl_model_formula_params(&hf.config), 124439808);
    assert_int_equal(parse("{\"model_type\": \"llama\"}", &hf), SHL_OK);
    assert_int_equal(shl_model_formula_params(&hf.config), 6738415616);
    assert_int_equal(hf.config.context, 2048);
    assert_true(hf.config.norm_eps == 1e-6 && hf.config.rope_theta == 1e4);
    assert_int_equal(parse("{\"model_type\": \"mistral\"}", &hf), SHL_OK);
    assert_int_equal(shl_model_formula_params(&hf.config), 7241732096);
    assert_int_equal(hf.window, 4096);
    assert_int_equal(parse("{\"model_type\": \"mistral\", \"sliding_window\": null}", &hf), SHL_OK);
    assert_int_equal(hf.window, 0);
    assert_int_equal(hf.config.context, 131072);
    assert_int_equal(parse("{\"model_type\": \"qwen2\", \"sliding_window\": 64,"
                           " \"use_sliding_window\": true}",
                           &hf),
                     SHL_OK);
    assert_int_equal(hf.config.context, 64);
    assert_true(hf.config.qkv_bias);
    /* The names that transformers 4 wrote. */
    assert_int_equal(parse("{\"model_type\": \"llama\", \"rope_theta\": 7e4, \"rope_scaling\":"
                           " {\"type\": \"linear\", \"factor\": 4.0}, \"pretraining_tp\": 1}",
                           &hf),
                     SHL_OK);
    assert_true(hf.config.rope_theta == 7e4 && hf.config.rope.factor == 4.0);
    assert_int_equal(hf.config.rope.kind, SHL_ROPE_LINEAR);
    assert_int_equal(parse("{\"model_type\": \"gpt2\", \"num_hidden_layers\": 3}", &hf), SHL_OK);
    assert_int_equal(hf.config.layers, 3);
}

static void
test_hf_config_what_is_not_computed_is_refused_by_name(void **state)
{
    SHL_UNUSED(state);
    static const struct {
        const char *type, *key, *value;
    } cases[] = {
        {"gpt2", "activation_function", "\"relu\""},
        {"gpt2", "activation_function", "\"gelu\""},
        {"gpt2", "scale_attn_weights", "false"},
        {"gpt2", "scale_attn_by_inverse_layer_idx", "true"},
        {"gpt2", "reorder_and_upcast_attn", "true"},
        {"gpt2", "add_cross_attention", "true"},
        {"llama", "hidden_act", "\"gelu\""},
        {"llama", "attention_bias", "true"},
        {"llama", "mlp_bias", "true"},
        {"llama", "pretraining_tp", "2"},
        {"llama", "partial_rotary_factor", "0.5"},
        {"llama", "rope_scaling", "{\"rope_type\": \"yarn\", \"factor\": 4.0}"},
        {"llama", "rope_scaling", "{\"type\": \"dynamic\", \"factor\": 4.0}"},
        {"llama", "rope_parameters", "{\"rope_type\": \"longrope\"}"},
        {"llama", "rope_scaling", "{\"rope_type\": \"llama3\", \"factor\": 4.0}"},
        {"llama", "rope_scaling", "{\"rope_type\": \"linear\"}"},
        {"mistral", "hidden_act", "\"relu\""},
        {"qwen2", "hidden_act", "\"relu\""},
        {"qwen2", "layer_types", "[\"full_attention\", \"sliding_attention\"]"},
    };
    for (size_t i = 0; i < SHL_ARRAY_LEN(cases); i++) {
        char text[256];
        shl_hf_config hf;
        (void)snprintf(text, sizeof(text), "{\"model_type\": \"%s\",\n \"%s\": %s}", cases[i].type,
                       cases[i].key, cases[i].value);
        if (parse(text, &hf) != SHL_E_CONFIG) {
            fail_msg("taken: %s", text);
        }
        const shl_err *e = shl_err_get();
        if (!strstr(e->what, cases[i].key) || !strstr(e->because, "line 2, column 2")) {
            fail_msg("%s: %s; %s", text, e->what, e->because);
        }
    }
}

static void
test_hf_config_wrong_types_have_a_place(void **state)
{
    SHL_UNUSED(state);
    static const char *const cases[][3] = {
        {"gpt2", "n_layer", "\"twelve\""},
        {"gpt2", "n_layer", "0"},
        {"gpt2", "n_embd", "768.5"},
        {"gpt2", "tie_word_embeddings", "1"},
        {"gpt2", "layer_norm_epsilon", "\"\""},
        {"gpt2", "layer_norm_epsilon", "0"},
        {"gpt2", "activation_function", "3"},
        {"llama", "num_key_value_heads", "-8"},
        {"llama", "rope_theta", "[1]"},
        {"llama", "rope_scaling", "\"linear\""},
        {"llama", "head_dim", "true"},
        {"mistral", "sliding_window", "\"no\""},
        {"qwen2", "use_sliding_window", "0"},
        {"opt", "ffn_dim", "{}"},
        {"qwen2", "layer_types", "3"},
    };
    for (size_t i = 0; i < SHL_ARRAY_LEN(cases); i++) {
        char text[256];
        shl_hf_config hf;
        (void)snprintf(text, sizeof(text), "{\n\"model_type\": \"%s\",   \"%s\": %s}", cases[i][0],
                       cases[i][1], cases[i][2]);
        if (parse(text, &hf) != SHL_E_CONFIG || !strstr(shl_err_get()->what, cases[i][1]) ||
            !strstr(shl_err_get()->because, "line 2, column")) {
            fail_msg("%s: %s; %s", text, shl_err_get()->what, shl_err_get()->because);
        }
    }
}

static void
test_hf_config_other_architectures_and_broken_files(void **state)
{
    SHL_UNUSED(state);
    shl_hf_config hf;
    assert_int_equal(parse("{\"model_type\": \"bert\"}", &hf), SHL_E_CONFIG);
    assert_non_null(strstr(shl_err_get()->what, "bert"));
    assert_non_null(strstr(shl_err_get()->because, "qwen2"));
    assert_int_equal(parse("{}", &hf), SHL_E_CONFIG);
    assert_int_equal(parse("[]", &hf), SHL_E_CONFIG);
    assert_int_equal(parse("{\"model_type\": \"gpt2\",}", &hf), SHL_E_CONFIG);
    assert_non_null(strstr(shl_err_get()->because, "line 1"));
    assert_int_equal(parse("{\"model_type\": \"gpt2\", \"n_layer\": 1, \"n_layer\": 2}", &hf),
                     SHL_E_CONFIG);
    assert_int_equal(parse("{\"model_type\": \"gpt2\", \"n_lier\": 1}", &hf), SHL_OK);
    assert_non_null(strstr(hf.note, "n_lier"));
    assert_int_equal(parse("{\"model_type\": \"gpt2\", \"pruned_heads\": {}, \"x\": null}", &hf),
                     SHL_OK);
    assert_int_equal(shl_hf_config_load("tests/golden/hf/none.json", &hf), SHL_E_IO);
    assert_int_equal(shl_hf_config_load("tests/golden/hf", &hf), SHL_E_IO);
}

/* A folder, with and without its slash, and the file in it are one model by one name. */
static void
test_hf_config_folders(void **state)
{
    SHL_UNUSED(state);
    char dir[] = "/tmp/shl-hf-XXXXXX", path[96];
    static const char *const ends[] = {"/small", "/small/", "/small/config.json"};
    assert_non_null(mkdtemp(dir));
    (void)snprintf(path, sizeof(path), "%s/small", dir);
    assert_int_equal(mkdir(path, 0700), 0);
    (void)snprintf(path, sizeof(path), "%s/small/config.json", dir);
    FILE *f = fopen(path, "we");
    assert_non_null(f);
    assert_true(fputs("{\"model_type\": \"gpt2\", \"n_layer\": 2}", f) >= 0);
    assert_int_equal(fclose(f), 0);
    for (size_t i = 0; i < SHL_ARRAY_LEN(ends); i++) {
        shl_named_model m;
        (void)snprintf(path, sizeof(path), "%s%s", dir, ends[i]);
        assert_int_equal(shl_model_find(path, &m), SHL_OK);
        assert_string_equal(m.name, "hf:small");
        assert_int_equal(m.config.layers, 2);
    }
    assert_int_equal(unlink(path), 0);
    (void)snprintf(path, sizeof(path), "%s/small", dir);
    assert_int_equal(rmdir(path), 0);
    assert_int_equal(rmdir(dir), 0);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_hf_config_reads_files_of_transformers),
        cmocka_unit_test(test_hf_config_keeps_what_changes_numbers),
        cmocka_unit_test(test_hf_config_missing_keys_are_transformers_defaults),
        cmocka_unit_test(test_hf_config_what_is_not_computed_is_refused_by_name),
        cmocka_unit_test(test_hf_config_wrong_types_have_a_place),
        cmocka_unit_test(test_hf_config_other_architectures_and_broken_files),
        cmocka_unit_test(test_hf_config_folders),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

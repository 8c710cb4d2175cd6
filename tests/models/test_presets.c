/* tests/models: published shapes: counts against what transformers counts for the same configuration
 * (meta device, ties once), differences named to the last element, names and sizes. */
#include "models/presets.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "models/named.h"

/* Counted by transformers 5.23.0 from its own classes at these shapes. */
static const struct {
    const char *name;
    int64_t params;
} counted[] = {
    {"gpt2-124m", 124439808},      {"gpt2-355m", 354823168},       {"gpt2-774m", 774030080},
    {"gpt2-1.5b", 1557611200},     {"llama-7b", 6738415616},       {"llama-13b", 13015864320},
    {"llama-30b", 32528943616},    {"llama-65b", 65285660672},     {"llama-2-70b", 68976648192},
    {"llama-3-8b", 8030261248},    {"llama-3-70b", 70553706496},   {"llama-3.1-405b", 405853388800},
    {"mistral-7b", 7241732096},    {"tinyllama-1.1b", 1100048384}, {"qwen2.5-0.5b", 494032768},
    {"qwen2.5-1.5b", 1543714304},  {"qwen2.5-3b", 3085938688},     {"qwen2.5-7b", 7615616512},
    {"qwen2.5-14b", 14770033664},  {"qwen2.5-32b", 32763876352},   {"qwen2.5-72b", 72706203648},
    {"opt-125m", 125239296},       {"opt-350m", 331196416},        {"opt-1.3b", 1315758080},
    {"opt-2.7b", 2651596800},      {"opt-6.7b", 6658473984},       {"opt-13b", 12853473280},
    {"opt-30b", 29974540288},      {"opt-66b", 65719701504},       {"opt-175b", 174604468224},
    {"bloom-560m", 559214592},     {"bloom-1b1", 1065314304},      {"bloom-1b7", 1722408960},
    {"bloom-3b", 3002557440},      {"bloom-7b1", 7069016064},      {"bloom-176b", 176247271424},
    {"gpt-neox-20b", 20554567680}, {"pythia-70m", 70426624},       {"pythia-160m", 162322944},
    {"pythia-410m", 405334016},    {"pythia-1b", 1011781632},      {"pythia-1.4b", 1414647808},
    {"pythia-2.8b", 2775208960},   {"pythia-6.9b", 6857302016},    {"pythia-12b", 11846072320},
    {"llama-2-7b", 6738415616},    {"llama-2-13b", 13015864320},
};

static void
test_presets_published_is_what_transformers_counts(void **state)
{
    SHL_UNUSED(state);
    for (size_t i = 0; i < SHL_ARRAY_LEN(counted); i++) {
        const shl_preset *p = shl_preset_find(counted[i].name);
        if (!p) {
            fail_msg("%s is gone", counted[i].name);
            return;
        }
        assert_int_equal(p->published_unit, 1);
        if (p->published != counted[i].params) {
            fail_msg("%s: %lld and not %lld", p->name, (long long)p->published,
                     (long long)counted[i].params);
        }
    }
}

/* Ours = published + the named differences, exactly; a rounded figure is met to half its last digit. */
static void
test_presets_differences_are_named_to_the_element(void **state)
{
    SHL_UNUSED(state);
    const shl_preset *p;
    size_t n_exact = 0, n_rounded = 0;
    for (size_t i = 0; (p = shl_preset_at(i)) != NULL; i++) {
        int64_t params = shl_model_formula_params(&p->config);
        int64_t rest = params - p->published - shl_preset_gap_elems(p);
        bool told = p->published > 0;
        bool good =
            !told || (p->published_unit == 1 ? rest == 0 : llabs(rest) * 2 <= p->published_unit);
        if (!good) {
            fail_msg("%s: ours is %lld, published %lld, named %lld", p->name, (long long)params,
                     (long long)p->published, (long long)shl_preset_gap_elems(p));
        }
        n_exact += told && p->published_unit == 1;
        n_rounded += told && p->published_unit > 1;
    }
    assert_int_equal(n_exact, SHL_ARRAY_LEN(counted));
    assert_int_equal(n_rounded, 5);
}

/* Only a shape that is marked may count otherwise than its original. */
static void
test_presets_exact_ones_differ_in_nothing(void **state)
{
    SHL_UNUSED(state);
    const shl_preset *p;
    for (size_t i = 0; (p = shl_preset_at(i)) != NULL; i++) {
        assert_non_null(p->series);
        assert_non_null(p->note);
        assert_true(p->approximated || p->gaps[0].what == NULL);
        assert_true(p->approximated || p->published_unit <= 1);
        shl_named_model m;
        assert_int_equal(shl_model_find(p->name, &m), SHL_OK);
        assert_int_equal(shl_named_check_exact(&m), p->approximated ? SHL_E_USAGE : SHL_OK);
    }
}

static void
test_presets_names_are_unique_and_found(void **state)
{
    SHL_UNUSED(state);
    const shl_preset *p;
    for (size_t i = 0; (p = shl_preset_at(i)) != NULL; i++) {
        assert_ptr_equal(shl_preset_find(p->name), p);
        assert_true(strlen(p->name) < 20);
        assert_null(shl_preset_of_size(p->name));
    }
    assert_null(shl_preset_find("gpt2"));
    assert_null(shl_preset_find(""));
}

static void
test_presets_a_size_alone_is_a_shape_and_is_told(void **state)
{
    SHL_UNUSED(state);
    const char *size, *name;
    shl_named_model m;
    for (size_t i = 0; shl_preset_size_at(i, &size, &name); i++) {
        assert_non_null(shl_preset_find(name));
        assert_int_equal(shl_model_find(size, &m), SHL_OK);
        assert_string_equal(m.name, name);
        assert_non_null(strstr(m.note, name));
        /* The size is the model's, to its digits. */
        int64_t params = shl_model_formula_params(&m.config);
        double said = strtod(size, NULL) * (strchr(size, 'b') ? 1e9 : 1e6);
        assert_true((double)params > 0.9 * said && (double)params < 1.15 * said);
    }
    assert_int_equal(shl_model_find("7B", &m), SHL_OK);
    assert_string_equal(m.name, "llama-2-7b");
    assert_int_equal(shl_model_find("llama-2-7b", &m), SHL_OK);
    assert_string_equal(m.note, "");
}

static void
test_presets_an_unknown_name_is_answered_briefly(void **state)
{
    SHL_UNUSED(state);
    shl_named_model m;
    assert_int_equal(shl_model_find("lama-2-7b", &m), SHL_E_USAGE);
    assert_string_equal(shl_err_get()->advice, "--model llama-2-7b");
    assert_non_null(strstr(shl_err_get()->because, "info models"));
    assert_true(strlen(shl_err_get()->because) < 160);
    assert_int_equal(shl_model_find("xyzzy-and-more", &m), SHL_E_USAGE);
    assert_non_null(strstr(shl_err_get()->advice, "info models"));
}

/* --- shapes asked for -------------------------------------------------------------------- */

static void
test_presets_shape_over_a_preset(void **state)
{
    SHL_UNUSED(state);
    shl_named_model m;
    shl_shape_asked a;
    shl_shape_asked_init(&a);
    assert_int_equal(shl_model_find("llama-2-7b", &m), SHL_OK);
    assert_int_equal(shl_named_apply(&m, &a), SHL_OK);
    assert_string_equal(m.name, "llama-2-7b");
    a = (shl_shape_asked){.layers = 2,
                          .kv_heads = 4,
                          .norm_eps = 1e-6,
                          .rope_theta = 5e5,
                          .rope_scaling = "linear:2",
                          .tied = 1,
                          .qkv_bias = 1};
    assert_int_equal(shl_named_apply(&m, &a), SHL_OK);
    assert_int_equal(m.config.layers, 2);
    assert_int_equal(m.config.kv_heads, 4);
    assert_int_equal(m.config.context, 4096);
    assert_true(m.config.tied && m.config.qkv_bias);
    assert_int_equal(m.config.rope.kind, SHL_ROPE_LINEAR);
    assert_string_equal(m.name, "llama-l2-w4096-h32-kv4-i11008-v32000-c4096");
    assert_null(m.preset);
    /* One bit of a flag is another model too. */
    assert_int_equal(shl_model_find("gpt2-tiny", &m), SHL_OK);
    a = (shl_shape_asked){.tied = 0, .qkv_bias = -1};
    assert_int_equal(shl_named_apply(&m, &a), SHL_OK);
    assert_null(shl_preset_find(m.name));
    a.family = "llama";
    assert_int_equal(shl_named_apply(&m, &a), SHL_OK);
    assert_int_equal(m.config.family, SHL_FAMILY_LLAMA);
    a.family = "bert";
    assert_int_equal(shl_named_apply(&m, &a), SHL_E_USAGE);
    a.family = NULL;
    a.inner = -1;
    assert_int_equal(shl_named_apply(&m, &a), SHL_E_USAGE);
}

/* The sliding window is not computed here: where it would cut, the shape is refused by its name. */
static void
test_presets_a_window_bounds_the_context(void **state)
{
    SHL_UNUSED(state);
    shl_named_model m;
    shl_shape_asked a;
    shl_shape_asked_init(&a);
    assert_int_equal(shl_model_find("mistral-7b", &m), SHL_OK);
    a.context = 4097;
    assert_int_equal(shl_named_apply(&m, &a), SHL_E_USAGE);
    assert_non_null(strstr(shl_err_get()->because, "sliding_window"));
    assert_int_equal(shl_model_find("mistral-7b", &m), SHL_OK);
    a.context = 1024;
    assert_int_equal(shl_named_apply(&m, &a), SHL_OK);
}

static void
test_presets_a_gpt_has_no_llama_fields(void **state)
{
    SHL_UNUSED(state);
    shl_model_config base = shl_preset_find("gpt2-tiny")->config, c;
    shl_model *model = NULL;
    c = base;
    c.kv_heads = 2;
    assert_int_equal(shl_model_new(&c, &model), SHL_E_USAGE);
    assert_non_null(strstr(shl_err_get()->what, "kv-heads"));
    c = base;
    c.qkv_bias = true;
    assert_int_equal(shl_model_new(&c, &model), SHL_E_USAGE);
    c = base;
    c.rope.kind = SHL_ROPE_LINEAR;
    assert_int_equal(shl_model_new(&c, &model), SHL_E_USAGE);
    assert_non_null(strstr(shl_err_get()->what, "rope-scaling"));
}

static void
test_presets_rope_scaling_is_spelled_and_read_back(void **state)
{
    SHL_UNUSED(state);
    const char *const good[] = {"none", "linear:2", "linear:1.1", "llama3:8:1:4:8192",
                                "llama3:32.5:1.25:3.3333333333333335:4096"};
    const char *const bad[] = {"",
                               "yarn:2",
                               "linear",
                               "linear:",
                               "linear:0.5",
                               "linear:2:3",
                               "linear:nan",
                               "linear:2 ",
                               "llama3:8",
                               "llama3:8:4:1:99",
                               "llama3:8:0:4:99",
                               "llama3:8:1:4:0",
                               "llama3:8:1:4:8192:",
                               "llama3:8:1:4:1.5",
                               "linear2"};
    char text[96];
    shl_rope_scaling rope;
    for (size_t i = 0; i < SHL_ARRAY_LEN(good); i++) {
        assert_int_equal(shl_rope_parse(good[i], &rope), SHL_OK);
        shl_rope_spell(&rope, text, sizeof(text));
        assert_string_equal(text, good[i]);
    }
    for (size_t i = 0; i < SHL_ARRAY_LEN(bad); i++) {
        if (shl_rope_parse(bad[i], &rope) != SHL_E_USAGE) {
            fail_msg("\"%s\" was taken", bad[i]);
        }
    }
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_presets_published_is_what_transformers_counts),
        cmocka_unit_test(test_presets_differences_are_named_to_the_element),
        cmocka_unit_test(test_presets_exact_ones_differ_in_nothing),
        cmocka_unit_test(test_presets_names_are_unique_and_found),
        cmocka_unit_test(test_presets_a_size_alone_is_a_shape_and_is_told),
        cmocka_unit_test(test_presets_an_unknown_name_is_answered_briefly),
        cmocka_unit_test(test_presets_shape_over_a_preset),
        cmocka_unit_test(test_presets_a_window_bounds_the_context),
        cmocka_unit_test(test_presets_a_gpt_has_no_llama_fields),
        cmocka_unit_test(test_presets_rope_scaling_is_spelled_and_read_back),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

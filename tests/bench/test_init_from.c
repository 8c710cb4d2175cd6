/* tests/bench: --init-from: the configuration beside the weights is the default model, and a resumed run
 * goes on from its checkpoint whatever the weights are. */
#include "bench/options.h"

#include "tests/checkpoints/weight_files.h"

static const char *
folder_of_weights(const char *name)
{
    static const char config[] =
        "{\"model_type\": \"llama\", \"vocab_size\": 61, \"hidden_size\": 24,"
        "\"intermediate_size\": 36, \"num_hidden_layers\": 3,"
        "\"num_attention_heads\": 6, \"num_key_value_heads\": 2,"
        "\"max_position_embeddings\": 19, \"rms_norm_eps\": 1e-6,"
        "\"hidden_act\": \"silu\", \"tie_word_embeddings\": false}";
    const char *dir = weight_dir(name);
    char path[300];
    size_t n = 0;
    unsigned char *bytes = weight_slurp(weight_golden("llama-tiny.safetensors"), &n);
    (void)snprintf(path, sizeof path, "%s/model.safetensors", dir);
    weight_put(path, bytes, n);
    (void)snprintf(path, sizeof path, "%s/config.json", dir);
    weight_put(path, config, sizeof config - 1);
    free(bytes);
    return dir;
}

static shl_family
family_of(const char *model, const char *from)
{
    shl_run_options o;
    shl_run_points points;
    assert_int_equal(shl_run_options_init(&o), SHL_OK);
    o.model = model;
    o.init_from = from;
    assert_int_equal(shl_run_points_resolve(&o, &points), SHL_OK);
    assert_int_equal(points.n, 1);
    shl_family family = points.configs[0].shape.family;
    shl_run_points_fini(&points);
    return family;
}

static void
test_init_from_is_the_default_of_model(void **state)
{
    (void)state;
    char file[300];
    const char *dir = folder_of_weights("model");
    (void)snprintf(file, sizeof file, "%s/model.safetensors", dir);
    assert_int_equal(family_of(NULL, NULL), SHL_FAMILY_GPT);
    assert_int_equal(family_of(NULL, dir), SHL_FAMILY_LLAMA);
    assert_int_equal(family_of(NULL, file), SHL_FAMILY_LLAMA);
    assert_int_equal(family_of("gpt2-tiny", dir), SHL_FAMILY_GPT);
    assert_int_equal(family_of(NULL, weight_golden("gpt2-tiny.safetensors")), SHL_FAMILY_GPT);
}

static uint64_t
run(const char *from, const char *ckpt, int64_t steps, bool resume)
{
    shl_run_options o;
    shl_run_points points;
    shl_session_result r;
    assert_int_equal(shl_run_options_init(&o), SHL_OK);
    o.init_from = from;
    o.strategy = "zero3";
    o.ranks = "2";
    o.batch = "1";
    o.data = "synthetic";
    o.steps = steps;
    o.ckpt_dir = ckpt;
    o.resume = resume;
    o.schedule_steps = 4;
    assert_int_equal(shl_run_points_resolve(&o, &points), SHL_OK);
    shl_code code = shl_session_run(&points.configs[0], NULL, &r);
    if (code != SHL_OK) {
        fail_msg("%s (%s)", shl_err_get()->what, shl_err_get()->because);
    }
    uint64_t hash = r.param_hash;
    shl_session_result_fini(&r);
    shl_run_points_fini(&points);
    return hash;
}

static void
test_init_from_gives_way_to_a_checkpoint(void **state)
{
    (void)state;
    char dir[300], ckpt[300], weights[400];
    (void)snprintf(dir, sizeof dir, "%s", folder_of_weights("resumed"));
    (void)snprintf(ckpt, sizeof ckpt, "%s", weight_path("ckpt"));
    uint64_t straight = run(dir, NULL, 4, false);
    (void)run(dir, ckpt, 2, false);
    (void)snprintf(weights, sizeof weights, "%s/model.safetensors", dir);
    assert_int_equal(unlink(weights), 0); /* nobody asks for them any more */
    assert_true(run(dir, ckpt, 4, true) == straight && straight != 0);
    assert_int_equal(shl_heap_live_blocks(), 0);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_init_from_is_the_default_of_model),
        cmocka_unit_test(test_init_from_gives_way_to_a_checkpoint),
    };
    return cmocka_run_group_tests(tests, weight_folder_make, weight_folder_remove);
}

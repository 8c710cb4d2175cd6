/* tests/engines/config: what a ds_config.json becomes: the batch triangle, "auto" and the Trainer, dated
 * defaults, the engine's configuration and the way back, and the bad inputs of its users. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "engines/config/ds_config.h"
#include "kernels/base/heap.h"
#include "kernels/base/types.h"

static shl_ds_facts
facts_of(int ranks)
{
    return (shl_ds_facts){
        .ranks = ranks, .hidden = 768, .params = 124439808, .steps = 100, .recomputes = true};
}

/* The engine's configuration of a text; the notes in notes (NULL: none wanted). */
static shl_code
resolve(const char *text, const char *trainer, int ranks, shl_engine_config *e, shl_str *notes)
{
    shl_ds_config c;
    shl_ds_facts facts = facts_of(ranks);
    shl_engine_config_init(e);
    shl_code code = shl_ds_config_load(text, 2026, &c);
    if (code == SHL_OK) {
        code = shl_ds_resolve(&c, trainer, &facts, e);
    }
    if (notes) {
        shl_str_add(notes, "%s", shl_str_get(&c.notes));
    }
    shl_ds_config_fini(&c);
    return code;
}

static void
expect_ok(shl_code code)
{
    if (code != SHL_OK) {
        fail_msg("%s, because %s", shl_err_get()->what, shl_err_get()->because);
    }
}

/* Refused with all the words, in what, because or advice. */
static void
expect_words(shl_code code, const char *const *words)
{
    const shl_err *err = shl_err_get();
    assert_int_equal(code, SHL_E_CONFIG);
    for (; *words; words++) {
        if (!strstr(err->what, *words) && !strstr(err->because, *words) &&
            !strstr(err->advice, *words)) {
            fail_msg("no \"%s\" in: %s / %s / %s", *words, err->what, err->because, err->advice);
        }
    }
}
#define REFUSES(text, ranks, ...)                                                                  \
    expect_words(resolve(text, NULL, ranks, &e, NULL), (const char *const[]){__VA_ARGS__, NULL})

static const char *const plain_stage2 =
    "{\"train_batch_size\":256,\"gradient_accumulation_steps\":4,\"fp16\":{\"enabled\":true},"
    "\"zero_optimization\":{\"stage\":2,\"offload_optimizer\":{\"device\":\"none\"},"
    "\"contiguous_gradients\":true,\"overlap_comm\":true,\"reduce_scatter\":true},"
    "\"optimizer\":{\"type\":\"AdamW\",\"params\":{\"lr\":1e-4,\"weight_decay\":0.01}}}";
static const char *const offload_stage3 =
    "{\"zero_optimization\":{\"stage\":3,\"offload_optimizer\":{\"device\":\"cpu\",\"pin_memory\":"
    "true},\"offload_param\":{\"device\":\"cpu\",\"pin_memory\":true},\"overlap_comm\":true,"
    "\"contiguous_gradients\":true,\"sub_group_size\":1e9,\"reduce_bucket_size\":\"auto\","
    "\"stage3_prefetch_bucket_size\":\"auto\",\"stage3_param_persistence_threshold\":\"auto\","
    "\"stage3_max_live_parameters\":1e9,\"stage3_max_reuse_distance\":1e9},\"bf16\":{\"enabled\":"
    "true},\"train_micro_batch_size_per_gpu\":1,\"gradient_accumulation_steps\":16}";
static const char *const offload_stage2 =
    "{\"zero_optimization\":{\"stage\":2,\"offload_optimizer\":{\"device\":\"cpu\"}}}";
static const char *const trainer =
    "{\"per_device_train_batch_size\":2,\"gradient_accumulation_steps\":8,\"learning_rate\":2e-5,"
    "\"adam_beta1\":0.9,\"adam_beta2\":0.95,\"adam_epsilon\":1e-7,\"weight_decay\":0.1,"
    "\"warmup_steps\":10,\"bf16\":true,\"max_grad_norm\":0.5,\"max_steps\":50,\"seed\":7}";

static void
test_ds_resolve_runs_a_plain_stage_2(void **state)
{
    (void)state;
    shl_engine_config e;
    expect_ok(resolve(plain_stage2, NULL, 2, &e, NULL));
    assert_int_equal(e.strategy, SHL_ZERO2);
    assert_int_equal(e.batch, 32);
    assert_int_equal(e.accum, 4);
    assert_int_equal(e.bucket_elems, 124439808); /* 5e8, and the model has fewer */
    assert_int_equal(e.compute_dtype, SHL_F16);
    assert_int_equal(e.master_dtype, SHL_F32);
    assert_int_equal(e.reduce_dtype, SHL_F16);
    assert_int_equal(e.scale.kind, SHL_SCALE_DYNAMIC);
    assert_true(e.scale.scale == 65536.0 && e.scale.window == 1000 && e.scale.hysteresis == 2);
    assert_true(e.optim.lr == 1e-4 && e.optim.weight_decay == 0.01 && e.optim.beta2 == 0.999);
    assert_true(e.optim.clip == 1.0);
    assert_true(e.zero.given && e.offload.optimizer == SHL_OFFLOAD_NONE);
}

/* The block keeps what is recomputed; the run says whether anything is. */
static void
test_ds_resolve_keeps_checkpoints_where_the_block_says(void **state)
{
    (void)state;
    static const char *const text =
        "{\"train_batch_size\": 4, \"activation_checkpointing\": {\"partition_activations\": true, "
        "\"cpu_checkpointing\": true, \"contiguous_memory_optimization\": true, "
        "\"number_checkpoints\": 12, \"synchronize_checkpoint_boundary\": true, \"profile\": "
        "true}}";
    for (int recomputes = 0; recomputes < 2; recomputes++) {
        shl_ds_config c;
        shl_engine_config e;
        shl_ds_facts facts = facts_of(2);
        facts.recomputes = recomputes == 1;
        shl_engine_config_init(&e);
        expect_ok(shl_ds_config_load(text, 2026, &c));
        expect_ok(shl_ds_resolve(&c, NULL, &facts, &e));
        assert_true((e.offload.activations == SHL_OFFLOAD_HOST) == facts.recomputes);
        const char *note = strstr(shl_str_get(&c.notes), "--recompute full");
        assert_true((note == NULL) == facts.recomputes);
        shl_ds_config_fini(&c);
    }
}

static void
test_ds_resolve_knows_the_offload_files(void **state)
{
    (void)state;
    const char *const sources[] = {offload_stage3, offload_stage2};
    for (size_t i = 0; i < 2; i++) {
        shl_ds_config c;
        shl_ds_facts facts = facts_of(2);
        expect_ok(shl_ds_config_load(sources[i], 2026, &c));
        expect_ok(shl_ds_config_auto(&c, i == 0 ? NULL : trainer, &facts));
        expect_ok(shl_ds_config_batch(&c, 2));
        assert_string_equal(shl_ds_text(&c, "zero_optimization.offload_optimizer.device"), "cpu");
        if (i == 0) {
            const char *z = "zero_optimization.stage3_prefetch_bucket_size";
            assert_int_equal(shl_ds_int(&c, "zero_optimization.reduce_bucket_size", 0), 768 * 768);
            assert_int_equal(shl_ds_int(&c, z, 0), 530841);
            assert_int_equal(shl_ds_get(&c, z)->origin, SHL_DS_AUTO);
            z = "zero_optimization.stage3_param_persistence_threshold";
            assert_int_equal(shl_ds_int(&c, z, 0), 7680);
            assert_int_equal(shl_ds_int(&c, "train_batch_size", 0), 32);
            assert_int_equal(shl_ds_get(&c, "train_batch_size")->origin, SHL_DS_DERIVED);
        } else {
            assert_int_equal(shl_ds_int(&c, "train_batch_size", 0), 32);
            assert_true(shl_ds_bool(&c, "bf16.enabled"));
            assert_int_equal(c.trainer_steps, 50);
        }
        shl_ds_config_fini(&c);
    }
}

static void
test_ds_resolve_batch_triangle(void **state)
{
    (void)state;
    static const struct {
        const char *train, *micro, *accum;
        int64_t is_train, is_micro, is_accum; /* 0: refused */
    } rows[] = {
        {"48", "4", "3", 48, 4, 3}, {"48", "4", NULL, 48, 4, 3},   {"48", NULL, "3", 48, 4, 3},
        {NULL, "4", "3", 48, 4, 3}, {"48", NULL, NULL, 48, 12, 1}, {NULL, "4", NULL, 16, 4, 1},
        {NULL, NULL, "3", 0, 0, 0}, {NULL, NULL, NULL, 0, 0, 0},   {"47", "4", "3", 0, 0, 0},
        {"50", "4", NULL, 0, 0, 0}, {"50", NULL, "3", 0, 0, 0},    {"50", NULL, NULL, 0, 0, 0},
        {"2", NULL, NULL, 0, 0, 0},
    };
    for (size_t i = 0; i < SHL_ARRAY_LEN(rows); i++) {
        const char *names[] = {"train_batch_size", "train_micro_batch_size_per_gpu",
                               "gradient_accumulation_steps"};
        const char *values[] = {rows[i].train, rows[i].micro, rows[i].accum};
        shl_str text = {0};
        shl_ds_config c;
        shl_str_add(&text, "{");
        for (size_t j = 0; j < 3; j++) {
            if (values[j]) {
                shl_str_add(&text, "%s\"%s\": %s", text.len > 1 ? ", " : "", names[j], values[j]);
            }
        }
        shl_str_add(&text, "}");
        expect_ok(shl_ds_config_load(shl_str_get(&text), 2026, &c));
        shl_code code = shl_ds_config_batch(&c, 4);
        if (rows[i].is_train > 0) {
            expect_ok(code);
            assert_int_equal(shl_ds_int(&c, names[0], 0), rows[i].is_train);
            assert_int_equal(shl_ds_int(&c, names[1], 0), rows[i].is_micro);
            assert_int_equal(shl_ds_int(&c, names[2], 0), rows[i].is_accum);
        } else {
            assert_int_equal(code, SHL_E_CONFIG);
            assert_true(shl_err_get()->because[0] && shl_err_get()->advice[0]);
        }
        shl_ds_config_fini(&c);
        shl_str_fini(&text);
    }
}

static void
test_ds_resolve_auto_follows_the_trainer(void **state)
{
    (void)state;
    shl_engine_config e;
    expect_ok(resolve("{\"train_batch_size\": \"auto\", \"train_micro_batch_size_per_gpu\": "
                      "\"auto\", \"gradient_accumulation_steps\": \"auto\", \"gradient_clipping\": "
                      "\"auto\", \"bf16\": {\"enabled\": \"auto\"}, \"fp16\": {\"enabled\": "
                      "\"auto\"}, \"optimizer\": {\"type\": \"AdamW\", \"params\": {\"lr\": "
                      "\"auto\", \"betas\": \"auto\", \"eps\": \"auto\", \"weight_decay\": "
                      "\"auto\"}}, \"scheduler\": {\"type\": \"WarmupDecayLR\", \"params\": "
                      "{\"warmup_min_lr\": \"auto\", \"warmup_max_lr\": \"auto\", "
                      "\"warmup_num_steps\": \"auto\", \"total_num_steps\": \"auto\"}}, "
                      "\"zero_optimization\": {\"stage\": 2, \"reduce_bucket_size\": \"auto\", "
                      "\"stage3_prefetch_bucket_size\": \"auto\"}}",
                      trainer, 4, &e, NULL));
    assert_true(e.batch == 2 && e.accum == 8 && e.seed == 7 && e.optim.clip == 0.5);
    assert_true(e.optim.lr == 2e-5 && e.optim.beta2 == 0.95 && e.optim.eps == 1e-7);
    assert_true(e.optim.weight_decay == 0.1 && e.compute_dtype == SHL_BF16);
    assert_int_equal(e.bucket_elems, 768 * 768);
    char text[SHL_DS_SCHEDULE_TEXT_BYTES];
    shl_ds_schedule_format(&e.optim.named, text, sizeof(text));
    assert_non_null(strstr(text, "WarmupDecayLR("));
    assert_non_null(strstr(text, "warmup_num_steps=10"));
    assert_non_null(strstr(text, "total_num_steps=50"));
    /* Without blocks: the Trainer's own AdamW, linear decay and precision. */
    expect_ok(resolve("{\"zero_optimization\": {\"stage\": 1}}", trainer, 2, &e, NULL));
    assert_true(e.batch == 2 && e.accum == 8 && e.optim.lr == 2e-5);
    assert_int_equal(e.compute_dtype, SHL_BF16);
    assert_int_equal(e.optim.named.kind, SHL_HF_LINEAR);
    assert_true(shl_lr_at(&e.optim, 5) == 1e-5 && shl_lr_at(&e.optim, 50) == 0.0);
    expect_words(resolve("{\"train_batch_size\": 99, \"gradient_clipping\": 2, \"optimizer\": "
                         "{\"type\": \"AdamW\", \"params\": {\"lr\": 0.1, \"eps\": 1e-7}}}",
                         trainer, 2, &e, NULL),
                 (const char *const[]){"train_batch_size 99", "gradient_clipping 2", "the Trainer",
                                       "max_grad_norm", "optimizer.params.lr 0.1", "2e-5", NULL});
    assert_null(strstr(shl_err_get()->because, "eps"));
    REFUSES("{\"train_batch_size\": 4, \"zero_optimization\": {\"sub_group_size\": \"auto\"}}", 2,
            "sub_group_size", "auto");
    REFUSES("{\"train_batch_size\": \"auto\"}", 2, "train_batch_size", "--trainer-args");
}

static void
test_ds_resolve_dated_defaults(void **state)
{
    (void)state;
    for (int dated = 2023; dated <= 2026; dated += 3) {
        shl_ds_config c;
        expect_ok(shl_ds_config_load("{\"bf16\": {\"enabled\": true}}", dated, &c));
        bool late = dated == 2026;
        assert_true(shl_ds_real(&c, "gradient_clipping", -1.0) == (late ? 1.0 : 0.0));
        assert_true(shl_ds_bool(&c, "bf16.check_grad_overflow") == late);
        assert_true(shl_ds_bool(&c, "zero_optimization.offload_param.pin_memory") == late);
        shl_ds_config_fini(&c);
    }
    shl_ds_config c;
    assert_int_equal(shl_ds_config_load("{}", 2024, &c), SHL_E_USAGE);
    shl_ds_config_fini(&c);
}

static void
test_ds_resolve_forms_and_deprecated_names(void **state)
{
    (void)state;
    shl_engine_config e;
    shl_str notes = {0};
    /* {"train_batch_size":4} */
    expect_ok(resolve("eyJ0cmFpbl9iYXRjaF9zaXplIjo0fQ==", NULL, 2, &e, NULL));
    assert_int_equal(e.batch, 2);
    expect_ok(resolve("{\"train_batch_size\": 4, \"bfloat16\": {\"enabled\": true}, "
                      "\"zero_optimization\": true}",
                      NULL, 2, &e, &notes));
    assert_true(e.compute_dtype == SHL_BF16 && e.strategy == SHL_ZERO1);
    assert_non_null(strstr(shl_str_get(&notes), "bfloat16 is deprecated: bf16"));
    shl_str_fini(&notes);
    REFUSES("{\"train_batch_size\": 4, \"bf16\": {}, \"bfloat16\": {}}", 2, "bfloat16",
            "both together");
    expect_ok(
        resolve("{\"train_batch_size\": 4, \"zero_optimization\": {\"stage\": 2, \"cpu_offload\": "
                "true}}",
                NULL, 2, &e, NULL));
    assert_true(e.offload.optimizer == SHL_OFFLOAD_HOST && e.offload.param == SHL_OFFLOAD_NONE);
    REFUSES("{\"train_batch_size\": 4, \"train_batch_size\": 4}", 2, ":1:", "duplicate");
    REFUSES("{\n  \"train_batch_size\": 4,\n  # why\n}", 2, ":3:", "comments");
    REFUSES("no-such-file.json", 2, "no-such-file.json", "no file");
    REFUSES("[]", 2, "[]");
    expect_ok(resolve("{\"train_batch_size\": 4, \"zero_optimization\": {\"stage\": 2, "
                      "\"cpu_offload\": false}}",
                      NULL, 2, &e, NULL));
}

static void
test_ds_resolve_unknown_keys_at_every_level(void **state)
{
    (void)state;
    shl_engine_config e;
    REFUSES("{\n \"train_batch_size\": 4,\n \"gradient_cliping\": 1}", 2,
            ":3:2:", "gradient_clipping");
    REFUSES("{\"zero_optimization\": {\"stage\": 2,\n   \"reduce_bucket_sise\": 5}}", 2,
            ":2:4:", "reduce_bucket_size");
    REFUSES("{\"zero_optimization\": {\"offload_optimizer\": {\"devise\": \"cpu\"}}}", 2,
            "offload_optimizer.devise", "\"device\"");
    REFUSES("{\"optimizer\": {\"type\": \"Adam\", \"params\": {\"lrr\": 1}}}", 2,
            "optimizer.params.lrr", "\"lr\"");
    REFUSES("{\"zero_optimization.stage\": 2}", 2, "zero_optimization.stage", "not a key");
    REFUSES("{\"\": 2}", 2, "not a key");
    REFUSES("{\"aio\": {\"thread_count\": 1}}", 2, "aio.thread_count");
    REFUSES("{\"zero_optimization\": 3}", 2, "zero_optimization", "block");
}

static void
test_ds_resolve_bad_inputs(void **state)
{
    (void)state;
    shl_engine_config e;
    shl_str notes = {0};
#define STAGE(n, rest) "{\"train_batch_size\": 4, \"zero_optimization\": {\"stage\": " n rest "}}"
    REFUSES(STAGE("2", ", \"reduce_bucket_size\": 0"), 2, "reduce_bucket_size is 0", "at least 1");
    REFUSES("{\"train_batch_size\": 32, \"train_micro_batch_size_per_gpu\": 3, "
            "\"gradient_accumulation_steps\": 4}",
            2, "32 is not 3 (micro) x 4 (accumulation) x 2 (ranks) = 24");
    REFUSES("{\"train_batch_size\": 256, \"gradient_accumulation_steps\": 4}", 3,
            "256 sequences are not whole for 3 ranks", "264");
    REFUSES(STAGE("0", ", \"offload_optimizer\": {\"device\": \"cpu\"}"), 2, "offload_optimizer",
            "stage 0", "\"stage\": 1");
    REFUSES(STAGE("2", ", \"offload_param\": {\"device\": \"cpu\"}"), 2, "offload_param", "stage 2",
            "\"stage\": 3");
    REFUSES(STAGE("2", ", \"offload_optimizer\": {\"device\": \"nvme\"}"), 2, "nvme",
            "DeepSpeed refuses it too");
    REFUSES(STAGE("3", ", \"offload_optimizer\": {\"device\": \"nvme\"}"), 2, "nvme",
            "not in this build");
    REFUSES("{\"train_batch_size\": 4, \"fp16\": {\"enabled\": true, "
            "\"fp16_master_weights_and_grads\": true}, \"zero_optimization\": {\"stage\": 2}}",
            2, "fp16_master_weights_and_grads needs offload_optimizer", "CPU memory only");
    REFUSES("{\"train_batch_size\": 4, \"bf16\": {\"enabled\": true, "
            "\"bf16_master_weights_and_grads\": true}, \"zero_optimization\": {\"stage\": 1}}",
            2, "needs offload_optimizer", "or bf16_optimizer_states");
    REFUSES("{\"train_batch_size\": 4, \"bf16\": {\"bf16_master_weights_and_grads\": true, "
            "\"bf16_optimizer_states\": true}, \"zero_optimization\": {\"stage\": 1}}",
            2, "needs a model in that dtype", "bf16 off");
    REFUSES("{\"train_batch_size\": 4, \"activation_checkpointing\": "
            "{\"contiguous_memory_optimization\": true}}",
            2, "contiguous_memory_optimization needs partition_activations", "refuses it too");
    REFUSES("{\"train_batch_size\": 4, \"activation_checkpointing\": "
            "{\"contiguous_memory_optimization\": true, "
            "\"partition_activations\": true}}",
            2, "needs number_checkpoints");
    REFUSES(STAGE("2", ", \"offload_optimizer\": {\"ratio\": 0.5}"), 2, "ratio", "stage 3");
    REFUSES(STAGE("2", ", \"stage3_prefetch_bucket_size\": 7"), 2, "stage3_prefetch_bucket_size",
            "this is stage 2");
    REFUSES("{\"train_batch_size\": 4, \"optimizer\": {\"type\": \"AdamZ\"}}", 2, "optimizer.type",
            "AdamZ");
    REFUSES("{\"train_batch_size\": 4, \"optimizer\": {\"type\": \"Muon\"}}", 2, "Muon",
            "not in this build");
    REFUSES("{\"train_batch_size\": 4, \"optimizer\": {\"type\": \"SGD\", \"params\": {\"betas\": "
            "[0.9, 0.9]}}}",
            2, "optimizer.params", "sgd has no betas");
    REFUSES("{\"train_batch_size\": 4, \"optimizer\": {\"type\": \"Adam\", \"params\": "
            "{\"max_grad_norm\": 0.7}}}",
            2, "max_grad_norm", "\"gradient_clipping\": 0.7");
    REFUSES("{\"train_batch_size\": 4, \"fp16\": {\"enabled\": true}, \"bf16\": {\"enabled\": "
            "true}}",
            2, "both enabled");
    REFUSES("{\"train_batch_size\": 4, \"scheduler\": {\"type\": \"WarmupLR\", \"params\": "
            "{\"cycle_min_lr\": 1}}}",
            2, "cycle_min_lr", "OneCycle");
    REFUSES("{\"train_batch_size\": 4, \"prescale_gradients\": true, \"zero_optimization\": "
            "{\"stage\": 2}}",
            2, "prescale_gradients beside reduce_scatter", "\"reduce_scatter\": false",
            "DeepSpeed refuses it too");
    REFUSES("{\"train_batch_size\": 4, \"gradient_predivide_factor\": 2, \"zero_optimization\": "
            "{\"stage\": 1}}",
            2, "gradient_predivide_factor beside reduce_scatter", "reads it nowhere");
    REFUSES("{\"train_batch_size\": 4, \"gradient_allreduce_op\": \"sum\", "
            "\"zero_optimization\": {\"stage\": 3}}",
            2, "gradient_allreduce_op", "stages 0 to 2");
    REFUSES("{\"train_batch_size\": 4, \"optimizer\": {\"type\": \"Lion\", \"params\": "
            "{\"bias_correction\": false}}}",
            2, "optimizer.params", "lion has no bias correction");
    assert_int_equal(resolve("{\"train_batch_size\": 4, \"optimizer\": {\"type\": \"SGD\", "
                             "\"params\": {\"nesterov\": true}}}",
                             NULL, 2, &e, NULL),
                     SHL_E_USAGE);
    assert_non_null(strstr(shl_err_get()->what, "nesterov without momentum"));
    REFUSES("{\"train_batch_size\": 4, \"flops_profiler\": {\"enabled\": true}}", 2,
            "flops_profiler.enabled");
    expect_ok(resolve(STAGE("2", ", \"reduce_bucket_size\": 5e8"), NULL, 2, &e, &notes));
    assert_int_equal(e.bucket_elems, 124439808);
    assert_non_null(strstr(shl_str_get(&notes), "500000000 is above the model: 124439808"));
    assert_non_null(strstr(shl_str_get(&notes), "adamw of the command line"));
    shl_str_fini(&notes);
}

/* emit, read, resolve: the same engine configuration. */
static void
expect_round_trip(const char *text)
{
    shl_engine_config first, second;
    shl_str out = {0}, again = {0};
    expect_ok(resolve(text, NULL, 2, &first, NULL));
    expect_ok(shl_ds_emit(&first, 2, &out));
    expect_ok(resolve(shl_str_get(&out), NULL, 2, &second, NULL));
    expect_ok(shl_ds_emit(&second, 2, &again));
    assert_string_equal(shl_str_get(&out), shl_str_get(&again));
    assert_int_equal(first.strategy, second.strategy);
    assert_int_equal(first.reduce_every, second.reduce_every);
    assert_int_equal(first.bucket_elems, second.bucket_elems);
    assert_true(first.batch == second.batch && first.accum == second.accum);
    assert_true(first.master_dtype == second.master_dtype);
    assert_true(first.compute_dtype == second.compute_dtype);
    assert_true(first.reduce_dtype == second.reduce_dtype);
    assert_true(first.grad_dtype == second.grad_dtype);
    assert_true(first.moment_dtype == second.moment_dtype);
    assert_true(first.check_overflow == second.check_overflow);
    assert_true(first.offload.optimizer == second.offload.optimizer);
    assert_true(first.offload.activations == second.offload.activations);
    assert_true(first.scale.kind == second.scale.kind && first.scale.scale == second.scale.scale);
    const shl_optim_config *a = &first.optim, *b = &second.optim;
    assert_true(a->lr == b->lr && a->beta1 == b->beta1 && a->beta2 == b->beta2);
    assert_true(a->eps == b->eps && a->weight_decay == b->weight_decay && a->clip == b->clip);
    for (int64_t k = 0; k < 40; k++) {
        assert_true(shl_lr_at(a, k) == shl_lr_at(b, k));
    }
    shl_str_fini(&out);
    shl_str_fini(&again);
}

static void
test_ds_resolve_emit_goes_round(void **state)
{
    (void)state;
    expect_round_trip(plain_stage2);
    expect_round_trip("{\"train_batch_size\": 4, \"gradient_clipping\": 0.1}");
    expect_round_trip("{\"train_batch_size\": 4, \"bf16\": {\"enabled\": true}, "
                      "\"data_types\": {\"grad_accum_dtype\": \"fp32\"}, \"zero_optimization\": "
                      "{\"stage\": 1, \"reduce_bucket_size\": 4096}}");
    expect_round_trip("{\"train_batch_size\": 4, \"fp16\": {\"enabled\": true, \"loss_scale\": "
                      "128}, \"zero_optimization\": {\"stage\": 3}, \"scheduler\": {\"type\": "
                      "\"OneCycle\", \"params\": {\"cycle_min_lr\": 0.001, \"cycle_max_lr\": "
                      "0.01, \"cycle_first_step_size\": 10}}}");
    expect_round_trip("{\"train_batch_size\": 4, \"bf16\": {\"enabled\": true, "
                      "\"bf16_master_weights_and_grads\": true, \"bf16_optimizer_states\": true}, "
                      "\"zero_optimization\": {\"stage\": 2}, \"scheduler\": {\"type\": "
                      "\"WarmupLR\", \"params\": {\"warmup_type\": \"linear\"}}}");
    expect_round_trip("{\"train_batch_size\": 4, \"fp16\": {\"enabled\": true, "
                      "\"fp16_master_weights_and_grads\": true}, \"activation_checkpointing\": "
                      "{\"cpu_checkpointing\": true}, \"zero_optimization\": {\"stage\": 2, "
                      "\"offload_optimizer\": {\"device\": \"cpu\"}}}");
    expect_round_trip("{\"train_batch_size\": 4, \"bf16\": {\"enabled\": true, "
                      "\"bf16_master_weights_and_grads\": true}, \"zero_optimization\": "
                      "{\"stage\": 3, \"offload_optimizer\": {\"device\": \"cpu\"}}}");
    shl_engine_config e;
    shl_str out = {0};
    shl_engine_config_init(&e);
    e.strategy = SHL_FSDP;
    assert_int_equal(shl_ds_emit(&e, 2, &out), SHL_E_USAGE);
    shl_engine_config_init(&e);
    e.strategy = SHL_ZERO1;
    shl_dtype_policy_set(&e, SHL_BF16);
    e.master_dtype = e.grad_dtype = e.reduce_dtype = SHL_BF16;
    assert_int_equal(shl_ds_emit(&e, 2, &out), SHL_E_USAGE);
    assert_non_null(strstr(shl_err_get()->what, "policy of dtypes"));
    e.offload.optimizer = SHL_OFFLOAD_HOST;
    assert_int_equal(shl_ds_emit(&e, 2, &out), SHL_OK);
    shl_str_fini(&out);
}

/* DeepSpeed's types and what they take; what the file leaves out is DeepSpeed's own. */
static void
test_ds_resolve_maps_every_optimizer(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        shl_optim_kind kind;
        double lr, beta2, eps, decay, momentum, most;
    } rows[] = {
        {"\"Adam\"", SHL_OPTIM_ADAMW, 1e-3, 0.999, 1e-8, 0, 0, 0},
        {"\"Adam\", \"params\": {\"adam_w_mode\": false, \"lr\": 0.5}", SHL_OPTIM_ADAM, 0.5, 0.999,
         1e-8, 0, 0, 0},
        {"\"adamw\", \"params\": {\"adam_w_mode\": false}", SHL_OPTIM_ADAMW, 1e-3, 0.999, 1e-8, 0,
         0, 0},
        {"\"Lamb\", \"params\": {\"max_coeff\": 0.3}", SHL_OPTIM_LAMB, 1e-3, 0.999, 1e-8, 0, 0,
         0.3},
        {"\"Lion\", \"params\": {\"weight_decay\": 0.2}", SHL_OPTIM_LION, 1e-3, 0.99, 0, 0.2, 0, 0},
        {"\"Adagrad\"", SHL_OPTIM_ADAGRAD, 1e-2, 0, 1e-10, 0, 0, 0},
        {"\"SGD\", \"params\": {\"momentum\": 0.9}", SHL_OPTIM_SGD, 1e-3, 0, 0, 0, 0.9, 0},
    };
    for (size_t i = 0; i < SHL_ARRAY_LEN(rows); i++) {
        shl_engine_config e;
        char text[256];
        (void)snprintf(text, sizeof(text),
                       "{\"train_batch_size\": 4, \"optimizer\": {\"type\": %s}}", rows[i].text);
        expect_ok(resolve(text, NULL, 2, &e, NULL));
        assert_int_equal(e.optim.kind, rows[i].kind);
        assert_true(e.optim.lr == rows[i].lr && e.optim.beta2 == rows[i].beta2);
        assert_true(e.optim.eps == rows[i].eps && e.optim.weight_decay == rows[i].decay);
        assert_true(e.optim.momentum == rows[i].momentum && e.optim.max_coeff == rows[i].most);
        shl_str emitted = {0};
        shl_engine_config again;
        expect_ok(shl_ds_emit(&e, 2, &emitted));
        expect_ok(resolve(shl_str_get(&emitted), NULL, 2, &again, NULL));
        assert_int_equal(again.optim.kind, e.optim.kind);
        assert_true(again.optim.lr == e.optim.lr && again.optim.momentum == e.optim.momentum);
        shl_str_fini(&emitted);
    }
}

/* No allocation is lost, whichever fails. */
static void
test_ds_resolve_leaves_nothing(void **state)
{
    (void)state;
    shl_engine_config e;
    int64_t before = shl_heap_live_blocks();
    expect_ok(resolve(plain_stage2, NULL, 2, &e, NULL));
    assert_int_equal(shl_heap_live_blocks(), before);
    expect_ok(resolve(offload_stage2, trainer, 2, &e, NULL));
    assert_true(e.offload.optimizer == SHL_OFFLOAD_HOST);
    assert_int_equal(resolve(plain_stage2, trainer, 3, &e, NULL), SHL_E_CONFIG);
    assert_int_equal(shl_heap_live_blocks(), before);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ds_resolve_runs_a_plain_stage_2),
        cmocka_unit_test(test_ds_resolve_knows_the_offload_files),
        cmocka_unit_test(test_ds_resolve_keeps_checkpoints_where_the_block_says),
        cmocka_unit_test(test_ds_resolve_batch_triangle),
        cmocka_unit_test(test_ds_resolve_auto_follows_the_trainer),
        cmocka_unit_test(test_ds_resolve_dated_defaults),
        cmocka_unit_test(test_ds_resolve_forms_and_deprecated_names),
        cmocka_unit_test(test_ds_resolve_unknown_keys_at_every_level),
        cmocka_unit_test(test_ds_resolve_bad_inputs),
        cmocka_unit_test(test_ds_resolve_emit_goes_round),
        cmocka_unit_test(test_ds_resolve_maps_every_optimizer),
        cmocka_unit_test(test_ds_resolve_leaves_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

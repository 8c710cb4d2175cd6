/* tests/engines/config: no key of ds_config.json is dead. A walk over the key table: for each key that works,
 * two files that differ in this key alone, and the count, peak, time or result that its row names
 * is another one. */
#include "tests/engines/api/api_runs.h"
#include "tests/support/engine_world.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <dirent.h>

#include <cmocka.h>
#include <jansson.h>

#include "engines/config/ds_config.h"
#include "engines/config/zero_text.h"
#include "kernels/base/heap.h"
#include "kernels/base/types.h"

#define RANKS 4
#define MOST_VALUES 64

/* What is seen of one file. */
typedef struct seen {
    int n;
    double v[MOST_VALUES];
} seen;

static void
add(seen *s, double x)
{
    assert_true(s->n < MOST_VALUES);
    s->v[s->n++] = x;
}

static void
add_size(seen *s, size_t bytes)
{
    add(s, (double)bytes);
}

/* A world of four ranks, of which one is run, without data. */
static void
run_virtual(ew_config *c, ew_result *r)
{
    c->device = "virtual";
    c->ranks = RANKS;
    c->alpha_ns = 20000;
    ew_run(c, r);
    if (r->code != SHL_OK) {
        fail_msg("%s", r->what);
    }
}

/* One rank with data. */
static void
run_data(ew_config *c, ew_result *r)
{
    c->device = "cpu";
    c->ranks = 1;
    ew_run(c, r);
    if (r->code != SHL_OK) {
        fail_msg("%s", r->what);
    }
}

static void
see_tokens(ew_config *c, seen *s)
{
    ew_result r;
    run_virtual(c, &r);
    add(s, (double)r.reports[0].tokens);
}

static void
see_tag(ew_config *c, shl_tag tag, seen *s)
{
    ew_result r;
    run_virtual(c, &r);
    add_size(s, r.device[0].peak_tag_bytes[tag]);
}

#define SEE_TAG(name, tag)                                                                         \
    static void name(ew_config *c, seen *s)                                                        \
    {                                                                                              \
        see_tag(c, tag, s);                                                                        \
    }
SEE_TAG(see_act, SHL_TAG_ACT)
SEE_TAG(see_gather, SHL_TAG_GATHER)
SEE_TAG(see_param, SHL_TAG_PARAM)
SEE_TAG(see_master, SHL_TAG_MASTER)
SEE_TAG(see_optim, SHL_TAG_OPTIM)
SEE_TAG(see_grad, SHL_TAG_GRAD)

static void
see_device_peak(ew_config *c, seen *s)
{
    ew_result r;
    run_virtual(c, &r);
    add_size(s, r.device[0].peak_bytes);
}

static void
see_host_peak(ew_config *c, seen *s)
{
    ew_result r;
    run_virtual(c, &r);
    add_size(s, r.host[0].peak_bytes);
}

static void
see_host_staging(ew_config *c, seen *s)
{
    ew_result r;
    run_virtual(c, &r);
    add_size(s, r.host[0].peak_tag_bytes[SHL_TAG_STAGING]);
}

static void
see_pinned(ew_config *c, seen *s)
{
    ew_result r;
    run_virtual(c, &r);
    add_size(s, r.pinned_peak[0]);
}

static void
see_gather_calls(ew_config *c, seen *s)
{
    ew_result r;
    run_virtual(c, &r);
    add(s, (double)r.comm[0].kind[SHL_COLL_ALL_GATHER].calls);
}

static void
see_gather_bytes(ew_config *c, seen *s)
{
    ew_result r;
    run_virtual(c, &r);
    add(s, (double)r.comm[0].kind[SHL_COLL_ALL_GATHER].bytes);
}

static void
see_reduce_calls(ew_config *c, seen *s)
{
    ew_result r;
    run_virtual(c, &r);
    add(s, (double)r.comm[0].kind[SHL_COLL_REDUCE_SCATTER].calls);
}

static void
see_reduce_bytes(ew_config *c, seen *s)
{
    ew_result r;
    run_virtual(c, &r);
    add(s, (double)r.comm[0].kind[SHL_COLL_REDUCE_SCATTER].bytes);
}

static void
see_exposed(ew_config *c, seen *s)
{
    ew_result r;
    run_virtual(c, &r);
    add(s, (double)r.reports[1].exposed_comm_ns);
}

static void
see_clip(ew_config *c, seen *s)
{
    ew_result r;
    run_data(c, &r);
    add(s, r.reports[0].clip_coef);
}

/* Two ranks: a divisor of one is none. */
static void
see_norm(ew_config *c, seen *s)
{
    ew_result r;
    c->ranks = 2;
    ew_run(c, &r);
    assert_int_equal(r.code, SHL_OK);
    add(s, r.reports[0].grad_norm);
}

static void
see_parameters(ew_config *c, seen *s)
{
    ew_result r;
    run_data(c, &r);
    add(s, (double)(r.param_hash >> 32));
    add(s, (double)(r.param_hash & 0xffffffffu));
}

static const float *
too_large(void *ctx, const char *name)
{
    SHL_UNUSED(name);
    return ctx;
}

static void
see_skipped(ew_config *c, seen *s)
{
    static float values[4 * 20 * 20]; /* of the largest tensor */
    ew_result r;
    for (size_t i = 0; i < SHL_ARRAY_LEN(values); ++i) {
        values[i] = 1e38f;
    }
    c->initial = too_large;
    c->initial_ctx = values;
    run_data(c, &r);
    add(s, (double)r.reports[c->steps - 1].skipped_steps);
}

/* The scale under overflows and clean steps in turn, to the error that it may end with. */
static void
see_scale(ew_config *c, seen *s)
{
    static const char flags[] = "oo.o.o....o.oooo....";
    shl_scaler scaler;
    shl_scaler_init(&scaler, &c->engine.scale);
    for (size_t i = 0; flags[i] != '\0'; ++i) {
        add(s, scaler.scale);
        if (shl_scaler_update(&scaler, &c->engine.scale, flags[i] == 'o') != SHL_OK) {
            return;
        }
    }
}

/* Files in the folder of a step, saved by two ranks. */
static void
see_files(ew_config *c, seen *s)
{
    char folder[] = "/tmp/shl-effects-XXXXXX", zero[SHL_ZERO_TEXT_BYTES], path[64], command[64];
    api_run r;
    int n = 0;
    assert_non_null(mkdtemp(folder));
    api_run_init(&r, "zero3", 2);
    shl_zero_options_format(&c->engine.zero, zero, sizeof(zero));
    r.o.zero = zero;
    r.steps = 1;
    r.save_dir = folder;
    assert_int_equal(api_run_told(&r), SHL_LAB_OK);
    shl_strf(path, sizeof(path), "%s/step-00000001", folder);
    DIR *list = opendir(path);
    assert_non_null(list);
    while (readdir(list)) {
        n++;
    }
    (void)closedir(list);
    add(s, n);
    shl_strf(command, sizeof(command), "rm -rf '%s'", folder);
    assert_int_equal(system(command), 0);
}

/* The largest one that the gradients of a run bear. */
static void
see_run_scale(ew_config *c, seen *s)
{
    ew_result r;
    c->steps = 12;
    ew_run(c, &r);
    assert_int_equal(r.code, SHL_OK);
    assert_false(r.reports[c->steps - 1].skipped);
    add(s, r.reports[c->steps - 1].loss_scale);
}

static void
see_rate(ew_config *c, seen *s)
{
    for (int64_t step = 0; step < 40; ++step) {
        add(s, shl_lr_at(&c->engine.optim, step));
    }
}

static void
see_betas(ew_config *c, seen *s)
{
    for (int64_t step = 0; step < 20; ++step) {
        double beta1 = 0.0, beta2 = 0.0;
        shl_betas_at(&c->engine.optim, step, &beta1, &beta2);
        add(s, beta1);
        add(s, beta2);
    }
}

/* What a row may name. */
static const struct {
    const char *effect;
    void (*see)(ew_config *c, seen *s);
} effects[] = {
    {"tokens of a step", see_tokens},
    {"peak of act", see_act},
    {"peak of gather", see_gather},
    {"peak of param", see_param},
    {"peak of master", see_master},
    {"peak of optim", see_optim},
    {"peak of grad", see_grad},
    {"device peak", see_device_peak},
    {"host peak", see_host_peak},
    {"host peak of staging", see_host_staging},
    {"pinned peak", see_pinned},
    {"gather calls", see_gather_calls},
    {"gather bytes", see_gather_bytes},
    {"reduction calls", see_reduce_calls},
    {"reduction bytes", see_reduce_bytes},
    {"exposed communication", see_exposed},
    {"clip factor", see_clip},
    {"gradient norm", see_norm},
    {"parameters", see_parameters},
    {"skipped steps", see_skipped},
    {"files of a checkpoint", see_files},
    {"loss scale", see_scale},
    {"loss scale of a run", see_run_scale},
    {"learning rate", see_rate},
    {"betas", see_betas},
};

#define MICRO "\"train_micro_batch_size_per_gpu\":1"
#define BF16 "\"bf16\":{\"enabled\":true}"
#define ZERO(stage, more) "{" MICRO ",\"zero_optimization\":{\"stage\":" stage more "}}"
/* Gathers that nothing holds back. */
#define GATHERS(more) ZERO("3", ",\"stage3_param_persistence_threshold\":0" more)
#define FREE ",\"stage3_max_reuse_distance\":0,\"stage3_prefetch_bucket_size\":0"
#define HOST ",\"offload_optimizer\":{\"device\":\"cpu\"}"
#define FP16(more) "{" MICRO ",\"fp16\":{\"enabled\":true" more "}}"
#define FOUND "\"fp16\":{\"enabled\":true,\"initial_scale_power\":24,\"hysteresis\":1}"
#define OPTIM(type, more)                                                                          \
    "{" MICRO ",\"optimizer\":{\"type\":\"" type "\",\"params\":{\"lr\":0.01" more "}}}"
#define RATE(type, more) "{" MICRO ",\"scheduler\":{\"type\":\"" type "\",\"params\":{" more "}}}"
#define COSINE "\"warmup_num_steps\":5,\"total_num_steps\":30"
#define CYCLE                                                                                      \
    "\"cycle_min_lr\":0.001,\"cycle_max_lr\":0.01,\"cycle_first_step_size\":8,\"decay_step_"       \
    "size\":"                                                                                      \
    "4"

/* A file, and two values of the key in it, as JSON. `with`: a key that takes the same value, since one is
 * refused without the other. */
static const struct proof {
    const char *path, *base, *a, *b, *with;
} proofs[] = {
    {"train_batch_size", "{\"gradient_accumulation_steps\":1}", "4", "8", NULL},
    {"train_micro_batch_size_per_gpu", "{\"gradient_accumulation_steps\":1}", "1", "2", NULL},
    {"gradient_accumulation_steps", ZERO("2", ""), "1", "3", NULL},
    {"gradient_clipping", "{" MICRO "}", "0", "0.01", NULL},
    {"zero_optimization.stage", "{" MICRO "}", "0", "1", NULL},
    {"zero_optimization.stage", "{" MICRO "}", "1", "2", NULL},
    {"zero_optimization.stage", "{" MICRO "}", "2", "3", NULL},
    {"zero_optimization.reduce_bucket_size", ZERO("1", ""), "2000", "9000", NULL},
    {"zero_optimization.reduce_bucket_size", ZERO("3", ""), "2000", "9000", NULL},
    {"zero_optimization.overlap_comm", ZERO("2", ",\"reduce_bucket_size\":2000"), "true", "false",
     NULL},
    {"zero_optimization.sub_group_size",
     "{" MICRO "," BF16 ",\"zero_optimization\":{\"stage\":3" HOST "}}", "500", "1000", NULL},
    {"zero_optimization.stage3_prefetch_bucket_size", GATHERS(",\"stage3_max_reuse_distance\":0"),
     "0", "5000", NULL},
    {"zero_optimization.stage3_param_persistence_threshold", ZERO("3", ""), "0", "80", NULL},
    {"zero_optimization.stage3_model_persistence_threshold", ZERO("3", ""), "100", "3000", NULL},
    {"zero_optimization.stage3_max_live_parameters", GATHERS(",\"stage3_max_reuse_distance\":0"),
     "3000", "100000", NULL},
    {"zero_optimization.stage3_max_reuse_distance", GATHERS(""), "0", "5000", NULL},
    {"zero_optimization.stage3_module_granularity_threshold", GATHERS(FREE), "0", "723", NULL},
    {"zero_optimization.stage3_allgather_sequential", GATHERS(FREE), "false", "true", NULL},
    {"zero_optimization.stage3_gather_16bit_weights_on_model_save", ZERO("3", ""), "false", "true",
     NULL},
    {"zero_optimization.leaf_module.classes", GATHERS(FREE), "[]", "[\"GPT2Block\"]", NULL},
    {"zero_optimization.leaf_module.names", GATHERS(FREE), "[]", "[\"transformer.h.0\"]", NULL},
    {"zero_optimization.leaf_module.name_suffixes", GATHERS(FREE), "[]", "[\"mlp\"]", NULL},
    {"zero_optimization.offload_optimizer.device", ZERO("2", ""), "\"none\"", "\"cpu\"", NULL},
    {"zero_optimization.offload_optimizer.pin_memory", ZERO("1", HOST), "false", "true", NULL},
    {"zero_optimization.offload_optimizer.ratio", ZERO("3", HOST ",\"sub_group_size\":500"), "0.3",
     "0.6", NULL},
    {"zero_optimization.offload_param.device", ZERO("3", ""), "\"none\"", "\"cpu\"", NULL},
    {"zero_optimization.offload_param.pin_memory",
     ZERO("3", ",\"offload_param\":{\"device\":\"cpu\"}"), "false", "true", NULL},
    {"activation_checkpointing.cpu_checkpointing", "{" MICRO "}", "false", "true", NULL},
    {"fp16.enabled", "{" MICRO "}", "false", "true", NULL},
    {"fp16.loss_scale", FP16(""), "0", "128", NULL},
    {"fp16.initial_scale_power", FP16(""), "16", "8", NULL},
    {"fp16.loss_scale_window", FP16(""), "2", "3", NULL},
    {"fp16.hysteresis", FP16(""), "1", "3", NULL},
    {"fp16.consecutive_hysteresis", FP16(""), "false", "true", NULL},
    {"fp16.min_loss_scale", FP16(",\"hysteresis\":1,\"initial_scale_power\":4"), "1", "8", NULL},
    {"fp16.fp16_master_weights_and_grads", FP16("},\"zero_optimization\":{\"stage\":2" HOST),
     "false", "true", NULL},
    {"bf16.enabled", "{" MICRO "}", "false", "true", NULL},
    {"bf16.check_grad_overflow", "{" MICRO "," BF16 "}", "true", "false", NULL},
    {"bf16.bf16_master_weights_and_grads",
     "{" MICRO "," BF16 ",\"zero_optimization\":{\"stage\":2}}", "false", "true",
     "bf16.bf16_optimizer_states"},
    {"bf16.bf16_optimizer_states", "{" MICRO "," BF16 ",\"zero_optimization\":{\"stage\":2}}",
     "false", "true", "bf16.bf16_master_weights_and_grads"},
    {"data_types.grad_accum_dtype", "{" MICRO "," BF16 ",\"zero_optimization\":{\"stage\":2}}",
     "\"bf16\"", "\"fp32\"", NULL},
    {"data_types.grad_accum_dtype", "{" MICRO "," BF16 ",\"zero_optimization\":{\"stage\":3}}",
     "null", "\"fp32\"", NULL},
    {"data_types.grad_accum_dtype", "{" MICRO "," BF16 ",\"zero_optimization\":{\"stage\":1}}",
     "null", "\"fp32\"", NULL},
    {"communication_data_type", "{" MICRO "," BF16 ",\"zero_optimization\":{\"stage\":2}}",
     "\"bf16\"", "\"fp32\"", NULL},
    {"communication_data_type", "{" MICRO "," BF16 ",\"zero_optimization\":{\"stage\":3}}", "null",
     "\"fp32\"", NULL},
    {"communication_data_type", "{" MICRO "," BF16 ",\"zero_optimization\":{\"stage\":1}}", "null",
     "\"fp32\"", NULL},
    {"zero_optimization.reduce_scatter",
     "{" MICRO "," FOUND ",\"zero_optimization\":{\"stage\":2}}", "true", "false", NULL},
    {"prescale_gradients", "{" MICRO "," FOUND "}", "false", "true", NULL},
    {"gradient_predivide_factor", "{" MICRO "," FOUND "}", "1", "2", NULL},
    {"gradient_predivide_factor",
     "{" MICRO "," FOUND ",\"zero_optimization\":{\"stage\":3,\"reduce_scatter\":false}}", "1",
     "0.5", NULL},
    {"communication_data_type",
     "{" MICRO "," BF16 ",\"data_types\":{\"grad_accum_dtype\":\"fp32\"},\"zero_optimization\":"
     "{\"stage\":1}}",
     "\"bf16\"", "\"fp32\"", NULL},
    {"gradient_allreduce_op", ZERO("2", ""), "\"mean\"", "\"sum\"", NULL},
    {"optimizer.type", OPTIM("AdamW", ""), "\"AdamW\"", "\"Lion\"", NULL},
    {"optimizer.type", OPTIM("AdamW", ""), "\"Lamb\"", "\"Adagrad\"", NULL},
    {"optimizer.type", OPTIM("AdamW", ""), "\"SGD\"", "\"Adam\"", NULL},
    {"optimizer.params.lr", OPTIM("AdamW", ""), "0.01", "0.02", NULL},
    {"optimizer.params.betas", OPTIM("AdamW", ""), "[0.9,0.999]", "[0.9,0.95]", NULL},
    {"optimizer.params.eps", OPTIM("AdamW", ""), "1e-8", "1e-3", NULL},
    {"optimizer.params.weight_decay", OPTIM("AdamW", ""), "0", "0.1", NULL},
    {"optimizer.params.adam_w_mode", OPTIM("Adam", ",\"weight_decay\":0.1"), "true", "false", NULL},
    {"optimizer.params.momentum", OPTIM("SGD", ""), "0", "0.9", NULL},
    {"optimizer.params.bias_correction", OPTIM("AdamW", ""), "true", "false", NULL},
    {"optimizer.params.bias_correction", OPTIM("Lamb", ""), "true", "false", NULL},
    {"optimizer.params.dampening", OPTIM("SGD", ",\"momentum\":0.9"), "0", "0.5", NULL},
    {"optimizer.params.nesterov", OPTIM("SGD", ",\"momentum\":0.9"), "false", "true", NULL},
    {"optimizer.params.max_coeff", OPTIM("Lamb", ""), "10", "0.02", NULL},
    {"optimizer.params.min_coeff", OPTIM("Lamb", ""), "0.01", "9", NULL},
    {"scheduler.type", RATE("WarmupLR", COSINE), "\"WarmupDecayLR\"", "\"WarmupCosineLR\"", NULL},
    {"scheduler.params.warmup_min_lr", RATE("WarmupLR", "\"warmup_num_steps\":5"), "0", "0.0001",
     NULL},
    {"scheduler.params.warmup_max_lr", RATE("WarmupLR", "\"warmup_num_steps\":5"), "0.001", "0.002",
     NULL},
    {"scheduler.params.warmup_num_steps", RATE("WarmupLR", ""), "5", "9", NULL},
    {"scheduler.params.warmup_type", RATE("WarmupLR", "\"warmup_num_steps\":5"), "\"log\"",
     "\"linear\"", NULL},
    {"scheduler.params.total_num_steps", RATE("WarmupDecayLR", "\"warmup_num_steps\":5"), "20",
     "30", NULL},
    {"scheduler.params.warmup_min_ratio", RATE("WarmupCosineLR", COSINE), "0", "0.2", NULL},
    {"scheduler.params.cos_min_ratio", RATE("WarmupCosineLR", COSINE), "0.0001", "0.1", NULL},
    {"scheduler.params.lr_range_test_min_lr", RATE("LRRangeTest", ""), "0.001", "0.002", NULL},
    {"scheduler.params.lr_range_test_step_size", RATE("LRRangeTest", ""), "5", "9", NULL},
    {"scheduler.params.lr_range_test_step_rate", RATE("LRRangeTest", ""), "1", "2", NULL},
    {"scheduler.params.lr_range_test_staircase",
     RATE("LRRangeTest", "\"lr_range_test_step_size\":5"), "false", "true", NULL},
    {"scheduler.params.cycle_min_lr", RATE("OneCycle", CYCLE), "0.001", "0.002", NULL},
    {"scheduler.params.cycle_max_lr", RATE("OneCycle", CYCLE), "0.01", "0.02", NULL},
    {"scheduler.params.decay_lr_rate", RATE("OneCycle", CYCLE), "0", "0.5", NULL},
    {"scheduler.params.cycle_first_step_size", RATE("OneCycle", CYCLE), "8", "6", NULL},
    {"scheduler.params.cycle_second_step_size", RATE("OneCycle", CYCLE), "null", "5", NULL},
    {"scheduler.params.cycle_first_stair_count", RATE("OneCycle", CYCLE), "0", "4", NULL},
    {"scheduler.params.cycle_second_stair_count", RATE("OneCycle", CYCLE), "null", "4", NULL},
    {"scheduler.params.decay_step_size", RATE("OneCycle", CYCLE ",\"decay_lr_rate\":0.5"), "4", "2",
     NULL},
    {"scheduler.params.cycle_momentum", RATE("OneCycle", CYCLE), "true", "false", NULL},
    {"scheduler.params.cycle_min_mom", RATE("OneCycle", CYCLE), "0.8", "0.7", NULL},
    {"scheduler.params.cycle_max_mom", RATE("OneCycle", CYCLE), "0.9", "0.95", NULL},
    {"scheduler.params.decay_mom_rate",
     RATE("OneCycle", "\"cycle_min_lr\":0.001,\"cycle_max_lr\":"
                      "0.01,\"cycle_first_step_size\":2,"
                      "\"decay_step_size\":4"),
     "0", "0.001", NULL},
};

static void
put(json_t *root, const char *path, const char *value)
{
    char name[64];
    json_t *block = root, *json = json_loads(value, JSON_DECODE_ANY, NULL);
    assert_non_null(json);
    for (; strchr(path, '.'); path += strcspn(path, ".") + 1) {
        shl_strf(name, sizeof(name), "%.*s", (int)strcspn(path, "."), path);
        if (!json_object_get(block, name)) {
            json_object_set_new(block, name, json_object());
        }
        block = json_object_get(block, name);
    }
    json_object_set_new(block, path, json);
}

/* The whole way from the text of a file to what the row names. */
static void
look(const struct proof *p, const char *value, void (*see)(ew_config *c, seen *s), seen *s)
{
    ew_config c;
    shl_ds_config ds;
    json_t *root = json_loads(p->base, 0, NULL);
    assert_non_null(root);
    put(root, p->path, value);
    if (p->with) {
        put(root, p->with, value);
    }
    char *text = json_dumps(root, 0);
    ew_config_init(&c, SHL_DDP, RANKS);
    c.steps = 2;
    c.tune.recompute = SHL_RECOMPUTE_FULL;
    shl_ds_facts facts = {.ranks = RANKS,
                          .hidden = c.model.width,
                          .params = shl_model_formula_params(&c.model),
                          .steps = 100,
                          .recomputes = true};
    shl_code code = shl_ds_config_load(text, 2026, &ds);
    if (code == SHL_OK) {
        code = shl_ds_resolve(&ds, NULL, &facts, &c.engine);
    }
    if (code != SHL_OK) {
        fail_msg("%s: %s; %s", text, shl_err_get()->what, shl_err_get()->because);
    }
    shl_ds_config_fini(&ds);
    memset(s, 0, sizeof(*s));
    see(&c, s);
    free(text);
    json_decref(root);
}

static void
test_ds_effects_show_every_working_key(void **state)
{
    (void)state;
    size_t n;
    const shl_ds_key *keys = shl_ds_keys(&n);
    for (size_t i = 0; i < n; ++i) {
        void (*see)(ew_config * c, seen * s) = NULL;
        int shown = 0;
        if ((keys[i].status == SHL_DS_WORKS) != (keys[i].effect != NULL)) {
            fail_msg("%s: a key that works names what it changes, another does not", keys[i].path);
        }
        for (size_t j = 0; keys[i].effect && j < SHL_ARRAY_LEN(effects); ++j) {
            see = strcmp(effects[j].effect, keys[i].effect) == 0 ? effects[j].see : see;
        }
        if (keys[i].effect && !see) {
            fail_msg("%s: nothing here sees \"%s\"", keys[i].path, keys[i].effect);
        }
        for (size_t j = 0; j < SHL_ARRAY_LEN(proofs); ++j) {
            seen a, b;
            if (strcmp(proofs[j].path, keys[i].path) != 0) {
                continue;
            }
            assert_non_null(see);
            look(&proofs[j], proofs[j].a, see, &a);
            look(&proofs[j], proofs[j].b, see, &b);
            if (memcmp(&a, &b, sizeof(a)) == 0) {
                fail_msg("%s: %s and %s have the same %s (%g)", keys[i].path, proofs[j].a,
                         proofs[j].b, keys[i].effect, a.v[0]);
            }
            shown++;
        }
        if (see && shown == 0) {
            fail_msg("%s: nothing shows that its %s changes", keys[i].path, keys[i].effect);
        }
    }
}

/* A proof of no key, or of one that does not work, would never run. */
static void
test_ds_effects_have_no_proof_left(void **state)
{
    (void)state;
    size_t n;
    const shl_ds_key *keys = shl_ds_keys(&n);
    for (size_t i = 0; i < SHL_ARRAY_LEN(proofs); ++i) {
        int at = shl_ds_key_find(proofs[i].path);
        assert_true(at >= 0 && strcmp(keys[at].path, proofs[i].path) == 0);
        assert_int_equal(keys[at].status, SHL_DS_WORKS);
        assert_string_not_equal(proofs[i].a, proofs[i].b);
    }
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ds_effects_show_every_working_key),
        cmocka_unit_test(test_ds_effects_have_no_proof_left),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

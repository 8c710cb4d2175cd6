/* engines/config: "auto" as transformers' Trainer resolves it (integrations/deepspeed.py), from the model
 * and the Trainer's arguments, and the comparison of both files. */
#include <math.h>
#include <string.h>

#include <jansson.h>

#include "engines/config/ds_config.h"
#include "engines/config/ds_text.h"
#include "kernels/base/heap.h"
#include "kernels/base/types.h"

/* Arguments that are read; numbers as doubles, as Python compares them. */
typedef enum argument {
    A_BATCH,
    A_ACCUM,
    A_LR,
    A_BETA1,
    A_BETA2,
    A_EPS,
    A_DECAY,
    A_WARMUP,
    A_WARMUP_RATIO,
    A_MAX_STEPS,
    A_CLIP,
    A_SEED,
    A_BF16,
    A_BF16_EVAL,
    A_FP16,
    A_FP16_EVAL,
    A_COUNT
} argument;

static const struct {
    const char *name;
    double fallback, min;
    bool is_switch, whole;
} arguments[A_COUNT] = {
    [A_BATCH] = {"per_device_train_batch_size", 8, 1, false, true},
    [A_ACCUM] = {"gradient_accumulation_steps", 1, 1, false, true},
    [A_LR] = {"learning_rate", 5e-5, 0, false, false},
    [A_BETA1] = {"adam_beta1", 0.9, 0, false, false},
    [A_BETA2] = {"adam_beta2", 0.999, 0, false, false},
    [A_EPS] = {"adam_epsilon", 1e-8, 0, false, false},
    [A_DECAY] = {"weight_decay", 0, 0, false, false},
    [A_WARMUP] = {"warmup_steps", 0, 0, false, false},
    [A_WARMUP_RATIO] = {"warmup_ratio", 0, 0, false, false},
    [A_MAX_STEPS] = {"max_steps", -1, -1, false, true},
    [A_CLIP] = {"max_grad_norm", 1.0, 0, false, false},
    [A_SEED] = {"seed", 42, 0, false, true},
    [A_BF16] = {"bf16", 0, 0, true, false},
    [A_BF16_EVAL] = {"bf16_full_eval", 0, 0, true, false},
    [A_FP16] = {"fp16", 0, 0, true, false},
    [A_FP16_EVAL] = {"fp16_full_eval", 0, 0, true, false},
};

typedef struct trainer_args {
    double v[A_COUNT];
    char schedule[48], name[256];
    double steps, warmup; /* of the run */
} trainer_args;

static shl_code
read_argument(const json_t *root, int i, trainer_args *t)
{
    const json_t *json = json_object_get(root, arguments[i].name);
    t->v[i] = arguments[i].fallback;
    if (!json || json_is_null(json)) {
        return SHL_OK;
    }
    bool is_switch = arguments[i].is_switch;
    double v = json_is_true(json) ? 1.0 : json_number_value(json);
    bool good = is_switch ? json_is_boolean(json) : json_is_number(json);
    if (!good || v < arguments[i].min || (arguments[i].whole && v != floor(v))) {
        SHL_RAISE(SHL_E_CONFIG, "%s: %s has no good value", t->name, arguments[i].name);
        return is_switch ? shl_err_because("it must be true or false")
                         : shl_err_because("it must be a %snumber of at least %g",
                                           arguments[i].whole ? "whole " : "", arguments[i].min);
    }
    t->v[i] = v;
    return SHL_OK;
}

static shl_code
read_trainer(const char *source, const shl_ds_facts *facts, trainer_args *t)
{
    char *text = NULL;
    json_t *root = NULL;
    shl_code code;
    SHL_TRY(shl_ds_text_load(source, t->name, sizeof(t->name), &text));
    if (strcmp(t->name, source) != 0) {
        shl_strf(t->name, sizeof(t->name), "the Trainer's arguments");
    }
    code = shl_ds_text_parse(text, t->name, &root);
    shl_heap_free(&text);
    for (int i = 0; code == SHL_OK && i < A_COUNT; i++) {
        code = read_argument(root, i, t);
    }
    const char *kind = json_string_value(json_object_get(root, "lr_scheduler_type"));
    shl_strf(t->schedule, sizeof(t->schedule), "%s", kind ? kind : "linear");
    json_decref(root);
    /* get_warmup_steps: below one a share of the run. */
    double given = t->v[A_WARMUP] > 0.0 ? t->v[A_WARMUP] : t->v[A_WARMUP_RATIO];
    t->steps = t->v[A_MAX_STEPS] > 0.0 ? t->v[A_MAX_STEPS] : (double)facts->steps;
    t->warmup = given >= 1.0 ? floor(given) : ceil(t->steps * given);
    return code;
}

shl_code
shl_ds_trainer_config_path(const char *trainer, char **out)
{
    char name[256], *text = NULL;
    json_t *root = NULL;
    *out = NULL;
    SHL_TRY(shl_ds_text_load(trainer, name, sizeof(name), &text));
    shl_code code = shl_ds_text_parse(text, name, &root);
    shl_heap_free(&text);
    json_t *value = json_object_get(root, "deepspeed");
    if (code == SHL_OK && json_is_string(value)) {
        code = shl_heap_strdup(json_string_value(value), out);
    } else if (code == SHL_OK && json_is_object(value)) {
        char *dump = json_dumps(value, 0);
        json_free_t release;
        json_get_alloc_funcs(NULL, &release);
        code = dump ? shl_heap_strdup(dump, out) : SHL_RAISE(SHL_E_HEAP, "out of host memory");
        release(dump);
    }
    json_decref(root);
    return code;
}

/* Python's ==: 1 is 1.0, and a list is compared item by item. */
static bool
same(const json_t *a, const json_t *b)
{
    if (json_is_number(a) && json_is_number(b)) {
        return json_number_value(a) == json_number_value(b);
    }
    if (json_is_array(a) && json_array_size(a) == json_array_size(b)) {
        bool all = true;
        for (size_t i = 0; i < json_array_size(a); i++) {
            all = all && same(json_array_get(a, i), json_array_get(b, i));
        }
        return all;
    }
    return json_equal(a, b) == 1;
}

static void
add_json(shl_str *out, const json_t *json)
{
    char *dump = json_dumps(json, JSON_ENCODE_ANY | JSON_COMPACT | JSON_REAL_PRECISION(12));
    json_free_t release;
    json_get_alloc_funcs(NULL, &release);
    shl_str_add(out, "%s", dump ? dump : "?");
    release(dump);
}

/* transformers' fill_match: takes json over. differ NULL: fill only. */
static shl_code
fill(shl_ds_config *c, const char *path, json_t *json, const char *argument_name, shl_str *differ)
{
    const shl_ds_value *v = shl_ds_get(c, path);
    if (v->is_auto) {
        return shl_ds_set(c, path, json, SHL_DS_AUTO);
    }
    if (differ && v->origin == SHL_DS_USER && !json_is_null(v->json) && !same(v->json, json)) {
        shl_str_add(differ, "%s%s ", differ->len > 0 ? "; " : "", path);
        add_json(differ, v->json);
        shl_str_add(differ, " against %s ", argument_name);
        add_json(differ, json);
    }
    json_decref(json);
    return SHL_OK;
}

static json_t *
number(double v)
{
    return v == floor(v) && fabs(v) < 9e15 ? json_integer((json_int_t)v) : json_real(v);
}

static shl_code
fill_batch(shl_ds_config *c, const trainer_args *t, int ranks, shl_str *differ)
{
    double all = t->v[A_BATCH] * t->v[A_ACCUM] * (double)ranks;
    const char *micro = "train_micro_batch_size_per_gpu", *accum = "gradient_accumulation_steps";
    bool given = shl_ds_get(c, micro)->origin != SHL_DS_DEFAULT ||
                 shl_ds_get(c, "train_batch_size")->origin != SHL_DS_DEFAULT;
    SHL_TRY(fill(c, micro, number(t->v[A_BATCH]), arguments[A_BATCH].name, differ));
    SHL_TRY(fill(c, accum, number(t->v[A_ACCUM]), arguments[A_ACCUM].name, differ));
    SHL_TRY(fill(c, "train_batch_size", number(all), "train_batch_size (calculated)", differ));
    if (!given) {
        SHL_TRY(shl_ds_set(c, micro, number(t->v[A_BATCH]), SHL_DS_AUTO));
    }
    if (shl_ds_get(c, accum)->origin == SHL_DS_DEFAULT) {
        return shl_ds_set(c, accum, number(t->v[A_ACCUM]), SHL_DS_AUTO);
    }
    return SHL_OK;
}

/* A Trainer without these blocks makes its own optimizer, and accelerate its own precision. */
static shl_code
fill_absent(shl_ds_config *c, const trainer_args *t)
{
    bool bf16 = t->v[A_BF16] > 0.0, fp16 = t->v[A_FP16] > 0.0;
    if (!shl_ds_block_given(c, "bf16") && !shl_ds_block_given(c, "fp16")) {
        SHL_TRY(shl_ds_set(c, "bf16.enabled", json_boolean(bf16), SHL_DS_AUTO));
        SHL_TRY(shl_ds_set(c, "fp16.enabled", json_boolean(fp16), SHL_DS_AUTO));
    }
    if (!shl_ds_block_given(c, "optimizer")) {
        const char *p = "optimizer.params.";
        json_t *betas = json_pack("[ff]", t->v[A_BETA1], t->v[A_BETA2]);
        SHL_TRY(shl_ds_set(c, "optimizer.type", json_string("AdamW"), SHL_DS_AUTO));
        SHL_TRY(shl_ds_set(c, "optimizer.params.betas", betas, SHL_DS_AUTO));
        const struct {
            const char *key;
            argument from;
        } rows[] = {{"lr", A_LR}, {"eps", A_EPS}, {"weight_decay", A_DECAY}};
        for (size_t i = 0; i < SHL_ARRAY_LEN(rows); i++) {
            char path[64];
            shl_strf(path, sizeof(path), "%s%s", p, rows[i].key);
            SHL_TRY(shl_ds_set(c, path, json_real(t->v[rows[i].from]), SHL_DS_AUTO));
        }
    }
    return SHL_OK;
}

static shl_code
trainer_schedule(shl_ds_config *c, const trainer_args *t)
{
    static const struct {
        const char *name;
        shl_ds_schedule_kind kind;
        bool warms;
    } kinds[] = {
        {"linear", SHL_HF_LINEAR, true},
        {"cosine", SHL_HF_COSINE, true},
        {"constant", SHL_HF_CONSTANT, false},
        {"constant_with_warmup", SHL_HF_CONSTANT, true},
    };
    for (size_t i = 0; i < SHL_ARRAY_LEN(kinds); i++) {
        if (strcmp(t->schedule, kinds[i].name) == 0) {
            shl_ds_schedule_init(kinds[i].kind, &c->trainer_schedule);
            c->trainer_schedule.p[0] = kinds[i].warms ? t->warmup : 0.0;
            c->trainer_schedule.p[1] = t->steps;
            return SHL_OK;
        }
    }
    SHL_RAISE(SHL_E_CONFIG, "%s: lr_scheduler_type \"%s\"", t->name, t->schedule);
    return shl_err_because(
        "linear, cosine, constant and constant_with_warmup are here; a scheduler "
        "block has DeepSpeed's");
}

static shl_code
fill_trainer(shl_ds_config *c, const trainer_args *t, const shl_ds_facts *facts, shl_str *differ)
{
    json_t *betas = json_pack("[ff]", t->v[A_BETA1], t->v[A_BETA2]);
    bool fp16 = t->v[A_FP16] > 0.0 || t->v[A_FP16_EVAL] > 0.0;
    bool bf16 = t->v[A_BF16] > 0.0 || t->v[A_BF16_EVAL] > 0.0;
    SHL_TRY(fill_batch(c, t, facts->ranks, differ));
    const char *o = "optimizer.params.lr", *s = "scheduler.params.warmup_max_lr";
    SHL_TRY(fill(c, "gradient_clipping", number(t->v[A_CLIP]), "max_grad_norm", differ));
    SHL_TRY(fill(c, o, json_real(t->v[A_LR]), "learning_rate", differ));
    SHL_TRY(fill(c, "optimizer.params.betas", betas, "adam_beta1+adam_beta2", differ));
    SHL_TRY(fill(c, "optimizer.params.eps", json_real(t->v[A_EPS]), "adam_epsilon", differ));
    SHL_TRY(
        fill(c, "optimizer.params.weight_decay", json_real(t->v[A_DECAY]), "weight_decay", differ));
    SHL_TRY(fill(c, "scheduler.params.warmup_min_lr", json_integer(0), NULL, NULL));
    SHL_TRY(fill(c, s, json_real(t->v[A_LR]), "learning_rate", differ));
    SHL_TRY(fill(c, "fp16.enabled", json_boolean(fp16), "fp16|fp16_full_eval", differ));
    SHL_TRY(fill(c, "bf16.enabled", json_boolean(bf16), "bf16|bf16_full_eval", differ));
    if (t->steps > 0.0) {
        SHL_TRY(fill(c, "scheduler.params.total_num_steps", number(t->steps),
                     "num_training_steps (calculated)", differ));
    }
    return fill(c, "scheduler.params.warmup_num_steps", number(fmax(1.0, t->warmup)),
                "warmup_steps", differ);
}

/* The three keys that follow the model's width. */
static shl_code
fill_hidden(shl_ds_config *c, int64_t h)
{
    static const char *const keys[] = {"zero_optimization.reduce_bucket_size",
                                       "zero_optimization.stage3_prefetch_bucket_size",
                                       "zero_optimization.stage3_param_persistence_threshold"};
    bool stage3 = shl_ds_int(c, "zero_optimization.stage", 0) == 3;
    const json_int_t values[] = {h * h, (json_int_t)(0.9 * (double)h * (double)h), 10 * h};
    for (size_t i = 0; i < SHL_ARRAY_LEN(keys); i++) {
        if (!shl_ds_get(c, keys[i])->is_auto) {
            continue;
        }
        if (h <= 0) {
            shl_ds_raise(c, keys[i], "is \"auto\"");
            shl_err_because("it follows the width of the model, and no model is named");
            return shl_err_advice("--model NAME, or a number");
        }
        if (i == 0 || stage3) {
            SHL_TRY(shl_ds_set(c, keys[i], json_integer(values[i]), SHL_DS_AUTO));
            continue;
        }
        /* Below stage 3 the Trainer leaves "auto" and DeepSpeed drops it: its default. */
        double whole = 0.0;
        size_t n;
        const shl_ds_key *row = &shl_ds_keys(&n)[shl_ds_key_find(keys[i])];
        SHL_TRY(shl_parse_double(row->fallback, 0.0, 1e19, &whole));
        SHL_TRY(shl_ds_set(c, keys[i], json_integer((json_int_t)whole), SHL_DS_DEFAULT));
    }
    return SHL_OK;
}

static shl_code
refuse_left(const shl_ds_config *c, bool has_trainer)
{
    size_t n;
    const shl_ds_key *keys = shl_ds_keys(&n);
    for (size_t i = 0; i < n; i++) {
        if (!c->rows[i].is_auto) {
            continue;
        }
        shl_ds_raise(c, keys[i].path, "is \"auto\"");
        if (has_trainer) {
            shl_err_because("nothing resolves it; DeepSpeed would drop it without a word");
            return shl_err_advice("%s, its default, or no such key", keys[i].fallback);
        }
        shl_err_because("it follows the Trainer's arguments, and there are none");
        return shl_err_advice("--trainer-args FILE, or a value");
    }
    return SHL_OK;
}

shl_code
shl_ds_config_auto(shl_ds_config *c, const char *trainer, const shl_ds_facts *facts)
{
    SHL_TRY(fill_hidden(c, facts->hidden));
    if (!trainer) {
        return refuse_left(c, false);
    }
    trainer_args t;
    shl_str differ = {0};
    memset(&t, 0, sizeof(t));
    SHL_TRY(read_trainer(trainer, facts, &t));
    shl_code code = fill_trainer(c, &t, facts, &differ);
    if (code == SHL_OK && differ.len > 0) {
        code = SHL_RAISE(SHL_E_CONFIG, "%s and %s differ", c->name, t.name);
        shl_err_because("%s", shl_str_get(&differ));
        shl_err_advice("\"auto\" for these keys");
    }
    shl_str_fini(&differ);
    SHL_TRY(code);
    SHL_TRY(fill_absent(c, &t));
    SHL_TRY(trainer_schedule(c, &t));
    c->has_trainer = true;
    c->trainer_steps = t.v[A_MAX_STEPS] > 0.0 ? (int64_t)t.v[A_MAX_STEPS] : 0;
    c->trainer_seed = (uint64_t)t.v[A_SEED];
    return refuse_left(c, true);
}

/* engines/api: options as a JSON object, both ways. The keys are those of the program's records, so
 * that what one of them writes the other reads. */
#include <math.h>
#include <stddef.h>
#include <string.h>

#include <jansson.h>

#include "engines/api/lab.h"
#include "engines/config/zero_text.h"
#include "kernels/base/str.h"

typedef enum key_type {
    KEY_INT,
    KEY_SEED,
    KEY_REAL,
    KEY_TEXT,
    KEY_BYTES,
    KEY_RATE,
    KEY_FLAG,
    KEY_PAIR,
    KEY_SCALE
} key_type;

typedef struct json_key {
    const char *group; /* "" is the top */
    const char *name;
    key_type type;
    size_t offset;
} json_key;

#define AT(field) offsetof(shl_lab_options, field)

static const json_key keys[] = {
    {"", "model", KEY_TEXT, AT(model)},
    {"shape", "layers", KEY_INT, AT(layers)},
    {"shape", "width", KEY_INT, AT(width)},
    {"shape", "heads", KEY_INT, AT(heads)},
    {"shape", "vocab", KEY_INT, AT(vocab)},
    {"shape", "context", KEY_INT, AT(context)},
    {"shape", "inner", KEY_INT, AT(inner)},
    {"shape", "norm-eps", KEY_REAL, AT(norm_eps)},
    {"shape", "tied", KEY_INT, AT(tied)},
    {"shape", "family", KEY_TEXT, AT(family)},
    {"shape", "kv-heads", KEY_INT, AT(kv_heads)},
    {"shape", "head-dim", KEY_INT, AT(head_dim)},
    {"shape", "rope-theta", KEY_REAL, AT(rope_theta)},
    {"shape", "rope-scaling", KEY_TEXT, AT(rope_scaling)},
    {"shape", "qkv-bias", KEY_INT, AT(qkv_bias)},
    {"", "approximate", KEY_FLAG, AT(approximate)},
    {"", "strategy", KEY_TEXT, AT(strategy)},
    {"", "reduce-every", KEY_TEXT, AT(reduce_every)},
    {"", "bucket", KEY_INT, AT(bucket_elems)},
    {"", "prefetch", KEY_INT, AT(prefetch)},
    {"", "zero", KEY_TEXT, AT(zero)},
    {"", "batch", KEY_INT, AT(batch)},
    {"", "seq", KEY_INT, AT(seq)},
    {"", "accum", KEY_INT, AT(accum)},
    {"", "seed", KEY_SEED, AT(seed)},
    {"optim", "optimizer", KEY_TEXT, AT(optimizer)},
    {"optim", "lr", KEY_REAL, AT(lr)},
    {"optim", "betas", KEY_PAIR, AT(beta1)},
    {"optim", "eps", KEY_REAL, AT(eps)},
    {"optim", "weight-decay", KEY_REAL, AT(weight_decay)},
    {"optim", "momentum", KEY_REAL, AT(momentum)},
    {"optim", "dampening", KEY_REAL, AT(dampening)},
    {"optim", "nesterov", KEY_REAL, AT(nesterov)},
    {"optim", "bias-correction", KEY_REAL, AT(bias_correction)},
    {"optim", "min-coeff", KEY_REAL, AT(min_coeff)},
    {"optim", "max-coeff", KEY_REAL, AT(max_coeff)},
    {"optim", "clip", KEY_REAL, AT(clip)},
    {"optim", "schedule", KEY_TEXT, AT(schedule)},
    {"optim", "schedule-steps", KEY_INT, AT(schedule_steps)},
    {"optim", "warmup", KEY_INT, AT(warmup)},
    {"optim", "min-lr-ratio", KEY_REAL, AT(min_lr_ratio)},
    {"", "device", KEY_TEXT, AT(device)},
    {"", "as", KEY_TEXT, AT(stands_for)},
    {"", "ranks", KEY_INT, AT(ranks)},
    {"", "rank", KEY_INT, AT(rank)},
    {"", "threads", KEY_INT, AT(threads)},
    {"", "device-memory", KEY_BYTES, AT(device_memory_bytes)},
    {"", "host-memory", KEY_BYTES, AT(host_memory_bytes)},
    {"", "pin-limit", KEY_BYTES, AT(pin_limit_bytes)},
    {"", "link", KEY_RATE, AT(link_bytes_per_s)},
    {"", "offload-optimizer", KEY_TEXT, AT(offload_optimizer)},
    {"", "offload-param", KEY_TEXT, AT(offload_param)},
    {"", "offload-activations", KEY_TEXT, AT(offload_activations)},
    {"", "offload-ratio", KEY_REAL, AT(offload_ratio)},
    {"", "pin-memory", KEY_FLAG, AT(pin_memory)},
    {"", "sub-group-size", KEY_INT, AT(sub_group_size)},
    {"", "timeout-ms", KEY_INT, AT(timeout_ms)},
    {"", "alpha-ns", KEY_INT, AT(alpha_ns)},
    {"", "wire-bytes-per-s", KEY_REAL, AT(wire_bytes_per_s)},
    {"", "sim-sleep", KEY_FLAG, AT(sim_sleep)},
    {"", "flops-per-s", KEY_REAL, AT(flops_per_s)},
    {"", "bytes-per-s", KEY_REAL, AT(bytes_per_s)},
    {"", "init-from", KEY_TEXT, AT(init_from)},
    {"", "comm", KEY_TEXT, AT(comm)},
    {"", "share-gpu", KEY_FLAG, AT(share_gpu)},
    {"", "tf32", KEY_FLAG, AT(tf32)},
    {"", "attention", KEY_TEXT, AT(attention)},
    {"", "dtype", KEY_TEXT, AT(dtype)},
    {"", "master-dtype", KEY_TEXT, AT(master_dtype)},
    {"", "reduce-dtype", KEY_TEXT, AT(reduce_dtype)},
    {"", "grad-dtype", KEY_TEXT, AT(grad_dtype)},
    {"", "moment-dtype", KEY_TEXT, AT(moment_dtype)},
    {"", "loss-scale", KEY_SCALE, AT(loss_scale)},
    {"", "initial-scale-power", KEY_INT, AT(initial_scale_power)},
    {"", "loss-scale-window", KEY_INT, AT(loss_scale_window)},
    {"", "hysteresis", KEY_INT, AT(hysteresis)},
    {"", "consecutive-hysteresis", KEY_FLAG, AT(consecutive_hysteresis)},
    {"", "raise-error-at-min-scale", KEY_FLAG, AT(raise_error_at_min_scale)},
    {"", "min-loss-scale", KEY_REAL, AT(min_loss_scale)},
    {"", "check-overflow", KEY_FLAG, AT(check_overflow)},
    {"tune", "recompute", KEY_TEXT, AT(recompute)},
    {"tune", "recompute-every", KEY_INT, AT(recompute_every)},
    {"tune", "freeze", KEY_TEXT, AT(freeze)},
    {"tune", "train-last", KEY_INT, AT(train_last)},
    {"tune", "lora-rank", KEY_INT, AT(lora_rank)},
    {"tune", "lora-alpha", KEY_REAL, AT(lora_alpha)},
    {"tune", "lora-targets", KEY_TEXT, AT(lora_targets)},
    {"tune", "lora-base", KEY_FLAG, AT(lora_base)},
    {"tune", "dropout", KEY_REAL, AT(dropout)},
    {"tune", "attention-dropout", KEY_REAL, AT(attention_dropout)},
};
static const char *const groups[] = {"shape", "optim", "tune"};
_Static_assert(AT(beta2) == AT(beta1) + sizeof(double), "a pair is two doubles side by side");

static const json_key *
find_key(const char *group, const char *name)
{
    for (size_t i = 0; i < SHL_ARRAY_LEN(keys); i++) {
        if (strcmp(keys[i].group, group) == 0 && strcmp(keys[i].name, name) == 0) {
            return &keys[i];
        }
    }
    return NULL;
}

static shl_code
raise_unknown(const char *text, const char *group, const char *name)
{
    const char *names[SHL_ARRAY_LEN(keys) + SHL_ARRAY_LEN(groups)];
    const char *elsewhere = NULL;
    size_t n = 0;
    int line = 0, column = 0;
    for (size_t i = 0; i < SHL_ARRAY_LEN(keys); i++) {
        if (strcmp(keys[i].group, group) == 0) {
            names[n++] = keys[i].name;
        } else if (strcmp(keys[i].name, name) == 0) {
            elsewhere = keys[i].group;
        }
    }
    for (size_t i = 0; !group[0] && i < SHL_ARRAY_LEN(groups); i++) {
        names[n++] = groups[i];
    }
    shl_text_locate_key(text, name, &line, &column);
    SHL_RAISE(SHL_E_USAGE, "unknown key \"%s\"%s%s%s", name, group[0] ? " in \"" : "", group,
              group[0] ? "\"" : "");
    shl_err_because("line %d, column %d", line, column);
    const char *near = shl_nearest(name, names, n);
    if (elsewhere) {
        return elsewhere[0] ? shl_err_advice("\"%s\" belongs into \"%s\"", name, elsewhere)
                            : shl_err_advice("\"%s\" belongs to the top", name);
    }
    return near ? shl_err_advice("\"%s\"", near) : SHL_E_USAGE;
}

static shl_code
raise_type(const json_key *k, const char *expected)
{
    return SHL_RAISE(SHL_E_USAGE, "\"%s\" is not %s", k->name, expected);
}

static shl_code
take_bytes(const json_key *k, const json_t *value, uint64_t *out)
{
    size_t bytes = 0;
    if (json_is_string(value)) {
        SHL_TRY(shl_parse_bytes(json_string_value(value), &bytes));
    } else if (json_is_integer(value) && json_integer_value(value) >= 0) {
        bytes = (size_t)json_integer_value(value);
    } else {
        return raise_type(k, "a number of bytes, such as 1073741824 or \"1GiB\"");
    }
    *out = bytes;
    return SHL_OK;
}

static shl_code
take_rate(const json_key *k, const json_t *value, double *out)
{
    if (json_is_string(value)) {
        return shl_parse_rate(json_string_value(value), out);
    }
    *out = json_number_value(value);
    return json_is_number(value) ? SHL_OK
                                 : raise_type(k, "bytes per second, such as 16e9 or \"16GB/s\"");
}

static shl_code
take_pair(const json_key *k, const json_t *value, double *out)
{
    if (!json_is_array(value) || json_array_size(value) != 2 ||
        !json_is_number(json_array_get(value, 0)) || !json_is_number(json_array_get(value, 1))) {
        return raise_type(k, "an array of two numbers");
    }
    out[0] = json_number_value(json_array_get(value, 0));
    out[1] = json_number_value(json_array_get(value, 1));
    return SHL_OK;
}

static shl_code
take_int(const json_key *k, const json_t *value, int64_t *out)
{
    if (json_is_boolean(value) && (k->offset == AT(tied) || k->offset == AT(qkv_bias))) {
        *out = json_is_true(value);
        return SHL_OK;
    }
    if (!json_is_integer(value)) {
        return raise_type(k, "a whole number");
    }
    *out = json_integer_value(value);
    return SHL_OK;
}

static shl_code
take_scale(const json_key *k, const json_t *value, double *out)
{
    const char *text = json_string_value(value);
    if (text && strcmp(text, "dynamic") == 0) {
        *out = SHL_LAB_SCALE_DYNAMIC;
    } else if (text && strcmp(text, "none") == 0) {
        *out = SHL_LAB_SCALE_NONE;
    } else if (json_is_number(value)) {
        *out = json_number_value(value);
    } else {
        return raise_type(k, "\"dynamic\", \"none\" or a number");
    }
    return SHL_OK;
}

static shl_code
take_value(const json_key *k, const json_t *value, shl_lab_options *o)
{
    void *field = (char *)o + k->offset;
    switch (k->type) {
    case KEY_INT:
        return take_int(k, value, (int64_t *)field);
    case KEY_SEED:
        if (!json_is_integer(value) || json_integer_value(value) < 0) {
            return raise_type(k, "a whole number from 0");
        }
        *(uint64_t *)field = (uint64_t)json_integer_value(value);
        return SHL_OK;
    case KEY_REAL:
        if (!json_is_number(value)) {
            return raise_type(k, "a number");
        }
        *(double *)field = json_number_value(value);
        return SHL_OK;
    case KEY_TEXT:
        if (!json_is_string(value)) {
            return raise_type(k, "a text");
        }
        *(const char **)field = json_string_value(value);
        return SHL_OK;
    case KEY_BYTES:
        return take_bytes(k, value, (uint64_t *)field);
    case KEY_RATE:
        return take_rate(k, value, (double *)field);
    case KEY_FLAG:
        if (!json_is_boolean(value)) {
            return raise_type(k, "true or false");
        }
        *(bool *)field = json_is_true(value);
        return SHL_OK;
    case KEY_PAIR:
        return take_pair(k, value, (double *)field);
    case KEY_SCALE:
        return take_scale(k, value, (double *)field);
    }
    return SHL_E_BUG;
}

static bool
is_group(const char *name)
{
    for (size_t i = 0; i < SHL_ARRAY_LEN(groups); i++) {
        if (strcmp(name, groups[i]) == 0) {
            return true;
        }
    }
    return false;
}

/* The members of one object; groups are objects in the top one. */
static shl_code
take_object(const char *text, const char *group, json_t *object, shl_lab_options *o)
{
    const char *name;
    json_t *value;
    json_object_foreach(object, name, value)
    {
        const json_key *k = find_key(group, name);
        if (k) {
            SHL_TRY(take_value(k, value, o));
        } else if (!group[0] && is_group(name)) {
            if (!json_is_object(value)) {
                return SHL_RAISE(SHL_E_USAGE, "\"%s\" is not an object", name);
            }
            SHL_TRY(take_object(text, name, value, o));
        } else {
            return raise_unknown(text, group, name);
        }
    }
    return SHL_OK;
}

shl_code
shl_lab_options_from_json(const char *text, shl_lab_options *o, json_t **holder)
{
    json_error_t error;
    *holder = json_loads(text, JSON_REJECT_DUPLICATES, &error);
    if (!*holder) {
        SHL_RAISE(SHL_E_USAGE, "the options are not JSON: %s", error.text);
        return shl_err_because("line %d, column %d", error.line, error.column);
    }
    if (!json_is_object(*holder)) {
        return SHL_RAISE(SHL_E_USAGE, "the options are JSON, but not an object");
    }
    return take_object(text, "", *holder, o);
}

/* A parameter that the optimizer has; NULL leaves it out. */
static json_t *
own_real(double asked)
{
    return asked < 0.0 ? NULL : json_real(asked);
}

json_t *
shl_lab_optim_json(const shl_engine_config *e)
{
    static const char *const schedules[] = {
        [SHL_SCHEDULE_CONSTANT] = "constant",
        [SHL_SCHEDULE_LINEAR] = "linear",
        [SHL_SCHEDULE_COSINE] = "cosine",
    };
    const shl_optim_config *o = &e->optim;
    char named[SHL_DS_SCHEDULE_TEXT_BYTES];
    const char *schedule = named;
    shl_optim_asked a;
    if (o->schedule == SHL_SCHEDULE_NAMED) {
        shl_ds_schedule_format(&o->named, named, sizeof(named));
    } else {
        schedule = schedules[o->schedule];
    }
    shl_optim_asked_of(o, &a);
    /* What is at its default is left out, as in older checkpoints. */
    json_t *damp = a.dampening > 0.0 ? json_real(a.dampening) : NULL;
    json_t *nesterov = a.nesterov > 0.0 ? json_integer(1) : NULL;
    json_t *bias = fabs(a.bias_correction) > 0.0 ? NULL : json_integer(0);
    return json_pack("{ss sf so* so* sf so* so* so* so* so* so* sf ss sI sI sf}", "optimizer",
                     e->no_optimizer ? "none" : shl_optim_name(o->kind), "lr", a.lr, "betas",
                     a.beta1 < 0.0 ? NULL : json_pack("[ff]", a.beta1, a.beta2), "eps",
                     own_real(a.eps), "weight-decay", a.weight_decay, "momentum",
                     own_real(a.momentum), "dampening", damp, "nesterov", nesterov,
                     "bias-correction", bias, "min-coeff", own_real(a.min_coeff), "max-coeff",
                     own_real(a.max_coeff), "clip", o->clip, "schedule", schedule, "schedule-steps",
                     (json_int_t)o->schedule_steps, "warmup", (json_int_t)o->warmup_steps,
                     "min-lr-ratio", o->min_lr_ratio);
}

/* What is at its default is left out, as a caller would. */
json_t *
shl_lab_shape_json(const shl_model_config *g)
{
    char rope[SHL_ROPE_TEXT_BYTES];
    const struct {
        const char *key;
        int64_t value;
    } sizes[] = {{"inner", g->inner}, {"kv-heads", g->kv_heads}, {"head-dim", g->head_dim}};
    const struct {
        const char *key;
        double value;
    } reals[] = {{"norm-eps", g->norm_eps}, {"rope-theta", g->rope_theta}};
    json_t *shape = json_pack("{sI sI sI sI sI sb ss}", "layers", (json_int_t)g->layers, "width",
                              (json_int_t)g->width, "heads", (json_int_t)g->heads, "vocab",
                              (json_int_t)g->vocab, "context", (json_int_t)g->context, "tied",
                              g->tied ? 1 : 0, "family", shl_family_name(g->family));
    bool whole = shape != NULL;
    for (size_t i = 0; i < SHL_ARRAY_LEN(sizes); i++) {
        whole = whole && (sizes[i].value == 0 ||
                          json_object_set_new(shape, sizes[i].key,
                                              json_integer((json_int_t)sizes[i].value)) == 0);
    }
    for (size_t i = 0; i < SHL_ARRAY_LEN(reals); i++) {
        whole = whole && (!(reals[i].value > 0.0) ||
                          json_object_set_new(shape, reals[i].key, json_real(reals[i].value)) == 0);
    }
    if (whole && g->rope.kind != SHL_ROPE_PLAIN) {
        shl_rope_spell(&g->rope, rope, sizeof(rope));
        whole = json_object_set_new(shape, "rope-scaling", json_string(rope)) == 0;
    }
    if (whole && g->qkv_bias) {
        whole = json_object_set_new(shape, "qkv-bias", json_true()) == 0;
    }
    if (!whole) {
        json_decref(shape);
        shape = NULL;
    }
    return shape;
}

shl_code
shl_lab_policy_json(const shl_engine_config *e, json_t *into)
{
    const shl_scale_config *s = &e->scale;
    /* The first scale of a dynamic one is a power of two: the option is its exponent. */
    json_t *policy =
        json_pack("{ss ss ss ss ss sb}", "dtype", shl_dtype_name(e->compute_dtype), "master-dtype",
                  shl_dtype_name(e->master_dtype), "reduce-dtype", shl_dtype_name(e->reduce_dtype),
                  "grad-dtype", shl_dtype_name(e->grad_dtype), "moment-dtype",
                  shl_dtype_name(e->moment_dtype), "check-overflow", e->check_overflow ? 1 : 0);
    bool whole = policy != NULL && json_object_update(into, policy) == 0;
    json_decref(policy);
    json_t *scale = s->kind == SHL_SCALE_STATIC
                        ? json_real(s->scale)
                        : json_string(s->kind == SHL_SCALE_NONE ? "none" : "dynamic");
    whole = whole && json_object_set_new(into, "loss-scale", scale) == 0;
    if (whole && s->kind == SHL_SCALE_DYNAMIC) {
        json_t *numbers = json_pack(
            "{sI sI sI sb sb sf}", "initial-scale-power", (json_int_t)ilogb(s->scale),
            "loss-scale-window", (json_int_t)s->window, "hysteresis", (json_int_t)s->hysteresis,
            "consecutive-hysteresis", s->consecutive_hysteresis ? 1 : 0, "raise-error-at-min-scale",
            s->raise_at_min ? 1 : 0, "min-loss-scale", s->min_scale);
        whole = numbers != NULL && json_object_update(into, numbers) == 0;
        json_decref(numbers);
    }
    if (whole && e->zero.given) {
        char text[SHL_ZERO_TEXT_BYTES];
        shl_zero_options_format(&e->zero, text, sizeof(text));
        whole = json_object_set_new(into, "zero", json_string(text)) == 0;
    }
    return whole ? SHL_OK : SHL_RAISE(SHL_E_HEAP, "out of host memory for a configuration record");
}

/* What differs from a model as it is built; NULL: out of memory. */
static json_t *
tune_json(const shl_tune_config *t)
{
    bool full = t->recompute_every > 0, lora = t->lora_rank > 0;
    return json_pack("{ss* so* ss* so* so* so* ss* so* so* so*}", "recompute",
                     t->recompute != SHL_RECOMPUTE_NONE ? shl_recompute_name(t->recompute) : NULL,
                     "recompute-every", full ? json_integer(t->recompute_every) : NULL, "freeze",
                     t->freeze[0] ? t->freeze : NULL, "train-last",
                     t->train_last > 0 ? json_integer(t->train_last) : NULL, "lora-rank",
                     lora ? json_integer(t->lora_rank) : NULL, "lora-alpha",
                     t->lora_alpha > 0.0 ? json_real(t->lora_alpha) : NULL, "lora-targets",
                     t->lora_targets[0] ? t->lora_targets : NULL, "lora-base",
                     t->lora_base ? json_true() : NULL, "dropout",
                     t->dropout > 0.0 ? json_real(t->dropout) : NULL, "attention-dropout",
                     t->attention_dropout > 0.0 ? json_real(t->attention_dropout) : NULL);
}

shl_code
shl_lab_offload_json(const shl_lab_setup *s, json_t *into)
{
    const shl_offload_config *o = &s->engine.offload;
    json_t *own =
        json_pack("{ss ss ss sf sb sI sI sI sf}", "offload-optimizer",
                  shl_offload_name(o->optimizer), "offload-param", shl_offload_name(o->param),
                  "offload-activations", shl_offload_name(o->activations), "offload-ratio",
                  o->ratio, "pin-memory", o->pin ? 1 : 0, "pin-limit",
                  (json_int_t)s->pin_limit_bytes, "sub-group-size", (json_int_t)o->sub_group_elems,
                  "host-memory", (json_int_t)s->host_memory_bytes, "link", s->link_bytes_per_s);
    bool whole = own != NULL && json_object_update(into, own) == 0;
    json_decref(own);
    return whole ? SHL_OK : SHL_RAISE(SHL_E_HEAP, "out of host memory for a configuration record");
}

shl_code
shl_lab_setup_json(const shl_lab_setup *s, json_t **out)
{
    const shl_engine_config *e = &s->engine;
    json_t *shape = shl_lab_shape_json(&s->shape);
    /* The inner objects are stolen, also on failure. */
    *out = json_pack("{ss so ss sI sI sI sI so sI ss sI sI sI ss ss sI sI ss sb sb ss}", "model",
                     s->model, "shape", shape, "strategy", shl_strategy_name(e->strategy), "ranks",
                     (json_int_t)s->ranks, "batch", (json_int_t)e->batch, "seq", (json_int_t)e->seq,
                     "accum", (json_int_t)e->accum, "optim", shl_lab_optim_json(e), "seed",
                     (json_int_t)e->seed, "reduce-every",
                     e->reduce_every == SHL_REDUCE_MICRO ? "micro" : "boundary", "bucket",
                     (json_int_t)e->bucket_elems, "prefetch", (json_int_t)e->prefetch, "threads",
                     (json_int_t)s->threads, "device", s->device, "as", s->stands_for,
                     "device-memory", (json_int_t)s->device_memory_bytes, "timeout-ms",
                     (json_int_t)s->timeout_ms, "comm", s->comm, "share-gpu", s->share_gpu ? 1 : 0,
                     "tf32", s->tf32 ? 1 : 0, "attention", s->attention);
    bool whole = *out != NULL;
    if (whole && s->init_from[0]) {
        whole = json_object_set_new(*out, "init-from", json_string(s->init_from)) == 0;
    }
    if (whole) {
        whole = json_object_set_new(*out, "tune", tune_json(&s->tune)) == 0;
    }
    if (!whole || shl_lab_policy_json(e, *out) != SHL_OK ||
        shl_lab_offload_json(s, *out) != SHL_OK) {
        json_decref(*out);
        *out = NULL;
        return SHL_RAISE(SHL_E_HEAP, "out of host memory for a configuration record");
    }
    return SHL_OK;
}

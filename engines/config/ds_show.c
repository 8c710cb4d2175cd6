/* engines/config: the resolved configuration shown, value by value with its origin, and the way back: a
 * ds_config.json of DeepSpeed's own keys from what an engine is told. */
#include <math.h>
#include <string.h>

#include <jansson.h>

#include "engines/config/ds_config.h"
#include "engines/config/ds_optimizer.h"
#include "kernels/base/types.h"

#define HOST "cpu"

static const char *
status_text(const shl_ds_config *c, const shl_ds_key *key, size_t i)
{
    if (key->status == SHL_DS_WORKS) {
        return "works";
    }
    if (key->status == SHL_DS_INERT) {
        return "no effect";
    }
    return shl_ds_passes(c, i) ? "not in this build" : "refused";
}

static void
add_dump(shl_str *out, const json_t *json, size_t flags)
{
    char *dump = json_dumps(json, JSON_ENCODE_ANY | flags);
    json_free_t release;
    json_get_alloc_funcs(NULL, &release);
    if (dump) {
        shl_str_add(out, "%s", dump);
    }
    out->failed = out->failed || !dump;
    release(dump);
}

/* Whether a row is of another optimizer than the chosen one. */
static bool
is_foreign(const shl_ds_config *c, const shl_ds_key *key, size_t i)
{
    return c->rows[i].origin == SHL_DS_DEFAULT && json_is_null(c->rows[i].json) &&
           strcmp(key->fallback, "null") != 0;
}

void
shl_ds_show(const shl_ds_config *c, bool changed, shl_str *out)
{
    size_t n;
    const shl_ds_key *keys = shl_ds_keys(&n);
    shl_str_add(out, "%-64s %-20s %-8s %s\n", "key", "value", "origin", "here");
    for (size_t i = 0; i < n; i++) {
        if ((changed && c->rows[i].origin == SHL_DS_DEFAULT) || is_foreign(c, &keys[i], i)) {
            continue;
        }
        shl_str value = {0};
        add_dump(&value, c->rows[i].json, JSON_REAL_PRECISION(12) | JSON_COMPACT);
        shl_str_add(out, "%-64s %-20s %-8s %s\n", keys[i].path, shl_str_get(&value),
                    shl_ds_origin_name(c->rows[i].origin), status_text(c, &keys[i], i));
        shl_str_fini(&value);
    }
}

shl_code
shl_ds_show_json(const shl_ds_config *c, shl_str *out)
{
    size_t n;
    const shl_ds_key *keys = shl_ds_keys(&n);
    json_t *all = json_array();
    for (size_t i = 0; all && i < n; i++) {
        if (is_foreign(c, &keys[i], i)) {
            continue;
        }
        json_t *row = json_pack("{ss sO ss ss ss}", "key", keys[i].path, "value", c->rows[i].json,
                                "origin", shl_ds_origin_name(c->rows[i].origin), "here",
                                status_text(c, &keys[i], i), "why", keys[i].why);
        if (!row || json_array_append_new(all, row) != 0) {
            json_decref(all);
            all = NULL;
        }
    }
    if (all) {
        add_dump(out, all, JSON_INDENT(1) | JSON_REAL_PRECISION(17));
        shl_str_add(out, "\n");
    }
    json_decref(all);
    return all ? SHL_OK : SHL_RAISE(SHL_E_HEAP, "out of host memory for a configuration");
}

/* What DeepSpeed's file cannot say. */
static shl_code
check_emit(const shl_engine_config *e)
{
    shl_reduce_every natural;
    if (e->strategy > SHL_ZERO3) {
        SHL_RAISE(SHL_E_USAGE, "%s has no ds_config.json", shl_strategy_name(e->strategy));
        shl_err_because("DeepSpeed's stages are ddp (0), zero1, zero2 and zero3");
        return shl_err_advice("--strategy zero3");
    }
    SHL_TRY(shl_reduce_every_resolve(e->strategy, SHL_REDUCE_AUTO, &natural));
    if (e->reduce_every != natural) {
        SHL_RAISE(SHL_E_USAGE, "DeepSpeed has no key for when gradients are reduced");
        return shl_err_because("stages 0 and 1 reduce at the boundary, 2 and 3 at each micro-step");
    }
    bool masters = e->master_dtype != SHL_F32 && e->compute_dtype != SHL_F32;
    bool low_moments = e->moment_dtype != SHL_F32;
    if ((masters && (e->grad_dtype != e->master_dtype || e->reduce_dtype != e->master_dtype ||
                     (!low_moments && e->offload.optimizer == SHL_OFFLOAD_NONE))) ||
        (low_moments && e->master_dtype != SHL_BF16)) {
        SHL_RAISE(SHL_E_USAGE, "DeepSpeed has no key for this policy of dtypes");
        shl_err_because("its 16-bit masters come with 16-bit gradients, and with bf16 moments "
                        "unless the optimizer is offloaded; its bf16 moments with bf16 masters");
        return shl_err_advice("--master-dtype fp32 --moment-dtype fp32");
    }
    bool foreign = e->optim.schedule == SHL_SCHEDULE_NAMED
                       ? e->optim.named.kind > SHL_DS_WARMUP_COSINE_LR
                       : e->optim.schedule != SHL_SCHEDULE_CONSTANT || e->optim.warmup_steps > 0;
    if (foreign) {
        SHL_RAISE(SHL_E_USAGE, "this schedule is none of DeepSpeed's");
        shl_err_because("it has LRRangeTest, OneCycle, WarmupLR, WarmupDecayLR, WarmupCosineLR");
        return shl_err_advice("--schedule constant, or a --config with a scheduler block");
    }
    return SHL_OK;
}

static json_t *
schedule_json(const shl_ds_schedule *s)
{
    json_t *params = json_object();
    int n;
    const shl_ds_schedule_param *rows = shl_ds_schedule_params(s->kind, &n);
    for (int i = 0; i < n; i++) {
        const char *name = rows[i].name;
        json_t *value = NULL;
        if (isnan(s->p[i])) {
            continue;
        }
        if (strcmp(name, "warmup_type") == 0) {
            value = json_string(s->p[i] > 0.0 ? "linear" : "log");
        } else if (strcmp(name, "cycle_momentum") == 0 || strstr(name, "staircase")) {
            value = json_boolean(s->p[i] > 0.0);
        } else {
            value = rows[i].whole ? json_integer((json_int_t)s->p[i]) : json_real(s->p[i]);
        }
        json_object_set_new(params, name, value);
    }
    return json_pack("{ss so}", "type", shl_ds_schedule_name(s->kind), "params", params);
}

static json_t *
fp16_json(const shl_engine_config *e)
{
    const shl_scale_config *s = &e->scale;
    int masters = e->master_dtype == SHL_F16;
    if (s->kind == SHL_SCALE_STATIC) {
        return json_pack("{sb sf sb}", "enabled", 1, "loss_scale", s->scale,
                         "fp16_master_weights_and_grads", masters);
    }
    return json_pack("{sb sb sf sI sI sI sb sI}", "enabled", 1, "fp16_master_weights_and_grads",
                     masters, "loss_scale", 0.0, "initial_scale_power", (json_int_t)log2(s->scale),
                     "loss_scale_window", (json_int_t)s->window, "hysteresis",
                     (json_int_t)s->hysteresis, "consecutive_hysteresis",
                     s->consecutive_hysteresis ? 1 : 0, "min_loss_scale", (json_int_t)s->min_scale);
}

static json_t *
bf16_json(const shl_engine_config *e)
{
    return json_pack("{sb sb sb sb}", "enabled", 1, "check_grad_overflow",
                     e->check_overflow ? 1 : 0, "bf16_master_weights_and_grads",
                     e->master_dtype == SHL_BF16 ? 1 : 0, "bf16_optimizer_states",
                     e->moment_dtype == SHL_BF16 ? 1 : 0);
}

static void
put_names(json_t *block, const char *key, const char *names)
{
    json_t *list = json_array();
    for (const char *at = names; *at;) {
        size_t n = strcspn(at, ",");
        json_array_append_new(list, json_stringn(at, n));
        at += n + (at[n] == ',');
    }
    if (names[0]) {
        json_object_set(block, key, list);
    }
    json_decref(list);
}

static void
put_elems(json_t *block, const char *key, int64_t elems)
{
    json_object_set_new(block, key, json_integer((json_int_t)elems));
}

/* Without DeepSpeed's keys stage 3 keeps nothing whole, and nothing for backward. */
static void
put_stage3(json_t *zero, const shl_zero_options *z)
{
    put_elems(zero, "stage3_param_persistence_threshold", z->persistence_elems);
    put_elems(zero, "stage3_max_reuse_distance", z->max_reuse_elems);
    if (!z->given) {
        return;
    }
    json_t *leaf = json_object();
    put_elems(zero, "stage3_prefetch_bucket_size", z->prefetch_elems);
    put_elems(zero, "stage3_model_persistence_threshold", z->model_persistence_elems);
    put_elems(zero, "stage3_max_live_parameters", z->max_live_elems);
    put_elems(zero, "stage3_module_granularity_threshold", z->granularity_elems);
    json_object_set_new(zero, "stage3_allgather_sequential", json_boolean(z->gather_sequential));
    json_object_set_new(zero, "stage3_gather_16bit_weights_on_model_save",
                        json_boolean(z->gather_on_save));
    put_names(leaf, "classes", z->leaf_classes);
    put_names(leaf, "names", z->leaf_names);
    put_names(leaf, "name_suffixes", z->leaf_suffixes);
    if (json_object_size(leaf) > 0) {
        json_object_set(zero, "leaf_module", leaf);
    }
    json_decref(leaf);
}

static json_t *
zero_json(const shl_engine_config *e)
{
    const shl_zero_options *z = &e->zero;
    const shl_offload_config *o = &e->offload;
    json_t *zero = json_object();
    put_elems(zero, "stage", (int64_t)e->strategy);
    put_elems(zero, "reduce_bucket_size", e->bucket_elems);
    if (z->serial_reduce) {
        json_object_set_new(zero, "overlap_comm", json_false());
    }
    if (z->whole_reduce) {
        json_object_set_new(zero, "reduce_scatter", json_false());
    }
    if (e->strategy == SHL_ZERO3) {
        put_stage3(zero, z);
    }
    if (o->optimizer != SHL_OFFLOAD_NONE) {
        json_t *block = json_pack("{ss sb}", "device", HOST, "pin_memory", o->pin ? 1 : 0);
        if (e->strategy == SHL_ZERO3) {
            json_object_set_new(block, "ratio", json_real(o->ratio));
            put_elems(zero, "sub_group_size", o->sub_group_elems);
        }
        json_object_set_new(zero, "offload_optimizer", block);
    }
    if (o->param != SHL_OFFLOAD_NONE) {
        json_object_set_new(zero, "offload_param",
                            json_pack("{ss sb}", "device", HOST, "pin_memory", o->pin ? 1 : 0));
    }
    return zero;
}

/* Where the mean over ranks is formed. */
static void
put_scaling(json_t *all, const shl_engine_config *e)
{
    const shl_zero_options *z = &e->zero;
    if (z->sum_gradients) {
        json_object_set_new(all, "gradient_allreduce_op", json_string("sum"));
    } else if (e->strategy == SHL_DDP || z->whole_reduce) {
        json_object_set_new(all, "prescale_gradients", json_boolean(!z->given || z->prescale));
        json_object_set_new(all, "gradient_predivide_factor",
                            json_real(z->given ? z->predivide : 1.0));
    }
}

static json_t *
emit_json(const shl_engine_config *e, int ranks)
{
    const shl_optim_config *o = &e->optim;
    json_t *optimizer = shl_ds_optimizer_json(o);
    json_t *zero = zero_json(e);
    json_t *all =
        json_pack("{sI sI sI so sf so}", "train_batch_size",
                  (json_int_t)(e->batch * e->accum * ranks), "train_micro_batch_size_per_gpu",
                  (json_int_t)e->batch, "gradient_accumulation_steps", (json_int_t)e->accum,
                  "zero_optimization", zero, "gradient_clipping", o->clip, "optimizer", optimizer);
    if (!all) {
        return NULL;
    }
    if (e->compute_dtype == SHL_BF16) {
        json_object_set_new(all, "bf16", bf16_json(e));
    } else if (e->compute_dtype == SHL_F16) {
        json_object_set_new(all, "fp16", fp16_json(e));
    }
    if (e->compute_dtype != SHL_F32) {
        json_object_set_new(all, "communication_data_type",
                            json_string(shl_dtype_name(e->reduce_dtype)));
        json_object_set_new(all, "data_types",
                            json_pack("{ss}", "grad_accum_dtype", shl_dtype_name(e->grad_dtype)));
    }
    put_scaling(all, e);
    if (e->offload.activations != SHL_OFFLOAD_NONE) {
        json_object_set_new(all, "activation_checkpointing",
                            json_pack("{sb}", "cpu_checkpointing", 1));
    }
    if (o->schedule == SHL_SCHEDULE_NAMED) {
        json_object_set_new(all, "scheduler", schedule_json(&o->named));
    }
    return all;
}

shl_code
shl_ds_emit(const shl_engine_config *e, int ranks, shl_str *out)
{
    SHL_TRY(check_emit(e));
    json_t *all = emit_json(e, ranks);
    if (!all) {
        return SHL_RAISE(SHL_E_HEAP, "out of host memory for a configuration");
    }
    add_dump(out, all, JSON_INDENT(2) | JSON_REAL_PRECISION(15));
    /* The short spelling, 0.9, where no bit is lost with it. */
    json_t *again = json_loads(shl_str_get(out), 0, NULL);
    if (json_equal(all, again) != 1) {
        shl_str_clear(out);
        add_dump(out, all, JSON_INDENT(2) | JSON_REAL_PRECISION(17));
    }
    json_decref(again);
    shl_str_add(out, "\n");
    json_decref(all);
    return out->failed ? SHL_RAISE(SHL_E_HEAP, "out of host memory for a configuration") : SHL_OK;
}

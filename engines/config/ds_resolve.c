/* engines/config: what DeepSpeed's values mean together: combinations that are refused, and what an engine
 * is told. */
#include <math.h>
#include <string.h>
#include <strings.h>

#include <jansson.h>

#include "engines/config/ds_config.h"
#include "engines/config/ds_optimizer.h"
#include "kernels/base/types.h"

#define Z "zero_optimization."
#define HOST "cpu"
#define BF16_MASTERS "bf16.bf16_master_weights_and_grads"
#define FP16_MASTERS "fp16.fp16_master_weights_and_grads"

/* Whether json is one of the texts, separated by blanks. */
static bool
is_one_of(const json_t *json, const char *texts)
{
    char word[64];
    while (*texts) {
        size_t len = strcspn(texts, " ");
        shl_strf(word, sizeof(word), "%.*s", (int)len, texts);
        json_t *other = json_loads(word, JSON_DECODE_ANY, NULL);
        bool same = json_is_number(json) && json_is_number(other)
                        ? json_number_value(json) == json_number_value(other)
                        : json_equal(json, other) == 1;
        json_decref(other);
        if (same) {
            return true;
        }
        texts += len + strspn(texts + len, " ");
    }
    return false;
}

bool
shl_ds_passes(const shl_ds_config *c, size_t i)
{
    size_t n;
    const shl_ds_key *key = &shl_ds_keys(&n)[i];
    const json_t *json = c->rows[i].json;
    if (key->inert && (strcmp(key->inert, "any") == 0 || is_one_of(json, key->inert))) {
        return true;
    }
    const char *fallback = shl_ds_fallback(key, c->dated);
    if (key->type == SHL_DS_TREE) {
        const json_t *enabled = json_object_get(json, "enabled");
        return !json_is_object(json) || json_object_size(json) == 0 || json_is_false(enabled);
    }
    if (json_is_array(json) || strchr(fallback, '[')) {
        json_t *other = json_loads(fallback, JSON_DECODE_ANY, NULL);
        bool same = json_equal(json, other) == 1;
        json_decref(other);
        return same;
    }
    return is_one_of(json, fallback);
}

static shl_code
check_statuses(const shl_ds_config *c)
{
    size_t n;
    const shl_ds_key *keys = shl_ds_keys(&n);
    for (size_t i = 0; i < n; i++) {
        if (c->rows[i].origin != SHL_DS_USER || keys[i].status == SHL_DS_WORKS ||
            shl_ds_passes(c, i)) {
            continue;
        }
        shl_ds_raise(c, keys[i].path,
                     keys[i].status == SHL_DS_REFUSED ? "is refused at this value"
                                                      : "cannot have this value");
        shl_err_because("%s", keys[i].why);
        return shl_err_advice("%s%s%s, or no such key", shl_ds_fallback(&keys[i], c->dated),
                              keys[i].inert ? " or " : "", keys[i].inert ? keys[i].inert : "");
    }
    return SHL_OK;
}

static shl_code
check_device(const shl_ds_config *c, const char *path, int64_t stage, int64_t least)
{
    const char *device = shl_ds_text(c, path);
    if (strcmp(device, "none") == 0) {
        return SHL_OK;
    }
    if (stage < least) {
        shl_ds_raise(c, path, "needs another stage");
        shl_err_because("stage %lld has nothing to offload there; DeepSpeed has it from stage %lld",
                        (long long)stage, (long long)least);
        return shl_err_advice("\"stage\": %lld, or no such block", (long long)least);
    }
    if (strcmp(device, "nvme") != 0) {
        return SHL_OK;
    }
    if (stage != 3) {
        shl_ds_raise(c, path, "is \"nvme\" in stage 2 or below");
        shl_err_because(
            "DeepSpeed refuses it too: NVMe is for stage 3 only, and this is stage %lld",
            (long long)stage);
        return shl_err_advice("\"device\": \"" HOST "\"");
    }
    shl_ds_raise(c, path, "is \"nvme\"");
    shl_err_because("NVMe is not in this build");
    return shl_err_advice("\"device\": \"" HOST "\"");
}

/* DeepSpeed refuses it too in stages 2 and 3, and reads it nowhere in stage 1. */
static shl_code
check_scaling(const shl_ds_config *c, int64_t stage)
{
    bool prescale = shl_ds_bool(c, "prescale_gradients");
    double factor = shl_ds_real(c, "gradient_predivide_factor", 1.0);
    const char *path = prescale ? "prescale_gradients" : "gradient_predivide_factor";
    if ((!prescale && factor == 1.0) || stage == 0 || !shl_ds_bool(c, Z "reduce_scatter")) {
        return SHL_OK;
    }
    shl_ds_raise(c, path, "beside reduce_scatter");
    shl_err_because("a reduce-scatter divides before it sums; DeepSpeed %s",
                    stage == 1 ? "reads it nowhere then" : "refuses it too");
    return shl_err_advice("\"reduce_scatter\": false, or no such key");
}

/* A key of stage 3 below it would do nothing. */
static shl_code
check_stage3_keys(const shl_ds_config *c, int64_t stage)
{
    size_t n;
    const shl_ds_key *keys = shl_ds_keys(&n);
    for (size_t i = 0; i < n && stage < 3; i++) {
        const json_t *json = c->rows[i].json;
        if (keys[i].stage != 3 || c->rows[i].origin != SHL_DS_USER || json_is_false(json) ||
            is_one_of(json, shl_ds_fallback(&keys[i], c->dated))) {
            continue;
        }
        shl_ds_raise(c, keys[i].path, "is a key of stage 3");
        shl_err_because("this is stage %lld, where DeepSpeed reads it nowhere", (long long)stage);
        return shl_err_advice("\"stage\": 3, or no such key");
    }
    return SHL_OK;
}

/* DeepSpeed refuses it too. */
static shl_code
check_clipping(const shl_ds_config *c)
{
    if (shl_ds_get(c, "optimizer.params.max_grad_norm")->origin == SHL_DS_DEFAULT) {
        return SHL_OK;
    }
    shl_ds_raise(c, "optimizer.params.max_grad_norm", "is not a parameter of an optimizer");
    shl_err_because("DeepSpeed refuses it too: clipping is a key of the top level");
    return shl_err_advice("\"gradient_clipping\": %g",
                          shl_ds_real(c, "optimizer.params.max_grad_norm", 1.0));
}

/* What DeepSpeed asserts as soon as a model checkpoints. */
static shl_code
check_activations(const shl_ds_config *c)
{
    const char *contiguous = "activation_checkpointing.contiguous_memory_optimization";
    bool parts = shl_ds_bool(c, "activation_checkpointing.partition_activations");
    if (!shl_ds_bool(c, contiguous) ||
        (parts && shl_ds_int(c, "activation_checkpointing.number_checkpoints", -1) >= 0)) {
        return SHL_OK;
    }
    shl_ds_raise(c, contiguous, parts ? "needs number_checkpoints" : "needs partition_activations");
    return shl_err_because("DeepSpeed refuses it too: its buffer holds that number of partitions");
}

static shl_code
check_scheduler(const shl_ds_config *c)
{
    size_t n;
    const shl_ds_key *keys = shl_ds_keys(&n);
    const char *type = shl_ds_text(c, "scheduler.type"), *prefix = "scheduler.params.";
    shl_ds_schedule_kind kind = SHL_DS_WARMUP_LR;
    for (size_t i = 0; i < n; i++) {
        if (c->rows[i].origin == SHL_DS_DEFAULT || strncmp(keys[i].path, prefix, 17) != 0) {
            continue;
        }
        if (!type || !shl_ds_schedule_find(type, &kind)) {
            shl_ds_raise(c, keys[i].path, "without scheduler.type");
            return shl_err_because("nothing says whose parameter it is");
        }
        if (shl_ds_schedule_param_index(kind, keys[i].path + 17) < 0) {
            shl_ds_raise(c, keys[i].path, "is not a parameter of this scheduler");
            return shl_err_because("%s has none of this name; it is %s", type, keys[i].why);
        }
    }
    return SHL_OK;
}

/* 16-bit masters, of the model's own dtype. Beside fp32 moments they are ZeRO-Offload's alone. */
static shl_code
check_masters(const shl_ds_config *c, int64_t stage, const char *key, bool of_model, bool moments)
{
    bool away = strcmp(shl_ds_text(c, Z "offload_optimizer.device"), HOST) == 0;
    if (!shl_ds_bool(c, key)) {
        return SHL_OK;
    }
    if (stage == 0 || !of_model) {
        shl_ds_raise(c, key, "needs a model in that dtype, and stage 1, 2 or 3");
        return shl_err_because("stage %lld, %.4s %s", (long long)stage, key,
                               of_model ? "on" : "off");
    }
    if (!moments && !away) {
        shl_ds_raise(c, key, "needs offload_optimizer");
        shl_err_because("DeepSpeed has 16-bit masters beside fp32 moments in CPU memory only");
        return shl_err_advice("\"offload_optimizer\": {\"device\": \"" HOST "\"}%s",
                              strncmp(key, "bf16", 4) == 0 ? ", or bf16_optimizer_states" : "");
    }
    return SHL_OK;
}

static shl_code
check_precision(const shl_ds_config *c, int64_t stage)
{
    bool fp16 = shl_ds_bool(c, "fp16.enabled"), bf16 = shl_ds_bool(c, "bf16.enabled");
    bool moments = shl_ds_bool(c, "bf16.bf16_optimizer_states");
    if (fp16 && bf16) {
        SHL_RAISE(SHL_E_CONFIG, "%s: fp16 and bf16 are both enabled", c->name);
        return shl_err_because("a model computes in one of them; DeepSpeed refuses both as well");
    }
    if (moments && !shl_ds_bool(c, BF16_MASTERS)) {
        shl_ds_raise(c, "bf16.bf16_optimizer_states", "needs bf16_master_weights_and_grads");
        return shl_err_because("DeepSpeed has bf16 moments over bf16 masters only");
    }
    SHL_TRY(check_masters(c, stage, BF16_MASTERS, bf16, moments));
    return check_masters(c, stage, FP16_MASTERS, fp16, false);
}

shl_code
shl_ds_config_check(const shl_ds_config *c)
{
    int64_t stage = shl_ds_int(c, Z "stage", 0);
    SHL_TRY(check_device(c, Z "offload_optimizer.device", stage, 1));
    SHL_TRY(check_device(c, Z "offload_param.device", stage, 3));
    if (shl_ds_real(c, Z "offload_optimizer.ratio", 1.0) < 1.0 && stage != 3) {
        shl_ds_raise(c, Z "offload_optimizer.ratio", "below 1 is a key of stage 3");
        return shl_err_because("DeepSpeed refuses partial offload in stage %lld", (long long)stage);
    }
    if (strcmp(shl_ds_text(c, "gradient_allreduce_op"), "sum") == 0 && stage == 3) {
        shl_ds_raise(c, "gradient_allreduce_op", "is \"sum\" in stage 3");
        return shl_err_because("DeepSpeed has it in stages 0 to 2 only");
    }
    SHL_TRY(check_scaling(c, stage));
    SHL_TRY(check_stage3_keys(c, stage));
    SHL_TRY(check_clipping(c));
    SHL_TRY(check_activations(c));
    SHL_TRY(check_statuses(c));
    SHL_TRY(shl_ds_optimizer_check(c));
    SHL_TRY(check_scheduler(c));
    return check_precision(c, stage);
}

static shl_dtype
dtype_or(const shl_ds_config *c, const char *path, shl_dtype otherwise)
{
    const char *text = shl_ds_text(c, path);
    if (!text) {
        return otherwise;
    }
    return strcmp(text, "bf16") == 0 ? SHL_BF16 : strcmp(text, "fp16") == 0 ? SHL_F16 : SHL_F32;
}

/* DeepSpeed accumulates and reduces in the model's dtype unless it is told. Stages 0 and 1 reduce where
 * they accumulate, so that one key alone decides both there. */
static void
resolve_dtypes(const shl_ds_config *c, shl_engine_config *e)
{
    const char *reduce = "communication_data_type", *accum = "data_types.grad_accum_dtype";
    shl_dtype compute = SHL_F32;
    compute = shl_ds_bool(c, "bf16.enabled") ? SHL_BF16 : compute;
    compute = shl_ds_bool(c, "fp16.enabled") ? SHL_F16 : compute;
    shl_dtype_policy_set(e, compute);
    e->grad_dtype = dtype_or(c, accum, compute);
    e->reduce_dtype = dtype_or(c, reduce, compute);
    if (shl_reduces_in_grad_dtype(e)) {
        e->grad_dtype = dtype_or(c, accum, e->reduce_dtype);
        e->reduce_dtype = dtype_or(c, reduce, e->grad_dtype);
    }
    if (shl_ds_bool(c, BF16_MASTERS) || shl_ds_bool(c, FP16_MASTERS)) {
        e->master_dtype = e->grad_dtype = e->reduce_dtype = compute;
        e->moment_dtype = shl_ds_bool(c, "bf16.bf16_optimizer_states") ? SHL_BF16 : SHL_F32;
    }
    e->check_overflow = compute == SHL_BF16 && shl_ds_bool(c, "bf16.check_grad_overflow");
}

static void
resolve_scale(const shl_ds_config *c, shl_scale_config *s)
{
    double fixed = shl_ds_real(c, "fp16.loss_scale", 0.0);
    s->kind = SHL_SCALE_NONE;
    if (!shl_ds_bool(c, "fp16.enabled")) {
        return;
    }
    s->kind = fixed > 0.0 ? SHL_SCALE_STATIC : SHL_SCALE_DYNAMIC;
    s->scale = fixed > 0.0 ? fixed : exp2(shl_ds_real(c, "fp16.initial_scale_power", 16.0));
    s->window = shl_ds_int(c, "fp16.loss_scale_window", 1000);
    s->hysteresis = shl_ds_int(c, "fp16.hysteresis", 2);
    s->consecutive_hysteresis = shl_ds_bool(c, "fp16.consecutive_hysteresis");
    s->min_scale = shl_ds_real(c, "fp16.min_loss_scale", 1.0);
    s->raise_at_min = true;
}

static shl_code
resolve_schedule(shl_ds_config *c, const shl_ds_facts *facts, shl_optim_config *o)
{
    const char *type = shl_ds_text(c, "scheduler.type");
    shl_ds_schedule_kind kind;
    if (!type) {
        if (c->has_trainer) {
            o->schedule = SHL_SCHEDULE_NAMED;
            o->named = c->trainer_schedule;
        }
        return SHL_OK;
    }
    SHL_ASSERT(shl_ds_schedule_find(type, &kind));
    int n;
    const shl_ds_schedule_param *params = shl_ds_schedule_params(kind, &n);
    o->schedule = SHL_SCHEDULE_NAMED;
    shl_ds_schedule_init(kind, &o->named);
    for (int i = 0; i < n; i++) {
        char path[64];
        shl_strf(path, sizeof(path), "scheduler.params.%s", params[i].name);
        const shl_ds_value *v = shl_ds_get(c, path);
        if (v->origin == SHL_DS_DEFAULT) {
            continue; /* a default depends on the class */
        }
        const char *text = json_string_value(v->json);
        double value = text ? (strcmp(text, "linear") == 0 ? 1.0 : 0.0)
                            : (json_is_true(v->json) ? 1.0 : json_number_value(v->json));
        o->named.p[i] = json_is_null(v->json) ? (double)NAN : value;
    }
    double beta1 = 0.0, beta2 = 0.0;
    if (shl_ds_schedule_betas(&o->named, facts->steps, &beta1, &beta2) && beta1 >= 1.0) {
        SHL_RAISE(SHL_E_CONFIG, "%s: OneCycle's beta1 reaches %g", c->name, beta1);
        shl_err_because("decay_mom_rate multiplies it without bound, and a beta lies below 1");
        return shl_err_advice("\"decay_mom_rate\": 0");
    }
    return SHL_OK;
}

/* A list of names as one text with commas. */
static shl_code
join_names(const shl_ds_config *c, const char *path, char *dst)
{
    const json_t *list = shl_ds_get(c, path)->json;
    size_t used = 0;
    dst[0] = '\0';
    for (size_t i = 0; i < json_array_size(list); i++) {
        const char *name = json_string_value(json_array_get(list, i));
        size_t n = strlen(name);
        if (n == 0 || strchr(name, ',') || strchr(name, ';') ||
            used + n + 2 > SHL_ZERO_LEAF_BYTES) {
            shl_ds_raise(c, path, "has a name that is no path, or too many of them");
            return shl_err_because("\"%.60s\"; %d bytes hold them all", name,
                                   SHL_ZERO_LEAF_BYTES - 1);
        }
        shl_strf(dst + used, SHL_ZERO_LEAF_BYTES - used, "%s%s", used > 0 ? "," : "", name);
        used += strlen(dst + used);
    }
    return SHL_OK;
}

static shl_code
resolve_zero(const shl_ds_config *c, shl_zero_options *z)
{
    z->given = true;
    z->prefetch_elems = shl_ds_int(c, Z "stage3_prefetch_bucket_size", 0);
    z->persistence_elems = shl_ds_int(c, Z "stage3_param_persistence_threshold", 0);
    z->model_persistence_elems = shl_ds_int(c, Z "stage3_model_persistence_threshold", 0);
    z->max_live_elems = shl_ds_int(c, Z "stage3_max_live_parameters", 0);
    z->max_reuse_elems = shl_ds_int(c, Z "stage3_max_reuse_distance", 0);
    z->granularity_elems = shl_ds_int(c, Z "stage3_module_granularity_threshold", 0);
    z->gather_sequential = shl_ds_bool(c, Z "stage3_allgather_sequential");
    z->gather_on_save = shl_ds_bool(c, Z "stage3_gather_16bit_weights_on_model_save");
    z->serial_reduce = json_is_false(shl_ds_get(c, Z "overlap_comm")->json);
    z->prescale = shl_ds_bool(c, "prescale_gradients");
    z->sum_gradients = strcmp(shl_ds_text(c, "gradient_allreduce_op"), "sum") == 0;
    z->predivide = shl_ds_real(c, "gradient_predivide_factor", 1.0);
    z->whole_reduce = !shl_ds_bool(c, Z "reduce_scatter");
    SHL_TRY(join_names(c, Z "leaf_module.names", z->leaf_names));
    SHL_TRY(join_names(c, Z "leaf_module.classes", z->leaf_classes));
    return join_names(c, Z "leaf_module.name_suffixes", z->leaf_suffixes);
}

static void
resolve_offload(const shl_ds_config *c, shl_offload_config *o)
{
    bool optimizer = strcmp(shl_ds_text(c, Z "offload_optimizer.device"), HOST) == 0;
    bool param = strcmp(shl_ds_text(c, Z "offload_param.device"), HOST) == 0;
    o->optimizer = optimizer ? SHL_OFFLOAD_HOST : SHL_OFFLOAD_NONE;
    o->param = param ? SHL_OFFLOAD_HOST : SHL_OFFLOAD_NONE;
    o->pin = (optimizer && shl_ds_bool(c, Z "offload_optimizer.pin_memory")) ||
             (param && shl_ds_bool(c, Z "offload_param.pin_memory"));
    o->ratio = shl_ds_real(c, Z "offload_optimizer.ratio", 1.0);
    /* DeepSpeed's default of 1e9 elements leaves nothing to overlap with. */
    if (shl_ds_get(c, Z "sub_group_size")->origin != SHL_DS_DEFAULT) {
        o->sub_group_elems = shl_ds_int(c, Z "sub_group_size", o->sub_group_elems);
    }
}

/* The block says how checkpoints are kept, and the model whether there are any: without, DeepSpeed reads it
 * nowhere. */
static void
resolve_activations(shl_ds_config *c, const shl_ds_facts *facts, shl_offload_config *o)
{
    bool away = shl_ds_bool(c, "activation_checkpointing.cpu_checkpointing");
    o->activations = away && facts->recomputes ? SHL_OFFLOAD_HOST : SHL_OFFLOAD_NONE;
    if (shl_ds_block_given(c, "activation_checkpointing") && !facts->recomputes) {
        shl_str_add(&c->notes,
                    "activation_checkpointing switches nothing on, as in DeepSpeed, where "
                    "the model calls it; here --recompute full does\n");
    }
}

/* Defaults of DeepSpeed, and resolved "auto", that this build does not honour. */
static void
note_unhonoured(shl_ds_config *c, int64_t stage)
{
    size_t n;
    const shl_ds_key *keys = shl_ds_keys(&n);
    for (size_t i = 0; i < n; i++) {
        bool read = keys[i].stage == 0 || keys[i].stage == stage;
        bool asked = c->rows[i].origin == SHL_DS_AUTO || keys[i].stage == 3;
        if (keys[i].status == SHL_DS_REFUSED && read && asked &&
            !(keys[i].inert && is_one_of(c->rows[i].json, keys[i].inert)) &&
            json_is_integer(c->rows[i].json) && json_integer_value(c->rows[i].json) > 0) {
            shl_str_add(&c->notes, "%s %lld (%s) has no effect in this build: %s\n", keys[i].path,
                        (long long)json_integer_value(c->rows[i].json),
                        shl_ds_origin_name(c->rows[i].origin), keys[i].why);
        }
    }
}

shl_code
shl_ds_resolve(shl_ds_config *c, const char *trainer, const shl_ds_facts *facts,
               shl_engine_config *e)
{
    static const shl_strategy stages[] = {SHL_DDP, SHL_ZERO1, SHL_ZERO2, SHL_ZERO3};
    SHL_TRY(shl_ds_config_auto(c, trainer, facts));
    SHL_TRY(shl_ds_config_batch(c, facts->ranks));
    SHL_TRY(shl_ds_config_check(c));
    int64_t stage = shl_ds_int(c, Z "stage", 0);
    int64_t bucket = shl_ds_int(c, Z "reduce_bucket_size", 0);
    e->strategy = stages[stage];
    SHL_TRY(shl_reduce_every_resolve(e->strategy, SHL_REDUCE_AUTO, &e->reduce_every));
    e->batch = shl_ds_int(c, "train_micro_batch_size_per_gpu", 0);
    e->accum = shl_ds_int(c, "gradient_accumulation_steps", 0);
    e->bucket_elems = bucket;
    if (facts->params > 0 && bucket > facts->params) {
        e->bucket_elems = facts->params;
        shl_str_add(&c->notes, Z "reduce_bucket_size %lld is above the model: %lld elements hold\n",
                    (long long)bucket, (long long)facts->params);
    }
    e->prefetch = shl_prefetch_resolve(e->strategy, e->prefetch);
    if (c->has_trainer) {
        e->seed = c->trainer_seed;
    }
    resolve_dtypes(c, e);
    resolve_scale(c, &e->scale);
    SHL_TRY(shl_ds_optimizer_resolve(c, &e->optim));
    SHL_TRY(resolve_schedule(c, facts, &e->optim));
    SHL_TRY(resolve_zero(c, &e->zero));
    resolve_offload(c, &e->offload);
    resolve_activations(c, facts, &e->offload);
    note_unhonoured(c, stage);
    if (c->notes.failed) {
        return SHL_RAISE(SHL_E_HEAP, "out of host memory for a configuration");
    }
    return shl_engine_config_check(e);
}

/* engines/api: options of a handle: defaults, and from names to a checked setup. */
#include <limits.h>
#include <math.h>
#include <string.h>

#include "engines/api/lab.h"
#include "engines/config/zero_text.h"
#include "kernels/base/str.h"

/* Layout code is linear in nothing but units, so a virtual world may be large. */
#define MAX_VIRTUAL_RANKS 1048576
#define MAX_THREADS 1024
#define DEFAULT_SCALE_POWER 16 /* DeepSpeed's; shl_engine_config_init has 2 to it */
#define MAX_SCALE_POWER 1000   /* 2 to it is a double */

int
shl_lab_options_init(shl_lab_options *o, size_t struct_bytes)
{
    shl_engine_config e;
    shl_engine_config_init(&e);
    shl_lab_options ours = {
        .struct_bytes = sizeof(ours),
        .model = "gpt2-tiny",
        .tied = -1,
        .qkv_bias = -1,
        .strategy = shl_strategy_name(e.strategy),
        .reduce_every = "auto",
        .bucket_elems = e.bucket_elems,
        .prefetch = e.prefetch,
        .batch = 4,
        .accum = e.accum,
        .seed = e.seed,
        .optimizer = "adamw",
        .lr = SHL_LAB_OWN,
        .beta1 = SHL_LAB_OWN,
        .beta2 = SHL_LAB_OWN,
        .eps = SHL_LAB_OWN,
        .weight_decay = SHL_LAB_OWN,
        .momentum = SHL_LAB_OWN,
        .dampening = SHL_LAB_OWN,
        .nesterov = SHL_LAB_OWN,
        .bias_correction = SHL_LAB_OWN,
        .min_coeff = SHL_LAB_OWN,
        .max_coeff = SHL_LAB_OWN,
        .clip = e.optim.clip,
        .schedule = "constant",
        .min_lr_ratio = e.optim.min_lr_ratio,
        .device = "cpu",
        .stands_for = "cpu",
        .dtype = shl_dtype_name(e.compute_dtype),
        .master_dtype = shl_dtype_name(e.master_dtype),
        .reduce_dtype = shl_dtype_name(e.reduce_dtype),
        .grad_dtype = shl_dtype_name(e.grad_dtype),
        .moment_dtype = shl_dtype_name(e.moment_dtype),
        .loss_scale = SHL_LAB_SCALE_NONE,
        .initial_scale_power = DEFAULT_SCALE_POWER,
        .loss_scale_window = e.scale.window,
        .hysteresis = e.scale.hysteresis,
        .consecutive_hysteresis = e.scale.consecutive_hysteresis,
        .raise_error_at_min_scale = e.scale.raise_at_min,
        .min_loss_scale = e.scale.min_scale,
        .recompute = "none",
        .freeze = "",
        .lora_targets = "",
        .offload_optimizer = shl_offload_name(e.offload.optimizer),
        .offload_param = shl_offload_name(e.offload.param),
        .offload_activations = shl_offload_name(e.offload.activations),
        .offload_ratio = e.offload.ratio,
        .sub_group_size = e.offload.sub_group_elems,
        .comm = "auto",
        .attention = "own",
    };
    if (o) {
        o->struct_bytes = struct_bytes;
    }
    return shl_lab_leave(NULL, shl_lab_give_sized(&ours, sizeof(ours), "shl_lab_options", o));
}

/* Index of text in a NULL-terminated list. */
static shl_code
choose(const char *field, const char *text, const char *const *names, int *out)
{
    size_t n = 0;
    shl_str list = {0};
    for (; names[n]; n++) {
        if (text && strcmp(text, names[n]) == 0) {
            *out = (int)n;
            shl_str_fini(&list);
            return SHL_OK;
        }
        shl_str_add(&list, "%s%s", n > 0 ? ", " : "", names[n]);
    }
    const char *near = text ? shl_nearest(text, names, n) : NULL;
    SHL_RAISE(SHL_E_USAGE, "%s: unknown \"%s\"", field, text ? text : "NULL");
    shl_err_because("it is one of: %s", shl_str_get(&list));
    shl_str_fini(&list);
    return near ? shl_err_advice("\"%s\"", near) : SHL_E_USAGE;
}

static shl_code
resolve_model(const shl_lab_options *o, shl_lab_setup *s)
{
    if (!o->model || strlen(o->model) >= sizeof(s->model)) {
        return SHL_RAISE(SHL_E_USAGE, "the model has %s name",
                         o->model ? "too long a" : "no"); /* it goes into every checkpoint */
    }
    const int64_t needed[] = {o->layers, o->width, o->heads, o->vocab, o->context};
    shl_named_model m = {.config = {.tied = true}};
    shl_shape_asked asked = {.family = o->family,
                             .layers = o->layers,
                             .width = o->width,
                             .heads = o->heads,
                             .vocab = o->vocab,
                             .context = o->context,
                             .inner = o->inner,
                             .kv_heads = o->kv_heads,
                             .head_dim = o->head_dim,
                             .norm_eps = o->norm_eps,
                             .rope_theta = o->rope_theta,
                             .rope_scaling = o->rope_scaling,
                             .tied = (int)o->tied,
                             .qkv_bias = (int)o->qkv_bias};
    bool full = true, known = shl_preset_find(o->model) != NULL;
    for (size_t i = 0; i < SHL_ARRAY_LEN(needed); i++) {
        full = full && needed[i] > 0;
    }
    if (o->tied < -1 || o->tied > 1 || o->qkv_bias < -1 || o->qkv_bias > 1) {
        return SHL_RAISE(SHL_E_USAGE, "tied or qkv-bias is not -1, 0 or 1");
    }
    shl_strf(m.name, sizeof(m.name), "%s", o->model);
    if (known || !full) {
        SHL_TRY(shl_model_find(o->model, &m));
    }
    /* A name that the caller gave stays his, whatever the shape. */
    shl_strf(s->model, sizeof(s->model), "%s", m.name);
    SHL_TRY(shl_named_apply(&m, &asked));
    if (o->device && strcmp(o->device, "virtual") != 0 && !o->approximate) {
        SHL_TRY(shl_named_check_exact(&m));
    }
    s->shape = m.config;
    return SHL_OK;
}

static shl_code
resolve_weights(const shl_lab_options *o, shl_lab_setup *s)
{
    if (o->init_from && (!o->init_from[0] || strlen(o->init_from) >= sizeof(s->init_from))) {
        return SHL_RAISE(SHL_E_USAGE, "init-from: the path has 1 to %zu characters",
                         sizeof(s->init_from) - 1);
    }
    shl_strf(s->init_from, sizeof(s->init_from), "%s", o->init_from ? o->init_from : "");
    return SHL_OK;
}

static shl_code
take_list(const char *field, const char *list, char *out)
{
    if (list && strlen(list) >= SHL_TUNE_TEXT) {
        SHL_RAISE(SHL_E_USAGE, "%s: the list is too long", field);
        return shl_err_because("it has %zu characters, and at most %d", strlen(list),
                               SHL_TUNE_TEXT - 1);
    }
    shl_strf(out, SHL_TUNE_TEXT, "%s", list ? list : "");
    return SHL_OK;
}

/* The values themselves are checked against the model, when it is built. */
static shl_code
resolve_tune(const shl_lab_options *o, shl_tune_config *t)
{
    SHL_TRY(shl_recompute_parse(o->recompute ? o->recompute : "none", &t->recompute));
    SHL_TRY(take_list("freeze", o->freeze, t->freeze));
    SHL_TRY(take_list("lora-targets", o->lora_targets, t->lora_targets));
    t->recompute_every = o->recompute_every;
    t->train_last = o->train_last;
    t->lora_rank = o->lora_rank;
    t->lora_alpha = o->lora_alpha;
    t->lora_base = o->lora_base;
    t->dropout = o->dropout;
    t->attention_dropout = o->attention_dropout;
    return SHL_OK;
}

static shl_code
resolve_optim(const shl_lab_options *o, shl_optim_config *c)
{
    static const char *const schedules[] = {"constant", "linear", "cosine", NULL};
    int schedule = 0;
    if (o->schedule && strchr(o->schedule, '(')) {
        SHL_TRY(shl_ds_schedule_parse(o->schedule, &c->named));
        schedule = SHL_SCHEDULE_NAMED;
    } else {
        SHL_TRY(choose("schedule", o->schedule, schedules, &schedule));
    }
    c->schedule = (shl_schedule)schedule;
    c->clip = o->clip;
    c->schedule_steps = o->schedule_steps;
    c->warmup_steps = o->warmup;
    c->min_lr_ratio = o->min_lr_ratio;
    return SHL_OK;
}

/* "none" is AdamW that nothing is updated with. */
static shl_code
resolve_optimizer(const shl_lab_options *o, shl_engine_config *e)
{
    const char *names[SHL_OPTIM_KIND_COUNT + 2] = {NULL};
    const shl_optim_asked asked = {.lr = o->lr,
                                   .beta1 = o->beta1,
                                   .beta2 = o->beta2,
                                   .eps = o->eps,
                                   .weight_decay = o->weight_decay,
                                   .momentum = o->momentum,
                                   .dampening = o->dampening,
                                   .nesterov = o->nesterov,
                                   .bias_correction = o->bias_correction,
                                   .min_coeff = o->min_coeff,
                                   .max_coeff = o->max_coeff};
    int kind = 0;
    memcpy(names, shl_optim_names, SHL_OPTIM_KIND_COUNT * sizeof(*names));
    names[SHL_OPTIM_KIND_COUNT] = "none";
    SHL_TRY(choose("optimizer", o->optimizer, names, &kind));
    e->no_optimizer = kind == SHL_OPTIM_KIND_COUNT;
    SHL_TRY(shl_optim_resolve(e->no_optimizer ? SHL_OPTIM_ADAMW : (shl_optim_kind)kind, &asked,
                              &e->optim));
    return resolve_optim(o, &e->optim);
}

static shl_code
resolve_dtypes(const shl_lab_options *o, shl_engine_config *e)
{
    SHL_TRY(shl_dtype_parse("dtype", o->dtype, &e->compute_dtype));
    SHL_TRY(shl_dtype_parse("master-dtype", o->master_dtype, &e->master_dtype));
    SHL_TRY(shl_dtype_parse("reduce-dtype", o->reduce_dtype, &e->reduce_dtype));
    SHL_TRY(shl_dtype_parse("grad-dtype", o->grad_dtype, &e->grad_dtype));
    return shl_dtype_parse("moment-dtype", o->moment_dtype, &e->moment_dtype);
}

static shl_code
check_count(const char *field, int64_t value, int64_t least, int64_t most)
{
    if (value < least || value > most) {
        SHL_RAISE(SHL_E_USAGE, "%s is %lld", field, (long long)value);
        return shl_err_because("it must lie from %lld to %lld", (long long)least, (long long)most);
    }
    return SHL_OK;
}

/* A number that is neither of the two names is the scale itself; the engine checks it. */
static shl_code
resolve_scale(const shl_lab_options *o, shl_engine_config *e)
{
    shl_scale_config *s = &e->scale;
    SHL_TRY(check_count("initial-scale-power", o->initial_scale_power, 0, MAX_SCALE_POWER));
    s->scale = ldexp(1.0, (int)o->initial_scale_power);
    s->kind = SHL_SCALE_DYNAMIC;
    if (o->loss_scale < 0.0 && !(o->loss_scale < SHL_LAB_SCALE_NONE) &&
        !(o->loss_scale > SHL_LAB_SCALE_NONE)) {
        s->kind = SHL_SCALE_NONE;
    } else if (o->loss_scale < SHL_LAB_SCALE_DYNAMIC || o->loss_scale > SHL_LAB_SCALE_DYNAMIC ||
               isnan(o->loss_scale)) {
        s->kind = SHL_SCALE_STATIC;
        s->scale = o->loss_scale;
    }
    s->window = o->loss_scale_window;
    s->hysteresis = o->hysteresis;
    s->consecutive_hysteresis = o->consecutive_hysteresis;
    s->raise_at_min = o->raise_error_at_min_scale;
    s->min_scale = o->min_loss_scale;
    e->check_overflow = o->check_overflow;
    return SHL_OK;
}

static shl_code
resolve_offload(const shl_lab_options *o, shl_offload_config *c)
{
    SHL_TRY(shl_offload_parse("offload-optimizer", o->offload_optimizer, &c->optimizer));
    SHL_TRY(shl_offload_parse("offload-param", o->offload_param, &c->param));
    SHL_TRY(shl_offload_parse("offload-activations",
                              o->offload_activations ? o->offload_activations : "none",
                              &c->activations));
    c->ratio = o->offload_ratio;
    c->pin = o->pin_memory;
    c->sub_group_elems = o->sub_group_size;
    return SHL_OK;
}

static shl_code
resolve_engine(const shl_lab_options *o, shl_lab_setup *s)
{
    static const char *const every[] = {"auto", "micro", "boundary", NULL};
    shl_engine_config *e = &s->engine;
    int reduce = 0;
    shl_engine_config_init(e);
    if (!o->strategy) {
        return SHL_RAISE(SHL_E_USAGE, "the strategy is NULL");
    }
    SHL_TRY(shl_strategy_parse(o->strategy, &e->strategy));
    SHL_TRY(choose("reduce-every", o->reduce_every, every, &reduce));
    SHL_TRY(shl_reduce_every_resolve(e->strategy, (shl_reduce_every)reduce, &e->reduce_every));
    if (o->prefetch < -1 || o->prefetch > INT_MAX) {
        return SHL_RAISE(SHL_E_USAGE, "prefetch is %lld", (long long)o->prefetch);
    }
    e->prefetch = shl_prefetch_resolve(e->strategy, (int)o->prefetch);
    SHL_TRY(shl_zero_options_parse(o->zero, &e->zero));
    e->bucket_elems = o->bucket_elems;
    e->accum = o->accum;
    e->batch = o->batch;
    e->seq = o->seq > 0 ? o->seq : (s->shape.context < 128 ? s->shape.context : 128);
    e->seed = o->seed;
    if (o->seq < 0) {
        return SHL_RAISE(SHL_E_USAGE, "a sequence of %lld tokens", (long long)o->seq);
    }
    SHL_TRY(resolve_optimizer(o, e));
    SHL_TRY(resolve_dtypes(o, e));
    SHL_TRY(resolve_scale(o, e));
    SHL_TRY(resolve_offload(o, &e->offload));
    return shl_engine_config_check(e);
}

/* This rank and its fellows. */
static shl_code
resolve_place(const shl_lab_options *o, const shl_world *world, bool is_virtual, shl_lab_setup *s)
{
    int64_t size = world ? shl_world_size(world) : 1, at = world ? shl_world_rank(world) : 0;
    if (is_virtual && world) {
        SHL_RAISE(SHL_E_USAGE, "a virtual device in a world of running ranks");
        shl_err_because("it stands for one rank of a world that does not run");
        return shl_err_advice("no world, and ranks and rank in the options");
    }
    if (is_virtual) {
        size = o->ranks > 0 ? o->ranks : 1;
        at = o->rank;
        SHL_TRY(check_count("ranks", size, 1, MAX_VIRTUAL_RANKS));
        SHL_TRY(check_count("rank", at, 0, size - 1));
    } else if ((o->ranks != 0 && o->ranks != size) || (o->rank != 0 && o->rank != at)) {
        SHL_RAISE(SHL_E_USAGE, "rank %lld of %lld in the options", (long long)o->rank,
                  (long long)o->ranks);
        shl_err_because("this is rank %lld of a world of %lld", (long long)at, (long long)size);
        return shl_err_advice("0 and 0, and shl_lab_run_threads or shl_lab_run_processes");
    }
    s->ranks = (int)size;
    s->rank = (int)at;
    int64_t threads = o->threads;
    if (threads == 0) {
        threads = world ? shl_world_threads_per_rank(world) : 1;
    }
    SHL_TRY(check_count("threads", threads, 1, MAX_THREADS));
    s->threads = (int)threads;
    return SHL_OK;
}

/* A wish that nothing would come of is refused, not left aside. */
shl_code
shl_lab_card_check(const shl_lab_card_wish *w)
{
    bool card = strcmp(w->target, "cuda") == 0, library = strcmp(w->attention, "own") != 0;
    if (!card && (library || w->tf32)) {
        SHL_RAISE(SHL_E_USAGE, "%s on device %s", library ? "attention by cuDNN" : "tf32",
                  w->target);
        shl_err_because("it is a choice of GPUs");
        return shl_err_advice("device cuda, or without it");
    }
    if (!library || (w->compute_dtype == SHL_BF16 && !(w->attention_dropout > 0.0))) {
        return SHL_OK;
    }
    SHL_RAISE(SHL_E_USAGE, "attention by cuDNN is for bf16 without dropout");
    if (w->compute_dtype != SHL_BF16) {
        shl_err_because("this run computes in %s", shl_dtype_name(w->compute_dtype));
        return shl_err_advice("dtype bf16, or attention own");
    }
    shl_err_because("attention-dropout is %g", w->attention_dropout);
    return shl_err_advice("attention-dropout 0, or attention own");
}

/* What only cards look at. NULL is as left out. */
static shl_code
resolve_card(const shl_lab_options *o, shl_lab_setup *s)
{
    static const char *const comms[] = {"auto", "self",         "shm", "local",
                                        "nccl", "nccl-ordered", NULL};
    static const char *const attentions[] = {"own", "cudnn", NULL};
    int comm = 0, attention = 0;
    SHL_TRY(o->comm ? choose("comm", o->comm, comms, &comm) : SHL_OK);
    SHL_TRY(o->attention ? choose("attention", o->attention, attentions, &attention) : SHL_OK);
    shl_strf(s->comm, sizeof(s->comm), "%s", comms[comm]);
    shl_strf(s->attention, sizeof(s->attention), "%s", attentions[attention]);
    s->share_gpu = o->share_gpu;
    s->tf32 = o->tf32;
    const shl_lab_card_wish wish = {
        .target = strcmp(s->device, "virtual") == 0 ? s->stands_for : s->device,
        .attention = s->attention,
        .tf32 = s->tf32,
        .compute_dtype = s->engine.compute_dtype,
        .attention_dropout = s->tune.attention_dropout,
    };
    return shl_lab_card_check(&wish);
}

static shl_code
resolve_device(const shl_lab_options *o, const shl_world *world, shl_lab_setup *s)
{
    if (!o->device || !o->stands_for) {
        return SHL_RAISE(SHL_E_USAGE, "the device is NULL");
    }
    bool is_virtual = strcmp(o->device, "virtual") == 0;
    if (is_virtual && strcmp(o->stands_for, "cpu") != 0 && strcmp(o->stands_for, "cuda") != 0) {
        SHL_RAISE(SHL_E_USAGE, "a virtual device cannot stand for \"%s\"", o->stands_for);
        return shl_err_because("this version has the sizes of: cpu, cuda");
    }
    SHL_TRY(check_count("timeout-ms", o->timeout_ms, 0, INT64_MAX / 4));
    SHL_TRY(check_count("alpha-ns", o->alpha_ns, 0, INT64_MAX / 4));
    const double rates[] = {o->wire_bytes_per_s, o->flops_per_s, o->bytes_per_s,
                            o->link_bytes_per_s};
    for (size_t i = 0; i < SHL_ARRAY_LEN(rates); i++) {
        if (!(rates[i] >= 0.0)) {
            return SHL_RAISE(SHL_E_USAGE, "a rate is %g, and not a number from 0", rates[i]);
        }
    }
    /* A longer name is no device either, and is refused by its beginning. */
    shl_strf(s->device, sizeof(s->device), "%s", o->device);
    shl_strf(s->stands_for, sizeof(s->stands_for), "%s", o->stands_for);
    s->device_memory_bytes = (size_t)o->device_memory_bytes;
    s->host_memory_bytes = (size_t)o->host_memory_bytes;
    s->pin_limit_bytes = (size_t)o->pin_limit_bytes;
    s->link_bytes_per_s = o->link_bytes_per_s;
    s->timeout_ms = o->timeout_ms;
    s->alpha_ns = o->alpha_ns;
    s->wire_bytes_per_s = o->wire_bytes_per_s;
    s->sim_sleep = o->sim_sleep;
    s->flops_per_s = o->flops_per_s;
    s->bytes_per_s = o->bytes_per_s;
    SHL_TRY(resolve_card(o, s));
    return resolve_place(o, world, is_virtual, s);
}

shl_code
shl_lab_setup_resolve(const shl_lab_options *o, const shl_world *world, shl_lab_setup *out)
{
    memset(out, 0, sizeof(*out));
    SHL_TRY(resolve_model(o, out));
    SHL_TRY(resolve_weights(o, out));
    SHL_TRY(resolve_tune(o, &out->tune));
    SHL_TRY(resolve_engine(o, out));
    return resolve_device(o, world, out);
}

/* bench: defaults, cross-field checks and the JSON form of a session's configuration. The JSON goes
 * into every record and checkpoint, so its keys are the flags' names and its values are resolved. */
#include "bench/session_impl.h"

#include <math.h>
#include <string.h>

#include <jansson.h>

#include "kernels/base/str.h"

/* Layout code is linear in nothing but units, so a virtual world may be large. */
#define MAX_VIRTUAL_RANKS 1048576
#define MAX_THREADS 1024

void
shl_session_config_init(shl_session_config *c)
{
    memset(c, 0, sizeof(*c));
    const shl_preset *preset = shl_preset_find("gpt2-tiny");
    SHL_ASSERT(preset != NULL);
    shl_strf(c->model, sizeof(c->model), "%s", preset->name);
    c->shape = preset->config;
    shl_engine_config_init(&c->engine);
    c->engine.batch = 4;
    c->engine.seq = c->shape.context < 128 ? c->shape.context : 128;
    c->ranks = 1;
    c->threads = 1;
    c->device = "cpu";
    c->as = "cpu";
    c->comm = "auto";
    c->attention = "own";
    c->steps = 10;
}

int64_t
shl_session_global_rows(const shl_session_config *c)
{
    return (int64_t)c->ranks * c->engine.batch * c->engine.accum;
}

static shl_code
check_device(const shl_session_config *c)
{
    bool is_virtual = strcmp(c->device, "virtual") == 0;
    int most = is_virtual ? MAX_VIRTUAL_RANKS : SHL_WORLD_MAX_RANKS;
    if (c->ranks < 1 || c->ranks > most) {
        SHL_RAISE(SHL_E_USAGE, "%d ranks", c->ranks);
        shl_err_because("the device \"%s\" takes from 1 to %d", c->device, most);
        return is_virtual ? SHL_E_USAGE : shl_err_advice("--device virtual for larger worlds");
    }
    if (c->threads < 1 || c->threads > MAX_THREADS) {
        SHL_RAISE(SHL_E_USAGE, "%d threads per rank", c->threads);
        return shl_err_because("it must lie from 1 to %d", MAX_THREADS);
    }
    if (c->processes && strcmp(c->comm, "local") == 0) {
        SHL_RAISE(SHL_E_USAGE, "ranks as processes that talk by \"local\"");
        shl_err_because("it copies between the ranks of one process");
        return shl_err_advice("--launch threads");
    }
    const shl_lab_card_wish wish = {.target = is_virtual ? c->as : c->device,
                                    .attention = c->attention,
                                    .tf32 = c->tf32,
                                    .compute_dtype = c->engine.compute_dtype,
                                    .attention_dropout = c->tune.attention_dropout};
    SHL_TRY(shl_lab_card_check(&wish));
    if (!is_virtual) {
        return SHL_OK; /* an unknown kind is refused by shl_device_open, which lists them */
    }
    if (strcmp(c->as, "cpu") != 0 && strcmp(c->as, "cuda") != 0) {
        SHL_RAISE(SHL_E_USAGE, "a virtual device cannot stand for \"%s\"", c->as);
        shl_err_because("this version has the sizes of: cpu, cuda");
        return shl_err_advice("--as cpu");
    }
    if (c->ckpt_dir || c->processes) {
        SHL_RAISE(SHL_E_USAGE, "a virtual device has %s",
                  c->processes ? "no processes" : "no data");
        return shl_err_because("it accounts for everything and computes nothing, so %s",
                               c->processes ? "one rank stands for all of them"
                                            : "there is no checkpoint to save or load");
    }
    return SHL_OK;
}

static shl_code
check_checkpoints(const shl_session_config *c)
{
    if (c->save_every < 0) {
        SHL_RAISE(SHL_E_USAGE, "save every %lld steps", (long long)c->save_every);
        return shl_err_because("it must be 0 (only at the end) or more");
    }
    if (!c->ckpt_dir && (c->save_every > 0 || c->resume)) {
        SHL_RAISE(SHL_E_USAGE, "%s without a checkpoint folder", c->resume ? "resume" : "save");
        shl_err_because("nothing says where checkpoints are");
        return shl_err_advice("--ckpt-dir DIR");
    }
    return SHL_OK;
}

static shl_code
check_validation(const shl_session_config *c)
{
    bool has_data = strcmp(c->device, "virtual") != 0;
    if (!(c->val_split >= 0.0 && c->val_split < 1.0) || c->eval_every < 0 || c->eval_batches < 0) {
        SHL_RAISE(SHL_E_USAGE, "validation on %g of the data every %lld steps, %lld batches",
                  c->val_split, (long long)c->eval_every, (long long)c->eval_batches);
        return shl_err_because("the split is from 0 to below 1, the others are 0 or more");
    }
    if (c->val_split > 0.0 && c->val_data) {
        SHL_RAISE(SHL_E_USAGE, "two kinds of validation data");
        shl_err_because("--val-split holds out a part of --data, --val-data is a file of its own");
        return shl_err_advice("one of them");
    }
    if (c->eval_every == 0 && (c->val_data || c->eval_batches > 0)) {
        SHL_RAISE(SHL_E_USAGE, "%s without an evaluation",
                  c->val_data ? "validation data" : "evaluation batches");
        shl_err_because("nothing says when to evaluate");
        return shl_err_advice("--eval-every N");
    }
    bool has_split = c->val_split > 0.0 && !c->batches;
    if (c->eval_every > 0 && has_data && !has_split && !c->val_data) {
        SHL_RAISE(SHL_E_USAGE, "an evaluation without validation data");
        shl_err_because("nothing is held out of the training data");
        return shl_err_advice("--val-split 0.1, or --val-data FILE");
    }
    return SHL_OK;
}

shl_code
shl_session_config_check(const shl_session_config *c)
{
    SHL_TRY(shl_engine_config_check(&c->engine));
    SHL_TRY(check_device(c));
    SHL_TRY(check_checkpoints(c));
    SHL_TRY(check_validation(c));
    if (c->steps < 1 || c->steps > INT64_MAX / 4) {
        SHL_RAISE(SHL_E_USAGE, "%lld steps", (long long)c->steps);
        return shl_err_because("the step number to reach is at least 1");
    }
    int64_t tokens;
    if (!shl_mul_elems(c->engine.batch, c->engine.accum, &tokens) ||
        !shl_mul_elems(tokens, c->ranks, &tokens) ||
        !shl_mul_elems(tokens, c->engine.seq, &tokens) ||
        !shl_mul_elems(tokens, c->steps, &tokens) || tokens > INT64_MAX / 4) {
        SHL_RAISE(SHL_E_USAGE, "the run has more tokens than 64 bits can count");
        return shl_err_because("ranks * batch * accum * seq * steps is too large");
    }
    shl_model *model = NULL;
    SHL_TRY(shl_model_new(&c->shape, &model));
    /* Scaled rotary angles reach further than the context that is configured. */
    int64_t reach = model->context;
    shl_code code = shl_model_tune(model, &c->tune);
    shl_model_free(&model);
    SHL_TRY(code);
    if (c->engine.seq > reach) {
        SHL_RAISE(SHL_E_USAGE, "a sequence of %lld positions", (long long)c->engine.seq);
        shl_err_because("the context of %s is %lld", c->model, (long long)reach);
        return c->shape.family == SHL_FAMILY_LLAMA
                   ? shl_err_advice("--seq %lld, or --rope-scaling linear:FACTOR", (long long)reach)
                   : shl_err_advice("--seq %lld", (long long)reach);
    }
    return SHL_OK;
}

static const char *
schedule_name(const shl_session_config *c)
{
    static const char *const names[] = {
        [SHL_SCHEDULE_CONSTANT] = "constant",
        [SHL_SCHEDULE_LINEAR] = "linear",
        [SHL_SCHEDULE_COSINE] = "cosine",
    };
    shl_schedule s = c->engine.optim.schedule;
    return s == SHL_SCHEDULE_NAMED ? c->schedule_text : names[s];
}

static void
give_policy(const shl_engine_config *e, shl_lab_options *out)
{
    static const double names[] = {
        [SHL_SCALE_NONE] = SHL_LAB_SCALE_NONE, [SHL_SCALE_DYNAMIC] = SHL_LAB_SCALE_DYNAMIC};
    const shl_scale_config *s = &e->scale;
    out->dtype = shl_dtype_name(e->compute_dtype);
    out->master_dtype = shl_dtype_name(e->master_dtype);
    out->reduce_dtype = shl_dtype_name(e->reduce_dtype);
    out->grad_dtype = shl_dtype_name(e->grad_dtype);
    out->moment_dtype = shl_dtype_name(e->moment_dtype);
    out->loss_scale = s->kind == SHL_SCALE_STATIC ? s->scale : names[s->kind];
    out->initial_scale_power = s->kind == SHL_SCALE_STATIC ? 0 : ilogb(s->scale);
    out->loss_scale_window = s->window;
    out->hysteresis = s->hysteresis;
    out->consecutive_hysteresis = s->consecutive_hysteresis;
    out->raise_error_at_min_scale = s->raise_at_min;
    out->min_loss_scale = s->min_scale;
    out->check_overflow = e->check_overflow;
}

static void
give_optim(const shl_engine_config *e, shl_lab_options *out)
{
    shl_optim_asked a;
    shl_optim_asked_of(&e->optim, &a);
    out->optimizer = e->no_optimizer ? "none" : shl_optim_name(e->optim.kind);
    out->lr = a.lr;
    out->beta1 = a.beta1;
    out->beta2 = a.beta2;
    out->eps = a.eps;
    out->weight_decay = a.weight_decay;
    out->momentum = a.momentum;
    out->dampening = a.dampening;
    out->nesterov = a.nesterov;
    out->bias_correction = a.bias_correction;
    out->min_coeff = a.min_coeff;
    out->max_coeff = a.max_coeff;
}

shl_code
shl_session_lab_options(const shl_session_config *c, int rank, char *rope, shl_lab_options *out)
{
    const shl_engine_config *e = &c->engine;
    bool is_virtual = strcmp(c->device, "virtual") == 0;
    SHL_TRY((shl_code)shl_lab_options_init(out, sizeof(*out)));
    out->model = c->model;
    out->layers = c->shape.layers;
    out->width = c->shape.width;
    out->heads = c->shape.heads;
    out->vocab = c->shape.vocab;
    out->context = c->shape.context;
    out->inner = c->shape.inner;
    out->norm_eps = c->shape.norm_eps;
    out->tied = c->shape.tied;
    shl_rope_spell(&c->shape.rope, rope, SHL_ROPE_TEXT_BYTES);
    out->family = shl_family_name(c->shape.family);
    out->kv_heads = c->shape.kv_heads;
    out->head_dim = c->shape.head_dim;
    out->rope_theta = c->shape.rope_theta;
    out->rope_scaling = rope;
    out->qkv_bias = c->shape.qkv_bias;
    out->approximate = c->approximate;
    out->strategy = shl_strategy_name(e->strategy);
    out->reduce_every = e->reduce_every == SHL_REDUCE_MICRO ? "micro" : "boundary";
    out->bucket_elems = e->bucket_elems;
    out->prefetch = e->prefetch;
    out->batch = e->batch;
    out->seq = e->seq;
    out->accum = e->accum;
    out->seed = e->seed;
    out->clip = e->optim.clip;
    out->schedule = schedule_name(c);
    out->schedule_steps = e->optim.schedule_steps;
    out->warmup = e->optim.warmup_steps;
    out->min_lr_ratio = e->optim.min_lr_ratio;
    out->device = c->device;
    out->stands_for = c->as;
    out->comm = c->comm;
    out->share_gpu = c->share_gpu;
    out->tf32 = c->tf32;
    out->attention = c->attention;
    out->ranks = is_virtual ? c->ranks : 0;
    out->rank = is_virtual ? rank : 0;
    out->threads = c->threads;
    out->device_memory_bytes = c->device_memory_bytes;
    out->host_memory_bytes = c->host_memory_bytes;
    out->pin_limit_bytes = c->pin_limit_bytes;
    out->link_bytes_per_s = c->link_bytes_per_s;
    out->offload_optimizer = shl_offload_name(e->offload.optimizer);
    out->offload_param = shl_offload_name(e->offload.param);
    out->offload_activations = shl_offload_name(e->offload.activations);
    out->offload_ratio = e->offload.ratio;
    out->pin_memory = e->offload.pin;
    out->sub_group_size = e->offload.sub_group_elems;
    out->timeout_ms = c->timeout_ms;
    out->alpha_ns = c->alpha_ns;
    out->wire_bytes_per_s = c->wire_bytes_per_s;
    out->sim_sleep = c->sim_sleep;
    out->flops_per_s = c->flops_per_s;
    out->bytes_per_s = c->bytes_per_s;
    out->recompute = shl_recompute_name(c->tune.recompute);
    out->recompute_every = c->tune.recompute_every;
    out->freeze = c->tune.freeze;
    out->train_last = c->tune.train_last;
    out->lora_rank = c->tune.lora_rank;
    out->lora_alpha = c->tune.lora_alpha;
    out->lora_targets = c->tune.lora_targets;
    out->lora_base = c->tune.lora_base;
    out->dropout = c->tune.dropout;
    out->attention_dropout = c->tune.attention_dropout;
    out->zero = c->zero_text;
    out->init_from = c->resume ? NULL : c->init_from;
    give_policy(e, out);
    give_optim(e, out);
    return SHL_OK;
}

static json_t *
tune_json(const shl_tune_config *t)
{
    return json_pack(
        "{ss sI ss sI sI sf ss sb sf sf}", "recompute", shl_recompute_name(t->recompute),
        "recompute-every", (json_int_t)t->recompute_every, "freeze", t->freeze, "train-last",
        (json_int_t)t->train_last, "lora-rank", (json_int_t)t->lora_rank, "lora-alpha",
        t->lora_alpha, "lora-targets", t->lora_targets, "lora-base", t->lora_base ? 1 : 0,
        "dropout", t->dropout, "attention-dropout", t->attention_dropout);
}

/* The keys of a configuration that say what is trained on and what is validated with. */
static json_t *
data_json(const shl_session_config *c)
{
    return json_pack("{ss? sI ss sf ss? sI sI}", "data", c->data, "data-seed",
                     (json_int_t)c->data_seed, "shuffle", c->in_order ? "off" : "on", "val-split",
                     c->val_split, "val-data", c->val_data, "eval-every", (json_int_t)c->eval_every,
                     "eval-batches", (json_int_t)c->eval_batches);
}

shl_code
shl_session_config_json(const shl_session_config *c, json_t **out)
{
    const shl_engine_config *e = &c->engine;
    json_t *shape = shl_lab_shape_json(&c->shape), *optim = shl_lab_optim_json(&c->engine);
    /* "s?" gives null for NULL; the inner objects are stolen, also on failure. */
    *out = json_pack(
        "{ss so ss sI sI sI sI sI so sI ss sI sI sI ss ss ss sI ss? sI sb sb sI ss? ss sb sb ss}",
        "model", c->model, "shape", shape, "strategy", shl_strategy_name(e->strategy), "ranks",
        (json_int_t)c->ranks, "batch", (json_int_t)e->batch, "seq", (json_int_t)e->seq, "accum",
        (json_int_t)e->accum, "steps", (json_int_t)c->steps, "optim", optim, "seed",
        (json_int_t)e->seed, "reduce-every",
        e->reduce_every == SHL_REDUCE_MICRO ? "micro" : "boundary", "bucket",
        (json_int_t)e->bucket_elems, "prefetch", (json_int_t)e->prefetch, "threads",
        (json_int_t)c->threads, "device", c->device, "as", c->as, "launch",
        c->processes ? "processes" : "threads", "device-memory", (json_int_t)c->device_memory_bytes,
        "ckpt-dir", c->ckpt_dir, "save-every", (json_int_t)c->save_every, "resume",
        c->resume ? 1 : 0, "timeline", c->timeline ? 1 : 0, "timeout-ms", (json_int_t)c->timeout_ms,
        "init-from", c->init_from, "comm", c->comm, "share-gpu", c->share_gpu ? 1 : 0, "tf32",
        c->tf32 ? 1 : 0, "attention", c->attention);
    json_t *data = data_json(c);
    bool whole = *out && data && json_object_update(*out, data) == 0 &&
                 json_object_set_new(*out, "tune", tune_json(&c->tune)) == 0;
    if (whole && c->approximated[0]) {
        whole = json_object_set_new(*out, "approximated", json_string(c->approximated)) == 0;
    }
    json_decref(data);
    if (!whole) {
        json_decref(*out);
        *out = NULL;
        return SHL_RAISE(SHL_E_HEAP, "out of host memory for a configuration record");
    }
    shl_lab_setup offload = {.engine = *e,
                             .host_memory_bytes = c->host_memory_bytes,
                             .pin_limit_bytes = c->pin_limit_bytes,
                             .link_bytes_per_s = c->link_bytes_per_s};
    shl_code code = shl_lab_policy_json(e, *out);
    code = code == SHL_OK ? shl_lab_offload_json(&offload, *out) : code;
    if (code != SHL_OK) {
        json_decref(*out);
        *out = NULL;
    }
    return code;
}

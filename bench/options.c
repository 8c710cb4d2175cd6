/* bench: from the words of the command line to checked configurations, one per row of the sweep. */
#include "bench/options.h"

#include <math.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "bench/host.h"
#include "bench/sweep.h"
#include "kernels/base/heap.h"
#include "kernels/base/str.h"
#include "models/hf_config.h"

const char *const shl_choices_convention[] = {"shardlab", "deepspeed", NULL};
const char *const shl_choices_emit[] = {"none", "deepspeed", NULL};
const char *const shl_choices_schedule[] = {"constant", "linear", "cosine", NULL};
const char *const shl_choices_family[] = {"preset", "gpt", "llama", NULL};
const char *const shl_choices_preset[] = {"preset", "on", "off", NULL};
const char *const shl_choices_device[] = {"cpu", "virtual", "cuda", NULL};
const char *const shl_choices_as[] = {"cpu", "cuda", NULL};
const char *const shl_choices_comm[] = {"auto", "self",         "shm", "local",
                                        "nccl", "nccl-ordered", NULL};
const char *const shl_choices_attention[] = {"own", "cudnn", NULL};
const char *const shl_choices_launch[] = {"auto", "threads", "processes", "launcher", NULL};
const char *const shl_choices_shuffle[] = {"on", "off", NULL};
const char *const shl_choices_dtype[] = {"fp32", "bf16", "fp16", NULL};
const char *const shl_choices_offload[] = {"none", "cpu", NULL};
#define DEFAULT_MODEL "gpt2-tiny"
#define MODEL_PATH_MAX 1100

static const char *const reduce_names[] = {"auto", "micro", "boundary", NULL};

static const shl_option all_rows[] = {
    SHL_ROWS_DEEPSPEED, SHL_ROWS_PLAN,
    /* clang-format off */
    SHL_ROWS_MODEL,
    SHL_ROWS_WORLD("ddp", "1"),
    SHL_ROWS_BATCH,
    SHL_ROWS_OPTIMIZER,
    SHL_ROWS_DTYPE,
    SHL_ROWS_RUN,
    SHL_ROWS_TUNE,
    SHL_ROWS_VALIDATION,
    SHL_ROWS_DEVICE,
    SHL_ROW_COMM,
    SHL_ROWS_GPU,
    SHL_ROWS_OFFLOAD,
    SHL_ROWS_CHECKPOINT,
    SHL_ROWS_FORMAT,
    SHL_ROWS_HIDDEN,
    SHL_ROW_INIT_FROM,
    /* clang-format on */
};

/* Slowest first: the rows of a table are grouped by ranks, strategies side by side. */
enum {
    AXIS_MODEL = 0,
    AXIS_SEED,
    AXIS_DATA_SEED,
    AXIS_SEQ,
    AXIS_BATCH,
    AXIS_ACCUM,
    AXIS_DTYPE,
    AXIS_RECOMPUTE,
    AXIS_OFFLOAD,
    AXIS_OFFLOAD_PARAM,
    AXIS_REDUCE,
    AXIS_BUCKET,
    AXIS_PREFETCH,
    AXIS_RANKS,
    AXIS_STRATEGY,
    AXIS_COUNT
};

shl_code
shl_run_options_init(shl_run_options *o)
{
    memset(o, 0, sizeof(*o));
    return shl_option_defaults(all_rows, SHL_ARRAY_LEN(all_rows), o, NULL);
}

/* What --model says, else the configuration beside the weights, else the small one. */
static const char *
model_text(const shl_run_options *o, char *beside, size_t cap)
{
    struct stat st;
    if (o->model || !o->init_from || strlen(o->init_from) + 32 > cap) {
        return o->model ? o->model : DEFAULT_MODEL;
    }
    const char *slash = strrchr(o->init_from, '/');
    bool folder = stat(o->init_from, &st) == 0 && S_ISDIR(st.st_mode);
    if (folder) {
        shl_strf(beside, cap, "%s/" SHL_HF_CONFIG_FILE, o->init_from);
    } else {
        shl_strf(beside, cap, "%.*s" SHL_HF_CONFIG_FILE,
                 slash ? (int)(slash - o->init_from) + 1 : 0, o->init_from);
    }
    return access(beside, F_OK) == 0 ? beside : DEFAULT_MODEL;
}

static shl_code
open_axes(const shl_run_options *o, shl_sweep_axis *axes)
{
    const int64_t large = INT64_C(1) << 30;
    char beside[MODEL_PATH_MAX];
    SHL_TRY(shl_sweep_names("model", model_text(o, beside, sizeof(beside)), &axes[AXIS_MODEL]));
    SHL_TRY(shl_sweep_names("strategy", o->strategy, &axes[AXIS_STRATEGY]));
    SHL_TRY(shl_sweep_names("dtype", o->dtype, &axes[AXIS_DTYPE]));
    SHL_TRY(shl_sweep_names("recompute", o->recompute, &axes[AXIS_RECOMPUTE]));
    SHL_TRY(shl_sweep_names("offload-optimizer", o->offload_optimizer, &axes[AXIS_OFFLOAD]));
    SHL_TRY(shl_sweep_names("offload-param", o->offload_param, &axes[AXIS_OFFLOAD_PARAM]));
    SHL_TRY(shl_sweep_names("reduce-every", o->reduce_every, &axes[AXIS_REDUCE]));
    SHL_TRY(shl_sweep_numbers("ranks", o->ranks, 1, INT64_C(1) << 20, &axes[AXIS_RANKS]));
    SHL_TRY(shl_sweep_numbers("batch", o->batch, 1, large, &axes[AXIS_BATCH]));
    SHL_TRY(shl_sweep_numbers("accum", o->accum, 1, large, &axes[AXIS_ACCUM]));
    SHL_TRY(shl_sweep_numbers("bucket", o->bucket, 1, INT64_C(1) << 50, &axes[AXIS_BUCKET]));
    SHL_TRY(shl_sweep_numbers("seed", o->seed, 0, INT64_C(1) << 62, &axes[AXIS_SEED]));
    SHL_TRY(o->data_seed ? shl_sweep_numbers("data-seed", o->data_seed, 0, INT64_C(1) << 62,
                                             &axes[AXIS_DATA_SEED])
                         : shl_sweep_names("data-seed", "auto", &axes[AXIS_DATA_SEED]));
    /* Unset: a single value that is resolved later, by strategy and by model. */
    SHL_TRY(o->prefetch ? shl_sweep_numbers("prefetch", o->prefetch, 0, 1024, &axes[AXIS_PREFETCH])
                        : shl_sweep_names("prefetch", "auto", &axes[AXIS_PREFETCH]));
    return o->seq ? shl_sweep_numbers("seq", o->seq, 1, large, &axes[AXIS_SEQ])
                  : shl_sweep_numbers("seq", "0", 0, 0, &axes[AXIS_SEQ]);
}

static void
add_note(shl_str *notes, const char *name, const char *what, const char *text)
{
    char line[768];
    shl_strf(line, sizeof(line), "%s: %s%s\n", name, what, text);
    /* The rows of a sweep say the same. */
    if (text[0] && !strstr(shl_str_get(notes), line)) {
        shl_str_add(notes, "%s", line);
    }
}

/* What is named, with the shape flags over it; a changed shape gets a name that says what it is. */
static shl_code
resolve_model(const shl_run_options *o, const char *name, shl_str *notes, shl_session_config *c)
{
    shl_named_model m;
    shl_shape_asked asked = {.family = o->family > 0 ? shl_choices_family[o->family] : NULL,
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
                             .tied = o->tied == 0 ? -1 : o->tied == 1,
                             .qkv_bias = o->qkv_bias == 0 ? -1 : o->qkv_bias == 1};
    SHL_TRY(shl_model_find(name, &m));
    SHL_TRY(shl_named_apply(&m, &asked));
    if (strcmp(shl_choices_device[o->device], "virtual") != 0 && !o->approximate) {
        SHL_TRY(shl_named_check_exact(&m));
    }
    add_note(notes, "model", "", m.note);
    add_note(notes, m.name, "approximated: ", m.approximated);
    c->shape = m.config;
    c->approximate = o->approximate;
    shl_strf(c->model, sizeof(c->model), "%s", m.name);
    shl_strf(c->approximated, sizeof(c->approximated), "%s", m.approximated);
    return SHL_OK;
}

static shl_code
resolve_reduce(const char *name, shl_strategy s, shl_reduce_every *out)
{
    for (int i = 0; reduce_names[i]; i++) {
        if (strcmp(name, reduce_names[i]) == 0) {
            return shl_reduce_every_resolve(s, (shl_reduce_every)i, out);
        }
    }
    SHL_RAISE(SHL_E_USAGE, "--reduce-every: unknown \"%s\"", name);
    return shl_err_because("it takes auto, micro or boundary");
}

static shl_code
resolve_betas(const char *text, shl_optim_asked *a)
{
    char first[32];
    const char *comma = strchr(text, ',');
    if (!comma || (size_t)(comma - text) >= sizeof(first)) {
        SHL_RAISE(SHL_E_USAGE, "--betas: \"%s\" is not two numbers", text);
        shl_err_because("the decay of the first and of the second moment, with a comma between");
        return shl_err_advice("--betas 0.9,0.95");
    }
    shl_strf(first, sizeof(first), "%.*s", (int)(comma - text), text);
    const double below_one = nextafter(1.0, 0.0);
    shl_code code = shl_parse_double(first, 0.0, below_one, &a->beta1);
    if (code == SHL_OK) {
        code = shl_parse_double(comma + 1, 0.0, below_one, &a->beta2);
    }
    if (code != SHL_OK) {
        SHL_RAISE(SHL_E_USAGE, "--betas: \"%s\" does not hold two numbers", text);
        shl_err_because("each must be at least 0 and below 1");
        return shl_err_advice("--betas 0.9,0.95");
    }
    return SHL_OK;
}

static shl_code
resolve_optim(const shl_run_options *o, shl_optim_config *c)
{
    shl_optim_asked asked = {.lr = o->lr,
                             .beta1 = SHL_OPTIM_UNSET,
                             .beta2 = SHL_OPTIM_UNSET,
                             .eps = o->eps,
                             .weight_decay = o->weight_decay,
                             .momentum = o->momentum,
                             .dampening = o->dampening,
                             .nesterov = o->nesterov ? 1.0 : SHL_OPTIM_UNSET,
                             .bias_correction = o->bias_correction == 1 ? 0.0 : SHL_OPTIM_UNSET,
                             .min_coeff = o->min_coeff,
                             .max_coeff = o->max_coeff};
    SHL_TRY(o->betas ? resolve_betas(o->betas, &asked) : SHL_OK);
    SHL_TRY(shl_optim_resolve((shl_optim_kind)o->optimizer, &asked, c));
    c->clip = o->clip;
    c->schedule = (shl_schedule)o->schedule;
    c->warmup_steps = o->warmup;
    c->min_lr_ratio = o->min_lr_ratio;
    c->schedule_steps = o->schedule_steps;
    if (c->schedule != SHL_SCHEDULE_CONSTANT && c->schedule_steps == 0) {
        c->schedule_steps = o->steps;
    }
    return SHL_OK;
}

static shl_code
resolve_scale(const shl_run_options *o, shl_scale_config *s)
{
    s->window = o->loss_scale_window;
    s->hysteresis = o->hysteresis;
    s->consecutive_hysteresis = o->consecutive_hysteresis;
    s->min_scale = o->min_loss_scale;
    s->scale = ldexp(1.0, (int)o->initial_scale_power);
    if (strcmp(o->loss_scale, "none") == 0) {
        s->kind = SHL_SCALE_NONE;
        return SHL_OK;
    }
    if (strcmp(o->loss_scale, "dynamic") == 0) {
        s->kind = SHL_SCALE_DYNAMIC;
        return SHL_OK;
    }
    s->kind = SHL_SCALE_STATIC;
    if (shl_parse_double(o->loss_scale, 1e-30, 1e300, &s->scale) != SHL_OK) {
        SHL_RAISE(SHL_E_USAGE, "--loss-scale: \"%s\" is no scale", o->loss_scale);
        shl_err_because("it takes none, dynamic, or a number above 0");
        return shl_err_advice("--loss-scale dynamic");
    }
    return SHL_OK;
}

static shl_code
resolve_policy(const shl_run_options *o, const char *dtype, shl_engine_config *e)
{
    SHL_TRY(shl_dtype_parse("--dtype", dtype, &e->compute_dtype));
    SHL_TRY(
        shl_dtype_parse("--master-dtype", shl_choices_dtype[o->master_dtype], &e->master_dtype));
    SHL_TRY(
        shl_dtype_parse("--reduce-dtype", shl_choices_dtype[o->reduce_dtype], &e->reduce_dtype));
    SHL_TRY(shl_dtype_parse("--grad-dtype", shl_choices_dtype[o->grad_dtype], &e->grad_dtype));
    SHL_TRY(
        shl_dtype_parse("--moment-dtype", shl_choices_dtype[o->moment_dtype], &e->moment_dtype));
    e->check_overflow = o->check_overflow;
    return resolve_scale(o, &e->scale);
}

static shl_code
take_patterns(const char *flag, const char *text, char *out)
{
    if (text && strlen(text) >= SHL_TUNE_TEXT) {
        SHL_RAISE(SHL_E_USAGE, "--%s: too long a list", flag);
        return shl_err_because("it has %zu characters, and at most %d", strlen(text),
                               SHL_TUNE_TEXT - 1);
    }
    shl_strf(out, SHL_TUNE_TEXT, "%s", text ? text : "");
    return SHL_OK;
}

/* What these values mean for a model is checked when it is built. */
static shl_code
resolve_tune(const shl_run_options *o, const char *recompute, shl_tune_config *t)
{
    SHL_TRY(shl_recompute_parse(recompute, &t->recompute));
    SHL_TRY(take_patterns("freeze", o->freeze, t->freeze));
    SHL_TRY(take_patterns("lora-targets", o->lora_targets, t->lora_targets));
    /* In a list of ways to recompute it belongs to the one that has blocks to choose from. */
    t->recompute_every =
        t->recompute == SHL_RECOMPUTE_FULL || !strchr(o->recompute, ',') ? o->recompute_every : 0;
    t->train_last = o->train_last;
    t->lora_rank = o->lora_rank;
    t->lora_alpha = o->lora_alpha;
    t->lora_base = o->lora_base;
    t->dropout = o->dropout;
    t->attention_dropout = o->attention_dropout;
    return SHL_OK;
}

static shl_code
resolve_offload(const shl_run_options *o, const char *optimizer, const char *param,
                shl_session_config *c)
{
    shl_offload_config *f = &c->engine.offload;
    bool nothing = false;
    SHL_TRY(shl_offload_parse("--offload-optimizer", optimizer, &f->optimizer));
    SHL_TRY(shl_offload_parse("--offload-param", param, &f->param));
    SHL_TRY(shl_offload_parse("--offload-activations", shl_choices_offload[o->offload_activations],
                              &f->activations));
    /* In a list of ways to recompute they belong to the one that keeps inputs. */
    if (f->activations != SHL_OFFLOAD_NONE && strchr(o->recompute, ',') &&
        c->tune.recompute != SHL_RECOMPUTE_FULL) {
        f->activations = SHL_OFFLOAD_NONE;
        nothing = !shl_offload_any(f);
    }
    /* Pinning belongs to those rows of a list that have something to pin. */
    bool list = strchr(o->offload_optimizer, ',') || strchr(o->offload_param, ',');
    nothing = nothing || (list && !shl_offload_any(f));
    f->ratio = o->offload_ratio;
    f->pin = o->pin_memory && !nothing;
    f->sub_group_elems = o->sub_group_size;
    return o->link ? shl_parse_rate(o->link, &c->link_bytes_per_s) : SHL_OK;
}

/* A GPU's ranks are processes unless they talk within one: their library wants it so. */
static bool
wants_processes(const shl_run_options *o, const shl_session_config *c)
{
    bool is_gpu = strcmp(c->device, "cuda") == 0;
    bool local = strcmp(c->comm, "local") == 0;
    if (strcmp(shl_choices_launch[o->launch], "auto") == 0) {
        return is_gpu && !local && c->ranks > 1;
    }
    return strcmp(shl_choices_launch[o->launch], "threads") != 0;
}

static void
resolve_run(const shl_run_options *o, shl_session_config *c)
{
    int by_cores = shl_host_cores() / c->ranks;
    c->threads = o->threads > 0 ? (int)o->threads : (by_cores > 1 ? by_cores : 1);
    c->device = shl_choices_device[o->device];
    c->as = shl_choices_as[o->as];
    c->comm = shl_choices_comm[o->comm];
    c->attention = shl_choices_attention[o->attention];
    c->share_gpu = o->share_gpu;
    c->tf32 = o->tf32;
    c->processes = wants_processes(o, c);
    c->device_memory_bytes = o->device_memory_bytes;
    c->host_memory_bytes = o->host_memory_bytes;
    c->pin_limit_bytes = o->pin_limit_bytes;
    c->data = o->data;
    c->in_order = o->shuffle == 1;
    c->val_split = o->val_split;
    c->val_data = o->val_data;
    c->eval_every = o->eval_every;
    c->eval_batches = o->eval_batches;
    c->steps = o->steps;
    c->ckpt_dir = o->ckpt_dir;
    c->save_every = o->save_every;
    c->resume = o->resume;
    c->init_from = o->init_from;
    c->timeline = o->timeline;
    c->timeout_ms = (int64_t)(o->timeout_s * 1000.0);
    c->stop = shl_host_stop_flag();
}

static shl_code
resolve_point(const shl_run_options *o, const shl_sweep_axis *axes, int64_t index, shl_str *notes,
              shl_session_config *c)
{
    const shl_sweep_value *at[AXIS_COUNT];
    for (size_t i = 0; i < AXIS_COUNT; i++) {
        at[i] = shl_sweep_at(axes, AXIS_COUNT, index, i);
    }
    shl_session_config_init(c);
    SHL_TRY(resolve_model(o, at[AXIS_MODEL]->text, notes, c));
    shl_engine_config *e = &c->engine;
    SHL_TRY(shl_strategy_parse(at[AXIS_STRATEGY]->text, &e->strategy));
    SHL_TRY(resolve_reduce(at[AXIS_REDUCE]->text, e->strategy, &e->reduce_every));
    SHL_TRY(resolve_optim(o, &e->optim));
    SHL_TRY(resolve_policy(o, at[AXIS_DTYPE]->text, e));
    SHL_TRY(resolve_tune(o, at[AXIS_RECOMPUTE]->text, &c->tune));
    SHL_TRY(resolve_offload(o, at[AXIS_OFFLOAD]->text, at[AXIS_OFFLOAD_PARAM]->text, c));
    c->ranks = (int)at[AXIS_RANKS]->number;
    e->bucket_elems = at[AXIS_BUCKET]->number;
    e->prefetch = shl_prefetch_resolve(e->strategy, o->prefetch ? (int)at[AXIS_PREFETCH]->number
                                                                : SHL_PREFETCH_AUTO);
    e->accum = at[AXIS_ACCUM]->number;
    e->batch = at[AXIS_BATCH]->number;
    e->seq = at[AXIS_SEQ]->number;
    if (e->seq == 0) {
        e->seq = c->shape.context < 128 ? c->shape.context : 128;
    }
    e->seed = (uint64_t)at[AXIS_SEED]->number;
    c->data_seed = o->data_seed ? (uint64_t)at[AXIS_DATA_SEED]->number : e->seed;
    resolve_run(o, c);
    SHL_TRY(shl_zero_options_parse(o->zero, &e->zero));
    if (o->ds.config) {
        e->prefetch = o->prefetch ? (int)at[AXIS_PREFETCH]->number : SHL_PREFETCH_AUTO;
        SHL_TRY(shl_ds_options_apply(&o->ds, o->data_seed == NULL, c, notes));
    }
    shl_zero_options_format(&e->zero, c->zero_text, sizeof(c->zero_text));
    return shl_session_config_check(c);
}

shl_code
shl_run_points_resolve(const shl_run_options *o, shl_run_points *out)
{
    shl_sweep_axis axes[AXIS_COUNT];
    shl_code code;
    memset(axes, 0, sizeof(axes));
    memset(out, 0, sizeof(*out));
    SHL_TRY_TO(code, done, open_axes(o, axes));
    SHL_TRY_TO(code, done, shl_sweep_points(axes, AXIS_COUNT, &out->n));
    SHL_TRY_TO(code, done, shl_heap_alloc((size_t)out->n, sizeof(*out->configs), &out->configs));
    for (int64_t i = 0; i < out->n; i++) {
        SHL_TRY_TO(code, done, resolve_point(o, axes, i, &out->notes, &out->configs[i]));
    }
    if (o->ckpt_dir && out->n > 1) {
        code =
            SHL_RAISE(SHL_E_USAGE, "a sweep of %lld rows with one --ckpt-dir", (long long)out->n);
        shl_err_because("every row would replace the checkpoint of the one before");
        shl_err_advice("one row per --ckpt-dir");
    }
done:
    for (size_t i = 0; i < AXIS_COUNT; i++) {
        shl_sweep_axis_fini(&axes[i]);
    }
    return code;
}

void
shl_run_points_fini(shl_run_points *p)
{
    shl_heap_free(&p->configs);
    shl_str_fini(&p->notes);
    p->n = 0;
}

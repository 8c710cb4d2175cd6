/* bench: gpu-bench's whole steps: models in bf16 over synthetic data, one rank, the largest micro-batch of a
 * few that the virtual device says will fit. */
#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "bench/child.h"
#include "bench/gpu_bench.h"
#include "bench/stats.h"
#include "kernels/base/types.h"

#define WARM_STEPS 3
#define STEPS 12
#define MOST_STEPS 80
#define WATCHED_S 4.0 /* of steps, so that the driver's samples are of them */

const char *const shl_gpu_bench_names[] = {"gpt2-124m", "gpt2-355m", "gpt2-774m",
                                           "gpt2-1.5b", "all",       NULL};

static void
configure(const shl_gpu_bench *b, const char *model, int64_t batch, shl_session_config *c)
{
    const shl_preset *preset = shl_preset_find(b->quick ? "gpt2-tiny" : model);
    SHL_ASSERT(preset);
    shl_session_config_init(c);
    shl_strf(c->model, sizeof(c->model), "%s", preset->name);
    c->shape = preset->config;
    if (b->quick) {
        c->shape.layers = 1;
        c->shape.width = 16;
        c->shape.heads = 2;
        c->shape.vocab = 67;
    }
    c->engine.compute_dtype = SHL_BF16;
    c->engine.batch = b->quick ? 1 : batch;
    c->engine.seq = b->quick ? 8 : 1024;
    c->engine.reduce_every = SHL_REDUCE_MICRO;
    c->device = c->as = b->device;
    c->attention = b->attention;
    c->threads = (int)b->threads;
    c->data = "synthetic";
    c->steps = b->quick ? 2 : WARM_STEPS + STEPS;
    c->stop = b->report.stop;
}

/* Peak of one step on the virtual device that stands for this one. */
static shl_code
predict(const shl_gpu_bench *b, const shl_session_config *c, size_t *peak)
{
    shl_session_config plan = *c;
    shl_session_result result = {0};
    plan.device = "virtual";
    plan.as = b->device;
    plan.steps = 1;
    SHL_TRY(shl_session_run(&plan, NULL, &result));
    *peak = result.tiers[SHL_TIER_DEVICE].peak_bytes;
    shl_session_result_fini(&result);
    return SHL_OK;
}

/* What a run may take of the card: the rest is contexts and libraries. */
static size_t
room_of(const shl_gpu_bench *b)
{
    return b->card_bytes > 0 ? b->card_bytes / 100 * 94 : SIZE_MAX;
}

static shl_code
choose_batch(const shl_gpu_bench *b, shl_session_config *c)
{
    for (c->engine.batch = b->quick ? 1 : 32; c->engine.batch >= 1; c->engine.batch /= 2) {
        size_t peak = 0;
        SHL_TRY(predict(b, c, &peak));
        if (peak <= room_of(b)) {
            return SHL_OK;
        }
    }
    SHL_RAISE(SHL_E_OOM, "%s does not fit", c->model);
    return shl_err_because("one sequence needs more than this card has");
}

/* Medians over the steps behind the warm-up. */
typedef struct pace {
    double step_ns, forward_ns, backward_ns, update_ns;
} pace;

static double
median_of(const shl_session_result *r, size_t offset)
{
    double values[MOST_STEPS];
    size_t n = 0;
    for (int64_t i = r->n_steps > WARM_STEPS ? WARM_STEPS : 0; i < r->n_steps && n < MOST_STEPS;
         i++) {
        int64_t ns;
        memcpy(&ns, (const char *)&r->steps[i] + offset, sizeof(ns));
        values[n++] = (double)ns;
    }
    return shl_stats_median(values, n);
}

static pace
pace_of(const shl_session_result *r)
{
    return (pace){median_of(r, offsetof(shl_step_report, step_ns)),
                  median_of(r, offsetof(shl_step_report, forward_ns)),
                  median_of(r, offsetof(shl_step_report, backward_ns)),
                  median_of(r, offsetof(shl_step_report, update_ns))};
}

/* ---- how busy the card is: the driver's own samples, while steps go on ---- */

typedef struct watcher {
    pthread_t thread;
    atomic_int stop;
    shl_child child;
    bool wanted, runs;
    int64_t first_step, last_step; /* begins behind the one, ends behind the other */
} watcher;

static const char *const smi[] = {"nvidia-smi",
                                  "--query-gpu=utilization.gpu",
                                  "--format=csv,noheader,nounits",
                                  "--loop-ms=200",
                                  "--id=0",
                                  NULL};

static void *
watch(void *arg)
{
    watcher *w = arg;
    if (shl_child_run(&w->child) != SHL_OK) {
        shl_err_clear();
    }
    return NULL;
}

static void
watch_end(watcher *w)
{
    if (w->runs) {
        atomic_store(&w->stop, 1);
        (void)pthread_join(w->thread, NULL);
        w->runs = false;
    }
}

/* Behind each step: neither the start of a run nor its end is in the samples. */
static shl_code
watch_step(void *ctx, const shl_step_report *report)
{
    watcher *w = ctx;
    if (w->wanted && report->step == w->first_step) {
        w->child = (shl_child){.argv = smi, .timeout_ms = 60000, .stop = &w->stop};
        w->runs = pthread_create(&w->thread, NULL, watch, w) == 0;
    } else if (report->step == w->last_step) {
        watch_end(w);
    }
    return SHL_OK;
}

/* Part of the time without a kernel: one less the median of the samples, of which the first is of the time before;
 * NaN when nothing was sampled. */
static double
idle_of(const watcher *w)
{
    double samples[256];
    size_t n = 0;
    for (const char *at = shl_str_get(&w->child.output); *at && n < SHL_ARRAY_LEN(samples);) {
        char *end = NULL;
        double percent = strtod(at, &end);
        if (end == at) {
            break;
        }
        samples[n++] = percent;
        at = end + strspn(end, "\r\n ");
    }
    return n >= 4 ? 1.0 - shl_stats_median(samples + 1, n - 1) / 100.0 : (double)NAN;
}

/* ---- models ---- */

#define BUSY 0.97

/* A few steps more, each phase waited for: what each takes by itself. */
static shl_code
time_phases(const shl_session_config *timed, pace *out)
{
    shl_session_config c = *timed;
    shl_session_result r = {0};
    c.wait_phases = true;
    c.steps = c.steps < WARM_STEPS + 3 ? c.steps : WARM_STEPS + 3;
    SHL_TRY(shl_session_run(&c, NULL, &r));
    *out = pace_of(&r);
    shl_session_result_fini(&r);
    return SHL_OK;
}

static shl_code
tell_model(shl_gpu_bench *b, const shl_session_config *c, const shl_session_result *r, double idle,
           double wanted)
{
    char what[300], name[40];
    pace p = pace_of(r), alone = {0};
    /* Nothing of them waits for the card: the time that the host needs to queue the work. */
    double queue_ms = (p.forward_ns + p.backward_ns) * 1e-6;
    SHL_TRY(time_phases(c, &alone));
    double tokens = (double)(c->engine.batch * c->engine.seq);
    double flops = shl_model_formula_step_flops(&c->shape, c->engine.batch, c->engine.seq);
    double rate = flops * 1e9 / p.step_ns;
    shl_strf(what, sizeof(what),
             "B %lld T %lld, MFU: 6 P + causal attention FLOPs / large product; %.2f ms a step, "
             "peak %.2f GiB; attention forward %s, backward %s",
             (long long)c->engine.batch, (long long)c->engine.seq, p.step_ns * 1e-6,
             (double)r->tiers[SHL_TIER_DEVICE].peak_bytes / 0x1p30, r->ran.attention_forward,
             r->ran.attention_backward);
    shl_gpu_row row = {.name = c->model,
                       .what = what,
                       .unit = "tokens/s",
                       .value = tokens * 1e9 / p.step_ns,
                       .limit = tokens * b->flops_per_s / flops,
                       .ratio = rate / b->flops_per_s,
                       .wanted = wanted};
    SHL_TRY(shl_gpu_bench_tell(
        b, &row,
        json_pack("{ss sf sf sf sf sf sf sI sI ss ss ss so}", "model", c->model, "mfu",
                  rate / b->flops_per_s, "step_ms", p.step_ns * 1e-6, "queue_ms", queue_ms,
                  "forward_ms", alone.forward_ns * 1e-6, "backward_ms", alone.backward_ns * 1e-6,
                  "update_ms", alone.update_ns * 1e-6, "peak_bytes",
                  (json_int_t)r->tiers[SHL_TIER_DEVICE].peak_bytes, "reserved_bytes",
                  (json_int_t)r->reserved_bytes, "product", r->ran.product, "attention_forward",
                  r->ran.attention_forward, "attention_backward", r->ran.attention_backward, "idle",
                  isfinite(idle) ? json_real(idle) : json_null())));
    shl_strf(what, sizeof(what),
             "each waited for: forward %.1f, backward %.1f, update %.1f; queueing forward and "
             "backward takes the host %.1f",
             alone.forward_ns * 1e-6, alone.backward_ns * 1e-6, alone.update_ns * 1e-6, queue_ms);
    shl_strf(name, sizeof(name), "%s phases", c->model);
    shl_gpu_row phases = {.name = name,
                          .what = what,
                          .unit = "ms",
                          .value = (alone.forward_ns + alone.backward_ns + alone.update_ns) * 1e-6};
    SHL_TRY(shl_gpu_bench_tell(b, &phases, NULL));
    shl_strf(name, sizeof(name), "%s busy", c->model);
    if (!isfinite(idle)) {
        return shl_gpu_bench_miss(b, name, BUSY, "nvidia-smi gave no samples of the steps");
    }
    shl_gpu_row busy = {.name = name,
                        .what = "time with a kernel running, as the driver samples it",
                        .unit = "of the time",
                        .value = 1.0 - idle,
                        .limit = 1.0,
                        .ratio = 1.0 - idle,
                        .wanted = BUSY};
    return shl_gpu_bench_tell(b, &busy, NULL);
}

static shl_code
miss_model(shl_gpu_bench *b, const char *model, double wanted)
{
    char name[40];
    shl_strf(name, sizeof(name), "%s busy", model);
    SHL_TRY(shl_gpu_bench_miss(b, model, wanted, b->absent));
    return shl_gpu_bench_miss(b, name, BUSY, b->absent ? b->absent : "it did not run");
}

/* As many as take a while at two fifths of the large product. */
static int64_t
steps_for(const shl_gpu_bench *b, const shl_session_config *c)
{
    double flops = shl_model_formula_step_flops(&c->shape, c->engine.batch, c->engine.seq);
    double steps = b->quick ? 0.0 : WATCHED_S * 0.4 * b->flops_per_s / flops;
    steps = b->card_bytes > 0 ? fmin(fmax(steps, STEPS), MOST_STEPS) : STEPS;
    return b->quick ? 2 : WARM_STEPS + (int64_t)steps;
}

static shl_code
run_model(shl_gpu_bench *b, const char *model, double wanted)
{
    shl_session_config c;
    shl_session_result r = {0};
    watcher w = {.wanted = !b->quick && b->card_bytes > 0, .first_step = WARM_STEPS};
    shl_session_sink sink = {.on_step = watch_step, .ctx = &w};
    configure(b, model, 32, &c);
    shl_code code = choose_batch(b, &c);
    w.last_step = c.steps = steps_for(b, &c);
    code = code == SHL_OK ? shl_session_run(&c, &sink, &r) : code;
    watch_end(&w);
    if (code == SHL_OK) {
        code = tell_model(b, &c, &r, idle_of(&w), wanted);
        shl_session_result_fini(&r);
    }
    shl_child_fini(&w.child);
    return code;
}

shl_code
shl_gpu_bench_models(shl_gpu_bench *b)
{
    static const struct {
        const char *model;
        double wanted;
    } models[] = {{"gpt2-124m", 0.50}, {"gpt2-355m", 0.0}, {"gpt2-774m", 0.0}, {"gpt2-1.5b", 0.60}};
    for (size_t i = 0; i < SHL_ARRAY_LEN(models); i++) {
        const char *model = models[i].model;
        bool chosen = strcmp(b->model, "all") == 0 || strcmp(b->model, model) == 0;
        if (!chosen) {
            continue;
        }
        if (b->absent) {
            SHL_TRY(miss_model(b, model, models[i].wanted));
            continue;
        }
        shl_code code = run_model(b, model, models[i].wanted);
        if (code != SHL_OK && shl_err_get()->code == code) {
            SHL_TRY(miss_model(b, model, models[i].wanted));
        }
    }
    return SHL_OK;
}

/* ---- engines at one rank ---- */

static shl_code
step_time(const shl_gpu_bench *b, shl_strategy s, double *ns)
{
    shl_session_config c;
    shl_session_result r = {0};
    configure(b, "gpt2-124m", 16, &c);
    c.engine.strategy = s;
    c.engine.prefetch = shl_prefetch_resolve(s, SHL_PREFETCH_AUTO);
    SHL_TRY(shl_session_run(&c, NULL, &r));
    *ns = pace_of(&r).step_ns;
    shl_session_result_fini(&r);
    return SHL_OK;
}

/* ddp, the other, ddp: what the machine drifts meanwhile is in both sides. */
shl_code
shl_gpu_bench_strategies(shl_gpu_bench *b)
{
    static const shl_strategy others[] = {SHL_ZERO3, SHL_FSDP};
    for (size_t i = 0; i < SHL_ARRAY_LEN(others); i++) {
        const char *name = shl_strategy_name(others[i]);
        double before = 0.0, ours = 0.0, after = 0.0;
        if (b->absent || shl_gpu_is_late(&b->report)) {
            SHL_TRY(shl_gpu_bench_miss(b, name, 0.97, b->absent ? b->absent : "not reached"));
            continue;
        }
        shl_code code = step_time(b, SHL_DDP, &before);
        code = code == SHL_OK ? step_time(b, others[i], &ours) : code;
        code = code == SHL_OK ? step_time(b, SHL_DDP, &after) : code;
        if (code != SHL_OK) {
            SHL_TRY(shl_gpu_bench_miss(b, name, 0.97, NULL));
            continue;
        }
        shl_gpu_row row = {.name = name,
                           .what = "124M, one rank, step time of ddp / its own",
                           .unit = "ms",
                           .value = ours * 1e-6,
                           .limit = (before + after) / 2.0 * 1e-6,
                           .ratio = (before + after) / 2.0 / ours,
                           .wanted = 0.97};
        SHL_TRY(shl_gpu_bench_tell(b, &row, NULL));
    }
    return SHL_OK;
}

/* ---- the largest model ---- */

#define LARGEST (1.0 / 1.02) /* ledger / reserved, at least */
#define TRIES 4              /* smaller ones, where the driver has less than it says */

/* Width and heads of GPT-2 1.5B, as many blocks as fit; doubling, then halving the step. */
static shl_code
most_layers(const shl_gpu_bench *b, shl_session_config *c)
{
    int64_t good = 0;
    size_t peak = 0;
    for (int64_t step = 256; step > 0; step /= 2) {
        c->shape.layers = good + step;
        SHL_TRY(predict(b, c, &peak));
        good = peak <= room_of(b) ? c->shape.layers : good;
    }
    c->shape.layers = good;
    return SHL_OK;
}

shl_code
shl_gpu_bench_largest(shl_gpu_bench *b)
{
    char what[96], params[32];
    shl_session_config c;
    shl_session_result r = {0};
    if (b->absent || b->card_bytes == 0) {
        return shl_gpu_bench_miss(b, "largest", LARGEST,
                                  b->absent ? b->absent : "this device is no card with an end");
    }
    configure(b, "gpt2-1.5b", 1, &c);
    c.steps = 2;
    if (b->quick) {
        c.shape.layers = 2;
    }
    shl_code code = b->quick ? SHL_OK : most_layers(b, &c);
    for (int i = 0; i < TRIES && code == SHL_OK && c.shape.layers > 0 && r.n_steps == 0; i++) {
        shl_shape_name(&c.shape, c.model, sizeof(c.model));
        code = shl_session_run(&c, NULL, &r);
        if (code == SHL_E_OOM && i + 1 < TRIES) {
            shl_err_clear();
            c.shape.layers = c.shape.layers * 97 / 100;
            code = SHL_OK;
        }
    }
    if (code != SHL_OK || r.n_steps == 0) {
        return shl_gpu_bench_miss(b, "largest", LARGEST, code == SHL_OK ? "none fits" : NULL);
    }
    double ledger = (double)r.tiers[SHL_TIER_DEVICE].peak_bytes;
    double reserved = (double)r.reserved_bytes;
    shl_format_count(r.params, params, sizeof(params));
    shl_strf(what, sizeof(what), "%s parameters, %lld blocks, B 1: ledger / reserved", params,
             (long long)c.shape.layers);
    shl_session_result_fini(&r);
    shl_gpu_row row = {.name = "largest",
                       .what = what,
                       .unit = "GiB",
                       .value = ledger / 0x1p30,
                       .limit = reserved / 0x1p30,
                       .ratio = ledger / reserved,
                       .wanted = LARGEST};
    return shl_gpu_bench_tell(b, &row, NULL);
}

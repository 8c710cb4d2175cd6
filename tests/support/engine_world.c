/* tests/support: one engine configuration over rank threads or on the virtual device. */
#include "tests/support/engine_world.h"

#include <stdio.h>
#include <string.h>

#include "engines/comm/world.h"
#include "kernels/base/half.h"
#include "kernels/base/heap.h"
#include "kernels/base/rng.h"
#include "kernels/base/str.h"

typedef struct ew_job {
    const ew_config *c;
    ew_result *r;
} ew_job;

/* What a visitor of the state sees. */
typedef struct ew_visit {
    const ew_job *job;
    shl_device *device;
} ew_visit;

void
ew_config_init(ew_config *c, shl_strategy s, int ranks)
{
    memset(c, 0, sizeof(*c));
    c->model = (shl_model_config){
        .vocab = 67, .context = 16, .layers = 3, .width = 20, .heads = 5, .tied = true};
    shl_engine_config_init(&c->engine);
    c->engine.strategy = s;
    c->engine.reduce_every = SHL_REDUCE_AUTO;
    c->engine.batch = 1;
    c->engine.seq = 16;
    c->engine.bucket_elems = 4000;
    c->engine.seed = 1234;
    c->ranks = ranks;
    c->threads = 1;
    c->steps = 3;
    c->device = "cpu";
    c->fail_rank = -1;
}

void
ew_config_llama(ew_config *c)
{
    c->model = (shl_model_config){.family = SHL_FAMILY_LLAMA,
                                  .vocab = 67,
                                  .context = 16,
                                  .layers = 3,
                                  .width = 20,
                                  .heads = 6,
                                  .kv_heads = 2,
                                  .head_dim = 6,
                                  .inner = 28,
                                  .qkv_bias = true};
}

/* Rows [row, row + n) of a step's global batch. */
static void
fill_rows(const ew_config *c, int step, int64_t row, int64_t n, int32_t *tokens, int32_t *targets)
{
    int64_t seq = c->engine.seq;
    int64_t rows = c->engine.batch * c->engine.accum * c->ranks;
    int64_t at = (step * rows + row) * seq;
    for (int64_t i = 0; i < n * seq; ++i) {
        uint64_t v = (uint64_t)c->model.vocab;
        tokens[i] = c->tokens != NULL ? c->tokens[at + i]
                                      : (int32_t)(shl_rng_u64(7, 1, (uint64_t)(at + i)) % v);
        targets[i] = c->targets != NULL ? c->targets[at + i]
                                        : (int32_t)(shl_rng_u64(7, 2, (uint64_t)(at + i)) % v);
    }
}

static shl_code
set_initial(void *ctx, const shl_shard *s)
{
    const ew_visit *visit = ctx;
    const ew_job *job = visit->job;
    shl_device *d = visit->device;
    if (strcmp(s->kind, "param") != 0) {
        return SHL_OK;
    }
    const float *whole = job->c->initial(job->c->initial_ctx, s->name);
    if (whole == NULL) {
        return SHL_RAISE(SHL_E_CONFIG, "no initial value for %s", s->name);
    }
    size_t bytes = (size_t)(s->end - s->begin) * shl_dtype_bytes(s->local.dtype);
    char *own = NULL;
    SHL_TRY(shl_heap_alloc(bytes, 1, &own));
    for (int64_t i = s->begin; i < s->end; ++i) {
        shl_float_put(s->local.dtype, own, i - s->begin, whole[i]);
    }
    shl_code code = d->caps.has_bytes ? shl_device_upload(d, s->local.data, own, bytes) : SHL_OK;
    shl_heap_free(&own);
    return code;
}

/* Ranks hold disjoint ranges (replicas the same values), so they may write side by side. */
static shl_code
keep_shard(void *ctx, const shl_shard *s)
{
    const ew_visit *visit = ctx;
    const ew_job *job = visit->job;
    shl_device *d = visit->device;
    if (s->replica != 0) {
        return SHL_OK;
    }
    for (int i = 0; i < job->r->n_tensors; ++i) {
        ew_tensor *t = &job->r->tensors[i];
        if (strcmp(t->name, s->name) == 0 && strcmp(t->kind, s->kind) == 0) {
            size_t bytes = (size_t)(s->end - s->begin) * shl_dtype_bytes(s->local.dtype);
            char *own = NULL;
            SHL_TRY(shl_heap_alloc(bytes, 1, &own));
            shl_code code = shl_device_download(d, own, s->local.data, bytes);
            for (int64_t k = s->begin; d->caps.has_bytes && k < s->end; ++k) {
                t->values[k] = shl_float_at(s->local.dtype, own, k - s->begin);
            }
            shl_heap_free(&own);
            return code;
        }
    }
    return SHL_RAISE(SHL_E_BUG, "no room for %s %s", s->kind, s->name);
}

static shl_code
run_steps(const ew_job *job, shl_engine *e, shl_comm *comm, int rank)
{
    const ew_config *c = job->c;
    int64_t n = c->engine.batch * c->engine.seq;
    int32_t *tokens = NULL, *targets = NULL;
    shl_code code;
    SHL_TRY_TO(code, out, shl_heap_alloc((size_t)n, sizeof(*tokens), &tokens));
    SHL_TRY_TO(code, out, shl_heap_alloc((size_t)n, sizeof(*targets), &targets));
    for (int step = 0; step < c->steps; ++step) {
        shl_step_report report;
        int64_t global = n * c->engine.accum * c->ranks;
        SHL_TRY_TO(code, out, shl_engine_begin_step(e, c->valid != NULL ? c->valid[step] : global));
        for (int64_t m = 0; m < c->engine.accum; ++m) {
            int64_t row = (rank * c->engine.accum + m) * c->engine.batch;
            fill_rows(c, step, row, c->engine.batch, tokens, targets);
            SHL_TRY_TO(code, out, shl_engine_forward(e, tokens, targets));
            SHL_TRY_TO(code, out, shl_engine_backward(e));
        }
        SHL_TRY_TO(code, out, shl_engine_end_step(e, &report));
        bool is_virtual = strcmp(c->device, "virtual") == 0;
        if (rank == 0 || is_virtual) {
            job->r->reports[step] = report;
        }
        for (int m = 0; m < SHL_MOVE_COUNT; ++m) {
            job->r->moved[is_virtual ? 0 : rank][m] += report.moved_bytes[m];
        }
    }
    SHL_UNUSED(comm);
out:
    shl_heap_free(&tokens);
    shl_heap_free(&targets);
    return code;
}

static shl_code
run_engine(const ew_job *job, shl_device *d, shl_comm *comm, int rank)
{
    const ew_config *c = job->c;
    int slot = strcmp(c->device, "virtual") == 0 ? 0 : rank;
    ew_visit ctx = {job, d};
    uint64_t hash = 0;
    shl_model *model = NULL;
    shl_engine *e = NULL;
    shl_mesh mesh;
    shl_code code;
    SHL_TRY_TO(code, out, shl_model_new(&c->model, &model));
    SHL_TRY_TO(code, out, shl_model_tune(model, &c->tune));
    shl_mesh_of(c->engine.strategy, comm, &mesh);
    if (c->fail_rank == rank) {
        shl_ledger_fail_at(d->ledger, c->fail_alloc);
    }
    code = shl_engine_open(&c->engine, model, d, &mesh, &e);
    SHL_TRY_TO(code, out, shl_comm_agree(comm, code, "init"));
    if (c->initial != NULL) {
        SHL_TRY_TO(code, out, shl_engine_visit_state(e, SHL_VISIT_WRITE, set_initial, &ctx));
    }
    shl_comm_stats_reset(comm);
    SHL_TRY_TO(code, out, run_steps(job, e, comm, rank));
    job->r->comm[slot] = *shl_comm_stats_get(comm);
    job->r->device[slot] = *shl_ledger_get(d->ledger, SHL_TIER_DEVICE);
    job->r->host[slot] = *shl_ledger_get(d->ledger, SHL_TIER_HOST);
    job->r->pinned_peak[slot] = d->pinned_peak_bytes;
    job->r->trace_hash[slot] = shl_ledger_trace_hash(d->ledger);
    for (int t = 0; t < SHL_TIER_COUNT; ++t) {
        job->r->reserved[slot][t] = shl_device_reserved_bytes(d, (shl_tier)t);
    }
    if (slot == 0) {
        shl_engine_info_get(e, &job->r->info);
    }
    SHL_TRY_TO(code, out, shl_engine_param_hash(e, &hash));
    if (slot == 0) {
        job->r->param_hash = hash;
    }
    if (job->r->tensors != NULL) {
        SHL_TRY_TO(code, out, shl_engine_visit_state(e, SHL_VISIT_READ, keep_shard, &ctx));
    }
out:
    shl_engine_close(&e);
    shl_model_free(&model);
    return code;
}

/* One rank; w NULL on virtual. */
static shl_code
rank_main(shl_world *w, void *arg)
{
    const ew_job *job = arg;
    const ew_config *c = job->c;
    bool is_virtual = strcmp(c->device, "virtual") == 0;
    int rank = is_virtual ? c->virtual_rank : shl_world_rank(w);
    const char *target = is_virtual && c->as != NULL ? c->as : is_virtual ? "cpu" : c->device;
    const char *between = strcmp(target, "cuda") == 0 ? "local" : "shm";
    const char *transport = c->ranks > 1 ? between : "self";
    shl_device *d = NULL;
    shl_comm *comm = NULL;
    shl_code code;
    shl_device_config dc = {.kind = c->device,
                            .stands_for = is_virtual ? target : NULL,
                            .rank = rank,
                            .threads = c->threads,
                            .limit_bytes = {c->device_memory, c->host_memory, 0},
                            .pin_limit_bytes = c->pin_limit,
                            .link_bytes_per_s = c->link_bytes_per_s,
                            .comm_arena = is_virtual ? NULL : shl_world_comm_arena(w),
                            .flops_per_s = c->flops_per_s,
                            .bytes_per_s = c->bytes_per_s};
    shl_comm_config cc = {.kind = is_virtual ? "virtual" : transport,
                          .stands_for = is_virtual ? transport : NULL,
                          .rank = rank,
                          .world = c->ranks,
                          .rank_world = w,
                          .timeout_ms = c->timeout_ms,
                          .alpha_ns = c->alpha_ns,
                          .wire_bytes_per_s = c->wire_bytes_per_s,
                          .sim_sleep = c->sim_sleep};
    SHL_TRY_TO(code, out, shl_device_open(&dc, &d));
    SHL_TRY_TO(code, out, shl_comm_open(&cc, d, &comm));
    code = run_engine(job, d, comm, rank);
    if (code != SHL_OK) {
        shl_comm_abort(comm, "test");
    }
out:
    if (!is_virtual) {
        job->r->rank_code[rank] = code;
        shl_strf(job->r->rank_what[rank], sizeof(job->r->rank_what[rank]), "%s",
                 shl_err_get()->what);
    }
    shl_comm_close(&comm);
    shl_code closed = shl_device_close(&d);
    return code != SHL_OK ? code : closed;
}

static shl_code
make_tensors(const ew_config *c, ew_result *r)
{
    static const char *const kinds[] = {"param", "opt/m", "opt/v"};
    shl_model *model = NULL;
    shl_code code;
    SHL_TRY(shl_model_new(&c->model, &model));
    SHL_TRY_TO(code, out, shl_model_tune(model, &c->tune));
    SHL_TRY_TO(code, out,
               shl_heap_alloc(3 * (size_t)model->n_params, sizeof(ew_tensor), &r->tensors));
    for (int k = 0; k < 3; ++k) {
        for (int i = 0; i < model->n_params; ++i) {
            ew_tensor *t = &r->tensors[r->n_tensors];
            shl_strf(t->name, sizeof(t->name), "%s", model->params[i]->name);
            shl_strf(t->kind, sizeof(t->kind), "%s", kinds[k]);
            t->elems = model->params[i]->elems;
            SHL_TRY_TO(code, out, shl_heap_alloc((size_t)t->elems, sizeof(float), &t->values));
            r->n_tensors++;
        }
    }
out:
    shl_model_free(&model);
    return code;
}

void
ew_run(const ew_config *config, ew_result *r)
{
    ew_config c = *config;
    ew_job job = {&c, r};
    memset(r, 0, sizeof(*r));
    r->code =
        shl_reduce_every_resolve(c.engine.strategy, c.engine.reduce_every, &c.engine.reduce_every);
    if (r->code == SHL_OK && c.keep_state) {
        r->code = make_tensors(&c, r);
    }
    if (r->code == SHL_OK && strcmp(c.device, "virtual") == 0) {
        r->code = rank_main(NULL, &job);
    } else if (r->code == SHL_OK) {
        shl_world_config wc = {
            .ranks = c.ranks, .threads_per_rank = c.threads, .timeout_ms = c.timeout_ms};
        r->code = shl_world_run_threads(&wc, rank_main, &job);
    }
    if (r->code != SHL_OK) {
        shl_strf(r->what, sizeof(r->what), "%s; %s\n%s", shl_err_get()->what,
                 shl_err_get()->because, shl_err_get()->trace);
    }
}

void
ew_result_fini(ew_result *r)
{
    for (int i = 0; i < r->n_tensors; ++i) {
        shl_heap_free(&r->tensors[i].values);
    }
    shl_heap_free(&r->tensors);
}

const char *
ew_bits_differ(const ew_result *a, const ew_result *b, int steps)
{
    static _Thread_local char text[1200];
    text[0] = '\0';
    if (a->code != SHL_OK || b->code != SHL_OK) {
        shl_strf(text, sizeof(text), "a run failed: %.500s | %.500s", a->what, b->what);
        return text;
    }
    for (int i = 0; i < steps; ++i) {
        const shl_step_report *x = &a->reports[i], *y = &b->reports[i];
        if (memcmp(&x->loss, &y->loss, sizeof(double)) != 0 ||
            memcmp(&x->grad_norm, &y->grad_norm, sizeof(double)) != 0) {
            shl_strf(text, sizeof(text), "step %d: loss %.17g | %.17g, norm %.17g | %.17g", i + 1,
                     x->loss, y->loss, x->grad_norm, y->grad_norm);
            return text;
        }
    }
    if (a->param_hash != b->param_hash) {
        shl_strf(text, sizeof(text), "losses agree, final parameters do not");
    }
    return text;
}

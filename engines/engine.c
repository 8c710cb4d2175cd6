/* engines: the step driver that every strategy shares: inputs, phases, hooks, loss, report. What a
 * strategy does differently is behind shl_engine_ops. */
#include "engines/engine.h"

#include <string.h>

#include "engines/config/zero_text.h"
#include "engines/engine_registry.h"
#include "kernels/base/heap.h"
#include "kernels/base/rng.h"

static int64_t
now(const shl_engine *e)
{
    return shl_device_now_ns(e->device, NULL);
}

void
shl_mesh_of(shl_strategy s, shl_comm *world, shl_mesh *out)
{
    *out = (shl_mesh){.world = world,
                      .shard = s == SHL_DDP ? NULL : world,
                      .replicate = s == SHL_DDP ? world : NULL};
}

static shl_code
take_inputs(shl_engine *e)
{
    size_t bytes = (size_t)(e->config.batch * e->config.seq) * sizeof(int32_t);
    SHL_TRY(
        shl_device_alloc(e->device, bytes, SHL_TIER_DEVICE, SHL_TAG_ACT, 0, "tokens", &e->tokens));
    SHL_TRY(shl_device_alloc(e->device, bytes, SHL_TIER_DEVICE, SHL_TAG_ACT, 0, "targets",
                             &e->targets));
    return shl_device_alloc(e->device, sizeof(double), SHL_TIER_DEVICE, SHL_TAG_ACT, 0, "loss",
                            &e->loss_sum);
}

/* What is not recomputed keeps more than inputs, and keeps it on the device. */
static shl_code
check_activations(const shl_engine_config *c, const shl_model *model)
{
    bool any = c->offload.activations == SHL_OFFLOAD_NONE || c->no_optimizer;
    for (int i = 0; i < model->n_modules; ++i) {
        any = any || (model->modules[i]->wrap == SHL_WRAP_BLOCK && model->modules[i]->recompute);
    }
    if (any) {
        return SHL_OK;
    }
    SHL_RAISE(SHL_E_USAGE, "activations in host memory, but no block is recomputed");
    shl_err_because("what goes there is the inputs that recomputed blocks keep");
    return shl_err_advice("--recompute full");
}

shl_code
shl_engine_open(const shl_engine_config *cfg, shl_model *model, shl_device *device,
                const shl_mesh *mesh, shl_engine **out)
{
    shl_engine *e = NULL;
    shl_code code;
    *out = NULL;
    SHL_TRY(shl_engine_config_check(cfg));
    if (cfg->seq > model->context) {
        (void)SHL_RAISE(SHL_E_USAGE, "sequence length %lld is above the model's context",
                        (long long)cfg->seq);
        (void)shl_err_because("the context is %lld positions", (long long)model->context);
        return shl_err_advice("use --seq %lld or less", (long long)model->context);
    }
    SHL_TRY(check_activations(cfg, model));
    SHL_TRY(shl_heap_alloc(1, sizeof(*e), &e));
    e->ops = shl_engine_find(cfg->strategy);
    e->config = *cfg;
    e->config.prefetch = shl_prefetch_resolve(cfg->strategy, cfg->prefetch);
    shl_scaler_init(&e->scaler, &cfg->scale);
    e->model = model;
    e->device = device;
    e->mesh = *mesh;
    shl_model_set_dtype(model, cfg->compute_dtype);
    shl_ledger_set_mark(device->ledger, SHL_MARK_INIT);
    SHL_TRY_TO(code, out, take_inputs(e));
    SHL_TRY_TO(code, out, e->ops->attach(e));
    SHL_TRY_TO(code, out, shl_device_sync(device));
    *out = e;
    return SHL_OK;
out:
    shl_engine_close(&e);
    return code;
}

void
shl_engine_close(shl_engine **engine)
{
    shl_engine *e = *engine;
    if (e == NULL) {
        return;
    }
    /* A failed step may have left work in flight; its error was reported where it happened. */
    shl_err kept = *shl_err_get();
    if (shl_device_sync(e->device) != SHL_OK || kept.code != SHL_OK) {
        (void)shl_err_put(&kept);
    }
    shl_tape_fini(&e->tape, e->device);
    e->ops->detach(e);
    shl_device_free(e->device, &e->loss_sum);
    shl_device_free(e->device, &e->targets);
    shl_device_free(e->device, &e->tokens);
    for (int i = 0; i < e->model->n_params; ++i) {
        e->model->params[i]->data = NULL;
        e->model->params[i]->grad = NULL;
        e->model->params[i]->grad_accumulate = false;
    }
    shl_heap_free(engine);
}

/* A rank that fails between agrees tells the others, so that none waits for it. */
static shl_code
give_up(shl_engine *e, shl_code code, const char *where)
{
    if (code != SHL_OK) {
        shl_comm_abort(e->mesh.world, where);
    }
    return code;
}

shl_code
shl_engine_begin_step(shl_engine *e, int64_t global_valid)
{
    if (global_valid <= 0) {
        return SHL_RAISE(SHL_E_CONFIG, "the global batch of step %lld has no target to learn from",
                         (long long)e->step);
    }
    if (e->config.no_optimizer) {
        SHL_RAISE(SHL_E_USAGE, "a training step of an engine without optimizer");
        shl_err_because("it holds no gradients and no moments: it only evaluates");
        return shl_err_advice("eval, or an optimizer");
    }
    e->micro = 0;
    e->global_valid = global_valid;
    e->dloss = e->scaler.scale / (double)global_valid;
    e->dloss *= shl_zero_grad_factor(&e->config, shl_comm_size(e->mesh.world));
    if (e->config.zero.sum_gradients) {
        e->dloss *= shl_comm_size(e->mesh.world); /* DeepSpeed's mean is over ranks */
    }
    e->step_start_ns = now(e);
    memset(&e->report, 0, sizeof(e->report));
    memcpy(e->moved_before, e->device->moved_bytes, sizeof(e->moved_before));
    return shl_device_fill(e->device, e->loss_sum.data, 0, sizeof(double), NULL);
}

static shl_code
upload_inputs(shl_engine *e, const int32_t *tokens, const int32_t *targets)
{
    if (!e->device->caps.has_bytes) {
        return SHL_OK;
    }
    SHL_TRY(shl_device_upload(e->device, e->tokens.data, tokens, e->tokens.bytes));
    return shl_device_upload(e->device, e->targets.data, targets, e->targets.bytes);
}

/* Masks of a step: of the run's seed and of the number of the step, the same on every rank. */
static uint64_t
step_seed(const shl_engine *e)
{
    return shl_rng_u64(e->config.seed, shl_rng_stream("dropout"), (uint64_t)e->step);
}

/* Rank r owns sequences [r n, (r + 1) n) of the global batch, n = batch * accum, in order. */
static int64_t
first_row(const shl_engine *e)
{
    int64_t rank = shl_comm_rank(e->mesh.world);
    return (rank * e->config.accum + e->micro) * e->config.batch;
}

static shl_code
forward(shl_engine *e, const int32_t *tokens, const int32_t *targets, shl_mark mark)
{
    int64_t rows = e->config.batch * e->config.seq;
    shl_ledger_set_mark(e->device->ledger, mark);
    SHL_TRY(e->ops->begin_micro(e, e->micro == 0, e->micro + 1 == e->config.accum));
    SHL_TRY(upload_inputs(e, tokens, targets));
    e->run = (shl_run){.device = e->device,
                       .stream = shl_device_stream(e->device, SHL_STREAM_COMPUTE),
                       .hooks = e->ops->hooks,
                       .hooks_ctx = e,
                       .tape = &e->tape,
                       .batch = e->config.batch,
                       .seq = e->config.seq,
                       .tokens = shl_tensor_1d(e->tokens.data, SHL_I32, rows),
                       .targets = shl_tensor_1d(e->targets.data, SHL_I32, rows),
                       .loss_sum = shl_tensor_1d(e->loss_sum.data, SHL_F64, 1),
                       .dloss = (float)e->dloss,
                       .want_grad = mark == SHL_MARK_FORWARD,
                       .offload = e->config.offload.activations != SHL_OFFLOAD_NONE,
                       .far_pin = e->config.offload.pin,
                       .dropout_seed = step_seed(e),
                       .first_row = first_row(e)};
    return shl_model_forward(e->model, &e->run);
}

shl_code
shl_engine_forward(shl_engine *e, const int32_t *tokens, const int32_t *targets)
{
    int64_t start = now(e);
    SHL_ASSERT(e->micro < e->config.accum);
    SHL_TRY(give_up(e, forward(e, tokens, targets, SHL_MARK_FORWARD), "forward"));
    e->report.forward_ns += now(e) - start;
    return SHL_OK;
}

static shl_code
eval(shl_engine *e, const int32_t *tokens, const int32_t *targets, double *loss_sum)
{
    SHL_TRY(shl_device_fill(e->device, e->loss_sum.data, 0, sizeof(double), NULL));
    SHL_TRY(forward(e, tokens, targets, SHL_MARK_EVAL));
    e->ops->end_eval(e);
    SHL_TRY(shl_device_sync(e->device));
    return shl_device_download(e->device, loss_sum, e->loss_sum.data, sizeof(*loss_sum));
}

shl_code
shl_engine_eval(shl_engine *e, const int32_t *tokens, const int32_t *targets, double *loss_sum)
{
    shl_mark mark = shl_ledger_get_mark(e->device->ledger);
    *loss_sum = 0.0;
    SHL_ASSERT(e->micro == 0 || e->micro == e->config.accum);
    e->micro = 0;
    SHL_TRY(give_up(e, eval(e, tokens, targets, loss_sum), "eval"));
    shl_ledger_set_mark(e->device->ledger, mark);
    return SHL_OK;
}

static shl_code
backward(shl_engine *e)
{
    shl_ledger_set_mark(e->device->ledger, SHL_MARK_BACKWARD);
    SHL_TRY(e->ops->begin_backward(e));
    SHL_TRY(shl_model_backward(e->model, &e->run));
    e->report.exposed_move_ns += e->run.exposed_move_ns; /* of forward and backward */
    return e->ops->end_micro(e);
}

shl_code
shl_engine_backward(shl_engine *e)
{
    int64_t start = now(e);
    SHL_TRY(give_up(e, backward(e), "backward"));
    e->report.backward_ns += now(e) - start;
    e->micro++;
    return SHL_OK;
}

static shl_code
end_step(shl_engine *e, double *loss)
{
    shl_ledger_set_mark(e->device->ledger, SHL_MARK_STEP);
    e->report.loss_scale = e->scaler.scale;
    SHL_TRY(e->ops->end_step(e, &e->report));
    SHL_TRY(shl_scaler_update(&e->scaler, &e->config.scale, e->report.skipped));
    SHL_TRY(shl_device_sync(e->device));
    SHL_TRY(shl_device_download(e->device, loss, e->loss_sum.data, sizeof(*loss)));
    return shl_comm_control(e->mesh.world, SHL_CONTROL_SUM_F64, loss, 1);
}

shl_code
shl_engine_end_step(shl_engine *e, shl_step_report *out)
{
    double loss = 0.0;
    int64_t start = now(e);
    int world = shl_comm_size(e->mesh.world);
    SHL_ASSERT(e->micro == e->config.accum);
    shl_code code = give_up(e, end_step(e, &loss), "step");
    SHL_TRY(shl_comm_agree(e->mesh.world, code, "step"));
    e->step++;
    e->skipped += e->report.skipped;
    e->report.step = e->step;
    e->report.skipped_steps = e->skipped;
    e->report.loss = loss / (double)e->global_valid;
    e->report.tokens = e->config.batch * e->config.seq * e->config.accum * world;
    for (int m = 0; m < SHL_MOVE_COUNT; ++m) {
        e->report.moved_bytes[m] = e->device->moved_bytes[m] - e->moved_before[m];
    }
    e->report.update_ns = now(e) - start;
    e->report.step_ns = now(e) - e->step_start_ns;
    *out = e->report;
    return SHL_OK;
}

shl_code
shl_engine_wait_comm(shl_engine *e, shl_event done)
{
    int64_t start = now(e);
    shl_code code = shl_stream_wait(shl_device_stream(e->device, SHL_STREAM_COMPUTE), done);
    e->report.exposed_comm_ns += now(e) - start;
    return code;
}

shl_code
shl_engine_wait_move(shl_engine *e, shl_event done)
{
    int64_t start = now(e);
    shl_code code = shl_stream_wait(shl_device_stream(e->device, SHL_STREAM_COMPUTE), done);
    e->report.exposed_move_ns += now(e) - start;
    return code;
}

shl_code
shl_engine_visit_state(shl_engine *e, shl_visit_mode mode, shl_state_visitor v, void *ctx)
{
    SHL_TRY(shl_device_sync(e->device));
    return e->ops->visit_state(e, mode, v, ctx);
}

void
shl_engine_get_progress(const shl_engine *e, shl_engine_progress *out)
{
    *out = (shl_engine_progress){.step = e->step, .skipped = e->skipped, .scaler = e->scaler};
}

void
shl_engine_set_progress(shl_engine *e, const shl_engine_progress *p, bool has_scaler)
{
    e->step = p->step;
    e->skipped = p->skipped;
    if (has_scaler && e->config.scale.kind == SHL_SCALE_DYNAMIC) {
        e->scaler = p->scaler;
    }
}

void
shl_engine_info_get(const shl_engine *e, shl_engine_info *out)
{
    e->ops->info(e, out);
}

shl_code
shl_engine_param_hash(shl_engine *e, uint64_t *out)
{
    uint64_t sum = 0;
    *out = 0;
    SHL_TRY(e->ops->param_hash(e, &sum));
    /* Halves apart: the control sum of signed words must not overflow. */
    int64_t halves[2] = {(int64_t)(sum & 0xffffffffu), (int64_t)(sum >> 32)};
    SHL_TRY(shl_comm_control(e->mesh.world, SHL_CONTROL_SUM_I64, halves, 2));
    *out = (uint64_t)halves[0] + ((uint64_t)halves[1] << 32);
    return SHL_OK;
}

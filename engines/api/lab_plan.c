/* engines/api: the memory of a run before it begins: everything that a handle does with its device is done
 * once on the virtual device that stands for it, and what the arenas took there is made ready on the card. */
#include "engines/api/lab.h"

/* The memory that a checkpoint or published weights pass through. */
static shl_code
stage_shard(void *ctx, const shl_shard *shard)
{
    return shl_ckpt_rehearse((shl_device *)ctx, shard);
}

/* What may come between two steps, any number of times. */
static shl_code
pause_steps(shl_engine *e)
{
    double loss = 0.0;
    SHL_TRY(shl_engine_eval(e, NULL, NULL, &loss));
    SHL_TRY(shl_engine_visit_state(e, SHL_VISIT_READ, stage_shard, e->device));
    return shl_engine_visit_state(e, SHL_VISIT_WRITE, stage_shard, e->device);
}

static shl_code
run_step(shl_engine *e)
{
    shl_step_report report;
    SHL_TRY(shl_engine_begin_step(e, 1));
    for (int64_t m = 0; m < e->config.accum; ++m) {
        SHL_TRY(shl_engine_forward(e, NULL, NULL));
        SHL_TRY(shl_engine_backward(e));
    }
    return shl_engine_end_step(e, &report);
}

/* The second step may find less room than the first, and a pause less behind steps than before them: what is
 * taken for good is taken in the first step, so any later order of these finds the room of this one. */
static shl_code
rehearse(shl_engine *e)
{
    SHL_TRY(pause_steps(e));
    for (int step = 0; step < 2 && !e->config.no_optimizer; ++step) {
        SHL_TRY(run_step(e));
    }
    return pause_steps(e);
}

static shl_code
rehearse_on(const shl_lab_setup *s, shl_device *d, shl_comm *comm)
{
    shl_model *model = NULL;
    shl_engine *e = NULL;
    shl_mesh mesh;
    shl_code code;
    SHL_TRY_TO(code, out, shl_model_new(&s->shape, &model));
    SHL_TRY_TO(code, out, shl_model_tune(model, &s->tune));
    shl_mesh_of(s->engine.strategy, comm, &mesh);
    SHL_TRY_TO(code, out, shl_engine_open(&s->engine, model, d, &mesh, &e));
    SHL_TRY_TO(code, out, rehearse(e));
out:
    shl_engine_close(&e);
    shl_model_free(&model);
    return code;
}

shl_code
shl_lab_plan_memory(const shl_lab_setup *s, const char *target, const char *comm,
                    shl_device_config *config)
{
    shl_device_config twin = {
        .kind = "virtual", .stands_for = target, .rank = s->rank, .threads = s->threads};
    shl_comm_config between = {
        .kind = "virtual", .stands_for = comm, .rank = s->rank, .world = s->ranks};
    shl_device *d = NULL;
    shl_comm *c = NULL;
    shl_code code;
    SHL_TRY(shl_device_open(&twin, &d));
    SHL_TRY_TO(code, out, shl_comm_open(&between, d, &c));
    SHL_TRY_TO(code, out, rehearse_on(s, d, c));
    config->ready_comm_bytes = shl_device_reserved_comm_bytes(d);
    config->ready_bytes = shl_device_reserved_bytes(d, SHL_TIER_DEVICE) - config->ready_comm_bytes;
    config->ready_host_bytes = shl_device_reserved_bytes(d, SHL_TIER_HOST);
out:
    shl_comm_close(&c);
    shl_code closed = shl_device_close(&d);
    return code != SHL_OK ? code : closed;
}

/* bench: what one rank of a session does: opens device, communicator, model, data and engine, runs the
 * steps, saves, tells. Ranks agree at every phase boundary, so that all of them return when one fails. */
#include <string.h>

#include "bench/session_impl.h"
#include "kernels/base/clock.h"
#include "kernels/base/heap.h"
#include "kernels/base/log.h"

static bool
has_data(const shl_session_rank *r)
{
    return strcmp(r->cfg->device, "virtual") != 0;
}

static shl_code
open_data(shl_session_rank *r)
{
    const shl_session_config *c = r->cfg;
    const shl_engine_config *e = &c->engine;
    if (!has_data(r)) {
        return SHL_OK;
    }
    size_t positions = (size_t)(e->batch * e->seq);
    SHL_TRY(shl_heap_alloc(positions, sizeof(int32_t), &r->ids));
    SHL_TRY(shl_heap_alloc(positions, sizeof(int32_t), &r->targets));
    if (c->batches) {
        return shl_session_eval_open(r);
    }
    SHL_TRY(shl_tokens_open(c->data, c->shape.vocab, e->seq, c->data_seed, &r->tokens));
    SHL_TRY(shl_tokens_hold_out(r->tokens, c->val_split));
    shl_tokens_shuffle(r->tokens, !c->in_order);
    int64_t rows = shl_session_global_rows(c), samples = shl_tokens_samples(r->tokens);
    if (rows > samples) {
        SHL_RAISE(SHL_E_USAGE, "a global batch of %lld sequences needs more data", (long long)rows);
        shl_err_because(
            "%d ranks x batch %lld x accumulation %lld, but the data has %lld sequences "
            "of %lld tokens to share",
            c->ranks, (long long)e->batch, (long long)e->accum, (long long)samples,
            (long long)e->seq);
        return shl_err_advice("a smaller --batch, --accum or --ranks, or a larger --data file");
    }
    return shl_session_eval_open(r);
}

/* Data first: the ranks meet when the handle is opened, and one that fails before is missed there. */
static shl_code
open_rank(shl_session_rank *r)
{
    shl_lab_options options;
    char rope[SHL_ROPE_TEXT_BYTES];
    SHL_TRY(open_data(r));
    SHL_TRY(shl_session_lab_options(r->cfg, r->rank, rope, &options));
    SHL_TRY((shl_code)shl_lab_initialize(&options, (shl_lab_world *)r->world, &r->lab));
    r->device = r->lab->device;
    r->comm = r->lab->comm;
    r->model = r->lab->model;
    r->engine = r->lab->engine;
    if (r->cfg->resume) {
        SHL_TRY(shl_session_resume(r));
    }
    if (r->sink && r->sink->on_open) {
        SHL_TRY(r->sink->on_open(r->sink->ctx, r->rank, r->engine));
    }
    return SHL_OK;
}

/* Fills the micro-batch: rank r owns rows [r n, (r + 1) n) of the global batch, n = batch * accum, and
 * takes them in order, so that neither world size nor accumulation changes a global batch. */
static shl_code
fill_micro(shl_session_rank *r, int64_t micro)
{
    const shl_engine_config *e = &r->cfg->engine;
    const shl_session_batches *own = r->cfg->batches;
    int64_t first = (int64_t)r->rank * e->batch * e->accum + micro * e->batch;
    for (int64_t b = 0; b < e->batch; b++) {
        int32_t *ids = r->ids + b * e->seq, *targets = r->targets + b * e->seq;
        if (own) {
            SHL_TRY(own->row(own->ctx, r->engine->step, first + b, ids, targets));
        } else {
            SHL_TRY(shl_tokens_row(r->tokens, r->data_sample + first + b, ids, targets));
        }
    }
    return SHL_OK;
}

static shl_step_report
own_report(const shl_lab_step_report *r)
{
    return (shl_step_report){
        .step = r->step,
        .loss = r->loss,
        .grad_norm = r->grad_norm,
        .clip_coef = r->clip_coef,
        .lr = r->lr,
        .tokens = r->tokens,
        .step_ns = r->step_ns,
        .forward_ns = r->forward_ns,
        .backward_ns = r->backward_ns,
        .update_ns = r->update_ns,
        .exposed_comm_ns = r->exposed_comm_ns,
        .exposed_move_ns = r->exposed_move_ns,
        .moved_bytes =
            {[SHL_MOVE_TO_HOST] = r->to_host_bytes, [SHL_MOVE_TO_DEVICE] = r->to_device_bytes},
        .loss_scale = r->loss_scale,
        .skipped = r->skipped,
        .skipped_steps = r->skipped_steps,
    };
}

/* Behind a phase: the time that it took, when phases are waited for. */
static shl_code
end_phase(shl_session_rank *r, int64_t *since_ns, int64_t *sum_ns)
{
    if (r->cfg->wait_phases) {
        SHL_TRY(shl_device_sync(r->device));
        int64_t now_ns = shl_clock_ns();
        *sum_ns += now_ns - *since_ns;
        *since_ns = now_ns;
    }
    return SHL_OK;
}

static shl_code
run_step(shl_session_rank *r, shl_step_report *report)
{
    const shl_engine_config *e = &r->cfg->engine;
    const shl_session_batches *own = r->cfg->batches;
    shl_lab_step_report told = {.struct_bytes = sizeof(told)};
    int64_t rows = shl_session_global_rows(r->cfg);
    int64_t valid = own ? own->valid(own->ctx, r->engine->step) : rows * e->seq;
    SHL_TRY((shl_code)shl_lab_begin_step(r->lab, valid));
    int64_t since_ns = shl_clock_ns(), forward_ns = 0, backward_ns = 0, update_ns = 0;
    for (int64_t micro = 0; micro < e->accum; micro++) {
        if (has_data(r)) {
            SHL_TRY(fill_micro(r, micro));
        }
        SHL_TRY((shl_code)shl_lab_forward(r->lab, r->ids, r->targets, NULL));
        SHL_TRY(end_phase(r, &since_ns, &forward_ns));
        SHL_TRY((shl_code)shl_lab_backward(r->lab));
        SHL_TRY(end_phase(r, &since_ns, &backward_ns));
        SHL_TRY((shl_code)shl_lab_step(r->lab, &told));
        SHL_TRY(end_phase(r, &since_ns, &update_ns));
    }
    *report = own_report(&told);
    if (r->cfg->wait_phases) {
        report->forward_ns = forward_ns;
        report->backward_ns = backward_ns;
        report->update_ns = update_ns;
    }
    r->data_sample += rows;
    return SHL_OK;
}

static void
add_stats(shl_comm_stats *sum, const shl_comm_stats *after, const shl_comm_stats *before)
{
    for (int k = 0; k < SHL_COLL_COUNT; k++) {
        sum->kind[k].calls += after->kind[k].calls - before->kind[k].calls;
        sum->kind[k].bytes += after->kind[k].bytes - before->kind[k].bytes;
        sum->kind[k].wire_bytes += after->kind[k].wire_bytes - before->kind[k].wire_bytes;
    }
    sum->staged_bytes += after->staged_bytes - before->staged_bytes;
}

/* One step with its agreement, counted; SHL_E_INTERRUPTED when the run is asked to stop: the step is
 * done all the same, and every rank knows. */
static shl_code
count_step(shl_session_rank *r)
{
    shl_step_report report = {0};
    shl_comm_stats before = *shl_comm_stats_get(r->comm);
    SHL_TRY(shl_session_timeline_begin(r));
    int64_t begun_ns = shl_clock_process_ns();
    SHL_TRY(run_step(r, &report));
    SHL_TRY(shl_session_timeline_end(r));
    shl_code code = SHL_OK;
    if (r->rank == 0) {
        SHL_TRY(shl_session_keep_step(r->out, &r->steps_cap, &report));
        if (r->sink && r->sink->on_step) {
            SHL_TRY(r->sink->on_step(r->sink->ctx, &report));
        }
    }
    if (r->cfg->stop && atomic_load(r->cfg->stop)) {
        code = SHL_RAISE(SHL_E_INTERRUPTED, "interrupted after step %lld", (long long)report.step);
    }
    code = shl_lab_agree_code(r->lab, code, "step");
    r->cpu_ns += shl_clock_process_ns() - begun_ns;
    add_stats(&r->out->comm, shl_comm_stats_get(r->comm), &before);
    return code;
}

/* SHL_OK, or SHL_E_INTERRUPTED after a step that every rank has finished. */
static shl_code
run_steps(shl_session_rank *r)
{
    const shl_session_config *c = r->cfg;
    r->out->first_step = r->engine->step;
    while (r->engine->step < c->steps) {
        SHL_TRY(count_step(r));
        SHL_TRY(shl_session_eval_run(r));
        bool last = r->engine->step >= c->steps;
        if (c->ckpt_dir && !last && c->save_every > 0 && r->engine->step % c->save_every == 0) {
            SHL_TRY(shl_session_save(r));
        }
    }
    return SHL_OK;
}

static shl_code
train_rank(shl_session_rank *r)
{
    shl_code code = run_steps(r);
    if (code != SHL_OK && !(code == SHL_E_INTERRUPTED && r->lab->agreed)) {
        return code;
    }
    shl_err interruption = *shl_err_get();
    bool interrupted = code == SHL_E_INTERRUPTED;
    r->lab->agreed = false;
    if (r->cfg->ckpt_dir) {
        SHL_TRY(shl_session_save(r));
    }
    SHL_TRY(shl_session_collect(r));
    if (r->sink && r->sink->on_close) {
        SHL_TRY(r->sink->on_close(r->sink->ctx, r->rank, r->engine));
    }
    SHL_TRY(shl_lab_agree_code(r->lab, SHL_OK, "exit"));
    if (interrupted) {
        r->lab->agreed = true;
        return shl_err_put(&interruption);
    }
    return SHL_OK;
}

/* Closes in reverse order of opening; a leak matters only when nothing else went wrong. */
static shl_code
close_rank(shl_session_rank *r, shl_code code)
{
    shl_err failure = *shl_err_get();
    shl_code closed = (shl_code)shl_lab_close(&r->lab);
    shl_tokens_close(&r->tokens);
    shl_tokens_close(&r->val_tokens);
    shl_heap_free(&r->ids);
    shl_heap_free(&r->targets);
    if (code != SHL_OK) {
        return failure.code == code ? shl_err_put(&failure) : code;
    }
    return closed;
}

shl_code
shl_session_rank_run(shl_session_rank *r)
{
    shl_code code = open_rank(r);
    if (code == SHL_OK) {
        code = train_rank(r);
    }
    if (code != SHL_OK && r->lab && !r->lab->agreed) {
        shl_comm_abort(r->comm, shl_mark_name(shl_ledger_get_mark(r->device->ledger)));
    }
    return close_rank(r, code);
}

/* engines/api: the training loop: which call may come when, what its arrays hold, and the loss of one
 * micro-batch. The arithmetic is the engine's. */
#include "engines/api/lab.h"

static bool
has_data(const shl_lab *lab)
{
    return lab->device->caps.has_bytes;
}

/* An engine that failed is in no state to go on. */
static int
leave_engine(shl_lab *lab, shl_code code)
{
    lab->broken = lab->broken || code != SHL_OK;
    return shl_lab_leave(lab, code);
}

static shl_code
raise_token(const shl_lab *lab, const char *what, int64_t at, int64_t value)
{
    SHL_RAISE(SHL_E_USAGE, "%s %lld of sequence %lld is %lld", what,
              (long long)(at % lab->setup.engine.seq), (long long)(at / lab->setup.engine.seq),
              (long long)value);
    return shl_err_because("the vocabulary of %s has %lld tokens", lab->setup.model,
                           (long long)lab->model->vocab);
}

/* Both arrays, and how many targets count. */
static shl_code
check_batch(const shl_lab *lab, const int32_t *tokens, const int32_t *targets, int64_t *valid)
{
    int64_t n = lab->setup.engine.batch * lab->setup.engine.seq;
    *valid = 0;
    if (!has_data(lab)) {
        return SHL_OK;
    }
    if (!tokens || !targets) {
        return SHL_RAISE(SHL_E_USAGE, "the %s are NULL", tokens ? "targets" : "tokens");
    }
    for (int64_t i = 0; i < n; i++) {
        if (tokens[i] < 0 || tokens[i] >= lab->model->vocab) {
            return raise_token(lab, "token", i, tokens[i]);
        }
        if (targets[i] == SHL_IGNORE_INDEX) {
            continue;
        }
        if (targets[i] < 0 || targets[i] >= lab->model->vocab) {
            return raise_token(lab, "target", i, targets[i]);
        }
        ++*valid;
    }
    return SHL_OK;
}

static int64_t
global_targets(const shl_lab *lab)
{
    const shl_engine_config *e = &lab->setup.engine;
    return e->batch * e->seq * e->accum * lab->setup.ranks;
}

static shl_code
check_trains(const shl_lab *lab, const char *call)
{
    if (!lab->setup.engine.no_optimizer) {
        return SHL_OK;
    }
    SHL_RAISE(SHL_E_USAGE, "%s of a handle without optimizer", call);
    shl_err_because("it holds no gradients and no moments: it only evaluates");
    return shl_err_advice("shl_lab_eval, or a handle with \"optimizer\": \"adamw\"");
}

static shl_code
begin_step(shl_lab *lab, int64_t global_valid)
{
    SHL_TRY(shl_lab_check_between(lab, "shl_lab_begin_step"));
    SHL_TRY(check_trains(lab, "shl_lab_begin_step"));
    if (global_valid < 1) {
        return SHL_RAISE(SHL_E_CONFIG, "the global batch of step %lld has no target to learn from",
                         (long long)lab->engine->step);
    }
    if (global_valid > global_targets(lab)) {
        SHL_RAISE(SHL_E_CONFIG, "%lld targets count in step %lld", (long long)global_valid,
                  (long long)lab->engine->step);
        return shl_err_because("a global batch has from 1 to %lld", (long long)global_targets(lab));
    }
    return SHL_OK;
}

int
shl_lab_begin_step(shl_lab *lab, int64_t global_valid)
{
    shl_code code = begin_step(lab, global_valid);
    if (code != SHL_OK) {
        return shl_lab_leave(lab, code);
    }
    code = shl_engine_begin_step(lab->engine, global_valid);
    lab->stage = SHL_LAB_WANTS_FORWARD;
    lab->may_ignore = true;
    return leave_engine(lab, code);
}

static shl_code
check_forward(const shl_lab *lab, const int32_t *tokens, const int32_t *targets, int64_t *valid)
{
    int64_t all = lab ? lab->setup.engine.batch * lab->setup.engine.seq : 0;
    SHL_TRY(shl_lab_check(lab, "shl_lab_forward"));
    SHL_TRY(check_trains(lab, "shl_lab_forward"));
    if (lab->stage == SHL_LAB_WANTS_BACKWARD || lab->stage == SHL_LAB_WANTS_STEP) {
        bool backward = lab->stage == SHL_LAB_WANTS_BACKWARD;
        SHL_RAISE(SHL_E_USAGE, "shl_lab_forward out of turn");
        return shl_err_because("%s comes next", backward ? "shl_lab_backward" : "shl_lab_step");
    }
    SHL_TRY(check_batch(lab, tokens, targets, valid));
    bool announced = lab->stage == SHL_LAB_WANTS_FORWARD && lab->may_ignore;
    if (has_data(lab) && *valid < all && !announced) {
        SHL_RAISE(SHL_E_USAGE, "%lld of %lld targets do not count", (long long)(all - *valid),
                  (long long)all);
        shl_err_because("the loss is divided by the number of targets of the whole global batch, "
                        "and nobody told it");
        return shl_err_advice("shl_lab_begin_step before the first forward of the step");
    }
    return SHL_OK;
}

static shl_code
forward(shl_lab *lab, const int32_t *tokens, const int32_t *targets, int64_t valid, double *loss)
{
    shl_engine *e = lab->engine;
    double before = 0.0, after = 0.0;
    if (lab->stage == SHL_LAB_BETWEEN_STEPS) {
        SHL_TRY(shl_engine_begin_step(e, global_targets(lab)));
        lab->may_ignore = false;
    }
    /* The engine adds up the losses of a step; only a caller who asks pays for reading the sum. */
    if (loss) {
        SHL_TRY(shl_device_download(lab->device, &before, e->loss_sum.data, sizeof(before)));
    }
    SHL_TRY(shl_engine_forward(e, tokens, targets));
    if (loss) {
        SHL_TRY(shl_device_download(lab->device, &after, e->loss_sum.data, sizeof(after)));
        *loss = valid > 0 ? (after - before) / (double)valid : 0.0;
    }
    lab->stage = SHL_LAB_WANTS_BACKWARD;
    return SHL_OK;
}

int
shl_lab_forward(shl_lab *lab, const int32_t *tokens, const int32_t *targets, double *loss)
{
    int64_t valid = 0;
    if (loss) {
        *loss = 0.0;
    }
    shl_code code = check_forward(lab, tokens, targets, &valid);
    if (code != SHL_OK) {
        return shl_lab_leave(lab, code);
    }
    return leave_engine(lab, forward(lab, tokens, targets, valid, loss));
}

int
shl_lab_backward(shl_lab *lab)
{
    shl_code code = shl_lab_check(lab, "shl_lab_backward");
    if (code == SHL_OK && lab->stage != SHL_LAB_WANTS_BACKWARD) {
        code = SHL_RAISE(SHL_E_USAGE, "shl_lab_backward without its forward");
    }
    if (code != SHL_OK) {
        return shl_lab_leave(lab, code);
    }
    code = shl_engine_backward(lab->engine);
    lab->stage =
        lab->engine->micro < lab->setup.engine.accum ? SHL_LAB_WANTS_FORWARD : SHL_LAB_WANTS_STEP;
    return leave_engine(lab, code);
}

static shl_code
check_step(const shl_lab *lab, shl_lab_step_report *report)
{
    SHL_TRY(shl_lab_check(lab, "shl_lab_step"));
    bool started = lab->stage != SHL_LAB_BETWEEN_STEPS && lab->engine->micro > 0;
    if (!started || lab->stage == SHL_LAB_WANTS_BACKWARD) {
        return SHL_RAISE(SHL_E_USAGE, "shl_lab_step without a backward before it");
    }
    if (report) {
        /* Before the update: a step that cannot be told would be done all the same. */
        shl_lab_step_report empty = {0};
        SHL_TRY(shl_lab_give_sized(&empty, sizeof(empty), "shl_lab_step_report", report));
    }
    return SHL_OK;
}

int
shl_lab_step(shl_lab *lab, shl_lab_step_report *report)
{
    shl_step_report r = {0};
    shl_code code = check_step(lab, report);
    if (code != SHL_OK) {
        return shl_lab_leave(lab, code);
    }
    if (lab->stage == SHL_LAB_WANTS_FORWARD) {
        return SHL_LAB_OK;
    }
    code = shl_engine_end_step(lab->engine, &r);
    lab->stage = SHL_LAB_BETWEEN_STEPS;
    if (code == SHL_OK && report) {
        shl_lab_step_report ours = {
            .updated = true,
            .step = r.step,
            .loss = r.loss,
            .grad_norm = r.grad_norm,
            .clip_coef = r.clip_coef,
            .lr = r.lr,
            .tokens = r.tokens,
            .step_ns = r.step_ns,
            .forward_ns = r.forward_ns,
            .backward_ns = r.backward_ns,
            .update_ns = r.update_ns,
            .exposed_comm_ns = r.exposed_comm_ns,
            .to_host_bytes = r.moved_bytes[SHL_MOVE_TO_HOST],
            .to_device_bytes = r.moved_bytes[SHL_MOVE_TO_DEVICE],
            .exposed_move_ns = r.exposed_move_ns,
            .loss_scale = r.loss_scale,
            .skipped = r.skipped,
            .skipped_steps = r.skipped_steps,
        };
        code = shl_lab_give_sized(&ours, sizeof(ours), "shl_lab_step_report", report);
    }
    return leave_engine(lab, code);
}

static shl_code
check_eval(const shl_lab *lab, const int32_t *tokens, const int32_t *targets, const double *loss,
           int64_t *valid)
{
    SHL_TRY(shl_lab_check_between(lab, "shl_lab_eval"));
    if (!loss) {
        return SHL_RAISE(SHL_E_USAGE, "shl_lab_eval: loss is NULL");
    }
    return check_batch(lab, tokens, targets, valid);
}

shl_code
shl_lab_eval_sum(shl_lab *lab, const int32_t *tokens, const int32_t *targets, double *loss_sum)
{
    int64_t valid = 0;
    *loss_sum = 0.0;
    SHL_TRY(check_eval(lab, tokens, targets, loss_sum, &valid));
    lab->agreed = false;
    return shl_engine_eval(lab->engine, tokens, targets, loss_sum);
}

int
shl_lab_eval(shl_lab *lab, const int32_t *tokens, const int32_t *targets, double *loss)
{
    int64_t valid = 0;
    double sums[2] = {0.0, 0.0};
    if (loss) {
        *loss = 0.0;
    }
    shl_code code = check_eval(lab, tokens, targets, loss, &valid);
    if (code != SHL_OK) {
        return shl_lab_leave(lab, code);
    }
    code = shl_engine_eval(lab->engine, tokens, targets, &sums[0]);
    if (code == SHL_OK) {
        sums[1] = (double)valid;
        code = shl_comm_control(lab->comm, SHL_CONTROL_SUM_F64, sums, 2);
    }
    if (code == SHL_OK && sums[1] > 0.0) {
        *loss = sums[0] / sums[1];
    }
    lab->agreed = false;
    return shl_lab_leave_collective(lab, code, "eval");
}

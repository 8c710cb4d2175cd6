/* models: running modules between their hooks, and the steps that every leaf shares.
 * Who releases what after a failure is decided here once, so that modules need not. */
#include "models/module.h"

#include "kernels/base/heap.h"
#include "models/mod.h"

typedef shl_code (*hook_fn)(void *ctx, shl_module *m, shl_run *run);

static shl_code
call_hook(hook_fn hook, shl_module *m, shl_run *run)
{
    return hook != NULL ? hook(run->hooks_ctx, m, run) : SHL_OK;
}

static shl_code
forward_between_hooks(shl_module *m, shl_run *run, shl_buf *x_buf, const shl_tensor *x,
                      shl_buf *y_buf, shl_tensor *y)
{
    const shl_hooks *h = run->hooks;
    if (h != NULL) {
        SHL_TRY(call_hook(h->before_forward, m, run));
    }
    SHL_TRY(m->ops->forward(m, run, x_buf, x, y_buf, y));
    SHL_ASSERT(x_buf->data == NULL);
    if (h != NULL) {
        SHL_TRY(call_hook(h->after_forward, m, run));
    }
    return SHL_OK;
}

shl_code
shl_module_forward(shl_module *m, shl_run *run, shl_buf *x_buf, const shl_tensor *x, shl_buf *y_buf,
                   shl_tensor *y)
{
    shl_code code = forward_between_hooks(m, run, x_buf, x, y_buf, y);
    if (code != SHL_OK) {
        shl_device_free(run->device, x_buf);
        shl_device_free(run->device, y_buf);
    }
    return code;
}

static shl_code
backward_between_hooks(shl_module *m, shl_run *run, shl_buf *dy_buf, const shl_tensor *dy,
                       shl_buf *dx_buf, shl_tensor *dx)
{
    const shl_hooks *h = run->hooks;
    if (h != NULL) {
        SHL_TRY(call_hook(h->before_backward, m, run));
    }
    SHL_TRY(m->ops->backward(m, run, dy_buf, dy, dx_buf, dx));
    SHL_ASSERT(dy_buf->data == NULL);
    if (h == NULL) {
        return SHL_OK;
    }
    for (int i = m->n_params - 1; i >= 0 && h->grad_ready != NULL; i--) {
        SHL_TRY(h->grad_ready(run->hooks_ctx, m, m->params[i], run));
    }
    return call_hook(h->after_backward, m, run);
}

shl_code
shl_module_backward(shl_module *m, shl_run *run, shl_buf *dy_buf, const shl_tensor *dy,
                    shl_buf *dx_buf, shl_tensor *dx)
{
    shl_code code = backward_between_hooks(m, run, dy_buf, dy, dx_buf, dx);
    if (code != SHL_OK) {
        shl_device_free(run->device, dy_buf);
        shl_device_free(run->device, dx_buf);
    }
    return code;
}

static shl_code
check_run(const shl_model *m, const shl_run *run)
{
    int64_t rows = 0;
    if (run->batch < 1 || run->seq < 1 || !shl_mul_elems(run->batch, run->seq, &rows)) {
        return SHL_RAISE(SHL_E_USAGE, "a micro-batch of %lld x %lld tokens cannot be run",
                         (long long)run->batch, (long long)run->seq);
    }
    if (run->seq > m->context) {
        SHL_RAISE(SHL_E_USAGE, "the sequences are longer than the model's context");
        shl_err_because("%lld tokens against %lld positions", (long long)run->seq,
                        (long long)m->context);
        return shl_err_advice("--seq %lld, or a model with a longer context",
                              (long long)m->context);
    }
    if (run->want_grad && (run->targets.data == NULL || run->logits_out != NULL)) {
        return SHL_RAISE(SHL_E_BUG, "gradients need targets, and the logits stay with the model");
    }
    if (shl_tensor_elems(&run->tokens) != rows ||
        (run->targets.data != NULL && shl_tensor_elems(&run->targets) != rows)) {
        return SHL_RAISE(SHL_E_BUG, "tokens or targets do not have %lld elements", (long long)rows);
    }
    return SHL_OK;
}

shl_code
shl_model_forward(shl_model *m, shl_run *run)
{
    if (run->logits_out != NULL) {
        *run->logits_out = (shl_buf){0};
    }
    SHL_TRY(check_run(m, run));
    run->phase = SHL_PHASE_FORWARD;
    run->save = run->want_grad;
    run->tape_only = false;
    shl_buf x_buf = {0}, y_buf = {0};
    shl_tensor x = {0}, y = {0};
    shl_code code = shl_module_forward(m->root, run, &x_buf, &x, &y_buf, &y);
    if (code != SHL_OK && run->logits_out != NULL) {
        shl_device_free(run->device, run->logits_out);
    }
    return code;
}

shl_code
shl_model_backward(shl_model *m, shl_run *run)
{
    run->phase = SHL_PHASE_BACKWARD;
    run->tape_only = false;
    shl_buf dy_buf = {0}, dx_buf = {0};
    shl_tensor dy = {0}, dx = {0};
    return shl_module_backward(m->root, run, &dy_buf, &dy, &dx_buf, &dx);
}

/* ---- steps of a leaf ---- */

shl_code
shl_act_alloc(shl_module *m, shl_run *run, shl_dtype dtype, int64_t rows, int64_t cols,
              shl_buf *buf, shl_tensor *t)
{
    int64_t elems = 0, bytes = 0;
    if (!shl_mul_elems(rows, cols, &elems) ||
        !shl_mul_elems(elems, (int64_t)shl_dtype_bytes(dtype), &bytes)) {
        return SHL_RAISE(SHL_E_USAGE, "%s: an activation of %lld x %lld elements is too large",
                         m->path, (long long)rows, (long long)cols);
    }
    SHL_TRY(shl_device_alloc(run->device, (size_t)bytes, SHL_TIER_DEVICE, SHL_TAG_ACT, 0, m->path,
                             buf));
    *t = shl_tensor_2d(buf->data, dtype, rows, cols);
    return SHL_OK;
}

shl_code
shl_leaf_enter(shl_module *m, shl_run *run, shl_buf *x_buf, const shl_tensor *x,
               shl_tape_entry **out)
{
    SHL_TRY(shl_tape_push(run->tape, m, out));
    (*out)->bufs[0] = shl_buf_move(x_buf);
    (*out)->saved[0] = *x;
    return SHL_OK;
}

void
shl_leaf_leave(shl_run *run)
{
    if (!run->save) {
        shl_tape_pop(run->tape, run->device);
    }
}

bool
shl_drops(const shl_module *m, const shl_run *run)
{
    return m->dropout > 0.0 && run->want_grad;
}

shl_code
shl_drop(const shl_module *m, shl_run *run, int place, const shl_tensor *x, const shl_tensor *y)
{
    shl_dropout_args args = {.x = *x,
                             .y = *y,
                             .p = m->dropout,
                             .seed = run->dropout_seed,
                             .stream = m->dropout_stream + (uint64_t)place,
                             .first = run->first_row * run->seq * x->dims[1]};
    return shl_op_dropout(run->stream, &args);
}

static shl_tensor
view_of(const shl_param *p, void *data, shl_dtype dtype)
{
    shl_tensor t = {.data = data, .dtype = dtype, .n_dims = p->n_dims};
    for (int i = 0; i < SHL_MAX_DIMS; i++) {
        t.dims[i] = p->dims[i];
    }
    return t;
}

shl_tensor
shl_param_view(const shl_param *p)
{
    return view_of(p, p->data, p->dtype);
}

shl_tensor
shl_param_grad_view(const shl_param *p)
{
    return view_of(p, p->trainable ? p->grad : NULL, p->grad_dtype);
}

shl_code
shl_param_pair_mode(shl_run *run, const shl_param *w, const shl_param *b, bool *accumulate)
{
    shl_tensor dw = shl_param_grad_view(w);
    shl_tensor db = b != NULL ? shl_param_grad_view(b) : (shl_tensor){0};
    *accumulate = dw.data != NULL ? w->grad_accumulate : b != NULL && b->grad_accumulate;
    if (dw.data == NULL || db.data == NULL || w->grad_accumulate == b->grad_accumulate) {
        return SHL_OK;
    }
    *accumulate = true;
    return shl_op_zero(run->stream, w->grad_accumulate ? &db : &dw);
}

void
shl_param_wrote(shl_param *p)
{
    if (p->trainable && p->grad != NULL) {
        p->grad_accumulate = true;
    }
}

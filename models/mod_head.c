/* models: the head, logits[R,V] = x[R,C] W^T with W[V,C] (often the token embedding), and the
 * cross-entropy that turns them into their own gradient in place, already in forward.
 * Rows of the logits lie as far apart as the device likes (shl_device_row_stride).
 * Tape: place 0 is x [R,C] (unless W is frozen), place 1 dlogits [R,V]. */
#include "models/mod.h"

typedef struct head_impl {
    int64_t width, vocab;
} head_impl;

/* Elements between rows of the logits. */
static int64_t
stride_of(const shl_run *run, const shl_tensor *logits)
{
    return shl_device_row_stride(run->device, logits->dtype, logits->dims[1]);
}

static shl_code
head_loss(shl_run *run, const shl_tensor *logits /* [R,V] */)
{
    shl_cross_entropy_args args = {.logits = *logits,
                                   .targets = run->targets, /* [R] */
                                   .loss_sum = run->loss_sum,
                                   .stride = stride_of(run, logits),
                                   .dloss = run->dloss,
                                   .want_grad = run->want_grad};
    return shl_op_cross_entropy(run->stream, &args);
}

static shl_code
head_forward(shl_module *m, shl_run *run, shl_buf *x_buf, const shl_tensor *x, /* [R,C] */
             shl_buf *y_buf, shl_tensor *y)
{
    SHL_UNUSED(y_buf);
    SHL_UNUSED(y);
    const head_impl *impl = m->impl;
    shl_tape_entry *e = NULL;
    SHL_TRY(shl_leaf_enter(m, run, x_buf, x, &e));
    int64_t stride = shl_device_row_stride(run->device, x->dtype, impl->vocab);
    SHL_TRY(shl_act_alloc(m, run, x->dtype, x->dims[0], stride, &e->bufs[1], &e->saved[1]));
    e->saved[1].dims[1] = impl->vocab;
    shl_linear_args args = {.x = *x,
                            .w = shl_param_view(m->params[0]),
                            .y = e->saved[1],
                            .order = SHL_WEIGHT_OI,
                            .stride = stride};
    SHL_TRY(shl_op_linear_forward(run->stream, &args));
    if (run->logits_out != NULL) {
        *run->logits_out = shl_buf_move(&e->bufs[1]);
    } else if (run->targets.data != NULL) {
        SHL_TRY(head_loss(run, &e->saved[1]));
    }
    if (!m->params[0]->trainable) {
        shl_device_free(run->device, &e->bufs[0]);
    }
    shl_leaf_leave(run);
    return SHL_OK;
}

/* dloss is in dlogits already; dy is empty. */
static shl_code
head_backward(shl_module *m, shl_run *run, shl_buf *dy_buf, const shl_tensor *dy, shl_buf *dx_buf,
              shl_tensor *dx) /* [R,C] */
{
    SHL_ASSERT(dx_buf->data == NULL);
    SHL_UNUSED(dy_buf);
    SHL_UNUSED(dy);
    const head_impl *impl = m->impl;
    shl_param *w = m->params[0];
    shl_tape_entry *e = NULL;
    SHL_TRY(shl_tape_top(run->tape, m, &e));
    shl_linear_args args = {.x = e->saved[0],
                            .w = shl_param_view(w), /* [V,C] */
                            .dy = e->saved[1],      /* [R,V] */
                            .dw = shl_param_grad_view(w),
                            .order = SHL_WEIGHT_OI,
                            .stride = stride_of(run, &e->saved[1]),
                            .accumulate = w->grad_accumulate};
    if (args.dw.data != NULL) {
        SHL_TRY(shl_op_linear_backward_weight(run->stream, &args));
        shl_param_wrote(w);
    }
    shl_device_free(run->device, &e->bufs[0]);
    SHL_TRY(shl_act_alloc(m, run, args.dy.dtype, args.dy.dims[0], impl->width, dx_buf, dx));
    args.x = (shl_tensor){0};
    args.dx = *dx;
    SHL_TRY(shl_op_linear_backward_input(run->stream, &args));
    shl_tape_pop(run->tape, run->device);
    return SHL_OK;
}

static size_t
head_saved_bytes(const shl_module *m, int64_t batch, int64_t seq)
{
    const head_impl *impl = m->impl;
    int64_t per_row = impl->vocab + (m->params[0]->trainable ? impl->width : 0);
    return (size_t)(batch * seq * per_row) * shl_dtype_bytes(m->dtype);
}

static const shl_module_ops head_ops = {
    .kind = "head",
    .forward = head_forward,
    .backward = head_backward,
    .saved_bytes = head_saved_bytes,
};

shl_code
shl_mod_head(shl_model *model, shl_module *parent, const char *path, int64_t width, double std,
             shl_param *tied)
{
    shl_module *m = NULL;
    SHL_TRY(shl_build_module(model, parent, &head_ops, path, SHL_WRAP_NONE, sizeof(head_impl), &m));
    *(head_impl *)m->impl = (head_impl){width, model->vocab};
    if (tied != NULL) {
        return shl_build_use(m, tied);
    }
    shl_param_spec w = {.rows = model->vocab, .cols = width, .std = std};
    return shl_build_param(model, m, "lm_head", "weight", &w);
}

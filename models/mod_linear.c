/* models: the linear layer, y[R,O] = x[R,I] W[I,O] + b[O], Hugging Face's Conv1D.
 * Tape: place 0 is x [R,I], unless the module before owns it. */
#include "models/mod.h"

typedef struct linear_impl {
    int64_t in, out;
    bool owns_input;
} linear_impl;

static shl_code
linear_forward(shl_module *m, shl_run *run, shl_buf *x_buf, const shl_tensor *x, /* [R,I] */
               shl_buf *y_buf, shl_tensor *y)                                    /* [R,O] */
{
    const linear_impl *impl = m->impl;
    shl_tape_entry *e = NULL;
    SHL_TRY(shl_leaf_enter(m, run, x_buf, x, &e));
    SHL_TRY(shl_act_alloc(m, run, x->dtype, x->dims[0], impl->out, y_buf, y));
    shl_linear_args args = {.x = *x,
                            .w = shl_param_view(m->params[0]),
                            .b = shl_param_view(m->params[1]),
                            .y = *y,
                            .order = SHL_WEIGHT_IO};
    SHL_TRY(shl_op_linear_forward(run->stream, &args));
    shl_leaf_leave(run);
    return SHL_OK;
}

static shl_code
linear_backward(shl_module *m, shl_run *run, shl_buf *dy_buf, const shl_tensor *dy, /* [R,O] */
                shl_buf *dx_buf, shl_tensor *dx)                                    /* [R,I] */
{
    const linear_impl *impl = m->impl;
    shl_param *w = m->params[0], *b = m->params[1];
    shl_tape_entry *e = NULL;
    SHL_TRY(shl_tape_top(run->tape, m, &e));
    shl_linear_args args = {.x = e->saved[0], /* [R,I] */
                            .w = shl_param_view(w),
                            .dy = *dy,
                            .dw = shl_param_grad_view(w),
                            .db = shl_param_grad_view(b),
                            .order = SHL_WEIGHT_IO,
                            .accumulate_dx = dx_buf->data != NULL};
    if (args.dw.data != NULL || args.db.data != NULL) {
        SHL_TRY(shl_param_pair_mode(run, w, b, &args.accumulate));
        SHL_TRY(shl_op_linear_backward_weight(run->stream, &args));
        shl_param_wrote(w);
        shl_param_wrote(b);
    }
    /* x goes before dx comes: dx takes its room. */
    shl_tape_pop(run->tape, run->device);
    if (!args.accumulate_dx) {
        SHL_TRY(shl_act_alloc(m, run, dy->dtype, dy->dims[0], impl->in, dx_buf, dx));
    }
    args.x = (shl_tensor){0};
    args.dx = *dx;
    SHL_TRY(shl_op_linear_backward_input(run->stream, &args));
    shl_device_free(run->device, dy_buf);
    return SHL_OK;
}

static size_t
linear_saved_bytes(const shl_module *m, int64_t batch, int64_t seq)
{
    const linear_impl *impl = m->impl;
    size_t x_bytes = (size_t)(batch * seq * impl->in) * shl_dtype_bytes(m->dtype);
    return impl->owns_input ? x_bytes : 0;
}

static const shl_module_ops linear_ops = {
    .kind = "linear",
    .forward = linear_forward,
    .backward = linear_backward,
    .saved_bytes = linear_saved_bytes,
};

shl_code
shl_mod_linear(shl_model *model, shl_module *parent, const char *path, const shl_linear_spec *spec)
{
    shl_module *m = NULL;
    SHL_TRY(
        shl_build_module(model, parent, &linear_ops, path, SHL_WRAP_NONE, sizeof(linear_impl), &m));
    *(linear_impl *)m->impl = (linear_impl){spec->in, spec->out, spec->owns_input};
    shl_param_spec w = {.rows = spec->in, .cols = spec->out, .std = spec->std};
    shl_param_spec b = {.rows = spec->out};
    SHL_TRY(shl_build_param(model, m, path, "weight", &w));
    return shl_build_param(model, m, path, "bias", &b);
}

/* models: GELU, tanh form (Hendrycks & Gimpel 2016). Its output is kept by the layer behind it: a
 * second pass in backward would save 4C of 16C floats per token and layer, but needs recomputation
 * to be a module's affair. Tape: place 0 is x [R,I]. */
#include "models/mod.h"

typedef struct gelu_impl {
    int64_t width;
} gelu_impl;

static shl_code
gelu_forward(shl_module *m, shl_run *run, shl_buf *x_buf, const shl_tensor *x, /* [R,I] */
             shl_buf *y_buf, shl_tensor *y)                                    /* [R,I] */
{
    shl_tape_entry *e = NULL;
    SHL_TRY(shl_leaf_enter(m, run, x_buf, x, &e));
    SHL_TRY(shl_act_alloc(m, run, x->dtype, x->dims[0], x->dims[1], y_buf, y));
    shl_gelu_args args = {.x = *x, .y = *y};
    SHL_TRY(shl_op_gelu_forward(run->stream, &args));
    shl_leaf_leave(run);
    return SHL_OK;
}

/* In place: dx is written over dy. */
static shl_code
gelu_backward(shl_module *m, shl_run *run, shl_buf *dy_buf, const shl_tensor *dy, /* [R,I] */
              shl_buf *dx_buf, shl_tensor *dx)                                    /* [R,I] */
{
    SHL_ASSERT(dy_buf->data != NULL && dx_buf->data == NULL);
    shl_tape_entry *e = NULL;
    SHL_TRY(shl_tape_top(run->tape, m, &e));
    shl_gelu_args args = {.x = e->saved[0], .dy = *dy, .dx = *dy};
    SHL_TRY(shl_op_gelu_backward(run->stream, &args));
    *dx_buf = shl_buf_move(dy_buf);
    *dx = *dy;
    shl_tape_pop(run->tape, run->device);
    return SHL_OK;
}

static size_t
gelu_saved_bytes(const shl_module *m, int64_t batch, int64_t seq)
{
    const gelu_impl *impl = m->impl;
    return (size_t)(batch * seq * impl->width) * shl_dtype_bytes(m->dtype);
}

static const shl_module_ops gelu_ops = {
    .kind = "gelu",
    .forward = gelu_forward,
    .backward = gelu_backward,
    .saved_bytes = gelu_saved_bytes,
};

shl_code
shl_mod_gelu(shl_model *model, shl_module *parent, const char *path, int64_t width)
{
    shl_module *m = NULL;
    SHL_TRY(shl_build_module(model, parent, &gelu_ops, path, SHL_WRAP_NONE, sizeof(gelu_impl), &m));
    *(gelu_impl *)m->impl = (gelu_impl){width};
    return SHL_OK;
}

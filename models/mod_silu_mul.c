/* models: the gate of SwiGLU (Shazeer 2020): y = silu(gate) * up of two [R,I] tensors, one behind the
 * other in one buffer. Its output is kept by the layer behind it.
 * Tape: place 0 is gate and up, [R,2I]; their gradients take their places. */
#include "models/mod.h"

typedef struct silu_mul_impl {
    int64_t width;
} silu_mul_impl;

static shl_silu_mul_args
silu_mul_args(const silu_mul_impl *impl, const shl_tensor *x)
{
    int64_t rows = x->dims[0];
    return (shl_silu_mul_args){.gate = x->data,
                               .up = shl_elem_ptr(x->data, x->dtype, rows * impl->width),
                               .rows = rows,
                               .cols = impl->width,
                               .stride = impl->width,
                               .dtype = x->dtype};
}

static shl_code
silu_mul_forward(shl_module *m, shl_run *run, shl_buf *x_buf, const shl_tensor *x, /* [R,2I] */
                 shl_buf *y_buf, shl_tensor *y)                                    /* [R,I] */
{
    const silu_mul_impl *impl = m->impl;
    shl_tape_entry *e = NULL;
    SHL_TRY(shl_leaf_enter(m, run, x_buf, x, &e));
    SHL_TRY(shl_act_alloc(m, run, x->dtype, x->dims[0], impl->width, y_buf, y));
    shl_silu_mul_args args = silu_mul_args(impl, x);
    args.y = y->data;
    SHL_TRY(shl_op_silu_mul_forward(run->stream, &args));
    shl_leaf_leave(run);
    return SHL_OK;
}

static shl_code
silu_mul_backward(shl_module *m, shl_run *run, shl_buf *dy_buf, const shl_tensor *dy, /* [R,I] */
                  shl_buf *dx_buf, shl_tensor *dx)                                    /* [R,2I] */
{
    SHL_ASSERT(dx_buf->data == NULL);
    const silu_mul_impl *impl = m->impl;
    shl_tape_entry *e = NULL;
    SHL_TRY(shl_tape_top(run->tape, m, &e));
    shl_silu_mul_args args = silu_mul_args(impl, &e->saved[0]);
    args.dy = dy->data;
    args.dgate = e->saved[0].data;
    args.dup = shl_elem_ptr(args.dgate, args.dtype, args.rows * args.cols);
    SHL_TRY(shl_op_silu_mul_backward(run->stream, &args));
    *dx_buf = shl_buf_move(&e->bufs[0]);
    *dx = e->saved[0];
    shl_tape_pop(run->tape, run->device);
    shl_device_free(run->device, dy_buf);
    return SHL_OK;
}

static size_t
silu_mul_saved_bytes(const shl_module *m, int64_t batch, int64_t seq)
{
    const silu_mul_impl *impl = m->impl;
    return (size_t)(batch * seq * 2 * impl->width) * shl_dtype_bytes(m->dtype);
}

static const shl_module_ops silu_mul_ops = {
    .kind = "silu_mul",
    .forward = silu_mul_forward,
    .backward = silu_mul_backward,
    .saved_bytes = silu_mul_saved_bytes,
};

shl_code
shl_mod_silu_mul(shl_model *model, shl_module *parent, const char *path, int64_t width)
{
    shl_module *m = NULL;
    SHL_TRY(shl_build_module(model, parent, &silu_mul_ops, path, SHL_WRAP_NONE,
                             sizeof(silu_mul_impl), &m));
    *(silu_mul_impl *)m->impl = (silu_mul_impl){width};
    return SHL_OK;
}

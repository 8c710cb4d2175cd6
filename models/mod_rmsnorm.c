/* models: root mean square normalisation (Zhang & Sennrich 2019) over C, with a weight.
 * Tape: place 0 is x [R,C], place 1 rstd, f32 [1,R]. */
#include "models/mod.h"

typedef struct rmsnorm_impl {
    int64_t width;
    float eps;
} rmsnorm_impl;

static shl_code
rmsnorm_forward(shl_module *m, shl_run *run, shl_buf *x_buf, const shl_tensor *x, /* [R,C] */
                shl_buf *y_buf, shl_tensor *y)                                    /* [R,C] */
{
    const rmsnorm_impl *impl = m->impl;
    shl_tape_entry *e = NULL;
    SHL_TRY(shl_leaf_enter(m, run, x_buf, x, &e));
    SHL_TRY(shl_act_alloc(m, run, SHL_F32, 1, x->dims[0], &e->bufs[1], &e->saved[1]));
    SHL_TRY(shl_act_alloc(m, run, x->dtype, x->dims[0], impl->width, y_buf, y));
    shl_rmsnorm_args args = {
        .x = *x, .w = shl_param_view(m->params[0]), .y = *y, .rstd = e->saved[1], .eps = impl->eps};
    SHL_TRY(shl_op_rmsnorm_forward(run->stream, &args));
    shl_leaf_leave(run);
    return SHL_OK;
}

/* dx either gets a fresh buffer or is added to the gradient of the residual stream. */
static shl_code
rmsnorm_backward(shl_module *m, shl_run *run, shl_buf *dy_buf, const shl_tensor *dy, /* [R,C] */
                 shl_buf *dx_buf, shl_tensor *dx)                                    /* [R,C] */
{
    const rmsnorm_impl *impl = m->impl;
    shl_param *w = m->params[0];
    shl_tape_entry *e = NULL;
    SHL_TRY(shl_tape_top(run->tape, m, &e));
    bool accumulate_dx = dx_buf->data != NULL;
    if (!accumulate_dx) {
        SHL_TRY(shl_act_alloc(m, run, dy->dtype, dy->dims[0], impl->width, dx_buf, dx));
    }
    shl_rmsnorm_args args = {.x = e->saved[0], /* [R,C] */
                             .w = shl_param_view(w),
                             .rstd = e->saved[1],
                             .dy = *dy,
                             .dx = *dx,
                             .dw = shl_param_grad_view(w),
                             .eps = impl->eps,
                             .accumulate = w->grad_accumulate,
                             .accumulate_dx = accumulate_dx};
    SHL_TRY(shl_op_rmsnorm_backward(run->stream, &args));
    shl_param_wrote(w);
    shl_tape_pop(run->tape, run->device);
    shl_device_free(run->device, dy_buf);
    return SHL_OK;
}

static size_t
rmsnorm_saved_bytes(const shl_module *m, int64_t batch, int64_t seq)
{
    const rmsnorm_impl *impl = m->impl;
    size_t rows = (size_t)(batch * seq);
    return rows * (size_t)impl->width * shl_dtype_bytes(m->dtype) + rows * sizeof(float);
}

static const shl_module_ops rmsnorm_ops = {
    .kind = "rmsnorm",
    .forward = rmsnorm_forward,
    .backward = rmsnorm_backward,
    .saved_bytes = rmsnorm_saved_bytes,
};

shl_code
shl_mod_rmsnorm(shl_model *model, shl_module *parent, const char *path, int64_t width, double eps)
{
    shl_module *m = NULL;
    SHL_TRY(shl_build_module(model, parent, &rmsnorm_ops, path, SHL_WRAP_NONE, sizeof(rmsnorm_impl),
                             &m));
    *(rmsnorm_impl *)m->impl = (rmsnorm_impl){width, (float)eps};
    shl_param_spec w = {.rows = width, .value = 1.0};
    return shl_build_param(model, m, path, "weight", &w);
}

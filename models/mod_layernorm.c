/* models: layer normalisation (Ba et al. 2016) over C, with weight and bias.
 * Tape: place 0 is x [R,C], place 1 mean and rstd, f32 [2,R]. */
#include "models/mod.h"

typedef struct layernorm_impl {
    int64_t width;
    float eps;
} layernorm_impl;

/* Row 0 or 1 of an f32 pair [2,n], as [n]. */
static shl_tensor
pair_row(const shl_tensor *pair, int64_t row)
{
    int64_t n = pair->dims[1];
    return shl_tensor_1d(shl_elem_ptr(pair->data, SHL_F32, row * n), SHL_F32, n);
}

/* The op always writes dw and db: what nobody wants (frozen) goes to place 2 of the entry, [2,C],
 * and from there nowhere. */
static shl_code
find_rooms(shl_module *m, shl_run *run, shl_tape_entry *e, shl_tensor *dw, shl_tensor *db)
{
    const layernorm_impl *impl = m->impl;
    *dw = shl_param_grad_view(m->params[0]);
    *db = shl_param_grad_view(m->params[1]);
    if (dw->data != NULL && db->data != NULL) {
        return SHL_OK;
    }
    SHL_TRY(shl_act_alloc(m, run, SHL_F32, 2, impl->width, &e->bufs[2], &e->saved[2]));
    *dw = dw->data != NULL ? *dw : pair_row(&e->saved[2], 0);
    *db = db->data != NULL ? *db : pair_row(&e->saved[2], 1);
    return SHL_OK;
}

static shl_code
layernorm_forward(shl_module *m, shl_run *run, shl_buf *x_buf, const shl_tensor *x, /* [R,C] */
                  shl_buf *y_buf, shl_tensor *y)                                    /* [R,C] */
{
    const layernorm_impl *impl = m->impl;
    shl_tape_entry *e = NULL;
    SHL_TRY(shl_leaf_enter(m, run, x_buf, x, &e));
    SHL_TRY(shl_act_alloc(m, run, SHL_F32, 2, x->dims[0], &e->bufs[1], &e->saved[1]));
    SHL_TRY(shl_act_alloc(m, run, x->dtype, x->dims[0], impl->width, y_buf, y));
    shl_layernorm_args args = {.x = *x,
                               .w = shl_param_view(m->params[0]),
                               .b = shl_param_view(m->params[1]),
                               .y = *y,
                               .mean = pair_row(&e->saved[1], 0),
                               .rstd = pair_row(&e->saved[1], 1),
                               .eps = impl->eps};
    SHL_TRY(shl_op_layernorm_forward(run->stream, &args));
    shl_leaf_leave(run);
    return SHL_OK;
}

/* dx either gets a fresh buffer or is added to the gradient of the residual stream. */
static shl_code
layernorm_backward(shl_module *m, shl_run *run, shl_buf *dy_buf, const shl_tensor *dy, /* [R,C] */
                   shl_buf *dx_buf, shl_tensor *dx)                                    /* [R,C] */
{
    const layernorm_impl *impl = m->impl;
    shl_param *w = m->params[0], *b = m->params[1];
    shl_tape_entry *e = NULL;
    SHL_TRY(shl_tape_top(run->tape, m, &e));
    bool accumulate = false, accumulate_dx = dx_buf->data != NULL;
    if (!accumulate_dx) {
        SHL_TRY(shl_act_alloc(m, run, dy->dtype, dy->dims[0], impl->width, dx_buf, dx));
    }
    shl_tensor dw, db; /* [C] each */
    SHL_TRY(find_rooms(m, run, e, &dw, &db));
    SHL_TRY(shl_param_pair_mode(run, w, b, &accumulate));
    shl_layernorm_args args = {.x = e->saved[0], /* [R,C] */
                               .w = shl_param_view(w),
                               .mean = pair_row(&e->saved[1], 0),
                               .rstd = pair_row(&e->saved[1], 1),
                               .dy = *dy,
                               .dx = *dx,
                               .dw = dw,
                               .db = db,
                               .eps = impl->eps,
                               .accumulate = accumulate,
                               .accumulate_dx = accumulate_dx};
    SHL_TRY(shl_op_layernorm_backward(run->stream, &args));
    shl_param_wrote(w);
    shl_param_wrote(b);
    shl_tape_pop(run->tape, run->device);
    shl_device_free(run->device, dy_buf);
    return SHL_OK;
}

static size_t
layernorm_saved_bytes(const shl_module *m, int64_t batch, int64_t seq)
{
    const layernorm_impl *impl = m->impl;
    size_t x_bytes = (size_t)(batch * seq * impl->width) * shl_dtype_bytes(m->dtype);
    return x_bytes + (size_t)(2 * batch * seq) * sizeof(float);
}

static const shl_module_ops layernorm_ops = {
    .kind = "layernorm",
    .forward = layernorm_forward,
    .backward = layernorm_backward,
    .saved_bytes = layernorm_saved_bytes,
};

shl_code
shl_mod_layernorm(shl_model *model, shl_module *parent, const char *path, int64_t width, double eps)
{
    shl_module *m = NULL;
    SHL_TRY(shl_build_module(model, parent, &layernorm_ops, path, SHL_WRAP_NONE,
                             sizeof(layernorm_impl), &m));
    *(layernorm_impl *)m->impl = (layernorm_impl){width, (float)eps};
    shl_param_spec w = {.rows = width, .value = 1.0}, b = {.rows = width};
    SHL_TRY(shl_build_param(model, m, path, "weight", &w));
    return shl_build_param(model, m, path, "bias", &b);
}

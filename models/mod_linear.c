/* models: the linear layer, y[R,O] = x[R,I] W + b[O], W [I,O] (Hugging Face's Conv1D) or [O,I], with
 * or without a bias and low-rank adapters (Hu et al. 2021): y += s u B^T, u[R,r] = x A^T, A[r,I], B[O,r], s = alpha / r.
 * Tape: place 0 is x [R,I], unless the module before owns it or nobody needs it again, 1 s u [R,r]. */
#include <math.h>

#include "kernels/base/str.h"
#include "models/mod.h"

typedef struct linear_impl {
    int64_t in, out;
    bool owns_input, no_bias;
    shl_weight_order order;
    int64_t rank; /* of adapters; 0: none */
    float scale;
} linear_impl;

/* NULL: none. */
static shl_param *
param_bias(const shl_module *m)
{
    const linear_impl *impl = m->impl;
    return impl->no_bias ? NULL : m->params[1];
}

static shl_param *
param_a(const shl_module *m)
{
    return m->params[m->n_params - 2];
}

static shl_param *
param_b(const shl_module *m)
{
    return m->params[m->n_params - 1];
}

/* The gradients of W and of A are made from x, nothing else is. */
static bool
needs_input(const shl_module *m)
{
    const linear_impl *impl = m->impl;
    return m->params[0]->trainable || impl->rank > 0;
}

/* y += s x A^T B^T. Sums into y are made by the op that sums into gradients: u B^T is what a layer
 * with the weight B as [in, out] would send back. */
static shl_code
adapters_forward(shl_module *m, shl_run *run, shl_tape_entry *e, const shl_tensor *x,
                 const shl_tensor *y)
{
    const linear_impl *impl = m->impl;
    SHL_TRY(shl_act_alloc(m, run, x->dtype, x->dims[0], impl->rank, &e->bufs[1], &e->saved[1]));
    shl_linear_args down = {.x = *x,
                            .w = shl_param_view(param_a(m)),
                            .y = e->saved[1], /* [R,r] */
                            .order = SHL_WEIGHT_OI};
    SHL_TRY(shl_op_linear_forward(run->stream, &down));
    shl_scale_args scale = {.x = e->saved[1], .factor = impl->scale};
    SHL_TRY(shl_op_scale(run->stream, &scale));
    if (y == NULL) {
        return SHL_OK;
    }
    shl_linear_args up = {.dy = e->saved[1],
                          .w = shl_param_view(param_b(m)), /* [O,r] */
                          .dx = *y,
                          .order = SHL_WEIGHT_IO,
                          .accumulate_dx = true};
    return shl_op_linear_backward_input(run->stream, &up);
}

static shl_code
linear_forward(shl_module *m, shl_run *run, shl_buf *x_buf, const shl_tensor *x, /* [R,I] */
               shl_buf *y_buf, shl_tensor *y)                                    /* [R,O] */
{
    const linear_impl *impl = m->impl;
    shl_tape_entry *e = NULL;
    SHL_TRY(shl_leaf_enter(m, run, x_buf, x, &e));
    if (!run->tape_only) {
        if (y->data == NULL) {
            SHL_TRY(shl_act_alloc(m, run, x->dtype, x->dims[0], impl->out, y_buf, y));
        }
        shl_linear_args args = {
            .x = *x, .w = shl_param_view(m->params[0]), .y = *y, .order = impl->order};
        if (!impl->no_bias) {
            args.b = shl_param_view(param_bias(m));
        }
        SHL_TRY(shl_op_linear_forward(run->stream, &args));
    }
    if (impl->rank > 0) {
        SHL_TRY(adapters_forward(m, run, e, x, run->tape_only ? NULL : y));
    }
    if (!impl->owns_input || !needs_input(m)) {
        /* Borrowed input that came as a gift is made again before it is needed. */
        e->saved[0].data = e->bufs[0].data != NULL ? NULL : e->saved[0].data;
        shl_device_free(run->device, &e->bufs[0]);
    }
    shl_leaf_leave(run);
    return SHL_OK;
}

/* x is there: kept, borrowed, or made again by the module that it is borrowed from. */
static shl_code
find_input(shl_module *m, shl_run *run, shl_tape_entry *e)
{
    if (e->saved[0].data != NULL || !needs_input(m)) {
        return SHL_OK;
    }
    shl_tape_entry *below = shl_tape_below(run->tape);
    SHL_ASSERT(below != NULL && below->module->ops->refill != NULL);
    SHL_TRY(below->module->ops->refill(below->module, run, below));
    e->saved[0].data = below->saved[1].data;
    return SHL_OK;
}

static shl_code
weights_backward(shl_module *m, shl_run *run, const shl_tape_entry *e, const shl_tensor *dy)
{
    const linear_impl *impl = m->impl;
    shl_param *w = m->params[0], *b = param_bias(m);
    shl_linear_args args = {.x = e->saved[0], /* [R,I] */
                            .dy = *dy,
                            .dw = shl_param_grad_view(w),
                            .order = impl->order};
    if (b != NULL) {
        args.db = shl_param_grad_view(b);
    }
    if (args.dw.data == NULL && args.db.data == NULL) {
        return SHL_OK;
    }
    SHL_TRY(shl_param_pair_mode(run, w, b, &args.accumulate));
    SHL_TRY(shl_op_linear_backward_weight(run->stream, &args));
    shl_param_wrote(w);
    if (b != NULL) {
        shl_param_wrote(b);
    }
    return SHL_OK;
}

/* dw = dy^T x of a weight [O,I], if wanted. */
static shl_code
adapter_grad(shl_run *run, shl_param *p, const shl_tensor *x, const shl_tensor *dy)
{
    shl_linear_args args = {.x = *x,
                            .dy = *dy,
                            .dw = shl_param_grad_view(p),
                            .order = SHL_WEIGHT_OI,
                            .accumulate = p->grad_accumulate};
    if (args.dw.data == NULL) {
        return SHL_OK;
    }
    SHL_TRY(shl_op_linear_backward_weight(run->stream, &args));
    shl_param_wrote(p);
    return SHL_OK;
}

/* dB = dy^T (s u), then du = s dy B in the entry's place 2, dA = du^T x. */
static shl_code
adapters_backward(shl_module *m, shl_run *run, shl_tape_entry *e, const shl_tensor *dy)
{
    const linear_impl *impl = m->impl;
    SHL_TRY(adapter_grad(run, param_b(m), &e->saved[1], dy));
    shl_device_free(run->device, &e->bufs[1]);
    SHL_TRY(shl_act_alloc(m, run, dy->dtype, dy->dims[0], impl->rank, &e->bufs[2], &e->saved[2]));
    shl_linear_args args = {
        .dy = *dy, .w = shl_param_view(param_b(m)), .dx = e->saved[2], .order = SHL_WEIGHT_OI};
    SHL_TRY(shl_op_linear_backward_input(run->stream, &args));
    shl_scale_args scale = {.x = e->saved[2], .factor = impl->scale};
    SHL_TRY(shl_op_scale(run->stream, &scale));
    return adapter_grad(run, param_a(m), &e->saved[0], &e->saved[2]);
}

/* dx (+)= dy W^T, then += du A. */
static shl_code
input_backward(shl_module *m, shl_run *run, const shl_tape_entry *e, const shl_tensor *dy,
               const shl_tensor *dx, bool accumulate)
{
    const linear_impl *impl = m->impl;
    shl_linear_args base = {.dy = *dy,
                            .w = shl_param_view(m->params[0]),
                            .dx = *dx,
                            .order = impl->order,
                            .accumulate_dx = accumulate};
    SHL_TRY(shl_op_linear_backward_input(run->stream, &base));
    if (impl->rank == 0) {
        return SHL_OK;
    }
    shl_linear_args low = {.dy = e->saved[2],
                           .w = shl_param_view(param_a(m)),
                           .dx = *dx,
                           .order = SHL_WEIGHT_OI,
                           .accumulate_dx = true};
    return shl_op_linear_backward_input(run->stream, &low);
}

static shl_code
linear_backward(shl_module *m, shl_run *run, shl_buf *dy_buf, const shl_tensor *dy, /* [R,O] */
                shl_buf *dx_buf, shl_tensor *dx)                                    /* [R,I] */
{
    const linear_impl *impl = m->impl;
    bool accumulate = dx_buf->data != NULL;
    shl_tape_entry *e = NULL;
    SHL_TRY(shl_tape_top(run->tape, m, &e));
    SHL_TRY(find_input(m, run, e));
    SHL_TRY(weights_backward(m, run, e, dy));
    if (impl->rank > 0) {
        SHL_TRY(adapters_backward(m, run, e, dy));
    }
    /* x goes before dx comes: dx takes its room. */
    shl_device_free(run->device, &e->bufs[0]);
    if (!accumulate) {
        SHL_TRY(shl_act_alloc(m, run, dy->dtype, dy->dims[0], impl->in, dx_buf, dx));
    }
    SHL_TRY(input_backward(m, run, e, dy, dx, accumulate));
    shl_tape_pop(run->tape, run->device);
    shl_device_free(run->device, dy_buf);
    return SHL_OK;
}

static size_t
linear_saved_bytes(const shl_module *m, int64_t batch, int64_t seq)
{
    const linear_impl *impl = m->impl;
    int64_t per_row = impl->rank + (impl->owns_input && needs_input(m) ? impl->in : 0);
    return (size_t)(batch * seq * per_row) * shl_dtype_bytes(m->dtype);
}

/* PEFT draws A by kaiming_uniform_(a = sqrt 5): uniform of bound 1/sqrt(in), so of standard deviation
 * 1/sqrt(3 in). */
static shl_code
linear_adapt(shl_model *model, shl_module *m, int64_t rank, double alpha)
{
    linear_impl *impl = m->impl;
    char stem[128];
    shl_param_spec a = {.rows = rank, .cols = impl->in, .std = 1.0 / sqrt(3.0 * (double)impl->in)};
    shl_param_spec b = {.rows = impl->out, .cols = rank};
    SHL_ASSERT(impl->rank == 0);
    impl->rank = rank;
    impl->scale = (float)(alpha / (double)rank);
    shl_strf(stem, sizeof stem, "%s.lora_A", m->path);
    SHL_TRY(shl_build_param(model, m, stem, "weight", &a));
    shl_strf(stem, sizeof stem, "%s.lora_B", m->path);
    SHL_TRY(shl_build_param(model, m, stem, "weight", &b));
    param_a(m)->adapter = true;
    param_b(m)->adapter = true;
    return SHL_OK;
}

static const shl_module_ops linear_ops = {
    .kind = "linear",
    .forward = linear_forward,
    .backward = linear_backward,
    .saved_bytes = linear_saved_bytes,
    .adapt = linear_adapt,
};

shl_code
shl_mod_linear(shl_model *model, shl_module *parent, const char *path, const shl_linear_spec *spec)
{
    shl_module *m = NULL;
    SHL_TRY(
        shl_build_module(model, parent, &linear_ops, path, SHL_WRAP_NONE, sizeof(linear_impl), &m));
    *(linear_impl *)m->impl = (linear_impl){.in = spec->in,
                                            .out = spec->out,
                                            .owns_input = spec->owns_input,
                                            .no_bias = spec->no_bias,
                                            .order = spec->order};
    bool io = spec->order == SHL_WEIGHT_IO;
    shl_param_spec w = {
        .rows = io ? spec->in : spec->out, .cols = io ? spec->out : spec->in, .std = spec->std};
    shl_param_spec b = {.rows = spec->out};
    SHL_TRY(shl_build_param(model, m, path, "weight", &w));
    return spec->no_bias ? SHL_OK : shl_build_param(model, m, path, "bias", &b);
}

/* models: several linear layers that read one input, as q, k, v or gate and up do. Their outputs,
 * [R,O1], [R,O2], ..., lie one behind the other in one buffer, each dense; the input is kept once.
 * Tape: place 0 is x [R,I], unless every weight is frozen: no entry then. */
#include "models/mod.h"

typedef struct fan_impl {
    int64_t in, out; /* out: of all children */
    int64_t child_out[SHL_FAN_MAX];
} fan_impl;

/* The gradients of weights are made from x; those of biases are not. */
static bool
keeps_input(const shl_module *m)
{
    for (int i = 0; i < m->n_children; i++) {
        const shl_module *child = m->children[i];
        for (int k = 0; k < child->n_params; k++) {
            if (child->params[k]->trainable && child->params[k]->n_dims == 2) {
                return true;
            }
        }
    }
    return false;
}

/* Child i's piece [R,Oi] of the whole. */
static shl_tensor
piece_of(const fan_impl *impl, const shl_tensor *whole, int i)
{
    int64_t rows = whole->dims[0], at = 0;
    for (int k = 0; k < i; k++) {
        at += rows * impl->child_out[k];
    }
    return shl_tensor_2d(shl_elem_ptr(whole->data, whole->dtype, at), whole->dtype, rows,
                         impl->child_out[i]);
}

static shl_code
fan_forward(shl_module *m, shl_run *run, shl_buf *x_buf, const shl_tensor *x, /* [R,I] */
            shl_buf *y_buf, shl_tensor *y)                                    /* R*O elements */
{
    const fan_impl *impl = m->impl;
    if (run->save && keeps_input(m)) {
        shl_tape_entry *e = NULL;
        SHL_TRY(shl_leaf_enter(m, run, x_buf, x, &e));
    }
    SHL_TRY(shl_act_alloc(m, run, x->dtype, x->dims[0], impl->out, y_buf, y));
    for (int i = 0; i < m->n_children; i++) {
        shl_buf lent = {0}, none = {0};
        shl_tensor piece = piece_of(impl, y, i);
        SHL_TRY(shl_module_forward(m->children[i], run, &lent, x, &none, &piece));
    }
    shl_device_free(run->device, x_buf);
    return SHL_OK;
}

/* The last child makes dx, the others add to it. */
static shl_code
fan_backward(shl_module *m, shl_run *run, shl_buf *dy_buf, const shl_tensor *dy, /* R*O elements */
             shl_buf *dx_buf, shl_tensor *dx)                                    /* [R,I] */
{
    const fan_impl *impl = m->impl;
    for (int i = m->n_children - 1; i >= 0; i--) {
        shl_buf lent = {0};
        shl_tensor piece = piece_of(impl, dy, i);
        SHL_TRY(shl_module_backward(m->children[i], run, &lent, &piece, dx_buf, dx));
    }
    if (keeps_input(m)) {
        shl_tape_entry *e = NULL;
        SHL_TRY(shl_tape_top(run->tape, m, &e));
        shl_tape_pop(run->tape, run->device);
    }
    shl_device_free(run->device, dy_buf);
    return SHL_OK;
}

static size_t
fan_saved_bytes(const shl_module *m, int64_t batch, int64_t seq)
{
    const fan_impl *impl = m->impl;
    size_t x_bytes = (size_t)(batch * seq * impl->in) * shl_dtype_bytes(m->dtype);
    return keeps_input(m) ? x_bytes : 0;
}

static const shl_module_ops fan_ops = {
    .kind = "fan",
    .forward = fan_forward,
    .backward = fan_backward,
    .saved_bytes = fan_saved_bytes,
};

shl_code
shl_mod_fan(shl_model *model, shl_module *parent, const char *path, int n,
            const char *const *child_paths, const shl_linear_spec *specs)
{
    SHL_ASSERT(n >= 1 && n <= SHL_FAN_MAX);
    shl_module *m = NULL;
    SHL_TRY(shl_build_module(model, parent, &fan_ops, path, SHL_WRAP_NONE, sizeof(fan_impl), &m));
    fan_impl *impl = m->impl;
    impl->in = specs[0].in;
    for (int i = 0; i < n; i++) {
        SHL_ASSERT(specs[i].in == impl->in && !specs[i].owns_input);
        impl->child_out[i] = specs[i].out;
        impl->out += specs[i].out;
        SHL_TRY(shl_mod_linear(model, m, child_paths[i], &specs[i]));
    }
    return SHL_OK;
}

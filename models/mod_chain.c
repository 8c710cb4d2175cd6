/* models: children one after the other, each consuming the buffer of the one before.
 * The root and the output group are chains; a block's branches run as chains too. */
#include "models/mod.h"

shl_code
shl_chain_forward(shl_module **children, int n, shl_run *run, shl_buf *x_buf, const shl_tensor *x,
                  shl_buf *y_buf, shl_tensor *y)
{
    shl_buf *in_buf = x_buf;
    shl_buf between = {0};
    shl_tensor in = *x;
    for (int i = 0; i < n; i++) {
        shl_buf out_buf = {0};
        shl_tensor out = {0};
        SHL_TRY(shl_module_forward(children[i], run, in_buf, &in, &out_buf, &out));
        between = out_buf;
        in_buf = &between;
        in = out;
    }
    *y_buf = *in_buf;
    *y = in;
    return SHL_OK;
}

shl_code
shl_chain_backward(shl_module **children, int n, shl_run *run, shl_buf *dy_buf,
                   const shl_tensor *dy, shl_buf *dx_buf, shl_tensor *dx)
{
    shl_buf *out_buf = dy_buf;
    shl_buf between = {0};
    shl_tensor out = *dy;
    for (int i = n - 1; i > 0; i--) {
        shl_buf in_buf = {0};
        shl_tensor in = {0};
        SHL_TRY(shl_module_backward(children[i], run, out_buf, &out, &in_buf, &in));
        between = in_buf;
        out_buf = &between;
        out = in;
    }
    /* The first child may add to bytes that dx_buf holds already. */
    return shl_module_backward(children[0], run, out_buf, &out, dx_buf, dx);
}

/* Children that backward does not reach: the first ones of the root, or none. */
static int
forward_only(const shl_module *m)
{
    int n = 0;
    while (n < m->n_children && !m->children[n]->in_backward) {
        n++;
    }
    return n;
}

static shl_code
chain_forward(shl_module *m, shl_run *run, shl_buf *x_buf, const shl_tensor *x, shl_buf *y_buf,
              shl_tensor *y)
{
    int n = run->save ? forward_only(m) : 0;
    if (n == 0) {
        return shl_chain_forward(m->children, m->n_children, run, x_buf, x, y_buf, y);
    }
    SHL_ASSERT(n < m->n_children);
    shl_buf mid_buf = {0};
    shl_tensor mid = {0};
    run->save = false;
    shl_code code = shl_chain_forward(m->children, n, run, x_buf, x, &mid_buf, &mid);
    run->save = true;
    SHL_TRY(code);
    return shl_chain_forward(m->children + n, m->n_children - n, run, &mid_buf, &mid, y_buf, y);
}

static shl_code
chain_backward(shl_module *m, shl_run *run, shl_buf *dy_buf, const shl_tensor *dy, shl_buf *dx_buf,
               shl_tensor *dx)
{
    int n = forward_only(m);
    SHL_TRY(shl_chain_backward(m->children + n, m->n_children - n, run, dy_buf, dy, dx_buf, dx));
    if (n > 0) {
        /* Nobody before is trained: this gradient goes nowhere. */
        shl_device_free(run->device, dx_buf);
    }
    return SHL_OK;
}

static size_t
chain_saved_bytes(const shl_module *m, int64_t batch, int64_t seq)
{
    SHL_UNUSED(m);
    SHL_UNUSED(batch);
    SHL_UNUSED(seq);
    return 0;
}

static const shl_module_ops chain_ops = {
    .kind = "chain",
    .forward = chain_forward,
    .backward = chain_backward,
    .saved_bytes = chain_saved_bytes,
};

shl_code
shl_mod_chain(shl_model *model, shl_module *parent, const char *path, shl_wrap_hint wrap,
              shl_module **out)
{
    return shl_build_module(model, parent, &chain_ops, path, wrap, 0, out);
}

/* models: the pre-norm block, x += branch(norm(x)) twice: children 0..3 attention, 4..7 MLP; with
 * dropout, of each branch's output.
 * Residual sums are made in place, forward in the branch's output, backward in the gradient of the
 * stream, so that a block of GPT-2 keeps per token, in floats: x C, norm C, qkv 3C, attention C, x
 * C, norm C, MLP I before and I after GELU, NH log-sum-exps and 4 norm statistics: 16C + NH + 4. */
#include "models/mod.h"

#define BRANCH_CHILDREN 4

/* y[R,C] = x[R,C] + branch(x); branch 0 is attention, 1 the MLP. */
static shl_code
residual_forward(shl_module *m, int branch, shl_run *run, shl_buf *x_buf, const shl_tensor *x,
                 shl_buf *y_buf, shl_tensor *y)
{
    shl_module **children = m->children + branch * BRANCH_CHILDREN;
    /* The norm at the front takes x to the tape, where the sum below still finds it; when nothing
     * is saved it would free x, so x is lent to it then. */
    shl_buf lent = {0};
    shl_buf *given = run->save ? x_buf : &lent;
    SHL_TRY(shl_chain_forward(children, BRANCH_CHILDREN, run, given, x, y_buf, y));
    if (shl_drops(m, run)) {
        SHL_TRY(shl_drop(m, run, branch, y, y));
    }
    shl_add_args args = {.x1 = *y, .x2 = *x, .y = *y};
    SHL_TRY(shl_op_add(run->stream, &args));
    shl_device_free(run->device, x_buf);
    return SHL_OK;
}

/* d[R,C] is the gradient of y, then of x: the branch reads it and its norm adds to it. With dropout the
 * branch gets a copy without what was dropped. */
static shl_code
residual_backward(shl_module *m, int branch, shl_run *run, shl_buf *d_buf, shl_tensor *d)
{
    shl_module **children = m->children + branch * BRANCH_CHILDREN;
    shl_buf dy_buf = {0};
    shl_tensor dy = *d;
    if (shl_drops(m, run)) {
        SHL_TRY(shl_act_alloc(m, run, d->dtype, d->dims[0], d->dims[1], &dy_buf, &dy));
        shl_code code = shl_drop(m, run, branch, d, &dy);
        if (code != SHL_OK) {
            shl_device_free(run->device, &dy_buf);
            return code;
        }
    }
    return shl_chain_backward(children, BRANCH_CHILDREN, run, &dy_buf, &dy, d_buf, d);
}

/* Both branches; x_buf may be empty: x lives elsewhere then. */
static shl_code
branches_forward(shl_module *m, shl_run *run, shl_buf *x_buf, const shl_tensor *x, shl_buf *y_buf,
                 shl_tensor *y)
{
    shl_buf mid_buf = {0};
    shl_tensor mid = {0};
    shl_code code = residual_forward(m, 0, run, x_buf, x, &mid_buf, &mid);
    if (code == SHL_OK) {
        code = residual_forward(m, 1, run, &mid_buf, &mid, y_buf, y);
    }
    shl_device_free(run->device, &mid_buf);
    return code;
}

/* A block that is recomputed keeps x alone: its children save nothing in this pass. On its way to host
 * memory x is still read here. */
static shl_code
block_forward(shl_module *m, shl_run *run, shl_buf *x_buf, const shl_tensor *x, shl_buf *y_buf,
              shl_tensor *y)
{
    if (!m->recompute || !run->save) {
        return branches_forward(m, run, x_buf, x, y_buf, y);
    }
    shl_tape_entry *e = NULL;
    shl_buf lent = {0};
    bool away = run->offload && m->offload;
    SHL_TRY(shl_leaf_enter(m, run, x_buf, x, &e));
    if (away) {
        SHL_TRY(shl_tape_send(run, e));
    }
    run->save = false;
    shl_code code = branches_forward(m, run, &lent, x, y_buf, y);
    run->save = true;
    if (code == SHL_OK && away) {
        SHL_TRY(shl_tape_top(run->tape, m, &e));
        code = shl_tape_sent(run, e);
    }
    return code;
}

/* x of this block is there behind this, that of the next one to be recomputed on its way. */
static shl_code
bring_back(shl_module *m, shl_run *run)
{
    shl_tape_entry *e = NULL;
    SHL_TRY(shl_tape_top(run->tape, m, &e));
    if (e->far.data != NULL) {
        SHL_TRY(shl_tape_fetched(run, e));
    }
    return shl_tape_fetch_below(run);
}

/* The children's entries as an ordinary forward leaves them, in place of the block's own: everything
 * up to the input of the last linear; its output and the last sum are not looked at again. */
static shl_code
refill_tape(shl_module *m, shl_run *run)
{
    shl_module **mlp = m->children + BRANCH_CHILDREN;
    shl_tape_entry *e = NULL;
    shl_buf mid_buf = {0}, last_buf = {0}, none_buf = {0};
    shl_tensor mid = {0}, last = {0}, none = {0};
    SHL_TRY(shl_tape_top(run->tape, m, &e));
    shl_buf x_buf = shl_buf_move(&e->bufs[0]);
    shl_tensor x = e->saved[0];
    shl_tape_pop(run->tape, run->device);
    shl_code code = residual_forward(m, 0, run, &x_buf, &x, &mid_buf, &mid);
    if (code == SHL_OK) {
        code = shl_chain_forward(mlp, BRANCH_CHILDREN - 1, run, &mid_buf, &mid, &last_buf, &last);
    }
    if (code == SHL_OK) {
        run->tape_only = true;
        code =
            shl_module_forward(mlp[BRANCH_CHILDREN - 1], run, &last_buf, &last, &none_buf, &none);
        run->tape_only = false;
    }
    shl_device_free(run->device, &x_buf);
    shl_device_free(run->device, &mid_buf);
    return code;
}

static shl_code
block_backward(shl_module *m, shl_run *run, shl_buf *dy_buf, const shl_tensor *dy, shl_buf *dx_buf,
               shl_tensor *dx)
{
    SHL_ASSERT(dy_buf->data != NULL && dx_buf->data == NULL);
    if (m->recompute) {
        run->phase = SHL_PHASE_RECOMPUTE;
        SHL_TRY(bring_back(m, run));
        SHL_TRY(refill_tape(m, run));
        run->phase = SHL_PHASE_BACKWARD;
    }
    *dx_buf = shl_buf_move(dy_buf);
    *dx = *dy;
    SHL_TRY(residual_backward(m, 1, run, dx_buf, dx));
    return residual_backward(m, 0, run, dx_buf, dx);
}

static size_t
block_saved_bytes(const shl_module *m, int64_t batch, int64_t seq)
{
    SHL_UNUSED(m);
    SHL_UNUSED(batch);
    SHL_UNUSED(seq);
    return 0;
}

static const shl_module_ops block_ops = {
    .kind = "block",
    .forward = block_forward,
    .backward = block_backward,
    .saved_bytes = block_saved_bytes,
};

shl_code
shl_mod_block(shl_model *model, shl_module *parent, const char *path, shl_module **out)
{
    return shl_build_module(model, parent, &block_ops, path, SHL_WRAP_BLOCK, 0, out);
}

/* models: token and position embedding, y[R,C] = wte[token] + wpe[position], or the first alone.
 * Leaves nothing on the tape: the tokens are the run's. */
#include "models/mod.h"

typedef struct embed_impl {
    int64_t width;
} embed_impl;

/* NULL: no positions are learned. */
static shl_param *
positions(const shl_module *m)
{
    return m->n_params > 1 ? m->params[1] : NULL;
}

static shl_code
embed_forward(shl_module *m, shl_run *run, shl_buf *x_buf, const shl_tensor *x, shl_buf *y_buf,
              shl_tensor *y) /* [R,C] */
{
    SHL_UNUSED(x_buf);
    SHL_UNUSED(x);
    const embed_impl *impl = m->impl;
    shl_param *wte = m->params[0], *wpe = positions(m);
    SHL_TRY(shl_act_alloc(m, run, wte->dtype, run->batch * run->seq, impl->width, y_buf, y));
    shl_embedding_args args = {.tokens = run->tokens, /* [R] */
                               .wte = shl_param_view(wte),
                               .y = *y,
                               .seq = run->seq};
    if (wpe != NULL) {
        args.wpe = shl_param_view(wpe);
    }
    SHL_TRY(shl_op_embedding_forward(run->stream, &args));
    return shl_drops(m, run) ? shl_drop(m, run, 0, y, y) : SHL_OK;
}

/* The tokens have no gradient: dx stays empty. */
static shl_code
embed_backward(shl_module *m, shl_run *run, shl_buf *dy_buf, const shl_tensor *dy, /* [R,C] */
               shl_buf *dx_buf, shl_tensor *dx)
{
    SHL_UNUSED(dx_buf);
    SHL_UNUSED(dx);
    shl_param *wte = m->params[0], *wpe = positions(m);
    shl_embedding_args args = {.tokens = run->tokens,
                               .dy = *dy,
                               .dwte = shl_param_grad_view(wte),
                               .seq = run->seq,
                               .accumulate_wte = wte->grad_accumulate};
    if (wpe != NULL) {
        args.dwpe = shl_param_grad_view(wpe);
        args.accumulate_wpe = wpe->grad_accumulate;
    }
    if (args.dwte.data != NULL || args.dwpe.data != NULL) {
        if (shl_drops(m, run)) {
            SHL_TRY(shl_drop(m, run, 0, dy, dy));
        }
        SHL_TRY(shl_op_embedding_backward(run->stream, &args));
        shl_param_wrote(wte);
    }
    if (args.dwpe.data != NULL) {
        shl_param_wrote(wpe);
    }
    shl_device_free(run->device, dy_buf);
    return SHL_OK;
}

static size_t
embed_saved_bytes(const shl_module *m, int64_t batch, int64_t seq)
{
    SHL_UNUSED(m);
    SHL_UNUSED(batch);
    SHL_UNUSED(seq);
    return 0;
}

static const shl_module_ops embed_ops = {
    .kind = "embedding",
    .forward = embed_forward,
    .backward = embed_backward,
    .saved_bytes = embed_saved_bytes,
};

shl_code
shl_mod_embed(shl_model *model, shl_module *parent, const char *path, const char *token_stem,
              const char *position_stem, int64_t width, double std)
{
    shl_module *m = NULL;
    SHL_TRY(
        shl_build_module(model, parent, &embed_ops, path, SHL_WRAP_INPUT, sizeof(embed_impl), &m));
    *(embed_impl *)m->impl = (embed_impl){width};
    shl_param_spec wte = {.rows = model->vocab, .cols = width, .std = std};
    shl_param_spec wpe = {.rows = model->context, .cols = width, .std = std};
    SHL_TRY(shl_build_param(model, m, token_stem, "weight", &wte));
    return position_stem == NULL ? SHL_OK
                                 : shl_build_param(model, m, position_stem, "weight", &wpe);
}

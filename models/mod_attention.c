/* models: causal self-attention on q, k, v side by side in one [R,3C] tensor, or one behind the other
 * in one buffer; with fewer key heads (Ainslie et al. 2023: 3C is (NH + 2 NK) D) and rotary
 * positions, if the model has them; no parameters.
 * Tape: place 0 is qkv [R,3C], q and k rotated, 1 the output [R,C], which the projection behind reads again too,
 * 2 the log-sum-exp, f32 [B*NH,T]. With m->recompute 1 and 2 are made again in backward, by whoever
 * needs them first. */
#include "models/mod.h"

#include <math.h>

typedef shl_attention_spec attention_impl;

static int64_t
query_width(const attention_impl *impl)
{
    return impl->heads * impl->head_dim;
}

static int64_t
key_width(const attention_impl *impl)
{
    return impl->kv_heads * impl->head_dim;
}

static int64_t
qkv_width(const attention_impl *impl)
{
    return query_width(impl) + 2 * key_width(impl);
}

/* Where k and v begin in qkv, in elements. */
static int64_t
key_at(const attention_impl *impl, int64_t rows)
{
    return query_width(impl) * (impl->stacked ? rows : 1);
}

static int64_t
value_at(const attention_impl *impl, int64_t rows)
{
    return (query_width(impl) + key_width(impl)) * (impl->stacked ? rows : 1);
}

static shl_attention_args
attention_args(const shl_module *m, const shl_run *run, const shl_tensor *qkv)
{
    const attention_impl *impl = m->impl;
    int64_t rows = qkv->dims[0], whole = qkv_width(impl);
    return (shl_attention_args){.q = qkv->data,
                                .k = shl_elem_ptr(qkv->data, qkv->dtype, key_at(impl, rows)),
                                .v = shl_elem_ptr(qkv->data, qkv->dtype, value_at(impl, rows)),
                                .q_stride = impl->stacked ? query_width(impl) : whole,
                                .kv_stride = impl->stacked ? key_width(impl) : whole,
                                .batch = run->batch,
                                .seq = run->seq,
                                .heads = impl->heads,
                                .kv_heads = impl->kv_heads,
                                .head_dim = impl->head_dim,
                                .scale = (float)(1.0 / sqrt((double)impl->head_dim)),
                                .dtype = qkv->dtype,
                                .dropout_p = run->want_grad ? m->dropout : 0.0,
                                .dropout_seed = run->dropout_seed,
                                .dropout_stream = m->dropout_stream,
                                .first_sequence = run->first_row};
}

/* Turns q and k, or back what came to dq and dk, in place. */
static shl_code
rotate(const attention_impl *impl, const shl_run *run, const shl_tensor *qkv, bool inverse)
{
    if (impl->rope_theta <= 0.0) {
        return SHL_OK;
    }
    int64_t rows = qkv->dims[0], whole = qkv_width(impl);
    shl_rope_args args = {.q = qkv->data,
                          .k = shl_elem_ptr(qkv->data, qkv->dtype, key_at(impl, rows)),
                          .q_stride = impl->stacked ? query_width(impl) : whole,
                          .kv_stride = impl->stacked ? key_width(impl) : whole,
                          .rows = rows,
                          .seq = run->seq,
                          .heads = impl->heads,
                          .kv_heads = impl->kv_heads,
                          .head_dim = impl->head_dim,
                          .theta = impl->rope_theta,
                          .scaling = impl->rope,
                          .inverse = inverse,
                          .dtype = qkv->dtype};
    return shl_op_rope(run->stream, &args);
}

/* The output into y, the log-sum-exp into the entry. */
static shl_code
attend(shl_module *m, shl_run *run, shl_tape_entry *e, shl_buf *y_buf, shl_tensor *y)
{
    const attention_impl *impl = m->impl;
    const shl_tensor *x = &e->saved[0];
    SHL_TRY(shl_act_alloc(m, run, x->dtype, x->dims[0], query_width(impl), y_buf, y));
    SHL_TRY(shl_act_alloc(m, run, SHL_F32, run->batch * impl->heads, run->seq, &e->bufs[2],
                          &e->saved[2]));
    shl_attention_args args = attention_args(m, run, x);
    args.y = y->data;
    args.lse = e->saved[2].data; /* [B,NH,T] */
    return shl_op_attention_forward(run->stream, &args);
}

static shl_code
attention_forward(shl_module *m, shl_run *run, shl_buf *x_buf, const shl_tensor *x, /* [R,3C] */
                  shl_buf *y_buf, shl_tensor *y)                                    /* [R,C] */
{
    shl_tape_entry *e = NULL;
    SHL_TRY(shl_leaf_enter(m, run, x_buf, x, &e));
    SHL_TRY(rotate(m->impl, run, x, false));
    SHL_TRY(attend(m, run, e, y_buf, y));
    if (m->recompute) {
        /* The projection gets the output as its own, and keeps it no longer than it must. */
        shl_device_free(run->device, &e->bufs[2]);
    } else if (run->save) {
        e->bufs[1] = shl_buf_move(y_buf);
        e->saved[1] = *y;
    }
    shl_leaf_leave(run);
    return SHL_OK;
}

static shl_code
attention_refill(shl_module *m, shl_run *run, shl_tape_entry *e)
{
    return e->bufs[1].data != NULL ? SHL_OK : attend(m, run, e, &e->bufs[1], &e->saved[1]);
}

static shl_code
attention_backward(shl_module *m, shl_run *run, shl_buf *dy_buf, const shl_tensor *dy, /* [R,C] */
                   shl_buf *dx_buf, shl_tensor *dx)                                    /* [R,3C] */
{
    SHL_ASSERT(dx_buf->data == NULL);
    const attention_impl *impl = m->impl;
    shl_tape_entry *e = NULL;
    SHL_TRY(shl_tape_top(run->tape, m, &e));
    SHL_TRY(attention_refill(m, run, e));
    SHL_TRY(shl_act_alloc(m, run, dy->dtype, dy->dims[0], qkv_width(impl), dx_buf, dx));
    shl_attention_args args = attention_args(m, run, &e->saved[0]);
    args.y = e->saved[1].data; /* [R,C] */
    args.lse = e->saved[2].data;
    args.dy = dy->data;
    args.dq = dx->data;
    args.dk = shl_elem_ptr(dx->data, dx->dtype, key_at(impl, dx->dims[0]));
    args.dv = shl_elem_ptr(dx->data, dx->dtype, value_at(impl, dx->dims[0]));
    SHL_TRY(shl_op_attention_backward(run->stream, &args));
    SHL_TRY(rotate(impl, run, dx, true));
    shl_tape_pop(run->tape, run->device);
    shl_device_free(run->device, dy_buf);
    return SHL_OK;
}

static size_t
attention_saved_bytes(const shl_module *m, int64_t batch, int64_t seq)
{
    const attention_impl *impl = m->impl;
    size_t rows = (size_t)(batch * seq);
    if (m->recompute) {
        return rows * (size_t)qkv_width(impl) * shl_dtype_bytes(m->dtype);
    }
    return rows * (size_t)(qkv_width(impl) + query_width(impl)) * shl_dtype_bytes(m->dtype) +
           rows * (size_t)impl->heads * sizeof(float);
}

static const shl_module_ops attention_ops = {
    .kind = "attention",
    .forward = attention_forward,
    .backward = attention_backward,
    .saved_bytes = attention_saved_bytes,
    .refill = attention_refill,
};

shl_code
shl_mod_attention(shl_model *model, shl_module *parent, const char *path,
                  const shl_attention_spec *spec)
{
    shl_module *m = NULL;
    SHL_TRY(shl_build_module(model, parent, &attention_ops, path, SHL_WRAP_NONE,
                             sizeof(attention_impl), &m));
    *(attention_impl *)m->impl = *spec;
    return SHL_OK;
}

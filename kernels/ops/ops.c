/* kernels/ops: the dispatchers: check shapes and dtypes, take scratch, call the device's slot. */
#include "kernels/ops/ops.h"

#include "kernels/base/half.h"

#define NAME_ROW(op, name) [SHL_OP_##op] = #name,
static const char *const op_names[SHL_OP_COUNT] = {SHL_OPS(NAME_ROW)};

const char *
shl_op_name(shl_op op)
{
    SHL_ASSERT((int)op >= 0 && op < SHL_OP_COUNT);
    return op_names[op];
}

void
shl_op_ran(const shl_device *d, shl_op op, char *text, size_t bytes)
{
    SHL_ASSERT(bytes > 0);
    text[0] = '\0';
    if (d->op_table->ran != NULL) {
        d->op_table->ran(d, op, text, bytes);
    }
}

/* Fails with SHL_E_BUG unless `cond`: a caller passed shapes that break the contract. */
#define NEED(op, cond)                                                                             \
    do {                                                                                           \
        if (!(cond)) {                                                                             \
            (void)SHL_RAISE(SHL_E_BUG, "%s: arguments break the contract", shl_op_name(op));       \
            return shl_err_because("this must hold: %s", #cond);                                   \
        }                                                                                          \
    } while (0)

/* Calls the slot with its scratch, owned by the op and given back at once. */
static shl_code
call(shl_stream *s, shl_op op, const void *args)
{
    shl_device *d = s->device;
    const char *target = d->config.stands_for != NULL ? d->config.stands_for : d->ops->kind;
    size_t bytes = shl_op_work_bytes(target, op, args, d->config.threads);
    shl_op_fn fn = d->op_table->fn[op];
    SHL_ASSERT(fn != NULL);
    if (bytes == 0) {
        SHL_TRY(fn(s, args, NULL));
        return SHL_OK;
    }
    shl_buf work = {0};
    SHL_TRY(shl_device_alloc(d, bytes, SHL_TIER_DEVICE, SHL_TAG_WORK, 0, shl_op_name(op), &work));
    shl_code code = fn(s, args, work.data);
    shl_device_free(d, &work);
    SHL_TRY(code);
    return SHL_OK;
}

static bool
has_data(const shl_tensor *t)
{
    return t->data != NULL;
}

/* [rows, cols] of a dtype, with data. */
static bool
is_2d(const shl_tensor *t, shl_dtype dtype, int64_t rows, int64_t cols)
{
    return has_data(t) && t->dtype == dtype && t->n_dims == 2 && t->dims[0] == rows &&
           t->dims[1] == cols;
}

/* n elements of a dtype in any shape; data may be missing only when n is 0. */
static bool
is_flat(const shl_tensor *t, shl_dtype dtype, int64_t n)
{
    return t->dtype == dtype && shl_tensor_elems(t) == n && (has_data(t) || n == 0);
}

/* The same of fp32, bf16 or fp16. */
static bool
is_floats(const shl_tensor *t, int64_t n)
{
    return shl_dtype_is_float(t->dtype) && is_flat(t, t->dtype, n);
}

/* A gradient of a parameter where activations are of `dtype`: in fp32, or in that type. */
static bool
is_gradient(const shl_tensor *t, shl_dtype dtype)
{
    return t->dtype == SHL_F32 || t->dtype == dtype;
}

/* Elements between rows of `cols` columns; 0: dense. */
static bool
is_stride(int64_t stride, int64_t cols)
{
    return stride == 0 || stride >= cols;
}

/* W of a layer from `in` to `out` features. */
static bool
is_weight(const shl_tensor *t, shl_dtype dtype, shl_weight_order order, int64_t in, int64_t out)
{
    return order == SHL_WEIGHT_IO ? is_2d(t, dtype, in, out) : is_2d(t, dtype, out, in);
}

shl_code
shl_op_linear_forward(shl_stream *s, const shl_linear_args *a)
{
    const shl_op op = SHL_OP_LINEAR_FORWARD;
    shl_dtype dt = a->x.dtype;
    NEED(op, shl_dtype_is_float(dt) && has_data(&a->x) && a->x.n_dims == 2 && a->y.n_dims == 2);
    int64_t rows = a->x.dims[0], in = a->x.dims[1], out = a->y.dims[1];
    NEED(op, rows > 0 && in > 0 && out > 0);
    NEED(op, is_2d(&a->y, dt, rows, out) && is_stride(a->stride, out));
    NEED(op, is_weight(&a->w, dt, a->order, in, out));
    NEED(op, !has_data(&a->b) || is_flat(&a->b, dt, out));
    return call(s, op, a);
}

shl_code
shl_op_linear_backward_input(shl_stream *s, const shl_linear_args *a)
{
    const shl_op op = SHL_OP_LINEAR_BACKWARD_INPUT;
    shl_dtype dt = a->dy.dtype;
    NEED(op, shl_dtype_is_float(dt) && has_data(&a->dy) && a->dy.n_dims == 2 && a->dx.n_dims == 2);
    int64_t rows = a->dy.dims[0], out = a->dy.dims[1], in = a->dx.dims[1];
    NEED(op, rows > 0 && in > 0 && out > 0 && is_stride(a->stride, out));
    NEED(op, is_2d(&a->dx, dt, rows, in));
    NEED(op, is_weight(&a->w, dt, a->order, in, out));
    return call(s, op, a);
}

shl_code
shl_op_linear_backward_weight(shl_stream *s, const shl_linear_args *a)
{
    const shl_op op = SHL_OP_LINEAR_BACKWARD_WEIGHT;
    shl_dtype dt = a->dy.dtype;
    NEED(op, shl_dtype_is_float(dt) && has_data(&a->dy) && a->dy.n_dims == 2 && a->x.n_dims == 2);
    int64_t rows = a->dy.dims[0], out = a->dy.dims[1], in = a->x.dims[1];
    NEED(op, rows > 0 && in > 0 && out > 0 && is_stride(a->stride, out));
    NEED(op, has_data(&a->dw) || has_data(&a->db));
    NEED(op, !has_data(&a->dw) || is_2d(&a->x, dt, rows, in));
    NEED(op, !has_data(&a->dw) || is_weight(&a->dw, a->dw.dtype, a->order, in, out));
    NEED(op, !has_data(&a->db) || is_flat(&a->db, a->db.dtype, out));
    NEED(op, !has_data(&a->dw) || is_gradient(&a->dw, dt));
    NEED(op, !has_data(&a->db) || is_gradient(&a->db, dt));
    return call(s, op, a);
}

static shl_code
check_layernorm(shl_op op, const shl_layernorm_args *a)
{
    shl_dtype dt = a->x.dtype;
    NEED(op, shl_dtype_is_float(dt) && has_data(&a->x) && a->x.n_dims == 2);
    int64_t rows = a->x.dims[0], cols = a->x.dims[1];
    NEED(op, rows > 0 && cols > 0);
    NEED(op, has_data(&a->w) && is_flat(&a->w, dt, cols));
    NEED(op, has_data(&a->mean) && is_flat(&a->mean, SHL_F32, rows));
    NEED(op, has_data(&a->rstd) && is_flat(&a->rstd, SHL_F32, rows));
    return SHL_OK;
}

shl_code
shl_op_layernorm_forward(shl_stream *s, const shl_layernorm_args *a)
{
    const shl_op op = SHL_OP_LAYERNORM_FORWARD;
    SHL_TRY(check_layernorm(op, a));
    NEED(op, has_data(&a->b) && is_flat(&a->b, a->x.dtype, a->x.dims[1]));
    NEED(op, is_2d(&a->y, a->x.dtype, a->x.dims[0], a->x.dims[1]));
    NEED(op, a->eps >= 0.0f);
    return call(s, op, a);
}

shl_code
shl_op_layernorm_backward(shl_stream *s, const shl_layernorm_args *a)
{
    const shl_op op = SHL_OP_LAYERNORM_BACKWARD;
    SHL_TRY(check_layernorm(op, a));
    int64_t rows = a->x.dims[0], cols = a->x.dims[1];
    NEED(op, is_2d(&a->dy, a->x.dtype, rows, cols));
    NEED(op, is_2d(&a->dx, a->x.dtype, rows, cols));
    NEED(op, is_gradient(&a->dw, a->x.dtype));
    NEED(op, has_data(&a->dw) && is_flat(&a->dw, a->dw.dtype, cols));
    NEED(op, has_data(&a->db) && is_flat(&a->db, a->dw.dtype, cols));
    return call(s, op, a);
}

shl_code
shl_op_gelu_forward(shl_stream *s, const shl_gelu_args *a)
{
    const shl_op op = SHL_OP_GELU_FORWARD;
    int64_t n = shl_tensor_elems(&a->x);
    NEED(op, shl_dtype_is_float(a->x.dtype) && is_flat(&a->x, a->x.dtype, n));
    NEED(op, is_flat(&a->y, a->x.dtype, n));
    return call(s, op, a);
}

shl_code
shl_op_gelu_backward(shl_stream *s, const shl_gelu_args *a)
{
    const shl_op op = SHL_OP_GELU_BACKWARD;
    int64_t n = shl_tensor_elems(&a->x);
    NEED(op, shl_dtype_is_float(a->x.dtype) && is_flat(&a->x, a->x.dtype, n));
    NEED(op, is_flat(&a->dy, a->x.dtype, n) && is_flat(&a->dx, a->x.dtype, n));
    return call(s, op, a);
}

shl_code
shl_op_embedding_forward(shl_stream *s, const shl_embedding_args *a)
{
    const shl_op op = SHL_OP_EMBEDDING_FORWARD;
    shl_dtype dt = a->wte.dtype;
    int64_t rows = shl_tensor_elems(&a->tokens);
    NEED(op, rows > 0 && has_data(&a->tokens) && a->tokens.dtype == SHL_I32);
    NEED(op, shl_dtype_is_float(dt) && a->wte.n_dims == 2 && has_data(&a->wte));
    NEED(op, is_2d(&a->y, dt, rows, a->wte.dims[1]));
    if (has_data(&a->wpe)) {
        NEED(op, a->wpe.n_dims == 2 && is_2d(&a->wpe, dt, a->wpe.dims[0], a->wte.dims[1]));
        NEED(op, a->seq > 0 && rows % a->seq == 0 && a->seq <= a->wpe.dims[0]);
    }
    return call(s, op, a);
}

shl_code
shl_op_embedding_backward(shl_stream *s, const shl_embedding_args *a)
{
    const shl_op op = SHL_OP_EMBEDDING_BACKWARD;
    int64_t rows = shl_tensor_elems(&a->tokens);
    NEED(op, rows > 0 && has_data(&a->tokens) && a->tokens.dtype == SHL_I32);
    NEED(op, shl_dtype_is_float(a->dy.dtype) && a->dy.n_dims == 2);
    int64_t width = a->dy.dims[1];
    NEED(op, is_2d(&a->dy, a->dy.dtype, rows, width));
    NEED(op, has_data(&a->dwte) || has_data(&a->dwpe));
    NEED(op, !has_data(&a->dwte) || is_gradient(&a->dwte, a->dy.dtype));
    NEED(op, !has_data(&a->dwpe) || is_gradient(&a->dwpe, a->dy.dtype));
    NEED(op, !has_data(&a->dwte) || is_2d(&a->dwte, a->dwte.dtype, a->dwte.dims[0], width));
    if (has_data(&a->dwpe)) {
        NEED(op, is_2d(&a->dwpe, a->dwpe.dtype, a->dwpe.dims[0], width));
        NEED(op, a->seq > 0 && rows % a->seq == 0 && a->seq <= a->dwpe.dims[0]);
    }
    return call(s, op, a);
}

static shl_code
check_attention(shl_op op, const shl_attention_args *a)
{
    NEED(op, shl_dtype_is_float(a->dtype));
    NEED(op, a->batch > 0 && a->seq > 0 && a->heads > 0 && a->head_dim > 0);
    NEED(op, a->kv_heads > 0 && a->heads % a->kv_heads == 0);
    NEED(op, a->q_stride >= a->heads * a->head_dim && a->kv_stride >= a->kv_heads * a->head_dim);
    NEED(op, a->q != NULL && a->k != NULL && a->v != NULL && a->y != NULL && a->lse != NULL);
    NEED(op, a->dropout_p >= 0.0 && a->dropout_p < 1.0 && a->first_sequence >= 0);
    return SHL_OK;
}

shl_code
shl_op_attention_forward(shl_stream *s, const shl_attention_args *a)
{
    SHL_TRY(check_attention(SHL_OP_ATTENTION_FORWARD, a));
    return call(s, SHL_OP_ATTENTION_FORWARD, a);
}

shl_code
shl_op_attention_backward(shl_stream *s, const shl_attention_args *a)
{
    const shl_op op = SHL_OP_ATTENTION_BACKWARD;
    SHL_TRY(check_attention(op, a));
    NEED(op, a->dy != NULL && a->dq != NULL && a->dk != NULL && a->dv != NULL);
    return call(s, op, a);
}

shl_code
shl_op_add(shl_stream *s, const shl_add_args *a)
{
    const shl_op op = SHL_OP_ADD;
    int64_t n = shl_tensor_elems(&a->x1);
    NEED(op, is_floats(&a->x1, n) && is_floats(&a->x2, n) && is_floats(&a->y, n));
    return call(s, op, a);
}

shl_code
shl_op_scale(shl_stream *s, const shl_scale_args *a)
{
    const shl_op op = SHL_OP_SCALE;
    NEED(op, is_floats(&a->x, shl_tensor_elems(&a->x)));
    return call(s, op, a);
}

shl_code
shl_op_cross_entropy(shl_stream *s, const shl_cross_entropy_args *a)
{
    const shl_op op = SHL_OP_CROSS_ENTROPY;
    NEED(op, shl_dtype_is_float(a->logits.dtype) && a->logits.n_dims == 2 && has_data(&a->logits));
    NEED(op, a->logits.dims[0] > 0 && a->logits.dims[1] > 0);
    NEED(op, is_stride(a->stride, a->logits.dims[1]));
    NEED(op, has_data(&a->targets) && is_flat(&a->targets, SHL_I32, a->logits.dims[0]));
    NEED(op, has_data(&a->loss_sum) && is_flat(&a->loss_sum, SHL_F64, 1));
    return call(s, op, a);
}

shl_code
shl_op_adamw(shl_stream *s, const shl_adamw_args *a)
{
    const shl_op op = SHL_OP_ADAMW;
    int64_t n = shl_tensor_elems(&a->param);
    NEED(op, is_floats(&a->param, n) && is_floats(&a->grad, n));
    NEED(op, is_floats(&a->m, n) && a->m.dtype != SHL_F16);
    NEED(op, is_floats(&a->v, n) && a->v.dtype != SHL_F16);
    NEED(op, !has_data(&a->rounded) || is_floats(&a->rounded, n));
    NEED(op, a->step >= 1);
    NEED(op, a->beta1 >= 0.0 && a->beta1 < 1.0 && a->beta2 >= 0.0 && a->beta2 < 1.0);
    return n == 0 ? SHL_OK : call(s, op, a);
}

bool
shl_rule_has_m(shl_optim_rule rule)
{
    return rule != SHL_RULE_ADAGRAD;
}

bool
shl_rule_has_v(shl_optim_rule rule)
{
    return rule == SHL_RULE_ADAM || rule == SHL_RULE_ADAGRAD || rule == SHL_RULE_LAMB;
}

/* A moment that the rule has, in fp32 or bf16, or none. */
static bool
is_moment(const shl_tensor *t, int64_t n, bool wanted)
{
    return wanted ? is_floats(t, n) && t->dtype != SHL_F16 : !has_data(t);
}

shl_code
shl_op_optim(shl_stream *s, const shl_optim_args *a)
{
    const shl_op op = SHL_OP_OPTIM;
    int64_t n = shl_tensor_elems(&a->param);
    bool without_m = a->rule == SHL_RULE_SGD && !has_data(&a->m);
    NEED(op, (int)a->rule >= 0 && a->rule < SHL_RULE_COUNT);
    NEED(op, is_floats(&a->param, n) && is_floats(&a->grad, n));
    NEED(op, is_moment(&a->m, n, shl_rule_has_m(a->rule) && !without_m));
    NEED(op, is_moment(&a->v, n, shl_rule_has_v(a->rule)));
    NEED(op,
         (!a->nesterov && !(a->dampening > 0.0)) || (a->rule == SHL_RULE_SGD && has_data(&a->m)));
    NEED(op, !has_data(&a->rounded) || (a->rule != SHL_RULE_LAMB && is_floats(&a->rounded, n)));
    NEED(op, a->step >= 1);
    NEED(op, a->beta1 >= 0.0 && a->beta1 < 1.0 && a->beta2 >= 0.0 && a->beta2 < 1.0);
    return n == 0 ? SHL_OK : call(s, op, a);
}

shl_code
shl_op_norm_max(shl_stream *s, const shl_norm_args *a)
{
    const shl_op op = SHL_OP_NORM_MAX;
    NEED(op, is_floats(&a->x, shl_tensor_elems(&a->x)));
    NEED(op, has_data(&a->out_max) && is_flat(&a->out_max, SHL_I32, 1));
    return call(s, op, a);
}

shl_code
shl_op_norm_sum(shl_stream *s, const shl_norm_args *a)
{
    const shl_op op = SHL_OP_NORM_SUM;
    NEED(op, is_floats(&a->x, shl_tensor_elems(&a->x)));
    NEED(op, has_data(&a->out_sum) && is_flat(&a->out_sum, SHL_I64, 2));
    NEED(op, a->quantum_log2 >= -700 && a->quantum_log2 <= 700);
    return call(s, op, a);
}

shl_code
shl_op_sum_ranks(shl_stream *s, const shl_sum_ranks_args *a)
{
    const shl_op op = SHL_OP_SUM_RANKS;
    NEED(op, is_floats(&a->dst, shl_tensor_elems(&a->dst)));
    NEED(op, a->n >= 1 && a->srcs != NULL);
    for (int i = 0; i < a->n; i++) {
        NEED(op, a->srcs[i] != NULL);
    }
    return call(s, op, a);
}

shl_code
shl_op_init(shl_stream *s, const shl_init_args *a)
{
    const shl_op op = SHL_OP_INIT;
    NEED(op, is_floats(&a->dst, shl_tensor_elems(&a->dst)));
    NEED(op, a->kind == SHL_INIT_CONST || a->kind == SHL_INIT_NORMAL);
    NEED(op, a->begin >= 0);
    return call(s, op, a);
}

static shl_code
check_rmsnorm(shl_op op, const shl_rmsnorm_args *a)
{
    shl_dtype dt = a->x.dtype;
    NEED(op, shl_dtype_is_float(dt) && has_data(&a->x) && a->x.n_dims == 2);
    NEED(op, a->x.dims[0] > 0 && a->x.dims[1] > 0);
    NEED(op, has_data(&a->w) && is_flat(&a->w, dt, a->x.dims[1]));
    NEED(op, has_data(&a->rstd) && is_flat(&a->rstd, SHL_F32, a->x.dims[0]));
    return SHL_OK;
}

shl_code
shl_op_rmsnorm_forward(shl_stream *s, const shl_rmsnorm_args *a)
{
    const shl_op op = SHL_OP_RMSNORM_FORWARD;
    SHL_TRY(check_rmsnorm(op, a));
    NEED(op, is_2d(&a->y, a->x.dtype, a->x.dims[0], a->x.dims[1]));
    NEED(op, a->eps >= 0.0f);
    return call(s, op, a);
}

shl_code
shl_op_rmsnorm_backward(shl_stream *s, const shl_rmsnorm_args *a)
{
    const shl_op op = SHL_OP_RMSNORM_BACKWARD;
    SHL_TRY(check_rmsnorm(op, a));
    int64_t rows = a->x.dims[0], cols = a->x.dims[1];
    NEED(op, is_2d(&a->dy, a->x.dtype, rows, cols));
    NEED(op, is_2d(&a->dx, a->x.dtype, rows, cols));
    NEED(op, !has_data(&a->dw) || is_flat(&a->dw, a->dw.dtype, cols));
    return call(s, op, a);
}

shl_code
shl_op_rope(shl_stream *s, const shl_rope_args *a)
{
    const shl_op op = SHL_OP_ROPE;
    NEED(op, shl_dtype_is_float(a->dtype) && a->q != NULL);
    NEED(op, a->rows > 0 && a->seq > 0 && a->rows % a->seq == 0 && a->first_position >= 0);
    NEED(op, a->heads > 0 && a->head_dim > 0 && a->head_dim % 2 == 0);
    NEED(op, a->q_stride >= a->heads * a->head_dim);
    NEED(op, a->k == NULL || (a->kv_heads > 0 && a->kv_stride >= a->kv_heads * a->head_dim));
    NEED(op, a->theta > 0.0);
    NEED(op, a->scaling.kind == SHL_ROPE_PLAIN || a->scaling.factor > 0.0);
    return call(s, op, a);
}

static shl_code
check_silu_mul(shl_op op, const shl_silu_mul_args *a)
{
    NEED(op, shl_dtype_is_float(a->dtype) && a->gate != NULL && a->up != NULL);
    NEED(op, a->rows > 0 && a->cols > 0 && a->stride >= a->cols);
    return SHL_OK;
}

shl_code
shl_op_silu_mul_forward(shl_stream *s, const shl_silu_mul_args *a)
{
    const shl_op op = SHL_OP_SILU_MUL_FORWARD;
    SHL_TRY(check_silu_mul(op, a));
    NEED(op, a->y != NULL);
    return call(s, op, a);
}

shl_code
shl_op_silu_mul_backward(shl_stream *s, const shl_silu_mul_args *a)
{
    const shl_op op = SHL_OP_SILU_MUL_BACKWARD;
    SHL_TRY(check_silu_mul(op, a));
    NEED(op, a->dy != NULL && a->dgate != NULL && a->dup != NULL);
    return call(s, op, a);
}

shl_code
shl_op_dropout(shl_stream *s, const shl_dropout_args *a)
{
    const shl_op op = SHL_OP_DROPOUT;
    int64_t n = shl_tensor_elems(&a->x);
    NEED(op, shl_dtype_is_float(a->x.dtype) && is_flat(&a->x, a->x.dtype, n));
    NEED(op, is_flat(&a->y, a->x.dtype, n));
    NEED(op, a->p >= 0.0 && a->p < 1.0 && a->first >= 0);
    return call(s, op, a);
}

static shl_code
check_same(const shl_tensor *dst, const shl_tensor *src)
{
    bool same = dst->dtype == src->dtype && shl_tensor_elems(dst) == shl_tensor_elems(src);
    if (!same) {
        return SHL_RAISE(SHL_E_BUG, "copy: tensors differ in dtype or size");
    }
    return SHL_OK;
}

shl_code
shl_op_copy(shl_stream *s, const shl_tensor *dst, const shl_tensor *src)
{
    SHL_TRY(check_same(dst, src));
    return shl_device_copy(s->device, dst->data, src->data, shl_tensor_bytes(dst), s);
}

shl_code
shl_op_cast(shl_stream *s, const shl_tensor *dst, const shl_tensor *src)
{
    const shl_op op = SHL_OP_CAST;
    int64_t n = shl_tensor_elems(dst);
    if (dst->dtype == src->dtype) {
        return shl_op_copy(s, dst, src);
    }
    NEED(op, is_floats(dst, n) && is_floats(src, n));
    shl_cast_args a = {.dst = *dst, .src = *src};
    return n == 0 ? SHL_OK : call(s, op, &a);
}

shl_code
shl_op_zero(shl_stream *s, const shl_tensor *dst)
{
    return shl_device_fill(s->device, dst->data, 0, shl_tensor_bytes(dst), s);
}

/* kernels/ops: what an op must do at least: useful floating point operations, and each tensor read
 * or written once. Recomputation and scratch are an implementation's business and not counted. */
#include "kernels/ops/ops.h"

static double
bytes_of(const shl_tensor *t)
{
    return t->data != NULL ? (double)shl_tensor_bytes(t) : 0.0;
}

/* Bytes of a gradient that is overwritten, or read and written. */
static double
bytes_into(const shl_tensor *t, bool accumulate)
{
    return bytes_of(t) * (accumulate ? 2.0 : 1.0);
}

static shl_cost
linear_cost(shl_op op, const shl_linear_args *a)
{
    shl_cost c = {0.0, 0.0};
    if (op == SHL_OP_LINEAR_FORWARD) {
        double rows = (double)a->x.dims[0], in = (double)a->x.dims[1], out = (double)a->y.dims[1];
        c.flops = 2.0 * rows * in * out + (a->b.data != NULL ? rows * out : 0.0);
        c.bytes = bytes_of(&a->x) + bytes_of(&a->w) + bytes_of(&a->b) + bytes_of(&a->y);
        return c;
    }
    double rows = (double)a->dy.dims[0], out = (double)a->dy.dims[1];
    if (op == SHL_OP_LINEAR_BACKWARD_INPUT) {
        c.flops = 2.0 * rows * out * (double)a->dx.dims[1];
        c.bytes = bytes_of(&a->dy) + bytes_of(&a->w) + bytes_into(&a->dx, a->accumulate_dx);
        return c;
    }
    double in = (double)a->x.dims[1];
    c.flops = a->dw.data != NULL ? 2.0 * rows * out * in : 0.0;
    c.flops += a->db.data != NULL ? rows * out : 0.0;
    c.bytes =
        bytes_of(&a->dy) + bytes_into(&a->dw, a->accumulate) + bytes_into(&a->db, a->accumulate);
    c.bytes += a->dw.data != NULL ? bytes_of(&a->x) : 0.0;
    return c;
}

static shl_cost
layernorm_cost(bool backward, const shl_layernorm_args *a)
{
    double n = (double)shl_tensor_elems(&a->x);
    double stats = bytes_of(&a->mean) + bytes_of(&a->rstd);
    shl_cost c = {7.0 * n, 0.0};
    if (!backward) {
        c.bytes = bytes_of(&a->x) + bytes_of(&a->w) + bytes_of(&a->b) + bytes_of(&a->y) + stats;
        return c;
    }
    c.flops = 14.0 * n;
    c.bytes = bytes_of(&a->x) + bytes_of(&a->w) + bytes_of(&a->dy) + stats +
              bytes_into(&a->dx, a->accumulate_dx) + bytes_into(&a->dw, a->accumulate) +
              bytes_into(&a->db, a->accumulate);
    return c;
}

static shl_cost
rmsnorm_cost(bool backward, const shl_rmsnorm_args *a)
{
    double n = (double)shl_tensor_elems(&a->x), in = bytes_of(&a->x) + bytes_of(&a->w);
    shl_cost c = {4.0 * n, in + bytes_of(&a->y) + bytes_of(&a->rstd)};
    if (backward) {
        c.flops = (a->dw.data != NULL ? 11.0 : 9.0) * n;
        c.bytes = in + bytes_of(&a->dy) + bytes_of(&a->rstd) +
                  bytes_into(&a->dx, a->accumulate_dx) + bytes_into(&a->dw, a->accumulate);
    }
    return c;
}

/* Six operations per rotated pair; the angles are a table's affair. */
static shl_cost
rope_cost(const shl_rope_args *a)
{
    double heads = (double)(a->heads + (a->k != NULL ? a->kv_heads : 0));
    double n = (double)(a->rows * a->head_dim) * heads;
    shl_cost c = {3.0 * n, 2.0 * n * (double)shl_dtype_bytes(a->dtype)};
    return c;
}

static shl_cost
silu_mul_cost(bool backward, const shl_silu_mul_args *a)
{
    double n = (double)(a->rows * a->cols), elem = (double)shl_dtype_bytes(a->dtype);
    shl_cost c = {n * (backward ? 24.0 : 16.0), n * elem * (backward ? 5.0 : 3.0)};
    return c;
}

/* Ten rounds of about ten integer operations make four words. */
static shl_cost
dropout_cost(const shl_dropout_args *a)
{
    shl_cost c = {25.0 * (double)shl_tensor_elems(&a->x), 2.0 * bytes_of(&a->x)};
    return c;
}

/* Rows of wte that are read: at most one per token, at most all of them. */
static shl_cost
embedding_cost(bool backward, const shl_embedding_args *a)
{
    double tokens = bytes_of(&a->tokens);
    shl_cost c = {0.0, tokens};
    if (!backward) {
        double y = bytes_of(&a->y), wte = bytes_of(&a->wte);
        double place = bytes_of(&a->wpe) / (a->wpe.data != NULL ? (double)a->wpe.dims[0] : 1.0);
        c.flops = a->wpe.data != NULL ? (double)shl_tensor_elems(&a->y) : 0.0;
        c.bytes += y + (y < wte ? y : wte) + place * (double)a->seq;
        return c;
    }
    double n = (double)shl_tensor_elems(&a->dy), dy = bytes_of(&a->dy);
    double uses = (a->dwte.data != NULL ? 1.0 : 0.0) + (a->dwpe.data != NULL ? 1.0 : 0.0);
    c.flops = uses * n;
    c.bytes += dy + uses * 2.0 * dy;
    c.bytes += a->accumulate_wte ? 0.0 : bytes_of(&a->dwte);
    c.bytes += a->accumulate_wpe ? 0.0 : bytes_of(&a->dwpe);
    return c;
}

/* Two products over T (T + 1) / 2 pairs forward, four backward: the recomputed scores are not
 * useful work. */
static shl_cost
attention_cost(bool backward, const shl_attention_args *a)
{
    double heads = (double)(a->batch * a->heads), seq = (double)a->seq;
    double pairs = heads * seq * (seq + 1.0) / 2.0;
    double elem = (double)shl_dtype_bytes(a->dtype), dim = (double)a->head_dim;
    double q = heads * seq * dim * elem;
    double kv = q * (double)a->kv_heads / (double)a->heads;
    double lse = heads * seq * 4.0;
    shl_cost c = {pairs * (4.0 * dim + 5.0), 2.0 * q + 2.0 * kv + lse};
    if (backward) {
        c.flops = pairs * (8.0 * dim + 8.0);
        c.bytes = 4.0 * q + 4.0 * kv + lse;
    }
    c.flops += a->dropout_p > 0.0 ? 25.0 * pairs : 0.0; /* a random word each */
    return c;
}

static shl_cost
elementwise_cost(shl_op op, const void *args)
{
    shl_cost c = {0.0, 0.0};
    if (op == SHL_OP_ADD) {
        const shl_add_args *a = args;
        c.flops = (double)shl_tensor_elems(&a->y);
        c.bytes = bytes_of(&a->x1) + bytes_of(&a->x2) + bytes_of(&a->y);
    } else if (op == SHL_OP_SCALE) {
        const shl_scale_args *a = args;
        c.flops = (double)shl_tensor_elems(&a->x);
        c.bytes = 2.0 * bytes_of(&a->x);
    } else if (op == SHL_OP_SUM_RANKS) {
        const shl_sum_ranks_args *a = args;
        double adds = (double)a->n - (a->add_to_dst ? 0.0 : 1.0);
        c.flops = adds * (double)shl_tensor_elems(&a->dst);
        c.bytes = bytes_of(&a->dst) * ((double)a->n + (a->add_to_dst ? 2.0 : 1.0));
    } else if (op == SHL_OP_INIT) {
        const shl_init_args *a = args;
        c.flops = a->kind == SHL_INIT_NORMAL ? 60.0 * (double)shl_tensor_elems(&a->dst) : 0.0;
        c.bytes = bytes_of(&a->dst);
    } else if (op == SHL_OP_CAST) {
        const shl_cast_args *a = args;
        c.bytes = bytes_of(&a->src) + bytes_of(&a->dst);
    } else {
        const shl_gelu_args *a = args;
        bool backward = op == SHL_OP_GELU_BACKWARD;
        c.flops = (backward ? 30.0 : 20.0) * (double)shl_tensor_elems(&a->x);
        c.bytes = bytes_of(&a->x) * (backward ? 3.0 : 2.0);
    }
    return c;
}

static shl_cost
loss_cost(const shl_cross_entropy_args *a)
{
    double n = (double)shl_tensor_elems(&a->logits);
    double bytes = bytes_of(&a->logits) * (a->want_grad ? 2.0 : 1.0) + bytes_of(&a->targets);
    shl_cost c = {n * (a->want_grad ? 14.0 : 13.0), bytes};
    return c;
}

static shl_cost
adamw_cost(const shl_adamw_args *a)
{
    double bytes = 2.0 * (bytes_of(&a->param) + bytes_of(&a->m) + bytes_of(&a->v)) +
                   bytes_of(&a->grad) + bytes_of(&a->rounded);
    shl_cost c = {15.0 * (double)shl_tensor_elems(&a->param), bytes};
    return c;
}

/* LAMB's half leaves the parameter and writes the gradient instead. */
static shl_cost
optim_cost(const shl_optim_args *a)
{
    static const double flops[SHL_RULE_COUNT] = {[SHL_RULE_ADAM] = 16.0,
                                                 [SHL_RULE_LION] = 9.0,
                                                 [SHL_RULE_ADAGRAD] = 9.0,
                                                 [SHL_RULE_SGD] = 7.0,
                                                 [SHL_RULE_LAMB] = 15.0};
    double bytes = 2.0 * (bytes_of(&a->m) + bytes_of(&a->v)) + bytes_of(&a->param) +
                   bytes_of(&a->grad) + bytes_of(&a->rounded);
    bytes += a->rule == SHL_RULE_LAMB ? bytes_of(&a->grad) : bytes_of(&a->param);
    shl_cost c = {flops[a->rule] * (double)shl_tensor_elems(&a->param), bytes};
    return c;
}

static shl_cost
norm_cost(const shl_norm_args *a)
{
    shl_cost c = {2.0 * (double)shl_tensor_elems(&a->x), bytes_of(&a->x)};
    return c;
}

shl_cost
shl_op_cost(shl_op op, const void *args)
{
    switch (op) {
    case SHL_OP_LINEAR_FORWARD:
    case SHL_OP_LINEAR_BACKWARD_INPUT:
    case SHL_OP_LINEAR_BACKWARD_WEIGHT:
        return linear_cost(op, args);
    case SHL_OP_LAYERNORM_FORWARD:
    case SHL_OP_LAYERNORM_BACKWARD:
        return layernorm_cost(op == SHL_OP_LAYERNORM_BACKWARD, args);
    case SHL_OP_EMBEDDING_FORWARD:
    case SHL_OP_EMBEDDING_BACKWARD:
        return embedding_cost(op == SHL_OP_EMBEDDING_BACKWARD, args);
    case SHL_OP_ATTENTION_FORWARD:
    case SHL_OP_ATTENTION_BACKWARD:
        return attention_cost(op == SHL_OP_ATTENTION_BACKWARD, args);
    case SHL_OP_CROSS_ENTROPY:
        return loss_cost(args);
    case SHL_OP_ADAMW:
        return adamw_cost(args);
    case SHL_OP_OPTIM:
        return optim_cost(args);
    case SHL_OP_NORM_MAX:
    case SHL_OP_NORM_SUM:
        return norm_cost(args);
    case SHL_OP_GELU_FORWARD:
    case SHL_OP_GELU_BACKWARD:
    case SHL_OP_ADD:
    case SHL_OP_SCALE:
    case SHL_OP_SUM_RANKS:
    case SHL_OP_INIT:
    case SHL_OP_CAST:
        return elementwise_cost(op, args);
    case SHL_OP_RMSNORM_FORWARD:
    case SHL_OP_RMSNORM_BACKWARD:
        return rmsnorm_cost(op == SHL_OP_RMSNORM_BACKWARD, args);
    case SHL_OP_ROPE:
        return rope_cost(args);
    case SHL_OP_SILU_MUL_FORWARD:
    case SHL_OP_SILU_MUL_BACKWARD:
        return silu_mul_cost(op == SHL_OP_SILU_MUL_BACKWARD, args);
    case SHL_OP_DROPOUT:
        return dropout_cost(args);
    case SHL_OP_COUNT:
        break;
    }
    SHL_ASSERT(op < SHL_OP_COUNT);
    shl_cost none = {0.0, 0.0};
    return none;
}

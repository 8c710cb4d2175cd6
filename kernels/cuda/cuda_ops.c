/* kernels/cuda: the op table: each slot hands its arguments to the object's launcher with the stream.
 * The dispatchers of kernels/ops have checked shapes and taken the scratch already. */
#include "kernels/cuda/cuda_impl.h"

static shl_code
missing(const cuda_impl *c, shl_op op)
{
    SHL_RAISE(SHL_E_USAGE, "%s does not run on this device", shl_op_name(op));
    shl_err_because("the CUDA object (%s) has no kernel for it", c->table->name);
    return shl_err_advice("device cpu");
}

static shl_code
launch(shl_op op, shl_stream *s, const void *args, void *work)
{
    const cuda_impl *c = cuda_of(s->device);
    shl_cuda_op_fn fn = c->table->op[op];
    shl_cuda_launch l = {.libs = c->libs,
                         .pool = c->pool,
                         .pool_bytes = c->pool_bytes,
                         .faults = c->faults,
                         .info = &c->info,
                         .choice = {.tf32 = s->device->config.tf32,
                                    .fused_attention = s->device->config.fused_attention}};
    bool on_host = false;
    SHL_TRY(shl_cuda_side(s->device, op, args, &on_host));
    if (on_host) {
        return shl_cuda_host_op(op, s, args, work);
    }
    if (fn == NULL) {
        return missing(c, op);
    }
    SHL_TRY(shl_cuda_begin(s, &l.stream));
    int status = fn(&l, args, work);
    if (status != 0) {
        SHL_RAISE(status == SHL_CUDA_UNSUPPORTED ? SHL_E_USAGE : SHL_E_SYSTEM,
                  "%s was not launched on the device", shl_op_name(op));
        return shl_err_because("status %d: %s", status, c->table->error_text(status));
    }
    return SHL_OK;
}

#define CUDA_OP(name, op)                                                                          \
    static shl_code name(shl_stream *s, const void *args, void *work)                              \
    {                                                                                              \
        return launch(op, s, args, work);                                                          \
    }

/* One row per slot: function, op. */
#define CUDA_OPS(X)                                                                                \
    X(linear_forward, SHL_OP_LINEAR_FORWARD)                                                       \
    X(linear_backward_input, SHL_OP_LINEAR_BACKWARD_INPUT)                                         \
    X(linear_backward_weight, SHL_OP_LINEAR_BACKWARD_WEIGHT)                                       \
    X(layernorm_forward, SHL_OP_LAYERNORM_FORWARD)                                                 \
    X(layernorm_backward, SHL_OP_LAYERNORM_BACKWARD)                                               \
    X(gelu_forward, SHL_OP_GELU_FORWARD)                                                           \
    X(gelu_backward, SHL_OP_GELU_BACKWARD)                                                         \
    X(embedding_forward, SHL_OP_EMBEDDING_FORWARD)                                                 \
    X(embedding_backward, SHL_OP_EMBEDDING_BACKWARD)                                               \
    X(attention_forward, SHL_OP_ATTENTION_FORWARD)                                                 \
    X(attention_backward, SHL_OP_ATTENTION_BACKWARD)                                               \
    X(add, SHL_OP_ADD)                                                                             \
    X(scale, SHL_OP_SCALE)                                                                         \
    X(cross_entropy, SHL_OP_CROSS_ENTROPY)                                                         \
    X(adamw, SHL_OP_ADAMW)                                                                         \
    X(norm_max, SHL_OP_NORM_MAX)                                                                   \
    X(norm_sum, SHL_OP_NORM_SUM)                                                                   \
    X(sum_ranks, SHL_OP_SUM_RANKS)                                                                 \
    X(init, SHL_OP_INIT)                                                                           \
    X(rmsnorm_forward, SHL_OP_RMSNORM_FORWARD)                                                     \
    X(rmsnorm_backward, SHL_OP_RMSNORM_BACKWARD)                                                   \
    X(rope, SHL_OP_ROPE)                                                                           \
    X(silu_mul_forward, SHL_OP_SILU_MUL_FORWARD)                                                   \
    X(silu_mul_backward, SHL_OP_SILU_MUL_BACKWARD)                                                 \
    X(dropout, SHL_OP_DROPOUT)                                                                     \
    X(cast, SHL_OP_CAST)                                                                           \
    X(optim, SHL_OP_OPTIM)

CUDA_OPS(CUDA_OP)

#define CUDA_ROW(name, op) [op] = name,
const shl_op_table shl_cuda_op_table = {
    .kind = "cuda",
    .fn = {CUDA_OPS(CUDA_ROW)},
};

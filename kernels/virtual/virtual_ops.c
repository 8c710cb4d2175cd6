/* kernels/virtual: the op table: each slot charges the clock of its stream and touches nothing. The
 * dispatchers of kernels/ops have checked shapes and taken the scratch already. */
#include "kernels/virtual/virtual_device.h"

static shl_code
charge(shl_op op, shl_stream *s, const void *args)
{
    shl_cost cost = shl_op_cost(op, args);
    shl_virtual_charge(s, cost.flops, cost.bytes);
    return SHL_OK;
}

#define VIRTUAL_OP(name, op)                                                                       \
    static shl_code name(shl_stream *s, const void *args, void *work)                              \
    {                                                                                              \
        SHL_UNUSED(work);                                                                          \
        return charge(op, s, args);                                                                \
    }

/* One row per slot: function, op. */
#define VIRTUAL_OPS(X)                                                                             \
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

VIRTUAL_OPS(VIRTUAL_OP)

#define VIRTUAL_ROW(name, op) [op] = name,
const shl_op_table shl_virtual_op_table = {
    .kind = "virtual",
    .fn = {VIRTUAL_OPS(VIRTUAL_ROW)},
};

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

#define VIRTUAL_OP(op, name)                                                                       \
    static shl_code name(shl_stream *s, const void *args, void *work)                              \
    {                                                                                              \
        SHL_UNUSED(work);                                                                          \
        return charge(SHL_OP_##op, s, args);                                                       \
    }
SHL_OPS(VIRTUAL_OP)

#define VIRTUAL_ROW(op, name) [SHL_OP_##op] = name,
const shl_op_table shl_virtual_op_table = {
    .kind = "virtual",
    .fn = {SHL_OPS(VIRTUAL_ROW)},
};

/* kernels/cpu: the op table of one instruction set. */
#include "kernels/cpu/cpu_slots.h"
#include "kernels/cpu/cpu_table.h"

#define X(op, name) [SHL_OP_##op] = SHL_K(shl_cpu_##name),
const shl_op_table SHL_K(shl_cpu_table) = {.kind = "cpu", .fn = {SHL_OPS(X)}};
#undef X

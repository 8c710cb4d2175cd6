/* kernels/cuda/object: the table of launchers by op, the same for a GPU and for the emulation. */
#include "kernels/cuda/object/cuda_launchers.h"

#define LAUNCHER_ROW(op, name) [SHL_OP_##op] = shl_cuda_##name,
const shl_cuda_op_fn shl_cuda_launcher_table[SHL_OP_COUNT] = {SHL_OPS(LAUNCHER_ROW)};

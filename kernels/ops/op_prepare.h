/* kernels/ops: the halves of op cases that op_run.c and op_prepare.c share; not for other rooms. */
#ifndef SHL_OPS_OP_PREPARE_H
#define SHL_OPS_OP_PREPARE_H

#include "kernels/ops/op_cases.h"

/* Adds a tensor (data of t ignored), allocated, its exact values drawn with `std` (outputs
 * poisoned). Does nothing but keep its place when *code is an error already. */
shl_op_operand *shl_op_run_add(shl_op_run *run, shl_code *code, const char *name, shl_op_role role,
                               shl_tensor t, double std);

/* Adds the tensors of run's case, sets its args and computes the reference. */
shl_code shl_op_run_prepare(shl_op_run *run) SHL_MUST_USE;

#endif

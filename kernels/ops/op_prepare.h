/* kernels/ops: the halves of op cases that op_run.c and op_prepare.c share; not for other rooms. */
#ifndef SHL_OPS_OP_PREPARE_H
#define SHL_OPS_OP_PREPARE_H

#include "kernels/ops/op_cases.h"

/* Adds a tensor (data of t ignored), allocated, its exact values drawn with `std` (outputs
 * poisoned). Does nothing but keep its place when *code is an error already. */
shl_op_operand *shl_op_run_add(shl_op_run *run, shl_code *code, const char *name, shl_op_role role,
                               shl_tensor t, double std);

/* The same of a matrix whose rows the case has apart, or, in a case for timing, as the device likes them. */
shl_op_operand *shl_op_run_add_rows(shl_op_run *run, shl_code *code, const char *name,
                                    shl_op_role role, shl_tensor t, double std);

/* ---- small words of the prepare functions ---- */

static inline shl_tensor
vec_as(shl_dtype dtype, int64_t n)
{
    return shl_tensor_1d(NULL, dtype, n);
}

static inline shl_tensor
mat_as(shl_dtype dtype, int64_t rows, int64_t cols)
{
    return shl_tensor_2d(NULL, dtype, rows, cols);
}

static inline shl_tensor
vec(int64_t n)
{
    return vec_as(SHL_F32, n);
}

static inline shl_tensor
mat(int64_t rows, int64_t cols)
{
    return mat_as(SHL_F32, rows, cols);
}

static inline bool
has(const shl_op_run *run, unsigned flag)
{
    return (run->c->flags & flag) != 0;
}

/* Type of a case's activations and weights; of its gradients of parameters. */
static inline shl_dtype
case_dtype(const shl_op_run *run)
{
    if (has(run, SHL_CASE_BF16)) {
        return SHL_BF16;
    }
    return has(run, SHL_CASE_F16) ? SHL_F16 : SHL_F32;
}

static inline shl_dtype
case_grad_dtype(const shl_op_run *run)
{
    return has(run, SHL_CASE_MIXED) ? case_dtype(run) : SHL_F32;
}

/* Role of a gradient that the case may add to. */
static inline shl_op_role
grad_role(const shl_op_run *run)
{
    return has(run, SHL_CASE_ACCUMULATE) ? SHL_ROLE_INOUT : SHL_ROLE_OUT;
}

/* True when the reference is to be computed. */
static inline bool
ready(const shl_op_run *run, shl_code code)
{
    return code == SHL_OK && run->values;
}

/* The cases of op_prepare_llama.c. */
shl_code shl_op_prepare_rmsnorm(shl_op_run *run) SHL_MUST_USE;
shl_code shl_op_prepare_rope(shl_op_run *run) SHL_MUST_USE;
shl_code shl_op_prepare_silu_mul(shl_op_run *run) SHL_MUST_USE;
shl_code shl_op_prepare_dropout(shl_op_run *run) SHL_MUST_USE;

/* x as o's type holds it; 0 for types that are no floats. */
double shl_op_run_round(const shl_op_operand *o, double x);

/* Adds the tensors of run's case, sets its args and computes the reference. */
shl_code shl_op_run_prepare(shl_op_run *run) SHL_MUST_USE;

/* kernels/ops/op_prepare_stream: the ops that stream over flat arrays. */
shl_code shl_op_prepare_adamw(shl_op_run *run) SHL_MUST_USE;
shl_code shl_op_prepare_norm(shl_op_run *run) SHL_MUST_USE;
shl_code shl_op_prepare_sum_ranks(shl_op_run *run) SHL_MUST_USE;
shl_code shl_op_prepare_elementwise(shl_op_run *run) SHL_MUST_USE;
shl_code shl_op_prepare_init(shl_op_run *run) SHL_MUST_USE;
shl_code shl_op_prepare_cast(shl_op_run *run) SHL_MUST_USE;

/* kernels/ops/op_prepare_optim: the optimizers beside AdamW. */
shl_code shl_op_prepare_optim(shl_op_run *run) SHL_MUST_USE;

#endif

/* kernels/ops: op cases: one object serves the value check against a double reference on every
 * device, and the benchmarks (bytes and operations through shl_op_cost of its args). */
#ifndef SHL_OPS_OP_CASES_H
#define SHL_OPS_OP_CASES_H

#include "kernels/ops/ops.h"

#define SHL_CASE_OI 1u         /* weight order [O, I] */
#define SHL_CASE_ACCUMULATE 2u /* adds to what the gradients hold */
#define SHL_CASE_PLAIN                                                                             \
    4u                     /* linear: no bias; embedding: no positions; loss: no gradient;
                                  rmsnorm: no dw; optim: SGD without momentum; rope: the inverse; silu_mul: separate, in place */
#define SHL_CASE_LARGE 8u  /* great inputs: offsets of 1e4, scores of hundreds, far positions */
#define SHL_CASE_SPEED 16u /* sized for timing: no reference is computed */
#define SHL_CASE_BF16 32u  /* activations and weights in bf16 instead of fp32 */
#define SHL_CASE_F16 64u   /* the same in fp16 */
#define SHL_CASE_MIXED                                                                             \
    128u /* gradients of parameters in that type too; add: three types; adamw: a
                                  parameter, and moments in bf16; cast: from 16 bits */

#define SHL_CASE_DROPOUT 256u /* attention: a fifth of the weights is dropped */
#define SHL_CASE_STRIDE 512u  /* linear: rows of y and dy lie apart; loss: those of the logits */

/* size by op: linear R I O; layernorm R C; gelu, add, scale, adamw, norms, init, cast N; embedding B
 * T C V; attention B T NH NK D; cross-entropy R V; sum_ranks N ranks; rmsnorm R C; rope B T NH NK D;
 * silu_mul R I; dropout R C; optim N rule variant:
 * 1 uncorrected moments, SGD: Nesterov, 2 SGD: dampening; adamw the same behind N. */
typedef struct shl_op_case {
    const char *name;
    shl_op op;
    int64_t size[5];
    unsigned flags;
} shl_op_case;

/* The table; static storage. */
const shl_op_case *shl_op_cases(size_t *n);

typedef enum shl_op_role { SHL_ROLE_IN = 0, SHL_ROLE_OUT, SHL_ROLE_INOUT } shl_op_role;

/* One tensor of a case. An output may differ from `want` by abs_tol times the tensor's largest
 * |want| plus rel_tol times the element's own, before it is rounded to its type: a 16-bit output may
 * be off by half a unit in the last place more, and where both tolerances are 0 must be the rounded
 * `want`. */
typedef struct shl_op_operand {
    const char *name;
    shl_op_role role;
    shl_tensor tensor; /* on the device, `offset` elements behind the start of its buffer */
    int64_t stride;    /* elements between its rows, NaN between them; 0: none */
    shl_buf buf;
    double *value; /* f64 [elems]: the exact input */
    double *want;  /* f64 [elems]: the reference output; NULL for inputs and without a reference */
    double abs_tol, rel_tol;
} shl_op_operand;

#define SHL_CASE_MAX_OPERANDS 12
#define SHL_CASE_MAX_RANKS 8

typedef union shl_op_any_args {
    shl_linear_args linear;
    shl_layernorm_args layernorm;
    shl_gelu_args gelu;
    shl_embedding_args embedding;
    shl_attention_args attention;
    shl_add_args add;
    shl_scale_args scale;
    shl_cross_entropy_args loss;
    shl_adamw_args adamw;
    shl_norm_args norm;
    shl_sum_ranks_args sum;
    shl_init_args init;
    shl_rmsnorm_args rmsnorm;
    shl_rope_args rope;
    shl_silu_mul_args silu;
    shl_dropout_args dropout;
    shl_cast_args cast;
    shl_optim_args optim;
} shl_op_any_args;

typedef struct shl_op_run {
    const shl_op_case *c;
    shl_device *device;
    shl_op_any_args args;
    const void *srcs[SHL_CASE_MAX_RANKS];
    shl_op_operand operands[SHL_CASE_MAX_OPERANDS];
    int n_operands;
    uint64_t seed;
    int64_t offset;
    bool values; /* false: a device without bytes, or a case for timing */
} shl_op_run;

/* Allocates the tensors of c on d (tag act), each `offset` elements behind an aligned address, fills
 * the inputs from seed and computes the reference. Owner: caller, shl_op_run_close. c borrowed. */
shl_code shl_op_run_open(shl_device *d, const shl_op_case *c, uint64_t seed, int64_t offset,
                         shl_op_run **out) SHL_MUST_USE;
void shl_op_run_close(shl_op_run **run);

/* Uploads the inputs again (in-place ops spoil theirs). */
shl_code shl_op_run_reset(shl_op_run *run) SHL_MUST_USE;

/* Bytes from an operand's first element to behind its last row, with what lies between rows. */
size_t shl_op_operand_bytes(const shl_op_operand *o);

/* Calls the op once on the compute stream. */
shl_code shl_op_run_call(shl_op_run *run) SHL_MUST_USE;

/* Compares every output with its reference, and what lies between rows with what was put there. Errors:
 * SHL_E_VERIFY naming case, tensor, element and both values. *worst (may be NULL) is the largest difference as a part of what is allowed. */
shl_code shl_op_run_check(const shl_op_run *run, double *worst) SHL_MUST_USE;

#endif

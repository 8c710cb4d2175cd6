/* kernels/ops: the same for the ops that stream over flat arrays: tensors, args and reference of a
 * case. */
#include "kernels/ops/op_prepare.h"

#include <math.h>
#include <string.h>

#include "kernels/base/rng.h"
#include "kernels/ops/op_reference.h"

/* MIXED: a parameter in 16 bits with moments in bf16; else an fp32 one, its gradient in the case's
 * type and, where that is not fp32, a rounded copy in it. */
shl_code
shl_op_prepare_adamw(shl_op_run *run)
{
    shl_code code = SHL_OK;
    shl_dtype dt = case_dtype(run);
    bool mixed = has(run, SHL_CASE_MIXED);
    shl_dtype moments = mixed ? SHL_BF16 : SHL_F32;
    int64_t n = run->c->size[0];
    shl_op_operand *p =
        shl_op_run_add(run, &code, "param", SHL_ROLE_INOUT, vec_as(mixed ? dt : SHL_F32, n), 0.02);
    shl_op_operand *g = shl_op_run_add(run, &code, "grad", SHL_ROLE_IN, vec_as(dt, n), 0.1);
    shl_op_operand *m = shl_op_run_add(run, &code, "m", SHL_ROLE_INOUT, vec_as(moments, n), 0.05);
    shl_op_operand *v = shl_op_run_add(run, &code, "v", SHL_ROLE_INOUT, vec_as(moments, n), 0.1);
    shl_adamw_args *a = &run->args.adamw;
    *a = (shl_adamw_args){.param = p->tensor,
                          .grad = g->tensor,
                          .m = m->tensor,
                          .v = v->tensor,
                          .lr = 1e-3,
                          .beta1 = 0.9,
                          .beta2 = 0.95,
                          .eps = 1e-8,
                          .weight_decay = 0.1,
                          .grad_scale = 0.37,
                          .step = 3,
                          .uncorrected = run->c->size[1] == 1};
    shl_op_operand *rounded = NULL;
    if (dt != SHL_F32 && !mixed) {
        rounded = shl_op_run_add(run, &code, "rounded", SHL_ROLE_OUT, vec_as(dt, n), 0.0);
        rounded->abs_tol = 1e-6;
        a->rounded = rounded->tensor;
    }
    for (int64_t i = 0; ready(run, code) && i < n; i++) {
        v->value[i] = shl_op_run_round(v, v->value[i] * v->value[i]);
        v->want[i] = v->value[i];
        shl_ref_adamw(a, &p->want[i], g->value[i], &m->want[i], &v->want[i]);
        if (rounded != NULL) {
            rounded->want[i] = p->want[i];
        }
    }
    p->abs_tol = 1e-6;
    m->abs_tol = 1e-6;
    v->abs_tol = 1e-6;
    return code;
}

shl_code
shl_op_prepare_norm(shl_op_run *run)
{
    shl_code code = SHL_OK;
    shl_dtype dt = case_dtype(run);
    int64_t n = run->c->size[0];
    shl_op_operand *x = shl_op_run_add(run, &code, "x", SHL_ROLE_IN, vec_as(dt, n), 0.7);
    shl_op_operand *max =
        shl_op_run_add(run, &code, "out_max", SHL_ROLE_INOUT, shl_tensor_1d(NULL, SHL_I32, 1), 0.0);
    shl_op_operand *sum =
        shl_op_run_add(run, &code, "out_sum", SHL_ROLE_INOUT, shl_tensor_1d(NULL, SHL_I64, 2), 0.0);
    run->args.norm = (shl_norm_args){
        .x = x->tensor, .out_max = max->tensor, .out_sum = sum->tensor, .quantum_log2 = -30};
    max->abs_tol = 0.0;
    sum->abs_tol = 0.0; /* the sum stays below 2^53, so that a double holds it */
    float top = 0.0f;
    for (int64_t i = 0; ready(run, code) && i < n; i++) {
        if (run->c->op == SHL_OP_NORM_SUM) {
            sum->want[0] += rint(x->value[i] * x->value[i] * 1073741824.0);
        } else {
            top = fmaxf(top, fabsf((float)x->value[i]));
        }
    }
    if (ready(run, code)) {
        int32_t bits = 0;
        memcpy(&bits, &top, sizeof(bits));
        max->want[0] = (double)bits;
    }
    return code;
}

shl_code
shl_op_prepare_sum_ranks(shl_op_run *run)
{
    static const char *const names[SHL_CASE_MAX_RANKS] = {"rank0", "rank1", "rank2", "rank3",
                                                          "rank4", "rank5", "rank6", "rank7"};
    shl_code code = SHL_OK;
    shl_dtype dt = case_dtype(run);
    int64_t n = run->c->size[0];
    int ranks = (int)run->c->size[1];
    bool add = has(run, SHL_CASE_ACCUMULATE);
    shl_op_operand *dst = shl_op_run_add(run, &code, "dst", grad_role(run), vec_as(dt, n), 1.0);
    dst->abs_tol = 0.0;
    for (int k = 0; k < ranks; k++) {
        const shl_op_operand *x =
            shl_op_run_add(run, &code, names[k], SHL_ROLE_IN, vec_as(dt, n), 1.0);
        run->srcs[k] = x->tensor.data;
    }
    for (int64_t i = 0; ready(run, code) && i < n; i++) {
        float total = (float)run->operands[1].value[i];
        for (int k = 1; k < ranks; k++) {
            total += (float)run->operands[1 + k].value[i];
        }
        dst->want[i] = (double)(add ? (float)dst->value[i] + total : total);
    }
    run->args.sum =
        (shl_sum_ranks_args){.dst = dst->tensor, .srcs = run->srcs, .n = ranks, .add_to_dst = add};
    return code;
}

shl_code
shl_op_prepare_elementwise(shl_op_run *run)
{
    shl_code code = SHL_OK;
    shl_dtype dt = case_dtype(run);
    int64_t n = run->c->size[0];
    if (run->c->op == SHL_OP_SCALE) {
        shl_op_operand *x = shl_op_run_add(run, &code, "x", SHL_ROLE_INOUT, vec_as(dt, n), 1.0);
        run->args.scale = (shl_scale_args){.x = x->tensor, .factor = 0.3f};
        for (int64_t i = 0; ready(run, code) && i < n; i++) {
            x->want[i] = (double)((float)x->value[i] * 0.3f);
        }
        x->abs_tol = 0.0;
        return code;
    }
    shl_op_operand *x1 = shl_op_run_add(run, &code, "x1", SHL_ROLE_IN, vec_as(dt, n), 1.0);
    shl_dtype other = has(run, SHL_CASE_MIXED) ? SHL_F16 : dt;
    shl_op_operand *x2 = shl_op_run_add(run, &code, "x2", SHL_ROLE_IN, vec_as(other, n), 1.0);
    shl_op_operand *y = shl_op_run_add(run, &code, "y", SHL_ROLE_OUT,
                                       vec_as(has(run, SHL_CASE_MIXED) ? SHL_F32 : dt, n), 1.0);
    run->args.add = (shl_add_args){.x1 = x1->tensor, .x2 = x2->tensor, .y = y->tensor};
    for (int64_t i = 0; ready(run, code) && i < n; i++) {
        y->want[i] = (double)((float)x1->value[i] + (float)x2->value[i]);
    }
    y->abs_tol = 0.0;
    return code;
}

shl_code
shl_op_prepare_init(shl_op_run *run)
{
    shl_code code = SHL_OK;
    shl_dtype dt = case_dtype(run);
    int64_t n = run->c->size[0];
    bool constant = has(run, SHL_CASE_PLAIN);
    shl_op_operand *dst = shl_op_run_add(run, &code, "dst", SHL_ROLE_OUT, vec_as(dt, n), 0.0);
    run->args.init = (shl_init_args){.dst = dst->tensor,
                                     .kind = constant ? SHL_INIT_CONST : SHL_INIT_NORMAL,
                                     .value = 1.25,
                                     .std = 0.02,
                                     .seed = run->seed,
                                     .stream = 9,
                                     .begin = 123};
    for (int64_t i = 0; ready(run, code) && i < n; i++) {
        float z = shl_rng_normal(run->seed, 9, (uint64_t)(123 + i));
        dst->want[i] = constant ? 1.25 : (double)(0.02f * z);
    }
    dst->abs_tol = 0.0;
    return code;
}

/* From fp32 to the case's type; MIXED: from that to fp32, or between the two when both are named. */
shl_code
shl_op_prepare_cast(shl_op_run *run)
{
    shl_code code = SHL_OK;
    shl_dtype dt = case_dtype(run), wide = SHL_F32;
    int64_t n = run->c->size[0];
    bool back = has(run, SHL_CASE_MIXED);
    wide = has(run, SHL_CASE_F16) && dt != SHL_F16 ? SHL_F16 : wide;
    shl_op_operand *src =
        shl_op_run_add(run, &code, "src", SHL_ROLE_IN, vec_as(back ? dt : wide, n), 1.0);
    shl_op_operand *dst =
        shl_op_run_add(run, &code, "dst", SHL_ROLE_OUT, vec_as(back ? wide : dt, n), 0.0);
    run->args.cast = (shl_cast_args){.dst = dst->tensor, .src = src->tensor};
    for (int64_t i = 0; ready(run, code) && i < n; i++) {
        dst->want[i] = src->value[i];
    }
    dst->abs_tol = 0.0;
    return code;
}

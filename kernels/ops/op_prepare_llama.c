/* kernels/ops: tensors, args and references of the cases of rmsnorm, rope, silu_mul and dropout. */
#include <math.h>

#include "kernels/ops/op_prepare.h"
#include "kernels/ops/op_reference.h"

/* Address of an element of o; NULL while o has no data. */
static void *
behind(const shl_op_operand *o, int64_t elems)
{
    void *data = o->tensor.data;
    return data != NULL ? shl_elem_ptr(data, o->tensor.dtype, elems) : NULL;
}

shl_code
shl_op_prepare_rmsnorm(shl_op_run *run)
{
    shl_code code = SHL_OK;
    int64_t rows = run->c->size[0], cols = run->c->size[1];
    shl_dtype dt = case_dtype(run);
    bool back = run->c->op == SHL_OP_RMSNORM_BACKWARD, add = has(run, SHL_CASE_ACCUMULATE);
    shl_op_role stats = back ? SHL_ROLE_IN : SHL_ROLE_OUT;
    shl_op_operand *x = shl_op_run_add(run, &code, "x", SHL_ROLE_IN, mat_as(dt, rows, cols), 1.0);
    shl_op_operand *w = shl_op_run_add(run, &code, "w", SHL_ROLE_IN, vec_as(dt, cols), 1.0);
    shl_op_operand *rstd = shl_op_run_add(run, &code, "rstd", stats, vec(rows), 1.0);
    for (int64_t i = 0; ready(run, code) && has(run, SHL_CASE_LARGE) && i < rows * cols; i++) {
        x->value[i] = (double)(float)(x->value[i] + 1000.0);
    }
    shl_rmsnorm_args *a = &run->args.rmsnorm;
    *a = (shl_rmsnorm_args){.x = x->tensor,
                            .w = w->tensor,
                            .rstd = rstd->tensor,
                            .eps = 1e-5f,
                            .accumulate = add,
                            .accumulate_dx = add};
    if (!back) {
        shl_op_operand *y =
            shl_op_run_add(run, &code, "y", SHL_ROLE_OUT, mat_as(dt, rows, cols), 0.0);
        a->y = y->tensor;
        if (ready(run, code)) {
            shl_ref_rmsnorm_forward(rows, cols, (double)a->eps, x->value, w->value, y->want,
                                    rstd->want);
        }
        return code;
    }
    shl_op_operand *dy = shl_op_run_add(run, &code, "dy", SHL_ROLE_IN, mat_as(dt, rows, cols), 1.0);
    shl_op_operand *dx =
        shl_op_run_add(run, &code, "dx", grad_role(run), mat_as(dt, rows, cols), 1.0);
    shl_op_operand *dw = NULL;
    a->dy = dy->tensor;
    a->dx = dx->tensor;
    if (!has(run, SHL_CASE_PLAIN)) {
        dw = shl_op_run_add(run, &code, "dw", grad_role(run), vec_as(case_grad_dtype(run), cols),
                            1.0);
        a->dw = dw->tensor;
    }
    for (int64_t r = 0; ready(run, code) && r < rows; r++) {
        double sum = 0.0;
        for (int64_t c = 0; c < cols; c++) {
            sum += x->value[r * cols + c] * x->value[r * cols + c];
        }
        rstd->value[r] = (double)(float)(1.0 / sqrt(sum / (double)cols + (double)a->eps));
    }
    if (ready(run, code)) {
        shl_ref_rmsnorm_backward(rows, cols, x->value, w->value, rstd->value, dy->value, dx->want,
                                 dw != NULL ? dw->want : NULL);
    }
    return code;
}

/* q and k in one [R, (NH + NK) D + 3] tensor: strides, and elements between that must stay. */
shl_code
shl_op_prepare_rope(shl_op_run *run)
{
    shl_code code = SHL_OK;
    const int64_t *n = run->c->size;
    int64_t rows = n[0] * n[1], dim = n[4], at_k = n[2] * dim, stride = at_k + n[3] * dim + 3;
    shl_op_operand *x = shl_op_run_add(run, &code, "qk", SHL_ROLE_INOUT,
                                       mat_as(case_dtype(run), rows, stride), 1.0);
    shl_rope_args *a = &run->args.rope;
    *a = (shl_rope_args){.q = x->tensor.data,
                         .k = behind(x, at_k),
                         .q_stride = stride,
                         .kv_stride = stride,
                         .rows = rows,
                         .seq = n[1],
                         .heads = n[2],
                         .kv_heads = n[3],
                         .head_dim = dim,
                         .theta = 1e4,
                         .inverse = has(run, SHL_CASE_PLAIN),
                         .dtype = case_dtype(run)};
    if (has(run, SHL_CASE_LARGE)) {
        a->first_position = 100000;
        a->theta = 5e5;
        a->scaling = (shl_rope_scaling){SHL_ROPE_LLAMA3, 8.0, 1.0, 4.0, 8192};
    }
    if (ready(run, code)) {
        shl_ref_rope(a, n[2], stride, x->want);
        shl_ref_rope(a, n[3], stride, x->want + at_k);
    }
    return code;
}

/* Zeros, subnormals, the far tails, and steps between -20 and 20. */
static double
gate_edge(int64_t i)
{
    static const double edges[] = {0.0,    -0.0, 1e-45, -1e-45, 1e-39, -1e-39, 1e-30,
                                   -1e-30, 1e4,  -1e4,  87.0,   -87.0, 1e30,   -100.0};
    int64_t n = (int64_t)SHL_ARRAY_LEN(edges);
    return (double)(float)(i < n ? edges[i] : -20.0 + 0.61 * (double)(i - n));
}

/* gate and up are halves of one [R, 2I], or (PLAIN) two tensors whose gradients take their places. */
typedef struct gated {
    shl_op_operand *gate, *dgate;
    int64_t at_up, stride; /* up is at_up elements behind gate, or its own operand */
    shl_op_operand *up, *dup;
} gated;

static void
silu_mul_want(const shl_op_run *run, const gated *t, const double *dy, double *y)
{
    int64_t rows = run->c->size[0], cols = run->c->size[1];
    for (int64_t i = 0; i < rows * cols; i++) {
        int64_t at = i / cols * t->stride + i % cols;
        double g = t->gate->value[at], u = t->up->value[t->at_up + at];
        if (y != NULL) {
            y[i] = shl_ref_silu(g) * u;
        } else {
            t->dgate->want[at] = dy[i] * u * shl_ref_silu_slope(g);
            t->dup->want[t->at_up + at] = dy[i] * shl_ref_silu(g);
        }
    }
}

static void
add_gates(shl_op_run *run, shl_code *code, bool back, gated *t)
{
    int64_t rows = run->c->size[0], cols = run->c->size[1];
    bool apart = has(run, SHL_CASE_PLAIN);
    shl_dtype dt = case_dtype(run);
    shl_op_role role = apart && back ? SHL_ROLE_INOUT : SHL_ROLE_IN;
    *t = (gated){.stride = apart ? cols : 2 * cols, .at_up = apart ? 0 : cols};
    t->gate = shl_op_run_add(run, code, "gate", role, mat_as(dt, rows, t->stride), 2.0);
    t->up = apart ? shl_op_run_add(run, code, "up", role, mat_as(dt, rows, cols), 1.0) : t->gate;
    t->dgate = t->gate;
    t->dup = t->up;
    if (back && !apart) {
        t->dgate =
            shl_op_run_add(run, code, "dgate", SHL_ROLE_OUT, mat_as(dt, rows, t->stride), 0.0);
        t->dup = t->dgate;
    }
    for (int64_t i = 0; ready(run, *code) && has(run, SHL_CASE_LARGE) && i < cols; i++) {
        t->gate->value[i] = gate_edge(i);
    }
}

shl_code
shl_op_prepare_silu_mul(shl_op_run *run)
{
    shl_code code = SHL_OK;
    int64_t rows = run->c->size[0], cols = run->c->size[1];
    bool back = run->c->op == SHL_OP_SILU_MUL_BACKWARD;
    gated t;
    add_gates(run, &code, back, &t);
    shl_silu_mul_args *a = &run->args.silu;
    *a = (shl_silu_mul_args){.gate = t.gate->tensor.data,
                             .up = behind(t.up, t.at_up),
                             .rows = rows,
                             .cols = cols,
                             .stride = t.stride,
                             .dtype = case_dtype(run)};
    shl_op_operand *y =
        shl_op_run_add(run, &code, back ? "dy" : "y", back ? SHL_ROLE_IN : SHL_ROLE_OUT,
                       mat_as(case_dtype(run), rows, cols), 1.0);
    if (back) {
        a->dy = y->tensor.data;
        a->dgate = t.dgate->tensor.data;
        a->dup = behind(t.dup, t.at_up);
    } else {
        a->y = y->tensor.data;
    }
    if (ready(run, code)) {
        silu_mul_want(run, &t, y->value, back ? NULL : y->want);
    }
    return code;
}

shl_code
shl_op_prepare_dropout(shl_op_run *run)
{
    shl_code code = SHL_OK;
    int64_t rows = run->c->size[0], cols = run->c->size[1];
    shl_op_operand *x =
        shl_op_run_add(run, &code, "x", SHL_ROLE_IN, mat_as(case_dtype(run), rows, cols), 1.0);
    shl_op_operand *y =
        shl_op_run_add(run, &code, "y", SHL_ROLE_OUT, mat_as(case_dtype(run), rows, cols), 0.0);
    shl_dropout_args *a = &run->args.dropout;
    *a = (shl_dropout_args){.x = x->tensor,
                            .y = y->tensor,
                            .p = has(run, SHL_CASE_PLAIN) ? 0.0 : 0.1,
                            .seed = run->seed,
                            .stream = 77,
                            .first = 13 * cols};
    uint32_t bound = shl_op_dropout_bound(a->p);
    for (int64_t i = 0; ready(run, code) && i < rows * cols; i++) {
        uint32_t word = shl_op_dropout_word(a->seed, a->stream, (uint64_t)(a->first + i));
        y->want[i] = word >= bound ? x->value[i] / (1.0 - a->p) : 0.0;
    }
    return code;
}

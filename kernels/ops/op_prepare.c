/* kernels/ops: per op: the tensors of a case, its args, and the reference of its outputs. */
#include "kernels/ops/op_prepare.h"

#include <math.h>
#include <string.h>

#include "kernels/base/heap.h"
#include "kernels/base/rng.h"
#include "kernels/ops/op_reference.h"

static shl_code
prepare_linear_forward(shl_op_run *run)
{
    shl_code code = SHL_OK;
    shl_dtype dt = case_dtype(run);
    const int64_t *n = run->c->size;
    bool oi = has(run, SHL_CASE_OI), bias = !has(run, SHL_CASE_PLAIN);
    shl_op_operand *x = shl_op_run_add(run, &code, "x", SHL_ROLE_IN, mat_as(dt, n[0], n[1]), 1.0);
    shl_op_operand *w = shl_op_run_add(run, &code, "w", SHL_ROLE_IN,
                                       oi ? mat_as(dt, n[2], n[1]) : mat_as(dt, n[1], n[2]), 0.3);
    shl_op_operand *y =
        shl_op_run_add_rows(run, &code, "y", SHL_ROLE_OUT, mat_as(dt, n[0], n[2]), 0.0);
    shl_op_operand *b = shl_op_run_add(run, &code, "b", SHL_ROLE_IN, vec_as(dt, n[2]), 1.0);
    run->args.linear = (shl_linear_args){.x = x->tensor,
                                         .w = w->tensor,
                                         .y = y->tensor,
                                         .stride = y->stride,
                                         .order = oi ? SHL_WEIGHT_OI : SHL_WEIGHT_IO};
    if (bias) {
        run->args.linear.b = b->tensor;
    }
    if (ready(run, code)) {
        shl_ref_linear l = {n[0], n[1], n[2], run->args.linear.order};
        shl_ref_linear_forward(&l, x->value, w->value, bias ? b->value : NULL, y->want);
    }
    return code;
}

static shl_code
prepare_linear_backward(shl_op_run *run)
{
    shl_code code = SHL_OK;
    shl_dtype dt = case_dtype(run);
    const int64_t *n = run->c->size;
    bool oi = has(run, SHL_CASE_OI), add = has(run, SHL_CASE_ACCUMULATE);
    shl_dtype grad = case_grad_dtype(run),
              wt = run->c->op == SHL_OP_LINEAR_BACKWARD_INPUT ? dt : grad;
    shl_tensor weight = oi ? mat_as(wt, n[2], n[1]) : mat_as(wt, n[1], n[2]);
    shl_op_operand *dy =
        shl_op_run_add_rows(run, &code, "dy", SHL_ROLE_IN, mat_as(dt, n[0], n[2]), 1.0);
    shl_linear_args *a = &run->args.linear;
    *a = (shl_linear_args){.dy = dy->tensor,
                           .stride = dy->stride,
                           .order = oi ? SHL_WEIGHT_OI : SHL_WEIGHT_IO,
                           .accumulate = add,
                           .accumulate_dx = add};
    shl_ref_linear l = {n[0], n[1], n[2], a->order};
    if (run->c->op == SHL_OP_LINEAR_BACKWARD_INPUT) {
        shl_op_operand *w = shl_op_run_add(run, &code, "w", SHL_ROLE_IN, weight, 0.3);
        shl_op_operand *dx =
            shl_op_run_add(run, &code, "dx", grad_role(run), mat_as(dt, n[0], n[1]), 1.0);
        a->w = w->tensor;
        a->dx = dx->tensor;
        if (ready(run, code)) {
            shl_ref_linear_backward(&l, NULL, w->value, dy->value, dx->want, NULL, NULL);
        }
        return code;
    }
    shl_op_operand *x = shl_op_run_add(run, &code, "x", SHL_ROLE_IN, mat_as(dt, n[0], n[1]), 1.0);
    shl_op_operand *dw = shl_op_run_add(run, &code, "dw", grad_role(run), weight, 1.0);
    shl_op_operand *db = NULL;
    if (!has(run, SHL_CASE_PLAIN)) {
        db = shl_op_run_add(run, &code, "db", grad_role(run), vec_as(grad, n[2]), 1.0);
        a->db = db->tensor;
    }
    a->x = x->tensor;
    a->dw = dw->tensor;
    if (ready(run, code)) {
        shl_ref_linear_backward(&l, x->value, NULL, dy->value, NULL, dw->want,
                                db != NULL ? db->want : NULL);
    }
    return code;
}

/* Reference statistics of x, rounded to what the device would have saved. */
static void
layernorm_stats(const shl_op_run *run, const double *x, double *mean, double *rstd)
{
    int64_t rows = run->c->size[0], cols = run->c->size[1];
    for (int64_t r = 0; r < rows; r++) {
        double m = 0.0, var = 0.0, n = (double)cols;
        for (int64_t c = 0; c < cols; c++) {
            m += x[r * cols + c] / n;
        }
        for (int64_t c = 0; c < cols; c++) {
            var += (x[r * cols + c] - m) * (x[r * cols + c] - m) / n;
        }
        mean[r] = (double)(float)m;
        rstd[r] = (double)(float)(1.0 / sqrt(var + (double)run->args.layernorm.eps));
    }
}

static shl_code
prepare_layernorm(shl_op_run *run)
{
    shl_code code = SHL_OK;
    shl_dtype dt = case_dtype(run);
    int64_t rows = run->c->size[0], cols = run->c->size[1];
    bool back = run->c->op == SHL_OP_LAYERNORM_BACKWARD, add = has(run, SHL_CASE_ACCUMULATE);
    shl_op_role stats = back ? SHL_ROLE_IN : SHL_ROLE_OUT;
    shl_op_operand *x = shl_op_run_add(run, &code, "x", SHL_ROLE_IN, mat_as(dt, rows, cols), 1.0);
    shl_op_operand *w = shl_op_run_add(run, &code, "w", SHL_ROLE_IN, vec_as(dt, cols), 1.0);
    shl_op_operand *mean = shl_op_run_add(run, &code, "mean", stats, vec_as(SHL_F32, rows), 1.0);
    shl_op_operand *rstd = shl_op_run_add(run, &code, "rstd", stats, vec_as(SHL_F32, rows), 1.0);
    for (int64_t i = 0; ready(run, code) && has(run, SHL_CASE_LARGE) && i < rows * cols; i++) {
        x->value[i] = shl_op_run_round(x, x->value[i] + 1000.0);
    }
    shl_layernorm_args *a = &run->args.layernorm;
    *a = (shl_layernorm_args){.x = x->tensor,
                              .w = w->tensor,
                              .mean = mean->tensor,
                              .rstd = rstd->tensor,
                              .eps = 1e-5f,
                              .accumulate = add,
                              .accumulate_dx = add};
    if (!back) {
        shl_op_operand *b = shl_op_run_add(run, &code, "b", SHL_ROLE_IN, vec_as(dt, cols), 1.0);
        shl_op_operand *y =
            shl_op_run_add(run, &code, "y", SHL_ROLE_OUT, mat_as(dt, rows, cols), 0.0);
        a->b = b->tensor;
        a->y = y->tensor;
        y->abs_tol = has(run, SHL_CASE_LARGE) ? 5e-5 : 3e-6;
        if (ready(run, code)) {
            shl_ref_layernorm_forward(rows, cols, (double)a->eps, x->value, w->value, b->value,
                                      y->want, mean->want, rstd->want);
        }
        return code;
    }
    shl_op_operand *dy = shl_op_run_add(run, &code, "dy", SHL_ROLE_IN, mat_as(dt, rows, cols), 1.0);
    shl_op_operand *dx =
        shl_op_run_add(run, &code, "dx", grad_role(run), mat_as(dt, rows, cols), 1.0);
    shl_op_operand *dw =
        shl_op_run_add(run, &code, "dw", grad_role(run), vec_as(case_grad_dtype(run), cols), 1.0);
    shl_op_operand *db =
        shl_op_run_add(run, &code, "db", grad_role(run), vec_as(case_grad_dtype(run), cols), 1.0);
    a->dy = dy->tensor;
    a->dx = dx->tensor;
    a->dw = dw->tensor;
    a->db = db->tensor;
    if (ready(run, code)) {
        layernorm_stats(run, x->value, mean->value, rstd->value);
        shl_ref_layernorm_backward(rows, cols, x->value, w->value, mean->value, rstd->value,
                                   dy->value, dx->want, dw->want, db->want);
    }
    return code;
}

/* Zeros, subnormals, the far tails, and steps between -10 and 10. */
static double
edge_value(int64_t i)
{
    static const double edges[] = {0.0,    -0.0, 1e-45, -1e-45, 1e-39, -1e-39, 1e-30,
                                   -1e-30, 1e4,  -1e4,  1e30,   -1e30, 9.999,  -9.999};
    int64_t n = (int64_t)SHL_ARRAY_LEN(edges);
    double v = i < n ? edges[i] : -10.0 + 0.31 * (double)(i - n);
    return (double)(float)v;
}

static shl_code
prepare_gelu(shl_op_run *run)
{
    shl_code code = SHL_OK;
    shl_dtype dt = case_dtype(run);
    int64_t n = run->c->size[0];
    bool back = run->c->op == SHL_OP_GELU_BACKWARD;
    shl_op_operand *x = shl_op_run_add(run, &code, "x", SHL_ROLE_IN, vec_as(dt, n), 2.0);
    for (int64_t i = 0; ready(run, code) && has(run, SHL_CASE_LARGE) && i < n; i++) {
        x->value[i] = shl_op_run_round(x, edge_value(i));
    }
    shl_gelu_args *a = &run->args.gelu;
    *a = (shl_gelu_args){.x = x->tensor};
    if (!back) {
        shl_op_operand *y = shl_op_run_add(run, &code, "y", SHL_ROLE_OUT, vec_as(dt, n), 0.0);
        a->y = y->tensor;
        y->abs_tol = has(run, SHL_CASE_LARGE) ? 1e-37 : 1e-34;
        y->rel_tol = 1e-6;
        for (int64_t i = 0; ready(run, code) && i < n; i++) {
            y->want[i] = shl_ref_gelu(x->value[i]);
        }
        return code;
    }
    shl_op_operand *dy = shl_op_run_add(run, &code, "dy", SHL_ROLE_IN, vec_as(dt, n), 1.0);
    shl_op_operand *dx = shl_op_run_add(run, &code, "dx", SHL_ROLE_OUT, vec_as(dt, n), 0.0);
    a->dy = dy->tensor;
    a->dx = dx->tensor;
    dx->abs_tol = 1e-6;
    for (int64_t i = 0; ready(run, code) && i < n; i++) {
        dx->want[i] = dy->value[i] * shl_ref_gelu_slope(x->value[i]);
    }
    return code;
}

static shl_code
prepare_embedding(shl_op_run *run)
{
    shl_code code = SHL_OK;
    shl_dtype dt = case_dtype(run);
    const int64_t *n = run->c->size;
    int64_t rows = n[0] * n[1], width = n[2], vocab = n[3], places = n[1] + 2;
    bool back = run->c->op == SHL_OP_EMBEDDING_BACKWARD, add = has(run, SHL_CASE_ACCUMULATE);
    bool plain = has(run, SHL_CASE_PLAIN);
    shl_op_role role = back ? grad_role(run) : SHL_ROLE_IN;
    shl_dtype wt = back ? case_grad_dtype(run) : dt;
    shl_op_operand *tokens =
        shl_op_run_add(run, &code, "tokens", SHL_ROLE_IN, shl_tensor_1d(NULL, SHL_I32, rows), 0.0);
    shl_op_operand *wte =
        shl_op_run_add(run, &code, back ? "dwte" : "wte", role, mat_as(wt, vocab, width), 1.0);
    shl_op_operand *y =
        shl_op_run_add(run, &code, back ? "dy" : "y", back ? SHL_ROLE_IN : SHL_ROLE_OUT,
                       mat_as(dt, rows, width), 1.0);
    shl_op_operand *wpe = NULL;
    if (!plain) {
        wpe =
            shl_op_run_add(run, &code, back ? "dwpe" : "wpe", role, mat_as(wt, places, width), 1.0);
    }
    shl_tensor none = {0};
    shl_tensor place = plain ? none : wpe->tensor;
    run->args.embedding = (shl_embedding_args){.tokens = tokens->tensor,
                                               .wte = back ? none : wte->tensor,
                                               .wpe = back ? none : place,
                                               .y = back ? none : y->tensor,
                                               .dy = back ? y->tensor : none,
                                               .dwte = back ? wte->tensor : none,
                                               .dwpe = back ? place : none,
                                               .seq = n[1],
                                               .accumulate_wte = add,
                                               .accumulate_wpe = add};
    for (int64_t r = 0; ready(run, code) && r < rows; r++) {
        uint64_t word = shl_rng_u64(run->seed, shl_rng_stream("token"), (uint64_t)r);
        int64_t token = (int64_t)(word % (uint64_t)vocab);
        tokens->value[r] = (double)token;
        for (int64_t c = 0; c < width; c++) {
            int64_t at_place = r % n[1] * width + c;
            if (back) {
                wte->want[token * width + c] += y->value[r * width + c];
            } else {
                y->want[r * width + c] = wte->value[token * width + c];
            }
            if (wpe != NULL && back) {
                wpe->want[at_place] += y->value[r * width + c];
            } else if (wpe != NULL) {
                y->want[r * width + c] += wpe->value[at_place];
            }
        }
    }
    return code;
}

static void
round_values(shl_op_operand *o)
{
    for (int64_t i = 0; i < shl_tensor_elems(&o->tensor); i++) {
        o->value[i] = shl_op_run_round(o, o->value[i]);
    }
}

/* Element `index` of a tensor; NULL where the run has none. */
static void *
place_in(const shl_op_operand *o, int64_t index)
{
    return o->tensor.data != NULL ? shl_elem_ptr(o->tensor.data, o->tensor.dtype, index) : NULL;
}

/* q, k, v side by side in one [R, (NH + 2 NK) D] tensor, as GPT-2 has them. */
static shl_code
prepare_attention(shl_op_run *run)
{
    shl_code code = SHL_OK;
    shl_dtype dt = case_dtype(run);
    const int64_t *n = run->c->size;
    int64_t rows = n[0] * n[1], dim = n[4], stride = (n[2] + 2 * n[3]) * dim;
    bool back = run->c->op == SHL_OP_ATTENTION_BACKWARD, large = has(run, SHL_CASE_LARGE);
    shl_op_role role = back ? SHL_ROLE_IN : SHL_ROLE_OUT;
    shl_op_operand *qkv = shl_op_run_add(run, &code, "qkv", SHL_ROLE_IN, mat_as(dt, rows, stride),
                                         large ? 20.0 : 1.0);
    shl_op_operand *y = shl_op_run_add(run, &code, "y", role, mat_as(dt, rows, n[2] * dim), 1.0);
    shl_op_operand *lse =
        shl_op_run_add(run, &code, "lse", role, vec_as(SHL_F32, rows * n[2]), 1.0);
    y->abs_tol = large ? 5e-4 : 3e-6;
    if (dt == SHL_BF16 && dim % 8 == 0) {
        y->abs_tol = 0x1p-8; /* weights may be rounded to bf16 on their way to v (ops.h) */
    }
    int64_t at_k = n[2] * dim, at_v = at_k + n[3] * dim;
    shl_attention_args *a = &run->args.attention;
    *a = (shl_attention_args){.q = qkv->tensor.data,
                              .k = place_in(qkv, at_k),
                              .v = place_in(qkv, at_v),
                              .y = y->tensor.data,
                              .lse = lse->tensor.data,
                              .q_stride = stride,
                              .kv_stride = stride,
                              .batch = n[0],
                              .seq = n[1],
                              .heads = n[2],
                              .kv_heads = n[3],
                              .head_dim = dim,
                              .scale = (float)(1.0 / sqrt((double)dim)),
                              .dtype = dt};
    if (has(run, SHL_CASE_DROPOUT)) {
        a->dropout_p = 0.2;
        a->dropout_seed = run->seed;
        a->dropout_stream = 3;
        a->first_sequence = 1000000;
    }
    if (!back) {
        if (ready(run, code)) {
            const double *x = qkv->value;
            shl_ref_attention_forward(a, x, x + at_k, x + at_v, y->want, lse->want);
        }
        return code;
    }
    shl_op_operand *dy =
        shl_op_run_add(run, &code, "dy", SHL_ROLE_IN, mat_as(dt, rows, n[2] * dim), 1.0);
    shl_op_operand *dqkv =
        shl_op_run_add(run, &code, "dqkv", SHL_ROLE_OUT, mat_as(dt, rows, stride), 0.0);
    a->dy = dy->tensor.data;
    a->dq = dqkv->tensor.data;
    /* The rounding of y enters through dy y, against which the scores' gradients stand. */
    dqkv->abs_tol = dt == SHL_BF16 ? 0x1p-8 : dt == SHL_F16 ? 0x1p-11 : dqkv->abs_tol;
    a->dk = place_in(dqkv, at_k);
    a->dv = place_in(dqkv, at_v);
    if (ready(run, code)) {
        const double *x = qkv->value;
        double *g = dqkv->want;
        shl_ref_attention_forward(a, x, x + at_k, x + at_v, y->value, lse->value);
        round_values(y);
        round_values(lse);
        shl_ref_attention_backward(a, x, x + at_k, x + at_v, dy->value, g, g + at_k, g + at_v);
    }
    return code;
}

static shl_code
prepare_cross_entropy(shl_op_run *run)
{
    shl_code code = SHL_OK;
    shl_dtype dt = case_dtype(run);
    int64_t rows = run->c->size[0], vocab = run->c->size[1];
    bool grad = !has(run, SHL_CASE_PLAIN);
    shl_op_operand *x = shl_op_run_add_rows(
        run, &code, "logits", grad ? SHL_ROLE_INOUT : SHL_ROLE_IN, mat_as(dt, rows, vocab), 3.0);
    shl_op_operand *t =
        shl_op_run_add(run, &code, "targets", SHL_ROLE_IN, shl_tensor_1d(NULL, SHL_I32, rows), 0.0);
    shl_op_operand *loss = shl_op_run_add(run, &code, "loss_sum", SHL_ROLE_INOUT,
                                          shl_tensor_1d(NULL, SHL_F64, 1), 0.0);
    run->args.loss = (shl_cross_entropy_args){.logits = x->tensor,
                                              .targets = t->tensor,
                                              .loss_sum = loss->tensor,
                                              .stride = x->stride,
                                              .dloss = 0.125f,
                                              .want_grad = grad};
    if (!ready(run, code)) {
        return code;
    }
    double *logits = NULL;
    SHL_TRY(shl_heap_alloc((size_t)(rows * vocab), sizeof(double), &logits));
    for (int64_t r = 0; r < rows; r++) {
        t->value[r] = r % 4 == 2 ? SHL_IGNORE_INDEX : (double)((r * 31 + 5) % vocab);
        double shift = has(run, SHL_CASE_LARGE) ? (r % 2 == 0 ? 1e4 : -1e4) : 0.0;
        for (int64_t c = 0; c < vocab; c++) {
            double v = shl_op_run_round(x, x->value[r * vocab + c] + shift);
            x->value[r * vocab + c] = v;
            logits[r * vocab + c] = v;
        }
    }
    loss->value[0] = 0.5;
    loss->want[0] = 0.5 + shl_ref_cross_entropy(rows, vocab, t->value, 0.125, logits);
    loss->abs_tol = 1e-6;
    if (grad) {
        memcpy(x->want, logits, (size_t)(rows * vocab) * sizeof(double));
    }
    shl_heap_free(&logits);
    return code;
}

shl_code
shl_op_run_prepare(shl_op_run *run)
{
    static shl_code (*const prepare[SHL_OP_COUNT])(shl_op_run *) = {
        [SHL_OP_LINEAR_FORWARD] = prepare_linear_forward,
        [SHL_OP_LINEAR_BACKWARD_INPUT] = prepare_linear_backward,
        [SHL_OP_LINEAR_BACKWARD_WEIGHT] = prepare_linear_backward,
        [SHL_OP_LAYERNORM_FORWARD] = prepare_layernorm,
        [SHL_OP_LAYERNORM_BACKWARD] = prepare_layernorm,
        [SHL_OP_GELU_FORWARD] = prepare_gelu,
        [SHL_OP_GELU_BACKWARD] = prepare_gelu,
        [SHL_OP_EMBEDDING_FORWARD] = prepare_embedding,
        [SHL_OP_EMBEDDING_BACKWARD] = prepare_embedding,
        [SHL_OP_ATTENTION_FORWARD] = prepare_attention,
        [SHL_OP_ATTENTION_BACKWARD] = prepare_attention,
        [SHL_OP_ADD] = shl_op_prepare_elementwise,
        [SHL_OP_SCALE] = shl_op_prepare_elementwise,
        [SHL_OP_CROSS_ENTROPY] = prepare_cross_entropy,
        [SHL_OP_RMSNORM_FORWARD] = shl_op_prepare_rmsnorm,
        [SHL_OP_RMSNORM_BACKWARD] = shl_op_prepare_rmsnorm,
        [SHL_OP_ROPE] = shl_op_prepare_rope,
        [SHL_OP_SILU_MUL_FORWARD] = shl_op_prepare_silu_mul,
        [SHL_OP_SILU_MUL_BACKWARD] = shl_op_prepare_silu_mul,
        [SHL_OP_DROPOUT] = shl_op_prepare_dropout,
        [SHL_OP_ADAMW] = shl_op_prepare_adamw,
        [SHL_OP_NORM_MAX] = shl_op_prepare_norm,
        [SHL_OP_NORM_SUM] = shl_op_prepare_norm,
        [SHL_OP_SUM_RANKS] = shl_op_prepare_sum_ranks,
        [SHL_OP_INIT] = shl_op_prepare_init,
        [SHL_OP_CAST] = shl_op_prepare_cast,
        [SHL_OP_OPTIM] = shl_op_prepare_optim,
    };
    return prepare[run->c->op](run);
}

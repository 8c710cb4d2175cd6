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
    const int64_t *n = run->c->size;
    bool oi = has(run, SHL_CASE_OI), bias = !has(run, SHL_CASE_PLAIN);
    shl_op_operand *x = shl_op_run_add(run, &code, "x", SHL_ROLE_IN, mat(n[0], n[1]), 1.0);
    shl_op_operand *w =
        shl_op_run_add(run, &code, "w", SHL_ROLE_IN, oi ? mat(n[2], n[1]) : mat(n[1], n[2]), 0.3);
    shl_op_operand *y = shl_op_run_add(run, &code, "y", SHL_ROLE_OUT, mat(n[0], n[2]), 0.0);
    shl_op_operand *b = shl_op_run_add(run, &code, "b", SHL_ROLE_IN, vec(n[2]), 1.0);
    run->args.linear = (shl_linear_args){.x = x->tensor,
                                         .w = w->tensor,
                                         .y = y->tensor,
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
    const int64_t *n = run->c->size;
    bool oi = has(run, SHL_CASE_OI), add = has(run, SHL_CASE_ACCUMULATE);
    shl_tensor weight = oi ? mat(n[2], n[1]) : mat(n[1], n[2]);
    shl_op_operand *dy = shl_op_run_add(run, &code, "dy", SHL_ROLE_IN, mat(n[0], n[2]), 1.0);
    shl_linear_args *a = &run->args.linear;
    *a = (shl_linear_args){.dy = dy->tensor,
                           .order = oi ? SHL_WEIGHT_OI : SHL_WEIGHT_IO,
                           .accumulate = add,
                           .accumulate_dx = add};
    shl_ref_linear l = {n[0], n[1], n[2], a->order};
    if (run->c->op == SHL_OP_LINEAR_BACKWARD_INPUT) {
        shl_op_operand *w = shl_op_run_add(run, &code, "w", SHL_ROLE_IN, weight, 0.3);
        shl_op_operand *dx = shl_op_run_add(run, &code, "dx", grad_role(run), mat(n[0], n[1]), 1.0);
        a->w = w->tensor;
        a->dx = dx->tensor;
        if (ready(run, code)) {
            shl_ref_linear_backward(&l, NULL, w->value, dy->value, dx->want, NULL, NULL);
        }
        return code;
    }
    shl_op_operand *x = shl_op_run_add(run, &code, "x", SHL_ROLE_IN, mat(n[0], n[1]), 1.0);
    shl_op_operand *dw = shl_op_run_add(run, &code, "dw", grad_role(run), weight, 1.0);
    shl_op_operand *db = shl_op_run_add(run, &code, "db", grad_role(run), vec(n[2]), 1.0);
    a->x = x->tensor;
    a->dw = dw->tensor;
    a->db = db->tensor;
    if (ready(run, code)) {
        shl_ref_linear_backward(&l, x->value, NULL, dy->value, NULL, dw->want, db->want);
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
    int64_t rows = run->c->size[0], cols = run->c->size[1];
    bool back = run->c->op == SHL_OP_LAYERNORM_BACKWARD, add = has(run, SHL_CASE_ACCUMULATE);
    shl_op_role stats = back ? SHL_ROLE_IN : SHL_ROLE_OUT;
    shl_op_operand *x = shl_op_run_add(run, &code, "x", SHL_ROLE_IN, mat(rows, cols), 1.0);
    shl_op_operand *w = shl_op_run_add(run, &code, "w", SHL_ROLE_IN, vec(cols), 1.0);
    shl_op_operand *mean = shl_op_run_add(run, &code, "mean", stats, vec(rows), 1.0);
    shl_op_operand *rstd = shl_op_run_add(run, &code, "rstd", stats, vec(rows), 1.0);
    for (int64_t i = 0; ready(run, code) && has(run, SHL_CASE_LARGE) && i < rows * cols; i++) {
        x->value[i] = (double)(float)(x->value[i] + 1000.0);
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
        shl_op_operand *b = shl_op_run_add(run, &code, "b", SHL_ROLE_IN, vec(cols), 1.0);
        shl_op_operand *y = shl_op_run_add(run, &code, "y", SHL_ROLE_OUT, mat(rows, cols), 0.0);
        a->b = b->tensor;
        a->y = y->tensor;
        y->abs_tol = has(run, SHL_CASE_LARGE) ? 5e-5 : 3e-6;
        if (ready(run, code)) {
            shl_ref_layernorm_forward(rows, cols, (double)a->eps, x->value, w->value, b->value,
                                      y->want, mean->want, rstd->want);
        }
        return code;
    }
    shl_op_operand *dy = shl_op_run_add(run, &code, "dy", SHL_ROLE_IN, mat(rows, cols), 1.0);
    shl_op_operand *dx = shl_op_run_add(run, &code, "dx", grad_role(run), mat(rows, cols), 1.0);
    shl_op_operand *dw = shl_op_run_add(run, &code, "dw", grad_role(run), vec(cols), 1.0);
    shl_op_operand *db = shl_op_run_add(run, &code, "db", grad_role(run), vec(cols), 1.0);
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
    int64_t n = run->c->size[0];
    bool back = run->c->op == SHL_OP_GELU_BACKWARD;
    shl_op_operand *x = shl_op_run_add(run, &code, "x", SHL_ROLE_IN, vec(n), 2.0);
    for (int64_t i = 0; ready(run, code) && has(run, SHL_CASE_LARGE) && i < n; i++) {
        x->value[i] = edge_value(i);
    }
    shl_gelu_args *a = &run->args.gelu;
    *a = (shl_gelu_args){.x = x->tensor};
    if (!back) {
        shl_op_operand *y = shl_op_run_add(run, &code, "y", SHL_ROLE_OUT, vec(n), 0.0);
        a->y = y->tensor;
        y->abs_tol = has(run, SHL_CASE_LARGE) ? 1e-37 : 1e-34;
        y->rel_tol = 1e-6;
        for (int64_t i = 0; ready(run, code) && i < n; i++) {
            y->want[i] = shl_ref_gelu(x->value[i]);
        }
        return code;
    }
    shl_op_operand *dy = shl_op_run_add(run, &code, "dy", SHL_ROLE_IN, vec(n), 1.0);
    shl_op_operand *dx = shl_op_run_add(run, &code, "dx", SHL_ROLE_OUT, vec(n), 0.0);
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
    const int64_t *n = run->c->size;
    int64_t rows = n[0] * n[1], width = n[2], vocab = n[3], places = n[1] + 2;
    bool back = run->c->op == SHL_OP_EMBEDDING_BACKWARD, add = has(run, SHL_CASE_ACCUMULATE);
    bool plain = has(run, SHL_CASE_PLAIN);
    shl_op_role role = back ? grad_role(run) : SHL_ROLE_IN;
    shl_op_operand *tokens =
        shl_op_run_add(run, &code, "tokens", SHL_ROLE_IN, shl_tensor_1d(NULL, SHL_I32, rows), 0.0);
    shl_op_operand *wte =
        shl_op_run_add(run, &code, back ? "dwte" : "wte", role, mat(vocab, width), 1.0);
    shl_op_operand *y = shl_op_run_add(run, &code, back ? "dy" : "y",
                                       back ? SHL_ROLE_IN : SHL_ROLE_OUT, mat(rows, width), 1.0);
    shl_op_operand *wpe = NULL;
    if (!plain) {
        wpe = shl_op_run_add(run, &code, back ? "dwpe" : "wpe", role, mat(places, width), 1.0);
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
round_values(double *value, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        value[i] = (double)(float)value[i];
    }
}

/* q, k, v side by side in one [R, (NH + 2 NK) D] tensor, as GPT-2 has them. */
static shl_code
prepare_attention(shl_op_run *run)
{
    shl_code code = SHL_OK;
    const int64_t *n = run->c->size;
    int64_t rows = n[0] * n[1], dim = n[4], stride = (n[2] + 2 * n[3]) * dim;
    bool back = run->c->op == SHL_OP_ATTENTION_BACKWARD, large = has(run, SHL_CASE_LARGE);
    shl_op_role role = back ? SHL_ROLE_IN : SHL_ROLE_OUT;
    shl_op_operand *qkv =
        shl_op_run_add(run, &code, "qkv", SHL_ROLE_IN, mat(rows, stride), large ? 20.0 : 1.0);
    shl_op_operand *y = shl_op_run_add(run, &code, "y", role, mat(rows, n[2] * dim), 1.0);
    shl_op_operand *lse = shl_op_run_add(run, &code, "lse", role, vec(rows * n[2]), 1.0);
    y->abs_tol = large ? 5e-4 : 3e-6;
    int64_t at_k = n[2] * dim, at_v = at_k + n[3] * dim;
    const float *q = qkv->tensor.data;
    shl_attention_args *a = &run->args.attention;
    *a = (shl_attention_args){.q = q,
                              .k = code == SHL_OK ? q + at_k : NULL,
                              .v = code == SHL_OK ? q + at_v : NULL,
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
                              .dtype = SHL_F32};
    if (!back) {
        if (ready(run, code)) {
            const double *x = qkv->value;
            shl_ref_attention_forward(a, x, x + at_k, x + at_v, y->want, lse->want);
        }
        return code;
    }
    shl_op_operand *dy = shl_op_run_add(run, &code, "dy", SHL_ROLE_IN, mat(rows, n[2] * dim), 1.0);
    shl_op_operand *dqkv = shl_op_run_add(run, &code, "dqkv", SHL_ROLE_OUT, mat(rows, stride), 0.0);
    float *dq = dqkv->tensor.data;
    a->dy = dy->tensor.data;
    a->dq = dq;
    a->dk = code == SHL_OK ? dq + at_k : NULL;
    a->dv = code == SHL_OK ? dq + at_v : NULL;
    if (ready(run, code)) {
        const double *x = qkv->value;
        double *g = dqkv->want;
        shl_ref_attention_forward(a, x, x + at_k, x + at_v, y->value, lse->value);
        round_values(y->value, rows * n[2] * dim);
        round_values(lse->value, rows * n[2]);
        shl_ref_attention_backward(a, x, x + at_k, x + at_v, dy->value, g, g + at_k, g + at_v);
    }
    return code;
}

static shl_code
prepare_cross_entropy(shl_op_run *run)
{
    shl_code code = SHL_OK;
    int64_t rows = run->c->size[0], vocab = run->c->size[1];
    bool grad = !has(run, SHL_CASE_PLAIN);
    shl_op_operand *x = shl_op_run_add(run, &code, "logits", grad ? SHL_ROLE_INOUT : SHL_ROLE_IN,
                                       mat(rows, vocab), 3.0);
    shl_op_operand *t =
        shl_op_run_add(run, &code, "targets", SHL_ROLE_IN, shl_tensor_1d(NULL, SHL_I32, rows), 0.0);
    shl_op_operand *loss = shl_op_run_add(run, &code, "loss_sum", SHL_ROLE_INOUT,
                                          shl_tensor_1d(NULL, SHL_F64, 1), 0.0);
    run->args.loss = (shl_cross_entropy_args){.logits = x->tensor,
                                              .targets = t->tensor,
                                              .loss_sum = loss->tensor,
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
            double v = (double)(float)(x->value[r * vocab + c] + shift);
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

static shl_code
prepare_adamw(shl_op_run *run)
{
    shl_code code = SHL_OK;
    int64_t n = run->c->size[0];
    shl_op_operand *p = shl_op_run_add(run, &code, "param", SHL_ROLE_INOUT, vec(n), 0.02);
    shl_op_operand *g = shl_op_run_add(run, &code, "grad", SHL_ROLE_IN, vec(n), 0.1);
    shl_op_operand *m = shl_op_run_add(run, &code, "m", SHL_ROLE_INOUT, vec(n), 0.05);
    shl_op_operand *v = shl_op_run_add(run, &code, "v", SHL_ROLE_INOUT, vec(n), 0.1);
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
                          .step = 3};
    for (int64_t i = 0; ready(run, code) && i < n; i++) {
        v->value[i] = (double)(float)(v->value[i] * v->value[i]);
        v->want[i] = v->value[i];
        shl_ref_adamw(a, &p->want[i], g->value[i], &m->want[i], &v->want[i]);
    }
    p->abs_tol = 1e-6;
    m->abs_tol = 1e-6;
    v->abs_tol = 1e-6;
    return code;
}

static shl_code
prepare_norm(shl_op_run *run)
{
    shl_code code = SHL_OK;
    int64_t n = run->c->size[0];
    shl_op_operand *x = shl_op_run_add(run, &code, "x", SHL_ROLE_IN, vec(n), 0.7);
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

static shl_code
prepare_sum_ranks(shl_op_run *run)
{
    static const char *const names[SHL_CASE_MAX_RANKS] = {"rank0", "rank1", "rank2", "rank3",
                                                          "rank4", "rank5", "rank6", "rank7"};
    shl_code code = SHL_OK;
    int64_t n = run->c->size[0];
    int ranks = (int)run->c->size[1];
    bool add = has(run, SHL_CASE_ACCUMULATE);
    shl_op_operand *dst = shl_op_run_add(run, &code, "dst", grad_role(run), vec(n), 1.0);
    dst->abs_tol = 0.0;
    for (int k = 0; k < ranks; k++) {
        const shl_op_operand *x = shl_op_run_add(run, &code, names[k], SHL_ROLE_IN, vec(n), 1.0);
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

static shl_code
prepare_elementwise(shl_op_run *run)
{
    shl_code code = SHL_OK;
    int64_t n = run->c->size[0];
    if (run->c->op == SHL_OP_SCALE) {
        shl_op_operand *x = shl_op_run_add(run, &code, "x", SHL_ROLE_INOUT, vec(n), 1.0);
        run->args.scale = (shl_scale_args){.x = x->tensor, .factor = 0.3f};
        for (int64_t i = 0; ready(run, code) && i < n; i++) {
            x->want[i] = (double)((float)x->value[i] * 0.3f);
        }
        x->abs_tol = 0.0;
        return code;
    }
    shl_op_operand *x1 = shl_op_run_add(run, &code, "x1", SHL_ROLE_IN, vec(n), 1.0);
    shl_op_operand *x2 = shl_op_run_add(run, &code, "x2", SHL_ROLE_IN, vec(n), 1.0);
    shl_op_operand *y = shl_op_run_add(run, &code, "y", SHL_ROLE_OUT, vec(n), 1.0);
    run->args.add = (shl_add_args){.x1 = x1->tensor, .x2 = x2->tensor, .y = y->tensor};
    for (int64_t i = 0; ready(run, code) && i < n; i++) {
        y->want[i] = (double)((float)x1->value[i] + (float)x2->value[i]);
    }
    y->abs_tol = 0.0;
    return code;
}

static shl_code
prepare_init(shl_op_run *run)
{
    shl_code code = SHL_OK;
    int64_t n = run->c->size[0];
    bool constant = has(run, SHL_CASE_PLAIN);
    shl_op_operand *dst = shl_op_run_add(run, &code, "dst", SHL_ROLE_OUT, vec(n), 0.0);
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
        [SHL_OP_ADD] = prepare_elementwise,
        [SHL_OP_SCALE] = prepare_elementwise,
        [SHL_OP_CROSS_ENTROPY] = prepare_cross_entropy,
        [SHL_OP_ADAMW] = prepare_adamw,
        [SHL_OP_NORM_MAX] = prepare_norm,
        [SHL_OP_NORM_SUM] = prepare_norm,
        [SHL_OP_SUM_RANKS] = prepare_sum_ranks,
        [SHL_OP_INIT] = prepare_init,
        [SHL_OP_RMSNORM_FORWARD] = shl_op_prepare_rmsnorm,
        [SHL_OP_RMSNORM_BACKWARD] = shl_op_prepare_rmsnorm,
        [SHL_OP_ROPE] = shl_op_prepare_rope,
        [SHL_OP_SILU_MUL_FORWARD] = shl_op_prepare_silu_mul,
        [SHL_OP_SILU_MUL_BACKWARD] = shl_op_prepare_silu_mul,
        [SHL_OP_DROPOUT] = shl_op_prepare_dropout,
    };
    return prepare[run->c->op](run);
}

/* kernels/ops: tensors, args and reference of the cases of SHL_OP_OPTIM, written from the papers' formulas
 * in double. */
#include <math.h>

#include "kernels/ops/op_prepare.h"
#include "kernels/ops/op_reference.h"

static double
correction(const shl_optim_args *a, double beta)
{
    return a->uncorrected ? 1.0 : 1.0 - pow(beta, (double)a->step);
}

static void
ref_adam(const shl_optim_args *a, double *p, double g, double *m, double *v)
{
    double c1 = correction(a, a->beta1), c2 = correction(a, a->beta2);
    g += a->weight_decay * *p;
    *m = a->beta1 * *m + (1.0 - a->beta1) * g;
    *v = a->beta2 * *v + (1.0 - a->beta2) * g * g;
    *p -= a->lr * (*m / c1) / (sqrt(*v / c2) + a->eps);
}

static void
ref_lion(const shl_optim_args *a, double *p, double g, double *m)
{
    double c = a->beta1 * *m + (1.0 - a->beta1) * g;
    *p -= a->lr * ((double)(c > 0.0) - (double)(c < 0.0) + a->weight_decay * *p);
    *m = a->beta2 * *m + (1.0 - a->beta2) * g;
}

static void
ref_adagrad(const shl_optim_args *a, double *p, double g, double *v)
{
    g += a->weight_decay * *p;
    *v += g * g;
    *p -= a->lr * g / (sqrt(*v) + a->eps);
}

static void
ref_sgd(const shl_optim_args *a, double *p, double g, double *m)
{
    g += a->weight_decay * *p;
    if (m != NULL) {
        *m = a->beta1 * *m + (a->step == 1 ? 1.0 : 1.0 - a->dampening) * g;
        g = a->nesterov ? g + a->beta1 * *m : *m;
    }
    *p -= a->lr * g;
}

static void
ref_lamb(const shl_optim_args *a, double p, double *g, double *m, double *v)
{
    double c1 = correction(a, a->beta1), c2 = correction(a, a->beta2);
    double scaled = *g * a->grad_scale;
    *m = a->beta1 * *m + (1.0 - a->beta1) * scaled;
    *v = a->beta2 * *v + (1.0 - a->beta2) * scaled * scaled;
    *g = *m / c1 / (sqrt(*v / c2) + a->eps) + a->weight_decay * p;
}

void
shl_ref_optim(const shl_optim_args *a, double *p, double *g, double *m, double *v)
{
    double scaled = *g * a->grad_scale;
    switch (a->rule) {
    case SHL_RULE_ADAM:
        ref_adam(a, p, scaled, m, v);
        break;
    case SHL_RULE_LION:
        ref_lion(a, p, scaled, m);
        break;
    case SHL_RULE_ADAGRAD:
        ref_adagrad(a, p, scaled, v);
        break;
    case SHL_RULE_SGD:
        ref_sgd(a, p, scaled, m);
        break;
    case SHL_RULE_LAMB:
        ref_lamb(a, *p, g, m, v);
        break;
    case SHL_RULE_COUNT:
        break;
    }
}

static void
reference(shl_op_run *run, shl_op_operand *const x[4], shl_op_operand *rounded)
{
    const shl_optim_args *a = &run->args.optim;
    for (int64_t i = 0; i < run->c->size[0]; i++) {
        double g = x[1]->value[i];
        if (x[3] != NULL) {
            x[3]->value[i] = shl_op_run_round(x[3], x[3]->value[i] * x[3]->value[i]);
            x[3]->want[i] = x[3]->value[i];
        }
        shl_ref_optim(a, &x[0]->want[i], &g, x[2] != NULL ? &x[2]->want[i] : NULL,
                      x[3] != NULL ? &x[3]->want[i] : NULL);
        if (x[1]->want != NULL) {
            x[1]->want[i] = g;
        }
        if (rounded != NULL) {
            rounded->want[i] = x[0]->want[i];
        }
    }
}

/* Types by flags as AdamW's. */
shl_code
shl_op_prepare_optim(shl_op_run *run)
{
    shl_code code = SHL_OK;
    shl_dtype dt = case_dtype(run);
    bool mixed = has(run, SHL_CASE_MIXED);
    shl_dtype moments = mixed ? SHL_BF16 : SHL_F32;
    int64_t n = run->c->size[0];
    shl_optim_rule rule = (shl_optim_rule)run->c->size[1];
    int64_t variant = run->c->size[2];
    bool lamb = rule == SHL_RULE_LAMB;
    shl_op_operand *x[4] = {NULL, NULL, NULL, NULL}, *rounded = NULL;
    x[0] =
        shl_op_run_add(run, &code, "param", SHL_ROLE_INOUT, vec_as(mixed ? dt : SHL_F32, n), 0.02);
    x[1] =
        shl_op_run_add(run, &code, "grad", lamb ? SHL_ROLE_INOUT : SHL_ROLE_IN, vec_as(dt, n), 0.1);
    if (shl_rule_has_m(rule) && !has(run, SHL_CASE_PLAIN)) {
        x[2] = shl_op_run_add(run, &code, "m", SHL_ROLE_INOUT, vec_as(moments, n), 0.05);
    }
    if (shl_rule_has_v(rule)) {
        x[3] = shl_op_run_add(run, &code, "v", SHL_ROLE_INOUT, vec_as(moments, n), 0.1);
    }
    if (dt != SHL_F32 && !mixed && !lamb) {
        rounded = shl_op_run_add(run, &code, "rounded", SHL_ROLE_OUT, vec_as(dt, n), 0.0);
    }
    run->args.optim = (shl_optim_args){.rule = rule,
                                       .param = x[0]->tensor,
                                       .grad = x[1]->tensor,
                                       .lr = 1e-3,
                                       .beta1 = 0.9,
                                       .beta2 = 0.95,
                                       .eps = 1e-8,
                                       .weight_decay = 0.1,
                                       .grad_scale = 0.37,
                                       .step = 3,
                                       .uncorrected = variant == 1 && rule != SHL_RULE_SGD,
                                       .nesterov = variant == 1 && rule == SHL_RULE_SGD,
                                       .dampening = variant == 2 ? 0.3 : 0.0};
    for (int i = 0; i < 4; i++) {
        shl_tensor *to[4] = {NULL, NULL, &run->args.optim.m, &run->args.optim.v};
        if (x[i] != NULL && to[i] != NULL) {
            *to[i] = x[i]->tensor;
        }
    }
    if (rounded != NULL) {
        run->args.optim.rounded = rounded->tensor;
    }
    if (ready(run, code)) {
        reference(run, x, rounded);
    }
    return code;
}

/* engines/shared: norm, clipping and AdamW over fragments: each element is updated by the rank that
 * owns it, with bits that do not depend on who that is. */
#include "engines/shared/update.h"

#include <math.h>
#include <string.h>

#include "kernels/ops/ops.h"

/* x * x < 2^(2E) for max < 2^E. 50 bits below that leave room for carries in 64-bit partial sums and
 * far more precision than a float norm shows. */
#define NORM_BITS 50
#define F32_INF_BITS 0x7f800000u

/* The scratch of a norm: u32 max at 0, two int64 at 16. */
static shl_norm_args
norm_args(const shl_state *st, const shl_fragment *f)
{
    char *base = st->scratch.data;
    return (shl_norm_args){.x = shl_state_fragment(st, &st->grad, f),
                           .out_max = shl_tensor_1d(base, SHL_I32, 1),
                           .out_sum = shl_tensor_1d(base + 16, SHL_I64, 2)};
}

static shl_code
norm_over(shl_state *st, bool sum, int quantum)
{
    shl_stream *s = shl_device_stream(st->engine->device, SHL_STREAM_COMPUTE);
    for (int i = 0; i < st->n_train_frags; ++i) {
        shl_norm_args a = norm_args(st, &st->frags[i]);
        a.quantum_log2 = quantum;
        SHL_TRY(sum ? shl_op_norm_sum(s, &a) : shl_op_norm_max(s, &a));
    }
    return SHL_OK;
}

/* Square root of hi:lo * 2^quantum; hi:lo is a non-negative 128-bit integer. */
static double
root_of(const int64_t sum[2], int quantum)
{
    double value = ldexp((double)sum[1], 64) + (double)(uint64_t)sum[0];
    return sqrt(ldexp(value, quantum));
}

shl_code
shl_update_norm(shl_state *st, double *out)
{
    shl_device *d = st->engine->device;
    shl_comm *group = st->engine->mesh.shard;
    uint32_t max_bits = 0;
    float max_value;
    int64_t sum[2] = {0, 0};
    int exponent = 0;
    *out = 0.0;
    SHL_TRY(shl_device_fill(d, st->scratch.data, 0, st->scratch.bytes, NULL));
    SHL_TRY(norm_over(st, false, 0));
    SHL_TRY(shl_device_download(d, &max_bits, st->scratch.data, sizeof(max_bits)));
    if (group != NULL) {
        SHL_TRY(shl_comm_control(group, SHL_CONTROL_MAX_U32, &max_bits, 1));
    }
    memcpy(&max_value, &max_bits, sizeof(max_value));
    if (max_bits >= F32_INF_BITS) {
        *out = max_bits == F32_INF_BITS ? (double)INFINITY : (double)NAN;
        return SHL_OK;
    }
    /* A device without data answers 0: go on, so that its schedule is the same. */
    (void)frexp((double)max_value, &exponent);
    SHL_TRY(norm_over(st, true, 2 * exponent - NORM_BITS));
    SHL_TRY(shl_device_download(d, sum, (char *)st->scratch.data + 16, sizeof(sum)));
    if (group != NULL) {
        SHL_TRY(shl_comm_control(group, SHL_CONTROL_SUM_I128, sum, 1));
    }
    *out = root_of(sum, 2 * exponent - NORM_BITS);
    return SHL_OK;
}

double
shl_update_clip_coef(const shl_optim_config *c, double norm)
{
    if (!(c->clip > 0.0)) {
        return 1.0;
    }
    double coef = c->clip / (norm + c->clip_eps);
    return coef < 1.0 ? coef : 1.0;
}

shl_code
shl_update_adamw(shl_state *st, int flat, double coef, double lr)
{
    const shl_engine *e = st->engine;
    const shl_optim_config *o = &e->config.optim;
    shl_stream *s = shl_device_stream(e->device, SHL_STREAM_COMPUTE);
    double beta1, beta2;
    shl_betas_at(o, e->step - e->skipped, &beta1, &beta2);
    for (int i = 0; i < st->n_train_frags; ++i) {
        const shl_fragment *f = &st->frags[i];
        if (flat >= 0 && f->flat != flat) {
            continue;
        }
        const shl_param *p = e->model->params[f->param];
        shl_adamw_args a = {.param = shl_state_fragment(st, shl_state_master_of(st, f->flat), f),
                            .grad = shl_state_fragment(st, &st->grad, f),
                            .m = shl_state_fragment(st, &st->m, f),
                            .v = shl_state_fragment(st, &st->v, f),
                            .lr = lr,
                            .beta1 = beta1,
                            .beta2 = beta2,
                            .eps = o->eps,
                            .weight_decay = p->decay ? o->weight_decay : 0.0,
                            .grad_scale = coef,
                            .step = e->step - e->skipped + 1};
        if (st->apart) {
            a.rounded = shl_state_fragment(st, &st->param, f);
        }
        SHL_TRY(shl_op_adamw(s, &a));
    }
    return SHL_OK;
}

shl_code
shl_update_prepare(shl_state *st, shl_step_report *r, double *coef)
{
    const shl_engine *e = st->engine;
    const shl_optim_config *o = &e->config.optim;
    double norm = 0.0;
    SHL_TRY(shl_update_norm(st, &norm));
    r->skipped = shl_checks_overflow(&e->config) && !isfinite(norm);
    r->grad_norm = norm / r->loss_scale;
    r->clip_coef = r->skipped ? 0.0 : shl_update_clip_coef(o, r->grad_norm);
    r->lr = shl_lr_at(o, e->step - e->skipped);
    *coef = r->clip_coef / r->loss_scale;
    return SHL_OK;
}

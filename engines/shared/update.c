/* engines/shared: norm, clipping and the optimizer over fragments: each element is updated by the rank that
 * owns it, with bits that do not depend on who that is. */
#include "engines/shared/update.h"

#include <math.h>
#include <string.h>

#include "engines/config/zero_text.h"
#include "engines/shared/lamb.h"
#include "engines/shared/offload.h"
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

int
shl_update_norm_quantum(uint32_t max_bits)
{
    float max_value;
    int exponent = 0;
    memcpy(&max_value, &max_bits, sizeof(max_value));
    if (max_bits < F32_INF_BITS) {
        (void)frexp((double)max_value, &exponent);
    }
    return 2 * exponent - NORM_BITS;
}

/* hi:lo is a non-negative 128-bit integer. */
double
shl_update_norm_root(uint32_t max_bits, const int64_t sum[2])
{
    double value = ldexp((double)sum[1], 64) + (double)(uint64_t)sum[0];
    if (max_bits >= F32_INF_BITS) {
        return max_bits == F32_INF_BITS ? (double)INFINITY : (double)NAN;
    }
    return sqrt(ldexp(value, shl_update_norm_quantum(max_bits)));
}

shl_code
shl_update_norm(shl_state *st, double *out)
{
    shl_device *d = st->engine->device;
    shl_comm *group = st->engine->mesh.shard;
    uint32_t max_bits = 0;
    int64_t sum[2] = {0, 0};
    *out = 0.0;
    SHL_TRY(shl_device_fill(d, st->scratch.data, 0, st->scratch.bytes, NULL));
    SHL_TRY(norm_over(st, false, 0));
    SHL_TRY(shl_device_download(d, &max_bits, st->scratch.data, sizeof(max_bits)));
    if (group != NULL) {
        SHL_TRY(shl_comm_control(group, SHL_CONTROL_MAX_U32, &max_bits, 1));
    }
    if (max_bits >= F32_INF_BITS) {
        *out = shl_update_norm_root(max_bits, sum);
        return SHL_OK;
    }
    /* A device without data answers 0: go on, so that its schedule is the same. */
    SHL_TRY(norm_over(st, true, shl_update_norm_quantum(max_bits)));
    SHL_TRY(shl_device_download(d, sum, (char *)st->scratch.data + 16, sizeof(sum)));
    if (group != NULL) {
        SHL_TRY(shl_comm_control(group, SHL_CONTROL_SUM_I128, sum, 1));
    }
    *out = shl_update_norm_root(max_bits, sum);
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

/* What all fragments of an update have in common. */
typedef struct update_step {
    shl_stream *s;
    double lr, beta1, beta2, coef;
    int64_t step; /* from 1 */
} update_step;

static update_step
step_of(const shl_state *st, double coef, double lr)
{
    const shl_engine *e = st->engine;
    int64_t done = e->step - e->skipped;
    update_step u = {.s = shl_device_stream(e->device, SHL_STREAM_COMPUTE),
                     .lr = lr,
                     .coef = coef,
                     .step = done + 1};
    shl_betas_at(&e->config.optim, done, &u.beta1, &u.beta2);
    return u;
}

static shl_code
adamw_fragment(const shl_state *st, const shl_fragment *f, const update_step *u,
               const shl_tensor *rounded)
{
    const shl_optim_config *o = &st->engine->config.optim;
    shl_adamw_args a = {.param = shl_state_fragment(st, shl_state_master_of(st, f), f),
                        .grad = shl_state_fragment(st, &st->grad, f),
                        .m = shl_state_fragment(st, &st->m, f),
                        .v = shl_state_fragment(st, &st->v, f),
                        .rounded = *rounded,
                        .lr = u->lr,
                        .beta1 = u->beta1,
                        .beta2 = u->beta2,
                        .eps = o->eps,
                        .weight_decay =
                            st->engine->model->params[f->param]->decay ? o->weight_decay : 0.0,
                        .grad_scale = u->coef,
                        .step = u->step,
                        .uncorrected = !(o->bias_correction > 0.0)};
    return shl_op_adamw(u->s, &a);
}

/* LAMB's second half is SGD on what its first half left in the place of the gradient. */
static shl_code
optim_fragment(const shl_state *st, const shl_fragment *f, const update_step *u,
               shl_optim_rule rule, const shl_tensor *rounded)
{
    const shl_optim_config *o = &st->engine->config.optim;
    bool second = o->kind == SHL_OPTIM_LAMB && rule == SHL_RULE_SGD;
    bool decays = st->engine->model->params[f->param]->decay && !second;
    shl_optim_args a = {.rule = rule,
                        .param = shl_state_fragment(st, shl_state_master_of(st, f), f),
                        .grad = shl_state_fragment(st, &st->grad, f),
                        .rounded = *rounded,
                        .lr = u->lr,
                        .beta1 = o->kind == SHL_OPTIM_SGD ? o->momentum : u->beta1,
                        .beta2 = u->beta2,
                        .eps = o->eps,
                        .weight_decay = decays ? o->weight_decay : 0.0,
                        .grad_scale = second ? 1.0 : u->coef,
                        .step = u->step,
                        .uncorrected = !(o->bias_correction > 0.0),
                        .dampening = o->dampening,
                        .nesterov = o->nesterov > 0.0};
    if (second) {
        a.lr *= st->lamb_ratio[f->param];
    }
    if (st->has_m && !second) {
        a.m = shl_state_fragment(st, &st->m, f);
    }
    if (st->has_v && !second) {
        a.v = shl_state_fragment(st, &st->v, f);
    }
    return shl_op_optim(u->s, &a);
}

static shl_code
update_fragment(shl_state *st, const shl_fragment *f, const shl_tensor *rounded, void *ctx)
{
    static const shl_optim_rule rules[] = {[SHL_OPTIM_ADAM] = SHL_RULE_ADAM,
                                           [SHL_OPTIM_LION] = SHL_RULE_LION,
                                           [SHL_OPTIM_ADAGRAD] = SHL_RULE_ADAGRAD,
                                           [SHL_OPTIM_SGD] = SHL_RULE_SGD,
                                           [SHL_OPTIM_LAMB] = SHL_RULE_SGD};
    shl_optim_kind kind = st->engine->config.optim.kind;
    return kind == SHL_OPTIM_ADAMW ? adamw_fragment(st, f, ctx, rounded)
                                   : optim_fragment(st, f, ctx, rules[kind], rounded);
}

/* Without offload a sub-group is a flat: its gather runs beside the update of the next one. */
static shl_code
update_flats(shl_state *st, bool gather, update_step *u)
{
    shl_event done = {0};
    int at = 0;
    for (int flat = 0; flat < st->layout->n_train_flats; ++flat) {
        for (; at < st->n_train_frags && st->frags[at].flat == flat; ++at) {
            const shl_fragment *f = &st->frags[at];
            shl_tensor rounded = {0};
            if (shl_state_master_of(st, f) == &st->master) {
                rounded = shl_state_fragment(st, &st->param, f);
            }
            SHL_TRY(update_fragment(st, f, &rounded, u));
        }
        if (gather) {
            SHL_TRY(shl_state_gather_flat(st, flat, &done));
        }
    }
    return shl_engine_wait_comm(st->engine, done);
}

shl_code
shl_update_apply(shl_state *st, double coef, double lr)
{
    bool gather = st->param.full && st->engine->mesh.shard != NULL;
    update_step u = step_of(st, coef, lr);
    return shl_state_offloads(st) ? shl_offload_publish(st, gather, update_fragment, &u)
                                  : update_flats(st, gather, &u);
}

shl_code
shl_update_lamb_moments(shl_state *st, double coef)
{
    const update_step u = step_of(st, coef, 0.0);
    const shl_tensor none = {0};
    for (int i = 0; i < st->n_train_frags; ++i) {
        SHL_TRY(optim_fragment(st, &st->frags[i], &u, SHL_RULE_LAMB, &none));
    }
    return SHL_OK;
}

shl_code
shl_update_prepare(shl_state *st, shl_step_report *r, double *coef)
{
    const shl_engine *e = st->engine;
    const shl_optim_config *o = &e->config.optim;
    double norm = 0.0;
    double scale = r->loss_scale * shl_zero_grad_factor(&e->config, shl_comm_size(e->mesh.world));
    SHL_TRY(shl_update_norm(st, &norm));
    r->skipped = shl_checks_overflow(&e->config) && !isfinite(norm);
    r->grad_norm = norm / scale;
    r->clip_coef = r->skipped ? 0.0 : shl_update_clip_coef(o, r->grad_norm);
    r->lr = shl_lr_at(o, e->step - e->skipped);
    *coef = r->clip_coef / scale;
    return o->kind == SHL_OPTIM_LAMB && !r->skipped ? shl_lamb_prepare(st, *coef) : SHL_OK;
}

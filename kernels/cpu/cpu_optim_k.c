/* kernels/cpu: the optimizers beside AdamW, formulas and papers in kernels/ops/ops.h. One array of a
 * block after the other, as AdamW does; an element's bits depend on its own values only. */
#include "kernels/cpu/cpu_block.h"
#include "kernels/cpu/cpu_slots.h"

typedef struct optim_constants {
    vf grad_scale, decay, keep, rate, b1, one_minus_b1, b2, one_minus_b2, inv_c1, inv_sqrt_c2, eps,
        damp;
} optim_constants;

/* One block of each array; of no meaning where there is no such moment. */
typedef struct optim_block {
    float *p, *g, *m, *v;
    bool momentum, nesterov;
} optim_block;

/* The gradient with the decay in it. */
static inline vf
coupled(const optim_constants *k, const optim_block *b, int j)
{
    return vfma(k->decay, vload(b->p + j), vload(b->g + j) * k->grad_scale);
}

static inline vf
first_moment(const optim_constants *k, vf g, vf m)
{
    return vfma(k->one_minus_b1, g - m, m);
}

static inline vf
second_moment(const optim_constants *k, vf g, vf v)
{
    return vfma(k->one_minus_b2 * g, g, v * k->b2);
}

static inline void
adam_block(const optim_constants *k, const optim_block *b)
{
    for (int j = 0; j < CPU_BLOCK; j += VL) {
        vstore(b->m + j, first_moment(k, coupled(k, b, j), vload(b->m + j)));
    }
    for (int j = 0; j < CPU_BLOCK; j += VL) {
        vstore(b->v + j, second_moment(k, coupled(k, b, j), vload(b->v + j)));
    }
    for (int j = 0; j < CPU_BLOCK; j += VL) {
        vf denom = vfma(vsqrt(vload(b->v + j)), k->inv_sqrt_c2, k->eps);
        vf step = k->rate * k->inv_c1 * vload(b->m + j);
        vstore(b->p + j, vload(b->p + j) - step / denom);
    }
}

/* 1, -1, or c itself where it is 0 or NaN. */
static inline vf
sign_of(vf c)
{
    const vf zero = vdup(0.0f);
    return vsel(c > zero, vdup(1.0f), vsel(c < zero, vdup(-1.0f), c));
}

static inline void
lion_block(const optim_constants *k, const optim_block *b)
{
    for (int j = 0; j < CPU_BLOCK; j += VL) {
        vf c = first_moment(k, vload(b->g + j) * k->grad_scale, vload(b->m + j));
        vstore(b->p + j, vload(b->p + j) * k->keep - k->rate * sign_of(c));
    }
    for (int j = 0; j < CPU_BLOCK; j += VL) {
        vf m = vload(b->m + j), g = vload(b->g + j) * k->grad_scale;
        vstore(b->m + j, vfma(k->one_minus_b2, g - m, m));
    }
}

static inline void
adagrad_block(const optim_constants *k, const optim_block *b)
{
    for (int j = 0; j < CPU_BLOCK; j += VL) {
        vf g = coupled(k, b, j);
        vstore(b->v + j, vfma(g, g, vload(b->v + j)));
    }
    for (int j = 0; j < CPU_BLOCK; j += VL) {
        vf step = k->rate * coupled(k, b, j);
        vstore(b->p + j, vload(b->p + j) - step / (vsqrt(vload(b->v + j)) + k->eps));
    }
}

static inline void
momentum_block(const optim_constants *k, const optim_block *b)
{
    for (int j = 0; j < CPU_BLOCK; j += VL) {
        vstore(b->m + j, vfma(k->b1, vload(b->m + j), k->damp * coupled(k, b, j)));
    }
    for (int j = 0; j < CPU_BLOCK; j += VL) {
        vf step = vload(b->m + j);
        if (b->nesterov) {
            step = vfma(k->b1, step, coupled(k, b, j));
        }
        vstore(b->p + j, vload(b->p + j) - k->rate * step);
    }
}

static inline void
sgd_block(const optim_constants *k, const optim_block *b)
{
    for (int j = 0; j < CPU_BLOCK; j += VL) {
        vstore(b->p + j, vload(b->p + j) - k->rate * coupled(k, b, j));
    }
}

static inline void
lamb_block(const optim_constants *k, const optim_block *b)
{
    for (int j = 0; j < CPU_BLOCK; j += VL) {
        vf g = vload(b->g + j) * k->grad_scale;
        vstore(b->m + j, first_moment(k, g, vload(b->m + j)));
    }
    for (int j = 0; j < CPU_BLOCK; j += VL) {
        vf g = vload(b->g + j) * k->grad_scale;
        vstore(b->v + j, second_moment(k, g, vload(b->v + j)));
    }
    for (int j = 0; j < CPU_BLOCK; j += VL) {
        vf denom = vfma(vsqrt(vload(b->v + j)), k->inv_sqrt_c2, k->eps);
        vf u = k->inv_c1 * vload(b->m + j) / denom;
        vstore(b->g + j, vfma(k->decay, vload(b->p + j), u));
    }
}

static inline CPU_ALWAYS void
one_block(shl_optim_rule rule, const optim_constants *k, const optim_block *b)
{
    switch (rule) {
    case SHL_RULE_ADAM:
        adam_block(k, b);
        break;
    case SHL_RULE_LION:
        lion_block(k, b);
        break;
    case SHL_RULE_ADAGRAD:
        adagrad_block(k, b);
        break;
    case SHL_RULE_SGD:
        if (b->momentum) {
            momentum_block(k, b);
        } else {
            sgd_block(k, b);
        }
        break;
    case SHL_RULE_LAMB:
        lamb_block(k, b);
        break;
    case SHL_RULE_COUNT:
        break;
    }
}

static inline float *
moment_in(const shl_tensor *t, int64_t i, int64_t n, float *room)
{
    return t->data != NULL ? cpu_block_in(t, i, n, room) : room;
}

static inline void
moment_out(const shl_tensor *t, int64_t i, int64_t n, const float *x, const float *room)
{
    if (t->data != NULL) {
        cpu_block_out(t, i, n, x, room);
    }
}

/* What lies behind the end of a part-filled room is of no interest. */
static inline CPU_ALWAYS void
optim_range(shl_optim_rule rule, const optim_constants *k, const shl_optim_args *a, int64_t begin,
            int64_t end)
{
    float room[4][CPU_BLOCK] = {{0}};
    for (int64_t i = begin; i < end; i += CPU_BLOCK) {
        int64_t n = end - i < CPU_BLOCK ? end - i : CPU_BLOCK;
        const optim_block b = {.p = cpu_block_in(&a->param, i, n, room[0]),
                               .g = cpu_block_in(&a->grad, i, n, room[1]),
                               .m = moment_in(&a->m, i, n, room[2]),
                               .v = moment_in(&a->v, i, n, room[3]),
                               .momentum = a->m.data != NULL,
                               .nesterov = a->nesterov};
        one_block(rule, k, &b);
        moment_out(&a->m, i, n, b.m, room[2]);
        moment_out(&a->v, i, n, b.v, room[3]);
        if (rule == SHL_RULE_LAMB) {
            cpu_block_out(&a->grad, i, n, b.g, room[1]);
            continue;
        }
        cpu_block_out(&a->param, i, n, b.p, room[0]);
        if (a->rounded.data != NULL) {
            cpu_narrow(a->rounded.dtype, b.p, a->rounded.data, i, n);
        }
    }
}

static void
optim_part(const optim_constants *k, const shl_optim_args *a, int64_t begin, int64_t end)
{
    switch (a->rule) {
    case SHL_RULE_ADAM:
        optim_range(SHL_RULE_ADAM, k, a, begin, end);
        break;
    case SHL_RULE_LION:
        optim_range(SHL_RULE_LION, k, a, begin, end);
        break;
    case SHL_RULE_ADAGRAD:
        optim_range(SHL_RULE_ADAGRAD, k, a, begin, end);
        break;
    case SHL_RULE_SGD:
        optim_range(SHL_RULE_SGD, k, a, begin, end);
        break;
    case SHL_RULE_LAMB:
        optim_range(SHL_RULE_LAMB, k, a, begin, end);
        break;
    case SHL_RULE_COUNT:
        break;
    }
}

shl_code
SHL_K(shl_cpu_optim)(shl_stream *s, const void *args, void *work)
{
    const shl_optim_args *a = args;
    SHL_UNUSED(work);
    double c1 = a->uncorrected ? 1.0 : 1.0 - pow(a->beta1, (double)a->step);
    double c2 = a->uncorrected ? 1.0 : 1.0 - pow(a->beta2, (double)a->step);
    const optim_constants k = {
        .grad_scale = vdup((float)a->grad_scale),
        .decay = vdup((float)a->weight_decay),
        .keep = vdup((float)(1.0 - a->lr * a->weight_decay)),
        .rate = vdup((float)a->lr),
        .b1 = vdup((float)a->beta1),
        .one_minus_b1 = vdup((float)(1.0 - a->beta1)),
        .b2 = vdup((float)a->beta2),
        .one_minus_b2 = vdup((float)(1.0 - a->beta2)),
        .inv_c1 = vdup((float)(1.0 / c1)),
        .inv_sqrt_c2 = vdup((float)(1.0 / sqrt(c2))),
        .eps = vdup((float)a->eps),
        .damp = vdup(a->step == 1 ? 1.0f : (float)(1.0 - a->dampening)),
    };
    int64_t n = shl_tensor_elems(&a->param);
    int threads = cpu_threads(s, n);
    int64_t part = shl_round_up(shl_ceil_div(n, threads), CPU_CHUNK);
    SHL_PARALLEL_FOR(threads)
    for (int64_t begin = 0; begin < n; begin += part) {
        optim_part(&k, a, begin, n - begin < part ? n : begin + part);
    }
    return SHL_OK;
}

/* engines/shared: closed forms of model-state bytes (Rajbhandari et al., SC'20, section 5, for any dtype
 * per role) and of collective payloads. */
#include "engines/shared/volume.h"

#include <math.h>

/* Bytes per element of each role, and whether a strategy shards it. */
typedef struct roles {
    double param, grad, state; /* state: master weights that lie apart, and moments */
    bool param_shard, grad_shard, state_shard;
} roles;

static double
bytes_of(shl_dtype dtype)
{
    return (double)shl_dtype_bytes(dtype);
}

/* How many moments the optimizer keeps: Adam's two, one, or none. */
static double
moments_of(const shl_engine_config *c)
{
    return (shl_optim_has_m(&c->optim) ? 1.0 : 0.0) + (shl_optim_has_v(&c->optim) ? 1.0 : 0.0);
}

static void
set_shards(shl_strategy s, roles *r)
{
    r->state_shard = s != SHL_DDP;
    r->grad_shard = s != SHL_DDP && s != SHL_ZERO1;
    r->param_shard = r->grad_shard && s != SHL_ZERO2;
}

/* FSDP's shards on the device are the master weights, cast when they are gathered; the others hold both. */
static roles
roles_of(const shl_engine_config *c)
{
    bool fsdp = (c->strategy == SHL_FSDP || c->strategy == SHL_FSDP_GRAD_OP) &&
                c->offload.param == SHL_OFFLOAD_NONE;
    roles r = {.param = bytes_of(fsdp ? c->master_dtype : c->compute_dtype),
               .grad = bytes_of(c->grad_dtype),
               .state = moments_of(c) * bytes_of(c->moment_dtype)};
    if (!fsdp && c->master_dtype != c->compute_dtype) {
        r.state += bytes_of(c->master_dtype);
    }
    set_shards(c->strategy, &r);
    return r;
}

static double
state_bytes(const roles *r, double frozen_param, const shl_formula_size *n)
{
    const double whole[] = {n->train, n->train / (double)n->ranks};
    double frozen = n->frozen / (r->param_shard ? (double)n->ranks : 1.0);
    return r->param * whole[r->param_shard] + r->grad * whole[r->grad_shard] +
           r->state * whole[r->state_shard] + frozen_param * frozen;
}

/* Master weights beside the parameters: where both are of one dtype and in one tier they are the same
 * bytes. */
static double
master_bytes(const shl_engine_config *c, bool host)
{
    bool one_tier = host == (c->offload.param != SHL_OFFLOAD_NONE);
    return one_tier && c->master_dtype == c->compute_dtype ? 0.0 : bytes_of(c->master_dtype);
}

static double
update_bytes(const shl_engine_config *c, bool host)
{
    return bytes_of(c->grad_dtype) + moments_of(c) * bytes_of(c->moment_dtype) +
           master_bytes(c, host);
}

static bool
offloads(const shl_engine_config *c)
{
    return c->offload.optimizer != SHL_OFFLOAD_NONE || c->offload.param != SHL_OFFLOAD_NONE;
}

double
shl_formula_host_bytes(const shl_engine_config *c, const shl_formula_size *n)
{
    double params = c->offload.param != SHL_OFFLOAD_NONE
                        ? bytes_of(c->compute_dtype) * (n->train + n->frozen) / (double)n->ranks
                        : 0.0;
    return offloads(c) ? params + n->host * update_bytes(c, true) : 0.0;
}

double
shl_formula_state_bytes(const shl_engine_config *c, const shl_formula_size *n)
{
    roles r = roles_of(c);
    if (!offloads(c)) {
        return state_bytes(&r, bytes_of(c->compute_dtype), n);
    }
    double params = r.param * (n->train + n->frozen) / (r.param_shard ? (double)n->ranks : 1.0);
    return (c->offload.param != SHL_OFFLOAD_NONE ? 0.0 : params) +
           (n->train / (double)n->ranks - n->host) * update_bytes(c, false);
}

void
shl_formula_move_bytes(const shl_engine_config *c, const shl_formula_size *n, shl_formula_move *out)
{
    double k = (double)c->accum, compute = bytes_of(c->compute_dtype);
    double reductions = c->reduce_every == SHL_REDUCE_MICRO ? k : 1.0;
    *out = (shl_formula_move){.to_host_bytes = reductions * n->host * bytes_of(c->reduce_dtype)};
    if (c->offload.param != SHL_OFFLOAD_NONE) {
        double gathered = (n->train + n->frozen + n->again) / (double)n->ranks;
        out->to_host_bytes += (n->train / (double)n->ranks - n->host) * compute;
        out->to_device_bytes = k * gathered * compute;
    } else {
        out->to_device_bytes = n->host * compute;
    }
    if (c->offload.activations != SHL_OFFLOAD_NONE) {
        double input = (double)c->batch * (double)c->seq * n->stream * compute;
        out->to_host_bytes += k * n->away_blocks * input;
        out->to_device_bytes += k * n->away_blocks * input;
    }
}

double
shl_formula_held_bytes(const shl_engine_config *c, const shl_formula_size *n)
{
    bool fsdp = c->strategy == SHL_FSDP || c->strategy == SHL_FSDP_GRAD_OP;
    bool held = fsdp && c->reduce_every == SHL_REDUCE_BOUNDARY && c->accum > 1;
    return held ? bytes_of(c->grad_dtype) * n->train : 0.0;
}

double
shl_formula_paper_bytes(const shl_engine_config *c, const shl_formula_size *n)
{
    roles r = {.param = 2.0, .grad = 2.0, .state = 4.0 + 4.0 * moments_of(c)};
    if (c->compute_dtype == SHL_F32) {
        return (double)NAN;
    }
    set_shards(c->strategy, &r);
    return state_bytes(&r, 2.0, n);
}

void
shl_formula_comm_bytes(const shl_engine_config *c, const shl_formula_size *n, shl_formula_comm *out)
{
    double k = (double)c->accum;
    double gathered = bytes_of(c->compute_dtype);
    double reduced =
        (c->reduce_every == SHL_REDUCE_MICRO ? k : 1.0) * n->train * bytes_of(c->reduce_dtype);
    *out = (shl_formula_comm){.reduce_scatter_bytes = reduced};
    switch (c->strategy) {
    case SHL_DDP:
        *out = (shl_formula_comm){.all_reduce_bytes = reduced};
        break;
    case SHL_ZERO1:
    case SHL_ZERO2:
        out->all_gather_bytes = gathered * n->train;
        break;
    case SHL_ZERO3:
    case SHL_FSDP:
    case SHL_FSDP_GRAD_OP:
        out->all_gather_bytes = gathered * k * (n->train + n->frozen + n->again);
        break;
    case SHL_STRATEGY_COUNT:
        SHL_ASSERT(!"a strategy");
        break;
    }
}

static bool
backward_reads(const shl_model *model, const shl_param *p)
{
    for (int id = 0; id < model->n_modules; ++id) {
        const shl_module *m = model->modules[id];
        for (int i = 0; m->in_backward && i < m->n_params; ++i) {
            if (m->params[i] == p) {
                return true;
            }
        }
    }
    return false;
}

static double
elems_under(const shl_module *m)
{
    double elems = 0.0;
    for (int i = 0; i < m->n_params; ++i) {
        elems += (double)m->params[i]->elems;
    }
    for (int i = 0; i < m->n_children; ++i) {
        elems += elems_under(m->children[i]);
    }
    return elems;
}

/* Whole units: blocks, and embeddings that share no tensor. */
static double
units_again(const shl_model *model)
{
    bool tied = false;
    double again = 0.0;
    for (int i = 0; i < model->n_params; ++i) {
        tied = tied || model->params[i]->n_uses > 1;
    }
    for (int id = 0; id < model->n_modules; ++id) {
        const shl_module *m = model->modules[id];
        bool given_back = m->wrap == SHL_WRAP_BLOCK || (m->wrap == SHL_WRAP_INPUT && !tied);
        again += given_back && m->in_backward ? elems_under(m) : 0.0;
    }
    return again;
}

void
shl_formula_size_of(shl_strategy s, const shl_model *model, int ranks, shl_formula_size *out)
{
    *out = (shl_formula_size){.ranks = ranks};
    for (int i = 0; i < model->n_params; ++i) {
        const shl_param *p = model->params[i];
        *(p->trainable ? &out->train : &out->frozen) += (double)p->elems;
        out->again += s == SHL_ZERO3 && backward_reads(model, p) ? (double)p->elems : 0.0;
    }
    out->again += s == SHL_FSDP ? units_again(model) : 0.0;
    for (int id = 0; id < model->n_modules; ++id) {
        out->away_blocks += model->modules[id]->offload;
    }
}

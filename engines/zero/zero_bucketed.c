/* engines/zero: ddp and stages 1 and 2. The flat space is cut into buckets in backward order; rank r owns
 * piece r of every bucket, so a bucket is one reduce-scatter and, after the update, one in-place
 * all-gather. ddp has one piece and all-reduces. DeepSpeed's single cut instead gives rank r elements
 * [rF/N, (r+1)F/N) of the whole space; a bucket is reduced to the ranks that own some of it. Stage 2 does a true reduce-scatter: 2 psi per
 * update, where DeepSpeed's default all-reduces (3 psi). */
#include "engines/zero/zero.h"

#include "engines/shared/offload.h"
#include "engines/shared/order.h"
#include "engines/shared/update.h"
#include "kernels/base/heap.h"

typedef struct zero_bucketed {
    shl_state state;
    shl_reducer reducer;
} zero_bucketed;

static bool
runs(shl_strategy s)
{
    return s == SHL_DDP || s == SHL_ZERO1 || s == SHL_ZERO2;
}

static bool
offloads(const shl_engine_config *c)
{
    return c->offload.optimizer != SHL_OFFLOAD_NONE;
}

int
shl_zero_plan_buckets(const shl_model *model, int64_t bucket_elems, shl_layout_item *items)
{
    int64_t used = 0;
    int flat = 0;
    for (int i = 0; i < model->n_params; ++i) {
        int64_t elems = model->params[items[i].param]->elems;
        int64_t end = shl_round_up(used, SHL_TENSOR_ALIGN_ELEMS) + elems;
        if (used > 0 && (end > bucket_elems || items[i].space != items[i - 1].space)) {
            flat++;
            end = elems;
        }
        items[i].elems = elems;
        items[i].flat = flat;
        used = end;
    }
    return flat + 1;
}

/* Reducing at every micro-step of one needs no second buffer: the store itself is reduced. Offloaded, there
 * is no whole store, and buckets hold the gradients until the boundary. */
static shl_reduce_mode
reduce_mode(const shl_engine_config *c)
{
    if (!shl_reduces_in_grad_dtype(c)) {
        return SHL_REDUCE_BUCKET;
    }
    if (c->reduce_dtype != c->grad_dtype) {
        return SHL_REDUCE_CAST;
    }
    return offloads(c) ? SHL_REDUCE_HOLD : SHL_REDUCE_IN_PLACE;
}

static shl_code
make_layout(const shl_engine *e, int pieces, shl_layout **out)
{
    shl_layout_item *items = NULL;
    int *order = NULL;
    shl_code code;
    size_t n = (size_t)e->model->n_params;
    SHL_TRY_TO(code, out, shl_heap_alloc(n, sizeof(*items), &items));
    SHL_TRY_TO(code, out, shl_heap_alloc(n, sizeof(*order), &order));
    shl_order_backward(e->model, order);
    shl_state_sort_spaces(&e->config, e->model, order);
    for (size_t i = 0; i < n; ++i) {
        items[i].param = order[i];
        items[i].space = shl_state_space(&e->config, e->model->params[order[i]]);
    }
    (void)shl_zero_plan_buckets(
        e->model, e->config.zero.single_cut ? INT64_MAX : e->config.bucket_elems, items);
    SHL_TRY_TO(code, out, shl_layout_new(items, (int)n, pieces, SHL_SPLIT_FLAT, out));
out:
    shl_heap_free(&items);
    shl_heap_free(&order);
    return code;
}

static shl_code
attach(shl_engine *e)
{
    zero_bucketed *z = NULL;
    shl_layout *layout = NULL;
    const shl_comm *shard = e->mesh.shard;
    SHL_TRY(shl_heap_alloc(1, sizeof(*z), &z));
    e->impl = z;
    SHL_TRY(make_layout(e, shard != NULL ? shl_comm_size(shard) : 1, &layout));
    shl_state_spec spec = {.piece = shard != NULL ? shl_comm_rank(shard) : 0,
                           .param_full = true,
                           .grad_full = e->config.strategy != SHL_ZERO2 && !offloads(&e->config)};
    SHL_TRY(shl_state_init(&z->state, e, &layout, &spec));
    shl_state_bind_params(&z->state);
    return shl_reducer_init(&z->reducer, &z->state, reduce_mode(&e->config),
                            e->config.zero.single_cut ? e->config.bucket_elems : 0);
}

static void
detach(shl_engine *e)
{
    zero_bucketed *z = e->impl;
    if (z == NULL) {
        return;
    }
    if (z->reducer.st != NULL) {
        shl_reducer_fini(&z->reducer);
    }
    shl_state_fini(&z->state);
    shl_heap_free(&e->impl);
}

static shl_code
begin_micro(shl_engine *e, bool first, bool last)
{
    zero_bucketed *z = e->impl;
    shl_reducer_begin(&z->reducer, first, last);
    return SHL_OK;
}

static shl_code
begin_backward(shl_engine *e)
{
    SHL_UNUSED(e); /* parameters are resident */
    return SHL_OK;
}

static shl_code
end_micro(shl_engine *e)
{
    zero_bucketed *z = e->impl;
    return shl_reducer_flush(&z->reducer);
}

static void
end_eval(shl_engine *e)
{
    SHL_UNUSED(e); /* a forward leaves nothing */
}

static shl_code
end_step(shl_engine *e, shl_step_report *r)
{
    zero_bucketed *z = e->impl;
    double coef = 0.0;
    SHL_TRY(shl_update_prepare(&z->state, r, &coef));
    if (r->skipped) {
        return SHL_OK; /* what the others hold is still the same */
    }
    return shl_update_apply(&z->state, coef, r->lr);
}

static shl_code
visit_state(shl_engine *e, shl_visit_mode mode, shl_state_visitor v, void *ctx)
{
    zero_bucketed *z = e->impl;
    SHL_TRY(shl_state_visit(&z->state, v, ctx));
    return mode == SHL_VISIT_WRITE ? shl_state_refresh(&z->state) : SHL_OK;
}

static shl_code
param_hash(shl_engine *e, uint64_t *sum)
{
    return shl_state_param_hash(&((zero_bucketed *)e->impl)->state, sum);
}

static void
info(const shl_engine *e, shl_engine_info *out)
{
    const zero_bucketed *z = e->impl;
    const shl_layout *l = z->state.layout;
    *out = (shl_engine_info){.layout = e->config.zero.single_cut ? "single cut" : "bucketed",
                             .padding_elems = shl_layout_padding(l),
                             .padding_bytes = shl_state_padding_bytes(&z->state),
                             .n_units = l->n_flats,
                             .payload_elems = l->payload_elems[SHL_SPACE_TRAIN],
                             .frozen_elems = l->payload_elems[SHL_SPACE_FROZEN],
                             .n_reduce = z->reducer.n_groups};
    shl_offload_info(&z->state, out);
}

static shl_code
before_backward(void *ctx, shl_module *m, shl_run *run)
{
    SHL_UNUSED(run);
    return shl_reducer_prepare(&((zero_bucketed *)((shl_engine *)ctx)->impl)->reducer, m);
}

static shl_code
grad_ready(void *ctx, shl_module *m, shl_param *p, shl_run *run)
{
    SHL_UNUSED(m);
    SHL_UNUSED(run);
    return shl_reducer_ready(&((zero_bucketed *)((shl_engine *)ctx)->impl)->reducer, p);
}

static const shl_hooks hooks = {.before_backward = before_backward, .grad_ready = grad_ready};

const shl_engine_ops shl_zero_bucketed_engine = {.name = "zero-bucketed",
                                                 .runs = runs,
                                                 .attach = attach,
                                                 .detach = detach,
                                                 .begin_micro = begin_micro,
                                                 .begin_backward = begin_backward,
                                                 .end_micro = end_micro,
                                                 .end_eval = end_eval,
                                                 .end_step = end_step,
                                                 .visit_state = visit_state,
                                                 .param_hash = param_hash,
                                                 .info = info,
                                                 .hooks = &hooks};

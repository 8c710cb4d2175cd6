/* engines/shared: engines whose parameters live in pieces. Hooks around modules are all there is:
 * acquire before, release after, make room for gradients, launch their reduction. */
#include "engines/shared/sharded.h"

#include <string.h>

#include "engines/shared/offload.h"
#include "engines/shared/update.h"
#include "kernels/base/heap.h"

shl_code
shl_shard_plan_init(shl_shard_plan *p, int n_params, int max_groups, int max_users)
{
    memset(p, 0, sizeof(*p));
    p->root_group = -1;
    SHL_TRY(shl_heap_alloc((size_t)n_params, sizeof(*p->items), &p->items));
    SHL_TRY(shl_heap_alloc((size_t)n_params, sizeof(int), &p->group_of_flat));
    SHL_TRY(shl_heap_alloc((size_t)max_groups, sizeof(bool), &p->keep));
    SHL_TRY(shl_heap_alloc((size_t)max_groups, sizeof(bool), &p->resident));
    SHL_TRY(shl_heap_alloc((size_t)max_groups, sizeof(*p->owner), &p->owner));
    return shl_heap_alloc(2 * (size_t)max_users, sizeof(int), &p->users);
}

void
shl_shard_plan_fini(shl_shard_plan *p)
{
    shl_heap_free(&p->items);
    shl_heap_free(&p->group_of_flat);
    shl_heap_free(&p->keep);
    shl_heap_free(&p->resident);
    shl_heap_free(&p->owner);
    shl_heap_free(&p->users);
}

void
shl_shard_plan_add_user(shl_shard_plan *p, int module_id, int group)
{
    p->users[2 * p->n_users] = module_id;
    p->users[2 * p->n_users + 1] = group;
    p->n_users++;
}

/* Users sorted by module, so that a hook finds its groups at once. */
static shl_code
index_users(shl_sharded *s, const shl_shard_plan *plan, int n_modules)
{
    int at = 0;
    SHL_TRY(shl_heap_alloc((size_t)n_modules + 1, sizeof(int), &s->first_user));
    SHL_TRY(shl_heap_alloc((size_t)plan->n_users, sizeof(int), &s->user_group));
    for (int id = 0; id < n_modules; ++id) {
        s->first_user[id] = at;
        for (int i = 0; i < plan->n_users; ++i) {
            if (plan->users[2 * i] == id) {
                s->user_group[at++] = plan->users[2 * i + 1];
            }
        }
    }
    s->first_user[n_modules] = at;
    return SHL_OK;
}

/* Forward reaches modules in order of their ids. */
static void
expect_forward(shl_gatherer *g, const shl_sharded *s, const shl_module *m, bool backward)
{
    for (int i = s->first_user[m->id]; i < s->first_user[m->id + 1]; ++i) {
        shl_gatherer_expect(g, backward, s->user_group[i]);
    }
    for (int i = 0; i < m->n_children; ++i) {
        expect_forward(g, s, m->children[i], backward);
    }
}

/* Backward reaches them in reverse, but a module that is recomputed runs forward once more first, and
 * what lies before every trainable parameter is not reached at all. */
static void
expect_backward(shl_gatherer *g, const shl_sharded *s, const shl_module *m)
{
    if (!m->in_backward) {
        return;
    }
    for (int i = 0; m->recompute && i < m->n_children; ++i) {
        expect_forward(g, s, m->children[i], true);
    }
    for (int i = m->n_children - 1; i >= 0; --i) {
        expect_backward(g, s, m->children[i]);
    }
    for (int i = s->first_user[m->id + 1] - 1; i >= s->first_user[m->id]; --i) {
        shl_gatherer_expect(g, true, s->user_group[i]);
    }
}

static void
fill_sequences(shl_gatherer *g, const shl_sharded *s, const shl_model *model)
{
    for (int id = 0; id < model->n_modules; ++id) {
        for (int i = s->first_user[id]; i < s->first_user[id + 1]; ++i) {
            g->groups[s->user_group[i]].n_uses[0]++;
            g->groups[s->user_group[i]].n_uses[1] += model->modules[id]->in_backward;
        }
    }
    expect_forward(g, s, model->root, false);
    expect_backward(g, s, model->root);
    SHL_ASSERT(g->length[0] == g->n_groups);
}

static int64_t
tensor_elems(const shl_layout *l, int flat)
{
    int64_t elems = 0;
    for (int k = 0; k < l->flats[flat].n_slots; ++k) {
        elems += l->slots[l->flats[flat].first_slot + k].elems;
    }
    return elems;
}

static shl_code
fill_groups(shl_gatherer *g, const shl_shard_plan *plan)
{
    const shl_layout *l = g->st->layout;
    for (int i = 0; i < g->n_groups; ++i) {
        g->groups[i].keep = plan->keep[i];
        g->groups[i].resident = plan->resident[i];
        g->groups[i].owner = plan->owner[i];
        for (int f = 0; f < l->n_flats; ++f) {
            g->groups[i].n_flats += plan->group_of_flat[f] == i;
        }
        SHL_ASSERT(g->groups[i].n_flats > 0);
        SHL_TRY(shl_heap_alloc((size_t)g->groups[i].n_flats, sizeof(int), &g->groups[i].flats));
        int n = 0;
        for (int f = 0; f < l->n_flats; ++f) {
            if (plan->group_of_flat[f] == i) {
                g->groups[i].flats[n++] = f;
                g->groups[i].elems += tensor_elems(l, f);
            }
        }
    }
    return SHL_OK;
}

shl_code
shl_sharded_attach(shl_engine *e, const shl_shard_plan *plan)
{
    shl_sharded *s = NULL;
    shl_layout *layout = NULL;
    SHL_ASSERT(e->mesh.shard != NULL);
    SHL_TRY(shl_heap_alloc(1, sizeof(*s), &s));
    e->impl = s;
    s->layout_name = plan->layout_name;
    s->root_group = plan->root_group;
    SHL_TRY(shl_layout_new(plan->items, plan->n_items, shl_comm_size(e->mesh.shard), plan->split,
                           &layout));
    shl_state_spec spec = {.piece = shl_comm_rank(e->mesh.shard), .cast_gather = plan->cast_gather};
    SHL_TRY(shl_state_init(&s->state, e, &layout, &spec));
    SHL_TRY(index_users(s, plan, e->model->n_modules));
    SHL_TRY(shl_gatherer_init(&s->gatherer, &s->state, plan->n_groups));
    SHL_TRY(fill_groups(&s->gatherer, plan));
    fill_sequences(&s->gatherer, s, e->model);
    if (plan->policy.by_elems) {
        s->gatherer.policy = plan->policy;
    }
    SHL_TRY(shl_gatherer_open_resident(&s->gatherer));
    return shl_reducer_init(&s->reducer, &s->state, plan->reduce_mode, plan->reduce_bucket_elems);
}

void
shl_sharded_detach(shl_engine *e)
{
    shl_sharded *s = e->impl;
    if (s == NULL) {
        return;
    }
    if (s->reducer.st != NULL) {
        shl_reducer_fini(&s->reducer);
    }
    if (s->gatherer.st != NULL) {
        shl_gatherer_fini(&s->gatherer);
    }
    shl_heap_free(&s->first_user);
    shl_heap_free(&s->user_group);
    shl_state_fini(&s->state);
    shl_heap_free(&e->impl);
}

shl_code
shl_sharded_begin_micro(shl_engine *e, bool first, bool last)
{
    shl_sharded *s = e->impl;
    shl_reducer_begin(&s->reducer, first, last);
    shl_gatherer_begin(&s->gatherer, false);
    return SHL_OK;
}

shl_code
shl_sharded_begin_backward(shl_engine *e)
{
    shl_sharded *s = e->impl;
    shl_gatherer_begin(&s->gatherer, true);
    return SHL_OK;
}

shl_code
shl_sharded_end_micro(shl_engine *e)
{
    shl_sharded *s = e->impl;
    return shl_reducer_flush(&s->reducer);
}

void
shl_sharded_end_eval(shl_engine *e)
{
    shl_sharded *s = e->impl;
    shl_gatherer_drop_kept(&s->gatherer);
}

shl_code
shl_sharded_end_step(shl_engine *e, shl_step_report *r)
{
    shl_sharded *s = e->impl;
    double coef = 0.0;
    SHL_TRY(shl_update_prepare(&s->state, r, &coef));
    if (r->skipped) {
        return SHL_OK;
    }
    SHL_TRY(shl_update_apply(&s->state, coef, r->lr));
    return shl_gatherer_refresh_resident(&s->gatherer, false);
}

shl_code
shl_sharded_visit(shl_engine *e, shl_visit_mode mode, shl_state_visitor v, void *ctx)
{
    shl_sharded *s = e->impl;
    SHL_TRY(shl_state_visit(&s->state, v, ctx));
    if (mode == SHL_VISIT_READ) {
        return SHL_OK;
    }
    SHL_TRY(shl_state_refresh(&s->state));
    return shl_gatherer_refresh_resident(&s->gatherer, true);
}

shl_code
shl_sharded_param_hash(shl_engine *e, uint64_t *sum)
{
    return shl_state_param_hash(&((shl_sharded *)e->impl)->state, sum);
}

static int64_t
group_elems(const shl_layout *l, const shl_gather_group *group)
{
    int64_t elems = 0;
    for (int f = 0; f < group->n_flats; ++f) {
        elems += l->flats[group->flats[f]].flat_elems;
    }
    return elems;
}

static void
add_resident(const shl_layout *l, const shl_gather_group *group, shl_engine_info *out)
{
    out->resident_bytes += (int64_t)group->slot.bytes;
    for (int f = 0; f < group->n_flats; ++f) {
        bool changes = l->flats[group->flats[f]].space == SHL_SPACE_TRAIN;
        out->n_refresh += changes;
        out->refresh_elems += changes ? l->flats[group->flats[f]].flat_elems : 0;
        out->resident_elems += l->flats[group->flats[f]].flat_elems;
    }
}

void
shl_sharded_info(const shl_engine *e, shl_engine_info *out)
{
    const shl_sharded *s = e->impl;
    const shl_layout *l = s->state.layout;
    const shl_gatherer *g = &s->gatherer;
    *out = (shl_engine_info){.layout = s->layout_name,
                             .padding_elems = shl_layout_padding(l),
                             .padding_bytes = shl_state_padding_bytes(&s->state),
                             .n_units = g->n_groups,
                             .payload_elems = l->payload_elems[SHL_SPACE_TRAIN],
                             .frozen_elems = l->payload_elems[SHL_SPACE_FROZEN],
                             .n_reduce = s->reducer.n_groups,
                             .coalesced = g->policy.by_elems};
    shl_offload_info(&s->state, out);
    for (int i = 0; i < g->n_groups; ++i) {
        bool again = !g->groups[i].keep && g->groups[i].n_uses[1] > 0;
        if (g->groups[i].resident) {
            add_resident(l, &g->groups[i], out);
            continue;
        }
        out->n_gather_forward++;
        out->n_gather_backward += again;
        out->again_elems += again ? group_elems(l, &g->groups[i]) : 0;
    }
    if (s->root_group >= 0) {
        out->root_elems = group_elems(l, &g->groups[s->root_group]);
    }
}

static shl_code
acquire_all(void *ctx, shl_module *m, shl_run *run)
{
    shl_sharded *s = ((shl_engine *)ctx)->impl;
    SHL_UNUSED(run);
    for (int i = s->first_user[m->id]; i < s->first_user[m->id + 1]; ++i) {
        SHL_TRY(shl_gatherer_acquire(&s->gatherer, s->user_group[i], m->path));
    }
    return SHL_OK;
}

static shl_code
release_all(void *ctx, shl_module *m, shl_run *run)
{
    shl_sharded *s = ((shl_engine *)ctx)->impl;
    /* What recomputation gathered is used again by the backward that follows. */
    if (run->phase == SHL_PHASE_RECOMPUTE) {
        return SHL_OK;
    }
    for (int i = s->first_user[m->id]; i < s->first_user[m->id + 1]; ++i) {
        shl_gatherer_release(&s->gatherer, s->user_group[i]);
    }
    return SHL_OK;
}

static shl_code
before_backward(void *ctx, shl_module *m, shl_run *run)
{
    shl_sharded *s = ((shl_engine *)ctx)->impl;
    SHL_TRY(acquire_all(ctx, m, run));
    return shl_reducer_prepare(&s->reducer, m);
}

static shl_code
grad_ready(void *ctx, shl_module *m, shl_param *p, shl_run *run)
{
    shl_sharded *s = ((shl_engine *)ctx)->impl;
    SHL_UNUSED(m);
    SHL_UNUSED(run);
    return shl_reducer_ready(&s->reducer, p);
}

const shl_hooks shl_sharded_hooks = {.before_forward = acquire_all,
                                     .after_forward = release_all,
                                     .before_backward = before_backward,
                                     .after_backward = release_all,
                                     .grad_ready = grad_ready};

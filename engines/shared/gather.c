/* engines/shared: gather groups: issue, wait, prefetch, free. Slots come and go at schedule points of
 * the rank's own thread, so the ledger does not depend on when a gather happens to finish. */
#include "engines/shared/gather.h"

#include <string.h>

#include "kernels/base/heap.h"

shl_code
shl_gatherer_init(shl_gatherer *g, shl_state *st, int n_groups)
{
    size_t n = (size_t)n_groups;
    memset(g, 0, sizeof(*g));
    g->st = st;
    SHL_TRY(shl_heap_alloc(n, sizeof(*g->groups), &g->groups));
    g->n_groups = n_groups;
    for (int phase = 0; phase < 2; ++phase) {
        SHL_TRY(shl_heap_alloc(n, sizeof(int), &g->sequence[phase]));
        SHL_TRY(shl_heap_alloc(n, sizeof(int), &g->position[phase]));
        for (int i = 0; i < n_groups; ++i) {
            g->position[phase][i] = -1;
        }
    }
    return SHL_OK;
}

void
shl_gatherer_expect(shl_gatherer *g, bool backward, int group)
{
    if (g->position[backward][group] < 0) {
        g->position[backward][group] = g->length[backward];
        g->sequence[backward][g->length[backward]++] = group;
    }
}

static void
unbind(const shl_gatherer *g, const shl_gather_group *group)
{
    const shl_layout *l = g->st->layout;
    for (int i = 0; i < group->n_flats; ++i) {
        const shl_layout_flat *f = &l->flats[group->flats[i]];
        for (int k = 0; k < f->n_slots; ++k) {
            g->st->engine->model->params[l->slots[f->first_slot + k].param]->data = NULL;
        }
    }
}

void
shl_gatherer_fini(shl_gatherer *g)
{
    for (int i = 0; g->groups != NULL && i < g->n_groups; ++i) {
        if (g->groups[i].at != SHL_GATHER_NONE) {
            unbind(g, &g->groups[i]);
            shl_device_free(g->st->engine->device, &g->groups[i].slot);
        }
        shl_heap_free(&g->groups[i].flats);
    }
    shl_heap_free(&g->groups);
    for (int phase = 0; phase < 2; ++phase) {
        shl_heap_free(&g->sequence[phase]);
        shl_heap_free(&g->position[phase]);
    }
}

void
shl_gatherer_begin(shl_gatherer *g, bool backward)
{
    g->in_backward = backward;
    for (int i = 0; i < g->n_groups; ++i) {
        g->groups[i].uses_left = g->groups[i].n_uses[backward];
    }
}

/* Takes the slot and enqueues the gather behind the compute issued so far: shards are up to date and
 * the slot's former owner is done. */
static shl_code
issue(shl_gatherer *g, shl_gather_group *group)
{
    shl_engine *e = g->st->engine;
    const shl_layout *l = g->st->layout;
    shl_stream *comm = shl_device_stream(e->device, SHL_STREAM_COMM);
    shl_dtype wire = e->config.compute_dtype;
    shl_comm_seg *segs = NULL;
    shl_stream *to_device = shl_device_move_stream(e->device, SHL_MOVE_TO_DEVICE);
    shl_event ready;
    shl_code code;
    int64_t elems = 0;
    for (int i = 0; i < group->n_flats; ++i) {
        elems += shl_round_up(l->flats[group->flats[i]].flat_elems, SHL_TENSOR_ALIGN_ELEMS);
    }
    SHL_TRY(shl_heap_alloc((size_t)group->n_flats, sizeof(*segs), &segs));
    SHL_TRY_TO(code, out,
               shl_device_alloc(e->device, (size_t)elems * shl_dtype_bytes(wire), SHL_TIER_DEVICE,
                                SHL_TAG_GATHER, SHL_MEM_COMM, group->owner, &group->slot));
    group->at = SHL_GATHER_FLYING;
    elems = 0;
    SHL_TRY_TO(code, out,
               shl_stream_record(shl_device_stream(e->device, SHL_STREAM_COMPUTE), &ready));
    SHL_TRY_TO(code, out, shl_stream_wait(to_device, ready));
    for (int i = 0; i < group->n_flats; ++i) {
        int flat = group->flats[i];
        SHL_TRY_TO(
            code, out,
            shl_state_encode(g->st, flat, shl_elem_ptr(group->slot.data, wire, elems), &segs[i]));
        elems += shl_round_up(l->flats[flat].flat_elems, SHL_TENSOR_ALIGN_ELEMS);
    }
    SHL_TRY_TO(code, out,
               shl_stream_record(shl_device_stream(e->device, SHL_STREAM_COMPUTE), &ready));
    SHL_TRY_TO(code, out, shl_stream_wait(comm, ready));
    SHL_TRY_TO(code, out, shl_stream_record(to_device, &ready));
    SHL_TRY_TO(code, out, shl_stream_wait(comm, ready));
    SHL_TRY_TO(code, out,
               shl_comm_all_gather(e->mesh.shard, segs, group->n_flats, wire, comm, &group->done));
out:
    shl_heap_free(&segs);
    return code;
}

static void
bind(const shl_gatherer *g, const shl_gather_group *group)
{
    const shl_layout *l = g->st->layout;
    shl_dtype wire = g->st->engine->config.compute_dtype;
    int64_t at = 0;
    for (int i = 0; i < group->n_flats; ++i) {
        const shl_layout_flat *f = &l->flats[group->flats[i]];
        for (int k = 0; k < f->n_slots; ++k) {
            const shl_layout_slot *s = &l->slots[f->first_slot + k];
            g->st->engine->model->params[s->param]->data =
                shl_elem_ptr(group->slot.data, wire, at + s->offset);
        }
        at += shl_round_up(f->flat_elems, SHL_TENSOR_ALIGN_ELEMS);
    }
}

static shl_code
prefetch_after(shl_gatherer *g, int group)
{
    int from = g->position[g->in_backward][group] + 1;
    int depth = g->st->engine->config.prefetch;
    for (int i = from; i < g->length[g->in_backward] && i < from + depth; ++i) {
        shl_gather_group *next = &g->groups[g->sequence[g->in_backward][i]];
        if (next->at == SHL_GATHER_NONE && next->uses_left > 0) {
            SHL_TRY(issue(g, next));
        }
    }
    return SHL_OK;
}

shl_code
shl_gatherer_acquire(shl_gatherer *g, int group)
{
    shl_gather_group *own = &g->groups[group];
    shl_engine *e = g->st->engine;
    if (own->at == SHL_GATHER_NONE) {
        SHL_TRY(issue(g, own));
    }
    SHL_TRY(prefetch_after(g, group));
    if (own->at == SHL_GATHER_FLYING) {
        SHL_TRY(shl_engine_wait_comm(e, own->done));
        bind(g, own);
        own->at = SHL_GATHER_READY;
    }
    return SHL_OK;
}

static void
drop(shl_gatherer *g, shl_gather_group *group)
{
    unbind(g, group);
    /* The next owner of the address is behind this point of the compute stream. */
    shl_device_free(g->st->engine->device, &group->slot);
    group->at = SHL_GATHER_NONE;
}

void
shl_gatherer_release(shl_gatherer *g, int group)
{
    shl_gather_group *own = &g->groups[group];
    SHL_ASSERT(own->at == SHL_GATHER_READY && own->uses_left > 0);
    own->uses_left--;
    if (own->uses_left > 0 || (own->keep && own->n_uses[1] > 0 && !g->in_backward)) {
        return;
    }
    drop(g, own);
}

void
shl_gatherer_drop_kept(shl_gatherer *g)
{
    for (int i = 0; i < g->n_groups; ++i) {
        SHL_ASSERT(g->groups[i].at != SHL_GATHER_FLYING);
        if (g->groups[i].at == SHL_GATHER_READY) {
            drop(g, &g->groups[i]);
        }
    }
}

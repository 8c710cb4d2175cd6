/* engines/shared: gather groups: issue, wait, prefetch, free. Slots come and go at schedule points of
 * the rank's own thread, so the ledger does not depend on when a gather happens to finish. */
#include "engines/shared/gather.h"

#include <string.h>

#include "engines/shared/gather_log.h"
#include "kernels/base/heap.h"

shl_code
shl_gatherer_init(shl_gatherer *g, shl_state *st, int n_groups)
{
    size_t n = (size_t)n_groups;
    memset(g, 0, sizeof(*g));
    g->st = st;
    SHL_TRY(shl_heap_alloc(n, sizeof(*g->groups), &g->groups));
    g->n_groups = n_groups;
    g->policy = (shl_gather_policy){.ahead_groups = st->engine->config.prefetch};
    SHL_TRY(shl_heap_alloc((size_t)st->layout->n_flats, sizeof(*g->segs), &g->segs));
    SHL_TRY(shl_heap_alloc(n, sizeof(*g->batch), &g->batch));
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
    shl_heap_free(&g->segs);
    shl_heap_free(&g->batch);
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
    shl_gather_log_phase_begins(g);
}

static shl_code
take_slot(shl_gatherer *g, shl_gather_group *group)
{
    shl_engine *e = g->st->engine;
    const shl_layout *l = g->st->layout;
    int64_t elems = 0;
    for (int i = 0; i < group->n_flats; ++i) {
        elems += shl_round_up(l->flats[group->flats[i]].flat_elems, SHL_TENSOR_ALIGN_ELEMS);
    }
    SHL_TRY(shl_device_alloc(e->device, (size_t)elems * shl_dtype_bytes(e->config.compute_dtype),
                             SHL_TIER_DEVICE, group->resident ? SHL_TAG_PARAM : SHL_TAG_GATHER,
                             SHL_MEM_COMM, group->owner, &group->slot));
    group->at = SHL_GATHER_FLYING;
    g->live_elems += group->resident ? 0 : group->elems;
    return SHL_OK;
}

static shl_code
encode_group(const shl_gatherer *g, const shl_gather_group *group, shl_comm_seg *segs)
{
    const shl_layout *l = g->st->layout;
    shl_dtype wire = g->st->engine->config.compute_dtype;
    int64_t at = 0;
    for (int i = 0; i < group->n_flats; ++i) {
        int flat = group->flats[i];
        SHL_TRY(shl_state_encode(g->st, flat, shl_elem_ptr(group->slot.data, wire, at), &segs[i]));
        at += shl_round_up(l->flats[flat].flat_elems, SHL_TENSOR_ALIGN_ELEMS);
    }
    return SHL_OK;
}

/* `to` goes on behind what `from` has been given so far. */
static shl_code
follow(shl_stream *to, shl_stream *from)
{
    shl_event done;
    SHL_TRY(shl_stream_record(from, &done));
    return shl_stream_wait(to, done);
}

/* Shards that come from host memory are fetched behind the compute issued so far... */
static shl_code
before_encode(const shl_gatherer *g)
{
    shl_device *d = g->st->engine->device;
    return follow(shl_device_move_stream(d, SHL_MOVE_TO_DEVICE),
                  shl_device_stream(d, SHL_STREAM_COMPUTE));
}

/* ... and gathers run behind both. */
static shl_code
before_gather(const shl_gatherer *g)
{
    shl_device *d = g->st->engine->device;
    shl_stream *comm = shl_device_stream(d, SHL_STREAM_COMM);
    SHL_TRY(follow(comm, shl_device_stream(d, SHL_STREAM_COMPUTE)));
    return follow(comm, shl_device_move_stream(d, SHL_MOVE_TO_DEVICE));
}

/* Gathers of n segments: in one call, or one by one. */
static shl_code
gather_segs(shl_gatherer *g, int n, shl_event *done)
{
    shl_engine *e = g->st->engine;
    shl_stream *comm = shl_device_stream(e->device, SHL_STREAM_COMM);
    int step = g->policy.per_tensor ? 1 : n;
    for (int i = 0; i < n; i += step) {
        SHL_TRY(shl_comm_all_gather(e->mesh.shard, &g->segs[i], step, e->config.compute_dtype, comm,
                                    done));
    }
    return SHL_OK;
}

/* Takes the slots of the first n groups of the batch and enqueues one gather of them all behind the
 * compute issued so far: shards are up to date and the slots' former owners are done. */
static shl_code
issue(shl_gatherer *g, int n)
{
    shl_event done;
    int n_segs = 0;
    if (n == 0) {
        return SHL_OK;
    }
    for (int i = 0; i < n; ++i) {
        SHL_TRY(take_slot(g, &g->groups[g->batch[i]]));
    }
    SHL_TRY(before_encode(g));
    for (int i = 0; i < n; ++i) {
        SHL_TRY(encode_group(g, &g->groups[g->batch[i]], &g->segs[n_segs]));
        n_segs += g->groups[g->batch[i]].n_flats;
    }
    SHL_TRY(before_gather(g));
    SHL_TRY(gather_segs(g, n_segs, &done));
    for (int i = 0; i < n; ++i) {
        g->groups[g->batch[i]].done = done;
    }
    shl_gather_log_issue(g, n);
    return SHL_OK;
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

shl_code
shl_gatherer_open_resident(shl_gatherer *g)
{
    const shl_layout *l = g->st->layout;
    for (int i = 0; i < g->n_groups; ++i) {
        shl_gather_group *group = &g->groups[i];
        if (!group->resident) {
            continue;
        }
        SHL_TRY(take_slot(g, group));
        SHL_TRY(
            shl_device_fill(g->st->engine->device, group->slot.data, 0, group->slot.bytes, NULL));
        bind(g, group);
        group->at = SHL_GATHER_READY;
        for (int f = 0; f < group->n_flats; ++f) {
            const shl_layout_slot *s = &l->slots[l->flats[group->flats[f]].first_slot];
            SHL_ASSERT(l->flats[group->flats[f]].n_slots == 1);
            SHL_TRY(shl_state_init_whole(g->st, s->param));
        }
    }
    return SHL_OK;
}

shl_code
shl_gatherer_refresh_resident(shl_gatherer *g, bool all)
{
    shl_engine *e = g->st->engine;
    const shl_layout *l = g->st->layout;
    shl_stream *comm = shl_device_stream(e->device, SHL_STREAM_COMM);
    shl_event done = {0};
    bool any = false;
    for (int i = 0; i < g->n_groups; ++i) {
        for (int k = 0; g->groups[i].resident && k < g->groups[i].n_flats; ++k) {
            int flat = g->groups[i].flats[k];
            void *whole = e->model->params[l->slots[l->flats[flat].first_slot].param]->data;
            if (l->flats[flat].space == SHL_SPACE_FROZEN && !all) {
                continue;
            }
            SHL_TRY(before_encode(g));
            SHL_TRY(shl_state_encode(g->st, flat, whole, g->segs));
            SHL_TRY(before_gather(g));
            SHL_TRY(shl_comm_all_gather(e->mesh.shard, g->segs, 1, e->config.compute_dtype, comm,
                                        &done));
            shl_gather_log_refresh(g, flat);
            any = true;
        }
    }
    return any ? shl_engine_wait_comm(e, done) : SHL_OK;
}

/* Groups that the phase still needs and nobody has asked for, as far ahead as the policy goes. */
static int
pick_ahead(const shl_gatherer *g, int group)
{
    const shl_gather_policy *p = &g->policy;
    int from = g->position[g->in_backward][group] + 1, length = g->length[g->in_backward];
    int64_t ahead = g->ahead_elems, live = g->live_elems;
    int n = 0;
    for (int i = from; i < length && (p->by_elems || i < from + p->ahead_groups); ++i) {
        const shl_gather_group *next = &g->groups[g->sequence[g->in_backward][i]];
        if (p->by_elems && (ahead >= p->ahead_elems || live >= p->live_elems)) {
            break;
        }
        if (next->at == SHL_GATHER_NONE && next->uses_left > 0) {
            g->batch[n++] = g->sequence[g->in_backward][i];
            ahead += next->elems;
            live += next->elems;
        }
    }
    return n;
}

static shl_code
prefetch_after(shl_gatherer *g, int group)
{
    int n = pick_ahead(g, group);
    for (int i = 0; i < n; ++i) {
        g->groups[g->batch[i]].ahead = true;
        g->ahead_elems += g->groups[g->batch[i]].elems;
    }
    if (g->policy.by_elems) {
        return issue(g, n);
    }
    for (int i = 0; i < n; ++i) {
        g->batch[0] = g->batch[i];
        SHL_TRY(issue(g, 1));
    }
    return SHL_OK;
}

shl_code
shl_gatherer_acquire(shl_gatherer *g, int group, const char *module)
{
    shl_gather_group *own = &g->groups[group];
    shl_engine *e = g->st->engine;
    if (own->at == SHL_GATHER_NONE) {
        g->batch[0] = group;
        SHL_TRY(issue(g, 1));
    }
    if (own->ahead) {
        own->ahead = false;
        g->ahead_elems -= own->elems;
    }
    SHL_TRY(prefetch_after(g, group));
    if (own->at == SHL_GATHER_FLYING) {
        SHL_TRY(shl_engine_wait_comm(e, own->done));
        bind(g, own);
        own->at = SHL_GATHER_READY;
        shl_gather_log_wait(g, group, module);
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
    g->live_elems -= group->elems;
    shl_gather_log_release(g, (int)(group - g->groups));
}

void
shl_gatherer_release(shl_gatherer *g, int group)
{
    shl_gather_group *own = &g->groups[group];
    SHL_ASSERT(own->at == SHL_GATHER_READY && own->uses_left > 0);
    own->uses_left--;
    if (own->uses_left > 0 || own->resident ||
        (own->keep && own->n_uses[1] > 0 && !g->in_backward)) {
        return;
    }
    drop(g, own);
}

void
shl_gatherer_drop_kept(shl_gatherer *g)
{
    for (int i = 0; i < g->n_groups; ++i) {
        SHL_ASSERT(g->groups[i].at != SHL_GATHER_FLYING);
        if (g->groups[i].at == SHL_GATHER_READY && !g->groups[i].resident) {
            drop(g, &g->groups[i]);
        }
    }
}

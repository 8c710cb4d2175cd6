/* engines/shared: reduce groups: buckets, launch, fold. Sums over ranks are made by the communicator
 * in rank order; sums over micro-steps are made here (store = store + reduced), element by element,
 * so their order is the same for every bucket size and partition. */
#include "engines/shared/reduce.h"

#include <string.h>

#include "engines/shared/offload.h"
#include "kernels/base/heap.h"
#include "kernels/ops/ops.h"

static int64_t
bucket_flat_elems(const shl_layout *l, int flat)
{
    return shl_round_up(l->flats[flat].flat_elems, SHL_TENSOR_ALIGN_ELEMS);
}

static shl_reduce_group *
open_group(shl_reducer *r, int flat, int slot)
{
    shl_reduce_group *g = &r->groups[r->n_groups++];
    g->first_flat = flat;
    g->first_slot = slot;
    g->owner = r->st->engine->model->params[r->st->layout->slots[slot].param]->name;
    return g;
}

static void
add_slot(shl_reducer *r, shl_reduce_group *g, int slot)
{
    int param = r->st->layout->slots[slot].param;
    g->n_slots++;
    g->n_uses += r->st->engine->model->params[param]->n_uses;
    r->group_of_slot[slot] = r->n_groups - 1;
}

static void
form_groups(shl_reducer *r, int64_t bucket_elems)
{
    const shl_layout *l = r->st->layout;
    for (int f = 0; f < l->n_train_flats; ++f) {
        const shl_layout_flat *flat = &l->flats[f];
        int64_t elems = bucket_flat_elems(l, f);
        shl_reduce_group *g = r->n_groups > 0 ? &r->groups[r->n_groups - 1] : NULL;
        if (g == NULL || bucket_elems == 0 || g->elems + elems > bucket_elems) {
            g = open_group(r, f, flat->first_slot);
        }
        g->n_flats++;
        g->elems += elems;
        for (int k = 0; k < flat->n_slots; ++k) {
            add_slot(r, g, flat->first_slot + k);
        }
    }
}

/* DeepSpeed's layout: the one flat goes in parts whose ends are those of tensors. */
static void
form_parts(shl_reducer *r, int64_t bucket_elems)
{
    const shl_layout *l = r->st->layout;
    SHL_ASSERT(l->n_train_flats <= 1);
    for (int i = 0; i < l->n_slots && l->slots[i].flat < l->n_train_flats; ++i) {
        const shl_layout_slot *s = &l->slots[i];
        shl_reduce_group *g = r->n_groups > 0 ? &r->groups[r->n_groups - 1] : NULL;
        if (g == NULL || s->offset + s->elems - g->begin > bucket_elems) {
            if (g != NULL) {
                g->end = s->offset;
            }
            g = open_group(r, 0, i);
            g->n_flats = 1;
            g->begin = s->offset;
            g->end = l->flats[0].flat_elems;
        }
        add_slot(r, g, i);
    }
    for (int i = 0; i < r->n_groups; ++i) {
        r->groups[i].elems = r->groups[i].end - r->groups[i].begin;
        r->groups[i].part = r->n_groups > 1;
    }
}

/* Whether gradients live in the whole store for good. */
static bool
writes_store(const shl_reducer *r)
{
    return r->mode == SHL_REDUCE_IN_PLACE || r->mode == SHL_REDUCE_CAST;
}

static void
bind_store(shl_reducer *r)
{
    const shl_layout *l = r->st->layout;
    for (int i = 0; i < l->n_slots && l->slots[i].flat < l->n_train_flats; ++i) {
        const shl_layout_slot *s = &l->slots[i];
        shl_param *p = r->st->engine->model->params[s->param];
        p->grad_dtype = r->st->grad.dtype;
        p->grad =
            shl_elem_ptr(shl_state_full(r->st, &r->st->grad, s->flat), p->grad_dtype, s->offset);
    }
}

shl_code
shl_reducer_init(shl_reducer *r, shl_state *st, shl_reduce_mode mode, int64_t bucket_elems)
{
    const shl_engine_config *c = &st->engine->config;
    const shl_layout *l = st->layout;
    size_t n = (size_t)l->n_slots, n_segs = (size_t)l->n_flats;
    memset(r, 0, sizeof(*r));
    r->st = st;
    r->mode = mode;
    bool own = mode == SHL_REDUCE_BUCKET || mode == SHL_REDUCE_CAST;
    r->dtype = own ? c->reduce_dtype : c->grad_dtype;
    r->flying = -1;
    SHL_ASSERT(!writes_store(r) || st->grad.full);
    SHL_ASSERT(own || c->reduce_dtype == c->grad_dtype);
    SHL_TRY(shl_heap_alloc(n, sizeof(*r->groups), &r->groups));
    SHL_TRY(shl_heap_alloc(n, sizeof(*r->group_of_slot), &r->group_of_slot));
    if (c->zero.single_cut) { /* a group goes to as many ranks as own some of it */
        n_segs = (size_t)(l->n_pieces < SHL_COMM_MAX_SEGS ? l->n_pieces : SHL_COMM_MAX_SEGS);
        n_segs = n_segs < 2 ? 2 : n_segs;
    }
    SHL_TRY(shl_heap_alloc(n_segs, sizeof(*r->segs), &r->segs));
    if (c->zero.single_cut) {
        form_parts(r, bucket_elems);
    } else {
        form_groups(r, bucket_elems);
    }
    if (writes_store(r)) {
        bind_store(r);
    }
    return SHL_OK;
}

void
shl_reducer_fini(shl_reducer *r)
{
    for (int i = 0; r->groups != NULL && i < r->n_groups; ++i) {
        shl_device_free(r->st->engine->device, &r->groups[i].sent);
        shl_device_free(r->st->engine->device, &r->groups[i].bucket);
    }
    shl_heap_free(&r->groups);
    shl_heap_free(&r->group_of_slot);
    shl_heap_free(&r->segs);
}

void
shl_reducer_begin(shl_reducer *r, bool first, bool last)
{
    shl_model *model = r->st->engine->model;
    r->first = first;
    r->last = last;
    for (int i = 0; i < r->n_groups; ++i) {
        r->groups[i].uses_left = r->groups[i].n_uses;
    }
    if (writes_store(r) && first) {
        for (int i = 0; i < model->n_params; ++i) {
            model->params[i]->grad_accumulate = false;
        }
    }
}

/* Element `at` of a flat in its group's bucket. */
static void *
bucket_at(const shl_reducer *r, const shl_reduce_group *g, int flat, int64_t at)
{
    at -= g->part ? g->begin : 0;
    for (int f = g->first_flat; f < flat; ++f) {
        at += bucket_flat_elems(r->st->layout, f);
    }
    return shl_elem_ptr(g->bucket.data, r->dtype, at);
}

static void
bind_bucket(const shl_reducer *r, const shl_reduce_group *g, bool bound)
{
    for (int i = g->first_slot; i < g->first_slot + g->n_slots; ++i) {
        const shl_layout_slot *s = &r->st->layout->slots[i];
        shl_param *p = r->st->engine->model->params[s->param];
        p->grad = bound ? bucket_at(r, g, s->flat, s->offset) : NULL;
        p->grad_dtype = r->dtype;
        p->grad_accumulate = false;
    }
}

static int
slot_of(const shl_reducer *r, const shl_param *p)
{
    return r->st->layout->slot_of_param[p->index];
}

static bool
is_trainable(const shl_reducer *r, int slot)
{
    return r->st->layout->slots[slot].flat < r->st->layout->n_train_flats;
}

static shl_code
take_bucket(shl_reducer *r, shl_reduce_group *g)
{
    return shl_device_alloc(r->st->engine->device, (size_t)g->elems * shl_dtype_bytes(r->dtype),
                            SHL_TIER_DEVICE, SHL_TAG_BUCKET, SHL_MEM_COMM, g->owner, &g->bucket);
}

shl_code
shl_reducer_prepare(shl_reducer *r, const shl_module *m)
{
    if (writes_store(r)) {
        return SHL_OK;
    }
    for (int i = 0; i < m->n_params; ++i) {
        int slot = slot_of(r, m->params[i]);
        shl_reduce_group *g = &r->groups[r->group_of_slot[slot]];
        if (!is_trainable(r, slot) || g->bucket.data != NULL) {
            continue;
        }
        SHL_TRY(take_bucket(r, g));
        bind_bucket(r, g, true);
    }
    return SHL_OK;
}

static bool
offloads(const shl_reducer *r)
{
    return r->st->cut < r->st->layout->shard_elems[SHL_SPACE_TRAIN];
}

/* Whether what was reduced becomes the store's value, instead of being added to it. */
static bool
fresh(const shl_reducer *r)
{
    return r->first || r->mode == SHL_REDUCE_HOLD || r->mode == SHL_REDUCE_CAST;
}

/* A bucket that is reduced straight into the store needs no fold: nothing is there to add to. */
static bool
straight(const shl_reducer *r)
{
    return r->mode != SHL_REDUCE_IN_PLACE && !r->st->grad.full && r->st->grad.dtype == r->dtype &&
           fresh(r) && !offloads(r);
}

/* Elements of a flat that a group reduces and a piece has: how many, and the first of them. */
static int64_t
owned(const shl_reducer *r, const shl_reduce_group *g, int flat, int64_t piece, int64_t *first)
{
    int64_t n = r->st->layout->flats[flat].piece_elems, end = (piece + 1) * n;
    *first = piece * n;
    if (!g->part) {
        return n;
    }
    end = end < g->end ? end : g->end;
    *first = *first > g->begin ? *first : g->begin;
    return end > *first ? end - *first : 0;
}

/* Gradients of a flat from element `at` on, before they are reduced. */
static void *
grads_at(const shl_reducer *r, const shl_reduce_group *g, int flat, int64_t at)
{
    return r->mode == SHL_REDUCE_IN_PLACE
               ? shl_elem_ptr(shl_state_full(r->st, &r->st->grad, flat), r->dtype, at)
               : bucket_at(r, g, flat, at);
}

/* This rank's elements of a flat that a group reduces: how many, where they are when they are reduced, where
 * in this rank's piece they begin. */
static int64_t
mine_of(const shl_reducer *r, const shl_reduce_group *g, int flat, void **reduced, int64_t *at)
{
    const shl_layout_flat *f = &r->st->layout->flats[flat];
    int64_t first, n = owned(r, g, flat, r->st->piece, &first);
    *at = first - f->piece_elems * r->st->piece;
    *reduced = NULL;
    if (n > 0) {
        *reduced = straight(r) ? shl_store_at(&r->st->grad, f->shard_offset + *at)
                               : grads_at(r, g, flat, first);
    }
    return n;
}

/* Ranges that are no equal pieces: one segment for each rank that owns some of the group. */
static shl_code
reduce_part(shl_reducer *r, shl_reduce_group *g, shl_stream *comm)
{
    const shl_comm *shard = r->st->engine->mesh.shard;
    int64_t each = r->st->layout->flats[g->first_flat].piece_elems, at;
    int n = 0;
    for (int64_t to = g->begin / each; to * each < g->end && to < shl_comm_size(shard); ++to) {
        int64_t first, elems = owned(r, g, g->first_flat, to, &first);
        r->segs[n] = (shl_comm_seg){
            .src = grads_at(r, g, g->first_flat, first), .elems = elems, .to = (int)to + 1};
        if (to == r->st->piece) {
            (void)mine_of(r, g, g->first_flat, &r->segs[n].dst, &at);
        }
        if (++n == SHL_COMM_MAX_SEGS) {
            SHL_TRY(shl_comm_reduce_scatter(r->st->engine->mesh.shard, r->segs, n, r->dtype, comm,
                                            &g->done));
            n = 0;
        }
    }
    return n == 0 ? SHL_OK
                  : shl_comm_reduce_scatter(r->st->engine->mesh.shard, r->segs, n, r->dtype, comm,
                                            &g->done);
}

static shl_code
reduce_group(shl_reducer *r, shl_reduce_group *g, shl_stream *comm)
{
    const shl_mesh *mesh = &r->st->engine->mesh;
    int64_t at;
    if (mesh->shard != NULL && g->part) {
        SHL_TRY(reduce_part(r, g, comm));
    } else if (mesh->shard != NULL) {
        for (int i = 0; i < g->n_flats; ++i) {
            shl_comm_seg *seg = &r->segs[i];
            *seg = (shl_comm_seg){.src = grads_at(r, g, g->first_flat + i, 0)};
            seg->elems = mine_of(r, g, g->first_flat + i, &seg->dst, &at);
        }
        SHL_TRY(
            shl_comm_reduce_scatter(mesh->shard, r->segs, g->n_flats, r->dtype, comm, &g->done));
    }
    if (mesh->replicate != NULL) {
        for (int i = 0; i < g->n_flats; ++i) {
            shl_comm_seg *seg = &r->segs[i];
            *seg = (shl_comm_seg){0};
            seg->elems = mine_of(r, g, g->first_flat + i, &seg->dst, &at);
            seg->src = seg->dst;
        }
        SHL_TRY(
            shl_comm_all_reduce(mesh->replicate, r->segs, g->n_flats, r->dtype, comm, &g->done));
    }
    return SHL_OK;
}

/* Whether pieces are copied into the store in host memory as they are. */
static bool
sent_straight(const shl_reducer *r)
{
    return fresh(r) && r->st->grad.dtype == r->dtype;
}

/* Of n elements of this rank's piece from `at` on, those whose store is on the device. */
static int64_t
near_of(const shl_reducer *r, int flat, int64_t at, int64_t n)
{
    int64_t near = shl_offload_near_elems(r->st, flat) - at;
    near = near < 0 ? 0 : near;
    return near < n ? near : n;
}

/* Room for the elements of a group whose store is in host memory: the same on ranks that own none of it. */
static int64_t
far_elems(const shl_reducer *r, const shl_reduce_group *g)
{
    int64_t elems = 0;
    for (int f = g->first_flat; f < g->first_flat + g->n_flats; ++f) {
        elems += r->st->layout->flats[f].piece_elems - shl_offload_near_elems(r->st, f);
    }
    return g->part && elems > g->elems ? g->elems : elems;
}

/* Copies this rank's reduced pieces to host memory, behind the reduction. */
static shl_code
send(shl_reducer *r, shl_reduce_group *g)
{
    shl_device *d = r->st->engine->device;
    shl_stream *s = shl_device_move_stream(d, SHL_MOVE_TO_HOST);
    int64_t at = 0, elems = far_elems(r, g);
    g->moved = (shl_event){0};
    if (elems == 0) {
        return SHL_OK;
    }
    if (!sent_straight(r)) {
        SHL_TRY(shl_device_alloc(
            d, (size_t)elems * shl_dtype_bytes(r->dtype), SHL_TIER_HOST, SHL_TAG_STAGING,
            r->st->engine->config.offload.pin ? SHL_MEM_PIN : 0, g->owner, &g->sent));
    }
    SHL_TRY(shl_stream_wait(s, g->done));
    for (int f = g->first_flat; f < g->first_flat + g->n_flats; ++f) {
        void *reduced;
        int64_t begin, n = mine_of(r, g, f, &reduced, &begin), near = near_of(r, f, begin, n);
        begin += r->st->layout->flats[f].shard_offset + near;
        n -= near;
        if (n > 0) {
            void *dst = g->sent.data != NULL ? shl_elem_ptr(g->sent.data, r->dtype, at)
                                             : shl_store_at(&r->st->grad, begin);
            SHL_TRY(shl_device_move(d, dst, shl_elem_ptr(reduced, r->dtype, near),
                                    (size_t)n * shl_dtype_bytes(r->dtype), SHL_MOVE_TO_HOST));
            at += n;
        }
    }
    return shl_stream_record(s, &g->moved);
}

/* store = piece, or store = store + piece. */
static shl_code
fold(shl_reducer *r, void *store_data, void *piece_data, int64_t n)
{
    shl_stream *s = shl_device_stream(r->st->engine->device, SHL_STREAM_COMPUTE);
    shl_tensor piece = shl_tensor_1d(piece_data, r->dtype, n);
    shl_tensor store = shl_tensor_1d(store_data, r->st->grad.dtype, n);
    if (n == 0) {
        return SHL_OK;
    }
    if (fresh(r)) {
        return shl_op_cast(s, &store, &piece);
    }
    shl_add_args a = {.x1 = store, .x2 = piece, .y = store};
    return shl_op_add(s, &a);
}

/* The parts of a group's pieces on either side of the cut. */
static shl_code
fold_group(shl_reducer *r, const shl_reduce_group *g)
{
    const shl_store *grad = &r->st->grad;
    int64_t at = 0;
    for (int f = g->first_flat; f < g->first_flat + g->n_flats; ++f) {
        void *reduced;
        int64_t begin, n = mine_of(r, g, f, &reduced, &begin);
        int64_t near = grad->full ? n : near_of(r, f, begin, n);
        if (near > 0) {
            void *piece = shl_state_piece(r->st, grad, f);
            SHL_TRY(fold(r, shl_elem_ptr(piece, grad->dtype, begin), reduced, near));
        }
        if (g->sent.data != NULL && n > near) {
            begin += r->st->layout->flats[f].shard_offset + near;
            SHL_TRY(fold(r, shl_store_at(grad, begin), shl_elem_ptr(g->sent.data, r->dtype, at),
                         n - near));
            at += n - near;
        }
    }
    return SHL_OK;
}

/* Waits for the launched group, folds its bucket into the store and frees it. */
static shl_code
finish(shl_reducer *r)
{
    shl_engine *e = r->st->engine;
    if (r->flying < 0) {
        return SHL_OK;
    }
    shl_reduce_group *g = &r->groups[r->flying];
    r->flying = -1;
    SHL_TRY(shl_engine_wait_comm(e, g->done));
    if (r->mode == SHL_REDUCE_IN_PLACE) {
        return SHL_OK;
    }
    SHL_TRY(shl_engine_wait_move(e, g->moved));
    if (!straight(r)) {
        SHL_TRY(fold_group(r, g));
    }
    shl_device_free(e->device, &g->sent);
    shl_device_free(e->device, &g->bucket);
    return SHL_OK;
}

/* The group's accumulated gradients into a bucket of the dtype that they are reduced in. */
static shl_code
cast_group(shl_reducer *r, shl_reduce_group *g)
{
    shl_stream *s = shl_device_stream(r->st->engine->device, SHL_STREAM_COMPUTE);
    SHL_TRY(take_bucket(r, g));
    for (int f = g->first_flat; f < g->first_flat + g->n_flats; ++f) {
        const shl_store *grad = &r->st->grad;
        int64_t begin = g->part ? g->begin : 0;
        int64_t n = g->part ? g->elems : r->st->layout->flats[f].flat_elems;
        void *from = shl_elem_ptr(shl_state_full(r->st, grad, f), grad->dtype, begin);
        shl_tensor whole = shl_tensor_1d(from, grad->dtype, n);
        shl_tensor sent = shl_tensor_1d(bucket_at(r, g, f, begin), r->dtype, n);
        SHL_TRY(shl_op_cast(s, &sent, &whole));
    }
    return SHL_OK;
}

static shl_code
launch(shl_reducer *r, int group)
{
    shl_engine *e = r->st->engine;
    shl_reduce_group *g = &r->groups[group];
    shl_stream *comm = shl_device_stream(e->device, SHL_STREAM_COMM);
    shl_event ready;
    if (r->mode != SHL_REDUCE_BUCKET && !r->last) {
        return SHL_OK;
    }
    if (r->mode != SHL_REDUCE_IN_PLACE) {
        SHL_TRY(finish(r));
    }
    if (r->mode == SHL_REDUCE_CAST) {
        SHL_TRY(cast_group(r, g));
    } else if (!writes_store(r)) {
        bind_bucket(r, g, false);
    }
    SHL_TRY(shl_stream_record(shl_device_stream(e->device, SHL_STREAM_COMPUTE), &ready));
    SHL_TRY(shl_stream_wait(comm, ready));
    SHL_TRY(reduce_group(r, g, comm));
    if (offloads(r)) {
        SHL_TRY(send(r, g));
    }
    if (r->st->engine->config.zero.serial_reduce) {
        SHL_TRY(shl_engine_wait_comm(e, g->done));
    }
    r->flying = group; /* in place the stream's order makes the newest one stand for all */
    return SHL_OK;
}

shl_code
shl_reducer_ready(shl_reducer *r, const shl_param *p)
{
    int slot = slot_of(r, p), group = r->group_of_slot[slot];
    if (!is_trainable(r, slot)) {
        return SHL_OK;
    }
    SHL_ASSERT(r->groups[group].uses_left > 0);
    r->groups[group].uses_left--;
    return r->groups[group].uses_left == 0 ? launch(r, group) : SHL_OK;
}

shl_code
shl_reducer_flush(shl_reducer *r)
{
    return finish(r);
}

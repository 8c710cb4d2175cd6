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

static void
form_groups(shl_reducer *r, int64_t bucket_elems)
{
    const shl_layout *l = r->st->layout;
    const shl_model *model = r->st->engine->model;
    for (int f = 0; f < l->n_train_flats; ++f) {
        int64_t elems = bucket_flat_elems(l, f);
        shl_reduce_group *g = r->n_groups > 0 ? &r->groups[r->n_groups - 1] : NULL;
        if (g == NULL || bucket_elems == 0 || g->elems + elems > bucket_elems) {
            g = &r->groups[r->n_groups++];
            g->first_flat = f;
            g->owner = model->params[l->slots[l->flats[f].first_slot].param]->name;
        }
        g->n_flats++;
        g->elems += elems;
        r->group_of_flat[f] = r->n_groups - 1;
        for (int k = 0; k < l->flats[f].n_slots; ++k) {
            g->n_uses += model->params[l->slots[l->flats[f].first_slot + k].param]->n_uses;
        }
    }
}

/* In place: gradients live in the whole store for good. */
static void
bind_store(shl_reducer *r)
{
    const shl_layout *l = r->st->layout;
    for (int i = 0; i < l->n_slots && l->slots[i].flat < l->n_train_flats; ++i) {
        const shl_layout_slot *s = &l->slots[i];
        shl_param *p = r->st->engine->model->params[s->param];
        p->grad = shl_elem_ptr(shl_state_full(r->st, &r->st->grad, s->flat), r->dtype, s->offset);
        p->grad_dtype = r->dtype;
    }
}

shl_code
shl_reducer_init(shl_reducer *r, shl_state *st, shl_reduce_mode mode, int64_t bucket_elems)
{
    const shl_engine_config *c = &st->engine->config;
    size_t n = (size_t)st->layout->n_flats;
    memset(r, 0, sizeof(*r));
    r->st = st;
    r->mode = mode;
    r->dtype = mode == SHL_REDUCE_BUCKET ? c->reduce_dtype : c->grad_dtype;
    r->flying = -1;
    SHL_ASSERT(mode != SHL_REDUCE_IN_PLACE || st->grad.full);
    SHL_ASSERT(mode == SHL_REDUCE_BUCKET || c->reduce_dtype == c->grad_dtype);
    SHL_TRY(shl_heap_alloc(n, sizeof(*r->groups), &r->groups));
    SHL_TRY(shl_heap_alloc(n, sizeof(*r->group_of_flat), &r->group_of_flat));
    SHL_TRY(shl_heap_alloc(n, sizeof(*r->segs), &r->segs));
    form_groups(r, bucket_elems);
    if (mode == SHL_REDUCE_IN_PLACE) {
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
    shl_heap_free(&r->group_of_flat);
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
    if (r->mode == SHL_REDUCE_IN_PLACE && first) {
        for (int i = 0; i < model->n_params; ++i) {
            model->params[i]->grad_accumulate = false;
        }
    }
}

/* A flat's place in its group's bucket. */
static void *
bucket_flat(const shl_reducer *r, const shl_reduce_group *g, int flat)
{
    int64_t at = 0;
    for (int f = g->first_flat; f < flat; ++f) {
        at += bucket_flat_elems(r->st->layout, f);
    }
    return shl_elem_ptr(g->bucket.data, r->dtype, at);
}

static void
bind_bucket(const shl_reducer *r, const shl_reduce_group *g, bool bound)
{
    const shl_layout *l = r->st->layout;
    for (int f = g->first_flat; f < g->first_flat + g->n_flats; ++f) {
        for (int k = 0; k < l->flats[f].n_slots; ++k) {
            const shl_layout_slot *s = &l->slots[l->flats[f].first_slot + k];
            shl_param *p = r->st->engine->model->params[s->param];
            p->grad = bound ? shl_elem_ptr(bucket_flat(r, g, f), r->dtype, s->offset) : NULL;
            p->grad_dtype = r->dtype;
            p->grad_accumulate = false;
        }
    }
}

static int
flat_of(const shl_reducer *r, const shl_param *p)
{
    const shl_layout *l = r->st->layout;
    return l->slots[l->slot_of_param[p->index]].flat;
}

shl_code
shl_reducer_prepare(shl_reducer *r, const shl_module *m)
{
    shl_engine *e = r->st->engine;
    if (r->mode == SHL_REDUCE_IN_PLACE) {
        return SHL_OK;
    }
    for (int i = 0; i < m->n_params; ++i) {
        int flat = flat_of(r, m->params[i]);
        shl_reduce_group *g = &r->groups[r->group_of_flat[flat]];
        if (flat >= r->st->layout->n_train_flats || g->bucket.data != NULL) {
            continue;
        }
        SHL_TRY(shl_device_alloc(e->device, (size_t)g->elems * shl_dtype_bytes(r->dtype),
                                 SHL_TIER_DEVICE, SHL_TAG_BUCKET, SHL_MEM_COMM, g->owner,
                                 &g->bucket));
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
    return r->first || r->mode == SHL_REDUCE_HOLD;
}

/* A bucket that is reduced straight into the store needs no fold: nothing is there to add to. */
static bool
straight(const shl_reducer *r)
{
    return r->mode != SHL_REDUCE_IN_PLACE && !r->st->grad.full && r->st->grad.dtype == r->dtype &&
           fresh(r) && !offloads(r);
}

/* Whole gradients of a flat, and where this rank's reduced piece appears. */
static void *
whole_of(const shl_reducer *r, const shl_reduce_group *g, int flat)
{
    return r->mode == SHL_REDUCE_IN_PLACE ? shl_state_full(r->st, &r->st->grad, flat)
                                          : bucket_flat(r, g, flat);
}

static void *
piece_of(const shl_reducer *r, const shl_reduce_group *g, int flat)
{
    int64_t at = r->st->layout->flats[flat].piece_elems * r->st->piece;
    return straight(r) ? shl_state_piece(r->st, &r->st->grad, flat)
                       : shl_elem_ptr(whole_of(r, g, flat), r->dtype, at);
}

static shl_code
reduce_group(shl_reducer *r, shl_reduce_group *g, shl_stream *comm)
{
    const shl_mesh *mesh = &r->st->engine->mesh;
    const shl_layout *l = r->st->layout;
    if (mesh->shard != NULL) {
        for (int i = 0; i < g->n_flats; ++i) {
            int flat = g->first_flat + i;
            r->segs[i] = (shl_comm_seg){.src = whole_of(r, g, flat),
                                        .dst = piece_of(r, g, flat),
                                        .elems = l->flats[flat].piece_elems};
        }
        SHL_TRY(
            shl_comm_reduce_scatter(mesh->shard, r->segs, g->n_flats, r->dtype, comm, &g->done));
    }
    if (mesh->replicate != NULL) {
        for (int i = 0; i < g->n_flats; ++i) {
            void *piece = piece_of(r, g, g->first_flat + i);
            r->segs[i] = (shl_comm_seg){
                .src = piece, .dst = piece, .elems = l->flats[g->first_flat + i].piece_elems};
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

/* Elements of a group whose store is in host memory. */
static int64_t
far_elems(const shl_reducer *r, const shl_reduce_group *g)
{
    int64_t elems = 0;
    for (int f = g->first_flat; f < g->first_flat + g->n_flats; ++f) {
        elems += r->st->layout->flats[f].piece_elems - shl_offload_near_elems(r->st, f);
    }
    return elems;
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
        const shl_layout_flat *flat = &r->st->layout->flats[f];
        int64_t near = shl_offload_near_elems(r->st, f), n = flat->piece_elems - near;
        if (n > 0) {
            void *dst = g->sent.data != NULL
                            ? shl_elem_ptr(g->sent.data, r->dtype, at)
                            : shl_store_at(&r->st->grad, flat->shard_offset + near);
            SHL_TRY(shl_device_move(d, dst, shl_elem_ptr(piece_of(r, g, f), r->dtype, near),
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
        const shl_layout_flat *flat = &r->st->layout->flats[f];
        int64_t near = grad->full ? flat->piece_elems : shl_offload_near_elems(r->st, f);
        SHL_TRY(fold(r, shl_state_piece(r->st, grad, f), piece_of(r, g, f), near));
        if (g->sent.data != NULL) {
            int64_t n = flat->piece_elems - near;
            SHL_TRY(fold(r, shl_store_at(grad, flat->shard_offset + near),
                         shl_elem_ptr(g->sent.data, r->dtype, at), n));
            at += n;
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
    int flat = flat_of(r, p);
    int group = r->group_of_flat[flat];
    if (flat >= r->st->layout->n_train_flats) {
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

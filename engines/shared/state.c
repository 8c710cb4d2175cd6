/* engines/shared: the stores of a rank, addressed by fragments. What is allocated here is exactly the
 * model-state row of DESIGN 4; everything temporary is in gather.c and reduce.c. */
#include "engines/shared/state.h"

#include <math.h>
#include <string.h>

#include "engines/shared/lamb.h"
#include "engines/shared/offload.h"
#include "kernels/base/heap.h"
#include "kernels/base/rng.h"
#include "kernels/ops/ops.h"

#define NORM_SCRATCH_BYTES 64

/* One side of a store, zeroed. */
static shl_code
take_side(shl_state *st, const shl_store *store, int64_t elems, bool far, shl_tag tag,
          unsigned flags, const char *owner, shl_buf *out)
{
    shl_device *d = st->engine->device;
    size_t bytes = (size_t)elems * shl_dtype_bytes(store->dtype);
    if (elems == 0) {
        return SHL_OK;
    }
    if (far) {
        flags = st->engine->config.offload.pin ? SHL_MEM_PIN : 0;
    }
    SHL_TRY(
        shl_device_alloc(d, bytes, far ? SHL_TIER_HOST : SHL_TIER_DEVICE, tag, flags, owner, out));
    return shl_device_fill(d, out->data, 0, bytes, NULL);
}

/* The store's arrays; a space without flats takes no bytes. */
static shl_code
take(shl_state *st, shl_store *store, shl_tag tag, unsigned flags, const char *owner)
{
    const shl_layout *l = st->layout;
    int64_t elems = store->full ? l->full_elems[store->space] : l->shard_elems[store->space];
    int64_t near = store->full || store->cut > elems ? elems : store->cut;
    bool master = store == &st->master;
    if (!master || st->apart) {
        SHL_TRY(take_side(st, store, near, false, tag, flags, owner, &store->buf));
    }
    if (!master || st->far_apart) {
        SHL_TRY(take_side(st, store, elems - near, true, tag, flags, owner, &store->far));
    }
    return SHL_OK;
}

/* Initial values of the whole parameter or of one fragment: the same elements either way. */
static shl_code
init_range(shl_state *st, int param, int64_t begin, int64_t end, shl_dtype dtype, void *dst)
{
    const shl_param *p = st->engine->model->params[param];
    shl_init_args a = {.dst = shl_tensor_1d(dst, dtype, end - begin),
                       .kind = p->init_kind,
                       .value = p->init_value,
                       .std = p->init_std,
                       .seed = st->engine->config.seed,
                       .stream = p->init_stream,
                       .begin = begin};
    return shl_op_init(shl_device_stream(st->engine->device, SHL_STREAM_COMPUTE), &a);
}

shl_code
shl_state_init_whole(shl_state *st, int param)
{
    const shl_param *p = st->engine->model->params[param];
    return init_range(st, param, 0, p->elems, st->engine->config.compute_dtype, p->data);
}

static shl_code
init_fragments(shl_state *st, const shl_store *store)
{
    for (int i = 0; i < st->n_frags; ++i) {
        const shl_fragment *f = &st->frags[i];
        bool same = st->layout->flats[f->flat].space == store->space;
        if (same && (store != &st->master || shl_state_master_of(st, f) == store)) {
            shl_tensor t = shl_state_fragment(st, store, f);
            SHL_TRY(init_range(st, f->param, f->begin, f->end, store->dtype, t.data));
        }
    }
    return SHL_OK;
}

static shl_code
init_store(shl_state *st, const shl_store *store)
{
    const shl_layout *l = st->layout;
    if (!store->full) {
        return init_fragments(st, store);
    }
    for (int i = 0; i < l->n_slots; ++i) {
        const shl_layout_slot *s = &l->slots[i];
        if (l->flats[s->flat].space == store->space) {
            void *base = shl_state_full(st, store, s->flat);
            SHL_TRY(init_range(st, s->param, 0, s->elems, store->dtype,
                               shl_elem_ptr(base, store->dtype, s->offset)));
        }
    }
    return SHL_OK;
}

shl_space
shl_state_space(const shl_engine_config *c, const shl_param *p)
{
    return p->trainable && !c->no_optimizer ? SHL_SPACE_TRAIN : SHL_SPACE_FROZEN;
}

void
shl_state_sort_spaces(const shl_engine_config *c, const shl_model *model, int *order)
{
    int n = 0;
    /* Insertion keeps the order within a space. */
    for (int i = 0; i < model->n_params; ++i) {
        int p = order[i];
        if (shl_state_space(c, model->params[p]) == SHL_SPACE_TRAIN) {
            memmove(&order[n + 1], &order[n], (size_t)(i - n) * sizeof(*order));
            order[n++] = p;
        }
    }
}

/* The first shard element whose optimizer state is in host memory: whole sub-groups, of which the first
 * ones stay (DeepSpeed's Twin-Flow). */
static int64_t
cut_of(const shl_state *st)
{
    const shl_offload_config *o = &st->engine->config.offload;
    int64_t elems = st->layout->shard_elems[SHL_SPACE_TRAIN];
    int64_t groups = (elems + o->sub_group_elems - 1) / o->sub_group_elems;
    if (o->optimizer == SHL_OFFLOAD_NONE) {
        return elems;
    }
    int64_t cut = (groups - (int64_t)ceil(o->ratio * (double)groups)) * o->sub_group_elems;
    return cut < elems ? cut : elems;
}

static void
describe_stores(shl_state *st, const shl_state_spec *spec)
{
    const shl_engine_config *c = &st->engine->config;
    shl_dtype param = spec->cast_gather ? c->master_dtype : c->compute_dtype;
    bool full = spec->param_full, far = c->offload.param != SHL_OFFLOAD_NONE;
    int64_t all = far ? 0 : INT64_MAX;
    SHL_ASSERT(!far || (!full && !spec->cast_gather));
    st->cut = cut_of(st);
    st->apart = far || param != c->master_dtype;
    st->far_apart = !far || param != c->master_dtype;
    st->param = (shl_store){.dtype = param, .full = full, .cut = all};
    st->frozen =
        (shl_store){.dtype = c->compute_dtype, .space = SHL_SPACE_FROZEN, .full = full, .cut = all};
    st->master = (shl_store){.dtype = c->master_dtype, .cut = st->cut};
    st->grad = (shl_store){.dtype = c->grad_dtype, .full = spec->grad_full, .cut = st->cut};
    st->m = (shl_store){.dtype = c->moment_dtype, .cut = st->cut};
    st->v = (shl_store){.dtype = c->moment_dtype, .cut = st->cut};
    SHL_ASSERT(!spec->grad_full || st->cut == st->layout->shard_elems[SHL_SPACE_TRAIN]);
}

/* A fragment that the cut goes through becomes two. */
static shl_code
split_at_cut(shl_state *st)
{
    size_t n = (size_t)st->n_frags;
    for (int i = 0; i < st->n_train_frags; ++i) {
        int64_t head = st->cut - st->frags[i].shard_offset;
        if (head <= 0 || head >= st->frags[i].end - st->frags[i].begin) {
            continue;
        }
        SHL_TRY(shl_heap_grow(&st->frags, n, n + 1, sizeof(*st->frags)));
        shl_fragment *f = &st->frags[i];
        memmove(f + 1, f, (n - (size_t)i) * sizeof(*f));
        f[0].end = f[1].begin = f[0].begin + head;
        f[1].flat_offset += head;
        f[1].shard_offset += head;
        st->n_frags++;
        st->n_train_frags++;
        break;
    }
    return SHL_OK;
}

static shl_code
take_moments(shl_state *st)
{
    const shl_optim_config *o = &st->engine->config.optim;
    st->has_m = shl_optim_has_m(o);
    st->has_v = shl_optim_has_v(o);
    if (st->has_m) {
        SHL_TRY(take(st, &st->m, SHL_TAG_OPTIM, 0, shl_optim_owner_m(o->kind)));
    }
    if (st->has_v) {
        SHL_TRY(take(st, &st->v, SHL_TAG_OPTIM, 0, shl_optim_owner_v(o->kind)));
    }
    return shl_lamb_init(st);
}

shl_code
shl_state_init(shl_state *st, shl_engine *e, shl_layout **layout, const shl_state_spec *spec)
{
    memset(st, 0, sizeof(*st));
    st->engine = e;
    st->layout = *layout;
    *layout = NULL;
    st->piece = spec->piece;
    describe_stores(st, spec);
    SHL_TRY(shl_layout_fragments(st->layout, st->piece, &st->frags, &st->n_frags));
    for (int i = 0; i < st->n_frags; ++i) {
        st->n_train_frags += st->layout->flats[st->frags[i].flat].space == SHL_SPACE_TRAIN;
    }
    SHL_TRY(split_at_cut(st));
    SHL_TRY(take(st, &st->param, SHL_TAG_PARAM, SHL_MEM_COMM,
                 st->param.full ? "params" : "param shards"));
    SHL_TRY(take(st, &st->frozen, SHL_TAG_PARAM, SHL_MEM_COMM,
                 st->frozen.full ? "frozen params" : "frozen param shards"));
    SHL_TRY(take(st, &st->master, SHL_TAG_MASTER, 0, "master weights"));
    SHL_TRY(
        take(st, &st->grad, SHL_TAG_GRAD, SHL_MEM_COMM, st->grad.full ? "grads" : "grad shards"));
    SHL_TRY(take_moments(st));
    SHL_TRY(shl_device_alloc(e->device, NORM_SCRATCH_BYTES, SHL_TIER_DEVICE, SHL_TAG_WORK, 0,
                             "grad norm", &st->scratch));
    SHL_TRY(init_store(st, &st->param));
    SHL_TRY(init_store(st, &st->frozen));
    return init_store(st, &st->master);
}

void
shl_state_fini(shl_state *st)
{
    shl_store *stores[] = {&st->v, &st->m, &st->grad, &st->master, &st->frozen, &st->param};
    if (st->engine == NULL) {
        return;
    }
    shl_lamb_fini(st);
    shl_device_free(st->engine->device, &st->scratch);
    for (size_t i = 0; i < SHL_ARRAY_LEN(st->rounded); ++i) {
        shl_device_free(st->engine->device, &st->rounded[i]);
    }
    for (size_t i = 0; i < SHL_ARRAY_LEN(stores); ++i) {
        shl_device_free(st->engine->device, &stores[i]->far);
        shl_device_free(st->engine->device, &stores[i]->buf);
    }
    shl_heap_free(&st->frags);
    shl_layout_free(&st->layout);
    st->engine = NULL;
}

const shl_store *
shl_state_params_of(const shl_state *st, int flat)
{
    return st->layout->flats[flat].space == SHL_SPACE_TRAIN ? &st->param : &st->frozen;
}

const shl_store *
shl_state_master_of(const shl_state *st, const shl_fragment *f)
{
    const shl_store *params = shl_state_params_of(st, f->flat);
    bool apart = f->shard_offset < st->cut ? st->apart : st->far_apart;
    return params == &st->param && apart ? &st->master : params;
}

void *
shl_store_at(const shl_store *store, int64_t at)
{
    SHL_ASSERT(!store->full);
    return at < store->cut ? shl_elem_ptr(store->buf.data, store->dtype, at)
                           : shl_elem_ptr(store->far.data, store->dtype, at - store->cut);
}

bool
shl_store_is_far(const shl_store *store)
{
    return !store->full && store->cut == 0;
}

bool
shl_state_offloads(const shl_state *st)
{
    return st->cut < st->layout->shard_elems[SHL_SPACE_TRAIN] || shl_store_is_far(&st->param);
}

void *
shl_state_full(const shl_state *st, const shl_store *store, int flat)
{
    const shl_layout_flat *f = &st->layout->flats[flat];
    SHL_ASSERT(store->full && f->space == store->space);
    return shl_elem_ptr(store->buf.data, store->dtype, f->full_offset);
}

void *
shl_state_piece(const shl_state *st, const shl_store *store, int flat)
{
    const shl_layout_flat *f = &st->layout->flats[flat];
    SHL_ASSERT(f->space == store->space);
    return store->full ? shl_elem_ptr(store->buf.data, store->dtype,
                                      f->full_offset + f->piece_elems * st->piece)
                       : shl_store_at(store, f->shard_offset);
}

shl_tensor
shl_state_fragment(const shl_state *st, const shl_store *store, const shl_fragment *f)
{
    const shl_layout_flat *flat = &st->layout->flats[f->flat];
    SHL_ASSERT(flat->space == store->space);
    void *data = store->full ? shl_elem_ptr(store->buf.data, store->dtype,
                                            flat->full_offset + f->flat_offset)
                             : shl_store_at(store, f->shard_offset);
    return shl_tensor_1d(data, store->dtype, f->end - f->begin);
}

void
shl_state_bind_params(const shl_state *st)
{
    for (int i = 0; i < st->layout->n_slots; ++i) {
        const shl_layout_slot *s = &st->layout->slots[i];
        const shl_store *store = shl_state_params_of(st, s->flat);
        st->engine->model->params[s->param]->data =
            shl_elem_ptr(shl_state_full(st, store, s->flat), store->dtype, s->offset);
    }
}

shl_code
shl_state_gather_flat(shl_state *st, int flat, shl_event *done)
{
    shl_engine *e = st->engine;
    shl_stream *comm = shl_device_stream(e->device, SHL_STREAM_COMM);
    const shl_store *store = shl_state_params_of(st, flat);
    shl_comm_seg seg = {.src = shl_state_piece(st, store, flat),
                        .dst = shl_state_full(st, store, flat),
                        .elems = st->layout->flats[flat].piece_elems};
    shl_event ready;
    SHL_TRY(shl_stream_record(shl_device_stream(e->device, SHL_STREAM_COMPUTE), &ready));
    SHL_TRY(shl_stream_wait(comm, ready));
    return shl_comm_all_gather(e->mesh.shard, &seg, 1, store->dtype, comm, done);
}

static shl_code
refresh_fragment(shl_state *st, const shl_fragment *f, const shl_tensor *rounded, void *ctx)
{
    shl_tensor master = shl_state_fragment(st, shl_state_master_of(st, f), f);
    SHL_UNUSED(ctx);
    return rounded->data == NULL
               ? SHL_OK
               : shl_op_cast(shl_device_stream(st->engine->device, SHL_STREAM_COMPUTE), rounded,
                             &master);
}

shl_code
shl_state_refresh(shl_state *st)
{
    bool gather = st->engine->mesh.shard != NULL && st->param.full;
    shl_event done = {0};
    SHL_TRY(shl_offload_publish(st, gather, refresh_fragment, NULL));
    for (int f = st->layout->n_train_flats; gather && f < st->layout->n_flats; ++f) {
        SHL_TRY(shl_state_gather_flat(st, f, &done));
    }
    return shl_stream_wait(shl_device_stream(st->engine->device, SHL_STREAM_COMPUTE), done);
}

shl_code
shl_state_encode(const shl_state *st, int flat, void *whole, shl_comm_seg *seg)
{
    const shl_layout_flat *f = &st->layout->flats[flat];
    const shl_store *store = shl_state_params_of(st, flat);
    shl_dtype wire = st->engine->config.compute_dtype;
    *seg = (shl_comm_seg){
        .src = shl_state_piece(st, store, flat), .dst = whole, .elems = f->piece_elems};
    if (store->dtype == wire && !shl_store_is_far(store)) {
        return SHL_OK;
    }
    shl_tensor from = shl_tensor_1d(shl_state_piece(st, store, flat), store->dtype, seg->elems);
    shl_tensor to =
        shl_tensor_1d(shl_elem_ptr(whole, wire, f->piece_elems * st->piece), wire, seg->elems);
    seg->src = to.data;
    if (shl_store_is_far(store)) {
        return shl_device_move(st->engine->device, to.data, from.data, shl_tensor_bytes(&to),
                               SHL_MOVE_TO_DEVICE);
    }
    return shl_op_cast(shl_device_stream(st->engine->device, SHL_STREAM_COMPUTE), &to, &from);
}

static shl_code
visit_fragment(shl_state *st, const char *kind, const shl_store *store, const shl_fragment *f,
               shl_state_visitor v, void *ctx)
{
    const shl_param *p = st->engine->model->params[f->param];
    const shl_comm *rep = st->engine->mesh.replicate;
    shl_shard s = {.name = p->name,
                   .kind = kind,
                   .n_dims = p->n_dims,
                   .dims = p->dims,
                   .begin = f->begin,
                   .end = f->end,
                   .replica = rep != NULL ? shl_comm_rank(rep) : 0,
                   .n_replicas = rep != NULL ? shl_comm_size(rep) : 1,
                   .local = shl_state_fragment(st, store, f)};
    return v(ctx, &s);
}

shl_code
shl_state_visit(shl_state *st, shl_state_visitor v, void *ctx)
{
    for (int i = 0; i < st->n_frags; ++i) {
        const shl_fragment *f = &st->frags[i];
        SHL_TRY(visit_fragment(st, "param", shl_state_master_of(st, f), f, v, ctx));
    }
    for (int i = 0; st->has_m && i < st->n_train_frags; ++i) {
        SHL_TRY(visit_fragment(st, "opt/m", &st->m, &st->frags[i], v, ctx));
    }
    for (int i = 0; st->has_v && i < st->n_train_frags; ++i) {
        SHL_TRY(visit_fragment(st, "opt/v", &st->v, &st->frags[i], v, ctx));
    }
    return SHL_OK;
}

/* splitmix64's finaliser (Steele et al., OOPSLA 2014) over name, position and bits. */
static uint64_t
mix(uint64_t stream, uint64_t index, uint32_t bits)
{
    uint64_t x = stream ^ (index * 0x9e3779b97f4a7c15ull) ^ ((uint64_t)bits << 17);
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

#define HASH_CHUNK 262144 /* elements: each is waited for */

/* The bits as they lie, 16 or 32 of them. */
static uint64_t
hash_chunk(const shl_tensor *t, const void *chunk, uint64_t stream, int64_t first, int64_t n)
{
    uint64_t sum = 0;
    for (int64_t j = 0; j < n; ++j) {
        uint32_t bits = shl_dtype_bytes(t->dtype) == 2 ? ((const uint16_t *)chunk)[j]
                                                       : ((const uint32_t *)chunk)[j];
        sum += mix(stream, (uint64_t)(first + j), bits);
    }
    return sum;
}

shl_code
shl_state_param_hash(shl_state *st, uint64_t *sum)
{
    shl_device *d = st->engine->device;
    const shl_comm *rep = st->engine->mesh.replicate;
    uint32_t *chunk = NULL;
    shl_code code = SHL_OK;
    *sum = 0;
    if (!d->caps.has_bytes || (rep != NULL && shl_comm_rank(rep) != 0)) {
        return SHL_OK;
    }
    SHL_TRY(shl_heap_alloc(HASH_CHUNK, sizeof(*chunk), &chunk));
    for (int i = 0; i < st->n_frags; ++i) {
        const shl_fragment *f = &st->frags[i];
        uint64_t stream = st->engine->model->params[f->param]->init_stream;
        shl_tensor t = shl_state_fragment(st, shl_state_master_of(st, f), f);
        for (int64_t at = 0; at < t.dims[0]; at += HASH_CHUNK) {
            int64_t n = t.dims[0] - at < HASH_CHUNK ? t.dims[0] - at : HASH_CHUNK;
            SHL_TRY_TO(code, out,
                       shl_device_download(d, chunk, shl_elem_ptr(t.data, t.dtype, at),
                                           (size_t)n * shl_dtype_bytes(t.dtype)));
            *sum += hash_chunk(&t, chunk, stream, f->begin + at, n);
        }
    }
out:
    shl_heap_free(&chunk);
    return code;
}

/* Elements of the tensors themselves that a store holds. */
static int64_t
own_elems(const shl_state *st, const shl_store *store)
{
    int64_t elems = 0;
    for (int i = 0; i < st->n_frags; ++i) {
        const shl_fragment *f = &st->frags[i];
        bool same = st->layout->flats[f->flat].space == store->space;
        if (same && (store != &st->master || shl_state_master_of(st, f) == store)) {
            elems += f->end - f->begin;
        }
    }
    return store->full ? st->layout->elems[store->space] : elems;
}

size_t
shl_state_padding_bytes(const shl_state *st)
{
    const shl_store *stores[] = {&st->param, &st->frozen, &st->master, &st->grad, &st->m, &st->v};
    size_t bytes = 0;
    for (size_t i = 0; i < SHL_ARRAY_LEN(stores); ++i) {
        const shl_store *s = stores[i];
        if (s->buf.bytes + s->far.bytes == 0) {
            continue;
        }
        bytes += s->buf.bytes + s->far.bytes;
        bytes -= (size_t)own_elems(st, s) * shl_dtype_bytes(s->dtype);
    }
    return bytes;
}

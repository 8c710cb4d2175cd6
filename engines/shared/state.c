/* engines/shared: the stores of a rank, addressed by fragments. What is allocated here is exactly the
 * model-state row of DESIGN 4; everything temporary is in gather.c and reduce.c. */
#include "engines/shared/state.h"

#include <string.h>

#include "kernels/base/heap.h"
#include "kernels/base/rng.h"
#include "kernels/ops/ops.h"

#define NORM_SCRATCH_BYTES 64

static shl_code
take(shl_state *st, int64_t elems, shl_tag tag, unsigned flags, const char *owner, shl_buf *out)
{
    shl_device *d = st->engine->device;
    size_t bytes = (size_t)elems * shl_dtype_bytes(SHL_F32);
    SHL_TRY(shl_device_alloc(d, bytes, SHL_TIER_DEVICE, tag, flags, owner, out));
    return shl_device_fill(d, out->data, 0, bytes, NULL);
}

/* Initial values of the whole parameter or of one fragment: the same elements either way. */
static shl_code
init_range(shl_state *st, int param, int64_t begin, int64_t end, void *dst)
{
    const shl_param *p = st->engine->model->params[param];
    shl_init_args a = {.dst = shl_tensor_1d(dst, SHL_F32, end - begin),
                       .kind = p->init_kind,
                       .value = p->init_value,
                       .std = p->init_std,
                       .seed = st->engine->config.seed,
                       .stream = p->init_stream,
                       .begin = begin};
    return shl_op_init(shl_device_stream(st->engine->device, SHL_STREAM_COMPUTE), &a);
}

static shl_code
init_params(shl_state *st)
{
    const shl_layout *l = st->layout;
    if (!st->param_full) {
        for (int i = 0; i < st->n_frags; ++i) {
            const shl_fragment *f = &st->frags[i];
            shl_tensor t = shl_state_fragment(st, &st->param, false, f);
            SHL_TRY(init_range(st, f->param, f->begin, f->end, t.data));
        }
        return SHL_OK;
    }
    for (int i = 0; i < l->n_slots; ++i) {
        const shl_layout_slot *s = &l->slots[i];
        void *base = shl_state_full(st, &st->param, s->flat);
        SHL_TRY(init_range(st, s->param, 0, s->elems, shl_elem_ptr(base, SHL_F32, s->offset)));
    }
    return SHL_OK;
}

shl_code
shl_state_init(shl_state *st, shl_engine *e, shl_layout **layout, int piece, bool param_full,
               bool grad_full)
{
    memset(st, 0, sizeof(*st));
    st->engine = e;
    st->layout = *layout;
    *layout = NULL;
    st->piece = piece;
    st->param_full = param_full;
    st->grad_full = grad_full;
    const shl_layout *l = st->layout;
    SHL_TRY(shl_layout_fragments(l, piece, &st->frags, &st->n_frags));
    SHL_TRY(take(st, param_full ? l->full_elems : l->shard_elems, SHL_TAG_PARAM, SHL_MEM_COMM,
                 param_full ? "params" : "param shards", &st->param));
    SHL_TRY(take(st, grad_full ? l->full_elems : l->shard_elems, SHL_TAG_GRAD, SHL_MEM_COMM,
                 grad_full ? "grads" : "grad shards", &st->grad));
    SHL_TRY(take(st, l->shard_elems, SHL_TAG_OPTIM, 0, "adamw.m", &st->m));
    SHL_TRY(take(st, l->shard_elems, SHL_TAG_OPTIM, 0, "adamw.v", &st->v));
    SHL_TRY(shl_device_alloc(e->device, NORM_SCRATCH_BYTES, SHL_TIER_DEVICE, SHL_TAG_WORK, 0,
                             "grad norm", &st->scratch));
    return init_params(st);
}

void
shl_state_fini(shl_state *st)
{
    if (st->engine == NULL) {
        return;
    }
    shl_device *d = st->engine->device;
    shl_device_free(d, &st->scratch);
    shl_device_free(d, &st->v);
    shl_device_free(d, &st->m);
    shl_device_free(d, &st->grad);
    shl_device_free(d, &st->param);
    shl_heap_free(&st->frags);
    shl_layout_free(&st->layout);
    st->engine = NULL;
}

void *
shl_state_full(const shl_state *st, const shl_buf *store, int flat)
{
    return shl_elem_ptr(store->data, SHL_F32, st->layout->flats[flat].full_offset);
}

void *
shl_state_piece(const shl_state *st, const shl_buf *store, bool full, int flat)
{
    const shl_layout_flat *f = &st->layout->flats[flat];
    int64_t at = full ? f->full_offset + f->piece_elems * st->piece : f->shard_offset;
    return shl_elem_ptr(store->data, SHL_F32, at);
}

shl_tensor
shl_state_fragment(const shl_state *st, const shl_buf *store, bool full, const shl_fragment *f)
{
    int64_t at = full ? st->layout->flats[f->flat].full_offset + f->flat_offset : f->shard_offset;
    return shl_tensor_1d(shl_elem_ptr(store->data, SHL_F32, at), SHL_F32, f->end - f->begin);
}

void
shl_state_bind_params(const shl_state *st)
{
    for (int i = 0; i < st->layout->n_slots; ++i) {
        const shl_layout_slot *s = &st->layout->slots[i];
        st->engine->model->params[s->param]->data =
            shl_elem_ptr(shl_state_full(st, &st->param, s->flat), SHL_F32, s->offset);
    }
}

shl_comm_seg
shl_state_gather_seg(const shl_state *st, int flat, void *whole)
{
    return (shl_comm_seg){.src = shl_state_piece(st, &st->param, st->param_full, flat),
                          .dst = whole,
                          .elems = st->layout->flats[flat].piece_elems};
}

shl_code
shl_state_gather_params(shl_state *st)
{
    shl_engine *e = st->engine;
    shl_stream *compute = shl_device_stream(e->device, SHL_STREAM_COMPUTE);
    shl_stream *comm = shl_device_stream(e->device, SHL_STREAM_COMM);
    shl_event ready, done = {0};
    if (e->mesh.shard == NULL) {
        return SHL_OK;
    }
    SHL_TRY(shl_stream_record(compute, &ready));
    SHL_TRY(shl_stream_wait(comm, ready));
    for (int f = 0; f < st->layout->n_flats; ++f) {
        shl_comm_seg seg = shl_state_gather_seg(st, f, shl_state_full(st, &st->param, f));
        SHL_TRY(shl_comm_all_gather(e->mesh.shard, &seg, 1, SHL_F32, comm, &done));
    }
    return shl_stream_wait(compute, done);
}

shl_code
shl_state_visit(shl_state *st, shl_state_visitor v, void *ctx)
{
    static const char *const kinds[] = {"param", "opt/m", "opt/v"};
    const shl_buf *stores[] = {&st->param, &st->m, &st->v};
    const shl_comm *rep = st->engine->mesh.replicate;
    for (size_t k = 0; k < SHL_ARRAY_LEN(kinds); ++k) {
        for (int i = 0; i < st->n_frags; ++i) {
            const shl_fragment *f = &st->frags[i];
            const shl_param *p = st->engine->model->params[f->param];
            shl_shard s = {.name = p->name,
                           .kind = kinds[k],
                           .n_dims = p->n_dims,
                           .dims = p->dims,
                           .begin = f->begin,
                           .end = f->end,
                           .replica = rep != NULL ? shl_comm_rank(rep) : 0,
                           .n_replicas = rep != NULL ? shl_comm_size(rep) : 1,
                           .local = shl_state_fragment(st, stores[k], k == 0 && st->param_full, f)};
            SHL_TRY(v(ctx, &s));
        }
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

#define HASH_CHUNK 16384

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
        shl_tensor t = shl_state_fragment(st, &st->param, st->param_full, f);
        for (int64_t at = 0; at < t.dims[0]; at += HASH_CHUNK) {
            int64_t n = t.dims[0] - at < HASH_CHUNK ? t.dims[0] - at : HASH_CHUNK;
            SHL_TRY_TO(code, out,
                       shl_device_download(d, chunk, shl_elem_ptr(t.data, SHL_F32, at),
                                           (size_t)n * sizeof(*chunk)));
            for (int64_t j = 0; j < n; ++j) {
                *sum += mix(stream, (uint64_t)(f->begin + at + j), chunk[j]);
            }
        }
    }
out:
    shl_heap_free(&chunk);
    return code;
}

size_t
shl_state_padding_bytes(const shl_state *st)
{
    const shl_layout *l = st->layout;
    int64_t owned = 0;
    for (int i = 0; i < st->n_frags; ++i) {
        owned += st->frags[i].end - st->frags[i].begin;
    }
    int64_t full = l->full_elems - l->elems;
    int64_t shard = l->shard_elems - owned;
    int64_t elems = (st->param_full ? full : shard) + (st->grad_full ? full : shard) + 2 * shard;
    return (size_t)elems * shl_dtype_bytes(SHL_F32);
}

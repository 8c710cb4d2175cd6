/* engines/shared: publishing parameters from one tier to the other. Copies run on the stream of their
 * direction; buffers come and go at schedule points of the rank's own thread. */
#include "engines/shared/offload.h"

#include "kernels/ops/ops.h"

/* One walk over the shards of the trainable space. */
typedef struct publisher {
    shl_state *st;
    shl_publish_fn fn;
    void *ctx;
    int next_frag;          /* the first one that is not behind the sub-group */
    int next_flat;          /* to be gathered */
    int turn;               /* of the two staging buffers */
    shl_event staged[2];    /* copies that read them */
    shl_event moved, whole; /* the last copy, the last gather */
} publisher;

static int64_t
shard_elems(const shl_state *st)
{
    return st->layout->shard_elems[SHL_SPACE_TRAIN];
}

static bool
is_far(const shl_state *st, int64_t at)
{
    return at >= st->cut;
}

/* Whether values made at a place of the shards must be copied to be parameters. */
static bool
crosses(const shl_state *st, int64_t at)
{
    return is_far(st, at) != shl_store_is_far(&st->param);
}

/* Whether they are rounded on the way, so that there is no place to copy them from yet. */
static bool
needs_staging(const shl_state *st, int64_t at)
{
    return crosses(st, at) && st->param.dtype != st->master.dtype;
}

static int64_t
group_end(const shl_state *st, int64_t begin)
{
    int64_t step = st->engine->config.offload.sub_group_elems;
    int64_t end = shard_elems(st) - begin < step ? shard_elems(st) : begin + step;
    return begin < st->cut && end > st->cut ? st->cut : end;
}

/* Two buffers of the largest sub-group that needs them, in the tier of its master weights. */
static shl_code
take_staging(shl_state *st)
{
    int64_t largest = 0, n = 0, at = 0;
    for (int64_t begin = 0, end; begin < shard_elems(st); begin = end) {
        end = group_end(st, begin);
        if (needs_staging(st, begin)) {
            largest = end - begin > largest ? end - begin : largest;
            at = begin;
            n++;
        }
    }
    bool far = is_far(st, at);
    size_t bytes = (size_t)largest * shl_dtype_bytes(st->param.dtype);
    unsigned flags = far && st->engine->config.offload.pin ? SHL_MEM_PIN : 0;
    for (int i = 0; i < 2 && i < n; ++i) {
        SHL_TRY(shl_device_alloc(st->engine->device, bytes, far ? SHL_TIER_HOST : SHL_TIER_DEVICE,
                                 SHL_TAG_STAGING, flags, "rounded params", &st->rounded[i]));
    }
    return SHL_OK;
}

static shl_fragment
clip(const shl_fragment *f, int64_t begin, int64_t end)
{
    shl_fragment c = *f;
    int64_t head = begin > f->shard_offset ? begin - f->shard_offset : 0;
    int64_t tail = f->shard_offset + (f->end - f->begin) - end;
    c.begin += head;
    c.flat_offset += head;
    c.shard_offset += head;
    c.end -= tail > 0 ? tail : 0;
    return c;
}

static shl_code
make_fragment(publisher *p, const shl_fragment *f, int64_t begin)
{
    shl_state *st = p->st;
    shl_tensor rounded = {0};
    int64_t n = f->end - f->begin;
    if (needs_staging(st, begin)) {
        void *base = st->rounded[p->turn].data;
        rounded = shl_tensor_1d(shl_elem_ptr(base, st->param.dtype, f->shard_offset - begin),
                                st->param.dtype, n);
    } else if (!crosses(st, begin) && st->param.dtype != st->master.dtype) {
        rounded = shl_state_fragment(st, &st->param, f);
    }
    return p->fn(st, f, &rounded, p->ctx);
}

static shl_code
make_group(publisher *p, int64_t begin, int64_t end)
{
    shl_state *st = p->st;
    if (needs_staging(st, begin)) {
        SHL_TRY(shl_stream_wait(shl_device_stream(st->engine->device, SHL_STREAM_COMPUTE),
                                p->staged[p->turn]));
    }
    for (; p->next_frag < st->n_train_frags; ++p->next_frag) {
        const shl_fragment *f = &st->frags[p->next_frag];
        if (f->shard_offset >= end) {
            break;
        }
        shl_fragment part = clip(f, begin, end);
        SHL_TRY(make_fragment(p, &part, begin));
        if (f->shard_offset + (f->end - f->begin) > end) {
            break; /* goes on in the next sub-group */
        }
    }
    return SHL_OK;
}

/* Where element `at` of the shards is copied from, and where it is a parameter. */
static const void *
source_of(const publisher *p, int64_t begin, int64_t at)
{
    const shl_state *st = p->st;
    return needs_staging(st, begin)
               ? shl_elem_ptr(st->rounded[p->turn].data, st->param.dtype, at - begin)
               : shl_store_at(&st->master, at);
}

static void *
param_at(const shl_state *st, const shl_layout_flat *f, int flat, int64_t at)
{
    return shl_elem_ptr(shl_state_piece(st, &st->param, flat), st->param.dtype,
                        at - f->shard_offset);
}

/* Copies the parts of pieces that lie in [begin, end). */
static shl_code
move_group(publisher *p, int64_t begin, int64_t end)
{
    shl_state *st = p->st;
    shl_device *d = st->engine->device;
    shl_move direction = is_far(st, begin) ? SHL_MOVE_TO_DEVICE : SHL_MOVE_TO_HOST;
    shl_stream *s = shl_device_move_stream(d, direction);
    shl_event made;
    SHL_TRY(shl_stream_record(shl_device_stream(d, SHL_STREAM_COMPUTE), &made));
    SHL_TRY(shl_stream_wait(s, made));
    for (int i = 0; i < st->layout->n_train_flats; ++i) {
        const shl_layout_flat *f = &st->layout->flats[i];
        int64_t first = f->shard_offset > begin ? f->shard_offset : begin;
        int64_t last = f->shard_offset + f->piece_elems;
        last = last < end ? last : end;
        if (first < last) {
            size_t bytes = (size_t)(last - first) * shl_dtype_bytes(st->param.dtype);
            SHL_TRY(shl_device_move(d, param_at(st, f, i, first), source_of(p, begin, first), bytes,
                                    direction));
        }
    }
    SHL_TRY(shl_stream_record(s, &p->moved));
    if (needs_staging(st, begin)) {
        p->staged[p->turn] = p->moved;
        p->turn = 1 - p->turn;
    }
    return SHL_OK;
}

/* Gathers the flats whose own pieces are all there. */
static shl_code
gather_ready(publisher *p, int64_t end)
{
    shl_state *st = p->st;
    const shl_layout *l = st->layout;
    SHL_TRY(shl_stream_wait(shl_device_stream(st->engine->device, SHL_STREAM_COMM), p->moved));
    while (p->next_flat < l->n_train_flats &&
           l->flats[p->next_flat].shard_offset + l->flats[p->next_flat].piece_elems <= end) {
        SHL_TRY(shl_state_gather_flat(st, p->next_flat++, &p->whole));
    }
    return SHL_OK;
}

static shl_code
publish(publisher *p, bool gather)
{
    shl_state *st = p->st;
    shl_engine *e = st->engine;
    for (int64_t begin = 0, end; begin < shard_elems(st); begin = end) {
        end = group_end(st, begin);
        SHL_TRY(make_group(p, begin, end));
        if (crosses(st, begin)) {
            SHL_TRY(move_group(p, begin, end));
        }
        if (gather) {
            SHL_TRY(gather_ready(p, end));
        }
    }
    SHL_TRY(shl_engine_wait_move(e, p->moved));
    for (int i = 0; i < 2; ++i) {
        SHL_TRY(shl_device_free_after(e->device, &st->rounded[i], p->staged[i]));
    }
    return shl_engine_wait_comm(e, p->whole);
}

shl_code
shl_offload_publish(shl_state *st, bool gather, shl_publish_fn fn, void *ctx)
{
    publisher p = {.st = st, .fn = fn, .ctx = ctx};
    SHL_TRY(take_staging(st));
    return publish(&p, gather);
}

int64_t
shl_offload_near_elems(const shl_state *st, int flat)
{
    const shl_layout_flat *f = &st->layout->flats[flat];
    int64_t near = st->cut - f->shard_offset;
    near = near < 0 ? 0 : near;
    return near < f->piece_elems ? near : f->piece_elems;
}

void
shl_offload_info(const shl_state *st, shl_engine_info *out)
{
    for (int i = 0; i < st->layout->n_train_flats; ++i) {
        out->host_payload_elems += st->layout->flats[i].piece_elems - shl_offload_near_elems(st, i);
    }
    for (int i = 0; i < st->n_frags; ++i) {
        const shl_fragment *f = &st->frags[i];
        out->host_elems +=
            i < st->n_train_frags && is_far(st, f->shard_offset) ? f->end - f->begin : 0;
        out->host_param_elems += shl_store_is_far(&st->param) ? f->end - f->begin : 0;
    }
}

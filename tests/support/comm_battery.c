/* tests/support: collectives of a shm world against sums written out here. */
#include "tests/support/comm_battery.h"

#include <string.h>

#include "kernels/base/half.h"
#include "kernels/base/heap.h"
#include "kernels/base/types.h"

#define MAX_SEGS 200
#define COMM_BYTES                                                                                 \
    ((size_t)40 << 20) /* planned on cards: staging of three communicators, and cases */

shl_code
cb_open_kind(shl_world *w, const char *device, const char *comm, int64_t timeout_ms,
             int64_t alpha_ns, cb_rank *out)
{
    memset(out, 0, sizeof *out);
    out->world = w;
    bool cards = strncmp(comm, "nccl", 4) == 0; /* one for each rank */
    shl_device_config dc = {.kind = device,
                            .rank = shl_world_rank(w),
                            .index = cards ? shl_world_rank(w) : 0,
                            .threads = 1,
                            .comm_arena = shl_world_comm_arena(w)};
    if (cards) {
        dc.ready_comm_bytes = COMM_BYTES;
        SHL_TRY(shl_comm_mem_source(comm, &dc.comm_source));
    }
    SHL_TRY(shl_device_open(&dc, &out->device));
    shl_comm_config cc = {.kind = comm,
                          .rank = shl_world_rank(w),
                          .world = shl_world_size(w),
                          .rank_world = w,
                          .timeout_ms = timeout_ms,
                          .alpha_ns = alpha_ns,
                          .sim_sleep = alpha_ns > 0};
    shl_code code = shl_comm_open(&cc, out->device, &out->comm);
    return code == SHL_OK ? SHL_OK : cb_close(out, code);
}

shl_code
cb_open(shl_world *w, int64_t timeout_ms, int64_t alpha_ns, cb_rank *out)
{
    return cb_open_kind(w, "cpu", "shm", timeout_ms, alpha_ns, out);
}

shl_code
cb_close(cb_rank *r, shl_code code)
{
    shl_err err = *shl_err_get();
    if (r->device != NULL) {
        shl_code drained = shl_device_sync(r->device);
        if (code == SHL_OK && drained != SHL_OK) {
            code = drained;
            err = *shl_err_get();
        }
    }
    shl_comm_close(&r->comm);
    shl_code closed = shl_device_close(&r->device);
    if (code == SHL_OK || closed == SHL_E_BUG) {
        return closed;
    }
    return err.code == code ? shl_err_put(&err) : code;
}

/* Values whose sum depends on the order of addition, as the type holds them. */
static float
value(shl_dtype dtype, int rank, int seg, int64_t i)
{
    uint64_t x = (uint64_t)rank * UINT64_C(0x9e3779b97f4a7c15) + (uint64_t)seg * 977 + (uint64_t)i;
    x = (x ^ (x >> 31)) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ (x >> 29)) * UINT64_C(0x94d049bb133111eb);
    float v = ((float)(x >> 40) / 8388608.0F - 1.0F) * (float)(1 + (x & 1023));
    return shl_float_round(dtype, v);
}

/* In fp32, rounded at the end. */
static float
sum_of(shl_dtype dtype, int world, int seg, int64_t i)
{
    float total = value(dtype, 0, seg, i);
    for (int q = 1; q < world; q++) {
        total += value(dtype, q, seg, i);
    }
    return shl_float_round(dtype, total);
}

typedef struct layout {
    shl_coll kind;
    int rank, world, n;
    const int64_t *counts;
    bool in_place, to_one;
    int64_t total;
    int64_t in_elems[2]; /* multiples of a segment's count that the two buffers hold */
    char *data[2];       /* the two buffers, as the device knows them */
    char *image[2];      /* the same bytes for the host */
    size_t bytes[2];
    shl_dtype dtype;
} layout;

/* Element i of segment `seg` of this rank's input, for the whole buffer of the collective. */
static float
input_value(const layout *l, int seg, int64_t i)
{
    return value(l->dtype, l->rank, seg, i);
}

static float
expected(const layout *l, int seg, int64_t i)
{
    int64_t e = l->counts[seg];
    switch (l->kind) {
    case SHL_COLL_ALL_GATHER:
        return value(l->dtype, (int)(i / e), seg, i % e);
    case SHL_COLL_REDUCE_SCATTER:
        return sum_of(l->dtype, l->world, seg, (l->to_one ? 0 : l->rank * e) + i);
    case SHL_COLL_ALL_REDUCE:
        return sum_of(l->dtype, l->world, seg, i);
    case SHL_COLL_BROADCAST:
    case SHL_COLL_CONTROL:
    case SHL_COLL_COUNT:
        break;
    }
    return value(l->dtype, l->world - 1, seg, i);
}

/* The host's bytes behind an address of the device. */
static void *
image_of(const layout *l, const void *data)
{
    int out = (const char *)data >= l->data[1] && (const char *)data < l->data[1] + l->bytes[1];
    return l->image[out] + ((const char *)data - l->data[out]);
}

static shl_code
run(cb_rank *r, shl_comm *c, const layout *l, shl_stream_kind stream)
{
    shl_comm_seg segs[MAX_SEGS];
    int64_t at_in = 0, at_out = 0;
    for (int i = 0; i < l->n; i++) {
        int64_t e = l->counts[i];
        void *src = shl_elem_ptr(l->data[0], l->dtype, at_in);
        void *dst = shl_elem_ptr(l->data[1], l->dtype, at_out);
        if (l->in_place && l->kind == SHL_COLL_ALL_GATHER) {
            src = shl_elem_ptr(dst, l->dtype, l->rank * e);
        } else if (l->in_place && l->kind == SHL_COLL_REDUCE_SCATTER && !l->to_one) {
            dst = shl_elem_ptr(src, l->dtype, l->rank * e);
        } else if (l->in_place) {
            dst = src;
        }
        for (int64_t k = 0; k < e * l->in_elems[0]; k++) {
            shl_float_put(l->dtype, image_of(l, src), k, input_value(l, i, k));
        }
        segs[i] = (shl_comm_seg){.src = src, .dst = dst, .elems = e};
        if (l->to_one) {
            segs[i].elems = e * l->world;
            segs[i].to = i % l->world + 1;
            segs[i].dst = i % l->world == l->rank ? dst : NULL;
        }
        at_in += e * l->in_elems[0];
        at_out += e * l->in_elems[1];
    }
    shl_stream *s = shl_device_stream(r->device, stream);
    shl_event done = {0};
    shl_code code = SHL_E_BUG;
    for (int b = 0; b < 2 && l->image[b] != l->data[b]; b++) {
        SHL_TRY(shl_device_upload(r->device, l->data[b], l->image[b], l->bytes[b]));
    }
    switch (l->kind) {
    case SHL_COLL_ALL_GATHER:
        code = shl_comm_all_gather(c, segs, l->n, l->dtype, s, &done);
        break;
    case SHL_COLL_REDUCE_SCATTER:
        code = shl_comm_reduce_scatter(c, segs, l->n, l->dtype, s, &done);
        break;
    case SHL_COLL_ALL_REDUCE:
        code = shl_comm_all_reduce(c, segs, l->n, l->dtype, s, &done);
        break;
    case SHL_COLL_BROADCAST:
        code = shl_comm_broadcast(c, segs, l->n, l->dtype, l->world - 1, s, &done);
        break;
    case SHL_COLL_CONTROL:
    case SHL_COLL_COUNT:
        break;
    }
    SHL_TRY(code);
    SHL_TRY(shl_event_sync(r->device, done));
    for (int b = 0; b < 2 && l->image[b] != l->data[b]; b++) {
        SHL_TRY(shl_device_download(r->device, l->image[b], l->data[b], l->bytes[b]));
    }
    for (int i = 0; i < l->n; i++) {
        for (int64_t k = 0; segs[i].dst != NULL && k < l->counts[i] * l->in_elems[1]; k++) {
            float want = expected(l, i, k),
                  got = shl_float_at(l->dtype, image_of(l, segs[i].dst), k);
            if (memcmp(&want, &got, sizeof want) != 0) {
                return SHL_RAISE(
                    SHL_E_VERIFY, "%s%s of %d, %s: segment %d element %lld is %a, not %a",
                    shl_coll_name(l->kind), l->in_place ? " in place" : "", l->world,
                    shl_dtype_name(l->dtype), i, (long long)k, (double)got, (double)want);
            }
        }
    }
    return SHL_OK;
}

/* Memory of the device, and bytes of the host where these are not the same. */
static shl_code
take_buffer(cb_rank *r, layout *l, int b, shl_buf *out)
{
    bool comm = r->memory == CB_COMM || (r->memory == CB_MIXED && l->rank % 2 == 0);
    l->bytes[b] = (size_t)(l->total * l->in_elems[b]) * shl_dtype_bytes(l->dtype);
    SHL_TRY(shl_device_alloc(r->device, l->bytes[b], SHL_TIER_DEVICE, SHL_TAG_BUCKET,
                             comm ? SHL_MEM_COMM : 0, b == 0 ? "in" : "out", out));
    l->data[b] = out->data;
    l->image[b] = out->data;
    return r->device->caps.async ? shl_heap_alloc(l->bytes[b], 1, &l->image[b]) : SHL_OK;
}

shl_code
cb_case(cb_rank *r, shl_comm *c, shl_coll kind, const int64_t *counts, int n, bool in_place,
        shl_stream_kind stream)
{
    layout l = {.kind = kind,
                .rank = shl_comm_rank(c),
                .world = shl_comm_size(c),
                .n = n,
                .counts = counts,
                .in_place = in_place,
                .to_one = r->to_one && kind == SHL_COLL_REDUCE_SCATTER,
                .in_elems = {1, 1},
                .dtype = r->dtype};
    SHL_ASSERT(n <= MAX_SEGS);
    for (int i = 0; i < n; i++) {
        l.total += counts[i];
    }
    l.in_elems[0] = kind == SHL_COLL_REDUCE_SCATTER ? l.world : 1;
    l.in_elems[1] = kind == SHL_COLL_ALL_GATHER || l.to_one ? l.world : 1;
    shl_buf bufs[2] = {{0}, {0}};
    shl_code code = SHL_OK;
    for (int b = 0; b < 2 && code == SHL_OK; b++) {
        code = take_buffer(r, &l, b, &bufs[b]);
    }
    if (code == SHL_OK) {
        code = run(r, c, &l, stream);
    }
    shl_err err = *shl_err_get();
    for (int b = 0; b < 2; b++) {
        if (l.image[b] != bufs[b].data) {
            shl_heap_free(&l.image[b]);
        }
        shl_device_free(r->device, &bufs[b]);
    }
    return code == SHL_OK ? SHL_OK : shl_err_put(&err);
}

shl_code
cb_battery(cb_rank *r, shl_comm *c)
{
    static const int64_t one[] = {1}, three[] = {3}, odd[] = {4099}, some[] = {17, 1, 8, 1000, 5};
    int64_t many[130];
    for (int i = 0; i < 130; i++) {
        many[i] = i % 7 == 3 ? 0 : i % 13 + 1;
    }
    const struct {
        const int64_t *counts;
        int n;
    } sets[] = {{one, 1}, {three, 1}, {odd, 1}, {some, 5}, {many, 130}};
    for (int kind = 0; kind < SHL_COLL_CONTROL; kind++) {
        for (size_t i = 0; i < 2 * SHL_ARRAY_LEN(sets); i++) {
            size_t set = i / 2;
            shl_stream_kind stream = set % 2 == 0 ? SHL_STREAM_COMM : SHL_STREAM_COMPUTE;
            r->dtype = SHL_F32;
            SHL_TRY(
                cb_case(r, c, (shl_coll)kind, sets[set].counts, sets[set].n, i % 2 != 0, stream));
            /* The types of 16 bits take turns: both see every kind, in place or not. */
            r->dtype = (set + i + (size_t)kind) % 2 == 0 ? SHL_BF16 : SHL_F16;
            SHL_TRY(
                cb_case(r, c, (shl_coll)kind, sets[set].counts, sets[set].n, i % 2 != 0, stream));
            r->to_one = kind == SHL_COLL_REDUCE_SCATTER;
            if (r->to_one) {
                SHL_TRY(cb_case(r, c, (shl_coll)kind, sets[set].counts, sets[set].n, i % 2 != 0,
                                stream));
            }
            r->to_one = false;
        }
    }
    r->dtype = SHL_F32;
    return SHL_OK;
}

shl_code
cb_battery_main(shl_world *w, void *arg)
{
    cb_rank r;
    SHL_TRY(cb_open(w, 0, 0, &r));
    r.memory = *(const cb_memory *)arg;
    return cb_close(&r, cb_battery(&r, r.comm));
}

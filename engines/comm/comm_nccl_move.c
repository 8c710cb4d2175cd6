/* engines/comm: nccl, the collective: the library's calls in one group, or gathers and a sum in rank order
 * (nccl-ordered), whose bits are those of local and shm. */
#include <sched.h>

#include "engines/comm/comm_nccl.h"
#include "kernels/base/clock.h"
#include "kernels/base/types.h"
#include "kernels/ops/ops.h"

#define SETTLE_NS 20000
/* The library's thread launches within this; a sleep would take as long again, for every collective. */
#define SETTLE_SPIN_NS 200000

/* What the library sums, or moves as bytes. */
static int
type_of(shl_dtype dtype, size_t *scale)
{
    *scale = 1;
    if (dtype == SHL_F32) {
        return NCCL_FLOAT32;
    }
    if (dtype == SHL_BF16 || dtype == SHL_F16) {
        return dtype == SHL_BF16 ? NCCL_BFLOAT16 : NCCL_FLOAT16;
    }
    *scale = shl_dtype_bytes(dtype);
    return NCCL_UINT8;
}

shl_code
shl_nccl_settle(nccl_family *f, nccl_handle *h, const char *what)
{
    int64_t start_ns = shl_clock_ns(), deadline_ns = start_ns + f->timeout_ms * 1000000;
    for (;;) {
        int state = NCCL_OK;
        SHL_TRY(shl_shm_check(f->world));
        (void)pthread_mutex_lock(&f->lock);
        int result = f->given_up ? NCCL_OK : f->table.async_error(h, &state);
        bool gone = f->given_up;
        (void)pthread_mutex_unlock(&f->lock);
        if (gone) {
            SHL_TRY(shl_shm_check(f->world));
            return SHL_RAISE(SHL_E_PEER, "%s was given up", what);
        }
        result = result == NCCL_OK ? state : result;
        if (result != NCCL_IN_PROGRESS) {
            return shl_nccl_check(f, h, result, what);
        }
        int64_t now_ns = shl_clock_ns();
        if (now_ns > deadline_ns) {
            SHL_RAISE(SHL_E_PEER, "%s has not come about within %.1f s", what,
                      (double)f->timeout_ms / 1e3);
            return shl_err_advice("NCCL_DEBUG=INFO, for what NCCL waits for");
        }
        if (now_ns - start_ns < SETTLE_SPIN_NS) {
            (void)sched_yield();
        } else {
            shl_clock_sleep_ns(SETTLE_NS);
        }
    }
}

/* One segment's call; under the lock. */
static int
call_seg(const nccl_state *n, shl_coll kind, const shl_comm_seg *seg, shl_dtype dtype, int root,
         void *stream)
{
    const nccl_table *t = &n->family->table;
    size_t scale = 1;
    int type = type_of(dtype, &scale);
    size_t count = (size_t)seg->elems * scale;
    switch (kind) {
    case SHL_COLL_ALL_GATHER:
        return t->all_gather(seg->src, seg->dst, count, type, n->handle, stream);
    case SHL_COLL_REDUCE_SCATTER:
        if (seg->to != 0) {
            return t->reduce(seg->src, seg->dst, count, type, NCCL_SUM, seg->to - 1, n->handle,
                             stream);
        }
        return t->reduce_scatter(seg->src, seg->dst, count, type, NCCL_SUM, n->handle, stream);
    case SHL_COLL_ALL_REDUCE:
        return t->all_reduce(seg->src, seg->dst, count, type, NCCL_SUM, n->handle, stream);
    case SHL_COLL_BROADCAST:
        return t->broadcast(seg->src, seg->dst, count, type, root, n->handle, stream);
    case SHL_COLL_CONTROL:
    case SHL_COLL_COUNT:
        break;
    }
    SHL_ASSERT(false);
    return NCCL_OK;
}

/* All segments in one group, which the library launches as one. */
static shl_code
call_group(nccl_state *n, shl_coll kind, const shl_comm_seg *segs, int count, shl_dtype dtype,
           int root, shl_stream *s)
{
    nccl_family *f = n->family;
    void *stream = shl_stream_native(s);
    if (stream == NULL) {
        return shl_err_get()->code;
    }
    (void)pthread_mutex_lock(&f->lock);
    if (f->given_up) {
        (void)pthread_mutex_unlock(&f->lock);
        SHL_TRY(shl_shm_check(f->world));
        return SHL_RAISE(SHL_E_PEER, "%s: its communicator was given up", shl_coll_name(kind));
    }
    nccl_handle *h = n->handle;
    int result = f->table.group_start();
    for (int i = 0; i < count && (result == NCCL_OK || result == NCCL_IN_PROGRESS); i++) {
        if (segs[i].elems > 0) {
            result = call_seg(n, kind, &segs[i], dtype, root, stream);
        }
    }
    int end = f->table.group_end();
    (void)pthread_mutex_unlock(&f->lock);
    result = result == NCCL_OK || result == NCCL_IN_PROGRESS ? end : result;
    if (result == NCCL_IN_PROGRESS) {
        return shl_nccl_settle(f, h, shl_coll_name(kind));
    }
    return shl_nccl_check(f, h, result, shl_coll_name(kind));
}

/* --- sums in rank order ------------------------------------------------------------------ */

/* A run of elements of one segment that all ranks gather into staging; dst: where this rank wants their
 * sum, or NULL. */
typedef struct piece {
    const char *src;
    char *dst;
    int64_t elems;
} piece;

static shl_code
sum_piece(nccl_state *n, piece p, shl_dtype dtype, shl_stream *s)
{
    const void *srcs[SHL_WORLD_MAX_RANKS];
    int size = n->comm->config.world;
    size_t each = shl_dtype_bytes(dtype);
    int64_t most = (int64_t)(n->comm->staging.bytes / each) / size / 64 * 64;
    char *staging = n->comm->staging.data;
    for (int64_t off = 0; off < p.elems; off += most) {
        int64_t len = p.elems - off < most ? p.elems - off : most;
        shl_comm_seg seg = {.src = p.src + (size_t)off * each, .dst = staging, .elems = len};
        SHL_TRY(call_group(n, SHL_COLL_ALL_GATHER, &seg, 1, dtype, 0, s));
        if (p.dst == NULL) {
            continue;
        }
        for (int q = 0; q < size; q++) {
            srcs[q] = staging + (size_t)(q * len) * each;
        }
        shl_sum_ranks_args args = {
            .dst = shl_tensor_1d(p.dst + (size_t)off * each, dtype, len), .srcs = srcs, .n = size};
        SHL_TRY(shl_op_sum_ranks(s, &args));
    }
    return SHL_OK;
}

static shl_code
sum_seg(nccl_state *n, shl_coll kind, const shl_comm_seg *seg, shl_dtype dtype, shl_stream *s)
{
    int rank = n->comm->config.rank, size = n->comm->config.world;
    piece p = {seg->src, seg->dst, seg->elems};
    if (kind == SHL_COLL_ALL_REDUCE) {
        return sum_piece(n, p, dtype, s);
    }
    if (seg->to != 0) {
        p.dst = seg->to == rank + 1 ? p.dst : NULL;
        return sum_piece(n, p, dtype, s);
    }
    for (int q = 0; q < size; q++) {
        p.src = (const char *)seg->src + (size_t)(q * seg->elems) * shl_dtype_bytes(dtype);
        p.dst = q == rank ? seg->dst : NULL;
        SHL_TRY(sum_piece(n, p, dtype, s));
    }
    return SHL_OK;
}

static shl_code
move_ordered(nccl_state *n, shl_coll kind, const shl_comm_seg *segs, int count, shl_dtype dtype,
             shl_stream *s)
{
    if (n->staged_by != NULL && n->staged_by != s) {
        SHL_TRY(shl_gate_wait(&n->staged, s)); /* the staging buffer has one user at a time */
    }
    for (int i = 0; i < count; i++) {
        if (segs[i].elems > 0) {
            SHL_TRY(sum_seg(n, kind, &segs[i], dtype, s));
        }
    }
    n->staged_by = s;
    return shl_gate_record(&n->staged, s);
}

shl_code
shl_nccl_move(nccl_state *n, shl_coll kind, const shl_comm_seg *segs, int count, shl_dtype dtype,
              int root, shl_stream *s)
{
    bool sums = kind == SHL_COLL_REDUCE_SCATTER || kind == SHL_COLL_ALL_REDUCE;
    if (sums && n->comm->staging.data != NULL) {
        return move_ordered(n, kind, segs, count, dtype, s);
    }
    return call_group(n, kind, segs, count, dtype, root, s);
}

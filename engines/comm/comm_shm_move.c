/* engines/comm: shm, the data of a collective: what runs on the stream. Every rank publishes where
 * its buffers lie, reads its peers' memory, and writes only its own outputs.
 *
 * A round of segments is bounded by two barriers. When a rank's buffers cannot be reached, all ranks
 * go through the round in chunks of the staging buffer, with barriers around each chunk. */
#include <string.h>
#include <sys/mman.h>

#include "engines/comm/comm_backend.h"
#include "kernels/base/clock.h"
#include "kernels/base/types.h"
#include "kernels/ops/ops.h"

#define SUM_TILE_ELEMS 4096 /* 16 KiB of every source: the tile of the sum stays in L1 */
#define TURN_SLICE_NS 20000000
#define FORGET_BYTES ((size_t)4 << 20) /* of a peer's memory that stays mapped after it was read */

typedef struct round_state {
    shl_shm_comm *m;
    shl_shm_op *op;
    const shl_comm_seg *segs; /* of this round */
    int n_segs;
    bool chunked; /* some rank is staged */
    size_t elem_bytes;
} round_state;

/* Elements [off, off + n) of one segment: per rank, or of the whole for all_reduce, broadcast. */
typedef struct chunk {
    int seg;
    int64_t off, n;
} chunk;

static uint64_t
offset_of(const shl_shm_comm *m, const void *data)
{
    return (uint64_t)((uintptr_t)data - (uintptr_t)m->world->base[m->world->rank]);
}

static bool
reachable(const shl_shm_comm *m, const void *data)
{
    return data == NULL || offset_of(m, data) < m->world->block->range_bytes;
}

bool
shl_shm_needs_staging(const shl_shm_comm *m, shl_coll kind, int root, const shl_comm_seg *segs,
                      int n)
{
    if (m->size == 1 || (kind == SHL_COLL_BROADCAST && m->rank != root)) {
        return false;
    }
    for (int i = 0; i < n; i++) {
        bool dst_read = kind == SHL_COLL_ALL_REDUCE;
        if (segs[i].elems > 0 && segs[i].to != m->rank + 1 &&
            (!reachable(m, segs[i].src) || (dst_read && !reachable(m, segs[i].dst)))) {
            return true;
        }
    }
    return false;
}

int64_t
shl_shm_staged_bytes(const shl_shm_comm *m, shl_coll kind, int root, const shl_comm_seg *segs,
                     int n, shl_dtype dtype)
{
    int64_t elems = 0;
    for (int i = 0; i < n; i++) {
        bool pieces = kind == SHL_COLL_REDUCE_SCATTER && segs[i].to == 0;
        elems += segs[i].elems * (pieces ? m->size - 1 : segs[i].to != m->rank + 1);
    }
    return kind == SHL_COLL_BROADCAST && m->rank != root ? 0
                                                         : elems * (int64_t)shl_dtype_bytes(dtype);
}

static const shl_shm_call *
call_of(const shl_shm_comm *m, int member)
{
    return &m->data.group->member[member].call;
}

static const char *
peer_memory(const shl_shm_comm *m, int member, uint64_t offset)
{
    return (const char *)m->world->base[m->world_rank[member]] + offset;
}

/* --- entering a round -------------------------------------------------------------------- */

static void
publish(const round_state *r)
{
    const shl_shm_op *op = r->op;
    shl_shm_call *call = &r->m->data.group->member[r->m->rank].call;
    shl_shm_call_put(call, op);
    call->staged = op->staged ? 1 : 0;
    call->staging = offset_of(r->m, r->m->comm->staging.data);
    for (int i = 0; i < r->n_segs; i++) {
        call->segs[i].src = offset_of(r->m, r->segs[i].src);
        call->segs[i].dst = offset_of(r->m, r->segs[i].dst);
    }
}

static shl_code
check_calls(round_state *r)
{
    const shl_shm_comm *m = r->m;
    SHL_TRY(shl_shm_calls_check(m));
    r->chunked = false;
    for (int q = 0; q < m->size; q++) {
        r->chunked = r->chunked || call_of(m, q)->staged != 0;
    }
    return SHL_OK;
}

static shl_code
barrier(const round_state *r, bool leaving)
{
    return shl_shm_barrier(&r->m->data,
                           (shl_shm_label){shl_coll_name(r->op->kind), r->op->seq, leaving});
}

/* --- addresses --------------------------------------------------------------------------- */

/* Whether every rank reads a piece of its own of the segment's input. */
static bool
scatters(const round_state *r, chunk c)
{
    return r->op->kind == SHL_COLL_REDUCE_SCATTER && r->segs[c.seg].to == 0;
}

/* First element of a chunk in a rank's own input, for the reader `reader`. */
static int64_t
input_index(const round_state *r, chunk c, int reader)
{
    return scatters(r, c) ? reader * r->segs[c.seg].elems + c.off : c.off;
}

/* The elements of chunk c that member q has for this rank. */
static const char *
input_of(const round_state *r, int q, chunk c)
{
    const shl_shm_comm *m = r->m;
    size_t at = (size_t)input_index(r, c, m->rank) * r->elem_bytes;
    if (q == m->rank) {
        return (const char *)r->segs[c.seg].src + at;
    }
    const shl_shm_call *call = call_of(m, q);
    if (call->staged == 0) {
        return peer_memory(m, q, call->segs[c.seg].src + at);
    }
    size_t row = scatters(r, c) ? (size_t)(m->rank * c.n) * r->elem_bytes : 0;
    return peer_memory(m, q, call->staging + row);
}

/* Puts what the peers need of a chunk into the staging buffer. */
static void
stage(const round_state *r, chunk c)
{
    const shl_shm_comm *m = r->m;
    if (!r->op->staged) {
        return;
    }
    char *staging = (char *)m->comm->staging.data;
    const char *src = (const char *)r->segs[c.seg].src;
    size_t bytes = (size_t)c.n * r->elem_bytes;
    if (!scatters(r, c)) {
        memcpy(staging, src + (size_t)c.off * r->elem_bytes, bytes);
        return;
    }
    for (int q = 0; q < m->size; q++) {
        if (q != m->rank) {
            memcpy(staging + (size_t)q * bytes, src + (size_t)input_index(r, c, q) * r->elem_bytes,
                   bytes);
        }
    }
}

/* --- moving ------------------------------------------------------------------------------ */

/* [data, data + bytes) of member q's memory leaves this process' page tables; the bytes stay. A rank's
 * resident set then tells what the rank holds, and not its peers' memory as well. */
static void
forget(const round_state *r, int q, const char *data, size_t bytes)
{
    const size_t window = (size_t)64 << 10; /* what the kernel maps around a fault */
    const shl_world *world = r->m->world;
    char *base = (char *)world->base[r->m->world_rank[q]];
    if (q == r->m->rank || !world->block->processes) {
        return;
    }
    size_t begin = (size_t)(data - base) / window * window;
    size_t end = ((size_t)(data - base) + bytes + window - 1) / window * window;
    end = end < world->block->range_bytes ? end : world->block->range_bytes;
    (void)madvise(base + begin, end - begin, MADV_DONTNEED);
}

/* From member q's memory; all at once where nothing is to be forgotten, because a long copy does not
 * go through the caches. */
static void
copy_from(const round_state *r, int q, char *dst, const char *src, size_t bytes)
{
    size_t most = r->m->world->block->processes ? FORGET_BYTES : bytes;
    if (dst == src) {
        return;
    }
    for (size_t at = 0; at < bytes; at += most) {
        size_t n = bytes - at < most ? bytes - at : most;
        memcpy(dst + at, src + at, n);
        forget(r, q, src + at, n);
    }
}

/* dst = sum of every member's input in rank order, in fp32 and rounded once. skip: elements into the
 * chunk. */
static shl_code
sum_inputs(const round_state *r, chunk c, int64_t skip, int64_t n, char *dst)
{
    const shl_shm_comm *m = r->m;
    const char *first[SHL_WORLD_MAX_RANKS];
    const void *srcs[SHL_WORLD_MAX_RANKS];
    for (int q = 0; q < m->size; q++) {
        first[q] = input_of(r, q, c) + (size_t)skip * r->elem_bytes;
    }
    for (int64_t i = 0; i < n; i += SUM_TILE_ELEMS) {
        int64_t len = n - i < SUM_TILE_ELEMS ? n - i : SUM_TILE_ELEMS;
        for (int q = 0; q < m->size; q++) {
            srcs[q] = first[q] + (size_t)i * r->elem_bytes;
        }
        shl_sum_ranks_args args = {
            .dst = shl_tensor_1d(dst + (size_t)i * r->elem_bytes, r->op->dtype, len),
            .srcs = srcs,
            .n = m->size};
        SHL_TRY(shl_op_sum_ranks(r->op->stream, &args));
        size_t done = (size_t)(i + len) * r->elem_bytes;
        if (done % FORGET_BYTES == 0 || i + len == n) {
            size_t from = (done - 1) / FORGET_BYTES * FORGET_BYTES;
            for (int q = 0; q < m->size; q++) {
                forget(r, q, first[q] + from, done - from);
            }
        }
    }
    return SHL_OK;
}

/* Rank q's share of a chunk that is reduced by everybody. */
static chunk
piece_of(const round_state *r, chunk c, int q)
{
    chunk out = {c.seg, 0, 0};
    out.off = shl_shm_piece(c.n, r->m->size, q, &out.n);
    return out;
}

/* all_reduce, first half: my piece of the sum, to where peers can read it. */
static shl_code
reduce_piece(const round_state *r, chunk c)
{
    chunk mine = piece_of(r, c, r->m->rank);
    char *out = r->op->staged ? (char *)r->m->comm->staging.data
                              : (char *)r->segs[c.seg].dst + (size_t)c.off * r->elem_bytes;
    return sum_inputs(r, c, mine.off, mine.n, out + (size_t)mine.off * r->elem_bytes);
}

/* all_reduce, second half: everybody's pieces. */
static void
gather_pieces(const round_state *r, chunk c)
{
    const shl_shm_comm *m = r->m;
    const size_t to = (size_t)c.off * r->elem_bytes;
    char *dst = (char *)r->segs[c.seg].dst + to;
    for (int i = 0; i < m->size; i++) {
        int q = (m->rank + i) % m->size;
        const shl_shm_call *call = call_of(m, q);
        chunk piece = piece_of(r, c, q);
        size_t at = (size_t)piece.off * r->elem_bytes;
        const char *from = call->staged != 0 ? peer_memory(m, q, call->staging + at)
                                             : peer_memory(m, q, call->segs[c.seg].dst + to + at);
        if (q == m->rank && !r->op->staged) {
            continue; /* it lies there already */
        }
        copy_from(r, q, dst + at, from, (size_t)piece.n * r->elem_bytes);
    }
}

static void
gather(const round_state *r, chunk c)
{
    const shl_comm_seg *s = &r->segs[c.seg];
    const shl_shm_comm *m = r->m;
    for (int i = 0; i < m->size; i++) {
        int q = (m->rank + i) % m->size; /* ranks start at different peers */
        char *dst = (char *)s->dst + (size_t)(q * s->elems + c.off) * r->elem_bytes;
        copy_from(r, q, dst, input_of(r, q, c), (size_t)c.n * r->elem_bytes);
    }
}

static shl_code
move_chunk(const round_state *r, chunk c)
{
    int to = r->segs[c.seg].to;
    if (to != 0 && to != r->m->rank + 1) {
        return SHL_OK;
    }
    char *dst = (char *)r->segs[c.seg].dst + (size_t)c.off * r->elem_bytes;
    switch (r->op->kind) {
    case SHL_COLL_ALL_GATHER:
        gather(r, c);
        return SHL_OK;
    case SHL_COLL_REDUCE_SCATTER:
        return sum_inputs(r, c, 0, c.n, dst);
    case SHL_COLL_ALL_REDUCE:
        return reduce_piece(r, c);
    case SHL_COLL_BROADCAST:
        copy_from(r, r->op->root, dst, input_of(r, r->op->root, c), (size_t)c.n * r->elem_bytes);
        return SHL_OK;
    case SHL_COLL_CONTROL:
    case SHL_COLL_COUNT:
        break;
    }
    SHL_ASSERT(false);
    return SHL_E_BUG;
}

/* Everything can be reached: whole segments, one barrier between the halves of an all-reduce. */
static shl_code
move_direct(const round_state *r)
{
    for (int i = 0; i < r->n_segs; i++) {
        if (r->segs[i].elems > 0) {
            SHL_TRY(move_chunk(r, (chunk){i, 0, r->segs[i].elems}));
        }
    }
    if (r->op->kind != SHL_COLL_ALL_REDUCE) {
        return SHL_OK;
    }
    SHL_TRY(barrier(r, false));
    for (int i = 0; i < r->n_segs; i++) {
        if (r->segs[i].elems > 0) {
            gather_pieces(r, (chunk){i, 0, r->segs[i].elems});
        }
    }
    return SHL_OK;
}

static int64_t
chunk_elems(const round_state *r)
{
    size_t bytes = r->m->comm->staging.bytes;
    if (r->op->kind == SHL_COLL_REDUCE_SCATTER) {
        bytes /= (size_t)r->m->size;
    }
    return (int64_t)(bytes / r->elem_bytes) / SHL_SHM_PIECE_ELEMS * SHL_SHM_PIECE_ELEMS;
}

static shl_code
move_chunked(const round_state *r)
{
    int64_t most = chunk_elems(r);
    for (int i = 0; i < r->n_segs; i++) {
        int64_t elems = r->segs[i].elems;
        for (int64_t off = 0; off < elems; off += most) {
            chunk c = {i, off, elems - off < most ? elems - off : most};
            stage(r, c);
            SHL_TRY(barrier(r, false));
            SHL_TRY(move_chunk(r, c));
            if (r->op->kind == SHL_COLL_ALL_REDUCE) {
                SHL_TRY(barrier(r, false));
                gather_pieces(r, c);
            }
            SHL_TRY(barrier(r, true));
        }
    }
    return SHL_OK;
}

/* --- the collective ---------------------------------------------------------------------- */

static shl_code
run_round(shl_shm_op *op, int first)
{
    int rest = op->n_segs - first;
    round_state r = {.m = op->comm,
                     .op = op,
                     .segs = op->segs + first,
                     .n_segs = rest < SHL_SHM_ROUND_SEGS ? rest : SHL_SHM_ROUND_SEGS,
                     .elem_bytes = shl_dtype_bytes(op->dtype)};
    /* Of a world that was given up, peers may still read the last published call. */
    SHL_TRY(shl_shm_check(op->comm->world));
    publish(&r);
    SHL_TRY(barrier(&r, false));
    SHL_TRY(check_calls(&r));
    SHL_TRY(r.chunked ? move_chunked(&r) : move_direct(&r));
    return barrier(&r, true);
}

/* Waits until every collective issued before this one has run here. */
static shl_code
wait_turn(shl_shm_op *op)
{
    shl_shm_comm *m = op->comm;
    int64_t deadline_ns = shl_clock_ns() + m->data.timeout_ms * 1000000;
    for (;;) {
        uint32_t turn = atomic_load_explicit(&m->turn, memory_order_acquire);
        if (turn == (uint32_t)(op->seq - 1)) {
            return SHL_OK;
        }
        SHL_TRY(shl_shm_check(m->world));
        if (shl_clock_ns() > deadline_ns) {
            return SHL_RAISE(SHL_E_PEER, "%s #%llu waits for #%u, which was never run",
                             shl_coll_name(op->kind), (unsigned long long)op->seq, turn + 1);
        }
        shl_shm_sleep_on(&m->turn, turn, TURN_SLICE_NS);
    }
}

static shl_code
run_rounds(shl_shm_op *op)
{
    SHL_TRY(wait_turn(op));
    shl_shm_enter(op->comm->world, SHL_SHM_DATA, (int)op->kind, op->seq);
    for (int first = 0; first < op->n_segs; first += SHL_SHM_ROUND_SEGS) {
        SHL_TRY(run_round(op, first));
    }
    shl_shm_exit(op->comm->world, SHL_SHM_DATA);
    return SHL_OK;
}

shl_code
shl_shm_collective_run(void *arg)
{
    shl_shm_op *op = *(shl_shm_op **)arg;
    shl_shm_comm *m = op->comm;
    int64_t start_ns = shl_clock_ns();
    shl_code code = run_rounds(op);
    if (code != SHL_OK) {
        shl_shm_abort(m->world, shl_coll_name(op->kind));
    } else if (op->cost_ns > 0) {
        int64_t rest_ns = op->cost_ns - (shl_clock_ns() - start_ns);
        if (rest_ns > 0) {
            shl_clock_sleep_ns(rest_ns);
        }
    }
    atomic_store_explicit(&m->turn, (uint32_t)op->seq, memory_order_release);
    shl_shm_wake(&m->turn);
    atomic_store_explicit(&op->done, 1, memory_order_release);
    return code;
}

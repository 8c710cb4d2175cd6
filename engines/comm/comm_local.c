/* engines/comm: local, the ranks of one asynchronous device as threads of one process. A collective is
 * copies and sums in rank order on every rank's own stream; gates (kernels/device) order the streams
 * among the ranks. The host meets its peers, and never waits for the device.
 *
 * Each rank publishes where its segments lie and a gate behind what it has queued, meets the others,
 * queues its own moves behind their gates, sets a gate behind those, meets the others again and
 * queues a wait for all of these: what follows on its stream may overwrite its sources. Sums are those
 * of shm to the bit: rank order, fp32. */
#include <string.h>

#include "engines/comm/comm_backend.h"
#include "kernels/base/clock.h"
#include "kernels/base/heap.h"
#include "kernels/base/types.h"
#include "kernels/ops/ops.h"

#define POLL_NS 50000

/* What a rank shows its peers; on the heap, because a peer may still read it when its owner has given
 * up: until the group has drained. */
typedef struct local_state {
    shl_gate ready, half, done;
    shl_shm_op op;
    uint64_t seq; /* of the last collective */
} local_state;

typedef struct local_run {
    shl_comm *comm;
    shl_shm_comm *m;
    local_state *mine;
    shl_stream *stream;
    size_t elem_bytes;
} local_run;

static local_state *
state_of(const shl_shm_comm *m, int member)
{
    return m->data.group->member[member].call.local;
}

static shl_code
meet(const local_run *r, bool leaving)
{
    return shl_shm_barrier(
        &r->m->data, (shl_shm_label){shl_coll_name(r->mine->op.kind), r->mine->op.seq, leaving});
}

/* Puts this rank's stream behind one gate of every peer. */
static shl_code
wait_for(const local_run *r, size_t gate_offset)
{
    for (int q = 0; q < r->m->size; q++) {
        const char *state = (const char *)state_of(r->m, q);
        if (q != r->m->rank) {
            SHL_TRY(
                shl_gate_wait((const shl_gate *)(const void *)(state + gate_offset), r->stream));
        }
    }
    return SHL_OK;
}

/* --- moving ------------------------------------------------------------------------------ */

static shl_code
copy(const local_run *r, char *dst, const char *src, int64_t elems)
{
    if (dst == src) {
        return SHL_OK;
    }
    return shl_device_copy(r->comm->device, dst, src, (size_t)elems * r->elem_bytes, r->stream);
}

/* dst = the sum of `elems` elements of every member's segment, from element `first` on. */
static shl_code
sum(const local_run *r, int seg, int64_t first, int64_t elems, char *dst)
{
    const void *srcs[SHL_WORLD_MAX_RANKS];
    if (elems == 0) {
        return SHL_OK;
    }
    for (int q = 0; q < r->m->size; q++) {
        const char *src = state_of(r->m, q)->op.segs[seg].src;
        srcs[q] = src + (size_t)first * r->elem_bytes;
    }
    shl_sum_ranks_args args = {
        .dst = shl_tensor_1d(dst, r->mine->op.dtype, elems), .srcs = srcs, .n = r->m->size};
    return shl_op_sum_ranks(r->stream, &args);
}

static shl_code
move_seg(const local_run *r, int i)
{
    const shl_shm_op *op = &r->mine->op;
    const shl_comm_seg *seg = &op->segs[i];
    char *dst = seg->dst;
    int64_t n = 0, first = 0;
    switch (op->kind) {
    case SHL_COLL_ALL_GATHER:
        for (int k = 0; k < r->m->size; k++) {
            int q = (r->m->rank + k) % r->m->size; /* ranks start at different peers */
            SHL_TRY(copy(r, dst + (size_t)(q * seg->elems) * r->elem_bytes,
                         state_of(r->m, q)->op.segs[i].src, seg->elems));
        }
        return SHL_OK;
    case SHL_COLL_REDUCE_SCATTER:
        if (seg->to != 0) {
            return seg->to == r->m->rank + 1 ? sum(r, i, 0, seg->elems, dst) : SHL_OK;
        }
        return sum(r, i, r->m->rank * seg->elems, seg->elems, dst);
    case SHL_COLL_ALL_REDUCE:
        first = shl_shm_piece(seg->elems, r->m->size, r->m->rank, &n);
        return sum(r, i, first, n, dst + (size_t)first * r->elem_bytes);
    case SHL_COLL_BROADCAST:
        return copy(r, dst, state_of(r->m, op->root)->op.segs[i].src, seg->elems);
    case SHL_COLL_CONTROL:
    case SHL_COLL_COUNT:
        break;
    }
    SHL_ASSERT(false);
    return SHL_E_BUG;
}

/* all_reduce, second half: the sums of the others. */
static shl_code
gather_pieces(const local_run *r)
{
    const shl_shm_op *op = &r->mine->op;
    SHL_TRY(shl_gate_record(&r->mine->half, r->stream));
    SHL_TRY(meet(r, false));
    SHL_TRY(wait_for(r, offsetof(local_state, half)));
    for (int i = 0; i < op->n_segs; i++) {
        for (int k = 1; k < r->m->size; k++) {
            int q = (r->m->rank + k) % r->m->size;
            int64_t n = 0, first = shl_shm_piece(op->segs[i].elems, r->m->size, q, &n);
            size_t at = (size_t)first * r->elem_bytes;
            SHL_TRY(copy(r, (char *)op->segs[i].dst + at,
                         (const char *)state_of(r->m, q)->op.segs[i].dst + at, n));
        }
    }
    return SHL_OK;
}

/* --- the collective ---------------------------------------------------------------------- */

static shl_code
put_op(local_state *own, const shl_comm_seg *segs, int n)
{
    shl_shm_op *op = &own->op;
    if (op->cap < n) {
        int cap = n > 16 ? n : 16;
        shl_heap_free(&op->segs);
        op->cap = 0;
        SHL_TRY(shl_heap_alloc((size_t)cap, sizeof *op->segs, &op->segs));
        op->cap = cap;
    }
    memcpy(op->segs, segs, (size_t)n * sizeof *segs);
    op->n_segs = n;
    return SHL_OK;
}

static shl_code
run(const local_run *r)
{
    const shl_shm_op *op = &r->mine->op;
    shl_shm_call *call = &r->m->data.group->member[r->m->rank].call;
    SHL_TRY(shl_gate_record(&r->mine->ready, r->stream));
    shl_shm_call_put(call, op);
    call->local = r->mine;
    SHL_TRY(meet(r, false));
    SHL_TRY(shl_shm_calls_check(r->m));
    SHL_TRY(wait_for(r, offsetof(local_state, ready)));
    for (int i = 0; i < op->n_segs; i++) {
        if (op->segs[i].elems > 0) {
            SHL_TRY(move_seg(r, i));
        }
    }
    if (op->kind == SHL_COLL_ALL_REDUCE) {
        SHL_TRY(gather_pieces(r));
    }
    SHL_TRY(shl_gate_record(&r->mine->done, r->stream));
    SHL_TRY(meet(r, true));
    SHL_TRY(wait_for(r, offsetof(local_state, done)));
    atomic_store_explicit(&r->m->data.group->member[r->m->rank].finished, op->seq,
                          memory_order_release);
    return SHL_OK;
}

static shl_code
sleep_for(void *arg)
{
    shl_clock_sleep_ns(*(const int64_t *)arg);
    return SHL_OK;
}

static shl_code
local_collective(shl_comm *c, shl_coll kind, const shl_comm_seg *segs, int n, shl_dtype dtype,
                 int root, int64_t cost_ns, shl_stream *s)
{
    shl_shm_comm *m = c->impl;
    local_state *own = m->own;
    local_run r = {c, m, own, s, shl_dtype_bytes(dtype)};
    if (shl_shm_check(m->world) != SHL_OK) {
        shl_shm_refuse(m->world, SHL_SHM_DATA, (int)kind, own->seq + 1);
        return shl_err_get()->code; /* peers may still read what the last call has published */
    }
    own->op.kind = kind;
    own->op.dtype = dtype;
    own->op.root = root;
    own->op.seq = ++own->seq;
    shl_shm_enter(m->world, SHL_SHM_DATA, (int)kind, own->seq);
    shl_code code = put_op(own, segs, n);
    code = code == SHL_OK ? run(&r) : code;
    if (code != SHL_OK) {
        shl_shm_abort(m->world, shl_coll_name(kind));
        return code;
    }
    shl_shm_exit(m->world, SHL_SHM_DATA);
    if (c->config.sim_sleep && cost_ns > 0) {
        SHL_TRY(shl_stream_submit(s, sleep_for, &cost_ns, sizeof cost_ns, cost_ns));
    }
    return SHL_OK;
}

/* --- opening and closing ----------------------------------------------------------------- */

/* In a world that was given up a peer's moves may still read this rank's memory and state: each rank
 * lets its own work end, and goes when all have. */
static void
drain(shl_comm *c, shl_shm_comm *m)
{
    _Atomic uint32_t *drained = &m->data.group->drained;
    int64_t deadline_ns = shl_clock_ns() + m->data.timeout_ms * 1000000;
    (void)!shl_device_sync(c->device);
    (void)atomic_fetch_add(drained, 1);
    shl_shm_wake(drained);
    for (;;) {
        uint32_t now = atomic_load(drained);
        int64_t rest_ns = deadline_ns - shl_clock_ns();
        if (now >= (uint32_t)m->size || rest_ns <= 0) {
            break;
        }
        shl_shm_sleep_on(drained, now, rest_ns);
    }
}

/* The peers know this rank's gates until their hosts are through the last collective. */
static bool
peers_are_through(const shl_shm_comm *m)
{
    const local_state *own = m->own;
    int64_t deadline_ns = shl_clock_ns() + m->data.timeout_ms * 1000000;
    for (int q = 0; q < m->size; q++) {
        const shl_shm_member *member = &m->data.group->member[q];
        while (atomic_load_explicit(&member->finished, memory_order_acquire) < own->seq) {
            if (shl_shm_check(m->world) != SHL_OK || shl_clock_ns() > deadline_ns) {
                return false;
            }
            shl_clock_sleep_ns(POLL_NS);
        }
    }
    return true;
}

static void
close_state(shl_shm_comm *m)
{
    local_state *own = m->own;
    shl_gate_close(&own->ready);
    shl_gate_close(&own->half);
    shl_gate_close(&own->done);
    shl_heap_free(&own->op.segs);
    shl_heap_free(&m->own);
}

static void
local_close(shl_comm *c)
{
    shl_shm_comm *m = c->impl;
    shl_err before = *shl_err_get();
    bool calm = m->size == 1 || (shl_shm_check(m->world) == SHL_OK && peers_are_through(m));
    if (!calm) {
        drain(c, m);
    }
    (void)!shl_err_put(&before);
    close_state(m);
    shl_shm_comm_close(c);
}

/* Behind the opening of the group; what fails here is agreed on by the caller. */
static shl_code
open_state(shl_comm *c)
{
    shl_shm_comm *m = c->impl;
    local_state *own = NULL;
    SHL_TRY(shl_heap_alloc(1, sizeof *own, &own));
    m->own = own;
    SHL_TRY(shl_gate_open(c->device, &own->ready));
    SHL_TRY(shl_gate_open(c->device, &own->half));
    return shl_gate_open(c->device, &own->done);
}

/* All ranks on one card: their addresses are each other's. */
static shl_code
check_one_device(shl_shm_comm *m, shl_device *d)
{
    shl_device_identity mine;
    shl_device_identify(d, &mine);
    SHL_TRY(shl_shm_exchange(&m->control, SHL_SHM_OPEN, "open", &mine, (int)sizeof mine));
    for (int q = 0; q < m->size; q++) {
        shl_device_identity peer;
        memcpy(&peer, shl_shm_said(&m->control, q), sizeof peer);
        if (strcmp(peer.id, mine.id) != 0) {
            SHL_RAISE(SHL_E_USAGE, "communicator local is for ranks of one card");
            shl_err_because("rank %d is on %s, rank %d on %s", m->world_rank[m->rank], mine.id,
                            m->world_rank[q], peer.id);
            return shl_err_advice("communicator nccl, with one process for each card");
        }
    }
    return SHL_OK;
}

static shl_code
check_local(const shl_comm *c, const shl_comm_config *cfg)
{
    if (!c->device->caps.has_bytes || !c->device->caps.async) {
        SHL_RAISE(SHL_E_USAGE, "communicator local orders streams of one card, device %s has none",
                  c->device->ops->kind);
        return shl_err_advice("--device cuda, or communicator %s here",
                              c->device->caps.has_bytes ? "shm" : "virtual");
    }
    if (cfg->rank_world != NULL && shl_world_is_processes(cfg->rank_world)) {
        SHL_RAISE(SHL_E_USAGE, "communicator local is for ranks that are threads");
        shl_err_because("the ranks of this world are processes");
        return shl_err_advice("threads, or communicator nccl");
    }
    return SHL_OK;
}

static shl_code
local_open(shl_comm *c, const shl_comm_config *cfg)
{
    SHL_TRY(check_local(c, cfg));
    SHL_TRY(shl_shm_comm_open(c, cfg));
    shl_shm_comm *m = c->impl;
    shl_code code = check_one_device(m, c->device);
    code = shl_shm_agree(&m->control, code == SHL_OK ? open_state(c) : code, "open communicator");
    if (code != SHL_OK) {
        if (m->own != NULL) {
            close_state(m);
        }
        shl_shm_comm_close(c);
    }
    return code;
}

/* comm.c agrees on the outcome. */
static shl_code
local_split(shl_comm *c, int color, int key, shl_comm *child)
{
    SHL_TRY(shl_shm_comm_split(c, color, key, child));
    if (color < 0) {
        return SHL_OK;
    }
    shl_code code = open_state(child);
    if (code != SHL_OK) {
        if (((shl_shm_comm *)child->impl)->own != NULL) {
            close_state(child->impl);
        }
        shl_shm_comm_close(child);
    }
    return code;
}

const shl_comm_ops shl_comm_local_ops = {
    .kind = "local",
    .open = local_open,
    .close = local_close,
    .collective = local_collective,
    .control = shl_shm_comm_control,
    .agree = shl_shm_comm_agree,
    .abort = shl_shm_comm_abort,
    .split = local_split,
};

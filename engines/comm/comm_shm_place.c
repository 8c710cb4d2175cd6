/* engines/comm: how far each rank of a world has come: written by the ranks while they run, read when
 * one has failed, so that a message tells its phase, its last call and who missed it. */
#include <string.h>

#include "engines/comm/comm_backend.h"
#include "kernels/base/str.h"

/* A packed call: sequence number, lane, operation. Sequence numbers start at 1, so none is 0. */
#define OP_BITS 8
#define LANE_BITS 1

const char *
shl_shm_control_name(int op)
{
    switch (op) {
    case SHL_SHM_BARRIER:
        return "barrier";
    case SHL_SHM_AGREE:
        return "agree";
    case SHL_SHM_OPEN:
        return "open";
    case SHL_SHM_SPLIT:
        return "split";
    default:
        return "control";
    }
}

void
shl_shm_enter(shl_world *w, int lane, int op, uint64_t seq)
{
    uint64_t call = (seq << LANE_BITS | (uint64_t)lane) << OP_BITS | (uint64_t)op;
    atomic_store_explicit(&w->block->rank[w->rank].place.inside[lane], call, memory_order_relaxed);
}

void
shl_shm_exit(shl_world *w, int lane)
{
    shl_shm_place *place = &w->block->rank[w->rank].place;
    uint64_t call = atomic_load_explicit(&place->inside[lane], memory_order_relaxed);
    atomic_store_explicit(&place->last, call, memory_order_relaxed);
    atomic_store_explicit(&place->inside[lane], 0, memory_order_relaxed);
}

void
shl_shm_refuse(shl_world *w, int lane, int op, uint64_t seq)
{
    const shl_shm_block *b = w->block;
    const shl_shm_place *place = &b->rank[w->rank].place;
    uint32_t first = atomic_load_explicit(&b->aborted, memory_order_acquire);
    bool culprit = first != 0 && b->rank[first - 1].note_rank == w->rank;
    if (!culprit && atomic_load_explicit(&place->inside[lane], memory_order_relaxed) == 0) {
        shl_shm_enter(w, lane, op, seq);
    }
}

const char *
shl_shm_phase(const shl_shm_block *b, int rank)
{
    uint32_t phase = atomic_load_explicit(&b->rank[rank].place.phase, memory_order_relaxed);
    return shl_mark_name(phase < SHL_MARK_COUNT ? (shl_mark)phase : SHL_MARK_INIT);
}

/* "all_gather #12" */
static void
spell_call(uint64_t call, char *dst, size_t cap)
{
    int op = (int)(call & ((1u << OP_BITS) - 1));
    int lane = (int)(call >> OP_BITS & ((1u << LANE_BITS) - 1));
    bool data = lane == SHL_SHM_DATA && op < SHL_COLL_COUNT;
    shl_strf(dst, cap, "%s #%llu", data ? shl_coll_name((shl_coll)op) : shl_shm_control_name(op),
             (unsigned long long)(call >> (OP_BITS + LANE_BITS)));
}

/* The call that a rank is in; collectives before control calls; 0: none. */
static uint64_t
inside(const shl_shm_block *b, int rank)
{
    const shl_shm_place *place = &b->rank[rank].place;
    uint64_t data = atomic_load_explicit(&place->inside[SHL_SHM_DATA], memory_order_relaxed);
    return data != 0 ? data
                     : atomic_load_explicit(&place->inside[SHL_SHM_CONTROL], memory_order_relaxed);
}

static void
append(char *text, size_t cap, const char *more)
{
    size_t len = strlen(text);
    shl_strf(text + len, cap - len, "%s%s", len > 0 ? "; " : "", more);
}

void
shl_shm_explain(const shl_shm_block *b, int rank, shl_err *err)
{
    char call[64], more[160];
    uint64_t now = inside(b, rank);
    uint64_t last = atomic_load_explicit(&b->rank[rank].place.last, memory_order_relaxed);
    spell_call(now != 0 ? now : last, call, sizeof call);
    if (now == 0 && last == 0) {
        shl_strf(call, sizeof call, "the start");
    }
    shl_strf(more, sizeof more, "rank %d was in %s, %s %s", rank, shl_shm_phase(b, rank),
             now != 0 ? "inside" : "after", call);
    append(err->because, sizeof err->because, more);
    for (int r = 0; r < b->ranks; r++) {
        if (r != rank && inside(b, r) != 0) {
            spell_call(inside(b, r), call, sizeof call);
            shl_strf(more, sizeof more, "rank %d missed it in %s", r, call);
            append(err->because, sizeof err->because, more);
            return;
        }
    }
}

/* engines/comm: what ranks tell each other of a collective that they enter, and how an all-reduce is cut
 * among them. */
#include "engines/comm/comm_backend.h"
#include "kernels/base/types.h"

/* FNV-1a over the counts: different cuts of the same total are different calls. */
static uint64_t
hash_elems(const shl_comm_seg *segs, int n, int64_t *total)
{
    uint64_t h = UINT64_C(14695981039346656037);
    *total = 0;
    for (int i = 0; i < n; i++) {
        h = (h ^ (uint64_t)segs[i].elems) * UINT64_C(1099511628211);
        h = (h ^ (uint64_t)segs[i].to) * UINT64_C(1099511628211);
        *total += segs[i].elems;
    }
    return h;
}

void
shl_shm_call_put(shl_shm_call *call, const shl_shm_op *op)
{
    call->seq = op->seq;
    call->coll = (int32_t)op->kind;
    call->dtype = (int32_t)op->dtype;
    call->root = op->root;
    call->n_segs = op->n_segs;
    call->elems_hash = hash_elems(op->segs, op->n_segs, &call->elems);
}

static bool
same_call(const shl_shm_call *a, const shl_shm_call *b)
{
    return a->seq == b->seq && a->coll == b->coll && a->dtype == b->dtype && a->root == b->root &&
           a->n_segs == b->n_segs && a->elems == b->elems && a->elems_hash == b->elems_hash;
}

shl_code
shl_shm_calls_check(const shl_shm_comm *m)
{
    const shl_shm_call *zero = &m->data.group->member[0].call;
    for (int q = 1; q < m->size; q++) {
        const shl_shm_call *call = &m->data.group->member[q].call;
        if (!same_call(zero, call)) {
            return SHL_RAISE(
                SHL_E_BUG,
                "ranks disagree: rank %d entered %s #%llu (%d segments, %lld elements, %s, root "
                "%d), rank %d entered %s #%llu (%d segments, %lld elements, %s, root %d)",
                m->world_rank[0], shl_coll_name((shl_coll)zero->coll),
                (unsigned long long)zero->seq, zero->n_segs, (long long)zero->elems,
                shl_dtype_name((shl_dtype)zero->dtype), zero->root, m->world_rank[q],
                shl_coll_name((shl_coll)call->coll), (unsigned long long)call->seq, call->n_segs,
                (long long)call->elems, shl_dtype_name((shl_dtype)call->dtype), call->root);
        }
    }
    return SHL_OK;
}

int64_t
shl_shm_piece(int64_t elems, int size, int member, int64_t *n)
{
    int64_t each = shl_round_up(shl_ceil_div(elems, size), SHL_SHM_PIECE_ELEMS);
    int64_t begin = member * each < elems ? member * each : elems;
    *n = (begin + each < elems ? begin + each : elems) - begin;
    return begin;
}

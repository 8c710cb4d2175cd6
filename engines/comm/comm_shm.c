/* engines/comm: shm, the ranks of one machine: what runs on the caller. Collectives become work
 * on a stream (comm_shm_move.c); the rest is comm_group.c. */
#include <string.h>

#include "engines/comm/comm_backend.h"
#include "kernels/base/heap.h"

static shl_code
shm_open_comm(shl_comm *c, const shl_comm_config *cfg)
{
    if (!c->device->caps.has_bytes || c->device->caps.async) {
        SHL_RAISE(SHL_E_USAGE, "communicator shm reads memory itself, not that of device %s",
                  c->device->ops->kind);
        return shl_err_advice("use --device cpu, or communicator virtual");
    }
    if (cfg->rank_world != NULL && cfg->rank_world->wire != NULL) {
        SHL_RAISE(SHL_E_USAGE, "communicator shm is for ranks of one machine");
        shl_err_because("these were started by a launcher, each by itself");
        return shl_err_advice("--device cuda, or without the launcher: --ranks %d", cfg->world);
    }
    if (cfg->world > 1 && cfg->rank_world != NULL &&
        c->device->config.comm_arena != shl_world_comm_arena(cfg->rank_world)) {
        return SHL_RAISE(SHL_E_BUG, "the device was opened without the arena of its world");
    }
    return shl_shm_comm_open(c, cfg);
}

/* A finished operation with room for n segments, or a new one. */
static shl_code
take_op(shl_shm_comm *m, int n, shl_shm_op **out)
{
    for (shl_shm_op *op = m->ops; op != NULL; op = op->next) {
        if (op->cap >= n && atomic_load_explicit(&op->done, memory_order_acquire) != 0) {
            *out = op;
            return SHL_OK;
        }
    }
    shl_shm_op *op = NULL;
    int cap = n > 16 ? n : 16;
    SHL_TRY(shl_heap_alloc(1, sizeof *op, &op));
    shl_code code = shl_heap_alloc((size_t)cap, sizeof *op->segs, &op->segs);
    if (code != SHL_OK) {
        shl_heap_free(&op);
        return code;
    }
    op->cap = cap;
    op->comm = m;
    op->next = m->ops;
    m->ops = op;
    *out = op;
    return SHL_OK;
}

static shl_code
shm_collective(shl_comm *c, shl_coll kind, const shl_comm_seg *segs, int n, shl_dtype dtype,
               int root, int64_t cost_ns, shl_stream *s)
{
    shl_shm_comm *m = c->impl;
    shl_shm_op *op = NULL;
    if (shl_shm_check(m->world) != SHL_OK) {
        shl_shm_refuse(m->world, SHL_SHM_DATA, (int)kind, m->n_issued + 1);
        return shl_err_get()->code;
    }
    SHL_TRY(take_op(m, n, &op));
    op->stream = s;
    op->kind = kind;
    op->dtype = dtype;
    op->root = root;
    op->n_segs = n;
    op->cost_ns = c->config.sim_sleep ? cost_ns : 0;
    op->staged = shl_shm_needs_staging(m, kind, root, segs, n);
    memcpy(op->segs, segs, (size_t)n * sizeof *segs);
    if (op->staged) {
        c->stats.staged_bytes += shl_shm_staged_bytes(m, kind, root, segs, n, dtype);
    }
    op->seq = ++m->n_issued;
    atomic_store_explicit(&op->done, 0, memory_order_relaxed);
    shl_code code = shl_stream_submit(s, shl_shm_collective_run, &op, sizeof op, cost_ns);
    if (code != SHL_OK && atomic_load_explicit(&op->done, memory_order_acquire) == 0) {
        /* It never ran and its turn never comes: the others must not wait for it. */
        shl_shm_abort(m->world, shl_coll_name(kind));
    }
    return code;
}

const shl_comm_ops shl_comm_shm_ops = {
    .kind = "shm",
    .open = shm_open_comm,
    .close = shl_shm_comm_close,
    .collective = shm_collective,
    .control = shl_shm_comm_control,
    .agree = shl_shm_comm_agree,
    .abort = shl_shm_comm_abort,
    .split = shl_shm_comm_split,
};

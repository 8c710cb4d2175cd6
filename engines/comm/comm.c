/* engines/comm: the front of every communicator: checks, counters, cost, the staging buffer. */
#include "engines/comm/comm.h"

#include <string.h>

#include "engines/comm/comm_backend.h"
#include "kernels/base/heap.h"
#include "kernels/base/types.h"

#define DEFAULT_TIMEOUT_MS 30000

/* Whose buffers a configuration accounts for. */
static const char *
real_kind(const shl_comm_config *cfg)
{
    if (strcmp(cfg->kind, "virtual") != 0) {
        return cfg->kind;
    }
    if (cfg->stands_for != NULL) {
        return cfg->stands_for;
    }
    return cfg->world > 1 ? "shm" : "self";
}

static shl_code
check_config(const shl_comm_config *cfg)
{
    if (cfg->world < 1 || cfg->rank < 0 || cfg->rank >= cfg->world) {
        SHL_RAISE(SHL_E_USAGE, "rank %d of %d is no place in a world", cfg->rank, cfg->world);
        return shl_err_because("ranks count from 0 to world - 1");
    }
    if (cfg->timeout_ms < 0 || cfg->alpha_ns < 0 || !(cfg->wire_bytes_per_s >= 0)) {
        return SHL_RAISE(SHL_E_USAGE,
                         "timeout, latency and rate of a communicator cannot be negative");
    }
    return SHL_OK;
}

static shl_code
take_staging(shl_comm *c)
{
    size_t bytes = shl_comm_staging_bytes(real_kind(&c->config), c->config.world);
    if (bytes == 0) {
        return SHL_OK;
    }
    return shl_device_alloc(c->device, bytes, SHL_TIER_DEVICE, SHL_TAG_STAGING, SHL_MEM_COMM,
                            "comm.staging", &c->staging);
}

shl_code
shl_comm_mem_source(const char *kind, shl_mem_source *out)
{
    const shl_comm_ops *ops = NULL;
    memset(out, 0, sizeof *out);
    SHL_TRY(shl_comm_backend_find(kind, &ops));
    return ops->mem_source != NULL ? ops->mem_source(out) : SHL_OK;
}

shl_code
shl_comm_open(const shl_comm_config *cfg, shl_device *d, shl_comm **out)
{
    *out = NULL;
    const shl_comm_ops *ops = NULL;
    SHL_TRY(shl_comm_backend_find(cfg->kind, &ops));
    SHL_TRY(check_config(cfg));
    shl_comm *c = NULL;
    SHL_TRY(shl_heap_alloc(1, sizeof *c, &c));
    c->ops = ops;
    c->config = *cfg;
    c->device = d;
    if (c->config.timeout_ms == 0) {
        const shl_world *w = cfg->rank_world;
        c->config.timeout_ms = w != NULL ? w->block->timeout_ms : DEFAULT_TIMEOUT_MS;
    }
    shl_code code = ops->open(c, cfg);
    if (code != SHL_OK) {
        shl_heap_free(&c);
        return code;
    }
    code = ops->agree(c, take_staging(c), "open communicator");
    if (code != SHL_OK) {
        shl_comm_close(&c);
        return code;
    }
    *out = c;
    return SHL_OK;
}

void
shl_comm_close(shl_comm **c)
{
    if (*c == NULL) {
        return;
    }
    (*c)->ops->close(*c);
    shl_device_free((*c)->device, &(*c)->staging);
    shl_heap_free(c);
}

int
shl_comm_rank(const shl_comm *c)
{
    return c->config.rank;
}

int
shl_comm_size(const shl_comm *c)
{
    return c->config.world;
}

bool
shl_comm_has_data(const shl_comm *c)
{
    return c->ops != &shl_comm_virtual_ops;
}

const char *
shl_comm_memory(const shl_comm *c)
{
    return c->memory;
}

static void
count(shl_comm *c, shl_coll kind, int64_t bytes)
{
    shl_comm_counter *n = &c->stats.kind[kind];
    n->calls++;
    n->bytes += bytes;
    n->wire_bytes += shl_comm_wire_bytes(kind, c->config.world, bytes);
}

/* Checks the segments and adds up the bytes of their full buffers. */
static shl_code
check_segs(const shl_comm *c, shl_coll kind, const shl_comm_seg *segs, int n, shl_dtype dtype,
           int root, int64_t *bytes)
{
    const char *name = shl_coll_name(kind);
    if (n < 1 || n > SHL_COMM_MAX_SEGS) {
        return SHL_RAISE(SHL_E_BUG, "%s of %d segments: 1 to %d are possible", name, n,
                         SHL_COMM_MAX_SEGS);
    }
    if (root < 0 || root >= c->config.world) {
        return SHL_RAISE(SHL_E_BUG, "%s from rank %d in a world of %d", name, root,
                         c->config.world);
    }
    bool sends = kind != SHL_COLL_BROADCAST || root == c->config.rank;
    *bytes = 0;
    for (int i = 0; i < n; i++) {
        const shl_comm_seg *s = &segs[i];
        bool scatters = kind == SHL_COLL_REDUCE_SCATTER;
        bool empty = s->elems == 0, gets = s->to == 0 || s->to == c->config.rank + 1;
        if (s->to < 0 || s->to > c->config.world || (s->to > 0 && !scatters)) {
            return SHL_RAISE(SHL_E_BUG, "%s: segment %d goes to rank %d", name, i, s->to - 1);
        }
        if (s->elems < 0 || (!empty && gets && s->dst == NULL) ||
            (!empty && sends && s->src == NULL)) {
            return SHL_RAISE(SHL_E_BUG, "%s: segment %d has %lld elements at src %p, dst %p", name,
                             i, (long long)s->elems, s->src, s->dst);
        }
        *bytes += s->to > 0 ? s->elems * (int64_t)shl_dtype_bytes(dtype)
                            : shl_comm_coll_bytes(kind, c->config.world, s->elems, dtype);
    }
    return SHL_OK;
}

static shl_code
collective(shl_comm *c, shl_coll kind, const shl_comm_seg *segs, int n, shl_dtype dtype, int root,
           shl_stream *s, shl_event *done)
{
    int64_t bytes = 0;
    SHL_TRY(check_segs(c, kind, segs, n, dtype, root, &bytes));
    bool sums = kind == SHL_COLL_REDUCE_SCATTER || kind == SHL_COLL_ALL_REDUCE;
    if (sums && dtype != SHL_F32 && dtype != SHL_BF16 && dtype != SHL_F16) {
        return SHL_RAISE(SHL_E_USAGE, "%s of %s: sums are taken of fp32, bf16 and fp16",
                         shl_coll_name(kind), shl_dtype_name(dtype));
    }
    if (s == NULL) {
        s = shl_device_stream(c->device, SHL_STREAM_COMPUTE);
    }
    int64_t wire_bytes = shl_comm_wire_bytes(kind, c->config.world, bytes);
    SHL_TRY(c->ops->collective(c, kind, segs, n, dtype, root,
                               shl_comm_cost_ns(&c->config, wire_bytes), s));
    count(c, kind, bytes);
    if (done != NULL) {
        SHL_TRY(shl_stream_record(s, done));
    }
    return SHL_OK;
}

shl_code
shl_comm_all_gather(shl_comm *c, const shl_comm_seg *segs, int n, shl_dtype dtype, shl_stream *s,
                    shl_event *done)
{
    return collective(c, SHL_COLL_ALL_GATHER, segs, n, dtype, 0, s, done);
}

shl_code
shl_comm_reduce_scatter(shl_comm *c, const shl_comm_seg *segs, int n, shl_dtype dtype,
                        shl_stream *s, shl_event *done)
{
    return collective(c, SHL_COLL_REDUCE_SCATTER, segs, n, dtype, 0, s, done);
}

shl_code
shl_comm_all_reduce(shl_comm *c, const shl_comm_seg *segs, int n, shl_dtype dtype, shl_stream *s,
                    shl_event *done)
{
    return collective(c, SHL_COLL_ALL_REDUCE, segs, n, dtype, 0, s, done);
}

shl_code
shl_comm_broadcast(shl_comm *c, const shl_comm_seg *segs, int n, shl_dtype dtype, int root,
                   shl_stream *s, shl_event *done)
{
    return collective(c, SHL_COLL_BROADCAST, segs, n, dtype, root, s, done);
}

static size_t
control_elem_bytes(shl_control_op op)
{
    switch (op) {
    case SHL_CONTROL_SUM_I128:
        return 16;
    case SHL_CONTROL_MAX_U32:
        return 4;
    case SHL_CONTROL_SUM_F64:
    case SHL_CONTROL_SUM_I64:
    case SHL_CONTROL_MAX_I64:
        break;
    }
    return 8;
}

shl_code
shl_comm_control(shl_comm *c, shl_control_op op, void *data, int n)
{
    int most = SHL_SHM_SLOT_BYTES / (int)control_elem_bytes(op);
    if (n < 0 || n > most || (n > 0 && data == NULL)) {
        return SHL_RAISE(SHL_E_BUG, "control of %d values: at most %d are possible", n, most);
    }
    SHL_TRY(c->ops->control(c, op, data, n));
    count(c, SHL_COLL_CONTROL, (int64_t)n * (int64_t)control_elem_bytes(op));
    return SHL_OK;
}

shl_code
shl_comm_barrier(shl_comm *c)
{
    SHL_TRY(c->ops->control(c, SHL_CONTROL_SUM_F64, NULL, 0));
    count(c, SHL_COLL_CONTROL, 0);
    return SHL_OK;
}

shl_code
shl_comm_agree(shl_comm *c, shl_code mine, const char *where)
{
    count(c, SHL_COLL_CONTROL, (int64_t)sizeof(int32_t));
    return c->ops->agree(c, mine, where);
}

void
shl_comm_abort(shl_comm *c, const char *where)
{
    c->ops->abort(c, where);
}

shl_code
shl_comm_split(shl_comm *c, int color, int key, shl_comm **out)
{
    *out = NULL;
    shl_comm *child = NULL;
    shl_code code =
        c->ops->agree(c, shl_heap_alloc(1, sizeof *child, &child), "split communicator");
    if (code != SHL_OK) { /* maybe another rank's */
        shl_heap_free(&child);
        return code;
    }
    child->ops = c->ops;
    child->config = c->config;
    child->device = c->device;
    code = c->ops->split(c, color, key, child);
    bool opened = code == SHL_OK && color >= 0;
    if (opened) {
        code = take_staging(child);
    }
    code = c->ops->agree(c, code, "split communicator");
    if (opened && code != SHL_OK) {
        shl_comm_close(&child);
    } else if (!opened) {
        shl_heap_free(&child);
    }
    *out = child;
    return code;
}

const shl_comm_stats *
shl_comm_stats_get(const shl_comm *c)
{
    return &c->stats;
}

void
shl_comm_stats_reset(shl_comm *c)
{
    memset(&c->stats, 0, sizeof c->stats);
}

/* engines/comm: a group of ranks in a world's control block: what shm, local and nccl share. Places,
 * control calls on a lane of their own, splitting. */
#include <string.h>

#include "engines/comm/comm_backend.h"
#include "kernels/base/heap.h"
#include "kernels/base/types.h"

static shl_shm_comm *
impl(const shl_comm *c)
{
    return (shl_shm_comm *)c->impl;
}

/* m->world_rank, rank, size and group are set. */
static void
connect_ports(shl_shm_comm *m, int64_t timeout_ms)
{
    shl_shm_port port = {.world = m->world,
                         .group = shl_shm_group_at(m->world->block, m->group),
                         .world_rank = m->world_rank,
                         .rank = m->rank,
                         .size = m->size,
                         .index = m->group,
                         .timeout_ms = timeout_ms};
    m->data = port;
    m->data.lane = SHL_SHM_DATA;
    m->control = port;
    m->control.lane = SHL_SHM_CONTROL;
}

/* This rank's place in the world that the configuration names. */
static shl_code
check_world(const shl_comm_config *cfg)
{
    const shl_world *w = cfg->rank_world;
    if (w == NULL || shl_world_size(w) != cfg->world || shl_world_rank(w) != cfg->rank) {
        SHL_RAISE(SHL_E_USAGE, "communicator %s needs the running world of its %d ranks", cfg->kind,
                  cfg->world);
        shl_err_because("rank %d is not in it", cfg->rank);
        return shl_err_advice("--launch processes, or a launcher that starts the ranks");
    }
    return SHL_OK;
}

/* Ranks of different machines: the first group that none of them uses. */
static shl_code
find_group(shl_shm_port *p, int op, bool joins, int32_t *group)
{
    shl_shm_block *b = p->world->block;
    uint64_t used = atomic_load(&b->groups), theirs = 0;
    SHL_TRY(shl_shm_exchange(p, op, "open", &used, (int)sizeof used));
    for (int q = 0; q < p->size; q++) {
        memcpy(&theirs, shl_shm_said(p, q), sizeof theirs);
        used |= theirs;
    }
    *group = used == UINT64_MAX ? -1 : __builtin_ctzll(~used);
    if (joins && *group >= 0) {
        atomic_fetch_or(&b->groups, UINT64_C(1) << *group);
        atomic_store(&shl_shm_group_at(b, *group)->users, 1);
    }
    return SHL_OK;
}

/* The first member of a new group takes it from the pool and tells the others. */
static shl_code
share_group(shl_shm_port *p, int op, int first, bool joins, int users, int32_t *group)
{
    *group = -1;
    if (p->world->wire != NULL) {
        return find_group(p, op, joins, group);
    }
    if (joins && first == p->rank) {
        *group = shl_shm_group_take(p->world->block, users);
    }
    SHL_TRY(shl_shm_exchange(p, op, "open", group, (int)sizeof *group));
    memcpy(group, shl_shm_said(p, first), sizeof *group);
    return SHL_OK;
}

static shl_code
no_group(void)
{
    SHL_RAISE(SHL_E_USAGE, "too many communicators");
    return shl_err_because("a world has at most %d at once", SHL_SHM_GROUPS - 1);
}

shl_code
shl_shm_comm_open(shl_comm *c, const shl_comm_config *cfg)
{
    SHL_TRY(check_world(cfg));
    shl_world *w = cfg->rank_world;
    shl_shm_comm *m = NULL;
    shl_code code = shl_shm_agree(&w->port, shl_heap_alloc(1, sizeof *m, &m), "open communicator");
    int32_t group = -1;
    if (code == SHL_OK) {
        code = share_group(&w->port, SHL_SHM_OPEN, 0, true, cfg->world, &group);
    }
    if (code == SHL_OK) {
        code = group < 0 ? no_group() : SHL_OK;
    }
    if (code != SHL_OK) {
        shl_heap_free(&m);
        return code;
    }
    m->comm = c;
    m->world = w;
    m->group = group;
    m->rank = cfg->rank;
    m->size = cfg->world;
    memcpy(m->world_rank, w->identity, sizeof m->world_rank);
    connect_ports(m, c->config.timeout_ms);
    m->shares_phase = true;
    shl_ledger_share_mark(c->device->ledger, &w->block->rank[w->rank].place.phase);
    c->impl = m;
    return SHL_OK;
}

void
shl_shm_comm_close(shl_comm *c)
{
    shl_shm_comm *m = impl(c);
    SHL_ASSERT(m->own == NULL);
    shl_shm_op *op = m->ops;
    while (op != NULL) {
        shl_shm_op *next = op->next;
        shl_heap_free(&op->segs);
        shl_heap_free(&op);
        op = next;
    }
    if (m->shares_phase) {
        shl_ledger_share_mark(c->device->ledger, NULL);
    }
    shl_shm_group_drop(m->world->block, m->group);
    if (m->world->wire != NULL) {
        shl_shm_group_clear(m->world->block, m->group); /* before anybody can take it again */
    }
    shl_heap_free(&c->impl);
}

/* Adds or takes the larger of b into a; little-endian pairs for I128. */
static void
combine(shl_control_op op, void *a, const void *b, int n)
{
    for (int i = 0; i < n; i++) {
        switch (op) {
        case SHL_CONTROL_SUM_F64:
            ((double *)a)[i] += ((const double *)b)[i];
            break;
        case SHL_CONTROL_SUM_I64: {
            uint64_t sum = (uint64_t)((int64_t *)a)[i] + (uint64_t)((const int64_t *)b)[i];
            ((int64_t *)a)[i] = (int64_t)sum;
            break;
        }
        case SHL_CONTROL_SUM_I128: {
            uint64_t *x = (uint64_t *)a + 2 * (size_t)i;
            const uint64_t *y = (const uint64_t *)b + 2 * (size_t)i;
            uint64_t low = x[0] + y[0];
            x[1] += y[1] + (low < x[0] ? 1 : 0);
            x[0] = low;
            break;
        }
        case SHL_CONTROL_MAX_U32: {
            uint32_t y = ((const uint32_t *)b)[i];
            ((uint32_t *)a)[i] = ((uint32_t *)a)[i] > y ? ((uint32_t *)a)[i] : y;
            break;
        }
        case SHL_CONTROL_MAX_I64: {
            int64_t y = ((const int64_t *)b)[i];
            ((int64_t *)a)[i] = ((int64_t *)a)[i] > y ? ((int64_t *)a)[i] : y;
            break;
        }
        }
    }
}

static int
control_bytes(shl_control_op op, int n)
{
    int each = op == SHL_CONTROL_MAX_U32 ? 4 : op == SHL_CONTROL_SUM_I128 ? 16 : 8;
    return each * n;
}

shl_code
shl_shm_comm_control(shl_comm *c, shl_control_op op, void *data, int n)
{
    shl_shm_port *p = &impl(c)->control;
    if (n == 0) {
        return shl_shm_exchange(p, SHL_SHM_BARRIER, "barrier", NULL, 0);
    }
    int bytes = control_bytes(op, n);
    SHL_TRY(shl_shm_exchange(p, (int)op, "control", data, bytes));
    memcpy(data, shl_shm_said(p, 0), (size_t)bytes);
    for (int m = 1; m < p->size; m++) {
        combine(op, data, shl_shm_said(p, m), n);
    }
    return SHL_OK;
}

shl_code
shl_shm_comm_agree(shl_comm *c, shl_code mine, const char *where)
{
    return shl_shm_agree(&impl(c)->control, mine, where);
}

void
shl_shm_comm_abort(shl_comm *c, const char *where)
{
    shl_shm_abort(impl(c)->world, where);
}

typedef struct split_word {
    int32_t color, key;
} split_word;

/* Members of my color by (key, rank), as ranks of the parent; my place among them. */
static void
choose_members(const shl_shm_port *p, int color, shl_shm_comm *child)
{
    int keys[SHL_WORLD_MAX_RANKS];
    child->size = 0;
    for (int r = 0; r < p->size; r++) {
        split_word word;
        memcpy(&word, shl_shm_said(p, r), sizeof word);
        if (word.color != color) {
            continue;
        }
        int at = child->size++;
        while (at > 0 && keys[at - 1] > word.key) {
            keys[at] = keys[at - 1];
            child->world_rank[at] = child->world_rank[at - 1];
            at--;
        }
        keys[at] = word.key;
        child->world_rank[at] = r;
    }
    for (int i = 0; i < child->size; i++) {
        child->rank = child->world_rank[i] == p->rank ? i : child->rank;
    }
}

shl_code
shl_shm_comm_split(shl_comm *c, int color, int key, shl_comm *child)
{
    shl_shm_comm *m = impl(c), *n = NULL;
    shl_shm_port *p = &m->control;
    split_word word = {color, key};
    shl_code code = shl_shm_agree(p, shl_heap_alloc(1, sizeof *n, &n), "split communicator");
    if (code == SHL_OK) {
        code = shl_shm_exchange(p, SHL_SHM_SPLIT, "split", &word, (int)sizeof word);
    }
    int32_t group = -1;
    int first = 0;
    if (code == SHL_OK) {
        choose_members(p, color, n);
        first = n->world_rank[0];
        code = share_group(p, SHL_SHM_OPEN, first, color >= 0, n->size, &group);
    }
    if (code == SHL_OK && color >= 0) {
        code = group < 0 ? no_group() : SHL_OK;
    }
    if (code != SHL_OK || color < 0) {
        shl_heap_free(&n);
        return code;
    }
    for (int i = 0; i < n->size; i++) {
        n->world_rank[i] = m->world_rank[n->world_rank[i]];
    }
    n->comm = child;
    n->world = m->world;
    n->group = group;
    connect_ports(n, m->control.timeout_ms);
    child->config.rank = n->rank;
    child->config.world = n->size;
    child->impl = n;
    return SHL_OK;
}

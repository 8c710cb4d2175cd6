/* engines/comm: nccl, one process for each card: opening, launching, splitting, closing. Control calls go
 * over the world's own channel (comm_group.c), never through the library. The library's communicators
 * do not block: what it has not done at once is asked for until it has, with a deadline, and a watchdog
 * (comm_nccl_watch.c) can abort them while somebody waits for a stream.
 *
 * Launches of different communicators of a family follow each other on the device in the order of the host's
 * calls, which is the same on every rank: no two of them wait for one another's peers. */
#include "engines/comm/comm_nccl.h"

#include <limits.h>
#include <string.h>

#include "kernels/base/clock.h"
#include "kernels/base/heap.h"
#include "kernels/base/log.h"
#include "kernels/base/str.h"
#include "kernels/base/types.h"

#define MOST_SHARED 4 /* ranks of one card: the library's kernels take turns on it */

shl_code
shl_nccl_check(const nccl_family *f, nccl_handle *comm, int result, const char *what)
{
    if (result == NCCL_OK) {
        return SHL_OK;
    }
    SHL_RAISE(SHL_E_SYSTEM, "NCCL: %s failed: %s", what, f->table.error_string(result));
    const char *last = f->table.last_error(comm);
    return shl_err_because("%.400s", last != NULL && last[0] != '\0' ? last : "no more is told");
}

static nccl_state *
state_of(const shl_comm *c)
{
    return ((const shl_shm_comm *)c->impl)->own;
}

/* --- who is where ------------------------------------------------------------------------ */

static shl_code
check_sharing(const shl_shm_comm *m, bool share, const shl_device_card *cards)
{
    for (int q = 0; q < m->size; q++) {
        int n = 0, other = -1;
        for (int r = 0; r < m->size; r++) {
            bool same = strcmp(cards[q].identity.id, cards[r].identity.id) == 0;
            n += same;
            other = same && r != q ? r : other;
        }
        if (n > 1 && !share) {
            SHL_RAISE(SHL_E_USAGE, "ranks %d and %d have the same card", m->world_rank[q],
                      m->world_rank[other]);
            shl_err_because("it is %s, %s", cards[q].identity.name, cards[q].identity.id);
            return shl_err_advice("fewer ranks, --share-gpu (to check values: it is slow), or "
                                  "communicator local");
        }
        if (n > MOST_SHARED) {
            SHL_RAISE(SHL_E_USAGE, "%d ranks share a card", n);
            shl_err_because("NCCL's kernels take turns on it; %d are possible", MOST_SHARED);
            return shl_err_advice("fewer ranks, or communicator local");
        }
    }
    return SHL_OK;
}

static bool
is_new(const shl_device_card *cards, int at)
{
    for (int q = 0; q < at; q++) {
        if (strcmp(cards[q].identity.name, cards[at].identity.name) == 0) {
            return false;
        }
    }
    return true;
}

static void
warn_of_mixture(const shl_shm_comm *m, const shl_device_card *cards)
{
    shl_str types = {0};
    int slowest = 0, n = 0;
    for (int q = 0; q < m->size; q++) {
        if (is_new(cards, q)) {
            shl_str_add(&types, "%s%s", n++ > 0 ? "; " : "", cards[q].identity.name);
        }
        slowest = cards[q].flops_per_s < cards[slowest].flops_per_s ? q : slowest;
    }
    if (n > 1 && m->rank == 0) {
        shl_log(SHL_LOG_WARN, "comm",
                "the cards are of %d types (%s): the slowest, %s of rank %d, sets the pace", n,
                shl_str_get(&types), cards[slowest].identity.name, m->world_rank[slowest]);
    }
    shl_str_fini(&types);
}

/* Every rank tells which card it has. */
static shl_code
compare_cards(shl_shm_comm *m, shl_device *d, bool share)
{
    shl_device_card mine = {0}, *all = NULL;
    shl_code code = shl_device_card_get(d->config.kind, d->config.index, &mine);
    if (code == SHL_OK) {
        shl_device_identify(d, &mine.identity);
        code = shl_heap_alloc((size_t)m->size, sizeof *all, &all);
    }
    code = shl_shm_agree(&m->control, code, "open communicator");
    if (code == SHL_OK) {
        code = shl_shm_exchange(&m->control, SHL_SHM_OPEN, "open", &mine, (int)sizeof mine);
    }
    for (int q = 0; q < m->size && code == SHL_OK; q++) {
        memcpy(&all[q], shl_shm_said(&m->control, q), sizeof all[q]);
    }
    if (code == SHL_OK) {
        code = check_sharing(m, share, all);
    }
    if (code == SHL_OK) {
        warn_of_mixture(m, all);
    }
    shl_heap_free(&all);
    return code;
}

/* --- opening ----------------------------------------------------------------------------- */

static nccl_config
plain_config(void)
{
    return (nccl_config){.size = sizeof(nccl_config),
                         .magic = 0xcafebeefu,
                         .version = NCCL_LEAST_VERSION,
                         .blocking = 0,
                         .cga_cluster_size = INT_MIN,
                         .min_ctas = INT_MIN,
                         .max_ctas = INT_MIN,
                         .net_name = NULL,
                         .split_share = INT_MIN};
}

/* Takes a state off its family's list and puts both away when nobody else uses the family. */
static void
close_state(nccl_state *n)
{
    nccl_family *f = n->family;
    (void)pthread_mutex_lock(&f->lock);
    for (nccl_state **at = &f->states; *at != NULL; at = &(*at)->next) {
        if (*at == n) {
            *at = n->next;
            break;
        }
    }
    f->last = f->last == n ? NULL : f->last;
    bool only = --f->users == 0;
    (void)pthread_mutex_unlock(&f->lock);
    for (int i = 0; i < NCCL_RING; i++) {
        shl_gate_close(&n->ring[i].gate);
    }
    shl_gate_close(&n->staged);
    if (only) {
        shl_nccl_watch_stop(f);
        shl_gate_close(&f->last_gate);
        (void)pthread_cond_destroy(&f->bell);
        (void)pthread_mutex_destroy(&f->lock);
        shl_heap_free(&f);
    }
    shl_heap_free(&n);
}

/* A state of a family, without a communicator in the library yet. */
static shl_code
open_state(shl_comm *c, nccl_family *f)
{
    nccl_state *n = NULL;
    SHL_TRY(shl_heap_alloc(1, sizeof *n, &n));
    n->family = f;
    n->comm = c;
    shl_code code = shl_gate_open(c->device, &n->staged);
    if (code != SHL_OK) {
        shl_heap_free(&n);
        return code;
    }
    (void)pthread_mutex_lock(&f->lock);
    n->next = f->states;
    f->states = n;
    f->users++;
    (void)pthread_mutex_unlock(&f->lock);
    ((shl_shm_comm *)c->impl)->own = n;
    return SHL_OK;
}

static shl_code
open_family(shl_comm *c)
{
    shl_shm_comm *m = c->impl;
    nccl_family *f = NULL;
    int version = 0;
    SHL_TRY(shl_heap_alloc(1, sizeof *f, &f));
    f->world = m->world;
    f->device = c->device;
    f->timeout_ms = c->config.timeout_ms;
    (void)pthread_mutex_init(&f->lock, NULL);
    (void)pthread_cond_init(&f->bell, NULL);
    shl_code code = shl_nccl_load(&f->table, &version);
    code = code == SHL_OK ? shl_gate_open(c->device, &f->last_gate) : code;
    code = code == SHL_OK ? open_state(c, f) : code;
    if (code != SHL_OK) {
        shl_gate_close(&f->last_gate);
        (void)pthread_cond_destroy(&f->bell);
        (void)pthread_mutex_destroy(&f->lock);
        shl_heap_free(&f);
        return code;
    }
    shl_log(SHL_LOG_INFO, "comm", "NCCL %d", version);
    return SHL_OK;
}

/* The first rank makes the id that the library's ranks find each other by. */
static shl_code
share_id(shl_shm_comm *m, nccl_id *id)
{
    nccl_state *n = m->own;
    shl_code code = SHL_OK;
    memset(id, 0, sizeof *id);
    if (m->rank == 0) {
        code = shl_nccl_check(n->family, NULL, n->family->table.get_unique_id(id), "its id");
    }
    SHL_TRY(shl_shm_agree(&m->control, code, "open communicator"));
    SHL_TRY(shl_shm_exchange(&m->control, SHL_SHM_OPEN, "open", id, (int)sizeof *id));
    memcpy(id, shl_shm_said(&m->control, 0), sizeof *id);
    return SHL_OK;
}

static shl_code
connect(shl_shm_comm *m)
{
    nccl_state *n = m->own;
    nccl_family *f = n->family;
    nccl_config config = plain_config();
    nccl_handle *h = NULL;
    nccl_id id;
    SHL_TRY(share_id(m, &id));
    int result = f->table.init_rank_config(&h, m->size, id, m->rank, &config);
    if (result != NCCL_IN_PROGRESS) {
        SHL_TRY(shl_nccl_check(f, h, result, "a communicator"));
    }
    n->handle = h; /* nobody watches yet */
    SHL_TRY(shl_nccl_settle(f, h, "NCCL's communicator"));
    SHL_TRY(shl_nccl_watch_start(f));
    return shl_nccl_register(n);
}

static shl_code
check_place(const shl_comm *c, const shl_comm_config *cfg)
{
    const shl_device *d = c->device;
    if (!d->caps.has_bytes || !d->caps.async || d->ops->native == NULL) {
        SHL_RAISE(SHL_E_USAGE, "communicator %s is for cards, device %s is none", cfg->kind,
                  d->ops->kind);
        return shl_err_advice("--device cuda, or communicator %s here",
                              d->caps.has_bytes ? "shm" : "virtual");
    }
    if (cfg->world > 1 && cfg->rank_world != NULL && !shl_world_is_processes(cfg->rank_world)) {
        SHL_RAISE(SHL_E_USAGE, "communicator %s is for ranks that are processes", cfg->kind);
        shl_err_because("the ranks of this world are threads of one");
        return shl_err_advice("processes, or communicator local");
    }
    return SHL_OK;
}

static void
drop(shl_comm *c)
{
    shl_shm_comm *m = c->impl;
    nccl_state *n = m->own;
    m->own = NULL;
    if (n != NULL) {
        (void)pthread_mutex_lock(&n->family->lock);
        if (n->handle != NULL) {
            (void)n->family->table.abort(n->handle);
            n->handle = NULL;
        }
        (void)pthread_mutex_unlock(&n->family->lock);
        close_state(n);
    }
    shl_shm_comm_close(c);
}

static shl_code
nccl_open(shl_comm *c, const shl_comm_config *cfg)
{
    SHL_TRY(check_place(c, cfg));
    SHL_TRY(shl_shm_comm_open(c, cfg));
    shl_shm_comm *m = c->impl;
    shl_code code = compare_cards(m, c->device, cfg->share_gpu);
    code = shl_shm_agree(&m->control, code == SHL_OK ? open_family(c) : code, "open communicator");
    if (code == SHL_OK) {
        code = shl_shm_agree(&m->control, connect(m), "open communicator");
    }
    if (code != SHL_OK) {
        shl_err err = *shl_err_get();
        drop(c);
        (void)!shl_err_put(&err);
    }
    return code;
}

/* Ends the library's communicator in order, or aborts it. */
static void
nccl_close(shl_comm *c)
{
    nccl_state *n = state_of(c);
    nccl_family *f = n->family;
    shl_err err = *shl_err_get();
    bool calm = shl_shm_check(f->world) == SHL_OK;
    if (calm) {
        shl_nccl_deregister(n);
    }
    (void)pthread_mutex_lock(&f->lock);
    nccl_handle *h = f->given_up ? NULL : n->handle;
    int result = calm && h != NULL ? f->table.finalize(h) : NCCL_OK;
    (void)pthread_mutex_unlock(&f->lock);
    if (calm && h != NULL && (result == NCCL_OK || result == NCCL_IN_PROGRESS) &&
        shl_nccl_settle(f, h, "the end of a communicator") == SHL_OK) {
        (void)pthread_mutex_lock(&f->lock);
        if (n->handle != NULL) {
            n->handle = NULL;
            (void)f->table.destroy(h);
        }
        (void)pthread_mutex_unlock(&f->lock);
    }
    drop(c);
    (void)!shl_err_put(&err);
}

/* --- collectives ------------------------------------------------------------------------- */

static shl_code
launch(shl_comm *c, nccl_state *n, shl_coll kind, const shl_comm_seg *segs, int count,
       shl_dtype dtype, int root, shl_stream *s)
{
    nccl_family *f = n->family;
    int64_t elems = 0;
    if (f->last != NULL && f->last != n) {
        SHL_TRY(shl_gate_wait(&f->last_gate, s));
    }
    for (int i = 0; i < count; i++) {
        elems += segs[i].elems;
    }
    int64_t bytes = shl_comm_coll_bytes(kind, c->config.world, elems, dtype);
    if (elems > 0) {
        SHL_TRY(shl_nccl_move(n, kind, segs, count, dtype, root, s));
    }
    SHL_TRY(shl_nccl_watch_push(n, kind, n->n_issued, bytes, s));
    f->last = n;
    return shl_gate_record(&f->last_gate, s);
}

static shl_code
sleep_for(void *arg)
{
    shl_clock_sleep_ns(*(const int64_t *)arg);
    return SHL_OK;
}

static shl_code
nccl_collective(shl_comm *c, shl_coll kind, const shl_comm_seg *segs, int count, shl_dtype dtype,
                int root, int64_t cost_ns, shl_stream *s)
{
    shl_shm_comm *m = c->impl;
    nccl_state *n = m->own;
    if (shl_shm_check(m->world) != SHL_OK) {
        shl_shm_refuse(m->world, SHL_SHM_DATA, (int)kind, n->n_issued + 1);
        return shl_err_get()->code;
    }
    atomic_store_explicit(&m->data.group->member[m->rank].issued, ++n->n_issued,
                          memory_order_release);
    shl_code code = launch(c, n, kind, segs, count, dtype, root, s);
    if (code != SHL_OK) {
        shl_shm_abort(m->world, shl_coll_name(kind));
        return code;
    }
    c->stats.staged_bytes += shl_nccl_outside_bytes(n, kind, segs, count, dtype, root);
    if (c->config.sim_sleep && cost_ns > 0) {
        SHL_TRY(shl_stream_submit(s, sleep_for, &cost_ns, sizeof cost_ns, cost_ns));
    }
    return SHL_OK;
}

/* The library splits the parent, on which nothing may be in flight. */
static shl_code
split_handle(shl_comm *c, int color, int key, shl_comm *child)
{
    nccl_state *n = state_of(c), *born = child->impl != NULL ? state_of(child) : NULL;
    nccl_family *f = n->family;
    nccl_config config = plain_config();
    (void)pthread_mutex_lock(&f->lock);
    n->part = NULL;
    int result = f->given_up ? NCCL_OK
                             : f->table.split(n->handle, color < 0 ? NCCL_NO_COLOR : color, key,
                                              &n->part, &config);
    (void)pthread_mutex_unlock(&f->lock);
    if (result != NCCL_IN_PROGRESS) {
        SHL_TRY(shl_nccl_check(f, n->handle, result, "a split"));
    }
    SHL_TRY(shl_nccl_settle(f, n->handle, "a split"));
    nccl_handle *h = n->part;
    if (born == NULL) {
        return SHL_OK;
    }
    SHL_TRY(shl_nccl_settle(f, h, "a part of a split"));
    (void)pthread_mutex_lock(&f->lock);
    born->handle = h;
    (void)pthread_mutex_unlock(&f->lock);
    return shl_nccl_register(born);
}

/* comm.c agrees on the outcome. */
static shl_code
nccl_split(shl_comm *c, int color, int key, shl_comm *child)
{
    nccl_state *n = state_of(c);
    SHL_TRY(shl_device_sync(c->device));
    SHL_TRY(shl_shm_comm_split(c, color, key, child));
    shl_shm_comm *m = c->impl;
    shl_code code = color < 0 ? SHL_OK : open_state(child, n->family);
    code = shl_shm_agree(&m->control, code, "split communicator");
    code = code == SHL_OK ? split_handle(c, color, key, child) : code;
    if (code != SHL_OK && color >= 0) {
        shl_err err = *shl_err_get();
        drop(child);
        (void)!shl_err_put(&err);
    }
    return code;
}

const shl_comm_ops shl_comm_nccl_ops = {
    .kind = "nccl",
    .open = nccl_open,
    .close = nccl_close,
    .collective = nccl_collective,
    .control = shl_shm_comm_control,
    .agree = shl_shm_comm_agree,
    .abort = shl_shm_comm_abort,
    .split = nccl_split,
    .mem_source = shl_nccl_mem_source,
};

const shl_comm_ops shl_comm_nccl_ordered_ops = {
    .kind = "nccl-ordered",
    .open = nccl_open,
    .close = nccl_close,
    .collective = nccl_collective,
    .control = shl_shm_comm_control,
    .agree = shl_shm_comm_agree,
    .abort = shl_shm_comm_abort,
    .split = nccl_split,
    .mem_source = shl_nccl_mem_source,
};

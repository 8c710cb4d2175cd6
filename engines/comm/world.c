/* engines/comm: the shared part of a world, its memory, and ranks as threads. */
#include "engines/comm/world.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "engines/comm/world_impl.h"
#include "kernels/base/heap.h"
#include "kernels/base/log.h"
#include "kernels/base/str.h"
#include "kernels/base/types.h"
#include "kernels/device/sanitize.h"

#define DEFAULT_TIMEOUT_MS 30000
#define ARENA_ALIGN_BYTES ((size_t)64)
#define ARENA_STEP_BYTES ((size_t)2 << 20)
#define RANGE_LEAST_BYTES ((size_t)64 << 20)

/* Addresses, not memory; sanitizers have less room for them. */
#define RANGE_BYTES (SHL_TSAN || SHL_ASAN ? (size_t)4 << 30 : (size_t)256 << 30)

static size_t
round_line(size_t bytes)
{
    return (bytes + 63) & ~(size_t)63;
}

static size_t
group_bytes(int ranks)
{
    return round_line(sizeof(shl_shm_group) + (size_t)ranks * sizeof(shl_shm_member));
}

size_t
shl_shm_block_bytes(int ranks)
{
    return round_line(sizeof(shl_shm_block)) + SHL_SHM_GROUPS * group_bytes(ranks);
}

shl_shm_group *
shl_shm_group_at(shl_shm_block *b, int index)
{
    char *first = (char *)b + round_line(sizeof(shl_shm_block));
    return (shl_shm_group *)(void *)(first + (size_t)index * group_bytes(b->ranks));
}

shl_code
shl_shm_config_check(const shl_world_config *cfg)
{
    if (cfg->ranks < 1 || cfg->ranks > SHL_WORLD_MAX_RANKS) {
        (void)SHL_RAISE(SHL_E_USAGE, "a world on one machine has 1 to %d ranks",
                        SHL_WORLD_MAX_RANKS);
        (void)shl_err_because("%d were asked for", cfg->ranks);
        return shl_err_advice("use --device virtual for larger worlds");
    }
    if (cfg->threads_per_rank < 0 || cfg->timeout_ms < 0) {
        return SHL_RAISE(SHL_E_USAGE, "threads per rank and timeout of a world cannot be negative");
    }
    return SHL_OK;
}

static int
count_cores(void)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    if (sched_getaffinity(0, sizeof set, &set) == 0) {
        return CPU_COUNT(&set);
    }
    return 1;
}

void
shl_shm_block_init(shl_shm_block *b, const shl_world_config *cfg, bool processes)
{
    b->magic = SHL_SHM_MAGIC;
    b->ranks = cfg->ranks;
    b->threads_per_rank = cfg->threads_per_rank > 0 ? cfg->threads_per_rank : 1;
    b->cores = count_cores();
    b->processes = processes;
    b->timeout_ms = cfg->timeout_ms > 0 ? cfg->timeout_ms : DEFAULT_TIMEOUT_MS;
    atomic_store(&b->groups, 1);
}

shl_code
shl_shm_range_find(int ranks, size_t *range_bytes)
{
    for (size_t range = RANGE_BYTES; range >= RANGE_LEAST_BYTES; range /= 2) {
        void *p = mmap(NULL, range * (size_t)ranks, PROT_NONE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (p != MAP_FAILED) {
            (void)munmap(p, range * (size_t)ranks);
            *range_bytes = range;
            return SHL_OK;
        }
    }
    (void)SHL_RAISE(SHL_E_SYSTEM, "no address space for the communication memory of %d ranks",
                    ranks);
    return shl_err_because("%s", strerror(errno));
}

void
shl_shm_group_clear(shl_shm_block *b, int index)
{
    shl_shm_group *group = shl_shm_group_at(b, index);
    for (int lane = 0; lane < SHL_SHM_LANES; lane++) {
        shl_shm_lane *l = &group->lane[lane];
        atomic_store(&l->generation, 0);
        atomic_store(&l->count, 0);
        for (int m = 0; m < SHL_WORLD_MAX_RANKS; m++) {
            atomic_store(&l->arrived[m], 0);
        }
    }
    atomic_store(&group->drained, 0);
    for (int m = 0; m < b->ranks; m++) {
        atomic_store(&group->member[m].issued, 0);
        atomic_store(&group->member[m].finished, 0);
    }
}

int
shl_shm_group_take(shl_shm_block *b, int users)
{
    uint64_t used = atomic_load(&b->groups);
    for (int g = 1; g < SHL_SHM_GROUPS; g++) {
        uint64_t bit = UINT64_C(1) << g;
        while ((used & bit) == 0) {
            if (!atomic_compare_exchange_strong(&b->groups, &used, used | bit)) {
                continue;
            }
            shl_shm_group_clear(b, g);
            atomic_store(&shl_shm_group_at(b, g)->users, (uint32_t)users);
            return g;
        }
    }
    return -1;
}

void
shl_shm_group_drop(shl_shm_block *b, int index)
{
    if (atomic_fetch_sub(&shl_shm_group_at(b, index)->users, 1) == 1) {
        atomic_fetch_and(&b->groups, ~(UINT64_C(1) << index));
    }
}

static shl_code
grow_arena(void *ctx, void *base, size_t old_bytes, size_t new_bytes)
{
    const shl_world *w = (const shl_world *)ctx;
    int rc = w->memfd >= 0 ? ftruncate(w->memfd, (off_t)new_bytes)
                           : mprotect((char *)base + old_bytes, new_bytes - old_bytes,
                                      PROT_READ | PROT_WRITE);
    if (rc != 0) {
        char text[32];
        shl_format_bytes(new_bytes, text, sizeof text);
        (void)SHL_RAISE(SHL_E_OOM, "communication memory of rank %d cannot grow to %s", w->rank,
                        text);
        return shl_err_because("%s", strerror(errno));
    }
    return SHL_OK;
}

shl_code
shl_shm_world_init(shl_world *w)
{
    shl_shm_block *b = w->block;
    for (int r = 0; r < b->ranks; r++) {
        w->identity[r] = r;
    }
    w->port = (shl_shm_port){.world = w,
                             .group = shl_shm_group_at(b, 0),
                             .world_rank = w->identity,
                             .rank = w->rank,
                             .size = b->ranks,
                             .lane = SHL_SHM_CONTROL,
                             .timeout_ms = b->timeout_ms};
    SHL_TRY(shl_arena_open(w->base[w->rank], b->range_bytes, ARENA_ALIGN_BYTES, ARENA_STEP_BYTES,
                           grow_arena, w, &w->arena));
    shl_arena_share(w->arena);
    return SHL_OK;
}

shl_code
shl_shm_world_alone(shl_world *w, const shl_world_config *cfg)
{
    size_t bytes = shl_shm_block_bytes(cfg->ranks);
    int prot = PROT_READ | PROT_WRITE, flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void *p = mmap(NULL, bytes, prot, flags, -1, 0);
    if (p == MAP_FAILED) {
        (void)SHL_RAISE(SHL_E_SYSTEM, "no memory for the control block of %d ranks", cfg->ranks);
        return shl_err_because("%s", strerror(errno));
    }
    w->block = (shl_shm_block *)p;
    shl_shm_block_init(w->block, cfg, true);
    SHL_TRY(shl_shm_range_find(1, &w->block->range_bytes));
    p = mmap(NULL, w->block->range_bytes, PROT_NONE, flags, -1, 0);
    if (p == MAP_FAILED) {
        (void)SHL_RAISE(SHL_E_SYSTEM, "no address space for the memory of rank %d", w->rank);
        return shl_err_because("%s", strerror(errno));
    }
    w->base[w->rank] = p;
    return shl_shm_world_init(w);
}

void
shl_shm_rank_leave(shl_world *w, shl_code code)
{
    shl_shm_rank *r = &w->block->rank[w->rank];
    r->code = code;
    r->order = atomic_fetch_add(&w->block->order, 1);
    if (code != SHL_OK) {
        r->err = *shl_err_get();
        if (r->err.code != code) {
            shl_shm_describe(w->rank, "run", code, shl_err_get(), &r->err);
        }
        shl_err text;
        shl_shm_describe(w->rank, "run", code, &r->err, &text);
        shl_shm_world_note(w, w->rank, &text);
    }
    atomic_store_explicit(&r->state, SHL_SHM_LEFT, memory_order_release);
    shl_shm_bells(w->block);
}

/* Kinds that come from one rank's machine, memory or files: there it matters which rank it was. The
 * others are the user's doing, and alike on every rank. */
static bool
concerns_one_rank(shl_code code)
{
    return code == SHL_E_OOM || code == SHL_E_IO || code == SHL_E_PEER || code == SHL_E_SYSTEM ||
           code == SHL_E_HEAP || code == SHL_E_BUG;
}

/* The error of `rank` as the world tells it: which rank, in which phase, and who missed it where. */
static void
tell(const shl_shm_block *b, int rank, shl_err *err)
{
    int named = -1;
    if (b->ranks == 1 || !concerns_one_rank(err->code)) {
        return;
    }
    if (sscanf(err->what, "rank %d ", &named) != 1) {
        char own[sizeof err->what], in_phase[32];
        named = rank;
        shl_strf(own, sizeof own, "%s", err->what);
        shl_strf(in_phase, sizeof in_phase, " in %s", shl_shm_phase(b, rank));
        bool says = strstr(own, in_phase) != NULL;
        shl_strf(err->what, sizeof err->what, "rank %d failed%s: %s", rank, says ? "" : in_phase,
                 own);
    }
    if (named >= 0 && named < b->ranks) {
        shl_shm_explain(b, named, err);
    }
}

shl_code
shl_shm_result(shl_shm_block *b, int *rank)
{
    int best = -1;
    bool best_own = false;
    for (int i = 0; i < b->ranks; i++) {
        const shl_shm_rank *r = &b->rank[i];
        if (r->code == SHL_OK) {
            continue;
        }
        bool own = !shl_shm_is_report(&r->err, i);
        if (best < 0 || (own && !best_own) || (own == best_own && r->order < b->rank[best].order)) {
            best = i;
            best_own = own;
        }
    }
    *rank = best;
    if (best < 0) {
        return SHL_OK;
    }
    shl_err err = b->rank[best].err;
    tell(b, best, &err);
    return shl_err_put(&err);
}

/* --- ranks as threads ------------------------------------------------------------------- */

typedef struct rank_thread {
    pthread_t thread;
    shl_world world;
    shl_rank_main fn;
    void *arg;
    bool started;
} rank_thread;

static void *
rank_thread_main(void *arg)
{
    rank_thread *t = (rank_thread *)arg;
    shl_log_set_rank(t->world.rank);
    shl_code code = t->fn(&t->world, t->arg);
    shl_shm_rank_leave(&t->world, code);
    return NULL;
}

/* Reserves the memory of every rank, then opens the handles. */
static shl_code
threads_open(shl_shm_block *b, rank_thread *ranks)
{
    SHL_TRY(shl_shm_range_find(b->ranks, &b->range_bytes));
    for (int r = 0; r < b->ranks; r++) {
        void *p = mmap(NULL, b->range_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                       -1, 0);
        if (p == MAP_FAILED) {
            (void)SHL_RAISE(SHL_E_SYSTEM, "no address space for the memory of rank %d", r);
            return shl_err_because("%s", strerror(errno));
        }
        (void)madvise(p, b->range_bytes, MADV_HUGEPAGE); /* advice: as on the cpu device */
        b->base[r] = p;
    }
    for (int r = 0; r < b->ranks; r++) {
        shl_world *w = &ranks[r].world;
        w->block = b;
        w->rank = r;
        w->memfd = -1;
        memcpy(w->base, b->base, sizeof w->base);
        SHL_TRY(shl_shm_world_init(w));
    }
    return SHL_OK;
}

static void
threads_close(shl_shm_block *b, rank_thread *ranks)
{
    for (int r = 0; r < b->ranks; r++) {
        shl_arena_close(&ranks[r].world.arena);
        if (b->base[r] != NULL) {
            (void)munmap(b->base[r], b->range_bytes);
        }
    }
}

/* A thread that cannot be started fails like a rank, so that the others end. */
static void
threads_run(shl_shm_block *b, rank_thread *ranks)
{
    for (int r = 0; r < b->ranks; r++) {
        int rc = pthread_create(&ranks[r].thread, NULL, rank_thread_main, &ranks[r]);
        ranks[r].started = rc == 0;
        if (rc != 0) {
            (void)SHL_RAISE(SHL_E_SYSTEM, "cannot start the thread of a rank");
            shl_shm_rank_leave(&ranks[r].world, shl_err_because("%s", strerror(rc)));
        }
    }
    for (int r = 0; r < b->ranks; r++) {
        if (ranks[r].started) {
            (void)pthread_join(ranks[r].thread, NULL);
        }
    }
}

shl_code
shl_world_run_threads(const shl_world_config *cfg, shl_rank_main fn, void *arg)
{
    SHL_TRY(shl_shm_config_check(cfg));
    size_t bytes = shl_shm_block_bytes(cfg->ranks);
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE,
                   -1, 0);
    if (p == MAP_FAILED) {
        (void)SHL_RAISE(SHL_E_SYSTEM, "no memory for the control block of %d ranks", cfg->ranks);
        return shl_err_because("%s", strerror(errno));
    }
    shl_shm_block *b = (shl_shm_block *)p;
    shl_shm_block_init(b, cfg, false);
    rank_thread *ranks = NULL;
    shl_code code = SHL_OK;
    SHL_TRY_TO(code, out, shl_heap_alloc((size_t)cfg->ranks, sizeof *ranks, &ranks));
    for (int r = 0; r < cfg->ranks; r++) {
        ranks[r].fn = fn;
        ranks[r].arg = arg;
    }
    code = threads_open(b, ranks);
    if (code == SHL_OK) {
        threads_run(b, ranks);
        int failed = -1;
        code = shl_shm_result(b, &failed);
    }
    threads_close(b, ranks);
    shl_heap_free(&ranks);
out:
    (void)munmap(p, bytes);
    return code;
}

/* --- what a rank asks -------------------------------------------------------------------- */

int
shl_world_rank(const shl_world *w)
{
    return w->rank;
}

int
shl_world_size(const shl_world *w)
{
    return w->block->ranks;
}

int
shl_world_local_rank(const shl_world *w)
{
    return w->wire != NULL ? w->local_rank : w->rank;
}

int
shl_world_threads_per_rank(const shl_world *w)
{
    return w->block->threads_per_rank;
}

bool
shl_world_is_processes(const shl_world *w)
{
    return w->block->processes;
}

bool
shl_world_is_launched(const shl_world *w)
{
    return w->wire != NULL;
}

bool
shl_world_error_is_own(const shl_world *w)
{
    return !shl_shm_is_report(shl_err_get(), w->rank);
}

shl_arena *
shl_world_comm_arena(shl_world *w)
{
    return w->arena;
}

/* engines/comm: nccl, the watchdog: follows what is in flight, and when the world is given up, the library
 * fails, or a collective makes no progress by its deadline, aborts the library's part, so that streams go
 * on and every rank comes to the error that names the culprit. */
#include <errno.h>
#include <string.h>
#include <time.h>

#include "engines/comm/comm_nccl.h"
#include "engines/comm/world_wire.h"
#include "kernels/base/clock.h"
#include "kernels/base/log.h"
#include "kernels/base/str.h"
#include "kernels/base/types.h"

#define POLL_NS 20000000
#define LOCK_NS                                                                                    \
    1000000000 /* a caller that is stuck in the library does not keep it from being aborted */
#define PLACE_NS 50000
#define PLACE_TOLD_NS 200000000

static struct timespec
time_in(int64_t ns)
{
    struct timespec t;
    (void)clock_gettime(CLOCK_REALTIME, &t);
    int64_t sum = t.tv_nsec + ns;
    return (struct timespec){t.tv_sec + (time_t)(sum / 1000000000), (long)(sum % 1000000000)};
}

void
shl_nccl_abort_all(nccl_family *f)
{
    f->given_up = true;
    for (nccl_state *n = f->states; n != NULL; n = n->next) {
        if (n->handle != NULL) {
            (void)f->table.abort(n->handle);
            n->handle = NULL;
        }
    }
}

/* --- progress ---------------------------------------------------------------------------- */

static const shl_shm_comm *
group_of(const nccl_state *n)
{
    return n->comm->impl;
}

/* Takes what has finished out of the ring. */
static shl_code
advance(nccl_state *n)
{
    const shl_shm_comm *m = group_of(n);
    while (n->n_finished < n->n_pushed) {
        nccl_op *op = &n->ring[n->n_finished % NCCL_RING];
        bool passed = false;
        SHL_TRY(shl_gate_passed(&op->gate, &passed));
        if (!passed) {
            return SHL_OK;
        }
        n->n_finished++;
        n->progress_ns = shl_clock_ns();
        atomic_store_explicit(&m->data.group->member[m->rank].finished, op->seq,
                              memory_order_release);
        if (n->n_finished == n->n_pushed) {
            shl_shm_exit(m->world, SHL_SHM_DATA);
        }
    }
    return SHL_OK;
}

/* The ranks that have not entered an operation: the first of them, and how many. */
static int
find_missing(const shl_shm_comm *m, uint64_t seq, int *n_missing)
{
    int first = -1;
    *n_missing = 0;
    for (int q = 0; q < m->size; q++) {
        const shl_shm_member *member = &m->data.group->member[q];
        if (atomic_load_explicit(&member->issued, memory_order_acquire) < seq) {
            first = first < 0 ? q : first;
            (*n_missing)++;
        }
    }
    return first;
}

/* The last operations before one, as the ring remembers them. */
static void
spell_last(const nccl_state *n, char *dst, size_t cap)
{
    dst[0] = '\0';
    for (uint64_t i = n->n_finished < 2 ? 0 : n->n_finished - 2; i < n->n_finished; i++) {
        const nccl_op *op = &n->ring[i % NCCL_RING];
        size_t len = strlen(dst);
        shl_strf(dst + len, cap - len, "%s%s #%llu of %lld bytes", len > 0 ? ", " : "; before it ",
                 shl_coll_name(op->kind), (unsigned long long)op->seq, (long long)op->bytes);
    }
}

/* No progress by the deadline: who has not come, or that all have. */
static shl_code
report_stall(const nccl_state *n, const nccl_op *op)
{
    const shl_shm_comm *m = group_of(n);
    char name[96], last[192];
    int n_missing = 0, missing = find_missing(m, op->seq, &n_missing);
    shl_strf(name, sizeof name, "%s #%llu of %lld bytes", shl_coll_name(op->kind),
             (unsigned long long)op->seq, (long long)op->bytes);
    spell_last(n, last, sizeof last);
    double seconds = (double)n->family->timeout_ms / 1e3;
    if (missing < 0) {
        SHL_RAISE(SHL_E_PEER, "rank %d: %s has not finished within %.1f s", m->world_rank[m->rank],
                  name, seconds);
        shl_err_because("all %d ranks have entered it%s", m->size, last);
        (void)shl_err_advice("NCCL_DEBUG=INFO, for what NCCL waits for; a longer timeout");
    } else {
        int culprit = m->world_rank[missing];
        uint64_t there = atomic_load(&m->data.group->member[missing].issued);
        SHL_RAISE(SHL_E_PEER, "rank %d has not entered %s within %.1f s", culprit, name, seconds);
        shl_err_because("%d of %d ranks are missing; rank %d is at #%llu%s", n_missing, m->size,
                        culprit, (unsigned long long)there, last);
        (void)shl_err_advice("a longer timeout, if rank %d is only slow", culprit);
    }
    shl_shm_tell(m->world, missing < 0 ? m->world->rank : m->world_rank[missing]);
    return SHL_E_PEER;
}

/* Peers of other machines hear how far this rank has come. */
static void
tell_place(nccl_state *n)
{
    shl_shm_comm *m = n->comm->impl;
    int64_t now_ns = shl_clock_ns();
    if (m->world->wire != NULL && n->handle != NULL && now_ns - n->told_ns > PLACE_TOLD_NS) {
        n->told_ns = now_ns;
        shl_wire_place(&m->control);
    }
}

static shl_code
check_state(nccl_state *n)
{
    nccl_family *f = n->family;
    int state = NCCL_OK;
    if (n->handle == NULL) {
        return SHL_OK;
    }
    int result = f->table.async_error(n->handle, &state);
    result = result == NCCL_OK ? state : result;
    if (result != NCCL_OK && result != NCCL_IN_PROGRESS) {
        return shl_nccl_check(f, n->handle, result, "a collective");
    }
    SHL_TRY(advance(n));
    tell_place(n);
    if (n->n_finished == n->n_pushed) {
        return SHL_OK;
    }
    const nccl_op *op = &n->ring[n->n_finished % NCCL_RING];
    int64_t since_ns = op->issued_ns > n->progress_ns ? op->issued_ns : n->progress_ns;
    return shl_clock_ns() - since_ns > f->timeout_ms * 1000000 ? report_stall(n, op) : SHL_OK;
}

static shl_code
check_all(nccl_family *f)
{
    SHL_TRY(shl_shm_check(f->world));
    for (nccl_state *n = f->states; n != NULL; n = n->next) {
        SHL_TRY(check_state(n));
    }
    return SHL_OK;
}

/* The caller has been inside the library since `since_ns`. */
static shl_code
check_stuck(const nccl_family *f, int64_t since_ns)
{
    SHL_TRY(shl_shm_check(f->world));
    if (shl_clock_ns() - since_ns > f->timeout_ms * 1000000) {
        return SHL_RAISE(SHL_E_PEER, "NCCL has not come back from a call within %.1f s",
                         (double)f->timeout_ms / 1e3);
    }
    return SHL_OK;
}

static void *
watch(void *arg)
{
    nccl_family *f = arg;
    int64_t locked_ns = shl_clock_ns();
    shl_log_set_rank(f->world->rank);
    shl_code entered = shl_device_enter(f->device);
    for (;;) {
        struct timespec limit = time_in(LOCK_NS);
        bool locked = pthread_mutex_timedlock(&f->lock, &limit) == 0;
        locked_ns = locked ? shl_clock_ns() : locked_ns;
        if (locked && f->stopping) {
            (void)pthread_mutex_unlock(&f->lock);
            return NULL;
        }
        if (!f->given_up) {
            shl_code code = entered != SHL_OK ? entered
                            : locked          ? check_all(f)
                                              : check_stuck(f, locked_ns);
            if (code != SHL_OK) {
                shl_shm_abort(f->world, "nccl"); /* the first to say so counts */
                shl_nccl_abort_all(f);
            }
        }
        if (locked) {
            struct timespec next = time_in(POLL_NS);
            (void)pthread_cond_timedwait(&f->bell, &f->lock, &next);
            (void)pthread_mutex_unlock(&f->lock);
        }
    }
}

shl_code
shl_nccl_watch_start(nccl_family *f)
{
    int rc = pthread_create(&f->watchdog, NULL, watch, f);
    if (rc != 0) {
        SHL_RAISE(SHL_E_SYSTEM, "the watchdog of nccl does not start");
        return shl_err_because("%s", strerror(rc));
    }
    f->watched = true;
    return SHL_OK;
}

void
shl_nccl_watch_stop(nccl_family *f)
{
    if (!f->watched) {
        return;
    }
    (void)pthread_mutex_lock(&f->lock);
    f->stopping = true;
    (void)pthread_cond_signal(&f->bell);
    (void)pthread_mutex_unlock(&f->lock);
    (void)pthread_join(f->watchdog, NULL);
    f->watched = false;
}

/* A free place in the ring; *out NULL when the oldest is still in flight. Under the lock. */
static shl_code
free_place(nccl_state *n, nccl_op **out)
{
    *out = NULL;
    SHL_TRY(advance(n));
    if (n->n_pushed - n->n_finished < NCCL_RING) {
        *out = &n->ring[n->n_pushed % NCCL_RING];
    }
    return SHL_OK;
}

shl_code
shl_nccl_watch_push(nccl_state *n, shl_coll kind, uint64_t seq, int64_t bytes, shl_stream *s)
{
    nccl_family *f = n->family;
    nccl_op *op = NULL;
    while (op == NULL) {
        SHL_TRY(shl_shm_check(f->world));
        (void)pthread_mutex_lock(&f->lock);
        shl_code code = free_place(n, &op);
        if (code == SHL_OK && op != NULL) {
            code = op->gate.impl == NULL ? shl_gate_open(n->comm->device, &op->gate) : SHL_OK;
            code = code == SHL_OK ? shl_gate_record(&op->gate, s) : code;
            *op = (nccl_op){op->gate, seq, kind, bytes, shl_clock_ns()};
            n->n_pushed += code == SHL_OK;
            shl_shm_enter(f->world, SHL_SHM_DATA, (int)kind, seq);
        }
        (void)pthread_mutex_unlock(&f->lock);
        SHL_TRY(code);
        if (op == NULL) {
            shl_clock_sleep_ns(PLACE_NS);
        }
    }
    return SHL_OK;
}

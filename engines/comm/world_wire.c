/* engines/comm: the control channel over TCP: messages, and the thread that applies
 * them. */
#include "engines/comm/world_wire.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "kernels/base/clock.h"
#include "kernels/base/heap.h"
#include "kernels/base/log.h"
#include "kernels/base/str.h"
#include "kernels/base/types.h"

#define POLL_MS 100

/* --- bytes --------------------------------------------------------------------------------- */

bool
shl_wire_send(int fd, const void *data, size_t bytes)
{
    for (size_t at = 0; at < bytes;) {
        ssize_t n = send(fd, (const char *)data + at, bytes - at, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            return false;
        }
        at += (size_t)n;
    }
    return true;
}

bool
shl_wire_take(int fd, void *data, size_t bytes)
{
    for (size_t at = 0; at < bytes;) {
        ssize_t n = recv(fd, (char *)data + at, bytes - at, 0);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            return false;
        }
        at += (size_t)n;
    }
    return true;
}

bool
shl_wire_send_message(int fd, const shl_wire_message *m, const void *payload)
{
    return shl_wire_send(fd, m, sizeof *m) && shl_wire_send(fd, payload, (size_t)m->bytes);
}

/* From rank 0 to all that it is for; from others to rank 0. A connection that fails is noticed by the
 * thread that reads from it. Under the lock. */
static void
pass_on(shl_wire *w, const shl_wire_message *m, const void *payload)
{
    if (w->world->rank != 0) {
        (void)shl_wire_send_message(w->fd[0], m, payload);
        return;
    }
    for (int r = 1; r < w->world->block->ranks; r++) {
        if (r != m->from && w->fd[r] >= 0 && (m->members >> r & 1) != 0) {
            (void)shl_wire_send_message(w->fd[r], m, payload);
        }
    }
}

/* --- what a message does here -------------------------------------------------------------- */

static void
apply_arrival(shl_shm_block *b, const shl_wire_message *m, const void *payload)
{
    shl_shm_group *g = shl_shm_group_at(b, m->group);
    shl_shm_slot *slot = &g->member[m->member].slot[m->seq & 1];
    slot->seq = m->seq;
    slot->op = m->op;
    slot->bytes = m->whole;
    memcpy(slot->data, payload, (size_t)m->bytes);
    memset(slot->data + m->bytes, 0, (size_t)(m->whole - m->bytes));
    shl_shm_arrive(&g->lane[SHL_SHM_CONTROL], m->member, m->size, m->target);
}

static void
apply(shl_shm_block *b, const shl_wire_message *m, const void *payload)
{
    if (m->kind == WIRE_ARRIVE) {
        apply_arrival(b, m, payload);
    } else if (m->kind == WIRE_NOTE) {
        shl_err text;
        memcpy(&text, payload, sizeof text);
        shl_shm_note(b, m->from, m->member, &text);
    } else if (m->kind == WIRE_PLACE) {
        shl_shm_member *member = &shl_shm_group_at(b, m->group)->member[m->member];
        atomic_store_explicit(&member->issued, m->seq, memory_order_release);
        atomic_store_explicit(&member->finished, m->other, memory_order_release);
    } else if (m->kind == WIRE_LEAVE) {
        atomic_store_explicit(&b->rank[m->from].state, SHL_SHM_LEFT, memory_order_release);
        shl_shm_bells(b);
    }
}

static bool
is_sound(const shl_shm_block *b, const shl_wire_message *m)
{
    bool sized = m->kind == WIRE_NOTE ? m->bytes == (int32_t)sizeof(shl_err)
                                      : m->bytes >= 0 && m->bytes <= SHL_SHM_SLOT_BYTES;
    return sized && m->from >= 0 && m->from < b->ranks && m->group >= 0 &&
           m->group < SHL_SHM_GROUPS && m->member >= 0 && m->member < b->ranks &&
           m->whole >= m->bytes * (m->kind == WIRE_ARRIVE) && m->whole <= SHL_SHM_SLOT_BYTES;
}

/* A connection ended; unless its rank has left, that rank is lost to all. */
static void
lose(shl_wire *w, int rank)
{
    shl_shm_block *b = w->world->block;
    uint32_t runs = SHL_SHM_RUNS;
    if (!atomic_compare_exchange_strong(&b->rank[rank].state, &runs, SHL_SHM_DEAD)) {
        return;
    }
    shl_err err = {.code = SHL_E_PEER};
    shl_strf(err.what, sizeof err.what, "rank %d died: its connection ended", rank);
    shl_strf(err.advice, sizeof err.advice,
             "a look at its own output, and at dmesg on its machine");
    shl_shm_note(b, w->world->rank, rank, &err);
    if (w->world->rank == 0) {
        shl_wire_message m = {.kind = WIRE_NOTE,
                              .from = 0,
                              .member = rank,
                              .members = UINT64_MAX,
                              .bytes = (int32_t)sizeof err};
        (void)pthread_mutex_lock(&w->lock);
        pass_on(w, &m, &err);
        (void)pthread_mutex_unlock(&w->lock);
    }
}

/* One message from a connection; false at its end. */
static bool
take_message(shl_wire *w, int fd)
{
    _Alignas(16) unsigned char payload[SHL_SHM_SLOT_BYTES];
    shl_wire_message m;
    if (!shl_wire_take(fd, &m, sizeof m) || !is_sound(w->world->block, &m) ||
        !shl_wire_take(fd, payload, (size_t)m.bytes)) {
        return false;
    }
    (void)pthread_mutex_lock(&w->lock);
    if (w->world->rank == 0) {
        if ((m.members & 1) != 0) {
            apply(w->world->block, &m, payload);
        }
        pass_on(w, &m, payload);
    } else {
        apply(w->world->block, &m, payload);
    }
    (void)pthread_mutex_unlock(&w->lock);
    return true;
}

void *
shl_wire_listen(void *arg)
{
    shl_wire *w = arg;
    struct pollfd fds[SHL_WORLD_MAX_RANKS];
    shl_log_set_rank(w->world->rank);
    while (!atomic_load(&w->stopping)) {
        int of[SHL_WORLD_MAX_RANKS], n = 0;
        for (int r = 0; r < w->world->block->ranks; r++) {
            if (w->fd[r] >= 0) {
                of[n] = r;
                fds[n++] = (struct pollfd){.fd = w->fd[r], .events = POLLIN};
            }
        }
        if (poll(fds, (nfds_t)n, POLL_MS) <= 0) {
            continue;
        }
        for (int i = 0; i < n; i++) {
            if (fds[i].revents != 0 && !take_message(w, fds[i].fd)) {
                (void)pthread_mutex_lock(&w->lock);
                w->fd[of[i]] = -1;
                (void)close(fds[i].fd);
                (void)pthread_mutex_unlock(&w->lock);
                lose(w, of[i]);
            }
        }
    }
    return NULL;
}

/* --- what this rank says ------------------------------------------------------------------- */

static uint64_t
members_of(const shl_shm_port *p)
{
    uint64_t bits = 0;
    for (int i = 0; i < p->size; i++) {
        bits |= UINT64_C(1) << p->world_rank[i];
    }
    return bits;
}

shl_code
shl_wire_arrive(shl_shm_port *p, uint32_t target)
{
    shl_wire *w = p->world->wire;
    const shl_shm_slot *slot = &p->group->member[p->rank].slot[p->seq & 1];
    SHL_ASSERT(p->lane == SHL_SHM_CONTROL);
    shl_wire_message m = {.kind = WIRE_ARRIVE,
                          .from = p->world->rank,
                          .group = p->index,
                          .member = p->rank,
                          .size = p->size,
                          .target = target,
                          .members = members_of(p),
                          .seq = p->seq,
                          .op = slot->op,
                          .bytes = slot->bytes,
                          .whole = slot->bytes};
    while (m.bytes > 0 && slot->data[m.bytes - 1] == 0) {
        m.bytes--;
    }
    (void)pthread_mutex_lock(&w->lock);
    pass_on(w, &m, slot->data);
    shl_shm_arrive(&p->group->lane[p->lane], p->rank, p->size, target);
    (void)pthread_mutex_unlock(&w->lock);
    return shl_shm_check(p->world);
}

void
shl_wire_note(shl_world *world, int culprit, const shl_err *text)
{
    shl_wire *w = world->wire;
    shl_wire_message m = {.kind = WIRE_NOTE,
                          .from = world->rank,
                          .member = culprit,
                          .members = UINT64_MAX,
                          .bytes = (int32_t)sizeof *text};
    (void)pthread_mutex_lock(&w->lock);
    pass_on(w, &m, text);
    (void)pthread_mutex_unlock(&w->lock);
}

void
shl_wire_place(shl_shm_port *p)
{
    shl_wire *w = p->world->wire;
    const shl_shm_member *mine = &p->group->member[p->rank];
    shl_wire_message m = {.kind = WIRE_PLACE,
                          .from = p->world->rank,
                          .group = p->index,
                          .member = p->rank,
                          .members = members_of(p),
                          .seq = atomic_load(&mine->issued),
                          .other = atomic_load(&mine->finished)};
    (void)pthread_mutex_lock(&w->lock);
    pass_on(w, &m, NULL);
    (void)pthread_mutex_unlock(&w->lock);
}

void
shl_wire_close(shl_wire **wire)
{
    shl_wire *w = *wire;
    atomic_store(&w->stopping, true);
    if (w->started) {
        (void)pthread_join(w->thread, NULL);
    }
    for (int r = 0; r < SHL_WORLD_MAX_RANKS; r++) {
        if (w->fd[r] >= 0) {
            (void)close(w->fd[r]);
        }
    }
    if (w->listener >= 0) {
        (void)close(w->listener);
    }
    (void)pthread_mutex_destroy(&w->lock);
    shl_heap_free(wire);
}

static bool
others_run(const shl_shm_block *b)
{
    for (int r = 1; r < b->ranks; r++) {
        if (atomic_load(&b->rank[r].state) == SHL_SHM_RUNS) {
            return true;
        }
    }
    return false;
}

void
shl_wire_leave(shl_world *world)
{
    shl_wire *w = world->wire;
    shl_wire_message m = {.kind = WIRE_LEAVE, .from = world->rank, .members = UINT64_MAX};
    (void)pthread_mutex_lock(&w->lock);
    pass_on(w, &m, NULL);
    (void)pthread_mutex_unlock(&w->lock);
    int64_t deadline_ns = shl_clock_ns() + world->block->timeout_ms * 1000000;
    while (world->rank == 0 && others_run(world->block) && shl_clock_ns() < deadline_ns) {
        shl_clock_sleep_ns(1000000);
    }
    shl_wire_close(&world->wire);
}

/* engines/comm: ranks that a launcher started find each other: rank 0 listens, checks who calls, and tells all
 * when the last has come. */
#include "engines/comm/launch.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "engines/comm/world_wire.h"
#include "kernels/base/clock.h"
#include "kernels/base/heap.h"
#include "kernels/base/log.h"
#include "kernels/base/str.h"

#define WIRE_MAGIC UINT64_C(0x73686c7769726531)
#define RETRY_NS 50000000
#define IO_TIMEOUT_S 10

typedef struct hello {
    uint64_t magic, job;
    int32_t rank, ranks;
} hello;

static void
tune_socket(int fd)
{
    int one = 1;
    struct timeval limit = {.tv_sec = IO_TIMEOUT_S};
    (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    (void)setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof one);
    (void)setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    (void)setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
}

static shl_code
refuse_answer(const shl_launch *l, const char *why)
{
    SHL_RAISE(SHL_E_USAGE, "rank %d was refused at %s:%d", l->rank, l->address, l->port);
    shl_err_because("%s", why);
    return shl_err_advice("another SHL_MASTER=<host>:<port>, alike for every rank of one run");
}

/* Rank 0: why a caller has no place here; NULL: it has. */
static const char *
why_not(const shl_wire *w, const shl_launch *l, const hello *h)
{
    if (h->magic != WIRE_MAGIC || h->job != l->job) {
        return "rank 0 there is of another run";
    }
    if (h->ranks != l->ranks || h->rank < 1 || h->rank >= l->ranks) {
        return "rank 0 there has another number of ranks";
    }
    return w->fd[h->rank] >= 0 ? "this rank is there already" : NULL;
}

static void
admit(shl_wire *w, const shl_launch *l, int fd)
{
    hello h;
    shl_wire_message m = {.kind = WIRE_REFUSED};
    tune_socket(fd);
    if (!shl_wire_take(fd, &h, sizeof h)) {
        (void)close(fd);
        return;
    }
    const char *why = why_not(w, l, &h);
    if (why == NULL) {
        w->fd[h.rank] = fd;
        return;
    }
    m.bytes = (int32_t)strlen(why);
    (void)shl_wire_send_message(fd, &m, why);
    (void)close(fd);
}

static shl_code
missing_ranks(const shl_wire *w, const shl_launch *l, int64_t timeout_ms)
{
    char list[128] = "";
    int n = 0;
    for (int r = 1; r < l->ranks; r++) {
        size_t len = strlen(list);
        if (w->fd[r] < 0 && ++n <= 8) {
            shl_strf(list + len, sizeof list - len, "%s%d", n > 1 ? ", " : "", r);
        }
    }
    SHL_RAISE(SHL_E_PEER, "%d of %d ranks have not come to %s:%d within %.1f s", n, l->ranks,
              l->address, l->port, (double)timeout_ms / 1e3);
    shl_err_because("missing are rank%s %s%s", n > 1 ? "s" : "", list, n > 8 ? ", ..." : "");
    return shl_err_advice("a look at their output; a longer timeout");
}

static shl_code
open_listener(shl_wire *w, const shl_launch *l)
{
    int on = 1, off = 0;
    struct sockaddr_in6 any = {.sin6_family = AF_INET6,
                               .sin6_port = htons((uint16_t)l->port),
                               .sin6_addr = IN6ADDR_ANY_INIT};
    struct sockaddr_in any4 = {.sin_family = AF_INET, .sin_port = htons((uint16_t)l->port)};
    w->listener = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);
    bool six = w->listener >= 0;
    if (!six) {
        w->listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    }
    (void)setsockopt(w->listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (six) {
        (void)setsockopt(w->listener, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off);
    }
    const struct sockaddr *at = six ? (const struct sockaddr *)(const void *)&any
                                    : (const struct sockaddr *)(const void *)&any4;
    if (w->listener < 0 || bind(w->listener, at, six ? sizeof any : sizeof any4) != 0 ||
        listen(w->listener, SHL_WORLD_MAX_RANKS) != 0) {
        SHL_RAISE(SHL_E_SYSTEM, "rank 0 cannot listen at port %d", l->port);
        shl_err_because("%s", strerror(errno));
        return shl_err_advice("SHL_MASTER=<host of rank 0>:<another port> for every rank");
    }
    return SHL_OK;
}

/* Rank 0: waits for all, then tells them. */
static shl_code
gather_ranks(shl_wire *w, const shl_launch *l, int64_t timeout_ms)
{
    int64_t deadline_ns = shl_clock_ns() + timeout_ms * 1000000;
    SHL_TRY(open_listener(w, l));
    for (;;) {
        int here = 1;
        for (int r = 1; r < l->ranks; r++) {
            here += w->fd[r] >= 0;
        }
        if (here == l->ranks) {
            break;
        }
        int64_t rest_ns = deadline_ns - shl_clock_ns();
        if (rest_ns <= 0) {
            return missing_ranks(w, l, timeout_ms);
        }
        struct pollfd p = {.fd = w->listener, .events = POLLIN};
        int fd = -1;
        if (poll(&p, 1, (int)(rest_ns / 1000000) + 1) > 0) {
            fd = accept4(w->listener, NULL, NULL, SOCK_CLOEXEC);
        }
        if (fd >= 0) {
            admit(w, l, fd);
        }
    }
    /* Nobody else can come; who calls again is early for the next world, and must not find this one. */
    (void)close(w->listener);
    w->listener = -1;
    shl_wire_message m = {.kind = WIRE_WELCOME};
    for (int r = 1; r < l->ranks; r++) {
        (void)shl_wire_send_message(w->fd[r], &m, NULL);
    }
    return SHL_OK;
}

/* One attempt; -1: not yet. */
static int
connect_once(const struct addrinfo *list)
{
    for (const struct addrinfo *a = list; a != NULL; a = a->ai_next) {
        int fd = socket(a->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (fd >= 0 && connect(fd, a->ai_addr, a->ai_addrlen) == 0) {
            return fd;
        }
        if (fd >= 0) {
            (void)close(fd);
        }
    }
    return -1;
}

static shl_code
reach_rank_0(shl_wire *w, const shl_launch *l, int64_t deadline_ns)
{
    char port[16];
    struct addrinfo *list = NULL, hints = {.ai_socktype = SOCK_STREAM};
    shl_strf(port, sizeof port, "%d", l->port);
    int rc = getaddrinfo(l->address, port, &hints, &list);
    if (rc != 0) {
        SHL_RAISE(SHL_E_USAGE, "the host of rank 0 is not known: %s", l->address);
        return shl_err_because("%s", gai_strerror(rc));
    }
    while ((w->fd[0] = connect_once(list)) < 0 && shl_clock_ns() < deadline_ns) {
        shl_clock_sleep_ns(RETRY_NS);
    }
    int why = errno;
    freeaddrinfo(list);
    if (w->fd[0] < 0) {
        SHL_RAISE(SHL_E_PEER, "rank %d cannot reach rank 0 at %s:%d", l->rank, l->address, l->port);
        shl_err_because("%s", strerror(why));
        return shl_err_advice("a look at the output of rank 0; SHL_MASTER=<its host>:<port>");
    }
    tune_socket(w->fd[0]);
    return SHL_OK;
}

static shl_code
join_rank_0(shl_wire *w, const shl_launch *l, int64_t timeout_ms)
{
    int64_t deadline_ns = shl_clock_ns() + timeout_ms * 1000000;
    hello h = {WIRE_MAGIC, l->job, l->rank, l->ranks};
    shl_wire_message m = {.bytes = -1};
    char why[128] = "";
    SHL_TRY(reach_rank_0(w, l, deadline_ns));
    int64_t rest_ns = deadline_ns - shl_clock_ns();
    struct pollfd p = {.fd = w->fd[0], .events = POLLIN};
    bool answered = shl_wire_send(w->fd[0], &h, sizeof h) &&
                    poll(&p, 1, rest_ns > 0 ? (int)(rest_ns / 1000000) + 1000 : 1000) > 0 &&
                    shl_wire_take(w->fd[0], &m, sizeof m) && m.bytes >= 0 &&
                    m.bytes < (int32_t)sizeof why && shl_wire_take(w->fd[0], why, (size_t)m.bytes);
    if (!answered) {
        SHL_RAISE(SHL_E_PEER, "rank 0 at %s:%d gave rank %d no answer", l->address, l->port,
                  l->rank);
        return shl_err_because("not all of the %d ranks have come, or it has ended", l->ranks);
    }
    return m.kind == WIRE_WELCOME ? SHL_OK : refuse_answer(l, why);
}

/* --- the world ----------------------------------------------------------------------------- */

static shl_code
open_wire(shl_world *world, const shl_launch *l)
{
    shl_wire *w = NULL;
    SHL_TRY(shl_heap_alloc(1, sizeof *w, &w));
    w->world = world;
    w->listener = -1;
    for (int r = 0; r < SHL_WORLD_MAX_RANKS; r++) {
        w->fd[r] = -1;
    }
    (void)pthread_mutex_init(&w->lock, NULL);
    int64_t timeout_ms = world->block->timeout_ms;
    shl_code code = l->rank == 0 ? gather_ranks(w, l, timeout_ms) : join_rank_0(w, l, timeout_ms);
    if (code == SHL_OK) {
        int rc = pthread_create(&w->thread, NULL, shl_wire_listen, w);
        w->started = rc == 0;
        if (rc != 0) {
            SHL_RAISE(SHL_E_SYSTEM, "the thread of the control channel does not start");
            code = shl_err_because("%s", strerror(rc));
        }
    }
    if (code != SHL_OK) {
        shl_wire_close(&w);
        return code;
    }
    world->wire = w;
    return SHL_OK;
}

shl_code
shl_world_meet(const shl_launch *l, int64_t timeout_ms, shl_world **out)
{
    shl_world_config cfg = {.ranks = l->ranks, .threads_per_rank = 1, .timeout_ms = timeout_ms};
    shl_world *w = NULL;
    *out = NULL;
    SHL_TRY(shl_shm_config_check(&cfg));
    SHL_TRY(shl_heap_alloc(1, sizeof *w, &w));
    w->rank = l->rank;
    w->local_rank = l->local_rank;
    w->memfd = -1;
    shl_log_set_rank(l->rank);
    shl_code code = shl_shm_world_alone(w, &cfg);
    if (code == SHL_OK) {
        code = open_wire(w, l);
    }
    if (code != SHL_OK) {
        shl_shm_world_forget(w);
        shl_heap_free(&w);
        return code;
    }
    *out = w;
    return SHL_OK;
}

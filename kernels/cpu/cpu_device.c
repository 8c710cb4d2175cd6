/* kernels/cpu: the cpu as a device: two reserved address ranges that become usable page by page,
 * compute inline on the rank's thread, communication and copies on worker threads. */
#include "kernels/device/device.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <time.h>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "kernels/base/clock.h"
#include "kernels/base/heap.h"
#include "kernels/cpu/cpu_stream.h"
#include "kernels/cpu/cpu_table.h"
#include "kernels/device/arena.h"
#include "kernels/device/device_registry.h"
#include "kernels/device/sanitize.h"

#define ALIGN_BYTES ((size_t)64)
#define STEP_BYTES ((size_t)2 << 20)
/* Addresses, not memory. ThreadSanitizer has little room for them, and ranks may be threads. */
#define RANGE_BYTES (SHL_TSAN ? (size_t)4 << 30 : (size_t)256 << 30)
#define MIN_RANGE_BYTES ((size_t)64 << 20)
/* Below this a parallel region costs more than it saves. */
#define PARALLEL_BYTES ((size_t)4 << 20)

typedef struct cpu_tier {
    void *base; /* NULL: not reserved */
    size_t range_bytes;
    shl_arena *arena;
} cpu_tier;

/* One direction of the link; used by the worker of its stream only. */
typedef struct cpu_link {
    double bytes_per_s;
    int64_t free_ns; /* when the copy before is through */
} cpu_link;

typedef struct cpu_impl {
    cpu_tier tiers[SHL_TIER_NVME]; /* device and host */
    cpu_link links[SHL_MOVE_COUNT];
} cpu_impl;

static shl_code
grow_pages(void *ctx, void *base, size_t old_bytes, size_t new_bytes)
{
    struct rlimit data = {RLIM_INFINITY, RLIM_INFINITY};
    SHL_UNUSED(ctx);
    if (mprotect((char *)base + old_bytes, new_bytes - old_bytes, PROT_READ | PROT_WRITE) == 0) {
        return SHL_OK;
    }
    int err = errno;
    if (err != ENOMEM) {
        SHL_RAISE(SHL_E_SYSTEM, "cannot make %zu bytes of memory usable", new_bytes - old_bytes);
        return shl_err_because("mprotect: %s", strerror(err));
    }
    SHL_RAISE(SHL_E_OOM, "the system has no more");
    if (getrlimit(RLIMIT_DATA, &data) == 0 && data.rlim_cur != RLIM_INFINITY) {
        return shl_err_because("mprotect: %s; RLIMIT_DATA is %llu bytes", strerror(err),
                               (unsigned long long)data.rlim_cur);
    }
    return shl_err_because("mprotect: %s", strerror(err));
}

static shl_code
reserve_tier(cpu_tier *t, size_t align_bytes)
{
    SHL_TRY(shl_arena_reserve(RANGE_BYTES, MIN_RANGE_BYTES, &t->base, &t->range_bytes));
    /* Advice only: large pages save most of the faults of first touches and of address look-ups. */
    (void)madvise(t->base, t->range_bytes, MADV_HUGEPAGE);
    return shl_arena_open(t->base, t->range_bytes, align_bytes, STEP_BYTES, grow_pages, NULL,
                          &t->arena);
}

static void
cpu_close(shl_device *d)
{
    cpu_impl *c = d->impl;
    for (size_t i = 0; i < SHL_ARRAY_LEN(c->tiers); i++) {
        shl_arena_close(&c->tiers[i].arena);
        if (c->tiers[i].base != NULL) {
            munmap(c->tiers[i].base, c->tiers[i].range_bytes);
        }
    }
    shl_heap_free(&d->impl);
}

static shl_code
cpu_open(shl_device *d, const shl_device_config *cfg)
{
    cpu_impl *c = NULL;
    shl_code code = SHL_OK;
    SHL_TRY(shl_heap_alloc(1, sizeof(*c), &c));
    d->impl = c;
    for (size_t i = 0; i < SHL_ARRAY_LEN(c->tiers); i++) {
        SHL_TRY_TO(
            code, out,
            reserve_tier(&c->tiers[i], i == SHL_TIER_HOST ? SHL_PIN_PAGE_BYTES : ALIGN_BYTES));
    }
    for (int m = 0; m < SHL_MOVE_COUNT; m++) {
        c->links[m].bytes_per_s = cfg->link_bytes_per_s;
    }
    d->caps = (shl_device_caps){.has_bytes = true, .align_bytes = ALIGN_BYTES};
    d->op_table = shl_cpu_op_table();
#ifdef _OPENMP
    omp_set_num_threads(cfg->threads);
#else
    SHL_UNUSED(cfg);
#endif
    return SHL_OK;
out:
    cpu_close(d);
    return code;
}

/* The arena that a kind of memory comes from; NULL for a tier without one. */
static shl_arena *
arena_of(const shl_device *d, shl_tier tier, bool comm)
{
    const cpu_impl *c = d->impl;
    if (tier == SHL_TIER_NVME) {
        return NULL;
    }
    return comm && d->config.comm_arena != NULL ? d->config.comm_arena : c->tiers[tier].arena;
}

static shl_code
cpu_mem_take(shl_device *d, size_t bytes, shl_tier tier, bool comm, void **out)
{
    shl_arena *a = arena_of(d, tier, comm);
    if (a == NULL) {
        SHL_RAISE(SHL_E_USAGE, "the cpu device has no nvme tier");
        return shl_err_because("offload to nvme is not in this build");
    }
    return shl_arena_take(a, bytes, out);
}

static void
cpu_mem_give(shl_device *d, void *data, size_t bytes, shl_tier tier, bool comm)
{
    shl_arena_give(arena_of(d, tier, comm), data, bytes);
}

static size_t
cpu_reserved_bytes(const shl_device *d, shl_tier tier)
{
    const shl_arena *plain = arena_of(d, tier, false);
    size_t bytes = plain == NULL ? 0 : shl_arena_reserved_bytes(plain);
    if (tier == SHL_TIER_DEVICE && d->config.comm_arena != NULL) {
        bytes += shl_arena_reserved_bytes(d->config.comm_arena);
    }
    return bytes;
}

static shl_code
cpu_pin(shl_device *d, void *data, size_t bytes)
{
    struct rlimit most = {0, 0};
    SHL_UNUSED(d);
    if (mlock(data, bytes) == 0) {
        return SHL_OK;
    }
    int err = errno;
    SHL_RAISE(SHL_E_OOM, "the system does not lock %zu bytes of host memory", bytes);
    if (getrlimit(RLIMIT_MEMLOCK, &most) == 0 && most.rlim_cur != RLIM_INFINITY) {
        shl_err_because("mlock: %s; RLIMIT_MEMLOCK is %llu bytes", strerror(err),
                        (unsigned long long)most.rlim_cur);
    } else {
        shl_err_because("mlock: %s", strerror(err));
    }
    return shl_err_advice("a larger limit (ulimit -l), or memory that is not pinned");
}

static void
cpu_unpin(shl_device *d, void *data, size_t bytes)
{
    SHL_UNUSED(d);
    (void)munlock(data, bytes); /* of pages that were locked: cannot fail */
}

typedef struct bulk_args {
    char *dst;
    const char *src; /* NULL: fill with byte */
    size_t bytes;
    int byte;
} bulk_args;

static shl_code
bulk_run(void *arg)
{
    const bulk_args *b = arg;
    if (b->src == NULL) {
        memset(b->dst, b->byte, b->bytes);
    } else if (b->dst != b->src) {
        SHL_ASSERT(b->dst + b->bytes <= b->src || b->src + b->bytes <= b->dst);
        memcpy(b->dst, b->src, b->bytes);
    }
    return SHL_OK;
}

/* On compute, cut into one piece per thread; whole cache lines, the last piece takes the rest. */
static shl_code
bulk_inline(const shl_device *d, bulk_args b)
{
#ifdef _OPENMP
    int n = d->config.threads;
    if (b.bytes >= PARALLEL_BYTES && n > 1 && b.dst != b.src) {
        SHL_ASSERT(b.src == NULL || b.dst + b.bytes <= b.src || b.src + b.bytes <= b.dst);
        size_t piece = b.bytes / (size_t)n / ALIGN_BYTES * ALIGN_BYTES;
#pragma omp parallel for num_threads(n) schedule(static, 1)
        for (int i = 0; i < n; i++) {
            size_t at = piece * (size_t)i;
            size_t len = i == n - 1 ? b.bytes - at : piece;
            bulk_args part = {b.dst + at, b.src == NULL ? NULL : b.src + at, len, b.byte};
            (void)bulk_run(&part);
        }
        return SHL_OK;
    }
#else
    SHL_UNUSED(d);
#endif
    return bulk_run(&b);
}

static shl_code
bulk(const shl_device *d, bulk_args b, shl_stream *s)
{
    if (s->kind == SHL_STREAM_COMPUTE) {
        return bulk_inline(d, b);
    }
    return shl_cpu_worker_submit(s->impl, bulk_run, &b, sizeof(b));
}

static shl_code
cpu_copy(shl_device *d, void *dst, const void *src, size_t bytes, shl_stream *s)
{
    return bulk(d, (bulk_args){dst, src, bytes, 0}, s);
}

static shl_code
cpu_fill(shl_device *d, void *dst, int byte, size_t bytes, shl_stream *s)
{
    return bulk(d, (bulk_args){dst, NULL, bytes, byte}, s);
}

typedef struct move_args {
    bulk_args bulk;
    cpu_link *link;
} move_args;

/* Sleeps late are made up for by the next copy when it follows at once. */
#define LINK_SLACK_NS 500000

static shl_code
move_run(void *arg)
{
    const move_args *a = arg;
    cpu_link *link = a->link;
    int64_t now = shl_clock_ns();
    int64_t start = now - link->free_ns > LINK_SLACK_NS ? now : link->free_ns;
    link->free_ns = start + (int64_t)((double)a->bulk.bytes * 1e9 / link->bytes_per_s);
    SHL_TRY(bulk_run(&(bulk_args){a->bulk.dst, a->bulk.src, a->bulk.bytes, 0}));
    while ((now = shl_clock_ns()) < link->free_ns) {
        int64_t left = link->free_ns - now;
        struct timespec pause = {left / 1000000000, left % 1000000000};
        (void)nanosleep(&pause, NULL);
    }
    return SHL_OK;
}

static shl_code
cpu_move(shl_device *d, void *dst, const void *src, size_t bytes, shl_move direction, shl_stream *s)
{
    cpu_impl *c = d->impl;
    move_args a = {{dst, src, bytes, 0}, &c->links[direction]};
    return a.link->bytes_per_s > 0.0 ? shl_cpu_worker_submit(s->impl, move_run, &a, sizeof(a))
                                     : cpu_copy(d, dst, src, bytes, s);
}

/* Both directions: device memory is host memory here. */
static shl_code
cpu_transfer(shl_device *d, void *dst, const void *src, size_t bytes)
{
    return bulk_inline(d, (bulk_args){dst, src, bytes, 0});
}

static shl_code
cpu_stream_open(shl_device *d, shl_stream_kind kind, shl_stream *s)
{
    shl_cpu_worker *w = NULL;
    if (kind != SHL_STREAM_COMPUTE) {
        SHL_TRY(shl_cpu_worker_open(d->config.rank, &w));
    }
    s->impl = w;
    return SHL_OK;
}

static void
cpu_stream_close(shl_device *d, shl_stream *s)
{
    shl_cpu_worker *w = s->impl;
    SHL_UNUSED(d);
    shl_cpu_worker_close(&w);
    s->impl = NULL;
}

static shl_code
cpu_submit(shl_device *d, shl_stream *s, shl_stream_fn fn, void *arg, size_t arg_bytes,
           int64_t cost_ns)
{
    SHL_UNUSED(d);
    SHL_UNUSED(cost_ns);
    return s->impl == NULL ? fn(arg) : shl_cpu_worker_submit(s->impl, fn, arg, arg_bytes);
}

static shl_code
cpu_record(shl_device *d, shl_stream *s, shl_event *out)
{
    SHL_UNUSED(d);
    *out = (shl_event){s, s->impl == NULL ? 0 : shl_cpu_worker_seq(s->impl)};
    return SHL_OK;
}

/* An event of compute has passed: that stream runs inline. */
static shl_code
cpu_sync(shl_device *d, shl_event ev)
{
    SHL_UNUSED(d);
    return ev.stream->impl == NULL ? SHL_OK : shl_cpu_worker_wait(ev.stream->impl, ev.seq);
}

typedef struct wait_args {
    shl_cpu_worker *other;
    uint64_t seq;
} wait_args;

static shl_code
wait_run(void *arg)
{
    const wait_args *a = arg;
    return shl_cpu_worker_wait(a->other, a->seq);
}

/* A worker waits inside its queue, so the failure of the other stream becomes its own. It cannot
 * wait in a circle: an event names work that was queued before this wait. */
static shl_code
cpu_wait(shl_device *d, shl_stream *s, shl_event ev)
{
    if (s->impl == NULL) {
        return cpu_sync(d, ev);
    }
    if (ev.stream->impl == NULL || ev.stream == s || ev.seq == 0) {
        return SHL_OK;
    }
    wait_args a = {ev.stream->impl, ev.seq};
    return shl_cpu_worker_submit(s->impl, wait_run, &a, sizeof(a));
}

const shl_device_ops shl_cpu_device_ops = {
    .kind = "cpu",
    .open = cpu_open,
    .close = cpu_close,
    .mem_take = cpu_mem_take,
    .mem_give = cpu_mem_give,
    .mem_give_after = NULL,
    .reserved_bytes = cpu_reserved_bytes,
    .pin = cpu_pin,
    .unpin = cpu_unpin,
    .move = cpu_move,
    .copy = cpu_copy,
    .fill = cpu_fill,
    .upload = cpu_transfer,
    .download = cpu_transfer,
    .stream_open = cpu_stream_open,
    .stream_close = cpu_stream_close,
    .submit = cpu_submit,
    .record = cpu_record,
    .wait = cpu_wait,
    .sync = cpu_sync,
    .now_ns = NULL,
};

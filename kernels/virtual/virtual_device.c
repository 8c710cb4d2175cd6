/* kernels/virtual: addresses from a reserved range that nobody may touch, and one clock per stream.
 * Sizes, alignment and growth are those of the device that it stands for. */
#include "kernels/virtual/virtual_device.h"

#include <math.h>
#include <string.h>
#include <sys/mman.h>

#include "kernels/base/heap.h"
#include "kernels/device/arena.h"
#include "kernels/device/device_registry.h"
#include "kernels/device/sanitize.h"

#define N_ARENAS 3 /* device, host, and memory that peers reach where it lies apart: a third each */
#define ARENA_COMM 2
/* The reservation is addresses only; the second device of a process gets what is left. */
#define RANGE_BYTES ((size_t)64 << 40)
#define MIN_RANGE_BYTES ((size_t)1 << 32)
/* ThreadSanitizer keeps most of the address space for itself: nothing is mapped there, the
 * addresses are plain numbers, and a stray read is not caught. */
#define FAKE_BASE ((uintptr_t)1 << 46)
#define FAKE_BYTES ((size_t)1 << 40)
/* Each arena begins at a multiple. */
#define PART_STEP_BYTES ((size_t)2 << 20)

typedef struct virtual_target {
    const char *kind;
    size_t align_bytes, row_align_bytes;
    size_t step_bytes;
    bool async;
    bool comm_apart; /* memory that peers reach has an arena of its own */
} virtual_target;

static const virtual_target targets[] = {
    {"cpu", 64, 0, (size_t)2 << 20, false, false},
    {"cuda", 512, 128, (size_t)2 << 20, true, true},
};

typedef struct virtual_impl {
    const virtual_target *target;
    void *base;
    size_t range_bytes;
    shl_arena *arenas[N_ARENAS];
    double flops_per_s, bytes_per_s, link_bytes_per_s;
} virtual_impl;

static shl_code
reserve_range(virtual_impl *v)
{
    if (SHL_TSAN) {
        uintptr_t fake = FAKE_BASE;
        v->base = (void *)fake;
        v->range_bytes = FAKE_BYTES;
        return SHL_OK;
    }
    return shl_arena_reserve(RANGE_BYTES, MIN_RANGE_BYTES, &v->base, &v->range_bytes);
}

static void
virtual_close(shl_device *d)
{
    virtual_impl *v = d->impl;
    for (int i = 0; i < N_ARENAS; i++) {
        shl_arena_close(&v->arenas[i]);
    }
    if (v->base != NULL && !SHL_TSAN) {
        munmap(v->base, v->range_bytes);
    }
    shl_heap_free(&d->impl);
}

static const virtual_target *
find_target(const char *kind)
{
    for (size_t i = 0; i < SHL_ARRAY_LEN(targets); i++) {
        if (strcmp(kind, targets[i].kind) == 0) {
            return &targets[i];
        }
    }
    return NULL;
}

/* What a target like this one takes when it opens. */
static shl_code
make_ready(virtual_impl *v, const shl_device_config *cfg)
{
    if (!v->target->comm_apart) {
        return SHL_OK;
    }
    SHL_TRY(shl_arena_ready(v->arenas[SHL_TIER_DEVICE], cfg->ready_bytes));
    SHL_TRY(shl_arena_ready(v->arenas[ARENA_COMM], cfg->ready_comm_bytes));
    return shl_arena_ready(v->arenas[SHL_TIER_HOST], cfg->ready_host_bytes);
}

static shl_code
virtual_open(shl_device *d, const shl_device_config *cfg)
{
    virtual_impl *v = NULL;
    size_t third = 0;
    shl_code code = SHL_OK;
    const virtual_target *target = find_target(cfg->stands_for == NULL ? "cpu" : cfg->stands_for);
    if (target == NULL) {
        SHL_RAISE(SHL_E_USAGE, "a virtual device cannot stand for '%s'", cfg->stands_for);
        shl_err_because("it knows the sizes of cpu and cuda");
        return shl_err_advice("cpu");
    }
    SHL_TRY(shl_heap_alloc(1, sizeof(*v), &v));
    d->impl = v;
    v->target = target;
    v->flops_per_s = cfg->flops_per_s > 0 ? cfg->flops_per_s : SHL_VIRTUAL_FLOPS_PER_S;
    v->bytes_per_s = cfg->bytes_per_s > 0 ? cfg->bytes_per_s : SHL_VIRTUAL_BYTES_PER_S;
    v->link_bytes_per_s = cfg->link_bytes_per_s;
    SHL_TRY_TO(code, out, reserve_range(v));
    third = v->range_bytes / N_ARENAS / PART_STEP_BYTES * PART_STEP_BYTES;
    for (int i = 0; i < N_ARENAS; i++) {
        SHL_TRY_TO(code, out,
                   shl_arena_open((char *)v->base + third * (size_t)i, third,
                                  i == SHL_TIER_HOST ? SHL_PIN_PAGE_BYTES : target->align_bytes,
                                  target->step_bytes, NULL, NULL, &v->arenas[i]));
    }
    SHL_TRY_TO(code, out, make_ready(v, cfg));
    d->config.stands_for = target->kind;
    d->caps = (shl_device_caps){.async = target->async,
                                .predicted = true,
                                .align_bytes = target->align_bytes,
                                .row_align_bytes = target->row_align_bytes};
    d->op_table = &shl_virtual_op_table;
    return SHL_OK;
out:
    virtual_close(d);
    return code;
}

static shl_arena *
arena_of(const shl_device *d, shl_tier tier, bool comm)
{
    const virtual_impl *v = d->impl;
    return v
        ->arenas[comm && tier == SHL_TIER_DEVICE && v->target->comm_apart ? ARENA_COMM : (int)tier];
}

static shl_code
virtual_mem_take(shl_device *d, size_t bytes, shl_tier tier, bool comm, void **out)
{
    if (tier == SHL_TIER_NVME) {
        SHL_RAISE(SHL_E_USAGE, "the virtual device has no nvme tier");
        return shl_err_because("offload to nvme is not in this build");
    }
    return shl_arena_take(arena_of(d, tier, comm), bytes, out);
}

static void
virtual_mem_give(shl_device *d, void *data, size_t bytes, shl_tier tier, bool comm)
{
    shl_arena_give(arena_of(d, tier, comm), data, bytes);
}

static shl_code
virtual_sync(shl_device *d, shl_event ev)
{
    shl_stream *host = &d->streams[SHL_STREAM_COMPUTE];
    int64_t at = (int64_t)ev.seq;
    host->clock_ns = at > host->clock_ns ? at : host->clock_ns;
    return SHL_OK;
}

/* A synchronous target waits here; behind an asynchronous one the next owner would. */
static shl_code
virtual_mem_give_after(shl_device *d, void *data, size_t bytes, shl_tier tier, bool comm,
                       shl_event last_use)
{
    virtual_impl *v = d->impl;
    if (!v->target->async) {
        SHL_TRY(virtual_sync(d, last_use));
    }
    virtual_mem_give(d, data, bytes, tier, comm);
    return SHL_OK;
}

static size_t
virtual_reserved_bytes(const shl_device *d, shl_tier tier)
{
    const virtual_impl *v = d->impl;
    if (tier == SHL_TIER_NVME) {
        return 0;
    }
    return shl_arena_reserved_bytes(v->arenas[tier]) +
           (tier == SHL_TIER_DEVICE ? shl_arena_reserved_bytes(v->arenas[ARENA_COMM]) : 0);
}

static size_t
virtual_reserved_comm_bytes(const shl_device *d)
{
    const virtual_impl *v = d->impl;
    return shl_arena_reserved_bytes(v->arenas[ARENA_COMM]);
}

/* Work cannot start before it is queued. Where compute runs inline the host is as far as the
 * compute clock; where it is asynchronous the host runs ahead and only waits order streams. */
static void
advance(shl_stream *s, int64_t cost_ns)
{
    const shl_device *d = s->device;
    const virtual_impl *v = d->impl;
    int64_t host_ns = v->target->async ? 0 : d->streams[SHL_STREAM_COMPUTE].clock_ns;
    s->clock_ns = (host_ns > s->clock_ns ? host_ns : s->clock_ns) + cost_ns;
    s->busy_ns += cost_ns;
}

void
shl_virtual_charge(shl_stream *s, double flops, double bytes)
{
    const virtual_impl *v = s->device->impl;
    double compute_s = flops / v->flops_per_s, memory_s = bytes / v->bytes_per_s;
    double seconds = compute_s > memory_s ? compute_s : memory_s;
    advance(s, (int64_t)(seconds * 1e9 + 0.5));
}

static shl_code
virtual_copy(shl_device *d, void *dst, const void *src, size_t bytes, shl_stream *s)
{
    SHL_UNUSED(d);
    SHL_UNUSED(dst);
    SHL_UNUSED(src);
    shl_virtual_charge(s, 0.0, 2.0 * (double)bytes);
    return SHL_OK;
}

/* At the slower one of memory and link. */
static shl_code
virtual_move(shl_device *d, void *dst, const void *src, size_t bytes, shl_move direction,
             shl_stream *s)
{
    const virtual_impl *v = d->impl;
    SHL_UNUSED(dst);
    SHL_UNUSED(src);
    SHL_UNUSED(direction);
    double seconds = 2.0 * (double)bytes / v->bytes_per_s;
    if (v->link_bytes_per_s > 0.0) {
        seconds = fmax(seconds, (double)bytes / v->link_bytes_per_s);
    }
    advance(s, (int64_t)(seconds * 1e9 + 0.5));
    return SHL_OK;
}

static shl_code
virtual_fill(shl_device *d, void *dst, int byte, size_t bytes, shl_stream *s)
{
    SHL_UNUSED(d);
    SHL_UNUSED(dst);
    SHL_UNUSED(byte);
    shl_virtual_charge(s, 0.0, (double)bytes);
    return SHL_OK;
}

static shl_code
virtual_upload(shl_device *d, void *dst, const void *host, size_t bytes)
{
    return virtual_copy(d, dst, host, bytes, &d->streams[SHL_STREAM_COMPUTE]);
}

static shl_code
virtual_download(shl_device *d, void *host, const void *src, size_t bytes)
{
    memset(host, 0, bytes);
    return virtual_copy(d, host, src, bytes, &d->streams[SHL_STREAM_COMPUTE]);
}

static shl_code
virtual_stream_open(shl_device *d, shl_stream_kind kind, shl_stream *s)
{
    SHL_UNUSED(d);
    SHL_UNUSED(kind);
    s->impl = NULL;
    s->clock_ns = 0;
    s->busy_ns = 0;
    return SHL_OK;
}

static void
virtual_stream_close(shl_device *d, shl_stream *s)
{
    SHL_UNUSED(d);
    SHL_UNUSED(s);
}

static shl_code
virtual_submit(shl_device *d, shl_stream *s, shl_stream_fn fn, void *arg, size_t arg_bytes,
               int64_t cost_ns)
{
    SHL_UNUSED(d);
    SHL_UNUSED(fn);
    SHL_UNUSED(arg);
    SHL_UNUSED(arg_bytes);
    advance(s, cost_ns);
    return SHL_OK;
}

static shl_code
virtual_record(shl_device *d, shl_stream *s, shl_event *out)
{
    SHL_UNUSED(d);
    *out = (shl_event){s, (uint64_t)s->clock_ns};
    return SHL_OK;
}

static shl_code
virtual_wait(shl_device *d, shl_stream *s, shl_event ev)
{
    SHL_UNUSED(d);
    int64_t at = (int64_t)ev.seq;
    s->clock_ns = at > s->clock_ns ? at : s->clock_ns;
    return SHL_OK;
}

static int64_t
virtual_now_ns(shl_device *d, shl_stream *s)
{
    SHL_UNUSED(d);
    return s->clock_ns;
}

const shl_device_ops shl_virtual_device_ops = {
    .kind = "virtual",
    .open = virtual_open,
    .close = virtual_close,
    .mem_take = virtual_mem_take,
    .mem_give = virtual_mem_give,
    .mem_give_after = virtual_mem_give_after,
    .reserved_bytes = virtual_reserved_bytes,
    .reserved_comm_bytes = virtual_reserved_comm_bytes,
    .move = virtual_move,
    .copy = virtual_copy,
    .fill = virtual_fill,
    .upload = virtual_upload,
    .download = virtual_download,
    .stream_open = virtual_stream_open,
    .stream_close = virtual_stream_close,
    .submit = virtual_submit,
    .record = virtual_record,
    .wait = virtual_wait,
    .sync = virtual_sync,
    .now_ns = virtual_now_ns,
};

/* kernels/cuda: memory: one growing arena for each of plain device memory, memory that peers reach, and
 * host memory. Nothing here waits for the device but the end. */
#include "kernels/base/heap.h"
#include "kernels/base/types.h"
#include "kernels/cuda/cuda_impl.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#define HOST_RANGE_BYTES ((size_t)256 << 30) /* addresses, not memory */
#define MIN_RANGE_BYTES ((size_t)64 << 20)

/* What the driver says to a request that it refused. */
static shl_code
refused(const cuda_impl *c, int status, size_t bytes)
{
    size_t left = 0, total = 0;
    if (status != SHL_CUDA_OUT_OF_MEMORY) {
        return shl_cuda_check(c->table, status, "device memory cannot be mapped");
    }
    SHL_RAISE(SHL_E_OOM, "the device has no %zu bytes more", bytes);
    if (c->table->memory(&left, &total) != 0) {
        return shl_err_because("%s", c->table->error_text(status));
    }
    return shl_err_because("the driver has %zu of %zu bytes free", left, total);
}

static shl_code
grow_device(void *ctx, void *base, size_t old_bytes, size_t new_bytes)
{
    cuda_range *r = ctx;
    const cuda_impl *c = cuda_of(r->device);
    int status = c->table->map(c->index, base, old_bytes, new_bytes);
    if (status != 0) {
        return refused(c, status, new_bytes - old_bytes);
    }
    r->mapped_bytes = new_bytes;
    return SHL_OK;
}

static shl_code
grow_host(void *ctx, void *base, size_t old_bytes, size_t new_bytes)
{
    cuda_range *r = ctx;
    if (mprotect((char *)base + old_bytes, new_bytes - old_bytes, PROT_READ | PROT_WRITE) != 0) {
        int err = errno;
        SHL_RAISE(err == ENOMEM ? SHL_E_OOM : SHL_E_SYSTEM, "the system has no more");
        return shl_err_because("mprotect: %s", strerror(err));
    }
    r->mapped_bytes = new_bytes;
    return SHL_OK;
}

/* A block from elsewhere is usable as it is, and ends. */
static shl_code
grow_given(void *ctx, void *base, size_t old_bytes, size_t new_bytes)
{
    cuda_range *r = ctx;
    SHL_UNUSED(base);
    SHL_UNUSED(old_bytes);
    if (new_bytes > r->block_bytes) {
        SHL_RAISE(SHL_E_OOM, "the block of memory that peers reach is full");
        return shl_err_because("%zu bytes of it were planned, and %zu are needed", r->block_bytes,
                               new_bytes);
    }
    r->mapped_bytes = new_bytes;
    return SHL_OK;
}

/* Addresses of an arena: twice what the card has, so that the free end of the range is the last choice of a
 * best fit, however full the card is: the places are then those of the virtual device. */
static size_t
address_bytes(const cuda_impl *c)
{
    return 2 * (c->info.total_bytes / SHL_CUDA_STEP_BYTES * SHL_CUDA_STEP_BYTES);
}

static shl_code
open_device_range(shl_device *d, cuda_range *r)
{
    const cuda_impl *c = cuda_of(d);
    size_t granule = 0, bytes = address_bytes(c);
    r->device = d;
    SHL_TRY(shl_cuda_check(c->table, c->table->reserve(c->index, bytes, &r->base, &granule),
                           "no address range for device memory"));
    r->range_bytes = bytes;
    if (granule == 0 || SHL_CUDA_STEP_BYTES % granule != 0) {
        SHL_RAISE(SHL_E_SYSTEM, "device memory comes in pieces of %zu bytes", granule);
        return shl_err_because("the arena grows by %zu", SHL_CUDA_STEP_BYTES);
    }
    return shl_arena_open(r->base, bytes, SHL_CUDA_ALIGN_BYTES, SHL_CUDA_STEP_BYTES, grow_device, r,
                          &r->arena);
}

/* Communication memory: the planned block of the source, or a range of our own. The arena counts addresses
 * past a block, as the virtual device's does, and hands out none of them. */
static shl_code
open_comm_range(shl_device *d, cuda_range *r)
{
    const cuda_impl *c = cuda_of(d);
    const shl_mem_source *source = &d->config.comm_source;
    size_t steps = (d->config.ready_comm_bytes + SHL_CUDA_STEP_BYTES - 1) / SHL_CUDA_STEP_BYTES;
    size_t bytes = steps * SHL_CUDA_STEP_BYTES, left = 0, total = 0;
    if (source->name == NULL || bytes == 0) {
        return open_device_range(d, r);
    }
    SHL_TRY(shl_cuda_check(c->table, c->table->memory(&left, &total),
                           "the driver does not tell its memory"));
    if (left < bytes) {
        return refused(c, SHL_CUDA_OUT_OF_MEMORY, bytes);
    }
    r->device = d;
    SHL_TRY(source->take(source->ctx, bytes, &r->base));
    r->block_bytes = bytes;
    r->range_bytes = address_bytes(c);
    if ((uintptr_t)r->base % SHL_CUDA_ALIGN_BYTES != 0) {
        SHL_RAISE(SHL_E_SYSTEM, "the block of %s begins at %p", source->name, r->base);
        return shl_err_because("buffers begin at multiples of %zu", (size_t)SHL_CUDA_ALIGN_BYTES);
    }
    return shl_arena_open(r->base, r->range_bytes, SHL_CUDA_ALIGN_BYTES, SHL_CUDA_STEP_BYTES,
                          grow_given, r, &r->arena);
}

static shl_code
open_host_range(shl_device *d, cuda_range *r)
{
    r->device = d;
    SHL_TRY(shl_arena_reserve(HOST_RANGE_BYTES, MIN_RANGE_BYTES, &r->base, &r->range_bytes));
    (void)madvise(r->base, r->range_bytes, MADV_HUGEPAGE); /* advice: fewer pages to lock */
    return shl_arena_open(r->base, r->range_bytes, SHL_PIN_PAGE_BYTES, SHL_CUDA_STEP_BYTES,
                          grow_host, r, &r->arena);
}

/* The workspace of libraries, staging of uploads and the words of faults: fixed sizes, beside the
 * ledger. */
static shl_code
open_fixed(cuda_impl *c)
{
    size_t granule = 0;
    void *words = NULL;
    SHL_TRY(shl_cuda_check(c->table,
                           c->table->reserve(c->index, SHL_CUDA_POOL_BYTES, &c->pool, &granule),
                           "no address range for library workspace"));
    c->pool_range_bytes = SHL_CUDA_POOL_BYTES;
    int status = c->table->map(c->index, c->pool, 0, SHL_CUDA_POOL_BYTES);
    if (status != 0) {
        return refused(c, status, SHL_CUDA_POOL_BYTES);
    }
    c->pool_bytes = SHL_CUDA_POOL_BYTES;
    for (int i = 0; i < CUDA_SLOTS; i++) {
        void *slot = NULL;
        SHL_TRY(shl_cuda_check(c->table, c->table->host_take(CUDA_SLOT_BYTES, &slot),
                               "no page-locked memory for uploads"));
        c->slots[i] = slot;
    }
    SHL_TRY(shl_cuda_check(c->table,
                           c->table->host_take(SHL_CUDA_FAULT_COUNT * sizeof(*c->faults), &words),
                           "no memory for the words of faults"));
    c->faults = words;
    memset(c->faults, 0, SHL_CUDA_FAULT_COUNT * sizeof(*c->faults));
    return shl_cuda_check(c->table, c->table->host_take(2 * sizeof(int64_t), &c->norm_words),
                          "no memory for the words of norms");
}

static void
unlock_all(cuda_impl *c)
{
    const cuda_range *host = &c->ranges[CUDA_HOST];
    for (size_t i = 0; c->locked != NULL && i < host->range_bytes / SHL_CUDA_STEP_BYTES; i++) {
        if (c->locked[i] == LOCK_BEGINS) {
            (void)c->table->host_unlock((char *)host->base + i * SHL_CUDA_STEP_BYTES);
        }
    }
    shl_heap_free(&c->locked);
}

static void
close_range(const cuda_impl *c, cuda_range *r)
{
    shl_arena_close(&r->arena);
    shl_cuda_pending_fini(&r->pending);
    if (r->base == NULL) {
        return;
    }
    if (r->block_bytes > 0) {
        const shl_mem_source *source = &r->device->config.comm_source;
        source->give(source->ctx, r->base);
    } else if (r == &c->ranges[CUDA_HOST]) {
        munmap(r->base, r->range_bytes);
    } else {
        (void)c->table->unreserve(r->base, r->range_bytes, r->mapped_bytes);
    }
}

void
shl_cuda_memory_close(shl_device *d)
{
    cuda_impl *c = cuda_of(d);
    unlock_all(c);
    for (int i = 0; i < CUDA_PLACE_COUNT; i++) {
        close_range(c, &c->ranges[i]);
    }
    if (c->pool != NULL) {
        (void)c->table->unreserve(c->pool, c->pool_range_bytes, c->pool_bytes);
    }
    for (int i = 0; i < CUDA_SLOTS; i++) {
        if (c->slots[i] != NULL) {
            (void)c->table->host_give(c->slots[i]);
        }
    }
    if (c->faults != NULL) {
        (void)c->table->host_give(c->faults);
    }
    if (c->norm_words != NULL) {
        (void)c->table->host_give(c->norm_words);
    }
}

/* The system's pages behind the first bytes of the host tier; one that cannot be asked gives them at first
 * touch. */
static shl_code
touch_host(const cuda_range *host, size_t bytes)
{
    if (bytes > 0 && madvise(host->base, bytes, MADV_POPULATE_WRITE) != 0 && errno == ENOMEM) {
        SHL_RAISE(SHL_E_OOM, "the system has no more");
        return shl_err_because("madvise: %s", strerror(ENOMEM));
    }
    return SHL_OK;
}

/* Too little for all that a run will take, before its first step. */
static shl_code
explain_ready(shl_code code, const char *tier, size_t bytes)
{
    if (code != SHL_E_OOM || bytes == 0) {
        return code;
    }
    shl_err low = *shl_err_get();
    SHL_RAISE(SHL_E_OOM, "out of %s memory before the first step: it needs %zu bytes", tier, bytes);
    shl_err_because("%.200s; %.200s", low.what, low.because);
    return shl_err_advice("more ranks, a strategy that shards more, or a smaller batch");
}

static shl_code
open_device_ranges(shl_device *d, cuda_impl *c)
{
    SHL_TRY(open_device_range(d, &c->ranges[CUDA_PLAIN]));
    SHL_TRY(shl_arena_ready(c->ranges[CUDA_PLAIN].arena, d->config.ready_bytes));
    SHL_TRY(open_comm_range(d, &c->ranges[CUDA_COMM]));
    return shl_arena_ready(c->ranges[CUDA_COMM].arena, d->config.ready_comm_bytes);
}

static shl_code
open_host_ready(shl_device *d, cuda_impl *c)
{
    cuda_range *host = &c->ranges[CUDA_HOST];
    SHL_TRY(open_host_range(d, host));
    SHL_TRY(shl_arena_ready(host->arena, d->config.ready_host_bytes));
    return touch_host(host, host->mapped_bytes);
}

shl_code
shl_cuda_memory_open(shl_device *d)
{
    cuda_impl *c = cuda_of(d);
    SHL_TRY(open_fixed(c));
    SHL_TRY(explain_ready(open_device_ranges(d, c), shl_tier_name(SHL_TIER_DEVICE),
                          d->config.ready_bytes + d->config.ready_comm_bytes));
    return explain_ready(open_host_ready(d, c), shl_tier_name(SHL_TIER_HOST),
                         d->config.ready_host_bytes);
}

static cuda_range *
range_of(const shl_device *d, shl_tier tier, bool comm)
{
    cuda_impl *c = cuda_of(d);
    return &c->ranges[tier == SHL_TIER_HOST ? CUDA_HOST : comm ? CUDA_COMM : CUDA_PLAIN];
}

/* Host memory is written by the host itself as well: it waits until nothing is on its way there. */
static shl_code
wait_for_host(shl_device *d, const uint64_t need[SHL_STREAM_KIND_COUNT])
{
    for (int k = 0; k < SHL_STREAM_KIND_COUNT; k++) {
        if (need[k] > 0) {
            SHL_TRY(shl_cuda_sync(d, (shl_event){&d->streams[k], need[k]}));
        }
    }
    return SHL_OK;
}

shl_code
shl_cuda_mem_take(shl_device *d, size_t bytes, shl_tier tier, bool comm, void **out)
{
    cuda_impl *c = cuda_of(d);
    cuda_range *r = range_of(d, tier, comm);
    *out = NULL;
    if (tier == SHL_TIER_NVME) {
        SHL_RAISE(SHL_E_USAGE, "the cuda device has no nvme tier");
        return shl_err_because("offload to nvme is not in this build");
    }
    SHL_TRY(shl_cuda_pending_room(&r->pending));
    SHL_TRY(shl_arena_take(r->arena, bytes, out));
    size_t begin = (size_t)((char *)*out - (char *)r->base);
    if (tier != SHL_TIER_HOST) {
        shl_cuda_pending_take(&r->pending, begin, begin + bytes, c->need);
        return SHL_OK;
    }
    uint64_t need[SHL_STREAM_KIND_COUNT] = {0};
    shl_cuda_pending_take(&r->pending, begin, begin + bytes, need);
    shl_code code = wait_for_host(d, need);
    if (code != SHL_OK) {
        shl_cuda_mem_give(d, *out, bytes, tier, comm);
        *out = NULL;
    }
    return code;
}

static void
give(shl_device *d, void *data, size_t bytes, cuda_range *r,
     const uint64_t seq[SHL_STREAM_KIND_COUNT])
{
    const cuda_impl *c = cuda_of(d);
    size_t begin = (size_t)((char *)data - (char *)r->base);
    bool busy = false;
    for (int k = 0; k < SHL_STREAM_KIND_COUNT; k++) {
        busy = busy || seq[k] > c->streams[k].passed;
    }
    shl_arena_give(r->arena, data, bytes);
    if (busy) {
        shl_cuda_pending_add(&r->pending, begin, begin + bytes, seq);
    } else {
        r->pending.live--;
    }
}

/* Nothing uses it any more in the order of the compute stream. */
void
shl_cuda_mem_give(shl_device *d, void *data, size_t bytes, shl_tier tier, bool comm)
{
    uint64_t seq[SHL_STREAM_KIND_COUNT] = {0};
    seq[SHL_STREAM_COMPUTE] = cuda_of(d)->streams[SHL_STREAM_COMPUTE].queued;
    give(d, data, bytes, range_of(d, tier, comm), seq);
}

shl_code
shl_cuda_mem_give_after(shl_device *d, void *data, size_t bytes, shl_tier tier, bool comm,
                        shl_event last_use)
{
    uint64_t seq[SHL_STREAM_KIND_COUNT] = {0};
    seq[last_use.stream->kind] = last_use.seq;
    give(d, data, bytes, range_of(d, tier, comm), seq);
    return SHL_OK;
}

size_t
shl_cuda_reserved_bytes(const shl_device *d, shl_tier tier)
{
    const cuda_impl *c = d->impl;
    if (tier == SHL_TIER_HOST) {
        return shl_arena_reserved_bytes(c->ranges[CUDA_HOST].arena);
    }
    return tier == SHL_TIER_NVME ? 0
                                 : shl_arena_reserved_bytes(c->ranges[CUDA_PLAIN].arena) +
                                       shl_arena_reserved_bytes(c->ranges[CUDA_COMM].arena);
}

size_t
shl_cuda_reserved_comm_bytes(const shl_device *d)
{
    const cuda_impl *c = d->impl;
    return shl_arena_reserved_bytes(c->ranges[CUDA_COMM].arena);
}

void
shl_cuda_comm_block(const shl_device *d, shl_mem_block *out)
{
    const cuda_impl *c = d->impl;
    const cuda_range *r = &c->ranges[CUDA_COMM];
    if (r->block_bytes > 0) {
        *out = (shl_mem_block){r->base, r->block_bytes, d->config.comm_source.name};
    }
}

bool
shl_cuda_is_host(const shl_device *d, const void *data)
{
    const cuda_impl *c = d->impl;
    return shl_arena_owns(c->ranges[CUDA_HOST].arena, data);
}

size_t
shl_cuda_locked_run(const shl_device *d, const void *data, size_t bytes, bool *locked)
{
    const cuda_impl *c = d->impl;
    size_t at = (size_t)((const char *)data - (const char *)c->ranges[CUDA_HOST].base);
    size_t i = at / SHL_CUDA_STEP_BYTES, run = (i + 1) * SHL_CUDA_STEP_BYTES - at;
    *locked = c->locked != NULL && c->locked[i] != LOCK_NONE;
    unsigned char same = *locked ? LOCK_GOES_ON : LOCK_NONE;
    while (run < bytes && (c->locked == NULL || c->locked[++i] == same)) {
        run += SHL_CUDA_STEP_BYTES;
    }
    return run < bytes ? run : bytes;
}

/* Pages are locked in whole steps and stay so until the device is closed: locking is slow, and a copy
 * may still be reading what the host has given back. */
shl_code
shl_cuda_pin(shl_device *d, void *data, size_t bytes)
{
    cuda_impl *c = cuda_of(d);
    cuda_range *host = &c->ranges[CUDA_HOST];
    size_t first = (size_t)((char *)data - (char *)host->base) / SHL_CUDA_STEP_BYTES;
    size_t end = ((size_t)((char *)data - (char *)host->base) + bytes + SHL_CUDA_STEP_BYTES - 1) /
                 SHL_CUDA_STEP_BYTES;
    if (c->locked == NULL) {
        SHL_TRY(shl_heap_alloc(host->range_bytes / SHL_CUDA_STEP_BYTES, 1, &c->locked));
    }
    for (size_t i = first; i < end;) {
        size_t n = 0;
        while (i + n < end && c->locked[i + n] == LOCK_NONE) {
            n++;
        }
        int status = n == 0 ? 0
                            : c->table->host_lock((char *)host->base + i * SHL_CUDA_STEP_BYTES,
                                                  n * SHL_CUDA_STEP_BYTES);
        if (status != 0) {
            SHL_RAISE(SHL_E_OOM, "the driver does not lock %zu bytes of host memory",
                      n * SHL_CUDA_STEP_BYTES);
            shl_err_because("%s", c->table->error_text(status));
            return shl_err_advice("a larger limit (ulimit -l), or memory that is not pinned");
        }
        for (size_t k = 0; k < n; k++) {
            c->locked[i + k] = k == 0 ? LOCK_BEGINS : LOCK_GOES_ON;
        }
        i += n > 0 ? n : 1;
    }
    return SHL_OK;
}

/* kernels/device: what every backend shares: checks, the ledger around each allocation, dispatch.
 * A backend only finds memory, moves bytes and orders work. */
#include "kernels/device/device.h"

#include <string.h>

#include "kernels/base/clock.h"
#include "kernels/base/heap.h"
#include "kernels/base/str.h"
#include "kernels/device/device_registry.h"

#define MAX_ARG_BYTES 256
#define ROUND_PAGES(bytes) (((bytes) + SHL_PIN_PAGE_BYTES - 1) & ~(SHL_PIN_PAGE_BYTES - 1))

static void
close_streams(shl_device *d)
{
    for (int k = 0; k < SHL_STREAM_KIND_COUNT; k++) {
        if (d->streams[k].device != NULL) {
            d->ops->stream_close(d, &d->streams[k]);
            d->streams[k].device = NULL;
        }
    }
}

static shl_code
open_streams(shl_device *d)
{
    for (int k = 0; k < SHL_STREAM_KIND_COUNT; k++) {
        shl_stream *s = &d->streams[k];
        s->kind = (shl_stream_kind)k;
        SHL_TRY(d->ops->stream_open(d, s->kind, s));
        s->device = d;
    }
    return SHL_OK;
}

shl_code
shl_device_open(const shl_device_config *cfg, shl_device **out)
{
    const shl_device_ops *ops = NULL;
    shl_device *d = NULL;
    shl_code code = SHL_OK;
    bool opened = false;
    *out = NULL;
    SHL_TRY(shl_device_registry_find(cfg->kind, &ops));
    if (cfg->threads < 1) {
        SHL_RAISE(SHL_E_USAGE, "a device cannot compute with %d threads", cfg->threads);
        return shl_err_because("at least 1 is needed");
    }
    SHL_TRY(shl_heap_alloc(1, sizeof(*d), &d));
    d->ops = ops;
    d->host_table = shl_device_registry_host_table();
    d->config = *cfg;
    SHL_TRY_TO(code, out, shl_ledger_open(&d->ledger));
    for (int t = 0; t < SHL_TIER_COUNT; t++) {
        shl_ledger_limit(d->ledger, (shl_tier)t, cfg->limit_bytes[t]);
    }
    SHL_TRY_TO(code, out, ops->open(d, cfg));
    opened = true;
    SHL_TRY_TO(code, out, open_streams(d));
    SHL_ASSERT(d->op_table != NULL && d->caps.align_bytes > 0);
    *out = d;
    return SHL_OK;
out:
    close_streams(d);
    if (opened) {
        ops->close(d);
    }
    /* Nothing was posted yet: closing an empty ledger cannot fail. */
    shl_code empty = shl_ledger_close(&d->ledger);
    SHL_ASSERT(empty == SHL_OK);
    shl_heap_free(&d);
    return code;
}

shl_code
shl_device_close(shl_device **d_ptr)
{
    shl_device *d = *d_ptr;
    if (d == NULL) {
        return SHL_OK;
    }
    close_streams(d);
    shl_code code = shl_ledger_close(&d->ledger);
    d->ops->close(d);
    shl_heap_free(d_ptr);
    return code;
}

shl_code
shl_device_enter(shl_device *d)
{
    return d->ops->enter == NULL ? SHL_OK : d->ops->enter(d);
}

int64_t
shl_device_row_stride(const shl_device *d, shl_dtype dtype, int64_t cols)
{
    int64_t step = (int64_t)(d->caps.row_align_bytes / shl_dtype_bytes(dtype));
    return step > 1 ? shl_round_up(cols, step) : cols;
}

/* The system refused what the limit allows: say so in the words of the ledger. */
static shl_code
explain_oom(const shl_device *d, size_t bytes, shl_tier tier, shl_tag tag, const char *owner)
{
    shl_err low = *shl_err_get();
    SHL_RAISE(SHL_E_OOM, "out of %s memory in %s: %s asked for %zu bytes of %s",
              shl_tier_name(tier), shl_mark_name(shl_ledger_get_mark(d->ledger)), owner, bytes,
              shl_tag_name(tag));
    shl_err_because("%.200s (%.200s); %zu bytes are held", low.what, low.because,
                    shl_ledger_get(d->ledger, tier)->now_bytes);
    return shl_err_advice("more ranks, a strategy that shards more, or a smaller batch");
}

/* Locks the pages of a buffer, within the budget of the device. */
static shl_code
pin(shl_device *d, void *data, size_t bytes, const char *owner)
{
    size_t pages = ROUND_PAGES(bytes), limit = d->config.pin_limit_bytes;
    if (limit > 0 && (pages > limit || d->pinned_bytes > limit - pages)) {
        SHL_RAISE(SHL_E_OOM, "cannot lock %zu bytes of host memory for %s", pages, owner);
        shl_err_because("%zu bytes are locked, the limit is %zu", d->pinned_bytes, limit);
        return shl_err_advice("a larger limit, or memory that is not pinned");
    }
    if (d->ops->pin != NULL) {
        SHL_TRY(d->ops->pin(d, data, pages));
    }
    d->pinned_bytes += pages;
    d->pinned_peak_bytes =
        d->pinned_bytes > d->pinned_peak_bytes ? d->pinned_bytes : d->pinned_peak_bytes;
    return SHL_OK;
}

static void
unpin(shl_device *d, const shl_buf *b)
{
    if (b->pinned) {
        size_t pages = ROUND_PAGES(b->bytes);
        d->pinned_bytes -= pages;
        if (d->ops->unpin != NULL) {
            d->ops->unpin(d, b->data, pages);
        }
    }
}

shl_code
shl_device_alloc(shl_device *d, size_t bytes, shl_tier tier, shl_tag tag, unsigned flags,
                 const char *owner, shl_buf *out)
{
    void *data = NULL;
    int64_t id = 0;
    bool comm = (flags & SHL_MEM_COMM) != 0, pinned = (flags & SHL_MEM_PIN) != 0;
    SHL_ASSERT((unsigned)tier < SHL_TIER_COUNT && (unsigned)tag < SHL_TAG_COUNT);
    SHL_ASSERT(owner != NULL && (flags & ~(SHL_MEM_COMM | SHL_MEM_PIN)) == 0);
    SHL_ASSERT(!pinned || (tier == SHL_TIER_HOST && !comm));
    *out = (shl_buf){.tier = tier, .comm = comm};
    if (bytes == 0) {
        return SHL_OK;
    }
    SHL_TRY(shl_ledger_admit(d->ledger, tier, tag, bytes, owner));
    shl_code code = d->ops->mem_take(d, bytes, tier, comm, &data);
    if (code == SHL_E_OOM) {
        return explain_oom(d, bytes, tier, tag, owner);
    }
    SHL_TRY(code);
    code = pinned ? pin(d, data, bytes, owner) : SHL_OK;
    if (code != SHL_OK) {
        d->ops->mem_give(d, data, bytes, tier, comm);
        return shl_err_trace(code, __FILE__, __LINE__, __func__);
    }
    *out = (shl_buf){data, bytes, 0, tier, comm, pinned};
    code = shl_ledger_post(d->ledger, tier, tag, bytes, owner, &id);
    if (code != SHL_OK) {
        unpin(d, out);
        d->ops->mem_give(d, data, bytes, tier, comm);
        *out = (shl_buf){.tier = tier, .comm = comm};
        return shl_err_trace(code, __FILE__, __LINE__, __func__);
    }
    out->ledger_id = id;
    return SHL_OK;
}

void
shl_device_free(shl_device *d, shl_buf *b)
{
    if (b->data != NULL) {
        shl_ledger_drop(d->ledger, b->ledger_id);
        unpin(d, b);
        d->ops->mem_give(d, b->data, b->bytes, b->tier, b->comm);
    }
    *b = (shl_buf){.tier = b->tier, .comm = b->comm};
}

shl_code
shl_device_free_after(shl_device *d, shl_buf *b, shl_event last_use)
{
    shl_buf gone = *b;
    *b = (shl_buf){.tier = gone.tier, .comm = gone.comm};
    if (gone.data == NULL) {
        return shl_event_sync(d, last_use);
    }
    shl_ledger_drop(d->ledger, gone.ledger_id);
    unpin(d, &gone);
    if (d->ops->mem_give_after != NULL && last_use.stream != NULL) {
        return d->ops->mem_give_after(d, gone.data, gone.bytes, gone.tier, gone.comm, last_use);
    }
    shl_code code = shl_event_sync(d, last_use);
    d->ops->mem_give(d, gone.data, gone.bytes, gone.tier, gone.comm);
    return code;
}

size_t
shl_device_reserved_bytes(const shl_device *d, shl_tier tier)
{
    SHL_ASSERT((unsigned)tier < SHL_TIER_COUNT);
    return d->ops->reserved_bytes == NULL ? 0 : d->ops->reserved_bytes(d, tier);
}

size_t
shl_device_reserved_comm_bytes(const shl_device *d)
{
    return d->ops->reserved_comm_bytes == NULL ? 0 : d->ops->reserved_comm_bytes(d);
}

void
shl_device_comm_block_get(const shl_device *d, shl_mem_block *out)
{
    *out = (shl_mem_block){.base = NULL};
    if (d->ops->comm_block != NULL) {
        d->ops->comm_block(d, out);
    }
}

shl_stream *
shl_device_stream(shl_device *d, shl_stream_kind kind)
{
    SHL_ASSERT((unsigned)kind < SHL_STREAM_KIND_COUNT);
    return &d->streams[kind];
}

static shl_stream *
stream_or_compute(shl_device *d, shl_stream *s)
{
    if (s == NULL) {
        return &d->streams[SHL_STREAM_COMPUTE];
    }
    SHL_ASSERT(s->device == d);
    return s;
}

shl_code
shl_device_copy(shl_device *d, void *dst, const void *src, size_t bytes, shl_stream *s)
{
    if (bytes == 0) {
        return SHL_OK;
    }
    SHL_ASSERT(dst != NULL && src != NULL);
    return d->ops->copy(d, dst, src, bytes, stream_or_compute(d, s));
}

shl_stream *
shl_device_move_stream(shl_device *d, shl_move direction)
{
    return &d->streams[direction == SHL_MOVE_TO_HOST ? SHL_STREAM_TO_HOST : SHL_STREAM_TO_DEVICE];
}

shl_code
shl_device_move(shl_device *d, void *dst, const void *src, size_t bytes, shl_move direction)
{
    shl_stream *s = shl_device_move_stream(d, direction);
    SHL_ASSERT((unsigned)direction < SHL_MOVE_COUNT);
    if (bytes == 0) {
        return SHL_OK;
    }
    SHL_ASSERT(dst != NULL && src != NULL);
    SHL_TRY(d->ops->move == NULL ? d->ops->copy(d, dst, src, bytes, s)
                                 : d->ops->move(d, dst, src, bytes, direction, s));
    d->moved_bytes[direction] += (int64_t)bytes;
    return SHL_OK;
}

shl_code
shl_device_fill(shl_device *d, void *dst, int byte, size_t bytes, shl_stream *s)
{
    if (bytes == 0) {
        return SHL_OK;
    }
    SHL_ASSERT(dst != NULL);
    return d->ops->fill(d, dst, byte, bytes, stream_or_compute(d, s));
}

shl_code
shl_device_upload(shl_device *d, void *dst, const void *host, size_t bytes)
{
    if (bytes == 0) {
        return SHL_OK;
    }
    SHL_ASSERT(dst != NULL && host != NULL);
    return d->ops->upload(d, dst, host, bytes);
}

shl_code
shl_device_download(shl_device *d, void *host, const void *src, size_t bytes)
{
    if (bytes == 0) {
        return SHL_OK;
    }
    SHL_ASSERT(host != NULL && src != NULL);
    return d->ops->download(d, host, src, bytes);
}

shl_code
shl_stream_submit(shl_stream *s, shl_stream_fn fn, void *arg, size_t arg_bytes, int64_t cost_ns)
{
    SHL_ASSERT(fn != NULL && arg_bytes <= MAX_ARG_BYTES && (arg != NULL || arg_bytes == 0));
    SHL_ASSERT(cost_ns >= 0);
    return s->device->ops->submit(s->device, s, fn, arg, arg_bytes, cost_ns);
}

shl_code
shl_stream_record(shl_stream *s, shl_event *out)
{
    *out = (shl_event){NULL, 0};
    return s->device->ops->record(s->device, s, out);
}

shl_code
shl_stream_wait(shl_stream *s, shl_event ev)
{
    if (ev.stream == NULL) {
        return SHL_OK;
    }
    SHL_ASSERT(ev.stream->device == s->device);
    return s->device->ops->wait(s->device, s, ev);
}

shl_code
shl_event_sync(shl_device *d, shl_event ev)
{
    if (ev.stream == NULL) {
        return SHL_OK;
    }
    SHL_ASSERT(ev.stream->device == d);
    return d->ops->sync(d, ev);
}

shl_code
shl_gate_open(shl_device *d, shl_gate *out)
{
    SHL_ASSERT(d->caps.async && d->ops->gate_open != NULL);
    *out = (shl_gate){d, NULL};
    return d->ops->gate_open(d, &out->impl);
}

void
shl_gate_close(shl_gate *g)
{
    if (g->impl != NULL) {
        g->device->ops->gate_close(g->device, g->impl);
    }
    *g = (shl_gate){NULL, NULL};
}

shl_code
shl_gate_record(shl_gate *g, shl_stream *s)
{
    SHL_ASSERT(s->device == g->device);
    return g->device->ops->gate_record(g->device, g->impl, s);
}

shl_code
shl_gate_wait(const shl_gate *g, shl_stream *s)
{
    SHL_ASSERT(s->device->ops == g->device->ops);
    return s->device->ops->gate_wait(s->device, g->impl, s);
}

shl_code
shl_gate_passed(const shl_gate *g, bool *out)
{
    return g->device->ops->gate_passed(g->device, g->impl, out);
}

void *
shl_stream_native(shl_stream *s)
{
    return s->device->ops->native == NULL ? NULL : s->device->ops->native(s->device, s);
}

void
shl_device_identify(shl_device *d, shl_device_identity *out)
{
    memset(out, 0, sizeof *out);
    if (d->ops->identify != NULL) {
        d->ops->identify(d, out);
        return;
    }
    shl_strf(out->name, sizeof out->name, "%s", d->ops->kind);
    shl_strf(out->id, sizeof out->id, "%s of rank %d", d->ops->kind, d->config.rank);
}

shl_code
shl_device_survey_get(const char *kind, shl_device_survey *out)
{
    const shl_device_ops *ops = NULL;
    memset(out, 0, sizeof *out);
    SHL_TRY(shl_device_registry_find(kind, &ops));
    return ops->survey != NULL ? ops->survey(out) : SHL_OK;
}

shl_code
shl_device_card_get(const char *kind, int index, shl_device_card *out)
{
    const shl_device_ops *ops = NULL;
    memset(out, 0, sizeof *out);
    SHL_TRY(shl_device_registry_find(kind, &ops));
    if (ops->card == NULL) {
        SHL_RAISE(SHL_E_USAGE, "card %d of kind '%s'", index, kind);
        return shl_err_because("a device of this kind is no card");
    }
    return ops->card(index, out);
}

shl_code
shl_device_memory_get(shl_device *d, shl_device_memory *out)
{
    memset(out, 0, sizeof *out);
    return d->ops->memory != NULL ? d->ops->memory(d, out) : SHL_OK;
}

shl_code
shl_device_sync(shl_device *d)
{
    shl_code first = SHL_OK;
    shl_err err = {SHL_OK, "", "", "", ""};
    shl_event ev;
    /* All streams are waited for, whatever one of them says; the first failure is told. */
    for (int k = 0; k < SHL_STREAM_KIND_COUNT; k++) {
        shl_code code = shl_stream_record(&d->streams[k], &ev);
        code = code != SHL_OK ? code : shl_event_sync(d, ev);
        if (code != SHL_OK && first == SHL_OK) {
            first = code;
            err = *shl_err_get();
        }
    }
    if (first != SHL_OK) {
        return shl_err_put(&err);
    }
    /* The host is now behind everything: bring the clocks of the other streams up to it. */
    SHL_TRY(shl_stream_record(&d->streams[SHL_STREAM_COMPUTE], &ev));
    for (int k = 0; k < SHL_STREAM_KIND_COUNT; k++) {
        SHL_TRY(shl_stream_wait(&d->streams[k], ev));
    }
    return SHL_OK;
}

int64_t
shl_device_now_ns(shl_device *d, shl_stream *s)
{
    return d->ops->now_ns == NULL ? shl_clock_ns() : d->ops->now_ns(d, stream_or_compute(d, s));
}

/* kernels/cuda: copies and fills. Only page-locked host memory is handed to the driver: it would read a
 * pageable source when the copy is queued, maybe before a host call on the stream has written it, and it
 * refuses a range that is locked in part, or by two calls. Other host memory goes through a page-locked
 * buffer of its stream, by calls in the stream's order. */
#include <string.h>

#include "kernels/cuda/cuda_impl.h"

/* What the driver may be given: device memory, or host memory of one lock. */
static shl_code
copy_straight(shl_device *d, void *dst, const void *src, size_t bytes, shl_stream *s)
{
    const shl_cuda_backend *table = cuda_of(d)->table;
    void *stream = NULL;
    SHL_TRY(shl_cuda_begin(s, &stream));
    return shl_cuda_check(table, table->copy(dst, src, bytes, stream), "a copy was not queued");
}

typedef struct host_copy {
    void *dst;
    const void *src;
    size_t bytes;
} host_copy;

static shl_code
run_host_copy(void *arg)
{
    const host_copy *c = arg;
    memcpy(c->dst, c->src, c->bytes);
    return SHL_OK;
}

static shl_code
copy_by_host(shl_device *d, void *dst, const void *src, size_t bytes, shl_stream *s)
{
    host_copy c = {dst, src, bytes};
    return shl_cuda_submit(d, s, run_host_copy, &c, sizeof(c), 0);
}

/* One buffer is enough: its uses follow each other on the stream. */
static shl_code
copy_bounced(shl_device *d, char *dst, const char *src, size_t bytes, bool to_host, shl_stream *s)
{
    const shl_cuda_backend *table = cuda_of(d)->table;
    cuda_stream *at = s->impl;
    if (at->bounce == NULL) {
        SHL_TRY(shl_cuda_check(table, table->host_take(CUDA_SLOT_BYTES, &at->bounce),
                               "no page-locked memory for copies"));
    }
    for (size_t i = 0; i < bytes; i += CUDA_SLOT_BYTES) {
        size_t n = bytes - i < CUDA_SLOT_BYTES ? bytes - i : CUDA_SLOT_BYTES;
        if (to_host) {
            SHL_TRY(copy_straight(d, at->bounce, src + i, n, s));
            SHL_TRY(copy_by_host(d, dst + i, at->bounce, n, s));
        } else {
            SHL_TRY(copy_by_host(d, at->bounce, src + i, n, s));
            SHL_TRY(copy_straight(d, dst + i, at->bounce, n, s));
        }
    }
    return SHL_OK;
}

shl_code
shl_cuda_copy(shl_device *d, void *dst, const void *src, size_t bytes, shl_stream *s)
{
    bool to_host = shl_cuda_is_host(d, dst), from_host = shl_cuda_is_host(d, src);
    if (dst == src) {
        return SHL_OK;
    }
    if (to_host == from_host) {
        return to_host ? copy_by_host(d, dst, src, bytes, s) : copy_straight(d, dst, src, bytes, s);
    }
    for (size_t i = 0, n = 0; i < bytes; i += n) {
        char *to = (char *)dst + i;
        const char *from = (const char *)src + i;
        bool locked = false;
        n = shl_cuda_locked_run(d, to_host ? to : from, bytes - i, &locked);
        SHL_TRY(locked ? copy_straight(d, to, from, n, s)
                       : copy_bounced(d, to, from, n, to_host, s));
    }
    return SHL_OK;
}

typedef struct host_fill {
    void *dst;
    int byte;
    size_t bytes;
} host_fill;

static shl_code
run_host_fill(void *arg)
{
    const host_fill *f = arg;
    memset(f->dst, f->byte, f->bytes);
    return SHL_OK;
}

shl_code
shl_cuda_fill(shl_device *d, void *dst, int byte, size_t bytes, shl_stream *s)
{
    const shl_cuda_backend *table = cuda_of(d)->table;
    void *stream = NULL;
    if (shl_cuda_is_host(d, dst)) {
        host_fill f = {dst, byte, bytes};
        return shl_cuda_submit(d, s, run_host_fill, &f, sizeof(f), 0);
    }
    SHL_TRY(shl_cuda_begin(s, &stream));
    return shl_cuda_check(table, table->fill(dst, byte, bytes, stream), "a fill was not queued");
}

/* What is queued on compute so far is done: the host itself may touch host memory. */
static shl_code
wait_compute(shl_device *d)
{
    shl_event done;
    SHL_TRY(shl_cuda_record(d, &d->streams[SHL_STREAM_COMPUTE], &done));
    return shl_cuda_sync(d, done);
}

/* The next page-locked buffer, free again. */
static shl_code
next_slot(shl_device *d, unsigned *out)
{
    cuda_impl *c = cuda_of(d);
    unsigned i = c->next_slot;
    c->next_slot = (i + 1) % CUDA_SLOTS;
    *out = i;
    shl_event read = {&d->streams[SHL_STREAM_COMPUTE], c->slot_seq[i]};
    return c->slot_seq[i] == 0 ? SHL_OK : shl_cuda_sync(d, read);
}

/* Through page-locked buffers: the caller's bytes are free again at once, and nobody waits for the
 * device. In the order of compute; every other stream's next work is behind it. */
shl_code
shl_cuda_upload(shl_device *d, void *dst, const void *host, size_t bytes)
{
    cuda_impl *c = cuda_of(d);
    shl_stream *s = &d->streams[SHL_STREAM_COMPUTE];
    if (shl_cuda_is_host(d, dst)) {
        SHL_TRY(wait_compute(d));
        memcpy(dst, host, bytes);
        return SHL_OK;
    }
    for (size_t at = 0; at < bytes; at += CUDA_SLOT_BYTES) {
        size_t n = bytes - at < CUDA_SLOT_BYTES ? bytes - at : CUDA_SLOT_BYTES;
        unsigned i = 0;
        SHL_TRY(next_slot(d, &i));
        memcpy(c->slots[i], (const char *)host + at, n);
        SHL_TRY(copy_straight(d, (char *)dst + at, c->slots[i], n, s));
        c->slot_seq[i] = c->streams[SHL_STREAM_COMPUTE].queued;
    }
    c->need[SHL_STREAM_COMPUTE] = c->streams[SHL_STREAM_COMPUTE].queued;
    return SHL_OK;
}

shl_code
shl_cuda_download(shl_device *d, void *host, const void *src, size_t bytes)
{
    cuda_impl *c = cuda_of(d);
    shl_stream *s = &d->streams[SHL_STREAM_COMPUTE];
    if (shl_cuda_is_host(d, src)) {
        SHL_TRY(wait_compute(d));
        memcpy(host, src, bytes);
        return SHL_OK;
    }
    for (size_t at = 0; at < bytes; at += CUDA_SLOT_BYTES) {
        size_t n = bytes - at < CUDA_SLOT_BYTES ? bytes - at : CUDA_SLOT_BYTES;
        shl_event done;
        unsigned i = 0;
        SHL_TRY(next_slot(d, &i));
        SHL_TRY(copy_straight(d, c->slots[i], (const char *)src + at, n, s));
        SHL_TRY(shl_cuda_record(d, s, &done));
        SHL_TRY(shl_cuda_sync(d, done));
        memcpy((char *)host + at, c->slots[i], n);
    }
    return SHL_OK;
}

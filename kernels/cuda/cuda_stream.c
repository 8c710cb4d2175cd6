/* kernels/cuda: streams, events and host calls: numbers of work on the host's side, the object's events
 * behind them. */
#include "kernels/base/heap.h"
#include "kernels/cuda/cuda_impl.h"

#include <string.h>

static cuda_stream *
stream_of(const shl_stream *s)
{
    return s->impl;
}

shl_code
shl_cuda_check(const shl_cuda_backend *table, int status, const char *what)
{
    if (status == 0) {
        return SHL_OK;
    }
    SHL_RAISE(status == SHL_CUDA_OUT_OF_MEMORY ? SHL_E_OOM : SHL_E_SYSTEM, "%s", what);
    return shl_err_because("status %d: %s", status, table->error_text(status));
}

void
shl_cuda_stream_close(shl_device *d, shl_stream *s)
{
    cuda_impl *c = cuda_of(d);
    cuda_stream *at = stream_of(s);
    if (at->stream != NULL) {
        (void)c->table->stream_sync(at->stream);
    }
    for (unsigned i = 0; i < CUDA_RING; i++) {
        if (at->ring[i].event != NULL) {
            (void)c->table->event_close(at->ring[i].event);
        }
    }
    if (at->stream != NULL) {
        (void)c->table->stream_close(at->stream);
    }
    if (at->bounce != NULL) {
        (void)c->table->host_give(at->bounce);
    }
    pthread_mutex_destroy(&at->mutex);
    shl_heap_free(&at->calls);
    memset(at, 0, sizeof(*at));
    s->impl = NULL;
}

/* Collectives and copies are short and others wait for them: they go before compute. */
shl_code
shl_cuda_stream_open(shl_device *d, shl_stream_kind kind, shl_stream *s)
{
    cuda_impl *c = cuda_of(d);
    cuda_stream *at = &c->streams[kind];
    shl_code code = SHL_OK;
    int priority = kind == SHL_STREAM_COMPUTE ? 1 : 0;
    memset(at, 0, sizeof(*at));
    s->impl = at;
    pthread_mutex_init(&at->mutex, NULL);
    SHL_TRY_TO(code, out,
               shl_cuda_check(c->table, c->table->stream_open(priority, &at->stream), "no stream"));
    for (unsigned i = 0; i < CUDA_RING; i++) {
        SHL_TRY_TO(
            code, out,
            shl_cuda_check(c->table, c->table->event_open(false, &at->ring[i].event), "no event"));
    }
    return SHL_OK;
out:
    shl_cuda_stream_close(d, s);
    return code;
}

/* An event behind everything queued. */
static shl_code
record_now(const cuda_impl *c, cuda_stream *at)
{
    if (at->ring[at->newest].seq == at->queued) {
        return SHL_OK;
    }
    unsigned next = (at->newest + 1) % CUDA_RING;
    SHL_TRY(shl_cuda_check(c->table, c->table->event_record(at->ring[next].event, at->stream),
                           "an event was not recorded"));
    at->ring[next].seq = at->queued;
    at->newest = next;
    return SHL_OK;
}

/* The oldest recorded event at or behind seq. */
static shl_code
mark_for(const cuda_impl *c, cuda_stream *at, uint64_t seq, cuda_mark *out)
{
    SHL_ASSERT(seq > 0 && seq <= at->queued);
    if (at->ring[at->newest].seq < seq) {
        SHL_TRY(record_now(c, at));
    }
    unsigned i = at->newest;
    for (unsigned n = 1; n < CUDA_RING; n++) {
        unsigned older = (i + CUDA_RING - 1) % CUDA_RING;
        if (at->ring[older].seq < seq || at->ring[older].seq > at->ring[i].seq) {
            break;
        }
        i = older;
    }
    *out = at->ring[i];
    return SHL_OK;
}

/* Puts one stream behind a number of another. */
static shl_code
order(cuda_impl *c, cuda_stream *s, int other, uint64_t seq)
{
    cuda_mark mark;
    cuda_stream *t = &c->streams[other];
    if (s == t || seq <= t->passed || seq <= s->behind[other]) {
        return SHL_OK;
    }
    SHL_TRY(mark_for(c, t, seq, &mark));
    SHL_TRY(shl_cuda_check(c->table, c->table->event_wait(mark.event, s->stream),
                           "a stream cannot wait"));
    s->behind[other] = mark.seq;
    s->queued++;
    return SHL_OK;
}

shl_code
shl_cuda_begin(shl_stream *s, void **out)
{
    cuda_impl *c = cuda_of(s->device);
    cuda_stream *at = stream_of(s);
    for (int k = 0; k < SHL_STREAM_KIND_COUNT; k++) {
        SHL_TRY(order(c, at, k, c->need[k]));
    }
    at->queued++;
    *out = at->stream;
    return SHL_OK;
}

shl_code
shl_cuda_record(shl_device *d, shl_stream *s, shl_event *out)
{
    cuda_stream *at = stream_of(s);
    if (at->queued > at->passed) {
        SHL_TRY(record_now(cuda_of(d), at));
    }
    *out = (shl_event){s, at->queued};
    return SHL_OK;
}

shl_code
shl_cuda_wait(shl_device *d, shl_stream *s, shl_event ev)
{
    return order(cuda_of(d), stream_of(s), (int)ev.stream->kind, ev.seq);
}

/* How far each stream has come when `s` has come to seq: through its waits, and theirs. */
static void
reach(const cuda_impl *c, shl_stream_kind s, uint64_t seq, uint64_t out[SHL_STREAM_KIND_COUNT])
{
    memset(out, 0, sizeof(uint64_t) * SHL_STREAM_KIND_COUNT);
    out[s] = seq;
    for (int turn = 1; turn < SHL_STREAM_KIND_COUNT; turn++) {
        for (int a = 0; a < SHL_STREAM_KIND_COUNT; a++) {
            for (int b = 0; out[a] > 0 && b < SHL_STREAM_KIND_COUNT; b++) {
                uint64_t there = c->streams[a].behind[b];
                out[b] = there > out[b] ? there : out[b];
            }
        }
    }
}

/* A failed host call at or before the event, on its stream or one that it waited for. */
static shl_code
failure_before(cuda_impl *c, shl_event ev)
{
    uint64_t far[SHL_STREAM_KIND_COUNT];
    shl_code code = SHL_OK;
    reach(c, ev.stream->kind, ev.seq, far);
    for (int k = 0; k < SHL_STREAM_KIND_COUNT && code == SHL_OK; k++) {
        cuda_stream *t = &c->streams[k];
        pthread_mutex_lock(&t->mutex);
        if (t->failed_seq != 0 && t->failed_seq <= far[k]) {
            code = shl_err_put(&t->failure);
        }
        pthread_mutex_unlock(&t->mutex);
    }
    return code;
}

/* What kernels said of their data; told once. */
static shl_code
read_faults(cuda_impl *c)
{
    static const char *const texts[SHL_CUDA_FAULT_COUNT][2] = {
        [SHL_CUDA_FAULT_TOKEN] = {"embedding_forward: a token is outside the vocabulary", "token"},
        [SHL_CUDA_FAULT_TARGET] = {"cross_entropy: a target is outside the vocabulary", "target"},
    };
    for (int i = 0; i < SHL_CUDA_FAULT_COUNT; i++) {
        if (__atomic_exchange_n(&c->faults[i], 0u, __ATOMIC_ACQ_REL) != 0) {
            SHL_RAISE(SHL_E_CONFIG, "%s", texts[i][0]);
            return shl_err_because("a kernel met a %s below 0 or at least the vocabulary's size",
                                   texts[i][1]);
        }
    }
    return SHL_OK;
}

shl_code
shl_cuda_sync(shl_device *d, shl_event ev)
{
    cuda_impl *c = cuda_of(d);
    cuda_stream *at = stream_of(ev.stream);
    if (ev.seq > at->passed) {
        cuda_mark mark;
        SHL_TRY(mark_for(c, at, ev.seq, &mark));
        SHL_TRY(shl_cuda_check(c->table, c->table->event_sync(mark.event),
                               "work on the device failed"));
        at->passed = mark.seq;
    }
    SHL_TRY(failure_before(c, ev));
    return read_faults(c);
}

/* On a thread of the driver, in the order of the stream. */
static void
run_call(void *arg)
{
    cuda_call *call = arg;
    cuda_stream *s = call->stream;
    pthread_mutex_lock(&s->mutex);
    bool skip = s->failed_seq != 0;
    pthread_mutex_unlock(&s->mutex);
    if (skip) {
        return;
    }
    shl_err before = *shl_err_get();
    shl_err_clear();
    shl_code code = call->fn(call->arg);
    if (code != SHL_OK) {
        if (shl_err_get()->code != code) {
            SHL_RAISE(code, "work queued on a stream failed: %s", shl_code_text(code));
        }
        pthread_mutex_lock(&s->mutex);
        s->failed_seq = call->seq;
        s->failure = *shl_err_get();
        pthread_mutex_unlock(&s->mutex);
    }
    shl_err_put(&before);
}

shl_code
shl_cuda_submit(shl_device *d, shl_stream *s, shl_stream_fn fn, void *arg, size_t arg_bytes,
                int64_t cost_ns)
{
    cuda_impl *c = cuda_of(d);
    cuda_stream *at = stream_of(s);
    void *stream = NULL;
    SHL_UNUSED(cost_ns);
    SHL_ASSERT(arg_bytes <= CUDA_CALL_BYTES);
    if (at->calls == NULL) {
        SHL_TRY(shl_heap_alloc(CUDA_CALLS, sizeof(*at->calls), &at->calls));
    }
    cuda_call *call = &at->calls[at->n_calls % CUDA_CALLS];
    if (call->seq > at->passed) {
        cuda_mark mark;
        SHL_TRY(mark_for(c, at, call->seq, &mark));
        SHL_TRY(shl_cuda_check(c->table, c->table->event_sync(mark.event),
                               "work on the device failed"));
        at->passed = mark.seq;
    }
    SHL_TRY(shl_cuda_begin(s, &stream));
    call->stream = at;
    call->seq = at->queued;
    call->fn = fn;
    if (arg_bytes > 0) {
        memcpy(call->arg, arg, arg_bytes);
    }
    at->n_calls++;
    return shl_cuda_check(c->table, c->table->call(stream, run_call, call),
                          "a host call was not queued");
}

shl_code
shl_cuda_gate_open(shl_device *d, void **out)
{
    const shl_cuda_backend *table = cuda_of(d)->table;
    return shl_cuda_check(table, table->event_open(false, out), "no event");
}

void
shl_cuda_gate_close(shl_device *d, void *gate)
{
    (void)cuda_of(d)->table->event_close(gate);
}

/* A piece of work: a peer that waits for it is behind all that this stream must be behind. */
shl_code
shl_cuda_gate_record(shl_device *d, void *gate, shl_stream *s)
{
    const shl_cuda_backend *table = cuda_of(d)->table;
    void *stream = NULL;
    SHL_TRY(shl_cuda_begin(s, &stream));
    return shl_cuda_check(table, table->event_record(gate, stream), "an event was not recorded");
}

shl_code
shl_cuda_gate_wait(shl_device *d, void *gate, shl_stream *s)
{
    const shl_cuda_backend *table = cuda_of(d)->table;
    stream_of(s)->queued++;
    return shl_cuda_check(table, table->event_wait(gate, stream_of(s)->stream),
                          "a stream cannot wait");
}

shl_code
shl_cuda_gate_passed(shl_device *d, void *gate, bool *out)
{
    const shl_cuda_backend *table = cuda_of(d)->table;
    int status = table->event_query(gate);
    *out = status == 0;
    return status == SHL_CUDA_NOT_READY
               ? SHL_OK
               : shl_cuda_check(table, status, "work on the device failed");
}

void *
shl_cuda_native(shl_device *d, shl_stream *s)
{
    void *stream = NULL;
    SHL_UNUSED(d);
    return shl_cuda_begin(s, &stream) == SHL_OK ? stream : NULL;
}

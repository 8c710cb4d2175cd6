/* models: the tape: a stack of what backward needs again, and the way of an entry's input to host memory
 * and back. Copies run beside compute, each waited for at a schedule point (SHL_STREAM_TO_HOST and back). */
#include "models/module.h"

#include "kernels/base/heap.h"

shl_code
shl_tape_push(shl_tape *t, shl_module *m, shl_tape_entry **out)
{
    *out = NULL;
    if (t->n == t->cap) {
        int cap = t->cap == 0 ? 16 : 2 * t->cap;
        SHL_TRY(shl_heap_grow(&t->entries, (size_t)t->cap, (size_t)cap, sizeof *t->entries));
        t->cap = cap;
    }
    shl_tape_entry *e = &t->entries[t->n++];
    *e = (shl_tape_entry){.module = m};
    *out = e;
    return SHL_OK;
}

shl_code
shl_tape_top(shl_tape *t, shl_module *m, shl_tape_entry **out)
{
    *out = NULL;
    if (t->n == 0 || t->entries[t->n - 1].module != m) {
        const char *found = t->n == 0 ? "nothing" : t->entries[t->n - 1].module->path;
        SHL_RAISE(SHL_E_BUG, "backward of %s finds no matching forward on the tape", m->path);
        return shl_err_because("%s is on top", found);
    }
    *out = &t->entries[t->n - 1];
    return SHL_OK;
}

shl_tape_entry *
shl_tape_below(const shl_tape *t)
{
    return t->n > 1 ? &t->entries[t->n - 2] : NULL;
}

void
shl_tape_pop(shl_tape *t, shl_device *d)
{
    SHL_ASSERT(t->n > 0);
    shl_tape_entry *e = &t->entries[--t->n];
    for (int i = 0; i < SHL_TAPE_BUFS; i++) {
        shl_device_free(d, &e->bufs[i]);
    }
    shl_device_free(d, &e->far);
}

void
shl_tape_fini(shl_tape *t, shl_device *d)
{
    while (t->n > 0) {
        shl_tape_pop(t, d);
    }
    shl_heap_free(&t->entries);
    t->cap = 0;
}

/* ---- to host memory and back ---- */

/* Work queued on the stream of a direction from now on runs behind the compute issued so far. */
static shl_code
follow_compute(shl_run *run, shl_move direction)
{
    shl_event ready;
    SHL_TRY(shl_stream_record(run->stream, &ready));
    return shl_stream_wait(shl_device_move_stream(run->device, direction), ready);
}

static shl_code
move(shl_run *run, shl_tape_entry *e, const shl_buf *to, const shl_buf *from, shl_move direction)
{
    SHL_TRY(shl_device_move(run->device, to->data, from->data, from->bytes, direction));
    return shl_stream_record(shl_device_move_stream(run->device, direction), &e->moved);
}

shl_code
shl_tape_send(shl_run *run, shl_tape_entry *e)
{
    const shl_buf *x = &e->bufs[0];
    SHL_ASSERT(x->data != NULL && e->far.data == NULL);
    SHL_TRY(shl_device_alloc(run->device, x->bytes, SHL_TIER_HOST, SHL_TAG_ACT,
                             run->far_pin ? SHL_MEM_PIN : 0, e->module->path, &e->far));
    SHL_TRY(follow_compute(run, SHL_MOVE_TO_HOST));
    return move(run, e, &e->far, x, SHL_MOVE_TO_HOST);
}

shl_code
shl_tape_sent(shl_run *run, shl_tape_entry *e)
{
    int64_t start = shl_device_now_ns(run->device, NULL);
    shl_code code = shl_device_free_after(run->device, &e->bufs[0], e->moved);
    run->exposed_move_ns += shl_device_now_ns(run->device, NULL) - start;
    e->saved[0].data = NULL;
    return code;
}

static shl_code
fetch(shl_run *run, shl_tape_entry *e)
{
    SHL_TRY(shl_device_alloc(run->device, e->far.bytes, SHL_TIER_DEVICE, SHL_TAG_ACT, 0,
                             e->module->path, &e->bufs[0]));
    e->saved[0].data = e->bufs[0].data;
    SHL_TRY(follow_compute(run, SHL_MOVE_TO_DEVICE));
    return move(run, e, &e->bufs[0], &e->far, SHL_MOVE_TO_DEVICE);
}

shl_code
shl_tape_fetch_below(shl_run *run)
{
    for (int i = run->tape->n - 2; i >= 0; i--) {
        shl_tape_entry *e = &run->tape->entries[i];
        if (e->far.data != NULL) {
            return e->bufs[0].data == NULL ? fetch(run, e) : SHL_OK;
        }
    }
    return SHL_OK;
}

shl_code
shl_tape_fetched(shl_run *run, shl_tape_entry *e)
{
    int64_t start = shl_device_now_ns(run->device, NULL);
    SHL_ASSERT(e->far.data != NULL && e->bufs[0].data != NULL);
    shl_code code = shl_stream_wait(run->stream, e->moved);
    run->exposed_move_ns += shl_device_now_ns(run->device, NULL) - start;
    SHL_TRY(code);
    return shl_device_free_after(run->device, &e->far, e->moved);
}

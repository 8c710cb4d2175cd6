/* bench: what rank 0's ledger went through in one step. The step is the second of the run, because the
 * first may still allocate what later ones find in place. */
#include <string.h>

#include "bench/session_impl.h"
#include "kernels/base/heap.h"

/* A step of a large sharded model has some ten thousand events; pages that hold none are never touched. */
#define MAX_EVENTS ((size_t)1 << 18)

static bool
is_recorded(const shl_session_rank *r, int64_t step)
{
    int64_t first = r->out->first_step + 1;
    return r->cfg->timeline && r->rank == 0 && step == (first < r->cfg->steps ? first + 1 : first);
}

shl_code
shl_session_timeline_begin(shl_session_rank *r)
{
    shl_session_timeline *t = &r->out->timeline;
    if (!is_recorded(r, r->engine->step + 1)) {
        return SHL_OK;
    }
    for (int tier = 0; tier < SHL_TIER_COUNT; tier++) {
        const shl_ledger_tier *held = shl_ledger_get(r->device->ledger, (shl_tier)tier);
        for (int tag = 0; tag < SHL_TAG_COUNT; tag++) {
            t->held_bytes[tier][tag] = (int64_t)held->now_tag_bytes[tag];
        }
    }
    return shl_ledger_timeline_start(r->device->ledger, MAX_EVENTS);
}

shl_code
shl_session_timeline_end(shl_session_rank *r)
{
    shl_session_timeline *t = &r->out->timeline;
    shl_ledger *ledger = r->device->ledger;
    const shl_ledger_event *events;
    if (!is_recorded(r, r->engine->step)) {
        return SHL_OK;
    }
    if (shl_ledger_timeline_dropped(ledger) > 0) {
        SHL_RAISE(SHL_E_USAGE, "the step has too many ledger events for a time line");
        shl_err_because("there are %lld more than the %zu that fit",
                        (long long)shl_ledger_timeline_dropped(ledger), MAX_EVENTS);
        return shl_err_advice("a smaller --accum, or fewer --layers");
    }
    size_t n = shl_ledger_timeline_get(ledger, &events);
    SHL_TRY(shl_heap_alloc(n, sizeof(*t->events), &t->events));
    memcpy(t->events, events, n * sizeof(*t->events));
    t->n_events = (int64_t)n;
    t->step = r->engine->step;
    /* Nothing is kept of what follows. */
    return shl_ledger_timeline_start(ledger, 0);
}

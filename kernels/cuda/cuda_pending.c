/* kernels/cuda: the list of free ranges still in use: sorted, searched by halving. */
#include "kernels/cuda/cuda_pending.h"

#include <string.h>

#include "kernels/base/heap.h"

/* Above this neighbours are joined although one waits for less: a little later, never too early. */
#define MANY 1024

void
shl_cuda_pending_fini(shl_cuda_pending *p)
{
    shl_heap_free(&p->spans);
    p->n = p->cap = 0;
}

shl_code
shl_cuda_pending_room(shl_cuda_pending *p)
{
    size_t want = p->n + p->live + 2;
    if (want > p->cap) {
        size_t cap = want < 32 ? 64 : want * 2;
        SHL_TRY(shl_heap_grow(&p->spans, p->cap, cap, sizeof(*p->spans)));
        p->cap = cap;
    }
    return SHL_OK;
}

/* The first span that ends behind `at`. */
static size_t
first_behind(const shl_cuda_pending *p, size_t at)
{
    size_t lo = 0, hi = p->n;
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        if (p->spans[mid].end <= at) {
            lo = mid + 1;
        } else {
            hi = mid;
        }
    }
    return lo;
}

static void
insert(shl_cuda_pending *p, size_t at, shl_cuda_span s)
{
    SHL_ASSERT(p->n < p->cap);
    memmove(&p->spans[at + 1], &p->spans[at], (p->n - at) * sizeof(s));
    p->spans[at] = s;
    p->n++;
}

static void
drop(shl_cuda_pending *p, size_t at, size_t count)
{
    memmove(&p->spans[at], &p->spans[at + count], (p->n - at - count) * sizeof(*p->spans));
    p->n -= count;
}

static void
raise(uint64_t need[SHL_STREAM_KIND_COUNT], const uint64_t seq[SHL_STREAM_KIND_COUNT])
{
    for (int k = 0; k < SHL_STREAM_KIND_COUNT; k++) {
        need[k] = seq[k] > need[k] ? seq[k] : need[k];
    }
}

static void
join_neighbours(shl_cuda_pending *p)
{
    size_t kept = 0;
    for (size_t i = 1; i < p->n; i++) {
        shl_cuda_span *last = &p->spans[kept], *next = &p->spans[i];
        if (last->end == next->begin) {
            last->end = next->end;
            raise(last->seq, next->seq);
        } else {
            p->spans[++kept] = *next;
        }
    }
    p->n = kept + 1;
}

void
shl_cuda_pending_add(shl_cuda_pending *p, size_t begin, size_t end,
                     const uint64_t seq[SHL_STREAM_KIND_COUNT])
{
    shl_cuda_span s = {begin, end, {0}};
    size_t at = first_behind(p, begin);
    memcpy(s.seq, seq, sizeof(s.seq));
    SHL_ASSERT(p->live > 0 && (at == p->n || p->spans[at].begin >= end));
    p->live--;
    if (at < p->n && p->spans[at].begin == end &&
        memcmp(p->spans[at].seq, s.seq, sizeof(s.seq)) == 0) {
        s.end = p->spans[at].end;
        drop(p, at, 1);
    }
    if (at > 0 && p->spans[at - 1].end == begin &&
        memcmp(p->spans[at - 1].seq, s.seq, sizeof(s.seq)) == 0) {
        p->spans[at - 1].end = s.end;
        return;
    }
    insert(p, at, s);
    if (p->n > MANY) {
        join_neighbours(p);
    }
}

void
shl_cuda_pending_take(shl_cuda_pending *p, size_t begin, size_t end,
                      uint64_t need[SHL_STREAM_KIND_COUNT])
{
    size_t at = first_behind(p, begin), count = 0;
    p->live++;
    if (at < p->n && p->spans[at].begin < begin) {
        shl_cuda_span *s = &p->spans[at];
        raise(need, s->seq);
        if (s->end > end) {
            shl_cuda_span rest = *s;
            rest.begin = end;
            s->end = begin;
            insert(p, at + 1, rest);
            return;
        }
        s->end = begin;
        at++;
    }
    while (at + count < p->n && p->spans[at + count].end <= end) {
        raise(need, p->spans[at + count++].seq);
    }
    drop(p, at, count);
    if (at < p->n && p->spans[at].begin < end) {
        raise(need, p->spans[at].seq);
        p->spans[at].begin = end;
    }
}

/* kernels/device: the ledger: entries with owners, running sums per tier and tag, peaks taken at the
 * event that makes them. Every operation is O(tags). */
#include "kernels/device/ledger.h"

#include <string.h>

#include "kernels/base/heap.h"
#include "kernels/base/str.h"
#include "kernels/base/types.h"

#define N_LEAKS_NAMED 4

typedef struct entry {
    const char *owner; /* NULL: the slot is free */
    uint64_t owner_hash;
    size_t bytes;
    shl_tier tier;
    shl_tag tag;
    int64_t next_free; /* index of the next free slot, -1 none */
} entry;

struct shl_ledger {
    shl_ledger_tier tiers[SHL_TIER_COUNT];
    entry *entries;
    size_t n_entries, cap_entries;
    int64_t first_free;
    size_t n_live;
    int64_t fail_in; /* posts until the planned failure; -1 none */
    shl_mark mark;
    _Atomic uint32_t *shared_mark; /* or NULL */
    uint64_t trace;
    shl_ledger_event *events; /* NULL: no time line */
    size_t n_events, cap_events;
    int64_t n_seen; /* events since the time line started */
};

const char *
shl_tier_name(shl_tier tier)
{
    static const char *const names[SHL_TIER_COUNT] = {"device", "host", "nvme"};
    SHL_ASSERT((unsigned)tier < SHL_TIER_COUNT);
    return names[tier];
}

const char *
shl_tag_name(shl_tag tag)
{
    static const char *const names[SHL_TAG_COUNT] = {
        "param", "gather", "grad", "master", "optim", "act", "bucket", "staging", "work", "ckpt"};
    SHL_ASSERT((unsigned)tag < SHL_TAG_COUNT);
    return names[tag];
}

const char *
shl_mark_name(shl_mark mark)
{
    static const char *const names[SHL_MARK_COUNT] = {"init", "forward", "backward",
                                                      "step", "save",    "eval"};
    SHL_ASSERT((unsigned)mark < SHL_MARK_COUNT);
    return names[mark];
}

/* FNV-1a: owners are short. */
static uint64_t
hash_text(const char *text)
{
    uint64_t h = 0xcbf29ce484222325u;
    for (const char *p = text; *p != '\0'; p++) {
        h = (h ^ (unsigned char)*p) * 0x100000001b3u;
    }
    return h;
}

/* One step of an order-sensitive hash: a bijection of h for each v (the multiplier is the odd
 * golden-ratio constant of splitmix64; Steele et al., OOPSLA 2014). */
static uint64_t
mix(uint64_t h, uint64_t v)
{
    h = (h ^ v) * 0x9e3779b97f4a7c15u;
    return h ^ (h >> 32);
}

static void
copy_text(char *dst, size_t dst_bytes, const char *src)
{
    size_t n = strnlen(src, dst_bytes - 1);
    memcpy(dst, src, n);
    dst[n] = '\0';
}

shl_code
shl_ledger_open(shl_ledger **out)
{
    shl_ledger *l = NULL;
    *out = NULL;
    SHL_TRY(shl_heap_alloc(1, sizeof(*l), &l));
    l->first_free = -1;
    l->fail_in = -1;
    l->mark = SHL_MARK_INIT;
    *out = l;
    return SHL_OK;
}

/* The live entry with the most bytes below (bytes, index) of `above`: successive calls list the
 * entries from the largest. NULL when there is none left. */
static const entry *
largest_below(const shl_ledger *l, const entry *above)
{
    const entry *best = NULL;
    for (size_t i = 0; i < l->n_entries; i++) {
        const entry *e = &l->entries[i];
        bool below =
            above == NULL || e->bytes < above->bytes || (e->bytes == above->bytes && e > above);
        if (e->owner != NULL && below && (best == NULL || e->bytes > best->bytes)) {
            best = e;
        }
    }
    return best;
}

static shl_code
raise_leak(const shl_ledger *l)
{
    char text[480];
    size_t total = 0;
    for (int t = 0; t < SHL_TIER_COUNT; t++) {
        total += l->tiers[t].now_bytes;
    }
    const entry *e = NULL;
    text[0] = '\0';
    for (size_t i = 0; i < N_LEAKS_NAMED && (e = largest_below(l, e)) != NULL; i++) {
        size_t len = strlen(text);
        shl_strf(text + len, sizeof(text) - len, "%s%.72s holds %zu bytes of %s (%s)",
                 i == 0 ? "" : "; ", e->owner, e->bytes, shl_tag_name(e->tag),
                 shl_tier_name(e->tier));
    }
    SHL_RAISE(SHL_E_BUG, "%zu buffers with %zu bytes were never freed", l->n_live, total);
    return shl_err_because("%s", text);
}

shl_code
shl_ledger_close(shl_ledger **l_ptr)
{
    shl_ledger *l = *l_ptr;
    shl_code code = SHL_OK;
    if (l == NULL) {
        return SHL_OK;
    }
    if (l->n_live > 0) {
        code = raise_leak(l);
    }
    shl_heap_free(&l->entries);
    shl_heap_free(&l->events);
    shl_heap_free(l_ptr);
    return code;
}

void
shl_ledger_limit(shl_ledger *l, shl_tier tier, size_t limit_bytes)
{
    SHL_ASSERT((unsigned)tier < SHL_TIER_COUNT);
    l->tiers[tier].limit_bytes = limit_bytes;
}

void
shl_ledger_fail_at(shl_ledger *l, int64_t n)
{
    l->fail_in = n;
}

static void
raise_to(size_t *peak, size_t bytes)
{
    *peak = bytes > *peak ? bytes : *peak;
}

void
shl_ledger_set_mark(shl_ledger *l, shl_mark mark)
{
    SHL_ASSERT((unsigned)mark < SHL_MARK_COUNT);
    l->mark = mark;
    if (l->shared_mark != NULL) {
        atomic_store_explicit(l->shared_mark, (uint32_t)mark, memory_order_relaxed);
    }
    for (int t = 0; t < SHL_TIER_COUNT; t++) {
        shl_ledger_tier *tier = &l->tiers[t];
        raise_to(&tier->phase_peak_bytes[mark], tier->now_bytes);
        for (int g = 0; g < SHL_TAG_COUNT; g++) {
            raise_to(&tier->phase_tag_bytes[mark][g], tier->now_tag_bytes[g]);
        }
    }
}

void
shl_ledger_share_mark(shl_ledger *l, _Atomic uint32_t *word)
{
    l->shared_mark = word;
    if (word != NULL) {
        atomic_store_explicit(word, (uint32_t)l->mark, memory_order_relaxed);
    }
}

shl_mark
shl_ledger_get_mark(const shl_ledger *l)
{
    return l->mark;
}

static shl_code
raise_oom(const shl_ledger *l, shl_tier tier, shl_tag tag, size_t bytes, const char *owner)
{
    return SHL_RAISE(SHL_E_OOM, "out of %s memory in %s: %s asked for %zu bytes of %s",
                     shl_tier_name(tier), shl_mark_name(l->mark), owner, bytes, shl_tag_name(tag));
}

shl_code
shl_ledger_admit(const shl_ledger *l, shl_tier tier, shl_tag tag, size_t bytes, const char *owner)
{
    char held[400];
    SHL_ASSERT((unsigned)tier < SHL_TIER_COUNT && (unsigned)tag < SHL_TAG_COUNT && owner != NULL);
    const shl_ledger_tier *t = &l->tiers[tier];
    size_t limit = t->limit_bytes == 0 ? SIZE_MAX : t->limit_bytes;
    if (t->now_bytes <= limit && bytes <= limit - t->now_bytes) {
        return SHL_OK;
    }
    held[0] = '\0';
    for (int i = 0; i < SHL_TAG_COUNT; i++) {
        size_t len = strlen(held);
        if (t->now_tag_bytes[i] > 0) {
            shl_strf(held + len, sizeof(held) - len, "%s%s %zu", len == 0 ? ": " : ", ",
                     shl_tag_name((shl_tag)i), t->now_tag_bytes[i]);
        }
    }
    raise_oom(l, tier, tag, bytes, owner);
    shl_err_because("%zu bytes are held of a limit of %zu (%zu left)%s", t->now_bytes, limit,
                    t->now_bytes < limit ? limit - t->now_bytes : 0, held);
    return shl_err_advice("a larger limit, more ranks, a strategy that shards more, or a smaller "
                          "batch");
}

/* A slot of the entry table, from the free list or the end. */
static shl_code
new_slot(shl_ledger *l, size_t *index)
{
    if (l->first_free >= 0) {
        *index = (size_t)l->first_free;
        l->first_free = l->entries[*index].next_free;
        return SHL_OK;
    }
    if (l->n_entries == l->cap_entries) {
        size_t cap = l->cap_entries == 0 ? 64 : l->cap_entries * 2;
        SHL_TRY(shl_heap_grow(&l->entries, l->cap_entries, cap, sizeof(entry)));
        l->cap_entries = cap;
    }
    *index = l->n_entries++;
    return SHL_OK;
}

static void
note_event(shl_ledger *l, const entry *e, bool allocates)
{
    uint64_t head = (uint64_t)allocates | (uint64_t)e->tier << 8 | (uint64_t)e->tag << 16 |
                    (uint64_t)l->mark << 24;
    l->trace = mix(mix(mix(l->trace, head), e->bytes), e->owner_hash);
    if (l->events == NULL) {
        return;
    }
    int64_t at = l->n_seen++;
    if (l->n_events == l->cap_events) {
        return;
    }
    shl_ledger_event *ev = &l->events[l->n_events++];
    ev->at = at;
    ev->delta_bytes = allocates ? (int64_t)e->bytes : -(int64_t)e->bytes;
    ev->tier = e->tier;
    ev->tag = e->tag;
    ev->mark = l->mark;
    ev->total_bytes = l->tiers[e->tier].now_bytes;
    copy_text(ev->owner, sizeof(ev->owner), e->owner);
}

static void
raise_peaks(shl_ledger *l, const entry *e)
{
    shl_ledger_tier *t = &l->tiers[e->tier];
    raise_to(&t->peak_tag_bytes[e->tag], t->now_tag_bytes[e->tag]);
    raise_to(&t->phase_peak_bytes[l->mark], t->now_bytes);
    raise_to(&t->phase_tag_bytes[l->mark][e->tag], t->now_tag_bytes[e->tag]);
    /* Strictly greater: the snapshot is of the first moment of the maximum. */
    if (t->now_bytes > t->peak_bytes) {
        t->peak_bytes = t->now_bytes;
        memcpy(t->at_peak_tag_bytes, t->now_tag_bytes, sizeof(t->at_peak_tag_bytes));
        t->peak_mark = l->mark;
        copy_text(t->peak_owner, sizeof(t->peak_owner), e->owner);
    }
}

shl_code
shl_ledger_post(shl_ledger *l, shl_tier tier, shl_tag tag, size_t bytes, const char *owner,
                int64_t *id)
{
    size_t index = 0;
    *id = 0;
    SHL_TRY(shl_ledger_admit(l, tier, tag, bytes, owner));
    if (l->fail_in > 0 && --l->fail_in == 0) {
        l->fail_in = -1;
        raise_oom(l, tier, tag, bytes, owner);
        return shl_err_because("this allocation was told to fail");
    }
    SHL_TRY(new_slot(l, &index));
    entry *e = &l->entries[index];
    *e = (entry){owner, hash_text(owner), bytes, tier, tag, -1};
    l->n_live++;
    l->tiers[tier].now_bytes += bytes;
    l->tiers[tier].now_tag_bytes[tag] += bytes;
    raise_peaks(l, e);
    note_event(l, e, true);
    *id = (int64_t)index + 1;
    return SHL_OK;
}

void
shl_ledger_drop(shl_ledger *l, int64_t id)
{
    SHL_ASSERT(id > 0 && (size_t)id <= l->n_entries);
    entry *e = &l->entries[id - 1];
    SHL_ASSERT(e->owner != NULL);
    shl_ledger_tier *t = &l->tiers[e->tier];
    t->now_bytes -= e->bytes;
    t->now_tag_bytes[e->tag] -= e->bytes;
    note_event(l, e, false);
    e->owner = NULL;
    e->next_free = l->first_free;
    l->first_free = id - 1;
    l->n_live--;
}

const shl_ledger_tier *
shl_ledger_get(const shl_ledger *l, shl_tier tier)
{
    SHL_ASSERT((unsigned)tier < SHL_TIER_COUNT);
    return &l->tiers[tier];
}

void
shl_ledger_reset_peaks(shl_ledger *l)
{
    for (int i = 0; i < SHL_TIER_COUNT; i++) {
        shl_ledger_tier *t = &l->tiers[i];
        t->peak_bytes = t->now_bytes;
        memcpy(t->peak_tag_bytes, t->now_tag_bytes, sizeof(t->peak_tag_bytes));
        memcpy(t->at_peak_tag_bytes, t->now_tag_bytes, sizeof(t->at_peak_tag_bytes));
        memset(t->phase_peak_bytes, 0, sizeof(t->phase_peak_bytes));
        t->phase_peak_bytes[l->mark] = t->now_bytes;
        memset(t->phase_tag_bytes, 0, sizeof(t->phase_tag_bytes));
        memcpy(t->phase_tag_bytes[l->mark], t->now_tag_bytes, sizeof(t->now_tag_bytes));
        t->peak_mark = l->mark;
        t->peak_owner[0] = '\0';
    }
}

shl_code
shl_ledger_timeline_start(shl_ledger *l, size_t cap)
{
    shl_heap_free(&l->events);
    l->n_events = 0;
    l->cap_events = 0;
    l->n_seen = 0;
    SHL_TRY(shl_heap_alloc(cap, sizeof(shl_ledger_event), &l->events));
    l->cap_events = cap;
    return SHL_OK;
}

size_t
shl_ledger_timeline_get(const shl_ledger *l, const shl_ledger_event **events)
{
    *events = l->events;
    return l->n_events;
}

int64_t
shl_ledger_timeline_dropped(const shl_ledger *l)
{
    return l->n_seen - (int64_t)l->n_events;
}

uint64_t
shl_ledger_trace_hash(const shl_ledger *l)
{
    return l->trace;
}

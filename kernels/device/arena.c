/* kernels/device: the arena: free spans in two sorted orders, one by place (to coalesce) and one by
 * size (best fit; among equal sizes the lowest address, so that equal calls give equal addresses). */
#include "kernels/device/arena.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "kernels/base/heap.h"
#include "kernels/base/types.h"
#include "kernels/device/sanitize.h"

/* Under AddressSanitizer a poisoned gap follows each buffer. */
#define RED_ZONE_BYTES ((size_t)(SHL_ASAN ? 64 : 0))

typedef struct span {
    size_t offset;
    size_t bytes;
} span;

struct shl_arena {
    char *base;
    size_t range_bytes;
    size_t align_bytes;
    size_t step_bytes;
    size_t usable_bytes;
    bool shared; /* peers read it: see shl_arena_share */
    shl_arena_grow_fn grow;
    void *ctx;
    span *by_place;
    span *by_size;
    size_t n_free;
    size_t n_live;
    size_t cap; /* of both arrays; at least n_live + 1, so that giving back never allocates */
};

static size_t
place_lower_bound(const shl_arena *a, size_t offset)
{
    size_t lo = 0, hi = a->n_free;
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        if (a->by_place[mid].offset < offset) {
            lo = mid + 1;
        } else {
            hi = mid;
        }
    }
    return lo;
}

/* First span that is not smaller than (bytes, offset). */
static size_t
size_lower_bound(const shl_arena *a, size_t bytes, size_t offset)
{
    size_t lo = 0, hi = a->n_free;
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        const span *m = &a->by_size[mid];
        if (m->bytes < bytes || (m->bytes == bytes && m->offset < offset)) {
            lo = mid + 1;
        } else {
            hi = mid;
        }
    }
    return lo;
}

static void
span_insert(span *list, size_t n, size_t at, span s)
{
    memmove(&list[at + 1], &list[at], (n - at) * sizeof(span));
    list[at] = s;
}

static void
span_remove(span *list, size_t n, size_t at)
{
    memmove(&list[at], &list[at + 1], (n - at - 1) * sizeof(span));
}

static void
free_insert(shl_arena *a, span s)
{
    SHL_ASSERT(a->n_free < a->cap);
    span_insert(a->by_place, a->n_free, place_lower_bound(a, s.offset), s);
    span_insert(a->by_size, a->n_free, size_lower_bound(a, s.bytes, s.offset), s);
    a->n_free++;
}

static void
free_remove(shl_arena *a, span s)
{
    span_remove(a->by_place, a->n_free, place_lower_bound(a, s.offset));
    span_remove(a->by_size, a->n_free, size_lower_bound(a, s.bytes, s.offset));
    a->n_free--;
}

/* Room in both arrays for `want` spans; on failure both stay as they were. */
static shl_code
room_for(shl_arena *a, size_t want)
{
    size_t cap = a->cap;
    span *place = NULL, *size = NULL;
    if (want <= cap) {
        return SHL_OK;
    }
    cap = cap < 32 ? 64 : cap * 2;
    SHL_TRY(shl_heap_alloc(cap, sizeof(span), &place));
    shl_code code = shl_heap_alloc(cap, sizeof(span), &size);
    if (code != SHL_OK) {
        shl_heap_free(&place);
        return shl_err_trace(code, __FILE__, __LINE__, __func__);
    }
    if (a->n_free > 0) {
        memcpy(place, a->by_place, a->n_free * sizeof(span));
        memcpy(size, a->by_size, a->n_free * sizeof(span));
    }
    shl_heap_free(&a->by_place);
    shl_heap_free(&a->by_size);
    a->by_place = place;
    a->by_size = size;
    a->cap = cap;
    return SHL_OK;
}

shl_code
shl_arena_reserve(size_t most_bytes, size_t least_bytes, void **base, size_t *bytes)
{
    void *at = MAP_FAILED;
    size_t n = most_bytes;
    *base = NULL;
    while (n >= least_bytes) {
        at = mmap(NULL, n, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (at != MAP_FAILED) {
            *base = at;
            *bytes = n;
            return SHL_OK;
        }
        n /= 2;
    }
    int err = errno;
    SHL_RAISE(SHL_E_SYSTEM, "cannot reserve an address range of %zu bytes", least_bytes);
    return shl_err_because("mmap: %s", strerror(err));
}

shl_code
shl_arena_open(void *base, size_t range_bytes, size_t align_bytes, size_t step_bytes,
               shl_arena_grow_fn grow, void *ctx, shl_arena **out)
{
    shl_arena *a = NULL;
    shl_code code = SHL_OK;
    *out = NULL;
    SHL_ASSERT(align_bytes > 0 && (align_bytes & (align_bytes - 1)) == 0 && step_bytes > 0);
    SHL_ASSERT((uintptr_t)base % align_bytes == 0 && range_bytes > 0);
    SHL_TRY(shl_heap_alloc(1, sizeof(*a), &a));
    a->base = base;
    a->range_bytes = range_bytes - range_bytes % align_bytes;
    a->align_bytes = align_bytes;
    a->step_bytes = step_bytes;
    a->grow = grow;
    a->ctx = ctx;
    SHL_TRY_TO(code, out, room_for(a, 1));
    if (a->range_bytes > 0) {
        free_insert(a, (span){0, a->range_bytes});
    }
    *out = a;
    return SHL_OK;
out:
    shl_arena_close(&a);
    return code;
}

void
shl_arena_close(shl_arena **a_ptr)
{
    shl_arena *a = *a_ptr;
    if (a == NULL) {
        return;
    }
    if (a->grow != NULL) {
        SHL_UNPOISON(a->base, a->usable_bytes);
    }
    shl_heap_free(&a->by_place);
    shl_heap_free(&a->by_size);
    shl_heap_free(a_ptr);
}

void
shl_arena_share(shl_arena *a)
{
    a->shared = true;
}

/* Bytes that a request occupies; 0 when it cannot fit any range. */
static size_t
occupied(const shl_arena *a, size_t bytes)
{
    size_t extra = RED_ZONE_BYTES + a->align_bytes - 1;
    if (bytes > a->range_bytes || extra > SIZE_MAX - bytes) {
        return 0;
    }
    return (bytes + extra) & ~(a->align_bytes - 1);
}

static shl_code
make_usable(shl_arena *a, size_t end)
{
    size_t next;
    if (end <= a->usable_bytes) {
        return SHL_OK;
    }
    /* The last step may be cut by the end of the range. */
    size_t rest = end % a->step_bytes;
    size_t pad = rest == 0 ? 0 : a->step_bytes - rest;
    next = pad > a->range_bytes - end ? a->range_bytes : end + pad;
    if (a->grow != NULL) {
        SHL_TRY(a->grow(a->ctx, a->base, a->usable_bytes, next));
        SHL_POISON(a->base + a->usable_bytes, next - a->usable_bytes);
    }
    a->usable_bytes = next;
    return SHL_OK;
}

shl_code
shl_arena_ready(shl_arena *a, size_t bytes)
{
    if (bytes > a->range_bytes) {
        SHL_RAISE(SHL_E_OOM, "no range of %zu bytes", bytes);
        return shl_err_because("the arena has %zu", a->range_bytes);
    }
    return make_usable(a, bytes);
}

shl_code
shl_arena_take(shl_arena *a, size_t bytes, void **out)
{
    size_t need = occupied(a, bytes);
    *out = NULL;
    SHL_ASSERT(bytes > 0);
    size_t at = need == 0 ? a->n_free : size_lower_bound(a, need, 0);
    if (at == a->n_free) {
        size_t largest = a->n_free > 0 ? a->by_size[a->n_free - 1].bytes : 0;
        SHL_RAISE(SHL_E_OOM, "no free range of %zu bytes in the arena", bytes);
        return shl_err_because("the largest of %zu free ranges has %zu of %zu bytes", a->n_free,
                               largest, a->range_bytes);
    }
    /* Each live block may leave one span behind, and one more may lie at the end. */
    SHL_TRY(room_for(a, a->n_live + 2));
    span s = a->by_size[at];
    SHL_TRY(make_usable(a, s.offset + need));
    free_remove(a, s);
    if (s.bytes > need) {
        free_insert(a, (span){s.offset + need, s.bytes - need});
    }
    a->n_live++;
    if (a->grow != NULL) {
        SHL_UNPOISON(a->base + s.offset, bytes);
    }
    *out = a->base + s.offset;
    return SHL_OK;
}

void
shl_arena_give(shl_arena *a, void *data, size_t bytes)
{
    SHL_ASSERT(bytes > 0 && shl_arena_owns(a, data) && a->n_live > 0);
    span s = {(size_t)((char *)data - a->base), occupied(a, bytes)};
    size_t at = place_lower_bound(a, s.offset);
    if (a->grow != NULL && !a->shared) {
        SHL_POISON(data, s.bytes);
    }
    /* A neighbour that overlaps means a block given twice, or with another size. */
    if (at < a->n_free) {
        span right = a->by_place[at];
        SHL_ASSERT(s.bytes > 0 && s.offset + s.bytes <= right.offset);
        if (s.offset + s.bytes == right.offset) {
            free_remove(a, right);
            s.bytes += right.bytes;
        }
    }
    if (at > 0) {
        span left = a->by_place[at - 1];
        SHL_ASSERT(left.offset + left.bytes <= s.offset);
        if (left.offset + left.bytes == s.offset) {
            free_remove(a, left);
            s.offset = left.offset;
            s.bytes += left.bytes;
        }
    }
    free_insert(a, s);
    a->n_live--;
}

bool
shl_arena_owns(const shl_arena *a, const void *data)
{
    uintptr_t p = (uintptr_t)data, base = (uintptr_t)a->base;
    return p >= base && p - base < a->range_bytes;
}

size_t
shl_arena_reserved_bytes(const shl_arena *a)
{
    return a->usable_bytes;
}

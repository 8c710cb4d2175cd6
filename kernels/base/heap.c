/* kernels/base: the counted host heap. The only file that calls the allocator of the C library, so
 * that a leak is a number and every failure can be planned. */
#include "kernels/base/heap.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

static _Atomic int64_t live_blocks;
static _Atomic int64_t fail_countdown = -1; /* <= 0: off */

/* Pointers of any type arrive as void *: their bytes are copied, which no aliasing rule forbids. */
static void *
load_ptr(const void *ptr_to_ptr)
{
    void *p;
    memcpy(&p, ptr_to_ptr, sizeof(p));
    return p;
}

static void
store_ptr(void *ptr_to_ptr, void *p)
{
    memcpy(ptr_to_ptr, &p, sizeof(p));
}

static bool
planned_failure_is_due(void)
{
    if (atomic_load(&fail_countdown) <= 0) {
        return false;
    }
    return atomic_fetch_sub(&fail_countdown, 1) == 1;
}

static shl_code
raise_exhausted(size_t n, size_t size)
{
    SHL_RAISE(SHL_E_HEAP, "host heap exhausted: %zu x %zu bytes", n, size);
    return shl_err_because("the allocator refused, with %lld blocks live in this process",
                           (long long)atomic_load(&live_blocks));
}

shl_code
shl_heap_alloc(size_t n, size_t size, void *out_ptr)
{
    store_ptr(out_ptr, NULL);
    /* An empty array still gets an address of its own: NULL means failure only. */
    size_t bytes;
    bool fits = !__builtin_mul_overflow(n, size, &bytes) && !planned_failure_is_due();
    void *p = fits ? calloc(1, bytes > 0 ? bytes : 1) : NULL;
    if (!p) {
        return raise_exhausted(n, size);
    }
    atomic_fetch_add(&live_blocks, 1);
    store_ptr(out_ptr, p);
    return SHL_OK;
}

shl_code
shl_heap_grow(void *ptr_to_ptr, size_t old_n, size_t new_n, size_t size)
{
    void *old = load_ptr(ptr_to_ptr);
    size_t bytes;
    if (__builtin_mul_overflow(new_n, size, &bytes) || planned_failure_is_due()) {
        return raise_exhausted(new_n, size);
    }
    char *p = realloc(old, bytes > 0 ? bytes : 1);
    if (!p) {
        return raise_exhausted(new_n, size);
    }
    size_t kept = old ? old_n * size : 0;
    if (bytes > kept) {
        memset(p + kept, 0, bytes - kept);
    }
    if (!old) {
        atomic_fetch_add(&live_blocks, 1);
    }
    store_ptr(ptr_to_ptr, p);
    return SHL_OK;
}

shl_code
shl_heap_strdup(const char *s, char **out)
{
    size_t bytes = strlen(s) + 1;
    SHL_TRY(shl_heap_alloc(bytes, 1, out));
    memcpy(*out, s, bytes);
    return SHL_OK;
}

void
shl_heap_free(void *ptr_to_ptr)
{
    void *p = load_ptr(ptr_to_ptr);
    if (p) {
        atomic_fetch_sub(&live_blocks, 1);
        free(p);
        store_ptr(ptr_to_ptr, NULL);
    }
}

int64_t
shl_heap_live_blocks(void)
{
    return atomic_load(&live_blocks);
}

void
shl_heap_fail_at(int64_t n)
{
    atomic_store(&fail_countdown, n);
}

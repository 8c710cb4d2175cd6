/* kernels/base: the counted host heap for small bookkeeping objects (names, tables, schedules).
 * Tensor bytes never come from here: they come from a device and its ledger. */
#ifndef SHL_BASE_HEAP_H
#define SHL_BASE_HEAP_H

#include <stddef.h>
#include <stdint.h>

#include "kernels/base/err.h"

/* n * size zeroed bytes in *out. Owner: caller, shl_heap_free. Errors: SHL_E_HEAP (also when a
 * planned failure is due, or n * size overflows); *out NULL then. Local, any thread. */
shl_code shl_heap_alloc(size_t n, size_t size, void *out_ptr) SHL_MUST_USE;

/* Grows *ptr (may be NULL) from old_n to new_n elements of `size` bytes; new elements are zero. On
 * failure *ptr is untouched. */
shl_code shl_heap_grow(void *ptr_to_ptr, size_t old_n, size_t new_n, size_t size) SHL_MUST_USE;

/* A copy of s. Owner: caller. */
shl_code shl_heap_strdup(const char *s, char **out) SHL_MUST_USE;

/* Frees *ptr_to_ptr and nulls it; NULL is fine. */
void shl_heap_free(void *ptr_to_ptr);

/* Blocks now allocated in this process: 0 at a clean end. Tests compare before and after. */
int64_t shl_heap_live_blocks(void);

/* The n-th allocation from now (1 = the next one) in this process fails once, -1 switches off. */
void shl_heap_fail_at(int64_t n);

#endif

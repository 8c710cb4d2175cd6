/* kernels/device: an arena: best-fit sub-allocation with coalescing over one reserved address range
 * that grows in place, so that buffers of a periodic schedule find warm pages. Not thread-safe: one
 * arena belongs to one rank. */
#ifndef SHL_DEVICE_ARENA_H
#define SHL_DEVICE_ARENA_H

#include <stdbool.h>
#include <stddef.h>

#include "kernels/base/err.h"

typedef struct shl_arena shl_arena;

/* Reserves addresses for an arena, not memory: most_bytes of them, or by halves what the system has, at
 * least least_bytes. The caller's, munmap(*base, *bytes). Errors: SHL_E_SYSTEM. */
shl_code shl_arena_reserve(size_t most_bytes, size_t least_bytes, void **base,
                           size_t *bytes) SHL_MUST_USE;

/* Makes pages [old_bytes, new_bytes) of the range usable. ctx as given to shl_arena_open. */
typedef shl_code (*shl_arena_grow_fn)(void *ctx, void *base, size_t old_bytes, size_t new_bytes);

/* An arena over [base, base + range_bytes), nothing of it usable yet; grow is called before first
 * use of a part (steps of `step_bytes`, a multiple of the page). With grow NULL addresses are
 * handed out but never made usable (virtual). base stays the caller's. Owner: caller. */
shl_code shl_arena_open(void *base, size_t range_bytes, size_t align_bytes, size_t step_bytes,
                        shl_arena_grow_fn grow, void *ctx, shl_arena **out) SHL_MUST_USE;
void shl_arena_close(shl_arena **a);

/* Says that others read the range too: peers of a rank that gave up may still be reading what it has
 * given back (their result is discarded), so AddressSanitizer is not told that it is gone. Call
 * right after open. */
void shl_arena_share(shl_arena *a);

/* Errors: SHL_E_OOM when the range is exhausted or grow failed. bytes > 0. */
shl_code shl_arena_take(shl_arena *a, size_t bytes, void **out) SHL_MUST_USE;
/* Makes the first `bytes` of the range usable now, so that later takes there need nothing of the
 * system. Errors: as take. */
shl_code shl_arena_ready(shl_arena *a, size_t bytes) SHL_MUST_USE;
/* bytes as taken. */
void shl_arena_give(shl_arena *a, void *data, size_t bytes);

/* Whether an address lies in the range. */
bool shl_arena_owns(const shl_arena *a, const void *data);
/* High-water mark of the usable part. */
size_t shl_arena_reserved_bytes(const shl_arena *a);

#endif

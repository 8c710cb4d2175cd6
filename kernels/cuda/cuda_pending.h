/* kernels/cuda: free ranges of an arena that the device may still be using: for each, how far every
 * stream must have come before the next owner touches it. */
#ifndef SHL_CUDA_PENDING_H
#define SHL_CUDA_PENDING_H

#include "kernels/device/device.h"

typedef struct shl_cuda_span {
    size_t begin, end; /* bytes of the range */
    uint64_t seq[SHL_STREAM_KIND_COUNT];
} shl_cuda_span;

/* Spans in order, apart from each other. Zero-initialised = empty. */
typedef struct shl_cuda_pending {
    shl_cuda_span *spans;
    size_t n, cap;
    size_t live; /* blocks taken and not yet given back */
} shl_cuda_pending;

/* Forgets everything. */
void shl_cuda_pending_fini(shl_cuda_pending *p);

/* Room for what the next take may split and for every block that is out, so that add cannot fail.
 * Errors: SHL_E_HEAP. */
shl_code shl_cuda_pending_room(shl_cuda_pending *p) SHL_MUST_USE;

/* [begin, end) was given back; a neighbour that waits for the same joins it, and when there are very
 * many, neighbours of any kind do. It overlaps nothing that is there. */
void shl_cuda_pending_add(shl_cuda_pending *p, size_t begin, size_t end,
                          const uint64_t seq[SHL_STREAM_KIND_COUNT]);

/* [begin, end) has a new owner: raises need to what its parts wait for and forgets them. Behind
 * shl_cuda_pending_room. */
void shl_cuda_pending_take(shl_cuda_pending *p, size_t begin, size_t end,
                           uint64_t need[SHL_STREAM_KIND_COUNT]);

#endif

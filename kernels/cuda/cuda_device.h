/* kernels/cuda: the device as its own room and its peers see it: sizes that the virtual device that
 * stands for it shares, and what others queue work with. */
#ifndef SHL_CUDA_DEVICE_H
#define SHL_CUDA_DEVICE_H

#include "kernels/cuda/cuda_backend.h"

/* Every buffer starts at a multiple; arenas grow by whole steps. */
#define SHL_CUDA_ALIGN_BYTES ((size_t)512)
#define SHL_CUDA_STEP_BYTES ((size_t)2 << 20)
/* Workspace of libraries on each device: fixed, beside the ledger. */
#define SHL_CUDA_POOL_BYTES ((size_t)32 << 20)

/* The table behind a cuda device, what it is, and its number. Borrowed. */
const shl_cuda_backend *shl_cuda_device_table(const shl_device *d);
const shl_cuda_info *shl_cuda_device_info(const shl_device *d);
int shl_cuda_device_index(const shl_device *d);

#endif

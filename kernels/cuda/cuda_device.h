/* kernels/cuda: sizes of the device, which the virtual device that stands for it shares. */
#ifndef SHL_CUDA_DEVICE_H
#define SHL_CUDA_DEVICE_H

#include "kernels/cuda/cuda_backend.h"

/* Every buffer starts at a multiple; arenas grow by whole steps. */
#define SHL_CUDA_ALIGN_BYTES ((size_t)512)

/* Rows at multiples of 16 bytes let a thread move 16 at once and are a condition of the library's fast
 * products; at multiples of a cache line, 128, no two rows share one, so that a warp's access touches as
 * few lines as it can. For 50257 columns that is 50304: 0.1 % more memory. */
#define SHL_CUDA_ROW_ALIGN_BYTES ((size_t)128)
#define SHL_CUDA_STEP_BYTES ((size_t)2 << 20)
/* Workspace of libraries on each device: fixed, beside the ledger. */
#define SHL_CUDA_POOL_BYTES ((size_t)32 << 20)

#endif

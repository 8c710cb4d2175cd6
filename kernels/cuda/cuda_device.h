/* kernels/cuda: sizes of the device, which the virtual device that stands for it shares. */
#ifndef SHL_CUDA_DEVICE_H
#define SHL_CUDA_DEVICE_H

#include "kernels/cuda/cuda_backend.h"

/* Every buffer starts at a multiple; arenas grow by whole steps. */
#define SHL_CUDA_ALIGN_BYTES ((size_t)512)
#define SHL_CUDA_STEP_BYTES ((size_t)2 << 20)
/* Workspace of libraries on each device: fixed, beside the ledger. */
#define SHL_CUDA_POOL_BYTES ((size_t)32 << 20)

#endif

/* kernels/cuda/object: private to the runtime half of the object. */
#ifndef SHL_CUDA_OBJECT_H
#define SHL_CUDA_OBJECT_H

#include "kernels/cuda/cuda_backend.h"

/* cuda_object_memory.c: reserve, map and unreserve of the table (kernels/cuda/cuda_backend.h). */
int shl_cuda_object_reserve(int device, size_t bytes, void **base, size_t *granule_bytes);
int shl_cuda_object_map(int device, void *base, size_t from_bytes, size_t to_bytes);
int shl_cuda_object_unreserve(void *base, size_t bytes, size_t mapped_bytes);

/* The entry of the object: SHL_CUDA_ENTRY. */
const shl_cuda_backend *shl_cuda_backend_entry(uint32_t abi);

#endif

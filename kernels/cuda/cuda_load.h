/* kernels/cuda: finds the shared object that holds everything which needs CUDA. */
#ifndef SHL_CUDA_LOAD_H
#define SHL_CUDA_LOAD_H

#include "kernels/base/str.h"
#include "kernels/cuda/cuda_backend.h"

#define SHL_CUDA_OBJECT_NAME "libshardlab-cuda.so"

/* The table of the object, loaded once per process: from SHL_CUDA_OBJECT when that is set, else
 * beside the program, beside libshardlab, and in lib/ and ../lib/ of either. Static storage. Errors:
 * SHL_E_USAGE when it is nowhere (every path looked at), SHL_E_SYSTEM when it does not load (what the
 * loader misses) or is of another build. Local, any thread. */
shl_code shl_cuda_load(const shl_cuda_backend **out) SHL_MUST_USE;

/* The paths that shl_cuda_load looks at, in order, one per line. */
void shl_cuda_load_paths(shl_str *out);

#endif

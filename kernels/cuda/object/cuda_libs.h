/* kernels/cuda/object: what libs_open of the backend's table gives out and a launch carries: one
 * handle for each library, with what is remembered beside it. Plain C. */
#ifndef SHL_CUDA_LIBS_H
#define SHL_CUDA_LIBS_H

#include "kernels/cuda/cuda_backend.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Statuses of the libraries as numbers of the backend's table: these and the library's own. */
#define SHL_CUDA_STATUS_BLAS 20000
#define SHL_CUDA_STATUS_DNN 30000

typedef struct shl_cuda_blas shl_cuda_blas;
typedef struct shl_cuda_dnn shl_cuda_dnn;

typedef struct shl_cuda_libs {
    shl_cuda_blas *blas;
    shl_cuda_dnn *dnn; /* opened by who first asks */
} shl_cuda_libs;

/* A handle of cuBLASLt for the current device and the algorithms that it has named so far, in
 * `room`: blas_bytes of zeros, aligned for any type, which the caller gives back after close.
 * One thread at a time. Result: a status. */
size_t shl_cuda_blas_bytes(void);
int shl_cuda_blas_open(void *room, shl_cuda_blas **out);
void shl_cuda_blas_close(shl_cuda_blas *blas);
/* Text of a status from SHL_CUDA_STATUS_BLAS on; static storage. Any thread. */
const char *shl_cuda_blas_text(int status);
/* Version of the library as it counts: 130002 is 13.0.2. */
size_t shl_cuda_blas_version(void);

/* The same of cuDNN, with the plans of the attention shapes seen so far: dnn_bytes of zeros from libs_open,
 * which the caller gives back after close. Attention by cuDNN loads the library by name when it is first
 * asked for, and gives SHL_CUDA_STATUS_DNN_LIBRARY where there is none. */
#define SHL_CUDA_STATUS_DNN_LIBRARY (SHL_CUDA_STATUS_DNN + 9000)
size_t shl_cuda_dnn_bytes(void);
void shl_cuda_dnn_close(shl_cuda_dnn *dnn);
/* Text of a status from SHL_CUDA_STATUS_DNN on; static storage. Any thread. */
const char *shl_cuda_dnn_text(int status);
/* Version of the library as it counts (91900 is 9.19.0); 0 unless it is loaded. */
size_t shl_cuda_dnn_version(void);

/* Attention forward by cuDNN: bf16, no dropout, tensors at multiples of 16 bytes. Saves the same lse as the own
 * kernel, whose backward goes on from it. Result: a status, of this file where the library cannot. */
int shl_cuda_sdpa_forward(const shl_cuda_launch *l, const shl_attention_args *a);

#ifdef __cplusplus
}
#endif

#endif

/* checkpoints: weights as Hugging Face publishes them: one safetensors file, or several with an index.
 * Read by ranges with plain reads; a file that breaks the format is refused, never trusted. */
#ifndef SHL_CKPT_SAFETENSORS_H
#define SHL_CKPT_SAFETENSORS_H

#include "kernels/base/err.h"
#include "kernels/base/types.h"

/* The format's own limit on a header. */
#define SHL_SAFETENSORS_HEADER_MAX_BYTES INT64_C(100000000)
#define SHL_SAFETENSORS_MAX_DIMS 8

typedef struct shl_safetensors shl_safetensors;

/* One tensor as the files have it. Strings borrowed from the reader. */
typedef struct shl_safetensor {
    const char *name;  /* as in the file */
    const char *key;   /* without "transformer." or "model." in front */
    const char *dtype; /* "F32", "BF16", ... */
    const char *file;  /* its file's name inside the folder */
    int n_dims;
    int64_t dims[SHL_SAFETENSORS_MAX_DIMS];
    int64_t elems, bytes;
} shl_safetensor;

/* path: a folder with model.safetensors or model.safetensors.index.json, or one of these files. Headers
 * of all files are read and checked; tensor bytes are not. Nothing is mapped, so a file that
 * shrinks later is an error and no fault. Owner: caller. Errors: SHL_E_IO missing or unreadable (says
 * what is there), SHL_E_VERIFY not as the format wants it (file, tensor, value and limit), SHL_E_HEAP.
 * Local. */
shl_code shl_safetensors_open(const char *path, shl_safetensors **out) SHL_MUST_USE;
void shl_safetensors_close(shl_safetensors **r);

/* The tensors in order of their keys. */
int shl_safetensors_count(const shl_safetensors *r);
shl_safetensor shl_safetensors_at(const shl_safetensors *r, int i);

/* Number of the tensor by name, with or without "transformer." or "model." on either side; -1. */
int shl_safetensors_find(const shl_safetensors *r, const char *name);

/* Elements [begin, end) of tensor i into host memory as dtype (fp32, bf16, fp16). F32, BF16 and F16 are
 * read; 16 bits widen exactly, narrowing rounds to the nearest even. Errors: SHL_E_CONFIG another dtype
 * in the file, SHL_E_BUG a range that is not in the tensor, SHL_E_VERIFY the file has changed since
 * open, SHL_E_IO. */
shl_code shl_safetensors_read(shl_safetensors *r, int i, int64_t begin, int64_t end,
                              shl_dtype dtype, void *out) SHL_MUST_USE;

/* Bytes of tensors read so far; headers are not counted. */
int64_t shl_safetensors_bytes_read(const shl_safetensors *r);

#endif

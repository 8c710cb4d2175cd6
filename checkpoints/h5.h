/* checkpoints: what the room wants of HDF5; only h5*.c know the library. Handles are guarded, every
 * call runs under one process-wide mutex, the library's error printing is off and its text goes into
 * our `because`. */
#ifndef SHL_CKPT_H5_H
#define SHL_CKPT_H5_H

#include "kernels/device/tensor.h"

typedef struct shl_h5 shl_h5;

/* What the root group's attributes say about a shard file. */
typedef struct shl_h5_head {
    int64_t version, step, rank, world;
} shl_h5_head;

/* One dataset: elements [begin, end) of tensor `name`, `offset` bytes into the file. */
typedef struct shl_h5_range {
    const char *kind, *name;
    int n_dims;
    const int64_t *dims;
    int64_t begin, end;
    int64_t offset;
} shl_h5_range;

typedef shl_code (*shl_h5_fn)(void *ctx, const shl_h5_range *range);

/* A new file in the place of what the path names. Owner: caller, ended by _close or
 * _drop. Errors: SHL_E_IO. */
shl_code shl_h5_create(const char *path, const shl_h5_head *head, shl_h5 **out) SHL_MUST_USE;

/* Makes /<kind>/<name>/<begin>-<end> with its attributes and gives the place of its bytes in the
 * file. The bytes themselves are written there by the caller, so that a full disk meets our own
 * write calls. Errors: SHL_E_IO. */
shl_code shl_h5_add(shl_h5 *f, const shl_h5_range *range, int64_t *offset) SHL_MUST_USE;

/* Bytes that the file needs so far, metadata still in memory included. */
shl_code shl_h5_end(const shl_h5 *f, int64_t *bytes) SHL_MUST_USE;

/* Ends the file; *bytes is its exact length (the file may be longer by what was reserved). *f is
 * gone in any case. */
shl_code shl_h5_close(shl_h5 **f, int64_t *bytes) SHL_MUST_USE;
void shl_h5_drop(shl_h5 **f);

/* Reads the head and calls fn for each dataset in name order. fn must not call this room. Errors:
 * SHL_E_IO unreadable, SHL_E_VERIFY not as this room writes it, and what fn returns. */
shl_code shl_h5_scan(const char *path, shl_h5_head *head, shl_h5_fn fn, void *ctx) SHL_MUST_USE;

/* A view: a file without elements whose datasets are whole tensors, put together from the datasets
 * of shard files beside it. It is built in memory. */
typedef struct shl_h5_view shl_h5_view;

/* Elements [begin, end) of a tensor lie in the shard file `file`, as shl_h5_add put them there. */
typedef struct shl_h5_piece {
    const char *file;
    int64_t begin, end;
} shl_h5_piece;

/* Owner: caller, ended by _image or _drop. path is for messages. Errors: SHL_E_IO. */
shl_code shl_h5_view_open(const char *path, const shl_h5_head *head,
                          shl_h5_view **out) SHL_MUST_USE;

/* /<kind>/<name> in its whole shape. The pieces cover the tensor; an element that none covers, or
 * whose file is missing when it is read, is NaN. */
shl_code shl_h5_view_add(shl_h5_view *v, const char *kind, const char *name, int n_dims,
                         const int64_t *dims, const shl_h5_piece *pieces,
                         int n_pieces) SHL_MUST_USE;

/* The bytes of the file; *v is gone in any case. Owner: caller, shl_heap_free. */
shl_code shl_h5_view_image(shl_h5_view **v, char **image, size_t *bytes) SHL_MUST_USE;
void shl_h5_view_drop(shl_h5_view **v);

#endif

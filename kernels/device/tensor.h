/* kernels/device: two nouns for two rights: shl_buf owns device bytes, shl_tensor looks at them;
 * shl_shard is a tensor and its place in a whole. All are plain values. */
#ifndef SHL_DEVICE_TENSOR_H
#define SHL_DEVICE_TENSOR_H

#include "kernels/base/types.h"
#include "kernels/device/ledger.h"

#define SHL_MAX_DIMS 4

/* Bytes of a device. data is NULL when empty. Made by shl_device_alloc only. `data` of a virtual
 * device is an address in a no-access range: never dereference outside a device's own room. */
typedef struct shl_buf {
    void *data;
    size_t bytes;
    int64_t ledger_id;
    shl_tier tier;
    bool comm;   /* reachable by the communicator */
    bool pinned; /* its pages are locked */
} shl_buf;

/* A look at row-major, contiguous elements. No free. */
typedef struct shl_tensor {
    void *data;
    shl_dtype dtype;
    int n_dims;
    int64_t dims[SHL_MAX_DIMS];
} shl_tensor;

/* A flat element range [begin, end) of the row-major global tensor `name`, held in `local`
 * (1-dimensional, end - begin elements). The same range is held by `n_replicas` ranks, of which
 * this one is number `replica`. name, dims borrowed from the model. */
typedef struct shl_shard {
    const char *name;
    const char *kind; /* "param", "opt/m", "opt/v", ... */
    int n_dims;
    const int64_t *dims;
    int64_t begin, end;
    int replica, n_replicas;
    shl_tensor local;
} shl_shard;

static inline shl_tensor
shl_tensor_1d(void *data, shl_dtype dtype, int64_t n)
{
    shl_tensor t = {data, dtype, 1, {n, 0, 0, 0}};
    return t;
}

static inline shl_tensor
shl_tensor_2d(void *data, shl_dtype dtype, int64_t rows, int64_t cols)
{
    shl_tensor t = {data, dtype, 2, {rows, cols, 0, 0}};
    return t;
}

/* Product of dims; bytes of the view. */
int64_t shl_tensor_elems(const shl_tensor *t);
size_t shl_tensor_bytes(const shl_tensor *t);

/* Address of element `index` of a flat view of dtype. No bounds check. */
static inline void *
shl_elem_ptr(void *base, shl_dtype dtype, int64_t index)
{
    return (char *)base + (size_t)index * shl_dtype_bytes(dtype);
}

#endif

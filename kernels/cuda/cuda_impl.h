/* kernels/cuda: private to the room: one device, its streams and its memory.
 *
 * An event is {stream, number of pieces of work queued by then}; a ring of the object's events per
 * stream holds the numbers that were recorded. An older number is answered by the next recorded one:
 * later than asked for, never earlier.
 *
 * Addresses are given back at schedule points of the host, ahead of the device: a list remembers for
 * each free range what must have passed before its next owner may touch it (cuda_pending.h). When
 * such a range is taken, every stream waits for that before its next piece of work. */
#ifndef SHL_CUDA_IMPL_H
#define SHL_CUDA_IMPL_H

#include <pthread.h>
#include <stdalign.h>

#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/cuda_pending.h"
#include "kernels/device/arena.h"

#define CUDA_RING 128u       /* recorded events per stream */
#define CUDA_CALLS 64u       /* host calls in flight per stream */
#define CUDA_CALL_BYTES 1024 /* the largest arguments of an op fit */
#define CUDA_SLOTS 2         /* page-locked buffers of uploads */
#define CUDA_SLOT_BYTES ((size_t)2 << 20)

typedef struct cuda_mark {
    uint64_t seq; /* 0: unused */
    void *event;
} cuda_mark;

struct cuda_stream;

/* A host call on its way. Read by the driver's thread until its place has passed. */
typedef struct cuda_call {
    struct cuda_stream *stream;
    uint64_t seq;
    shl_stream_fn fn;
    alignas(max_align_t) unsigned char arg[CUDA_CALL_BYTES];
} cuda_call;

typedef struct cuda_stream {
    void *stream;
    uint64_t queued;                        /* pieces of work */
    uint64_t passed;                        /* known to be done */
    uint64_t behind[SHL_STREAM_KIND_COUNT]; /* of each other stream: what this one waits for */
    cuda_mark ring[CUDA_RING];
    unsigned newest; /* its place in the ring */
    cuda_call *calls;
    uint64_t n_calls;
    void *bounce;          /* page-locked, of copies with host memory that is not; NULL: none yet */
    pthread_mutex_t mutex; /* of the two below: written by the driver's thread */
    uint64_t failed_seq;   /* 0: no failure yet */
    shl_err failure;
} cuda_stream;

/* One arena over a reserved range, or over the block of another source. */
typedef struct cuda_range {
    shl_device *device;
    void *base; /* NULL: not reserved */
    size_t range_bytes, mapped_bytes;
    size_t block_bytes; /* of such a block, at base; 0: the range is our own */
    shl_arena *arena;
    shl_cuda_pending pending;
} cuda_range;

enum { LOCK_NONE = 0, LOCK_BEGINS, LOCK_GOES_ON };

typedef enum cuda_place { CUDA_PLAIN = 0, CUDA_COMM, CUDA_HOST, CUDA_PLACE_COUNT } cuda_place;

typedef struct cuda_impl {
    const shl_cuda_backend *table;
    shl_cuda_info info;
    int index;
    size_t base_bytes; /* of the card, in use when the context was there and no memory yet */
    cuda_range ranges[CUDA_PLACE_COUNT];
    unsigned char *locked; /* per step of the host range; NULL: none */
    cuda_stream streams[SHL_STREAM_KIND_COUNT];
    uint64_t
        need[SHL_STREAM_KIND_COUNT]; /* what every stream must be behind before its next work */
    unsigned char *slots[CUDA_SLOTS];
    uint64_t slot_seq[CUDA_SLOTS]; /* of the compute stream: the copy that reads it */
    unsigned next_slot;
    void *libs;
    void *pool;                          /* workspace of libraries: a range of its own */
    size_t pool_range_bytes, pool_bytes; /* reserved, mapped */
    uint32_t *faults;
    const char *ran[SHL_OP_COUNT][2]; /* kernels that ops with a choice took; NULL: none */
    void *norm_words;                 /* page-locked: a norm over host memory, on its way */
} cuda_impl;

static inline cuda_impl *
cuda_of(const shl_device *d)
{
    return d->impl;
}

/* SHL_OK for status 0; SHL_E_OOM where the card has no memory for what the driver loads or keeps; else
 * SHL_E_SYSTEM; "what: text of the status". */
shl_code shl_cuda_check(const shl_cuda_backend *table, int status, const char *what) SHL_MUST_USE;

/* cuda_stream.c: slots of the device's table. */
shl_code shl_cuda_stream_open(shl_device *d, shl_stream_kind kind, shl_stream *s) SHL_MUST_USE;
void shl_cuda_stream_close(shl_device *d, shl_stream *s);
shl_code shl_cuda_submit(shl_device *d, shl_stream *s, shl_stream_fn fn, void *arg,
                         size_t arg_bytes, int64_t cost_ns) SHL_MUST_USE;
shl_code shl_cuda_record(shl_device *d, shl_stream *s, shl_event *out) SHL_MUST_USE;
shl_code shl_cuda_wait(shl_device *d, shl_stream *s, shl_event ev) SHL_MUST_USE;
shl_code shl_cuda_sync(shl_device *d, shl_event ev) SHL_MUST_USE;
shl_code shl_cuda_gate_open(shl_device *d, void **out) SHL_MUST_USE;
void shl_cuda_gate_close(shl_device *d, void *gate);
shl_code shl_cuda_gate_record(shl_device *d, void *gate, shl_stream *s) SHL_MUST_USE;
shl_code shl_cuda_gate_wait(shl_device *d, void *gate, shl_stream *s) SHL_MUST_USE;
shl_code shl_cuda_gate_passed(shl_device *d, void *gate, bool *out) SHL_MUST_USE;
void *shl_cuda_native(shl_device *d, shl_stream *s);
/* Makes room for one piece of work on s, behind all that it must be behind; *out is the object's
 * stream, on which the caller queues it. */
shl_code shl_cuda_begin(shl_stream *s, void **out) SHL_MUST_USE;

/* cuda_memory.c */
shl_code shl_cuda_memory_open(shl_device *d) SHL_MUST_USE;
void shl_cuda_memory_close(shl_device *d);
shl_code shl_cuda_mem_take(shl_device *d, size_t bytes, shl_tier tier, bool comm,
                           void **out) SHL_MUST_USE;
void shl_cuda_mem_give(shl_device *d, void *data, size_t bytes, shl_tier tier, bool comm);
shl_code shl_cuda_mem_give_after(shl_device *d, void *data, size_t bytes, shl_tier tier, bool comm,
                                 shl_event last_use) SHL_MUST_USE;
size_t shl_cuda_reserved_bytes(const shl_device *d, shl_tier tier);
size_t shl_cuda_reserved_comm_bytes(const shl_device *d);
void shl_cuda_comm_block(const shl_device *d, shl_mem_block *out);
shl_code shl_cuda_pin(shl_device *d, void *data, size_t bytes) SHL_MUST_USE;
/* Whether an address is host memory of this device. */
bool shl_cuda_is_host(const shl_device *d, const void *data);
/* Of `bytes` of host memory, how many from the first on lie in one lock, or in none. */
size_t shl_cuda_locked_run(const shl_device *d, const void *data, size_t bytes, bool *locked);

/* cuda_copy.c: slots of the device's table. */
shl_code shl_cuda_copy(shl_device *d, void *dst, const void *src, size_t bytes,
                       shl_stream *s) SHL_MUST_USE;
shl_code shl_cuda_fill(shl_device *d, void *dst, int byte, size_t bytes,
                       shl_stream *s) SHL_MUST_USE;
shl_code shl_cuda_upload(shl_device *d, void *dst, const void *host, size_t bytes) SHL_MUST_USE;
shl_code shl_cuda_download(shl_device *d, void *host, const void *src, size_t bytes) SHL_MUST_USE;

/* cuda_host_ops.c: whether an op's tensors lie in host memory. Errors: SHL_E_BUG when only some do. */
shl_code shl_cuda_side(const shl_device *d, shl_op op, const void *args,
                       bool *on_host) SHL_MUST_USE;
/* Runs such an op by the host's kernels, in the order of s. */
shl_code shl_cuda_host_op(shl_op op, shl_stream *s, const void *args, void *work) SHL_MUST_USE;

/* cuda_ops.c */
extern const shl_op_table shl_cuda_op_table;

#endif

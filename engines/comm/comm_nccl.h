/* engines/comm: private to the nccl files: the library as a table of functions, a family of communicators
 * with its watchdog, and the calls between the files. The program is built without NCCL's header: what is
 * declared here is its binary interface, the same from 2.18 on. */
#ifndef SHL_COMM_NCCL_H
#define SHL_COMM_NCCL_H

#include <pthread.h>

#include "engines/comm/comm_backend.h"

#define NCCL_LEAST_VERSION 21800 /* ncclCommSplit, splitShare; 2.18 is 21800 */
#define NCCL_RING 512            /* collectives in flight that the watchdog follows */

/* ncclResult_t */
enum { NCCL_OK = 0, NCCL_CUDA_ERROR = 1, NCCL_IN_PROGRESS = 7 };
/* ncclDataType_t */
enum { NCCL_UINT8 = 1, NCCL_FLOAT16 = 6, NCCL_FLOAT32 = 7, NCCL_BFLOAT16 = 9 };
/* ncclRedOp_t; ncclCommSplit's color for none */
enum { NCCL_SUM = 0, NCCL_NO_COLOR = -1 };

typedef struct nccl_id {
    char bytes[128];
} nccl_id;

/* ncclConfig_t up to splitShare, as 2.18 has it; a newer library fills in the rest by its own defaults. */
typedef struct nccl_config {
    size_t size;
    unsigned magic, version;
    int blocking, cga_cluster_size, min_ctas, max_ctas;
    const char *net_name;
    int split_share;
} nccl_config;

typedef void nccl_handle; /* ncclComm */

/* Streams are those of the device's library. */
typedef struct nccl_table {
    int (*get_version)(int *version);
    int (*get_unique_id)(nccl_id *id);
    int (*init_rank_config)(nccl_handle **comm, int ranks, nccl_id id, int rank,
                            nccl_config *config);
    int (*split)(nccl_handle *comm, int color, int key, nccl_handle **out, nccl_config *config);
    int (*finalize)(nccl_handle *comm);
    int (*destroy)(nccl_handle *comm);
    int (*abort)(nccl_handle *comm);
    int (*async_error)(nccl_handle *comm, int *result);
    const char *(*error_string)(int result);
    const char *(*last_error)(nccl_handle *comm);
    int (*all_gather)(const void *src, void *dst, size_t count, int type, nccl_handle *comm,
                      void *stream);
    int (*reduce_scatter)(const void *src, void *dst, size_t count, int type, int op,
                          nccl_handle *comm, void *stream);
    int (*all_reduce)(const void *src, void *dst, size_t count, int type, int op, nccl_handle *comm,
                      void *stream);
    int (*broadcast)(const void *src, void *dst, size_t count, int type, int root,
                     nccl_handle *comm, void *stream);
    int (*reduce)(const void *src, void *dst, size_t count, int type, int op, int root,
                  nccl_handle *comm, void *stream);
    int (*group_start)(void);
    int (*group_end)(void);
    /* NULL before 2.19: memory of the current device, and its registration with a communicator (*out NULL: the
     * library was told to register nothing). */
    int (*mem_alloc)(void **data, size_t bytes);
    int (*mem_free)(void *data);
    int (*reg)(nccl_handle *comm, void *data, size_t bytes, void **out);
    int (*dereg)(nccl_handle *comm, void *registration);
} nccl_table;

/* comm_nccl_load.c: fills *out; *version as NCCL counts it. The library stays loaded. Errors:
 * SHL_E_SYSTEM with the path looked at, the missing function, or both versions. Any thread. */
shl_code shl_nccl_load(nccl_table *out, int *version) SHL_MUST_USE;

/* A collective in flight. */
typedef struct nccl_op {
    shl_gate gate; /* behind it on its stream; kept open for the next that takes the place */
    uint64_t seq;
    shl_coll kind;
    int64_t bytes;
    int64_t issued_ns;
} nccl_op;

struct nccl_family;

/* One communicator; `own` of its shl_shm_comm. */
typedef struct nccl_state {
    struct nccl_state *next; /* in its family */
    struct nccl_family *family;
    shl_comm *comm;
    nccl_handle *handle; /* NULL: none yet, or aborted */
    nccl_handle *part;   /* where the library's thread puts what it splits, late */
    void *registration;  /* of the device's block; NULL: none */
    uint64_t n_issued;   /* the caller's count */
    nccl_op ring[NCCL_RING];
    uint64_t n_pushed, n_finished; /* of the ring; under the lock of the family */
    int64_t progress_ns;           /* when the last one finished, or the oldest was pushed */
    int64_t told_ns;               /* when peers of other machines heard of its progress */
    shl_gate staged;               /* behind the last use of the staging buffer */
    const shl_stream *staged_by;
} nccl_state;

/* A communicator and what was split from it, on one device: one thread watches all of them. */
typedef struct nccl_family {
    nccl_table table;
    pthread_mutex_t lock; /* calls into the library, lists, rings */
    pthread_cond_t bell;
    pthread_t watchdog;
    bool watched, stopping;
    bool given_up; /* the library's part is aborted: no call goes there any more */
    shl_world *world;
    shl_device *device;
    nccl_state *states;
    int users;
    nccl_state *last; /* who launched last: another's next launch is behind it */
    shl_gate last_gate;
    int64_t timeout_ms;
} nccl_family;

/* comm_nccl_memory.c */
/* ncclMemAlloc and ncclMemFree as the source of a device's communication memory; zeros where the library has
 * none. */
shl_code shl_nccl_mem_source(shl_mem_source *out) SHL_MUST_USE;
/* Registers the device's block, when it is the library's, with a communicator that is ready, and fills
 * n->comm->memory. What the library does not register it copies through its own buffers: that is told and no
 * error, unless the communicator is broken by it. Not under the lock. */
shl_code shl_nccl_register(nccl_state *n) SHL_MUST_USE;
/* Before the communicator ends in order; an abort puts registrations away by itself. Not under the lock. */
void shl_nccl_deregister(nccl_state *n);
/* Bytes of this rank's buffers that lie outside of the registered block; 0 without one. */
int64_t shl_nccl_outside_bytes(const nccl_state *n, shl_coll kind, const shl_comm_seg *segs,
                               int count, shl_dtype dtype, int root);

/* comm_nccl_watch.c */
shl_code shl_nccl_watch_start(nccl_family *f) SHL_MUST_USE;
/* Joins the thread. Not under the lock. */
void shl_nccl_watch_stop(nccl_family *f);
/* Puts an operation that was just queued on s into the ring, waiting for a free place. */
shl_code shl_nccl_watch_push(nccl_state *n, shl_coll kind, uint64_t seq, int64_t bytes,
                             shl_stream *s) SHL_MUST_USE;
/* Aborts every communicator of the family in the library. Under the lock, or without it when it cannot
 * be had. */
void shl_nccl_abort_all(nccl_family *f);

/* comm_nccl.c: SHL_E_SYSTEM for a result other than success, with the library's words. */
shl_code shl_nccl_check(const nccl_family *f, nccl_handle *comm, int result,
                        const char *what) SHL_MUST_USE;

/* comm_nccl_move.c: the collective itself, on s; under no lock. */
shl_code shl_nccl_move(nccl_state *n, shl_coll kind, const shl_comm_seg *segs, int count,
                       shl_dtype dtype, int root, shl_stream *s) SHL_MUST_USE;
/* Waits until the library has put on the stream what it was given, or has made or split a
 * communicator: h says how far it is. what: for messages. Not under the lock. */
shl_code shl_nccl_settle(nccl_family *f, nccl_handle *h, const char *what) SHL_MUST_USE;

#endif

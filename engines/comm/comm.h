/* engines/comm: ranks talk through a communicator: self, shm (one machine, processes or threads),
 * local (threads on one card), nccl (a process for each card), nccl-ordered (the same with the sums of
 * local), virtual (any world size in one process). Floor 2: knows devices and ops, no model and no
 * engine.
 *
 * Collectives are COLLECTIVE: every rank of the communicator makes the same calls in the same order
 * with the same counts. They enqueue on the given stream behind what is queued there, borrow
 * their buffers until that point of the stream has passed, and give an event. Errors of the
 * transport may surface later, at a wait on that event or at the next agree. Control calls
 * (shl_comm_control, _barrier, _agree) block the caller and use a lane of their own, so that they
 * may run while a collective is in flight on a worker stream.
 *
 * Sums add contributions in rank order, in fp32 whatever the type of the elements (16 bits are rounded
 * once, at the end) and whatever the chunking, so results do not depend on bucket, unit or partition. Buffers from SHL_MEM_COMM memory are used in place; others are staged
 * through a fixed staging buffer (tag staging, shl_comm_staging_bytes) and counted.
 *
 * nccl is the exception: the library adds in an order and, for 16 bits, in a type of its own choice.
 * nccl-ordered gathers and adds as the others do: same bits, more bytes. */
#ifndef SHL_COMM_COMM_H
#define SHL_COMM_COMM_H

#include "engines/comm/world.h"
#include "kernels/device/device.h"

typedef struct shl_comm shl_comm;

typedef enum shl_coll {
    SHL_COLL_ALL_GATHER = 0,
    SHL_COLL_REDUCE_SCATTER,
    SHL_COLL_ALL_REDUCE,
    SHL_COLL_BROADCAST,
    SHL_COLL_CONTROL, /* scalars: loss, counts, norm, agree, barrier */
    SHL_COLL_COUNT
} shl_coll;
const char *shl_coll_name(shl_coll c); /* "all_gather", ... */

/* bytes: the full unsharded buffer (gather output, reduce-scatter input) with padding; wire_bytes:
 * sent by this rank under a ring (shl_comm_wire_bytes). One coalesced call counts once. */
typedef struct shl_comm_counter {
    int64_t calls;
    int64_t bytes;
    int64_t wire_bytes;
} shl_comm_counter;
typedef struct shl_comm_stats {
    shl_comm_counter kind[SHL_COLL_COUNT];
    /* Bytes that went through staging because a buffer was not comm memory; nccl: of buffers outside of
     * the block that the library has registered, which it copies through its own; 0 on virtual, which
     * reaches no memory. */
    int64_t staged_bytes;
} shl_comm_stats;

typedef struct shl_comm_config {
    const char *kind;       /* "self", "shm", "local", "nccl", "nccl-ordered", "virtual" */
    const char *stands_for; /* virtual: whose staging and rate it accounts for: one of the others */
    int rank, world;        /* self: 0, 1; others: must agree with `rank_world` */
    shl_world *rank_world; /* this rank's place in a running world; borrowed; self, virtual: NULL */
    int64_t timeout_ms;    /* a peer that has not arrived by then is named; 0: the world's,
                               30000 without one */
    /* alpha-beta cost of a collective: alpha_ns + wire_bytes / bytes_per_s. virtual: its clock.
     * self, shm: with sim_sleep the transport also sleeps until the modelled time has passed. */
    int64_t alpha_ns;
    double wire_bytes_per_s; /* 0: a documented default on virtual, no cost elsewhere */
    bool sim_sleep;
    bool share_gpu; /* nccl: several ranks may have one card; correctness only, it is slow */
} shl_comm_config;

/* One piece of a coalesced collective over `elems` elements per rank.
 * all_gather: src = my elems, dst = world * elems in rank order (src may be dst's own piece).
 * reduce_scatter: src = world * elems, dst = my elems (dst may be src's own piece).
 * all_reduce: src and dst = elems in all, not per rank (src may be dst). broadcast: dst = elems in
 * all; src is read on the root only.
 * reduce_scatter to one rank (`to`): src = elems in all, dst is written on that rank only (it may be src
 * there, and NULL elsewhere): a layout whose ranges are not equal pieces. */
typedef struct shl_comm_seg {
    const void *src;
    void *dst;
    int64_t elems;
    int to; /* reduce_scatter: 1 + the rank that gets the sum of all elems; 0: each gets its piece */
} shl_comm_seg;

/* Where the device's communication memory should come from when this kind of communicator is opened on it:
 * for shl_device_config.comm_source, so before the device opens. *out zeros: from the device itself; so it is
 * for every kind but nccl and nccl-ordered, and for those where the library is too old (before 2.19). Errors:
 * SHL_E_USAGE unknown kind, SHL_E_SYSTEM a library that is missing. Local. */
shl_code shl_comm_mem_source(const char *kind, shl_mem_source *out) SHL_MUST_USE;

/* Opens a communicator for this rank on `d` (borrowed until close). COLLECTIVE (shm waits for all).
 * Owner: caller. Errors: SHL_E_USAGE unknown kind or bad world (lists kinds), SHL_E_PEER, OOM for
 * the staging buffer. */
shl_code shl_comm_open(const shl_comm_config *cfg, shl_device *d, shl_comm **out) SHL_MUST_USE;

/* Local; frees staging. NULL is fine. In-flight collectives must have been waited for. */
void shl_comm_close(shl_comm **c);

/* This rank, the number of ranks, and whether data moves. Local. */
int shl_comm_rank(const shl_comm *c);
int shl_comm_size(const shl_comm *c);
bool shl_comm_has_data(const shl_comm *c); /* false on virtual */

/* What the device's communication memory is to the communicator, in words for a record: "ncclMemAlloc,
 * registered", or what it is instead and why; "" where there is nothing to tell. Borrowed. Local. */
const char *shl_comm_memory(const shl_comm *c);

/* Bytes of staging that an open communicator of a kind holds on its device: a pure function. */
size_t shl_comm_staging_bytes(const char *kind, int world);

/* Bytes a rank sends under a ring for a collective whose full buffer is `bytes`: (n-1)/n of it for a
 * gather or scatter, twice that for an all-reduce or control, all of it for a broadcast. */
int64_t shl_comm_wire_bytes(shl_coll c, int world, int64_t bytes);

/* segs (n of them, at most SHL_COMM_MAX_SEGS) are copied. Sums: fp32, bf16, fp16.
 * *done (may be NULL) passes when this rank's result is complete AND no peer reads this rank's
 * src any more. World 1: the data is copied where src != dst, and the call is counted. */
#define SHL_COMM_MAX_SEGS 4096
shl_code shl_comm_all_gather(shl_comm *c, const shl_comm_seg *segs, int n, shl_dtype dtype,
                             shl_stream *s, shl_event *done) SHL_MUST_USE;
shl_code shl_comm_reduce_scatter(shl_comm *c, const shl_comm_seg *segs, int n, shl_dtype dtype,
                                 shl_stream *s, shl_event *done) SHL_MUST_USE;
shl_code shl_comm_all_reduce(shl_comm *c, const shl_comm_seg *segs, int n, shl_dtype dtype,
                             shl_stream *s, shl_event *done) SHL_MUST_USE;
shl_code shl_comm_broadcast(shl_comm *c, const shl_comm_seg *segs, int n, shl_dtype dtype, int root,
                            shl_stream *s, shl_event *done) SHL_MUST_USE;

/* All-reduce of n host scalars in place, blocking; result bit-equal on every rank. At most 4096
 * bytes. I128 is little-endian pairs of int64 (n counts pairs). On virtual the data is unchanged. */
typedef enum shl_control_op {
    SHL_CONTROL_SUM_F64 = 0, /* in rank order */
    SHL_CONTROL_SUM_I64,
    SHL_CONTROL_SUM_I128,
    SHL_CONTROL_MAX_U32,
    SHL_CONTROL_MAX_I64
} shl_control_op;
shl_code shl_comm_control(shl_comm *c, shl_control_op op, void *data, int n) SHL_MUST_USE;

/* COLLECTIVE: returns when every rank has entered, or with the error of one that cannot. */
shl_code shl_comm_barrier(shl_comm *c) SHL_MUST_USE;

/* One code on every rank: SHL_OK only when every rank passed SHL_OK. A rank that failed keeps its own
 * error; the others get SHL_E_PEER (or SHL_E_OOM / SHL_E_INTERRUPTED / SHL_E_USAGE / SHL_E_CONFIG /
 * SHL_E_VERIFY / SHL_E_IO as passed by the lowest failing rank) with a text "rank R failed in
 * <where>: <its what>". `where` names the phase ("forward", "save"). */
shl_code shl_comm_agree(shl_comm *c, shl_code mine, const char *where) SHL_MUST_USE;

/* Tells every rank that this one gives up with its thread's current error: ranks that wait in a
 * collective or control call, and later callers, return SHL_E_PEER (or the code, as agree) naming
 * this rank and its message. Local, never blocks. A rank calls it when it fails between agrees. */
void shl_comm_abort(shl_comm *c, const char *where);

/* A communicator of the ranks that pass the same color, ordered by key then rank. COLLECTIVE over
 * c. color < 0: *out NULL. Owner: caller. */
shl_code shl_comm_split(shl_comm *c, int color, int key, shl_comm **out) SHL_MUST_USE;

/* Counters since open or the last reset; borrowed. */
const shl_comm_stats *shl_comm_stats_get(const shl_comm *c);
void shl_comm_stats_reset(shl_comm *c);

/* The contract of a backend (engines/comm/comm_registry.c lists them). comm.c checks arguments,
 * counts, and calls. A slot marked * is optional, with the default stated. */
typedef struct shl_comm_ops {
    const char *kind;
    shl_code (*open)(shl_comm *c, const shl_comm_config *cfg);
    void (*close)(shl_comm *c);
    shl_code (*collective)(shl_comm *c, shl_coll kind, const shl_comm_seg *segs, int n,
                           shl_dtype dtype, int root, int64_t cost_ns, shl_stream *s);
    shl_code (*control)(shl_comm *c, shl_control_op op, void *data, int n);
    shl_code (*agree)(shl_comm *c, shl_code mine, const char *where);
    void (*abort)(shl_comm *c, const char *where);
    shl_code (*split)(shl_comm *c, int color, int key, shl_comm *child);
    shl_code (*mem_source)(shl_mem_source *out); /* *: the device's own; *out is zeros */
} shl_comm_ops;

struct shl_comm {
    const shl_comm_ops *ops;
    shl_comm_config config;
    shl_device *device; /* borrowed */
    shl_comm_stats stats;
    shl_buf staging;
    char memory[200]; /* shl_comm_memory; the backend's, from open and split on */
    void *impl;
};

#endif

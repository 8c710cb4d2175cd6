/* tests/support: what every rank of a world does in the tests of the communicator: collectives
 * against sums written out here, the same for rank threads and rank processes. Returns codes, never
 * asserts: it runs on rank threads. */
#ifndef SHL_TESTS_COMM_BATTERY_H
#define SHL_TESTS_COMM_BATTERY_H

#include "engines/comm/comm.h"

/* How the buffers of a rank lie: all reachable by peers, none, or those of even ranks only. */
typedef enum cb_memory { CB_COMM = 0, CB_STAGED, CB_MIXED, CB_MEMORY_COUNT } cb_memory;

/* A device and a communicator of one rank. */
typedef struct cb_rank {
    shl_world *world;
    shl_device *device;
    shl_comm *comm;
    cb_memory memory;
    shl_dtype dtype; /* of the next case */
    bool to_one;     /* the next reduce_scatter: segment i goes to rank i mod world alone */
} cb_rank;

/* timeout_ms, alpha_ns as in shl_comm_config; alpha_ns > 0 sleeps. */
shl_code cb_open(shl_world *w, int64_t timeout_ms, int64_t alpha_ns, cb_rank *out);
/* The same with other kinds than "cpu" and "shm". */
shl_code cb_open_kind(shl_world *w, const char *device, const char *comm, int64_t timeout_ms,
                      int64_t alpha_ns, cb_rank *out);
/* Closes all; the code of shl_device_close, or `code` when that is not SHL_OK (its text is kept). */
shl_code cb_close(cb_rank *r, shl_code code);

/* One collective over n segments of counts[i] elements, checked bit by bit. in_place: src is dst's
 * own piece (all_gather) or dst is src's own (reduce_scatter), or dst is src. */
shl_code cb_case(cb_rank *r, shl_comm *c, shl_coll kind, const int64_t *counts, int n,
                 bool in_place, shl_stream_kind stream);

/* Every kind, in place and separate, odd counts, coalesced, on the worker and on the caller, in fp32 and in
 * 16 bits. */
shl_code cb_battery(cb_rank *r, shl_comm *c);

/* The battery as a rank's main; arg: cb_memory *. */
shl_code cb_battery_main(shl_world *w, void *arg);

#endif

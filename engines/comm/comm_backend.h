/* engines/comm: private to the room: the list of backends, and what the shm files share. */
#ifndef SHL_COMM_BACKEND_H
#define SHL_COMM_BACKEND_H

#include "engines/comm/comm.h"
#include "engines/comm/world_impl.h"

/* comm_registry.c: the backend of a kind. Errors: SHL_E_USAGE, listing the kinds of this build and
 * saying so when the kind is known but not built. */
shl_code shl_comm_backend_find(const char *kind, const shl_comm_ops **out) SHL_MUST_USE;

extern const shl_comm_ops shl_comm_self_ops;
extern const shl_comm_ops shl_comm_shm_ops;
extern const shl_comm_ops shl_comm_local_ops;
extern const shl_comm_ops shl_comm_nccl_ops;
extern const shl_comm_ops shl_comm_nccl_ordered_ops;
extern const shl_comm_ops shl_comm_virtual_ops;

/* comm_volume.c */
/* Wire rates of virtual when the configuration has none: shared memory of a machine; a card's own
 * memory, read and written; NVLink of a machine with eight cards. */
#define SHL_COMM_VIRTUAL_BYTES_PER_S 1e10
#define SHL_COMM_LOCAL_BYTES_PER_S 1e12
#define SHL_COMM_NCCL_BYTES_PER_S 3e11
int64_t shl_comm_coll_bytes(shl_coll kind, int world, int64_t elems, shl_dtype dtype);
int64_t shl_comm_cost_ns(const shl_comm_config *cfg, int64_t wire_bytes);

/* A collective on its way: made by the caller, run by the stream, reused when done. */
typedef struct shl_shm_op {
    struct shl_shm_op *next;
    struct shl_shm_comm *comm;
    shl_stream *stream;
    _Atomic uint32_t done;
    shl_coll kind;
    shl_dtype dtype;
    int root, n_segs, cap;
    uint64_t seq;    /* of the communicator, from 1 */
    int64_t cost_ns; /* to sleep up to; 0: none */
    bool staged;
    shl_comm_seg *segs;
} shl_shm_op;

typedef struct shl_shm_comm {
    shl_comm *comm;
    shl_world *world;
    int group;
    bool shares_phase; /* the device's phase is told to the world */
    int rank, size;
    int world_rank[SHL_WORLD_MAX_RANKS]; /* of each member */
    shl_shm_port data, control;
    shl_shm_op *ops;       /* all of them; the caller's list */
    uint64_t n_issued;     /* the caller's count */
    _Atomic uint32_t turn; /* collectives done here: they run in the order of their issue, whatever
                              streams they were given */
    void *own;             /* of local and nccl */
} shl_shm_comm;

/* comm_group.c: slots of the backends that live in a world's control block; c->impl is a
 * shl_shm_comm. open and split are COLLECTIVE. close: the backend has put its own part away. */
shl_code shl_shm_comm_open(shl_comm *c, const shl_comm_config *cfg) SHL_MUST_USE;
void shl_shm_comm_close(shl_comm *c);
shl_code shl_shm_comm_control(shl_comm *c, shl_control_op op, void *data, int n) SHL_MUST_USE;
shl_code shl_shm_comm_agree(shl_comm *c, shl_code mine, const char *where) SHL_MUST_USE;
void shl_shm_comm_abort(shl_comm *c, const char *where);
shl_code shl_shm_comm_split(shl_comm *c, int color, int key, shl_comm *child) SHL_MUST_USE;

/* comm_shm_call.c: puts what must be alike on every rank (segs: all of them) into a call; compares the
 * calls of all members, behind a barrier. */
void shl_shm_call_put(shl_shm_call *call, const shl_shm_op *op);
shl_code shl_shm_calls_check(const shl_shm_comm *m) SHL_MUST_USE;
/* First element and number of the elements that `member` reduces for all; whole cache lines, in 16
 * bits too. */
#define SHL_SHM_PIECE_ELEMS 32
int64_t shl_shm_piece(int64_t elems, int size, int member, int64_t *n);

/* comm_shm_move.c: runs one collective; a shl_stream_fn whose argument is a shl_shm_op pointer. */
shl_code shl_shm_collective_run(void *arg) SHL_MUST_USE;
/* Bytes that go through this rank's staging buffer in a collective that is staged. */
int64_t shl_shm_staged_bytes(const shl_shm_comm *m, shl_coll kind, int root,
                             const shl_comm_seg *segs, int n, shl_dtype dtype);
/* Whether peers read this rank's buffers of the collective where they cannot reach them. */
bool shl_shm_needs_staging(const shl_shm_comm *m, shl_coll kind, int root, const shl_comm_seg *segs,
                           int n);

#endif

/* engines/comm: private to the room: the control block that the ranks of a world share, and the
 * handle of one rank. Every word that two ranks touch is atomic or guarded by a barrier. */
#ifndef SHL_COMM_WORLD_IMPL_H
#define SHL_COMM_WORLD_IMPL_H

#include <stdatomic.h>

#include "engines/comm/world.h"

#define SHL_SHM_GROUPS 64     /* communicators alive at once in a world; 0 is the world's own */
#define SHL_SHM_ROUND_SEGS 64 /* segments published at a time */
#define SHL_SHM_SLOT_BYTES 4096
#define SHL_SHM_MAGIC UINT64_C(0x73686c776f726c31)

/* The two lanes of a group: collectives (maybe on a worker) and control calls (the caller). */
enum { SHL_SHM_DATA = 0, SHL_SHM_CONTROL, SHL_SHM_LANES };

/* A barrier. Waiters sleep on `bell`, which every event that may end a wait rings: the last
 * arrival, an abort, a rank that leaves. `arrived` tells who is missing. */
typedef struct shl_shm_lane {
    _Alignas(64) _Atomic uint32_t bell;
    _Atomic uint32_t generation;
    _Atomic uint32_t count;
    _Atomic uint32_t arrived[SHL_WORLD_MAX_RANKS];
} shl_shm_lane;

/* Offsets in the owner's communication memory. */
typedef struct shl_shm_seg {
    uint64_t src, dst;
} shl_shm_seg;

/* What a member is about to do on the data lane. */
typedef struct shl_shm_call {
    uint64_t seq;
    uint64_t elems_hash;
    int64_t elems;
    int32_t coll, dtype, root, n_segs;
    int32_t staged;   /* its buffers are not reachable: read its staging buffer */
    uint64_t staging; /* offset */
    void *local;      /* threads on one device: state of comm_local.c */
    shl_shm_seg segs[SHL_SHM_ROUND_SEGS];
} shl_shm_call;

/* What a member says on the control lane. */
typedef struct shl_shm_slot {
    uint64_t seq;
    int32_t op;
    int32_t bytes;
    _Alignas(16) unsigned char data[SHL_SHM_SLOT_BYTES];
} shl_shm_slot;

typedef struct shl_shm_member {
    /* Collectives of an asynchronous device: entered by the rank, and done with: the host's part under
     * local, the device's under nccl. */
    _Atomic uint64_t issued, finished;
    shl_shm_call call;
    shl_shm_slot slot[2]; /* by parity: a slot is written again only behind the next barrier */
} shl_shm_member;

typedef struct shl_shm_group {
    shl_shm_lane lane[SHL_SHM_LANES];
    _Atomic uint32_t users;   /* members that have not closed */
    _Atomic uint32_t drained; /* members whose device has finished, of a world given up */
    _Alignas(64) shl_shm_member member[]; /* as many as the world has ranks */
} shl_shm_group;

typedef enum shl_shm_state { SHL_SHM_RUNS = 0, SHL_SHM_LEFT, SHL_SHM_DEAD } shl_shm_state;

/* How far a rank has come, for messages of others. A call is packed by shl_shm_enter; 0: none. */
typedef struct shl_shm_place {
    _Atomic uint32_t phase; /* shl_mark, written by the rank's ledger */
    _Atomic uint64_t inside[SHL_SHM_LANES];
    _Atomic uint64_t last; /* the call that ended last */
} shl_shm_place;

/* One per rank, and one for the supervisor. note: why this writer gave the world up. */
typedef struct shl_shm_rank {
    shl_shm_place place;
    _Atomic uint32_t state;
    _Atomic uint32_t note_taken;
    _Atomic int32_t exec_errno;
    uint32_t order; /* in which ranks ended */
    shl_code code;
    shl_err err;
    int note_rank; /* the culprit */
    shl_err note;  /* text for the others; code is the culprit's own */
} shl_shm_rank;

typedef struct shl_shm_block {
    uint64_t magic;
    int ranks, threads_per_rank, cores;
    bool processes;
    int64_t timeout_ms;
    size_t range_bytes;              /* address space of one rank's communication memory */
    int memfd[SHL_WORLD_MAX_RANKS];  /* processes: inherited descriptors */
    void *base[SHL_WORLD_MAX_RANKS]; /* threads: where the memory lies */
    _Atomic uint32_t aborted;        /* 1 + index of the first note, 0: none */
    _Atomic uint32_t order;
    _Atomic uint64_t groups; /* bits of the groups in use */
    shl_shm_rank rank[SHL_WORLD_MAX_RANKS + 1];
} shl_shm_block;

/* One rank's end of one lane. */
typedef struct shl_shm_port {
    shl_world *world;
    shl_shm_group *group;
    const int *world_rank; /* of each member */
    int rank, size;        /* in the group */
    int lane, index;       /* index: of the group */
    int64_t timeout_ms;
    uint32_t phase;
    uint64_t seq;
} shl_shm_port;

struct shl_world {
    shl_shm_block *block;
    int rank;
    int memfd;                       /* own, to grow; -1 for threads */
    void *base[SHL_WORLD_MAX_RANKS]; /* where each rank's memory lies in this process */
    shl_arena *arena;
    int identity[SHL_WORLD_MAX_RANKS];
    shl_shm_port port;     /* control lane of group 0: opening communicators */
    int local_rank;        /* of a launcher's rank */
    struct shl_wire *wire; /* ranks of a launcher: the block is this process' own (world_wire.h) */
};

/* What a waiter waits for, for messages: "all_gather #12". */
typedef struct shl_shm_label {
    const char *name;
    uint64_t seq;
    bool leaving; /* at the end of it */
} shl_shm_label;

/* Operations of the control lane beside shl_control_op. */
enum { SHL_SHM_BARRIER = 100, SHL_SHM_AGREE, SHL_SHM_OPEN, SHL_SHM_SPLIT };

/* world.c */
size_t shl_shm_block_bytes(int ranks);
shl_shm_group *shl_shm_group_at(shl_shm_block *b, int index);
shl_code shl_shm_config_check(const shl_world_config *cfg) SHL_MUST_USE;
void shl_shm_block_init(shl_shm_block *b, const shl_world_config *cfg, bool processes);
/* The largest address range that `ranks` mappings of it fit beside each other. */
shl_code shl_shm_range_find(int ranks, size_t *range_bytes) SHL_MUST_USE;
/* The arena over w->base[w->rank], and the world's own port. */
shl_code shl_shm_world_init(shl_world *w) SHL_MUST_USE;
void shl_shm_rank_leave(shl_world *w, shl_code code);
/* A block and an arena for one rank alone, whose peers are elsewhere; and the way back, of any rank that is a
 * process. */
shl_code shl_shm_world_alone(shl_world *w, const shl_world_config *cfg) SHL_MUST_USE;
void shl_shm_world_forget(shl_world *w);
/* Puts the error of the rank that failed first by itself, with its rank and place; its index in *rank, -1 when none failed. */
shl_code shl_shm_result(shl_shm_block *b, int *rank) SHL_MUST_USE;
/* Takes a free group and clears it; -1 when all are in use. */
int shl_shm_group_take(shl_shm_block *b, int users);
void shl_shm_group_drop(shl_shm_block *b, int index);
void shl_shm_group_clear(shl_shm_block *b, int index);

/* comm_shm_wait.c */
void shl_shm_bells(shl_shm_block *b);
/* Fills *out with what other ranks read about an error of `rank`. */
void shl_shm_describe(int rank, const char *where, shl_code code, const shl_err *err, shl_err *out);
bool shl_shm_is_report(const shl_err *err, int rank);
/* A rank enters call `op` number `seq` of a lane (a shl_coll, or an operation of the control lane),
 * and leaves it well; a call that failed stays entered. Local. */
void shl_shm_enter(shl_world *w, int lane, int op, uint64_t seq);
void shl_shm_exit(shl_world *w, int lane);
/* A call that is not even begun, because the world was given up by another rank; keeps one that
 * failed before. */
void shl_shm_refuse(shl_world *w, int lane, int op, uint64_t seq);
const char *shl_shm_control_name(int op);
/* The phase that a rank is in: "forward". */
const char *shl_shm_phase(const shl_shm_block *b, int rank);
/* Adds to an error about `rank` what it did last and who missed it, once all have ended. */
void shl_shm_explain(const shl_shm_block *b, int rank, shl_err *err);
/* Gives the world up: the first note counts. writer: index of the note used. */
void shl_shm_note(shl_shm_block *b, int writer, int culprit, const shl_err *text);
/* SHL_OK, or the error of the world's first note. */
shl_code shl_shm_check(shl_world *w) SHL_MUST_USE;
void shl_shm_abort(shl_world *w, const char *where);
/* Gives the world up with the thread's current error, which tells of `culprit` already. */
void shl_shm_tell(shl_world *w, int culprit);
/* The same for any culprit and text. */
void shl_shm_world_note(shl_world *w, int culprit, const shl_err *text);
/* Member `member` has arrived; the last one of `size` opens the barrier. */
void shl_shm_arrive(shl_shm_lane *lane, int member, int size, uint32_t target);
/* COLLECTIVE over the port's group. */
shl_code shl_shm_barrier(shl_shm_port *p, shl_shm_label label) SHL_MUST_USE;
/* Gives every member `bytes` of each member's data; shl_shm_said reads them until the next call. */
shl_code shl_shm_exchange(shl_shm_port *p, int op, const char *name, const void *data,
                          int bytes) SHL_MUST_USE;
const void *shl_shm_said(const shl_shm_port *p, int member);
shl_code shl_shm_agree(shl_shm_port *p, shl_code mine, const char *where) SHL_MUST_USE;
/* Sleeps while *word == value, at most ns; wakes everybody on a word. */
void shl_shm_sleep_on(_Atomic uint32_t *word, uint32_t value, int64_t ns);
void shl_shm_wake(_Atomic uint32_t *word);

#endif

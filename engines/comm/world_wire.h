/* engines/comm: private to the room: the control channel of a world that a launcher started, over TCP.
 * Every process has a control block of its own; what a rank writes into its own is sent to the
 * others through rank 0, which hands everything on in one order, and a thread of each process writes
 * it into the block there: waiting and reading are those of shared memory. */
#ifndef SHL_COMM_WORLD_WIRE_H
#define SHL_COMM_WORLD_WIRE_H

#include <pthread.h>

#include "engines/comm/world_impl.h"

enum { WIRE_WELCOME = 1, WIRE_REFUSED, WIRE_ARRIVE, WIRE_NOTE, WIRE_PLACE, WIRE_LEAVE };

/* Followed by `bytes` of payload. Ranks of one run are of one build and byte order. */
typedef struct shl_wire_message {
    uint32_t kind;
    int32_t from; /* rank of the world */
    int32_t group, member, size;
    uint32_t target;
    uint64_t members; /* bits of the ranks that it is for */
    uint64_t seq, other;
    int32_t op, bytes, whole; /* whole: bytes of the slot, whose end is zeros */
    int32_t spare;
} shl_wire_message;

typedef struct shl_wire {
    shl_world *world;
    pthread_t thread;
    pthread_mutex_t lock; /* of sending, and on rank 0 of the order of all messages */
    int listener;
    int fd[SHL_WORLD_MAX_RANKS]; /* rank 0: of each rank; others: [0] */
    bool started;
    _Atomic bool stopping;
} shl_wire;

/* This rank's arrival at the barrier of a control port, with its slot: sent, and written here. */
shl_code shl_wire_arrive(shl_shm_port *p, uint32_t target) SHL_MUST_USE;
/* Why this rank gives the world up. Blocks for no answer. */
void shl_wire_note(shl_world *w, int culprit, const shl_err *text);
/* How far this rank's collectives of a group have come. */
void shl_wire_place(shl_shm_port *p);
/* Tells the others that this rank has left, and closes. Rank 0 stays until all have, at most one
 * timeout. */
void shl_wire_leave(shl_world *w);

/* Whole messages over a connection; false when it ended or stalled. */
bool shl_wire_send(int fd, const void *data, size_t bytes);
bool shl_wire_take(int fd, void *data, size_t bytes);
bool shl_wire_send_message(int fd, const shl_wire_message *m, const void *payload);
/* The thread's main; its argument is the wire. */
void *shl_wire_listen(void *arg);
void shl_wire_close(shl_wire **wire);

#endif

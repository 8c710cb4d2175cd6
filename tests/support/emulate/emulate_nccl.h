/* tests/support/emulate: what the two files of the NCCL mock share. */
#ifndef SHL_EMULATE_NCCL_H
#define SHL_EMULATE_NCCL_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/cuda/cuda_backend.h"

#define MOST_RANKS 8
#define SLOT_BYTES ((size_t)1 << 18)
#define API __attribute__((visibility("default")))

enum {
    OK = 0,
    CUDA_ERROR = 1,
    SYSTEM_ERROR = 2,
    INVALID_ARGUMENT = 4,
    INVALID_USAGE = 5,
    IN_PROGRESS = 7
};

/* What the ranks of a communicator share. */
typedef struct room {
    _Atomic int attached;
    _Atomic uint64_t step[MOST_RANKS];
    char data[MOST_RANKS][SLOT_BYTES];
} room;

typedef struct ncclComm {
    room *shared;
    char name[64];
    int rank, ranks, splits;
    uint64_t steps;
    _Atomic int aborted, refs;
    int starting, busy, error;        /* of the next answers to ncclCommGetAsyncError */
    struct ncclComm *born, **born_at; /* of a split, told when that has come about */
    long groups;
    struct group *waiting;
} ncclComm;

/* Whether SHL_MOCK_NCCL asks for something of this rank, the number-th time. */
int mock_wanted(const char *what, const ncclComm *c, long number);
/* The table of the emulated card. */
const shl_cuda_backend *mock_card_table(void);

/* A communicator takes nothing before its last call has come about. */
static inline int
mock_is_ready(const ncclComm *c)
{
    return !c->starting && !c->busy;
}

/* A communicator ends: in order, its registrations are gone already. */
void mock_drop_registrations(const ncclComm *c, int in_order);
/* A buffer of a collective lies in what the communicator has registered, if it has. */
void mock_check_buffer(const ncclComm *c, const void *at, size_t bytes);

#endif

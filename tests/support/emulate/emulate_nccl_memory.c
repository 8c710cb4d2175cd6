/* tests/support/emulate: NCCL's memory: blocks of the emulated card, and their registration. A registration of
 * what is no block, a block given back or a communicator destroyed with a registration alive, a buffer outside
 * of a communicator's registration, and what is left at the end of the process are told on stderr and make its
 * exit status 86. */
#include <pthread.h>
#include <stdio.h>
#include <unistd.h>

#include "emulate_nccl.h"

#define MOST_BLOCKS 16
#define BLOCK_STEP_BYTES ((size_t)2 << 20)
#define EXIT_MISUSED 86

/* A block (comm NULL), or a registration of one. */
typedef struct extent {
    const ncclComm *comm;
    char *base; /* NULL: a free place */
    size_t bytes;
} extent;

static pthread_mutex_t extent_lock = PTHREAD_MUTEX_INITIALIZER;
static extent extents[MOST_BLOCKS];
static atomic_int n_misuses;

static void
misused(const char *what, const void *at)
{
    atomic_fetch_add(&n_misuses, 1);
    fprintf(stderr, "mock NCCL: %s: %p\n", what, at);
}

/* The place of the extent of `comm` that holds [at, at + bytes); -1: there is none. */
static int
find_extent(const ncclComm *comm, const void *at, size_t bytes)
{
    for (int i = 0; i < MOST_BLOCKS; i++) {
        const extent *e = &extents[i];
        uintptr_t from = (uintptr_t)at - (uintptr_t)e->base;
        if (e->base != NULL && e->comm == comm && (uintptr_t)at >= (uintptr_t)e->base &&
            from <= e->bytes && bytes <= e->bytes - from) {
            return i;
        }
    }
    return -1;
}

static int
put_extent(extent e)
{
    for (int i = 0; i < MOST_BLOCKS; i++) {
        if (extents[i].base == NULL) {
            extents[i] = e;
            return i;
        }
    }
    misused("too many blocks and registrations", e.base);
    return -1;
}

void
mock_drop_registrations(const ncclComm *c, int in_order)
{
    pthread_mutex_lock(&extent_lock);
    for (int i = 0; i < MOST_BLOCKS; i++) {
        if (extents[i].base != NULL && extents[i].comm == c) {
            if (in_order) {
                misused("a communicator is destroyed with a registration", extents[i].base);
            }
            extents[i].base = NULL;
        }
    }
    pthread_mutex_unlock(&extent_lock);
}

void
mock_check_buffer(const ncclComm *c, const void *at, size_t bytes)
{
    int any = 0;
    pthread_mutex_lock(&extent_lock);
    for (int i = 0; i < MOST_BLOCKS; i++) {
        any = any || (extents[i].base != NULL && extents[i].comm == c);
    }
    if (any && at != NULL && find_extent(c, at, bytes) < 0) {
        misused("a buffer lies outside of what is registered", at);
    }
    pthread_mutex_unlock(&extent_lock);
}

__attribute__((destructor)) static void
check_end(void)
{
    for (int i = 0; i < MOST_BLOCKS; i++) {
        if (extents[i].base != NULL) {
            misused(extents[i].comm == NULL ? "a block is left" : "a registration is left",
                    extents[i].base);
        }
    }
    if (atomic_load(&n_misuses) > 0) {
        fflush(NULL);
        _exit(EXIT_MISUSED);
    }
}

API int
ncclMemAlloc(void **out, size_t bytes)
{
    size_t granule = 0,
           whole = (bytes + BLOCK_STEP_BYTES - 1) / BLOCK_STEP_BYTES * BLOCK_STEP_BYTES;
    const shl_cuda_backend *card = mock_card_table();
    if (mock_wanted("driver", NULL, 0) || mock_wanted("full", NULL, 0)) {
        return CUDA_ERROR;
    }
    if (bytes == 0 || card->reserve(0, whole, out, &granule) != 0) {
        return INVALID_ARGUMENT;
    }
    if (card->map(0, *out, 0, whole) != 0) {
        (void)card->unreserve(*out, whole, 0);
        return CUDA_ERROR;
    }
    pthread_mutex_lock(&extent_lock);
    (void)put_extent((extent){NULL, *out, whole});
    pthread_mutex_unlock(&extent_lock);
    return OK;
}

API int
ncclMemFree(void *data)
{
    extent gone = {NULL, NULL, 0};
    pthread_mutex_lock(&extent_lock);
    for (int i = 0; i < MOST_BLOCKS; i++) {
        if (extents[i].base == data && extents[i].comm == NULL) {
            gone = extents[i];
            extents[i].base = NULL;
        }
    }
    for (int i = 0; i < MOST_BLOCKS && gone.base != NULL; i++) {
        if (extents[i].base >= gone.base && extents[i].base < gone.base + gone.bytes) {
            misused("a block is given back with a registration", data);
        }
    }
    pthread_mutex_unlock(&extent_lock);
    if (gone.base == NULL) {
        misused("what is given back is no block", data);
        return INVALID_ARGUMENT;
    }
    return mock_card_table()->unreserve(gone.base, gone.bytes, gone.bytes) == 0 ? OK : CUDA_ERROR;
}

/* Does not block either: the answer is final when the communicator says so. */
API int
ncclCommRegister(ncclComm *c, void *data, size_t bytes, void **out)
{
    int at = -1;
    *out = NULL;
    if (!mock_is_ready(c) || mock_wanted("refuse", c, -1)) {
        return INVALID_USAGE;
    }
    pthread_mutex_lock(&extent_lock);
    if (find_extent(NULL, data, bytes) < 0) {
        misused("what is registered is no block", data);
    } else {
        at = put_extent((extent){c, data, bytes});
    }
    pthread_mutex_unlock(&extent_lock);
    if (at < 0) {
        return INVALID_ARGUMENT;
    }
    *out = &extents[at];
    c->busy = 1;
    return IN_PROGRESS;
}

API int
ncclCommDeregister(ncclComm *c, void *registration)
{
    int found = 0;
    if (!mock_is_ready(c)) {
        return INVALID_USAGE;
    }
    pthread_mutex_lock(&extent_lock);
    for (int i = 0; i < MOST_BLOCKS; i++) {
        if (&extents[i] == registration && extents[i].base != NULL && extents[i].comm == c) {
            extents[i].base = NULL;
            found = 1;
        }
    }
    pthread_mutex_unlock(&extent_lock);
    if (!found) {
        misused("what is deregistered is no registration", registration);
        return INVALID_ARGUMENT;
    }
    c->busy = 1;
    return IN_PROGRESS;
}

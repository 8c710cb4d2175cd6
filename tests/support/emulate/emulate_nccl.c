/* tests/support/emulate: NCCL's functions for ranks that are processes on emulated cards: what one puts on
 * a stream is a host call, which meets its peers in shared memory. Like the library it does nothing at
 * once: what a group holds reaches the stream when the caller asks for its state. On demand it fails:
 *   SHL_MOCK_NCCL="hang:R:N"   rank R's Nth group never ends (until it is aborted)
 *   SHL_MOCK_NCCL="fail:R:N"   rank R's communicator reports an error with its Nth group
 *   SHL_MOCK_NCCL="die:R:N"    rank R is killed inside its Nth group
 *   SHL_MOCK_NCCL="reverse"    sums are added in the order of falling ranks
 *   SHL_MOCK_NCCL="driver"     ncclMemAlloc fails with the driver; "full": because no memory is left
 *   SHL_MOCK_NCCL="refuse:R"   rank R's communicators register no memory
 *   SHL_MOCK_NCCL="card"       all ranks have one card: refused unless NCCL_HOSTID sets them apart
 *   SHL_MOCK_NCCL_VERSION=N    what ncclGetVersion says
 * Memory is in emulate_nccl_memory.c. */
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "emulate_nccl.h"
#include "kernels/base/half.h"

enum { GATHER, SCATTER, REDUCE_ALL, BROADCAST, REDUCE_ONE };

typedef struct ncclUniqueId {
    char bytes[128];
} ncclUniqueId;

typedef struct call {
    int kind, type, root;
    const char *src;
    char *dst;
    size_t count;
} call;

/* What goes to a stream at once. */
typedef struct group {
    struct group *next;
    ncclComm *comm;
    void *stream;
    int n;
    long number;
    call calls[4096];
} group;

static _Thread_local group *open_group;
static _Thread_local int depth;
static atomic_int n_ids;

int
mock_wanted(const char *what, const ncclComm *c, long number)
{
    const char *text = getenv("SHL_MOCK_NCCL");
    int rank = -1;
    long n = -1;
    char word[16] = "";
    return text != NULL && sscanf(text, "%15[a-z]:%d:%ld", word, &rank, &n) >= 1 &&
           strcmp(word, what) == 0 && (rank < 0 || (rank == c->rank && n == number));
}

static size_t
width(int type)
{
    return type == 7 ? 4 : type == 6 || type == 9 ? 2 : 1;
}

/* --- meeting ------------------------------------------------------------------------------- */

static room *
map_room(const char *name, int create)
{
    int fd = shm_open(name, create ? O_CREAT | O_EXCL | O_RDWR : O_RDWR, 0600);
    if (fd < 0) {
        return NULL;
    }
    void *p = MAP_FAILED;
    if (!create || ftruncate(fd, sizeof(room)) == 0) {
        p = mmap(NULL, sizeof(room), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    }
    close(fd);
    return p == MAP_FAILED ? NULL : p;
}

/* 0 when all have come, 1 when this rank was told to give up. */
static int
meet(ncclComm *c)
{
    uint64_t step = ++c->steps;
    atomic_store(&c->shared->step[c->rank], step);
    for (int q = 0; q < c->ranks; q++) {
        while (atomic_load(&c->shared->step[q]) < step) {
            if (atomic_load(&c->aborted)) {
                return 1;
            }
            usleep(20);
        }
    }
    return 0;
}

static void
release(ncclComm *c)
{
    if (atomic_fetch_sub(&c->refs, 1) == 1) {
        munmap(c->shared, sizeof(room));
        free(c);
    }
}

/* --- moving -------------------------------------------------------------------------------- */

static float
element(const char *data, int type, size_t i)
{
    uint16_t half;
    float x;
    if (type == 7) {
        memcpy(&x, data + 4 * i, 4);
        return x;
    }
    memcpy(&half, data + 2 * i, 2);
    return type == 9 ? shl_f32_from_bf16(half) : shl_f32_from_f16(half);
}

static void
put_element(char *data, int type, size_t i, float x)
{
    uint16_t half = type == 9 ? shl_bf16_from_f32(x) : shl_f16_from_f32(x);
    memcpy(data + i * width(type), type == 7 ? (const void *)&x : (const void *)&half, width(type));
}

static void
sum(const ncclComm *c, int type, size_t count, char *dst)
{
    int reverse = mock_wanted("reverse", c, 0);
    for (size_t i = 0; i < count; i++) {
        float total = 0;
        for (int k = 0; k < c->ranks; k++) {
            int q = reverse ? c->ranks - 1 - k : k;
            float x = element(c->shared->data[q], type, i);
            total = k == 0 ? x : total + x;
        }
        put_element(dst, type, i, total);
    }
}

/* Every rank shows `bytes`; then dst gets rank `from`'s (from >= 0), or the sum (from -1). */
static int
show(ncclComm *c, const char *src, size_t bytes, int type, char *dst, int from, size_t apart)
{
    for (size_t at = 0; at < bytes; at += SLOT_BYTES) {
        size_t n = bytes - at < SLOT_BYTES ? bytes - at : SLOT_BYTES;
        if (src != NULL) {
            memcpy(c->shared->data[c->rank], src + at, n);
        }
        if (meet(c)) {
            return 1;
        }
        for (int q = 0; q < c->ranks && apart > 0; q++) {
            memmove(dst + (size_t)q * apart + at, c->shared->data[q], n);
        }
        if (apart == 0 && dst != NULL && from >= 0) {
            memmove(dst + at, c->shared->data[from], n);
        } else if (apart == 0 && dst != NULL) {
            sum(c, type, n / width(type), dst + at);
        }
        if (meet(c)) {
            return 1;
        }
    }
    return 0;
}

static int
run_call(ncclComm *c, const call *k)
{
    size_t bytes = k->count * width(k->type);
    switch (k->kind) {
    case GATHER:
        return show(c, k->src, bytes, k->type, k->dst, 0, bytes);
    case REDUCE_ALL:
        return show(c, k->src, bytes, k->type, k->dst, -1, 0);
    case REDUCE_ONE:
        return show(c, k->src, bytes, k->type, k->root == c->rank ? k->dst : NULL, -1, 0);
    case BROADCAST:
        return show(c, k->root == c->rank ? k->src : NULL, bytes, k->type, k->dst, k->root, 0);
    default:
        for (int q = 0; q < c->ranks; q++) {
            char *dst = q == c->rank ? k->dst : NULL;
            if (show(c, k->src + (size_t)q * bytes, bytes, k->type, dst, -1, 0)) {
                return 1;
            }
        }
        return 0;
    }
}

/* On the stream. */
static void
run_group(void *arg)
{
    group *g = arg;
    ncclComm *c = g->comm;
    if (mock_wanted("die", c, g->number)) {
        kill(getpid(), SIGKILL);
    }
    while (mock_wanted("hang", c, g->number) && !atomic_load(&c->aborted)) {
        usleep(1000);
    }
    for (int i = 0; i < g->n && !atomic_load(&c->aborted); i++) {
        if (run_call(c, &g->calls[i])) {
            break;
        }
    }
    release(c);
    free(g);
}

const shl_cuda_backend *
mock_card_table(void)
{
    void *handle = dlopen(getenv("SHL_CUDA_OBJECT"), RTLD_NOW | RTLD_LOCAL | RTLD_NOLOAD);
    union {
        void *address;
        shl_cuda_entry_fn fn;
    } entry = {handle == NULL ? NULL : dlsym(handle, SHL_CUDA_ENTRY)};
    return entry.address == NULL ? NULL : entry.fn(SHL_CUDA_ABI);
}

/* --- the library's functions --------------------------------------------------------------- */

API int
ncclGetVersion(int *version)
{
    const char *text = getenv("SHL_MOCK_NCCL_VERSION");
    *version = text != NULL ? atoi(text) : 22809;
    return OK;
}

API const char *
ncclGetErrorString(int result)
{
    return result == SYSTEM_ERROR ? "unhandled system error" : "an error";
}

API const char *
ncclGetLastError(ncclComm *c)
{
    (void)c;
    return mock_wanted("full", NULL, 0) ? "Cuda failure 2 'out of memory'"
                                        : "the mock was told to fail";
}

API int
ncclGetUniqueId(ncclUniqueId *id)
{
    memset(id, 0, sizeof *id);
    snprintf(id->bytes, sizeof id->bytes, "/shardlab-mock-%d-%d", (int)getpid(),
             atomic_fetch_add(&n_ids, 1));
    room *r = map_room(id->bytes, 1);
    if (r == NULL) {
        return SYSTEM_ERROR;
    }
    munmap(r, sizeof *r);
    return OK;
}

/* The library takes ranks of equal hosts and equal cards for a mistake. */
static int
is_apart(int rank)
{
    const char *host = getenv("NCCL_HOSTID");
    char want[16];
    snprintf(want, sizeof want, "t%d", rank);
    return host != NULL && strcmp(host, want) == 0;
}

static int
join(const char *name, int ranks, int rank, ncclComm **out)
{
    ncclComm *c = calloc(1, sizeof *c);
    c->shared = map_room(name, 0);
    if (c->shared == NULL || ranks > MOST_RANKS) {
        free(c);
        return SYSTEM_ERROR;
    }
    snprintf(c->name, sizeof c->name, "%s", name);
    c->rank = rank;
    c->ranks = ranks;
    c->starting = 1;
    if (mock_wanted("card", c, 0) && !is_apart(rank)) {
        free(c);
        return INVALID_USAGE;
    }
    atomic_store(&c->refs, 1);
    if (atomic_fetch_add(&c->shared->attached, 1) == ranks - 1) {
        shm_unlink(name);
    }
    *out = c;
    return IN_PROGRESS;
}

API int
ncclCommInitRankConfig(ncclComm **out, int ranks, ncclUniqueId id, int rank, const void *config)
{
    int blocking = ((const int *)config)[4];
    return blocking != 0 ? INVALID_ARGUMENT : join(id.bytes, ranks, rank, out);
}

API int
ncclCommGetAsyncError(ncclComm *c, int *state)
{
    if (c->starting) {
        c->starting = atomic_load(&c->shared->attached) < c->ranks;
        *state = IN_PROGRESS;
        return OK;
    }
    *state = c->error != OK ? c->error : c->busy ? IN_PROGRESS : OK;
    c->busy = 0;
    if (c->born != NULL) {
        *c->born_at = c->born;
        c->born = NULL;
    }
    while (c->waiting != NULL) {
        group *g = c->waiting;
        c->waiting = g->next;
        if (mock_wanted("fail", c, g->number)) {
            c->error = *state = SYSTEM_ERROR;
        }
        if (mock_card_table()->call(g->stream, run_group, g) != 0) {
            *state = SYSTEM_ERROR;
        }
    }
    return OK;
}

API int
ncclGroupStart(void)
{
    depth++;
    return OK;
}

API int
ncclGroupEnd(void)
{
    group *g = open_group;
    if (--depth > 0 || g == NULL) {
        return OK;
    }
    open_group = NULL;
    group **at = &g->comm->waiting;
    while (*at != NULL) {
        at = &(*at)->next;
    }
    *at = g;
    g->comm->busy = 1;
    return IN_PROGRESS;
}

static int
add(ncclComm *c, void *stream, call k)
{
    if (!mock_is_ready(c)) {
        return INVALID_ARGUMENT;
    }
    if (open_group == NULL) {
        open_group = calloc(1, sizeof *open_group);
        open_group->comm = c;
        open_group->stream = stream;
        open_group->number = c->groups++;
        atomic_fetch_add(&c->refs, 1);
    }
    if (depth < 1 || open_group->comm != c || open_group->n == 4096) {
        return INVALID_ARGUMENT;
    }
    size_t bytes = k.count * width(k.type), ranks = (size_t)c->ranks;
    if (k.kind != BROADCAST || k.root == c->rank) {
        mock_check_buffer(c, k.src, k.kind == SCATTER ? ranks * bytes : bytes);
    }
    if (k.kind != REDUCE_ONE || k.root == c->rank) {
        mock_check_buffer(c, k.dst, k.kind == GATHER ? ranks * bytes : bytes);
    }
    open_group->calls[open_group->n++] = k;
    return IN_PROGRESS;
}

API int
ncclAllGather(const void *src, void *dst, size_t count, int type, ncclComm *c, void *stream)
{
    return add(c, stream, (call){GATHER, type, 0, src, dst, count});
}

API int
ncclReduceScatter(const void *src, void *dst, size_t count, int type, int op, ncclComm *c,
                  void *stream)
{
    return op != 0 ? INVALID_ARGUMENT : add(c, stream, (call){SCATTER, type, 0, src, dst, count});
}

API int
ncclAllReduce(const void *src, void *dst, size_t count, int type, int op, ncclComm *c, void *stream)
{
    return op != 0 ? INVALID_ARGUMENT
                   : add(c, stream, (call){REDUCE_ALL, type, 0, src, dst, count});
}

API int
ncclBroadcast(const void *src, void *dst, size_t count, int type, int root, ncclComm *c,
              void *stream)
{
    return add(c, stream, (call){BROADCAST, type, root, src, dst, count});
}

API int
ncclReduce(const void *src, void *dst, size_t count, int type, int op, int root, ncclComm *c,
           void *stream)
{
    return op != 0 ? INVALID_ARGUMENT
                   : add(c, stream, (call){REDUCE_ONE, type, root, src, dst, count});
}

typedef struct place {
    int color, key;
} place;

API int
ncclCommSplit(ncclComm *c, int color, int key, ncclComm **out, const void *config)
{
    place all[MOST_RANKS], mine = {color, key};
    char name[128];
    int rank = 0, ranks = 0, first = -1, at = c->splits++;
    (void)config;
    if (!mock_is_ready(c)) {
        return INVALID_ARGUMENT;
    }
    memcpy(c->shared->data[c->rank], &mine, sizeof mine);
    if (meet(c)) {
        return SYSTEM_ERROR;
    }
    for (int q = 0; q < c->ranks; q++) {
        memcpy(&all[q], c->shared->data[q], sizeof all[q]);
        bool before = all[q].key < key || (all[q].key == key && q < c->rank);
        rank += all[q].color == color && before;
        ranks += all[q].color == color;
        first = first < 0 && all[q].color == color ? q : first;
    }
    snprintf(name, sizeof name, "%s-%d-%d", c->name, at, color);
    if (color >= 0 && first == c->rank) {
        room *r = map_room(name, 1);
        munmap(r, sizeof *r);
    }
    if (meet(c)) {
        return SYSTEM_ERROR;
    }
    c->busy = 1;
    *out = NULL;
    c->born_at = out;
    return color < 0 ? IN_PROGRESS : join(name, ranks, rank, &c->born);
}

API int
ncclCommFinalize(ncclComm *c)
{
    if (!mock_is_ready(c)) {
        return INVALID_ARGUMENT;
    }
    c->busy = 1;
    return IN_PROGRESS;
}

API int
ncclCommDestroy(ncclComm *c)
{
    mock_drop_registrations(c, 1);
    release(c);
    return OK;
}

API int
ncclCommAbort(ncclComm *c)
{
    atomic_store(&c->aborted, 1);
    mock_drop_registrations(c, 0);
    while (c->waiting != NULL) {
        group *g = c->waiting;
        c->waiting = g->next;
        release(c);
        free(g);
    }
    release(c);
    return OK;
}

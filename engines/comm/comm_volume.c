/* engines/comm: how many bytes a collective is, sends and stages, and what it costs by the
 * alpha-beta model. Pure functions of counts: the same for every backend. */
#include <string.h>

#include "engines/comm/comm_backend.h"
#include "kernels/base/types.h"

#define STAGING_BYTES ((size_t)1 << 20)
#define ORDERED_BYTES ((size_t)8 << 20) /* what all ranks gather of a sum at a time */

const char *
shl_coll_name(shl_coll c)
{
    static const char *const names[SHL_COLL_COUNT] = {"all_gather", "reduce_scatter", "all_reduce",
                                                      "broadcast", "control"};
    SHL_ASSERT((int)c >= 0 && c < SHL_COLL_COUNT);
    return names[c];
}

size_t
shl_comm_staging_bytes(const char *kind, int world)
{
    if (world < 2) {
        return 0;
    }
    bool ordered = strcmp(kind, "nccl-ordered") == 0;
    return ordered ? ORDERED_BYTES : strcmp(kind, "shm") == 0 ? STAGING_BYTES : 0;
}

/* A ring of n ranks (Patarasuk & Yuan 2009): a gather or a scatter sends (n-1)/n of the full buffer,
 * an all-reduce both; a broadcast passes everything on. */
int64_t
shl_comm_wire_bytes(shl_coll c, int world, int64_t bytes)
{
    int64_t others = world - 1;
    if (others <= 0) {
        return 0;
    }
    switch (c) {
    case SHL_COLL_ALL_GATHER:
    case SHL_COLL_REDUCE_SCATTER:
        return shl_ceil_div(bytes, world) * others;
    case SHL_COLL_ALL_REDUCE:
    case SHL_COLL_CONTROL:
        return 2 * shl_ceil_div(bytes, world) * others;
    case SHL_COLL_BROADCAST:
        return bytes;
    case SHL_COLL_COUNT:
        break;
    }
    SHL_ASSERT(false);
    return 0;
}

int64_t
shl_comm_coll_bytes(shl_coll kind, int world, int64_t elems, shl_dtype dtype)
{
    bool per_rank = kind == SHL_COLL_ALL_GATHER || kind == SHL_COLL_REDUCE_SCATTER;
    return elems * (per_rank ? world : 1) * (int64_t)shl_dtype_bytes(dtype);
}

int64_t
shl_comm_cost_ns(const shl_comm_config *cfg, int64_t wire_bytes)
{
    double rate = cfg->wire_bytes_per_s;
    if (rate <= 0) {
        if (strcmp(cfg->kind, "virtual") != 0) {
            return cfg->alpha_ns;
        }
        const char *like = cfg->stands_for != NULL ? cfg->stands_for : "shm";
        rate = strncmp(like, "nccl", 4) == 0 ? SHL_COMM_NCCL_BYTES_PER_S
               : strcmp(like, "local") == 0  ? SHL_COMM_LOCAL_BYTES_PER_S
                                             : SHL_COMM_VIRTUAL_BYTES_PER_S;
    }
    return cfg->alpha_ns + (int64_t)((double)wire_bytes / rate * 1e9 + 0.5);
}

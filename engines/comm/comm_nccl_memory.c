/* engines/comm: nccl, memory: the block that the library gives a device for communication, and its
 * registration with each communicator, so that kernels read and write it where it lies. The order of the end:
 * registration, communicator, block (the device's, which closes last). */
#include <string.h>

#include "engines/comm/comm_nccl.h"
#include "kernels/base/log.h"
#include "kernels/base/str.h"
#include "kernels/base/types.h"

/* --- the block --------------------------------------------------------------------------- */

/* For the current device, which a communicator is not needed for. The library rounds up to the driver's
 * granule, and falls back to plain device memory by itself where it has no shareable one. */
static shl_code
take_block(void *ctx, size_t bytes, void **out)
{
    nccl_table t;
    int version = 0;
    SHL_UNUSED(ctx);
    *out = NULL;
    SHL_TRY(shl_nccl_load(&t, &version));
    int result = t.mem_alloc(out, bytes);
    if (result == NCCL_OK) {
        return SHL_OK;
    }
    *out = NULL;
    const char *last = t.last_error(NULL);
    last = last != NULL && last[0] != '\0' ? last : "no more is told";
    /* Any failure of the driver has one number: its words tell which. */
    bool full = result == NCCL_CUDA_ERROR && strstr(last, "out of memory") != NULL;
    SHL_RAISE(full ? SHL_E_OOM : SHL_E_SYSTEM, "NCCL gives no block of %zu bytes: %s", bytes,
              t.error_string(result));
    return shl_err_because("%.400s", last);
}

static void
give_block(void *ctx, void *data)
{
    nccl_table t;
    int version = 0;
    SHL_UNUSED(ctx);
    shl_err err = *shl_err_get();
    int result = shl_nccl_load(&t, &version) == SHL_OK ? t.mem_free(data) : NCCL_OK;
    if (result != NCCL_OK) {
        shl_log(SHL_LOG_WARN, "comm", "NCCL does not take its block back: %s",
                t.error_string(result));
    }
    (void)!shl_err_put(&err);
}

shl_code
shl_nccl_mem_source(shl_mem_source *out)
{
    nccl_table t;
    int version = 0;
    SHL_TRY(shl_nccl_load(&t, &version));
    if (t.mem_alloc != NULL && t.mem_free != NULL) {
        *out = (shl_mem_source){.name = "ncclMemAlloc", .take = take_block, .give = give_block};
    }
    return SHL_OK;
}

/* --- registration ------------------------------------------------------------------------ */

/* The library's answer to one call on a communicator, once it is final; *state is the communicator's own. */
static shl_code
call_register(nccl_state *n, const shl_mem_block *block, int *result, int *state)
{
    nccl_family *f = n->family;
    *state = NCCL_OK;
    (void)pthread_mutex_lock(&f->lock);
    nccl_handle *h = f->given_up ? NULL : n->handle;
    *result = h == NULL ? NCCL_OK : f->table.reg(h, block->base, block->bytes, &n->registration);
    if (h != NULL && *result != NCCL_OK && *result != NCCL_IN_PROGRESS) {
        n->registration = NULL;
        (void)f->table.async_error(h, state);
    }
    (void)pthread_mutex_unlock(&f->lock);
    if (h == NULL) {
        SHL_TRY(shl_shm_check(f->world));
        return SHL_RAISE(SHL_E_PEER,
                         "a communicator was given up before its memory was registered");
    }
    return *result == NCCL_IN_PROGRESS ? shl_nccl_settle(f, h, "a registration") : SHL_OK;
}

static void
tell(nccl_state *n, const char *what, const char *why)
{
    char *text = n->comm->memory;
    shl_strf(text, sizeof n->comm->memory, "%s%s%.150s", what, why[0] != '\0' ? ": " : "", why);
    shl_log(SHL_LOG_INFO, "comm", "communication memory: %s", text);
}

shl_code
shl_nccl_register(nccl_state *n)
{
    nccl_family *f = n->family;
    shl_mem_block block;
    int result = NCCL_OK, state = NCCL_OK;
    shl_device_comm_block_get(n->comm->device, &block);
    if (block.base == NULL) {
        /* Memory that the library did not make may not be shareable: it is not offered. */
        tell(n, "own range, not registered",
             f->table.mem_alloc == NULL ? "this NCCL has no ncclMemAlloc" : "nothing was planned");
        return SHL_OK;
    }
    if (f->table.reg == NULL || f->table.dereg == NULL) {
        tell(n, "ncclMemAlloc, not registered", "this NCCL has no ncclCommRegister");
        return SHL_OK;
    }
    SHL_TRY(call_register(n, &block, &result, &state));
    if (result != NCCL_OK && result != NCCL_IN_PROGRESS) {
        SHL_TRY(shl_nccl_check(f, n->handle, state == NCCL_IN_PROGRESS ? NCCL_OK : state,
                               "the registration of memory"));
        shl_log(SHL_LOG_WARN, "comm", "NCCL registers no memory: %s",
                f->table.error_string(result));
        tell(n, "ncclMemAlloc, not registered", f->table.error_string(result));
    } else if (n->registration == NULL) {
        tell(n, "ncclMemAlloc, not registered", "NCCL_LOCAL_REGISTER is 0");
    } else {
        tell(n, "ncclMemAlloc, registered", "");
    }
    return SHL_OK;
}

void
shl_nccl_deregister(nccl_state *n)
{
    nccl_family *f = n->family;
    (void)pthread_mutex_lock(&f->lock);
    nccl_handle *h = f->given_up || n->registration == NULL ? NULL : n->handle;
    int result = h == NULL ? NCCL_OK : f->table.dereg(h, n->registration);
    n->registration = NULL;
    (void)pthread_mutex_unlock(&f->lock);
    shl_code code = result == NCCL_IN_PROGRESS ? shl_nccl_settle(f, h, "the end of a registration")
                                               : shl_nccl_check(f, h, result, "deregistration");
    if (code != SHL_OK) {
        shl_log(SHL_LOG_WARN, "comm", "%s", shl_err_get()->what);
    }
}

/* --- what lies outside ------------------------------------------------------------------- */

static int64_t
outside(const shl_mem_block *block, const void *data, int64_t elems, shl_dtype dtype)
{
    size_t bytes = (size_t)elems * shl_dtype_bytes(dtype);
    uintptr_t at = (uintptr_t)data, base = (uintptr_t)block->base;
    bool inside = at >= base && at - base <= block->bytes && bytes <= block->bytes - (at - base);
    return data == NULL || inside ? 0 : (int64_t)bytes;
}

int64_t
shl_nccl_outside_bytes(const nccl_state *n, shl_coll kind, const shl_comm_seg *segs, int count,
                       shl_dtype dtype, int root)
{
    const shl_comm_config *c = &n->comm->config;
    shl_mem_block block;
    int64_t bytes = 0;
    if (n->registration == NULL) {
        return 0;
    }
    shl_device_comm_block_get(n->comm->device, &block);
    for (int i = 0; i < count; i++) {
        const shl_comm_seg *s = &segs[i];
        bool scatters = kind == SHL_COLL_REDUCE_SCATTER && s->to == 0;
        bool sends = kind != SHL_COLL_BROADCAST || root == c->rank;
        bool gets = s->to == 0 || s->to == c->rank + 1;
        int64_t whole = s->elems * c->world;
        bytes += sends ? outside(&block, s->src, scatters ? whole : s->elems, dtype) : 0;
        bytes +=
            gets ? outside(&block, s->dst, kind == SHL_COLL_ALL_GATHER ? whole : s->elems, dtype)
                 : 0;
    }
    return bytes;
}

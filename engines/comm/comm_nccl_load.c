/* engines/comm: finding NCCL at run time. */
#include <dlfcn.h>
#include <stddef.h>
#include <string.h>

#include "engines/comm/comm_nccl.h"
#include "kernels/base/option.h"
#include "kernels/base/str.h"
#include "kernels/base/types.h"

#define LIBRARY "libnccl.so.2"

typedef struct entry {
    const char *name;
    size_t offset;
    bool optional;
} entry;

#define AT(field) offsetof(nccl_table, field)
static const entry entries[] = {
    {"ncclGetVersion", AT(get_version), false},
    {"ncclGetUniqueId", AT(get_unique_id), false},
    {"ncclCommInitRankConfig", AT(init_rank_config), false},
    {"ncclCommSplit", AT(split), false},
    {"ncclCommFinalize", AT(finalize), false},
    {"ncclCommDestroy", AT(destroy), false},
    {"ncclCommAbort", AT(abort), false},
    {"ncclCommGetAsyncError", AT(async_error), false},
    {"ncclGetErrorString", AT(error_string), false},
    {"ncclGetLastError", AT(last_error), false},
    {"ncclAllGather", AT(all_gather), false},
    {"ncclReduceScatter", AT(reduce_scatter), false},
    {"ncclAllReduce", AT(all_reduce), false},
    {"ncclBroadcast", AT(broadcast), false},
    {"ncclReduce", AT(reduce), false},
    {"ncclGroupStart", AT(group_start), false},
    {"ncclGroupEnd", AT(group_end), false},
    {"ncclMemAlloc", AT(mem_alloc), true},
    {"ncclMemFree", AT(mem_free), true},
    {"ncclCommRegister", AT(reg), true},
    {"ncclCommDeregister", AT(dereg), true},
};

/* 2.x.y of NCCL's number. */
static void
spell_version(int version, char *dst, size_t bytes)
{
    if (version < 10000) {
        shl_strf(dst, bytes, "%d.%d.%d", version / 1000, version / 100 % 10, version % 100);
    } else {
        shl_strf(dst, bytes, "%d.%d.%d", version / 10000, version / 100 % 100, version % 100);
    }
}

static shl_code
check_version(const nccl_table *t, const char *path, int *version)
{
    char found[32], least[32];
    if (t->get_version(version) != NCCL_OK) {
        return SHL_RAISE(SHL_E_SYSTEM, "%s does not tell its version", path);
    }
    if (*version >= NCCL_LEAST_VERSION) {
        return SHL_OK;
    }
    spell_version(*version, found, sizeof found);
    spell_version(NCCL_LEAST_VERSION, least, sizeof least);
    SHL_RAISE(SHL_E_SYSTEM, "%s is NCCL %s", path, found);
    shl_err_because("communicator nccl needs %s or newer, of version 2", least);
    return shl_err_advice("SHL_NCCL_LIBRARY=<path of a newer %s>", LIBRARY);
}

shl_code
shl_nccl_load(nccl_table *out, int *version)
{
    const char *asked = shl_env("SHL_NCCL_LIBRARY");
    const char *path = asked != NULL ? asked : LIBRARY;
    void *handle = dlopen(path, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
    if (handle == NULL) {
        const char *why = dlerror();
        SHL_RAISE(SHL_E_SYSTEM, "NCCL cannot be loaded: %s", path);
        shl_err_because("%s (looked for in LD_LIBRARY_PATH and the system's folders)",
                        why != NULL ? why : "the loader does not say why");
        return shl_err_advice("its folder in LD_LIBRARY_PATH, or SHL_NCCL_LIBRARY=<path of %s>",
                              LIBRARY);
    }
    memset(out, 0, sizeof *out);
    shl_code code = SHL_OK;
    for (size_t i = 0; i < SHL_ARRAY_LEN(entries) && code == SHL_OK; i++) {
        /* A function's address comes back as an object's: POSIX says that this is fine. */
        void *address = dlsym(handle, entries[i].name);
        memcpy((char *)out + entries[i].offset, &address, sizeof address);
        if (address == NULL && !entries[i].optional) {
            code = SHL_RAISE(SHL_E_SYSTEM, "%s has no function %s", path, entries[i].name);
            (void)shl_err_because("communicator nccl fits NCCL 2.18 and newer");
        }
    }
    code = code == SHL_OK ? check_version(out, path, version) : code;
    (void)dlclose(handle); /* stays loaded: RTLD_NODELETE */
    return code;
}

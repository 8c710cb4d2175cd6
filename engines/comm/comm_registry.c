/* engines/comm: the backends of this build, one line each. */
#include <string.h>

#include "engines/comm/comm_backend.h"
#include "kernels/base/str.h"
#include "kernels/base/types.h"

static const shl_comm_ops *const backends[] = {
    &shl_comm_self_ops, &shl_comm_shm_ops,          &shl_comm_local_ops,
    &shl_comm_nccl_ops, &shl_comm_nccl_ordered_ops, &shl_comm_virtual_ops,
};

static const char *const names[] = {"self", "shm", "local", "nccl", "nccl-ordered", "virtual"};
_Static_assert(SHL_ARRAY_LEN(names) == SHL_ARRAY_LEN(backends), "one name for each backend");

/* Kinds of the design that this build does not have, and where they would run. */
static const char *const not_built[][2] = {
    {"mpi", "many machines"},
};

shl_code
shl_comm_backend_find(const char *kind, const shl_comm_ops **out)
{
    *out = NULL;
    for (size_t i = 0; i < SHL_ARRAY_LEN(backends); i++) {
        if (strcmp(kind, backends[i]->kind) == 0) {
            *out = backends[i];
            return SHL_OK;
        }
    }
    for (size_t i = 0; i < SHL_ARRAY_LEN(not_built); i++) {
        if (strcmp(kind, not_built[i][0]) == 0) {
            SHL_RAISE(SHL_E_USAGE, "communicator \"%s\" is not in this build", kind);
            shl_err_because("it is for %s", not_built[i][1]);
            return shl_err_advice("use nccl on cards, or shm on one machine");
        }
    }
    SHL_RAISE(SHL_E_USAGE, "unknown communicator \"%s\"", kind);
    shl_err_because("this build has self, shm, local, nccl, nccl-ordered and virtual");
    const char *near = shl_nearest(kind, names, SHL_ARRAY_LEN(names));
    return near != NULL ? shl_err_advice("did you mean %s?", near) : SHL_E_USAGE;
}

/* engines/comm: virtual, one rank of any world, alone: collectives cost time on the stream's clock
 * and move nothing; control calls leave their data as it is, as if every peer were neutral.
 * staged_bytes stays 0: which buffers a transport reaches is no fact of a virtual device. */
#include <string.h>

#include "engines/comm/comm_backend.h"
#include "kernels/base/types.h"

static shl_code
virtual_open(shl_comm *c, const shl_comm_config *cfg)
{
    if (c->device->caps.has_bytes) {
        SHL_RAISE(SHL_E_USAGE, "communicator virtual moves no data, device %s holds some",
                  c->device->ops->kind);
        return shl_err_advice("use --device virtual, or communicator shm");
    }
    static const char *const known[] = {"shm", "local", "nccl", "nccl-ordered"};
    const char *like = cfg->stands_for;
    if (like == NULL) {
        return SHL_OK;
    }
    for (size_t i = 0; i < SHL_ARRAY_LEN(known); i++) {
        if (strcmp(like, known[i]) == 0) {
            return SHL_OK;
        }
    }
    if (strcmp(like, "self") != 0) {
        SHL_RAISE(SHL_E_USAGE, "communicator virtual cannot stand for \"%s\"", like);
        return shl_err_because("it accounts for self, shm, local, nccl and nccl-ordered");
    }
    if (cfg->world != 1) {
        SHL_RAISE(SHL_E_USAGE, "communicator self has one rank");
        return shl_err_because("%d were asked for", cfg->world);
    }
    return SHL_OK;
}

static void
virtual_close(shl_comm *c)
{
    SHL_UNUSED(c);
}

/* Never called: a virtual stream advances its clock instead. */
static shl_code
no_work(void *arg)
{
    SHL_UNUSED(arg);
    return SHL_OK;
}

static shl_code
virtual_collective(shl_comm *c, shl_coll kind, const shl_comm_seg *segs, int n, shl_dtype dtype,
                   int root, int64_t cost_ns, shl_stream *s)
{
    SHL_UNUSED(c);
    SHL_UNUSED(kind);
    SHL_UNUSED(segs);
    SHL_UNUSED(n);
    SHL_UNUSED(dtype);
    SHL_UNUSED(root);
    return shl_stream_submit(s, no_work, NULL, 0, cost_ns);
}

static shl_code
virtual_control(shl_comm *c, shl_control_op op, void *data, int n)
{
    SHL_UNUSED(c);
    SHL_UNUSED(op);
    SHL_UNUSED(data);
    SHL_UNUSED(n);
    return SHL_OK;
}

static shl_code
virtual_agree(shl_comm *c, shl_code mine, const char *where)
{
    SHL_UNUSED(c);
    SHL_UNUSED(where);
    return mine;
}

static void
virtual_abort(shl_comm *c, const char *where)
{
    SHL_UNUSED(c);
    SHL_UNUSED(where);
}

/* The others' colors cannot be known: a rank alone supposes that they are all its own. */
static shl_code
virtual_split(shl_comm *c, int color, int key, shl_comm *child)
{
    SHL_UNUSED(c);
    SHL_UNUSED(color);
    SHL_UNUSED(key);
    SHL_UNUSED(child);
    return SHL_OK;
}

const shl_comm_ops shl_comm_virtual_ops = {
    .kind = "virtual",
    .open = virtual_open,
    .close = virtual_close,
    .collective = virtual_collective,
    .control = virtual_control,
    .agree = virtual_agree,
    .abort = virtual_abort,
    .split = virtual_split,
};

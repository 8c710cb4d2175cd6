/* engines/comm: self, a world of one: collectives are copies on the stream. */
#include "engines/comm/comm_backend.h"
#include "kernels/base/clock.h"
#include "kernels/base/types.h"

static shl_code
self_open(shl_comm *c, const shl_comm_config *cfg)
{
    SHL_UNUSED(c);
    if (cfg->world != 1) {
        SHL_RAISE(SHL_E_USAGE, "communicator self has one rank");
        shl_err_because("%d were asked for", cfg->world);
        return shl_err_advice("use shm");
    }
    return SHL_OK;
}

static void
self_close(shl_comm *c)
{
    SHL_UNUSED(c);
}

static shl_code
sleep_for(void *arg)
{
    shl_clock_sleep_ns(*(const int64_t *)arg);
    return SHL_OK;
}

static shl_code
self_collective(shl_comm *c, shl_coll kind, const shl_comm_seg *segs, int n, shl_dtype dtype,
                int root, int64_t cost_ns, shl_stream *s)
{
    SHL_UNUSED(kind);
    SHL_UNUSED(root);
    for (int i = 0; i < n; i++) {
        if (segs[i].src != segs[i].dst && segs[i].elems > 0) {
            SHL_TRY(shl_device_copy(c->device, segs[i].dst, segs[i].src,
                                    (size_t)segs[i].elems * shl_dtype_bytes(dtype), s));
        }
    }
    if (c->config.sim_sleep && cost_ns > 0) {
        SHL_TRY(shl_stream_submit(s, sleep_for, &cost_ns, sizeof cost_ns, cost_ns));
    }
    return SHL_OK;
}

static shl_code
self_control(shl_comm *c, shl_control_op op, void *data, int n)
{
    SHL_UNUSED(c);
    SHL_UNUSED(op);
    SHL_UNUSED(data);
    SHL_UNUSED(n);
    return SHL_OK;
}

static shl_code
self_agree(shl_comm *c, shl_code mine, const char *where)
{
    SHL_UNUSED(c);
    SHL_UNUSED(where);
    return mine;
}

static void
self_abort(shl_comm *c, const char *where)
{
    SHL_UNUSED(c);
    SHL_UNUSED(where);
}

static shl_code
self_split(shl_comm *c, int color, int key, shl_comm *child)
{
    SHL_UNUSED(c);
    SHL_UNUSED(color);
    SHL_UNUSED(key);
    SHL_UNUSED(child);
    return SHL_OK;
}

const shl_comm_ops shl_comm_self_ops = {
    .kind = "self",
    .open = self_open,
    .close = self_close,
    .collective = self_collective,
    .control = self_control,
    .agree = self_agree,
    .abort = self_abort,
    .split = self_split,
};

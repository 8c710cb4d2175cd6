/* kernels/cuda: ops on tensors in host memory: the host's kernels, as calls in the order of the stream.
 * What offload keeps there is read and written without crossing the bus. */
#include <string.h>

#include "kernels/cuda/cuda_impl.h"
#include "kernels/ops/op_cases.h"

#define MAX_TENSORS 6

/* The tensors of the ops that know host memory; 0 for the others. */
static int
tensors_of(shl_op op, const void *args, const shl_tensor *out[MAX_TENSORS])
{
    const shl_op_any_args *a = args;
    switch ((int)op) {
    case SHL_OP_INIT:
        out[0] = &a->init.dst;
        return 1;
    case SHL_OP_SCALE:
        out[0] = &a->scale.x;
        return 1;
    case SHL_OP_CAST:
        out[0] = &a->cast.dst;
        out[1] = &a->cast.src;
        return 2;
    case SHL_OP_ADD:
        out[0] = &a->add.y;
        out[1] = &a->add.x1;
        out[2] = &a->add.x2;
        return 3;
    case SHL_OP_NORM_MAX:
    case SHL_OP_NORM_SUM:
        out[0] = &a->norm.x;
        return 1;
    case SHL_OP_ADAMW:
        out[0] = &a->adamw.param;
        out[1] = &a->adamw.grad;
        out[2] = &a->adamw.m;
        out[3] = &a->adamw.v;
        out[4] = &a->adamw.rounded;
        return 5;
    case SHL_OP_OPTIM:
        out[0] = &a->optim.param;
        out[1] = &a->optim.grad;
        out[2] = &a->optim.m;
        out[3] = &a->optim.v;
        out[4] = &a->optim.rounded;
        return 5;
    default:
        return 0;
    }
}

shl_code
shl_cuda_side(const shl_device *d, shl_op op, const void *args, bool *on_host)
{
    const shl_tensor *t[MAX_TENSORS];
    int n = tensors_of(op, args, t), seen = 0, host = 0;
    for (int i = 0; i < n; i++) {
        seen += t[i]->data != NULL;
        host += t[i]->data != NULL && shl_cuda_is_host(d, t[i]->data);
    }
    *on_host = host > 0;
    if (host > 0 && host < seen) {
        SHL_RAISE(SHL_E_BUG, "%s: %d of %d tensors lie in host memory", shl_op_name(op), host,
                  seen);
        return shl_err_because("an op runs on one side of the bus");
    }
    return SHL_OK;
}

typedef struct host_op {
    shl_op_fn fn;
    shl_stream *stream;
    shl_op_any_args args;
} host_op;

static shl_code
run_host_op(void *arg)
{
    const host_op *h = arg;
    return h->fn(h->stream, &h->args, NULL);
}

static size_t
args_bytes(shl_op op)
{
    switch ((int)op) {
    case SHL_OP_INIT:
        return sizeof(shl_init_args);
    case SHL_OP_SCALE:
        return sizeof(shl_scale_args);
    case SHL_OP_CAST:
        return sizeof(shl_cast_args);
    case SHL_OP_ADD:
        return sizeof(shl_add_args);
    case SHL_OP_ADAMW:
        return sizeof(shl_adamw_args);
    case SHL_OP_OPTIM:
        return sizeof(shl_optim_args);
    default:
        return sizeof(shl_norm_args);
    }
}

/* A norm adds to words in device memory: they come over, and go back. */
static shl_code
host_norm(shl_op op, shl_stream *s, const shl_norm_args *args)
{
    shl_device *d = s->device;
    const cuda_impl *c = cuda_of(d);
    bool sum = op == SHL_OP_NORM_SUM;
    const shl_tensor *out = sum ? &args->out_sum : &args->out_max;
    size_t bytes = sum ? 2 * sizeof(int64_t) : sizeof(uint32_t);
    host_op h = {.fn = d->host_table->fn[op], .stream = s};
    memcpy(&h.args, args, sizeof(*args));
    (sum ? &h.args.norm.out_sum : &h.args.norm.out_max)->data = c->norm_words;
    SHL_TRY(shl_device_copy(d, c->norm_words, out->data, bytes, s));
    SHL_TRY(shl_cuda_submit(d, s, run_host_op, &h, sizeof(h), 0));
    return shl_device_copy(d, out->data, c->norm_words, bytes, s);
}

shl_code
shl_cuda_host_op(shl_op op, shl_stream *s, const void *args, void *work)
{
    host_op h = {.fn = s->device->host_table->fn[op], .stream = s};
    SHL_ASSERT(work == NULL && sizeof(h) <= CUDA_CALL_BYTES);
    if (op == SHL_OP_NORM_MAX || op == SHL_OP_NORM_SUM) {
        return host_norm(op, s, args);
    }
    memcpy(&h.args, args, args_bytes(op));
    return shl_cuda_submit(s->device, s, run_host_op, &h, sizeof(h), 0);
}

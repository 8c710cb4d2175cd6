/* tests/support: the simplest possible engine. It does what an engine must and nothing more: sets
 * data, grad and grad_accumulate of each parameter. */
#include "tests/support/plain_model.h"

#include "kernels/base/heap.h"

static shl_code
param_open(shl_plain *p, int i, uint64_t seed)
{
    shl_param *q = p->model->params[i];
    size_t bytes = (size_t)q->elems * shl_dtype_bytes(q->dtype);
    shl_buf *b = &p->bufs[2 * (size_t)i];
    SHL_TRY(shl_device_alloc(p->device, bytes, SHL_TIER_DEVICE, SHL_TAG_PARAM, 0, q->name, &b[0]));
    SHL_TRY(shl_device_alloc(p->device, bytes, SHL_TIER_DEVICE, SHL_TAG_GRAD, 0, q->name, &b[1]));
    q->data = b[0].data;
    q->grad = b[1].data;
    q->grad_accumulate = false;
    shl_init_args args = {.dst = shl_tensor_1d(q->data, q->dtype, q->elems),
                          .kind = q->init_kind,
                          .value = q->init_value,
                          .std = q->init_std,
                          .seed = seed,
                          .stream = q->init_stream};
    return shl_op_init(shl_device_stream(p->device, SHL_STREAM_COMPUTE), &args);
}

shl_code
shl_plain_open(shl_device *d, shl_model *m, uint64_t seed, shl_plain *out)
{
    *out = (shl_plain){.device = d, .model = m};
    shl_code code = shl_heap_alloc(2 * (size_t)m->n_params, sizeof(shl_buf), &out->bufs);
    for (int i = 0; i < m->n_params && code == SHL_OK; i++) {
        code = param_open(out, i, seed);
    }
    if (code != SHL_OK) {
        shl_plain_close(out);
    }
    return code;
}

void
shl_plain_close(shl_plain *p)
{
    for (int i = 0; i < 2 * p->model->n_params && p->bufs != NULL; i++) {
        shl_device_free(p->device, &p->bufs[i]);
    }
    for (int i = 0; i < p->model->n_params; i++) {
        p->model->params[i]->data = NULL;
        p->model->params[i]->grad = NULL;
    }
    shl_heap_free(&p->bufs);
}

void
shl_plain_zero_grad(shl_plain *p)
{
    for (int i = 0; i < p->model->n_params; i++) {
        p->model->params[i]->grad_accumulate = false;
    }
}

static size_t
param_bytes(const shl_plain *p, int i)
{
    return (size_t)p->model->params[i]->elems * sizeof(float);
}

shl_code
shl_plain_set(shl_plain *p, int i, const float *values)
{
    return shl_device_upload(p->device, p->bufs[2 * (size_t)i].data, values, param_bytes(p, i));
}

shl_code
shl_plain_get(const shl_plain *p, int i, float *values)
{
    return shl_device_download(p->device, values, p->bufs[2 * (size_t)i].data, param_bytes(p, i));
}

shl_code
shl_plain_grad(const shl_plain *p, int i, float *values)
{
    const void *grad = p->bufs[2 * (size_t)i + 1].data;
    return shl_device_download(p->device, values, grad, param_bytes(p, i));
}

static shl_code
upload_new(shl_device *d, const void *host, size_t bytes, const char *owner, shl_buf *out)
{
    SHL_TRY(shl_device_alloc(d, bytes, SHL_TIER_DEVICE, SHL_TAG_STAGING, 0, owner, out));
    return shl_device_upload(d, out->data, host, bytes);
}

static shl_code
batch_fill(shl_device *d, const int32_t *tokens, const int32_t *targets, int64_t rows,
           shl_plain_batch *b)
{
    const double zero = 0.0;
    size_t bytes = (size_t)rows * sizeof(int32_t);
    int64_t valid = 0;
    SHL_TRY(upload_new(d, tokens, bytes, "tokens", &b->tokens));
    b->run.tokens = shl_tensor_1d(b->tokens.data, SHL_I32, rows);
    if (targets != NULL) {
        SHL_TRY(upload_new(d, targets, bytes, "targets", &b->targets));
        b->run.targets = shl_tensor_1d(b->targets.data, SHL_I32, rows);
        for (int64_t i = 0; i < rows; i++) {
            valid += targets[i] != SHL_IGNORE_INDEX;
        }
    }
    b->run.dloss = valid > 0 ? (float)(1.0 / (double)valid) : 0.0F;
    SHL_TRY(upload_new(d, &zero, sizeof zero, "loss", &b->loss));
    b->run.loss_sum = shl_tensor_1d(b->loss.data, SHL_F64, 1);
    return SHL_OK;
}

shl_code
shl_plain_batch_open(shl_device *d, int64_t batch, int64_t seq, const int32_t *tokens,
                     const int32_t *targets, shl_plain_batch *out)
{
    *out = (shl_plain_batch){0};
    out->run = (shl_run){.device = d,
                         .stream = shl_device_stream(d, SHL_STREAM_COMPUTE),
                         .tape = &out->tape,
                         .batch = batch,
                         .seq = seq,
                         .want_grad = true};
    shl_code code = batch_fill(d, tokens, targets, batch * seq, out);
    if (code != SHL_OK) {
        shl_plain_batch_close(d, out);
    }
    return code;
}

void
shl_plain_batch_close(shl_device *d, shl_plain_batch *b)
{
    shl_tape_fini(&b->tape, d);
    shl_device_free(d, &b->loss);
    shl_device_free(d, &b->targets);
    shl_device_free(d, &b->tokens);
}

shl_code
shl_plain_loss_sum(shl_device *d, const shl_plain_batch *b, double *out)
{
    return shl_device_download(d, out, b->loss.data, sizeof *out);
}

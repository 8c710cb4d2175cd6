/* bench: speed of the ops that are not matrix products: attention against the multiply-add peak,
 * cross-entropy against one pass over its logits, AdamW against its memory traffic. */
#include "bench/probes.h"
#include "bench/speed.h"
#include "kernels/base/clock.h"
#include "kernels/base/types.h"
#include "kernels/ops/ops.h"

/* ---- AdamW ---- */

static shl_code
measure_adamw(shl_device *d, shl_buf *arrays, int64_t n, const shl_speed_config *c,
              const shl_speed_probes *probes, shl_speed_rounds *r)
{
    shl_stream *stream = shl_device_stream(d, SHL_STREAM_COMPUTE);
    shl_adamw_args a = {.param = shl_tensor_1d(arrays[0].data, SHL_F32, n),
                        .m = shl_tensor_1d(arrays[1].data, SHL_F32, n),
                        .v = shl_tensor_1d(arrays[2].data, SHL_F32, n),
                        .grad = shl_tensor_1d(arrays[3].data, SHL_F32, n),
                        .lr = 1e-4,
                        .beta1 = 0.9,
                        .beta2 = 0.95,
                        .eps = 1e-8,
                        .weight_decay = 0.1,
                        .grad_scale = 1,
                        .step = 1};
    int sweeps = c->quick ? 8 : 4; /* long against the turns of other processes */
    double bytes = SHL_PROBE_TRAFFIC_BYTES * (double)n * sweeps;
    for (int round = -1; round < c->rounds; round++) {
        int at = round < 0 ? 0 : round; /* round -1 warms up and is overwritten */
        for (int half = 0; half < 2; half++) {
            double *rate = (half + round) % 2 == 0 ? &r->reference[at] : &r->value[at];
            int64_t begin = shl_clock_ns();
            for (int i = 0; i < sweeps; i++) {
                if (rate == &r->value[at]) {
                    SHL_TRY(shl_op_adamw(stream, &a));
                } else {
                    (void)shl_probe_traffic_ns(arrays[0].data, arrays[1].data, arrays[2].data,
                                               arrays[3].data, n, c->threads);
                }
            }
            *rate = bytes / (double)(shl_clock_ns() - begin);
            /* The second moment of a real run is not negative. */
            SHL_TRY(shl_device_fill(d, arrays[2].data, 0, (size_t)n * 4, NULL));
        }
        r->ratio[at] = r->value[at] / r->reference[at];
        shl_speed_probe(probes, r, at);
    }
    r->n = c->rounds;
    return SHL_OK;
}

shl_code
shl_speed_adamw(const shl_speed_config *c, shl_speed_list *out)
{
    int64_t n = c->quick ? INT64_C(8) << 20 : INT64_C(32) << 20;
    shl_speed_rounds r = {.n = 0};
    shl_buf arrays[4] = {{0}};
    shl_speed_probes probes = {.device = NULL};
    shl_device *d = NULL;
    SHL_TRY(shl_speed_open_device(c->threads, &d));
    shl_code code, closed;
    SHL_TRY_TO(code, out, shl_speed_probes_open(c->threads, &probes));
    for (int i = 0; i < 4; i++) {
        SHL_TRY_TO(code, out, shl_speed_new_array(d, n, &arrays[i]));
    }
    SHL_TRY_TO(code, out, shl_device_fill(d, arrays[2].data, 0, (size_t)n * 4, NULL));
    SHL_TRY_TO(code, out, measure_adamw(d, arrays, n, c, &probes, &r));
    shl_speed_add(out,
                  (shl_speed_row){.name = "adamw",
                                  .what = "AdamW / kernel with the same traffic",
                                  .unit = "GB/s",
                                  .bound = 0.97,
                                  .threads = c->threads},
                  &r);
out:
    for (int i = 0; i < 4; i++) {
        shl_device_free(d, &arrays[i]);
    }
    closed = shl_speed_probes_close(&probes);
    closed = shl_device_close(&d) != SHL_OK ? shl_err_get()->code : closed;
    return code != SHL_OK ? code : closed;
}

/* ---- attention ---- */

typedef struct attention_room {
    shl_device *device;
    shl_buf qkv, y, lse, dy, dqkv;
} attention_room;

static shl_attention_args
attention_args(const attention_room *room, const shl_speed_config *c)
{
    int64_t heads = 12, dim = 64;
    float *qkv = room->qkv.data, *dqkv = room->dqkv.data;
    return (shl_attention_args){.q = qkv,
                                .k = qkv + heads * dim,
                                .v = qkv + 2 * heads * dim,
                                .y = room->y.data,
                                .lse = room->lse.data,
                                .dy = room->dy.data,
                                .dq = dqkv,
                                .dk = dqkv + heads * dim,
                                .dv = dqkv + 2 * heads * dim,
                                .q_stride = 3 * heads * dim,
                                .kv_stride = 3 * heads * dim,
                                .batch = c->quick ? 1 : 4,
                                .seq = c->quick ? 512 : 1024,
                                .heads = heads,
                                .kv_heads = heads,
                                .head_dim = dim,
                                .scale = 0.125f,
                                .dtype = SHL_F32};
}

static shl_code
measure_attention(attention_room *room, const shl_speed_config *c, const shl_speed_probes *probes,
                  shl_speed_rounds *forward, shl_speed_rounds *backward)
{
    shl_attention_args a = attention_args(room, c);
    shl_stream *stream = shl_device_stream(room->device, SHL_STREAM_COMPUTE);
    /* Pairs that a query sees, two products in forward, four in backward. */
    double pairs = (double)(a.batch * a.heads) * (double)a.seq * (double)(a.seq + 1) / 2;
    double flops = 2 * 2 * pairs * (double)a.head_dim;
    for (int round = -1; round < c->rounds; round++) {
        int at = round < 0 ? 0 : round;
        int64_t busy_ns = shl_clock_process_ns(), begin = shl_clock_ns();
        SHL_TRY(shl_op_attention_forward(stream, &a));
        int64_t middle = shl_clock_ns();
        SHL_TRY(shl_op_attention_backward(stream, &a));
        int64_t end = shl_clock_ns();
        double busy = (double)(shl_clock_process_ns() - busy_ns);
        forward->share[at] = backward->share[at] = busy / ((double)(end - begin) * c->threads);
        shl_speed_probe(probes, forward, at);
        backward->flops_per_s[at] = forward->flops_per_s[at];
        backward->bytes_per_s[at] = forward->bytes_per_s[at];
        forward->value[at] = flops / (double)(middle - begin);
        backward->value[at] = 2 * flops / (double)(end - middle);
        forward->reference[at] = backward->reference[at] = forward->flops_per_s[at] * 1e-9;
        forward->ratio[at] = forward->value[at] / forward->reference[at];
        backward->ratio[at] = backward->value[at] / backward->reference[at];
    }
    forward->n = backward->n = c->rounds;
    return SHL_OK;
}

shl_code
shl_speed_attention(const shl_speed_config *c, shl_speed_list *out)
{
    attention_room room = {.device = NULL};
    shl_speed_probes probes = {.device = NULL};
    shl_speed_rounds forward = {.n = 0}, backward = {.n = 0};
    shl_speed_row row = {.name = "attention_forward",
                         .what = "causal FLOPs of 2 products / peak",
                         .unit = "GFLOP/s",
                         .bound = 0.48,
                         .threads = c->threads};
    SHL_TRY(shl_speed_open_device(c->threads, &room.device));
    shl_attention_args a = attention_args(&room, c);
    int64_t rows = a.batch * a.seq, width = a.heads * a.head_dim;
    shl_code code, closed;
    SHL_TRY_TO(code, out, shl_speed_probes_open(c->threads, &probes));
    SHL_TRY_TO(code, out, shl_speed_new_array(room.device, 3 * rows * width, &room.qkv));
    SHL_TRY_TO(code, out, shl_speed_new_array(room.device, 3 * rows * width, &room.dqkv));
    SHL_TRY_TO(code, out, shl_speed_new_array(room.device, rows * width, &room.y));
    SHL_TRY_TO(code, out, shl_speed_new_array(room.device, rows * width, &room.dy));
    SHL_TRY_TO(code, out, shl_speed_new_array(room.device, rows * a.heads, &room.lse));
    SHL_TRY_TO(code, out, measure_attention(&room, c, &probes, &forward, &backward));
    shl_speed_add(out, row, &forward);
    row.name = "attention_backward";
    row.what = "causal FLOPs of 4 products / peak";
    row.bound = 0.38;
    shl_speed_add(out, row, &backward);
out:
    shl_device_free(room.device, &room.qkv);
    shl_device_free(room.device, &room.dqkv);
    shl_device_free(room.device, &room.y);
    shl_device_free(room.device, &room.dy);
    shl_device_free(room.device, &room.lse);
    closed = shl_speed_probes_close(&probes);
    closed = shl_device_close(&room.device) != SHL_OK ? shl_err_get()->code : closed;
    return code != SHL_OK ? code : closed;
}

/* ---- cross-entropy ---- */

typedef struct loss_room {
    shl_device *device;
    shl_buf logits, targets, sum;
    int64_t rows, vocab;
} loss_room;

static shl_code
open_loss(loss_room *room, const shl_speed_config *c)
{
    int32_t targets[256];
    room->rows = c->quick ? 64 : 256;
    room->vocab = 50257;
    SHL_TRY(shl_speed_open_device(c->threads, &room->device));
    SHL_TRY(shl_speed_new_array(room->device, room->rows * room->vocab, &room->logits));
    for (int64_t i = 0; i < room->rows; i++) {
        targets[i] = (int32_t)(i * 191);
    }
    SHL_TRY(shl_device_alloc(room->device, sizeof(targets), SHL_TIER_DEVICE, SHL_TAG_WORK, 0,
                             "bench", &room->targets));
    SHL_TRY(shl_device_alloc(room->device, sizeof(double), SHL_TIER_DEVICE, SHL_TAG_WORK, 0,
                             "bench", &room->sum));
    SHL_TRY(shl_device_fill(room->device, room->sum.data, 0, sizeof(double), NULL));
    return shl_device_upload(room->device, room->targets.data, targets,
                             (size_t)room->rows * sizeof(targets[0]));
}

/* The logits become their own gradient, which serves as the next round's logits: the passes do not
 * look at values. */
static shl_code
measure_loss(loss_room *room, const shl_speed_config *c, const shl_speed_probes *probes,
             shl_speed_rounds *r)
{
    shl_stream *stream = shl_device_stream(room->device, SHL_STREAM_COMPUTE);
    shl_tensor logits = shl_tensor_2d(room->logits.data, SHL_F32, room->rows, room->vocab);
    shl_cross_entropy_args loss = {.logits = logits,
                                   .targets =
                                       shl_tensor_1d(room->targets.data, SHL_I32, room->rows),
                                   .loss_sum = shl_tensor_1d(room->sum.data, SHL_F64, 1),
                                   .dloss = 1.0f,
                                   .want_grad = true};
    shl_scale_args scale = {.x = logits, .factor = 1.0f};
    for (int round = -1; round < c->rounds; round++) {
        int at = round < 0 ? 0 : round;
        for (int half = 0; half < 2; half++) {
            bool is_scale = (half + round) % 2 == 0;
            int64_t begin = shl_clock_ns();
            SHL_TRY(is_scale ? shl_op_scale(stream, &scale) : shl_op_cross_entropy(stream, &loss));
            double ms = (double)(shl_clock_ns() - begin) * 1e-6;
            *(is_scale ? &r->reference[at] : &r->value[at]) = ms;
        }
        r->ratio[at] = r->reference[at] / r->value[at];
        shl_speed_probe(probes, r, at);
    }
    r->n = c->rounds;
    return SHL_OK;
}

shl_code
shl_speed_cross_entropy(const shl_speed_config *c, shl_speed_list *out)
{
    loss_room room = {.device = NULL};
    shl_speed_probes probes = {.device = NULL};
    shl_speed_rounds r = {.n = 0};
    shl_code code, closed;
    SHL_TRY_TO(code, out, open_loss(&room, c));
    SHL_TRY_TO(code, out, shl_speed_probes_open(c->threads, &probes));
    SHL_TRY_TO(code, out, measure_loss(&room, c, &probes, &r));
    shl_speed_add(out,
                  (shl_speed_row){.name = "cross_entropy",
                                  .what = "256 x 50257 / scaling in place",
                                  .unit = "ms",
                                  .bound = 0.30,
                                  .threads = c->threads},
                  &r);
out:
    if (room.device) {
        shl_device_free(room.device, &room.logits);
        shl_device_free(room.device, &room.targets);
        shl_device_free(room.device, &room.sum);
    }
    closed = shl_speed_probes_close(&probes);
    closed = shl_device_close(&room.device) != SHL_OK ? shl_err_get()->code : closed;
    return code != SHL_OK ? code : closed;
}

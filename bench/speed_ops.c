/* bench: speed of single ops: matrix products against the library they call, AdamW against its memory
 * traffic. */
#include <dnnl.h>
#include <math.h>
#include <string.h>

#include "bench/probes.h"
#include "bench/speed.h"
#include "bench/stats.h"
#include "kernels/base/clock.h"
#include "kernels/base/types.h"
#include "kernels/device/device.h"
#include "kernels/ops/ops.h"

#define MAX_ROUNDS 64
#define ROWS INT64_C(256) /* B 4 x T 64 */
#define WIDTH INT64_C(768)
#define VOCAB INT64_C(50257)

void
shl_speed_add(shl_speed_list *list, shl_speed_row row)
{
    SHL_ASSERT(list->n < SHL_SPEED_MAX_ROWS);
    row.kind = "bench";
    row.schema = 1;
    if (row.bound > 0) {
        row.verdict = row.ratio >= row.bound ? "PASS" : "below";
    } else {
        row.reference = row.ratio = row.bound = row.spread = (double)NAN;
    }
    list->rows[list->n++] = row;
}

/* ---- matrix products ---- */

typedef enum gemm_pass { PASS_FORWARD = 0, PASS_INPUT, PASS_WEIGHT, PASS_COUNT } gemm_pass;

typedef struct gemm_shape {
    int64_t in, out;
    shl_weight_order order;
} gemm_shape;

static const gemm_shape SHAPES[] = {
    {WIDTH, 3 * WIDTH, SHL_WEIGHT_IO}, /* c_attn */
    {WIDTH, WIDTH, SHL_WEIGHT_IO},     /* attn.c_proj */
    {WIDTH, 4 * WIDTH, SHL_WEIGHT_IO}, /* c_fc */
    {4 * WIDTH, WIDTH, SHL_WEIGHT_IO}, /* mlp.c_proj */
    {WIDTH, VOCAB, SHL_WEIGHT_OI},     /* head, tied to the embedding */
};
#define N_SHAPES ((int)SHL_ARRAY_LEN(SHAPES))
#define N_CASES (N_SHAPES * PASS_COUNT)

/* Arrays for the largest shape, and the device that they and the op live on. */
typedef struct gemm_room {
    shl_device *device;
    shl_buf in, out, weight, result;
} gemm_room;

static shl_code
open_device(int threads, shl_device **out)
{
    shl_device_config config = {.kind = "cpu", .threads = threads};
    SHL_TRY(shl_device_open(&config, out));
    return SHL_OK;
}

/* n elements with the values of a new weight, so that no product is denormal. */
static shl_code
new_array(shl_device *d, int64_t n, shl_buf *out)
{
    SHL_TRY(shl_device_alloc(d, (size_t)n * 4, SHL_TIER_DEVICE, SHL_TAG_WORK, 0, "bench", out));
    shl_init_args init = {.dst = shl_tensor_1d(out->data, SHL_F32, n),
                          .kind = SHL_INIT_NORMAL,
                          .std = 0.02,
                          .seed = 1,
                          .stream = (uint64_t)n};
    SHL_TRY(shl_op_init(shl_device_stream(d, SHL_STREAM_COMPUTE), &init));
    return SHL_OK;
}

static shl_linear_args
args_of(const gemm_room *room, const gemm_shape *s, gemm_pass pass)
{
    int64_t rows = s->order == SHL_WEIGHT_IO ? s->in : s->out;
    int64_t cols = s->order == SHL_WEIGHT_IO ? s->out : s->in;
    shl_tensor in = shl_tensor_2d(room->in.data, SHL_F32, ROWS, s->in);
    shl_tensor out = shl_tensor_2d(room->out.data, SHL_F32, ROWS, s->out);
    shl_tensor weight = shl_tensor_2d(room->weight.data, SHL_F32, rows, cols);
    shl_linear_args a = {.order = s->order};
    if (pass == PASS_FORWARD) {
        a.x = in;
        a.w = weight;
        a.y = shl_tensor_2d(room->result.data, SHL_F32, ROWS, s->out);
    } else if (pass == PASS_INPUT) {
        a.dy = out;
        a.w = weight;
        a.dx = shl_tensor_2d(room->result.data, SHL_F32, ROWS, s->in);
    } else {
        a.x = in;
        a.dy = out;
        a.dw = shl_tensor_2d(room->result.data, SHL_F32, rows, cols);
    }
    return a;
}

static shl_code
run_op(const gemm_room *room, const gemm_shape *s, gemm_pass pass)
{
    shl_stream *stream = shl_device_stream(room->device, SHL_STREAM_COMPUTE);
    shl_linear_args a = args_of(room, s, pass);
    switch (pass) {
    case PASS_FORWARD:
        return shl_op_linear_forward(stream, &a);
    case PASS_INPUT:
        return shl_op_linear_backward_input(stream, &a);
    case PASS_WEIGHT:
        return shl_op_linear_backward_weight(stream, &a);
    case PASS_COUNT:
        break;
    }
    return SHL_RAISE(SHL_E_BUG, "no such pass");
}

static shl_code
run_bare(const gemm_room *room, const gemm_shape *s, gemm_pass pass)
{
    bool io = s->order == SHL_WEIGHT_IO;
    const float *x = room->in.data, *w = room->weight.data, *dy = room->out.data;
    float *c = room->result.data;
    int64_t ldw = io ? s->out : s->in;
    dnnl_status_t st = dnnl_success;
    if (pass == PASS_FORWARD) {
        st =
            dnnl_sgemm('N', io ? 'N' : 'T', ROWS, s->out, s->in, 1, x, s->in, w, ldw, 0, c, s->out);
    } else if (pass == PASS_INPUT) {
        st = dnnl_sgemm('N', io ? 'T' : 'N', ROWS, s->in, s->out, 1, dy, s->out, w, ldw, 0, c,
                        s->in);
    } else if (io) {
        st = dnnl_sgemm('T', 'N', s->in, s->out, ROWS, 1, x, s->in, dy, s->out, 0, c, s->out);
    } else {
        st = dnnl_sgemm('T', 'N', s->out, s->in, ROWS, 1, dy, s->out, x, s->in, 0, c, s->in);
    }
    return st == dnnl_success ? SHL_OK
                              : SHL_RAISE(SHL_E_SYSTEM, "dnnl_sgemm gave status %d", (int)st);
}

/* Nanoseconds of one product, as the mean of enough calls to see past the clock. */
static shl_code
time_product(const gemm_room *room, const gemm_shape *s, gemm_pass pass, bool bare, double *ns)
{
    double flops = 2.0 * (double)ROWS * (double)s->in * (double)s->out;
    int calls = flops < 1e9 ? 4 : flops < 4e9 ? 2 : 1;
    int64_t begin = shl_clock_ns();
    for (int i = 0; i < calls; i++) {
        SHL_TRY(bare ? run_bare(room, s, pass) : run_op(room, s, pass));
    }
    *ns = (double)(shl_clock_ns() - begin) / calls;
    return SHL_OK;
}

static shl_code
measure_gemm(const gemm_room *room, int rounds, double (*op)[MAX_ROUNDS],
             double (*bare)[MAX_ROUNDS])
{
    for (int round = -1; round < rounds; round++) {
        for (int k = 0; k < N_CASES; k++) {
            const gemm_shape *s = &SHAPES[k / PASS_COUNT];
            gemm_pass pass = (gemm_pass)(k % PASS_COUNT);
            int at = round < 0 ? 0 : round; /* round -1 warms up and is overwritten */
            for (int half = 0; half < 2; half++) {
                bool is_bare = (half + round + k) % 2 == 0;
                SHL_TRY(time_product(room, s, pass, is_bare, is_bare ? &bare[k][at] : &op[k][at]));
            }
        }
    }
    return SHL_OK;
}

static void
add_gemm_row(int rounds, double (*op)[MAX_ROUNDS], double (*bare)[MAX_ROUNDS], shl_speed_list *out)
{
    double ratios[N_CASES], flops = 0, op_ns = 0, bare_ns = 0, worst = 1e9;
    for (int k = 0; k < N_CASES; k++) {
        const gemm_shape *s = &SHAPES[k / PASS_COUNT];
        double ours = shl_stats_median(op[k], (size_t)rounds);
        double theirs = shl_stats_median(bare[k], (size_t)rounds);
        flops += 2.0 * (double)ROWS * (double)s->in * (double)s->out;
        op_ns += ours;
        bare_ns += theirs;
        ratios[k] = theirs / ours;
        worst = ratios[k] < worst ? ratios[k] : worst;
    }
    shl_speed_add(out, (shl_speed_row){.name = "gemm",
                                       .what = "GPT-2 124M products / bare dnnl_sgemm",
                                       .unit = "GFLOP/s",
                                       .value = flops / op_ns,
                                       .reference = flops / bare_ns,
                                       .ratio = shl_stats_geomean(ratios, N_CASES),
                                       .bound = 0.95,
                                       .spread = 1 - worst,
                                       .rounds = rounds});
}

shl_code
shl_speed_gemm(const shl_speed_config *c, shl_speed_list *out)
{
    double op[N_CASES][MAX_ROUNDS] = {{0}}, bare[N_CASES][MAX_ROUNDS] = {{0}};
    gemm_room room = {0};
    SHL_ASSERT(c->rounds >= 1 && c->rounds <= MAX_ROUNDS);
    SHL_TRY(open_device(c->threads, &room.device));
    shl_code code;
    SHL_TRY_TO(code, out, new_array(room.device, ROWS * 4 * WIDTH, &room.in));
    SHL_TRY_TO(code, out, new_array(room.device, ROWS * VOCAB, &room.out));
    SHL_TRY_TO(code, out, new_array(room.device, WIDTH * VOCAB, &room.weight));
    SHL_TRY_TO(code, out, new_array(room.device, WIDTH * VOCAB, &room.result));
    SHL_TRY_TO(code, out, measure_gemm(&room, c->rounds, op, bare));
    add_gemm_row(c->rounds, op, bare, out);
out:
    shl_device_free(room.device, &room.in);
    shl_device_free(room.device, &room.out);
    shl_device_free(room.device, &room.weight);
    shl_device_free(room.device, &room.result);
    shl_code closed = shl_device_close(&room.device);
    return code != SHL_OK ? code : closed;
}

/* ---- AdamW ---- */

static shl_code
measure_adamw(shl_device *d, shl_buf *arrays, int64_t n, const shl_speed_config *c, double *op,
              double *traffic)
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
    /* The second moment of a real run is not negative. */
    SHL_TRY(shl_device_fill(d, arrays[2].data, 0, (size_t)n * 4, NULL));
    int sweeps = c->quick ? 8 : 4; /* long against the turns of other processes */
    for (int round = -1; round < c->rounds; round++) {
        int at = round < 0 ? 0 : round;
        for (int half = 0; half < 2; half++) {
            double *ns = (half + round) % 2 == 0 ? &traffic[at] : &op[at];
            int64_t begin = shl_clock_ns();
            for (int i = 0; i < sweeps; i++) {
                if (ns == &op[at]) {
                    SHL_TRY(shl_op_adamw(stream, &a));
                } else {
                    (void)shl_probe_traffic_ns(arrays[0].data, arrays[1].data, arrays[2].data,
                                               arrays[3].data, n, c->threads);
                }
            }
            *ns = (double)(shl_clock_ns() - begin) / sweeps;
            SHL_TRY(shl_device_fill(d, arrays[2].data, 0, (size_t)n * 4, NULL));
        }
    }
    return SHL_OK;
}

shl_code
shl_speed_adamw(const shl_speed_config *c, shl_speed_list *out)
{
    int64_t n = c->quick ? INT64_C(8) << 20 : INT64_C(32) << 20;
    double op[MAX_ROUNDS], traffic[MAX_ROUNDS], ratios[MAX_ROUNDS];
    shl_buf arrays[4] = {{0}};
    shl_device *d = NULL;
    SHL_TRY(open_device(c->threads, &d));
    shl_code code = SHL_OK;
    for (int i = 0; i < 4 && code == SHL_OK; i++) {
        code = new_array(d, n, &arrays[i]);
    }
    if (code == SHL_OK) {
        code = measure_adamw(d, arrays, n, c, op, traffic);
    }
    if (code == SHL_OK) {
        size_t rounds = (size_t)c->rounds;
        for (size_t i = 0; i < rounds; i++) {
            ratios[i] = traffic[i] / op[i];
        }
        double bytes = SHL_PROBE_TRAFFIC_BYTES * (double)n;
        shl_speed_add(out, (shl_speed_row){.name = "adamw",
                                           .what = "AdamW / kernel with the same traffic",
                                           .unit = "GB/s",
                                           .value = bytes / shl_stats_median(op, rounds),
                                           .reference = bytes / shl_stats_median(traffic, rounds),
                                           .ratio = shl_stats_median(ratios, rounds),
                                           .bound = 0.92,
                                           .spread = shl_stats_mad(ratios, rounds),
                                           .rounds = c->rounds});
    }
    for (int i = 0; i < 4; i++) {
        shl_device_free(d, &arrays[i]);
    }
    shl_code closed = shl_device_close(&d);
    return code != SHL_OK ? code : closed;
}

/* bench: speed of the matrix products against the library that they call. */
#include <dnnl.h>

#include "bench/speed.h"
#include "bench/stats.h"
#include "kernels/base/clock.h"
#include "kernels/base/types.h"
#include "kernels/device/device.h"
#include "kernels/ops/ops.h"

#define ROWS INT64_C(256) /* B 4 x T 64 */
#define WIDTH INT64_C(768)
#define VOCAB INT64_C(50257)

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

typedef struct gemm_times {
    double op[N_CASES][SHL_SPEED_MAX_ROUNDS], bare[N_CASES][SHL_SPEED_MAX_ROUNDS]; /* ns */
    shl_speed_rounds rounds;
} gemm_times;

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
measure_gemm(const gemm_room *room, const shl_speed_probes *probes, int rounds, gemm_times *t)
{
    for (int round = -1; round < rounds; round++) {
        int at = round < 0 ? 0 : round; /* round -1 warms up and is overwritten */
        for (int k = 0; k < N_CASES; k++) {
            const gemm_shape *s = &SHAPES[k / PASS_COUNT];
            gemm_pass pass = (gemm_pass)(k % PASS_COUNT);
            for (int half = 0; half < 2; half++) {
                bool is_bare = (half + round + k) % 2 == 0;
                double *ns = is_bare ? &t->bare[k][at] : &t->op[k][at];
                SHL_TRY(time_product(room, s, pass, is_bare, ns));
            }
        }
        shl_speed_probe(probes, &t->rounds, at);
    }
    t->rounds.n = rounds;
    return SHL_OK;
}

/* The ratio is the mean over the shapes of each one's medians; its spread says how far the worst shape
 * is below. */
static void
add_gemm_row(gemm_times *t, const shl_speed_config *c, shl_speed_list *out)
{
    double ratios[N_CASES], worst = 1e9, flops = 0;
    shl_speed_rounds *r = &t->rounds;
    for (int k = 0; k < N_CASES; k++) {
        const gemm_shape *s = &SHAPES[k / PASS_COUNT];
        flops += 2.0 * (double)ROWS * (double)s->in * (double)s->out;
    }
    for (int at = 0; at < r->n; at++) {
        double op_ns = 0, bare_ns = 0;
        for (int k = 0; k < N_CASES; k++) {
            op_ns += t->op[k][at];
            bare_ns += t->bare[k][at];
        }
        r->value[at] = flops / op_ns;
        r->reference[at] = flops / bare_ns;
        r->ratio[at] = bare_ns / op_ns;
    }
    for (int k = 0; k < N_CASES; k++) {
        ratios[k] =
            shl_stats_median(t->bare[k], (size_t)r->n) / shl_stats_median(t->op[k], (size_t)r->n);
        worst = ratios[k] < worst ? ratios[k] : worst;
    }
    double mean = shl_stats_geomean(ratios, N_CASES);
    shl_speed_add(out,
                  (shl_speed_row){.name = "gemm",
                                  .what = "GPT-2 124M products / bare dnnl_sgemm",
                                  .unit = "GFLOP/s",
                                  .ratio = mean,
                                  .spread = mean - worst,
                                  .bound = 0.97,
                                  .threads = c->threads},
                  r);
}

shl_code
shl_speed_gemm(const shl_speed_config *c, shl_speed_list *out)
{
    gemm_times t = {.rounds = {.n = 0}};
    gemm_room room = {0};
    shl_speed_probes probes = {.device = NULL};
    SHL_TRY(shl_speed_open_device(c->threads, &room.device));
    shl_code code, closed;
    SHL_TRY_TO(code, out, shl_speed_probes_open(c->threads, &probes));
    SHL_TRY_TO(code, out, shl_speed_new_array(room.device, ROWS * 4 * WIDTH, &room.in));
    SHL_TRY_TO(code, out, shl_speed_new_array(room.device, ROWS * VOCAB, &room.out));
    SHL_TRY_TO(code, out, shl_speed_new_array(room.device, WIDTH * VOCAB, &room.weight));
    SHL_TRY_TO(code, out, shl_speed_new_array(room.device, WIDTH * VOCAB, &room.result));
    SHL_TRY_TO(code, out, measure_gemm(&room, &probes, c->rounds, &t));
    add_gemm_row(&t, c, out);
out:
    shl_device_free(room.device, &room.in);
    shl_device_free(room.device, &room.out);
    shl_device_free(room.device, &room.weight);
    shl_device_free(room.device, &room.result);
    closed = shl_speed_probes_close(&probes);
    closed = shl_device_close(&room.device) != SHL_OK ? shl_err_get()->code : closed;
    return code != SHL_OK ? code : closed;
}

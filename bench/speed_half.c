/* bench: speed of 16-bit numbers: casts against a copy of the same traffic, bf16 matrix products
 * against the same ones in fp32. */
#include <string.h>

#include "bench/speed.h"
#include "bench/stats.h"
#include "kernels/base/clock.h"
#include "kernels/base/types.h"
#include "kernels/ops/ops.h"

/* ---- casts ---- */

/* memcpy by as many threads, in pieces that a core keeps in its caches. */
static void
copy_bytes(char *dst, const char *src, int64_t bytes, int threads)
{
    const int64_t piece = 64 << 10;
#if defined(_OPENMP)
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
#else
    SHL_UNUSED(threads);
#endif
    for (int64_t i = 0; i < bytes; i += piece) {
        memcpy(dst + i, src + i, (size_t)(bytes - i < piece ? bytes - i : piece));
    }
}

typedef struct cast_pair {
    const char *name, *what;
    shl_dtype to, from;
} cast_pair;

static const cast_pair CASTS[] = {
    {"cast_to_bf16", "fp32 to bf16 / copy of the same bytes", SHL_BF16, SHL_F32},
    {"cast_from_bf16", "bf16 to fp32 / copy of the same bytes", SHL_F32, SHL_BF16},
    {"cast_to_fp16", "fp32 to fp16 / copy of the same bytes", SHL_F16, SHL_F32},
    {"cast_from_fp16", "fp16 to fp32 / copy of the same bytes", SHL_F32, SHL_F16},
};

/* A cast moves 6 n bytes, as a copy of 3 n does. */
static shl_code
measure_cast(shl_device *d, const shl_buf *a, const shl_buf *b, int64_t n, const cast_pair *pair,
             const shl_speed_config *c, shl_speed_rounds *r)
{
    shl_tensor src = shl_tensor_1d(a->data, pair->from, n);
    shl_tensor dst = shl_tensor_1d(b->data, pair->to, n);
    for (int round = -1; round < c->rounds; round++) {
        int at = round < 0 ? 0 : round;
        for (int half = 0; half < 2; half++) {
            bool is_copy = (half + round) % 2 == 0;
            int64_t begin = shl_clock_ns();
            if (is_copy) {
                copy_bytes(b->data, a->data, 3 * n, c->threads);
            } else {
                SHL_TRY(shl_op_cast(shl_device_stream(d, SHL_STREAM_COMPUTE), &dst, &src));
            }
            double rate = 6.0 * (double)n / (double)(shl_clock_ns() - begin);
            *(is_copy ? &r->reference[at] : &r->value[at]) = rate;
        }
        r->ratio[at] = r->value[at] / r->reference[at];
    }
    r->n = c->rounds;
    return SHL_OK;
}

shl_code
shl_speed_cast(const shl_speed_config *c, shl_speed_list *out)
{
    int64_t n = c->quick ? INT64_C(4) << 20 : INT64_C(32) << 20;
    shl_buf arrays[2] = {{0}};
    shl_device *d = NULL;
    shl_code code = SHL_OK, closed;
    SHL_TRY(shl_speed_open_device(c->threads, &d));
    for (int i = 0; i < 2; i++) {
        SHL_TRY_TO(code, out, shl_speed_new_array(d, n, &arrays[i]));
    }
    for (size_t i = 0; i < SHL_ARRAY_LEN(CASTS); i++) {
        shl_speed_rounds r = {.n = 0};
        SHL_TRY_TO(code, out, measure_cast(d, &arrays[0], &arrays[1], n, &CASTS[i], c, &r));
        shl_speed_add(out,
                      (shl_speed_row){.name = CASTS[i].name,
                                      .what = CASTS[i].what,
                                      .unit = "GB/s",
                                      .bound = 0.85,
                                      .threads = c->threads},
                      &r);
    }
out:
    for (int i = 0; i < 2; i++) {
        shl_device_free(d, &arrays[i]);
    }
    closed = shl_device_close(&d);
    return code != SHL_OK ? code : closed;
}

/* ---- products ---- */

#define ROWS INT64_C(256)
#define INPUTS INT64_C(768)
#define OUTPUTS INT64_C(3072)

/* Forward, input and weight gradient of one layer; the weight gradient is fp32, as it is accumulated. */
static shl_code
run_layer(shl_device *d, const shl_buf *b, shl_dtype dtype)
{
    shl_stream *s = shl_device_stream(d, SHL_STREAM_COMPUTE);
    shl_linear_args a = {.x = shl_tensor_2d(b[0].data, dtype, ROWS, INPUTS),
                         .dx = shl_tensor_2d(b[0].data, dtype, ROWS, INPUTS),
                         .w = shl_tensor_2d(b[1].data, dtype, INPUTS, OUTPUTS),
                         .dw = shl_tensor_2d(b[3].data, SHL_F32, INPUTS, OUTPUTS),
                         .y = shl_tensor_2d(b[2].data, dtype, ROWS, OUTPUTS),
                         .dy = shl_tensor_2d(b[2].data, dtype, ROWS, OUTPUTS)};
    SHL_TRY(shl_op_linear_forward(s, &a));
    SHL_TRY(shl_op_linear_backward_weight(s, &a));
    return shl_op_linear_backward_input(s, &a);
}

/* Sets b[dtype][i] to fp32 values, or to the same in bf16. */
static shl_code
open_layer(shl_device *d, shl_buf b[2][4])
{
    static const int64_t elems[] = {ROWS * INPUTS, INPUTS * OUTPUTS, ROWS * OUTPUTS,
                                    INPUTS * OUTPUTS};
    for (int i = 0; i < 4; i++) {
        for (int half = 0; half < 2; half++) {
            SHL_TRY(shl_speed_new_array(d, elems[i], &b[half][i]));
        }
        shl_tensor wide = shl_tensor_1d(b[0][i].data, SHL_F32, elems[i]);
        shl_tensor narrow = shl_tensor_1d(b[1][i].data, SHL_BF16, elems[i]);
        SHL_TRY(shl_op_cast(shl_device_stream(d, SHL_STREAM_COMPUTE), &narrow, &wide));
    }
    return SHL_OK;
}

static shl_code
measure_layer(shl_device *d, shl_buf b[2][4], const shl_speed_config *c, shl_speed_rounds *r)
{
    const double flops = 3 * 2.0 * (double)(ROWS * INPUTS * OUTPUTS);
    for (int round = -1; round < c->rounds; round++) {
        int at = round < 0 ? 0 : round;
        for (int k = 0; k < 2; k++) {
            int half = (k + round) % 2 == 0;
            int64_t begin = shl_clock_ns();
            SHL_TRY(run_layer(d, b[half], half ? SHL_BF16 : SHL_F32));
            double rate = flops / (double)(shl_clock_ns() - begin);
            *(half ? &r->value[at] : &r->reference[at]) = rate;
        }
        r->ratio[at] = r->value[at] / r->reference[at];
    }
    r->n = c->rounds;
    return SHL_OK;
}

bool
shl_speed_has_bf16(void)
{
#if defined(SHL_HAVE_X86_ISA)
    return __builtin_cpu_supports("avx512bf16") != 0;
#else
    return false;
#endif
}

/* Without instructions for bf16 the widening can only cost: what it may is a tenth. */
shl_code
shl_speed_gemm_bf16(const shl_speed_config *c, shl_speed_list *out)
{
    bool native = shl_speed_has_bf16();
    shl_speed_rounds r = {.n = 0};
    shl_buf b[2][4] = {{{0}}};
    shl_device *d = NULL;
    shl_code code = SHL_OK, closed;
    SHL_TRY(shl_speed_open_device(c->threads, &d));
    SHL_TRY_TO(code, out, open_layer(d, b));
    SHL_TRY_TO(code, out, measure_layer(d, b, c, &r));
    shl_speed_add(out,
                  (shl_speed_row){.name = "gemm_bf16",
                                  .what = native ? "bf16 products / fp32 ones"
                                                 : "bf16 products, widened / fp32 ones",
                                  .unit = "GFLOP/s",
                                  .bound = native ? 1.5 : 0.9,
                                  .threads = c->threads},
                  &r);
out:
    for (int i = 0; i < 8; i++) {
        shl_device_free(d, &b[i / 4][i % 4]);
    }
    closed = shl_device_close(&d);
    return code != SHL_OK ? code : closed;
}

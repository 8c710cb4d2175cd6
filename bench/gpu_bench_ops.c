/* bench: gpu-bench's limits and kernels. A kernel's limit is the longer of its useful FLOPs at the rate of a
 * large product and its tensors' bytes, each read or written once, at the rate of a large copy. */
#include <math.h>

#include <jansson.h>

#include "bench/gpu_bench.h"
#include "bench/stats.h"
#include "kernels/base/clock.h"
#include "kernels/base/types.h"
#include "kernels/ops/op_cases.h"

#define ROUNDS 5
#define KERNEL_NS 20000000 /* of a round */
#define LIMIT_NS 100000000

typedef shl_code (*work_fn)(void *ctx);

/* Calls, waited for once. */
static shl_code
time_round(shl_device *d, work_fn fn, void *ctx, int64_t calls, int64_t *ns)
{
    int64_t begin = shl_clock_ns();
    for (int64_t i = 0; i < calls; i++) {
        SHL_TRY(fn(ctx));
    }
    SHL_TRY(shl_device_sync(d));
    *ns = shl_clock_ns() - begin;
    return SHL_OK;
}

/* Nanoseconds of one call: the median over rounds of as many calls as take while_ns, behind one that is not
 * counted, in which the clocks of an idle card rise. while_ns 0: one call. */
static shl_code
time_of(shl_device *d, work_fn fn, void *ctx, int64_t while_ns, double *ns)
{
    double rounds[ROUNDS];
    int n = while_ns > 0 ? ROUNDS : 1;
    int64_t once = 0;
    SHL_TRY(time_round(d, fn, ctx, 1, &once));
    SHL_TRY(time_round(d, fn, ctx, 1, &once));
    int64_t calls = while_ns / (once > 0 ? once : 1) + 1;
    if (while_ns > 0) {
        SHL_TRY(time_round(d, fn, ctx, calls, &once));
    }
    for (int r = 0; r < n; r++) {
        SHL_TRY(time_round(d, fn, ctx, calls, &once));
        rounds[r] = (double)once / (double)calls;
    }
    *ns = shl_stats_median(rounds, (size_t)n);
    return SHL_OK;
}

static shl_code
call_case(void *ctx)
{
    return shl_op_run_call(ctx);
}

static shl_code
time_case(shl_device *d, const shl_op_case *c, int64_t while_ns, double *ns, shl_cost *cost)
{
    shl_op_run *run = NULL;
    shl_code code = shl_op_run_open(d, c, 1, 0, &run);
    if (code == SHL_OK) {
        *cost = shl_op_cost(c->op, &run->args);
        code = time_of(d, call_case, run, while_ns, ns);
    }
    shl_op_run_close(&run);
    return code;
}

/* fused: attention by the library. */
static shl_code
open_device(const shl_gpu_bench *b, bool fused, shl_device **out)
{
    shl_device_config config = {.kind = b->device, .threads = (int)b->threads};
    config.fused_attention = fused;
    return shl_device_open(&config, out);
}

/* ---- limits ---- */

typedef struct copy_room {
    shl_device *device;
    shl_buf from, to;
} copy_room;

static shl_code
copy_once(void *ctx)
{
    copy_room *r = ctx;
    return shl_device_copy(r->device, r->to.data, r->from.data, r->from.bytes, NULL);
}

/* Bytes read and written per second by a copy far larger than any cache. */
static shl_code
measure_copy(shl_gpu_bench *b, shl_device *d, double *rate)
{
    copy_room room = {.device = d};
    size_t bytes = b->quick ? (size_t)1 << 16 : (size_t)2 << 30;
    double ns = 0.0;
    shl_code code;
    SHL_TRY_TO(code, out,
               shl_device_alloc(d, bytes, SHL_TIER_DEVICE, SHL_TAG_WORK, 0, "bench", &room.from));
    SHL_TRY_TO(code, out,
               shl_device_alloc(d, bytes, SHL_TIER_DEVICE, SHL_TAG_WORK, 0, "bench", &room.to));
    SHL_TRY_TO(code, out, shl_device_fill(d, room.from.data, 1, bytes, NULL));
    SHL_TRY_TO(code, out, time_of(d, copy_once, &room, b->quick ? 0 : LIMIT_NS, &ns));
    *rate = 2.0 * (double)bytes * 1e9 / ns;
out:
    shl_device_free(d, &room.from);
    shl_device_free(d, &room.to);
    return code;
}

shl_code
shl_gpu_bench_limits(shl_gpu_bench *b)
{
    static const shl_op_case products[] = {{"product",
                                            SHL_OP_LINEAR_FORWARD,
                                            {8192, 8192, 8192},
                                            SHL_CASE_SPEED | SHL_CASE_BF16 | SHL_CASE_PLAIN},
                                           {"product",
                                            SHL_OP_LINEAR_FORWARD,
                                            {32, 32, 32},
                                            SHL_CASE_SPEED | SHL_CASE_BF16 | SHL_CASE_PLAIN}};
    shl_device *d = NULL;
    double ns = 0.0;
    shl_cost cost = {0.0, 0.0};
    if (b->absent) {
        return shl_gpu_bench_miss(b, "product and copy", 0.0, b->absent);
    }
    SHL_TRY(open_device(b, false, &d));
    shl_code code = time_case(d, &products[b->quick], b->quick ? 0 : LIMIT_NS, &ns, &cost);
    if (code == SHL_OK) {
        b->flops_per_s = cost.flops * 1e9 / ns;
        code = measure_copy(b, d, &b->bytes_per_s);
    }
    shl_code closed = shl_device_close(&d);
    SHL_TRY(code);
    SHL_TRY(closed);
    shl_gpu_row product = {.name = "product",
                           .what = b->quick ? "32 x 32 x 32" : "8192 x 8192 x 8192 in bf16",
                           .unit = "TFLOP/s",
                           .value = b->flops_per_s * 1e-12};
    shl_gpu_row copy = {.name = "copy",
                        .what = b->quick ? "64 KiB" : "2 GiB on the card, read and written",
                        .unit = "GB/s",
                        .value = b->bytes_per_s * 1e-9};
    SHL_TRY(shl_gpu_bench_tell(b, &product, NULL));
    return shl_gpu_bench_tell(b, &copy, NULL);
}

/* ---- kernels ---- */

typedef struct kernel_case {
    shl_op_case c;
    double wanted; /* of the limit; 0: nothing is asked for */
} kernel_case;

#define SPEED (SHL_CASE_SPEED | SHL_CASE_BF16)

/* Widths and heads of GPT-2 1.5B, of a LLaMA of that width. What is bound by its bytes is several times a card's
 * cache: the copy that it is compared with is. */
static const kernel_case kernels[] = {
    {{"linear qkv", SHL_OP_LINEAR_FORWARD, {16384, 1600, 4800}, SPEED}, 0},
    {{"linear up", SHL_OP_LINEAR_FORWARD, {16384, 1600, 6400}, SPEED}, 0},
    {{"linear down", SHL_OP_LINEAR_FORWARD, {16384, 6400, 1600}, SPEED}, 0},
    {{"linear head",
      SHL_OP_LINEAR_FORWARD,
      {8192, 1600, 50257},
      SPEED | SHL_CASE_OI | SHL_CASE_PLAIN},
     0},
    {{"linear head dx", SHL_OP_LINEAR_BACKWARD_INPUT, {8192, 1600, 50257}, SPEED | SHL_CASE_OI}, 0},
    {{"linear head dw",
      SHL_OP_LINEAR_BACKWARD_WEIGHT,
      {8192, 1600, 50257},
      SPEED | SHL_CASE_OI | SHL_CASE_PLAIN},
     0},
    {{"linear dx", SHL_OP_LINEAR_BACKWARD_INPUT, {16384, 1600, 6400}, SPEED}, 0},
    {{"linear dw", SHL_OP_LINEAR_BACKWARD_WEIGHT, {16384, 1600, 6400}, SPEED}, 0},
    {{"layernorm", SHL_OP_LAYERNORM_FORWARD, {65536, 1600}, SPEED}, 0.85},
    {{"layernorm back", SHL_OP_LAYERNORM_BACKWARD, {65536, 1600}, SPEED}, 0.85},
    {{"gelu", SHL_OP_GELU_FORWARD, {104857600}, SPEED}, 0.85},
    {{"gelu back", SHL_OP_GELU_BACKWARD, {104857600}, SPEED}, 0.85},
    {{"residual add", SHL_OP_ADD, {104857600}, SPEED}, 0.85},
    {{"embedding", SHL_OP_EMBEDDING_FORWARD, {64, 1024, 1600, 50257}, SPEED}, 0},
    {{"embedding back", SHL_OP_EMBEDDING_BACKWARD, {64, 1024, 1600, 50257}, SPEED}, 0},
    {{"attention", SHL_OP_ATTENTION_FORWARD, {16, 1024, 25, 25, 64}, SPEED}, 0},
    {{"attention back", SHL_OP_ATTENTION_BACKWARD, {16, 1024, 25, 25, 64}, SPEED}, 0},
    {{"classifier", SHL_OP_CROSS_ENTROPY, {8192, 50257}, SPEED}, 0.80},
    {{"adamw", SHL_OP_ADAMW, {134217728}, SPEED}, 0.85},
    {{"adamw fp32", SHL_OP_ADAMW, {134217728}, SHL_CASE_SPEED}, 0.85},
    {{"norm max", SHL_OP_NORM_MAX, {134217728}, SHL_CASE_SPEED}, 0},
    {{"norm sum", SHL_OP_NORM_SUM, {134217728}, SHL_CASE_SPEED}, 0},
    {{"cast", SHL_OP_CAST, {134217728}, SPEED}, 0},
    {{"sum of four ranks", SHL_OP_SUM_RANKS, {33554432, 4}, SHL_CASE_SPEED}, 0},
    {{"rmsnorm", SHL_OP_RMSNORM_FORWARD, {65536, 1600}, SPEED}, 0},
    {{"rmsnorm back", SHL_OP_RMSNORM_BACKWARD, {65536, 1600}, SPEED}, 0},
    {{"rope", SHL_OP_ROPE, {64, 1024, 25, 25, 64}, SPEED}, 0},
    {{"silu-mul", SHL_OP_SILU_MUL_FORWARD, {16384, 4352}, SPEED}, 0},
    {{"silu-mul back", SHL_OP_SILU_MUL_BACKWARD, {16384, 4352}, SPEED}, 0},
    {{"dropout", SHL_OP_DROPOUT, {65536, 1600}, SPEED}, 0},
};

/* Whose FLOPs run where the large product's do; the others are bound by their bytes. */
static bool
has_products(shl_op op)
{
    return op <= SHL_OP_LINEAR_BACKWARD_WEIGHT || op == SHL_OP_ATTENTION_FORWARD ||
           op == SHL_OP_ATTENTION_BACKWARD;
}

/* The same op over very little, to try the way. */
static shl_op_case
shrunk(const shl_op_case *c)
{
    shl_op_case small = *c;
    for (size_t i = 0; i < SHL_ARRAY_LEN(small.size); i++) {
        bool keep = small.size[i] <= 4;
        small.size[i] = keep ? small.size[i] : 8;
    }
    if (c->op == SHL_OP_EMBEDDING_FORWARD || c->op == SHL_OP_EMBEDDING_BACKWARD) {
        small.size[3] = 1000; /* tokens that cases for timing have */
    }
    return small;
}

static shl_code
tell_kernel(shl_gpu_bench *b, shl_device *d, const char *name, const kernel_case *k)
{
    shl_op_case c = b->quick ? shrunk(&k->c) : k->c;
    char ran[64], what[128];
    double ns = 0.0;
    shl_cost cost = {0.0, 0.0};
    if (time_case(d, &c, b->quick ? 0 : KERNEL_NS, &ns, &cost) != SHL_OK) {
        return shl_gpu_bench_miss(b, name, k->wanted, NULL);
    }
    double by_flops = has_products(c.op) ? cost.flops * 1e9 / b->flops_per_s : 0.0;
    double by_bytes = cost.bytes * 1e9 / b->bytes_per_s;
    bool is_product = by_flops > by_bytes;
    shl_op_ran(d, c.op, ran, sizeof(ran));
    shl_strf(what, sizeof(what), "%s / large %s%s%s", is_product ? "FLOPs" : "bytes",
             is_product ? "product" : "copy", ran[0] != '\0' ? ", by " : "", ran);
    shl_gpu_row row = {.name = name,
                       .what = what,
                       .unit = is_product ? "TFLOP/s" : "GB/s",
                       .value = is_product ? cost.flops * 1e-3 / ns : cost.bytes / ns,
                       .limit = is_product ? b->flops_per_s * 1e-12 : b->bytes_per_s * 1e-9,
                       .ratio = fmax(by_flops, by_bytes) / ns,
                       .wanted = k->wanted};
    return shl_gpu_bench_tell(b, &row,
                              json_pack("{sf sf sf ss}", "us", ns * 1e-3, "flops", cost.flops,
                                        "bytes", cost.bytes, "kernel", ran));
}

/* Every kernel on the device as it is; then attention by the library, beside ours. */
shl_code
shl_gpu_bench_kernels(shl_gpu_bench *b)
{
    for (size_t i = 0; b->absent && i < SHL_ARRAY_LEN(kernels); i++) {
        if (kernels[i].wanted > 0.0) {
            SHL_TRY(shl_gpu_bench_miss(b, kernels[i].c.name, kernels[i].wanted, b->absent));
        }
    }
    for (int fused = 0; fused < 2 && !b->absent; fused++) {
        shl_device *d = NULL;
        shl_code code = SHL_OK;
        SHL_TRY(open_device(b, fused == 1, &d));
        for (size_t i = 0; i < SHL_ARRAY_LEN(kernels) && code == SHL_OK; i++) {
            const kernel_case *k = &kernels[i];
            if (shl_gpu_is_late(&b->report)) {
                code = k->wanted > 0.0 && fused == 0
                           ? shl_gpu_bench_miss(b, k->c.name, k->wanted, "not reached")
                           : SHL_OK;
            } else if (fused == 0) {
                code = tell_kernel(b, d, k->c.name, k);
            } else if (k->c.op == SHL_OP_ATTENTION_FORWARD && b->card_bytes > 0) {
                code = tell_kernel(b, d, "attention, library", k);
            }
        }
        shl_code closed = shl_device_close(&d);
        SHL_TRY(code);
        SHL_TRY(closed);
    }
    return SHL_OK;
}

/* bench: what the parts of the speed table share: the list of parts, the probes of a round, the row
 * that rounds become. */
#include "bench/speed.h"

#include <math.h>

#include "bench/probes.h"
#include "bench/stats.h"
#include "kernels/base/types.h"
#include "kernels/ops/ops.h"

#define PROBE_ELEMS (INT64_C(16) << 20)

const shl_speed_part *
shl_speed_parts(int *n)
{
    static const shl_speed_part parts[] = {
        {"plan", "a plan for a large world", shl_speed_plan},
        {"gemm", "matrix products", shl_speed_gemm},
        {"gemm-bf16", "matrix products in bf16", shl_speed_gemm_bf16},
        {"cast", "casts between fp32 and 16 bits", shl_speed_cast},
        {"adamw", "AdamW", shl_speed_adamw},
        {"attention", "causal attention", shl_speed_attention},
        {"cross-entropy", "loss and its gradient", shl_speed_cross_entropy},
        {"step", "whole steps, one rank", shl_speed_step},
        {"ranks", "whole steps, two ranks", shl_speed_ranks},
        {"recompute", "steps that recompute every block", shl_speed_recompute},
        {"step-bf16", "steps in bf16", shl_speed_step_bf16},
        {"memory", "resident set of a rank", shl_speed_memory},
        {"comm", "collectives over shared memory", shl_speed_comm},
        {"offload", "states in host memory", shl_speed_offload},
        {"save", "a checkpoint", shl_speed_save},
    };
    *n = (int)SHL_ARRAY_LEN(parts);
    return parts;
}

shl_code
shl_speed_open_device(int threads, shl_device **out)
{
    shl_device_config config = {.kind = "cpu", .threads = threads};
    return shl_device_open(&config, out);
}

shl_code
shl_speed_new_array(shl_device *d, int64_t n, shl_buf *out)
{
    SHL_TRY(shl_device_alloc(d, (size_t)n * 4, SHL_TIER_DEVICE, SHL_TAG_WORK, 0, "bench", out));
    shl_init_args init = {.dst = shl_tensor_1d(out->data, SHL_F32, n),
                          .kind = SHL_INIT_NORMAL,
                          .std = 0.02,
                          .seed = 1,
                          .stream = (uint64_t)n};
    return shl_op_init(shl_device_stream(d, SHL_STREAM_COMPUTE), &init);
}

shl_code
shl_speed_probes_open(int threads, shl_speed_probes *out)
{
    *out = (shl_speed_probes){.threads = threads};
    SHL_TRY(shl_speed_open_device(threads, &out->device));
    for (int i = 0; i < 4; i++) {
        size_t bytes = (size_t)PROBE_ELEMS * sizeof(float);
        SHL_TRY(shl_device_alloc(out->device, bytes, SHL_TIER_DEVICE, SHL_TAG_WORK, 0, "probe",
                                 &out->arrays[i]));
        SHL_TRY(shl_device_fill(out->device, out->arrays[i].data, 0, bytes, NULL));
    }
    return SHL_OK;
}

shl_code
shl_speed_probes_close(shl_speed_probes *p)
{
    for (int i = 0; i < 4 && p->device; i++) {
        shl_device_free(p->device, &p->arrays[i]);
    }
    return shl_device_close(&p->device);
}

void
shl_speed_probe(const shl_speed_probes *p, shl_speed_rounds *r, int at)
{
    int64_t ns = shl_probe_traffic_ns(p->arrays[0].data, p->arrays[1].data, p->arrays[2].data,
                                      p->arrays[3].data, PROBE_ELEMS, p->threads);
    r->bytes_per_s[at] = SHL_PROBE_TRAFFIC_BYTES * (double)PROBE_ELEMS * 1e9 / (double)ns;
    r->flops_per_s[at] = shl_probe_fma_flops_per_s(p->threads);
}

void
shl_speed_add(shl_speed_list *list, shl_speed_row row, shl_speed_rounds *r)
{
    size_t n = (size_t)r->n;
    SHL_ASSERT(list->n < SHL_SPEED_MAX_ROWS && r->n > 0);
    bool probed = r->flops_per_s[0] > 0;
    row.kind = "bench";
    row.schema = 2;
    row.part = list->part;
    row.value = shl_stats_median(r->value, n);
    row.reference = shl_stats_median(r->reference, n);
    row.ratio = row.ratio > 0 ? row.ratio : shl_stats_median(r->ratio, n);
    row.spread = row.spread > 0 ? row.spread : shl_stats_mad(r->ratio, n);
    row.share = shl_stats_median(r->share, n);
    row.fma_gflops = probed ? shl_stats_median(r->flops_per_s, n) * 1e-9 : (double)NAN;
    row.traffic_gb_per_s = probed ? shl_stats_median(r->bytes_per_s, n) * 1e-9 : (double)NAN;
    row.rounds = r->n;
    row.verdict = row.ratio >= row.bound ? "PASS" : "below";
    list->rows[list->n++] = row;
}

/* bench: speed of offload: the update in host memory against its traffic, steps with and without
 * offload, a link that takes as long as the computing, and the budget of locked memory. */
#include <string.h>

#include "bench/probes.h"
#include "bench/session.h"
#include "bench/speed.h"
#include "bench/stats.h"
#include "kernels/base/clock.h"
#include "kernels/base/types.h"
#include "kernels/ops/ops.h"

#define GROUP_ELEMS (INT64_C(4) << 20)

/* ---- the update ---- */

static shl_code
update_once(shl_device *d, const shl_buf *arrays, int64_t n)
{
    shl_adamw_args a = {.lr = 1e-4,
                        .beta1 = 0.9,
                        .beta2 = 0.95,
                        .eps = 1e-8,
                        .weight_decay = 0.1,
                        .grad_scale = 1,
                        .step = 1};
    shl_tensor *parts[] = {&a.param, &a.m, &a.v, &a.grad};
    for (int64_t at = 0; at < n; at += GROUP_ELEMS) {
        for (int i = 0; i < 4; i++) {
            *parts[i] =
                shl_tensor_1d(shl_elem_ptr(arrays[i].data, SHL_F32, at), SHL_F32, GROUP_ELEMS);
        }
        SHL_TRY(shl_op_adamw(shl_device_stream(d, SHL_STREAM_COMPUTE), &a));
    }
    return SHL_OK;
}

static shl_code
measure_update(shl_device *d, const shl_buf *arrays, int64_t n, const shl_speed_config *c,
               const shl_speed_probes *probes, shl_speed_rounds *r)
{
    double bytes = SHL_PROBE_TRAFFIC_BYTES * (double)n * 4;
    for (int round = -1; round < c->rounds; round++) {
        int at = round < 0 ? 0 : round; /* round -1 warms up and is overwritten */
        for (int half = 0; half < 2; half++) {
            bool ours = (half + round) % 2 != 0;
            int64_t begin = shl_clock_ns();
            for (int i = 0; i < 4; i++) {
                if (ours) {
                    SHL_TRY(update_once(d, arrays, n));
                } else {
                    (void)shl_probe_traffic_ns(arrays[0].data, arrays[1].data, arrays[2].data,
                                               arrays[3].data, n, c->threads);
                }
            }
            *(ours ? &r->value[at] : &r->reference[at]) = bytes / (double)(shl_clock_ns() - begin);
            /* The second moment of a real run is not negative. */
            SHL_TRY(shl_device_fill(d, arrays[2].data, 0, (size_t)n * 4, NULL));
        }
        r->ratio[at] = r->value[at] / r->reference[at];
        shl_speed_probe(probes, r, at);
    }
    r->n = c->rounds;
    return SHL_OK;
}

static shl_code
speed_update(const shl_speed_config *c, shl_speed_list *out)
{
    int64_t n = (c->quick ? 2 : 8) * GROUP_ELEMS;
    shl_speed_rounds r = {.n = 0};
    shl_buf arrays[4] = {{0}};
    shl_speed_probes probes = {.device = NULL};
    shl_device *d = NULL;
    SHL_TRY(shl_speed_open_device(c->threads, &d));
    shl_code code, closed;
    SHL_TRY_TO(code, out, shl_speed_probes_open(c->threads, &probes));
    for (int i = 0; i < 4; i++) {
        SHL_TRY_TO(code, out,
                   shl_device_alloc(d, (size_t)n * 4, SHL_TIER_HOST, SHL_TAG_WORK, 0, "bench",
                                    &arrays[i]));
        SHL_TRY_TO(code, out, shl_device_fill(d, arrays[i].data, 0, (size_t)n * 4, NULL));
    }
    SHL_TRY_TO(code, out, measure_update(d, arrays, n, c, &probes, &r));
    shl_speed_add(out,
                  (shl_speed_row){.name = "offload_adamw",
                                  .what = "AdamW by sub-groups in host memory / same traffic",
                                  .unit = "GB/s",
                                  .bound = 0.92,
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

/* ---- steps ---- */

static void
set_step(shl_session_config *config, const shl_speed_config *c, bool offload)
{
    shl_session_config_init(config);
    const shl_preset *preset = shl_preset_find("gpt2-124m");
    SHL_ASSERT(preset);
    memcpy(config->model, preset->name, strlen(preset->name) + 1);
    config->shape = preset->config;
    config->engine.strategy = SHL_ZERO2;
    config->engine.reduce_every = SHL_REDUCE_MICRO;
    config->engine.batch = 1;
    config->engine.seq = c->quick ? 128 : 1024;
    config->engine.offload.optimizer = offload ? SHL_OFFLOAD_HOST : SHL_OFFLOAD_NONE;
    config->threads = c->threads;
    config->data = "synthetic";
    config->steps = 1 + (c->quick ? 2 : c->rounds);
}

/* Times of the steps behind the first; *moved: the larger direction's bytes of a step. */
static shl_code
time_steps(const shl_session_config *config, double *ms, int64_t *moved)
{
    shl_session_result result = {0};
    SHL_TRY(shl_session_config_check(config));
    SHL_TRY(shl_session_run(config, NULL, &result));
    for (int64_t i = 1; i < result.n_steps; i++) {
        const shl_step_report *s = &result.steps[i];
        int64_t there = s->moved_bytes[SHL_MOVE_TO_HOST], back = s->moved_bytes[SHL_MOVE_TO_DEVICE];
        ms[i - 1] = (double)s->step_ns * 1e-6;
        *moved = there > back ? there : back;
    }
    shl_session_result_fini(&result);
    return SHL_OK;
}

static double
median_of(const double *values, int n)
{
    double copy[SHL_SPEED_MAX_ROUNDS];
    memcpy(copy, values, (size_t)n * sizeof(*copy));
    return shl_stats_median(copy, (size_t)n);
}

/* What the virtual clock says of the step when its rates are such that it takes plain_ms without a link. */
static shl_code
ideal_step(const shl_speed_config *c, double plain_ms, double link, double *ideal_ms)
{
    shl_session_config config;
    double ms[SHL_SPEED_MAX_ROUNDS];
    int64_t moved = 0;
    set_step(&config, c, true);
    config.device = "virtual";
    config.steps = 2;
    config.flops_per_s = 1e11;
    config.bytes_per_s = 1e10;
    SHL_TRY(time_steps(&config, ms, &moved));
    config.flops_per_s *= ms[0] / plain_ms;
    config.bytes_per_s *= ms[0] / plain_ms;
    config.link_bytes_per_s = link;
    return time_steps(&config, ideal_ms, &moved);
}

static shl_code
speed_steps(const shl_speed_config *c, shl_speed_list *out)
{
    shl_speed_rounds with = {.n = c->quick ? 2 : c->rounds}, linked = {.n = with.n};
    shl_session_config config;
    int64_t moved = 0;
    double ideal_ms = 0.0;
    set_step(&config, c, false);
    SHL_TRY(time_steps(&config, with.reference, &moved));
    set_step(&config, c, true);
    SHL_TRY(time_steps(&config, with.value, &moved));
    double plain_ms = median_of(with.value, with.n);
    config.link_bytes_per_s = (double)moved * 1e3 / plain_ms;
    SHL_TRY(time_steps(&config, linked.value, &moved));
    SHL_TRY(ideal_step(c, plain_ms, config.link_bytes_per_s, &ideal_ms));
    for (int i = 0; i < with.n; i++) {
        with.ratio[i] = with.reference[i] / with.value[i];
        linked.reference[i] = ideal_ms;
        linked.ratio[i] = ideal_ms / linked.value[i];
    }
    shl_speed_row row = {.name = "offload_step",
                         .what = "124M, B 1 T 1024, zero2 / without offload",
                         .unit = "ms",
                         .bound = 0.90,
                         .threads = c->threads};
    shl_speed_add(out, row, &with);
    row.name = "offload_link";
    row.what = "a link as slow as the step / the virtual clock";
    row.bound = 1 / 1.15;
    shl_speed_add(out, row, &linked);
    return SHL_OK;
}

/* ---- locked memory ---- */

/* Exactly what is needed is allowed, and one page less is refused. */
static shl_code
speed_pin(const shl_speed_config *c, shl_speed_list *out)
{
    shl_session_config config;
    shl_session_result result = {0};
    shl_speed_rounds r = {.n = 1};
    set_step(&config, c, true);
    config.device = "virtual";
    config.steps = 1;
    config.engine.offload.pin = true;
    SHL_TRY(shl_session_run(&config, NULL, &result));
    config.pin_limit_bytes = (size_t)result.pinned_bytes;
    shl_session_result_fini(&result);
    SHL_TRY(shl_session_run(&config, NULL, &result));
    double above = (double)result.pinned_bytes - (double)config.pin_limit_bytes;
    shl_session_result_fini(&result);
    config.pin_limit_bytes -= 1;
    if (shl_session_run(&config, NULL, &result) == SHL_OK) {
        above = 1;
        shl_session_result_fini(&result);
    }
    shl_err_clear();
    r.value[0] = above;
    r.reference[0] = 0;
    r.ratio[0] = above > 0 ? 0 : 1;
    shl_speed_add(out,
                  (shl_speed_row){.name = "offload_pinned",
                                  .what = "locked memory above its budget",
                                  .unit = "bytes",
                                  .bound = 1,
                                  .ratio = r.ratio[0],
                                  .threads = 1},
                  &r);
    return SHL_OK;
}

shl_code
shl_speed_offload(const shl_speed_config *c, shl_speed_list *out)
{
    SHL_TRY(speed_update(c, out));
    SHL_TRY(speed_steps(c, out));
    return speed_pin(c, out);
}

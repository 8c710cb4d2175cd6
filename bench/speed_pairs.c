/* bench: speed of a choice: a training step with it beside the same step without, round by round, so that
 * the load of the machine falls on both. */
#include <string.h>

#include "bench/session.h"
#include "bench/speed.h"
#include "kernels/base/types.h"

typedef struct pair_case {
    const char *name, *what;
    int64_t batch, seq;
    double bound; /* step without / step with */
    shl_recompute recompute;
    shl_dtype compute;
} pair_case;

/* The second step of a run: the first one warms up. Rank 0's own time. */
static shl_code
keep_step(void *ctx, const shl_step_report *report)
{
    *(double *)ctx = (double)report->step_ns * 1e-6;
    return SHL_OK;
}

static shl_code
time_step(const pair_case *k, const shl_speed_config *c, bool with, double *ms)
{
    shl_session_config config;
    shl_session_result result = {0};
    const shl_preset *preset = shl_preset_find(c->quick ? "gpt2-tiny" : "gpt2-124m");
    shl_session_config_init(&config);
    SHL_ASSERT(preset);
    memcpy(config.model, preset->name, strlen(preset->name) + 1);
    config.shape = preset->config;
    config.engine.batch = k->batch;
    config.engine.seq = k->seq;
    config.engine.reduce_every = SHL_REDUCE_BOUNDARY;
    config.threads = c->threads;
    config.data = "synthetic";
    config.steps = 2;
    if (with) {
        config.tune.recompute = k->recompute;
        shl_dtype_policy_set(&config.engine, k->compute);
    }
    SHL_TRY(shl_session_config_check(&config));
    shl_session_sink sink = {.on_step = keep_step, .ctx = ms};
    SHL_TRY(shl_session_run(&config, &sink, &result));
    shl_session_result_fini(&result);
    return SHL_OK;
}

static shl_code
measure_pair(const pair_case *k, const shl_speed_config *c, shl_speed_list *out)
{
    shl_speed_rounds r = {.n = c->rounds};
    for (int round = 0; round < c->rounds; round++) {
        for (int half = 0; half < 2; half++) {
            bool with = (half + round) % 2 == 0;
            SHL_TRY(time_step(k, c, with, with ? &r.value[round] : &r.reference[round]));
        }
        r.ratio[round] = r.reference[round] / r.value[round];
    }
    shl_speed_add(out,
                  (shl_speed_row){.name = k->name,
                                  .what = k->what,
                                  .unit = "ms",
                                  .bound = k->bound,
                                  .threads = c->threads},
                  &r);
    return SHL_OK;
}

/* A second forward of every block: a third more FLOPs, so 1.36 of the time at most. */
shl_code
shl_speed_recompute(const shl_speed_config *c, shl_speed_list *out)
{
    static const pair_case cases[] = {
        {"recompute", "plain step / fully recomputed, 124M, B 4 T 64", 4, 64, 1 / 1.36,
         SHL_RECOMPUTE_FULL, SHL_F32},
        {"recompute_long", "the same, B 4 T 256", 4, 256, 1 / 1.36, SHL_RECOMPUTE_FULL, SHL_F32},
    };
    int n = c->quick ? 1 : (int)SHL_ARRAY_LEN(cases);
    for (int i = 0; i < n; i++) {
        SHL_TRY(measure_pair(&cases[i], c, out));
    }
    return SHL_OK;
}

/* Without instructions for bf16 it saves memory and no time: it may cost a tenth, as the products do. */
shl_code
shl_speed_step_bf16(const shl_speed_config *c, shl_speed_list *out)
{
    bool native = shl_speed_has_bf16();
    pair_case k = {.name = "step_bf16",
                   .what = native ? "fp32 step / bf16 step, 124M, B 4 T 64"
                                  : "fp32 step / bf16 step, widened, B 4 T 64",
                   .batch = 4,
                   .seq = 64,
                   .bound = native ? 1.5 : 0.9,
                   .compute = SHL_BF16};
    return measure_pair(&k, c, out);
}

/* engines/config: names of strategies, defaults, cross-field checks and learning-rate schedules. Every
 * front (command line, configuration files) fills the same struct and meets the same checks here. */
#include "engines/config/config.h"

#include <math.h>
#include <string.h>

#include "engines/config/dtypes.h"
#include "engines/config/zero_text.h"
#include "kernels/base/str.h"

#define PI 3.14159265358979323846

static const char *const names[SHL_STRATEGY_COUNT] = {
    [SHL_DDP] = "ddp",     [SHL_ZERO1] = "zero1", [SHL_ZERO2] = "zero2",
    [SHL_ZERO3] = "zero3", [SHL_FSDP] = "fsdp",   [SHL_FSDP_GRAD_OP] = "fsdp-grad-op",
};

/* PyTorch's own names (torch.distributed.fsdp.ShardingStrategy). */
static const struct {
    const char *name;
    shl_strategy strategy;
} aliases[] = {
    {"NO_SHARD", SHL_DDP},
    {"FULL_SHARD", SHL_FSDP},
    {"SHARD_GRAD_OP", SHL_FSDP_GRAD_OP},
};

const char *
shl_strategy_name(shl_strategy s)
{
    SHL_ASSERT((int)s >= 0 && s < SHL_STRATEGY_COUNT);
    return names[s];
}

shl_code
shl_strategy_parse(const char *text, shl_strategy *out)
{
    for (int i = 0; i < SHL_STRATEGY_COUNT; i++) {
        if (strcmp(text, names[i]) == 0) {
            *out = (shl_strategy)i;
            return SHL_OK;
        }
    }
    for (size_t i = 0; i < SHL_ARRAY_LEN(aliases); i++) {
        if (strcmp(text, aliases[i].name) == 0) {
            *out = aliases[i].strategy;
            return SHL_OK;
        }
    }
    const char *near = shl_nearest(text, names, SHL_ARRAY_LEN(names));
    SHL_RAISE(SHL_E_USAGE, "unknown strategy \"%s\"", text);
    shl_err_because("known: ddp, zero1, zero2, zero3, fsdp, fsdp-grad-op");
    return shl_err_advice("--strategy %s", near ? near : "zero3");
}

shl_code
shl_reduce_every_resolve(shl_strategy s, shl_reduce_every asked, shl_reduce_every *out)
{
    bool by_nature_boundary = s == SHL_DDP || s == SHL_ZERO1;
    if (asked == SHL_REDUCE_AUTO) {
        *out = by_nature_boundary ? SHL_REDUCE_BOUNDARY : SHL_REDUCE_MICRO;
        return SHL_OK;
    }
    if (asked == SHL_REDUCE_BOUNDARY && (s == SHL_ZERO2 || s == SHL_ZERO3)) {
        SHL_RAISE(SHL_E_USAGE, "%s cannot reduce at the boundary of an accumulation", names[s]);
        shl_err_because("it never holds unsharded gradients; ddp, zero1, fsdp and fsdp-grad-op do");
        return shl_err_advice("--reduce-every micro");
    }
    *out = asked;
    return SHL_OK;
}

double
shl_lr_at(const shl_optim_config *c, int64_t step)
{
    if (c->schedule == SHL_SCHEDULE_NAMED) {
        return shl_ds_schedule_lr(&c->named, c->lr, step);
    }
    if (step < c->warmup_steps) {
        return c->lr * (double)(step + 1) / (double)c->warmup_steps;
    }
    if (c->schedule == SHL_SCHEDULE_CONSTANT) {
        return c->lr;
    }
    double p = (double)(step + 1 - c->warmup_steps) / (double)(c->schedule_steps - c->warmup_steps);
    p = p > 1.0 ? 1.0 : p;
    double left = c->schedule == SHL_SCHEDULE_LINEAR ? 1.0 - p : 0.5 * (1.0 + cos(PI * p));
    return c->lr * (c->min_lr_ratio + (1.0 - c->min_lr_ratio) * left);
}

void
shl_betas_at(const shl_optim_config *c, int64_t step, double *beta1, double *beta2)
{
    *beta1 = c->beta1;
    *beta2 = c->beta2;
    if (c->schedule == SHL_SCHEDULE_NAMED) {
        shl_ds_schedule_betas(&c->named, step, beta1, beta2);
    }
}

int
shl_prefetch_resolve(shl_strategy s, int asked)
{
    if (asked >= 0) {
        return asked;
    }
    return s == SHL_ZERO3 ? 8 : 1;
}

void
shl_engine_config_init(shl_engine_config *c)
{
    memset(c, 0, sizeof(*c));
    c->strategy = SHL_DDP;
    c->reduce_every = SHL_REDUCE_BOUNDARY;
    c->bucket_elems = INT64_C(16) << 20;
    c->prefetch = SHL_PREFETCH_AUTO;
    c->accum = 1;
    c->batch = 1;
    c->seq = 1;
    c->optim = (shl_optim_config){
        .lr = 1e-3,
        .beta1 = 0.9,
        .beta2 = 0.95,
        .eps = 1e-8,
        .weight_decay = 0.1,
        .bias_correction = 1.0,
        .clip_eps = 1e-6,
        .schedule = SHL_SCHEDULE_CONSTANT,
        .min_lr_ratio = 0.0,
    };
    shl_dtype_policy_set(c, SHL_F32);
    c->scale = (shl_scale_config){
        .kind = SHL_SCALE_NONE,
        .scale = 65536.0,
        .window = 1000,
        .hysteresis = 2,
        .min_scale = 1.0,
        .raise_at_min = true,
    };
    c->offload = (shl_offload_config){.ratio = 1.0, .sub_group_elems = INT64_C(4) << 20};
}

static shl_code
check_int(const char *field, int64_t value, int64_t min, int64_t max)
{
    if (value < min || value > max) {
        SHL_RAISE(SHL_E_USAGE, "%s is %lld", field, (long long)value);
        return shl_err_because("it must lie from %lld to %lld", (long long)min, (long long)max);
    }
    return SHL_OK;
}

static shl_code
check_optim(const shl_optim_config *o)
{
    SHL_TRY(shl_optim_check(o));
    SHL_TRY(shl_config_check_real("clip", o->clip, 0.0, 1e30, false));
    SHL_TRY(shl_config_check_real("clip eps", o->clip_eps, 0.0, 1.0, false));
    SHL_TRY(shl_config_check_real("min lr ratio", o->min_lr_ratio, 0.0, 1.0, false));
    SHL_TRY(check_int("warmup steps", o->warmup_steps, 0, INT64_MAX / 2));
    SHL_TRY(check_int("schedule steps", o->schedule_steps, 0, INT64_MAX / 2));
    if (o->schedule == SHL_SCHEDULE_NAMED) {
        return shl_ds_schedule_check(&o->named);
    }
    if (o->schedule != SHL_SCHEDULE_CONSTANT && o->schedule_steps <= o->warmup_steps) {
        SHL_RAISE(SHL_E_USAGE, "the schedule ends before its warm-up does");
        shl_err_because("schedule steps %lld, warm-up steps %lld", (long long)o->schedule_steps,
                        (long long)o->warmup_steps);
        return shl_err_advice("--schedule-steps %lld", (long long)o->warmup_steps + 100);
    }
    return SHL_OK;
}

shl_code
shl_engine_config_check(const shl_engine_config *c)
{
    SHL_TRY(check_int("strategy", c->strategy, 0, SHL_STRATEGY_COUNT - 1));
    SHL_TRY(check_int("bucket elements", c->bucket_elems, 1, INT64_MAX / 64));
    SHL_TRY(check_int("prefetch", c->prefetch, SHL_PREFETCH_AUTO, 1024));
    SHL_TRY(check_int("accumulation", c->accum, 1, INT64_C(1) << 30));
    SHL_TRY(check_int("batch", c->batch, 1, INT64_C(1) << 30));
    SHL_TRY(check_int("sequence", c->seq, 1, INT64_C(1) << 30));
    SHL_TRY(check_int("reduce every", c->reduce_every, SHL_REDUCE_MICRO, SHL_REDUCE_BOUNDARY));
    shl_reduce_every same;
    SHL_TRY(shl_reduce_every_resolve(c->strategy, c->reduce_every, &same));
    SHL_TRY(check_optim(&c->optim));
    SHL_TRY(shl_zero_options_check(c));
    SHL_TRY(shl_offload_check(c));
    return shl_dtype_policy_check(c);
}

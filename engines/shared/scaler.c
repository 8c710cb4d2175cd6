/* engines/shared: DeepSpeed's DynamicLossScaler, flag by flag (deepspeed/runtime/fp16/loss_scaler.py). */
#include "engines/shared/scaler.h"

#define FACTOR 2.0

void
shl_scaler_init(shl_scaler *s, const shl_scale_config *c)
{
    *s = (shl_scaler){.scale = c->kind == SHL_SCALE_NONE ? 1.0 : c->scale,
                      .hysteresis_left = c->hysteresis,
                      .last_overflow = -1};
}

/* All but the last of `hysteresis` overflows only use it up; from then on each one halves. */
static shl_code
shrink(shl_scaler *s, const shl_scale_config *c)
{
    if (c->hysteresis > 1 && s->hysteresis_left > 1) {
        s->hysteresis_left--;
        return SHL_OK;
    }
    if (s->scale <= c->min_scale && c->raise_at_min) {
        SHL_RAISE(SHL_E_CONFIG, "gradients overflow at the least loss scale, %g", s->scale);
        shl_err_because("it cannot be halved any more, so no step would be done");
        return shl_err_advice("a smaller learning rate, bf16, or a lower --min-loss-scale");
    }
    double half = s->scale / FACTOR;
    s->scale = half > c->min_scale ? half : c->min_scale;
    return SHL_OK;
}

/* The first doubling takes window + 1 clean steps, each next one `window`. */
static void
grow(shl_scaler *s, const shl_scale_config *c)
{
    int64_t clean = s->steps - s->last_overflow - 1;
    bool due = clean > 0 && clean % c->window == 0;
    if (due || c->consecutive_hysteresis) {
        s->hysteresis_left = c->hysteresis;
    }
    s->scale *= due ? FACTOR : 1.0;
}

shl_code
shl_scaler_update(shl_scaler *s, const shl_scale_config *c, bool overflow)
{
    if (c->kind != SHL_SCALE_DYNAMIC) {
        return SHL_OK;
    }
    if (overflow) {
        SHL_TRY(shrink(s, c));
        s->last_overflow = s->steps;
    } else {
        grow(s, c);
    }
    s->steps++;
    return SHL_OK;
}

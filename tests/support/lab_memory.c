/* tests/support: a handle that does everything that a run does, and what its device took for it. */
#include "tests/support/lab_memory.h"

#include <string.h>

#include "kernels/base/rng.h"
#include "kernels/base/str.h"

#define MOST_POSITIONS 64

void
lm_options(shl_lab_options *o, const char *device, const char *strategy)
{
    (void)shl_lab_options_init(o, sizeof(*o));
    o->model = "small";
    o->vocab = 30000;
    o->context = 16;
    o->layers = 1;
    o->width = 16;
    o->heads = 2;
    o->batch = 1;
    o->seq = 2;
    o->bucket_elems = 100000;
    o->device = device;
    o->strategy = strategy;
}

static shl_code
take_note(const shl_lab *lab, lm_taken *out)
{
    shl_device_memory m;
    memset(out, 0, sizeof(*out));
    for (int t = 0; t < SHL_TIER_COUNT; ++t) {
        out->reserved_bytes[t] = shl_device_reserved_bytes(lab->device, (shl_tier)t);
    }
    out->comm_bytes = shl_device_reserved_comm_bytes(lab->device);
    SHL_TRY(shl_device_memory_get(lab->device, &m));
    out->driver_bytes = m.used_bytes;
    return SHL_OK;
}

/* Nothing came since the handle was opened. */
static shl_code
expect_no_more(const shl_lab *lab, const lm_taken *before, const char *behind)
{
    lm_taken now;
    SHL_TRY(take_note(lab, &now));
    if (memcmp(&now, before, sizeof(now)) == 0) {
        return SHL_OK;
    }
    SHL_RAISE(SHL_E_VERIFY, "%s: the device took memory", behind);
    return shl_err_because("device %zu to %zu, of it for peers %zu to %zu, host %zu to %zu, card "
                           "%zu to %zu",
                           before->reserved_bytes[0], now.reserved_bytes[0], before->comm_bytes,
                           now.comm_bytes, before->reserved_bytes[1], now.reserved_bytes[1],
                           before->driver_bytes, now.driver_bytes);
}

static shl_code
eval(shl_lab *lab, const int32_t *tokens)
{
    double loss = 0.0;
    return shl_lab_code_from(shl_lab_eval(lab, tokens, tokens, &loss));
}

static shl_code
train(shl_lab *lab, const int32_t *tokens, int steps)
{
    for (int64_t i = 0; i < steps * lab->setup.engine.accum; ++i) {
        SHL_TRY(shl_lab_code_from(shl_lab_forward(lab, tokens, tokens, NULL)));
        SHL_TRY(shl_lab_code_from(shl_lab_backward(lab)));
        SHL_TRY(shl_lab_code_from(shl_lab_step(lab, NULL)));
    }
    return SHL_OK;
}

static shl_code
save(shl_lab *lab, const char *dir)
{
    return dir == NULL ? SHL_OK : shl_lab_code_from(shl_lab_save(lab, dir, 0, NULL));
}

static shl_code
use(shl_lab *lab, const char *dir, int steps, const lm_taken *t)
{
    int32_t tokens[MOST_POSITIONS];
    for (uint64_t i = 0; i < MOST_POSITIONS; ++i) {
        tokens[i] = (int32_t)(shl_rng_u64(7, 1, i) % (uint64_t)lab->setup.shape.vocab);
    }
    SHL_TRY(eval(lab, tokens));
    SHL_TRY(expect_no_more(lab, t, "the first evaluation"));
    SHL_TRY(save(lab, dir));
    SHL_TRY(expect_no_more(lab, t, "the first save"));
    for (int i = 0; i < steps; ++i) {
        SHL_TRY(train(lab, tokens, 1));
        SHL_TRY(expect_no_more(lab, t, i == 0 ? "the first step" : "a later step"));
    }
    SHL_TRY(eval(lab, tokens));
    SHL_TRY(expect_no_more(lab, t, "a later evaluation"));
    SHL_TRY(save(lab, dir));
    SHL_TRY(expect_no_more(lab, t, "a later save"));
    SHL_TRY(dir == NULL ? SHL_OK : shl_lab_code_from(shl_lab_load(lab, dir, NULL)));
    SHL_TRY(expect_no_more(lab, t, "a load"));
    SHL_TRY(train(lab, tokens, steps > 0));
    return expect_no_more(lab, t, "a step behind a load");
}

shl_code
lm_run(const shl_lab_options *o, shl_world *w, const char *dir, int steps, lm_result *out)
{
    shl_lab *lab = NULL;
    memset(out, 0, sizeof(*out));
    shl_code code = shl_lab_code_from(shl_lab_initialize(o, (shl_lab_world *)w, &lab));
    if (code == SHL_OK) {
        code = take_note(lab, &out->taken);
    }
    if (code == SHL_OK) {
        code = use(lab, dir, steps, &out->taken);
    }
    if (lab != NULL) {
        out->staged_bytes = shl_comm_stats_get(lab->comm)->staged_bytes;
        shl_strf(out->memory, sizeof(out->memory), "%s", shl_comm_memory(lab->comm));
    }
    shl_err err = *shl_err_get();
    shl_code closed = shl_lab_code_from(shl_lab_close(&lab));
    return code != SHL_OK && err.code == code ? shl_err_put(&err) : code != SHL_OK ? code : closed;
}

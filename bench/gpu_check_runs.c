/* bench: gpu-check's whole runs: what a device trains against what the CPU trains, against itself under
 * another strategy, and against the virtual device that stands for it. */
#include <math.h>
#include <string.h>

#include "bench/gpu_check.h"
#include "bench/host.h"
#include "engines/config/optim_kinds.h"
#include "kernels/base/rng.h"
#include "kernels/base/types.h"

#define FOLLOW_STEPS 50
#define SEED 17u

void
shl_gpu_small_run(const shl_gpu_check *k, shl_session_config *out)
{
    shl_session_config_init(out);
    if (k->quick) {
        out->shape.layers = 1;
        out->shape.width = 16;
        out->shape.heads = 2;
        out->shape.vocab = 67;
        out->shape.context = 8;
        out->engine.batch = 1;
        out->engine.seq = 8;
        shl_shape_name(&out->shape, out->model, sizeof(out->model));
    }
    out->engine.reduce_every = SHL_REDUCE_MICRO;
    out->device = out->as = k->device;
    out->data = "synthetic";
    out->steps = k->quick ? 2 : 5;
    out->timeout_ms = 60000;
    out->stop = k->report.stop;
}

/* ---- gradients ---- */

/* The same sequences in every step. */
static shl_code
same_row(void *ctx, int64_t step, int64_t row, int32_t *tokens, int32_t *targets)
{
    const shl_session_config *c = ctx;
    SHL_UNUSED(step);
    for (int64_t t = 0; t < c->engine.seq; t++) {
        uint64_t at = (uint64_t)(row * c->engine.seq + t), vocab = (uint64_t)c->shape.vocab;
        tokens[t] = (int32_t)(shl_rng_u64(SEED, 1, at) % vocab);
        targets[t] = (int32_t)(shl_rng_u64(SEED, 2, at) % vocab);
    }
    return SHL_OK;
}

static int64_t
all_valid(void *ctx, int64_t step)
{
    const shl_session_config *c = ctx;
    SHL_UNUSED(step);
    return c->ranks * c->engine.batch * c->engine.accum * c->engine.seq;
}

/* How far a step of plain descent with this rate lowers the loss, over rate * |g|^2. */
static shl_code
fall_of(const shl_session_config *asked_for, double rate, double *out)
{
    shl_session_config c = *asked_for;
    shl_session_result r = {0};
    shl_session_batches batches = {same_row, all_valid, &c};
    shl_optim_asked asked;
    shl_optim_asked_init(&asked);
    asked.lr = rate;
    asked.weight_decay = 0.0;
    c.batches = &batches;
    c.steps = 2;
    SHL_TRY(shl_optim_resolve(SHL_OPTIM_SGD, &asked, &c.engine.optim));
    SHL_TRY(shl_session_run(&c, NULL, &r));
    double norm = r.steps[0].grad_norm;
    *out = (r.steps[0].loss - r.steps[1].loss) / (rate * norm * norm);
    shl_session_result_fini(&r);
    return SHL_OK;
}

/* loss(p - h g) = loss(p) - h |g|^2 + O(h^2): twice the fall at h/2 less that at h leaves O(h^2) of it. */
static shl_code
check_descent(shl_gpu_check *k, const char *name, const shl_session_config *c)
{
    const double rate = 2e-3, allowed = 2e-3;
    double whole = 0.0, half = 0.0;
    shl_code code = fall_of(c, rate, &whole);
    code = code == SHL_OK ? fall_of(c, rate / 2.0, &half) : code;
    if (code != SHL_OK) {
        return shl_gpu_tell_error(&k->report, name);
    }
    double fall = 2.0 * half - whole;
    return shl_gpu_tell(
        &k->report, name, fabs(fall - 1.0) <= allowed ? SHL_GPU_PASSED : SHL_GPU_FAILED,
        "the loss falls by %.6f of rate x |gradient|^2, within %g of 1", fall, allowed);
}

shl_code
shl_gpu_check_gradients(shl_gpu_check *k)
{
    shl_session_config c;
    shl_gpu_small_run(k, &c);
    SHL_TRY(check_descent(k, "gpt", &c));
    c.shape.family = SHL_FAMILY_LLAMA;
    c.shape.kv_heads = c.shape.heads / 2;
    c.shape.inner = 2 * c.shape.width;
    c.shape.tied = false;
    shl_shape_name(&c.shape, c.model, sizeof(c.model));
    return check_descent(k, "llama", &c);
}

/* ---- the CPU's losses ---- */

static shl_code
check_follow(shl_gpu_check *k, const char *name, shl_dtype dtype, double allowed)
{
    shl_session_config c;
    shl_session_result ours = {0}, want = {0};
    shl_gpu_small_run(k, &c);
    c.engine.compute_dtype = dtype;
    c.steps = k->quick ? 3 : FOLLOW_STEPS;
    c.engine.batch = k->quick ? 1 : 2;
    c.data = k->quick ? "synthetic" : NULL;
    shl_code code = shl_session_run(&c, NULL, &ours);
    if (code == SHL_OK) {
        c.device = c.as = "cpu";
        c.threads = shl_host_cores() > 4 ? 4 : shl_host_cores();
        code = shl_session_run(&c, NULL, &want);
    }
    if (code != SHL_OK) {
        shl_session_result_fini(&ours);
        return shl_gpu_tell_error(&k->report, name);
    }
    double worst = 0.0;
    int64_t at = 0;
    for (int64_t i = 0; i < want.n_steps; i++) {
        double off = fabs(ours.steps[i].loss / want.steps[i].loss - 1.0);
        if (!(off <= worst)) {
            worst = off;
            at = i + 1;
        }
    }
    double last = ours.steps[ours.n_steps - 1].loss;
    bool same = ours.n_steps == want.n_steps && worst <= allowed;
    int64_t n = want.n_steps;
    shl_session_result_fini(&ours);
    shl_session_result_fini(&want);
    return shl_gpu_tell(&k->report, name, same ? SHL_GPU_PASSED : SHL_GPU_FAILED,
                        "%lld steps, last loss %.6f; off by %.2e at most (step %lld), %.0e allowed",
                        (long long)n, last, worst, (long long)at, allowed);
}

shl_code
shl_gpu_check_follow(shl_gpu_check *k)
{
    SHL_TRY(check_follow(k, "fp32", SHL_F32, 1e-4));
    return check_follow(k, "bf16", SHL_BF16, 2e-2);
}

/* ---- strategies ---- */

/* Ranks that share one device talk without its library; elsewhere they have their own way. */
static void
share_device(const shl_gpu_check *k, shl_session_config *c)
{
    bool is_gpu = strcmp(k->device, "cpu") != 0;
    c->comm = is_gpu && c->ranks > 1 ? "local" : "auto";
}

static bool
same_bits(const shl_session_result *a, const shl_session_result *b)
{
    bool same = a->n_steps == b->n_steps && a->param_hash == b->param_hash;
    for (int64_t i = 0; same && i < a->n_steps; i++) {
        same = memcmp(&a->steps[i].loss, &b->steps[i].loss, sizeof(double)) == 0 &&
               memcmp(&a->steps[i].grad_norm, &b->steps[i].grad_norm, sizeof(double)) == 0;
    }
    return same;
}

/* Six strategies at one world size; the first is what the others are compared with. */
static shl_code
check_world(shl_gpu_check *k, int ranks, shl_dtype dtype)
{
    char name[48], differ[128] = "";
    shl_session_result first = {0};
    shl_strf(name, sizeof(name), "%s_x%d", shl_dtype_name(dtype), ranks);
    for (int s = 0; s < SHL_STRATEGY_COUNT; s++) {
        shl_session_config c;
        shl_session_result r = {0};
        if (k->quick && s % 3 != 0) {
            continue; /* ddp and zero3 */
        }
        shl_gpu_small_run(k, &c);
        c.steps = k->quick ? 1 : c.steps;
        c.ranks = ranks;
        share_device(k, &c);
        c.engine.strategy = (shl_strategy)s;
        c.engine.compute_dtype = dtype;
        c.engine.prefetch = shl_prefetch_resolve(c.engine.strategy, SHL_PREFETCH_AUTO);
        if (shl_session_run(&c, NULL, s == 0 ? &first : &r) != SHL_OK) {
            shl_session_result_fini(&first);
            return shl_gpu_tell_error(&k->report, name);
        }
        if (s > 0 && !same_bits(&first, &r)) {
            size_t len = strlen(differ);
            shl_strf(differ + len, sizeof(differ) - len, " %s",
                     shl_strategy_name(c.engine.strategy));
        }
        shl_session_result_fini(&r);
    }
    uint64_t hash = first.param_hash;
    double loss = first.steps[first.n_steps - 1].loss;
    shl_session_result_fini(&first);
    if (differ[0]) {
        return shl_gpu_tell(&k->report, name, SHL_GPU_FAILED, "other bits than ddp:%s", differ);
    }
    return shl_gpu_tell(&k->report, name, SHL_GPU_PASSED,
                        "%s strategies, the same bits: last loss %.9g, parameters %016llx",
                        k->quick ? "two" : "six", loss, (unsigned long long)hash);
}

shl_code
shl_gpu_check_strategies(shl_gpu_check *k)
{
    SHL_TRY(check_world(k, 2, SHL_F32));
    if (!k->quick) {
        SHL_TRY(check_world(k, 4, SHL_F32));
        SHL_TRY(check_world(k, 2, SHL_BF16));
    }
    return check_world(k, 4, SHL_BF16);
}

/* ---- the virtual twin ---- */

/* Empty when every peak of every tag is the same. */
static void
compare_peaks(const shl_session_result *real, const shl_session_result *twin, char *dst,
              size_t dst_bytes)
{
    dst[0] = '\0';
    for (int t = 0; t < SHL_TIER_COUNT && !dst[0]; t++) {
        const shl_ledger_tier *a = &real->tiers[t], *b = &twin->tiers[t];
        if (a->peak_bytes != b->peak_bytes) {
            shl_strf(dst, dst_bytes, "%s peak %zu, predicted %zu", shl_tier_name((shl_tier)t),
                     a->peak_bytes, b->peak_bytes);
        }
        for (int g = 0; g < SHL_TAG_COUNT && !dst[0]; g++) {
            if (a->peak_tag_bytes[g] != b->peak_tag_bytes[g]) {
                shl_strf(dst, dst_bytes, "%s %s peak %zu, predicted %zu",
                         shl_tier_name((shl_tier)t), shl_tag_name((shl_tag)g), a->peak_tag_bytes[g],
                         b->peak_tag_bytes[g]);
            }
        }
    }
}

static shl_code
check_twin(shl_gpu_check *k, shl_strategy s, int ranks, shl_dtype dtype)
{
    char name[64], differ[160];
    shl_session_config c;
    shl_session_result real = {0}, twin = {0};
    shl_strf(name, sizeof(name), "%s_x%d_%s", shl_strategy_name(s), ranks, shl_dtype_name(dtype));
    shl_gpu_small_run(k, &c);
    c.steps = 2;
    c.ranks = ranks;
    share_device(k, &c);
    c.engine.strategy = s;
    c.engine.compute_dtype = dtype;
    c.engine.prefetch = shl_prefetch_resolve(s, SHL_PREFETCH_AUTO);
    shl_code code = shl_session_run(&c, NULL, &real);
    if (code == SHL_OK) {
        c.device = "virtual";
        code = shl_session_run(&c, NULL, &twin);
    }
    if (code != SHL_OK) {
        shl_session_result_fini(&real);
        return shl_gpu_tell_error(&k->report, name);
    }
    compare_peaks(&real, &twin, differ, sizeof(differ));
    size_t peak = real.tiers[SHL_TIER_DEVICE].peak_bytes;
    bool same_trace = real.trace_hash == twin.trace_hash;
    shl_session_result_fini(&real);
    shl_session_result_fini(&twin);
    if (differ[0] || !same_trace) {
        return shl_gpu_tell(&k->report, name, SHL_GPU_FAILED, "%s",
                            differ[0] ? differ : "the same peaks by other allocations");
    }
    return shl_gpu_tell(&k->report, name, SHL_GPU_PASSED,
                        "peak of %zu bytes and every allocation as predicted", peak);
}

shl_code
shl_gpu_check_twin(shl_gpu_check *k)
{
    static const shl_strategy few[] = {SHL_ZERO2, SHL_FSDP};
    for (int s = 0; s < SHL_STRATEGY_COUNT; s++) {
        bool chosen = !k->quick || (shl_strategy)s == few[0] || (shl_strategy)s == few[1];
        if (chosen) {
            SHL_TRY(check_twin(k, (shl_strategy)s, 1, SHL_F32));
            SHL_TRY(check_twin(k, (shl_strategy)s, 2, SHL_BF16));
        }
    }
    return SHL_OK;
}

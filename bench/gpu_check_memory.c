/* bench: gpu-check's memory: what the driver counts against what the ledger and the arenas say, and a run
 * that does not fit, which must end as an error with nothing left. */
#include <string.h>

#include "bench/gpu_check.h"
#include "kernels/base/heap.h"
#include "kernels/base/types.h"

#define GIB ((size_t)1 << 30)
#define REST_ABOVE (8 * GIB) /* smaller runs are within the granule of the driver */
#define REST_PART 0.02

/* What the driver counts at the end of a run; taken on the rank's own thread, before it closes. */
typedef struct driver_count {
    shl_device_memory memory;
} driver_count;

static shl_code
count_memory(void *ctx, int rank, shl_engine *e)
{
    driver_count *out = ctx;
    if (rank == 0) {
        SHL_TRY(shl_device_memory_get(e->device, &out->memory));
    }
    return SHL_OK;
}

/* The largest preset and micro-batch of these whose predicted peak leaves room on the card. */
static shl_code
choose_large(const shl_gpu_check *k, size_t room, shl_session_config *c)
{
    static const char *const models[] = {"gpt2-1.5b", "gpt2-774m", "gpt2-355m", "gpt2-124m"};
    for (size_t i = 0; i < SHL_ARRAY_LEN(models) && !k->quick; i++) {
        shl_session_result plan = {0};
        const shl_preset *preset = shl_preset_find(models[i]);
        SHL_ASSERT(preset);
        shl_strf(c->model, sizeof(c->model), "%s", preset->name);
        c->shape = preset->config;
        c->engine.compute_dtype = SHL_BF16;
        c->engine.batch = 1;
        c->engine.seq = 1024;
        c->device = "virtual";
        shl_code code = shl_session_run(c, NULL, &plan);
        c->device = k->device;
        SHL_TRY(code);
        size_t peak = plan.tiers[SHL_TIER_DEVICE].peak_bytes;
        shl_session_result_fini(&plan);
        if (peak < room) {
            return SHL_OK;
        }
    }
    shl_gpu_small_run(k, c);
    return SHL_OK;
}

static shl_code
check_driver(shl_gpu_check *k)
{
    shl_gpu_report *r = &k->report;
    shl_device_config config = {.kind = k->device, .threads = 1};
    shl_device *d = NULL;
    driver_count count = {.memory = {0}};
    shl_session_config c;
    shl_session_result result = {0};
    shl_session_sink sink = {.on_close = count_memory, .ctx = &count};
    SHL_TRY(shl_device_open(&config, &d));
    shl_code code = shl_device_memory_get(d, &count.memory);
    shl_code closed = shl_device_close(&d);
    SHL_TRY(code);
    SHL_TRY(closed);
    if (count.memory.total_bytes == 0) {
        return shl_gpu_tell(r, "driver", SHL_GPU_NOT_POSSIBLE, "this device has no driver to ask");
    }
    shl_gpu_small_run(k, &c);
    SHL_TRY(choose_large(k, (count.memory.total_bytes - count.memory.used_bytes) / 10 * 9, &c));
    c.steps = 2;
    SHL_TRY(shl_session_run(&c, &sink, &result));
    const shl_device_memory *m = &count.memory;
    size_t ledger = result.tiers[SHL_TIER_DEVICE].peak_bytes;
    shl_session_result_fini(&result);
    size_t told = m->base_bytes + m->reserved_bytes + m->pool_bytes;
    double rest = (double)m->used_bytes - (double)told;
    bool judged = m->used_bytes > REST_ABOVE;
    bool good = !judged || (rest < REST_PART * (double)m->used_bytes &&
                            rest > -REST_PART * (double)m->used_bytes);
    return shl_gpu_tell(
        r, "driver", good ? SHL_GPU_PASSED : SHL_GPU_FAILED,
        "%s: MiB used %.1f = context and others %.1f + arenas %.1f (ledger's peak %.1f) + "
        "libraries %.1f + rest %.1f%s",
        c.model, (double)m->used_bytes / 0x1p20, (double)m->base_bytes / 0x1p20,
        (double)m->reserved_bytes / 0x1p20, (double)ledger / 0x1p20, (double)m->pool_bytes / 0x1p20,
        rest / 0x1p20, judged ? ", below 2 % of it" : "; judged above 8 GiB only");
}

/* A run that must not fit. */
static shl_code
check_too_large(shl_gpu_check *k, const char *name, shl_session_config *c)
{
    shl_session_result result = {0};
    int64_t blocks = (int64_t)shl_heap_live_blocks();
    shl_code code = shl_session_run(c, NULL, &result);
    if (code == SHL_OK) {
        shl_session_result_fini(&result);
        return shl_gpu_tell(&k->report, name, SHL_GPU_FAILED, "it ran");
    }
    if (code != SHL_E_OOM) {
        return shl_gpu_tell_error(&k->report, name);
    }
    int64_t left = (int64_t)shl_heap_live_blocks() - blocks;
    char what[256];
    shl_strf(what, sizeof(what), "%s", shl_err_get()->what);
    shl_err_clear();
    return shl_gpu_tell(&k->report, name, left == 0 ? SHL_GPU_PASSED : SHL_GPU_FAILED,
                        "%s; %lld blocks left over", what, (long long)left);
}

shl_code
shl_gpu_check_memory(shl_gpu_check *k)
{
    shl_session_config c;
    shl_code code = check_driver(k);
    if (code != SHL_OK && shl_err_get()->code == code) {
        SHL_TRY(shl_gpu_tell_error(&k->report, "driver"));
    }
    shl_gpu_small_run(k, &c);
    c.device_memory_bytes = k->quick ? 16384 : 4 << 20;
    SHL_TRY(check_too_large(k, "limit", &c));
    if (strcmp(k->device, "cpu") == 0) {
        return SHL_OK; /* the system would give it, and then take other programs' */
    }
    shl_gpu_small_run(k, &c);
    c.shape.vocab = 2000000000; /* 16 numbers for each of its tokens are 128 GB */
    c.shape.width = k->quick ? 16 : 256;
    shl_shape_name(&c.shape, c.model, sizeof(c.model));
    SHL_TRY(check_too_large(k, "card", &c));
    /* What a failure left would show in the next run. */
    shl_gpu_small_run(k, &c);
    shl_session_result result = {0};
    if (shl_session_run(&c, NULL, &result) != SHL_OK) {
        return shl_gpu_tell_error(&k->report, "afterwards");
    }
    shl_session_result_fini(&result);
    return shl_gpu_tell(&k->report, "afterwards", SHL_GPU_PASSED, "a run that fits runs");
}

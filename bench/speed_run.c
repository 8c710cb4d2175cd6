/* bench: speed of whole runs: a training step against the machine's limits, and a plan for a large
 * world against the clock and its memory. */
#include <errno.h>
#include <fcntl.h>
#include <spawn.h>
#include <stddef.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bench/probes.h"
#include "bench/session.h"
#include "bench/speed.h"
#include "bench/stats.h"
#include "kernels/base/clock.h"
#include "kernels/base/types.h"

#define MAX_ROUNDS 64
#define PROBE_ELEMS (INT64_C(16) << 20)

/* ---- a step ---- */

typedef struct step_watch {
    shl_device *device;
    shl_buf arrays[4];
    int threads, n; /* steps seen, the warm-up included */
    int64_t cpu_ns; /* of the process when the last probe was done */
    double step_ns[MAX_ROUNDS], flops_per_s[MAX_ROUNDS], bytes_per_s[MAX_ROUNDS];
    double share[MAX_ROUNDS];
} step_watch;

/* After every step, on the thread that computes: the probes see the machine as the step did. */
static shl_code
watch_step(void *ctx, const shl_step_report *r)
{
    step_watch *w = ctx;
    int at = w->n == 0 ? 0 : w->n - 1; /* the first step warms up and is overwritten */
    int64_t cpu_ns = shl_clock_process_ns();
    int64_t ns = shl_probe_traffic_ns(w->arrays[0].data, w->arrays[1].data, w->arrays[2].data,
                                      w->arrays[3].data, PROBE_ELEMS, w->threads);
    w->step_ns[at] = (double)r->step_ns;
    w->share[at] = (double)(cpu_ns - w->cpu_ns) / ((double)r->step_ns * w->threads);
    w->bytes_per_s[at] = SHL_PROBE_TRAFFIC_BYTES * (double)PROBE_ELEMS * 1e9 / (double)ns;
    w->flops_per_s[at] = shl_probe_fma_flops_per_s(w->threads);
    w->n++;
    w->cpu_ns = shl_clock_process_ns();
    return SHL_OK;
}

static shl_code
open_watch(step_watch *w, int threads)
{
    *w = (step_watch){.threads = threads};
    shl_device_config config = {.kind = "cpu", .threads = threads};
    SHL_TRY(shl_device_open(&config, &w->device));
    for (int i = 0; i < 4; i++) {
        size_t bytes = (size_t)PROBE_ELEMS * sizeof(float);
        SHL_TRY(shl_device_alloc(w->device, bytes, SHL_TIER_DEVICE, SHL_TAG_WORK, 0, "probe",
                                 &w->arrays[i]));
        SHL_TRY(shl_device_fill(w->device, w->arrays[i].data, 0, bytes, NULL));
    }
    return SHL_OK;
}

static shl_code
close_watch(step_watch *w)
{
    for (int i = 0; i < 4 && w->device; i++) {
        shl_device_free(w->device, &w->arrays[i]);
    }
    return shl_device_close(&w->device);
}

static shl_code
run_steps(const shl_speed_config *c, step_watch *w, shl_session_config *config)
{
    shl_session_config_init(config);
    const shl_preset *preset = shl_preset_find("gpt2-124m");
    SHL_ASSERT(preset);
    memcpy(config->model, preset->name, strlen(preset->name) + 1);
    config->shape = preset->config;
    config->engine.strategy = SHL_DDP;
    config->engine.batch = 4;
    config->engine.seq = 64;
    config->ranks = 1;
    config->threads = c->threads;
    config->data = "synthetic";
    config->steps = c->rounds + 1;
    SHL_TRY(shl_session_config_check(config));
    shl_session_sink sink = {.on_step = watch_step, .ctx = w};
    shl_session_result result = {0};
    SHL_TRY(shl_session_run(config, &sink, &result));
    shl_session_result_fini(&result);
    return SHL_OK;
}

static void
add_step_rows(const shl_session_config *config, step_watch *w, shl_speed_list *out)
{
    size_t rounds = (size_t)(w->n - 1);
    const shl_engine_config *e = &config->engine;
    double flops = shl_gpt_formula_step_flops(&config->shape, e->batch, e->seq);
    double bytes = SHL_PROBE_TRAFFIC_BYTES * (double)shl_gpt_formula_params(&config->shape);
    double ratios[MAX_ROUNDS], limits[MAX_ROUNDS];
    for (size_t i = 0; i < rounds; i++) {
        limits[i] = 1e9 * (flops / w->flops_per_s[i] + bytes / w->bytes_per_s[i]);
        ratios[i] = limits[i] / w->step_ns[i];
    }
    shl_speed_add(out, (shl_speed_row){.name = "step",
                                       .what = "GPT-2 124M step / FLOPs at peak + AdamW traffic",
                                       .unit = "ms",
                                       .value = shl_stats_median(w->step_ns, rounds) * 1e-6,
                                       .reference = shl_stats_median(limits, rounds) * 1e-6,
                                       .ratio = shl_stats_median(ratios, rounds),
                                       .bound = 0.50,
                                       .spread = shl_stats_mad(ratios, rounds),
                                       .rounds = (int64_t)rounds});
    shl_speed_add(out, (shl_speed_row){.name = "probe_fma",
                                       .what = "fp32 multiply-add peak, all threads",
                                       .unit = "GFLOP/s",
                                       .value = shl_stats_median(w->flops_per_s, rounds) * 1e-9,
                                       .rounds = (int64_t)rounds});
    shl_speed_add(out, (shl_speed_row){.name = "probe_traffic",
                                       .what = "read four arrays, write three",
                                       .unit = "GB/s",
                                       .value = shl_stats_median(w->bytes_per_s, rounds) * 1e-9,
                                       .rounds = (int64_t)rounds});
}

shl_code
shl_speed_step(const shl_speed_config *c, shl_speed_list *out)
{
    SHL_ASSERT(c->rounds >= 1 && c->rounds <= MAX_ROUNDS);
    step_watch w;
    shl_session_config config;
    shl_code code = open_watch(&w, c->threads);
    if (code == SHL_OK) {
        code = run_steps(c, &w, &config);
    }
    if (code == SHL_OK && w.n < 2) {
        code = SHL_RAISE(SHL_E_BUG, "a run of %d steps reported %d", c->rounds + 1, w.n);
    }
    if (code == SHL_OK) {
        add_step_rows(&config, &w, out);
    }
    shl_code closed = close_watch(&w);
    return code != SHL_OK ? code : closed;
}

/* ---- a plan ---- */

/* Runs this program's plan once with its output thrown away. */
static shl_code
run_plan(double *seconds, double *rss_mib)
{
    static const char *const words[] = {"shardlab",
                                        "plan",
                                        "--model",
                                        "gpt-7b",
                                        "--strategy",
                                        "ddp,zero1,zero2,zero3,fsdp,"
                                        "fsdp-grad-op",
                                        "--ranks",
                                        "1024",
                                        "--batch",
                                        "1",
                                        "--jsonl",
                                        NULL};
    char *argv[SHL_ARRAY_LEN(words)];
    memcpy(argv, words, sizeof argv); /* posix_spawn leaves the strings alone */
    posix_spawn_file_actions_t actions;
    int error = posix_spawn_file_actions_init(&actions);
    if (error == 0) {
        (void)posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, "/dev/null", O_WRONLY, 0);
        pid_t pid = 0;
        int status = 0;
        struct rusage usage;
        int64_t begin = shl_clock_ns();
        error = posix_spawn(&pid, "/proc/self/exe", &actions, NULL, argv, environ);
        (void)posix_spawn_file_actions_destroy(&actions);
        while (error == 0 && wait4(pid, &status, 0, &usage) < 0) {
            error = errno == EINTR ? 0 : errno;
        }
        if (error == 0) {
            *seconds = (double)(shl_clock_ns() - begin) * 1e-9;
            *rss_mib = (double)usage.ru_maxrss / 1024;
            if (WIFEXITED(status) && WEXITSTATUS(status) == 0) {
                return SHL_OK;
            }
            return SHL_RAISE(SHL_E_SYSTEM, "the plan that was to be timed failed (status %d)",
                             WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
        }
    }
    (void)SHL_RAISE(SHL_E_SYSTEM, "cannot start the plan that was to be timed");
    return shl_err_because("%s", strerror(error));
}

shl_code
shl_speed_plan(const shl_speed_config *c, shl_speed_list *out)
{
    double seconds[MAX_ROUNDS], rss_mib[MAX_ROUNDS];
    SHL_ASSERT(c->rounds >= 1 && c->rounds <= MAX_ROUNDS);
    for (int i = 0; i < c->rounds; i++) {
        SHL_TRY(run_plan(&seconds[i], &rss_mib[i]));
    }
    size_t rounds = (size_t)c->rounds;
    double time = shl_stats_median(seconds, rounds), rss = shl_stats_median(rss_mib, rounds);
    shl_speed_add(out, (shl_speed_row){.name = "plan_time",
                                       .what = "plan of gpt-7b at 1024 ranks, six strategies",
                                       .unit = "s",
                                       .value = time,
                                       .reference = 1,
                                       .ratio = 1 / time,
                                       .bound = 1,
                                       .spread = shl_stats_mad(seconds, rounds) / time,
                                       .rounds = c->rounds});
    shl_speed_add(out, (shl_speed_row){.name = "plan_rss",
                                       .what = "its largest resident set",
                                       .unit = "MiB",
                                       .value = rss,
                                       .reference = 200,
                                       .ratio = 200 / rss,
                                       .bound = 1,
                                       .spread = shl_stats_mad(rss_mib, rounds) / rss,
                                       .rounds = c->rounds});
    return SHL_OK;
}

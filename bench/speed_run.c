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
#include "kernels/base/clock.h"
#include "kernels/base/types.h"

/* ---- a step ---- */

typedef struct step_case {
    const char *name, *what;
    shl_strategy strategy;
    int ranks, threads;
    int64_t batch, seq;
    double bound;
    bool llama; /* GPT-2's 124M, or a LLaMA of that size */
} step_case;

/* GPT-2's depth, width, heads and vocabulary with the LLaMA block: 123.6M parameters. */
static const shl_model_config llama_124m = {.family = SHL_FAMILY_LLAMA,
                                            .vocab = 50257,
                                            .context = 1024,
                                            .layers = 12,
                                            .width = 768,
                                            .heads = 12,
                                            .inner = 2048,
                                            .tied = true};

typedef struct step_watch {
    shl_speed_probes probes;
    shl_speed_rounds rounds;
    int n;               /* steps seen, the warm-up included */
    int64_t cpu_ns;      /* of the process when the last probe was done */
    double flops, bytes; /* of a step of all ranks */
} step_watch;

/* After every step, on rank 0's thread, while the other ranks wait for its agreement: the probes see
 * the machine as the step did. */
static shl_code
watch_step(void *ctx, const shl_step_report *report)
{
    step_watch *w = ctx;
    shl_speed_rounds *r = &w->rounds;
    int at = w->n == 0 ? 0 : w->n - 1; /* the first step warms up and is overwritten */
    double step_ns = (double)report->step_ns;
    r->share[at] = (double)(shl_clock_process_ns() - w->cpu_ns) / (step_ns * w->probes.threads);
    shl_speed_probe(&w->probes, r, at);
    double limit_ns = 1e9 * (w->flops / r->flops_per_s[at] + w->bytes / r->bytes_per_s[at]);
    r->value[at] = step_ns * 1e-6;
    r->reference[at] = limit_ns * 1e-6;
    r->ratio[at] = limit_ns / step_ns;
    w->n++;
    w->cpu_ns = shl_clock_process_ns();
    return SHL_OK;
}

static shl_code
run_steps(const step_case *k, int rounds, step_watch *w)
{
    shl_session_config config;
    shl_session_config_init(&config);
    const shl_preset *preset = shl_preset_find("gpt2-124m");
    SHL_ASSERT(preset);
    memcpy(config.model, preset->name, strlen(preset->name) + 1);
    config.shape = preset->config;
    if (k->llama) {
        config.shape = llama_124m;
        shl_shape_name(&config.shape, config.model, sizeof(config.model));
    }
    config.engine.strategy = k->strategy;
    config.engine.reduce_every = k->strategy >= SHL_ZERO2 ? SHL_REDUCE_MICRO : SHL_REDUCE_BOUNDARY;
    config.engine.batch = k->batch;
    config.engine.seq = k->seq;
    config.ranks = k->ranks;
    config.threads = k->threads;
    config.data = "synthetic";
    config.steps = rounds + 1;
    /* The same limit for every strategy: that ddp's ranks all do the whole update is its own cost. */
    w->flops = k->ranks * shl_model_formula_step_flops(&config.shape, k->batch, k->seq);
    w->bytes = SHL_PROBE_TRAFFIC_BYTES * (double)shl_model_formula_params(&config.shape);
    SHL_TRY(shl_session_config_check(&config));
    shl_session_sink sink = {.on_step = watch_step, .ctx = w};
    shl_session_result result = {0};
    SHL_TRY(shl_session_run(&config, &sink, &result));
    shl_session_result_fini(&result);
    return SHL_OK;
}

static shl_code
measure_steps(const step_case *k, const shl_speed_config *c, shl_speed_list *out)
{
    step_watch w = {.n = 0};
    int threads = k->ranks * k->threads, rounds = c->quick ? 2 : c->rounds;
    shl_code code = shl_speed_probes_open(threads, &w.probes);
    if (code == SHL_OK) {
        code = run_steps(k, rounds, &w);
    }
    if (code == SHL_OK && w.n != rounds + 1) {
        code = SHL_RAISE(SHL_E_BUG, "a run of %d steps reported %d", rounds + 1, w.n);
    }
    if (code == SHL_OK) {
        w.rounds.n = rounds;
        shl_speed_add(out,
                      (shl_speed_row){.name = k->name,
                                      .what = k->what,
                                      .unit = "ms",
                                      .bound = k->bound,
                                      .threads = threads},
                      &w.rounds);
    }
    shl_code closed = shl_speed_probes_close(&w.probes);
    return code != SHL_OK ? code : closed;
}

shl_code
shl_speed_step(const shl_speed_config *c, shl_speed_list *out)
{
    const step_case cases[] = {
        {"step", "124M, B 4 T 64 / FLOPs at peak + AdamW", SHL_DDP, 1, c->threads, 4, 64, 0.64,
         false},
        {"step_long", "124M, B 1 T 1024 / the same", SHL_DDP, 1, c->threads, 1, 1024, 0.68, false},
        /* Within 5 % of the two above. */
        {"step_llama", "LLaMA of 124M, B 4 T 64", SHL_DDP, 1, c->threads, 4, 64, 0.61, true},
        {"step_llama_long", "LLaMA, B 1 T 1024", SHL_DDP, 1, c->threads, 1, 1024, 0.65, true},
    };
    int n = c->quick ? 1 : (int)SHL_ARRAY_LEN(cases);
    for (int i = 0; i < n; i++) {
        SHL_TRY(measure_steps(&cases[i], c, out));
    }
    return SHL_OK;
}

shl_code
shl_speed_ranks(const shl_speed_config *c, shl_speed_list *out)
{
    static const step_case cases[] = {
        {"step_ddp", "124M, 2 ranks, B 1 T 256 each / limit", SHL_DDP, 2, 1, 1, 256, 0.60, false},
        {"step_zero1", "the same", SHL_ZERO1, 2, 1, 1, 256, 0.60, false},
        {"step_zero2", "the same", SHL_ZERO2, 2, 1, 1, 256, 0.60, false},
        {"step_zero3", "the same", SHL_ZERO3, 2, 1, 1, 256, 0.55, false},
        {"step_fsdp", "the same", SHL_FSDP, 2, 1, 1, 256, 0.55, false},
    };
    for (size_t i = 0; i < SHL_ARRAY_LEN(cases); i++) {
        if (!c->quick || cases[i].strategy == SHL_ZERO3) {
            SHL_TRY(measure_steps(&cases[i], c, out));
        }
    }
    return SHL_OK;
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
    shl_speed_rounds time = {.n = c->rounds}, rss = {.n = c->rounds};
    for (int i = 0; i < c->rounds; i++) {
        SHL_TRY(run_plan(&time.value[i], &rss.value[i]));
        time.reference[i] = 1;
        time.ratio[i] = 1 / time.value[i];
        rss.reference[i] = 200;
        rss.ratio[i] = 200 / rss.value[i];
    }
    shl_speed_add(out,
                  (shl_speed_row){.name = "plan_time",
                                  .what = "gpt-7b at 1024 ranks, six strategies",
                                  .unit = "s",
                                  .bound = 1,
                                  .threads = 1},
                  &time);
    shl_speed_add(out,
                  (shl_speed_row){.name = "plan_rss",
                                  .what = "its largest resident set",
                                  .unit = "MiB",
                                  .bound = 1,
                                  .threads = 1},
                  &rss);
    return SHL_OK;
}

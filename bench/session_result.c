/* bench: what a session tells about itself: steps, the worst rank's peaks, traffic, times. Numbers of
 * other ranks reach rank 0 through control collectives, which no per-step count includes. */
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "bench/session_impl.h"
#include "kernels/base/heap.h"
#include "kernels/base/str.h"

shl_code
shl_session_keep_step(shl_session_result *out, int64_t *cap, const shl_step_report *report)
{
    if (out->n_steps == *cap) {
        int64_t more = *cap > 0 ? 2 * *cap : 16;
        SHL_TRY(shl_heap_grow(&out->steps, (size_t)*cap, (size_t)more, sizeof(*out->steps)));
        *cap = more;
    }
    out->steps[out->n_steps++] = *report;
    return SHL_OK;
}

shl_code
shl_session_keep_eval(shl_session_result *out, int64_t *cap, const shl_eval_report *report)
{
    if (out->n_evals == *cap) {
        int64_t more = *cap > 0 ? 2 * *cap : 16;
        SHL_TRY(shl_heap_grow(&out->evals, (size_t)*cap, (size_t)more, sizeof(*out->evals)));
        *cap = more;
    }
    out->evals[out->n_evals++] = *report;
    return SHL_OK;
}

void
shl_session_result_fini(shl_session_result *r)
{
    shl_heap_free(&r->steps);
    shl_heap_free(&r->evals);
    shl_heap_free(&r->timeline.events);
    memset(r, 0, sizeof(*r));
}

/* The worst rank's tiers on every rank. Rank and bytes share one word, so that one maximum finds both:
 * the larger peak wins, and among equals the lower rank. */
static shl_code
collect_tiers(shl_session_rank *r)
{
    const shl_ledger *ledger = r->device->ledger;
    const int64_t ranks = shl_comm_size(r->comm);
    int64_t peak = (int64_t)shl_ledger_get(ledger, SHL_TIER_DEVICE)->peak_bytes;
    int64_t worst = peak * ranks + (ranks - 1 - r->rank);
    SHL_TRY(shl_comm_control(r->comm, SHL_CONTROL_MAX_I64, &worst, 1));
    r->out->worst_rank = (int)(ranks - 1 - worst % ranks);

    union {
        shl_ledger_tier tiers[SHL_TIER_COUNT];
        int64_t words[SHL_TIER_COUNT * sizeof(shl_ledger_tier) / sizeof(int64_t)];
    } all;
    memset(&all, 0, sizeof(all));
    if (r->rank == r->out->worst_rank) {
        for (int t = 0; t < SHL_TIER_COUNT; t++) {
            all.tiers[t] = *shl_ledger_get(ledger, (shl_tier)t);
        }
    }
    SHL_TRY(shl_lab_sum_words(r->lab, all.words, (int64_t)SHL_ARRAY_LEN(all.words)));
    memcpy(r->out->tiers, all.tiers, sizeof(all.tiers));
    return SHL_OK;
}
_Static_assert(sizeof(shl_ledger_tier) % sizeof(int64_t) == 0, "a tier travels as 64-bit words");

/* Resident set against what the ledgers of the ranks in that process held at their peaks. */
static shl_code
collect_resources(shl_session_rank *r)
{
    struct rusage usage = {0};
    bool alone = r->cfg->processes;
    (void)getrusage(RUSAGE_SELF, &usage);
    int64_t rss = (int64_t)usage.ru_maxrss * 1024;
    int64_t held = 0;
    for (int t = 0; t < SHL_TIER_NVME; t++) {
        held += (int64_t)shl_ledger_get(r->device->ledger, (shl_tier)t)->peak_bytes;
    }
    /* CPU time of the process counts once: in threads rank 0 has it for all. */
    int64_t busy_and_held[2] = {alone || r->rank == 0 ? r->cpu_ns : 0, held};
    int64_t residual = rss - held;
    int64_t reserved = (int64_t)shl_device_reserved_bytes(r->device, SHL_TIER_DEVICE);
    int64_t pinned = (int64_t)r->device->pinned_peak_bytes;
    SHL_TRY(shl_lab_sum_words(r->lab, busy_and_held, 2));
    SHL_TRY(shl_comm_control(r->comm, SHL_CONTROL_MAX_I64, &pinned, 1));
    r->out->pinned_bytes = pinned;
    SHL_TRY(shl_comm_control(r->comm, SHL_CONTROL_MAX_I64, &rss, 1));
    SHL_TRY(shl_comm_control(r->comm, SHL_CONTROL_MAX_I64, &residual, 1));
    SHL_TRY(shl_comm_control(r->comm, SHL_CONTROL_MAX_I64, &reserved, 1));
    r->out->cpu_ns = busy_and_held[0];
    r->out->rss_bytes = rss;
    r->out->reserved_bytes = reserved;
    r->out->residual_bytes = alone ? residual : rss - busy_and_held[1];
    return SHL_OK;
}

static bool
divide_counter(shl_comm_counter *out, const shl_comm_counter *sum, int64_t steps)
{
    out->calls = sum->calls / steps;
    out->bytes = sum->bytes / steps;
    out->wire_bytes = sum->wire_bytes / steps;
    return sum->calls % steps == 0 && sum->bytes % steps == 0 && sum->wire_bytes % steps == 0;
}

static int
compare_ns(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

/* Tokens of a step over the median step time: a slow first step does not move it. */
static shl_code
median_rate(const shl_session_result *out, double *tokens_per_s)
{
    int64_t *ns = NULL;
    SHL_TRY(shl_heap_alloc((size_t)out->n_steps, sizeof(*ns), &ns));
    for (int64_t i = 0; i < out->n_steps; i++) {
        ns[i] = out->steps[i].step_ns;
    }
    qsort(ns, (size_t)out->n_steps, sizeof(*ns), compare_ns);
    int64_t median = ns[out->n_steps / 2];
    shl_heap_free(&ns);
    *tokens_per_s = median > 0 ? (double)out->steps[0].tokens * 1e9 / (double)median : 0.0;
    return SHL_OK;
}

static shl_code
sum_up(shl_session_result *out)
{
    out->comm_uniform = true;
    for (int k = 0; k < SHL_COLL_COUNT; k++) {
        bool even = divide_counter(&out->comm_step.kind[k], &out->comm.kind[k], out->n_steps);
        out->comm_uniform = out->comm_uniform && even;
    }
    out->comm_step.staged_bytes = out->comm.staged_bytes / out->n_steps;
    out->cpu_ns_per_step = out->cpu_ns / out->n_steps;
    return median_rate(out, &out->tokens_per_s);
}

static void
collect_kernels(const shl_device *d, shl_session_kernels *out)
{
    shl_op_ran(d, SHL_OP_LINEAR_FORWARD, out->product, sizeof(out->product));
    shl_op_ran(d, SHL_OP_ATTENTION_FORWARD, out->attention_forward, sizeof(out->attention_forward));
    shl_op_ran(d, SHL_OP_ATTENTION_BACKWARD, out->attention_backward,
               sizeof(out->attention_backward));
}

shl_code
shl_session_collect(shl_session_rank *r)
{
    shl_session_result *out = r->out;
    shl_device_identify(r->device, &out->card);
    collect_kernels(r->device, &out->ran);
    shl_strf(out->comm_memory, sizeof(out->comm_memory), "%s", shl_comm_memory(r->comm));
    SHL_TRY(shl_device_memory_get(r->device, &out->driver));
    SHL_TRY(collect_tiers(r));
    SHL_TRY(collect_resources(r));
    out->predicted = r->device->caps.predicted;
    out->params = r->model->n_elems;
    out->trainable_params = shl_model_trainable_elems(r->model);
    shl_formula_size_of(r->cfg->engine.strategy, r->model, r->cfg->ranks, &out->size);
    out->trace_hash = shl_ledger_trace_hash(r->device->ledger);
    shl_engine_info_get(r->engine, &out->info);
    shl_strf(out->layout_name, sizeof(out->layout_name), "%s", out->info.layout);
    out->info.layout = out->layout_name;
    SHL_TRY(shl_engine_param_hash(r->engine, &out->param_hash));
    return r->rank == 0 ? sum_up(out) : SHL_OK;
}

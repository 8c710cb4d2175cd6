/* bench: estimates of DeepSpeed beside the peak of a virtual run, by named bytes. */
#include "bench/ds_plan.h"

#include <string.h>

#include "bench/ds_calls.h"
#include "engines/config/ds_config.h"
#include "engines/config/ds_estimate.h"
#include "kernels/base/types.h"

/* What DeepSpeed's code has; its own default. */
#define BUFFER_FACTOR 1.5
#define NODE_RANKS 8

static double
mib(int64_t bytes)
{
    return (double)bytes / 1048576.0;
}

/* The largest leaf module: parameters whose names agree up to the last dot belong to one. */
static shl_code
largest_layer(const shl_model_config *shape, int64_t *out)
{
    shl_model *model = NULL;
    SHL_TRY(shl_model_new(shape, &model));
    *out = 0;
    for (int i = 0; i < model->n_params; i++) {
        const char *name = model->params[i]->name, *dot = strrchr(name, '.');
        size_t len = dot ? (size_t)(dot - name) : strlen(name);
        int64_t elems = 0;
        for (int j = 0; j < model->n_params; j++) {
            const char *other = model->params[j]->name, *end = strrchr(other, '.');
            bool same = end && (size_t)(end - other) == len && strncmp(name, other, len) == 0;
            elems += same || i == j ? model->params[j]->elems : 0;
        }
        *out = elems > *out ? elems : *out;
    }
    shl_model_free(&model);
    return SHL_OK;
}

/* DeepSpeed cuts the flat space of stages 1 and 2 once and holds, of every tensor that touches a rank's
 * slice, the whole reduced gradient: elements of the slice, and of the rank that holds most. */
static shl_code
straddling(const shl_model_config *shape, int ranks, int64_t *slice, int64_t *most)
{
    shl_model *model = NULL;
    SHL_TRY(shl_model_new(shape, &model));
    *slice = shl_ceil_div(model->n_elems, 2 * (int64_t)ranks) * 2;
    *most = 0;
    int first = 0;
    int64_t first_begin = 0;
    for (int64_t rank = 0; rank < ranks && first < model->n_params; rank++) {
        while (first < model->n_params &&
               first_begin + model->params[first]->elems <= rank * *slice) {
            first_begin += model->params[first++]->elems;
        }
        int64_t begin = first_begin, held = 0;
        for (int i = first; i < model->n_params && begin < (rank + 1) * *slice; i++) {
            held += model->params[i]->elems;
            begin += model->params[i]->elems;
        }
        *most = held > *most ? held : *most;
    }
    shl_model_free(&model);
    return SHL_OK;
}

static void
add_case(shl_str *out, const char *what, const shl_ds_estimate *e)
{
    shl_str_add(out, "    %-36s device %12.2f MiB, host %14.2f MiB a node\n", what,
                mib(e->device_bytes), mib(e->host_bytes));
}

static shl_ds_estimate
estimate(const shl_ds_estimate_ask *ask, int stage, bool offload, bool offload_params, bool init)
{
    shl_ds_estimate_ask a = *ask;
    a.offload = offload;
    a.offload_params = offload_params;
    a.zero_init = init;
    return stage == 3 ? shl_ds_estimate_zero3(&a) : shl_ds_estimate_zero2(&a);
}

/* Ours minus theirs, by what theirs does not count. */
static void
add_difference(shl_str *out, const shl_run_record *r, const shl_ds_estimate *theirs)
{
    static const struct {
        shl_tag tag;
        const char *name;
    } missing[] = {{SHL_TAG_ACT, "act"},       {SHL_TAG_BUCKET, "bucket"},
                   {SHL_TAG_GATHER, "gather"}, {SHL_TAG_STAGING, "staging"},
                   {SHL_TAG_WORK, "work"},     {SHL_TAG_CKPT, "ckpt"}};
    const shl_record_tier *at = &r->at_peak[SHL_TIER_DEVICE];
    int64_t states = at->total;
    shl_str_add(out, "    ours: peak %.2f MiB; not in theirs:", mib(at->total));
    for (size_t i = 0; i < SHL_ARRAY_LEN(missing); i++) {
        int64_t bytes = at->tags[missing[i].tag];
        states -= bytes;
        if (bytes > 0) {
            shl_str_add(out, " %s %.2f", missing[i].name, mib(bytes));
        }
    }
    shl_str_add(out, "; states %.2f against their %.2f: %+.2f MiB\n", mib(states),
                mib(theirs->device_bytes), mib(states - theirs->device_bytes));
}

static shl_code
add_row(const shl_output_row *row, shl_str *out)
{
    const shl_run_record *r = &row->record;
    int stage = (int)row->cfg->engine.strategy, ranks = row->cfg->ranks;
    int node = ranks > NODE_RANKS && ranks % NODE_RANKS == 0 ? NODE_RANKS : ranks;
    shl_ds_estimate_ask ask = {.total_params = r->params,
                               .ranks_per_node = node,
                               .nodes = ranks / node,
                               .additional_buffer_factor = BUFFER_FACTOR};
    SHL_TRY(largest_layer(&row->cfg->shape, &ask.largest_layer_params));
    shl_str_add(out, "%s, %d ranks (%d x %d), %lld parameters, largest layer %lld\n", r->strategy,
                ranks, ask.nodes, node, (long long)r->params, (long long)ask.largest_layer_params);
    shl_ds_estimate plain = estimate(&ask, stage, false, false, true), e;
    if (stage < 3) {
        add_case(out, "no offload", &plain);
        e = estimate(&ask, stage, true, false, false);
        add_case(out, "optimizer offloaded", &e);
        int64_t slice = 0, most = 0;
        SHL_TRY(straddling(&row->cfg->shape, ranks, &slice, &most));
        shl_str_add(
            out,
            "    gradients it holds at most: %lld elements, whole tensors that touch a slice "
            "of %lld; ours: the slice\n",
            (long long)most, (long long)slice);
    } else {
        for (int init = 1; init >= 0; init--) {
            const char *with = init ? "zero.Init" : "without zero.Init";
            char what[64];
            e = estimate(&ask, stage, false, false, init == 1);
            shl_strf(what, sizeof(what), "no offload, %s", with);
            add_case(out, what, &e);
            e = estimate(&ask, stage, true, false, init == 1);
            shl_strf(what, sizeof(what), "optimizer offloaded, %s", with);
            add_case(out, what, &e);
            e = estimate(&ask, stage, true, true, init == 1);
            shl_strf(what, sizeof(what), "both offloaded, %s", with);
            add_case(out, what, &e);
        }
    }
    add_difference(out, r, &plain);
    return SHL_OK;
}

shl_code
shl_ds_plan_estimates(const shl_output *output, shl_str *out)
{
    shl_str_add(out,
                "\nDeepSpeed's estimators (estimate_zero2/3_model_states_mem_needs; 2 + 4 bytes of "
                "gradient, 4 of\nmaster, 8 of Adam a parameter; buffer factor 1.5), MiB:\n");
    for (size_t i = 0; i < output->n_rows; i++) {
        shl_strategy s = output->rows[i]->cfg->engine.strategy;
        if (s == SHL_ZERO2 || s == SHL_ZERO3) {
            SHL_TRY(add_row(output->rows[i], out));
        } else {
            shl_str_add(out, "%s, %d ranks: DeepSpeed has no estimator for it\n",
                        shl_strategy_name(s), output->rows[i]->cfg->ranks);
        }
        SHL_TRY(shl_ds_calls_add(output->rows[i], out));
    }
    return SHL_OK;
}

shl_code
shl_ds_plan_emit(const shl_run_points *points, shl_str *out)
{
    if (points->n != 1) {
        SHL_RAISE(SHL_E_USAGE, "%lld rows for one ds_config.json", (long long)points->n);
        return shl_err_advice("--strategy zero2 --ranks 8");
    }
    return shl_ds_emit(&points->configs[0].engine, points->configs[0].ranks, out);
}

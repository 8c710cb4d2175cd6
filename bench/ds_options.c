/* bench: from --config and its kin to a session's configuration. */
#include "bench/ds_options.h"

#include <string.h>

#include "engines/config/ds_optimizer.h"
#include "engines/config/ds_text.h"
#include "kernels/base/heap.h"
#include "kernels/base/types.h"

/* Flags that the file decides. */
static const char *const decided[] = {
    "strategy",      "batch",          "accum",
    "reduce-every",  "bucket",         "zero",
    "clip",          "dtype",          "master-dtype",
    "grad-dtype",    "reduce-dtype",   "loss-scale",
    "moment-dtype",  "check-overflow", "offload-optimizer",
    "offload-param", "offload-ratio",  "offload-activations",
    "pin-memory",    "sub-group-size",
};

/* Flags that it decides when it has the block; else the command line's hold. */
static const char *const of_optimizer[] = {
    "optimizer", "lr",        "betas",     "eps",      "weight-decay",   "momentum",
    "min-coeff", "max-coeff", "dampening", "nesterov", "bias-correction"};
static const char *const of_schedule[] = {"schedule", "schedule-steps", "warmup", "min-lr-ratio"};

void
shl_ds_options_fini(shl_ds_options *o)
{
    shl_heap_free(&o->found);
}

static bool
has(const char *const *given, const char *name)
{
    for (; *given; given++) {
        if (strcmp(*given, name) == 0) {
            return true;
        }
    }
    return false;
}

static const char *
first_given(const char *const *given, const char *const *names, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (has(given, names[i])) {
            return names[i];
        }
    }
    return NULL;
}

void
shl_ds_options_given(const shl_option *table, const shl_origin *origins, size_t n,
                     const char **given)
{
    for (size_t i = 0; i < n; i++) {
        if (origins[i] == SHL_ORIGIN_USER) {
            *given++ = table[i].name;
        }
    }
    *given = NULL;
}

static shl_code
raise_decided(const char *flag)
{
    SHL_RAISE(SHL_E_USAGE, "--%s beside --config", flag);
    return shl_err_because("the file decides it, and would be silently overruled");
}

static shl_code
resolve_hosts(shl_ds_options *o, const char *const *given, const char **ranks, char *ranks_text)
{
    char name[256], *text = NULL;
    int64_t n = 0;
    if (o->hostfile) {
        SHL_TRY(shl_ds_text_load(o->hostfile, name, sizeof(name), &text));
    }
    shl_code code = shl_ds_hosts(o, text, &n);
    shl_heap_free(&text);
    SHL_TRY(code);
    if (n == 0) {
        return SHL_OK;
    }
    shl_strf(ranks_text, 24, "%lld", (long long)n);
    if (has(given, "ranks") && strcmp(*ranks, ranks_text) != 0) {
        SHL_RAISE(SHL_E_USAGE, "--ranks %s beside the launcher's %s", *ranks, ranks_text);
        return shl_err_because("both say how many ranks there are");
    }
    *ranks = ranks_text;
    return SHL_OK;
}

shl_code
shl_ds_options_resolve(shl_ds_options *o, const char *const *given, const char **ranks,
                       char *ranks_text)
{
    SHL_TRY(resolve_hosts(o, given, ranks, ranks_text));
    o->steps_given = has(given, "steps");
    o->seed_given = has(given, "seed");
    if (!o->config && o->trainer) {
        SHL_TRY(shl_ds_trainer_config_path(o->trainer, &o->found));
        o->config = o->found;
    }
    if (!o->config && (o->trainer || o->show)) {
        SHL_RAISE(SHL_E_USAGE, "%s without a configuration",
                  o->trainer ? "--trainer-args" : "--show-config");
        shl_err_because("no --config, and the Trainer's arguments name no \"deepspeed\" file");
        return shl_err_advice("--config ds_config.json");
    }
    const char *flag = first_given(given, decided, SHL_ARRAY_LEN(decided));
    if (o->config && flag) {
        return raise_decided(flag);
    }
    o->optimizer_given = first_given(given, of_optimizer, SHL_ARRAY_LEN(of_optimizer));
    o->schedule_given = first_given(given, of_schedule, SHL_ARRAY_LEN(of_schedule));
    return SHL_OK;
}

shl_ds_facts
shl_ds_options_facts(const shl_session_config *c)
{
    return (shl_ds_facts){.ranks = c->ranks,
                          .hidden = c->shape.width,
                          .params = shl_model_formula_params(&c->shape),
                          .steps = c->steps,
                          .recomputes = c->tune.recompute == SHL_RECOMPUTE_FULL};
}

/* A line is said once for all rows of a sweep. */
static void
add_notes(shl_str *notes, const shl_ds_config *ds)
{
    for (const char *at = shl_str_get(&ds->notes); *at;) {
        char line[512];
        size_t len = strcspn(at, "\n");
        shl_strf(line, sizeof(line), "config: %.*s\n", (int)len, at);
        if (!strstr(shl_str_get(notes), line)) {
            shl_str_add(notes, "%s", line);
        }
        at += len + (at[len] ? 1 : 0);
    }
}

shl_code
shl_ds_options_apply(const shl_ds_options *o, bool data_follows, shl_session_config *c,
                     shl_str *notes)
{
    shl_ds_config ds;
    shl_engine_config *e = &c->engine;
    shl_ds_facts facts = shl_ds_options_facts(c);
    uint64_t seed = e->seed;
    shl_code code = shl_ds_config_load(o->config, (int)o->dated, &ds);
    if (code == SHL_OK) {
        code = shl_ds_resolve(&ds, o->trainer, &facts, e);
    }
    if (code == SHL_OK && o->optimizer_given && shl_ds_text(&ds, "optimizer.type")) {
        code = raise_decided(o->optimizer_given);
    }
    if (code == SHL_OK && o->schedule_given && shl_ds_text(&ds, "scheduler.type")) {
        code = raise_decided(o->schedule_given);
    }
    if (code == SHL_OK) {
        c->steps = ds.trainer_steps > 0 && !o->steps_given ? ds.trainer_steps : c->steps;
        e->seed = o->seed_given ? seed : e->seed;
        c->data_seed = data_follows ? e->seed : c->data_seed;
        shl_ds_schedule_format(&e->optim.named, c->schedule_text, sizeof(c->schedule_text));
        add_notes(notes, &ds);
    }
    shl_ds_config_fini(&ds);
    return code;
}

shl_code
shl_ds_options_show(const shl_ds_options *o, const shl_session_config *c, bool json, shl_str *out)
{
    shl_ds_config ds;
    shl_ds_facts facts = shl_ds_options_facts(c);
    shl_code code;
    SHL_TRY_TO(code, out, shl_ds_config_load(o->config, (int)o->dated, &ds));
    SHL_TRY_TO(code, out, shl_ds_config_auto(&ds, o->trainer, &facts));
    SHL_TRY_TO(code, out, shl_ds_config_batch(&ds, facts.ranks));
    SHL_TRY_TO(code, out, shl_ds_optimizer_defaults(&ds, &c->engine.optim));
    if (json) {
        code = shl_ds_show_json(&ds, out);
    } else {
        shl_ds_show(&ds, false, out);
    }
    if (code == SHL_OK) {
        code = shl_ds_config_check(&ds);
    }
out:
    shl_ds_config_fini(&ds);
    return code;
}

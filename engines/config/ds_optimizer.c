/* engines/config: from DeepSpeed's names of optimizers and of their parameters to ours. "Adam" is AdamW unless
 * adam_w_mode is false (deepspeed/runtime/engine.py). */
#include "engines/config/ds_optimizer.h"

#include <string.h>
#include <strings.h>

#include <jansson.h>

#include "engines/config/ds_table.h"
#include "kernels/base/str.h"

#define P "optimizer.params."

static const struct {
    const char *name;
    shl_optim_kind kind;
} types[] = {
    {"Adam", SHL_OPTIM_ADAMW}, {"AdamW", SHL_OPTIM_ADAMW},     {"Lamb", SHL_OPTIM_LAMB},
    {"Lion", SHL_OPTIM_LION},  {"Adagrad", SHL_OPTIM_ADAGRAD}, {"SGD", SHL_OPTIM_SGD},
};

/* Known to DeepSpeed, and not here. */
static const char *const others[] = {"OneBitAdam", "ZeroOneAdam", "OneBitLamb", "MuAdam",
                                     "MuAdamW",    "MuSGD",       "Muon"};

static int
find(const char *type)
{
    for (size_t i = 0; i < SHL_ARRAY_LEN(types); i++) {
        if (strcasecmp(type, types[i].name) == 0) {
            return (int)i;
        }
    }
    return -1;
}

shl_code
shl_ds_optimizer_check(const shl_ds_config *c)
{
    const char *names[SHL_ARRAY_LEN(types) + SHL_ARRAY_LEN(others)];
    const char *type = shl_ds_text(c, "optimizer.type");
    size_t n = 0;
    if (!type) {
        if (shl_ds_block_given(c, "optimizer.params")) {
            SHL_RAISE(SHL_E_CONFIG, "%s: optimizer.params without optimizer.type", c->name);
            return shl_err_because("nothing says whose parameters they are");
        }
        return SHL_OK;
    }
    if (find(type) >= 0) {
        return SHL_OK;
    }
    for (size_t i = 0; i < SHL_ARRAY_LEN(types); i++) {
        names[n++] = types[i].name;
    }
    for (size_t i = 0; i < SHL_ARRAY_LEN(others); i++) {
        if (strcasecmp(type, others[i]) == 0) {
            shl_ds_raise(c, "optimizer.type", "is one that is not in this build");
            return shl_err_because(
                "\"%s\"; this build has Adam, AdamW, Lamb, Lion, Adagrad and SGD", others[i]);
        }
        names[n++] = others[i];
    }
    const char *near = shl_nearest(type, names, n);
    shl_ds_raise(c, "optimizer.type", "is unknown");
    shl_err_because("\"%.60s\" is none of DeepSpeed's optimizers", type);
    return shl_err_advice("\"%s\"", near ? near : "AdamW");
}

/* A parameter's value where the file gives one. */
static void
take(const shl_ds_config *c, const char *path, double *out)
{
    const shl_ds_value *v = shl_ds_get(c, path);
    if (v->origin != SHL_DS_DEFAULT && json_is_number(v->json)) {
        *out = json_number_value(v->json);
    }
}

static void
take_switch(const shl_ds_config *c, const char *path, double *out)
{
    if (shl_ds_get(c, path)->origin != SHL_DS_DEFAULT) {
        *out = shl_ds_bool(c, path) ? 1.0 : 0.0;
    }
}

/* Where DeepSpeed's defaults are not our optimizer's own. */
static void
set_defaults(const shl_ds_config *c, const char *type, shl_optim_kind kind, shl_optim_asked *a)
{
    if (kind == SHL_OPTIM_ADAMW) {
        bool torchs = shl_ds_bool(c, P "torch_adam") && strcasecmp(type, "AdamW") == 0;
        a->beta2 = 0.999;
        a->weight_decay = torchs ? 0.01 : 0.0;
    }
}

shl_code
shl_ds_optimizer_resolve(shl_ds_config *c, shl_optim_config *o)
{
    const char *type = shl_ds_text(c, "optimizer.type");
    o->clip = shl_ds_real(c, "gradient_clipping", 0.0);
    if (!type) {
        shl_str_add(&c->notes, "no optimizer in the file: %s of the command line\n",
                    shl_optim_name(o->kind));
        return SHL_OK;
    }
    int at = find(type);
    SHL_ASSERT(at >= 0);
    shl_optim_kind kind = types[at].kind;
    if (at == 0 && !shl_ds_bool(c, P "adam_w_mode")) {
        kind = SHL_OPTIM_ADAM;
    }
    shl_optim_asked a;
    const shl_ds_value *betas = shl_ds_get(c, P "betas");
    shl_optim_asked_init(&a);
    set_defaults(c, type, kind, &a);
    take(c, P "lr", &a.lr);
    take(c, P "eps", &a.eps);
    take(c, P "weight_decay", &a.weight_decay);
    take(c, P "momentum", &a.momentum);
    take(c, P "dampening", &a.dampening);
    take_switch(c, P "nesterov", &a.nesterov);
    take_switch(c, P "bias_correction", &a.bias_correction);
    take(c, P "min_coeff", &a.min_coeff);
    take(c, P "max_coeff", &a.max_coeff);
    if (betas->origin != SHL_DS_DEFAULT) {
        a.beta1 = json_number_value(json_array_get(betas->json, 0));
        a.beta2 = json_number_value(json_array_get(betas->json, 1));
    }
    if (shl_optim_resolve(kind, &a, o) == SHL_OK) {
        return SHL_OK;
    }
    char what[sizeof(shl_err_get()->what)];
    shl_strf(what, sizeof(what), "%s", shl_err_get()->what);
    shl_ds_raise(c, "optimizer.params", "has one that its optimizer has not");
    return shl_err_because("%s", what);
}

/* json: NULL for what it has not. */
static shl_code
put_default(shl_ds_config *c, const char *path, json_t *json)
{
    if (shl_ds_get(c, path)->origin == SHL_DS_DEFAULT) {
        return shl_ds_set(c, path, json ? json : json_null(), SHL_DS_DEFAULT);
    }
    json_decref(json);
    return SHL_OK;
}

static json_t *
given(double x)
{
    return x < 0.0 ? NULL : json_real(x);
}

static json_t *
given_switch(double x)
{
    return x < 0.0 ? NULL : json_boolean(x > 0.0);
}

json_t *
shl_ds_optimizer_json(const shl_optim_config *o)
{
    static const char *const names[] = {
        [SHL_OPTIM_ADAMW] = "AdamW",     [SHL_OPTIM_ADAM] = "Adam", [SHL_OPTIM_LION] = "Lion",
        [SHL_OPTIM_ADAGRAD] = "Adagrad", [SHL_OPTIM_SGD] = "SGD",   [SHL_OPTIM_LAMB] = "Lamb"};
    shl_optim_asked a;
    shl_optim_asked_of(o, &a);
    return json_pack("{ss s{sf so* so* sf so* so* so* so* so* so* so*}}", "type", names[o->kind],
                     "params", "lr", a.lr, "betas",
                     a.beta1 < 0.0 ? NULL : json_pack("[ff]", a.beta1, a.beta2), "eps",
                     given(a.eps), "weight_decay", a.weight_decay, "adam_w_mode",
                     o->kind == SHL_OPTIM_ADAM ? json_false() : NULL, "momentum", given(a.momentum),
                     "dampening", given(a.dampening), "nesterov", given_switch(a.nesterov),
                     "bias_correction", given_switch(a.bias_correction), "min_coeff",
                     given(a.min_coeff), "max_coeff", given(a.max_coeff));
}

shl_code
shl_ds_optimizer_defaults(shl_ds_config *c, const shl_optim_config *of_line)
{
    static const char *const of_adam[] = {P "adam_w_mode", P "amsgrad", P "torch_adam"};
    const char *type = shl_ds_text(c, "optimizer.type");
    shl_optim_config o = *of_line;
    shl_optim_asked a;
    int at = type ? find(type) : -1;
    if (type && at < 0) {
        return SHL_OK; /* none that anything is known of */
    }
    if (type) {
        bool coupled = at == 0 && !shl_ds_bool(c, P "adam_w_mode");
        shl_optim_kind kind = coupled ? SHL_OPTIM_ADAM : types[at].kind;
        shl_optim_asked_init(&a);
        set_defaults(c, type, kind, &a);
        SHL_TRY(shl_optim_resolve(kind, &a, &o));
    }
    shl_optim_asked_of(&o, &a);
    bool adam = o.kind == SHL_OPTIM_ADAMW || o.kind == SHL_OPTIM_ADAM;
    for (size_t i = 0; !adam && i < SHL_ARRAY_LEN(of_adam); i++) {
        SHL_TRY(put_default(c, of_adam[i], NULL));
    }
    SHL_TRY(put_default(c, P "lr", given(a.lr)));
    SHL_TRY(put_default(c, P "betas", a.beta1 < 0.0 ? NULL : json_pack("[ff]", a.beta1, a.beta2)));
    SHL_TRY(put_default(c, P "eps", given(a.eps)));
    SHL_TRY(put_default(c, P "weight_decay", given(a.weight_decay)));
    SHL_TRY(put_default(c, P "momentum", given(a.momentum)));
    SHL_TRY(put_default(c, P "dampening", given(a.dampening)));
    SHL_TRY(put_default(c, P "nesterov", given_switch(a.nesterov)));
    SHL_TRY(put_default(c, P "bias_correction", given_switch(a.bias_correction)));
    SHL_TRY(put_default(c, P "min_coeff", given(a.min_coeff)));
    return put_default(c, P "max_coeff", given(a.max_coeff));
}

/* engines/config: the table of optimizers. Defaults are PyTorch's and DeepSpeed's, AdamW's those of GPT
 * recipes; a parameter that an optimizer does not have is 0 in its row and refused from outside. */
#include "engines/config/optim_kinds.h"

#include <math.h>
#include <stddef.h>
#include <string.h>

#include "engines/config/config.h"
#include "kernels/base/str.h"

#define HAS_BETAS 1u
#define HAS_EPS 2u
#define HAS_MOMENTUM 4u
#define HAS_COEFFS 8u
#define HAS_M 16u
#define HAS_V 32u
#define HAS_BIAS 64u
#define ADAM_LIKE (HAS_BETAS | HAS_EPS | HAS_M | HAS_V | HAS_BIAS)

static const struct {
    unsigned has;
    const char *owner_m, *owner_v;
    shl_optim_asked own;
} kinds[SHL_OPTIM_KIND_COUNT] = {
    [SHL_OPTIM_ADAMW] = {ADAM_LIKE,
                         "adamw.m",
                         "adamw.v",
                         {.lr = 1e-3,
                          .beta1 = 0.9,
                          .beta2 = 0.95,
                          .eps = 1e-8,
                          .weight_decay = 0.1,
                          .bias_correction = 1}},
    [SHL_OPTIM_ADAM] =
        {ADAM_LIKE,
         "adam.m",
         "adam.v",
         {.lr = 1e-3, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .bias_correction = 1}},
    [SHL_OPTIM_LION] = {HAS_BETAS | HAS_M,
                        "lion.m",
                        "lion.v",
                        {.lr = 1e-3, .beta1 = 0.9, .beta2 = 0.99}},
    [SHL_OPTIM_ADAGRAD] = {HAS_EPS | HAS_V, "adagrad.m", "adagrad.v", {.lr = 1e-2, .eps = 1e-10}},
    [SHL_OPTIM_SGD] = {HAS_MOMENTUM | HAS_M, "sgd.m", "sgd.v", {.lr = 1e-3}},
    [SHL_OPTIM_LAMB] = {ADAM_LIKE | HAS_COEFFS,
                        "lamb.m",
                        "lamb.v",
                        {.lr = 1e-3,
                         .beta1 = 0.9,
                         .beta2 = 0.999,
                         .eps = 1e-8,
                         .bias_correction = 1,
                         .min_coeff = 0.01,
                         .max_coeff = 10}},
};

const char *const shl_optim_names[SHL_OPTIM_KIND_COUNT + 1] = {
    [SHL_OPTIM_ADAMW] = "adamw",     [SHL_OPTIM_ADAM] = "adam", [SHL_OPTIM_LION] = "lion",
    [SHL_OPTIM_ADAGRAD] = "adagrad", [SHL_OPTIM_SGD] = "sgd",   [SHL_OPTIM_LAMB] = "lamb",
};

#define AT(field) offsetof(shl_optim_asked, field), offsetof(shl_optim_config, field)

/* need: 0 for what all have. */
static const struct {
    const char *name;
    unsigned need;
    size_t asked, config;
    double least, most;
    bool below;
} params[] = {
    {"lr", 0, AT(lr), 0, 1e6, false},
    {"beta1", HAS_BETAS, AT(beta1), 0, 1, true},
    {"beta2", HAS_BETAS, AT(beta2), 0, 1, true},
    {"eps", HAS_EPS, AT(eps), 1e-30, 1, false},
    {"weight decay", 0, AT(weight_decay), 0, 1e6, false},
    {"momentum", HAS_MOMENTUM, AT(momentum), 0, 1, true},
    {"dampening", HAS_MOMENTUM, AT(dampening), 0, 1, false},
    {"nesterov", HAS_MOMENTUM, AT(nesterov), 0, 1, false},
    {"bias correction", HAS_BIAS, AT(bias_correction), 0, 1, false},
    {"min coeff", HAS_COEFFS, AT(min_coeff), 0, 1e30, false},
    {"max coeff", HAS_COEFFS, AT(max_coeff), 0, 1e30, false},
};

static bool
takes(shl_optim_kind kind, size_t param)
{
    return (params[param].need & ~kinds[kind].has) == 0;
}

static double
real_at(const void *base, size_t offset)
{
    double x;
    memcpy(&x, (const char *)base + offset, sizeof(x));
    return x;
}

static void
put_real(void *base, size_t offset, double x)
{
    memcpy((char *)base + offset, &x, sizeof(x));
}

static bool
is_unset(double x)
{
    return !(x < SHL_OPTIM_UNSET) && !(x > SHL_OPTIM_UNSET) && !isnan(x);
}

const char *
shl_optim_name(shl_optim_kind kind)
{
    SHL_ASSERT((int)kind >= 0 && kind < SHL_OPTIM_KIND_COUNT);
    return shl_optim_names[kind];
}

void
shl_optim_asked_init(shl_optim_asked *a)
{
    for (size_t i = 0; i < SHL_ARRAY_LEN(params); i++) {
        put_real(a, params[i].asked, SHL_OPTIM_UNSET);
    }
}

void
shl_optim_asked_of(const shl_optim_config *c, shl_optim_asked *a)
{
    for (size_t i = 0; i < SHL_ARRAY_LEN(params); i++) {
        put_real(a, params[i].asked,
                 takes(c->kind, i) ? real_at(c, params[i].config) : SHL_OPTIM_UNSET);
    }
}

static shl_code
raise_foreign(shl_optim_kind kind, size_t param)
{
    shl_str who = {0};
    for (int i = 0; i < SHL_OPTIM_KIND_COUNT; i++) {
        if (takes((shl_optim_kind)i, param)) {
            shl_str_add(&who, "%s%s", who.len > 0 ? ", " : "", shl_optim_names[i]);
        }
    }
    SHL_RAISE(SHL_E_USAGE, "%s has no %s", shl_optim_names[kind],
              params[param].need == HAS_BETAS ? "betas" : params[param].name);
    shl_err_because("it belongs to: %s", shl_str_get(&who));
    shl_str_fini(&who);
    return shl_err_advice("leave it out, or choose another optimizer");
}

shl_code
shl_optim_resolve(shl_optim_kind kind, const shl_optim_asked *a, shl_optim_config *c)
{
    SHL_ASSERT((int)kind >= 0 && kind < SHL_OPTIM_KIND_COUNT);
    c->kind = kind;
    for (size_t i = 0; i < SHL_ARRAY_LEN(params); i++) {
        double x = real_at(a, params[i].asked);
        if (!is_unset(x) && !takes(kind, i)) {
            return raise_foreign(kind, i);
        }
        put_real(c, params[i].config, is_unset(x) ? real_at(&kinds[kind].own, params[i].asked) : x);
    }
    return SHL_OK;
}

bool
shl_optim_has_m(const shl_optim_config *c)
{
    return (kinds[c->kind].has & HAS_M) != 0 && (c->kind != SHL_OPTIM_SGD || c->momentum > 0.0);
}

bool
shl_optim_has_v(const shl_optim_config *c)
{
    return (kinds[c->kind].has & HAS_V) != 0;
}

const char *
shl_optim_owner_m(shl_optim_kind kind)
{
    return kinds[kind].owner_m;
}

const char *
shl_optim_owner_v(shl_optim_kind kind)
{
    return kinds[kind].owner_v;
}

shl_code
shl_config_check_real(const char *field, double value, double lo, double hi, bool hi_excluded)
{
    if (value >= lo && (hi_excluded ? value < hi : value <= hi)) {
        return SHL_OK;
    }
    SHL_RAISE(SHL_E_USAGE, "%s is %g", field, value);
    return shl_err_because("it must be a number from %g to %s%g", lo, hi_excluded ? "below " : "",
                           hi);
}

static shl_code
check_switch(const char *name, double x)
{
    if (!(x > 0.0 && x < 1.0)) {
        return SHL_OK;
    }
    SHL_RAISE(SHL_E_USAGE, "%s is %g", name, x);
    return shl_err_because("it is 1 or 0");
}

/* As torch.optim.SGD; it takes a dampening without momentum, which does nothing. */
static shl_code
check_momentum(const shl_optim_config *c)
{
    const char *name = c->nesterov > 0.0 ? "nesterov" : "dampening";
    if (!(c->momentum > 0.0) && (c->nesterov > 0.0 || c->dampening > 0.0)) {
        SHL_RAISE(SHL_E_USAGE, "%s without momentum", name);
        shl_err_because("it is about what momentum adds to, and there is none");
        return shl_err_advice("--momentum 0.9");
    }
    if (c->nesterov > 0.0 && c->dampening > 0.0) {
        SHL_RAISE(SHL_E_USAGE, "nesterov with a dampening of %g", c->dampening);
        return shl_err_because("Nesterov's momentum has none; PyTorch refuses it too");
    }
    return SHL_OK;
}

shl_code
shl_optim_check(const shl_optim_config *c)
{
    if ((int)c->kind < 0 || c->kind >= SHL_OPTIM_KIND_COUNT) {
        return SHL_RAISE(SHL_E_USAGE, "optimizer is number %d", (int)c->kind);
    }
    for (size_t i = 0; i < SHL_ARRAY_LEN(params); i++) {
        if (takes(c->kind, i)) {
            SHL_TRY(shl_config_check_real(params[i].name, real_at(c, params[i].config),
                                          params[i].least, params[i].most, params[i].below));
        }
    }
    SHL_TRY(check_switch("nesterov", c->nesterov));
    SHL_TRY(check_switch("bias correction", c->bias_correction));
    SHL_TRY(c->kind == SHL_OPTIM_SGD ? check_momentum(c) : SHL_OK);
    if (c->kind == SHL_OPTIM_LAMB && c->min_coeff > c->max_coeff) {
        SHL_RAISE(SHL_E_USAGE, "lamb's trust ratio has no value");
        return shl_err_because("min coeff %g is above max coeff %g", c->min_coeff, c->max_coeff);
    }
    return SHL_OK;
}

/* engines/config: what may be offloaded by whom: names and checks. */
#include <string.h>

#include "engines/config/config.h"

static const char *const device_names[] = {
    [SHL_OFFLOAD_NONE] = "none",
    [SHL_OFFLOAD_HOST] = "cpu",
};

const char *
shl_offload_name(shl_offload_device d)
{
    return device_names[d];
}

shl_code
shl_offload_parse(const char *field, const char *text, shl_offload_device *out)
{
    for (int i = 0; text != NULL && i < SHL_OFFLOAD_DEVICE_COUNT; ++i) {
        if (strcmp(text, device_names[i]) == 0) {
            *out = (shl_offload_device)i;
            return SHL_OK;
        }
    }
    SHL_RAISE(SHL_E_USAGE, "%s: \"%s\"", field, text != NULL ? text : "NULL");
    if (text != NULL && strcmp(text, "nvme") == 0) {
        shl_err_because("this version offloads to CPU memory only");
    } else {
        shl_err_because("it takes none or cpu");
    }
    return shl_err_advice("cpu");
}

static shl_code
refuse(const shl_engine_config *c, const char *what, const char *who, const char *instead)
{
    SHL_RAISE(SHL_E_USAGE, "%s does not offload %s", shl_strategy_name(c->strategy), what);
    shl_err_because("%s", who);
    return shl_err_advice("%s", instead);
}

/* PyTorch's CPUOffload moves all of it or nothing. */
static shl_code
check_fsdp(const shl_engine_config *c)
{
    const shl_offload_config *o = &c->offload;
    const char *name = shl_strategy_name(c->strategy);
    if (o->optimizer != o->param) {
        SHL_RAISE(SHL_E_USAGE, "%s with its %s alone in host memory", name,
                  o->param == SHL_OFFLOAD_NONE ? "optimizer" : "parameters");
        shl_err_because("FSDP's CPUOffload moves parameter shards, gradients and the optimizer "
                        "together; zero3 moves them one by one");
        return shl_err_advice("--offload-param cpu --offload-optimizer cpu");
    }
    if (o->optimizer != SHL_OFFLOAD_NONE && o->ratio < 1.0) {
        SHL_RAISE(SHL_E_USAGE, "%s with an offload ratio of %g", name, o->ratio);
        shl_err_because("FSDP's CPUOffload moves the whole optimizer; a part of it is zero1's, "
                        "zero2's and zero3's");
        return shl_err_advice("--offload-ratio 1");
    }
    return SHL_OK;
}

static shl_code
check_strategy(const shl_engine_config *c)
{
    const shl_offload_config *o = &c->offload;
    bool staged = c->strategy == SHL_ZERO1 || c->strategy == SHL_ZERO2 || c->strategy == SHL_ZERO3;
    if (c->strategy == SHL_FSDP || c->strategy == SHL_FSDP_GRAD_OP) {
        return check_fsdp(c);
    }
    if (o->optimizer != SHL_OFFLOAD_NONE && !staged) {
        return refuse(c, "its optimizer",
                      "offload_optimizer belongs to zero1, zero2 and zero3, and to fsdp beside "
                      "offload_param",
                      "--strategy zero2");
    }
    if (o->param != SHL_OFFLOAD_NONE && c->strategy != SHL_ZERO3) {
        return refuse(c, "its parameters", "offload_param moves shards of parameters: zero3, fsdp",
                      staged ? "--strategy zero3, or --offload-optimizer cpu alone"
                             : "--strategy zero3");
    }
    return SHL_OK;
}

bool
shl_offload_any(const shl_offload_config *o)
{
    return o->optimizer != SHL_OFFLOAD_NONE || o->param != SHL_OFFLOAD_NONE ||
           o->activations != SHL_OFFLOAD_NONE;
}

shl_code
shl_offload_check(const shl_engine_config *c)
{
    const shl_offload_config *o = &c->offload;
    if (!(o->ratio >= 0.0 && o->ratio <= 1.0)) {
        SHL_RAISE(SHL_E_USAGE, "an offload ratio of %g", o->ratio);
        return shl_err_because("it is a part of the optimizer, from 0 to 1");
    }
    SHL_TRY(check_strategy(c));
    if (o->sub_group_elems < 1 || o->sub_group_elems > INT64_MAX / 64) {
        SHL_RAISE(SHL_E_USAGE, "a sub-group of %lld elements", (long long)o->sub_group_elems);
        return shl_err_because("it must lie from 1 to %lld", (long long)(INT64_MAX / 64));
    }
    if (o->pin && !shl_offload_any(o)) {
        SHL_RAISE(SHL_E_USAGE, "pinned memory, but nothing in host memory");
        return shl_err_advice("--offload-optimizer cpu");
    }
    return SHL_OK;
}

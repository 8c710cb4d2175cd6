/* engines/config: which dtype may play which role, and which loss scaling goes with it. Refusals name
 * what can do what was asked for. */
#include "engines/config/dtypes.h"

#include <math.h>
#include <string.h>

#include "kernels/base/str.h"

void
shl_dtype_policy_set(shl_engine_config *c, shl_dtype compute)
{
    c->compute_dtype = compute;
    c->master_dtype = c->reduce_dtype = c->grad_dtype = c->moment_dtype = SHL_F32;
}

void
shl_dtype_policy_text(const shl_engine_config *c, char *dst, size_t cap)
{
    shl_strf(dst, cap, "%s compute, %s master, %s reduce, %s grad, %s moments",
             shl_dtype_name(c->compute_dtype), shl_dtype_name(c->master_dtype),
             shl_dtype_name(c->reduce_dtype), shl_dtype_name(c->grad_dtype),
             shl_dtype_name(c->moment_dtype));
}

shl_code
shl_dtype_parse(const char *role, const char *text, shl_dtype *out)
{
    static const shl_dtype known[] = {SHL_F32, SHL_BF16, SHL_F16};
    for (size_t i = 0; text && i < SHL_ARRAY_LEN(known); i++) {
        if (strcmp(text, shl_dtype_name(known[i])) == 0) {
            *out = known[i];
            return SHL_OK;
        }
    }
    SHL_RAISE(SHL_E_USAGE, "%s: unknown dtype \"%s\"", role, text ? text : "NULL");
    return shl_err_because("it is one of: fp32, bf16, fp16");
}

/* One buffer serves both: ddp and zero1 with one reduction a step, fsdp without synchronisation. */
bool
shl_reduces_in_grad_dtype(const shl_engine_config *c)
{
    switch (c->strategy) {
    case SHL_DDP:
    case SHL_ZERO1:
        return c->reduce_every == SHL_REDUCE_BOUNDARY || c->accum == 1;
    case SHL_FSDP:
    case SHL_FSDP_GRAD_OP:
        return c->reduce_every == SHL_REDUCE_BOUNDARY;
    case SHL_ZERO2:
    case SHL_ZERO3:
    case SHL_STRATEGY_COUNT:
        break;
    }
    return false;
}

bool
shl_checks_overflow(const shl_engine_config *c)
{
    return c->scale.kind != SHL_SCALE_NONE || c->check_overflow;
}

static shl_code
raise_role(const char *role, shl_dtype is)
{
    return SHL_RAISE(SHL_E_USAGE, "dtype of %s is %s", role, shl_dtype_name(is));
}

/* fp32, or what the model computes in. */
static shl_code
check_role(const char *role, shl_dtype is, shl_dtype compute)
{
    if (is == SHL_F32 || is == compute) {
        return SHL_OK;
    }
    raise_role(role, is);
    return compute == SHL_F32
               ? shl_err_because("with fp32 compute it must be fp32")
               : shl_err_because("it must be fp32, or %s as compute", shl_dtype_name(compute));
}

static shl_code
check_reduction(const shl_engine_config *c)
{
    if (c->reduce_dtype == c->grad_dtype || !shl_reduces_in_grad_dtype(c)) {
        return SHL_OK;
    }
    bool store = c->strategy == SHL_DDP || c->strategy == SHL_ZERO1;
    if (store && c->offload.optimizer == SHL_OFFLOAD_NONE) {
        return SHL_OK; /* through a bucket, at the boundary */
    }
    const char *name = shl_strategy_name(c->strategy);
    SHL_RAISE(SHL_E_USAGE, "%s cannot reduce in %s what it accumulates in %s", name,
              shl_dtype_name(c->reduce_dtype), shl_dtype_name(c->grad_dtype));
    if (c->strategy == SHL_DDP || c->strategy == SHL_ZERO1) {
        shl_err_because(
            "on their way to host memory gradients wait in buckets until the boundary, and "
            "are reduced there; zero2 and zero3 reduce each micro-step");
    } else {
        shl_err_because("at the boundary it reduces the gradients that it held until then; zero2, "
                        "zero3, and fsdp at every micro-step have buckets");
    }
    return shl_err_advice("both in %s", shl_dtype_name(c->reduce_dtype));
}

static shl_code
check_scale(const shl_scale_config *s)
{
    if (!(s->scale > 0.0) || !isfinite(s->scale)) {
        SHL_RAISE(SHL_E_USAGE, "the loss scale is %g", s->scale);
        return shl_err_because("it must be a finite number above 0");
    }
    if (s->kind == SHL_SCALE_STATIC) {
        return SHL_OK;
    }
    if (s->window < 1 || s->hysteresis < 1) {
        SHL_RAISE(SHL_E_USAGE, "loss scale window %lld, hysteresis %lld", (long long)s->window,
                  (long long)s->hysteresis);
        return shl_err_because("both must be at least 1");
    }
    if (!(s->min_scale > 0.0) || s->min_scale > s->scale) {
        SHL_RAISE(SHL_E_USAGE, "the least loss scale is %g", s->min_scale);
        return shl_err_because("it must lie above 0 and not above the first one, %g", s->scale);
    }
    return SHL_OK;
}

static shl_code
check_scaling(const shl_engine_config *c)
{
    if (c->scale.kind != SHL_SCALE_NONE) {
        return check_scale(&c->scale);
    }
    if (c->compute_dtype != SHL_F16 || c->no_optimizer) {
        return SHL_OK;
    }
    SHL_RAISE(SHL_E_USAGE, "fp16 without a loss scale");
    shl_err_because("its gradients vanish below 6e-8, and no scaler was named");
    return shl_err_advice("--loss-scale dynamic, or a number");
}

shl_code
shl_dtype_policy_check(const shl_engine_config *c)
{
    if (c->compute_dtype != SHL_F32 && c->compute_dtype != SHL_BF16 &&
        c->compute_dtype != SHL_F16) {
        raise_role("compute", c->compute_dtype);
        return shl_err_because("it is one of: fp32, bf16, fp16");
    }
    SHL_TRY(check_role("master weights", c->master_dtype, c->compute_dtype));
    SHL_TRY(check_role("reduction", c->reduce_dtype, c->compute_dtype));
    SHL_TRY(check_role("gradients", c->grad_dtype, c->compute_dtype));
    if (c->moment_dtype != SHL_F32 && c->moment_dtype != SHL_BF16) {
        raise_role("optimizer moments", c->moment_dtype);
        return shl_err_because("they are fp32 or bf16");
    }
    SHL_TRY(check_reduction(c));
    return check_scaling(c);
}

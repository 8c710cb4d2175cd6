/* models: from a configuration to a model of its family. */
#include "models/family.h"

#include "models/gpt.h"
#include "models/llama.h"

/* A GPT has learned positions, as many kv heads as heads, and biases everywhere. */
static shl_code
check_gpt(const shl_model_config *c)
{
    const char *what = c->kv_heads != 0                 ? "kv-heads"
                       : c->head_dim != 0               ? "head-dim"
                       : c->rope.kind != SHL_ROPE_PLAIN ? "rope-scaling"
                       : c->rope_theta != 0.0           ? "rope-theta"
                       : c->qkv_bias                    ? "qkv-bias"
                                                        : NULL;
    if (!what) {
        return SHL_OK;
    }
    SHL_RAISE(SHL_E_USAGE, "a GPT has no %s", what);
    shl_err_because("it belongs to the LLaMA family");
    return shl_err_advice("--family llama, or a preset of that family");
}

shl_code
shl_model_new(const shl_model_config *cfg, shl_model **out)
{
    static shl_code (*const build[SHL_FAMILY_COUNT])(const shl_model_config *, shl_model **) = {
        [SHL_FAMILY_GPT] = shl_gpt_new,
        [SHL_FAMILY_LLAMA] = shl_llama_new,
    };
    *out = NULL;
    if ((int)cfg->family < 0 || cfg->family >= SHL_FAMILY_COUNT) {
        return SHL_RAISE(SHL_E_USAGE, "%d is not a model family", (int)cfg->family);
    }
    if (cfg->family == SHL_FAMILY_GPT) {
        SHL_TRY(check_gpt(cfg));
    }
    return build[cfg->family](cfg, out);
}

/* models: from a configuration to a model of its family. */
#include "models/family.h"

#include "models/gpt.h"

shl_code
shl_model_new(const shl_model_config *cfg, shl_model **out)
{
    static shl_code (*const build[SHL_FAMILY_COUNT])(const shl_model_config *, shl_model **) = {
        [SHL_FAMILY_GPT] = shl_gpt_new,
    };
    *out = NULL;
    if ((int)cfg->family < 0 || cfg->family >= SHL_FAMILY_COUNT) {
        return SHL_RAISE(SHL_E_USAGE, "%d is not a model family", (int)cfg->family);
    }
    if (!build[cfg->family]) {
        SHL_RAISE(SHL_E_USAGE, "a model of the LLaMA family cannot be built by this version");
        return shl_err_because("it can be counted, not trained");
    }
    return build[cfg->family](cfg, out);
}

/* models: from a configuration to a model of its family. */
#include "models/family.h"

#include "models/gpt.h"
#include "models/llama.h"

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
    return build[cfg->family](cfg, out);
}

/* models: named shapes. The GPT-2 sizes are those of Radford et al. 2019; counts are of parameters
 * with the head tied. */
#include <string.h>

#include "models/family.h"

static const shl_preset presets[] = {
    {"gpt2-tiny",
     "byte-level text, 0.8M parameters",
     {.vocab = 256, .context = 128, .layers = 4, .width = 128, .heads = 4, .tied = true}},
    {"gpt2-124m",
     "GPT-2 small",
     {.vocab = 50257, .context = 1024, .layers = 12, .width = 768, .heads = 12, .tied = true}},
    {"gpt2-355m",
     "GPT-2 medium",
     {.vocab = 50257, .context = 1024, .layers = 24, .width = 1024, .heads = 16, .tied = true}},
    {"gpt2-774m",
     "GPT-2 large",
     {.vocab = 50257, .context = 1024, .layers = 36, .width = 1280, .heads = 20, .tied = true}},
    {"gpt2-1.5b",
     "GPT-2 XL",
     {.vocab = 50257, .context = 1024, .layers = 48, .width = 1600, .heads = 25, .tied = true}},
    {"gpt-7b",
     "a GPT of 6.7B parameters, context 2048",
     {.vocab = 50257, .context = 2048, .layers = 32, .width = 4096, .heads = 32, .tied = true}},
};

const shl_preset *
shl_preset_table(size_t *n)
{
    *n = SHL_ARRAY_LEN(presets);
    return presets;
}

const shl_preset *
shl_preset_find(const char *name)
{
    for (size_t i = 0; i < SHL_ARRAY_LEN(presets); i++) {
        if (strcmp(presets[i].name, name) == 0) {
            return &presets[i];
        }
    }
    return NULL;
}

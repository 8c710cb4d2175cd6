/* models: named shapes. The GPT-2 sizes are those of Radford et al. 2019; counts are of parameters
 * with the head tied. */
#include <string.h>

#include "models/gpt.h"

/* vocab, context, layers, width, heads, inner, eps, tied */
static const shl_preset presets[] = {
    {"gpt2-tiny", "byte-level text, 0.8M parameters", {256, 128, 4, 128, 4, 0, 0.0, true}},
    {"gpt2-124m", "GPT-2 small", {50257, 1024, 12, 768, 12, 0, 0.0, true}},
    {"gpt2-355m", "GPT-2 medium", {50257, 1024, 24, 1024, 16, 0, 0.0, true}},
    {"gpt2-774m", "GPT-2 large", {50257, 1024, 36, 1280, 20, 0, 0.0, true}},
    {"gpt2-1.5b", "GPT-2 XL", {50257, 1024, 48, 1600, 25, 0, 0.0, true}},
    {"gpt-7b", "a GPT of 6.7B parameters, context 2048", {50257, 2048, 32, 4096, 32, 0, 0.0, true}},
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

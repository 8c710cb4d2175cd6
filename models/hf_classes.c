/* models: Hugging Face's names of blocks and of what they are made of (transformers/models). */
#include "models/hf_classes.h"

#include <ctype.h>
#include <string.h>

#include "kernels/base/str.h"

static const struct {
    const char *family, *name, *pattern;
} classes[] = {
    {"gpt2", "GPT2Block", "h.#"},
    {"gpt2", "GPT2Attention", "h.#.attn"},
    {"gpt2", "GPT2MLP", "h.#.mlp"},
    {"llama", "LlamaDecoderLayer", "model.layers.#"},
    {"llama", "LlamaAttention", "model.layers.#.self_attn"},
    {"llama", "LlamaMLP", "model.layers.#.mlp"},
    {"llama", "MistralDecoderLayer", "model.layers.#"},
    {"llama", "MistralAttention", "model.layers.#.self_attn"},
    {"llama", "MistralMLP", "model.layers.#.mlp"},
    {"llama", "Qwen2DecoderLayer", "model.layers.#"},
    {"llama", "Qwen2Attention", "model.layers.#.self_attn"},
    {"llama", "Qwen2MLP", "model.layers.#.mlp"},
};

static bool
is_of(const shl_model *model, size_t i)
{
    return strcmp(classes[i].family, model->family) == 0;
}

shl_code
shl_hf_class_find(const shl_model *model, const char *name, const char **pattern)
{
    const char *dot = strrchr(name, '.'), *own[SHL_ARRAY_LEN(classes)];
    char list[400] = "";
    size_t n = 0;
    name = dot ? dot + 1 : name;
    for (size_t i = 0; i < SHL_ARRAY_LEN(classes); i++) {
        if (is_of(model, i) && strcmp(classes[i].name, name) == 0) {
            *pattern = classes[i].pattern;
            return SHL_OK;
        }
        if (is_of(model, i)) {
            size_t len = strlen(list);
            shl_strf(list + len, sizeof(list) - len, "%s%s", n > 0 ? ", " : "", classes[i].name);
            own[n++] = classes[i].name;
        }
    }
    const char *near = shl_nearest(name, own, n);
    SHL_RAISE(SHL_E_USAGE, "leaf module class \"%.100s\" is not in the model", name);
    shl_err_because("this one has %s", list);
    return near ? shl_err_advice("\"%s\"", near) : SHL_E_USAGE;
}

size_t
shl_hf_class_part(const char *pattern, const char *path)
{
    const char *at = path;
    for (; *pattern; pattern++) {
        if (*pattern != '#') {
            if (*at++ != *pattern) {
                return 0;
            }
            continue;
        }
        const char *digits = at;
        while (isdigit((unsigned char)*at)) {
            at++;
        }
        if (at == digits) {
            return 0;
        }
    }
    return *at == '\0' || *at == '.' ? (size_t)(at - path) : 0;
}

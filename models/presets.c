/* models: looking a shape up by its name or by its size, and the message when there is none. */
#include "models/presets.h"

#include <string.h>
#include <strings.h>

#include "kernels/base/str.h"

#define MAX_NAMES 256

static const struct {
    const char *size, *name;
} sizes[] = {
    {"124m", "gpt2-124m"},  {"355m", "gpt2-355m"},      {"774m", "gpt2-774m"},
    {"1.5b", "gpt2-1.5b"},  {"0.5b", "qwen2.5-0.5b"},   {"1.1b", "tinyllama-1.1b"},
    {"1.3b", "gpt3-1.3b"},  {"2.7b", "gpt3-2.7b"},      {"3b", "qwen2.5-3b"},
    {"6.7b", "gpt3-6.7b"},  {"7b", "llama-2-7b"},       {"8b", "llama-3-8b"},
    {"13b", "llama-2-13b"}, {"14b", "qwen2.5-14b"},     {"20b", "gpt-neox-20b"},
    {"30b", "llama-30b"},   {"32b", "qwen2.5-32b"},     {"65b", "llama-65b"},
    {"70b", "llama-3-70b"}, {"72b", "qwen2.5-72b"},     {"175b", "gpt3-175b"},
    {"176b", "bloom-176b"}, {"405b", "llama-3.1-405b"},
};

const shl_preset *
shl_preset_at(size_t i)
{
    if (i < shl_presets_gpt_len) {
        return &shl_presets_gpt[i];
    }
    i -= shl_presets_gpt_len;
    return i < shl_presets_llama_len ? &shl_presets_llama[i] : NULL;
}

const shl_preset *
shl_preset_find(const char *name)
{
    const shl_preset *p = NULL;
    for (size_t i = 0; (p = shl_preset_at(i)) != NULL; i++) {
        if (strcmp(p->name, name) == 0) {
            break;
        }
    }
    return p;
}

int64_t
shl_preset_gap_elems(const shl_preset *p)
{
    int64_t sum = 0;
    for (size_t i = 0; i < SHL_PRESET_GAPS; i++) {
        sum += p->gaps[i].elems;
    }
    return sum;
}

const char *
shl_preset_of_size(const char *size)
{
    for (size_t i = 0; i < SHL_ARRAY_LEN(sizes); i++) {
        if (strcasecmp(sizes[i].size, size) == 0) {
            return sizes[i].name;
        }
    }
    return NULL;
}

bool
shl_preset_size_at(size_t i, const char **size, const char **name)
{
    if (i >= SHL_ARRAY_LEN(sizes)) {
        return false;
    }
    *size = sizes[i].size;
    *name = sizes[i].name;
    return true;
}

shl_code
shl_preset_raise_unknown(const char *name)
{
    const char *names[MAX_NAMES];
    size_t n = 0;
    const shl_preset *p;
    while (n < MAX_NAMES && (p = shl_preset_at(n)) != NULL) {
        names[n++] = p->name;
    }
    const char *near = shl_nearest(name, names, n);
    SHL_RAISE(SHL_E_USAGE, "unknown model \"%s\"", name);
    shl_err_because(
        "it is none of the %zu presets (shardlab info models), no size alone such as 7b, "
        "and no path to a config.json",
        n);
    return near ? shl_err_advice("--model %s", near)
                : shl_err_advice("shardlab info models, or a preset with --layers --width --heads");
}

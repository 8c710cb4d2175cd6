/* models: a preset, a size or a file, and what is asked over it. */
#include "models/named.h"

#include <string.h>

#include "kernels/base/str.h"
#include "models/hf_config.h"

static void
take_preset(const shl_preset *p, shl_named_model *out)
{
    shl_strf(out->name, sizeof(out->name), "%s", p->name);
    out->config = p->config;
    out->window = p->window;
    out->preset = p;
    shl_strf(out->approximated, sizeof(out->approximated), "%s",
             p->approximated ? p->approximated : "");
}

/* The last part of the path that is not the file itself, marked so that it is no preset's name. */
static void
name_of_path(const char *path, char *dst, size_t dst_bytes)
{
    size_t end = strlen(path);
    const char *file = strrchr(path, '/');
    file = file ? file + 1 : path;
    if (strcmp(file, SHL_HF_CONFIG_FILE) == 0) {
        end = (size_t)(file - path);
    }
    while (end > 0 && path[end - 1] == '/') {
        end--;
    }
    if (end > 5 && strncmp(path + end - 5, ".json", 5) == 0) {
        end -= 5;
    }
    size_t begin = end;
    while (begin > 0 && path[begin - 1] != '/') {
        begin--;
    }
    shl_strf(dst, dst_bytes, "hf:%.*s", (int)(end - begin), path + begin);
    if (begin == end) {
        shl_strf(dst, dst_bytes, "hf:.");
    }
}

static shl_code
take_path(const char *path, shl_named_model *out)
{
    shl_hf_config hf;
    SHL_TRY(shl_hf_config_load(path, &hf));
    name_of_path(path, out->name, sizeof(out->name));
    out->config = hf.config;
    out->window = hf.window;
    shl_strf(out->approximated, sizeof(out->approximated), "%s", hf.approximated);
    shl_strf(out->note, sizeof(out->note), "%s", hf.note);
    return SHL_OK;
}

shl_code
shl_model_find(const char *text, shl_named_model *out)
{
    memset(out, 0, sizeof(*out));
    if (shl_hf_config_is_path(text)) {
        return take_path(text, out);
    }
    const char *by_size = shl_preset_of_size(text);
    const shl_preset *preset = shl_preset_find(by_size ? by_size : text);
    if (!preset) {
        return shl_preset_raise_unknown(text);
    }
    take_preset(preset, out);
    if (by_size) {
        shl_strf(out->note, sizeof(out->note), "%s: taken as %s", text, by_size);
    }
    return SHL_OK;
}

shl_code
shl_named_apply(shl_named_model *m, const shl_shape_asked *asked)
{
    shl_model_config before = m->config;
    SHL_TRY(shl_shape_apply(asked, &m->config));
    if (m->window > 0 && m->config.context > m->window && m->config.family == before.family) {
        SHL_RAISE(SHL_E_USAGE, "%s with a context of %lld", m->name, (long long)m->config.context);
        shl_err_because(
            "its attention has a sliding window of %lld (sliding_window), which the one "
            "here has not; up to there they are the same",
            (long long)m->window);
        return shl_err_advice("--context %lld", (long long)m->window);
    }
    if (!shl_shape_equal(&before, &m->config)) {
        shl_shape_name(&m->config, m->name, sizeof(m->name));
        m->preset = NULL;
    }
    return SHL_OK;
}

shl_code
shl_named_check_exact(const shl_named_model *m)
{
    if (m->approximated[0] == '\0') {
        return SHL_OK;
    }
    SHL_RAISE(SHL_E_USAGE, "%s cannot be trained as the original", m->name);
    shl_err_because("%s", m->approximated);
    return shl_err_advice(
        "plan, which needs the shape only, or --approximate for a model of its shape");
}

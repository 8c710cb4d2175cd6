/* models: the GPT-2 family (Radford et al. 2019): checks the sizes, builds tree and parameters.
 * No tensor memory is touched here: engines decide where parameters live. */
#include "models/gpt.h"

#include <math.h>

#include "kernels/base/str.h"
#include "models/mod.h"

#define INIT_STD 0.02

/* Defaults filled in; sizes that make no model are refused. */
static shl_code
resolve(const shl_model_config *cfg, shl_model_config *out)
{
    *out = *cfg;
    SHL_TRY(shl_check_size("GPT", "vocabulary", out->vocab, SHL_MAX_INDEX));
    SHL_TRY(shl_check_size("GPT", "context", out->context, SHL_MAX_INDEX));
    SHL_TRY(shl_check_size("GPT", "layers", out->layers, SHL_MAX_LAYERS));
    SHL_TRY(shl_check_size("GPT", "width", out->width, SHL_MAX_INDEX));
    SHL_TRY(shl_check_size("GPT", "heads", out->heads, out->width));
    if (out->inner == 0) {
        out->inner = 4 * out->width;
    }
    SHL_TRY(shl_check_size("GPT", "inner width", out->inner, 4 * (int64_t)SHL_MAX_INDEX));
    if (out->width % out->heads != 0) {
        SHL_RAISE(SHL_E_USAGE, "%lld heads do not divide the width %lld", (long long)out->heads,
                  (long long)out->width);
        return shl_err_advice("a number of heads that divides the width");
    }
    if (out->norm_eps == 0.0) {
        out->norm_eps = 1e-5;
    }
    if (!isfinite(out->norm_eps) || out->norm_eps < 0.0) {
        return SHL_RAISE(SHL_E_USAGE, "the layer norm's epsilon must be positive and finite");
    }
    return SHL_OK;
}

/* The largest pieces: rows, cols, how many. */
static shl_code
check_total(const shl_model_config *c)
{
    const int64_t pieces[][3] = {
        {c->vocab, c->width, c->tied ? 1 : 2},    {c->context, c->width, 1},
        {4 * c->width, c->width, c->layers},      {2 * c->inner, c->width, c->layers},
        {13 * c->width + c->inner, 1, c->layers},
    };
    return shl_check_total(pieces, (int)SHL_ARRAY_LEN(pieces));
}

static shl_code
add_linear(shl_model *m, shl_module *block, const char *path, int64_t in, int64_t out, double std,
           bool owns_input)
{
    shl_linear_spec spec = {.in = in, .out = out, .std = std, .owns_input = owns_input};
    return shl_mod_linear(m, block, path, &spec);
}

static shl_code
add_block(shl_model *m, const shl_model_config *c, int64_t layer)
{
    static const char *const parts[] = {
        "",      ".ln_1",     ".attn.c_attn", ".attn",       ".attn.c_proj",
        ".ln_2", ".mlp.c_fc", ".mlp.gelu",    ".mlp.c_proj",
    };
    char path[SHL_ARRAY_LEN(parts)][64];
    for (size_t i = 0; i < SHL_ARRAY_LEN(parts); i++) {
        shl_strf(path[i], sizeof path[i], "h.%lld%s", (long long)layer, parts[i]);
    }
    /* Two projections per layer write into the residual stream: GPT-2 scales them by 1/sqrt(2L). */
    double proj_std = INIT_STD / sqrt(2.0 * (double)c->layers);
    int64_t width = c->width;
    shl_attention_spec heads = {
        .heads = c->heads, .kv_heads = c->heads, .head_dim = width / c->heads};
    shl_module *b = NULL;
    SHL_TRY(shl_mod_block(m, m->root, path[0], &b));
    SHL_TRY(shl_mod_layernorm(m, b, path[1], width, c->norm_eps));
    SHL_TRY(add_linear(m, b, path[2], width, 3 * width, INIT_STD, true));
    SHL_TRY(shl_mod_attention(m, b, path[3], &heads));
    SHL_TRY(add_linear(m, b, path[4], width, width, proj_std, false));
    SHL_TRY(shl_mod_layernorm(m, b, path[5], width, c->norm_eps));
    SHL_TRY(add_linear(m, b, path[6], width, c->inner, INIT_STD, true));
    SHL_TRY(shl_mod_gelu(m, b, path[7], c->inner));
    return add_linear(m, b, path[8], c->inner, width, proj_std, true);
}

static shl_code
build(shl_model *m, const shl_model_config *c)
{
    m->vocab = c->vocab;
    m->context = c->context;
    shl_module *root = NULL, *final = NULL;
    SHL_TRY(shl_mod_chain(m, NULL, "model", SHL_WRAP_NONE, &root));
    SHL_TRY(shl_mod_embed(m, root, "embed", "wte", "wpe", c->width, INIT_STD));
    shl_param *wte = m->params[0];
    for (int64_t layer = 0; layer < c->layers; layer++) {
        SHL_TRY(add_block(m, c, layer));
    }
    SHL_TRY(shl_mod_chain(m, root, "final", SHL_WRAP_OUTPUT, &final));
    SHL_TRY(shl_mod_layernorm(m, final, "ln_f", c->width, c->norm_eps));
    return shl_mod_head(m, final, "head", c->width, INIT_STD, c->tied ? wte : NULL);
}

shl_code
shl_gpt_new(const shl_model_config *cfg, shl_model **out)
{
    *out = NULL;
    shl_model_config c;
    SHL_TRY(resolve(cfg, &c));
    SHL_TRY(check_total(&c));
    shl_model *m = NULL;
    SHL_TRY(shl_build_model("gpt2", &m));
    shl_code code = build(m, &c);
    if (code != SHL_OK) {
        shl_model_free(&m);
        return code;
    }
    *out = m;
    return SHL_OK;
}

/* models: the LLaMA family: checks the sizes, builds tree and parameters. No tensor memory is touched
 * here: engines decide where parameters live. */
#include "models/llama.h"

#include <math.h>

#include "kernels/base/str.h"
#include "models/mod.h"

#define INIT_STD 0.02

/* ---- sizes ---- */

static shl_code
resolve_heads(shl_model_config *c)
{
    SHL_TRY(shl_check_size("LLaMA", "heads", c->heads, SHL_MAX_INDEX));
    if (c->head_dim == 0 && c->width % c->heads != 0) {
        SHL_RAISE(SHL_E_USAGE, "%lld heads do not divide the width %lld", (long long)c->heads,
                  (long long)c->width);
        return shl_err_advice("a number of heads that divides the width, or name head_dim");
    }
    c->head_dim = c->head_dim != 0 ? c->head_dim : c->width / c->heads;
    SHL_TRY(shl_check_size("LLaMA", "head size", c->head_dim, SHL_MAX_INDEX));
    if (c->head_dim % 2 != 0) {
        SHL_RAISE(SHL_E_USAGE, "the head size %lld is odd", (long long)c->head_dim);
        shl_err_because("rotary positions turn pairs of elements");
        return shl_err_advice("heads that make width / heads even, or an even head_dim");
    }
    c->kv_heads = c->kv_heads != 0 ? c->kv_heads : c->heads;
    SHL_TRY(shl_check_size("LLaMA", "key and value heads", c->kv_heads, c->heads));
    if (c->heads % c->kv_heads != 0) {
        SHL_RAISE(SHL_E_USAGE, "%lld key and value heads do not divide %lld heads",
                  (long long)c->kv_heads, (long long)c->heads);
        return shl_err_advice("a number of kv heads that divides the heads");
    }
    int64_t width = 0;
    if (!shl_mul_elems(c->heads, c->head_dim, &width) || width > SHL_MAX_INDEX) {
        return SHL_RAISE(SHL_E_USAGE, "%lld heads of %lld are too wide", (long long)c->heads,
                         (long long)c->head_dim);
    }
    return SHL_OK;
}

static bool
is_positive(double x)
{
    return isfinite(x) && x > 0.0;
}

/* Fills in theta; *context becomes what the scaled angles reach. */
static shl_code
resolve_rope(shl_model_config *c)
{
    const shl_rope_scaling *r = &c->rope;
    c->rope_theta = c->rope_theta != 0.0 ? c->rope_theta : 1e4;
    if (!is_positive(c->rope_theta)) {
        return SHL_RAISE(SHL_E_USAGE, "the rotary base (theta) must be positive and finite");
    }
    if ((int)r->kind < 0 || r->kind >= SHL_ROPE_KIND_COUNT) {
        return SHL_RAISE(SHL_E_USAGE, "%d is not a kind of rotary scaling", (int)r->kind);
    }
    if (r->kind == SHL_ROPE_PLAIN) {
        return SHL_OK;
    }
    if (!is_positive(r->factor)) {
        return SHL_RAISE(SHL_E_USAGE, "the factor of rotary scaling must be positive and finite");
    }
    double reach = (double)c->context * r->factor;
    if (r->kind == SHL_ROPE_LLAMA3) {
        SHL_TRY(shl_check_size("LLaMA", "original context", r->original_context, SHL_MAX_INDEX));
        if (!is_positive(r->low_freq_factor) || !isfinite(r->high_freq_factor) ||
            r->high_freq_factor <= r->low_freq_factor) {
            SHL_RAISE(SHL_E_USAGE, "rotary scaling of kind llama3 mixes between two factors");
            return shl_err_because(
                "low_freq_factor %g must be positive and below high_freq_factor %g",
                r->low_freq_factor, r->high_freq_factor);
        }
        reach = (double)r->original_context * r->factor;
    }
    if (reach > (double)SHL_MAX_INDEX) {
        return SHL_RAISE(SHL_E_USAGE, "rotary scaling reaches %g positions, too many", reach);
    }
    c->context = (int64_t)reach > c->context ? (int64_t)reach : c->context;
    return SHL_OK;
}

/* Defaults filled in; sizes that make no model are refused. */
static shl_code
resolve(const shl_model_config *cfg, shl_model_config *out)
{
    *out = *cfg;
    SHL_TRY(shl_check_size("LLaMA", "vocabulary", out->vocab, SHL_MAX_INDEX));
    SHL_TRY(shl_check_size("LLaMA", "context", out->context, SHL_MAX_INDEX));
    SHL_TRY(shl_check_size("LLaMA", "layers", out->layers, SHL_MAX_LAYERS));
    SHL_TRY(shl_check_size("LLaMA", "width", out->width, SHL_MAX_INDEX));
    SHL_TRY(resolve_heads(out));
    out->inner = out->inner != 0 ? out->inner : 4 * out->width;
    SHL_TRY(shl_check_size("LLaMA", "inner width", out->inner, 4 * (int64_t)SHL_MAX_INDEX));
    SHL_TRY(resolve_rope(out));
    out->norm_eps = out->norm_eps != 0.0 ? out->norm_eps : 1e-5;
    if (!is_positive(out->norm_eps)) {
        return SHL_RAISE(SHL_E_USAGE, "the norm's epsilon must be positive and finite");
    }
    int64_t q = out->heads * out->head_dim, kv = out->kv_heads * out->head_dim;
    const int64_t pieces[][3] = {
        {out->vocab, out->width, out->tied ? 1 : 2},
        {2 * q, out->width, out->layers},
        {2 * kv, out->width, out->layers},
        {3 * out->inner, out->width, out->layers},
        {q + 2 * kv + 2 * out->width, 1, out->layers},
        {out->width, 1, 1},
    };
    return shl_check_total(pieces, (int)SHL_ARRAY_LEN(pieces));
}

/* ---- building ---- */

#define PATH_BYTES 80

static void
layer_path(char path[PATH_BYTES], int64_t layer, const char *part)
{
    shl_strf(path, PATH_BYTES, "model.layers.%lld%s", (long long)layer, part);
}

/* n projections of the normed stream, `parts` names the container and then each of them. */
static shl_code
add_fan(shl_model *m, shl_module *block, int64_t layer, int n, const char *const *parts,
        const int64_t *out, int64_t in, bool bias)
{
    char path[SHL_FAN_MAX + 1][PATH_BYTES];
    const char *child_paths[SHL_FAN_MAX];
    shl_linear_spec specs[SHL_FAN_MAX];
    for (int i = 0; i <= n; i++) {
        layer_path(path[i], layer, parts[i]);
    }
    for (int i = 0; i < n; i++) {
        child_paths[i] = path[i + 1];
        specs[i] = (shl_linear_spec){
            .in = in, .out = out[i], .std = INIT_STD, .no_bias = !bias, .order = SHL_WEIGHT_OI};
    }
    return shl_mod_fan(m, block, path[0], n, child_paths, specs);
}

static shl_code
add_linear(shl_model *m, shl_module *block, int64_t layer, const char *part, int64_t in,
           int64_t out, bool owns_input)
{
    char path[PATH_BYTES];
    shl_linear_spec spec = {.in = in,
                            .out = out,
                            .std = INIT_STD,
                            .owns_input = owns_input,
                            .no_bias = true,
                            .order = SHL_WEIGHT_OI};
    layer_path(path, layer, part);
    return shl_mod_linear(m, block, path, &spec);
}

static shl_code
add_attention(shl_model *m, shl_module *block, const shl_model_config *c, int64_t layer)
{
    static const char *const parts[] = {".self_attn.qkv", ".self_attn.q_proj", ".self_attn.k_proj",
                                        ".self_attn.v_proj"};
    char path[PATH_BYTES];
    int64_t q = c->heads * c->head_dim, kv = c->kv_heads * c->head_dim;
    const int64_t out[] = {q, kv, kv};
    shl_attention_spec spec = {.heads = c->heads,
                               .kv_heads = c->kv_heads,
                               .head_dim = c->head_dim,
                               .stacked = true,
                               .rope_theta = c->rope_theta,
                               .rope = c->rope};
    layer_path(path, layer, ".input_layernorm");
    SHL_TRY(shl_mod_rmsnorm(m, block, path, c->width, c->norm_eps));
    SHL_TRY(add_fan(m, block, layer, 3, parts, out, c->width, c->qkv_bias));
    layer_path(path, layer, ".self_attn");
    SHL_TRY(shl_mod_attention(m, block, path, &spec));
    return add_linear(m, block, layer, ".self_attn.o_proj", q, c->width, false);
}

static shl_code
add_mlp(shl_model *m, shl_module *block, const shl_model_config *c, int64_t layer)
{
    static const char *const parts[] = {".mlp.gate_up", ".mlp.gate_proj", ".mlp.up_proj"};
    char path[PATH_BYTES];
    const int64_t out[] = {c->inner, c->inner};
    layer_path(path, layer, ".post_attention_layernorm");
    SHL_TRY(shl_mod_rmsnorm(m, block, path, c->width, c->norm_eps));
    SHL_TRY(add_fan(m, block, layer, 2, parts, out, c->width, false));
    layer_path(path, layer, ".mlp.act_fn");
    SHL_TRY(shl_mod_silu_mul(m, block, path, c->inner));
    return add_linear(m, block, layer, ".mlp.down_proj", c->inner, c->width, true);
}

static shl_code
build(shl_model *m, const shl_model_config *c)
{
    m->vocab = c->vocab;
    m->context = c->context;
    shl_module *root = NULL, *final = NULL;
    SHL_TRY(shl_mod_chain(m, NULL, "model", SHL_WRAP_NONE, &root));
    SHL_TRY(shl_mod_embed(m, root, "embed", "model.embed_tokens", NULL, c->width, INIT_STD));
    shl_param *tokens = m->params[0];
    for (int64_t layer = 0; layer < c->layers; layer++) {
        char path[PATH_BYTES];
        shl_module *block = NULL;
        layer_path(path, layer, "");
        SHL_TRY(shl_mod_block(m, root, path, &block));
        SHL_TRY(add_attention(m, block, c, layer));
        SHL_TRY(add_mlp(m, block, c, layer));
    }
    SHL_TRY(shl_mod_chain(m, root, "final", SHL_WRAP_OUTPUT, &final));
    SHL_TRY(shl_mod_rmsnorm(m, final, "model.norm", c->width, c->norm_eps));
    return shl_mod_head(m, final, "head", c->width, INIT_STD, c->tied ? tokens : NULL);
}

shl_code
shl_llama_new(const shl_model_config *cfg, shl_model **out)
{
    *out = NULL;
    shl_model_config c;
    SHL_TRY(resolve(cfg, &c));
    shl_model *m = NULL;
    SHL_TRY(shl_build_model("llama", &m));
    shl_code code = build(m, &c);
    if (code != SHL_OK) {
        shl_model_free(&m);
        return code;
    }
    *out = m;
    return SHL_OK;
}

/* models: one reader per architecture over the keys of transformers' configuration classes. The formula
 * of each setting is the model's own; a setting that ours does not compute is refused by its name. */
#include "models/hf_config.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include <jansson.h>

#include "kernels/base/heap.h"
#include "kernels/base/str.h"
#include "models/hf_keys.h"

#define MAX_FILE_BYTES ((size_t)1 << 24)

static const char *const gpt2_aliases[][2] = {
    {"n_positions", "max_position_embeddings"},
    {"n_embd", "hidden_size"},
    {"n_layer", "num_hidden_layers"},
    {"n_head", "num_attention_heads"},
};

/* The HF class knows both names of some keys; the second wins there when it is given. */
static const char *
gpt2_key(const shl_hf_reader *r, size_t i)
{
    return json_object_get(r->root, gpt2_aliases[i][1]) ? gpt2_aliases[i][1] : gpt2_aliases[i][0];
}

static shl_code
read_gpt2(shl_hf_reader *r, shl_hf_config *out)
{
    static const char *const gelu[] = {"gelu_new", "gelu_pytorch_tanh", NULL};
    shl_model_config *c = &out->config;
    c->family = SHL_FAMILY_GPT;
    SHL_TRY(shl_hf_size(r, "vocab_size", 50257, &c->vocab));
    SHL_TRY(shl_hf_size(r, gpt2_key(r, 0), 1024, &c->context));
    SHL_TRY(shl_hf_size(r, gpt2_key(r, 1), 768, &c->width));
    SHL_TRY(shl_hf_size(r, gpt2_key(r, 2), 12, &c->layers));
    SHL_TRY(shl_hf_size(r, gpt2_key(r, 3), 12, &c->heads));
    SHL_TRY(shl_hf_size(r, "n_inner", 0, &c->inner));
    SHL_TRY(shl_hf_real(r, "layer_norm_epsilon", 1e-5, &c->norm_eps));
    SHL_TRY(shl_hf_flag(r, "tie_word_embeddings", true, &c->tied));
    SHL_TRY(shl_hf_only_text(r, "activation_function", gelu));
    SHL_TRY(shl_hf_only_flag(r, "scale_attn_weights", true));
    SHL_TRY(shl_hf_only_flag(r, "scale_attn_by_inverse_layer_idx", false));
    SHL_TRY(shl_hf_only_flag(r, "reorder_and_upcast_attn", false));
    SHL_TRY(shl_hf_only_flag(r, "add_cross_attention", false));
    shl_hf_rate(r, "resid_pdrop", 0.1);
    shl_hf_rate(r, "embd_pdrop", 0.1);
    shl_hf_rate(r, "attn_pdrop", 0.1);
    return SHL_OK;
}

/* What LLaMA, Mistral and Qwen2 have in common. */
static shl_code
read_rotary(shl_hf_reader *r, const shl_model_config *fallback, shl_hf_config *out)
{
    static const char *const silu[] = {"silu", "swish", NULL};
    shl_model_config *c = &out->config;
    c->family = SHL_FAMILY_LLAMA;
    SHL_TRY(shl_hf_size(r, "vocab_size", fallback->vocab, &c->vocab));
    SHL_TRY(shl_hf_size(r, "hidden_size", fallback->width, &c->width));
    SHL_TRY(shl_hf_size(r, "intermediate_size", fallback->inner, &c->inner));
    SHL_TRY(shl_hf_size(r, "num_hidden_layers", fallback->layers, &c->layers));
    SHL_TRY(shl_hf_size(r, "num_attention_heads", fallback->heads, &c->heads));
    SHL_TRY(shl_hf_size(r, "num_key_value_heads", fallback->kv_heads, &c->kv_heads));
    SHL_TRY(shl_hf_size(r, "head_dim", 0, &c->head_dim));
    SHL_TRY(shl_hf_size(r, "max_position_embeddings", fallback->context, &c->context));
    SHL_TRY(shl_hf_real(r, "rms_norm_eps", 1e-6, &c->norm_eps));
    SHL_TRY(shl_hf_flag(r, "tie_word_embeddings", false, &c->tied));
    SHL_TRY(shl_hf_only_text(r, "hidden_act", silu));
    SHL_TRY(shl_hf_rope(r, c));
    shl_hf_rate(r, "attention_dropout", 0.0);
    return SHL_OK;
}

static shl_code
read_llama(shl_hf_reader *r, shl_hf_config *out)
{
    static const shl_model_config fallback = {
        .vocab = 32000, .context = 2048, .layers = 32, .width = 4096, .heads = 32, .inner = 11008};
    SHL_TRY(shl_hf_only_flag(r, "attention_bias", false));
    SHL_TRY(shl_hf_only_flag(r, "mlp_bias", false));
    SHL_TRY(shl_hf_only_one(r, "pretraining_tp"));
    return read_rotary(r, &fallback, out);
}

static shl_code
read_mistral(shl_hf_reader *r, shl_hf_config *out)
{
    static const shl_model_config fallback = {.vocab = 32000,
                                              .context = 131072,
                                              .layers = 32,
                                              .width = 4096,
                                              .heads = 32,
                                              .kv_heads = 8,
                                              .inner = 14336};
    SHL_TRY(shl_hf_only_flag(r, "attention_bias", false));
    SHL_TRY(shl_hf_only_flag(r, "mlp_bias", false));
    SHL_TRY(read_rotary(r, &fallback, out));
    const json_t *window = json_object_get(r->root, "sliding_window");
    return json_is_null(window) ? SHL_OK : shl_hf_size(r, "sliding_window", 4096, &out->window);
}

static shl_code
read_qwen2(shl_hf_reader *r, shl_hf_config *out)
{
    static const shl_model_config fallback = {.vocab = 151936,
                                              .context = 32768,
                                              .layers = 32,
                                              .width = 4096,
                                              .heads = 32,
                                              .kv_heads = 32,
                                              .inner = 22016};
    bool sliding = false;
    int64_t window = 0;
    SHL_TRY(read_rotary(r, &fallback, out));
    out->config.qkv_bias = true;
    SHL_TRY(shl_hf_flag(r, "use_sliding_window", false, &sliding));
    SHL_TRY(shl_hf_size(r, "sliding_window", 4096, &window));
    out->window = sliding ? window : 0;
    return shl_hf_layer_types(r, sliding);
}

static shl_code
read_opt(shl_hf_reader *r, shl_hf_config *out)
{
    shl_model_config *c = &out->config;
    int64_t embedded = 0;
    SHL_TRY(shl_hf_size(r, "vocab_size", 50272, &c->vocab));
    SHL_TRY(shl_hf_size(r, "max_position_embeddings", 2048, &c->context));
    SHL_TRY(shl_hf_size(r, "hidden_size", 768, &c->width));
    SHL_TRY(shl_hf_size(r, "num_hidden_layers", 12, &c->layers));
    SHL_TRY(shl_hf_size(r, "num_attention_heads", 12, &c->heads));
    SHL_TRY(shl_hf_size(r, "ffn_dim", 3072, &c->inner));
    SHL_TRY(shl_hf_flag(r, "tie_word_embeddings", true, &c->tied));
    SHL_TRY(shl_hf_size(r, "word_embed_proj_dim", 0, &embedded));
    bool narrow = embedded > 0 && embedded != c->width;
    shl_strf(out->approximated, sizeof(out->approximated), "%s%s",
             "ReLU where ours is GELU, and positions that begin at row 2",
             narrow ? "; embeddings of another width" : "");
    return SHL_OK;
}

static shl_code
read_bloom(shl_hf_reader *r, shl_hf_config *out)
{
    shl_model_config *c = &out->config;
    bool wide = json_object_get(r->root, "n_embed") != NULL;
    bool layers = json_object_get(r->root, "num_hidden_layers") != NULL;
    bool heads = json_object_get(r->root, "num_attention_heads") != NULL;
    SHL_TRY(shl_hf_size(r, "vocab_size", 250880, &c->vocab));
    SHL_TRY(shl_hf_size(r, "seq_length", 2048, &c->context));
    SHL_TRY(shl_hf_size(r, wide ? "n_embed" : "hidden_size", 64, &c->width));
    SHL_TRY(shl_hf_size(r, layers ? "num_hidden_layers" : "n_layer", 2, &c->layers));
    SHL_TRY(shl_hf_size(r, heads ? "num_attention_heads" : "n_head", 8, &c->heads));
    SHL_TRY(shl_hf_real(r, "layer_norm_epsilon", 1e-5, &c->norm_eps));
    SHL_TRY(shl_hf_flag(r, "tie_word_embeddings", true, &c->tied));
    shl_strf(out->approximated, sizeof(out->approximated),
             "ALiBi where ours learns positions, and a norm behind the embedding");
    return SHL_OK;
}

static shl_code
read_neox(shl_hf_reader *r, shl_hf_config *out)
{
    shl_model_config *c = &out->config;
    SHL_TRY(shl_hf_size(r, "vocab_size", 50432, &c->vocab));
    SHL_TRY(shl_hf_size(r, "max_position_embeddings", 2048, &c->context));
    SHL_TRY(shl_hf_size(r, "hidden_size", 6144, &c->width));
    SHL_TRY(shl_hf_size(r, "num_hidden_layers", 44, &c->layers));
    SHL_TRY(shl_hf_size(r, "num_attention_heads", 64, &c->heads));
    SHL_TRY(shl_hf_size(r, "intermediate_size", 24576, &c->inner));
    SHL_TRY(shl_hf_real(r, "layer_norm_eps", 1e-5, &c->norm_eps));
    SHL_TRY(shl_hf_flag(r, "tie_word_embeddings", false, &c->tied));
    shl_strf(out->approximated, sizeof(out->approximated),
             "rotary positions on a quarter of a head where ours are learned, parallel residuals");
    return SHL_OK;
}

static const struct {
    const char *type;
    shl_code (*read)(shl_hf_reader *, shl_hf_config *);
    bool exact;
} types[] = {
    {"gpt2", read_gpt2, true},      {"llama", read_llama, true}, {"mistral", read_mistral, true},
    {"qwen2", read_qwen2, true},    {"opt", read_opt, false},    {"bloom", read_bloom, false},
    {"gpt_neox", read_neox, false},
};

static shl_code
read_type(shl_hf_reader *r, shl_hf_config *out)
{
    const json_t *type = json_object_get(r->root, "model_type");
    if (!json_is_string(type)) {
        SHL_RAISE(SHL_E_CONFIG, "%s: \"model_type\" is %s", r->name,
                  type ? "not a text" : "missing");
        return shl_err_because("it says which architecture the other keys are of");
    }
    const char *text = json_string_value(type);
    for (size_t i = 0; i < SHL_ARRAY_LEN(types); i++) {
        if (strcmp(types[i].type, text) == 0) {
            shl_strf(out->model_type, sizeof(out->model_type), "%s", text);
            SHL_TRY(types[i].read(r, out));
            if (types[i].exact) {
                shl_hf_note_unknown(r);
            }
            return SHL_OK;
        }
    }
    SHL_RAISE(SHL_E_CONFIG, "%s: the architecture \"%s\" is not known", r->name, text);
    return shl_err_because("known are gpt2, llama, mistral, qwen2, and for planning opt, bloom, "
                           "gpt_neox");
}

/* Windows as wide as the context never cut; a narrower one bounds the context. */
static void
settle_window(shl_hf_reader *r, shl_hf_config *out)
{
    if (out->window >= out->config.context) {
        out->window = 0;
    }
    if (out->window > 0) {
        shl_hf_note(r, "the context is %lld instead of %lld, where the sliding window never cuts",
                    (long long)out->window, (long long)out->config.context);
        out->config.context = out->window;
    }
}

shl_code
shl_hf_config_parse(const char *text, const char *name, shl_hf_config *out)
{
    json_error_t error;
    memset(out, 0, sizeof(*out));
    json_t *root = json_loads(text, JSON_REJECT_DUPLICATES, &error);
    if (!root) {
        SHL_RAISE(SHL_E_CONFIG, "%s is not JSON: %s", name, error.text);
        return shl_err_because("line %d, column %d", error.line, error.column);
    }
    shl_hf_reader r = {root, text, name, out->note, sizeof(out->note)};
    shl_code code = json_is_object(root)
                        ? read_type(&r, out)
                        : SHL_RAISE(SHL_E_CONFIG, "%s is JSON, but not an object", name);
    if (code == SHL_OK) {
        settle_window(&r, out);
    }
    json_decref(root);
    return code;
}

bool
shl_hf_config_is_path(const char *text)
{
    size_t len = strlen(text);
    return strchr(text, '/') != NULL || (len > 5 && strcmp(text + len - 5, ".json") == 0);
}

static shl_code
raise_file(const char *path, const char *why)
{
    SHL_RAISE(SHL_E_IO, "cannot read %s", path);
    shl_err_because("%s", why);
    return shl_err_advice("the folder of a model in Hugging Face's form, or its config.json");
}

shl_code
shl_hf_config_load(const char *path, shl_hf_config *out)
{
    char file[4096], *text = NULL;
    struct stat st;
    memset(out, 0, sizeof(*out));
    shl_strf(file, sizeof(file), "%s", path);
    if (stat(path, &st) == 0 && S_ISDIR(st.st_mode)) {
        shl_strf(file, sizeof(file), "%s/" SHL_HF_CONFIG_FILE, path);
    }
    FILE *f = fopen(file, "re");
    if (!f) {
        return raise_file(file, strerror(errno));
    }
    shl_code code = shl_heap_alloc(MAX_FILE_BYTES + 1, 1, &text);
    if (code == SHL_OK) {
        size_t len = fread(text, 1, MAX_FILE_BYTES, f);
        if (ferror(f) || len == MAX_FILE_BYTES || strlen(text) != len) {
            code = raise_file(file, ferror(f)               ? strerror(errno)
                                    : len == MAX_FILE_BYTES ? "it has 16 MiB or more"
                                                            : "it holds a zero byte");
        } else {
            code = shl_hf_config_parse(text, file, out);
        }
    }
    fclose(f);
    shl_heap_free(&text);
    return code;
}

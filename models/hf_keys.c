/* models: typed reading of one config.json; which keys change a model and which say nothing of it. */
#include "models/hf_keys.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <jansson.h>

#include "kernels/base/str.h"
#include "models/shape.h"

/* Behind the error that was raised: where the key stands. */
static shl_code
say_where(const shl_hf_reader *r, const char *key)
{
    int line = 0, column = 0;
    shl_text_locate_key(r->text, key, &line, &column);
    return line > 0 ? shl_err_because("\"%s\" at line %d, column %d", key, line, column)
                    : shl_err_because("\"%s\"", key);
}

static shl_code
raise_type(const shl_hf_reader *r, const char *key, const char *expected)
{
    SHL_RAISE(SHL_E_CONFIG, "%s: \"%s\" is not %s", r->name, key, expected);
    return say_where(r, key);
}

/* NULL for a missing key and for null, which are the same to transformers. */
static const json_t *
value_of(const json_t *object, const char *key)
{
    const json_t *value = json_object_get(object, key);
    return value && !json_is_null(value) ? value : NULL;
}

shl_code
shl_hf_size(const shl_hf_reader *r, const char *key, int64_t fallback, int64_t *out)
{
    const json_t *value = value_of(r->root, key);
    if (value && (!json_is_integer(value) || json_integer_value(value) < 1)) {
        return raise_type(r, key, "a whole number from 1");
    }
    *out = value ? json_integer_value(value) : fallback;
    return SHL_OK;
}

static shl_code
real_in(const shl_hf_reader *r, const json_t *object, const char *key, double fallback, double *out)
{
    const json_t *value = value_of(object, key);
    if (value && (!json_is_number(value) || !(json_number_value(value) > 0.0))) {
        return raise_type(r, key, "a number above 0");
    }
    *out = value ? json_number_value(value) : fallback;
    return SHL_OK;
}

shl_code
shl_hf_real(const shl_hf_reader *r, const char *key, double fallback, double *out)
{
    return real_in(r, r->root, key, fallback, out);
}

shl_code
shl_hf_flag(const shl_hf_reader *r, const char *key, bool fallback, bool *out)
{
    const json_t *value = value_of(r->root, key);
    if (value && !json_is_boolean(value)) {
        return raise_type(r, key, "true or false");
    }
    *out = value ? json_is_true(value) : fallback;
    return SHL_OK;
}

static shl_code
raise_refused(const shl_hf_reader *r, const char *key, const char *value, const char *good)
{
    SHL_RAISE(SHL_E_CONFIG, "%s: \"%s\" is %s, which is not computed here", r->name, key, value);
    say_where(r, key);
    return shl_err_advice("a model whose %s is %s", key, good);
}

shl_code
shl_hf_only_text(const shl_hf_reader *r, const char *key, const char *const *good)
{
    const json_t *value = value_of(r->root, key);
    if (value && !json_is_string(value)) {
        return raise_type(r, key, "a text");
    }
    bool found = !value;
    for (size_t i = 0; !found && good[i]; i++) {
        found = strcmp(json_string_value(value), good[i]) == 0;
    }
    return found ? SHL_OK : raise_refused(r, key, json_string_value(value), good[0]);
}

shl_code
shl_hf_only_flag(const shl_hf_reader *r, const char *key, bool good)
{
    bool value = good;
    SHL_TRY(shl_hf_flag(r, key, good, &value));
    return value == good ? SHL_OK
                         : raise_refused(r, key, good ? "false" : "true", good ? "true" : "false");
}

shl_code
shl_hf_only_one(const shl_hf_reader *r, const char *key)
{
    double value = 1.0;
    char text[32];
    SHL_TRY(shl_hf_real(r, key, 1.0, &value));
    shl_strf(text, sizeof(text), "%g", value);
    return strcmp(text, "1") == 0 ? SHL_OK : raise_refused(r, key, text, "1");
}

shl_code
shl_hf_layer_types(const shl_hf_reader *r, bool sliding)
{
    const char *key = "layer_types";
    const json_t *list = value_of(r->root, key);
    if (list && !json_is_array(list)) {
        return raise_type(r, key, "a list");
    }
    for (size_t i = 0; i < json_array_size(list); i++) {
        const char *type = json_string_value(json_array_get(list, i));
        if (!type) {
            return raise_type(r, key, "a list of texts");
        }
        bool slides = strcmp(type, "sliding_attention") == 0;
        if (strcmp(type, "full_attention") != 0 && !(slides && sliding)) {
            return raise_refused(r, key, type, "full_attention");
        }
    }
    return SHL_OK;
}

/* --- rotary angles ----------------------------------------------------------------------- */

static shl_code
read_scaling(const shl_hf_reader *r, const json_t *object, const char *where, shl_rope_scaling *out)
{
    const json_t *type = value_of(object, "rope_type");
    type = type ? type : value_of(object, "type");
    const char *kind = type ? json_string_value(type) : "default";
    if (!kind) {
        return raise_type(r, "rope_type", "a text");
    }
    if (strcmp(kind, "default") == 0) {
        return SHL_OK;
    }
    bool llama3 = strcmp(kind, "llama3") == 0;
    if (!llama3 && strcmp(kind, "linear") != 0) {
        return raise_refused(r, where, kind, "default, linear or llama3");
    }
    char text[160];
    double factor, low, high, original;
    SHL_TRY(real_in(r, object, "factor", 0.0, &factor));
    SHL_TRY(real_in(r, object, "low_freq_factor", 0.0, &low));
    SHL_TRY(real_in(r, object, "high_freq_factor", 0.0, &high));
    SHL_TRY(real_in(r, object, "original_max_position_embeddings", 0.0, &original));
    if (llama3) {
        shl_strf(text, sizeof(text), "llama3:%.17g:%.17g:%.17g:%.0f", factor, low, high, original);
    } else {
        shl_strf(text, sizeof(text), "linear:%.17g", factor);
    }
    shl_code code = shl_rope_parse(text, out);
    if (code != SHL_OK) {
        SHL_RAISE(SHL_E_CONFIG, "%s: \"%s\" has numbers that are missing or out of range", r->name,
                  where);
        return say_where(r, where);
    }
    return SHL_OK;
}

shl_code
shl_hf_rope(const shl_hf_reader *r, shl_model_config *out)
{
    /* The later name holds the base as well, and goes before the earlier one. */
    const char *where = value_of(r->root, "rope_parameters") ? "rope_parameters" : "rope_scaling";
    const json_t *object = value_of(r->root, where);
    double partial = 1.0, partial_inside = 1.0;
    SHL_TRY(shl_hf_real(r, "rope_theta", 1e4, &out->rope_theta));
    SHL_TRY(shl_hf_real(r, "partial_rotary_factor", 1.0, &partial));
    if (object && !json_is_object(object)) {
        return raise_type(r, where, "an object");
    }
    if (object) {
        SHL_TRY(real_in(r, object, "rope_theta", out->rope_theta, &out->rope_theta));
        SHL_TRY(real_in(r, object, "partial_rotary_factor", 1.0, &partial_inside));
        SHL_TRY(read_scaling(r, object, where, &out->rope));
    }
    if (partial < 1.0 || partial_inside < 1.0) {
        return raise_refused(r, "partial_rotary_factor", "below 1", "1");
    }
    return SHL_OK;
}

/* --- notes ------------------------------------------------------------------------------- */

void
shl_hf_note(shl_hf_reader *r, const char *fmt, ...)
{
    char sentence[256];
    size_t used = strlen(r->note);
    va_list args;
    va_start(args, fmt);
    vsnprintf(sentence, sizeof(sentence), fmt, args);
    va_end(args);
    shl_strf(r->note + used, r->note_bytes - used, "%s%s", used > 0 ? "; " : "", sentence);
}

void
shl_hf_rate(shl_hf_reader *r, const char *key, double fallback)
{
    const json_t *value = value_of(r->root, key);
    double rate = json_is_number(value) ? json_number_value(value) : fallback;
    if (value && rate > 0.0) {
        shl_hf_note(r, "%s %g is left to the options of the run", key, rate);
    }
}

/* Keys that the readers take, and keys that change no number of training: tokens, generation, tasks,
 * files, versions, and what a library remembers for itself. */
static const char *const known[] = {
    "model_type",
    "vocab_size",
    "n_positions",
    "max_position_embeddings",
    "n_embd",
    "hidden_size",
    "n_layer",
    "num_hidden_layers",
    "n_head",
    "num_attention_heads",
    "n_inner",
    "layer_norm_epsilon",
    "tie_word_embeddings",
    "activation_function",
    "scale_attn_weights",
    "scale_attn_by_inverse_layer_idx",
    "reorder_and_upcast_attn",
    "add_cross_attention",
    "resid_pdrop",
    "embd_pdrop",
    "attn_pdrop",
    "intermediate_size",
    "num_key_value_heads",
    "head_dim",
    "rms_norm_eps",
    "hidden_act",
    "attention_dropout",
    "attention_bias",
    "mlp_bias",
    "pretraining_tp",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "partial_rotary_factor",
    "sliding_window",
    "use_sliding_window",
    "max_window_layers",
    "layer_types",
    /* inert */
    "architectures",
    "auto_map",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "sep_token_id",
    "decoder_start_token_id",
    "initializer_range",
    "use_cache",
    "torch_dtype",
    "dtype",
    "transformers_version",
    "n_ctx",
    "task_specific_params",
    "summary_type",
    "summary_use_proj",
    "summary_activation",
    "summary_proj_to_labels",
    "summary_first_dropout",
    "id2label",
    "label2id",
    "num_labels",
    "problem_type",
    "finetuning_task",
    "return_dict",
    "output_attentions",
    "output_hidden_states",
    "chunk_size_feed_forward",
    "is_encoder_decoder",
    "is_decoder",
    "cross_attention_hidden_size",
    "use_return_dict",
    "tokenizer_class",
    "prefix",
};

static bool
is_known(const char *key)
{
    for (size_t i = 0; i < SHL_ARRAY_LEN(known); i++) {
        if (strcmp(known[i], key) == 0) {
            return true;
        }
    }
    return key[0] == '_';
}

void
shl_hf_note_unknown(shl_hf_reader *r)
{
    const char *key;
    json_t *value;
    json_object_foreach(r->root, key, value)
    {
        bool says_nothing = json_is_null(value) || json_is_false(value);
        if (!is_known(key) && !says_nothing) {
            shl_hf_note(r, "\"%s\" is not known and left aside", key);
        }
    }
}

/* models: what a user asks of a shape over a preset or a file, in one place for the command line and
 * for the library; spelling of families and of rotary scaling. */
#ifndef SHL_MODELS_SHAPE_H
#define SHL_MODELS_SHAPE_H

#include "models/family.h"

#define SHL_ROPE_TEXT_BYTES 96

/* Values over a base. Start from shl_shape_asked_init. */
typedef struct shl_shape_asked {
    const char *family;                                            /* NULL: the base's */
    int64_t layers, width, heads, vocab, context, inner, kv_heads; /* 0: the base's */
    int64_t head_dim;                                              /* 0: the base's */
    double norm_eps, rope_theta;                                   /* 0: the base's */
    const char *rope_scaling; /* "none", "linear:2", "llama3:8:1:4:8192"; NULL: the base's */
    int tied, qkv_bias;       /* 1, 0; -1: the base's */
} shl_shape_asked;

/* Asks for nothing. */
void shl_shape_asked_init(shl_shape_asked *a);

/* Applies *a to *io. Another family takes nothing of the LLaMA fields along. Errors: SHL_E_USAGE;
 * whether the sizes make a model is for shl_model_new. */
shl_code shl_shape_apply(const shl_shape_asked *a, shl_model_config *io) SHL_MUST_USE;

/* Whether both make the same model, value by value as given (a default and its value differ). */
bool shl_shape_equal(const shl_model_config *a, const shl_model_config *b);

/* A name that says the sizes: "gpt-l4-w128-h4-v256-c128", "llama-l22-w2048-h32-kv4-i5632-v32000-c2048".
 * Never that of a preset. dst of 96 bytes takes any. */
void shl_shape_name(const shl_model_config *c, char *dst, size_t dst_bytes);

/* "gpt", "llama". Errors of parse: SHL_E_USAGE with the list. */
const char *shl_family_name(shl_family family);
shl_code shl_family_parse(const char *text, shl_family *out) SHL_MUST_USE;

/* "none", "linear:FACTOR", "llama3:FACTOR:LOW:HIGH:CONTEXT". Errors of parse: SHL_E_USAGE. What spell
 * writes (dst of 96 bytes takes any), parse reads back with the same bits. */
shl_code shl_rope_parse(const char *text, shl_rope_scaling *out) SHL_MUST_USE;
void shl_rope_spell(const shl_rope_scaling *rope, char *dst, size_t dst_bytes);

#endif

/* models: a Hugging Face config.json as a shape. Every key that changes what a model computes is
 * honoured or refused by name; missing keys have the defaults of transformers. */
#ifndef SHL_MODELS_HF_CONFIG_H
#define SHL_MODELS_HF_CONFIG_H

#include "models/family.h"

#define SHL_HF_CONFIG_FILE "config.json"

typedef struct shl_hf_config {
    char model_type[32]; /* "gpt2", "llama", "mistral", "qwen2"; opt, bloom, gpt_neox as a GPT */
    shl_model_config config;
    char approximated[192]; /* what the original computes and ours does not; "": exact */
    int64_t window;         /* sliding attention window; 0: none */
    char note[512];         /* keys that were left aside, for a user to read; or "" */
} shl_hf_config;

/* A path has a slash or ends in .json. */
bool shl_hf_config_is_path(const char *text);

/* path: the file, or the folder that holds config.json. Errors: SHL_E_IO; SHL_E_CONFIG with the key
 * and where it stands for what is no JSON, a wrong type, an architecture that is not known or a
 * setting that this program does not compute. */
shl_code shl_hf_config_load(const char *path, shl_hf_config *out) SHL_MUST_USE;

/* The same from text; name is for messages. */
shl_code shl_hf_config_parse(const char *text, const char *name, shl_hf_config *out) SHL_MUST_USE;

#endif

/* tests/support: configurations of golden files, written under the names of HF's config.json. */
#include "tests/support/golden_model.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

static shl_model_config
gpt2_config(hid_t f)
{
    return (shl_model_config){.vocab = shl_golden_int(f, "/", "vocab_size"),
                              .context = shl_golden_int(f, "/", "n_positions"),
                              .layers = shl_golden_int(f, "/", "n_layer"),
                              .width = shl_golden_int(f, "/", "n_embd"),
                              .heads = shl_golden_int(f, "/", "n_head"),
                              .inner = shl_golden_int(f, "/", "n_inner"),
                              .norm_eps = shl_golden_real(f, "/", "layer_norm_epsilon"),
                              .tied = shl_golden_int(f, "/", "tie_word_embeddings") != 0};
}

static shl_model_config
llama_config(hid_t f)
{
    return (shl_model_config){.family = SHL_FAMILY_LLAMA,
                              .vocab = shl_golden_int(f, "/", "vocab_size"),
                              .context = shl_golden_int(f, "/", "max_position_embeddings"),
                              .layers = shl_golden_int(f, "/", "num_hidden_layers"),
                              .width = shl_golden_int(f, "/", "hidden_size"),
                              .heads = shl_golden_int(f, "/", "num_attention_heads"),
                              .kv_heads = shl_golden_int(f, "/", "num_key_value_heads"),
                              .head_dim = shl_golden_int(f, "/", "head_dim"),
                              .inner = shl_golden_int(f, "/", "intermediate_size"),
                              .norm_eps = shl_golden_real(f, "/", "rms_norm_eps"),
                              .rope_theta = shl_golden_real(f, "/", "rope_theta"),
                              .tied = shl_golden_int(f, "/", "tie_word_embeddings") != 0};
}

shl_model_config
shl_golden_model_config(hid_t file)
{
    char type[32] = "";
    shl_golden_str(file, "/", "model_type", type, sizeof type);
    if (strcmp(type, "llama") == 0) {
        return llama_config(file);
    }
    if (strcmp(type, "gpt2") != 0) {
        fail_msg("a golden model of type %s", type);
    }
    return gpt2_config(file);
}

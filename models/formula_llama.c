/* models: closed forms of LLaMA (Touvron et al. 2023) with grouped-query attention (Ainslie et al.
 * 2023) and the biases of Qwen2, from the definition of the model: the independent oracle. */
#include "models/formula.h"

/* Per layer: two norms 2C; q and the output projection C x NH D each, k and v C x KV D each; gate, up
 * and down 3 C I; biases of q, k and v where the model has them. No positions are learned. */
int64_t
shl_llama_formula_params(const shl_model_config *cfg)
{
    int64_t c = cfg->width, inner = cfg->inner > 0 ? cfg->inner : 4 * c;
    int64_t dim = cfg->head_dim > 0 ? cfg->head_dim : c / cfg->heads;
    int64_t q = cfg->heads * dim;
    int64_t kv = (cfg->kv_heads > 0 ? cfg->kv_heads : cfg->heads) * dim;
    int64_t biases = cfg->qkv_bias ? q + 2 * kv : 0;
    int64_t layer = 2 * c + 2 * c * q + 2 * c * kv + 3 * c * inner + biases;
    int64_t head = cfg->tied ? 0 : cfg->vocab * c;
    return cfg->vocab * c + cfg->layers * layer + c + head;
}

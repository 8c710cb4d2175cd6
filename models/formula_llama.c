/* models: closed forms of LLaMA (Touvron et al. 2023) with grouped-query attention (Ainslie et al.
 * 2023) and the biases of Qwen2, from the definition of the model: the independent oracle. */
#include "models/formula.h"

/* Widths: the stream C, queries NH D, keys NK D, the inner width I. */
typedef struct widths {
    int64_t c, q, kv, inner;
} widths;

static widths
widths_of(const shl_model_config *cfg)
{
    int64_t dim = cfg->head_dim > 0 ? cfg->head_dim : cfg->width / cfg->heads;
    return (widths){.c = cfg->width,
                    .q = cfg->heads * dim,
                    .kv = (cfg->kv_heads > 0 ? cfg->kv_heads : cfg->heads) * dim,
                    .inner = cfg->inner > 0 ? cfg->inner : 4 * cfg->width};
}

/* q and the output projection C x NH D each, k and v C x NK D each; gate, up and down C x I each. */
static int64_t
layer_matrices(const widths *w)
{
    return 2 * w->c * w->q + 2 * w->c * w->kv + 3 * w->c * w->inner;
}

/* Per layer the matrices, two norms 2C, and biases of q, k and v where the model has them. No
 * positions are learned. */
int64_t
shl_llama_formula_params(const shl_model_config *cfg)
{
    widths w = widths_of(cfg);
    int64_t biases = cfg->qkv_bias ? w.q + 2 * w.kv : 0;
    int64_t layer = layer_matrices(&w) + 2 * w.c + biases;
    int64_t head = cfg->tied ? 0 : cfg->vocab * w.c;
    return cfg->vocab * w.c + cfg->layers * layer + w.c + head;
}

/* As for GPT-2 (models/formula.c): 6 per matrix element and token; q.k and p v are 2 NH D each per
 * causal pair, four such products in backward. Rotations, norms and SiLU are not counted. */
double
shl_llama_formula_step_flops(const shl_model_config *cfg, int64_t batch, int64_t seq)
{
    widths w = widths_of(cfg);
    double tokens = (double)batch * (double)seq, layers = (double)cfg->layers;
    double matrices = layers * (double)layer_matrices(&w) + (double)cfg->vocab * (double)w.c;
    double pairs = tokens * ((double)seq + 1.0) / 2.0;
    return 6.0 * matrices * tokens + layers * pairs * (4.0 + 8.0) * (double)w.q;
}

static size_t
larger(size_t a, size_t b)
{
    return a > b ? a : b;
}

/* Per token. The attention branch keeps its input (C), the norm's output (C) and rstd (one float), q, k
 * and v, the attention's output (NH D) and log-sum-exp (NH floats); the MLP its input (C), the norm's
 * output (C) and rstd, gate, up and their product (3I).
 *
 * Forward without keeping holds at most the norm's output with q, k, v, or these with the attention's
 * output, or, beside the stream, gate and up with the norm's output or with their product. In
 * backward a layer of several projections still has its input when the gradient of it begins: in the
 * MLP gate, up and two gradients of C against the start's 3I and one; in attention's the gradients
 * of q, k, v and two of C. Attention's own backward has those of the stream, of its output and of q,
 * k, v. */
shl_act_terms
shl_llama_formula_act(const shl_model_config *cfg, const shl_act_spec *spec)
{
    widths w = widths_of(cfg);
    size_t e = shl_dtype_bytes(spec->dtype), f = sizeof(float);
    size_t c = e * (size_t)w.c, q = e * (size_t)w.q, qkv = q + 2 * e * (size_t)w.kv;
    size_t i = e * (size_t)w.inner, lse = f * (size_t)cfg->heads;
    size_t attention = 2 * c + f + qkv + q + lse, projections = 4 * c + f + qkv;
    size_t beyond = projections > attention ? projections - attention : 0;
    return (shl_act_terms){.stream = c,
                           .attention = attention,
                           .mlp = 2 * c + f + 3 * i,
                           .refilled = q + lse,
                           .forward =
                               larger(larger(c + qkv, qkv + q + lse), c + 2 * i + larger(c, i)),
                           .backward = larger(c + q + qkv, beyond),
                           .mlp_backward = c > i ? c - i : 0,
                           .end = 2 * c + shl_formula_logits_bytes(cfg, spec) + f,
                           .end_backward = 3 * c + f};
}

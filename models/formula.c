/* models: closed forms of GPT-2, from the definition of the model: the independent oracle. No
 * module, layout or engine is asked here, so that a test can set one against the other. */
#include "models/formula.h"

static int64_t
inner_width(const shl_model_config *c)
{
    return c->inner > 0 ? c->inner : 4 * c->width;
}

/* Per layer 12 C^2 + 13 C when I = 4C (Radford et al. 2019; Kaplan et al. 2020, table 1, counts the
 * matrices): two norms 4C, c_attn 3C^2 + 3C, c_proj C^2 + C, MLP 2CI + I + C. */
static int64_t
gpt_params(const shl_model_config *cfg)
{
    int64_t c = cfg->width, inner = inner_width(cfg);
    int64_t layer = 4 * c * c + 2 * c * inner + 9 * c + inner;
    int64_t embeddings = (cfg->vocab + cfg->context) * c;
    int64_t head = cfg->tied ? 0 : cfg->vocab * c;
    return embeddings + cfg->layers * layer + 2 * c + head;
}

int64_t
shl_model_formula_params(const shl_model_config *cfg)
{
    return cfg->family == SHL_FAMILY_LLAMA ? shl_llama_formula_params(cfg) : gpt_params(cfg);
}

/* A matrix of n elements costs 2n FLOPs per token forward and 4n backward (Kaplan et al. 2020,
 * section 2.1); biases, norms and GELU are not counted. Attention over causal pairs (query,
 * key <= query), B T (T + 1) / 2 of them per layer: q.k and p v are 2C each forward; dP, dV, dQ and
 * dK are 2C each backward (Dao et al. 2022, algorithm 4, without its recomputation of q.k). */
double
shl_model_formula_step_flops(const shl_model_config *cfg, int64_t batch, int64_t seq)
{
    double c = (double)cfg->width, inner = (double)inner_width(cfg);
    double layers = (double)cfg->layers, tokens = (double)batch * (double)seq;
    double matrices = layers * (4.0 * c * c + 2.0 * c * inner) + (double)cfg->vocab * c;
    double pairs = (double)batch * (double)seq * ((double)seq + 1.0) / 2.0;
    return 6.0 * matrices * tokens + layers * pairs * (4.0 + 8.0) * c;
}

/* Per token, in floats. A layer keeps the inputs of its two norms (2C), their outputs (2C), mean
 * and rstd of both (4), q, k and v (3C), the attention's output (C) and log-sum-exp (NH), and the
 * MLP before and after GELU (2I). The end keeps the input of the last norm (C), its statistics (2),
 * its output (C), and the gradient of the logits (V). */
size_t
shl_model_formula_saved_act_bytes(const shl_model_config *cfg, int64_t batch, int64_t seq)
{
    int64_t c = cfg->width;
    int64_t layer = 8 * c + 2 * inner_width(cfg) + cfg->heads + 4;
    int64_t end = 2 * c + 2 + cfg->vocab;
    return (size_t)(batch * seq) * (size_t)(cfg->layers * layer + end) * sizeof(float);
}

/* The end of forward is the largest moment while the logits are at least as wide as the stream:
 * everything later trades saved bytes for gradients of the same size or less. With V < C the last
 * norm's backward is larger, where the logits are gone but two gradients of width C are there, one
 * in the place of the norm's output. */
size_t
shl_model_formula_peak_act_bytes(const shl_model_config *cfg, int64_t batch, int64_t seq)
{
    size_t saved = shl_model_formula_saved_act_bytes(cfg, batch, seq);
    int64_t more = cfg->width - cfg->vocab;
    return more > 0 ? saved + (size_t)(batch * seq * more) * sizeof(float) : saved;
}

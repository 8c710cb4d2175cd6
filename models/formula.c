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
static double
gpt_step_flops(const shl_model_config *cfg, int64_t batch, int64_t seq)
{
    double c = (double)cfg->width, inner = (double)inner_width(cfg);
    double layers = (double)cfg->layers, tokens = (double)batch * (double)seq;
    double matrices = layers * (4.0 * c * c + 2.0 * c * inner) + (double)cfg->vocab * c;
    double pairs = (double)batch * (double)seq * ((double)seq + 1.0) / 2.0;
    return 6.0 * matrices * tokens + layers * pairs * (4.0 + 8.0) * c;
}

double
shl_model_formula_step_flops(const shl_model_config *cfg, int64_t batch, int64_t seq)
{
    return cfg->family == SHL_FAMILY_LLAMA ? shl_llama_formula_step_flops(cfg, batch, seq)
                                           : gpt_step_flops(cfg, batch, seq);
}

size_t
shl_formula_logits_bytes(const shl_model_config *cfg, const shl_act_spec *spec)
{
    size_t bytes = shl_dtype_bytes(spec->dtype) * (size_t)cfg->vocab, to = spec->row_align_bytes;
    return to > 0 ? (bytes + to - 1) / to * to : bytes;
}

/* Per token. The attention branch keeps its input (C), the norm's output (C) and statistics (2 floats),
 * q, k and v (3C), the attention's output (C) and log-sum-exp (NH floats); the MLP its input (C), the
 * norm's output (C) and statistics, and both sides of GELU (2I). The end keeps the input of the last
 * norm (C), its statistics, its output (C), and the gradient of the logits (V).
 *
 * Forward without keeping holds at most q, k, v, the attention's output and log-sum-exp, or, beside the
 * stream, the MLP before and behind a layer. Attention's backward has the gradients of the stream (C),
 * of its output (C) and of q, k, v (3C); that of the last norm two gradients of C beside its input. */
static shl_act_terms
gpt_act(const shl_model_config *cfg, const shl_act_spec *spec)
{
    size_t e = shl_dtype_bytes(spec->dtype), f = sizeof(float);
    size_t c = e * (size_t)cfg->width, i = e * (size_t)inner_width(cfg);
    size_t lse = f * (size_t)cfg->heads;
    size_t attn = 4 * c + lse, mlp = c + i + (i > c ? i : c);
    return (shl_act_terms){.stream = c,
                           .attention = 6 * c + lse + 2 * f,
                           .mlp = 2 * c + 2 * i + 2 * f,
                           .refilled = c + lse,
                           .forward = attn > mlp ? attn : mlp,
                           .backward = 5 * c,
                           .end = 2 * c + shl_formula_logits_bytes(cfg, spec) + 2 * f,
                           .end_backward = 3 * c + 2 * f};
}

static shl_act_terms
act_terms(const shl_model_config *cfg, const shl_act_spec *spec)
{
    return cfg->family == SHL_FAMILY_LLAMA ? shl_llama_formula_act(cfg, spec) : gpt_act(cfg, spec);
}

static bool
is_recomputed(const shl_act_spec *spec, int64_t block)
{
    int64_t every = spec->recompute_every > 0 ? spec->recompute_every : 1;
    return spec->recompute == SHL_RECOMPUTE_FULL && block % every == 0;
}

static size_t
block_bytes(const shl_act_terms *t, const shl_act_spec *spec, int64_t block)
{
    size_t whole = t->attention + t->mlp;
    if (is_recomputed(spec, block)) {
        return t->stream;
    }
    return spec->recompute == SHL_RECOMPUTE_SELECTIVE ? whole - t->refilled : whole;
}

static size_t
max_bytes(size_t a, size_t b)
{
    return a > b ? a : b;
}

/* What blocks [0, end) hold on the device after the forward of the last block: all that they keep, or, with
 * offload, one input of a recomputed block: the last one of forward, and the next one of backward. */
static size_t
held_bytes(const shl_act_terms *t, const shl_act_spec *spec, int64_t end)
{
    size_t held = 0, inputs = 0;
    for (int64_t block = 0; block < end; block++) {
        bool again = is_recomputed(spec, block);
        inputs += again ? t->stream : 0;
        held += again ? 0 : block_bytes(t, spec, block);
    }
    return held + (spec->offload && inputs > 0 ? t->stream : inputs);
}

size_t
shl_model_formula_saved_act_bytes(const shl_model_config *cfg, const shl_act_spec *spec)
{
    shl_act_terms t = act_terms(cfg, spec);
    return (size_t)(spec->batch * spec->seq) * (t.end + held_bytes(&t, spec, cfg->layers));
}

size_t
shl_model_formula_host_act_bytes(const shl_model_config *cfg, const shl_act_spec *spec)
{
    shl_act_terms t = act_terms(cfg, spec);
    size_t inputs = 0;
    for (int64_t block = 0; block < cfg->layers; block++) {
        inputs += is_recomputed(spec, block) ? t.stream : 0;
    }
    inputs -= inputs > 0 ? t.stream : 0;
    return spec->offload ? (size_t)(spec->batch * spec->seq) * inputs : 0;
}

/* The end of forward is the largest moment of a model that recomputes nothing and whose logits are
 * wider than the stream; else one of: the last norm's backward; in a block, on top of what those
 * before it keep, the start of its backward with everything made again and the gradient of the
 * stream, its attention's backward, or the forward that keeps only its input (which is behind offload's
 * copy of those before it). */
size_t
shl_model_formula_peak_act_bytes(const shl_model_config *cfg, const shl_act_spec *spec)
{
    shl_act_terms t = act_terms(cfg, spec);
    size_t peak = 0, inputs = 0;
    for (int64_t block = 0; block < cfg->layers; block++) {
        size_t own = block_bytes(&t, spec, block), before = held_bytes(&t, spec, block);
        size_t start = is_recomputed(spec, block) ? t.attention + t.mlp : own;
        peak = max_bytes(peak, before + start + t.stream + t.mlp_backward);
        peak = max_bytes(peak, before + t.attention + t.backward);
        if (is_recomputed(spec, block)) {
            size_t away = spec->offload && inputs > 0 ? t.stream : 0;
            peak = max_bytes(peak, before - away + t.stream + t.forward);
            inputs += t.stream;
        }
    }
    size_t all = held_bytes(&t, spec, cfg->layers);
    peak = max_bytes(peak, all + max_bytes(t.end, t.end_backward));
    return (size_t)(spec->batch * spec->seq) * peak;
}

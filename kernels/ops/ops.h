/* kernels/ops: one slot per op with its shape contract. The dispatchers here check shapes and
 * dtypes, take and release scratch (tag work, sizes from shl_op_work_bytes), then call the slot of
 * the stream's device. Letters: B sequences, T positions, R = B*T rows, C width, I inputs, O
 * outputs, V vocabulary, NH query heads, NK key/value heads, D head size. Gradients are `d` + name.
 *
 * Every call enqueues on stream `s` (on cpu: done on return), borrows its tensors until the stream
 * has passed, and returns SHL_E_BUG on a shape or dtype that breaks the contract, SHL_E_USAGE for a
 * dtype this device does not support, or what the slot returned. All are local.
 * Types: activations, their gradients and weights of a model op are all fp32, all bf16 or all fp16;
 * gradients of parameters are fp32 or of that type, each by its own tensor. Everything is computed in
 * fp32; a 16-bit result is rounded once, to nearest even, with bias and old value added before.
 * `accumulate`: false overwrites the gradient, true adds to it (g_new = g_old + g). */
#ifndef SHL_OPS_OPS_H
#define SHL_OPS_OPS_H

#include "kernels/device/device.h"

#define SHL_IGNORE_INDEX (-100)

/* Elements between rows of `cols`: what an args struct says, or the columns where it says 0. */
static inline int64_t
shl_row_stride(int64_t stride, int64_t cols)
{
    return stride > 0 ? stride : cols;
}

/* Every op once: its constant behind SHL_OP_, and its name. Enumerations and tables of devices are made
 * from it: X(OP, name). */
#define SHL_OPS(X)                                                                                 \
    X(LINEAR_FORWARD, linear_forward)                                                              \
    X(LINEAR_BACKWARD_INPUT, linear_backward_input)                                                \
    X(LINEAR_BACKWARD_WEIGHT, linear_backward_weight)                                              \
    X(LAYERNORM_FORWARD, layernorm_forward)                                                        \
    X(LAYERNORM_BACKWARD, layernorm_backward)                                                      \
    X(GELU_FORWARD, gelu_forward)                                                                  \
    X(GELU_BACKWARD, gelu_backward)                                                                \
    X(EMBEDDING_FORWARD, embedding_forward)                                                        \
    X(EMBEDDING_BACKWARD, embedding_backward)                                                      \
    X(ATTENTION_FORWARD, attention_forward)                                                        \
    X(ATTENTION_BACKWARD, attention_backward)                                                      \
    X(ADD, add)                                                                                    \
    X(SCALE, scale)                                                                                \
    X(CROSS_ENTROPY, cross_entropy)                                                                \
    X(ADAMW, adamw)                                                                                \
    X(NORM_MAX, norm_max)                                                                          \
    X(NORM_SUM, norm_sum)                                                                          \
    X(SUM_RANKS, sum_ranks)                                                                        \
    X(INIT, init)                                                                                  \
    X(RMSNORM_FORWARD, rmsnorm_forward)                                                            \
    X(RMSNORM_BACKWARD, rmsnorm_backward)                                                          \
    X(ROPE, rope)                                                                                  \
    X(SILU_MUL_FORWARD, silu_mul_forward)                                                          \
    X(SILU_MUL_BACKWARD, silu_mul_backward)                                                        \
    X(DROPOUT, dropout)                                                                            \
    X(CAST, cast)                                                                                  \
    X(OPTIM, optim)

#define SHL_OP_CONSTANT(op, name) SHL_OP_##op,
typedef enum shl_op { SHL_OPS(SHL_OP_CONSTANT) SHL_OP_COUNT } shl_op;
#undef SHL_OP_CONSTANT

/* Name of an op for messages and tables; static storage. */
const char *shl_op_name(shl_op op);

/* Weights of a linear layer lie [I, O] (GPT-2's Conv1D) or [O, I] (nn.Linear, a tied embedding). */
typedef enum shl_weight_order { SHL_WEIGHT_IO = 0, SHL_WEIGHT_OI } shl_weight_order;

/* forward:  y[R,O] = x[R,I] W + b      (b may be NULL data)
 * input:    dx[R,I] = dy W^T           (overwrites; accumulate adds)
 * weight:   dw = x^T dy (order as W), db = column sums of dy in a fixed order; without dw only the
 *           shape of x is looked at
 * Rows of y and dy may lie `stride` >= O elements apart (0: O), as wide ones do where the device asks for
 * it (shl_device_row_stride); what lies between them is neither read nor written. */
typedef struct shl_linear_args {
    shl_tensor x, w, b, y;     /* forward; x, w reused below */
    shl_tensor dy, dx, dw, db; /* backward; unused ones have NULL data */
    shl_weight_order order;
    int64_t stride;     /* elements between rows of y, dy; 0: O */
    bool accumulate;    /* dw, db */
    bool accumulate_dx; /* dx */
} shl_linear_args;
shl_code shl_op_linear_forward(shl_stream *s, const shl_linear_args *a) SHL_MUST_USE;
shl_code shl_op_linear_backward_input(shl_stream *s, const shl_linear_args *a) SHL_MUST_USE;
shl_code shl_op_linear_backward_weight(shl_stream *s, const shl_linear_args *a) SHL_MUST_USE;

/* y = (x - mean) * rstd * w + b per row of C; biased variance (Ba et al. 2016). mean, rstd [R] f32
 * are saved. backward: dx[R,C] (accumulate_dx adds: the residual branch), dw, db summed over rows in
 * a fixed order that does not depend on threads. */
typedef struct shl_layernorm_args {
    shl_tensor x, w, b, y, mean, rstd;
    shl_tensor dy, dx, dw, db;
    float eps;
    bool accumulate, accumulate_dx;
} shl_layernorm_args;
shl_code shl_op_layernorm_forward(shl_stream *s, const shl_layernorm_args *a) SHL_MUST_USE;
shl_code shl_op_layernorm_backward(shl_stream *s, const shl_layernorm_args *a) SHL_MUST_USE;

/* y = 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) (Hendrycks & Gimpel 2016); backward:
 * dx = dy * y'(x); dx may be dy itself. Any shape. */
typedef struct shl_gelu_args {
    shl_tensor x, y, dy, dx;
} shl_gelu_args;
shl_code shl_op_gelu_forward(shl_stream *s, const shl_gelu_args *a) SHL_MUST_USE;
shl_code shl_op_gelu_backward(shl_stream *s, const shl_gelu_args *a) SHL_MUST_USE;

/* y[R,C] = wte[token] (+ wpe[position], position = row mod T, when wpe has data). backward: dwte,
 * dwpe get the sums of their rows in row order (repeated tokens: deterministic), every untouched
 * row is zeroed unless accumulate. tokens: i32 [R] in host-visible memory of the device. Errors:
 * SHL_E_CONFIG for a token outside the vocabulary; nothing is written then. */
typedef struct shl_embedding_args {
    shl_tensor tokens, wte, wpe, y;
    shl_tensor dy, dwte, dwpe;
    int64_t seq; /* T */
    bool accumulate_wte, accumulate_wpe;
} shl_embedding_args;
shl_code shl_op_embedding_forward(shl_stream *s, const shl_embedding_args *a) SHL_MUST_USE;
shl_code shl_op_embedding_backward(shl_stream *s, const shl_embedding_args *a) SHL_MUST_USE;

/* Causal attention by row blocks with saved log-sum-exp, never a T x T matrix in memory (Dao et al.
 * 2022). q element (b, t, h, d) at q[(b*T + t) * q_stride + h*D + d]; k, v with kv_stride and NK
 * heads (query head h uses kv head h / (NH / NK)); GPT-2 passes views into one [R, 3C] tensor.
 * y [R, NH*D] dense; lse f32 [B, NH, T]. backward: dq, dk, dv with the strides of q, k, v
 * (overwritten). scale usually 1/sqrt(D). In bf16 with D a multiple of 8, weights may be rounded inside.
 * dropout_p > 0: the weights behind the softmax (not lse) are dropped as by shl_op_dropout; the word of
 * query i, key j of head h in sequence b is (((first_sequence + b) NH + h) T + i) T + j. */
typedef struct shl_attention_args {
    const void *q, *k, *v;
    void *y;
    float *lse;
    const void *dy;
    void *dq, *dk, *dv;
    int64_t q_stride, kv_stride; /* elements between tokens */
    int64_t batch, seq, heads, kv_heads, head_dim;
    float scale;
    shl_dtype dtype;
    double dropout_p;
    uint64_t dropout_seed, dropout_stream;
    int64_t first_sequence; /* place of sequence 0 in the global batch */
} shl_attention_args;
shl_code shl_op_attention_forward(shl_stream *s, const shl_attention_args *a) SHL_MUST_USE;
shl_code shl_op_attention_backward(shl_stream *s, const shl_attention_args *a) SHL_MUST_USE;

/* y = x1 + x2 elementwise, each of fp32, bf16 or fp16: added in fp32, rounded to y's type; y may be
 * x1 or x2 where it has their type. */
typedef struct shl_add_args {
    shl_tensor x1, x2, y;
} shl_add_args;
shl_code shl_op_add(shl_stream *s, const shl_add_args *a) SHL_MUST_USE;

/* x *= factor, in fp32, rounded to x's type. */
typedef struct shl_scale_args {
    shl_tensor x;
    float factor;
} shl_scale_args;
shl_code shl_op_scale(shl_stream *s, const shl_scale_args *a) SHL_MUST_USE;

/* Fused softmax cross-entropy, in place: logits[R,V] become dlogits = (softmax - onehot) * dloss
 * (rows with target SHL_IGNORE_INDEX: zero). loss_sum: one f64 in device memory; the sum over
 * valid rows of (lse - logit[target]), rows added in order in double, is ADDED to it. Stable at
 * large logits. targets: i32 [R]. want_grad false leaves the logits unspecified. Rows lie `stride` >= V
 * elements apart (0: V); what lies between them is neither read nor written. Errors:
 * SHL_E_CONFIG for a target outside the vocabulary; nothing is written then. */
typedef struct shl_cross_entropy_args {
    shl_tensor logits, targets;
    shl_tensor loss_sum; /* f64 [1] */
    int64_t stride;      /* elements between rows of logits; 0: V */
    float dloss;         /* 1 / number of valid targets of the whole global batch */
    bool want_grad;
} shl_cross_entropy_args;
shl_code shl_op_cross_entropy(shl_stream *s, const shl_cross_entropy_args *a) SHL_MUST_USE;

/* AdamW (Loshchilov & Hutter 2019) as torch.optim.AdamW: g = grad * grad_scale;
 * p *= 1 - lr wd; m += (1-b1)(g-m); v = b2 v + (1-b2) g g;
 * p -= lr / (1-b1^t) * m / (sqrt(v) / sqrt(1-b2^t) + eps). step t counts from 1. All [n], in fp32:
 * param and grad may be of any float type, m and v fp32 or bf16: read as fp32, the new values rounded
 * to their type at the end (m and v enter p unrounded). The bits of an element depend on its own
 * values only, not on its place or on n. */
typedef struct shl_adamw_args {
    shl_tensor param, grad, m, v;
    shl_tensor rounded; /* not NULL data: gets the new parameters too, from fp32 to its type */
    double lr, beta1, beta2, eps, weight_decay;
    double grad_scale;
    int64_t step;
    bool uncorrected; /* 1 in the place of 1-b1^t and 1-b2^t */
} shl_adamw_args;
shl_code shl_op_adamw(shl_stream *s, const shl_adamw_args *a) SHL_MUST_USE;

/* The other optimizers, element by element; g = grad * grad_scale. Types, rounding and what bits depend
 * on are AdamW's. m, v of NULL data: the rule has no such moment (SGD: no momentum). */
typedef enum shl_optim_rule {
    /* Kingma & Ba 2015, as torch.optim.Adam: g += wd p; then as AdamW with wd 0. */
    SHL_RULE_ADAM = 0,
    /* Chen et al. 2023: p *= 1 - lr wd; p -= lr sign(b1 m + (1-b1) g); m = b2 m + (1-b2) g. */
    SHL_RULE_LION,
    /* Duchi et al. 2011, as torch.optim.Adagrad: g += wd p; v += g g; p -= lr g / (sqrt(v) + eps). */
    SHL_RULE_ADAGRAD,
    /* torch.optim.SGD: g += wd p; m = b1 m + (1-dampening) g, in step 1 m = g; p -= lr m, with Nesterov
     * p -= lr (g + b1 m), without m p -= lr g. */
    SHL_RULE_SGD,
    /* First half of LAMB (You et al. 2020): m, v as AdamW; param is only read, and grad, which is spent,
     * becomes u = m / (1-b1^t) / (sqrt(v) / sqrt(1-b2^t) + eps) + wd p. The second half, p -= lr ratio u
     * with the ratio of whole tensors' norms, is SGD without m on u. */
    SHL_RULE_LAMB,
    SHL_RULE_COUNT
} shl_optim_rule;
typedef struct shl_optim_args {
    shl_optim_rule rule;
    shl_tensor param, grad, m, v;
    shl_tensor rounded;                         /* as AdamW's; none for LAMB */
    double lr, beta1, beta2, eps, weight_decay; /* beta1 of SGD: its momentum */
    double grad_scale;
    int64_t step;
    bool uncorrected; /* ADAM, LAMB: as AdamW's */
    double dampening; /* SGD with m */
    bool nesterov;    /* the same */
} shl_optim_args;
shl_code shl_op_optim(shl_stream *s, const shl_optim_args *a) SHL_MUST_USE;
/* Moments that a rule keeps; SGD's m only with momentum. */
bool shl_rule_has_m(shl_optim_rule rule);
bool shl_rule_has_v(shl_optim_rule rule);

/* Order-independent squared norm of fp32, bf16 or fp16, widened to fp32 where it is not, in two
 * passes over any partition of the data:
 * norm_max: *out_max (u32 in device memory as SHL_I32 [1]) = max of itself and the bit pattern of
 *   max |x| (inf and NaN give larger patterns and so win);
 * norm_sum: each x*x (exact in double) is rounded to an integer multiple of 2^quantum_log2 and the
 *   integers are added to the 128-bit little-endian integer out_sum (SHL_I64 [2] in device memory).
 *   Sums of any partition, in any order, are the same integer. quantum_log2 in [-700, 700]; a square
 *   of 2^126 quanta or more counts as that many, NaN as none (norm_max has told of both). */
typedef struct shl_norm_args {
    shl_tensor x;
    shl_tensor out_max; /* i32 [1] */
    shl_tensor out_sum; /* i64 [2] */
    int quantum_log2;
} shl_norm_args;
shl_code shl_op_norm_max(shl_stream *s, const shl_norm_args *a) SHL_MUST_USE;
shl_code shl_op_norm_sum(shl_stream *s, const shl_norm_args *a) SHL_MUST_USE;

/* dst[i] = srcs[0][i] + srcs[1][i] + ... + srcs[n-1][i], added in that order in f32; with add_to_dst
 * the total is then added to dst (dst + total). All of dst's type; rounded once, at the end. dst may
 * be one of the srcs. May run on any thread
 * (a communicator's worker): one thread of compute, no scratch. */
typedef struct shl_sum_ranks_args {
    shl_tensor dst;
    const void *const *srcs;
    int n;
    bool add_to_dst;
} shl_sum_ranks_args;
shl_code shl_op_sum_ranks(shl_stream *s, const shl_sum_ranks_args *a) SHL_MUST_USE;

/* Fills dst with elements [begin, begin + n) of a tensor's initial value, in fp32, then rounded to
 * dst's type: kind NORMAL draws
 * mean 0, std by shl_rng_normal(seed, stream, index); CONST gives `value`. */
typedef enum shl_init_kind { SHL_INIT_CONST = 0, SHL_INIT_NORMAL } shl_init_kind;
typedef struct shl_init_args {
    shl_tensor dst;
    shl_init_kind kind;
    double value; /* CONST */
    double std;   /* NORMAL */
    uint64_t seed, stream;
    int64_t begin;
} shl_init_args;
shl_code shl_op_init(shl_stream *s, const shl_init_args *a) SHL_MUST_USE;

/* y = x * rstd * w, rstd = 1 / sqrt(mean(x^2) + eps) per row of C (Zhang & Sennrich 2019). rstd [R]
 * f32 is saved. backward: dx[R,C] (accumulate_dx adds: the residual branch); dw, which may have NULL
 * data, is summed over rows in a fixed order that does not depend on threads. */
typedef struct shl_rmsnorm_args {
    shl_tensor x, w, y, rstd;
    shl_tensor dy, dx, dw;
    float eps;
    bool accumulate, accumulate_dx;
} shl_rmsnorm_args;
shl_code shl_op_rmsnorm_forward(shl_stream *s, const shl_rmsnorm_args *a) SHL_MUST_USE;
shl_code shl_op_rmsnorm_backward(shl_stream *s, const shl_rmsnorm_args *a) SHL_MUST_USE;

/* How rotary angles (Su et al. 2021) are stretched beyond the context that a model was trained on. */
typedef enum shl_rope_kind {
    SHL_ROPE_PLAIN = 0,
    SHL_ROPE_LINEAR, /* every angle divided by factor */
    SHL_ROPE_LLAMA3, /* Llama-3.1: by wavelength against the original context */
    SHL_ROPE_KIND_COUNT
} shl_rope_kind;
typedef struct shl_rope_scaling {
    shl_rope_kind kind;
    double factor;                            /* linear and llama3 */
    double low_freq_factor, high_freq_factor; /* llama3, low below high */
    int64_t original_context;                 /* llama3 */
} shl_rope_scaling;
/* Radians per position of pair i of head_dim / 2: theta^(-2 i / head_dim), scaled. Pure. */
double shl_rope_inv_freq(double theta, const shl_rope_scaling *scaling, int64_t head_dim,
                         int64_t i);

/* Rotates q and k in place: with the angle of (position, i), elements i and i + D/2 of a head (HF's
 * halves) become x[i] cos - x[i+D/2] sin and x[i+D/2] cos + x[i] sin. Position = first_position +
 * row mod seq. Angles are formed in double. `inverse` turns by the negative angle: the backward of
 * dq, dk. Row r of q at q + r * q_stride, heads of D elements side by side; k likewise, NULL: none. */
typedef struct shl_rope_args {
    void *q, *k;
    int64_t q_stride, kv_stride;
    int64_t rows, seq, first_position, heads, kv_heads, head_dim;
    double theta;
    shl_rope_scaling scaling;
    bool inverse;
    shl_dtype dtype;
} shl_rope_args;
shl_code shl_op_rope(shl_stream *s, const shl_rope_args *a) SHL_MUST_USE;

/* y = silu(gate) * up, silu(x) = x / (1 + exp(-x)) (Shazeer 2020, SwiGLU). gate and up are [R,I] with
 * `stride` elements between rows, so that they may be halves of one [R,2I]; y and dy are dense.
 * backward: dgate, dup with the same stride; they may be gate and up themselves. */
typedef struct shl_silu_mul_args {
    const void *gate, *up;
    void *y;
    const void *dy;
    void *dgate, *dup;
    int64_t rows, cols, stride;
    shl_dtype dtype;
} shl_silu_mul_args;
shl_code shl_op_silu_mul_forward(shl_stream *s, const shl_silu_mul_args *a) SHL_MUST_USE;
shl_code shl_op_silu_mul_backward(shl_stream *s, const shl_silu_mul_args *a) SHL_MUST_USE;

/* Dropout (Srivastava et al. 2014): y[e] = x[e] / (1 - p) where element `first + e` is kept, else 0;
 * y may be x. Kept: word first + e of (seed, stream) is at least p 2^32 (shl_op_dropout_word), a pure
 * function, so no mask is stored and the backward is the same op on dy. `first` is the place of x[0]
 * in the global batch: any partition and any recomputation drops the same elements. 0 <= p < 1. */
typedef struct shl_dropout_args {
    shl_tensor x, y;
    double p;
    uint64_t seed, stream;
    int64_t first;
} shl_dropout_args;
shl_code shl_op_dropout(shl_stream *s, const shl_dropout_args *a) SHL_MUST_USE;
/* Word `index` of a stream: word index mod 4 of block index / 4. And p as a bound on such words. */
uint32_t shl_op_dropout_word(uint64_t seed, uint64_t stream, uint64_t index);
uint32_t shl_op_dropout_bound(double p);

/* dst = src in dst's type: fp32, bf16, fp16 from any of them, rounded to nearest even, subnormals
 * kept; a NaN stays a NaN (quiet), what is too large becomes infinite. Equal types: a copy. The two
 * do not overlap. May run on any thread (off the compute stream: one thread). */
typedef struct shl_cast_args {
    shl_tensor dst, src;
} shl_cast_args;
shl_code shl_op_cast(shl_stream *s, const shl_tensor *dst, const shl_tensor *src) SHL_MUST_USE;

/* Copy and zero fill of tensors of equal size (shl_device_copy / fill with shapes checked). */
shl_code shl_op_copy(shl_stream *s, const shl_tensor *dst, const shl_tensor *src) SHL_MUST_USE;
shl_code shl_op_zero(shl_stream *s, const shl_tensor *dst) SHL_MUST_USE;

/* What a device implements. `work` is scratch of shl_op_work_bytes(...) bytes (NULL when 0). Every
 * slot is required on every device. `args` is the op's own args struct. */
typedef shl_code (*shl_op_fn)(shl_stream *s, const void *args, void *work);
typedef struct shl_op_table {
    const char *kind;
    shl_op_fn fn[SHL_OP_COUNT];
    /* *: "". As shl_op_ran. */
    void (*ran)(const struct shl_device *d, shl_op op, char *text, size_t bytes);
} shl_op_table;

/* Which kernels have served an op on d so far, for records, as a bounded text: "own (tensor cores)",
 * "cudnn 9.13.1". "" when none ran, or where a device has no more than one. Local. */
void shl_op_ran(const shl_device *d, shl_op op, char *text, size_t bytes);

/* Scratch bytes of an op on a target ("cpu", "cuda") with `threads`: a pure function of shapes and
 * settings, the same one for the target and for the virtual device that stands for it. */
size_t shl_op_work_bytes(const char *target, shl_op op, const void *args, int threads);

/* kernels/ops/cost: what an op must do: floating point operations and bytes moved at least (each
 * tensor read or written once). Feeds the virtual clocks, rooflines and MFU. */
typedef struct shl_cost {
    double flops;
    double bytes;
} shl_cost;
shl_cost shl_op_cost(shl_op op, const void *args);

#endif

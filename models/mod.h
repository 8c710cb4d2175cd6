/* models: what the module files share: building the tree, and the small steps that every leaf does.
 * Included by models/ only. Letters: B sequences, T positions, R = B*T rows, C width, I inputs,
 * O outputs, V vocabulary, NH heads, D head size. */
#ifndef SHL_MODELS_MOD_H
#define SHL_MODELS_MOD_H

#include "models/module.h"

/* ---- sizes (model_sizes.c) ---- */

#define SHL_MAX_LAYERS 10000
#define SHL_MAX_INDEX INT32_MAX /* token ids are 32-bit */

/* 1 <= value <= max, or SHL_E_USAGE: "a <family> cannot have <what> <value>". */
shl_code shl_check_size(const char *family, const char *what, int64_t value,
                        int64_t max) SHL_MUST_USE;

/* The sum of rows * cols * count over n pieces can still be counted in bytes, or SHL_E_USAGE. */
shl_code shl_check_total(const int64_t (*pieces)[3], int n) SHL_MUST_USE;

/* ---- building (module_build.c). The model owns all of it, also after a failure. ---- */

/* A model without modules. family borrowed (static storage). */
shl_code shl_build_model(const char *family, shl_model **out) SHL_MUST_USE;

/* Appends a module, the last child of `parent` (NULL: the root), with impl_bytes zeroed bytes. */
shl_code shl_build_module(shl_model *model, shl_module *parent, const shl_module_ops *ops,
                          const char *path, shl_wrap_hint wrap, size_t impl_bytes,
                          shl_module **out) SHL_MUST_USE;

/* What a parameter starts as. rows x cols; cols 0: one dimension. std 0: the constant `value`. */
typedef struct shl_param_spec {
    int64_t rows, cols;
    double value, std;
} shl_param_spec;

/* Adds the parameter "<stem>.<suffix>" and lists it with m. */
shl_code shl_build_param(shl_model *model, shl_module *m, const char *stem, const char *suffix,
                         const shl_param_spec *spec) SHL_MUST_USE;

/* Lists a parameter of the model with one more module: a tie. */
shl_code shl_build_use(shl_module *m, shl_param *p) SHL_MUST_USE;

/* After parameters were added out of order: params and their indices in order of first use. */
void shl_build_number_params(shl_model *model);

/* ---- leaves and containers, each appended below `parent` ---- */

/* y = x W + b. owns_input false: x stays on the tape entry of the module before, or of the parent. In
 * forward a *y with data and an empty *y_buf says where to write. */
typedef struct shl_linear_spec {
    int64_t in, out;
    double std;
    bool owns_input;
    bool no_bias;
    shl_weight_order order; /* of the weight: [I, O] or [O, I] */
} shl_linear_spec;
shl_code shl_mod_linear(shl_model *model, shl_module *parent, const char *path,
                        const shl_linear_spec *spec) SHL_MUST_USE;

/* n linear layers over one input, which is kept once; none owns it. Their outputs lie one behind the
 * other: [R, O1], then [R, O2], ..., each dense. */
#define SHL_FAN_MAX 3
shl_code shl_mod_fan(shl_model *model, shl_module *parent, const char *path, int n,
                     const char *const *child_paths, const shl_linear_spec *specs) SHL_MUST_USE;

/* Leaves and one container over rows of `width`; each names its parameters "<path>.<suffix>". */
shl_code shl_mod_layernorm(shl_model *model, shl_module *parent, const char *path, int64_t width,
                           double eps) SHL_MUST_USE;
shl_code shl_mod_gelu(shl_model *model, shl_module *parent, const char *path,
                      int64_t width) SHL_MUST_USE;
shl_code shl_mod_rmsnorm(shl_model *model, shl_module *parent, const char *path, int64_t width,
                         double eps) SHL_MUST_USE;
/* y[R,I] = silu(gate) * up of what a fan of two leaves. */
shl_code shl_mod_silu_mul(shl_model *model, shl_module *parent, const char *path,
                          int64_t width) SHL_MUST_USE;

/* Causal attention. x holds q, k and v side by side, [R, (NH + 2 NK) D]; or, stacked, one behind the
 * other as a fan of three leaves them. rope_theta > 0: q and k are rotated first. */
typedef struct shl_attention_spec {
    int64_t heads, kv_heads, head_dim;
    bool stacked;
    double rope_theta;
    shl_rope_scaling rope;
} shl_attention_spec;
shl_code shl_mod_attention(shl_model *model, shl_module *parent, const char *path,
                           const shl_attention_spec *spec) SHL_MUST_USE;

/* Token embedding "<token_stem>.weight" [V, C]; positions "<position_stem>.weight" [T, C] unless the
 * stem is NULL. */
shl_code shl_mod_embed(shl_model *model, shl_module *parent, const char *path,
                       const char *token_stem, const char *position_stem, int64_t width,
                       double std) SHL_MUST_USE;
/* Logits and loss. tied is listed as the weight [V, C]; NULL: an own "lm_head.weight". */
shl_code shl_mod_head(shl_model *model, shl_module *parent, const char *path, int64_t width,
                      double std, shl_param *tied) SHL_MUST_USE;

/* Children one after the other. */
shl_code shl_mod_chain(shl_model *model, shl_module *parent, const char *path, shl_wrap_hint wrap,
                       shl_module **out) SHL_MUST_USE;
/* Two residual branches of four children each: x += branch(x), twice. */
shl_code shl_mod_block(shl_model *model, shl_module *parent, const char *path,
                       shl_module **out) SHL_MUST_USE;

/* children[0..n) in order / in reverse; buffers as in shl_module_forward / backward. */
shl_code shl_chain_forward(shl_module **children, int n, shl_run *run, shl_buf *x_buf,
                           const shl_tensor *x, shl_buf *y_buf, shl_tensor *y) SHL_MUST_USE;
shl_code shl_chain_backward(shl_module **children, int n, shl_run *run, shl_buf *dy_buf,
                            const shl_tensor *dy, shl_buf *dx_buf, shl_tensor *dx) SHL_MUST_USE;

/* ---- steps of a leaf (module.c) ---- */

/* An activation [rows, cols] of m (tag act, device tier). */
shl_code shl_act_alloc(shl_module *m, shl_run *run, shl_dtype dtype, int64_t rows, int64_t cols,
                       shl_buf *buf, shl_tensor *t) SHL_MUST_USE;

/* Opens m's tape entry with the input in place 0: every buffer of a forward lies in the entry or in
 * y_buf, so that a failure leaks nothing. leave drops it again unless run->save. */
shl_code shl_leaf_enter(shl_module *m, shl_run *run, shl_buf *x_buf, const shl_tensor *x,
                        shl_tape_entry **out) SHL_MUST_USE;
void shl_leaf_leave(shl_run *run);

/* Views of a parameter and of its gradient; the gradient's data is NULL when nobody wants it. */
shl_tensor shl_param_view(const shl_param *p);
shl_tensor shl_param_grad_view(const shl_param *p);

/* Makes the wanted gradients of w and b (b may be NULL) agree on adding or overwriting, as one op
 * writes both with one flag; *accumulate is that flag. */
shl_code shl_param_pair_mode(shl_run *run, const shl_param *w, const shl_param *b,
                             bool *accumulate) SHL_MUST_USE;

/* After a gradient was written: the next writer adds. */
void shl_param_wrote(shl_param *p);

/* Whether m drops elements in this run. */
bool shl_drops(const shl_module *m, const shl_run *run);

/* y = dropout of x, both [R,C] over the micro-batch; y may be x. The same call is the backward. A
 * module that drops in several places counts them by `place`. */
shl_code shl_drop(const shl_module *m, shl_run *run, int place, const shl_tensor *x,
                  const shl_tensor *y) SHL_MUST_USE;

static inline shl_buf
shl_buf_move(shl_buf *from)
{
    shl_buf b = *from;
    *from = (shl_buf){0};
    return b;
}

#endif

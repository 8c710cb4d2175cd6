/* kernels/ops: plain double-precision references of the ops, one loop per formula: what the op cases
 * compare with. Letters as in ops.h; matrices row-major and dense unless a stride is given. */
#ifndef SHL_OPS_OP_REFERENCE_H
#define SHL_OPS_OP_REFERENCE_H

#include "kernels/ops/ops.h"

typedef struct shl_ref_linear {
    int64_t rows, in, out;
    shl_weight_order order;
} shl_ref_linear;

/* y = x W + b (b may be NULL); dx, dw, db are added to and may be NULL. */
void shl_ref_linear_forward(const shl_ref_linear *l, const double *x, const double *w,
                            const double *b, double *y);
void shl_ref_linear_backward(const shl_ref_linear *l, const double *x, const double *w,
                             const double *dy, double *dx, double *dw, double *db);

/* y = (x - mean) * rstd * w + b per row; mean, rstd [rows] are written. */
void shl_ref_layernorm_forward(int64_t rows, int64_t cols, double eps, const double *x,
                               const double *w, const double *b, double *y, double *mean,
                               double *rstd);
/* dx, dw, db are added to. */
void shl_ref_layernorm_backward(int64_t rows, int64_t cols, const double *x, const double *w,
                                const double *mean, const double *rstd, const double *dy,
                                double *dx, double *dw, double *db);

/* y = x * rstd * w per row; rstd [rows] is written. Backward: dx, dw are added to; dw may be NULL. */
void shl_ref_rmsnorm_forward(int64_t rows, int64_t cols, double eps, const double *x,
                             const double *w, double *y, double *rstd);
void shl_ref_rmsnorm_backward(int64_t rows, int64_t cols, const double *x, const double *w,
                              const double *rstd, const double *dy, double *dx, double *dw);

/* Rotates `heads` heads of each of a's rows, stride elements apart, in place. */
void shl_ref_rope(const shl_rope_args *a, int64_t heads, int64_t stride, double *x);

/* silu(x) = x / (1 + exp(-x)) and its derivative. */
double shl_ref_silu(double x);
double shl_ref_silu_slope(double x);

/* The tanh form of ops.h, and its derivative. */
double shl_ref_gelu(double x);
double shl_ref_gelu_slope(double x);

/* Shape of shl_attention_args; all pointers as there, in double. dq, dk, dv are overwritten. */
void shl_ref_attention_forward(const shl_attention_args *a, const double *q, const double *k,
                               const double *v, double *y, double *lse);
void shl_ref_attention_backward(const shl_attention_args *a, const double *q, const double *k,
                                const double *v, const double *dy, double *dq, double *dk,
                                double *dv);

/* Loss sum over valid rows; logits become (softmax - onehot) * dloss. */
double shl_ref_cross_entropy(int64_t rows, int64_t vocab, const double *targets, double dloss,
                             double *logits);

/* One element; a gives the constants. */
void shl_ref_adamw(const shl_adamw_args *a, double *p, double g, double *m, double *v);
/* The same; *g is written by LAMB only, m and v may be NULL where the rule has none. */
void shl_ref_optim(const shl_optim_args *a, double *p, double *g, double *m, double *v);

#endif

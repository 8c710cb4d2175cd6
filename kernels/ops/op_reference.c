/* kernels/ops: plain double-precision references of the ops. Slow and obvious on purpose. */
#include "kernels/ops/op_reference.h"

#include <math.h>
#include <string.h>

/* Index of the weight from input i to output o. */
static int64_t
weight_at(const shl_ref_linear *l, int64_t i, int64_t o)
{
    return l->order == SHL_WEIGHT_IO ? i * l->out + o : o * l->in + i;
}

void
shl_ref_linear_forward(const shl_ref_linear *l, const double *x, const double *w, const double *b,
                       double *y)
{
    for (int64_t r = 0; r < l->rows; r++) {
        for (int64_t o = 0; o < l->out; o++) {
            double sum = b != NULL ? b[o] : 0.0;
            for (int64_t i = 0; i < l->in; i++) {
                sum += x[r * l->in + i] * w[weight_at(l, i, o)];
            }
            y[r * l->out + o] = sum;
        }
    }
}

void
shl_ref_linear_backward(const shl_ref_linear *l, const double *x, const double *w, const double *dy,
                        double *dx, double *dw, double *db)
{
    for (int64_t r = 0; r < l->rows; r++) {
        for (int64_t o = 0; o < l->out; o++) {
            double g = dy[r * l->out + o];
            for (int64_t i = 0; i < l->in; i++) {
                if (dx != NULL) {
                    dx[r * l->in + i] += g * w[weight_at(l, i, o)];
                }
                if (dw != NULL) {
                    dw[weight_at(l, i, o)] += g * x[r * l->in + i];
                }
            }
            if (db != NULL) {
                db[o] += g;
            }
        }
    }
}

void
shl_ref_layernorm_forward(int64_t rows, int64_t cols, double eps, const double *x, const double *w,
                          const double *b, double *y, double *mean, double *rstd)
{
    double n = (double)cols;
    for (int64_t r = 0; r < rows; r++) {
        const double *xr = x + r * cols;
        double m = 0.0, var = 0.0;
        for (int64_t c = 0; c < cols; c++) {
            m += xr[c] / n;
        }
        for (int64_t c = 0; c < cols; c++) {
            var += (xr[c] - m) * (xr[c] - m) / n;
        }
        mean[r] = m;
        rstd[r] = 1.0 / sqrt(var + eps);
        for (int64_t c = 0; c < cols; c++) {
            y[r * cols + c] = (xr[c] - m) * rstd[r] * w[c] + b[c];
        }
    }
}

void
shl_ref_layernorm_backward(int64_t rows, int64_t cols, const double *x, const double *w,
                           const double *mean, const double *rstd, const double *dy, double *dx,
                           double *dw, double *db)
{
    double n = (double)cols;
    for (int64_t r = 0; r < rows; r++) {
        double g_mean = 0.0, gx_mean = 0.0;
        for (int64_t c = 0; c < cols; c++) {
            double xhat = (x[r * cols + c] - mean[r]) * rstd[r], g = dy[r * cols + c] * w[c];
            g_mean += g / n;
            gx_mean += g * xhat / n;
            dw[c] += dy[r * cols + c] * xhat;
            db[c] += dy[r * cols + c];
        }
        for (int64_t c = 0; c < cols; c++) {
            double xhat = (x[r * cols + c] - mean[r]) * rstd[r], g = dy[r * cols + c] * w[c];
            dx[r * cols + c] += rstd[r] * (g - g_mean - xhat * gx_mean);
        }
    }
}

void
shl_ref_rmsnorm_forward(int64_t rows, int64_t cols, double eps, const double *x, const double *w,
                        double *y, double *rstd)
{
    for (int64_t r = 0; r < rows; r++) {
        double sum = 0.0;
        for (int64_t c = 0; c < cols; c++) {
            sum += x[r * cols + c] * x[r * cols + c];
        }
        rstd[r] = 1.0 / sqrt(sum / (double)cols + eps);
        for (int64_t c = 0; c < cols; c++) {
            y[r * cols + c] = x[r * cols + c] * rstd[r] * w[c];
        }
    }
}

void
shl_ref_rmsnorm_backward(int64_t rows, int64_t cols, const double *x, const double *w,
                         const double *rstd, const double *dy, double *dx, double *dw)
{
    for (int64_t r = 0; r < rows; r++) {
        double mean = 0.0;
        for (int64_t c = 0; c < cols; c++) {
            double xhat = x[r * cols + c] * rstd[r], g = dy[r * cols + c] * w[c];
            mean += g * xhat / (double)cols;
            if (dw != NULL) {
                dw[c] += dy[r * cols + c] * xhat;
            }
        }
        for (int64_t c = 0; c < cols; c++) {
            double xhat = x[r * cols + c] * rstd[r], g = dy[r * cols + c] * w[c];
            dx[r * cols + c] += rstd[r] * (g - xhat * mean);
        }
    }
}

void
shl_ref_rope(const shl_rope_args *a, int64_t heads, int64_t stride, double *x)
{
    int64_t half = a->head_dim / 2;
    for (int64_t r = 0; r < a->rows; r++) {
        double position = (double)(a->first_position + r % a->seq);
        for (int64_t i = 0; i < heads * half; i++) {
            double *first = x + r * stride + i / half * a->head_dim + i % half;
            double angle =
                position * shl_rope_inv_freq(a->theta, &a->scaling, a->head_dim, i % half);
            angle = a->inverse ? -angle : angle;
            double x1 = first[0], x2 = first[half];
            first[0] = x1 * cos(angle) - x2 * sin(angle);
            first[half] = x2 * cos(angle) + x1 * sin(angle);
        }
    }
}

double
shl_ref_silu(double x)
{
    return x / (1.0 + exp(-x));
}

double
shl_ref_silu_slope(double x)
{
    double s = 1.0 / (1.0 + exp(-x)), t = 1.0 / (1.0 + exp(x)); /* t = 1 - s */
    return s + (s * t > 0.0 ? x * s * t : 0.0);
}

/* 1 / (1 + exp(-2u)) = (1 + tanh(u)) / 2 without its cancellation. */
static double
gelu_sigmoid(double x)
{
    double u = sqrt(2.0 / acos(-1.0)) * (x + 0.044715 * x * x * x);
    return 1.0 / (1.0 + exp(-2.0 * u));
}

double
shl_ref_gelu(double x)
{
    return x * gelu_sigmoid(x);
}

double
shl_ref_gelu_slope(double x)
{
    double s = gelu_sigmoid(x), t = 1.0 - s;
    if (s > 0.5) {
        t = gelu_sigmoid(-x);
    }
    double du = sqrt(2.0 / acos(-1.0)) * (1.0 + 3.0 * 0.044715 * x * x);
    return s + (s * t > 0.0 ? x * 2.0 * du * s * t : 0.0);
}

/* Where head h of sequence b's token t starts: in q (and y, with its own stride), and in k and v. */
static int64_t
query_at(const shl_attention_args *a, int64_t stride, int64_t b, int64_t t, int64_t h)
{
    return (b * a->seq + t) * stride + h * a->head_dim;
}

static int64_t
key_at(const shl_attention_args *a, int64_t b, int64_t t, int64_t h)
{
    return query_at(a, a->kv_stride, b, t, h / (a->heads / a->kv_heads));
}

static double
dot(const double *x, const double *y, int64_t n)
{
    double sum = 0.0;
    for (int64_t i = 0; i < n; i++) {
        sum += x[i] * y[i];
    }
    return sum;
}

/* Log sum exp of the scaled scores that query i sees. */
static double
row_lse(const shl_attention_args *a, const double *q, const double *k, int64_t b, int64_t h,
        int64_t i)
{
    const double *qi = q + query_at(a, a->q_stride, b, i, h);
    double scale = (double)a->scale, top = -HUGE_VAL, sum = 0.0;
    for (int64_t j = 0; j <= i; j++) {
        top = fmax(top, scale * dot(qi, k + key_at(a, b, j, h), a->head_dim));
    }
    for (int64_t j = 0; j <= i; j++) {
        sum += exp(scale * dot(qi, k + key_at(a, b, j, h), a->head_dim) - top);
    }
    return top + log(sum);
}

/* The weight of key j for query i. */
static double
pair_weight(const shl_attention_args *a, const double *q, const double *k, int64_t b, int64_t h,
            int64_t i, int64_t j, double lse)
{
    const double *qi = q + query_at(a, a->q_stride, b, i, h);
    return exp((double)a->scale * dot(qi, k + key_at(a, b, j, h), a->head_dim) - lse);
}

/* What dropout makes of that weight: times 0 or 1 / (1 - p). */
static double
pair_factor(const shl_attention_args *a, int64_t b, int64_t h, int64_t i, int64_t j)
{
    if (a->dropout_p == 0.0) {
        return 1.0;
    }
    int64_t head = (a->first_sequence + b) * a->heads + h;
    uint64_t index = (uint64_t)((head * a->seq + i) * a->seq + j);
    uint32_t word = shl_op_dropout_word(a->dropout_seed, a->dropout_stream, index);
    return word >= shl_op_dropout_bound(a->dropout_p) ? 1.0 / (1.0 - a->dropout_p) : 0.0;
}

static void
forward_row(const shl_attention_args *a, const double *q, const double *k, const double *v,
            int64_t b, int64_t h, int64_t i, double *y, double *lse)
{
    *lse = row_lse(a, q, k, b, h, i);
    memset(y, 0, (size_t)a->head_dim * sizeof(double));
    for (int64_t j = 0; j <= i; j++) {
        double p = pair_weight(a, q, k, b, h, i, j, *lse) * pair_factor(a, b, h, i, j);
        for (int64_t d = 0; d < a->head_dim; d++) {
            y[d] += p * v[key_at(a, b, j, h) + d];
        }
    }
}

void
shl_ref_attention_forward(const shl_attention_args *a, const double *q, const double *k,
                          const double *v, double *y, double *lse)
{
    int64_t y_stride = a->heads * a->head_dim;
    for (int64_t b = 0; b < a->batch; b++) {
        for (int64_t h = 0; h < a->heads; h++) {
            for (int64_t i = 0; i < a->seq; i++) {
                forward_row(a, q, k, v, b, h, i, y + query_at(a, y_stride, b, i, h),
                            lse + (b * a->heads + h) * a->seq + i);
            }
        }
    }
}

/* ds = p (dp - sum p dp), dp = m dy . v with dropout's factor m; then dq, dk, dv of one query row. */
static void
backward_row(const shl_attention_args *a, const double *q, const double *k, const double *v,
             const double *dy, int64_t b, int64_t h, int64_t i, double *dq, double *dk, double *dv)
{
    int64_t dim = a->head_dim, at_q = query_at(a, a->q_stride, b, i, h);
    const double *dyi = dy + query_at(a, a->heads * dim, b, i, h);
    double lse = row_lse(a, q, k, b, h, i), delta = 0.0;
    for (int64_t j = 0; j <= i; j++) {
        double p = pair_weight(a, q, k, b, h, i, j, lse) * pair_factor(a, b, h, i, j);
        delta += p * dot(dyi, v + key_at(a, b, j, h), dim);
    }
    for (int64_t j = 0; j <= i; j++) {
        int64_t at_k = key_at(a, b, j, h);
        double p = pair_weight(a, q, k, b, h, i, j, lse), factor = pair_factor(a, b, h, i, j);
        double ds = p * (factor * dot(dyi, v + at_k, dim) - delta) * (double)a->scale;
        for (int64_t d = 0; d < dim; d++) {
            dq[at_q + d] += ds * k[at_k + d];
            dk[at_k + d] += ds * q[at_q + d];
            dv[at_k + d] += p * factor * dyi[d];
        }
    }
}

void
shl_ref_attention_backward(const shl_attention_args *a, const double *q, const double *k,
                           const double *v, const double *dy, double *dq, double *dk, double *dv)
{
    size_t head_bytes = (size_t)a->head_dim * sizeof(double);
    for (int64_t b = 0; b < a->batch; b++) {
        for (int64_t t = 0; t < a->seq; t++) {
            for (int64_t h = 0; h < a->heads; h++) {
                memset(dq + query_at(a, a->q_stride, b, t, h), 0, head_bytes);
                memset(dk + key_at(a, b, t, h), 0, head_bytes);
                memset(dv + key_at(a, b, t, h), 0, head_bytes);
            }
        }
        for (int64_t h = 0; h < a->heads; h++) {
            for (int64_t i = 0; i < a->seq; i++) {
                backward_row(a, q, k, v, dy, b, h, i, dq, dk, dv);
            }
        }
    }
}

double
shl_ref_cross_entropy(int64_t rows, int64_t vocab, const double *targets, double dloss,
                      double *logits)
{
    double total = 0.0;
    for (int64_t r = 0; r < rows; r++) {
        double *x = logits + r * vocab, top = -HUGE_VAL, sum = 0.0;
        int64_t target = (int64_t)targets[r];
        for (int64_t c = 0; c < vocab; c++) {
            top = fmax(top, x[c]);
        }
        for (int64_t c = 0; c < vocab; c++) {
            sum += exp(x[c] - top);
        }
        bool valid = target != SHL_IGNORE_INDEX;
        total += valid ? top + log(sum) - x[target] : 0.0;
        for (int64_t c = 0; c < vocab; c++) {
            double p = exp(x[c] - top) / sum;
            x[c] = valid ? (p - (c == target ? 1.0 : 0.0)) * dloss : 0.0;
        }
    }
    return total;
}

void
shl_ref_adamw(const shl_adamw_args *a, double *p, double g, double *m, double *v)
{
    double c1 = a->uncorrected ? 1.0 : 1.0 - pow(a->beta1, (double)a->step);
    double c2 = a->uncorrected ? 1.0 : 1.0 - pow(a->beta2, (double)a->step);
    g *= a->grad_scale;
    *p *= 1.0 - a->lr * a->weight_decay;
    *m += (1.0 - a->beta1) * (g - *m);
    *v = a->beta2 * *v + (1.0 - a->beta2) * g * g;
    *p -= a->lr / c1 * *m / (sqrt(*v) / sqrt(c2) + a->eps);
}

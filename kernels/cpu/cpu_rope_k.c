/* kernels/cpu: rotary embedding (Su et al. 2021) in place. A table of cosines and sines per position
 * is made for each call, angles in double: a float's angle would be off by 6e-5 at position 1000. */
#include "kernels/cpu/cpu_slots.h"
#include "kernels/cpu/cpu_typed.h"

/* table[t]: D/2 cosines, D/2 sines. */
static void
make_angles(const shl_rope_args *a, int64_t t, const double *freq, float *table)
{
    int64_t half = a->head_dim / 2;
    float *to = table + t * a->head_dim;
    double position = (double)(a->first_position + t), turn = a->inverse ? -1.0 : 1.0;
    for (int64_t i = 0; i < half; i++) {
        double angle = position * freq[i];
        to[i] = (float)cos(angle);
        to[half + i] = (float)(turn * sin(angle));
    }
}

static inline void
rotate_lanes(vf *x1, vf *x2, vf c, vf s)
{
    vf first = *x1 * c - *x2 * s;
    *x2 = *x2 * c + *x1 * s;
    *x1 = first;
}

/* The head at element `at` of x. */
static inline CPU_ALWAYS void
rotate_head(shl_dtype t, void *x, int64_t at, const float *angles, int64_t half)
{
    int64_t i = 0;
    for (; i + VL <= half; i += VL) {
        vf x1 = vload_as(t, x, at + i), x2 = vload_as(t, x, at + half + i);
        rotate_lanes(&x1, &x2, vload(angles + i), vload(angles + half + i));
        vstore_as(t, x, at + i, x1);
        vstore_as(t, x, at + half + i, x2);
    }
    if (i < half) {
        int64_t m = half - i;
        vf x1 = vload_as_n(t, x, at + i, m), x2 = vload_as_n(t, x, at + half + i, m);
        rotate_lanes(&x1, &x2, vload_n(angles + i, m), vload_n(angles + half + i, m));
        vstore_as_n(t, x, at + i, x1, m);
        vstore_as_n(t, x, at + half + i, x2, m);
    }
}

static inline CPU_ALWAYS void
rotate_row_as(shl_dtype t, const shl_rope_args *a, int64_t row, const float *angles)
{
    int64_t dim = a->head_dim, half = dim / 2;
    for (int64_t h = 0; h < a->heads; h++) {
        rotate_head(t, a->q, row * a->q_stride + h * dim, angles, half);
    }
    for (int64_t h = 0; a->k != NULL && h < a->kv_heads; h++) {
        rotate_head(t, a->k, row * a->kv_stride + h * dim, angles, half);
    }
}

static void
rotate_row(const shl_rope_args *a, int64_t row, const float *angles)
{
    if (a->dtype == SHL_F32) {
        rotate_row_as(SHL_F32, a, row, angles);
    } else if (a->dtype == SHL_BF16) {
        rotate_row_as(SHL_BF16, a, row, angles);
    } else {
        rotate_row_as(SHL_F16, a, row, angles);
    }
}

shl_code
SHL_K(shl_cpu_rope)(shl_stream *s, const void *args, void *work)
{
    const shl_rope_args *a = args;
    double *freq = work; /* [D/2], then the table [T, D] */
    float *table = (float *)work + a->head_dim;
    for (int64_t i = 0; i < a->head_dim / 2; i++) {
        freq[i] = shl_rope_inv_freq(a->theta, &a->scaling, a->head_dim, i);
    }
    int threads = cpu_threads(s, a->rows * a->heads * a->head_dim);
    SHL_PARALLEL_FOR(threads)
    for (int64_t t = 0; t < a->seq; t++) {
        make_angles(a, t, freq, table);
    }
    SHL_PARALLEL_FOR(threads)
    for (int64_t row = 0; row < a->rows; row++) {
        rotate_row(a, row, table + row % a->seq * a->head_dim);
    }
    return SHL_OK;
}

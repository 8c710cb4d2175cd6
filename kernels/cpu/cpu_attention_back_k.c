/* kernels/cpu: causal attention backward: scores are recomputed tile by tile from the saved
 * log-sum-exp (Dao et al. 2022). One task is a (sequence, key/value head), so every sum has one
 * owner and one order. p = exp(s - lse), dv = p^T dy, ds = p (dy v^T - delta), dq = ds k, dk = ds^T q,
 * delta = row sum of dy y. With dropout factors m: dv = (p m)^T dy, ds = p (m dy v^T - delta). */
#include "kernels/cpu/cpu_attention.h"

typedef struct backward_task {
    const shl_attention_args *a;
    int64_t seq, dim, width;
    float *q, *dy, *dq, *delta;     /* of a head, [seq, width]; q times scale */
    float *k_panels, *v_panels, *k; /* of a key block */
    float *dk, *dv;                 /* of a key block, [keys, width] */
    float *p, *ds;                  /* score tiles */
    float *dk_sum, *dv_sum;         /* [seq, dim] of a group of heads; NULL: dk, dv themselves */
    const float *lse;
    attention_drop drop;
} backward_task;

static void
carve(backward_task *t, float *work)
{
    int64_t head = t->seq * t->width, block = SHL_WORK_K * t->width;
    t->q = work;
    t->dy = t->q + head;
    t->dq = t->dy + head;
    t->delta = t->dq + head;
    t->k_panels = t->delta + t->seq;
    t->v_panels = t->k_panels + block;
    t->k = t->v_panels + block;
    t->dk = t->k + block;
    t->dv = t->dk + block;
    t->p = t->dv + block;
    t->ds = t->p + SHL_WORK_Q * SHL_WORK_SCORES;
    if (shl_work_attention_sums(t->a)) {
        t->dk_sum = t->ds + SHL_WORK_Q * SHL_WORK_SCORES;
        t->dv_sum = t->dk_sum + t->seq * t->dim;
    }
}

static void
pack_head(backward_task *t, int64_t b, int64_t h)
{
    const shl_attention_args *a = t->a;
    int64_t y_stride = a->heads * t->dim;
    shl_dtype dt = a->dtype;
    const void *q = attention_at(a->q, dt, b * t->seq * a->q_stride + h * t->dim);
    const void *y = attention_at(a->y, dt, b * t->seq * y_stride + h * t->dim);
    const void *dy = attention_at(a->dy, dt, b * t->seq * y_stride + h * t->dim);
    attention_pack_rows(dt, q, a->q_stride, t->seq, t->dim, t->width, a->scale, t->q);
    attention_pack_rows(dt, dy, y_stride, t->seq, t->dim, t->width, 1.0f, t->dy);
    memset(t->dq, 0, (size_t)(t->seq * t->width) * sizeof(float));
    for (int64_t i = 0; i < t->seq; i++) {
        float sum = 0.0f, room[ATTENTION_ROOM];
        for (int64_t d0 = 0; d0 < t->dim; d0 += ATTENTION_ROOM) {
            int64_t n = t->dim - d0 < ATTENTION_ROOM ? t->dim - d0 : ATTENTION_ROOM;
            const float *yi = cpu_floats(dt, y, i * y_stride + d0, n, room);
            const float *dyi = t->dy + i * t->width + d0;
            for (int64_t d = 0; d < n; d++) {
                sum += dyi[d] * yi[d];
            }
        }
        t->delta[i] = sum;
    }
    t->lse = a->lse + (b * a->heads + h) * t->seq;
    t->drop = attention_drop_of(a, b, h);
}

/* Row r of the tiles: scores and dy v^T become p and ds; zeros from `valid` to the tile's end. */
static void
slope_row(const backward_task *t, int64_t i, int64_t r, int64_t valid, int64_t keys)
{
    float *p = t->p + r * SHL_WORK_SCORES, *ds = t->ds + r * SHL_WORK_SCORES;
    vf lse = vdup(t->lse[i]), delta = vdup(t->delta[i]);
    int64_t j = 0;
    for (; j + VL <= valid; j += VL) {
        vf w = vexp(vload(p + j) - lse);
        vstore(p + j, w);
        vstore(ds + j, w * (vload(ds + j) - delta));
    }
    if (j < valid) {
        vi mask = vmask_n(valid - j);
        vf w = vexp(vload(p + j) - lse);
        vf g = w * (vload(ds + j) - delta);
        vstore(p + j, (vf)(mask & (vi)w));
        vstore(ds + j, (vf)(mask & (vi)g));
    }
    for (j = valid; j < keys; j++) {
        p[j] = 0.0f;
        ds[j] = 0.0f;
    }
}

static void
dropped_slope_row(const backward_task *t, int64_t i, int64_t r, int64_t j0, int64_t valid,
                  int64_t keys)
{
    float factor[SHL_WORK_K];
    attention_factors(&t->drop, i, j0, valid, factor);
    attention_drop_row(t->ds + r * SHL_WORK_SCORES, factor, valid);
    slope_row(t, i, r, valid, keys);
    attention_drop_row(t->p + r * SHL_WORK_SCORES, factor, valid);
}

/* to[keys, width] += weights[rows, keys]^T from[rows, width] over the rows that see each key. */
static void
add_transposed(const backward_task *t, const float *weights, const float *from, int64_t rows,
               int64_t keys, int64_t ahead, float *to)
{
    for (int64_t d = 0; d < t->width; d += TILE_N) {
        for (int64_t j = 0; j < keys; j += TILE_M) {
            int64_t m = keys - j < TILE_M ? keys - j : TILE_M;
            int64_t r = j - ahead > 0 ? j - ahead : 0;
            if (r < rows) {
                tile_rows(m, rows - r, weights + r * SHL_WORK_SCORES + j, 1, SHL_WORK_SCORES,
                          from + r * t->width + d, t->width, to + j * t->width + d, t->width, true);
            }
        }
    }
}

/* Queries [i0, i0 + rows) against the packed key block at j0. */
static void
backward_tile(const backward_task *t, int64_t i0, int64_t rows, int64_t j0, int64_t keys)
{
    int64_t ahead = i0 - j0;
    const float *q = t->q + i0 * t->width, *dy = t->dy + i0 * t->width;
    attention_scores(q, rows, t->dim, t->width, t->k_panels, keys, ahead, t->p);
    attention_scores(dy, rows, t->dim, t->width, t->v_panels, keys, ahead, t->ds);
    for (int64_t r = 0; r < rows; r++) {
        int64_t valid = attention_keys(i0 + r, j0, keys);
        if (t->drop.scale > 0.0f && valid > 0) {
            dropped_slope_row(t, i0 + r, r, j0, valid, keys);
        } else {
            slope_row(t, i0 + r, r, valid, keys);
        }
    }
    add_transposed(t, t->p, dy, rows, keys, ahead, t->dv);
    add_transposed(t, t->ds, q, rows, keys, ahead, t->dk);
    for (int64_t d = 0; d < t->width; d += TILE_N) {
        for (int64_t r = 0; r < rows; r += TILE_M) {
            int64_t m = rows - r < TILE_M ? rows - r : TILE_M;
            int64_t end = attention_keys(i0 + r + m - 1, j0, keys);
            tile_rows(m, end, t->ds + r * SHL_WORK_SCORES, SHL_WORK_SCORES, 1, t->k + d, t->width,
                      t->dq + (i0 + r) * t->width + d, t->width, true);
        }
    }
}

/* Writes rows of a packed gradient, which is spoilt, back to their strides. */
static void
unpack(shl_dtype dtype, float *packed, int64_t width, void *dst, int64_t stride, int64_t n,
       int64_t dim, float scale, bool add)
{
    const float *from = packed;
    float *to = dst;
    for (int64_t i = 0; dtype != SHL_F32 && i < n; i++) {
        for (int64_t d = 0; d < dim; d++) {
            packed[i * width + d] *= scale;
        }
        cpu_narrow(dtype, packed + i * width, dst, i * stride, dim);
    }
    for (int64_t i = 0; dtype == SHL_F32 && i < n; i++) {
        for (int64_t d = 0; d < dim; d++) {
            float g = from[i * width + d] * scale;
            to[i * stride + d] = add ? to[i * stride + d] + g : g;
        }
    }
}

/* dk and dv of a key block: to where they belong, or to the sum over the group's heads. */
static void
unpack_keys(const backward_task *t, int64_t at, int64_t j0, int64_t keys, bool add)
{
    const shl_attention_args *a = t->a;
    if (t->dk_sum != NULL) {
        int64_t to = j0 * t->dim;
        unpack(SHL_F32, t->dk, t->width, t->dk_sum + to, t->dim, keys, t->dim, 1.0f, add);
        unpack(SHL_F32, t->dv, t->width, t->dv_sum + to, t->dim, keys, t->dim, 1.0f, add);
        return;
    }
    void *dk = shl_elem_ptr(a->dk, a->dtype, at + j0 * a->kv_stride);
    void *dv = shl_elem_ptr(a->dv, a->dtype, at + j0 * a->kv_stride);
    unpack(a->dtype, t->dk, t->width, dk, a->kv_stride, keys, t->dim, 1.0f, add);
    unpack(a->dtype, t->dv, t->width, dv, a->kv_stride, keys, t->dim, 1.0f, add);
}

static void
backward_head(backward_task *t, int64_t b, int64_t h, int64_t kv_head, bool add)
{
    const shl_attention_args *a = t->a;
    shl_dtype dt = a->dtype;
    int64_t at = b * t->seq * a->kv_stride + kv_head * t->dim;
    pack_head(t, b, h);
    for (int64_t j0 = 0; j0 < t->seq; j0 += SHL_WORK_K) {
        int64_t keys = t->seq - j0 < SHL_WORK_K ? t->seq - j0 : SHL_WORK_K;
        const void *k = attention_at(a->k, dt, at + j0 * a->kv_stride);
        const void *v = attention_at(a->v, dt, at + j0 * a->kv_stride);
        attention_pack_panels(dt, k, a->kv_stride, keys, t->dim, t->k_panels);
        attention_pack_panels(dt, v, a->kv_stride, keys, t->dim, t->v_panels);
        attention_pack_rows(dt, k, a->kv_stride, keys, t->dim, t->width, 1.0f, t->k);
        memset(t->dk, 0, (size_t)(keys * t->width) * sizeof(float));
        memset(t->dv, 0, (size_t)(keys * t->width) * sizeof(float));
        for (int64_t i0 = j0; i0 < t->seq; i0 += SHL_WORK_Q) {
            int64_t rows = t->seq - i0 < SHL_WORK_Q ? t->seq - i0 : SHL_WORK_Q;
            backward_tile(t, i0, rows, j0, keys);
        }
        unpack_keys(t, at, j0, keys, add);
    }
    void *dq = shl_elem_ptr(a->dq, dt, b * t->seq * a->q_stride + h * t->dim);
    unpack(dt, t->dq, t->width, dq, a->q_stride, t->seq, t->dim, a->scale, false);
}

shl_code
SHL_K(shl_cpu_attention_backward)(shl_stream *s, const void *args, void *work)
{
    const shl_attention_args *a = args;
    int threads = shl_work_attention_threads(a, true, s->device->config.threads);
    int64_t elems = shl_work_attention_elems(a, true);
    int64_t tasks = a->batch * a->kv_heads, group = a->heads / a->kv_heads;
    SHL_PARALLEL_FOR(threads)
    for (int64_t task = 0; task < tasks; task++) {
        int64_t b = task / a->kv_heads, kv_head = task % a->kv_heads;
        backward_task t = {
            .a = a, .seq = a->seq, .dim = a->head_dim, .width = shl_round_up(a->head_dim, TILE_N)};
        carve(&t, (float *)work + cpu_thread() * elems);
        for (int64_t g = 0; g < group; g++) {
            backward_head(&t, b, kv_head * group + g, kv_head, g > 0);
        }
        if (t.dk_sum != NULL) {
            int64_t at = b * t.seq * a->kv_stride + kv_head * t.dim;
            unpack(a->dtype, t.dk_sum, t.dim, shl_elem_ptr(a->dk, a->dtype, at), a->kv_stride,
                   t.seq, t.dim, 1.0f, false);
            unpack(a->dtype, t.dv_sum, t.dim, shl_elem_ptr(a->dv, a->dtype, at), a->kv_stride,
                   t.seq, t.dim, 1.0f, false);
        }
    }
    return SHL_OK;
}

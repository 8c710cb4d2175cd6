/* kernels/cpu: causal attention by tiles with an online softmax (Dao et al. 2022). One task is a
 * (sequence, head); keys and values are packed once per task, scores exist one tile at a time. */
#include "kernels/cpu/cpu_attention.h"

/* Row state of a query block: running maximum and sum, scores, unnormalised output. */
typedef struct forward_tile {
    float *q, *y, *scores, *top, *sum;
    int64_t i0, rows; /* queries [i0, i0 + rows) */
    int64_t dim, width;
    attention_drop drop;
} forward_tile;

/* Turns `valid` scores of row r into weights against the running maximum; zero up to `end`. */
static void
softmax_row(forward_tile *t, int64_t r, int64_t valid, int64_t end)
{
    float *x = t->scores + r * SHL_WORK_SCORES;
    int64_t full = valid / VL * VL;
    vi mask = vmask_n(valid - full);
    vf best = vdup(t->top[r]);
    for (int64_t i = 0; i < full; i += VL) {
        best = vmax(best, vload(x + i));
    }
    if (full < valid) {
        best = vmax(best, vsel(mask, vload(x + full), best));
    }
    float top = vmax_lane(best);
    vf at = vdup(top), sum = vdup(0.0f);
    for (int64_t i = 0; i < full; i += VL) {
        vf e = vexp(vload(x + i) - at);
        vstore(x + i, e);
        sum += e;
    }
    if (full < valid) {
        vf e = (vf)(mask & (vi)vexp(vload(x + full) - at));
        vstore(x + full, e);
        sum += e;
    }
    for (int64_t i = valid; i < end; i++) {
        x[i] = 0.0f;
    }
    if (top > t->top[r]) {
        float keep = vexp(vdup(t->top[r] - top))[0];
        keep = t->sum[r] > 0.0f ? keep : 0.0f;
        t->sum[r] *= keep;
        for (int64_t d = 0; d < t->width; d += VL) {
            vstore(t->y + r * t->width + d, vload(t->y + r * t->width + d) * vdup(keep));
        }
        t->top[r] = top;
    }
    t->sum[r] += vsum(sum);
}

/* Behind the sum: it is over what the softmax gives. */
static void
drop_row(const forward_tile *t, int64_t r, int64_t j0, int64_t valid)
{
    float factor[SHL_WORK_K];
    if (t->drop.scale > 0.0f) {
        attention_factors(&t->drop, t->i0 + r, j0, valid, factor);
        attention_drop_row(t->scores + r * SHL_WORK_SCORES, factor, valid);
    }
}

/* One query block against the key block at j0: scores, weights, y += weights v. */
static void
forward_block(forward_tile *t, int64_t j0, const float *k_panels, const float *v)
{
    int64_t keys = t->i0 + t->rows - j0;
    keys = keys < SHL_WORK_K ? keys : SHL_WORK_K;
    attention_scores(t->q, t->rows, t->dim, t->dim, k_panels + j0 * t->dim, keys, t->i0 - j0,
                     t->scores);
    for (int64_t r0 = attention_first_row(0, t->i0 - j0); r0 < t->rows; r0 += TILE_M) {
        int64_t m = t->rows - r0 < TILE_M ? t->rows - r0 : TILE_M;
        int64_t end = attention_keys(t->i0 + r0 + m - 1, j0, keys);
        for (int64_t r = r0; r < r0 + m; r++) {
            int64_t valid = attention_keys(t->i0 + r, j0, keys);
            if (valid > 0) {
                softmax_row(t, r, valid, end);
                drop_row(t, r, j0, valid);
            } else {
                memset(t->scores + r * SHL_WORK_SCORES, 0, (size_t)end * sizeof(float));
            }
        }
        for (int64_t d = 0; d < t->width; d += TILE_N) {
            tile_rows(m, end, t->scores + r0 * SHL_WORK_SCORES, SHL_WORK_SCORES, 1,
                      v + j0 * t->width + d, t->width, t->y + r0 * t->width + d, t->width, true);
        }
    }
}

/* y / sum and lse = max + log(sum). */
static void
forward_finish(const forward_tile *t, shl_dtype dtype, void *y, int64_t y_stride, float *lse)
{
    for (int64_t r = 0; r < t->rows; r++) {
        float scale = 1.0f / t->sum[r];
        float *from = t->y + r * t->width;
        float *to = dtype == SHL_F32 ? (float *)y + r * y_stride : from;
        for (int64_t d = 0; d < t->dim; d++) {
            to[d] = from[d] * scale;
        }
        if (dtype != SHL_F32) {
            cpu_narrow(dtype, from, y, r * y_stride, t->dim);
        }
        lse[r] = t->top[r] + logf(t->sum[r]);
    }
}

static void
forward_head(const shl_attention_args *a, int64_t b, int64_t h, float *work)
{
    int64_t seq = a->seq, dim = a->head_dim, width = shl_round_up(dim, TILE_N);
    int64_t padded = shl_round_up(seq, TILE_N);
    int64_t kv_head = h / (a->heads / a->kv_heads);
    shl_dtype dt = a->dtype;
    int64_t at_kv = b * seq * a->kv_stride + kv_head * dim;
    const void *k = attention_at(a->k, dt, at_kv), *v = attention_at(a->v, dt, at_kv);
    const void *q = attention_at(a->q, dt, b * seq * a->q_stride + h * dim);
    void *y = shl_elem_ptr(a->y, dt, (b * seq * a->heads + h) * dim);
    float *k_panels = work, *v_rows = k_panels + padded * dim;
    forward_tile t = {.q = v_rows + seq * width, .dim = dim, .width = width};
    t.drop = attention_drop_of(a, b, h);
    t.y = t.q + SHL_WORK_Q * width;
    t.scores = t.y + SHL_WORK_Q * width;
    t.top = t.scores + SHL_WORK_Q * SHL_WORK_SCORES;
    t.sum = t.top + SHL_WORK_Q;
    attention_pack_panels(dt, k, a->kv_stride, seq, dim, k_panels);
    attention_pack_rows(dt, v, a->kv_stride, seq, dim, width, 1.0f, v_rows);
    for (t.i0 = 0; t.i0 < seq; t.i0 += SHL_WORK_Q) {
        t.rows = seq - t.i0 < SHL_WORK_Q ? seq - t.i0 : SHL_WORK_Q;
        attention_pack_rows(dt, attention_at(q, dt, t.i0 * a->q_stride), a->q_stride, t.rows, dim,
                            dim, a->scale, t.q);
        memset(t.y, 0, (size_t)(t.rows * width) * sizeof(float));
        for (int64_t r = 0; r < t.rows; r++) {
            t.top[r] = -INFINITY;
            t.sum[r] = 0.0f;
        }
        for (int64_t j0 = 0; j0 < t.i0 + t.rows; j0 += SHL_WORK_K) {
            forward_block(&t, j0, k_panels, v_rows);
        }
        forward_finish(&t, dt, shl_elem_ptr(y, dt, t.i0 * a->heads * dim), a->heads * dim,
                       a->lse + (b * a->heads + h) * seq + t.i0);
    }
}

shl_code
SHL_K(shl_cpu_attention_forward)(shl_stream *s, const void *args, void *work)
{
    const shl_attention_args *a = args;
    int threads = shl_work_attention_threads(a, false, s->device->config.threads);
    int64_t elems = shl_work_attention_elems(a, false);
    int64_t tasks = a->batch * a->heads;
    SHL_PARALLEL_FOR(threads)
    for (int64_t task = 0; task < tasks; task++) {
        forward_head(a, task / a->heads, task % a->heads, (float *)work + cpu_thread() * elems);
    }
    return SHL_OK;
}

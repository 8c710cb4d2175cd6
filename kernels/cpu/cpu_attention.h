/* kernels/cpu: what attention's forward and backward share: packing, causal bounds, score tiles.
 * Included only by *_k.c files. */
#ifndef SHL_CPU_CPU_ATTENTION_H
#define SHL_CPU_CPU_ATTENTION_H

#include "kernels/cpu/cpu_random.h"
#include "kernels/cpu/cpu_slots.h"
#include "kernels/cpu/cpu_tile.h"
#include "kernels/cpu/cpu_typed.h"
#include "kernels/ops/work.h"

/* Element `index` of an input. */
static inline const void *
attention_at(const void *base, shl_dtype dtype, int64_t index)
{
    return (const char *)base + index * (int64_t)shl_dtype_bytes(dtype);
}

enum { ATTENTION_ROOM = 128 }; /* elements of a head that are widened or rounded at once */

/* Token t of a panel: to[d][t] = row[d]. */
static inline void
attention_pack_token(shl_dtype dtype, const void *row, int64_t dim, int64_t t, float *panel)
{
    float room[ATTENTION_ROOM];
    for (int64_t d0 = 0; d0 < dim; d0 += ATTENTION_ROOM) {
        int64_t n = dim - d0 < ATTENTION_ROOM ? dim - d0 : ATTENTION_ROOM;
        const float *x = cpu_floats(dtype, row, d0, n, room);
        for (int64_t d = 0; d < n; d++) {
            panel[(d0 + d) * TILE_N + t] = x[d];
        }
    }
}

/* Panels of TILE_N tokens: to[panel][d][token], zeros beyond the last token. */
static inline void
attention_pack_panels(shl_dtype dtype, const void *x, int64_t stride, int64_t n, int64_t dim,
                      float *to)
{
    const char *rows = x;
    int64_t row_bytes = stride * (int64_t)shl_dtype_bytes(dtype);
    for (int64_t p = 0; p < n; p += TILE_N) {
        float *panel = to + p * dim;
        for (int64_t t = 0; t < TILE_N && p + t < n; t++) {
            attention_pack_token(dtype, rows + (p + t) * row_bytes, dim, t, panel);
        }
        for (int64_t d = 0; d < dim && n - p < TILE_N; d++) {
            memset(panel + d * TILE_N + n - p, 0, (size_t)(TILE_N - n + p) * sizeof(float));
        }
    }
}

/* Rows of `width` >= dim elements, zeros behind dim, times scale. */
static inline void
attention_pack_rows(shl_dtype dtype, const void *x, int64_t stride, int64_t n, int64_t dim,
                    int64_t width, float scale, float *to)
{
    for (int64_t t = 0; t < n; t++) {
        float *restrict row = to + t * width;
        if (dtype == SHL_F32) {
            const float *from = (const float *)x + t * stride;
            for (int64_t d = 0; d < dim; d++) {
                row[d] = from[d] * scale;
            }
        } else {
            cpu_widen(dtype, x, t * stride, dim, row);
            for (int64_t d = 0; d < dim; d++) {
                row[d] *= scale;
            }
        }
        for (int64_t d = dim; d < width; d++) {
            row[d] = 0.0f;
        }
    }
}

/* Keys of the block [j0, j0 + keys) that query i may see. */
static inline int64_t
attention_keys(int64_t i, int64_t j0, int64_t keys)
{
    int64_t n = i + 1 - j0;
    n = n < keys ? n : keys;
    return n > 0 ? n : 0;
}

/* First row, at a tile's edge, of a query block that sees key j of a key block; `ahead` is the
 * first query's place minus the first key's. */
static inline int64_t
attention_first_row(int64_t j, int64_t ahead)
{
    int64_t r = j - ahead;
    return r > 0 ? r / TILE_M * TILE_M : 0;
}

/* scores[rows, keys] = q k^T (rows of q `width` apart) where any of a tile is visible; the rest is left as it was. */
static inline void
attention_scores(const float *q, int64_t rows, int64_t dim, int64_t width, const float *k_panels,
                 int64_t keys, int64_t ahead, float *scores)
{
    for (int64_t j = 0; j < keys; j += TILE_N) {
        for (int64_t r = attention_first_row(j, ahead); r < rows; r += TILE_M) {
            int64_t m = rows - r < TILE_M ? rows - r : TILE_M;
            tile_rows(m, dim, q + r * width, width, 1, k_panels + j * dim, TILE_N,
                      scores + r * SHL_WORK_SCORES + j, SHL_WORK_SCORES, false);
        }
    }
}

/* Dropout of a head's weights; scale 0: none. */
typedef struct attention_drop {
    uint64_t seed, stream;
    uint64_t first; /* index of the word of query 0, key 0 */
    int64_t seq;
    uint32_t bound;
    float scale;
} attention_drop;

static inline attention_drop
attention_drop_of(const shl_attention_args *a, int64_t b, int64_t h)
{
    uint64_t head = (uint64_t)((a->first_sequence + b) * a->heads + h);
    return (attention_drop){.seed = a->dropout_seed,
                            .stream = a->dropout_stream,
                            .first = head * (uint64_t)a->seq * (uint64_t)a->seq,
                            .seq = a->seq,
                            .bound = shl_op_dropout_bound(a->dropout_p),
                            .scale =
                                a->dropout_p > 0.0 ? (float)(1.0 / (1.0 - a->dropout_p)) : 0.0f};
}

/* Factors of keys [j0, j0 + n) for query i: 0 or scale. n <= SHL_WORK_K. */
static inline void
attention_factors(const attention_drop *drop, int64_t i, int64_t j0, int64_t n, float *factor)
{
    uint32_t room[SHL_WORK_K + CPU_RANDOM_SLACK];
    uint64_t index = drop->first + (uint64_t)(i * drop->seq + j0);
    const uint32_t *word = cpu_random_words(drop->seed, drop->stream, index, n, room);
    for (int64_t j = 0; j < n; j++) {
        factor[j] = word[j] >= drop->bound ? drop->scale : 0.0f;
    }
}

static inline void
attention_drop_row(float *x, const float *factor, int64_t n)
{
    for (int64_t j = 0; j < n; j++) {
        x[j] *= factor[j];
    }
}

#endif

/* kernels/cpu: what attention's forward and backward share: packing, causal bounds, score tiles.
 * Included only by *_k.c files. */
#ifndef SHL_CPU_CPU_ATTENTION_H
#define SHL_CPU_CPU_ATTENTION_H

#include "kernels/cpu/cpu_random.h"
#include "kernels/cpu/cpu_slots.h"
#include "kernels/cpu/cpu_tile.h"
#include "kernels/ops/work.h"

/* Panels of TILE_N tokens: to[panel][d][token], zeros beyond the last token. */
static inline void
attention_pack_panels(const float *x, int64_t stride, int64_t n, int64_t dim, float *to)
{
    for (int64_t p = 0; p < n; p += TILE_N) {
        float *panel = to + p * dim;
        for (int64_t t = 0; t < TILE_N; t++) {
            const float *row = x + (p + t) * stride;
            for (int64_t d = 0; d < dim; d++) {
                panel[d * TILE_N + t] = p + t < n ? row[d] : 0.0f;
            }
        }
    }
}

/* Rows of `width` >= dim elements, zeros behind dim, times scale. */
static inline void
attention_pack_rows(const float *x, int64_t stride, int64_t n, int64_t dim, int64_t width,
                    float scale, float *to)
{
    for (int64_t t = 0; t < n; t++) {
        float *restrict row = to + t * width;
        const float *from = x + t * stride;
        for (int64_t d = 0; d < dim; d++) {
            row[d] = from[d] * scale;
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

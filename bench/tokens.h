/* bench: token streams of a run: bytes of a text file, llm.c .bin token files, or a synthetic stream,
 * cut into windows and served in a global order that only the seed decides. */
#ifndef SHL_BENCH_TOKENS_H
#define SHL_BENCH_TOKENS_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/base/err.h"

typedef struct shl_tokens shl_tokens;

/* Opens a source for windows of seq + 1 tokens, each below vocab.
 * Params: source: NULL = the bundled text (tinyshakespeare.txt, one token per byte); "synthetic" = a
 *         seeded stream without a file; else a path, mapped read-only: an llm.c token file when it
 *         begins with one of its magics (20240520 version 1: uint16; 20240801 version 7: uint32) or
 *         its name ends in .bin, otherwise text.
 * Owner: caller, shl_tokens_close. *out NULL on failure.
 * Errors: SHL_E_IO missing, unreadable or not a regular file; SHL_E_CONFIG empty, truncated, shorter
 *         than one window, wrong header, or a token beyond the vocabulary (the first one is named);
 *         SHL_E_USAGE a vocab or seq that is not positive.
 * Ranks: local. */
shl_code shl_tokens_open(const char *source, int64_t vocab, int64_t seq, uint64_t seed,
                         shl_tokens **out) SHL_MUST_USE;

/* Unmaps; NULL is fine. */
void shl_tokens_close(shl_tokens **t);

/* Takes the last `fraction` of the windows by position (to the nearest, at least one) out of the order:
 * they are never served by shl_tokens_row. Before the first row; 0 takes nothing. Errors: SHL_E_USAGE
 * when the fraction is not below 1 or leaves nothing to train on. */
shl_code shl_tokens_hold_out(shl_tokens *t, double fraction) SHL_MUST_USE;

/* On (as opened): each epoch is a permutation. Off: each epoch is the order of the file. */
void shl_tokens_shuffle(shl_tokens *t, bool on);

/* Non-overlapping windows of seq + 1 tokens per epoch (at least 1), and those held out: window
 * shl_tokens_samples is the first of these. */
int64_t shl_tokens_samples(const shl_tokens *t);
int64_t shl_tokens_held_out(const shl_tokens *t);

/* Whether both read the same file, or both the synthetic stream. */
bool shl_tokens_same_source(const shl_tokens *a, const shl_tokens *b);

/* The window at position `sample` >= 0 of the global order: tokens[0..seq) and targets[0..seq), where
 * targets[i] is the token after tokens[i]. Every epoch of shl_tokens_samples positions is a
 * permutation of all windows that are not held out; it depends on seed and epoch only. Any thread. */
shl_code shl_tokens_row(const shl_tokens *t, int64_t sample, int32_t *tokens,
                        int32_t *targets) SHL_MUST_USE;

/* The window at a place in the file, from 0 to samples + held out. Any thread. */
shl_code shl_tokens_window(const shl_tokens *t, int64_t window, int32_t *tokens,
                           int32_t *targets) SHL_MUST_USE;

#endif

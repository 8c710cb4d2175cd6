/* kernels/base: bounded string building, and the spelling of sizes and counts. */
#ifndef SHL_BASE_STR_H
#define SHL_BASE_STR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/base/err.h"

/* A growing text; zero-initialise or shl_str_init. `text` is always terminated or NULL if empty.
 * A failed append sets `failed` and later appends do nothing: check once at the end. */
typedef struct shl_str {
    char *text;
    size_t len;
    size_t cap;
    bool failed;
} shl_str;

void shl_str_init(shl_str *s);
void shl_str_fini(shl_str *s);
void shl_str_clear(shl_str *s);
void shl_str_add(shl_str *s, const char *fmt, ...) SHL_PRINTF(2, 3);
void shl_str_add_text(shl_str *s, const char *text, size_t len);
/* The text ("" if empty). Borrowed until the next append. */
const char *shl_str_get(const shl_str *s);

/* snprintf into a fixed array, truncating with a terminator; never overruns. */
void shl_strf(char *dst, size_t dst_bytes, const char *fmt, ...) SHL_PRINTF(3, 4);

/* "80GB", "80GiB", "1.5e9", "512", "64KiB" -> bytes. GB is 1e9, GiB 2^30; no unit = bytes; case of
 * the unit is free, one blank may stand before it. Errors: SHL_E_USAGE on garbage, negative, NaN, or
 * above 2^62. */
shl_code shl_parse_bytes(const char *text, size_t *out) SHL_MUST_USE;

/* Bytes per second, above 0: "16GB/s", or a number of bytes. Errors: SHL_E_USAGE. */
shl_code shl_parse_rate(const char *text, double *out) SHL_MUST_USE;

/* "7.5B", "124M", "5e8", "16k", "1000" -> a count (k 1e3, M 1e6, B 1e9, T 1e12). Must be whole. */
shl_code shl_parse_count(const char *text, int64_t *out) SHL_MUST_USE;

/* Whole-string numbers with range; errors name the text and the range. */
shl_code shl_parse_int(const char *text, int64_t min, int64_t max, int64_t *out) SHL_MUST_USE;
shl_code shl_parse_double(const char *text, double min, double max, double *out) SHL_MUST_USE;

/* 1610612736 -> "1.50 GiB" (dst at least 32 bytes). */
void shl_format_bytes(size_t bytes, char *dst, size_t dst_bytes);
/* 124439808 -> "124.4M". */
void shl_format_count(int64_t count, char *dst, size_t dst_bytes);

/* The nearest of n names to `text` by edit distance, or NULL when none is near (distance above
 * max(2, len / 3), or nothing in common). Borrowed from names. */
const char *shl_nearest(const char *text, const char *const *names, size_t n);

/* Where a key stands in a JSON text, which its parser does not keep: the first "key" with a colon behind
 * it, from 1; 0 and 0 when there is none, or an escaped spelling hides it. */
void shl_text_locate_key(const char *text, const char *key, int *line, int *column);

#endif

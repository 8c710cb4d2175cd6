/* kernels/base: bounded string building, and the spelling of sizes and counts.
 * Parsers take the whole text or refuse it, and say what they expected. */
#include "kernels/base/str.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "kernels/base/heap.h"
#include "kernels/base/types.h"

/* Sizes and counts stop here: two of them can still be added in 64 bits. */
#define LARGEST (INT64_C(1) << 62)

void
shl_str_init(shl_str *s)
{
    memset(s, 0, sizeof(*s));
}

void
shl_str_fini(shl_str *s)
{
    shl_heap_free(&s->text);
    shl_str_init(s);
}

void
shl_str_clear(shl_str *s)
{
    s->len = 0;
    s->failed = false;
    if (s->text) {
        s->text[0] = '\0';
    }
}

/* Room for `more` characters and the terminator. */
static bool
reserve(shl_str *s, size_t more)
{
    if (s->failed) {
        return false;
    }
    size_t need = s->len + more + 1;
    if (need <= s->cap) {
        return true;
    }
    size_t cap = s->cap > 0 ? s->cap : 64;
    while (cap < need) {
        cap *= 2;
    }
    if (shl_heap_grow(&s->text, s->cap, cap, 1) != SHL_OK) {
        s->failed = true;
        return false;
    }
    s->cap = cap;
    return true;
}

void
shl_str_add_text(shl_str *s, const char *text, size_t len)
{
    if (reserve(s, len)) {
        memcpy(s->text + s->len, text, len);
        s->len += len;
        s->text[s->len] = '\0';
    }
}

void
shl_str_add(shl_str *s, const char *fmt, ...)
{
    va_list args, again;
    va_start(args, fmt);
    va_copy(again, args);
    int len = vsnprintf(NULL, 0, fmt, args);
    va_end(args);
    if (len < 0) {
        s->failed = true;
    } else if (reserve(s, (size_t)len)) {
        vsnprintf(s->text + s->len, (size_t)len + 1, fmt, again);
        s->len += (size_t)len;
    }
    va_end(again);
}

const char *
shl_str_get(const shl_str *s)
{
    return s->text ? s->text : "";
}

void
shl_strf(char *dst, size_t dst_bytes, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    vsnprintf(dst, dst_bytes, fmt, args);
    va_end(args);
}

typedef struct unit {
    const char *name;
    long double factor;
} unit;

static const unit byte_units[] = {
    {"", 1.0L},       {"b", 1.0L},      {"k", 1e3L},      {"kb", 1e3L},     {"m", 1e6L},
    {"mb", 1e6L},     {"g", 1e9L},      {"gb", 1e9L},     {"t", 1e12L},     {"tb", 1e12L},
    {"p", 1e15L},     {"pb", 1e15L},    {"kib", 0x1p10L}, {"mib", 0x1p20L}, {"gib", 0x1p30L},
    {"tib", 0x1p40L}, {"pib", 0x1p50L},
};

static const unit count_units[] = {
    {"", 1.0L}, {"k", 1e3L}, {"m", 1e6L}, {"b", 1e9L}, {"t", 1e12L},
};

/* "<number><unit>". Long double holds every whole number up to 2^62 exactly. */
static bool
read_with_unit(const char *text, const unit *units, size_t n_units, long double *out)
{
    bool starts_number = isdigit((unsigned char)text[0]) || text[0] == '.';
    if (!starts_number || (text[0] == '0' && (text[1] == 'x' || text[1] == 'X'))) {
        return false;
    }
    char *end;
    long double number = strtold(text, &end);
    if (end == text) {
        return false;
    }
    end += *end == ' ' && end[1] != '\0';
    for (size_t i = 0; i < n_units; i++) {
        if (strcasecmp(end, units[i].name) == 0) {
            *out = number * units[i].factor;
            return true;
        }
    }
    return false;
}

shl_code
shl_parse_bytes(const char *text, size_t *out)
{
    long double value;
    *out = 0;
    if (!read_with_unit(text, byte_units, SHL_ARRAY_LEN(byte_units), &value)) {
        SHL_RAISE(SHL_E_USAGE, "\"%s\" is not a number of bytes", text);
        shl_err_because("expected a number, then B, kB, MB, GB, TB, KiB, MiB, GiB, TiB or nothing");
        return shl_err_advice("write it like 512, 64KiB, 2GiB or 80GB");
    }
    if (!(value <= (long double)LARGEST)) {
        SHL_RAISE(SHL_E_USAGE, "\"%s\" is too many bytes", text);
        return shl_err_because("the largest size is 2^62 bytes");
    }
    *out = (size_t)value;
    return SHL_OK;
}

shl_code
shl_parse_rate(const char *text, double *out)
{
    char bytes[64];
    size_t n = strlen(text), whole = 0;
    *out = 0.0;
    if (n > 2 && strcmp(text + n - 2, "/s") == 0 && n - 2 < sizeof(bytes)) {
        memcpy(bytes, text, n - 2);
        bytes[n - 2] = '\0';
        text = bytes;
    }
    if (shl_parse_bytes(text, &whole) != SHL_OK || whole == 0) {
        SHL_RAISE(SHL_E_USAGE, "\"%s\" is not a rate", text);
        return shl_err_advice("write it like 16GB/s");
    }
    *out = (double)whole;
    return SHL_OK;
}

shl_code
shl_parse_count(const char *text, int64_t *out)
{
    long double value;
    *out = 0;
    if (!read_with_unit(text, count_units, SHL_ARRAY_LEN(count_units), &value)) {
        SHL_RAISE(SHL_E_USAGE, "\"%s\" is not a count", text);
        shl_err_because("expected a number, then k (1e3), M (1e6), B (1e9), T (1e12) or nothing");
        return shl_err_advice("write it like 1000, 16k, 124M or 5e8");
    }
    if (!(value <= (long double)LARGEST)) {
        SHL_RAISE(SHL_E_USAGE, "\"%s\" is too large a count", text);
        return shl_err_because("the largest count is 2^62");
    }
    /* "1.1M" is whole although 1.1L is not exact: allow the rounding of the literal, no more. */
    long double whole = roundl(value);
    if (fabsl(value - whole) > whole * 0x1p-60L) {
        SHL_RAISE(SHL_E_USAGE, "\"%s\" is not a whole count", text);
        return shl_err_because("its value is %.10Lg", value);
    }
    *out = (int64_t)whole;
    return SHL_OK;
}

shl_code
shl_parse_int(const char *text, int64_t min, int64_t max, int64_t *out)
{
    char *end;
    *out = 0;
    errno = 0;
    long long value = strtoll(text, &end, 10);
    bool starts_number = isdigit((unsigned char)text[0]) || text[0] == '-' || text[0] == '+';
    if (!starts_number || end == text || *end != '\0') {
        SHL_RAISE(SHL_E_USAGE, "\"%s\" is not a whole number", text);
        return shl_err_because("expected digits, from %lld to %lld", (long long)min,
                               (long long)max);
    }
    if (errno == ERANGE || value < min || value > max) {
        SHL_RAISE(SHL_E_USAGE, "%s is out of range", text);
        return shl_err_because("it must lie from %lld to %lld", (long long)min, (long long)max);
    }
    *out = value;
    return SHL_OK;
}

shl_code
shl_parse_double(const char *text, double min, double max, double *out)
{
    char *end;
    *out = 0.0;
    double value = strtod(text, &end);
    if (text[0] == '\0' || isspace((unsigned char)text[0]) || end == text || *end != '\0') {
        SHL_RAISE(SHL_E_USAGE, "\"%s\" is not a number", text);
        return shl_err_because("expected a decimal number from %g to %g", min, max);
    }
    /* The form of the test refuses NaN as well. */
    if (!(value >= min && value <= max) || !isfinite(value)) {
        SHL_RAISE(SHL_E_USAGE, "%s is out of range", text);
        return shl_err_because("it must be finite and lie from %g to %g", min, max);
    }
    *out = value;
    return SHL_OK;
}

void
shl_format_bytes(size_t bytes, char *dst, size_t dst_bytes)
{
    static const char *const names[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    if (bytes < 1024) {
        shl_strf(dst, dst_bytes, "%zu B", bytes);
        return;
    }
    double value = (double)bytes;
    size_t i = 0;
    /* 1023.995 would round to "1024.00". */
    while (value >= 1023.995 && i + 1 < SHL_ARRAY_LEN(names)) {
        value /= 1024.0;
        i++;
    }
    shl_strf(dst, dst_bytes, "%.2f %s", value, names[i]);
}

void
shl_format_count(int64_t count, char *dst, size_t dst_bytes)
{
    static const char *const names[] = {"", "k", "M", "B", "T"};
    if (count < 1000 && count > -1000) {
        shl_strf(dst, dst_bytes, "%lld", (long long)count);
        return;
    }
    double value = (double)count;
    size_t i = 0;
    while (fabs(value) >= 999.95 && i + 1 < SHL_ARRAY_LEN(names)) {
        value /= 1000.0;
        i++;
    }
    shl_strf(dst, dst_bytes, "%.1f%s", value, names[i]);
}

#define MAX_NAME 63

/* Levenshtein's distance where two neighbours in the wrong order count once, by rows (optimal string
 * alignment); both texts at most MAX_NAME long. */
static size_t
edit_distance(const char *a, size_t a_len, const char *b, size_t b_len)
{
    size_t rows[3][MAX_NAME + 1];
    size_t *above2 = rows[0], *above = rows[1], *row = rows[2];
    for (size_t j = 0; j <= b_len; j++) {
        row[j] = j;
    }
    for (size_t i = 1; i <= a_len; i++) {
        size_t *free_row = above2;
        above2 = above;
        above = row;
        row = free_row;
        row[0] = i;
        for (size_t j = 1; j <= b_len; j++) {
            size_t best = above[j - 1] + (a[i - 1] != b[j - 1]);
            best = above[j] + 1 < best ? above[j] + 1 : best;
            best = row[j - 1] + 1 < best ? row[j - 1] + 1 : best;
            bool swapped = i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1];
            row[j] = swapped && above2[j - 2] + 1 < best ? above2[j - 2] + 1 : best;
        }
    }
    return row[b_len];
}

const char *
shl_nearest(const char *text, const char *const *names, size_t n)
{
    size_t len = strlen(text);
    size_t limit = len / 3 > 2 ? len / 3 : 2;
    const char *best = NULL;
    if (len > MAX_NAME) {
        return NULL;
    }
    for (size_t i = 0; i < n; i++) {
        size_t name_len = strlen(names[i]);
        if (name_len > MAX_NAME) {
            continue;
        }
        size_t distance = edit_distance(text, len, names[i], name_len);
        /* At a distance of the whole word nothing is left in common. */
        if (distance <= limit && distance < (len > name_len ? len : name_len)) {
            best = names[i];
            limit = distance > 0 ? distance - 1 : 0;
            if (distance == 0) {
                break;
            }
        }
    }
    return best;
}

void
shl_text_locate_key(const char *text, const char *key, int *line, int *column)
{
    size_t len = strlen(key);
    int at_line = 1;
    const char *line_start = text;
    *line = *column = 0;
    for (const char *p = text; *p; p++) {
        if (*p == '\n') {
            at_line++;
            line_start = p + 1;
        }
        if (*p != '"' || strncmp(p + 1, key, len) != 0 || p[1 + len] != '"') {
            continue;
        }
        const char *behind = p + 2 + len;
        behind += strspn(behind, " \t\r\n");
        if (*behind == ':') {
            *line = at_line;
            *column = (int)(p - line_start) + 1;
            return;
        }
    }
}

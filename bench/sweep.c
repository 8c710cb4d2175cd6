/* bench: lists, ranges and their cross product. A value that appears twice is refused: the same row
 * twice is a slip of the pen, not a wish. */
#include "bench/sweep.h"

#include <ctype.h>
#include <string.h>

#include "kernels/base/heap.h"
#include "kernels/base/str.h"

static shl_code
add_value(shl_sweep_axis *axis, const char *text, int64_t number)
{
    for (size_t i = 0; i < axis->n; i++) {
        if (strcmp(axis->values[i].text, text) == 0) {
            SHL_RAISE(SHL_E_USAGE, "--%s: %s appears twice", axis->name, text);
            return shl_err_because("each value of a list is one row of the sweep");
        }
    }
    if (axis->n == SHL_SWEEP_MAX_VALUES) {
        SHL_RAISE(SHL_E_USAGE, "--%s: too many values", axis->name);
        return shl_err_because("a list has at most %d", SHL_SWEEP_MAX_VALUES);
    }
    SHL_TRY(shl_heap_grow(&axis->values, axis->n, axis->n + 1, sizeof(*axis->values)));
    shl_sweep_value *v = &axis->values[axis->n++];
    shl_strf(v->text, sizeof(v->text), "%s", text);
    v->number = number;
    return SHL_OK;
}

/* The next item of a comma list into word; *at moves behind it, and to NULL after the last. */
static shl_code
next_word(const char *name, const char **at, char *word, size_t word_bytes)
{
    size_t len = strcspn(*at, ",");
    if (len == 0 || len >= word_bytes) {
        SHL_RAISE(SHL_E_USAGE, "--%s: %s value in the list", name,
                  len == 0 ? "an empty" : "too long a");
        return shl_err_because("values are separated by single commas, each at most %zu characters",
                               word_bytes - 1);
    }
    memcpy(word, *at, len);
    word[len] = '\0';
    *at = (*at)[len] == ',' ? *at + len + 1 : NULL;
    return SHL_OK;
}

shl_code
shl_sweep_names(const char *name, const char *text, shl_sweep_axis *out)
{
    char word[SHL_SWEEP_WORD_BYTES];
    memset(out, 0, sizeof(*out));
    out->name = name;
    for (const char *at = text; at;) {
        SHL_TRY(next_word(name, &at, word, sizeof(word)));
        SHL_TRY(add_value(out, word, 0));
    }
    return SHL_OK;
}

static shl_code
read_number(const shl_sweep_axis *axis, const char *text, int64_t min, int64_t max, int64_t *out)
{
    int64_t value = 0;
    bool negative = text[0] == '-';
    bool bad = negative || shl_parse_count(text, &value) != SHL_OK;
    if (bad || value < min || value > max) {
        SHL_RAISE(SHL_E_USAGE, "--%s: %s is %s", axis->name, text,
                  bad && !negative ? "not a whole number" : "out of range");
        return shl_err_because("it takes whole numbers from %lld to %lld", (long long)min,
                               (long long)max);
    }
    *out = value;
    return SHL_OK;
}

static shl_code
add_number(shl_sweep_axis *axis, int64_t number)
{
    char text[SHL_SWEEP_WORD_BYTES];
    shl_strf(text, sizeof(text), "%lld", (long long)number);
    return add_value(axis, text, number);
}

/* "A-B", "A-B+S", "A-B*M": from A while not above B. word is cut up. */
static shl_code
add_range(shl_sweep_axis *axis, char *word, char *dash, int64_t min, int64_t max)
{
    int64_t first, last, step = 1;
    char *how = strpbrk(dash + 1, "+*");
    bool multiply = how && *how == '*';
    *dash = '\0';
    if (how) {
        *how = '\0';
        SHL_TRY(read_number(axis, how + 1, multiply ? 2 : 1, INT64_MAX / 4, &step));
    }
    SHL_TRY(read_number(axis, word, min, max, &first));
    SHL_TRY(read_number(axis, dash + 1, min, max, &last));
    if (first > last || (multiply && first == 0)) {
        SHL_RAISE(SHL_E_USAGE, "--%s: the range %s-%s is empty or endless", axis->name, word,
                  dash + 1);
        return shl_err_because("a range runs upward, and one with * begins above 0");
    }
    for (int64_t v = first; v <= last;) {
        SHL_TRY(add_number(axis, v));
        if (multiply ? v > last / step : v > last - step) {
            break;
        }
        v = multiply ? v * step : v + step;
    }
    return SHL_OK;
}

shl_code
shl_sweep_numbers(const char *name, const char *text, int64_t min, int64_t max, shl_sweep_axis *out)
{
    char word[SHL_SWEEP_WORD_BYTES];
    memset(out, 0, sizeof(*out));
    out->name = name;
    for (const char *at = text; at;) {
        SHL_TRY(next_word(name, &at, word, sizeof(word)));
        char *dash = isdigit((unsigned char)word[0]) ? strchr(word, '-') : NULL;
        /* "1e-3" is a bad number, not a range. */
        if (dash && dash[-1] != 'e' && dash[-1] != 'E') {
            SHL_TRY(add_range(out, word, dash, min, max));
        } else {
            int64_t value;
            SHL_TRY(read_number(out, word, min, max, &value));
            SHL_TRY(add_number(out, value));
        }
    }
    return SHL_OK;
}

void
shl_sweep_axis_fini(shl_sweep_axis *axis)
{
    shl_heap_free(&axis->values);
    axis->n = 0;
}

shl_code
shl_sweep_points(const shl_sweep_axis *axes, size_t n, int64_t *out)
{
    int64_t points = 1;
    for (size_t i = 0; i < n; i++) {
        points *= (int64_t)axes[i].n;
        if (points > SHL_SWEEP_MAX_POINTS) {
            SHL_RAISE(SHL_E_USAGE, "the sweep has more than %d rows", SHL_SWEEP_MAX_POINTS);
            return shl_err_because("it is the cross product of all lists");
        }
    }
    *out = points;
    return SHL_OK;
}

const shl_sweep_value *
shl_sweep_at(const shl_sweep_axis *axes, size_t n, int64_t index, size_t which)
{
    for (size_t i = n; i-- > which + 1;) {
        index /= (int64_t)axes[i].n;
    }
    return &axes[which].values[index % (int64_t)axes[which].n];
}

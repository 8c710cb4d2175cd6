/* engines/config: the text of DeepSpeed's keys: one table for parsing, formatting and checking. */
#include "engines/config/zero_text.h"

#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/base/str.h"
#include "kernels/base/types.h"

typedef enum key_type { KEY_ELEMS, KEY_BOOL, KEY_NOT, KEY_REAL, KEY_TEXT, KEY_WORD } key_type;

/* KEY_NOT: the field is true when the key is false. KEY_WORD: the field is true for `word`. */
static const struct key {
    const char *name;
    key_type type;
    size_t at;
    const char *word, *other;
} keys[] = {
    {"prefetch_bucket_size", KEY_ELEMS, offsetof(shl_zero_options, prefetch_elems), NULL, NULL},
    {"param_persistence_threshold", KEY_ELEMS, offsetof(shl_zero_options, persistence_elems), NULL,
     NULL},
    {"model_persistence_threshold", KEY_ELEMS, offsetof(shl_zero_options, model_persistence_elems),
     NULL, NULL},
    {"max_live_parameters", KEY_ELEMS, offsetof(shl_zero_options, max_live_elems), NULL, NULL},
    {"max_reuse_distance", KEY_ELEMS, offsetof(shl_zero_options, max_reuse_elems), NULL, NULL},
    {"module_granularity_threshold", KEY_ELEMS, offsetof(shl_zero_options, granularity_elems), NULL,
     NULL},
    {"allgather_sequential", KEY_BOOL, offsetof(shl_zero_options, gather_sequential), NULL, NULL},
    {"leaf_names", KEY_TEXT, offsetof(shl_zero_options, leaf_names), NULL, NULL},
    {"leaf_suffixes", KEY_TEXT, offsetof(shl_zero_options, leaf_suffixes), NULL, NULL},
    {"leaf_classes", KEY_TEXT, offsetof(shl_zero_options, leaf_classes), NULL, NULL},
    {"gather_16bit_weights_on_model_save", KEY_BOOL, offsetof(shl_zero_options, gather_on_save),
     NULL, NULL},
    {"overlap_comm", KEY_NOT, offsetof(shl_zero_options, serial_reduce), NULL, NULL},
    {"layout", KEY_WORD, offsetof(shl_zero_options, single_cut), "single-cut", "bucketed"},
    {"gradient_allreduce_op", KEY_WORD, offsetof(shl_zero_options, sum_gradients), "sum", "mean"},
    {"prescale_gradients", KEY_BOOL, offsetof(shl_zero_options, prescale), NULL, NULL},
    {"gradient_predivide_factor", KEY_REAL, offsetof(shl_zero_options, predivide), NULL, NULL},
    {"reduce_scatter", KEY_NOT, offsetof(shl_zero_options, whole_reduce), NULL, NULL},
};

void
shl_zero_options_init(shl_zero_options *z)
{
    *z = (shl_zero_options){.given = true,
                            .prefetch_elems = 50000000,
                            .persistence_elems = 100000,
                            .model_persistence_elems = INT64_MAX,
                            .max_live_elems = 1000000000,
                            .max_reuse_elems = 1000000000,
                            .predivide = 1.0};
}

static shl_code
raise_value(const struct key *k, const char *value, const char *wanted)
{
    SHL_RAISE(SHL_E_USAGE, "%s is \"%.60s\"", k->name, value);
    return shl_err_because("it must be %s", wanted);
}

/* 5e7 is a whole number too. */
static shl_code
parse_elems(const struct key *k, const char *value, int64_t *out)
{
    char *end = NULL;
    errno = 0;
    *out = strtoll(value, &end, 10);
    if (end != value && *end == '\0' && errno == 0) {
        return SHL_OK;
    }
    double real = strtod(value, &end);
    if (end == value || *end != '\0' || !(real >= 0.0 && real < 9e18) ||
        (double)(int64_t)real < real) {
        return raise_value(k, value, "a whole number of elements");
    }
    *out = (int64_t)real;
    return SHL_OK;
}

static shl_code
parse_flag(const struct key *k, const char *value, const char *yes, const char *no, bool *out)
{
    char wanted[64];
    *out = strcmp(value, yes) == 0;
    if (*out || strcmp(value, no) == 0) {
        return SHL_OK;
    }
    shl_strf(wanted, sizeof(wanted), "%s or %s", yes, no);
    return raise_value(k, value, wanted);
}

static shl_code
parse_value(const struct key *k, const char *value, shl_zero_options *z)
{
    void *field = (char *)z + k->at;
    char *end = NULL;
    switch (k->type) {
    case KEY_ELEMS:
        return parse_elems(k, value, field);
    case KEY_BOOL:
        return parse_flag(k, value, "true", "false", field);
    case KEY_NOT:
        return parse_flag(k, value, "false", "true", field);
    case KEY_WORD:
        return parse_flag(k, value, k->word, k->other, field);
    case KEY_REAL:
        *(double *)field = strtod(value, &end);
        return end != value && *end == '\0' ? SHL_OK : raise_value(k, value, "a number");
    case KEY_TEXT:
        break;
    }
    if (strlen(value) >= SHL_ZERO_LEAF_BYTES) {
        return raise_value(k, value, "a list below 256 bytes");
    }
    shl_strf(field, SHL_ZERO_LEAF_BYTES, "%s", value);
    return SHL_OK;
}

static shl_code
parse_entry(char *entry, shl_zero_options *z)
{
    const char *names[SHL_ARRAY_LEN(keys)];
    char *value = strchr(entry, '=');
    if (value != NULL) {
        *value++ = '\0';
    }
    for (size_t i = 0; i < SHL_ARRAY_LEN(keys); ++i) {
        names[i] = keys[i].name;
        if (strcmp(entry, keys[i].name) == 0 && value != NULL) {
            return parse_value(&keys[i], value, z);
        }
    }
    const char *near = shl_nearest(entry, names, SHL_ARRAY_LEN(keys));
    SHL_RAISE(SHL_E_USAGE, "zero: \"%.60s\" is no key with a value", entry);
    shl_err_because("keys are DeepSpeed's, KEY=VALUE with ; between");
    return shl_err_advice("%s=...", near != NULL ? near : keys[0].name);
}

shl_code
shl_zero_options_parse(const char *text, shl_zero_options *out)
{
    char copy[SHL_ZERO_TEXT_BYTES];
    *out = (shl_zero_options){0};
    if (text == NULL || text[0] == '\0') {
        return SHL_OK;
    }
    if (strlen(text) >= sizeof(copy)) {
        return SHL_RAISE(SHL_E_USAGE, "zero: more than %zu bytes of keys", sizeof(copy) - 1);
    }
    shl_zero_options_init(out);
    shl_strf(copy, sizeof(copy), "%s", text);
    for (char *at = copy; at != NULL && *at != '\0';) {
        char *next = strchr(at, ';');
        if (next != NULL) {
            *next++ = '\0';
        }
        SHL_TRY(parse_entry(at, out));
        at = next;
    }
    return SHL_OK;
}

void
shl_zero_options_format(const shl_zero_options *z, char *dst, size_t cap)
{
    size_t used = 0;
    dst[0] = '\0';
    for (size_t i = 0; z->given && i < SHL_ARRAY_LEN(keys); ++i) {
        const struct key *k = &keys[i];
        const void *field = (const char *)z + k->at;
        const char *gap = used > 0 ? ";" : "";
        bool flag = k->type != KEY_ELEMS && k->type != KEY_REAL && k->type != KEY_TEXT &&
                    *(const bool *)field;
        SHL_ASSERT(used < cap);
        if (k->type == KEY_ELEMS) {
            shl_strf(dst + used, cap - used, "%s%s=%lld", gap, k->name,
                     (long long)*(const int64_t *)field);
        } else if (k->type == KEY_REAL) {
            shl_strf(dst + used, cap - used, "%s%s=%.17g", gap, k->name, *(const double *)field);
        } else if (k->type == KEY_TEXT) {
            shl_strf(dst + used, cap - used, "%s%s=%s", gap, k->name, (const char *)field);
        } else {
            const char *yes = k->type == KEY_WORD ? k->word : "true";
            const char *no = k->type == KEY_WORD ? k->other : "false";
            shl_strf(dst + used, cap - used, "%s%s=%s", gap, k->name,
                     flag != (k->type == KEY_NOT) ? yes : no);
        }
        used += strlen(dst + used);
    }
}

/* As DeepSpeed, which reads the keys nowhere in the refused cases, or fails there. */
static shl_code
check_scaling(const shl_engine_config *c)
{
    const shl_zero_options *z = &c->zero;
    bool predivides = z->predivide < 1.0 || z->predivide > 1.0;
    const char *key = z->prescale ? "prescale_gradients" : "gradient_predivide_factor";
    if (!z->given || (!z->prescale && !predivides)) {
        return SHL_OK;
    }
    if (z->sum_gradients) {
        SHL_RAISE(SHL_E_USAGE, "%s beside a sum of gradients", key);
        return shl_err_because("gradient_allreduce_op is sum: nothing is divided");
    }
    if (z->prescale && predivides) {
        SHL_RAISE(SHL_E_USAGE, "prescale_gradients beside gradient_predivide_factor");
        return shl_err_because("with it gradients are divided by all ranks at once");
    }
    if (c->strategy != SHL_DDP && !z->whole_reduce) {
        SHL_RAISE(SHL_E_USAGE, "%s beside reduce_scatter", key);
        shl_err_because("DeepSpeed refuses it too: a reduce-scatter divides before it sums");
        return shl_err_advice("reduce_scatter=false, or no such key");
    }
    return SHL_OK;
}

shl_code
shl_zero_options_check(const shl_engine_config *c)
{
    const shl_zero_options *z = &c->zero;
    for (size_t i = 0; z->given && i < SHL_ARRAY_LEN(keys); ++i) {
        const void *field = (const char *)z + keys[i].at;
        if (keys[i].type == KEY_ELEMS && *(const int64_t *)field < 0) {
            SHL_RAISE(SHL_E_USAGE, "%s is %lld", keys[i].name, (long long)*(const int64_t *)field);
            return shl_err_because("it counts elements: 0 or more");
        }
    }
    if (z->given && !(z->predivide > 0.0 && z->predivide <= 1e30)) {
        SHL_RAISE(SHL_E_USAGE, "gradient_predivide_factor is %g", z->predivide);
        return shl_err_because("gradients are divided by it: a number above 0, to 1e30");
    }
    if (z->given && z->sum_gradients && c->strategy == SHL_ZERO3) {
        SHL_RAISE(SHL_E_USAGE, "gradient_allreduce_op is sum in stage 3");
        return shl_err_because("DeepSpeed has it in stages 0 to 2 only");
    }
    if (z->given && z->single_cut && c->strategy != SHL_ZERO1 && c->strategy != SHL_ZERO2) {
        SHL_RAISE(SHL_E_USAGE, "layout is single-cut with %s", shl_strategy_name(c->strategy));
        shl_err_because("DeepSpeed cuts the flat space of stages 1 and 2 once");
        return shl_err_advice("layout=bucketed, or zero1 or zero2");
    }
    return check_scaling(c);
}

double
shl_zero_grad_factor(const shl_engine_config *c, int ranks)
{
    const shl_zero_options *z = &c->zero;
    bool scatters = c->strategy != SHL_DDP && !z->whole_reduce;
    if (!z->given || z->prescale || z->sum_gradients || scatters) {
        return 1.0;
    }
    /* Stage 3 divides by the ranks before the sum in any case. */
    return (c->strategy == SHL_ZERO3 ? 1.0 : (double)ranks) / z->predivide;
}

/* models: a shape asked for over a base, and its spelling. */
#include "models/shape.h"

#include <math.h>
#include <string.h>

#include "kernels/base/str.h"

static const char *const family_names[SHL_FAMILY_COUNT] = {
    [SHL_FAMILY_GPT] = "gpt",
    [SHL_FAMILY_LLAMA] = "llama",
};

const char *
shl_family_name(shl_family family)
{
    SHL_ASSERT((int)family >= 0 && family < SHL_FAMILY_COUNT);
    return family_names[family];
}

shl_code
shl_family_parse(const char *text, shl_family *out)
{
    for (int i = 0; i < SHL_FAMILY_COUNT; i++) {
        if (strcmp(family_names[i], text) == 0) {
            *out = (shl_family)i;
            return SHL_OK;
        }
    }
    SHL_RAISE(SHL_E_USAGE, "unknown family \"%s\"", text);
    return shl_err_because("it is gpt or llama");
}

static shl_code
raise_rope(const char *text)
{
    SHL_RAISE(SHL_E_USAGE, "\"%s\" is no scaling of rotary angles", text);
    shl_err_because(
        "it is none, linear:FACTOR or llama3:FACTOR:LOW:HIGH:CONTEXT, with FACTOR from 1 "
        "to 1e6, 0 < LOW < HIGH and the context before scaling");
    return shl_err_advice("llama3:8:1:4:8192");
}

/* Numbers behind the kind, with colons before each; false when one is missing or too many. */
static bool
split_numbers(const char *text, int n, double *out)
{
    for (int i = 0; i < n; i++) {
        char word[40];
        const char *end = text + 1 + strcspn(*text ? text + 1 : text, ":");
        if (*text != ':' || (size_t)(end - text) > sizeof(word)) {
            return false;
        }
        shl_strf(word, sizeof(word), "%.*s", (int)(end - text - 1), text + 1);
        if (shl_parse_double(word, 0.0, 1e15, &out[i]) != SHL_OK) {
            shl_err_clear();
            return false;
        }
        text = end;
    }
    return *text == '\0';
}

shl_code
shl_rope_parse(const char *text, shl_rope_scaling *out)
{
    double v[4] = {0};
    bool good;
    memset(out, 0, sizeof(*out));
    if (strcmp(text, "none") == 0) {
        return SHL_OK;
    }
    if (strncmp(text, "linear", 6) == 0) {
        out->kind = SHL_ROPE_LINEAR;
        good = split_numbers(text + 6, 1, v);
    } else if (strncmp(text, "llama3", 6) == 0) {
        out->kind = SHL_ROPE_LLAMA3;
        good = split_numbers(text + 6, 4, v);
        good = good && v[1] > 0.0 && v[1] < v[2] && v[3] >= 1.0 && v[3] <= (double)INT32_MAX &&
               v[3] == floor(v[3]);
    } else {
        good = false;
    }
    if (!good || v[0] < 1.0 || v[0] > 1e6) {
        return raise_rope(text);
    }
    out->factor = v[0];
    out->low_freq_factor = v[1];
    out->high_freq_factor = v[2];
    out->original_context = (int64_t)v[3];
    return SHL_OK;
}

/* As few digits as give the value back. */
static void
spell_number(double value, char *dst, size_t dst_bytes)
{
    int digits = 1;
    double back;
    do {
        shl_strf(dst, dst_bytes, "%.*g", digits, value);
        digits++;
    } while (digits <= 17 && (shl_parse_double(dst, -HUGE_VAL, HUGE_VAL, &back) != SHL_OK ||
                              back < value || back > value));
}

void
shl_rope_spell(const shl_rope_scaling *rope, char *dst, size_t dst_bytes)
{
    char factor[32], low[32], high[32];
    spell_number(rope->factor, factor, sizeof(factor));
    spell_number(rope->low_freq_factor, low, sizeof(low));
    spell_number(rope->high_freq_factor, high, sizeof(high));
    switch (rope->kind) {
    case SHL_ROPE_LINEAR:
        shl_strf(dst, dst_bytes, "linear:%s", factor);
        return;
    case SHL_ROPE_LLAMA3:
        shl_strf(dst, dst_bytes, "llama3:%s:%s:%s:%lld", factor, low, high,
                 (long long)rope->original_context);
        return;
    case SHL_ROPE_PLAIN:
    case SHL_ROPE_KIND_COUNT:
        break;
    }
    shl_strf(dst, dst_bytes, "none");
}

void
shl_shape_asked_init(shl_shape_asked *a)
{
    *a = (shl_shape_asked){.tied = -1, .qkv_bias = -1};
}

static void
forget_llama(shl_model_config *io)
{
    io->kv_heads = io->head_dim = 0;
    io->rope_theta = 0.0;
    io->rope = (shl_rope_scaling){0};
    io->qkv_bias = false;
}

shl_code
shl_shape_apply(const shl_shape_asked *a, shl_model_config *io)
{
    const struct {
        int64_t asked, *field;
        const char *what;
    } sizes[] = {
        {a->layers, &io->layers, "layers"},       {a->width, &io->width, "width"},
        {a->heads, &io->heads, "heads"},          {a->vocab, &io->vocab, "vocab"},
        {a->context, &io->context, "context"},    {a->inner, &io->inner, "inner"},
        {a->kv_heads, &io->kv_heads, "kv-heads"}, {a->head_dim, &io->head_dim, "head-dim"},
    };
    shl_family family = io->family;
    if (a->family) {
        SHL_TRY(shl_family_parse(a->family, &family));
    }
    if (family != io->family) {
        forget_llama(io);
        io->family = family;
    }
    for (size_t i = 0; i < SHL_ARRAY_LEN(sizes); i++) {
        if (sizes[i].asked < 0) {
            return SHL_RAISE(SHL_E_USAGE, "%s is %lld, below 0", sizes[i].what,
                             (long long)sizes[i].asked);
        }
        *sizes[i].field = sizes[i].asked > 0 ? sizes[i].asked : *sizes[i].field;
    }
    if (a->tied < -1 || a->tied > 1 || a->qkv_bias < -1 || a->qkv_bias > 1) {
        return SHL_RAISE(SHL_E_USAGE, "%s is not -1, 0 or 1",
                         a->tied < -1 || a->tied > 1 ? "tied" : "qkv-bias");
    }
    io->norm_eps = a->norm_eps != 0.0 ? a->norm_eps : io->norm_eps;
    io->rope_theta = a->rope_theta != 0.0 ? a->rope_theta : io->rope_theta;
    io->tied = a->tied >= 0 ? a->tied == 1 : io->tied;
    io->qkv_bias = a->qkv_bias >= 0 ? a->qkv_bias == 1 : io->qkv_bias;
    return a->rope_scaling ? shl_rope_parse(a->rope_scaling, &io->rope) : SHL_OK;
}

static bool
same(double a, double b)
{
    return a <= b && a >= b;
}

bool
shl_shape_equal(const shl_model_config *a, const shl_model_config *b)
{
    const shl_rope_scaling *p = &a->rope, *q = &b->rope;
    return a->family == b->family && a->vocab == b->vocab && a->context == b->context &&
           a->layers == b->layers && a->width == b->width && a->heads == b->heads &&
           a->inner == b->inner && a->kv_heads == b->kv_heads && a->head_dim == b->head_dim &&
           a->tied == b->tied && a->qkv_bias == b->qkv_bias && same(a->norm_eps, b->norm_eps) &&
           same(a->rope_theta, b->rope_theta) && p->kind == q->kind && same(p->factor, q->factor) &&
           same(p->low_freq_factor, q->low_freq_factor) &&
           same(p->high_freq_factor, q->high_freq_factor) &&
           p->original_context == q->original_context;
}

void
shl_shape_name(const shl_model_config *c, char *dst, size_t dst_bytes)
{
    char kv[24] = "", inner[24] = "";
    if (c->kv_heads > 0) {
        shl_strf(kv, sizeof(kv), "-kv%lld", (long long)c->kv_heads);
    }
    if (c->inner > 0) {
        shl_strf(inner, sizeof(inner), "-i%lld", (long long)c->inner);
    }
    shl_strf(dst, dst_bytes, "%s-l%lld-w%lld-h%lld%s%s-v%lld-c%lld", shl_family_name(c->family),
             (long long)c->layers, (long long)c->width, (long long)c->heads, kv, inner,
             (long long)c->vocab, (long long)c->context);
}

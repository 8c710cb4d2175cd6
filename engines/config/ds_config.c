/* engines/config: from the text of a ds_config.json to one checked value per row of the key table. */
#include "engines/config/ds_config.h"

#include <math.h>
#include <string.h>

#include <jansson.h>

#include "engines/config/ds_text.h"
#include "kernels/base/heap.h"
#include "kernels/base/types.h"

#define PATH_BYTES 160

const char *
shl_ds_origin_name(shl_ds_origin o)
{
    static const char *const names[] = {"default", "user", "auto", "derived"};
    return names[o];
}

shl_code
shl_ds_raise(const shl_ds_config *c, const char *path, const char *what)
{
    int i = shl_ds_key_find(path), line = 0, column = 0;
    if (i >= 0 && c->rows && c->rows[i].line > 0) {
        line = c->rows[i].line;
        column = c->rows[i].column;
    } else if (c->text && !shl_ds_text_locate(c->text, path, &line, &column)) {
        line = 0;
    }
    if (line > 0) {
        return SHL_RAISE(SHL_E_CONFIG, "%s:%d:%d: %s %s", c->name, line, column, path, what);
    }
    return SHL_RAISE(SHL_E_CONFIG, "%s: %s %s", c->name, path, what);
}

/* "is 7", "is \"text\"", at most a line. */
static void
spell_value(const json_t *json, char *dst, size_t cap)
{
    char *dump = json_dumps(json, JSON_ENCODE_ANY | JSON_COMPACT | JSON_REAL_PRECISION(12));
    json_free_t release;
    json_get_alloc_funcs(NULL, &release);
    shl_strf(dst, cap, "is %.80s", dump ? dump : "not JSON");
    release(dump);
}

static shl_code
raise_value(const shl_ds_config *c, const char *path, const json_t *json)
{
    char what[128];
    spell_value(json, what, sizeof(what));
    return shl_ds_raise(c, path, what);
}

static const char *
type_text(shl_ds_type type)
{
    static const char *const names[] = {
        "true or false",    "a whole number",        "a number",          "a text",
        "one of its words", "a list of two numbers", "a list of numbers", "a list of texts",
        "a block"};
    return names[type];
}

static bool
all_of(const json_t *list, bool numbers)
{
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *item = json_array_get(list, i);
        if (numbers ? !json_is_number(item) : !json_is_string(item)) {
            return false;
        }
    }
    return json_is_array(list);
}

static bool
has_type(const shl_ds_key *key, const json_t *json)
{
    switch (key->type) {
    case SHL_DS_BOOL:
        return json_is_boolean(json);
    case SHL_DS_INT:
    case SHL_DS_REAL:
        return json_is_number(json);
    case SHL_DS_TEXT:
        /* ZenFlow's intervals are a text or a number. */
        return json_is_string(json) ||
               (json_is_integer(json) && strcmp(key->fallback, "\"auto\"") == 0);
    case SHL_DS_ENUM:
        return json_is_string(json);
    case SHL_DS_REALS:
        return json_array_size(json) == 2 && all_of(json, true);
    case SHL_DS_INTS:
        return all_of(json, true);
    case SHL_DS_TEXTS:
        return all_of(json, false);
    case SHL_DS_TREE:
        return json_is_object(json);
    }
    return false;
}

static shl_code
check_whole(const shl_ds_config *c, const char *path, const json_t *json)
{
    double v = json_number_value(json);
    if (json_is_integer(json) || (v == floor(v) && fabs(v) < 9.2e18)) {
        return SHL_OK;
    }
    raise_value(c, path, json);
    if (fabs(v) >= 9.2e18) {
        return shl_err_because("it must fit into 64 bits");
    }
    shl_err_because("it must be a whole number; DeepSpeed refuses a fraction here too");
    return shl_err_advice("%.0f", floor(v));
}

static shl_code
check_number(const shl_ds_config *c, const char *path, const shl_ds_key *key, const json_t *json)
{
    double v = json_number_value(json);
    if (v >= key->min && v <= key->max) {
        return SHL_OK;
    }
    raise_value(c, path, json);
    if (v < key->min) {
        return shl_err_because("it must be at least %g", key->min);
    }
    return key->max < 1.0 ? shl_err_because("it must lie below 1")
                          : shl_err_because("it must be at most %g", key->max);
}

static bool
has_word(const char *words, const char *word)
{
    size_t len = strlen(word);
    for (const char *at = words; len > 0 && (at = strstr(at, word)) != NULL; at += len) {
        if ((at == words || at[-1] == ' ') && (at[len] == ' ' || at[len] == '\0')) {
            return true;
        }
    }
    return false;
}

static shl_code
check_value(const shl_ds_config *c, const char *path, const shl_ds_key *key, const json_t *json)
{
    if (json_is_null(json) && strcmp(key->fallback, "null") == 0) {
        return SHL_OK;
    }
    if (!has_type(key, json)) {
        raise_value(c, path, json);
        return shl_err_because("it must be %s", type_text(key->type));
    }
    if (key->type == SHL_DS_INT) {
        SHL_TRY(check_whole(c, path, json));
    }
    if (key->type == SHL_DS_INT || key->type == SHL_DS_REAL) {
        return check_number(c, path, key, json);
    }
    for (size_t i = 0; key->type == SHL_DS_REALS && i < json_array_size(json); i++) {
        SHL_TRY(check_number(c, path, key, json_array_get(json, i)));
    }
    if (key->type == SHL_DS_ENUM && !has_word(key->words, json_string_value(json))) {
        raise_value(c, path, json);
        return shl_err_because("it is one of: %s", key->words);
    }
    return SHL_OK;
}

/* A whole number is kept as an integer, however it was written. Owner: caller. */
static json_t *
normal(const shl_ds_key *key, json_t *json)
{
    if (key->type == SHL_DS_INT && json_is_real(json)) {
        return json_integer((json_int_t)json_real_value(json));
    }
    return json_incref(json);
}

static shl_code
take(shl_ds_config *c, const char *path, json_t *json)
{
    int i = shl_ds_key_find(path);
    const shl_ds_key *key = &shl_ds_keys(&c->n_rows)[i];
    shl_ds_value *v = &c->rows[i];
    if (v->origin != SHL_DS_DEFAULT) {
        shl_ds_raise(c, path, "is given twice");
        return shl_err_because("%s is its other name", key->path);
    }
    int line = 0, column = 0;
    if (shl_ds_text_locate(c->text, path, &line, &column)) {
        v->line = line;
        v->column = column;
    }
    const char *text = json_string_value(json);
    v->is_auto = text && strcmp(text, "auto") == 0 && strcmp(key->fallback, "\"auto\"") != 0;
    if (!v->is_auto) {
        SHL_TRY(check_value(c, path, key, json));
    }
    json_decref(v->json);
    v->json = normal(key, json);
    v->origin = SHL_DS_USER;
    return v->json ? SHL_OK : SHL_RAISE(SHL_E_HEAP, "out of host memory for a configuration");
}

/* Names that are known inside `block` ("": at the top), for the message about another one. */
static shl_code
raise_unknown(const shl_ds_config *c, const char *path, const char *block, const char *word)
{
    char names[128][64];
    const char *list[128];
    size_t n, n_names = 0, len = strlen(block);
    const shl_ds_key *keys = shl_ds_keys(&n);
    for (size_t i = 0; i < n && n_names + 2 < SHL_ARRAY_LEN(names); i++) {
        const char *rest = keys[i].path + (len > 0 ? len + 1 : 0);
        if (len > 0 && (strncmp(keys[i].path, block, len) != 0 || keys[i].path[len] != '.')) {
            continue;
        }
        shl_strf(names[n_names], sizeof(names[0]), "%.*s", (int)strcspn(rest, "."), rest);
        list[n_names] = names[n_names];
        n_names++;
        if (keys[i].alias && !strchr(rest, '.')) {
            list[n_names++] = keys[i].alias;
        }
    }
    const char *near = shl_nearest(word, list, n_names);
    shl_ds_raise(c, path, "is not a key of DeepSpeed's");
    shl_err_because(len > 0 ? "no key of %s%s has this name" : "no key at the %s%s has this name",
                    len > 0 ? block : "top level", "");
    return near ? shl_err_advice("\"%s\"", near) : SHL_E_CONFIG;
}

/* Nesting is that of the table, so this ends. */
static shl_code
walk(shl_ds_config *c, const json_t *object, const char *block)
{
    const char *word;
    json_t *value;
    void *at = json_object_iter((json_t *)(uintptr_t)object);
    for (; at; at = json_object_iter_next((json_t *)(uintptr_t)object, at)) {
        char path[PATH_BYTES];
        word = json_object_iter_key(at);
        value = json_object_iter_value(at);
        shl_strf(path, sizeof(path), "%s%s%s", block, block[0] ? "." : "", word);
        if (strchr(word, '.')) {
            return raise_unknown(c, path, block, word); /* no key has a dot in its name */
        }
        if (shl_ds_key_find(path) >= 0) {
            SHL_TRY(take(c, path, value));
        } else if (!shl_ds_is_block(path)) {
            return raise_unknown(c, path, block, word);
        } else if (json_is_object(value)) {
            SHL_TRY(walk(c, value, path));
        } else if (!json_is_null(value)) {
            raise_value(c, path, value);
            return shl_err_because("it must be a block of keys");
        }
    }
    return SHL_OK;
}

/* The object that holds the last component of a path; NULL: not there. */
static json_t *
parent_of(json_t *root, const char *path, const char **last)
{
    char word[PATH_BYTES];
    json_t *at = root;
    for (const char *dot; at && (dot = strchr(path, '.')) != NULL; path = dot + 1) {
        shl_strf(word, sizeof(word), "%.*s", (int)(dot - path), path);
        at = json_object_get(at, word);
    }
    *last = path;
    return json_is_object(at) ? at : NULL;
}

static shl_code
move_key(shl_ds_config *c, json_t *root, const shl_ds_moved *m)
{
    const char *last, *to;
    json_t *parent = parent_of(root, m->from, &last);
    json_t *value = parent ? json_object_get(parent, last) : NULL;
    if (!value) {
        return SHL_OK;
    }
    json_t *target = parent_of(root, m->to, &to);
    if (m->value && !json_is_boolean(value)) {
        raise_value(c, m->from, value);
        return shl_err_because("it must be true or false; today the key is %s", m->to);
    }
    if (target && m->value != NULL && m->value[0] && json_is_false(value)) {
        target = NULL; /* nothing is asked for */
    }
    if (target && json_object_get(target, to)) {
        shl_ds_raise(c, m->from, "stands beside its new form");
        return shl_err_because("%s is the same thing; DeepSpeed refuses both together", m->to);
    }
    shl_str_add(&c->notes, "%s is deprecated: %s\n", m->from, m->to);
    json_t *next = m->value == NULL ? json_incref(value)
                   : m->value[0]    ? json_loads(m->value, 0, NULL)
                                    : NULL;
    if (target && next) {
        json_object_set(target, to, next);
    }
    json_decref(next);
    json_object_del(parent, last);
    return SHL_OK;
}

/* zero_optimization: true is stage 1. */
static shl_code
move_keys(shl_ds_config *c, json_t *root)
{
    json_t *zero = json_object_get(root, "zero_optimization");
    if (json_is_boolean(zero)) {
        shl_str_add(&c->notes, "zero_optimization as a switch is deprecated: stage\n");
        json_t *block = json_pack("{si}", "stage", json_is_true(zero) ? 1 : 0);
        if (!block || json_object_set_new(root, "zero_optimization", block) != 0) {
            return SHL_RAISE(SHL_E_HEAP, "out of host memory for a configuration");
        }
    }
    size_t n;
    const shl_ds_moved *m = shl_ds_moved_keys(&n);
    for (size_t i = 0; i < n; i++) {
        SHL_TRY(move_key(c, root, &m[i]));
    }
    return SHL_OK;
}

static shl_code
set_defaults(shl_ds_config *c)
{
    size_t n;
    const shl_ds_key *keys = shl_ds_keys(&n);
    SHL_TRY(shl_heap_alloc(n, sizeof(*c->rows), &c->rows));
    c->n_rows = n;
    for (size_t i = 0; i < n; i++) {
        json_t *json = json_loads(shl_ds_fallback(&keys[i], c->dated), JSON_DECODE_ANY, NULL);
        c->rows[i].json = json ? normal(&keys[i], json) : NULL;
        json_decref(json);
        if (!c->rows[i].json) {
            return SHL_RAISE(SHL_E_HEAP, "out of host memory for a configuration");
        }
    }
    return SHL_OK;
}

shl_code
shl_ds_config_load(const char *source, int dated, shl_ds_config *out)
{
    json_t *root = NULL;
    shl_code code;
    memset(out, 0, sizeof(*out));
    out->dated = dated;
    if (dated != 2023 && dated != 2026) {
        SHL_RAISE(SHL_E_USAGE, "DeepSpeed's defaults of %d", dated);
        return shl_err_because("the sets are those of 2023 and 2026");
    }
    SHL_TRY(set_defaults(out));
    SHL_TRY(shl_ds_text_load(source, out->name, sizeof(out->name), &out->text));
    SHL_TRY(shl_ds_text_parse(out->text, out->name, &root));
    SHL_TRY_TO(code, out, move_keys(out, root));
    code = walk(out, root, "");
out:
    json_decref(root);
    return code;
}

void
shl_ds_config_fini(shl_ds_config *c)
{
    for (size_t i = 0; c->rows && i < c->n_rows; i++) {
        json_decref(c->rows[i].json);
    }
    shl_heap_free(&c->rows);
    shl_heap_free(&c->text);
    shl_str_fini(&c->notes);
}

const shl_ds_value *
shl_ds_get(const shl_ds_config *c, const char *path)
{
    int i = shl_ds_key_find(path);
    SHL_ASSERT(i >= 0);
    return &c->rows[i];
}

bool
shl_ds_bool(const shl_ds_config *c, const char *path)
{
    return json_is_true(shl_ds_get(c, path)->json);
}

int64_t
shl_ds_int(const shl_ds_config *c, const char *path, int64_t none)
{
    const json_t *json = shl_ds_get(c, path)->json;
    return json_is_integer(json) ? (int64_t)json_integer_value(json) : none;
}

double
shl_ds_real(const shl_ds_config *c, const char *path, double none)
{
    const json_t *json = shl_ds_get(c, path)->json;
    return json_is_number(json) ? json_number_value(json) : none;
}

const char *
shl_ds_text(const shl_ds_config *c, const char *path)
{
    return json_string_value(shl_ds_get(c, path)->json);
}

bool
shl_ds_block_given(const shl_ds_config *c, const char *block)
{
    size_t n, len = strlen(block);
    const shl_ds_key *keys = shl_ds_keys(&n);
    for (size_t i = 0; i < n; i++) {
        if (c->rows[i].origin == SHL_DS_USER && strncmp(keys[i].path, block, len) == 0 &&
            keys[i].path[len] == '.') {
            return true;
        }
    }
    return false;
}

shl_code
shl_ds_set(shl_ds_config *c, const char *path, json_t *json, shl_ds_origin origin)
{
    int i = shl_ds_key_find(path);
    SHL_ASSERT(i >= 0);
    if (!json) {
        return SHL_RAISE(SHL_E_HEAP, "out of host memory for a configuration");
    }
    json_decref(c->rows[i].json);
    c->rows[i].json = json;
    c->rows[i].origin = origin;
    c->rows[i].is_auto = false;
    return SHL_OK;
}

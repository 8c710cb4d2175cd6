/* checkpoints: manifest.json, the truth about a checkpoint: what it belongs to, which tensors it
 * holds, which file holds which range. Written one line per tensor and file, parsed strictly:
 * unknown, missing, doubled or out-of-range members are refused. */
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "checkpoints/ckpt_room.h"
#include "kernels/base/heap.h"

#define FORMAT "shardlab-checkpoint"
#define WORLD_MAX (1 << 20)
#define TENSORS_MAX (1 << 24)

static int
dump_to_str(const char *text, size_t len, void *data)
{
    shl_str_add_text(data, text, len);
    return 0;
}

/* The text as a JSON string, quotes and escapes included. */
static shl_code
add_json_text(shl_str *out, const char *text)
{
    json_t *v = json_string(text);
    int rc =
        v == NULL ? -1 : json_dump_callback(v, dump_to_str, out, JSON_ENCODE_ANY | JSON_COMPACT);
    json_decref(v);
    if (rc != 0) {
        return SHL_RAISE(SHL_E_BUG, "a text in the checkpoint's manifest is not UTF-8");
    }
    return SHL_OK;
}

/* The configuration goes through the parser, so that no text can break the manifest. */
static shl_code
add_config(shl_str *out, const char *config)
{
    json_error_t err;
    json_t *v = json_loads(config[0] != '\0' ? config : "{}", JSON_REJECT_DUPLICATES, &err);
    size_t before = out->len;
    shl_code code = SHL_OK;
    if (!json_is_object(v)) {
        (void)SHL_RAISE(SHL_E_BUG, "the configuration in a checkpoint must be a JSON object");
        code = shl_err_because("%s", v == NULL ? err.text : "it is another value");
    } else if (json_dump_callback(v, dump_to_str, out, JSON_COMPACT) != 0) {
        code = SHL_RAISE(SHL_E_HEAP, "no memory for the configuration in the manifest");
    } else if (out->len - before >= sizeof((shl_ckpt_meta *)0)->config) {
        code = SHL_RAISE(SHL_E_BUG, "the configuration is too long for a checkpoint");
    }
    json_decref(v);
    return code;
}

static shl_code
add_meta(shl_str *out, const shl_ckpt_meta *m)
{
    shl_str_add(out,
                "{\n\"format\":\"" FORMAT "\",\n\"version\":%d,\n\"run_id\":", SHL_CKPT_VERSION);
    SHL_TRY(add_json_text(out, m->run_id));
    shl_str_add(out, ",\n\"model\":");
    SHL_TRY(add_json_text(out, m->model));
    shl_str_add(out, ",\n\"strategy\":");
    SHL_TRY(add_json_text(out, m->strategy));
    /* The seed is text: a JSON integer ends at 2^63. */
    shl_str_add(out, ",\n\"world\":%d,\n\"step\":%lld,\n\"data_sample\":%lld,\n\"seed\":\"%llu\"",
                m->world, (long long)m->step, (long long)m->data_sample,
                (unsigned long long)m->seed);
    shl_str_add(out, ",\n\"skipped\":%lld,\n\"scaler\":{\"kind\":", (long long)m->skipped);
    SHL_TRY(add_json_text(out, m->scaler));
    /* 17 digits are the double again. */
    shl_str_add(out,
                ",\"scale\":%.17g,\"hysteresis_left\":%lld,\"steps\":%lld,\"last_overflow\":%lld}",
                m->scale, (long long)m->hysteresis_left, (long long)m->scaler_steps,
                (long long)m->last_overflow);
    shl_str_add(out, ",\n\"config\":");
    return add_config(out, m->config);
}

static shl_code
add_tensor(shl_str *out, const shl_ckpt_entry *e)
{
    shl_str_add(out, "{\"name\":");
    SHL_TRY(add_json_text(out, e->name));
    shl_str_add(out, ",\"kind\":");
    SHL_TRY(add_json_text(out, e->kind));
    shl_str_add(out, ",\"dims\":[");
    for (int i = 0; i < e->n_dims; i++) {
        shl_str_add(out, "%s%lld", i > 0 ? "," : "", (long long)e->dims[i]);
    }
    shl_str_add(out, "]}");
    return SHL_OK;
}

static int
by_file(const void *a, const void *b)
{
    const shl_ckpt_fragment *x = a;
    const shl_ckpt_fragment *y = b;
    int order = (x->file > y->file) - (x->file < y->file);
    order = order != 0 ? order : (x->tensor > y->tensor) - (x->tensor < y->tensor);
    return order != 0 ? order : (x->begin > y->begin) - (x->begin < y->begin);
}

static shl_code
add_file(shl_str *out, const shl_ckpt_index *x, int file, int *next)
{
    char hex[33];
    shl_ckpt_hex(x->files[file].hash, hex);
    shl_str_add(out, "{\"name\":");
    SHL_TRY(add_json_text(out, x->files[file].name));
    shl_str_add(out, ",\"bytes\":%lld,\"xxh3_128\":\"%s\",\"fragments\":[",
                (long long)x->files[file].bytes, hex);
    for (int first = *next; *next < x->n_fragments && x->fragments[*next].file == file; (*next)++) {
        const shl_ckpt_fragment *f = &x->fragments[*next];
        shl_str_add(out, "%s[%d,%lld,%lld,%lld]", *next > first ? "," : "", f->tensor,
                    (long long)f->begin, (long long)f->end, (long long)f->offset);
    }
    shl_str_add(out, "]}");
    return SHL_OK;
}

shl_code
shl_ckpt_manifest_write(const shl_ckpt_meta *meta, shl_ckpt_index *x, shl_str *out)
{
    char hex[33];
    int next = 0;
    if (x->n_fragments > 0) {
        qsort(x->fragments, (size_t)x->n_fragments, sizeof *x->fragments, by_file);
    }
    SHL_TRY(add_meta(out, meta));
    shl_str_add(out, ",\n\"tensors\":[\n");
    for (int i = 0; i < x->n_tensors; i++) {
        SHL_TRY(add_tensor(out, &x->tensors[i]));
        shl_str_add(out, "%s", i + 1 < x->n_tensors ? ",\n" : "\n");
    }
    shl_str_add(out, "],\n\"files\":[\n");
    for (int i = 0; i < x->n_files; i++) {
        SHL_TRY(add_file(out, x, i, &next));
        shl_str_add(out, "%s", i + 1 < x->n_files ? ",\n" : "\n");
    }
    shl_ckpt_hex(x->view.hash, hex);
    shl_str_add(out, "],\n\"view\":{\"name\":\"" SHL_CKPT_VIEW "\",\"bytes\":%lld,",
                (long long)x->view.bytes);
    shl_str_add(out, "\"xxh3_128\":\"%s\"}\n}\n", hex);
    if (out->failed) {
        return SHL_RAISE(SHL_E_HEAP, "host heap exhausted while writing the manifest");
    }
    return SHL_OK;
}

static shl_code
bad(const char *path, const char *what, const char *why)
{
    (void)SHL_RAISE(SHL_E_VERIFY, "%s: bad %s", path, what);
    return shl_err_because("%s", why);
}

static shl_code
get_text(const char *path, const json_t *o, const char *key, char *dst, size_t cap)
{
    const char *text = json_string_value(json_object_get(o, key));
    size_t len = json_string_length(json_object_get(o, key));
    if (text == NULL || len >= cap || strlen(text) != len) {
        return bad(path, key, "a text is expected, not longer than its field");
    }
    shl_strf(dst, cap, "%s", text);
    return SHL_OK;
}

static shl_code
get_int(const char *path, const json_t *v, const char *key, int64_t min, int64_t max, int64_t *out)
{
    if (!json_is_integer(v) || json_integer_value(v) < min || json_integer_value(v) > max) {
        return bad(path, key, "a whole number in its range is expected");
    }
    *out = json_integer_value(v);
    return SHL_OK;
}

/* Exactly these members: together with the refusal of doubled ones, n of them found means no
 * other is there. */
static shl_code
exact_members(const char *path, const json_t *o, const char *what, const char *const *keys,
              size_t n)
{
    if (!json_is_object(o)) {
        return bad(path, what, "an object is expected");
    }
    for (size_t i = 0; i < n; i++) {
        if (json_object_get(o, keys[i]) == NULL) {
            return bad(path, what, keys[i]);
        }
    }
    return json_object_size(o) == n ? SHL_OK : bad(path, what, "it has unknown members");
}

static shl_code
parse_seed(const char *path, const json_t *root, uint64_t *seed)
{
    char text[24];
    char again[24];
    SHL_TRY(get_text(path, root, "seed", text, sizeof text));
    *seed = strtoull(text, NULL, 10);
    shl_strf(again, sizeof again, "%llu", (unsigned long long)*seed);
    return strcmp(text, again) == 0 ? SHL_OK : bad(path, "seed", "decimal digits are expected");
}

static shl_code
parse_config(const char *path, const json_t *root, shl_ckpt_meta *m)
{
    const json_t *config = json_object_get(root, "config");
    if (!json_is_object(config)) {
        return bad(path, "config", "an object is expected");
    }
    size_t len = json_dumpb(config, m->config, sizeof m->config - 1, JSON_COMPACT);
    if (len == 0 || len >= sizeof m->config) {
        return bad(path, "config", "it is too long");
    }
    m->config[len] = '\0';
    return SHL_OK;
}

static shl_code
parse_scaler(const char *path, const json_t *root, shl_ckpt_meta *m)
{
    static const char *const keys[] = {"kind", "scale", "hysteresis_left", "steps",
                                       "last_overflow"};
    const json_t *o = json_object_get(root, "scaler");
    SHL_TRY(exact_members(path, o, "scaler", keys, SHL_ARRAY_LEN(keys)));
    SHL_TRY(get_text(path, o, "kind", m->scaler, sizeof m->scaler));
    bool known = strcmp(m->scaler, "none") == 0 || strcmp(m->scaler, "static") == 0 ||
                 strcmp(m->scaler, "dynamic") == 0;
    if (!known) {
        return bad(path, "kind", "none, static or dynamic is expected");
    }
    m->scale = json_number_value(json_object_get(o, "scale"));
    if (!(m->scale > 0.0) || !isfinite(m->scale)) {
        return bad(path, "scale", "a finite number above 0 is expected");
    }
    SHL_TRY(get_int(path, json_object_get(o, keys[2]), keys[2], 0, INT64_MAX, &m->hysteresis_left));
    SHL_TRY(get_int(path, json_object_get(o, keys[3]), keys[3], 0, INT64_MAX, &m->scaler_steps));
    return get_int(path, json_object_get(o, keys[4]), keys[4], -1, m->scaler_steps,
                   &m->last_overflow);
}

/* Written by every version since 3. */
static shl_code
parse_progress(const char *path, const json_t *root, int64_t version, shl_ckpt_meta *m)
{
    SHL_TRY(get_int(path, json_object_get(root, "step"), "step", 0, INT64_MAX, &m->step));
    SHL_TRY(get_int(path, json_object_get(root, "data_sample"), "data_sample", 0, INT64_MAX,
                    &m->data_sample));
    if (version < 3) {
        shl_strf(m->scaler, sizeof m->scaler, "none");
        m->scale = 1.0;
        m->last_overflow = -1;
        return SHL_OK;
    }
    SHL_TRY(get_int(path, json_object_get(root, "skipped"), "skipped", 0, m->step, &m->skipped));
    return parse_scaler(path, root, m);
}

static shl_code
parse_meta(const char *path, const json_t *root, shl_ckpt_meta *m)
{
    static const char *const keys[] = {"format", "version", "run_id",  "model",       "strategy",
                                       "world",  "step",    "seed",    "data_sample", "config",
                                       "files",  "view",    "tensors", "skipped",     "scaler"};
    char format[32];
    int64_t n = 0, version = 0;
    SHL_TRY(get_int(path, json_object_get(root, "version"), "version", SHL_CKPT_OLDEST_VERSION,
                    SHL_CKPT_VERSION, &version));
    SHL_TRY(
        exact_members(path, root, "manifest", keys, SHL_ARRAY_LEN(keys) - (version < 3 ? 2 : 0)));
    SHL_TRY(get_text(path, root, "format", format, sizeof format));
    if (strcmp(format, FORMAT) != 0) {
        return bad(path, "format", "it is not the manifest of a checkpoint of this program");
    }
    SHL_TRY(get_text(path, root, "run_id", m->run_id, sizeof m->run_id));
    SHL_TRY(get_text(path, root, "model", m->model, sizeof m->model));
    SHL_TRY(get_text(path, root, "strategy", m->strategy, sizeof m->strategy));
    SHL_TRY(get_int(path, json_object_get(root, "world"), "world", 1, WORLD_MAX, &n));
    m->world = (int)n;
    SHL_TRY(parse_progress(path, root, version, m));
    SHL_TRY(parse_seed(path, root, &m->seed));
    return parse_config(path, root, m);
}

static shl_code
parse_tensor(const char *path, const json_t *v, shl_ckpt_entry *e)
{
    static const char *const keys[] = {"name", "kind", "dims"};
    char name[sizeof e->name];
    char kind[sizeof e->kind];
    int64_t dims[SHL_MAX_DIMS] = {0};
    SHL_TRY(exact_members(path, v, "tensor", keys, SHL_ARRAY_LEN(keys)));
    SHL_TRY(get_text(path, v, "name", name, sizeof name));
    SHL_TRY(get_text(path, v, "kind", kind, sizeof kind));
    const json_t *list = json_object_get(v, "dims");
    size_t n = json_array_size(list);
    if (n < 1 || n > SHL_MAX_DIMS) {
        return bad(path, "dims", name);
    }
    for (size_t i = 0; i < n; i++) {
        SHL_TRY(get_int(path, json_array_get(list, i), "dims", 0, INT64_MAX, &dims[i]));
    }
    if (shl_ckpt_entry_set(e, kind, name, (int)n, dims) != SHL_OK) {
        return bad(path, "tensor", "its name, kind or shape is out of bounds");
    }
    return SHL_OK;
}

static shl_code
parse_fragment(const char *path, const json_t *v, int file, shl_ckpt_index *x)
{
    int64_t n[4] = {0};
    if (json_array_size(v) != SHL_ARRAY_LEN(n)) {
        return bad(path, "fragment", "[tensor, begin, end, offset] is expected");
    }
    for (size_t i = 0; i < SHL_ARRAY_LEN(n); i++) {
        int64_t max = i == 0 ? (int64_t)x->n_tensors - 1 : INT64_MAX;
        SHL_TRY(get_int(path, json_array_get(v, i), "fragment", 0, max, &n[i]));
    }
    shl_ckpt_fragment f = {(int)n[0], file, n[1], n[2], n[3]};
    return shl_ckpt_index_add(x, &f);
}

/* Name, length and hash of a file: a shard has fragments as well, the view has not. */
static shl_code
parse_record(const char *path, const json_t *v, const char *expected, size_t n_keys,
             shl_ckpt_file *f)
{
    static const char *const keys[] = {"name", "bytes", "xxh3_128", "fragments"};
    char hex[33];
    SHL_TRY(exact_members(path, v, "file", keys, n_keys));
    SHL_TRY(get_text(path, v, "name", f->name, sizeof f->name));
    if (strcmp(f->name, expected) != 0) {
        return bad(path, "file name", expected);
    }
    SHL_TRY(get_int(path, json_object_get(v, "bytes"), "bytes", 1, INT64_MAX, &f->bytes));
    SHL_TRY(get_text(path, v, "xxh3_128", hex, sizeof hex));
    if (!shl_ckpt_unhex(hex, f->hash)) {
        return bad(path, "xxh3_128", "32 hex digits are expected");
    }
    return SHL_OK;
}

static shl_code
parse_file(const char *path, const json_t *v, int file, shl_ckpt_index *x)
{
    char expected[sizeof x->files->name];
    shl_ckpt_shard_name(file, x->n_files, expected, sizeof expected);
    SHL_TRY(parse_record(path, v, expected, 4, &x->files[file]));
    const json_t *list = json_object_get(v, "fragments");
    if (!json_is_array(list)) {
        return bad(path, "fragments", "a list is expected");
    }
    for (size_t i = 0; i < json_array_size(list); i++) {
        SHL_TRY(parse_fragment(path, json_array_get(list, i), file, x));
    }
    return SHL_OK;
}

static shl_code
parse_index(const char *path, const json_t *root, int world, shl_ckpt_index *x)
{
    const json_t *tensors = json_object_get(root, "tensors");
    const json_t *files = json_object_get(root, "files");
    size_t n_tensors = json_array_size(tensors);
    if (n_tensors < 1 || n_tensors > TENSORS_MAX || json_array_size(files) != (size_t)world) {
        return bad(path, "lists", "at least one tensor and one file per rank are expected");
    }
    SHL_TRY(shl_ckpt_index_init(x, (int)n_tensors, world));
    for (int i = 0; i < x->n_tensors; i++) {
        SHL_TRY(parse_tensor(path, json_array_get(tensors, (size_t)i), &x->tensors[i]));
    }
    /* Fragments name tensors by number, so the list must be in order as it stands. */
    if (!shl_ckpt_index_sorted(x)) {
        return bad(path, "tensors", "they are not sorted by kind and name");
    }
    for (int i = 0; i < x->n_files; i++) {
        SHL_TRY(parse_file(path, json_array_get(files, (size_t)i), i, x));
    }
    SHL_TRY(parse_record(path, json_object_get(root, "view"), SHL_CKPT_VIEW, 3, &x->view));
    return shl_ckpt_index_check(x, SHL_E_VERIFY);
}

shl_code
shl_ckpt_manifest_parse(const char *path, const char *text, size_t len, shl_ckpt_meta *meta,
                        shl_ckpt_index *x)
{
    json_error_t err;
    memset(meta, 0, sizeof *meta);
    memset(x, 0, sizeof *x);
    json_t *root = json_loadb(text, len, JSON_REJECT_DUPLICATES, &err);
    if (root == NULL) {
        (void)SHL_RAISE(SHL_E_VERIFY, "%s is not JSON", path);
        return shl_err_because("line %d, column %d: %s", err.line, err.column, err.text);
    }
    shl_code code = parse_meta(path, root, meta);
    if (code == SHL_OK) {
        code = parse_index(path, root, meta->world, x);
    }
    json_decref(root);
    if (code != SHL_OK) {
        shl_ckpt_index_fini(x);
    }
    return code;
}

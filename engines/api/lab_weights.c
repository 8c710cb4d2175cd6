/* engines/api: initial parameters from published weights: every rank reads the ranges that it holds,
 * under any strategy, after names and shapes were compared with the model's. */
#include <inttypes.h>
#include <string.h>
#include <unistd.h>

#include "checkpoints/safetensors.h"
#include "engines/api/lab.h"
#include "kernels/base/heap.h"
#include "kernels/base/str.h"
#include "models/hf_config.h"
#include "models/shape.h"

#define HEAD "lm_head.weight"
#define CONFIG_PATH_MAX 1100
#define COMPARE_ELEMS 16384
#define STAGE_BYTES ((size_t)8 << 20)

typedef struct weights {
    shl_lab *lab;
    shl_safetensors *reader;
} weights;

static bool
ends_with(const char *text, const char *end)
{
    size_t n = strlen(text), m = strlen(end);
    return n >= m && strcmp(text + n - m, end) == 0;
}

/* Constants that older versions of the format's authors saved beside the parameters: causal masks
 * and the frequencies of rotary positions. */
static bool
is_buffer(const char *name)
{
    return ends_with(name, ".attn.bias") || ends_with(name, ".attn.masked_bias") ||
           ends_with(name, ".rotary_emb.inv_freq");
}

static void
spell_dims(const int64_t *dims, int n, char *dst, size_t cap)
{
    shl_strf(dst, cap, "%s", n == 0 ? "scalar" : "");
    for (int i = 0; i < n; i++) {
        size_t len = strlen(dst);
        shl_strf(dst + len, cap - len, "%s%" PRId64, i > 0 ? " x " : "", dims[i]);
    }
}

static void
dims_of(const shl_param *p, int64_t dims[SHL_MAX_DIMS])
{
    memcpy(dims, p->dims, sizeof(p->dims));
    dims[0] = p->full_rows;
}

static shl_code
check_shape(const weights *w, const shl_param *p, int i)
{
    shl_safetensor t = shl_safetensors_at(w->reader, i);
    char theirs[200], ours[100];
    int64_t dims[SHL_MAX_DIMS];
    dims_of(p, dims);
    if (t.n_dims == p->n_dims && memcmp(t.dims, dims, (size_t)t.n_dims * sizeof(*dims)) == 0) {
        return SHL_OK;
    }
    spell_dims(t.dims, t.n_dims, theirs, sizeof(theirs));
    spell_dims(dims, p->n_dims, ours, sizeof(ours));
    SHL_RAISE(SHL_E_CONFIG, "the weights are of another model: the shape of %s differs", p->name);
    shl_err_because("%s in %s, %s in %s", theirs, t.file, ours, w->lab->setup.model);
    return shl_err_advice("the model that these weights belong to");
}

/* A copy of the embedding under the head's name, bit for bit. */
static shl_code
compare_head(const weights *w, int head, int embedding, bool *equal)
{
    float *a = NULL, *b = NULL;
    shl_code code = SHL_OK;
    int64_t n = shl_safetensors_at(w->reader, head).elems;
    *equal = true;
    SHL_TRY_TO(code, out, shl_heap_alloc(COMPARE_ELEMS, sizeof(*a), &a));
    SHL_TRY_TO(code, out, shl_heap_alloc(COMPARE_ELEMS, sizeof(*b), &b));
    for (int64_t at = 0; at < n && *equal; at += COMPARE_ELEMS) {
        int64_t end = n - at < COMPARE_ELEMS ? n : at + COMPARE_ELEMS;
        SHL_TRY_TO(code, out, shl_safetensors_read(w->reader, head, at, end, SHL_F32, a));
        SHL_TRY_TO(code, out, shl_safetensors_read(w->reader, embedding, at, end, SHL_F32, b));
        *equal = memcmp(a, b, (size_t)(end - at) * sizeof(*a)) == 0;
    }
out:
    shl_heap_free(&a);
    shl_heap_free(&b);
    return code;
}

/* Whether the file's head may stand beside a model whose head is the embedding. One rank compares the
 * values; the others trust it after the agreement. */
static shl_code
check_tied_head(const weights *w, int head)
{
    const shl_model *m = w->lab->model;
    const shl_param *tied = NULL;
    bool equal = true;
    for (int k = 0; k < m->n_params; k++) {
        tied = m->params[k]->n_uses > 1 ? m->params[k] : tied;
    }
    int embedding = tied ? shl_safetensors_find(w->reader, tied->name) : -1;
    shl_safetensor t = shl_safetensors_at(w->reader, head);
    if (embedding < 0) {
        return SHL_RAISE(SHL_E_CONFIG, "the weights are of another model: %s is extra", t.name);
    }
    shl_safetensor e = shl_safetensors_at(w->reader, embedding);
    bool same = t.n_dims == e.n_dims && memcmp(t.dims, e.dims, sizeof(t.dims)) == 0;
    if (same && w->lab->setup.rank == 0 && w->lab->device->caps.has_bytes) {
        SHL_TRY(compare_head(w, head, embedding, &equal));
    }
    if (same && equal) {
        return SHL_OK;
    }
    SHL_RAISE(SHL_E_CONFIG, "the weights are of another model: %s is not %s", t.name, e.name);
    return shl_err_because("their %s differ, and the head of %s is its embedding",
                           same ? "values" : "shapes", w->lab->setup.model);
}

/* Names in a list that ends with how many more there are. */
static void
add_name(char *list, size_t cap, int n, const char *name)
{
    const int most = 4;
    size_t len = strlen(list);
    if (n < most) {
        shl_strf(list + len, cap - len, "%s%.80s", n > 0 ? ", " : "", name);
    }
}

static shl_code
raise_names(const weights *w, const char *what, const char *list, int n)
{
    SHL_RAISE(SHL_E_CONFIG, "the weights are of another model: %d tensor%s %s", n,
              n == 1 ? " is" : "s are", what);
    shl_err_because("%s%s, for %s with %d parameters", list, n > 4 ? ", ..." : "",
                    w->lab->setup.model, w->lab->model->n_params);
    return shl_err_advice("the model that these weights belong to");
}

/* Every parameter is there in its shape; seen tells which tensors of the files they are. */
static shl_code
check_params(const weights *w, bool *seen)
{
    const shl_model *m = w->lab->model;
    char list[400] = "";
    int missing = 0;
    for (int k = 0; k < m->n_params; k++) {
        int i = shl_safetensors_find(w->reader, m->params[k]->name);
        if (i < 0 && m->params[k]->adapter) {
            continue;
        }
        if (i < 0) {
            add_name(list, sizeof(list), missing++, m->params[k]->name);
            continue;
        }
        SHL_TRY(check_shape(w, m->params[k], i));
        seen[i] = true;
    }
    return missing > 0 ? raise_names(w, "missing", list, missing) : SHL_OK;
}

/* Nothing else is there, but for what is known to be no parameter. */
static shl_code
check_others(const weights *w, const bool *seen)
{
    char list[400] = "";
    int extra = 0;
    for (int i = 0; i < shl_safetensors_count(w->reader); i++) {
        shl_safetensor t = shl_safetensors_at(w->reader, i);
        if (seen[i] || is_buffer(t.name)) {
            continue;
        }
        if (strcmp(t.key, HEAD) == 0) {
            SHL_TRY(check_tied_head(w, i));
        } else {
            add_name(list, sizeof(list), extra++, t.name);
        }
    }
    return extra > 0 ? raise_names(w, "extra", list, extra) : SHL_OK;
}

static shl_code
check_model(const weights *w)
{
    bool *seen = NULL;
    SHL_TRY(shl_heap_alloc((size_t)shl_safetensors_count(w->reader) + 1, sizeof(*seen), &seen));
    shl_code code = check_params(w, seen);
    if (code == SHL_OK) {
        code = check_others(w, seen);
    }
    shl_heap_free(&seen);
    return code;
}

/* The same allocations on a device without bytes as on the one it stands for. */
static shl_code
fill_staged(const weights *w, int i, const shl_shard *s)
{
    shl_device *d = w->lab->device;
    shl_buf stage;
    size_t size = shl_dtype_bytes(s->local.dtype);
    int64_t chunk = (int64_t)(STAGE_BYTES / size);
    shl_code code = SHL_OK;
    chunk = s->end - s->begin < chunk ? s->end - s->begin : chunk;
    SHL_TRY(shl_device_alloc(d, (size_t)chunk * size, SHL_TIER_HOST, SHL_TAG_CKPT, 0, "weights",
                             &stage));
    for (int64_t at = s->begin; d->caps.has_bytes && at < s->end; at += chunk) {
        int64_t stop = s->end - at < chunk ? s->end : at + chunk;
        void *to = shl_elem_ptr(s->local.data, s->local.dtype, at - s->begin);
        SHL_TRY_TO(code, out,
                   shl_safetensors_read(w->reader, i, at, stop, s->local.dtype, stage.data));
        SHL_TRY_TO(code, out, shl_device_upload(d, to, stage.data, (size_t)(stop - at) * size));
    }
out:
    shl_device_free(d, &stage);
    return code;
}

static shl_code
fill_shard(void *ctx, const shl_shard *s)
{
    const weights *w = (const weights *)ctx;
    const shl_device *d = w->lab->device;
    if (strcmp(s->kind, "param") != 0 || s->begin == s->end) {
        return SHL_OK;
    }
    int i = shl_safetensors_find(w->reader, s->name);
    if (i < 0) {
        return SHL_OK; /* an adapter */
    }
    if (d->caps.async) {
        return fill_staged(w, i, s);
    }
    return d->caps.has_bytes
               ? shl_safetensors_read(w->reader, i, s->begin, s->end, s->local.dtype, s->local.data)
               : SHL_OK;
}

/* --- the configuration beside them ------------------------------------------------------- */

static shl_code
raise_config(const weights *w, const char *path, const char *what, const char *theirs,
             const char *ours)
{
    SHL_RAISE(SHL_E_CONFIG, "the weights are of another model: %s differs", what);
    shl_err_because("%s in %s, %s in %s", theirs, path, ours, w->lab->setup.model);
    return shl_err_advice("the model that these weights belong to");
}

static shl_code
compare_number(const weights *w, const char *path, const char *what, double theirs, double ours)
{
    char a[32], b[32];
    if (!(theirs < ours) && !(theirs > ours)) {
        return SHL_OK;
    }
    shl_strf(a, sizeof(a), "%.9g", theirs);
    shl_strf(b, sizeof(b), "%.9g", ours);
    return raise_config(w, path, what, a, b);
}

static double
or_else(double value, double fallback)
{
    return value > 0.0 ? value : fallback;
}

/* What changes the meaning of the tensors and leaves their shapes as they are. */
static shl_code
compare_config(const weights *w, const char *path, const shl_model_config *a)
{
    const shl_model_config *b = &w->lab->setup.shape;
    char theirs[96], ours[96];
    if (a->family != b->family) {
        return raise_config(w, path, "the family", shl_family_name(a->family),
                            shl_family_name(b->family));
    }
    SHL_TRY(compare_number(w, path, "heads", (double)a->heads, (double)b->heads));
    SHL_TRY(compare_number(w, path, "the epsilon of the norms", or_else(a->norm_eps, 1e-5),
                           or_else(b->norm_eps, 1e-5)));
    SHL_TRY(compare_number(w, path, "kv heads", or_else((double)a->kv_heads, (double)a->heads),
                           or_else((double)b->kv_heads, (double)b->heads)));
    SHL_TRY(compare_number(w, path, "theta of the rotary positions", or_else(a->rope_theta, 1e4),
                           or_else(b->rope_theta, 1e4)));
    shl_rope_spell(&a->rope, theirs, sizeof(theirs));
    shl_rope_spell(&b->rope, ours, sizeof(ours));
    return strcmp(theirs, ours) == 0
               ? SHL_OK
               : raise_config(w, path, "the scaling of rotary positions", theirs, ours);
}

/* A config.json in the folder of the weights must agree with the model; without one the tensors
 * alone decide. */
static shl_code
check_config(const weights *w, const char *path)
{
    char file[CONFIG_PATH_MAX];
    shl_hf_config hf;
    const char *slash = strrchr(path, '/');
    if (strlen(path) + sizeof("/" SHL_HF_CONFIG_FILE) > sizeof(file)) {
        return SHL_OK; /* too long to be opened at all, which the reader tells */
    }
    shl_strf(file, sizeof(file), "%s/" SHL_HF_CONFIG_FILE, path);
    if (access(file, F_OK) != 0) { /* path is a file itself */
        shl_strf(file, sizeof(file), "%.*s" SHL_HF_CONFIG_FILE, slash ? (int)(slash - path) + 1 : 0,
                 path);
    }
    if (access(file, F_OK) != 0) {
        return SHL_OK;
    }
    SHL_TRY(shl_hf_config_load(file, &hf));
    if (hf.approximated[0]) {
        SHL_RAISE(SHL_E_CONFIG, "the weights are of a model that this program only approximates");
        return shl_err_because("%s: %s", file, hf.approximated);
    }
    return compare_config(w, file, &hf.config);
}

static shl_code
open_and_check(weights *w, const char *path)
{
    SHL_TRY(shl_safetensors_open(path, &w->reader));
    SHL_TRY(check_config(w, path));
    return check_model(w);
}

shl_code
shl_lab_load_weights(shl_lab *lab, const char *path)
{
    weights w = {.lab = lab};
    shl_code code = shl_lab_agree_code(lab, open_and_check(&w, path), "weights");
    if (code == SHL_OK) {
        int64_t compared = shl_safetensors_bytes_read(w.reader);
        code = shl_engine_visit_state(lab->engine, SHL_VISIT_WRITE, fill_shard, &w);
        lab->weight_bytes = shl_safetensors_bytes_read(w.reader) - compared;
    }
    if (code == SHL_OK) {
        code = shl_lab_agree_code(lab, SHL_OK, "weights");
    }
    shl_err failure = *shl_err_get();
    shl_safetensors_close(&w.reader);
    return code == SHL_OK ? SHL_OK : shl_err_put(&failure);
}

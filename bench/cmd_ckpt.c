/* bench: `shardlab ckpt`: looking at checkpoints without a model: which there are, what one holds,
 * whether it is whole, and where two differ. */
#include <inttypes.h>
#include <math.h>
#include <string.h>

#include <jansson.h>

#include "bench/cli.h"
#include "checkpoints/ckpt.h"
#include "kernels/base/heap.h"
#include "kernels/base/types.h"

typedef struct ckpt_options {
    bool json, tensors;
    int64_t limit;
} ckpt_options;

static const shl_option TABLE[] = {
    {"json", NULL, SHL_OPT_BOOL, offsetof(ckpt_options, json), 0, 0, NULL, NULL, NULL, "Output",
     "As JSON, complete whatever --limit and --tensors say."},
    {"tensors", NULL, SHL_OPT_BOOL, offsetof(ckpt_options, tensors), 0, 0, NULL, NULL, NULL,
     "Output", "info: the tensors too."},
    {"limit", NULL, SHL_OPT_INT, offsetof(ckpt_options, limit), 1, 1e9, "10", NULL, "tensors",
     "Output", "diff: how many different tensors are listed."},
};

static int
dump_to_str(const char *text, size_t len, void *data)
{
    shl_str_add_text(data, text, len);
    return 0;
}

/* Takes json over; NULL stands for a list or object that could not be built. */
static void
add_json(shl_str *out, json_t *json)
{
    if (json == NULL || json_dump_callback(json, dump_to_str, out, JSON_INDENT(1)) != 0) {
        out->failed = true;
    }
    shl_str_add(out, "\n");
    json_decref(json);
}

static void
spell_hash(const shl_ckpt_file *f, char dst[33])
{
    shl_strf(dst, 33, "%016" PRIx64 "%016" PRIx64, f->hash[0], f->hash[1]);
}

static int64_t
elems_of(const shl_ckpt_tensor *t)
{
    int64_t n = 1;
    for (int i = 0; i < t->n_dims; i++) {
        n *= t->dims[i];
    }
    return n;
}

static int64_t
file_bytes(const shl_ckpt_reader *r)
{
    int64_t bytes = 0;
    for (int i = 0; i < shl_ckpt_n_files(r); i++) {
        bytes += shl_ckpt_file_at(r, i)->bytes;
    }
    return bytes;
}

static int64_t
params_of(const shl_ckpt_reader *r)
{
    int64_t n = 0;
    for (int i = 0; i < shl_ckpt_n_tensors(r); i++) {
        shl_ckpt_tensor t = shl_ckpt_tensor_at(r, i);
        n += strcmp(t.kind, "param") == 0 ? elems_of(&t) : 0;
    }
    return n;
}

/* --- ls ---------------------------------------------------------------------------------- */

/* Why a step cannot be opened, in a word. Clears the thread's error. */
static const char *
state_of(const shl_ckpt_step *s, shl_code code)
{
    const char *word = code == SHL_OK ? "complete" : "unreadable";
    word = code == SHL_E_VERIFY ? "damaged" : word;
    shl_err_clear();
    return s->whole ? word : "incomplete";
}

static void
list_row(shl_str *out, const shl_ckpt_step *s, const char *state, const shl_ckpt_reader *r)
{
    char bytes[32] = "";
    if (r == NULL) {
        shl_str_add(out, "%-16s %-10s %-6s\n", s->name, state, s->latest ? "latest" : "");
        return;
    }
    const shl_ckpt_meta *m = shl_ckpt_reader_meta(r);
    shl_format_bytes((size_t)file_bytes(r), bytes, sizeof bytes);
    shl_str_add(out, "%-16s %-10s %-6s %-24s %-12s %5d %11s  %.8s\n", s->name, state,
                s->latest ? "latest" : "", m->model, m->strategy, m->world, bytes, m->run_id);
}

static json_t *
list_json(const shl_ckpt_step *s, const char *state, const shl_ckpt_reader *r)
{
    json_t *row = json_pack("{ss ss sb}", "name", s->name, "state", state, "latest", s->latest);
    if (row != NULL && r != NULL) {
        const shl_ckpt_meta *m = shl_ckpt_reader_meta(r);
        json_t *more = json_pack("{ss ss si sI sI ss}", "model", m->model, "strategy", m->strategy,
                                 "ranks", m->world, "step", (json_int_t)m->step, "bytes",
                                 (json_int_t)file_bytes(r), "run_id", m->run_id);
        (void)json_object_update(row, more);
        json_decref(more);
    }
    return row;
}

static shl_code
run_ls(const ckpt_options *o, const char *const *paths, shl_str *out)
{
    shl_ckpt_step *steps = NULL;
    json_t *rows = o->json ? json_array() : NULL;
    int n = 0;
    SHL_TRY(shl_ckpt_list(paths[0], &steps, &n));
    if (!o->json) {
        shl_str_add(out, "%-16s %-10s %-6s %-24s %-12s %5s %11s  %s\n", "checkpoint", "state", "",
                    "model", "strategy", "ranks", "size", "run");
    }
    for (int i = 0; i < n; i++) {
        char path[1024];
        shl_ckpt_reader *r = NULL;
        shl_strf(path, sizeof path, "%s/%s", paths[0], steps[i].name);
        const char *state = state_of(&steps[i], shl_ckpt_open_manifest(path, &r));
        if (o->json) {
            out->failed =
                json_array_append_new(rows, list_json(&steps[i], state, r)) != 0 || out->failed;
        } else {
            list_row(out, &steps[i], state, r);
        }
        shl_ckpt_close(&r);
    }
    shl_heap_free(&steps);
    if (o->json) {
        add_json(out, rows);
    }
    return SHL_OK;
}

/* --- info -------------------------------------------------------------------------------- */

static json_t *
files_json(const shl_ckpt_reader *r)
{
    json_t *list = json_array();
    for (int i = 0; i < shl_ckpt_n_files(r); i++) {
        char hash[33];
        const shl_ckpt_file *f = shl_ckpt_file_at(r, i);
        spell_hash(f, hash);
        (void)json_array_append_new(list, json_pack("{ss sI ss}", "name", f->name, "bytes",
                                                    (json_int_t)f->bytes, "xxh3_128", hash));
    }
    return list;
}

static json_t *
tensors_json(const shl_ckpt_reader *r)
{
    json_t *list = json_array();
    for (int i = 0; i < shl_ckpt_n_tensors(r); i++) {
        shl_ckpt_tensor t = shl_ckpt_tensor_at(r, i);
        json_t *dims = json_array();
        for (int k = 0; k < t.n_dims; k++) {
            (void)json_array_append_new(dims, json_integer((json_int_t)t.dims[k]));
        }
        (void)json_array_append_new(
            list, json_pack("{ss ss so}", "kind", t.kind, "name", t.name, "dims", dims));
    }
    return list;
}

static json_t *
info_json(const shl_ckpt_reader *r)
{
    const shl_ckpt_meta *m = shl_ckpt_reader_meta(r);
    char seed[24];
    /* Text, because JSON integers end at 2^63 in many readers. */
    shl_strf(seed, sizeof seed, "%" PRIu64, m->seed);
    return json_pack("{ss ss ss ss si sI sI ss sI sI si so so so}", "path", shl_ckpt_path(r),
                     "run_id", m->run_id, "model", m->model, "strategy", m->strategy, "ranks",
                     m->world, "step", (json_int_t)m->step, "data_sample",
                     (json_int_t)m->data_sample, "seed", seed, "params", (json_int_t)params_of(r),
                     "bytes", (json_int_t)file_bytes(r), "fragments", shl_ckpt_n_fragments(r),
                     "config", json_loads(m->config, JSON_REJECT_DUPLICATES, NULL), "files",
                     files_json(r), "tensors", tensors_json(r));
}

static void
info_lines(shl_str *out, const shl_ckpt_reader *r, bool tensors)
{
    const shl_ckpt_meta *m = shl_ckpt_reader_meta(r);
    char bytes[32];
    shl_format_bytes((size_t)file_bytes(r), bytes, sizeof bytes);
    int64_t params = params_of(r);
    shl_str_add(out, "%-12s %s\n%-12s %s\n", "path", shl_ckpt_path(r), "model", m->model);
    shl_str_add(out, "%-12s %s on %d ranks, run %s\n", "saved by", m->strategy, m->world,
                m->run_id);
    shl_str_add(out, "%-12s %" PRId64 ", next sample %" PRId64 ", seed %" PRIu64 "\n", "step",
                m->step, m->data_sample, m->seed);
    shl_str_add(out, "%-12s %" PRId64 " in %d tensors with their moments\n", "parameters", params,
                shl_ckpt_n_tensors(r));
    shl_str_add(out, "%-12s %s in %d files, %d fragments, %.3f bytes per parameter\n", "size",
                bytes, shl_ckpt_n_files(r), shl_ckpt_n_fragments(r),
                params > 0 ? (double)file_bytes(r) / (double)params : 0.0);
    shl_str_add(out, "%-12s %s\n", "config", m->config);
    for (int i = 0; tensors && i < shl_ckpt_n_tensors(r); i++) {
        shl_ckpt_tensor t = shl_ckpt_tensor_at(r, i);
        shl_str_add(out, "%-7s %-34s", t.kind, t.name);
        for (int k = 0; k < t.n_dims; k++) {
            shl_str_add(out, "%s%" PRId64, k > 0 ? " x " : " ", t.dims[k]);
        }
        shl_str_add(out, "\n");
    }
}

static shl_code
run_show(const ckpt_options *o, const char *const *paths, shl_str *out)
{
    shl_ckpt_reader *r = NULL;
    SHL_TRY(shl_ckpt_open_manifest(paths[0], &r));
    if (o->json) {
        add_json(out, info_json(r));
    } else {
        info_lines(out, r, o->tensors);
    }
    shl_ckpt_close(&r);
    return SHL_OK;
}

/* --- verify ------------------------------------------------------------------------------ */

/* Every file, so that all that is damaged is listed; the error is the first one's. */
static shl_code
verify_files(shl_ckpt_reader *r, json_t *rows, shl_str *out)
{
    shl_err first = {0};
    for (int i = 0; i < shl_ckpt_n_files(r); i++) {
        char hash[33];
        const shl_ckpt_file *f = shl_ckpt_file_at(r, i);
        spell_hash(f, hash);
        shl_code code = shl_ckpt_check_file(r, i);
        if (code != SHL_OK && first.code == SHL_OK) {
            first = *shl_err_get();
            first.code = SHL_E_VERIFY; /* a file that is gone is damage here */
        }
        if (rows != NULL) {
            (void)json_array_append_new(rows, json_pack("{ss sI ss sb ss}", "name", f->name,
                                                        "bytes", (json_int_t)f->bytes, "xxh3_128",
                                                        hash, "ok", code == SHL_OK, "error",
                                                        code == SHL_OK ? "" : shl_err_get()->what));
        } else {
            shl_str_add(out, "%-8s %12" PRId64 "  %s  %s\n", code == SHL_OK ? "ok" : "DAMAGED",
                        f->bytes, hash, f->name);
        }
    }
    return first.code == SHL_OK ? SHL_OK : shl_err_put(&first);
}

static shl_code
run_verify(const ckpt_options *o, const char *const *paths, shl_str *out)
{
    shl_ckpt_reader *r = NULL;
    SHL_TRY(shl_ckpt_open_manifest(paths[0], &r));
    json_t *rows = o->json ? json_array() : NULL;
    shl_code code = verify_files(r, rows, out);
    if (o->json) {
        add_json(out, json_pack("{ss sb so}", "path", shl_ckpt_path(r), "ok", code == SHL_OK,
                                "files", rows));
    } else if (code == SHL_OK) {
        shl_str_add(out, "%s: %d files are as they were saved\n", shl_ckpt_path(r),
                    shl_ckpt_n_files(r));
    }
    shl_ckpt_close(&r);
    return code;
}

/* --- diff -------------------------------------------------------------------------------- */

static const char *const verdicts[] = {"other bits", "other shape", "only in A", "only in B"};

typedef struct diff_context {
    const ckpt_options *options;
    shl_str *out;
    json_t *rows;
    int n;
    char first[200];
} diff_context;

static shl_code
tell_difference(void *ctx, const shl_ckpt_difference *d)
{
    diff_context *c = ctx;
    bool counted = d->verdict == SHL_CKPT_OTHER_BITS;
    if (c->n++ == 0) {
        shl_strf(c->first, sizeof c->first, "%s/%s", d->tensor.kind, d->tensor.name);
    }
    if (c->rows != NULL) {
        json_t *max = counted && isfinite(d->max_abs) ? json_real(d->max_abs) : json_null();
        (void)json_array_append_new(
            c->rows,
            json_pack("{ss ss ss sI sI sI so}", "kind", d->tensor.kind, "name", d->tensor.name,
                      "verdict", verdicts[d->verdict], "elems", (json_int_t)d->elems, "differ",
                      (json_int_t)d->n_other, "first", (json_int_t)d->first, "max_abs", max));
        return SHL_OK;
    }
    if (c->n == 1) {
        shl_str_add(c->out, "%-7s %-34s %-11s %12s %12s %12s %12s\n", "kind", "tensor", "verdict",
                    "elements", "differ", "first at", "max abs");
    }
    if (c->n > c->options->limit) {
        return SHL_OK;
    }
    shl_str_add(c->out, "%-7s %-34s %-11s %12" PRId64, d->tensor.kind, d->tensor.name,
                verdicts[d->verdict], d->elems);
    if (counted) {
        shl_str_add(c->out, " %12" PRId64 " %12" PRId64 " %12.4g", d->n_other, d->first,
                    d->max_abs);
    }
    shl_str_add(c->out, "\n");
    return SHL_OK;
}

/* What continues a run besides tensors. Appends "step, seed" of those that differ. */
static void
compare_meta(const shl_ckpt_meta *a, const shl_ckpt_meta *b, char *text, size_t cap)
{
    const struct {
        const char *name;
        bool same;
    } rows[] = {{"model", strcmp(a->model, b->model) == 0},
                {"step", a->step == b->step},
                {"data_sample", a->data_sample == b->data_sample},
                {"seed", a->seed == b->seed}};
    text[0] = '\0';
    for (size_t i = 0; i < SHL_ARRAY_LEN(rows); i++) {
        size_t len = strlen(text);
        if (!rows[i].same) {
            shl_strf(text + len, cap - len, "%s%s", len > 0 ? ", " : "", rows[i].name);
        }
    }
}

static json_t *
side_json(const shl_ckpt_reader *r)
{
    const shl_ckpt_meta *m = shl_ckpt_reader_meta(r);
    return json_pack("{ss ss ss si sI}", "path", shl_ckpt_path(r), "model", m->model, "strategy",
                     m->strategy, "ranks", m->world, "step", (json_int_t)m->step);
}

static void
diff_lines(const diff_context *c, const char *meta, const shl_ckpt_reader *a,
           const shl_ckpt_reader *b)
{
    const shl_ckpt_reader *const sides[] = {a, b};
    if (c->n > c->options->limit) {
        shl_str_add(c->out, "and %d more\n", c->n - (int)c->options->limit);
    }
    if (meta[0] != '\0') {
        shl_str_add(c->out, "not the same: %s\n", meta);
    }
    for (int i = 0; i < 2; i++) {
        const shl_ckpt_meta *m = shl_ckpt_reader_meta(sides[i]);
        shl_str_add(c->out, "%c  %s  step %" PRId64 ", %s on %d ranks\n", 'A' + i,
                    shl_ckpt_path(sides[i]), m->step, m->strategy, m->world);
    }
    if (c->n == 0 && meta[0] == '\0') {
        shl_str_add(c->out, "%d tensors, equal to the bit\n", shl_ckpt_n_tensors(a));
    }
}

static shl_code
raise_different(const diff_context *c, const char *meta, const shl_ckpt_reader *a,
                const shl_ckpt_reader *b)
{
    SHL_RAISE(SHL_E_VERIFY, "%s and %s differ", shl_ckpt_path(a), shl_ckpt_path(b));
    if (c->n == 0) {
        return shl_err_because("not the same: %s", meta);
    }
    return shl_err_because("%d of %d tensors, first %s", c->n, shl_ckpt_n_tensors(a), c->first);
}

static shl_code
diff_readers(const ckpt_options *o, shl_ckpt_reader *a, shl_ckpt_reader *b, shl_str *out)
{
    char meta[64];
    int n = 0;
    diff_context c = {.options = o, .out = out, .rows = o->json ? json_array() : NULL};
    shl_code code = shl_ckpt_diff(a, b, tell_difference, &c, &n);
    if (code != SHL_OK) {
        json_decref(c.rows);
        return code;
    }
    compare_meta(shl_ckpt_reader_meta(a), shl_ckpt_reader_meta(b), meta, sizeof meta);
    bool equal = n == 0 && meta[0] == '\0';
    if (o->json) {
        add_json(out, json_pack("{sb so so si ss so}", "equal", equal, "a", side_json(a), "b",
                                side_json(b), "differ", n, "meta", meta, "tensors", c.rows));
    } else {
        diff_lines(&c, meta, a, b);
    }
    return equal ? SHL_OK : raise_different(&c, meta, a, b);
}

/* Both are verified first, so that damage is not told as a difference. */
static shl_code
run_diff(const ckpt_options *o, const char *const *paths, shl_str *out)
{
    shl_ckpt_reader *a = NULL;
    shl_ckpt_reader *b = NULL;
    shl_code code = shl_ckpt_open(paths[0], true, &a);
    if (code == SHL_OK) {
        code = shl_ckpt_open(paths[1], true, &b);
    }
    if (code == SHL_OK) {
        code = diff_readers(o, a, b, out);
    }
    shl_ckpt_close(&a);
    shl_ckpt_close(&b);
    return code;
}

/* ----------------------------------------------------------------------------------------- */

typedef struct look {
    const char *name, *words;
    int n_paths;
    shl_code (*run)(const ckpt_options *o, const char *const *paths, shl_str *out);
} look;

static const look looks[] = {{"ls", "DIR", 1, run_ls},
                             {"info", "PATH", 1, run_show},
                             {"verify", "PATH", 1, run_verify},
                             {"diff", "A B", 2, run_diff}};

static shl_code
choose(const char *word, int n_words, const look **out)
{
    const char *names[SHL_ARRAY_LEN(looks)];
    for (size_t i = 0; i < SHL_ARRAY_LEN(looks); i++) {
        names[i] = looks[i].name;
        if (n_words > 0 && strcmp(word, looks[i].name) == 0) {
            *out = &looks[i];
        }
    }
    if (*out == NULL) {
        const char *near = n_words > 0 ? shl_nearest(word, names, SHL_ARRAY_LEN(names)) : NULL;
        SHL_RAISE(SHL_E_USAGE, "ckpt does not know \"%s\"", n_words > 0 ? word : "");
        shl_err_because("it takes ls DIR, info PATH, verify PATH or diff A B");
        return shl_err_advice("shardlab ckpt %s", near != NULL ? near : "ls DIR");
    }
    if (n_words != 1 + (*out)->n_paths) {
        SHL_RAISE(SHL_E_USAGE, "ckpt %s takes %d path%s", word, (*out)->n_paths,
                  (*out)->n_paths == 1 ? "" : "s");
        shl_err_because("%d %s given", n_words - 1, n_words == 2 ? "was" : "were");
        return shl_err_advice("shardlab ckpt %s %s", word, (*out)->words);
    }
    return SHL_OK;
}

static shl_code
run_ckpt(const shl_cli *cli)
{
    ckpt_options o;
    const char *words[4] = {NULL};
    int n_words = 0;
    bool help_shown;
    const look *chosen = NULL;
    SHL_TRY(shl_cli_parse(&shl_command_ckpt, cli, &o, NULL, words, &n_words,
                          (int)SHL_ARRAY_LEN(words), &help_shown));
    if (help_shown) {
        return SHL_OK;
    }
    SHL_TRY(choose(words[0], n_words, &chosen));
    shl_str out = {0};
    shl_code code = chosen->run(&o, words + 1, &out);
    /* A finding (damage, a difference) comes with its table; a failure leaves stdout empty. */
    shl_err finding = *shl_err_get();
    if (code == SHL_OK || (code == SHL_E_VERIFY && out.len > 0)) {
        shl_code printed = shl_cli_print(&out);
        code = printed != SHL_OK || code == SHL_OK ? printed : shl_err_put(&finding);
    }
    shl_str_fini(&out);
    return code;
}

const shl_command shl_command_ckpt = {
    .name = "ckpt",
    .summary = "list, describe, verify and compare checkpoints",
    .usage = "shardlab ckpt ls DIR | info PATH | verify PATH | diff A B [options]",
    .examples = "  shardlab train --strategy ddp --ranks 2 --steps 2 --ckpt-dir runs/ddp\n"
                "  shardlab train --strategy zero3 --ranks 2 --steps 2 --ckpt-dir runs/zero3\n"
                "  shardlab ckpt diff runs/ddp runs/zero3   # equal bits: exit 0\n"
                "  shardlab ckpt ls runs/zero3\n"
                "  shardlab ckpt verify runs/zero3   # the latest, every file by its hash\n",
    .words = "ls info verify diff " SHL_WORDS_FILES,
    .options = TABLE,
    .n_options = SHL_ARRAY_LEN(TABLE),
    .run = run_ckpt,
};

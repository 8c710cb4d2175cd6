/* engines/api: where engine and checkpoint meet: an engine yields named shards, a checkpoint takes them.
 * Ranks agree between the phases that checkpoints/ckpt.h names. */
#include <inttypes.h>
#include <string.h>
#include <sys/random.h>

#include <jansson.h>

#include "engines/api/lab.h"
#include "kernels/base/clock.h"
#include "kernels/base/heap.h"
#include "kernels/base/str.h"

static const char *const kinds[] = {"param", "opt/m", "opt/v"};

/* Every logical tensor of the model in each kind that it has: a frozen one is a parameter only. Names and
 * dims borrowed from the model. */
static shl_code
list_tensors(const shl_lab *lab, shl_ckpt_tensor **out, int *n)
{
    const shl_model *model = lab->model;
    const shl_engine_config *e = &lab->setup.engine;
    const bool has[] = {true, !e->no_optimizer && shl_optim_has_m(&e->optim),
                        !e->no_optimizer && shl_optim_has_v(&e->optim)};
    int n_kinds = (int)SHL_ARRAY_LEN(kinds);
    shl_ckpt_tensor *list = NULL;
    *n = 0;
    SHL_TRY(shl_heap_alloc((size_t)(model->n_params * n_kinds), sizeof(*list), &list));
    for (int k = 0; k < n_kinds; k++) {
        for (int i = 0; i < model->n_params; i++) {
            const shl_param *p = model->params[i];
            if (!has[k] || (k > 0 && !p->trainable)) {
                continue;
            }
            shl_ckpt_tensor *t = &list[(*n)++];
            t->name = p->name;
            t->kind = kinds[k];
            t->n_dims = p->n_dims;
            memcpy(t->dims, p->dims, sizeof(t->dims));
            t->dims[0] = p->full_rows;
        }
    }
    *out = list;
    return SHL_OK;
}

/* One id for the run, drawn by rank 0. */
static shl_code
agree_run_id(shl_lab *lab)
{
    int64_t words[2] = {0, 0};
    shl_code code = SHL_OK;
    if (lab->run_id[0]) {
        return SHL_OK;
    }
    if (lab->setup.rank == 0 && getrandom(words, sizeof(words), 0) != (ssize_t)sizeof(words)) {
        code = SHL_RAISE(SHL_E_SYSTEM, "the system gives no random bytes for a run id");
    }
    SHL_TRY(shl_lab_agree_code(lab, code, "save"));
    SHL_TRY(shl_lab_sum_words(lab, words, 2));
    shl_strf(lab->run_id, sizeof(lab->run_id), "%016" PRIx64 "%016" PRIx64, (uint64_t)words[0],
             (uint64_t)words[1]);
    return SHL_OK;
}

/* The handle's own keys are kept: they are what a load compares. */
static shl_code
config_json(const shl_lab *lab, const char *extra, json_t **out)
{
    SHL_TRY(shl_lab_setup_json(&lab->setup, out));
    if (!extra) {
        return SHL_OK;
    }
    json_error_t error;
    json_t *more = json_loads(extra, JSON_REJECT_DUPLICATES, &error);
    shl_code code = SHL_OK;
    if (!json_is_object(more)) {
        code = SHL_RAISE(SHL_E_USAGE, "the configuration for a checkpoint is no JSON object");
        shl_err_because("%s", more ? "it is another kind of value" : error.text);
    } else if (json_object_update_missing(*out, more) != 0) {
        code = SHL_RAISE(SHL_E_HEAP, "out of host memory for a configuration record");
    }
    json_decref(more);
    return code;
}

static void
put_progress(const shl_engine *e, shl_ckpt_meta *meta)
{
    static const char *const kinds_of_scaler[] = {
        [SHL_SCALE_NONE] = "none", [SHL_SCALE_STATIC] = "static", [SHL_SCALE_DYNAMIC] = "dynamic"};
    shl_engine_progress p;
    shl_engine_get_progress(e, &p);
    meta->step = p.step;
    meta->skipped = p.skipped;
    shl_strf(meta->scaler, sizeof(meta->scaler), "%s", kinds_of_scaler[e->config.scale.kind]);
    meta->scale = p.scaler.scale;
    meta->hysteresis_left = p.scaler.hysteresis_left;
    meta->scaler_steps = p.scaler.steps;
    meta->last_overflow = p.scaler.last_overflow;
}

static shl_code
make_meta(const shl_lab *lab, int64_t cursor, const char *extra, shl_ckpt_meta *meta)
{
    const shl_lab_setup *s = &lab->setup;
    memset(meta, 0, sizeof(*meta));
    shl_strf(meta->model, sizeof(meta->model), "%s", s->model);
    shl_strf(meta->run_id, sizeof(meta->run_id), "%s", lab->run_id);
    shl_strf(meta->strategy, sizeof(meta->strategy), "%s", shl_strategy_name(s->engine.strategy));
    put_progress(lab->engine, meta);
    meta->data_sample = cursor;
    meta->seed = s->engine.seed;
    meta->world = s->ranks;
    meta->whole_weights = s->engine.zero.given && s->engine.zero.gather_on_save;
    meta->weights_dtype = s->engine.compute_dtype;
    json_t *config = NULL;
    shl_code code = config_json(lab, extra, &config);
    size_t len = code == SHL_OK
                     ? json_dumpb(config, meta->config, sizeof(meta->config) - 1, JSON_COMPACT)
                     : 0;
    json_decref(config);
    if (code == SHL_OK && (len == 0 || len >= sizeof(meta->config))) {
        code = SHL_RAISE(SHL_E_USAGE, "the configuration does not fit into a checkpoint");
        shl_err_because("it takes %zu of %zu bytes; paths may be too long", len,
                        sizeof(meta->config) - 1);
    }
    return code;
}

/* --- save -------------------------------------------------------------------------------- */

typedef struct put_context {
    shl_ckpt_writer *writer;
    shl_device *device;
} put_context;

static shl_code
put_shard(void *ctx, const shl_shard *shard)
{
    put_context *put = (put_context *)ctx;
    return shl_ckpt_put(put->writer, put->device, shard);
}

/* This rank's file. */
static shl_code
write_file(shl_lab *lab, const char *dir, const shl_ckpt_meta *meta, shl_ckpt_file *file)
{
    put_context put = {.device = lab->device};
    SHL_TRY(shl_ckpt_save_begin(dir, meta, lab->setup.rank, lab->setup.ranks, &put.writer));
    shl_code code = shl_engine_visit_state(lab->engine, SHL_VISIT_READ, put_shard, &put);
    if (code != SHL_OK) {
        shl_err failure = *shl_err_get();
        shl_ckpt_save_abort(&put.writer);
        return shl_err_put(&failure);
    }
    return shl_ckpt_save_finish(&put.writer, file);
}

/* Every rank's file record on every rank. */
static shl_code
gather_files(shl_lab *lab, const shl_ckpt_file *mine, shl_ckpt_file **out)
{
    _Static_assert(sizeof(shl_ckpt_file) % sizeof(int64_t) == 0, "file records travel as words");
    const int64_t words = (int64_t)(sizeof(shl_ckpt_file) / sizeof(int64_t));
    shl_ckpt_file *files = NULL;
    SHL_TRY(shl_heap_alloc((size_t)lab->setup.ranks, sizeof(*files), &files));
    files[lab->setup.rank] = *mine;
    shl_code code = shl_lab_sum_words(lab, (int64_t *)(void *)files, words * lab->setup.ranks);
    if (code != SHL_OK) {
        shl_heap_free(&files);
    }
    *out = files;
    return code;
}

static shl_code
commit(shl_lab *lab, const char *dir, const shl_ckpt_meta *meta, const shl_ckpt_file *files)
{
    shl_ckpt_tensor *tensors = NULL;
    int n = 0;
    if (lab->setup.rank != 0) {
        return SHL_OK;
    }
    SHL_TRY(list_tensors(lab, &tensors, &n));
    shl_code code = shl_ckpt_save_commit(dir, meta, tensors, n, files, lab->setup.ranks);
    shl_heap_free(&tensors);
    return code;
}

static shl_code
save_phases(shl_lab *lab, const char *dir, const shl_ckpt_meta *meta)
{
    shl_ckpt_file mine, *files = NULL;
    memset(&mine, 0, sizeof(mine));
    shl_code code = lab->setup.rank == 0 ? shl_ckpt_save_prepare(dir, meta) : SHL_OK;
    SHL_TRY(shl_lab_agree_code(lab, code, "save"));
    code = write_file(lab, dir, meta, &mine);
    SHL_TRY(shl_lab_agree_code(lab, code, "save"));
    SHL_TRY(gather_files(lab, &mine, &files));
    lab->save_bytes = 0;
    for (int i = 0; i < lab->setup.ranks; i++) {
        lab->save_bytes += files[i].bytes;
    }
    code = commit(lab, dir, meta, files);
    shl_heap_free(&files);
    return shl_lab_agree_code(lab, code, "save");
}

static shl_code
save(shl_lab *lab, const char *dir, int64_t cursor, const char *extra)
{
    shl_ckpt_meta meta;
    shl_ledger *ledger = lab->device->ledger;
    shl_mark mark = shl_ledger_get_mark(ledger);
    shl_ledger_set_mark(ledger, SHL_MARK_SAVE);
    SHL_TRY(agree_run_id(lab));
    SHL_TRY(shl_lab_agree_code(lab, make_meta(lab, cursor, extra, &meta), "save"));
    int64_t begun_ns = shl_clock_ns();
    shl_code code = save_phases(lab, dir, &meta);
    if (code != SHL_OK && lab->setup.rank == 0) {
        shl_err failure = *shl_err_get();
        shl_ckpt_save_discard(dir, &meta);
        (void)shl_err_put(&failure);
    }
    lab->save_ns = shl_clock_ns() - begun_ns;
    if (code == SHL_OK) { /* messages tell the phase that failed */
        shl_ledger_set_mark(ledger, mark);
    }
    return code;
}

static shl_code
check_call(const shl_lab *lab, const char *dir, const char *call)
{
    SHL_TRY(shl_lab_check_between(lab, call));
    if (!dir || !dir[0]) {
        return SHL_RAISE(SHL_E_USAGE, "%s: the folder is %s", call, dir ? "empty" : "NULL");
    }
    if (!lab->device->caps.has_bytes) {
        SHL_RAISE(SHL_E_USAGE, "%s on a device without data", call);
        return shl_err_because("it accounts for everything and computes nothing, so there is no "
                               "checkpoint to save or load");
    }
    return SHL_OK;
}

int
shl_lab_save(shl_lab *lab, const char *dir, int64_t cursor, const char *config)
{
    shl_code code = check_call(lab, dir, "shl_lab_save");
    if (code != SHL_OK) {
        return shl_lab_leave(lab, code);
    }
    lab->agreed = false;
    return shl_lab_leave_collective(lab, save(lab, dir, cursor, config), "save");
}

/* --- load -------------------------------------------------------------------------------- */

typedef struct get_context {
    shl_ckpt_reader *reader;
    shl_device *device;
} get_context;

static shl_code
get_shard(void *ctx, const shl_shard *shard)
{
    get_context *get = (get_context *)ctx;
    return shl_ckpt_get(get->reader, get->device, shard);
}

static shl_code
raise_mismatch(const char *what, const char *theirs, const char *ours)
{
    SHL_RAISE(SHL_E_CONFIG, "the checkpoint is of another run: %s differs", what);
    shl_err_because("%s is %s in the checkpoint and %s here", what, theirs, ours);
    return shl_err_advice("the same %s as before, or another --ckpt-dir", what);
}

/* One value of both configurations, as text. The two objects have the same layout. */
static shl_code
compare_key(const json_t *theirs, const json_t *ours, const char *key)
{
    const json_t *a = json_object_get(theirs, key), *b = json_object_get(ours, key);
    if ((!a && !b) || json_equal(a, b)) {
        return SHL_OK;
    }
    char *a_text =
        a ? json_dumps(a, JSON_COMPACT | JSON_ENCODE_ANY | JSON_REAL_PRECISION(9)) : NULL;
    char *b_text =
        b ? json_dumps(b, JSON_COMPACT | JSON_ENCODE_ANY | JSON_REAL_PRECISION(9)) : NULL;
    shl_code code = raise_mismatch(key, a_text ? a_text : "absent", b_text ? b_text : "absent");
    json_free_t release;
    json_get_alloc_funcs(NULL, &release);
    release(a_text);
    release(b_text);
    return code;
}

/* Sizes that tensors show, and what they do not: epsilon, rotary angles. What one side leaves out is at its
 * default there; a checkpoint from before there were families names none. */
static shl_code
compare_shape(json_t *theirs, json_t *ours)
{
    const char *key;
    json_t *value;
    json_object_foreach(ours, key, value)
    {
        if (strcmp(key, "family") != 0 || json_object_get(theirs, key)) {
            SHL_TRY(compare_key(theirs, ours, key));
        }
    }
    json_object_foreach(theirs, key, value)
    {
        SHL_TRY(compare_key(theirs, ours, key));
    }
    return SHL_OK;
}

/* The schedule and what else decides the next numbers must be the same; ranks, strategy, batch and
 * everything that only moves bytes may differ. */
static shl_code
compare_config(const json_t *theirs, const json_t *ours)
{
    static const char *const top[] = {"seed", "seq"};
    static const char *const absent[] = {"dampening", "nesterov", "bias-correction"};
    static const char *const tune[] = {
        "freeze",    "train-last", "lora-rank",         "lora-alpha",
        "lora-base", "dropout",    "attention-dropout", "lora-targets"};
    const json_t *a = json_object_get(theirs, "optim");
    const char *key;
    json_t *value;
    for (size_t i = 0; i < SHL_ARRAY_LEN(top); i++) {
        SHL_TRY(compare_key(theirs, ours, top[i]));
    }
    for (size_t i = 0; i < SHL_ARRAY_LEN(tune); i++) {
        SHL_TRY(
            compare_key(json_object_get(theirs, "tune"), json_object_get(ours, "tune"), tune[i]));
    }
    /* jansson iterates over objects that it takes as not const, and changes nothing. */
    json_t *mine = json_object_get(ours, "optim");
    SHL_ASSERT(mine != NULL);
    const char *optimizer = json_string_value(json_object_get(mine, "optimizer"));
    if (strcmp(optimizer, "none") == 0) {
        return SHL_OK; /* what decides updates says nothing */
    }
    const char *before = json_string_value(json_object_get(a, "optimizer"));
    before = before ? before : shl_optim_name(SHL_OPTIM_ADAMW); /* the only one there was */
    if (strcmp(optimizer, before) != 0) {
        return raise_mismatch("optimizer", before, optimizer);
    }
    json_object_foreach(mine, key, value)
    {
        if (strcmp(key, "optimizer") != 0) {
            SHL_TRY(compare_key(a, mine, key));
        }
    }
    for (size_t i = 0; i < SHL_ARRAY_LEN(absent); i++) { /* where they are at their defaults */
        SHL_TRY(compare_key(a, mine, absent[i]));
    }
    return compare_shape(json_object_get(theirs, "shape"), json_object_get(ours, "shape"));
}

/* The program's own keys, such as the order of its data. An older checkpoint may not have them. */
static shl_code
compare_extra(const json_t *theirs, const json_t *must_match)
{
    const char *key;
    json_t *value;
    /* jansson iterates over objects that it takes as not const, and changes nothing. */
    json_object_foreach((json_t *)(uintptr_t)must_match, key, value)
    {
        if (json_object_get(theirs, key)) {
            SHL_TRY(compare_key(theirs, must_match, key));
        }
    }
    return SHL_OK;
}

static shl_code
check_meta(const shl_lab *lab, const shl_ckpt_meta *meta)
{
    const shl_lab_setup *s = &lab->setup;
    char theirs_text[24], ours_text[24];
    shl_strf(theirs_text, sizeof(theirs_text), "%" PRIu64, meta->seed);
    shl_strf(ours_text, sizeof(ours_text), "%" PRIu64, s->engine.seed);
    if (strcmp(meta->model, s->model) != 0) {
        return raise_mismatch("model", meta->model, s->model);
    }
    if (meta->seed != s->engine.seed) {
        return raise_mismatch("seed", theirs_text, ours_text);
    }
    json_t *theirs = json_loads(meta->config, JSON_REJECT_DUPLICATES, NULL);
    json_t *ours = NULL;
    shl_code code = theirs ? shl_lab_setup_json(s, &ours)
                           : SHL_RAISE(SHL_E_VERIFY, "the checkpoint's configuration is not JSON");
    if (code == SHL_OK) {
        code = compare_config(theirs, ours);
    }
    if (code == SHL_OK && lab->must_match) {
        code = compare_extra(theirs, lab->must_match);
    }
    json_decref(theirs);
    json_decref(ours);
    return code;
}

/* Opens and compares; nothing is loaded yet. */
static shl_code
open_checkpoint(shl_lab *lab, const char *dir, shl_ckpt_reader **out)
{
    shl_ckpt_tensor *tensors = NULL;
    int n = 0;
    /* One rank reads every file for its hash; the others trust it after the agreement. */
    SHL_TRY(shl_ckpt_open(dir, lab->setup.rank == 0, out));
    SHL_TRY(check_meta(lab, shl_ckpt_reader_meta(*out)));
    SHL_TRY(list_tensors(lab, &tensors, &n));
    shl_code code = shl_ckpt_check_tensors(*out, tensors, n, !lab->setup.engine.no_optimizer);
    shl_heap_free(&tensors);
    return code;
}

static shl_code
load_state(shl_lab *lab, get_context *get, int64_t *cursor)
{
    SHL_TRY(shl_engine_visit_state(lab->engine, SHL_VISIT_WRITE, get_shard, get));
    SHL_TRY(shl_lab_agree_code(lab, SHL_OK, "load"));
    const shl_ckpt_meta *meta = shl_ckpt_reader_meta(get->reader);
    shl_engine_progress progress = {
        .step = meta->step,
        .skipped = meta->skipped,
        .scaler = {meta->scale, meta->hysteresis_left, meta->scaler_steps, meta->last_overflow}};
    shl_engine_set_progress(lab->engine, &progress, strcmp(meta->scaler, "dynamic") == 0);
    shl_strf(lab->run_id, sizeof(lab->run_id), "%s", meta->run_id);
    if (cursor) {
        *cursor = meta->data_sample;
    }
    return SHL_OK;
}

static shl_code
load(shl_lab *lab, const char *dir, int64_t *cursor)
{
    get_context get = {.device = lab->device};
    shl_code code = open_checkpoint(lab, dir, &get.reader);
    code = shl_lab_agree_code(lab, code, "load");
    if (code == SHL_OK) {
        code = load_state(lab, &get, cursor);
        lab->broken = code != SHL_OK; /* some values are the checkpoint's, others are not */
    }
    shl_err failure = *shl_err_get();
    shl_ckpt_close(&get.reader);
    return code == SHL_OK ? SHL_OK : shl_err_put(&failure);
}

int
shl_lab_load(shl_lab *lab, const char *dir, int64_t *cursor)
{
    if (cursor) {
        *cursor = 0;
    }
    shl_code code = check_call(lab, dir, "shl_lab_load");
    if (code != SHL_OK) {
        return shl_lab_leave(lab, code);
    }
    lab->agreed = false;
    return shl_lab_leave_collective(lab, load(lab, dir, cursor), "load");
}

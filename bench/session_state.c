/* bench: where engine and checkpoint meet: an engine yields named shards, a checkpoint takes them.
 * Ranks agree between the phases that checkpoints/ckpt.h names. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>

#include <jansson.h>

#include "bench/session_impl.h"
#include "checkpoints/ckpt.h"
#include "kernels/base/heap.h"
#include "kernels/base/str.h"

static const char *const kinds[] = {"param", "opt/m", "opt/v"};

/* Every logical tensor of the model in each kind. Names and dims borrowed from the model. */
static shl_code
list_tensors(const shl_model *model, shl_ckpt_tensor **out, int *n)
{
    int n_kinds = (int)SHL_ARRAY_LEN(kinds);
    shl_ckpt_tensor *list = NULL;
    *n = 0;
    SHL_TRY(shl_heap_alloc((size_t)(model->n_params * n_kinds), sizeof(*list), &list));
    for (int k = 0; k < n_kinds; k++) {
        for (int i = 0; i < model->n_params; i++) {
            const shl_param *p = model->params[i];
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
agree_run_id(shl_session_rank *r)
{
    int64_t words[2] = {0, 0};
    shl_code code = SHL_OK;
    if (r->run_id[0]) {
        return SHL_OK;
    }
    if (r->rank == 0 && getrandom(words, sizeof(words), 0) != (ssize_t)sizeof(words)) {
        code = SHL_RAISE(SHL_E_SYSTEM, "the system gives no random bytes for a run id");
    }
    SHL_TRY(shl_session_agree(r, code, "save"));
    SHL_TRY(shl_session_sum_words(r, words, 2));
    shl_strf(r->run_id, sizeof(r->run_id), "%016" PRIx64 "%016" PRIx64, (uint64_t)words[0],
             (uint64_t)words[1]);
    return SHL_OK;
}

static shl_code
make_meta(const shl_session_rank *r, shl_ckpt_meta *meta)
{
    memset(meta, 0, sizeof(*meta));
    shl_strf(meta->model, sizeof(meta->model), "%s", r->cfg->model);
    shl_strf(meta->run_id, sizeof(meta->run_id), "%s", r->run_id);
    shl_strf(meta->strategy, sizeof(meta->strategy), "%s",
             shl_strategy_name(r->cfg->engine.strategy));
    meta->step = r->engine->step;
    meta->data_sample = r->data_sample;
    meta->seed = r->cfg->engine.seed;
    meta->world = r->cfg->ranks;
    json_t *config = NULL;
    SHL_TRY(shl_session_config_json(r->cfg, &config));
    size_t len = json_dumpb(config, meta->config, sizeof(meta->config) - 1, JSON_COMPACT);
    json_decref(config);
    if (len == 0 || len >= sizeof(meta->config)) {
        SHL_RAISE(SHL_E_USAGE, "the configuration does not fit into a checkpoint");
        return shl_err_because("it takes %zu of %zu bytes; paths may be too long", len,
                               sizeof(meta->config) - 1);
    }
    return SHL_OK;
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
write_file(shl_session_rank *r, const shl_ckpt_meta *meta, shl_ckpt_file *file)
{
    put_context put = {.device = r->device};
    SHL_TRY(shl_ckpt_save_begin(r->cfg->ckpt_dir, meta, r->rank, r->cfg->ranks, &put.writer));
    shl_code code = shl_engine_visit_state(r->engine, SHL_VISIT_READ, put_shard, &put);
    if (code != SHL_OK) {
        shl_err failure = *shl_err_get();
        shl_ckpt_save_abort(&put.writer);
        return shl_err_put(&failure);
    }
    return shl_ckpt_save_finish(&put.writer, file);
}

/* Every rank's file record on every rank. */
static shl_code
gather_files(shl_session_rank *r, const shl_ckpt_file *mine, shl_ckpt_file **out)
{
    _Static_assert(sizeof(shl_ckpt_file) % sizeof(int64_t) == 0, "file records travel as words");
    const int64_t words = (int64_t)(sizeof(shl_ckpt_file) / sizeof(int64_t));
    shl_ckpt_file *files = NULL;
    SHL_TRY(shl_heap_alloc((size_t)r->cfg->ranks, sizeof(*files), &files));
    files[r->rank] = *mine;
    shl_code code = shl_session_sum_words(r, (int64_t *)(void *)files, words * r->cfg->ranks);
    if (code != SHL_OK) {
        shl_heap_free(&files);
    }
    *out = files;
    return code;
}

static shl_code
commit(shl_session_rank *r, const shl_ckpt_meta *meta, const shl_ckpt_file *files)
{
    shl_ckpt_tensor *tensors = NULL;
    int n = 0;
    if (r->rank != 0) {
        return SHL_OK;
    }
    SHL_TRY(list_tensors(r->model, &tensors, &n));
    shl_code code = shl_ckpt_save_commit(r->cfg->ckpt_dir, meta, tensors, n, files, r->cfg->ranks);
    shl_heap_free(&tensors);
    return code;
}

static shl_code
save_phases(shl_session_rank *r, const shl_ckpt_meta *meta)
{
    shl_ckpt_file mine, *files = NULL;
    memset(&mine, 0, sizeof(mine));
    shl_code code = r->rank == 0 ? shl_ckpt_save_prepare(r->cfg->ckpt_dir, meta) : SHL_OK;
    SHL_TRY(shl_session_agree(r, code, "save"));
    code = write_file(r, meta, &mine);
    SHL_TRY(shl_session_agree(r, code, "save"));
    SHL_TRY(gather_files(r, &mine, &files));
    code = commit(r, meta, files);
    shl_heap_free(&files);
    return shl_session_agree(r, code, "save");
}

shl_code
shl_session_save(shl_session_rank *r)
{
    shl_ckpt_meta meta;
    shl_ledger *ledger = r->device->ledger;
    shl_mark mark = shl_ledger_get_mark(ledger);
    shl_ledger_set_mark(ledger, SHL_MARK_SAVE);
    SHL_TRY(agree_run_id(r));
    SHL_TRY(make_meta(r, &meta));
    shl_code code = save_phases(r, &meta);
    if (code != SHL_OK && r->rank == 0) {
        shl_err failure = *shl_err_get();
        shl_ckpt_save_discard(r->cfg->ckpt_dir, &meta);
        return shl_err_put(&failure);
    }
    if (code == SHL_OK) { /* messages tell the phase that failed */
        shl_ledger_set_mark(ledger, mark);
    }
    return code;
}

/* --- resume ------------------------------------------------------------------------------ */

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
    if (json_equal(a, b)) {
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

/* The schedule and what else decides the next numbers must be the same; ranks, strategy, batch and
 * everything that only moves bytes may differ. */
static shl_code
compare_config(const json_t *theirs, const json_t *ours)
{
    static const char *const top[] = {"seed", "seq"};
    const json_t *a = json_object_get(theirs, "optim"), *b = json_object_get(ours, "optim");
    const char *key;
    json_t *value;
    for (size_t i = 0; i < SHL_ARRAY_LEN(top); i++) {
        SHL_TRY(compare_key(theirs, ours, top[i]));
    }
    /* jansson iterates over objects that it takes as not const, and changes nothing. */
    json_t *mine = json_object_get(ours, "optim");
    SHL_ASSERT(b != NULL);
    json_object_foreach(mine, key, value)
    {
        SHL_TRY(compare_key(a, b, key));
    }
    return SHL_OK;
}

static shl_code
check_meta(const shl_session_rank *r, const shl_ckpt_meta *meta)
{
    char theirs_text[24], ours_text[24];
    shl_strf(theirs_text, sizeof(theirs_text), "%" PRIu64, meta->seed);
    shl_strf(ours_text, sizeof(ours_text), "%" PRIu64, r->cfg->engine.seed);
    if (strcmp(meta->model, r->cfg->model) != 0) {
        return raise_mismatch("model", meta->model, r->cfg->model);
    }
    if (meta->seed != r->cfg->engine.seed) {
        return raise_mismatch("seed", theirs_text, ours_text);
    }
    if (meta->step >= r->cfg->steps) {
        SHL_RAISE(SHL_E_USAGE, "nothing to do: the checkpoint is at step %" PRId64, meta->step);
        shl_err_because("--steps is the step number to reach, and it is %" PRId64, r->cfg->steps);
        return shl_err_advice("--steps %" PRId64, meta->step + 10);
    }
    json_t *theirs = json_loads(meta->config, JSON_REJECT_DUPLICATES, NULL);
    json_t *ours = NULL;
    shl_code code = theirs ? shl_session_config_json(r->cfg, &ours)
                           : SHL_RAISE(SHL_E_VERIFY, "the checkpoint's configuration is not JSON");
    if (code == SHL_OK) {
        code = compare_config(theirs, ours);
    }
    json_decref(theirs);
    json_decref(ours);
    return code;
}

/* Opens and compares; nothing is loaded yet. */
static shl_code
open_checkpoint(shl_session_rank *r, shl_ckpt_reader **out)
{
    shl_ckpt_tensor *tensors = NULL;
    int n = 0;
    /* One rank reads every file for its hash; the others trust it after the agreement. */
    SHL_TRY(shl_ckpt_open(r->cfg->ckpt_dir, r->rank == 0, out));
    SHL_TRY(check_meta(r, shl_ckpt_reader_meta(*out)));
    SHL_TRY(list_tensors(r->model, &tensors, &n));
    shl_code code = shl_ckpt_check_tensors(*out, tensors, n);
    shl_heap_free(&tensors);
    return code;
}

shl_code
shl_session_resume(shl_session_rank *r)
{
    get_context get = {.device = r->device};
    shl_code code = open_checkpoint(r, &get.reader);
    code = shl_session_agree(r, code, "resume");
    if (code == SHL_OK) {
        code = shl_engine_visit_state(r->engine, SHL_VISIT_WRITE, get_shard, &get);
    }
    if (code == SHL_OK) {
        const shl_ckpt_meta *meta = shl_ckpt_reader_meta(get.reader);
        shl_engine_set_step(r->engine, meta->step);
        r->data_sample = meta->data_sample;
        shl_strf(r->run_id, sizeof(r->run_id), "%s", meta->run_id);
        code = shl_session_agree(r, SHL_OK, "resume");
    }
    shl_err failure = *shl_err_get();
    shl_ckpt_close(&get.reader);
    return code == SHL_OK ? SHL_OK : shl_err_put(&failure);
}

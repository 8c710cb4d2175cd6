/* checkpoints: rank 0's part of a save: the temporary folder before, the commit after. Order of
 * the commit: shards, index.h5, manifest, COMMIT (each fsynced), folder, rename, DIR, `latest`: killed
 * anywhere, either the old checkpoint or the new one is found whole. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "checkpoints/ckpt_room.h"
#include "checkpoints/h5.h"
#include "kernels/base/heap.h"

void
shl_ckpt_commit_text(size_t manifest_bytes, const uint64_t hash[2], char *dst, size_t cap)
{
    char hex[33];
    shl_ckpt_hex(hash, hex);
    shl_strf(dst, cap, "shardlab-checkpoint %d %s %zu %s\n", SHL_CKPT_VERSION, SHL_CKPT_MANIFEST,
             manifest_bytes, hex);
}

/* The hash guards against a digit that flips to the name of another step. */
void
shl_ckpt_latest_text(const char *folder, char *dst, size_t cap)
{
    uint64_t hash[2];
    char hex[33];
    shl_ckpt_hash(folder, strlen(folder), hash);
    shl_ckpt_hex(hash, hex);
    shl_strf(dst, cap, "%s %s\n", folder, hex);
}

static bool
starts_with(const char *text, const char *prefix)
{
    return strncmp(text, prefix, strlen(prefix)) == 0;
}

/* What a killed save left: unfinished folders go; a checkpoint that was set aside comes back unless
 * its successor is in place. */
static shl_code
clean_entry(const char *dir, const char *name)
{
    char path[SHL_CKPT_PATH_MAX];
    char target[SHL_CKPT_PATH_MAX];
    struct stat st;
    SHL_TRY(shl_ckpt_join(dir, name, path, sizeof path));
    if (starts_with(name, SHL_CKPT_TEMP_PREFIX)) {
        shl_ckpt_remove(path);
        return SHL_OK;
    }
    if (!starts_with(name, SHL_CKPT_ASIDE_PREFIX)) {
        return SHL_OK;
    }
    SHL_TRY(shl_ckpt_join(dir, name + strlen(SHL_CKPT_ASIDE_PREFIX), target, sizeof target));
    if (lstat(target, &st) == 0) {
        shl_ckpt_remove(path);
        return SHL_OK;
    }
    return rename(path, target) == 0 ? SHL_OK : shl_ckpt_io_fail("put back", path);
}

static shl_code
clean_folder(const char *dir)
{
    DIR *list = opendir(dir);
    if (list == NULL) {
        return shl_ckpt_io_fail("open folder", dir);
    }
    shl_code code = SHL_OK;
    for (struct dirent *e = readdir(list); e != NULL && code == SHL_OK; e = readdir(list)) {
        code = clean_entry(dir, e->d_name);
    }
    (void)closedir(list);
    return code;
}

static shl_code
temp_path(const char *dir, const shl_ckpt_meta *meta, char *dst, size_t cap)
{
    char temp[96];
    shl_ckpt_temp_name(meta, temp, sizeof temp);
    return shl_ckpt_join(dir, temp, dst, cap);
}

shl_code
shl_ckpt_save_prepare(const char *dir, const shl_ckpt_meta *meta)
{
    char temp[SHL_CKPT_PATH_MAX];
    size_t digits = strspn(meta->run_id, "0123456789abcdef");
    if (meta->step < 0 || meta->world < 1 || digits == 0 || meta->run_id[digits] != '\0') {
        (void)SHL_RAISE(SHL_E_BUG, "a checkpoint cannot be saved under this run's name");
        return shl_err_because("step %lld, world %d, run id '%.32s' (hex digits)",
                               (long long)meta->step, meta->world, meta->run_id);
    }
    SHL_TRY(temp_path(dir, meta, temp, sizeof temp));
    SHL_TRY(shl_ckpt_make_folders(dir));
    SHL_TRY(clean_folder(dir));
    if (mkdir(temp, 0777) != 0) {
        return shl_ckpt_io_fail("make folder", temp);
    }
    return shl_ckpt_sync_folder(dir);
}

void
shl_ckpt_save_discard(const char *dir, const shl_ckpt_meta *meta)
{
    char temp[96];
    char path[SHL_CKPT_PATH_MAX];
    shl_ckpt_temp_name(meta, temp, sizeof temp);
    shl_strf(path, sizeof path, "%s/%s", dir, temp);
    shl_ckpt_remove(path);
}

void
shl_ckpt_save_sweep(const char *dir)
{
    if (access(dir, W_OK) == 0) {
        /* The failure that led here is the one to tell. */
        shl_err failure = *shl_err_get();
        (void)clean_folder(dir);
        (void)shl_err_put(&failure);
    }
}

typedef struct collect {
    shl_ckpt_index *index;
    int file;
} collect;

static shl_code
collect_range(void *ctx, const shl_h5_range *r)
{
    const collect *c = ctx;
    int tensor = shl_ckpt_index_find(c->index, r->kind, r->name);
    const shl_ckpt_entry *e = tensor >= 0 ? &c->index->tensors[tensor] : NULL;
    if (e == NULL || e->n_dims != r->n_dims ||
        memcmp(e->dims, r->dims, (size_t)r->n_dims * sizeof *r->dims) != 0) {
        (void)SHL_RAISE(SHL_E_BUG, "%s: tensor %s/%s is not one of the model's",
                        c->index->files[c->file].name, r->kind, r->name);
        return shl_err_because(e == NULL ? "the model has no such tensor"
                                         : "its shape is another one");
    }
    shl_ckpt_fragment f = {tensor, c->file, r->begin, r->end, r->offset};
    return shl_ckpt_index_add(c->index, &f);
}

/* The shard tells what it holds: nothing that the ranks say about it is trusted but its hash. */
static shl_code
collect_file(const char *temp, const shl_ckpt_meta *meta, shl_ckpt_index *x, int file)
{
    char path[SHL_CKPT_PATH_MAX];
    char expected[64];
    struct stat st;
    shl_h5_head head;
    collect c = {x, file};
    shl_ckpt_shard_name(file, meta->world, expected, sizeof expected);
    if (strcmp(x->files[file].name, expected) != 0) {
        (void)SHL_RAISE(SHL_E_BUG, "the record of shard file %d is not its own", file);
        return shl_err_because("it says '%.63s'", x->files[file].name);
    }
    SHL_TRY(shl_ckpt_join(temp, expected, path, sizeof path));
    if (stat(path, &st) != 0) {
        return shl_ckpt_io_fail("find", path);
    }
    if ((int64_t)st.st_size != x->files[file].bytes) {
        (void)SHL_RAISE(SHL_E_IO, "%s has another length than its rank wrote", path);
        return shl_err_because("%lld bytes, not %lld", (long long)st.st_size,
                               (long long)x->files[file].bytes);
    }
    SHL_TRY(shl_h5_scan(path, &head, collect_range, &c));
    if (head.version != SHL_CKPT_VERSION || head.step != meta->step || head.rank != file ||
        head.world != meta->world) {
        return SHL_RAISE(SHL_E_BUG, "%s belongs to another save", path);
    }
    return SHL_OK;
}

static shl_code
collect_all(const char *temp, const shl_ckpt_meta *meta, const shl_ckpt_tensor *tensors,
            const shl_ckpt_file *files, shl_ckpt_index *x)
{
    for (int i = 0; i < x->n_tensors; i++) {
        SHL_TRY(shl_ckpt_entry_set(&x->tensors[i], tensors[i].kind, tensors[i].name,
                                   tensors[i].n_dims, tensors[i].dims));
    }
    shl_ckpt_index_sort(x);
    if (!shl_ckpt_index_sorted(x)) {
        return SHL_RAISE(SHL_E_BUG, "two tensors of a checkpoint have one kind and name");
    }
    memcpy(x->files, files, (size_t)x->n_files * sizeof *files);
    for (int i = 0; i < x->n_files; i++) {
        SHL_TRY(collect_file(temp, meta, x, i));
    }
    return shl_ckpt_index_check(x, SHL_E_BUG);
}

/* The fragments are in the order of their tensors here. */
static shl_code
fill_view(shl_h5_view *v, const shl_ckpt_index *x)
{
    shl_h5_piece *pieces = NULL;
    shl_code code = SHL_OK;
    int next = 0;
    SHL_TRY(shl_heap_alloc((size_t)x->n_fragments, sizeof *pieces, &pieces));
    for (int i = 0; i < x->n_tensors; i++) {
        const shl_ckpt_entry *e = &x->tensors[i];
        int n = 0;
        for (; next < x->n_fragments && x->fragments[next].tensor == i; next++) {
            const shl_ckpt_fragment *f = &x->fragments[next];
            pieces[n++] = (shl_h5_piece){x->files[f->file].name, f->begin, f->end};
        }
        SHL_TRY_TO(code, out, shl_h5_view_add(v, e->kind, e->name, e->n_dims, e->dims, pieces, n));
    }
out:
    shl_heap_free(&pieces);
    return code;
}

static shl_code
write_view(const char *temp, const shl_ckpt_meta *meta, shl_ckpt_index *x)
{
    char path[SHL_CKPT_PATH_MAX];
    char *image = NULL;
    size_t bytes = 0;
    shl_h5_view *v = NULL;
    shl_h5_head head = {SHL_CKPT_VERSION, meta->step, 0, meta->world};
    SHL_TRY(shl_ckpt_join(temp, SHL_CKPT_VIEW, path, sizeof path));
    SHL_TRY(shl_h5_view_open(path, &head, &v));
    shl_code code = fill_view(v, x);
    if (code != SHL_OK) {
        shl_h5_view_drop(&v);
        return code;
    }
    SHL_TRY(shl_h5_view_image(&v, &image, &bytes));
    code = shl_ckpt_put_text(path, image, bytes);
    shl_strf(x->view.name, sizeof x->view.name, "%s", SHL_CKPT_VIEW);
    x->view.bytes = (int64_t)bytes;
    shl_ckpt_hash(image, bytes, x->view.hash);
    shl_heap_free(&image);
    return code;
}

static shl_code
write_manifest(const char *temp, const shl_ckpt_meta *meta, shl_ckpt_index *x)
{
    char path[SHL_CKPT_PATH_MAX];
    char line[160];
    uint64_t hash[2];
    shl_str text;
    shl_code code = SHL_OK;
    shl_str_init(&text);
    SHL_TRY_TO(code, out, shl_ckpt_manifest_write(meta, x, &text));
    SHL_TRY_TO(code, out, shl_ckpt_join(temp, SHL_CKPT_MANIFEST, path, sizeof path));
    SHL_TRY_TO(code, out, shl_ckpt_put_text(path, text.text, text.len));
    shl_ckpt_hash(text.text, text.len, hash);
    shl_ckpt_commit_text(text.len, hash, line, sizeof line);
    SHL_TRY_TO(code, out, shl_ckpt_join(temp, SHL_CKPT_COMMIT, path, sizeof path));
    SHL_TRY_TO(code, out, shl_ckpt_put_text(path, line, strlen(line)));
    SHL_TRY_TO(code, out, shl_ckpt_sync_folder(temp));
out:
    shl_str_fini(&text);
    return code;
}

static shl_code
replace_latest(const char *dir, const char *folder)
{
    char path[SHL_CKPT_PATH_MAX];
    char fresh[SHL_CKPT_PATH_MAX];
    char line[160];
    SHL_TRY(shl_ckpt_join(dir, SHL_CKPT_LATEST, path, sizeof path));
    SHL_TRY(shl_ckpt_join(dir, SHL_CKPT_TEMP_PREFIX SHL_CKPT_LATEST, fresh, sizeof fresh));
    shl_ckpt_latest_text(folder, line, sizeof line);
    shl_code code = shl_ckpt_put_text(fresh, line, strlen(line));
    if (code == SHL_OK && rename(fresh, path) != 0) {
        code = shl_ckpt_io_fail("replace", path);
    }
    if (code != SHL_OK) {
        (void)unlink(fresh);
        return code;
    }
    return shl_ckpt_sync_folder(dir);
}

/* From here on the new checkpoint stands whatever fails; the old one goes last. */
static shl_code
publish(const char *dir, const char *temp, const shl_ckpt_meta *meta)
{
    char folder[64];
    char old[SHL_CKPT_PATH_MAX];
    shl_ckpt_step_name(meta->step, folder, sizeof folder);
    SHL_TRY(shl_ckpt_swap_in(dir, temp, folder, true, old, sizeof old));
    SHL_TRY(shl_ckpt_sync_folder(dir));
    SHL_TRY(replace_latest(dir, folder));
    if (old[0] != '\0') {
        shl_ckpt_remove(old);
    }
    return SHL_OK;
}

shl_code
shl_ckpt_save_commit(const char *dir, const shl_ckpt_meta *meta, const shl_ckpt_tensor *tensors,
                     int n_tensors, const shl_ckpt_file *files, int n_files)
{
    char temp[SHL_CKPT_PATH_MAX];
    shl_ckpt_index x;
    shl_code code = SHL_OK;
    SHL_ASSERT(n_tensors > 0 && n_files == meta->world);
    SHL_TRY(temp_path(dir, meta, temp, sizeof temp));
    SHL_TRY_TO(code, out, shl_ckpt_index_init(&x, n_tensors, n_files));
    SHL_TRY_TO(code, out_index, collect_all(temp, meta, tensors, files, &x));
    SHL_TRY_TO(code, out_index, write_view(temp, meta, &x));
    if (meta->whole_weights) {
        SHL_TRY_TO(code, out_index, shl_ckpt_write_weights(temp, &x, meta->weights_dtype));
    }
    SHL_TRY_TO(code, out_index, write_manifest(temp, meta, &x));
    SHL_TRY_TO(code, out_index, publish(dir, temp, meta));
out_index:
    shl_ckpt_index_fini(&x);
out:
    if (code != SHL_OK) {
        shl_ckpt_save_discard(dir, meta);
    }
    return code;
}

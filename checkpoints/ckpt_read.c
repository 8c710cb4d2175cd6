/* checkpoints: opening, verifying and reading. The manifest says at which byte of which file a
 * range lies, so loading is plain reads: HDF5 never parses a file that came from outside. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "checkpoints/ckpt_room.h"
#include "kernels/base/half.h"
#include "kernels/base/heap.h"

#define OPEN_FILES_MAX 64

bool
shl_ckpt_has_entry(const char *folder, const char *name)
{
    char path[SHL_CKPT_PATH_MAX];
    if (strlen(folder) + strlen(name) + 2 > sizeof path) {
        return false;
    }
    shl_strf(path, sizeof path, "%s/%s", folder, name);
    return access(path, F_OK) == 0;
}

/* "step-00000005, step-00000010 (incomplete)" and the newest complete one. */
static void
list_steps(const char *dir, char *text, size_t cap, char *newest, size_t newest_cap)
{
    DIR *list = opendir(dir);
    text[0] = newest[0] = '\0';
    for (struct dirent *e = list != NULL ? readdir(list) : NULL; e != NULL; e = readdir(list)) {
        char path[SHL_CKPT_PATH_MAX];
        if (strncmp(e->d_name, "step-", 5) != 0 ||
            strlen(dir) + strlen(e->d_name) + 2 > sizeof path) {
            continue;
        }
        shl_strf(path, sizeof path, "%s/%s", dir, e->d_name);
        bool whole = shl_ckpt_has_entry(path, SHL_CKPT_COMMIT);
        size_t len = strlen(text);
        shl_strf(text + len, cap - len, "%s%.40s%s", len > 0 ? ", " : "", e->d_name,
                 whole ? "" : " (incomplete)");
        if (whole && strcmp(e->d_name, newest) > 0) {
            shl_strf(newest, newest_cap, "%s", e->d_name);
        }
    }
    if (list != NULL) {
        (void)closedir(list);
    }
}

/* Ends an error about DIR with what is there. Returns its code. */
static shl_code
tell_steps(const char *dir)
{
    char text[400];
    char newest[64];
    list_steps(dir, text, sizeof text, newest, sizeof newest);
    if (newest[0] != '\0') {
        (void)shl_err_advice("open %s/%s", dir, newest);
    }
    return shl_err_because("%s holds: %s", dir, text[0] != '\0' ? text : "no checkpoint");
}

shl_code
shl_ckpt_read_latest(const char *dir, char *name, size_t cap)
{
    char path[SHL_CKPT_PATH_MAX];
    char expected[160];
    char *text = NULL;
    size_t len = 0;
    SHL_TRY(shl_ckpt_join(dir, SHL_CKPT_LATEST, path, sizeof path));
    if (access(dir, F_OK) != 0) {
        return shl_ckpt_io_fail("open checkpoint", dir);
    }
    if (access(path, F_OK) != 0) {
        (void)SHL_RAISE(SHL_E_IO, "%s names no checkpoint: it has no file '" SHL_CKPT_LATEST "'",
                        dir);
        return tell_steps(dir);
    }
    SHL_TRY(shl_ckpt_slurp(AT_FDCWD, path, path, 4096, &text, &len));
    shl_strf(name, cap, "%.*s", (int)strcspn(text, " \n"), text);
    shl_ckpt_latest_text(name, expected, sizeof expected);
    bool ok = len == strlen(expected) && memcmp(text, expected, len) == 0 &&
              strncmp(name, "step-", 5) == 0 && strchr(name, '/') == NULL;
    shl_heap_free(&text);
    if (!ok) {
        (void)SHL_RAISE(SHL_E_VERIFY, "%s is altered", path);
        return tell_steps(dir);
    }
    return SHL_OK;
}

/* The step's folder for a path given by the user: the folder itself, or what DIR/latest names; a
 * save that was killed while replacing that step may have left it under its name aside. */
static shl_code
resolve(const char *given, char *folder, size_t cap, char *name, size_t name_cap)
{
    char dir[SHL_CKPT_PATH_MAX];
    char aside[96];
    size_t len = strlen(given);
    while (len > 1 && given[len - 1] == '/') {
        len--;
    }
    if (len == 0 || len >= sizeof dir) {
        return SHL_RAISE(SHL_E_USAGE, "the path of a checkpoint has 1 to %zu characters",
                         sizeof dir - 1);
    }
    shl_strf(dir, sizeof dir, "%.*s", (int)len, given);
    const char *slash = strrchr(dir, '/');
    name[0] = '\0';
    if (shl_ckpt_has_entry(dir, SHL_CKPT_COMMIT) || shl_ckpt_has_entry(dir, SHL_CKPT_MANIFEST) ||
        strncmp(slash != NULL ? slash + 1 : dir, "step-", 5) == 0) {
        shl_strf(folder, cap, "%s", dir);
        return SHL_OK;
    }
    SHL_TRY(shl_ckpt_read_latest(dir, name, name_cap));
    shl_strf(aside, sizeof aside, SHL_CKPT_ASIDE_PREFIX "%s", name);
    if (shl_ckpt_has_entry(dir, name)) {
        return shl_ckpt_join(dir, name, folder, cap);
    }
    if (shl_ckpt_has_entry(dir, aside)) {
        return shl_ckpt_join(dir, aside, folder, cap);
    }
    (void)SHL_RAISE(SHL_E_IO, "%s/" SHL_CKPT_LATEST " names %s, which is missing", dir, name);
    return tell_steps(dir);
}

static shl_code
check_commit(const shl_ckpt_reader *r, const char *manifest, size_t len, const char *commit,
             size_t commit_len)
{
    uint64_t hash[2];
    char expected[160];
    char found[160];
    shl_ckpt_hash(manifest, len, hash);
    shl_ckpt_commit_text(len, hash, expected, sizeof expected);
    if (commit_len == strlen(expected) && memcmp(commit, expected, commit_len) == 0) {
        return SHL_OK;
    }
    shl_strf(found, sizeof found, "%s", commit);
    for (char *c = found; *c != '\0'; c++) {
        *c = *c < ' ' || *c > '~' ? ' ' : *c;
    }
    expected[strlen(expected) - 1] = '\0';
    (void)SHL_RAISE(SHL_E_VERIFY,
                    "%s: " SHL_CKPT_MANIFEST " and " SHL_CKPT_COMMIT " do not fit: one is altered",
                    r->path);
    return shl_err_because(SHL_CKPT_COMMIT " says '%s', the manifest gives '%s'", found, expected);
}

static shl_code
read_manifest(shl_ckpt_reader *r)
{
    char commit_path[SHL_CKPT_PATH_MAX];
    char path[SHL_CKPT_PATH_MAX];
    char *commit = NULL;
    char *text = NULL;
    size_t commit_len = 0;
    size_t len = 0;
    shl_code code = SHL_OK;
    SHL_TRY(shl_ckpt_join(r->path, SHL_CKPT_COMMIT, commit_path, sizeof commit_path));
    SHL_TRY(shl_ckpt_join(r->path, SHL_CKPT_MANIFEST, path, sizeof path));
    SHL_TRY_TO(code, out,
               shl_ckpt_slurp(r->folder, SHL_CKPT_COMMIT, commit_path, 4096, &commit, &commit_len));
    SHL_TRY_TO(code, out,
               shl_ckpt_slurp(r->folder, SHL_CKPT_MANIFEST, path, SHL_CKPT_MANIFEST_MAX_BYTES,
                              &text, &len));
    SHL_TRY_TO(code, out, check_commit(r, text, len, commit, commit_len));
    SHL_TRY_TO(code, out, shl_ckpt_manifest_parse(path, text, len, &r->meta, &r->index));
out:
    shl_heap_free(&commit);
    shl_heap_free(&text);
    return code;
}

/* A file of the length that the manifest says. */
static shl_code
open_sized(const shl_ckpt_reader *r, const shl_ckpt_file *f, int *fd)
{
    char path[SHL_CKPT_PATH_MAX];
    int64_t bytes = 0;
    SHL_TRY(shl_ckpt_join(r->path, f->name, path, sizeof path));
    SHL_TRY(shl_ckpt_open_file(r->folder, f->name, path, fd, &bytes));
    if (bytes == f->bytes) {
        return SHL_OK;
    }
    (void)close(*fd);
    *fd = -1;
    (void)SHL_RAISE(SHL_E_VERIFY, "%s is %s", path,
                    bytes < f->bytes ? "truncated" : "longer than saved");
    return shl_err_because("it has %lld bytes, " SHL_CKPT_MANIFEST " says %lld", (long long)bytes,
                           (long long)f->bytes);
}

/* The open file i, opened when first needed; of many only the last few dozen stay open. */
static shl_code
file_fd(shl_ckpt_reader *r, int i, int *fd)
{
    const shl_ckpt_file *f = &r->index.files[i];
    *fd = r->fds[i];
    if (*fd >= 0) {
        return SHL_OK;
    }
    while (r->n_open >= OPEN_FILES_MAX) {
        int victim = r->next_to_close++ % r->index.n_files;
        if (r->fds[victim] >= 0) {
            (void)close(r->fds[victim]);
            r->fds[victim] = -1;
            r->n_open--;
        }
    }
    SHL_TRY(open_sized(r, f, fd));
    r->fds[i] = *fd;
    r->n_open++;
    return SHL_OK;
}

/* A file under an open descriptor has the bytes that the manifest says. */
static shl_code
check_hash(int fd, const char *path, const shl_ckpt_file *f)
{
    char is[33];
    char should[33];
    uint64_t hash[2];
    int64_t bytes = 0;
    SHL_TRY(shl_ckpt_hash_fd(fd, path, &bytes, hash));
    if (bytes == f->bytes && hash[0] == f->hash[0] && hash[1] == f->hash[1]) {
        return SHL_OK;
    }
    shl_ckpt_hex(hash, is);
    shl_ckpt_hex(f->hash, should);
    (void)SHL_RAISE(SHL_E_VERIFY, "%s is altered", path);
    return shl_err_because("its XXH3-128 is %s, " SHL_CKPT_MANIFEST " says %s", is, should);
}

int
shl_ckpt_n_files(const shl_ckpt_reader *r)
{
    return r->index.n_files + 1;
}

const shl_ckpt_file *
shl_ckpt_file_at(const shl_ckpt_reader *r, int i)
{
    SHL_ASSERT(i >= 0 && i <= r->index.n_files);
    return i < r->index.n_files ? &r->index.files[i] : &r->index.view;
}

shl_code
shl_ckpt_check_file(shl_ckpt_reader *r, int i)
{
    char path[SHL_CKPT_PATH_MAX];
    const shl_ckpt_file *f = shl_ckpt_file_at(r, i);
    int fd = -1;
    SHL_TRY(shl_ckpt_join(r->path, f->name, path, sizeof path));
    if (i < r->index.n_files) {
        SHL_TRY(file_fd(r, i, &fd));
        return check_hash(fd, path, f);
    }
    SHL_TRY(open_sized(r, f, &fd));
    shl_code code = check_hash(fd, path, f);
    (void)close(fd);
    return code;
}

static shl_code
open_reader(shl_ckpt_reader *r, const char *name)
{
    char expected[64];
    r->folder = open(r->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (r->folder < 0) {
        return shl_ckpt_io_fail("open checkpoint", r->path);
    }
    if (faccessat(r->folder, SHL_CKPT_COMMIT, F_OK, 0) != 0) {
        (void)SHL_RAISE(SHL_E_IO, "%s is not a complete checkpoint", r->path);
        return shl_err_because("it has no file '" SHL_CKPT_COMMIT "'");
    }
    SHL_TRY(read_manifest(r));
    shl_ckpt_step_name(r->meta.step, expected, sizeof expected);
    if (name[0] != '\0' && strcmp(name, expected) != 0) {
        (void)SHL_RAISE(SHL_E_VERIFY, "%s holds another step", r->path);
        return shl_err_because("its " SHL_CKPT_MANIFEST " is of %s", expected);
    }
    SHL_TRY(shl_heap_alloc((size_t)r->index.n_files, sizeof *r->fds, &r->fds));
    for (int i = 0; i < r->index.n_files; i++) {
        r->fds[i] = -1;
    }
    return SHL_OK;
}

shl_code
shl_ckpt_open_manifest(const char *path, shl_ckpt_reader **out)
{
    char name[64];
    shl_ckpt_reader *r = NULL;
    *out = NULL;
    SHL_TRY(shl_heap_alloc(1, sizeof *r, &r));
    r->folder = -1;
    shl_code code = resolve(path, r->path, sizeof r->path, name, sizeof name);
    if (code == SHL_OK) {
        code = open_reader(r, name);
    }
    if (code != SHL_OK) {
        shl_ckpt_close(&r);
        return code;
    }
    *out = r;
    return SHL_OK;
}

/* The view is not checked: nothing is loaded from it. */
shl_code
shl_ckpt_open(const char *path, bool verify, shl_ckpt_reader **out)
{
    shl_code code = SHL_OK;
    SHL_TRY(shl_ckpt_open_manifest(path, out));
    for (int i = 0; i < (*out)->index.n_files && code == SHL_OK; i++) {
        int fd = -1;
        code = verify ? shl_ckpt_check_file(*out, i) : file_fd(*out, i, &fd);
    }
    if (code != SHL_OK) {
        shl_ckpt_close(out);
    }
    return code;
}

void
shl_ckpt_close(shl_ckpt_reader **r_ptr)
{
    shl_ckpt_reader *r = *r_ptr;
    if (r == NULL) {
        return;
    }
    for (int i = 0; r->fds != NULL && i < r->index.n_files; i++) {
        if (r->fds[i] >= 0) {
            (void)close(r->fds[i]);
        }
    }
    if (r->folder >= 0) {
        (void)close(r->folder);
    }
    shl_heap_free(&r->fds);
    shl_ckpt_index_fini(&r->index);
    shl_heap_free(r_ptr);
}

const shl_ckpt_meta *
shl_ckpt_reader_meta(const shl_ckpt_reader *r)
{
    return &r->meta;
}

static void
spell_dims(const int64_t *dims, int n, char *dst, size_t cap)
{
    dst[0] = '\0';
    for (int i = 0; i < n; i++) {
        size_t len = strlen(dst);
        shl_strf(dst + len, cap - len, "%s%lld", i > 0 ? " x " : "", (long long)dims[i]);
    }
}

/* Number of the tensor, when it is there in this shape. */
static shl_code
match(const shl_ckpt_reader *r, const char *kind, const char *name, int n_dims, const int64_t *dims,
      int *tensor)
{
    char want[112];
    char have[112];
    *tensor = shl_ckpt_index_find(&r->index, kind, name);
    if (*tensor < 0) {
        (void)SHL_RAISE(SHL_E_CONFIG, "%s holds another model: tensor %s/%s is missing", r->path,
                        kind, name);
        return shl_err_because("it was saved from %s", r->meta.model);
    }
    const shl_ckpt_entry *e = &r->index.tensors[*tensor];
    if (n_dims == e->n_dims && memcmp(dims, e->dims, (size_t)n_dims * sizeof *dims) == 0) {
        return SHL_OK;
    }
    spell_dims(dims, n_dims, want, sizeof want);
    spell_dims(e->dims, e->n_dims, have, sizeof have);
    (void)SHL_RAISE(SHL_E_CONFIG, "%s holds another model: tensor %s/%s has another shape", r->path,
                    kind, name);
    return shl_err_because("%s in the checkpoint of %s, %s here", have, r->meta.model, want);
}

shl_code
shl_ckpt_check_tensors(const shl_ckpt_reader *r, const shl_ckpt_tensor *tensors, int n_tensors,
                       bool all)
{
    bool *seen = NULL;
    shl_code code = SHL_OK;
    SHL_TRY(shl_heap_alloc((size_t)r->index.n_tensors, sizeof *seen, &seen));
    for (int i = 0; i < n_tensors; i++) {
        int at = -1;
        SHL_TRY_TO(
            code, out,
            match(r, tensors[i].kind, tensors[i].name, tensors[i].n_dims, tensors[i].dims, &at));
        seen[at] = true;
    }
    for (int i = 0; all && i < r->index.n_tensors; i++) {
        if (!seen[i]) {
            code = SHL_RAISE(SHL_E_CONFIG, "%s holds another model: tensor %s/%s is extra", r->path,
                             r->index.tensors[i].kind, r->index.tensors[i].name);
            (void)shl_err_because("it was saved from %s", r->meta.model);
            goto out;
        }
    }
out:
    shl_heap_free(&seen);
    return code;
}

/* The first fragment of the tensor that ends behind element `at`; the index covers all. */
static int
first_fragment(const shl_ckpt_index *x, int tensor, int64_t at)
{
    int low = 0;
    int high = x->n_fragments;
    while (low < high) {
        int mid = low + (high - low) / 2;
        const shl_ckpt_fragment *f = &x->fragments[mid];
        if (f->tensor < tensor || (f->tensor == tensor && f->end <= at)) {
            low = mid + 1;
        } else {
            high = mid;
        }
    }
    return low;
}

shl_code
shl_ckpt_read(shl_ckpt_reader *r, int tensor, int64_t begin, int64_t end, void *out)
{
    char *dst = out;
    int i = first_fragment(&r->index, tensor, begin);
    while (begin < end) {
        SHL_ASSERT(i < r->index.n_fragments && r->index.fragments[i].tensor == tensor);
        const shl_ckpt_fragment *f = &r->index.fragments[i++];
        int64_t stop = f->end < end ? f->end : end;
        size_t bytes = (size_t)(stop - begin) * sizeof(float);
        int fd = -1;
        SHL_TRY(file_fd(r, f->file, &fd));
        SHL_TRY(shl_ckpt_pread(fd, r->index.files[f->file].name, dst, bytes,
                               f->offset + (begin - f->begin) * (int64_t)sizeof(float)));
        dst += bytes;
        begin = stop;
    }
    return SHL_OK;
}

/* n elements of the stage to the device, rounded in place to its type: a number is read before its place
 * is written. What was widened comes back as it was. */
static shl_code
send(shl_device *d, void *dst, shl_dtype dtype, float *stage, int64_t n)
{
    for (int64_t i = 0; dtype != SHL_F32 && i < n; i++) {
        float wide;
        memcpy(&wide, (const char *)stage + (size_t)i * sizeof wide, sizeof wide);
        shl_float_put(dtype, stage, i, wide);
    }
    return shl_device_upload(d, dst, stage, (size_t)n * shl_dtype_bytes(dtype));
}

static bool
is_staged(const shl_device *d, const shl_shard *s)
{
    return d->caps.async || s->local.dtype != SHL_F32;
}

/* Room for so many elements, as fp32. */
static shl_code
take_stage(shl_device *d, const shl_shard *s, shl_buf *stage, int64_t *chunk)
{
    const int64_t most = (int64_t)(SHL_CKPT_CHUNK_BYTES / sizeof(float));
    *chunk = s->end - s->begin < most ? s->end - s->begin : most;
    return shl_device_alloc(d, (size_t)*chunk * sizeof(float), SHL_TIER_HOST, SHL_TAG_CKPT, 0,
                            "checkpoint", stage);
}

/* The same allocations on a device without bytes as on the one it stands for. */
static shl_code
read_staged(shl_ckpt_reader *r, shl_device *d, int tensor, const shl_shard *s)
{
    shl_buf stage;
    int64_t chunk = 0;
    shl_code code = SHL_OK;
    SHL_TRY(take_stage(d, s, &stage, &chunk));
    for (int64_t at = s->begin; d->caps.has_bytes && at < s->end; at += chunk) {
        int64_t stop = s->end - at < chunk ? s->end : at + chunk;
        SHL_TRY_TO(code, out, shl_ckpt_read(r, tensor, at, stop, stage.data));
        SHL_TRY_TO(code, out,
                   send(d, shl_elem_ptr(s->local.data, s->local.dtype, at - s->begin),
                        s->local.dtype, stage.data, stop - at));
    }
out:
    shl_device_free(d, &stage);
    return code;
}

shl_code
shl_ckpt_rehearse(shl_device *d, const shl_shard *s)
{
    shl_buf stage;
    int64_t chunk = 0;
    if (s->begin < s->end && is_staged(d, s)) {
        SHL_TRY(take_stage(d, s, &stage, &chunk));
        shl_device_free(d, &stage);
    }
    return SHL_OK;
}

shl_code
shl_ckpt_get(shl_ckpt_reader *r, shl_device *d, const shl_shard *s)
{
    int tensor = -1;
    SHL_TRY(match(r, s->kind, s->name, s->n_dims, s->dims, &tensor));
    if (s->begin < 0 || s->begin > s->end || s->end > r->index.tensors[tensor].elems ||
        !shl_dtype_is_float(s->local.dtype) || shl_tensor_elems(&s->local) != s->end - s->begin) {
        (void)SHL_RAISE(SHL_E_BUG, "the shard of %s to be loaded is out of bounds", s->name);
        return shl_err_because("elements [%lld, %lld) as %s", (long long)s->begin,
                               (long long)s->end, shl_dtype_name(s->local.dtype));
    }
    if (s->begin == s->end) {
        return SHL_OK;
    }
    if (is_staged(d, s)) {
        return read_staged(r, d, tensor, s);
    }
    return d->caps.has_bytes ? shl_ckpt_read(r, tensor, s->begin, s->end, s->local.data) : SHL_OK;
}

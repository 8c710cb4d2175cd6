/* checkpoints: which files a folder of safetensors has: one, or those that its index names, and whether
 * index and files agree. */
#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <jansson.h>

#include "checkpoints/ckpt_room.h"
#include "checkpoints/safetensors_room.h"
#include "kernels/base/heap.h"
#include "kernels/base/str.h"

#define SINGLE "model.safetensors"
#define INDEX "model.safetensors.index.json"
#define INDEX_MAX_BYTES (INT64_C(256) << 20)

static bool
ends_with(const char *text, const char *end)
{
    size_t n = strlen(text), m = strlen(end);
    return n >= m && strcmp(text + n - m, end) == 0;
}

/* What a folder without weights holds instead, for the message. */
static shl_code
raise_no_weights(const char *dir)
{
    DIR *list = opendir(dir);
    char found[200] = "";
    bool torch = false;
    for (struct dirent *e = list ? readdir(list) : NULL; e; e = readdir(list)) {
        torch = torch || ends_with(e->d_name, ".bin") || ends_with(e->d_name, ".pth");
        if (ends_with(e->d_name, ".safetensors") && !found[0]) {
            shl_strf(found, sizeof found, "%.190s", e->d_name);
        }
    }
    if (list) {
        (void)closedir(list);
    }
    SHL_RAISE(SHL_E_IO, "%s holds no weights", dir);
    shl_err_because("neither " SINGLE " nor " INDEX " is there%s",
                    torch ? ", only files of another format" : "");
    return found[0] ? shl_err_advice("%s/%s", dir, found) : SHL_E_IO;
}

/* There, if only as a link that leads nowhere: opening it tells why. */
static bool
is_there(const char *dir, const char *name, char *path, size_t cap)
{
    struct stat st;
    if (strlen(dir) + strlen(name) + 2 > cap) {
        return false;
    }
    shl_strf(path, cap, "%s/%s", dir, name);
    return lstat(path, &st) == 0;
}

static shl_code
add_name(shl_safetensors *r, const char *dir, const char *name)
{
    char path[SHL_SAFETENSORS_PATH_MAX];
    shl_safetensors_file *f = &r->files[r->n_files];
    SHL_TRY(shl_ckpt_join(dir, name, path, sizeof path));
    SHL_TRY(shl_heap_strdup(name, &f->name));
    r->n_files++;
    return shl_heap_strdup(path, &f->path);
}

/* A name in a folder, not a way out of it. */
static bool
plain_name(const char *name)
{
    return name && name[0] != '\0' && name[0] != '.' && !strchr(name, '/');
}

static int
by_text(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* The files that the values of the map name, each once. */
static shl_code
add_mapped_files(shl_safetensors *r, const char *dir, json_t *map)
{
    const char **names = NULL, *tensor;
    json_t *value;
    size_t n = 0, size = json_object_size(map);
    shl_code code = SHL_OK;
    SHL_TRY(shl_heap_alloc(size > 0 ? size : 1, sizeof *names, &names));
    json_object_foreach(map, tensor, value)
    {
        names[n] = json_string_value(value);
        if (!plain_name(names[n])) {
            code = SHL_RAISE(SHL_E_VERIFY,
                             "%s: weight_map of %.200s is no name of a file in the folder", r->path,
                             tensor);
            goto out;
        }
        n++;
    }
    if (n > 0) {
        qsort(names, n, sizeof *names, by_text);
    }
    SHL_TRY_TO(code, out, shl_heap_alloc(size > 0 ? size : 1, sizeof *r->files, &r->files));
    for (size_t i = 0; i < n; i++) {
        if (i == 0 || strcmp(names[i], names[i - 1]) != 0) {
            SHL_TRY_TO(code, out, add_name(r, dir, names[i]));
        }
    }
out:
    shl_heap_free(&names);
    return code;
}

static shl_code
read_text(const char *path, char **text, int64_t *len)
{
    shl_safetensors_file st = {0};
    int fd = -1;
    shl_code code = SHL_OK;
    *text = NULL;
    SHL_TRY(shl_safetensors_open_file(path, &fd, &st));
    if (st.bytes > INDEX_MAX_BYTES) {
        SHL_RAISE(SHL_E_VERIFY, "%s is too long", path);
        code = shl_err_because("it has %" PRId64 " bytes, at most %" PRId64 " are read", st.bytes,
                               INDEX_MAX_BYTES);
        goto out;
    }
    SHL_TRY_TO(code, out, shl_heap_alloc((size_t)st.bytes + 1, 1, text));
    SHL_TRY_TO(code, out, shl_ckpt_pread(fd, path, *text, (size_t)st.bytes, 0));
    *len = st.bytes;
out:
    if (code != SHL_OK) {
        shl_heap_free(text);
    }
    (void)close(fd);
    return code;
}

static shl_code
open_index(shl_safetensors *r, const char *dir, const char *path)
{
    json_error_t error;
    char *text = NULL;
    int64_t len = 0;
    shl_strf(r->path, sizeof r->path, "%s", path);
    SHL_TRY(read_text(path, &text, &len));
    r->index = json_loadb(text, (size_t)len, JSON_REJECT_DUPLICATES, &error);
    shl_heap_free(&text);
    if (!r->index) {
        bool twice = json_error_code(&error) == json_error_duplicate_key;
        SHL_RAISE(SHL_E_VERIFY, "%s %s", path, twice ? "has a name twice" : "is not JSON");
        return shl_err_because("%s, line %d, column %d", error.text, error.line, error.column);
    }
    json_t *map = json_object_get(r->index, "weight_map");
    if (!json_is_object(map)) {
        return SHL_RAISE(SHL_E_VERIFY, "%s has no weight_map", path);
    }
    return add_mapped_files(r, dir, map);
}

static shl_code
open_single(shl_safetensors *r, const char *path)
{
    const char *slash = strrchr(path, '/');
    shl_strf(r->path, sizeof r->path, "%s", path);
    SHL_TRY(shl_heap_alloc(1, sizeof *r->files, &r->files));
    r->n_files = 1;
    SHL_TRY(shl_heap_strdup(slash ? slash + 1 : path, &r->files[0].name));
    return shl_heap_strdup(path, &r->files[0].path);
}

shl_code
shl_safetensors_find_files(shl_safetensors *r, const char *path)
{
    struct stat st;
    char file[SHL_SAFETENSORS_PATH_MAX];
    size_t len = strlen(path);
    if (len == 0 || len >= sizeof file) {
        return SHL_RAISE(SHL_E_USAGE, "the path of weights has 1 to %zu characters",
                         sizeof file - 1);
    }
    if (stat(path, &st) != 0) {
        return shl_ckpt_io_fail("open weights", path);
    }
    if (S_ISDIR(st.st_mode)) {
        if (is_there(path, SINGLE, file, sizeof file)) {
            return open_single(r, file);
        }
        return is_there(path, INDEX, file, sizeof file) ? open_index(r, path, file)
                                                        : raise_no_weights(path);
    }
    if (!ends_with(path, ".index.json")) {
        return open_single(r, path);
    }
    const char *slash = strrchr(path, '/');
    shl_strf(file, sizeof file, "%.*s", slash ? (int)(slash - path) : 1, slash ? path : ".");
    return open_index(r, file[0] ? file : "/", path);
}

static shl_code
check_total(const shl_safetensors *r)
{
    json_t *metadata = json_object_get(r->index, "metadata");
    const json_t *total = json_object_get(metadata, "total_size");
    int64_t bytes = 0;
    for (int i = 0; i < r->n_entries; i++) {
        bytes += r->entries[i].end - r->entries[i].begin;
    }
    if (!total) {
        return SHL_OK;
    }
    /* Some writers spell it as a real number. */
    if (json_is_number(total) && fabs(json_number_value(total) - (double)bytes) < 0.5) {
        return SHL_OK;
    }
    SHL_RAISE(SHL_E_VERIFY, "%s: total_size is not that of the files", r->path);
    return shl_err_because("it says %.0f, the tensors in the files have %" PRId64 " bytes",
                           json_number_value(total), bytes);
}

static int
find_name(const shl_safetensors *r, const char *name)
{
    int i = shl_safetensors_find(r, name);
    return i >= 0 && strcmp(r->entries[i].name, name) == 0 ? i : -1;
}

shl_code
shl_safetensors_check_index(const shl_safetensors *r)
{
    json_t *map = json_object_get(r->index, "weight_map"), *value;
    const char *name;
    if (!r->index) {
        return SHL_OK;
    }
    for (int i = 0; i < r->n_entries; i++) {
        const shl_safetensors_entry *e = &r->entries[i];
        const char *file = json_string_value(json_object_get(map, e->name));
        if (!file || strcmp(file, r->files[e->file].name) != 0) {
            SHL_RAISE(SHL_E_VERIFY, "%s: tensor %.200s lies in %s", r->path, e->name,
                      r->files[e->file].name);
            return shl_err_because("weight_map says %s", file ? file : "nothing of it");
        }
    }
    json_object_foreach(map, name, value)
    {
        if (find_name(r, name) < 0) {
            SHL_RAISE(SHL_E_VERIFY, "%s: tensor %.200s is missing", r->path, name);
            return shl_err_because("weight_map says it is in %s, which does not hold it",
                                   json_string_value(value));
        }
    }
    return check_total(r);
}

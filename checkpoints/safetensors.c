/* checkpoints: opening a folder of safetensors, finding tensors and reading ranges of them. One file is
 * open at a time, however many shards there are. */
#include "checkpoints/safetensors.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <jansson.h>

#include "checkpoints/ckpt_room.h"
#include "checkpoints/safetensors_room.h"
#include "kernels/base/half.h"
#include "kernels/base/heap.h"
#include "kernels/base/str.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the format is little-endian, so are we");

#define CHUNK_ELEMS 65536

const char *
shl_safetensors_key(const char *name)
{
    static const char *const prefixes[] = {"transformer.", "model."};
    for (size_t i = 0; i < SHL_ARRAY_LEN(prefixes); i++) {
        size_t len = strlen(prefixes[i]);
        if (strncmp(name, prefixes[i], len) == 0) {
            return name + len;
        }
    }
    return name;
}

shl_code
shl_safetensors_open_file(const char *path, int *fd, shl_safetensors_file *f)
{
    struct stat st;
    /* Not blocking: a pipe in the place of a file must not hang the reader. */
    *fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    if (*fd < 0) {
        return shl_ckpt_io_fail("open", path);
    }
    if (fstat(*fd, &st) == 0 && S_ISREG(st.st_mode)) {
        f->bytes = (int64_t)st.st_size;
        f->device = st.st_dev;
        f->inode = st.st_ino;
        return SHL_OK;
    }
    (void)close(*fd);
    *fd = -1;
    (void)SHL_RAISE(SHL_E_IO, "cannot read %s", path);
    return shl_err_because("it is not a regular file");
}

int
shl_safetensors_count(const shl_safetensors *r)
{
    return r->n_entries;
}

shl_safetensor
shl_safetensors_at(const shl_safetensors *r, int i)
{
    SHL_ASSERT(i >= 0 && i < r->n_entries);
    const shl_safetensors_entry *e = &r->entries[i];
    shl_safetensor t = {
        .name = e->name,
        .key = e->key,
        .dtype = e->dtype->name,
        .file = r->files[e->file].name,
        .n_dims = e->n_dims,
        .elems = e->elems,
        .bytes = e->end - e->begin,
    };
    memcpy(t.dims, e->dims, sizeof t.dims);
    return t;
}

int
shl_safetensors_find(const shl_safetensors *r, const char *name)
{
    const char *key = shl_safetensors_key(name);
    int low = 0, high = r->n_entries - 1;
    while (low <= high) {
        int mid = low + (high - low) / 2;
        int order = strcmp(r->entries[mid].key, key);
        if (order == 0) {
            return mid;
        }
        if (order < 0) {
            low = mid + 1;
        } else {
            high = mid - 1;
        }
    }
    return -1;
}

int64_t
shl_safetensors_bytes_read(const shl_safetensors *r)
{
    return r->bytes_read;
}

/* The open file `file`, and still the one whose header was checked. */
static shl_code
switch_to(shl_safetensors *r, int file)
{
    const shl_safetensors_file *f = &r->files[file];
    shl_safetensors_file now = {0};
    if (r->fd_file == file) {
        return SHL_OK;
    }
    if (r->fd >= 0) {
        (void)close(r->fd);
        r->fd = r->fd_file = -1;
    }
    SHL_TRY(shl_safetensors_open_file(f->path, &r->fd, &now));
    r->fd_file = file;
    if (now.bytes == f->bytes && now.device == f->device && now.inode == f->inode) {
        return SHL_OK;
    }
    (void)close(r->fd);
    r->fd = r->fd_file = -1;
    SHL_RAISE(SHL_E_VERIFY, "%s has changed while it was read", f->path);
    return shl_err_because("it had %" PRId64 " bytes, now %" PRId64 "%s", f->bytes, now.bytes,
                           now.bytes == f->bytes ? " of another file" : "");
}

/* Widening is exact, narrowing rounds to the nearest even. */
static void
convert(shl_dtype from, const void *src, shl_dtype to, void *dst, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        shl_float_put(to, dst, i, shl_float_at(from, src, i));
    }
}

static shl_code
read_bytes(shl_safetensors *r, const shl_safetensors_entry *e, int64_t at, int64_t bytes, void *out)
{
    SHL_TRY(switch_to(r, e->file));
    SHL_TRY(shl_ckpt_pread(r->fd, r->files[e->file].path, out, (size_t)bytes, e->begin + at));
    r->bytes_read += bytes;
    return SHL_OK;
}

shl_code
shl_safetensors_read(shl_safetensors *r, int i, int64_t begin, int64_t end, shl_dtype dtype,
                     void *out)
{
    SHL_ASSERT(i >= 0 && i < r->n_entries);
    const shl_safetensors_entry *e = &r->entries[i];
    if (begin < 0 || begin > end || end > e->elems || !shl_dtype_is_float(dtype)) {
        SHL_RAISE(SHL_E_BUG, "a range of %.200s is out of bounds", e->name);
        return shl_err_because("elements [%" PRId64 ", %" PRId64 ") of %" PRId64 " as %s", begin,
                               end, e->elems, shl_dtype_name(dtype));
    }
    if (e->dtype->own < 0) {
        SHL_RAISE(SHL_E_CONFIG, "%s: tensor %.200s is %s", r->files[e->file].path, e->name,
                  e->dtype->name);
        return shl_err_because("parameters are read as F32, BF16 or F16");
    }
    shl_dtype from = (shl_dtype)e->dtype->own;
    int64_t size = (int64_t)shl_dtype_bytes(from);
    if (from == dtype) {
        return read_bytes(r, e, begin * size, (end - begin) * size, out);
    }
    for (int64_t at = begin; at < end; at += CHUNK_ELEMS) {
        int64_t n = end - at < CHUNK_ELEMS ? end - at : CHUNK_ELEMS;
        SHL_TRY(read_bytes(r, e, at * size, n * size, r->chunk));
        convert(from, r->chunk, dtype, (char *)out + (size_t)(at - begin) * shl_dtype_bytes(dtype),
                n);
    }
    return SHL_OK;
}

static int
by_key(const void *a, const void *b)
{
    const shl_safetensors_entry *x = a, *y = b;
    int order = strcmp(x->key, y->key);
    return order != 0 ? order : strcmp(x->name, y->name);
}

/* A name must mean one tensor. */
static shl_code
sort_entries(shl_safetensors *r)
{
    if (r->n_entries > 0) {
        qsort(r->entries, (size_t)r->n_entries, sizeof *r->entries, by_key);
    }
    for (int i = 1; i < r->n_entries; i++) {
        const shl_safetensors_entry *a = &r->entries[i - 1], *b = &r->entries[i];
        if (strcmp(a->key, b->key) != 0) {
            continue;
        }
        if (strcmp(a->name, b->name) == 0) {
            SHL_RAISE(SHL_E_VERIFY, "%s: tensor %.200s is in two shards", r->path, a->name);
            return shl_err_because("%s and %s", r->files[a->file].name, r->files[b->file].name);
        }
        SHL_RAISE(SHL_E_VERIFY, "%s: tensor %.200s is there twice", r->path, a->key);
        return shl_err_because("as %.200s and as %.200s", a->name, b->name);
    }
    return SHL_OK;
}

static shl_code
open_reader(shl_safetensors *r, const char *path)
{
    SHL_TRY(shl_heap_alloc(CHUNK_ELEMS, sizeof(float), &r->chunk));
    SHL_TRY(shl_safetensors_find_files(r, path));
    for (int i = 0; i < r->n_files; i++) {
        SHL_TRY(shl_safetensors_add_file(r, i));
    }
    SHL_TRY(sort_entries(r));
    return shl_safetensors_check_index(r);
}

shl_code
shl_safetensors_open(const char *path, shl_safetensors **out)
{
    shl_safetensors *r = NULL;
    *out = NULL;
    SHL_TRY(shl_heap_alloc(1, sizeof *r, &r));
    r->fd = r->fd_file = -1;
    shl_code code = open_reader(r, path);
    if (code != SHL_OK) {
        shl_safetensors_close(&r);
    }
    *out = r;
    return code;
}

void
shl_safetensors_close(shl_safetensors **r_ptr)
{
    shl_safetensors *r = *r_ptr;
    if (!r) {
        return;
    }
    if (r->fd >= 0) {
        (void)close(r->fd);
    }
    for (int i = 0; i < r->n_entries; i++) {
        shl_heap_free(&r->entries[i].name);
    }
    for (int i = 0; i < r->n_files; i++) {
        shl_heap_free(&r->files[i].name);
        shl_heap_free(&r->files[i].path);
    }
    shl_heap_free(&r->entries);
    shl_heap_free(&r->files);
    shl_heap_free(&r->chunk);
    json_decref(r->index);
    shl_heap_free(r_ptr);
}

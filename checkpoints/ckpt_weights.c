/* checkpoints: the parameters of a save as one safetensors file beside its shards: read back from them in
 * pieces by rank 0, rounded to nearest even, so that no rank ever holds the model. */
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include <jansson.h>

#include "checkpoints/ckpt_room.h"
#include "kernels/base/half.h"
#include "kernels/base/heap.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the format is little-endian, so are we");

#define CHUNK_ELEMS 262144
#define HEADER_ALIGN                                                                               \
    8 /* tensors begin at a multiple of it: the format pads its header with blanks */

typedef struct weights_file {
    const char *folder;
    const shl_ckpt_index *x;
    shl_dtype dtype;
    char path[SHL_CKPT_PATH_MAX];
    int fd;
    int shard, shard_fd; /* the one that is open, -1 */
    int64_t at;          /* in the file */
    float *wide;
    void *narrow;
} weights_file;

static bool
is_param(const shl_ckpt_entry *e)
{
    return strcmp(e->kind, "param") == 0;
}

static const char *
format_name(shl_dtype dtype)
{
    return dtype == SHL_BF16 ? "BF16" : dtype == SHL_F16 ? "F16" : "F32";
}

static json_t *
describe(const weights_file *w, const shl_ckpt_entry *e, int64_t begin)
{
    json_t *shape = json_array();
    for (int i = 0; shape && i < e->n_dims; i++) {
        json_array_append_new(shape, json_integer(e->dims[i]));
    }
    int64_t end = begin + e->elems * (int64_t)shl_dtype_bytes(w->dtype);
    return json_pack("{ss so s[II]}", "dtype", format_name(w->dtype), "shape", shape,
                     "data_offsets", (json_int_t)begin, (json_int_t)end);
}

/* Eight bytes of length, then JSON: in the order of the index, side by side. */
static shl_code
write_header(weights_file *w)
{
    json_t *root = json_pack("{s{ss}}", "__metadata__", "format", "pt");
    int64_t begin = 0;
    for (int i = 0; i < w->x->n_tensors; i++) {
        const shl_ckpt_entry *e = &w->x->tensors[i];
        if (is_param(e) && root) {
            json_object_set_new(root, e->name, describe(w, e, begin));
            begin += e->elems * (int64_t)shl_dtype_bytes(w->dtype);
        }
    }
    shl_str text = {0};
    char *dump = json_dumps(root, JSON_COMPACT);
    json_free_t release;
    json_get_alloc_funcs(NULL, &release);
    shl_str_add(&text, "%s", dump ? dump : "");
    while (text.len % HEADER_ALIGN != 0 && !text.failed) {
        shl_str_add(&text, " ");
    }
    uint64_t bytes = text.len;
    shl_code code = dump && !text.failed ? shl_ckpt_pwrite(w->fd, w->path, &bytes, sizeof(bytes), 0)
                                         : SHL_RAISE(SHL_E_HEAP, "out of host memory for a header");
    if (code == SHL_OK) {
        code = shl_ckpt_pwrite(w->fd, w->path, shl_str_get(&text), text.len, sizeof(bytes));
    }
    w->at = (int64_t)(sizeof(bytes) + text.len);
    shl_str_fini(&text);
    release(dump);
    json_decref(root);
    return code;
}

static shl_code
open_shard(weights_file *w, int shard, char *path, size_t cap)
{
    SHL_TRY(shl_ckpt_join(w->folder, w->x->files[shard].name, path, cap));
    if (w->shard == shard) {
        return SHL_OK;
    }
    if (w->shard_fd >= 0) {
        (void)close(w->shard_fd);
    }
    w->shard = shard;
    w->shard_fd = open(path, O_RDONLY | O_CLOEXEC);
    return w->shard_fd >= 0 ? SHL_OK : shl_ckpt_io_fail("open", path);
}

static void
narrow(weights_file *w, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        shl_float_put(w->dtype, w->narrow, i, w->wide[i]);
    }
}

static shl_code
copy_range(weights_file *w, const shl_ckpt_fragment *f)
{
    char path[SHL_CKPT_PATH_MAX];
    size_t size = shl_dtype_bytes(w->dtype);
    SHL_TRY(open_shard(w, f->file, path, sizeof path));
    for (int64_t at = f->begin; at < f->end; at += CHUNK_ELEMS) {
        int64_t n = f->end - at < CHUNK_ELEMS ? f->end - at : CHUNK_ELEMS;
        SHL_TRY(shl_ckpt_pread(w->shard_fd, path, w->wide, (size_t)n * sizeof(float),
                               f->offset + (at - f->begin) * (int64_t)sizeof(float)));
        narrow(w, n);
        SHL_TRY(shl_ckpt_pwrite(w->fd, w->path, w->narrow, (size_t)n * size, w->at));
        w->at += n * (int64_t)size;
    }
    return SHL_OK;
}

static shl_code
write_all(weights_file *w)
{
    SHL_TRY(shl_heap_alloc(CHUNK_ELEMS, sizeof(*w->wide), &w->wide));
    SHL_TRY(shl_heap_alloc(CHUNK_ELEMS, shl_dtype_bytes(w->dtype), &w->narrow));
    SHL_TRY(write_header(w));
    /* In the order of their tensors, and in a tensor from its begin on. */
    for (int i = 0; i < w->x->n_fragments; i++) {
        const shl_ckpt_fragment *f = &w->x->fragments[i];
        if (is_param(&w->x->tensors[f->tensor])) {
            SHL_TRY(copy_range(w, f));
        }
    }
    return fsync(w->fd) == 0 ? SHL_OK : shl_ckpt_io_fail("write to the disk", w->path);
}

shl_code
shl_ckpt_write_weights(const char *folder, const shl_ckpt_index *x, shl_dtype dtype)
{
    weights_file w = {.folder = folder, .x = x, .dtype = dtype, .shard = -1, .shard_fd = -1};
    SHL_TRY(shl_ckpt_join(folder, SHL_CKPT_WEIGHTS, w.path, sizeof w.path));
    w.fd = open(w.path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (w.fd < 0) {
        return shl_ckpt_io_fail("create", w.path);
    }
    shl_code code = write_all(&w);
    if (close(w.fd) != 0 && code == SHL_OK) {
        code = shl_ckpt_io_fail("close", w.path);
    }
    if (w.shard_fd >= 0) {
        (void)close(w.shard_fd);
    }
    shl_heap_free(&w.wide);
    shl_heap_free(&w.narrow);
    return code;
}

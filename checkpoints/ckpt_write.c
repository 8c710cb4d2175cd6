/* checkpoints: one rank's shard file. HDF5 lays the file out and holds the metadata; the elements
 * go to their place by our own writes, into space reserved beforehand, because HDF5 1.10 does not
 * survive a full disk reliably (a failed flush of metadata can end in a crash). */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "checkpoints/ckpt_room.h"
#include "checkpoints/h5.h"
#include "kernels/base/half.h"
#include "kernels/base/heap.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "elements are stored as they lie");

/* Reserved beyond what the file needs: far more metadata than one fragment can add. */
#define MARGIN_BYTES ((int64_t)256 << 10)

struct shl_ckpt_writer {
    char folder[SHL_CKPT_PATH_MAX];
    char path[SHL_CKPT_PATH_MAX];
    char name[64];
    shl_h5_head head;
    shl_h5 *h5; /* NULL until the first element is to be stored */
    int fd;     /* the same file, for the elements */
    int64_t reserved_bytes;
    bool broken;   /* a put failed: the file cannot be finished */
    bool no_bytes; /* a put came from a device without bytes */
    bool file_made;
};

shl_code
shl_ckpt_save_begin(const char *dir, const shl_ckpt_meta *meta, int rank, int world,
                    shl_ckpt_writer **out)
{
    char temp[96];
    shl_ckpt_writer *w = NULL;
    *out = NULL;
    SHL_ASSERT(rank >= 0 && rank < world && world == meta->world);
    SHL_TRY(shl_heap_alloc(1, sizeof *w, &w));
    w->fd = -1;
    w->head = (shl_h5_head){SHL_CKPT_VERSION, meta->step, rank, world};
    shl_ckpt_shard_name(rank, world, w->name, sizeof w->name);
    shl_ckpt_temp_name(meta, temp, sizeof temp);
    shl_code code = shl_ckpt_join(dir, temp, w->folder, sizeof w->folder);
    if (code == SHL_OK) {
        code = shl_ckpt_join(w->folder, w->name, w->path, sizeof w->path);
    }
    if (code != SHL_OK) {
        shl_heap_free(&w);
        return code;
    }
    *out = w;
    return SHL_OK;
}

static shl_code
reserve_to(shl_ckpt_writer *w, int64_t need)
{
    if (need <= w->reserved_bytes) {
        return SHL_OK;
    }
    int rc = EINTR;
    while (rc == EINTR) {
        rc = posix_fallocate(w->fd, (off_t)w->reserved_bytes, (off_t)(need - w->reserved_bytes));
    }
    if (rc != 0) {
        errno = rc;
        return shl_ckpt_write_fail(w->path, need - w->reserved_bytes);
    }
    w->reserved_bytes = need;
    return SHL_OK;
}

static shl_code
reserve(shl_ckpt_writer *w, int64_t more_bytes)
{
    int64_t end = 0;
    SHL_TRY(shl_h5_end(w->h5, &end));
    return reserve_to(w, end + more_bytes + MARGIN_BYTES);
}

/* HDF5 empties the file when it starts and writes at once; that the first bytes fit is tried
 * before, because it does not recover from a failure there. */
static shl_code
make_file(shl_ckpt_writer *w)
{
    if (w->h5 != NULL) {
        return SHL_OK;
    }
    w->fd = open(w->path, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0666);
    if (w->fd < 0) {
        return shl_ckpt_io_fail("make", w->path);
    }
    w->file_made = true;
    SHL_TRY(reserve_to(w, MARGIN_BYTES));
    w->reserved_bytes = 0;
    SHL_TRY(shl_h5_create(w->path, &w->head, &w->h5));
    return reserve(w, 0);
}

/* Part `replica` of n equal ones, so that every element is written by one rank. */
static void
cut_slice(const shl_shard *s, int64_t *begin, int64_t *end)
{
    int64_t len = s->end - s->begin;
    int64_t per = shl_ceil_div(len, s->n_replicas);
    int64_t first = per * s->replica;
    int64_t last = first + per;
    *begin = s->begin + (first < len ? first : len);
    *end = s->begin + (last < len ? last : len);
}

static shl_code
check_shard(const shl_shard *s, shl_ckpt_entry *e)
{
    SHL_TRY(shl_ckpt_entry_set(e, s->kind, s->name, s->n_dims, s->dims));
    bool ok = s->begin >= 0 && s->begin <= s->end && s->end <= e->elems && s->n_replicas >= 1 &&
              s->replica >= 0 && s->replica < s->n_replicas &&
              shl_tensor_elems(&s->local) == s->end - s->begin;
    if (!ok) {
        (void)SHL_RAISE(SHL_E_BUG, "the shard of %s is out of bounds", s->name);
        return shl_err_because("elements [%lld, %lld) of %lld, replica %d of %d",
                               (long long)s->begin, (long long)s->end, (long long)e->elems,
                               s->replica, s->n_replicas);
    }
    if (!shl_dtype_is_float(s->local.dtype)) {
        (void)SHL_RAISE(SHL_E_USAGE, "a checkpoint cannot hold %s as %s", s->name,
                        shl_dtype_name(s->local.dtype));
        return shl_err_because("its elements are fp32, or widened to it from bf16 or fp16");
    }
    return SHL_OK;
}

/* n elements from the device into the stage, as fp32. Those of 16 bits are fetched into the upper half and
 * widened from the front on: what is overwritten has been read. */
static shl_code
fetch(shl_device *d, float *stage, const void *src, shl_dtype dtype, int64_t n)
{
    const size_t bytes = (size_t)n * shl_dtype_bytes(dtype);
    if (dtype == SHL_F32) {
        return shl_device_download(d, stage, src, bytes);
    }
    uint16_t *narrow = (uint16_t *)stage + n;
    SHL_TRY(shl_device_download(d, narrow, src, bytes));
    for (int64_t i = 0; i < n; i++) {
        float wide = shl_float_at(dtype, narrow, i);
        memcpy((char *)stage + (size_t)i * sizeof wide, &wide, sizeof wide);
    }
    return SHL_OK;
}

/* The same allocations on a device without bytes as on the one it stands for. */
static shl_code
write_staged(shl_ckpt_writer *w, shl_device *d, const void *src, shl_dtype dtype, int64_t elems,
             int64_t at)
{
    shl_buf stage;
    int64_t chunk = (int64_t)(SHL_CKPT_CHUNK_BYTES / sizeof(float));
    chunk = elems < chunk ? elems : chunk;
    shl_code code = SHL_OK;
    SHL_TRY(shl_device_alloc(d, (size_t)chunk * sizeof(float), SHL_TIER_HOST, SHL_TAG_CKPT, 0,
                             "checkpoint", &stage));
    for (int64_t done = 0; d->caps.has_bytes && done < elems; done += chunk) {
        int64_t n = elems - done < chunk ? elems - done : chunk;
        const char *from = (const char *)src + (size_t)done * shl_dtype_bytes(dtype);
        SHL_TRY_TO(code, out, fetch(d, stage.data, from, dtype, n));
        SHL_TRY_TO(code, out,
                   shl_ckpt_pwrite(w->fd, w->path, stage.data, (size_t)n * sizeof(float),
                                   at + done * (int64_t)sizeof(float)));
    }
out:
    shl_device_free(d, &stage);
    return code;
}

/* Piece by piece, each sent on its way to the disk at once, so that the disk works while the next one
 * is copied. What goes wrong on the way is told by the fsync at the end. */
static shl_code
write_bytes(const shl_ckpt_writer *w, const char *src, size_t bytes, int64_t at)
{
    for (size_t done = 0; done < bytes; done += SHL_CKPT_CHUNK_BYTES) {
        size_t n = bytes - done < SHL_CKPT_CHUNK_BYTES ? bytes - done : SHL_CKPT_CHUNK_BYTES;
        off_t from = (off_t)(at + (int64_t)done);
        SHL_TRY(shl_ckpt_pwrite(w->fd, w->path, src + done, n, from));
        (void)sync_file_range(w->fd, from, (off_t)n, SYNC_FILE_RANGE_WRITE);
    }
    return SHL_OK;
}

static shl_code
put_slice(shl_ckpt_writer *w, shl_device *d, const shl_shard *s, const shl_ckpt_entry *e)
{
    shl_h5_range range = {e->kind, e->name, e->n_dims, e->dims, 0, 0, 0};
    int64_t at = 0;
    cut_slice(s, &range.begin, &range.end);
    if (range.begin == range.end) {
        return SHL_OK;
    }
    const shl_dtype dtype = s->local.dtype;
    size_t bytes = (size_t)(range.end - range.begin) * sizeof(float);
    const char *src =
        (const char *)s->local.data + (size_t)(range.begin - s->begin) * shl_dtype_bytes(dtype);
    if (d->caps.has_bytes) {
        SHL_TRY(make_file(w));
        SHL_TRY(reserve(w, (int64_t)bytes));
        SHL_TRY(shl_h5_add(w->h5, &range, &at));
    }
    if (d->caps.async || dtype != SHL_F32) {
        return write_staged(w, d, src, dtype, range.end - range.begin, at);
    }
    return d->caps.has_bytes ? write_bytes(w, src, bytes, at) : SHL_OK;
}

shl_code
shl_ckpt_put(shl_ckpt_writer *w, shl_device *d, const shl_shard *shard)
{
    shl_ckpt_entry e;
    w->no_bytes = w->no_bytes || !d->caps.has_bytes;
    shl_code code = check_shard(shard, &e);
    if (code == SHL_OK) {
        code = put_slice(w, d, shard, &e);
    }
    w->broken = w->broken || code != SHL_OK;
    return code;
}

void
shl_ckpt_save_abort(shl_ckpt_writer **w_ptr)
{
    shl_ckpt_writer *w = *w_ptr;
    if (w == NULL) {
        return;
    }
    shl_h5_drop(&w->h5);
    if (w->fd >= 0) {
        (void)close(w->fd);
    }
    if (w->file_made) {
        (void)unlink(w->path);
    }
    shl_heap_free(w_ptr);
}

/* HDF5 ends the file, we cut what was reserved too much. A failed fsync is never repeated: the
 * pages may count as clean after it. */
static shl_code
end_file(shl_ckpt_writer *w, shl_ckpt_file *out)
{
    int64_t hashed = 0;
    SHL_TRY(make_file(w));
    SHL_TRY(shl_h5_close(&w->h5, &out->bytes));
    if (ftruncate(w->fd, (off_t)out->bytes) != 0) {
        return shl_ckpt_io_fail("set the length of", w->path);
    }
    /* The disk works while we hash what the page cache holds. */
    (void)sync_file_range(w->fd, 0, 0, SYNC_FILE_RANGE_WRITE);
    SHL_TRY(shl_ckpt_hash_fd(w->fd, w->path, &hashed, out->hash));
    if (fsync(w->fd) != 0) {
        return shl_ckpt_write_fail(w->path, out->bytes);
    }
    if (hashed != out->bytes) {
        (void)SHL_RAISE(SHL_E_IO, "%s is shorter than written", w->path);
        return shl_err_because("%lld bytes are there, %lld were written", (long long)hashed,
                               (long long)out->bytes);
    }
    return shl_ckpt_sync_folder(w->folder);
}

shl_code
shl_ckpt_save_finish(shl_ckpt_writer **w_ptr, shl_ckpt_file *out)
{
    shl_ckpt_writer *w = *w_ptr;
    shl_code code = SHL_OK;
    memset(out, 0, sizeof *out);
    if (w->broken) {
        (void)SHL_RAISE(SHL_E_IO, "%s cannot be finished", w->path);
        code = shl_err_because("a part of it could not be written before");
    } else if (w->h5 != NULL || !w->no_bytes) {
        shl_strf(out->name, sizeof out->name, "%s", w->name);
        code = end_file(w, out);
    }
    if (code == SHL_OK) {
        w->file_made = false;
    } else {
        memset(out, 0, sizeof *out);
    }
    shl_ckpt_save_abort(w_ptr);
    return code;
}

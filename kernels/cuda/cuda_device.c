/* kernels/cuda: the device's table: opening, copies, and the numbers of the card. */
#include "kernels/cuda/cuda_device.h"

#include <dlfcn.h>
#include <string.h>

#include "kernels/base/heap.h"
#include "kernels/base/str.h"
#include "kernels/cuda/cuda_impl.h"
#include "kernels/cuda/cuda_load.h"
#include "kernels/device/device_registry.h"

static shl_code
count_cards(const shl_cuda_backend *table, int *out)
{
    *out = 0;
    return shl_cuda_check(table, table->count(out), "no CUDA device can be used");
}

/* The card of a number, among those that the driver shows. */
static shl_code
info_of(const shl_cuda_backend *table, int index, shl_cuda_info *out)
{
    int n = 0;
    SHL_TRY(count_cards(table, &n));
    if (index < 0 || index >= n) {
        SHL_RAISE(SHL_E_USAGE, "there is no CUDA device number %d", index);
        shl_err_because("the driver shows %d", n);
        return shl_err_advice("fewer ranks on this machine, or --share-gpu");
    }
    return shl_cuda_check(table, table->info(index, out), "no CUDA device");
}

static shl_code
choose(cuda_impl *c, int index)
{
    size_t left = 0, total = 0;
    SHL_TRY(info_of(c->table, index, &c->info));
    SHL_TRY(shl_cuda_check(c->table, c->table->use(index), "the CUDA device cannot be used"));
    SHL_TRY(shl_cuda_check(c->table, c->table->memory(&left, &total),
                           "the driver does not tell its memory"));
    c->index = index;
    c->base_bytes = total - left;
    return SHL_OK;
}

static void
cuda_close(shl_device *d)
{
    cuda_impl *c = cuda_of(d);
    if (c->libs != NULL) {
        c->table->libs_close(c->libs);
    }
    shl_cuda_memory_close(d);
    shl_heap_free(&d->impl);
}

static shl_code
cuda_open(shl_device *d, const shl_device_config *cfg)
{
    const shl_cuda_backend *table = NULL;
    cuda_impl *c = NULL;
    shl_code code = SHL_OK;
    if (cfg->link_bytes_per_s > 0.0) {
        SHL_RAISE(SHL_E_USAGE, "a cuda device has no adjustable link");
        shl_err_because("its copies run as fast as the bus");
        return shl_err_advice("no rate of the link, or device virtual standing for cuda");
    }
    SHL_TRY(shl_cuda_load(&table));
    SHL_TRY(shl_heap_alloc(1, sizeof(*c), &c));
    d->impl = c;
    c->table = table;
    SHL_TRY_TO(code, out, choose(c, cfg->index));
    SHL_TRY_TO(code, out, shl_cuda_memory_open(d));
    SHL_TRY_TO(code, out,
               shl_cuda_check(table, table->libs_open(c->index, &c->libs),
                              "the libraries of CUDA do not start"));
    d->caps =
        (shl_device_caps){.has_bytes = true, .async = true, .align_bytes = SHL_CUDA_ALIGN_BYTES};
    d->op_table = &shl_cuda_op_table;
    return SHL_OK;
out:
    cuda_close(d);
    return code;
}

static shl_code
cuda_copy(shl_device *d, void *dst, const void *src, size_t bytes, shl_stream *s)
{
    const shl_cuda_backend *table = cuda_of(d)->table;
    void *stream = NULL;
    if (dst == src) {
        return SHL_OK;
    }
    SHL_TRY(shl_cuda_begin(s, &stream));
    return shl_cuda_check(table, table->copy(dst, src, bytes, stream), "a copy was not queued");
}

typedef struct host_fill {
    void *dst;
    int byte;
    size_t bytes;
} host_fill;

static shl_code
run_host_fill(void *arg)
{
    const host_fill *f = arg;
    memset(f->dst, f->byte, f->bytes);
    return SHL_OK;
}

static shl_code
cuda_fill(shl_device *d, void *dst, int byte, size_t bytes, shl_stream *s)
{
    const shl_cuda_backend *table = cuda_of(d)->table;
    void *stream = NULL;
    if (shl_cuda_is_host(d, dst)) {
        host_fill f = {dst, byte, bytes};
        return shl_cuda_submit(d, s, run_host_fill, &f, sizeof(f), 0);
    }
    SHL_TRY(shl_cuda_begin(s, &stream));
    return shl_cuda_check(table, table->fill(dst, byte, bytes, stream), "a fill was not queued");
}

/* The next page-locked buffer, free again. */
static shl_code
next_slot(shl_device *d, unsigned *out)
{
    cuda_impl *c = cuda_of(d);
    unsigned i = c->next_slot;
    c->next_slot = (i + 1) % CUDA_SLOTS;
    *out = i;
    shl_event read = {&d->streams[SHL_STREAM_COMPUTE], c->slot_seq[i]};
    return c->slot_seq[i] == 0 ? SHL_OK : shl_cuda_sync(d, read);
}

/* Through page-locked buffers: the caller's bytes are free again at once, and nobody waits for the
 * device. In the order of compute; every other stream's next work is behind it. */
static shl_code
cuda_upload(shl_device *d, void *dst, const void *host, size_t bytes)
{
    cuda_impl *c = cuda_of(d);
    shl_stream *s = &d->streams[SHL_STREAM_COMPUTE];
    for (size_t at = 0; at < bytes; at += CUDA_SLOT_BYTES) {
        size_t n = bytes - at < CUDA_SLOT_BYTES ? bytes - at : CUDA_SLOT_BYTES;
        unsigned i = 0;
        SHL_TRY(next_slot(d, &i));
        memcpy(c->slots[i], (const char *)host + at, n);
        SHL_TRY(cuda_copy(d, (char *)dst + at, c->slots[i], n, s));
        c->slot_seq[i] = c->streams[SHL_STREAM_COMPUTE].queued;
    }
    c->need[SHL_STREAM_COMPUTE] = c->streams[SHL_STREAM_COMPUTE].queued;
    return SHL_OK;
}

static shl_code
cuda_download(shl_device *d, void *host, const void *src, size_t bytes)
{
    cuda_impl *c = cuda_of(d);
    shl_stream *s = &d->streams[SHL_STREAM_COMPUTE];
    for (size_t at = 0; at < bytes; at += CUDA_SLOT_BYTES) {
        size_t n = bytes - at < CUDA_SLOT_BYTES ? bytes - at : CUDA_SLOT_BYTES;
        shl_event done;
        unsigned i = 0;
        SHL_TRY(next_slot(d, &i));
        SHL_TRY(cuda_copy(d, c->slots[i], (const char *)src + at, n, s));
        SHL_TRY(shl_cuda_record(d, s, &done));
        SHL_TRY(shl_cuda_sync(d, done));
        memcpy((char *)host + at, c->slots[i], n);
    }
    return SHL_OK;
}

static void
cuda_identify(shl_device *d, shl_device_identity *out)
{
    const shl_cuda_info *info = &cuda_of(d)->info;
    shl_strf(out->name, sizeof(out->name), "%s", info->name);
    shl_strf(out->id, sizeof(out->id), "%s", info->uuid);
}

/* The file that a function of the table lies in. */
static void
path_of(const shl_cuda_backend *table, char *out, size_t bytes)
{
    union {
        int (*fn)(int *);
        void *address;
    } any = {table->count};
    Dl_info where;
    bool known = dladdr(any.address, &where) != 0 && where.dli_fname != NULL;
    shl_strf(out, bytes, "%s", known ? where.dli_fname : "");
}

static shl_code
cuda_survey(shl_device_survey *out)
{
    const shl_cuda_backend *table = NULL;
    shl_cuda_info info;
    SHL_TRY(shl_cuda_load(&table));
    path_of(table, out->path, sizeof(out->path));
    table->versions(out->libraries, sizeof(out->libraries));
    SHL_TRY(count_cards(table, &out->n_cards));
    if (out->n_cards > 0) {
        SHL_TRY(shl_cuda_check(table, table->info(0, &info), "no CUDA device"));
        out->driver_version = info.driver_version;
        out->runtime_version = info.runtime_version;
    }
    return SHL_OK;
}

static shl_code
cuda_card(int index, shl_device_card *out)
{
    const shl_cuda_backend *table = NULL;
    shl_cuda_info info;
    SHL_TRY(shl_cuda_load(&table));
    SHL_TRY(info_of(table, index, &info));
    shl_strf(out->identity.name, sizeof(out->identity.name), "%s", info.name);
    shl_strf(out->identity.id, sizeof(out->identity.id), "%s", info.uuid);
    out->total_bytes = info.total_bytes;
    out->major = info.major;
    out->minor = info.minor;
    out->multiprocessors = info.multiprocessors;
    return SHL_OK;
}

static shl_code
cuda_memory(shl_device *d, shl_device_memory *out)
{
    const cuda_impl *c = cuda_of(d);
    size_t left = 0;
    SHL_TRY(shl_cuda_check(c->table, c->table->memory(&left, &out->total_bytes),
                           "the driver does not tell its memory"));
    out->used_bytes = out->total_bytes - left;
    out->base_bytes = c->base_bytes;
    out->reserved_bytes = shl_cuda_reserved_bytes(d, SHL_TIER_DEVICE);
    out->pool_bytes = c->pool_bytes;
    return SHL_OK;
}

const shl_device_ops shl_cuda_device_ops = {
    .kind = "cuda",
    .open = cuda_open,
    .close = cuda_close,
    .mem_take = shl_cuda_mem_take,
    .mem_give = shl_cuda_mem_give,
    .mem_give_after = shl_cuda_mem_give_after,
    .reserved_bytes = shl_cuda_reserved_bytes,
    .reserved_comm_bytes = shl_cuda_reserved_comm_bytes,
    .pin = shl_cuda_pin,
    .unpin = NULL,
    .move = NULL,
    .copy = cuda_copy,
    .fill = cuda_fill,
    .upload = cuda_upload,
    .download = cuda_download,
    .stream_open = shl_cuda_stream_open,
    .stream_close = shl_cuda_stream_close,
    .submit = shl_cuda_submit,
    .record = shl_cuda_record,
    .wait = shl_cuda_wait,
    .sync = shl_cuda_sync,
    .now_ns = NULL,
    .gate_open = shl_cuda_gate_open,
    .gate_close = shl_cuda_gate_close,
    .gate_record = shl_cuda_gate_record,
    .gate_wait = shl_cuda_gate_wait,
    .gate_passed = shl_cuda_gate_passed,
    .native = shl_cuda_native,
    .identify = cuda_identify,
    .survey = cuda_survey,
    .card = cuda_card,
    .memory = cuda_memory,
};

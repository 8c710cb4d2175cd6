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
    char built[128] = "";
    *out = 0;
    shl_code code = shl_cuda_check(table, table->count(out), "no CUDA device can be used");
    if (code != SHL_OK) {
        table->versions(built, sizeof(built));
        return shl_err_advice("nvidia-smi shows the driver and the newest CUDA that it runs; this "
                              "build needs %s, and libcuda.so.1 where the loader looks",
                              built);
    }
    return SHL_OK;
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
    d->caps = (shl_device_caps){.has_bytes = true,
                                .async = true,
                                .align_bytes = SHL_CUDA_ALIGN_BYTES,
                                .row_align_bytes = SHL_CUDA_ROW_ALIGN_BYTES};
    d->op_table = &shl_cuda_op_table;
    return SHL_OK;
out:
    cuda_close(d);
    return code;
}

static shl_code
cuda_enter(shl_device *d)
{
    const cuda_impl *c = cuda_of(d);
    return shl_cuda_check(c->table, c->table->use(c->index), "the CUDA device cannot be used");
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

/* Dense 16-bit products at the card's own clock, per multiprocessor as NVIDIA's papers on each architecture
 * say: enough to tell which of two types is slower. */
static double
nominal_flops(const shl_cuda_info *info)
{
    static const struct {
        int capability; /* from this on */
        double per_clock;
    } rows[] = {{120, 1024}, {100, 8192}, {90, 4096}, {81, 1024}, {80, 2048}, {70, 1024}, {0, 0}};
    size_t i = 0;
    while (info->major * 10 + info->minor < rows[i].capability) {
        i++;
    }
    return rows[i].per_clock * info->multiprocessors * info->clock_khz * 1e3;
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
    out->flops_per_s = nominal_flops(&info);
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
    .comm_block = shl_cuda_comm_block,
    .pin = shl_cuda_pin,
    .unpin = NULL,
    .move = NULL,
    .copy = shl_cuda_copy,
    .fill = shl_cuda_fill,
    .upload = shl_cuda_upload,
    .download = shl_cuda_download,
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
    .enter = cuda_enter,
};

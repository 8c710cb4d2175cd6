/* kernels/cuda/object: the runtime half of the table: devices, streams, events, copies and host
 * memory over CUDA's runtime, which is linked in, so that only the driver must be there. */
#include "kernels/cuda/object/cuda_object.h"

#include <cuda_runtime_api.h>
#include <stdio.h>
#include <string.h>

#include "kernels/base/heap.h"
#include "kernels/base/types.h"
#include "kernels/cuda/object/cuda_launchers.h"
#include "kernels/cuda/object/cuda_libs.h"

/* The runtime and the driver number their errors alike where both know one. */
static const char *
error_text(int status)
{
    static const struct {
        int status;
        const char *text;
    } own[] = {
        {SHL_CUDA_NOT_READY, "not ready"},
        {SHL_CUDA_UNSUPPORTED, "this device, or this build of the object, does not have it"},
        {SHL_CUDA_NO_ALGORITHM, "a library has no algorithm for it"},
        {SHL_CUDA_OUT_OF_MEMORY, "cudaErrorMemoryAllocation: out of memory"},
        {(int)cudaErrorInsufficientDriver, "cudaErrorInsufficientDriver: the driver is older than "
                                           "this build's CUDA, or there is none"},
        {(int)cudaErrorNoDevice, "cudaErrorNoDevice: the driver shows no device"},
    };
    for (size_t i = 0; i < SHL_ARRAY_LEN(own); i++) {
        if (own[i].status == status) {
            return own[i].text;
        }
    }
    if (status >= SHL_CUDA_STATUS_DNN) {
        return shl_cuda_dnn_text(status);
    }
    if (status >= SHL_CUDA_STATUS_BLAS && status < SHL_CUDA_STATUS_DNN) {
        return shl_cuda_blas_text(status);
    }
    return status < 0 ? "unknown status" : cudaGetErrorString((cudaError_t)status);
}

/* An error that the runtime would hand to the next caller too is taken back here. */
static int
status_of(cudaError_t error)
{
    if (error != cudaSuccess) {
        (void)cudaGetLastError();
    }
    return (int)error;
}

static int
count(int *devices)
{
    cudaError_t error = cudaGetDeviceCount(devices);
    if (error == cudaErrorNoDevice) {
        *devices = 0;
        error = cudaSuccess;
        (void)cudaGetLastError();
    }
    return status_of(error);
}

static void
spell_uuid(const cudaUUID_t *uuid, char *out, size_t bytes)
{
    unsigned char b[16];
    memcpy(b, uuid->bytes, sizeof(b));
    (void)snprintf(out, bytes,
                   "GPU-%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x", b[0],
                   b[1], b[2], b[3], b[4], b[5], b[6], b[7], b[8], b[9], b[10], b[11], b[12], b[13],
                   b[14], b[15]);
}

static int
attributes(int device, shl_cuda_info *out)
{
    const struct {
        enum cudaDeviceAttr name;
        int *value;
    } wanted[] = {
        {cudaDevAttrComputeCapabilityMajor, &out->major},
        {cudaDevAttrComputeCapabilityMinor, &out->minor},
        {cudaDevAttrMultiProcessorCount, &out->multiprocessors},
        {cudaDevAttrClockRate, &out->clock_khz},
        {cudaDevAttrMemoryClockRate, &out->memory_clock_khz},
        {cudaDevAttrGlobalMemoryBusWidth, &out->memory_bus_bits},
    };
    int l2 = 0, shared = 0;
    for (size_t i = 0; i < SHL_ARRAY_LEN(wanted); i++) {
        cudaError_t error = cudaDeviceGetAttribute(wanted[i].value, wanted[i].name, device);
        if (error != cudaSuccess) {
            return status_of(error);
        }
    }
    cudaError_t error = cudaDeviceGetAttribute(&l2, cudaDevAttrL2CacheSize, device);
    if (error == cudaSuccess) {
        error = cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    }
    out->l2_bytes = (size_t)l2;
    out->block_shared_bytes = (size_t)shared;
    return status_of(error);
}

static int
info(int device, shl_cuda_info *out)
{
    struct cudaDeviceProp prop;
    memset(out, 0, sizeof(*out));
    cudaError_t error = cudaGetDeviceProperties(&prop, device);
    if (error != cudaSuccess) {
        return status_of(error);
    }
    (void)snprintf(out->name, sizeof(out->name), "%.*s", (int)sizeof(out->name) - 1, prop.name);
    spell_uuid(&prop.uuid, out->uuid, sizeof(out->uuid));
    out->total_bytes = prop.totalGlobalMem;
    error = cudaDeviceGetPCIBusId(out->pci, (int)sizeof(out->pci), device);
    error = error == cudaSuccess ? cudaDriverGetVersion(&out->driver_version) : error;
    error = error == cudaSuccess ? cudaRuntimeGetVersion(&out->runtime_version) : error;
    return error == cudaSuccess ? attributes(device, out) : status_of(error);
}

/* Freeing nothing makes the context, whatever the version. */
static int
use(int device)
{
    cudaError_t error = cudaSetDevice(device);
    return status_of(error == cudaSuccess ? cudaFree(NULL) : error);
}

static int
memory(size_t *free_bytes, size_t *total_bytes)
{
    return status_of(cudaMemGetInfo(free_bytes, total_bytes));
}

static void
versions(char *text, size_t bytes)
{
    int runtime = 0;
    size_t blas = shl_cuda_blas_version(), dnn = shl_cuda_dnn_version();
    (void)cudaRuntimeGetVersion(&runtime);
    (void)snprintf(text, bytes, "CUDA %d.%d, cuBLASLt %zu.%zu.%zu", runtime / 1000,
                   runtime % 1000 / 10, blas / 10000, blas / 100 % 100, blas % 100);
    size_t used = strlen(text);
    if (dnn != 0) {
        (void)snprintf(text + used, bytes - used, ", cuDNN %zu.%zu.%zu", dnn / 10000,
                       dnn / 100 % 100, dnn % 100);
    }
}

static int
host_take(size_t bytes, void **out)
{
    return status_of(cudaHostAlloc(out, bytes, cudaHostAllocPortable | cudaHostAllocMapped));
}

static int
host_give(void *data)
{
    return status_of(cudaFreeHost(data));
}

static int
host_lock(void *data, size_t bytes)
{
    return status_of(
        cudaHostRegister(data, bytes, cudaHostRegisterPortable | cudaHostRegisterMapped));
}

static int
host_unlock(void *data)
{
    return status_of(cudaHostUnregister(data));
}

/* CUDA counts down from the highest, which is the lowest number. */
static int
stream_open(int priority, void **stream)
{
    int lowest = 0, highest = 0;
    cudaError_t error = cudaDeviceGetStreamPriorityRange(&lowest, &highest);
    if (error != cudaSuccess) {
        return status_of(error);
    }
    int at = highest + priority < lowest ? highest + priority : lowest;
    return status_of(
        cudaStreamCreateWithPriority((cudaStream_t *)stream, cudaStreamNonBlocking, at));
}

static int
stream_close(void *stream)
{
    return status_of(cudaStreamDestroy(stream));
}

static int
stream_sync(void *stream)
{
    return status_of(cudaStreamSynchronize(stream));
}

static int
event_open(bool timed, void **event)
{
    return status_of(cudaEventCreateWithFlags((cudaEvent_t *)event,
                                              timed ? cudaEventDefault : cudaEventDisableTiming));
}

static int
event_close(void *event)
{
    return status_of(cudaEventDestroy(event));
}

static int
event_record(void *event, void *stream)
{
    return status_of(cudaEventRecord(event, stream));
}

static int
event_wait(void *event, void *stream)
{
    return status_of(cudaStreamWaitEvent(stream, event, 0));
}

static int
event_sync(void *event)
{
    return status_of(cudaEventSynchronize(event));
}

static int
event_query(void *event)
{
    int status = status_of(cudaEventQuery(event));
    return status == (int)cudaErrorNotReady ? SHL_CUDA_NOT_READY : status;
}

static int
event_elapsed_ns(void *from, void *to, int64_t *ns)
{
    float ms = 0.0f;
    cudaError_t error = cudaEventElapsedTime(&ms, from, to);
    *ns = (int64_t)((double)ms * 1e6);
    return status_of(error);
}

static int
copy(void *dst, const void *src, size_t bytes, void *stream)
{
    return status_of(cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDefault, stream));
}

static int
fill(void *dst, int byte, size_t bytes, void *stream)
{
    return status_of(cudaMemsetAsync(dst, byte, bytes, stream));
}

static int
call(void *stream, void (*fn)(void *arg), void *arg)
{
    return status_of(cudaLaunchHostFunc(stream, fn, arg));
}

static void
libs_close(void *at)
{
    shl_cuda_libs *libs = at;
    shl_cuda_dnn_close(libs->dnn);
    shl_heap_free(&libs->dnn);
    shl_cuda_blas_close(libs->blas);
    shl_heap_free(&libs->blas);
    shl_heap_free(&libs);
}

static int
libs_open(int device, void **out)
{
    shl_cuda_libs *libs = NULL;
    void *room = NULL;
    SHL_UNUSED(device);
    *out = NULL;
    if (shl_heap_alloc(1, sizeof(*libs), &libs) != SHL_OK) {
        return SHL_CUDA_OUT_OF_MEMORY;
    }
    if (shl_heap_alloc(1, shl_cuda_blas_bytes(), &room) != SHL_OK ||
        shl_heap_alloc(1, shl_cuda_dnn_bytes(), &libs->dnn) != SHL_OK) {
        shl_heap_free(&room);
        shl_heap_free(&libs);
        return SHL_CUDA_OUT_OF_MEMORY;
    }
    int status = shl_cuda_blas_open(room, &libs->blas);
    if (status != 0) {
        shl_heap_free(&room);
        shl_heap_free(&libs->dnn);
        shl_heap_free(&libs);
        return status;
    }
    *out = libs;
    return 0;
}

static const shl_cuda_backend table = {
    .abi = SHL_CUDA_ABI,
    .bytes = sizeof(shl_cuda_backend),
    .name = "cuda",
    .error_text = error_text,
    .count = count,
    .info = info,
    .use = use,
    .memory = memory,
    .versions = versions,
    .reserve = shl_cuda_object_reserve,
    .map = shl_cuda_object_map,
    .unreserve = shl_cuda_object_unreserve,
    .host_take = host_take,
    .host_give = host_give,
    .host_lock = host_lock,
    .host_unlock = host_unlock,
    .stream_open = stream_open,
    .stream_close = stream_close,
    .stream_sync = stream_sync,
    .event_open = event_open,
    .event_close = event_close,
    .event_record = event_record,
    .event_wait = event_wait,
    .event_sync = event_sync,
    .event_query = event_query,
    .event_elapsed_ns = event_elapsed_ns,
    .copy = copy,
    .fill = fill,
    .call = call,
    .libs_open = libs_open,
    .libs_close = libs_close,
    .op = shl_cuda_launcher_table,
};

__attribute__((visibility("default"))) const shl_cuda_backend *
shl_cuda_backend_entry(uint32_t abi)
{
    return abi == SHL_CUDA_ABI ? &table : NULL;
}

/* kernels/cuda/object: address ranges whose parts become memory: the driver's virtual memory, whose
 * functions are asked of the runtime, so that the object links no driver. */
#include "kernels/cuda/object/cuda_object.h"

#include <cuda.h>
#include <cudaTypedefs.h>
#include <cuda_runtime_api.h>
#include <string.h>

/* The version whose signatures are meant: all of these are of CUDA 10.2. */
#define DRIVER_ABI 10020

typedef struct driver {
    PFN_cuMemGetAllocationGranularity_v10020 granularity;
    PFN_cuMemAddressReserve_v10020 reserve;
    PFN_cuMemAddressFree_v10020 unreserve;
    PFN_cuMemCreate_v10020 create;
    PFN_cuMemRelease_v10020 release;
    PFN_cuMemMap_v10020 map;
    PFN_cuMemUnmap_v10020 unmap;
    PFN_cuMemSetAccess_v10020 set_access;
    PFN_cuPointerGetAttribute_v4000 pointer;
} driver;

static int
find(const char *name, unsigned version, void *slot)
{
    enum cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
    void *fn = NULL;
#if CUDART_VERSION >= 12050
    cudaError_t error =
        cudaGetDriverEntryPointByVersion(name, &fn, version, cudaEnableDefault, &found);
#else
    (void)version;
    cudaError_t error = cudaGetDriverEntryPoint(name, &fn, cudaEnableDefault, &found);
#endif
    if (error != cudaSuccess) {
        return (int)error;
    }
    memcpy(slot, &fn, sizeof(fn));
    return found == cudaDriverEntryPointSuccess && fn != NULL ? 0 : SHL_CUDA_UNSUPPORTED;
}

static int
find_driver(driver *out)
{
    const struct {
        const char *name;
        unsigned version;
        void *slot;
    } wanted[] = {
        {"cuMemGetAllocationGranularity", DRIVER_ABI, &out->granularity},
        {"cuMemAddressReserve", DRIVER_ABI, &out->reserve},
        {"cuMemAddressFree", DRIVER_ABI, &out->unreserve},
        {"cuMemCreate", DRIVER_ABI, &out->create},
        {"cuMemRelease", DRIVER_ABI, &out->release},
        {"cuMemMap", DRIVER_ABI, &out->map},
        {"cuMemUnmap", DRIVER_ABI, &out->unmap},
        {"cuMemSetAccess", DRIVER_ABI, &out->set_access},
        {"cuPointerGetAttribute", 4000, &out->pointer},
    };
    memset(out, 0, sizeof(*out));
    for (size_t i = 0; i < sizeof(wanted) / sizeof(wanted[0]); i++) {
        int status = find(wanted[i].name, wanted[i].version, wanted[i].slot);
        if (status != 0) {
            return status;
        }
    }
    return 0;
}

static CUmemAllocationProp
prop_of(int device)
{
    CUmemAllocationProp prop;
    memset(&prop, 0, sizeof(prop));
    prop.type = CU_MEM_ALLOCATION_TYPE_PINNED;
    prop.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
    prop.location.id = device;
    return prop;
}

static CUdeviceptr
address_of(void *base, size_t at)
{
    return (CUdeviceptr)(uintptr_t)base + at;
}

int
shl_cuda_object_reserve(int device, size_t bytes, void **base, size_t *granule_bytes)
{
    driver d;
    CUdeviceptr at = 0;
    CUmemAllocationProp prop = prop_of(device);
    *base = NULL;
    int status = find_driver(&d);
    if (status != 0) {
        return status;
    }
    status = (int)d.granularity(granule_bytes, &prop, CU_MEM_ALLOC_GRANULARITY_RECOMMENDED);
    if (status == 0) {
        status = (int)d.reserve(&at, bytes, *granule_bytes, 0, 0);
    }
    uintptr_t address = (uintptr_t)at;
    *base = status == 0 ? (void *)address : NULL;
    return status;
}

int
shl_cuda_object_map(int device, void *base, size_t from_bytes, size_t to_bytes)
{
    driver d;
    CUmemGenericAllocationHandle handle = 0;
    CUmemAllocationProp prop = prop_of(device);
    CUmemAccessDesc access = {prop.location, CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
    size_t bytes = to_bytes - from_bytes;
    CUdeviceptr at = address_of(base, from_bytes);
    int status = find_driver(&d);
    if (status != 0 || bytes == 0) {
        return status;
    }
    status = (int)d.create(&handle, bytes, &prop, 0);
    if (status != 0) {
        return status;
    }
    status = (int)d.map(at, bytes, 0, handle, 0);
    /* The memory lives as long as it is mapped. */
    (void)d.release(handle);
    if (status != 0) {
        return status;
    }
    status = (int)d.set_access(at, bytes, &access, 1);
    if (status != 0) {
        (void)d.unmap(at, bytes);
    }
    return status;
}

/* Each part that map made goes by itself; the driver knows where it ends. */
int
shl_cuda_object_unreserve(void *base, size_t bytes, size_t mapped_bytes)
{
    driver d;
    size_t at = 0;
    int status = find_driver(&d), first = 0;
    if (status != 0) {
        return status;
    }
    while (at < mapped_bytes) {
        size_t part = 0;
        status = (int)d.pointer(&part, CU_POINTER_ATTRIBUTE_MAPPING_SIZE, address_of(base, at));
        part = status != 0 || part == 0 || part > mapped_bytes - at ? mapped_bytes - at : part;
        status = (int)d.unmap(address_of(base, at), part);
        first = first == 0 ? status : first;
        at += part;
    }
    status = (int)d.unreserve(address_of(base, 0), bytes);
    return first == 0 ? status : first;
}

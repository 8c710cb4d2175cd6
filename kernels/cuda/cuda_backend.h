/* kernels/cuda: the line between the program and the shared object that holds everything which needs
 * CUDA: memory, streams, events, launches. The program loads it when a cuda device is asked for and
 * knows this table only, so that `shardlab` starts without CUDA; the object knows no ledger, no rank
 * and no error trace. Tests put an emulation behind the same table.
 *
 * Every int is a status: 0 is success, anything else a number that error_text explains. Pointers to
 * device memory are plain addresses. Unless a slot says otherwise it may be called from the thread
 * that called `use` only, enqueues on the stream given, and blocks nobody. */
#ifndef SHL_CUDA_BACKEND_H
#define SHL_CUDA_BACKEND_H

#include "kernels/ops/ops.h"

#define SHL_CUDA_ABI 2u
#define SHL_CUDA_ENTRY "shl_cuda_backend_entry"

/* The status of a request that the device has no memory for. */
#define SHL_CUDA_OUT_OF_MEMORY 2
/* event_query: not yet. Not an error. */
#define SHL_CUDA_NOT_READY (-1)
/* A slot that this build of the object, or this device, does not have; error_text says what. */
#define SHL_CUDA_UNSUPPORTED (-2)
/* A library has nothing for what an op asks of it; the launch's `why` says what was asked. */
#define SHL_CUDA_NO_ALGORITHM (-3)
#define SHL_CUDA_WHY_BYTES 320

/* What one device is. */
typedef struct shl_cuda_info {
    char name[128];
    char uuid[48];
    char pci[32];
    int major, minor; /* compute capability */
    int multiprocessors;
    size_t total_bytes;
    size_t l2_bytes;
    size_t block_shared_bytes; /* that a block may ask for */
    int clock_khz, memory_clock_khz, memory_bus_bits;
    int driver_version, runtime_version; /* as CUDA counts: 13000 is 13.0 */
} shl_cuda_info;

/* Words that a kernel sets in host memory when data breaks a contract; the host reads them after a wait. */
typedef enum shl_cuda_fault {
    SHL_CUDA_FAULT_TOKEN = 0, /* an embedding's token outside the vocabulary */
    SHL_CUDA_FAULT_TARGET,    /* a target outside the vocabulary */
    SHL_CUDA_FAULT_COUNT
} shl_cuda_fault;

/* Which kernels an op may take; zeros are the defaults. Results of one setting repeat bit by bit. */
typedef struct shl_cuda_choice {
    bool tf32;            /* products of fp32 through TF32 */
    bool fused_attention; /* attention forward by cuDNN: bf16 without dropout, else refused */
} shl_cuda_choice;

/* What a launch is given besides its arguments. */
typedef struct shl_cuda_launch {
    void *stream;
    void *libs; /* of libs_open: handles of cuBLASLt and cuDNN */
    void *pool; /* the fixed pool of library workspace */
    size_t pool_bytes;
    uint32_t *faults; /* SHL_CUDA_FAULT_COUNT words that device and host reach */
    const shl_cuda_info *info;
    shl_cuda_choice choice;
    char *why; /* SHL_CUDA_WHY_BYTES of text for what a status cannot say; "" before */
    /* Where an op with a choice of kernels names the one that it takes: a text that lives as long as libs;
     * NULL before. */
    const char **ran;
} shl_cuda_launch;

/* One op: args is the op's struct (kernels/ops/ops.h), checked already; work as shl_op_work_bytes
 * says for "cuda". */
typedef int (*shl_cuda_op_fn)(const shl_cuda_launch *l, const void *args, void *work);

typedef struct shl_cuda_backend {
    uint32_t abi;     /* SHL_CUDA_ABI */
    size_t bytes;     /* sizeof(shl_cuda_backend) */
    const char *name; /* "cuda"; "emulated" in tests */

    /* A text for a status: its name and what it means. Any thread. */
    const char *(*error_text)(int status);

    /* Devices that the driver shows; a machine without driver or device gives a status. */
    int (*count)(int *devices);
    int (*info)(int device, shl_cuda_info *out);
    /* Makes a device the current one of this thread and its context ready. */
    int (*use)(int device);
    int (*memory)(size_t *free_bytes, size_t *total_bytes);
    /* Versions of the libraries in use as text ("cuBLASLt 13.0.2, cuDNN 9.13.1"); bounded. */
    void (*versions)(char *text, size_t bytes);

    /* An address range (reserve) whose part [from, to) becomes usable (map); both are multiples of
     * *granule_bytes. unreserve takes back both, mapped_bytes from the beginning. */
    int (*reserve)(int device, size_t bytes, void **base, size_t *granule_bytes);
    int (*map)(int device, void *base, size_t from_bytes, size_t to_bytes);
    int (*unreserve)(void *base, size_t bytes, size_t mapped_bytes);
    /* Host memory that the device reads and writes at the same address, and pages locked for copies. */
    int (*host_take)(size_t bytes, void **out);
    int (*host_give)(void *data);
    int (*host_lock)(void *data, size_t bytes);
    int (*host_unlock)(void *data);

    /* priority: 0 the highest, counting down. */
    int (*stream_open)(int priority, void **stream);
    int (*stream_close)(void *stream);
    int (*stream_sync)(void *stream);
    int (*event_open)(bool timed, void **event);
    int (*event_close)(void *event);
    int (*event_record)(void *event, void *stream);
    int (*event_wait)(void *event, void *stream); /* the stream waits */
    int (*event_sync)(void *event);               /* the host waits */
    /* 0, SHL_CUDA_NOT_READY or an error; any thread behind `use`. */
    int (*event_query)(void *event);
    int (*event_elapsed_ns)(void *from, void *to, int64_t *ns); /* both timed and passed */
    /* Any direction; bytes of two overlapping ranges are undefined. */
    int (*copy)(void *dst, const void *src, size_t bytes, void *stream);
    int (*fill)(void *dst, int byte, size_t bytes, void *stream);
    /* fn(arg) on a thread of the driver, in the order of the stream; it must call nothing of this table. */
    int (*call)(void *stream, void (*fn)(void *arg), void *arg);

    /* Handles of the libraries for the current device; libs_close after all its streams are idle. */
    int (*libs_open)(int device, void **libs);
    void (*libs_close)(void *libs);

    const shl_cuda_op_fn *op; /* SHL_OP_COUNT of them */
} shl_cuda_backend;

/* The one symbol of the object: its table, static storage; NULL for another abi. */
typedef const shl_cuda_backend *(*shl_cuda_entry_fn)(uint32_t abi);

#endif

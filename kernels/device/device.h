/* kernels/device: memory, copies, streams and events behind one vtable. Backends: cpu, cuda,
 * virtual (accounts for everything, touches no data). One device object per rank; all calls come
 * from that rank's own thread, so allocation and release are schedule points of the rank and
 * peaks never depend on when a transfer happens to finish.
 *
 * Live bytes are the ledger's (as requested); reserved bytes are what the backend's arena took. */
#ifndef SHL_DEVICE_DEVICE_H
#define SHL_DEVICE_DEVICE_H

#include "kernels/device/tensor.h"

typedef struct shl_device shl_device;
typedef struct shl_stream shl_stream;
struct shl_op_table; /* kernels/ops/ops.h */

/* A point in a stream's order. Zero-initialised = already passed. Plain value. */
typedef struct shl_event {
    shl_stream *stream;
    uint64_t seq; /* on virtual: nanoseconds of that clock */
} shl_event;

/* compute runs on the caller on a cpu; comm and the two directions of copies between tiers are worker
 * threads there, streams on cuda, clocks on virtual. */
typedef enum shl_stream_kind {
    SHL_STREAM_COMPUTE = 0,
    SHL_STREAM_COMM,
    SHL_STREAM_TO_HOST,
    SHL_STREAM_TO_DEVICE,
    SHL_STREAM_KIND_COUNT
} shl_stream_kind;

/* Directions of copies between device and host memory. */
typedef enum shl_move { SHL_MOVE_TO_HOST = 0, SHL_MOVE_TO_DEVICE, SHL_MOVE_COUNT } shl_move;

/* Memory that a library gives in the place of the device's own: one block, taken while the device opens, on
 * that thread and with its card current, and given back when it closes. Whoever uses the library on the block
 * has ended that by then. */
typedef struct shl_mem_source {
    const char *name; /* static, for records: "ncclMemAlloc"; NULL: there is no source */
    /* `bytes` that begin where the device's buffers may. Errors: SHL_E_OOM, SHL_E_SYSTEM. */
    shl_code (*take)(void *ctx, size_t bytes, void **out);
    void (*give)(void *ctx, void *data);
    void *ctx; /* outlives the device */
} shl_mem_source;

/* What a device is asked for when it is opened. */
typedef struct shl_device_config {
    const char *kind;       /* "cpu", "virtual", "cuda" */
    const char *stands_for; /* virtual only: the target whose sizes it uses ("cpu", "cuda") */
    int rank;               /* for messages */
    int threads;            /* compute threads of this rank, >= 1 */
    size_t limit_bytes[SHL_TIER_COUNT]; /* 0: none */
    struct shl_arena *comm_arena; /* memory that peers can reach, lent by the communicator's world
                                     (engines/comm/world.h); NULL: comm memory is plain memory */
    double flops_per_s;           /* virtual clocks: compute rate; 0 = a documented default */
    double bytes_per_s;           /* virtual clocks: memory rate; 0 = default */
    double link_bytes_per_s; /* cpu, virtual: a copy between tiers takes at least bytes / rate, each
                                     direction by itself; 0: as fast as memory */
    size_t pin_limit_bytes;  /* of locked pages; 0: what the system allows */
    int index;               /* which of the machine's cards; 0 where there are none */
    bool tf32;               /* products of fp32 may round their factors to TF32 */
    bool fused_attention;    /* bf16 attention forward by the library */
    /* cuda, and a virtual device that stands for it: made usable when it opens, so that too little memory
     * is an error then and no step takes any; 0: as needed. The device tier without, and of memory that
     * peers reach; the host tier. */
    size_t ready_bytes, ready_comm_bytes, ready_host_bytes;
    /* cuda: who gives the ready_comm_bytes. That block is then all that peers reach: who asks for more than
     * was planned gets SHL_E_OOM. No source, or nothing planned: the device's own memory, which grows. */
    shl_mem_source comm_source;
} shl_device_config;

typedef struct shl_device_caps {
    bool has_bytes;         /* data can be read back (false on virtual) */
    bool async;             /* compute is asynchronous to the host */
    bool predicted;         /* times are predicted, not measured */
    size_t align_bytes;     /* every buffer starts at a multiple */
    size_t row_align_bytes; /* rows of a wide matrix should; 0: they may start anywhere */
} shl_device_caps;

#define SHL_MEM_COMM 1u /* the communicator must reach it: flat parameters, gather slots, buckets */
#define SHL_MEM_PIN 2u  /* host tier: pages that stay where they are */

/* Locked memory is counted in whole pages. Host memory begins at one, so that no two buffers share it. */
#define SHL_PIN_PAGE_BYTES ((size_t)4096)

/* A unit of host work queued on a worker stream (cpu). Returns a code; the first failure of a
 * stream is sticky: the work behind it is skipped, and every wait for an event at or behind it
 * returns it with its text, on whatever thread. On the compute stream submit itself returns it. */
typedef shl_code (*shl_stream_fn)(void *arg);

/* Which piece of hardware a device is: two devices with one id share it. */
typedef struct shl_device_identity {
    char name[128]; /* of the model of card */
    char id[64];
} shl_device_identity;

/* Memory that peers reach, as its source gave it; base NULL: it is the device's own. */
typedef struct shl_mem_block {
    void *base;
    size_t bytes;
    const char *source; /* its name; NULL: none */
} shl_mem_block;

/* What a machine has of a kind, before any device is open. */
typedef struct shl_device_survey {
    int n_cards;
    int driver_version, runtime_version; /* 13000 is 13.0; 0: there is no such thing */
    char libraries[192];                 /* with their versions; "" */
    char path[256];                      /* of the file that holds this half of the program; "" */
} shl_device_survey;

typedef struct shl_device_card {
    shl_device_identity identity;
    size_t total_bytes;
    int major, minor; /* compute capability */
    int multiprocessors;
    double flops_per_s; /* of 16-bit products, by its type and clock; 0: not known */
} shl_device_card;

/* The card's memory as its driver counts it, beside what we asked for: used = base + reserved + pool + the
 * rest, which nobody explains. */
typedef struct shl_device_memory {
    size_t total_bytes;
    size_t used_bytes;     /* by everybody, now */
    size_t base_bytes;     /* used when this device had its context and no memory yet */
    size_t reserved_bytes; /* by its arenas */
    size_t pool_bytes;     /* workspace of libraries, fixed */
} shl_device_memory;

/* The contract of a backend. Slots marked * are optional, with the default stated. */
typedef struct shl_device_ops {
    const char *kind;
    shl_code (*open)(shl_device *d, const shl_device_config *cfg);
    void (*close)(shl_device *d);
    /* Raw memory of a tier; the ledger is posted by device.c, not here. comm as SHL_MEM_COMM. */
    shl_code (*mem_take)(shl_device *d, size_t bytes, shl_tier tier, bool comm, void **out);
    void (*mem_give)(shl_device *d, void *data, size_t bytes, shl_tier tier, bool comm);
    /* *: sync(last_use), then mem_give. An asynchronous device orders the next owner of the address
     * behind last_use instead of waiting. */
    shl_code (*mem_give_after)(shl_device *d, void *data, size_t bytes, shl_tier tier, bool comm,
                               shl_event last_use);
    size_t (*reserved_bytes)(const shl_device *d, shl_tier tier); /* *: 0 */
    size_t (*reserved_comm_bytes)(const shl_device *d);           /* *: 0. In an arena of its own */
    void (*comm_block)(const shl_device *d, shl_mem_block *out);  /* *: none */
    /* *: nothing to do. Locks whole pages of the host tier. Errors: SHL_E_OOM with the system's limit. */
    shl_code (*pin)(shl_device *d, void *data, size_t bytes);
    void (*unpin)(shl_device *d, void *data, size_t bytes);
    /* *: copy. Between tiers, at the pace of the link. */
    shl_code (*move)(shl_device *d, void *dst, const void *src, size_t bytes, shl_move direction,
                     shl_stream *s);
    shl_code (*copy)(shl_device *d, void *dst, const void *src, size_t bytes, shl_stream *s);
    shl_code (*fill)(shl_device *d, void *dst, int byte, size_t bytes, shl_stream *s);
    /* Host pointer <-> device memory, synchronous. */
    shl_code (*upload)(shl_device *d, void *dst, const void *host, size_t bytes);
    shl_code (*download)(shl_device *d, void *host, const void *src, size_t bytes);
    shl_code (*stream_open)(shl_device *d, shl_stream_kind kind, shl_stream *s);
    void (*stream_close)(shl_device *d, shl_stream *s);
    shl_code (*submit)(shl_device *d, shl_stream *s, shl_stream_fn fn, void *arg, size_t arg_bytes,
                       int64_t cost_ns);
    shl_code (*record)(shl_device *d, shl_stream *s, shl_event *out);
    shl_code (*wait)(shl_device *d, shl_stream *s, shl_event ev);
    shl_code (*sync)(shl_device *d, shl_event ev);
    int64_t (*now_ns)(shl_device *d, shl_stream *s); /* *: shl_clock_ns */
    /* Asynchronous devices only. */
    shl_code (*gate_open)(shl_device *d, void **out);
    void (*gate_close)(shl_device *d, void *gate);
    shl_code (*gate_record)(shl_device *d, void *gate, shl_stream *s);
    shl_code (*gate_wait)(shl_device *d, void *gate, shl_stream *s); /* d: the device of s */
    shl_code (*gate_passed)(shl_device *d, void *gate, bool *out);
    void *(*native)(shl_device *d, shl_stream *s);             /* *: NULL */
    void (*identify)(shl_device *d, shl_device_identity *out); /* *: kind and rank */
    shl_code (*survey)(shl_device_survey *out);                /* *: no cards */
    shl_code (*card)(int index, shl_device_card *out);         /* *: there are no cards */
    shl_code (*memory)(shl_device *d, shl_device_memory *out); /* *: zeros */
    shl_code (*enter)(shl_device *d);                          /* *: nothing to do */
} shl_device_ops;

struct shl_stream {
    shl_device *device;
    shl_stream_kind kind;
    void *impl;       /* cpu worker, CUDA stream */
    int64_t clock_ns; /* virtual */
    int64_t busy_ns;  /* virtual: sum of costs */
};

struct shl_device {
    const shl_device_ops *ops;
    const struct shl_op_table *op_table; /* kernels/ops */
    const struct shl_op_table
        *host_table; /* of the host's processor: for tensors in the host tier */
    shl_device_caps caps;
    shl_device_config config;
    shl_ledger *ledger; /* owned */
    shl_stream streams[SHL_STREAM_KIND_COUNT];
    int64_t moved_bytes[SHL_MOVE_COUNT];    /* between tiers, since open */
    size_t pinned_bytes, pinned_peak_bytes; /* in whole pages */
    void *impl;
};

/* Makes d the card of the calling thread, which did not open it: before its first call that asks the
 * card anything. Without it a card's library would take the first card, and memory of it for a context.
 * Errors: SHL_E_SYSTEM. Local. */
shl_code shl_device_enter(shl_device *d) SHL_MUST_USE;

/* Opens the device named in cfg->kind. Owner: caller, shl_device_close. Errors: SHL_E_USAGE for an
 * unknown kind (lists the known ones and says what is missing for one that is known but not
 * built), SHL_E_SYSTEM. cfg is copied; its strings must outlive the device. Local. */
shl_code shl_device_open(const shl_device_config *cfg, shl_device **out) SHL_MUST_USE;

/* Drains the streams, closes ledger and device. Errors: what shl_ledger_close says (leaked bytes);
 * the device is gone all the same. NULL is fine. */
shl_code shl_device_close(shl_device **d) SHL_MUST_USE;

/* Names of the kinds in this build, NULL-terminated. */
const char *const *shl_device_kinds(void);

/* `bytes` uninitialised bytes of a tier. owner: borrowed, must live as long as the buffer (path of a
 * module, or a literal). flags: SHL_MEM_COMM, SHL_MEM_PIN (host tier only). bytes 0 gives an empty
 * buffer that may be freed. Errors: SHL_E_OOM (limit, or the system has no more) with the phase, tag and owner;
 * *out empty. Takes effect at once (a schedule point of the rank). */
shl_code shl_device_alloc(shl_device *d, size_t bytes, shl_tier tier, shl_tag tag, unsigned flags,
                          const char *owner, shl_buf *out) SHL_MUST_USE;

/* Releases *b now and empties it; the caller knows that nothing uses it any more on the compute
 * stream's order. NULL-data buffers are fine. */
void shl_device_free(shl_device *d, shl_buf *b);

/* Releases *b behind its last use: the ledger falls here, the address is reused only behind
 * last_use (the cpu waits here, on cuda the next owner's stream waits). Errors: what the stream of
 * last_use failed with; the buffer is released all the same. */
shl_code shl_device_free_after(shl_device *d, shl_buf *b, shl_event last_use) SHL_MUST_USE;

/* Elements from row to row of a matrix of `cols` columns that the device likes best: cols, or a few more
 * (caps.row_align_bytes). For matrices whose ops take a stride. Pure. */
int64_t shl_device_row_stride(const shl_device *d, shl_dtype dtype, int64_t cols);

/* Bytes the backend's arena holds from the system for a tier. */
size_t shl_device_reserved_bytes(const shl_device *d, shl_tier tier);
/* Of these on the device tier: what an arena of its own for memory that peers reach holds. */
size_t shl_device_reserved_comm_bytes(const shl_device *d);
/* The block of config.comm_source: the same for the life of the device. */
void shl_device_comm_block_get(const shl_device *d, shl_mem_block *out);

/* Copies or fills on a stream (NULL = compute): enqueues. */
shl_code shl_device_copy(shl_device *d, void *dst, const void *src, size_t bytes,
                         shl_stream *s) SHL_MUST_USE;
shl_code shl_device_fill(shl_device *d, void *dst, int byte, size_t bytes,
                         shl_stream *s) SHL_MUST_USE;

/* Copies between the device and the host tier on the stream of that direction, behind what is queued there;
 * counted in moved_bytes. */
shl_code shl_device_move(shl_device *d, void *dst, const void *src, size_t bytes,
                         shl_move direction) SHL_MUST_USE;
shl_stream *shl_device_move_stream(shl_device *d, shl_move direction);

/* Host memory to device and back; blocks until done. On virtual a download gives zeros. */
shl_code shl_device_upload(shl_device *d, void *dst, const void *host, size_t bytes) SHL_MUST_USE;
shl_code shl_device_download(shl_device *d, void *host, const void *src, size_t bytes) SHL_MUST_USE;

/* The device's stream of a kind; borrowed. */
shl_stream *shl_device_stream(shl_device *d, shl_stream_kind kind);

/* Queues fn(copy of arg) on s in order: on cpu workers it runs on the worker thread, on the compute
 * stream at once on the caller; on virtual it is never called and the clock advances by cost_ns.
 * arg_bytes <= 256. */
shl_code shl_stream_submit(shl_stream *s, shl_stream_fn fn, void *arg, size_t arg_bytes,
                           int64_t cost_ns) SHL_MUST_USE;

/* Event behind everything queued on s so far. */
shl_code shl_stream_record(shl_stream *s, shl_event *out) SHL_MUST_USE;

/* Work queued on s from now on starts behind ev (compute on cpu: the caller blocks). Errors: the
 * sticky failure of ev's stream. */
shl_code shl_stream_wait(shl_stream *s, shl_event ev) SHL_MUST_USE;

/* The host waits for ev. Errors as shl_stream_wait. */
shl_code shl_event_sync(shl_device *d, shl_event ev) SHL_MUST_USE;

/* A point of a stream that other devices of this process and other threads may know: a gate of an
 * asynchronous device (caps.async). Owner: caller; closed before its device. Errors: SHL_E_SYSTEM. */
typedef struct shl_gate {
    shl_device *device;
    void *impl;
} shl_gate;
shl_code shl_gate_open(shl_device *d, shl_gate *out) SHL_MUST_USE;
void shl_gate_close(shl_gate *g);
/* The gate is now behind everything queued on s, a stream of its device; waits from before keep the
 * point that they were given. */
shl_code shl_gate_record(shl_gate *g, shl_stream *s) SHL_MUST_USE;
/* Work queued from now on on s, a stream of any device of the kind, starts behind the gate's point.
 * Never recorded: has passed. */
shl_code shl_gate_wait(const shl_gate *g, shl_stream *s) SHL_MUST_USE;
/* Whether its point has passed; blocks nobody. Any thread that has entered its device, but not beside a
 * record. */
shl_code shl_gate_passed(const shl_gate *g, bool *out) SHL_MUST_USE;

/* The handle that libraries for this device take (cudaStream_t), for ONE piece of work that the caller
 * queues on it at once: asked for again for each, because the device puts the stream behind what its
 * memory was used for and counts the work. NULL where there is none, or when that failed. */
void *shl_stream_native(shl_stream *s);

/* Which hardware d is. */
void shl_device_identify(shl_device *d, shl_device_identity *out);

/* The cards of a kind; a kind without cards has none. Errors: SHL_E_USAGE for an unknown kind, or what
 * keeps its cards from being used (no driver, too old, a missing library). Local. */
shl_code shl_device_survey_get(const char *kind, shl_device_survey *out) SHL_MUST_USE;

/* One card. Errors: as survey; SHL_E_USAGE for an index that there is not. Local. */
shl_code shl_device_card_get(const char *kind, int index, shl_device_card *out) SHL_MUST_USE;

/* The card's memory; zeros on a device that is no card. Waits for nothing. Local. */
shl_code shl_device_memory_get(shl_device *d, shl_device_memory *out) SHL_MUST_USE;

/* Everything queued on all streams is done. On virtual: all clocks move to the latest. */
shl_code shl_device_sync(shl_device *d) SHL_MUST_USE;

/* Now, on the clock that s lives on: monotonic time, or the virtual clock. NULL = compute. */
int64_t shl_device_now_ns(shl_device *d, shl_stream *s);

#endif

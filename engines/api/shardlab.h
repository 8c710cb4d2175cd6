/* engines/api: shardlab as a library: the one header for programs and bindings. It needs nothing
 * but the C library's own headers; everything else of the house stays inside.
 *
 * A handle (shl_lab) is one rank of one engine. The loop is DeepSpeed's:
 *
 *     shl_lab_initialize(&options, world, &lab);
 *     for (...) {
 *         shl_lab_forward(lab, tokens, targets, &loss);
 *         shl_lab_backward(lab);
 *         shl_lab_step(lab, &report);
 *     }
 *     shl_lab_close(&lab);
 *
 * Rules. All calls of one handle come from one thread, that of its rank. COLLECTIVE: every rank of
 * the world makes the same calls in the same order. Nothing here exits, aborts or jumps; a call
 * returns SHL_LAB_OK or a code, and shl_lab_error_get tells what, because of what, and what to do.
 * A process may hold any number of handles, of different models and strategies, one after another
 * or in threads of their own; several may share a world. Out-parameters are NULL after a failure.
 *
 * Sized structs. The first field, struct_bytes, is the caller's sizeof. A program that was built
 * against an older or a newer header works as long as it uses nothing that the library does not
 * know: what lies beyond the library's own struct must be zero. */
#ifndef SHARDLAB_H
#define SHARDLAB_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define SHL_LAB_API __attribute__((visibility("default")))
#else
#define SHL_LAB_API
#endif

#define SHL_LAB_VERSION "0.1.0"

/* "0.1.0", of the library that runs. */
SHL_LAB_API const char *shl_lab_version(void);

/* --- errors ------------------------------------------------------------------------------ */

enum {
    SHL_LAB_OK = 0,
    SHL_LAB_E_VERIFY = 1,       /* a hash or value is not what it should be */
    SHL_LAB_E_USAGE = 2,        /* a bad argument, option or order of calls */
    SHL_LAB_E_CONFIG = 3,       /* a checkpoint of another model or run, a batch without targets */
    SHL_LAB_E_OOM = 4,          /* a memory limit is exceeded */
    SHL_LAB_E_INCONCLUSIVE = 5, /* not given by this interface */
    SHL_LAB_E_IO = 6,           /* a file cannot be opened, read or written */
    SHL_LAB_E_PEER = 7,         /* another rank failed, died or stalled */
    SHL_LAB_E_SYSTEM = 8,       /* the operating system or a library refused */
    SHL_LAB_E_HEAP = 9,         /* host heap exhausted */
    SHL_LAB_E_BUG = 10,         /* a fault in this library: please report */
    SHL_LAB_E_NOT_COMPARABLE = 11,
    SHL_LAB_E_INTERRUPTED = 12
};

/* "ok", "usage", "does-not-fit", ... Static. */
SHL_LAB_API const char *shl_lab_code_name(int code);

/* Texts are never NULL; "" when there is nothing to say. */
typedef struct shl_lab_error {
    size_t struct_bytes;
    int code;
    const char *what;    /* what went wrong, one line */
    const char *because; /* the value against its limit */
    const char *advice;  /* what to try */
    const char *trace;   /* "file:line function", innermost first, one a line */
} shl_lab_error;

typedef struct shl_lab shl_lab;             /* one rank of one engine */
typedef struct shl_lab_world shl_lab_world; /* one rank's place among its fellows */

/* The last failure of a handle, or with NULL of the calling thread: the only way to ask after a
 * failed initialize, and after a world has ended. Texts are borrowed until the next failing call on
 * the same handle, or on the same thread. Local. */
SHL_LAB_API void shl_lab_error_get(const shl_lab *lab, shl_lab_error *out);

/* --- worlds ------------------------------------------------------------------------------ */

typedef struct shl_lab_world_options {
    size_t struct_bytes;
    int ranks;            /* 1 to 64 */
    int threads_per_rank; /* compute threads of each; 0: 1 */
    int64_t timeout_ms;   /* a rank that has not arrived by then is named; 0: 30000 */
} shl_lab_world_options;

/* What a rank does; its code and error text are collected. */
typedef int (*shl_lab_rank_fn)(shl_lab_world *world, void *ctx);

/* Runs fn as o->ranks threads of this process and waits for all. The code and the text (with NULL) are
 * those of the rank that failed first by itself. Nothing is left behind. */
SHL_LAB_API int shl_lab_run_threads(const shl_lab_world_options *o, shl_lab_rank_fn fn, void *ctx);

/* Starts o->ranks processes of argv (its [0] the path of the program, NULL at the end) that find each
 * other by shl_lab_world_join, waits for all, forwards SIGINT and SIGTERM, and ends those that are
 * left when one dies. Result as above. */
SHL_LAB_API int shl_lab_run_processes(const shl_lab_world_options *o, const char *const *argv);

/* In a process started so: its place, which shl_lab_world_leave gives back with the rank's code. *out is
 * NULL, and the code OK, in a process that is no rank of a world. */
SHL_LAB_API int shl_lab_world_join(shl_lab_world **out);

/* In a process that a launcher started: its place, given back likewise. The ranks' variables are read in this
 * order: SHL_RANK, SHL_RANKS, SHL_LOCAL_RANK and SHL_MASTER (host:port of rank 0), those of torchrun, Open
 * MPI's mpirun, MPICH's, and Slurm's srun; then rank 0 listens and the others connect. For device "cuda", which
 * alone has a communicator between such processes. timeout_ms: how long ranks wait for each other; 0: 30000.
 * *out is NULL, and the code OK, where no launcher has started more than one rank. COLLECTIVE. */
SHL_LAB_API int shl_lab_world_meet(int64_t timeout_ms, shl_lab_world **out);
SHL_LAB_API void shl_lab_world_leave(shl_lab_world **world, int code);

/* NULL is the world of one rank. */
SHL_LAB_API int shl_lab_world_rank(const shl_lab_world *world);
SHL_LAB_API int shl_lab_world_size(const shl_lab_world *world);

/* --- a handle ---------------------------------------------------------------------------- */

/* What a handle is made of. Start from shl_lab_options_init. Strings are borrowed for the call. The
 * comment's second part is the key in a JSON object, where it is not the field's own name. */
typedef struct shl_lab_options {
    size_t struct_bytes;

    /* A preset, a size such as "7b", a path to a Hugging Face config.json or its folder, or any name for a
     * full shape. */
    const char *model;
    int64_t layers, width, heads, vocab, context; /* 0: the preset's; in "shape" */
    int64_t inner;                                /* 0: 4 width; in "shape" */
    double norm_eps;                              /* 0: 1e-5; in "shape" */
    int64_t tied; /* head shares the token embedding: 1, 0, or -1 as the preset; in "shape" */

    const char *strategy;     /* ddp zero1 zero2 zero3 fsdp fsdp-grad-op */
    const char *reduce_every; /* auto, micro, boundary; "reduce-every" */
    int64_t bucket_elems;     /* reduction bucket of ddp and zero, in elements; "bucket" */
    int64_t prefetch;         /* gathers issued ahead by zero3 and fsdp; -1: the strategy's own */
    int64_t batch;            /* sequences of a micro-batch on each rank */
    int64_t seq;              /* tokens of a sequence; 0: the context, at most 128 */
    int64_t accum;            /* micro-batches of a step */
    uint64_t seed;            /* of the initial parameters; the same for any number of ranks */

    /* "adamw", "adam" (decay in the gradient), "lion", "adagrad", "sgd", "lamb"; "none": all parameters
     * are frozen and the handle only evaluates, without a byte of gradients, master weights or
     * moments. In "optim", as are the following; SHL_LAB_OWN: the optimizer's own. One that the
     * optimizer has not is an error. */
    const char *optimizer;
    double lr, beta1, beta2, eps;   /* betas: "betas": [beta1, beta2] */
    double weight_decay;            /* on tensors of two or more dimensions; "weight-decay" */
    double clip;                    /* largest global gradient norm; 0: none */
    const char *schedule;           /* constant, linear, cosine; or DeepSpeed's: "WarmupLR(...)" */
    int64_t schedule_steps, warmup; /* "schedule-steps" */
    double min_lr_ratio;            /* last learning rate / lr; "min-lr-ratio" */

    const char *device;     /* "cpu", or "virtual": accounts for everything, computes nothing */
    const char *stands_for; /* whose sizes a virtual device has: "cpu"; "as" */
    int64_t ranks, rank;    /* virtual only, any size; else 0: the world's */
    int64_t threads;        /* compute threads; 0: the world's, or 1 */
    uint64_t device_memory_bytes; /* limit of this rank; 0: none; "device-memory", also "2GiB" */
    int64_t timeout_ms;           /* of collectives; 0: the world's; "timeout-ms" */

    /* Modelled cost of a collective, alpha + bytes sent / rate, and rates of virtual clocks; 0: none, or
     * a default on virtual. sim_sleep: a real transport takes that time. */
    int64_t alpha_ns;                /* "alpha-ns" */
    double wire_bytes_per_s;         /* "wire-bytes-per-s" */
    bool sim_sleep;                  /* "sim-sleep" */
    double flops_per_s, bytes_per_s; /* "flops-per-s", "bytes-per-s" */

    /* A Hugging Face folder with safetensors, or one such file, whose tensors are the initial parameters
     * instead of those from the seed: names and shapes must be the model's. Each rank reads what it
     * holds. NULL: none. "init-from" */
    const char *init_from;

    /* Dtypes by role: fp32, bf16, fp16. dtype: parameters in use, activations, what gathers carry. The
     * others: fp32, or as dtype; moments fp32 or bf16. */
    const char *dtype;
    const char *master_dtype; /* what updates are made on; "master-dtype" */
    const char *reduce_dtype; /* gradients while they are summed over ranks; "reduce-dtype" */
    const char *grad_dtype;   /* gradients while they are accumulated; "grad-dtype" */
    const char *moment_dtype; /* "moment-dtype" */

    /* What the loss is multiplied with before the backward, and gradients are divided by in the update.
     * SHL_LAB_SCALE_NONE, SHL_LAB_SCALE_DYNAMIC (also as texts in JSON), or a number above 0. fp16 needs
     * one of the latter. A step whose gradients are not finite updates nothing; without a scale only
     * with check_overflow. The other fields are DeepSpeed's, for a dynamic scale. */
    double loss_scale;             /* "loss-scale" */
    int64_t initial_scale_power;   /* the first scale is 2 to it; "initial-scale-power" */
    int64_t loss_scale_window;     /* clean steps to a doubling; "loss-scale-window" */
    int64_t hysteresis;            /* overflows to the first halving */
    bool consecutive_hysteresis;   /* clean steps refill it; "consecutive-hysteresis" */
    bool raise_error_at_min_scale; /* a halving due there is an error; "raise-error-at-min-scale" */
    double min_loss_scale;         /* "min-loss-scale" */
    bool check_overflow;           /* "check-overflow" */

    /* The rest of a shape; in "shape". All but family belong to "llama". */
    const char *family;         /* "gpt", "llama"; NULL: the preset's */
    int64_t kv_heads, head_dim; /* 0: the preset's; "kv-heads", "head-dim" */
    double rope_theta;          /* 0: the preset's; "rope-theta" */
    const char *rope_scaling;   /* "none", "linear:2", "llama3:8:1:4:8192"; "rope-scaling" */
    int64_t qkv_bias;           /* 1, 0, or -1 as the preset; "qkv-bias" */

    /* Also a preset or file whose original computes something else (ALiBi, parallel blocks, ...), by its
     * shape alone; a virtual device needs no leave. Not in "shape". */
    bool approximate;

    /* How the model is trained; keys in "tune". Lists are separated by commas; NULL is "". */
    const char *recompute;    /* none, selective (attention), full (blocks) */
    int64_t recompute_every;  /* full: blocks 0, k, 2k, ...; 0: all; "recompute-every" */
    const char *freeze;       /* parameters by name or its beginning up to a dot, * for anything */
    int64_t train_last;       /* only the last k blocks and what is behind them; 0: all;
                                    "train-last" */
    int64_t lora_rank;        /* of adapters in linear modules; 0: none; "lora-rank" */
    double lora_alpha;        /* their scale is alpha / rank; 0: the rank; "lora-alpha" */
    const char *lora_targets; /* ends of module paths; "": every one; "lora-targets" */
    bool lora_base;           /* train what they stand on too; "lora-base" */
    double dropout;           /* behind the embedding and of residual branches */
    double attention_dropout; /* of attention weights; "attention-dropout" */

    /* The rest of an optimizer; in "optim". */
    double momentum;             /* of sgd */
    double min_coeff, max_coeff; /* bounds of lamb's trust ratio; "min-coeff", "max-coeff" */

    /* States in host memory. optimizer: master weights, moments and reduced gradients of zero1, zero2 and
     * zero3; the update runs there. param: parameter shards of zero3. fsdp: both. "none" or "cpu". On the cpu
     * device both memories are accounts of their own with a copy between, which takes at least
     * bytes / link_bytes_per_s in each direction; 0: as fast as memory. */
    const char *offload_optimizer, *offload_param; /* "offload-optimizer", "offload-param" */
    double offload_ratio;                          /* of the optimizer, 0 to 1; "offload-ratio" */
    bool pin_memory;                               /* in locked pages; "pin-memory" */
    uint64_t pin_limit_bytes;   /* of them; 0: what the system allows; "pin-limit" */
    int64_t sub_group_size;     /* elements updated at once; "sub-group-size" */
    uint64_t host_memory_bytes; /* limit of this rank; 0: none; "host-memory" */
    double link_bytes_per_s;    /* also "16GB/s"; "link" */
    const char
        *zero; /* DeepSpeed's keys, "max_reuse_distance=0;overlap_comm=true"; NULL or "": none */

    /* Of sgd with momentum: dampening, and Nesterov's; of adamw, adam and lamb: whether moments are divided by
     * what they lack at the beginning. In "optim"; "bias-correction". Switches are 1 or 0. */
    double dampening, nesterov, bias_correction;

    /* How ranks talk: "auto", or one kind ("self", "shm", "local", "nccl", "nccl-ordered":
     * the sums of the others to the bit); virtual: whose staging is
     * accounted for. auto takes what the device's ranks can use. */
    const char *comm;
    /* Devices that are cards: rank r of a machine has card r. share_gpu: ranks may have one card together
     * (in ranks of a launcher shl_lab_initialize sets what NCCL then reads in the environment);
     * tf32: products of fp32 may round their factors; attention: the forward's kernel, "own", or "cudnn" for
     * the library's, with dtype bf16 and no dropout of its weights only; the backward is the own one. Either
     * is refused where the run would not get it. */
    bool share_gpu; /* "share-gpu" */
    bool tf32;
    const char *attention;

    /* Inputs of recomputed blocks, but for the last one's, in host memory until backward, under any
     * strategy: "none" or "cpu". */
    const char *offload_activations; /* "offload-activations" */
} shl_lab_options;

#define SHL_LAB_OWN (-1.0)
#define SHL_LAB_SCALE_NONE (-1.0)
#define SHL_LAB_SCALE_DYNAMIC 0.0 /* as DeepSpeed's "loss_scale": 0 */

/* Defaults: gpt2-tiny, ddp, batch 4, fp32, AdamW with its own 1e-3 0.9 0.95 1e-8 0.1, cpu. struct_bytes: sizeof *o. */
SHL_LAB_API int shl_lab_options_init(shl_lab_options *o, size_t struct_bytes);

/* Opens device, communicator, model and engine, and fills the parameters from the seed or init_from. world: this
 * rank's place; NULL: alone. *out: owner is the caller, shl_lab_close; NULL after a failure, whose text
 * shl_lab_error_get(NULL, ...) has. COLLECTIVE over the world. */
SHL_LAB_API int shl_lab_initialize(const shl_lab_options *o, shl_lab_world *world, shl_lab **out);

/* The same from a JSON object, {"model": "gpt2-124m", "strategy": "zero2", "optim": {"lr": 6e-4}}: absent
 * keys have their defaults, an unknown one is an error with line, column and nearest name. */
SHL_LAB_API int shl_lab_initialize_json(const char *json, shl_lab_world *world, shl_lab **out);

/* Frees everything and NULLs *lab; NULL is fine. Errors: SHL_LAB_E_BUG names what was not freed. A
 * handle whose last call failed may be closed by its rank alone. */
SHL_LAB_API int shl_lab_close(shl_lab **lab);

/* --- training ---------------------------------------------------------------------------- */

/* A target that does not count. */
#define SHL_LAB_IGNORE (-100)

/* Optional, before the first forward of a step: how many targets of the whole global batch (all ranks
 * and micro-batches) count. The loss is divided by it, so it must be known before the first
 * gradient. Without this call all of them count, and a forward refuses SHL_LAB_IGNORE. */
SHL_LAB_API int shl_lab_begin_step(shl_lab *lab, int64_t global_valid);

/* One micro-batch: batch * seq tokens and their targets, row-major, host memory, borrowed for the call;
 * NULL on a virtual device. loss: NULL, or the mean over the targets of this rank's micro-batch that
 * count (0 on virtual). COLLECTIVE. */
SHL_LAB_API int shl_lab_forward(shl_lab *lab, const int32_t *tokens, const int32_t *targets,
                                double *loss);
SHL_LAB_API int shl_lab_backward(shl_lab *lab); /* COLLECTIVE */

typedef struct shl_lab_step_report {
    size_t struct_bytes;
    bool updated;     /* false: within an accumulation; everything below is 0 then */
    int64_t step;     /* global batches done, this one included */
    double loss;      /* mean over all targets of the global batch that count */
    double grad_norm; /* global, unscaled, before clipping; not finite in a skipped step */
    double clip_coef; /* what unscaled gradients were multiplied with; 0 in a skipped step */
    double lr;
    int64_t tokens; /* positions of the global batch */
    int64_t step_ns, forward_ns, backward_ns, update_ns;
    int64_t exposed_comm_ns; /* compute waited for communication */
    double loss_scale;       /* of this step; 1: none */
    bool skipped;            /* gradients were not finite: nothing was updated */
    int64_t skipped_steps;   /* of all steps; step - skipped_steps updates were done */
    int64_t to_host_bytes;   /* this rank's copies between device and host memory */
    int64_t to_device_bytes;
    int64_t exposed_move_ns; /* compute waited for them */
} shl_lab_step_report;

/* After each backward, as DeepSpeed's: updates at the end of an accumulation (every `accum` micro-batches)
 * and does nothing else in between, where it may be left out. report may be NULL. COLLECTIVE. */
SHL_LAB_API int shl_lab_step(shl_lab *lab, shl_lab_step_report *report);

/* Forward only, between steps: *loss is the mean over the targets that count of one batch per rank, all
 * ranks together, the same on each (0 on virtual). SHL_LAB_IGNORE needs no announcement. Changes
 * neither parameters nor optimizer; peaks of memory count. COLLECTIVE. */
SHL_LAB_API int shl_lab_eval(shl_lab *lab, const int32_t *tokens, const int32_t *targets,
                             double *loss);

/* One code on every rank: OK only when every rank passed OK; `what` is the text of a failing one, else
 * NULL. For a program that may fail or stop on one rank. COLLECTIVE. */
SHL_LAB_API int shl_lab_agree(shl_lab *lab, int mine, const char *what);

/* Tells the other ranks that this one gives up: their waits end with an error that names it. Local,
 * never blocks. Returns code. */
SHL_LAB_API int shl_lab_abort(shl_lab *lab, int code, const char *what);

/* --- state ------------------------------------------------------------------------------- */

/* Writes a checkpoint of this step below dir, for any strategy and number of ranks to load; it is there
 * whole or not at all, and an older one stays until then. Between steps. cursor: the caller's place
 * in its data. config: NULL, or a JSON object whose keys are kept beside the handle's own, for
 * people. A failure leaves the handle as it was unless another rank is gone. COLLECTIVE. */
SHL_LAB_API int shl_lab_save(shl_lab *lab, const char *dir, int64_t cursor, const char *config);

/* Loads the newest checkpoint below dir, or dir itself when it is one: parameters, moments, step and
 * cursor (may be NULL). Model, seed, seq and optimizer must be those of the checkpoint; everything that
 * only moves bytes may differ, and dtypes may; a handle without optimizer takes the parameters alone. Hashes are checked. Between steps. COLLECTIVE. */
SHL_LAB_API int shl_lab_load(shl_lab *lab, const char *dir, int64_t *cursor);

#define SHL_LAB_MAX_DIMS 4

/* A piece of state where it lies. The fields that DLPack has carry DLPack's values and units: device_type 1
 * is host memory (12: a virtual device, whose addresses must not be read), dtype_code 2 is IEEE
 * float, strides count elements. A piece that is a whole tensor has its shape, any other one is
 * elements [begin, end) of the row-major tensor, as one dimension. */
typedef struct shl_lab_tensor {
    size_t struct_bytes;
    const char *name; /* as Hugging Face, "h.0.attn.c_attn.weight" */
    const char *kind; /* "param", and "opt/m", "opt/v" where the optimizer has them */
    void *data;
    int32_t device_type, device_id;
    uint8_t dtype_code, dtype_bits;
    uint16_t dtype_lanes;
    int32_t n_dims;
    int64_t shape[SHL_LAB_MAX_DIMS], strides[SHL_LAB_MAX_DIMS];
    uint64_t byte_offset;
    int32_t full_n_dims; /* of the whole tensor */
    int64_t full_shape[SHL_LAB_MAX_DIMS];
    int64_t begin, end;
    int32_t replica, n_replicas; /* ranks that hold the same elements, and which of them this is */
} shl_lab_tensor;

/* A code other than OK ends the visit and is returned. The struct lives during the call, the data
 * until the handle is closed; its values change with the next step. */
typedef int (*shl_lab_tensor_fn)(void *ctx, const shl_lab_tensor *tensor);

enum { SHL_LAB_READ = 0, SHL_LAB_WRITE = 1 };

/* Every piece of state that this rank owns, parameter by parameter; over all ranks each element is
 * there n_replicas times. WRITE: fn may change the data, and afterwards the copies that other ranks
 * keep follow. Between steps. COLLECTIVE with WRITE. */
SHL_LAB_API int shl_lab_tensors(shl_lab *lab, int mode, shl_lab_tensor_fn fn, void *ctx);

/* --- what it cost ------------------------------------------------------------------------ */

/* Room for kinds to come; n_tiers and its kin in the report say how many there are. */
#define SHL_LAB_MAX_TIERS 4
#define SHL_LAB_MAX_TAGS 16
#define SHL_LAB_MAX_PHASES 8
#define SHL_LAB_MAX_COLLECTIVES 8

/* Names by index: "device"; "param", "gather", ...; "init", "forward", ...; "all_gather", ... NULL
 * beyond the last. */
SHL_LAB_API const char *shl_lab_tier_name(int tier);
SHL_LAB_API const char *shl_lab_tag_name(int tag);
SHL_LAB_API const char *shl_lab_phase_name(int phase);
SHL_LAB_API const char *shl_lab_collective_name(int collective);

/* Bytes as asked for by this rank, exact. */
typedef struct shl_lab_memory {
    uint64_t now_bytes, peak_bytes;
    uint64_t now_tag_bytes[SHL_LAB_MAX_TAGS];
    uint64_t peak_tag_bytes[SHL_LAB_MAX_TAGS];    /* each tag's own largest */
    uint64_t at_peak_tag_bytes[SHL_LAB_MAX_TAGS]; /* at the moment of peak_bytes; sum to it */
    uint64_t phase_peak_bytes[SHL_LAB_MAX_PHASES];
    int32_t peak_phase;
    char peak_owner[96]; /* whose allocation reached the peak */
} shl_lab_memory;

/* bytes: full unsharded buffers with padding; wire_bytes: sent by this rank under a ring. */
typedef struct shl_lab_traffic {
    int64_t calls, bytes, wire_bytes;
} shl_lab_traffic;

typedef struct shl_lab_report {
    size_t struct_bytes;
    char model[64], strategy[24], layout[48];
    int rank, ranks, threads;
    bool predicted;         /* times are those of a virtual clock */
    int64_t step;           /* global batches done */
    int64_t params;         /* of the whole model, ties once */
    int64_t padding_elems;  /* of a full view beyond the parameters */
    int64_t n_units;        /* buckets, gather groups or units */
    uint64_t padding_bytes; /* resident bytes of this rank due to padding */
    uint64_t trace_hash;    /* of every allocation and release, in order */
    int n_tiers, n_tags, n_phases, n_collectives;
    shl_lab_memory memory[SHL_LAB_MAX_TIERS];
    shl_lab_traffic traffic[SHL_LAB_MAX_COLLECTIVES]; /* since initialize */
    int64_t staged_bytes;        /* of them, copied because a buffer was not in shared memory */
    int64_t save_ns, save_bytes; /* of the last save: until it was committed; all its shard files */
    int64_t skipped_steps;       /* of `step`, without an update */
    double loss_scale;           /* of the next step; 1: none */
    char dtypes[96];             /* "bf16 compute, fp32 master, ..." */
    uint64_t pinned_peak_bytes;  /* locked host memory, whole pages */
} shl_lab_report;

/* This rank's numbers up to now. Local. */
SHL_LAB_API int shl_lab_report_get(shl_lab *lab, shl_lab_report *out);

/* A fingerprint of all parameters, the same for any strategy and number of ranks that hold the same bits; 0
 * on virtual. Between steps. COLLECTIVE. */
SHL_LAB_API int shl_lab_param_hash(shl_lab *lab, uint64_t *out);

#ifdef __cplusplus
}
#endif

#endif

/* bench: one resolved configuration, run from opening the ranks to closing them: `train` on the cpu,
 * `plan` on the virtual device and the tests are this code. Ranks are the caller itself (one rank,
 * or any number of virtual ones), threads, or processes. */
#ifndef SHL_BENCH_SESSION_H
#define SHL_BENCH_SESSION_H

#include <stdatomic.h>

#include "engines/config/zero_text.h"
#include "engines/engine.h"
#include "engines/shared/volume.h"
#include "models/named.h"
#include "models/tune.h"

struct json_t;

/* Batches from somewhere else than a data source (golden values). Rows are numbered through the global
 * batch of an update. Called from every rank's thread. */
typedef struct shl_session_batches {
    shl_code (*row)(void *ctx, int64_t step, int64_t row, int32_t *tokens, int32_t *targets);
    int64_t (*valid)(void *ctx, int64_t step); /* targets that count, whole global batch */
    void *ctx;
} shl_session_batches;

/* Plain; strings are borrowed for the run. shl_session_config_init, then fields, then check. */
typedef struct shl_session_config {
    char model[64]; /* for records, messages and checkpoints */
    shl_model_config shape;
    bool approximate; /* also on a device that computes */
    char approximated
        [192];            /* what the original of the shape computes and this does not; "": exact */
    shl_tune_config tune; /* what is trained, kept and made again */
    shl_engine_config engine;
    char schedule_text[SHL_DS_SCHEDULE_TEXT_BYTES]; /* of a named schedule */
    char zero_text[SHL_ZERO_TEXT_BYTES];            /* of DeepSpeed's keys; "": none */
    int ranks;
    int threads;                /* compute threads per rank */
    const char *device;         /* "cpu", "cuda", "virtual" */
    const char *as;             /* what a virtual device stands for */
    const char *comm;           /* "auto", or one kind */
    const char *attention;      /* of 16 bits on a GPU: "own", "cudnn" */
    bool share_gpu;             /* ranks may have one GPU together */
    bool tf32;                  /* products of fp32 on a GPU may round their factors */
    bool processes;             /* ranks as processes instead of threads */
    shl_world *world;           /* this process is a rank of it, started by a launcher; or NULL */
    size_t device_memory_bytes; /* limit per rank; 0: none */
    size_t host_memory_bytes;   /* limit of what is offloaded; 0: none */
    size_t pin_limit_bytes;     /* of locked pages; 0: what the system allows */
    double link_bytes_per_s;    /* between device and host memory; 0: as fast as memory */
    const char *data;           /* as shl_tokens_open; not opened on virtual */
    uint64_t data_seed;         /* of the order of the data, and of synthetic data */
    bool in_order;              /* epochs in the order of the file, not shuffled */
    double val_split;           /* last fraction of the data, never trained on; 0: none */
    const char *val_data;       /* instead: a source of its own; or NULL */
    int64_t eval_every;         /* steps between evaluations; 0: none. The last step has one */
    int64_t eval_batches;       /* of `batch` sequences, all ranks together; 0: all there are */
    const shl_session_batches *batches; /* instead of data; or NULL */
    int64_t steps;                      /* the step number to reach */
    const char *ckpt_dir;               /* NULL: no checkpoints */
    int64_t save_every;                 /* 0: only at the end */
    bool resume;                        /* from ckpt_dir */
    const char *init_from;              /* weights to start from, unless resumed; or NULL */
    bool timeline;                      /* keep the ledger events of one steady step */
    int64_t timeout_ms;                 /* 0: the communicator's default */
    int64_t alpha_ns;                   /* modelled cost of a collective, as shl_comm_config */
    double wire_bytes_per_s;
    bool sim_sleep;
    double flops_per_s, bytes_per_s; /* virtual clocks; 0: defaults */
    const char *const *rank_argv; /* processes: command of a rank, NULL-terminated, path first; the
                                        session adds "--result-fd=N" */
    bool wait_phases;             /* the device is waited for behind each phase, so that an
                                     asynchronous one tells their times; a step takes longer */
    atomic_int *stop;             /* not NULL: a run ends after the step in which it is set */
} shl_session_config;

/* One evaluation: forward only, over the validation data. */
typedef struct shl_eval_report {
    int64_t step;   /* updates done */
    double loss;    /* mean over all targets; the same bits for any number of ranks */
    int64_t tokens; /* targets */
    int64_t ns;     /* of the device's clock */
} shl_eval_report;

/* Who is told what while it runs; each may be NULL. on_step: once per step, by one thread, in order;
 * on_eval: once per evaluation, in between; in processes they run in the parent. on_open (after resume) and on_close (after the last step and
 * save): on every rank's own thread; not available to processes. A failure ends the run. */
typedef struct shl_session_sink {
    shl_code (*on_step)(void *ctx, const shl_step_report *r);
    shl_code (*on_eval)(void *ctx, const shl_eval_report *r);
    shl_code (*on_open)(void *ctx, int rank, shl_engine *e);
    shl_code (*on_close)(void *ctx, int rank, shl_engine *e);
    void *ctx;
} shl_session_sink;

/* Rank 0's ledger in one steady step: the second of the run, or the only one. */
typedef struct shl_session_timeline {
    int64_t step;                                      /* updates done with it; 0: not recorded */
    int64_t held_bytes[SHL_TIER_COUNT][SHL_TAG_COUNT]; /* when the step began */
    shl_ledger_event *events;                          /* n_events of them; owned */
    int64_t n_events;
} shl_session_timeline;

/* The kernels that served ops with a choice of several, as shl_op_ran; "": a device without a choice. */
typedef struct shl_session_kernels {
    char product[64], attention_forward[64], attention_backward[64];
} shl_session_kernels;

typedef struct shl_session_result {
    shl_step_report *steps; /* n_steps of them; owned, shl_session_result_fini */
    int64_t n_steps;        /* done in this run */
    shl_eval_report *evals; /* n_evals of them; owned likewise */
    int64_t n_evals;
    int64_t first_step; /* updates done before it */
    bool predicted;     /* times are the virtual clock's; there is no loss */
    int64_t params, trainable_params;
    shl_formula_size size; /* what closed forms are told of the model */
    shl_engine_info info;  /* of rank 0; layout points into layout_name */
    char layout_name[48];
    int worst_rank; /* largest peak on the device tier; the lowest of equals */
    shl_ledger_tier tiers[SHL_TIER_COUNT]; /* of that rank, at the end of steps and saves */
    shl_comm_stats comm;      /* of rank 0 in the steps; evaluations, saves and set-up left out */
    shl_comm_stats comm_step; /* comm / n_steps */
    bool comm_uniform;        /* that division left no remainder anywhere */
    uint64_t trace_hash;      /* ledger trace of rank 0 */
    uint64_t param_hash;      /* 0 on virtual */
    double tokens_per_s;      /* tokens of a step / median step time */
    int64_t cpu_ns;           /* CPU time of the steps, all ranks */
    int64_t cpu_ns_per_step;
    int64_t save_ns;    /* of the last save, from before its first file until it is committed */
    int64_t save_bytes; /* of all its shard files; 0: nothing was saved */
    shl_session_timeline timeline;
    shl_device_identity card; /* of rank 0 */
    shl_session_kernels ran;  /* on rank 0 */
    shl_device_memory driver; /* what the driver of its card counts at the end; zeros: no card */
    char comm_memory[200];    /* what the communicator says of it (shl_comm_memory), rank 0 */
    int64_t pinned_bytes;     /* most locked host memory of a rank */
    int64_t reserved_bytes;   /* of the device arenas, the rank that took most */
    int64_t rss_bytes;        /* largest resident set of a process of the run */
    int64_t
        residual_bytes; /* rss_bytes - ledger peaks (device, host) of the ranks in that process */
} shl_session_result;

/* fp32 gpt2-tiny, ddp, one rank, one thread, cpu, bundled text, 10 steps. */
void shl_session_config_init(shl_session_config *c);

/* Cross-field checks of the whole run (also those of the engine). Errors: SHL_E_USAGE. */
shl_code shl_session_config_check(const shl_session_config *c) SHL_MUST_USE;

/* The resolved configuration as a JSON object, for records and checkpoints. Owner: caller
 * (json_decref). Errors: SHL_E_HEAP. */
shl_code shl_session_config_json(const shl_session_config *c, struct json_t **out) SHL_MUST_USE;

/* Sequences of one global batch: ranks * batch * accum. */
int64_t shl_session_global_rows(const shl_session_config *c);

/* Runs cfg and waits for its end. sink may be NULL. *out is valid on SHL_OK and on
 * SHL_E_INTERRUPTED (the steps done so far); owner: caller. Nothing is left behind. Errors: those
 * of every part, the failing rank's own first. Call from one thread at a time. */
shl_code shl_session_run(const shl_session_config *cfg, const shl_session_sink *sink,
                         shl_session_result *out) SHL_MUST_USE;

/* In a process started by shl_session_run: this rank's part. result_fd: from --result-fd. */
shl_code shl_session_run_rank(const shl_session_config *cfg, shl_world *world,
                              int result_fd) SHL_MUST_USE;

void shl_session_result_fini(shl_session_result *r);

#endif

/* engines/api: what is inside a handle of shardlab.h, for this room and for the program's own tables
 * and probes in bench. Floor 4 1/2: puts device, communicator, model, engine and checkpoint together. */
#ifndef SHL_API_LAB_H
#define SHL_API_LAB_H

#include "checkpoints/ckpt.h"
#include "engines/api/shardlab.h"
#include "engines/engine.h"
#include "models/named.h"

struct json_t;

/* Options after every default and name was resolved. */
typedef struct shl_lab_setup {
    char model[64];
    shl_model_config shape;
    shl_tune_config tune;
    shl_engine_config engine;
    int rank, ranks, threads;
    char device[16], stands_for[16];
    size_t device_memory_bytes, host_memory_bytes, pin_limit_bytes;
    double link_bytes_per_s;
    int64_t timeout_ms, alpha_ns;
    double wire_bytes_per_s;
    bool sim_sleep;
    double flops_per_s, bytes_per_s;
    char comm[16];     /* "auto", or a kind */
    char attention[8]; /* "own", "cudnn" */
    bool share_gpu, tf32;
    char init_from[1024]; /* "": parameters from the seed */
} shl_lab_setup;

/* Which call comes next. */
typedef enum shl_lab_stage {
    SHL_LAB_BETWEEN_STEPS = 0, /* forward (or begin_step), eval, save, load, tensors */
    SHL_LAB_WANTS_FORWARD,     /* inside a step; a step call here does nothing */
    SHL_LAB_WANTS_BACKWARD,
    SHL_LAB_WANTS_STEP
} shl_lab_stage;

struct shl_lab {
    shl_lab_setup setup;
    shl_world *world; /* borrowed; NULL: alone */
    shl_device *device;
    shl_comm *comm;
    shl_model *model;
    shl_mesh mesh;
    shl_engine *engine;
    shl_lab_stage stage;
    bool may_ignore; /* the number of targets of this step was announced */
    bool agreed;     /* the last failure is known to every rank */
    bool broken;     /* the engine failed: only close is left */
    char run_id[33]; /* of the run that checkpoints belong to; "" until the first save or load */
    int64_t save_ns, save_bytes; /* of the last save */
    int64_t weight_bytes;        /* this rank read for its parameters from init_from */
    /* Borrowed, or NULL: what else a checkpoint's configuration must say for a load. A key that it does not
     * have is passed over. */
    const struct json_t *must_match;
    shl_err err;
};

/* Checks and resolves. Errors: SHL_E_USAGE. Local. */
shl_code shl_lab_setup_resolve(const shl_lab_options *o, const shl_world *world,
                               shl_lab_setup *out) SHL_MUST_USE;

/* What a run asks of a card's kernels; target: the device, or what a virtual one stands for. */
typedef struct shl_lab_card_wish {
    const char *target, *attention;
    bool tf32;
    shl_dtype compute_dtype;
    double attention_dropout;
} shl_lab_card_wish;

/* Errors: SHL_E_USAGE for what the run would not get. Local. */
shl_code shl_lab_card_check(const shl_lab_card_wish *w) SHL_MUST_USE;

/* lab_plan.c: fills config->ready_bytes and its kin with what the arenas of the device `target` will have taken
 * once a run of s has evaluated, trained, saved and loaded, its ranks talking by `comm`: from a rehearsal on
 * the virtual device that stands for it. Local. Errors: as opening those. */
shl_code shl_lab_plan_memory(const shl_lab_setup *s, const char *target, const char *comm,
                             shl_device_config *config) SHL_MUST_USE;

/* The "optim" object of a configuration: of the optimizer's parameters those that it has. Owner: caller;
 * NULL: out of host memory. */
struct json_t *shl_lab_optim_json(const shl_engine_config *e);

/* The "shape" object of a configuration. Owner: caller; NULL: out of host memory. */
struct json_t *shl_lab_shape_json(const shl_model_config *g);

/* The JSON form of a setup, with the keys that shl_lab_initialize_json takes. Owner: caller (json_decref).
 * Errors: SHL_E_HEAP. */
shl_code shl_lab_setup_json(const shl_lab_setup *s, struct json_t **out) SHL_MUST_USE;

/* The keys of dtypes and loss scaling into an object. Errors: SHL_E_HEAP. */
shl_code shl_lab_policy_json(const shl_engine_config *e, struct json_t *into) SHL_MUST_USE;

/* The keys of offload into an object. Errors: SHL_E_HEAP. */
shl_code shl_lab_offload_json(const shl_lab_setup *s, struct json_t *into) SHL_MUST_USE;

/* Options from a JSON object over what *o holds; strings borrowed from *holder (json_decref). */
shl_code shl_lab_options_from_json(const char *text, shl_lab_options *o,
                                   struct json_t **holder) SHL_MUST_USE;

/* Sized structs. take: the caller's struct into ours (which holds defaults). give: ours to the caller,
 * whose struct_bytes stays. Errors: SHL_E_USAGE with both sizes. */
shl_code shl_lab_take_sized(const void *theirs, size_t bytes, const char *name,
                            void *ours) SHL_MUST_USE;
shl_code shl_lab_give_sized(const void *ours, size_t bytes, const char *name,
                            void *theirs) SHL_MUST_USE;

/* Whether a call may come now. Errors: SHL_E_USAGE for NULL, a broken handle, a wrong stage. */
shl_code shl_lab_check(const shl_lab *lab, const char *call) SHL_MUST_USE;
shl_code shl_lab_check_between(const shl_lab *lab, const char *call) SHL_MUST_USE;

/* Keeps the thread's error as the handle's (lab may be NULL) and gives its code. */
int shl_lab_leave(shl_lab *lab, shl_code code);

/* The same behind a collective call: unless every rank knows of the failure already (lab->agreed), they
 * are told and the handle is broken. */
int shl_lab_leave_collective(shl_lab *lab, shl_code code, const char *where);

/* A code of the public header as ours; one that is not known becomes SHL_E_SYSTEM. */
shl_code shl_lab_code_from(int code);

/* One code on every rank; lab->agreed tells afterwards that a failure is known to all. COLLECTIVE. */
shl_code shl_lab_agree_code(shl_lab *lab, shl_code mine, const char *where) SHL_MUST_USE;

/* Fills the parameters from published weights (checkpoints/safetensors.h) whose names and shapes are the
 * model's; moments stay. On a device without data all is checked and nothing moves. Errors:
 * SHL_E_CONFIG another model (first difference), and what the reader says. COLLECTIVE. */
shl_code shl_lab_load_weights(shl_lab *lab, const char *path) SHL_MUST_USE;
/* The local half of shl_lab_eval: the sum of the losses of this rank's targets, without asking the other
 * ranks for theirs. Who adds them up decides the order. COLLECTIVE all the same: parameters may be
 * gathered. */
shl_code shl_lab_eval_sum(shl_lab *lab, const int32_t *tokens, const int32_t *targets,
                          double *loss_sum) SHL_MUST_USE;

/* Sums words over the ranks, in pieces that fit a control call. With one rank's words and zeros from
 * all others this hands those words to everybody. COLLECTIVE. */
shl_code shl_lab_sum_words(shl_lab *lab, int64_t *words, int64_t n) SHL_MUST_USE;

#endif

/* engines: an engine is a set of hooks around modules plus an end of step: when to gather
 * parameters, when to free them, when to reduce gradients, where optimizer state lives. Nothing else
 * differs between ddp, zero1/2/3 and fsdp; `train`, `plan` and the tests are this code on different
 * devices and communicators. Engines name no model kind.
 *
 * All calls of one engine come from its rank's own thread. COLLECTIVE: every rank of the mesh calls
 * open, begin_step, forward, backward, end_step, eval, visit_state(WRITE) and close in the same
 * order. */
#ifndef SHL_ENGINES_ENGINE_H
#define SHL_ENGINES_ENGINE_H

#include "engines/comm/comm.h"
#include "engines/config/config.h"
#include "engines/shared/scaler.h"
#include "models/module.h"

typedef struct shl_engine shl_engine;

/* The groups an engine sees: never the world. world is used for control (loss, norm, agree). */
typedef struct shl_mesh {
    shl_comm *world;
    shl_comm *shard;     /* states are sharded over these ranks; NULL: not sharded */
    shl_comm *replicate; /* gradients are also summed over these; NULL: size 1 */
} shl_mesh;

/* What one optimizer step was. Times are nanoseconds of the device's clock. */
typedef struct shl_step_report {
    int64_t step;     /* global batches done, this one included */
    double loss;      /* sum over valid targets / their number, whole global batch */
    double grad_norm; /* global L2, unscaled, before clipping; not finite in a skipped step */
    double clip_coef; /* what unscaled gradients were multiplied with; 0 in a skipped step */
    double lr;
    double loss_scale;     /* that the gradients of this step carried; 1: none */
    bool skipped;          /* they were not finite: nothing was updated */
    int64_t skipped_steps; /* of all steps; step - skipped_steps updates were done */
    int64_t tokens;        /* positions of the global batch */
    int64_t step_ns, forward_ns, backward_ns, update_ns;
    int64_t exposed_comm_ns;             /* compute waited for communication */
    int64_t exposed_move_ns;             /* compute waited for copies between tiers */
    int64_t moved_bytes[SHL_MOVE_COUNT]; /* of this rank, between tiers */
} shl_step_report;

/* Numbers of the layout, for records and formulas. */
typedef struct shl_engine_info {
    const char *layout;    /* "bucketed", "per-parameter ceil split", "flat unit" */
    int64_t padding_elems; /* elements allocated per rank's full view beyond the parameters' own */
    size_t padding_bytes;  /* resident bytes of this rank due to padding: param + grad + optim */
    int64_t n_units;       /* buckets, gather groups or units */
    int64_t payload_elems; /* full flat elements of all trainable units with padding */
    int64_t frozen_elems;  /* the same of frozen ones: gathered, never reduced */
    int64_t again_elems;   /* of both, with padding: gathered a second time, for backward */
    int64_t root_elems;    /* fsdp: the unit that is kept between forward and backward; else 0 */
    int64_t n_reduce;      /* reduction calls per reduced micro-step */
    int64_t n_gather_forward, n_gather_backward; /* groups gathered per micro-step (zero3, fsdp): a
                                                    call each unless `coalesced` */
    int64_t resident_elems,
        resident_bytes;               /* zero3: tensors that stay whole on every rank, padded */
    int64_t n_refresh, refresh_elems; /* of them, trainable: a gather each after an update */
    bool coalesced; /* zero3: groups issued ahead share a call, or tensors take one each */
    int64_t host_elems, host_payload_elems; /* of this rank: whose updates run in host memory */
    int64_t host_param_elems;               /* of this rank's parameter shards, in host memory */
} shl_engine_info;

/* Called for each shard of the engine's state; local may be read (saving) or overwritten
 * (loading). A failure ends the visit. */
typedef shl_code (*shl_state_visitor)(void *ctx, const shl_shard *shard);
typedef enum shl_visit_mode { SHL_VISIT_READ = 0, SHL_VISIT_WRITE } shl_visit_mode;

/* The contract of an engine (engines/engine_registry.c lists them). Every slot is required. */
typedef struct shl_engine_ops {
    const char *name;
    bool (*runs)(shl_strategy s);
    shl_code (*attach)(shl_engine *e); /* layout, allocation, initial values */
    void (*detach)(shl_engine *e);     /* frees all; in-flight work was drained */
    shl_code (*begin_micro)(shl_engine *e, bool first, bool last);
    shl_code (*begin_backward)(shl_engine *e);
    shl_code (*end_micro)(shl_engine *e); /* after backward */
    void (*end_eval)(shl_engine *e); /* after a forward without one: drops what it would need */
    shl_code (*end_step)(shl_engine *e, shl_step_report *r);
    shl_code (*visit_state)(shl_engine *e, shl_visit_mode mode, shl_state_visitor v, void *ctx);
    shl_code (*param_hash)(shl_engine *e, uint64_t *sum); /* this rank's part, mod 2^64 */
    void (*info)(const shl_engine *e, shl_engine_info *out);
    const shl_hooks *hooks;
} shl_engine_ops;

struct shl_engine {
    const shl_engine_ops *ops;
    shl_engine_config config;
    shl_model *model;   /* borrowed */
    shl_device *device; /* borrowed: compute */
    shl_mesh mesh;      /* borrowed */
    int64_t step;       /* global batches done */
    int64_t skipped;    /* of them without an update */
    shl_scaler scaler;  /* its scale is that of the step under way */
    int64_t micro;      /* micro-steps done in this step */
    double dloss;       /* loss scale / valid targets of the global batch */
    int64_t global_valid;
    shl_step_report report; /* being filled */
    int64_t step_start_ns;
    int64_t moved_before[SHL_MOVE_COUNT]; /* this step */
    struct shl_gather_log
        *gather_log; /* borrowed: writes gathers down (gather_log.h); NULL: nobody does */
    shl_tape tape;
    shl_run run;
    shl_buf tokens, targets, loss_sum; /* tag act: one micro-batch, and the f64 loss */
    void *impl;                        /* the engine's own */
};

/* Builds the engine of cfg->strategy over a model: lays out, allocates, and fills this rank's part of
 * the parameters from cfg->seed (same bits for any world and strategy). cfg is copied; model, device
 * and mesh are borrowed until close. Owner: caller. Errors: SHL_E_USAGE / OOM; nothing is held
 * then. COLLECTIVE. */
shl_code shl_engine_open(const shl_engine_config *cfg, shl_model *model, shl_device *device,
                         const shl_mesh *mesh, shl_engine **out) SHL_MUST_USE;

/* Frees everything. After it the device ledger is balanced. NULL is fine. Drains in-flight work. */
void shl_engine_close(shl_engine **e);

/* Starts a step whose whole global batch (all ranks and micro-steps) has global_valid targets. Errors:
 * SHL_E_USAGE for an engine without optimizer. */
shl_code shl_engine_begin_step(shl_engine *e, int64_t global_valid) SHL_MUST_USE;

/* One micro-batch: tokens and targets are host arrays of batch * seq (targets: SHL_IGNORE_INDEX is
 * ignored). Borrowed for the call. On virtual they may be NULL. */
shl_code shl_engine_forward(shl_engine *e, const int32_t *tokens,
                            const int32_t *targets) SHL_MUST_USE;
shl_code shl_engine_backward(shl_engine *e) SHL_MUST_USE;

/* Forward only, between steps: *loss_sum is the sum of the losses of this rank's targets (0 on a device
 * without data). Changes neither parameters nor the state of the optimizer. COLLECTIVE. */
shl_code shl_engine_eval(shl_engine *e, const int32_t *tokens, const int32_t *targets,
                         double *loss_sum) SHL_MUST_USE;

/* After config.accum forward/backward pairs: finish reductions, norm, clip, update, make parameters
 * ready again. With a loss scale (or check_overflow) a step whose gradients are not finite changes
 * neither parameters nor moments, and counts as skipped: on every rank alike. */
shl_code shl_engine_end_step(shl_engine *e, shl_step_report *out) SHL_MUST_USE;

/* Calls v for every shard: kinds "param", and "opt/m", "opt/v" where the optimizer has them. READ: values are complete on the host
 * side of the device. WRITE: v fills them; afterwards the engine makes itself consistent (gathers
 * replicated parameters). The engine's progress is set by the caller through shl_engine_set_progress. */
shl_code shl_engine_visit_state(shl_engine *e, shl_visit_mode mode, shl_state_visitor v,
                                void *ctx) SHL_MUST_USE;

/* Where training stands beside its tensors. */
typedef struct shl_engine_progress {
    int64_t step, skipped;
    shl_scaler scaler;
} shl_engine_progress;
void shl_engine_get_progress(const shl_engine *e, shl_engine_progress *out);
/* has_scaler: p->scaler is of a dynamic scaler; an engine with another one keeps its own. */
void shl_engine_set_progress(shl_engine *e, const shl_engine_progress *p, bool has_scaler);

/* Numbers of the layout, complete after open. Local. */
void shl_engine_info_get(const shl_engine *e, shl_engine_info *out);

/* Additive position-keyed fingerprint of all parameters, equal for any sharding: sum over elements
 * of mix(name, index, bits) mod 2^64, each element once over the mesh. COLLECTIVE, blocking. 0 on a
 * device without data. */
shl_code shl_engine_param_hash(shl_engine *e, uint64_t *out) SHL_MUST_USE;

/* For engines: work on the compute stream goes on behind `done` (cpu: the caller waits); the time
 * lost is counted as exposed communication. */
shl_code shl_engine_wait_comm(shl_engine *e, shl_event done) SHL_MUST_USE;

/* The same for copies between tiers, counted apart. */
shl_code shl_engine_wait_move(shl_engine *e, shl_event done) SHL_MUST_USE;

/* The communicators a strategy wants, from one world communicator (borrowed by the mesh): ddp
 * replicates over the world, the others shard over it. */
void shl_mesh_of(shl_strategy s, shl_comm *world, shl_mesh *out);

#endif

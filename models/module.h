/* models: a model is a tree of modules; a module has parameters, a forward and a backward in terms
 * of ops. Modules know no engine: an engine sets the address of each parameter and gradient at its
 * schedule points through hooks, and shl_module_forward / shl_module_backward are the only
 * callers of those hooks. Saved activations live in a tape that the caller passes, one per forward
 * in flight: a module may run several times before its backward. */
#ifndef SHL_MODELS_MODULE_H
#define SHL_MODELS_MODULE_H

#include "kernels/device/device.h"
#include "kernels/ops/ops.h"

typedef struct shl_module shl_module;
typedef struct shl_model shl_model;

/* One logical parameter. Fields above the line are fixed at build; those below are the engine's.
 * A tied parameter is one shl_param used by several modules (n_uses). */
typedef struct shl_param {
    const char *name; /* HF state-dict name, without GPT-2's "transformer." */
    int index;        /* order of first use in forward */
    int n_dims;
    int64_t dims[SHL_MAX_DIMS]; /* of the piece held here */
    int64_t elems;
    int64_t full_rows,
        row_begin; /* this piece is rows [row_begin, row_begin + dims[0]) of full_rows */
    shl_dtype dtype;
    bool trainable;
    bool adapter; /* not of the model itself: published weights do not have it */
    bool decay;   /* weight decay applies: tensors of two or more dimensions */
    int n_uses;   /* modules that list it */
    shl_init_kind init_kind;
    double init_value, init_std;
    uint64_t init_stream; /* shl_rng_stream(name) */
    /* ---- */
    void *data;           /* whole piece in `dtype`, while it is resident or gathered; else NULL */
    void *grad;           /* where backward writes the whole gradient; NULL when there is no room */
    shl_dtype grad_dtype; /* its type: that of the parameter, or f32 */
    bool grad_accumulate; /* the next write adds instead of overwriting */
    int engine_slot;      /* free for the engine */
} shl_param;

/* Where a module sits in the order of a training step; wrap policies read this, never the kind. */
typedef enum shl_wrap_hint {
    SHL_WRAP_NONE = 0, /* part of its parent */
    SHL_WRAP_INPUT,    /* embeddings */
    SHL_WRAP_BLOCK,    /* one of the repeated blocks */
    SHL_WRAP_OUTPUT    /* final norm and head */
} shl_wrap_hint;

/* What backward needs again. Entries form a stack: backward pops in reverse order. An entry owns
 * bufs[0 .. SHL_TAPE_BUFS) (tag act, empty ones are free places); saved[] looks at what backward
 * reads, which may belong to another entry. It may be kept, dropped (recompute) or moved. */
#define SHL_TAPE_BUFS 8
typedef struct shl_tape_entry {
    shl_module *module;
    shl_buf bufs[SHL_TAPE_BUFS];
    shl_tensor saved[SHL_TAPE_BUFS];
    shl_buf far;     /* bufs[0] in host memory, from its copy there to the end of the one back */
    shl_event moved; /* the newest of those copies */
} shl_tape_entry;
typedef struct shl_tape {
    shl_tape_entry *entries;
    int n, cap;
} shl_tape;

typedef enum shl_phase { SHL_PHASE_FORWARD = 0, SHL_PHASE_RECOMPUTE, SHL_PHASE_BACKWARD } shl_phase;

typedef struct shl_run shl_run;

/* Called around modules, containers too; any may be NULL. A failure ends the run. grad_ready is
 * called after the backward of each module that lists p and before its after_backward, once per
 * use, on the module's own parameters in reverse order of listing (frozen ones too); an engine
 * counts uses to know when a tied gradient is final. */
typedef struct shl_hooks {
    shl_code (*before_forward)(void *ctx, shl_module *m, shl_run *run);
    shl_code (*after_forward)(void *ctx, shl_module *m, shl_run *run);
    shl_code (*before_backward)(void *ctx, shl_module *m, shl_run *run);
    shl_code (*after_backward)(void *ctx, shl_module *m, shl_run *run);
    shl_code (*grad_ready)(void *ctx, shl_module *m, shl_param *p, shl_run *run);
} shl_hooks;

/* One forward in flight (and its backward). Set up by the caller, borrowed by modules. */
struct shl_run {
    shl_device *device;
    shl_stream *stream;     /* compute */
    const shl_hooks *hooks; /* NULL: none */
    void *hooks_ctx;
    shl_phase phase;     /* set by shl_model_forward / backward */
    shl_tape *tape;      /* needed in evaluation too; comes back as it was then */
    int64_t batch, seq;  /* B, T of this micro-batch */
    shl_tensor tokens;   /* i32 [B*T] on the device */
    shl_tensor targets;  /* i32 [B*T], SHL_IGNORE_INDEX = ignored; NULL data: no loss */
    shl_tensor loss_sum; /* f64 [1] on the device, added to */
    float dloss;         /* 1 / valid targets of the global batch */
    bool want_grad;      /* false: evaluation, nothing is saved */
    /* Dropout, when modules have some and want_grad: masks are drawn by the place of an element in
     * the global batch of one step, so that they depend on nothing else. */
    uint64_t dropout_seed; /* of the run and the step */
    int64_t first_row;     /* place of this micro-batch's first sequence in the global batch */
    shl_buf *logits_out;   /* not NULL: the head leaves the logits there instead of a loss, rows
                              shl_device_row_stride apart */
    bool offload;          /* modules with `offload` keep their input in host memory */
    bool far_pin;          /* in locked pages */
    /* Set while modules run: */
    bool save;               /* backward will read what this forward leaves on the tape */
    bool tape_only;          /* recomputation: of the next linear, only its tape entry is wanted */
    int64_t exposed_move_ns; /* added to: time that compute waited for copies between tiers */
};

/* A buffer and a view travel together. An empty buffer beside a view with data means that the bytes
 * are borrowed: they must stay as they are, and live until the owner's tape entry is popped.
 * A module cleans up nothing on failure: what it allocated is in y_buf, dx_buf or on the tape. */
typedef struct shl_module_ops {
    const char *kind; /* "linear", "layernorm", ... for messages and tables only */
    /* x is the input; *x_buf is consumed: the module moves it to the tape when backward reads it
     * again, else frees it after its last use. The output (tag act) goes to *y_buf and *y; y_buf
     * stays empty when the tape owns the output (attention) and when it is the loss (head). */
    shl_code (*forward)(shl_module *m, shl_run *run, shl_buf *x_buf, const shl_tensor *x,
                        shl_buf *y_buf, shl_tensor *y);
    /* *dy_buf is consumed: freed or reused. dx goes to *dx_buf and *dx; when *dx_buf holds bytes on
     * entry, dx is added to them (the residual branch; linear and norm modules can). Writes each
     * wanted param->grad and marks it grad_accumulate, so that a further use adds. */
    shl_code (*backward)(shl_module *m, shl_run *run, shl_buf *dy_buf, const shl_tensor *dy,
                         shl_buf *dx_buf, shl_tensor *dx);
    /* Bytes that one forward leaves on the tape for B x T, own ones only (children not counted), where rows
     * lie close together (shl_device_row_stride). */
    size_t (*saved_bytes)(const shl_module *m, int64_t batch, int64_t seq);
    /* Attention only: makes the output again that m->recompute dropped from its entry, for the
     * projection behind it, which borrows it. No hooks, no parameters. NULL: keeps its output. */
    shl_code (*refill)(shl_module *m, shl_run *run, shl_tape_entry *e);
    /* Linear only: adds low-rank adapters as parameters. NULL: takes none. */
    shl_code (*adapt)(shl_model *model, shl_module *m, int64_t rank, double alpha);
} shl_module_ops;

struct shl_module {
    const shl_module_ops *ops;
    const char *path; /* "h.0.attn"; owned by the model */
    int id;           /* pre-order, execution order of forward */
    int depth;
    shl_wrap_hint wrap;
    shl_module *parent;
    shl_module **children; /* in execution order */
    int n_children;
    shl_param **params; /* used directly by this module; a tied one appears in several modules */
    int n_params;
    /* Fixed before an engine is opened: */
    bool in_backward; /* it or a module before it is trainable: backward comes here */
    bool recompute;   /* a block: saves its input only and runs forward again in backward;
                         attention: drops its output and makes it again */
    bool offload;     /* a recomputed block, but for the last one, whose backward comes next */
    double dropout;   /* p: of an embedding's output, a block's branches, attention's weights */
    uint64_t dropout_stream;
    shl_dtype dtype; /* of its activations */
    void *impl;      /* owned by the model */
};

struct shl_model {
    const char *family; /* "gpt2", ... for messages and records only */
    shl_module *root;
    shl_module **modules; /* all, by id */
    int n_modules;
    shl_param **params; /* all, by index */
    int n_params;
    int64_t n_elems; /* sum of param elems, ties once */
    int64_t vocab, context;
};

/* Runs a module between its hooks. The only callers of hooks. x_buf, y_buf, dy_buf, dx_buf as in
 * shl_module_ops, none NULL. Errors: the first of hook or module; all four buffers are released and
 * empty then, what lies on the tape stays there for shl_tape_fini. */
shl_code shl_module_forward(shl_module *m, shl_run *run, shl_buf *x_buf, const shl_tensor *x,
                            shl_buf *y_buf, shl_tensor *y) SHL_MUST_USE;
shl_code shl_module_backward(shl_module *m, shl_run *run, shl_buf *dy_buf, const shl_tensor *dy,
                             shl_buf *dx_buf, shl_tensor *dx) SHL_MUST_USE;

/* Whole model: forward from tokens to the loss (added to run->loss_sum) or logits; backward down to
 * the embeddings. Params: run as described above, borrowed. Errors: SHL_E_USAGE for a batch that
 * the model cannot take (T above its context, sizes that overflow), SHL_E_BUG for a run that asks
 * for gradients without targets or together with logits, and what hooks and ops return; the tape
 * then holds what is left (shl_tape_fini) and *logits_out is empty. Local. */
shl_code shl_model_forward(shl_model *m, shl_run *run) SHL_MUST_USE;
shl_code shl_model_backward(shl_model *m, shl_run *run) SHL_MUST_USE;

/* Tape of a run; zero-initialise. push allocates nothing on the device: the module fills bufs and
 * saved. *out is borrowed until the next push or pop. */
shl_code shl_tape_push(shl_tape *t, shl_module *m, shl_tape_entry **out) SHL_MUST_USE;
/* Top entry, which must be m's (SHL_E_BUG otherwise: a backward without its forward). */
shl_code shl_tape_top(shl_tape *t, shl_module *m, shl_tape_entry **out) SHL_MUST_USE;
/* The entry under the top one, or NULL. */
shl_tape_entry *shl_tape_below(const shl_tape *t);
/* Frees the top entry's buffers on d and drops it. */
void shl_tape_pop(shl_tape *t, shl_device *d);
/* Frees everything left (after an error, or after an evaluation). Copies between tiers were drained
 * (shl_device_sync) when a forward or backward with run->offload failed. */
void shl_tape_fini(shl_tape *t, shl_device *d);

/* An entry's bufs[0] to host memory (tag act there too) and back; saved[0] looks at it. send starts the copy,
 * beside compute that may go on reading; sent gives up the device's bytes behind it. fetch_below takes
 * device memory for the nearest entry below the top one that is in host memory, if any, and starts its
 * copy back, unless it is on its way; fetched lets compute go on behind that, and gives up the host's. */
shl_code shl_tape_send(shl_run *run, shl_tape_entry *e) SHL_MUST_USE;
shl_code shl_tape_sent(shl_run *run, shl_tape_entry *e) SHL_MUST_USE;
shl_code shl_tape_fetch_below(shl_run *run) SHL_MUST_USE;
shl_code shl_tape_fetched(shl_run *run, shl_tape_entry *e) SHL_MUST_USE;

/* The compute dtype of parameters and activations: fp32 (as built), bf16 or fp16. Statistics of norms and
 * of attention stay fp32. Before an engine is opened; local. */
void shl_model_set_dtype(shl_model *m, shl_dtype dtype);

/* Frees the tree, parameters and names. NULL is fine. */
void shl_model_free(shl_model **m);

/* The parameter of that name (with or without "transformer."), or NULL; borrowed. */
shl_param *shl_model_param(const shl_model *m, const char *name);

#endif

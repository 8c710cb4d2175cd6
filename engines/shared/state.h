/* engines/shared: the stores of a rank: parameters (whole or sharded), master weights, gradients
 * (whole or sharded) and the moments that the optimizer has (always sharded), addressed by layout fragments; initial
 * values, state visits, the parameter fingerprint. Floor 3.
 *
 * Who holds what, by policy. A 16-bit model with fp32 master weights:
 *   ddp, zero*: `param` in the compute dtype, `master` apart, sharded: 2P or 2P/N, and 4P/N;
 *   fsdp*: `param` shards are the master weights, cast into the slot by each gather: 4P/N.
 * With one dtype for both, `param` is its own master everywhere. Frozen parameters have no master:
 * they lie in `frozen`, in the compute dtype, laid out as `param` is.
 *
 * Offload: master weights, moments and gradients of shard elements from `cut` on lie in host memory, and
 * sharded parameters all in one tier or the other. Where a master and its parameter are of one tier
 * and one dtype they are the same bytes; else the update publishes (offload.h). */
#ifndef SHL_SHARED_STATE_H
#define SHL_SHARED_STATE_H

#include "engines/engine.h"
#include "engines/shared/layout.h"

/* One array over a space of the layout; no bytes when the space is empty. */
typedef struct shl_store {
    shl_buf buf; /* elements [0, cut), device memory */
    shl_buf far; /* elements from cut on, host memory */
    int64_t cut;
    shl_dtype dtype;
    shl_space space;
    bool full; /* all flats whole, else this rank's pieces */
} shl_store;

typedef struct shl_state {
    shl_engine *engine;         /* borrowed */
    shl_layout *layout;         /* owned */
    int piece;                  /* this rank's piece */
    shl_fragment *frags;        /* what this rank owns */
    int n_frags, n_train_frags; /* the trainable ones come first */
    int64_t cut;                /* fragments lie on one side of it */
    bool apart, far_apart;      /* before the cut, from it on: `master` is there */
    shl_store param, frozen, master, grad, m, v;
    shl_buf scratch;    /* norm: u32 max, i128 sum; tag work */
    bool has_m, has_v;  /* of the optimizer; the other stores are empty */
    shl_buf lamb_norms; /* lamb.c; tag work */
    double *lamb_ratio; /* by parameter */
    shl_buf rounded[2]; /* while parameters are published; tag staging */
} shl_state;

typedef struct shl_state_spec {
    int piece;
    bool param_full, grad_full;
    bool cast_gather; /* sharded parameters stay in the master dtype; gathers cast them */
} shl_state_spec;

/* Takes over *layout (nulled), allocates and fills the stores: parameters by their initial values,
 * rounded to nearest even in 16 bits, moments zero. On failure what was taken stays in *st for
 * shl_state_fini. Local; compute stream. */
shl_code shl_state_init(shl_state *st, shl_engine *e, shl_layout **layout,
                        const shl_state_spec *spec) SHL_MUST_USE;
void shl_state_fini(shl_state *st);

/* Fills the whole copy at param->data (compute dtype) with the parameter's initial values. Local; compute
 * stream. */
shl_code shl_state_init_whole(shl_state *st, int param) SHL_MUST_USE;

/* The space of a parameter under the engine's configuration: that of its own flag, but frozen for
 * all in an engine without optimizer. */
shl_space shl_state_space(const shl_engine_config *c, const shl_param *p);

/* Parameters (indices, all of the model's), those of the trainable space first, each space in the order
 * that it had. */
void shl_state_sort_spaces(const shl_engine_config *c, const shl_model *model, int *order);

/* The store that parameters of a flat are read from, and the one that decides a fragment's values. */
const shl_store *shl_state_params_of(const shl_state *st, int flat);
const shl_store *shl_state_master_of(const shl_state *st, const shl_fragment *f);

/* Address of an element of this rank's shards. */
void *shl_store_at(const shl_store *store, int64_t at);
/* Whether the store holds sharded elements in host memory only. */
bool shl_store_is_far(const shl_store *store);
/* Whether anything of the optimizer or the parameters is in host memory. */
bool shl_state_offloads(const shl_state *st);

/* Address of a flat's whole copy (full stores), of this rank's piece of a flat, of a fragment. */
void *shl_state_full(const shl_state *st, const shl_store *store, int flat);
void *shl_state_piece(const shl_state *st, const shl_store *store, int flat);
shl_tensor shl_state_fragment(const shl_state *st, const shl_store *store, const shl_fragment *f);

/* Points param->data of every parameter into the full stores. */
void shl_state_bind_params(const shl_state *st);

/* After the values of the master weights were written from outside: publishes them, and
 * all-gathers every flat of full stores in place. COLLECTIVE over the shard group; returns when the
 * compute stream may read. */
shl_code shl_state_refresh(shl_state *st) SHL_MUST_USE;

/* All-gathers flat f of a full store in place, from each rank's piece, on the comm stream behind the
 * compute issued so far; *done passes when it is complete. COLLECTIVE over the shard group. */
shl_code shl_state_gather_flat(shl_state *st, int flat, shl_event *done) SHL_MUST_USE;

/* The encode half of the wire codec of a sharded flat: what this rank sends for the gather into
 * `whole` (compute dtype): its piece as it lies, or its piece in its place in `whole`: cast, with
 * cast_gather, on the compute stream, or fetched from host memory on the stream of that direction. */
shl_code shl_state_encode(const shl_state *st, int flat, void *whole,
                          shl_comm_seg *seg) SHL_MUST_USE;

/* Visits "param", and of the moments that there are "opt/m", "opt/v", of each fragment (shl_engine_visit_state); a parameter's values are
 * its master's; frozen ones have no moments. */
shl_code shl_state_visit(shl_state *st, shl_state_visitor v, void *ctx) SHL_MUST_USE;

/* This rank's part of shl_engine_param_hash: fragments of replica 0 only. */
shl_code shl_state_param_hash(shl_state *st, uint64_t *sum) SHL_MUST_USE;

/* Bytes of all stores beyond the tensors' own elements (whole stores) or beyond this rank's
 * fragments (sharded ones). */
size_t shl_state_padding_bytes(const shl_state *st);

#endif

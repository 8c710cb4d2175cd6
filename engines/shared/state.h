/* engines/shared: the stores of a rank: parameters (whole or sharded), gradients (whole or sharded)
 * and AdamW moments (always sharded), addressed by layout fragments; initial values, state visits,
 * the parameter fingerprint. Floor 3. */
#ifndef SHL_SHARED_STATE_H
#define SHL_SHARED_STATE_H

#include "engines/engine.h"
#include "engines/shared/layout.h"

typedef struct shl_state {
    shl_engine *engine; /* borrowed */
    shl_layout *layout; /* owned */
    int piece;          /* this rank's piece */
    bool param_full;    /* the param store holds all flats whole, else this rank's pieces */
    bool grad_full;
    shl_fragment *frags; /* what this rank owns */
    int n_frags;
    shl_buf param, grad, m, v;
    shl_buf scratch; /* norm: u32 max, i128 sum; tag work */
} shl_state;

/* Takes over *layout (nulled), allocates and fills the stores: parameters by their initial values,
 * moments zero. grad_store false: no gradient store (an engine that has none). On failure what was
 * taken stays in *st for shl_state_fini. Local; compute stream. */
shl_code shl_state_init(shl_state *st, shl_engine *e, shl_layout **layout, int piece,
                        bool param_full, bool grad_full) SHL_MUST_USE;
void shl_state_fini(shl_state *st);

/* Address of a flat's whole copy (full stores), of this rank's piece of a flat, of a fragment. */
void *shl_state_full(const shl_state *st, const shl_buf *store, int flat);
void *shl_state_piece(const shl_state *st, const shl_buf *store, bool full, int flat);
shl_tensor shl_state_fragment(const shl_state *st, const shl_buf *store, bool full,
                              const shl_fragment *f);

/* Points param->data of every parameter into the full store. */
void shl_state_bind_params(const shl_state *st);

/* All-gathers every flat of a full param store in place, from each rank's piece. COLLECTIVE over the
 * shard group; returns when the compute stream may read. No-op without a shard group. */
shl_code shl_state_gather_params(shl_state *st) SHL_MUST_USE;

/* Visits "param", "opt/m", "opt/v" of each fragment (shl_engine_visit_state). */
shl_code shl_state_visit(shl_state *st, shl_state_visitor v, void *ctx) SHL_MUST_USE;

/* This rank's part of shl_engine_param_hash: fragments of replica 0 only. */
shl_code shl_state_param_hash(shl_state *st, uint64_t *sum) SHL_MUST_USE;

/* Bytes of param, grad, m and v beyond the tensors' own elements (whole stores) or beyond this
 * rank's fragments (sharded ones). */
size_t shl_state_padding_bytes(const shl_state *st);

/* Segment of a flat for a gather (piece -> whole) and for a reduction (whole -> piece). */
shl_comm_seg shl_state_gather_seg(const shl_state *st, int flat, void *whole);

#endif

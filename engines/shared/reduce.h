/* engines/shared: reduce groups: flats whose gradients are reduced by one coalesced collective when the
 * last of them is final. Gradients are written in place into a whole store, or into a bucket (tag
 * bucket) that lives from its first gradient until it is reduced. Exactly one bucket is outstanding
 * behind the one being filled: the next launch waits for it, folds it and frees it. Where the store is in
 * host memory, this rank's pieces are copied there behind their reduction. */
#ifndef SHL_SHARED_REDUCE_H
#define SHL_SHARED_REDUCE_H

#include "engines/shared/state.h"

/* Where backward writes and what is reduced when:
 * IN_PLACE: into the whole gradient store, reduced there at the last micro-step (ddp, zero1);
 * CAST: the same, through a bucket of the dtype of reductions;
 * BUCKET: into a fresh bucket at every micro-step, reduced, then added to the gradient store;
 * HOLD: into a bucket kept over the micro-steps, reduced at the last one (fsdp no_sync). */
typedef enum shl_reduce_mode {
    SHL_REDUCE_IN_PLACE = 0,
    SHL_REDUCE_CAST,
    SHL_REDUCE_BUCKET,
    SHL_REDUCE_HOLD
} shl_reduce_mode;

typedef struct shl_reduce_group {
    int first_flat, n_flats; /* consecutive flats of the layout */
    int first_slot, n_slots; /* the tensors in them */
    int64_t begin, end;      /* elements of its only flat, when it is a part of that */
    bool part;
    int n_uses;        /* gradient writes of one backward */
    int64_t elems;     /* of the bucket */
    const char *owner; /* borrowed */
    int uses_left;
    shl_buf bucket;
    shl_event done;
    shl_buf sent; /* host memory: pieces that are added to the store there */
    shl_event moved;
} shl_reduce_group;

typedef struct shl_reducer {
    shl_state *st; /* borrowed */
    shl_reduce_mode mode;
    shl_dtype dtype; /* of gradients on their way: that of the store in place, else of reduction */
    shl_reduce_group *groups; /* owned, in the order in which backward finishes them */
    int n_groups;
    int *group_of_slot; /* owned */
    int flying;         /* group launched and not yet folded, or -1 */
    bool first, last;   /* micro-step of the step */
    shl_comm_seg *segs; /* owned: room for the largest group */
} shl_reducer;

/* Groups of the trainable flats: consecutive ones while their elements stay within bucket_elems (0: one flat
 * each). With a single cut a group is the part of the one flat that holds consecutive tensors within
 * bucket_elems, whatever ranks own it, and each of these gets its range. */
shl_code shl_reducer_init(shl_reducer *r, shl_state *st, shl_reduce_mode mode,
                          int64_t bucket_elems) SHL_MUST_USE;
void shl_reducer_fini(shl_reducer *r);

/* Before a backward. */
void shl_reducer_begin(shl_reducer *r, bool first, bool last);

/* Makes room for the gradients of module m's own trainable parameters (param->grad, grad_dtype,
 * grad_accumulate). */
shl_code shl_reducer_prepare(shl_reducer *r, const shl_module *m) SHL_MUST_USE;

/* One use of p (frozen: ignored) has been added to its gradient; launches the group's reduction after the last one.
 * COLLECTIVE over shard and replicate groups. */
shl_code shl_reducer_ready(shl_reducer *r, const shl_param *p) SHL_MUST_USE;

/* Waits for everything launched; the gradient store is then complete. */
shl_code shl_reducer_flush(shl_reducer *r) SHL_MUST_USE;

#endif

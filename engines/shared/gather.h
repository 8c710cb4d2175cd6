/* engines/shared: gather groups: flats whose parameters are gathered by one coalesced all-gather
 * into a temporary slot (tag gather), used by some modules and then freed. A phase (forward or
 * backward) walks a fixed sequence of groups; the next ones are issued ahead, by number or by elements
 * (shl_gather_policy). Resident groups (tag param) stay, and are gathered again after each update. */
#ifndef SHL_SHARED_GATHER_H
#define SHL_SHARED_GATHER_H

#include "engines/shared/state.h"

/* What is issued ahead of its use, and in how many calls. by_elems: as DeepSpeed's stage 3: while the
 * elements that are ahead are fewer than ahead_elems and those that are gathered or on their way fewer
 * than live_elems, all of them in one call. Else: ahead_groups of them, a call each. */
typedef struct shl_gather_policy {
    bool by_elems;
    int ahead_groups;
    int64_t ahead_elems, live_elems;
    bool per_tensor; /* a call for each tensor */
} shl_gather_policy;

typedef struct shl_gather_group {
    /* Fixed by the plan. */
    int *flats; /* owned */
    int n_flats;
    int64_t elems; /* of the tensors, without padding */
    bool resident;
    int n_uses[2];     /* modules that use it in forward, in backward */
    bool keep;         /* after forward, until its backward (root unit, SHARD_GRAD_OP) */
    const char *owner; /* path for the ledger; borrowed from the model */
    /* Of the moment. */
    enum { SHL_GATHER_NONE = 0, SHL_GATHER_FLYING, SHL_GATHER_READY } at;
    int uses_left;
    bool ahead; /* issued and not used yet */
    shl_buf slot;
    shl_event done;
} shl_gather_group;

typedef struct shl_gatherer {
    shl_state *st; /* borrowed */
    shl_gather_policy policy;
    shl_gather_group *groups; /* owned */
    int n_groups;
    int64_t live_elems, ahead_elems; /* gathered or on their way; of these, not used yet */
    shl_comm_seg *segs;              /* owned: room for all flats */
    int *batch;                      /* owned: room for all groups */
    int *sequence[2]; /* owned: groups in order of first use in forward, in backward */
    int length[2];    /* a group that nothing in backward uses is not in its sequence */
    int *position[2]; /* owned: place of a group in forward / backward */
    bool in_backward;
} shl_gatherer;

/* Allocates n_groups empty groups and two empty sequences for the caller to fill; policy: one group at a
 * time, the configuration's `prefetch` ahead. */
shl_code shl_gatherer_init(shl_gatherer *g, shl_state *st, int n_groups) SHL_MUST_USE;
/* Drops slots (in-flight gathers were drained) and frees. */
void shl_gatherer_fini(shl_gatherer *g);

/* Room for the resident groups, filled with the initial values. Local. */
shl_code shl_gatherer_open_resident(shl_gatherer *g) SHL_MUST_USE;

/* Gathers the resident groups again, one call a tensor, after the shards changed; frozen tensors only when
 * `all`. Returns when the compute stream may read. COLLECTIVE over the shard group. */
shl_code shl_gatherer_refresh_resident(shl_gatherer *g, bool all) SHL_MUST_USE;

/* Starts forward or backward: every group has all its uses ahead. */
void shl_gatherer_begin(shl_gatherer *g, bool backward);

/* Adds the group to a sequence unless it is there. */
void shl_gatherer_expect(shl_gatherer *g, bool backward, int group);

/* The group's parameters are there when it returns (param->data set): issues its gather unless it is
 * there or under way, issues the next ones, waits for its own. `module` is told to the listener. COLLECTIVE over the shard group. */
shl_code shl_gatherer_acquire(shl_gatherer *g, int group, const char *module) SHL_MUST_USE;

/* One use is over; after the last one of the phase the slot is freed, unless it is kept for
 * backward. Local. */
void shl_gatherer_release(shl_gatherer *g, int group);

/* After a forward that no backward follows: frees the slots that were kept for it. Local. */
void shl_gatherer_drop_kept(shl_gatherer *g);

#endif

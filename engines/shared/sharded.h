/* engines/shared: engines whose parameters live in pieces: gather before use, free after, reduce-scatter
 * gradients. ZeRO-3 and FSDP are this code under different plans: what a flat is, which flats are
 * gathered together, around which modules, and what is kept between forward and backward. */
#ifndef SHL_SHARED_SHARDED_H
#define SHL_SHARED_SHARDED_H

#include "engines/shared/gather.h"
#include "engines/shared/reduce.h"

/* A plan over a model, made by an engine. Arrays owned by the plan. */
typedef struct shl_shard_plan {
    shl_layout_item *items; /* flats in the order in which backward finishes them */
    int n_items;
    shl_layout_split split;
    int n_groups;
    int *group_of_flat;       /* gather group of each flat; groups numbered in order of first use in
                                forward */
    bool cast_gather;         /* shards stay in the master dtype, gathers cast them */
    bool *keep;               /* of each group */
    bool *resident;           /* of each group: stays whole on every rank; flats of one tensor */
    shl_gather_policy policy; /* with by_elems: instead of the configuration's `prefetch` */
    const char **owner;       /* of each group, for the ledger; borrowed from the model */
    int *users;               /* (module id, group) pairs in forward order: 2 * n_users */
    int n_users;
    int64_t reduce_bucket_elems; /* 0: one reduction per flat */
    shl_reduce_mode reduce_mode;
    const char *layout_name;
    int root_group; /* kept between forward and backward, for the record; -1 none */
} shl_shard_plan;

/* Allocates items (room for n_params), group_of_flat, keep (room for max_groups) and users (room for
 * max_users pairs). */
shl_code shl_shard_plan_init(shl_shard_plan *p, int n_params, int max_groups,
                             int max_users) SHL_MUST_USE;
void shl_shard_plan_fini(shl_shard_plan *p);
void shl_shard_plan_add_user(shl_shard_plan *p, int module_id, int group);

typedef struct shl_sharded {
    shl_state state;
    shl_gatherer gatherer;
    shl_reducer reducer;
    int *first_user; /* owned: [n_modules + 1] ranges into users, sorted by module */
    int *user_group; /* owned */
    const char *layout_name;
    int root_group;
} shl_sharded;

/* Fills an engine's slots from a plan (which it reads only). e->impl becomes the shl_sharded. */
shl_code shl_sharded_attach(shl_engine *e, const shl_shard_plan *plan) SHL_MUST_USE;

/* Slots of shl_engine_ops, shared as they are. */
void shl_sharded_detach(shl_engine *e);
shl_code shl_sharded_begin_micro(shl_engine *e, bool first, bool last) SHL_MUST_USE;
shl_code shl_sharded_begin_backward(shl_engine *e) SHL_MUST_USE;
shl_code shl_sharded_end_micro(shl_engine *e) SHL_MUST_USE;
void shl_sharded_end_eval(shl_engine *e);
shl_code shl_sharded_end_step(shl_engine *e, shl_step_report *r) SHL_MUST_USE;
shl_code shl_sharded_visit(shl_engine *e, shl_visit_mode mode, shl_state_visitor v,
                           void *ctx) SHL_MUST_USE;
void shl_sharded_info(const shl_engine *e, shl_engine_info *out);
shl_code shl_sharded_param_hash(shl_engine *e, uint64_t *sum) SHL_MUST_USE;
extern const shl_hooks shl_sharded_hooks;

#endif

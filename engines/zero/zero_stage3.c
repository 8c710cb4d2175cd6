/* engines/zero: stage 3: DeepSpeed's per-parameter split. A parameter is gathered at its first use in a
 * phase and released after its last, so a tied embedding stays through forward and again through
 * backward: two gathers of the model per micro-step, as DeepSpeed with no live or reuse allowance.
 * A ds_config's keys decide what stays whole, what is gathered together, ahead, or kept for backward. */
#include "engines/zero/zero.h"

#include <string.h>

#include "engines/shared/order.h"
#include "engines/zero/zero_units.h"
#include "kernels/base/heap.h"

static bool
runs(shl_strategy s)
{
    return s == SHL_ZERO3;
}

/* The units that use a parameter. */
typedef struct unit_uses {
    int first, last, n;
} unit_uses;

/* What the plan is made from. */
typedef struct planner {
    const shl_engine_config *cfg;
    const shl_model *model;
    int *unit_of;        /* of each module */
    int *group_of_param; /* -1: none yet */
    int *first_of_group; /* parameter */
    bool *persists;      /* parameters that stay whole */
    unit_uses *uses;     /* of each parameter */
} planner;

/* First fit in the order of the modules, as DeepSpeed marks them. */
static void
mark_persistent(planner *p)
{
    const shl_zero_options *z = &p->cfg->zero;
    int64_t total = 0;
    for (int i = 0; z->given && i < p->model->n_params; ++i) {
        int64_t elems = p->model->params[i]->elems;
        if (elems <= z->persistence_elems && total <= z->model_persistence_elems - elems) {
            p->persists[i] = true;
            total += elems;
        }
    }
}

static void
find_uses(planner *p)
{
    const shl_model *model = p->model;
    for (int id = 0; id < model->n_modules; ++id) {
        for (int i = 0; i < model->modules[id]->n_params; ++i) {
            unit_uses *u = &p->uses[model->modules[id]->params[i]->index];
            u->first = u->n == 0 ? p->unit_of[id] : u->first;
            u->n += u->n == 0 || u->last != p->unit_of[id];
            u->last = p->unit_of[id];
        }
    }
}

/* With more than two users first and last do not say it all: such a tensor stays alone. */
static bool
same_users(const planner *p, int a, int b)
{
    const unit_uses *x = &p->uses[a], *y = &p->uses[b];
    return a == b || (p->persists[a] == p->persists[b] && x->first == y->first &&
                      x->last == y->last && x->n == y->n && x->n <= 2);
}

/* The group of a parameter at its first use: one that this unit has begun, or the next. */
static void
join_group(planner *p, shl_shard_plan *plan, int unit, int first_group, int param)
{
    for (int g = first_group; g < plan->n_groups; ++g) {
        if (same_users(p, p->first_of_group[g], param)) {
            p->group_of_param[param] = g;
            return;
        }
    }
    p->group_of_param[param] = plan->n_groups;
    p->first_of_group[plan->n_groups] = param;
    plan->owner[plan->n_groups] = p->model->modules[unit]->path;
    plan->resident[plan->n_groups] = p->persists[param];
    plan->n_groups++;
}

static void
add_user(shl_shard_plan *plan, int first_user, int id, int group)
{
    for (int k = first_user; k < plan->n_users; ++k) {
        if (plan->users[2 * k + 1] == group) {
            return;
        }
    }
    shl_shard_plan_add_user(plan, id, group);
}

/* Gather groups, numbered in order of first use, and what each module asks for, in the order of its
 * parameters. The modules of a unit follow each other; the first asks, the last releases. */
static void
group_params(planner *p, shl_shard_plan *plan)
{
    const shl_model *model = p->model;
    int first_group = 0;
    for (int i = 0; i < model->n_params; ++i) {
        p->group_of_param[i] = -1;
    }
    for (int id = 0; id < model->n_modules; ++id) {
        int first_user = plan->n_users;
        first_group = p->unit_of[id] == id ? plan->n_groups : first_group;
        for (int i = 0; i < model->modules[id]->n_params; ++i) {
            int param = model->modules[id]->params[i]->index;
            if (p->group_of_param[param] < 0) {
                join_group(p, plan, p->unit_of[id], first_group, param);
            }
            add_user(plan, first_user, id, p->group_of_param[param]);
        }
    }
}

static shl_code
make_groups(planner *p, shl_shard_plan *plan)
{
    const shl_zero_options *z = &p->cfg->zero;
    const shl_model *model = p->model;
    SHL_TRY(shl_zero_units(p->cfg, model, p->unit_of));
    find_uses(p);
    mark_persistent(p);
    group_params(p, plan);
    if (!z->given) {
        return SHL_OK;
    }
    /* DeepSpeed prefetches one tensor at a time then. */
    plan->policy = (shl_gather_policy){
        .by_elems = true,
        .ahead_elems = z->gather_sequential && z->prefetch_elems > 1 ? 1 : z->prefetch_elems,
        .live_elems = z->max_live_elems,
        .per_tensor = z->gather_sequential};
    return shl_zero_keep_reused(p->cfg, model, plan);
}

static shl_code
open_planner(planner *p)
{
    size_t n_params = (size_t)p->model->n_params, n_modules = (size_t)p->model->n_modules;
    SHL_TRY(shl_heap_alloc(n_modules, sizeof(*p->unit_of), &p->unit_of));
    SHL_TRY(shl_heap_alloc(n_params, sizeof(*p->group_of_param), &p->group_of_param));
    SHL_TRY(shl_heap_alloc(n_params, sizeof(*p->persists), &p->persists));
    SHL_TRY(shl_heap_alloc(n_params, sizeof(*p->first_of_group), &p->first_of_group));
    return shl_heap_alloc(n_params, sizeof(*p->uses), &p->uses);
}

static void
close_planner(planner *p)
{
    shl_heap_free(&p->unit_of);
    shl_heap_free(&p->group_of_param);
    shl_heap_free(&p->persists);
    shl_heap_free(&p->first_of_group);
    shl_heap_free(&p->uses);
}

shl_code
shl_zero_plan_stage3(const shl_engine_config *cfg, const shl_model *model, shl_shard_plan *plan)
{
    planner p = {.cfg = cfg, .model = model};
    int *order = NULL;
    shl_code code;
    int max_users = 0;
    for (int id = 0; id < model->n_modules; ++id) {
        max_users += model->modules[id]->n_params;
    }
    SHL_TRY(shl_shard_plan_init(plan, model->n_params, model->n_params, max_users));
    SHL_TRY_TO(code, out, open_planner(&p));
    SHL_TRY_TO(code, out, shl_heap_alloc((size_t)model->n_params, sizeof(*order), &order));
    SHL_TRY_TO(code, out, make_groups(&p, plan));
    shl_order_backward(model, order);
    shl_state_sort_spaces(cfg, model, order);
    for (int i = 0; i < model->n_params; ++i) {
        plan->items[plan->n_items++] =
            (shl_layout_item){.param = order[i],
                              .elems = model->params[order[i]]->elems,
                              .flat = i,
                              .space = shl_state_space(cfg, model->params[order[i]])};
        plan->group_of_flat[i] = p.group_of_param[order[i]];
    }
    plan->split = SHL_SPLIT_TENSOR;
    plan->reduce_bucket_elems = cfg->bucket_elems;
    plan->reduce_mode = SHL_REDUCE_BUCKET;
    plan->layout_name = "per-parameter ceil split";
out:
    close_planner(&p);
    shl_heap_free(&order);
    return code;
}

static shl_code
attach(shl_engine *e)
{
    shl_shard_plan plan;
    shl_code code = shl_zero_plan_stage3(&e->config, e->model, &plan);
    if (code == SHL_OK) {
        code = shl_sharded_attach(e, &plan);
    }
    shl_shard_plan_fini(&plan);
    return code;
}

const shl_engine_ops shl_zero_stage3_engine = {.name = "zero-stage3",
                                               .runs = runs,
                                               .attach = attach,
                                               .detach = shl_sharded_detach,
                                               .begin_micro = shl_sharded_begin_micro,
                                               .begin_backward = shl_sharded_begin_backward,
                                               .end_micro = shl_sharded_end_micro,
                                               .end_eval = shl_sharded_end_eval,
                                               .end_step = shl_sharded_end_step,
                                               .visit_state = shl_sharded_visit,
                                               .param_hash = shl_sharded_param_hash,
                                               .info = shl_sharded_info,
                                               .hooks = &shl_sharded_hooks};

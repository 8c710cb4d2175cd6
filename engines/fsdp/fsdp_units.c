/* engines/fsdp: the wrap policy: which parameters form a unit and around which module it is gathered.
 * Reads wrap hints only, never what a module is. */
#include "engines/fsdp/fsdp.h"

#include "engines/shared/order.h"
#include "kernels/base/heap.h"

/* The wrapped ancestor of a module (or itself), NULL at the root. */
static const shl_module *
wrapped(const shl_module *m)
{
    while (m != NULL && m->wrap == SHL_WRAP_NONE) {
        m = m->parent;
    }
    return m;
}

static const shl_module *
unit_of(const shl_model *model, int param, bool first)
{
    int id = first ? shl_order_first_user(model, param) : shl_order_last_user(model, param);
    const shl_module *m = wrapped(model->modules[id]);
    return m != NULL ? m : model->root;
}

/* A tensor used from two units would have to be gathered by both: they become the root unit. */
static bool
is_tied(const shl_model *model)
{
    for (int p = 0; p < model->n_params; ++p) {
        if (unit_of(model, p, true) != unit_of(model, p, false)) {
            return true;
        }
    }
    return false;
}

/* Unit module of a parameter under the policy. */
static const shl_module *
home_of(const shl_model *model, int param, bool tied)
{
    const shl_module *m = unit_of(model, param, true);
    return tied && m->wrap != SHL_WRAP_BLOCK ? model->root : m;
}

/* Parameters of one unit and space, in order of listing, become the next flat, if there are any. */
static bool
add_flat(shl_shard_plan *plan, const shl_engine_config *cfg, const shl_model *model,
         const shl_module *unit, bool tied, const shl_layout_item *as)
{
    int first = plan->n_items;
    for (int p = 0; p < model->n_params; ++p) {
        if (home_of(model, p, tied) == unit &&
            shl_state_space(cfg, model->params[p]) == as->space) {
            plan->items[plan->n_items] = *as;
            plan->items[plan->n_items].param = p;
            plan->items[plan->n_items++].elems = model->params[p]->elems;
        }
    }
    return plan->n_items > first;
}

/* Units stand in forward order; backward finishes the root, or else the first unit, last. A unit with
 * frozen parameters has two flats, gathered together. */
static void
add_flats(shl_shard_plan *plan, const shl_engine_config *cfg, const shl_model *model,
          const shl_module **units, int n, bool tied)
{
    int flat = 0;
    for (int space = 0; space < SHL_SPACE_COUNT; ++space) {
        for (int u = n - 1; u >= 0; --u) {
            shl_layout_item as = {.flat = flat, .space = (shl_space)space};
            if (add_flat(plan, cfg, model, units[u], tied, &as)) {
                plan->group_of_flat[flat++] = u;
            }
        }
    }
}

shl_code
shl_fsdp_plan_units(const shl_engine_config *cfg, const shl_model *model, shl_shard_plan *plan)
{
    const shl_module **units = NULL;
    bool tied = is_tied(model);
    int n = 0;
    SHL_TRY(shl_shard_plan_init(plan, model->n_params, model->n_modules, model->n_modules));
    SHL_TRY(shl_heap_alloc((size_t)model->n_modules, sizeof(*units), &units));
    for (int id = 0; id < model->n_modules; ++id) {
        for (int p = 0; p < model->n_params; ++p) {
            if (home_of(model, p, tied) == model->modules[id]) {
                units[n++] = model->modules[id];
                break;
            }
        }
    }
    for (int u = 0; u < n; ++u) {
        plan->owner[u] = units[u]->path;
        shl_shard_plan_add_user(plan, units[u]->id, u);
    }
    add_flats(plan, cfg, model, units, n, tied);
    shl_heap_free(&units);
    plan->n_groups = n;
    plan->split = SHL_SPLIT_FLAT;
    /* In host memory the compute dtype lies beside the master weights, as in stage 3: half the bytes of a
     * 16-bit model cross the link, and nothing is cast on the way of a gather. */
    plan->cast_gather = cfg->offload.param == SHL_OFFLOAD_NONE;
    plan->root_group = tied ? 0 : n - 1;
    for (int u = 0; u < n; ++u) {
        plan->keep[u] = cfg->strategy == SHL_FSDP_GRAD_OP || u == plan->root_group;
    }
    plan->reduce_bucket_elems = 0;
    plan->reduce_mode =
        cfg->reduce_every == SHL_REDUCE_BOUNDARY ? SHL_REDUCE_HOLD : SHL_REDUCE_BUCKET;
    plan->layout_name = "flat unit";
    return SHL_OK;
}

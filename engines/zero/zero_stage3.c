/* engines/zero: stage 3: DeepSpeed's per-parameter split. A parameter is gathered at its first use in a
 * phase and released after its last, so a tied embedding stays through forward and again through
 * backward: two gathers of the model per micro-step, as DeepSpeed with no live or reuse allowance. */
#include "engines/zero/zero.h"

#include "engines/shared/order.h"
#include "kernels/base/heap.h"

static bool
runs(shl_strategy s)
{
    return s == SHL_ZERO3;
}

static bool
module_lists(const shl_module *m, int param)
{
    for (int i = 0; i < m->n_params; ++i) {
        if (m->params[i]->index == param) {
            return true;
        }
    }
    return false;
}

static bool
same_users(const shl_model *model, int a, int b)
{
    for (int id = shl_order_first_user(model, a); id < model->n_modules; ++id) {
        if (module_lists(model->modules[id], a) != module_lists(model->modules[id], b)) {
            return false;
        }
    }
    return shl_order_first_user(model, a) == shl_order_first_user(model, b);
}

/* Gather group of each parameter, numbered in order of first use. */
static int
group_params(const shl_model *model, shl_shard_plan *plan, int *group_of_param)
{
    int n = 0;
    for (int p = 0; p < model->n_params; ++p) {
        group_of_param[p] = -1;
    }
    for (int id = 0; id < model->n_modules; ++id) {
        const shl_module *m = model->modules[id];
        for (int i = 0; i < m->n_params; ++i) {
            int p = m->params[i]->index;
            if (group_of_param[p] >= 0) {
                continue;
            }
            plan->owner[n] = m->path;
            for (int k = i; k < m->n_params; ++k) {
                int q = m->params[k]->index;
                if (group_of_param[q] < 0 && same_users(model, p, q)) {
                    group_of_param[q] = n;
                }
            }
            n++;
        }
    }
    return n;
}

static void
add_users(const shl_model *model, shl_shard_plan *plan, const int *group_of_param)
{
    for (int id = 0; id < model->n_modules; ++id) {
        const shl_module *m = model->modules[id];
        int first = plan->n_users;
        for (int i = 0; i < m->n_params; ++i) {
            int group = group_of_param[m->params[i]->index];
            bool seen = false;
            for (int k = first; k < plan->n_users; ++k) {
                seen = seen || plan->users[2 * k + 1] == group;
            }
            if (!seen) {
                shl_shard_plan_add_user(plan, id, group);
            }
        }
    }
}

shl_code
shl_zero_plan_stage3(const shl_engine_config *cfg, const shl_model *model, shl_shard_plan *plan)
{
    int *order = NULL, *group_of_param = NULL;
    shl_code code;
    int max_users = 0;
    for (int id = 0; id < model->n_modules; ++id) {
        max_users += model->modules[id]->n_params;
    }
    SHL_TRY(shl_shard_plan_init(plan, model->n_params, model->n_params, max_users));
    SHL_TRY_TO(code, out, shl_heap_alloc((size_t)model->n_params, sizeof(*order), &order));
    SHL_TRY_TO(code, out,
               shl_heap_alloc((size_t)model->n_params, sizeof(*group_of_param), &group_of_param));
    plan->n_groups = group_params(model, plan, group_of_param);
    add_users(model, plan, group_of_param);
    shl_order_backward(model, order);
    shl_state_sort_spaces(cfg, model, order);
    for (int i = 0; i < model->n_params; ++i) {
        plan->items[plan->n_items++] =
            (shl_layout_item){.param = order[i],
                              .elems = model->params[order[i]]->elems,
                              .flat = i,
                              .space = shl_state_space(cfg, model->params[order[i]])};
        plan->group_of_flat[i] = group_of_param[order[i]];
    }
    plan->split = SHL_SPLIT_TENSOR;
    plan->reduce_bucket_elems = cfg->bucket_elems;
    plan->reduce_mode = SHL_REDUCE_BUCKET;
    plan->layout_name = "per-parameter ceil split";
out:
    shl_heap_free(&order);
    shl_heap_free(&group_of_param);
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

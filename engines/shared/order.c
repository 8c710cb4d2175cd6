/* engines/shared: the order of a training step. Modules are numbered in execution order, so their
 * ids are all that is needed. */
#include "engines/shared/order.h"

static bool
lists(const shl_module *m, int index)
{
    for (int i = 0; i < m->n_params; ++i) {
        if (m->params[i]->index == index) {
            return true;
        }
    }
    return false;
}

int
shl_order_first_user(const shl_model *model, int index)
{
    int id = 0;
    while (id < model->n_modules && !lists(model->modules[id], index)) {
        id++;
    }
    SHL_ASSERT(id < model->n_modules);
    return id;
}

int
shl_order_last_user(const shl_model *model, int index)
{
    int id = model->n_modules - 1;
    while (id >= 0 && !lists(model->modules[id], index)) {
        id--;
    }
    SHL_ASSERT(id >= 0);
    return id;
}

void
shl_order_backward(const shl_model *model, int *out)
{
    int n = 0;
    for (int id = model->n_modules - 1; id >= 0; --id) {
        const shl_module *m = model->modules[id];
        for (int i = m->n_params - 1; i >= 0; --i) {
            if (shl_order_first_user(model, m->params[i]->index) == id) {
                out[n++] = m->params[i]->index;
            }
        }
    }
    SHL_ASSERT(n == model->n_params);
}

/* engines/shared: the order of a training step, read from the module tree: which modules use a
 * parameter and in which order gradients become final. */
#ifndef SHL_SHARED_ORDER_H
#define SHL_SHARED_ORDER_H

#include "models/module.h"

/* Parameters (indices into model->params) in the order in which backward finishes them: by the
 * lowest module that uses each, from the last module to the first, listed order reversed within a
 * module. out has room for model->n_params. */
void shl_order_backward(const shl_model *model, int *out);

/* First and last module (ids) that list parameter `index`. */
int shl_order_first_user(const shl_model *model, int index);
int shl_order_last_user(const shl_model *model, int index);

#endif

/* models: building a model's tree and its list of parameters; freeing both; finding a parameter.
 * Everything hangs on the model as soon as it exists, so that a failure frees by one call. */
#include "models/mod.h"

#include <string.h>

#include "kernels/base/heap.h"
#include "kernels/base/rng.h"
#include "kernels/base/str.h"

/* GPT-2's published names carry it, the stored ones do not. */
#define NAME_PREFIX "transformer."

shl_code
shl_build_model(const char *family, shl_model **out)
{
    SHL_TRY(shl_heap_alloc(1, sizeof **out, out));
    (*out)->family = family;
    return SHL_OK;
}

static shl_code
module_fill(shl_module *m, shl_module *parent, const char *path, size_t impl_bytes)
{
    char *copy = NULL;
    SHL_TRY(shl_heap_strdup(path, &copy));
    m->path = copy;
    if (impl_bytes > 0) {
        SHL_TRY(shl_heap_alloc(1, impl_bytes, &m->impl));
    }
    if (parent != NULL) {
        size_t n = (size_t)parent->n_children;
        SHL_TRY(shl_heap_grow(&parent->children, n, n + 1, sizeof *parent->children));
        parent->children[parent->n_children++] = m;
    }
    return SHL_OK;
}

shl_code
shl_build_module(shl_model *model, shl_module *parent, const shl_module_ops *ops, const char *path,
                 shl_wrap_hint wrap, size_t impl_bytes, shl_module **out)
{
    size_t n = (size_t)model->n_modules;
    SHL_TRY(shl_heap_grow(&model->modules, n, n + 1, sizeof *model->modules));
    shl_module *m = NULL;
    SHL_TRY(shl_heap_alloc(1, sizeof *m, &m));
    model->modules[model->n_modules++] = m;
    m->ops = ops;
    m->id = (int)n;
    m->depth = parent != NULL ? parent->depth + 1 : 0;
    m->wrap = wrap;
    m->parent = parent;
    m->in_backward = true;
    if (parent == NULL) {
        model->root = m;
    }
    SHL_TRY(module_fill(m, parent, path, impl_bytes));
    *out = m;
    return SHL_OK;
}

static shl_code
param_fill(shl_param *p, const char *stem, const char *suffix, const shl_param_spec *spec)
{
    char name[128];
    shl_strf(name, sizeof name, "%s.%s", stem, suffix);
    char *copy = NULL;
    SHL_TRY(shl_heap_strdup(name, &copy));
    p->name = copy;
    p->n_dims = spec->cols > 0 ? 2 : 1;
    p->dims[0] = spec->rows;
    p->dims[1] = spec->cols;
    p->elems = spec->cols > 0 ? spec->rows * spec->cols : spec->rows;
    p->full_rows = spec->rows;
    p->dtype = SHL_F32;
    p->trainable = true;
    p->decay = p->n_dims >= 2;
    p->init_kind = spec->std > 0.0 ? SHL_INIT_NORMAL : SHL_INIT_CONST;
    p->init_value = spec->value;
    p->init_std = spec->std;
    p->init_stream = shl_rng_stream(name);
    return SHL_OK;
}

shl_code
shl_build_param(shl_model *model, shl_module *m, const char *stem, const char *suffix,
                const shl_param_spec *spec)
{
    size_t n = (size_t)model->n_params;
    SHL_TRY(shl_heap_grow(&model->params, n, n + 1, sizeof *model->params));
    shl_param *p = NULL;
    SHL_TRY(shl_heap_alloc(1, sizeof *p, &p));
    model->params[model->n_params++] = p;
    p->index = (int)n;
    SHL_TRY(param_fill(p, stem, suffix, spec));
    model->n_elems += p->elems;
    return shl_build_use(m, p);
}

shl_code
shl_build_use(shl_module *m, shl_param *p)
{
    size_t n = (size_t)m->n_params;
    SHL_TRY(shl_heap_grow(&m->params, n, n + 1, sizeof *m->params));
    m->params[m->n_params++] = p;
    p->n_uses++;
    return SHL_OK;
}

void
shl_build_number_params(shl_model *model)
{
    int n = 0;
    for (int i = 0; i < model->n_params; i++) {
        model->params[i]->index = -1;
    }
    for (int id = 0; id < model->n_modules; id++) {
        const shl_module *m = model->modules[id];
        for (int i = 0; i < m->n_params; i++) {
            if (m->params[i]->index < 0) {
                m->params[i]->index = n;
                model->params[n++] = m->params[i];
            }
        }
    }
    SHL_ASSERT(n == model->n_params);
}

void
shl_model_set_dtype(shl_model *m, shl_dtype dtype)
{
    for (int i = 0; i < m->n_modules; i++) {
        m->modules[i]->dtype = dtype;
    }
    for (int i = 0; i < m->n_params; i++) {
        m->params[i]->dtype = dtype;
    }
}

void
shl_model_free(shl_model **m)
{
    if (m == NULL || *m == NULL) {
        return;
    }
    for (int i = 0; i < (*m)->n_modules; i++) {
        shl_module *child = (*m)->modules[i];
        shl_heap_free(&child->path);
        shl_heap_free(&child->children);
        shl_heap_free(&child->params);
        shl_heap_free(&child->impl);
        shl_heap_free(&(*m)->modules[i]);
    }
    for (int i = 0; i < (*m)->n_params; i++) {
        shl_heap_free(&(*m)->params[i]->name);
        shl_heap_free(&(*m)->params[i]);
    }
    shl_heap_free(&(*m)->modules);
    shl_heap_free(&(*m)->params);
    shl_heap_free(m);
}

shl_param *
shl_model_param(const shl_model *m, const char *name)
{
    size_t prefix = strlen(NAME_PREFIX);
    if (strncmp(name, NAME_PREFIX, prefix) == 0) {
        name += prefix;
    }
    for (int i = 0; i < m->n_params; i++) {
        if (strcmp(m->params[i]->name, name) == 0) {
            return m->params[i];
        }
    }
    return NULL;
}

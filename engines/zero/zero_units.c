/* engines/zero: stage 3's units: modules whose whole subtree is gathered at once, as DeepSpeed's leaf
 * modules and its granularity threshold ask, and how far away the next use of a parameter is. */
#include "engines/zero/zero_units.h"

#include <string.h>

#include "kernels/base/heap.h"
#include "models/hf_classes.h"

/* As DeepSpeed: a module above this is never one unit. */
#define MAX_UNIT_ELEMS INT64_C(1000000000)

/* Paths in a file may carry the root's name in Hugging Face's classes. */
static const char *
without_root(const char *name)
{
    return strncmp(name, "transformer.", 12) == 0 ? name + 12 : name;
}

/* Entry `i` of a list with commas; false: there is none. */
static bool
entry(const char *list, int i, char *out, size_t bytes)
{
    for (; i > 0 && list != NULL; --i) {
        list = strchr(list, ',');
        list = list != NULL ? list + 1 : NULL;
    }
    if (list == NULL || list[0] == '\0') {
        return false;
    }
    size_t n = strcspn(list, ",");
    n = n < bytes ? n : bytes - 1;
    memcpy(out, list, n);
    out[n] = '\0';
    return true;
}

/* Length of the first part of a path, up to one of its dots, that an entry means: the path of a module or
 * of what Hugging Face's classes put between a block and its layers ("h.0.mlp"); 0: none. */
static size_t
matching_part(const char *path, const char *name, bool suffix)
{
    size_t n = strlen(name);
    for (size_t end = strcspn(path, "."); end > 0; end += 1 + strcspn(path + end + 1, ".")) {
        bool fits = suffix ? n <= end : n == end;
        if (fits && strncmp(path + end - n, name, n) == 0) {
            return end;
        }
        if (path[end] == '\0') {
            return 0;
        }
    }
    return 0;
}

/* part[id] becomes the least part of each module's path that the list means. Every entry finds one. */
static shl_code
mark_listed(const shl_model *model, const char *list, bool suffix, size_t *part)
{
    char name[SHL_ZERO_LEAF_BYTES];
    for (int i = 0; entry(list, i, name, sizeof(name)); ++i) {
        bool found = false;
        for (int id = 0; id < model->n_modules; ++id) {
            const char *path = model->modules[id]->path;
            size_t end = matching_part(path, suffix ? name : without_root(name), suffix);
            found = found || end > 0;
            part[id] = end > 0 && (part[id] == 0 || end < part[id]) ? end : part[id];
        }
        if (!found) {
            (void)SHL_RAISE(SHL_E_USAGE, "leaf module \"%.100s\" is not in the model", name);
            return shl_err_because("no module's path %s it; \"%s\" is one",
                                   suffix ? "ends with" : "is",
                                   model->modules[model->n_modules - 1]->path);
        }
    }
    return SHL_OK;
}

/* The same for classes. */
static shl_code
mark_classes(const shl_model *model, const char *list, size_t *part)
{
    char name[SHL_ZERO_LEAF_BYTES];
    for (int i = 0; entry(list, i, name, sizeof(name)); ++i) {
        const char *pattern = NULL;
        SHL_TRY(shl_hf_class_find(model, name, &pattern));
        for (int id = 0; id < model->n_modules; ++id) {
            size_t end = shl_hf_class_part(pattern, model->modules[id]->path);
            part[id] = end > 0 && (part[id] == 0 || end < part[id]) ? end : part[id];
        }
    }
    return SHL_OK;
}

/* Modules with parameters under m, itself included, and their elements (shared ones at each user). */
static void
measure(const shl_module *m, int64_t *layers, int64_t *elems)
{
    int64_t under = 0, inner_layers = 0;
    for (int i = 0; i < m->n_params; ++i) {
        under += m->params[i]->elems;
    }
    for (int i = 0; i < m->n_children; ++i) {
        measure(m->children[i], &inner_layers, &under);
    }
    *layers += inner_layers + (under > 0);
    *elems += under;
}

static void
mark_unit(const shl_module *m, int unit, int *unit_of)
{
    unit_of[m->id] = unit;
    for (int i = 0; i < m->n_children; ++i) {
        mark_unit(m->children[i], unit, unit_of);
    }
}

/* The highest modules whose elements per module are within the threshold, unless a list has them. */
static void
mark_fine(const shl_module *m, int64_t threshold, const size_t *part, int *unit_of)
{
    int64_t layers = 0, elems = 0;
    measure(m, &layers, &elems);
    bool fine = elems > 0 && elems <= MAX_UNIT_ELEMS && elems / layers <= threshold;
    if (part[m->id] > 0 || m->n_children == 0) {
        return;
    }
    if (fine) {
        mark_unit(m, m->id, unit_of);
        return;
    }
    for (int i = 0; i < m->n_children; ++i) {
        mark_fine(m->children[i], threshold, part, unit_of);
    }
}

/* Modules that share a part follow each other: ids are in the order of the paths' tree. */
static void
join_parts(const shl_model *model, const size_t *part, int *unit_of)
{
    for (int id = 0; id < model->n_modules; ++id) {
        bool joins = id > 0 && part[id] > 0 && part[id] == part[id - 1] &&
                     strncmp(model->modules[id]->path, model->modules[id - 1]->path, part[id]) == 0;
        unit_of[id] = joins ? unit_of[id - 1] : id;
    }
}

shl_code
shl_zero_units(const shl_engine_config *cfg, const shl_model *model, int *unit_of)
{
    const shl_zero_options *z = &cfg->zero;
    size_t *part = NULL;
    shl_code code;
    SHL_TRY_TO(code, out, shl_heap_alloc((size_t)model->n_modules, sizeof(*part), &part));
    if (z->given) {
        SHL_TRY_TO(code, out, mark_listed(model, z->leaf_names, false, part));
        SHL_TRY_TO(code, out, mark_listed(model, z->leaf_suffixes, true, part));
        SHL_TRY_TO(code, out, mark_classes(model, z->leaf_classes, part));
    }
    join_parts(model, part, unit_of);
    if (z->given && z->granularity_elems > 0) {
        mark_fine(model->root, z->granularity_elems, part, unit_of);
    }
out:
    shl_heap_free(&part);
    return code;
}

/* The order in which hooks ask for modules: forward, then backward (with recomputation). */
typedef struct trace {
    int *modules;
    int n;
} trace;

static void
trace_forward(trace *t, const shl_module *m)
{
    t->modules[t->n++] = m->id;
    for (int i = 0; i < m->n_children; ++i) {
        trace_forward(t, m->children[i]);
    }
}

static void
trace_backward(trace *t, const shl_module *m)
{
    if (!m->in_backward) {
        return;
    }
    t->modules[t->n++] = m->id;
    for (int i = 0; m->recompute && i < m->n_children; ++i) {
        trace_forward(t, m->children[i]);
    }
    for (int i = m->n_children - 1; i >= 0; --i) {
        trace_backward(t, m->children[i]);
    }
}

/* What is known of a trace before groups are asked about. */
typedef struct reuse {
    int64_t *before;  /* elements of the modules before each place of the trace, one more than it */
    int *first_user;  /* of each module, in the plan's users; one more than modules */
    int *last, *next; /* place of a group's last use in forward, of its first in backward, or -1 */
} reuse;

static shl_code
open_reuse(reuse *r, const trace *t, const shl_model *model, const shl_shard_plan *plan)
{
    size_t n_modules = (size_t)model->n_modules, n_groups = (size_t)plan->n_groups;
    SHL_TRY(shl_heap_alloc((size_t)t->n + 1, sizeof(*r->before), &r->before));
    SHL_TRY(shl_heap_alloc(n_modules + 1, sizeof(*r->first_user), &r->first_user));
    SHL_TRY(shl_heap_alloc(n_groups, sizeof(*r->last), &r->last));
    return shl_heap_alloc(n_groups, sizeof(*r->next), &r->next);
}

static void
close_reuse(reuse *r)
{
    shl_heap_free(&r->before);
    shl_heap_free(&r->first_user);
    shl_heap_free(&r->last);
    shl_heap_free(&r->next);
}

/* Elements before each place: those that the modules list. */
static shl_code
add_elems(reuse *r, const trace *t, const shl_model *model)
{
    int64_t *elems = NULL;
    SHL_TRY(shl_heap_alloc((size_t)model->n_modules, sizeof(*elems), &elems));
    for (int id = 0; id < model->n_modules; ++id) {
        for (int i = 0; i < model->modules[id]->n_params; ++i) {
            elems[id] += model->modules[id]->params[i]->elems;
        }
    }
    for (int i = 0; i < t->n; ++i) {
        r->before[i + 1] = r->before[i] + elems[t->modules[i]];
    }
    shl_heap_free(&elems);
    return SHL_OK;
}

static void
find_uses(reuse *r, const trace *t, int n_forward, int n_modules, const shl_shard_plan *plan)
{
    for (int id = 0, k = 0; id <= n_modules; ++id) {
        while (k < plan->n_users && plan->users[2 * k] < id) {
            k++;
        }
        r->first_user[id] = k;
    }
    for (int g = 0; g < plan->n_groups; ++g) {
        r->last[g] = r->next[g] = -1;
    }
    for (int i = 0; i < t->n; ++i) {
        int id = t->modules[i];
        for (int k = r->first_user[id]; k < r->first_user[id + 1]; ++k) {
            int g = plan->users[2 * k + 1];
            r->last[g] = i < n_forward ? i : r->last[g];
            r->next[g] = i >= n_forward && r->next[g] < 0 ? i : r->next[g];
        }
    }
}

shl_code
shl_zero_keep_reused(const shl_engine_config *cfg, const shl_model *model, shl_shard_plan *plan)
{
    trace t = {0};
    reuse r = {0};
    shl_code code;
    int n_forward = 0;
    SHL_TRY(shl_heap_alloc(3 * (size_t)model->n_modules, sizeof(*t.modules), &t.modules));
    trace_forward(&t, model->root);
    n_forward = t.n;
    trace_backward(&t, model->root);
    SHL_TRY_TO(code, out, open_reuse(&r, &t, model, plan));
    SHL_TRY_TO(code, out, add_elems(&r, &t, model));
    find_uses(&r, &t, n_forward, model->n_modules, plan);
    for (int g = 0; g < plan->n_groups; ++g) {
        int64_t distance = r.next[g] >= 0 ? r.before[r.next[g]] - r.before[r.last[g] + 1] : 0;
        plan->keep[g] = r.next[g] >= 0 && distance < cfg->zero.max_reuse_elems;
    }
out:
    close_reuse(&r);
    shl_heap_free(&t.modules);
    return code;
}

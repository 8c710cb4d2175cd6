/* models: settings of training applied to a built model: recomputation, frozen parameters, adapters,
 * dropout. Reads wrap hints and optional slots of modules, never what a family is. */
#include "models/tune.h"

#include <math.h>
#include <string.h>

#include "kernels/base/heap.h"
#include "kernels/base/rng.h"
#include "kernels/base/str.h"
#include "models/mod.h"

static const char *const recompute_names[] = {"none", "selective", "full"};
_Static_assert(SHL_ARRAY_LEN(recompute_names) == SHL_RECOMPUTE_COUNT, "a name for each");

const char *
shl_recompute_name(shl_recompute r)
{
    return recompute_names[r];
}

shl_code
shl_recompute_parse(const char *text, shl_recompute *out)
{
    for (int i = 0; i < SHL_RECOMPUTE_COUNT; i++) {
        if (strcmp(text, recompute_names[i]) == 0) {
            *out = (shl_recompute)i;
            return SHL_OK;
        }
    }
    const char *near = shl_nearest(text, recompute_names, SHL_ARRAY_LEN(recompute_names));
    SHL_RAISE(SHL_E_USAGE, "recompute: unknown \"%s\"", text);
    shl_err_because("it is one of: none, selective, full");
    return near != NULL ? shl_err_advice("\"%s\"", near) : SHL_E_USAGE;
}

/* ---- lists ---- */

/* The next name of a comma-separated list, blanks around it dropped; false at its end. */
static bool
next_item(const char **at, char *item, size_t bytes)
{
    while (**at == ',' || **at == ' ') {
        (*at)++;
    }
    size_t n = strcspn(*at, ",");
    const char *from = *at;
    *at += n;
    while (n > 0 && from[n - 1] == ' ') {
        n--;
    }
    shl_strf(item, bytes, "%.*s", (int)n, from);
    return n > 0;
}

/* A pattern against a name or its beginning up to a dot. */
static bool
matches(const char *pattern, const char *name)
{
    const char *star = NULL, *again = NULL;
    while (*name != '\0') {
        if (*pattern == '*') {
            star = pattern++;
            again = name;
        } else if (*pattern == *name) {
            pattern++;
            name++;
        } else if (*pattern == '\0' && *name == '.') {
            return true;
        } else if (star != NULL) {
            pattern = star + 1;
            name = ++again;
        } else {
            return false;
        }
    }
    while (*pattern == '*') {
        pattern++;
    }
    return *pattern == '\0';
}

/* Whether `target` is the path or what follows a dot in it. */
static bool
ends_path(const char *path, const char *target)
{
    size_t n = strlen(path), k = strlen(target);
    return k <= n && strcmp(path + n - k, target) == 0 && (k == n || path[n - k - 1] == '.');
}

static const char *
last_part(const char *path)
{
    const char *dot = strrchr(path, '.');
    return dot != NULL ? dot + 1 : path;
}

/* ---- checks ---- */

static shl_code
check_share(const char *what, double p)
{
    if (p >= 0.0 && p < 1.0) {
        return SHL_OK;
    }
    SHL_RAISE(SHL_E_USAGE, "%s is %g", what, p);
    return shl_err_because("the share of dropped elements lies from 0 to below 1");
}

static int64_t
count_blocks(const shl_model *model)
{
    int64_t n = 0;
    for (int i = 0; i < model->n_modules; i++) {
        n += model->modules[i]->wrap == SHL_WRAP_BLOCK;
    }
    return n;
}

static shl_code
check_blocks(const char *what, int64_t value, int64_t blocks)
{
    if (value >= 0 && value <= blocks) {
        return SHL_OK;
    }
    SHL_RAISE(SHL_E_USAGE, "%s is %lld", what, (long long)value);
    return shl_err_because("the model has %lld blocks", (long long)blocks);
}

static shl_code
check_lora(const shl_tune_config *c)
{
    if (c->lora_rank < 0 || c->lora_rank > INT32_MAX) {
        SHL_RAISE(SHL_E_USAGE, "the LoRA rank is %lld", (long long)c->lora_rank);
        return shl_err_because("it lies from 1, or is 0 for no adapters");
    }
    if (c->lora_rank == 0 && (c->lora_alpha != 0.0 || c->lora_targets[0] != '\0' || c->lora_base)) {
        SHL_RAISE(SHL_E_USAGE, "LoRA settings without a rank");
        shl_err_because("rank 0 means no adapters");
        return shl_err_advice("a rank, say 8");
    }
    if (!isfinite(c->lora_alpha) || c->lora_alpha < 0.0) {
        return SHL_RAISE(SHL_E_USAGE, "LoRA's alpha is %g, and not positive and finite",
                         c->lora_alpha);
    }
    return SHL_OK;
}

static shl_code
check(const shl_model *model, const shl_tune_config *c)
{
    int64_t blocks = count_blocks(model);
    if ((int)c->recompute < 0 || c->recompute >= SHL_RECOMPUTE_COUNT) {
        return SHL_RAISE(SHL_E_USAGE, "%d is no way to recompute", (int)c->recompute);
    }
    if (c->recompute_every != 0 && c->recompute != SHL_RECOMPUTE_FULL) {
        SHL_RAISE(SHL_E_USAGE, "recompute-every %lld with recompute %s",
                  (long long)c->recompute_every, shl_recompute_name(c->recompute));
        shl_err_because("it counts blocks that are recomputed whole");
        return shl_err_advice("recompute full");
    }
    SHL_TRY(check_blocks("recompute-every", c->recompute_every, blocks));
    SHL_TRY(check_blocks("train-last", c->train_last, blocks));
    SHL_TRY(check_share("dropout", c->dropout));
    SHL_TRY(check_share("attention dropout", c->attention_dropout));
    if (memchr(c->freeze, '\0', sizeof c->freeze) == NULL ||
        memchr(c->lora_targets, '\0', sizeof c->lora_targets) == NULL) {
        return SHL_RAISE(SHL_E_USAGE, "a list of names is longer than %d characters",
                         SHL_TUNE_TEXT - 1);
    }
    return check_lora(c);
}

/* ---- freezing ---- */

static shl_code
raise_unmatched(const shl_model *model, const char *pattern)
{
    const char **names = NULL;
    size_t n = 0;
    SHL_TRY(shl_heap_alloc((size_t)(model->n_params + model->n_modules), sizeof *names, &names));
    for (int i = 0; i < model->n_params; i++) {
        names[n++] = model->params[i]->name;
    }
    for (int i = 1; i < model->n_modules; i++) {
        names[n++] = model->modules[i]->path;
    }
    const char *near = shl_nearest(pattern, names, n);
    shl_heap_free(&names);
    SHL_RAISE(SHL_E_USAGE, "freeze: no parameter is called \"%s\"", pattern);
    shl_err_because("the first of %d names is %s, the last %s", model->n_params,
                    model->params[0]->name, model->params[model->n_params - 1]->name);
    return near != NULL ? shl_err_advice("\"%s\"", near) : SHL_E_USAGE;
}

static shl_code
freeze_pattern(shl_model *model, const char *pattern)
{
    static const char prefix[] = "transformer.";
    const char *bare = pattern;
    bool found = false;
    if (strncmp(pattern, prefix, sizeof prefix - 1) == 0) {
        bare += sizeof prefix - 1;
    }
    for (int i = 0; i < model->n_params; i++) {
        if (matches(bare, model->params[i]->name)) {
            model->params[i]->trainable = false;
            found = true;
        }
    }
    return found ? SHL_OK : raise_unmatched(model, pattern);
}

/* The first of the last k blocks; modules from it on may be trained. */
static int
first_trained(const shl_model *model, int64_t train_last)
{
    int64_t left = train_last;
    int id = model->n_modules;
    while (left > 0 && id > 0) {
        left -= model->modules[--id]->wrap == SHL_WRAP_BLOCK;
    }
    return train_last > 0 ? id : 0;
}

static void
freeze_before(shl_model *model, int first_id)
{
    for (int id = 0; id < first_id; id++) {
        for (int i = 0; i < model->modules[id]->n_params; i++) {
            model->modules[id]->params[i]->trainable = false;
        }
    }
}

static void
freeze_all(shl_model *model)
{
    for (int i = 0; i < model->n_params; i++) {
        model->params[i]->trainable = false;
    }
}

/* ---- adapters ---- */

static shl_code
raise_target(const shl_model *model, const char *target)
{
    const char **names = NULL;
    shl_str list = {0};
    size_t n = 0;
    SHL_TRY(shl_heap_alloc((size_t)model->n_modules, sizeof *names, &names));
    for (int i = 0; i < model->n_modules; i++) {
        const char *name = last_part(model->modules[i]->path);
        bool seen = model->modules[i]->ops->adapt == NULL;
        for (size_t k = 0; k < n; k++) {
            seen = seen || strcmp(names[k], name) == 0;
        }
        if (!seen) {
            shl_str_add(&list, "%s%s", n > 0 ? ", " : "", name);
            names[n++] = name;
        }
    }
    const char *near = shl_nearest(target, names, n);
    SHL_RAISE(SHL_E_USAGE, "LoRA: no linear module is called \"%s\"", target);
    shl_err_because("they are %s", shl_str_get(&list));
    shl_str_fini(&list);
    shl_heap_free(&names);
    return near != NULL ? shl_err_advice("\"%s\"", near) : shl_err_advice("\"all\"");
}

static shl_code
mark_target(const shl_model *model, const char *target, bool *wanted)
{
    bool found = false;
    for (int i = 0; i < model->n_modules; i++) {
        const shl_module *m = model->modules[i];
        if (m->ops->adapt != NULL && (strcmp(target, "all") == 0 || ends_path(m->path, target))) {
            wanted[i] = found = true;
        }
    }
    return found ? SHL_OK : raise_target(model, target);
}

static shl_code
adapt(shl_model *model, const shl_tune_config *c, int first_id, bool *wanted)
{
    const char *at = c->lora_targets[0] != '\0' ? c->lora_targets : "all";
    char target[SHL_TUNE_TEXT];
    double alpha = c->lora_alpha > 0.0 ? c->lora_alpha : (double)c->lora_rank;
    while (next_item(&at, target, sizeof target)) {
        SHL_TRY(mark_target(model, target, wanted));
    }
    for (int i = first_id; i < model->n_modules; i++) {
        if (wanted[i]) {
            shl_module *m = model->modules[i];
            SHL_TRY(m->ops->adapt(model, m, c->lora_rank, alpha));
        }
    }
    shl_build_number_params(model);
    return SHL_OK;
}

static shl_code
add_adapters(shl_model *model, const shl_tune_config *c, int first_id)
{
    bool *wanted = NULL;
    SHL_TRY(shl_heap_alloc((size_t)model->n_modules, sizeof *wanted, &wanted));
    shl_code code = adapt(model, c, first_id, wanted);
    shl_heap_free(&wanted);
    return code;
}

/* ---- what follows from it ---- */

int64_t
shl_model_trainable_elems(const shl_model *model)
{
    int64_t n = 0;
    for (int i = 0; i < model->n_params; i++) {
        n += model->params[i]->trainable ? model->params[i]->elems : 0;
    }
    return n;
}

static bool
trains(const shl_module *m)
{
    for (int i = 0; i < m->n_params; i++) {
        if (m->params[i]->trainable) {
            return true;
        }
    }
    for (int i = 0; i < m->n_children; i++) {
        if (trains(m->children[i])) {
            return true;
        }
    }
    return false;
}

static void
set_in_backward(shl_module *m, bool value)
{
    m->in_backward = value;
    for (int i = 0; i < m->n_children; i++) {
        set_in_backward(m->children[i], value);
    }
}

/* Children of the root before the first one that trains run forward only. */
static void
end_backward(shl_model *model)
{
    bool reached = false;
    for (int i = 0; i < model->root->n_children; i++) {
        reached = reached || trains(model->root->children[i]);
        set_in_backward(model->root->children[i], reached);
    }
}

static void
set_recompute(shl_model *model, const shl_tune_config *c)
{
    int64_t block = 0, every = c->recompute_every > 0 ? c->recompute_every : 1;
    shl_module *last = NULL;
    for (int i = 0; i < model->n_modules; i++) {
        shl_module *m = model->modules[i];
        if (m->wrap == SHL_WRAP_BLOCK) {
            m->recompute =
                c->recompute == SHL_RECOMPUTE_FULL && block++ % every == 0 && m->in_backward;
            if (m->recompute && last != NULL) {
                last->offload = true;
            }
            last = m->recompute ? m : last;
        } else {
            m->recompute =
                c->recompute == SHL_RECOMPUTE_SELECTIVE && m->ops->refill != NULL && m->in_backward;
        }
    }
}

static void
set_dropout(shl_model *model, const shl_tune_config *c)
{
    for (int i = 0; i < model->n_modules; i++) {
        shl_module *m = model->modules[i];
        bool stream = m->wrap == SHL_WRAP_INPUT || m->wrap == SHL_WRAP_BLOCK;
        m->dropout = stream ? c->dropout : m->ops->refill != NULL ? c->attention_dropout : 0.0;
        m->dropout_stream = shl_rng_stream(m->path);
    }
}

shl_code
shl_model_tune(shl_model *model, const shl_tune_config *c)
{
    char item[SHL_TUNE_TEXT];
    const char *at = c->freeze;
    SHL_TRY(check(model, c));
    int first_id = first_trained(model, c->train_last);
    freeze_before(model, first_id);
    while (next_item(&at, item, sizeof item)) {
        SHL_TRY(freeze_pattern(model, item));
    }
    if (c->lora_rank > 0 && !c->lora_base) {
        freeze_all(model);
    }
    if (c->lora_rank > 0) {
        SHL_TRY(add_adapters(model, c, first_id));
    }
    if (shl_model_trainable_elems(model) == 0) {
        SHL_RAISE(SHL_E_USAGE, "nothing is left to train");
        return shl_err_because("every one of the %d parameters is frozen", model->n_params);
    }
    end_backward(model);
    set_recompute(model, c);
    set_dropout(model, c);
    return SHL_OK;
}

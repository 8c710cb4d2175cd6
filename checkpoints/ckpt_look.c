/* checkpoints: looking at them: the steps of a folder, the tensors of one, the differences of two.
 * Nothing here writes. */
#include <dirent.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "checkpoints/ckpt_room.h"
#include "kernels/base/heap.h"

#define CHUNK_ELEMS ((int64_t)1 << 18)

static int
by_name(const void *a, const void *b)
{
    const shl_ckpt_step *x = a;
    const shl_ckpt_step *y = b;
    return strcmp(x->name, y->name);
}

static shl_code
add_step(const char *dir, const char *name, shl_ckpt_step **list, int *n, int *cap)
{
    char path[SHL_CKPT_PATH_MAX];
    shl_ckpt_step *s = NULL;
    if (strncmp(name, "step-", 5) != 0 || strlen(name) >= sizeof s->name) {
        return SHL_OK;
    }
    if (*n == *cap) {
        int more = *cap > 0 ? 2 * *cap : 16;
        SHL_TRY(shl_heap_grow(list, (size_t)*cap, (size_t)more, sizeof **list));
        *cap = more;
    }
    SHL_TRY(shl_ckpt_join(dir, name, path, sizeof path));
    s = &(*list)[(*n)++];
    shl_strf(s->name, sizeof s->name, "%s", name);
    s->whole = shl_ckpt_has_entry(path, SHL_CKPT_COMMIT);
    return SHL_OK;
}

shl_code
shl_ckpt_list(const char *dir, shl_ckpt_step **out, int *n)
{
    char latest[64] = "";
    int cap = 0;
    shl_code code = SHL_OK;
    *out = NULL;
    *n = 0;
    DIR *list = opendir(dir);
    if (list == NULL) {
        return shl_ckpt_io_fail("open folder", dir);
    }
    for (struct dirent *e = readdir(list); e != NULL && code == SHL_OK; e = readdir(list)) {
        code = add_step(dir, e->d_name, out, n, &cap);
    }
    (void)closedir(list);
    if (code == SHL_OK && *n == 0) {
        code = SHL_RAISE(SHL_E_IO, "%s holds no checkpoint", dir);
        (void)shl_err_because("it has no folder step-...");
    }
    if (code != SHL_OK) {
        shl_heap_free(out);
        *n = 0;
        return code;
    }
    if (shl_ckpt_read_latest(dir, latest, sizeof latest) != SHL_OK) {
        shl_err_clear(); /* none is marked then */
        latest[0] = '\0';
    }
    qsort(*out, (size_t)*n, sizeof **out, by_name);
    for (int i = 0; i < *n; i++) {
        (*out)[i].latest = strcmp((*out)[i].name, latest) == 0;
    }
    return SHL_OK;
}

const char *
shl_ckpt_path(const shl_ckpt_reader *r)
{
    return r->path;
}

int
shl_ckpt_n_tensors(const shl_ckpt_reader *r)
{
    return r->index.n_tensors;
}

int
shl_ckpt_n_fragments(const shl_ckpt_reader *r)
{
    return r->index.n_fragments;
}

shl_ckpt_tensor
shl_ckpt_tensor_at(const shl_ckpt_reader *r, int i)
{
    SHL_ASSERT(i >= 0 && i < r->index.n_tensors);
    const shl_ckpt_entry *e = &r->index.tensors[i];
    shl_ckpt_tensor t = {.name = e->name, .kind = e->kind, .n_dims = e->n_dims};
    memcpy(t.dims, e->dims, sizeof t.dims);
    return t;
}

static void
compare_chunk(const float *x, const float *y, int64_t n, int64_t at, shl_ckpt_difference *d)
{
    if (memcmp(x, y, (size_t)n * sizeof *x) == 0) {
        return;
    }
    for (int64_t i = 0; i < n; i++) {
        if (memcmp(&x[i], &y[i], sizeof *x) == 0) {
            continue;
        }
        double off = fabs((double)x[i] - (double)y[i]);
        off = isnan(off) ? HUGE_VAL : off;
        d->first = d->n_other == 0 ? at + i : d->first;
        d->max_abs = off > d->max_abs ? off : d->max_abs;
        d->n_other++;
    }
}

typedef struct comparison {
    shl_ckpt_reader *a, *b;
    float *x, *y; /* a chunk of each */
} comparison;

static shl_code
compare_tensor(const comparison *c, int i, int k, shl_ckpt_difference *d)
{
    const shl_ckpt_entry *e = &c->a->index.tensors[i];
    const shl_ckpt_entry *f = &c->b->index.tensors[k];
    if (e->n_dims != f->n_dims ||
        memcmp(e->dims, f->dims, (size_t)e->n_dims * sizeof *e->dims) != 0) {
        d->verdict = SHL_CKPT_OTHER_SHAPE;
        return SHL_OK;
    }
    for (int64_t at = 0; at < e->elems; at += CHUNK_ELEMS) {
        int64_t n = e->elems - at < CHUNK_ELEMS ? e->elems - at : CHUNK_ELEMS;
        SHL_TRY(shl_ckpt_read(c->a, i, at, at + n, c->x));
        SHL_TRY(shl_ckpt_read(c->b, k, at, at + n, c->y));
        compare_chunk(c->x, c->y, n, at, d);
    }
    return SHL_OK;
}

/* Below 0: the next tensor is only in a; above: only in b. */
static int
order_of_next(const comparison *c, int i, int k)
{
    const shl_ckpt_index *x = &c->a->index;
    const shl_ckpt_index *y = &c->b->index;
    if (i == x->n_tensors || k == y->n_tensors) {
        return i == x->n_tensors ? 1 : -1;
    }
    int by_kind = strcmp(x->tensors[i].kind, y->tensors[k].kind);
    return by_kind != 0 ? by_kind : strcmp(x->tensors[i].name, y->tensors[k].name);
}

static shl_code
compare_all(const comparison *c, shl_code (*fn)(void *ctx, const shl_ckpt_difference *d), void *ctx,
            int *n_differ)
{
    int i = 0;
    int k = 0;
    while (i < c->a->index.n_tensors || k < c->b->index.n_tensors) {
        int order = order_of_next(c, i, k);
        shl_ckpt_reader *from = order <= 0 ? c->a : c->b;
        int at = order <= 0 ? i : k;
        shl_ckpt_difference d = {.tensor = shl_ckpt_tensor_at(from, at),
                                 .elems = from->index.tensors[at].elems};
        if (order == 0) {
            SHL_TRY(compare_tensor(c, i, k, &d));
        } else {
            d.verdict = order < 0 ? SHL_CKPT_ONLY_IN_A : SHL_CKPT_ONLY_IN_B;
        }
        i += order <= 0 ? 1 : 0;
        k += order >= 0 ? 1 : 0;
        if (d.verdict == SHL_CKPT_OTHER_BITS && d.n_other == 0) {
            continue;
        }
        (*n_differ)++;
        if (fn != NULL) {
            SHL_TRY(fn(ctx, &d));
        }
    }
    return SHL_OK;
}

shl_code
shl_ckpt_diff(shl_ckpt_reader *a, shl_ckpt_reader *b,
              shl_code (*fn)(void *ctx, const shl_ckpt_difference *d), void *ctx, int *n_differ)
{
    comparison c = {a, b, NULL, NULL};
    shl_code code = SHL_OK;
    *n_differ = 0;
    SHL_TRY_TO(code, out, shl_heap_alloc((size_t)CHUNK_ELEMS, sizeof *c.x, &c.x));
    SHL_TRY_TO(code, out, shl_heap_alloc((size_t)CHUNK_ELEMS, sizeof *c.y, &c.y));
    SHL_TRY_TO(code, out, compare_all(&c, fn, ctx, n_differ));
out:
    shl_heap_free(&c.x);
    shl_heap_free(&c.y);
    return code;
}

/* checkpoints: the index: sorted tensors, sorted fragments, and the proof that the fragments cover
 * every element once. Used on both sides: before a commit and after a manifest was read. */
#include <stdlib.h>
#include <string.h>

#include "checkpoints/ckpt_room.h"
#include "kernels/base/heap.h"

void
shl_ckpt_index_fini(shl_ckpt_index *x)
{
    shl_heap_free(&x->tensors);
    shl_heap_free(&x->files);
    shl_heap_free(&x->fragments);
    memset(x, 0, sizeof *x);
}

shl_code
shl_ckpt_index_init(shl_ckpt_index *x, int n_tensors, int n_files)
{
    memset(x, 0, sizeof *x);
    shl_code code = shl_heap_alloc((size_t)n_tensors, sizeof *x->tensors, &x->tensors);
    if (code == SHL_OK) {
        code = shl_heap_alloc((size_t)n_files, sizeof *x->files, &x->files);
    }
    if (code != SHL_OK) {
        shl_ckpt_index_fini(x);
        return code;
    }
    x->n_tensors = n_tensors;
    x->n_files = n_files;
    return SHL_OK;
}

/* A path of plain parts: no empty part, no "." or "..", nothing that a terminal acts on. */
static bool
plain_path(const char *text, bool slash_allowed)
{
    const char *part = text;
    for (const char *at = text;; at++) {
        if (*at == '/' && !slash_allowed) {
            return false;
        }
        if (*at == '/' || *at == '\0') {
            size_t len = (size_t)(at - part);
            if (len == 0 || (len <= 2 && strspn(part, ".") >= len)) {
                return false;
            }
            part = at + 1;
        } else if (*at <= ' ' || *at > '~') {
            return false;
        }
        if (*at == '\0') {
            return true;
        }
    }
}

shl_code
shl_ckpt_entry_set(shl_ckpt_entry *e, const char *kind, const char *name, int n_dims,
                   const int64_t *dims)
{
    int64_t elems = 1;
    bool ok = name != NULL && kind != NULL && strlen(name) < sizeof e->name &&
              strlen(kind) < sizeof e->kind && plain_path(name, false) && plain_path(kind, true) &&
              n_dims >= 1 && n_dims <= SHL_MAX_DIMS;
    for (int i = 0; ok && i < n_dims; i++) {
        ok = dims[i] >= 0 && shl_mul_elems(elems, dims[i], &elems);
    }
    ok = ok && elems <= INT64_MAX / (int64_t)sizeof(float);
    if (!ok) {
        (void)SHL_RAISE(SHL_E_BUG, "tensor %.160s/%.160s cannot be stored in a checkpoint",
                        kind != NULL ? kind : "(null)", name != NULL ? name : "(null)");
        return shl_err_because("its name, kind or shape of %d dimensions is out of bounds", n_dims);
    }
    memset(e, 0, sizeof *e);
    shl_strf(e->name, sizeof e->name, "%s", name);
    shl_strf(e->kind, sizeof e->kind, "%s", kind);
    e->n_dims = n_dims;
    memcpy(e->dims, dims, (size_t)n_dims * sizeof *dims);
    e->elems = elems;
    return SHL_OK;
}

static int
compare_key(const char *kind, const char *name, const shl_ckpt_entry *e)
{
    int by_kind = strcmp(kind, e->kind);
    return by_kind != 0 ? by_kind : strcmp(name, e->name);
}

static int
compare_entries(const void *a, const void *b)
{
    const shl_ckpt_entry *x = a;
    return compare_key(x->kind, x->name, b);
}

void
shl_ckpt_index_sort(shl_ckpt_index *x)
{
    qsort(x->tensors, (size_t)x->n_tensors, sizeof *x->tensors, compare_entries);
}

bool
shl_ckpt_index_sorted(const shl_ckpt_index *x)
{
    for (int i = 1; i < x->n_tensors; i++) {
        if (compare_entries(&x->tensors[i - 1], &x->tensors[i]) >= 0) {
            return false;
        }
    }
    return true;
}

int
shl_ckpt_index_find(const shl_ckpt_index *x, const char *kind, const char *name)
{
    int low = 0;
    int high = x->n_tensors;
    while (low < high) {
        int mid = low + (high - low) / 2;
        int order = compare_key(kind, name, &x->tensors[mid]);
        if (order == 0) {
            return mid;
        }
        if (order < 0) {
            high = mid;
        } else {
            low = mid + 1;
        }
    }
    return -1;
}

shl_code
shl_ckpt_index_add(shl_ckpt_index *x, const shl_ckpt_fragment *f)
{
    if (x->n_fragments == x->fragments_cap) {
        int cap = x->fragments_cap > 0 ? 2 * x->fragments_cap : 64;
        SHL_TRY(shl_heap_grow(&x->fragments, (size_t)x->fragments_cap, (size_t)cap,
                              sizeof *x->fragments));
        x->fragments_cap = cap;
    }
    x->fragments[x->n_fragments++] = *f;
    return SHL_OK;
}

static int
order_of(int64_t a, int64_t b)
{
    return (a > b) - (a < b);
}

static int
compare_fragments(const void *a, const void *b)
{
    const shl_ckpt_fragment *x = a;
    const shl_ckpt_fragment *y = b;
    int order = order_of(x->tensor, y->tensor);
    order = order != 0 ? order : order_of(x->begin, y->begin);
    order = order != 0 ? order : order_of(x->end, y->end);
    return order != 0 ? order : order_of(x->file, y->file);
}

static shl_code
check_fragment(const shl_ckpt_index *x, const shl_ckpt_fragment *f, shl_code bad)
{
    bool known = f->tensor >= 0 && f->tensor < x->n_tensors && f->file >= 0 && f->file < x->n_files;
    if (known && f->begin >= 0 && f->begin < f->end && f->end <= x->tensors[f->tensor].elems &&
        f->offset >= 0 && f->offset <= x->files[f->file].bytes &&
        f->end - f->begin <= (x->files[f->file].bytes - f->offset) / (int64_t)sizeof(float)) {
        return SHL_OK;
    }
    (void)SHL_RAISE(bad, "a fragment of %s is out of bounds",
                    known ? x->tensors[f->tensor].name : "an unknown tensor");
    return shl_err_because("elements [%lld, %lld) at byte %lld of %s", (long long)f->begin,
                           (long long)f->end, (long long)f->offset,
                           known ? x->files[f->file].name : "an unknown file");
}

static shl_code
check_cover(const shl_ckpt_index *x, int tensor, int *next, shl_code bad)
{
    const shl_ckpt_entry *e = &x->tensors[tensor];
    int64_t at = 0;
    for (; *next < x->n_fragments && x->fragments[*next].tensor == tensor; (*next)++) {
        const shl_ckpt_fragment *f = &x->fragments[*next];
        if (f->begin != at) {
            (void)SHL_RAISE(bad, "tensor %s/%s: elements [%lld, %lld) are %s", e->kind, e->name,
                            (long long)(at < f->begin ? at : f->begin),
                            (long long)(at < f->begin ? f->begin : at),
                            at < f->begin ? "in no shard" : "in more than one shard");
            return shl_err_because("the next fragment is [%lld, %lld) in %s", (long long)f->begin,
                                   (long long)f->end, x->files[f->file].name);
        }
        at = f->end;
    }
    if (at != e->elems) {
        return SHL_RAISE(bad, "tensor %s/%s: elements [%lld, %lld) are in no shard", e->kind,
                         e->name, (long long)at, (long long)e->elems);
    }
    return SHL_OK;
}

shl_code
shl_ckpt_index_check(shl_ckpt_index *x, shl_code bad)
{
    for (int i = 0; i < x->n_fragments; i++) {
        SHL_TRY(check_fragment(x, &x->fragments[i], bad));
    }
    if (x->n_fragments > 0) {
        qsort(x->fragments, (size_t)x->n_fragments, sizeof *x->fragments, compare_fragments);
    }
    int next = 0;
    for (int i = 0; i < x->n_tensors; i++) {
        SHL_TRY(check_cover(x, i, &next, bad));
    }
    return SHL_OK;
}

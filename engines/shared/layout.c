/* engines/shared: layout: offsets, padding and fragments. Every number here is decided by sizes and
 * rank counts alone, so that a plan for any world is the layout of that world. */
#include "engines/shared/layout.h"

#include "kernels/base/heap.h"

/* With every sum below this, no offset below can overflow 64 bits (flats * ranks < 2^60 / 8). */
#define MAX_ELEMS ((int64_t)1 << 56)
#define MAX_PIECES (1 << 24)

static void
close_flat(shl_layout *l, shl_layout_flat *f, int64_t used, shl_layout_split split)
{
    int64_t n = l->n_pieces;
    int64_t unit = split == SHL_SPLIT_FLAT ? SHL_TENSOR_ALIGN_ELEMS : 1;
    f->piece_elems = shl_ceil_div(used, n * unit) * unit;
    f->flat_elems = f->piece_elems * n;
    f->shard_offset = l->shard_elems[f->space];
    f->full_offset = l->full_elems[f->space];
    l->shard_elems[f->space] += shl_round_up(f->piece_elems, SHL_TENSOR_ALIGN_ELEMS);
    l->full_elems[f->space] += shl_round_up(f->flat_elems, SHL_TENSOR_ALIGN_ELEMS);
    l->payload_elems[f->space] += f->flat_elems;
}

static shl_code
check_sizes(const shl_layout_item *items, int n, int n_pieces)
{
    int64_t total = 0;
    for (int i = 0; i < n; ++i) {
        SHL_ASSERT(items[i].elems > 0 && items[i].param >= 0);
        if (items[i].elems > MAX_ELEMS - total) {
            (void)SHL_RAISE(SHL_E_USAGE, "the model is too large to lay out");
            return shl_err_because("more than 2^56 elements in %d tensors", n);
        }
        total += items[i].elems;
    }
    if (n_pieces > MAX_PIECES) {
        return SHL_RAISE(SHL_E_USAGE, "%d ranks are more than the largest world, %d", n_pieces,
                         MAX_PIECES);
    }
    return SHL_OK;
}

static void
place_items(shl_layout *l, const shl_layout_item *items, int n, shl_layout_split split)
{
    int64_t used = 0;
    for (int i = 0; i < n; ++i) {
        shl_layout_flat *f = &l->flats[items[i].flat];
        if (i == 0 || items[i].flat != items[i - 1].flat) {
            SHL_ASSERT(items[i].flat == (i == 0 ? 0 : items[i - 1].flat + 1));
            SHL_ASSERT(i == 0 || items[i].space >= items[i - 1].space);
            f->first_slot = i;
            f->space = items[i].space;
            l->n_train_flats += f->space == SHL_SPACE_TRAIN;
            used = 0;
        } else {
            SHL_ASSERT(split == SHL_SPLIT_FLAT && items[i].space == f->space);
            used = shl_round_up(used, SHL_TENSOR_ALIGN_ELEMS);
        }
        f->n_slots++;
        l->slots[i] = (shl_layout_slot){.param = items[i].param,
                                        .flat = items[i].flat,
                                        .offset = used,
                                        .elems = items[i].elems};
        l->slot_of_param[items[i].param] = i;
        l->elems[f->space] += items[i].elems;
        used += items[i].elems;
        if (i + 1 == n || items[i + 1].flat != items[i].flat) {
            close_flat(l, f, used, split);
        }
    }
}

shl_code
shl_layout_new(const shl_layout_item *items, int n, int n_pieces, shl_layout_split split,
               shl_layout **out)
{
    shl_layout *l = NULL;
    shl_code code;
    *out = NULL;
    SHL_ASSERT(n > 0 && n_pieces > 0);
    SHL_TRY(check_sizes(items, n, n_pieces));
    SHL_TRY(shl_heap_alloc(1, sizeof(*l), &l));
    l->n_pieces = n_pieces;
    l->n_slots = n;
    l->n_flats = items[n - 1].flat + 1;
    for (int i = 0; i < n; ++i) {
        l->n_params = items[i].param >= l->n_params ? items[i].param + 1 : l->n_params;
    }
    SHL_TRY_TO(code, out, shl_heap_alloc((size_t)l->n_flats, sizeof(*l->flats), &l->flats));
    SHL_TRY_TO(code, out, shl_heap_alloc((size_t)n, sizeof(*l->slots), &l->slots));
    SHL_TRY_TO(code, out,
               shl_heap_alloc((size_t)l->n_params, sizeof(*l->slot_of_param), &l->slot_of_param));
    for (int i = 0; i < l->n_params; ++i) {
        l->slot_of_param[i] = -1;
    }
    place_items(l, items, n, split);
    *out = l;
    return SHL_OK;
out:
    shl_layout_free(&l);
    return code;
}

void
shl_layout_free(shl_layout **l)
{
    if (*l == NULL) {
        return;
    }
    shl_heap_free(&(*l)->flats);
    shl_heap_free(&(*l)->slots);
    shl_heap_free(&(*l)->slot_of_param);
    shl_heap_free(l);
}

int64_t
shl_layout_padding(const shl_layout *l)
{
    int64_t padding = 0;
    for (int space = 0; space < SHL_SPACE_COUNT; ++space) {
        padding += l->payload_elems[space] - l->elems[space];
    }
    return padding;
}

shl_code
shl_layout_fragments(const shl_layout *l, int rank, shl_fragment **out, int *n)
{
    shl_fragment *frags = NULL;
    int count = 0;
    *out = NULL;
    *n = 0;
    SHL_ASSERT(rank >= 0 && rank < l->n_pieces);
    /* A slot meets one piece at most once, so there are never more fragments than slots. */
    SHL_TRY(shl_heap_alloc((size_t)l->n_slots, sizeof(*frags), &frags));
    for (int i = 0; i < l->n_slots; ++i) {
        const shl_layout_slot *s = &l->slots[i];
        const shl_layout_flat *f = &l->flats[s->flat];
        int64_t piece_begin = f->piece_elems * rank;
        int64_t piece_end = piece_begin + f->piece_elems;
        int64_t begin = s->offset > piece_begin ? s->offset : piece_begin;
        int64_t end = s->offset + s->elems < piece_end ? s->offset + s->elems : piece_end;
        if (begin >= end) {
            continue;
        }
        frags[count++] = (shl_fragment){.param = s->param,
                                        .flat = s->flat,
                                        .begin = begin - s->offset,
                                        .end = end - s->offset,
                                        .flat_offset = begin,
                                        .shard_offset = f->shard_offset + (begin - piece_begin)};
    }
    *out = frags;
    *n = count;
    return SHL_OK;
}

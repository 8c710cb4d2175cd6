/* engines/shared: layout: who owns which elements. Pure integers: no memory, no device, no model.
 * Tensors are laid end to end in flats; a flat is cut into n_pieces equal pieces and rank r owns
 * piece r. A bucket (ddp, zero1, zero2), a unit (fsdp) and a single tensor (zero3) are all flats. */
#ifndef SHL_SHARED_LAYOUT_H
#define SHL_SHARED_LAYOUT_H

#include "kernels/base/err.h"
#include "kernels/base/types.h"

/* Flats form two spaces that are never mixed: trainable tensors have gradients and optimizer state,
 * frozen ones have neither. Offsets of each space start at 0. */
typedef enum shl_space { SHL_SPACE_TRAIN = 0, SHL_SPACE_FROZEN, SHL_SPACE_COUNT } shl_space;

/* A tensor to place; consecutive items of one `flat` number go into that flat, in order. Flat
 * numbers start at 0 and never decrease; those of the trainable space come first. */
typedef struct shl_layout_item {
    int param;     /* the caller's index */
    int64_t elems; /* > 0 */
    int flat;
    shl_space space; /* the same for all items of a flat */
} shl_layout_item;

/* How a flat is padded: FLAT: tensors at multiples of SHL_TENSOR_ALIGN_ELEMS, the whole padded to a
 * multiple of that times n_pieces. TENSOR: one tensor a flat, pieces of ceil(elems / n_pieces)
 * (DeepSpeed's ZeRO-3 split). */
typedef enum shl_layout_split { SHL_SPLIT_FLAT = 0, SHL_SPLIT_TENSOR } shl_layout_split;

typedef struct shl_layout_slot {
    int param;
    int flat;
    int64_t offset; /* in the flat, a multiple of SHL_TENSOR_ALIGN_ELEMS */
    int64_t elems;
} shl_layout_slot;

typedef struct shl_layout_flat {
    shl_space space;
    int first_slot, n_slots;
    int64_t piece_elems;  /* of one rank */
    int64_t flat_elems;   /* n_pieces * piece_elems */
    int64_t shard_offset; /* of a rank's piece in its shards of the space, a multiple of 8 */
    int64_t full_offset;  /* of the flat in the whole space, a multiple of 8 */
} shl_layout_flat;

typedef struct shl_layout {
    int n_pieces;
    int n_flats, n_slots;
    int n_train_flats; /* flats [0, n_train_flats) are trainable, the others frozen */
    shl_layout_flat *flats;
    shl_layout_slot *slots;
    int n_params;                           /* 1 + largest param index */
    int *slot_of_param;                     /* -1: not placed */
    int64_t elems[SHL_SPACE_COUNT];         /* of the tensors alone */
    int64_t shard_elems[SHL_SPACE_COUNT];   /* of one rank's pieces, with alignment */
    int64_t full_elems[SHL_SPACE_COUNT];    /* of all flats, with alignment */
    int64_t payload_elems[SHL_SPACE_COUNT]; /* sum of flat_elems: one gather of everything */
} shl_layout;

/* Elements [begin, end) of a tensor that lie in one rank's piece. */
typedef struct shl_fragment {
    int param;
    int flat;
    int64_t begin, end;
    int64_t flat_offset;  /* of `begin` in its flat */
    int64_t shard_offset; /* of `begin` in the rank's shards of the flat's space */
} shl_fragment;

/* Lays n items out. Owner: caller, shl_layout_free. Errors: SHL_E_USAGE when a size overflows int64,
 * SHL_E_HEAP. Local. */
shl_code shl_layout_new(const shl_layout_item *items, int n, int n_pieces, shl_layout_split split,
                        shl_layout **out) SHL_MUST_USE;
void shl_layout_free(shl_layout **l);

/* Elements that a gather of everything carries beyond the tensors' own, both spaces. */
int64_t shl_layout_padding(const shl_layout *l);

/* The fragments of piece `rank`, in flat order, so trainable ones first; none for a piece of padding
 * only. Owner of *out: caller, shl_heap_free. */
shl_code shl_layout_fragments(const shl_layout *l, int rank, shl_fragment **out,
                              int *n) SHL_MUST_USE;

#endif

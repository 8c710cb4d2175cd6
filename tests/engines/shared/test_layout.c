/* tests/engines/shared: layout integers: every element belongs to exactly one rank, offsets are
 * aligned, padding is at the end of a flat, for random sizes and worlds. */
#include "engines/shared/layout.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/base/clock.h"
#include "kernels/base/heap.h"
#include "kernels/base/rng.h"

#define MAX_PARAMS 12
#define MAX_ELEMS 400

static int
draw(uint64_t seed, int *at, int n)
{
    return (int)(shl_rng_u64(seed, 3, (uint64_t)(*at)++) % (uint64_t)n);
}

static void
check_cover(const shl_layout *l, const shl_layout_item *items, int n)
{
    static unsigned char seen[MAX_PARAMS][MAX_ELEMS];
    memset(seen, 0, sizeof(seen));
    for (int rank = 0; rank < l->n_pieces; ++rank) {
        shl_fragment *frags;
        int n_frags;
        int64_t last_end = 0;
        assert_int_equal(shl_layout_fragments(l, rank, &frags, &n_frags), SHL_OK);
        for (int i = 0; i < n_frags; ++i) {
            const shl_fragment *f = &frags[i];
            const shl_layout_flat *flat = &l->flats[f->flat];
            assert_true(f->begin < f->end);
            assert_true(f->shard_offset >= last_end);
            last_end = f->shard_offset + (f->end - f->begin);
            assert_true(last_end <= l->shard_elems[SHL_SPACE_TRAIN]);
            assert_int_equal(f->flat_offset - flat->piece_elems * rank + flat->shard_offset,
                             f->shard_offset);
            for (int64_t e = f->begin; e < f->end; ++e) {
                seen[f->param][e]++;
            }
        }
        shl_heap_free(&frags);
    }
    for (int i = 0; i < n; ++i) {
        for (int64_t e = 0; e < items[i].elems; ++e) {
            assert_int_equal(seen[items[i].param][e], 1);
        }
    }
}

static void
check_alignment(const shl_layout *l)
{
    int64_t payload = 0;
    for (int i = 0; i < l->n_slots; ++i) {
        assert_int_equal(l->slots[i].offset % SHL_TENSOR_ALIGN_ELEMS, 0);
    }
    for (int f = 0; f < l->n_flats; ++f) {
        assert_int_equal(l->flats[f].full_offset % SHL_TENSOR_ALIGN_ELEMS, 0);
        assert_int_equal(l->flats[f].shard_offset % SHL_TENSOR_ALIGN_ELEMS, 0);
        assert_int_equal(l->flats[f].flat_elems, l->flats[f].piece_elems * l->n_pieces);
        payload += l->flats[f].flat_elems;
    }
    assert_int_equal(payload, l->payload_elems[SHL_SPACE_TRAIN]);
}

static void
test_layout_gives_every_element_one_owner(void **state)
{
    (void)state;
    uint64_t seed = (uint64_t)shl_clock_ns();
    int at = 0;
    print_message("seed %llu\n", (unsigned long long)seed);
    for (int round = 0; round < 400; ++round) {
        shl_layout_item items[MAX_PARAMS];
        shl_layout *l = NULL;
        int n = 1 + draw(seed, &at, MAX_PARAMS), flat = 0;
        shl_layout_split split = draw(seed, &at, 2) ? SHL_SPLIT_FLAT : SHL_SPLIT_TENSOR;
        for (int i = 0; i < n; ++i) {
            flat += i > 0 && (split == SHL_SPLIT_TENSOR || draw(seed, &at, 3) == 0);
            items[i] = (shl_layout_item){
                .param = n - 1 - i, .elems = 1 + draw(seed, &at, MAX_ELEMS), .flat = flat};
        }
        int pieces = 1 + draw(seed, &at, 9);
        assert_int_equal(shl_layout_new(items, n, pieces, split, &l), SHL_OK);
        check_cover(l, items, n);
        check_alignment(l);
        shl_layout_free(&l);
    }
    assert_int_equal(shl_heap_live_blocks(), 0);
}

static void
test_layout_zero3_pieces_are_ceil_divided(void **state)
{
    (void)state;
    const shl_layout_item items[] = {{0, 768, 0, SHL_SPACE_TRAIN}, {1, 7, 1, SHL_SPACE_FROZEN}};
    shl_layout *l = NULL;
    shl_fragment *frags;
    int n;
    assert_int_equal(shl_layout_new(items, 2, 1000, SHL_SPLIT_TENSOR, &l), SHL_OK);
    assert_int_equal(l->flats[0].piece_elems, 1);
    assert_int_equal(l->payload_elems[SHL_SPACE_TRAIN], 1000);
    assert_int_equal(l->payload_elems[SHL_SPACE_FROZEN], 1000);
    assert_int_equal(shl_layout_fragments(l, 900, &frags, &n), SHL_OK);
    assert_int_equal(n, 0);
    shl_heap_free(&frags);
    shl_layout_free(&l);
}

static void
test_layout_refuses_what_overflows(void **state)
{
    (void)state;
    const shl_layout_item items[] = {{0, INT64_MAX / 2, 0, SHL_SPACE_TRAIN},
                                     {1, INT64_MAX / 2, 0, SHL_SPACE_TRAIN},
                                     {2, 100, 0, SHL_SPACE_TRAIN}};
    shl_layout *l = NULL;
    assert_int_equal(shl_layout_new(items, 3, 8, SHL_SPLIT_FLAT, &l), SHL_E_USAGE);
    assert_null(l);
    assert_int_equal(shl_heap_live_blocks(), 0);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_layout_gives_every_element_one_owner),
        cmocka_unit_test(test_layout_zero3_pieces_are_ceil_divided),
        cmocka_unit_test(test_layout_refuses_what_overflows),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* tests/kernels/device: the arena against a plain list of what is taken. */
#include "kernels/device/arena.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/base/heap.h"
#include "kernels/base/rng.h"
#include "kernels/base/types.h"

#define RANGE ((size_t)1 << 22)
#define STEP ((size_t)1 << 14)
#define ALIGN ((size_t)64)
#define MAX_TAKEN 200

static _Alignas(64) unsigned char range[RANGE];

typedef struct growth {
    size_t usable;
    size_t refuse_above; /* 0: never */
} growth;

static shl_code
grow(void *ctx, void *base, size_t old_bytes, size_t new_bytes)
{
    growth *g = ctx;
    if (base != range || old_bytes != g->usable || new_bytes <= old_bytes) {
        return SHL_RAISE(SHL_E_BUG, "growth from %zu to %zu", old_bytes, new_bytes);
    }
    if (g->refuse_above != 0 && new_bytes > g->refuse_above) {
        return SHL_RAISE(SHL_E_OOM, "no more");
    }
    g->usable = new_bytes;
    return SHL_OK;
}

typedef struct block {
    unsigned char *data;
    size_t bytes;
    unsigned char stamp;
} block;

static void
stamp(const block *b)
{
    memset(b->data, b->stamp, b->bytes);
}

static bool
stamp_holds(const block *b)
{
    for (size_t i = 0; i < b->bytes; i++) {
        if (b->data[i] != b->stamp) {
            return false;
        }
    }
    return true;
}

/* Takes and gives by the dice; every block keeps its stamp, so no two share a byte. Returns a hash
 * of all addresses. */
static uint64_t
random_run(uint64_t seed, int n_steps)
{
    static block taken[MAX_TAKEN];
    growth g = {0, 0};
    shl_arena *a = NULL;
    size_t n = 0;
    uint64_t hash = 0;
    assert_int_equal(shl_arena_open(range, RANGE, ALIGN, STEP, grow, &g, &a), SHL_OK);
    for (int i = 0; i < n_steps; i++) {
        uint64_t r = shl_rng_u64(seed, 2, (uint64_t)i);
        if (n > 0 && (n == MAX_TAKEN || r % 2 == 0)) {
            size_t at = (size_t)(r >> 8) % n;
            assert_true(stamp_holds(&taken[at]));
            shl_arena_give(a, taken[at].data, taken[at].bytes);
            taken[at] = taken[--n];
            continue;
        }
        block *b = &taken[n++];
        void *data = NULL;
        b->bytes = (size_t)(r >> 16) % ((r >> 60) == 0 ? 60000 : 4000) + 1;
        b->stamp = (unsigned char)(r >> 50);
        assert_int_equal(shl_arena_take(a, b->bytes, &data), SHL_OK);
        b->data = data;
        assert_int_equal((uintptr_t)data % ALIGN, 0);
        assert_true((size_t)(b->data - range) + b->bytes <= g.usable);
        hash = hash * 31 + (uint64_t)(b->data - range);
        stamp(b);
    }
    while (n > 0) {
        n--;
        assert_true(stamp_holds(&taken[n]));
        shl_arena_give(a, taken[n].data, taken[n].bytes);
    }
    assert_int_equal(shl_arena_reserved_bytes(a), g.usable);
    shl_arena_close(&a);
    return hash;
}

static void
test_arena_never_overlaps_and_repeats_its_addresses(void **state)
{
    uint64_t seed = 77;
    SHL_UNUSED(state);
    printf("seed %llu\n", (unsigned long long)seed);
    for (uint64_t i = 0; i < 4; i++) {
        assert_int_equal(random_run(seed + i, 3000), random_run(seed + i, 3000));
    }
}

static void
test_arena_coalesces_to_one_block(void **state)
{
    shl_arena *a = NULL;
    void *data[MAX_TAKEN], *whole = NULL;
    uint64_t seed = 5;
    SHL_UNUSED(state);
    assert_int_equal(shl_arena_open(range, RANGE, ALIGN, STEP, NULL, NULL, &a), SHL_OK);
    for (size_t i = 0; i < MAX_TAKEN; i++) {
        assert_int_equal(shl_arena_take(a, 64 * (i % 7 + 1), &data[i]), SHL_OK);
    }
    /* Given back in a scattered order: 77 and 200 have no common divisor. */
    for (size_t i = 0; i < MAX_TAKEN; i++) {
        size_t at = (i * 77 + (size_t)seed) % MAX_TAKEN;
        shl_arena_give(a, data[at], 64 * (at % 7 + 1));
    }
    /* A red zone may follow the buffer in a build with AddressSanitizer. */
    assert_int_equal(shl_arena_take(a, RANGE - 64, &whole), SHL_OK);
    assert_ptr_equal(whole, range);
    shl_arena_give(a, whole, RANGE - 64);
    shl_arena_close(&a);
}

static void
test_arena_takes_the_best_fit_then_the_lowest(void **state)
{
    shl_arena *a = NULL;
    void *hole_big, *hole_low, *hole_high, *wall[4], *got;
    SHL_UNUSED(state);
    assert_int_equal(shl_arena_open(range, RANGE, ALIGN, STEP, NULL, NULL, &a), SHL_OK);
    assert_int_equal(shl_arena_take(a, 4096, &hole_big), SHL_OK);
    assert_int_equal(shl_arena_take(a, 64, &wall[0]), SHL_OK);
    assert_int_equal(shl_arena_take(a, 1024, &hole_low), SHL_OK);
    assert_int_equal(shl_arena_take(a, 64, &wall[1]), SHL_OK);
    assert_int_equal(shl_arena_take(a, 1024, &hole_high), SHL_OK);
    assert_int_equal(shl_arena_take(a, 64, &wall[2]), SHL_OK);
    shl_arena_give(a, hole_high, 1024);
    shl_arena_give(a, hole_big, 4096);
    shl_arena_give(a, hole_low, 1024);
    assert_int_equal(shl_arena_take(a, 1000, &got), SHL_OK);
    assert_ptr_equal(got, hole_low);
    assert_int_equal(shl_arena_take(a, 1025, &wall[3]), SHL_OK);
    assert_ptr_equal(wall[3], hole_big);
    shl_arena_close(&a);
}

static void
test_arena_says_when_it_is_full(void **state)
{
    growth g = {0, 4 * STEP};
    shl_arena *a = NULL;
    void *data = NULL, *rest = NULL;
    SHL_UNUSED(state);
    assert_int_equal(shl_arena_open(range, RANGE, ALIGN, STEP, grow, &g, &a), SHL_OK);
    assert_int_equal(shl_arena_take(a, RANGE + 1, &data), SHL_E_OOM);
    assert_null(data);
    assert_int_equal(shl_arena_take(a, SIZE_MAX, &data), SHL_E_OOM);
    assert_int_equal(shl_arena_take(a, 5 * STEP, &data), SHL_E_OOM);
    assert_string_equal(shl_err_get()->what, "no more");
    /* A refusal leaves everything as it was. */
    assert_int_equal(shl_arena_reserved_bytes(a), 0);
    assert_int_equal(shl_arena_take(a, 4 * STEP - 64, &data), SHL_OK);
    assert_ptr_equal(data, range);
    assert_int_equal(shl_arena_reserved_bytes(a), 4 * STEP);
    assert_int_equal(shl_arena_take(a, 128, &rest), SHL_E_OOM);
    shl_arena_give(a, data, 4 * STEP - 64);
    assert_int_equal(shl_arena_take(a, 128, &rest), SHL_OK);
    assert_true(shl_arena_owns(a, rest));
    assert_false(shl_arena_owns(a, &g));
    shl_arena_close(&a);
}

/* Opens, takes and gives; the n-th heap allocation fails. */
static shl_code
use_arena(void)
{
    shl_arena *a = NULL;
    void *data[MAX_TAKEN];
    size_t n = 0;
    shl_code code = SHL_OK;
    SHL_TRY(shl_arena_open(range, RANGE, ALIGN, STEP, NULL, NULL, &a));
    while (code == SHL_OK && n < MAX_TAKEN) {
        code = shl_arena_take(a, 64, &data[n]);
        n += code == SHL_OK;
    }
    for (size_t i = 0; i < n; i += 2) {
        shl_arena_give(a, data[i], 64);
    }
    shl_arena_close(&a);
    return code;
}

static void
test_arena_survives_a_full_heap(void **state)
{
    int64_t blocks = shl_heap_live_blocks();
    int64_t n = 0;
    shl_code code = SHL_E_HEAP;
    SHL_UNUSED(state);
    while (code != SHL_OK) {
        shl_heap_fail_at(++n);
        code = use_arena();
        shl_heap_fail_at(-1);
        assert_true(code == SHL_OK || code == SHL_E_HEAP);
        assert_int_equal(shl_heap_live_blocks(), blocks);
    }
    assert_true(n > 3);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_arena_never_overlaps_and_repeats_its_addresses),
        cmocka_unit_test(test_arena_coalesces_to_one_block),
        cmocka_unit_test(test_arena_takes_the_best_fit_then_the_lowest),
        cmocka_unit_test(test_arena_says_when_it_is_full),
        cmocka_unit_test(test_arena_survives_a_full_heap),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

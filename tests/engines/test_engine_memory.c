/* tests/engines: out of memory is an ordinary error on every rank, at whichever allocation it comes:
 * the limit's message names phase, tag and owner, nothing is leaked, nobody hangs. */
#include "tests/support/engine_world.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/base/heap.h"
#include "kernels/base/option.h"

static void
test_engine_memory_limit_is_exact(void **state)
{
    (void)state;
    for (int s = 0; s < SHL_STRATEGY_COUNT; ++s) {
        ew_config c;
        ew_result r;
        ew_config_init(&c, (shl_strategy)s, 2);
        c.steps = 2;
        ew_run(&c, &r);
        assert_int_equal(r.code, SHL_OK);
        size_t peak = r.device[0].peak_bytes;
        char owner[96];
        memcpy(owner, r.device[0].peak_owner, sizeof(owner));
        c.device_memory = peak;
        ew_run(&c, &r);
        assert_int_equal(r.code, SHL_OK);
        c.device_memory = peak - 1;
        ew_run(&c, &r);
        assert_int_equal(r.code, SHL_E_OOM);
        for (int rank = 0; rank < c.ranks; ++rank) {
            assert_int_equal(r.rank_code[rank], SHL_E_OOM);
        }
        if (strstr(r.what, owner) == NULL) {
            fail_msg("'%s' does not name the owner %s", r.what, owner);
        }
    }
    assert_int_equal(shl_heap_live_blocks(), 0);
}

/* One rank fails at its n-th allocation, the other must not hang: for every n. */
static void
test_engine_memory_every_failing_allocation_ends_all_ranks(void **state)
{
    (void)state;
    int stride = shl_env("SHL_TEST_QUICK") != NULL ? 17 : 1; /* sampled under sanitizers */
    for (int s = 0; s < SHL_STRATEGY_COUNT; ++s) {
        int64_t n = 1 + s;
        int failures = 0;
        for (;; n += stride, ++failures) {
            ew_config c;
            ew_result r;
            ew_config_init(&c, (shl_strategy)s, 2);
            c.model.layers = 1;
            c.steps = 1;
            c.timeout_ms = 20000;
            c.fail_rank = (int)(n % 2);
            c.fail_alloc = n;
            ew_run(&c, &r);
            assert_int_equal(shl_heap_live_blocks(), 0);
            if (r.code == SHL_OK) {
                break;
            }
            assert_int_equal(r.code, SHL_E_OOM);
            assert_int_equal(r.rank_code[c.fail_rank], SHL_E_OOM);
            assert_int_not_equal(r.rank_code[1 - c.fail_rank], SHL_OK);
        }
        assert_true(failures > 0);
    }
}

/* The same for the host heap, in one rank on the virtual device. */
static void
test_engine_memory_every_failing_heap_block_is_an_error(void **state)
{
    (void)state;
    for (int s = 0; s < SHL_STRATEGY_COUNT; ++s) {
        int failures = 0;
        for (int64_t n = 1;; ++n, ++failures) {
            ew_config c;
            ew_result r;
            ew_config_init(&c, (shl_strategy)s, 4);
            c.model.layers = 1;
            c.steps = 1;
            c.device = "virtual";
            shl_heap_fail_at(n);
            ew_run(&c, &r);
            shl_heap_fail_at(-1);
            assert_int_equal(shl_heap_live_blocks(), 0);
            if (r.code == SHL_OK) {
                break;
            }
            assert_int_equal(r.code, SHL_E_HEAP);
        }
        assert_true(failures > 5);
    }
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_engine_memory_limit_is_exact),
        cmocka_unit_test(test_engine_memory_every_failing_allocation_ends_all_ranks),
        cmocka_unit_test(test_engine_memory_every_failing_heap_block_is_an_error),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

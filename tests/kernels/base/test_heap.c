/* tests of kernels/base: the counted heap: balance, planned failures, overflow, growth.
 * The count of live blocks is compared before and after every test. */
#include "kernels/base/heap.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <string.h>

#include "kernels/base/str.h"

static int
remember_balance(void **state)
{
    static int64_t before;
    before = shl_heap_live_blocks();
    *state = &before;
    return 0;
}

static int
compare_balance(void **state)
{
    const int64_t *before = *state;
    shl_heap_fail_at(-1);
    return shl_heap_live_blocks() == *before ? 0 : -1;
}

static void
test_heap_alloc_is_zeroed_and_counted(void **state)
{
    const int64_t *before = *state;
    unsigned char *p;
    int64_t *empty;
    assert_int_equal(shl_heap_alloc(1000, 3, &p), SHL_OK);
    assert_int_equal(shl_heap_alloc(0, 8, &empty), SHL_OK);
    assert_non_null(empty);
    assert_int_equal(shl_heap_live_blocks(), *before + 2);
    for (int i = 0; i < 3000; i++) {
        assert_int_equal(p[i], 0);
    }
    shl_heap_free(&p);
    shl_heap_free(&empty);
    assert_null(p);
    shl_heap_free(&p);
    assert_int_equal(shl_heap_live_blocks(), *before);
}

static void
test_heap_refuses_sizes_that_overflow(void **state)
{
    char guard = 'g', *p = &guard;
    (void)state;
    assert_int_equal(shl_heap_alloc(SIZE_MAX / 2, 3, &p), SHL_E_HEAP);
    assert_null(p);
    assert_non_null(strstr(shl_err_get()->what, "host heap exhausted"));
    assert_int_equal(shl_heap_grow(&p, 0, SIZE_MAX / 2, 3), SHL_E_HEAP);
    assert_null(p);
}

static void
test_heap_grow_keeps_old_and_zeroes_new(void **state)
{
    int64_t *p = NULL;
    (void)state;
    size_t n = 0;
    for (size_t next = 1; next < 5000; next = next * 2 + 1) {
        assert_int_equal(shl_heap_grow(&p, n, next, sizeof(*p)), SHL_OK);
        for (size_t i = 0; i < next; i++) {
            assert_int_equal(p[i], i < n ? (int64_t)i + 1 : 0);
            p[i] = (int64_t)i + 1;
        }
        n = next;
    }
    shl_heap_free(&p);
}

static void
test_heap_grow_leaves_the_block_alone_on_failure(void **state)
{
    int *p;
    (void)state;
    assert_int_equal(shl_heap_alloc(2, sizeof(*p), &p), SHL_OK);
    int *same = p;
    p[1] = 42;
    shl_heap_fail_at(1);
    assert_int_equal(shl_heap_grow(&p, 2, 2000, sizeof(*p)), SHL_E_HEAP);
    assert_ptr_equal(p, same);
    assert_int_equal(p[1], 42);
    shl_heap_free(&p);
}

/* Three allocations, with the clean-up that callers write. */
static shl_code
three_blocks(void)
{
    shl_code code;
    char *a = NULL, *b = NULL;
    int *c = NULL;
    SHL_TRY_TO(code, out, shl_heap_strdup("a", &a));
    SHL_TRY_TO(code, out, shl_heap_strdup("b", &b));
    SHL_TRY_TO(code, out, shl_heap_grow(&c, 0, 10, sizeof(*c)));
out:
    shl_heap_free(&a);
    shl_heap_free(&b);
    shl_heap_free(&c);
    return code;
}

static void
test_heap_planned_failure_hits_each_allocation_once(void **state)
{
    const int64_t *before = *state;
    for (int n = 1; n <= 3; n++) {
        shl_heap_fail_at(n);
        assert_int_equal(three_blocks(), SHL_E_HEAP);
        assert_int_equal(shl_heap_live_blocks(), *before);
        assert_int_equal(three_blocks(), SHL_OK);
    }
    shl_heap_fail_at(4);
    assert_int_equal(three_blocks(), SHL_OK);
    shl_heap_fail_at(-1);
    assert_int_equal(three_blocks(), SHL_OK);
}

static void
test_heap_text_that_cannot_grow_says_so_once(void **state)
{
    shl_str s = {0};
    (void)state;
    shl_heap_fail_at(2);
    shl_str_add(&s, "%d", 1);
    assert_false(s.failed);
    for (int i = 0; i < 1000; i++) {
        shl_str_add(&s, "%d", i);
    }
    assert_true(s.failed);
    assert_true(s.len < s.cap);
    assert_int_equal(strlen(shl_str_get(&s)), s.len);
    shl_str_fini(&s);
    assert_string_equal(shl_str_get(&s), "");
}

int
main(void)
{
#define BALANCED(f) cmocka_unit_test_setup_teardown(f, remember_balance, compare_balance)
    const struct CMUnitTest tests[] = {
        BALANCED(test_heap_alloc_is_zeroed_and_counted),
        BALANCED(test_heap_refuses_sizes_that_overflow),
        BALANCED(test_heap_grow_keeps_old_and_zeroes_new),
        BALANCED(test_heap_grow_leaves_the_block_alone_on_failure),
        BALANCED(test_heap_planned_failure_hits_each_allocation_once),
        BALANCED(test_heap_text_that_cannot_grow_says_so_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* tests/kernels/cuda: every op case that the object has a kernel for, against its double reference: on
 * the emulated object here, on a card through gpu-check. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/base/heap.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/ops/op_cases.h"

#define SEED 20240917u

static shl_device *
open_device(void)
{
    shl_device_config cfg = {.kind = "cuda", .threads = 1};
    shl_device *d = NULL;
    if (shl_device_open(&cfg, &d) != SHL_OK) {
        print_error("%s; %s\n", shl_err_get()->what, shl_err_get()->because);
    }
    assert_non_null(d);
    return d;
}

static bool
has(const shl_device *d, shl_op op)
{
    return shl_cuda_device_table(d)->op[op] != NULL;
}

/* Words of `SHL_TEST_OPS`, to look at some ops alone. */
static bool
is_chosen(const shl_op_case *c)
{
    const char *only = getenv("SHL_TEST_OPS");
    return (c->flags & SHL_CASE_SPEED) == 0 &&
           (only == NULL || strstr(only, shl_op_name(c->op)) != NULL);
}

static shl_code
run_case(shl_device *d, const shl_op_case *c, int64_t offset, double *worst)
{
    shl_op_run *run = NULL;
    shl_code code = shl_op_run_open(d, c, SEED, offset, &run);
    code = code == SHL_OK ? shl_op_run_call(run) : code;
    code = code == SHL_OK ? shl_op_run_check(run, worst) : code;
    if (code != SHL_OK) {
        print_error("%s, offset %ld: %s; %s\n", c->name, (long)offset, shl_err_get()->what,
                    shl_err_get()->because);
    }
    shl_op_run_close(&run);
    return code;
}

static void
run_all(int64_t offset)
{
    double worst[SHL_OP_COUNT] = {0.0};
    int failed = 0;
    size_t n = 0;
    const shl_op_case *c = shl_op_cases(&n);
    shl_device *d = open_device();
    for (size_t i = 0; i < n; i++) {
        double w = 0.0;
        if (is_chosen(&c[i]) && has(d, c[i].op)) {
            failed += run_case(d, &c[i], offset, &w) != SHL_OK;
            worst[c[i].op] = w > worst[c[i].op] ? w : worst[c[i].op];
        }
    }
    for (int op = 0; op < SHL_OP_COUNT; op++) {
        if (has(d, (shl_op)op)) {
            print_message("offset %ld: %-24s %.3f of what is allowed\n", (long)offset,
                          shl_op_name((shl_op)op), worst[op]);
        } else {
            print_message("missing: %s\n", shl_op_name((shl_op)op));
        }
    }
    assert_int_equal(shl_device_close(&d), SHL_OK);
    assert_int_equal(failed, 0);
}

static void
test_cuda_ops_match_the_reference(void **state)
{
    (void)state;
    run_all(0);
}

static void
test_cuda_ops_match_it_at_odd_addresses(void **state)
{
    (void)state;
    run_all(3);
}

/* The same bits from a second run: a sum in an order of chance would show. */
static void
test_cuda_ops_repeat_their_bits(void **state)
{
    size_t n = 0;
    const shl_op_case *c = shl_op_cases(&n);
    shl_device *d = open_device();
    (void)state;
    for (size_t i = 0; i < n; i++) {
        shl_op_run *run = NULL;
        if (!is_chosen(&c[i]) || !has(d, c[i].op)) {
            continue;
        }
        assert_int_equal(shl_op_run_open(d, &c[i], SEED, 0, &run), SHL_OK);
        assert_int_equal(shl_op_run_call(run), SHL_OK);
        void *first[SHL_CASE_MAX_OPERANDS] = {NULL};
        for (int turn = 0; turn < 2; turn++) {
            for (int k = 0; k < run->n_operands; k++) {
                const shl_op_operand *o = &run->operands[k];
                size_t bytes = shl_tensor_bytes(&o->tensor);
                void *got = NULL;
                assert_int_equal(shl_heap_alloc(bytes, 1, &got), SHL_OK);
                assert_int_equal(shl_device_download(d, got, o->tensor.data, bytes), SHL_OK);
                if (turn == 0) {
                    first[k] = got;
                    continue;
                }
                assert_memory_equal(got, first[k], bytes);
                shl_heap_free(&got);
                shl_heap_free(&first[k]);
            }
            if (turn == 0) {
                assert_int_equal(shl_op_run_reset(run), SHL_OK);
                assert_int_equal(shl_op_run_call(run), SHL_OK);
            }
        }
        shl_op_run_close(&run);
    }
    assert_int_equal(shl_device_close(&d), SHL_OK);
}

/* Peak bytes of every case on the device and on the one that stands for it. */
static void
test_cuda_ops_take_the_same_bytes_on_virtual(void **state)
{
    size_t n = 0;
    const shl_op_case *c = shl_op_cases(&n);
    shl_device *real = open_device();
    (void)state;
    for (size_t i = 0; i < n; i++) {
        size_t peak[2][SHL_TAG_COUNT], reserved[2];
        if (!is_chosen(&c[i]) || !has(real, c[i].op)) {
            continue;
        }
        for (int side = 0; side < 2; side++) {
            shl_device_config cfg = {.kind = "virtual", .stands_for = "cuda", .threads = 1};
            shl_device *d = NULL;
            shl_op_run *run = NULL;
            if (side == 0) {
                d = open_device();
            } else {
                assert_int_equal(shl_device_open(&cfg, &d), SHL_OK);
            }
            assert_int_equal(shl_op_run_open(d, &c[i], SEED, 0, &run), SHL_OK);
            assert_int_equal(shl_op_run_call(run), SHL_OK);
            const shl_ledger_tier *t = shl_ledger_get(d->ledger, SHL_TIER_DEVICE);
            memcpy(peak[side], t->peak_tag_bytes, sizeof(peak[side]));
            reserved[side] = shl_device_reserved_bytes(d, SHL_TIER_DEVICE);
            shl_op_run_close(&run);
            assert_int_equal(shl_device_close(&d), SHL_OK);
        }
        assert_memory_equal(peak[0], peak[1], sizeof(peak[0]));
        assert_int_equal(reserved[0], reserved[1]);
    }
    assert_int_equal(shl_device_close(&real), SHL_OK);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cuda_ops_match_the_reference),
        cmocka_unit_test(test_cuda_ops_match_it_at_odd_addresses),
        cmocka_unit_test(test_cuda_ops_repeat_their_bits),
        cmocka_unit_test(test_cuda_ops_take_the_same_bytes_on_virtual),
    };
    printf("seed %u\n", SEED);
    return cmocka_run_group_tests_name("cuda_ops", tests, NULL, NULL);
}

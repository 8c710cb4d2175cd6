/* tests/kernels/ops: every op case against its double reference, with the kernels of every
 * instruction set that this CPU has, at several alignments and thread counts. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <string.h>

#include "kernels/base/half.h"
#include "kernels/base/heap.h"
#include "kernels/cpu/cpu_table.h"
#include "kernels/device/sanitize.h"
#include "kernels/ops/op_cases.h"

#define SEED 20240917u

/* One thread under ThreadSanitizer, which does not know the threads of libgomp. */
static shl_device *
open_device(const char *kind, const char *stands_for, int threads)
{
    shl_device_config cfg = {
        .kind = kind, .stands_for = stands_for, .threads = SHL_TSAN ? 1 : threads};
    shl_device *d = NULL;
    assert_int_equal(shl_device_open(&cfg, &d), SHL_OK);
    return d;
}

/* Opens, runs and compares one case; the text of a failure is printed with it. */
static void
run_case(shl_device *d, const shl_op_case *c, int64_t offset, const char *where)
{
    shl_op_run *run = NULL;
    double worst = 0.0;
    shl_code code = shl_op_run_open(d, c, SEED, offset, &run);
    code = code == SHL_OK ? shl_op_run_call(run) : code;
    code = code == SHL_OK ? shl_op_run_check(run, &worst) : code;
    if (code != SHL_OK) {
        print_error("%s, offset %ld: %s; %s\n", where, (long)offset, shl_err_get()->what,
                    shl_err_get()->because);
    }
    shl_op_run_close(&run);
    assert_int_equal(code, SHL_OK);
}

static void
run_all(const char *isa, int threads, int64_t offset)
{
    size_t n = 0;
    const shl_op_case *c = shl_op_cases(&n);
    shl_device *d = open_device("cpu", NULL, threads);
    d->op_table = shl_cpu_op_table_isa(isa);
    for (size_t i = 0; i < n; i++) {
        if ((c[i].flags & SHL_CASE_SPEED) == 0) {
            run_case(d, &c[i], offset, isa);
        }
    }
    assert_int_equal(shl_device_close(&d), SHL_OK);
}

static void
test_ops_cases_match_the_reference_on_every_isa(void **state)
{
    (void)state;
    for (const char *const *isa = shl_cpu_isas(); *isa != NULL; isa++) {
        if (shl_cpu_op_table_isa(*isa) == NULL) {
            print_message("not on this CPU: %s\n", *isa);
            continue;
        }
        run_all(*isa, 1, 0);
        run_all(*isa, 2, 3);
    }
}

static void
test_ops_cases_cover_every_op(void **state)
{
    bool seen[SHL_OP_COUNT] = {false};
    size_t n = 0;
    const shl_op_case *c = shl_op_cases(&n);
    (void)state;
    for (size_t i = 0; i < n; i++) {
        seen[c[i].op] = seen[c[i].op] || (c[i].flags & SHL_CASE_SPEED) == 0;
    }
    for (int op = 0; op < SHL_OP_COUNT; op++) {
        assert_true(seen[op]);
        assert_true(strlen(shl_op_name((shl_op)op)) > 0);
        assert_non_null(shl_cpu_op_table()->fn[op]);
    }
}

/* A reference that says yes to everything would pass the first test: spoil one element. */
static void
test_ops_cases_see_a_wrong_element(void **state)
{
    size_t n = 0;
    const shl_op_case *c = shl_op_cases(&n);
    shl_device *d = open_device("cpu", NULL, 1);
    (void)state;
    for (size_t i = 0; i < n; i++) {
        if (c[i].op != SHL_OP_LAYERNORM_BACKWARD || (c[i].flags & SHL_CASE_SPEED) != 0) {
            continue;
        }
        shl_op_run *run = NULL;
        assert_int_equal(shl_op_run_open(d, &c[i], SEED, 0, &run), SHL_OK);
        assert_int_equal(shl_op_run_call(run), SHL_OK);
        assert_int_equal(shl_op_run_check(run, NULL), SHL_OK);
        const shl_tensor *dx = &run->args.layernorm.dx;
        int64_t last = shl_tensor_elems(dx) - 1;
        float wrong =
            shl_float_at(dx->dtype, dx->data, last) + (dx->dtype == SHL_F32 ? 1e-3f : 0.1f);
        shl_float_put(dx->dtype, dx->data, last, wrong);
        assert_int_equal(shl_op_run_check(run, NULL), SHL_E_VERIFY);
        shl_op_run_close(&run);
    }
    assert_int_equal(shl_device_close(&d), SHL_OK);
}

/* Peak bytes of every case, the timing ones too, on a device and on the one that stands for it. */
static void
test_ops_cases_take_the_same_bytes_on_virtual(void **state)
{
    size_t n = 0;
    const shl_op_case *c = shl_op_cases(&n);
    (void)state;
    for (int threads = 1; threads <= 3; threads += 2) {
        for (size_t i = 0; i < n; i++) {
            size_t peak[2][SHL_TAG_COUNT];
            if ((c[i].flags & SHL_CASE_SPEED) != 0) {
                continue;
            }
            for (int side = 0; side < 2; side++) {
                shl_device *d = side == 0 ? open_device("cpu", NULL, threads)
                                          : open_device("virtual", "cpu", threads);
                shl_op_run *run = NULL;
                assert_int_equal(shl_op_run_open(d, &c[i], SEED, 0, &run), SHL_OK);
                assert_int_equal(shl_op_run_call(run), SHL_OK);
                const shl_ledger_tier *t = shl_ledger_get(d->ledger, SHL_TIER_DEVICE);
                memcpy(peak[side], t->peak_tag_bytes, sizeof(peak[side]));
                shl_cost cost = shl_op_cost(c[i].op, &run->args);
                assert_true(cost.bytes > 0.0 && cost.flops >= 0.0);
                shl_op_run_close(&run);
                assert_int_equal(shl_device_close(&d), SHL_OK);
            }
            assert_memory_equal(peak[0], peak[1], sizeof(peak[0]));
        }
    }
}

/* The n-th allocation fails: an error comes back and nothing stays allocated. */
static void
test_ops_cases_survive_failed_allocations(void **state)
{
    size_t n = 0;
    const shl_op_case *c = shl_op_cases(&n);
    (void)state;
    for (size_t i = 0; i < n; i++) {
        if (c[i].op != SHL_OP_ATTENTION_BACKWARD || (c[i].flags & SHL_CASE_SPEED) != 0) {
            continue;
        }
        int64_t before = shl_heap_live_blocks();
        shl_device *d = open_device("cpu", NULL, 1);
        shl_code code = SHL_E_OOM;
        for (int64_t at = 1; code != SHL_OK; at++) {
            shl_op_run *run = NULL;
            shl_ledger_fail_at(d->ledger, at);
            code = shl_op_run_open(d, &c[i], SEED, 0, &run);
            code = code == SHL_OK ? shl_op_run_call(run) : code;
            assert_true(code == SHL_OK || code == SHL_E_OOM);
            shl_op_run_close(&run);
            assert_int_equal(shl_ledger_get(d->ledger, SHL_TIER_DEVICE)->now_bytes, 0);
        }
        shl_ledger_fail_at(d->ledger, -1);
        assert_int_equal(shl_device_close(&d), SHL_OK);
        assert_int_equal(shl_heap_live_blocks(), before);
        break;
    }
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ops_cases_match_the_reference_on_every_isa),
        cmocka_unit_test(test_ops_cases_cover_every_op),
        cmocka_unit_test(test_ops_cases_see_a_wrong_element),
        cmocka_unit_test(test_ops_cases_take_the_same_bytes_on_virtual),
        cmocka_unit_test(test_ops_cases_survive_failed_allocations),
    };
    printf("seed %u\n", SEED);
    return cmocka_run_group_tests_name("ops_cases", tests, NULL, NULL);
}

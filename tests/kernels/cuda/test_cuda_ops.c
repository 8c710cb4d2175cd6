/* tests/kernels/cuda: every op case against its double reference: on the emulated object here, on a card
 * through gpu-check. */
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

/* Words of `SHL_TEST_OPS`, to look at some ops alone. */
static bool
is_chosen(const shl_op_case *c)
{
    const char *only = getenv("SHL_TEST_OPS");
    return (c->flags & SHL_CASE_SPEED) == 0 &&
           (only == NULL || strstr(only, shl_op_name(c->op)) != NULL);
}

/* What a run of a case left: its outputs, and its peaks by tag. */
typedef struct outcome {
    void *bytes[SHL_CASE_MAX_OPERANDS];
    size_t peak[SHL_TAG_COUNT];
} outcome;

static void
outcome_fini(outcome *o)
{
    for (int k = 0; k < SHL_CASE_MAX_OPERANDS; k++) {
        shl_heap_free(&o->bytes[k]);
    }
}

static shl_code
keep_outputs(const shl_op_run *run, outcome *out)
{
    for (int k = 0; k < run->n_operands; k++) {
        const shl_op_operand *o = &run->operands[k];
        size_t bytes = shl_op_operand_bytes(o);
        SHL_TRY(shl_heap_alloc(bytes, 1, &out->bytes[k]));
        SHL_TRY(shl_device_download(run->device, out->bytes[k], o->tensor.data, bytes));
    }
    return SHL_OK;
}

/* Runs a case, compares it with its reference where there are values, and keeps what it left. */
static shl_code
run_case(shl_device *d, const shl_op_case *c, int64_t offset, double *worst, outcome *out)
{
    shl_op_run *run = NULL;
    shl_ledger_reset_peaks(d->ledger);
    shl_code code = shl_op_run_open(d, c, SEED, offset, &run);
    code = code == SHL_OK ? shl_op_run_call(run) : code;
    if (code == SHL_OK && run->values) {
        code = shl_op_run_check(run, worst);
        code = code == SHL_OK ? keep_outputs(run, out) : code;
    }
    if (code != SHL_OK) {
        print_error("%s, offset %ld: %s; %s\n", c->name, (long)offset, shl_err_get()->what,
                    shl_err_get()->because);
    }
    const shl_ledger_tier *t = shl_ledger_get(d->ledger, SHL_TIER_DEVICE);
    memcpy(out->peak, t->peak_tag_bytes, sizeof(out->peak));
    shl_op_run_close(&run);
    return code;
}

/* A library may take another algorithm for other alignments; engines have one. */
static bool
may_differ(const shl_op_case *c)
{
    return c->op == SHL_OP_LINEAR_FORWARD || c->op == SHL_OP_LINEAR_BACKWARD_INPUT ||
           c->op == SHL_OP_LINEAR_BACKWARD_WEIGHT;
}

/* The tensors of two runs of a case hold the same bits. */
static int
bits_differ(shl_device *twin, const shl_op_case *c, const outcome *a, const outcome *b)
{
    shl_op_run *run = NULL;
    int differ = 0;
    assert_int_equal(shl_op_run_open(twin, c, SEED, 0, &run), SHL_OK);
    for (int k = 0; k < run->n_operands && !may_differ(c); k++) {
        size_t bytes = shl_op_operand_bytes(&run->operands[k]);
        if (memcmp(a->bytes[k], b->bytes[k], bytes) != 0) {
            print_error("%s: other bits in %s\n", c->name, run->operands[k].name);
            differ++;
        }
    }
    shl_op_run_close(&run);
    return differ;
}

/* Values at aligned and at odd addresses, with the same bits at both, so that neither the order of
 * threads nor the width of a load decides them; and the bytes that the virtual twin takes. */
static int
try_case(shl_device *d, shl_device *twin, const shl_op_case *c, double *worst)
{
    outcome plain = {0}, odd = {0}, planned = {0};
    double w[2] = {0.0, 0.0};
    int failed = run_case(d, c, 0, &w[0], &plain) != SHL_OK;
    failed += run_case(d, c, 3, &w[1], &odd) != SHL_OK;
    failed += run_case(twin, c, 0, NULL, &planned) != SHL_OK;
    failed += failed == 0 ? bits_differ(twin, c, &plain, &odd) : 0;
    if (memcmp(plain.peak, planned.peak, sizeof(plain.peak)) != 0) {
        print_error("%s: not the bytes that were planned\n", c->name);
        failed++;
    }
    for (int i = 0; i < 2; i++) {
        *worst = w[i] > *worst ? w[i] : *worst;
    }
    outcome_fini(&plain);
    outcome_fini(&odd);
    return failed;
}

static void
test_cuda_ops_match_the_reference(void **state)
{
    shl_device_config cfg = {.kind = "virtual", .stands_for = "cuda", .threads = 1};
    double worst[SHL_OP_COUNT] = {0.0};
    int failed = 0;
    size_t n = 0;
    const shl_op_case *c = shl_op_cases(&n);
    shl_device *d = open_device(), *twin = NULL;
    (void)state;
    assert_int_equal(shl_device_open(&cfg, &twin), SHL_OK);
    assert_int_equal(d->caps.row_align_bytes, twin->caps.row_align_bytes);
    for (size_t i = 0; i < n; i++) {
        if (is_chosen(&c[i])) {
            failed += try_case(d, twin, &c[i], &worst[c[i].op]);
        }
    }
    for (int op = 0; op < SHL_OP_COUNT; op++) {
        print_message("%-24s %.3f of what is allowed\n", shl_op_name((shl_op)op), worst[op]);
    }
    assert_int_equal(shl_device_close(&twin), SHL_OK);
    assert_int_equal(shl_device_close(&d), SHL_OK);
    assert_int_equal(failed, 0);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cuda_ops_match_the_reference),
    };
    printf("seed %u\n", SEED);
    return cmocka_run_group_tests_name("cuda_ops", tests, NULL, NULL);
}

/* tests/engines/api: what is refused, with which words, and what a failure leaves: the text on its own
 * handle, no memory, and ranks that end. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "kernels/base/heap.h"
#include "tests/engines/api/api_runs.h"

/* The last error of a handle (NULL: of the thread) contains `words` in one of its lines. */
static void
assert_said(const shl_lab *lab, int code, const char *words)
{
    shl_lab_error e = {.struct_bytes = sizeof(e)};
    shl_lab_error_get(lab, &e);
    bool found = strstr(e.what, words) || strstr(e.because, words) || strstr(e.advice, words);
    if (e.code != code || !found) {
        print_error("wanted \"%s\" (%s), got %s: %s | %s | %s\n", words, shl_lab_code_name(code),
                    shl_lab_code_name(e.code), e.what, e.because, e.advice);
    }
    assert_int_equal(e.code, code);
    assert_true(found);
    assert_true(code == SHL_LAB_OK || e.trace[0] == '\0' || strstr(e.trace, ".c:"));
}

static shl_lab *
open_small(const char *strategy)
{
    api_run r;
    shl_lab *lab = NULL;
    api_run_init(&r, strategy, 1);
    assert_int_equal(shl_lab_initialize(&r.o, NULL, &lab), SHL_LAB_OK);
    assert_non_null(lab);
    return lab;
}

static void
test_api_errors_sizes_of_structs(void **state)
{
    SHL_UNUSED(state);
    struct {
        shl_lab_options o;
        char newer[64];
    } big;
    static const size_t wrong[] = {0, 1, sizeof(shl_lab_options) - 1, (size_t)1 << 40};
    shl_lab_options o;
    shl_lab *lab = NULL;
    assert_int_equal(shl_lab_options_init(NULL, sizeof(o)), SHL_LAB_E_USAGE);
    for (size_t i = 0; i < SHL_ARRAY_LEN(wrong); i++) {
        assert_int_equal(shl_lab_options_init(&o, wrong[i]), SHL_LAB_E_USAGE);
        assert_int_equal(shl_lab_options_init(&o, sizeof(o)), SHL_LAB_OK);
        o.struct_bytes = wrong[i];
        assert_int_equal(shl_lab_initialize(&o, NULL, &lab), SHL_LAB_E_USAGE);
        assert_null(lab);
        assert_said(NULL, SHL_LAB_E_USAGE, "struct_bytes");
    }
    /* A newer header: fine while it uses nothing new. */
    assert_int_equal(shl_lab_options_init(&big.o, sizeof(big)), SHL_LAB_OK);
    assert_int_equal(big.o.struct_bytes, sizeof(big));
    assert_int_equal(shl_lab_initialize(&big.o, NULL, &lab), SHL_LAB_OK);
    assert_int_equal(shl_lab_close(&lab), SHL_LAB_OK);
    big.newer[63] = 1;
    assert_int_equal(shl_lab_initialize(&big.o, NULL, &lab), SHL_LAB_E_USAGE);
    assert_said(NULL, SHL_LAB_E_USAGE, "fields that this library does not know");
}

static void
test_api_errors_of_json(void **state)
{
    SHL_UNUSED(state);
    static const struct {
        const char *json, *words;
    } cases[] = {
        {"{\"model\": \"gpt2-tiny\",\n  \"stratgy\": \"ddp\"}", "unknown key \"stratgy\""},
        {"{\"model\": \"gpt2-tiny\",\n  \"stratgy\": \"ddp\"}", "\"strategy\""},
        {"{\"model\": \"gpt2-tiny\",\n  \"stratgy\": \"ddp\"}", "line 2, column 3"},
        {"{\"optim\": {\"weight_decay\": 0.1}}", "\"weight-decay\""},
        {"{\"lr\": 0.1}", "belongs into \"optim\""},
        {"{\"optim\": {\"batch\": 1}}", "belongs to the top"},
        {"{\"batch\": 1, \"batch\": 2}", "duplicate"},
        {"{\"batch\": 1", "line 1"},
        {"[1]", "not an object"},
        {"{\"batch\": \"four\"}", "\"batch\" is not a whole number"},
        {"{\"seed\": -1}", "whole number from 0"},
        {"{\"optim\": 3}", "\"optim\" is not an object"},
        {"{\"optim\": {\"betas\": [0.9]}}", "array of two numbers"},
        {"{\"device-memory\": \"1 furlong\"}", "furlong"},
        {"{\"strategy\": \"zero4\"}", "zero"},
        {"{\"model\": \"gpt2-tinny\"}", "gpt2-tiny"},
        {"{\"model\": \"mine\", \"shape\": {\"layers\": 2}}", "unknown model \"mine\""},
        {"{\"optim\": {\"optimizer\": \"adan\"}}", "\"adam\""},
        {"{\"optim\": {\"optimizer\": \"sgd\", \"betas\": [0.9, 0.9]}}", "sgd has no betas"},
        {"{\"optim\": {\"momentum\": 0.9}}", "adamw has no momentum"},
        {"{\"optim\": {\"lr\": -2}}", "lr is -2"},
        {"{\"dtype\": \"fp8\"}", "fp32, bf16, fp16"},
        {"{\"dtype\": \"fp16\"}", "fp16 without a loss scale"},
        {"{\"loss-scale\": \"auto\"}", "\"dynamic\", \"none\" or a number"},
        {"{\"loss-scale\": -3}", "the loss scale is -3"},
        {"{\"loss-scale\": \"dynamic\", \"hysteresis\": 0}", "at least 1"},
        {"{\"master-dtype\": \"bf16\"}", "with fp32 compute it must be fp32"},
        {"{\"dtype\": \"bf16\", \"reduce-dtype\": \"bf16\", \"strategy\": \"zero1\", "
         "\"offload-optimizer\": \"cpu\"}",
         "zero2 and zero3"},
        {"{\"optim\": {\"schedule\": \"cosin\"}}", "\"cosine\""},
        {"{\"ranks\": 4}", "rank 0 of a world of 1"},
        {"{\"device\": \"abacus\"}", "abacus"},
        {"{\"batch\": 0}", "batch is 0"},
        {"{\"seq\": 100000}", "context"},
    };
    for (size_t i = 0; i < SHL_ARRAY_LEN(cases); i++) {
        shl_lab *lab = NULL;
        assert_int_equal(shl_lab_initialize_json(cases[i].json, NULL, &lab), SHL_LAB_E_USAGE);
        assert_null(lab);
        assert_said(NULL, SHL_LAB_E_USAGE, cases[i].words);
    }
    assert_int_equal(shl_heap_live_blocks(), 0);
}

static void
test_api_errors_of_null(void **state)
{
    SHL_UNUSED(state);
    shl_lab *lab = NULL;
    shl_lab_world *world = NULL;
    shl_lab_options o;
    double loss = 1.0;
    uint64_t hash;
    shl_lab_report report = {.struct_bytes = sizeof(report)};
    shl_lab_world_options w = {.struct_bytes = sizeof(w), .ranks = 1};
    const char *const no_words[] = {NULL};
    assert_int_equal(shl_lab_options_init(&o, sizeof(o)), SHL_LAB_OK);
    assert_int_equal(shl_lab_initialize(&o, NULL, NULL), SHL_LAB_E_USAGE);
    assert_int_equal(shl_lab_initialize(NULL, NULL, &lab), SHL_LAB_E_USAGE);
    assert_int_equal(shl_lab_initialize_json(NULL, NULL, &lab), SHL_LAB_E_USAGE);
    assert_int_equal(shl_lab_initialize_json("{}", NULL, NULL), SHL_LAB_E_USAGE);
    const char **texts[] = {&o.model,    &o.strategy, &o.reduce_every, &o.optimizer,
                            &o.schedule, &o.device,   &o.stands_for};
    for (size_t i = 0; i < SHL_ARRAY_LEN(texts); i++) {
        const char *text = *texts[i];
        *texts[i] = NULL;
        assert_int_equal(shl_lab_initialize(&o, NULL, &lab), SHL_LAB_E_USAGE);
        assert_null(lab);
        *texts[i] = text;
    }
    assert_int_equal(shl_lab_begin_step(NULL, 1), SHL_LAB_E_USAGE);
    assert_int_equal(shl_lab_forward(NULL, NULL, NULL, NULL), SHL_LAB_E_USAGE);
    assert_int_equal(shl_lab_backward(NULL), SHL_LAB_E_USAGE);
    assert_int_equal(shl_lab_step(NULL, NULL), SHL_LAB_E_USAGE);
    assert_int_equal(shl_lab_eval(NULL, NULL, NULL, &loss), SHL_LAB_E_USAGE);
    assert_int_equal(shl_lab_agree(NULL, 0, NULL), SHL_LAB_E_USAGE);
    assert_int_equal(shl_lab_abort(NULL, 1, "x"), SHL_LAB_E_USAGE);
    assert_int_equal(shl_lab_save(NULL, "x", 0, NULL), SHL_LAB_E_USAGE);
    assert_int_equal(shl_lab_load(NULL, "x", NULL), SHL_LAB_E_USAGE);
    assert_int_equal(shl_lab_tensors(NULL, SHL_LAB_READ, NULL, NULL), SHL_LAB_E_USAGE);
    assert_int_equal(shl_lab_report_get(NULL, &report), SHL_LAB_E_USAGE);
    assert_int_equal(shl_lab_param_hash(NULL, &hash), SHL_LAB_E_USAGE);
    assert_said(NULL, SHL_LAB_E_USAGE, "the handle is NULL");
    assert_int_equal(shl_lab_run_threads(NULL, NULL, NULL), SHL_LAB_E_USAGE);
    assert_int_equal(shl_lab_run_threads(&w, NULL, NULL), SHL_LAB_E_USAGE);
    assert_int_equal(shl_lab_run_processes(&w, NULL), SHL_LAB_E_USAGE);
    assert_int_equal(shl_lab_run_processes(&w, no_words), SHL_LAB_E_USAGE);
    assert_int_equal(shl_lab_world_join(NULL), SHL_LAB_E_USAGE);
    assert_int_equal(shl_lab_world_join(&world), SHL_LAB_OK);
    assert_null(world);
    shl_lab_world_leave(NULL, 0);
    shl_lab_world_leave(&world, 0);
    shl_lab_error_get(NULL, NULL);
    assert_int_equal(shl_lab_close(NULL), SHL_LAB_OK);
    assert_int_equal(shl_lab_close(&lab), SHL_LAB_OK);

    lab = open_small("ddp");
    assert_int_equal(shl_lab_forward(lab, NULL, NULL, NULL), SHL_LAB_E_USAGE);
    assert_said(lab, SHL_LAB_E_USAGE, "tokens are NULL");
    assert_int_equal(shl_lab_save(lab, NULL, 0, NULL), SHL_LAB_E_USAGE);
    assert_int_equal(shl_lab_load(lab, "", NULL), SHL_LAB_E_USAGE);
    assert_int_equal(shl_lab_report_get(lab, NULL), SHL_LAB_E_USAGE);
    assert_int_equal(shl_lab_param_hash(lab, NULL), SHL_LAB_E_USAGE);
    assert_int_equal(shl_lab_tensors(lab, SHL_LAB_READ, NULL, NULL), SHL_LAB_E_USAGE);
    assert_int_equal(shl_lab_close(&lab), SHL_LAB_OK);
    assert_null(lab);
    assert_int_equal(shl_heap_live_blocks(), 0);
}

static void
test_api_errors_names_end(void **state)
{
    SHL_UNUSED(state);
    assert_string_equal(shl_lab_tier_name(0), "device");
    assert_string_equal(shl_lab_tag_name(0), "param");
    assert_string_equal(shl_lab_phase_name(0), "init");
    assert_string_equal(shl_lab_collective_name(0), "all_gather");
    assert_string_equal(shl_lab_code_name(SHL_LAB_E_OOM), "does-not-fit");
    for (int i = -1; i < 100; i += 100) {
        assert_null(shl_lab_tier_name(i));
        assert_null(shl_lab_tag_name(i));
        assert_null(shl_lab_phase_name(i));
        assert_null(shl_lab_collective_name(i));
        assert_string_equal(shl_lab_code_name(i), "system");
    }
}

static void
test_api_errors_of_order_leave_the_handle_usable(void **state)
{
    SHL_UNUSED(state);
    api_run r;
    shl_lab *lab = NULL;
    int32_t tokens[RUN_MAX_POSITIONS], targets[RUN_MAX_POSITIONS];
    shl_lab_step_report small = {.struct_bytes = 8};
    shl_lab_step_report report = {.struct_bytes = sizeof(report)};
    double loss = 0.0, plain = 0.0;
    api_run_init(&r, "zero3", 1);
    r.o.accum = 2;
    assert_int_equal(api_run_told(&r), SHL_LAB_OK);
    assert_int_equal(shl_lab_initialize(&r.o, NULL, &lab), SHL_LAB_OK);
    assert_int_equal(shl_lab_backward(lab), SHL_LAB_E_USAGE);
    assert_said(lab, SHL_LAB_E_USAGE, "without its forward");
    assert_int_equal(shl_lab_step(lab, NULL), SHL_LAB_E_USAGE);
    api_run_rows(&r, 0, 0, tokens, targets);
    assert_int_equal(shl_lab_forward(lab, tokens, targets, &loss), SHL_LAB_OK);
    assert_int_equal(shl_lab_forward(lab, tokens, targets, &loss), SHL_LAB_E_USAGE);
    assert_said(lab, SHL_LAB_E_USAGE, "shl_lab_backward comes next");
    assert_int_equal(shl_lab_step(lab, NULL), SHL_LAB_E_USAGE);
    assert_int_equal(shl_lab_backward(lab), SHL_LAB_OK);
    assert_int_equal(shl_lab_begin_step(lab, 16), SHL_LAB_E_USAGE);
    assert_int_equal(shl_lab_eval(lab, tokens, targets, &plain), SHL_LAB_E_USAGE);
    assert_said(lab, SHL_LAB_E_USAGE, "1 of 2 micro-batches");
    assert_int_equal(shl_lab_save(lab, "x", 0, NULL), SHL_LAB_E_USAGE);
    api_run_rows(&r, 0, 1, tokens, targets);
    assert_int_equal(shl_lab_forward(lab, tokens, targets, NULL), SHL_LAB_OK);
    assert_int_equal(shl_lab_backward(lab), SHL_LAB_OK);
    assert_int_equal(shl_lab_forward(lab, tokens, targets, NULL), SHL_LAB_E_USAGE);
    assert_said(lab, SHL_LAB_E_USAGE, "shl_lab_step comes next");
    assert_int_equal(shl_lab_step(lab, &small), SHL_LAB_E_USAGE);
    assert_int_equal(shl_lab_step(lab, &report), SHL_LAB_OK);
    /* None of it moved a bit. */
    assert_true(report.updated && report.loss == r.losses[0] && report.grad_norm == r.norms[0]);
    assert_int_equal(shl_lab_close(&lab), SHL_LAB_OK);
}

static void
test_api_errors_of_tokens_and_targets(void **state)
{
    SHL_UNUSED(state);
    api_run r;
    int32_t tokens[RUN_MAX_POSITIONS], targets[RUN_MAX_POSITIONS];
    shl_lab_step_report report = {.struct_bytes = sizeof(report)};
    double loss = 0.0;
    shl_lab *lab = open_small("fsdp");
    api_run_init(&r, "fsdp", 1);
    api_run_rows(&r, 0, 0, tokens, targets);
    for (int bad = -1; bad <= 67; bad += 68) {
        int32_t kept = tokens[5];
        tokens[5] = bad;
        assert_int_equal(shl_lab_forward(lab, tokens, targets, NULL), SHL_LAB_E_USAGE);
        assert_said(lab, SHL_LAB_E_USAGE, "token 5 of sequence 0");
        assert_int_equal(shl_lab_eval(lab, tokens, targets, &loss), SHL_LAB_E_USAGE);
        tokens[5] = kept;
        kept = targets[6];
        targets[6] = bad;
        assert_int_equal(shl_lab_forward(lab, tokens, targets, NULL), SHL_LAB_E_USAGE);
        assert_said(lab, SHL_LAB_E_USAGE, "target 6 of sequence 0");
        targets[6] = kept;
    }
    targets[3] = SHL_LAB_IGNORE;
    assert_int_equal(shl_lab_forward(lab, tokens, targets, NULL), SHL_LAB_E_USAGE);
    assert_said(lab, SHL_LAB_E_USAGE, "shl_lab_begin_step");
    assert_int_equal(shl_lab_begin_step(lab, 0), SHL_LAB_E_CONFIG);
    assert_int_equal(shl_lab_begin_step(lab, 17), SHL_LAB_E_CONFIG);
    assert_int_equal(shl_lab_eval(lab, tokens, targets, &loss), SHL_LAB_OK);
    assert_int_equal(shl_lab_begin_step(lab, 15), SHL_LAB_OK);
    assert_int_equal(shl_lab_forward(lab, tokens, targets, NULL), SHL_LAB_OK);
    assert_int_equal(shl_lab_backward(lab), SHL_LAB_OK);
    assert_int_equal(shl_lab_step(lab, &report), SHL_LAB_OK);
    assert_true(report.loss == loss);
    /* An announcement holds for one step. */
    assert_int_equal(shl_lab_forward(lab, tokens, targets, NULL), SHL_LAB_E_USAGE);
    assert_int_equal(shl_lab_close(&lab), SHL_LAB_OK);
}

static void
test_api_errors_stay_with_their_handle(void **state)
{
    SHL_UNUSED(state);
    shl_lab *a = open_small("ddp"), *b = open_small("zero3"), *c = NULL;
    assert_said(a, SHL_LAB_OK, "");
    assert_int_equal(shl_lab_backward(a), SHL_LAB_E_USAGE);
    assert_int_equal(shl_lab_load(b, "/nonexistent/folder", NULL), SHL_LAB_E_IO);
    assert_int_equal(shl_lab_initialize_json("{\"x\": 1}", NULL, &c), SHL_LAB_E_USAGE);
    assert_said(a, SHL_LAB_E_USAGE, "without its forward");
    assert_said(b, SHL_LAB_E_IO, "/nonexistent/folder");
    assert_said(NULL, SHL_LAB_E_USAGE, "unknown key");
    assert_int_equal(shl_lab_close(&a), SHL_LAB_OK);
    assert_said(b, SHL_LAB_E_IO, "/nonexistent/folder");
    assert_int_equal(shl_lab_close(&b), SHL_LAB_OK);
}

static void
test_api_errors_out_of_memory_leaves_nothing(void **state)
{
    SHL_UNUSED(state);
    api_run r;
    shl_lab *lab = NULL;
    int32_t tokens[RUN_MAX_POSITIONS], targets[RUN_MAX_POSITIONS];
    shl_lab_report report = {.struct_bytes = sizeof(report)};
    api_run_init(&r, "zero2", 1);
    assert_int_equal(api_run_told(&r), SHL_LAB_OK);
    uint64_t peak = r.report.memory[0].peak_bytes;
    assert_string_not_equal(shl_lab_phase_name(r.report.memory[0].peak_phase), "init");
    /* One byte below the peak: the step fails, the handle is broken, and closes clean. */
    r.o.device_memory_bytes = peak - 1;
    assert_int_equal(shl_lab_initialize(&r.o, NULL, &lab), SHL_LAB_OK);
    api_run_rows(&r, 0, 0, tokens, targets);
    int code = shl_lab_forward(lab, tokens, targets, NULL);
    if (code == SHL_LAB_OK) {
        code = shl_lab_backward(lab);
    }
    if (code == SHL_LAB_OK) {
        code = shl_lab_step(lab, NULL);
    }
    assert_int_equal(code, SHL_LAB_E_OOM);
    assert_int_equal(shl_lab_report_get(lab, &report), SHL_LAB_OK);
    assert_true(report.memory[0].peak_bytes < peak);
    assert_int_equal(shl_lab_forward(lab, tokens, targets, NULL), SHL_LAB_E_USAGE);
    assert_said(lab, SHL_LAB_E_USAGE, "has failed before");
    assert_int_equal(shl_lab_close(&lab), SHL_LAB_OK);
    /* Not even the parameters fit. */
    r.o.device_memory_bytes = 100000;
    assert_int_equal(shl_lab_initialize(&r.o, NULL, &lab), SHL_LAB_E_OOM);
    assert_null(lab);
    assert_int_equal(shl_heap_live_blocks(), 0);
}

static void
test_api_errors_every_failing_allocation_of_the_host(void **state)
{
    SHL_UNUSED(state);
    int failures = 0;
    for (int64_t n = 1;; n++) {
        shl_lab *lab = NULL;
        shl_heap_fail_at(n);
        int code = shl_lab_initialize_json("{\"shape\": {\"layers\": 1}, \"strategy\": \"fsdp\"}",
                                           NULL, &lab);
        shl_heap_fail_at(-1);
        if (code == SHL_LAB_OK) {
            assert_int_equal(shl_lab_close(&lab), SHL_LAB_OK);
            break;
        }
        failures++;
        assert_int_equal(code, SHL_LAB_E_HEAP);
        assert_null(lab);
        assert_int_equal(shl_heap_live_blocks(), 0);
    }
    assert_true(failures > 20);
    assert_int_equal(shl_heap_live_blocks(), 0);
}

/* --- several ranks ----------------------------------------------------------------------- */

typedef struct fault {
    api_run r;
    int how; /* 0: rank 1 returns, 1: it aborts, 2: it does not agree, 3: its options differ */
    int codes[3];
} fault;

static int
run_fault(shl_lab_world *world, void *ctx)
{
    fault *f = (fault *)ctx;
    api_run own = f->r;
    shl_lab *lab = NULL;
    int rank = shl_lab_world_rank(world);
    if (f->how == 3 && rank == 1) {
        own.o.strategy = "zero9";
    }
    int code = shl_lab_initialize(&own.o, world, &lab);
    for (int step = 0; step < 3 && code == SHL_LAB_OK; step++) {
        bool odd = rank == 1 && step == 1;
        if (odd && f->how == 0) {
            code = 77; /* a code that is none of ours */
        } else if (odd && f->how == 1) {
            code = shl_lab_abort(lab, SHL_LAB_E_IO, "rank 1 has lost its data");
        } else if (f->how == 2) {
            code = shl_lab_agree(lab, odd ? SHL_LAB_E_VERIFY : SHL_LAB_OK,
                                 odd ? "rank 1 has seen enough" : NULL);
        }
        if (code == SHL_LAB_OK) {
            code = api_run_step(&own, lab, rank, step, false);
        }
    }
    (void)shl_lab_close(&lab);
    f->codes[rank] = code;
    return code;
}

static void
test_api_errors_of_one_rank_end_all(void **state)
{
    SHL_UNUSED(state);
    static const struct {
        int code, others;
        const char *words;
    } want[] = {
        {SHL_LAB_E_SYSTEM, SHL_LAB_E_PEER, "returned 77"},
        {SHL_LAB_E_IO, SHL_LAB_OK, "rank 1 has lost its data"},
        {SHL_LAB_E_VERIFY, SHL_LAB_E_VERIFY, "rank 1 has seen enough"},
        {SHL_LAB_E_USAGE, SHL_LAB_OK, "zero9"},
    };
    for (int how = 0; how < 4; how++) {
        fault f = {.how = how};
        shl_lab_world_options w = {.struct_bytes = sizeof(w), .ranks = 3, .timeout_ms = 20000};
        api_run_init(&f.r, "zero3", 3);
        assert_int_equal(shl_lab_run_threads(&w, run_fault, &f), want[how].code);
        assert_said(NULL, want[how].code, want[how].words);
        for (int rank = 0; rank < 3; rank += 2) {
            assert_int_not_equal(f.codes[rank], SHL_LAB_OK);
            if (want[how].others != SHL_LAB_OK && how != 0) {
                assert_int_equal(f.codes[rank], want[how].others);
            }
        }
        assert_int_equal(shl_heap_live_blocks(), 0);
    }
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_api_errors_sizes_of_structs),
        cmocka_unit_test(test_api_errors_of_json),
        cmocka_unit_test(test_api_errors_of_null),
        cmocka_unit_test(test_api_errors_names_end),
        cmocka_unit_test(test_api_errors_of_order_leave_the_handle_usable),
        cmocka_unit_test(test_api_errors_of_tokens_and_targets),
        cmocka_unit_test(test_api_errors_stay_with_their_handle),
        cmocka_unit_test(test_api_errors_out_of_memory_leaves_nothing),
        cmocka_unit_test(test_api_errors_every_failing_allocation_of_the_host),
        cmocka_unit_test(test_api_errors_of_one_rank_end_all),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* tests/engines/api: dtype policies, loss scaling and handles without optimizer through the public header:
 * what was interrupted goes on as if it had not been, with skipped steps before and behind. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "engines/api/shardlab.h"

#define BATCH 2
#define SEQ 16
#define STEPS 8

typedef struct job {
    const char *json, *json_after; /* the handle that goes on */
    const char *dir;
    int stop_at; /* saved, closed and loaded after this many steps; 0: not */
    int steps;
    shl_lab_step_report reports[STEPS];
    uint64_t hash;
} job;

static void
fill(int rank, int64_t step, int32_t *tokens, int32_t *targets)
{
    for (int i = 0; i < BATCH * SEQ; i++) {
        tokens[i] = (int32_t)((step * 131 + rank * 17 + i * 7) % 97);
        targets[i] = (int32_t)((step * 131 + rank * 17 + i * 11 + 3) % 97);
    }
}

static int
train_some(shl_lab *lab, const job *j, int rank, int from, int to, shl_lab_step_report *reports)
{
    int32_t tokens[BATCH * SEQ], targets[BATCH * SEQ];
    (void)j;
    for (int i = from; i < to; i++) {
        shl_lab_step_report r = {.struct_bytes = sizeof(r)};
        fill(rank, i, tokens, targets);
        int code = shl_lab_forward(lab, tokens, targets, NULL);
        code = code == SHL_LAB_OK ? shl_lab_backward(lab) : code;
        code = code == SHL_LAB_OK ? shl_lab_step(lab, &r) : code;
        if (code != SHL_LAB_OK) {
            return code;
        }
        if (rank == 0) {
            reports[i] = r;
        }
    }
    return SHL_LAB_OK;
}

static int
run_rank(shl_lab_world *world, void *ctx)
{
    job *j = ctx;
    shl_lab *lab = NULL;
    int rank = shl_lab_world_rank(world);
    int first = j->stop_at > 0 ? j->stop_at : j->steps;
    uint64_t hash = 0;
    int code = shl_lab_initialize_json(j->json, world, &lab);
    code = code == SHL_LAB_OK ? train_some(lab, j, rank, 0, first, j->reports) : code;
    if (code == SHL_LAB_OK && j->stop_at > 0) {
        code = shl_lab_save(lab, j->dir, 5, NULL);
        (void)shl_lab_close(&lab);
        code = code == SHL_LAB_OK ? shl_lab_initialize_json(j->json_after, world, &lab) : code;
        code = code == SHL_LAB_OK ? shl_lab_load(lab, j->dir, NULL) : code;
        code = code == SHL_LAB_OK ? train_some(lab, j, rank, first, j->steps, j->reports) : code;
    }
    code = code == SHL_LAB_OK ? shl_lab_param_hash(lab, &hash) : code;
    if (rank == 0) {
        j->hash = hash;
    }
    (void)shl_lab_close(&lab);
    return code;
}

static void
run(job *j, int ranks)
{
    shl_lab_world_options o = {.struct_bytes = sizeof(o), .ranks = ranks};
    shl_lab_error error = {.struct_bytes = sizeof(error)};
    if (shl_lab_run_threads(&o, run_rank, j) != SHL_LAB_OK) {
        shl_lab_error_get(NULL, &error);
        fail_msg("%s\n%s\n%s\n%s", j->json, error.what, error.because, error.trace);
    }
}

#define SHAPE                                                                                      \
    "\"model\": \"small\", \"shape\": {\"layers\": 2, \"width\": 32, \"heads\": 4, \"vocab\": "    \
    "97, "                                                                                         \
    "\"context\": 16}, \"batch\": 2, \"seq\": 16, \"optim\": {\"clip\": 1.0, \"schedule\": "       \
    "\"cosine\", \"schedule-steps\": 20, \"warmup\": 3}"

static void
same_runs(const job *a, const job *b)
{
    for (int i = 0; i < a->steps; i++) {
        const shl_lab_step_report *x = &a->reports[i], *y = &b->reports[i];
        assert_memory_equal(&x->loss, &y->loss, sizeof(double));
        assert_int_equal(x->skipped, y->skipped);
        assert_int_equal(x->skipped_steps, y->skipped_steps);
        assert_int_equal(x->step, y->step);
        assert_true(x->loss_scale == y->loss_scale && x->lr == y->lr);
        assert_true(x->skipped || memcmp(&x->grad_norm, &y->grad_norm, sizeof(double)) == 0);
    }
    assert_true(a->hash == b->hash && a->hash != 0);
}

/* A scale that overflows at first, doubles every second clean step, and is interrupted before, between and
 * after its skipped steps; the other half runs under another strategy. */
static void
check_resume(const char *policy, int scale_power)
{
    static const char *const strategies[] = {"ddp",   "zero1", "zero2",
                                             "zero3", "fsdp",  "fsdp-grad-op"};
    static const int stops[] = {1, 3, 6};
    char json[1024], other[1024], dir[] = "/tmp/shl-policy-XXXXXX", command[64];
    assert_non_null(mkdtemp(dir));
    job whole = {.json = json, .steps = STEPS};
    for (int i = 0; i < 3; i++) {
        snprintf(json, sizeof(json),
                 "{" SHAPE ", \"strategy\": \"%s\", %s, \"loss-scale\": \"dynamic\", "
                 "\"initial-scale-power\": %d, \"hysteresis\": 1, \"loss-scale-window\": 2}",
                 strategies[2 * i], policy, scale_power);
        snprintf(other, sizeof(other),
                 "{" SHAPE ", \"strategy\": \"%s\", %s, \"loss-scale\": \"dynamic\", "
                 "\"initial-scale-power\": %d, \"hysteresis\": 1, \"loss-scale-window\": 2}",
                 strategies[(2 * i + 3) % 6], policy, scale_power);
        if (i == 0) {
            run(&whole, 2);
            int64_t skipped = whole.reports[STEPS - 1].skipped_steps;
            assert_true(whole.reports[0].skipped && skipped < STEPS - 2);
        }
        job halves = {
            .json = json, .json_after = other, .dir = dir, .stop_at = stops[i], .steps = STEPS};
        run(&halves, 2);
        same_runs(&whole, &halves);
    }
    snprintf(command, sizeof(command), "rm -rf %s", dir);
    assert_int_equal(system(command), 0);
}

static void
test_api_policy_resumes_with_skipped_steps(void **state)
{
    (void)state;
    check_resume("\"dtype\": \"fp32\"", 134);
    check_resume("\"dtype\": \"bf16\", \"moment-dtype\": \"bf16\"", 134);
    check_resume("\"dtype\": \"fp16\"", 22);
}

/* --- without an optimizer ------------------------------------------------------------------ */

static uint64_t
held(const shl_lab_report *r, const char *tag)
{
    for (int i = 0; i < r->n_tags; i++) {
        if (strcmp(shl_lab_tag_name(i), tag) == 0) {
            return r->memory[0].peak_tag_bytes[i];
        }
    }
    fail_msg("no tag %s", tag);
    return 0;
}

static void
test_api_policy_without_optimizer_only_evaluates(void **state)
{
    (void)state;
    int32_t tokens[BATCH * SEQ], targets[BATCH * SEQ];
    char dir[] = "/tmp/shl-policy-XXXXXX", command[64], json[1024];
    double trained_loss = 0.0, frozen_loss = 0.0;
    shl_lab *trained = NULL, *frozen = NULL;
    shl_lab_step_report reports[STEPS];
    shl_lab_report report = {.struct_bytes = sizeof(report)};
    shl_lab_error error = {.struct_bytes = sizeof(error)};
    assert_non_null(mkdtemp(dir));
    fill(0, 50, tokens, targets);
    assert_int_equal(shl_lab_initialize_json("{" SHAPE "}", NULL, &trained), SHL_LAB_OK);
    assert_int_equal(train_some(trained, NULL, 0, 0, 3, reports), SHL_LAB_OK);
    assert_int_equal(shl_lab_eval(trained, tokens, targets, &trained_loss), SHL_LAB_OK);
    assert_int_equal(shl_lab_save(trained, dir, 0, NULL), SHL_LAB_OK);
    for (int i = 0; i < 3; i++) {
        static const char *const strategies[] = {"ddp", "zero3", "fsdp"};
        snprintf(
            json, sizeof(json),
            "{\"model\": \"small\", \"shape\": {\"layers\": 2, \"width\": 32, \"heads\": 4, "
            "\"vocab\": 97, \"context\": 16}, \"batch\": 2, \"seq\": 16, \"strategy\": \"%s\", "
            "\"optim\": {\"optimizer\": \"none\"}}",
            strategies[i]);
        assert_int_equal(shl_lab_initialize_json(json, NULL, &frozen), SHL_LAB_OK);
        assert_int_equal(shl_lab_load(frozen, dir, NULL), SHL_LAB_OK);
        assert_int_equal(shl_lab_begin_step(frozen, 4), SHL_LAB_E_USAGE);
        assert_int_equal(shl_lab_forward(frozen, tokens, targets, NULL), SHL_LAB_E_USAGE);
        shl_lab_error_get(frozen, &error);
        assert_non_null(strstr(error.what, "without optimizer"));
        assert_int_equal(shl_lab_eval(frozen, tokens, targets, &frozen_loss), SHL_LAB_OK);
        assert_true(frozen_loss == trained_loss);
        assert_int_equal(shl_lab_report_get(frozen, &report), SHL_LAB_OK);
        assert_true(held(&report, "grad") + held(&report, "optim") + held(&report, "master") == 0);
        assert_true(held(&report, "param") > 0 && report.step == 3);
        assert_int_equal(shl_lab_close(&frozen), SHL_LAB_OK);
    }
    assert_int_equal(shl_lab_close(&trained), SHL_LAB_OK);
    snprintf(command, sizeof(command), "rm -rf %s", dir);
    assert_int_equal(system(command), 0);
}

/* The words of a policy come back in the report; a scale may be a number, a name or DeepSpeed's 0. */
static void
test_api_policy_is_reported(void **state)
{
    (void)state;
    static const struct {
        const char *json, *dtypes;
        double scale;
    } cases[] = {
        {"\"dtype\": \"fp32\"", "fp32 compute, fp32 master, fp32 reduce, fp32 grad, fp32 moments",
         1},
        {"\"dtype\": \"bf16\", \"moment-dtype\": \"bf16\"",
         "bf16 compute, fp32 master, fp32 reduce, fp32 grad, bf16 moments", 1},
        {"\"dtype\": \"fp16\", \"loss-scale\": 0",
         "fp16 compute, fp32 master, fp32 reduce, fp32 grad, fp32 moments", 65536},
        {"\"dtype\": \"fp16\", \"loss-scale\": \"dynamic\", \"initial-scale-power\": 5",
         "fp16 compute, fp32 master, fp32 reduce, fp32 grad, fp32 moments", 32},
        {"\"dtype\": \"bf16\", \"loss-scale\": 1000.5, \"master-dtype\": \"bf16\"",
         "bf16 compute, bf16 master, fp32 reduce, fp32 grad, fp32 moments", 1000.5},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        char json[1024];
        shl_lab *lab = NULL;
        shl_lab_report r = {.struct_bytes = sizeof(r)};
        shl_lab_step_report step = {.struct_bytes = sizeof(step)};
        snprintf(json, sizeof(json), "{" SHAPE ", \"device\": \"virtual\", \"ranks\": 4, %s}",
                 cases[i].json);
        assert_int_equal(shl_lab_initialize_json(json, NULL, &lab), SHL_LAB_OK);
        assert_int_equal(shl_lab_forward(lab, NULL, NULL, NULL), SHL_LAB_OK);
        assert_int_equal(shl_lab_backward(lab), SHL_LAB_OK);
        assert_int_equal(shl_lab_step(lab, &step), SHL_LAB_OK);
        assert_int_equal(shl_lab_report_get(lab, &r), SHL_LAB_OK);
        assert_string_equal(r.dtypes, cases[i].dtypes);
        assert_true(r.loss_scale == cases[i].scale && step.loss_scale == cases[i].scale);
        assert_int_equal(r.skipped_steps, 0);
        assert_int_equal(shl_lab_close(&lab), SHL_LAB_OK);
    }
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_api_policy_resumes_with_skipped_steps),
        cmocka_unit_test(test_api_policy_without_optimizer_only_evaluates),
        cmocka_unit_test(test_api_policy_is_reported),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

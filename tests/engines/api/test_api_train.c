/* tests/engines/api: the loop of shardlab.h gives the engines' bits, alone and beside other handles, with
 * evaluations in between, on the virtual device and in processes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "kernels/base/heap.h"
#include "tests/engines/api/api_runs.h"
#include "tests/support/engine_world.h"

static const char *const strategies[] = {"ddp", "zero1", "zero2", "zero3", "fsdp", "fsdp-grad-op"};

static void
test_api_train_equals_the_engine_bit_for_bit(void **state)
{
    SHL_UNUSED(state);
    for (int s = 0; s < SHL_STRATEGY_COUNT; s++) {
        for (int ranks = 1; ranks <= 3; ranks++) {
            ew_config c;
            ew_result want;
            api_run got;
            ew_config_init(&c, (shl_strategy)s, ranks);
            c.engine.accum = ranks == 2 ? 3 : 1;
            c.timeout_ms = 20000;
            ew_run(&c, &want);
            assert_int_equal(want.code, SHL_OK);
            api_run_init(&got, strategies[s], ranks);
            got.o.accum = c.engine.accum;
            assert_int_equal(api_run_told(&got), SHL_LAB_OK);
            for (int step = 0; step < c.steps; step++) {
                assert_memory_equal(&got.losses[step], &want.reports[step].loss, sizeof(double));
                assert_memory_equal(&got.norms[step], &want.reports[step].grad_norm,
                                    sizeof(double));
            }
            assert_true(got.hash != 0 && got.hash == want.param_hash);
            ew_result_fini(&want);
        }
    }
    assert_int_equal(shl_heap_live_blocks(), 0);
}

static void
test_api_train_forward_tells_the_loss_of_its_batch(void **state)
{
    SHL_UNUSED(state);
    api_run r;
    api_run_init(&r, "zero3", 1);
    assert_int_equal(api_run_told(&r), SHL_LAB_OK);
    for (int i = 0; i < r.steps; i++) {
        /* One rank and one micro-batch: the batch is the whole. */
        assert_true(r.losses[i] > 1.0 && r.first_loss[i] == r.losses[i]);
    }
}

static void
test_api_train_evaluation_changes_nothing_else(void **state)
{
    SHL_UNUSED(state);
    for (size_t s = 0; s < SHL_ARRAY_LEN(strategies); s++) {
        for (int ranks = 1; ranks <= 2; ranks++) {
            api_run plain, evaluated;
            api_run_init(&plain, strategies[s], ranks);
            plain.o.accum = 2;
            evaluated = plain;
            evaluated.eval_in_between = true;
            assert_int_equal(api_run_told(&plain), SHL_LAB_OK);
            assert_int_equal(api_run_told(&evaluated), SHL_LAB_OK);
            assert_memory_equal(plain.losses, evaluated.losses, sizeof(plain.losses));
            assert_memory_equal(plain.norms, evaluated.norms, sizeof(plain.norms));
            assert_true(plain.hash == evaluated.hash);
            for (int i = 0; i < plain.steps; i++) {
                assert_true(evaluated.evals[i] > 1.0);
            }
            /* What is resident afterwards is what was before. */
            assert_memory_equal(evaluated.report.memory[0].now_tag_bytes,
                                plain.report.memory[0].now_tag_bytes,
                                sizeof(plain.report.memory[0].now_tag_bytes));
        }
    }
}

/* The loss of a step on the batch that an evaluation sees next: the same arithmetic, one update apart. */
static void
test_api_train_evaluation_is_the_loss_of_that_batch(void **state)
{
    SHL_UNUSED(state);
    double evals[SHL_STRATEGY_COUNT][2];
    for (size_t s = 0; s < SHL_ARRAY_LEN(strategies); s++) {
        api_run r;
        api_run_init(&r, strategies[s], 2);
        r.eval_in_between = true;
        r.steps = 2;
        r.o.lr = 0.0;
        r.o.weight_decay = 0.0;
        assert_int_equal(api_run_told(&r), SHL_LAB_OK);
        /* Parameters stand still, so every evaluation of batch 0 is its training loss. */
        assert_true(r.evals[0] == r.losses[0] && r.evals[1] == r.losses[0]);
        assert_true(r.losses[1] != r.losses[0]);
        memcpy(evals[s], r.evals, sizeof(evals[s]));
        assert_memory_equal(evals[s], evals[0], sizeof(evals[0]));
    }
}

static void
test_api_train_virtual_twin_has_the_same_bytes(void **state)
{
    SHL_UNUSED(state);
    for (size_t s = 0; s < SHL_ARRAY_LEN(strategies); s++) {
        for (int ranks = 1; ranks <= 2; ranks++) {
            api_run real, twin;
            api_run_init(&real, strategies[s], ranks);
            real.eval_in_between = true;
            real.o.accum = 2;
            twin = real;
            twin.o.device = "virtual";
            assert_int_equal(api_run_told(&real), SHL_LAB_OK);
            assert_int_equal(api_run_told(&twin), SHL_LAB_OK);
            assert_true(twin.report.predicted && !real.report.predicted);
            assert_true(twin.report.trace_hash == real.report.trace_hash);
            assert_memory_equal(twin.report.memory, real.report.memory, sizeof(real.report.memory));
            assert_memory_equal(twin.report.traffic, real.report.traffic,
                                sizeof(real.report.traffic));
            assert_true(twin.hash == 0 && twin.losses[0] == 0.0);
        }
    }
}

static void
test_api_train_json_is_the_same_as_options(void **state)
{
    SHL_UNUSED(state);
    api_run a, b;
    api_run_init(&a, "zero2", 2);
    a.o.accum = 2;
    a.o.lr = 2e-3;
    a.o.beta2 = 0.99;
    a.o.clip = 0.5;
    a.o.tied = 0;
    a.o.schedule = "cosine";
    a.o.schedule_steps = 20;
    a.o.warmup = 2;
    b = a;
    b.json = "{\"model\": \"small\", \"shape\": {\"vocab\": 67, \"context\": 16, \"layers\": 3,"
             " \"width\": 20, \"heads\": 5, \"tied\": false}, \"strategy\": \"zero2\","
             " \"bucket\": 4000, \"batch\": 1, \"seq\": 16, \"accum\": 2, \"seed\": 1234,"
             " \"device-memory\": \"1GiB\", \"ranks\": 2, \"optim\": {\"lr\": 2e-3,"
             " \"betas\": [0.9, 0.99], \"clip\": 0.5, \"schedule\": \"cosine\","
             " \"schedule-steps\": 20, \"warmup\": 2}}";
    assert_int_equal(api_run_told(&a), SHL_LAB_OK);
    assert_int_equal(api_run_told(&b), SHL_LAB_OK);
    assert_memory_equal(a.losses, b.losses, sizeof(a.losses));
    assert_true(a.hash == b.hash && a.hash != 0);
}

/* --- several handles --------------------------------------------------------------------- */

typedef struct pair_job {
    api_run a, b;
} pair_job;

/* Two handles of one rank, step by step in turn, sharing its world. */
static int
run_pair(shl_lab_world *world, void *ctx)
{
    pair_job *job = (pair_job *)ctx;
    shl_lab *a = NULL, *b = NULL;
    int rank = shl_lab_world_rank(world);
    int code = shl_lab_initialize(&job->a.o, world, &a);
    if (code == SHL_LAB_OK) {
        code = shl_lab_initialize(&job->b.o, world, &b);
    }
    for (int step = 0; step < job->a.steps && code == SHL_LAB_OK; step++) {
        code = api_run_step(&job->a, a, rank, step, rank == 0);
        if (code == SHL_LAB_OK) {
            code = api_run_step(&job->b, b, rank, step, rank == 0);
        }
    }
    uint64_t hashes[2] = {0, 0};
    if (code == SHL_LAB_OK) {
        code = shl_lab_param_hash(a, &hashes[0]);
    }
    if (code == SHL_LAB_OK) {
        code = shl_lab_param_hash(b, &hashes[1]);
    }
    if (rank == 0) {
        job->a.hash = hashes[0];
        job->b.hash = hashes[1];
    }
    int closed_a = shl_lab_close(&a), closed_b = shl_lab_close(&b);
    return code != SHL_LAB_OK ? code : closed_a != SHL_LAB_OK ? closed_a : closed_b;
}

static void
test_api_train_handles_do_not_disturb_each_other(void **state)
{
    SHL_UNUSED(state);
    for (int ranks = 1; ranks <= 2; ranks++) {
        pair_job job;
        api_run a, b;
        api_run_init(&a, "fsdp", ranks);
        api_run_init(&b, "zero2", ranks);
        b.o.layers = 2;
        b.o.width = 30;
        b.o.seed = 99;
        job.a = a;
        job.b = b;
        assert_int_equal(api_run_told(&a), SHL_LAB_OK);
        assert_int_equal(api_run_told(&b), SHL_LAB_OK);
        shl_lab_world_options w = {.struct_bytes = sizeof(w), .ranks = ranks, .timeout_ms = 20000};
        int code = ranks == 1 ? run_pair(NULL, &job) : shl_lab_run_threads(&w, run_pair, &job);
        assert_int_equal(code, SHL_LAB_OK);
        assert_memory_equal(job.a.losses, a.losses, sizeof(a.losses));
        assert_memory_equal(job.b.losses, b.losses, sizeof(b.losses));
        assert_true(job.a.hash == a.hash && job.b.hash == b.hash);
    }
    assert_int_equal(shl_heap_live_blocks(), 0);
}

/* --- processes --------------------------------------------------------------------------- */

/* A rank process of the test below is this program; it tells by its exit code alone. */
static int
run_as_process(shl_lab_world *world)
{
    const char *text = getenv("TEST_API_HASH");
    api_run r;
    api_run_init(&r, "zero3", shl_lab_world_size(world));
    int code = api_run_rank(world, &r);
    if (code == SHL_LAB_OK && shl_lab_world_rank(world) == 0 &&
        (!text || r.hash != strtoull(text, NULL, 16))) {
        code = SHL_LAB_E_VERIFY;
    }
    return code;
}

static void
test_api_train_processes_give_the_bits_of_threads(void **state)
{
    SHL_UNUSED(state);
    api_run r;
    char text[32];
    const char *argv[] = {"/proc/self/exe", NULL};
    shl_lab_world_options w = {.struct_bytes = sizeof(w), .ranks = 2, .timeout_ms = 20000};
    api_run_init(&r, "zero3", 2);
    assert_int_equal(api_run_told(&r), SHL_LAB_OK);
    (void)snprintf(text, sizeof(text), "%llx", (unsigned long long)r.hash);
    assert_int_equal(setenv("TEST_API_HASH", text, 1), 0);
    assert_int_equal(shl_lab_run_processes(&w, argv), SHL_LAB_OK);
    assert_int_equal(setenv("TEST_API_HASH", "1", 1), 0);
    assert_int_equal(shl_lab_run_processes(&w, argv), SHL_LAB_E_VERIFY);
}

int
main(void)
{
    shl_lab_world *world = NULL;
    int code = shl_lab_world_join(&world);
    if (world) {
        code = run_as_process(world);
        shl_lab_world_leave(&world, code);
    }
    if (code != SHL_LAB_OK || getenv("SHL_WORLD")) {
        return code;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_api_train_equals_the_engine_bit_for_bit),
        cmocka_unit_test(test_api_train_forward_tells_the_loss_of_its_batch),
        cmocka_unit_test(test_api_train_evaluation_changes_nothing_else),
        cmocka_unit_test(test_api_train_evaluation_is_the_loss_of_that_batch),
        cmocka_unit_test(test_api_train_virtual_twin_has_the_same_bytes),
        cmocka_unit_test(test_api_train_json_is_the_same_as_options),
        cmocka_unit_test(test_api_train_handles_do_not_disturb_each_other),
        cmocka_unit_test(test_api_train_processes_give_the_bits_of_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

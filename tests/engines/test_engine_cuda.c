/* tests/engines: every engine on the cuda device (its object emulated) against the cpu's losses, against
 * the virtual device that stands for it, and against itself. */
#include "tests/support/engine_twin.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/base/option.h"
#include "kernels/base/str.h"
#include "tests/support/lab_memory.h"
#include "tests/support/temp_folder.h"

static void
expect_near_cpu(const ew_config *cuda, const ew_result *got, double allowed)
{
    char label[ET_LABEL_BYTES];
    ew_config c = *cuda;
    ew_result cpu;
    c.device = "cpu";
    et_label(cuda, label, sizeof(label));
    et_run(&c, &cpu);
    for (int i = 0; i < c.steps; ++i) {
        double a = got->reports[i].loss, b = cpu.reports[i].loss;
        double x = got->reports[i].grad_norm, y = cpu.reports[i].grad_norm;
        if (!(fabs(a - b) <= allowed * fabs(b)) || !(fabs(x - y) <= 10.0 * allowed * fabs(y))) {
            fail_msg("%s: step %d: loss %.9g, cpu %.9g; norm %.9g, cpu %.9g", label, i + 1, a, b, x,
                     y);
        }
    }
}

/* Peaks by tag, order of events, collectives and what the arenas took. */
static void
expect_planned(const ew_config *c, const ew_result *got)
{
    for (int rank = 0; rank < c->ranks; ++rank) {
        ew_config v = *c;
        ew_result virt;
        v.as = "cuda";
        et_expect_twin(&v, got, rank, &virt);
        assert_memory_equal(virt.reserved[0], got->reserved[rank], sizeof(virt.reserved[0]));
    }
}

static void
try_run(ew_config *c, double allowed)
{
    ew_result got, again;
    c->device = "cuda";
    et_run(c, &got);
    if (c->engine.strategy == SHL_ZERO3) { /* with all that there is: gathers, buckets, shards */
        et_run(c, &again);
        et_expect_same_bits(c, &got, &again);
    }
    expect_planned(c, &got);
    expect_near_cpu(c, &got, allowed);
}

static void
small(ew_config *c, shl_strategy s, int ranks)
{
    ew_config_init(c, s, ranks);
    c->model.layers = 2;
    c->engine.seq = 8;
    c->steps = 2;
    c->engine.optim.clip = 0.5;
}

static void
test_engine_cuda_alone_follows_the_cpu(void **state)
{
    (void)state;
    for (int s = 0; s < SHL_STRATEGY_COUNT; ++s) {
        ew_config c;
        small(&c, (shl_strategy)s, 1);
        c.engine.accum = 1 + s % 2;
        try_run(&c, 1e-4);
    }
}

static void
test_engine_cuda_of_two_ranks_follows_the_cpu(void **state)
{
    static const shl_strategy some[] = {SHL_ZERO1, SHL_ZERO3, SHL_FSDP};
    (void)state;
    for (int i = 0; i < 3; ++i) {
        ew_config c;
        small(&c, some[i], 2);
        c.engine.prefetch = i;
        try_run(&c, 1e-4);
    }
}

static void
test_engine_cuda_runs_a_llama_in_bf16(void **state)
{
    ew_config c;
    (void)state;
    small(&c, SHL_ZERO3, 1);
    ew_config_llama(&c);
    c.model.layers = 2;
    et_set_policy(&c, SHL_BF16);
    try_run(&c, 2e-2);
}

/* Master weights, moments and gradients in host memory: updated there, by the host's kernels. */
static void
test_engine_cuda_updates_in_host_memory(void **state)
{
    (void)state;
    for (int bf16 = 0; bf16 < 2; ++bf16) {
        ew_config c;
        small(&c, SHL_ZERO3, 1);
        c.engine.offload.optimizer = SHL_OFFLOAD_HOST;
        c.engine.offload.param = bf16 != 0 ? SHL_OFFLOAD_HOST : SHL_OFFLOAD_NONE;
        c.engine.offload.ratio = 1.0;
        c.engine.offload.sub_group_elems = 777;
        c.engine.offload.pin = bf16 != 0;
        if (bf16 != 0) {
            et_set_policy(&c, SHL_BF16);
        }
        try_run(&c, bf16 != 0 ? 2e-2 : 1e-4);
    }
}

/* What a run takes of card and host it takes when it is opened: no step, evaluation, save or load takes more.
 * With all that there is in host memory, and of a handle that only evaluates. */
static void
test_engine_cuda_takes_its_memory_beforehand(void **state)
{
    (void)state;
    for (int far = 0; far < 2; ++far) {
        char dir[64];
        shl_lab_options o;
        lm_result got, plan;
        lm_options(&o, "cuda", "zero3");
        o.offload_optimizer = o.offload_param = o.offload_activations = far ? "cpu" : "none";
        o.pin_memory = far;
        o.recompute = far ? "full" : "none";
        o.dtype = far ? "bf16" : "fp32";
        o.optimizer = far ? "adamw" : "none";
        shl_strf(dir, sizeof(dir), "%s/%d", folder, far);
        if (lm_run(&o, NULL, dir, far, &got) != SHL_OK) {
            fail_msg("far %d: %s; %s\n%s", far, shl_err_get()->what, shl_err_get()->because,
                     shl_err_get()->trace);
        }
        o.device = "virtual";
        o.stands_for = "cuda";
        assert_int_equal(lm_run(&o, NULL, NULL, far, &plan), SHL_OK);
        got.taken.driver_bytes = 0;
        assert_memory_equal(&plan.taken, &got.taken, sizeof(got.taken));
    }
}

/* The host touches no device memory: in this process it cannot. */
int
main(void)
{
    setenv("SHL_EMULATED_STRICT", "1", 1);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_engine_cuda_alone_follows_the_cpu),
        cmocka_unit_test(test_engine_cuda_of_two_ranks_follows_the_cpu),
        cmocka_unit_test(test_engine_cuda_runs_a_llama_in_bf16),
        cmocka_unit_test(test_engine_cuda_updates_in_host_memory),
        cmocka_unit_test(test_engine_cuda_takes_its_memory_beforehand),
    };
    return cmocka_run_group_tests_name("engine_cuda", tests, make_folder, remove_folder);
}

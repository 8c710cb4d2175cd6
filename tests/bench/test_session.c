/* tests/bench: sessions: rank placement of a batch, stopping, failures that leave nothing, resuming, and
 * a virtual run that tells the same bytes. The engines' own exactness is tested in tests/engines. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "bench/session.h"
#include "kernels/base/heap.h"
#include "kernels/base/rng.h"
#include "tests/support/temp_folder.h"

/* Small enough for a run in a blink. */
static void
small(shl_session_config *c, shl_strategy s, int ranks)
{
    shl_session_config_init(c);
    c->shape.layers = 2;
    c->shape.width = 32;
    c->shape.heads = 2;
    c->shape.context = 16;
    c->engine.seq = 16;
    c->engine.batch = 2;
    c->engine.strategy = s;
    assert_int_equal(shl_reduce_every_resolve(s, SHL_REDUCE_AUTO, &c->engine.reduce_every), SHL_OK);
    c->ranks = ranks;
    c->steps = 4;
    c->timeout_ms = 20000;
}

static void
test_session_ranks_share_one_global_batch(void **state)
{
    SHL_UNUSED(state);
    static const int splits[][3] = {/* ranks, batch, accumulation */
                                    {1, 8, 1}, {2, 4, 1}, {4, 2, 1},
                                    {1, 2, 4}, {2, 2, 2}, {4, 1, 2}};
    double losses[4] = {0};
    for (size_t i = 0; i < SHL_ARRAY_LEN(splits); i++) {
        shl_session_config c;
        shl_session_result r;
        small(&c, SHL_DDP, splits[i][0]);
        c.engine.batch = splits[i][1];
        c.engine.accum = splits[i][2];
        assert_int_equal(shl_session_run(&c, NULL, &r), SHL_OK);
        assert_int_equal(r.n_steps, 4);
        for (int s = 0; s < 4; s++) {
            assert_int_equal(r.steps[s].tokens, 8 * 16);
            double d = r.steps[s].loss - losses[s];
            /* Sums in another order: the same batch to rounding, another batch not by far. */
            assert_true(i == 0 || (d < 1e-5 && d > -1e-5));
            losses[s] = i == 0 ? r.steps[s].loss : losses[s];
        }
        shl_session_result_fini(&r);
    }
    assert_int_equal(shl_heap_live_blocks(), 0);
}

typedef struct row_log {
    atomic_int seen[8];
    int64_t n_valid_calls;
} row_log;

static shl_code
log_row(void *ctx, int64_t step, int64_t row, int32_t *tokens, int32_t *targets)
{
    row_log *log = (row_log *)ctx;
    if (row < 0 || row >= 8 || step != 0) {
        return SHL_RAISE(SHL_E_BUG, "row %lld of step %lld", (long long)row, (long long)step);
    }
    log->seen[row]++;
    for (int t = 0; t < 16; t++) {
        tokens[t] = targets[t] = (int32_t)(shl_rng_u64(1, (uint64_t)row, (uint64_t)t) % 256);
    }
    return SHL_OK;
}

static int64_t
count_valid(void *ctx, int64_t step)
{
    SHL_UNUSED(ctx);
    SHL_UNUSED(step);
    return 8 * 16;
}

static void
test_session_every_row_is_taken_once(void **state)
{
    SHL_UNUSED(state);
    row_log log = {0};
    shl_session_batches batches = {log_row, count_valid, &log};
    shl_session_config c;
    shl_session_result r;
    small(&c, SHL_ZERO3, 2);
    c.engine.accum = 2;
    c.steps = 1;
    c.batches = &batches;
    assert_int_equal(shl_session_run(&c, NULL, &r), SHL_OK);
    for (int i = 0; i < 8; i++) {
        assert_int_equal(log.seen[i], 1);
    }
    shl_session_result_fini(&r);
}

static void
test_session_virtual_tells_the_same_bytes(void **state)
{
    SHL_UNUSED(state);
    for (int s = 0; s < SHL_STRATEGY_COUNT; s++) {
        for (int ranks = 1; ranks <= 2; ranks++) {
            shl_session_config c;
            shl_session_result real, plan;
            small(&c, (shl_strategy)s, ranks);
            assert_int_equal(shl_session_run(&c, NULL, &real), SHL_OK);
            c.device = "virtual";
            assert_int_equal(shl_session_run(&c, NULL, &plan), SHL_OK);
            assert_true(plan.predicted && !real.predicted);
            assert_true(real.comm_uniform && plan.comm_uniform);
            assert_int_equal(plan.param_hash, 0);
            assert_memory_equal(plan.tiers, real.tiers, sizeof(real.tiers));
            assert_memory_equal(&plan.comm_step, &real.comm_step, sizeof(real.comm_step));
            assert_int_equal(plan.trace_hash, real.trace_hash);
            assert_string_equal(plan.layout_name, real.layout_name);
            shl_session_result_fini(&real);
            shl_session_result_fini(&plan);
        }
    }
    assert_int_equal(shl_heap_live_blocks(), 0);
}

/* The events must carry the ledger from what was held to what was held, and through the peak. */
static void
check_timeline(const shl_session_result *r, int ranks)
{
    const shl_session_timeline *t = &r->timeline;
    size_t held[SHL_TIER_COUNT][SHL_TAG_COUNT], total[SHL_TIER_COUNT] = {0}, largest = 0;
    assert_int_equal(t->step, 2);
    assert_true(t->n_events > 20);
    for (int tier = 0; tier < SHL_TIER_COUNT; tier++) {
        for (int tag = 0; tag < SHL_TAG_COUNT; tag++) {
            held[tier][tag] = (size_t)t->held_bytes[tier][tag];
            total[tier] += held[tier][tag];
        }
    }
    for (int64_t i = 0; i < t->n_events; i++) {
        const shl_ledger_event *e = &t->events[i];
        assert_int_equal(e->at, i);
        held[e->tier][e->tag] += (size_t)e->delta_bytes;
        total[e->tier] += (size_t)e->delta_bytes;
        assert_int_equal(e->total_bytes, total[e->tier]);
        if (e->tier == SHL_TIER_DEVICE && total[e->tier] > largest) {
            largest = total[e->tier];
            if (ranks == 1 && largest == r->tiers[SHL_TIER_DEVICE].peak_bytes) {
                assert_memory_equal(held[SHL_TIER_DEVICE],
                                    r->tiers[SHL_TIER_DEVICE].at_peak_tag_bytes,
                                    sizeof(held[SHL_TIER_DEVICE]));
            }
        }
    }
    assert_int_equal(largest, r->tiers[SHL_TIER_DEVICE].peak_bytes);
    /* A steady step leaves what it found. */
    for (int tag = 0; tag < SHL_TAG_COUNT; tag++) {
        assert_int_equal(held[SHL_TIER_DEVICE][tag], t->held_bytes[SHL_TIER_DEVICE][tag]);
    }
}

static void
test_session_timeline_adds_up_to_the_peak(void **state)
{
    SHL_UNUSED(state);
    for (int s = 0; s < SHL_STRATEGY_COUNT; s++) {
        for (int ranks = 1; ranks <= 2; ranks++) {
            shl_session_config c;
            shl_session_result real, plan;
            small(&c, (shl_strategy)s, ranks);
            c.timeline = true;
            assert_int_equal(shl_session_run(&c, NULL, &real), SHL_OK);
            c.device = "virtual";
            assert_int_equal(shl_session_run(&c, NULL, &plan), SHL_OK);
            check_timeline(&real, ranks);
            assert_int_equal(plan.timeline.n_events, real.timeline.n_events);
            assert_memory_equal(plan.timeline.held_bytes, real.timeline.held_bytes,
                                sizeof(real.timeline.held_bytes));
            assert_memory_equal(plan.timeline.events, real.timeline.events,
                                (size_t)real.timeline.n_events * sizeof(shl_ledger_event));
            shl_session_result_fini(&real);
            shl_session_result_fini(&plan);
        }
    }
    assert_int_equal(shl_heap_live_blocks(), 0);
}

static void
test_session_timeline_of_a_single_step(void **state)
{
    SHL_UNUSED(state);
    shl_session_config c;
    shl_session_result r;
    small(&c, SHL_ZERO2, 2);
    c.steps = 1;
    assert_int_equal(shl_session_run(&c, NULL, &r), SHL_OK);
    assert_int_equal(r.timeline.step, 0);
    assert_null(r.timeline.events);
    shl_session_result_fini(&r);
    c.timeline = true;
    assert_int_equal(shl_session_run(&c, NULL, &r), SHL_OK);
    assert_int_equal(r.timeline.step, 1);
    assert_true(r.timeline.n_events > 0);
    shl_session_result_fini(&r);
}

static shl_code
refuse_third_step(void *ctx, const shl_step_report *r)
{
    (*(int *)ctx)++;
    return r->step == 3 ? SHL_RAISE(SHL_E_IO, "the third step cannot be told") : SHL_OK;
}

static void
test_session_failing_listener_ends_every_rank(void **state)
{
    SHL_UNUSED(state);
    for (int ranks = 1; ranks <= 3; ranks++) {
        int calls = 0;
        shl_session_sink sink = {.on_step = refuse_third_step, .ctx = &calls};
        shl_session_config c;
        shl_session_result r;
        small(&c, SHL_FSDP, ranks);
        assert_int_equal(shl_session_run(&c, &sink, &r), SHL_E_IO);
        assert_non_null(strstr(shl_err_get()->what, "the third step cannot be told"));
        assert_int_equal(calls, 3);
        assert_null(r.steps);
        assert_int_equal(shl_heap_live_blocks(), 0);
    }
}

static atomic_int stop;

static shl_code
stop_after_two(void *ctx, const shl_step_report *r)
{
    SHL_UNUSED(ctx);
    if (r->step == 2) {
        atomic_store(&stop, 1);
    }
    return SHL_OK;
}

static void
test_session_stops_between_steps_with_a_result(void **state)
{
    SHL_UNUSED(state);
    for (int ranks = 1; ranks <= 2; ranks++) {
        shl_session_sink sink = {.on_step = stop_after_two};
        shl_session_config c;
        shl_session_result r;
        small(&c, SHL_ZERO2, ranks);
        atomic_store(&stop, 0);
        c.stop = &stop;
        assert_int_equal(shl_session_run(&c, &sink, &r), SHL_E_INTERRUPTED);
        assert_true(r.n_steps >= 2 && r.n_steps <= 3);
        assert_true(r.param_hash != 0 && r.tiers[SHL_TIER_DEVICE].peak_bytes > 0);
        shl_session_result_fini(&r);
    }
}

static void
test_session_limit_is_an_error_of_every_rank(void **state)
{
    SHL_UNUSED(state);
    shl_session_config c;
    shl_session_result r;
    small(&c, SHL_DDP, 2);
    assert_int_equal(shl_session_run(&c, NULL, &r), SHL_OK);
    size_t peak = r.tiers[SHL_TIER_DEVICE].peak_bytes;
    shl_session_result_fini(&r);
    c.device_memory_bytes = peak;
    assert_int_equal(shl_session_run(&c, NULL, &r), SHL_OK);
    shl_session_result_fini(&r);
    c.device_memory_bytes = peak - 1;
    assert_int_equal(shl_session_run(&c, NULL, &r), SHL_E_OOM);
    assert_int_equal(shl_heap_live_blocks(), 0);
}

static void
test_session_resume_repeats_the_bits(void **state)
{
    SHL_UNUSED(state);
    for (int s = 0; s < SHL_STRATEGY_COUNT; s++) {
        char dir[128];
        shl_session_config c;
        shl_session_result whole, first, second;
        small(&c, (shl_strategy)s, 2);
        c.engine.optim.schedule = SHL_SCHEDULE_COSINE;
        c.engine.optim.schedule_steps = 10;
        c.engine.optim.clip = 1.0;
        c.steps = 10;
        assert_int_equal(shl_session_run(&c, NULL, &whole), SHL_OK);
        (void)snprintf(dir, sizeof(dir), "%s/%s", folder, shl_strategy_name((shl_strategy)s));
        c.ckpt_dir = dir;
        c.steps = 5;
        assert_int_equal(shl_session_run(&c, NULL, &first), SHL_OK);
        c.steps = 10;
        c.resume = true;
        assert_int_equal(shl_session_run(&c, NULL, &second), SHL_OK);
        assert_int_equal(second.first_step, 5);
        assert_int_equal(second.n_steps, 5);
        for (int i = 0; i < 10; i++) {
            const shl_step_report *part = i < 5 ? &first.steps[i] : &second.steps[i - 5];
            assert_memory_equal(&part->loss, &whole.steps[i].loss, sizeof(double));
            assert_memory_equal(&part->grad_norm, &whole.steps[i].grad_norm, sizeof(double));
            assert_memory_equal(&part->lr, &whole.steps[i].lr, sizeof(double));
        }
        assert_true(second.param_hash == whole.param_hash && whole.param_hash != first.param_hash);
        shl_session_result_fini(&whole);
        shl_session_result_fini(&first);
        shl_session_result_fini(&second);
    }
    assert_int_equal(shl_heap_live_blocks(), 0);
}

/* The n-th allocation of the host heap fails: an error comes back, and nothing is left, for every rank
 * count. Sampled from a printed place. */
static void
test_session_failing_heap_is_returned(void **state)
{
    SHL_UNUSED(state);
    int64_t seed = (int64_t)getpid();
    print_message("sampled from %lld\n", (long long)seed);
    for (int ranks = 1; ranks <= 2; ranks++) {
        char dir[128];
        (void)snprintf(dir, sizeof(dir), "%s/heap-%d", folder, ranks);
        int failures = 0;
        for (int64_t n = 1 + seed % 17; n < 20000; n += 17) {
            shl_session_config c;
            shl_session_result r;
            small(&c, SHL_ZERO3, ranks);
            c.steps = 1;
            c.ckpt_dir = dir;
            shl_heap_fail_at(n);
            shl_code code = shl_session_run(&c, NULL, &r);
            shl_heap_fail_at(-1);
            failures += code != SHL_OK;
            shl_session_result_fini(&r);
            assert_int_equal(shl_heap_live_blocks(), 0);
            if (code == SHL_OK) {
                break;
            }
        }
        assert_true(failures > 5);
    }
}

typedef void (*change_fn)(shl_session_config *c);
static void
other_seed(shl_session_config *c)
{
    c->engine.seed = 9;
}
static void
other_schedule(shl_session_config *c)
{
    c->engine.optim.warmup_steps = 2;
}
static void
other_rate(shl_session_config *c)
{
    c->engine.optim.lr = 0.5;
}
static void
other_model(shl_session_config *c)
{
    (void)snprintf(c->model, sizeof(c->model), "another");
}
static void
other_shape(shl_session_config *c)
{
    c->shape.width = 64;
}

static void
test_session_resume_refuses_another_run(void **state)
{
    SHL_UNUSED(state);
    static const change_fn changes[] = {other_seed, other_schedule, other_rate, other_model,
                                        other_shape};
    char dir[128];
    shl_session_config c;
    shl_session_result r;
    (void)snprintf(dir, sizeof(dir), "%s/refuse", folder);
    small(&c, SHL_ZERO1, 2);
    c.ckpt_dir = dir;
    assert_int_equal(shl_session_run(&c, NULL, &r), SHL_OK);
    shl_session_result_fini(&r);
    for (size_t i = 0; i < SHL_ARRAY_LEN(changes); i++) {
        small(&c, SHL_ZERO1, 2);
        c.ckpt_dir = dir;
        c.resume = true;
        c.steps = 8;
        changes[i](&c);
        assert_int_equal(shl_session_run(&c, NULL, &r), SHL_E_CONFIG);
        assert_true(shl_err_get()->because[0] != '\0');
    }
    /* Another world and another strategy are the same run. */
    small(&c, SHL_FSDP, 3);
    c.ckpt_dir = dir;
    c.resume = true;
    c.steps = 6;
    assert_int_equal(shl_session_run(&c, NULL, &r), SHL_OK);
    assert_int_equal(r.first_step, 4);
    shl_session_result_fini(&r);
    c.steps = 5;
    assert_int_equal(shl_session_run(&c, NULL, &r), SHL_E_USAGE);
    assert_int_equal(shl_heap_live_blocks(), 0);
}

static void
test_session_checks_come_before_anything_opens(void **state)
{
    SHL_UNUSED(state);
    shl_session_config c;
    shl_session_result r;
    for (int i = 0; i < 9; i++) {
        small(&c, SHL_DDP, 1);
        switch (i) {
        case 0:
            c.ranks = 0;
            break;
        case 1:
            c.ranks = 65;
            break;
        case 2:
            c.threads = 0;
            break;
        case 3:
            c.steps = 0;
            break;
        case 4:
            c.engine.seq = 17;
            break;
        case 5:
            c.resume = true;
            break;
        case 6:
            c.save_every = 1;
            break;
        case 7:
            c.shape.heads = 3;
            break;
        default:
            c.device = "virtual", c.ckpt_dir = folder;
            break;
        }
        assert_int_equal(shl_session_run(&c, NULL, &r), SHL_E_USAGE);
        assert_true(shl_err_get()->because[0] != '\0' || shl_err_get()->advice[0] != '\0');
    }
    small(&c, SHL_DDP, 2);
    c.device = "abacus";
    assert_int_equal(shl_session_run(&c, NULL, &r), SHL_E_USAGE);
    /* A global batch that the data cannot fill. */
    small(&c, SHL_DDP, 2);
    c.engine.batch = 1 << 20;
    assert_int_equal(shl_session_run(&c, NULL, &r), SHL_E_USAGE);
    assert_non_null(strstr(shl_err_get()->what, "global batch"));
    assert_int_equal(shl_heap_live_blocks(), 0);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_session_ranks_share_one_global_batch),
        cmocka_unit_test(test_session_every_row_is_taken_once),
        cmocka_unit_test(test_session_virtual_tells_the_same_bytes),
        cmocka_unit_test(test_session_timeline_adds_up_to_the_peak),
        cmocka_unit_test(test_session_timeline_of_a_single_step),
        cmocka_unit_test(test_session_failing_listener_ends_every_rank),
        cmocka_unit_test(test_session_stops_between_steps_with_a_result),
        cmocka_unit_test(test_session_limit_is_an_error_of_every_rank),
        cmocka_unit_test(test_session_resume_repeats_the_bits),
        cmocka_unit_test(test_session_failing_heap_is_returned),
        cmocka_unit_test(test_session_resume_refuses_another_run),
        cmocka_unit_test(test_session_checks_come_before_anything_opens),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}

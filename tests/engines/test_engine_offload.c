/* tests/engines: states in host memory are the same training run: losses, norms and parameters bit for
 * bit, whatever the stage, the world, the dtypes, the ratio and the sub-group; memory of both tiers
 * and bytes between them are those of the virtual device and of the closed forms. */
#include "tests/support/engine_twin.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "engines/shared/volume.h"
#include "kernels/base/clock.h"
#include "kernels/base/heap.h"
#include "kernels/base/option.h"
#include "kernels/base/rng.h"

#define N_STAGES 5
static const shl_strategy stages[N_STAGES] = {SHL_ZERO1, SHL_ZERO2, SHL_ZERO3, SHL_FSDP,
                                              SHL_FSDP_GRAD_OP};
static const double ratios[] = {0.0, 0.5, 1.0};

static void
offload(ew_config *c, bool optimizer, bool param, double ratio, int64_t group)
{
    c->engine.offload.optimizer = optimizer ? SHL_OFFLOAD_HOST : SHL_OFFLOAD_NONE;
    c->engine.offload.param = param ? SHL_OFFLOAD_HOST : SHL_OFFLOAD_NONE;
    c->engine.offload.ratio = ratio;
    c->engine.offload.sub_group_elems = group;
}

static void
set_policy(ew_config *c, int policy)
{
    if (policy > 0) {
        shl_dtype_policy_set(&c->engine, SHL_BF16);
    }
    if (policy >= 2) {
        c->engine.grad_dtype = c->engine.reduce_dtype = SHL_BF16;
    }
    if (policy == 3) {
        c->engine.master_dtype = SHL_BF16;
    }
}

static bool
is_fsdp(shl_strategy s)
{
    return s == SHL_FSDP || s == SHL_FSDP_GRAD_OP;
}

/* Whether the strategy offloads in this way: FSDP all or nothing. */
static bool
has_way(shl_strategy s, bool optimizer, bool param, double ratio)
{
    if (is_fsdp(s)) {
        return optimizer == param && (!optimizer || ratio >= 1.0);
    }
    return !param || s == SHL_ZERO3;
}

/* Every way to offload, and none, from one configuration. */
static void
expect_same_bits(ew_config *c)
{
    ew_result none, r;
    offload(c, false, false, 1.0, 4096);
    ew_run(c, &none);
    assert_string_equal(none.what, "");
    for (int way = 1; way < 4; ++way) {
        bool optimizer = (way & 1) != 0, param = (way & 2) != 0;
        for (size_t i = 0; i < SHL_ARRAY_LEN(ratios); ++i) {
            if (!has_way(c->engine.strategy, optimizer, param, ratios[i]) ||
                (!optimizer && i > 0)) {
                continue;
            }
            offload(c, optimizer, param, ratios[i], i == 1 ? 777 : 2000);
            ew_run(c, &r);
            const char *why = ew_bits_differ(&none, &r, c->steps);
            if (why[0] != '\0') {
                char label[ET_LABEL_BYTES];
                et_label(c, label, sizeof(label));
                fail_msg("%s: %s", label, why);
            }
            assert_true(r.host[0].now_bytes > 0 || ratios[i] <= 0.0);
        }
    }
}

static void
test_engine_offload_keeps_every_bit(void **state)
{
    (void)state;
    for (size_t s = 0; s < SHL_ARRAY_LEN(stages); ++s) {
        for (int ranks = 1; ranks <= 3; ++ranks) {
            for (int policy = 0; policy < 4; ++policy) {
                ew_config c;
                ew_config_init(&c, stages[s], ranks);
                c.model.layers = 2;
                c.steps = 2;
                c.engine.accum = policy == 1 ? 3 : 1;
                c.engine.optim.clip = ranks == 2 ? 0.5 : 0.0;
                if (ranks != 2 && (policy == 3 || stages[s] == SHL_FSDP_GRAD_OP)) {
                    continue;
                }
                if (is_fsdp(stages[s]) && policy == 1) {
                    c.engine.reduce_every = SHL_REDUCE_BOUNDARY;
                }
                set_policy(&c, policy);
                expect_same_bits(&c);
            }
        }
    }
}

static void
test_engine_offload_adds_up_micro_steps_on_the_host(void **state)
{
    (void)state;
    for (size_t s = 0; s < SHL_ARRAY_LEN(stages); ++s) {
        ew_config c;
        ew_config_init(&c, stages[s], 2);
        c.engine.accum = 4;
        c.model.layers = 2;
        c.steps = 2;
        c.engine.reduce_every = SHL_REDUCE_MICRO;
        expect_same_bits(&c);
        set_policy(&c, 1);
        c.engine.reduce_dtype = SHL_BF16;
        expect_same_bits(&c);
    }
}

static void
test_engine_offload_keeps_every_bit_of_every_optimizer(void **state)
{
    (void)state;
    for (int kind = 0; kind < SHL_OPTIM_KIND_COUNT; ++kind) {
        ew_config c;
        ew_config_init(&c, kind % 2 == 0 ? SHL_ZERO2 : SHL_ZERO3, 2);
        c.model.layers = 1;
        c.steps = 2;
        c.engine.optim.kind = (shl_optim_kind)kind;
        set_policy(&c, kind % 3 == 0 ? 0 : 1);
        expect_same_bits(&c);
        offload(&c, true, kind % 2 == 1, 0.5, 777);
        et_expect_same_run(&c);
    }
}

/* A skipped step moves gradients and nothing else. */
static void
test_engine_offload_skips_overflowing_steps(void **state)
{
    (void)state;
    ew_config c;
    ew_result r;
    ew_config_init(&c, SHL_ZERO2, 2);
    shl_dtype_policy_set(&c.engine, SHL_F16);
    c.engine.scale.kind = SHL_SCALE_DYNAMIC;
    c.engine.scale.scale = 4294967296.0;
    c.engine.scale.hysteresis = 1;
    c.steps = 3;
    expect_same_bits(&c);
    offload(&c, true, false, 1.0, 2000);
    ew_run(&c, &r);
    assert_true(r.reports[0].skipped);
    assert_int_equal(r.reports[0].moved_bytes[SHL_MOVE_TO_DEVICE], 0);
    assert_true(r.reports[0].moved_bytes[SHL_MOVE_TO_HOST] > 0);
}

/* Everything under SHL_TEST_ALL, else a sample whose seed is printed. */
static void
test_engine_offload_virtual_equals_cpu(void **state)
{
    (void)state;
    bool all = shl_env("SHL_TEST_ALL") != NULL;
    uint64_t seed = (uint64_t)shl_clock_ns();
    int n = 0;
    print_message("seed %llu\n", (unsigned long long)seed);
    for (uint64_t v = 0; v < N_STAGES * 3 * 3 * 3 * 3 * 2 * 2; ++v) {
        shl_strategy s = stages[v % N_STAGES];
        uint64_t w = v / N_STAGES, way = w / 3 % 3;
        bool optimizer = way<2, param = way> 0 && (s == SHL_ZERO3 || is_fsdp(s));
        if ((!all && shl_rng_u64(seed, v, 0) % 14 != 0) ||
            !has_way(s, optimizer, param, ratios[w / 9 % 3])) {
            continue;
        }
        ew_config c;
        ew_config_init(&c, s, 1 + (int)(w % 3));
        offload(&c, optimizer, param, ratios[w / 9 % 3], v % 2 == 0 ? 777 : 100000);
        c.engine.offload.pin = param || optimizer;
        set_policy(&c, w / 27 % 3 == 2 && v / 7 % 2 == 0 ? 3 : (int)(w / 27 % 3));
        c.engine.accum = w / 81 % 2 == 0 ? 1 : 2;
        c.engine.reduce_every = w / 162 % 2 == 0 ? SHL_REDUCE_AUTO : SHL_REDUCE_MICRO;
        if (is_fsdp(s) && w / 162 % 2 == 0) {
            c.engine.reduce_every = SHL_REDUCE_BOUNDARY;
        }
        c.model.layers = 2;
        c.steps = 2;
        if (s == SHL_ZERO1 && w / 27 % 3 == 2 && c.engine.accum == 1) {
            c.engine.prefetch = 0;
        }
        et_expect_same_run(&c);
        n++;
    }
    print_message("%d configurations\n", n);
}

static void
check_formulas(ew_config *c)
{
    ew_result r;
    shl_formula_move f;
    c->device = "virtual";
    double train = (double)shl_model_formula_params(&c->model), device = 0.0, host = 0.0, far = 0.0;
    for (c->virtual_rank = 0; c->virtual_rank < c->ranks; ++c->virtual_rank) {
        ew_run(c, &r);
        assert_string_equal(r.what, "");
        const size_t *now = r.device[0].now_tag_bytes;
        device += (double)(now[SHL_TAG_PARAM] + now[SHL_TAG_GRAD] + now[SHL_TAG_MASTER] +
                           now[SHL_TAG_OPTIM]) -
                  (double)r.info.padding_bytes;
        host += (double)r.host[0].now_bytes;
        far += (double)r.info.host_elems;
    }
    shl_formula_size n = {.train = train, .ranks = c->ranks, .host = far / c->ranks};
    double want = shl_formula_state_bytes(&c->engine, &n) + shl_formula_host_bytes(&c->engine, &n);
    char label[ET_LABEL_BYTES];
    et_label(c, label, sizeof(label));
    if ((int64_t)(device + host) != (int64_t)(want * c->ranks + 0.5)) {
        fail_msg("%s: %.0f bytes, the formula says %.1f", label, device + host, want * c->ranks);
    }
    if (r.info.padding_bytes == 0) {
        assert_true(host == shl_formula_host_bytes(&c->engine, &n) * c->ranks);
    }
    shl_engine_config e = c->engine;
    assert_int_equal(shl_reduce_every_resolve(e.strategy, e.reduce_every, &e.reduce_every), SHL_OK);
    n = (shl_formula_size){.train = (double)r.info.payload_elems,
                           .again = (double)r.info.again_elems,
                           .ranks = c->ranks,
                           .host = (double)r.info.host_payload_elems};
    shl_formula_move_bytes(&e, &n, &f);
    if (r.reports[1].moved_bytes[SHL_MOVE_TO_HOST] != (int64_t)f.to_host_bytes ||
        r.reports[1].moved_bytes[SHL_MOVE_TO_DEVICE] != (int64_t)f.to_device_bytes) {
        fail_msg("%s: %lld bytes to the host, %lld back; the formulas say %.1f and %.1f", label,
                 (long long)r.reports[1].moved_bytes[SHL_MOVE_TO_HOST],
                 (long long)r.reports[1].moved_bytes[SHL_MOVE_TO_DEVICE], f.to_host_bytes,
                 f.to_device_bytes);
    }
}

static void
test_engine_offload_bytes_are_the_formulas(void **state)
{
    (void)state;
    for (int v = 0; v < N_STAGES * 3 * 3 * 3 * 2; ++v) {
        ew_config c;
        shl_strategy s = stages[v % N_STAGES];
        int w = v / N_STAGES, way = w / 3 % 3;
        bool param = way > 0 && (s == SHL_ZERO3 || is_fsdp(s));
        if (!has_way(s, way < 2, param, ratios[w / 9 % 3])) {
            continue;
        }
        ew_config_init(&c, s, w % 3 == 2 ? 8 : 1 + w % 3);
        offload(&c, way < 2, param, ratios[w / 9 % 3], 777);
        set_policy(&c, w / 27 == 0 ? 0 : v % 3 == 0 ? 3 : 1);
        c.engine.accum = 2;
        c.steps = 2;
        check_formulas(&c);
    }
}

/* Inputs of recomputed blocks in host memory, beside the states or alone: the run that keeps everything,
 * to the bit; most there is, and what crosses the link, by the closed form. */
static void
check_activations(ew_config *c, const ew_result *none)
{
    ew_result r;
    const shl_act_spec spec = {.batch = c->engine.batch,
                               .seq = c->engine.seq,
                               .dtype = c->engine.compute_dtype,
                               .recompute = c->tune.recompute,
                               .recompute_every = c->tune.recompute_every,
                               .offload = true};
    int64_t act = (int64_t)shl_model_formula_host_act_bytes(&c->model, &spec);
    assert_true(act > 0);
    c->engine.offload.activations = SHL_OFFLOAD_HOST;
    et_run(c, &r);
    et_expect_same_bits(c, none, &r);
    for (int rank = 0; rank < c->ranks; ++rank) {
        ew_result virt;
        et_expect_twin(c, &r, rank, &virt);
        assert_int_equal(virt.host[0].peak_tag_bytes[SHL_TAG_ACT], act);
        assert_int_equal(virt.host[0].now_tag_bytes[SHL_TAG_ACT], 0);
    }
    if (c->engine.offload.optimizer == SHL_OFFLOAD_NONE) {
        for (int m = 0; m < SHL_MOVE_COUNT; ++m) {
            assert_int_equal(r.moved[0][m], c->steps * c->engine.accum * act);
        }
    }
}

static void
test_engine_offload_of_activations_keeps_every_bit(void **state)
{
    (void)state;
    for (int s = SHL_DDP; s < SHL_STRATEGY_COUNT; ++s) {
        for (int v = 0; v < 4; ++v) {
            ew_config c;
            ew_result none;
            ew_config_init(&c, (shl_strategy)s, 1 + (s + v) % 3);
            if (v == 1) {
                ew_config_llama(&c);
            }
            c.steps = 2;
            c.model.layers = 4;
            c.engine.accum = v == 2 ? 2 : 1;
            c.tune.dropout = v == 3 ? 0.2 : 0.0;
            set_policy(&c, v % 2);
            et_run(&c, &none);
            c.tune.recompute = SHL_RECOMPUTE_FULL;
            c.tune.recompute_every = v == 3 ? 2 : 0;
            bool staged = s != SHL_DDP && v % 2 == 1, sharded = s >= SHL_ZERO3;
            offload(&c, staged, staged && sharded, 1.0, 2000);
            c.engine.offload.pin = v > 1;
            check_activations(&c, &none);
        }
    }
}

static void
test_engine_offload_of_activations_needs_recomputation(void **state)
{
    (void)state;
    ew_config c;
    ew_result r;
    ew_config_init(&c, SHL_ZERO1, 1);
    c.engine.offload.activations = SHL_OFFLOAD_HOST;
    for (int way = SHL_RECOMPUTE_NONE; way < SHL_RECOMPUTE_FULL; ++way) {
        c.tune.recompute = (shl_recompute)way;
        ew_run(&c, &r);
        assert_int_equal(r.code, SHL_E_USAGE);
        assert_non_null(strstr(r.what, "no block is recomputed"));
    }
    c.tune.recompute = SHL_RECOMPUTE_FULL;
    c.host_memory = 1;
    ew_run(&c, &r);
    assert_int_equal(r.code, SHL_E_OOM);
    assert_non_null(strstr(r.what, "host"));
    assert_non_null(strstr(r.what, "h.0"));
}

/* A copy back begins a block ahead: a link as fast as compute is hidden but for the ends. */
static void
test_engine_offload_of_activations_overlaps(void **state)
{
    (void)state;
    ew_config c;
    ew_result plain, r;
    ew_config_init(&c, SHL_DDP, 1);
    c.device = "virtual";
    c.model.layers = 12;
    c.steps = 1;
    c.tune.recompute = SHL_RECOMPUTE_FULL;
    et_run(&c, &plain);
    c.engine.offload.activations = SHL_OFFLOAD_HOST;
    et_run(&c, &r);
    int64_t moved = r.moved[0][SHL_MOVE_TO_HOST], compute_ns = plain.reports[0].forward_ns;
    c.link_bytes_per_s = (double)moved / (double)compute_ns * 1e9 * 1.25;
    et_run(&c, &r);
    assert_true(r.reports[0].exposed_move_ns * 50 < r.reports[0].step_ns);
    c.link_bytes_per_s /= 8.0;
    et_run(&c, &r);
    double link_ns = (double)moved / c.link_bytes_per_s * 1e9;
    assert_true((double)r.reports[0].exposed_move_ns > link_ns);
    assert_true((double)r.reports[0].step_ns > 2.0 * link_ns);
}

/* The states alone are several times what the device may hold. */
static void
test_engine_offload_trains_beyond_the_device(void **state)
{
    (void)state;
    ew_config c;
    ew_result none, r;
    ew_config_init(&c, SHL_ZERO3, 1);
    c.model = (shl_model_config){
        .vocab = 67, .context = 16, .layers = 12, .width = 40, .heads = 5, .tied = true};
    c.engine.prefetch = 1;
    ew_run(&c, &none);
    assert_int_equal(none.code, SHL_OK);
    offload(&c, true, true, 1.0, 4096);
    ew_run(&c, &r);
    size_t peak = r.device[0].peak_bytes, states = r.host[0].now_bytes;
    print_message("states %zu bytes, on a device of %zu\n", states, peak);
    assert_true(states > 4 * peak);
    c.device_memory = peak;
    c.host_memory = r.host[0].peak_bytes;
    ew_run(&c, &r);
    assert_string_equal(ew_bits_differ(&none, &r, c.steps), "");
    c.host_memory -= 1;
    ew_run(&c, &r);
    assert_int_equal(r.code, SHL_E_OOM);
    assert_non_null(strstr(r.what, "host"));
    assert_non_null(strstr(r.what, r.host[0].peak_owner));
    c.host_memory = 0;
    offload(&c, false, false, 1.0, 4096);
    ew_run(&c, &r);
    assert_int_equal(r.code, SHL_E_OOM);
    assert_non_null(strstr(r.what, "device"));
    assert_int_equal(shl_heap_live_blocks(), 0);
}

static void
test_engine_offload_pins_exactly_or_not_at_all(void **state)
{
    (void)state;
    ew_config c;
    ew_result r;
    ew_config_init(&c, SHL_ZERO2, 1);
    c.device = "virtual";
    offload(&c, true, false, 1.0, 4096);
    ew_run(&c, &r);
    assert_int_equal(r.pinned_peak[0], 0);
    c.engine.offload.pin = true;
    ew_run(&c, &r);
    size_t pinned = r.pinned_peak[0];
    assert_true(pinned >= r.host[0].now_bytes && pinned % SHL_PIN_PAGE_BYTES == 0);
    c.pin_limit = pinned;
    ew_run(&c, &r);
    assert_int_equal(r.code, SHL_OK);
    c.pin_limit = pinned - 1;
    for (int cpu = 0; cpu < 2; ++cpu) {
        c.device = cpu != 0 ? "cpu" : "virtual";
        ew_run(&c, &r);
        assert_int_equal(r.code, SHL_E_OOM);
        assert_non_null(strstr(r.what, "lock"));
    }
}

/* One rank fails at its n-th allocation, nobody hangs and nothing leaks. */
static void
test_engine_offload_every_failing_allocation_ends_all_ranks(void **state)
{
    (void)state;
    int stride = shl_env("SHL_TEST_QUICK") != NULL ? 25 : 9;
    for (size_t s = 0; s < SHL_ARRAY_LEN(stages); ++s) {
        int failures = 0;
        for (int64_t n = 1 + (int64_t)s;; n += stride, ++failures) {
            ew_config c;
            ew_result r;
            ew_config_init(&c, stages[s], 2);
            c.model.layers = 1;
            c.steps = 1;
            c.engine.accum = 2;
            c.engine.reduce_every = SHL_REDUCE_MICRO;
            set_policy(&c, 1);
            offload(&c, true, s >= 2, is_fsdp(stages[s]) ? 1.0 : 0.5, 2000);
            if (s % 2 == 0) {
                c.model.layers = 2;
                c.tune.recompute = SHL_RECOMPUTE_FULL;
                c.engine.offload.activations = SHL_OFFLOAD_HOST;
            }
            c.fail_rank = 1;
            c.fail_alloc = n;
            ew_run(&c, &r);
            if (r.code == SHL_OK) {
                break;
            }
            assert_int_equal(r.code, SHL_E_OOM);
            assert_int_equal(shl_heap_live_blocks(), 0);
        }
        assert_true(failures > 3);
    }
}

/* A link that copies wait for shows in the step, and changes no bit. */
static void
test_engine_offload_link_takes_its_time(void **state)
{
    (void)state;
    ew_config c;
    ew_result fast, slow, predicted;
    ew_config_init(&c, SHL_ZERO2, 1);
    offload(&c, true, false, 1.0, 4096);
    c.steps = 1;
    ew_run(&c, &fast);
    c.link_bytes_per_s = 2e6;
    ew_run(&c, &slow);
    assert_string_equal(ew_bits_differ(&fast, &slow, 1), "");
    int64_t to_host = slow.reports[0].moved_bytes[SHL_MOVE_TO_HOST];
    int64_t back = slow.reports[0].moved_bytes[SHL_MOVE_TO_DEVICE];
    int64_t longer = to_host > back ? to_host : back;
    assert_true(slow.reports[0].step_ns >= (int64_t)((double)longer / 2e6 * 1e9 * 0.9));
    assert_true(slow.reports[0].exposed_move_ns > 0);
    c.device = "virtual";
    ew_run(&c, &predicted);
    assert_true(predicted.reports[0].step_ns >= (int64_t)((double)longer / 2e6 * 1e9 * 0.9));
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_engine_offload_keeps_every_bit),
        cmocka_unit_test(test_engine_offload_adds_up_micro_steps_on_the_host),
        cmocka_unit_test(test_engine_offload_keeps_every_bit_of_every_optimizer),
        cmocka_unit_test(test_engine_offload_skips_overflowing_steps),
        cmocka_unit_test(test_engine_offload_virtual_equals_cpu),
        cmocka_unit_test(test_engine_offload_bytes_are_the_formulas),
        cmocka_unit_test(test_engine_offload_of_activations_keeps_every_bit),
        cmocka_unit_test(test_engine_offload_of_activations_needs_recomputation),
        cmocka_unit_test(test_engine_offload_of_activations_overlaps),
        cmocka_unit_test(test_engine_offload_trains_beyond_the_device),
        cmocka_unit_test(test_engine_offload_pins_exactly_or_not_at_all),
        cmocka_unit_test(test_engine_offload_every_failing_allocation_ends_all_ranks),
        cmocka_unit_test(test_engine_offload_link_takes_its_time),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* tests/bench: offload through the program's own session: records hold the bytes of both tiers and those
 * between them, as the closed forms say; a checkpoint goes on with and without offload. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "bench/options.h"
#include "bench/record.h"
#include "bench/session.h"
#include "kernels/base/str.h"

static void
set_up(shl_session_config *c, shl_strategy s, int ranks, bool offload)
{
    shl_session_config_init(c);
    c->shape.layers = 2;
    c->engine.strategy = s;
    c->engine.reduce_every = s == SHL_ZERO1 ? SHL_REDUCE_BOUNDARY : SHL_REDUCE_MICRO;
    c->engine.prefetch = SHL_PREFETCH_AUTO;
    c->engine.batch = 1;
    c->engine.seq = 32;
    c->ranks = ranks;
    c->steps = 2;
    if (offload) {
        c->engine.offload.optimizer = SHL_OFFLOAD_HOST;
        bool param = s == SHL_ZERO3 || s == SHL_FSDP;
        c->engine.offload.param = param ? SHL_OFFLOAD_HOST : SHL_OFFLOAD_NONE;
        c->engine.offload.sub_group_elems = 30000;
    }
}

static void
run(const shl_session_config *c, shl_run_record *record, shl_session_result *result)
{
    memset(result, 0, sizeof(*result));
    if (shl_session_run(c, NULL, result) != SHL_OK) {
        fail_msg("%s; %s", shl_err_get()->what, shl_err_get()->because);
    }
    shl_run_record_fill(record, c, result, 0);
}

static void
test_offload_records_tell_both_tiers(void **state)
{
    (void)state;
    static const shl_strategy stages[] = {SHL_ZERO1, SHL_ZERO2, SHL_ZERO3, SHL_FSDP};
    for (size_t s = 0; s < SHL_ARRAY_LEN(stages); ++s) {
        shl_session_config c;
        shl_session_result none, with;
        shl_run_record plain, r;
        set_up(&c, stages[s], 1, false);
        run(&c, &plain, &none);
        assert_string_equal(plain.offload, "none");
        assert_true(plain.h2d_bytes == SHL_FIELD_NO_INT && plain.peak[SHL_TIER_HOST].total == 0);
        set_up(&c, stages[s], 1, true);
        c.link_bytes_per_s = 4e9;
        run(&c, &r, &with);
        assert_memory_equal(&plain.loss, &r.loss, sizeof(r.loss));
        assert_true(r.param_hash == plain.param_hash);
        assert_true(r.h2d_bytes == (int64_t)r.formula_h2d_bytes && r.h2d_bytes > 0);
        assert_true(r.d2h_bytes == (int64_t)r.formula_d2h_bytes && r.d2h_bytes > 0);
        assert_true((double)with.tiers[SHL_TIER_HOST].now_bytes == r.formula_host_bytes);
        shl_session_result_fini(&none);
        shl_session_result_fini(&with);
    }
}

/* The record of a run whose states and block inputs wait in host memory, micro-step by micro-step. */
static void
test_offload_records_tell_activations(void **state)
{
    (void)state;
    for (int states = 0; states < 2; ++states) {
        shl_session_config c;
        shl_session_result none, with;
        shl_run_record plain, r;
        set_up(&c, SHL_ZERO2, 1, states == 1);
        c.shape.layers = 4;
        c.engine.accum = 3;
        c.tune.recompute = SHL_RECOMPUTE_FULL;
        run(&c, &plain, &none);
        c.engine.offload.activations = SHL_OFFLOAD_HOST;
        run(&c, &r, &with);
        int64_t input = c.engine.seq * c.shape.width * (int64_t)sizeof(float);
        assert_memory_equal(&plain.loss, &r.loss, sizeof(r.loss));
        assert_true(r.param_hash == plain.param_hash);
        assert_true(r.peak[SHL_TIER_HOST].tags[SHL_TAG_ACT] == 3 * input);
        assert_true(r.h2d_bytes == (int64_t)r.formula_h2d_bytes);
        assert_true(r.d2h_bytes == (int64_t)r.formula_d2h_bytes);
        int64_t before = states == 1 ? plain.d2h_bytes : 0;
        assert_true(r.d2h_bytes == before + 3 * 3 * input);
        shl_session_result_fini(&none);
        shl_session_result_fini(&with);
    }
}

/* Four steps in one go, and with a checkpoint after two that goes on the other way. */
static void
test_offload_checkpoints_go_on_either_way(void **state)
{
    (void)state;
    char dir[] = "/tmp/shl_offload_XXXXXX", command[64];
    assert_non_null(mkdtemp(dir));
    for (int way = 0; way < 2; ++way) {
        shl_session_config c;
        shl_session_result whole, first, second;
        shl_run_record a, b;
        set_up(&c, SHL_ZERO2, 2, false);
        c.steps = 4;
        run(&c, &a, &whole);
        set_up(&c, way == 0 ? SHL_ZERO3 : SHL_ZERO2, 2, way == 0);
        c.ckpt_dir = dir;
        run(&c, &b, &first);
        set_up(&c, way == 0 ? SHL_ZERO2 : SHL_ZERO3, 2, way == 1);
        c.ckpt_dir = dir;
        c.resume = true;
        c.steps = 4;
        run(&c, &b, &second);
        assert_int_equal(second.first_step, 2);
        assert_memory_equal(&a.loss, &b.loss, sizeof(a.loss));
        assert_true(a.param_hash == b.param_hash);
        shl_session_result_fini(&whole);
        shl_session_result_fini(&first);
        shl_session_result_fini(&second);
        shl_strf(command, sizeof(command), "rm -rf %s/*", dir);
        assert_int_equal(system(command), 0);
    }
    shl_strf(command, sizeof(command), "rm -rf %s", dir);
    assert_int_equal(system(command), 0);
}

/* Both ways in one table: a row for each, and pinned is what is there to be pinned. */
static void
test_offload_is_an_axis_of_a_sweep(void **state)
{
    shl_run_options o;
    shl_run_points points;
    (void)state;
    assert_int_equal(shl_run_options_init(&o), SHL_OK);
    o.strategy = "zero2,zero3";
    o.offload_optimizer = "none,cpu";
    o.pin_memory = true;
    assert_int_equal(shl_run_points_resolve(&o, &points), SHL_OK);
    assert_int_equal(points.n, 4);
    for (int i = 0; i < 4; ++i) {
        const shl_offload_config *c = &points.configs[i].engine.offload;
        assert_true(c->pin == (i >= 2) && (c->optimizer == SHL_OFFLOAD_HOST) == (i >= 2));
    }
    shl_run_points_fini(&points);
    o.offload_optimizer = "none,gpu";
    assert_int_equal(shl_run_points_resolve(&o, &points), SHL_E_USAGE);
    assert_non_null(strstr(shl_err_get()->what, "--offload-optimizer"));
    shl_run_points_fini(&points);
}

static void
test_offload_is_refused_by_name(void **state)
{
    (void)state;
    shl_session_config c;
    set_up(&c, SHL_DDP, 1, true);
    c.engine.reduce_every = SHL_REDUCE_BOUNDARY;
    assert_int_equal(shl_session_config_check(&c), SHL_E_USAGE);
    assert_non_null(strstr(shl_err_get()->what, "ddp"));
    assert_non_null(strstr(shl_err_get()->because, "zero1"));
    set_up(&c, SHL_ZERO2, 1, true);
    c.engine.offload.param = SHL_OFFLOAD_HOST;
    assert_int_equal(shl_session_config_check(&c), SHL_E_USAGE);
    assert_non_null(strstr(shl_err_get()->because, "zero3"));
    set_up(&c, SHL_FSDP, 1, true);
    c.engine.offload.param = SHL_OFFLOAD_NONE;
    assert_int_equal(shl_session_config_check(&c), SHL_E_USAGE);
    assert_non_null(strstr(shl_err_get()->what, "optimizer alone"));
    set_up(&c, SHL_FSDP_GRAD_OP, 1, false);
    c.engine.offload.param = SHL_OFFLOAD_HOST;
    assert_int_equal(shl_session_config_check(&c), SHL_E_USAGE);
    assert_non_null(strstr(shl_err_get()->what, "parameters alone"));
    set_up(&c, SHL_FSDP, 1, true);
    c.engine.offload.ratio = 0.5;
    assert_int_equal(shl_session_config_check(&c), SHL_E_USAGE);
    assert_non_null(strstr(shl_err_get()->because, "whole optimizer"));
    set_up(&c, SHL_ZERO2, 1, true);
    c.engine.offload.ratio = 1.5;
    assert_int_equal(shl_session_config_check(&c), SHL_E_USAGE);
    shl_offload_device d;
    assert_int_equal(shl_offload_parse("offload-optimizer", "nvme", &d), SHL_E_USAGE);
    assert_non_null(strstr(shl_err_get()->because, "CPU memory only"));
    double rate = 0.0;
    assert_int_equal(shl_parse_rate("16GB/s", &rate), SHL_OK);
    assert_true(rate >= 16e9 && rate <= 16e9);
    assert_int_equal(shl_parse_rate("fast", &rate), SHL_E_USAGE);
    assert_int_equal(shl_parse_rate("0", &rate), SHL_E_USAGE);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_offload_records_tell_both_tiers),
        cmocka_unit_test(test_offload_records_tell_activations),
        cmocka_unit_test(test_offload_checkpoints_go_on_either_way),
        cmocka_unit_test(test_offload_is_an_axis_of_a_sweep),
        cmocka_unit_test(test_offload_is_refused_by_name),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

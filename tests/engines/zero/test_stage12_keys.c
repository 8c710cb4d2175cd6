/* tests/engines/zero: DeepSpeed's keys of stages 0 to 2: the layout and the overlap move bytes and time, never
 * bits; a sum of gradients is the mean times the ranks. */
#include "tests/support/engine_twin.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "engines/config/zero_text.h"

/* Elements of a rank's slice of the whole space, and the whole tensors that touch it at most: what DeepSpeed
 * holds of reduced gradients. */
static void
slices(const ew_config *c, int64_t *slice, int64_t *whole)
{
    shl_model *model = NULL;
    int64_t begin[64] = {0};
    assert_int_equal(shl_model_new(&c->model, &model), SHL_OK);
    assert_true(model->n_params < 64);
    for (int i = 0; i < model->n_params; ++i) {
        begin[i + 1] = begin[i] + model->params[i]->elems;
    }
    *slice = begin[model->n_params] / c->ranks;
    *whole = 0;
    for (int64_t r = 0; r < c->ranks; ++r) {
        int64_t held = 0;
        for (int i = 0; i < model->n_params; ++i) {
            bool touches = begin[i] < (r + 1) * *slice && begin[i + 1] > r * *slice;
            held += touches ? model->params[i]->elems : 0;
        }
        *whole = held > *whole ? held : *whole;
    }
    shl_model_free(&model);
}

/* One cut of the whole space: whatever the bucket and the accumulation, a rank holds of gradients its slice
 * alone, the bits are those of buckets, and a bucket goes to the ranks that own some of it. */
static void
test_stage12_keys_single_cut_holds_only_the_slice(void **state)
{
    static const shl_strategy strategies[] = {SHL_ZERO1, SHL_ZERO2};
    int straddles = 0;
    (void)state;
    for (int i = 0; i < 16; ++i) {
        ew_config plain, cut;
        ew_result want, have, virt;
        ew_config_init(&plain, strategies[i % 2], 1 + i / 2 % 4);
        plain.engine.accum = 1 + i / 4 % 2;
        plain.engine.optim.clip = 0.5;
        plain.steps = 2;
        if (i >= 12) {
            plain.engine.offload.optimizer = SHL_OFFLOAD_HOST;
        }
        cut = plain;
        shl_zero_options_init(&cut.engine.zero);
        cut.engine.zero.single_cut = true;
        cut.engine.bucket_elems = i % 4 < 2 ? 900 : 6000;
        et_run(&plain, &want);
        et_run(&cut, &have);
        et_expect_same_bits(&cut, &want, &have);
        et_expect_twin(&cut, &have, cut.ranks - 1, &virt);
        et_expect_twin(&cut, &have, 0, &virt);
        assert_string_equal(have.info.layout, "single cut");
        assert_int_equal(have.info.n_units, 1);
        assert_true(have.info.n_reduce > 1);
        const shl_comm_counter *c = have.comm[0].kind;
        int64_t k = strategies[i % 2] == SHL_ZERO2 ? cut.engine.accum : 1;
        assert_int_equal(c[SHL_COLL_ALL_GATHER].calls, cut.steps);
        assert_int_equal(c[SHL_COLL_ALL_GATHER].bytes, 4 * cut.steps * have.info.payload_elems);
        assert_int_equal(c[SHL_COLL_REDUCE_SCATTER].calls, k * cut.steps * have.info.n_reduce);
        assert_int_equal(c[SHL_COLL_REDUCE_SCATTER].bytes,
                         4 * k * cut.steps * have.info.payload_elems);
        if (strategies[i % 2] == SHL_ZERO2) {
            int64_t slice, whole;
            const shl_ledger_tier *tier = i >= 12 ? have.host : have.device;
            slices(&cut, &slice, &whole);
            assert_int_equal(tier[0].peak_tag_bytes[SHL_TAG_GRAD],
                             4 * have.info.payload_elems / cut.ranks);
            straddles += whole > have.info.payload_elems / cut.ranks;
        }
    }
    assert_true(straddles > 1);
}

/* On the virtual clock a reduction that is waited for at once is time in which nothing else runs. */
static void
test_stage12_keys_no_overlap_is_exposed(void **state)
{
    static const shl_strategy strategies[] = {SHL_DDP, SHL_ZERO1, SHL_ZERO2, SHL_ZERO3};
    (void)state;
    for (size_t i = 0; i < SHL_ARRAY_LEN(strategies); ++i) {
        ew_config beside, serial;
        ew_result with, without, virt;
        ew_config_init(&beside, strategies[i], 2);
        shl_zero_options_init(&beside.engine.zero);
        beside.alpha_ns = 20000;
        serial = beside;
        serial.engine.zero.serial_reduce = true;
        et_run(&beside, &with);
        et_run(&serial, &without);
        et_expect_same_bits(&serial, &with, &without);
        et_expect_twin(&serial, &without, 0, &virt);
        int64_t exposed = virt.reports[1].exposed_comm_ns;
        et_expect_twin(&beside, &with, 0, &virt);
        if (exposed <= virt.reports[1].exposed_comm_ns) {
            fail_msg("%s: %lld ns exposed without overlap, %lld with it",
                     shl_strategy_name(strategies[i]), (long long)exposed,
                     (long long)virt.reports[1].exposed_comm_ns);
        }
    }
}

/* Powers of two scale without rounding. */
static void
test_stage12_keys_sum_is_the_mean_times_the_ranks(void **state)
{
    static const shl_strategy strategies[] = {SHL_DDP, SHL_ZERO1, SHL_ZERO2};
    (void)state;
    for (size_t i = 0; i < SHL_ARRAY_LEN(strategies); ++i) {
        ew_config mean, sum;
        ew_result a, b, virt;
        ew_config_init(&mean, strategies[i], 4);
        mean.steps = 1;
        shl_zero_options_init(&mean.engine.zero);
        sum = mean;
        sum.engine.zero.sum_gradients = true;
        et_run(&mean, &a);
        et_run(&sum, &b);
        et_expect_twin(&sum, &b, 1, &virt);
        double want = 4.0 * a.reports[0].grad_norm;
        assert_memory_equal(&b.reports[0].grad_norm, &want, sizeof(want));
        assert_memory_equal(&b.reports[0].loss, &a.reports[0].loss, sizeof(double));
        assert_true(a.param_hash != b.param_hash);
    }
}

/* The largest loss scale that 16-bit gradients of a run bear: from one that is too large it is halved until
 * nothing overflows. */
static double
scale_found(shl_strategy s, int ranks, const char *keys, ew_result *r)
{
    ew_config c;
    ew_config_init(&c, s, ranks);
    et_set_policy(&c, SHL_F16);
    c.engine.grad_dtype = c.engine.reduce_dtype = SHL_F16;
    c.engine.scale.scale = 16777216.0;
    c.engine.scale.hysteresis = 1;
    c.steps = 12;
    assert_int_equal(shl_zero_options_parse(keys, &c.engine.zero), SHL_OK);
    et_run(&c, r);
    assert_false(r->reports[c.steps - 1].skipped);
    return r->reports[c.steps - 1].loss_scale;
}

/* What is divided before the sum bears a scale that is larger by the divisor, and nothing else changes: with
 * powers of two not a bit. */
static void
test_stage12_keys_divide_before_or_after_the_sum(void **state)
{
    static const struct {
        shl_strategy strategy;
        const char *keys;
        double factor; /* that gradients are too large by */
    } rows[] = {
        {SHL_DDP, "", 1.0},
        {SHL_DDP, "prescale_gradients=true", 1.0},
        {SHL_DDP, "gradient_predivide_factor=4", 1.0},
        {SHL_DDP, "gradient_predivide_factor=2", 2.0},
        {SHL_DDP, "gradient_predivide_factor=1", 4.0},
        {SHL_ZERO1, "reduce_scatter=true", 1.0},
        {SHL_ZERO1, "reduce_scatter=false", 4.0},
        {SHL_ZERO2, "reduce_scatter=false;gradient_predivide_factor=2", 2.0},
        {SHL_ZERO2, "reduce_scatter=false;prescale_gradients=true", 1.0},
        {SHL_ZERO3, "reduce_scatter=false;gradient_predivide_factor=0.5", 2.0},
    };
    ew_result r;
    (void)state;
    double plain = scale_found(SHL_ZERO2, 4, "", &r);
    for (size_t i = 0; i < SHL_ARRAY_LEN(rows); ++i) {
        double found = scale_found(rows[i].strategy, 4, rows[i].keys, &r);
        if (found < plain / rows[i].factor || found > plain / rows[i].factor) {
            fail_msg("%s, %s: scale %g, without keys %g", shl_strategy_name(rows[i].strategy),
                     rows[i].keys, found, plain);
        }
        ew_config c;
        ew_result a, b;
        ew_config_init(&c, rows[i].strategy, 4);
        c.engine.optim.clip = 0.5;
        et_run(&c, &a);
        assert_int_equal(shl_zero_options_parse(rows[i].keys, &c.engine.zero), SHL_OK);
        et_run(&c, &b);
        et_expect_same_bits(&c, &a, &b);
    }
}

/* Accumulated in fp32 and reduced in 16 bits, at the boundary: through buckets, with the same bits in every
 * layout, and not those of a reduction in fp32. */
static void
test_stage12_keys_reduce_in_another_dtype(void **state)
{
    static const shl_strategy strategies[] = {SHL_DDP, SHL_ZERO1, SHL_ZERO1};
    ew_result first, wide;
    (void)state;
    for (size_t i = 0; i < SHL_ARRAY_LEN(strategies); ++i) {
        ew_config c;
        ew_result r, virt;
        ew_config_init(&c, strategies[i], 3);
        et_set_policy(&c, SHL_BF16);
        c.engine.accum = 2;
        if (i == 0) {
            et_run(&c, &wide);
        }
        c.engine.reduce_dtype = SHL_BF16;
        if (i == 2) {
            shl_zero_options_init(&c.engine.zero);
            c.engine.zero.single_cut = true;
        }
        et_run(&c, i == 0 ? &first : &r);
        et_expect_twin(&c, i == 0 ? &first : &r, 2, &virt);
        if (i == 0) {
            assert_true(first.param_hash != wide.param_hash);
            assert_int_equal(2 * first.comm[0].kind[SHL_COLL_ALL_REDUCE].bytes,
                             wide.comm[0].kind[SHL_COLL_ALL_REDUCE].bytes);
            assert_true(first.device[0].peak_tag_bytes[SHL_TAG_BUCKET] > 0);
        } else {
            et_expect_same_bits(&c, &first, &r);
        }
    }
}

static void
test_stage12_keys_refuse_what_is_not_here(void **state)
{
    static const struct {
        shl_strategy strategy;
        const char *keys, *part;
    } bad[] = {
        {SHL_DDP, "layout=single-cut", "single-cut"},
        {SHL_ZERO3, "layout=single-cut", "single-cut"},
        {SHL_ZERO1, "prescale_gradients=true", "prescale_gradients beside reduce_scatter"},
        {SHL_ZERO3, "gradient_predivide_factor=2", "gradient_predivide_factor beside reduce"},
        {SHL_DDP, "gradient_predivide_factor=2;prescale_gradients=true", "prescale_gradients"},
        {SHL_DDP, "gradient_predivide_factor=2;gradient_allreduce_op=sum", "sum of gradients"},
        {SHL_ZERO3, "gradient_allreduce_op=sum", "gradient_allreduce_op"},
    };
    (void)state;
    for (size_t i = 0; i < SHL_ARRAY_LEN(bad); ++i) {
        ew_config c;
        ew_result r;
        ew_config_init(&c, bad[i].strategy, 2);
        c.device = "virtual";
        assert_int_equal(shl_zero_options_parse(bad[i].keys, &c.engine.zero), SHL_OK);
        ew_run(&c, &r);
        assert_int_equal(r.code, SHL_E_USAGE);
        assert_non_null(strstr(r.what, bad[i].part));
    }
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_stage12_keys_single_cut_holds_only_the_slice),
        cmocka_unit_test(test_stage12_keys_no_overlap_is_exposed),
        cmocka_unit_test(test_stage12_keys_sum_is_the_mean_times_the_ranks),
        cmocka_unit_test(test_stage12_keys_divide_before_or_after_the_sum),
        cmocka_unit_test(test_stage12_keys_reduce_in_another_dtype),
        cmocka_unit_test(test_stage12_keys_refuse_what_is_not_here),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* tests/engines/config: DeepSpeed's keys as one text: every key survives a round trip, what makes no sense is
 * refused by name. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "engines/config/zero_text.h"
#include "kernels/base/types.h"

static void
test_zero_text_round_trip(void **state)
{
    static const char *const texts[] = {
        "prefetch_bucket_size=0;param_persistence_threshold=5;model_persistence_threshold=6",
        "max_live_parameters=7;max_reuse_distance=8;module_granularity_threshold=9",
        "allgather_sequential=true;leaf_names=h.0,h.1;leaf_suffixes=mlp",
        "overlap_comm=false;layout=single-cut",
        "gradient_allreduce_op=sum;prescale_gradients=true;gradient_predivide_factor=0.125",
        "prefetch_bucket_size=5e7",
    };
    char before[SHL_ZERO_TEXT_BYTES] = "";
    (void)state;
    for (size_t i = 0; i < SHL_ARRAY_LEN(texts); ++i) {
        shl_zero_options z, again;
        char a[SHL_ZERO_TEXT_BYTES], b[SHL_ZERO_TEXT_BYTES];
        assert_int_equal(shl_zero_options_parse(texts[i], &z), SHL_OK);
        assert_true(z.given);
        shl_zero_options_format(&z, a, sizeof(a));
        assert_int_equal(shl_zero_options_parse(a, &again), SHL_OK);
        shl_zero_options_format(&again, b, sizeof(b));
        assert_string_equal(a, b);
        assert_string_not_equal(a, before);
        for (const char *at = texts[i]; at != NULL && i < 5; at = strchr(at, ';')) {
            char entry[128];
            at += *at == ';';
            snprintf(entry, sizeof(entry), "%.*s", (int)strcspn(at, ";"), at);
            assert_non_null(strstr(a, entry));
        }
        memcpy(before, a, sizeof(a));
    }
    shl_zero_options none;
    assert_int_equal(shl_zero_options_parse("", &none), SHL_OK);
    assert_false(none.given);
}

static void
test_zero_text_refuses_by_name(void **state)
{
    static const struct {
        const char *text, *part;
    } bad[] = {
        {"prefetch_buket_size=1", "prefetch_bu"},
        {"overlap_comm=maybe", "overlap_comm"},
        {"max_live_parameters=1.5", "max_live"},
        {"max_reuse_distance", "max_reuse"},
        {"layout=flat", "layout"},
        {"gradient_predivide_factor=x", "predivide"},
    };
    (void)state;
    for (size_t i = 0; i < SHL_ARRAY_LEN(bad); ++i) {
        shl_zero_options z;
        assert_int_equal(shl_zero_options_parse(bad[i].text, &z), SHL_E_USAGE);
        assert_non_null(strstr(shl_err_get()->what, bad[i].part));
    }
    shl_engine_config c;
    shl_engine_config_init(&c);
    c.strategy = SHL_ZERO3;
    c.reduce_every = SHL_REDUCE_MICRO;
    shl_zero_options_init(&c.zero);
    assert_int_equal(shl_engine_config_check(&c), SHL_OK);
    c.zero.max_reuse_elems = -1;
    assert_int_equal(shl_engine_config_check(&c), SHL_E_USAGE);
    assert_non_null(strstr(shl_err_get()->what, "max_reuse_distance"));
    shl_zero_options_init(&c.zero);
    c.zero.predivide = 0.0;
    assert_int_equal(shl_engine_config_check(&c), SHL_E_USAGE);
    assert_non_null(strstr(shl_err_get()->what, "gradient_predivide_factor"));
    shl_zero_options_init(&c.zero);
    c.zero.sum_gradients = true;
    assert_int_equal(shl_engine_config_check(&c), SHL_E_USAGE);
    assert_non_null(strstr(shl_err_get()->what, "gradient_allreduce_op"));
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_zero_text_round_trip),
        cmocka_unit_test(test_zero_text_refuses_by_name),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

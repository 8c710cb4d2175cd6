/* tests/bench: the schedule that an engine writes down is what its communicator counted. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "bench/session.h"
#include "engines/shared/gather_log.h"
#include "kernels/base/heap.h"

static shl_code
listen(void *ctx, int rank, shl_engine *e)
{
    SHL_UNUSED(rank);
    e->gather_log = ctx;
    return SHL_OK;
}

static shl_code
stop_listening(void *ctx, int rank, shl_engine *e)
{
    SHL_UNUSED(ctx);
    SHL_UNUSED(rank);
    e->gather_log = NULL;
    return SHL_OK;
}

static void
test_explain_totals_are_those_that_were_counted(void **state)
{
    static const char *const keys[] = {
        "max_reuse_distance=0;param_persistence_threshold=0;prefetch_bucket_size=3000",
        "max_reuse_distance=20000;param_persistence_threshold=100",
        "allgather_sequential=true;max_reuse_distance=0",
        "",
    };
    (void)state;
    for (size_t i = 0; i < SHL_ARRAY_LEN(keys); ++i) {
        shl_session_config c;
        shl_session_result r = {0};
        shl_gather_log log;
        shl_str text = {0};
        shl_session_config_init(&c);
        c.device = "virtual";
        c.ranks = 4;
        c.steps = 2;
        c.engine.strategy = SHL_ZERO3;
        c.engine.reduce_every = SHL_REDUCE_MICRO;
        assert_int_equal(shl_zero_options_parse(keys[i], &c.engine.zero), SHL_OK);
        shl_zero_options_format(&c.engine.zero, c.zero_text, sizeof(c.zero_text));
        shl_gather_log_init(&log, 1);
        shl_session_sink sink = {.on_open = listen, .on_close = stop_listening, .ctx = &log};
        assert_int_equal(shl_session_run(&c, &sink, &r), SHL_OK);
        int64_t calls = 0, bytes = 0;
        for (int p = 0; p < SHL_GATHERS_PHASES; ++p) {
            calls += log.calls[p];
            bytes += log.bytes[p];
        }
        assert_int_equal(calls, r.comm_step.kind[SHL_COLL_ALL_GATHER].calls);
        assert_int_equal(bytes, r.comm_step.kind[SHL_COLL_ALL_GATHER].bytes);
        assert_int_equal(shl_gather_log_print(&log, &text), SHL_OK);
        assert_non_null(strstr(shl_str_get(&text), "backward"));
        assert_true((strstr(shl_str_get(&text), "refresh") != NULL) == (log.calls[2] > 0));
        shl_str_fini(&text);
        shl_gather_log_fini(&log);
        shl_session_result_fini(&r);
    }
    assert_int_equal(shl_heap_live_blocks(), 0);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_explain_totals_are_those_that_were_counted),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

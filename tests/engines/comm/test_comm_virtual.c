/* tests/engines/comm: virtual against shm call for call, its clock against the alpha-beta formula,
 * and worlds that no machine has. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/base/heap.h"
#include "kernels/base/types.h"
#include "tests/support/comm_battery.h"

#define ALPHA_NS 20000
#define WIRE_BYTES_PER_S 2e9

typedef struct seen {
    shl_comm_stats stats;
    shl_ledger_tier tier;
    uint64_t trace_hash;
} seen;

/* The same calls on whatever device and communicator. */
static shl_code
some_calls(shl_device *d, shl_comm *c, seen *out)
{
    int n = shl_comm_size(c);
    shl_buf b = {0};
    size_t elems = (size_t)n * 1000;
    SHL_TRY(shl_device_alloc(d, elems * sizeof(float), SHL_TIER_DEVICE, SHL_TAG_BUCKET,
                             SHL_MEM_COMM, "b", &b));
    float *x = (float *)b.data;
    shl_code code = shl_device_fill(d, x, 0, b.bytes, NULL);
    shl_stream *s = shl_device_stream(d, SHL_STREAM_COMM);
    shl_event done = {0};
    for (int64_t e = 1; e <= 900 && code == SHL_OK; e += 29) {
        int64_t at = shl_comm_rank(c) * e;
        shl_comm_seg gather[2] = {{x + at, x, e, 0}, {x, x, 0, 0}};
        shl_comm_seg scatter = {x, x + at, e, 0}, all = {x, x, e, 0};
        double f[3] = {1, 2, 3};
        SHL_TRY_TO(code, out, shl_comm_all_gather(c, gather, 2, SHL_F32, s, &done));
        SHL_TRY_TO(code, out, shl_comm_reduce_scatter(c, &scatter, 1, SHL_F32, s, &done));
        SHL_TRY_TO(code, out, shl_comm_all_reduce(c, &all, 1, SHL_F32, s, &done));
        SHL_TRY_TO(code, out, shl_comm_broadcast(c, &all, 1, SHL_F32, n - 1, s, &done));
        SHL_TRY_TO(code, out, shl_comm_control(c, SHL_CONTROL_SUM_F64, f, 3));
        SHL_TRY_TO(code, out, shl_comm_barrier(c));
        SHL_TRY_TO(code, out, shl_comm_agree(c, SHL_OK, "x"));
    }
    if (code == SHL_OK) {
        code = shl_event_sync(d, done);
    }
out:
    shl_device_free(d, &b);
    SHL_TRY(code);
    out->stats = *shl_comm_stats_get(c);
    out->tier = *shl_ledger_get(d->ledger, SHL_TIER_DEVICE);
    out->trace_hash = shl_ledger_trace_hash(d->ledger);
    return SHL_OK;
}

static shl_code
shm_main(shl_world *w, void *arg)
{
    seen *all = (seen *)arg;
    cb_rank r;
    SHL_TRY(cb_open(w, 0, 0, &r));
    return cb_close(&r, some_calls(r.device, r.comm, &all[shl_world_rank(w)]));
}

static void
open_virtual(int rank, int world, int64_t alpha_ns, double rate, shl_device **d, shl_comm **c)
{
    shl_device_config dc = {.kind = "virtual", .stands_for = "cpu", .rank = rank, .threads = 1};
    assert_int_equal(shl_device_open(&dc, d), SHL_OK);
    shl_comm_config cc = {.kind = "virtual",
                          .stands_for = "shm",
                          .rank = rank,
                          .world = world,
                          .alpha_ns = alpha_ns,
                          .wire_bytes_per_s = rate};
    assert_int_equal(shl_comm_open(&cc, *d, c), SHL_OK);
}

static void
close_virtual(shl_device **d, shl_comm **c)
{
    shl_comm_close(c);
    assert_int_equal(shl_device_close(d), SHL_OK);
}

static void
test_comm_virtual_counts_and_holds_what_shm_does(void **state)
{
    (void)state;
    const int worlds[] = {1, 2, 3, 4, 8};
    for (size_t i = 0; i < SHL_ARRAY_LEN(worlds); i++) {
        int n = worlds[i];
        seen real[8], twin;
        memset(real, 0, sizeof real);
        shl_world_config wc = {.ranks = n, .threads_per_rank = 1};
        assert_int_equal(shl_world_run_threads(&wc, shm_main, real), SHL_OK);
        for (int r = 0; r < n; r++) {
            shl_device *d = NULL;
            shl_comm *c = NULL;
            open_virtual(r, n, 0, 0, &d, &c);
            assert_false(shl_comm_has_data(c));
            assert_int_equal(some_calls(d, c, &twin), SHL_OK);
            assert_memory_equal(&twin.stats, &real[r].stats, sizeof twin.stats);
            assert_memory_equal(twin.tier.peak_tag_bytes, real[r].tier.peak_tag_bytes,
                                sizeof twin.tier.peak_tag_bytes);
            assert_int_equal(twin.tier.peak_bytes, real[r].tier.peak_bytes);
            assert_true(twin.trace_hash == real[r].trace_hash);
            close_virtual(&d, &c);
        }
    }
}

static int64_t
cost(int64_t wire_bytes)
{
    return ALPHA_NS + (int64_t)((double)wire_bytes / WIRE_BYTES_PER_S * 1e9 + 0.5);
}

static void
test_comm_virtual_clock_is_alpha_beta(void **state)
{
    (void)state;
    const int worlds[] = {1, 2, 8, 1024};
    for (size_t i = 0; i < SHL_ARRAY_LEN(worlds); i++) {
        int64_t n = worlds[i], elems = 1 << 20;
        shl_device *d = NULL;
        shl_comm *c = NULL;
        shl_buf b = {0};
        open_virtual((int)n - 1, (int)n, ALPHA_NS, WIRE_BYTES_PER_S, &d, &c);
        assert_int_equal(shl_device_alloc(d, (size_t)(n * elems) * 4, SHL_TIER_DEVICE,
                                          SHL_TAG_BUCKET, SHL_MEM_COMM, "b", &b),
                         SHL_OK);
        float *x = (float *)b.data;
        shl_stream *s = shl_device_stream(d, SHL_STREAM_COMM);
        shl_comm_seg piece = {x, x, elems, 0}, whole = {x, x, n * elems, 0};
        int64_t want = shl_device_now_ns(d, s), full = n * elems * 4, one_way = (n - 1) * elems * 4;

        assert_int_equal(shl_comm_all_gather(c, &piece, 1, SHL_F32, s, NULL), SHL_OK);
        want += cost(one_way);
        assert_int_equal(shl_device_now_ns(d, s), want);
        assert_int_equal(shl_comm_reduce_scatter(c, &piece, 1, SHL_F32, s, NULL), SHL_OK);
        want += cost(one_way);
        assert_int_equal(shl_device_now_ns(d, s), want);
        assert_int_equal(shl_comm_all_reduce(c, &whole, 1, SHL_F32, s, NULL), SHL_OK);
        want += cost(2 * one_way);
        assert_int_equal(shl_device_now_ns(d, s), want);
        assert_int_equal(shl_comm_broadcast(c, &whole, 1, SHL_F32, 0, s, NULL), SHL_OK);
        want += cost(n > 1 ? full : 0);
        assert_int_equal(shl_device_now_ns(d, s), want);
        assert_int_equal(s->busy_ns, want);
        shl_device_free(d, &b);
        close_virtual(&d, &c);
    }
}

static void
test_comm_virtual_leaves_control_data(void **state)
{
    (void)state;
    shl_device *d = NULL;
    shl_comm *c = NULL;
    open_virtual(3, 1024, 0, 0, &d, &c);
    double f[2] = {1.5, -2};
    int64_t k[2] = {INT64_MIN, INT64_MAX};
    assert_int_equal(shl_comm_control(c, SHL_CONTROL_SUM_F64, f, 2), SHL_OK);
    assert_int_equal(shl_comm_control(c, SHL_CONTROL_SUM_I128, k, 1), SHL_OK);
    assert_true(f[0] == 1.5 && f[1] == -2.0);
    assert_true(k[0] == INT64_MIN && k[1] == INT64_MAX);
    (void)SHL_RAISE(SHL_E_IO, "mine");
    assert_int_equal(shl_comm_agree(c, SHL_E_IO, "save"), SHL_E_IO);
    assert_string_equal(shl_err_get()->what, "mine");
    close_virtual(&d, &c);
    assert_int_equal(shl_heap_live_blocks(), 0);
}

static void
test_comm_virtual_self_copies(void **state)
{
    (void)state;
    shl_device_config dc = {.kind = "cpu", .threads = 1};
    shl_comm_config cc = {.kind = "self", .world = 1};
    shl_device *d = NULL;
    shl_comm *c = NULL, *part = NULL;
    assert_int_equal(shl_device_open(&dc, &d), SHL_OK);
    assert_int_equal(shl_comm_open(&cc, d, &c), SHL_OK);
    cb_rank r = {.device = d, .comm = c};
    assert_int_equal(cb_battery(&r, c), SHL_OK);
    assert_int_equal(shl_comm_split(c, 0, 0, &part), SHL_OK);
    assert_int_equal(cb_battery(&r, part), SHL_OK);
    shl_comm_close(&part);
    assert_int_equal(shl_comm_split(c, -1, 0, &part), SHL_OK);
    assert_null(part);
    assert_int_equal(shl_comm_stats_get(c)->kind[SHL_COLL_ALL_GATHER].wire_bytes, 0);
    shl_comm_close(&c);
    assert_int_equal(shl_device_close(&d), SHL_OK);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_comm_virtual_counts_and_holds_what_shm_does),
        cmocka_unit_test(test_comm_virtual_clock_is_alpha_beta),
        cmocka_unit_test(test_comm_virtual_leaves_control_data),
        cmocka_unit_test(test_comm_virtual_self_copies),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* tests/engines/comm: shm with ranks as threads: results bit by bit, control values, counters, the
 * two lanes, groups. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/base/clock.h"
#include "kernels/base/heap.h"
#include "kernels/base/types.h"
#include "tests/support/comm_battery.h"

static void
run_world(int ranks, shl_rank_main fn, void *arg)
{
    int64_t blocks = shl_heap_live_blocks();
    shl_world_config wc = {.ranks = ranks, .threads_per_rank = 1, .timeout_ms = 20000};
    shl_code code = shl_world_run_threads(&wc, fn, arg);
    if (code != SHL_OK) {
        print_error("%d ranks: %s / %s\n", ranks, shl_err_get()->what, shl_err_get()->because);
    }
    assert_int_equal(code, SHL_OK);
    assert_int_equal(shl_heap_live_blocks(), blocks);
}

static const int worlds[] = {1, 2, 3, 4, 8};

static void
test_comm_shm_matches_reference(void **state)
{
    (void)state;
    for (size_t i = 0; i < SHL_ARRAY_LEN(worlds); i++) {
        for (int memory = 0; memory < CB_MEMORY_COUNT; memory++) {
            cb_memory m = (cb_memory)memory;
            run_world(worlds[i], cb_battery_main, &m);
        }
    }
}

/* More elements than the staging buffer holds. */
static shl_code
big_main(shl_world *w, void *arg)
{
    cb_rank r;
    SHL_TRY(cb_open(w, 0, 0, &r));
    r.memory = *(const cb_memory *)arg;
    const int64_t counts[] = {300001, 7, 270000};
    shl_code code = SHL_OK;
    for (int kind = 0; kind < SHL_COLL_CONTROL && code == SHL_OK; kind++) {
        code = cb_case(&r, r.comm, (shl_coll)kind, counts, 3, kind % 2 == 0, SHL_STREAM_COMM);
    }
    r.to_one = true;
    if (code == SHL_OK) {
        code = cb_case(&r, r.comm, SHL_COLL_REDUCE_SCATTER, counts, 3, false, SHL_STREAM_COMM);
    }
    return cb_close(&r, code);
}

static void
test_comm_shm_chunks_what_exceeds_staging(void **state)
{
    (void)state;
    for (int memory = 0; memory < CB_MEMORY_COUNT; memory++) {
        cb_memory m = (cb_memory)memory;
        run_world(3, big_main, &m);
    }
}

#define EXPECT(cond)                                                                               \
    do {                                                                                           \
        if (!(cond)) {                                                                             \
            return SHL_RAISE(SHL_E_VERIFY, "%s", #cond);                                           \
        }                                                                                          \
    } while (0)

static shl_code
control_checks(cb_rank *r)
{
    int rank = shl_comm_rank(r->comm), n = shl_comm_size(r->comm);
    double f[2] = {0.1 * (rank + 1) + 1e9 * rank, -0.0};
    double want = 0.1;
    for (int q = 1; q < n; q++) {
        want += 0.1 * (q + 1) + 1e9 * q;
    }
    SHL_TRY(shl_comm_control(r->comm, SHL_CONTROL_SUM_F64, f, 2));
    EXPECT(memcmp(&f[0], &want, sizeof want) == 0);
    int64_t i64[3] = {rank, -rank, INT64_MAX / 64};
    SHL_TRY(shl_comm_control(r->comm, SHL_CONTROL_SUM_I64, i64, 3));
    EXPECT(i64[0] == n * (n - 1) / 2 && i64[1] == -i64[0] && i64[2] == INT64_MAX / 64 * n);
    /* -1 as a low word carries; the second value is negative in both words. */
    uint64_t i128[4] = {UINT64_MAX, 0, UINT64_MAX, UINT64_MAX};
    SHL_TRY(shl_comm_control(r->comm, SHL_CONTROL_SUM_I128, i128, 2));
    EXPECT(i128[0] == (uint64_t)0 - (uint64_t)n && i128[1] == (uint64_t)n - 1);
    EXPECT(i128[2] == (uint64_t)0 - (uint64_t)n && i128[3] == UINT64_MAX);
    uint32_t u32[1] = {rank == n / 2 ? 0xfffffff0u : (uint32_t)rank};
    SHL_TRY(shl_comm_control(r->comm, SHL_CONTROL_MAX_U32, u32, 1));
    EXPECT(u32[0] == 0xfffffff0u);
    int64_t low[1] = {-100 + rank};
    SHL_TRY(shl_comm_control(r->comm, SHL_CONTROL_MAX_I64, low, 1));
    EXPECT(low[0] == -100 + n - 1);
    int64_t full[512] = {1};
    SHL_TRY(shl_comm_control(r->comm, SHL_CONTROL_SUM_I64, full, 512));
    EXPECT(full[0] == n && full[511] == 0);
    EXPECT(shl_comm_control(r->comm, SHL_CONTROL_SUM_I64, full, 513) == SHL_E_BUG);
    for (int i = 0; i < 100; i++) {
        SHL_TRY(shl_comm_barrier(r->comm));
    }
    return SHL_OK;
}

static shl_code
control_main(shl_world *w, void *arg)
{
    (void)arg;
    cb_rank r;
    SHL_TRY(cb_open(w, 0, 0, &r));
    return cb_close(&r, control_checks(&r));
}

static void
test_comm_shm_control_values(void **state)
{
    (void)state;
    for (size_t i = 0; i < SHL_ARRAY_LEN(worlds); i++) {
        run_world(worlds[i], control_main, NULL);
    }
}

static shl_code
counter_checks(cb_rank *r)
{
    shl_comm *c = r->comm;
    int64_t n = shl_comm_size(c);
    const int64_t counts[] = {100, 28};
    shl_comm_stats_reset(c);
    for (int kind = 0; kind < SHL_COLL_CONTROL; kind++) {
        SHL_TRY(cb_case(r, c, (shl_coll)kind, counts, 2, false, SHL_STREAM_COMM));
    }
    double f[3] = {0};
    SHL_TRY(shl_comm_control(c, SHL_CONTROL_SUM_F64, f, 3));
    SHL_TRY(shl_comm_barrier(c));
    SHL_TRY(shl_comm_agree(c, SHL_OK, "test"));
    const shl_comm_stats *s = shl_comm_stats_get(c);
    const shl_comm_counter *k = s->kind;
    EXPECT(k[SHL_COLL_ALL_GATHER].calls == 1 && k[SHL_COLL_ALL_GATHER].bytes == n * 512);
    EXPECT(k[SHL_COLL_ALL_GATHER].wire_bytes == (n - 1) * 512);
    EXPECT(k[SHL_COLL_REDUCE_SCATTER].calls == 1 && k[SHL_COLL_REDUCE_SCATTER].bytes == n * 512);
    EXPECT(k[SHL_COLL_REDUCE_SCATTER].wire_bytes == (n - 1) * 512);
    EXPECT(k[SHL_COLL_ALL_REDUCE].calls == 1 && k[SHL_COLL_ALL_REDUCE].bytes == 512);
    EXPECT(k[SHL_COLL_ALL_REDUCE].wire_bytes == 2 * (n - 1) * 512 / n);
    EXPECT(k[SHL_COLL_BROADCAST].calls == 1 && k[SHL_COLL_BROADCAST].bytes == 512);
    EXPECT(k[SHL_COLL_CONTROL].calls == 3 && k[SHL_COLL_CONTROL].bytes == 24 + 4);
    int64_t root = shl_comm_rank(c) == n - 1 ? 512 : 0;
    int64_t staged = n == 1 ? 0 : 512 + (n - 1) * 512 + 512 + root;
    EXPECT(s->staged_bytes == (r->memory == CB_COMM ? 0 : staged));
    const shl_ledger_tier *t = shl_ledger_get(r->device->ledger, SHL_TIER_DEVICE);
    EXPECT(t->now_tag_bytes[SHL_TAG_STAGING] == shl_comm_staging_bytes("shm", (int)n));
    return SHL_OK;
}

static shl_code
counter_main(shl_world *w, void *arg)
{
    cb_rank r;
    SHL_TRY(cb_open(w, 0, 0, &r));
    r.memory = *(const cb_memory *)arg;
    return cb_close(&r, counter_checks(&r));
}

static void
test_comm_shm_counts(void **state)
{
    (void)state;
    for (int memory = 0; memory < 2; memory++) {
        cb_memory m = (cb_memory)memory;
        run_world(1, counter_main, &m);
        run_world(2, counter_main, &m);
        run_world(4, counter_main, &m);
    }
}

#define SLOW_NS 600000000

/* Control calls pass while a collective sleeps on the worker. */
static shl_code
lane_checks(cb_rank *r)
{
    shl_buf b = {0};
    SHL_TRY(
        shl_device_alloc(r->device, 4096, SHL_TIER_DEVICE, SHL_TAG_BUCKET, SHL_MEM_COMM, "b", &b));
    memset(b.data, 0, 4096);
    shl_comm_seg seg = {b.data, b.data, 1024, 0};
    shl_event done = {0};
    shl_stream *s = shl_device_stream(r->device, SHL_STREAM_COMM);
    int64_t start_ns = shl_clock_ns();
    shl_code code = shl_comm_all_reduce(r->comm, &seg, 1, SHL_F32, s, &done);
    for (int i = 0; i < 20 && code == SHL_OK; i++) {
        double x[1] = {1};
        code = shl_comm_control(r->comm, SHL_CONTROL_SUM_F64, x, 1);
    }
    int64_t control_ns = shl_clock_ns() - start_ns;
    if (code == SHL_OK) {
        code = shl_event_sync(r->device, done);
    }
    int64_t all_ns = shl_clock_ns() - start_ns;
    shl_device_free(r->device, &b);
    SHL_TRY(code);
    EXPECT(control_ns < SLOW_NS);
    EXPECT(all_ns >= SLOW_NS);
    return SHL_OK;
}

static shl_code
lane_main(shl_world *w, void *arg)
{
    (void)arg;
    cb_rank r;
    SHL_TRY(cb_open(w, 0, SLOW_NS, &r));
    return cb_close(&r, lane_checks(&r));
}

static void
test_comm_shm_control_passes_a_collective(void **state)
{
    (void)state;
    run_world(1, lane_main, NULL);
    run_world(3, lane_main, NULL);
}

/* Collectives on several streams run in the order of their issue. */
static shl_code
stream_checks(cb_rank *r)
{
    enum { N = 24, ELEMS = 33 };
    int n = shl_comm_size(r->comm), rank = shl_comm_rank(r->comm);
    shl_buf b = {0};
    SHL_TRY(shl_device_alloc(r->device, ELEMS * sizeof(float), SHL_TIER_DEVICE, SHL_TAG_BUCKET,
                             SHL_MEM_COMM, "b", &b));
    float *x = (float *)b.data;
    for (int i = 0; i < ELEMS; i++) {
        x[i] = (float)(rank == 0);
    }
    shl_comm_seg seg = {x, x, ELEMS, 0};
    shl_code code = SHL_OK;
    for (int i = 0; i < N && code == SHL_OK; i++) {
        shl_stream_kind kind = i % 2 == 0 ? SHL_STREAM_COMM : SHL_STREAM_TO_HOST;
        shl_stream *s = shl_device_stream(r->device, kind);
        code = i % 3 == 0 ? shl_comm_broadcast(r->comm, &seg, 1, SHL_F32, 0, s, NULL)
                          : shl_comm_all_reduce(r->comm, &seg, 1, SHL_F32, s, NULL);
    }
    if (code == SHL_OK) {
        code = shl_device_sync(r->device);
    }
    float want = 1.0F;
    for (int i = 0; i < N; i++) {
        want *= i % 3 == 0 ? 1.0F : (float)n;
    }
    float got = x[ELEMS - 1];
    shl_device_free(r->device, &b);
    SHL_TRY(code);
    if (n > 1 && memcmp(&got, &want, sizeof got) != 0) {
        return SHL_RAISE(SHL_E_VERIFY, "%a after %d collectives, not %a", (double)got, N,
                         (double)want);
    }
    return SHL_OK;
}

static shl_code
stream_main(shl_world *w, void *arg)
{
    (void)arg;
    cb_rank r;
    SHL_TRY(cb_open(w, 0, 0, &r));
    return cb_close(&r, stream_checks(&r));
}

static void
test_comm_shm_orders_streams(void **state)
{
    (void)state;
    run_world(2, stream_main, NULL);
    run_world(4, stream_main, NULL);
}

static shl_code
split_checks(cb_rank *r)
{
    int rank = shl_comm_rank(r->comm), n = shl_comm_size(r->comm);
    shl_comm *half = NULL;
    SHL_TRY(shl_comm_split(r->comm, rank % 2, -rank, &half)); /* keys turn the order round */
    int members = (n + 1 - rank % 2) / 2;
    int place = members - 1 - rank / 2;
    shl_code code = SHL_OK;
    if (shl_comm_size(half) != members || shl_comm_rank(half) != place) {
        code = SHL_RAISE(SHL_E_VERIFY, "place %d of %d in a half, not %d of %d",
                         shl_comm_rank(half), shl_comm_size(half), place, members);
    }
    if (code == SHL_OK) {
        code = cb_battery(r, half);
    }
    shl_comm_close(&half);
    SHL_TRY(shl_comm_agree(r->comm, code, "halves"));
    shl_comm *none = NULL;
    SHL_TRY(shl_comm_split(r->comm, rank == 0 ? -1 : 7, 0, &none));
    bool right = rank == 0 ? none == NULL : shl_comm_size(none) == n - 1;
    shl_comm_close(&none);
    EXPECT(right);
    for (int i = 0; i < 200; i++) { /* groups go back to the pool */
        shl_comm *c = NULL;
        SHL_TRY(shl_comm_split(r->comm, 0, 0, &c));
        shl_comm_close(&c);
    }
    return SHL_OK;
}

static shl_code
split_main(shl_world *w, void *arg)
{
    (void)arg;
    cb_rank r;
    SHL_TRY(cb_open(w, 0, 0, &r));
    return cb_close(&r, split_checks(&r));
}

static void
test_comm_shm_splits(void **state)
{
    (void)state;
    run_world(2, split_main, NULL);
    run_world(5, split_main, NULL);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_comm_shm_matches_reference),
        cmocka_unit_test(test_comm_shm_chunks_what_exceeds_staging),
        cmocka_unit_test(test_comm_shm_control_values),
        cmocka_unit_test(test_comm_shm_counts),
        cmocka_unit_test(test_comm_shm_control_passes_a_collective),
        cmocka_unit_test(test_comm_shm_orders_streams),
        cmocka_unit_test(test_comm_shm_splits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

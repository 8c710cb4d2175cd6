/* tests/engines/comm: local on the emulated card, whose streams run only when somebody waits: results bit
 * by bit against the sums of the battery, order without the host, failures, refusals. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/base/clock.h"
#include "kernels/base/heap.h"
#include "kernels/base/types.h"
#include "tests/support/comm_battery.h"

static shl_code
run_world(int ranks, int64_t timeout_ms, shl_rank_main fn, void *arg)
{
    int64_t blocks = shl_heap_live_blocks();
    shl_world_config wc = {.ranks = ranks, .threads_per_rank = 1, .timeout_ms = timeout_ms};
    shl_code code = shl_world_run_threads(&wc, fn, arg);
    assert_int_equal(shl_heap_live_blocks(), blocks);
    return code;
}

static void
run_ok(int ranks, shl_rank_main fn, void *arg)
{
    shl_code code = run_world(ranks, 20000, fn, arg);
    if (code != SHL_OK) {
        print_error("%d ranks: %s / %s\n", ranks, shl_err_get()->what, shl_err_get()->because);
    }
    assert_int_equal(code, SHL_OK);
}

static shl_code
battery_main(shl_world *w, void *arg)
{
    cb_rank r;
    SHL_TRY(cb_open_kind(w, "cuda", "local", 0, 0, &r));
    r.memory = *(const cb_memory *)arg;
    return cb_close(&r, cb_battery(&r, r.comm));
}

static void
test_comm_local_matches_reference(void **state)
{
    (void)state;
    const int worlds[] = {1, 2, 3, 5};
    for (size_t i = 0; i < SHL_ARRAY_LEN(worlds); i++) {
        cb_memory m = (cb_memory)(i % CB_MEMORY_COUNT);
        run_ok(worlds[i], battery_main, &m);
    }
}

/* --- order --------------------------------------------------------------------------------- */

#define ROUNDS 12
#define ELEMS 1000

/* Every rank fills its source, reduces, gathers in place and fills the source again, round after round
 * without the host waiting: the last result is right only when every step waited for the peers'. */
static shl_code
chain(cb_rank *r, float *x, float *y, float *host)
{
    int n = shl_comm_size(r->comm), rank = shl_comm_rank(r->comm);
    shl_stream *compute = shl_device_stream(r->device, SHL_STREAM_COMPUTE);
    shl_stream *comm = shl_device_stream(r->device, SHL_STREAM_COMM);
    for (int i = 0; i < n * ELEMS; i++) {
        host[i] = (float)(rank + 1);
    }
    SHL_TRY(shl_device_upload(r->device, x, host, (size_t)(n * ELEMS) * sizeof *x));
    for (int round = 0; round < ROUNDS; round++) {
        shl_event ev;
        shl_comm_seg scatter = {.src = x, .dst = y + rank * ELEMS, .elems = ELEMS};
        shl_comm_seg gather = {.src = y + rank * ELEMS, .dst = y, .elems = ELEMS};
        SHL_TRY(shl_stream_record(compute, &ev));
        SHL_TRY(shl_stream_wait(comm, ev));
        SHL_TRY(shl_comm_reduce_scatter(r->comm, &scatter, 1, SHL_F32, comm, &ev));
        /* The source is free now, for this rank's own stream. */
        SHL_TRY(shl_stream_wait(compute, ev));
        SHL_TRY(shl_device_fill(r->device, x, 0xff, (size_t)(n * ELEMS) * sizeof *x, compute));
        SHL_TRY(shl_comm_all_gather(r->comm, &gather, 1, SHL_F32, comm, &ev));
        SHL_TRY(shl_stream_wait(compute, ev));
        SHL_TRY(shl_device_copy(r->device, x, y, (size_t)(n * ELEMS) * sizeof *x, compute));
    }
    SHL_TRY(shl_device_download(r->device, host, x, (size_t)(n * ELEMS) * sizeof *x));
    float want = (float)(n * (n + 1) / 2);
    for (int i = 1; i < ROUNDS; i++) {
        want *= (float)n;
    }
    for (int i = 0; i < n * ELEMS; i++) {
        if (memcmp(&host[i], &want, sizeof want) != 0) {
            return SHL_RAISE(SHL_E_VERIFY, "element %d is %a, not %a", i, (double)host[i],
                             (double)want);
        }
    }
    return SHL_OK;
}

static shl_code
chain_main(shl_world *w, void *arg)
{
    (void)arg;
    cb_rank r;
    SHL_TRY(cb_open_kind(w, "cuda", "local", 0, 0, &r));
    size_t bytes = (size_t)(shl_world_size(w) * ELEMS) * sizeof(float);
    shl_buf b[2] = {{0}, {0}};
    float *host = NULL;
    shl_code code = shl_heap_alloc(bytes, 1, &host);
    for (int i = 0; i < 2 && code == SHL_OK; i++) {
        code = shl_device_alloc(r.device, bytes, SHL_TIER_DEVICE, SHL_TAG_BUCKET, SHL_MEM_COMM, "b",
                                &b[i]);
    }
    if (code == SHL_OK) {
        code = chain(&r, b[0].data, b[1].data, host);
    }
    shl_heap_free(&host);
    shl_device_free(r.device, &b[0]);
    shl_device_free(r.device, &b[1]);
    return cb_close(&r, code);
}

static void
test_comm_local_orders_ranks_without_the_host(void **state)
{
    (void)state;
    run_ok(2, chain_main, NULL);
    run_ok(4, chain_main, NULL);
}

/* --- groups -------------------------------------------------------------------------------- */

static shl_code
split_main(shl_world *w, void *arg)
{
    (void)arg;
    cb_rank r;
    shl_comm *half = NULL;
    SHL_TRY(cb_open_kind(w, "cuda", "local", 0, 0, &r));
    int rank = shl_world_rank(w);
    shl_code code = shl_comm_split(r.comm, rank % 2, -rank, &half);
    if (code == SHL_OK && shl_comm_size(half) != 2) {
        code = SHL_RAISE(SHL_E_VERIFY, "a half of %d ranks", shl_comm_size(half));
    }
    code = code == SHL_OK ? cb_battery(&r, half) : code;
    shl_comm_close(&half);
    if (code == SHL_OK) { /* some are in no group */
        code = shl_comm_split(r.comm, rank == 0 ? -1 : 3, 0, &half);
    }
    if (code == SHL_OK && (half == NULL) != (rank == 0)) {
        code = SHL_RAISE(SHL_E_VERIFY, "rank %d is in the wrong group", rank);
    }
    shl_comm_close(&half);
    return cb_close(&r, code);
}

static void
test_comm_local_splits(void **state)
{
    (void)state;
    run_ok(4, split_main, NULL);
}

/* --- failures ------------------------------------------------------------------------------ */

/* Rank 1 leaves before the third collective; or enters another one; or fails between two. */
typedef enum misdeed { LEAVES = 0, DIFFERS, FAILS, MISDEEDS } misdeed;

static shl_code
broken(cb_rank *r, misdeed what, shl_buf *b)
{
    bool bad = shl_comm_rank(r->comm) == 1;
    SHL_TRY(shl_device_alloc(r->device, 64 * sizeof(float), SHL_TIER_DEVICE, SHL_TAG_BUCKET,
                             SHL_MEM_COMM, "b", b));
    for (int i = 0; i < 20; i++) {
        shl_comm_seg seg = {.src = b->data, .dst = b->data, .elems = bad && i == 2 ? 32 : 64};
        if (bad && i == 2 && what == LEAVES) {
            return SHL_OK;
        }
        if (bad && i == 2 && what == FAILS) {
            (void)SHL_RAISE(SHL_E_IO, "disk is full");
            shl_comm_abort(r->comm, "forward");
            return SHL_E_IO;
        }
        SHL_TRY(shl_comm_all_reduce(r->comm, &seg, 1, SHL_F32, NULL, NULL));
    }
    return SHL_OK;
}

static shl_code
broken_main(shl_world *w, void *arg)
{
    cb_rank r;
    shl_buf b = {0};
    SHL_TRY(cb_open_kind(w, "cuda", "local", 0, 0, &r));
    shl_code code = broken(&r, *(const misdeed *)arg, &b);
    shl_device_free(r.device, &b);
    return cb_close(&r, code);
}

static void
test_comm_local_ends_everybody_when_one_fails(void **state)
{
    (void)state;
    static const struct {
        shl_code code;
        const char *text;
    } want[MISDEEDS] = {
        [LEAVES] = {SHL_E_PEER, "rank 1 "},
        [DIFFERS] = {SHL_E_BUG, "ranks disagree: rank 0 entered all_reduce #3"},
        [FAILS] = {SHL_E_IO, "disk is full"},
    };
    for (misdeed m = LEAVES; m < MISDEEDS; m++) {
        int64_t start_ns = shl_clock_ns();
        assert_int_equal(run_world(3, 300, broken_main, &m), want[m].code);
        assert_non_null(strstr(shl_err_get()->what, want[m].text));
        assert_true(shl_clock_ns() - start_ns < INT64_C(2000000000));
    }
}

/* --- refusals ------------------------------------------------------------------------------ */

static shl_code
cpu_main(shl_world *w, void *arg)
{
    (void)arg;
    cb_rank r;
    shl_code code = cb_open_kind(w, "cpu", "local", 0, 0, &r);
    if (code == SHL_E_USAGE && strstr(shl_err_get()->advice, "shm") == NULL) {
        return SHL_RAISE(SHL_E_VERIFY, "no advice: %s", shl_err_get()->advice);
    }
    return code;
}

static void
test_comm_local_refuses_a_device_without_streams(void **state)
{
    (void)state;
    assert_int_equal(run_world(2, 5000, cpu_main, NULL), SHL_E_USAGE);
    assert_non_null(strstr(shl_err_get()->what, "device cpu has none"));
}

static shl_code
two_cards_main(shl_world *w, void *arg)
{
    (void)arg;
    cb_rank r = {.world = w};
    shl_device_config dc = {
        .kind = "cuda", .rank = shl_world_rank(w), .threads = 1, .index = shl_world_rank(w)};
    SHL_TRY(shl_device_open(&dc, &r.device));
    shl_comm_config cc = {
        .kind = "local", .rank = shl_world_rank(w), .world = shl_world_size(w), .rank_world = w};
    return cb_close(&r, shl_comm_open(&cc, r.device, &r.comm));
}

static void
test_comm_local_refuses_two_cards(void **state)
{
    (void)state;
    setenv("SHL_EMULATED_DEVICES", "2", 1);
    shl_code code = run_world(2, 5000, two_cards_main, NULL);
    unsetenv("SHL_EMULATED_DEVICES");
    assert_int_equal(code, SHL_E_USAGE);
    assert_non_null(strstr(shl_err_get()->what, "ranks of one card"));
    assert_non_null(strstr(shl_err_get()->advice, "nccl"));
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_comm_local_matches_reference),
        cmocka_unit_test(test_comm_local_orders_ranks_without_the_host),
        cmocka_unit_test(test_comm_local_splits),
        cmocka_unit_test(test_comm_local_ends_everybody_when_one_fails),
        cmocka_unit_test(test_comm_local_refuses_a_device_without_streams),
        cmocka_unit_test(test_comm_local_refuses_two_cards),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

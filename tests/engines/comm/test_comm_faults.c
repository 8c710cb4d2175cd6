/* tests/engines/comm: what happens when a rank fails, leaves, stalls, disagrees, or has no memory:
 * every rank returns an error that names it, and nothing is left. Ranks are threads here. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/base/clock.h"
#include "kernels/base/heap.h"
#include "kernels/base/str.h"
#include "kernels/base/types.h"
#include "tests/support/comm_battery.h"

#define RANKS 3
#define TIMEOUT_MS 400 /* where a rank is to be missed */
#define LINGER_NS INT64_C(1500000000)
#define CALM_MS 20000 /* where none is */

typedef shl_code (*scene_fn)(cb_rank *r);

/* One scene on every rank, and how each rank ended. */
typedef struct scene {
    scene_fn fn;
    int64_t timeout_ms;
    shl_code code[RANKS];
    char what[RANKS][512];
    bool own[RANKS];
    int64_t ns[RANKS];
} scene;

static shl_code
scene_main(shl_world *w, void *arg)
{
    scene *s = (scene *)arg;
    int rank = shl_world_rank(w);
    cb_rank r;
    int64_t start_ns = shl_clock_ns();
    SHL_TRY(cb_open(w, s->timeout_ms, 0, &r));
    shl_code code = s->fn(&r);
    s->ns[rank] = shl_clock_ns() - start_ns;
    s->code[rank] = code;
    shl_strf(s->what[rank], sizeof s->what[rank], "%s", code == SHL_OK ? "" : shl_err_get()->what);
    s->own[rank] = code != SHL_OK && shl_world_error_is_own(w);
    return cb_close(&r, code);
}

static shl_code
play(scene *s, scene_fn fn, int64_t timeout_ms)
{
    memset(s, 0, sizeof *s);
    s->fn = fn;
    s->timeout_ms = timeout_ms;
    int64_t blocks = shl_heap_live_blocks();
    shl_world_config wc = {.ranks = RANKS, .threads_per_rank = 1, .timeout_ms = CALM_MS};
    shl_code code = shl_world_run_threads(&wc, scene_main, s);
    assert_int_equal(shl_heap_live_blocks(), blocks);
    return code;
}

static void
assert_says(const char *what, const char *part)
{
    if (strstr(what, part) == NULL) {
        print_error("\"%s\" does not say \"%s\"\n", what, part);
    }
    assert_non_null(strstr(what, part));
}

/* An all-reduce of a comm buffer, waited for. */
static shl_code
reduce_some(cb_rank *r, int64_t elems)
{
    return cb_case(r, r->comm, SHL_COLL_ALL_REDUCE, &elems, 1, true, SHL_STREAM_COMM);
}

static shl_code
scene_return(cb_rank *r)
{
    if (shl_comm_rank(r->comm) == 1) {
        return SHL_RAISE(SHL_E_IO, "file is gone");
    }
    return reduce_some(r, 100);
}

/* It returns without a word to the others: leaving tells them. */
static void
test_comm_faults_returning_rank_is_named(void **state)
{
    (void)state;
    scene s;
    assert_int_equal(play(&s, scene_return, CALM_MS), SHL_E_IO);
    assert_string_equal(shl_err_get()->what, "rank 1 failed in init: file is gone");
    for (int r = 0; r < RANKS; r += 2) {
        assert_true(s.code[r] == SHL_E_IO || s.code[r] == SHL_E_PEER);
        assert_says(s.what[r], "rank 1 ");
        assert_false(s.own[r]);
    }
    assert_true(s.own[1]);
}

static shl_code
scene_abort(cb_rank *r)
{
    if (shl_comm_rank(r->comm) == 1) {
        shl_clock_sleep_ns(20000000);
        shl_code code = SHL_RAISE(SHL_E_OOM, "does not fit");
        shl_comm_abort(r->comm, "forward");
        shl_clock_sleep_ns(LINGER_NS); /* the abort itself ends the others' waits, not leaving */
        return code;
    }
    shl_code code = shl_comm_rank(r->comm) == 0 ? reduce_some(r, 10) : shl_comm_barrier(r->comm);
    shl_err err = *shl_err_get();
    /* Everything later fails at once. */
    int64_t start_ns = shl_clock_ns();
    bool fails = shl_comm_barrier(r->comm) == SHL_E_OOM && reduce_some(r, 10) == SHL_E_OOM &&
                 shl_comm_agree(r->comm, SHL_OK, "later") == SHL_E_OOM;
    if (!fails || shl_clock_ns() - start_ns > LINGER_NS) {
        return SHL_RAISE(SHL_E_VERIFY, "a call after an abort did not fail at once");
    }
    shl_err_put(&err);
    return code;
}

static void
test_comm_faults_abort_reaches_both_lanes(void **state)
{
    (void)state;
    scene s;
    assert_int_equal(play(&s, scene_abort, CALM_MS), SHL_E_OOM);
    assert_string_equal(shl_err_get()->what, "rank 1 failed in init: does not fit");
    for (int r = 0; r < RANKS; r += 2) {
        assert_int_equal(s.code[r], SHL_E_OOM);
        assert_string_equal(s.what[r], "rank 1 failed in forward: does not fit");
        assert_true(s.ns[r] < LINGER_NS);
    }
}

static shl_code
scene_kinds(cb_rank *r)
{
    int64_t elems = 12;
    return cb_case(r, r->comm,
                   shl_comm_rank(r->comm) == 2 ? SHL_COLL_REDUCE_SCATTER : SHL_COLL_ALL_GATHER,
                   &elems, 1, false, SHL_STREAM_COMM);
}

static shl_code
scene_counts(cb_rank *r)
{
    return reduce_some(r, shl_comm_rank(r->comm) == 2 ? 101 : 100);
}

static shl_code
scene_controls(cb_rank *r)
{
    double x[2] = {0};
    return shl_comm_control(r->comm, SHL_CONTROL_SUM_F64, x, shl_comm_rank(r->comm) == 2 ? 2 : 1);
}

static void
test_comm_faults_mismatch_is_a_bug_everywhere(void **state)
{
    (void)state;
    const scene_fn fns[] = {scene_kinds, scene_counts, scene_controls};
    const char *const parts[][2] = {
        {"rank 0 entered all_gather #1", "rank 2 entered reduce_scatter"},
        {"100 elements", "101 elements"},
        {"rank 0 entered control", "16 bytes"}};
    for (size_t i = 0; i < SHL_ARRAY_LEN(fns); i++) {
        scene s;
        assert_int_equal(play(&s, fns[i], CALM_MS), SHL_E_BUG);
        for (int r = 0; r < RANKS; r++) {
            assert_int_equal(s.code[r], SHL_E_BUG);
            assert_says(s.what[r], parts[i][0]);
            assert_says(s.what[r], parts[i][1]);
        }
    }
}

/* Codes of ranks 1 and 2 in each agreement, and what rank 0 gets. */
static const shl_code agree_cases[][3] = {
    {SHL_OK, SHL_OK, SHL_OK},
    {SHL_E_OOM, SHL_OK, SHL_E_OOM},
    {SHL_OK, SHL_E_VERIFY, SHL_E_VERIFY},
    {SHL_E_BUG, SHL_E_OOM, SHL_E_PEER},
    {SHL_E_IO, SHL_E_OOM, SHL_E_IO},
    {SHL_E_HEAP, SHL_OK, SHL_E_PEER},
    {SHL_OK, SHL_E_CONFIG, SHL_E_CONFIG},
    {SHL_E_USAGE, SHL_OK, SHL_E_USAGE},
    {SHL_OK, SHL_E_INTERRUPTED, SHL_E_INTERRUPTED},
    {SHL_E_SYSTEM, SHL_E_BUG, SHL_E_PEER},
    {SHL_OK, SHL_OK, SHL_OK},
};

static shl_code
scene_agree(cb_rank *r)
{
    int rank = shl_comm_rank(r->comm);
    for (size_t i = 0; i < SHL_ARRAY_LEN(agree_cases); i++) {
        shl_code mine = rank == 0 ? SHL_OK : agree_cases[i][rank - 1];
        if (mine != SHL_OK) {
            (void)SHL_RAISE(mine, "reason %d", rank);
        }
        shl_code got = shl_comm_agree(r->comm, mine, "backward");
        shl_code want = mine != SHL_OK ? mine : agree_cases[i][2];
        char text[64];
        int lowest = agree_cases[i][0] != SHL_OK ? 1 : 2;
        shl_strf(text, sizeof text, "rank %d failed in backward: reason %d", lowest, lowest);
        if (mine != SHL_OK) {
            shl_strf(text, sizeof text, "reason %d", rank);
        }
        if (got != want || (got != SHL_OK && strcmp(shl_err_get()->what, text) != 0)) {
            char what[256];
            shl_strf(what, sizeof what, "%s", shl_err_get()->what);
            return SHL_RAISE(SHL_E_VERIFY, "case %zu, rank %d: %s (%s)", i, rank,
                             shl_code_name(got), what);
        }
    }
    return reduce_some(r, 5); /* the world goes on */
}

static void
test_comm_faults_agree_gives_one_code(void **state)
{
    (void)state;
    scene s;
    shl_code code = play(&s, scene_agree, CALM_MS);
    for (int r = 0; r < RANKS; r++) {
        assert_string_equal(s.what[r], "");
    }
    assert_int_equal(code, SHL_OK);
}

static shl_code
scene_ahead(cb_rank *r)
{
    if (shl_comm_rank(r->comm) == 1) {
        return shl_comm_agree(r->comm, SHL_RAISE(SHL_E_VERIFY, "not finite"), "forward");
    }
    double x = 1;
    return shl_comm_control(r->comm, SHL_CONTROL_SUM_F64, &x, 1);
}

static void
test_comm_faults_failed_rank_agrees_ahead_of_the_others(void **state)
{
    (void)state;
    scene s;
    assert_int_equal(play(&s, scene_ahead, CALM_MS), SHL_E_VERIFY);
    for (int r = 0; r < RANKS; r += 2) {
        assert_int_equal(s.code[r], SHL_E_VERIFY);
        assert_string_equal(s.what[r], "rank 1 failed in forward: not finite");
    }
}

static shl_code
scene_stall(cb_rank *r)
{
    SHL_TRY(reduce_some(r, 7));
    if (shl_comm_rank(r->comm) == 1) {
        shl_clock_sleep_ns((int64_t)5 * TIMEOUT_MS * 1000000);
        return shl_comm_barrier(r->comm); /* too late */
    }
    return reduce_some(r, 7);
}

static void
test_comm_faults_late_rank_is_named(void **state)
{
    (void)state;
    scene s;
    assert_int_equal(play(&s, scene_stall, TIMEOUT_MS), SHL_E_PEER);
    for (int r = 0; r < RANKS; r++) {
        assert_int_equal(s.code[r], SHL_E_PEER);
        assert_string_equal(s.what[r], "rank 1 has not arrived at all_reduce #2 within 0.4 s");
    }
    assert_true(s.ns[0] >= (int64_t)TIMEOUT_MS * 1000000);
    assert_true(s.ns[0] < (int64_t)5 * TIMEOUT_MS * 1000000);
}

static shl_code
scene_leave(cb_rank *r)
{
    return shl_comm_rank(r->comm) == 1 ? SHL_OK : shl_comm_barrier(r->comm);
}

static void
test_comm_faults_leaving_rank_is_named(void **state)
{
    (void)state;
    scene s;
    assert_int_equal(play(&s, scene_leave, CALM_MS), SHL_E_PEER);
    for (int r = 0; r < RANKS; r += 2) {
        assert_int_equal(s.code[r], SHL_E_PEER);
        assert_string_equal(s.what[r], "rank 1 left before it arrived at barrier #2");
        assert_true(s.ns[r] < (int64_t)CALM_MS / 4 * 1000000);
    }
}

/* The staging buffer of one rank does not fit. */
static shl_code
no_staging_main(shl_world *w, void *arg)
{
    shl_code *codes = (shl_code *)arg;
    int rank = shl_world_rank(w);
    shl_device_config dc = {.kind = "cpu",
                            .rank = rank,
                            .threads = 1,
                            .limit_bytes = {rank == 2 ? 1000 : 0, 0, 0},
                            .comm_arena = shl_world_comm_arena(w)};
    cb_rank r = {.world = w};
    SHL_TRY(shl_device_open(&dc, &r.device));
    shl_comm_config cc = {.kind = "shm", .rank = rank, .world = RANKS, .rank_world = w};
    codes[rank] = shl_comm_open(&cc, r.device, &r.comm);
    if (codes[rank] == SHL_OK || r.comm != NULL) {
        return cb_close(&r, SHL_RAISE(SHL_E_VERIFY, "opened without staging"));
    }
    return cb_close(&r, codes[rank]);
}

static void
test_comm_faults_staging_that_does_not_fit(void **state)
{
    (void)state;
    shl_code codes[RANKS];
    int64_t blocks = shl_heap_live_blocks();
    shl_world_config wc = {.ranks = RANKS, .threads_per_rank = 1, .timeout_ms = CALM_MS};
    assert_int_equal(shl_world_run_threads(&wc, no_staging_main, codes), SHL_E_OOM);
    assert_says(shl_err_get()->what, "comm.staging");
    for (int r = 0; r < RANKS; r++) {
        assert_int_equal(codes[r], SHL_E_OOM);
    }
    assert_int_equal(shl_heap_live_blocks(), blocks);
}

/* A short life of a rank: open, one collective of each kind, a split, close. */
static shl_code
short_life(shl_world *w, void *arg)
{
    (void)arg;
    cb_rank r;
    SHL_TRY(cb_open(w, 0, 0, &r));
    const int64_t counts[20] = {5, 9};
    shl_code code = SHL_OK;
    for (int kind = 0; kind < SHL_COLL_CONTROL && code == SHL_OK; kind++) {
        code = cb_case(&r, r.comm, (shl_coll)kind, counts, 20, false, SHL_STREAM_COMM);
    }
    shl_comm *part = NULL;
    if (code == SHL_OK) {
        code = shl_comm_split(r.comm, 0, 0, &part);
    }
    shl_err err = *shl_err_get();
    shl_comm_close(&part);
    if (code != SHL_OK) {
        shl_err_put(&err);
    }
    return cb_close(&r, code);
}

static void
test_comm_faults_every_heap_allocation_may_fail(void **state)
{
    (void)state;
    int64_t blocks = shl_heap_live_blocks();
    shl_world_config wc = {.ranks = 2, .threads_per_rank = 1, .timeout_ms = CALM_MS};
    int n_failed = 0;
    for (int64_t n = 1; n < 500; n++) {
        shl_heap_fail_at(n);
        shl_code code = shl_world_run_threads(&wc, short_life, NULL);
        shl_heap_fail_at(-1);
        if (shl_heap_live_blocks() != blocks) {
            print_error("allocation %lld: %s / %s\n", (long long)n, shl_err_get()->what,
                        shl_err_get()->trace);
        }
        assert_int_equal(shl_heap_live_blocks(), blocks);
        if (code == SHL_OK) {
            break;
        }
        n_failed++;
        if (code != SHL_E_HEAP) {
            print_error("allocation %lld: %s\n", (long long)n, shl_err_get()->what);
        }
        assert_int_equal(code, SHL_E_HEAP);
    }
    assert_true(n_failed > 10 && n_failed < 499);
}

static void
assert_refused(const shl_comm_config *cfg, shl_device *d, const char *part)
{
    shl_comm *c = NULL;
    assert_int_equal(shl_comm_open(cfg, d, &c), SHL_E_USAGE);
    assert_null(c);
    char text[1600];
    const shl_err *e = shl_err_get();
    shl_strf(text, sizeof text, "%s | %s | %s", e->what, e->because, e->advice);
    assert_says(text, part);
}

static void
test_comm_faults_open_refuses(void **state)
{
    (void)state;
    shl_device *d = NULL;
    shl_device_config dc = {.kind = "cpu", .threads = 1};
    assert_int_equal(shl_device_open(&dc, &d), SHL_OK);
    assert_refused(&(shl_comm_config){.kind = "mpi", .world = 1}, d, "not in this build");
    assert_refused(&(shl_comm_config){.kind = "mpi", .world = 1}, d, "shm on one machine");
    assert_refused(&(shl_comm_config){.kind = "local", .world = 1}, d, "device cpu has none");
    assert_refused(&(shl_comm_config){.kind = "nccl", .world = 1}, d, "device cpu is none");
    assert_refused(&(shl_comm_config){.kind = "slef", .world = 1}, d, "did you mean self");
    assert_refused(&(shl_comm_config){.kind = "self", .world = 2}, d, "one rank");
    assert_refused(&(shl_comm_config){.kind = "self", .world = 1, .rank = 1}, d, "no place");
    assert_refused(&(shl_comm_config){.kind = "shm", .world = 2}, d, "running world");
    assert_refused(&(shl_comm_config){.kind = "virtual", .world = 2}, d, "moves no data");
    assert_int_equal(shl_device_close(&d), SHL_OK);
    shl_world_config wc = {.ranks = SHL_WORLD_MAX_RANKS + 1};
    assert_int_equal(shl_world_run_threads(&wc, short_life, NULL), SHL_E_USAGE);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_comm_faults_returning_rank_is_named),
        cmocka_unit_test(test_comm_faults_abort_reaches_both_lanes),
        cmocka_unit_test(test_comm_faults_mismatch_is_a_bug_everywhere),
        cmocka_unit_test(test_comm_faults_agree_gives_one_code),
        cmocka_unit_test(test_comm_faults_failed_rank_agrees_ahead_of_the_others),
        cmocka_unit_test(test_comm_faults_late_rank_is_named),
        cmocka_unit_test(test_comm_faults_leaving_rank_is_named),
        cmocka_unit_test(test_comm_faults_staging_that_does_not_fit),
        cmocka_unit_test(test_comm_faults_every_heap_allocation_may_fail),
        cmocka_unit_test(test_comm_faults_open_refuses),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* tests/engines/comm: nccl over a mock of the library: ranks are processes on emulated cards. The program
 * starts itself as ranks: in a process that joins a world, main plays the scene named on the command line
 * and appends how it ended to a file. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kernels/base/clock.h"
#include "kernels/base/heap.h"
#include "kernels/base/str.h"
#include "kernels/base/types.h"
#include "tests/support/comm_battery.h"
#include "tests/support/lab_memory.h"

#define TIMEOUT_MS 700 /* where a rank is to be missed */
#define CALM_MS 20000  /* where none is */

/* --- scenes: inside a rank ----------------------------------------------------------------- */

/* Every kind in every type, in place and not, whole and in pieces, to all and to one. */
static shl_code
scene_battery(shl_world *w, const char *kind)
{
    static const int64_t odd[] = {4099}, some[] = {17, 1, 0, 1000, 5};
    cb_rank r;
    SHL_TRY(cb_open_kind(w, "cuda", kind, 0, 0, &r));
    shl_code code = SHL_OK;
    for (int i = 0; i < 4 * SHL_COLL_CONTROL && code == SHL_OK; i++) {
        shl_coll coll = (shl_coll)(i / 4);
        bool in_place = i % 2 != 0, whole = i % 4 < 2;
        r.dtype = whole ? SHL_F32 : in_place ? SHL_BF16 : SHL_F16;
        r.to_one = coll == SHL_COLL_REDUCE_SCATTER && i % 4 == 3;
        code = cb_case(&r, r.comm, coll, whole ? odd : some, whole ? 1 : 5, in_place,
                       whole ? SHL_STREAM_COMM : SHL_STREAM_COMPUTE);
    }
    return cb_close(&r, code);
}

static shl_code
scene_split(shl_world *w)
{
    cb_rank r;
    shl_comm *half = NULL;
    SHL_TRY(cb_open_kind(w, "cuda", "nccl-ordered", 0, 0, &r));
    int rank = shl_world_rank(w);
    const int64_t counts[] = {100, 7};
    shl_code code = shl_comm_split(r.comm, rank % 2, -rank, &half);
    if (code == SHL_OK && (shl_comm_size(half) != 2 || shl_comm_rank(half) != 1 - rank / 2)) {
        code = SHL_RAISE(SHL_E_VERIFY, "place %d of %d", shl_comm_rank(half), shl_comm_size(half));
    }
    /* Both in flight, one behind the other. */
    for (int i = 0; i < 6 && code == SHL_OK; i++) {
        code = cb_case(&r, i % 2 ? half : r.comm, SHL_COLL_ALL_REDUCE, counts, 2, true,
                       SHL_STREAM_COMM);
    }
    if (code == SHL_OK && strcmp(shl_comm_memory(half), "ncclMemAlloc, registered") != 0) {
        code = SHL_RAISE(SHL_E_VERIFY, "a part's memory: %s", shl_comm_memory(half));
    }
    shl_comm_close(&half);
    code = code == SHL_OK ? shl_comm_split(r.comm, rank == 0 ? -1 : 3, 0, &half) : code;
    if (code == SHL_OK && (half == NULL) != (rank == 0)) {
        code = SHL_RAISE(SHL_E_VERIFY, "rank %d is in the wrong group", rank);
    }
    shl_comm_close(&half);
    return cb_close(&r, code);
}

/* Reductions that wait for the device each time. slow: rank 1 does not come to the third. */
static shl_code
scene_loop(shl_world *w, bool slow)
{
    cb_rank r;
    SHL_TRY(cb_open_kind(w, "cuda", "nccl", slow ? TIMEOUT_MS : 0, 0, &r));
    const int64_t elems = 300;
    shl_code code = SHL_OK;
    for (int i = 0; i < 20 && code == SHL_OK; i++) {
        if (slow && i == 2 && shl_world_rank(w) == 1) {
            shl_clock_sleep_ns((TIMEOUT_MS + 900) * INT64_C(1000000));
        }
        shl_code values =
            cb_case(&r, r.comm, SHL_COLL_ALL_REDUCE, &elems, 1, true, SHL_STREAM_COMM);
        shl_err wrong = *shl_err_get();
        /* Of a collective that was given up the values are wrong; the agreement says why. */
        code = shl_comm_agree(r.comm, SHL_OK, "step");
        code = code == SHL_OK && values != SHL_OK ? shl_err_put(&wrong) : code;
    }
    return cb_close(&r, code);
}

/* All ranks on the first card. */
static shl_code
scene_one_card(shl_world *w, bool share)
{
    cb_rank r = {.world = w};
    shl_device_config dc = {.kind = "cuda", .rank = shl_world_rank(w), .threads = 1};
    SHL_TRY(shl_device_open(&dc, &r.device));
    shl_comm_config cc = {.kind = "nccl",
                          .rank = shl_world_rank(w),
                          .world = shl_world_size(w),
                          .rank_world = w,
                          .share_gpu = share};
    shl_code code = shl_comm_open(&cc, r.device, &r.comm);
    const int64_t elems = 300;
    if (code == SHL_OK &&
        strcmp(shl_comm_memory(r.comm), "own range, not registered: nothing was planned") != 0) {
        code = SHL_RAISE(SHL_E_VERIFY, "memory: %s", shl_comm_memory(r.comm));
    }
    if (code == SHL_OK) {
        code = cb_case(&r, r.comm, SHL_COLL_ALL_GATHER, &elems, 1, true, SHL_STREAM_COMM);
    }
    const char *host = getenv("NCCL_HOSTID"), *net = getenv("NCCL_NET");
    char want[16];
    shl_strf(want, sizeof want, "t%d", shl_world_rank(w));
    if (code == SHL_OK &&
        (!host || strcmp(host, want) != 0 || !net || strcmp(net, "Socket") != 0)) {
        code = SHL_RAISE(SHL_E_VERIFY, "NCCL_HOSTID is %s", host ? host : "not set");
    }
    return cb_close(&r, code);
}

/* A buffer that is not communication memory: sums are right, the library copies it, and the mock tells. */
static shl_code
scene_outside(shl_world *w)
{
    cb_rank r;
    const int64_t elems = 300;
    SHL_TRY(cb_open_kind(w, "cuda", "nccl", 0, 0, &r));
    r.memory = CB_STAGED;
    shl_code code = cb_case(&r, r.comm, SHL_COLL_ALL_REDUCE, &elems, 1, true, SHL_STREAM_COMM);
    int64_t outside = shl_comm_stats_get(r.comm)->staged_bytes;
    if (code == SHL_OK && outside != 2 * 1200) {
        code = SHL_RAISE(SHL_E_VERIFY, "%lld bytes lie outside", (long long)outside);
    }
    return cb_close(&r, code);
}

/* Rank 1's library registers nothing: that is told, and no error. */
static shl_code
scene_refuse(shl_world *w)
{
    static const char *const want[] = {"ncclMemAlloc, registered",
                                       "ncclMemAlloc, not registered: an error"};
    cb_rank r;
    const int64_t elems = 300;
    SHL_TRY(cb_open_kind(w, "cuda", "nccl", 0, 0, &r));
    shl_code code = cb_case(&r, r.comm, SHL_COLL_ALL_REDUCE, &elems, 1, true, SHL_STREAM_COMM);
    if (code == SHL_OK && strcmp(shl_comm_memory(r.comm), want[shl_world_rank(w)]) != 0) {
        code = SHL_RAISE(SHL_E_VERIFY, "memory: %s", shl_comm_memory(r.comm));
    }
    return cb_close(&r, code);
}

/* A whole run: it takes nothing after its opening, what it sends lies in the registered block, and the
 * virtual device has taken as much at the end. scene: "run:<strategy>", "run:<strategy>+" with offload. */
static shl_code
scene_run(shl_world *w, const char *scene)
{
    char strategy[16];
    lm_result got, plan;
    shl_lab_options o;
    bool far = strchr(scene, '+') != NULL;
    shl_strf(strategy, sizeof strategy, "%.*s", (int)strcspn(scene, "+"), scene);
    lm_options(&o, "cuda", strategy);
    o.comm = far ? "nccl-ordered" : "nccl";
    o.offload_optimizer = o.offload_param = far ? "cpu" : "none";
    o.pin_memory = far;
    SHL_TRY(lm_run(&o, w, NULL, 1, &got));
    if (strcmp(got.memory, "ncclMemAlloc, registered") != 0 || got.staged_bytes != 0) {
        return SHL_RAISE(SHL_E_VERIFY, "memory: %s; outside %lld", got.memory,
                         (long long)got.staged_bytes);
    }
    o.device = "virtual";
    o.stands_for = "cuda";
    o.rank = shl_world_rank(w);
    o.ranks = shl_world_size(w);
    SHL_TRY(lm_run(&o, NULL, NULL, 1, &plan));
    got.taken.driver_bytes = 0;
    if (memcmp(&plan.taken, &got.taken, sizeof got.taken) != 0) {
        return SHL_RAISE(SHL_E_VERIFY, "virtual %zu and %zu for peers, here %zu and %zu",
                         plan.taken.reserved_bytes[SHL_TIER_DEVICE], plan.taken.comm_bytes,
                         got.taken.reserved_bytes[SHL_TIER_DEVICE], got.taken.comm_bytes);
    }
    return SHL_OK;
}

static shl_code
play(shl_world *w, const char *scene)
{
    if (strncmp(scene, "run:", 4) == 0) {
        return scene_run(w, scene + 4);
    }
    if (strcmp(scene, "outside") == 0 || strcmp(scene, "refuse") == 0) {
        return scene[0] == 'o' ? scene_outside(w) : scene_refuse(w);
    }
    if (strncmp(scene, "nccl", 4) == 0) {
        return scene_battery(w, scene);
    }
    if (strcmp(scene, "split") == 0) {
        return scene_split(w);
    }
    if (strcmp(scene, "one-card") == 0 || strcmp(scene, "share") == 0) {
        return scene_one_card(w, strcmp(scene, "share") == 0);
    }
    return scene_loop(w, strcmp(scene, "slow") == 0);
}

static int
rank_main(shl_world *w, const char *scene, const char *path)
{
    char line[1500];
    shl_code code = play(w, scene);
    const shl_err *err = shl_err_get();
    shl_strf(line, sizeof line, "%d %d %s|%s|%s\n", shl_world_rank(w), (int)code,
             code == SHL_OK ? "" : err->what, code == SHL_OK ? "" : err->because,
             code == SHL_OK ? "" : err->advice);
    int fd = open(path, O_WRONLY | O_APPEND);
    bool written = fd >= 0 && write(fd, line, strlen(line)) == (ssize_t)strlen(line);
    shl_world_leave(&w, written ? code : SHL_E_IO);
    return written ? 0 : 1;
}

/* --- the tests: the supervisor ------------------------------------------------------------- */

typedef struct outcome {
    shl_code code;
    int64_t ns;
    struct {
        shl_code code; /* -1: wrote nothing */
        char text[1400];
    } rank[8];
} outcome;

static void
run(int ranks, int64_t timeout_ms, bool share, const char *scene, outcome *o)
{
    char path[] = "/tmp/shardlab-nccl-XXXXXX", line[1600];
    int fd = mkstemp(path);
    bool printed = false;
    assert_true(fd >= 0);
    close(fd);
    memset(o, 0, sizeof *o);
    for (int r = 0; r < 8; r++) {
        o->rank[r].code = (shl_code)-1;
    }
    const char *const argv[] = {"/proc/self/exe", scene, path, NULL};
    shl_world_config wc = {
        .ranks = ranks, .threads_per_rank = 1, .timeout_ms = timeout_ms, .share_gpu = share};
    int64_t start_ns = shl_clock_ns();
    o->code = shl_world_run_processes(&wc, argv, &printed);
    o->ns = shl_clock_ns() - start_ns;
    FILE *f = fopen(path, "r");
    assert_non_null(f);
    while (fgets(line, sizeof line, f) != NULL) {
        int rank = -1, code = -1, at = 0;
        assert_int_equal(sscanf(line, "%d %d %n", &rank, &code, &at), 2);
        o->rank[rank].code = (shl_code)code;
        shl_strf(o->rank[rank].text, sizeof o->rank[rank].text, "%s", line + at);
    }
    fclose(f);
    unlink(path);
}

static void
assert_ok(const outcome *o, int ranks)
{
    for (int r = 0; r < ranks; r++) {
        if (o->rank[r].code != SHL_OK) {
            print_error("rank %d: %d %s\n", r, (int)o->rank[r].code, o->rank[r].text);
        }
        assert_int_equal(o->rank[r].code, SHL_OK);
    }
    assert_int_equal(o->code, SHL_OK);
}

static void
assert_says(const char *text, const char *part)
{
    if (strstr(text, part) == NULL) {
        print_error("\"%s\" is not in \"%s\"\n", part, text);
    }
    assert_non_null(strstr(text, part));
}

static void
test_comm_nccl_matches_reference(void **state)
{
    (void)state;
    outcome o;
    for (int ranks = 1; ranks <= 4; ranks++) {
        run(ranks, CALM_MS, false, ranks == 3 ? "nccl" : "nccl-ordered", &o);
        assert_ok(&o, ranks);
    }
}

/* A library that adds in another order: the sums of nccl-ordered do not come from it. */
static void
test_comm_nccl_ordered_sums_by_itself(void **state)
{
    (void)state;
    outcome o;
    setenv("SHL_MOCK_NCCL", "reverse", 1);
    run(3, CALM_MS, false, "nccl-ordered", &o);
    assert_ok(&o, 3);
    run(3, CALM_MS, false, "nccl", &o);
    unsetenv("SHL_MOCK_NCCL");
    assert_int_equal(o.code, SHL_E_VERIFY);
}

static void
test_comm_nccl_splits(void **state)
{
    (void)state;
    outcome o;
    run(4, CALM_MS, false, "split", &o);
    assert_ok(&o, 4);
}

static void
test_comm_nccl_names_a_rank_that_does_not_come(void **state)
{
    (void)state;
    outcome o;
    run(3, CALM_MS, false, "slow", &o);
    assert_int_equal(o.code, SHL_E_PEER);
    for (int r = 0; r < 3; r += 2) {
        assert_int_equal(o.rank[r].code, SHL_E_PEER);
        assert_says(o.rank[r].text,
                    "rank 1 has not entered all_reduce #3 of 1200 bytes within 0.7 s");
        assert_says(o.rank[r].text, "1 of 3 ranks are missing; rank 1 is at #2");
        assert_says(o.rank[r].text, "before it all_reduce #1 of 1200 bytes, all_reduce #2");
    }
}

static void
test_comm_nccl_ends_a_collective_that_hangs(void **state)
{
    (void)state;
    outcome o;
    setenv("SHL_MOCK_NCCL", "hang:2:4", 1);
    run(3, TIMEOUT_MS, false, "loop", &o);
    unsetenv("SHL_MOCK_NCCL");
    assert_int_equal(o.code, SHL_E_PEER);
    for (int r = 0; r < 3; r++) {
        assert_int_equal(o.rank[r].code, SHL_E_PEER);
        assert_says(o.rank[r].text, "all_reduce #5 of 1200 bytes has not finished within 0.7 s");
        assert_says(o.rank[r].text, "all 3 ranks have entered it");
    }
    assert_true(o.ns < INT64_C(4000000000));
}

static void
test_comm_nccl_names_a_rank_killed_in_a_collective(void **state)
{
    (void)state;
    outcome o;
    setenv("SHL_MOCK_NCCL", "die:1:3", 1);
    run(3, CALM_MS, false, "loop", &o);
    unsetenv("SHL_MOCK_NCCL");
    assert_int_equal(o.code, SHL_E_PEER);
    assert_says(shl_err_get()->what, "rank 1 died in init: killed by signal 9");
    for (int r = 0; r < 3; r += 2) {
        assert_int_equal(o.rank[r].code, SHL_E_PEER);
        assert_says(o.rank[r].text, "rank 1 died in init: killed by signal 9");
    }
    assert_true(o.ns < INT64_C(4000000000));
}

static void
test_comm_nccl_passes_on_the_librarys_error(void **state)
{
    (void)state;
    outcome o;
    setenv("SHL_MOCK_NCCL", "fail:0:2", 1);
    run(2, CALM_MS, false, "loop", &o);
    unsetenv("SHL_MOCK_NCCL");
    assert_int_equal(o.code, SHL_E_SYSTEM);
    assert_says(shl_err_get()->what, "unhandled system error");
    assert_int_equal(o.rank[1].code, SHL_E_PEER);
    assert_says(o.rank[1].text, "rank 0 failed");
    assert_says(o.rank[1].text, "the mock was told to fail");
}

static void
test_comm_nccl_refuses_a_library_that_does_not_fit(void **state)
{
    (void)state;
    outcome o;
    setenv("SHL_MOCK_NCCL_VERSION", "21602", 1);
    run(2, CALM_MS, false, "loop", &o);
    unsetenv("SHL_MOCK_NCCL_VERSION");
    assert_int_equal(o.code, SHL_E_SYSTEM);
    assert_says(o.rank[0].text, "libnccl-mock.so is NCCL 2.16.2");
    assert_says(o.rank[0].text, "2.18.0 or newer");
    char *real = strdup(getenv("SHL_NCCL_LIBRARY"));
    setenv("SHL_NCCL_LIBRARY", "/nowhere/libnccl.so.2", 1);
    run(2, CALM_MS, false, "loop", &o);
    setenv("SHL_NCCL_LIBRARY", "libm.so.6", 1);
    assert_int_equal(o.code, SHL_E_SYSTEM);
    assert_says(o.rank[0].text, "NCCL cannot be loaded: /nowhere/libnccl.so.2");
    run(2, CALM_MS, false, "loop", &o);
    setenv("SHL_NCCL_LIBRARY", real, 1);
    free(real);
    assert_says(o.rank[0].text, "libm.so.6 has no function ncclGetVersion");
}

static void
test_comm_nccl_shares_a_card_only_when_told(void **state)
{
    (void)state;
    outcome o;
    run(2, CALM_MS, false, "one-card", &o);
    assert_int_equal(o.code, SHL_E_USAGE);
    assert_says(o.rank[0].text, "ranks 0 and 1 have the same card");
    assert_says(o.rank[0].text, "--share-gpu");
    run(2, CALM_MS, true, "share", &o);
    assert_ok(&o, 2);
}

static void
test_comm_nccl_memory_is_the_librarys_and_registered(void **state)
{
    static const char *const scenes[] = {"run:fsdp", "run:zero3+"};
    (void)state;
    outcome o;
    for (size_t i = 0; i < SHL_ARRAY_LEN(scenes); i++) {
        run(2, CALM_MS, false, scenes[i], &o);
        assert_ok(&o, 2);
    }
}

static void
test_comm_nccl_tells_of_memory_that_is_not_registered(void **state)
{
    (void)state;
    outcome o;
    setenv("SHL_MOCK_NCCL", "refuse:1", 1);
    run(2, CALM_MS, false, "refuse", &o);
    unsetenv("SHL_MOCK_NCCL");
    assert_ok(&o, 2);
    run(2, CALM_MS, false, "outside", &o);
    assert_int_equal(o.rank[0].code, SHL_OK);
    assert_int_equal(o.rank[1].code, SHL_OK);
    /* What the mock found out shows in the status of its process. */
    assert_int_equal(o.code, SHL_E_PEER);
    assert_says(shl_err_get()->what, "86");
}

static shl_code
thread_main(shl_world *w, void *arg)
{
    (void)arg;
    cb_rank r;
    return cb_open_kind(w, "cuda", "nccl", 0, 0, &r);
}

/* Only a card that is full is out of memory: a sweep goes on behind that. */
static void
test_comm_nccl_tells_a_full_card_from_a_broken_driver(void **state)
{
    (void)state;
    shl_mem_source source = {0};
    void *block = NULL;
    assert_int_equal(shl_comm_mem_source("nccl", &source), SHL_OK);
    assert_string_equal(source.name, "ncclMemAlloc");
    setenv("SHL_MOCK_NCCL", "full", 1);
    assert_int_equal(source.take(source.ctx, 4096, &block), SHL_E_OOM);
    setenv("SHL_MOCK_NCCL", "driver", 1);
    assert_int_equal(source.take(source.ctx, 4096, &block), SHL_E_SYSTEM);
    unsetenv("SHL_MOCK_NCCL");
    assert_null(block);
}

static void
test_comm_nccl_refuses_threads_and_other_devices(void **state)
{
    (void)state;
    shl_world_config wc = {.ranks = 2, .threads_per_rank = 1, .timeout_ms = 5000};
    assert_int_equal(shl_world_run_threads(&wc, thread_main, NULL), SHL_E_USAGE);
    assert_says(shl_err_get()->advice, "local");
    shl_device_config dc = {.kind = "cpu", .threads = 1};
    shl_device *d = NULL;
    shl_comm *c = NULL;
    assert_int_equal(shl_device_open(&dc, &d), SHL_OK);
    shl_comm_config cc = {.kind = "nccl", .world = 1};
    assert_int_equal(shl_comm_open(&cc, d, &c), SHL_E_USAGE);
    assert_says(shl_err_get()->advice, "shm");
    assert_int_equal(shl_device_close(&d), SHL_OK);
}

int
main(int argc, char **argv)
{
    shl_world *w = NULL;
    setenv("SHL_EMULATED_DEVICES", "4", 1);
    if (shl_world_join(&w) != SHL_OK) {
        return 2;
    }
    if (w != NULL) {
        return argc == 3 ? rank_main(w, argv[1], argv[2]) : 2;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_comm_nccl_matches_reference),
        cmocka_unit_test(test_comm_nccl_ordered_sums_by_itself),
        cmocka_unit_test(test_comm_nccl_splits),
        cmocka_unit_test(test_comm_nccl_names_a_rank_that_does_not_come),
        cmocka_unit_test(test_comm_nccl_ends_a_collective_that_hangs),
        cmocka_unit_test(test_comm_nccl_names_a_rank_killed_in_a_collective),
        cmocka_unit_test(test_comm_nccl_passes_on_the_librarys_error),
        cmocka_unit_test(test_comm_nccl_refuses_a_library_that_does_not_fit),
        cmocka_unit_test(test_comm_nccl_shares_a_card_only_when_told),
        cmocka_unit_test(test_comm_nccl_memory_is_the_librarys_and_registered),
        cmocka_unit_test(test_comm_nccl_tells_of_memory_that_is_not_registered),
        cmocka_unit_test(test_comm_nccl_tells_a_full_card_from_a_broken_driver),
        cmocka_unit_test(test_comm_nccl_refuses_threads_and_other_devices),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

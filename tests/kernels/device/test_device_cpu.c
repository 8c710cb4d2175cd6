/* tests/kernels/device: the cpu device: memory, the system's own limit, order of streams, failures
 * that stick, and a clean end after any refused allocation. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "kernels/base/clock.h"
#include "kernels/base/heap.h"
#include "kernels/device/arena.h"
#include "kernels/device/device.h"
#include "kernels/device/sanitize.h"

static shl_device *
open_cpu(size_t limit_bytes)
{
    shl_device *d = NULL;
    shl_device_config cfg = {.kind = "cpu", .threads = 1};
    cfg.limit_bytes[SHL_TIER_DEVICE] = limit_bytes;
    assert_int_equal(shl_device_open(&cfg, &d), SHL_OK);
    return d;
}

static void
test_device_memory_is_ours_and_counted(void **state)
{
    shl_device *d = open_cpu(0);
    shl_buf a, b, none;
    SHL_UNUSED(state);
    assert_int_equal(shl_device_alloc(d, 1000, SHL_TIER_DEVICE, SHL_TAG_ACT, 0, "x", &a), SHL_OK);
    assert_int_equal(shl_device_alloc(d, 50, SHL_TIER_HOST, SHL_TAG_STAGING, SHL_MEM_COMM, "y", &b),
                     SHL_OK);
    assert_int_equal(shl_device_alloc(d, 0, SHL_TIER_DEVICE, SHL_TAG_ACT, 0, "z", &none), SHL_OK);
    assert_null(none.data);
    assert_int_equal((uintptr_t)a.data % d->caps.align_bytes, 0);
    memset(a.data, 7, a.bytes);
    memset(b.data, 8, b.bytes);
    /* Requested bytes are counted, not rounded ones; the tiers are separate accounts. */
    assert_int_equal(shl_ledger_get(d->ledger, SHL_TIER_DEVICE)->now_bytes, 1000);
    assert_int_equal(shl_ledger_get(d->ledger, SHL_TIER_HOST)->now_bytes, 50);
    assert_true(shl_device_reserved_bytes(d, SHL_TIER_DEVICE) >= 1000);
    assert_int_equal(shl_device_reserved_bytes(d, SHL_TIER_NVME), 0);
    /* With AddressSanitizer a step too far is caught, and so is a use after the release. */
    unsigned char *old = a.data;
    assert_int_equal(SHL_IS_POISONED(old + 999), 0);
    assert_int_equal(SHL_IS_POISONED(old + 1000), SHL_ASAN);
    assert_int_equal(SHL_IS_POISONED(old + 1024), SHL_ASAN);
    shl_device_free(d, &a);
    assert_null(a.data);
    assert_int_equal(SHL_IS_POISONED(old), SHL_ASAN);
    shl_device_free(d, &a);
    assert_int_equal(shl_device_alloc(d, 900, SHL_TIER_DEVICE, SHL_TAG_ACT, 0, "x", &a), SHL_OK);
    assert_ptr_equal(a.data, old);
    shl_device_free(d, &a);
    shl_device_free(d, &b);
    shl_device_free(d, &none);
    assert_int_equal(shl_device_alloc(d, 8, SHL_TIER_NVME, SHL_TAG_OPTIM, 0, "n", &a), SHL_E_USAGE);
    assert_null(a.data);
    assert_int_equal(shl_device_close(&d), SHL_OK);
    assert_null(d);
}

static void
test_device_comm_memory_comes_from_the_lent_arena(void **state)
{
    static _Alignas(64) unsigned char lent[8192];
    shl_device *d = NULL;
    shl_arena *arena = NULL;
    shl_buf a, b;
    SHL_UNUSED(state);
    assert_int_equal(shl_arena_open(lent, sizeof(lent), 64, 4096, NULL, NULL, &arena), SHL_OK);
    shl_device_config cfg = {.kind = "cpu", .threads = 1, .comm_arena = arena};
    assert_int_equal(shl_device_open(&cfg, &d), SHL_OK);
    assert_int_equal(
        shl_device_alloc(d, 64, SHL_TIER_DEVICE, SHL_TAG_GATHER, SHL_MEM_COMM, "slot", &a), SHL_OK);
    assert_int_equal(shl_device_alloc(d, 64, SHL_TIER_DEVICE, SHL_TAG_ACT, 0, "plain", &b), SHL_OK);
    assert_ptr_equal(a.data, lent);
    assert_false(shl_arena_owns(arena, b.data));
    assert_int_equal(shl_ledger_get(d->ledger, SHL_TIER_DEVICE)->now_bytes, 128);
    shl_device_free(d, &a);
    shl_device_free(d, &b);
    assert_int_equal(shl_device_close(&d), SHL_OK);
    shl_arena_close(&arena);
}

static void
test_device_limit_refuses_before_the_system_is_asked(void **state)
{
    shl_device *d = open_cpu(1 << 20);
    shl_buf a;
    SHL_UNUSED(state);
    shl_ledger_set_mark(d->ledger, SHL_MARK_FORWARD);
    assert_int_equal(
        shl_device_alloc(d, (size_t)1 << 40, SHL_TIER_DEVICE, SHL_TAG_ACT, 0, "h.0", &a),
        SHL_E_OOM);
    assert_non_null(strstr(shl_err_get()->what, "in forward: h.0 asked for"));
    assert_int_equal(shl_device_reserved_bytes(d, SHL_TIER_DEVICE), 0);
    /* A planned failure gives the memory back as well. */
    shl_ledger_fail_at(d->ledger, 1);
    assert_int_equal(shl_device_alloc(d, 64, SHL_TIER_DEVICE, SHL_TAG_ACT, 0, "h.0", &a),
                     SHL_E_OOM);
    assert_null(a.data);
    assert_int_equal(shl_ledger_get(d->ledger, SHL_TIER_DEVICE)->peak_bytes, 0);
    assert_int_equal(shl_device_close(&d), SHL_OK);
}

static void
test_device_close_tells_of_a_leak(void **state)
{
    int64_t blocks = shl_heap_live_blocks();
    shl_device *d = open_cpu(0);
    shl_buf a;
    SHL_UNUSED(state);
    assert_int_equal(shl_device_alloc(d, 10, SHL_TIER_DEVICE, SHL_TAG_WORK, 0, "op", &a), SHL_OK);
    assert_int_equal(shl_device_close(&d), SHL_E_BUG);
    assert_non_null(strstr(shl_err_get()->because, "op holds 10 bytes of work"));
    assert_null(d);
    assert_int_equal(shl_heap_live_blocks(), blocks);
}

static size_t
data_bytes_of_this_process(void)
{
    char line[128];
    unsigned long kib = 0;
    FILE *f = fopen("/proc/self/status", "r");
    while (f != NULL && fgets(line, sizeof(line), f) != NULL) {
        if (sscanf(line, "VmData: %lu kB", &kib) == 1) {
            break;
        }
    }
    if (f != NULL) {
        fclose(f);
    }
    return (size_t)kib * 1024;
}

/* In a child: with 64 MiB left, buffers of 4 MiB run out as an ordinary error, and are usable
 * until then. 0 when all is as it should be. */
static int
run_out_of_system_memory(shl_device *d)
{
    enum { N = 64 };
    shl_buf bufs[N];
    size_t bytes = (size_t)4 << 20, left = (size_t)64 << 20;
    struct rlimit limit = {data_bytes_of_this_process() + left, RLIM_INFINITY};
    shl_code code = SHL_OK;
    size_t n = 0;
    if (setrlimit(RLIMIT_DATA, &limit) != 0) {
        return 1;
    }
    while (code == SHL_OK && n < N) {
        code = shl_device_alloc(d, bytes, SHL_TIER_DEVICE, SHL_TAG_PARAM, 0, "wte", &bufs[n]);
        if (code == SHL_OK) {
            memset(bufs[n++].data, 1, bytes);
        }
    }
    if (code != SHL_E_OOM || n < 10 || n * bytes > left) {
        return 2;
    }
    if (strstr(shl_err_get()->what, "wte asked for 4194304 bytes of param") == NULL ||
        strstr(shl_err_get()->because, "the system has no more") == NULL) {
        return 3;
    }
    if (shl_ledger_get(d->ledger, SHL_TIER_DEVICE)->peak_bytes != n * bytes) {
        return 4;
    }
    while (n > 0) {
        shl_device_free(d, &bufs[--n]);
    }
    return shl_device_close(&d) == SHL_OK ? 0 : 5;
}

static void
test_device_obeys_the_limit_of_the_system(void **state)
{
    int status = 0;
    SHL_UNUSED(state);
    if (SHL_ASAN || SHL_TSAN) {
        /* Their own mappings count as data too. */
        skip();
    }
    shl_device *d = open_cpu(0);
    pid_t child = fork();
    if (child == 0) {
        _exit(run_out_of_system_memory(d));
    }
    assert_true(child > 0);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
    assert_int_equal(shl_device_close(&d), SHL_OK);
}

typedef struct step {
    int *log;
    int *n;
    int value;
    int sleep_us;
    shl_code code;
} step;

static shl_code
run_step(void *arg)
{
    step *s = arg;
    if (s->sleep_us > 0) {
        shl_clock_sleep_ns(s->sleep_us * INT64_C(1000));
    }
    if (s->code != SHL_OK) {
        SHL_RAISE(s->code, "step %d failed", s->value);
        return shl_err_because("it was told to");
    }
    s->log[(*s->n)++] = s->value;
    return SHL_OK;
}

static void
submit_step(shl_stream *s, step what)
{
    assert_int_equal(shl_stream_submit(s, run_step, &what, sizeof(what), 0), SHL_OK);
}

static void
test_device_streams_keep_their_order(void **state)
{
    enum { N = 300 };
    static int log[N];
    int n = 0;
    shl_device *d = open_cpu(0);
    shl_stream *comm = shl_device_stream(d, SHL_STREAM_COMM);
    SHL_UNUSED(state);
    /* More than the ring holds. */
    for (int i = 0; i < N; i++) {
        submit_step(comm, (step){log, &n, i, i == 0 ? 2000 : 0, SHL_OK});
    }
    assert_int_equal(shl_device_sync(d), SHL_OK);
    assert_int_equal(n, N);
    for (int i = 0; i < N; i++) {
        assert_int_equal(log[i], i);
    }
    assert_int_equal(shl_device_close(&d), SHL_OK);
}

static void
test_device_waits_order_two_workers(void **state)
{
    int log[4], n = 0;
    shl_event ev, zero = {NULL, 0};
    shl_device *d = open_cpu(0);
    shl_stream *comm = shl_device_stream(d, SHL_STREAM_COMM);
    shl_stream *copy = shl_device_stream(d, SHL_STREAM_TO_HOST);
    shl_stream *compute = shl_device_stream(d, SHL_STREAM_COMPUTE);
    SHL_UNUSED(state);
    /* An event that has passed starts no thread and blocks nobody. */
    assert_int_equal(shl_stream_wait(copy, zero), SHL_OK);
    assert_int_equal(shl_event_sync(d, zero), SHL_OK);
    submit_step(comm, (step){log, &n, 1, 3000, SHL_OK});
    assert_int_equal(shl_stream_record(comm, &ev), SHL_OK);
    assert_int_equal(shl_stream_wait(copy, ev), SHL_OK);
    submit_step(copy, (step){log, &n, 2, 3000, SHL_OK});
    assert_int_equal(shl_stream_record(copy, &ev), SHL_OK);
    assert_int_equal(shl_stream_wait(compute, ev), SHL_OK);
    submit_step(compute, (step){log, &n, 3, 0, SHL_OK});
    assert_int_equal(n, 3);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(log[i], i + 1);
    }
    assert_int_equal(shl_device_close(&d), SHL_OK);
}

static void
test_device_failure_sticks_and_crosses_streams(void **state)
{
    int log[4], n = 0;
    shl_event before, behind, other;
    shl_device *d = open_cpu(0);
    shl_stream *comm = shl_device_stream(d, SHL_STREAM_COMM);
    shl_stream *copy = shl_device_stream(d, SHL_STREAM_TO_HOST);
    SHL_UNUSED(state);
    submit_step(comm, (step){log, &n, 1, 0, SHL_OK});
    assert_int_equal(shl_stream_record(comm, &before), SHL_OK);
    submit_step(comm, (step){log, &n, 2, 1000, SHL_E_PEER});
    submit_step(comm, (step){log, &n, 3, 0, SHL_E_IO});
    assert_int_equal(shl_stream_record(comm, &behind), SHL_OK);
    assert_int_equal(shl_stream_wait(copy, behind), SHL_OK);
    submit_step(copy, (step){log, &n, 4, 0, SHL_OK});
    assert_int_equal(shl_stream_record(copy, &other), SHL_OK);
    for (int i = 0; i < 2; i++) {
        shl_err_clear();
        assert_int_equal(shl_event_sync(d, i == 0 ? behind : other), SHL_E_PEER);
        assert_string_equal(shl_err_get()->what, "step 2 failed");
        assert_string_equal(shl_err_get()->because, "it was told to");
    }
    /* What lay before the failure has passed, what lay behind it was skipped. */
    assert_int_equal(shl_event_sync(d, before), SHL_OK);
    assert_int_equal(n, 1);
    assert_int_equal(shl_device_sync(d), SHL_E_PEER);
    assert_int_equal(shl_device_close(&d), SHL_OK);
}

static shl_code
fill_slowly(void *arg)
{
    shl_buf *b = arg;
    shl_clock_sleep_ns(5000000);
    memset(b->data, 9, b->bytes);
    return SHL_OK;
}

static void
test_device_free_after_waits_for_the_last_use(void **state)
{
    shl_event ev;
    shl_buf a, b;
    int log[1], n = 0;
    shl_device *d = open_cpu(0);
    shl_stream *comm = shl_device_stream(d, SHL_STREAM_COMM);
    SHL_UNUSED(state);
    assert_int_equal(shl_device_alloc(d, 4096, SHL_TIER_DEVICE, SHL_TAG_BUCKET, 0, "b", &a),
                     SHL_OK);
    void *old = a.data;
    assert_int_equal(shl_stream_submit(comm, fill_slowly, &a, sizeof(a), 0), SHL_OK);
    assert_int_equal(shl_stream_record(comm, &ev), SHL_OK);
    assert_int_equal(shl_device_free_after(d, &a, ev), SHL_OK);
    assert_null(a.data);
    assert_int_equal(shl_ledger_get(d->ledger, SHL_TIER_DEVICE)->now_bytes, 0);
    /* The next owner of the address sees no late write. */
    assert_int_equal(shl_device_alloc(d, 4096, SHL_TIER_DEVICE, SHL_TAG_ACT, 0, "n", &b), SHL_OK);
    assert_ptr_equal(b.data, old);
    memset(b.data, 1, b.bytes);
    assert_int_equal(shl_device_sync(d), SHL_OK);
    assert_int_equal(((unsigned char *)b.data)[4095], 1);
    /* A failure is told, and the buffer is gone all the same. */
    submit_step(comm, (step){log, &n, 1, 0, SHL_E_PEER});
    assert_int_equal(shl_stream_record(comm, &ev), SHL_OK);
    assert_int_equal(shl_device_free_after(d, &b, ev), SHL_E_PEER);
    assert_null(b.data);
    assert_int_equal(shl_device_close(&d), SHL_OK);
}

static void
test_device_copies_and_fills_on_every_stream(void **state)
{
    size_t bytes = ((size_t)9 << 20) + 13;
    shl_device *d = NULL;
    shl_device_config cfg = {.kind = "cpu", .threads = SHL_TSAN ? 1 : 3};
    shl_buf a, b;
    unsigned char edge[3];
    SHL_UNUSED(state);
    assert_int_equal(shl_device_open(&cfg, &d), SHL_OK);
    assert_int_equal(shl_device_alloc(d, bytes, SHL_TIER_DEVICE, SHL_TAG_ACT, 0, "a", &a), SHL_OK);
    assert_int_equal(shl_device_alloc(d, bytes, SHL_TIER_HOST, SHL_TAG_ACT, 0, "b", &b), SHL_OK);
    for (int k = 0; k < SHL_STREAM_KIND_COUNT; k++) {
        shl_stream *s = shl_device_stream(d, (shl_stream_kind)k);
        assert_int_equal(shl_device_fill(d, b.data, 0x55, bytes, s), SHL_OK);
        assert_int_equal(shl_device_fill(d, a.data, k + 1, bytes, s), SHL_OK);
        assert_int_equal(shl_device_copy(d, b.data, a.data, bytes - 1, s), SHL_OK);
        assert_int_equal(shl_device_sync(d), SHL_OK);
        const unsigned char *got = b.data;
        size_t wrong = 0;
        for (size_t i = 0; i < bytes - 1; i++) {
            wrong += got[i] != k + 1;
        }
        assert_int_equal(wrong, 0);
        assert_int_equal(got[bytes - 1], 0x55);
    }
    assert_int_equal(shl_device_upload(d, a.data, "xyz", 3), SHL_OK);
    assert_int_equal(shl_device_download(d, edge, a.data, 3), SHL_OK);
    assert_memory_equal(edge, "xyz", 3);
    shl_device_free(d, &a);
    shl_device_free(d, &b);
    assert_int_equal(shl_device_close(&d), SHL_OK);
}

static void
test_device_open_refuses_with_reasons(void **state)
{
    shl_device *d = NULL;
    shl_device_config cfg = {.kind = "cpuu", .threads = 1};
    SHL_UNUSED(state);
    assert_int_equal(shl_device_open(&cfg, &d), SHL_E_USAGE);
    assert_null(d);
    assert_string_equal(shl_err_get()->what, "unknown device 'cpuu'");
    assert_string_equal(shl_err_get()->advice, "device cpu");
    setenv("SHL_CUDA_OBJECT", "/nowhere/libshardlab-cuda.so", 1);
    cfg.kind = "cuda";
    assert_int_equal(shl_device_open(&cfg, &d), SHL_E_USAGE);
    assert_non_null(strstr(shl_err_get()->because, "not at: /nowhere/libshardlab-cuda.so"));
    cfg.kind = "cpu";
    cfg.threads = 0;
    assert_int_equal(shl_device_open(&cfg, &d), SHL_E_USAGE);
    assert_string_equal(shl_device_kinds()[0], "cpu");
}

/* One life of a device; every heap allocation in it fails in turn. */
static shl_code
live_once(const char *kind)
{
    shl_device *d = NULL;
    shl_buf a;
    shl_device_config cfg = {.kind = kind, .threads = 1};
    SHL_TRY(shl_device_open(&cfg, &d));
    shl_code code = shl_device_alloc(d, 256, SHL_TIER_DEVICE, SHL_TAG_ACT, 0, "h", &a);
    shl_device_free(d, &a);
    shl_code closed = shl_device_close(&d);
    return closed != SHL_OK ? closed : code;
}

static void
test_device_survives_a_full_heap(void **state)
{
    int64_t blocks = shl_heap_live_blocks();
    SHL_UNUSED(state);
    for (int k = 0; k < 2; k++) { /* cuda has its own test */
        int64_t n = 0;
        shl_code code = SHL_E_HEAP;
        while (code != SHL_OK) {
            shl_heap_fail_at(++n);
            code = live_once(shl_device_kinds()[k]);
            shl_heap_fail_at(-1);
            assert_true(code == SHL_OK || code == SHL_E_HEAP);
            assert_int_equal(shl_heap_live_blocks(), blocks);
        }
        assert_true(n > 5);
    }
}

int
main(void)
{
    /* The child of a fork comes first: no library has started a thread by then. */
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_device_obeys_the_limit_of_the_system),
        cmocka_unit_test(test_device_memory_is_ours_and_counted),
        cmocka_unit_test(test_device_comm_memory_comes_from_the_lent_arena),
        cmocka_unit_test(test_device_limit_refuses_before_the_system_is_asked),
        cmocka_unit_test(test_device_close_tells_of_a_leak),
        cmocka_unit_test(test_device_streams_keep_their_order),
        cmocka_unit_test(test_device_waits_order_two_workers),
        cmocka_unit_test(test_device_failure_sticks_and_crosses_streams),
        cmocka_unit_test(test_device_free_after_waits_for_the_last_use),
        cmocka_unit_test(test_device_copies_and_fills_on_every_stream),
        cmocka_unit_test(test_device_open_refuses_with_reasons),
        cmocka_unit_test(test_device_survives_a_full_heap),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

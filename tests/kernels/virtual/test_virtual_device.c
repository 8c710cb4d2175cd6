/* tests/kernels/virtual: addresses that nobody may touch, clocks that overlap, and the same books as
 * the device that it stands for. */
#include <setjmp.h>
#include <signal.h>
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
#include "kernels/base/rng.h"
#include "kernels/device/device.h"
#include "kernels/device/sanitize.h"
#include "kernels/virtual/virtual_device.h"

static shl_device *
open_device(const char *kind, const char *stands_for)
{
    shl_device *d = NULL;
    shl_device_config cfg = {.kind = kind, .stands_for = stands_for, .threads = 1};
    assert_int_equal(shl_device_open(&cfg, &d), SHL_OK);
    return d;
}

/* Never called: a virtual stream runs nothing. */
static shl_code
must_not_run(void *arg)
{
    SHL_UNUSED(arg);
    return SHL_RAISE(SHL_E_BUG, "a virtual stream ran its work");
}

static void
spend(shl_device *d, shl_stream_kind kind, int64_t ns)
{
    assert_int_equal(shl_stream_submit(shl_device_stream(d, kind), must_not_run, NULL, 0, ns),
                     SHL_OK);
}

static void
test_virtual_addresses_fault_when_read(void **state)
{
    int status = 0;
    shl_buf b;
    SHL_UNUSED(state);
    if (SHL_TSAN) {
        skip();
    }
    shl_device *d = open_device("virtual", "cpu");
    assert_int_equal(shl_device_alloc(d, 4096, SHL_TIER_DEVICE, SHL_TAG_ACT, 0, "x", &b), SHL_OK);
    pid_t child = fork();
    if (child == 0) {
        /* The runner catches faults; here it must end the process, without a core file. */
        struct rlimit no_core = {0, 0};
        setrlimit(RLIMIT_CORE, &no_core);
        signal(SIGSEGV, SIG_DFL);
        unsigned char got = *(volatile unsigned char *)b.data;
        _exit(got & 0);
    }
    assert_true(child > 0);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFSIGNALED(status));
    assert_int_equal(WTERMSIG(status), SIGSEGV);
    shl_device_free(d, &b);
    assert_int_equal(shl_device_close(&d), SHL_OK);
}

static void
test_virtual_data_is_zero_and_untouched(void **state)
{
    shl_buf b;
    unsigned char host[64];
    shl_device *d = open_device("virtual", NULL);
    shl_stream *compute = shl_device_stream(d, SHL_STREAM_COMPUTE);
    SHL_UNUSED(state);
    memset(host, 3, sizeof(host));
    assert_int_equal(shl_device_alloc(d, 64, SHL_TIER_HOST, SHL_TAG_ACT, 0, "x", &b), SHL_OK);
    assert_int_equal(shl_device_upload(d, b.data, host, 64), SHL_OK);
    assert_int_equal(shl_device_fill(d, b.data, 1, 32, compute), SHL_OK);
    assert_int_equal(shl_device_copy(d, b.data, (char *)b.data + 32, 32, NULL), SHL_OK);
    assert_int_equal(shl_device_download(d, host, b.data, 64), SHL_OK);
    for (size_t i = 0; i < sizeof(host); i++) {
        assert_int_equal(host[i], 0);
    }
    assert_false(d->caps.has_bytes);
    assert_true(d->caps.predicted);
    shl_device_free(d, &b);
    assert_int_equal(shl_device_close(&d), SHL_OK);
}

static void
test_virtual_streams_overlap_to_the_longer(void **state)
{
    shl_event done;
    shl_device *d = open_device("virtual", "cpu");
    shl_stream *compute = shl_device_stream(d, SHL_STREAM_COMPUTE);
    shl_stream *comm = shl_device_stream(d, SHL_STREAM_COMM);
    SHL_UNUSED(state);
    spend(d, SHL_STREAM_COMM, 1000);
    spend(d, SHL_STREAM_COMPUTE, 700);
    assert_int_equal(shl_stream_record(comm, &done), SHL_OK);
    assert_int_equal(shl_stream_wait(compute, done), SHL_OK);
    assert_int_equal(shl_device_now_ns(d, compute), 1000);
    /* Waited for first, the same two make the sum. */
    spend(d, SHL_STREAM_COMM, 1000);
    assert_int_equal(shl_stream_record(comm, &done), SHL_OK);
    assert_int_equal(shl_event_sync(d, done), SHL_OK);
    spend(d, SHL_STREAM_COMPUTE, 700);
    assert_int_equal(shl_device_now_ns(d, NULL), 2700);
    /* Work queued after inline compute starts behind it. */
    spend(d, SHL_STREAM_COMM, 10);
    assert_int_equal(shl_device_now_ns(d, comm), 2710);
    assert_int_equal(comm->busy_ns, 2010);
    assert_int_equal(shl_device_sync(d), SHL_OK);
    for (int k = 0; k < SHL_STREAM_KIND_COUNT; k++) {
        assert_int_equal(shl_device_now_ns(d, &d->streams[k]), 2710);
    }
    assert_int_equal(shl_device_close(&d), SHL_OK);
}

static void
test_virtual_asynchronous_target_runs_ahead(void **state)
{
    shl_event done;
    shl_buf b;
    shl_device *d = open_device("virtual", "cuda");
    shl_stream *comm = shl_device_stream(d, SHL_STREAM_COMM);
    SHL_UNUSED(state);
    spend(d, SHL_STREAM_COMPUTE, 700);
    spend(d, SHL_STREAM_COMM, 1000);
    assert_int_equal(shl_device_now_ns(d, comm), 1000);
    assert_int_equal(shl_device_alloc(d, 1, SHL_TIER_DEVICE, SHL_TAG_ACT, 0, "x", &b), SHL_OK);
    assert_int_equal((uintptr_t)b.data % 512, 0);
    assert_int_equal(shl_stream_record(comm, &done), SHL_OK);
    /* The next owner would wait, not the host. */
    assert_int_equal(shl_device_free_after(d, &b, done), SHL_OK);
    assert_int_equal(shl_device_now_ns(d, NULL), 700);
    assert_int_equal(shl_device_close(&d), SHL_OK);
}

static void
test_virtual_charge_is_the_slower_of_the_two_rates(void **state)
{
    shl_device *d = NULL;
    shl_device_config cfg = {.kind = "virtual", .threads = 1};
    cfg.flops_per_s = 1e9;
    cfg.bytes_per_s = 1e10;
    SHL_UNUSED(state);
    assert_int_equal(shl_device_open(&cfg, &d), SHL_OK);
    shl_stream *compute = shl_device_stream(d, SHL_STREAM_COMPUTE);
    shl_virtual_charge(compute, 2e6, 1e6);
    assert_int_equal(shl_device_now_ns(d, compute), 2000000);
    shl_virtual_charge(compute, 1e3, 1e6);
    assert_int_equal(shl_device_now_ns(d, compute), 2100000);
    assert_int_equal(shl_device_close(&d), SHL_OK);
}

static void
test_virtual_op_table_is_complete(void **state)
{
    shl_device *d = open_device("virtual", "cpu");
    SHL_UNUSED(state);
    for (int op = 0; op < SHL_OP_COUNT; op++) {
        assert_non_null(d->op_table->fn[op]);
    }
    /* An op moves the clock by its cost and reads nothing: these tensors have no data at all. */
    shl_add_args add = {.x1 = shl_tensor_1d(NULL, SHL_F32, 1 << 20)};
    add.x2 = add.x1;
    add.y = add.x1;
    shl_cost cost = shl_op_cost(SHL_OP_ADD, &add);
    double memory_s = cost.bytes / SHL_VIRTUAL_BYTES_PER_S;
    double compute_s = cost.flops / SHL_VIRTUAL_FLOPS_PER_S;
    double ns = (memory_s > compute_s ? memory_s : compute_s) * 1e9;
    shl_stream *compute = shl_device_stream(d, SHL_STREAM_COMPUTE);
    assert_int_equal(d->op_table->fn[SHL_OP_ADD](compute, &add, NULL), SHL_OK);
    assert_int_equal(shl_device_now_ns(d, compute), (int64_t)(ns + 0.5));
    assert_true(ns > 0);
    assert_int_equal(shl_device_close(&d), SHL_OK);
}

#define N_HELD 40

/* A schedule by the dice; the same calls on any device. Returns a hash of all addresses relative to
 * the first of their tier: a byte more in one device's allocator moves them. */
static uint64_t
run_schedule(shl_device *d, uint64_t seed)
{
    const char *first[SHL_TIER_COUNT] = {NULL};
    uint64_t places = 0;
    static const char *const owners[] = {"wte", "h.0", "h.1", "head"};
    shl_buf held[N_HELD];
    size_t n = 0;
    for (uint64_t i = 0; i < 2000; i++) {
        uint64_t r = shl_rng_u64(seed, 3, i);
        if (r % 101 == 0) {
            shl_ledger_set_mark(d->ledger, (shl_mark)((r >> 8) % SHL_MARK_COUNT));
        }
        if (n == N_HELD || (n > 0 && r % 2 == 0)) {
            size_t at = (size_t)(r >> 8) % n;
            shl_event passed = {NULL, 0};
            if (r % 3 == 0) {
                assert_int_equal(shl_device_free_after(d, &held[at], passed), SHL_OK);
            } else {
                shl_device_free(d, &held[at]);
            }
            held[at] = held[--n];
            continue;
        }
        size_t bytes = (size_t)(r >> 16) % 300000;
        bytes -= r % 4 == 1 ? bytes % d->caps.align_bytes : 0;
        shl_tier tier = (r >> 40) % 4 == 0 ? SHL_TIER_HOST : SHL_TIER_DEVICE;
        shl_tag tag = (shl_tag)((r >> 44) % SHL_TAG_COUNT);
        assert_int_equal(shl_device_alloc(d, bytes, tier, tag, r % 5 == 0 ? SHL_MEM_COMM : 0,
                                          owners[(r >> 50) % 4], &held[n]),
                         SHL_OK);
        const char *data = held[n++].data;
        if (data != NULL) {
            first[tier] = first[tier] == NULL ? data : first[tier];
            places = places * 1000003 + (uint64_t)(data - first[tier]);
        }
    }
    while (n > 0) {
        shl_device_free(d, &held[--n]);
    }
    return places;
}

static void
test_virtual_books_equal_those_of_the_cpu(void **state)
{
    uint64_t seed = 991;
    SHL_UNUSED(state);
    printf("seed %llu\n", (unsigned long long)seed);
    shl_device *real = open_device("cpu", NULL);
    shl_device *twin = open_device("virtual", "cpu");
    assert_int_equal(run_schedule(real, seed), run_schedule(twin, seed));
    assert_int_equal(shl_ledger_trace_hash(real->ledger), shl_ledger_trace_hash(twin->ledger));
    assert_true(shl_ledger_trace_hash(real->ledger) != 0);
    for (int t = 0; t < SHL_TIER_NVME; t++) {
        const shl_ledger_tier *a = shl_ledger_get(real->ledger, (shl_tier)t);
        const shl_ledger_tier *b = shl_ledger_get(twin->ledger, (shl_tier)t);
        assert_true(a->peak_bytes > 0);
        assert_memory_equal(a, b, sizeof(*a));
        assert_int_equal(shl_device_reserved_bytes(real, (shl_tier)t),
                         shl_device_reserved_bytes(twin, (shl_tier)t));
    }
    assert_int_equal(shl_device_close(&real), SHL_OK);
    assert_int_equal(shl_device_close(&twin), SHL_OK);
}

/* The full step of a 7B model is some ten thousand allocations, of up to tens of GB. */
static void
test_virtual_allocations_are_cheap_and_large(void **state)
{
    enum { HELD = 1000, ROUNDS = 40 };
    static shl_buf held[HELD];
    shl_device *d = open_device("virtual", "cpu");
    SHL_UNUSED(state);
    int64_t start = shl_clock_thread_ns();
    for (size_t round = 0; round < ROUNDS; round++) {
        for (size_t i = 0; i < HELD; i++) {
            size_t bytes = ((size_t)1 << 27) + (i * 7919 + round * 104729) % 100000;
            assert_int_equal(
                shl_device_alloc(d, bytes, SHL_TIER_DEVICE, SHL_TAG_ACT, 0, "h", &held[i]), SHL_OK);
        }
        for (size_t i = 0; i < HELD; i++) {
            shl_device_free(d, &held[i * 7 % HELD]);
        }
    }
    int64_t ns = shl_clock_thread_ns() - start;
    printf("%d allocations and releases in %lld us\n", HELD * ROUNDS, (long long)ns / 1000);
    /* Loose enough for a sanitizer on a busy machine; a scan of all buffers would break it. */
    assert_true(ns < INT64_C(2000000000));
    assert_true(shl_ledger_get(d->ledger, SHL_TIER_DEVICE)->peak_bytes > (size_t)100 << 30);
    assert_int_equal(shl_device_close(&d), SHL_OK);
}

static void
test_virtual_open_refuses_an_unknown_target(void **state)
{
    shl_device *d = NULL;
    shl_device_config cfg = {.kind = "virtual", .stands_for = "tpu", .threads = 1};
    int64_t blocks = shl_heap_live_blocks();
    SHL_UNUSED(state);
    assert_int_equal(shl_device_open(&cfg, &d), SHL_E_USAGE);
    assert_string_equal(shl_err_get()->what, "a virtual device cannot stand for 'tpu'");
    assert_null(d);
    assert_int_equal(shl_heap_live_blocks(), blocks);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_virtual_addresses_fault_when_read),
        cmocka_unit_test(test_virtual_data_is_zero_and_untouched),
        cmocka_unit_test(test_virtual_streams_overlap_to_the_longer),
        cmocka_unit_test(test_virtual_asynchronous_target_runs_ahead),
        cmocka_unit_test(test_virtual_charge_is_the_slower_of_the_two_rates),
        cmocka_unit_test(test_virtual_op_table_is_complete),
        cmocka_unit_test(test_virtual_books_equal_those_of_the_cpu),
        cmocka_unit_test(test_virtual_allocations_are_cheap_and_large),
        cmocka_unit_test(test_virtual_open_refuses_an_unknown_target),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

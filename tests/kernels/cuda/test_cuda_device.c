/* tests/kernels/cuda: the cuda device on the emulated object, whose streams run only when somebody waits:
 * order of work, addresses that are given out again, faults of data, failures, memory. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "kernels/base/heap.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/cuda_pending.h"
#include "kernels/device/arena.h"

#define BYTES ((size_t)4096)

static shl_device *
open_device(void)
{
    shl_device_config cfg = {.kind = "cuda", .threads = 1};
    shl_device *d = NULL;
    assert_int_equal(shl_device_open(&cfg, &d), SHL_OK);
    return d;
}

static void
take(shl_device *d, size_t bytes, shl_tier tier, shl_buf *out)
{
    assert_int_equal(shl_device_alloc(d, bytes, tier, SHL_TAG_ACT, 0, "test", out), SHL_OK);
}

static unsigned char
last_byte(shl_device *d, const shl_buf *b)
{
    unsigned char got = 0;
    assert_int_equal(shl_device_download(d, &got, (char *)b->data + b->bytes - 1, 1), SHL_OK);
    return got;
}

/* Two streams know nothing of each other without an event: the emulation shows what waits and what not. */
static void
test_cuda_streams_are_ordered_by_events(void **state)
{
    shl_device *d = open_device();
    shl_stream *comm = shl_device_stream(d, SHL_STREAM_COMM);
    shl_stream *copy = shl_device_stream(d, SHL_STREAM_TO_HOST);
    shl_event ev;
    shl_buf a, b;
    (void)state;
    take(d, BYTES, SHL_TIER_DEVICE, &a);
    take(d, BYTES, SHL_TIER_DEVICE, &b);
    for (int turn = 1; turn < 300; turn++) { /* more than the ring of events holds */
        assert_int_equal(shl_device_fill(d, a.data, turn, BYTES, comm), SHL_OK);
        assert_int_equal(shl_stream_record(comm, &ev), SHL_OK);
        assert_int_equal(shl_stream_wait(copy, ev), SHL_OK);
        assert_int_equal(shl_device_copy(d, b.data, a.data, BYTES, copy), SHL_OK);
        assert_int_equal(shl_stream_record(copy, &ev), SHL_OK);
        assert_int_equal(shl_stream_wait(comm, ev), SHL_OK);
        assert_int_equal(shl_stream_wait(shl_device_stream(d, SHL_STREAM_COMPUTE), ev), SHL_OK);
        if (turn % 97 == 0) {
            assert_int_equal(last_byte(d, &b), turn % 256);
        }
    }
    shl_device_free(d, &a);
    shl_device_free(d, &b);
    assert_int_equal(shl_device_close(&d), SHL_OK);
}

/* The old owner's work is queued, not done, when the next one gets the address: on another stream too. */
static void
test_cuda_addresses_come_back_behind_their_last_use(void **state)
{
    (void)state;
    for (int late = 0; late < 2; late++) {
        shl_device *d = open_device();
        shl_stream *comm = shl_device_stream(d, SHL_STREAM_COMM);
        shl_event ev;
        shl_buf a, b, kept;
        take(d, BYTES, SHL_TIER_DEVICE, &kept);
        take(d, BYTES, SHL_TIER_DEVICE, &a);
        void *old = a.data;
        shl_stream *first = late ? comm : NULL, *next = late ? NULL : comm;
        assert_int_equal(shl_device_fill(d, a.data, 1, BYTES, first), SHL_OK);
        assert_int_equal(shl_device_copy(d, kept.data, a.data, BYTES, first), SHL_OK);
        assert_int_equal(
            shl_stream_record(shl_device_stream(d, first ? SHL_STREAM_COMM : SHL_STREAM_COMPUTE),
                              &ev),
            SHL_OK);
        assert_int_equal(late ? shl_device_free_after(d, &a, ev) : SHL_OK, SHL_OK);
        shl_device_free(d, &a);
        take(d, BYTES, SHL_TIER_DEVICE, &b);
        assert_ptr_equal(b.data, old);
        assert_int_equal(shl_device_fill(d, b.data, 2, BYTES, next), SHL_OK);
        /* The new owner's stream comes first; what the old one read must be the old bytes. */
        assert_int_equal(
            shl_stream_record(shl_device_stream(d, next ? SHL_STREAM_COMM : SHL_STREAM_COMPUTE),
                              &ev),
            SHL_OK);
        assert_int_equal(shl_event_sync(d, ev), SHL_OK);
        assert_int_equal(shl_device_sync(d), SHL_OK);
        assert_int_equal(last_byte(d, &b), 2);
        assert_int_equal(last_byte(d, &kept), 1);
        shl_device_free(d, &b);
        shl_device_free(d, &kept);
        assert_int_equal(shl_device_close(&d), SHL_OK);
    }
}

static void
test_cuda_pending_ranges_split_and_join(void **state)
{
    shl_cuda_pending p = {0};
    uint64_t one[SHL_STREAM_KIND_COUNT] = {5}, two[SHL_STREAM_KIND_COUNT] = {0, 7};
    uint64_t need[SHL_STREAM_KIND_COUNT] = {0};
    (void)state;
    for (size_t at = 0; at < 400; at += 100) {
        assert_int_equal(shl_cuda_pending_room(&p), SHL_OK);
        shl_cuda_pending_take(&p, at, at + 100, need);
    }
    assert_int_equal(p.live, 4);
    shl_cuda_pending_add(&p, 0, 100, one);
    shl_cuda_pending_add(&p, 200, 300, one);
    shl_cuda_pending_add(&p, 100, 200, one); /* joins both */
    shl_cuda_pending_add(&p, 300, 400, two);
    assert_int_equal(p.n, 2);
    assert_int_equal(shl_cuda_pending_room(&p), SHL_OK);
    shl_cuda_pending_take(&p, 120, 140, need); /* out of the middle */
    assert_int_equal(need[0], 5);
    assert_int_equal(need[1], 0);
    assert_int_equal(p.n, 3);
    assert_int_equal(shl_cuda_pending_room(&p), SHL_OK);
    shl_cuda_pending_take(&p, 290, 310, need); /* parts of two */
    assert_int_equal(need[1], 7);
    assert_int_equal(p.spans[1].end, 290);
    assert_int_equal(p.spans[2].begin, 310);
    shl_cuda_pending_fini(&p);
}

static void
test_cuda_tells_of_tokens_outside_the_vocabulary(void **state)
{
    int32_t token = 9;
    shl_device *d = open_device();
    shl_buf tokens, wte, y;
    (void)state;
    take(d, sizeof(token), SHL_TIER_DEVICE, &tokens);
    take(d, 9 * 8 * sizeof(float), SHL_TIER_DEVICE, &wte);
    take(d, 8 * sizeof(float), SHL_TIER_DEVICE, &y);
    shl_embedding_args a = {.tokens = shl_tensor_1d(tokens.data, SHL_I32, 1),
                            .wte = shl_tensor_2d(wte.data, SHL_F32, 9, 8),
                            .y = shl_tensor_2d(y.data, SHL_F32, 1, 8),
                            .seq = 1};
    assert_int_equal(shl_device_fill(d, wte.data, 0, wte.bytes, NULL), SHL_OK);
    assert_int_equal(shl_device_upload(d, tokens.data, &token, sizeof(token)), SHL_OK);
    shl_stream *s = shl_device_stream(d, SHL_STREAM_COMPUTE);
    assert_int_equal(shl_op_embedding_forward(s, &a), SHL_OK);
    assert_int_equal(shl_device_sync(d), SHL_E_CONFIG);
    assert_non_null(strstr(shl_err_get()->what, "embedding_forward: a token"));
    assert_int_equal(shl_device_sync(d), SHL_OK); /* told once */
    shl_device_free(d, &tokens);
    shl_device_free(d, &wte);
    shl_device_free(d, &y);
    assert_int_equal(shl_device_close(&d), SHL_OK);
}

static shl_code
go_wrong(void *arg)
{
    return SHL_RAISE(SHL_E_PEER, "call %d failed", *(const int *)arg);
}

static shl_code
count(void *arg)
{
    (**(int **)arg)++;
    return SHL_OK;
}

static void
test_cuda_failed_calls_stick_and_cross_streams(void **state)
{
    int n = 0, *counter = &n, which = 2;
    shl_device *d = open_device();
    shl_stream *comm = shl_device_stream(d, SHL_STREAM_COMM);
    shl_stream *copy = shl_device_stream(d, SHL_STREAM_TO_HOST);
    shl_event before, behind, other;
    (void)state;
    for (int i = 0; i < 200; i++) { /* more than are in flight at once */
        assert_int_equal(shl_stream_submit(comm, count, &counter, sizeof(counter), 0), SHL_OK);
    }
    assert_int_equal(shl_stream_record(comm, &before), SHL_OK);
    assert_int_equal(shl_stream_submit(comm, go_wrong, &which, sizeof(which), 0), SHL_OK);
    assert_int_equal(shl_stream_submit(comm, count, &counter, sizeof(counter), 0), SHL_OK);
    assert_int_equal(shl_stream_record(comm, &behind), SHL_OK);
    assert_int_equal(shl_stream_wait(copy, behind), SHL_OK);
    assert_int_equal(shl_stream_record(copy, &other), SHL_OK);
    assert_int_equal(shl_event_sync(d, other), SHL_E_PEER);
    assert_string_equal(shl_err_get()->what, "call 2 failed");
    assert_int_equal(shl_event_sync(d, before), SHL_OK);
    assert_int_equal(n, 200);
    assert_int_equal(shl_event_sync(d, behind), SHL_E_PEER);
    assert_int_equal(shl_device_close(&d), SHL_OK);
}

static void
test_cuda_runs_out_of_memory_as_an_error(void **state)
{
    shl_device_memory m;
    shl_buf a, b;
    (void)state;
    setenv("SHL_EMULATED_MEMORY", "100663296", 1); /* 96 MiB, 32 of them the libraries' */
    shl_device *d = open_device();
    take(d, (size_t)40 << 20, SHL_TIER_DEVICE, &a);
    assert_int_equal(
        shl_device_alloc(d, (size_t)40 << 20, SHL_TIER_DEVICE, SHL_TAG_PARAM, 0, "wte", &b),
        SHL_E_OOM);
    assert_non_null(strstr(shl_err_get()->what, "wte asked for 41943040 bytes of param"));
    assert_non_null(
        strstr(shl_err_get()->because, "the driver has 25165824 of 100663296 bytes free"));
    take(d, (size_t)20 << 20, SHL_TIER_DEVICE, &b);
    /* The driver's account and ours: nothing is left unexplained. */
    assert_int_equal(shl_device_memory_get(d, &m), SHL_OK);
    assert_int_equal(m.reserved_bytes, (size_t)60 << 20);
    assert_int_equal(m.used_bytes, m.base_bytes + m.reserved_bytes + m.pool_bytes);
    shl_device_free(d, &a);
    shl_device_free(d, &b);
    assert_int_equal(shl_device_close(&d), SHL_OK);
    /* What a run is known to take is mapped, or refused, when the device opens. */
    shl_device_config cfg = {.kind = "cuda", .threads = 1, .ready_bytes = (size_t)40 << 20};
    cfg.ready_comm_bytes = (size_t)10 << 20;
    assert_int_equal(shl_device_open(&cfg, &d), SHL_OK);
    assert_int_equal(shl_device_reserved_bytes(d, SHL_TIER_DEVICE), (size_t)50 << 20);
    assert_int_equal(shl_device_reserved_comm_bytes(d), (size_t)10 << 20);
    assert_int_equal(shl_device_close(&d), SHL_OK);
    cfg.ready_comm_bytes = (size_t)30 << 20;
    assert_int_equal(shl_device_open(&cfg, &d), SHL_E_OOM);
    assert_non_null(strstr(shl_err_get()->what, "before the first step: it needs 73400320 bytes"));
    unsetenv("SHL_EMULATED_MEMORY");
}

/* Somebody's memory: a block at a time. */
typedef struct source {
    size_t bytes; /* asked for; 0: nothing */
    void *block;
    int n_given, n_back;
    shl_code code;
} source;

static shl_code
source_take(void *ctx, size_t bytes, void **out)
{
    source *s = ctx;
    *out = NULL;
    if (s->code != SHL_OK) {
        return SHL_RAISE(s->code, "the source is dry");
    }
    s->bytes = bytes;
    s->n_given++;
    SHL_TRY(shl_arena_reserve(bytes, bytes, &s->block, &s->bytes));
    assert_int_equal(mprotect(s->block, bytes, PROT_READ | PROT_WRITE), 0);
    *out = s->block;
    return SHL_OK;
}

static void
source_give(void *ctx, void *data)
{
    source *s = ctx;
    assert_ptr_equal(data, s->block);
    assert_int_equal(munmap(data, s->bytes), 0);
    s->n_back++;
}

static void
test_cuda_communication_memory_comes_from_a_source(void **state)
{
    source s = {.code = SHL_OK};
    shl_device_config cfg = {.kind = "cuda", .threads = 1, .ready_comm_bytes = (size_t)3 << 20};
    shl_mem_block block;
    shl_buf a, b;
    shl_device *d = NULL;
    (void)state;
    cfg.comm_source = (shl_mem_source){"test", source_take, source_give, &s};
    assert_int_equal(shl_device_open(&cfg, &d), SHL_OK);
    assert_int_equal(s.bytes, (size_t)4 << 20); /* whole steps, as the arena counts */
    assert_int_equal(shl_device_reserved_comm_bytes(d), s.bytes);
    shl_device_comm_block_get(d, &block);
    assert_ptr_equal(block.base, s.block);
    assert_int_equal(block.bytes, s.bytes);
    assert_string_equal(block.source, "test");
    assert_int_equal(shl_device_alloc(d, s.bytes - BYTES, SHL_TIER_DEVICE, SHL_TAG_GATHER,
                                      SHL_MEM_COMM, "slot", &a),
                     SHL_OK);
    assert_ptr_equal(a.data, s.block);
    /* What was planned is all there is; other memory is not touched by that. */
    assert_int_equal(
        shl_device_alloc(d, 2 * BYTES, SHL_TIER_DEVICE, SHL_TAG_BUCKET, SHL_MEM_COMM, "bucket", &b),
        SHL_E_OOM);
    assert_non_null(strstr(shl_err_get()->because, "4194304 bytes of it were planned"));
    take(d, 2 * BYTES, SHL_TIER_DEVICE, &b);
    assert_int_equal(shl_device_reserved_comm_bytes(d), s.bytes);
    shl_device_free(d, &b);
    shl_device_free(d, &a);
    assert_int_equal(shl_device_close(&d), SHL_OK);
    assert_int_equal(s.n_given, 1);
    assert_int_equal(s.n_back, 1);
    /* Nothing planned: its own, which grows. */
    cfg.ready_comm_bytes = 0;
    assert_int_equal(shl_device_open(&cfg, &d), SHL_OK);
    shl_device_comm_block_get(d, &block);
    assert_null(block.base);
    assert_int_equal(s.n_given, 1);
    assert_int_equal(shl_device_close(&d), SHL_OK);
    cfg.ready_comm_bytes = (size_t)3 << 20;
    s.code = SHL_E_OOM;
    assert_int_equal(shl_device_open(&cfg, &d), SHL_E_OOM);
    assert_non_null(strstr(shl_err_get()->what, "before the first step: it needs 3145728 bytes"));
    assert_non_null(strstr(shl_err_get()->because, "the source is dry"));
}

static void
test_cuda_host_memory_is_ready_beforehand(void **state)
{
    shl_device_config cfg = {.kind = "cuda", .threads = 1, .ready_host_bytes = (size_t)5 << 20};
    shl_device *d = NULL;
    shl_buf a;
    (void)state;
    assert_int_equal(shl_device_open(&cfg, &d), SHL_OK);
    assert_int_equal(shl_device_reserved_bytes(d, SHL_TIER_HOST), (size_t)6 << 20);
    take(d, (size_t)5 << 20, SHL_TIER_HOST, &a);
    assert_int_equal(shl_device_reserved_bytes(d, SHL_TIER_HOST), (size_t)6 << 20);
    shl_device_free(d, &a);
    assert_int_equal(shl_device_close(&d), SHL_OK);
}

static void
test_cuda_works_on_host_memory(void **state)
{
    shl_device *d = open_device();
    shl_stream *s = shl_device_stream(d, SHL_STREAM_COMPUTE);
    shl_buf x, y;
    float got[3];
    (void)state;
    assert_int_equal(shl_device_alloc(d, 12, SHL_TIER_HOST, SHL_TAG_OPTIM, SHL_MEM_PIN, "m", &x),
                     SHL_OK);
    take(d, 12, SHL_TIER_DEVICE, &y);
    shl_init_args init = {.dst = shl_tensor_1d(x.data, SHL_F32, 3), .value = 2.0};
    shl_scale_args scale = {shl_tensor_1d(x.data, SHL_F32, 3), 1.5f};
    assert_int_equal(shl_op_init(s, &init), SHL_OK);
    assert_int_equal(shl_op_scale(s, &scale), SHL_OK);
    assert_int_equal(shl_device_copy(d, y.data, x.data, 12, s), SHL_OK);
    assert_int_equal(shl_device_download(d, got, y.data, 12), SHL_OK);
    assert_true(got[0] == 3.0f && got[2] == 3.0f);
    /* Not with one foot on each side. */
    shl_tensor far = shl_tensor_1d(x.data, SHL_F32, 3), near = shl_tensor_1d(y.data, SHL_BF16, 3);
    assert_int_equal(shl_op_cast(s, &near, &far), SHL_E_BUG);
    shl_device_free(d, &x);
    shl_device_free(d, &y);
    assert_int_equal(shl_device_close(&d), SHL_OK);
}

/* Host memory that is locked, by several calls, in part or not at all: written by calls on a stream, sent
 * and brought back behind them. */
static void
test_cuda_copies_host_memory_of_any_kind(void **state)
{
    static const size_t sizes[] = {3 << 20, 5 << 20, (5 << 20) + 100, 1000, (2 << 20) + 1};
    static const bool pinned[] = {true, true, false, false, true};
    shl_device *d = open_device();
    shl_stream *to = shl_device_move_stream(d, SHL_MOVE_TO_DEVICE);
    shl_stream *back = shl_device_move_stream(d, SHL_MOVE_TO_HOST);
    shl_buf far[5], near, got;
    (void)state;
    take(d, sizes[2], SHL_TIER_DEVICE, &near);
    take(d, sizes[2], SHL_TIER_HOST, &got);
    for (int i = 0; i < 5; i++) {
        unsigned flags = pinned[i] ? SHL_MEM_PIN : 0;
        assert_int_equal(
            shl_device_alloc(d, sizes[i], SHL_TIER_HOST, SHL_TAG_OPTIM, flags, "test", &far[i]),
            SHL_OK);
        memset(far[i].data, 0, sizes[i]);
    }
    for (int i = 0; i < 5; i++) {
        shl_event ev;
        assert_int_equal(shl_device_fill(d, far[i].data, 17 + i, sizes[i], NULL), SHL_OK);
        assert_int_equal(shl_stream_record(shl_device_stream(d, SHL_STREAM_COMPUTE), &ev), SHL_OK);
        assert_int_equal(shl_stream_wait(to, ev), SHL_OK);
        assert_int_equal(shl_device_move(d, near.data, far[i].data, sizes[i], SHL_MOVE_TO_DEVICE),
                         SHL_OK);
        assert_int_equal(shl_stream_record(to, &ev), SHL_OK);
        assert_int_equal(shl_stream_wait(back, ev), SHL_OK);
        assert_int_equal(shl_device_move(d, got.data, near.data, sizes[i], SHL_MOVE_TO_HOST),
                         SHL_OK);
        assert_int_equal(shl_device_copy(d, far[i].data, got.data, sizes[i], back), SHL_OK);
        assert_int_equal(shl_device_fill(d, got.data, 0, sizes[i], back), SHL_OK);
        assert_int_equal(shl_device_sync(d), SHL_OK);
        const unsigned char *bytes = far[i].data;
        for (size_t at = 0; at < sizes[i]; at += 4093) {
            assert_int_equal(bytes[at], 17 + i);
        }
        assert_int_equal(bytes[sizes[i] - 1], 17 + i);
    }
    for (int i = 0; i < 5; i++) {
        shl_device_free(d, &far[i]);
    }
    shl_device_free(d, &near);
    shl_device_free(d, &got);
    assert_int_equal(shl_device_close(&d), SHL_OK);
}

static void
test_cuda_refuses_with_reasons(void **state)
{
    shl_device *d = NULL;
    shl_device_config cfg = {.kind = "cuda", .threads = 1, .index = 7};
    (void)state;
    assert_int_equal(shl_device_open(&cfg, &d), SHL_E_USAGE);
    assert_string_equal(shl_err_get()->what, "there is no CUDA device number 7");
    cfg.index = 0;
    cfg.link_bytes_per_s = 1e9;
    assert_int_equal(shl_device_open(&cfg, &d), SHL_E_USAGE);
    cfg.link_bytes_per_s = 0.0;
    char *object = NULL;
    assert_int_equal(shl_heap_strdup(getenv("SHL_CUDA_OBJECT"), &object), SHL_OK);
    setenv("SHL_CUDA_OBJECT", "/proc/self/status", 1); /* no library */
    assert_int_equal(shl_device_open(&cfg, &d), SHL_E_SYSTEM);
    assert_non_null(strstr(shl_err_get()->what, "/proc/self/status"));
    setenv("SHL_CUDA_OBJECT", object, 1);
    shl_heap_free(&object);
}

/* Every heap allocation of a device's life fails in turn. */
static void
test_cuda_survives_a_full_heap(void **state)
{
    int64_t blocks = shl_heap_live_blocks(), n = 0;
    shl_code code = SHL_E_HEAP;
    (void)state;
    while (code != SHL_OK) {
        shl_device_config cfg = {.kind = "cuda", .threads = 1};
        shl_device *d = NULL;
        shl_buf a = {0};
        shl_heap_fail_at(++n);
        code = shl_device_open(&cfg, &d);
        if (code == SHL_OK) {
            code = shl_device_alloc(d, 256, SHL_TIER_DEVICE, SHL_TAG_ACT, 0, "h", &a);
            shl_device_free(d, &a);
            assert_int_equal(shl_device_close(&d), SHL_OK);
        }
        shl_heap_fail_at(-1);
        assert_true(code == SHL_OK || code == SHL_E_HEAP);
        assert_int_equal(shl_heap_live_blocks(), blocks);
    }
    assert_true(n > 5);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cuda_streams_are_ordered_by_events),
        cmocka_unit_test(test_cuda_addresses_come_back_behind_their_last_use),
        cmocka_unit_test(test_cuda_pending_ranges_split_and_join),
        cmocka_unit_test(test_cuda_tells_of_tokens_outside_the_vocabulary),
        cmocka_unit_test(test_cuda_failed_calls_stick_and_cross_streams),
        cmocka_unit_test(test_cuda_runs_out_of_memory_as_an_error),
        cmocka_unit_test(test_cuda_communication_memory_comes_from_a_source),
        cmocka_unit_test(test_cuda_host_memory_is_ready_beforehand),
        cmocka_unit_test(test_cuda_works_on_host_memory),
        cmocka_unit_test(test_cuda_copies_host_memory_of_any_kind),
        cmocka_unit_test(test_cuda_refuses_with_reasons),
        cmocka_unit_test(test_cuda_survives_a_full_heap),
    };
    return cmocka_run_group_tests_name("cuda_device", tests, NULL, NULL);
}

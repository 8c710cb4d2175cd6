/* tests/bench: token streams: the order is a permutation of every window, rows are what the file
 * holds, and every bad file is refused with its reason. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "bench/tokens.h"
#include "kernels/base/heap.h"
#include "tests/support/temp_folder.h"

#define MAX_TOKENS 4096

static char path[128];

static const char *
write_file(const char *name, const void *bytes, size_t n)
{
    (void)snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(bytes, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
    return path;
}

/* A token file of `width` bytes per token; `claimed` goes into the header. */
static const char *
write_bin(const char *name, int32_t magic, int32_t version, int32_t claimed, size_t width,
          const uint32_t *tokens, size_t n)
{
    static unsigned char bytes[1024 + 4 * MAX_TOKENS];
    assert_true(n <= MAX_TOKENS);
    memset(bytes, 0, 1024);
    int32_t head[3] = {magic, version, claimed};
    memcpy(bytes, head, sizeof head);
    for (size_t i = 0; i < n; i++) {
        uint16_t narrow = (uint16_t)tokens[i];
        if (width == 2) {
            memcpy(bytes + 1024 + 2 * i, &narrow, 2);
        } else {
            memcpy(bytes + 1024 + 4 * i, &tokens[i], 4);
        }
    }
    return write_file(name, bytes, 1024 + width * n);
}

static const char *
write_counting(const char *name, size_t width, size_t n)
{
    static uint32_t tokens[MAX_TOKENS];
    for (size_t i = 0; i < n; i++) {
        tokens[i] = (uint32_t)i;
    }
    return width == 2 ? write_bin(name, 20240520, 1, (int32_t)n, 2, tokens, n)
                      : write_bin(name, 20240801, 7, (int32_t)n, 4, tokens, n);
}

static void
test_tokens_epoch_is_a_permutation(void **state)
{
    (void)state;
    static const struct {
        size_t n;
        int64_t seq;
    } cases[] = {{4, 3}, {8, 3}, {9, 2}, {1000, 6}, {4096, 3}, {2049, 1}};
    for (size_t c = 0; c < sizeof cases / sizeof cases[0]; c++) {
        const char *file = write_counting("count.bin", c % 2 ? 2 : 4, cases[c].n);
        shl_tokens *t = NULL;
        assert_int_equal(shl_tokens_open(file, (int64_t)cases[c].n, cases[c].seq, c + 7, &t),
                         SHL_OK);
        int64_t samples = shl_tokens_samples(t), window = cases[c].seq + 1;
        assert_int_equal(samples, (int64_t)cases[c].n / window);
        for (int64_t epoch = 0; epoch < 3; epoch++) {
            unsigned char seen[MAX_TOKENS] = {0};
            for (int64_t i = 0; i < samples; i++) {
                int32_t x[8], y[8];
                assert_int_equal(shl_tokens_row(t, epoch * samples + i, x, y), SHL_OK);
                assert_int_equal(x[0] % window, 0);
                for (int64_t k = 0; k < cases[c].seq; k++) {
                    assert_int_equal(x[k], x[0] + k);
                    assert_int_equal(y[k], x[k] + 1);
                }
                assert_int_equal(seen[x[0] / window]++, 0);
            }
        }
        shl_tokens_close(&t);
        assert_null(t);
    }
}

/* Number of positions in which two orders of `n` samples agree. */
static int
count_agreements(const shl_tokens *a, int64_t from_a, const shl_tokens *b, int64_t from_b, int n)
{
    int same = 0;
    for (int i = 0; i < n; i++) {
        int32_t xa[8], ya[8], xb[8], yb[8];
        assert_int_equal(shl_tokens_row(a, from_a + i, xa, ya), SHL_OK);
        assert_int_equal(shl_tokens_row(b, from_b + i, xb, yb), SHL_OK);
        same += xa[0] == xb[0];
    }
    return same;
}

static void
test_tokens_order_depends_on_seed_and_epoch_only(void **state)
{
    (void)state;
    const char *file = write_counting("order.bin", 2, 4096);
    shl_tokens *a = NULL, *again = NULL, *other = NULL;
    assert_int_equal(shl_tokens_open(file, 4096, 3, 1, &a), SHL_OK);
    assert_int_equal(shl_tokens_open(file, 50257, 3, 1, &again), SHL_OK);
    assert_int_equal(shl_tokens_open(file, 4096, 3, 2, &other), SHL_OK);
    int n = (int)shl_tokens_samples(a);
    assert_int_equal(n, 1024);
    assert_int_equal(count_agreements(a, 0, again, 0, n), n);
    assert_int_equal(count_agreements(a, 5 * n, again, 5 * n, n), n);
    /* Random permutations agree in one place on average. */
    assert_true(count_agreements(a, 0, other, 0, n) < 12);
    assert_true(count_agreements(a, 0, a, n, n) < 12);
    /* Nor is the order the order of the file. */
    int in_place = 0;
    for (int i = 0; i < n; i++) {
        int32_t x[3], y[3];
        assert_int_equal(shl_tokens_row(a, i, x, y), SHL_OK);
        in_place += x[0] == 4 * i;
    }
    assert_true(in_place < 12);
    shl_tokens_close(&a);
    shl_tokens_close(&again);
    shl_tokens_close(&other);
}

static void
test_tokens_text_is_bytes(void **state)
{
    (void)state;
    const char *file = write_file("text.txt",
                                  "\xff"
                                  "abcdefg",
                                  8);
    shl_tokens *t = NULL;
    assert_int_equal(shl_tokens_open(file, 256, 7, 0, &t), SHL_OK);
    assert_int_equal(shl_tokens_samples(t), 1);
    int32_t x[7], y[7];
    assert_int_equal(shl_tokens_row(t, 12, x, y), SHL_OK);
    assert_int_equal(x[0], 255);
    assert_int_equal(x[6], 'f');
    assert_int_equal(y[0], 'a');
    assert_int_equal(y[6], 'g');
    shl_tokens_close(&t);
}

static void
test_tokens_bundled_text_opens(void **state)
{
    (void)state;
    shl_tokens *t = NULL;
    assert_int_equal(shl_tokens_open(NULL, 256, 128, 3, &t), SHL_OK);
    assert_int_equal(shl_tokens_samples(t), 1115394 / 129);
    int32_t x[128], y[128];
    assert_int_equal(shl_tokens_row(t, 0, x, y), SHL_OK);
    assert_memory_equal(x + 1, y, 127 * sizeof x[0]);
    shl_tokens_close(&t);
}

static void
test_tokens_synthetic_is_learnable_and_seeded(void **state)
{
    (void)state;
    static const int64_t vocabs[] = {1, 2, 5, 256, 50257};
    for (size_t v = 0; v < sizeof vocabs / sizeof vocabs[0]; v++) {
        shl_tokens *a = NULL, *b = NULL;
        assert_int_equal(shl_tokens_open("synthetic", vocabs[v], 64, 11, &a), SHL_OK);
        assert_int_equal(shl_tokens_open("synthetic", vocabs[v], 64, 12, &b), SHL_OK);
        int same = 0;
        for (int64_t i = 0; i < 50; i++) {
            int32_t x[64], y[64], x2[64], y2[64], other[64], unused[64];
            assert_int_equal(shl_tokens_row(a, i, x, y), SHL_OK);
            assert_int_equal(shl_tokens_row(a, i, x2, y2), SHL_OK);
            assert_int_equal(shl_tokens_row(b, i, other, unused), SHL_OK);
            assert_memory_equal(x, x2, sizeof x);
            assert_memory_equal(y, y2, sizeof y);
            same += memcmp(x, other, sizeof x) == 0;
            for (int k = 0; k < 64; k++) {
                assert_in_range(x[k], 0, vocabs[v] - 1);
                int64_t step = (y[k] - (INT64_C(5) * x[k] + 1)) % vocabs[v];
                step += step < 0 ? vocabs[v] : 0;
                assert_in_range(step, 0, 3);
                assert_true(k == 63 || x[k + 1] == y[k]);
            }
        }
        assert_true(vocabs[v] == 1 || same == 0);
        shl_tokens_close(&a);
        shl_tokens_close(&b);
    }
}

/* Opening must fail with the code; what, because and advice hold the words; nothing is held. */
static void
assert_refused(const char *source, int64_t vocab, int64_t seq, shl_code code, const char *what,
               const char *because)
{
    int64_t blocks = shl_heap_live_blocks();
    shl_tokens *t = (shl_tokens *)(uintptr_t)1;
    shl_err_clear();
    assert_int_equal(shl_tokens_open(source, vocab, seq, 0, &t), code);
    assert_null(t);
    const shl_err *err = shl_err_get();
    if (!strstr(err->what, what) || !strstr(err->because, because)) {
        fail_msg("'%s' / '%s' lack '%s' / '%s'", err->what, err->because, what, because);
    }
    assert_int_equal(shl_heap_live_blocks(), blocks);
}

static void
test_tokens_bad_files_are_refused(void **state)
{
    (void)state;
    uint32_t few[6] = {1, 2, 3, 700, 5, 900};
    assert_refused("/nonexistent/x.txt", 256, 4, SHL_E_IO, "/nonexistent/x.txt", "No such file");
    assert_refused("/tmp", 256, 4, SHL_E_IO, "/tmp", "folder");
    assert_refused("/dev/null", 256, 4, SHL_E_IO, "/dev/null", "device");
    assert_refused(write_file("empty.txt", "", 0), 256, 4, SHL_E_CONFIG, "empty", "0 bytes");
    assert_refused(write_file("short.txt", "abcd", 4), 256, 4, SHL_E_CONFIG, "shorter",
                   "4 tokens, a sample takes 5");
    assert_refused(write_file("wide.txt",
                              "abc\xc3\xa4"
                              "def",
                              8),
                   128, 4, SHL_E_CONFIG, "beyond",
                   "token 195 at position 3, the vocabulary has 128");
    assert_refused(write_file("other.bin", "hello, this is text", 19), 256, 4, SHL_E_CONFIG,
                   "not a token file", "20240520");
    assert_refused(write_file("tiny.bin", "ab", 2), 256, 1, SHL_E_CONFIG, "not a token file",
                   "20240520");
    assert_refused(write_bin("v9.bin", 20240520, 9, 6, 2, few, 6), 1000, 4, SHL_E_CONFIG,
                   "not a token file", "version 9");
    assert_refused(write_bin("cut.bin", 20240520, 1, 7, 2, few, 6), 1000, 4, SHL_E_CONFIG,
                   "truncated", "7 uint16 tokens, 12 bytes");
    assert_refused(write_bin("long.bin", 20240801, 7, 5, 4, few, 6), 1000, 4, SHL_E_CONFIG,
                   "does not agree", "5 uint32 tokens, 24 bytes");
    assert_refused(write_bin("negative.bin", 20240520, 1, -6, 2, few, 6), 1000, 4, SHL_E_CONFIG,
                   "does not agree", "-6");
    assert_refused(write_bin("vocab.bin", 20240520, 1, 6, 2, few, 6), 256, 4, SHL_E_CONFIG,
                   "beyond", "token 700 at position 3, the vocabulary has 256");
    assert_non_null(strstr(shl_err_get()->advice, "901"));
    int32_t magic = 20240520;
    assert_refused(write_file("header.dat", &magic, 4), 256, 1, SHL_E_CONFIG, "truncated",
                   "4 bytes");
    assert_refused("synthetic", 0, 4, SHL_E_USAGE, "vocabulary 0", "1..");
    assert_refused("synthetic", 256, -1, SHL_E_USAGE, "sequence -1", "1..");
}

static void
test_tokens_heap_failure_is_returned(void **state)
{
    (void)state;
    shl_tokens *t = NULL;
    shl_heap_fail_at(1);
    assert_int_equal(shl_tokens_open("synthetic", 16, 4, 0, &t), SHL_E_HEAP);
    shl_heap_fail_at(-1);
    assert_null(t);
}

static void
test_tokens_negative_position_is_a_bug(void **state)
{
    (void)state;
    shl_tokens *t = NULL;
    int32_t x[4], y[4];
    assert_int_equal(shl_tokens_open("synthetic", 16, 4, 0, &t), SHL_OK);
    assert_int_equal(shl_tokens_row(t, -1, x, y), SHL_E_BUG);
    shl_tokens_close(&t);
    shl_tokens_close(&t);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tokens_epoch_is_a_permutation),
        cmocka_unit_test(test_tokens_order_depends_on_seed_and_epoch_only),
        cmocka_unit_test(test_tokens_text_is_bytes),
        cmocka_unit_test(test_tokens_bundled_text_opens),
        cmocka_unit_test(test_tokens_synthetic_is_learnable_and_seeded),
        cmocka_unit_test(test_tokens_bad_files_are_refused),
        cmocka_unit_test(test_tokens_heap_failure_is_returned),
        cmocka_unit_test(test_tokens_negative_position_is_a_bug),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}

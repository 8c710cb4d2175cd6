/* tests of kernels/base: sizes, counts, numbers, texts, nearest names, log levels.
 * Tables of what must be read and of what must be refused. */
#include "kernels/base/str.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "kernels/base/heap.h"
#include "kernels/base/log.h"
#include "kernels/base/types.h"

static void
test_str_bytes_are_read_exactly(void **state)
{
    static const struct {
        const char *text;
        size_t bytes;
    } rows[] = {
        {"0", 0},
        {"512", 512},
        {"512B", 512},
        {"64KiB", 65536},
        {"2GiB", (size_t)2 << 30},
        {"80GB", 80000000000u},
        {"80 GB", 80000000000u},
        {"1.5e9", 1500000000u},
        {"1.5GiB", 1610612736u},
        {"16k", 16000},
        {"1tb", 1000000000000u},
        {".5KiB", 512},
        {"9007199254740993", 9007199254740993u}, /* 2^53 + 1: no detour by double */
        {"4611686018427387904", (size_t)1 << 62},
    };
    (void)state;
    for (size_t i = 0; i < SHL_ARRAY_LEN(rows); i++) {
        size_t got = 1;
        assert_int_equal(shl_parse_bytes(rows[i].text, &got), SHL_OK);
        assert_int_equal(got, rows[i].bytes);
    }
}

static void
test_str_bytes_refuse_garbage(void **state)
{
    static const char *const texts[] = {
        "",
        " ",
        "x",
        "GB",
        "-1",
        "-0",
        "+5",
        " 5",
        "5 ",
        "nan",
        "inf",
        "NaNGB",
        "1e999",
        "0x10",
        "1GiBs",
        "1 2",
        "1..5",
        "12Q",
        "1e",
        "5,000",
        "4611686018427387905",
        "1e300GiB",
        "9999999999999999999999",
    };
    (void)state;
    for (size_t i = 0; i < SHL_ARRAY_LEN(texts); i++) {
        size_t got = 1;
        shl_code code = shl_parse_bytes(texts[i], &got);
        if (code != SHL_E_USAGE) {
            print_error("accepted \"%s\" as %zu\n", texts[i], got);
        }
        assert_int_equal(code, SHL_E_USAGE);
        assert_int_equal(got, 0);
        assert_non_null(strstr(shl_err_get()->what, texts[i]));
        assert_true(strlen(shl_err_get()->because) > 0);
    }
}

static void
test_str_counts_are_whole(void **state)
{
    static const struct {
        const char *text;
        int64_t count;
    } rows[] = {
        {"0", 0},
        {"1000", 1000},
        {"16k", 16000},
        {"124M", 124000000},
        {"7.5B", 7500000000},
        {"5e8", 500000000},
        {"1.1M", 1100000},
        {"0.001k", 1},
        {"1T", 1000000000000},
        {"9007199254740993", 9007199254740993},
    };
    static const char *const bad[] = {
        "", "1.5", "0.0001k", "-4", "nan", "inf", "12Z", "1GiB", "k", "1e30", "1.00000001M",
    };
    (void)state;
    for (size_t i = 0; i < SHL_ARRAY_LEN(rows); i++) {
        int64_t got = -1;
        assert_int_equal(shl_parse_count(rows[i].text, &got), SHL_OK);
        assert_int_equal(got, rows[i].count);
    }
    for (size_t i = 0; i < SHL_ARRAY_LEN(bad); i++) {
        int64_t got = -1;
        assert_int_equal(shl_parse_count(bad[i], &got), SHL_E_USAGE);
        assert_int_equal(got, 0);
    }
}

static void
test_str_numbers_stay_in_range(void **state)
{
    static const char *const bad_ints[] = {
        "", "abc", "1.0", "1e2", "4x", " 4", "11", "-6", "99999999999999999999"};
    static const char *const bad_doubles[] = {"",      "abc", "nan",  "inf",  "-inf",
                                              "1e999", "1.1", "-0.1", "0.5x", " 0.5"};
    int64_t i = 7;
    double d = 7.0;
    (void)state;
    assert_int_equal(shl_parse_int("-5", -5, 10, &i), SHL_OK);
    assert_int_equal(i, -5);
    assert_int_equal(shl_parse_int("9223372036854775807", 0, INT64_MAX, &i), SHL_OK);
    assert_int_equal(i, INT64_MAX);
    for (size_t k = 0; k < SHL_ARRAY_LEN(bad_ints); k++) {
        assert_int_equal(shl_parse_int(bad_ints[k], -5, 10, &i), SHL_E_USAGE);
        assert_non_null(strstr(shl_err_get()->because, "from -5 to 10"));
    }
    assert_int_equal(shl_parse_double("3e-4", 0.0, 1.0, &d), SHL_OK);
    assert_true(d == 3e-4);
    for (size_t k = 0; k < SHL_ARRAY_LEN(bad_doubles); k++) {
        assert_int_equal(shl_parse_double(bad_doubles[k], 0.0, 1.0, &d), SHL_E_USAGE);
    }
    assert_int_equal(shl_parse_double("inf", -HUGE_VAL, HUGE_VAL, &d), SHL_E_USAGE);
}

static void
test_str_sizes_are_spelled_for_people(void **state)
{
    char text[32];
    (void)state;
#define SPELLS(call, expected)                                                                     \
    do {                                                                                           \
        call;                                                                                      \
        assert_string_equal(text, expected);                                                       \
    } while (0)
    SPELLS(shl_format_bytes(0, text, sizeof(text)), "0 B");
    SPELLS(shl_format_bytes(1023, text, sizeof(text)), "1023 B");
    SPELLS(shl_format_bytes(1024, text, sizeof(text)), "1.00 KiB");
    SPELLS(shl_format_bytes(1610612736, text, sizeof(text)), "1.50 GiB");
    SPELLS(shl_format_bytes(((size_t)1 << 30) - 1, text, sizeof(text)), "1.00 GiB");
    SPELLS(shl_format_bytes(SIZE_MAX, text, sizeof(text)), "16.00 EiB");
    SPELLS(shl_format_count(999, text, sizeof(text)), "999");
    SPELLS(shl_format_count(124439808, text, sizeof(text)), "124.4M");
    SPELLS(shl_format_count(999999, text, sizeof(text)), "1.0M");
    SPELLS(shl_format_count(7500000000, text, sizeof(text)), "7.5B");
    SPELLS(shl_strf(text, 4, "%d", 123456), "123");
#undef SPELLS
}

static void
test_str_grows_and_stays_terminated(void **state)
{
    shl_str s = {0};
    int64_t before = shl_heap_live_blocks();
    (void)state;
    assert_string_equal(shl_str_get(&s), "");
    for (int i = 0; i < 1000; i++) {
        shl_str_add(&s, "%03d,", i);
        assert_int_equal(strlen(shl_str_get(&s)), s.len);
    }
    assert_int_equal(s.len, 4000);
    assert_memory_equal(shl_str_get(&s) + 4 * 567, "567,", 4);
    shl_str_clear(&s);
    assert_string_equal(shl_str_get(&s), "");
    shl_str_add_text(&s, "abcdef", 3);
    assert_string_equal(shl_str_get(&s), "abc");
    assert_false(s.failed);
    shl_str_fini(&s);
    assert_int_equal(shl_heap_live_blocks(), before);
}

static void
test_str_nearest_finds_slips_and_nothing_else(void **state)
{
    static const char *const names[] = {"ddp", "zero1", "zero2", "zero3", "fsdp", "fsdp-grad-op"};
    size_t n = SHL_ARRAY_LEN(names);
    (void)state;
    assert_string_equal(shl_nearest("zero3", names, n), "zero3");
    assert_string_equal(shl_nearest("zreo2", names, n), "zero2");
    assert_string_equal(shl_nearest("fspd", names, n), "fsdp");
    assert_string_equal(shl_nearest("fsdp-gradop", names, n), "fsdp-grad-op");
    /* Two letters in the wrong order are one slip; two replaced ones are two. */
    static const char *const close[] = {"eps", "clip", "help"};
    assert_string_equal(shl_nearest("hepl", close, 3), "help");
    assert_string_equal(shl_nearest("hlep", close, 3), "help");
    assert_null(shl_nearest("pipeline", names, n));
    assert_null(shl_nearest("", names, n));
    assert_null(shl_nearest("xy", names, n));
    assert_null(shl_nearest("ddp", names, 0));
}

static void
test_str_log_levels_are_read_or_refused(void **state)
{
    static const char *const bad[] = {
        "loud",           "comm=",      "=info",
        "info,comm=loud", "comm==info", "a-room-name-that-is-much-too-long=info"};
    (void)state;
    for (size_t i = 0; i < SHL_ARRAY_LEN(bad); i++) {
        assert_int_equal(shl_log_configure(bad[i]), SHL_E_USAGE);
    }
    assert_int_equal(shl_log_configure("info,comm=trace,zero=error"), SHL_OK);
    assert_int_equal(shl_log_configure(NULL), SHL_OK);
    assert_int_equal(shl_log_rank(), -1);
    shl_log_set_rank(3);
    assert_int_equal(shl_log_rank(), 3);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_str_bytes_are_read_exactly),
        cmocka_unit_test(test_str_bytes_refuse_garbage),
        cmocka_unit_test(test_str_counts_are_whole),
        cmocka_unit_test(test_str_numbers_stay_in_range),
        cmocka_unit_test(test_str_sizes_are_spelled_for_people),
        cmocka_unit_test(test_str_grows_and_stays_terminated),
        cmocka_unit_test(test_str_nearest_finds_slips_and_nothing_else),
        cmocka_unit_test(test_str_log_levels_are_read_or_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

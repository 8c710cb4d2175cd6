/* tests of kernels/base: the option table: parser, defaults, origins, spelling, help.
 * One table of every type stands for the tables of the subcommands. */
#include "kernels/base/option.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <string.h>

#include "kernels/base/heap.h"
#include "kernels/base/str.h"
#include "kernels/base/types.h"

typedef struct values {
    bool json;
    int64_t batch, params;
    size_t memory;
    double lr;
    const char *out, *ranks;
    int strategy;
} values;

static const char *const strategies[] = {"ddp", "zero1", "zero3", "fsdp", NULL};

static const shl_option table[] = {
    {"strategy", NULL, SHL_OPT_ENUM, offsetof(values, strategy), 0, 0, "zero1", strategies, NULL,
     "Model", "How state is spread over the ranks."},
    {"batch", "micro-batch", SHL_OPT_INT, offsetof(values, batch), 1, 4096, "4", NULL,
     "sequences per rank", "Training", "Sequences in one micro-batch of a rank."},
    {"params", NULL, SHL_OPT_COUNT, offsetof(values, params), 1, 1e12, "124M", NULL, "elements",
     "Model", "Parameters."},
    {"device-memory", NULL, SHL_OPT_BYTES, offsetof(values, memory), 1, 1e18, NULL, NULL, "bytes",
     "Device", "Limit per rank."},
    {"lr", NULL, SHL_OPT_DOUBLE, offsetof(values, lr), 0, 10, "3e-4", NULL, NULL, "Training",
     "Learning rate."},
    {"out", NULL, SHL_OPT_STRING, offsetof(values, out), 0, 0, NULL, NULL, NULL, "Output",
     "Folder for records."},
    {"ranks", NULL, SHL_OPT_LIST, offsetof(values, ranks), 0, 0, "1", NULL, NULL, "Training",
     "World sizes to sweep."},
    {"json", NULL, SHL_OPT_BOOL, offsetof(values, json), 0, 0, NULL, NULL, NULL, "Output",
     "One object on stdout."},
};
enum { N = SHL_ARRAY_LEN(table) };

/* Defaults, then the words; up to two positionals. */
static shl_code
parse(const char *const *words, values *v, shl_origin *origins, const char **positionals, int *n)
{
    int argc = 0;
    while (words[argc]) {
        argc++;
    }
    SHL_TRY(shl_option_defaults(table, N, v, origins));
    return shl_option_parse(table, N, argc, words, v, origins, positionals, n, 2);
}

#define WORDS(...) ((const char *const[]){__VA_ARGS__, NULL})

static void
test_option_defaults_and_origins(void **state)
{
    values v;
    shl_origin origins[N];
    (void)state;
    memset(&v, 0xff, sizeof(v));
    assert_int_equal(shl_option_defaults(table, N, &v, origins), SHL_OK);
    assert_int_equal(v.strategy, 1);
    assert_int_equal(v.batch, 4);
    assert_int_equal(v.params, 124000000);
    assert_int_equal(v.memory, 0);
    assert_true(v.lr == 3e-4);
    assert_null(v.out);
    assert_string_equal(v.ranks, "1");
    assert_false(v.json);
    for (int i = 0; i < N; i++) {
        assert_int_equal(origins[i], SHL_ORIGIN_DEFAULT);
    }
}

static void
test_option_parse_takes_both_spellings(void **state)
{
    values v;
    shl_origin origins[N];
    const char *positionals[2];
    int n;
    (void)state;
    assert_int_equal(parse(WORDS("first", "--micro-batch", "8", "--device-memory=2GiB", "--json",
                                 "--strategy", "fsdp", "--ranks", "1,2,4", "--lr=1e-3", "second"),
                           &v, origins, positionals, &n),
                     SHL_OK);
    assert_int_equal(v.batch, 8);
    assert_int_equal(v.memory, (size_t)2 << 30);
    assert_true(v.json);
    assert_int_equal(v.strategy, 3);
    assert_string_equal(v.ranks, "1,2,4");
    assert_true(v.lr == 1e-3);
    assert_int_equal(n, 2);
    assert_string_equal(positionals[0], "first");
    assert_string_equal(positionals[1], "second");
    assert_int_equal(origins[1], SHL_ORIGIN_USER);
    assert_int_equal(origins[2], SHL_ORIGIN_DEFAULT);
    assert_int_equal(parse(WORDS("--json=false", "--", "--lr"), &v, NULL, positionals, &n), SHL_OK);
    assert_false(v.json);
    assert_string_equal(positionals[0], "--lr");
}

/* One refused command line: text that the error must hold, in what, because or advice. */
typedef struct refusal {
    const char *words[4];
    const char *what, *because, *advice;
} refusal;

static void
test_option_parse_refuses_with_a_reason(void **state)
{
    static const refusal rows[] = {
        {{"--stratgy", "ddp"}, "unknown option --stratgy", "--strategy", "--strategy"},
        {{"--devicememory=1"}, "unknown option --devicememory", "--device-memory", ""},
        {{"--pipeline-stages", "2"}, "unknown option --pipeline-stages", "no option", "--help"},
        {{"-batch", "2"}, "unknown option --batch", "", ""},
        {{"--batch", "0"}, "--batch: 0 is out of range", "from 1 to 4096", "sequences per rank"},
        {{"--batch", "-1"}, "--batch: -1 is out of range", "from 1 to 4096", ""},
        {{"--batch", "two"}, "--batch: \"two\" is not a whole number", "", ""},
        {{"--micro-batch", "5000"}, "--batch: 5000 is out of range", "", ""},
        {{"--batch"}, "--batch needs a value", "nothing follows", "--batch 4"},
        {{"--batch", "--json"}, "--batch needs a value", "another option", ""},
        {{"--batch="}, "--batch: the value is empty", "", ""},
        {{"--params", "0"}, "--params: 0 is out of range", "from 1 to", ""},
        {{"--params", "1.5"}, "--params: \"1.5\" is not a whole count", "", ""},
        {{"--device-memory", "0"}, "--device-memory: 0 is out of range", "", ""},
        {{"--device-memory", "lots"}, "is not a number of bytes", "", "2GiB"},
        {{"--lr", "nan"}, "--lr: nan is out of range", "from 0 to 10", ""},
        {{"--lr", "11"}, "--lr: 11 is out of range", "", ""},
        {{"--strategy", "zero"}, "\"zero\" is not one of the choices", "ddp, zero1", "zero1"},
        {{"--json=maybe"}, "--json: \"maybe\" is neither true nor false", "", ""},
        {{"a", "b", "c"}, "unexpected word \"c\"", "at most 2", ""},
    };
    int64_t before = shl_heap_live_blocks();
    (void)state;
    for (size_t i = 0; i < SHL_ARRAY_LEN(rows); i++) {
        values v;
        const char *positionals[2];
        int n;
        assert_int_equal(parse(rows[i].words, &v, NULL, positionals, &n), SHL_E_USAGE);
        const shl_err *e = shl_err_get();
        if (!strstr(e->what, rows[i].what)) {
            print_error("got \"%s\", expected \"%s\"\n", e->what, rows[i].what);
        }
        assert_non_null(strstr(e->what, rows[i].what));
        assert_non_null(strstr(e->because, rows[i].because));
        assert_non_null(strstr(e->advice, rows[i].advice));
        assert_int_equal(v.batch, 4);
    }
    assert_int_equal(shl_heap_live_blocks(), before);
}

static void
test_option_spelling_reads_back(void **state)
{
    static const char *const sets[N][3] = {
        {"ddp", "fsdp", "zero3"},
        {"1", "77", "4096"},
        {"1", "124439808", "7.5B"},
        {"1", "80GB", "3MiB"},
        {"0", "0.1", "1.2345678901234e-5"},
        {"a b", "x", "build/out"},
        {"1,2,4", "1-8", "3"},
        {"true", "false", "true"},
    };
    (void)state;
    for (size_t i = 0; i < N; i++) {
        for (int k = 0; k < 3; k++) {
            values a, b;
            char first[64], second[64];
            assert_int_equal(shl_option_defaults(table, N, &a, NULL), SHL_OK);
            assert_int_equal(shl_option_defaults(table, N, &b, NULL), SHL_OK);
            assert_int_equal(shl_option_set(table, N, table[i].name, sets[i][k], &a, NULL), SHL_OK);
            shl_option_spell(&table[i], &a, first, sizeof(first));
            assert_int_equal(shl_option_set(table, N, table[i].name, first, &b, NULL), SHL_OK);
            shl_option_spell(&table[i], &b, second, sizeof(second));
            assert_string_equal(first, second);
            assert_true(a.batch == b.batch && a.params == b.params && a.memory == b.memory);
            assert_true(a.lr == b.lr && a.strategy == b.strategy && a.json == b.json);
        }
    }
    values v;
    char text[64];
    assert_int_equal(shl_option_defaults(table, N, &v, NULL), SHL_OK);
    shl_option_spell(&table[4], &v, text, sizeof(text));
    assert_string_equal(text, "0.0003");
    v.memory = (size_t)2 << 30;
    shl_option_spell(&table[3], &v, text, sizeof(text));
    assert_string_equal(text, "2GiB");
    shl_option_spell(&table[5], &v, text, sizeof(text));
    assert_string_equal(text, "");
}

static void
test_option_help_holds_every_option(void **state)
{
    shl_str help = {0};
    (void)state;
    shl_option_help(table, N, &help);
    assert_false(help.failed);
    const char *text = shl_str_get(&help);
    for (size_t i = 0; i < N; i++) {
        char name[64], group[64];
        shl_strf(name, sizeof(name), "\n  --%s", table[i].name);
        shl_strf(group, sizeof(group), "%s:\n", table[i].group);
        assert_non_null(strstr(text, name));
        const char *at = strstr(text, group);
        assert_non_null(at);
        /* Each heading stands once. */
        assert_null(strstr(at + 1, group));
    }
    for (const char *line = text; *line;) {
        size_t len = strcspn(line, "\n");
        assert_true(len <= 80);
        line += len + (line[len] == '\n');
    }
    /* What is said, wherever its lines end. */
    shl_str said = {0};
    for (const char *p = text; *p;) {
        size_t len = strcspn(p, " \n");
        shl_str_add_text(&said, p, len);
        shl_str_add_text(&said, " ", 1);
        p += len + strspn(p + len, " \n");
    }
    assert_non_null(strstr(shl_str_get(&said), "default 3e-4"));
    assert_non_null(strstr(shl_str_get(&said), "sequences per rank"));
    assert_non_null(strstr(shl_str_get(&said), "ddp, zero1, zero3, fsdp"));
    assert_non_null(strstr(shl_str_get(&said), "--micro-batch"));
    shl_str_fini(&said);
    shl_str_fini(&help);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_option_defaults_and_origins),
        cmocka_unit_test(test_option_parse_takes_both_spellings),
        cmocka_unit_test(test_option_parse_refuses_with_a_reason),
        cmocka_unit_test(test_option_spelling_reads_back),
        cmocka_unit_test(test_option_help_holds_every_option),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

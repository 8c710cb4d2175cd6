/* tests/bench: figures: what is chosen of the records, what lands in the data files, what is refused,
 * and that gnuplot draws every figure without complaint. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "bench/figures.h"
#include "kernels/base/heap.h"
#include "tests/support/temp_folder.h"

static char records[64];

static void
write_records(const char *text)
{
    FILE *f = fopen(records, "w");
    assert_non_null(f);
    assert_true(fputs(text, f) >= 0);
    assert_int_equal(fclose(f), 0);
}

#define RUN(model, strategy, ranks, total, param, act)                                             \
    "{\"kind\":\"run\",\"schema\":1,\"model\":\"" model "\",\"strategy\":\"" strategy              \
    "\",\"ranks\":" #ranks ",\"batch\":2,\"seq\":64,\"peak_bytes\":{\"device\":{\"total\":" #total \
    ",\"param\":" #param "}},\"at_peak\":{\"param\":" #param ",\"act\":" #act "}}\n"
#define EVAL(strategy, ranks, step, loss)                                                          \
    "{\"kind\":\"eval\",\"strategy\":\"" strategy "\",\"ranks\":" #ranks ",\"step\":" #step        \
    ",\"loss\":" #loss "}\n"
#define STEP(strategy, ranks, step, loss)                                                          \
    "{\"kind\":\"step\",\"schema\":1,\"strategy\":\"" strategy "\",\"ranks\":" #ranks              \
    ",\"step\":" #step ",\"loss\":" #loss "}\n"

/* A run that did something: measured, with traffic and a save. */
#define DID(model, strategy, ranks, threads, seq, tokens, ag, ar, save_ns, save_bytes)             \
    "{\"kind\":\"run\",\"model\":\"" model "\",\"strategy\":\"" strategy "\",\"ranks\":" #ranks    \
    ",\"threads\":" #threads ",\"batch\":2,\"seq\":" #seq                                          \
    ",\"peak_bytes\":{\"device\":{\"total\":100}},\"at_peak\":{\"device\":{\"total\":100,"         \
    "\"param\":60,"                                                                                \
    "\"act\":30,\"bucket\":10}},\"comm\":{\"all_gather\":{\"wire_bytes\":" #ag                     \
    "},\"all_reduce\":{\"wire_bytes\":" #ar "}},\"tokens_per_s\":" #tokens                         \
    ",\"save_ns\":" #save_ns ",\"save_bytes\":" #save_bytes                                        \
    ",\"time\":\"measured\",\"fingerprint\":{\"cores\":2}}\n"
#define EVENT(strategy, at, phase, delta, total, param, act)                                       \
    "{\"kind\":\"event\",\"model\":\"tiny\",\"strategy\":\"" strategy                              \
    "\",\"ranks\":2,\"batch\":2,\"seq\":64,\"step\":2,\"at\":" #at ",\"phase\":" phase             \
    ",\"tier\":\"device\",\"owner\":" phase ",\"delta_bytes\":" #delta ",\"total_bytes\":" #total  \
    ",\"bytes\":{\"param\":" #param ",\"act\":" #act "}}\n"

static const char EVENTS[] = EVENT("ddp", 0, "null", 0, 50, 50, 0)
    EVENT("ddp", 1, "\"forward\"", 30, 80, 50, 30) EVENT("ddp", 3, "\"forward\"", 20, 100, 50, 50)
        EVENT("ddp", 4, "\"backward\"", -50, 50, 50, 0) "{\"kind\":\"event\",\"tier\":\"host\"}\n";

static const char GOOD[] = "\n" RUN("tiny", "ddp", 1, 900, 800, 100)
    RUN("tiny", "ddp", 2, 1000, 800, 200) RUN("tiny", "zero3", 1, 950, 850, 100)
        RUN("tiny", "zero3", 2, 700, 400, 300) RUN("tiny", "zero3", 4, 500, 200, 300)
            RUN("tiny", "zero3", 2, 600, 400,
                200) "{\"kind\":\"note\",\"text\":\"passed over\"}\n" STEP("ddp", 2, 1, 5.5)
                STEP("ddp", 2, 2, 5.25) STEP("ddp", 2, 10, 4.125) STEP("zero3", 2, 10, 4.25)
                    STEP("zero3", 2, 1, 5.5) STEP("ddp", 1, 1, 9.0) STEP("zero3", 2, 10, 4.375);

/* Records that hold something for every figure. */
static const char *
all_records(void)
{
    static char text[8192];
    (void)snprintf(text, sizeof text, "%s%s%s", GOOD, EVENTS,
                   DID("tiny", "ddp", 1, 1, 128, 1, 0, 0, null, null)
                       DID("tiny", "zero3", 1, 1, 64, 2, 9, 9, 1000, 2000)
                           DID("tiny", "ddp", 2, 2, 64, 3, 0, 9, 2000, 4000)
                               DID("tiny", "ddp", 1, 1, 64, 1, 0, 0, null, null));
    return text;
}

/* Reads the records file; the data must be released. */
static shl_code
read_records(shl_figure_data *d)
{
    *d = (shl_figure_data){0};
    shl_err_clear();
    return shl_figure_data_read(d, records);
}

static const char *
read_output(const char *name)
{
    static char text[8192];
    char path[128];
    (void)snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *f = fopen(path, "r");
    assert_non_null(f);
    text[fread(text, 1, sizeof text - 1, f)] = '\0';
    assert_int_equal(fclose(f), 0);
    return text;
}

static void
assert_holds(const char *text, const char *part)
{
    if (!strstr(text, part)) {
        fail_msg("'%s' is not in:\n%s", part, text);
    }
}

static shl_code
write_figure(shl_figure f, const char *model, int64_t ranks, size_t limit_bytes)
{
    shl_figure_data d;
    assert_int_equal(read_records(&d), SHL_OK);
    shl_figure_choice choice = {model, ranks, limit_bytes, folder, NULL};
    shl_code code = shl_figure_write(&d, f, &choice);
    shl_figure_data_fini(&d);
    return code;
}

static void
test_figures_by_tag_takes_the_last_run_of_each_strategy(void **state)
{
    (void)state;
    write_records(GOOD);
    assert_int_equal(write_figure(SHL_FIGURE_MEMORY_BY_TAG, NULL, 0, 2048), SHL_OK);
    assert_string_equal(read_output("memory_by_tag.dat"),
                        "# strategy total param gather grad master optim act bucket staging work "
                        "ckpt\n"
                        "ddp 1000 800 0 0 0 0 200 0 0 0 0\n"
                        "zero3 600 400 0 0 0 0 200 0 0 0 0\n");
    const char *vars = read_output("memory_by_tag.vars");
    assert_holds(vars, "heading = \"tiny, batch 2 x 64 per rank, 2 ranks\"\n");
    assert_holds(vars, "used = \"1 6 \"\n");
    assert_holds(vars, "limit = 2048.0\n");
    assert_int_equal(write_figure(SHL_FIGURE_MEMORY_BY_TAG, "tiny", 4, 0), SHL_OK);
    assert_string_equal(strchr(read_output("memory_by_tag.dat"), '\n'),
                        "\nzero3 500 200 0 0 0 0 300 0 0 0 0\n");
}

static void
test_figures_vs_ranks_sorts_each_strategy(void **state)
{
    (void)state;
    write_records(GOOD);
    assert_int_equal(write_figure(SHL_FIGURE_MEMORY_VS_RANKS, NULL, 0, 0), SHL_OK);
    assert_string_equal(read_output("memory_vs_ranks.dat"),
                        "# ddp\n1 900\n2 1000\n\n\n# zero3\n1 950\n2 600\n4 500\n\n\n");
    const char *vars = read_output("memory_vs_ranks.vars");
    assert_holds(vars, "strategies = \"ddp zero3\"\n");
    assert_holds(vars, "first_ranks = 1.0\nlast_ranks = 4.0\nguide = 900.0\n");
}

static void
test_figures_loss_lines_up_steps(void **state)
{
    (void)state;
    write_records(GOOD);
    assert_int_equal(write_figure(SHL_FIGURE_LOSS, NULL, 0, 0), SHL_OK);
    assert_string_equal(read_output("loss.dat"),
                        "# step ddp zero3\n1 5.5 5.5\n2 5.25 ?\n10 4.125 4.375\n");
    assert_holds(read_output("loss.vars"), "verdict = \"largest difference 2.5e-01\"\n");
    write_records(STEP("a", 3, 1, 0.1) STEP("b", 3, 1, 0.1));
    assert_int_equal(write_figure(SHL_FIGURE_LOSS, NULL, 0, 0), SHL_OK);
    assert_string_equal(read_output("loss.dat"),
                        "# step a b\n1 0.10000000000000001 0.10000000000000001\n");
    assert_holds(read_output("loss.vars"), "verdict = \"every difference is 0\"\n");
    assert_holds(read_output("loss.vars"), "validated = 0\n");
    write_records(EVAL("b", 3, 2, 0.5) STEP("a", 3, 1, 0.25) EVAL("b", 2, 2, 9)
                      STEP("b", 3, 1, 0.25) EVAL("a", 3, 2, 0.75) EVAL("a", 3, 4, 0.5));
    assert_int_equal(write_figure(SHL_FIGURE_LOSS, NULL, 0, 0), SHL_OK);
    assert_string_equal(read_output("loss.dat"),
                        "# step a b\n1 0.25 0.25\n\n\n# validation\n2 0.75 0.5\n4 0.5 ?\n");
    assert_holds(read_output("loss.vars"), "validated = 1\n");
}

static void
test_figures_timeline_has_corners_bands_and_the_peak(void **state)
{
    (void)state;
    write_records(EVENTS);
    assert_int_equal(write_figure(SHL_FIGURE_TIMELINE, NULL, 0, 0), SHL_OK);
    assert_string_equal(read_output("timeline.dat"),
                        "# ddp: at phase delta total param gather grad master optim act bucket "
                        "staging work ckpt\n"
                        "0 _ 0 50 50 0 0 0 0 0 0 0 0 0\n"
                        "1 forward 0 50 50 0 0 0 0 0 0 0 0 0\n"
                        "1 forward 30 80 50 0 0 0 0 30 0 0 0 0\n"
                        "3 forward 0 80 50 0 0 0 0 30 0 0 0 0\n"
                        "3 forward 20 100 50 0 0 0 0 50 0 0 0 0\n"
                        "4 backward 0 100 50 0 0 0 0 50 0 0 0 0\n"
                        "4 backward -50 50 50 0 0 0 0 0 0 0 0 0\n\n\n"
                        "# from to phase\n0 4 forward\n4 5 backward\n\n\n"
                        "# at total phase owner\n3 100 forward forward\n\n\n");
    const char *vars = read_output("timeline.vars");
    assert_holds(vars, "heading = \"tiny, batch 2 x 64 per rank, 2 ranks: step 2 of rank 0\"\n");
    assert_holds(vars, "used = \"1 6 \"\n");
    assert_holds(vars, "peaks = \"100.0 \"\nphases = \"forward \"\n");
}

static void
test_figures_throughput_marks_too_many_threads(void **state)
{
    (void)state;
    write_records(RUN("tiny", "ddp", 8, 900, 800, 100) /* predicted: not shown */
                  DID("tiny", "zero3", 1, 1, 64, 100.5, 0, 0, null, null)
                      DID("tiny", "ddp", 1, 1, 64, 90, 0, 0, null, null)
                          DID("tiny", "ddp", 2, 1, 64, 150, 0, 7, null, null)
                              DID("tiny", "ddp", 4, 1, 64, 120, 0, 7, null, null)
                                  DID("tiny", "ddp", 4, 1, 64, 125, 0, 7, null, null));
    assert_int_equal(write_figure(SHL_FIGURE_THROUGHPUT, NULL, 0, 0), SHL_OK);
    assert_string_equal(read_output("throughput.dat"),
                        "# zero3: ranks tokens_per_s more_threads_than_cores\n1 100.5 0\n\n\n"
                        "# ddp: ranks tokens_per_s more_threads_than_cores\n"
                        "1 90 0\n2 150 0\n4 125 1\n\n\n"
                        "# guide: ranks tokens_per_s\n1 100.5\n2 201\n4 201\n");
    assert_holds(read_output("throughput.vars"), "rank_counts = \"1 2 4\"\n");
    assert_holds(read_output("throughput.vars"), "oversubscribed = 2\n");
}

static void
test_figures_wire_leaves_out_what_sends_nothing(void **state)
{
    (void)state;
    write_records(DID("tiny", "ddp", 1, 1, 64, 1, 0, 0, null, null)
                      DID("tiny", "zero3", 1, 1, 64, 1, 0, 0, null, null)
                          DID("tiny", "ddp", 4, 1, 64, 1, 0, 70, null, null)
                              DID("tiny", "zero3", 4, 1, 64, 1, 90, 1, null, null));
    assert_int_equal(write_figure(SHL_FIGURE_WIRE, NULL, 0, 0), SHL_OK);
    assert_string_equal(read_output("wire.dat"),
                        "# strategy total all-gather reduce-scatter all-reduce broadcast control\n"
                        "ddp 70 0 0 70 0 0\nzero3 91 90 0 1 0 0\n");
    assert_holds(read_output("wire.vars"), "used = \"1 3 \"\n");
    assert_holds(read_output("wire.vars"), "per rank, 4 ranks\"");
}

static void
test_figures_split_groups_by_batch(void **state)
{
    (void)state;
    write_records(DID("tiny", "ddp", 2, 1, 128, 1, 0, 1, null, null)
                      DID("tiny", "zero3", 2, 1, 64, 1, 0, 1, null, null)
                          DID("tiny", "ddp", 2, 1, 64, 1, 0, 1, null, null));
    assert_int_equal(write_figure(SHL_FIGURE_SPLIT, NULL, 0, 0), SHL_OK);
    assert_string_equal(read_output("split.dat"),
                        "# place batch seq state activations temporary total\n"
                        "0 2 64 60 30 10 100\n1 2 128 60 30 10 100\n\n\n# middle batch\n0.5 2\n");
    assert_holds(read_output("split.vars"), "heading = \"tiny, ddp, 2 ranks: ");
    write_records(DID("tiny", "ddp", 2, 1, 64, 1, 0, 1, null, null));
    assert_int_equal(write_figure(SHL_FIGURE_SPLIT, NULL, 0, 0), SHL_E_USAGE);
    assert_holds(shl_err_get()->advice, "--seq 128,256,512");
}

static void
test_figures_checkpoint_takes_every_save(void **state)
{
    (void)state;
    write_records(DID("large", "ddp", 2, 1, 64, 1, 0, 1, 500000000, 4000)
                      DID("tiny", "ddp", 2, 1, 64, 1, 0, 1, 250000000, 1000)
                          DID("tiny", "fsdp", 2, 1, 64, 1, 0, 1, 1000000, 1000)
                              DID("tiny", "zero3", 2, 1, 64, 1, 0, 1, null, null));
    assert_int_equal(write_figure(SHL_FIGURE_CHECKPOINT, NULL, 0, 0), SHL_OK);
    assert_string_equal(read_output("checkpoint.dat"),
                        "# ddp: bytes seconds ranks model\n1000 0.250000000 2 tiny\n"
                        "4000 0.500000000 2 large\n\n\n"
                        "# fsdp: bytes seconds ranks model\n1000 0.001000000 2 tiny\n\n\n");
    assert_holds(read_output("checkpoint.vars"), "best = 1000000\n");
    write_records(GOOD);
    assert_int_equal(write_figure(SHL_FIGURE_CHECKPOINT, NULL, 0, 0), SHL_E_USAGE);
    assert_holds(shl_err_get()->advice, "--ckpt-dir");
}

static void
test_figures_show_the_batch_of_the_last_record(void **state)
{
    (void)state;
    write_records(DID("tiny", "zero1", 2, 1, 128, 1, 0, 9, null, null)
                      DID("tiny", "ddp", 2, 1, 64, 1, 0, 70, null, null));
    assert_int_equal(write_figure(SHL_FIGURE_WIRE, NULL, 0, 0), SHL_OK);
    assert_null(strstr(read_output("wire.dat"), "zero1"));
    assert_holds(read_output("wire.vars"), "batch 2 x 64 per rank");
}

static void
test_figures_words_cannot_leave_their_string(void **state)
{
    (void)state;
    write_records(RUN("a\\\"; system `x`", "b \\\"c", 1, 3, 1, 2));
    assert_int_equal(write_figure(SHL_FIGURE_MEMORY_BY_TAG, NULL, 0, 0), SHL_OK);
    assert_holds(read_output("memory_by_tag.vars"), "heading = \"a_; system _x_, batch");
    assert_holds(read_output("memory_by_tag.dat"), "\nb__c 3 1 0");
}

static void
test_figures_bad_records_name_the_line(void **state)
{
    (void)state;
    static const struct {
        const char *text, *what, *because;
    } cases[] = {
        {"{\"kind\":\"note\"}\n{\"kind\":", ":2:", "column"},
        {"[1]\n", ":1:", "\"kind\" is missing"},
        {"{\"kind\":\"a\",\"kind\":\"b\"}\n", ":1:", "duplicate"},
        {"\n\n{\"kind\":\"step\",\"strategy\":\"ddp\",\"ranks\":1,\"step\":1}\n",
         ":3:", "\"loss\""},
        {"{\"kind\":\"run\",\"strategy\":\"ddp\"}\n", ":1:", "\"model\""},
        {RUN("tiny", "ddp", 1, 900, 800, 99), ":1:", "do not add up"},
        {RUN("tiny", "ddp", 0, 900, 800, 100), ":1:", "below 1"},
        {RUN("tiny", "ddp", -4, 900, 800, 100), ":1:", "\"ranks\" is not a whole number"},
        {DID("tiny", "ddp", 1, 1, 64, "fast", 0, 0, 1, 1), ":1:", "tokens_per_s"},
        {DID("tiny", "ddp", 1, 1, 64, 1, 0, 0, -5, 1), ":1:", "save_ns"},
        {"{\"kind\":\"event\"}", ":1:", "\"tier\""},
        {EVENT("ddp", 1, "\"forward\"", 1, 2, 2, 0), ":1:", "does not go on"},
        {EVENT("ddp", 0, "null", 0, 2, 1, 0), ":1:", "do not add up"},
        {EVENT("ddp", 0, "null", 0, 2, 2, 0) EVENT("ddp", 1, "\"step\"", 2, 5, 5, 0),
         ":2:", "\"delta_bytes\""},
        {EVENT("ddp", 0, "null", 0, 2, 2, 0) EVENT("fsdp", 1, "\"step\"", 2, 4, 4, 0),
         ":2:", "does not go on"},
        {RUN("tiny", "ddp", 1.5, 900, 800, 100), ":1:", "\"ranks\" is not a whole number"},
    };
    int64_t blocks = shl_heap_live_blocks();
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        write_records(cases[i].text);
        shl_figure_data d;
        assert_int_equal(read_records(&d), SHL_E_CONFIG);
        shl_figure_data_fini(&d);
        assert_holds(shl_err_get()->what, cases[i].what);
        assert_holds(shl_err_get()->because, cases[i].because);
        assert_int_equal(shl_heap_live_blocks(), blocks);
    }
    shl_figure_data d = {0};
    assert_int_equal(shl_figure_data_read(&d, "/nonexistent.jsonl"), SHL_E_IO);
    assert_int_equal(shl_figure_data_read(&d, folder), SHL_E_IO);
    shl_figure_data_fini(&d);
}

static void
test_figures_choices_that_pick_nothing_are_refused(void **state)
{
    (void)state;
    write_records(GOOD);
    assert_int_equal(write_figure(SHL_FIGURE_MEMORY_BY_TAG, "large", 0, 0), SHL_E_USAGE);
    assert_int_equal(write_figure(SHL_FIGURE_MEMORY_BY_TAG, NULL, 3, 0), SHL_E_USAGE);
    assert_int_equal(write_figure(SHL_FIGURE_LOSS, NULL, 8, 0), SHL_E_USAGE);
    write_records(RUN("tiny", "ddp", 2, 1000, 800, 200) RUN("large", "ddp", 2, 1000, 800, 200));
    assert_int_equal(write_figure(SHL_FIGURE_MEMORY_BY_TAG, NULL, 0, 0), SHL_E_USAGE);
    assert_holds(shl_err_get()->because, "tiny and large");
    assert_int_equal(write_figure(SHL_FIGURE_MEMORY_VS_RANKS, "tiny", 0, 0), SHL_E_USAGE);
    assert_int_equal(write_figure(SHL_FIGURE_LOSS, NULL, 0, 0), SHL_E_USAGE);
    assert_holds(shl_err_get()->because, "step records");
}

static void
test_figures_heap_failures_are_returned(void **state)
{
    (void)state;
    write_records(all_records());
    int64_t blocks = shl_heap_live_blocks();
    int failures = 0;
    for (int64_t n = 1;; n++) {
        shl_figure_data d = {0};
        shl_figure_choice choice = {NULL, 0, 0, folder, NULL};
        shl_heap_fail_at(n);
        shl_code code = shl_figure_data_read(&d, records);
        for (int f = 0; f < SHL_FIGURE_COUNT && code == SHL_OK; f++) {
            code = shl_figure_write(&d, (shl_figure)f, &choice);
        }
        shl_heap_fail_at(-1);
        shl_figure_data_fini(&d);
        assert_int_equal(shl_heap_live_blocks(), blocks);
        if (code == SHL_OK) {
            break;
        }
        assert_int_equal(code, SHL_E_HEAP);
        failures++;
    }
    assert_true(failures > 5);
}

static void
test_figures_are_drawn(void **state)
{
    (void)state;
    write_records(all_records());
    for (int f = 0; f < SHL_FIGURE_COUNT; f++) {
        assert_int_equal(write_figure((shl_figure)f, NULL, 0, 2048), SHL_OK);
        if (shl_figure_draw((shl_figure)f, folder) != SHL_OK) {
            fail_msg("%s: %s", shl_err_get()->what, shl_err_get()->because);
        }
        char name[64];
        (void)snprintf(name, sizeof name, "%s.svg", shl_figure_name((shl_figure)f));
        const char *svg = read_output(name);
        assert_holds(svg, "<svg");
        (void)snprintf(name, sizeof name, "%s.png", shl_figure_name((shl_figure)f));
        assert_memory_equal(read_output(name), "\x89PNG", 4);
    }
}

static void
test_figures_a_broken_script_is_an_error(void **state)
{
    (void)state;
    write_records(GOOD);
    assert_int_equal(write_figure(SHL_FIGURE_LOSS, NULL, 0, 0), SHL_OK);
    char path[128];
    (void)snprintf(path, sizeof path, "%s/loss.vars", folder);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(shl_figure_draw(SHL_FIGURE_LOSS, folder), SHL_E_SYSTEM);
    assert_holds(shl_err_get()->what, "gnuplot failed");
    assert_holds(shl_err_get()->because, "loss.vars");
}

static void
test_figures_a_missing_gnuplot_names_its_package(void **state)
{
    (void)state;
    write_records(GOOD);
    assert_int_equal(write_figure(SHL_FIGURE_LOSS, NULL, 0, 0), SHL_OK);
    assert_int_equal(setenv("PATH", "/nonexistent", 1), 0);
    assert_int_equal(shl_figure_draw(SHL_FIGURE_LOSS, folder), SHL_E_SYSTEM);
    assert_holds(shl_err_get()->advice, "gnuplot-nox");
}

static int
set_up(void **state)
{
    (void)state;
    if (make_folder(NULL) != 0) {
        return -1;
    }
    (void)snprintf(records, sizeof records, "%s/records.jsonl", folder);
    return 0;
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_figures_by_tag_takes_the_last_run_of_each_strategy),
        cmocka_unit_test(test_figures_vs_ranks_sorts_each_strategy),
        cmocka_unit_test(test_figures_loss_lines_up_steps),
        cmocka_unit_test(test_figures_timeline_has_corners_bands_and_the_peak),
        cmocka_unit_test(test_figures_throughput_marks_too_many_threads),
        cmocka_unit_test(test_figures_wire_leaves_out_what_sends_nothing),
        cmocka_unit_test(test_figures_split_groups_by_batch),
        cmocka_unit_test(test_figures_checkpoint_takes_every_save),
        cmocka_unit_test(test_figures_show_the_batch_of_the_last_record),
        cmocka_unit_test(test_figures_words_cannot_leave_their_string),
        cmocka_unit_test(test_figures_bad_records_name_the_line),
        cmocka_unit_test(test_figures_choices_that_pick_nothing_are_refused),
        cmocka_unit_test(test_figures_heap_failures_are_returned),
        cmocka_unit_test(test_figures_are_drawn),
        cmocka_unit_test(test_figures_a_broken_script_is_an_error),
        cmocka_unit_test(test_figures_a_missing_gnuplot_names_its_package),
    };
    return cmocka_run_group_tests(tests, set_up, remove_folder);
}

/* tests/bench: the plot command: what `all` leaves out is told and is no failure, and a figure that does
 * not exist is answered with the nearest one. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "bench/cli.h"
#include "bench/figures.h"
#include "kernels/base/types.h"
#include "tests/support/temp_folder.h"

static char records[64], out[64], told[64];

static const char STEPS[] =
    "{\"kind\":\"step\",\"strategy\":\"ddp\",\"ranks\":2,\"step\":1,\"loss\":5.5}\n"
    "{\"kind\":\"step\",\"strategy\":\"ddp\",\"ranks\":2,\"step\":2,\"loss\":5.25}\n";

/* Runs `plot RECORDS --out OUT --figure FIGURE` with stdout and stderr in the file `told`. */
static shl_code
plot(const char *figure)
{
    const char *const argv[] = {records, "--out", out, "--figure", figure, NULL};
    const shl_cli cli = {.argc = 5, .argv = argv, .full_argc = 5, .full_argv = argv};
    (void)fflush(stdout);
    (void)fflush(stderr);
    int kept_out = dup(STDOUT_FILENO), kept_err = dup(STDERR_FILENO);
    FILE *f = fopen(told, "w");
    assert_true(f && kept_out >= 0 && kept_err >= 0);
    assert_true(dup2(fileno(f), STDOUT_FILENO) >= 0 && dup2(fileno(f), STDERR_FILENO) >= 0);
    shl_err_clear();
    shl_code code = shl_command_plot.run(&cli);
    (void)fflush(stdout);
    (void)fflush(stderr);
    assert_true(dup2(kept_out, STDOUT_FILENO) >= 0 && dup2(kept_err, STDERR_FILENO) >= 0);
    (void)close(kept_out);
    (void)close(kept_err);
    assert_int_equal(fclose(f), 0);
    return code;
}

static const char *
read_told(void)
{
    static char text[8192];
    FILE *f = fopen(told, "r");
    assert_non_null(f);
    text[fread(text, 1, sizeof text - 1, f)] = '\0';
    assert_int_equal(fclose(f), 0);
    return text;
}

static void
write_records(const char *text)
{
    FILE *f = fopen(records, "w");
    assert_non_null(f);
    assert_true(fputs(text, f) >= 0);
    assert_int_equal(fclose(f), 0);
}

static void
test_plot_all_draws_what_there_is_and_tells_the_rest(void **state)
{
    SHL_UNUSED(state);
    write_records(STEPS);
    assert_int_equal(plot("all"), SHL_OK);
    const char *text = read_told();
    assert_non_null(strstr(text, "/loss.png\n"));
    for (int f = 0; f < SHL_FIGURE_COUNT; f++) {
        char line[64];
        (void)snprintf(line, sizeof line, "left out %s: it needs ", shl_figure_name((shl_figure)f));
        assert_true((strstr(text, line) == NULL) == (f == SHL_FIGURE_LOSS));
    }
    assert_non_null(strstr(text, "; try: shardlab plan "));
    write_records("{\"kind\":\"note\"}\n");
    assert_int_equal(plot("all"), SHL_E_USAGE);
    assert_string_equal(shl_err_get()->what, "the records hold nothing to draw");
}

static void
test_plot_one_figure_without_its_records_is_an_error(void **state)
{
    SHL_UNUSED(state);
    write_records(STEPS);
    for (int f = 0; f < SHL_FIGURE_COUNT; f++) {
        shl_code expected = f == SHL_FIGURE_LOSS ? SHL_OK : SHL_E_USAGE;
        assert_int_equal(plot(shl_figure_name((shl_figure)f)), expected);
    }
    assert_int_equal(plot("timline"), SHL_E_USAGE);
    assert_non_null(strstr(shl_err_get()->advice, "timeline"));
}

static int
set_up(void **state)
{
    SHL_UNUSED(state);
    if (make_folder(NULL) != 0) {
        return -1;
    }
    (void)snprintf(records, sizeof records, "%s/records.jsonl", folder);
    (void)snprintf(told, sizeof told, "%s/told.txt", folder);
    (void)snprintf(out, sizeof out, "%s/out", folder);
    return 0;
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_plot_all_draws_what_there_is_and_tells_the_rest),
        cmocka_unit_test(test_plot_one_figure_without_its_records_is_an_error),
    };
    return cmocka_run_group_tests(tests, set_up, remove_folder);
}

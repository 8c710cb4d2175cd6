/* tests of kernels/base: the error of a thread, its trace, and what a failed assertion does.
 * Every property is checked on the error that a caller would print. */
#include "kernels/base/err.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "kernels/base/types.h"

static shl_code
innermost(int value)
{
    if (value < 0) {
        SHL_RAISE(SHL_E_CONFIG, "value %d is negative", value);
        shl_err_because("%d < 0", value);
        return shl_err_advice("use %d", -value);
    }
    return SHL_OK;
}

static shl_code
middle(int value)
{
    SHL_TRY(innermost(value));
    return SHL_OK;
}

static shl_code
outermost(int value, int *cleaned)
{
    shl_code code;
    SHL_TRY_TO(code, out, middle(value));
out:
    (*cleaned)++;
    return code;
}

static void
test_err_trace_names_every_caller(void **state)
{
    int cleaned = 0;
    (void)state;
    shl_err_clear();
    assert_int_equal(outermost(1, &cleaned), SHL_OK);
    assert_int_equal(shl_err_get()->code, SHL_OK);
    assert_int_equal(outermost(-3, &cleaned), SHL_E_CONFIG);
    assert_int_equal(cleaned, 2);

    const shl_err *e = shl_err_get();
    assert_int_equal(e->code, SHL_E_CONFIG);
    assert_string_equal(e->what, "value -3 is negative");
    assert_string_equal(e->because, "-3 < 0");
    assert_string_equal(e->advice, "use 3");
    const char *inner = strstr(e->trace, "innermost");
    const char *mid = strstr(e->trace, "middle");
    const char *outer = strstr(e->trace, "outermost");
    assert_non_null(inner);
    assert_true(inner < mid);
    assert_true(mid < outer);
    assert_non_null(strstr(e->trace, "tests/kernels/base/test_err.c:"));
}

static void
test_err_raise_replaces_what_was_there(void **state)
{
    int cleaned = 0;
    (void)state;
    assert_int_equal(outermost(-1, &cleaned), SHL_E_CONFIG);
    /* The old text may be an argument of the new one. */
    SHL_RAISE(SHL_E_IO, "after: %s", shl_err_get()->what);
    assert_string_equal(shl_err_get()->what, "after: value -1 is negative");
    assert_string_equal(shl_err_get()->because, "");
    assert_string_equal(shl_err_get()->advice, "");
    assert_null(strstr(shl_err_get()->trace, "outermost"));
}

static void
test_err_trace_of_a_silent_code_is_not_an_older_error(void **state)
{
    (void)state;
    SHL_RAISE(SHL_E_IO, "old");
    assert_int_equal(shl_err_trace(SHL_E_PEER, "f.c", 7, "g"), SHL_E_PEER);
    assert_int_equal(shl_err_get()->code, SHL_E_PEER);
    assert_string_equal(shl_err_get()->what, shl_code_text(SHL_E_PEER));
    assert_string_equal(shl_err_get()->trace, "f.c:7 g");
}

static void
test_err_texts_are_bounded(void **state)
{
    char longer[4096];
    (void)state;
    memset(longer, 'x', sizeof(longer) - 1);
    longer[sizeof(longer) - 1] = '\0';
    SHL_RAISE(SHL_E_USAGE, "%s", longer);
    shl_err_because("%s", longer);
    for (int i = 0; i < 200; i++) {
        shl_err_trace(SHL_E_USAGE, "some/file.c", i, "function");
    }
    const shl_err *e = shl_err_get();
    assert_int_equal(strlen(e->what), sizeof(e->what) - 1);
    assert_int_equal(strlen(e->because), sizeof(e->because) - 1);
    assert_int_equal(strlen(e->trace), sizeof(e->trace) - 1);
}

static void *
fail_elsewhere(void *arg)
{
    shl_err *out = arg;
    int cleaned = 0;
    if (shl_err_get()->code == SHL_OK && outermost(-9, &cleaned) != SHL_OK) {
        *out = *shl_err_get();
    }
    return NULL;
}

static void
test_err_belongs_to_its_thread_and_can_be_carried(void **state)
{
    shl_err carried = {0};
    pthread_t thread;
    (void)state;
    SHL_RAISE(SHL_E_OOM, "mine");
    assert_int_equal(pthread_create(&thread, NULL, fail_elsewhere, &carried), 0);
    assert_int_equal(pthread_join(thread, NULL), 0);
    assert_string_equal(shl_err_get()->what, "mine");
    assert_int_equal(shl_err_put(&carried), SHL_E_CONFIG);
    assert_string_equal(shl_err_get()->what, "value -9 is negative");
    assert_int_equal(shl_err_put(shl_err_get()), SHL_E_CONFIG);
    shl_err_clear();
    assert_int_equal(shl_err_get()->code, SHL_OK);
    assert_string_equal(shl_err_get()->what, "");
}

static void
test_err_codes_have_names_and_exit_statuses(void **state)
{
    (void)state;
    for (int i = 0; i < SHL_CODE_COUNT; i++) {
        assert_true(strlen(shl_code_name((shl_code)i)) > 0);
        assert_true(strlen(shl_code_text((shl_code)i)) > 0);
        for (int j = 0; j < i; j++) {
            assert_string_not_equal(shl_code_name((shl_code)i), shl_code_name((shl_code)j));
        }
    }
    assert_int_equal(shl_code_exit_status(SHL_OK), 0);
    assert_int_equal(shl_code_exit_status(SHL_E_VERIFY), 1);
    assert_int_equal(shl_code_exit_status(SHL_E_USAGE), 2);
    assert_int_equal(shl_code_exit_status(SHL_E_OOM), 3);
    assert_int_equal(shl_code_exit_status(SHL_E_IO), 5);
    assert_int_equal(shl_code_exit_status(SHL_E_INTERRUPTED), 130);
    assert_int_equal(shl_code_exit_status(SHL_CODE_COUNT), 5);
}

static void
test_err_assertion_aborts_and_says_where(void **state)
{
    int ends[2];
    char said[512] = {0};
    int status;
    (void)state;
    assert_int_equal(pipe(ends), 0);
    pid_t child = fork();
    if (child == 0) {
        signal(SIGABRT, SIG_DFL);
        dup2(ends[1], STDERR_FILENO);
        shl_dtype_bytes(SHL_DTYPE_COUNT);
        _exit(0);
    }
    close(ends[1]);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(read(ends[0], said, sizeof(said) - 1) > 0);
    close(ends[0]);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
    assert_non_null(strstr(said, "kernels/base/types.c:"));
    assert_non_null(strstr(said, "dtype_is_valid(dtype)"));
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_err_trace_names_every_caller),
        cmocka_unit_test(test_err_raise_replaces_what_was_there),
        cmocka_unit_test(test_err_trace_of_a_silent_code_is_not_an_older_error),
        cmocka_unit_test(test_err_texts_are_bounded),
        cmocka_unit_test(test_err_belongs_to_its_thread_and_can_be_carried),
        cmocka_unit_test(test_err_codes_have_names_and_exit_statuses),
        cmocka_unit_test(test_err_assertion_aborts_and_says_where),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* tests/engines/config: DeepSpeed's configuration file: every row of the key table at its default, at and
 * beyond its bounds, of a wrong type and by its other name; unknown keys at every level; the batch
 * triangle; "auto"; the bad inputs of its users. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "engines/config/ds_config.h"
#include "kernels/base/heap.h"
#include "kernels/base/types.h"

/* {"a": {"b": value}} for the path a.b. */
static void
nest(const char *path, const char *value, char *dst, size_t cap)
{
    int depth = 0;
    dst[0] = '\0';
    for (const char *at = path;; at++) {
        size_t len = strcspn(at, "."), used = strlen(dst);
        shl_strf(dst + used, cap - used, "{\"%.*s\": ", (int)len, at);
        depth++;
        at += len;
        if (*at == '\0') {
            break;
        }
    }
    size_t used = strlen(dst);
    shl_strf(dst + used, cap - used, "%s", value);
    for (; depth > 0; depth--) {
        used = strlen(dst);
        shl_strf(dst + used, cap - used, "}");
    }
}

static shl_code
load(const char *path, const char *value)
{
    char text[512];
    shl_ds_config c;
    nest(path, value, text, sizeof(text));
    shl_code code = shl_ds_config_load(text, 2026, &c);
    shl_ds_config_fini(&c);
    return code;
}

static void
expect_refused(const char *path, const char *value)
{
    if (load(path, value) != SHL_E_CONFIG) {
        fail_msg("%s: %s passes", path, value);
    }
    if (!strstr(shl_err_get()->what, path) || shl_err_get()->because[0] == '\0') {
        fail_msg("%s: %s gives \"%s\", because \"%s\"", path, value, shl_err_get()->what,
                 shl_err_get()->because);
    }
    assert_non_null(strstr(shl_err_get()->what, ":1:")); /* a line and a column */
}

static void
expect_taken(const char *path, const char *value)
{
    if (load(path, value) != SHL_OK) {
        fail_msg("%s: %s is refused: %s, %s", path, value, shl_err_get()->what,
                 shl_err_get()->because);
    }
}

static void
test_ds_config_rows_take_their_defaults(void **state)
{
    (void)state;
    size_t n;
    const shl_ds_key *keys = shl_ds_keys(&n);
    assert_true(n > 200);
    for (size_t i = 0; i < n; i++) {
        expect_taken(keys[i].path, keys[i].fallback);
        expect_taken(keys[i].path, shl_ds_fallback(&keys[i], 2023));
        assert_int_equal(shl_ds_key_find(keys[i].path), i); /* no row twice */
        assert_true(keys[i].why[0] != '\0');
    }
}

static void
test_ds_config_rows_have_a_type(void **state)
{
    (void)state;
    static const char *const wrong[] = {
        [SHL_DS_BOOL] = "1",       [SHL_DS_INT] = "\"7\"", [SHL_DS_REAL] = "true",
        [SHL_DS_TEXT] = "true",    [SHL_DS_ENUM] = "3",    [SHL_DS_REALS] = "[0.5]",
        [SHL_DS_INTS] = "[\"a\"]", [SHL_DS_TEXTS] = "[1]", [SHL_DS_TREE] = "true",
    };
    size_t n;
    const shl_ds_key *keys = shl_ds_keys(&n);
    for (size_t i = 0; i < n; i++) {
        expect_refused(keys[i].path, wrong[keys[i].type]);
        if (strcmp(keys[i].fallback, "null") != 0) {
            expect_refused(keys[i].path, "null");
        }
        if (keys[i].type == SHL_DS_ENUM) {
            expect_refused(keys[i].path, "\"neither\"");
        }
        if (keys[i].type == SHL_DS_INT) {
            expect_refused(keys[i].path, "15099494.4");
            assert_string_equal(shl_err_get()->advice, "15099494");
        }
    }
}

static void
test_ds_config_rows_have_bounds(void **state)
{
    (void)state;
    size_t n;
    const shl_ds_key *keys = shl_ds_keys(&n);
    int bounds = 0;
    for (size_t i = 0; i < n; i++) {
        const shl_ds_key *k = &keys[i];
        char value[64];
        if (k->type == SHL_DS_INT) {
            shl_strf(value, sizeof(value), "%.0f", k->min);
            expect_taken(k->path, value);
            shl_strf(value, sizeof(value), "%.0f", k->min - 1.0);
            expect_refused(k->path, value);
            bounds++;
        }
        if (k->type == SHL_DS_REAL || k->type == SHL_DS_REALS) {
            const double good[] = {k->min, k->max}, bad[] = {k->min - 1.0, k->max * 1.5};
            for (size_t j = 0; j < 2; j++) {
                bool one = k->type == SHL_DS_REAL;
                shl_strf(value, sizeof(value), "%s%.17g%s", one ? "" : "[", good[j],
                         one ? "" : ", 0.5]");
                expect_taken(k->path, value);
                shl_strf(value, sizeof(value), "%s%.17g%s", one ? "" : "[", bad[j],
                         one ? "" : ", 0.5]");
                expect_refused(k->path, value);
            }
            bounds++;
        }
    }
    assert_true(bounds > 60);
}

static void
test_ds_config_other_names(void **state)
{
    (void)state;
    size_t n;
    int aliases = 0;
    const shl_ds_key *keys = shl_ds_keys(&n);
    for (size_t i = 0; i < n; i++) {
        if (!keys[i].alias) {
            continue;
        }
        char path[160], text[512];
        const char *last = strrchr(keys[i].path, '.') + 1;
        shl_strf(path, sizeof(path), "%.*s%s", (int)(last - keys[i].path), keys[i].path,
                 keys[i].alias);
        expect_taken(path, keys[i].fallback);
        shl_strf(text, sizeof(text), "{\"zero_optimization\": {\"%s\": %s, \"%s\": %s}}",
                 keys[i].alias, keys[i].fallback, last, keys[i].fallback);
        shl_ds_config c;
        assert_int_equal(shl_ds_config_load(text, 2026, &c), SHL_E_CONFIG);
        shl_ds_config_fini(&c);
        assert_non_null(strstr(shl_err_get()->what, "twice"));
        aliases++;
    }
    assert_true(aliases >= 8);
}

/* A value that neither works nor passes must be refused by the key's name. */
static void
test_ds_config_refusals_name_the_key(void **state)
{
    (void)state;
    size_t n;
    const shl_ds_key *keys = shl_ds_keys(&n);
    int refused = 0;
    for (size_t i = 0; i < n; i++) {
        const shl_ds_key *k = &keys[i];
        const char *value = NULL;
        char text[512], number[64];
        if (k->status == SHL_DS_WORKS || (k->inert && strcmp(k->inert, "any") == 0)) {
            continue;
        }
        if (k->type == SHL_DS_BOOL) {
            value = strcmp(k->fallback, "false") == 0 ? "true" : "false";
        } else if (k->type == SHL_DS_INT || k->type == SHL_DS_REAL) {
            shl_strf(number, sizeof(number), "%g", k->max <= 1.0 ? 0.25 : 77.0);
            value = number;
        } else if (k->type == SHL_DS_TEXT) {
            value = "\"other\"";
        } else if (k->type == SHL_DS_TREE) {
            value = "{\"enabled\": true}";
        } else {
            continue; /* lists and words: below, by name */
        }
        nest(k->path, value, text, sizeof(text));
        shl_ds_config c;
        assert_int_equal(shl_ds_config_load(text, 2026, &c), SHL_OK);
        shl_code code = shl_ds_config_check(&c);
        if (code != SHL_E_CONFIG ||
            !strstr(shl_err_get()->what,
                    strrchr(k->path, '.') ? strrchr(k->path, '.') + 1 : k->path)) {
            fail_msg("%s: %s gives %s", k->path, value,
                     code == SHL_OK ? "no error" : shl_err_get()->what);
        }
        shl_ds_config_fini(&c);
        refused++;
    }
    assert_true(refused > 80);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ds_config_rows_take_their_defaults),
        cmocka_unit_test(test_ds_config_rows_have_a_type),
        cmocka_unit_test(test_ds_config_rows_have_bounds),
        cmocka_unit_test(test_ds_config_other_names),
        cmocka_unit_test(test_ds_config_refusals_name_the_key),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

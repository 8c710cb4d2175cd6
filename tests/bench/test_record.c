/* tests/bench: records: every form is made from one table, so all forms must read back to the same
 * values, and the page that documents them must be the one the table gives. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <jansson.h>

#include "bench/fingerprint.h"
#include "bench/locate.h"
#include "bench/record.h"
#include "engines/shared/volume.h"
#include "kernels/base/heap.h"
#include "kernels/base/rng.h"

static shl_session_config config;
static shl_session_result result;
static shl_step_report last_step;

/* A result with a value of its own in every place. */
static void
make_run(shl_run_record *r, bool predicted, size_t limit_bytes)
{
    shl_session_config_init(&config);
    config.ranks = 4;
    config.engine.strategy = SHL_ZERO3;
    config.engine.reduce_every = SHL_REDUCE_MICRO;
    memset(&result, 0, sizeof(result));
    last_step = (shl_step_report){.step = 10, .loss = 1.0 / 3.0, .grad_norm = 0x1.fffffffffffffp-3};
    result.steps = &last_step;
    result.n_steps = 1;
    result.predicted = predicted;
    result.params = 842496;
    result.trainable_params = 842496;
    result.size = (shl_formula_size){.train = 842496.0, .again = 842496.0, .ranks = 4};
    (void)snprintf(result.layout_name, sizeof(result.layout_name), "a \"layout\", with commas");
    for (int t = 0; t < SHL_TIER_COUNT; t++) {
        shl_ledger_tier *tier = &result.tiers[t];
        for (int g = 0; g < SHL_TAG_COUNT; g++) {
            tier->at_peak_tag_bytes[g] = (size_t)(shl_rng_u64(7, 1, (uint64_t)(16 * t + g)) >> 16);
            tier->peak_tag_bytes[g] = tier->at_peak_tag_bytes[g] + 1;
            tier->peak_bytes += tier->at_peak_tag_bytes[g];
        }
    }
    result.tiers[SHL_TIER_DEVICE].peak_mark = SHL_MARK_BACKWARD;
    (void)snprintf(result.tiers[SHL_TIER_DEVICE].peak_owner, 96, "h.3.mlp");
    for (int k = 0; k < SHL_COLL_COUNT; k++) {
        result.comm_step.kind[k] = (shl_comm_counter){3 + k, (INT64_C(1) << 53) + 1 + k, 77 + k};
    }
    result.comm_uniform = true;
    result.param_hash = predicted ? 0 : UINT64_C(0x0123456789abcdef);
    result.tokens_per_s = 12345.678901234567;
    shl_run_record_fill(r, &config, &result, limit_bytes);
}

static const json_t *
at_path(const json_t *root, const char *path)
{
    char key[64];
    const char *dot;
    while ((dot = strchr(path, '.')) != NULL) {
        (void)snprintf(key, sizeof(key), "%.*s", (int)(dot - path), path);
        root = json_object_get(root, key);
        path = dot + 1;
    }
    return json_object_get(root, path);
}

/* One record through JSON text and back. */
static json_t *
through_text(const shl_field *fields, size_t n, const void *record)
{
    json_t *json = NULL;
    assert_int_equal(shl_record_json(fields, n, record, &json), SHL_OK);
    char *text = json_dumps(json, JSON_COMPACT);
    assert_non_null(text);
    json_t *back = json_loads(text, JSON_REJECT_DUPLICATES, NULL);
    assert_non_null(back);
    assert_true(json_equal(json, back));
    free(text);
    json_decref(json);
    return back;
}

static void
test_record_json_holds_every_field_exactly(void **state)
{
    SHL_UNUSED(state);
    shl_run_record r;
    size_t n;
    const shl_field *fields = shl_run_fields(&n);
    make_run(&r, false, 0);
    json_t *json = through_text(fields, n, &r);
    for (size_t i = 0; i < n; i++) {
        const json_t *value = at_path(json, fields[i].path);
        assert_non_null(value);
        if (fields[i].type == SHL_FIELD_INT) {
            int64_t expected;
            memcpy(&expected, (const char *)&r + fields[i].offset, sizeof(expected));
            if (expected == SHL_FIELD_NO_INT) {
                assert_true(json_is_null(value));
            } else {
                assert_int_equal(json_integer_value(value), expected);
            }
        } else if (fields[i].type == SHL_FIELD_REAL) {
            double expected;
            memcpy(&expected, (const char *)&r + fields[i].offset, sizeof(expected));
            assert_true(isfinite(expected) ? json_real_value(value) == expected
                                           : json_is_null(value));
        }
    }
    uint64_t bits = strtoull(json_string_value(at_path(json, "loss_bits")), NULL, 16);
    double loss;
    memcpy(&loss, &bits, sizeof(loss));
    assert_true(loss == 1.0 / 3.0);
    assert_string_equal(json_string_value(at_path(json, "param_hash")), "0123456789abcdef");
    assert_true(json_is_null(at_path(json, "margin_bytes")));
    json_decref(json);
}

static void
test_record_at_peak_sums_to_the_total(void **state)
{
    SHL_UNUSED(state);
    shl_run_record r;
    size_t n;
    const shl_field *fields = shl_run_fields(&n);
    make_run(&r, false, 0);
    json_t *json = through_text(fields, n, &r);
    static const char *const tiers[] = {"device", "host", "nvme"};
    for (size_t t = 0; t < SHL_ARRAY_LEN(tiers); t++) {
        const json_t *tags = json_object_get(json_object_get(json, "at_peak"), tiers[t]);
        const json_t *own = json_object_get(json_object_get(json, "peak_bytes"), tiers[t]);
        int64_t sum = 0;
        for (int g = 0; g < SHL_TAG_COUNT; g++) {
            sum += json_integer_value(json_object_get(tags, shl_tag_name((shl_tag)g)));
            assert_non_null(json_object_get(own, shl_tag_name((shl_tag)g)));
        }
        assert_int_equal(json_object_size(tags), SHL_TAG_COUNT + 1);
        assert_int_equal(sum, json_integer_value(json_object_get(own, "total")));
    }
    json_decref(json);
}

/* One cell of an RFC 4180 line; *at moves behind it. */
static void
next_cell(const char **at, char *cell, size_t cell_bytes)
{
    size_t len = 0;
    bool quoted = **at == '"';
    const char *p = *at + quoted;
    while (quoted ? !(p[0] == '"' && p[1] != '"') : *p != ',' && *p != '\n') {
        p += quoted && p[0] == '"';
        assert_true(*p != '\0' && len + 1 < cell_bytes);
        cell[len++] = *p++;
    }
    cell[len] = '\0';
    p += quoted;
    *at = *p == ',' ? p + 1 : p;
}

static void
test_record_csv_agrees_with_json(void **state)
{
    SHL_UNUSED(state);
    shl_run_record r;
    size_t n;
    const shl_field *fields = shl_run_fields(&n);
    shl_str header = {0}, row = {0};
    char cell[4096], name[4096];
    make_run(&r, false, 1000);
    json_t *fingerprint = NULL, *own = NULL;
    assert_int_equal(shl_fingerprint(&fingerprint), SHL_OK);
    assert_int_equal(shl_session_config_json(&config, &own), SHL_OK);
    r.fingerprint = fingerprint;
    r.config = own;
    json_t *json = through_text(fields, n, &r);
    shl_record_csv_header(fields, n, &header);
    shl_record_csv_row(fields, n, &r, &row);
    const char *h = shl_str_get(&header), *at = shl_str_get(&row);
    for (size_t i = 0; i < n; i++) {
        next_cell(&h, name, sizeof(name));
        next_cell(&at, cell, sizeof(cell));
        const json_t *value = at_path(json, name);
        assert_non_null(value);
        if (json_is_string(value)) {
            assert_string_equal(cell, json_string_value(value));
        } else if (json_is_null(value)) {
            assert_string_equal(cell, "");
        } else {
            json_t *read = json_loads(cell, JSON_DECODE_ANY, NULL);
            assert_true(json_equal(read, value));
            json_decref(read);
        }
    }
    assert_string_equal(h, "\n");
    assert_string_equal(at, "\n");
    shl_str_fini(&header);
    shl_str_fini(&row);
    json_decref(json);
    json_decref(own);
    json_decref(fingerprint);
}

static void
test_record_table_shows_rows_and_drops_empty_columns(void **state)
{
    SHL_UNUSED(state);
    shl_run_record a, b;
    size_t n;
    const shl_field *fields = shl_run_fields(&n);
    shl_str text = {0}, md = {0};
    make_run(&a, true, 0);
    make_run(&b, true, 0);
    b.strategy = "fsdp";
    const void *rows[] = {&a, &b};
    assert_int_equal(shl_record_table(fields, n, rows, 2, false, &text), SHL_OK);
    assert_int_equal(shl_record_table(fields, n, rows, 2, true, &md), SHL_OK);
    assert_non_null(strstr(shl_str_get(&text), "zero3"));
    assert_non_null(strstr(shl_str_get(&text), "fsdp"));
    assert_null(strstr(shl_str_get(&text), "loss")); /* a plan has none */
    assert_null(strstr(shl_str_get(&text), "fits")); /* no limit */
    int lines = 0;
    size_t bars = 0, first_bars = 0;
    for (const char *p = shl_str_get(&md); *p; p++) {
        bars += *p == '|';
        if (*p == '\n') {
            first_bars = lines == 0 ? bars : first_bars;
            assert_int_equal(bars, first_bars);
            bars = 0;
            lines++;
        }
    }
    assert_int_equal(lines, 4);
    shl_str_fini(&text);
    shl_str_fini(&md);
}

static void
test_record_prediction_has_no_loss(void **state)
{
    SHL_UNUSED(state);
    shl_run_record r;
    shl_step_record s;
    size_t n, n_step;
    const shl_field *fields = shl_run_fields(&n), *step_fields = shl_step_fields(&n_step);
    make_run(&r, true, 1);
    json_t *json = through_text(fields, n, &r);
    assert_true(json_is_null(at_path(json, "loss")) && json_is_null(at_path(json, "loss_bits")));
    assert_true(json_is_null(at_path(json, "param_hash")));
    assert_string_equal(json_string_value(at_path(json, "time")), "predicted");
    assert_string_equal(json_string_value(at_path(json, "fits")), "no");
    assert_int_equal(json_integer_value(at_path(json, "margin_bytes")),
                     1 - r.peak[SHL_TIER_DEVICE].total);
    assert_true(json_real_value(at_path(json, "formula.state_bytes")) == 16.0 * 842496 / 4);
    assert_true(json_real_value(at_path(json, "formula.all_gather_bytes")) == 8.0 * 842496);
    json_decref(json);
    shl_step_record_fill(&s, &config, &last_step, true);
    json = through_text(step_fields, n_step, &s);
    assert_true(json_is_null(at_path(json, "loss")) && json_is_null(at_path(json, "grad_norm")));
    assert_int_equal(json_integer_value(at_path(json, "step")), 10);
    json_decref(json);
}

static void
test_record_page_is_up_to_date(void **state)
{
    SHL_UNUSED(state);
    char path[4096];
    shl_str page = {0};
    assert_int_equal(shl_locate("bench/RECORDS.md", path, sizeof(path)), SHL_OK);
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    static char stored[1 << 16];
    size_t n = fread(stored, 1, sizeof(stored) - 1, f);
    assert_int_equal(fclose(f), 0);
    stored[n] = '\0';
    shl_record_document(&page);
    if (strcmp(stored, shl_str_get(&page)) != 0) {
        fail_msg("bench/RECORDS.md is not what the tables say: shardlab info records > it");
    }
    shl_str_fini(&page);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_record_json_holds_every_field_exactly),
        cmocka_unit_test(test_record_at_peak_sums_to_the_total),
        cmocka_unit_test(test_record_csv_agrees_with_json),
        cmocka_unit_test(test_record_table_shows_rows_and_drops_empty_columns),
        cmocka_unit_test(test_record_prediction_has_no_loss),
        cmocka_unit_test(test_record_page_is_up_to_date),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* bench: the forms of a record: nested JSON, CSV, table and Markdown, and the page that documents it. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include <jansson.h>

#include "bench/record.h"
#include "kernels/base/heap.h"
#include "kernels/base/types.h"

static const void *
field_at(const shl_field *f, const void *record)
{
    return (const char *)record + f->offset;
}

static void
spell_bits(double value, char *dst, size_t dst_bytes)
{
    uint64_t bits;
    memcpy(&bits, &value, sizeof(bits));
    shl_strf(dst, dst_bytes, "%016" PRIx64, bits);
}

/* --- JSON -------------------------------------------------------------------------------- */

/* A new reference, or NULL when memory is out. */
static json_t *
value_json(const shl_field *f, const void *record)
{
    const void *at = field_at(f, record);
    const char *text;
    char digits[32];
    int64_t i;
    uint64_t hash;
    double real;
    bool flag;
    json_t *json;
    switch (f->type) {
    case SHL_FIELD_TEXT:
        memcpy(&text, at, sizeof(text));
        return text ? json_string(text) : json_null();
    case SHL_FIELD_INT:
        memcpy(&i, at, sizeof(i));
        return i == SHL_FIELD_NO_INT ? json_null() : json_integer((json_int_t)i);
    case SHL_FIELD_REAL:
        memcpy(&real, at, sizeof(real));
        return isfinite(real) ? json_real(real) : json_null();
    case SHL_FIELD_BITS:
        memcpy(&real, at, sizeof(real));
        spell_bits(real, digits, sizeof(digits));
        return isfinite(real) ? json_string(digits) : json_null();
    case SHL_FIELD_HASH:
        memcpy(&hash, at, sizeof(hash));
        shl_strf(digits, sizeof(digits), "%016" PRIx64, hash);
        return hash ? json_string(digits) : json_null();
    case SHL_FIELD_BOOL:
        memcpy(&flag, at, sizeof(flag));
        return json_boolean(flag);
    case SHL_FIELD_JSON:
        memcpy(&json, at, sizeof(json));
        return json ? json_incref(json) : json_null();
    }
    return json_null();
}

/* Steals value. False when memory is out. */
static bool
set_path(json_t *root, const char *path, json_t *value)
{
    json_t *object = root;
    char key[64];
    const char *dot;
    while ((dot = strchr(path, '.')) != NULL) {
        shl_strf(key, sizeof(key), "%.*s", (int)(dot - path), path);
        json_t *inner = json_object_get(object, key);
        if (!inner) {
            inner = json_object();
            if (json_object_set_new(object, key, inner) != 0) {
                json_decref(value);
                return false;
            }
        }
        object = inner;
        path = dot + 1;
    }
    return json_object_set_new(object, path, value) == 0;
}

shl_code
shl_record_json(const shl_field *fields, size_t n, const void *record, json_t **out)
{
    json_t *root = json_object();
    *out = NULL;
    for (size_t i = 0; i < n; i++) {
        if (!root || !set_path(root, fields[i].path, value_json(&fields[i], record))) {
            json_decref(root);
            return SHL_RAISE(SHL_E_HEAP, "out of host memory for a record");
        }
    }
    *out = root;
    return SHL_OK;
}

/* --- CSV --------------------------------------------------------------------------------- */

/* RFC 4180: quotes around what needs them, quotes inside doubled. */
static void
add_csv_text(shl_str *out, const char *text)
{
    if (!strpbrk(text, ",\"\n\r")) {
        shl_str_add(out, "%s", text);
        return;
    }
    shl_str_add(out, "\"");
    for (const char *p = text; *p; p++) {
        shl_str_add(out, *p == '"' ? "\"\"" : "%c", *p);
    }
    shl_str_add(out, "\"");
}

void
shl_record_csv_header(const shl_field *fields, size_t n, shl_str *out)
{
    for (size_t i = 0; i < n; i++) {
        shl_str_add(out, "%s%s", i > 0 ? "," : "", fields[i].path);
    }
    shl_str_add(out, "\n");
}

/* A value is spelled as in JSON; null is an empty cell, a text stands without its quotes. */
static void
add_csv_value(shl_str *out, const shl_field *f, const void *record)
{
    json_t *value = value_json(f, record);
    json_free_t release;
    json_get_alloc_funcs(NULL, &release);
    if (!value) {
        out->failed = true;
    } else if (json_is_string(value)) {
        add_csv_text(out, json_string_value(value));
    } else if (!json_is_null(value)) {
        char *text = json_dumps(value, JSON_COMPACT | JSON_ENCODE_ANY);
        out->failed = out->failed || !text;
        add_csv_text(out, text ? text : "");
        release(text);
    }
    json_decref(value);
}

void
shl_record_csv_row(const shl_field *fields, size_t n, const void *record, shl_str *out)
{
    for (size_t i = 0; i < n; i++) {
        shl_str_add(out, "%s", i > 0 ? "," : "");
        add_csv_value(out, &fields[i], record);
    }
    shl_str_add(out, "\n");
}

/* --- table ------------------------------------------------------------------------------- */

#define CELL_BYTES 40

static void
spell_number(const shl_field *f, double value, char *dst, size_t dst_bytes)
{
    switch (f->look) {
    case SHL_LOOK_GIB:
        shl_strf(dst, dst_bytes, "%.3f", value / 0x1p30);
        return;
    case SHL_LOOK_MIB:
        shl_strf(dst, dst_bytes, "%.2f", value / 0x1p20);
        return;
    case SHL_LOOK_COUNT:
        shl_format_count((int64_t)llround(value), dst, dst_bytes);
        return;
    case SHL_LOOK_SHORT:
        shl_strf(dst, dst_bytes, "%.5g", value);
        return;
    case SHL_LOOK_PLAIN:
    case SHL_LOOK_VARIES:
        shl_strf(dst, dst_bytes, "%.10g", value);
        return;
    }
}

static void
spell_cell(const shl_field *f, const void *record, char *dst, size_t dst_bytes)
{
    const void *at = field_at(f, record);
    const char *text;
    int64_t i;
    double real;
    dst[0] = '\0';
    if (f->type == SHL_FIELD_TEXT) {
        memcpy(&text, at, sizeof(text));
        shl_strf(dst, dst_bytes, "%s", text ? text : "");
    } else if (f->type == SHL_FIELD_INT) {
        memcpy(&i, at, sizeof(i));
        if (i != SHL_FIELD_NO_INT) {
            spell_number(f, (double)i, dst, dst_bytes);
        }
    } else if (f->type == SHL_FIELD_REAL) {
        memcpy(&real, at, sizeof(real));
        if (isfinite(real)) {
            spell_number(f, real, dst, dst_bytes);
        }
    }
}

/* Width of a column; 0 when no record has anything to show there. */
static size_t
column_width(const shl_field *f, const void *const *records, size_t n)
{
    char cell[CELL_BYTES], first[CELL_BYTES] = "";
    size_t width = 0;
    bool shows = false, varies = false;
    for (size_t r = 0; f->heading && r < n; r++) {
        spell_cell(f, records[r], cell, sizeof(cell));
        size_t len = strlen(cell);
        width = len > width ? len : width;
        bool zero = strcmp(cell, f->look == SHL_LOOK_COUNT ? "0" : "0.00") == 0;
        shows = shows || (len > 0 && !zero);
        varies = varies || (r > 0 && strcmp(cell, first) != 0);
        if (r == 0) {
            memcpy(first, cell, sizeof(first));
        }
    }
    if (!shows || (f->look == SHL_LOOK_VARIES && !varies)) {
        return 0;
    }
    size_t heading = strlen(f->heading);
    return width > heading ? width : heading;
}

static void
add_cell(shl_str *out, const shl_field *f, size_t width, const char *cell, bool first,
         bool markdown)
{
    bool left = f->type == SHL_FIELD_TEXT;
    const char *gap = markdown ? " | " : "  ";
    shl_str_add(out, "%s%*s", first ? (markdown ? "| " : "") : gap, left ? -(int)width : (int)width,
                cell);
}

/* The line after the headings that Markdown wants: dashes, and a colon on the aligned side. */
static void
add_rule(shl_str *out, const shl_field *fields, const size_t *widths, size_t n)
{
    for (size_t c = 0; c < n; c++) {
        if (widths[c] > 0) {
            bool left = fields[c].type == SHL_FIELD_TEXT;
            shl_str_add(out, "|%s", left ? ":" : "-");
            for (size_t i = 0; i < widths[c]; i++) {
                shl_str_add(out, "-");
            }
            shl_str_add(out, "%s", left ? "-" : ":");
        }
    }
    shl_str_add(out, "|\n");
}

/* One line: the record's cells, or the headings when record is NULL. */
static void
add_line(shl_str *out, const shl_field *fields, const size_t *widths, size_t n, const void *record,
         bool markdown)
{
    char cell[CELL_BYTES];
    bool first = true;
    for (size_t c = 0; c < n; c++) {
        if (widths[c] == 0) {
            continue;
        }
        if (record) {
            spell_cell(&fields[c], record, cell, sizeof(cell));
        } else {
            shl_strf(cell, sizeof(cell), "%s", fields[c].heading);
        }
        add_cell(out, &fields[c], widths[c], cell, first, markdown);
        first = false;
    }
    shl_str_add(out, "%s\n", markdown ? " |" : "");
}

shl_code
shl_record_table(const shl_field *fields, size_t n, const void *const *records, size_t n_records,
                 bool markdown, shl_str *out)
{
    size_t *widths = NULL;
    SHL_TRY(shl_heap_alloc(n, sizeof(*widths), &widths));
    for (size_t c = 0; c < n; c++) {
        widths[c] = column_width(&fields[c], records, n_records);
    }
    add_line(out, fields, widths, n, NULL, markdown);
    if (markdown) {
        add_rule(out, fields, widths, n);
    }
    for (size_t r = 0; r < n_records; r++) {
        add_line(out, fields, widths, n, records[r], markdown);
    }
    shl_heap_free(&widths);
    return SHL_OK;
}

/* --- the page ---------------------------------------------------------------------------- */

static const char *
type_word(shl_field_type type)
{
    static const char *const words[] = {
        [SHL_FIELD_TEXT] = "string",          [SHL_FIELD_INT] = "integer",
        [SHL_FIELD_REAL] = "number",          [SHL_FIELD_BITS] = "16 hex digits",
        [SHL_FIELD_HASH] = "16 hex digits",   [SHL_FIELD_BOOL] = "boolean",
        [SHL_FIELD_JSON] = "object or array",
    };
    return words[type];
}

static void
add_rows(shl_str *out, const char *title, const shl_field *fields, size_t n)
{
    shl_str_add(out, "\n## %s\n\n| field | type | meaning |\n|---|---|---|\n", title);
    for (size_t i = 0; i < n; i++) {
        shl_str_add(out, "| `%s` | %s | %s |\n", fields[i].path, type_word(fields[i].type),
                    fields[i].help);
    }
}

void
shl_record_document(shl_str *out)
{
    size_t n;
    shl_str_add(
        out,
        "# Records\n\n"
        "What `--json`, `--jsonl`, `--csv` and `--out` write. `tests/bench/test_record.c` compares "
        "this page\nwith the field tables in `bench/record.c`, from which every form is made.\n\n"
        "- A dot in a field's name is an object in JSON and part of the column's name in CSV.\n"
        "- Bytes are exact integers. Peaks are the worst rank's; `at_peak` is what the tags held "
        "at "
        "the moment\n  of that rank's largest total, and sums to it; `peak_bytes` has each tag's "
        "own largest.\n"
        "- `comm` is per rank and step.\n"
        "- A value that a run cannot have is null in JSON and empty in CSV.\n"
        "- `--csv` writes run records; JSON forms write step and eval records, then with "
        "--timeline\n"
        "  event records, then the run's record.\n"
        "- Event records are of one step of rank 0, the second of the run (the first when there is "
        "no second):\n  what the ledger of a tier held after each allocation and release, in "
        "order. They are the same on\n  cpu and virtual. One with `at` 0 begins each tier.\n");
    const shl_field *fields = shl_step_fields(&n);
    add_rows(out, "Step records", fields, n);
    fields = shl_eval_fields(&n);
    add_rows(out, "Eval records", fields, n);
    fields = shl_event_fields(&n);
    add_rows(out, "Event records", fields, n);
    fields = shl_run_fields(&n);
    add_rows(out, "Run records", fields, n);
}

/* bench: one row per shape, from the closed form of its family and from what its authors say. */
#include "bench/info_models.h"

#include <string.h>

#include <jansson.h>

#include "models/named.h"

typedef enum cell_kind { CELL_TEXT, CELL_INT, CELL_FLAG } cell_kind;

enum {
    MODEL = 0,
    SERIES,
    PARAMS,
    PUBLISHED,
    EXACT,
    DIFFERENCE,
    REASON,
    FAMILY,
    LAYERS,
    WIDTH,
    HEADS,
    KV_HEADS,
    HEAD_DIM,
    INNER,
    CONTEXT,
    VOCAB,
    TIED,
    USE,
    APPROXIMATED,
    NOTE,
    N_CELLS
};

/* width: of the plain table, which leaves out what has 0; series are its headings. */
static const struct {
    const char *name;
    cell_kind kind;
    int width;
} columns[N_CELLS] = {
    [MODEL] = {"model", CELL_TEXT, 14},
    [SERIES] = {"series", CELL_TEXT, 0},
    [PARAMS] = {"parameters", CELL_INT, 12},
    [PUBLISHED] = {"published", CELL_INT, 12},
    [EXACT] = {"published_exact", CELL_FLAG, 0},
    [DIFFERENCE] = {"difference", CELL_INT, 10},
    [REASON] = {"reason", CELL_TEXT, 0},
    [FAMILY] = {"family", CELL_TEXT, 6},
    [LAYERS] = {"layers", CELL_INT, 6},
    [WIDTH] = {"width", CELL_INT, 5},
    [HEADS] = {"heads", CELL_INT, 5},
    [KV_HEADS] = {"kv", CELL_INT, 3},
    [HEAD_DIM] = {"head_dim", CELL_INT, 0},
    [INNER] = {"inner", CELL_INT, 5},
    [CONTEXT] = {"context", CELL_INT, 7},
    [VOCAB] = {"vocab", CELL_INT, 6},
    [TIED] = {"tied", CELL_FLAG, 4},
    [USE] = {"use", CELL_TEXT, 12},
    [APPROXIMATED] = {"approximated", CELL_TEXT, 0},
    [NOTE] = {"note", CELL_TEXT, 1},
};

typedef struct cell {
    bool present;
    int64_t number; /* flags too */
    char text[320];
} cell;

static void
set_number(cell *c, int64_t number)
{
    c->present = true;
    c->number = number;
    shl_strf(c->text, sizeof(c->text), "%lld", (long long)number);
}

static void
set_flag(cell *c, bool flag)
{
    set_number(c, flag ? 1 : 0);
    shl_strf(c->text, sizeof(c->text), "%s", flag ? "yes" : "no");
}

static void
set_text(cell *c, const char *text)
{
    c->present = text[0] != '\0';
    shl_strf(c->text, sizeof(c->text), "%s", text);
}

static void
set_published(const shl_preset *p, int64_t params, cell *row)
{
    if (p->published == 0) {
        return;
    }
    bool exact = p->published_unit == 1;
    set_number(&row[PUBLISHED], p->published);
    set_number(&row[DIFFERENCE], params - p->published);
    set_flag(&row[EXACT], exact);
    if (!exact) {
        shl_format_count(p->published, row[PUBLISHED].text, sizeof(row[PUBLISHED].text));
    }
    char reason[sizeof(row->text)] = "";
    for (size_t i = 0; i < SHL_PRESET_GAPS && p->gaps[i].what; i++) {
        size_t used = strlen(reason);
        shl_strf(reason + used, sizeof(reason) - used, "%s%+lld %s", i > 0 ? ", " : "",
                 (long long)p->gaps[i].elems, p->gaps[i].what);
    }
    if (!exact) {
        shl_strf(reason, sizeof(reason), "the published figure is rounded");
    }
    set_text(&row[REASON], reason);
}

static void
fill(const shl_named_model *m, const char *note, cell *row)
{
    const shl_model_config *c = &m->config;
    int64_t params = shl_model_formula_params(c);
    memset(row, 0, N_CELLS * sizeof(*row));
    set_text(&row[MODEL], m->name);
    set_text(&row[FAMILY], shl_family_name(c->family));
    set_number(&row[PARAMS], params);
    if (m->preset) {
        set_text(&row[SERIES], m->preset->series);
        set_published(m->preset, params, row);
    }
    set_number(&row[LAYERS], c->layers);
    set_number(&row[WIDTH], c->width);
    set_number(&row[HEADS], c->heads);
    set_number(&row[KV_HEADS], c->kv_heads > 0 ? c->kv_heads : c->heads);
    set_number(&row[HEAD_DIM], c->head_dim > 0 || c->heads < 1 ? c->head_dim : c->width / c->heads);
    set_number(&row[INNER], c->inner > 0 ? c->inner : 4 * c->width);
    set_number(&row[CONTEXT], c->context);
    set_number(&row[VOCAB], c->vocab);
    set_flag(&row[TIED], c->tied);
    set_text(&row[USE], m->approximated[0] ? "approximated" : "exact");
    set_text(&row[APPROXIMATED], m->approximated);
    set_text(&row[NOTE], note);
}

/* --- forms ------------------------------------------------------------------------------- */

static shl_code
add_json(const cell *row, json_t *list)
{
    json_t *object = json_object();
    bool whole = object != NULL;
    for (size_t i = 0; i < N_CELLS; i++) {
        json_t *value = json_null();
        if (row[i].present) {
            value = columns[i].kind == CELL_INT    ? json_integer((json_int_t)row[i].number)
                    : columns[i].kind == CELL_FLAG ? json_boolean(row[i].number != 0)
                                                   : json_string(row[i].text);
        }
        whole = json_object_set_new(object, columns[i].name, value) == 0 && whole;
    }
    whole = json_array_append_new(list, object) == 0 && whole;
    return whole ? SHL_OK : SHL_RAISE(SHL_E_HEAP, "out of host memory for a list of models");
}

static void
add_csv(const cell *row, shl_str *out)
{
    for (size_t i = 0; i < N_CELLS; i++) {
        bool number = columns[i].kind == CELL_INT && row[i].present;
        shl_str_add(out, i > 0 ? "," : "");
        if (number) {
            shl_str_add(out, "%lld", (long long)row[i].number);
        } else {
            /* No text of a preset has a quote; a path's name may. */
            shl_str_add(out, "\"");
            for (const char *p = row[i].text; *p; p++) {
                shl_str_add(out, *p == '"' ? "\"\"" : "%c", *p);
            }
            shl_str_add(out, "\"");
        }
    }
    shl_str_add(out, "\n");
}

static void
add_md(const cell *row, shl_str *out)
{
    for (size_t i = 0; i < N_CELLS; i++) {
        shl_str_add(out, "| %s ", row[i].text);
    }
    shl_str_add(out, "|\n");
}

static void
add_plain(const cell *row, shl_str *out)
{
    bool first = true;
    for (size_t i = 0; i < N_CELLS; i++) {
        if (columns[i].width == 0) {
            continue;
        }
        const char *text = row[i].present ? row[i].text : (i == NOTE ? "" : "-");
        bool left = columns[i].kind == CELL_TEXT;
        int width = i == NOTE ? 0 : columns[i].width;
        shl_str_add(out, "%s%*s", first ? "" : "  ", left ? -width : width, text);
        first = false;
    }
    shl_str_add(out, "\n");
}

static void
add_header(shl_form form, shl_str *out)
{
    cell head[N_CELLS];
    memset(head, 0, sizeof(head));
    for (size_t i = 0; i < N_CELLS; i++) {
        set_text(&head[i], columns[i].name);
    }
    switch (form) {
    case SHL_FORM_CSV:
        for (size_t i = 0; i < N_CELLS; i++) {
            shl_str_add(out, "%s%s", i > 0 ? "," : "", columns[i].name);
        }
        shl_str_add(out, "\n");
        return;
    case SHL_FORM_MD:
        add_md(head, out);
        for (size_t i = 0; i < N_CELLS; i++) {
            shl_str_add(out, columns[i].kind == CELL_INT ? "|---:" : "|---");
        }
        shl_str_add(out, "|\n");
        return;
    case SHL_FORM_TABLE:
        add_plain(head, out);
        return;
    case SHL_FORM_JSON:
    case SHL_FORM_JSONL:
        return;
    }
}

static bool
same_text(const char *a, const char *b)
{
    return a == b || (a && b && strcmp(a, b) == 0);
}

/* Whether b stands under the same remarks as a. */
static bool
same_remarks(const shl_preset *a, const shl_preset *b)
{
    return same_text(a->series, b->series) && same_text(a->approximated, b->approximated) &&
           same_text(a->gaps[0].what, b->gaps[0].what);
}

/* Behind rows of a kind: what they compute otherwise, and what the differences are. */
static void
add_remarks(const shl_preset *p, shl_str *out)
{
    if (p->approximated) {
        shl_str_add(out, "  approximated: %s\n", p->approximated);
    }
    for (size_t i = 0; i < SHL_PRESET_GAPS && p->gaps[i].what; i++) {
        shl_str_add(out, "  difference: %s\n", p->gaps[i].what);
    }
}

static shl_code
add_row(const shl_named_model *m, const char *note, shl_form form, json_t *list, shl_str *out)
{
    cell row[N_CELLS];
    fill(m, note, row);
    switch (form) {
    case SHL_FORM_CSV:
        add_csv(row, out);
        return SHL_OK;
    case SHL_FORM_MD:
        add_md(row, out);
        return SHL_OK;
    case SHL_FORM_TABLE:
        add_plain(row, out);
        return SHL_OK;
    case SHL_FORM_JSON:
    case SHL_FORM_JSONL:
        break;
    }
    return add_json(row, list);
}

static shl_code
add_presets(shl_form form, json_t *list, shl_str *out)
{
    const shl_preset *p, *before = NULL;
    shl_named_model m;
    bool table = form == SHL_FORM_TABLE;
    for (size_t i = 0; (p = shl_preset_at(i)) != NULL; i++) {
        const shl_preset *next = shl_preset_at(i + 1);
        if (table && (!before || !same_text(before->series, p->series))) {
            shl_str_add(out, "%s\n", p->series);
        }
        SHL_TRY(shl_model_find(p->name, &m));
        SHL_TRY(add_row(&m, p->note, form, list, out));
        if (table && (!next || !same_remarks(p, next))) {
            add_remarks(p, out);
        }
        before = p;
    }
    const char *size, *name;
    for (size_t i = 0; table && shl_preset_size_at(i, &size, &name); i++) {
        shl_str_add(out, "%s%s = %s", i == 0 ? "\na size alone is a shape: " : ", ", size, name);
    }
    shl_str_add(out, "%s", table ? "\n" : "");
    return SHL_OK;
}

static shl_code
add_one(const char *model, shl_form form, json_t *list, shl_str *out)
{
    shl_named_model m;
    SHL_TRY(shl_model_find(model, &m));
    SHL_TRY(add_row(&m, m.preset && !m.note[0] ? m.preset->note : m.note, form, list, out));
    if (form == SHL_FORM_TABLE && m.approximated[0]) {
        shl_str_add(out, "  approximated: %s\n", m.approximated);
    }
    return SHL_OK;
}

shl_code
shl_info_models(const char *model, shl_form form, shl_str *out)
{
    json_t *list = json_array();
    add_header(form, out);
    shl_code code = model ? add_one(model, form, list, out) : add_presets(form, list, out);
    if (code == SHL_OK && form == SHL_FORM_JSON) {
        char *dump = json_dumps(list, JSON_INDENT(1));
        json_free_t release;
        json_get_alloc_funcs(NULL, &release);
        shl_str_add(out, "%s\n", dump ? dump : "");
        out->failed = out->failed || !dump;
        release(dump);
    }
    json_decref(list);
    return code;
}

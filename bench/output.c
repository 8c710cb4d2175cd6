/* bench: records on their way to stdout and to the file of --out. A write that fails is an error of the
 * run: a record that nobody can read was not made. */
#include "bench/output.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include <jansson.h>

#include "bench/fingerprint.h"
#include "kernels/base/heap.h"

shl_code
shl_output_form(const shl_run_options *o, shl_form *out)
{
    const struct {
        bool asked;
        shl_form form;
    } forms[] = {{o->json, SHL_FORM_JSON},
                 {o->jsonl, SHL_FORM_JSONL},
                 {o->csv, SHL_FORM_CSV},
                 {o->md, SHL_FORM_MD}};
    int n = 0;
    *out = SHL_FORM_TABLE;
    for (size_t i = 0; i < SHL_ARRAY_LEN(forms); i++) {
        if (forms[i].asked) {
            *out = forms[i].form;
            n++;
        }
    }
    if (n > 1) {
        SHL_RAISE(SHL_E_USAGE, "more than one output format");
        shl_err_because("stdout takes one of --json, --jsonl, --csv and --md");
        return shl_err_advice("one of them, and --out FILE for JSON lines beside it");
    }
    return SHL_OK;
}

shl_code
shl_output_open(const shl_run_options *o, const shl_cli *cli, shl_output *out)
{
    memset(out, 0, sizeof(*out));
    SHL_TRY(shl_output_form(o, &out->form));
    if (o->timeline && !o->out && out->form != SHL_FORM_JSON && out->form != SHL_FORM_JSONL) {
        SHL_RAISE(SHL_E_USAGE, "--timeline without a place for its records");
        shl_err_because("event records are written as JSON only");
        return shl_err_advice("--out FILE, or --jsonl");
    }
    out->path = o->out;
    if (o->out) {
        out->file_is_new = access(o->out, F_OK) != 0;
        out->file = fopen(o->out, "ae");
        if (!out->file) {
            SHL_RAISE(SHL_E_IO, "cannot append to %s", o->out);
            return shl_err_because("%s", strerror(errno));
        }
    }
    const char *device = shl_choices_device[o->device];
    bool is_gpu = strcmp(device, "cuda") == 0;
    SHL_TRY(is_gpu ? shl_fingerprint_gpu(device, &out->fingerprint)
                   : shl_fingerprint(&out->fingerprint));
    out->argv = shl_record_argv(cli->full_argc, cli->full_argv);
    out->all = out->form == SHL_FORM_JSON ? json_array() : NULL;
    if (!out->argv || (out->form == SHL_FORM_JSON && !out->all)) {
        return SHL_RAISE(SHL_E_HEAP, "out of host memory for records");
    }
    return SHL_OK;
}

static shl_code
write_file(const shl_output *out, const shl_str *line)
{
    if (line->failed) {
        return SHL_RAISE(SHL_E_HEAP, "out of host memory for a record");
    }
    if (fwrite(shl_str_get(line), 1, line->len, out->file) != line->len || fflush(out->file) != 0) {
        SHL_RAISE(SHL_E_IO, "cannot write to %s", out->path);
        return shl_err_because("%s", strerror(errno));
    }
    return SHL_OK;
}

/* A record as a line of JSON wherever one is wanted, and into the array of --json. */
static shl_code
emit_json(shl_output *out, const shl_field *fields, size_t n, const void *record)
{
    bool line_wanted = out->file || out->form == SHL_FORM_JSONL;
    json_t *json = NULL;
    if (!line_wanted && !out->all) {
        return SHL_OK;
    }
    SHL_TRY(shl_record_json(fields, n, record, &json));
    shl_str line = {0};
    char *text = line_wanted ? json_dumps(json, JSON_COMPACT) : NULL;
    json_free_t release;
    json_get_alloc_funcs(NULL, &release);
    if (text) {
        shl_str_add(&line, "%s\n", text);
    }
    line.failed = line.failed || (line_wanted && !text);
    release(text);
    shl_code code = SHL_OK;
    if (out->all && json_array_append(out->all, json) != 0) {
        code = SHL_RAISE(SHL_E_HEAP, "out of host memory for records");
    }
    json_decref(json);
    if (code == SHL_OK && out->file) {
        code = write_file(out, &line);
    }
    if (code == SHL_OK && out->form == SHL_FORM_JSONL) {
        code = shl_cli_print(&line);
    }
    shl_str_fini(&line);
    return code;
}

shl_code
shl_output_step(shl_output *out, const shl_session_config *cfg, const shl_step_report *report,
                bool predicted)
{
    shl_step_record record;
    size_t n;
    const shl_field *fields = shl_step_fields(&n);
    shl_step_record_fill(&record, cfg, report, predicted);
    return emit_json(out, fields, n, &record);
}

shl_code
shl_output_eval(shl_output *out, const shl_session_config *cfg, const shl_eval_report *report,
                bool predicted)
{
    shl_eval_record record;
    size_t n;
    const shl_field *fields = shl_eval_fields(&n);
    shl_eval_record_fill(&record, cfg, report, predicted);
    return emit_json(out, fields, n, &record);
}

static void
free_row(shl_output_row *row)
{
    shl_session_result_fini(&row->result);
    json_decref(row->config);
    json_decref(row->dtypes);
    shl_heap_free(&row);
}

static shl_code
emit_csv(shl_output *out, const shl_field *fields, size_t n, const void *record)
{
    shl_str text = {0};
    if (!out->csv_begun) {
        shl_record_csv_header(fields, n, &text);
    }
    shl_record_csv_row(fields, n, record, &text);
    shl_code code = shl_cli_print(&text);
    shl_str_fini(&text);
    out->csv_begun = true;
    return code;
}

/* The records of one tier, when it holds or held anything. */
static shl_code
emit_tier(shl_output *out, const shl_session_config *cfg, const shl_session_timeline *timeline,
          shl_tier tier)
{
    shl_event_record record;
    size_t n;
    const shl_field *fields = shl_event_fields(&n);
    bool used = false;
    shl_event_record_begin(&record, cfg, timeline, tier);
    for (int64_t i = 0; i < timeline->n_events; i++) {
        used = used || timeline->events[i].tier == tier;
    }
    if (!used && record.total_bytes == 0) {
        return SHL_OK;
    }
    SHL_TRY(emit_json(out, fields, n, &record));
    for (int64_t i = 0; i < timeline->n_events; i++) {
        if (timeline->events[i].tier == tier) {
            shl_event_record_next(&record, &timeline->events[i]);
            SHL_TRY(emit_json(out, fields, n, &record));
        }
    }
    return SHL_OK;
}

static shl_code
emit_timeline(shl_output *out, const shl_session_config *cfg, const shl_session_timeline *timeline)
{
    for (int tier = 0; tier < SHL_TIER_COUNT && timeline->step > 0; tier++) {
        SHL_TRY(emit_tier(out, cfg, timeline, (shl_tier)tier));
    }
    return SHL_OK;
}

shl_code
shl_output_run(shl_output *out, const shl_session_config *cfg, shl_session_result *result,
               size_t limit_bytes)
{
    shl_output_row *row = NULL;
    size_t n;
    const shl_field *fields = shl_run_fields(&n);
    shl_code code = shl_heap_alloc(1, sizeof(*row), &row);
    if (code != SHL_OK) {
        shl_session_result_fini(result);
        return code;
    }
    row->cfg = cfg;
    row->result = *result;
    row->result.info.layout = row->result.layout_name;
    memset(result, 0, sizeof(*result));
    SHL_TRY_TO(code, fail, shl_session_config_json(cfg, &row->config));
    row->dtypes = shl_record_dtypes(&cfg->engine);
    shl_run_record_fill(&row->record, cfg, &row->result, limit_bytes);
    row->record.config = row->config;
    row->record.dtypes = row->dtypes;
    row->record.fingerprint = out->fingerprint;
    row->record.argv = out->argv;
    SHL_TRY_TO(code, fail, emit_timeline(out, cfg, &row->result.timeline));
    SHL_TRY_TO(code, fail, emit_json(out, fields, n, &row->record));
    if (out->form == SHL_FORM_CSV) {
        SHL_TRY_TO(code, fail, emit_csv(out, fields, n, &row->record));
    }
    SHL_TRY_TO(code, fail,
               shl_heap_grow(&out->rows, out->n_rows, out->n_rows + 1, sizeof(*out->rows)));
    out->rows[out->n_rows++] = row;
    return SHL_OK;
fail:
    free_row(row);
    return code;
}

/* What the table leaves unsaid: units, dtypes, and the values that are the same in every row. */
static void
add_caption(const shl_output *out, shl_str *text)
{
    const shl_run_record *r = &out->rows[0]->record;
    const shl_engine_config *e = &out->rows[0]->cfg->engine;
    char params[32], policy[SHL_DTYPE_POLICY_TEXT_BYTES];
    shl_dtype_policy_text(e, policy, sizeof(policy));
    shl_format_count(r->params, params, sizeof(params));
    shl_str_add(text,
                "MiB (2^20 bytes) of the worst rank; AG, RS, AR: calls and bytes per rank and "
                "step.\nFirst row: %s; B %lld, T %lld, accumulation %lld, %lld "
                "threads per rank, %s of %s parameters.\n",
                policy, (long long)r->batch, (long long)r->seq, (long long)r->accum,
                (long long)r->threads, r->model, params);
    if (r->card) {
        shl_str_add(text,
                    "Kernels of the first row: attention forward %s, backward %s; products %s.\n",
                    r->attention_forward ? r->attention_forward : "none",
                    r->attention_backward ? r->attention_backward : "none",
                    r->product ? r->product : "none");
    }
}

static shl_code
print_table(const shl_output *out)
{
    const void **records = NULL;
    size_t n;
    const shl_field *fields = shl_run_fields(&n);
    shl_str text = {0};
    SHL_TRY(shl_heap_alloc(out->n_rows, sizeof(*records), &records));
    for (size_t i = 0; i < out->n_rows; i++) {
        records[i] = &out->rows[i]->record;
    }
    shl_code code =
        shl_record_table(fields, n, records, out->n_rows, out->form == SHL_FORM_MD, &text);
    if (out->form == SHL_FORM_TABLE) {
        add_caption(out, &text);
    }
    if (code == SHL_OK) {
        code = shl_cli_print(&text);
    }
    shl_str_fini(&text);
    shl_heap_free(&records);
    return code;
}

static shl_code
print_array(const shl_output *out)
{
    shl_str text = {0};
    char *dump = json_dumps(out->all, JSON_INDENT(1));
    json_free_t release;
    json_get_alloc_funcs(NULL, &release);
    if (dump) {
        shl_str_add(&text, "%s\n", dump);
    }
    text.failed = text.failed || !dump;
    release(dump);
    shl_code code = shl_cli_print(&text);
    shl_str_fini(&text);
    return code;
}

shl_code
shl_output_finish(shl_output *out)
{
    if (out->n_rows == 0) {
        return SHL_OK;
    }
    switch (out->form) {
    case SHL_FORM_JSON:
        return print_array(out);
    case SHL_FORM_TABLE:
    case SHL_FORM_MD:
        return print_table(out);
    case SHL_FORM_JSONL:
    case SHL_FORM_CSV:
        break;
    }
    return SHL_OK;
}

void
shl_output_close(shl_output *out)
{
    for (size_t i = 0; i < out->n_rows; i++) {
        free_row(out->rows[i]);
    }
    shl_heap_free(&out->rows);
    json_decref(out->fingerprint);
    json_decref(out->argv);
    json_decref(out->all);
    if (out->file) {
        /* A run that told nothing leaves no empty file behind. */
        bool empty = ftell(out->file) == 0;
        (void)fclose(out->file);
        if (out->file_is_new && empty) {
            (void)unlink(out->path);
        }
    }
    memset(out, 0, sizeof(*out));
}

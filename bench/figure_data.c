/* bench: what figures need of the records of a run, read from JSON Lines. Records of other kinds and
 * fields of other figures are passed over, so that records may grow. */
#include "bench/figures.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include <jansson.h>

#include "kernels/base/heap.h"
#include "kernels/base/str.h"

static shl_code
raise_io(const char *path, int error)
{
    (void)SHL_RAISE(SHL_E_IO, "cannot read records '%s'", path);
    (void)shl_err_because("%s", strerror(error));
    return shl_err_advice("shardlab train --jsonl > FILE, or shardlab plan --jsonl > FILE");
}

/* The text of a file, one byte longer and zeroed. Owner: caller, shl_heap_free. */
static shl_code
read_text(const char *path, char **text, size_t *len)
{
    *text = NULL;
    FILE *f = fopen(path, "rbe");
    if (!f) {
        return raise_io(path, errno);
    }
    shl_code code = SHL_OK;
    struct stat info;
    if (fstat(fileno(f), &info) != 0) {
        code = raise_io(path, errno);
    } else if (!S_ISREG(info.st_mode)) {
        code = raise_io(path, S_ISDIR(info.st_mode) ? EISDIR : EINVAL);
    } else {
        code = shl_heap_alloc((size_t)info.st_size + 1, 1, text);
    }
    if (code == SHL_OK) {
        *len = fread(*text, 1, (size_t)info.st_size, f);
        if (ferror(f)) {
            code = raise_io(path, errno);
            shl_heap_free(text);
        }
    }
    (void)fclose(f);
    return code;
}

/* Where a record stands, for messages. */
typedef struct place {
    const char *path;
    int64_t line;
} place;

static shl_code
raise_record(place at, const char *because)
{
    (void)SHL_RAISE(SHL_E_CONFIG, "%s:%" PRId64 ": not a record that can be drawn", at.path,
                    at.line);
    return shl_err_because("%s", because);
}

static shl_code
get_text(place at, const json_t *object, const char *key, char *dst, size_t dst_bytes)
{
    const char *text = json_string_value(json_object_get(object, key));
    if (!text) {
        char because[96];
        shl_strf(because, sizeof because, "the text \"%s\" is missing", key);
        return raise_record(at, because);
    }
    shl_strf(dst, dst_bytes, "%s", text);
    return SHL_OK;
}

static shl_code
get_count(place at, const json_t *object, const char *key, bool required, int64_t *out)
{
    const json_t *value = json_object_get(object, key);
    *out = json_is_integer(value) ? (int64_t)json_integer_value(value) : 0;
    if ((value || required) && (!json_is_integer(value) || *out < 0)) {
        char because[96];
        shl_strf(because, sizeof because, "the number \"%s\" is %s", key,
                 value ? "not a whole number of zero or more" : "missing");
        return raise_record(at, because);
    }
    return SHL_OK;
}

/* A count that a record may lack or hold as null: 0 then. */
static shl_code
get_optional(place at, const json_t *object, const char *key, int64_t *out)
{
    *out = 0;
    return json_is_null(json_object_get(object, key)) ? SHL_OK
                                                      : get_count(at, object, key, false, out);
}

/* Every tag of an object that sums to total. */
static shl_code
get_tags(place at, const json_t *tags, int64_t total, const char *because, int64_t *out)
{
    int64_t sum = 0;
    for (int tag = 0; tag < SHL_TAG_COUNT; tag++) {
        SHL_TRY(get_count(at, tags, shl_tag_name((shl_tag)tag), false, &out[tag]));
        sum += out[tag];
    }
    return sum == total ? SHL_OK : raise_record(at, because);
}

/* What a run did, apart from memory. */
static shl_code
read_rates(place at, const json_t *record, shl_run_row *row)
{
    static const char *const kinds[SHL_COLL_COUNT] = {
        [SHL_COLL_ALL_GATHER] = "all_gather", [SHL_COLL_REDUCE_SCATTER] = "reduce_scatter",
        [SHL_COLL_ALL_REDUCE] = "all_reduce", [SHL_COLL_BROADCAST] = "broadcast",
        [SHL_COLL_CONTROL] = "control",
    };
    const json_t *comm = json_object_get(record, "comm");
    for (int k = 0; k < SHL_COLL_COUNT; k++) {
        const json_t *kind = json_object_get(comm, kinds[k]);
        SHL_TRY(get_optional(at, kind, "wire_bytes", &row->wire_bytes[k]));
    }
    SHL_TRY(get_optional(at, record, "accum", &row->accum));
    SHL_TRY(get_optional(at, record, "threads", &row->threads));
    SHL_TRY(get_optional(at, record, "save_ns", &row->save_ns));
    SHL_TRY(get_optional(at, record, "save_bytes", &row->save_bytes));
    SHL_TRY(get_optional(at, json_object_get(record, "fingerprint"), "cores", &row->cores));
    const char *time = json_string_value(json_object_get(record, "time"));
    const json_t *rate = json_object_get(record, "tokens_per_s");
    if (rate && !json_is_null(rate) && !(json_number_value(rate) >= 0 && json_is_number(rate))) {
        return raise_record(at, "\"tokens_per_s\" is not a number of zero or more");
    }
    row->tokens_per_s = time && strcmp(time, "measured") == 0 ? json_number_value(rate) : 0;
    return SHL_OK;
}

static shl_code
read_run(shl_figure_data *d, place at, const json_t *record)
{
    shl_run_row row = {0};
    SHL_TRY(get_text(at, record, "model", row.model, sizeof row.model));
    SHL_TRY(get_text(at, record, "strategy", row.strategy, sizeof row.strategy));
    SHL_TRY(get_count(at, record, "ranks", true, &row.ranks));
    SHL_TRY(get_count(at, record, "batch", false, &row.batch));
    SHL_TRY(get_count(at, record, "seq", false, &row.seq));
    const json_t *peak = json_object_get(json_object_get(record, "peak_bytes"), "device");
    SHL_TRY(get_count(at, peak, "total", true, &row.peak_bytes));
    const json_t *tags = json_object_get(record, "at_peak");
    const json_t *device = json_object_get(tags, "device");
    tags = device ? device : tags;
    SHL_TRY(get_tags(at, tags, row.peak_bytes,
                     "the tags in \"at_peak\" do not add up to the peak's total",
                     row.at_peak_bytes));
    if (row.ranks < 1) {
        return raise_record(at, "\"ranks\" is below 1");
    }
    SHL_TRY(read_rates(at, record, &row));
    if (d->n_runs == d->cap_runs) {
        size_t cap = d->cap_runs ? 2 * d->cap_runs : 64;
        SHL_TRY(shl_heap_grow(&d->runs, d->cap_runs, cap, sizeof row));
        d->cap_runs = cap;
    }
    d->runs[d->n_runs++] = row;
    return SHL_OK;
}

static shl_code
read_loss(shl_step_row **rows, size_t *n, size_t *cap, place at, const json_t *record)
{
    shl_step_row row = {0};
    SHL_TRY(get_text(at, record, "strategy", row.strategy, sizeof row.strategy));
    SHL_TRY(get_count(at, record, "ranks", true, &row.ranks));
    SHL_TRY(get_count(at, record, "step", true, &row.step));
    const json_t *loss = json_object_get(record, "loss");
    if (json_is_null(loss)) {
        return SHL_OK; /* a step of the virtual device */
    }
    if (!json_is_number(loss)) {
        return raise_record(at, "the number \"loss\" is missing");
    }
    row.loss = json_number_value(loss);
    if (*n == *cap) {
        size_t more = *cap ? 2 * *cap : 256;
        SHL_TRY(shl_heap_grow(rows, *cap, more, sizeof row));
        *cap = more;
    }
    (*rows)[(*n)++] = row;
    return SHL_OK;
}

/* An event goes on from the one before it, whose total and its delta make its own. */
static shl_code
check_event(const shl_figure_data *d, place at, const shl_event_row *row)
{
    const shl_event_row *before = d->n_events > 0 ? &d->events[d->n_events - 1] : NULL;
    if (row->at == 0) {
        return SHL_OK;
    }
    bool same = before && before->ranks == row->ranks && before->at < row->at &&
                before->step == row->step && strcmp(before->strategy, row->strategy) == 0 &&
                strcmp(before->model, row->model) == 0;
    if (!same) {
        return raise_record(at, "the event does not go on from the one before it");
    }
    return before->total_bytes + row->delta_bytes == row->total_bytes
               ? SHL_OK
               : raise_record(at, "\"total_bytes\" is not the total before and \"delta_bytes\"");
}

static shl_code
read_event(shl_figure_data *d, place at, const json_t *record)
{
    shl_event_row row = {0};
    char tier[16];
    SHL_TRY(get_text(at, record, "tier", tier, sizeof tier));
    if (strcmp(tier, shl_tier_name(SHL_TIER_DEVICE)) != 0) {
        return SHL_OK;
    }
    SHL_TRY(get_text(at, record, "model", row.model, sizeof row.model));
    SHL_TRY(get_text(at, record, "strategy", row.strategy, sizeof row.strategy));
    SHL_TRY(get_count(at, record, "ranks", true, &row.ranks));
    SHL_TRY(get_count(at, record, "batch", false, &row.batch));
    SHL_TRY(get_count(at, record, "seq", false, &row.seq));
    SHL_TRY(get_count(at, record, "step", true, &row.step));
    SHL_TRY(get_count(at, record, "at", true, &row.at));
    SHL_TRY(get_count(at, record, "total_bytes", true, &row.total_bytes));
    if (row.at > 0) {
        SHL_TRY(get_text(at, record, "phase", row.phase, sizeof row.phase));
        SHL_TRY(get_text(at, record, "owner", row.owner, sizeof row.owner));
    }
    const json_t *delta = json_object_get(record, "delta_bytes");
    if (!json_is_integer(delta)) {
        return raise_record(at, "the number \"delta_bytes\" is missing");
    }
    row.delta_bytes = (int64_t)json_integer_value(delta);
    SHL_TRY(get_tags(at, json_object_get(record, "bytes"), row.total_bytes,
                     "the tags in \"bytes\" do not add up to \"total_bytes\"", row.tag_bytes));
    SHL_TRY(check_event(d, at, &row));
    if (d->n_events == d->cap_events) {
        size_t cap = d->cap_events ? 2 * d->cap_events : 256;
        SHL_TRY(shl_heap_grow(&d->events, d->cap_events, cap, sizeof row));
        d->cap_events = cap;
    }
    d->events[d->n_events++] = row;
    return SHL_OK;
}

static shl_code
read_line(shl_figure_data *d, place at, const char *line, size_t len)
{
    json_error_t error;
    json_t *record = json_loadb(line, len, JSON_REJECT_DUPLICATES, &error);
    if (!record) {
        char because[200];
        shl_strf(because, sizeof because, "column %d: %s", error.column, error.text);
        return raise_record(at, because);
    }
    shl_code code = SHL_OK;
    const char *kind = json_string_value(json_object_get(record, "kind"));
    if (!kind) {
        code = raise_record(at, "the text \"kind\" is missing");
    } else if (strcmp(kind, "run") == 0) {
        code = read_run(d, at, record);
    } else if (strcmp(kind, "step") == 0) {
        code = read_loss(&d->steps, &d->n_steps, &d->cap_steps, at, record);
    } else if (strcmp(kind, "eval") == 0) {
        code = read_loss(&d->evals, &d->n_evals, &d->cap_evals, at, record);
    } else if (strcmp(kind, "event") == 0) {
        code = read_event(d, at, record);
    }
    json_decref(record);
    return code;
}

shl_code
shl_figure_data_read(shl_figure_data *d, const char *path)
{
    char *text = NULL;
    size_t len = 0;
    SHL_TRY(read_text(path, &text, &len));
    shl_code code = SHL_OK;
    place at = {path, 0};
    for (size_t begin = 0; begin < len && code == SHL_OK;) {
        size_t end = begin;
        while (end < len && text[end] != '\n') {
            end++;
        }
        at.line++;
        if (end > begin + strspn(text + begin, " \t\r")) {
            code = read_line(d, at, text + begin, end - begin);
        }
        begin = end + 1;
    }
    shl_heap_free(&text);
    return code;
}

void
shl_figure_data_fini(shl_figure_data *d)
{
    shl_heap_free(&d->runs);
    shl_heap_free(&d->steps);
    shl_heap_free(&d->evals);
    shl_heap_free(&d->events);
    *d = (shl_figure_data){0};
}

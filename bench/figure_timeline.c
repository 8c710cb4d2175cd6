/* bench: figures: memory over one step: one panel per strategy, what each tag holds behind every event,
 * the phases as bands and the first moment of the peak. */
#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "bench/figures_impl.h"
#include "kernels/base/heap.h"

#define MAX_PANELS 6

/* One time line: events[first, first + n). */
typedef struct trace {
    const shl_event_row *events;
    size_t n;
} trace;

/* The next time line of d behind *at. */
static bool
next_trace(const shl_figure_data *d, size_t *at, trace *out)
{
    if (*at >= d->n_events) {
        return false;
    }
    *out = (trace){&d->events[*at], 1};
    while (*at + out->n < d->n_events && out->events[out->n].at > 0) {
        out->n++;
    }
    *at += out->n;
    return true;
}

static bool
is_chosen(const shl_event_row *e, const shl_figure_choice *choice)
{
    return (!choice->model || strcmp(e->model, choice->model) == 0) &&
           (!choice->strategy || strcmp(e->strategy, choice->strategy) == 0);
}

static shl_code
raise_models(const char *a, const char *b)
{
    (void)SHL_RAISE(SHL_E_USAGE, "the event records are of several models");
    (void)shl_err_because("%s and %s among them, a figure shows one", a, b);
    return shl_err_advice("--model %s", b);
}

/* The rank count, by the time lines that begin. *last is the last one that is chosen. */
static shl_code
choose(const shl_figure_data *d, const shl_figure_choice *choice, int64_t *ranks,
       const shl_event_row **last)
{
    shl_figure_key *keys = NULL;
    size_t n = 0;
    shl_code code = SHL_OK;
    *last = NULL;
    SHL_TRY(shl_heap_alloc(d->n_events, sizeof *keys, &keys));
    trace t;
    for (size_t at = 0; code == SHL_OK && next_trace(d, &at, &t);) {
        if (t.n > 1 && is_chosen(t.events, choice)) {
            bool same = !*last || strcmp((*last)->model, t.events->model) == 0;
            code = same ? SHL_OK : raise_models((*last)->model, t.events->model);
            *last = t.events;
            keys[n++] = (shl_figure_key){t.events->strategy, t.events->ranks};
        }
    }
    if (code == SHL_OK && n == 0) {
        bool by_model = choice->model && strcmp(choice->model, d->events[0].model) != 0;
        code = shl_figure_raise_no_match(by_model ? "model" : "strategy",
                                         by_model ? choice->model : choice->strategy,
                                         by_model ? d->events[0].model : d->events[0].strategy);
    }
    code = code == SHL_OK ? shl_figure_ranks(keys, n, choice->ranks, ranks) : code;
    shl_heap_free(&keys);
    return code;
}

static const shl_event_row *
find_peak(const trace *t)
{
    const shl_event_row *peak = t->events;
    for (size_t i = 0; i < t->n; i++) {
        peak = t->events[i].total_bytes > peak->total_bytes ? &t->events[i] : peak;
    }
    return peak;
}

/* One corner of the steps: an event that changed held by delta. */
static void
add_corner(shl_str *data, const shl_event_row *e, const shl_event_row *held, int64_t delta)
{
    shl_str_add(data, "\n%" PRId64 " ", e->at);
    shl_figure_add_word(data, e->phase);
    shl_str_add(data, " %" PRId64 " %" PRId64, delta, held->total_bytes);
    for (int tag = 0; tag < SHL_TAG_COUNT; tag++) {
        shl_str_add(data, " %" PRId64, held->tag_bytes[tag]);
    }
}

/* Three blocks: the events, each with what was held until then (delta 0) and behind it; the phases with the first event of each and of the next; the peak. */
static void
add_trace(shl_str *data, const trace *t)
{
    const shl_event_row *peak = find_peak(t), *last = &t->events[t->n - 1];
    shl_str_add(data, "# ");
    shl_figure_add_word(data, last->strategy);
    shl_str_add(data, ": at phase delta total");
    shl_figure_add_tags(data);
    for (size_t i = 0; i < t->n; i++) {
        const shl_event_row *e = &t->events[i];
        if (i > 0) {
            add_corner(data, e, &t->events[i - 1], 0);
        }
        add_corner(data, e, e, e->delta_bytes);
    }
    shl_str_add(data, "\n\n\n# from to phase\n");
    for (size_t i = 1; i < t->n;) {
        size_t first = i;
        while (i < t->n && strcmp(t->events[i].phase, t->events[first].phase) == 0) {
            i++;
        }
        shl_str_add(data, "%" PRId64 " %" PRId64 " ", first == 1 ? 0 : t->events[first].at,
                    i < t->n ? t->events[i].at : last->at + 1);
        shl_figure_add_word(data, t->events[first].phase);
        shl_str_add(data, "\n");
    }
    shl_str_add(data, "\n\n# at total phase owner\n%" PRId64 " %" PRId64 " ", peak->at,
                peak->total_bytes);
    shl_figure_add_word(data, peak->phase);
    shl_str_add(data, " ");
    shl_figure_add_word(data, peak->owner);
    shl_str_add(data, "\n\n\n");
}

static void
lay_timeline(const trace *traces, const shl_series *s, const shl_figure_choice *choice,
             shl_str *data, shl_str *vars)
{
    const shl_event_row *any = traces[0].events;
    int64_t largest = 1;
    bool used[SHL_TAG_COUNT] = {false};
    for (int k = 0; k < s->n; k++) {
        int64_t peak = find_peak(&traces[k])->total_bytes;
        largest = peak > largest ? peak : largest;
    }
    for (int k = 0; k < s->n; k++) {
        add_trace(data, &traces[k]);
        for (size_t i = 0; i < traces[k].n; i++) {
            for (int tag = 0; tag < SHL_TAG_COUNT; tag++) {
                int64_t bytes = traces[k].events[i].tag_bytes[tag];
                used[tag] = used[tag] || (double)bytes >= 1e-3 * (double)largest;
            }
        }
    }
    char rest[64];
    shl_strf(rest, sizeof rest, ", %" PRId64 " rank%s: step %" PRId64 " of rank 0", any->ranks,
             any->ranks == 1 ? "" : "s", any->step);
    shl_figure_add_heading(vars, any->model, any->batch, any->seq, rest);
    shl_figure_add_units(vars, largest, choice->limit_bytes);
    shl_figure_add_series(vars, s);
    shl_figure_add_used(vars, used, SHL_TAG_COUNT);
    shl_str_add(vars, "ends = \"");
    for (int k = 0; k < s->n; k++) {
        shl_str_add(vars, "%" PRId64 " ", traces[k].events[traces[k].n - 1].at + 1);
    }
    shl_str_add(vars, "\"\npeaks = \"");
    for (int k = 0; k < s->n; k++) {
        shl_str_add(vars, "%" PRId64 ".0 ", find_peak(&traces[k])->total_bytes);
    }
    shl_str_add(vars, "\"\nphases = \"");
    for (int k = 0; k < s->n; k++) {
        shl_figure_add_word(vars, find_peak(&traces[k])->phase);
        shl_str_add(vars, " ");
    }
    double top = fmax(1.3 * (double)largest, 1.05 * (double)choice->limit_bytes);
    shl_str_add(vars, "\"\ntop = %.1f / scale\n", top);
}

shl_code
shl_figure_write_timeline(const shl_figure_data *d, const shl_figure_choice *choice)
{
    const shl_figure f = SHL_FIGURE_TIMELINE;
    const shl_event_row *last;
    trace traces[SHL_FIGURE_MAX_SERIES], t;
    shl_series s = {0};
    int64_t ranks = 0;
    shl_str data = {0}, vars = {0};
    if (d->n_events == 0) {
        return shl_figure_raise_no_data(f);
    }
    SHL_TRY(choose(d, choice, &ranks, &last));
    for (size_t at = 0; next_trace(d, &at, &t);) {
        const shl_event_row *e = t.events;
        bool same = t.n > 1 && e->ranks == ranks && e->batch == last->batch && e->seq == last->seq;
        int k = same && is_chosen(e, choice) ? shl_series_of(&s, e->strategy) : -1;
        if (k >= 0) {
            traces[k] = t;
        }
    }
    if (s.n < 1 || s.n > MAX_PANELS) {
        (void)SHL_RAISE(SHL_E_USAGE, "%d strategies have a time line to draw", s.n);
        (void)shl_err_because("with batch %" PRId64 " x %" PRId64 " on %" PRId64
                              " ranks; a figure has 1 to %d panels",
                              last->batch, last->seq, ranks, MAX_PANELS);
        return shl_err_advice("--strategy %s --ranks %" PRId64, last->strategy, last->ranks);
    }
    lay_timeline(traces, &s, choice, &data, &vars);
    return shl_figure_write_pair(choice->out_dir, f, &data, &vars);
}

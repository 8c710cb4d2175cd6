/* bench: figures: which records one shows: a model, a rank count, a batch and a sequence length. */
#include <inttypes.h>
#include <string.h>

#include "bench/figures_impl.h"
#include "kernels/base/heap.h"

int
shl_series_of(shl_series *s, const char *strategy)
{
    for (int i = 0; i < s->n; i++) {
        if (strcmp(s->name[i], strategy) == 0) {
            return i;
        }
    }
    if (s->n == SHL_FIGURE_MAX_SERIES) {
        return -1;
    }
    s->name[s->n] = strategy;
    return s->n++;
}

shl_code
shl_figure_raise_no_match(const char *what, const char *asked, const char *first)
{
    (void)SHL_RAISE(SHL_E_USAGE, "no record of this figure is of %s %s", what, asked);
    (void)shl_err_because("the first one is of %s", first);
    return shl_err_advice("--%s %s", what, first);
}

/* Whether a record has what the figure is about. */
static bool
is_shown(const shl_run_row *row, shl_figure f)
{
    int64_t sent = 0;
    for (int k = 0; k < SHL_COLL_COUNT; k++) {
        sent += row->wire_bytes[k];
    }
    if (f == SHL_FIGURE_WIRE) {
        return sent > 0;
    }
    if (f == SHL_FIGURE_THROUGHPUT) {
        return row->tokens_per_s > 0 && row->cores > 0;
    }
    return f != SHL_FIGURE_CHECKPOINT || (row->save_ns > 0 && row->save_bytes > 0);
}

/* A bar or a point stands for one batch; these figures are about several, or about none. */
static bool
is_of_one_batch(shl_figure f)
{
    return f != SHL_FIGURE_SPLIT && f != SHL_FIGURE_CHECKPOINT;
}

static void
keep_batch(shl_picked *p)
{
    const shl_run_row *last = p->rows[p->n - 1];
    size_t n = 0;
    for (size_t i = 0; i < p->n; i++) {
        const shl_run_row *row = p->rows[i];
        bool same = row->batch == last->batch && row->seq == last->seq && row->accum == last->accum;
        if (same) {
            p->rows[n++] = row;
        }
    }
    p->n = n;
}

/* Narrows to the model asked for, or the only one. */
static shl_code
keep_model(shl_picked *p, const char *asked)
{
    const char *first = p->rows[0]->model, *model = asked ? asked : first;
    size_t n = 0;
    for (size_t i = 0; i < p->n; i++) {
        const shl_run_row *row = p->rows[i];
        if (strcmp(row->model, model) == 0) {
            p->rows[n++] = row;
        } else if (!asked) {
            (void)SHL_RAISE(SHL_E_USAGE, "the records are of several models");
            (void)shl_err_because("%s and %s among them, a figure shows one", model, row->model);
            return shl_err_advice("--model %s", row->model);
        }
    }
    p->n = n;
    return n > 0 ? SHL_OK : shl_figure_raise_no_match("model", asked, first);
}

static shl_code
keep_strategy(shl_picked *p, const char *asked)
{
    const char *first = p->rows[0]->strategy;
    size_t n = 0;
    for (size_t i = 0; i < p->n; i++) {
        if (strcmp(p->rows[i]->strategy, asked) == 0) {
            p->rows[n++] = p->rows[i];
        }
    }
    p->n = n;
    return n > 0 ? SHL_OK : shl_figure_raise_no_match("strategy", asked, first);
}

static shl_code
narrow(shl_picked *p, shl_figure f, const shl_figure_choice *choice)
{
    if (choice->model || f != SHL_FIGURE_CHECKPOINT) {
        SHL_TRY(keep_model(p, choice->model));
    }
    if (choice->strategy) {
        SHL_TRY(keep_strategy(p, choice->strategy));
    }
    if (is_of_one_batch(f)) {
        keep_batch(p);
    }
    return SHL_OK;
}

shl_code
shl_figure_pick(const shl_figure_data *d, shl_figure f, const shl_figure_choice *choice,
                shl_picked *out)
{
    *out = (shl_picked){0};
    if (d->n_runs == 0) {
        return shl_figure_raise_no_data(f);
    }
    SHL_TRY(shl_heap_alloc(d->n_runs, sizeof(*out->rows), &out->rows));
    for (size_t i = 0; i < d->n_runs; i++) {
        if (is_shown(&d->runs[i], f)) {
            out->rows[out->n++] = &d->runs[i];
        }
    }
    shl_code code = out->n > 0 ? narrow(out, f, choice) : shl_figure_raise_no_data(f);
    if (code != SHL_OK) {
        shl_heap_free(&out->rows);
    }
    return code;
}

/* Strategies with a key at this rank count. */
static int
count_strategies(const shl_figure_key *keys, size_t n, int64_t ranks)
{
    shl_series seen = {0};
    for (size_t i = 0; i < n; i++) {
        if (keys[i].ranks == ranks) {
            (void)shl_series_of(&seen, keys[i].strategy);
        }
    }
    return seen.n;
}

shl_code
shl_figure_ranks(const shl_figure_key *keys, size_t n, int64_t asked, int64_t *out)
{
    *out = asked;
    if (asked) {
        if (count_strategies(keys, n, asked) > 0) {
            return SHL_OK;
        }
        (void)SHL_RAISE(SHL_E_USAGE, "no record of this figure is of %" PRId64 " ranks", asked);
        return shl_err_because("the first one is of %" PRId64, keys[0].ranks);
    }
    int most = 0;
    int64_t last = -1;
    for (size_t i = 0; i < n; i++) {
        int64_t ranks = keys[i].ranks;
        if (ranks == last) {
            continue; /* records of one run stand together */
        }
        last = ranks;
        int count = count_strategies(keys, n, ranks);
        bool better = count > most || (count == most && ranks > 1 && (*out == 1 || ranks < *out));
        if (better) {
            most = count;
            *out = ranks;
        }
    }
    return SHL_OK;
}

shl_code
shl_figure_pick_ranks(shl_picked *p, int64_t asked)
{
    shl_figure_key *keys = NULL;
    int64_t ranks = 0;
    SHL_TRY(shl_heap_alloc(p->n, sizeof(*keys), &keys));
    for (size_t i = 0; i < p->n; i++) {
        keys[i] = (shl_figure_key){p->rows[i]->strategy, p->rows[i]->ranks};
    }
    shl_code code = shl_figure_ranks(keys, p->n, asked, &ranks);
    shl_heap_free(&keys);
    size_t n = 0;
    for (size_t i = 0; i < p->n && code == SHL_OK; i++) {
        if (p->rows[i]->ranks == ranks) {
            p->rows[n++] = p->rows[i];
        }
    }
    p->n = n;
    return code;
}

void
shl_figure_latest(const shl_picked *p, shl_series *s, const shl_run_row **rows)
{
    for (size_t i = 0; i < p->n; i++) {
        int k = shl_series_of(s, p->rows[i]->strategy);
        if (k >= 0) {
            rows[k] = p->rows[i];
        }
    }
}

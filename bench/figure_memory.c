/* bench: figures: peaks of the worst rank: by tag, against ranks, and against sequence length and batch. */
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bench/figures_impl.h"
#include "kernels/base/heap.h"

/* What is below a thousandth of the tallest bar cannot be seen and gets no key. */
#define VISIBLE 1e-3

static void
lay_by_tag(const shl_picked *p, const shl_figure_choice *choice, shl_str *data, shl_str *vars)
{
    shl_series s = {0};
    const shl_run_row *rows[SHL_FIGURE_MAX_SERIES] = {0};
    int64_t largest = 1, ranks = p->rows[0]->ranks;
    bool used[SHL_TAG_COUNT] = {false};
    char rest[64];
    shl_figure_latest(p, &s, rows);
    for (int i = 0; i < s.n; i++) {
        largest = rows[i]->peak_bytes > largest ? rows[i]->peak_bytes : largest;
    }
    shl_str_add(data, "# strategy total");
    shl_figure_add_tags(data);
    for (int i = 0; i < s.n; i++) {
        shl_str_add(data, "\n");
        shl_figure_add_word(data, s.name[i]);
        shl_str_add(data, " %" PRId64, rows[i]->peak_bytes);
        for (int tag = 0; tag < SHL_TAG_COUNT; tag++) {
            int64_t bytes = rows[i]->at_peak_bytes[tag];
            shl_str_add(data, " %" PRId64, bytes);
            used[tag] = used[tag] || (double)bytes >= VISIBLE * (double)largest;
        }
    }
    shl_str_add(data, "\n");
    shl_strf(rest, sizeof rest, ", %" PRId64 " rank%s", ranks, ranks == 1 ? "" : "s");
    shl_figure_add_heading(vars, rows[0]->model, rows[0]->batch, rows[0]->seq, rest);
    shl_figure_add_units(vars, largest, choice->limit_bytes);
    shl_figure_add_used(vars, used, SHL_TAG_COUNT);
    double top = fmax((double)largest, (double)choice->limit_bytes);
    shl_str_add(vars, "bars = %d\ntop = %.1f / scale\n", s.n, 1.12 * top);
}

shl_code
shl_figure_write_by_tag(const shl_figure_data *d, const shl_figure_choice *choice)
{
    const shl_figure f = SHL_FIGURE_MEMORY_BY_TAG;
    shl_picked p;
    shl_str data = {0}, vars = {0};
    SHL_TRY(shl_figure_pick(d, f, choice, &p));
    shl_code code = shl_figure_pick_ranks(&p, choice->ranks);
    if (code == SHL_OK) {
        lay_by_tag(&p, choice, &data, &vars);
        code = shl_figure_write_pair(choice->out_dir, f, &data, &vars);
    }
    shl_heap_free(&p.rows);
    return code;
}

/* ---- against ranks ---- */

static int
compare_ranks(const void *a, const void *b)
{
    const shl_run_row *x = *(const shl_run_row *const *)a, *y = *(const shl_run_row *const *)b;
    if (x->ranks != y->ranks) {
        return x->ranks < y->ranks ? -1 : 1;
    }
    return (x > y) - (x < y); /* both lie in one array: file order */
}

/* Appends one strategy's block of rows sorted by ranks; of equals the last counts. */
static void
add_block(shl_str *data, const char *strategy, const shl_picked *p)
{
    const shl_run_row *pending = NULL;
    shl_str_add(data, "# ");
    shl_figure_add_word(data, strategy);
    shl_str_add(data, "\n");
    for (size_t i = 0; i <= p->n; i++) {
        const shl_run_row *row = i < p->n ? p->rows[i] : NULL;
        if (row && strcmp(row->strategy, strategy) != 0) {
            continue;
        }
        if (pending && (!row || row->ranks != pending->ranks)) {
            shl_str_add(data, "%" PRId64 " %" PRId64 "\n", pending->ranks, pending->peak_bytes);
        }
        pending = row;
    }
    shl_str_add(data, "\n\n");
}

static void
lay_vs_ranks(const shl_picked *p, const shl_figure_choice *choice, shl_str *data, shl_str *vars)
{
    const shl_run_row *first = p->rows[0], *last = p->rows[p->n - 1];
    int64_t largest = 1, smallest = INT64_MAX;
    shl_series s = {0};
    for (size_t i = 0; i < p->n; i++) {
        int64_t bytes = p->rows[i]->peak_bytes;
        largest = bytes > largest ? bytes : largest;
        smallest = bytes < smallest ? bytes : smallest;
        (void)shl_series_of(&s, p->rows[i]->strategy);
    }
    for (int k = 0; k < s.n; k++) {
        add_block(data, s.name[k], p);
    }
    shl_figure_add_heading(vars, first->model, first->batch, first->seq, ": memory against ranks");
    shl_figure_add_units(vars, largest, choice->limit_bytes);
    shl_figure_add_series(vars, &s);
    shl_str_add(vars,
                "first_ranks = %" PRId64 ".0\nlast_ranks = %" PRId64 ".0\nguide = %" PRId64 ".0\n",
                first->ranks, last->ranks, first->peak_bytes);
    double top = fmax((double)largest, (double)choice->limit_bytes);
    double bottom = choice->limit_bytes ? fmin((double)smallest, (double)choice->limit_bytes)
                                        : (double)smallest;
    shl_str_add(vars, "bottom = %.1f / scale\ntop = %.1f / scale\n", 0.5 * bottom, 2 * top);
}

shl_code
shl_figure_write_vs_ranks(const shl_figure_data *d, const shl_figure_choice *choice)
{
    const shl_figure f = SHL_FIGURE_MEMORY_VS_RANKS;
    shl_picked p;
    shl_str data = {0}, vars = {0};
    SHL_TRY(shl_figure_pick(d, f, choice, &p));
    shl_code code = SHL_OK;
    qsort(p.rows, p.n, sizeof *p.rows, compare_ranks);
    if (p.rows[0]->ranks == p.rows[p.n - 1]->ranks) {
        code = shl_figure_raise_no_data(f);
    } else {
        lay_vs_ranks(&p, choice, &data, &vars);
        code = shl_figure_write_pair(choice->out_dir, f, &data, &vars);
    }
    shl_heap_free(&p.rows);
    return code;
}

/* ---- state and activations ---- */

static int
compare_batches(const void *a, const void *b)
{
    const shl_run_row *x = *(const shl_run_row *const *)a, *y = *(const shl_run_row *const *)b;
    if (x->batch != y->batch) {
        return x->batch < y->batch ? -1 : 1;
    }
    if (x->seq != y->seq) {
        return x->seq < y->seq ? -1 : 1;
    }
    return (x > y) - (x < y);
}

static bool
is_same_batch(const shl_run_row *x, const shl_run_row *y)
{
    return x->batch == y->batch && x->seq == y->seq;
}

/* The rank count with the most batches and sequence lengths, unless one is asked for. */
static shl_code
keep_ranks(shl_picked *p, int64_t asked)
{
    shl_figure_key *keys = NULL;
    char(*labels)[48] = NULL;
    int64_t ranks = 0;
    shl_code code;
    SHL_TRY(shl_heap_alloc(p->n, sizeof *keys, &keys));
    SHL_TRY_TO(code, done, shl_heap_alloc(p->n, sizeof *labels, &labels));
    for (size_t i = 0; i < p->n; i++) {
        shl_strf(labels[i], sizeof labels[i], "%" PRId64 " x %" PRId64, p->rows[i]->batch,
                 p->rows[i]->seq);
        keys[i] = (shl_figure_key){labels[i], p->rows[i]->ranks};
    }
    SHL_TRY_TO(code, done, shl_figure_ranks(keys, p->n, asked, &ranks));
    code = shl_figure_pick_ranks(p, ranks);
done:
    shl_heap_free(&labels);
    shl_heap_free(&keys);
    return code;
}

/* The last record of each batch and sequence length, sorted. */
static void
keep_last(shl_picked *p)
{
    size_t n = 0;
    qsort(p->rows, p->n, sizeof *p->rows, compare_batches);
    for (size_t i = 0; i < p->n; i++) {
        if (i + 1 == p->n || !is_same_batch(p->rows[i], p->rows[i + 1])) {
            p->rows[n++] = p->rows[i];
        }
    }
    p->n = n;
}

/* Bars of one batch stand together; a second block names the groups at their middle. */
static void
lay_split(const shl_picked *p, const shl_figure_choice *choice, shl_str *data, shl_str *vars)
{
    shl_str groups = {0};
    int64_t largest = 1;
    int at = 0, first = 0, n_groups = 0;
    shl_str_add(data, "# place batch seq state activations temporary total\n");
    for (size_t i = 0; i < p->n; i++) {
        const shl_run_row *row = p->rows[i];
        const int64_t *held = row->at_peak_bytes;
        int64_t state =
            held[SHL_TAG_PARAM] + held[SHL_TAG_GRAD] + held[SHL_TAG_MASTER] + held[SHL_TAG_OPTIM];
        int64_t rest = row->peak_bytes - state - held[SHL_TAG_ACT];
        shl_str_add(data,
                    "%d %" PRId64 " %" PRId64 " %" PRId64 " %" PRId64 " %" PRId64 " %" PRId64 "\n",
                    at, row->batch, row->seq, state, held[SHL_TAG_ACT], rest, row->peak_bytes);
        largest = row->peak_bytes > largest ? row->peak_bytes : largest;
        if (i + 1 == p->n || p->rows[i + 1]->batch != row->batch) {
            shl_str_add(&groups, "%.1f %" PRId64 "\n", 0.5 * (first + at), row->batch);
            n_groups++;
            first = at + 2;
            at++;
        }
        at++;
    }
    shl_str_add(data, "\n\n# middle batch\n%s", shl_str_get(&groups));
    data->failed = data->failed || groups.failed;
    shl_str_fini(&groups);
    char text[256];
    const shl_run_row *any = p->rows[0];
    shl_strf(text, sizeof text, "%s, %s, %" PRId64 " rank%s: what the peak is made of", any->model,
             any->strategy, any->ranks, any->ranks == 1 ? "" : "s");
    shl_figure_add_quoted(vars, "heading", text);
    shl_figure_add_units(vars, largest, choice->limit_bytes);
    double top = fmax((double)largest, (double)choice->limit_bytes);
    shl_str_add(vars, "places = %d\ngroups = %d\ntop = %.1f / scale\n", at - 1, n_groups,
                1.15 * top);
}

shl_code
shl_figure_write_split(const shl_figure_data *d, const shl_figure_choice *choice)
{
    const shl_figure f = SHL_FIGURE_SPLIT;
    shl_figure_choice narrow = *choice;
    shl_picked p;
    shl_str data = {0}, vars = {0};
    SHL_TRY(shl_figure_pick(d, f, &narrow, &p));
    narrow.strategy = p.rows[0]->strategy;
    shl_heap_free(&p.rows);
    SHL_TRY(shl_figure_pick(d, f, &narrow, &p));
    shl_code code = keep_ranks(&p, choice->ranks);
    if (code == SHL_OK) {
        keep_last(&p);
        if (p.n < 2) {
            code = shl_figure_raise_no_data(f);
        } else {
            lay_split(&p, choice, &data, &vars);
            code = shl_figure_write_pair(choice->out_dir, f, &data, &vars);
        }
    }
    shl_heap_free(&p.rows);
    return code;
}

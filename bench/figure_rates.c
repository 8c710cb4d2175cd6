/* bench: figures: what moves: tokens per second against ranks, bytes on the wire, seconds of a save. */
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bench/figures_impl.h"
#include "kernels/base/heap.h"

/* ---- tokens per second ---- */

static int
compare_ranks(const void *a, const void *b)
{
    const shl_run_row *x = *(const shl_run_row *const *)a, *y = *(const shl_run_row *const *)b;
    if (x->ranks != y->ranks) {
        return x->ranks < y->ranks ? -1 : 1;
    }
    return (x > y) - (x < y); /* both lie in one array: file order */
}

static int64_t
busy_threads(const shl_run_row *row)
{
    return row->ranks * (row->threads > 0 ? row->threads : 1);
}

static void
add_rates(shl_str *data, const char *strategy, const shl_picked *p)
{
    const shl_run_row *pending = NULL;
    shl_str_add(data, "# ");
    shl_figure_add_word(data, strategy);
    shl_str_add(data, ": ranks tokens_per_s more_threads_than_cores\n");
    for (size_t i = 0; i <= p->n; i++) {
        const shl_run_row *row = i < p->n ? p->rows[i] : NULL;
        if (row && strcmp(row->strategy, strategy) != 0) {
            continue;
        }
        if (pending && (!row || row->ranks != pending->ranks)) {
            shl_str_add(data, "%" PRId64 " %.17g %d\n", pending->ranks, pending->tokens_per_s,
                        busy_threads(pending) > pending->cores);
        }
        pending = row;
    }
    shl_str_add(data, "\n\n");
}

/* The last block: from the best rate at the fewest ranks, in proportion to the cores that work. Gives its
 * largest value. */
static double
add_guide(shl_str *data, const shl_picked *p)
{
    double largest = 0;
    const shl_run_row *best = p->rows[0];
    int64_t last = 0;
    for (size_t i = 0; i < p->n && p->rows[i]->ranks == best->ranks; i++) {
        best = p->rows[i]->tokens_per_s > best->tokens_per_s ? p->rows[i] : best;
    }
    double used = fmin((double)busy_threads(best), (double)best->cores);
    shl_str_add(data, "# guide: ranks tokens_per_s\n");
    for (size_t i = 0; i < p->n; i++) {
        const shl_run_row *row = p->rows[i];
        if (row->ranks != last) {
            double cores = fmin((double)busy_threads(row), (double)row->cores);
            double rate = best->tokens_per_s * cores / used;
            shl_str_add(data, "%" PRId64 " %.17g\n", row->ranks, rate);
            largest = fmax(largest, rate);
            last = row->ranks;
        }
    }
    return largest;
}

static void
lay_throughput(const shl_picked *p, shl_str *data, shl_str *vars)
{
    const shl_run_row *first = p->rows[0], *last = p->rows[p->n - 1];
    shl_series s = {0};
    double top = 0;
    int over = 0;
    char rest[64];
    for (size_t i = 0; i < p->n; i++) {
        (void)shl_series_of(&s, p->rows[i]->strategy);
        top = fmax(top, p->rows[i]->tokens_per_s);
        over += busy_threads(p->rows[i]) > p->rows[i]->cores;
    }
    for (int k = 0; k < s.n; k++) {
        add_rates(data, s.name[k], p);
    }
    top = fmax(1.1 * top, add_guide(data, p));
    shl_strf(rest, sizeof rest, ", %" PRId64 " core%s", first->cores, first->cores == 1 ? "" : "s");
    shl_figure_add_heading(vars, first->model, first->batch, first->seq, rest);
    shl_figure_add_series(vars, &s);
    shl_str_add(vars, "first_ranks = %" PRId64 ".0\nlast_ranks = %" PRId64 ".0\n", first->ranks,
                last->ranks);
    shl_str_add(vars, "rank_counts = \"");
    for (size_t i = 0; i < p->n; i++) {
        if (i == 0 || p->rows[i]->ranks != p->rows[i - 1]->ranks) {
            shl_str_add(vars, "%s%" PRId64, i ? " " : "", p->rows[i]->ranks);
        }
    }
    shl_str_add(vars, "\"\ntop = %.17g\noversubscribed = %d\n", 1.05 * top, over);
}

shl_code
shl_figure_write_throughput(const shl_figure_data *d, const shl_figure_choice *choice)
{
    const shl_figure f = SHL_FIGURE_THROUGHPUT;
    shl_picked p;
    shl_str data = {0}, vars = {0};
    SHL_TRY(shl_figure_pick(d, f, choice, &p));
    shl_code code = SHL_OK;
    qsort(p.rows, p.n, sizeof *p.rows, compare_ranks);
    if (p.rows[0]->ranks == p.rows[p.n - 1]->ranks) {
        code = shl_figure_raise_no_data(f);
    } else {
        lay_throughput(&p, &data, &vars);
        code = shl_figure_write_pair(choice->out_dir, f, &data, &vars);
    }
    shl_heap_free(&p.rows);
    return code;
}

/* ---- bytes on the wire ---- */

static void
lay_wire(const shl_picked *p, shl_str *data, shl_str *vars)
{
    static const char *const kinds[SHL_COLL_COUNT] = {
        [SHL_COLL_ALL_GATHER] = "all-gather", [SHL_COLL_REDUCE_SCATTER] = "reduce-scatter",
        [SHL_COLL_ALL_REDUCE] = "all-reduce", [SHL_COLL_BROADCAST] = "broadcast",
        [SHL_COLL_CONTROL] = "control",
    };
    shl_series s = {0};
    const shl_run_row *rows[SHL_FIGURE_MAX_SERIES] = {0};
    int64_t total[SHL_FIGURE_MAX_SERIES] = {0}, largest = 1;
    bool used[SHL_COLL_COUNT] = {false};
    shl_figure_latest(p, &s, rows);
    for (int i = 0; i < s.n; i++) {
        for (int k = 0; k < SHL_COLL_COUNT; k++) {
            total[i] += rows[i]->wire_bytes[k];
        }
        largest = total[i] > largest ? total[i] : largest;
    }
    shl_str_add(data, "# strategy total");
    for (int k = 0; k < SHL_COLL_COUNT; k++) {
        shl_str_add(data, " %s", kinds[k]);
    }
    for (int i = 0; i < s.n; i++) {
        shl_str_add(data, "\n");
        shl_figure_add_word(data, s.name[i]);
        shl_str_add(data, " %" PRId64, total[i]);
        for (int k = 0; k < SHL_COLL_COUNT; k++) {
            shl_str_add(data, " %" PRId64, rows[i]->wire_bytes[k]);
            used[k] = used[k] || (double)rows[i]->wire_bytes[k] >= 1e-3 * (double)largest;
        }
    }
    shl_str_add(data, "\n");
    char rest[64];
    int64_t ranks = rows[0]->ranks;
    shl_strf(rest, sizeof rest, ", %" PRId64 " rank%s", ranks, ranks == 1 ? "" : "s");
    shl_figure_add_heading(vars, rows[0]->model, rows[0]->batch, rows[0]->seq, rest);
    shl_figure_add_units(vars, largest, 0);
    shl_str_add(vars, "kinds = \"");
    for (int k = 0; k < SHL_COLL_COUNT; k++) {
        shl_str_add(vars, "%s%s", k ? " " : "", kinds[k]);
    }
    shl_str_add(vars, "\"\n");
    shl_figure_add_used(vars, used, SHL_COLL_COUNT);
    shl_str_add(vars, "bars = %d\ntop = %.1f / scale\n", s.n, 1.12 * (double)largest);
}

shl_code
shl_figure_write_wire(const shl_figure_data *d, const shl_figure_choice *choice)
{
    const shl_figure f = SHL_FIGURE_WIRE;
    shl_picked p;
    shl_str data = {0}, vars = {0};
    SHL_TRY(shl_figure_pick(d, f, choice, &p));
    shl_code code = shl_figure_pick_ranks(&p, choice->ranks);
    if (code == SHL_OK) {
        lay_wire(&p, &data, &vars);
        code = shl_figure_write_pair(choice->out_dir, f, &data, &vars);
    }
    shl_heap_free(&p.rows);
    return code;
}

/* ---- checkpoints ---- */

static int
compare_sizes(const void *a, const void *b)
{
    const shl_run_row *x = *(const shl_run_row *const *)a, *y = *(const shl_run_row *const *)b;
    if (x->save_bytes != y->save_bytes) {
        return x->save_bytes < y->save_bytes ? -1 : 1;
    }
    return (x > y) - (x < y);
}

/* Every save is a point: disks vary, and a spread is worth seeing. */
static void
lay_checkpoint(const shl_picked *p, const shl_series *s, shl_str *data, shl_str *vars)
{
    const shl_run_row *first = p->rows[0], *last = p->rows[p->n - 1];
    double best = 0, low = (double)INT64_MAX, high = 0;
    bool one_model = true;
    for (size_t i = 0; i < p->n; i++) {
        const shl_run_row *row = p->rows[i];
        double seconds = (double)row->save_ns * 1e-9;
        one_model = one_model && strcmp(row->model, first->model) == 0;
        best = fmax(best, (double)row->save_bytes / seconds);
        low = fmin(low, seconds);
        high = fmax(high, seconds);
    }
    for (int k = 0; k < s->n; k++) {
        shl_str_add(data, "# ");
        shl_figure_add_word(data, s->name[k]);
        shl_str_add(data, ": bytes seconds ranks model\n");
        for (size_t i = 0; i < p->n; i++) {
            const shl_run_row *row = p->rows[i];
            if (strcmp(row->strategy, s->name[k]) == 0) {
                shl_str_add(data, "%" PRId64 " %.9f %" PRId64 " ", row->save_bytes,
                            (double)row->save_ns * 1e-9, row->ranks);
                shl_figure_add_word(data, row->model);
                shl_str_add(data, "\n");
            }
        }
        shl_str_add(data, "\n\n");
    }
    char text[160];
    shl_strf(text, sizeof text, "%s: a checkpoint until it is durable",
             one_model ? first->model : "several models");
    shl_figure_add_quoted(vars, "heading", text);
    shl_figure_add_units(vars, last->save_bytes, 0);
    shl_figure_add_series(vars, s);
    shl_str_add(vars, "first_bytes = %" PRId64 ".0\nlast_bytes = %" PRId64 ".0\nbest = %.17g\n",
                first->save_bytes, last->save_bytes, best);
    shl_str_add(vars, "bottom = %.17g\ntop = %.17g\n", 0.5 * low, 2 * high);
}

shl_code
shl_figure_write_checkpoint(const shl_figure_data *d, const shl_figure_choice *choice)
{
    const shl_figure f = SHL_FIGURE_CHECKPOINT;
    shl_picked p;
    shl_series s = {0};
    shl_str data = {0}, vars = {0};
    SHL_TRY(shl_figure_pick(d, f, choice, &p));
    for (size_t i = 0; i < p.n; i++) {
        (void)shl_series_of(&s, p.rows[i]->strategy);
    }
    qsort(p.rows, p.n, sizeof *p.rows, compare_sizes);
    lay_checkpoint(&p, &s, &data, &vars);
    shl_heap_free(&p.rows);
    return shl_figure_write_pair(choice->out_dir, f, &data, &vars);
}

/* bench: figures: the loss of every strategy, one line per step, and below it of their validation, one line
 * per evaluation. */
#include <float.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bench/figures_impl.h"
#include "kernels/base/heap.h"

static bool
is_chosen(const shl_step_row *row, const shl_figure_choice *choice)
{
    return !choice->strategy || strcmp(choice->strategy, row->strategy) == 0;
}

static shl_code
choose_ranks(const shl_figure_data *d, const shl_figure_choice *choice, int64_t *ranks)
{
    shl_figure_key *keys = NULL;
    size_t n = 0;
    if (d->n_steps == 0) {
        return shl_figure_raise_no_data(SHL_FIGURE_LOSS);
    }
    SHL_TRY(shl_heap_alloc(d->n_steps, sizeof *keys, &keys));
    for (size_t i = 0; i < d->n_steps; i++) {
        if (is_chosen(&d->steps[i], choice)) {
            keys[n++] = (shl_figure_key){d->steps[i].strategy, d->steps[i].ranks};
        }
    }
    shl_code code =
        n > 0 ? shl_figure_ranks(keys, n, choice->ranks, ranks)
              : shl_figure_raise_no_match("strategy", choice->strategy, d->steps[0].strategy);
    shl_heap_free(&keys);
    return code;
}

/* A step of a chosen run; `at` is its place in the file. */
typedef struct point {
    int64_t step;
    int series;
    size_t at;
    double loss;
} point;

static int
compare_points(const void *a, const void *b)
{
    const point *x = a, *y = b;
    if (x->step != y->step) {
        return x->step < y->step ? -1 : 1;
    }
    if (x->series != y->series) {
        return x->series < y->series ? -1 : 1;
    }
    return (x->at > y->at) - (x->at < y->at);
}

/* Lays out one line per step. *spread is the largest difference from the first series. */
static void
add_losses(shl_str *data, const point *points, size_t n, int n_series, double *spread)
{
    *spread = 0;
    for (size_t i = 0; i < n;) {
        double loss[SHL_FIGURE_MAX_SERIES];
        bool have[SHL_FIGURE_MAX_SERIES] = {false};
        int64_t step = points[i].step;
        for (; i < n && points[i].step == step; i++) {
            loss[points[i].series] = points[i].loss; /* a later record replaces an earlier one */
            have[points[i].series] = true;
        }
        shl_str_add(data, "%" PRId64, step);
        for (int k = 0; k < n_series; k++) {
            if (!have[k]) {
                shl_str_add(data, " ?");
                continue;
            }
            shl_str_add(data, " %.17g", loss[k]);
            double difference = have[0] ? fabs(loss[k] - loss[0]) : 0;
            *spread = difference > *spread ? difference : *spread;
        }
        shl_str_add(data, "\n");
    }
}

/* The chosen rows that are of a series of *s , by step and series. Owner: caller. */
static shl_code
take_points(const shl_step_row *rows, size_t n_rows, const shl_figure_choice *choice, int64_t ranks,
            shl_series *s, point **points, size_t *n)
{
    *n = 0;
    SHL_TRY(shl_heap_alloc(n_rows, sizeof **points, points));
    for (size_t i = 0; i < n_rows; i++) {
        const shl_step_row *row = &rows[i];
        int k =
            is_chosen(row, choice) && row->ranks == ranks ? shl_series_of(s, row->strategy) : -1;
        if (k >= 0) {
            (*points)[(*n)++] = (point){row->step, k, i, row->loss};
        }
    }
    qsort(*points, *n, sizeof **points, compare_points);
    return SHL_OK;
}

/* A data set of its own behind two empty lines: gnuplot's index 1. */
static shl_code
add_validation(const shl_figure_data *d, const shl_figure_choice *choice, int64_t ranks,
               shl_series *s, shl_str *data, size_t *n)
{
    point *points = NULL;
    double spread = 0;
    SHL_TRY(take_points(d->evals, d->n_evals, choice, ranks, s, &points, n));
    if (*n > 0) {
        shl_str_add(data, "\n\n# validation\n");
        add_losses(data, points, *n, s->n, &spread);
    }
    shl_heap_free(&points);
    return SHL_OK;
}

shl_code
shl_figure_write_loss(const shl_figure_data *d, const shl_figure_choice *choice)
{
    const shl_figure f = SHL_FIGURE_LOSS;
    int64_t ranks = 1;
    point *points = NULL;
    shl_series s = {0};
    size_t n = 0, n_evals = 0;
    SHL_TRY(choose_ranks(d, choice, &ranks));
    SHL_TRY(take_points(d->steps, d->n_steps, choice, ranks, &s, &points, &n));
    shl_str data = {0}, vars = {0};
    double spread = 0;
    shl_str_add(&data, "# step");
    for (int k = 0; k < s.n; k++) {
        shl_str_add(&data, " ");
        shl_figure_add_word(&data, s.name[k]);
    }
    shl_str_add(&data, "\n");
    add_losses(&data, points, n, s.n, &spread);
    shl_heap_free(&points);
    shl_code code = add_validation(d, choice, ranks, &s, &data, &n_evals);
    if (code != SHL_OK) {
        shl_str_fini(&data);
        return code;
    }
    char text[128];
    const char *model = choice->model ? choice->model : d->n_runs > 0 ? d->runs[0].model : "loss";
    shl_strf(text, sizeof text, "%s, %d strateg%s on %" PRId64 " rank%s", model, s.n,
             s.n == 1 ? "y" : "ies", ranks, ranks == 1 ? "" : "s");
    shl_figure_add_quoted(&vars, "heading", text);
    shl_figure_add_series(&vars, &s);
    shl_strf(text, sizeof text, spread > 0 ? "largest difference %.1e" : "every difference is 0",
             spread);
    shl_figure_add_quoted(&vars, "verdict", text);
    /* A flat line needs some height around it: one unit in the last place of a float near 4. */
    shl_str_add(&vars, "spread = %.3e\n", spread > 0 ? 1.5 * spread : 4.0 * (double)FLT_EPSILON);
    shl_str_add(&vars, "validated = %d\n", n_evals > 0);
    return shl_figure_write_pair(choice->out_dir, f, &data, &vars);
}

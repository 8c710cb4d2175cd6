/* bench: figures: what is chosen of the records and how it is laid down for the scripts of plots/:
 * <name>.dat holds exact numbers, <name>.vars the words and scales. */
#include "bench/figures.h"

#include <errno.h>
#include <float.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "kernels/base/heap.h"
#include "kernels/base/str.h"

#define MAX_SERIES 32

const char *
shl_figure_name(shl_figure f)
{
    static const char *const names[SHL_FIGURE_COUNT] = {
        [SHL_FIGURE_MEMORY_BY_TAG] = "memory_by_tag",
        [SHL_FIGURE_MEMORY_VS_RANKS] = "memory_vs_ranks",
        [SHL_FIGURE_LOSS] = "loss",
    };
    SHL_ASSERT(f < SHL_FIGURE_COUNT);
    return names[f];
}

bool
shl_figure_has_data(const shl_figure_data *d, shl_figure f)
{
    if (f == SHL_FIGURE_LOSS) {
        return d->n_steps > 0;
    }
    for (size_t i = 1; f == SHL_FIGURE_MEMORY_VS_RANKS && i < d->n_runs; i++) {
        if (d->runs[i].ranks != d->runs[0].ranks) {
            return true;
        }
    }
    return f == SHL_FIGURE_MEMORY_BY_TAG && d->n_runs > 0;
}

static shl_code
raise_no_data(shl_figure f)
{
    static const char *const needs[SHL_FIGURE_COUNT] = {
        [SHL_FIGURE_MEMORY_BY_TAG] = "a run record",
        [SHL_FIGURE_MEMORY_VS_RANKS] = "run records with two rank counts or more",
        [SHL_FIGURE_LOSS] = "step records",
    };
    (void)SHL_RAISE(SHL_E_USAGE, "the records do not hold what figure %s shows",
                    shl_figure_name(f));
    (void)shl_err_because("it needs %s", needs[f]);
    return shl_err_advice(f == SHL_FIGURE_LOSS ? "shardlab train --jsonl > FILE"
                                               : "shardlab plan --ranks 1,8,64 --jsonl > FILE");
}

/* ---- choosing ---- */

/* Strategies in order of first appearance. */
typedef struct series {
    const char *name[MAX_SERIES];
    int n;
} series;

/* The number of a strategy in s, added when new; -1 when there is no room. */
static int
series_of(series *s, const char *strategy)
{
    for (int i = 0; i < s->n; i++) {
        if (strcmp(s->name[i], strategy) == 0) {
            return i;
        }
    }
    if (s->n == MAX_SERIES) {
        return -1;
    }
    s->name[s->n] = strategy;
    return s->n++;
}

static shl_code
choose_model(const shl_figure_data *d, const char *asked, const char **out)
{
    *out = asked ? asked : d->runs[0].model;
    bool found = false;
    for (size_t i = 0; i < d->n_runs; i++) {
        bool same = strcmp(d->runs[i].model, *out) == 0;
        found = found || same;
        if (!same && !asked) {
            (void)SHL_RAISE(SHL_E_USAGE, "the records are of several models");
            (void)shl_err_because("%s and %s among them, a figure shows one", *out,
                                  d->runs[i].model);
            return shl_err_advice("--model %s", d->runs[i].model);
        }
    }
    if (!found) {
        (void)SHL_RAISE(SHL_E_USAGE, "no run record is of model %s", asked);
        (void)shl_err_because("the first one is of %s", d->runs[0].model);
        return shl_err_advice("--model %s", d->runs[0].model);
    }
    return SHL_OK;
}

/* One (strategy, ranks) pair of a record of either kind. */
typedef struct pair {
    const char *strategy;
    int64_t ranks;
} pair;

static pair
pair_at(const shl_figure_data *d, shl_figure f, size_t i)
{
    if (f == SHL_FIGURE_LOSS) {
        return (pair){d->steps[i].strategy, d->steps[i].ranks};
    }
    return (pair){d->runs[i].strategy, d->runs[i].ranks};
}

/* Strategies with records at this rank count. */
static int
count_strategies(const shl_figure_data *d, shl_figure f, const char *model, int64_t ranks)
{
    series seen = {0};
    size_t n = f == SHL_FIGURE_LOSS ? d->n_steps : d->n_runs;
    for (size_t i = 0; i < n; i++) {
        pair p = pair_at(d, f, i);
        if (p.ranks == ranks && (!model || strcmp(d->runs[i].model, model) == 0)) {
            (void)series_of(&seen, p.strategy);
        }
    }
    return seen.n;
}

/* The rank count asked for, else the one that most strategies share; among equals the smallest above
 * one, because nothing is sharded over one rank. */
static shl_code
choose_ranks(const shl_figure_data *d, shl_figure f, const char *model, int64_t asked, int64_t *out)
{
    if (asked) {
        *out = asked;
        if (count_strategies(d, f, model, asked) > 0) {
            return SHL_OK;
        }
        (void)SHL_RAISE(SHL_E_USAGE, "no record is of %" PRId64 " ranks", asked);
        return shl_err_because("the first one is of %" PRId64, pair_at(d, f, 0).ranks);
    }
    int most = 0;
    int64_t last = -1;
    size_t n = f == SHL_FIGURE_LOSS ? d->n_steps : d->n_runs;
    for (size_t i = 0; i < n; i++) {
        int64_t ranks = pair_at(d, f, i).ranks;
        if (ranks == last) {
            continue; /* records of one run stand together */
        }
        last = ranks;
        int count = count_strategies(d, f, model, ranks);
        bool better = count > most || (count == most && ranks > 1 && (*out == 1 || ranks < *out));
        if (count > 0 && better) {
            most = count;
            *out = ranks;
        }
    }
    return SHL_OK;
}

/* ---- writing ---- */

static shl_code
raise_write(const char *path, int error)
{
    (void)SHL_RAISE(SHL_E_IO, "cannot write '%s'", path);
    (void)shl_err_because("%s", strerror(error));
    return shl_err_advice("--out with a folder that can be written");
}

static shl_code
make_folders(const char *dir)
{
    char path[1024];
    shl_strf(path, sizeof path, "%s", dir);
    for (char *at = path + 1; *at; at++) {
        if (*at == '/') {
            *at = '\0';
            if (mkdir(path, 0777) != 0 && errno != EEXIST) {
                return raise_write(path, errno);
            }
            *at = '/';
        }
    }
    struct stat info;
    if (mkdir(path, 0777) != 0 && errno != EEXIST) {
        return raise_write(path, errno);
    }
    if (stat(path, &info) == 0 && !S_ISDIR(info.st_mode)) {
        return raise_write(path, ENOTDIR);
    }
    return SHL_OK;
}

/* Writes the text as <dir>/<name>.<ext> and releases it. */
static shl_code
write_text(const char *dir, shl_figure f, const char *ext, shl_str *text)
{
    char path[1100];
    shl_strf(path, sizeof path, "%s/%s.%s", dir, shl_figure_name(f), ext);
    shl_code code = SHL_OK;
    FILE *file = text->failed ? NULL : fopen(path, "we");
    if (text->failed) {
        code = SHL_RAISE(SHL_E_HEAP, "no room for the text of '%s'", path);
    } else if (!file) {
        code = raise_write(path, errno);
    } else {
        bool wrote = fputs(shl_str_get(text), file) >= 0;
        int error = errno;
        if (fclose(file) != 0 || !wrote) {
            code = raise_write(path, wrote ? errno : error);
        }
    }
    shl_str_fini(text);
    return code;
}

static shl_code
write_pair(const char *dir, shl_figure f, shl_str *data, shl_str *vars)
{
    shl_code code = write_text(dir, f, "dat", data);
    if (code == SHL_OK) {
        return write_text(dir, f, "vars", vars);
    }
    shl_str_fini(vars);
    return code;
}

/* gnuplot reads these words inside double quotes: keep what cannot end or escape the string. */
static void
add_quoted(shl_str *out, const char *name, const char *text)
{
    shl_str_add(out, "%s = \"", name);
    for (const char *c = text; *c; c++) {
        bool plain = *c != '"' && *c != '\\' && *c != '`' && (unsigned char)*c >= ' ';
        shl_str_add_text(out, plain ? c : "_", 1);
    }
    shl_str_add(out, "\"\n");
}

/* A strategy as a word: gnuplot splits lists at spaces. */
static void
add_word(shl_str *out, const char *text)
{
    for (const char *c = text; *c; c++) {
        bool plain = *c != '"' && *c != '\\' && *c != '`' && (unsigned char)*c > ' ';
        shl_str_add_text(out, plain ? c : "_", 1);
    }
}

static void
add_series(shl_str *vars, const series *s)
{
    shl_str_add(vars, "strategies = \"");
    for (int i = 0; i < s->n; i++) {
        shl_str_add(vars, "%s", i ? " " : "");
        add_word(vars, s->name[i]);
    }
    shl_str_add(vars, "\"\n");
}

/* The unit in which `bytes` is at least 1, and the limit line. */
static void
add_units(shl_str *vars, int64_t bytes, size_t limit_bytes)
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    size_t u = 0;
    double scale = 1;
    while (u + 1 < sizeof units / sizeof units[0] && (double)bytes >= 1024 * scale) {
        scale *= 1024;
        u++;
    }
    shl_str_add(vars, "unit = \"%s\"\nscale = %.1f\n", units[u], scale);
    shl_str_add(vars, "limit = %zu.0\nlimit_label = \"limit %.4g %s\"\n", limit_bytes,
                (double)limit_bytes / scale, units[u]);
}

static void
add_heading(shl_str *vars, const shl_run_row *row, const char *rest)
{
    char text[256];
    shl_strf(text, sizeof text, "%s, batch %" PRId64 " x %" PRId64 " per rank%s", row->model,
             row->batch, row->seq, rest);
    add_quoted(vars, "heading", text);
}

/* The last record of each strategy at one rank count. */
static int
latest_runs(const shl_figure_data *d, const char *model, int64_t ranks, series *s,
            const shl_run_row **rows)
{
    for (size_t i = 0; i < d->n_runs; i++) {
        const shl_run_row *row = &d->runs[i];
        if (row->ranks == ranks && strcmp(row->model, model) == 0) {
            int k = series_of(s, row->strategy);
            if (k >= 0) {
                rows[k] = row;
            }
        }
    }
    return s->n;
}

static shl_code
write_by_tag(const shl_figure_data *d, const shl_figure_choice *choice)
{
    const shl_figure f = SHL_FIGURE_MEMORY_BY_TAG;
    const char *model = NULL;
    int64_t ranks = 1;
    SHL_TRY(choose_model(d, choice->model, &model));
    SHL_TRY(choose_ranks(d, f, model, choice->ranks, &ranks));
    series s = {0};
    const shl_run_row *rows[MAX_SERIES] = {0};
    int n = latest_runs(d, model, ranks, &s, rows);
    SHL_ASSERT(n > 0);
    shl_str data = {0}, vars = {0};
    int64_t largest = 1;
    shl_str_add(&data, "# strategy total");
    for (int tag = 0; tag < SHL_TAG_COUNT; tag++) {
        shl_str_add(&data, " %s", shl_tag_name((shl_tag)tag));
    }
    for (int i = 0; i < n; i++) {
        shl_str_add(&data, "\n");
        add_word(&data, s.name[i]);
        shl_str_add(&data, " %" PRId64, rows[i]->peak_bytes);
        largest = rows[i]->peak_bytes > largest ? rows[i]->peak_bytes : largest;
        for (int tag = 0; tag < SHL_TAG_COUNT; tag++) {
            shl_str_add(&data, " %" PRId64, rows[i]->at_peak_bytes[tag]);
        }
    }
    shl_str_add(&data, "\n");
    char rest[64];
    shl_strf(rest, sizeof rest, ", %" PRId64 " rank%s", ranks, ranks == 1 ? "" : "s");
    add_heading(&vars, rows[0], rest);
    add_units(&vars, largest, choice->limit_bytes);
    shl_str_add(&vars, "used = \"");
    for (int tag = 0; tag < SHL_TAG_COUNT; tag++) {
        bool visible = false;
        for (int i = 0; i < n; i++) {
            visible = visible || (double)rows[i]->at_peak_bytes[tag] >= 1e-3 * (double)largest;
        }
        if (visible) {
            shl_str_add(&vars, "%d ", tag + 1);
        }
    }
    double top = fmax((double)largest, (double)choice->limit_bytes);
    shl_str_add(&vars, "\"\nbars = %d\ntop = %.1f / scale\n", n, 1.12 * top);
    return write_pair(choice->out_dir, f, &data, &vars);
}

static int
compare_runs(const void *a, const void *b)
{
    const shl_run_row *x = *(const shl_run_row *const *)a, *y = *(const shl_run_row *const *)b;
    if (x->ranks != y->ranks) {
        return x->ranks < y->ranks ? -1 : 1;
    }
    return (x > y) - (x < y); /* both lie in one array: file order */
}

/* Appends one strategy's block; *low, *high are widened to its ranks. */
static void
add_block(shl_str *data, const char *strategy, const shl_run_row **rows, size_t n)
{
    shl_str_add(data, "# ");
    add_word(data, strategy);
    shl_str_add(data, "\n");
    for (size_t i = 0; i < n; i++) {
        bool replaced = i + 1 < n && rows[i + 1]->ranks == rows[i]->ranks;
        if (!replaced) {
            shl_str_add(data, "%" PRId64 " %" PRId64 "\n", rows[i]->ranks, rows[i]->peak_bytes);
        }
    }
    shl_str_add(data, "\n\n");
}

static shl_code
write_vs_ranks(const shl_figure_data *d, const shl_figure_choice *choice)
{
    const char *model = NULL;
    SHL_TRY(choose_model(d, choice->model, &model));
    const shl_run_row **rows = NULL;
    SHL_TRY(shl_heap_alloc(d->n_runs, sizeof *rows, &rows));
    series s = {0};
    const shl_run_row *any = NULL, *guide = NULL;
    int64_t low = INT64_MAX, high = 0, largest = 1, smallest = INT64_MAX;
    for (size_t i = 0; i < d->n_runs; i++) {
        const shl_run_row *row = &d->runs[i];
        if (strcmp(row->model, model) == 0 && series_of(&s, row->strategy) >= 0) {
            any = row;
            high = row->ranks > high ? row->ranks : high;
            largest = row->peak_bytes > largest ? row->peak_bytes : largest;
            smallest = row->peak_bytes < smallest ? row->peak_bytes : smallest;
            bool first = row->ranks < low;
            guide = first ? row : guide;
            low = first ? row->ranks : low;
        }
    }
    shl_str data = {0}, vars = {0};
    for (int k = 0; k < s.n; k++) {
        size_t n = 0;
        for (size_t i = 0; i < d->n_runs; i++) {
            bool mine =
                strcmp(d->runs[i].model, model) == 0 && strcmp(d->runs[i].strategy, s.name[k]) == 0;
            if (mine) {
                rows[n++] = &d->runs[i];
            }
        }
        qsort(rows, n, sizeof *rows, compare_runs);
        add_block(&data, s.name[k], rows, n);
    }
    shl_heap_free(&rows);
    SHL_ASSERT(any && guide);
    add_heading(&vars, any, ": memory against ranks");
    add_units(&vars, largest, choice->limit_bytes);
    add_series(&vars, &s);
    shl_str_add(&vars,
                "first_ranks = %" PRId64 ".0\nlast_ranks = %" PRId64 ".0\nguide = %" PRId64 ".0\n",
                low, high, guide->peak_bytes);
    double top = fmax((double)largest, (double)choice->limit_bytes);
    double bottom = choice->limit_bytes ? fmin((double)smallest, (double)choice->limit_bytes)
                                        : (double)smallest;
    shl_str_add(&vars, "bottom = %.1f / scale\ntop = %.1f / scale\n", 0.5 * bottom, 2 * top);
    return write_pair(choice->out_dir, SHL_FIGURE_MEMORY_VS_RANKS, &data, &vars);
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
        double loss[MAX_SERIES];
        bool have[MAX_SERIES] = {false};
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

static shl_code
write_loss(const shl_figure_data *d, const shl_figure_choice *choice)
{
    const shl_figure f = SHL_FIGURE_LOSS;
    int64_t ranks = 1;
    SHL_TRY(choose_ranks(d, f, NULL, choice->ranks, &ranks));
    point *points = NULL;
    SHL_TRY(shl_heap_alloc(d->n_steps, sizeof *points, &points));
    series s = {0};
    size_t n = 0;
    for (size_t i = 0; i < d->n_steps; i++) {
        const shl_step_row *row = &d->steps[i];
        int k = row->ranks == ranks ? series_of(&s, row->strategy) : -1;
        if (k >= 0) {
            points[n++] = (point){row->step, k, i, row->loss};
        }
    }
    qsort(points, n, sizeof *points, compare_points);
    shl_str data = {0}, vars = {0};
    double spread = 0;
    shl_str_add(&data, "# step");
    for (int k = 0; k < s.n; k++) {
        shl_str_add(&data, " ");
        add_word(&data, s.name[k]);
    }
    shl_str_add(&data, "\n");
    add_losses(&data, points, n, s.n, &spread);
    shl_heap_free(&points);
    char text[128];
    const char *model = choice->model ? choice->model : d->n_runs > 0 ? d->runs[0].model : "loss";
    shl_strf(text, sizeof text, "%s, %d strateg%s on %" PRId64 " rank%s", model, s.n,
             s.n == 1 ? "y" : "ies", ranks, ranks == 1 ? "" : "s");
    add_quoted(&vars, "heading", text);
    add_series(&vars, &s);
    shl_strf(text, sizeof text, spread > 0 ? "largest difference %.1e" : "every difference is 0",
             spread);
    add_quoted(&vars, "verdict", text);
    /* A flat line needs some height around it: one unit in the last place of a float near 4. */
    shl_str_add(&vars, "spread = %.3e\n", spread > 0 ? 1.5 * spread : 4.0 * (double)FLT_EPSILON);
    return write_pair(choice->out_dir, f, &data, &vars);
}

shl_code
shl_figure_write(const shl_figure_data *d, shl_figure f, const shl_figure_choice *choice)
{
    if (!shl_figure_has_data(d, f)) {
        return raise_no_data(f);
    }
    SHL_TRY(make_folders(choice->out_dir));
    switch (f) {
    case SHL_FIGURE_MEMORY_BY_TAG:
        return write_by_tag(d, choice);
    case SHL_FIGURE_MEMORY_VS_RANKS:
        return write_vs_ranks(d, choice);
    case SHL_FIGURE_LOSS:
        return write_loss(d, choice);
    case SHL_FIGURE_COUNT:
        break;
    }
    return SHL_RAISE(SHL_E_BUG, "figure %d does not exist", (int)f);
}

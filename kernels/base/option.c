/* kernels/base: one row per option feeds parser, help, defaults and dump. Values live in a struct of
 * the caller, reached by offset; the environment is read here and nowhere else. */
#include "kernels/base/option.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/base/str.h"
#include "kernels/base/types.h"

#define MAX_NAMES 256
#define HELP_COLUMN 26
#define HELP_WIDTH 80

static size_t
field_bytes(shl_option_type type)
{
    switch (type) {
    case SHL_OPT_BOOL:
        return sizeof(bool);
    case SHL_OPT_INT:
    case SHL_OPT_COUNT:
        return sizeof(int64_t);
    case SHL_OPT_BYTES:
        return sizeof(size_t);
    case SHL_OPT_DOUBLE:
    case SHL_OPT_ASKED:
        return sizeof(double);
    case SHL_OPT_ENUM:
        return sizeof(int);
    case SHL_OPT_STRING:
    case SHL_OPT_LIST:
        break;
    }
    return sizeof(const char *);
}

static bool
has_range(const shl_option *row)
{
    return row->min < row->max;
}

/* Bounds of a row as integers; a bound beyond 64 bits becomes the end of the type. */
static int64_t
to_int(double bound)
{
    if (bound >= 9223372036854775807.0) {
        return INT64_MAX;
    }
    return bound <= -9223372036854775808.0 ? INT64_MIN : (int64_t)bound;
}

static shl_code
check_range(const shl_option *row, const char *text, double value)
{
    if (has_range(row) && !(value >= row->min && value <= row->max)) {
        SHL_RAISE(SHL_E_USAGE, "%s is out of range", text);
        return shl_err_because("it must lie from %.17g to %.17g", row->min, row->max);
    }
    return SHL_OK;
}

static shl_code
read_bool(const char *text, bool *out)
{
    *out = strcmp(text, "true") == 0;
    if (!*out && strcmp(text, "false") != 0) {
        SHL_RAISE(SHL_E_USAGE, "\"%s\" is neither true nor false", text);
        return shl_err_because("a switch is on when it is named, or takes =true or =false");
    }
    return SHL_OK;
}

static size_t
count_names(const char *const *names)
{
    size_t n = 0;
    while (names[n]) {
        n++;
    }
    return n;
}

static shl_code
read_choice(const shl_option *row, const char *text, int *out)
{
    size_t n = count_names(row->choices);
    shl_str all = {0};
    for (size_t i = 0; i < n; i++) {
        if (strcmp(row->choices[i], text) == 0) {
            *out = (int)i;
            shl_str_fini(&all);
            return SHL_OK;
        }
        shl_str_add(&all, "%s%s", i > 0 ? ", " : "", row->choices[i]);
    }
    SHL_RAISE(SHL_E_USAGE, "\"%s\" is not one of the choices", text);
    shl_err_because("the choices are %s", shl_str_get(&all));
    shl_str_fini(&all);
    const char *near = shl_nearest(text, row->choices, n);
    return near ? shl_err_advice("--%s %s", row->name, near) : SHL_E_USAGE;
}

/* Reads text into *field, typed by the row. The field changes only on success. */
static shl_code
read_value(const shl_option *row, const char *text, void *field)
{
    union {
        bool b;
        int64_t i;
        size_t z;
        double d;
        int e;
        const char *s;
    } v = {0};
    if (text[0] == '\0') {
        SHL_RAISE(SHL_E_USAGE, "the value is empty");
        return shl_err_because("an option that is named needs a value");
    }
    switch (row->type) {
    case SHL_OPT_BOOL:
        SHL_TRY(read_bool(text, &v.b));
        break;
    case SHL_OPT_INT:
        SHL_TRY(shl_parse_int(text, has_range(row) ? to_int(row->min) : INT64_MIN,
                              has_range(row) ? to_int(row->max) : INT64_MAX, &v.i));
        break;
    case SHL_OPT_COUNT:
        SHL_TRY(shl_parse_count(text, &v.i));
        SHL_TRY(check_range(row, text, (double)v.i));
        break;
    case SHL_OPT_BYTES:
        SHL_TRY(shl_parse_bytes(text, &v.z));
        SHL_TRY(check_range(row, text, (double)v.z));
        break;
    case SHL_OPT_DOUBLE:
    case SHL_OPT_ASKED:
        SHL_TRY(shl_parse_double(text, has_range(row) ? row->min : -HUGE_VAL,
                                 has_range(row) ? row->max : HUGE_VAL, &v.d));
        break;
    case SHL_OPT_ENUM:
        SHL_TRY(read_choice(row, text, &v.e));
        break;
    case SHL_OPT_STRING:
    case SHL_OPT_LIST:
        v.s = text;
        break;
    }
    memcpy(field, &v, field_bytes(row->type));
    return SHL_OK;
}

static shl_code
set_row(const shl_option *row, const char *text, void *values)
{
    shl_code code = read_value(row, text, (char *)values + row->offset);
    if (code != SHL_OK) {
        /* The reader knows the value, this line knows the option: join them in one error. */
        shl_err e = *shl_err_get();
        shl_strf(e.what, sizeof(e.what), "--%s: %s", row->name, shl_err_get()->what);
        if (e.advice[0] == '\0' && row->unit) {
            shl_strf(e.advice, sizeof(e.advice), "--%s takes %s", row->name, row->unit);
        }
        code = shl_err_put(&e);
    }
    return code;
}

shl_code
shl_option_defaults(const shl_option *table, size_t n, void *values, shl_origin *origins)
{
    for (size_t i = 0; i < n; i++) {
        memset((char *)values + table[i].offset, 0, field_bytes(table[i].type));
        if (table[i].type == SHL_OPT_ASKED) {
            memcpy((char *)values + table[i].offset, &(double){-1.0}, sizeof(double));
        }
        if (table[i].fallback) {
            SHL_TRY(set_row(&table[i], table[i].fallback, values));
        }
        if (origins) {
            origins[i] = SHL_ORIGIN_DEFAULT;
        }
    }
    return SHL_OK;
}

/* The row of a name (len characters, without dashes), or NULL. */
static const shl_option *
find_row(const shl_option *table, size_t n, const char *name, size_t len)
{
    for (size_t i = 0; i < n; i++) {
        const char *both[2] = {table[i].name, table[i].alias};
        for (int k = 0; k < 2; k++) {
            if (both[k] && strlen(both[k]) == len && memcmp(both[k], name, len) == 0) {
                return &table[i];
            }
        }
    }
    return NULL;
}

static shl_code
raise_unknown(const shl_option *table, size_t n, const char *name, size_t len)
{
    const char *names[MAX_NAMES];
    char text[64];
    size_t n_names = 0;
    for (size_t i = 0; i < n && n_names + 2 <= MAX_NAMES; i++) {
        names[n_names++] = table[i].name;
        if (table[i].alias) {
            names[n_names++] = table[i].alias;
        }
    }
    shl_strf(text, sizeof(text), "%.*s", (int)(len < sizeof(text) ? len : sizeof(text)), name);
    SHL_RAISE(SHL_E_USAGE, "unknown option --%s", text);
    const char *near = shl_nearest(text, names, n_names);
    if (near) {
        shl_err_because("no option has this name; the nearest is --%s", near);
        return shl_err_advice("--%s", near);
    }
    shl_err_because("no option has this name or one like it");
    return shl_err_advice("--help lists every option");
}

shl_code
shl_option_set(const shl_option *table, size_t n, const char *name, const char *text, void *values,
               shl_origin *origins)
{
    const shl_option *row = find_row(table, n, name, strlen(name));
    if (!row) {
        return raise_unknown(table, n, name, strlen(name));
    }
    SHL_TRY(set_row(row, text, values));
    if (origins) {
        origins[row - table] = SHL_ORIGIN_USER;
    }
    return SHL_OK;
}

/* One option at argv[*at]; *at moves to the last word used. */
static shl_code
parse_option(const shl_option *table, size_t n, int argc, const char *const *argv, int *at,
             void *values, shl_origin *origins)
{
    const char *word = argv[*at];
    size_t dashes = word[1] == '-' ? 2 : 1;
    const char *name = word + dashes;
    size_t len = strcspn(name, "=");
    /* One dash is for one letter: "-h". */
    const shl_option *row = dashes == 2 || len == 1 ? find_row(table, n, name, len) : NULL;
    if (!row) {
        return raise_unknown(table, n, name, len);
    }
    const char *text = "true";
    if (name[len] == '=') {
        text = name + len + 1;
    } else if (row->type != SHL_OPT_BOOL) {
        if (*at + 1 >= argc || strncmp(argv[*at + 1], "--", 2) == 0) {
            SHL_RAISE(SHL_E_USAGE, "--%s needs a value", row->name);
            shl_err_because("%s follows it", *at + 1 >= argc ? "nothing" : "another option");
            return shl_err_advice("--%s %s", row->name, row->fallback ? row->fallback : "VALUE");
        }
        text = argv[++*at];
    }
    return shl_option_set(table, n, row->name, text, values, origins);
}

shl_code
shl_option_parse(const shl_option *table, size_t n, int argc, const char *const *argv, void *values,
                 shl_origin *origins, const char **positionals, int *n_positionals,
                 int max_positionals)
{
    bool options_ended = false;
    int n_words = 0;
    if (n_positionals) {
        *n_positionals = 0;
    }
    for (int i = 0; i < argc; i++) {
        const char *word = argv[i];
        if (!options_ended && strcmp(word, "--") == 0) {
            options_ended = true;
        } else if (!options_ended && word[0] == '-' && word[1] != '\0') {
            SHL_TRY(parse_option(table, n, argc, argv, &i, values, origins));
        } else if (n_words >= max_positionals) {
            SHL_RAISE(SHL_E_USAGE, "unexpected word \"%s\"", word);
            return shl_err_because("at most %d words without dashes are taken here",
                                   max_positionals);
        } else {
            positionals[n_words++] = word;
            if (n_positionals) {
                *n_positionals = n_words;
            }
        }
    }
    return SHL_OK;
}

/* The fewest digits that read back to the same double. */
static void
spell_double(double value, char *dst, size_t dst_bytes)
{
    for (int digits = 1; digits <= 17; digits++) {
        char text[40];
        shl_strf(text, sizeof(text), "%.*g", digits, value);
        if (digits == 17 || strtod(text, NULL) == value) {
            shl_strf(dst, dst_bytes, "%s", text);
            return;
        }
    }
}

static void
spell_bytes(size_t bytes, char *dst, size_t dst_bytes)
{
    static const char *const names[] = {"", "KiB", "MiB", "GiB", "TiB"};
    size_t i = 0;
    while (bytes > 0 && bytes % 1024 == 0 && i + 1 < SHL_ARRAY_LEN(names)) {
        bytes /= 1024;
        i++;
    }
    shl_strf(dst, dst_bytes, "%zu%s", bytes, names[i]);
}

void
shl_option_spell(const shl_option *row, const void *values, char *dst, size_t dst_bytes)
{
    const char *field = (const char *)values + row->offset;
    bool b;
    int64_t i;
    size_t z;
    double d;
    int e;
    const char *s;
    switch (row->type) {
    case SHL_OPT_BOOL:
        memcpy(&b, field, sizeof(b));
        shl_strf(dst, dst_bytes, "%s", b ? "true" : "false");
        break;
    case SHL_OPT_INT:
    case SHL_OPT_COUNT:
        memcpy(&i, field, sizeof(i));
        shl_strf(dst, dst_bytes, "%lld", (long long)i);
        break;
    case SHL_OPT_BYTES:
        memcpy(&z, field, sizeof(z));
        spell_bytes(z, dst, dst_bytes);
        break;
    case SHL_OPT_DOUBLE:
        memcpy(&d, field, sizeof(d));
        spell_double(d, dst, dst_bytes);
        break;
    case SHL_OPT_ASKED:
        memcpy(&d, field, sizeof(d));
        dst[0] = '\0';
        if (d >= 0.0) {
            spell_double(d, dst, dst_bytes);
        }
        break;
    case SHL_OPT_ENUM:
        memcpy(&e, field, sizeof(e));
        SHL_ASSERT(e >= 0 && (size_t)e < count_names(row->choices));
        shl_strf(dst, dst_bytes, "%s", row->choices[e]);
        break;
    case SHL_OPT_STRING:
    case SHL_OPT_LIST:
        memcpy(&s, field, sizeof(s));
        shl_strf(dst, dst_bytes, "%s", s ? s : "");
        break;
    }
}

/* The length of what must stay on one line: a word, or unit and default in their brackets. */
static size_t
piece_length(const char *text)
{
    size_t bracket = text[0] == '[' ? strcspn(text, "]") : 0;
    bool fits = bracket > 0 && bracket < HELP_WIDTH - HELP_COLUMN && text[bracket] == ']';
    return fits ? bracket + 1 : strcspn(text, " ");
}

/* Appends text in words, breaking lines at HELP_WIDTH; `column` is where the line stands. */
static void
add_wrapped(shl_str *out, const char *text, size_t column)
{
    while (*text) {
        size_t len = piece_length(text);
        if (column > HELP_COLUMN && column + 1 + len > HELP_WIDTH) {
            shl_str_add(out, "\n%*s", HELP_COLUMN, "");
            column = HELP_COLUMN;
        } else if (column > HELP_COLUMN) {
            shl_str_add_text(out, " ", 1);
            column++;
        }
        shl_str_add_text(out, text, len);
        column += len;
        text += len + (text[len] == ' ');
    }
    shl_str_add_text(out, "\n", 1);
}

const char *
shl_option_value_word(const shl_option *row)
{
    static const char *const words[] = {
        [SHL_OPT_BOOL] = "",       [SHL_OPT_INT] = "N",     [SHL_OPT_COUNT] = "COUNT",
        [SHL_OPT_BYTES] = "SIZE",  [SHL_OPT_DOUBLE] = "X",  [SHL_OPT_ASKED] = "X",
        [SHL_OPT_STRING] = "TEXT", [SHL_OPT_ENUM] = "NAME", [SHL_OPT_LIST] = "LIST",
    };
    return words[row->type];
}

void
shl_option_describe(const shl_option *row, struct shl_str *out)
{
    shl_str_add(out, "%s", row->help);
    for (size_t i = 0; row->choices && row->choices[i]; i++) {
        shl_str_add(out, "%s%s", i == 0 ? " One of: " : ", ", row->choices[i]);
    }
    shl_str_add(out, "%s", row->choices ? "." : "");
    if (row->unit || row->fallback) {
        shl_str_add(out, " [%s%s%s%s]", row->unit ? row->unit : "",
                    row->unit && row->fallback ? "; " : "", row->fallback ? "default " : "",
                    row->fallback ? row->fallback : "");
    }
    if (row->alias) {
        shl_str_add(out, " Also %s%s.", row->alias[1] ? "--" : "-", row->alias);
    }
}

static void
add_row(shl_str *out, const shl_option *row)
{
    char left[96];
    shl_str text = {0};
    const char *word = shl_option_value_word(row);
    shl_strf(left, sizeof(left), "  --%s%s%s", row->name, word[0] ? " " : "", word);
    shl_str_add(out, "%-*s", HELP_COLUMN, left);
    if (strlen(left) + 2 > HELP_COLUMN) {
        shl_str_add(out, "\n%*s", HELP_COLUMN, "");
    }
    shl_option_describe(row, &text);
    add_wrapped(out, shl_str_get(&text), HELP_COLUMN);
    out->failed = out->failed || text.failed;
    shl_str_fini(&text);
}

static bool
same_group(const shl_option *a, const shl_option *b)
{
    return strcmp(a->group ? a->group : "Options", b->group ? b->group : "Options") == 0;
}

void
shl_option_help(const shl_option *table, size_t n, struct shl_str *out)
{
    for (size_t first = 0; first < n; first++) {
        bool seen = false;
        for (size_t i = 0; i < first && !seen; i++) {
            seen = same_group(&table[i], &table[first]);
        }
        if (seen) {
            continue;
        }
        shl_str_add(out, "%s%s:\n", first > 0 ? "\n" : "",
                    table[first].group ? table[first].group : "Options");
        for (size_t i = first; i < n; i++) {
            if (same_group(&table[i], &table[first])) {
                add_row(out, &table[i]);
            }
        }
    }
}

const char *
shl_env(const char *name)
{
    /* Set by launchers (torchrun, Slurm, Open MPI, PMI), by OpenMP users, by terminals and by convention. */
    static const char *const others[] = {
        "RANK",
        "WORLD_SIZE",
        "LOCAL_RANK",
        "MASTER_ADDR",
        "MASTER_PORT",
        "SLURM_PROCID",
        "SLURM_NTASKS",
        "SLURM_LOCALID",
        "SLURM_JOB_ID",
        "SLURM_STEP_ID",
        "SLURM_STEP_NODELIST",
        "LOCAL_WORLD_SIZE",
        "TORCHELASTIC_USE_AGENT_STORE",
        "TORCHELASTIC_RUN_ID",
        "MPI_LOCALRANKID",
        "MPI_LOCALNRANKS",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
        "PMIX_NAMESPACE",
        "PMI_RANK",
        "PMI_SIZE",
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "NO_COLOR",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMP_NUM_THREADS",
        "OMP_WAIT_POLICY",
        "OMP_PROC_BIND",
        "OMP_PLACES",
        "OMP_THREAD_LIMIT",
        "GOMP_CPU_AFFINITY",
        "TERM",
        "TMPDIR",
    };
    bool known = strncmp(name, "SHL_", 4) == 0;
    for (size_t i = 0; i < SHL_ARRAY_LEN(others) && !known; i++) {
        known = strcmp(others[i], name) == 0;
    }
    SHL_ASSERT(known);
    const char *value = getenv(name);
    return value && value[0] ? value : NULL;
}

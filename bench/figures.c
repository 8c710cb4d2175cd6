/* bench: figures: their names and needs, and how a data file is laid down for the scripts of plots/:
 * <name>.dat holds exact numbers, <name>.vars the words and scales. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "bench/figures_impl.h"

/* What a figure needs of the records, the command that makes them, and the function that lays it down. */
typedef struct figure {
    const char *name, *needs, *command;
    shl_code (*write)(const shl_figure_data *d, const shl_figure_choice *choice);
} figure;

static const figure figures[SHL_FIGURE_COUNT] = {
    [SHL_FIGURE_MEMORY_BY_TAG] = {"memory_by_tag", "run records",
                                  "shardlab plan --ranks 8 --jsonl > FILE",
                                  shl_figure_write_by_tag},
    [SHL_FIGURE_MEMORY_VS_RANKS] = {"memory_vs_ranks", "run records of two rank counts or more",
                                    "shardlab plan --ranks 1,8,64 --jsonl > FILE",
                                    shl_figure_write_vs_ranks},
    [SHL_FIGURE_LOSS] = {"loss", "step records of a device that computes",
                         "shardlab train --strategy ddp,zero3 --ranks 2 --jsonl > FILE",
                         shl_figure_write_loss},
    [SHL_FIGURE_TIMELINE] = {"timeline", "event records",
                             "shardlab plan --strategy ddp,zero3 --ranks 2 --timeline --jsonl > "
                             "FILE",
                             shl_figure_write_timeline},
    [SHL_FIGURE_WIRE] = {"wire", "run records of two ranks or more",
                         "shardlab plan --ranks 8 --jsonl > FILE", shl_figure_write_wire},
    [SHL_FIGURE_THROUGHPUT] = {"throughput", "measured run records of two rank counts or more",
                               "shardlab train --strategy ddp,zero3 --ranks 1,2,4 --jsonl > FILE",
                               shl_figure_write_throughput},
    [SHL_FIGURE_SPLIT] = {"split", "run records of two sequence lengths or batches or more",
                          "shardlab plan --strategy zero3 --ranks 8 --model gpt2-124m --seq "
                          "128,256,512 --batch 1,2,4 --jsonl > FILE",
                          shl_figure_write_split},
    [SHL_FIGURE_CHECKPOINT] = {"checkpoint", "run records of runs that saved",
                               "shardlab train --ranks 2 --ckpt-dir DIR --jsonl >> FILE, with "
                               "models of several sizes",
                               shl_figure_write_checkpoint},
};

const char *
shl_figure_name(shl_figure f)
{
    SHL_ASSERT(f < SHL_FIGURE_COUNT);
    return figures[f].name;
}

shl_code
shl_figure_raise_no_data(shl_figure f)
{
    (void)SHL_RAISE(SHL_E_USAGE, "the records do not hold what figure %s shows", figures[f].name);
    (void)shl_err_because("it needs %s", figures[f].needs);
    return shl_err_advice("%s", figures[f].command);
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

shl_code
shl_figure_write_pair(const char *dir, shl_figure f, shl_str *data, shl_str *vars)
{
    shl_code code = make_folders(dir);
    if (code != SHL_OK) {
        shl_str_fini(data);
    } else {
        code = write_text(dir, f, "dat", data);
    }
    if (code == SHL_OK) {
        return write_text(dir, f, "vars", vars);
    }
    shl_str_fini(vars);
    return code;
}

/* Neither ends nor escapes a string of gnuplot. */
static void
add_plain(shl_str *out, const char *text, unsigned char lowest)
{
    for (const char *c = text; *c; c++) {
        bool plain = *c != '"' && *c != '\\' && *c != '`' && (unsigned char)*c >= lowest;
        shl_str_add_text(out, plain ? c : "_", 1);
    }
}

void
shl_figure_add_quoted(shl_str *out, const char *name, const char *text)
{
    shl_str_add(out, "%s = \"", name);
    add_plain(out, text, ' ');
    shl_str_add(out, "\"\n");
}

void
shl_figure_add_word(shl_str *out, const char *text)
{
    add_plain(out, text[0] ? text : "_", ' ' + 1);
}

void
shl_figure_add_series(shl_str *vars, const shl_series *s)
{
    shl_str_add(vars, "strategies = \"");
    for (int i = 0; i < s->n; i++) {
        shl_str_add(vars, "%s", i ? " " : "");
        shl_figure_add_word(vars, s->name[i]);
    }
    shl_str_add(vars, "\"\n");
}

void
shl_figure_add_units(shl_str *vars, int64_t bytes, size_t limit_bytes)
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

void
shl_figure_add_heading(shl_str *vars, const char *model, int64_t batch, int64_t seq,
                       const char *rest)
{
    char text[256];
    shl_strf(text, sizeof text, "%s, batch %" PRId64 " x %" PRId64 " per rank%s", model, batch, seq,
             rest);
    shl_figure_add_quoted(vars, "heading", text);
}

void
shl_figure_add_used(shl_str *vars, const bool *used, int n)
{
    shl_str_add(vars, "used = \"");
    for (int i = 0; i < n; i++) {
        if (used[i]) {
            shl_str_add(vars, "%d ", i + 1);
        }
    }
    shl_str_add(vars, "\"\n");
}

void
shl_figure_add_tags(shl_str *data)
{
    for (int tag = 0; tag < SHL_TAG_COUNT; tag++) {
        shl_str_add(data, " %s", shl_tag_name((shl_tag)tag));
    }
}

shl_code
shl_figure_write(const shl_figure_data *d, shl_figure f, const shl_figure_choice *choice)
{
    SHL_ASSERT(f < SHL_FIGURE_COUNT);
    return figures[f].write(d, choice);
}

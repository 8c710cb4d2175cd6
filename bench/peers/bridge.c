/* bench/peers: what other trainers need from us: a checkpoint of step 0, the batches in the order in which
 * `train` takes them, and the probes of `bench`. Built by `make peers` only.
 *
 *   bridge export DIR MODEL SEED SEQ ROWS STEPS   DIR/ckpt, DIR/tokens.i32, DIR/targets.i32
 *   bridge probe THREADS                          peak FLOP/s and AdamW-like bytes/s, now
 *
 * Both print one JSON object. The arrays are [STEPS][ROWS][SEQ], ROWS those of a global batch. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "bench/probes.h"
#include "bench/tokens.h"
#include "engines/api/shardlab.h"
#include "kernels/base/heap.h"
#include "kernels/base/option.h"
#include "kernels/base/str.h"
#include "models/presets.h"

#define PROBE_ELEMS (INT64_C(16) << 20)
#define PROBE_REPEATS 5

typedef struct batches {
    const char *dir, *model;
    int64_t seed, seq, rows, steps;
} batches;

static int
failed(const char *what, const char *because)
{
    fprintf(stderr, "error: %s\n  because: %s\n", what, because);
    return 1;
}

static int
failed_inside(void)
{
    return failed(shl_err_get()->what, shl_err_get()->because);
}

/* The parameters that `train` starts from, in the format that `train` saves. */
static int
save_step_zero(const batches *b, const char *path)
{
    shl_lab_options o;
    shl_lab *lab = NULL;
    shl_lab_error error = {.struct_bytes = sizeof(error)};
    shl_lab_options_init(&o, sizeof(o));
    o.model = b->model;
    o.seed = (uint64_t)b->seed;
    o.seq = b->seq;
    o.batch = 1;
    int code = shl_lab_initialize(&o, NULL, &lab);
    if (code == SHL_LAB_OK) {
        code = shl_lab_save(lab, path, 0, NULL);
    }
    if (code != SHL_LAB_OK) {
        shl_lab_error_get(lab, &error);
        (void)failed(error.what, error.because);
    }
    int closed = shl_lab_close(&lab);
    return code != SHL_LAB_OK || closed != SHL_LAB_OK;
}

static int
write_batches(const batches *b, const shl_tokens *t, FILE *tokens, FILE *targets)
{
    int32_t *row = NULL;
    size_t n = (size_t)b->seq;
    if (shl_heap_alloc(2 * n, sizeof(*row), &row) != SHL_OK) {
        return failed_inside();
    }
    int bad = 0;
    for (int64_t sample = 0; sample < b->steps * b->rows && !bad; sample++) {
        if (shl_tokens_row(t, sample, row, row + n) != SHL_OK) {
            bad = failed_inside();
        } else if (fwrite(row, sizeof(*row), n, tokens) != n ||
                   fwrite(row + n, sizeof(*row), n, targets) != n) {
            bad = failed("cannot write the batches", b->dir);
        }
    }
    shl_heap_free(&row);
    return bad;
}

static int export(const batches *b)
{
    char path[4096];
    shl_tokens *t = NULL;
    const shl_preset *preset = shl_preset_find(b->model);
    if (!preset) {
        return failed("unknown model", b->model);
    }
    shl_strf(path, sizeof(path), "%s/ckpt", b->dir);
    if (save_step_zero(b, path) != 0) {
        return 1;
    }
    if (shl_tokens_open("synthetic", preset->config.vocab, b->seq, (uint64_t)b->seed, &t) !=
        SHL_OK) {
        return failed_inside();
    }
    shl_strf(path, sizeof(path), "%s/tokens.i32", b->dir);
    FILE *tokens = fopen(path, "wbe");
    shl_strf(path, sizeof(path), "%s/targets.i32", b->dir);
    FILE *targets = fopen(path, "wbe");
    int bad = tokens && targets ? write_batches(b, t, tokens, targets)
                                : failed("cannot create the batches' files", b->dir);
    bad |= tokens && fclose(tokens) != 0;
    bad |= targets && fclose(targets) != 0;
    shl_tokens_close(&t);
    const shl_model_config *c = &preset->config;
    if (!bad) {
        printf("{\"vocab\": %" PRId64 ", \"context\": %" PRId64 ", \"layers\": %" PRId64
               ", \"width\": %" PRId64 ", \"heads\": %" PRId64 ", \"params\": %" PRId64
               ", \"flops\": %.17g}\n",
               c->vocab, c->context, c->layers, c->width, c->heads, shl_model_formula_params(c),
               shl_model_formula_step_flops(c, b->rows, b->seq));
    }
    return bad;
}

/* The best of the repeats: what the machine can do, whoever else works on it. */
static int
probe(int threads)
{
    float *arrays[4] = {NULL};
    size_t n = (size_t)PROBE_ELEMS + 16;
    int bad = 0;
    for (int i = 0; i < 4 && !bad; i++) {
        bad = shl_heap_alloc(n, sizeof(float), &arrays[i]) != SHL_OK ? failed_inside() : 0;
    }
    double flops = 0, bytes = 0;
    for (int i = 0; i <= PROBE_REPEATS && !bad; i++) {
        float *at[4];
        for (int k = 0; k < 4; k++) { /* 64-byte aligned; the first round touches the pages */
            at[k] = arrays[k] + (64 - (uintptr_t)arrays[k] % 64) % 64 / sizeof(float);
        }
        int64_t ns = shl_probe_traffic_ns(at[0], at[1], at[2], at[3], PROBE_ELEMS, threads);
        double rate = SHL_PROBE_TRAFFIC_BYTES * (double)PROBE_ELEMS * 1e9 / (double)ns;
        double peak = shl_probe_fma_flops_per_s(threads);
        bytes = rate > bytes ? rate : bytes;
        flops = peak > flops ? peak : flops;
    }
    for (int i = 0; i < 4; i++) {
        shl_heap_free(&arrays[i]);
    }
    if (!bad) {
        printf("{\"flops_per_s\": %.6g, \"bytes_per_s\": %.6g, \"isa\": \"%s\"}\n", flops, bytes,
               shl_probe_isa());
    }
    return bad;
}

int
main(int argc, char **argv)
{
    int64_t numbers[4] = {0};
    int first = argc == 8 && strcmp(argv[1], "export") == 0  ? 4
                : argc == 3 && strcmp(argv[1], "probe") == 0 ? 2
                                                             : argc + 1;
    for (int i = first; i < argc; i++) {
        if (shl_parse_int(argv[i], 0, 1 << 30, &numbers[i - first]) != SHL_OK) {
            return failed_inside();
        }
    }
    if (first == 4) {
        batches b = {argv[2], argv[3], numbers[0], numbers[1], numbers[2], numbers[3]};
        return export(&b);
    }
    if (first == 2 && numbers[0] > 0) {
        return probe((int)numbers[0]);
    }
    return failed("usage", "bridge export DIR MODEL SEED SEQ ROWS STEPS | bridge probe THREADS");
}

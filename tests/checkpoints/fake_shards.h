/* tests: a model of a few odd-sized tensors whose elements follow from a salt, cut at random places
 * over any number of ranks, saved and loaded without an engine. */
#ifndef SHL_TEST_FAKE_SHARDS_H
#define SHL_TEST_FAKE_SHARDS_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <dirent.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "checkpoints/ckpt_room.h"
#include "kernels/base/err.h"
#include "kernels/base/heap.h"
#include "kernels/base/rng.h"

#define FAKE_WORLD_MAX 8
#define FAKE_CUTS_MAX 16

/* The shapes; `scale` of fake_model multiplies the first dimension of each. */
static const struct {
    const char *name;
    int n_dims;
    int64_t dims[SHL_MAX_DIMS];
} fake_shapes[] = {{"wte.weight", 2, {37, 16, 0, 0}},
                   {"h.0.attn.c_attn.weight", 2, {12, 31, 0, 0}},
                   {"h.0.attn.c_attn.bias", 1, {31, 0, 0, 0}},
                   {"h.0.ln_1.weight", 1, {1, 0, 0, 0}},
                   {"cube", 3, {5, 7, 3, 0}}};
static const char *const fake_kinds[] = {"param", "opt/m", "opt/v"};

#define FAKE_N (SHL_ARRAY_LEN(fake_shapes) * SHL_ARRAY_LEN(fake_kinds))

typedef struct fake_model {
    shl_ckpt_tensor tensors[FAKE_N];
} fake_model;

static inline fake_model
fake_make(int64_t scale)
{
    fake_model m;
    for (size_t i = 0; i < FAKE_N; i++) {
        size_t shape = i % SHL_ARRAY_LEN(fake_shapes);
        m.tensors[i].name = fake_shapes[shape].name;
        m.tensors[i].kind = fake_kinds[i / SHL_ARRAY_LEN(fake_shapes)];
        m.tensors[i].n_dims = fake_shapes[shape].n_dims;
        memcpy(m.tensors[i].dims, fake_shapes[shape].dims, sizeof m.tensors[i].dims);
        m.tensors[i].dims[0] *= scale;
    }
    return m;
}

static inline int64_t
fake_elems(const shl_ckpt_tensor *t)
{
    int64_t n = 1;
    for (int i = 0; i < t->n_dims; i++) {
        n *= t->dims[i];
    }
    return n;
}

/* Any 32 bits, NaNs and infinities among them: a checkpoint keeps bits, not numbers. */
static inline uint32_t
fake_bits(uint64_t salt, size_t tensor, int64_t element)
{
    uint64_t x = salt * 0x9E3779B97F4A7C15u + tensor * 0xBF58476D1CE4E5B9u + (uint64_t)element;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return (uint32_t)(x >> 32);
}

static inline shl_ckpt_meta
fake_meta(int64_t step, uint64_t salt, int world)
{
    shl_ckpt_meta m = {.step = step,
                       .data_sample = step * 7,
                       .seed = salt,
                       .world = world,
                       .scaler = "none",
                       .scale = 1.0,
                       .last_overflow = -1};
    shl_strf(m.model, sizeof m.model, "fake");
    shl_strf(m.run_id, sizeof m.run_id, "0123456789abcdef0123456789abcdef");
    shl_strf(m.strategy, sizeof m.strategy, "zero3");
    shl_strf(m.config, sizeof m.config, "{\"lr\":0.5,\"schedule\":\"cosine\"}");
    return m;
}

/* One rank's ranges of one tensor: a pure function of (cut seed, tensor, world), so that every rank
 * agrees. Mode 0: whole on all ranks; 1: random cuts; 2: pairs of ranks hold the same cut. */
static inline int
fake_cut(uint64_t cut_seed, size_t tensor, int64_t elems, int rank, int world, shl_shard *s)
{
    uint64_t stream = shl_rng_stream("cut") + tensor;
    int mode = (int)(shl_rng_u64(cut_seed, stream, 0) % 3);
    int parts = mode == 0 ? 1 : (mode == 2 && world % 2 == 0 ? world / 2 : world);
    int n_parts = parts * (parts > 1 ? 2 : 1); /* two ranges per rank, to have gaps in ranks */
    int64_t at[FAKE_CUTS_MAX * 2 + 1] = {0};
    int n = 0;
    for (int i = 1; i < n_parts; i++) {
        at[i] = (int64_t)(shl_rng_u64(cut_seed, stream, (uint64_t)i) % (uint64_t)(elems + 1));
        for (int j = i; j > 1 && at[j] < at[j - 1]; j--) {
            int64_t swap = at[j];
            at[j] = at[j - 1];
            at[j - 1] = swap;
        }
    }
    at[n_parts] = elems;
    for (int i = 0; i < n_parts; i++) {
        if (i % parts == rank % parts) {
            s[n].begin = at[i];
            s[n].end = at[i + 1];
            s[n].replica = rank / parts;
            s[n].n_replicas = world / parts;
            n++;
        }
    }
    return n;
}

static inline shl_device *
fake_device(const char *kind, const char *stands_for, int rank)
{
    shl_device_config cfg = {.kind = kind, .stands_for = stands_for, .rank = rank, .threads = 1};
    shl_device *d = NULL;
    return shl_device_open(&cfg, &d) == SHL_OK ? d : NULL;
}

static inline void
fake_describe(const shl_ckpt_tensor *t, shl_shard *s, void *data)
{
    s->name = t->name;
    s->kind = t->kind;
    s->n_dims = t->n_dims;
    s->dims = t->dims;
    s->local = shl_tensor_1d(data, SHL_F32, s->end - s->begin);
}

/* One rank's part of a save: everything between prepare and commit. */
static inline shl_code
fake_save_rank(const char *dir, const shl_ckpt_meta *meta, const fake_model *m, uint64_t cut_seed,
               int rank, shl_device *d, shl_ckpt_file *file)
{
    shl_ckpt_writer *w = NULL;
    shl_code code = SHL_OK;
    uint32_t *data = NULL;
    SHL_TRY(shl_ckpt_save_begin(dir, meta, rank, meta->world, &w));
    for (size_t t = 0; t < FAKE_N; t++) {
        shl_shard cuts[FAKE_CUTS_MAX];
        int64_t elems = fake_elems(&m->tensors[t]);
        int n = fake_cut(cut_seed, t, elems, rank, meta->world, cuts);
        for (int i = 0; i < n; i++) {
            SHL_TRY_TO(code, out, shl_heap_alloc((size_t)elems, sizeof *data, &data));
            for (int64_t e = cuts[i].begin; e < cuts[i].end; e++) {
                data[e - cuts[i].begin] = fake_bits(meta->seed, t, e);
            }
            fake_describe(&m->tensors[t], &cuts[i], data);
            SHL_TRY_TO(code, out, shl_ckpt_put(w, d, &cuts[i]));
            shl_heap_free(&data);
        }
    }
    return shl_ckpt_save_finish(&w, file);
out:
    shl_heap_free(&data);
    shl_ckpt_save_abort(&w);
    return code;
}

/* A whole save, the ranks one after another; after a failure a caller cleans up as here. */
static inline shl_code
fake_save(const char *dir, int64_t step, uint64_t salt, int world, const fake_model *m,
          uint64_t cut_seed, shl_device *d)
{
    shl_ckpt_meta meta = fake_meta(step, salt, world);
    shl_ckpt_file files[FAKE_WORLD_MAX];
    SHL_TRY(shl_ckpt_save_prepare(dir, &meta));
    for (int r = 0; r < world; r++) {
        shl_code code = fake_save_rank(dir, &meta, m, cut_seed, r, d, &files[r]);
        if (code != SHL_OK) {
            shl_ckpt_save_discard(dir, &meta);
            return code;
        }
    }
    return shl_ckpt_save_commit(dir, &meta, m->tensors, (int)FAKE_N, files, world);
}

/* Every element of every tensor, cut anew over `world` ranks, has the bits that its salt gives. */
static inline shl_code
fake_load(const char *path, const fake_model *m, int world, uint64_t cut_seed, shl_device *d,
          shl_ckpt_meta *meta)
{
    shl_ckpt_reader *r = NULL;
    shl_code code = SHL_OK;
    uint32_t *data = NULL;
    SHL_TRY(shl_ckpt_open(path, true, &r));
    *meta = *shl_ckpt_reader_meta(r);
    SHL_TRY_TO(code, out, shl_ckpt_check_tensors(r, m->tensors, (int)FAKE_N, true));
    for (size_t k = 0; k < FAKE_N * (size_t)world; k++) {
        shl_shard cuts[FAKE_CUTS_MAX];
        size_t t = k / (size_t)world;
        int64_t elems = fake_elems(&m->tensors[t]);
        int n = fake_cut(cut_seed, t, elems, (int)(k % (size_t)world), world, cuts);
        for (int i = 0; i < n; i++) {
            SHL_TRY_TO(code, out, shl_heap_alloc((size_t)elems, sizeof *data, &data));
            fake_describe(&m->tensors[t], &cuts[i], data);
            SHL_TRY_TO(code, out, shl_ckpt_get(r, d, &cuts[i]));
            for (int64_t e = cuts[i].begin; code == SHL_OK && e < cuts[i].end; e++) {
                if (data[e - cuts[i].begin] != fake_bits(meta->seed, t, e)) {
                    code = SHL_RAISE(SHL_E_BUG, "element %lld of %s differs", (long long)e,
                                     m->tensors[t].name);
                    goto out;
                }
            }
            shl_heap_free(&data);
        }
    }
out:
    shl_heap_free(&data);
    shl_ckpt_close(&r);
    return code;
}

static inline int
fake_remove_one(const char *path, const struct stat *st, int type, struct FTW *walk)
{
    (void)st;
    (void)type;
    (void)walk;
    return remove(path);
}

static inline void
fake_remove_tree(const char *path)
{
    (void)nftw(path, fake_remove_one, 8, FTW_DEPTH | FTW_PHYS);
}

/* A new folder for one test; in memory where that is offered, because only a power cut, which no
 * test here makes, tells it from a disk. */
static inline void
fake_folder(char path[64])
{
    shl_strf(path, 64, "%s/shl-ckpt-XXXXXX", access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
    assert_non_null(mkdtemp(path));
}

/* Entries of a folder that begin with the prefix. */
static inline int
fake_count(const char *dir, const char *prefix)
{
    DIR *list = opendir(dir);
    int n = 0;
    if (list == NULL) {
        return -1;
    }
    for (struct dirent *e = readdir(list); e != NULL; e = readdir(list)) {
        bool self = strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0;
        n += !self && strncmp(e->d_name, prefix, strlen(prefix)) == 0 ? 1 : 0;
    }
    (void)closedir(list);
    return n;
}

/* The code of a call, and that its message names `text`. */
static inline void
fake_expect(shl_code is, shl_code should, const char *text)
{
    const shl_err *e = shl_err_get();
    if (is != should || strstr(e->what, text) == NULL) {
        print_error("expected %s naming '%s', got %s: %s (%s)\n", shl_code_name(should), text,
                    shl_code_name(is), is != SHL_OK ? e->what : "", is != SHL_OK ? e->because : "");
    }
    assert_int_equal(is, should);
    assert_non_null(strstr(e->what, text));
}

/* Fails the test with the thread's error. */
static inline void
fake_ok(shl_code code)
{
    if (code != SHL_OK) {
        const shl_err *e = shl_err_get();
        print_error("%s: %s (%s)\n%s\n", shl_code_name(code), e->what, e->because, e->trace);
    }
    assert_int_equal(code, SHL_OK);
}

#endif

/* bench: speed of a checkpoint from its first call to its commit, everything on disk, against direct
 * writes of as many bytes into the same folder: 1 MiB blocks, eight in flight. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "bench/speed.h"
#include "checkpoints/ckpt.h"
#include "engines/comm/world.h"
#include "kernels/base/clock.h"
#include "kernels/base/heap.h"
#include "kernels/base/str.h"
#include "kernels/base/types.h"
#include "models/presets.h"

enum { WRITERS = 2, QUEUE = 8, N_KINDS = 3 };
#define BLOCK_BYTES ((int64_t)1 << 20)

static const char *const KINDS[N_KINDS] = {"param", "opt/m", "opt/v"};

/* ---- direct writes ---- */

typedef struct direct_write {
    int fd;
    int64_t blocks;
    const char *data; /* a block, page-aligned */
    _Atomic int64_t next;
    _Atomic int error; /* errno of the first failure */
} direct_write;

static void *
write_blocks(void *arg)
{
    direct_write *w = arg;
    int64_t i = 0;
    while ((i = atomic_fetch_add(&w->next, 1)) < w->blocks && atomic_load(&w->error) == 0) {
        ssize_t n = pwrite(w->fd, w->data, (size_t)BLOCK_BYTES, (off_t)(i * BLOCK_BYTES));
        if (n != BLOCK_BYTES) {
            atomic_store(&w->error, n < 0 ? errno : ENOSPC);
        }
    }
    return NULL;
}

static shl_code
fail_direct(const char *path, int error)
{
    (void)SHL_RAISE(SHL_E_IO, "cannot write %s directly", path);
    (void)shl_err_because("%s", strerror(error));
    return shl_err_advice("--dir with a folder on a disk, not in memory");
}

static shl_code
run_queue(const char *path, direct_write *w)
{
    pthread_t threads[QUEUE];
    int n = 0, rc = 0;
    while (n < QUEUE && rc == 0) {
        rc = pthread_create(&threads[n], NULL, write_blocks, w);
        n += rc == 0 ? 1 : 0;
    }
    for (int i = 0; i < n; i++) {
        (void)pthread_join(threads[i], NULL);
    }
    int error = rc != 0 ? rc : atomic_load(&w->error);
    return error == 0 ? SHL_OK : fail_direct(path, error);
}

/* Seconds for `bytes`, rounded up to blocks, into a file whose space is reserved beforehand. */
static shl_code
time_direct(const char *dir, int64_t bytes, double *seconds)
{
    char path[4096];
    direct_write w = {.blocks = shl_ceil_div(bytes, BLOCK_BYTES)};
    shl_strf(path, sizeof(path), "%s/direct", dir);
    void *block =
        mmap(NULL, (size_t)BLOCK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (block == MAP_FAILED) {
        return fail_direct(path, errno);
    }
    memset(block, 0x5a, (size_t)BLOCK_BYTES);
    w.data = block;
    w.fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_DIRECT | O_CLOEXEC, 0600);
    int rc = w.fd < 0 ? errno : posix_fallocate(w.fd, 0, (off_t)(w.blocks * BLOCK_BYTES));
    int64_t begin = shl_clock_ns();
    shl_code code = rc == 0 ? run_queue(path, &w) : fail_direct(path, rc);
    *seconds = (double)(shl_clock_ns() - begin) * 1e-9;
    if (w.fd >= 0) {
        (void)close(w.fd);
        (void)unlink(path);
    }
    (void)munmap(block, (size_t)BLOCK_BYTES);
    return code;
}

/* ---- a save ---- */

typedef struct save_job {
    const shl_model *model;
    shl_ckpt_meta meta;
    char dir[4096];
    shl_device *device[WRITERS];
    shl_buf state[WRITERS][N_KINDS]; /* every rank's half of each tensor, one behind the other */
    shl_ckpt_file files[WRITERS];
    shl_ckpt_tensor *tensors;
    int n_tensors;
} save_job;

/* Half of tensor p, whose elements before it in this rank's buffer are *at. */
static shl_shard
shard_of(const save_job *job, int rank, int kind, const shl_param *p, int64_t *at)
{
    int64_t half = shl_ceil_div(p->elems, WRITERS);
    int64_t begin = rank * half, end = begin + half < p->elems ? begin + half : p->elems;
    float *data = (float *)job->state[rank][kind].data + *at;
    shl_shard s = {.kind = KINDS[kind],
                   .name = p->name,
                   .n_dims = p->n_dims,
                   .dims = p->dims,
                   .begin = begin,
                   .end = end,
                   .local = shl_tensor_1d(data, SHL_F32, end - begin),
                   .replica = 0,
                   .n_replicas = 1};
    *at += half;
    return s;
}

static shl_code
put_all(const save_job *job, int rank, shl_ckpt_writer *w)
{
    for (int k = 0; k < N_KINDS; k++) {
        int64_t at = 0;
        for (int i = 0; i < job->model->n_params; i++) {
            shl_shard s = shard_of(job, rank, k, job->model->params[i], &at);
            SHL_TRY(shl_ckpt_put(w, job->device[rank], &s));
        }
    }
    return SHL_OK;
}

static shl_code
write_rank(shl_world *world, void *arg)
{
    save_job *job = arg;
    int rank = shl_world_rank(world);
    shl_ckpt_writer *w = NULL;
    SHL_TRY(shl_ckpt_save_begin(job->dir, &job->meta, rank, WRITERS, &w));
    shl_code code = put_all(job, rank, w);
    if (code != SHL_OK) {
        shl_err failure = *shl_err_get();
        shl_ckpt_save_abort(&w);
        return shl_err_put(&failure);
    }
    return shl_ckpt_save_finish(&w, &job->files[rank]);
}

static shl_code
time_save(save_job *job, double *seconds)
{
    shl_world_config world = {.ranks = WRITERS, .threads_per_rank = 1};
    int64_t begin = shl_clock_ns();
    job->meta.step++;
    shl_code code = shl_ckpt_save_prepare(job->dir, &job->meta);
    if (code == SHL_OK) {
        code = shl_world_run_threads(&world, write_rank, job);
    }
    if (code == SHL_OK) {
        code = shl_ckpt_save_commit(job->dir, &job->meta, job->tensors, job->n_tensors, job->files,
                                    WRITERS);
    }
    *seconds = (double)(shl_clock_ns() - begin) * 1e-9;
    if (code != SHL_OK) {
        shl_err failure = *shl_err_get();
        shl_ckpt_save_discard(job->dir, &job->meta);
        return shl_err_put(&failure);
    }
    return SHL_OK;
}

static shl_code
open_job(save_job *job)
{
    int n = job->model->n_params;
    int64_t half = 0;
    SHL_TRY(shl_heap_alloc((size_t)(n * N_KINDS), sizeof(*job->tensors), &job->tensors));
    for (int i = 0; i < n * N_KINDS; i++) {
        const shl_param *p = job->model->params[i % n];
        shl_ckpt_tensor *t = &job->tensors[job->n_tensors++];
        *t = (shl_ckpt_tensor){.name = p->name, .kind = KINDS[i / n], .n_dims = p->n_dims};
        memcpy(t->dims, p->dims, sizeof(t->dims));
        half += i < n ? shl_ceil_div(p->elems, WRITERS) : 0;
    }
    shl_strf(job->meta.model, sizeof(job->meta.model), "gpt2-124m");
    shl_strf(job->meta.run_id, sizeof(job->meta.run_id), "%032d", 0);
    shl_strf(job->meta.strategy, sizeof(job->meta.strategy), "zero3");
    shl_strf(job->meta.config, sizeof(job->meta.config), "{}");
    job->meta.world = WRITERS;
    for (int r = 0; r < WRITERS; r++) {
        SHL_TRY(shl_speed_open_device(1, &job->device[r]));
        for (int k = 0; k < N_KINDS; k++) {
            SHL_TRY(shl_speed_new_array(job->device[r], half, &job->state[r][k]));
        }
    }
    return SHL_OK;
}

static shl_code
close_job(save_job *job)
{
    shl_code code = SHL_OK;
    for (int r = 0; r < WRITERS; r++) {
        for (int k = 0; k < N_KINDS && job->device[r]; k++) {
            shl_device_free(job->device[r], &job->state[r][k]);
        }
        shl_code closed = shl_device_close(&job->device[r]);
        code = code == SHL_OK ? closed : code;
    }
    shl_heap_free(&job->tensors);
    return code;
}

/* Removes what a round has written: the folder of one step and what stands beside it. */
static void
remove_step(const save_job *job)
{
    static const char *const names[] = {"shard-00000-of-00002.h5", "shard-00001-of-00002.h5",
                                        "manifest.json", "index.h5", "COMMIT"};
    char folder[4096 + 64], path[4096 + 128];
    shl_strf(folder, sizeof(folder), "%s/step-%08lld", job->dir, (long long)job->meta.step);
    for (size_t i = 0; i < SHL_ARRAY_LEN(names); i++) {
        shl_strf(path, sizeof(path), "%s/%s", folder, names[i]);
        (void)unlink(path);
    }
    (void)rmdir(folder);
    shl_strf(path, sizeof(path), "%s/latest", job->dir);
    (void)unlink(path);
}

static shl_code
measure_save(save_job *job, const shl_speed_config *c, shl_speed_rounds *r)
{
    int64_t bytes = job->model->n_elems * N_KINDS * (int64_t)sizeof(float);
    r->n = c->rounds < 5 ? c->rounds : 5; /* each writes 3 GB */
    for (int round = -1; round < r->n; round++) {
        int at = round < 0 ? 0 : round; /* round -1 warms up and is overwritten */
        double save = 0, direct = 0;
        for (int half = 0; half < 2; half++) {
            if ((half + round) % 2 == 0) {
                SHL_TRY(time_direct(job->dir, bytes, &direct));
            } else {
                shl_code code = time_save(job, &save);
                remove_step(job);
                SHL_TRY(code);
            }
        }
        r->value[at] = (double)bytes * 1e-9 / save;
        r->reference[at] = (double)bytes * 1e-9 / direct;
        r->ratio[at] = direct / save;
    }
    return SHL_OK;
}

static shl_code
run_save(const shl_speed_config *c, const shl_model *model, const char *dir, shl_speed_rounds *r)
{
    save_job *job = NULL;
    SHL_TRY(shl_heap_alloc(1, sizeof(*job), &job));
    job->model = model;
    shl_strf(job->dir, sizeof(job->dir), "%s", dir);
    shl_code code = open_job(job);
    if (code == SHL_OK) {
        code = measure_save(job, c, r);
    }
    shl_err failure = *shl_err_get();
    shl_code closed = close_job(job);
    shl_heap_free(&job);
    return code != SHL_OK ? shl_err_put(&failure) : closed;
}

shl_code
shl_speed_save(const shl_speed_config *c, shl_speed_list *out)
{
    char dir[3072];
    shl_model *model = NULL;
    shl_speed_rounds r = {.n = 0};
    const shl_preset *preset = shl_preset_find(c->quick ? "gpt2-tiny" : "gpt2-124m");
    SHL_ASSERT(preset);
    shl_strf(dir, sizeof(dir), "%s/bench-XXXXXX", c->dir);
    if (!mkdtemp(dir)) {
        int error = errno;
        (void)SHL_RAISE(SHL_E_IO, "cannot make a folder in %s", c->dir);
        return shl_err_because("%s", strerror(error));
    }
    shl_code code = shl_model_new(&preset->config, &model);
    if (code == SHL_OK) {
        code = run_save(c, model, dir, &r);
    }
    shl_model_free(&model);
    (void)rmdir(dir);
    if (code == SHL_OK) {
        shl_speed_add(out,
                      (shl_speed_row){.name = "save",
                                      .what = "124M + moments, fsynced / direct write",
                                      .unit = "GB/s",
                                      .bound = 0.70,
                                      .threads = WRITERS},
                      &r);
    }
    return code;
}

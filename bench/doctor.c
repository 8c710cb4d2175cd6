/* bench: the judgements of the doctor. FAIL: the run cannot work; WARN: it works, slower or with less.
 * Needs are those of this version: what nothing here uses is said to be unused, not demanded. */
#include "bench/doctor.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engines/comm/world.h"
#include "kernels/base/str.h"
#include "kernels/base/types.h"

/* fp32 parameters, gradients and two moments; and what a checkpoint keeps of them. */
#define STATE_BYTES 16
#define CKPT_BYTES 12
/* Descriptors of one rank process (its memory in every other) and of the program itself. */
#define FILES_BESIDE_RANKS 64

const char *
shl_verdict_name(shl_verdict v)
{
    static const char *const names[] = {"OK", "WARN", "FAIL"};
    return names[v];
}

/* A new check; the caller fills in its texts. */
static shl_check *
add(shl_doctor *d, const char *name, shl_verdict verdict)
{
    SHL_ASSERT(d->n < SHL_MAX_CHECKS);
    shl_check *c = &d->checks[d->n++];
    memset(c, 0, sizeof(*c));
    c->name = name;
    c->verdict = verdict;
    return c;
}

#define VALUE(c, ...) shl_strf((c)->value, sizeof((c)->value), __VA_ARGS__)
#define NEEDED(c, ...) shl_strf((c)->needed, sizeof((c)->needed), __VA_ARGS__)
#define FIX(c, ...) shl_strf((c)->fix, sizeof((c)->fix), __VA_ARGS__)

static void
spell_bytes(int64_t bytes, char *dst, size_t dst_bytes)
{
    if (bytes == SHL_UNLIMITED) {
        shl_strf(dst, dst_bytes, "unlimited");
    } else if (bytes < 0) {
        shl_strf(dst, dst_bytes, "unknown");
    } else {
        shl_format_bytes((size_t)bytes, dst, dst_bytes);
    }
}

static int
usable_cores(const shl_doctor_facts *f)
{
    int by_quota = f->quota > 0.0 ? (int)f->quota : f->cores;
    int cores = by_quota < f->cores ? by_quota : f->cores;
    return cores > 0 ? cores : 1;
}

static void
judge_cores(const shl_doctor_ask *ask, const shl_doctor_facts *f, shl_doctor *d)
{
    int cores = usable_cores(f);
    shl_verdict v = ask->ranks > cores ? SHL_VERDICT_WARN : SHL_VERDICT_OK;
    v = ask->ranks > SHL_WORLD_MAX_RANKS ? SHL_VERDICT_FAIL : v;
    shl_check *c = add(d, "cores", v);
    if (f->quota > 0.0) {
        VALUE(c, "%d, and a quota of %.2f cores' time", f->cores, f->quota);
    } else {
        VALUE(c, "%d", f->cores);
    }
    NEEDED(c, "%d, one for each rank", ask->ranks);
    if (v == SHL_VERDICT_FAIL) {
        NEEDED(c, "at most %d ranks on one machine", SHL_WORLD_MAX_RANKS);
        FIX(c, "shardlab plan --ranks %d (or train --device virtual)", ask->ranks);
    } else if (v == SHL_VERDICT_WARN) {
        FIX(c, "--ranks %d; more ranks than cores share them: right results, no speed", cores);
    }
}

static void
judge_memory(const shl_doctor_ask *ask, const shl_doctor_facts *f, shl_doctor *d)
{
    char all[32], free[32], limit[32], most[32], least[32];
    int64_t room = f->available_bytes;
    if (f->limit_bytes != SHL_UNKNOWN && f->limit_bytes != SHL_UNLIMITED) {
        int64_t left = f->limit_bytes - (f->used_bytes > 0 ? f->used_bytes : 0);
        left = left > 0 ? left : 0;
        room = room < 0 || left < room ? left : room;
    }
    int64_t whole = ask->params * STATE_BYTES, replicated = whole * ask->ranks;
    shl_verdict v = SHL_VERDICT_OK;
    if (room >= 0 && room < whole) {
        v = SHL_VERDICT_FAIL;
    } else if (room >= 0 && room < replicated) {
        v = SHL_VERDICT_WARN;
    }
    spell_bytes(f->ram_bytes, all, sizeof(all));
    spell_bytes(room, free, sizeof(free));
    spell_bytes(f->limit_bytes, limit, sizeof(limit));
    spell_bytes(replicated, most, sizeof(most));
    spell_bytes(whole, least, sizeof(least));
    shl_check *c = add(d, "memory", v);
    VALUE(c, "%s free of %s; control group: %s", free, all,
          f->limit_bytes == SHL_UNKNOWN ? "none" : limit);
    NEEDED(c, "%s: %s of %s sharded, %s replicated on %d, and activations", ask->model, least,
           "state", most, ask->ranks);
    if (v == SHL_VERDICT_FAIL) {
        FIX(c, "a smaller --model, or more memory (docker run --memory, systemd MemoryMax=)");
    } else if (v == SHL_VERDICT_WARN) {
        FIX(c, "--strategy zero3 or fsdp; shardlab plan --model %s --ranks %d shows the bytes",
            ask->model, ask->ranks);
    }
}

static void
judge_limits(const shl_doctor_ask *ask, const shl_doctor_facts *f, shl_doctor *d)
{
    char bytes[32];
    shl_check *c = add(d, "shared memory", f->shared_error ? SHL_VERDICT_FAIL : SHL_VERDICT_OK);
    VALUE(c, "%s", f->shared_error ? strerror(f->shared_error) : "anonymous files work");
    NEEDED(c, "memfd_create and mmap, for ranks as processes");
    if (f->shared_error) {
        FIX(c, "--launch threads, or a sandbox that allows memfd_create");
    }
    c = add(d, "/dev/shm", SHL_VERDICT_OK);
    spell_bytes(f->shm_bytes, bytes, sizeof(bytes));
    VALUE(c, "%s%s", f->shm_bytes < 0 ? "absent" : bytes, f->shm_bytes < 0 ? "" : " free");
    NEEDED(c, "nothing: ranks share anonymous files (PyTorch and NCCL would use it)");
    c = add(d, "memlock", SHL_VERDICT_OK);
    spell_bytes(f->memlock_bytes, bytes, sizeof(bytes));
    VALUE(c, "%s", bytes);
    NEEDED(c, "nothing: no memory is locked on this device");
    int64_t files = ask->ranks + FILES_BESIDE_RANKS;
    bool few = f->open_files >= 0 && f->open_files < files;
    c = add(d, "open files", few ? SHL_VERDICT_FAIL : SHL_VERDICT_OK);
    if (f->open_files == SHL_UNLIMITED) {
        VALUE(c, "unlimited");
    } else {
        VALUE(c, "%lld", (long long)f->open_files);
    }
    NEEDED(c, "%lld: one for each rank's memory, and some more", (long long)files);
    if (few) {
        FIX(c, "ulimit -n 1024");
    }
}

static void
judge_folder(const shl_doctor_ask *ask, const shl_doctor_facts *f, shl_doctor *d)
{
    char free[32], need[32];
    int64_t ckpt = ask->params * CKPT_BYTES;
    bool small = f->folder_bytes >= 0 && f->folder_bytes < 2 * ckpt;
    shl_verdict v = small ? SHL_VERDICT_WARN : SHL_VERDICT_OK;
    v = f->folder_error ? SHL_VERDICT_FAIL : v;
    shl_check *c = add(d, "folder", v);
    spell_bytes(f->folder_bytes, free, sizeof(free));
    spell_bytes(2 * ckpt, need, sizeof(need));
    if (f->folder_error) {
        VALUE(c, "%.100s: %s", f->folder, strerror(f->folder_error));
    } else {
        VALUE(c, "%.100s can be written, %s free", f->folder, free);
    }
    NEEDED(c, "%s for two checkpoints of %s", need, ask->model);
    if (v != SHL_VERDICT_OK) {
        FIX(c, "--out DIR on a disk that %s",
            f->folder_error ? "can be written" : "has this much room");
    }
    c = add(d, "O_DIRECT", f->direct_error ? SHL_VERDICT_WARN : SHL_VERDICT_OK);
    VALUE(c, "%s", f->direct_error ? strerror(f->direct_error) : "works");
    NEEDED(c, "past the page cache; without it disk speed is measured through the cache");
    if (f->direct_error) {
        FIX(c, "--out DIR on a file system such as ext4 or xfs, not tmpfs or overlay");
    }
}

static void
judge_libraries(const shl_doctor_facts *f, shl_doctor *d)
{
    bool draws = f->gnuplot[0] && strcmp(f->gnuplot_formats, "svg png") == 0;
    shl_check *c = add(d, "gnuplot", draws ? SHL_VERDICT_OK : SHL_VERDICT_WARN);
    if (f->gnuplot[0]) {
        VALUE(c, "%s, draws %s", f->gnuplot,
              f->gnuplot_formats[0] ? f->gnuplot_formats : "nothing");
    } else {
        VALUE(c, "not found in PATH");
    }
    NEEDED(c, "svg and png, for plot; nothing else uses it");
    if (!draws) {
        FIX(c, "sudo apt-get install gnuplot-nox");
    }
    c = add(d, "HDF5", f->h5_is_threadsafe ? SHL_VERDICT_OK : SHL_VERDICT_WARN);
    VALUE(c, "%s, %s", f->h5_version, f->h5_is_threadsafe ? "thread-safe" : "not thread-safe");
    NEEDED(c,
           "either: all calls here hold one lock; only a host program's own calls need the other");
    if (!f->h5_is_threadsafe) {
        FIX(c, "sudo apt-get install libhdf5-dev, or keep your own HDF5 calls off other threads");
    }
}

static void
judge_processor(const shl_doctor_facts *f, shl_doctor *d)
{
    bool slow = strcmp(f->isa, "base") == 0;
    shl_check *c = add(d, "instructions", slow ? SHL_VERDICT_WARN : SHL_VERDICT_OK);
    VALUE(c, "%s kernels%s%s%s", f->isa, f->features[0] ? " (" : "", f->features,
          f->features[0] ? ")" : "");
    NEEDED(c, "avx2 and fma, or avx512; the base kernels are right and slow");
    if (slow) {
        FIX(c, "a CPU from 2013 or later; in a virtual machine pass it through (-cpu host)");
    }
    bool never = strcmp(f->huge_pages, "never") == 0;
    c = add(d, "huge pages", never ? SHL_VERDICT_WARN : SHL_VERDICT_OK);
    VALUE(c, "%s", f->huge_pages[0] ? f->huge_pages : "unknown");
    NEEDED(c, "always or madvise: large tensors touch fewer pages");
    if (never) {
        FIX(c, "echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled");
    }
}

static void
judge_load(const shl_doctor_facts *f, shl_doctor *d)
{
    int cores = usable_cores(f);
    bool busy = f->load > 0.5 * cores;
    shl_check *c = add(d, "load", busy ? SHL_VERDICT_WARN : SHL_VERDICT_OK);
    if (f->load < 0.0) {
        VALUE(c, "unknown");
    } else {
        VALUE(c, "%.2f over the last minute", f->load);
    }
    NEEDED(c, "below %.1f, half of the cores, for times that mean something", 0.5 * cores);
    if (busy) {
        FIX(c, "top shows who computes; wait, or read times as upper bounds");
    }
}

static void
judge_openmp(const shl_doctor_ask *ask, const shl_doctor_facts *f, shl_doctor *d)
{
    int cores = usable_cores(f);
    /* A list "4,2" is for nested regions; its first number counts. */
    long threads = f->omp_threads[0] ? strtol(f->omp_threads, NULL, 10) : 0;
    bool many = threads > 0 && threads * ask->ranks > cores;
    bool crowded = ask->ranks > cores || many;
    bool spins =
        crowded && (strcmp(f->omp_wait, "active") == 0 || strcmp(f->omp_wait, "ACTIVE") == 0);
    bool bound = ask->ranks > 1 && f->omp_bind[0] && strcmp(f->omp_bind, "false") != 0 &&
                 strcmp(f->omp_bind, "FALSE") != 0;
    shl_check *c = add(d, "OpenMP", many || spins || bound ? SHL_VERDICT_WARN : SHL_VERDICT_OK);
    VALUE(c, "OMP_NUM_THREADS %s, OMP_WAIT_POLICY %s, OMP_PROC_BIND %s",
          f->omp_threads[0] ? f->omp_threads : "unset", f->omp_wait[0] ? f->omp_wait : "unset",
          f->omp_bind[0] ? f->omp_bind : "unset");
    NEEDED(c, "unset: the program sets threads and waiting by ranks and cores");
    if (spins) {
        FIX(c, "unset OMP_WAIT_POLICY; threads that spin take the cores of those that compute");
    } else if (many) {
        FIX(c, "unset OMP_NUM_THREADS, or OMP_NUM_THREADS=%d",
            cores / ask->ranks > 0 ? cores / ask->ranks : 1);
    } else if (bound) {
        FIX(c, "unset OMP_PROC_BIND; every rank would be bound to the same cores");
    }
}

/* Nothing needs a card but --device cuda; one that is there and cannot be used is worth a word. */
static void
judge_cards(const shl_doctor_ask *ask, const shl_doctor_facts *f, shl_doctor *d)
{
    shl_check *c = add(d, "GPUs", f->gpu_fails ? SHL_VERDICT_WARN : SHL_VERDICT_OK);
    VALUE(c, "%s", f->gpu[0] ? f->gpu : "none");
    NEEDED(c, "one per rank for --device cuda (%d asked for, %d here); cpu and virtual need none",
           ask->ranks, f->n_cards);
    if (f->gpu_fails) {
        FIX(c, "%s", f->gpu_fix[0] ? f->gpu_fix : "shardlab gpu-check");
    }
}

void
shl_doctor_judge(const shl_doctor_ask *ask, const shl_doctor_facts *f, shl_doctor *out)
{
    memset(out, 0, sizeof(*out));
    judge_cores(ask, f, out);
    judge_memory(ask, f, out);
    judge_limits(ask, f, out);
    judge_folder(ask, f, out);
    judge_libraries(f, out);
    judge_processor(f, out);
    judge_load(f, out);
    judge_openmp(ask, f, out);
    judge_cards(ask, f, out);
}

int
shl_doctor_count(const shl_doctor *d, shl_verdict v)
{
    int n = 0;
    for (int i = 0; i < d->n; i++) {
        n += d->checks[i].verdict == v;
    }
    return n;
}

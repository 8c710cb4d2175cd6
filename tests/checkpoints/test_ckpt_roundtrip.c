/* tests: what is saved by N ranks is loaded by M, bit for bit; files are deterministic, small, and
 * ordinary HDF5. */
#include "tests/checkpoints/fake_shards.h"

#include <hdf5.h>
#include <math.h>
#include <pthread.h>
#include <sys/wait.h>
#include <time.h>

#include "checkpoints/h5.h"
#include "kernels/base/half.h"

static uint64_t seed;

static void
test_ckpt_roundtrip_any_world_to_any(void **state)
{
    char dir[64];
    fake_model m = fake_make(1);
    shl_device *d = fake_device("cpu", NULL, 0);
    (void)state;
    assert_non_null(d);
    for (uint64_t round = 0; round < 24; round++) {
        int from = 1 + (int)(shl_rng_u64(seed, 1, round) % FAKE_WORLD_MAX);
        int to = 1 + (int)(shl_rng_u64(seed, 2, round) % FAKE_WORLD_MAX);
        shl_ckpt_meta meta;
        fake_folder(dir);
        fake_ok(fake_save(dir, (int64_t)round, seed + round, from, &m, seed ^ round, d));
        fake_ok(fake_load(dir, &m, to, seed + 99 * round, d, &meta));
        assert_int_equal(meta.step, round);
        assert_int_equal(meta.world, from);
        assert_int_equal(meta.data_sample, 7 * round);
        assert_true(meta.seed == seed + round);
        assert_string_equal(meta.model, "fake");
        assert_string_equal(meta.strategy, "zero3");
        assert_string_equal(meta.config, "{\"lr\":0.5,\"schedule\":\"cosine\"}");
        assert_int_equal(fake_count(dir, ".tmp"), 0);
        fake_remove_tree(dir);
    }
    fake_ok(shl_device_close(&d));
}

typedef struct rank_job {
    pthread_t thread;
    const char *dir;
    const shl_ckpt_meta *meta;
    const fake_model *m;
    int rank;
    shl_ckpt_file file;
    shl_code code;
} rank_job;

static void *
run_rank(void *arg)
{
    rank_job *j = arg;
    shl_device *d = fake_device("cpu", NULL, j->rank);
    j->code = d == NULL ? SHL_E_SYSTEM
                        : fake_save_rank(j->dir, j->meta, j->m, seed, j->rank, d, &j->file);
    shl_code closed = shl_device_close(&d);
    j->code = j->code == SHL_OK ? closed : j->code;
    return NULL;
}

static void
test_ckpt_roundtrip_ranks_as_threads(void **state)
{
    char dir[64];
    fake_model m = fake_make(40);
    shl_ckpt_meta meta = fake_meta(3, seed, 4);
    rank_job jobs[4];
    shl_ckpt_file files[4];
    shl_device *d = fake_device("cpu", NULL, 0);
    (void)state;
    fake_folder(dir);
    fake_ok(shl_ckpt_save_prepare(dir, &meta));
    for (int r = 0; r < 4; r++) {
        jobs[r] = (rank_job){.dir = dir, .meta = &meta, .m = &m, .rank = r};
        assert_int_equal(pthread_create(&jobs[r].thread, NULL, run_rank, &jobs[r]), 0);
    }
    for (int r = 0; r < 4; r++) {
        assert_int_equal(pthread_join(jobs[r].thread, NULL), 0);
        assert_int_equal(jobs[r].code, SHL_OK);
        files[r] = jobs[r].file;
    }
    fake_ok(shl_ckpt_save_commit(dir, &meta, m.tensors, (int)FAKE_N, files, 4));
    fake_ok(fake_load(dir, &m, 3, seed + 1, d, &meta));
    fake_ok(shl_device_close(&d));
    fake_remove_tree(dir);
}

static void
test_ckpt_roundtrip_same_state_same_bytes(void **state)
{
    char a[64];
    char b[64];
    char command[256];
    fake_model m = fake_make(1);
    shl_device *d = fake_device("cpu", NULL, 0);
    struct timespec second = {1, 100000000};
    (void)state;
    fake_folder(a);
    fake_folder(b);
    fake_ok(fake_save(a, 5, seed, 3, &m, seed, d));
    (void)nanosleep(&second, NULL); /* a time stamp in seconds would differ */
    fake_ok(fake_save(b, 5, seed, 3, &m, seed, d));
    shl_strf(command, sizeof command, "diff -r '%s' '%s'", a, b);
    assert_int_equal(system(command), 0);
    fake_ok(shl_device_close(&d));
    fake_remove_tree(a);
    fake_remove_tree(b);
}

/* 148 tensors in three kinds with a part of each on this rank, as a replicated model gives: the
 * most fragments a save can have. The parts are short here; their names and places are not. */
static void
test_ckpt_roundtrip_overhead_per_fragment(void **state)
{
    char dir[64];
    char name[64];
    float data[96];
    shl_ckpt_meta meta = fake_meta(1, seed, 1);
    shl_ckpt_writer *w = NULL;
    shl_ckpt_file file;
    int64_t dims = 38597376;
    int64_t begin = 4824672;
    int64_t n = 0;
    shl_device *d = fake_device("cpu", NULL, 0);
    (void)state;
    memset(data, 0, sizeof data);
    fake_folder(dir);
    fake_ok(shl_ckpt_save_prepare(dir, &meta));
    fake_ok(shl_ckpt_save_begin(dir, &meta, 0, 1, &w));
    for (size_t k = 0; k < SHL_ARRAY_LEN(fake_kinds); k++) {
        for (int i = 0; i < 148; i++, n++) {
            shl_strf(name, sizeof name, "h.%d.attn.c_attn.weight.%d", i / 12, i % 12);
            shl_shard s = {name,
                           fake_kinds[k],
                           1,
                           &dims,
                           begin,
                           begin + 96,
                           0,
                           1,
                           shl_tensor_1d(data, SHL_F32, 96)};
            fake_ok(shl_ckpt_put(w, d, &s));
        }
    }
    fake_ok(shl_ckpt_save_finish(&w, &file));
    int64_t extra = file.bytes - n * (int64_t)sizeof data;
    print_message("%lld bytes of overhead for %lld fragments: %lld each\n", (long long)extra,
                  (long long)n, (long long)(extra / n));
    /* GPT-2 124M on 8 ranks: 187 MB and 444 fragments a file; 0.1 % is 420 bytes each. */
    assert_true(extra / n < 420);
    shl_ckpt_save_discard(dir, &meta);
    fake_ok(shl_device_close(&d));
    fake_remove_tree(dir);
}

static shl_code
count_range(void *ctx, const shl_h5_range *r)
{
    int64_t *elems = ctx;
    *elems += r->end - r->begin;
    return SHL_OK;
}

static void
test_ckpt_roundtrip_each_element_is_stored_once(void **state)
{
    char dir[64];
    char path[128];
    fake_model m = fake_make(2);
    shl_h5_head head;
    shl_device *d = fake_device("cpu", NULL, 0);
    int64_t stored = 0;
    int64_t elems = 0;
    (void)state;
    fake_folder(dir);
    fake_ok(fake_save(dir, 9, seed, 4, &m, seed + 5, d));
    for (int r = 0; r < 4; r++) {
        shl_strf(path, sizeof path, "%s/step-00000009/shard-%05d-of-00004.h5", dir, r);
        fake_ok(shl_h5_scan(path, &head, count_range, &stored));
        assert_int_equal(head.step, 9);
        assert_int_equal(head.rank, r);
        assert_int_equal(head.world, 4);
    }
    for (size_t t = 0; t < FAKE_N; t++) {
        elems += fake_elems(&m.tensors[t]);
    }
    assert_int_equal(stored, elems);
    fake_ok(shl_device_close(&d));
    fake_remove_tree(dir);
}

/* Any HDF5 program finds the elements and their place in the whole, here the second of three parts
 * of a replicated range. */
static void
test_ckpt_roundtrip_shards_are_plain_hdf5(void **state)
{
    char dir[64];
    char path[192];
    uint32_t data[100];
    uint32_t back[100];
    int64_t dims[2] = {4, 50};
    int64_t read_dims[2] = {0, 0};
    int64_t begin = 0;
    shl_ckpt_meta meta = fake_meta(1, seed, 1);
    shl_ckpt_writer *w = NULL;
    shl_ckpt_file file;
    shl_device *d = fake_device("cpu", NULL, 0);
    (void)state;
    for (int i = 0; i < 100; i++) {
        data[i] = fake_bits(seed, 0, i) & 0xBFFFFFFFu; /* numbers: HDF5 may quiet a NaN */
    }
    fake_folder(dir);
    fake_ok(shl_ckpt_save_prepare(dir, &meta));
    fake_ok(shl_ckpt_save_begin(dir, &meta, 0, 1, &w));
    shl_shard s = {"w", "opt/m", 2, dims, 20, 120, 1, 3, shl_tensor_1d(data, SHL_F32, 100)};
    fake_ok(shl_ckpt_put(w, d, &s));
    fake_ok(shl_ckpt_save_finish(&w, &file));
    shl_strf(path, sizeof path, "%s/.tmp-00000001-%s/%s", dir, meta.run_id, file.name);
    hid_t f = H5Fopen(path, H5F_ACC_RDONLY, H5P_DEFAULT);
    hid_t set = H5Dopen2(f, "/opt/m/w/54-88", H5P_DEFAULT);
    assert_true(set >= 0);
    assert_true(H5Dread(set, H5T_NATIVE_FLOAT, H5S_ALL, H5S_ALL, H5P_DEFAULT, back) >= 0);
    assert_memory_equal(back, data + 34, 34 * sizeof *data);
    hid_t attr = H5Aopen(set, "dims", H5P_DEFAULT);
    assert_true(H5Aread(attr, H5T_NATIVE_INT64, read_dims) >= 0);
    assert_memory_equal(read_dims, dims, sizeof dims);
    (void)H5Aclose(attr);
    attr = H5Aopen(set, "begin", H5P_DEFAULT);
    assert_true(H5Aread(attr, H5T_NATIVE_INT64, &begin) >= 0);
    assert_int_equal(begin, 54);
    (void)H5Aclose(attr);
    (void)H5Dclose(set);
    (void)H5Fclose(f);
    fake_ok(shl_device_close(&d));
    fake_remove_tree(dir);
}

/* What a device without bytes does: checks, the same ledger events, and nothing on disk. */
static void
test_ckpt_roundtrip_virtual_writes_nothing(void **state)
{
    char dir[64];
    fake_model m = fake_make(1);
    shl_ckpt_meta meta = fake_meta(1, seed, 2);
    shl_ckpt_file file;
    const char *targets[] = {"cpu", "cuda"};
    (void)state;
    fake_folder(dir);
    for (size_t i = 0; i < SHL_ARRAY_LEN(targets); i++) {
        shl_device *d = fake_device("virtual", targets[i], 0);
        assert_non_null(d);
        fake_ok(fake_save_rank(dir, &meta, &m, seed, 0, d, &file));
        assert_int_equal(file.bytes, 0);
        const shl_ledger_tier *host = shl_ledger_get(d->ledger, SHL_TIER_HOST);
        assert_true((host->peak_tag_bytes[SHL_TAG_CKPT] > 0) == d->caps.async);
        assert_int_equal(host->now_bytes, 0);
        fake_ok(shl_device_close(&d));
    }
    assert_int_equal(fake_count(dir, ""), 0);
    fake_remove_tree(dir);
}

/* A device whose compute is asynchronous goes through staging; its peak is bounded. */
static void
test_ckpt_roundtrip_staged(void **state)
{
    char dir[64];
    fake_model m = fake_make(3600);
    shl_ckpt_meta meta;
    shl_device *d = fake_device("cpu", NULL, 0);
    (void)state;
    fake_folder(dir);
    d->caps.async = true;
    fake_ok(fake_save(dir, 2, seed, 2, &m, seed, d));
    fake_ok(fake_load(dir, &m, 1, seed + 3, d, &meta));
    const shl_ledger_tier *host = shl_ledger_get(d->ledger, SHL_TIER_HOST);
    assert_int_equal(host->peak_tag_bytes[SHL_TAG_CKPT], SHL_CKPT_CHUNK_BYTES);
    d->caps.async = false;
    fake_ok(shl_device_close(&d));
    fake_remove_tree(dir);
}

#define NARROW_ELEMS ((int64_t)(SHL_CKPT_CHUNK_BYTES / sizeof(float)) + 12345)

/* Every pattern of 16 bits but NaNs, whose payloads need not survive. */
static void
fill_narrow(shl_dtype dtype, uint16_t *x)
{
    for (int64_t i = 0; i < NARROW_ELEMS; i++) {
        x[i] = (uint16_t)(i * 40503);
        x[i] = isnan(shl_float_at(dtype, x, i)) ? 0 : x[i];
    }
}

static void
save_narrow(const char *dir, shl_device *d, const shl_shard *s)
{
    shl_ckpt_tensor t = {"w", "opt/m", 1, {NARROW_ELEMS, 0, 0, 0}};
    shl_ckpt_meta meta = fake_meta(1, seed, 1);
    shl_ckpt_writer *w = NULL;
    shl_ckpt_file file;
    if (d->caps.has_bytes) {
        fake_ok(shl_ckpt_save_prepare(dir, &meta));
    }
    fake_ok(shl_ckpt_save_begin(dir, &meta, 0, 1, &w));
    fake_ok(shl_ckpt_put(w, d, s));
    fake_ok(shl_ckpt_save_finish(&w, &file));
    if (d->caps.has_bytes) {
        fake_ok(shl_ckpt_save_commit(dir, &meta, &t, 1, &file, 1));
    }
}

/* In the file they are fp32, widened exactly; they come back as they were, in any type that holds them,
 * through staging that a virtual device takes too. */
static void
test_ckpt_roundtrip_of_sixteen_bits(void **state)
{
    static const shl_dtype types[] = {SHL_BF16, SHL_F16};
    int64_t dims = NARROW_ELEMS;
    uint16_t *x = NULL;
    float *wide = NULL;
    (void)state;
    fake_ok(shl_heap_alloc((size_t)NARROW_ELEMS, sizeof *x, &x));
    fake_ok(shl_heap_alloc((size_t)NARROW_ELEMS, sizeof *wide, &wide));
    for (size_t k = 0; k < SHL_ARRAY_LEN(types); k++) {
        char dir[64];
        shl_ckpt_reader *r = NULL;
        shl_device *d = fake_device("cpu", NULL, 0), *v = fake_device("virtual", "cpu", 0);
        shl_shard s = {.name = "w",
                       .kind = "opt/m",
                       .n_dims = 1,
                       .dims = &dims,
                       .end = NARROW_ELEMS,
                       .n_replicas = 1,
                       .local = shl_tensor_1d(x, types[k], NARROW_ELEMS)};
        fake_folder(dir);
        fill_narrow(types[k], x);
        save_narrow(dir, d, &s);
        save_narrow(dir, v, &s);
        fake_ok(shl_ckpt_open(dir, true, &r));
        fake_ok(shl_ckpt_read(r, 0, 0, NARROW_ELEMS, wide));
        memset(x, 0xff, (size_t)NARROW_ELEMS * sizeof *x);
        fake_ok(shl_ckpt_get(r, d, &s));
        for (int64_t i = 0; i < NARROW_ELEMS; i++) {
            uint16_t bits[2] = {(uint16_t)(i * 40503)}; /* room for any type */
            bool nan = isnan(shl_float_at(types[k], bits, 0));
            float value = nan ? 0.0f : shl_float_at(types[k], bits, 0);
            assert_true(x[i] == (nan ? 0 : bits[0]) && wide[i] == value);
        }
        const size_t *peak = shl_ledger_get(d->ledger, SHL_TIER_HOST)->peak_tag_bytes;
        assert_int_equal(peak[SHL_TAG_CKPT], SHL_CKPT_CHUNK_BYTES);
        assert_int_equal(shl_ledger_get(v->ledger, SHL_TIER_HOST)->peak_tag_bytes[SHL_TAG_CKPT],
                         SHL_CKPT_CHUNK_BYTES);
        shl_ckpt_close(&r);
        fake_ok(shl_device_close(&v));
        fake_ok(shl_device_close(&d));
        fake_remove_tree(dir);
    }
    shl_heap_free(&x);
    shl_heap_free(&wide);
}

static void
test_ckpt_roundtrip_commit_refuses_gap_and_overlap(void **state)
{
    char dir[64];
    float data[64] = {0};
    int64_t dims = 64;
    shl_ckpt_tensor t = {"w", "param", 1, {64, 0, 0, 0}};
    static const int64_t ranges[][4] = {
        {0, 30, 31, 64}, {0, 31, 30, 64}, {1, 30, 30, 64}, {0, 30, 30, 63}};
    shl_device *d = fake_device("cpu", NULL, 0);
    (void)state;
    fake_folder(dir);
    for (size_t i = 0; i < SHL_ARRAY_LEN(ranges); i++) {
        shl_ckpt_meta meta = fake_meta(1, seed, 1);
        shl_ckpt_writer *w = NULL;
        shl_ckpt_file file;
        fake_ok(shl_ckpt_save_prepare(dir, &meta));
        fake_ok(shl_ckpt_save_begin(dir, &meta, 0, 1, &w));
        for (int k = 0; k < 4; k += 2) {
            int64_t begin = ranges[i][k];
            int64_t end = ranges[i][k + 1];
            shl_shard s = {"w",   "param", 1,
                           &dims, begin,   end,
                           0,     1,       shl_tensor_1d(data, SHL_F32, end - begin)};
            fake_ok(shl_ckpt_put(w, d, &s));
        }
        fake_ok(shl_ckpt_save_finish(&w, &file));
        fake_expect(shl_ckpt_save_commit(dir, &meta, &t, 1, &file, 1), SHL_E_BUG, "param/w");
        assert_int_equal(fake_count(dir, ""), 0);
    }
    fake_ok(shl_device_close(&d));
    fake_remove_tree(dir);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ckpt_roundtrip_any_world_to_any),
        cmocka_unit_test(test_ckpt_roundtrip_ranks_as_threads),
        cmocka_unit_test(test_ckpt_roundtrip_same_state_same_bytes),
        cmocka_unit_test(test_ckpt_roundtrip_overhead_per_fragment),
        cmocka_unit_test(test_ckpt_roundtrip_each_element_is_stored_once),
        cmocka_unit_test(test_ckpt_roundtrip_shards_are_plain_hdf5),
        cmocka_unit_test(test_ckpt_roundtrip_virtual_writes_nothing),
        cmocka_unit_test(test_ckpt_roundtrip_staged),
        cmocka_unit_test(test_ckpt_roundtrip_of_sixteen_bits),
        cmocka_unit_test(test_ckpt_roundtrip_commit_refuses_gap_and_overlap),
    };
    seed = (uint64_t)time(NULL);
    print_message("seed %llu\n", (unsigned long long)seed);
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* tests: index.h5: the HDF5 library, h5dump and h5py find whole tensors in their shapes behind
 * whatever fragments the ranks wrote; it is covered by hashes, and no load needs it. */
#include "tests/checkpoints/fake_shards.h"

#include <hdf5.h>
#include <math.h>
#include <time.h>

#include "checkpoints/h5.h"

static uint64_t seed;

/* The dataset of tensor t, read as one; owner: caller. */
static uint32_t *
read_whole(hid_t file, const shl_ckpt_tensor *t)
{
    char path[256];
    hsize_t dims[SHL_MAX_DIMS] = {0};
    uint32_t *data = NULL;
    shl_strf(path, sizeof path, "/%s/%s", t->kind, t->name);
    hid_t set = H5Dopen2(file, path, H5P_DEFAULT);
    assert_true(set >= 0);
    hid_t space = H5Dget_space(set);
    assert_int_equal(H5Sget_simple_extent_ndims(space), t->n_dims);
    assert_int_equal(H5Sget_simple_extent_dims(space, dims, NULL), t->n_dims);
    for (int i = 0; i < t->n_dims; i++) {
        assert_int_equal(dims[i], t->dims[i]);
    }
    fake_ok(shl_heap_alloc((size_t)fake_elems(t), sizeof *data, &data));
    assert_true(H5Dread(set, H5T_IEEE_F32LE, H5S_ALL, H5S_ALL, H5P_DEFAULT, data) >= 0);
    (void)H5Sclose(space);
    (void)H5Dclose(set);
    return data;
}

static int64_t
count_wrong(const uint32_t *data, const fake_model *m, size_t t, uint64_t salt)
{
    int64_t wrong = 0;
    for (int64_t e = 0; e < fake_elems(&m->tensors[t]); e++) {
        wrong += data[e] != fake_bits(salt, t, e);
    }
    return wrong;
}

static void
test_ckpt_view_whole_tensors_whatever_the_cuts(void **state)
{
    char dir[64];
    char moved[80];
    char path[192];
    fake_model m = fake_make(1);
    shl_device *d = fake_device("cpu", NULL, 0);
    (void)state;
    m.tensors[4].name = m.tensors[9].name = m.tensors[14].name = "100%b%%"; /* no pattern */
    for (uint64_t round = 0; round < 16; round++) {
        int world = 1 + (int)(shl_rng_u64(seed, 1, round) % FAKE_WORLD_MAX);
        fake_folder(dir);
        fake_ok(fake_save(dir, 3, seed, world, &m, seed ^ round, d));
        /* Names in it are relative: a copy of the folder elsewhere is as good. */
        shl_strf(moved, sizeof moved, "%s/moved", dir);
        shl_strf(path, sizeof path, "%s/step-00000003", dir);
        assert_int_equal(rename(path, moved), 0);
        shl_strf(path, sizeof path, "%s/index.h5", moved);
        hid_t file = H5Fopen(path, H5F_ACC_RDONLY, H5P_DEFAULT);
        assert_true(file >= 0);
        for (size_t t = 0; t < FAKE_N; t++) {
            uint32_t *data = read_whole(file, &m.tensors[t]);
            assert_int_equal(count_wrong(data, &m, t, seed), 0);
            shl_heap_free(&data);
        }
        (void)H5Fclose(file);
        fake_remove_tree(dir);
    }
    fake_ok(shl_device_close(&d));
}

/* Every range of a tensor of 2 x 3 x 4: heads, rows, tails of every length and level. */
static void
test_ckpt_view_every_range_of_a_cube(void **state)
{
    char dir[64];
    float data[24];
    int64_t dims[3] = {2, 3, 4};
    shl_ckpt_tensor t = {"w", "param", 3, {2, 3, 4, 0}};
    shl_device *d = fake_device("cpu", NULL, 0);
    (void)state;
    for (int i = 0; i < 24; i++) {
        data[i] = (float)i;
    }
    fake_folder(dir);
    for (int64_t a = 0; a <= 24; a++) {
        for (int64_t b = a; b <= 24; b++) {
            char path[192];
            float back[24] = {0};
            const int64_t cuts[] = {0, a, b, 24};
            shl_ckpt_meta meta = fake_meta(1, seed, 1);
            shl_ckpt_writer *w = NULL;
            shl_ckpt_file file;
            fake_ok(shl_ckpt_save_prepare(dir, &meta));
            fake_ok(shl_ckpt_save_begin(dir, &meta, 0, 1, &w));
            for (int k = 0; k < 3; k++) {
                int64_t n = cuts[k + 1] - cuts[k];
                shl_shard s = {"w",  "param", 3,
                               dims, cuts[k], cuts[k + 1],
                               0,    1,       shl_tensor_1d(data + cuts[k], SHL_F32, n)};
                fake_ok(shl_ckpt_put(w, d, &s));
            }
            fake_ok(shl_ckpt_save_finish(&w, &file));
            fake_ok(shl_ckpt_save_commit(dir, &meta, &t, 1, &file, 1));
            shl_strf(path, sizeof path, "%s/step-00000001/index.h5", dir);
            hid_t f = H5Fopen(path, H5F_ACC_RDONLY, H5P_DEFAULT);
            hid_t set = H5Dopen2(f, "/param/w", H5P_DEFAULT);
            assert_true(H5Dread(set, H5T_NATIVE_FLOAT, H5S_ALL, H5S_ALL, H5P_DEFAULT, back) >= 0);
            assert_memory_equal(back, data, sizeof data);
            (void)H5Dclose(set);
            (void)H5Fclose(f);
        }
    }
    fake_ok(shl_device_close(&d));
    fake_remove_tree(dir);
}

/* Hashed like the rest, named when it is damaged, and not needed to load. */
static void
test_ckpt_view_is_verified_and_never_loaded(void **state)
{
    char dir[64];
    char path[192];
    char byte = 0;
    fake_model m = fake_make(1);
    shl_ckpt_meta meta;
    shl_ckpt_reader *r = NULL;
    shl_device *d = fake_device("cpu", NULL, 0);
    (void)state;
    fake_folder(dir);
    fake_ok(fake_save(dir, 1, seed, 3, &m, seed, d));
    fake_ok(shl_ckpt_open_manifest(dir, &r));
    assert_int_equal(shl_ckpt_n_files(r), 4);
    assert_string_equal(shl_ckpt_file_at(r, 3)->name, "index.h5");
    for (int i = 0; i < 4; i++) {
        fake_ok(shl_ckpt_check_file(r, i));
    }
    shl_strf(path, sizeof path, "%s/step-00000001/index.h5", dir);
    int fd = open(path, O_RDWR);
    off_t at = (off_t)(shl_rng_u64(seed, 7, 0) % (uint64_t)shl_ckpt_file_at(r, 3)->bytes);
    assert_int_equal(pread(fd, &byte, 1, at), 1);
    byte = (char)(byte ^ 4);
    assert_int_equal(pwrite(fd, &byte, 1, at), 1);
    fake_expect(shl_ckpt_check_file(r, 3), SHL_E_VERIFY, "index.h5 is altered");
    assert_int_equal(ftruncate(fd, at), 0);
    (void)close(fd);
    fake_expect(shl_ckpt_check_file(r, 3), SHL_E_VERIFY, "index.h5 is truncated");
    assert_int_equal(unlink(path), 0);
    fake_expect(shl_ckpt_check_file(r, 3), SHL_E_IO, "index.h5");
    shl_ckpt_close(&r);
    fake_ok(fake_load(dir, &m, 2, seed, d, &meta));
    fake_ok(shl_device_close(&d));
    fake_remove_tree(dir);
}

/* A lost shard shows as NaN, not as zeros that look like values. */
static void
test_ckpt_view_lost_shard_is_nan(void **state)
{
    char dir[64];
    char path[192];
    fake_model m = fake_make(1);
    shl_device *d = fake_device("cpu", NULL, 0);
    int64_t lost = 0;
    (void)state;
    fake_folder(dir);
    fake_ok(fake_save(dir, 1, seed, 3, &m, seed, d));
    shl_strf(path, sizeof path, "%s/step-00000001/shard-00001-of-00003.h5", dir);
    assert_int_equal(unlink(path), 0);
    shl_strf(path, sizeof path, "%s/step-00000001/index.h5", dir);
    hid_t file = H5Fopen(path, H5F_ACC_RDONLY, H5P_DEFAULT);
    for (size_t t = 0; t < FAKE_N; t++) {
        uint32_t *data = read_whole(file, &m.tensors[t]);
        for (int64_t e = 0; e < fake_elems(&m.tensors[t]); e++) {
            float value;
            memcpy(&value, &data[e], sizeof value);
            assert_true(data[e] == fake_bits(seed, t, e) || isnan(value));
            lost += data[e] != fake_bits(seed, t, e);
        }
        shl_heap_free(&data);
    }
    (void)H5Fclose(file);
    assert_true(lost > 0);
    fake_ok(shl_device_close(&d));
    fake_remove_tree(dir);
}

/* The tools that people have, where they have them. */
static void
test_ckpt_view_opens_in_h5py_and_h5dump(void **state)
{
    static const char script[] =
        "python3 -c \"import h5py, sys\n"
        "f = h5py.File(sys.argv[1] + '/step-00000001/index.h5', 'r')\n"
        "raw = open(sys.argv[1] + '/expected', 'rb').read()\n"
        "sys.exit(f['/opt/v/cube'][...].tobytes() != raw or f['/opt/v/cube'].shape != (5, 7, 3))\n"
        "\" '%s' 2>/dev/null";
    char dir[64];
    char text[1024];
    fake_model m = fake_make(1);
    shl_device *d = fake_device("cpu", NULL, 0);
    int tools = 0;
    (void)state;
    fake_folder(dir);
    fake_ok(fake_save(dir, 1, seed, 4, &m, seed, d));
    uint32_t expected[5 * 7 * 3];
    for (int64_t e = 0; e < (int64_t)SHL_ARRAY_LEN(expected); e++) {
        expected[e] = fake_bits(seed, FAKE_N - 1, e);
    }
    shl_strf(text, sizeof text, "%s/expected", dir);
    fake_ok(shl_ckpt_put_text(text, (const char *)expected, sizeof expected));
    if (system("python3 -c 'import h5py' 2>/dev/null") == 0) {
        shl_strf(text, sizeof text, script, dir);
        assert_int_equal(system(text), 0);
        tools++;
    }
    if (system("command -v h5dump >/dev/null") == 0) {
        shl_strf(
            text, sizeof text,
            "h5dump -d /opt/v/cube -b LE -o '%s/dumped' '%s/step-00000001/index.h5' >/dev/null "
            "&& cmp '%s/dumped' '%s/expected'",
            dir, dir, dir, dir);
        assert_int_equal(system(text), 0);
        tools++;
    }
    fake_ok(shl_device_close(&d));
    fake_remove_tree(dir);
    print_message("%d of h5py and h5dump are here\n", tools);
    if (tools == 0) {
        skip();
    }
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ckpt_view_whole_tensors_whatever_the_cuts),
        cmocka_unit_test(test_ckpt_view_every_range_of_a_cube),
        cmocka_unit_test(test_ckpt_view_is_verified_and_never_loaded),
        cmocka_unit_test(test_ckpt_view_lost_shard_is_nan),
        cmocka_unit_test(test_ckpt_view_opens_in_h5py_and_h5dump),
    };
    seed = (uint64_t)time(NULL);
    print_message("seed %llu\n", (unsigned long long)seed);
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* tests: checkpoints that are altered, truncated, incomplete, mixed or of another model: each gives
 * its code and a message that names the file or the tensor. */
#include "tests/checkpoints/fake_shards.h"

#include <time.h>

static uint64_t seed;

/* Steps 4 and 5 of one run, by three ranks; `latest` names step 5. */
typedef struct scene {
    char dir[64];
    fake_model m;
    shl_device *d;
} scene;

typedef struct text {
    char *bytes;
    size_t len;
} text;

static int
set_up(void **state)
{
    static scene s;
    s.m = fake_make(1);
    s.d = fake_device("cpu", NULL, 0);
    assert_non_null(s.d);
    fake_folder(s.dir);
    fake_ok(fake_save(s.dir, 4, seed + 4, 3, &s.m, seed, s.d));
    fake_ok(fake_save(s.dir, 5, seed + 5, 3, &s.m, seed, s.d));
    *state = &s;
    return 0;
}

static int
tear_down(void **state)
{
    scene *s = *state;
    fake_ok(shl_device_close(&s->d));
    fake_remove_tree(s->dir);
    return 0;
}

static void
path_of(const scene *s, const char *name, char path[256])
{
    shl_strf(path, 256, "%s/%s", s->dir, name);
}

static text
read_file(const scene *s, const char *name)
{
    char path[256];
    text t = {NULL, 0};
    path_of(s, name, path);
    int fd = -1;
    int64_t bytes = 0;
    fake_ok(shl_ckpt_open_file(AT_FDCWD, path, path, &fd, &bytes));
    (void)close(fd);
    fake_ok(shl_ckpt_slurp(AT_FDCWD, path, path, (size_t)1 << 30, &t.bytes, &t.len));
    return t;
}

static void
write_file(const scene *s, const char *name, const char *bytes, size_t len)
{
    char path[256];
    path_of(s, name, path);
    fake_ok(shl_ckpt_put_text(path, bytes, len));
}

static shl_code
try_open(const char *path, bool verify)
{
    shl_ckpt_reader *r = NULL;
    shl_code code = shl_ckpt_open(path, verify, &r);
    assert_true((r != NULL) == (code == SHL_OK));
    shl_ckpt_close(&r);
    return code;
}

static const char *const all_files[] = {
    "latest", "step-00000005/COMMIT", "step-00000005/manifest.json",
    "step-00000005/shard-00000-of-00003.h5", "step-00000005/shard-00002-of-00003.h5"};

/* What a message about the file must contain: its last part. */
static const char *
last_part(const char *name)
{
    const char *slash = strrchr(name, '/');
    return slash != NULL ? slash + 1 : name;
}

static void
test_ckpt_damage_one_altered_byte(void **state)
{
    const scene *s = *state;
    fake_ok(try_open(s->dir, true));
    for (size_t f = 0; f < SHL_ARRAY_LEN(all_files); f++) {
        text t = read_file(s, all_files[f]);
        size_t rounds = t.len < 160 ? t.len : 160;
        for (size_t i = 0; i < rounds; i++) {
            size_t at = rounds == t.len ? i : (size_t)(shl_rng_u64(seed, f, i) % t.len);
            char keep = t.bytes[at];
            t.bytes[at] = (char)(keep ^ (1 << shl_rng_u64(seed, f + 50, i) % 8));
            write_file(s, all_files[f], t.bytes, t.len);
            t.bytes[at] = keep;
            fake_expect(try_open(s->dir, true), SHL_E_VERIFY, last_part(all_files[f]));
        }
        write_file(s, all_files[f], t.bytes, t.len);
        fake_ok(try_open(s->dir, true));
        shl_heap_free(&t.bytes);
    }
}

static void
test_ckpt_damage_truncated_or_longer(void **state)
{
    const scene *s = *state;
    for (size_t f = 0; f < SHL_ARRAY_LEN(all_files); f++) {
        text t = read_file(s, all_files[f]);
        for (size_t i = 0; i < 20; i++) {
            size_t len = i == 0 ? 0 : t.len - 1 - (size_t)(shl_rng_u64(seed, f, i) % t.len);
            write_file(s, all_files[f], t.bytes, len);
            fake_expect(try_open(s->dir, true), SHL_E_VERIFY, last_part(all_files[f]));
            if (strstr(all_files[f], "shard") != NULL) {
                fake_expect(try_open(s->dir, false), SHL_E_VERIFY, "truncated");
            }
        }
        char *longer = NULL;
        fake_ok(shl_heap_alloc(t.len + 1, 1, &longer));
        memcpy(longer, t.bytes, t.len);
        write_file(s, all_files[f], longer, t.len + 1);
        fake_expect(try_open(s->dir, true), SHL_E_VERIFY, last_part(all_files[f]));
        shl_heap_free(&longer);
        write_file(s, all_files[f], t.bytes, t.len);
        shl_heap_free(&t.bytes);
    }
    fake_ok(try_open(s->dir, true));
}

/* Gone, or something else in its place: a folder, a symbolic link to the file, a pipe. */
static void
test_ckpt_damage_missing_or_not_a_file(void **state)
{
    const scene *s = *state;
    char path[256];
    char aside[256];
    for (size_t f = 0; f < SHL_ARRAY_LEN(all_files); f++) {
        path_of(s, all_files[f], path);
        path_of(s, "aside", aside);
        assert_int_equal(rename(path, aside), 0);
        bool latest = strcmp(all_files[f], "latest") == 0;
        bool commit = strstr(all_files[f], "COMMIT") != NULL;
        fake_expect(try_open(s->dir, true), SHL_E_IO,
                    commit ? "not a complete checkpoint" : last_part(all_files[f]));
        if (commit) {
            assert_non_null(strstr(shl_err_get()->because, "COMMIT"));
        }
        if (latest) {
            assert_non_null(strstr(shl_err_get()->because, "step-00000005"));
            assert_non_null(strstr(shl_err_get()->because, "step-00000004"));
            assert_non_null(strstr(shl_err_get()->advice, "step-00000005"));
        }
        assert_int_equal(symlink(aside, path), 0);
        fake_expect(try_open(s->dir, true), SHL_E_IO, last_part(all_files[f]));
        assert_int_equal(unlink(path), 0);
        assert_int_equal(mkfifo(path, 0600), 0);
        fake_expect(try_open(s->dir, true), SHL_E_IO, last_part(all_files[f]));
        assert_int_equal(unlink(path), 0);
        assert_int_equal(mkdir(path, 0700), 0);
        fake_expect(try_open(s->dir, true), SHL_E_IO, last_part(all_files[f]));
        assert_int_equal(rmdir(path), 0);
        assert_int_equal(rename(aside, path), 0);
    }
    fake_ok(try_open(s->dir, true));
}

static void
test_ckpt_damage_no_checkpoint_there(void **state)
{
    const scene *s = *state;
    char path[256];
    char empty[64];
    path_of(s, "nowhere", path);
    fake_expect(try_open(path, true), SHL_E_IO, "nowhere");
    path_of(s, "step-00000077", path);
    fake_expect(try_open(path, true), SHL_E_IO, "step-00000077");
    fake_folder(empty);
    fake_expect(try_open(empty, true), SHL_E_IO, "names no checkpoint");
    assert_non_null(strstr(shl_err_get()->because, "no checkpoint"));
    fake_remove_tree(empty);
    fake_expect(try_open("", true), SHL_E_USAGE, "path");
    path_of(s, "latest", path);
    fake_expect(try_open(path, true), SHL_E_IO, "latest");
}

/* `latest` is whole but what it names is gone or not complete: the message tells what there is. */
static void
test_ckpt_damage_latest_dangles(void **state)
{
    const scene *s = *state;
    char path[256];
    char aside[256];
    path_of(s, "step-00000005", path);
    path_of(s, "aside", aside);
    assert_int_equal(rename(path, aside), 0);
    fake_expect(try_open(s->dir, true), SHL_E_IO, "names step-00000005, which is missing");
    assert_non_null(strstr(shl_err_get()->because, "step-00000004"));
    assert_null(strstr(shl_err_get()->because, "step-00000005"));
    assert_int_equal(mkdir(path, 0700), 0);
    fake_expect(try_open(s->dir, true), SHL_E_IO, "step-00000005 is not a complete checkpoint");
    assert_int_equal(rmdir(path), 0);
    assert_int_equal(rename(aside, path), 0);
}

static void
swap_files(const scene *s, const char *a, const char *b)
{
    text x = read_file(s, a);
    text y = read_file(s, b);
    write_file(s, a, y.bytes, y.len);
    write_file(s, b, x.bytes, x.len);
    shl_heap_free(&x.bytes);
    shl_heap_free(&y.bytes);
}

static void
test_ckpt_damage_mixed_steps_and_ranks(void **state)
{
    const scene *s = *state;
    char direct[256];
    path_of(s, "step-00000005", direct);
    swap_files(s, "step-00000004/shard-00001-of-00003.h5", "step-00000005/shard-00001-of-00003.h5");
    fake_expect(try_open(s->dir, true), SHL_E_VERIFY, "shard-00001-of-00003.h5");
    swap_files(s, "step-00000004/shard-00001-of-00003.h5", "step-00000005/shard-00001-of-00003.h5");
    swap_files(s, "step-00000005/shard-00000-of-00003.h5", "step-00000005/shard-00001-of-00003.h5");
    fake_expect(try_open(s->dir, true), SHL_E_VERIFY, "shard-0000");
    swap_files(s, "step-00000005/shard-00000-of-00003.h5", "step-00000005/shard-00001-of-00003.h5");
    swap_files(s, "step-00000004/manifest.json", "step-00000005/manifest.json");
    fake_expect(try_open(s->dir, true), SHL_E_VERIFY, "manifest.json");
    swap_files(s, "step-00000004/COMMIT", "step-00000005/COMMIT");
    fake_expect(try_open(s->dir, true), SHL_E_VERIFY, "step-00000005 holds another step");
    fake_expect(try_open(direct, true), SHL_E_VERIFY, "shard-00000-of-00003.h5");
    swap_files(s, "step-00000004/COMMIT", "step-00000005/COMMIT");
    swap_files(s, "step-00000004/manifest.json", "step-00000005/manifest.json");
    fake_ok(try_open(s->dir, true));
    fake_ok(try_open(direct, true));
}

static void
test_ckpt_damage_another_model(void **state)
{
    const scene *s = *state;
    shl_ckpt_tensor t[FAKE_N + 1];
    shl_ckpt_reader *r = NULL;
    float data[8];
    fake_ok(shl_ckpt_open(s->dir, true, &r));
    memcpy(t, s->m.tensors, sizeof s->m.tensors);
    fake_ok(shl_ckpt_check_tensors(r, t, (int)FAKE_N, true));
    t[FAKE_N] = (shl_ckpt_tensor){"h.1.ln_1.weight", "param", 1, {8, 0, 0, 0}};
    fake_expect(shl_ckpt_check_tensors(r, t, (int)FAKE_N + 1, true), SHL_E_CONFIG,
                "param/h.1.ln_1.weight is missing");
    fake_expect(shl_ckpt_check_tensors(r, t, (int)FAKE_N - 1, true), SHL_E_CONFIG,
                "opt/v/cube is extra");
    fake_ok(shl_ckpt_check_tensors(r, t, (int)FAKE_N - 1, false));
    t[0].dims[1] += 1;
    fake_expect(shl_ckpt_check_tensors(r, t, (int)FAKE_N, true), SHL_E_CONFIG,
                "param/wte.weight has another shape");
    assert_non_null(strstr(shl_err_get()->because, "37 x 16"));
    assert_non_null(strstr(shl_err_get()->because, "37 x 17"));
    t[0].dims[1] -= 1;
    t[0].n_dims = 1;
    fake_expect(shl_ckpt_check_tensors(r, t, (int)FAKE_N, true), SHL_E_CONFIG, "param/wte.weight");
    int64_t dims = 8;
    shl_shard shard = {
        "h.1.ln_1.weight", "param", 1, &dims, 0, 8, 0, 1, shl_tensor_1d(data, SHL_F32, 8)};
    fake_expect(shl_ckpt_get(r, s->d, &shard), SHL_E_CONFIG, "h.1.ln_1.weight");
    shl_ckpt_close(&r);
}

static shl_code
parse(const char *bytes, size_t len)
{
    shl_ckpt_meta meta;
    shl_ckpt_index x;
    shl_code code = shl_ckpt_manifest_parse("manifest.json", bytes, len, &meta, &x);
    shl_ckpt_index_fini(&x);
    return code;
}

/* The parser alone, without the hash before it: nothing but the whole text in its form passes. */
static void
test_ckpt_damage_manifest_is_parsed_strictly(void **state)
{
    static const char *const edits[][2] = {
        {"\"version\":3", "\"version\":1"},
        {"\"version\":3", "\"version\":2"}, /* which has no scaler */
        {"\"version\":3", "\"version\":4"},
        {"\"version\":3", "\"version\":3.0"},
        {"\"version\":3", "\"version\":3,\"version\":1"},
        {"\"version\":3", "\"version\":3,\"more\":1"},
        {"\"skipped\":0", "\"skipped\":6"},
        {"\"skipped\":0", "\"skipped\":-1"},
        {"\"scaler\":{", "\"scaler\":{\"more\":1,"},
        {"\"kind\":\"none\"", "\"kind\":\"constant\""},
        {"\"scale\":1", "\"scale\":0"},
        {"\"scale\":1", "\"scale\":-1"},
        {"\"scale\":1", "\"scale\":\"1\""},
        {"\"last_overflow\":-1", "\"last_overflow\":5"},
        {"\"format\":\"shardlab", "\"format\":\"shardlib"},
        {"\"step\":5", "\"step\":-5"},
        {"\"step\":5", "\"step\":99999999999999999999"},
        {"\"step\":5", "\"step\":NaN"},
        {"\"step\":5", "\"stop\":5"},
        {"\"seed\":\"", "\"seed\":\"x"},
        {"\"seed\":\"", "\"seed\":\"-"},
        {"\"world\":3", "\"world\":2"},
        {"\"world\":3", "\"world\":0"},
        {"\"model\":\"fake\"", "\"model\":7"},
        {"\"model\":\"fake\"", "\"model\":\"a\\u0000b\""},
        {"\"config\":{", "\"config\":[{"},
        {"\"name\":\"cube\"", "\"name\":\"../cube\""},
        {"\"name\":\"cube\"", "\"name\":\"h.0.attn.c_attn.bias\""},
        {"\"name\":\"cube\"", "\"name\":\"\""},
        {"\"dims\":[", "\"dims\":[0,"},
        {"\"dims\":[", "\"dims\":[4611686018427387904,4,"},
        {"\"dims\":[", "\"dims\":[1,1,1,"},
        {"shard-00001-of-00003.h5", "shard-00000-of-00003.h5"},
        {"shard-00001-of-00003.h5", "/etc/passwd"},
        {"\"xxh3_128\":\"", "\"xxh3_128\":\"0"},
        {"\"name\":\"index.h5\"", "\"name\":\"/etc/passwd\""},
        {"\"name\":\"index.h5\",", "\"name\":\"index.h5\",\"fragments\":[],"},
        {"\"view\":{", "\"sight\":{"},
        {"\"fragments\":[[", "\"fragments\":[[99,0,1,0],["},
        {"\"fragments\":[[", "\"fragments\":[[0,0,1,2048],["},
        {"\"fragments\":[[", "\"fragments\":[[-1,0,1,2048],["},
        {"\"fragments\":[[", "\"fragments\":[[0,0,1],["},
        {"\"fragments\":[[", "\"fragments\":[[0,0,9223372036854775807,0],["},
    };
    const scene *s = *state;
    text t = read_file(s, "step-00000005/manifest.json");
    fake_ok(parse(t.bytes, t.len));
    /* Without its last line feed the text is still whole. */
    for (size_t len = 0; len + 1 < t.len; len++) {
        assert_int_equal(parse(t.bytes, len), SHL_E_VERIFY);
    }
    for (size_t i = 0; i < SHL_ARRAY_LEN(edits); i++) {
        shl_str edited;
        const char *at = strstr(t.bytes, edits[i][0]);
        assert_non_null(at);
        shl_str_init(&edited);
        shl_str_add_text(&edited, t.bytes, (size_t)(at - t.bytes));
        shl_str_add(&edited, "%s%s", edits[i][1], at + strlen(edits[i][0]));
        shl_code code = parse(edited.text, edited.len);
        if (code != SHL_E_VERIFY) {
            print_error("accepted: %s\n", edits[i][1]);
        }
        assert_int_equal(code, SHL_E_VERIFY);
        shl_str_fini(&edited);
    }
    shl_heap_free(&t.bytes);
}

/* What version 2 wrote: neither skipped steps nor a scaler. */
static void
test_ckpt_damage_an_older_manifest_is_read(void **state)
{
    const scene *s = *state;
    text t = read_file(s, "step-00000005/manifest.json");
    shl_ckpt_meta meta;
    shl_ckpt_index x;
    shl_str old;
    char *version = strstr(t.bytes, "\"version\":3");
    char *skipped = strstr(t.bytes, "\"skipped\"");
    const char *config = strstr(t.bytes, "\"config\"");
    assert_true(version != NULL && skipped != NULL && config > skipped);
    version[strlen("\"version\":")] = '2';
    shl_str_init(&old);
    shl_str_add_text(&old, t.bytes, (size_t)(skipped - t.bytes));
    shl_str_add(&old, "%s", config);
    fake_ok(shl_ckpt_manifest_parse("m", old.text, old.len, &meta, &x));
    assert_int_equal(meta.step, 5);
    assert_int_equal(meta.skipped, 0);
    assert_string_equal(meta.scaler, "none");
    assert_true(meta.scale == 1.0);
    shl_ckpt_index_fini(&x);
    shl_str_fini(&old);
    shl_heap_free(&t.bytes);
}

/* Numbers beyond 2^63 and texts that JSON must escape come back as they were. */
static void
test_ckpt_damage_manifest_keeps_what_belongs_to_the_run(void **state)
{
    shl_ckpt_meta meta = fake_meta(0, UINT64_MAX, 1);
    shl_ckpt_meta back;
    shl_ckpt_index x;
    shl_ckpt_index y;
    shl_str out;
    int64_t dims = 3;
    shl_ckpt_fragment f = {0, 0, 0, 3, 1024};
    (void)state;
    meta.step = INT64_MAX;
    meta.data_sample = INT64_MAX;
    meta.skipped = 12;
    shl_strf(meta.scaler, sizeof meta.scaler, "dynamic");
    meta.scale = 1000.0 / 3.0;
    meta.hysteresis_left = 2;
    meta.scaler_steps = INT64_MAX;
    meta.last_overflow = 7;
    shl_strf(meta.model, sizeof meta.model, "%s", "a \"b\" \\ \n \xc3\xa9");
    shl_strf(meta.config, sizeof meta.config, "%s",
             "{\"b\":[1,{}],\"a\":\"\\n\",\"lr\":0.0001,\"big\":1e300,\"yes\":true}");
    fake_ok(shl_ckpt_index_init(&x, 1, 1));
    fake_ok(shl_ckpt_entry_set(&x.tensors[0], "param", "w", 1, &dims));
    x.files[0] = (shl_ckpt_file){"shard-00000-of-00001.h5", 2048, {1, UINT64_MAX}};
    x.view = (shl_ckpt_file){"index.h5", 4096, {UINT64_MAX, 1}};
    fake_ok(shl_ckpt_index_add(&x, &f));
    shl_str_init(&out);
    fake_ok(shl_ckpt_manifest_write(&meta, &x, &out));
    fake_ok(shl_ckpt_manifest_parse("m", out.text, out.len, &back, &y));
    assert_string_equal(back.model, meta.model);
    assert_true(back.seed == meta.seed);
    assert_int_equal(back.step, meta.step);
    assert_int_equal(back.data_sample, meta.data_sample);
    assert_int_equal(back.skipped, meta.skipped);
    assert_string_equal(back.scaler, meta.scaler);
    assert_memory_equal(&back.scale, &meta.scale, sizeof meta.scale);
    assert_int_equal(back.hysteresis_left, meta.hysteresis_left);
    assert_int_equal(back.scaler_steps, meta.scaler_steps);
    assert_int_equal(back.last_overflow, meta.last_overflow);
    assert_memory_equal(y.files, x.files, sizeof *x.files);
    assert_memory_equal(&y.view, &x.view, sizeof x.view);
    assert_memory_equal(y.fragments, x.fragments, sizeof *x.fragments);
    assert_non_null(strstr(back.config, "\"b\":[1,{}]"));
    shl_str_fini(&out);
    meta = back; /* what was read is written the same way again */
    fake_ok(shl_ckpt_manifest_write(&meta, &y, &out));
    shl_ckpt_index_fini(&x);
    fake_ok(shl_ckpt_manifest_parse("m", out.text, out.len, &back, &x));
    assert_string_equal(back.config, meta.config);
    shl_str_fini(&out);
    shl_ckpt_index_fini(&x);
    shl_ckpt_index_fini(&y);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ckpt_damage_one_altered_byte),
        cmocka_unit_test(test_ckpt_damage_truncated_or_longer),
        cmocka_unit_test(test_ckpt_damage_missing_or_not_a_file),
        cmocka_unit_test(test_ckpt_damage_no_checkpoint_there),
        cmocka_unit_test(test_ckpt_damage_latest_dangles),
        cmocka_unit_test(test_ckpt_damage_mixed_steps_and_ranks),
        cmocka_unit_test(test_ckpt_damage_another_model),
        cmocka_unit_test(test_ckpt_damage_manifest_is_parsed_strictly),
        cmocka_unit_test(test_ckpt_damage_manifest_keeps_what_belongs_to_the_run),
        cmocka_unit_test(test_ckpt_damage_an_older_manifest_is_read),
    };
    seed = (uint64_t)time(NULL);
    print_message("seed %llu\n", (unsigned long long)seed);
    return cmocka_run_group_tests(tests, set_up, tear_down);
}

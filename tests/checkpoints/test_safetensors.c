/* tests: weights in safetensors: golden files bit for bit, conversions, every way to break the format
 * with its own message, and nothing left behind when memory ends. */
#include "checkpoints/safetensors.h"

#include <math.h>

#include "kernels/base/half.h"
#include "kernels/base/rng.h"
#include "tests/checkpoints/weight_files.h"
#include "tests/support/golden.h"

static const char *
what(void)
{
    return shl_err_get()->what;
}

static shl_safetensors *
open_ok(const char *path)
{
    shl_safetensors *r = NULL;
    if (shl_safetensors_open(path, &r) != SHL_OK) {
        fail_msg("%s: %s (%s)", path, what(), shl_err_get()->because);
    }
    assert_non_null(r);
    return r;
}

/* --- golden ------------------------------------------------------------------------------ */

static float
round_bf16(float x)
{
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    u = (u + 0x7fffu + (u >> 16 & 1u)) & 0xffff0000u;
    memcpy(&x, &u, sizeof u);
    return x;
}

/* Every parameter of the model file is in the weights, with the same bits, read whole and in pieces. */
static void
check_golden(const char *h5, const char *path, bool bf16)
{
    hid_t file = shl_golden_open(h5);
    size_t n_names = 0, stride = 0;
    char *names = shl_golden_text(file, "/tensors/name", &n_names, &stride);
    shl_safetensors *r = open_ok(path);
    int64_t elems = 0;
    assert_int_equal(shl_safetensors_count(r), n_names);
    for (size_t i = 0; i < n_names; i++) {
        char where[256];
        size_t n = 0;
        shl_strf(where, sizeof where, "/param/%s", names + i * stride);
        float *want = shl_golden_f32(file, where, &n), *got = NULL;
        int at = shl_safetensors_find(r, names + i * stride);
        assert_true(at >= 0);
        shl_safetensor t = shl_safetensors_at(r, at);
        assert_int_equal(t.elems, n);
        assert_int_equal(t.bytes, n * (bf16 ? 2 : 4));
        assert_string_equal(t.dtype, bf16 ? "BF16" : "F32");
        assert_int_equal(shl_heap_alloc(n, sizeof *got, &got), SHL_OK);
        int64_t cut = (int64_t)(shl_rng_u64(3, 1, i) % (n + 1));
        assert_int_equal(shl_safetensors_read(r, at, 0, cut, SHL_F32, got), SHL_OK);
        assert_int_equal(shl_safetensors_read(r, at, cut, (int64_t)n, SHL_F32, got + cut), SHL_OK);
        for (size_t k = 0; k < n; k++) {
            want[k] = bf16 ? round_bf16(want[k]) : want[k];
        }
        assert_memory_equal(want, got, n * sizeof *got);
        elems += t.elems;
        shl_heap_free(&want);
        shl_heap_free(&got);
    }
    assert_int_equal(shl_safetensors_bytes_read(r), elems * (bf16 ? 2 : 4));
    shl_safetensors_close(&r);
    assert_null(r);
    shl_heap_free(&names);
    shl_golden_close(file);
}

static void
test_safetensors_golden_tensors_equal_the_model_files(void **state)
{
    (void)state;
    check_golden("gpt2-tiny.h5", weight_golden("gpt2-tiny.safetensors"), false);
    check_golden("gpt2-tiny.h5", weight_golden("gpt2-tiny-bf16.safetensors"), true);
}

/* The same tensors from one file and from two shards. */
static void
test_safetensors_golden_shards_equal_the_whole(void **state)
{
    (void)state;
    shl_safetensors *a = open_ok(weight_golden("llama-tiny.safetensors"));
    shl_safetensors *b = open_ok(weight_golden("llama-tiny-sharded"));
    shl_safetensors *c = open_ok(weight_golden("llama-tiny-sharded/model.safetensors.index.json"));
    assert_int_equal(shl_safetensors_count(a), shl_safetensors_count(b));
    assert_int_equal(shl_safetensors_count(a), shl_safetensors_count(c));
    int shards = 0;
    for (int i = 0; i < shl_safetensors_count(a); i++) {
        shl_safetensor t = shl_safetensors_at(a, i), u = shl_safetensors_at(b, i);
        float *x = NULL, *y = NULL;
        assert_string_equal(t.name, u.name);
        assert_int_equal(t.n_dims, u.n_dims);
        assert_memory_equal(t.dims, u.dims, sizeof t.dims);
        shards |= 1 << (strstr(u.file, "00001-of") ? 0 : 1);
        assert_int_equal(shl_heap_alloc((size_t)t.elems, sizeof *x, &x), SHL_OK);
        assert_int_equal(shl_heap_alloc((size_t)t.elems, sizeof *y, &y), SHL_OK);
        assert_int_equal(shl_safetensors_read(a, i, 0, t.elems, SHL_F32, x), SHL_OK);
        assert_int_equal(shl_safetensors_read(b, i, 0, t.elems, SHL_F32, y), SHL_OK);
        assert_memory_equal(x, y, (size_t)t.elems * sizeof *x);
        shl_heap_free(&x);
        shl_heap_free(&y);
    }
    assert_int_equal(shards, 3);
    shl_safetensors_close(&a);
    shl_safetensors_close(&b);
    shl_safetensors_close(&c);
}

/* --- files of our own -------------------------------------------------------------------- */

static void
test_safetensors_names_are_found_with_and_without_prefix(void **state)
{
    (void)state;
    const char *path = weight_path("names.safetensors");
    weight_put_file(path,
                    "{\"transformer.b\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},"
                    "\"model.c\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[4,8]},"
                    "\"a\":{\"dtype\":\"U8\",\"shape\":[0,3],\"data_offsets\":[0,0]}}   ",
                    NULL, 8);
    shl_safetensors *r = open_ok(path);
    assert_int_equal(shl_safetensors_count(r), 3);
    static const char *const spellings[] = {"b",       "transformer.b", "c", "model.c", "a",
                                            "model.b", "transformer",   "d", ""};
    static const char *const keys[] = {"b", "b", "c", "c", "a", "b", NULL, NULL, NULL};
    for (size_t i = 0; i < SHL_ARRAY_LEN(spellings); i++) {
        int at = shl_safetensors_find(r, spellings[i]);
        assert_int_equal(at >= 0, keys[i] != NULL);
        if (keys[i]) {
            assert_string_equal(shl_safetensors_at(r, at).key, keys[i]);
        }
    }
    shl_safetensor c = shl_safetensors_at(r, shl_safetensors_find(r, "c"));
    assert_true(c.n_dims == 0 && c.elems == 1 && strcmp(c.name, "model.c") == 0);
    /* A dtype that is no parameter's is known, and refused only when it is read. */
    float x;
    assert_int_equal(shl_safetensors_read(r, shl_safetensors_find(r, "a"), 0, 0, SHL_F32, &x),
                     SHL_E_CONFIG);
    assert_non_null(strstr(what(), "a is U8"));
    int b = shl_safetensors_find(r, "b");
    assert_int_equal(shl_safetensors_read(r, b, 0, 2, SHL_F32, &x), SHL_E_BUG);
    assert_int_equal(shl_safetensors_read(r, b, -1, 1, SHL_F32, &x), SHL_E_BUG);
    assert_int_equal(shl_safetensors_read(r, b, 1, 0, SHL_F32, &x), SHL_E_BUG);
    shl_safetensors_close(&r);
}

/* The same tensor as bf16 and fp16, of the fp32 values that it has. */
static void
check_sixteen_bits(shl_safetensors *r, int at, const float *values)
{
    static const shl_dtype types[] = {SHL_BF16, SHL_F16};
    static uint16_t got[65536];
    for (int k = 0; k < 2; k++) {
        assert_int_equal(shl_safetensors_read(r, at, 3, 65536, types[k], got), SHL_OK);
        for (int i = 3; i < 65536; i++) {
            uint16_t want = k == 0 ? shl_bf16_from_f32(values[i]) : shl_f16_from_f32(values[i]);
            assert_true(got[i - 3] == want || isnan(values[i]));
        }
    }
    assert_int_equal(shl_safetensors_read(r, at, 0, 1, SHL_I32, got), SHL_E_BUG);
}

/* All 65536 values of both 16-bit types against the definition, through a range longer than a chunk. */
static void
test_safetensors_widening_is_exact(void **state)
{
    (void)state;
    static uint16_t bits[2 * 65536];
    static float got[65536];
    for (size_t i = 0; i < 2 * 65536; i++) {
        bits[i] = (uint16_t)i;
    }
    const char *path = weight_path("wide.safetensors");
    weight_put_file(
        path,
        "{\"h\":{\"dtype\":\"F16\",\"shape\":[65536],\"data_offsets\":[0,131072]},"
        "\"b\":{\"dtype\":\"BF16\",\"shape\":[256,256],\"data_offsets\":[131072,262144]}}",
        bits, sizeof bits);
    shl_safetensors *r = open_ok(path);
    for (int type = 0; type < 2; type++) {
        int e_bits = type == 0 ? 5 : 8, m_bits = 15 - e_bits, bias = (1 << (e_bits - 1)) - 1;
        int at = shl_safetensors_find(r, type == 0 ? "h" : "b");
        assert_int_equal(shl_safetensors_read(r, at, 0, 65536, SHL_F32, got), SHL_OK);
        for (int i = 0; i < 65536; i++) {
            int e = (i >> m_bits) & ((1 << e_bits) - 1), m = i & ((1 << m_bits) - 1);
            double one = ldexp(1.0, m_bits);
            double want = e == 0 ? ldexp(m / one, 1 - bias) : ldexp(1.0 + m / one, e - bias);
            if (e == (1 << e_bits) - 1) {
                assert_true(m ? isnan(got[i]) : isinf(got[i]));
                continue;
            }
            assert_true((double)got[i] == (i & 0x8000 ? -want : want));
            assert_int_equal(signbit(got[i]) != 0, i >> 15);
        }
        check_sixteen_bits(r, at, got);
    }
    shl_safetensors_close(&r);
}

typedef struct broken {
    const char *header;
    size_t data;
    const char *what, *because;
} broken;

#define T(dtype, shape, from, to)                                                                  \
    "{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":[" from "," to "]}"
#define ONE(info) "{\"w\":" info "}"
#define TWO(a, b) "{\"a\":" a ",\"b\":" b "}"

static const broken table[] = {
    {"", 0, "not JSON", "begin with '{'"},
    {" {}", 0, "not JSON", "begin with '{'"},
    {"[]", 0, "not JSON", "begin with '{'"},
    {"{\"w\":", 0, "not JSON", "line 1"},
    {"{} x", 0, "not JSON", "line 1"},
    {"{\"w\":{\"shape\":[99999999999999999999]}}", 0, "not JSON", "too big integer"},
    {"{\"\xff\":1}", 0, "not JSON", "decode byte"},
    {"{\"a\\u0000b\":1}", 0, "not JSON", "NUL"},
    {"{\"__metadata__\":{\"a\":1}}", 0, "__metadata__ is not an object of texts", ""},
    {"{\"__metadata__\":7}", 0, "__metadata__ is not an object of texts", ""},
    {"{\"w\":3}", 0, "tensor w is no JSON object", ""},
    {ONE("{}"), 0, "tensor w has no dtype", ""},
    {ONE("{\"dtype\":7}"), 0, "tensor w has a dtype that is no text", ""},
    {ONE(T("F17", "[1]", "0", "4")), 4, "tensor w has the unknown dtype \"F17\"", "BF16"},
    {ONE(T("f32", "[1]", "0", "4")), 4, "unknown dtype \"f32\"", "F32"},
    {ONE("{\"dtype\":\"F32\"}"), 0, "tensor w has no shape", ""},
    {ONE(T("F32", "4", "0", "4")), 4, "tensor w has a shape that is no array", ""},
    {ONE(T("F32", "[-1]", "0", "4")), 4, "tensor w has a bad shape", "dimension 0"},
    {ONE(T("F32", "[1,1.0]", "0", "4")), 4, "tensor w has a bad shape", "dimension 1"},
    {ONE(T("F32", "[1,1,1,1,1,1,1,1,1]", "0", "4")), 4, "too many dimensions", "9, at most 8"},
    {ONE(T("F32", "[4611686018427387904,4]", "0", "0")), 0, "tensor w has a shape that overflows",
     "64 bits"},
    {ONE(T("F32", "[0,4611686018427387904,4]", "0", "0")), 0, "has a shape that overflows", ""},
    {ONE(T("F64", "[1152921504606846976]", "0", "0")), 0, "has a shape that overflows", ""},
    {ONE("{\"dtype\":\"F32\",\"shape\":[1]}"), 4, "tensor w has bad data_offsets", "missing"},
    {ONE("{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0]}"), 4, "bad data_offsets",
     "not two"},
    {ONE("{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4,8]}"), 4, "bad data_offsets",
     "not two"},
    {ONE("{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4.0]}"), 4, "bad data_offsets",
     "not two"},
    {ONE(T("F32", "[1]", "4", "0")), 4, "data_offsets out of order", "begins at 4 and ends at 0"},
    {ONE(T("F32", "[1]", "-4", "0")), 4, "data_offsets out of order", "-4"},
    {ONE(T("F32", "[2]", "0", "8")), 7, "tensor w lies beyond the end", "byte 8 of the tensors"},
    {ONE(T("F32", "[1]", "0", "9223372036854775807")), 4, "beyond the end of the file",
     "truncated"},
    {ONE(T("F32", "[3]", "0", "8")), 8, "tensor w has another size than its shape",
     "3 elements of F32 are 12 bytes, data_offsets say 8"},
    {ONE(T("F4", "[3]", "0", "1")), 1, "another size than its shape", "3 elements of F4"},
    {ONE(T("F32", "[0]", "0", "4")), 4, "another size than its shape", "0 elements"},
    {TWO(T("F32", "[2]", "0", "8"), T("F32", "[2]", "4", "12")), 12, "tensor b overlaps",
     "begins at byte 4, a ends at 8"},
    {TWO(T("F32", "[2]", "0", "8"), T("F32", "[2]", "0", "8")), 8, "overlaps another one",
     "byte 0"},
    {TWO(T("F32", "[1]", "0", "4"), T("F32", "[1]", "8", "12")), 12, "tensor b has a hole in front",
     "bytes 4 to 8"},
    {ONE(T("F32", "[1]", "4", "8")), 8, "tensor w has a hole in front", "bytes 0 to 4"},
    {ONE(T("F32", "[1]", "0", "4")), 5, "bytes at the end belong to no tensor", "byte 4 of 5"},
    {"{}", 1, "bytes at the end belong to no tensor", "byte 0 of 1"},
    {"{\"w\":" T("F32", "[1]", "0", "4") ",\"w\":" T("F32", "[1]", "0", "4") "}", 4,
     "the header has a name twice", "duplicate"},
    {ONE("{\"dtype\":\"F32\",\"dtype\":\"F16\"}"), 4, "the header has a name twice", "duplicate"},
    {"{\"transformer.w\":" T("F32", "[1]", "0", "4") ",\"w\":" T("F32", "[1]", "4", "8") "}", 8,
     "tensor w is there twice", "transformer.w"},
};

static void
expect(const char *path, shl_code code, const char *in_what, const char *in_because)
{
    shl_safetensors *r = NULL;
    int64_t blocks = shl_heap_live_blocks();
    shl_code got = shl_safetensors_open(path, &r);
    const shl_err *e = shl_err_get();
    if (got != code || r || !strstr(e->what, in_what) || !strstr(e->because, in_because)) {
        fail_msg("wanted code %d, '%s' because '%s'; got %d, '%s' because '%s'", (int)code, in_what,
                 in_because, (int)got, e->what, e->because);
    }
    assert_int_equal(shl_heap_live_blocks(), blocks);
}

static void
test_safetensors_malformed_headers_are_refused(void **state)
{
    (void)state;
    const char *path = weight_path("broken.safetensors");
    for (size_t i = 0; i < SHL_ARRAY_LEN(table); i++) {
        weight_put_file(path, table[i].header, NULL, table[i].data);
        expect(path, SHL_E_VERIFY, table[i].what, table[i].because);
        assert_non_null(strstr(what(), "broken.safetensors"));
    }
    /* And what they differ from: right ones. */
    weight_put_file(path, "{}", NULL, 0);
    shl_safetensors *r = open_ok(path);
    assert_int_equal(shl_safetensors_count(r), 0);
    shl_safetensors_close(&r);
    weight_put_file(path, TWO(T("F32", "[1]", "4", "8"), T("F4", "[2,4]", "0", "4")), NULL, 8);
    r = open_ok(path);
    assert_int_equal(shl_safetensors_count(r), 2);
    shl_safetensors_close(&r);
}

static void
test_safetensors_bad_lengths_are_refused(void **state)
{
    (void)state;
    const char *path = weight_path("length.safetensors");
    unsigned char bytes[16] = {0};
    for (size_t n = 0; n < 8; n++) {
        weight_put(path, bytes, n);
        expect(path, SHL_E_VERIFY, "too short for a safetensors file", "takes 8");
    }
    bytes[0] = 9;
    weight_put(path, bytes, 16);
    expect(path, SHL_E_VERIFY, "the header is longer than the file", "9 bytes, the file has 16");
    memcpy(bytes, "\x01\xe1\xf5\x05\0\0\0\0", 8); /* 100000001 */
    weight_put(path, bytes, 16);
    expect(path, SHL_E_VERIFY, "the header is too long", "the format allows 100000000");
    memset(bytes, 0xff, 8);
    weight_put(path, bytes, 16);
    expect(path, SHL_E_VERIFY, "the header is too long", "18446744073709551615");
}

/* Every shorter and every longer file than the golden one. */
static void
test_safetensors_any_other_length_is_refused(void **state)
{
    (void)state;
    size_t n = 0;
    unsigned char *bytes = weight_slurp(weight_golden("gpt2-tiny.safetensors"), &n);
    const char *path = weight_path("cut.safetensors");
    for (size_t cut = 0; cut < n; cut += 97) {
        shl_safetensors *r = NULL;
        weight_put(path, bytes, cut);
        assert_int_equal(shl_safetensors_open(path, &r), SHL_E_VERIFY);
        assert_null(r);
    }
    bytes[n] = 0;
    weight_put(path, bytes, n + 1);
    expect(path, SHL_E_VERIFY, "bytes at the end belong to no tensor", "");
    free(bytes);
}

/* --- files and folders ------------------------------------------------------------------- */

static void
test_safetensors_files_that_cannot_be_read_are_told(void **state)
{
    (void)state;
    const char *dir = weight_dir("empty");
    char file[300];
    expect(weight_path("nothing"), SHL_E_IO, "cannot open weights", "No such file");
    expect(dir, SHL_E_IO, "holds no weights", "neither model.safetensors nor");
    (void)snprintf(file, sizeof file, "%s/pytorch_model.bin", dir);
    weight_put(file, "x", 1);
    expect(dir, SHL_E_IO, "holds no weights", "another format");
    (void)snprintf(file, sizeof file, "%s/other.safetensors", dir);
    weight_put_file(file, "{}", NULL, 0);
    expect(dir, SHL_E_IO, "holds no weights", "");
    assert_non_null(strstr(shl_err_get()->advice, "other.safetensors"));
    (void)snprintf(file, sizeof file, "%s/model.safetensors", dir);
    assert_int_equal(symlink("model.safetensors", file), 0);
    expect(dir, SHL_E_IO, "cannot open", "symbolic links");
    assert_int_equal(unlink(file), 0);
    assert_int_equal(symlink("gone", file), 0);
    expect(dir, SHL_E_IO, "cannot open", "No such file");
    assert_int_equal(unlink(file), 0);
    assert_int_equal(mkfifo(file, 0600), 0);
    expect(dir, SHL_E_IO, "cannot read", "not a regular file");
    assert_int_equal(unlink(file), 0);
    /* Caches of downloads are made of links. */
    assert_int_equal(symlink("other.safetensors", file), 0);
    shl_safetensors *r = open_ok(dir);
    shl_safetensors_close(&r);
    expect("", SHL_E_USAGE, "path of weights", "");
}

/* A file that shrinks or is replaced between open and read: an error, no signal, no wrong values. */
static void
test_safetensors_changes_after_open_are_seen(void **state)
{
    (void)state;
    const char *path = weight_path("later.safetensors");
    float x[2];
    weight_put_file(path, ONE(T("F32", "[2]", "0", "8")), NULL, 8);
    shl_safetensors *r = open_ok(path);
    assert_int_equal(shl_safetensors_read(r, 0, 0, 1, SHL_F32, x), SHL_OK);
    assert_int_equal(truncate(path, 60), 0);
    assert_int_equal(shl_safetensors_read(r, 0, 0, 2, SHL_F32, x), SHL_E_VERIFY);
    assert_non_null(strstr(what(), "is truncated"));
    shl_safetensors_close(&r);
    weight_put_file(path, ONE(T("F32", "[2]", "0", "8")), NULL, 8);
    r = open_ok(path);
    assert_int_equal(truncate(path, 60), 0);
    assert_int_equal(shl_safetensors_read(r, 0, 0, 2, SHL_F32, x), SHL_E_VERIFY);
    assert_non_null(strstr(what(), "has changed"));
    shl_safetensors_close(&r);
}

typedef struct index_case {
    const char *text, *what, *because;
    shl_code code;
} index_case;

static void
test_safetensors_bad_indexes_are_refused(void **state)
{
    (void)state;
    const char *dir = weight_dir("sharded");
    char one[300], two[300], index[300];
    (void)snprintf(one, sizeof one, "%s/1.safetensors", dir);
    (void)snprintf(two, sizeof two, "%s/2.safetensors", dir);
    (void)snprintf(index, sizeof index, "%s/model.safetensors.index.json", dir);
    weight_put_file(one, "{\"a\":" T("F32", "[1]", "0", "4") "}", NULL, 4);
    weight_put_file(two, "{\"b\":" T("BF16", "[3]", "0", "6") "}", NULL, 6);
#define MAP(text) "{\"weight_map\":{" text "}}"
#define SHARDS "\"a\":\"1.safetensors\",\"b\":\"2.safetensors\""
    static const index_case cases[] = {
        {"", "is not JSON", "line", SHL_E_VERIFY},
        {"{\"weight_map\":{}} {", "is not JSON", "", SHL_E_VERIFY},
        {"[]", "has no weight_map", "", SHL_E_VERIFY},
        {"{\"weight_map\":[]}", "has no weight_map", "", SHL_E_VERIFY},
        {MAP("\"a\":\"1.safetensors\",\"a\":\"2.safetensors\""), "has a name twice", "duplicate",
         SHL_E_VERIFY},
        {MAP("\"a\":7"), "weight_map of a is no name of a file", "", SHL_E_VERIFY},
        {MAP("\"a\":\"../sharded/1.safetensors\""), "no name of a file in the folder", "",
         SHL_E_VERIFY},
        {MAP("\"a\":\"\""), "no name of a file in the folder", "", SHL_E_VERIFY},
        {MAP("\"a\":\"3.safetensors\""), "cannot open", "No such file", SHL_E_IO},
        {MAP("\"a\":\"2.safetensors\",\"b\":\"2.safetensors\""), "tensor a is missing",
         "2.safetensors", SHL_E_VERIFY},
        {MAP("\"a\":\"2.safetensors\",\"b\":\"1.safetensors\""), "tensor a lies in 1.safetensors",
         "weight_map says 2.safetensors", SHL_E_VERIFY},
        {MAP("\"a\":\"1.safetensors\",\"c\":\"2.safetensors\""), "tensor b lies in 2.safetensors",
         "nothing of it", SHL_E_VERIFY},
        {MAP(SHARDS ",\"c\":\"2.safetensors\""), "tensor c is missing", "does not hold it",
         SHL_E_VERIFY},
        {MAP(SHARDS ",\"transformer.a\":\"1.safetensors\""), "tensor transformer.a is missing", "",
         SHL_E_VERIFY},
        {"{\"metadata\":{\"total_size\":11},\"weight_map\":{" SHARDS "}}", "total_size",
         "it says 11, the tensors in the files have 10", SHL_E_VERIFY},
        {"{\"metadata\":{\"total_size\":\"10\"},\"weight_map\":{" SHARDS "}}", "total_size", "",
         SHL_E_VERIFY},
        {MAP(SHARDS), NULL, NULL, SHL_OK},
        {"{\"metadata\":{\"total_size\":10},\"weight_map\":{" SHARDS "}}", NULL, NULL, SHL_OK},
        {"{\"metadata\":{\"total_size\":10.0},\"weight_map\":{" SHARDS "}}", NULL, NULL, SHL_OK},
    };
    for (size_t i = 0; i < SHL_ARRAY_LEN(cases); i++) {
        weight_put(index, cases[i].text, strlen(cases[i].text));
        if (cases[i].code != SHL_OK) {
            expect(dir, cases[i].code, cases[i].what, cases[i].because);
            continue;
        }
        shl_safetensors *r = open_ok(dir);
        assert_int_equal(shl_safetensors_count(r), 2);
        shl_safetensors_close(&r);
    }
    weight_put_file(two, TWO(T("F32", "[1]", "0", "4"), T("BF16", "[3]", "4", "10")), NULL, 10);
    weight_put(index, MAP(SHARDS), strlen(MAP(SHARDS)));
    expect(dir, SHL_E_VERIFY, "tensor a is in two shards", "safetensors");
}

/* Each allocation of an open fails once: the error comes out, nothing stays. */
static void
test_safetensors_out_of_memory_leaves_nothing(void **state)
{
    (void)state;
    const char *paths[] = {weight_golden("gpt2-tiny.safetensors"),
                           weight_golden("llama-tiny-sharded")};
    for (size_t p = 0; p < SHL_ARRAY_LEN(paths); p++) {
        int64_t blocks = shl_heap_live_blocks();
        shl_safetensors *r = NULL;
        int64_t n = 1;
        for (;; n++) {
            shl_heap_fail_at(n);
            shl_code code = shl_safetensors_open(paths[p], &r);
            shl_heap_fail_at(-1);
            if (code == SHL_OK) {
                break;
            }
            assert_int_equal(code, SHL_E_HEAP);
            assert_null(r);
            assert_int_equal(shl_heap_live_blocks(), blocks);
        }
        assert_true(n > 40);
        shl_safetensors_close(&r);
        assert_int_equal(shl_heap_live_blocks(), blocks);
    }
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_safetensors_golden_tensors_equal_the_model_files),
        cmocka_unit_test(test_safetensors_golden_shards_equal_the_whole),
        cmocka_unit_test(test_safetensors_names_are_found_with_and_without_prefix),
        cmocka_unit_test(test_safetensors_widening_is_exact),
        cmocka_unit_test(test_safetensors_malformed_headers_are_refused),
        cmocka_unit_test(test_safetensors_bad_lengths_are_refused),
        cmocka_unit_test(test_safetensors_any_other_length_is_refused),
        cmocka_unit_test(test_safetensors_files_that_cannot_be_read_are_told),
        cmocka_unit_test(test_safetensors_changes_after_open_are_seen),
        cmocka_unit_test(test_safetensors_bad_indexes_are_refused),
        cmocka_unit_test(test_safetensors_out_of_memory_leaves_nothing),
    };
    return cmocka_run_group_tests(tests, weight_folder_make, weight_folder_remove);
}

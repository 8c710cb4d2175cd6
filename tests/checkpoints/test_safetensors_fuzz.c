/* tests: the reader of published weights against files that were right before they were mutated: it
 * refuses or reads, it never faults, leaks, or believes a range outside the file. One second, or a
 * minute with SHL_TEST_ALL. */
#include "checkpoints/safetensors.h"

#include "kernels/base/clock.h"
#include "kernels/base/rng.h"
#include "tests/checkpoints/weight_files.h"

#define LENGTH 8
#define ROOM 4096 /* what insertions may add */

static uint64_t seed, drawn;

static uint64_t
draw(uint64_t below)
{
    return shl_rng_u64(seed, 1, drawn++) % below;
}

/* A file in memory; `live` bytes at its beginning are what mutations aim at. */
typedef struct text {
    unsigned char *bytes;
    size_t n, live;
    bool has_length; /* the first eight bytes count the rest of `live` */
} text;

static const char *const words[] = {
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    "\"",
    "\\",
    "0",
    "-1",
    "1e9",
    "null",
    "true",
    "\"F32\"",
    "\"F16\"",
    "\"U8\"",
    "\"a\"",
    "[0,0]",
    "4.0",
    "[]",
    "{}",
    "4",
    "8",
    "12",
    "dtype",
    "shape",
    "data_offsets",
    "\xc3\xa9",
    "\xff",
    "9223372036854775807",
    "18446744073709551615",
    "\"__metadata__\":",
    "4611686018427387904",
    "\"weight_map\":",
    "1.safetensors",
    "../x",
};

static void
fix_length(text *t)
{
    for (size_t i = 0; i < LENGTH && t->has_length; i++) {
        t->bytes[i] = (unsigned char)((uint64_t)(t->live - LENGTH) >> (8 * i));
    }
}

/* Takes out `out` bytes at `at` and puts n in. */
static void
splice(text *t, size_t at, size_t out, const void *in, size_t n, size_t cap)
{
    unsigned char keep[ROOM];
    if (at + out > t->n || t->n - out + n > cap || n > sizeof keep) {
        return;
    }
    memcpy(keep, in, n); /* it may be a part of the text itself */
    memmove(t->bytes + at + n, t->bytes + at + out, t->n - at - out);
    memcpy(t->bytes + at, keep, n);
    t->n = t->n - out + n;
    t->live = t->live - out + n;
}

/* The digits at or behind `at`: *from to *to, empty when there are none. */
static void
find_number(const text *t, size_t at, size_t *from, size_t *to)
{
    while (at < t->live && (t->bytes[at] < '0' || t->bytes[at] > '9')) {
        at++;
    }
    *from = at;
    while (at < t->live && t->bytes[at] >= '0' && t->bytes[at] <= '9') {
        at++;
    }
    *to = at;
}

static void
mutate_number(text *t, size_t at, size_t cap)
{
    char number[32], old[32];
    size_t from, to;
    find_number(t, at, &from, &to);
    if (from == to || to - from >= sizeof old) {
        return;
    }
    memcpy(old, t->bytes + from, to - from);
    old[to - from] = '\0';
    uint64_t value = (uint64_t)strtoll(old, NULL, 10), by = draw(9) - 4; /* both may wrap */
    shl_strf(number, sizeof number, "%lld", (long long)(draw(4) == 0 ? value * 2 : value + by));
    splice(t, from, to - from, number, strlen(number), cap);
}

static void
mutate(text *t, size_t cap)
{
    size_t first = t->has_length ? LENGTH : 0;
    if (t->live <= first) {
        return;
    }
    size_t at = first + draw(t->live - first), n = 1 + draw(40);
    n = n < t->live - at ? n : t->live - at;
    const char *word = words[draw(SHL_ARRAY_LEN(words))];
    switch (draw(9)) {
    case 0:
        t->bytes[at] ^= (unsigned char)(1U << draw(8));
        break;
    case 1:
        t->bytes[at] = (unsigned char)draw(256);
        break;
    case 2:
        splice(t, at, n, "", 0, cap);
        break;
    case 3: { /* one part again, somewhere */
        size_t to = first + draw(t->live - first);
        splice(t, to, 0, t->bytes + at, n, cap);
        break;
    }
    case 4:
        splice(t, at, draw(2) ? 0 : n, word, strlen(word), cap);
        break;
    case 5:
    case 6:
        mutate_number(t, at, cap);
        break;
    case 7: /* the file, not the header */
        t->n = draw(4) == 0 ? draw(t->n + 1) : t->n - draw(t->n < 9 ? 1 : 9);
        t->live = t->live < t->n ? t->live : t->n;
        break;
    default:
        t->bytes[draw(t->has_length && t->n >= LENGTH ? LENGTH : t->live)] =
            (unsigned char)draw(256);
        break;
    }
}

/* What was accepted is believed: then it must hold together, and every byte must be readable. */
static void
use(shl_safetensors *r)
{
    static float values[1 << 16];
    for (int i = 0; i < shl_safetensors_count(r); i++) {
        shl_safetensor t = shl_safetensors_at(r, i);
        int64_t elems = 1;
        for (int k = 0; k < t.n_dims; k++) {
            elems *= t.dims[k];
        }
        assert_int_equal(elems, t.elems);
        assert_int_equal(shl_safetensors_find(r, t.name), i);
        bool reads = strcmp(t.dtype, "F32") == 0 || strcmp(t.dtype, "F16") == 0 ||
                     strcmp(t.dtype, "BF16") == 0;
        if (!reads || elems > (int64_t)SHL_ARRAY_LEN(values)) {
            assert_true(shl_safetensors_read(r, i, 0, 0, SHL_F32, values) ==
                        (reads ? SHL_OK : SHL_E_CONFIG));
            continue;
        }
        int64_t begin = (int64_t)draw((uint64_t)elems + 1);
        assert_int_equal(shl_safetensors_read(r, i, 0, elems, SHL_F32, values), SHL_OK);
        assert_int_equal(shl_safetensors_read(r, i, begin, elems, SHL_F32, values), SHL_OK);
        assert_int_equal(shl_safetensors_read(r, i, begin, elems + 1, SHL_F32, values), SHL_E_BUG);
    }
}

typedef struct corpus {
    const char *name;
    char file[256]; /* what is mutated */
    char open[256]; /* what is opened */
    text whole;
    int64_t tried, accepted;
} corpus;

static void
corpus_take(corpus *c, const char *name, const char *file, const char *open, bool has_length)
{
    size_t n = 0;
    unsigned char *bytes = weight_slurp(file, &n);
    *c = (corpus){.name = name};
    shl_strf(c->file, sizeof c->file, "%s", file);
    shl_strf(c->open, sizeof c->open, "%s", open);
    c->whole = (text){bytes, n, n, has_length};
    if (has_length) {
        c->whole.live = LENGTH + ((size_t)bytes[0] | (size_t)bytes[1] << 8);
    }
}

static void
try_one(corpus *c)
{
    shl_safetensors *r = NULL;
    size_t cap = c->whole.n + ROOM;
    text t = c->whole;
    t.bytes = malloc(cap);
    assert_non_null(t.bytes);
    memcpy(t.bytes, c->whole.bytes, c->whole.n);
    for (uint64_t k = 1 + draw(4); k > 0; k--) {
        mutate(&t, cap);
    }
    if (draw(4) != 0 &&
        t.live >= LENGTH) { /* mostly the length is right, or nothing else is seen */
        fix_length(&t);
    }
    weight_put(c->file, t.bytes, t.n);
    free(t.bytes);
    shl_code code = shl_safetensors_open(c->open, &r);
    c->tried++;
    c->accepted += code == SHL_OK;
    if (code == SHL_OK) {
        use(r);
        shl_safetensors_close(&r);
    } else if ((code != SHL_E_VERIFY && code != SHL_E_IO) || r || !shl_err_get()->what[0]) {
        fail_msg("%s: code %d, '%s'", c->name, (int)code, shl_err_get()->what);
    }
    assert_int_equal(shl_heap_live_blocks(), 0);
}

static void
copy_golden(const char *name, const char *to)
{
    size_t n = 0;
    unsigned char *bytes = weight_slurp(weight_golden(name), &n);
    weight_put(to, bytes, n);
    free(bytes);
}

static void
test_safetensors_fuzz_refuses_or_reads(void **state)
{
    (void)state;
    enum { SMALL, GOLDEN, SHARD, INDEX, CORPORA };
    corpus all[CORPORA];
    const char *small = weight_path("small.safetensors"), *big = weight_path("big.safetensors");
    char dir[256], path[300], index[300];
    weight_put_file(small,
                    "{\"__metadata__\":{\"format\":\"pt\"},"
                    "\"a\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[4,28]},"
                    "\"b.c\":{\"dtype\":\"BF16\",\"shape\":[2],\"data_offsets\":[0,4]},"
                    "\"d\":{\"dtype\":\"F16\",\"shape\":[],\"data_offsets\":[28,30]}} ",
                    NULL, 30);
    copy_golden("gpt2-tiny-bf16.safetensors", big);
    shl_strf(dir, sizeof dir, "%s", weight_dir("shards"));
    shl_strf(path, sizeof path, "%s/1.safetensors", dir);
    weight_put_file(path, "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", NULL,
                    4);
    shl_strf(path, sizeof path, "%s/2.safetensors", dir);
    weight_put_file(path, "{\"b\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", NULL,
                    4);
    static const char map[] = "{\"metadata\":{\"total_size\":8},\"weight_map\":"
                              "{\"a\":\"1.safetensors\",\"b\":\"2.safetensors\"}}";
    shl_strf(index, sizeof index, "%s/model.safetensors.index.json", dir);
    weight_put(index, map, sizeof map - 1);
    corpus_take(&all[SMALL], "small file", small, small, true);
    corpus_take(&all[GOLDEN], "golden file", big, big, true);
    corpus_take(&all[SHARD], "shard", path, dir, true);
    corpus_take(&all[INDEX], "index", index, dir, false);

    int64_t limit_ns = INT64_C(1000000000) * (shl_env("SHL_TEST_ALL") ? 60 : 1);
    int64_t begun_ns = shl_clock_ns();
    for (int64_t i = 0; shl_clock_ns() - begun_ns < limit_ns; i++) {
        corpus *c = &all[i / 64 % CORPORA];
        try_one(c);
        if (i % 64 == 63) { /* the next one may lie beside it */
            weight_put(c->file, c->whole.bytes, c->whole.n);
        }
    }
    for (int i = 0; i < CORPORA; i++) {
        print_message("%s: %lld tried, %lld accepted\n", all[i].name, (long long)all[i].tried,
                      (long long)all[i].accepted);
        /* A mutator that breaks everything, or nothing, tests little. */
        assert_true(all[i].tried > 64 && all[i].accepted > 0);
        assert_true(all[i].accepted < all[i].tried);
        free(all[i].whole.bytes);
    }
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_safetensors_fuzz_refuses_or_reads),
    };
    seed = (uint64_t)shl_clock_ns();
    print_message("seed %llu\n", (unsigned long long)seed);
    return cmocka_run_group_tests(tests, weight_folder_make, weight_folder_remove);
}

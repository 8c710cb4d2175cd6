/* bench: token streams. The order of an epoch is a keyed permutation computed on the fly (a Feistel
 * network with cycle walking: Black & Rogaway, CT-RSA 2002), so no table grows with the data. */
#include "bench/tokens.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <math.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "bench/locate.h"
#include "kernels/base/heap.h"
#include "kernels/base/rng.h"
#include "kernels/base/str.h"

#define BUNDLED_TEXT "bench/data/tinyshakespeare.txt"
#define BIN_HEADER_BYTES 1024 /* 256 int32: magic, version, number of tokens, zeros */
#define SYNTHETIC_SAMPLES (INT64_C(1) << 20)
#define FEISTEL_ROUNDS 6

struct shl_tokens {
    const unsigned char *map; /* whole file; NULL: synthetic */
    size_t map_bytes;
    const unsigned char *first; /* first token */
    size_t width;               /* bytes of a token: 1, 2, 4 */
    int64_t n_tokens;
    int64_t samples, held_out, seq, vocab; /* samples: windows that are not held out */
    bool in_order;                         /* not shuffled */
    dev_t device;                          /* of the file, with inode: which one it is */
    ino_t inode;
    uint64_t seed, order_stream, text_stream;
    int half_bits; /* the permutation works on numbers of 2 * half_bits bits */
    char path[PATH_MAX];
};

typedef struct bin_format {
    int32_t magic, version;
    size_t width;
    const char *name;
} bin_format;

static const bin_format BIN_FORMATS[] = {
    {20240520, 1, 2, "uint16"},
    {20240801, 7, 4, "uint32"},
};

static const bin_format *
format_of_magic(int32_t magic)
{
    for (size_t i = 0; i < sizeof BIN_FORMATS / sizeof BIN_FORMATS[0]; i++) {
        if (BIN_FORMATS[i].magic == magic) {
            return &BIN_FORMATS[i];
        }
    }
    return NULL;
}

/* Numbers in the file are little-endian, as are the machines this builds for. */
static int32_t
header_word(const shl_tokens *t, size_t index)
{
    int32_t word = 0;
    memcpy(&word, t->map + index * sizeof word, sizeof word);
    return word;
}

static int64_t
token_at(const shl_tokens *t, int64_t index)
{
    const unsigned char *at = t->first + (size_t)index * t->width;
    if (t->width == 1) {
        return *at;
    }
    if (t->width == 2) {
        uint16_t narrow = 0;
        memcpy(&narrow, at, sizeof narrow);
        return narrow;
    }
    uint32_t wide = 0;
    memcpy(&wide, at, sizeof wide);
    return (int64_t)wide;
}

static shl_code
raise_io(const char *path, int error)
{
    (void)SHL_RAISE(SHL_E_IO, "cannot read data file '%s'", path);
    (void)shl_err_because("%s", strerror(error));
    return shl_err_advice("--data with a readable text or .bin file, or --data synthetic");
}

static shl_code
map_file(shl_tokens *t)
{
    /* O_NONBLOCK: a pipe would otherwise wait for its writer before we can refuse it. */
    int fd = open(t->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) {
        return raise_io(t->path, errno);
    }
    shl_code code = SHL_OK;
    struct stat info;
    if (fstat(fd, &info) != 0) {
        code = raise_io(t->path, errno);
    } else if (!S_ISREG(info.st_mode)) {
        (void)SHL_RAISE(SHL_E_IO, "cannot read data file '%s'", t->path);
        (void)shl_err_because("it is %s, not a regular file",
                              S_ISDIR(info.st_mode) ? "a folder" : "a device or a pipe");
        code = shl_err_advice("--data with a text or .bin file, or --data synthetic");
    } else if (info.st_size == 0) {
        (void)SHL_RAISE(SHL_E_CONFIG, "data file '%s' is empty", t->path);
        (void)shl_err_because("0 bytes, at least %" PRId64 " tokens are needed (--seq + 1)",
                              t->seq + 1);
        code = shl_err_advice("--data with a longer file, or --data synthetic");
    } else {
        size_t bytes = (size_t)info.st_size;
        void *map = mmap(NULL, bytes, PROT_READ, MAP_PRIVATE, fd, 0);
        if (map == MAP_FAILED) {
            code = raise_io(t->path, errno);
        } else {
            t->map = map;
            t->device = info.st_dev;
            t->inode = info.st_ino;
            t->map_bytes = bytes;
        }
    }
    (void)close(fd);
    return code;
}

static bool
ends_in_bin(const char *path)
{
    size_t len = strlen(path);
    return len >= 4 && strcmp(path + len - 4, ".bin") == 0;
}

static shl_code
raise_header(const shl_tokens *t)
{
    int32_t magic = t->map_bytes >= 4 ? header_word(t, 0) : 0;
    int32_t version = t->map_bytes >= 8 ? header_word(t, 1) : 0;
    (void)SHL_RAISE(SHL_E_CONFIG, "'%s' is not a token file this program reads", t->path);
    (void)shl_err_because("it begins with magic %d version %d; known are %d version %d (%s) and %d "
                          "version %d (%s)",
                          magic, version, BIN_FORMATS[0].magic, BIN_FORMATS[0].version,
                          BIN_FORMATS[0].name, BIN_FORMATS[1].magic, BIN_FORMATS[1].version,
                          BIN_FORMATS[1].name);
    return shl_err_advice("write the file with llm.c's data scripts, or pass plain text under a "
                          "name that does not end in .bin");
}

static shl_code
read_header(shl_tokens *t)
{
    const bin_format *format = t->map_bytes >= 4 ? format_of_magic(header_word(t, 0)) : NULL;
    if (!format && !ends_in_bin(t->path)) {
        t->first = t->map;
        t->width = 1;
        t->n_tokens = (int64_t)t->map_bytes;
        return SHL_OK;
    }
    if (t->map_bytes < BIN_HEADER_BYTES && format) {
        (void)SHL_RAISE(SHL_E_CONFIG, "token file '%s' is truncated", t->path);
        (void)shl_err_because("%zu bytes, its header alone has %d", t->map_bytes, BIN_HEADER_BYTES);
        return shl_err_advice("fetch or write the file again");
    }
    if (!format || header_word(t, 1) != format->version) {
        return raise_header(t);
    }
    int64_t claimed = header_word(t, 2);
    size_t body_bytes = t->map_bytes - BIN_HEADER_BYTES;
    if (claimed < 0 || (size_t)claimed * format->width != body_bytes) {
        bool short_of = claimed >= 0 && (size_t)claimed * format->width > body_bytes;
        (void)SHL_RAISE(SHL_E_CONFIG, "token file '%s' %s", t->path,
                        short_of ? "is truncated" : "does not agree with its header");
        (void)shl_err_because("the header says %" PRId64 " %s tokens, %zu bytes follow it", claimed,
                              format->name, body_bytes);
        return shl_err_advice("fetch or write the file again");
    }
    t->first = t->map + BIN_HEADER_BYTES;
    t->width = format->width;
    t->n_tokens = claimed;
    return SHL_OK;
}

/* Checked once here so that no row can index past an embedding. */
static shl_code
check_tokens(const shl_tokens *t)
{
    if (t->n_tokens < t->seq + 1) {
        (void)SHL_RAISE(SHL_E_CONFIG, "data file '%s' is shorter than one sample", t->path);
        (void)shl_err_because("%" PRId64 " tokens, a sample takes %" PRId64 " (--seq + 1)",
                              t->n_tokens, t->seq + 1);
        return shl_err_advice("--seq %" PRId64 " or less, or a longer file",
                              t->n_tokens > 2 ? t->n_tokens - 1 : (int64_t)1);
    }
    if (t->width < 4 && t->vocab >= INT64_C(1) << (8 * t->width)) {
        return SHL_OK;
    }
    int64_t largest = -1, bad = -1;
    for (int64_t i = 0; i < t->n_tokens; i++) {
        int64_t token = token_at(t, i);
        if (token >= t->vocab && bad < 0) {
            bad = i;
        }
        largest = token > largest ? token : largest;
    }
    if (bad < 0) {
        return SHL_OK;
    }
    (void)SHL_RAISE(SHL_E_CONFIG, "data file '%s' has tokens beyond the vocabulary", t->path);
    (void)shl_err_because("token %" PRId64 " at position %" PRId64 ", the vocabulary has %" PRId64,
                          token_at(t, bad), bad, t->vocab);
    return shl_err_advice("a model with --vocab %" PRId64 " or more, or other --data", largest + 1);
}

static void
size_permutation(shl_tokens *t)
{
    t->half_bits = 1;
    while (t->half_bits < 31 && (INT64_C(1) << (2 * t->half_bits)) < t->samples) {
        t->half_bits++;
    }
}

static shl_code
open_source(shl_tokens *t, const char *source)
{
    if (source && strcmp(source, "synthetic") == 0) {
        shl_strf(t->path, sizeof t->path, "synthetic");
        t->samples = SYNTHETIC_SAMPLES;
        return SHL_OK;
    }
    if (!source) {
        SHL_TRY(shl_locate(BUNDLED_TEXT, t->path, sizeof t->path));
    } else if (strlen(source) >= sizeof t->path) {
        return raise_io(source, ENAMETOOLONG);
    } else {
        shl_strf(t->path, sizeof t->path, "%s", source);
    }
    SHL_TRY(map_file(t));
    SHL_TRY(read_header(t));
    SHL_TRY(check_tokens(t));
    t->samples = t->n_tokens / (t->seq + 1);
    return SHL_OK;
}

shl_code
shl_tokens_open(const char *source, int64_t vocab, int64_t seq, uint64_t seed, shl_tokens **out)
{
    *out = NULL;
    if (vocab < 1 || vocab > INT32_MAX || seq < 1 || seq > INT32_MAX) {
        (void)SHL_RAISE(SHL_E_USAGE,
                        "no token stream of vocabulary %" PRId64 " and sequence %" PRId64, vocab,
                        seq);
        return shl_err_because("both must lie in 1..%d", INT32_MAX);
    }
    shl_tokens *t = NULL;
    SHL_TRY(shl_heap_alloc(1, sizeof *t, &t));
    t->vocab = vocab;
    t->seq = seq;
    t->seed = seed;
    t->order_stream = shl_rng_stream("data/order");
    t->text_stream = shl_rng_stream("data/synthetic");
    shl_code code = open_source(t, source);
    if (code != SHL_OK) {
        shl_tokens_close(&t);
        return shl_err_trace(code, __FILE__, __LINE__, __func__);
    }
    size_permutation(t);
    *out = t;
    return SHL_OK;
}

void
shl_tokens_close(shl_tokens **t)
{
    if (!*t) {
        return;
    }
    if ((*t)->map) {
        /* munmap takes a writable pointer by its prototype only. */
        (void)munmap((void *)(uintptr_t)(*t)->map, (*t)->map_bytes);
    }
    shl_heap_free(t);
}

shl_code
shl_tokens_hold_out(shl_tokens *t, double fraction)
{
    int64_t windows = t->samples + t->held_out, held_out = 0;
    if (!(fraction >= 0.0 && fraction < 1.0)) {
        (void)SHL_RAISE(SHL_E_USAGE, "a validation split of %g", fraction);
        return shl_err_because("it is a fraction of the data, from 0 to below 1");
    }
    if (fraction > 0.0) {
        held_out = llround(fraction * (double)windows);
        held_out = held_out > 0 ? held_out : 1;
    }
    if (held_out >= windows) {
        (void)SHL_RAISE(SHL_E_USAGE, "a validation split of %g leaves nothing to train on",
                        fraction);
        (void)shl_err_because("the data has %" PRId64 " sequence%s of %" PRId64 " tokens", windows,
                              windows == 1 ? "" : "s", t->seq);
        return shl_err_advice("a smaller --val-split or --seq, or a longer --data file");
    }
    t->samples = windows - held_out;
    t->held_out = held_out;
    size_permutation(t);
    return SHL_OK;
}

void
shl_tokens_shuffle(shl_tokens *t, bool on)
{
    t->in_order = !on;
}

int64_t
shl_tokens_samples(const shl_tokens *t)
{
    return t->samples;
}

int64_t
shl_tokens_held_out(const shl_tokens *t)
{
    return t->held_out;
}

bool
shl_tokens_same_source(const shl_tokens *a, const shl_tokens *b)
{
    if (!a->map || !b->map) {
        return !a->map && !b->map;
    }
    return a->device == b->device && a->inode == b->inode;
}

/* One pass of the network: a bijection on numbers of 2 * half_bits bits. */
static uint64_t
feistel(const shl_tokens *t, uint64_t epoch, uint64_t value)
{
    uint64_t mask = (UINT64_C(1) << t->half_bits) - 1;
    uint64_t left = value >> t->half_bits, right = value & mask;
    for (uint64_t round = 0; round < FEISTEL_ROUNDS; round++) {
        uint64_t key = shl_rng_u64(t->seed, t->order_stream + epoch, round << 32 | right);
        uint64_t mixed = left ^ (key & mask);
        left = right;
        right = mixed;
    }
    return left << t->half_bits | right;
}

/* Walks the cycle until it comes back below `samples`: still a bijection, under 4 passes expected. */
static int64_t
window_of(const shl_tokens *t, int64_t sample)
{
    uint64_t epoch = (uint64_t)(sample / t->samples);
    uint64_t value = (uint64_t)(sample % t->samples);
    if (t->in_order) {
        return (int64_t)value;
    }
    do {
        value = feistel(t, epoch, value);
    } while (value >= (uint64_t)t->samples);
    return (int64_t)value;
}

/* A chain that can be learnt: each token has at most four successors, so the loss of a model that has
 * understood it is ln 4 (vocabularies of four or more). */
static void
synthesise(const shl_tokens *t, int64_t window, int32_t *tokens, int32_t *targets)
{
    uint64_t at = (uint64_t)window * (uint64_t)(t->seq + 1);
    uint64_t vocab = (uint64_t)t->vocab;
    uint64_t token = shl_rng_u64(t->seed, t->text_stream, at) % vocab;
    for (int64_t i = 0; i < t->seq; i++) {
        tokens[i] = (int32_t)token;
        uint64_t choice = shl_rng_u64(t->seed, t->text_stream, at + (uint64_t)i + 1) >> 62;
        token = (token * 5 + 1 + choice) % vocab;
        targets[i] = (int32_t)token;
    }
}

shl_code
shl_tokens_row(const shl_tokens *t, int64_t sample, int32_t *tokens, int32_t *targets)
{
    if (sample < 0) {
        return SHL_RAISE(SHL_E_BUG, "sample %" PRId64 " of the data order is negative", sample);
    }
    return shl_tokens_window(t, window_of(t, sample), tokens, targets);
}

shl_code
shl_tokens_window(const shl_tokens *t, int64_t window, int32_t *tokens, int32_t *targets)
{
    if (window < 0 || window >= t->samples + t->held_out) {
        return SHL_RAISE(SHL_E_BUG, "window %" PRId64 " of %" PRId64, window,
                         t->samples + t->held_out);
    }
    if (!t->map) {
        synthesise(t, window, tokens, targets);
        return SHL_OK;
    }
    int64_t begin = window * (t->seq + 1);
    for (int64_t i = 0; i < t->seq; i++) {
        tokens[i] = (int32_t)token_at(t, begin + i);
        targets[i] = (int32_t)token_at(t, begin + i + 1);
    }
    return SHL_OK;
}

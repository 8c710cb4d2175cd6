/* checkpoints: the header of a safetensors file: eight bytes of length, JSON, and then the tensors side
 * by side. Everything that it says is checked against the file before it is believed. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <jansson.h>

#include "checkpoints/ckpt_room.h"
#include "checkpoints/safetensors_room.h"
#include "kernels/base/heap.h"
#include "kernels/base/str.h"

#define LENGTH_BYTES 8
#define METADATA "__metadata__"

/* Names and sizes of the format; only some can be parameters. */
static const shl_safetensors_dtype dtypes[] = {
    {"F32", 32, SHL_F32}, {"BF16", 16, SHL_BF16}, {"F16", 16, SHL_F16}, {"F64", 64, -1},
    {"I64", 64, -1},      {"I32", 32, -1},        {"I16", 16, -1},      {"I8", 8, -1},
    {"U64", 64, -1},      {"U32", 32, -1},        {"U16", 16, -1},      {"U8", 8, -1},
    {"BOOL", 8, -1},      {"C64", 64, -1},        {"F8_E4M3", 8, -1},   {"F8_E5M2", 8, -1},
    {"F8_E8M0", 8, -1},   {"F6_E2M3", 6, -1},     {"F6_E3M2", 6, -1},   {"F4", 4, -1},
};

/* One file while its header is read. */
typedef struct header {
    shl_safetensors *r;
    int file;
    int64_t data_at, data_bytes; /* where the tensors begin in the file, and their bytes */
} header;

static const char *
path_of(const header *h)
{
    return h->r->files[h->file].path;
}

static shl_code
raise_tensor(const header *h, const char *name, const char *what)
{
    return SHL_RAISE(SHL_E_VERIFY, "%s: tensor %.200s %s", path_of(h), name, what);
}

static shl_code
take_dtype(const header *h, const json_t *info, shl_safetensors_entry *e)
{
    const json_t *value = json_object_get(info, "dtype");
    const char *text = json_string_value(value);
    for (size_t i = 0; text && i < SHL_ARRAY_LEN(dtypes); i++) {
        if (strcmp(text, dtypes[i].name) == 0) {
            e->dtype = &dtypes[i];
            return SHL_OK;
        }
    }
    if (!text) {
        return raise_tensor(h, e->name, value ? "has a dtype that is no text" : "has no dtype");
    }
    SHL_RAISE(SHL_E_VERIFY, "%s: tensor %.200s has the unknown dtype \"%.40s\"", path_of(h),
              e->name, text);
    return shl_err_because("parameters are read as F32, BF16 or F16");
}

static shl_code
take_shape(const header *h, const json_t *info, shl_safetensors_entry *e)
{
    const json_t *shape = json_object_get(info, "shape");
    if (!json_is_array(shape)) {
        return raise_tensor(h, e->name, shape ? "has a shape that is no array" : "has no shape");
    }
    size_t n = json_array_size(shape);
    if (n > SHL_SAFETENSORS_MAX_DIMS) {
        raise_tensor(h, e->name, "has too many dimensions");
        return shl_err_because("%zu, at most %d are read", n, SHL_SAFETENSORS_MAX_DIMS);
    }
    e->n_dims = (int)n;
    e->elems = 1;
    /* A zero makes the product 0 whatever follows, so it must not hide a size that overflows. */
    int64_t nonzero = 1;
    for (size_t i = 0; i < n; i++) {
        const json_t *dim = json_array_get(shape, i);
        if (!json_is_integer(dim) || json_integer_value(dim) < 0) {
            raise_tensor(h, e->name, "has a bad shape");
            return shl_err_because("dimension %zu is not a whole number from 0", i);
        }
        e->dims[i] = json_integer_value(dim);
        if (!shl_mul_elems(nonzero, e->dims[i] > 0 ? e->dims[i] : 1, &nonzero) ||
            nonzero > INT64_MAX / 64) {
            raise_tensor(h, e->name, "has a shape that overflows");
            return shl_err_because("its elements are more than 64 bits can count");
        }
        e->elems = e->dims[i] == 0 ? 0 : e->elems * e->dims[i];
    }
    return SHL_OK;
}

static shl_code
take_offsets(const header *h, const json_t *info, shl_safetensors_entry *e)
{
    const json_t *pair = json_object_get(info, "data_offsets");
    const json_t *first = json_array_get(pair, 0), *second = json_array_get(pair, 1);
    if (json_array_size(pair) != 2 || !json_is_integer(first) || !json_is_integer(second)) {
        raise_tensor(h, e->name, "has bad data_offsets");
        return shl_err_because("they are %s", pair ? "not two whole numbers" : "missing");
    }
    int64_t begin = json_integer_value(first), end = json_integer_value(second);
    if (begin < 0 || begin > end) {
        raise_tensor(h, e->name, "has data_offsets out of order");
        return shl_err_because("it begins at %" PRId64 " and ends at %" PRId64, begin, end);
    }
    if (end > h->data_bytes) {
        raise_tensor(h, e->name, "lies beyond the end of the file");
        return shl_err_because("it ends at byte %" PRId64
                               " of the tensors, and the file has %" PRId64
                               ": it is truncated, or the header is altered",
                               end, h->data_bytes);
    }
    int64_t bits = e->elems * e->dtype->bits;
    if (bits % 8 != 0 || end - begin != bits / 8) {
        raise_tensor(h, e->name, "has another size than its shape");
        return shl_err_because("%" PRId64 " elements of %s are %" PRId64
                               " bytes, data_offsets say %" PRId64,
                               e->elems, e->dtype->name, bits / 8, end - begin);
    }
    e->begin = h->data_at + begin;
    e->end = h->data_at + end;
    return SHL_OK;
}

static shl_code
take_tensor(const header *h, const char *name, const json_t *info)
{
    shl_safetensors *r = h->r;
    SHL_ASSERT(r->n_entries < r->entries_cap);
    shl_safetensors_entry *e = &r->entries[r->n_entries];
    memset(e, 0, sizeof *e);
    SHL_TRY(shl_heap_strdup(name, &e->name));
    r->n_entries++;
    e->key = shl_safetensors_key(e->name);
    e->file = h->file;
    if (!json_is_object(info)) {
        return raise_tensor(h, name, "is no JSON object");
    }
    SHL_TRY(take_dtype(h, info, e));
    SHL_TRY(take_shape(h, info, e));
    return take_offsets(h, info, e);
}

/* Texts by text, which nobody here reads. */
static shl_code
check_metadata(const header *h, json_t *metadata)
{
    const char *name;
    json_t *value;
    bool good = json_is_object(metadata);
    json_object_foreach(metadata, name, value)
    {
        good = good && json_is_string(value);
    }
    return good ? SHL_OK
                : SHL_RAISE(SHL_E_VERIFY, "%s: " METADATA " is not an object of texts", path_of(h));
}

static int
by_place(const void *a, const void *b)
{
    const shl_safetensors_entry *x = a, *y = b;
    if (x->begin != y->begin) {
        return x->begin < y->begin ? -1 : 1;
    }
    return (x->end > y->end) - (x->end < y->end);
}

/* The format allows neither holes nor overlaps: every byte behind the header belongs to one tensor. */
static shl_code
check_cover(const header *h, shl_safetensors_entry *entries, int n)
{
    int64_t at = h->data_at;
    if (n > 0) {
        qsort(entries, (size_t)n, sizeof *entries, by_place);
    }
    for (int i = 0; i < n; i++) {
        if (entries[i].begin < at) {
            raise_tensor(h, entries[i].name, "overlaps another one");
            return shl_err_because("it begins at byte %" PRId64 ", %.200s ends at %" PRId64,
                                   entries[i].begin - h->data_at, entries[i - 1].name,
                                   at - h->data_at);
        }
        if (entries[i].begin > at) {
            raise_tensor(h, entries[i].name, "has a hole in front of it");
            return shl_err_because("bytes %" PRId64 " to %" PRId64 " belong to no tensor",
                                   at - h->data_at, entries[i].begin - h->data_at);
        }
        at = entries[i].end;
    }
    if (at - h->data_at != h->data_bytes) {
        SHL_RAISE(SHL_E_VERIFY, "%s: bytes at the end belong to no tensor", path_of(h));
        return shl_err_because("the tensors end at byte %" PRId64 " of %" PRId64, at - h->data_at,
                               h->data_bytes);
    }
    return SHL_OK;
}

static shl_code
take_header(const header *h, json_t *root)
{
    shl_safetensors *r = h->r;
    int first = r->n_entries;
    const char *name;
    json_t *value;
    size_t more = json_object_size(root);
    SHL_TRY(shl_heap_grow(&r->entries, (size_t)r->entries_cap, (size_t)r->n_entries + more,
                          sizeof *r->entries));
    r->entries_cap = r->n_entries + (int)more;
    json_object_foreach(root, name, value)
    {
        SHL_TRY(strcmp(name, METADATA) == 0 ? check_metadata(h, value)
                                            : take_tensor(h, name, value));
    }
    return check_cover(h, r->entries + first, r->n_entries - first);
}

static shl_code
parse_header(const header *h, const char *text, size_t len)
{
    json_error_t error;
    if (len == 0 || text[0] != '{') {
        SHL_RAISE(SHL_E_VERIFY, "%s: the header is not JSON", path_of(h));
        return shl_err_because("it does not begin with '{'");
    }
    json_t *root = json_loadb(text, len, JSON_REJECT_DUPLICATES, &error);
    if (!root) {
        bool twice = json_error_code(&error) == json_error_duplicate_key;
        SHL_RAISE(SHL_E_VERIFY, "%s: the header %s", path_of(h),
                  twice ? "has a name twice" : "is not JSON");
        return shl_err_because("%s, line %d, column %d", error.text, error.line, error.column);
    }
    shl_code code = take_header(h, root);
    json_decref(root);
    return code;
}

/* The length in front, against the file and the format's limit. */
static shl_code
read_length(const header *h, int fd, int64_t *out)
{
    unsigned char raw[LENGTH_BYTES];
    const shl_safetensors_file *f = &h->r->files[h->file];
    if (f->bytes < LENGTH_BYTES) {
        SHL_RAISE(SHL_E_VERIFY, "%s is too short for a safetensors file", f->path);
        return shl_err_because("it has %" PRId64 " bytes, the length of the header alone takes %d",
                               f->bytes, LENGTH_BYTES);
    }
    SHL_TRY(shl_ckpt_pread(fd, f->path, raw, sizeof raw, 0));
    uint64_t bytes = 0;
    for (int i = LENGTH_BYTES - 1; i >= 0; i--) {
        bytes = bytes << 8 | raw[i];
    }
    if (bytes > (uint64_t)SHL_SAFETENSORS_HEADER_MAX_BYTES) {
        SHL_RAISE(SHL_E_VERIFY, "%s: the header is too long", f->path);
        return shl_err_because("%" PRIu64 " bytes, the format allows %" PRId64
                               "; is it a safetensors file?",
                               bytes, SHL_SAFETENSORS_HEADER_MAX_BYTES);
    }
    if ((int64_t)bytes > f->bytes - LENGTH_BYTES) {
        SHL_RAISE(SHL_E_VERIFY, "%s: the header is longer than the file", f->path);
        return shl_err_because("%" PRIu64 " bytes, the file has %" PRId64, bytes, f->bytes);
    }
    *out = (int64_t)bytes;
    return SHL_OK;
}

shl_code
shl_safetensors_add_file(shl_safetensors *r, int file)
{
    header h = {.r = r, .file = file};
    shl_safetensors_file *f = &r->files[file];
    char *text = NULL;
    int64_t len = 0;
    int fd = -1;
    shl_code code = SHL_OK;
    SHL_TRY(shl_safetensors_open_file(f->path, &fd, f));
    SHL_TRY_TO(code, out, read_length(&h, fd, &len));
    SHL_TRY_TO(code, out, shl_heap_alloc((size_t)len + 1, 1, &text));
    SHL_TRY_TO(code, out, shl_ckpt_pread(fd, f->path, text, (size_t)len, LENGTH_BYTES));
    h.data_at = LENGTH_BYTES + len;
    h.data_bytes = f->bytes - h.data_at;
    SHL_TRY_TO(code, out, parse_header(&h, text, (size_t)len));
out:
    shl_heap_free(&text);
    (void)close(fd);
    return code;
}

/* kernels/cpu: embedding rows; backward adds rows in row order, a thread owns columns, so repeated
 * tokens give the same bits on any number of threads. */
#include "kernels/cpu/cpu_slots.h"
#include "kernels/cpu/cpu_typed.h"

/* Tokens beyond the vocabulary would write outside the table. */
static shl_code
check_tokens(const shl_embedding_args *a, int64_t vocab)
{
    const int32_t *token = a->tokens.data;
    int64_t rows = shl_tensor_elems(&a->tokens);
    for (int64_t r = 0; r < rows; r++) {
        if (token[r] < 0 || token[r] >= vocab) {
            (void)SHL_RAISE(SHL_E_CONFIG, "token %ld is %d", (long)r, (int)token[r]);
            (void)shl_err_because("the vocabulary has %ld tokens", (long)vocab);
            return shl_err_advice("use data that was made for this vocabulary");
        }
    }
    return SHL_OK;
}

/* One row of y; place NULL: no position. */
static inline CPU_ALWAYS void
embed_row(shl_dtype dt, const void *from, const void *place, int64_t width, void *to)
{
    if (place == NULL) {
        memcpy(to, from, (size_t)width * shl_dtype_bytes(dt));
        return;
    }
    for (int64_t c = 0; c < width; c += VL) {
        int64_t n = width - c < VL ? width - c : VL;
        if (n == VL) {
            vstore_as(dt, to, c, vload_as(dt, from, c) + vload_as(dt, place, c));
        } else {
            vstore_as_n(dt, to, c, vload_as_n(dt, from, c, n) + vload_as_n(dt, place, c, n), n);
        }
    }
}

shl_code
SHL_K(shl_cpu_embedding_forward)(shl_stream *s, const void *args, void *work)
{
    const shl_embedding_args *a = args;
    SHL_UNUSED(work);
    SHL_TRY(check_tokens(a, a->wte.dims[0]));
    int64_t rows = shl_tensor_elems(&a->tokens), width = a->wte.dims[1];
    const int32_t *token = a->tokens.data;
    shl_dtype dtype = a->wte.dtype;
    int threads = cpu_threads(s, rows * width);
    SHL_PARALLEL_FOR(threads)
    for (int64_t r = 0; r < rows; r++) {
        const void *from = shl_elem_ptr(a->wte.data, dtype, token[r] * width);
        void *to = shl_elem_ptr(a->y.data, dtype, r * width);
        const void *place =
            a->wpe.data == NULL ? NULL : shl_elem_ptr(a->wpe.data, dtype, r % a->seq * width);
        CPU_BY_DTYPE(dtype, embed_row(DT, from, place, width, to));
    }
    return SHL_OK;
}

static void
zero(const shl_stream *s, const shl_tensor *t)
{
    int64_t n = shl_tensor_elems(t);
    int threads = cpu_threads(s, n);
    SHL_PARALLEL_FOR(threads)
    for (int64_t begin = 0; begin < n; begin += CPU_CHUNK) {
        int64_t m = cpu_chunk_end(begin, n) - begin;
        memset(shl_elem_ptr(t->data, t->dtype, begin), 0, (size_t)m * shl_dtype_bytes(t->dtype));
    }
}

/* to[0..n) += elements [i, i + n) of from. */
static inline CPU_ALWAYS void
add_row(shl_dtype dt, const void *from, int64_t i, int64_t n, float *to)
{
    int64_t c = 0;
    for (; c + VL <= n; c += VL) {
        vstore(to + c, vload(to + c) + vload_as(dt, from, i + c));
    }
    if (c < n) {
        vstore_n(to + c, vload_n(to + c, n - c) + vload_as_n(dt, from, i + c, n - c), n - c);
    }
}

/* dw[index(r)] += dy[r] in row order for columns [c0, c1); index is the token, or the position. */
static void
add_rows(const shl_embedding_args *a, float *dw, bool by_token, int64_t c0, int64_t c1)
{
    int64_t rows = shl_tensor_elems(&a->tokens), width = a->dy.dims[1];
    const int32_t *token = a->tokens.data;
    for (int64_t r = 0; r < rows; r++) {
        int64_t index = by_token ? token[r] : r % a->seq;
        float *to = dw + index * width + c0;
        CPU_BY_DTYPE(a->dy.dtype, add_row(DT, a->dy.data, r * width + c0, c1 - c0, to));
    }
}

enum { COLS = 128 }; /* columns that a thread owns at a time */

/* The same for a 16-bit dw: rows of one index are added in fp32, in row order, and rounded once.
 * `order` lists index and row of every row, sorted. */
static void
add_rows_half(const shl_embedding_args *a, const shl_tensor *dw, const uint64_t *order, int64_t c0,
              int64_t n)
{
    int64_t rows = shl_tensor_elems(&a->tokens), width = a->dy.dims[1];
    for (int64_t first = 0; first < rows;) {
        float sum[COLS];
        uint64_t index = order[first] >> 32;
        int64_t at = (int64_t)index * width + c0, r = first;
        cpu_widen(dw->dtype, dw->data, at, n, sum);
        for (; r < rows && order[r] >> 32 == index; r++) {
            int64_t from = (int64_t)(order[r] & 0xffffffffu) * width + c0;
            CPU_BY_DTYPE(a->dy.dtype, add_row(DT, a->dy.data, from, n, sum));
        }
        cpu_narrow(dw->dtype, sum, dw->data, at, n);
        first = r;
    }
}

/* Restores the heap below `root` of n keys: the largest is first. */
static void
sift(uint64_t *key, int64_t root, int64_t n)
{
    uint64_t moving = key[root];
    for (int64_t child = 2 * root + 1; child < n; child = 2 * root + 1) {
        child += child + 1 < n && key[child + 1] > key[child];
        if (key[child] <= moving) {
            break;
        }
        key[root] = key[child];
        root = child;
    }
    key[root] = moving;
}

/* Rows by index, equal ones by row: a heap sort, which needs no room. */
static void
sort_rows(const shl_embedding_args *a, bool by_token, uint64_t *key)
{
    int64_t rows = shl_tensor_elems(&a->tokens);
    const int32_t *token = a->tokens.data;
    for (int64_t r = 0; r < rows; r++) {
        uint64_t index = by_token ? (uint64_t)token[r] : (uint64_t)(r % a->seq);
        key[r] = index << 32 | (uint64_t)r;
    }
    for (int64_t r = rows / 2 - 1; r >= 0; r--) {
        sift(key, r, rows);
    }
    for (int64_t n = rows - 1; n > 0; n--) {
        uint64_t largest = key[0];
        key[0] = key[n];
        key[n] = largest;
        sift(key, 0, n);
    }
}

static void
scatter(const shl_stream *s, const shl_embedding_args *a, const shl_tensor *dw, bool by_token,
        bool accumulate, uint64_t *order)
{
    int64_t width = a->dy.dims[1];
    bool half = dw->dtype != SHL_F32;
    if (!accumulate) {
        zero(s, dw);
    }
    if (half) {
        sort_rows(a, by_token, order);
    }
    int threads = cpu_threads(s, shl_tensor_elems(&a->dy));
    int64_t cols = threads > 1 || half ? COLS : width;
    SHL_PARALLEL_FOR(threads)
    for (int64_t c0 = 0; c0 < width; c0 += cols) {
        int64_t c1 = c0 + cols < width ? c0 + cols : width;
        if (half) {
            add_rows_half(a, dw, order, c0, c1 - c0);
        } else {
            add_rows(a, dw->data, by_token, c0, c1);
        }
    }
}

shl_code
SHL_K(shl_cpu_embedding_backward)(shl_stream *s, const void *args, void *work)
{
    const shl_embedding_args *a = args;
    if (a->dwte.data != NULL) {
        SHL_TRY(check_tokens(a, a->dwte.dims[0]));
        scatter(s, a, &a->dwte, true, a->accumulate_wte, work);
    }
    if (a->dwpe.data != NULL) {
        scatter(s, a, &a->dwpe, false, a->accumulate_wpe, work);
    }
    return SHL_OK;
}

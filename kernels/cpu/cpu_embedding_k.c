/* kernels/cpu: embedding rows; backward adds rows in row order, a thread owns columns, so repeated
 * tokens give the same bits on any number of threads. */
#include "kernels/cpu/cpu_simd.h"
#include "kernels/cpu/cpu_slots.h"

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

shl_code
SHL_K(shl_cpu_embedding_forward)(shl_stream *s, const void *args, void *work)
{
    const shl_embedding_args *a = args;
    SHL_UNUSED(work);
    SHL_TRY(cpu_need_f32(a->wte.dtype, SHL_OP_EMBEDDING_FORWARD));
    SHL_TRY(check_tokens(a, a->wte.dims[0]));
    int64_t rows = shl_tensor_elems(&a->tokens), width = a->wte.dims[1];
    const int32_t *token = a->tokens.data;
    const float *wte = a->wte.data, *wpe = a->wpe.data;
    float *y = a->y.data;
    int threads = cpu_threads(s, rows * width);
    SHL_PARALLEL_FOR(threads)
    for (int64_t r = 0; r < rows; r++) {
        const float *from = wte + (int64_t)token[r] * width;
        float *restrict to = y + r * width;
        if (wpe == NULL) {
            memcpy(to, from, (size_t)width * sizeof(float));
            continue;
        }
        const float *place = wpe + (r % a->seq) * width;
        for (int64_t c = 0; c < width; c++) {
            to[c] = from[c] + place[c];
        }
    }
    return SHL_OK;
}

static void
zero(const shl_stream *s, float *data, int64_t n)
{
    int threads = cpu_threads(s, n);
    SHL_PARALLEL_FOR(threads)
    for (int64_t begin = 0; begin < n; begin += CPU_CHUNK) {
        memset(data + begin, 0, (size_t)(cpu_chunk_end(begin, n) - begin) * sizeof(float));
    }
}

/* dw[index(r)] += dy[r] in row order for columns [c0, c1); index is the token, or the position. */
static void
add_rows(const shl_embedding_args *a, float *dw, bool by_token, int64_t c0, int64_t c1)
{
    int64_t rows = shl_tensor_elems(&a->tokens), width = a->dy.dims[1];
    const int32_t *token = a->tokens.data;
    const float *dy = a->dy.data;
    for (int64_t r = 0; r < rows; r++) {
        int64_t index = by_token ? token[r] : r % a->seq;
        float *restrict to = dw + index * width;
        const float *from = dy + r * width;
        for (int64_t c = c0; c < c1; c++) {
            to[c] += from[c];
        }
    }
}

static void
scatter(const shl_stream *s, const shl_embedding_args *a, const shl_tensor *dw, bool by_token,
        bool accumulate)
{
    enum { COLS = 128 };
    int64_t width = a->dy.dims[1];
    if (!accumulate) {
        zero(s, dw->data, shl_tensor_elems(dw));
    }
    int threads = cpu_threads(s, shl_tensor_elems(&a->dy));
    int64_t cols = threads > 1 ? COLS : width;
    SHL_PARALLEL_FOR(threads)
    for (int64_t c0 = 0; c0 < width; c0 += cols) {
        add_rows(a, dw->data, by_token, c0, c0 + cols < width ? c0 + cols : width);
    }
}

shl_code
SHL_K(shl_cpu_embedding_backward)(shl_stream *s, const void *args, void *work)
{
    const shl_embedding_args *a = args;
    SHL_UNUSED(work);
    SHL_TRY(cpu_need_f32(a->dy.dtype, SHL_OP_EMBEDDING_BACKWARD));
    if (a->dwte.data != NULL) {
        SHL_TRY(check_tokens(a, a->dwte.dims[0]));
        scatter(s, a, &a->dwte, true, a->accumulate_wte);
    }
    if (a->dwpe.data != NULL) {
        scatter(s, a, &a->dwpe, false, a->accumulate_wpe);
    }
    return SHL_OK;
}

/* kernels/cpu: products of 16-bit matrices: by the CPU's own instructions where it has them, else
 * panel by panel widened to fp32, multiplied there, and rounded once with bias and old value added. */
#include "kernels/cpu/cpu_gemm.h"
#include "kernels/cpu/cpu_matmul.h"
#include "kernels/cpu/cpu_slots.h"
#include "kernels/cpu/cpu_typed.h"
#include "kernels/ops/work.h"

typedef struct half_panels {
    shl_stream *s;
    const shl_cpu_matmul *p;
    float *a, *b, *sum; /* sum: NULL where C is fp32 and takes the product itself */
} half_panels;

/* to[rows, cols] = the block at (row, col) of a matrix with ld elements between rows. */
static void
widen_block(shl_stream *s, shl_dtype dtype, const void *from, int64_t ld, int64_t row, int64_t col,
            int64_t rows, int64_t cols, float *to)
{
    int threads = cpu_threads(s, rows * cols);
    SHL_PARALLEL_FOR(threads)
    for (int64_t r = 0; r < rows; r++) {
        cpu_widen(dtype, from, (row + r) * ld + col, cols, to + r * cols);
    }
}

/* C's block at (row, col) = sum + bias (+ C), rounded. */
static void
round_block(const half_panels *h, int64_t row, int64_t col, int64_t rows, int64_t cols)
{
    const shl_cpu_matmul *p = h->p;
    int threads = cpu_threads(h->s, rows * cols);
    SHL_PARALLEL_FOR(threads)
    for (int64_t r = 0; r < rows; r++) {
        float room[SHL_WORK_PANEL];
        float *sum = h->sum + r * cols;
        int64_t at = (row + r) * p->ldc + col;
        if (p->bias != NULL) {
            cpu_widen(p->dtype, p->bias, col, cols, room);
            for (int64_t c = 0; c < cols; c++) {
                sum[c] += room[c];
            }
        }
        if (p->add) {
            cpu_widen(p->c_dtype, p->c, at, cols, room);
            for (int64_t c = 0; c < cols; c++) {
                sum[c] += room[c];
            }
        }
        cpu_narrow(p->c_dtype, sum, p->c, at, cols);
    }
}

static int64_t
less(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* One block of C over all of k. A panel stays as it is while its block is the same. */
static shl_code
block_product(const half_panels *h, const shl_work_panels *z, int64_t m0, int64_t n0)
{
    const shl_cpu_matmul *p = h->p;
    int64_t m = less(z->mc, p->m - m0), n = less(z->nc, p->n - n0);
    bool a_stays = z->kc >= p->k && n0 > 0;
    float *c = h->sum != NULL ? h->sum : (float *)p->c + m0 * p->ldc + n0;
    int64_t ldc = h->sum != NULL ? n : p->ldc;
    for (int64_t k0 = 0; k0 < p->k; k0 += z->kc) {
        int64_t k = less(z->kc, p->k - k0);
        if (!a_stays) {
            widen_block(h->s, p->dtype, p->a, p->lda, p->ta ? k0 : m0, p->ta ? m0 : k0,
                        p->ta ? k : m, p->ta ? m : k, h->a);
        }
        widen_block(h->s, p->dtype, p->b, p->ldb, p->tb ? n0 : k0, p->tb ? k0 : n0, p->tb ? n : k,
                    p->tb ? k : n, h->b);
        bool add = k0 > 0 || (h->sum == NULL && p->add);
        SHL_TRY(gemm(h->s, p->ta ? 'T' : 'N', p->tb ? 'T' : 'N', m, n, k, h->a, p->ta ? m : k, h->b,
                     p->tb ? k : n, add, c, ldc));
    }
    if (h->sum != NULL) {
        round_block(h, m0, n0, m, n);
    }
    return SHL_OK;
}

shl_code
SHL_K(shl_cpu_linear_half)(shl_stream *s, const shl_cpu_matmul *p, const shl_work_panels *z,
                           void *work)
{
    if (shl_cpu_matmul_is_native(p->dtype)) {
        return shl_cpu_matmul_run(p, s->device->config.threads);
    }
    half_panels h = {.s = s, .p = p, .a = work};
    h.b = h.a + z->mc * z->kc;
    h.sum = p->c_dtype != SHL_F32 ? h.b + z->kc * z->nc : NULL;
    for (int64_t m0 = 0; m0 < p->m; m0 += z->mc) {
        for (int64_t n0 = 0; n0 < p->n; n0 += z->nc) {
            SHL_TRY(block_product(&h, z, m0, n0));
        }
    }
    return SHL_OK;
}

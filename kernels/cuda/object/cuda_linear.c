/* kernels/cuda/object: the linear ops as products of cuBLASLt. A row-major matrix is its own
 * transpose by columns, so both weight orders are a matter of which operand is turned; nothing
 * is copied. */
#include "kernels/cuda/object/cuda_libs.h"

#include <stdio.h>
#include <string.h>

#include <cublasLt.h>

#include "kernels/cuda/object/cuda_launchers.h"
#include "kernels/cuda/object/cuda_product.h"

/* Algorithms that are remembered; a model has some twenty shapes, and a full table starts anew. */
#define ENTRIES 256
#define ENTRIES_USED (ENTRIES / 4 * 3)
#define ALIGNED_BYTES 16u
#define CUT_LENGTH 4096 /* shorter ones are not worth a second product */

/* All that the choice of an algorithm depends on. Tensors start at multiples of 8 elements in
 * every buffer of an engine, so `aligned` is the same wherever a tensor lies. */
typedef struct blas_key {
    int64_t m, n, k, lda, ldb, ldd, kind;
} blas_key;

typedef struct blas_entry {
    blas_key key;
    bool used, found; /* found: the library has one */
    cublasLtMatmulAlgo_t algo;
} blas_entry;

struct shl_cuda_blas {
    cublasLtHandle_t handle;
    int used;
    blas_entry entry[ENTRIES];
};

/* One product in the library's words. */
typedef struct blas_call {
    cublasLtMatmulDescOpaque_t op;
    cublasLtMatrixLayoutOpaque_t a, b, d;
    cublasLtMatmulPreferenceOpaque_t preference;
} blas_call;

#define BLAS_TRY(call)                                                                             \
    do {                                                                                           \
        cublasStatus_t blas_status = (call);                                                       \
        if (blas_status != CUBLAS_STATUS_SUCCESS) {                                                \
            return SHL_CUDA_STATUS_BLAS + (int)blas_status;                                        \
        }                                                                                          \
    } while (0)

size_t
shl_cuda_blas_bytes(void)
{
    return sizeof(shl_cuda_blas);
}

int
shl_cuda_blas_open(void *room, shl_cuda_blas **out)
{
    shl_cuda_blas *blas = room;
    *out = NULL;
    BLAS_TRY(cublasLtCreate(&blas->handle));
    *out = blas;
    return 0;
}

void
shl_cuda_blas_close(shl_cuda_blas *blas)
{
    if (blas != NULL) {
        (void)cublasLtDestroy(blas->handle);
        blas->handle = NULL;
    }
}

const char *
shl_cuda_blas_text(int status)
{
    return cublasLtGetStatusString((cublasStatus_t)(status - SHL_CUDA_STATUS_BLAS));
}

size_t
shl_cuda_blas_version(void)
{
    return cublasLtGetVersion();
}

static cudaDataType
data_type(shl_dtype dtype)
{
    return dtype == SHL_F32 ? CUDA_R_32F : dtype == SHL_BF16 ? CUDA_R_16BF : CUDA_R_16F;
}

static const char *
type_text(shl_dtype dtype)
{
    return dtype == SHL_F32 ? "fp32" : dtype == SHL_BF16 ? "bf16" : "fp16";
}

static uint32_t
bytes_of(shl_dtype dtype)
{
    return dtype == SHL_F32 ? 4 : 2;
}

static bool
is_aligned(const void *p)
{
    return (uintptr_t)p % ALIGNED_BYTES == 0;
}

static bool
all_aligned(const shl_cuda_product *p)
{
    return is_aligned(p->a) && is_aligned(p->b) && is_aligned(p->d) && is_aligned(p->bias);
}

static blas_key
key_of(const shl_cuda_launch *l, const shl_cuda_product *p)
{
    bool tf32 = l->choice.tf32 && p->in == SHL_F32;
    int kind = (int)p->in | (int)p->out << 4 | (p->turn_a ? 1 : 0) << 8 | (p->turn_b ? 1 : 0) << 9 |
               (p->add ? 1 : 0) << 10 | (p->bias != NULL ? 1 : 0) << 11 |
               (all_aligned(p) ? 1 : 0) << 12 | (tf32 ? 1 : 0) << 13;
    blas_key key = {p->m, p->n, p->k, p->lda, p->ldb, p->ldd, kind};
    return key;
}

/* The entry of a key, new ones unused. */
static blas_entry *
entry_of(shl_cuda_blas *blas, const blas_key *key)
{
    uint64_t hash = 0;
    const int64_t word[] = {key->m, key->n, key->k, key->lda, key->ldb, key->ldd, key->kind};
    for (size_t i = 0; i < SHL_ARRAY_LEN(word); i++) {
        hash = (hash ^ (uint64_t)word[i]) * 0x9e3779b97f4a7c15u;
        hash ^= hash >> 29;
    }
    if (blas->used >= ENTRIES_USED) {
        memset(blas->entry, 0, sizeof(blas->entry));
        blas->used = 0;
    }
    for (uint64_t at = hash;; at++) {
        blas_entry *e = &blas->entry[at % ENTRIES];
        if (!e->used || memcmp(&e->key, key, sizeof(*key)) == 0) {
            return e;
        }
    }
}

static int
describe(const shl_cuda_launch *l, const shl_cuda_product *p, blas_call *c)
{
    const cublasOperation_t turn_a = p->turn_a ? CUBLAS_OP_T : CUBLAS_OP_N;
    const cublasOperation_t turn_b = p->turn_b ? CUBLAS_OP_T : CUBLAS_OP_N;
    bool tf32 = l->choice.tf32 && p->in == SHL_F32;
    BLAS_TRY(cublasLtMatmulDescInit(
        &c->op, tf32 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F, CUDA_R_32F));
    BLAS_TRY(cublasLtMatmulDescSetAttribute(&c->op, CUBLASLT_MATMUL_DESC_TRANSA, &turn_a,
                                            sizeof(turn_a)));
    BLAS_TRY(cublasLtMatmulDescSetAttribute(&c->op, CUBLASLT_MATMUL_DESC_TRANSB, &turn_b,
                                            sizeof(turn_b)));
    if (p->bias != NULL) {
        const cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_BIAS;
        BLAS_TRY(cublasLtMatmulDescSetAttribute(&c->op, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue,
                                                sizeof(epilogue)));
        BLAS_TRY(cublasLtMatmulDescSetAttribute(&c->op, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &p->bias,
                                                sizeof(p->bias)));
    }
    uint64_t m = (uint64_t)p->m, n = (uint64_t)p->n, k = (uint64_t)p->k;
    BLAS_TRY(cublasLtMatrixLayoutInit(&c->a, data_type(p->in), p->turn_a ? k : m, p->turn_a ? m : k,
                                      p->lda));
    BLAS_TRY(cublasLtMatrixLayoutInit(&c->b, data_type(p->in), p->turn_b ? n : k, p->turn_b ? k : n,
                                      p->ldb));
    BLAS_TRY(cublasLtMatrixLayoutInit(&c->d, data_type(p->out), m, n, p->ldd));
    return 0;
}

/* Asks the library for its first choice that fits the pool. The alignment that it is told is that of
 * the matrices' first elements ("minimum buffer alignment" in its header); where their columns lie it
 * knows from the layouts' leading dimensions. Parts of a sum that is cut along k
 * may meet in fp32 in the workspace only: in the output they would be rounded, and by atomics
 * come in any order. */
static int
choose(const shl_cuda_launch *l, const shl_cuda_product *p, blas_call *c, blas_entry *e)
{
    static const cublasLtMatmulPreferenceAttributes_t places[] = {
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES};
    const uint64_t room = l->pool_bytes;
    const uint32_t scheme = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
    shl_cuda_blas *blas = ((const shl_cuda_libs *)l->libs)->blas;
    BLAS_TRY(cublasLtMatmulPreferenceInit(&c->preference));
    BLAS_TRY(cublasLtMatmulPreferenceSetAttribute(
        &c->preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &room, sizeof(room)));
    BLAS_TRY(cublasLtMatmulPreferenceSetAttribute(
        &c->preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &scheme, sizeof(scheme)));
    for (int i = 0; i < 4; i++) {
        const uint32_t bytes = all_aligned(p) ? ALIGNED_BYTES : bytes_of(i < 2 ? p->in : p->out);
        BLAS_TRY(
            cublasLtMatmulPreferenceSetAttribute(&c->preference, places[i], &bytes, sizeof(bytes)));
    }
    cublasLtMatmulHeuristicResult_t result;
    int found = 0;
    cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(
        blas->handle, &c->op, &c->a, &c->b, &c->d, &c->d, &c->preference, 1, &result, &found);
    if (status != CUBLAS_STATUS_SUCCESS && status != CUBLAS_STATUS_NOT_SUPPORTED) {
        return SHL_CUDA_STATUS_BLAS + (int)status;
    }
    e->key = key_of(l, p);
    e->used = true;
    e->found =
        status == CUBLAS_STATUS_SUCCESS && found > 0 && result.state == CUBLAS_STATUS_SUCCESS;
    if (e->found) {
        e->algo = result.algo;
    }
    blas->used++;
    return 0;
}

/* No kernel of our own stands in: it would be slow beyond use, and nobody would know. */
static int
refuse(const shl_cuda_launch *l, const shl_cuda_product *p)
{
    size_t version = shl_cuda_blas_version();
    (void)snprintf(
        l->why, SHL_CUDA_WHY_BYTES,
        "cuBLASLt %zu.%zu.%zu has no algorithm for m %lld, n %lld, k %lld: %s%s by %s%s "
        "to %s%s%s, columns %lld, %lld and %lld elements apart, addresses at multiples of "
        "%u bytes, %zu MiB of workspace",
        version / 10000, version / 100 % 100, version % 100, (long long)p->m, (long long)p->n,
        (long long)p->k, type_text(p->in), p->turn_a ? " turned" : "", type_text(p->in),
        p->turn_b ? " turned" : "", type_text(p->out), p->bias != NULL ? " with a bias" : "",
        p->add ? ", added to what is there" : "", (long long)p->lda, (long long)p->ldb,
        (long long)p->ldd, all_aligned(p) ? ALIGNED_BYTES : bytes_of(p->in), l->pool_bytes >> 20);
    return SHL_CUDA_NO_ALGORITHM;
}

/* Floor: 2 m n k operations over the rate of the tensor cores (fp32 without TF32: of the
 * others), or the bytes of the three matrices where they are more; one launch, two where the
 * library cuts k. */
static int
multiply(const shl_cuda_launch *l, const shl_cuda_product *p)
{
    const shl_cuda_libs *libs = l->libs;
    if (libs == NULL || libs->blas == NULL) {
        return SHL_CUDA_UNSUPPORTED;
    }
    const float one = 1.0f, beta = p->add ? 1.0f : 0.0f;
    blas_call c;
    blas_key key = key_of(l, p);
    blas_entry *e = entry_of(libs->blas, &key);
    int status = describe(l, p, &c);
    if (status == 0 && !e->used) {
        status = choose(l, p, &c, e);
    }
    if (status != 0) {
        return status;
    }
    if (!e->found) {
        return refuse(l, p);
    }
    *l->ran = p->in != SHL_F32 ? "cuBLASLt"
              : l->choice.tf32 ? "cuBLASLt (TF32)"
                               : "cuBLASLt (fp32)";
    BLAS_TRY(cublasLtMatmul(libs->blas->handle, &c.op, &one, p->a, &c.a, p->b, &c.b, &beta, p->d,
                            &c.d, p->d, &c.d, &e->algo, l->pool, l->pool_bytes, l->stream));
    return 0;
}

/* How much of a length is too much for whole packs of 16 bytes; 0 where none is, or nothing is gained. */
static int64_t
odd_end(const shl_cuda_product *p, int64_t length)
{
    const int64_t per = ALIGNED_BYTES / 2;
    bool rows_fit = p->lda % per == 0 && p->ldb % per == 0 && p->ldd % per == 0 && all_aligned(p);
    return p->in != SHL_F32 && length > CUT_LENGTH && rows_fit ? length % per : 0;
}

/* The library is fastest where addresses, leading dimensions and the lengths that lie along memory (of A m, or k
 * where it is turned; of B k, or n; of D m) are multiples of 16 bytes ("Tensor Core Usage" in cuBLAS's
 * manual). An odd vocabulary's m and n are cut: their last few are a product of their own, which reads
 * the other matrix once more. k is not: two parts of a sum would be rounded apart. */
static int
multiply_cut(const shl_cuda_launch *l, const shl_cuda_product *p)
{
    const uint32_t in = bytes_of(p->in), out = bytes_of(p->out);
    int64_t end_m = p->turn_a ? odd_end(p, p->m) : 0, end_n = p->turn_b ? odd_end(p, p->n) : 0;
    shl_cuda_product whole = *p, end = *p;
    if (end_m > 0) {
        whole.m -= end_m;
        end.m = end_m;
        end.a = (const char *)p->a + (size_t)(whole.m * p->lda) * in;
        end.d = (char *)p->d + (size_t)whole.m * out;
        end.bias = p->bias != NULL ? (const char *)p->bias + (size_t)whole.m * out : NULL;
    } else if (end_n > 0) {
        whole.n -= end_n;
        end.n = end_n;
        end.b = (const char *)p->b + (size_t)whole.n * in;
        end.d = (char *)p->d + (size_t)(whole.n * p->ldd) * out;
    }
    int status = multiply(l, &whole);
    return status != 0 || end_m + end_n == 0 ? status : multiply(l, &end);
}

/* y^T[O,R] = W^T[O,I] x^T[I,R]; W in order IO is W^T by columns. */
int
shl_cuda_linear_forward(const shl_cuda_launch *l, const void *args, void *work)
{
    const shl_linear_args *a = args;
    const shl_cuda_product p = {.m = a->y.dims[1],
                                .n = a->x.dims[0],
                                .k = a->x.dims[1],
                                .lda = a->w.dims[1],
                                .ldb = a->x.dims[1],
                                .ldd = shl_row_stride(a->stride, a->y.dims[1]),
                                .a = a->w.data,
                                .b = a->x.data,
                                .bias = a->b.data,
                                .d = a->y.data,
                                .in = a->x.dtype,
                                .out = a->y.dtype,
                                .turn_a = a->order == SHL_WEIGHT_OI};
    SHL_UNUSED(work);
    return multiply_cut(l, &p);
}

/* dx^T[I,R] = W[I,O] dy^T[O,R]. */
int
shl_cuda_linear_backward_input(const shl_cuda_launch *l, const void *args, void *work)
{
    const shl_linear_args *a = args;
    const shl_cuda_product p = {.m = a->dx.dims[1],
                                .n = a->dy.dims[0],
                                .k = a->dy.dims[1],
                                .lda = a->w.dims[1],
                                .ldb = shl_row_stride(a->stride, a->dy.dims[1]),
                                .ldd = a->dx.dims[1],
                                .a = a->w.data,
                                .b = a->dy.data,
                                .d = a->dx.data,
                                .in = a->dy.dtype,
                                .out = a->dx.dtype,
                                .turn_a = a->order == SHL_WEIGHT_IO,
                                .add = a->accumulate_dx};
    SHL_UNUSED(work);
    return multiply_cut(l, &p);
}

/* Order IO: dw^T[O,I] = dy^T[O,R] x[R,I]; order OI: dw^T[I,O] = x^T[I,R] dy[R,O]. The sums of
 * columns are our own: the library's bias gradient overwrites, and its order is not documented. */
int
shl_cuda_linear_backward_weight(const shl_cuda_launch *l, const void *args, void *work)
{
    const shl_linear_args *a = args;
    int64_t stride = shl_row_stride(a->stride, a->dy.dims[1]);
    if (a->dw.data != NULL) {
        bool io = a->order == SHL_WEIGHT_IO;
        const shl_cuda_product p = {.m = a->dw.dims[1],
                                    .n = a->dw.dims[0],
                                    .k = a->dy.dims[0],
                                    .lda = io ? stride : a->x.dims[1],
                                    .ldb = io ? a->x.dims[1] : stride,
                                    .ldd = a->dw.dims[1],
                                    .a = io ? a->dy.data : a->x.data,
                                    .b = io ? a->x.data : a->dy.data,
                                    .d = a->dw.data,
                                    .in = a->dy.dtype,
                                    .out = a->dw.dtype,
                                    .turn_b = true,
                                    .add = a->accumulate};
        int status = multiply_cut(l, &p);
        if (status != 0) {
            return status;
        }
    }
    if (a->db.data == NULL) {
        return 0;
    }
    return shl_cuda_column_sums(l, &a->dy, stride, &a->db, a->accumulate, work);
}

// tests/support/emulate: cuBLASLt as plain loops that run with the stream, and as strict as the
// library is on paper: an algorithm serves the shapes, types and alignments that it was asked for
// and no others.
#include "cublasLt.h"
#include "emulate_stream.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>

extern "C" {
#include "kernels/base/half.h"
}

namespace
{

const uint64_t MARK_HANDLE = 0x6c74'6861'6e64'6c65u, MARK_ALGO = 0x616c'676f'7269'7468u;
const size_t WORKSPACE_ALIGN = 256;

struct matrix {
    uint64_t type, rows, cols;
    int64_t ld;
};
struct operation {
    uint64_t compute, scale, turn[2], epilogue;
    const void *bias;
};
struct preference {
    uint64_t workspace, scheme, align[4];
};
struct algorithm {
    uint64_t mark, shapes, workspace, align[4];
};

template <typename T, typename O>
T *
look(O *opaque)
{
    static_assert(sizeof(T) <= sizeof(O), "an opaque word is too small");
    return reinterpret_cast<T *>(opaque->data);
}

cublasStatus_t
refuse(const char *why)
{
    std::fprintf(stderr, "emulate: cuBLASLt: %s\n", why);
    return CUBLAS_STATUS_INVALID_VALUE;
}

size_t
bytes_of(uint64_t type)
{
    return type == CUDA_R_32F ? 4 : 2;
}

bool
is_type(uint64_t type)
{
    return type == CUDA_R_32F || type == CUDA_R_16F || type == CUDA_R_16BF;
}

void
mix(uint64_t *hash, uint64_t word)
{
    *hash = (*hash ^ word) * 0x100000001b3u;
}

// All that an algorithm was chosen for, but the preference.
uint64_t
shapes_of(const operation *o, const matrix *a, const matrix *b, const matrix *c, const matrix *d)
{
    uint64_t hash = 0xcbf29ce484222325u;
    for (uint64_t word : {o->compute, o->scale, o->turn[0], o->turn[1], o->epilogue}) {
        mix(&hash, word);
    }
    for (const matrix *m : {a, b, c, d}) {
        for (uint64_t word : {m->type, m->rows, m->cols, static_cast<uint64_t>(m->ld)}) {
            mix(&hash, word);
        }
    }
    return hash;
}

// What is wrong with a product; NULL: nothing.
const char *
wrong(const operation *o, const matrix *a, const matrix *b, const matrix *c, const matrix *d)
{
    uint64_t m = o->turn[0] == CUBLAS_OP_N ? a->rows : a->cols;
    uint64_t ka = o->turn[0] == CUBLAS_OP_N ? a->cols : a->rows;
    uint64_t kb = o->turn[1] == CUBLAS_OP_N ? b->rows : b->cols;
    uint64_t n = o->turn[1] == CUBLAS_OP_N ? b->cols : b->rows;
    for (const matrix *x : {a, b, c, d}) {
        if (!is_type(x->type) || x->rows == 0 || x->cols == 0) {
            return "a layout without type or size";
        }
        if (x->ld < static_cast<int64_t>(x->rows)) {
            return "a leading dimension below the rows";
        }
    }
    if (o->scale != CUDA_R_32F ||
        (o->compute != CUBLAS_COMPUTE_32F && o->compute != CUBLAS_COMPUTE_32F_FAST_TF32)) {
        return "a compute type that is not of fp32";
    }
    if (ka != kb || d->rows != m || d->cols != n || c->rows != m || c->cols != n) {
        return "the shapes do not fit each other";
    }
    if (a->type != b->type || c->type != d->type || (d->type != a->type && d->type != CUDA_R_32F)) {
        return "types that do not go together";
    }
    return nullptr;
}

float
read(uint64_t type, const void *p, uint64_t i)
{
    return shl_float_at(type == CUDA_R_32F    ? SHL_F32
                        : type == CUDA_R_16BF ? SHL_BF16
                                              : SHL_F16,
                        p, static_cast<int64_t>(i));
}

void
write(uint64_t type, void *p, uint64_t i, float x)
{
    shl_float_put(type == CUDA_R_32F    ? SHL_F32
                  : type == CUDA_R_16BF ? SHL_BF16
                                        : SHL_F16,
                  p, static_cast<int64_t>(i), x);
}

// To the 10 bits of TF32, ties away from zero.
float
tf32(float x)
{
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof(bits));
    bits = (bits + 0x1000u) & ~0x1fffu;
    std::memcpy(&x, &bits, sizeof(bits));
    return x;
}

struct work {
    operation o;
    matrix a, b, d;
    const void *A, *B, *C;
    void *D;
    float alpha, beta;
};

void
multiply(const work &w)
{
    bool turn_a = w.o.turn[0] == CUBLAS_OP_T, turn_b = w.o.turn[1] == CUBLAS_OP_T;
    bool coarse = w.o.compute == CUBLAS_COMPUTE_32F_FAST_TF32;
    uint64_t k_end = turn_a ? w.a.rows : w.a.cols;
    uint64_t lda = static_cast<uint64_t>(w.a.ld), ldb = static_cast<uint64_t>(w.b.ld);
    for (uint64_t j = 0; j < w.d.cols; j++) {
        for (uint64_t i = 0; i < w.d.rows; i++) {
            float sum = 0.0f;
            for (uint64_t k = 0; k < k_end; k++) {
                float x = read(w.a.type, w.A, turn_a ? k + i * lda : i + k * lda);
                float y = read(w.b.type, w.B, turn_b ? j + k * ldb : k + j * ldb);
                sum = coarse ? fmaf(tf32(x), tf32(y), sum) : fmaf(x, y, sum);
            }
            uint64_t at = i + j * static_cast<uint64_t>(w.d.ld);
            sum *= w.alpha;
            sum += w.beta != 0.0f ? w.beta * read(w.d.type, w.C, at) : 0.0f;
            sum += w.o.epilogue == CUBLASLT_EPILOGUE_BIAS ? read(w.d.type, w.o.bias, i) : 0.0f;
            write(w.d.type, w.D, at, sum);
        }
    }
}

bool
is_multiple(const void *p, uint64_t bytes)
{
    return bytes != 0 && reinterpret_cast<uintptr_t>(p) % bytes == 0;
}

} // namespace

extern "C" cublasStatus_t
cublasLtCreate(cublasLtHandle_t *handle)
{
    *handle = reinterpret_cast<cublasLtHandle_t>(new uint64_t(MARK_HANDLE));
    return CUBLAS_STATUS_SUCCESS;
}

extern "C" cublasStatus_t
cublasLtDestroy(cublasLtHandle_t handle)
{
    uint64_t *mark = reinterpret_cast<uint64_t *>(handle);
    if (mark == nullptr || *mark != MARK_HANDLE) {
        return refuse("closing what is no handle");
    }
    *mark = 0;
    delete mark;
    return CUBLAS_STATUS_SUCCESS;
}

extern "C" size_t
cublasLtGetVersion(void)
{
    return 130002;
}

extern "C" const char *
cublasLtGetStatusString(cublasStatus_t status)
{
    return status == CUBLAS_STATUS_SUCCESS         ? "CUBLAS_STATUS_SUCCESS"
           : status == CUBLAS_STATUS_NOT_SUPPORTED ? "CUBLAS_STATUS_NOT_SUPPORTED"
                                                   : "CUBLAS_STATUS_INVALID_VALUE";
}

extern "C" cublasStatus_t
cublasLtMatmulDescInit(cublasLtMatmulDesc_t desc, cublasComputeType_t compute, cudaDataType_t scale)
{
    *look<operation>(desc) = {static_cast<uint64_t>(compute),
                              static_cast<uint64_t>(scale),
                              {CUBLAS_OP_N, CUBLAS_OP_N},
                              CUBLASLT_EPILOGUE_DEFAULT,
                              nullptr};
    return CUBLAS_STATUS_SUCCESS;
}

extern "C" cublasStatus_t
cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t desc, cublasLtMatmulDescAttributes_t attribute,
                               const void *value, size_t bytes)
{
    operation *o = look<operation>(desc);
    uint32_t word = 0;
    if (attribute == CUBLASLT_MATMUL_DESC_BIAS_POINTER) {
        if (bytes != sizeof(void *)) {
            return refuse("a pointer of another size");
        }
        std::memcpy(&o->bias, value, bytes);
        return CUBLAS_STATUS_SUCCESS;
    }
    if (bytes != sizeof(word)) {
        return refuse("an attribute of another size");
    }
    std::memcpy(&word, value, bytes);
    uint64_t *to = attribute == CUBLASLT_MATMUL_DESC_TRANSA   ? &o->turn[0]
                   : attribute == CUBLASLT_MATMUL_DESC_TRANSB ? &o->turn[1]
                                                              : &o->epilogue;
    *to = word;
    return CUBLAS_STATUS_SUCCESS;
}

extern "C" cublasStatus_t
cublasLtMatrixLayoutInit(cublasLtMatrixLayout_t layout, cudaDataType type, uint64_t rows,
                         uint64_t cols, int64_t ld)
{
    *look<matrix>(layout) = {static_cast<uint64_t>(type), rows, cols, ld};
    return CUBLAS_STATUS_SUCCESS;
}

extern "C" cublasStatus_t
cublasLtMatmulPreferenceInit(cublasLtMatmulPreference_t p)
{
    *look<preference>(p) = {0, 7, {256, 256, 256, 256}}; // the library's defaults
    return CUBLAS_STATUS_SUCCESS;
}

extern "C" cublasStatus_t
cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t p,
                                     cublasLtMatmulPreferenceAttributes_t attribute,
                                     const void *value, size_t bytes)
{
    preference *to = look<preference>(p);
    uint32_t word = 0;
    if (attribute == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES) {
        if (bytes != sizeof(to->workspace)) {
            return refuse("a workspace size of another size");
        }
        std::memcpy(&to->workspace, value, bytes);
        return CUBLAS_STATUS_SUCCESS;
    }
    if (bytes != sizeof(word)) {
        return refuse("a preference of another size");
    }
    std::memcpy(&word, value, bytes);
    if (attribute == CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK) {
        to->scheme = word;
    } else {
        to->align[attribute - CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES] = word;
    }
    return CUBLAS_STATUS_SUCCESS;
}

// SHL_EMULATED_NO_ALGORITHM: "m n k" of the product that it has nothing for.
static bool
is_missing(const operation *o, const matrix *a, const matrix *d)
{
    char text[96];
    const char *missing = std::getenv("SHL_EMULATED_NO_ALGORITHM");
    uint64_t k = o->turn[0] == CUBLAS_OP_N ? a->cols : a->rows;
    std::snprintf(text, sizeof(text), "%llu %llu %llu", static_cast<unsigned long long>(d->rows),
                  static_cast<unsigned long long>(d->cols), static_cast<unsigned long long>(k));
    return missing != nullptr && std::strcmp(missing, text) == 0;
}

extern "C" cublasStatus_t
cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc,
                               cublasLtMatrixLayout_t la, cublasLtMatrixLayout_t lb,
                               cublasLtMatrixLayout_t lc, cublasLtMatrixLayout_t ld,
                               cublasLtMatmulPreference_t pref, int wanted,
                               cublasLtMatmulHeuristicResult_t results[], int *found)
{
    const operation *o = look<operation>(desc);
    const matrix *a = look<matrix>(la), *b = look<matrix>(lb), *c = look<matrix>(lc),
                 *d = look<matrix>(ld);
    const preference *p = look<preference>(pref);
    const char *why = wrong(o, a, b, c, d);
    *found = 0;
    if (*reinterpret_cast<uint64_t *>(handle) != MARK_HANDLE || wanted < 1) {
        return refuse("no handle, or no results wanted");
    }
    if (why != nullptr) {
        return refuse(why);
    }
    if ((p->scheme & ~static_cast<uint64_t>(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE)) != 0) {
        return refuse("a reduction scheme that rounds parts or adds them in any order");
    }
    if (is_missing(o, a, d)) {
        return CUBLAS_STATUS_NOT_SUPPORTED;
    }
    algorithm chosen = {MARK_ALGO,
                        shapes_of(o, a, b, c, d),
                        p->workspace / 2,
                        {p->align[0], p->align[1], p->align[2], p->align[3]}};
    results[0] = cublasLtMatmulHeuristicResult_t();
    std::memcpy(results[0].algo.data, &chosen, sizeof(chosen));
    results[0].workspaceSize = chosen.workspace;
    results[0].state = CUBLAS_STATUS_SUCCESS;
    *found = 1;
    return CUBLAS_STATUS_SUCCESS;
}

extern "C" cublasStatus_t
cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc, const void *alpha, const void *A,
               cublasLtMatrixLayout_t la, const void *B, cublasLtMatrixLayout_t lb,
               const void *beta, const void *C, cublasLtMatrixLayout_t lc, void *D,
               cublasLtMatrixLayout_t ld, const cublasLtMatmulAlgo_t *algo, void *workspace,
               size_t workspace_bytes, cudaStream_t stream)
{
    algorithm chosen;
    std::memcpy(&chosen, algo->data, sizeof(chosen));
    work w = {*look<operation>(desc),
              *look<matrix>(la),
              *look<matrix>(lb),
              *look<matrix>(ld),
              A,
              B,
              C,
              D,
              *static_cast<const float *>(alpha),
              *static_cast<const float *>(beta)};
    const matrix *c = look<matrix>(lc);
    if (*reinterpret_cast<uint64_t *>(handle) != MARK_HANDLE || chosen.mark != MARK_ALGO) {
        return refuse("no handle, or no algorithm");
    }
    if (chosen.shapes != shapes_of(&w.o, &w.a, &w.b, c, &w.d)) {
        return refuse("an algorithm that was chosen for something else");
    }
    if (chosen.workspace > workspace_bytes ||
        (chosen.workspace > 0 && !is_multiple(workspace, WORKSPACE_ALIGN))) {
        return refuse("a workspace that is too small, or not at a multiple of 256 bytes");
    }
    const void *place[4] = {A, B, C, D};
    for (int i = 0; i < 4; i++) {
        if (place[i] == nullptr || !is_multiple(place[i], chosen.align[i])) {
            return refuse("a matrix off the alignment that was promised");
        }
    }
    if (w.o.epilogue == CUBLASLT_EPILOGUE_BIAS &&
        (w.o.bias == nullptr || !is_multiple(w.o.bias, chosen.align[3]) ||
         !is_multiple(w.o.bias, bytes_of(w.d.type)))) {
        return refuse("a bias off the alignment that was promised");
    }
    emulate::enqueue(static_cast<emulate::stream *>(stream), [=]() {
        std::memset(workspace, 0xff, chosen.workspace);
        multiply(w);
    });
    return CUBLAS_STATUS_SUCCESS;
}

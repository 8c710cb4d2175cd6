/* kernels/cuda/object: attention forward by cuDNN, for bf16 without dropout where it was asked for. The library
 * knows attention as a graph: scores, scale, causal mask, softmax, sum; its engines fuse the whole. The
 * backward stays the own kernel: cuDNN's is deterministic only with a workspace of B NH T^2 elements. */
#include <float.h>
#include <stdio.h>
#include <string.h>

#include "kernels/cuda/object/cuda_dnn.h"

#define PLANS 32

/* Numbers of the tensors that lie in memory. */
enum { UID_Q = 1, UID_K, UID_V, UID_Y, UID_LSE, UID_SCALE, UID_HIDDEN, UIDS = UID_HIDDEN };

/* All that a plan depends on. */
typedef struct sdpa_key {
    int64_t batch, seq, heads, kv_heads, head_dim, q_stride, kv_stride;
} sdpa_key;

typedef struct sdpa_entry {
    sdpa_key key;
    shl_cuda_dnn_graph graph;
} sdpa_entry;

struct shl_cuda_dnn {
    shl_cuda_dnn_calls calls;
    cudnnHandle_t handle;
    char name[32]; /* with the version */
    int plans;
    sdpa_entry entry[PLANS];
};

size_t
shl_cuda_dnn_bytes(void)
{
    return sizeof(shl_cuda_dnn);
}

static int
open_once(shl_cuda_dnn *dnn)
{
    if (dnn->handle != NULL) {
        return 0;
    }
    int status = shl_cuda_dnn_load(&dnn->calls);
    if (status != 0) {
        return status;
    }
    cudnnStatus_t made = dnn->calls.create(&dnn->handle);
    dnn->handle = made == CUDNN_STATUS_SUCCESS ? dnn->handle : NULL;
    size_t version = shl_cuda_dnn_version();
    (void)snprintf(dnn->name, sizeof(dnn->name), "cudnn %zu.%zu.%zu", version / 10000,
                   version / 100 % 100, version % 100);
    return made == CUDNN_STATUS_SUCCESS ? 0 : SHL_CUDA_STATUS_DNN + (int)made;
}

void
shl_cuda_dnn_close(shl_cuda_dnn *dnn)
{
    if (dnn == NULL || dnn->handle == NULL) {
        return;
    }
    while (dnn->plans > 0) {
        shl_cuda_dnn_graph_close(&dnn->entry[--dnn->plans].graph);
    }
    (void)dnn->calls.destroy(dnn->handle);
    dnn->handle = NULL;
}

const char *
shl_cuda_dnn_text(int status)
{
    switch (status) {
    case SHL_CUDA_STATUS_DNN_LIBRARY:
        return "cuDNN: libcudnn.so.9 is not where the loader looks (LD_LIBRARY_PATH, ld.so.conf)";
    case SHL_CUDA_STATUS_DNN_ENGINE:
        return "cuDNN has no deterministic engine for attention of this shape on this device";
    case SHL_CUDA_STATUS_DNN_POOL:
        return "cuDNN's attention wants more workspace than the pool has";
    case SHL_CUDA_STATUS_DNN_PLACE:
        return "cuDNN's attention wants tensors at multiples of 16 bytes";
    default:
        return "cuDNN: see cudnnStatus_t for the number less 30000";
    }
}

/* A tensor [B, heads, T, D] whose tokens are `stride` elements apart; turned: [B, heads, D, T]. */
static cudnnBackendDescriptor_t
rows(shl_cuda_dnn_graph *g, int64_t uid, const sdpa_key *k, int64_t heads, int64_t stride,
     bool turned)
{
    shl_cuda_dnn_tensor t = {.uid = uid,
                             .dims = {k->batch, heads, k->seq, k->head_dim},
                             .strides = {k->seq * stride, k->head_dim, stride, 1},
                             .type = CUDNN_DATA_BFLOAT16};
    if (turned) {
        t.dims[2] = k->head_dim;
        t.dims[3] = k->seq;
        t.strides[2] = 1;
        t.strides[3] = stride;
    }
    return shl_cuda_dnn_tensor_new(g, &t);
}

/* A T x T matrix per head that never lies in memory. */
static cudnnBackendDescriptor_t
square(shl_cuda_dnn_graph *g, const sdpa_key *k, cudnnDataType_t type)
{
    const shl_cuda_dnn_tensor t = {
        .dims = {k->batch, k->heads, k->seq, k->seq},
        .strides = {k->heads * k->seq * k->seq, k->seq * k->seq, k->seq, 1},
        .type = type};
    return shl_cuda_dnn_tensor_new(g, &t);
}

/* A number per query. */
static cudnnBackendDescriptor_t
column(shl_cuda_dnn_graph *g, int64_t uid, const sdpa_key *k)
{
    const shl_cuda_dnn_tensor t = {.uid = uid,
                                   .dims = {k->batch, k->heads, k->seq, 1},
                                   .strides = {k->heads * k->seq, k->seq, 1, 1},
                                   .type = CUDNN_DATA_FLOAT};
    return shl_cuda_dnn_tensor_new(g, &t);
}

static cudnnBackendDescriptor_t
number(shl_cuda_dnn_graph *g, int64_t uid)
{
    const shl_cuda_dnn_tensor t = {.uid = uid,
                                   .dims = {1, 1, 1, 1},
                                   .strides = {1, 1, 1, 1},
                                   .type = CUDNN_DATA_FLOAT,
                                   .by_value = true};
    return shl_cuda_dnn_tensor_new(g, &t);
}

/* s where key <= query, else the number that hides it. */
static cudnnBackendDescriptor_t
causal(shl_cuda_dnn_graph *g, const sdpa_key *k, cudnnBackendDescriptor_t s)
{
    cudnnBackendDescriptor_t query = square(g, k, CUDNN_DATA_INT32);
    cudnnBackendDescriptor_t key = square(g, k, CUDNN_DATA_INT32);
    cudnnBackendDescriptor_t seen = square(g, k, CUDNN_DATA_BOOLEAN);
    cudnnBackendDescriptor_t out = square(g, k, CUDNN_DATA_FLOAT);
    cudnnBackendDescriptor_t hidden = number(g, UID_HIDDEN);
    shl_cuda_dnn_pointwise(g, CUDNN_POINTWISE_GEN_INDEX, CUDNN_DATA_INT32, 2, s, NULL, NULL, query);
    shl_cuda_dnn_pointwise(g, CUDNN_POINTWISE_GEN_INDEX, CUDNN_DATA_INT32, 3, s, NULL, NULL, key);
    shl_cuda_dnn_pointwise(g, CUDNN_POINTWISE_CMP_GE, CUDNN_DATA_BOOLEAN, 0, query, key, NULL,
                           seen);
    shl_cuda_dnn_pointwise(g, CUDNN_POINTWISE_BINARY_SELECT, CUDNN_DATA_FLOAT, 0, s, hidden, seen,
                           out);
    return out;
}

/* Weights exp(s - max) / sum, and max + log(sum) in memory. */
static cudnnBackendDescriptor_t
softmax(shl_cuda_dnn_graph *g, const sdpa_key *k, cudnnBackendDescriptor_t s)
{
    const cudnnDataType_t f32 = CUDNN_DATA_FLOAT;
    cudnnBackendDescriptor_t top = column(g, 0, k), sum = column(g, 0, k), logged = column(g, 0, k);
    cudnnBackendDescriptor_t less = square(g, k, f32), e = square(g, k, f32);
    cudnnBackendDescriptor_t lse = column(g, UID_LSE, k), p = square(g, k, CUDNN_DATA_BFLOAT16);
    shl_cuda_dnn_reduce(g, CUDNN_REDUCE_TENSOR_MAX, s, top);
    shl_cuda_dnn_pointwise(g, CUDNN_POINTWISE_SUB, f32, 0, s, top, NULL, less);
    shl_cuda_dnn_pointwise(g, CUDNN_POINTWISE_EXP, f32, 0, less, NULL, NULL, e);
    shl_cuda_dnn_reduce(g, CUDNN_REDUCE_TENSOR_ADD, e, sum);
    shl_cuda_dnn_pointwise(g, CUDNN_POINTWISE_LOG, f32, 0, sum, NULL, NULL, logged);
    shl_cuda_dnn_pointwise(g, CUDNN_POINTWISE_ADD, f32, 0, top, logged, NULL, lse);
    shl_cuda_dnn_pointwise(g, CUDNN_POINTWISE_DIV, f32, 0, e, sum, NULL, p);
    return p;
}

static void
describe(shl_cuda_dnn_graph *g, const sdpa_key *k)
{
    const int64_t y_stride = k->heads * k->head_dim;
    cudnnBackendDescriptor_t s = square(g, k, CUDNN_DATA_FLOAT);
    cudnnBackendDescriptor_t scaled = square(g, k, CUDNN_DATA_FLOAT);
    shl_cuda_dnn_matmul(g, rows(g, UID_Q, k, k->heads, k->q_stride, false),
                        rows(g, UID_K, k, k->kv_heads, k->kv_stride, true), s);
    shl_cuda_dnn_pointwise(g, CUDNN_POINTWISE_MUL, CUDNN_DATA_FLOAT, 0, s, number(g, UID_SCALE),
                           NULL, scaled);
    cudnnBackendDescriptor_t p = softmax(g, k, causal(g, k, scaled));
    shl_cuda_dnn_matmul(g, p, rows(g, UID_V, k, k->kv_heads, k->kv_stride, false),
                        rows(g, UID_Y, k, k->heads, y_stride, false));
}

/* The graph of a key: a remembered one, or a new one; the oldest makes room. A shape that the library
 * refused is remembered with its status. */
static shl_cuda_dnn_graph *
graph_of(shl_cuda_dnn *dnn, const sdpa_key *key, size_t pool_bytes)
{
    for (int i = 0; i < dnn->plans; i++) {
        if (memcmp(&dnn->entry[i].key, key, sizeof(*key)) == 0) {
            return &dnn->entry[i].graph;
        }
    }
    if (dnn->plans == PLANS) {
        shl_cuda_dnn_graph_close(&dnn->entry[0].graph);
        memmove(&dnn->entry[0], &dnn->entry[1], (PLANS - 1) * sizeof(dnn->entry[0]));
        dnn->plans--;
    }
    sdpa_entry *e = &dnn->entry[dnn->plans++];
    e->key = *key;
    e->graph = (shl_cuda_dnn_graph){.calls = &dnn->calls, .handle = dnn->handle};
    describe(&e->graph, key);
    (void)shl_cuda_dnn_plan(&e->graph, pool_bytes);
    return &e->graph;
}

static bool
is_placed(const void *data)
{
    return (uintptr_t)data % 16 == 0;
}

/* Floor as of cuda_attention_half.cu; the library's kernels use what that card has (sm_90: wgmma and TMA). */
int
shl_cuda_sdpa_forward(const shl_cuda_launch *l, const shl_attention_args *a)
{
    const shl_cuda_libs *libs = l->libs;
    if (libs == NULL || libs->dnn == NULL) {
        return SHL_CUDA_STATUS_DNN_LIBRARY;
    }
    int status = open_once(libs->dnn);
    if (status != 0) {
        return status;
    }
    const sdpa_key key = {.batch = a->batch,
                          .seq = a->seq,
                          .heads = a->heads,
                          .kv_heads = a->kv_heads,
                          .head_dim = a->head_dim,
                          .q_stride = a->q_stride,
                          .kv_stride = a->kv_stride};
    if (!is_placed(a->q) || !is_placed(a->k) || !is_placed(a->v) || !is_placed(a->y) ||
        a->q_stride % 8 != 0 || a->kv_stride % 8 != 0) {
        return SHL_CUDA_STATUS_DNN_PLACE;
    }
    shl_cuda_dnn_graph *g = graph_of(libs->dnn, &key, l->pool_bytes);
    if (g->status != 0) {
        return g->status;
    }
    *l->ran = libs->dnn->name;
    float scale = a->scale, hidden = -FLT_MAX;
    const int64_t uids[UIDS] = {UID_Q, UID_K, UID_V, UID_Y, UID_LSE, UID_SCALE, UID_HIDDEN};
    /* The library takes addresses of inputs and outputs alike without const. */
    void *const data[UIDS] = {(void *)(uintptr_t)a->q,
                              (void *)(uintptr_t)a->k,
                              (void *)(uintptr_t)a->v,
                              a->y,
                              a->lse,
                              &scale,
                              &hidden};
    return shl_cuda_dnn_run(g, l, UIDS, uids, data);
}

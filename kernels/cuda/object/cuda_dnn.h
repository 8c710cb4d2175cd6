/* kernels/cuda/object: cuDNN's backend interface as far as attention takes it: a table of its functions, loaded
 * when first wanted, and graphs of operations on 4-D tensors that are put together in order. Plain C. */
#ifndef SHL_CUDA_DNN_H
#define SHL_CUDA_DNN_H

#include <cudnn.h>

#include "kernels/cuda/object/cuda_libs.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Statuses beside the library's own: nothing that it has serves a graph with bits that repeat; or within
 * the pool; a tensor lies where it may not. */
#define SHL_CUDA_STATUS_DNN_ENGINE (SHL_CUDA_STATUS_DNN + 9001)
#define SHL_CUDA_STATUS_DNN_POOL (SHL_CUDA_STATUS_DNN + 9002)
#define SHL_CUDA_STATUS_DNN_PLACE (SHL_CUDA_STATUS_DNN + 9003)

/* The functions, by name. */
typedef struct shl_cuda_dnn_calls {
    cudnnStatus_t (*create)(cudnnHandle_t *handle);
    cudnnStatus_t (*destroy)(cudnnHandle_t handle);
    cudnnStatus_t (*set_stream)(cudnnHandle_t handle, cudaStream_t stream);
    cudnnStatus_t (*make)(cudnnBackendDescriptorType_t type, cudnnBackendDescriptor_t *out);
    cudnnStatus_t (*unmake)(cudnnBackendDescriptor_t d);
    cudnnStatus_t (*finalize)(cudnnBackendDescriptor_t d);
    cudnnStatus_t (*set)(cudnnBackendDescriptor_t d, cudnnBackendAttributeName_t name,
                         cudnnBackendAttributeType_t type, int64_t n, const void *values);
    cudnnStatus_t (*get)(cudnnBackendDescriptor_t d, cudnnBackendAttributeName_t name,
                         cudnnBackendAttributeType_t type, int64_t n, int64_t *got, void *values);
    cudnnStatus_t (*execute)(cudnnHandle_t handle, cudnnBackendDescriptor_t plan,
                             cudnnBackendDescriptor_t pack);
} shl_cuda_dnn_calls;

/* A graph while it grows. `status` is the first that was not 0; after it every call does nothing. Descriptors
 * live as long as the plan that came of them. */
#define SHL_CUDA_DNN_PARTS 96
#define SHL_CUDA_DNN_OPS 24
typedef struct shl_cuda_dnn_graph {
    const shl_cuda_dnn_calls *calls;
    cudnnHandle_t handle;
    cudnnBackendDescriptor_t part[SHL_CUDA_DNN_PARTS], op[SHL_CUDA_DNN_OPS];
    int parts, ops, status;
    cudnnBackendDescriptor_t plan;
    int64_t workspace_bytes;
} shl_cuda_dnn_graph;

/* A tensor of the graph. uid 0: virtual, numbered by the graph; it exists between operations only. */
typedef struct shl_cuda_dnn_tensor {
    int64_t uid, dims[4], strides[4];
    cudnnDataType_t type;
    bool by_value; /* one number in host memory */
} shl_cuda_dnn_tensor;

/* The graph's descriptor of t; NULL after a failure. Owner: the graph. */
cudnnBackendDescriptor_t shl_cuda_dnn_tensor_new(shl_cuda_dnn_graph *g,
                                                 const shl_cuda_dnn_tensor *t);
/* c = a b over the last two dimensions; heads of b may be fewer. */
void shl_cuda_dnn_matmul(shl_cuda_dnn_graph *g, cudnnBackendDescriptor_t a,
                         cudnnBackendDescriptor_t b, cudnnBackendDescriptor_t c);
/* y = mode(x, b) element by element, b and t NULL where the mode has none; axis is GEN_INDEX's. */
void shl_cuda_dnn_pointwise(shl_cuda_dnn_graph *g, cudnnPointwiseMode_t mode, cudnnDataType_t math,
                            int64_t axis, cudnnBackendDescriptor_t x, cudnnBackendDescriptor_t b,
                            cudnnBackendDescriptor_t t, cudnnBackendDescriptor_t y);
/* y = x reduced over the dimensions where y has 1. */
void shl_cuda_dnn_reduce(shl_cuda_dnn_graph *g, cudnnReduceTensorOp_t mode,
                         cudnnBackendDescriptor_t x, cudnnBackendDescriptor_t y);
/* The first deterministic plan of the library's choice whose workspace the pool holds. Result: status. */
int shl_cuda_dnn_plan(shl_cuda_dnn_graph *g, size_t pool_bytes);
/* Runs the plan over n tensors (uids and addresses). Result: a status. */
int shl_cuda_dnn_run(shl_cuda_dnn_graph *g, const shl_cuda_launch *l, int64_t n,
                     const int64_t *uids, void *const *data);
void shl_cuda_dnn_graph_close(shl_cuda_dnn_graph *g);

/* Loads the library. Result: a status. */
int shl_cuda_dnn_load(shl_cuda_dnn_calls *calls);

#ifdef __cplusplus
}
#endif

#endif

/* kernels/ops: scratch bytes per op and target: pure functions of shapes and threads, the same for
 * a device and for the virtual one that stands for it. */
#include "kernels/ops/work.h"

#include <string.h>

int
shl_work_attention_threads(const shl_attention_args *a, bool backward, int threads)
{
    int64_t tasks = a->batch * (backward ? a->kv_heads : a->heads);
    return tasks < threads ? (int)tasks : threads;
}

bool
shl_work_attention_sums(const shl_attention_args *a)
{
    return a->dtype != SHL_F32 && a->heads != a->kv_heads;
}

int64_t
shl_work_attention_elems(const shl_attention_args *a, bool backward)
{
    int64_t seq = shl_round_up(a->seq, SHL_WORK_PAD);
    int64_t width = shl_round_up(a->head_dim, SHL_WORK_PAD);
    int64_t scores = SHL_WORK_Q * SHL_WORK_SCORES;
    if (backward) {
        /* q, dy, dq, delta of a head; k^T, v^T, k, dk, dv of a key block; p, ds; dk, dv of a group */
        int64_t sums = shl_work_attention_sums(a) ? 2 * a->seq * a->head_dim : 0;
        return 3 * seq * width + seq + 5 * SHL_WORK_K * width + 2 * scores + sums;
    }
    /* k^T, v of a head; q, y of a query block; p; row maximum and sum */
    return 2 * seq * width + 2 * SHL_WORK_Q * width + scores + 2 * SHL_WORK_Q;
}

/* Length of equal parts of n, each at most a panel. */
static int64_t
panel_part(int64_t n)
{
    int64_t part = shl_ceil_div(n, shl_ceil_div(n, SHL_WORK_PANEL));
    return n <= SHL_WORK_PANEL ? n : shl_round_up(part, 16);
}

shl_work_panels
shl_work_linear(shl_op op, const shl_linear_args *a)
{
    bool forward = op == SHL_OP_LINEAR_FORWARD, weight = op == SHL_OP_LINEAR_BACKWARD_WEIGHT;
    const shl_tensor *c = forward ? &a->y : weight ? &a->dw : &a->dx;
    const shl_tensor *from = forward ? &a->x : &a->dy;
    shl_work_panels z = {0};
    if (from->dtype == SHL_F32 || c->data == NULL) {
        return z;
    }
    z.mc = panel_part(c->dims[0]);
    z.nc = panel_part(c->dims[1]);
    z.kc = panel_part(weight ? from->dims[0] : from->dims[1]);
    z.elems = z.mc * z.kc + z.kc * z.nc + (c->dtype == SHL_F32 ? 0 : z.mc * z.nc);
    return z;
}

int64_t
shl_work_layernorm_rows(int64_t rows)
{
    int64_t run = shl_ceil_div(rows, SHL_WORK_LAYERNORM_RUNS);
    return run < 32 ? 32 : run;
}

size_t
shl_work_sort_bytes(int64_t rows)
{
    int64_t blocks = shl_ceil_div(rows, SHL_WORK_SORT_ROWS);
    return (size_t)rows * 2 * 2 * sizeof(uint32_t) +
           (size_t)(blocks * SHL_WORK_SORT_DIGITS) * sizeof(uint32_t);
}

size_t
shl_work_column_bytes(int64_t rows, int64_t cols)
{
    return (size_t)(shl_ceil_div(rows, shl_work_column_rows(rows)) * cols) * sizeof(float);
}

static size_t
host_bytes(shl_op op, const void *args, int threads)
{
    bool backward = op == SHL_OP_ATTENTION_BACKWARD;
    if (op == SHL_OP_ATTENTION_FORWARD || backward) {
        const shl_attention_args *a = args;
        int n = shl_work_attention_threads(a, backward, threads);
        return (size_t)(shl_work_attention_elems(a, backward) * n) * sizeof(float);
    }
    if (op == SHL_OP_LINEAR_FORWARD || op == SHL_OP_LINEAR_BACKWARD_INPUT ||
        op == SHL_OP_LINEAR_BACKWARD_WEIGHT) {
        return (size_t)shl_work_linear(op, args).elems * sizeof(float);
    }
    if (op == SHL_OP_EMBEDDING_BACKWARD) {
        const shl_embedding_args *a = args;
        bool half = (a->dwte.data != NULL && a->dwte.dtype != SHL_F32) ||
                    (a->dwpe.data != NULL && a->dwpe.dtype != SHL_F32);
        return half ? (size_t)shl_tensor_elems(&a->tokens) * sizeof(uint64_t)
                    : 0; /* order of rows */
    }
    if (op == SHL_OP_LAYERNORM_BACKWARD) {
        const shl_layernorm_args *a = args;
        int64_t rows = a->x.dims[0];
        int64_t runs = shl_ceil_div(rows, shl_work_layernorm_rows(rows));
        return (size_t)(runs * 2 * a->x.dims[1]) * sizeof(float);
    }
    if (op == SHL_OP_RMSNORM_BACKWARD) {
        const shl_rmsnorm_args *a = args;
        int64_t rows = a->x.dims[0];
        int64_t runs = shl_ceil_div(rows, shl_work_layernorm_rows(rows));
        return a->dw.data != NULL ? (size_t)(runs * a->x.dims[1]) * sizeof(float) : 0;
    }
    if (op == SHL_OP_ROPE) {
        const shl_rope_args *a = args;
        /* frequencies in double, cosines and sines per position */
        return (size_t)((a->seq + 1) * a->head_dim) * sizeof(float);
    }
    if (op == SHL_OP_CROSS_ENTROPY) {
        const shl_cross_entropy_args *a = args;
        return (size_t)a->logits.dims[0] * sizeof(double); /* loss per row */
    }
    return 0;
}

/* A GPU's kernels keep score tiles and queries on chip; what needs memory is the delta of
 * attention's backward, the partial sums of layernorm's and of a bias's gradient, the rows of an
 * embedding in order of their tokens, and the row losses. */
static size_t
gpu_bytes(shl_op op, const void *args)
{
    if (op == SHL_OP_ATTENTION_FORWARD || op == SHL_OP_LINEAR_FORWARD ||
        op == SHL_OP_LINEAR_BACKWARD_INPUT) {
        return 0;
    }
    if (op == SHL_OP_LINEAR_BACKWARD_WEIGHT) {
        const shl_linear_args *a = args;
        return a->db.data != NULL ? shl_work_column_bytes(a->dy.dims[0], a->dy.dims[1]) : 0;
    }
    if (op == SHL_OP_ATTENTION_BACKWARD) {
        const shl_attention_args *a = args;
        return (size_t)(a->batch * a->heads * a->seq) * sizeof(float);
    }
    if (op == SHL_OP_EMBEDDING_BACKWARD) {
        const shl_embedding_args *a = args;
        return a->dwte.data != NULL ? shl_work_sort_bytes(shl_tensor_elems(&a->tokens)) : 0;
    }
    if (op == SHL_OP_LAYERNORM_BACKWARD) {
        const shl_layernorm_args *a = args;
        int64_t cols = a->x.dims[1], runs = shl_work_norm_runs(a->x.dims[0], cols, a->x.dtype, 2);
        return (size_t)(runs * 2 * cols) * sizeof(float);
    }
    if (op == SHL_OP_RMSNORM_BACKWARD) {
        const shl_rmsnorm_args *a = args;
        int64_t cols = a->x.dims[1], runs = shl_work_norm_runs(a->x.dims[0], cols, a->x.dtype, 1);
        return a->dw.data != NULL ? (size_t)(runs * cols) * sizeof(float) : 0;
    }
    if (op == SHL_OP_ROPE) {
        const shl_rope_args *a = args;
        return (size_t)(a->seq * a->head_dim) * sizeof(float); /* cosines and sines per position */
    }
    return host_bytes(op, args, 1);
}

size_t
shl_op_work_bytes(const char *target, shl_op op, const void *args, int threads)
{
    return strcmp(target, "cpu") == 0 ? host_bytes(op, args, threads) : gpu_bytes(op, args);
}

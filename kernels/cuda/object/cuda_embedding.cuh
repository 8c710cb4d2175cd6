/* kernels/cuda/object: rows sorted by token: a stable radix sort, digit by digit from the
 * lowest, three launches for each. Equal tokens keep the order of their rows, so the result is
 * one and the same always. */
#ifndef SHL_CUDA_EMBEDDING_CUH
#define SHL_CUDA_EMBEDDING_CUH

#include "kernels/cuda/object/cuda_pack.cuh"

/* One row of the batch; a token outside the vocabulary counts as `vocab` and comes last. */
struct token_row {
    uint32_t token, row;
};

/* A block sorts SHL_WORK_SORT_ROWS rows; a thread owns one of the 256 values of a digit. */
#define SORT_THREADS 256
#define SORT_WARPS (SORT_THREADS / SHL_WARP)
#define SORT_DIGITS SHL_WORK_SORT_DIGITS
#define SORT_BITS 8
#define SORT_ROUNDS (SHL_WORK_SORT_ROWS / SORT_THREADS)
#define SCAN_THREADS 512

/* Row i of a pass: from the batch in the first one, from the pass before in the others. */
static __device__ __forceinline__ token_row
sort_item(const int32_t *tokens, const token_row *from, int64_t i, uint32_t vocab)
{
    if (from != nullptr) {
        return from[i];
    }
    token_row item;
    item.row = static_cast<uint32_t>(i);
    item.token = static_cast<uint32_t>(tokens[i]); /* a negative one is a large one */
    item.token = item.token < vocab ? item.token : vocab;
    return item;
}

/* Rows of each digit in this block: counts[digit * blocks + block]. */
static __global__ void
sort_count_kernel(const int32_t *tokens, const token_row *from, int64_t rows, uint32_t vocab,
                  int shift, uint32_t *counts, uint32_t *faults)
{
    __shared__ unsigned count[SORT_DIGITS];
    int64_t begin = static_cast<int64_t>(blockIdx.x) * SHL_WORK_SORT_ROWS;
    count[threadIdx.x] = 0;
    __syncthreads();
    for (int k = 0; k < SORT_ROUNDS; k++) {
        int64_t i = begin + k * SORT_THREADS + threadIdx.x;
        if (i < rows) {
            uint32_t token = sort_item(tokens, from, i, vocab).token;
            if (token == vocab) {
                faults[SHL_CUDA_FAULT_TOKEN] = 1;
            }
            atomicAdd(&count[token >> shift & (SORT_DIGITS - 1)], 1u);
        }
    }
    __syncthreads();
    counts[static_cast<int64_t>(threadIdx.x) * gridDim.x + blockIdx.x] = count[threadIdx.x];
}

/* Sums of what stands before each of n counts, by one block; a thread owns a run of them. */
static __global__ void
sort_scan_kernel(uint32_t *counts, int64_t n)
{
    __shared__ uint32_t warp_total[SCAN_THREADS / SHL_WARP];
    int lane = static_cast<int>(threadIdx.x) % SHL_WARP,
        warp = static_cast<int>(threadIdx.x) / SHL_WARP;
    int64_t run = (n + SCAN_THREADS - 1) / SCAN_THREADS;
    int64_t begin = static_cast<int64_t>(threadIdx.x) * run,
            end = begin + run < n ? begin + run : n;
    uint32_t total = 0;
    for (int64_t i = begin; i < end; i++) {
        total += counts[i];
    }
    uint32_t before = total;
    for (int step = 1; step < SHL_WARP; step *= 2) {
        uint32_t other = __shfl_up_sync(SHL_FULL_MASK, before, static_cast<unsigned>(step));
        before += lane >= step ? other : 0;
    }
    if (lane == SHL_WARP - 1) {
        warp_total[warp] = before;
    }
    __syncthreads();
    before -= total;
    for (int w = 0; w < warp; w++) {
        before += warp_total[w];
    }
    for (int64_t i = begin; i < end; i++) {
        uint32_t count = counts[i];
        counts[i] = before;
        before += count;
    }
}

/* Lanes of this warp whose digit is the same; digits of lanes that have none are left out. */
static __device__ __forceinline__ unsigned
same_digit(uint32_t digit, bool valid)
{
    unsigned same = __ballot_sync(SHL_FULL_MASK, valid);
    for (int bit = 0; bit < SORT_BITS; bit++) {
        unsigned ones = __ballot_sync(SHL_FULL_MASK, digit >> bit & 1u);
        same &= (digit >> bit & 1u) != 0 ? ones : ~ones;
    }
    return same;
}

/* Every row to its place: behind the rows of smaller digits, of the same digit in blocks before,
 * in warps before, and before it in its warp. A warp takes consecutive rows. */
static __global__ void
sort_scatter_kernel(const int32_t *tokens, const token_row *from, int64_t rows, uint32_t vocab,
                    int shift, const uint32_t *counts, token_row *to)
{
    __shared__ uint32_t place[SORT_WARPS][SORT_DIGITS];
    int lane = static_cast<int>(threadIdx.x) % SHL_WARP,
        warp = static_cast<int>(threadIdx.x) / SHL_WARP;
    int64_t begin = static_cast<int64_t>(blockIdx.x) * SHL_WORK_SORT_ROWS +
                    static_cast<int64_t>(warp) * SORT_ROUNDS * SHL_WARP;
    token_row item[SORT_ROUNDS];
    uint32_t rank[SORT_ROUNDS];
    for (int w = 0; w < SORT_WARPS; w++) {
        place[w][threadIdx.x] = 0;
    }
    __syncthreads();
    for (int k = 0; k < SORT_ROUNDS; k++) {
        int64_t i = begin + k * SHL_WARP + lane;
        bool valid = i < rows;
        item[k].token = item[k].row = 0;
        if (valid) {
            item[k] = sort_item(tokens, from, i, vocab);
        }
        uint32_t digit = item[k].token >> shift & (SORT_DIGITS - 1);
        unsigned same = same_digit(digit, valid), below = same & ((1u << lane) - 1u);
        rank[k] = place[warp][digit] + static_cast<uint32_t>(__popc(below));
        __syncwarp();
        if (valid && below == 0) {
            place[warp][digit] += static_cast<uint32_t>(__popc(same));
        }
        __syncwarp();
    }
    __syncthreads();
    uint32_t before = counts[static_cast<int64_t>(threadIdx.x) * gridDim.x + blockIdx.x];
    for (int w = 0; w < SORT_WARPS; w++) {
        uint32_t count = place[w][threadIdx.x];
        place[w][threadIdx.x] = before;
        before += count;
    }
    __syncthreads();
    for (int k = 0; k < SORT_ROUNDS; k++) {
        if (begin + k * SHL_WARP + lane < rows) {
            uint32_t digit = item[k].token >> shift & (SORT_DIGITS - 1);
            to[place[warp][digit] + rank[k]] = item[k];
        }
    }
}

/* The rows of a batch sorted, in `work` (shl_work_sort_bytes). Floor: launches, three for each 8
 * bits of the vocabulary; bytes are 16 per row and digit. */
static const token_row *
sort_tokens(const shl_cuda_launch *l, const int32_t *tokens, int64_t rows, int64_t vocab,
            void *work)
{
    token_row *side[2] = {static_cast<token_row *>(work), static_cast<token_row *>(work) + rows};
    uint32_t *counts = reinterpret_cast<uint32_t *>(side[1] + rows);
    int64_t blocks = shl_ceil_div(rows, SHL_WORK_SORT_ROWS);
    unsigned grid = static_cast<unsigned>(blocks);
    uint32_t most = static_cast<uint32_t>(vocab);
    token_row *from = nullptr;
    int pass = 0;
    for (int shift = 0; shift < 32 && (pass == 0 || vocab >> shift != 0); shift += SORT_BITS) {
        token_row *to = side[pass++ % 2];
        SHL_LAUNCH(sort_count_kernel, grid, SORT_THREADS, 0, l->stream, tokens, from, rows, most,
                   shift, counts, l->faults);
        SHL_LAUNCH(sort_scan_kernel, 1, SCAN_THREADS, 0, l->stream, counts, blocks * SORT_DIGITS);
        SHL_LAUNCH(sort_scatter_kernel, grid, SORT_THREADS, 0, l->stream, tokens, from, rows, most,
                   shift, counts, to);
        from = to;
    }
    return from;
}

#endif

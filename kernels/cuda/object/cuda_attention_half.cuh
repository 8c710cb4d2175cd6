/* kernels/cuda/object: what attention's bf16 kernels share: tiles of rows in shared memory, products of a
 * warp's rows with them on tensor cores, and the way back to memory. A warp owns MT times 16 rows of a
 * block; S[m][n][e] is element e of lane 4 g + c: row 16 m + g + e / 2 * 8, column 8 n + 2 c + e % 2. */
#ifndef SHL_CUDA_ATTENTION_HALF_CUH
#define SHL_CUDA_ATTENTION_HALF_CUH

#include "kernels/cuda/object/cuda_attention.cuh"
#include "kernels/cuda/object/cuda_mma.cuh"

#define HALF_THREADS 128
#define HALF_WARPS (HALF_THREADS / SHL_WARP)

/* Rows of a tile are DP + 8 elements apart, an odd multiple of 16 bytes: the eight rows of a matrix lie
 * in different banks. */
#define HALF_PITCH(DP) ((DP) + 8)

/* Rows of one head: token t at first + t * stride. */
struct half_rows {
    const bf16 *data;
    int64_t first, stride;
};

static __device__ __forceinline__ half_rows
half_rows_of(const void *data, int64_t first, int64_t stride)
{
    half_rows rows = {static_cast<const bf16 *>(data), first, stride};
    return rows;
}

/* Starts the copy of rows [row0, row0 + ROWS), zeros behind the last token and behind the head. With ANY,
 * tensors at odd addresses are copied at once, an element at a time: the same bits, slower. */
template <int ROWS, int DP, bool ANY>
static __device__ __forceinline__ void
half_load(const attention &a, async_copies *copies, bf16 *to, const half_rows &from, int row0)
{
    const int chunks = DP / 8, step = HALF_THREADS / chunks; /* rows of all threads at once */
    int r0 = static_cast<int>(threadIdx.x) / chunks, d = static_cast<int>(threadIdx.x) % chunks * 8;
    int left = d < a.dim ? a.seq - row0 - r0 : 0;
    const bf16 *at = from.data + from.first + (row0 + r0) * from.stride + d;
    bf16 *place = to + r0 * HALF_PITCH(DP) + d;
    SHL_UNROLL
    for (int i = 0; i < ROWS / step; i++) {
        bool real = i * step < left; /* else nothing is read at that address */
        if (!ANY || a.vectors) {
            copies->copy(place + i * step * HALF_PITCH(DP), at + i * (step * from.stride), real);
        } else {
            for (int k = 0; k < 8; k++) {
                place[i * step * HALF_PITCH(DP) + k].bits =
                    real ? at[i * (step * from.stride) + k].bits : static_cast<uint16_t>(0);
            }
        }
    }
}

/* The lane's row address for the A fragment (16 x 16) at `tile`, and for two B fragments (16 deep, 8 wide,
 * side by side) of rows that are B's columns, and of rows that are B's depth (transposed). */
template <int DP>
static __device__ __forceinline__ const bf16 *
half_a_row(const bf16 *tile, int lane)
{
    return tile + lane % 16 * HALF_PITCH(DP) + lane / 16 * 8;
}

template <int DP>
static __device__ __forceinline__ const bf16 *
half_b_row(const bf16 *tile, int lane)
{
    return tile + (lane / 16 * 8 + lane % 8) * HALF_PITCH(DP) + lane / 8 % 2 * 8;
}

/* s[16 MT rows][COLUMNS] = x y^T: rows of x at the warp's own, rows of y are the columns. STEPS of 16
 * elements are laid out at once: the fragments of all of them at a time cost registers. */
template <int DP, int MT, int COLUMNS, int STEPS>
static __device__ __forceinline__ void
half_scores(const bf16 *x, const bf16 *y, int lane, float s[MT][COLUMNS / 8][4])
{
    SHL_UNROLL
    for (int i = 0; i < MT * COLUMNS / 8 * 4; i++) {
        s[i / (COLUMNS / 2)][i / 4 % (COLUMNS / 8)][i % 4] = 0.0f;
    }
    SHL_UNROLL_STEPS
    for (int d = 0; d < DP; d += 16) {
        uint32_t own[MT][4];
        SHL_UNROLL
        for (int m = 0; m < MT; m++) {
            load_matrices<false>(own[m], half_a_row<DP>(x, lane) + 16 * m * HALF_PITCH(DP) + d);
        }
        SHL_UNROLL
        for (int n = 0; n < COLUMNS; n += 16) {
            uint32_t other[4];
            load_matrices<false>(other, half_b_row<DP>(y, lane) + n * HALF_PITCH(DP) + d);
            SHL_UNROLL
            for (int m = 0; m < MT; m++) {
                mma_bf16(s[m][n / 8], own[m], other);
                mma_bf16(s[m][n / 8 + 1], own[m], other + 2);
            }
        }
    }
}

/* sum[16 MT rows][DP] += s y, s rounded to bf16, rows of y are the depth. */
template <int DP, int MT, int DEPTH>
static __device__ __forceinline__ void
half_add(const float s[MT][DEPTH / 8][4], const bf16 *y, int lane, float sum[MT][DP / 8][4])
{
    SHL_UNROLL
    for (int k = 0; k < DEPTH; k += 16) {
        uint32_t own[MT][4];
        SHL_UNROLL
        for (int m = 0; m < MT; m++) {
            SHL_UNROLL
            for (int e = 0; e < 4; e++) {
                const float *pair = s[m][k / 8 + e / 2] + e % 2 * 2;
                own[m][e] = narrow_two(pair[0], pair[1], bf16());
            }
        }
        SHL_UNROLL
        for (int d = 0; d < DP; d += 16) {
            uint32_t other[4];
            load_matrices<true>(other, half_a_row<DP>(y, lane) + k * HALF_PITCH(DP) + d);
            SHL_UNROLL
            for (int m = 0; m < MT; m++) {
                mma_bf16(sum[m][d / 8], own[m], other);
                mma_bf16(sum[m][d / 8 + 1], own[m], other + 2);
            }
        }
    }
}

/* Weights of keys behind their query: element (m, n, e) is row i + 16 m + e / 2 * 8, column j + 8 n + e % 2;
 * rows are queries, or keys. */
template <bool KEYS, int MT, int COLUMNS>
static __device__ __forceinline__ void
half_mask(float s[MT][COLUMNS / 8][4], int i, int j)
{
    SHL_UNROLL
    for (int m = 0; m < MT; m++) {
        SHL_UNROLL
        for (int n = 0; n < COLUMNS / 8; n++) {
            SHL_UNROLL
            for (int e = 0; e < 4; e++) {
                int ahead = j + 8 * n + e % 2 - (i + 16 * m + e / 2 * 8);
                bool seen = KEYS ? ahead >= 0 : ahead <= 0;
                s[m][n][e] = seen ? s[m][n][e] : -INFINITY;
            }
        }
    }
}

/* The warp's rows of a sum, times scale[m][half] (of rows g and g + 8), through its own rows of a tile
 * that nobody else reads, to tokens row0 on of `to`. */
template <int DP, int MT, bool ANY>
static __device__ __forceinline__ void
half_store(const attention &a, const float sum[MT][DP / 8][4], const float scale[MT][2], bf16 *tile,
           void *to, int64_t first, int64_t stride, int row0)
{
    int lane = static_cast<int>(threadIdx.x) % SHL_WARP, g = lane / 4, c = lane % 4;
    __syncwarp();
    SHL_UNROLL
    for (int m = 0; m < MT; m++) {
        SHL_UNROLL
        for (int n = 0; n < DP / 8; n++) {
            SHL_UNROLL
            for (int e = 0; e < 2; e++) {
                float x = sum[m][n][2 * e] * scale[m][e], y = sum[m][n][2 * e + 1] * scale[m][e];
                bf16 *at = tile + (16 * m + g + 8 * e) * HALF_PITCH(DP) + 8 * n + 2 * c;
                store_word(at, narrow_two(x, y, bf16()));
            }
        }
    }
    __syncwarp();
    const int chunks = DP / 8;
    SHL_UNROLL_FEW
    for (int e = lane; e < 16 * MT * chunks; e += SHL_WARP) {
        int r = e / chunks, d = e % chunks * 8;
        if (row0 + r >= a.seq || d >= a.dim) {
            continue;
        }
        const bf16 *from = tile + r * HALF_PITCH(DP) + d;
        bf16 *at = static_cast<bf16 *>(to) + first + (row0 + r) * stride + d;
        if (!ANY || a.vectors) {
            uint32_t words[4];
            load_wide<16>(words, from);
            store_wide<16>(at, words);
        } else {
            for (int i = 0; i < 8; i++) {
                at[i] = from[i];
            }
        }
    }
}

/* Bit 0: word `index` keeps its weight; bit 1: word index + step does. Out of line: it is many
 * instructions in many places. */
static __device__ SHL_OUT_OF_LINE unsigned
half_kept(uint64_t seed, uint64_t stream, uint64_t index, uint64_t step, uint32_t bound)
{
    unsigned kept = 0;
    uint32_t word[4] = {0, 0, 0, 0};
    for (unsigned bit = 0; bit < 2; bit++, index += step) {
        uint32_t at = static_cast<uint32_t>(index % 4);
        if (bit == 0 || step != 1 || at == 0) { /* else the block before has it */
            philox_block(seed, stream, index / 4, word);
        }
        uint32_t low = at == 0 ? word[0] : word[1], high = at == 2 ? word[2] : word[3];
        kept |= ((at < 2 ? low : high) >= bound ? 1u : 0u) << bit;
    }
    return kept;
}

/* Calls with DP and ANY constants: ANY kernels take tensors anywhere and drop weights, the others are as
 * fast as they can be. Their bits are the same. */
#define HALF_FOR_SHAPE(a, DP, ANY, ...)                                                            \
    do {                                                                                           \
        if ((a)->dropout_p > 0.0 || !attention_from((a), nullptr, 8).vectors) {                    \
            constexpr bool ANY = true;                                                             \
            HALF_FOR_WIDTH((a)->head_dim, DP, __VA_ARGS__);                                        \
        } else {                                                                                   \
            constexpr bool ANY = false;                                                            \
            HALF_FOR_WIDTH((a)->head_dim, DP, __VA_ARGS__);                                        \
        }                                                                                          \
    } while (0)
#define HALF_FOR_WIDTH(dim, DP, ...)                                                               \
    do {                                                                                           \
        if ((dim) <= 64) {                                                                         \
            constexpr int DP = 64;                                                                 \
            __VA_ARGS__;                                                                           \
        } else if ((dim) <= 128) {                                                                 \
            constexpr int DP = 128;                                                                \
            __VA_ARGS__;                                                                           \
        } else {                                                                                   \
            constexpr int DP = 256;                                                                \
            __VA_ARGS__;                                                                           \
        }                                                                                          \
    } while (0)

#endif

// tests/support/emulate: what kernels/cuda/object/cuda_mma.cuh wraps: products of 16-bit tiles by a warp,
// loads of their fragments, and copies that arrive when they are waited for and not before.
#ifndef SHL_EMULATE_MMA_H
#define SHL_EMULATE_MMA_H

#include "cuda_runtime.h"

#include <cstdio>
#include <cstdlib>
#include <vector>

namespace emulate {

static inline float
bf16_at(uint32_t pair, int half)
{
    return __uint_as_float(half == 0 ? pair << 16 : pair & 0xffff0000u);
}

// Of the PTX manual's tables for m16n8k16: lane 4 g + c holds A at rows g, g + 8 and columns 2c, 2c + 8;
// B at column g and rows 2c, 2c + 8; the sum at rows g, g + 8 and columns 2c, 2c + 1.
static inline void
mma_bf16(float *d, const uint32_t *a, const uint32_t *b)
{
    lane_words mine = {{a[0], a[1], a[2], a[3], b[0], b[1]}};
    const lane_words *all = warp_exchange(mine);
    int g = now.lane / 4, c = now.lane % 4;
    for (int e = 0; e < 4; e++) {
        int row = e / 2, column = 2 * c + e % 2;
        float sum = 0.0f;
        for (int k = 0; k < 16; k++) {
            int from = k / 2 % 4;
            uint32_t x = all[4 * g + from].word[row + k / 8 * 2];
            uint32_t y = all[4 * column + from].word[4 + k / 8];
            sum += bf16_at(x, k % 2) * bf16_at(y, k % 2);
        }
        d[e] += sum;
    }
}

// Four matrices of 8 x 8: lane 8 m + r names row r of matrix m.
static inline void
load_matrices(uint32_t *to, const void *row, bool transposed)
{
    lane_words mine;
    std::memcpy(&mine, &row, sizeof(row));
    if (reinterpret_cast<uintptr_t>(row) % 16 != 0) {
        std::fprintf(stderr, "emulate: a matrix row at an odd address\n");
        std::abort();
    }
    const lane_words *all = warp_exchange(mine);
    int g = now.lane / 4, c = now.lane % 4;
    for (int m = 0; m < 4; m++) {
        uint16_t pair[2];
        for (int e = 0; e < 2; e++) {
            const unsigned char *from;
            int at_row = transposed ? 2 * c + e : g, at = transposed ? g : 2 * c + e;
            std::memcpy(&from, &all[8 * m + at_row], sizeof(from));
            std::memcpy(&pair[e], from + 2 * at, sizeof(pair[e]));
        }
        to[m] = pair[0] | static_cast<uint32_t>(pair[1]) << 16;
    }
}

// Copies of one thread, by groups.
class copies
{
    struct piece {
        void *to;
        const void *from;
        int group;
    };
    std::vector<piece> pending;
    int group = 0;

  public:
    void copy(void *to, const void *from, bool real)
    {
        if (reinterpret_cast<uintptr_t>(to) % 16 != 0 ||
            (real && reinterpret_cast<uintptr_t>(from) % 16 != 0)) {
            std::fprintf(stderr, "emulate: an asynchronous copy at an odd address\n");
            std::abort();
        }
        pending.push_back({to, real ? from : nullptr, group});
    }
    void commit() { group++; }
    // All but the last n groups arrive.
    void wait(int n)
    {
        size_t done = 0;
        for (; done < pending.size() && pending[done].group < group - n; done++) {
            const piece &p = pending[done];
            if (p.from != nullptr) {
                std::memcpy(p.to, p.from, 16);
            } else {
                std::memset(p.to, 0, 16);
            }
        }
        pending.erase(pending.begin(), pending.begin() + static_cast<std::ptrdiff_t>(done));
    }
};

} // namespace emulate

#endif

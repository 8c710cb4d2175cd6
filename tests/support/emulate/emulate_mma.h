// tests/support/emulate: what kernels/cuda/object/cuda_mma.cuh wraps: products of 16-bit tiles by a warp,
// loads of their fragments, and copies that arrive when they are waited for and not before.
#ifndef SHL_EMULATE_MMA_H
#define SHL_EMULATE_MMA_H

#include "cuda_runtime.h"

#include <cstdio>
#include <cstdlib>
#include <vector>

namespace emulate
{

static inline float
bf16_at(uint32_t pair, int half)
{
    return __uint_as_float(half == 0 ? pair << 16 : pair & 0xffff0000u);
}

// x + the products of eight pairs as tensor cores add (Fasi et al. 2021): exact products, cut off, not
// rounded, 24 bits below the largest term; the sum is cut off too.
static inline float
add_eight(float x, const float *a, const float *b)
{
    float term[8], top = std::fabs(x), other = 0.0f;
    for (int k = 0; k < 8; k++) {
        term[k] = a[k] * b[k];
        float size = std::fabs(term[k]);
        top = size > top ? size : top;
        other += term[k];
    }
    if (!(top >= 0x1p-100f && top < 0x1p120f &&
          other - other == 0.0f)) { // no number, or near nothing
        return x + other;
    }
    uint32_t exponent = __float_as_uint(top) >> 23;
    float unit = __uint_as_float((exponent - 24) << 23);
    float per = __uint_as_float((254 + 24 - exponent) << 23);
    int32_t sum = static_cast<int32_t>(x * per);
    for (int k = 0; k < 8; k++) {
        sum += static_cast<int32_t>(term[k] * per);
    }
    float out = static_cast<float>(sum);
    if (std::fabs(static_cast<double>(out)) > std::fabs(static_cast<double>(sum))) {
        out = __uint_as_float(__float_as_uint(out) - 1);
    }
    return out * unit;
}

// Of the PTX manual's tables for m16n8k16: lane 4 g + c holds A at rows g, g + 8 and columns 2c, 2c + 8;
// B at column g and rows 2c, 2c + 8; the sum at rows g, g + 8 and columns 2c, 2c + 1.
static inline void
mma_bf16(float *d, const uint32_t *a, const uint32_t *b)
{
    lane_words mine = {{a[0], a[1], a[2], a[3], b[0], b[1]}};
    const lane_words *all = warp_exchange(mine);
    int g = now.lane / 4, c = now.lane % 4;
    float x[2][16], y[2][16];
    for (int side = 0; side < 2; side++) {
        for (int k = 0; k < 16; k++) {
            int from = k / 2 % 4;
            x[side][k] = bf16_at(all[4 * g + from].word[side + k / 8 * 2], k % 2);
            y[side][k] = bf16_at(all[4 * (2 * c + side) + from].word[4 + k / 8], k % 2);
        }
    }
    for (int e = 0; e < 4; e++) {
        const float *p = x[e / 2], *q = y[e % 2];
        d[e] = add_eight(add_eight(d[e], p, q), p + 8, q + 8);
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
        size_t bytes;
        int group;
    };
    std::vector<piece> pending;
    int group = 0;

  public:
    template <int BYTES>
    void
    copy(void *to, const void *from, bool real)
    {
        if (reinterpret_cast<uintptr_t>(to) % BYTES != 0 ||
            reinterpret_cast<uintptr_t>(from) % BYTES != 0) {
            std::fprintf(stderr, "emulate: an asynchronous copy at an odd address\n");
            std::abort();
        }
        pending.push_back({to, real ? from : nullptr, BYTES, group});
    }
    void
    commit()
    {
        group++;
    }
    // All but the last n groups arrive.
    void
    wait(int n)
    {
        size_t done = 0;
        for (; done < pending.size() && pending[done].group < group - n; done++) {
            const piece &p = pending[done];
            if (p.from != nullptr) {
                std::memcpy(p.to, p.from, p.bytes);
            } else {
                std::memset(p.to, 0, p.bytes);
            }
        }
        pending.erase(pending.begin(), pending.begin() + static_cast<std::ptrdiff_t>(done));
    }
};

} // namespace emulate

#endif

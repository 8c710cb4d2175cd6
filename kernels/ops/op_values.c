/* kernels/ops: small pure functions that belong to an op's contract: rotary frequencies, the random
 * words and the bound of dropout. Every device's kernels agree with them. */
#include <math.h>

#include "kernels/base/rng.h"
#include "kernels/ops/ops.h"

/* Llama 3.1: waves shorter than original / high are left, those longer than original / low are
 * divided by factor, between them the two are mixed linearly in original / wave. */
static double
llama3_freq(const shl_rope_scaling *f, double freq)
{
    const double two_pi = 6.283185307179586476925;
    double turns = (double)f->original_context * freq / two_pi;
    double share = (turns - f->low_freq_factor) / (f->high_freq_factor - f->low_freq_factor);
    share = fmin(fmax(share, 0.0), 1.0);
    return (1.0 - share) * freq / f->factor + share * freq;
}

double
shl_rope_inv_freq(double theta, const shl_rope_scaling *scaling, int64_t head_dim, int64_t i)
{
    double freq = pow(theta, -2.0 * (double)i / (double)head_dim);
    if (scaling->kind == SHL_ROPE_LINEAR) {
        return freq / scaling->factor;
    }
    return scaling->kind == SHL_ROPE_LLAMA3 ? llama3_freq(scaling, freq) : freq;
}

uint32_t
shl_op_dropout_word(uint64_t seed, uint64_t stream, uint64_t index)
{
    uint32_t word[4];
    shl_rng_block(seed, stream, index / 4, word);
    return word[index % 4];
}

uint32_t
shl_op_dropout_bound(double p)
{
    return (uint32_t)(p * 4294967296.0);
}

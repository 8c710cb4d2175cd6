/* kernels/cpu: the order-independent squared norm: squares are rounded to whole multiples of one
 * quantum and added as integers, so that any partition in any order gives the same sum. */
#include "kernels/cpu/cpu_slots.h"
#include "kernels/cpu/cpu_typed.h"

__extension__ typedef __int128 i128;
typedef int32_t i32_any __attribute__((may_alias));

enum { MAX_PARTS = 64, BLOCK = 1024 };

/* Cuts [0, n) for the threads; integers make the cut invisible. */
static int64_t
part_elems(const shl_stream *s, int64_t n, int *parts)
{
    int threads = cpu_threads(s, n);
    threads = threads < MAX_PARTS ? threads : MAX_PARTS;
    int64_t part = shl_round_up(shl_ceil_div(n, threads), BLOCK);
    *parts = (int)shl_ceil_div(n, part);
    return part;
}

static int32_t
max_bits(const float *x, int64_t n)
{
    int32_t best = 0;
    const i32_any *bits = (const i32_any *)x;
    for (int64_t i = 0; i < n; i++) {
        int32_t b = bits[i] & 0x7fffffff;
        best = b > best ? b : best;
    }
    return best;
}

static int32_t
range_max(const shl_tensor *x, int64_t begin, int64_t n)
{
    float room[BLOCK];
    int32_t best = 0;
    if (x->dtype == SHL_F32) {
        return max_bits((const float *)x->data + begin, n);
    }
    for (int64_t i = 0; i < n; i += BLOCK) {
        int64_t m = n - i < BLOCK ? n - i : BLOCK;
        int32_t b = max_bits(cpu_floats(x->dtype, x->data, begin + i, m, room), m);
        best = b > best ? b : best;
    }
    return best;
}

shl_code
SHL_K(shl_cpu_norm_max)(shl_stream *s, const void *args, void *work)
{
    const shl_norm_args *a = args;
    SHL_UNUSED(work);
    int64_t n = shl_tensor_elems(&a->x);
    if (n == 0) {
        return SHL_OK;
    }
    int parts = 1;
    int64_t part = part_elems(s, n, &parts);
    int32_t best[MAX_PARTS];
    SHL_PARALLEL_FOR(parts)
    for (int i = 0; i < parts; i++) {
        int64_t begin = i * part;
        best[i] = range_max(&a->x, begin, n - begin < part ? n - begin : part);
    }
    int32_t *out = a->out_max.data;
    for (int i = 0; i < parts; i++) {
        *out = best[i] > *out ? best[i] : *out;
    }
    return SHL_OK;
}

/* Rounding by adding a magic number: 1.5 * 2^84 leaves multiples of 2^32 in the low bits, 1.5 * 2^52
 * whole numbers; ties go to even in both, and together. The sums keep the magic number's own bits,
 * modulo 2^64, until the end of a block. */
#define MAGIC_HIGH 2.9014219670751100192391e25
#define MAGIC_LOW 6755399441055744.0

static uint64_t
bits_of(double x)
{
    uint64_t bits = 0;
    memcpy(&bits, &x, sizeof(bits));
    return bits;
}

static inline void
quanta_low(vd x, vd scale, vl *low)
{
    *low += (vl)(x * scale * x + MAGIC_LOW);
}

static inline void
quanta_both(vd x, vd scale, vl *high, vl *low)
{
    vd t = x * scale * x;
    vd h = t + MAGIC_HIGH;
    *high += (vl)h;
    *low += (vl)((t - (h - MAGIC_HIGH)) + MAGIC_LOW);
}

/* Takes `terms` magic numbers out of each lane and adds the lanes. */
static i128
lanes_sum(vl v, double magic, int64_t terms)
{
    i128 sum = 0;
    for (int j = 0; j < VL / 2; j++) {
        sum += (int64_t)(v[j] - bits_of(magic) * (uint64_t)terms);
    }
    return sum;
}

/* At most BLOCK elements whose squares stay below 2^51 quanta. */
static i128
small_sum(const float *x, int64_t n, double scale)
{
    vl low[2] = {{0}};
    vd vscale = vd_dup(scale);
    int64_t turns = shl_ceil_div(n, VL);
    int64_t full = n / VL * VL;
    for (int64_t i = 0; i < full; i += VL) {
        quanta_low(vd_low(vload(x + i)), vscale, &low[0]);
        quanta_low(vd_high(vload(x + i)), vscale, &low[1]);
    }
    if (full < n) {
        vf v = vload_n(x + full, n - full);
        quanta_low(vd_low(v), vscale, &low[0]);
        quanta_low(vd_high(v), vscale, &low[1]);
    }
    return lanes_sum(low[0] + low[1], MAGIC_LOW, 2 * turns);
}

/* At most BLOCK elements whose squares stay below 2^83 quanta. */
static i128
block_sum(const float *x, int64_t n, double scale)
{
    vl high = {0}, low = {0};
    vd vscale = vd_dup(scale);
    int64_t turns = shl_ceil_div(n, VL);
    int64_t full = n / VL * VL;
    for (int64_t i = 0; i < full; i += VL) {
        quanta_both(vd_low(vload(x + i)), vscale, &high, &low);
        quanta_both(vd_high(vload(x + i)), vscale, &high, &low);
    }
    if (full < n) {
        vf v = vload_n(x + full, n - full);
        quanta_both(vd_low(v), vscale, &high, &low);
        quanta_both(vd_high(v), vscale, &high, &low);
    }
    i128 sum_high = lanes_sum(high, MAGIC_HIGH, 2 * turns);
    return sum_high * ((i128)1 << 32) + lanes_sum(low, MAGIC_LOW, 2 * turns);
}

/* Any finite element; squares of 2^126 quanta and more count as that. */
static i128
slow_sum(const float *x, int64_t n, double scale)
{
    const double most = 8.507059173023462e37; /* 2^126 */
    i128 sum = 0;
    for (int64_t i = 0; i < n; i++) {
        double t = (double)x[i] * (double)x[i] * scale;
        if (t > 0.0) {
            sum += (i128)rint(t < most ? t : most);
        }
    }
    return sum;
}

/* Bits of the largest power of two whose square stays within 2^log2 quanta. */
static int32_t
limit_bits(int log2, int quantum_log2)
{
    int twice = log2 + quantum_log2;
    int e = twice >= 0 ? twice / 2 : -((-twice + 1) / 2);
    if (e > 127) {
        return 0x7f800000;
    }
    return e < -126 ? 0 : (e + 127) << 23;
}

static i128
range_sum(const shl_tensor *x, int64_t begin, int64_t n, int quantum_log2)
{
    float room[BLOCK];
    double scale = ldexp(1.0, -quantum_log2);
    int32_t small = limit_bits(51, quantum_log2), fast = limit_bits(83, quantum_log2);
    i128 sum = 0;
    for (int64_t i = 0; i < n; i += BLOCK) {
        int64_t m = n - i < BLOCK ? n - i : BLOCK;
        const float *at = cpu_floats(x->dtype, x->data, begin + i, m, room);
        int32_t top = max_bits(at, m);
        if (top < small) {
            sum += small_sum(at, m, scale);
        } else {
            sum += top < fast ? block_sum(at, m, scale) : slow_sum(at, m, scale);
        }
    }
    return sum;
}

shl_code
SHL_K(shl_cpu_norm_sum)(shl_stream *s, const void *args, void *work)
{
    const shl_norm_args *a = args;
    SHL_UNUSED(work);
    int64_t n = shl_tensor_elems(&a->x);
    if (n == 0) {
        return SHL_OK;
    }
    int parts = 1;
    int64_t part = part_elems(s, n, &parts);
    i128 sums[MAX_PARTS];
    SHL_PARALLEL_FOR(parts)
    for (int p = 0; p < parts; p++) {
        int64_t begin = p * part;
        sums[p] = range_sum(&a->x, begin, n - begin < part ? n - begin : part, a->quantum_log2);
    }
    i128 total = 0;
    memcpy(&total, a->out_sum.data, sizeof(total));
    for (int p = 0; p < parts; p++) {
        total += sums[p];
    }
    memcpy(a->out_sum.data, &total, sizeof(total));
    return SHL_OK;
}

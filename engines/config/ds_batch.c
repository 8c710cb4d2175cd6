/* engines/config: train_batch_size = micro x accumulation x ranks: what is derived from what, as DeepSpeed
 * does it, and what is wrong when it does not come out. */
#include <jansson.h>

#include "engines/config/ds_config.h"

#define TRAIN "train_batch_size"
#define MICRO "train_micro_batch_size_per_gpu"
#define ACCUM "gradient_accumulation_steps"

static shl_code
raise_triangle(const shl_ds_config *c, int64_t train, int64_t micro, int64_t accum, int ranks)
{
    shl_ds_raise(c, TRAIN, "does not come out");
    shl_err_because("%lld is not %lld (micro) x %lld (accumulation) x %d (ranks) = %lld",
                    (long long)train, (long long)micro, (long long)accum, ranks,
                    (long long)(micro * accum * ranks));
    return shl_err_advice("two of the three keys; the third follows from --ranks");
}

/* A batch that `parts` (ranks x what is given) does not divide. */
static shl_code
raise_world(const shl_ds_config *c, int64_t train, int64_t parts, int ranks, const char *given)
{
    shl_ds_raise(c, TRAIN, "does not fit this world");
    shl_err_because("%lld sequences are not whole for %d ranks%s: %lld of them make a multiple",
                    (long long)train, ranks, given, (long long)parts);
    return shl_err_advice("a " TRAIN " of %lld, or other --ranks",
                          (long long)((train / parts + 1) * parts));
}

static shl_code
set_derived(shl_ds_config *c, const char *path, int64_t value)
{
    return shl_ds_set(c, path, json_integer(value), SHL_DS_DERIVED);
}

shl_code
shl_ds_config_batch(shl_ds_config *c, int ranks)
{
    int64_t train = shl_ds_int(c, TRAIN, 0), micro = shl_ds_int(c, MICRO, 0);
    int64_t accum = shl_ds_int(c, ACCUM, 0), product = 0;
    const int64_t most = INT64_C(1) << 40;
    if (train == 0 && micro == 0) {
        SHL_RAISE(SHL_E_CONFIG, "%s: no batch size", c->name);
        shl_err_because(accum > 0 ? "%s alone says nothing of the batch" : "%s is not there either",
                        ACCUM);
        return shl_err_advice("\"" TRAIN "\" or \"" MICRO "\", or --trainer-args FILE");
    }
    if (train > most || micro > most || accum > most) {
        SHL_RAISE(SHL_E_CONFIG, "%s: a batch size above 2^40", c->name);
        return shl_err_because("the tokens of a run are counted in 64 bits");
    }
    if (train > 0 && micro > 0 && accum == 0) {
        if (train % (micro * ranks) != 0) {
            return raise_world(c, train, micro * ranks, ranks, " at this micro-batch");
        }
        accum = train / micro / ranks;
        SHL_TRY(set_derived(c, ACCUM, accum));
    }
    if (accum == 0) {
        accum = 1;
        SHL_TRY(set_derived(c, ACCUM, accum));
    }
    if (micro == 0) {
        if (train % (accum * ranks) != 0) {
            return raise_world(c, train, accum * ranks, ranks, " at this accumulation");
        }
        micro = train / ranks / accum;
        SHL_TRY(set_derived(c, MICRO, micro));
    }
    if (__builtin_mul_overflow(micro, accum, &product) ||
        __builtin_mul_overflow(product, (int64_t)ranks, &product)) {
        SHL_RAISE(SHL_E_CONFIG, "%s: a batch that 64 bits do not hold", c->name);
        return shl_err_because("micro x accumulation x ranks is too large");
    }
    if (train == 0) {
        return set_derived(c, TRAIN, product);
    }
    return train == product ? SHL_OK : raise_triangle(c, train, micro, accum, ranks);
}

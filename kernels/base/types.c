/* kernels/base: the plain words of the whole house: dtypes, checked sizes, alignment.
 * Nothing here knows a device or a rank. */
#include "kernels/base/types.h"

#include "kernels/base/err.h"

static const struct {
    size_t bytes;
    const char *name;
} dtypes[SHL_DTYPE_COUNT] = {
    [SHL_F32] = {4, "fp32"}, [SHL_BF16] = {2, "bf16"}, [SHL_F16] = {2, "fp16"},
    [SHL_F64] = {8, "fp64"}, [SHL_I32] = {4, "i32"},   [SHL_I64] = {8, "i64"},
    [SHL_U8] = {1, "u8"},
};

static bool
dtype_is_valid(shl_dtype dtype)
{
    return (int)dtype >= 0 && dtype < SHL_DTYPE_COUNT;
}

size_t
shl_dtype_bytes(shl_dtype dtype)
{
    SHL_ASSERT(dtype_is_valid(dtype));
    return dtypes[dtype].bytes;
}

const char *
shl_dtype_name(shl_dtype dtype)
{
    SHL_ASSERT(dtype_is_valid(dtype));
    return dtypes[dtype].name;
}

bool
shl_mul_elems(int64_t a, int64_t b, int64_t *out)
{
    int64_t r;
    SHL_ASSERT(a >= 0 && b >= 0);
    if (__builtin_mul_overflow(a, b, &r)) {
        return false;
    }
    *out = r;
    return true;
}

bool
shl_add_elems(int64_t a, int64_t b, int64_t *out)
{
    int64_t r;
    SHL_ASSERT(a >= 0 && b >= 0);
    if (__builtin_add_overflow(a, b, &r)) {
        return false;
    }
    *out = r;
    return true;
}

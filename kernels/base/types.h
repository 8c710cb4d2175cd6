/* kernels/base: the plain words of the whole house: dtypes, checked sizes, alignment.
 * Nothing here knows a device or a rank. */
#ifndef SHL_BASE_TYPES_H
#define SHL_BASE_TYPES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Element types. `size_t` is bytes, `int64_t` elements, `int` ranks: everywhere. */
typedef enum shl_dtype {
    SHL_F32 = 0,
    SHL_BF16,
    SHL_F16,
    SHL_F64,
    SHL_I32,
    SHL_I64,
    SHL_U8,
    SHL_DTYPE_COUNT
} shl_dtype;

/* Bytes of one element (f32: 4). Asserts a valid dtype. */
size_t shl_dtype_bytes(shl_dtype dtype);

/* Short name ("fp32", "bf16", "fp16", "fp64", "i32", "i64", "u8"); static storage. */
const char *shl_dtype_name(shl_dtype dtype);

/* Every tensor starts at a multiple of this many elements in any flat or gathered buffer. */
#define SHL_TENSOR_ALIGN_ELEMS 8

/* ceil(a / b) and a rounded up to a multiple of b; a >= 0, b > 0. */
static inline int64_t
shl_ceil_div(int64_t a, int64_t b)
{
    return a / b + (a % b != 0);
}

static inline int64_t
shl_round_up(int64_t a, int64_t b)
{
    return shl_ceil_div(a, b) * b;
}

/* out = a * b or a + b; false (out untouched) when the result does not fit. a, b >= 0. */
bool shl_mul_elems(int64_t a, int64_t b, int64_t *out);
bool shl_add_elems(int64_t a, int64_t b, int64_t *out);

#define SHL_ARRAY_LEN(a) (sizeof(a) / sizeof((a)[0]))
#define SHL_UNUSED(x) ((void)(x))

#endif

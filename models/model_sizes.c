/* models: checks of sizes that every family makes before it builds anything. */
#include "models/mod.h"

/* fp32 parameters with gradient and moments must still be counted in signed 64-bit bytes. */
#define MAX_ELEMS (INT64_MAX / 64)

shl_code
shl_check_size(const char *family, const char *what, int64_t value, int64_t max)
{
    if (value >= 1 && value <= max) {
        return SHL_OK;
    }
    SHL_RAISE(SHL_E_USAGE, "a %s cannot have %s %lld", family, what, (long long)value);
    return shl_err_because("it must lie in 1..%lld", (long long)max);
}

shl_code
shl_check_total(const int64_t (*pieces)[3], int n)
{
    int64_t total = 0;
    for (int i = 0; i < n; i++) {
        int64_t elems = 0;
        if (!shl_mul_elems(pieces[i][0], pieces[i][1], &elems) ||
            !shl_mul_elems(elems, pieces[i][2], &elems) || !shl_add_elems(total, elems, &total) ||
            total > MAX_ELEMS) {
            SHL_RAISE(SHL_E_USAGE, "the model is too large to be counted");
            return shl_err_because("more than %lld parameters", (long long)MAX_ELEMS);
        }
    }
    return SHL_OK;
}

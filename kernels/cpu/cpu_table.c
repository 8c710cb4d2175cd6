/* kernels/cpu: run-time choice between the instruction sets the kernels were compiled for. */
#include "kernels/cpu/cpu_table.h"

#include <string.h>

#if defined(SHL_HAVE_X86_ISA)
#include <cpuid.h>

/* Not every compiler's __builtin_cpu_supports knows the word. */
static bool
has_f16c(void)
{
    unsigned a = 0, b = 0, c = 0, d = 0;
    return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & (unsigned)bit_F16C) != 0;
}
#endif

#if defined(SHL_HAVE_AVX512)
static const char *const isas[] = {"avx512", "avx2", "base", NULL};
#elif defined(SHL_HAVE_X86_ISA)
static const char *const isas[] = {"avx2", "base", NULL};
#else
static const char *const isas[] = {"base", NULL};
#endif

const char *const *
shl_cpu_isas(void)
{
    return isas;
}

const shl_op_table *
shl_cpu_op_table_isa(const char *isa)
{
#if defined(SHL_HAVE_X86_ISA)
    bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
#if defined(SHL_HAVE_AVX512)
    bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    if (strcmp(isa, "avx512") == 0) {
        return avx2 && avx512 ? &shl_cpu_table_avx512 : NULL;
    }
#endif
    if (strcmp(isa, "avx2") == 0) {
        return avx2 ? &shl_cpu_table_avx2 : NULL;
    }
#endif
    return strcmp(isa, "base") == 0 ? &shl_cpu_table_base : NULL;
}

const char *
shl_cpu_isa(void)
{
    const char *const *isa = isas;
    while (shl_cpu_op_table_isa(*isa) == NULL) {
        isa++;
    }
    return *isa;
}

const shl_op_table *
shl_cpu_op_table(void)
{
    return shl_cpu_op_table_isa(shl_cpu_isa());
}

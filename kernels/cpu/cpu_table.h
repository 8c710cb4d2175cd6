/* kernels/cpu: the op table of this machine's CPU. The kernels exist once per instruction set; the
 * best one that the CPU has is chosen at run time. */
#ifndef SHL_CPU_CPU_TABLE_H
#define SHL_CPU_CPU_TABLE_H

#include "kernels/device/device_registry.h" /* shl_cpu_op_table: the best set of this CPU */
#include "kernels/ops/ops.h"

/* The table of one instruction set ("base", "avx2", "avx512"); NULL when the name is unknown or
 * this CPU lacks it. For tests. */
const shl_op_table *shl_cpu_op_table_isa(const char *isa);

/* Instruction sets in this build, best first, NULL-terminated; and the chosen one. */
const char *const *shl_cpu_isas(void);
const char *shl_cpu_isa(void);

extern const shl_op_table shl_cpu_table_base;
#if defined(SHL_HAVE_X86_ISA)
extern const shl_op_table shl_cpu_table_avx2;
extern const shl_op_table shl_cpu_table_avx512;
#endif

#endif

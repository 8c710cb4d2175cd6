/* bench: the list of gpu-check's parts, and the first of them: what the machine has. */
#include "bench/gpu_check.h"

#include "bench/gpu_facts.h"
#include "kernels/base/types.h"

static shl_code
check_facts(shl_gpu_check *k)
{
    shl_str text = {0};
    if (shl_gpu_facts_lines(k->device, "; ", &text) != SHL_OK) {
        shl_str_fini(&text);
        return shl_gpu_tell_error(&k->report, "");
    }
    shl_code code = shl_gpu_tell(&k->report, "", SHL_GPU_PASSED, "%s", shl_str_get(&text));
    shl_str_fini(&text);
    return code;
}

const shl_gpu_part *
shl_gpu_parts(int *n)
{
    static const shl_gpu_part parts[] = {
        {"facts", "card, driver, libraries", check_facts, 30, NULL},
        {"ops", "kernels against double references", shl_gpu_check_ops, 90, shl_gpu_check_ops_step},
        {"gradients", "a step of descent lowers the loss as its gradient says",
         shl_gpu_check_gradients, 40, NULL},
        {"golden", "values of PyTorch", shl_gpu_check_golden, 100, NULL},
        {"follow", "losses against the cpu's", shl_gpu_check_follow, 60, NULL},
        {"strategies", "six strategies, ranks on one card", shl_gpu_check_strategies, 90, NULL},
        {"twin", "peaks of the virtual device", shl_gpu_check_twin, 80, NULL},
        {"memory", "the driver's count, and runs that do not fit", shl_gpu_check_memory, 80, NULL},
        {"ranks", "ranks by the cards' library", shl_gpu_check_ranks, 100, NULL},
        {"sanitizer", "memcheck and racecheck", shl_gpu_check_sanitizer, 150, NULL},
    };
    *n = (int)SHL_ARRAY_LEN(parts);
    return parts;
}

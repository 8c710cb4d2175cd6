/* bench: gpu-check's op cases: the table that the CPU's kernels are tested with, on another device. One line
 * per op says how many cases of each type held and how near to what is allowed. */
#include <math.h>
#include <string.h>

#include "bench/gpu_check.h"
#include "kernels/base/heap.h"
#include "kernels/ops/op_cases.h"

#define SEED 20240917u
#define BY_LIBRARY "attention_by_library"

typedef enum type_of { TYPE_F32 = 0, TYPE_BF16, TYPE_F16, TYPE_COUNT } type_of;

static type_of
case_type(const shl_op_case *c)
{
    if ((c->flags & SHL_CASE_BF16) != 0) {
        return TYPE_BF16;
    }
    return (c->flags & SHL_CASE_F16) != 0 ? TYPE_F16 : TYPE_F32;
}

/* All outputs one behind the other. Owner: caller, shl_heap_free (also after a failure). */
static shl_code
take_outputs(const shl_op_run *run, char **all, size_t *bytes)
{
    *bytes = 0;
    for (int i = 0; i < run->n_operands; i++) {
        const shl_op_operand *o = &run->operands[i];
        size_t n = shl_op_operand_bytes(o);
        if (o->role != SHL_ROLE_IN && o->tensor.data) {
            SHL_TRY(shl_heap_grow(all, *bytes, *bytes + n, 1));
            SHL_TRY(shl_device_download(run->device, *all + *bytes, o->tensor.data, n));
            *bytes += n;
        }
    }
    return SHL_OK;
}

/* Again from the same inputs: the same bits. */
static shl_code
check_repeats(shl_op_run *run)
{
    char *first = NULL, *second = NULL;
    size_t bytes = 0, again_bytes = 0;
    shl_code code;
    SHL_TRY_TO(code, out, take_outputs(run, &first, &bytes));
    SHL_TRY_TO(code, out, shl_op_run_reset(run));
    SHL_TRY_TO(code, out, shl_op_run_call(run));
    SHL_TRY_TO(code, out, take_outputs(run, &second, &again_bytes));
    if (bytes != again_bytes || (bytes > 0 && memcmp(first, second, bytes) != 0)) {
        code = SHL_RAISE(SHL_E_VERIFY, "%s: other bits when it runs again", run->c->name);
    }
out:
    shl_heap_free(&first);
    shl_heap_free(&second);
    return code;
}

static shl_code
run_case(shl_device *d, const shl_op_case *c, int64_t offset, double *worst)
{
    shl_op_run *run = NULL;
    double part = 0.0;
    shl_code code = shl_op_run_open(d, c, SEED, offset, &run);
    code = code == SHL_OK ? shl_op_run_call(run) : code;
    code = code == SHL_OK ? shl_op_run_check(run, &part) : code;
    code = code == SHL_OK ? check_repeats(run) : code;
    shl_op_run_close(&run);
    *worst = fmax(*worst, part);
    return code;
}

typedef struct tally {
    int cases[TYPE_COUNT], failed;
    double worst;
    bool missing; /* the device has no such kernel */
    bool lost;    /* it took the device away from this process */
    char why[512];
} tally;

/* The thread's error. A device without the kernel says so with SHL_E_USAGE, and a library that is not there has
 * its name in the reason; after an error of the driver the process gets nothing else from the device. */
static void
note_failure(tally *t)
{
    const shl_err *e = shl_err_get();
    t->missing = e->code == SHL_E_USAGE || strstr(e->because, "libcudnn.so");
    t->lost = e->code == SHL_E_SYSTEM;
    t->failed++;
    if (t->why[0] == '\0') {
        shl_strf(t->why, sizeof(t->why), "%s; %s", e->what, e->because);
    }
    shl_err_clear();
}

/* Every case of an op; with quick the first of each type. */
static void
run_op(const shl_gpu_check *k, shl_device *d, shl_op op, tally *t)
{
    size_t n = 0;
    const shl_op_case *cases = shl_op_cases(&n);
    for (size_t i = 0; i < n; i++) {
        const shl_op_case *c = &cases[i];
        type_of type = case_type(c);
        bool seen = k->quick && t->cases[type] > 0;
        if (c->op != op || (c->flags & SHL_CASE_SPEED) != 0 || seen || t->missing || t->lost) {
            continue;
        }
        shl_code code = run_case(d, c, 0, &t->worst);
        if (code == SHL_OK && !k->quick) {
            code = run_case(d, c, 3, &t->worst);
        }
        t->cases[type]++;
        if (code != SHL_OK) {
            note_failure(t);
        }
    }
}

static shl_code
tell_op(shl_gpu_check *k, const shl_device *d, shl_op op, const char *name, const tally *t)
{
    char ran[64];
    int all = t->cases[TYPE_F32] + t->cases[TYPE_BF16] + t->cases[TYPE_F16];
    if (t->failed == 0) {
        shl_op_ran(d, op, ran, sizeof(ran));
        return shl_gpu_tell(&k->report, name, SHL_GPU_PASSED,
                            "%d fp32, %d bf16, %d fp16 cases; worst %.2f of what is allowed; "
                            "repeats bit by bit%s%s",
                            t->cases[TYPE_F32], t->cases[TYPE_BF16], t->cases[TYPE_F16], t->worst,
                            ran[0] != '\0' ? "; by " : "", ran);
    }
    return shl_gpu_tell(&k->report, name, t->missing ? SHL_GPU_NOT_POSSIBLE : SHL_GPU_FAILED,
                        "%d of %d cases: %s", t->failed, all, t->why);
}

/* The library's attention, which nobody gets without asking, in shapes that it takes: heads of whole packs. */
static shl_code
check_fused(shl_gpu_check *k)
{
    static const shl_op_case cases[] = {
        {"attention", SHL_OP_ATTENTION_FORWARD, {1, 24, 2, 2, 16}, SHL_CASE_BF16},
        {"attention, tiles", SHL_OP_ATTENTION_FORWARD, {2, 301, 3, 3, 64}, SHL_CASE_BF16},
        {"attention, grouped", SHL_OP_ATTENTION_FORWARD, {1, 150, 4, 2, 64}, SHL_CASE_BF16},
        {"attention, wide", SHL_OP_ATTENTION_FORWARD, {1, 130, 2, 2, 128}, SHL_CASE_BF16}};
    shl_device_config config = {.kind = k->device, .threads = 1, .fused_attention = true};
    shl_device *d = NULL;
    tally t = {.failed = 0};
    if (shl_gpu_is_late(&k->report)) {
        return shl_gpu_tell(&k->report, BY_LIBRARY, SHL_GPU_NOT_REACHED, "the time is over");
    }
    if (shl_device_open(&config, &d) != SHL_OK) {
        return shl_gpu_tell_error(&k->report, BY_LIBRARY);
    }
    for (size_t i = 0; i < SHL_ARRAY_LEN(cases) && (i == 0 || !k->quick) && !t.lost; i++) {
        t.cases[TYPE_BF16]++;
        if (run_case(d, &cases[i], 0, &t.worst) != SHL_OK) {
            note_failure(&t);
        }
    }
    shl_code code = tell_op(k, d, SHL_OP_ATTENTION_FORWARD, BY_LIBRARY, &t);
    shl_code closed = shl_device_close(&d);
    return code != SHL_OK ? code : closed;
}

const char *
shl_gpu_check_ops_step(int step)
{
    if (step < SHL_OP_COUNT) {
        return shl_op_name((shl_op)step);
    }
    return step == SHL_OP_COUNT ? BY_LIBRARY : NULL;
}

static shl_code
lost_at(const char *name)
{
    SHL_RAISE(SHL_E_SYSTEM, "the device is lost to this process");
    return shl_err_because("%s ended with an error of the driver", name);
}

static shl_code
check_own(shl_gpu_check *k, shl_device *d)
{
    for (int op = k->first_step; op < SHL_OP_COUNT; op++) {
        const char *name = shl_op_name((shl_op)op);
        tally t = {.failed = 0};
        SHL_TRY(shl_gpu_begin(&k->report));
        if (shl_gpu_is_late(&k->report)) {
            return shl_gpu_tell(&k->report, name, SHL_GPU_NOT_REACHED,
                                "nor the ops behind it: the %.0f s are over", k->report.budget_s);
        }
        run_op(k, d, (shl_op)op, &t);
        SHL_TRY(tell_op(k, d, (shl_op)op, name, &t));
        if (t.lost) {
            return lost_at(name);
        }
    }
    return SHL_OK;
}

shl_code
shl_gpu_check_ops(shl_gpu_check *k)
{
    shl_device_config config = {.kind = k->device, .threads = 1};
    shl_device *d = NULL;
    if (shl_device_open(&config, &d) != SHL_OK) {
        return shl_gpu_tell_error(&k->report, "");
    }
    shl_code code = check_own(k, d);
    shl_err failure = *shl_err_get();
    if (shl_device_close(&d) != SHL_OK && code == SHL_OK) {
        code = shl_gpu_tell_error(&k->report, "close");
    } else if (code != SHL_OK) {
        return shl_err_put(&failure);
    }
    bool is_card = strcmp(k->device, "cpu") != 0;
    return code == SHL_OK && is_card ? check_fused(k) : code;
}

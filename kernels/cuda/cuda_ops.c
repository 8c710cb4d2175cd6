/* kernels/cuda: the op table: each slot hands its arguments to the object's launcher with the stream.
 * The dispatchers of kernels/ops have checked shapes and taken the scratch already. */
#include <string.h>

#include "kernels/base/str.h"
#include "kernels/cuda/cuda_impl.h"

/* Two kernels of an op are all that one setting meets: of one dtype, and of another. */
static void
remember(cuda_impl *c, shl_op op, const char *kernel)
{
    const char **ran = c->ran[op];
    if (kernel != NULL && ran[0] != kernel) {
        ran[ran[0] != NULL] = kernel;
    }
}

static void
cuda_ran(const shl_device *d, shl_op op, char *text, size_t bytes)
{
    const char *const *ran = cuda_of(d)->ran[op];
    shl_strf(text, bytes, "%s%s%s", ran[0] != NULL ? ran[0] : "", ran[1] != NULL ? ", " : "",
             ran[1] != NULL ? ran[1] : "");
}

/* What a launcher refused with. */
static shl_code
refuse(const shl_cuda_backend *table, shl_op op, int status, const char *why)
{
    bool none = status == SHL_CUDA_NO_ALGORITHM;
    SHL_RAISE(status == SHL_CUDA_UNSUPPORTED     ? SHL_E_USAGE
              : status == SHL_CUDA_OUT_OF_MEMORY ? SHL_E_OOM
                                                 : SHL_E_SYSTEM,
              none ? "no library kernel for %s" : "%s was not launched on the device",
              shl_op_name(op));
    if (why[0] == '\0') {
        return shl_err_because("status %d: %s", status, table->error_text(status));
    }
    shl_err_because("%s", why);
    return none ? shl_err_advice("widths that are multiples of 8, another dtype, or another "
                                 "version of the library (its folder in LD_LIBRARY_PATH)")
                : shl_err_get()->code;
}

static shl_code
launch(shl_op op, shl_stream *s, const void *args, void *work)
{
    cuda_impl *c = cuda_of(s->device);
    shl_cuda_op_fn fn = c->table->op[op];
    char why[SHL_CUDA_WHY_BYTES] = "";
    const char *kernel = NULL;
    shl_cuda_launch l = {.libs = c->libs,
                         .pool = c->pool,
                         .pool_bytes = c->pool_bytes,
                         .faults = c->faults,
                         .info = &c->info,
                         .choice = {.tf32 = s->device->config.tf32,
                                    .fused_attention = s->device->config.fused_attention},
                         .why = why,
                         .ran = &kernel};
    bool on_host = false;
    SHL_TRY(shl_cuda_side(s->device, op, args, &on_host));
    if (on_host) {
        return shl_cuda_host_op(op, s, args, work);
    }
    SHL_TRY(shl_cuda_begin(s, &l.stream));
    int status = fn(&l, args, work);
    if (status != 0) {
        return refuse(c->table, op, status, why);
    }
    remember(c, op, kernel);
    return SHL_OK;
}

#define CUDA_OP(op, name)                                                                          \
    static shl_code name(shl_stream *s, const void *args, void *work)                              \
    {                                                                                              \
        return launch(SHL_OP_##op, s, args, work);                                                 \
    }
SHL_OPS(CUDA_OP)

#define CUDA_ROW(op, name) [SHL_OP_##op] = name,
const shl_op_table shl_cuda_op_table = {
    .kind = "cuda",
    .fn = {SHL_OPS(CUDA_ROW)},
    .ran = cuda_ran,
};

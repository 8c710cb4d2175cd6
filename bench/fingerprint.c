/* bench: the fingerprint of program and machine. Build flags and commit come from the build. */
#include "bench/fingerprint.h"

#include <stdio.h>
#include <string.h>
#include <sys/utsname.h>

#include <dnnl.h>
#include <hdf5.h>
#include <jansson.h>
#include <xxhash.h>

#include "bench/cli.h"
#include "bench/gpu_facts.h"
#include "bench/host.h"

/* The build passes these; a build by hand may not. */
#ifndef SHL_BUILD_FLAGS
#define SHL_BUILD_FLAGS ""
#endif
#ifndef SHL_BUILD_COMMIT
#define SHL_BUILD_COMMIT ""
#endif

static void
read_processor_name(char *dst, size_t dst_bytes)
{
    char line[512];
    FILE *f = fopen("/proc/cpuinfo", "r");
    dst[0] = '\0';
    while (f && dst[0] == '\0' && fgets(line, sizeof(line), f)) {
        const char *colon = strchr(line, ':');
        if (strncmp(line, "model name", 10) == 0 && colon) {
            shl_strf(dst, dst_bytes, "%.*s", (int)strcspn(colon + 2, "\n"), colon + 2);
        }
    }
    if (f) {
        (void)fclose(f);
    }
}

static const char *
isa_name(void)
{
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f")) {
        return "avx512";
    }
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? "avx2" : "base";
#else
    return "base";
#endif
}

static const char *
compiler_name(void)
{
#if defined(__clang__)
    return "clang " __clang_version__;
#else
    return "gcc " __VERSION__;
#endif
}

static json_t *
libraries_json(void)
{
    char hdf5[32], dnnl[32], xxhash[32];
    unsigned major = 0, minor = 0, release = 0, xxh = XXH_VERSION_NUMBER;
    const dnnl_version_t *v = dnnl_version();
    (void)H5get_libversion(&major, &minor, &release);
    shl_strf(hdf5, sizeof(hdf5), "%u.%u.%u", major, minor, release);
    shl_strf(dnnl, sizeof(dnnl), "%d.%d.%d", v->major, v->minor, v->patch);
    shl_strf(xxhash, sizeof(xxhash), "%u.%u.%u", xxh / 10000, xxh / 100 % 100, xxh % 100);
    return json_pack("{ss ss ss ss}", "dnnl", dnnl, "hdf5", hdf5, "jansson", JANSSON_VERSION,
                     "xxhash", xxhash);
}

/* NULL for an empty text: null in the record. */
static const char *
or_null(const char *text)
{
    return text[0] ? text : NULL;
}

shl_code
shl_fingerprint(json_t **out)
{
    char processor[128];
    struct utsname host;
    json_t *libraries = libraries_json();
    memset(&host, 0, sizeof(host));
    (void)uname(&host);
    read_processor_name(processor, sizeof(processor));
    *out = json_pack("{ss ss? ss si ss ss ss ss? so ss?}", "version", SHL_VERSION, "cpu",
                     or_null(processor), "arch", host.machine, "cores", shl_host_cores(), "isa",
                     isa_name(), "kernel", host.release, "compiler", compiler_name(), "flags",
                     or_null(SHL_BUILD_FLAGS), "libraries", libraries, "commit",
                     or_null(SHL_BUILD_COMMIT));
    return *out ? SHL_OK : SHL_RAISE(SHL_E_HEAP, "out of host memory for the fingerprint");
}

shl_code
shl_fingerprint_gpu(const char *kind, json_t **out)
{
    json_t *gpu = NULL;
    SHL_TRY(shl_gpu_facts_json(kind, &gpu));
    shl_code code = shl_fingerprint(out);
    if (code != SHL_OK) {
        json_decref(gpu);
        return code;
    }
    if (json_object_set_new(*out, "gpu", gpu) != 0) {
        json_decref(*out);
        *out = NULL;
        return SHL_RAISE(SHL_E_HEAP, "out of host memory for the fingerprint");
    }
    return SHL_OK;
}

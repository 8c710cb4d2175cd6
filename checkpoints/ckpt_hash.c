/* checkpoints: XXH3-128 of bytes and of whole files, and its spelling. It finds corruption; it is
 * no protection against someone who alters a checkpoint on purpose. */
#ifndef XXH_INLINE_ALL
#define XXH_INLINE_ALL /* faster than the shared library, and without its code */
#endif
#include <xxhash.h>

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "checkpoints/ckpt_room.h"
#include "kernels/base/heap.h"

#define READ_BYTES ((size_t)1 << 20)

void
shl_ckpt_hash(const void *data, size_t bytes, uint64_t out[2])
{
    XXH128_hash_t h = XXH3_128bits(data, bytes);
    out[0] = h.high64;
    out[1] = h.low64;
}

static shl_code
hash_chunks(int fd, const char *path, XXH3_state_t *state, char *chunk, int64_t *bytes)
{
    for (;;) {
        ssize_t n = pread(fd, chunk, READ_BYTES, (off_t)*bytes);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0) {
            return shl_ckpt_io_fail("read", path);
        }
        if (n == 0) {
            return SHL_OK;
        }
        (void)XXH3_128bits_update(state, chunk, (size_t)n);
        *bytes += n;
    }
}

shl_code
shl_ckpt_hash_fd(int fd, const char *path, int64_t *bytes, uint64_t out[2])
{
    char *chunk = NULL;
    XXH3_state_t state;
    *bytes = 0;
    SHL_TRY(shl_heap_alloc(READ_BYTES, 1, &chunk));
    XXH3_INITSTATE(&state);
    (void)XXH3_128bits_reset(&state);
    shl_code code = hash_chunks(fd, path, &state, chunk, bytes);
    XXH128_hash_t h = XXH3_128bits_digest(&state);
    out[0] = h.high64;
    out[1] = h.low64;
    shl_heap_free(&chunk);
    return code;
}

void
shl_ckpt_hex(const uint64_t hash[2], char out[33])
{
    shl_strf(out, 33, "%016llx%016llx", (unsigned long long)hash[0], (unsigned long long)hash[1]);
}

static int
digit(char c)
{
    static const char digits[] = "0123456789abcdef";
    const char *at = c != '\0' ? strchr(digits, c) : NULL;
    return at != NULL ? (int)(at - digits) : -1;
}

bool
shl_ckpt_unhex(const char *hex, uint64_t out[2])
{
    uint64_t words[2] = {0, 0};
    if (strlen(hex) != 32) {
        return false;
    }
    for (size_t i = 0; i < 32; i++) {
        int d = digit(hex[i]);
        if (d < 0) {
            return false;
        }
        words[i / 16] = words[i / 16] << 4 | (uint64_t)d;
    }
    out[0] = words[0];
    out[1] = words[1];
    return true;
}

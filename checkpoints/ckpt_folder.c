/* checkpoints: folders and whole files: names, complete reads and writes, fsync, and the swap of
 * one folder for another. Every message carries the path and the system's reason. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "checkpoints/ckpt_room.h"
#include "kernels/base/heap.h"

#define TREE_DEPTH_MAX 16

void
shl_ckpt_step_name(int64_t step, char *dst, size_t cap)
{
    shl_strf(dst, cap, "step-%08lld", (long long)step);
}

void
shl_ckpt_temp_name(const shl_ckpt_meta *meta, char *dst, size_t cap)
{
    shl_strf(dst, cap, SHL_CKPT_TEMP_PREFIX "%08lld-%s", (long long)meta->step, meta->run_id);
}

void
shl_ckpt_shard_name(int rank, int world, char *dst, size_t cap)
{
    shl_strf(dst, cap, "shard-%05d-of-%05d.h5", rank, world);
}

shl_code
shl_ckpt_join(const char *a, const char *b, char *dst, size_t cap)
{
    if (strlen(a) + strlen(b) + 2 > cap) {
        (void)SHL_RAISE(SHL_E_USAGE, "checkpoint path too long: %s/%s", a, b);
        return shl_err_because("a path has at most %zu characters here", cap - 1);
    }
    shl_strf(dst, cap, "%s/%s", a, b);
    return SHL_OK;
}

shl_code
shl_ckpt_io_fail(const char *doing, const char *path)
{
    int reason = errno;
    (void)SHL_RAISE(SHL_E_IO, "cannot %s %s", doing, path);
    return shl_err_because("%s", strerror(reason));
}

shl_code
shl_ckpt_write_fail(const char *path, int64_t need_bytes)
{
    int reason = errno;
    struct statvfs fs;
    char need[32];
    char left[32] = "an unknown number of bytes";
    char folder[SHL_CKPT_PATH_MAX];
    shl_strf(folder, sizeof folder, "%s", path);
    char *slash = strrchr(folder, '/');
    if (slash != NULL) {
        *slash = '\0';
    }
    shl_format_bytes((size_t)need_bytes, need, sizeof need);
    if (statvfs(slash != NULL ? folder : ".", &fs) == 0) {
        shl_format_bytes((size_t)fs.f_bavail * fs.f_frsize, left, sizeof left);
    }
    (void)SHL_RAISE(SHL_E_IO, "cannot write %s", path);
    (void)shl_err_because("%lld bytes more (%s) are needed, %s are free: %s", (long long)need_bytes,
                          need, left, strerror(reason));
    return shl_err_advice("free space, raise the file size limit, or save to another folder");
}

shl_code
shl_ckpt_pwrite(int fd, const char *path, const void *data, size_t bytes, int64_t offset)
{
    const char *p = data;
    while (bytes > 0) {
        ssize_t n = pwrite(fd, p, bytes, (off_t)offset);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            errno = n == 0 ? ENOSPC : errno;
            return shl_ckpt_write_fail(path, (int64_t)bytes);
        }
        p += n;
        offset += n;
        bytes -= (size_t)n;
    }
    return SHL_OK;
}

shl_code
shl_ckpt_pread(int fd, const char *path, void *data, size_t bytes, int64_t offset)
{
    char *p = data;
    while (bytes > 0) {
        ssize_t n = pread(fd, p, bytes, (off_t)offset);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0) {
            return shl_ckpt_io_fail("read", path);
        }
        if (n == 0) {
            (void)SHL_RAISE(SHL_E_VERIFY, "%s is truncated", path);
            return shl_err_because("it ends at byte %lld, %zu bytes more are wanted",
                                   (long long)offset, bytes);
        }
        p += n;
        offset += n;
        bytes -= (size_t)n;
    }
    return SHL_OK;
}

shl_code
shl_ckpt_make_folders(const char *path)
{
    char part[SHL_CKPT_PATH_MAX];
    if (path[0] == '\0' || strlen(path) >= sizeof part) {
        (void)SHL_RAISE(SHL_E_USAGE, "checkpoint folder '%.64s' has a bad name", path);
        return shl_err_because("a path has 1 to %zu characters here", sizeof part - 1);
    }
    shl_strf(part, sizeof part, "%s", path);
    for (char *at = part + 1;; at++) {
        char c = *at;
        if (c != '/' && c != '\0') {
            continue;
        }
        *at = '\0';
        if (mkdir(part, 0777) != 0 && errno != EEXIST) {
            return shl_ckpt_io_fail("make folder", part);
        }
        if (c == '\0') {
            return SHL_OK;
        }
        *at = c;
    }
}

shl_code
shl_ckpt_sync_folder(const char *path)
{
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) {
        return shl_ckpt_io_fail("open folder", path);
    }
    shl_code code = fsync(fd) == 0 ? SHL_OK : shl_ckpt_io_fail("fsync folder", path);
    (void)close(fd);
    return code;
}

shl_code
shl_ckpt_put_text(const char *path, const char *text, size_t len)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0666);
    if (fd < 0) {
        return shl_ckpt_write_fail(path, (int64_t)len);
    }
    shl_code code = shl_ckpt_pwrite(fd, path, text, len, 0);
    if (code == SHL_OK && fsync(fd) != 0) {
        code = shl_ckpt_write_fail(path, (int64_t)len);
    }
    if (close(fd) != 0 && code == SHL_OK) {
        code = shl_ckpt_write_fail(path, (int64_t)len);
    }
    return code;
}

shl_code
shl_ckpt_open_file(int folder, const char *name, const char *path, int *fd, int64_t *bytes)
{
    struct stat st;
    /* Not blocking: a pipe in the place of a file must not hang the reader. */
    *fd = openat(folder, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (*fd < 0) {
        return shl_ckpt_io_fail("open", path);
    }
    if (fstat(*fd, &st) == 0 && S_ISREG(st.st_mode)) {
        *bytes = (int64_t)st.st_size;
        return SHL_OK;
    }
    (void)close(*fd);
    *fd = -1;
    (void)SHL_RAISE(SHL_E_IO, "cannot read %s", path);
    return shl_err_because("it is not a regular file");
}

shl_code
shl_ckpt_slurp(int folder, const char *name, const char *path, size_t max_bytes, char **text,
               size_t *len)
{
    int fd = -1;
    int64_t bytes = 0;
    *text = NULL;
    *len = 0;
    SHL_TRY(shl_ckpt_open_file(folder, name, path, &fd, &bytes));
    shl_code code = SHL_OK;
    if ((uint64_t)bytes > max_bytes) {
        (void)SHL_RAISE(SHL_E_VERIFY, "%s is too long", path);
        code =
            shl_err_because("it has %lld bytes, at most %zu are read", (long long)bytes, max_bytes);
    }
    if (code == SHL_OK) {
        code = shl_heap_alloc((size_t)bytes + 1, 1, text);
    }
    if (code == SHL_OK) {
        code = shl_ckpt_pread(fd, path, *text, (size_t)bytes, 0);
        *len = (size_t)bytes;
    }
    if (code != SHL_OK) {
        shl_heap_free(text);
    }
    (void)close(fd);
    return code;
}

static void
remove_at(int folder, const char *name, int depth)
{
    if (unlinkat(folder, name, 0) == 0 || depth == 0) {
        return;
    }
    int fd = openat(folder, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    DIR *list = fd >= 0 ? fdopendir(fd) : NULL;
    if (list == NULL) {
        if (fd >= 0) {
            (void)close(fd);
        }
        return;
    }
    for (struct dirent *e = readdir(list); e != NULL; e = readdir(list)) {
        if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0) {
            remove_at(dirfd(list), e->d_name, depth - 1);
        }
    }
    (void)closedir(list);
    (void)unlinkat(folder, name, AT_REMOVEDIR);
}

void
shl_ckpt_remove(const char *path)
{
    remove_at(AT_FDCWD, path, TREE_DEPTH_MAX);
}

/* Two renames instead of one exchange. Killed between them, the old folder lies complete under its
 * name aside: readers look there, and the next save puts it back. */
static shl_code
swap_aside(const char *from, const char *to, const char *aside)
{
    shl_ckpt_remove(aside);
    if (rename(to, aside) != 0) {
        return shl_ckpt_io_fail("set aside", to);
    }
    if (rename(from, to) != 0) {
        shl_code code = shl_ckpt_io_fail("rename the new checkpoint to", to);
        (void)rename(aside, to);
        return code;
    }
    return SHL_OK;
}

shl_code
shl_ckpt_swap_in(const char *dir, const char *from, const char *to, bool exchange, char *old,
                 size_t cap)
{
    char target[SHL_CKPT_PATH_MAX];
    char aside[SHL_CKPT_PATH_MAX];
    char name[64];
    struct stat st;
    SHL_TRY(shl_ckpt_join(dir, to, target, sizeof target));
    shl_strf(name, sizeof name, SHL_CKPT_ASIDE_PREFIX "%s", to);
    SHL_TRY(shl_ckpt_join(dir, name, aside, sizeof aside));
    old[0] = '\0';
    if (lstat(target, &st) != 0) {
        if (errno != ENOENT || rename(from, target) != 0) {
            return shl_ckpt_io_fail("rename the new checkpoint to", target);
        }
        return SHL_OK;
    }
    if (exchange && renameat2(AT_FDCWD, from, AT_FDCWD, target, RENAME_EXCHANGE) == 0) {
        shl_strf(old, cap, "%s", from);
        return SHL_OK;
    }
    SHL_TRY(swap_aside(from, target, aside));
    shl_strf(old, cap, "%s", aside);
    return SHL_OK;
}

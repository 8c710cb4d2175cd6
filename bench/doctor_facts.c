/* bench: the facts of the doctor. Control groups are read in both versions, from the process's own group up
 * to the root, because the tightest limit of the path is the one that kills. */
#include "bench/doctor.h"

#include <errno.h>
#include <fcntl.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include <hdf5.h>
#include <jansson.h>

#include "bench/fingerprint.h"
#include "bench/gpu_facts.h"
#include "bench/host.h"
#include "kernels/base/option.h"
#include "kernels/base/str.h"

#define PATH_BYTES 4096
#define BLOCK_BYTES 4096
/* Version 1 spells "no limit" as the largest multiple of a page. */
#define V1_UNLIMITED (INT64_C(1) << 60)

/* The head of a file without its last line end. False when it cannot be read. */
static bool
read_text(const char *path, char *dst, size_t dst_bytes)
{
    dst[0] = '\0';
    FILE *f = fopen(path, "re");
    if (!f) {
        return false;
    }
    size_t n = fread(dst, 1, dst_bytes - 1, f);
    (void)fclose(f);
    while (n > 0 && dst[n - 1] == '\n') {
        n--;
    }
    dst[n] = '\0';
    return n > 0;
}

/* The number behind a key at the start of a line; SHL_UNKNOWN. */
static int64_t
number_behind(const char *text, const char *key)
{
    size_t len = strlen(key);
    for (const char *line = text; line; line = strchr(line, '\n')) {
        line += *line == '\n';
        if (strncmp(line, key, len) == 0 && (line[len] == ' ' || line[len] == ':')) {
            return strtoll(line + len + 1, NULL, 10);
        }
        if (*line == '\0') {
            break;
        }
    }
    return SHL_UNKNOWN;
}

static int64_t
read_number(const char *path)
{
    char text[64], *end;
    if (!read_text(path, text, sizeof(text))) {
        return SHL_UNKNOWN;
    }
    if (strcmp(text, "max") == 0) {
        return SHL_UNLIMITED;
    }
    int64_t value = strtoll(text, &end, 10);
    return end == text ? SHL_UNKNOWN : value;
}

/* Keeps the limit of one group when it is the tightest so far. */
static void
take_memory_group(const char *dir, bool v1, shl_doctor_facts *f)
{
    char path[PATH_BYTES + 64], stat_text[8192];
    shl_strf(path, sizeof(path), "%s/%s", dir, v1 ? "memory.limit_in_bytes" : "memory.max");
    int64_t limit = read_number(path);
    if (v1 && limit >= V1_UNLIMITED) {
        limit = SHL_UNLIMITED;
    }
    if (limit <= 0 || (f->limit_bytes != SHL_UNKNOWN && limit >= f->limit_bytes)) {
        return;
    }
    f->limit_bytes = limit;
    shl_strf(path, sizeof(path), "%s/%s", dir, v1 ? "memory.usage_in_bytes" : "memory.current");
    f->used_bytes = read_number(path);
    /* Files that were read count as used and are given up when memory is asked for. */
    shl_strf(path, sizeof(path), "%s/memory.stat", dir);
    int64_t cache = SHL_UNKNOWN;
    if (read_text(path, stat_text, sizeof(stat_text))) {
        cache = number_behind(stat_text, v1 ? "total_inactive_file" : "inactive_file");
    }
    if (f->used_bytes > 0 && cache > 0 && cache <= f->used_bytes) {
        f->used_bytes -= cache;
    }
}

static void
take_time_group(const char *dir, bool v1, shl_doctor_facts *f)
{
    char path[PATH_BYTES + 64], text[64];
    double quota = -1.0, period = 0.0;
    if (v1) {
        shl_strf(path, sizeof(path), "%s/cpu.cfs_quota_us", dir);
        quota = (double)read_number(path);
        shl_strf(path, sizeof(path), "%s/cpu.cfs_period_us", dir);
        period = (double)read_number(path);
    } else {
        shl_strf(path, sizeof(path), "%s/cpu.max", dir);
        if (read_text(path, text, sizeof(text)) && text[0] != 'm') {
            char *end;
            quota = strtod(text, &end);
            period = strtod(end, NULL);
        }
    }
    if (quota > 0.0 && period > 0.0 && (f->quota <= 0.0 || quota / period < f->quota)) {
        f->quota = quota / period;
    }
}

/* Visits mount + path, its parent, and so on to the mount itself. */
static void
climb(const char *mount, const char *path, bool v1,
      void (*take)(const char *dir, bool v1, shl_doctor_facts *f), shl_doctor_facts *f)
{
    char dir[PATH_BYTES];
    size_t stem = strlen(mount);
    shl_strf(dir, sizeof(dir), "%s%s", mount, path);
    for (;;) {
        take(dir, v1, f);
        char *slash = strrchr(dir, '/');
        if (strlen(dir) <= stem || !slash || (size_t)(slash - dir) < stem) {
            return;
        }
        *slash = '\0';
    }
}

/* One line "id:controllers:path" of /proc/self/cgroup. */
static void
read_group(const char *root, char *line, shl_doctor_facts *f)
{
    char mount[PATH_BYTES];
    char *names = strchr(line, ':');
    char *path = names ? strchr(names + 1, ':') : NULL;
    if (!path) {
        return;
    }
    *path++ = '\0';
    names++;
    if (names[0] == '\0') {
        static const char *const places[] = {"/sys/fs/cgroup", "/sys/fs/cgroup/unified"};
        for (size_t i = 0; i < 2; i++) {
            shl_strf(mount, sizeof(mount), "%s%s", root, places[i]);
            climb(mount, path, false, take_memory_group, f);
            climb(mount, path, false, take_time_group, f);
        }
        return;
    }
    shl_strf(mount, sizeof(mount), "%s/sys/fs/cgroup/%s", root, names);
    if (strcmp(names, "memory") == 0) {
        climb(mount, path, true, take_memory_group, f);
    } else if (strcmp(names, "cpu") == 0 || strncmp(names, "cpu,", 4) == 0 ||
               strcmp(names, "cpuacct,cpu") == 0) {
        climb(mount, path, true, take_time_group, f);
    }
}

static void
read_memory(const char *root, shl_doctor_facts *f)
{
    char path[PATH_BYTES], text[8192];
    f->ram_bytes = f->available_bytes = f->limit_bytes = f->used_bytes = SHL_UNKNOWN;
    f->quota = 0.0;
    shl_strf(path, sizeof(path), "%s/proc/meminfo", root);
    if (read_text(path, text, sizeof(text))) {
        int64_t all = number_behind(text, "MemTotal"), free = number_behind(text, "MemAvailable");
        f->ram_bytes = all > 0 ? all * 1024 : SHL_UNKNOWN;
        f->available_bytes = free > 0 ? free * 1024 : SHL_UNKNOWN;
    }
    shl_strf(path, sizeof(path), "%s/proc/self/cgroup", root);
    if (read_text(path, text, sizeof(text))) {
        char *rest = NULL;
        for (char *line = strtok_r(text, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
            read_group(root, line, f);
        }
    }
    struct statvfs fs;
    shl_strf(path, sizeof(path), "%s/dev/shm", root);
    f->shm_bytes =
        statvfs(path, &fs) == 0 ? (int64_t)fs.f_bavail * (int64_t)fs.f_frsize : SHL_UNKNOWN;
}

static int64_t
limit_of(__rlimit_resource_t what)
{
    struct rlimit limit;
    if (getrlimit(what, &limit) != 0) {
        return SHL_UNKNOWN;
    }
    return limit.rlim_cur == RLIM_INFINITY ? SHL_UNLIMITED : (int64_t)limit.rlim_cur;
}

/* What ranks as processes share: an anonymous file that is mapped. */
static int
try_shared_file(void)
{
    int fd = memfd_create("shardlab-doctor", MFD_CLOEXEC);
    if (fd < 0) {
        return errno;
    }
    int error = ftruncate(fd, BLOCK_BYTES) == 0 ? 0 : errno;
    void *m = error == 0 ? mmap(NULL, BLOCK_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)
                         : MAP_FAILED;
    if (error == 0 && m == MAP_FAILED) {
        error = errno;
    }
    if (m != MAP_FAILED) {
        (void)munmap(m, BLOCK_BYTES);
    }
    (void)close(fd);
    return error;
}

/* errno of writing one block into a file of the folder that nobody else sees; 0: it worked. */
static int
try_write(const char *folder, int flags)
{
    _Alignas(BLOCK_BYTES) char block[BLOCK_BYTES];
    char path[PATH_BYTES + 32];
    memset(block, 0, sizeof(block));
    int fd = open(folder, O_TMPFILE | O_RDWR | O_CLOEXEC | flags, 0600);
    if (fd < 0 && (errno == EOPNOTSUPP || errno == EISDIR || errno == EINVAL)) {
        shl_strf(path, sizeof(path), "%s/.shardlab-doctor-%ld", folder, (long)getpid());
        fd = open(path, O_CREAT | O_EXCL | O_RDWR | O_CLOEXEC | flags, 0600);
        if (fd >= 0) {
            (void)unlink(path);
        }
    }
    if (fd < 0) {
        return errno;
    }
    ssize_t wrote = write(fd, block, sizeof(block));
    int error = wrote == (ssize_t)sizeof(block) ? 0 : (wrote < 0 ? errno : ENOSPC);
    (void)unlink(path);
    (void)close(fd);
    return error;
}

/* The folder itself, or the nearest one above it that exists: there it would be made. */
static void
probe_folder(const char *out, shl_doctor_facts *f)
{
    struct stat info;
    struct statvfs fs;
    shl_strf(f->folder, sizeof(f->folder), "%s", out);
    while (stat(f->folder, &info) != 0 && errno == ENOENT && strcmp(f->folder, ".") != 0) {
        size_t len = strlen(f->folder);
        while (len > 1 && f->folder[len - 1] == '/') {
            f->folder[--len] = '\0';
        }
        char *slash = strrchr(f->folder, '/');
        if (slash) {
            slash[slash == f->folder] = '\0';
        } else {
            shl_strf(f->folder, sizeof(f->folder), ".");
        }
    }
    f->folder_error = try_write(f->folder, 0);
    f->direct_error = f->folder_error == 0 ? try_write(f->folder, O_DIRECT) : f->folder_error;
    f->folder_bytes =
        statvfs(f->folder, &fs) == 0 ? (int64_t)fs.f_bavail * (int64_t)fs.f_frsize : SHL_UNKNOWN;
}

/* Runs gnuplot with two words; its stdout goes to dst. True when it ended well. */
static bool
run_gnuplot(const char *option, const char *script, char *dst, size_t dst_bytes)
{
    char program[] = "gnuplot", first[16], second[64];
    char *argv[] = {program, first, script ? second : NULL, NULL};
    int ends[2], status = -1;
    pid_t pid;
    posix_spawn_file_actions_t actions;
    shl_strf(first, sizeof(first), "%s", option);
    shl_strf(second, sizeof(second), "%s", script ? script : "");
    dst[0] = '\0';
    if (pipe2(ends, O_CLOEXEC) != 0) {
        return false;
    }
    bool started = posix_spawn_file_actions_init(&actions) == 0;
    if (started) {
        (void)posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
        (void)posix_spawn_file_actions_adddup2(&actions, ends[1], 1);
        (void)posix_spawn_file_actions_addopen(&actions, 2, "/dev/null", O_WRONLY, 0);
        started = posix_spawnp(&pid, program, &actions, NULL, argv, environ) == 0;
        (void)posix_spawn_file_actions_destroy(&actions);
    }
    (void)close(ends[1]);
    ssize_t n = started ? read(ends[0], dst, dst_bytes - 1) : 0;
    (void)close(ends[0]);
    dst[n > 0 ? n : 0] = '\0';
    dst[strcspn(dst, "\n")] = '\0';
    while (started && waitpid(pid, &status, 0) < 0 && errno == EINTR) {
    }
    return started && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

static void
probe_gnuplot(shl_doctor_facts *f)
{
    char ignored[64];
    if (!run_gnuplot("--version", NULL, f->gnuplot, sizeof(f->gnuplot))) {
        f->gnuplot[0] = '\0';
        return;
    }
    bool svg = run_gnuplot("-e", "set terminal svg", ignored, sizeof(ignored));
    bool png = run_gnuplot("-e", "set terminal pngcairo", ignored, sizeof(ignored));
    shl_strf(f->gnuplot_formats, sizeof(f->gnuplot_formats), "%s%s%s", svg ? "svg" : "",
             svg && png ? " " : "", png ? "png" : "");
}

static void
read_processor(shl_doctor_facts *f)
{
    json_t *fingerprint = NULL;
    f->cores = shl_host_cores();
    shl_strf(f->isa, sizeof(f->isa), "unknown");
    if (shl_fingerprint(&fingerprint) == SHL_OK) {
        const char *isa = json_string_value(json_object_get(fingerprint, "isa"));
        shl_strf(f->isa, sizeof(f->isa), "%s", isa ? isa : "unknown");
        json_decref(fingerprint);
    }
    shl_err_clear();
#if defined(__x86_64__)
    shl_strf(
        f->features, sizeof(f->features), "%s%s%s%s%s", __builtin_cpu_supports("avx") ? "avx " : "",
        __builtin_cpu_supports("avx2") ? "avx2 " : "", __builtin_cpu_supports("fma") ? "fma " : "",
        __builtin_cpu_supports("avx512f") ? "avx512f " : "",
        __builtin_cpu_supports("avx512bw") ? "avx512bw " : "");
    size_t len = strlen(f->features);
    f->features[len > 0 ? len - 1 : 0] = '\0';
#endif
}

/* The word in brackets of "always [madvise] never". */
static void
read_huge_pages(const char *root, shl_doctor_facts *f)
{
    char path[PATH_BYTES], text[128];
    shl_strf(path, sizeof(path), "%s/sys/kernel/mm/transparent_hugepage/enabled", root);
    const char *open = read_text(path, text, sizeof(text)) ? strchr(text, '[') : NULL;
    if (open) {
        shl_strf(f->huge_pages, sizeof(f->huge_pages), "%.*s", (int)strcspn(open + 1, "]"),
                 open + 1);
    }
}

/* A program whose half for cards was not built says so with SHL_E_USAGE: nothing fails then. */
static void
read_cards(shl_doctor_facts *f)
{
    shl_str text = {0};
    shl_device_survey survey;
    shl_code code = shl_device_survey_get("cuda", &survey);
    f->n_cards = code == SHL_OK ? survey.n_cards : 0;
    code = code == SHL_OK && f->n_cards > 0 ? shl_gpu_facts_lines("cuda", "; ", &text) : code;
    f->gpu_fails = code != SHL_OK && code != SHL_E_USAGE;
    if (code != SHL_OK) {
        shl_str_add(&text, "%s", shl_err_get()->what);
        shl_strf(f->gpu_fix, sizeof(f->gpu_fix), "%s", shl_err_get()->because);
        shl_err_clear();
    }
    shl_strf(f->gpu, sizeof(f->gpu), "%s", shl_str_get(&text));
    shl_str_fini(&text);
}

static void
copy_variable(const char *name, char *dst, size_t dst_bytes)
{
    const char *value = shl_env(name);
    shl_strf(dst, dst_bytes, "%s", value ? value : "");
}

void
shl_doctor_gather(const shl_doctor_ask *ask, const char *root, shl_doctor_facts *out)
{
    char path[PATH_BYTES], text[64];
    unsigned major = 0, minor = 0, release = 0;
    hbool_t safe = 0;
    memset(out, 0, sizeof(*out));
    read_processor(out);
    read_memory(root, out);
    read_huge_pages(root, out);
    out->memlock_bytes = limit_of(RLIMIT_MEMLOCK);
    out->open_files = limit_of(RLIMIT_NOFILE);
    out->shared_error = try_shared_file();
    probe_folder(ask->out, out);
    probe_gnuplot(out);
    out->h5_is_threadsafe = H5is_library_threadsafe(&safe) >= 0 && safe;
    (void)H5get_libversion(&major, &minor, &release);
    shl_strf(out->h5_version, sizeof(out->h5_version), "%u.%u.%u", major, minor, release);
    shl_strf(path, sizeof(path), "%s/proc/loadavg", root);
    out->load = read_text(path, text, sizeof(text)) ? strtod(text, NULL) : -1.0;
    read_cards(out);
    copy_variable("OMP_NUM_THREADS", out->omp_threads, sizeof(out->omp_threads));
    copy_variable("OMP_WAIT_POLICY", out->omp_wait, sizeof(out->omp_wait));
    copy_variable("OMP_PROC_BIND", out->omp_bind, sizeof(out->omp_bind));
}

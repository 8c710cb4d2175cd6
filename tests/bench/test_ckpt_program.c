/* tests/bench: checkpoints through the built program: `train` killed with -9 at any moment, a file system
 * that is full, files of two runs mixed; what `ckpt` says of all of it. */
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>
#include <jansson.h>

#include "checkpoints/ckpt.h"
#include "kernels/base/clock.h"
#include "kernels/base/heap.h"
#include "kernels/base/option.h"
#include "kernels/base/rng.h"
#include "kernels/base/str.h"
#include "kernels/base/types.h"
#include "kernels/device/sanitize.h"
#include "tests/support/program.h"

#define MAX_WORDS 64
#define KILL_ROUNDS (SHL_ASAN || SHL_TSAN ? 6 : 32)
#define LAST_STEP 8
/* The same for every run here, so that all of them belong to one trajectory per seed. */
#define RUN                                                                                        \
    "train", "--layers", "1", "--width", "32", "--heads", "2", "--context", "16", "--batch", "2",  \
        "--threads", "1", "--ranks", "2"

static char folder[64];
static uint64_t seed;
static rlim_t file_limit = RLIM_INFINITY;

static struct {
    int status;
    char out[1 << 16], err[1 << 14];
} seen;

static const char *
in_folder(const char *name)
{
    static char paths[16][160];
    static int next;
    char *path = paths[next++ % 16];
    (void)snprintf(path, sizeof paths[0], "%s/%s", folder, name);
    return path;
}

static void
slurp(const char *path, char *dst, size_t cap)
{
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    dst[fread(dst, 1, cap - 1, f)] = '\0';
    (void)fclose(f);
}

/* Starts the program in a process group of its own; stdout and stderr go to files. */
static pid_t
start(const char *const *words)
{
    const char *argv[MAX_WORDS + 2] = {program};
    for (int i = 0; i < MAX_WORDS && words[i]; i++) {
        argv[i + 1] = words[i];
    }
    char out_path[160];
    char err_path[160];
    (void)snprintf(out_path, sizeof out_path, "%s", in_folder("stdout"));
    (void)snprintf(err_path, sizeof err_path, "%s", in_folder("stderr"));
    pid_t pid = fork();
    if (pid == 0) {
        union {
            const char *const *in;
            char *const *out;
        } as = {.in = argv};
        struct rlimit limit = {file_limit, file_limit};
        int out = open(out_path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
        int err = open(err_path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
        if (setpgid(0, 0) != 0 || dup2(out, 1) < 0 || dup2(err, 2) < 0 ||
            setrlimit(RLIMIT_FSIZE, &limit) != 0) {
            _exit(126);
        }
        (void)execv(program, as.out);
        _exit(127);
    }
    assert_true(pid > 0);
    (void)setpgid(pid, pid);
    return pid;
}

/* The program and every process that it started: this one adopts orphans. Not by its group, which a rank
 * leaves when it begins: the kernel wakes nobody for a child that has left the group waited for. */
static void
wait_all(pid_t pid)
{
    int status = 0;
    pid_t got = 0;
    while ((got = waitpid(-1, &status, 0)) > 0 || (got < 0 && errno == EINTR)) {
        if (got == pid) {
            seen.status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
        }
    }
    slurp(in_folder("stdout"), seen.out, sizeof seen.out);
    slurp(in_folder("stderr"), seen.err, sizeof seen.err);
}

static int
run_words(const char *const *words)
{
    wait_all(start(words));
    return seen.status;
}
#define CALL(...) run_words((const char *const[]){__VA_ARGS__, NULL})

static void
expect(int status, const char *part, const char *const *words)
{
    run_words(words);
    bool ok = seen.status == status && strstr(status == 0 ? seen.out : seen.err, part) != NULL;
    if (!ok) {
        fail_msg("%s %s %s: exit %d, expected %d with \"%s\"; stderr: %s; stdout: %.300s", words[0],
                 words[1], words[2], seen.status, status, part, seen.err, seen.out);
    }
}
#define EXPECT(status, part, ...)                                                                  \
    expect(status, part, (const char *const[]){__VA_ARGS__, NULL, NULL})

static void shell(const char *fmt, ...) SHL_PRINTF(1, 2);

static void
shell(const char *fmt, ...)
{
    char command[1024];
    va_list args;
    va_start(args, fmt);
    (void)vsnprintf(command, sizeof command, fmt, args);
    va_end(args);
    assert_int_equal(system(command), 0);
}

/* Nothing begun and not ended: no temporary folder, no folder set aside. */
static void
assert_tidy(const char *dir)
{
    shell("test -z \"$(ls -A '%s' | grep '^[.]')\"", dir);
}

/* --- killed runs --------------------------------------------------------------------------- */

static const char *const strategies[] = {"ddp", "zero1", "zero2", "zero3", "fsdp", "fsdp-grad-op"};

/* What the runs of a seed save at each step, when nothing happens to them. */
static const char *
reference_dir(uint64_t run_seed)
{
    return in_folder(run_seed == 1 ? "ref-1" : "ref-2");
}

static void
make_references(void)
{
    for (uint64_t s = 1; s <= 2; s++) {
        char last[24];
        (void)snprintf(last, sizeof last, "%d", LAST_STEP);
        assert_int_equal(CALL(RUN, "--seed", s == 1 ? "1" : "2", "--strategy",
                              strategies[shl_rng_u64(seed, 1, s) % 6], "--steps", last,
                              "--save-every", "1", "--ckpt-dir", reference_dir(s)),
                         0);
    }
}

/* A folder step-... is, bit for bit, what an undisturbed run of its seed saved at its step. */
static void
assert_as_reference(const char *path, shl_ckpt_meta *meta)
{
    char reference[256];
    int n_differ = -1;
    shl_ckpt_reader *a = NULL;
    shl_ckpt_reader *b = NULL;
    shl_code code = shl_ckpt_open(path, true, &a);
    if (code != SHL_OK) {
        fail_msg("%s: %s (%s)", path, shl_err_get()->what, shl_err_get()->because);
    }
    *meta = *shl_ckpt_reader_meta(a);
    (void)snprintf(reference, sizeof reference, "%s/step-%08lld", reference_dir(meta->seed),
                   (long long)meta->step);
    assert_int_equal(shl_ckpt_open(reference, true, &b), SHL_OK);
    assert_int_equal(meta->data_sample, shl_ckpt_reader_meta(b)->data_sample);
    assert_int_equal(shl_ckpt_diff(a, b, NULL, NULL, &n_differ), SHL_OK);
    assert_int_equal(n_differ, 0);
    assert_int_equal(shl_ckpt_check_file(a, shl_ckpt_n_files(a) - 1), SHL_OK); /* index.h5 */
    shl_ckpt_close(&a);
    shl_ckpt_close(&b);
}

/* Every folder is whole, and the newest is `old` or one that the dead run of new_seed could make. */
static shl_ckpt_meta
assert_old_or_new(const char *dir, const shl_ckpt_meta *old, uint64_t new_seed, int64_t new_from)
{
    shl_ckpt_meta now;
    shl_ckpt_step *steps = NULL;
    int n = 0;
    assert_int_equal(shl_ckpt_list(dir, &steps, &n), SHL_OK);
    for (int i = 0; i < n; i++) {
        char path[256];
        (void)snprintf(path, sizeof path, "%s/%s", dir, steps[i].name);
        assert_as_reference(path, &now);
    }
    shl_heap_free(&steps);
    assert_as_reference(dir, &now);
    bool is_old = now.seed == old->seed && now.step == old->step;
    bool is_new = now.seed == new_seed && now.step > new_from;
    assert_true(is_old || is_new);
    return now;
}

/* A run that goes on from `have`, or starts over with the other seed when that is at its end: then its
 * steps replace those that are there. Returns whether it starts over. */
static pid_t
start_victim(const char *dir, const shl_ckpt_meta *have, uint64_t round, bool *fresh,
             uint64_t *run_seed)
{
    char last[24];
    char seed_text[8];
    *fresh = have->step >= LAST_STEP;
    *run_seed = *fresh ? 3 - have->seed : have->seed;
    (void)snprintf(last, sizeof last, "%lld", *fresh ? 3LL : (long long)(have->step + 2));
    if (have->step + 2 > LAST_STEP && !*fresh) {
        (void)snprintf(last, sizeof last, "%d", LAST_STEP);
    }
    (void)snprintf(seed_text, sizeof seed_text, "%d", (int)*run_seed);
    const char *words[] = {RUN,
                           "--save-every",
                           "1",
                           "--ckpt-dir",
                           dir,
                           "--seed",
                           seed_text,
                           "--steps",
                           last,
                           "--launch",
                           round % 2 ? "processes" : "threads",
                           "--strategy",
                           strategies[shl_rng_u64(seed, 2, round) % 6],
                           *fresh ? NULL : "--resume",
                           NULL};
    return start(words);
}

/* What is there goes on, by any strategy; at the end of the trajectory there is nothing to do. */
static void
resume_one(const char *dir, shl_ckpt_meta *have, uint64_t round)
{
    char last[24];
    char seed_text[8];
    if (have->step >= LAST_STEP) {
        return;
    }
    (void)snprintf(last, sizeof last, "%lld", (long long)(have->step + 1));
    (void)snprintf(seed_text, sizeof seed_text, "%d", (int)have->seed);
    if (CALL(RUN, "--ckpt-dir", dir, "--resume", "--steps", last, "--seed", seed_text, "--strategy",
             strategies[shl_rng_u64(seed, 3, round) % 6]) != 0) {
        fail_msg("resume after a kill: exit %d: %s", seen.status, seen.err);
    }
    int64_t reached = have->step + 1;
    assert_as_reference(dir, have);
    assert_int_equal(have->step, reached);
    assert_tidy(dir);
}

static void
test_ckpt_program_killed_at_random(void **state)
{
    SHL_UNUSED(state);
    char dir[160];
    shl_ckpt_meta have;
    int moved = 0;
    int cut_short = 0;
    (void)snprintf(dir, sizeof dir, "%s", in_folder("killed"));
    make_references();
    shell("cp -r '%s' '%s'", reference_dir(1), dir);
    assert_as_reference(dir, &have);
    int64_t whole_ns[2] = {0, 0};
    for (uint64_t i = 0; i < (uint64_t)KILL_ROUNDS + 2; i++) {
        bool warm = i < 2; /* the first of each kind runs to its end, to know how long it takes */
        bool fresh = false;
        uint64_t run_seed = 0;
        int64_t from = have.step;
        int64_t begun = shl_clock_ns();
        pid_t pid = start_victim(dir, &have, i, &fresh, &run_seed);
        if (!warm) {
            double part = shl_rng_uniform(seed, 4, i) * 1.1;
            shl_clock_sleep_ns((int64_t)(part * (double)whole_ns[i % 2]));
            /* The parent alone or all at once: its ranks die with it. */
            (void)kill(shl_rng_u64(seed, 5, i) % 2 ? pid : -pid, SIGKILL);
        }
        wait_all(pid);
        whole_ns[i % 2] = warm ? shl_clock_ns() - begun : whole_ns[i % 2];
        if (seen.status != 0 && (warm || seen.status != 128 + SIGKILL)) {
            fail_msg("round %d: exit %d: %s", (int)i, seen.status, seen.err);
        }
        shl_ckpt_meta now = assert_old_or_new(dir, &have, run_seed, fresh ? 0 : from);
        moved += now.seed != have.seed || now.step != have.step;
        cut_short += seen.status != 0;
        have = now;
        resume_one(dir, &have, i);
    }
    print_message("%d rounds: %d killed before their end, %d had moved on\n", KILL_ROUNDS,
                  cut_short, moved);
    assert_true(cut_short > 0);
    assert_int_equal(shl_heap_live_blocks(), 0);
}

/* --- other misfortunes ---------------------------------------------------------------------- */

#define TINY "--steps", "2", "--strategy", "zero3"

/* One message with the bytes that are missing, nothing half-written, what was there stays. */
static void
expect_no_room(const char *dir, const char *keep)
{
    const char *first = strstr(seen.err, "error: ");
    if (seen.status != 5 || seen.out[0] || !first || strstr(first + 1, "error: ") ||
        !strstr(seen.err, "because: ") || !strstr(seen.err, "cannot write")) {
        fail_msg("exit %d: %s; stdout: %.100s", seen.status, seen.err, seen.out);
    }
    shell("diff -r '%s' '%s'", dir, keep);
}

/* A limit on the length of files: for the same step with other values, and for a step more. */
static void
test_ckpt_program_file_limit(void **state)
{
    SHL_UNUSED(state);
    char dir[160];
    char keep[160];
    (void)snprintf(dir, sizeof dir, "%s", in_folder("limit"));
    (void)snprintf(keep, sizeof keep, "%s", in_folder("limit-kept"));
    assert_int_equal(CALL(RUN, TINY, "--ckpt-dir", dir), 0);
    shell("cp -r '%s' '%s'", dir, keep);
    for (uint64_t i = 0; i < 6; i++) {
        file_limit = (rlim_t)((8 << 10) + shl_rng_u64(seed, 6, i) % (360 << 10));
        (void)CALL(RUN, "--strategy", i % 3 ? "fsdp" : "zero1", "--steps", i % 2 ? "3" : "2",
                   "--ckpt-dir", dir, i % 2 ? "--resume" : "--seed=7");
        file_limit = RLIM_INFINITY;
        expect_no_room(dir, keep);
    }
    assert_int_equal(CALL(RUN, "--steps", "3", "--ckpt-dir", dir, "--resume"), 0);
}

/* A real file system that is full, for ranks as threads and as processes. */
static void
test_ckpt_program_full_disk(void **state)
{
    SHL_UNUSED(state);
    char disk[160];
    char dir[192];
    char keep[160];
    (void)snprintf(disk, sizeof disk, "%s", in_folder("disk"));
    (void)snprintf(dir, sizeof dir, "%s/d", disk);
    (void)snprintf(keep, sizeof keep, "%s", in_folder("disk-kept"));
    assert_int_equal(mkdir(disk, 0700), 0);
    if (unshare(CLONE_NEWNS) != 0 || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0 ||
        mount("tmpfs", disk, "tmpfs", 0, "size=3m") != 0) {
        print_message("no file system may be mounted here\n");
        skip();
    }
    assert_int_equal(CALL(RUN, TINY, "--ckpt-dir", dir), 0);
    shell("cp -r '%s' '%s'", dir, keep);
    for (uint64_t i = 0; i < 6; i++) {
        int left_kib = (int)(shl_rng_u64(seed, 7, i) % 250);
        shell("fill=$(df -k --output=avail '%s' | tail -n 1); "
              "head -c $(((fill - %d) * 1024)) /dev/zero > '%s/filler'",
              disk, left_kib, disk);
        (void)CALL(RUN, "--strategy", i % 3 ? "zero3" : "ddp", "--steps", i % 2 ? "3" : "2",
                   "--ckpt-dir", dir, i % 2 ? "--resume" : "--seed=7", "--launch",
                   i < 3 ? "threads" : "processes");
        shell("rm '%s/filler'", disk);
        expect_no_room(dir, keep);
    }
    assert_int_equal(CALL(RUN, "--steps", "3", "--ckpt-dir", dir, "--resume"), 0);
    assert_int_equal(umount(disk), 0);
}

/* Two runs of the same steps, files of one put among those of the other: never read as one state. */
static void
test_ckpt_program_mixed_runs(void **state)
{
    SHL_UNUSED(state);
    static const char *const swapped[] = {"shard-00001-of-00002.h5", "manifest.json", "COMMIT"};
    char a[160];
    char b[160];
    (void)snprintf(a, sizeof a, "%s", in_folder("mix-a"));
    (void)snprintf(b, sizeof b, "%s", in_folder("mix-b"));
    assert_int_equal(CALL(RUN, TINY, "--save-every", "1", "--ckpt-dir", a), 0);
    assert_int_equal(CALL(RUN, TINY, "--save-every", "1", "--seed", "9", "--ckpt-dir", b), 0);
    for (size_t i = 0; i < SHL_ARRAY_LEN(swapped) * 2; i++) {
        const char *name = swapped[i / 2];
        const char *from = i % 2 ? a : b; /* another step of the run; the step of another run */
        shell("cp '%s/step-00000002/%s' '%s/keep'", a, name, a);
        shell("cp '%s/step-0000000%d/%s' '%s/step-00000002/%s'", from, i % 2 ? 1 : 2, name, a,
              name);
        const char *words[] = {RUN, "--steps", "4", "--ckpt-dir", a, "--resume", NULL};
        expect(1, i / 2 == 0 ? name : "step-00000002", words);
        assert_string_equal(seen.out, "");
        EXPECT(1, i / 2 == 0 ? name : "step-00000002", "ckpt", "verify", a);
        shell("mv '%s/keep' '%s/step-00000002/%s'", a, a, name);
    }
    EXPECT(0, "as they were saved", "ckpt", "verify", a);
}

static void
flip(const char *path, long at)
{
    FILE *f = fopen(path, "r+b");
    assert_non_null(f);
    assert_int_equal(fseek(f, at, SEEK_SET), 0);
    int byte = fgetc(f);
    assert_int_equal(fseek(f, at, SEEK_SET), 0);
    assert_true(fputc(byte ^ 1, f) != EOF);
    assert_int_equal(fclose(f), 0);
}

static void
test_ckpt_program_verify_names_the_damage(void **state)
{
    SHL_UNUSED(state);
    static const char *const names[] = {"shard-00000-of-00002.h5", "shard-00001-of-00002.h5",
                                        "index.h5", "manifest.json", "COMMIT"};
    char dir[160];
    char path[256];
    (void)snprintf(dir, sizeof dir, "%s", in_folder("damage"));
    assert_int_equal(CALL(RUN, TINY, "--ckpt-dir", dir), 0);
    EXPECT(0, "3 files are as they were saved", "ckpt", "verify", dir);
    for (size_t i = 0; i < SHL_ARRAY_LEN(names); i++) {
        (void)snprintf(path, sizeof path, "%s/step-00000002/%s", dir, names[i]);
        shell("cp '%s' '%s/keep'", path, dir);
        flip(path, 60);
        EXPECT(1, names[i], "ckpt", "verify", dir);
        assert_true((strstr(seen.out, "DAMAGED") != NULL) == (i < 3));
        if (i < 3) {
            EXPECT(1, names[i], "ckpt", "verify", dir, "--json");
            json_t *json = json_loads(seen.out, JSON_REJECT_DUPLICATES, NULL);
            assert_true(json_is_false(json_object_get(json, "ok")));
            const json_t *row = json_array_get(json_object_get(json, "files"), i < 2 ? i : 2);
            assert_true(json_is_false(json_object_get(row, "ok")));
            json_decref(json);
            assert_int_equal(truncate(path, 50), 0);
            EXPECT(1, "truncated", "ckpt", "verify", dir);
            assert_int_equal(unlink(path), 0);
            EXPECT(1, names[i], "ckpt", "verify", dir);
        }
        shell("mv '%s/keep' '%s'", dir, path);
    }
    EXPECT(0, "as they were saved", "ckpt", "verify", dir);
}

/* --- what ckpt says -------------------------------------------------------------------------- */

static void
test_ckpt_program_ls_and_info(void **state)
{
    SHL_UNUSED(state);
    char dir[160];
    (void)snprintf(dir, sizeof dir, "%s", in_folder("list"));
    assert_int_equal(CALL(RUN, TINY, "--save-every", "1", "--ckpt-dir", dir), 0);
    shell("mkdir '%s/step-00000009'", dir);
    flip(in_folder("list/step-00000001/manifest.json"), 9);
    EXPECT(0, "latest", "ckpt", "ls", dir);
    assert_non_null(strstr(seen.out, "step-00000001    damaged"));
    assert_non_null(strstr(seen.out, "step-00000002    complete   latest"));
    assert_non_null(strstr(seen.out, "step-00000009    incomplete"));
    EXPECT(0, "[", "ckpt", "ls", dir, "--json");
    json_t *json = json_loads(seen.out, JSON_REJECT_DUPLICATES, NULL);
    assert_int_equal(json_array_size(json), 3);
    const json_t *row = json_array_get(json, 1);
    assert_string_equal(json_string_value(json_object_get(row, "strategy")), "zero3");
    assert_int_equal(json_integer_value(json_object_get(row, "ranks")), 2);
    json_decref(json);
    EXPECT(0, "{", "ckpt", "info", dir, "--json");
    json = json_loads(seen.out, JSON_REJECT_DUPLICATES, NULL);
    assert_int_equal(json_integer_value(json_object_get(json, "step")), 2);
    int64_t params = json_integer_value(json_object_get(json, "params"));
    assert_true(json_integer_value(json_object_get(json, "bytes")) > 12 * params);
    assert_int_equal(json_array_size(json_object_get(json, "files")), 3);
    assert_true(json_is_object(json_object_get(json, "config")));
    json_decref(json);
    EXPECT(0, "opt/v   wte.weight", "ckpt", "info", dir, "--tensors");
    EXPECT(0, "zero3 on 2 ranks", "ckpt", "info", in_folder("list/step-00000002"));
}

static void
test_ckpt_program_diff(void **state)
{
    SHL_UNUSED(state);
    char a[160];
    char b[160];
    char c[160];
    (void)snprintf(a, sizeof a, "%s", in_folder("diff-a"));
    (void)snprintf(b, sizeof b, "%s", in_folder("diff-b"));
    (void)snprintf(c, sizeof c, "%s", in_folder("diff-c"));
    assert_int_equal(CALL(RUN, TINY, "--ckpt-dir", a), 0);
    assert_int_equal(CALL(RUN, "--steps", "2", "--strategy", "ddp", "--ckpt-dir", b), 0);
    assert_int_equal(CALL(RUN, TINY, "--lr", "0.002", "--ckpt-dir", c), 0);
    EXPECT(0, "equal to the bit", "ckpt", "diff", a, b); /* other layouts, one state */
    EXPECT(1, "first ", "ckpt", "diff", a, c, "--limit", "3");
    assert_non_null(strstr(seen.out, "other bits"));
    assert_non_null(strstr(seen.out, " more\n"));
    EXPECT(1, "differ", "ckpt", "diff", a, c, "--json");
    json_t *json = json_loads(seen.out, JSON_REJECT_DUPLICATES, NULL);
    const json_t *rows = json_object_get(json, "tensors");
    assert_true(json_array_size(rows) > 10);
    const json_t *row = json_array_get(rows, 0);
    assert_true(json_integer_value(json_object_get(row, "differ")) > 0);
    assert_true(json_real_value(json_object_get(row, "max_abs")) > 0.0);
    json_decref(json);
    assert_int_equal(CALL(RUN, "--steps", "2", "--layers", "2", "--ckpt-dir", in_folder("diff-d")),
                     0);
    EXPECT(1, "differ", "ckpt", "diff", a, in_folder("diff-d"), "--limit", "100");
    assert_non_null(strstr(seen.out, "only in B"));
}

static void
test_ckpt_program_refusals(void **state)
{
    SHL_UNUSED(state);
    EXPECT(2, "ls DIR", "ckpt");
    EXPECT(2, "verify", "ckpt", "verfy", folder);
    EXPECT(2, "diff A B", "ckpt", "diff", folder);
    EXPECT(2, "ls DIR", "ckpt", "ls", folder, folder);
    EXPECT(5, "nowhere", "ckpt", "ls", in_folder("nowhere"));
    EXPECT(5, "no checkpoint", "ckpt", "ls", folder);
    EXPECT(5, "nowhere", "ckpt", "info", in_folder("nowhere"));
    EXPECT(5, "nowhere", "ckpt", "verify", in_folder("nowhere"));
    assert_string_equal(seen.out, "");
}

static int
make_folder(void **state)
{
    SHL_UNUSED(state);
    (void)snprintf(folder, sizeof folder, "%s/shl-ckpt-program-XXXXXX",
                   access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
    return mkdtemp(folder) && find_program() && prctl(PR_SET_CHILD_SUBREAPER, 1) == 0 ? 0 : 1;
}

static int
remove_folder(void **state)
{
    SHL_UNUSED(state);
    char command[96];
    (void)snprintf(command, sizeof command, "rm -rf %s", folder);
    return system(command);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ckpt_program_killed_at_random),
        cmocka_unit_test(test_ckpt_program_file_limit),
        cmocka_unit_test(test_ckpt_program_full_disk),
        cmocka_unit_test(test_ckpt_program_mixed_runs),
        cmocka_unit_test(test_ckpt_program_verify_names_the_damage),
        cmocka_unit_test(test_ckpt_program_ls_and_info),
        cmocka_unit_test(test_ckpt_program_diff),
        cmocka_unit_test(test_ckpt_program_refusals),
    };
    seed = (uint64_t)time(NULL);
    print_message("seed %llu\n", (unsigned long long)seed);
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}

/* tests/bench: the doctor. Facts from trees of files made here, judgements of facts that are made up, and the
 * program from outside on a machine whose state is not known. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>
#include <jansson.h>

#include "bench/doctor.h"
#include "kernels/base/option.h"
#include "kernels/base/str.h"
#include "kernels/base/types.h"
#include "kernels/device/sanitize.h"
#include "tests/support/program.h"
#include "tests/support/temp_folder.h"

#define GIB (INT64_C(1) << 30)

static const shl_doctor_ask ask_two = {2, "gpt2-124m", 124439808, "/tmp"};

/* Writes a file below folder/tree, with the folders above it. */
static void
put(const char *tree, const char *path, const char *text)
{
    char full[512];
    shl_strf(full, sizeof(full), "%s/%s%s", folder, tree, path);
    for (char *p = full + strlen(folder) + 1; *p; p++) {
        if (*p == '/') {
            *p = '\0';
            assert_true(mkdir(full, 0700) == 0 || errno == EEXIST);
            *p = '/';
        }
    }
    FILE *f = fopen(full, "w");
    assert_non_null(f);
    assert_true(fputs(text, f) >= 0);
    assert_int_equal(fclose(f), 0);
}

static shl_doctor_facts
gather(const char *tree)
{
    char root[256];
    shl_doctor_facts f;
    shl_strf(root, sizeof(root), "%s/%s", folder, tree);
    shl_doctor_gather(&ask_two, root, &f);
    return f;
}

static void
test_doctor_second_groups_take_the_tightest(void **state)
{
    SHL_UNUSED(state);
    put("v2", "/proc/self/cgroup", "0::/outer/inner\n");
    put("v2", "/proc/meminfo",
        "MemTotal:       8388608 kB\nMemFree: 1 kB\nMemAvailable: 4194304 kB\n");
    put("v2", "/sys/fs/cgroup/outer/inner/memory.max", "max\n");
    put("v2", "/sys/fs/cgroup/outer/inner/cpu.max", "max 100000\n");
    put("v2", "/sys/fs/cgroup/outer/memory.max", "1073741824\n");
    put("v2", "/sys/fs/cgroup/outer/memory.current", "500000000\n");
    put("v2", "/sys/fs/cgroup/outer/memory.stat",
        "anon 5\ninactive_file 100000000\nactive_file 7\n");
    put("v2", "/sys/fs/cgroup/outer/cpu.max", "150000 100000\n");
    put("v2", "/sys/fs/cgroup/memory.max", "2147483648\n");
    put("v2", "/sys/fs/cgroup/cpu.max", "400000 100000\n");
    put("v2", "/proc/loadavg", "3.25 1.00 0.50 1/2 3\n");
    put("v2", "/sys/kernel/mm/transparent_hugepage/enabled", "always madvise [never]\n");
    shl_doctor_facts f = gather("v2");
    assert_true(f.ram_bytes == 8 * GIB && f.available_bytes == 4 * GIB);
    assert_true(f.limit_bytes == GIB);
    assert_true(f.used_bytes == 400000000);
    assert_true(f.quota > 1.49 && f.quota < 1.51);
    assert_true(f.load > 3.24 && f.load < 3.26);
    assert_string_equal(f.huge_pages, "never");
}

static void
test_doctor_first_groups_are_read_too(void **state)
{
    SHL_UNUSED(state);
    put("v1", "/proc/self/cgroup", "4:memory:/jobs/7\n3:cpu,cpuacct:/jobs\n2:cpuset:/\n");
    put("v1", "/sys/fs/cgroup/memory/jobs/7/memory.limit_in_bytes", "9223372036854771712\n");
    put("v1", "/sys/fs/cgroup/memory/jobs/memory.limit_in_bytes", "3221225472\n");
    put("v1", "/sys/fs/cgroup/memory/jobs/memory.usage_in_bytes", "1000\n");
    put("v1", "/sys/fs/cgroup/memory/jobs/memory.stat", "cache 9\ntotal_inactive_file 400\n");
    put("v1", "/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
    put("v1", "/sys/fs/cgroup/cpu,cpuacct/jobs/cpu.cfs_quota_us", "-1\n");
    put("v1", "/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "50000\n");
    put("v1", "/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n");
    shl_doctor_facts f = gather("v1");
    assert_true(f.limit_bytes == 3 * GIB);
    assert_true(f.used_bytes == 600);
    assert_true(f.quota > 0.49 && f.quota < 0.51);
    put("v1free", "/proc/self/cgroup", "4:memory:/\n");
    put("v1free", "/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
    f = gather("v1free");
    assert_true(f.limit_bytes == SHL_UNLIMITED);
}

static void
test_doctor_nothing_there_is_unknown(void **state)
{
    SHL_UNUSED(state);
    shl_doctor d;
    shl_doctor_facts f = gather("no-such-tree");
    assert_true(f.ram_bytes == SHL_UNKNOWN && f.available_bytes == SHL_UNKNOWN);
    assert_true(f.limit_bytes == SHL_UNKNOWN && f.shm_bytes == SHL_UNKNOWN);
    assert_true(f.quota <= 0.0 && f.load < 0.0);
    assert_string_equal(f.huge_pages, "");
    shl_doctor_judge(&ask_two, &f, &d);
    for (int i = 0; i < d.n; i++) {
        if (strcmp(d.checks[i].name, "memory") == 0 || strcmp(d.checks[i].name, "load") == 0 ||
            strcmp(d.checks[i].name, "huge pages") == 0) {
            assert_int_equal(d.checks[i].verdict, SHL_VERDICT_OK);
            assert_non_null(strstr(d.checks[i].value, "unknown"));
        }
    }
}

/* A machine that has everything. */
static shl_doctor_facts
good_facts(void)
{
    shl_doctor_facts f;
    memset(&f, 0, sizeof(f));
    f.cores = 4;
    f.ram_bytes = 64 * GIB;
    f.available_bytes = 60 * GIB;
    f.limit_bytes = SHL_UNLIMITED;
    f.used_bytes = SHL_UNKNOWN;
    f.shm_bytes = GIB;
    f.memlock_bytes = SHL_UNLIMITED;
    f.open_files = 1024;
    f.folder_bytes = 100 * GIB;
    f.h5_is_threadsafe = true;
    f.load = 0.1;
    shl_strf(f.folder, sizeof(f.folder), "/tmp");
    shl_strf(f.gnuplot, sizeof(f.gnuplot), "gnuplot 5.4");
    shl_strf(f.gnuplot_formats, sizeof(f.gnuplot_formats), "svg png");
    shl_strf(f.isa, sizeof(f.isa), "avx2");
    shl_strf(f.huge_pages, sizeof(f.huge_pages), "always");
    return f;
}

/* Judges; exactly `name` has the verdict, and everything else is OK. name NULL: everything is. */
static void
expect_only(const shl_doctor_ask *ask, const shl_doctor_facts *f, const char *name,
            shl_verdict verdict)
{
    shl_doctor d;
    bool found = name == NULL;
    shl_doctor_judge(ask, f, &d);
    for (int i = 0; i < d.n; i++) {
        const shl_check *c = &d.checks[i];
        bool is_it = name && strcmp(c->name, name) == 0;
        found = found || is_it;
        if (c->verdict != (is_it ? verdict : SHL_VERDICT_OK)) {
            fail_msg("%s is %s (expected %s of %s): %s", c->name, shl_verdict_name(c->verdict),
                     shl_verdict_name(verdict), name ? name : "none", c->value);
        }
        assert_true(c->value[0] && c->needed[0]);
        assert_true((c->fix[0] == '\0') == (c->verdict == SHL_VERDICT_OK));
    }
    assert_true(found);
}

static void
test_doctor_judges_each_fact(void **state)
{
    SHL_UNUSED(state);
    shl_doctor_facts f = good_facts();
    expect_only(&ask_two, &f, NULL, SHL_VERDICT_OK);
#define TRY_FACT(name, verdict, change)                                                            \
    do {                                                                                           \
        f = good_facts();                                                                          \
        change;                                                                                    \
        expect_only(&ask_two, &f, name, verdict);                                                  \
    } while (0)
    TRY_FACT("cores", SHL_VERDICT_WARN, f.cores = 1);
    TRY_FACT("cores", SHL_VERDICT_WARN, f.quota = 1.5);
    /* 1.85 GiB of state: twice that replicated. */
    TRY_FACT("memory", SHL_VERDICT_WARN, f.available_bytes = 3 * GIB);
    TRY_FACT("memory", SHL_VERDICT_FAIL, f.available_bytes = GIB);
    TRY_FACT("memory", SHL_VERDICT_FAIL, f.limit_bytes = GIB);
    TRY_FACT("memory", SHL_VERDICT_FAIL, (f.limit_bytes = 8 * GIB, f.used_bytes = 7 * GIB));
    TRY_FACT("memory", SHL_VERDICT_FAIL, (f.limit_bytes = GIB, f.used_bytes = 2 * GIB));
    TRY_FACT("shared memory", SHL_VERDICT_FAIL, f.shared_error = ENOSYS);
    TRY_FACT("open files", SHL_VERDICT_FAIL, f.open_files = 20);
    TRY_FACT("folder", SHL_VERDICT_WARN, f.folder_bytes = GIB);
    TRY_FACT("O_DIRECT", SHL_VERDICT_WARN, f.direct_error = EINVAL);
    TRY_FACT("gnuplot", SHL_VERDICT_WARN, f.gnuplot[0] = '\0');
    TRY_FACT("gnuplot", SHL_VERDICT_WARN, shl_strf(f.gnuplot_formats, 4, "svg"));
    TRY_FACT("HDF5", SHL_VERDICT_WARN, f.h5_is_threadsafe = false);
    TRY_FACT("instructions", SHL_VERDICT_WARN, shl_strf(f.isa, sizeof(f.isa), "base"));
    TRY_FACT("huge pages", SHL_VERDICT_WARN, shl_strf(f.huge_pages, 8, "never"));
    TRY_FACT("load", SHL_VERDICT_WARN, f.load = 3.0);
    TRY_FACT("OpenMP", SHL_VERDICT_WARN, shl_strf(f.omp_threads, 8, "4"));
    TRY_FACT("OpenMP", SHL_VERDICT_OK, shl_strf(f.omp_threads, 8, "2"));
    TRY_FACT("OpenMP", SHL_VERDICT_OK, shl_strf(f.omp_wait, 8, "active"));
    TRY_FACT("OpenMP", SHL_VERDICT_WARN, shl_strf(f.omp_bind, 8, "close"));
    TRY_FACT(NULL, SHL_VERDICT_OK, f.memlock_bytes = 65536);
    TRY_FACT(NULL, SHL_VERDICT_OK, f.shm_bytes = SHL_UNKNOWN);
    f = good_facts();
    shl_doctor_ask many = ask_two;
    many.ranks = 65;
    f.cores = 128;
    f.available_bytes = 1000 * GIB;
    expect_only(&many, &f, "cores", SHL_VERDICT_FAIL);
    f = good_facts();
    f.folder_error = f.direct_error = EACCES;
    shl_doctor d;
    shl_doctor_judge(&ask_two, &f, &d);
    assert_int_equal(shl_doctor_count(&d, SHL_VERDICT_FAIL), 1);
    assert_int_equal(shl_doctor_count(&d, SHL_VERDICT_WARN), 1);
}

/* ---- the program ---- */

static char out[1 << 16], err[1 << 14];

static void
slurp(const char *name, char *dst, size_t dst_bytes)
{
    char path[256];
    shl_strf(path, sizeof(path), "%s/%s", folder, name);
    FILE *f = fopen(path, "r");
    assert_non_null(f);
    dst[fread(dst, 1, dst_bytes - 1, f)] = '\0';
    (void)fclose(f);
}

/* Runs a shell line in the folder with $P as the program; its exit status. */
static int
run(const char *line)
{
    char command[4096];
    shl_strf(command, sizeof(command), "cd %s && P='%s' && (%s) >out 2>err", folder, program, line);
    int status = system(command);
    slurp("out", out, sizeof(out));
    slurp("err", err, sizeof(err));
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128;
}

static int
count(const char *text, const char *start)
{
    int n = 0;
    for (const char *line = text; *line; line += strcspn(line, "\n") + 1) {
        n += strncmp(line, start, strlen(start)) == 0;
        if (!strchr(line, '\n')) {
            break;
        }
    }
    return n;
}

static void
test_doctor_says_the_same_in_lines_and_json(void **state)
{
    SHL_UNUSED(state);
    int status = run("\"$P\" doctor --model gpt2-tiny --ranks 1 --out a/b/c");
    int fails = count(out, "FAIL "), all = fails + count(out, "OK ") + count(out, "WARN ");
    assert_true(all >= 13);
    assert_int_equal(status, fails > 0);
    assert_int_equal(count(err, "error: "), fails > 0);
    assert_int_equal(count(out, "                     fix: "), all - count(out, "OK "));
    assert_int_equal(access("a", F_OK), -1);
    assert_int_equal(run("\"$P\" doctor --model gpt2-tiny --ranks 1 --out a/b/c --json"), status);
    json_error_t where;
    json_t *report = json_loads(out, JSON_REJECT_DUPLICATES, &where);
    assert_non_null(report);
    json_t *checks = json_object_get(report, "checks"), *row;
    size_t i;
    assert_int_equal(json_array_size(checks), all);
    json_array_foreach(checks, i, row)
    {
        bool ok = strcmp(json_string_value(json_object_get(row, "verdict")), "OK") == 0;
        assert_int_equal(json_is_null(json_object_get(row, "fix")), ok);
    }
    json_decref(report);
    assert_int_equal(run("test ! -e a && ls -A | grep doctor"), 1);
}

static void
test_doctor_fails_with_the_code_and_the_fix(void **state)
{
    SHL_UNUSED(state);
    assert_int_equal(run("\"$P\" doctor --model gpt2-tiny --out /proc/none/such"), 1);
    assert_int_equal(count(out, "FAIL  folder"), 1);
    assert_non_null(strstr(err, "error: "));
    assert_non_null(strstr(err, "because: folder"));
    assert_non_null(strstr(err, "try: --out"));
    assert_int_equal(run("\"$P\" doctor --model gpt2-tiny --out /dev/null"), 1);
    assert_int_equal(run("\"$P\" doctor --model gpt2-tiny --ranks 65"), 1);
    assert_int_equal(count(out, "FAIL  cores"), 1);
    if (!SHL_ASAN && !SHL_TSAN) {
        assert_int_equal(run("ulimit -n 20; \"$P\" doctor --model gpt2-tiny"), 1);
        assert_int_equal(count(out, "FAIL  open files"), 1);
    }
    assert_int_equal(run("\"$P\" doctor --ranks 0"), 2);
    assert_int_equal(run("\"$P\" doctor --model gpt2-tine"), 2);
    assert_non_null(strstr(err, "try: --model gpt2-tiny"));
    assert_int_equal(run("\"$P\" doctor --rank 2"), 2);
    assert_non_null(strstr(err, "--ranks"));
}

static void
test_doctor_works_with_an_empty_environment(void **state)
{
    SHL_UNUSED(state);
    int status = run("env -i PATH=/nowhere \"$P\" doctor --model gpt2-tiny --ranks 1");
    assert_int_equal(status, count(out, "FAIL ") > 0);
    assert_int_equal(count(out, "WARN  gnuplot"), 1);
    assert_non_null(strstr(out, "apt-get install gnuplot"));
    (void)run("OMP_NUM_THREADS=4096 \"$P\" doctor --model gpt2-tiny --ranks 1");
    assert_int_equal(count(out, "WARN  OpenMP"), 1);
    assert_non_null(strstr(out, "OMP_NUM_THREADS 4096"));
}

static int
set_up(void **state)
{
    return find_program() ? make_folder(state) : 1;
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_doctor_second_groups_take_the_tightest),
        cmocka_unit_test(test_doctor_first_groups_are_read_too),
        cmocka_unit_test(test_doctor_nothing_there_is_unknown),
        cmocka_unit_test(test_doctor_judges_each_fact),
        cmocka_unit_test(test_doctor_says_the_same_in_lines_and_json),
        cmocka_unit_test(test_doctor_fails_with_the_code_and_the_fix),
        cmocka_unit_test(test_doctor_works_with_an_empty_environment),
    };
    return cmocka_run_group_tests(tests, set_up, remove_folder);
}

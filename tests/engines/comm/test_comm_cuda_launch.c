/* tests/engines/comm: ranks that launchers start: their variables, meeting over TCP, control calls and nccl
 * over that channel, and ranks that do not come, are of another run, or die. The program starts itself
 * with the variables of a launcher; such a process plays a scene and appends how it ended to a file. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <fcntl.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "engines/api/shardlab.h"
#include "engines/comm/launch.h"
#include "kernels/base/clock.h"
#include "kernels/base/heap.h"
#include "kernels/base/str.h"
#include "kernels/base/types.h"
#include "tests/support/comm_battery.h"

#define TIMEOUT_MS 500
#define CALM_MS 20000

/* --- scenes: inside a rank ----------------------------------------------------------------- */

#define EXPECT(cond)                                                                               \
    do {                                                                                           \
        if (!(cond)) {                                                                             \
            return SHL_RAISE(SHL_E_VERIFY, "%s", #cond);                                           \
        }                                                                                          \
    } while (0)

static shl_code
check_control(shl_comm *c)
{
    int n = shl_comm_size(c), rank = shl_comm_rank(c);
    for (int i = 0; i < 20; i++) {
        double x[2] = {0.1 * (rank + 1), i};
        double want = 0.1;
        for (int q = 1; q < n; q++) {
            want += 0.1 * (q + 1);
        }
        SHL_TRY(shl_comm_control(c, SHL_CONTROL_SUM_F64, x, 2));
        EXPECT(memcmp(&x[0], &want, sizeof want) == 0 && (int)x[1] == n * i);
        SHL_TRY(shl_comm_barrier(c));
    }
    shl_code mine = rank == n - 1 ? SHL_RAISE(SHL_E_IO, "disk is full") : SHL_OK;
    shl_code agreed = shl_comm_agree(c, mine, "save");
    EXPECT(agreed == SHL_E_IO);
    EXPECT(rank == n - 1 || strstr(shl_err_get()->what, "failed in save: disk is full") != NULL);
    shl_err_clear();
    return shl_comm_agree(c, SHL_OK, "go on");
}

/* Groups, one inside the other, and gone again. */
static shl_code
check_groups(cb_rank *r)
{
    int rank = shl_comm_rank(r->comm);
    const int64_t elems = 50;
    for (int i = 0; i < 4; i++) {
        shl_comm *half = NULL, *one = NULL;
        SHL_TRY(shl_comm_split(r->comm, rank % 2, rank, &half));
        shl_code code = shl_comm_split(r->comm, rank == 0 ? -1 : 1, 0, &one);
        code = code == SHL_OK ? check_control(half) : code;
        code = code == SHL_OK && one != NULL ? check_control(one) : code;
        code = code == SHL_OK
                   ? cb_case(r, half, SHL_COLL_ALL_REDUCE, &elems, 1, true, SHL_STREAM_COMM)
                   : code;
        shl_comm_close(&one);
        shl_comm_close(&half);
        SHL_TRY(shl_comm_agree(r->comm, code, "groups"));
    }
    return SHL_OK;
}

static shl_code
scene_work(shl_world *w)
{
    cb_rank r;
    const int64_t elems = 500;
    SHL_TRY(cb_open_kind(w, "cuda", "nccl-ordered", 0, 0, &r));
    shl_code code = check_control(r.comm);
    for (int kind = 0; kind < SHL_COLL_CONTROL && code == SHL_OK; kind++) {
        code = cb_case(&r, r.comm, (shl_coll)kind, &elems, 1, kind % 2 == 0, SHL_STREAM_COMM);
    }
    code = code == SHL_OK ? check_groups(&r) : code;
    return cb_close(&r, code);
}

/* Steps until one fails; `slow`: rank 1 does not come to the third. */
static shl_code
scene_loop(shl_world *w, bool slow)
{
    cb_rank r;
    const int64_t elems = 300;
    shl_code code = SHL_OK;
    SHL_TRY(cb_open_kind(w, "cuda", "nccl", 0, 0, &r));
    for (int i = 0; i < 20 && code == SHL_OK; i++) {
        if (slow && i == 2 && shl_world_rank(w) == 1) {
            shl_clock_sleep_ns((TIMEOUT_MS + 600) * INT64_C(1000000));
        }
        (void)!cb_case(&r, r.comm, SHL_COLL_ALL_REDUCE, &elems, 1, true, SHL_STREAM_COMM);
        code = shl_comm_agree(r.comm, SHL_OK, "step");
    }
    return cb_close(&r, code);
}

static shl_code
scene_shm(shl_world *w)
{
    cb_rank r;
    return cb_open_kind(w, "cpu", "shm", 0, 0, &r);
}

/* How a rank ended, for the test that started it. */
static int
tell_end(int rank, int code, const char *what, const char *because, const char *advice,
         const char *path)
{
    char line[1700];
    int64_t left = shl_heap_live_blocks();
    shl_strf(line, sizeof line, "%d %d %lld %s|%s|%s\n", rank, code, (long long)left, what, because,
             advice);
    int fd = open(path, O_WRONLY | O_APPEND);
    return fd >= 0 && write(fd, line, strlen(line)) == (ssize_t)strlen(line) ? 0 : 1;
}

/* A program on the public header: one step, whose loss stands where others tell an error. */
static int
lab_main(int64_t timeout_ms, const char *path)
{
    char loss[64] = "";
    int32_t text[9];
    shl_lab_options o;
    shl_lab_step_report report = {.struct_bytes = sizeof report};
    shl_lab_error e = {.struct_bytes = sizeof e};
    shl_lab_world *world = NULL;
    shl_lab *lab = NULL;
    int code = shl_lab_world_meet(timeout_ms, &world), rank = shl_lab_world_rank(world);
    for (int i = 0; i < 9; i++) {
        text[i] = (5 * i + rank) % 17;
    }
    (void)shl_lab_options_init(&o, sizeof o);
    o.layers = 1;
    o.width = 16;
    o.heads = 2;
    o.vocab = 17;
    o.context = o.seq = 8;
    o.batch = 1;
    o.strategy = "zero3";
    o.device = "cuda";
    if (code == SHL_LAB_OK && world && (code = shl_lab_initialize(&o, world, &lab)) == SHL_LAB_OK &&
        (code = shl_lab_forward(lab, text, text + 1, NULL)) == SHL_LAB_OK &&
        (code = shl_lab_backward(lab)) == SHL_LAB_OK) {
        code = shl_lab_step(lab, &report);
    }
    shl_lab_error_get(lab, &e);
    shl_strf(loss, sizeof loss, "%a of %d", report.loss, shl_lab_world_size(world));
    int closed = shl_lab_close(&lab);
    shl_lab_world_leave(&world, code);
    code = code == SHL_LAB_OK ? closed : code;
    return tell_end(rank, code, code == SHL_LAB_OK ? loss : e.what, e.because ? e.because : "", "",
                    path);
}

static int
rank_main(const shl_launch *l, const char *scene, int64_t timeout_ms, const char *path)
{
    shl_world *w = NULL;
    shl_code code = shl_world_meet(l, timeout_ms, &w);
    if (code == SHL_OK) {
        code = strcmp(scene, "work") == 0  ? scene_work(w)
               : strcmp(scene, "shm") == 0 ? scene_shm(w)
                                           : scene_loop(w, strcmp(scene, "slow") == 0);
    }
    shl_err err = *shl_err_get();
    shl_world_leave(&w, code);
    return tell_end(l->rank, (int)code, code == SHL_OK ? "" : err.what,
                    code == SHL_OK ? "" : err.because, code == SHL_OK ? "" : err.advice, path);
}

/* --- starting ranks as launchers do -------------------------------------------------------- */

static const char all_names[] =
    "SHL_RANK SHL_RANKS SHL_LOCAL_RANK SHL_MASTER SHL_JOB RANK WORLD_SIZE LOCAL_RANK "
    "LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT TORCHELASTIC_USE_AGENT_STORE "
    "TORCHELASTIC_RUN_ID OMPI_COMM_WORLD_RANK OMPI_COMM_WORLD_SIZE "
    "OMPI_COMM_WORLD_LOCAL_RANK OMPI_COMM_WORLD_LOCAL_SIZE PMIX_NAMESPACE PMI_RANK PMI_SIZE "
    "MPI_LOCALRANKID MPI_LOCALNRANKS SLURM_PROCID SLURM_NTASKS SLURM_LOCALID SLURM_JOB_ID "
    "SLURM_STEP_ID SLURM_STEP_NODELIST ";

static void
clear_names(void)
{
    char name[64];
    for (int at = 0, n = 0; sscanf(all_names + at, "%63s%n", name, &n) == 1; at += n) {
        unsetenv(name);
    }
}

static void
put(const char *name, int64_t value)
{
    char text[32];
    shl_strf(text, sizeof text, "%lld", (long long)value);
    setenv(name, text, 1);
}

/* A port that nobody has now. */
static int
free_port(void)
{
    struct sockaddr_in at = {.sin_family = AF_INET};
    socklen_t n = sizeof at;
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&at, n), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&at, &n), 0);
    close(fd);
    return ntohs(at.sin_port);
}

typedef enum launcher { OURS = 0, TORCHRUN, OPEN_MPI, MPICH, SLURM, LAUNCHERS } launcher;

/* The variables of one rank. */
static void
put_place(launcher kind, int rank, int ranks, int port)
{
    static const char *const names[LAUNCHERS][3] = {
        {"SHL_RANK", "SHL_RANKS", "SHL_LOCAL_RANK"},
        {"RANK", "WORLD_SIZE", "LOCAL_RANK"},
        {"OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"},
        {"PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"},
        {"SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"}};
    char master[64];
    clear_names();
    put(names[kind][0], rank);
    put(names[kind][1], ranks);
    put(names[kind][2], rank);
    if (kind == OURS) {
        shl_strf(master, sizeof master, "localhost:%d", port);
        setenv("SHL_MASTER", master, 1);
        return;
    }
    put("MASTER_PORT", kind == TORCHRUN ? port - 1 : port);
    if (kind == TORCHRUN) {
        setenv("TORCHELASTIC_USE_AGENT_STORE", "True", 1);
        setenv("MASTER_ADDR", "127.0.0.1", 1);
    } else if (kind == SLURM) {
        setenv("SLURM_STEP_NODELIST", "localhost,other[3-5]", 1);
        setenv("SLURM_JOB_ID", "17", 1);
    } else {
        put(kind == OPEN_MPI ? "OMPI_COMM_WORLD_LOCAL_SIZE" : "MPI_LOCALNRANKS", ranks);
    }
}

typedef struct outcome {
    int64_t ns;
    struct {
        shl_code code; /* -1: wrote nothing */
        char text[1600];
    } rank[8];
} outcome;

static pid_t
start(const char *scene, int64_t timeout_ms, const char *path)
{
    char limit[32];
    shl_strf(limit, sizeof limit, "%lld", (long long)timeout_ms);
    pid_t pid = fork();
    if (pid == 0) {
        execl("/proc/self/exe", "test", scene, limit, path, (char *)NULL);
        _exit(127);
    }
    assert_true(pid > 0);
    return pid;
}

/* Ranks [first, ranks) but `without`. */
static void
run(launcher kind, int ranks, int without, int64_t timeout_ms, const char *scene, outcome *o)
{
    char path[] = "/tmp/shardlab-launch-XXXXXX", line[1800];
    int fd = mkstemp(path), port = free_port();
    pid_t pid[8];
    assert_true(fd >= 0);
    close(fd);
    memset(o, 0, sizeof *o);
    int64_t start_ns = shl_clock_ns();
    for (int r = 0; r < ranks; r++) {
        o->rank[r].code = (shl_code)-1;
        put_place(kind, r, ranks, port);
        pid[r] = r == without ? 0 : start(scene, timeout_ms, path);
    }
    clear_names();
    for (int r = 0; r < ranks; r++) {
        if (pid[r] > 0) {
            assert_int_equal(waitpid(pid[r], NULL, 0), pid[r]);
        }
    }
    o->ns = shl_clock_ns() - start_ns;
    FILE *f = fopen(path, "r");
    assert_non_null(f);
    while (fgets(line, sizeof line, f) != NULL) {
        int rank = -1, code = -1, at = 0;
        long long left = 0;
        assert_int_equal(sscanf(line, "%d %d %lld %n", &rank, &code, &left, &at), 3);
        assert_int_equal(left, 0);
        o->rank[rank].code = (shl_code)code;
        shl_strf(o->rank[rank].text, sizeof o->rank[rank].text, "%s", line + at);
    }
    fclose(f);
    unlink(path);
}

static void
assert_rank(const outcome *o, int rank, shl_code code, const char *part)
{
    if (o->rank[rank].code != code || strstr(o->rank[rank].text, part) == NULL) {
        print_error("rank %d: code %d, %s\n", rank, (int)o->rank[rank].code, o->rank[rank].text);
    }
    assert_int_equal(o->rank[rank].code, code);
    assert_non_null(strstr(o->rank[rank].text, part));
}

/* --- the tests ----------------------------------------------------------------------------- */

static void
test_comm_launch_reads_each_launchers_variables(void **state)
{
    (void)state;
    static const char *const names[LAUNCHERS] = {"SHL_RANK", "torchrun", "Open MPI", "MPICH",
                                                 "Slurm"};
    shl_launch l;
    clear_names();
    assert_int_equal(shl_launch_find(&l), SHL_OK);
    assert_null(l.launcher);
    for (launcher k = OURS; k < LAUNCHERS; k++) {
        put_place(k, 2, 3, 4242);
        assert_int_equal(shl_launch_find(&l), SHL_OK);
        assert_string_equal(l.launcher, names[k]);
        assert_int_equal(l.rank * 100 + l.ranks * 10 + l.local_rank, 232);
        assert_int_equal(l.port, 4242);
        assert_string_equal(l.address, k == OURS || k == SLURM ? "localhost" : "127.0.0.1");
    }
    put_place(SLURM, 0, 2, 4242);
    setenv("SLURM_STEP_NODELIST", "gpu[07-12,15],login", 1);
    unsetenv("MASTER_PORT");
    assert_int_equal(shl_launch_find(&l), SHL_OK);
    assert_string_equal(l.address, "gpu07");
    assert_true(l.port >= 20000 && l.port < 40000);
    clear_names();
}

static void
test_comm_launch_refuses_what_makes_no_sense(void **state)
{
    (void)state;
    shl_launch l;
    put_place(TORCHRUN, 1, 2, 4242);
    setenv("OMPI_COMM_WORLD_RANK", "0", 1);
    setenv("OMPI_COMM_WORLD_SIZE", "2", 1);
    assert_int_equal(shl_launch_find(&l), SHL_E_USAGE);
    assert_non_null(strstr(shl_err_get()->because, "torchrun says 1 of 2, Open MPI says 0 of 2"));
    /* A batch script's own rank is no second opinion. */
    put_place(OPEN_MPI, 1, 2, 4242);
    setenv("SLURM_PROCID", "0", 1);
    setenv("SLURM_NTASKS", "1", 1);
    assert_int_equal(shl_launch_find(&l), SHL_OK);
    put_place(MPICH, 1, 2, 4242);
    unsetenv("MPI_LOCALNRANKS");
    assert_int_equal(shl_launch_find(&l), SHL_E_USAGE);
    assert_non_null(strstr(shl_err_get()->advice, "SHL_MASTER"));
    put_place(OURS, 1, 2, 4242);
    setenv("SHL_RANK", "x", 1);
    assert_int_equal(shl_launch_find(&l), SHL_E_USAGE);
    put_place(OURS, 1, 2, 4242);
    setenv("SHL_MASTER", "node1", 1);
    assert_int_equal(shl_launch_find(&l), SHL_E_USAGE);
    clear_names();
}

static void
test_comm_launch_works_under_each_launcher(void **state)
{
    (void)state;
    for (launcher k = OURS; k < LAUNCHERS; k++) {
        outcome o;
        int ranks = 2 + (int)k % 3;
        run(k, ranks, -1, CALM_MS, "work", &o);
        for (int r = 0; r < ranks; r++) {
            assert_rank(&o, r, SHL_OK, "");
        }
    }
}

static void
test_comm_launch_names_who_does_not_come(void **state)
{
    (void)state;
    outcome o;
    run(OURS, 3, 2, TIMEOUT_MS, "work", &o);
    assert_rank(&o, 0, SHL_E_PEER, "1 of 3 ranks have not come to localhost:");
    assert_rank(&o, 0, SHL_E_PEER, "missing are rank 2");
    assert_rank(&o, 1, SHL_E_PEER, "gave rank 1 no answer");
    run(OURS, 2, 0, TIMEOUT_MS, "work", &o);
    assert_rank(&o, 1, SHL_E_PEER, "rank 1 cannot reach rank 0 at localhost:");
    run(TORCHRUN, 3, -1, TIMEOUT_MS, "slow", &o);
    for (int r = 0; r < 3; r += 2) {
        assert_rank(&o, r, SHL_E_PEER, "rank 1 has not entered all_reduce #3 of 1200 bytes");
        assert_rank(&o, r, SHL_E_PEER, "rank 1 is at #2");
    }
    assert_rank(&o, 1, SHL_E_PEER, "rank 1 has not entered all_reduce #3");
}

static void
test_comm_launch_names_a_rank_that_dies(void **state)
{
    (void)state;
    outcome o;
    setenv("SHL_MOCK_NCCL", "die:1:3", 1);
    run(SLURM, 3, -1, CALM_MS, "loop", &o);
    assert_rank(&o, 0, SHL_E_PEER, "rank 1 died: its connection ended");
    assert_rank(&o, 2, SHL_E_PEER, "rank 1 died: its connection ended");
    assert_true(o.ns < INT64_C(5000000000));
    setenv("SHL_MOCK_NCCL", "die:0:3", 1);
    run(SLURM, 3, -1, CALM_MS, "loop", &o);
    assert_rank(&o, 1, SHL_E_PEER, "rank 0 died: its connection ended");
    assert_rank(&o, 2, SHL_E_PEER, "rank 0 died: its connection ended");
    assert_true(o.ns < INT64_C(5000000000));
    unsetenv("SHL_MOCK_NCCL");
}

/* Rank 0 of one run is met by a rank of another, and by a rank twice. */
static void
test_comm_launch_keeps_runs_apart(void **state)
{
    (void)state;
    char path[] = "/tmp/shardlab-launch-XXXXXX", text[4096] = "";
    int fd = mkstemp(path), port = free_port();
    pid_t pid[3];
    for (int i = 0; i < 3; i++) {
        put_place(OURS, i > 0, 3, port);
        setenv("SHL_JOB", i == 2 ? "second" : "first", 1);
        pid[i] = start("work", TIMEOUT_MS, path);
    }
    clear_names();
    for (int i = 0; i < 3; i++) {
        assert_int_equal(waitpid(pid[i], NULL, 0), pid[i]);
    }
    assert_true(read(fd, text, sizeof text - 1) > 0);
    close(fd);
    unlink(path);
    assert_non_null(strstr(text, "rank 1 was refused at localhost:"));
    assert_non_null(strstr(text, "rank 0 there is of another run"));
    assert_non_null(strstr(text, "missing are rank 2"));
}

static void
test_comm_launch_is_no_world_for_shm(void **state)
{
    (void)state;
    outcome o;
    run(OURS, 2, -1, CALM_MS, "shm", &o);
    assert_rank(&o, 0, SHL_E_USAGE, "communicator shm is for ranks of one machine");
    assert_rank(&o, 1, SHL_E_USAGE, "communicator shm is for ranks of one machine");
}

/* The public header's program under torchrun: the ranks are of one world and one loss. Alone, it is no rank. */
static void
test_comm_launch_is_joined_by_the_public_header(void **state)
{
    (void)state;
    outcome o;
    shl_lab_world *world = NULL;
    clear_names();
    assert_int_equal(shl_lab_world_meet(0, &world), SHL_LAB_OK);
    assert_null(world);
    assert_int_equal(shl_lab_world_meet(0, NULL), SHL_LAB_E_USAGE);
    run(TORCHRUN, 2, -1, CALM_MS, "lab", &o);
    assert_rank(&o, 0, SHL_OK, " of 2|");
    assert_rank(&o, 1, SHL_OK, " of 2|");
    assert_string_equal(o.rank[0].text, o.rank[1].text);
    assert_null(strstr(o.rank[0].text, "0x0p"));
    run(OURS, 2, 1, TIMEOUT_MS, "lab", &o);
    assert_rank(&o, 0, SHL_E_PEER, "1 of 2 ranks have not come to localhost:");
}

/* The program's own word for what it trained, of all rows; all of its output is read. */
static void
take_hash(FILE *f, char *out, size_t cap)
{
    static const char key[] = "\"param_hash\":\"";
    static char line[1 << 16];
    out[0] = '\0';
    while (fgets(line, sizeof line, f) != NULL) {
        const char *at = strstr(line, key);
        if (at != NULL) {
            size_t used = strlen(out);
            shl_strf(out + used, cap - used, "%.16s", at + strlen(key));
        }
    }
}

#define WORDS                                                                                      \
    "train --model gpt2-tiny --strategy zero3,ddp --ranks 2 --steps 1 --batch 1 --seq 8 "          \
    "--device cuda --jsonl --comm"

/* Two processes of the program, started as torchrun does, and what the first tells: the second tells nothing.
 * Each sees its own card only, as some launchers have it, or both have the first together. */
static void
train_as_two(const char *comm, bool one_card, char *out, size_t cap)
{
    char command[512], second[64];
    int port = free_port();
    FILE *f[2];
    shl_strf(command, sizeof command, "%s " WORDS " %s 2>&1", getenv("SHL_PROGRAM"), comm);
    setenv("SHL_EMULATED_DEVICES", "1", 1);
    for (int r = 0; r < 2; r++) {
        put_place(TORCHRUN, r, 2, port);
        put("SHL_EMULATED_FIRST", one_card ? 0 : r);
        f[r] = popen(command, "r");
    }
    clear_names();
    setenv("SHL_EMULATED_DEVICES", "4", 1);
    unsetenv("SHL_EMULATED_FIRST");
    take_hash(f[0], out, cap);
    take_hash(f[1], second, sizeof second);
    assert_string_equal(second, "");
    assert_int_equal(pclose(f[0]), 0);
    assert_int_equal(pclose(f[1]), 0);
}

/* Two processes end with the parameters of two threads, in each row of a sweep: the ranks meet again for it.
 * On one card NCCL takes them for ranks of two machines. */
static void
test_comm_launch_trains_as_threads_do(void **state)
{
    (void)state;
    char command[512], local[64], launched[64];
    if (getenv("SHL_PROGRAM") == NULL) {
        skip();
    }
    clear_names();
    shl_strf(command, sizeof command, "%s " WORDS " local 2>&1", getenv("SHL_PROGRAM"));
    FILE *f = popen(command, "r");
    take_hash(f, local, sizeof local);
    assert_int_equal(pclose(f), 0);
    assert_int_equal(strlen(local), 32);
    train_as_two("nccl-ordered", false, launched, sizeof launched);
    assert_string_equal(launched, local);
    setenv("SHL_MOCK_NCCL", "card", 1);
    train_as_two("nccl-ordered --share-gpu", true, launched, sizeof launched);
    unsetenv("SHL_MOCK_NCCL");
    assert_string_equal(launched, local);
}

int
main(int argc, char **argv)
{
    setenv("SHL_EMULATED_DEVICES", "4", 1);
    if (argc == 4) {
        shl_launch l;
        if (strcmp(argv[1], "lab") == 0) {
            return lab_main(strtoll(argv[2], NULL, 10), argv[3]);
        }
        if (shl_launch_find(&l) != SHL_OK || l.launcher == NULL) {
            return 2;
        }
        return rank_main(&l, argv[1], strtoll(argv[2], NULL, 10), argv[3]);
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_comm_launch_reads_each_launchers_variables),
        cmocka_unit_test(test_comm_launch_refuses_what_makes_no_sense),
        cmocka_unit_test(test_comm_launch_works_under_each_launcher),
        cmocka_unit_test(test_comm_launch_names_who_does_not_come),
        cmocka_unit_test(test_comm_launch_names_a_rank_that_dies),
        cmocka_unit_test(test_comm_launch_keeps_runs_apart),
        cmocka_unit_test(test_comm_launch_is_no_world_for_shm),
        cmocka_unit_test(test_comm_launch_is_joined_by_the_public_header),
        cmocka_unit_test(test_comm_launch_trains_as_threads_do),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* engines/api: opening and closing a handle, its errors, and the agreements of its rank with others. */
#include "engines/api/lab.h"

#include <string.h>

#include <jansson.h>

#include "engines/comm/launch.h"
#include "kernels/base/heap.h"
#include "kernels/base/str.h"

/* The public numbers are an ABI; ours may be renumbered, and then this file translates. */
#define SAME_CODE(name)                                                                            \
    _Static_assert((int)SHL_LAB_##name == (int)SHL_##name, "public and own codes are one table")
SAME_CODE(OK);
SAME_CODE(E_VERIFY);
SAME_CODE(E_USAGE);
SAME_CODE(E_CONFIG);
SAME_CODE(E_OOM);
SAME_CODE(E_INCONCLUSIVE);
SAME_CODE(E_IO);
SAME_CODE(E_PEER);
SAME_CODE(E_SYSTEM);
SAME_CODE(E_HEAP);
SAME_CODE(E_BUG);
SAME_CODE(E_NOT_COMPARABLE);
SAME_CODE(E_INTERRUPTED);
_Static_assert((int)SHL_LAB_E_INTERRUPTED + 1 == (int)SHL_CODE_COUNT, "every code is public");
_Static_assert(SHL_LAB_IGNORE == SHL_IGNORE_INDEX, "a target that does not count");

#define LARGEST_STRUCT_BYTES ((size_t)1 << 16)

const char *
shl_lab_version(void)
{
    return SHL_LAB_VERSION;
}

/* --- errors ------------------------------------------------------------------------------ */

shl_code
shl_lab_code_from(int code)
{
    return code >= 0 && code < (int)SHL_CODE_COUNT ? (shl_code)code : SHL_E_SYSTEM;
}

const char *
shl_lab_code_name(int code)
{
    return shl_code_name(shl_lab_code_from(code));
}

void
shl_lab_error_get(const shl_lab *lab, shl_lab_error *out)
{
    if (!out) {
        return;
    }
    const shl_err *err = lab ? &lab->err : shl_err_get();
    shl_lab_error ours = {
        .code = (int)err->code,
        .what = err->what,
        .because = err->because,
        .advice = err->advice,
        .trace = err->trace,
    };
    size_t bytes = out->struct_bytes;
    /* It must not fail: what does not fit is left out. */
    bytes = bytes < sizeof(ours) ? bytes : sizeof(ours);
    if (bytes > sizeof(size_t)) {
        memcpy((char *)out + sizeof(size_t), (const char *)&ours + sizeof(size_t),
               bytes - sizeof(size_t));
    }
}

int
shl_lab_leave(shl_lab *lab, shl_code code)
{
    if (code == SHL_OK) {
        return SHL_LAB_OK;
    }
    if (shl_err_get()->code != code) {
        (void)SHL_RAISE(code, "%s", shl_code_text(code));
    }
    if (lab) {
        lab->err = *shl_err_get();
    }
    return (int)code;
}

int
shl_lab_leave_collective(shl_lab *lab, shl_code code, const char *where)
{
    if (code != SHL_OK && !lab->agreed) {
        shl_comm_abort(lab->comm, where);
        lab->broken = true;
    }
    return shl_lab_leave(lab, code);
}

shl_code
shl_lab_check(const shl_lab *lab, const char *call)
{
    if (!lab) {
        return SHL_RAISE(SHL_E_USAGE, "%s: the handle is NULL", call);
    }
    if (lab->broken) {
        SHL_RAISE(SHL_E_USAGE, "%s: this handle has failed before", call);
        shl_err_because("%s", lab->err.what);
        return shl_err_advice("shl_lab_close, and a new handle from the last checkpoint");
    }
    return SHL_OK;
}

shl_code
shl_lab_check_between(const shl_lab *lab, const char *call)
{
    SHL_TRY(shl_lab_check(lab, call));
    if (lab->stage != SHL_LAB_BETWEEN_STEPS) {
        SHL_RAISE(SHL_E_USAGE, "%s inside a step", call);
        shl_err_because("%lld of %lld micro-batches of step %lld are done",
                        (long long)lab->engine->micro, (long long)lab->setup.engine.accum,
                        (long long)lab->engine->step + 1);
        return shl_err_advice("after shl_lab_step has updated");
    }
    return SHL_OK;
}

/* --- sized structs ----------------------------------------------------------------------- */

static shl_code
check_size(const void *theirs, size_t bytes, const char *name, size_t *their_bytes)
{
    if (!theirs) {
        return SHL_RAISE(SHL_E_USAGE, "%s is NULL", name);
    }
    memcpy(their_bytes, theirs, sizeof(*their_bytes));
    if (*their_bytes < bytes || *their_bytes > LARGEST_STRUCT_BYTES) {
        SHL_RAISE(SHL_E_USAGE, "%s: struct_bytes is %zu", name, *their_bytes);
        shl_err_because("version %s of the library knows %zu bytes", SHL_LAB_VERSION, bytes);
        return shl_err_advice("set it to the sizeof of the struct");
    }
    return SHL_OK;
}

shl_code
shl_lab_take_sized(const void *theirs, size_t bytes, const char *name, void *ours)
{
    size_t their_bytes = 0;
    SHL_TRY(check_size(theirs, bytes, name, &their_bytes));
    for (size_t i = bytes; i < their_bytes; i++) {
        if (((const char *)theirs)[i] != 0) {
            SHL_RAISE(SHL_E_USAGE, "%s uses fields that this library does not know", name);
            shl_err_because("byte %zu is set, and version %s knows %zu", i, SHL_LAB_VERSION, bytes);
            return shl_err_advice("a newer library, or zeros in the new fields");
        }
    }
    memcpy(ours, theirs, bytes);
    return SHL_OK;
}

shl_code
shl_lab_give_sized(const void *ours, size_t bytes, const char *name, void *theirs)
{
    size_t their_bytes = 0;
    SHL_TRY(check_size(theirs, bytes, name, &their_bytes));
    memset(theirs, 0, their_bytes);
    memcpy(theirs, ours, bytes);
    memcpy(theirs, &their_bytes, sizeof(their_bytes));
    return SHL_OK;
}

/* --- agreements -------------------------------------------------------------------------- */

shl_code
shl_lab_agree_code(shl_lab *lab, shl_code mine, const char *where)
{
    shl_code code = shl_comm_agree(lab->comm, mine, where);
    lab->agreed = code != SHL_OK;
    return code;
}

shl_code
shl_lab_sum_words(shl_lab *lab, int64_t *words, int64_t n)
{
    const int64_t most = 4096 / (int64_t)sizeof(int64_t);
    for (int64_t i = 0; i < n; i += most) {
        int64_t piece = n - i < most ? n - i : most;
        SHL_TRY(shl_comm_control(lab->comm, SHL_CONTROL_SUM_I64, words + i, (int)piece));
    }
    return SHL_OK;
}

int
shl_lab_agree(shl_lab *lab, int mine, const char *what)
{
    shl_code code = shl_lab_check(lab, "shl_lab_agree");
    if (code != SHL_OK) {
        return shl_lab_leave(lab, code);
    }
    code = shl_lab_code_from(mine);
    if (code != SHL_OK && (what || shl_err_get()->code != code)) {
        (void)SHL_RAISE(code, "%s", what ? what : shl_code_text(code));
    }
    code = shl_lab_agree_code(lab, code, "agree");
    return shl_lab_leave(lab, code);
}

int
shl_lab_abort(shl_lab *lab, int code, const char *what)
{
    if (!lab) {
        return shl_lab_leave(NULL, shl_lab_check(lab, "shl_lab_abort"));
    }
    shl_code own = code == SHL_LAB_OK ? SHL_E_SYSTEM : shl_lab_code_from(code);
    if (what || shl_err_get()->code != own) {
        (void)SHL_RAISE(own, "%s", what ? what : shl_code_text(own));
    }
    shl_comm_abort(lab->comm, shl_mark_name(shl_ledger_get_mark(lab->device->ledger)));
    lab->broken = true;
    return shl_lab_leave(lab, own);
}

/* --- open and close ---------------------------------------------------------------------- */

/* Rank r has card r; ranks that share go round. So do those of a launcher, which may show each rank its own
 * card only, as the first: ranks that meet on one card are refused by the communicator, which compares
 * their names. A kind without cards has index 0. */
static shl_code
choose_card(const shl_lab *lab, int *out)
{
    const shl_lab_setup *s = &lab->setup;
    shl_device_survey survey;
    bool threads = lab->world && !shl_world_is_processes(lab->world);
    int place = lab->world ? shl_world_local_rank(lab->world) : s->rank;
    *out = 0;
    if (strcmp(s->comm, "local") == 0 || (threads && strcmp(s->comm, "auto") == 0)) {
        return SHL_OK; /* all on the first */
    }
    SHL_TRY(shl_device_survey_get(s->device, &survey));
    int n = survey.n_cards;
    bool is_card = strcmp(s->device, "cuda") == 0;
    if (!is_card || place < n) {
        *out = is_card ? place : 0;
        return SHL_OK;
    }
    if (n == 0) {
        SHL_RAISE(SHL_E_USAGE, "no GPU");
        shl_err_because("the driver shows no device of kind '%s'", s->device);
        return shl_err_advice("nvidia-smi, and CUDA_VISIBLE_DEVICES; or another device");
    }
    if (s->share_gpu || (lab->world && shl_world_is_launched(lab->world))) {
        *out = place % n;
        return SHL_OK;
    }
    SHL_RAISE(SHL_E_USAGE, "%d ranks and %d card%s", s->ranks, n, n == 1 ? "" : "s");
    shl_err_because("each rank has a card of its own unless they are told to share");
    return shl_err_advice("--ranks %d, or --share-gpu", n);
}

/* The device whose memory a handle counts. */
static const char *
target_of(const shl_lab_setup *s)
{
    return strcmp(s->device, "virtual") == 0 ? s->stands_for : s->device;
}

/* How ranks talk when nobody says: processes on cards by the cards' library, threads on cards by copies,
 * others through shared memory. On a virtual device: what this machine would use. */
static const char *
choose_comm(const shl_lab *lab)
{
    const shl_lab_setup *s = &lab->setup;
    if (strcmp(s->comm, "auto") != 0) {
        return s->comm;
    }
    if (!lab->world && s->ranks == 1) {
        return "self";
    }
    if (strcmp(target_of(s), "cuda") != 0) {
        return "shm";
    }
    return lab->world && !shl_world_is_processes(lab->world) ? "local" : "nccl";
}

/* Where memory is taken beforehand the virtual device takes it too: their arenas are one and the same. */
static shl_code
plan_memory(const shl_lab *lab, shl_device_config *config)
{
    const shl_lab_setup *s = &lab->setup;
    const char *comm = choose_comm(lab), *target = target_of(s);
    if (strcmp(target, "cuda") != 0) {
        return SHL_OK;
    }
    /* Ranks that are threads: the communicator says whether it takes them. */
    bool threads = lab->world && !shl_world_is_processes(lab->world);
    if (strcmp(s->device, target) == 0 && !threads) {
        SHL_TRY(shl_comm_mem_source(comm, &config->comm_source));
    }
    return shl_lab_plan_memory(s, target, comm, config);
}

static shl_code
open_device(shl_lab *lab)
{
    const shl_lab_setup *s = &lab->setup;
    shl_device_config config = {
        .kind = s->device,
        .stands_for = strcmp(s->device, "virtual") == 0 ? s->stands_for : NULL,
        .rank = s->rank,
        .threads = s->threads,
        .comm_arena = lab->world ? shl_world_comm_arena(lab->world) : NULL,
        .flops_per_s = s->flops_per_s,
        .bytes_per_s = s->bytes_per_s,
    };
    if (s->share_gpu && lab->world && shl_world_is_launched(lab->world)) {
        shl_launch_share_gpu(s->rank);
    }
    config.limit_bytes[SHL_TIER_DEVICE] = s->device_memory_bytes;
    config.limit_bytes[SHL_TIER_HOST] = s->host_memory_bytes;
    config.pin_limit_bytes = s->pin_limit_bytes;
    config.link_bytes_per_s = s->link_bytes_per_s;
    config.tf32 = s->tf32;
    config.fused_attention = strcmp(s->attention, "own") != 0;
    SHL_TRY(choose_card(lab, &config.index));
    SHL_TRY(plan_memory(lab, &config));
    return shl_device_open(&config, &lab->device);
}

static shl_code
open_comm(shl_lab *lab)
{
    const shl_lab_setup *s = &lab->setup;
    const char *real = choose_comm(lab);
    shl_comm_config config = {
        .kind = lab->device->caps.has_bytes ? real : "virtual",
        .stands_for = real,
        .rank = s->rank,
        .world = s->ranks,
        .rank_world = lab->world,
        .timeout_ms = s->timeout_ms,
        .alpha_ns = s->alpha_ns,
        .wire_bytes_per_s = s->wire_bytes_per_s,
        .sim_sleep = s->sim_sleep,
        .share_gpu = s->share_gpu,
    };
    return shl_comm_open(&config, lab->device, &lab->comm);
}

static shl_code
open_parts(shl_lab *lab)
{
    SHL_TRY(open_device(lab));
    shl_ledger_set_mark(lab->device->ledger, SHL_MARK_INIT);
    SHL_TRY(open_comm(lab));
    SHL_TRY(shl_model_new(&lab->setup.shape, &lab->model));
    SHL_TRY(shl_model_tune(lab->model, &lab->setup.tune));
    shl_mesh_of(lab->setup.engine.strategy, lab->comm, &lab->mesh);
    SHL_TRY(shl_engine_open(&lab->setup.engine, lab->model, lab->device, &lab->mesh, &lab->engine));
    SHL_TRY(shl_lab_agree_code(lab, SHL_OK, "init"));
    return lab->setup.init_from[0] ? shl_lab_load_weights(lab, lab->setup.init_from) : SHL_OK;
}

/* In reverse order of opening. */
static shl_code
close_parts(shl_lab *lab)
{
    shl_engine_close(&lab->engine);
    shl_comm_close(&lab->comm);
    shl_model_free(&lab->model);
    return shl_device_close(&lab->device);
}

static shl_code
initialize(const shl_lab_options *o, shl_world *world, shl_lab **out)
{
    shl_lab *lab = NULL;
    SHL_TRY(shl_heap_alloc(1, sizeof(*lab), &lab));
    lab->world = world;
    shl_code code = shl_lab_setup_resolve(o, world, &lab->setup);
    if (code == SHL_OK) {
        code = open_parts(lab);
    }
    if (code == SHL_OK) {
        *out = lab;
        return SHL_OK;
    }
    shl_err failure = *shl_err_get();
    if (lab->comm && !lab->agreed) {
        shl_comm_abort(lab->comm, "init");
    }
    /* What is left over after a failure matters less than the failure. */
    if (close_parts(lab) != SHL_OK || failure.code == code) {
        (void)shl_err_put(&failure);
    }
    shl_heap_free(&lab);
    return code;
}

int
shl_lab_initialize(const shl_lab_options *o, shl_lab_world *world, shl_lab **out)
{
    shl_lab_options ours;
    if (!out) {
        return shl_lab_leave(NULL, SHL_RAISE(SHL_E_USAGE, "shl_lab_initialize: out is NULL"));
    }
    *out = NULL;
    shl_code code = shl_lab_take_sized(o, sizeof(ours), "shl_lab_options", &ours);
    if (code == SHL_OK) {
        code = initialize(&ours, (shl_world *)world, out);
    }
    return shl_lab_leave(NULL, code);
}

int
shl_lab_initialize_json(const char *json, shl_lab_world *world, shl_lab **out)
{
    shl_lab_options o;
    json_t *holder = NULL;
    if (!out || !json) {
        return shl_lab_leave(NULL, SHL_RAISE(SHL_E_USAGE, "shl_lab_initialize_json: %s is NULL",
                                             out ? "the text" : "out"));
    }
    *out = NULL;
    shl_code code = shl_lab_code_from(shl_lab_options_init(&o, sizeof(o)));
    if (code == SHL_OK) {
        code = shl_lab_options_from_json(json, &o, &holder);
    }
    if (code == SHL_OK) {
        code = initialize(&o, (shl_world *)world, out);
    }
    json_decref(holder);
    return shl_lab_leave(NULL, code);
}

int
shl_lab_close(shl_lab **lab)
{
    if (!lab || !*lab) {
        return SHL_LAB_OK;
    }
    shl_err before = *shl_err_get();
    shl_code code = close_parts(*lab);
    if ((*lab)->broken && code != SHL_OK) {
        code = SHL_OK; /* its failure was told, and may be why something is left */
    }
    shl_heap_free(lab);
    if (code == SHL_OK && before.code != SHL_OK) {
        (void)shl_err_put(&before);
    }
    return shl_lab_leave(NULL, code);
}

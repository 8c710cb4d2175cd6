/* tests/engines/api: published weights as initial parameters: golden logits, the same bits under every
 * strategy and world, each rank's own ranges only, and refusals that name the tensor. */
#include "tests/checkpoints/weight_files.h"

#include <inttypes.h>
#include <math.h>
#include <stdatomic.h>

#include "checkpoints/safetensors.h"
#include "engines/api/lab.h"
#include "tests/engines/api/api_runs.h"
#include "tests/support/golden.h"
#include "tests/support/plain_model.h"

#define GOLDEN "gpt2-tiny.h5"
#define FP32_FILE "gpt2-tiny.safetensors"
#define BF16_FILE "gpt2-tiny-bf16.safetensors"
#define LOGITS_TOL 2e-5 /* as the golden files' notes suggest */

static const char *const strategies[] = {"ddp", "zero1", "zero2", "zero3", "fsdp", "fsdp-grad-op"};

typedef struct start {
    api_run r;
    char from[512];
    _Atomic int64_t bytes;
    _Atomic int nonzero_moments;
    uint64_t hash;
    int64_t params;
    size_t peak_bytes; /* of rank 0, after open */
} start;

/* The model of the golden file. */
static void
start_init(start *s, const char *strategy, int ranks, const char *from)
{
    hid_t f = shl_golden_open(GOLDEN);
    memset(s, 0, sizeof *s);
    api_run_init(&s->r, strategy, ranks);
    s->r.o.vocab = shl_golden_int(f, "/", "vocab_size");
    s->r.o.context = shl_golden_int(f, "/", "n_positions");
    s->r.o.layers = shl_golden_int(f, "/", "n_layer");
    s->r.o.width = shl_golden_int(f, "/", "n_embd");
    s->r.o.heads = shl_golden_int(f, "/", "n_head");
    s->r.o.norm_eps = shl_golden_real(f, "/", "layer_norm_epsilon");
    s->r.o.seq = s->r.o.context;
    shl_golden_close(f);
    shl_strf(s->from, sizeof s->from, "%s", from ? from : "");
    s->r.o.init_from = from ? s->from : NULL;
}

static int
count_moments(void *ctx, const shl_lab_tensor *t)
{
    start *s = ctx;
    for (int64_t i = 0; strcmp(t->kind, "param") != 0 && i < t->end - t->begin; i++) {
        s->nonzero_moments += ((const float *)t->data)[i] != 0.0F;
    }
    return SHL_LAB_OK;
}

static int
start_rank(shl_lab_world *world, void *ctx)
{
    start *s = ctx;
    shl_lab *lab = NULL;
    uint64_t hash = 0;
    int rank = world ? shl_lab_world_rank(world) : 0;
    int code = s->r.json ? shl_lab_initialize_json(s->r.json, world, &lab)
                         : shl_lab_initialize(&s->r.o, world, &lab);
    if (code == SHL_LAB_OK) {
        s->bytes += lab->weight_bytes;
        code = shl_lab_param_hash(lab, &hash);
    }
    if (code == SHL_LAB_OK && lab->device->caps.has_bytes) {
        code = shl_lab_tensors(lab, SHL_LAB_READ, count_moments, s);
    }
    if (code == SHL_LAB_OK && rank == 0) {
        s->hash = hash;
        s->params = lab->model->n_elems;
        s->peak_bytes = shl_ledger_get(lab->device->ledger, SHL_TIER_DEVICE)->peak_bytes;
    }
    int closed = shl_lab_close(&lab);
    return code != SHL_LAB_OK ? code : closed;
}

static int
start_do(start *s)
{
    bool is_virtual = strcmp(s->r.o.device, "virtual") == 0;
    if (s->r.ranks == 1 || is_virtual) {
        s->r.o.ranks = is_virtual ? s->r.ranks : 0;
        return start_rank(NULL, s);
    }
    shl_lab_world_options w = {.struct_bytes = sizeof(w), .ranks = s->r.ranks, .timeout_ms = 20000};
    return shl_lab_run_threads(&w, start_rank, s);
}

static void
start_ok(start *s)
{
    int code = start_do(s);
    if (code != SHL_LAB_OK) {
        fail_msg("%s on %d: %s (%s)", s->r.o.strategy, s->r.ranks, shl_err_get()->what,
                 shl_err_get()->because);
    }
}

static void
expect(start *s, int code, const char *in_what, const char *in_because)
{
    const shl_err *e = shl_err_get();
    int got = start_do(s);
    if (got != code || !strstr(e->what, in_what) || !strstr(e->because, in_because)) {
        fail_msg("wanted code %d, '%s' because '%s'; got %d, '%s' because '%s'", code, in_what,
                 in_because, got, e->what, e->because);
    }
    assert_int_equal(shl_heap_live_blocks(), 0);
}

/* --- values ------------------------------------------------------------------------------ */

static void
check_logits(shl_lab *lab)
{
    size_t n = 0, n_tokens = 0;
    hid_t f = shl_golden_open(GOLDEN);
    double *golden = shl_golden_f64(f, "/step0/f64/logits", &n), worst = 0.0;
    int32_t *tokens = shl_golden_i32(f, "/batch/tokens", &n_tokens);
    int64_t rows = (int64_t)n / lab->setup.shape.vocab, seq = lab->setup.shape.context;
    shl_plain_batch batch;
    shl_buf logits = {0};
    float *ours = NULL;
    assert_int_equal(shl_plain_batch_open(lab->device, rows / seq, seq, tokens, NULL, &batch),
                     SHL_OK);
    batch.run.want_grad = false;
    batch.run.logits_out = &logits;
    assert_int_equal(shl_model_forward(lab->model, &batch.run), SHL_OK);
    assert_int_equal(shl_heap_alloc(n, sizeof *ours, &ours), SHL_OK);
    assert_int_equal(logits.bytes, n * sizeof *ours);
    assert_int_equal(shl_device_download(lab->device, ours, logits.data, logits.bytes), SHL_OK);
    for (size_t i = 0; i < n; i++) {
        worst = fmax(worst, fabs((double)ours[i] - golden[i]));
    }
    print_message("logits: worst difference %.2e\n", worst);
    assert_true(worst <= LOGITS_TOL);
    shl_heap_free(&ours);
    shl_heap_free(&golden);
    shl_heap_free(&tokens);
    shl_device_free(lab->device, &logits);
    shl_plain_batch_close(lab->device, &batch);
    shl_golden_close(f);
}

static void
test_api_weights_give_the_golden_logits(void **state)
{
    SHL_UNUSED(state);
    start s;
    shl_lab *lab = NULL;
    start_init(&s, "ddp", 1, weight_golden(FP32_FILE));
    assert_int_equal(shl_lab_initialize(&s.r.o, NULL, &lab), SHL_LAB_OK);
    check_logits(lab);
    assert_int_equal(shl_lab_close(&lab), SHL_LAB_OK);
    assert_int_equal(shl_heap_live_blocks(), 0);
}

static void
test_api_weights_are_the_same_under_every_strategy_and_world(void **state)
{
    SHL_UNUSED(state);
    static const char *const files[] = {FP32_FILE, BF16_FILE};
    start seeded;
    start_init(&seeded, "ddp", 1, NULL);
    start_ok(&seeded);
    uint64_t hashes[2] = {0, 0};
    for (int f = 0; f < 2; f++) {
        for (size_t i = 0; i < SHL_ARRAY_LEN(strategies); i++) {
            for (int ranks = 1; ranks <= 3; ranks++) {
                start s;
                start_init(&s, strategies[i], ranks, weight_golden(files[f]));
                start_ok(&s);
                hashes[f] = hashes[f] ? hashes[f] : s.hash;
                assert_true(s.hash == hashes[f] && s.hash != seeded.hash);
                assert_int_equal(s.nonzero_moments, 0);
                /* Sharded: every byte is read once, by one rank. Replicated: by each. */
                int64_t copies = i == 0 ? ranks : 1;
                assert_int_equal(s.bytes, copies * s.params * (f == 0 ? 4 : 2));
            }
        }
    }
    assert_true(hashes[0] != hashes[1]);
    assert_int_equal(shl_heap_live_blocks(), 0);
}

/* The whole run, not only its start. */
static void
test_api_weights_train_to_the_same_bits(void **state)
{
    SHL_UNUSED(state);
    uint64_t hash = 0;
    for (size_t i = 0; i < SHL_ARRAY_LEN(strategies); i++) {
        start s;
        start_init(&s, strategies[i], 2, weight_golden(FP32_FILE));
        assert_int_equal(api_run_told(&s.r), SHL_LAB_OK);
        hash = hash ? hash : s.r.hash;
        assert_true(s.r.hash == hash && s.r.hash != s.r.hash_at_start);
    }
}

static void
test_api_weights_by_json(void **state)
{
    SHL_UNUSED(state);
    start s, t;
    char json[1024];
    start_init(&s, "zero3", 2, weight_golden(FP32_FILE));
    start_init(&t, "zero3", 2, NULL);
    start_ok(&s);
    shl_strf(json, sizeof json,
             "{\"model\": \"x\", \"strategy\": \"zero3\", \"seq\": %" PRId64
             ", \"init-from\": \"%s\", \"shape\": {\"layers\": %" PRId64 ", \"width\": %" PRId64
             ", \"heads\": %" PRId64 ", \"vocab\": %" PRId64 ", \"context\": %" PRId64 "}}",
             s.r.o.seq, weight_golden(FP32_FILE), s.r.o.layers, s.r.o.width, s.r.o.heads,
             s.r.o.vocab, s.r.o.context);
    t.r.json = json;
    start_ok(&t);
    assert_true(s.hash == t.hash && s.hash != 0);
}

/* Headers are checked, nothing is read, and memory is what the real device has. */
static void
test_api_weights_on_a_virtual_device(void **state)
{
    SHL_UNUSED(state);
    for (size_t i = 0; i < SHL_ARRAY_LEN(strategies); i++) {
        start real, planned;
        start_init(&real, strategies[i], 2, weight_golden(FP32_FILE));
        start_init(&planned, strategies[i], 2, weight_golden(FP32_FILE));
        planned.r.o.device = "virtual";
        start_ok(&real);
        start_ok(&planned);
        assert_int_equal(planned.bytes, 0);
        assert_int_equal(planned.peak_bytes, real.peak_bytes);
    }
    start s;
    start_init(&s, "fsdp", 64, weight_golden(FP32_FILE));
    s.r.o.device = "virtual";
    s.r.o.layers++;
    expect(&s, SHL_LAB_E_CONFIG, "tensors are missing", "");
}

/* --- refusals ---------------------------------------------------------------------------- */

static void
test_api_weights_of_another_model_are_refused(void **state)
{
    SHL_UNUSED(state);
    for (int ranks = 1; ranks <= 2; ranks++) {
        start s;
        char last[64];
        start_init(&s, "zero2", ranks, weight_golden(FP32_FILE));
        s.r.o.width *= 2;
        expect(&s, SHL_LAB_E_CONFIG, "the shape of wte.weight differs", FP32_FILE);
        start_init(&s, "zero2", ranks, weight_golden(FP32_FILE));
        s.r.o.context++;
        expect(&s, SHL_LAB_E_CONFIG, "the shape of wpe.weight differs", " x ");
        start_init(&s, "fsdp", ranks, weight_golden(FP32_FILE));
        s.r.o.inner = 3;
        expect(&s, SHL_LAB_E_CONFIG, "the shape of h.0.mlp.c_fc.weight differs", " x 3 in small");
        start_init(&s, "fsdp", ranks, weight_golden(FP32_FILE));
        shl_strf(last, sizeof last, "h.%" PRId64 ".ln_1.weight", s.r.o.layers);
        s.r.o.layers++;
        expect(&s, SHL_LAB_E_CONFIG, "12 tensors are missing", last);
        start_init(&s, "ddp", ranks, weight_golden(BF16_FILE));
        s.r.o.layers--;
        expect(&s, SHL_LAB_E_CONFIG, "12 tensors are extra", "attn.c_attn");
        start_init(&s, "ddp", ranks, weight_golden(FP32_FILE));
        s.r.o.tied = 0;
        expect(&s, SHL_LAB_E_CONFIG, "1 tensor is missing", "lm_head.weight");
        start_init(&s, "zero1", ranks, weight_golden("llama-tiny-sharded"));
        expect(&s, SHL_LAB_E_CONFIG, "tensors are missing", "wte.weight, wpe.weight");
        start_init(&s, "zero1", ranks, "/no/such/folder");
        expect(&s, SHL_LAB_E_IO, "cannot open weights /no/such/folder", "No such file");
        start_init(&s, "zero1", ranks, "");
        expect(&s, SHL_LAB_E_USAGE, "init-from", "");
    }
}

/* The golden tensors and one more, with the dtype, dims and bytes given. */
static void
put_with(const char *path, const char *name, const char *dtype, const char *dims, const void *data,
         size_t bytes)
{
    shl_safetensors *r = NULL;
    shl_str header = {0};
    size_t at = 0;
    assert_int_equal(shl_safetensors_open(weight_golden(FP32_FILE), &r), SHL_OK);
    unsigned char *all = calloc(1, (size_t)1 << 22);
    assert_non_null(all);
    shl_str_add(&header, "{");
    for (int i = 0; i < shl_safetensors_count(r); i++) {
        shl_safetensor t = shl_safetensors_at(r, i);
        shl_str_add(&header, "\"%s\":{\"dtype\":\"F32\",\"shape\":[%" PRId64, t.name, t.dims[0]);
        if (t.n_dims > 1) {
            shl_str_add(&header, ",%" PRId64, t.dims[1]);
        }
        shl_str_add(&header, "],\"data_offsets\":[%zu,%zu]},", at, at + (size_t)t.bytes);
        assert_int_equal(
            shl_safetensors_read(r, i, 0, t.elems, SHL_F32, (float *)(void *)(all + at)), SHL_OK);
        at += (size_t)t.bytes;
    }
    shl_str_add(&header, "\"%s\":{\"dtype\":\"%s\",\"shape\":%s,\"data_offsets\":[%zu,%zu]}}", name,
                dtype, dims, at, at + bytes);
    memcpy(all + at, data, bytes);
    weight_put_file(path, shl_str_get(&header), all, at + bytes);
    free(all);
    shl_str_fini(&header);
    shl_safetensors_close(&r);
}

static void
test_api_weights_take_a_copied_head_and_old_buffers(void **state)
{
    SHL_UNUSED(state);
    static const char zeros[1 << 12];
    const char *path = weight_path("more.safetensors");
    shl_safetensors *r = NULL;
    start plain, s;
    char dims[64];
    start_init(&plain, "zero3", 2, weight_golden(FP32_FILE));
    start_ok(&plain);
    assert_int_equal(shl_safetensors_open(weight_golden(FP32_FILE), &r), SHL_OK);
    int wte = shl_safetensors_find(r, "wte.weight");
    int64_t n = shl_safetensors_at(r, wte).elems;
    float *head = calloc((size_t)n, sizeof *head);
    assert_non_null(head);
    assert_int_equal(shl_safetensors_read(r, wte, 0, n, SHL_F32, head), SHL_OK);
    shl_safetensors_close(&r);
    shl_strf(dims, sizeof dims, "[%" PRId64 ",%" PRId64 "]", plain.r.o.vocab, plain.r.o.width);

    put_with(path, "lm_head.weight", "F32", dims, head, (size_t)n * sizeof *head);
    start_init(&s, "zero3", 2, path);
    start_ok(&s);
    assert_true(s.hash == plain.hash);
    assert_int_equal(s.bytes, plain.bytes);
    head[n - 1] = nextafterf(head[n - 1], 9.0F);
    put_with(path, "lm_head.weight", "F32", dims, head, (size_t)n * sizeof *head);
    start_init(&s, "zero3", 2, path);
    expect(&s, SHL_LAB_E_CONFIG, "lm_head.weight is not transformer.wte.weight", "values differ");
    put_with(path, "lm_head.weight", "F32", "[4]", head, 16);
    start_init(&s, "zero3", 2, path);
    expect(&s, SHL_LAB_E_CONFIG, "lm_head.weight is not transformer.wte.weight", "shapes differ");
    free(head);

    put_with(path, "h.0.attn.bias", "BOOL", "[1,1,16,16]", zeros, 256);
    start_init(&s, "fsdp", 2, path);
    start_ok(&s);
    assert_true(s.hash == plain.hash);
    put_with(path, "transformer.h.1.attn.masked_bias", "F32", "[]", zeros, 4);
    start_init(&s, "fsdp", 1, path);
    start_ok(&s);
    assert_true(s.hash == plain.hash);
    put_with(path, "h.0.attn.biases", "F32", "[1]", zeros, 4);
    start_init(&s, "fsdp", 2, path);
    expect(&s, SHL_LAB_E_CONFIG, "1 tensor is extra", "h.0.attn.biases");
}

static void
test_api_weights_of_another_dtype_are_refused(void **state)
{
    SHL_UNUSED(state);
    size_t n = 0;
    unsigned char *bytes = weight_slurp(weight_golden(FP32_FILE), &n);
    const char *path = weight_path("ints.safetensors");
    for (size_t i = 8; i + 5 < n; i++) {
        if (memcmp(bytes + i, "\"F32\"", 5) == 0) {
            memcpy(bytes + i, "\"I32\"", 5);
            break;
        }
    }
    weight_put(path, bytes, n);
    free(bytes);
    start s;
    start_init(&s, "zero3", 3, path);
    expect(&s, SHL_LAB_E_CONFIG, "is I32", "F32, BF16 or F16");
}

/* What no shape of a tensor shows: the configuration beside the weights. */
static void
test_api_weights_with_another_config_are_refused(void **state)
{
    SHL_UNUSED(state);
    const char *dir = weight_dir("with-config");
    char config[300], file[300], text[300];
    size_t n = 0;
    start s;
    start_init(&s, "zero3", 2, dir);
    shl_strf(config, sizeof config, "%s/config.json", dir);
    shl_strf(file, sizeof file, "%s/model.safetensors", dir);
    unsigned char *bytes = weight_slurp(weight_golden(FP32_FILE), &n);
    weight_put(file, bytes, n);
    free(bytes);
    shl_strf(text, sizeof text,
             "{\"model_type\": \"gpt2\", \"vocab_size\": %" PRId64 ", \"n_positions\": %" PRId64
             ", \"n_embd\": %" PRId64 ", \"n_layer\": %" PRId64 ", \"n_head\": %" PRId64
             ", \"layer_norm_epsilon\": %.17g}",
             s.r.o.vocab, s.r.o.context, s.r.o.width, s.r.o.layers, s.r.o.heads, s.r.o.norm_eps);
    weight_put(config, text, strlen(text));
    for (int k = 0; k < 2; k++) { /* the folder, and the file in it */
        const char *from = k == 0 ? dir : file;
        start_init(&s, "zero3", 2, from);
        start_ok(&s);
        start_init(&s, "zero3", 2, from);
        s.r.o.heads = 1;
        expect(&s, SHL_LAB_E_CONFIG, "heads differs", "config.json, 1 in small");
        start_init(&s, "zero3", 2, from);
        s.r.o.norm_eps = 1e-3;
        expect(&s, SHL_LAB_E_CONFIG, "the epsilon of the norms differs", "0.001 in small");
    }
    weight_put(config, "{", 1);
    start_init(&s, "fsdp", 1, dir);
    expect(&s, SHL_LAB_E_CONFIG, "config.json is not JSON", "");
}

/* Each allocation fails once. */
static void
test_api_weights_out_of_memory_leaves_nothing(void **state)
{
    SHL_UNUSED(state);
    int64_t n = 1;
    for (;; n += n < 100 ? 7 : 1) {
        start s;
        start_init(&s, "fsdp", 1, weight_golden(FP32_FILE));
        shl_heap_fail_at(n);
        int code = start_do(&s);
        shl_heap_fail_at(-1);
        assert_int_equal(shl_heap_live_blocks(), 0);
        if (code == SHL_LAB_OK) {
            break;
        }
        assert_int_equal(code, SHL_LAB_E_HEAP);
    }
    assert_true(n > 100);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_api_weights_give_the_golden_logits),
        cmocka_unit_test(test_api_weights_are_the_same_under_every_strategy_and_world),
        cmocka_unit_test(test_api_weights_train_to_the_same_bits),
        cmocka_unit_test(test_api_weights_by_json),
        cmocka_unit_test(test_api_weights_on_a_virtual_device),
        cmocka_unit_test(test_api_weights_of_another_model_are_refused),
        cmocka_unit_test(test_api_weights_take_a_copied_head_and_old_buffers),
        cmocka_unit_test(test_api_weights_of_another_dtype_are_refused),
        cmocka_unit_test(test_api_weights_with_another_config_are_refused),
        cmocka_unit_test(test_api_weights_out_of_memory_leaves_nothing),
    };
    return cmocka_run_group_tests(tests, weight_folder_make, weight_folder_remove);
}

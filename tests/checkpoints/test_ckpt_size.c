/* tests: what a checkpoint takes on the disk: 12 bytes per parameter and less than a thousandth more,
 * index, manifest and metadata together, for the fragments that GPT-2 124M has on 1 to 4 ranks. */
#include "tests/checkpoints/fake_shards.h"

#define LAYERS 12
#define N_PARAMS (2 + 12 * LAYERS + 2)
#define FULL_PARAMS 124439808
/* Longer positions and shapes than those of the small model below, wherever they are spelled. */
#define SLACK_PER_FRAGMENT 36
#define SLACK_PER_TENSOR 16

/* GPT-2's tensors by their names, width by width. */
typedef struct gpt_names {
    char name[N_PARAMS][48];
    shl_ckpt_tensor t[3 * N_PARAMS];
    int n;
    int64_t params;
} gpt_names;

static void
add(gpt_names *g, const char *name, int64_t rows, int64_t columns)
{
    shl_strf(g->name[g->n], sizeof g->name[0], "%s", name);
    for (int k = 0; k < 3; k++) {
        shl_ckpt_tensor *t = &g->t[k * N_PARAMS + g->n];
        t->name = g->name[g->n];
        t->kind = fake_kinds[k];
        t->n_dims = columns > 0 ? 2 : 1;
        t->dims[0] = rows;
        t->dims[1] = columns;
    }
    g->n++;
    g->params += rows * (columns > 0 ? columns : 1);
}

static void
name_all(gpt_names *g, int64_t width, int64_t vocab, int64_t context)
{
    const struct {
        const char *name;
        int64_t rows, columns;
    } block[] = {{"ln_1.weight", width, 0},
                 {"ln_1.bias", width, 0},
                 {"attn.c_attn.weight", width, 3 * width},
                 {"attn.c_attn.bias", 3 * width, 0},
                 {"attn.c_proj.weight", width, width},
                 {"attn.c_proj.bias", width, 0},
                 {"ln_2.weight", width, 0},
                 {"ln_2.bias", width, 0},
                 {"mlp.c_fc.weight", width, 4 * width},
                 {"mlp.c_fc.bias", 4 * width, 0},
                 {"mlp.c_proj.weight", 4 * width, width},
                 {"mlp.c_proj.bias", width, 0}};
    memset(g, 0, sizeof *g);
    add(g, "wte.weight", vocab, width);
    add(g, "wpe.weight", context, width);
    for (int l = 0; l < LAYERS; l++) {
        for (size_t i = 0; i < SHL_ARRAY_LEN(block); i++) {
            char name[48];
            shl_strf(name, sizeof name, "h.%d.%s", l, block[i].name);
            add(g, name, block[i].rows, block[i].columns);
        }
    }
    add(g, "ln_f.weight", width, 0);
    add(g, "ln_f.bias", width, 0);
    assert_int_equal(g->n, N_PARAMS);
}

/* Every tensor in n equal parts: as many fragments as any strategy makes. */
static void
save_even(const char *dir, const gpt_names *g, const float *zeros, shl_device *d, int world)
{
    shl_ckpt_meta meta = fake_meta(1, 1, world);
    shl_ckpt_file files[FAKE_WORLD_MAX];
    fake_ok(shl_ckpt_save_prepare(dir, &meta));
    for (int r = 0; r < world; r++) {
        shl_ckpt_writer *w = NULL;
        fake_ok(shl_ckpt_save_begin(dir, &meta, r, world, &w));
        for (int i = 0; i < 3 * N_PARAMS; i++) {
            int64_t elems = fake_elems(&g->t[i]);
            shl_shard s = {.end = elems, .replica = r, .n_replicas = world};
            s.name = g->t[i].name;
            s.kind = g->t[i].kind;
            s.n_dims = g->t[i].n_dims;
            s.dims = g->t[i].dims;
            s.local = shl_tensor_1d((void *)(uintptr_t)zeros, SHL_F32, elems);
            fake_ok(shl_ckpt_put(w, d, &s));
        }
        fake_ok(shl_ckpt_save_finish(&w, &files[r]));
    }
    fake_ok(shl_ckpt_save_commit(dir, &meta, g->t, 3 * N_PARAMS, files, world));
}

static int64_t
folder_bytes(const char *path)
{
    DIR *list = opendir(path);
    int64_t bytes = 0;
    assert_non_null(list);
    for (struct dirent *e = readdir(list); e != NULL; e = readdir(list)) {
        struct stat st;
        if (fstatat(dirfd(list), e->d_name, &st, AT_SYMLINK_NOFOLLOW) == 0 && S_ISREG(st.st_mode)) {
            bytes += (int64_t)st.st_size;
        }
    }
    (void)closedir(list);
    return bytes;
}

static void
test_ckpt_size_is_twelve_bytes_and_a_thousandth(void **state)
{
    static gpt_names full;
    static gpt_names small;
    char dir[64];
    char path[128];
    shl_device *d = fake_device("cpu", NULL, 0);
    float *zeros = NULL;
    (void)state;
    name_all(&full, 768, 50257, 1024);
    assert_int_equal(full.params, FULL_PARAMS);
    name_all(&small, 64, 1000, 128);
    fake_ok(shl_heap_alloc((size_t)(64 * 1000), sizeof *zeros, &zeros));
    fake_folder(dir);
    for (int world = 1; world <= 4; world++) {
        save_even(dir, &small, zeros, d, world);
        shl_strf(path, sizeof path, "%s/step-00000001", dir);
        int64_t fragments = (int64_t)3 * N_PARAMS * world;
        int64_t extra = folder_bytes(path) - 12 * small.params + fragments * SLACK_PER_FRAGMENT +
                        3 * N_PARAMS * SLACK_PER_TENSOR;
        print_message("%d ranks: at most %lld bytes more than 12 a parameter, %.4f %%\n", world,
                      (long long)extra, 100.0 * (double)extra / (12.0 * FULL_PARAMS));
        assert_true(extra > 0 && extra < 12 * (int64_t)FULL_PARAMS / 1000);
    }
    shl_heap_free(&zeros);
    fake_ok(shl_device_close(&d));
    fake_remove_tree(dir);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ckpt_size_is_twelve_bytes_and_a_thousandth),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

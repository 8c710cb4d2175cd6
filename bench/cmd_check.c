/* bench: `shardlab check`: what a ds_config.json means for a model and a world, before anything runs: dead
 * keys, what "auto" becomes, the batch, memory per tier from a virtual run. */
#include <string.h>

#include <jansson.h>

#include "bench/cli.h"
#include "bench/options.h"

/* The second step shows what the first leaves behind. */
#define CHECK_STEPS 2

static const shl_option TABLE[] = {
    /* clang-format off */
    SHL_ROWS_MODEL,
    SHL_ROW("ranks", SHL_OPT_LIST, ranks, 0, 0, "1", NULL, NULL, "World",
            "Data-parallel ranks, one number."),
    SHL_ROW("seq", SHL_OPT_LIST, seq, 0, 0, NULL, NULL, "tokens", "Batch",
            "Sequence length; default the context, at most 128."),
    SHL_ROWS_TUNE,
    SHL_ROWS_DEVICE,
    SHL_ROWS_OFFLOAD,
    SHL_ROWS_DEEPSPEED,
    SHL_ROW("keys", SHL_OPT_BOOL, ds.keys, 0, 0, NULL, NULL, NULL, "Output",
            "Prints the table of all keys in Markdown, and ends."),
    /* clang-format on */
};

/* Keys of the file that change nothing here. */
static int
add_dead(const shl_ds_config *ds, shl_str *out)
{
    size_t n;
    const shl_ds_key *keys = shl_ds_keys(&n);
    int dead = 0;
    for (size_t i = 0; i < n; i++) {
        if (ds->rows[i].origin == SHL_DS_USER && keys[i].status != SHL_DS_WORKS) {
            shl_str_add(out, "WARN  dead    %s:%d:%d: %s has no effect: %s\n", ds->name,
                        ds->rows[i].line, ds->rows[i].column, keys[i].path, keys[i].why);
            dead++;
        }
    }
    return dead;
}

static void
add_auto(const shl_ds_config *ds, shl_str *out)
{
    size_t n;
    const shl_ds_key *keys = shl_ds_keys(&n);
    for (size_t i = 0; i < n; i++) {
        if (ds->rows[i].origin != SHL_DS_AUTO) {
            continue;
        }
        char *dump = json_dumps(ds->rows[i].json, JSON_ENCODE_ANY | JSON_REAL_PRECISION(12));
        json_free_t release;
        json_get_alloc_funcs(NULL, &release);
        shl_str_add(out, "OK    auto    %s is %s\n", keys[i].path, dump ? dump : "?");
        release(dump);
    }
}

static int
add_notes(const shl_ds_config *ds, shl_str *out)
{
    int n = 0;
    for (const char *at = shl_str_get(&ds->notes); *at; n++) {
        size_t len = strcspn(at, "\n");
        shl_str_add(out, "WARN  note    %.*s\n", (int)len, at);
        at += len + (at[len] ? 1 : 0);
    }
    return n;
}

/* The virtual run behind the memory lines. */
static shl_code
add_memory(const shl_session_config *cfg, size_t limit_bytes, shl_str *out)
{
    shl_session_result result = {0};
    SHL_TRY(shl_session_run(cfg, NULL, &result));
    size_t peak = result.tiers[SHL_TIER_DEVICE].peak_bytes;
    for (int t = 0; t < SHL_TIER_COUNT; t++) {
        char size[32];
        shl_format_bytes(result.tiers[t].peak_bytes, size, sizeof(size));
        shl_str_add(out, "OK    memory  %s: peak %s of the worst rank\n",
                    shl_tier_name((shl_tier)t), size);
    }
    shl_session_result_fini(&result);
    if (limit_bytes > 0 && peak > limit_bytes) {
        char over[32], limit[32];
        shl_format_bytes(peak - limit_bytes, over, sizeof(over));
        shl_format_bytes(limit_bytes, limit, sizeof(limit));
        SHL_RAISE(SHL_E_OOM, "the run does not fit into %s per rank", limit);
        shl_err_because("its peak is %s above", over);
        return shl_err_advice("more --ranks, a higher stage, or a smaller micro-batch");
    }
    return SHL_OK;
}

static shl_code
check_config(const shl_ds_options *o, shl_session_config *cfg, size_t limit_bytes, shl_str *out)
{
    shl_ds_config ds;
    shl_ds_facts facts = shl_ds_options_facts(cfg);
    shl_code code = shl_ds_config_load(o->config, (int)o->dated, &ds);
    if (code == SHL_OK) {
        code = shl_ds_resolve(&ds, o->trainer, &facts, &cfg->engine);
    }
    if (ds.rows) {
        add_auto(&ds, out);
    }
    if (code == SHL_OK) {
        const shl_engine_config *e = &cfg->engine;
        char policy[SHL_DTYPE_POLICY_TEXT_BYTES];
        int warnings = add_dead(&ds, out) + add_notes(&ds, out);
        shl_dtype_policy_text(e, policy, sizeof(policy));
        shl_ds_schedule_format(&e->optim.named, cfg->schedule_text, sizeof(cfg->schedule_text));
        shl_zero_options_format(&e->zero, cfg->zero_text, sizeof(cfg->zero_text));
        shl_str_add(out, "OK    batch   %lld = %lld (micro) x %lld (accumulation) x %d (ranks)\n",
                    (long long)shl_session_global_rows(cfg), (long long)e->batch,
                    (long long)e->accum, cfg->ranks);
        shl_str_add(out, "OK    engine  %s, bucket of %lld elements, %s\n",
                    shl_strategy_name(e->strategy), (long long)e->bucket_elems, policy);
        code = shl_session_config_check(cfg);
        code = code == SHL_OK ? add_memory(cfg, limit_bytes, out) : code;
        shl_str_add(out, "%d warnings\n", warnings);
    }
    shl_ds_config_fini(&ds);
    return code;
}

static shl_code
check(shl_run_options *o)
{
    shl_run_points points;
    shl_str out = {0};
    shl_ds_options ds = o->ds;
    size_t limit_bytes = o->device_memory_bytes;
    o->ds.config = NULL;
    o->device = 1;
    o->device_memory_bytes = 0;
    o->steps = CHECK_STEPS;
    o->threads = o->threads > 0 ? o->threads : 1;
    shl_code code = shl_run_points_resolve(o, &points);
    if (code == SHL_OK && points.n != 1) {
        code = SHL_RAISE(SHL_E_USAGE, "%lld worlds and models", (long long)points.n);
        shl_err_because("a configuration is checked for one of each");
    }
    if (code == SHL_OK) {
        code = check_config(&ds, &points.configs[0], limit_bytes, &out);
        shl_err verdict = *shl_err_get();
        shl_code printed = shl_cli_print(&out);
        code = code == SHL_OK ? printed : shl_err_put(&verdict);
    }
    shl_str_fini(&out);
    shl_run_points_fini(&points);
    return code;
}

static shl_code
print_keys(void)
{
    shl_str text = {0};
    shl_ds_keys_markdown(&text);
    shl_code code = shl_cli_print(&text);
    shl_str_fini(&text);
    return code;
}

static shl_code
run_check(const shl_cli *cli)
{
    static const char *const given[] = {NULL};
    shl_run_options o;
    const char *words[1];
    char ranks[24];
    int n_words = 0;
    bool help_shown;
    SHL_TRY(shl_run_options_init(&o));
    SHL_TRY(shl_cli_parse(&shl_command_check, cli, &o, NULL, words, &n_words, 1, &help_shown));
    if (help_shown) {
        return SHL_OK;
    }
    if (o.ds.keys) {
        return print_keys();
    }
    if (n_words == 1 && o.ds.config) {
        SHL_RAISE(SHL_E_USAGE, "\"%s\" beside --config", words[0]);
        return shl_err_because("both name a configuration");
    }
    o.ds.config = n_words == 1 ? words[0] : o.ds.config;
    shl_code code = shl_ds_options_resolve(&o.ds, given, &o.ranks, ranks);
    if (code == SHL_OK && !o.ds.config) {
        code = SHL_RAISE(SHL_E_USAGE, "no configuration to check");
        shl_err_advice("shardlab check ds_config.json --model gpt2-124m --ranks 8");
    }
    if (code == SHL_OK) {
        code = check(&o);
    }
    shl_ds_options_fini(&o.ds);
    return code;
}

const shl_command shl_command_check = {
    .name = "check",
    .summary = "what a ds_config.json means here: dead keys, auto, batch, memory",
    .usage = "shardlab check ds_config.json [--model NAME] [--ranks N] [options]",
    .examples = "  shardlab check '{\"train_batch_size\": 8}' --model gpt2-124m --ranks 8\n"
                "  shardlab check --keys\n",
    .common = "model ranks trainer-args device-memory",
    .words = SHL_WORDS_FILES,
    .options = TABLE,
    .n_options = SHL_ARRAY_LEN(TABLE),
    .run = run_check,
};

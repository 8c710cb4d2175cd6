/* bench: `shardlab info`: what this program is made of; `info models`: the presets with their counts;
 * `info records`: the page bench/RECORDS.md. */
#include <string.h>

#include <jansson.h>

#include "bench/cli.h"
#include "bench/fingerprint.h"
#include "bench/record.h"
#include "kernels/base/types.h"
#include "kernels/device/device.h"
#include "models/family.h"

typedef struct info_options {
    bool json;
} info_options;

static const shl_option TABLE[] = {
    {"json", NULL, SHL_OPT_BOOL, offsetof(info_options, json), 0, 0, NULL, NULL, NULL, "Output",
     "As a JSON object."},
};

static shl_code
print_json(json_t *json)
{
    shl_str text = {0};
    char *dump = json_dumps(json, JSON_INDENT(1));
    json_free_t release;
    json_get_alloc_funcs(NULL, &release);
    if (dump) {
        shl_str_add(&text, "%s\n", dump);
    }
    text.failed = text.failed || !dump;
    release(dump);
    shl_code code = shl_cli_print(&text);
    shl_str_fini(&text);
    return code;
}

static void
add_devices(shl_str *out)
{
    const char *const *kinds = shl_device_kinds();
    shl_str_add(out, "%-10s", "devices");
    for (int i = 0; kinds[i]; i++) {
        shl_str_add(out, " %s", kinds[i]);
    }
    shl_str_add(out, "\n");
}

/* The fingerprint in lines. */
static void
add_build(shl_str *out, json_t *fingerprint)
{
    const char *key, *library;
    json_t *value, *version;
    json_object_foreach(fingerprint, key, value)
    {
        shl_str_add(out, "%-10s", key);
        if (json_is_string(value)) {
            shl_str_add(out, " %s", json_string_value(value));
        } else if (json_is_integer(value)) {
            shl_str_add(out, " %lld", (long long)json_integer_value(value));
        } else if (json_is_object(value)) {
            json_object_foreach(value, library, version)
            {
                shl_str_add(out, " %s %s", library, json_string_value(version));
            }
        } else {
            shl_str_add(out, " unknown");
        }
        shl_str_add(out, "\n");
    }
    add_devices(out);
}

static json_t *
models_json(void)
{
    size_t n;
    const shl_preset *table = shl_preset_table(&n);
    json_t *list = json_array();
    for (size_t i = 0; i < n; i++) {
        const shl_model_config *c = &table[i].config;
        json_t *row = json_pack("{ss ss sI sI sI sI sI sI}", "name", table[i].name, "note",
                                table[i].note, "params", (json_int_t)shl_model_formula_params(c),
                                "layers", (json_int_t)c->layers, "width", (json_int_t)c->width,
                                "heads", (json_int_t)c->heads, "vocab", (json_int_t)c->vocab,
                                "context", (json_int_t)c->context);
        if (json_array_append_new(list, row) != 0) {
            json_decref(list);
            return NULL;
        }
    }
    return list;
}

static void
add_models(shl_str *out)
{
    size_t n;
    const shl_preset *table = shl_preset_table(&n);
    shl_str_add(out, "%-12s %14s %7s %6s %6s %6s %8s  %s\n", "model", "parameters", "layers",
                "width", "heads", "vocab", "context", "note");
    for (size_t i = 0; i < n; i++) {
        const shl_model_config *c = &table[i].config;
        shl_str_add(out, "%-12s %14lld %7lld %6lld %6lld %6lld %8lld  %s\n", table[i].name,
                    (long long)shl_model_formula_params(c), (long long)c->layers,
                    (long long)c->width, (long long)c->heads, (long long)c->vocab,
                    (long long)c->context, table[i].note);
    }
}

static shl_code
print_lines(bool models, json_t *fingerprint)
{
    shl_str text = {0};
    if (models) {
        add_models(&text);
    } else {
        add_build(&text, fingerprint);
    }
    shl_code code = shl_cli_print(&text);
    shl_str_fini(&text);
    return code;
}

static shl_code
print_page(void)
{
    shl_str text = {0};
    shl_record_document(&text);
    shl_code code = shl_cli_print(&text);
    shl_str_fini(&text);
    return code;
}

static shl_code
run_info(const shl_cli *cli)
{
    info_options o;
    const char *word = NULL;
    int n_words = 0;
    bool help_shown;
    SHL_TRY(shl_cli_parse(&shl_command_info, cli, &o, NULL, &word, &n_words, 1, &help_shown));
    if (help_shown) {
        return SHL_OK;
    }
    bool models = n_words == 1 && strcmp(word, "models") == 0;
    if (n_words == 1 && strcmp(word, "records") == 0) {
        return print_page();
    }
    if (n_words == 1 && !models) {
        SHL_RAISE(SHL_E_USAGE, "info knows nothing about \"%s\"", word);
        shl_err_because("it takes nothing, models or records");
        return shl_err_advice("shardlab info models");
    }
    json_t *json = NULL;
    if (models) {
        json = models_json();
    } else {
        SHL_TRY(shl_fingerprint(&json));
    }
    if (!json) {
        return SHL_RAISE(SHL_E_HEAP, "out of host memory for a list of models");
    }
    shl_code code = o.json ? print_json(json) : print_lines(models, json);
    json_decref(json);
    return code;
}

const shl_command shl_command_info = {
    .name = "info",
    .summary = "version, compiler, libraries, machine; info models: the presets",
    .usage = "shardlab info [models | records] [--json]",
    .examples = "  shardlab info --json\n"
                "  shardlab info models\n"
                "  shardlab info records   # what every field of a record means\n",
    .words = "models records",
    .options = TABLE,
    .n_options = SHL_ARRAY_LEN(TABLE),
    .run = run_info,
};

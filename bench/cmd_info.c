/* bench: `shardlab info`: what this program is made of; `info models`: the presets with their counts;
 * `info records`: the page bench/RECORDS.md. */
#include <string.h>

#include <jansson.h>

#include "bench/cli.h"
#include "bench/fingerprint.h"
#include "bench/info_models.h"
#include "bench/record.h"
#include "kernels/base/types.h"
#include "kernels/device/device.h"

typedef struct info_options {
    const char *model;
    bool json, csv, md;
} info_options;

#define ROW(name, type, field, group, help)                                                        \
    {                                                                                              \
        name, NULL, type, offsetof(info_options, field), 0, 0, NULL, NULL, NULL, group, help       \
    }

static const shl_option TABLE[] = {
    ROW("model", SHL_OPT_STRING, model, "Model",
        "One model for info models: a preset, a size, or a path to a config.json."),
    ROW("json", SHL_OPT_BOOL, json, "Output", "As JSON."),
    ROW("csv", SHL_OPT_BOOL, csv, "Output", "The models as CSV."),
    ROW("md", SHL_OPT_BOOL, md, "Output", "The models in Markdown."),
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

/* Cards, and what drives them. */
static void
add_gpu(shl_str *out, const json_t *gpu)
{
    size_t i;
    const json_t *card;
    json_array_foreach(json_object_get(gpu, "cards"), i, card)
    {
        shl_str_add(out, "%s %s", i > 0 ? "," : "",
                    json_string_value(json_object_get(card, "name")));
    }
    if (json_is_null(gpu)) {
        shl_str_add(out, " none that can be used");
        return;
    }
    shl_str_add(out, "; driver %s, runtime %s, %s",
                json_string_value(json_object_get(gpu, "driver")),
                json_string_value(json_object_get(gpu, "runtime")),
                json_string_value(json_object_get(gpu, "libraries")));
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
        } else if (strcmp(key, "gpu") == 0) {
            add_gpu(out, value);
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

static shl_code
print_models(const info_options *o)
{
    shl_str text = {0};
    if ((int)o->json + (int)o->csv + (int)o->md > 1) {
        SHL_RAISE(SHL_E_USAGE, "more than one form of output");
        return shl_err_because("--json, --csv and --md exclude each other");
    }
    shl_form form = o->json  ? SHL_FORM_JSON
                    : o->csv ? SHL_FORM_CSV
                    : o->md  ? SHL_FORM_MD
                             : SHL_FORM_TABLE;
    shl_code code = shl_info_models(o->model, form, &text);
    if (code == SHL_OK) {
        code = shl_cli_print(&text);
    }
    shl_str_fini(&text);
    return code;
}

static shl_code
print_build(bool as_json)
{
    json_t *json = NULL;
    shl_str text = {0};
    SHL_TRY(shl_fingerprint_gpu("cuda", &json));
    shl_code code;
    if (as_json) {
        code = print_json(json);
    } else {
        add_build(&text, json);
        code = shl_cli_print(&text);
    }
    shl_str_fini(&text);
    json_decref(json);
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
    if (models) {
        return print_models(&o);
    }
    if (o.model || o.csv || o.md) {
        SHL_RAISE(SHL_E_USAGE, "--%s without models", o.model ? "model" : o.csv ? "csv" : "md");
        return shl_err_advice("shardlab info models");
    }
    return print_build(o.json);
}

const shl_command shl_command_info = {
    .name = "info",
    .summary = "version, compiler, libraries, machine; info models: the presets",
    .usage = "shardlab info [models | records] [options]",
    .examples = "  shardlab info --json\n"
                "  shardlab info models\n"
                "  shardlab info models --model llama-3-8b --json\n"
                "  shardlab info records   # what every field of a record means\n",
    .words = "models records",
    .options = TABLE,
    .n_options = SHL_ARRAY_LEN(TABLE),
    .run = run_info,
};

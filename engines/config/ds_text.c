/* engines/config: bytes of a configuration, from a path, from the command line or from base64, and the
 * place of a key in them. */
#include "engines/config/ds_text.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include <jansson.h>

#include "kernels/base/heap.h"
#include "kernels/base/str.h"

#define MAX_FILE_BYTES (16 << 20)

static shl_code
read_file(const char *path, long bytes, char **text)
{
    FILE *f = fopen(path, "rb");
    if (!f) {
        SHL_RAISE(SHL_E_IO, "cannot open %s", path);
        return shl_err_because("%s", strerror(errno));
    }
    shl_code code = shl_heap_alloc((size_t)bytes + 1, 1, text);
    if (code == SHL_OK && fread(*text, 1, (size_t)bytes, f) != (size_t)bytes) {
        shl_heap_free(text);
        code = SHL_RAISE(SHL_E_IO, "cannot read %s", path);
    }
    fclose(f);
    return code;
}

static int
base64_digit(char c)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    const char *at = c ? strchr(digits, c) : NULL;
    return at ? (int)(at - digits) : -1;
}

/* URL-safe base64 (RFC 4648, section 5); false when a character is none of it. */
static bool
decode(const char *source, char *dst)
{
    unsigned held = 0;
    int bits = 0;
    size_t len = strcspn(source, "=");
    if (source[len + strspn(source + len, "=")] != '\0') {
        return false;
    }
    for (size_t i = 0; i < len; i++) {
        int digit = base64_digit(source[i]);
        if (digit < 0) {
            return false;
        }
        held = (held << 6 | (unsigned)digit) & 0xffffU;
        bits += 6;
        if (bits >= 8) {
            bits -= 8;
            *dst++ = (char)(held >> bits & 0xffU);
        }
    }
    *dst = '\0';
    return true;
}

shl_code
shl_ds_text_load(const char *source, char *name, size_t name_bytes, char **text)
{
    struct stat st;
    const char *begin = source + strspn(source, " \t\r\n");
    *text = NULL;
    if (*begin == '{') {
        shl_strf(name, name_bytes, "inline configuration");
        return shl_heap_strdup(source, text);
    }
    if (stat(source, &st) == 0) {
        shl_strf(name, name_bytes, "%s", source);
        if (!S_ISREG(st.st_mode) || st.st_size > MAX_FILE_BYTES) {
            SHL_RAISE(SHL_E_CONFIG, "%s is not a configuration", source);
            return shl_err_because(S_ISREG(st.st_mode) ? "it has more than 16 MiB"
                                                       : "it is not a regular file");
        }
        return read_file(source, (long)st.st_size, text);
    }
    shl_strf(name, name_bytes, "base64 configuration");
    SHL_TRY(shl_heap_alloc(strlen(source) + 1, 1, text));
    if (source[0] != '\0' && decode(source, *text) && strchr(*text, '{')) {
        return SHL_OK;
    }
    shl_heap_free(text);
    SHL_RAISE(SHL_E_CONFIG, "no configuration at \"%s\"", source);
    return shl_err_because("it is no file, does not begin with a brace, and is not base64 of JSON");
}

shl_code
shl_ds_text_parse(const char *text, const char *name, json_t **out)
{
    json_error_t error;
    *out = json_loads(text, JSON_REJECT_DUPLICATES, &error);
    if (!*out) {
        SHL_RAISE(SHL_E_CONFIG, "%s:%d:%d: not JSON", name, error.line, error.column);
        shl_err_because("%s", error.text);
        return strchr(text, '#') || strstr(text, "//")
                   ? shl_err_advice("no comments: this program reads JSON, not Hjson")
                   : SHL_E_CONFIG;
    }
    if (json_is_object(*out)) {
        return SHL_OK;
    }
    json_decref(*out);
    *out = NULL;
    SHL_RAISE(SHL_E_CONFIG, "%s: not a JSON object", name);
    return shl_err_because("a configuration begins with a brace");
}

static const char *
skip_blanks(const char *at)
{
    return at + strspn(at, " \t\r\n");
}

/* Behind the string that begins at `at`. */
static const char *
skip_string(const char *at)
{
    for (at++; *at && *at != '"'; at++) {
        at += *at == '\\' && at[1] ? 1 : 0;
    }
    return *at ? at + 1 : at;
}

/* Behind the value that begins at `at`: of a container, behind its closing bracket. */
static const char *
skip_value(const char *at)
{
    int depth = 0;
    do {
        if (*at == '"') {
            at = skip_string(at);
            continue;
        }
        depth += *at == '{' || *at == '[' ? 1 : 0;
        depth -= *at == '}' || *at == ']' ? 1 : 0;
        at++;
    } while (*at && (depth > 0 || !strchr(",}]", *at)));
    return at;
}

/* The key `word` of the object that begins at `at`; NULL: not there. */
static const char *
find_key(const char *at, const char *word, size_t len)
{
    if (*at != '{') {
        return NULL;
    }
    for (at = skip_blanks(at + 1); *at == '"';) {
        const char *end = skip_string(at);
        if ((size_t)(end - at) == len + 2 && strncmp(at + 1, word, len) == 0) {
            return at;
        }
        at = skip_blanks(end);
        at = skip_value(skip_blanks(*at == ':' ? at + 1 : at));
        at = skip_blanks(at + strspn(at, " \t\r\n"));
        at = *at == ',' ? skip_blanks(at + 1) : at;
    }
    return NULL;
}

bool
shl_ds_text_locate(const char *text, const char *path, int *line, int *column)
{
    const char *at = skip_blanks(text);
    for (const char *word = path;;) {
        size_t len = strcspn(word, ".");
        at = find_key(at, word, len);
        if (!at) {
            return false;
        }
        word += len;
        if (*word == '\0') {
            break;
        }
        word++;
        at = skip_blanks(skip_string(at));
        at = skip_blanks(at + 1); /* the colon */
    }
    *line = *column = 1;
    for (const char *c = text; c < at; c++) {
        *line += *c == '\n' ? 1 : 0;
        *column = *c == '\n' ? 1 : *column + 1;
    }
    return true;
}

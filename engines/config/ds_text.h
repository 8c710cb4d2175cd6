/* engines/config: the text of a configuration file: found, decoded, parsed, and searched for the place of
 * a key, which the JSON library does not tell. */
#ifndef SHL_CONFIG_DS_TEXT_H
#define SHL_CONFIG_DS_TEXT_H

#include <stdbool.h>

#include "kernels/base/err.h"

struct json_t;

/* The text behind a source: a file's, the JSON itself, or URL-safe base64 of it. name: what messages call
 * it. Owner of *text: caller. Errors: SHL_E_IO, SHL_E_CONFIG. */
shl_code shl_ds_text_load(const char *source, char *name, size_t name_bytes,
                          char **text) SHL_MUST_USE;

/* The object in a text; duplicates are refused. Owner of *out: caller (json_decref). Errors: SHL_E_CONFIG
 * with line and column. */
shl_code shl_ds_text_parse(const char *text, const char *name, struct json_t **out) SHL_MUST_USE;

/* Line and column (from 1) of the key at a dotted path; false: not there. The text is valid JSON. */
bool shl_ds_text_locate(const char *text, const char *path, int *line, int *column);

#endif

/* checkpoints: what safetensors*.c share: the table of tensors behind a reader. Not for other
 * files. */
#ifndef SHL_CKPT_SAFETENSORS_ROOM_H
#define SHL_CKPT_SAFETENSORS_ROOM_H

#include <sys/types.h>

#include "checkpoints/safetensors.h"

#define SHL_SAFETENSORS_PATH_MAX 1024

struct json_t;

typedef struct shl_safetensors_dtype {
    const char *name;
    int bits;
    int own; /* the shl_dtype that it is read as, or -1 */
} shl_safetensors_dtype;

/* begin: in its file, from the first byte of the file. */
typedef struct shl_safetensors_entry {
    char *name;
    const char *key; /* inside name */
    const shl_safetensors_dtype *dtype;
    int file;
    int n_dims;
    int64_t dims[SHL_SAFETENSORS_MAX_DIMS];
    int64_t elems, begin, end;
} shl_safetensors_entry;

typedef struct shl_safetensors_file {
    char *name, *path;
    int64_t bytes;
    dev_t device;
    ino_t inode;
} shl_safetensors_file;

struct shl_safetensors {
    char path[SHL_SAFETENSORS_PATH_MAX]; /* what was opened, for messages */
    shl_safetensors_file *files;
    int n_files;
    shl_safetensors_entry *entries; /* by key once open is done */
    int n_entries, entries_cap;
    int fd, fd_file;      /* the file that is open, -1 */
    void *chunk;          /* values that change their type */
    struct json_t *index; /* of several files; or NULL */
    int64_t bytes_read;
};

/* The name without one known prefix. */
const char *shl_safetensors_key(const char *name);

/* A regular file for reading; symbolic links are followed, since download caches are made of them.
 * Errors: SHL_E_IO. */
shl_code shl_safetensors_open_file(const char *path, int *fd,
                                   shl_safetensors_file *st) SHL_MUST_USE;

/* Reads and checks the header of file number `file` and adds its tensors. Errors: as
 * shl_safetensors_open. */
shl_code shl_safetensors_add_file(shl_safetensors *r, int file) SHL_MUST_USE;

/* Fills r->path, r->files and, with several files, r->index. Errors: as shl_safetensors_open. */
shl_code shl_safetensors_find_files(shl_safetensors *r, const char *path) SHL_MUST_USE;

/* Whether the index and the headers of the files say the same; the entries are sorted. */
shl_code shl_safetensors_check_index(const shl_safetensors *r) SHL_MUST_USE;

#endif

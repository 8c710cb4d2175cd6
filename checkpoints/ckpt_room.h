/* checkpoints: what the files of this room share: the index of a checkpoint (which range of which
 * tensor lies where), folders and whole files, hashes. Not for other rooms. */
#ifndef SHL_CKPT_CKPT_ROOM_H
#define SHL_CKPT_CKPT_ROOM_H

#include "checkpoints/ckpt.h"
#include "kernels/base/str.h"

#define SHL_CKPT_VERSION 3
#define SHL_CKPT_OLDEST_VERSION 2 /* knows no skipped step and no loss scaler */
#define SHL_CKPT_MANIFEST "manifest.json"
#define SHL_CKPT_VIEW "index.h5"
#define SHL_CKPT_COMMIT "COMMIT"
#define SHL_CKPT_WEIGHTS "model.safetensors"
#define SHL_CKPT_LATEST "latest"
#define SHL_CKPT_PATH_MAX 1024
#define SHL_CKPT_MANIFEST_MAX_BYTES (256 << 20)
#define SHL_CKPT_CHUNK_BYTES ((size_t)8 << 20) /* staging of a device without host bytes */

/* A tensor as the index holds it: bounded strings, so that the index is a few flat arrays. */
typedef struct shl_ckpt_entry {
    char name[160];
    char kind[24];
    int n_dims;
    int64_t dims[SHL_MAX_DIMS];
    int64_t elems;
} shl_ckpt_entry;

/* Elements [begin, end) of tensor number `tensor` lie `offset` bytes into file number `file`. */
typedef struct shl_ckpt_fragment {
    int tensor, file;
    int64_t begin, end, offset;
} shl_ckpt_fragment;

/* Tensors sorted by kind and name; fragments by tensor and begin once checked. */
typedef struct shl_ckpt_index {
    int n_tensors, n_files, n_fragments, fragments_cap;
    shl_ckpt_entry *tensors;
    shl_ckpt_file *files;
    shl_ckpt_fragment *fragments;
    shl_ckpt_file view; /* SHL_CKPT_VIEW: no fragment lies in it */
} shl_ckpt_index;

/* Frees the tables; a zeroed index is fine. */
void shl_ckpt_index_fini(shl_ckpt_index *x);
/* Room for the tables; the entries are the caller's to fill. */
shl_code shl_ckpt_index_init(shl_ckpt_index *x, int n_tensors, int n_files) SHL_MUST_USE;
/* Fills entry i. Errors: SHL_E_BUG for a name, kind or shape that cannot be stored. */
shl_code shl_ckpt_entry_set(shl_ckpt_entry *e, const char *kind, const char *name, int n_dims,
                            const int64_t *dims) SHL_MUST_USE;
void shl_ckpt_index_sort(shl_ckpt_index *x);
/* In strict order, that is without doubles. */
bool shl_ckpt_index_sorted(const shl_ckpt_index *x);
/* Number of the tensor or -1. */
int shl_ckpt_index_find(const shl_ckpt_index *x, const char *kind, const char *name);
shl_code shl_ckpt_index_add(shl_ckpt_index *x, const shl_ckpt_fragment *f) SHL_MUST_USE;
/* Sorts the fragments and checks that they cover every tensor exactly once and lie inside their
 * files. Errors: `bad`, naming tensor, range and file. */
shl_code shl_ckpt_index_check(shl_ckpt_index *x, shl_code bad) SHL_MUST_USE;

/* The text of a manifest, and back (whole text, strict; *meta and *x filled, x to be freed by the
 * caller). Parse errors: SHL_E_VERIFY with `path` and what is wrong. */
shl_code shl_ckpt_manifest_write(const shl_ckpt_meta *meta, shl_ckpt_index *x,
                                 shl_str *out) SHL_MUST_USE;
shl_code shl_ckpt_manifest_parse(const char *path, const char *text, size_t len,
                                 shl_ckpt_meta *meta, shl_ckpt_index *x) SHL_MUST_USE;

/* Every parameter, whole and in that type, as SHL_CKPT_WEIGHTS of the folder; on the disk when it returns.
 * The index is checked. Errors: SHL_E_IO, SHL_E_HEAP. */
shl_code shl_ckpt_write_weights(const char *folder, const shl_ckpt_index *x,
                                shl_dtype dtype) SHL_MUST_USE;

/* XXH3-128; hex is 32 digits and a terminator. */
void shl_ckpt_hash(const void *data, size_t bytes, uint64_t out[2]);
/* Of the whole open file; *bytes is what was read. Errors: SHL_E_IO. */
shl_code shl_ckpt_hash_fd(int fd, const char *path, int64_t *bytes, uint64_t out[2]) SHL_MUST_USE;
void shl_ckpt_hex(const uint64_t hash[2], char out[33]);
bool shl_ckpt_unhex(const char *hex, uint64_t out[2]); /* exactly 32 lower-case digits */

/* The line in COMMIT and in `latest`; both are accepted only byte for byte. */
void shl_ckpt_commit_text(size_t manifest_bytes, const uint64_t hash[2], char *dst, size_t cap);
void shl_ckpt_latest_text(const char *folder, char *dst, size_t cap);

/* A reader: what the manifest says, and the files that are open. */
struct shl_ckpt_reader {
    char path[SHL_CKPT_PATH_MAX]; /* of the step's folder, for messages */
    int folder;                   /* survives a rename of it */
    shl_ckpt_meta meta;
    shl_ckpt_index index;
    int *fds; /* per file, -1 when closed */
    int n_open, next_to_close;
};

/* The name in DIR/latest, if the line is byte for byte what a commit writes. Errors tell what DIR
 * holds. */
shl_code shl_ckpt_read_latest(const char *dir, char *name, size_t cap) SHL_MUST_USE;
bool shl_ckpt_has_entry(const char *folder, const char *name);

/* Names inside DIR. */
void shl_ckpt_step_name(int64_t step, char *dst, size_t cap);
void shl_ckpt_temp_name(const shl_ckpt_meta *meta, char *dst, size_t cap);
void shl_ckpt_shard_name(int rank, int world, char *dst, size_t cap);
#define SHL_CKPT_TEMP_PREFIX ".tmp-"
#define SHL_CKPT_ASIDE_PREFIX ".old-" /* followed by the step's name: readers fall back to it */

/* path = a/b. Errors: SHL_E_USAGE when it is too long. */
shl_code shl_ckpt_join(const char *a, const char *b, char *dst, size_t cap) SHL_MUST_USE;

/* SHL_E_IO with errno's text: "cannot <doing> <path>". Returns the code. */
shl_code shl_ckpt_io_fail(const char *doing, const char *path);
/* The same for a write of `need` bytes more: the free space of the file system is told. */
shl_code shl_ckpt_write_fail(const char *path, int64_t need_bytes);

/* All of it or an error; interrupted and short calls are continued. */
shl_code shl_ckpt_pwrite(int fd, const char *path, const void *data, size_t bytes,
                         int64_t offset) SHL_MUST_USE;
/* Errors: SHL_E_IO, SHL_E_VERIFY when the file ends first. */
shl_code shl_ckpt_pread(int fd, const char *path, void *data, size_t bytes,
                        int64_t offset) SHL_MUST_USE;

shl_code shl_ckpt_make_folders(const char *path) SHL_MUST_USE; /* as mkdir -p */
shl_code shl_ckpt_sync_folder(const char *path) SHL_MUST_USE;
/* A new regular file with this text, on the disk (fsync) when it returns. */
shl_code shl_ckpt_put_text(const char *path, const char *text, size_t len) SHL_MUST_USE;
/* The whole of a small file under folder fd. Owner: caller. Errors: SHL_E_IO. */
shl_code shl_ckpt_slurp(int folder, const char *name, const char *path, size_t max_bytes,
                        char **text, size_t *len) SHL_MUST_USE;
/* A regular file under a folder fd, for reading; no symbolic link is followed. */
shl_code shl_ckpt_open_file(int folder, const char *name, const char *path, int *fd,
                            int64_t *bytes) SHL_MUST_USE;
/* Removes a file or a folder with all in it; silent: the thread's error stays what it was. */
void shl_ckpt_remove(const char *path);

/* Puts folder `from` in the place of DIR/`to`, whatever is there: by exchange, or (`exchange`
 * false or not offered by the file system) with the old one aside for a moment. What was there is
 * left under *old (an empty text: nothing). */
shl_code shl_ckpt_swap_in(const char *dir, const char *from, const char *to, bool exchange,
                          char *old, size_t cap) SHL_MUST_USE;

#endif

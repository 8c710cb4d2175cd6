/* checkpoints: logical state as named fragments in global coordinates, one HDF5 shard file per
 * rank, a manifest with hashes, and a commit that survives a crash at any moment. Knows no engine
 * and no communicator: shards come and go through calls, rank and world are plain integers, and
 * ranks are synchronised by the caller between the phases named below.
 *
 * On disk, DIR/step-00000010/:
 *   shard-00000-of-00004.h5   /param/<name>/<begin>-<end>, /opt/m/..., /opt/v/...: fp32, 1-dim
 *   index.h5                  /param/<name>, /opt/m/..., /opt/v/...: whole tensors as views of the
 *                             shards, for h5py, h5dump and people; loading never reads it
 *   manifest.json             format, model, step, run id, tensors, files with sizes and XXH3-128,
 *                             and for each fragment its file and byte: loading is plain reads
 *   model.safetensors         when asked for: whole parameters in 16 bits, for others to open
 *   COMMIT                    hash of the manifest: a folder without it is not a checkpoint
 * DIR/latest names the newest committed folder (and holds a hash of that name). Everything is
 * written into DIR/.tmp-<step>-<run id>, fsynced, renamed, and `latest` is replaced last. One run
 * at a time saves into a DIR: the temporary folders found there count as left by dead runs.
 *
 * A device without bytes writes nothing: put checks and makes the allocations of the device that it
 * stands for, finish gives a record of 0 bytes, and the caller calls neither prepare nor commit.
 *
 * Save: rank 0: shl_ckpt_save_prepare; every rank: _begin, _put for each shard, _finish; then (all
 * ranks done) rank 0: _commit with every rank's file record, or _discard if any rank failed. Load:
 * every rank: shl_ckpt_open, _get for each shard it wants (any world size and split), _close. */
#ifndef SHL_CKPT_CKPT_H
#define SHL_CKPT_CKPT_H

#include "kernels/device/device.h"

/* What belongs to the run and not to a tensor. Strings bounded. Everything needed to go on: */
typedef struct shl_ckpt_meta {
    char model[64];  /* name for messages: "gpt2-tiny" */
    char run_id[33]; /* 32 hex digits */
    int64_t step;    /* global batches done */
    int64_t skipped; /* of them without an update */
    char scaler[8];  /* of the loss: "none", "static", "dynamic"; what follows is its state */
    double scale;    /* of the next step; finite, > 0 */
    int64_t hysteresis_left, scaler_steps, last_overflow; /* -1: none */
    int64_t data_sample;                                  /* next sample of the global order */
    uint64_t seed;
    char config[4096]; /* JSON object of the resolved configuration; read back without blanks */
    int world;         /* ranks that saved */
    char strategy[24];
    /* Not part of what is saved: a commit also writes the parameters, whole and in this type, as
     * model.safetensors: a file of published weights (safetensors.h). */
    bool whole_weights;
    shl_dtype weights_dtype;
} shl_ckpt_meta;

/* One logical tensor as the model knows it. */
typedef struct shl_ckpt_tensor {
    const char *name;
    const char *kind; /* "param", "opt/m", "opt/v" */
    int n_dims;
    int64_t dims[SHL_MAX_DIMS];
} shl_ckpt_tensor;

typedef struct shl_ckpt_writer shl_ckpt_writer;
typedef struct shl_ckpt_reader shl_ckpt_reader;

/* A rank's finished file: rank 0 gathers them for the commit. Plain value (fits a broadcast). */
typedef struct shl_ckpt_file {
    char name[64];
    int64_t bytes;
    uint64_t hash[2]; /* XXH3-128 of the whole file */
} shl_ckpt_file;

/* Rank 0 only, before the others begin: makes DIR and the temporary folder (removing stale ones of
 * dead runs, and putting back a checkpoint that a killed save had set aside). Errors: SHL_E_IO with
 * the path and the system's reason. */
shl_code shl_ckpt_save_prepare(const char *dir, const shl_ckpt_meta *meta) SHL_MUST_USE;

/* This rank's shard file in the temporary folder. Owner: caller, ended by _finish or _abort. */
shl_code shl_ckpt_save_begin(const char *dir, const shl_ckpt_meta *meta, int rank, int world,
                             shl_ckpt_writer **out) SHL_MUST_USE;

/* Writes this rank's part of a shard, as fp32 (bf16 and fp16 are widened; other types: SHL_E_USAGE): with n_replicas > 1 the
 * range is cut into equal slices and slice `replica` is written, so that every element is written
 * once. Empty ranges are fine. The bytes must be complete: the caller has waited for their writers.
 * They are taken straight from memory; on an asynchronous device, and to be widened, through staging of
 * at most 8 MiB (host tier, tag ckpt). Errors: SHL_E_IO (disk full: bytes needed and free), SHL_E_OOM; the
 * writer can only be ended after one. */
shl_code shl_ckpt_put(shl_ckpt_writer *w, shl_device *d, const shl_shard *shard) SHL_MUST_USE;

/* Closes, fsyncs and hashes the file; *w is gone. On failure the file is removed. */
shl_code shl_ckpt_save_finish(shl_ckpt_writer **w, shl_ckpt_file *out) SHL_MUST_USE;
void shl_ckpt_save_abort(shl_ckpt_writer **w);

/* Rank 0 only, after every rank finished: checks that the files cover every tensor exactly once,
 * writes manifest and COMMIT, fsyncs, renames, replaces `latest`. A step that exists already is
 * replaced only after the new one is complete. Errors: SHL_E_IO (disk full: the old state is
 * untouched and the temporary folder removed), SHL_E_BUG on a gap or overlap. */
shl_code shl_ckpt_save_commit(const char *dir, const shl_ckpt_meta *meta,
                              const shl_ckpt_tensor *tensors, int n_tensors,
                              const shl_ckpt_file *files, int n_files) SHL_MUST_USE;
/* Rank 0 only: removes the temporary folder after a failure anywhere. */
void shl_ckpt_save_discard(const char *dir, const shl_ckpt_meta *meta);

/* When no rank of the run is left, after a failure: as _discard, for whatever step a rank was at when
 * it died; also puts back a checkpoint that had been set aside. Best effort; no DIR is fine. */
void shl_ckpt_save_sweep(const char *dir);

/* Opens DIR (its `latest`) or DIR/step-...: checks COMMIT, manifest hash, sizes of the shards; with
 * verify also every shard's hash. Errors: SHL_E_IO missing or unreadable (says what is there), SHL_E_VERIFY
 * truncated or altered (names the file, both hashes). Owner: caller. */
shl_code shl_ckpt_open(const char *path, bool verify, shl_ckpt_reader **out) SHL_MUST_USE;
void shl_ckpt_close(shl_ckpt_reader **r);
const shl_ckpt_meta *shl_ckpt_reader_meta(const shl_ckpt_reader *r);

/* The same from COMMIT and manifest alone: the other files are opened when they are wanted. */
shl_code shl_ckpt_open_manifest(const char *path, shl_ckpt_reader **out) SHL_MUST_USE;

/* Errors: SHL_E_CONFIG naming the first tensor that is missing, of another shape or, with `all`, extra. */
shl_code shl_ckpt_check_tensors(const shl_ckpt_reader *r, const shl_ckpt_tensor *tensors,
                                int n_tensors, bool all) SHL_MUST_USE;

/* Fills shard->local with elements [begin, end) of the tensor, from whatever files hold them, rounded to
 * nearest even in 16 bits, which gives back what was widened. The whole range is filled whatever the replicas. Errors: SHL_E_VERIFY / SHL_E_IO; d as in put. */
shl_code shl_ckpt_get(shl_ckpt_reader *r, shl_device *d, const shl_shard *shard) SHL_MUST_USE;

/* Takes the memory of d that _get takes for a shard, which is no less than _put's, and gives it back: for a run
 * that wants to know beforehand what it will take. Errors: SHL_E_OOM. */
shl_code shl_ckpt_rehearse(shl_device *d, const shl_shard *shard) SHL_MUST_USE;

/* --- looking at checkpoints ------------------------------------------------------------------- */

/* A folder DIR/step-...: whole when it has a COMMIT, latest when DIR/latest names it. */
typedef struct shl_ckpt_step {
    char name[64];
    bool whole, latest;
} shl_ckpt_step;

/* The steps of DIR in order. Owner: caller, shl_heap_free. Errors: SHL_E_IO also when there is none. */
shl_code shl_ckpt_list(const char *dir, shl_ckpt_step **out, int *n) SHL_MUST_USE;

/* The step's folder; borrowed. */
const char *shl_ckpt_path(const shl_ckpt_reader *r);

/* The files that the manifest names: a shard per rank, then index.h5. Borrowed. */
int shl_ckpt_n_files(const shl_ckpt_reader *r);
const shl_ckpt_file *shl_ckpt_file_at(const shl_ckpt_reader *r, int i);
/* Length and hash of file i. Errors: SHL_E_VERIFY, SHL_E_IO, naming the file. */
shl_code shl_ckpt_check_file(shl_ckpt_reader *r, int i) SHL_MUST_USE;

/* The tensors in order of kind and name; strings borrowed from r. Fragments: how many ranges lie in
 * the files in all. */
int shl_ckpt_n_tensors(const shl_ckpt_reader *r);
shl_ckpt_tensor shl_ckpt_tensor_at(const shl_ckpt_reader *r, int i);
int shl_ckpt_n_fragments(const shl_ckpt_reader *r);
/* Elements [begin, end) of tensor i into host memory. Errors: as _get. */
shl_code shl_ckpt_read(shl_ckpt_reader *r, int i, int64_t begin, int64_t end,
                       void *out) SHL_MUST_USE;

typedef enum shl_ckpt_verdict {
    SHL_CKPT_OTHER_BITS = 0,
    SHL_CKPT_OTHER_SHAPE,
    SHL_CKPT_ONLY_IN_A,
    SHL_CKPT_ONLY_IN_B
} shl_ckpt_verdict;

/* One tensor that differs. The counts belong to OTHER_BITS: elements whose bits differ, the first of
 * them, the largest absolute difference (infinite with a NaN on one side). */
typedef struct shl_ckpt_difference {
    shl_ckpt_tensor tensor; /* of A where both have it */
    shl_ckpt_verdict verdict;
    int64_t elems, n_other, first;
    double max_abs;
} shl_ckpt_difference;

/* Compares the tensors of two checkpoints by name and bits, whatever worlds and layouts saved them,
 * and calls fn for each that differs, in order. *n_differ counts them. fn may be NULL. */
shl_code shl_ckpt_diff(shl_ckpt_reader *a, shl_ckpt_reader *b,
                       shl_code (*fn)(void *ctx, const shl_ckpt_difference *d), void *ctx,
                       int *n_differ) SHL_MUST_USE;

#endif

/* checkpoints: shard files, and what every file that knows HDF5 stands on: handles are guarded, every
 * call runs under one process-wide mutex, the library's text goes into our `because`. */
#include "checkpoints/h5_room.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/base/heap.h"
#include "kernels/base/str.h"

/* Ranks may be threads of one process and not every build of HDF5 is thread-safe (Debian's serial
 * one is, its MPI ones are not); a thread-safe build holds one lock of its own across each call
 * anyway, so one mutex here costs nothing and makes the room right with any build. */
static pthread_mutex_t h5_mutex = PTHREAD_MUTEX_INITIALIZER;

#define H5_PATH_MAX 256

struct shl_h5 {
    hid_t file, gcpl, dcpl;
    char path[1024];
};

shl_h5_guard
shl_h5_guard_begin(void)
{
    shl_h5_guard g = {NULL, NULL};
    (void)pthread_mutex_lock(&h5_mutex);
    (void)H5Eget_auto2(H5E_DEFAULT, &g.fn, &g.data);
    (void)H5Eset_auto2(H5E_DEFAULT, NULL, NULL);
    return g;
}

void
shl_h5_guard_end(shl_h5_guard g)
{
    (void)H5Eclear2(H5E_DEFAULT);
    (void)H5Eset_auto2(H5E_DEFAULT, g.fn, g.data);
    (void)pthread_mutex_unlock(&h5_mutex);
}

static herr_t
first_useful(unsigned n, const H5E_error2_t *err, void *data)
{
    char *text = data;
    SHL_UNUSED(n);
    if (err->desc != NULL && err->desc[0] != '\0' && text[0] == '\0') {
        shl_strf(text, 384, "%s: %s", err->func_name != NULL ? err->func_name : "HDF5", err->desc);
    }
    return 0;
}

/* The innermost entry of the error stack is the one with the system's reason. */
shl_code
shl_h5_fail(const char *path, const char *doing)
{
    char text[384] = "";
    (void)H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, first_useful, text);
    (void)SHL_RAISE(SHL_E_IO, "%s: HDF5 cannot %s", path, doing);
    return shl_err_because("%s", text[0] != '\0' ? text : "the library gives no reason");
}

static void
close_props(shl_h5 *f)
{
    hid_t *ids[] = {&f->gcpl, &f->dcpl};
    for (size_t i = 0; i < SHL_ARRAY_LEN(ids); i++) {
        if (*ids[i] >= 0) {
            (void)H5Pclose(*ids[i]);
        }
        *ids[i] = -1;
    }
}

/* Format bounds v110 because its metadata carries checksums; no time stamps because equal states
 * must give equal bytes. */
bool
shl_h5_file_props(hid_t *fcpl, hid_t *fapl)
{
    *fcpl = H5Pcreate(H5P_FILE_CREATE);
    *fapl = H5Pcreate(H5P_FILE_ACCESS);
    return *fcpl >= 0 && *fapl >= 0 && H5Pset_obj_track_times(*fcpl, false) >= 0 &&
           H5Pset_libver_bounds(*fapl, H5F_LIBVER_V110, H5F_LIBVER_V110) >= 0 &&
           H5Pset_fclose_degree(*fapl, H5F_CLOSE_STRONG) >= 0;
}

/* Early allocation gives a final address before any byte is written; a fragment's group almost
 * always holds one link, so the room estimated for links is small. */
static bool
object_props(shl_h5 *f)
{
    f->gcpl = H5Pcreate(H5P_GROUP_CREATE);
    f->dcpl = H5Pcreate(H5P_DATASET_CREATE);
    return f->gcpl >= 0 && f->dcpl >= 0 && H5Pset_obj_track_times(f->gcpl, false) >= 0 &&
           H5Pset_est_link_info(f->gcpl, 1, 16) >= 0 &&
           H5Pset_obj_track_times(f->dcpl, false) >= 0 &&
           H5Pset_layout(f->dcpl, H5D_CONTIGUOUS) >= 0 &&
           H5Pset_alloc_time(f->dcpl, H5D_ALLOC_TIME_EARLY) >= 0 &&
           H5Pset_dset_no_attrs_hint(f->dcpl, true) >= 0 && /* exact headers, not 256 bytes */
           H5Pset_fill_time(f->dcpl, H5D_FILL_TIME_NEVER) >= 0;
}

bool
shl_h5_attr_write(hid_t object, const char *name, const int64_t *values, int n)
{
    hsize_t dim = (hsize_t)n;
    hid_t space = n == 1 ? H5Screate(H5S_SCALAR) : H5Screate_simple(1, &dim, NULL);
    hid_t attr =
        space < 0 ? -1 : H5Acreate2(object, name, H5T_STD_I64LE, space, H5P_DEFAULT, H5P_DEFAULT);
    bool ok = attr >= 0 && H5Awrite(attr, H5T_NATIVE_INT64, values) >= 0;
    if (attr >= 0) {
        ok = H5Aclose(attr) >= 0 && ok;
    }
    if (space >= 0) {
        (void)H5Sclose(space);
    }
    return ok;
}

/* Reads an attribute of 1..max integers; *n is their number. */
static bool
attr_read(hid_t object, const char *name, int64_t *values, int max, int *n)
{
    hid_t attr = H5Aopen(object, name, H5P_DEFAULT);
    hid_t space = attr < 0 ? -1 : H5Aget_space(attr);
    hssize_t count = space < 0 ? -1 : H5Sget_simple_extent_npoints(space);
    bool ok = count >= 1 && count <= max && H5Aread(attr, H5T_NATIVE_INT64, values) >= 0;
    *n = ok ? (int)count : 0;
    if (space >= 0) {
        (void)H5Sclose(space);
    }
    if (attr >= 0) {
        (void)H5Aclose(attr);
    }
    return ok;
}

static const char *const head_names[] = {"version", "step", "rank", "world"};

static shl_code
create_locked(const char *path, const shl_h5_head *head, shl_h5 *f)
{
    const int64_t values[] = {head->version, head->step, head->rank, head->world};
    hid_t fcpl = -1;
    hid_t fapl = -1;
    bool ok = shl_h5_file_props(&fcpl, &fapl) && object_props(f);
    if (ok) {
        f->file = H5Fcreate(path, H5F_ACC_TRUNC, fcpl, fapl);
    }
    ok = ok && f->file >= 0;
    for (size_t i = 0; ok && i < SHL_ARRAY_LEN(values); i++) {
        ok = shl_h5_attr_write(f->file, head_names[i], &values[i], 1);
    }
    shl_code code = ok ? SHL_OK : shl_h5_fail(path, "create the file");
    if (fcpl >= 0) {
        (void)H5Pclose(fcpl);
    }
    if (fapl >= 0) {
        (void)H5Pclose(fapl);
    }
    return code;
}

shl_code
shl_h5_create(const char *path, const shl_h5_head *head, shl_h5 **out)
{
    shl_h5 *f = NULL;
    *out = NULL;
    SHL_TRY(shl_heap_alloc(1, sizeof *f, &f));
    f->file = f->gcpl = f->dcpl = -1;
    shl_strf(f->path, sizeof f->path, "%s", path);
    shl_h5_guard g = shl_h5_guard_begin();
    shl_code code = create_locked(path, head, f);
    shl_h5_guard_end(g);
    if (code != SHL_OK) {
        shl_h5_drop(&f);
        return code;
    }
    *out = f;
    return SHL_OK;
}

/* Makes the group unless it is there. */
static bool
ensure_group(hid_t file, hid_t gcpl, const char *path)
{
    htri_t there = H5Lexists(file, path, H5P_DEFAULT);
    if (there != 0) {
        return there > 0;
    }
    hid_t group = H5Gcreate2(file, path, H5P_DEFAULT, gcpl, H5P_DEFAULT);
    return group >= 0 && H5Gclose(group) >= 0;
}

/* Each leading part of "opt/m/name" in turn: groups made on the way by the library itself would
 * carry time stamps. */
bool
shl_h5_ensure_groups(hid_t file, hid_t gcpl, char *path)
{
    for (char *slash = strchr(path, '/'); slash != NULL; slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        bool ok = ensure_group(file, gcpl, path);
        *slash = '/';
        if (!ok) {
            return false;
        }
    }
    return true;
}

static shl_code
add_locked(const shl_h5 *f, const shl_h5_range *r, int64_t *offset)
{
    char path[H5_PATH_MAX + 64];
    shl_strf(path, sizeof path, "%s/%s/%lld-%lld", r->kind, r->name, (long long)r->begin,
             (long long)r->end);
    if (!shl_h5_ensure_groups(f->file, f->gcpl, path)) {
        return shl_h5_fail(f->path, "make the group of a tensor");
    }
    hsize_t n = (hsize_t)(r->end - r->begin);
    hid_t space = H5Screate_simple(1, &n, NULL);
    hid_t set = space < 0 ? -1
                          : H5Dcreate2(f->file, path, H5T_IEEE_F32LE, space, H5P_DEFAULT, f->dcpl,
                                       H5P_DEFAULT);
    bool ok = set >= 0 && shl_h5_attr_write(set, "dims", r->dims, r->n_dims) &&
              shl_h5_attr_write(set, "begin", &r->begin, 1) &&
              shl_h5_attr_write(set, "end", &r->end, 1);
    haddr_t at = ok ? H5Dget_offset(set) : HADDR_UNDEF;
    ok = ok && at != HADDR_UNDEF;
    *offset = ok ? (int64_t)at : 0;
    shl_code code = ok ? SHL_OK : shl_h5_fail(f->path, path);
    if (set >= 0) {
        (void)H5Dclose(set);
    }
    if (space >= 0) {
        (void)H5Sclose(space);
    }
    return code;
}

shl_code
shl_h5_add(shl_h5 *f, const shl_h5_range *range, int64_t *offset)
{
    shl_h5_guard g = shl_h5_guard_begin();
    shl_code code = add_locked(f, range, offset);
    shl_h5_guard_end(g);
    return code;
}

shl_code
shl_h5_end(const shl_h5 *f, int64_t *bytes)
{
    shl_h5_guard g = shl_h5_guard_begin();
    haddr_t eoa = 0;
    shl_code code =
        H5Fget_eoa(f->file, &eoa) >= 0 ? SHL_OK : shl_h5_fail(f->path, "tell its length");
    *bytes = (int64_t)eoa;
    shl_h5_guard_end(g);
    return code;
}

/* Closing gives back what the library had set aside, so the length is known only afterwards; to
 * open the file once more also proves that it can be opened. */
static shl_code
length_locked(const char *path, int64_t *bytes)
{
    haddr_t eoa = 0;
    hid_t file = H5Fopen(path, H5F_ACC_RDONLY, H5P_DEFAULT);
    bool ok = file >= 0 && H5Fget_eoa(file, &eoa) >= 0;
    shl_code code = ok ? SHL_OK : shl_h5_fail(path, "open the file that it wrote");
    if (file >= 0) {
        (void)H5Fclose(file);
    }
    *bytes = (int64_t)eoa;
    return code;
}

shl_code
shl_h5_close(shl_h5 **f_ptr, int64_t *bytes)
{
    shl_h5 *f = *f_ptr;
    *f_ptr = NULL;
    shl_h5_guard g = shl_h5_guard_begin();
    close_props(f);
    shl_code code = H5Fclose(f->file) >= 0 ? SHL_OK : shl_h5_fail(f->path, "close the file");
    if (code == SHL_OK) {
        code = length_locked(f->path, bytes);
    }
    shl_h5_guard_end(g);
    shl_heap_free(&f);
    return code;
}

void
shl_h5_drop(shl_h5 **f_ptr)
{
    shl_h5 *f = *f_ptr;
    if (f == NULL) {
        return;
    }
    shl_h5_guard g = shl_h5_guard_begin();
    close_props(f);
    if (f->file >= 0) {
        (void)H5Fclose(f->file);
    }
    shl_h5_guard_end(g);
    shl_heap_free(f_ptr);
}

typedef struct scan {
    const char *path;
    shl_h5_fn fn;
    void *ctx;
    shl_code code;
} scan;

static shl_code
not_ours(const scan *s, const char *object, const char *why)
{
    (void)SHL_RAISE(SHL_E_VERIFY, "%s: %s is not a fragment as a checkpoint holds it", s->path,
                    object);
    return shl_err_because("%s", why);
}

/* Checks one dataset's form and tells the callback. */
static shl_code
scan_dataset(const scan *s, hid_t set, const char *object)
{
    char kind[H5_PATH_MAX + 64];
    int64_t dims[SHL_MAX_DIMS] = {0};
    int n_dims = 0;
    int n_begin = 0;
    int n_end = 0;
    shl_h5_range r = {.dims = dims};
    shl_strf(kind, sizeof kind, "%s", object);
    char *last = strrchr(kind, '/');
    if (last != NULL) {
        *last = '\0';
    }
    char *name = strrchr(kind, '/');
    if (last == NULL || name == NULL) {
        return not_ours(s, object, "its path is not kind/name/begin-end");
    }
    *name = '\0';
    if (!attr_read(set, "dims", dims, SHL_MAX_DIMS, &n_dims) ||
        !attr_read(set, "begin", &r.begin, 1, &n_begin) ||
        !attr_read(set, "end", &r.end, 1, &n_end)) {
        return not_ours(s, object, "an attribute of dims, begin, end is missing");
    }
    hid_t type = H5Dget_type(set);
    hid_t space = H5Dget_space(set);
    haddr_t at = H5Dget_offset(set);
    bool ok = type >= 0 && space >= 0 && at != HADDR_UNDEF && H5Tequal(type, H5T_IEEE_F32LE) > 0 &&
              H5Sget_simple_extent_ndims(space) == 1 &&
              H5Sget_simple_extent_npoints(space) == r.end - r.begin;
    if (type >= 0) {
        (void)H5Tclose(type);
    }
    if (space >= 0) {
        (void)H5Sclose(space);
    }
    if (!ok) {
        return not_ours(s, object, "it is not contiguous fp32 of end - begin elements");
    }
    r.kind = kind;
    r.name = name + 1;
    r.n_dims = n_dims;
    r.offset = (int64_t)at;
    return s->fn(s->ctx, &r);
}

static herr_t
scan_object(hid_t root, const char *object, const H5O_info_t *info, void *data)
{
    scan *s = data;
    if (info->type != H5O_TYPE_DATASET) {
        return 0;
    }
    hid_t set = H5Dopen2(root, object, H5P_DEFAULT);
    if (set < 0) {
        s->code = shl_h5_fail(s->path, object);
        return -1;
    }
    s->code = scan_dataset(s, set, object);
    (void)H5Dclose(set);
    return s->code == SHL_OK ? 0 : -1;
}

static shl_code
scan_locked(scan *s, hid_t file, shl_h5_head *head)
{
    int64_t values[SHL_ARRAY_LEN(head_names)] = {0};
    for (size_t i = 0; i < SHL_ARRAY_LEN(head_names); i++) {
        int n = 0;
        if (!attr_read(file, head_names[i], &values[i], 1, &n)) {
            return shl_h5_fail(s->path, "read the attributes of the root group");
        }
    }
    *head = (shl_h5_head){values[0], values[1], values[2], values[3]};
    herr_t rc =
        H5Ovisit2(file, H5_INDEX_NAME, H5_ITER_INC, scan_object, s, (unsigned)H5O_INFO_BASIC);
    if (rc < 0 && s->code == SHL_OK) {
        s->code = shl_h5_fail(s->path, "list its objects");
    }
    return s->code;
}

shl_code
shl_h5_scan(const char *path, shl_h5_head *head, shl_h5_fn fn, void *ctx)
{
    scan s = {path, fn, ctx, SHL_OK};
    shl_h5_guard g = shl_h5_guard_begin();
    hid_t file = H5Fopen(path, H5F_ACC_RDONLY, H5P_DEFAULT);
    shl_code code = file >= 0 ? scan_locked(&s, file, head) : shl_h5_fail(path, "open the file");
    if (file >= 0) {
        (void)H5Fclose(file);
    }
    shl_h5_guard_end(g);
    return code;
}

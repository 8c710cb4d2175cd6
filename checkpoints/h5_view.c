/* checkpoints: views: virtual datasets over the fragments of shard files, so that h5py and h5dump
 * see whole tensors. For people and tools only: no engine reads through them, because a missing
 * source reads as the fill value without any error. */
#include <math.h>
#include <string.h>

#include "checkpoints/h5_room.h"
#include "kernels/base/heap.h"
#include "kernels/base/str.h"

#define VIEW_PATH_MAX 512
#define IMAGE_STEP_BYTES ((size_t)64 << 10)

struct shl_h5_view {
    hid_t file, gcpl;
    char path[1024];
};

shl_code
shl_h5_view_open(const char *path, const shl_h5_head *head, shl_h5_view **out)
{
    shl_h5_view *v = NULL;
    hid_t fcpl = -1;
    hid_t fapl = -1;
    *out = NULL;
    SHL_TRY(shl_heap_alloc(1, sizeof *v, &v));
    v->file = v->gcpl = -1;
    shl_strf(v->path, sizeof v->path, "%s", path);
    shl_h5_guard g = shl_h5_guard_begin();
    /* In memory, because HDF5 1.10 does not survive a full disk reliably. The oldest superblock: in
     * a newer one this library clears a flag of the image and leaves its checksum as it was. */
    bool ok = shl_h5_file_props(&fcpl, &fapl) &&
              H5Pset_libver_bounds(fapl, H5F_LIBVER_EARLIEST, H5F_LIBVER_V110) >= 0 &&
              H5Pset_fapl_core(fapl, IMAGE_STEP_BYTES, false) >= 0;
    if (ok) {
        v->gcpl = H5Pcreate(H5P_GROUP_CREATE);
        ok = v->gcpl >= 0 && H5Pset_obj_track_times(v->gcpl, false) >= 0;
    }
    if (ok) {
        v->file = H5Fcreate(path, H5F_ACC_TRUNC, fcpl, fapl);
    }
    ok = ok && v->file >= 0 && shl_h5_attr_write(v->file, "version", &head->version, 1) &&
         shl_h5_attr_write(v->file, "step", &head->step, 1) &&
         shl_h5_attr_write(v->file, "world", &head->world, 1);
    shl_code code = ok ? SHL_OK : shl_h5_fail(path, "make the view in memory");
    if (fcpl >= 0) {
        (void)H5Pclose(fcpl);
    }
    if (fapl >= 0) {
        (void)H5Pclose(fapl);
    }
    shl_h5_guard_end(g);
    if (code != SHL_OK) {
        shl_h5_view_drop(&v);
        return code;
    }
    *out = v;
    return SHL_OK;
}

void
shl_h5_view_drop(shl_h5_view **v_ptr)
{
    shl_h5_view *v = *v_ptr;
    if (v == NULL) {
        return;
    }
    shl_h5_guard g = shl_h5_guard_begin();
    if (v->gcpl >= 0) {
        (void)H5Pclose(v->gcpl);
    }
    if (v->file >= 0) {
        (void)H5Fclose(v->file);
    }
    shl_h5_guard_end(g);
    shl_heap_free(v_ptr);
}

/* Selects elements [begin, end) of the row-major tensor: a union of boxes, each the largest that
 * starts at the next element: for a matrix at most the end of a row, whole rows, the start of a
 * row; at most 2 * n_dims - 1 of them. */
static bool
select_range(hid_t space, int n_dims, const int64_t *dims, int64_t begin, int64_t end)
{
    H5S_seloper_t op = H5S_SELECT_SET;
    for (int64_t at = begin; at < end;) {
        hsize_t start[SHL_MAX_DIMS] = {0};
        hsize_t count[SHL_MAX_DIMS] = {0};
        int64_t rest = at;
        int64_t stride = 1;
        for (int i = n_dims - 1; i >= 0; i--) {
            start[i] = (hsize_t)(rest % dims[i]);
            count[i] = (hsize_t)dims[i];
            rest /= dims[i];
        }
        int level = n_dims - 1;
        while (level > 0 && start[level] == 0 && stride * dims[level] <= end - at) {
            stride *= dims[level--];
        }
        int64_t run = (end - at) / stride;
        int64_t room = dims[level] - (int64_t)start[level];
        run = run < room ? run : room;
        count[level] = (hsize_t)run;
        for (int i = 0; i < level; i++) {
            count[i] = 1;
        }
        if (H5Sselect_hyperslab(space, op, start, NULL, count, NULL) < 0) {
            return false;
        }
        op = H5S_SELECT_OR;
        at += run * stride;
    }
    return true;
}

/* "/kind/name/begin-end"; a percent sign in the name of a source would start a pattern. */
static void
source_path(const char *kind, const char *name, const shl_h5_piece *p, char *dst, size_t cap)
{
    size_t n = 0;
    shl_strf(dst, cap, "/%s/", kind);
    n = strlen(dst);
    for (; *name != '\0' && n + 2 < cap; name++) {
        dst[n++] = *name;
        if (*name == '%') {
            dst[n++] = '%';
        }
    }
    dst[n] = '\0';
    shl_strf(dst + n, cap - n, "/%lld-%lld", (long long)p->begin, (long long)p->end);
}

static bool
map_piece(hid_t dcpl, hid_t space, const char *kind, const char *name, int n_dims,
          const int64_t *dims, const shl_h5_piece *p)
{
    char source[VIEW_PATH_MAX];
    hsize_t n = (hsize_t)(p->end - p->begin);
    hid_t from = H5Screate_simple(1, &n, NULL);
    source_path(kind, name, p, source, sizeof source);
    bool ok = from >= 0 && select_range(space, n_dims, dims, p->begin, p->end) &&
              H5Pset_virtual(dcpl, space, p->file, source, from) >= 0;
    if (from >= 0) {
        (void)H5Sclose(from);
    }
    return ok;
}

static bool
add_locked(const shl_h5_view *v, hid_t dcpl, hid_t space, char *path)
{
    bool ok = shl_h5_ensure_groups(v->file, v->gcpl, path);
    hid_t set =
        ok ? H5Dcreate2(v->file, path, H5T_IEEE_F32LE, space, H5P_DEFAULT, dcpl, H5P_DEFAULT) : -1;
    return set >= 0 && H5Dclose(set) >= 0;
}

shl_code
shl_h5_view_add(shl_h5_view *v, const char *kind, const char *name, int n_dims, const int64_t *dims,
                const shl_h5_piece *pieces, int n_pieces)
{
    char path[VIEW_PATH_MAX];
    hsize_t extent[SHL_MAX_DIMS] = {0};
    const float nan_fill = NAN;
    for (int i = 0; i < n_dims; i++) {
        extent[i] = (hsize_t)dims[i];
    }
    shl_h5_guard g = shl_h5_guard_begin();
    hid_t dcpl = H5Pcreate(H5P_DATASET_CREATE);
    hid_t space = H5Screate_simple(n_dims, extent, NULL);
    bool ok = dcpl >= 0 && space >= 0 && H5Pset_obj_track_times(dcpl, false) >= 0 &&
              H5Pset_dset_no_attrs_hint(dcpl, true) >= 0 &&
              H5Pset_fill_value(dcpl, H5T_NATIVE_FLOAT, &nan_fill) >= 0;
    for (int i = 0; ok && i < n_pieces; i++) {
        ok = map_piece(dcpl, space, kind, name, n_dims, dims, &pieces[i]);
    }
    shl_strf(path, sizeof path, "%s/%s", kind, name);
    ok = ok && H5Sselect_all(space) >= 0 && add_locked(v, dcpl, space, path);
    shl_code code = ok ? SHL_OK : shl_h5_fail(v->path, path);
    if (space >= 0) {
        (void)H5Sclose(space);
    }
    if (dcpl >= 0) {
        (void)H5Pclose(dcpl);
    }
    shl_h5_guard_end(g);
    return code;
}

shl_code
shl_h5_view_image(shl_h5_view **v_ptr, char **image, size_t *bytes)
{
    shl_h5_view *v = *v_ptr;
    shl_code code = SHL_OK;
    *image = NULL;
    *bytes = 0;
    shl_h5_guard g = shl_h5_guard_begin();
    ssize_t need =
        H5Fflush(v->file, H5F_SCOPE_GLOBAL) >= 0 ? H5Fget_file_image(v->file, NULL, 0) : -1;
    if (need > 0) {
        code = shl_heap_alloc((size_t)need, 1, image);
    }
    if (code == SHL_OK && (need <= 0 || H5Fget_file_image(v->file, *image, (size_t)need) != need)) {
        code = shl_h5_fail(v->path, "give the bytes of the view");
    }
    shl_h5_guard_end(g);
    *bytes = code == SHL_OK ? (size_t)need : 0;
    if (code != SHL_OK) {
        shl_heap_free(image);
    }
    shl_h5_view_drop(v_ptr);
    return code;
}

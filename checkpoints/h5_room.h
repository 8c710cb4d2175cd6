/* checkpoints: what the files that know HDF5 (h5*.c) share: the guard of every call, the library's
 * text in our errors, attributes and property lists. Not for other files. */
#ifndef SHL_CKPT_H5_ROOM_H
#define SHL_CKPT_H5_ROOM_H

#include <hdf5.h>

#include "checkpoints/h5.h"

/* The caller's handler of HDF5 errors, put back when the guard ends: the host program may use the
 * library too. */
typedef struct shl_h5_guard {
    H5E_auto2_t fn;
    void *data;
} shl_h5_guard;

/* One guard is held at a time in the process. */
shl_h5_guard shl_h5_guard_begin(void);
void shl_h5_guard_end(shl_h5_guard g);

/* SHL_E_IO "<path>: HDF5 cannot <doing>" with the library's own reason. Returns it. */
shl_code shl_h5_fail(const char *path, const char *doing);

/* Format bounds and absence of time stamps of every file of this room. */
bool shl_h5_file_props(hid_t *fcpl, hid_t *fapl);

/* n integers: a scalar for one of them. */
bool shl_h5_attr_write(hid_t object, const char *name, const int64_t *values, int n);

/* Makes each leading part of "opt/m/name" that is not there yet, as the group properties say. */
bool shl_h5_ensure_groups(hid_t file, hid_t gcpl, char *path);

#endif

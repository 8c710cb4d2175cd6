/* room: why.
 * second. */
#include <hdf5.h>

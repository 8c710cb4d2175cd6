/* room: why.
 * second. */
#include "engines/comm/comm.h"

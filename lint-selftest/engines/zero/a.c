/* room: why.
 * second. */
#include "engines/fsdp/fsdp.h"

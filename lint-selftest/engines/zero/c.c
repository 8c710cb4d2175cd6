/* room: why.
 * second. */
#include "models/module.h"
#include <math.h>

/* room: why.
 * second. */
#include "gpt.h"

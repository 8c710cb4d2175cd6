/* room: why.
 * second. */
#if 0

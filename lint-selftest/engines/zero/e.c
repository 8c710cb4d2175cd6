/* room: why.
 * second. */
ncclAllGather(1);

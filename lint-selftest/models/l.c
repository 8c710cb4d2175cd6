/* room: why.
 * second. */
int is_zero3;

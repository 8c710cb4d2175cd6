/* room: why.
 * second. */
void *p = malloc(3);

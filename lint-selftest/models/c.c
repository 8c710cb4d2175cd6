/* room: why.
 * second. */
char *s = getenv("X");

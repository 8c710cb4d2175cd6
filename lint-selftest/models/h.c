/* room: why.
 * second. */
fprintf(stderr, "x");

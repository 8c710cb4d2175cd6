/* room: why.
 * second. */
printf("x");

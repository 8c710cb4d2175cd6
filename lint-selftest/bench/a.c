/* room: why.
 * second. */
printf("x"); exit(1);

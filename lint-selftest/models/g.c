/* room: why.
 * second. */
/* printf("x") */ snprintf(a, 2, "printf(malloc(");

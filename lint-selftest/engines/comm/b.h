/* room: why.
 * second. */
/* What. */
int shl_x(int a);
int shl_y(int a);

/* room: why.
 * second. */

int shl_x(int a);

/* room: why.
 * second. */
	int x;

/* room: why.
 * second. */
// TODO later

/* room: why.
 * second. */
d->free(x); p.free (1); shl_heap_free(&p);

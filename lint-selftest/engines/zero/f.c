/* room: why.
 * second. */
x = "cpu"; int64_t cpu_ns; cpu_set_t s; /* cuda */

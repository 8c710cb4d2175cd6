/* room: why.
 * second. */
x = shl_cpu_device_ops;

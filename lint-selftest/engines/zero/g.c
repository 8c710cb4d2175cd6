/* room: why.
 * second. */
int gpt2_layers;

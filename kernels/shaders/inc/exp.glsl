/* exp of a value that may be a NaN and must stay one where nothing else carries it on: GLSL leaves
 * that to the driver, and one that clamps first makes a number of it. */
float td_exp(float x) { return (floatBitsToUint(x) & 0x7fffffffu) > 0x7f800000u ? x : exp(x); }

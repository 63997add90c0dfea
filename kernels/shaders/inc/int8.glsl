/* Rows of activations as signed bytes, as quantize.comp writes and mat_vec.comp reads them: a block
 * of 32 is 3 uvec4s: 32 quants; then d, the quants' sum as a float, and the sums of the two halves
 * of 16 as ints. x = quant d: q = x * (127 / amax) rounded half to even, d = amax / 127; a block with
 * an Inf or a NaN has d = NaN and q = 0, one with amax < 2^-120 has d = 0. Rows are padded with zeros
 * to quads of 4 blocks.
 *
 * Products of four bytes are OpSDot, which Vulkan 1.3 promises; glslang 12 has no name for it. */
#extension GL_EXT_spirv_intrinsics : require

#define TD_INT8_UNITS 3u

spirv_instruction(extensions = ["SPV_KHR_integer_dot_product"], capabilities = [6019, 6018], id = 4450)
int td_sdot_4x8(uint a, uint b, spirv_literal int packed_format);

int td_dot(uint a, uint b, int sum) { return td_sdot_4x8(a, b, 0) + sum; }

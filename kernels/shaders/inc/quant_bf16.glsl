/* BF16: a unit is 8 upper halves of floats. */
#define TD_IS_INT8 0
#define TD_UNIT    8u

vec4 td_unit_vec4(uvec4 unit, uint j)
{
    uvec2 both = uvec2(unit[2u * j], unit[2u * j + 1u]);
    return uintBitsToFloat(uvec4(both.x << 16, both.x & 0xffff0000u, both.y << 16,
                                 both.y & 0xffff0000u));
}

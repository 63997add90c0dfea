/* F16: a unit is 8 halves. */
#define TD_IS_INT8 0
#define TD_UNIT    8u

vec4 td_unit_vec4(uvec4 unit, uint j)
{
    return vec4(unpackHalf2x16(unit[2u * j]), unpackHalf2x16(unit[2u * j + 1u]));
}

/* F32: a unit is 4 floats. */
#define TD_IS_INT8 0
#define TD_UNIT    4u

vec4 td_unit_vec4(uvec4 unit, uint j) { return uintBitsToFloat(unit); }

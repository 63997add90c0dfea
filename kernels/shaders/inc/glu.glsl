/* A gate's value times what it gates: kinds as td_glu_kind counts them (kernels/ops.h). After
 * exp.glsl. */
const uint SILU = 0u, GELU = 1u, CLAMPED = 2u, SIGMOID = 3u;

float td_glu(uint kind, float gate, float up)
{
    precise float g = gate, u = up, value;
    if (kind == SILU) {
        value = g / (1.0 + exp(-g)) * u;
    } else if (kind == GELU) { /* (1 + tanh(z)) / 2 = 1 / (1 + exp(-2 z)) */
        precise float z = 0.79788456080286535588 * (g * fma(0.044715 * g, g, 1.0));
        value = g / (1.0 + exp(-2.0 * z)) * u;
    } else if (kind == CLAMPED) { /* in a form that keeps a NaN */
        g = g > 7.0 ? 7.0 : g;
        u = u > 7.0 ? 7.0 : u < -7.0 ? -7.0 : u;
        value = g / (1.0 + exp(-1.702 * g)) * (u + 1.0);
    } else {
        value = 1.0 / (1.0 + td_exp(-g)) * u;
    }
    return value;
}
